"""A bench without models, whose generations go wrong on request: the config_hash says how."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import resource
import signal
import stat
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from specprof.data.prompts import Prompt
from specprof.errors import ResourceError, UsageError
from specprof.experiments.executors import Failed, Job, Ready
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round

TOY = "toy_bench:ToyBench"
FOREVER = 300
"""Seconds; longer than any test waits."""


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def job(name: str = "toy", *, num_prompts: int = 2) -> Job:
    """A job; one whose name is that of a way to go wrong goes wrong when it is prepared."""
    return Job(name, {}, tuple(Prompt(f"p{i}", "code", "x" * 3000) for i in range(num_prompts)))


class ToyBench:
    """Says in ``machine`` what its process sees."""

    def prepare(self, job: Job) -> Ready:
        if job.name in _ACTIONS:
            _ACTIONS[job.name](job.name)
        if job.name == "log":
            logging.getLogger("specprof").info("loading %s", "a model")
            logging.getLogger("elsewhere").warning("nobody wants to know")
            warnings.warn("nor this", stacklevel=1)
        machine = {
            "pid": os.getpid(),
            "process_group": os.getpgrp(),
            "arguments": sys.argv,
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "order": os.environ.get("CUDA_DEVICE_ORDER"),
            "torch": "torch" in sys.modules,
            "main": getattr(sys.modules["__main__"], "__file__", None),
            "num_prompts": len(job.prompts),
        }
        return Ready(machine, "0" * 12, {}, ("a note",), {}, {"other": Failed("load", "not here", None)})

    def generate(self, config_hash: str, prompt_id: str, repetition: int) -> tuple[Event, ...]:
        action, _, argument = config_hash.partition(":")
        if action in _ACTIONS:
            _ACTIONS[action](argument)
        if action == "wrong type":
            return 5  # type: ignore[return-value]
        if action == "unpicklable":
            return (lambda: None,)  # type: ignore[return-value]
        if action == "unreadable":
            return (_Unreadable(),)  # type: ignore[return-value]
        if action == "large":
            return events(prompt_id, repetition, num_rounds=20_000)
        return events(prompt_id, repetition)


class BrokenBench:
    """Can't be made."""

    def __init__(self) -> None:
        raise ImportError("no module named flux")


def events(prompt_id: str, repetition: int, num_rounds: int = 3) -> tuple[Event, ...]:
    """A generation that only depends on what was asked."""
    rounds = (
        Round(prompt_id, "SD-K1", repetition, i, (5,), 1, (5, i), 0.001, 0.002, 0.0, 0.0) for i in range(num_rounds)
    )
    first = Prefilled(prompt_id, "SD-K1", repetition, 4, 7, 0.1, 0.0, 0.0)
    return (first, *rounds, PromptEnded(prompt_id, "SD-K1", repetition, "length", 0))


class _Unreadable:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return _refuse, ()


def _refuse() -> None:
    if "ToyBench" not in str(sys.argv):
        raise AttributeError("the class is unknown here")


def _raise(error: BaseException) -> Callable[[str], None]:
    def action(_: str) -> None:
        raise error

    return action


def _fill_memory(_: str) -> None:
    """Allocate until the allocator refuses, well before the machine suffers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = _address_space() + 256 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (held, hard))
    try:
        hoard = []
        while True:
            hoard.append(bytearray(16 * 2**20))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _segfault(_: str) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


def _sleep_natively(_: str) -> None:
    ctypes.PyDLL(None).sleep(FOREVER)  # unlike CDLL, it keeps the interpreter's lock


def _hang_up(_: str) -> None:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                os.close(int(name))
    time.sleep(FOREVER)


def _print(text: str) -> None:
    print(text)
    os.write(1, text.encode() + b"\n")


_ACTIONS: dict[str, Callable[[str], None]] = {
    "user error": _raise(UsageError("the cell is wrong", "write another")),
    "no space": _raise(ResourceError("the disk is full", "free some space")),
    "too large": _raise(ResourceError("big needs 16.0 GB on cpu, 2.0 GB are available", "use a smaller model")),
    "memory": _raise(MemoryError()),
    "cuda": _raise(OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ...")),
    "allocator": _raise(RuntimeError("[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory")),
    "errno": _raise(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))),
    "odd": _raise(ZeroDivisionError("division\n  by zero")),
    "long": _raise(ValueError("x" * 5000)),
    "leave": _raise(SystemExit(4)),
    "fill memory": _fill_memory,
    "segfault": _segfault,
    "exit": lambda status: os._exit(int(status)),
    "signal": lambda name: os.kill(os.getpid(), signal.Signals[name]),
    "sleep": lambda seconds: time.sleep(float(seconds or FOREVER)),
    "sleep natively": _sleep_natively,
    "print": _print,
    "hang up": _hang_up,
}
