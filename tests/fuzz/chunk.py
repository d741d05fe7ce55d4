"""Some cases after one another, and what they came to, counted."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz.draw import draw_case
from fuzz.invariants import problems
from fuzz.run_case import run_case


@dataclass(slots=True)
class Chunk:
    """Figures of some cases."""

    by_command: Counter[str] = field(default_factory=Counter)
    by_kind: Counter[str] = field(default_factory=Counter)
    by_code: Counter[str] = field(default_factory=Counter)
    num_processes: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def number(self) -> int:
        return self.by_kind.total()

    def to_dict(self) -> dict[str, Any]:
        """As what crosses from one process to another takes it; without the failures."""
        counters = {name: dict(getattr(self, name)) for name in ("by_command", "by_kind", "by_code")}
        return counters | {"num_processes": self.num_processes}

    @classmethod
    def from_dict(cls, figures: dict[str, Any]) -> Chunk:
        by_command, by_kind, by_code = (Counter(figures[name]) for name in ("by_command", "by_kind", "by_code"))
        return cls(by_command, by_kind, by_code, figures["num_processes"])

    def add(self, other: Chunk) -> None:
        self.by_command += other.by_command
        self.by_kind += other.by_kind
        self.by_code += other.by_code
        self.num_processes += other.num_processes
        self.failures += other.failures


def run_chunk(seed: int, numbers: Iterable[int]) -> Chunk:
    """Cases of these numbers, each in a folder that is gone afterwards."""
    chunk = Chunk()
    for number in numbers:
        case = draw_case(seed, number)
        with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as folder:
            result = run_case(case, Path(folder).resolve())
        chunk.by_command[_command(case.arguments)] += 1
        chunk.by_kind[case.kind] += 1
        chunk.by_code[str(result.code)] += 1
        chunk.num_processes += case.process
        found = problems(case, result)
        if found:
            said = result.err.strip().splitlines()[-6:]
            chunk.failures.append(
                "\n".join([f"case {number}: {'; '.join(found)}", str(case)[:1500], *said, again(seed, number)])
            )
    return chunk


def again(seed: int, number: int) -> str:
    """The command that repeats one case."""
    return f"again: PYTHONPATH=tests .venv/bin/python -m fuzz --seed {seed} --only {number}"


_COMMANDS = {"run", "sweep", "report", "results", "compare", "verify", "explain", "prompts", "load", "tui"}


def _command(arguments: Sequence[str]) -> str:
    return arguments[0] if arguments and arguments[0] in _COMMANDS else "none of them"


def table(chunk: Chunk) -> list[str]:
    """Cases by command, kind and exit code."""
    lines = [
        f"{chunk.number} cases, {chunk.num_processes} of them in a process of their own, {len(chunk.failures)} failed"
    ]
    for name, counter in (("command", chunk.by_command), ("odd is", chunk.by_kind), ("exit code", chunk.by_code)):
        lines.append(f"{name:<10} " + ", ".join(f"{what} {count}" for what, count in counter.most_common()))
    return lines
