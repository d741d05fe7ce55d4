"""What the commands do to the machine: which programs they start, whom they ask, where they write. SECURITY.md."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import audited
import large_run
from audited import Seen
from command_line import QUICK
from sample_feed import hostile_run, sample_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the places and programs are those of Linux"),
]

COMPILERS = r"(.*/)?([\w-]*-)?(cc|gcc|clang)(-\d+)?"
PROGRAMS = rf"{COMPILERS}|uname|fc-list|git"
"""The compiler of the C forward; Python's own question for the processor; matplotlib's for fonts, once; and the commit
of a checkout, which an installed package has none of."""
LIBRARIES_OWN = (".cache/matplotlib", ".config/matplotlib", "tmp/torchinductor_")
"""What libraries keep: a list of fonts, and a folder that PyTorch makes when it is imported."""
NETWORK = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostby", "socket.sendto", "socket.sendmsg")


def done(home: Path, *commands: Sequence[str]) -> list[Seen]:
    """What these did, one after the other in one process, in an empty folder beside ``home``."""
    here = home.parent / "here"
    here.mkdir(exist_ok=True)
    variables = audited.environment(home)
    finished = subprocess.run(
        audited.command_line(commands), cwd=here, env=variables, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return audited.seen(home)


def check(events: Sequence[Seen], home: Path, *places: str, pickles: bool = False) -> None:
    """Nothing but the programs and places that are named, and no network.

    Args:
        places: regular expressions of what may be written, from the folder where it ran.
        pickles: whether processes of our own talk to each other.
    """
    here = home.parent / "here"
    assert events, "the hook is there"
    for event in events:
        assert not event.event.startswith(NETWORK), event
        assert event.event not in ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn"), event
        if event.event == "subprocess.Popen":
            program, arguments = event.arguments
            ours = program == sys.executable and arguments[1] in ("-P", "-c")
            assert ours or re.fullmatch(PROGRAMS, str(program)), event
        if event.event == "pickle.find_class":
            assert pickles and re.match(r"(specprof|collections|pathlib|builtins)\b", event.arguments[0]), event
        if event.event == "ctypes.dlopen" and "/" in str(event.arguments[0]):
            at = Path(event.arguments[0])
            private = home / ".cache/specprof/native" in at.parents or at.match(f"{home}/tmp/specprof-*/forward.so")
            assert private or "site-packages" in at.parts or Path(sys.base_prefix) in at.parents, event
    written = [event for event in events if event.event in ("open", "os.mkdir", "os.rename", "os.symlink", "os.link")]
    strange = [event for event in written if not allowed(event.path, home, here, places)]
    assert strange == []


def allowed(path: Path, home: Path, here: Path, places: Sequence[str]) -> bool:
    if str(path) in ("/dev/null", "/proc/self/clear_refs", str(home), str(home / ".cache"), str(home / ".config")):
        return True
    if path.is_relative_to(home):
        inside = str(path.relative_to(home))
        return inside.startswith((".cache/specprof", "tmp/", *LIBRARIES_OWN))
    if not path.is_relative_to(here):
        return False
    inside = str(path.relative_to(here))
    # A file is written beside its place, then put there: .NAME.RANDOM
    return any(re.fullmatch(place, re.sub(r"(^|/)\.([^/]+)\.\w{8}(\.\w+)?$", r"\1\2", inside)) for place in places)


def left(home: Path) -> set[str]:
    """What is still there, of what isn't named."""
    return {path.name for path in (home / "tmp").iterdir() if not path.name.startswith("torchinductor_")}


def test_what_commands_do_to_the_machine(tmp_path: Path) -> None:
    home = tmp_path / "home"
    events = done(
        home,
        ("run", *QUICK, "--prompt", "def f(x):"),
        ("run", *QUICK, "--prompt", "def f(y):", "--output", "run.json"),
        ("results", "list"),
        ("report", "--html", "r.html", "--md", "r.md"),
        ("explain", "--json"),
        ("load", "tiny_dev/target", "--n-tokens", "2"),
        ("prompts", "--offline", "--tiny", "-o", "prompts.json"),
    )
    named = (r"run\.json", r"prompts\.json", r"r\.(html|md)", r"r_figures(/[\w-]+\.svg)?")
    check(events, home, r"results(/[\w-]+\.jsonl)?", *named)
    programs = {Path(str(event.arguments[0])).name for event in events if event.event == "subprocess.Popen"}
    assert any(re.fullmatch(COMPILERS, program) for program in programs), "the hook sees what is started"
    assert any("r.html" in event.path.name for event in events if event.event == "open"), "and what is written"
    assert left(home) == set()
    kept = home / ".cache/specprof/native"
    for path in (kept, *kept.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path


def test_what_a_sweep_does_to_the_machine(tmp_path: Path) -> None:
    home = tmp_path / "home"
    sweep = (
        "sweep",
        "--k",
        "2",
        "-n",
        "1",
        "--domain",
        "code",
        "--max-new-tokens",
        "8",
        "--reps",
        "1",
        "--warmup",
        "0",
    )
    events = done(home, sweep, ("results", "export", "--csv", "cells.csv"), ("report",))
    check(
        events,
        home,
        r"results(/records\.jsonl(\.lock)?|/[\w.-]+|/[\w-]+_figures/[\w-]+\.svg)?",
        r"cells\.csv",
        pickles=True,
    )
    assert len({event.pid for event in events}) >= 3, "the hook is in the children, too"
    assert any(event.event == "pickle.find_class" for event in events)
    assert left(home) == set()


SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[\]P_^X]|[ -/]*[0-~])|[\x80-\x9f]")
"""CSI, the beginnings of OSC, DCS, APC, PM and SOS, and what else follows an escape."""


def on_a_terminal(home: Path, here: Path, *arguments: str, keys: Sequence[str]) -> bytes:
    """What is written to a terminal until the last key, each pressed once the screen stands still."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    command = audited.command_line([arguments])
    variables = audited.environment(home)
    with subprocess.Popen(command, cwd=here, env=variables, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown, waiting = b"", [*keys]
        end = time.monotonic() + 60
        try:
            while time.monotonic() < end:
                if select.select([ours], [], [], 1.5)[0]:
                    shown += os.read(ours, 2**16)
                elif b"Acceptance" in shown and waiting:
                    os.write(ours, waiting.pop(0).encode())
        except OSError:  # it is closed: the program has ended
            pass
        finally:
            os.close(ours)
            process.kill()
    assert not waiting, shown[-2000:]
    return shown


def kinds(shown: bytes) -> set[str]:
    """What commands the terminal, by how it begins and ends."""
    return {re.sub(r"[\d;]+", "", found[0]) for found in SEQUENCE.finditer(shown.decode("utf-8", "replace"))}


def test_a_replay_of_others_sends_a_terminal_nothing_but_what_any_replay_does(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    shown = {}
    for name, events in (("harmless", sample_run(2)), ("hostile", hostile_run(2, pair={"name": EVIL}, drafter=EVIL))):
        path = large_run.write(here, events, name)
        keys = ["e", "\x1b", "d", "\x1b", "q"]
        shown[name] = on_a_terminal(tmp_path / name, here, "tui", "--replay", path.name, "--speed", "16", keys=keys)
        check(audited.seen(tmp_path / name), tmp_path / name)
    assert kinds(shown["hostile"]) - kinds(shown["harmless"]) == set()
    assert len(kinds(shown["harmless"])) > 3
    assert b"\x1b]52;" not in shown["hostile"] and b"\x1b]8;" not in shown["hostile"]


EVIL = "\x1b]52;c;ZWNobw==\x07\x1b]0;owned\x07\x1b[2J\x9b31m[link=https://evil.example]x[/link]"


def test_that_search_sees_commands_to_a_terminal() -> None:
    found = kinds("a\x1b[1;31mb\x1b[0mc\x1b]52;c;x\x07d\x1bPq\x1b\\e\xdb\x9bm".encode())
    assert found == {"\x1b[m", "\x1b]", "\x1bP", "\x1b\\", "\x9b"}
