"""Models whose passes take a known time: on a clock of their own, exactly; or asleep, as measured around the sleep."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from specprof.models.wrapper import ModelWrapper
from specprof.profiling import timer


class Clock:
    """A clock that stands still but for what is spent on it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> float:
        self.now += seconds
        return seconds

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make it what everything is timed by."""
        monkeypatch.setattr(timer, "perf_counter", self)


class Sleeper:
    """Really waits; what counts is how long it was, by the kernel's steady clock."""

    def spend(self, seconds: float) -> float:
        begin = time.clock_gettime(time.CLOCK_MONOTONIC)
        time.sleep(seconds)
        return time.clock_gettime(time.CLOCK_MONOTONIC) - begin


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass that was asked for."""

    model: str
    width: int
    """Tokens taken in."""
    begins: int
    """Tokens in the cache before it."""
    seconds: float


@dataclass(slots=True)
class Log:
    passes: list[Pass] = field(default_factory=list)
    calls: list[tuple[str, float]] = field(default_factory=list)
    """Model, and seconds from its being called to its answer, by the kernel's steady clock."""

    def taken(self) -> list[Pass]:
        """The passes since the last time."""
        taken, self.passes, self.calls = self.passes, [], []
        return taken

    @contextmanager
    def called(self, model: str) -> Iterator[None]:
        begin = time.clock_gettime(time.CLOCK_MONOTONIC)
        yield
        self.calls.append((model, time.clock_gettime(time.CLOCK_MONOTONIC) - begin))


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of a pass."""

    step: float
    more: float = 0.0
    """For each token after the first."""
    prefill: float = 0.0
    """Into an empty cache, instead."""

    def seconds(self, width: int, begins: int) -> float:
        return self.step + (width - 1) * self.more if begins else self.prefill


class PacedModel(ModelWrapper):
    """A real model that takes so much longer for each pass."""

    def __init__(self, *arguments: Any, pace: Pace, clock: Clock | Sleeper, log: Log, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.pace, self.clock, self.log = pace, clock, log

    def extend(self, ids: Tensor, cache: Any, *options: Any) -> Tensor:
        with self.log.called(self.name):
            self._spend(ids.shape[0], cache.length)
            return super().extend(ids, cache, *options)

    def extend_early(self, ids: Tensor, cache: Any, depth: int) -> tuple[Tensor, Tensor]:
        with self.log.called(self.name):
            self._spend(ids.shape[0], cache.length)
            return super().extend_early(ids, cache, depth)

    def extend_greedily(self, ids: Tensor, cache: Any, steps: int) -> Any:
        with self.log.called(self.name):
            for index in range(steps):
                self._spend(1 if index else ids.shape[0], cache.length + index)
            return super().extend_greedily(ids, cache, steps)

    def _spend(self, width: int, begins: int) -> None:
        seconds = self.clock.spend(self.pace.seconds(width, begins))
        self.log.passes.append(Pass(self.name, width, begins, seconds))


class Device:
    """A GPU as far as clocks can tell: what is launched takes its time there, while the host goes on at once."""

    def __init__(self, host: Clock) -> None:
        self.host, self.free_at = host, host.now

    def launch(self, seconds: float) -> None:
        self.host.spend(1e-6)
        self.free_at = max(self.free_at, self.host.now) + seconds

    def read(self) -> None:
        """Wait for all that was launched."""
        self.host.now = max(self.host.now, self.free_at)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.reached_at = -1.0

            def record(self, stream: object = None) -> None:
                self.reached_at = max(device.free_at, device.host.now)

            def elapsed_time(self, end: Event) -> float:
                return (end.reached_at - self.reached_at) * 1e3

        def no_wait(*_: object) -> None:
            raise AssertionError("a round must not wait for the device but where it reads its tokens")

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: None)
        monkeypatch.setattr(torch.cuda, "synchronize", no_wait)
