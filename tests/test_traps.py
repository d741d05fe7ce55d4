"""Mistakes seen in other measurements of speculative decoding, each as a test that a tool which makes it fails.

Time of a device that runs behind (test_known_delays.py); prefill, or a warm-up, in one arm only; drafting booked as
overhead; a first round unlike the others; texts without an end; tokens counted anew in one arm.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from typing import Any

import pytest

from paced import Clock, Log, Pace, PacedModel
from packaged import new_token
from specprof.data.prompts import Prompt
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import DraftModel
from specprof.decoding.request import Request
from specprof.decoding.sampling import Sampling
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.experiments.arms import Arms, load_arms
from specprof.experiments.config import RunConfig
from specprof.experiments.run import encode_prompts, measure, warm_up
from specprof.models.registry import get_pair
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.comparison import Comparison, compare
from specprof.profiling.events import Prefilled, Round
from specprof.profiling.metrics import GenerationResult, fold
from tiny_models import tiny_llama, tiny_tokenizer

PROMPTS = [Prompt(f"p{i}", "custom", text) for i, text in enumerate(("def f(x):", "Once upon a time, there was"))]


def compared(monkeypatch: pytest.MonkeyPatch, target_pace: Pace, draft_pace: Pace) -> Comparison:
    """A target and its own copy as its draft, K = 3, on a clock that only their passes move."""
    clock, log = Clock(), Log()
    clock.install(monkeypatch)
    options: dict[str, Any] = {"clock": clock, "log": log, "forward": "own", "measure_linear": False}
    target = PacedModel(tiny_llama(0), name="target", pace=target_pace, **options)
    draft = PacedModel(tiny_llama(0), name="draft", pace=draft_pace, **options)
    results: list[GenerationResult] = []
    for prompt in range(5):
        # 1 from the prefill, and full rounds of 4
        request = Request((5 + prompt, 6, 7), 1 + 4 * 5, prompt_id=f"p{prompt}")
        for decoder in (AutoregressiveDecoder(target), SpeculativeDecoder(target, DraftModel(draft), 3)):
            results += fold(decoder.events(request))
    return compare(results, temperature=0)


def test_prefill_is_in_both_arms_or_in_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefill a thousand times as long changes no decode speed, and both end-to-end times."""
    for prefill in (0.0, 1000.0):
        c = compared(monkeypatch, Pace(1.0, prefill=prefill), Pace(0.25, prefill=0.5))
        assert c.speedup_decode is not None and c.speedup_e2e is not None and c.baseline and c.speculative
        assert c.speedup_decode.value == pytest.approx(4 / (1 + 3 * 0.25))
        assert c.baseline.tokens_per_second == pytest.approx(1)
        assert c.baseline.ttft_seconds == prefill and c.speculative.ttft_seconds == prefill + 0.5
        assert c.speedup_e2e.value == pytest.approx((prefill + 20) / (prefill + 0.5 + 5 * 1.75))


def test_all_drafting_is_drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    """After full acceptance the draft has two tokens to take in: that pass is no overhead, and no verification."""
    c = compared(monkeypatch, Pace(1.0), Pace(0.25, more=0.125))
    assert c.speculative is not None and c.acceptance is not None and c.acceptance.draft_acceptance_rate == 1
    phases = c.speculative.phases
    assert phases.draft.seconds == 5 * (5 * 3 * 0.25 + 4 * 0.125)  # all rounds but the first catch up
    assert (phases.verify.seconds, phases.sample.seconds, phases.overhead.seconds) == (5 * 5 * 1.0, 0, 0)


def test_the_first_round_is_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """It drafts, and verifies what it drafted by a pass of its own: nothing comes from logits of the prefill."""
    clock, log = Clock(), Log()
    clock.install(monkeypatch)
    options: dict[str, Any] = {"clock": clock, "log": log, "pace": Pace(1.0), "forward": "own", "measure_linear": False}
    target = PacedModel(tiny_llama(0), name="target", **options)
    draft = PacedModel(tiny_llama(1), name="draft", **options)
    decoder = SpeculativeDecoder(target, DraftModel(draft), 4)
    for event in decoder.events(Request((5, 6, 7), 30)):
        passes = [(one.width, one.begins) for one in log.taken() if one.model == "target"]
        if isinstance(event, Prefilled):
            assert passes == [(3, 0)]
            cached = 3
        elif isinstance(event, Round):
            assert passes == [(len(event.draft_tokens) + 1, cached)], event.index
            assert event.verify_seconds == 1
            cached += len(event.emitted_tokens)


@functools.cache
def loaded(config: RunConfig) -> Arms:
    return load_arms(config)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"k": "auto", "k_max": 4},
        {"temperature": 0.8},
        {"drafter": "ngram"},
        {"drafter": "layerskip", "draft_layers": 1},
    ],
    ids=str,
)
def test_every_shape_of_every_arm_is_warm_before_anything_is_measured(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"deterministic": changes.get("k") != "auto", **changes}
    config = dataclasses.replace(
        RunConfig(get_pair("tiny_dev"), k=3, max_new_tokens=24, repetitions=2, device="cpu"),
        **settings,
    )
    arms = loaded(config)
    prompts = encode_prompts(config, arms, PROMPTS)
    seen: dict[str, set[tuple[str, int]]] = defaultdict(set)
    stage = "warm-up"
    for name in ("extend", "extend_greedily", "extend_early"):
        method = getattr(ModelWrapper, name)

        def spied(self: ModelWrapper, ids: Any, cache: Any, *rest: Any, name: str = name, method: Any = method) -> Any:
            # By the first pass that finds something in the cache; a prompt is as wide as it is.
            if cache.length:
                seen[f"{stage} {name}"].add((self.name, ids.shape[0]))
            elif stage == "warm-up":
                seen[f"{stage} alone"].add((self.name, ids.shape[0]))
            return method(self, ids, cache, *rest)

        monkeypatch.setattr(ModelWrapper, name, spied)
    warm_up(config, arms, prompts)
    decoders = {arms.baseline.label, arms.speculative.label}
    stage = "measured"
    events = list(measure(config, arms, prompts, "run"))
    assert {event.decoder for event in events if isinstance(event, Round)} == decoders
    for name in ("extend", "extend_greedily", "extend_early"):
        cold = seen[f"measured {name}"] - seen[f"warm-up {name}"] - seen["warm-up alone"]
        assert not cold, (name, cold)
    assert seen["measured extend"], "nothing was looked at"


def test_texts_end_where_they_end_in_both_arms() -> None:
    target, draft = (ModelWrapper(tiny_llama(seed), forward="own", measure_linear=False) for seed in (0, 0))
    plain, speculative = AutoregressiveDecoder(target), SpeculativeDecoder(target, DraftModel(draft), 4)
    (whole,) = fold(plain.events(Request((5, 6, 7), 60)))
    end = new_token(whole.generated_ids, after=10)
    place = whole.generated_ids.index(end) + 1
    request = Request((5, 6, 7), 60, stop_ids=frozenset({end}))
    for decoder in (plain, speculative):
        (result,) = fold(decoder.events(request))
        assert (result.finish_reason, result.generated_ids) == ("stop", whole.generated_ids[:place])
        assert result.num_decode_tokens == place - 1, "what was drafted behind the end is nobody's token"


def test_tokens_are_counted_as_they_were_made_in_both_arms() -> None:
    """Not by reading the text again, which makes fewer tokens of the same letters."""
    target, draft = (ModelWrapper(tiny_llama(seed), forward="own", measure_linear=False) for seed in (0, 1))
    request = Request((5, 6, 7), 40, Sampling(3.0), seed=1, prompt_id="p")
    results = [
        result
        for decoder in (AutoregressiveDecoder(target), SpeculativeDecoder(target, DraftModel(draft), 4))
        for result in fold(decoder.events(request))
    ]
    tokenizer = tiny_tokenizer()
    for result in results:
        assert len(tokenizer.encode(tokenizer.decode(result.generated_ids))) != 40
    c = compare(results, temperature=3.0)
    assert c.baseline is not None and c.speculative is not None
    for arm, result in zip((c.baseline, c.speculative), results, strict=True):
        assert arm.num_tokens == 40
        assert arm.tokens_per_second == pytest.approx(39 / result.decode_seconds)
        assert arm.tokens_per_second_e2e == pytest.approx(40 / result.total_time)
