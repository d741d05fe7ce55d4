"""Where the host's own time goes: py-spy, watching this very process while something runs in it.

Watching slows a process down, so what runs meanwhile is a repetition of its own that enters no figure.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from specprof.errors import UsageError

FORMATS = {".json": "speedscope", ".svg": "flamegraph", ".txt": "raw"}
"""py-spy's formats by the ending of the file's name."""

SAMPLES_PER_SECOND = 100
LEAST_SECONDS = 2.0
"""What is watched for less leaves a handful of samples, most of them from before py-spy had read the symbols."""
ATTACH_SECONDS = 10.0
"""Native frames take py-spy a second for the symbols of PyTorch, more with those of CUDA."""
WRITE_SECONDS = 60.0

_ATTACHED = "Sampling process"
_POLL_SECONDS = 0.02
_REFUSED = re.compile(r"permission denied|operation not permitted|os error (1|13)\b", re.IGNORECASE)
_COUNTED = re.compile(r"Samples: (\d+) Errors: (\d+)")

_LOOK_FOR_YOURSELF = "pip install --upgrade py-spy, or run `py-spy record --pid PID` on a long run to see more"

_PR_SET_PTRACER = 0x59616D61
_ANYBODY = -1
_NOBODY = 0
_CAP_SYS_PTRACE = 19

Problem = tuple[str, str]
"""What is wrong, and what to do: one sentence each."""


@dataclass(slots=True)
class HostProfile:
    """What became of a profile. Complete once the block it was made for has ended."""

    path: Path
    native: bool = False
    """Whether frames of C, C++ and Cython are among Python's."""
    num_samples: int | None = None
    note: str | None = None
    """Why native frames are missing."""
    problem: Problem | None = None
    """Why there is no profile. No reason to distrust what ran."""


def profile_format(path: Path) -> str:
    """py-spy's name of the format that a file's name asks for.

    Raises:
        UsageError: the name has another ending.
    """
    try:
        return FORMATS[path.suffix.lower()]
    except KeyError:
        raise UsageError(
            f"a host profile can't be written as {path.name!r}",
            "end the name in .json (for speedscope.app), .svg (a flame graph) or .txt (stacks with counts)",
        ) from None


@contextlib.contextmanager
def host_profile(
    path: Path, *, rate: int = SAMPLES_PER_SECOND, native: bool = True, root: Path = Path("/")
) -> Iterator[HostProfile]:
    """Let py-spy write ``path`` about this process while the block runs.

    The block always runs. Where py-spy can't watch, ``problem`` says so from the beginning; where it fails in the
    end, after the block.

    Args:
        rate: samples per second.
        native: show native frames where that is possible.
        root: where ``proc`` and ``run`` are, which tell why permission is missing.

    Raises:
        UsageError: the name's ending is none of :data:`FORMATS`.
    """
    profile = HostProfile(path)
    program = _py_spy()
    arguments = ["record", "--pid", str(os.getpid()), "--output", str(path), "--format", profile_format(path)]
    arguments += ["--rate", str(rate)]
    if program is None:
        profile.problem = ("py-spy, which makes host profiles, is not installed", "pip install py-spy")
        yield profile
        return
    if sys.platform == "win32":
        profile.problem = (
            "py-spy can't be told from inside a process on Windows when to stop",
            f"run it in another terminal meanwhile: py-spy record --pid PID --output {path}",
        )
        yield profile
        return
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        watcher = None
        try:
            watcher = _attach(profile, [program, *arguments], said, native, root)
            yield profile
        finally:
            if watcher is not None:
                _finish(profile, watcher, said)
            _allow_to_watch(_NOBODY)


def _py_spy() -> str | None:
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.is_file() else shutil.which("py-spy")


def _attach(
    profile: HostProfile, command: list[str], said: IO[str], native: bool, root: Path
) -> subprocess.Popen[bytes] | None:
    """Start py-spy and wait until it watches; None if it doesn't, and the profile then says why."""
    # For native frames the process has to be stopped at each sample. Without them there is no need to.
    for mode in ("--native", "--nonblocking") if native else ("--nonblocking",):
        # py-spy may be at it before this process has learnt its id.
        _allow_to_watch(_ANYBODY)
        said.seek(0)
        said.truncate()
        try:
            watcher = subprocess.Popen([*command, mode], stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        except OSError as error:
            profile.problem = (f"{command[0]} can't be run: {error.strerror or error}", "pip install py-spy")
            return None
        _allow_to_watch(watcher.pid)
        if _is_watching(watcher, said):
            profile.native = mode == "--native"
            profile.problem = None
            return watcher
        failure, refused = _last_words(said), _REFUSED.search(_everything(said)) is not None
        profile.problem = permission_problem(root) if refused else (f"py-spy failed: {failure}", _LOOK_FOR_YOURSELF)
        if mode == "--native":
            profile.note = f"no native frames: {_why_not_native(failure, refused)}"
    profile.note = None
    return None


def _why_not_native(failure: str, refused: bool) -> str:
    if refused:
        return "py-spy may not stop this process"
    # Where it was built without them it knows of no such option.
    return "py-spy has none on this platform" if "argument" in failure else failure


def _is_watching(watcher: subprocess.Popen[bytes], said: IO[str]) -> bool:
    deadline = time.monotonic() + ATTACH_SECONDS
    while time.monotonic() < deadline:
        ended = watcher.poll() is not None
        if _ATTACHED in _everything(said):
            return True
        if ended:
            return False
        time.sleep(_POLL_SECONDS)
    watcher.kill()
    watcher.wait()
    print(f"it did not begin within {ATTACH_SECONDS:g} seconds", file=said, flush=True)
    return False


def _finish(profile: HostProfile, watcher: subprocess.Popen[bytes], said: IO[str]) -> None:
    """Have py-spy write its file."""
    watcher.send_signal(signal.SIGINT)
    try:
        watcher.wait(WRITE_SECONDS)
    except subprocess.TimeoutExpired:
        watcher.kill()
        watcher.wait()
        profile.problem = (
            f"py-spy did not write {profile.path} within {WRITE_SECONDS:g} seconds",
            "profile fewer prompts, or shorter ones",
        )
        return
    counted = _COUNTED.search(_everything(said))
    if counted is not None and int(counted[1]) > 0:
        profile.num_samples = int(counted[1])
        return
    if counted is not None or "No stack counts" in _everything(said):
        profile.num_samples = 0
        profile.problem = (
            "py-spy took no sample: what ran was over too soon, or waited all the time",
            "profile more prompts or longer ones",
        )
        return
    profile.problem = (
        f"py-spy failed to write {profile.path}: {_last_words(said)}",
        "name a file in a directory that exists and has room",
    )


def _everything(said: IO[str]) -> str:
    # The child writes through a descriptor of its own that shares this one's position: read without moving it.
    return os.pread(said.fileno(), 1 << 20, 0).decode(errors="replace")


def _last_words(said: IO[str]) -> str:
    """The first thing py-spy said that is an error, as half a sentence."""
    lines = [line.strip() for line in _everything(said).splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "permission"))] or lines[-1:]
    return errors[0].removeprefix("Error: ").removeprefix("error: ").rstrip(".") if errors else "it gave no reason"


def _allow_to_watch(process_id: int) -> None:
    """Name the process that may look into this one although it is no ancestor, which Yama's scope 1 wants to know."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):  # no such function; without Yama it answers EINVAL
            nothing = ctypes.c_ulong(0)
            ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(process_id), nothing, nothing, nothing)


# Why one process may not look into another


def permission_problem(root: Path = Path("/"), *, platform: str = sys.platform) -> Problem:
    """Why py-spy was refused, and the one thing that allows it.

    Args:
        root: where ``proc`` and ``run`` are.
    """
    if platform == "darwin":
        return "macOS lets only root look into another process", "run the same command with sudo"
    if not platform.startswith("linux"):
        return "py-spy may not look into this process", "run the same command as an administrator"
    lines = (line.partition(":") for line in _text(root / "proc/self/status").splitlines())
    status = {name: value.strip() for name, _, value in lines}
    capable = _has_capability(status.get("CapEff", ""))
    # What a container was given at its start; a process that is not root in it holds none of that.
    given = _has_capability(status.get("CapBnd", ""))
    filtered = status.get("Seccomp") == "2"
    scope = _text(root / "proc/sys/kernel/yama/ptrace_scope").strip()
    if scope == "3":
        return (
            "no process may look into another until the next boot (kernel.yama.ptrace_scope is 3)",
            "set kernel.yama.ptrace_scope = 1 in /etc/sysctl.d on the machine itself, and reboot it",
        )
    if _is_pod(root) and not given:
        return (
            "this pod lacks the capability SYS_PTRACE, which py-spy needs to look into a process",
            'add to the container in its YAML: securityContext: {capabilities: {add: ["SYS_PTRACE"]}}',
        )
    if _is_container(root) and not given:
        return (
            "this container lacks the capability SYS_PTRACE, which py-spy needs to look into a process",
            "start it with `docker run --cap-add SYS_PTRACE ...`",
        )
    if _is_container(root) and filtered:
        return (
            "this container's seccomp filter keeps py-spy from looking into a process",
            "start it with `docker run --cap-add SYS_PTRACE --security-opt seccomp=unconfined ...`",
        )
    if scope == "2" and not capable:
        return (
            "only root may look into another process (kernel.yama.ptrace_scope is 2)",
            "sudo sysctl kernel.yama.ptrace_scope=1",
        )
    if scope == "1" and not capable:
        return (
            "a process may look into its own children only (kernel.yama.ptrace_scope is 1)",
            "sudo sysctl kernel.yama.ptrace_scope=0",
        )
    if filtered:
        return (
            "a seccomp filter keeps py-spy from looking into this process",
            "run the same command outside the sandbox that set it up",
        )
    return "py-spy may not look into this process", "run the same command with sudo"


def _has_capability(mask: str) -> bool:
    try:
        return bool(int(mask, 16) >> _CAP_SYS_PTRACE & 1)
    except ValueError:
        return False


def _is_pod(root: Path) -> bool:
    return (root / "var/run/secrets/kubernetes.io").exists() or "kubepods" in _text(root / "proc/1/cgroup")


def _is_container(root: Path) -> bool:
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists() or _is_pod(root):
        return True
    groups = _text(root / "proc/1/cgroup")
    return any(name in groups for name in ("docker", "containerd", "libpod", "lxc"))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
