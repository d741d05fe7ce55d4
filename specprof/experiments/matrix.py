"""The domain x K matrix of what a store holds: one comparison with the baseline for each draft length."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from specprof.experiments.records import CellStarted, Failure, Generation, GenerationKey
from specprof.experiments.results import Contents
from specprof.experiments.summary import last_failure
from specprof.profiling.caveats import relative_to_prompt
from specprof.profiling.comparison import Comparison, compare
from specprof.profiling.metrics import BenchmarkConfig, GenerationResult, title_of
from specprof.profiling.statistics import drift

DraftLength = int | Literal["auto"]


@dataclass(frozen=True, slots=True)
class Missing:
    """A cell that has no figure, or one of fewer generations than asked for. Of a baseline (k = 0), what its
    candidates are compared with is the less."""

    domain: str
    k: DraftLength
    num_done: int
    num_expected: int
    failure: Failure | None

    @property
    def sign(self) -> str:
        """What stands in the place of its figure, or beside that: ``failed``, ``skipped``, ``3 of 20``."""
        if self.failure is None:
            return f"{self.num_done} of {self.num_expected}"
        return "skipped" if self.failure.reason == "skipped" else "failed"


@dataclass(frozen=True, slots=True)
class Matrix:
    """One pair with one drafter at one temperature on one machine class: domains by draft lengths."""

    config: BenchmarkConfig
    """What all its cells have in common; K and domain are those of the first."""
    machine_class: str
    machine: dict[str, Any] | None
    models: dict[str, Any]
    caveats: tuple[str, ...]
    domains: tuple[str, ...]
    comparisons: dict[DraftLength, Comparison]
    """By K: everything that was measured of it beside the baseline. Its ``domains`` are a column of the matrix."""
    results: dict[DraftLength, tuple[GenerationResult, ...]]
    """What each comparison is of, both arms in time order."""
    domain_of: dict[str, str]
    """By prompt id."""
    missing: tuple[Missing, ...]
    drift: float | None
    """Relative change of the baseline's speed from the first to the second half of the time it was measured in,
    controls included; above 0 the machine became slower."""

    @property
    def title(self) -> str:
        config = self.config
        return title_of(
            config.model_pair_name,
            config.temperature,
            config.top_k,
            config.top_p,
            drafter=config.drafter,
            draft_layers=config.draft_layers,
        )

    def best(self, domain: str) -> DraftLength | None:
        """The draft length with the largest speedup in a domain; None where none was measured."""
        values: dict[DraftLength, float] = {}
        for k, comparison in self.comparisons.items():
            found = comparison.domains.get(domain)
            if found and found.speedup_decode and found.speedup_decode.value is not None:
                values[k] = found.speedup_decode.value
        return max(values.items(), key=lambda item: item[1])[0] if values else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "pair": self.config.model_pair_name,
            "drafter": self.config.drafter,
            "temperature": self.config.temperature,
            "config": self.config.to_dict() | {"K": None, "prompt_domain": None},
            "machine_class": self.machine_class,
            "machine": self.machine,
            "models": self.models,
            "caveats": list(self.caveats),
            "domains": list(self.domains),
            "best_k": {domain: self.best(domain) for domain in self.domains},
            "baseline_drift": self.drift,
            "by_k": {str(k): comparison.to_dict() for k, comparison in self.comparisons.items()},
            "missing": [dataclasses.asdict(missing) for missing in self.missing],
        }


def matrices(
    contents: Contents, wanted: Collection[str], *, expected: Mapping[str, int] | None = None, seed: int = 0
) -> list[Matrix]:
    """Every matrix that cells make up.

    Args:
        contents: read with rounds.
        wanted: config hashes; a candidate's baseline is found whether it is named or not.
        expected: how many generations complete a cell, by config hash; else what it was last started for.
        seed: of the bootstrap.
    """
    groups: dict[tuple[BenchmarkConfig, str], list[CellStarted]] = defaultdict(list)
    for cell in contents.cells.values():
        config = BenchmarkConfig.from_dict(cell.config)
        if cell.config_hash in wanted and config.K:
            groups[_shared(config), cell.machine_class].append(cell)
    generations: dict[tuple[str, str], list[Generation]] = defaultdict(list)
    for generation in contents.generations.values():
        generations[generation.config_hash, generation.machine_class].append(generation)
    return [
        _matrix(contents, part, machine_class, generations, expected or {}, seed)
        for (_, machine_class), cells in groups.items()
        for part in _with_one_auto(cells)
    ]


def chosen(contents: Contents, keys: Collection[GenerationKey]) -> Contents:
    """Only the generations asked for, of whatever else a store holds of the same cells."""
    return dataclasses.replace(
        contents, generations={key: value for key, value in contents.generations.items() if key in keys}
    )


def _shared(config: BenchmarkConfig) -> BenchmarkConfig:
    return dataclasses.replace(config, K=0, k_max=None, prompt_domain="")


def _with_one_auto(cells: Sequence[CellStarted]) -> list[list[CellStarted]]:
    """``auto`` up to 4 tokens and up to 8 are two things of one name: the second has a matrix of its own."""
    limits = list(dict.fromkeys(cell.config.get("k_max") for cell in cells if cell.config.get("K") == "auto"))
    parts = [
        [cell for cell in cells if cell.config.get("K") == "auto" and cell.config.get("k_max") == limit]
        for limit in limits
    ]
    fixed = [cell for cell in cells if cell.config.get("K") != "auto"]
    return [[*fixed, *parts[0]], *parts[1:]] if parts else [fixed]


def _matrix(
    contents: Contents,
    cells: Sequence[CellStarted],
    machine_class: str,
    generations: dict[tuple[str, str], list[Generation]],
    expected: Mapping[str, int],
    seed: int,
) -> Matrix:
    configs = {cell.config_hash: BenchmarkConfig.from_dict(cell.config) for cell in cells}
    baselines = dict.fromkeys(config.baseline().config_hash() for config in configs.values())
    lengths = sorted({config.K or 0 for config in configs.values()}, key=_by_length)
    domains = tuple(dict.fromkeys(config.prompt_domain for config in configs.values()))
    kept = _latest_texts(
        generation for config_hash in (*baselines, *configs) for generation in generations[config_hash, machine_class]
    )
    plain = [generation for generation in kept if generation.config_hash in baselines]
    measured = [generation for generation in plain if not generation.control]
    comparisons, results = {}, {}
    domain_of = {generation.prompt_id: generation.domain for generation in kept}
    missing = []
    for config_hash in baselines:
        baseline = contents.cells.get((config_hash, machine_class))
        if baseline is not None:
            num_done = sum(generation.config_hash == config_hash for generation in measured)
            complete = expected.get(config_hash, baseline.num_prompts * baseline.repetitions)
            if num_done < complete:
                domain = BenchmarkConfig.from_dict(baseline.config).prompt_domain
                missing.append(Missing(domain, 0, num_done, complete, last_failure(contents, baseline)))
    for k in lengths:
        candidates = []
        for cell in cells:
            config = configs[cell.config_hash]
            if k != config.K:
                continue
            done = [generation for generation in kept if generation.config_hash == cell.config_hash]
            candidates += done
            complete = expected.get(cell.config_hash, cell.num_prompts * cell.repetitions)
            if len(done) < complete:
                failure = last_failure(contents, cell)
                missing.append(Missing(config.prompt_domain, k, len(done), complete, failure))
        if candidates:
            both = sorted([*measured, *candidates], key=lambda generation: generation.sequence)
            results[k] = tuple(generation.result for generation in both)
            comparisons[k] = compare(
                results[k], temperature=cells[0].config["temperature"], domains=domain_of, seed=seed
            )
    machine = contents.machines.get(machine_class)
    return Matrix(
        config=configs[cells[0].config_hash],
        machine_class=machine_class,
        machine=machine.machine if machine else None,
        models=next((cell.models for cell in cells if cell.models), {}),
        caveats=cells[0].caveats,
        domains=domains,
        comparisons=comparisons,
        results=results,
        domain_of=domain_of,
        missing=tuple(missing),
        drift=drift(relative_to_prompt([generation.result for generation in plain])),
    )


def _latest_texts(generations: Iterable[Generation]) -> list[Generation]:
    """In the order they were made; of an id that stood for several texts in turn, those of the last text."""
    ordered = sorted(generations, key=lambda generation: generation.sequence)
    texts = {generation.prompt_id: generation.prompt_hash for generation in ordered}
    return [generation for generation in ordered if texts[generation.prompt_id] == generation.prompt_hash]


def _by_length(k: DraftLength) -> tuple[bool, DraftLength]:
    return isinstance(k, str), k
