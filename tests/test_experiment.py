"""An experiment is fair (arms take turns), warm before it counts, and tells everything as events."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import pytest

from packaged import llama_parameters
from specprof.data.prompts import Prompt
from specprof.decoding.request import Request
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.decoding.vocabulary import VocabularyKind, VocabularyVerdict
from specprof.errors import CorrectnessError, IncompatiblePairError, UsageError
from specprof.experiments.arms import Arms, load_arms, vocabulary_methods
from specprof.experiments.config import RunConfig
from specprof.experiments.run import (
    TRIAL_PROMPTS,
    EncodedPrompt,
    choose_method,
    encode_prompts,
    measure,
    target_mass,
    warm_up,
    warm_up_steps,
)
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


def crossed(**changes: Any) -> RunConfig:
    """The same target, with a draft of another vocabulary."""
    return quick(pair=get_pair("tiny_cross"), **changes)


@functools.cache
def loaded_crossed() -> Arms:
    return load_arms(crossed())


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
    assert started.config["vocabulary"]["kind"] == "identical" and started.config["vocab_method"] is None
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
    requests = _noted(monkeypatch, arms)
    ticks: list[None] = []
    warm_up(config, arms, encoded(config), lambda: ticks.append(None))
    assert len(ticks) == steps == warm_up_steps(config, encoded(config))
    assert len(requests) == steps - 1
    # Apart from every measured repetition, and so from its random numbers.
    assert {request.repetition for request in requests} <= {-1}


def _noted(monkeypatch: pytest.MonkeyPatch, arms: Arms) -> list[Request]:
    """The requests that both kinds of decoder get from now on."""
    requests: list[Request] = []

    def noting(events: Any) -> Any:
        def noted(decoder: Any, request: Request) -> Any:
            requests.append(request)
            return events(decoder, request)

        return noted

    for decoder in (arms.baseline, arms.speculative):
        monkeypatch.setattr(type(decoder), "events", noting(type(decoder).events))
    return requests


@pytest.mark.parametrize(("k", "lengths"), [(2, {32}), ("auto", {40})])
def test_warm_up_lasts_until_k_auto_has_tried_every_k(
    k: Any, lengths: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(k=k, max_new_tokens=40, warmup=1, deterministic=k != "auto")
    requests = _noted(monkeypatch, loaded())
    warm_up(config, loaded(), encoded(config), lambda: None)
    assert {request.max_new_tokens for request in requests} == lengths


def test_warm_up_leaves_no_trace_in_what_is_measured() -> None:
    config = quick(temperature=1.0)
    before = [result.generated_ids for result in fold(measured(config))]
    warm_up(config, loaded(), encoded(config), lambda: None)
    events = measured(config)
    assert [result.generated_ids for result in fold(events)] == before
    assert {e.repetition for e in events if isinstance(e, Prefilled | Round | PromptEnded)} == {0, 1}


def test_repetitions_of_sampling_differ() -> None:
    config = quick(temperature=2.0, baseline=False, max_new_tokens=16, ignore_eos=True)
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
    described = loaded().describe(quick().pair)
    target = described["target"]
    assert target["model"] == "tiny_dev/target" and target["why_not_own"] is None
    # A machine without a C compiler has a reason.
    assert target["forward"] == ("native" if target["why_not_native"] is None else "own")
    for role in ("target", "draft"):
        assert described[role]["parameters"] == llama_parameters(f"tiny_dev/{role}")
    assert target["stored_dtype"] == "float16" and target["dtype"] == "float32"
    assert target["memory_bytes"] >= 4 * target["parameters"], "float32 on the CPU"
    assert loaded().stop_ids


@pytest.mark.parametrize("changes", [{"k": 1024}, {"k": "auto", "k_max": 1024, "deterministic": False}])
def test_k_has_to_fit_the_context(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="k = 1024 is not less than the context"):
        load_arms(quick(**changes))


@pytest.mark.parametrize(
    ("kind", "changes", "methods"),
    [
        ("identical", {}, ()),
        ("padding", {}, ()),
        ("padding", {"vocab_method": "slem"}, ("slem",)),
        ("overlapping", {}, ("tli", "slem")),
        ("overlapping", {"temperature": 0.8}, ("tli",)),
        ("overlapping", {"draft_threshold": 0.5}, ("tli",)),
        ("overlapping", {"vocab_method": "tli"}, ("tli",)),
        ("overlapping", {"vocab_method": "slem"}, ("slem",)),
        ("unreadable", {}, ("slem",)),
        ("unreadable", {"vocab_method": "slem"}, ("slem",)),
        ("disjoint", {"vocab_method": "slem"}, ("slem",)),
    ],
)
def test_how_a_draft_may_propose(kind: VocabularyKind, changes: dict[str, Any], methods: tuple[str, ...]) -> None:
    assert vocabulary_methods(quick(**changes), verdict(kind)) == methods


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("disjoint", {}),
        ("disjoint", {"temperature": 0.8}),
        ("disjoint", {"vocab_method": "tli"}),
        ("unreadable", {"temperature": 0.8}),
        ("unreadable", {"vocab_method": "tli"}),
        ("unreadable", {"draft_threshold": 0.4}),
    ],
)
def test_when_no_method_serves(kind: VocabularyKind, changes: dict[str, Any]) -> None:
    with pytest.raises(IncompatiblePairError, match="can't draft for tiny_dev/target: the reason") as caught:
        vocabulary_methods(quick(**changes), verdict(kind))
    assert "--drafter ngram" in caught.value.hint


def verdict(kind: VocabularyKind) -> VocabularyVerdict:
    return VocabularyVerdict(kind, 8, 8, 4, "the reason")


def test_a_draft_of_another_vocabulary_reads_the_prompt_in_its_own_tokens() -> None:
    (prompt, *_) = encode_prompts(crossed(), loaded_crossed(), PROMPTS)
    draft = loaded_crossed().draft
    assert draft is not None and prompt.draft_ids is not None
    assert prompt.ids == encoded(quick())[0].ids != prompt.draft_ids
    assert draft.tokenizer.decode(prompt.draft_ids, skip_special_tokens=True) == PROMPTS[0].raw_text
    assert encoded(quick())[0].draft_ids is None


@pytest.mark.parametrize(
    ("drafters", "best"), [(("random", "self"), "slem"), (("self", "random"), "tli"), (("self", "self"), "tli")]
)
def test_the_method_is_chosen_by_trial(drafters: tuple[str, str], best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it yields; on a tie the first."""
    config, arms = crossed(max_new_tokens=9, ignore_eos=True), loaded_crossed()
    assert list(arms.candidates) == ["tli", "slem"]
    # The target's own drafts are all accepted: 3 tokens per round at K = 2. Random ones hardly ever are.
    candidates = {
        method: load_arms(quick(drafter=drafter)).speculative
        for method, drafter in zip(arms.candidates, drafters, strict=True)
    }
    many = [dataclasses.replace(PROMPTS[0], prompt_id=f"p{i}") for i in range(TRIAL_PROMPTS + 1)]
    prompts = encode_prompts(config, loaded(), many)
    requests = _noted(monkeypatch, arms)
    chosen, finding = choose_method(config, dataclasses.replace(arms, candidates=candidates), prompts)
    assert chosen.vocab_method == best and chosen.speculative is candidates[best] and chosen.candidates == {}
    assert finding is not None and finding.startswith(f"vocab method {best}: ")
    assert f"{best} 3.00" in finding and "tli" in finding and "slem" in finding
    # A few prompts, apart from everything that is measured.
    assert [(r.prompt_id, r.repetition) for r in requests] == [(f"p{i}", -1) for i in range(TRIAL_PROMPTS)] * 2


def test_where_there_is_one_method_there_is_no_trial() -> None:
    assert choose_method(quick(), loaded(), encoded(quick())) == (loaded(), None)
    arms = load_arms(crossed(temperature=0.8))
    assert arms.vocab_method == "tli" and choose_method(crossed(), arms, []) == (arms, None)


def test_the_share_of_the_targets_probability() -> None:
    arms = loaded_crossed()
    assert arms.vocabulary is not None
    shared = set(arms.vocabulary.to_target.values())
    others = [token for token in range(arms.target.vocab_size) if token not in shared]
    rest = dataclasses.replace(arms.vocabulary, to_target=dict(enumerate(others)))
    masses = [target_mass(dataclasses.replace(arms, vocabulary=v), PROMPTS) for v in (arms.vocabulary, rest)]
    assert 0.5 < masses[0] < 1 and sum(masses) == pytest.approx(1, abs=1e-4)


def test_warm_up_of_a_long_draft_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: set[int] = set()
    extend = type(loaded().target).extend

    def noting(wrapper: Any, ids: Any, *rest: Any) -> Any:
        widths.add(len(ids))
        return extend(wrapper, ids, *rest)

    monkeypatch.setattr(type(loaded().target), "extend", noting)
    arms = dataclasses.replace(loaded(), speculative=SpeculativeDecoder(loaded().target, loaded().drafter, 100))
    warm_up(quick(k=100, warmup=0), arms, [], lambda: None)
    assert {1, 2, 3, 101} < widths and len(widths) < 20


def test_a_model_that_computes_no_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    target = loaded().target
    extend = type(target).extend
    monkeypatch.setattr(type(target), "extend", lambda *arguments: extend(*arguments) * float("nan"))
    with pytest.raises(CorrectnessError, match=r"computes no numbers \(NaN or infinity\) in float32"):
        warm_up(quick(warmup=0), loaded(), [], lambda: None)


def test_a_temperature_too_small_to_divide_by_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UsageError, match="too small"):
        load_arms(quick(temperature=1e-320, pair=get_pair("gpt2_dev")))


@pytest.mark.parametrize(
    "changes",
    [{"drafter": "ngram"}, {"drafter": "self"}, {"drafter": "random"}, {"drafter": "layerskip", "draft_layers": 3}],
)
def test_these_drafters_need_no_draft_model(changes: dict[str, Any]) -> None:
    config = quick(repetitions=1, **changes)
    arms = load_arms(config)
    assert arms.draft is None and set(arms.describe(quick().pair)) == {"target"}
    assert arms.speculative.label == "SD-K2" and (arms.vocabulary, arms.vocab_method) == (None, None)
    results = list(fold(measure(config, arms, encode_prompts(config, arms, PROMPTS), "the-run")))
    assert {r.decoder for r in results} == {"AR", "SD-K2"} and len(results) == 6
    texts = {(r.prompt_id, tuple(r.generated_ids)) for r in results}
    assert len(texts) == 3, "one text for every prompt"


@pytest.mark.parametrize(("k", "k_max", "longest"), [(3, None, 3), (0, None, 0), ("auto", None, 8), ("auto", 5, 5)])
def test_the_longest_draft(k: Any, k_max: int | None, longest: int) -> None:
    config = quick(k=k, k_max=k_max, deterministic=False)
    assert config.longest_draft == longest
    assert load_arms(config).speculative.length.longest == longest


def test_a_4_bit_target_says_what_its_kernel_verifies_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specprof.experiments.arms.fused_int4_width", lambda _model: 4)
    (note,) = load_arms(quick(k=4)).notes
    assert "multiplies up to 4 rows" in note and "4 drafted tokens takes 5" in note and note.endswith("try --k 3")
    assert load_arms(quick(k=3)).notes == ()


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
