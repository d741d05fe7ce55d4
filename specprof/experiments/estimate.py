"""How long a plan will take and how much memory it needs, before anything is loaded."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from specprof.errors import SpecprofError
from specprof.experiments.plan import Batch, Plan, Task
from specprof.experiments.records import Generation
from specprof.experiments.remaining import Remaining
from specprof.models import devices, footprint, hub
from specprof.models.registry import ModelPair

_COPIED_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class PairEstimate:
    """What is to be done for one pair."""

    pair: str
    num_cells: int
    num_done: int
    num_failed: int
    num_generations: int
    num_missing: int
    seconds: float | None
    """Decoding alone, loading left out; None where nothing is known to go by."""
    from_measurements: bool
    """Else from the size of the weights and the speed of this machine's memory: an order of magnitude."""
    weight_bytes: int | None
    """Of the models a worker holds at a time; None where it can't be known before loading."""


def estimate(plan: Plan, remaining: Remaining, measured: Iterable[Generation]) -> list[PairEstimate]:
    """Each pair of a plan; pairs that can't be had are not in it."""
    by_cell: dict[str, list[float]] = defaultdict(list)
    by_pair: dict[str, list[float]] = defaultdict(list)
    for generation in measured:
        if remaining.machine_class in (None, generation.machine_class):
            by_cell[generation.config_hash].append(generation.result.total_time)
            by_pair[generation.pair].append(generation.result.total_time)
    batches: dict[str, list[Batch]] = defaultdict(list)
    for batch in plan.batches:
        batches[batch.pair.name].append(batch)
    return [_of_pair(some, remaining, by_cell, by_pair[name]) for name, some in batches.items()]


def _of_pair(
    batches: list[Batch], remaining: Remaining, by_cell: dict[str, list[float]], of_pair: list[float]
) -> PairEstimate:
    pair = batches[0].pair
    cells = [cell for batch in batches for cell in batch.cells]
    tasks = [task for batch in batches for task in remaining.missing(batch, remaining.machine_class)]
    weights = _weight_bytes(pair, batches)
    seconds: float | None = 0.0
    if tasks and of_pair:
        typical = sum(of_pair) / len(of_pair)
        seconds = sum(_mean(by_cell[task.cell.config_hash], typical) for task in tasks)
    elif tasks:
        seconds = _from_weights(tasks, weights)
    return PairEstimate(
        pair=pair.name,
        num_cells=len(cells),
        num_done=sum(map(remaining.is_done, cells)),
        num_failed=sum(not remaining.is_open(cell) for cell in cells),
        num_generations=sum(len(batch.tasks) for batch in batches),
        num_missing=len(tasks),
        seconds=seconds,
        from_measurements=bool(of_pair),
        weight_bytes=sum(weights) if weights else None,
    )


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _weight_bytes(pair: ModelPair, batches: list[Batch]) -> tuple[int, int] | None:
    """Of target and draft."""
    runs = [cell.run for batch in batches for cell in batch.cells]
    if runs[0].random_weights:
        return None
    device = devices.choose_device(runs[0].device)

    def of(model_id: str, dtype: str, revision: str | None) -> int:
        found = hub.resolve(model_id, revision=revision, offline=runs[0].offline)
        return footprint.memory_needed(found.directory, dtype, device)

    drafts = any(run.drafter == "model" and run.k != 0 for run in runs)
    try:
        target = of(pair.target_model_id, pair.target_dtype, runs[0].revision)
        return target, of(pair.draft_model_id, pair.draft_dtype, None) if drafts else 0
    except SpecprofError:
        return None


def _from_weights(tasks: list[Task], weights: tuple[int, int] | None) -> float | None:
    """Decoding reads all of the target's weights for each token; on the CPU, as fast as memory can be copied."""
    run = tasks[0].cell.run
    if weights is None or devices.choose_device(run.device).type != "cpu":
        return None
    seconds_per_token = weights[0] / _copied_bytes_per_second()
    return sum(task.cell.run.max_new_tokens for task in tasks) * seconds_per_token


def _copied_bytes_per_second() -> float:
    source = np.ones(_COPIED_BYTES // 8)
    target = np.empty_like(source)
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - begun)
    return _COPIED_BYTES / min(seconds)
