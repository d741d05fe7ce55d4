"""Where generations run: workers that may die without taking the sweep with them.

A worker keeps the models of one pair and makes one generation at a time. It runs in a process of its own, so that
running out of memory, a native crash or a hang costs the generation it happened in, and nothing else. What a call
comes to is a value (:class:`Ready`, :class:`Generated`, :class:`Failed`, :class:`Died`), never an exception.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, Protocol, TypeVar

from specprof.data.prompts import Prompt
from specprof.errors import ResourceError, SpecprofError, UsageError, is_about_memory
from specprof.experiments.config import RunConfig
from specprof.profiling.events import Event

BENCH = "specprof.experiments.bench:Bench"
"""What a worker makes to work with, as ``module:callable``: a name, so that the driver need not import torch."""

_LOG = logging.getLogger("specprof")

_GLANCE = 0.5
"""Seconds between two looks at whether a silent worker lives; its answer is noticed at once."""
_GRACE = 5.0
"""Seconds that a killed process has to disappear: one that the kernel or a GPU driver holds can't be waited for."""
_MOMENT = 0.3
"""Seconds to put things away in, before being killed."""
_LONGEST_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker prepares for: the cells of one pair."""

    name: str
    runs: Mapping[str, RunConfig]
    """By config_hash."""
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """The call raised; the worker lives."""

    reason: str
    """``out of memory``, ``load`` or ``error``."""
    message: str
    hint: str | None


@dataclass(frozen=True, slots=True)
class Ready:
    """The models are loaded, and every cell that can run is warm."""

    machine: dict[str, Any]
    machine_class: str
    models: dict[str, Any]
    notes: tuple[str, ...]
    """What the user should know about how the models were loaded."""
    vocab_methods: Mapping[str, str | None]
    """By config_hash, how a draft of another vocabulary proposes."""
    refused: Mapping[str, Failed]
    """Cells that can't be run, by config_hash."""
    engines: Mapping[str, str] = field(default_factory=dict)
    """By config_hash, which engine decodes."""


@dataclass(frozen=True, slots=True)
class Generated:
    """One generation, in order: Prefilled, its rounds, PromptEnded."""

    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Died:
    """The worker is gone, and with it what it was doing."""

    reason: str
    """``crash``, ``timeout`` or ``out of memory``."""
    message: str


class Worker(Protocol):
    """One process with one pair's models. One thread at a time asks; any may kill."""

    name: str

    def prepare(self, job: Job, timeout: float | None) -> Ready | Failed | Died:
        """Load a pair and warm up; ``timeout`` in seconds, after which the worker is killed."""
        ...

    def generate(
        self, config_hash: str, prompt_id: str, repetition: int, timeout: float | None
    ) -> Generated | Failed | Died:
        """Make one generation of what was prepared; ``timeout`` in seconds, after which the worker is killed."""
        ...

    def kill(self) -> None:
        """End the process, from any thread and as often as one likes; a call that waits for it returns Died."""
        ...


class Executor(Protocol):
    """The workers of one machine or of a cluster."""

    retries: int
    """How often a generation whose worker died is tried again."""

    def workers(self) -> Sequence[Worker]:
        """All workers, started when first asked for.

        Raises:
            ResourceError: one can't be started.
        """
        ...

    def replace(self, worker: Worker) -> Worker:
        """A fresh worker in the place of a dead one; the dead one itself once the executor is closed.

        Raises:
            ResourceError: none can be started.
        """
        ...

    def close(self) -> None:
        """Kill what is left, from any thread and as often as one likes."""
        ...


class Bench(Protocol):
    """What answers in the worker's process."""

    def prepare(self, job: Job) -> Ready: ...

    def generate(self, config_hash: str, prompt_id: str, repetition: int) -> tuple[Event, ...]: ...


# --- what went wrong


def failure_of(error: BaseException, *, loading: bool = False) -> Failed:
    """What an exception in a worker is recorded as; ``loading``: it came while the models were loaded."""
    reason = "out of memory" if is_about_memory(error) else "load" if loading else "error"
    if isinstance(error, SpecprofError):
        return Failed(reason, error.message, error.hint)
    text = " ".join(str(error).split())
    if len(text) > _LONGEST_MESSAGE:
        text = text[: _LONGEST_MESSAGE - 1] + "…"
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return Failed(reason, message, None)


# --- on this machine

_Answer = TypeVar("_Answer", Ready, Generated)

# The child is not multiprocessing's: that would import the driver's __main__ again, which runs a script that lacks a
# guard a second time. It gets the driver's sys.path, so that both find the same specprof, and nothing else of it.
_CHILD = "import sys; sys.path[:] = sys.argv[6:]; from specprof.experiments.serving import serve; serve(sys.argv[1:6])"


class LocalWorker:
    """A process of this machine, asked over a socket."""

    def __init__(
        self, name: str, environment: Mapping[str, str], make_bench: str, path: Sequence[str] | None = None
    ) -> None:
        self.name = name
        self._environment = dict(environment)
        self._make_bench = make_bench
        self._path = tuple(sys.path if path is None else path)
        self._asking = threading.Lock()
        self._ended: Died | None = None
        self._stopped = False
        self._greeted = False
        self._oom_kills = oom_kills()
        self._connection, theirs = Pipe()
        # Nothing is ever written to the lifeline. It breaks when the driver ends, however it ends.
        lifeline, self._lifeline = os.pipe()
        arguments = (theirs.fileno(), lifeline, logging.getLogger().level, _LOG.getEffectiveLevel(), make_bench)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, *map(str, arguments), *self._path],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a library prints is narration: the driver's stdout is for results
                env=os.environ | self._environment,
                pass_fds=(theirs.fileno(), lifeline),
                process_group=0,  # Ctrl-C is for the driver, which decides what becomes of the workers
            )
        except OSError as error:
            self._connection.close()
            os.close(self._lifeline)
            raise ResourceError(
                f"no worker process can be started: {error.strerror or error}", "end other processes, or free memory"
            ) from error
        finally:
            theirs.close()
            os.close(lifeline)

    @property
    def pid(self) -> int:
        return self._process.pid

    def prepare(self, job: Job, timeout: float | None) -> Ready | Failed | Died:
        return self._ask(Ready, timeout, "prepare", job)

    def generate(
        self, config_hash: str, prompt_id: str, repetition: int, timeout: float | None
    ) -> Generated | Failed | Died:
        return self._ask(Generated, timeout, "generate", config_hash, prompt_id, repetition)

    def kill(self) -> None:
        self._stopped = True
        end(self._process)
        with self._asking:
            self._end(STOPPED)

    def successor(self) -> LocalWorker:
        """A fresh process of the same name, on the same device."""
        return LocalWorker(self.name, self._environment, self._make_bench, self._path)

    def _ask(
        self, expected: type[_Answer], timeout: float | None, method: str, *arguments: object
    ) -> _Answer | Failed | Died:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with self._asking:
            if self._ended is not None:
                return self._ended
            try:
                if not self._greeted:
                    self._receive(deadline)  # it listens, so that sending does not block
                    self._greeted = True
                self._connection.send_bytes(pickle.dumps((method, arguments)))
                return decoded(self._receive(deadline), expected)
            except TimeoutError:
                return self._end(Died("timeout", f"no answer within {timeout:g} s"))
            except (EOFError, OSError):
                return self._end(STOPPED if self._stopped else self._cause_of_death())
            except BaseException:
                # Interrupted, and its answer still to come: the next call would take it for its own.
                self._end(STOPPED)
                raise

    def _receive(self, deadline: float) -> bytes:
        """The next answer; what was logged on the way to it is logged here."""
        while True:
            while not self._connection.poll(min(_GLANCE, max(0.0, deadline - time.monotonic()))):
                if self._stopped or self._process.poll() is not None:
                    raise EOFError
                if time.monotonic() >= deadline:
                    raise TimeoutError
            message = self._connection.recv_bytes()
            if message[:1] == ANSWER:
                return message[1:]
            log(pickle.loads(message[1:]))

    def _cause_of_death(self) -> Died:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        return cause_of_death(self._process.returncode, self._oom_kills, "the worker process")

    def _end(self, died: Died) -> Died:
        if self._ended is None:
            self._ended = died
            end(self._process)
            self._connection.close()
            os.close(self._lifeline)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
        return self._ended


def end(process: subprocess.Popen[bytes]) -> None:
    """Let a process put away what it holds, as a compiler's files, if it does so at once."""
    process.terminate()
    try:
        process.wait(_MOMENT)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()  # also where the wait is interrupted


class LocalExecutor:
    """One worker on this machine, or one for each of several GPUs.

    Args:
        gpus: which GPUs, each for a worker of its own that sees no other; they are counted as ``nvidia-smi`` does, or,
            where CUDA_VISIBLE_DEVICES is set, along that list. None: one worker, which sees what the driver sees.
        make_bench: ``module:callable``, what a worker works with.
        num_workers: how many workers, where no GPUs are named.

    Raises:
        UsageError: a GPU is named twice, or isn't there as far as the environment says.
    """

    retries = 0

    def __init__(self, gpus: Sequence[int] | None = None, make_bench: str = BENCH, num_workers: int = 1) -> None:
        if gpus is None:
            names = ["local"] if num_workers == 1 else [f"worker {i}" for i in range(num_workers)]
            self._places: list[tuple[str, dict[str, str]]] = [(name, {}) for name in names]
        else:
            self._places = [(f"gpu {gpu}", environment) for gpu, environment in zip(gpus, _visible(gpus), strict=True)]
        self._make_bench = make_bench
        self._lock = threading.Lock()
        self._workers: list[LocalWorker] = []
        self._closed = False

    def workers(self) -> list[LocalWorker]:
        with self._lock:
            if not self._workers and not self._closed:
                for name, environment in self._places:
                    self._workers.append(LocalWorker(name, environment, self._make_bench))
            return list(self._workers)

    def replace(self, worker: Worker) -> LocalWorker:
        assert isinstance(worker, LocalWorker)
        worker.kill()
        with self._lock:
            if self._closed:
                return worker
            fresh = worker.successor()
            self._workers[self._workers.index(worker)] = fresh
            return fresh

    def close(self) -> None:
        with self._lock:
            self._closed = True
            workers = list(self._workers)
        for worker in workers:
            worker.kill()


def _visible(gpus: Sequence[int]) -> list[dict[str, str]]:
    """The environment that shows a process one GPU only."""
    if not gpus:
        raise UsageError("no GPU is named", "name them by number, for instance --gpus 0,1")
    for gpu in gpus:
        if gpu < 0:
            raise UsageError(f"there is no GPU {gpu}", "GPUs are counted from 0")
        if gpus.count(gpu) > 1:
            raise UsageError(
                f"GPU {gpu} is named twice", "name each GPU once: two workers on one would disturb each other's times"
            )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        # CUDA's own order puts the fastest first, and then 0 is not the 0 of nvidia-smi.
        return [{"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(gpu)} for gpu in gpus]
    devices = [device.strip() for device in visible.split(",") if device.strip()]
    if max(gpus) >= len(devices):
        raise UsageError(
            f"there is no GPU {max(gpus)}: CUDA_VISIBLE_DEVICES={visible} shows {len(devices)}",
            f"use 0 to {len(devices) - 1}" if devices else "unset CUDA_VISIBLE_DEVICES, or leave --gpus out",
        )
    return [{"CUDA_VISIBLE_DEVICES": devices[gpu]} for gpu in gpus]


# --- what workers say

STOPPED = Died("crash", "the worker process was stopped")

ANSWER, LOGGED = b"A", b"L"
"""First byte of a message from a worker process."""

LogLine = tuple[str, int, str]
"""Logger, level, text."""


def decoded(answer: bytes, expected: type[_Answer]) -> _Answer | Failed:
    """A worker's answer, as far as it can be made out."""
    try:
        value = pickle.loads(answer)
    except Exception as error:
        return Failed("error", f"the worker's answer can't be read: {failure_of(error).message}", None)
    if isinstance(value, expected | Failed):
        return value
    return Failed("error", f"the worker answered with {type(value).__name__}, not {expected.__name__}", None)


def log(line: LogLine) -> None:
    """Log here what a worker logged there, in the driver's format."""
    name, level, text = line
    logger = logging.getLogger(name)
    if logger.isEnabledFor(level):
        logger.log(level, "%s", text)


def oom_kills(sources: Sequence[Path] = (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events"))) -> int | None:
    """How many processes this machine or container has killed for want of memory; None where Linux doesn't say."""
    counts = []
    for source in sources:
        with contextlib.suppress(OSError):
            found = re.search(r"^oom_kill (\d+)$", source.read_text(), re.MULTILINE)
            counts += [int(found[1])] if found else []
    return sum(counts) if counts else None


def cause_of_death(status: int | None, oom_kills_before: int | None, who: str) -> Died:
    """Why a process is gone.

    Args:
        status: as :attr:`subprocess.Popen.returncode`; None: it is not even gone.
        oom_kills_before: of :func:`oom_kills`, when it was started.
        who: what to call it.
    """
    if status is None:
        return Died("crash", f"{who} hung up")
    if status >= 0:
        return Died("crash", f"{who} ended with exit status {status}")
    if -status == signal.SIGKILL:
        if oom_kills_before is not None and oom_kills_before == oom_kills():
            return Died("crash", f"{who} was killed (SIGKILL), though memory had not run out")
        return Died("out of memory", f"{who} was killed (SIGKILL), which the system does when memory runs out")
    return Died("crash", f"{who} was killed by {_signal_name(-status)}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
