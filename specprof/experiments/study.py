"""What a report is of: plain decoding and speculation with one pair in one manner, and all that was measured of it.

A run is a study of one draft length; a sweep makes one of each pair, drafter, temperature and class of machines.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from specprof.experiments.matrix import DraftLength, Matrix, Missing, matrices
from specprof.experiments.results import Contents
from specprof.experiments.saved_runs import FinishedRun, mapping
from specprof.profiling.comparison import Comparison, left_out, measured
from specprof.profiling.cost_model import CostCurve
from specprof.profiling.machine import machine_class
from specprof.profiling.metrics import BASELINE, GenerationResult


@dataclass(frozen=True, slots=True)
class Study:
    """One pair with one drafter at one temperature on one machine; text in it is from files, and from outside."""

    name: str
    """The run's id, or what the sweep's directory is called."""
    title: str
    pair: str
    drafter: str
    temperature: float
    domains: tuple[str, ...]
    domain_of: Mapping[str, str]
    """By prompt id."""
    comparisons: Mapping[DraftLength, Comparison]
    """By K, the shortest first; empty where nothing was measured."""
    results: Mapping[DraftLength, tuple[GenerationResult, ...]]
    """By K, both arms in time order; a sweep's baseline stands in each."""
    missing: tuple[Missing, ...]
    """Cells without a figure or with an incomplete one."""
    curve: CostCurve | None
    """What rounds of each draft length cost, where that was surveyed."""
    caveats: tuple[str, ...]
    config: Mapping[str, Any]
    models: Mapping[str, Any]
    machine: Mapping[str, Any]
    machine_class: str
    commands: tuple[str, ...]
    """That measured this, as they were typed; empty if that is not known."""
    is_sweep: bool

    @property
    def speedups(self) -> dict[DraftLength, float]:
        """Of decoding over all prompts, by K; without those that have none."""
        found = ((k, comparison.speedup_decode) for k, comparison in self.comparisons.items())
        return {k: speedup.value for k, speedup in found if speedup is not None and speedup.value is not None}

    @property
    def best_k(self) -> DraftLength | None:
        """The draft length with the largest speedup; the only one of a run."""
        speedups = self.speedups
        if speedups:
            return max(speedups, key=speedups.__getitem__)
        return next(iter(self.comparisons), None)

    @property
    def headline(self) -> Comparison | None:
        """The comparison of :attr:`best_k`."""
        return None if self.best_k is None else self.comparisons[self.best_k]

    def arm(self, k: DraftLength, *, baseline: bool) -> tuple[GenerationResult, ...]:
        """The generations of one of the two arms at K."""
        return tuple(result for result in self.results.get(k, ()) if (result.decoder == BASELINE) == baseline)


def of_run(run: FinishedRun) -> Study:
    """The study that a run is."""
    asked = run.asked
    domain_of = asked.domain_of
    k: DraftLength = asked.k if isinstance(asked.k, int) else "auto"
    comparison = run.compared()
    return Study(
        name=run.started.run_id,
        title=run.title,
        pair=str(asked.pair.get("name", "")),
        drafter=asked.drafter,
        temperature=asked.temperature,
        domains=tuple(dict.fromkeys(domain_of.values())),
        domain_of=domain_of,
        comparisons={k: comparison} if comparison.num_prompts else {},
        results={k: tuple(measured(run.results))},
        missing=(),
        curve=run.curve,
        caveats=(*asked.caveats, *_interrupted(run), *filter(None, (left_out(run.results),))),
        config=run.started.config,
        models=asked.models,
        machine=run.started.machine,
        machine_class=machine_class(run.started.machine),
        commands=tuple(filter(None, (asked.command,))),
        is_sweep=False,
    )


def _interrupted(run: FinishedRun) -> list[str]:
    if run.complete:
        return []
    arms = 2 if run.started.config.get("baseline") else 1
    asked = len(run.asked.prompts) * run.asked.repetitions * arms
    return [f"interrupted: {len(run.results)} of {asked} generations were made"]


def of_sweep(
    contents: Contents, name: str, wanted: Collection[str] | None = None, machine_class: str | None = None
) -> list[Study]:
    """The studies that a sweep's cells make up.

    Args:
        contents: read with rounds.
        wanted: config hashes; None: all.
        machine_class: only what was measured there; None: everywhere.
    """
    hashes = {config_hash for config_hash, _ in contents.cells} if wanted is None else wanted
    return [
        _of_matrix(contents, name, matrix)
        for matrix in matrices(contents, hashes)
        if machine_class in (None, matrix.machine_class)
    ]


def _of_matrix(contents: Contents, name: str, matrix: Matrix) -> Study:
    sessions = {cell.session for cell in contents.cells.values() if cell.machine_class == matrix.machine_class}
    commands = (session.command for key, session in contents.sessions.items() if key in sessions)
    return Study(
        name=name,
        title=matrix.title,
        pair=matrix.config.model_pair_name,
        drafter=matrix.config.drafter,
        temperature=matrix.config.temperature,
        domains=matrix.domains,
        domain_of=matrix.domain_of,
        comparisons=matrix.comparisons,
        results=matrix.results,
        missing=matrix.missing,
        curve=None,
        caveats=matrix.caveats,
        config=matrix.config.to_dict(),
        models=matrix.models,
        machine=mapping(matrix.machine),
        machine_class=matrix.machine_class,
        commands=tuple(dict.fromkeys(filter(None, commands))),
        is_sweep=True,
    )
