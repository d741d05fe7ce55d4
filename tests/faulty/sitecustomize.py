"""What goes wrong in a process whose PYTHONPATH leads here: python loads this before anything else.

FAULTY is JSON: ``at``, a place as ``module:function`` (a module alone: on its import; none: at once), ``nth`` call
of it, counted from 1, ``fault``, one of the functions below, its ``argument``, and whether it is for a ``worker``.
"""

from __future__ import annotations

import datetime
import functools
import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PAGE = os.sysconf("SC_PAGE_SIZE")


def signal(number: int) -> None:
    """Somebody ends this process."""
    os.kill(os.getpid(), number)


def memory(_: None) -> None:
    """There is no more memory than is in use, and what was used before and given back is in use as well."""
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * _PAGE
    resource.setrlimit(resource.RLIMIT_AS, (used, used))
    for size in (1 << 20, 1 << 16):
        try:
            while True:
                _held.append(bytearray(size))
        except MemoryError:
            pass


def disk(most: int) -> None:
    """No file grows beyond so many bytes. Python ignores the signal that goes with it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def clock(step: float) -> None:
    """Whenever somebody looks at it, the wall clock has been set back and forth by so many seconds."""
    true, strftime, looks = time.time, time.strftime, iter(range(1 << 62))

    def now() -> float:
        return true() + step * (next(looks) % 2 * 2 - 1)

    class Stepping(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Stepping:
            return cls.fromtimestamp(now(), tz)

    time.time = now
    time.time_ns = lambda: int(now() * 1e9)
    time.strftime = lambda format, *when: strftime(format, *(when or (time.localtime(now()),)))
    datetime.datetime = Stepping  # type: ignore[misc]


_held: list[Any] = []


class _Finder(MetaPathFinder):
    """Changes one function of one module when that is imported, before anybody else can know it."""

    def __init__(self, at: str, nth: int, happen: Callable[[], None]) -> None:
        self.module, _, self._function = at.partition(":")
        self._left, self._happen = nth, happen

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            if not self._function:
                self._happen()
            execute(module)
            if self._function:
                self.wrap(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def wrap(self, module: ModuleType) -> None:
        *outer, name = self._function.split(".")
        owner: Any = functools.reduce(getattr, outer, module)
        whole = getattr(owner, name)

        @functools.wraps(whole)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            self._left -= 1
            if not self._left:
                self._happen()
            return whole(*arguments, **options)

        setattr(owner, name, wrapped)


_asked = json.loads(os.environ.get("FAULTY", "null"))
# Of a command and the processes that it starts, the fault is for one kind.
if _asked is not None and ("serve(" in " ".join(sys.orig_argv[:4])) == _asked["worker"]:
    _fault = functools.partial(globals()[_asked["fault"]], _asked["argument"])
    if _asked["at"]:
        _finder = _Finder(_asked["at"], _asked["nth"], _fault)
        if _finder.module in sys.modules:
            _finder.wrap(sys.modules[_finder.module])
        else:
            sys.meta_path.insert(0, _finder)
    else:
        _fault()
