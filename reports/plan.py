"""What a sweep would do, as a table."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from specprof.experiments.estimate import PairEstimate
from specprof.experiments.plan import Plan
from specprof.experiments.remaining import Remaining
from specprof.profiling.numbers import DASH
from specprof.reports.tables import plain

SCHEMA = "specprof.plan/1"


def render(plan: Plan, remaining: Remaining, estimates: Sequence[PairEstimate]) -> RenderableType:
    """Each pair's share of the work, and each cell."""
    notes = [Text(plain(line)) for line in _notes(plan, remaining, estimates)]
    pairs: list[RenderableType] = [_pairs(estimates), Text()] if estimates else []
    return Group(*pairs, _cells(plan, remaining), Text(), *notes)


def to_dict(plan: Plan, remaining: Remaining, estimates: Sequence[PairEstimate]) -> dict[str, Any]:
    """The same as plain JSON types."""
    unavailable = {cell.config_hash: pair.error.message for pair in plan.unavailable for cell in pair.cells}
    return {
        "schema": SCHEMA,
        "pairs": [dataclasses.asdict(row) for row in estimates],
        "cells": [
            {
                "config_hash": cell.config_hash,
                "config": cell.config.to_dict(),
                "num_prompts": len(cell.prompts),
                "repetitions": cell.run.repetitions,
                "num_missing": remaining.num_missing(cell),
                "failure": unavailable.get(cell.config_hash)
                or (None if remaining.is_open(cell) else remaining.failures[cell.config_hash].message),
            }
            for cell in plan.cells
        ],
    }


def _pairs(estimates: Sequence[PairEstimate]) -> Table:
    table = _table(left=("pair",), right=("cells", "done", "failed", "generations", "to make", "time", "weights"))
    for row in estimates:
        table.add_row(
            plain(row.pair),
            str(row.num_cells),
            str(row.num_done),
            str(row.num_failed),
            str(row.num_generations),
            str(row.num_missing),
            f"{duration(row.seconds)}{' (rough)' if _is_rough(row) else ''}",
            DASH if row.weight_bytes is None else f"{row.weight_bytes / 1e6:,.0f} MB",
        )
    if len(estimates) > 1:
        seconds = [row.seconds for row in estimates if row.seconds is not None]
        table.add_row(
            "all",
            str(sum(row.num_cells for row in estimates)),
            str(sum(row.num_done for row in estimates)),
            str(sum(row.num_failed for row in estimates)),
            str(sum(row.num_generations for row in estimates)),
            str(sum(row.num_missing for row in estimates)),
            duration(sum(seconds)) if len(seconds) == len(estimates) else DASH,
            "",
        )
    return table


def _cells(plan: Plan, remaining: Remaining) -> Table:
    table = _table(left=("cell", "pair", "domain", "drafter"), right=("K", "T", "generations"), last="state")
    unavailable = {cell.config_hash for pair in plan.unavailable for cell in pair.cells}
    controls = Counter(task.cell.config_hash for task in plan.tasks if task.control)
    for cell in plan.cells:
        config, missing = cell.config, remaining.num_missing(cell)
        extra = f" + {controls[cell.config_hash]}" if controls[cell.config_hash] else ""
        if cell.config_hash in unavailable:
            state = "not available"
        elif not remaining.is_open(cell):
            state = f"failed: {remaining.failures[cell.config_hash].reason}"
        else:
            state = f"{missing} to make" if missing else "done"
        table.add_row(
            cell.config_hash,
            plain(config.model_pair_name),
            plain(config.prompt_domain),
            config.drafter if config.K else "none",
            str(config.K or 0),
            f"{config.temperature:g}",
            f"{len(cell.prompts)} x {cell.run.repetitions}{extra}",
            state,
        )
    return table


def _notes(plan: Plan, remaining: Remaining, estimates: Sequence[PairEstimate]) -> list[str]:
    lines = [
        "K = 0 is plain decoding, the baseline.",
        "Generations: prompts x repetitions, + re-runs of the baseline that show drift.",
    ]
    if any(_is_rough(row) for row in estimates):
        lines.append("A rough time is told from the size of the weights, and may be several times too short.")
    for pair in plan.unavailable:
        lines.append(f"{pair.cells[0].pair_name} is not available: {pair.error.message} ({pair.error.hint})")
    failures = [remaining.failures[cell.config_hash] for cell in plan.cells if not remaining.is_open(cell)]
    if failures:
        told = dict.fromkeys(f"{failure.reason}: {failure.message}" for failure in failures)
        lines += [f"Failed before: {text}" for text in told]
        lines.append("--retry-failed tries cells again that failed.")
    return lines


def _is_rough(row: PairEstimate) -> bool:
    return bool(row.seconds) and not row.from_measurements


def duration(seconds: float | None) -> str:
    """A time that people can plan with."""
    if seconds is None:
        return DASH
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _table(*, left: Sequence[str], right: Sequence[str], last: str | None = None) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="none")
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    if last is not None:
        table.add_column(last)
    return table
