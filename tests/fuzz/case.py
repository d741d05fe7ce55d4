"""One case: what is typed, what lies there, where it runs; and what became of it."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = "@FOLDER@"
"""In arguments and environment, the folder that the case runs in."""


@dataclass(frozen=True, slots=True)
class File:
    """Something that lies in the case's folder before the command starts."""

    path: str
    content: bytes | None = None
    """None: a folder, a link or a copy."""
    link_to: str | None = None
    copy_of: Path | None = None
    """Of a folder that cases share; what comes later in the list may lie in it or replace parts of it."""

    def make(self, folder: Path) -> None:
        place = folder / self.path
        place.parent.mkdir(parents=True, exist_ok=True)
        if self.copy_of is not None:
            shutil.copytree(self.copy_of, place)
            return
        if place.is_symlink() or place.is_file():
            place.unlink()
        elif place.is_dir() and (self.content is not None or self.link_to is not None):
            shutil.rmtree(place)
        if self.link_to is not None:
            place.symlink_to(self.link_to)
        elif self.content is None:
            place.mkdir(exist_ok=True)
        else:
            place.write_bytes(self.content)


@dataclass(frozen=True, slots=True)
class Case:
    """A command line and the world it runs in."""

    kind: str
    """What is odd about it: flags, prompts, yaml, toml, results, models, environment."""
    arguments: tuple[str, ...]
    files: tuple[File, ...] = ()
    writes: tuple[str, ...] = ("results",)
    """What it may write, below its folder; a name stands for itself and for everything in it."""
    stdin: bytes = b""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """None takes a variable away."""
    process: bool = False
    """A real one, not a call in this process."""
    redirect: str = ""
    """Of a process, as a shell has it: ``>/dev/full``, ``>&-``."""
    encoding: str = "utf-8"
    """Of standard output, in this process."""
    terminal: bool = False
    """Standard output and error claim to be one, in this process."""
    seconds: float = 60.0
    """More than it takes on a busy machine: what goes on for longer hangs."""

    @property
    def command(self) -> str:
        return next((word for word in self.arguments if not word.startswith("-")), "none")

    def __str__(self) -> str:
        """The command line, as a shell takes it."""
        variables = [
            f"{name}={shlex.quote(value)}" if value is not None else f"-u {name}"
            for name, value in self.environment.items()
        ]
        line = " ".join((["env", *variables] if variables else []) + ["specprof", *map(shlex.quote, self.arguments)])
        return f"{line} {self.redirect}".rstrip()


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a case."""

    code: int | None
    """None: it had to be stopped."""
    out: str
    err: str
    changed: tuple[str, ...]
    """Paths below the case's folder that were written, made or removed."""
    peak_growth_bytes: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    """Texts of what it wrote, by path."""


def contents(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder, and what tells it from what it was before; links are not followed."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            is_file = name not in folders
            found[os.path.relpath(path, folder)] = (
                (status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns) if is_file else (status.st_mode,)
            )
    return found


def changed(before: Mapping[str, object], after: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(sorted(path for path in {*before, *after} if before.get(path) != after.get(path)))


def allowed(path: str, writes: Sequence[str]) -> bool:
    return any(path == name or path.startswith(f"{name}/") for name in writes)
