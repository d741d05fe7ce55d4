"""What a results directory holds, as tables and as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from specprof.experiments.records import Failure
from specprof.experiments.saved_runs import SavedRun
from specprof.experiments.summary import CellState
from specprof.profiling.comparison import Comparison
from specprof.profiling.metrics import BenchmarkConfig, title_of
from specprof.profiling.numbers import DASH, fixed, times
from specprof.reports import tables
from specprof.reports.tables import plain

STATE_COLORS = {"done": "green", "partial": "yellow", "failed": "red", "skipped": "red"}


def render(cells: Sequence[CellState], runs: Sequence[SavedRun]) -> RenderableType:
    """Cells, then runs."""
    parts: list[RenderableType] = []
    if cells:
        parts.append(_cells(cells))
    if runs:
        parts += [Text(), _runs(runs)] if parts else [_runs(runs)]
    return Group(*parts)


def render_cell(state: CellState, comparison: Comparison) -> RenderableType:
    """One cell beside its baseline, and why it is not complete."""
    parts: list[RenderableType] = []
    if comparison.baseline or comparison.speculative:
        parts += [tables.render(comparison, title=cell_title(state), subtitle=_subtitle(state)), Text()]
    else:
        parts.append(Text(plain(cell_title(state)), style="bold"))
    line = f"{state.cell.config_hash}: {state.state}, {_progress(state)} generations"
    parts.append(Text(plain(line), style=STATE_COLORS[state.state]))
    if state.failure is not None:
        parts += [Text(plain(text)) for text in failure_lines(state.failure)]
    return Group(*parts)


def failure_lines(failure: Failure) -> list[str]:
    """What went wrong, and what to do about it."""
    where = "" if failure.prompt_id is None else f" (prompt {failure.prompt_id}, repetition {failure.repetition})"
    lines = [f"{failure.reason}: {failure.message}{where}"]
    return lines if failure.hint is None else [*lines, f"hint: {failure.hint}"]


def cell_title(state: CellState) -> str:
    """What was asked for, in one line; text from the file, as it is."""
    config = state.config
    return title_of(
        config.model_pair_name,
        config.temperature,
        config.top_k,
        config.top_p,
        domain=config.prompt_domain,
        k=config.K or 0,
        drafter=config.drafter,
        draft_layers=config.draft_layers,
        vocab_method=state.cell.vocab_method,
    )


def cell_to_dict(state: CellState) -> dict[str, Any]:
    """A cell as plain JSON types."""
    config = state.config
    return {
        "config_hash": state.cell.config_hash,
        "machine_class": state.cell.machine_class or None,
        "pair": config.model_pair_name,
        "domain": config.prompt_domain,
        "decoder": config.decoder_label,
        "K": config.K or 0,
        "temperature": config.temperature,
        "drafter": config.drafter if config.K else None,
        "baseline_config_hash": config.baseline().config_hash() if config.K else None,
        "num_prompts": state.cell.num_prompts,
        "repetitions": state.cell.repetitions,
        "num_done": state.num_done,
        "num_expected": state.num_expected,
        "state": state.state,
        "failure": None if state.failure is None else dataclasses.asdict(state.failure),
        "tokens_per_second": state.tokens_per_second,
        "speedup": state.speedup,
        "caveats": list(state.cell.caveats),
        "config": config.to_dict(),
    }


def run_to_dict(run: SavedRun) -> dict[str, Any]:
    """A run as plain JSON types."""
    return dataclasses.asdict(run) | {"path": str(run.path)}


def finite(value: Any) -> Any:
    """Numbers too large for anything are undefined: JSON has no word for infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def _subtitle(state: CellState) -> str | None:
    parts = [*state.cell.caveats]
    target = state.cell.models.get("target")
    if isinstance(target, dict) and "model" in target:
        parts.insert(0, f"{target['model']} on {target.get('device')}, {target.get('dtype')}")
    return "; ".join(parts) or None


def _cells(cells: Sequence[CellState]) -> Table:
    several = len({state.cell.machine_class for state in cells}) > 1
    table = _table("cell", "pair", "domain", "decoder", "drafter")
    for name in ("T", "prompts", "reps", "generations"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("tokens/s", "speedup"):
        table.add_column(name, justify="right", no_wrap=True)
    if several:
        table.add_column("machine class", no_wrap=True)
    differences = differing_settings(cells)
    if any(differences):
        table.add_column("differs in", no_wrap=True)
    for state, difference in zip(cells, differences, strict=True):
        config = state.config
        table.add_row(
            Text(plain(state.cell.config_hash)),
            Text(plain(config.model_pair_name)),
            Text(plain(config.prompt_domain)),
            config.decoder_label,
            Text(plain(config.drafter) if config.K else DASH),
            f"{config.temperature:g}",
            str(state.cell.num_prompts),
            str(state.cell.repetitions),
            _progress(state),
            Text(state.state, style=STATE_COLORS[state.state]),
            fixed(state.tokens_per_second, 1),
            times(state.speedup),
            *([Text(plain(state.cell.machine_class) or DASH)] if several else []),
            *([Text(plain(difference))] if any(differences) else []),
        )
    return table


def differing_settings(cells: Sequence[CellState]) -> list[str]:
    """For each cell, what tells it from others that the list would show alike; empty where nothing has to."""
    alike: dict[tuple[object, ...], list[BenchmarkConfig]] = {}
    for state in cells:
        alike.setdefault(_shown(state), []).append(state.config)
    found = []
    for state in cells:
        others = [config.to_dict() for config in alike[_shown(state)]]
        found.append(
            ", ".join(
                f"{name} {_short(value)}"
                for name, value in state.config.to_dict().items()
                if any(other[name] != value for other in others)
            )
        )
    return found


def _shown(state: CellState) -> tuple[object, ...]:
    config = state.config
    return (
        config.model_pair_name,
        config.prompt_domain,
        config.K or 0,
        config.drafter,
        config.temperature,
        state.cell.machine_class,
    )


def _short(value: object) -> str:
    return DASH if value is None else f"{value:g}" if isinstance(value, float) else str(value)[:12]


def _runs(runs: Sequence[SavedRun]) -> Table:
    table = _table("run", "pair")
    for name in ("K", "T", "prompts", "reps"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for run in runs:
        table.add_row(
            Text(plain(run.run_id)),
            Text(plain(run.pair)),
            Text(plain(str(run.k))),
            f"{run.temperature:g}",
            str(run.num_prompts),
            str(run.repetitions),
            Text("complete", style="green") if run.complete else Text("interrupted", style="yellow"),
        )
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def _progress(state: CellState) -> str:
    return f"{state.num_done}/{state.num_expected}"
