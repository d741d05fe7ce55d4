"""An experiment is fair (arms take turns), warm before it counts, and tells everything as events."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import pytest

from specprof.data.prompts import Prompt
from specprof.errors import IncompatiblePairError, UnavailableError, UsageError
from specprof.experiments.arms import Arms, load_arms
from specprof.experiments.config import RunConfig
from specprof.experiments.run import EncodedPrompt, encode_prompts, measure, warm_up, warm_up_steps
from specprof.models.registry import get_pair
from specprof.profiling.events import SCHEMA, Event, Prefilled, PromptEnded, Round, RunEnded, RunStarted
from specprof.profiling.metrics import fold

PROMPTS = [Prompt(f"p{i}", "custom", text) for i, text in enumerate(("def f(x):", "Once upon a", "The quick brown"))]


def quick(**changes: Any) -> RunConfig:
    return dataclasses.replace(
        RunConfig(get_pair("tiny_dev"), k=2, max_new_tokens=6, repetitions=2, deterministic=True, device="cpu"),
        **changes,
    )


@functools.cache
def loaded() -> Arms:
    return load_arms(quick())


def encoded(config: RunConfig) -> list[EncodedPrompt]:
    return encode_prompts(config, loaded(), PROMPTS)


def measured(config: RunConfig) -> list[Event]:
    return list(measure(config, loaded(), encoded(config), "the-run"))


def generations(events: list[Event]) -> list[tuple[int, str, str]]:
    return [(e.repetition, e.prompt_id, e.decoder) for e in events if isinstance(e, Prefilled)]


def test_arms_alternate_and_swap_places() -> None:
    order = generations(measured(quick()))
    assert order == [
        (0, "p0", "AR"), (0, "p0", "SD-K2"), (0, "p1", "SD-K2"), (0, "p1", "AR"), (0, "p2", "AR"), (0, "p2", "SD-K2"),
        (1, "p0", "SD-K2"), (1, "p0", "AR"), (1, "p1", "AR"), (1, "p1", "SD-K2"), (1, "p2", "SD-K2"), (1, "p2", "AR"),
    ]  # fmt: skip
    # A machine that slows down steadily then does it to both: their mean positions agree.
    for prompt in PROMPTS:
        places = {arm: [i for i, g in enumerate(order) if g[1:] == (prompt.prompt_id, arm)] for arm in ("AR", "SD-K2")}
        assert sum(places["AR"]) == sum(places["SD-K2"])


def test_without_a_baseline_only_the_speculative_arm_runs() -> None:
    assert generations(measured(quick(baseline=False, repetitions=1))) == [(0, f"p{i}", "SD-K2") for i in range(3)]


def test_a_run_begins_with_what_was_asked_and_ends_with_the_peak() -> None:
    config = quick()
    events = measured(config)
    started, ended = events[0], events[-1]
    assert isinstance(started, RunStarted) and isinstance(ended, RunEnded)
    assert (started.run_id, started.schema) == ("the-run", SCHEMA)
    assert started.config["k"] == 2 and started.config["pair"]["name"] == "tiny_dev"
    assert started.config["prompts"] == [{"prompt_id": p.prompt_id, "domain": "custom"} for p in PROMPTS]
    assert set(started.config["models"]) == {"target", "draft"}
    assert started.machine
    assert json.loads(json.dumps(started.config, allow_nan=False)) == started.config | {
        "caveats": list(started.config["caveats"])
    }
    assert not any(isinstance(event, RunStarted | RunEnded) for event in events[1:-1])
    assert ended.peak_memory_bytes == max(e.peak_memory_bytes for e in events if isinstance(e, PromptEnded))


def test_every_generation_is_whole_and_both_arms_agree() -> None:
    results = list(fold(measured(quick())))
    assert len(results) == 12
    by_prompt: dict[str, set[tuple[int, ...]]] = {}
    for result in results:
        assert 1 <= result.num_tokens <= 6
        by_prompt.setdefault(result.prompt_id, set()).add(tuple(result.generated_ids))
    assert {len(texts) for texts in by_prompt.values()} == {1}, "greedy: one text for every arm and repetition"
    assert len(set.union(*by_prompt.values())) == 3, "and another one for every prompt"


@pytest.mark.parametrize(("warmup", "baseline", "steps"), [(0, True, 1), (2, True, 5), (9, True, 7), (2, False, 3)])
def test_warm_up_decodes_the_first_prompts_by_every_arm(
    warmup: int, baseline: bool, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(warmup=warmup, baseline=baseline)
    arms = loaded()
    decoded: list[tuple[str, int]] = []
    for decoder in (arms.baseline, arms.speculative):
        monkeypatch.setattr(type(decoder), "events", _noting(type(decoder).events, decoded))
    ticks: list[None] = []
    warm_up(config, arms, encoded(config), lambda: ticks.append(None))
    assert len(ticks) == steps == warm_up_steps(config, encoded(config))
    assert len(decoded) == steps - 1
    # Apart from every measured repetition, and so from its random numbers.
    assert {repetition for _, repetition in decoded} <= {-1}


def _noting(events: Any, decoded: list[tuple[str, int]]) -> Any:
    def noted(decoder: Any, request: Any) -> Any:
        decoded.append((request.prompt_id, request.repetition))
        return events(decoder, request)

    return noted


def test_warm_up_leaves_no_trace_in_what_is_measured() -> None:
    config = quick(temperature=1.0)
    before = [result.generated_ids for result in fold(measured(config))]
    warm_up(config, loaded(), encoded(config), lambda: None)
    events = measured(config)
    assert [result.generated_ids for result in fold(events)] == before
    assert {e.repetition for e in events if isinstance(e, Prefilled | Round | PromptEnded)} == {0, 1}


def test_repetitions_of_sampling_differ() -> None:
    config = quick(temperature=1.0, baseline=False, max_new_tokens=16)
    texts: dict[str, list[list[int]]] = {}
    for result in fold(measured(config)):
        texts.setdefault(result.prompt_id, []).append(result.generated_ids)
    assert all(first != second for first, second in texts.values())


def test_a_prompt_that_leaves_no_room_is_refused_before_anything_runs() -> None:
    room = 1024 - len(encoded(quick())[0].ids)
    fits = encode_prompts(quick(max_new_tokens=room), loaded(), PROMPTS[:1])
    assert fits[0].prompt == PROMPTS[0]
    with pytest.raises(UsageError, match="exceeds the context of tiny_dev/target, 1024"):
        encode_prompts(quick(max_new_tokens=room + 1), loaded(), PROMPTS[:1])


def test_what_was_loaded_is_on_record() -> None:
    described = loaded().describe()
    target = described["target"]
    assert target["model"] == "tiny_dev/target" and target["forward"] == "own" and target["why_not_own"] is None
    assert target["parameters"] > 5 * described["draft"]["parameters"]
    assert target["memory_bytes"] >= 4 * target["parameters"], "float32 on the CPU"
    assert loaded().stop_ids


def test_k_has_to_fit_the_context_and_vocabularies_each_other() -> None:
    with pytest.raises(UsageError, match="k = 1024 is not less than the context"):
        load_arms(quick(k=1024))
    with pytest.raises(IncompatiblePairError, match="32064 and 128256 tokens"):
        load_arms(quick(pair=get_pair("phi3_llama3"), random_weights=True))


def test_warm_up_of_a_long_draft_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: set[int] = set()
    extend = type(loaded().target).extend

    def noting(wrapper: Any, ids: Any, *rest: Any) -> Any:
        widths.add(len(ids))
        return extend(wrapper, ids, *rest)

    monkeypatch.setattr(type(loaded().target), "extend", noting)
    warm_up(quick(k=100, warmup=0), loaded(), [], lambda: None)
    assert {1, 2, 3, 101} < widths and len(widths) < 20


def test_a_model_that_computes_no_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    target = loaded().target
    extend = type(target).extend
    monkeypatch.setattr(type(target), "extend", lambda *arguments: extend(*arguments) * float("nan"))
    with pytest.raises(UnavailableError, match=r"computes no numbers \(NaN\) in float32"):
        warm_up(quick(warmup=0), loaded(), [], lambda: None)


def test_a_temperature_too_small_to_divide_by_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UsageError, match="too small"):
        load_arms(quick(temperature=1e-320, pair=get_pair("gpt2_dev")))


def test_an_ngram_drafter_needs_no_draft_model() -> None:
    arms = load_arms(quick(drafter="ngram"))
    assert arms.draft is None and set(arms.describe()) == {"target"}
    assert arms.speculative.label == "SD-K2"


@pytest.mark.parametrize(
    ("change", "stops"),
    [
        ({}, True),
        ({"ignore_eos": True}, False),
        ({"random_weights": True}, False),
        ({"synthetic_acceptance": 0.5}, False),
    ],
)
def test_only_text_that_means_something_may_end_itself(change: dict[str, Any], stops: bool) -> None:
    assert quick(**change).stops_at_eos is stops


def test_caveats_name_whatever_makes_the_numbers_unreal() -> None:
    assert quick().caveats == ()
    caveats = quick(random_weights=True, synthetic_acceptance=0.25).caveats
    assert len(caveats) == 2 and "random weights" in caveats[0] and "synthetic acceptance 0.25" in caveats[1]
    assert quick(random_weights=True).to_dict()["caveats"] == [caveats[0]]
