"""Timers against delays that are known: each pass of a model is in its own phase, whole, and in no other."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from paced import Clock, Device, Log, Pace, PacedModel, Pass, Sleeper
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.draft_length import AdaptiveK
from specprof.decoding.drafters import Drafter, DraftModel, LayerSkip, NGramLookup
from specprof.decoding.judge import Judge
from specprof.decoding.request import Request
from specprof.decoding.sampling import Sampling
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.profiling.events import Event, Prefilled, Round
from specprof.profiling.metrics import fold
from specprof.profiling.timer import RoundClock
from tiny_models import VOCAB_SIZE, tiny_llama

PROMPT = (5, 6, 7, 8, 9, 5, 6, 7)
TARGET = Pace(step=2.0, more=0.25, prefill=16.0)
DRAFT = Pace(step=0.5, prefill=4.0)
PHASE_OF = {"draft": "draft", "verify": "target"}
"""Phase to the model whose passes it is of."""
DECIDE, READ, FIRST = 0.0625, 0.03125, 0.125


def models(
    clock: Clock | Sleeper, target: Pace, draft: Pace, *, same: bool = False
) -> tuple[PacedModel, PacedModel, Log]:
    """A target and a draft, which are one model if every draft is to be accepted."""
    log = Log()
    options: dict[str, Any] = {"clock": clock, "log": log, "forward": "own", "measure_linear": False}
    return (
        PacedModel(tiny_llama(0), name="target", pace=target, **options),
        PacedModel(tiny_llama(0 if same else 1), name="draft", pace=draft, **options),
        log,
    )


def told(decoder: Any, request: Request, log: Log) -> Iterator[tuple[Event, list[Pass]]]:
    """Each event, and the passes that were made for it."""
    log.taken()
    for event in decoder.events(request):
        yield event, log.taken()


def seconds(passes: list[Pass], model: str) -> float:
    return sum(one.seconds for one in passes if one.model == model)


def drafter_of(kind: str, target: PacedModel, draft: PacedModel) -> Drafter:
    match kind:
        case "lookup":
            return NGramLookup(VOCAB_SIZE, target.device)
        case "layer skip":
            return LayerSkip(target, 1)
        case _:
            return DraftModel(draft)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("k", [1, 4, "auto"])
@pytest.mark.parametrize("kind", ["model", "perfect", "lookup"])
def test_on_a_clock_of_their_own_all_phases_are_exact(
    kind: str, k: int | str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch-up passes after full acceptance are drafting like any other, and no round is without its verification."""
    clock = Clock()
    clock.install(monkeypatch)
    for name, cost in (("decide", DECIDE), ("read", READ), ("first_token", FIRST)):
        method = getattr(Judge, name)
        monkeypatch.setattr(
            Judge, name, lambda *given, method=method, cost=cost: (clock.spend(cost), method(*given))[1]
        )
    target, draft, log = models(clock, TARGET, DRAFT, same=kind == "perfect")
    length = AdaptiveK(4) if k == "auto" else int(k)
    decoder = SpeculativeDecoder(target, drafter_of(kind, target, draft), length)
    request = Request(PROMPT, 40, Sampling(temperature), seed=3)
    drafts = kind != "lookup"
    caught_up, told_seconds = 0, 0.0
    for event, passes in told(decoder, request, log):
        of_target = [one for one in passes if one.model == "target"]
        of_draft = [one for one in passes if one.model == "draft"]
        if isinstance(event, Prefilled):
            assert (event.target_seconds, event.draft_seconds) == (TARGET.prefill, DRAFT.prefill if drafts else 0)
            assert event.overhead_seconds == FIRST
        elif isinstance(event, Round):
            assert event.draft_seconds == seconds(passes, "draft") == len(event.draft_tokens) * DRAFT.step * drafts
            # One pass of the target over what was drafted and one more, the first round as any other.
            assert [one.width for one in of_target] == [len(event.draft_tokens) + 1]
            assert event.verify_seconds == TARGET.seconds(len(event.draft_tokens) + 1, 1)
            assert (event.sample_seconds, event.overhead_seconds) == (DECIDE, READ)
            caught_up += sum(one.width > 1 for one in of_draft)
        told_seconds += getattr(event, "seconds", 0.0)
    if kind == "perfect":
        assert caught_up, "nothing was ever accepted in full"
    assert told_seconds == clock.now - 1000, "time passed that no event tells of"


def test_plain_decoding_on_a_clock_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    clock.install(monkeypatch)
    target, _, log = models(clock, TARGET, DRAFT)
    decoder = AutoregressiveDecoder(target)
    for event, passes in told(decoder, Request(PROMPT, 10), log):
        if isinstance(event, Prefilled):
            assert (event.target_seconds, event.draft_seconds, event.overhead_seconds) == (TARGET.prefill, 0, 0)
        elif isinstance(event, Round):
            assert [one.width for one in passes] == [1]
            spent = (event.draft_seconds, event.verify_seconds, event.sample_seconds, event.overhead_seconds)
            assert spent == (0, TARGET.step, 0, 0)
    clock.now = 1000.0
    (result,) = fold(decoder.events(Request(PROMPT, 10)))
    assert (result.time_to_first_token, result.decode_seconds) == (TARGET.prefill, 9 * TARGET.step)
    assert result.total_time == clock.now - 1000


def test_layers_that_draft_are_drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's first layers are the target's own, and their passes are the drafter's."""
    clock = Clock()
    clock.install(monkeypatch)
    target, _, log = models(clock, TARGET, DRAFT)
    for event, _ in told(SpeculativeDecoder(target, LayerSkip(target, 1), 3), Request(PROMPT, 20), log):
        if isinstance(event, Round):
            assert event.draft_seconds == len(event.draft_tokens) * TARGET.step
            assert event.verify_seconds == TARGET.seconds(len(event.draft_tokens) + 1, 1)


def test_phases_are_as_long_as_what_was_slept_in_them() -> None:
    """By the clock of this machine. A phase is never shorter than the calls in it; what it is longer by is little, but
    for somebody else's turn on the processor now and then, which a median bears."""
    target, draft, log = models(Sleeper(), Pace(0.006, prefill=0.012), Pace(0.003, prefill=0.009), same=True)
    decoder = SpeculativeDecoder(target, DraftModel(draft), 2)
    list(decoder.events(Request(PROMPT, 8)))  # what happens but once
    beyond: dict[str, list[float]] = {"draft": [], "verify": [], "sample": [], "overhead": []}
    log.taken()
    for event in decoder.events(Request(PROMPT, 40)):
        calls = {phase: sum(s for name, s in log.calls if name == model) for phase, model in PHASE_OF.items()}
        slept = {phase: seconds(log.passes, model) for phase, model in PHASE_OF.items()}
        log.taken()
        if isinstance(event, Prefilled):
            assert event.target_seconds >= calls["verify"] > slept["verify"] >= 0.012
            assert event.draft_seconds >= calls["draft"] > slept["draft"] >= 0.009
        elif isinstance(event, Round):
            for phase, rest in beyond.items():
                spent = getattr(event, f"{phase}_seconds")
                assert spent >= calls.get(phase, 0.0) >= slept.get(phase, 0.0)
                rest.append(spent - calls.get(phase, 0.0))
    assert len(beyond["draft"]) >= 12
    for phase, rest in beyond.items():
        # Half of the shortest sleep: any of them in the wrong phase would be more than that.
        assert statistics.median(rest) < 0.0015, (phase, rest)


def test_on_a_device_that_runs_behind_phases_are_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap: the host's clock around a launch reads the launch, and whoever waits is charged for all before."""
    host = Clock()
    host.install(monkeypatch)
    device = Device(host)
    device.install(monkeypatch)
    clock = RoundClock(torch.device("cuda"))
    for _ in range(3):
        clock.start()
        began = host.now
        for _ in range(4):
            device.launch(0.002)
        clock.mark()
        device.launch(0.010)
        clock.mark()
        device.launch(0.001)
        clock.mark()
        assert host.now - began < 1e-4, "the host is far ahead"
        device.read()
        phases, rest = clock.finish()
        assert phases == pytest.approx([0.008, 0.010, 0.001], abs=2e-5)
        assert rest == pytest.approx(0, abs=2e-5)
        assert sum(phases) + rest == pytest.approx(host.now - began)


@pytest.mark.gpu
def test_on_a_gpu_phases_are_as_long_as_what_it_was_kept_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on a real one: spinning kernels, timed by events around each of them alone."""
    device, cycles = torch.device("cuda"), {"draft": 4_000_000, "verify": 12_000_000, "sample": 1_000_000}

    def busy(number: int) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        torch.cuda._sleep(number)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    alone = {phase: statistics.median(busy(number) for _ in range(5)) for phase, number in cycles.items()}
    clock = RoundClock(device)
    found: dict[str, list[float]] = {phase: [] for phase in cycles}
    for _ in range(7):
        clock.start()
        for number in cycles.values():
            torch.cuda._sleep(number)
            clock.mark()
        torch.cuda.synchronize()
        for phase, spent in zip(cycles, clock.finish()[0], strict=True):
            found[phase].append(spent)
    for phase, all_spent in found.items():
        assert statistics.median(all_spent) == pytest.approx(alone[phase], rel=0.1), phase
