"""Signals that end a command the way Ctrl-C does: what it holds is put away, and it says what is kept."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class EndedBySignals:
    """As a context, has SIGTERM and SIGHUP raise KeyboardInterrupt, unless they are ignored (``nohup``) or somebody
    else's."""

    def __init__(self) -> None:
        self.code: int | None = None
        """The exit code, once one has come."""
        self._ours: list[int] = []

    def __enter__(self) -> EndedBySignals:
        if threading.current_thread() is threading.main_thread():
            self._ours = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
            self._handle(self._end)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._handle(signal.SIG_DFL)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._handle(signal.SIG_IGN)  # once is enough: a second one would only disturb the tidying up
        self.code = 128 + number
        raise KeyboardInterrupt

    def _handle(self, handler: Any) -> None:
        for number in self._ours:
            signal.signal(number, handler)
