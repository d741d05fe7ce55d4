"""The compiled library: built by the machine's own C compiler on first use, kept for the next time."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

COMPILE_SECONDS = 120
"""It takes two or three. A compiler that takes this long is not going to end."""

# CC may bring flags of its own: those that let a compiler reorder sums have to go.
_FLAGS = ("-fno-fast-math", "-std=gnu11", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
_TUNED = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
# One thread is better than nothing where the compiler brings no OpenMP.
_ATTEMPTS = ((_TUNED, "-fopenmp"), (_TUNED,), ())


@dataclass(frozen=True, slots=True)
class Library:
    """What ``forward.c`` offers."""

    forward: Any
    """``native_forward``."""
    draft: Any
    """``native_draft``."""
    lanes: int
    """Numbers to a vector, and rows to a block of a packed matrix."""
    max_width: int
    """The most tokens to a call."""
    tile: int
    """Rows of scores that each thread needs room for."""
    reads_float16: bool
    threaded: bool
    """Whether a call can use several threads."""


@cache
def library() -> Library | str:
    """The library, or why there is none."""
    if os.environ.get("SPECPROF_NATIVE") == "0":
        return "SPECPROF_NATIVE=0 forbids it"
    compiler = _compiler()
    if compiler is None:
        return "there is no C compiler (cc, gcc or clang)"
    source = resources.files("specprof.models.native").joinpath("forward.c").read_bytes()
    problem = ""
    for flags in _ATTEMPTS:
        try:
            built = _build(source, (*compiler, *_FLAGS, *flags))
        except subprocess.TimeoutExpired as error:
            return f"{compiler[0]} took more than {error.timeout:g} s over it"
        except (OSError, AttributeError) as error:  # which other flags would not change
            return f"the compiled code can't be used: {error}"
        if isinstance(built, Library):
            return built
        problem = problem or built
    return problem


def _compiler() -> tuple[str, ...] | None:
    """What CC names, else the first there is."""
    named = tuple(os.environ.get("CC", "").split())
    if named and shutil.which(named[0]):
        return named
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return None if found is None else (found,)


def _build(source: bytes, command: tuple[str, ...]) -> Library | str:
    """The library from the user's cache, else compiled into it; or what went wrong."""
    import platformdirs

    # A home may be shared by machines of several kinds, and code made for one can kill a process on another.
    version = _run((*command, "--version"), COMPILE_SECONDS).stdout
    origin = _digest(repr((source, command, version, platform.machine(), _instruction_sets())).encode())
    folder = Path(os.path.realpath(platformdirs.user_cache_dir("specprof"))) / "native"
    for kept in _kept(folder, origin):
        with contextlib.suppress(OSError):  # on a disk where nothing may be run
            return _load(kept)
    with tempfile.TemporaryDirectory(prefix="specprof-") as work:
        made = Path(work) / "forward.so"
        problem = _compile(source, (*command, "-o", str(made)), Path(work))
        if problem is not None:
            return problem
        _keep(made, folder, origin)
        try:
            return _load(made)
        except OSError:  # or it is the temporary files' disk where nothing may be run
            return _load(next(_kept(folder, origin), made))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _name(origin: str, content: bytes) -> str:
    return f"native-{origin}-{_digest(content)}.so"


def _kept(folder: Path, origin: str) -> Iterator[Path]:
    """What is in the cache, whole, and could have been written by nobody else."""
    if _is_own(folder) and all(map(_stays, folder.parents)):
        # Loading a file that was cut short kills the process: its name says what it has to hold.
        yield from (path for path in sorted(folder.glob(f"native-{origin}-*.so")) if _is_whole(path, origin))


def _is_whole(path: Path, origin: str) -> bool:
    try:
        return _is_own(path) and path.name == _name(origin, path.read_bytes())
    except OSError:
        return False


def _is_own(path: Path) -> bool:
    """What somebody else can write is not run; a link can be written by everybody, as far as this goes."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def _stays(folder: Path) -> bool:
    """Whether nobody else can put another folder in the place of ours in this one, between a look and the next."""
    try:
        found = folder.stat()
    except OSError:
        return False
    in_place = not found.st_mode & stat.S_IWOTH or found.st_mode & stat.S_ISVTX
    return found.st_uid in (0, os.getuid()) and bool(in_place)


def _keep(made: Path, folder: Path, origin: str) -> None:
    """Copy it into the cache, whole or not at all; where that can't be written it serves this process only."""
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = folder / _name(origin, made.read_bytes())
        beside = kept.with_name(f".{kept.name}.{os.getpid()}")
        try:
            shutil.copyfile(made, beside)
            beside.chmod(0o700)
            beside.replace(kept)
        finally:
            beside.unlink(missing_ok=True)


def _compile(source: bytes, command: tuple[str, ...], work: Path) -> str | None:
    """What went wrong, if something did."""
    code = work / "forward.c"
    code.write_bytes(source)
    done = _run((*command, str(code), "-lm"), COMPILE_SECONDS, TMPDIR=str(work))
    if done.returncode == 0:
        return None
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    first = next((line for line in said if "error" in line), said[0] if said else "it gave no reason")
    return f"{command[0]} refused the code: {first}"


def _run(command: tuple[str, ...], seconds: float, **variables: str) -> subprocess.CompletedProcess[str]:
    """``subprocess.run``, but what takes too long is ended with all that it has started.

    Raises:
        TimeoutExpired: it took longer.
        OSError: it can't be run.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C", **variables},
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _instruction_sets() -> str:
    """What this processor can do, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _load(path: Path) -> Library:
    code = ctypes.CDLL(str(path))
    pointer, int32, int64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    forward, draft = code.native_forward, code.native_draft
    forward.argtypes = [pointer, pointer, *(int32,) * 4, pointer, int64, pointer, pointer, pointer, int32]
    draft.argtypes = [pointer, pointer, int32, int32, pointer, int64, *(pointer,) * 3, int32, pointer, pointer]
    draft.argtypes += [ctypes.c_float, pointer, pointer]
    return Library(
        forward,
        draft,
        code.native_lanes(),
        code.native_max_width(),
        code.native_tile(),
        bool(code.native_reads_float16()),
        bool(code.native_threaded()),
    )
