"""What a results store says: how far each cell is, how fast it was, and by how much faster than its baseline."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from specprof.experiments.records import CellStarted, Failure, Generation
from specprof.experiments.results import Contents
from specprof.profiling.comparison import Comparison, compare
from specprof.profiling.metrics import BASELINE, BenchmarkConfig
from specprof.profiling.statistics import cost_over_repetitions, ratio_of_rates

State = Literal["done", "partial", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class CellState:
    """A cell on one class of machines."""

    cell: CellStarted
    config: BenchmarkConfig
    state: State
    num_done: int
    """Generations that were last asked for; neither controls nor what earlier sessions asked for beyond that."""
    num_expected: int
    failure: Failure | None
    """Why it is not done."""
    tokens_per_second: float | None
    """Decode only, over all its generations so far."""
    speedup: float | None
    """Of decoding, over the baseline on the same class of machines, on the prompts both have; None for a baseline."""


def cell_states(contents: Contents) -> list[CellState]:
    """Every cell of a store, in the order they were first started."""
    generations: dict[tuple[str, str], list[Generation]] = defaultdict(list)
    for generation in contents.generations.values():
        cell = contents.cells.get((generation.config_hash, generation.machine_class))
        if not generation.control and (cell is None or _asked_for(generation, cell)):
            generations[generation.config_hash, generation.machine_class].append(generation)
    speeds = {key: _speeds(measured) for key, measured in generations.items()}
    states = []
    for (config_hash, machine_class), cell in contents.cells.items():
        config = BenchmarkConfig.from_dict(cell.config)
        num_done = len(generations[config_hash, machine_class])
        num_expected = cell.num_prompts * cell.repetitions
        failure = last_failure(contents, cell) if num_done < num_expected or not num_expected else None
        speed = speeds.get((config_hash, machine_class), {})
        baseline = speeds.get((config.baseline().config_hash(), machine_class), {})
        states.append(
            CellState(
                cell,
                config,
                _state(failure, num_done, num_expected),
                num_done,
                num_expected,
                failure,
                _tokens_per_second(speed),
                None if config.decoder_label == BASELINE else _speedup(baseline, speed),
            )
        )
    return states


def _asked_for(generation: Generation, cell: CellStarted) -> bool:
    """Not of a prompt or repetition that only an earlier session wanted, nor of a text its prompt no longer has."""
    if not cell.prompt_hashes:
        return True
    return generation.prompt_hash in cell.prompt_hashes and generation.repetition < cell.repetitions


def last_failure(contents: Contents, cell: CellStarted) -> Failure | None:
    """The last since the cell was last started; one from before its machine was known is that of every class,
    unless the cell stands there without a class itself."""
    known = contents.failures.get((cell.config_hash, cell.machine_class))
    if cell.machine_class and (cell.config_hash, "") in contents.cells:
        return known
    unplaced = contents.failures.get((cell.config_hash, None))
    return max(filter(None, (known, unplaced)), key=lambda failure: failure.sequence, default=None)


def _state(failure: Failure | None, num_done: int, num_expected: int) -> State:
    if failure is not None:
        return "skipped" if failure.reason == "skipped" else "failed"
    return "done" if num_done >= num_expected > 0 else "partial"


def orphaned(cells: Sequence[CellState], removed: Sequence[CellState]) -> list[CellState]:
    """Cells that stay, and whose baseline does not."""
    gone = {(state.cell.config_hash, state.cell.machine_class) for state in removed}
    return [
        state
        for state in cells
        if (state.cell.config_hash, state.cell.machine_class) not in gone
        and (state.config.baseline().config_hash(), state.cell.machine_class) in gone
    ]


def compared(contents: Contents, state: CellState) -> Comparison:
    """A cell beside its baseline of the same class of machines.

    Args:
        contents: read with rounds.
    """
    cell, config_hashes = state.cell, {state.config.baseline().config_hash(), state.cell.config_hash}
    generations = sorted(
        (
            generation
            for generation in contents.generations.values()
            if generation.config_hash in config_hashes
            and generation.machine_class == cell.machine_class
            and not generation.control
        ),
        key=lambda generation: generation.sequence,
    )
    # An id may have stood for one text and later for another: the cell's last one counts.
    texts = {g.prompt_id: g.prompt_hash for g in generations if g.config_hash == cell.config_hash}
    kept = [g for g in generations if texts.get(g.prompt_id) == g.prompt_hash]
    return compare(
        [generation.result for generation in kept],
        temperature=state.config.temperature,
        domains={generation.prompt_id: generation.domain for generation in kept},
        seed=abs(state.config.seed),
    )


# Speed as the comparison of a run defines it: a prompt's cost is its median over repetitions.

Speeds = dict[tuple[str, str], tuple[float, float]]
"""By prompt id and hash: seconds and tokens."""


def _speeds(generations: Iterable[Generation]) -> Speeds:
    measured: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    for generation in generations:
        cost = generation.result.decode_seconds, generation.result.num_decode_tokens
        measured[generation.prompt_id, generation.prompt_hash].append(cost)
    costs = {prompt: cost_over_repetitions(repetitions) for prompt, repetitions in measured.items()}
    return {prompt: cost for prompt, cost in costs.items() if cost is not None}


def _tokens_per_second(speeds: Speeds) -> float | None:
    seconds = math.fsum(seconds for seconds, _ in speeds.values())
    return math.fsum(tokens for _, tokens in speeds.values()) / seconds if seconds > 0 else None


def _speedup(baseline: Speeds, candidate: Speeds) -> float | None:
    shared = [prompt for prompt in candidate if prompt in baseline]
    if not shared:
        return None
    ar_seconds, ar_tokens = zip(*(baseline[prompt] for prompt in shared), strict=True)
    sd_seconds, sd_tokens = zip(*(candidate[prompt] for prompt in shared), strict=True)
    return ratio_of_rates(ar_seconds, sd_seconds, numerator_weights=ar_tokens, denominator_weights=sd_tokens)
