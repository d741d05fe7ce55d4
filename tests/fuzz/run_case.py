"""Runs a case in a folder of its own, in this process or a new one."""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from command_line import command
from fuzz import values
from fuzz.case import FOLDER, Case, Result, changed, contents

ROOM_BYTES = 6 << 30
"""That a case may add to this process's addresses; what asks for more is told that there is none."""
_READ = 4 << 20
_CLEARED = ("SPECPROF_RESULTS", "NO_COLOR", "CI", "COLUMNS", "LINES", "GITHUB_ACTIONS", "FORCE_COLOR", "OLLAMA_HOST")


class Stopped(BaseException):
    """A case took too long. No Exception: what a command does about those must not hide it."""


def run_case(case: Case, folder: Path) -> Result:
    """``folder`` is new and empty; what the case leaves there stays."""
    for made in ("home", "tmp"):
        (folder / made).mkdir(parents=True)
    for file in case.files:
        file.make(folder)
    before = contents(folder)
    result = _in_process_of_its_own(case, folder) if case.process else _here(case, folder)
    after = contents(folder)
    different = changed(before, after)
    texts = {
        path: (folder / path).read_bytes()[:_READ].decode("utf-8", "replace")
        for path in different
        if path.endswith((".html", ".md", ".json", ".csv")) and (folder / path).is_file()
    }
    return Result(result.code, result.out, result.err, different, result.peak_growth_bytes, texts)


def surroundings(case: Case, folder: Path) -> dict[str, str]:
    """The environment: a home and a place for temporary files of its own, no terminal, no network."""
    made = {name: value for name, value in os.environ.items() if name not in _CLEARED}
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    made |= {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "XDG_CACHE_HOME": cache,  # the compiled forward, which every case would make anew
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_STATE_HOME": str(folder / "home/state"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TERM": "xterm-256color",
    }
    for name, value in case.environment.items():
        made.pop(name, None)
        if value is not None:
            made[name] = value.replace(FOLDER, str(folder))
    return made


def _here(case: Case, folder: Path) -> Result:
    peak = _peak_bytes()
    arguments = [word.replace(FOLDER, str(folder)) for word in case.arguments]
    with _moved(case, folder), _limited(case.seconds):
        try:
            outcome = command(*arguments, stdin=case.stdin, encoding=case.encoding, terminal=case.terminal)
        except Stopped:
            return Result(None, "", f"stopped after {case.seconds:g} s", ())
    return Result(outcome.code, outcome.out, outcome.err, (), _peak_bytes() - peak)


@contextlib.contextmanager
def _moved(case: Case, folder: Path) -> Iterator[None]:
    """This process as the case's; then as it was."""
    home, variables = os.getcwd(), dict(os.environ)
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(surroundings(case, folder))
    tempfile.tempdir = None
    try:
        yield
    finally:
        os.chdir(home)
        os.environ.clear()
        os.environ.update(variables)
        tempfile.tempdir = None
        if threads is not None:
            sys.modules["torch"].set_num_threads(threads)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise :class:`Stopped` after so many; let no more than so much be asked for."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    old_limits = resource.getrlimit(resource.RLIMIT_AS)
    old_handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, old_limits[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old_handler)
        resource.setrlimit(resource.RLIMIT_AS, old_limits)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _in_process_of_its_own(case: Case, folder: Path) -> Result:
    arguments = [word.replace(FOLDER, str(folder)) for word in case.arguments if values.for_process(word)]
    words = [sys.executable, "-m", "specprof", *arguments]
    script = f'"$@" {case.redirect}; exit ${{PIPESTATUS[0]}}'
    limit = f"ulimit -v {(ROOM_BYTES * 4) // 1024}; "
    # In a group of its own, so that whatever it started can be stopped with it.
    with subprocess.Popen(
        ["/bin/bash", "-c", limit + script, "bash", *words],
        cwd=folder,
        env=surroundings(case, folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(case.stdin, timeout=case.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Result(None, "", f"stopped after {case.seconds:g} s: {shlex.join(words)}", ())
    encoding = (case.environment.get("PYTHONIOENCODING") or "utf-8").split(":")[0]
    return Result(process.returncode, out.decode(encoding, "replace"), err.decode(encoding, "replace"), ())
