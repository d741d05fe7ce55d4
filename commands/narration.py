"""What is said on stderr while stdout carries the result: logging, progress, streamed text."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from specprof.commands.sinks import printable
from specprof.errors import UsageError

LOG = logging.getLogger("specprof")


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        return prefix + printable(super().format(record))


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps(fields)


def set_up(*, detailed: bool, quiet: bool, as_json: bool) -> None:
    """Send logging to stderr: warnings with ``quiet``, progress by default, and the details if they are wanted."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else _Plain("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if detailed else logging.ERROR)
    LOG.setLevel(logging.WARNING if quiet else logging.DEBUG if detailed else logging.INFO)
    logging.captureWarnings(True)


def wants_color(choice: str, stream: TextIO) -> bool:
    """Whether to colour what is written to a stream: ``auto`` asks the stream and NO_COLOR.

    Raises:
        UsageError: not auto, always or never.
    """
    if choice not in ("auto", "always", "never"):
        raise UsageError(f"--color {choice!r} is not a choice", "choices: auto, always, never")
    if choice != "auto":
        return choice == "always"
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def stderr_is_terminal() -> bool:
    """Whether bars and colours make sense on stderr."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


class Progress:
    """A bar of known length that is drawn on a terminal and absent elsewhere."""

    def __init__(self, description: str, total: int, *, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            # Drawn by advance() alone: a refresh thread would take time from the loop being measured.
            auto_refresh=False,
            disable=not shown,
        )
        self._task = self._bar.add_task(description, total=total)

    def advance(self) -> None:
        self._bar.advance(self._task)
        self._bar.refresh()


@contextmanager
def progress(description: str, total: int, *, shown: bool) -> Iterator[Progress]:
    bar = Progress(description, total, shown=shown)
    with bar._bar:
        yield bar
