"""What a sweep has to do, and in which order."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from specprof.data.prompts import Prompt
from specprof.errors import SpecprofError
from specprof.experiments.config import RunConfig
from specprof.experiments.executors import Job
from specprof.experiments.records import GenerationKey
from specprof.experiments.sweep_config import SweepConfig
from specprof.models import checkpoint, hub
from specprof.models.registry import REGISTRY, ModelPair
from specprof.profiling.metrics import BenchmarkConfig

NUM_CONTROLS = 3
"""Re-runs of a baseline's first prompt: at the beginning, in the middle and at the end."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One condition, measured on every prompt of its domain ``repetitions`` times."""

    config: BenchmarkConfig
    config_hash: str
    run: RunConfig
    prompts: tuple[Prompt, ...]

    @property
    def pair_name(self) -> str:
        return self.run.pair.name

    @property
    def uses_draft_model(self) -> bool:
        return self.run.k != 0 and self.run.drafter == "model"

    @property
    def num_generations(self) -> int:
        """Controls aside."""
        return len(self.prompts) * self.run.repetitions


@dataclass(frozen=True, slots=True)
class Task:
    """One generation."""

    cell: Cell
    prompt: Prompt
    repetition: int
    control: bool = False

    def key(self, machine_class: str) -> GenerationKey:
        return GenerationKey(
            self.cell.config_hash,
            machine_class,
            self.prompt.prompt_id,
            prompt_hash(self.prompt),
            self.repetition,
            self.control,
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """What one worker does with one pair, in order."""

    pair: ModelPair
    cells: tuple[Cell, ...]
    tasks: tuple[Task, ...]

    def job(self, cells: Iterable[Cell]) -> Job:
        """What a worker has to hold for some of the cells.

        The prompts are always those of all cells: the first of them decide between vocabulary methods, which must
        not come out differently where a sweep goes on with what is left.
        """
        prompts = {prompt.prompt_id: prompt for cell in self.cells for prompt in cell.prompts}
        return Job(self.pair.name, {cell.config_hash: cell.run for cell in cells}, tuple(prompts.values()))


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A pair whose models can't be had."""

    cells: tuple[Cell, ...]
    error: SpecprofError


@dataclass(frozen=True, slots=True)
class Plan:
    batches: tuple[Batch, ...]
    unavailable: tuple[Unavailable, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        parts: tuple[Batch | Unavailable, ...] = (*self.batches, *self.unavailable)
        return tuple(cell for part in parts for cell in part.cells)

    @property
    def tasks(self) -> Iterator[Task]:
        return (task for batch in self.batches for task in batch.tasks)


def make_plan(
    config: SweepConfig,
    prompts: Sequence[Prompt],
    *,
    offline: bool = False,
    order_seed: int = 0,
    split: Literal["pair", "baseline"] = "pair",
) -> Plan:
    """Every cell of a sweep and the order its generations are made in.

    The cells of a pair take turns: each repetition goes through all prompts and temperatures in a shuffled
    order, and on each prompt the baseline and all candidates follow one another, shuffled too. So a machine
    that warms up or slows down does it to all of them.

    Args:
        prompts: of all domains.
        order_seed: of the shuffling.
        split: ``pair`` makes one batch of each pair, ``baseline`` one of each baseline and its candidates,
            so that several workers can share a pair.

    Raises:
        UsageError: a setting that can't be meant.
    """
    by_domain: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_domain.setdefault(prompt.domain, []).append(prompt)
    batches: list[Batch] = []
    unavailable: list[Unavailable] = []
    for pair in config.model_pairs():
        runs = list(config.run_configs(pair, offline=offline))
        try:
            revisions = _revisions(runs)
        except SpecprofError as error:
            unavailable.append(Unavailable(tuple(_cells(runs, by_domain, (None, None))), error))
            continue
        cells = _cells(runs, by_domain, revisions)
        groups = [cells] if split == "pair" else _by_baseline(cells)
        batches += [Batch(pair, tuple(group), tuple(_ordered(group, f"{order_seed} {pair.name}"))) for group in groups]
    return Plan(tuple(batches), tuple(unavailable))


def prompt_hash(prompt: Prompt) -> str:
    """12 hexadecimal digits of the text: an id alone doesn't say that it is still the same prompt."""
    return hashlib.sha256(prompt.raw_text.encode()).hexdigest()[:12]


def cell_config(
    run: RunConfig, domain: str, revisions: tuple[str | None, str | None] = (None, None)
) -> BenchmarkConfig:
    """What identifies the cell of a run on one domain.

    Args:
        revisions: commit or fingerprint of target and draft.
    """
    pair = run.pair
    named = pair == REGISTRY.get(pair.name)
    config = BenchmarkConfig(
        model_pair_name=pair.name,
        K=run.k,
        temperature=run.temperature,
        max_new_tokens=run.max_new_tokens,
        prompt_domain=domain,
        seed=run.seed,
        top_k=run.top_k,
        top_p=run.top_p,
        device=run.device or "auto",
        drafter=run.drafter,
        forward=run.forward,
        engine=run.engine,
        compile=run.compile,
        random_weights=run.random_weights,
        synthetic_acceptance=run.synthetic_acceptance,
        k_max=run.longest_draft if run.k == "auto" else None,
        draft_layers=run.draft_layers,
        draft_threshold=run.draft_threshold,
        vocab_method=run.vocab_method,
        ignore_eos=run.ignore_eos,
        detail=run.detail,
        deterministic=run.deterministic,
        chat_template=run.chat_template,
        scale_layers=run.scale_layers,
        device_map=run.device_map,
        target_model_id=None if named else pair.target_model_id,
        draft_model_id=None if named else pair.draft_model_id,
        target_dtype=None if named else pair.target_dtype,
        draft_dtype=None if named else pair.draft_dtype,
        target_revision=revisions[0],
        draft_revision=revisions[1],
    )
    if run.k == 0:
        return config.baseline()
    if run.drafter != "model":
        return dataclasses.replace(config, draft_model_id=None, draft_dtype=None, draft_revision=None)
    return config


def _revisions(runs: Sequence[RunConfig]) -> tuple[str | None, str | None]:
    """Commit of each model, or the fingerprint of its directory; its files are fetched if they aren't here."""
    run = runs[0]
    if run.random_weights:
        return None, None

    def revision(model_id: str, wanted: str | None) -> str:
        found = hub.resolve(model_id, revision=wanted, offline=run.offline, remote_code=run.trust_remote_code)
        return found.revision or checkpoint.fingerprint(found.directory)

    drafts = any(run.drafter == "model" and run.k != 0 for run in runs)
    target = revision(run.pair.target_model_id, run.revision)
    return target, revision(run.pair.draft_model_id, None) if drafts else None


def _cells(
    runs: Iterable[RunConfig], by_domain: dict[str, list[Prompt]], revisions: tuple[str | None, str | None]
) -> list[Cell]:
    cells = []
    for run in runs:
        for domain, prompts in by_domain.items():
            config = cell_config(run, domain, revisions)
            cells.append(Cell(config, config.config_hash(), run, tuple(prompts)))
    return cells


def _by_baseline(cells: Iterable[Cell]) -> list[list[Cell]]:
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.config.baseline().config_hash(), []).append(cell)
    return list(groups.values())


def _ordered(cells: Sequence[Cell], seed: str) -> Iterator[Task]:
    groups = _by_baseline(cells)
    units = [(group, prompt) for group in groups for prompt in group[0].prompts]
    repetitions = cells[0].run.repetitions
    firsts = [(cell, cell.prompts[0]) for cell in cells if cell.run.k == 0]
    due = [len(units) * repetitions * number // (NUM_CONTROLS - 1) for number in range(NUM_CONTROLS)]
    shuffle = random.Random(seed).shuffle

    def controls(position: int) -> Iterator[Task]:
        numbers = [number for number, when in enumerate(due) if when == position]
        return (Task(cell, prompt, number, control=True) for number in numbers for cell, prompt in firsts)

    position = 0
    for repetition in range(repetitions):
        shuffle(units)
        for group, prompt in units:
            yield from controls(position)
            position += 1
            turn = list(group)
            shuffle(turn)
            yield from (Task(cell, prompt, repetition) for cell in turn)
    yield from controls(position)
