"""A real terminal, by tmux: a shell in it, keys that are typed, and what a person would see."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

SPECPROF = shlex.join([sys.executable, "-m", "specprof"])
PATIENCE = 30.0
"""Seconds until something is taken for never to happen: other tests may have all of the machine."""
_OTHERS = frozenset({"COLUMNS", "LINES", "COLORTERM", "NO_COLOR", "FORCE_COLOR"})
"""Variables that say something of the terminal around the tests."""


class Terminal:
    """A terminal with a shell; of :func:`terminal`.

    Args:
        socket: of the tmux server that this terminal has for itself.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def tmux(self, *arguments: str) -> str:
        command = ["tmux", "-u", "-f", "/dev/null", "-S", str(self._socket), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout

    def enter(self, command: str) -> None:
        """Type a line, and Enter."""
        self.tmux("send-keys", "-l", command)
        self.press("Enter")

    def start(self, *arguments: str, setting: str = "", redirecting: str = "") -> None:
        """``specprof ARGUMENTS``; the shell then says with what it ended: :meth:`ended`."""
        self.enter(f'{setting} {SPECPROF} {shlex.join(arguments)} {redirecting}; echo "ended"" with $?"')

    def press(self, *keys: str) -> None:
        """Keys, by the names that tmux has for them."""
        self.tmux("send-keys", *keys)

    def resize(self, width: int, height: int) -> None:
        self.tmux("resize-window", "-x", str(width), "-y", str(height))

    def shown(self, *, styled: bool = False) -> str:
        """What is on the screen; ``styled``: with the codes of its colours."""
        return self.tmux("capture-pane", "-p", *(("-e",) if styled else ()))

    def until(self, *words: str, without: str | None = None) -> str:
        """What is on the screen as soon as it has all of these words, and not those."""
        return until(lambda: self._with(words, without), lambda: f"{words} not seen, but:\n{self.shown()}")

    def _with(self, words: tuple[str, ...], without: str | None) -> str | None:
        shown = self.shown()
        return shown if all(word in shown for word in words) and (without is None or without not in shown) else None

    def ended(self) -> int:
        """The exit code of what was started, once it is there."""
        shown = self.until("ended with ")
        found = re.search(r"ended with (\d+)", shown)
        assert found is not None, shown
        return int(found[1])

    def flag(self, name: str) -> bool:
        """Of what tmux knows of the terminal: ``alternate_on``, ``cursor_flag``, ``mouse_any_flag``."""
        return self.tmux("display-message", "-p", f"#{{{name}}}").strip() == "1"

    @property
    def shell(self) -> int:
        """Process id."""
        return int(self.tmux("display-message", "-p", "#{pane_pid}"))

    def is_restored(self) -> None:
        """Fail unless the terminal is as a shell wants it: a cursor, keys that are echoed, a free mouse."""
        assert not self.flag("alternate_on") and self.flag("cursor_flag") and not self.flag("mouse_any_flag")
        self.enter("echo six times seven is $((6 * 7))")
        shown = self.until("six times seven is 42")
        assert "echo six times seven is $((6 * 7))" in shown, "what is typed is not seen"


@contextmanager
def terminal(
    size: tuple[int, int] = (120, 40), environment: Mapping[str, str] | None = None, *, term: str = "screen-256color"
) -> Iterator[Terminal]:
    """A terminal with ``sh`` in it, which is gone afterwards, and all that runs in it."""
    variables = {"LC_ALL": "C.UTF-8", "TERM": term, "PS1": "$ ", **(environment or {})}
    unset = [part for name in _OTHERS - variables.keys() for part in ("-u", name)]
    shell = ["env", *unset, *(f"{name}={value}" for name, value in variables.items()), "sh"]
    with tempfile.TemporaryDirectory() as name:  # of a short path: that of a socket must not be long
        made = Terminal(Path(name) / "tmux")
        try:
            width, height = map(str, size)
            made.tmux("new-session", "-d", "-x", width, "-y", height, shlex.join(shell))
            made.until("$")
            yield made
        finally:
            subprocess.run(["tmux", "-S", str(Path(name) / "tmux"), "kill-server"], capture_output=True, check=False)


def until(done: Callable[[], T | None], what: Callable[[], str]) -> T:
    """What comes of it, once it is something."""
    end = time.monotonic() + PATIENCE
    while not (value := done()):
        assert time.monotonic() < end, what()
        time.sleep(0.05)
    return value


def children(process: int) -> list[int]:
    """Process ids, of children and of theirs."""
    found = [int(child) for task in _tasks(process) for child in task.split()]
    return found + [below for child in found for below in children(child)]


def _tasks(process: int) -> list[str]:
    try:
        return [(task / "children").read_text() for task in Path(f"/proc/{process}/task").iterdir()]
    except OSError:
        return []


def is_running(process: int) -> bool:
    """And is no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
