"""Runs commands with an audit hook in their process and in every Python that they start."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

_HOOK = """
import json, os, sys
_log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_WATCHED = ("subprocess.", "socket.", "pickle.", "ctypes.dlopen", "webbrowser.", "urllib.", "pty.", "http.", "shutil.")
_OF_THE_SYSTEM = {
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.fork", "os.forkpty",
    "os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate", "os.chmod",
}

def _hook(event, args):
    if event == "open":
        path, _, flags = args
        if isinstance(path, int) or not (flags or 0) & _WRITES:
            return
        args = (path,)
    elif event == "subprocess.Popen":
        args = (args[0], args[1])
    elif not event.startswith(_WATCHED) and event not in _OF_THE_SYSTEM:
        return
    line = [os.getpid(), os.getcwd(), event, [_plain(arg) for arg in args]]
    os.write(_log, (json.dumps(line) + "\\n").encode())

def _plain(value):
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value if isinstance(value, (str, int)) else repr(value)

sys.addaudithook(_hook)
"""

PROGRAM = """
import json, sys
from specprof.commands import main
sys.argv[0] = "specprof"
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{arguments} ended with {ended.code}")
"""
"""Several commands in one process, which imports PyTorch once."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Something that was done."""

    pid: int
    event: str
    arguments: tuple[Any, ...]
    directory: str

    @property
    def path(self) -> Path:
        """Of what was written, made or removed."""
        return Path(self.directory, str(self.arguments[0]))


def environment(home: Path) -> dict[str, str]:
    """Variables of somebody who has just come to this machine: a home, a folder for temporary files, little else."""
    hook, temporary = home / "hook", home / "tmp"
    for folder in (hook, temporary):
        folder.mkdir(parents=True, exist_ok=True)
    (hook / "sitecustomize.py").write_text(_HOOK)
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "SYSTEMROOT") if name in os.environ}
    return kept | {
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "AUDIT_LOG": str(home / "audit.jsonl"),
        "PYTHONPATH": os.pathsep.join((str(hook), str(ROOT))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "TERM": "xterm-256color",
    }


def command_line(commands: Sequence[Sequence[str]]) -> list[str]:
    """For :class:`subprocess.Popen`."""
    return [sys.executable, "-P", "-c", PROGRAM, json.dumps(commands)]


def seen(home: Path) -> list[Seen]:
    """What was done since :func:`environment`."""
    lines = (home / "audit.jsonl").read_text("utf-8").splitlines()
    return [
        Seen(pid, event, tuple(arguments), directory) for pid, directory, event, arguments in map(json.loads, lines)
    ]
