"""The clock: what it measures without a GPU, by a clock of our own, and with one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from specprof.profiling import timer
from specprof.profiling.timer import CUDATimer, CUDATimerCollection, RoundClock, cuda_sync_time

CPU = torch.device("cpu")


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_ms(self, milliseconds: float) -> None:
        self.now += milliseconds / 1e3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The time is what the test says; there is no GPU, whatever this machine has."""
    clock = FakeClock()
    monkeypatch.setattr(timer, "perf_counter", clock)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return clock


class TestSyncTime:
    def test_is_the_hosts_clock(self, clock: FakeClock) -> None:
        assert cuda_sync_time() == 100.0
        clock.pass_ms(250)
        assert cuda_sync_time("cpu") == cuda_sync_time(CPU) == 100.25

    def test_never_goes_back(self) -> None:
        times = [cuda_sync_time("cpu") for _ in range(100)]
        assert times == sorted(times)

    @pytest.mark.parametrize(("device", "waits"), [(None, True), ("cuda", True), ("cuda:0", True), ("cpu", False)])
    def test_waits_for_the_gpu_only(
        self, device: str | None, waits: bool, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def synchronize(device: object = None) -> None:
            clock.pass_ms(7)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        # The clock is read after the wait.
        assert cuda_sync_time(device) == pytest.approx(100.007 if waits else 100.0)


class TestTimer:
    def test_a_span(self, clock: FakeClock) -> None:
        with CUDATimer() as span:
            clock.pass_ms(12.5)
        clock.pass_ms(1000)
        assert span.elapsed_ms == pytest.approx(12.5)

    def test_start_and_stop(self, clock: FakeClock) -> None:
        span = CUDATimer(CPU)
        span.start()
        clock.pass_ms(3)
        span.stop()
        assert span.elapsed_ms == pytest.approx(3)

    def test_a_span_that_failed_is_timed_too(self, clock: FakeClock) -> None:
        span = CUDATimer()

        def fail() -> None:
            with span:
                clock.pass_ms(5)
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert span.elapsed_ms == pytest.approx(5)

    def test_can_be_used_again(self, clock: FakeClock) -> None:
        span = CUDATimer()
        for milliseconds in (4, 9):
            with span:
                clock.pass_ms(milliseconds)
            assert span.elapsed_ms == pytest.approx(milliseconds)

    def test_starting_again_forgets_the_end(self, clock: FakeClock) -> None:
        with CUDATimer() as span:
            clock.pass_ms(1)
        span.start()
        with pytest.raises(RuntimeError, match="before the span has ended"):
            _ = span.elapsed_ms

    def test_unfinished(self, clock: FakeClock) -> None:
        span = CUDATimer()
        with pytest.raises(RuntimeError, match="before the span has ended"):
            _ = span.elapsed_ms
        with pytest.raises(RuntimeError, match=r"stop\(\) before start\(\)"):
            span.stop()
        span.start()
        with pytest.raises(RuntimeError, match="before the span has ended"):
            _ = span.elapsed_ms

    def test_no_events_without_a_gpu(self, clock: FakeClock) -> None:
        assert not CUDATimer().on_cuda
        assert not CUDATimer("cuda").on_cuda

    def test_a_cpu_span_on_a_machine_with_a_gpu(self, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        with CUDATimer("cpu") as span:
            clock.pass_ms(2)
        assert span.elapsed_ms == pytest.approx(2)

    def test_real_time(self) -> None:
        with CUDATimer("cpu") as span:
            time.sleep(0.02)
        assert 19 < span.elapsed_ms < 2000


class TestCollection:
    def test_summary_and_text(self, clock: FakeClock) -> None:
        timers = CUDATimerCollection()
        for phase, milliseconds in (("draft", 1.243), ("verify", 4.817)):
            timers.start(phase)
            clock.pass_ms(milliseconds)
            timers.stop(phase)
        assert timers.summary() == {"draft": pytest.approx(1.243), "verify": pytest.approx(4.817)}
        assert str(timers) == "CUDATimerCollection:\n  draft  :    1.243 ms\n  verify :    4.817 ms"
        assert repr(timers) == str(timers)

    def test_a_phase_adds_up(self, clock: FakeClock) -> None:
        timers = CUDATimerCollection(CPU)
        for milliseconds in (1, 2, 3):
            timers.start("sample")
            clock.pass_ms(milliseconds)
            timers.stop("sample")
            clock.pass_ms(50)
        assert timers.summary() == {"sample": pytest.approx(6)}

    def test_phases_may_overlap(self, clock: FakeClock) -> None:
        timers = CUDATimerCollection()
        timers.start("round")
        clock.pass_ms(1)
        timers.start("draft")
        clock.pass_ms(2)
        timers.stop("draft")
        clock.pass_ms(4)
        timers.stop("round")
        assert timers.summary() == {"draft": pytest.approx(2), "round": pytest.approx(7)}

    def test_a_running_phase_is_not_in_the_summary(self, clock: FakeClock) -> None:
        timers = CUDATimerCollection()
        timers.start("draft")
        assert timers.summary() == {}
        assert str(timers) == "CUDATimerCollection:"

    def test_misuse(self, clock: FakeClock) -> None:
        timers = CUDATimerCollection()
        with pytest.raises(RuntimeError, match="'draft' was not started"):
            timers.stop("draft")
        timers.start("draft")
        with pytest.raises(RuntimeError, match="'draft' is already running"):
            timers.start("draft")
        timers.stop("draft")
        with pytest.raises(RuntimeError, match="'draft' was not started"):
            timers.stop("draft")

    def test_reset(self, clock: FakeClock) -> None:
        timers = CUDATimerCollection()
        timers.start("draft")
        timers.stop("draft")
        timers.start("verify")
        timers.reset()
        assert timers.summary() == {}
        timers.start("verify")  # no longer running


class TestRoundClock:
    def test_phases_and_the_rest(self, clock: FakeClock) -> None:
        round_clock = RoundClock(CPU)
        for _ in range(2):  # one clock serves every round
            round_clock.start()
            for milliseconds in (10, 20, 5):
                clock.pass_ms(milliseconds)
                round_clock.mark()
            clock.pass_ms(3)
            phases, rest = round_clock.finish()
            assert phases == pytest.approx([0.010, 0.020, 0.005])
            assert rest == pytest.approx(0.003)
            clock.pass_ms(500)  # between rounds, in nobody's time

    @pytest.mark.parametrize("marks", [0, 1, 2, 3])
    def test_any_number_of_phases(self, clock: FakeClock, marks: int) -> None:
        round_clock = RoundClock(CPU)
        round_clock.start()
        for _ in range(marks):
            clock.pass_ms(2)
            round_clock.mark()
        clock.pass_ms(1)
        phases, rest = round_clock.finish()
        assert phases == pytest.approx([0.002] * marks)
        assert rest == pytest.approx(0.001)

    def test_phases_and_rest_are_the_wall_time(self) -> None:
        round_clock = RoundClock(CPU)
        begin = time.perf_counter()
        round_clock.start()
        for _ in range(3):
            time.sleep(0.002)
            round_clock.mark()
        phases, rest = round_clock.finish()
        wall = time.perf_counter() - begin
        assert all(phase >= 0.002 for phase in phases)
        assert 0 <= wall - (sum(phases) + rest) < 0.05


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_events_are_of_the_devices_stream(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the current device's, which may be idle."""
    streams: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str | None = None) -> None:
            streams.append(stream or "of the current device")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"of {device}")
    clock = RoundClock(torch.device(device))
    clock.start()
    clock.mark()
    with CUDATimer(device):
        pass
    assert streams == [f"of {device}"] * 4


# --- on a GPU


def busy(milliseconds: float) -> None:
    """Keep the current stream busy; returns at once."""
    sleep: Any = torch.cuda._sleep
    sleep(int(milliseconds * 1e6))  # at least this long below 1 GHz, less above


def median_of(measure: Callable[[], float], repeats: int = 5) -> float:
    return sorted(measure() for _ in range(repeats))[repeats // 2]


@pytest.mark.gpu
class TestOnCuda:
    def test_a_launch_is_not_the_work(self) -> None:
        torch.cuda.synchronize()
        host = time.perf_counter()
        with CUDATimer() as span:
            busy(50)
        launched = (time.perf_counter() - host) * 1e3
        assert span.on_cuda
        assert span.elapsed_ms > 10 > launched  # elapsed_ms waited, the with block did not

    def test_sync_time_waits(self) -> None:
        begin = cuda_sync_time()
        with CUDATimer() as span:
            busy(50)
        assert (cuda_sync_time() - begin) * 1e3 >= span.elapsed_ms > 10

    def test_events_agree_with_the_host(self) -> None:
        def difference() -> float:
            begin = cuda_sync_time()
            with CUDATimer("cuda") as span:
                busy(50)
            host = (cuda_sync_time() - begin) * 1e3
            return abs(host - span.elapsed_ms) / host

        difference()
        assert median_of(difference) < 0.1

    def test_an_empty_span_is_short(self) -> None:
        def empty() -> float:
            with CUDATimer() as span:
                pass
            return span.elapsed_ms

        empty()
        assert 0 <= median_of(empty) < 1

    def test_cpu_spans_do_not_wait(self) -> None:
        torch.cuda.synchronize()
        with CUDATimer("cpu") as span:
            busy(50)
        assert not span.on_cuda
        assert span.elapsed_ms < 10
        torch.cuda.synchronize()

    def test_collection(self) -> None:
        timers = CUDATimerCollection("cuda")
        for _ in range(2):
            timers.start("long")
            busy(40)
            timers.stop("long")
        timers.start("short")
        busy(10)
        timers.stop("short")
        summary = timers.summary()
        assert list(summary) == ["long", "short"]
        assert summary["long"] == pytest.approx(8 * summary["short"], rel=0.2)

    def test_round_clock(self) -> None:
        device = torch.device("cuda")
        clock = RoundClock(device)
        for _ in range(2):
            clock.start()
            for milliseconds in (20, 40, 10):
                busy(milliseconds)
                clock.mark()
            torch.cuda.synchronize()  # the read of the round's tokens
            (draft, verify, sample), rest = clock.finish()
        assert verify == pytest.approx(2 * draft, rel=0.2)
        assert draft == pytest.approx(2 * sample, rel=0.2)
        assert 0 <= rest < 0.01

    def test_round_clock_does_not_wait(self) -> None:
        clock = RoundClock(torch.device("cuda"))
        torch.cuda.synchronize()
        begin = time.perf_counter()
        clock.start()
        for _ in range(3):
            busy(30)
            clock.mark()
        queued = time.perf_counter() - begin
        torch.cuda.synchronize()
        phases, _ = clock.finish()
        assert queued < sum(phases) / 3
