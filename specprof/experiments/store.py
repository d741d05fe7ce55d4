"""Results on disk: one JSON Lines file of events per run."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TextIO

from specprof.errors import ResourceError, UsageError
from specprof.profiling.events import Event, PromptEnded, RunEnded, RunStarted, to_json_line


def new_run_id() -> str:
    """Sorts by time, unique without a registry: ``20261121-114500-7f3c``."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


class RunFile:
    """Appends a run's events to ``<directory>/<run_id>.jsonl``.

    Lines reach the disk when a generation ends, never inside one, so that writing doesn't disturb what is
    measured and a killed run keeps every finished generation.

    Raises:
        ResourceError: the directory can't be written, or the disk is full.
    """

    def __init__(self, directory: Path, run_id: str) -> None:
        self.path = directory / f"{run_id}.jsonl"
        self._pending: list[str] = []
        self._file: TextIO | None = None
        check_writable(directory)

    def __call__(self, event: Event) -> None:
        """Take an event; finished generations are written through to the disk."""
        self._pending.append(to_json_line(event))
        if isinstance(event, RunStarted | PromptEnded | RunEnded):
            self._flush(sync=not isinstance(event, PromptEnded))

    def _flush(self, *, sync: bool) -> None:
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self.path, "x", encoding="utf-8")  # noqa: SIM115  # closed by __exit__
            self._file.write("".join(self._pending))
            self._file.flush()
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise ResourceError(
                f"writing {self.path} failed: {error.strerror or error}",
                "free some space or choose another --results-dir; generations finished before this are kept",
            ) from error
        self._pending.clear()

    def __enter__(self) -> RunFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        # What could not be flushed was reported when it failed; closing retries it in vain.
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()


def check_outputs(files: Iterable[Path | None], *, used: Iterable[str | Path | None] = ()) -> None:
    """Learn that the files a command is to write in the end can be written, and cost nothing but their own contents.

    Args:
        files: those that were named.
        used: what the command reads or adds to, which is not a file in every case.

    Raises:
        UsageError: one of them is used too, holds measurements, was named twice, or is the dash that other programs
            take for standard output.
        ResourceError: one can't be written.
    """
    named: list[Path] = []
    for path in filter(None, files):
        if str(path) == "-":
            raise UsageError("- is no name of a file", "name one; --json prints to standard output")
        _check_file_writable(path)
        if any(other is not None and _is_same_file(path, other) for other in used):
            raise UsageError(f"{path} is used by this command, and would be overwritten", "name another file")
        if any(_is_same_file(path, other) for other in named):
            raise UsageError(f"{path} was named for two outputs", "give each a file of its own")
        named.append(path)


def _is_same_file(one: Path, other: str | Path) -> bool:
    if one.exists() and not one.is_file():  # /dev/null takes anything
        return False
    with contextlib.suppress(OSError):  # one of them isn't there yet
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def _check_file_writable(path: Path) -> None:
    if path.is_dir():
        problem = "it is a directory"
    elif holds_measurements(path):
        raise UsageError(f"{path} holds measurements, which would be lost", "name another file")
    elif not path.parent.is_dir():
        problem = f"there is no directory {path.parent}"
    elif _leads_nowhere(path):
        problem = "it is a link that leads nowhere"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        problem = "no permission"
    else:
        return
    raise ResourceError(f"{path} can't be written: {problem}", "name a file in a directory that exists and is writable")


def _leads_nowhere(path: Path) -> bool:
    """Whether it is a link into a directory that isn't there, or into itself: what is left after all links is one."""
    end = os.path.realpath(path)
    return os.path.islink(end) or not os.path.isdir(os.path.dirname(end))


def holds_measurements(path: Path) -> bool:
    """Whether a file begins as runs and results stores do."""
    if not path.is_file():
        return False
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(16).startswith((b'{"event":', b'{"kind":'))
    return False


def check_writable(directory: Path) -> None:
    """Learn before an hour of measuring, not after, that results have no place to go; create nothing yet."""
    existing = directory
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        problem = f"{existing} is not a directory"
    elif not os.access(existing, os.W_OK | os.X_OK):
        problem = f"{existing} is not writable"
    else:
        return
    raise ResourceError(
        f"nothing can be written to {directory}: {problem}",
        "choose another directory with --results-dir",
    )
