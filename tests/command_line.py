"""Runs the command line: in this process, where it costs a fraction of a second, or in one of its own."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main

from specprof.commands import main
from specprof.profiling.events import Event, from_json_line

# Typer builds all commands anew at every call, which takes longer than most of the tests' commands do.
typer.main.get_command = functools.cache(typer.main.get_command)

QUICK = (
    "-n", "1", "--max-new-tokens", "8", "--ignore-eos", "--reps", "1", "--warmup", "0", "--deterministic",
    "--no-cost-curve",
)  # fmt: skip
"""One short generation by each arm, as long whatever the model says. Deterministic, because that also leaves out timing
the matrix products."""


@dataclass(frozen=True, slots=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output as one JSON document; NaN and Infinity, which JSON lacks, are refused."""
        document = json.loads(self.out, parse_constant=_refuse)
        assert isinstance(document, dict)
        return document

    @property
    def events(self) -> list[Event]:
        """Standard output as events."""
        return [from_json_line(line) for line in self.out.splitlines()]

    @property
    def told(self) -> tuple[str, str]:
        """The error and the hint: the last two lines of standard error, and the only ones of their kind."""
        lines = self.err.splitlines()
        assert sum(line.startswith("error:") for line in lines) == 1, self.err
        assert sum(line.startswith("hint:") for line in lines) == 1, self.err
        error, hint = lines[-2:]
        assert error.startswith("error: ") and hint.startswith("hint:  "), self.err
        return error.removeprefix("error: "), hint.removeprefix("hint:  ")


def command(*arguments: str, stdin: bytes = b"", encoding: str = "utf-8", terminal: bool = False) -> Outcome:
    """``specprof ARGUMENTS`` in this process; ``terminal``: standard output and error claim to be one."""
    out, err = _Stream(encoding, terminal), _Stream("utf-8", terminal)
    with _restored(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main(arguments)
    code = ended.value.code or 0
    assert isinstance(code, int)
    return Outcome(code, out.text(), err.text())


def ok(*arguments: str, **options: Any) -> Outcome:
    """A command that has to succeed."""
    outcome = command(*arguments, **options)
    assert outcome.code == 0, outcome.err
    return outcome


def process(
    *arguments: str, environment: Mapping[str, str] | None = None, without: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """``python -m specprof ARGUMENTS``, its output to be read by the caller."""
    variables = {key: value for key, value in os.environ.items() if key not in without} | dict(environment or {})
    return subprocess.Popen(
        [sys.executable, "-m", "specprof", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=variables,
    )


def isolate(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in ``directory``, away from the settings of whoever runs the tests."""
    monkeypatch.chdir(directory)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(directory / "no-such-config"))
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("SPECPROF_RESULTS", "NO_COLOR", "CI", "COLUMNS", "LINES", "GITHUB_ACTIONS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


class _Stream(io.TextIOWrapper):
    def __init__(self, encoding: str, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def text(self) -> str:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(self.encoding)


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Undo what a command does to its process, which usually ends with it."""
    root, ours, stdin = logging.getLogger(), logging.getLogger("specprof"), sys.stdin
    handlers, levels = root.handlers[:], (root.level, ours.level)
    try:
        yield
    finally:
        sys.stdin = stdin
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
        logging.captureWarnings(False)
        if "torch" in sys.modules:
            sys.modules["torch"].use_deterministic_algorithms(False)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
