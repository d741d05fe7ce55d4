"""``specprof tui`` in a real terminal: what is seen there, and what is left of it afterwards."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

import large_run
import terminal as terminals
from sample_feed import RUN_ID, sample_run
from terminal import Terminal

pytestmark = pytest.mark.skipif(
    shutil.which("tmux") is None or not Path("/proc/self/task").exists(), reason="needs tmux, and Linux"
)

STYLES = re.compile(r"\x1b\[([0-9;]*)m")
GREYS = frozenset({0, 7, 8, 15, 16, 59, 102, 145, 188, 231, *range(232, 256)})
"""Of the 256 colours of a terminal."""
FIRST_PAINT = 10.0
"""Seconds at most, also beside other tests; what it takes alone is for benchmarks."""

Open = Callable[..., Terminal]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """``opened(size, **environment)``: a terminal in an empty directory."""
    with ExitStack() as afterwards:

        def open_one(size: tuple[int, int] = (120, 40), term: str = "screen-256color", **environment: str) -> Terminal:
            own = {"XDG_STATE_HOME": str(tmp_path / "state"), "OMP_NUM_THREADS": "1", **environment}
            context: AbstractContextManager[Terminal] = terminals.terminal(size, own, term=term)
            made = afterwards.enter_context(context)
            made.enter(f"cd {tmp_path}; echo was there before")
            made.until("\nwas there before")
            return made

        yield open_one


@pytest.fixture
def run(tmp_path: Path) -> str:
    """The name of a file."""
    return large_run.write(tmp_path, sample_run(6), RUN_ID).name


def test_the_start_screen_comes_soon_and_goes_without_a_trace(opened: Open) -> None:
    screen = opened((60, 20))
    begin = time.monotonic()
    screen.start("tui")
    shown = screen.until("Pair", "tiny_dev")
    assert time.monotonic() - begin < FIRST_PAINT
    assert "was there before" not in shown and screen.flag("alternate_on")
    screen.press("q")
    assert screen.ended() == 0
    assert "was there before" in screen.shown()
    screen.is_restored()


def test_keys_and_sizes(opened: Open, run: str) -> None:
    screen = opened()
    screen.start("tui", "--replay", run)
    screen.until("Speculative decoding", "Acceptance")
    screen.press("b")
    screen.until("╭─ Plain decoding")  # elsewhere it may say whose turn it is
    screen.press("b")
    screen.until("╭─ Speculative decoding", "draft target")  # a round's table: without a round there are no details
    screen.press("d")
    screen.until("The rule")
    screen.press("Escape")
    screen.until("Acceptance", without="The rule")
    screen.press("?")
    screen.until("Going on and stopping")
    screen.press("Escape")
    screen.until("Acceptance", without="Going on and stopping")
    screen.resize(60, 20)
    shown = screen.until("tokens per round", without="Acceptance")
    assert len(shown.splitlines()) <= 20 and all(len(line) <= 60 for line in shown.splitlines())
    screen.resize(120, 40)
    screen.until("Acceptance", "Device")
    screen.press("q")
    assert screen.ended() == 0
    screen.is_restored()


def test_standard_output_is_for_the_document_alone(opened: Open, run: str, tmp_path: Path) -> None:
    screen = opened((80, 24))
    screen.start("tui", "--replay", run, "--json", redirecting="> document.json")
    screen.until("Speculative decoding")
    screen.press("q")
    assert screen.ended() == 0
    document = json.loads((tmp_path / "document.json").read_text(encoding="utf-8"))
    assert [one["run_id"] for one in document["runs"]] == [RUN_ID]
    screen.is_restored()


def test_without_colours(opened: Open, run: str) -> None:
    plain = opened((80, 24), NO_COLOR="1")
    plain.start("tui", "--replay", run)
    plain.until("Speculative decoding", "accepted")
    assert not hues(plain.shown(styled=True))
    coloured = opened((80, 24))
    coloured.start("tui", "--replay", run)
    coloured.until("Speculative decoding", "accepted")
    assert hues(coloured.shown(styled=True))


def hues(styled: str) -> set[tuple[int, ...]]:
    """Colours on the screen that are neither black, nor white, nor grey."""
    found: set[tuple[int, ...]] = set()
    for style in STYLES.findall(styled):
        codes = [int(code or 0) for code in style.split(";")]
        while codes:
            code, *codes = codes
            if code in (38, 48) and codes[0] == 2:
                colour, codes = tuple(codes[1:4]), codes[4:]
                found |= {colour} if len(set(colour)) > 1 else set()
            elif code in (38, 48):
                number, codes = codes[1], codes[2:]
                found |= set() if number in GREYS else {(number,)}
            elif code in range(30, 50) or code in range(90, 108):
                found |= set() if code % 10 in (0, 7, 9) else {(code,)}
    return found


@pytest.mark.parametrize("how", ["dumb", "no keys", "no screen"])
def test_where_it_can_not_be_drawn(opened: Open, run: str, tmp_path: Path, how: str) -> None:
    screen = opened((100, 20), term="dumb" if how == "dumb" else "screen-256color")
    redirecting = {"dumb": "", "no keys": "< /dev/null", "no screen": "2> said"}[how]
    screen.start("tui", "--replay", run, redirecting=redirecting)
    assert screen.ended() == 2
    said = (tmp_path / "said").read_text() if how == "no screen" else screen.shown()
    assert "error: this needs a terminal" in said and "hint:" in said and "specprof run" in said
    assert "\x1b" not in said
    screen.is_restored()


@pytest.mark.parametrize(("how", "code"), [("C-c", 130), ("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_ends_that_come_from_outside(opened: Open, run: str, how: str, code: int) -> None:
    screen = opened((80, 24))
    screen.start("tui", "--replay", run)
    screen.until("Speculative decoding", "accepted")
    if how == "C-c":
        screen.press("C-c")
    else:
        [process] = terminals.children(screen.shell)
        os.kill(process, signal.Signals[how])
    assert screen.ended() == code
    assert "was there before" in screen.shown() and "Traceback" not in screen.shown()
    screen.is_restored()


# With an engine


def engine_of(screen: Terminal) -> int:
    """The process that decodes."""

    def found() -> int | None:
        processes = terminals.children(screen.shell)
        return next((p for p in processes if "live_engine" in terminals.command_line(p)), None)

    return terminals.until(found, lambda: "there is no engine")


def start_engine(screen: Terminal) -> int:
    screen.start("tui", "--pair", "tiny_dev", "--temperature", "0.8", "--deterministic", "--no-save", "--reps", "50")
    screen.until("Speculative decoding", "live", "accepted")
    return engine_of(screen)


@pytest.mark.slow
def test_an_engine_that_is_killed(opened: Open) -> None:
    screen = opened()
    os.kill(start_engine(screen), signal.SIGKILL)
    screen.until("SIGKILL", "what to do")
    screen.press("Escape")
    screen.until("Pair", "tiny_dev")
    screen.press("q")
    assert screen.ended() == 0, "what failed was given up for something else"
    screen.is_restored()


@pytest.mark.slow
def test_leaving_with_a_failure_on_the_screen(opened: Open) -> None:
    screen = opened()
    os.kill(start_engine(screen), signal.SIGKILL)
    screen.until("SIGKILL", "what to do")
    screen.press("q")
    assert screen.ended() == 1, "it was killed, and not for want of memory"
    shown = screen.shown()
    assert "error: " in shown and "SIGKILL" in shown and "hint: " in shown and "Traceback" not in shown
    screen.is_restored()


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("q", 0), ("C-c", 130), ("SIGTERM", 143), ("SIGKILL", 137)])
def test_no_engine_is_left_behind(opened: Open, how: str, code: int) -> None:
    screen = opened((80, 24))
    engine = start_engine(screen)
    if how.startswith("SIG"):
        os.kill(terminals.children(screen.shell)[0], signal.Signals[how])
    else:
        screen.press(how)
    assert screen.ended() == code
    terminals.until(lambda: not terminals.is_running(engine), lambda: f"the engine, {engine}, is still there")
    if how != "SIGKILL":  # after which nobody can restore anything
        assert "Traceback" not in screen.shown()
        screen.is_restored()


# --- terminals that go away, without tmux in between


@contextmanager
def in_a_pty(file: Path, *, ignores_hangup: bool) -> Iterator[tuple[int, int]]:
    """Process and terminal of a replay that has begun to draw."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignores_hangup else signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "-m", "specprof", "tui", "--replay", str(file)])
    try:
        assert b"Acceptance" in drawn(terminal, 20)
        yield pid, terminal
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        with suppress(OSError):
            os.close(terminal)


def drawn(terminal: int, seconds: float, until: bytes = b"Acceptance") -> bytes:
    """What is written to it, up to a word or for so long."""
    seen, end = b"", time.monotonic() + seconds
    while time.monotonic() < end and until not in seen:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                seen += os.read(terminal, 1 << 16)
            except OSError:  # nobody has its other end
                break
    return seen


def ends(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("ignores_hangup", [False, True])
def test_it_does_not_outlive_its_terminal(tmp_path: Path, ignores_hangup: bool) -> None:
    file = large_run.write(tmp_path, large_run.run(large_run.prompts(20), num_tokens=400))
    with in_a_pty(file, ignores_hangup=ignores_hangup) as (pid, terminal):
        os.close(terminal)  # the window is closed
        assert ends(pid, 15)


@pytest.mark.slow
def test_being_told_to_go_on_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    file = large_run.write(tmp_path, large_run.run(large_run.prompts(2), num_tokens=40))
    with in_a_pty(file, ignores_hangup=False) as (pid, terminal):
        raw = termios.tcgetattr(terminal)[3]
        assert not raw & termios.ECHO
        os.kill(pid, signal.SIGCONT)
        drawn(terminal, 1, until=b"never")
        os.write(terminal, b"q")
        drawn(terminal, 1, until=b"never")
        assert ends(pid, 10)
        assert termios.tcgetattr(terminal)[3] & termios.ECHO
