"""What a sweep says on stderr while it runs: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Collection, Sequence
from types import TracebackType

from specprof.commands.narration import LOG
from specprof.experiments.plan import Cell
from specprof.experiments.records import Failure
from specprof.experiments.remaining import Progress
from specprof.experiments.results import Contents
from specprof.experiments.summary import cell_states
from specprof.profiling.metrics import BenchmarkConfig
from specprof.reports.plan import duration

REDRAW_SECONDS = 0.1
LINES = 10
"""Away from a terminal, a line at every tenth of the way."""
LOOK_SECONDS = 3.0
"""How often, at most, the best speedup so far is looked up."""
WIDE = 110
"""Columns that a long bar needs beside what is told."""


class SweepNarration:
    """A :class:`specprof.experiments.sweep.Watch` that tells people. Written between generations, never during one."""

    def __init__(
        self,
        begun: Progress,
        contents: Contents,
        cells: Collection[str],
        *,
        machine_class: str | None = None,
        shown: bool,
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        self._contents, self._cells, self._machine_class = contents, cells, machine_class
        self._shown = shown
        self._lock = threading.Lock()
        self._drawn = self._looked = 0.0
        self._begun = begun.tasks_done
        self._tenths = 0
        self._best = ""
        console = Console(stderr=True)
        bar_width = 24 if console.width >= WIDE else 8
        # Cut rather than broken: a bar that changes its height flickers. And the ^C of Ctrl-C has to fit behind it.
        room = Column(no_wrap=True, overflow="ellipsis", max_width=max(console.width - bar_width - 5, 1))
        self._bar = RichProgress(
            BarColumn(bar_width=bar_width),
            TextColumn("{task.fields[told]}", markup=False, table_column=room),
            console=console,
            transient=True,
            auto_refresh=False,
            disable=not shown,
        )
        self._task = self._bar.add_task("sweep", total=begun.tasks, completed=begun.tasks_done, told="")

    def __enter__(self) -> SweepNarration:
        self._bar.start()
        _log_to_stderr()  # which is now the bar's: what is logged appears above it
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()
        _log_to_stderr()

    def measured(self, progress: Progress) -> None:
        now = time.monotonic()
        with self._lock:
            if self._shown and now - self._drawn > REDRAW_SECONDS:
                self._drawn = now
                if now - self._looked > LOOK_SECONDS:
                    self._best = self._best_so_far()
                    self._looked = time.monotonic()
                self._bar.update(self._task, completed=progress.tasks_done, told=_told(progress, self._best))
                self._bar.refresh()
            elif not self._shown:
                self._line(progress)

    def finished(self, cell: Cell, progress: Progress) -> None:
        if not self._shown:
            return
        with self._lock:
            self._looked = 0.0

    def failed(self, cells: Sequence[Cell], failure: Failure, progress: Progress) -> None:
        what = describe(cells[0]) if len(cells) == 1 else f"{cells[0].pair_name}, {len(cells)} cells"
        hint = f" ({failure.hint})" if failure.hint else ""
        happened = "skipped" if failure.reason == "skipped" else f"failed: {failure.reason}"
        LOG.warning("%s %s: %s%s", what, happened, failure.message, hint)

    def note(self, text: str) -> None:
        LOG.info("%s", text)

    def _best_so_far(self) -> str:
        states = [
            state
            for state in cell_states(self._contents)
            if state.cell.config_hash in self._cells and self._machine_class in (None, state.cell.machine_class)
        ]
        speedups = {state.speedup: state.config for state in states if state.speedup is not None}
        if not speedups:
            return ""
        best = max(speedups)
        return f"best {best:.2f}x {_words(speedups[best])}"

    def _line(self, progress: Progress) -> None:
        to_do = progress.tasks - self._begun
        tenths = LINES * (progress.tasks_done - self._begun) // max(to_do, 1)
        if tenths > self._tenths:
            self._tenths = tenths
            LOG.info("%s", ", ".join(filter(None, (_told(progress, ""), self._best_so_far()))))


def describe(cell: Cell) -> str:
    """A cell in a few words."""
    return _words(cell.config)


def _words(config: BenchmarkConfig) -> str:
    words = [config.model_pair_name, config.prompt_domain, f"K = {config.K}" if config.K else "plain decoding"]
    if config.K and config.drafter != "model":
        words.append(config.drafter)
    if config.temperature:
        words.append(f"temperature {config.temperature:g}")
    return " ".join(words)


def _told(progress: Progress, best: str) -> str:
    parts = [
        f"{progress.tasks_done} of {progress.tasks} generations",
        f"{progress.cells_done} of {progress.cells} cells",
    ]
    if progress.cells_failed:
        parts.append(f"{progress.cells_failed} failed")
    if progress.seconds_left is not None and progress.tasks_done < progress.tasks:
        parts.append(f"{duration(progress.seconds_left)} left")
    if best:
        parts.append(best)
    return ", ".join(parts)


def _log_to_stderr() -> None:
    """Let log lines go where sys.stderr goes now."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
