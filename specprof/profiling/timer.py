"""The only clock: CUDA events on a GPU, ``time.perf_counter`` elsewhere.

CUDA runs behind the host, so reading the host's clock around a launch times the
launch. Events are recorded in the stream and read after the fact, which costs no
synchronisation where the loop has none.
"""

from __future__ import annotations

import itertools
from time import perf_counter
from types import TracebackType

import torch


def cuda_sync_time(device: torch.device | str | None = None) -> float:
    """Seconds on the host's clock, after everything queued on the GPU has finished (CPU: the clock alone)."""
    if torch.cuda.is_available() and (device is None or torch.device(device).type == "cuda"):
        torch.cuda.synchronize(device)
    return perf_counter()


class CUDATimer:
    """Times one span: ``with CUDATimer() as t: ...`` and then ``t.elapsed_ms``.

    On a GPU the span is between two events of the device's current stream; ``elapsed_ms``
    waits for the second. Without CUDA (or with ``device="cpu"``) it is host time.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.on_cuda = torch.cuda.is_available() and (device is None or torch.device(device).type == "cuda")
        self._device = device
        self._start: torch.cuda.Event | float | None = None
        self._end: torch.cuda.Event | float | None = None

    def start(self) -> None:
        self._start, self._end = self._now(), None

    def stop(self) -> None:
        if self._start is None:
            raise RuntimeError("CUDATimer.stop() before start()")
        self._end = self._now()

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds between start and stop.

        Raises:
            RuntimeError: the span has not ended.
        """
        if self._start is None or self._end is None:
            raise RuntimeError("CUDATimer.elapsed_ms before the span has ended")
        if isinstance(self._start, float) or isinstance(self._end, float):
            assert isinstance(self._start, float) and isinstance(self._end, float)
            return (self._end - self._start) * 1e3
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end))

    def _now(self) -> torch.cuda.Event | float:
        if not self.on_cuda:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def __enter__(self) -> CUDATimer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


class CUDATimerCollection:
    """Named phases; a phase timed several times adds up."""

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = device
        self._spans: dict[str, list[CUDATimer]] = {}
        self._running: dict[str, CUDATimer] = {}

    def start(self, phase: str) -> None:
        if phase in self._running:
            raise RuntimeError(f"phase {phase!r} is already running")
        timer = self._running[phase] = CUDATimer(self.device)
        timer.start()

    def stop(self, phase: str) -> None:
        if phase not in self._running:
            raise RuntimeError(f"phase {phase!r} was not started")
        timer = self._running.pop(phase)
        timer.stop()
        self._spans.setdefault(phase, []).append(timer)

    def summary(self) -> dict[str, float]:
        """Milliseconds of each finished phase, in order of first use."""
        return {phase: sum(timer.elapsed_ms for timer in timers) for phase, timers in self._spans.items()}

    def reset(self) -> None:
        self._spans.clear()
        self._running.clear()

    def __str__(self) -> str:
        phases = self.summary()
        width = max(map(len, phases), default=0)
        return "\n".join(["CUDATimerCollection:", *(f"  {p:<{width}} : {ms:8.3f} ms" for p, ms in phases.items())])

    __repr__ = __str__


class RoundClock:
    """Splits a round into phases without synchronising inside it.

    ``start``, one ``mark`` at the end of each phase, then ``finish`` once the round's
    tokens have been read (that read is the round's one synchronisation, so every event
    before it is complete).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] | None = None
        if device.type == "cuda":
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        self._marks: list[float] = []
        self._started = 0.0

    def start(self) -> None:
        self._started = now = perf_counter()
        self._marks = [now]
        if self._events is not None:
            self._events[0].record(torch.cuda.current_stream(self._device))

    def mark(self) -> None:
        self._marks.append(perf_counter())
        if self._events is not None:
            self._events[len(self._marks) - 1].record(torch.cuda.current_stream(self._device))

    def finish(self) -> tuple[list[float], float]:
        """Seconds of each marked phase, and of the rest of the wall time since ``start``."""
        wall = perf_counter() - self._started
        marks, events = self._marks, self._events
        if events is None:
            phases = [end - begin for begin, end in itertools.pairwise(marks)]
        else:
            phases = [events[i].elapsed_time(events[i + 1]) / 1e3 for i in range(len(marks) - 1)]
        return phases, max(0.0, wall - sum(phases))
