"""The comparison against cases small enough to compute by hand, and against a run whose truth is known."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from specprof.profiling.caveats import loops
from specprof.profiling.comparison import compare
from specprof.profiling.cost_model import expected_tokens
from specprof.profiling.events import Round
from specprof.profiling.metrics import GenerationResult, fold
from test_metrics import generation, make_round

AR_ROUND = make_round(0, 0, draft_seconds=0.0, verify_seconds=0.010, sample_seconds=0.001, overhead_seconds=0.001)


def distinct(
    rounds: Sequence[Round], decoder: str, repetition: int, prompt_id: str, first: int = 11
) -> GenerationResult:
    """A generation whose text is 11, 0, 1, 2, ...: never a loop, and the same in both arms."""
    events, token = [], 0
    for event in generation(decoder, repetition, list(rounds)):
        event = dataclasses.replace(event, prompt_id=prompt_id)
        if isinstance(event, Round):
            emitted = tuple(range(token, token + event.num_accepted + 1))
            token += len(emitted)
            event = dataclasses.replace(event, emitted_tokens=emitted)
        events.append(event)
    (result,) = fold(events)
    return dataclasses.replace(result, generated_ids=[first, *result.generated_ids[1:]])


def ar(prompt_id: str, repetition: int = 0, tokens: int = 6, slow: float = 1.0, **changes: Any) -> GenerationResult:
    step = dataclasses.replace(AR_ROUND, verify_seconds=0.010 * slow, sample_seconds=0.001 * slow,
                               overhead_seconds=0.001 * slow)  # fmt: skip
    return distinct([step] * tokens, "AR", repetition, prompt_id, **changes)


def sd(
    prompt_id: str, repetition: int = 0, accepted: Sequence[int] = (1, 1, 1), k: int = 2, **changes: Any
) -> GenerationResult:
    rounds = [
        make_round(k, a, draft_seconds=0.002 * k, verify_seconds=0.011, sample_seconds=0.0005, overhead_seconds=0.0005)
        for a in accepted
    ]
    return distinct(rounds, f"SD-K{k}", repetition, prompt_id, **changes)


def test_by_hand() -> None:
    # AR: 6 tokens at 12 ms. SD, K = 2: 3 rounds of 4 + 11 + 0.5 + 0.5 = 16 ms for 2 tokens each.
    drafted = {"a": [1, 1, 1], "b": [2, 0, 1], "c": [1, 1, 1], "d": [2, 0, 1], "e": [1, 1, 1], "f": [2, 0, 1]}
    c = compare([r for p, accepted in drafted.items() for r in (ar(p), sd(p, accepted=accepted))], temperature=0)
    assert c.speedup_decode is not None and c.speedup_e2e is not None
    assert c.speedup_decode.value == pytest.approx(12 / 8)
    assert c.speedup_decode.ci == pytest.approx((1.5, 1.5))
    assert (c.speedup_decode.verdict, c.speedup_decode.n_prompts) == ("faster", 6)
    # both prefills take 26 ms
    assert c.speedup_e2e.value == pytest.approx((26 + 72) / (26 + 48))

    assert c.baseline is not None and c.speculative is not None
    assert c.baseline.tokens_per_second == pytest.approx(1 / 0.012)
    assert c.speculative.tokens_per_second == pytest.approx(1 / 0.008)
    assert c.speculative.tokens_per_second_e2e == pytest.approx(7 / 0.074)
    assert c.speculative.ttft_seconds == pytest.approx(0.026)
    assert c.speculative.tpot_seconds == pytest.approx(0.008)
    assert c.speculative.latency_p50 == c.speculative.latency_p99 == pytest.approx(0.016)
    assert (c.speculative.num_tokens, c.speculative.num_rounds, c.speculative.num_generations) == (42, 18, 6)
    assert c.speculative.peak_memory_bytes == 3 * 2**20

    draft = c.speculative.phases.draft
    assert draft.seconds == pytest.approx(0.072)
    assert draft.share == pytest.approx(0.25)
    assert draft.seconds_per_round == pytest.approx(0.004)
    assert draft.seconds_per_token == pytest.approx(0.002)
    phases = dataclasses.astuple(c.speculative.phases)
    assert sum(phase[1] for phase in phases) == pytest.approx(1)

    assert c.costs is not None
    assert c.costs.target_step_seconds == pytest.approx(0.010)
    assert (c.costs.draft_tokens_per_round, c.costs.tokens_per_round) == (2, 2)
    assert c.costs.draft_cost_ratio == pytest.approx(0.2)
    assert c.costs.verify_ratio == pytest.approx(1.1)
    assert c.costs.overhead_ratio == pytest.approx(0.1)
    assert c.costs.ar_overhead_ratio == pytest.approx(0.2)
    assert c.costs.break_even_tau == pytest.approx(1.6)
    assert c.costs.break_even_alpha is not None
    assert expected_tokens(c.costs.break_even_alpha, 2) == pytest.approx(1.6)
    assert c.costs.speedup_predicted == pytest.approx(2 / 1.6)
    assert c.costs.speedup_predicted_with_ar_overhead == pytest.approx(c.speedup_decode.value)
    # accepted 1 1 1 2 0 1, three times: first position 5 of 6, second 1 of 5; v(1) lies halfway between 1 and 1.1
    assert c.costs.best_k == 1
    assert c.costs.best_k_speedup_predicted == pytest.approx((1 + 5 / 6) / (0.2 + 1.05 + 0.1) * 1.2)

    assert c.output_matches_baseline is not None
    assert (c.output_matches_baseline.num_prompts, c.output_matches_baseline.num_identical) == (6, 6)


def test_repetitions_enter_by_their_median_and_prompts_by_their_tokens() -> None:
    results = [
        *(ar("a", repetition=i, slow=slow) for i, slow in enumerate([1, 50, 1])),
        *(ar("b", repetition=i, tokens=12, slow=2) for i in range(3)),
        *(sd("a", repetition=i) for i in range(3)),
        *(sd("b", repetition=i, accepted=[1] * 6) for i in range(3)),
    ]
    c = compare(results, temperature=0)
    assert c.speedup_decode is not None
    # AR: 6 tokens at 12 ms, 12 at 24 ms; SD: 8 ms throughout
    assert c.speedup_decode.value == pytest.approx((6 * 12 + 12 * 24) / 18 / 8)
    assert c.num_repetitions == 3


def test_texts_that_somebody_interfered_with_count_nowhere() -> None:
    results = [r for p in "abcdef" for r in (ar(p), sd(p, accepted=[2, 0, 1]))]
    slow, lucky = ar("a", repetition=1, slow=50), sd("b", repetition=1, accepted=[2, 2, 2])
    without = compare(results, temperature=0)
    with_them = compare([*results, *(dataclasses.replace(r, interactive=True) for r in (slow, lucky))], temperature=0)
    assert compare([*results, slow, lucky], temperature=0).speedup_decode != without.speedup_decode
    assert with_them.warnings[0] == "2 generations paused, stepped through or raced: left out."
    assert dataclasses.replace(with_them, warnings=without.warnings) == without


def test_nothing_is_compared_where_somebody_interfered_with_all() -> None:
    c = compare([dataclasses.replace(r, interactive=True) for r in (ar("a"), sd("a"))], temperature=0)
    assert (c.num_prompts, c.baseline, c.speculative, c.speedup_decode, c.costs) == (0, None, None, None, None)
    assert c.warnings == ("2 generations paused, stepped through or raced: left out.",)


def test_speedup_is_the_ratio_of_the_arms_rates() -> None:
    c = compare([ar("a"), sd("a"), ar("b", tokens=3), sd("b", accepted=[2, 2, 2]), ar("c"), sd("d")], temperature=0.5)
    assert c.speedup_decode is not None and c.baseline is not None and c.speculative is not None
    assert c.speculative.tokens_per_second is not None and c.baseline.tokens_per_second is not None
    assert c.speedup_decode.value == pytest.approx(c.speculative.tokens_per_second / c.baseline.tokens_per_second)
    assert c.speedup_decode.n_prompts == 2
    assert c.warnings[0] == "2 prompts decoded by one arm only: left out."
    assert c.output_matches_baseline is None, "sampled texts are not compared"


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (1, "1 prompt only: too few for an interval or a verdict; use 5 or more."),
        (4, "4 prompts only: too few for an interval or a verdict; use 5 or more."),
        (5, "5 prompts only: more would make the interval narrower, and stand for more kinds of text."),
        (9, "9 prompts only: more would make the interval narrower, and stand for more kinds of text."),
        (10, None),
    ],
)
def test_few_prompts_have_no_interval(number: int, told: str | None) -> None:
    c = compare([r for i in range(number) for r in (ar(f"p{i}"), sd(f"p{i}"))], temperature=0)
    assert c.speedup_decode is not None and c.speedup_decode.value == pytest.approx(1.5)
    assert c.speedup_decode.ci == (None if number < 5 else pytest.approx((1.5, 1.5)))
    assert c.speedup_decode.verdict == (None if number < 5 else "faster")
    assert [warning for warning in c.warnings if "only:" in warning] == ([] if told is None else [told])


@pytest.mark.parametrize("results", [[ar("a"), ar("b")], [sd("a"), sd("b")], []])
def test_what_was_not_run_is_none(results: list[GenerationResult]) -> None:
    c = compare(results, temperature=0)
    for view in (c.speedup_decode, c.speedup_e2e, c.output_matches_baseline, c.explanation):
        assert view is None
    assert (c.baseline is None) == (not results or results[0].decoder != "AR")
    assert (c.acceptance is None) == (c.speculative is None)
    if c.baseline is not None:
        assert c.costs is not None and c.costs.draft_cost_ratio is c.costs.speedup_predicted is c.costs.best_k is None
    else:
        assert c.costs is None
    json.dumps(c.to_dict(), allow_nan=False)


def test_prompts_that_end_at_once_have_no_decode_speed() -> None:
    c = compare([ar("a", tokens=0), sd("a", accepted=[])], temperature=0)
    assert c.speedup_decode is not None and c.speedup_e2e is not None
    assert (c.speedup_decode.value, c.speedup_decode.n_prompts) == (None, 0)
    assert c.speedup_e2e.value == pytest.approx(1)
    assert c.speculative is not None and c.speculative.latency_p50 is None
    assert c.speculative.phases.draft.share is c.speculative.phases.draft.seconds_per_token is None
    json.dumps(c.to_dict(), allow_nan=False)


def test_to_dict_has_the_documented_keys() -> None:
    domains = {"a": "code"} | dict.fromkeys("bcdef", "chat")
    record = compare([r for p in domains for r in (ar(p), sd(p))], temperature=0, domains=domains).to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert set(record["acceptance"]) >= {
        "num_spec_steps", "num_draft_tokens", "num_accepted_draft_tokens", "num_spec_tokens", "draft_acceptance_rate",
        "mean_acceptance_length", "accepted_per_step", "acceptance_rate_per_pos", "conditional_acceptance_rate",
        "acceptance_histogram", "draft_length_histogram", "alpha",
    }  # fmt: skip
    assert set(record["costs"]) >= {
        "draft_cost_ratio", "verify_ratio", "overhead_ratio", "speedup_predicted", "break_even_alpha", "best_k",
        "draft_tokens_per_round", "tokens_per_round",
    }  # fmt: skip
    for arm in (record["baseline"], record["speculative"]):
        assert set(arm) >= {"ttft_seconds", "tpot_seconds", "latency_p50", "latency_p95", "latency_p99", "repetition"}
        assert list(arm["phases"]) == ["draft", "verify", "sample", "overhead"]
    assert set(record["speedup_decode"]) == {"value", "ci", "verdict", "n_prompts"}
    assert isinstance(record["speedup_decode"]["ci"], list)
    assert record["domains"]["code"]["speedup_decode"]["n_prompts"] == 1


def test_domains() -> None:
    results = [ar("a"), sd("a"), ar("b"), sd("b", accepted=[0] * 6), ar("c"), sd("c")]
    c = compare(results, temperature=0, domains={"a": "code", "b": "chat", "c": "code"})
    assert list(c.domains) == ["code", "chat"]
    code, chat = c.domains["code"], c.domains["chat"]
    assert code.speedup_decode is not None and chat.speedup_decode is not None
    assert code.speedup_decode.value == pytest.approx(1.5)
    assert chat.speedup_decode.value == pytest.approx(12 / 16)
    assert code.acceptance is not None and code.acceptance.draft_acceptance_rate == 0.5
    assert chat.acceptance is not None and chat.acceptance.draft_acceptance_rate == 0


def test_several_speculative_arms_need_a_candidate() -> None:
    results = [ar("a"), sd("a"), sd("a", k=3)]
    with pytest.raises(ValueError, match="SD-K2, SD-K3"):
        compare(results, temperature=0)
    with pytest.raises(ValueError, match="SD-K9"):
        compare(results, temperature=0, candidate="SD-K9")
    c = compare(results, temperature=0, candidate="SD-K3")
    assert c.speculative is not None and c.speculative.decoder == "SD-K3"


def test_output_that_differs_says_where() -> None:
    other = sd("b", repetition=0)
    other = dataclasses.replace(other, generated_ids=[*other.generated_ids[:4], 777, *other.generated_ids[5:]])
    shorter = sd("c", accepted=[1, 1])
    c = compare([ar("a"), sd("a"), ar("b"), other, ar("c"), shorter], temperature=0)
    match = c.output_matches_baseline
    assert match is not None and (match.num_identical, match.num_prompts) == (1, 3)
    assert [(d.prompt_id, d.position) for d in match.divergences] == [("b", 4), ("c", 5)]


def test_a_slowdown_names_its_cause() -> None:
    def explain(draft: float = 0.0, verify: float = 0.010, overhead: float = 0.001) -> str:
        rounds = [
            make_round(
                2, 0, draft_seconds=draft, verify_seconds=verify, sample_seconds=0.001, overhead_seconds=overhead
            )
        ] * 6
        results = [r for p in "abcde" for r in (ar(p), distinct(rounds, "SD-K2", 0, p))]
        c = compare(results, temperature=0)
        assert c.speedup_decode is not None and c.speedup_decode.verdict == "slower"
        assert c.explanation is not None
        return c.explanation

    # tokens of a round are worth 1 x 1.2 passes; verification and overhead already take 1.2
    assert "largest loss is drafting: 0.40 of a target pass per token" in explain(draft=0.008)
    assert "not even a free drafter would pay" in explain(draft=0.008)
    assert "largest loss is verification: a pass over 3 positions costs 1.50" in explain(verify=0.015)
    assert "largest loss is sampling and overhead: 0.70" in explain(overhead=0.008)


@pytest.mark.parametrize(
    ("k", "accepted", "helps"), [(1, 0, False), (2, 0, False), (4, 1, True)], ids=["one", "hopeless", "too many"]
)
def test_fewer_tokens_are_advised_where_there_are_fewer_that_pay(k: int, accepted: int, helps: bool) -> None:
    rounds = [
        make_round(k, accepted, verify_seconds=0.01 * (1 + 0.5 * k), draft_seconds=0, sample_seconds=0.001,
                   overhead_seconds=0.001)
    ] * 6  # fmt: skip
    results = [r for p in "abcde" for r in (ar(p, tokens=12), distinct(rounds, f"SD-K{k}", 0, p))]
    c = compare(results, temperature=0)
    assert c.explanation is not None and c.costs is not None and c.costs.best_k is not None
    assert "largest loss is verification" in c.explanation
    assert c.explanation.endswith("drafting fewer tokens helps.") == helps == (0 < c.costs.best_k < k)
    assert c.explanation.endswith("at this acceptance no shorter draft pays either.") != helps


def test_what_drafting_may_cost() -> None:
    slow = [
        make_round(2, 1, draft_seconds=0.030, verify_seconds=0.010, sample_seconds=0.001, overhead_seconds=0.001)
    ] * 3
    c = compare([r for p in "ab" for r in (ar(p), distinct(slow, "SD-K2", 0, p))], temperature=0)
    # 2 tokens are worth 2.4 passes, of which 1.2 are spoken for: 0.6 for each of two drafted tokens
    assert c.explanation is not None and c.explanation.endswith("at this acceptance it would pay below 0.60.")


def test_a_run_whose_truth_is_known() -> None:
    """Forced acceptance and fixed costs: the profiler must find what was put in."""
    alpha, k, t1, c_true, v_true, o_true = 0.7, 4, 0.010, 0.08, 1.2, 0.1
    generator = np.random.default_rng(1)
    results = []
    for prompt in range(24):
        accepted = [int(np.cumprod(generator.random(k) < alpha).sum()) for _ in range(60)]
        noise = generator.lognormal(0, 0.03, 60)
        rounds = [
            make_round(
                k,
                a,
                draft_seconds=k * c_true * t1 * x,
                verify_seconds=v_true * t1 * x,
                sample_seconds=o_true * t1 * x,
                overhead_seconds=0.0,
            )
            for a, x in zip(accepted, noise, strict=True)
        ]
        tokens = sum(a + 1 for a in accepted)
        results += [ar(f"p{prompt}", tokens=tokens), distinct(rounds, "SD-K4", 0, f"p{prompt}")]
    c = compare(results, temperature=0)
    assert c.acceptance is not None and c.costs is not None and c.speedup_decode is not None
    truth = expected_tokens(alpha, k) * 1.2 / (k * c_true + v_true + o_true)
    assert c.acceptance.alpha == pytest.approx(alpha, abs=0.02)
    assert c.acceptance.mean_acceptance_length == pytest.approx(expected_tokens(alpha, k), abs=0.08)
    assert c.costs.draft_cost_ratio == pytest.approx(c_true, rel=0.01)
    assert c.costs.verify_ratio == pytest.approx(v_true, rel=0.01)
    assert c.costs.overhead_ratio == pytest.approx(o_true, rel=0.01)
    assert c.speedup_decode.value == pytest.approx(truth, rel=0.03)
    assert c.costs.speedup_predicted_with_ar_overhead == pytest.approx(c.speedup_decode.value, rel=0.01)
    assert c.speedup_decode.ci is not None and c.speedup_decode.ci[0] < truth < c.speedup_decode.ci[1]
    assert c.warnings == ()


def varied() -> list[Round]:
    """Rounds of 1, 3 and no drafted tokens; 116 ms for 15 tokens."""
    one = make_round(1, 1, draft_seconds=0.002, verify_seconds=0.010, sample_seconds=0.0005, overhead_seconds=0.0005)
    three = make_round(3, 1, draft_seconds=0.006, verify_seconds=0.013, sample_seconds=0.0, overhead_seconds=0.001)
    none = make_round(0, 0, draft_seconds=0.0, verify_seconds=0.010, sample_seconds=0.001, overhead_seconds=0.0)
    return [one] * 5 + [three] * 2 + [none]


def test_costs_of_drafts_of_different_lengths() -> None:
    cut = make_round(2, 0, cut=True, draft_seconds=9.0)
    c = compare([ar("a"), distinct([*varied(), cut], "SD-Kauto", 0, "a")], temperature=0)
    assert c.acceptance is not None and c.costs is not None
    assert c.acceptance.draft_length_histogram == [1, 5, 0, 2]
    assert c.costs.draft_tokens_per_round == pytest.approx((5 * 1 + 2 * 3) / 8)
    # 5 + 2 accepted, and one token more in each of 8 rounds
    assert c.costs.tokens_per_round == pytest.approx(15 / 8)
    # 5 rounds of 2 ms and 2 of 6 ms for 11 tokens; a pass takes 10 ms
    assert c.costs.draft_cost_ratio == pytest.approx(0.2)
    assert c.costs.verify_ratio == pytest.approx((5 * 1.0 + 2 * 1.3 + 1.0) / 8)
    assert c.costs.overhead_ratio == pytest.approx(0.1)
    assert c.costs.break_even_tau == pytest.approx(11.6 / 8)
    assert c.costs.speedup_predicted == pytest.approx(15 / 11.6)
    # which alpha breaks even is a question about one draft length
    assert c.costs.break_even_alpha is None
    # five rounds of one token measure v(1) = 1.0, below the line from v(0) to v(3)
    assert c.costs.best_k == 1
    assert c.costs.best_k_speedup_predicted == pytest.approx(2 / (0.2 + 1.0 + 0.1) * 1.2)


def test_the_prediction_for_drafts_of_different_lengths_is_what_was_measured() -> None:
    c = compare([ar("a"), distinct(varied(), "SD-Kauto", 0, "a")], temperature=0)
    assert c.costs is not None and c.speedup_decode is not None
    assert c.speedup_decode.value == pytest.approx(0.012 / (0.116 / 15))
    assert c.costs.speedup_predicted_with_ar_overhead == pytest.approx(c.speedup_decode.value)


def test_costs_are_medians_by_length() -> None:
    """A round that the machine was interrupted in changes nothing, however long it took."""
    interrupted = [dataclasses.replace(round, draft_seconds=5.0, verify_seconds=7.0) for round in varied()[:1]]
    undisturbed, disturbed = (
        compare([ar("a"), distinct(rounds, "SD-Kauto", 0, "a")], temperature=0).costs
        for rounds in (varied(), [*interrupted, *varied()[1:]])
    )
    assert disturbed == undisturbed


# Warnings


def test_drift_and_outliers() -> None:
    jitter = np.random.default_rng(0).normal(1, 0.01, 24)
    drifting = [ar(p, repetition=i, slow=float(x) * (1.1 if i > 1 else 1.0))
                for (i, p), x in zip([(i, p) for i in range(4) for p in "abcdef"], jitter, strict=True)]  # fmt: skip
    (warning,) = compare(drifting, temperature=0).warnings
    assert "slower during the run (drift)" in warning
    steady = [ar(p, repetition=i, slow=float(x) * (5 if (i, p) == (1, "c") else 1))
              for (i, p), x in zip([(i, p) for i in range(4) for p in "abcdef"], jitter, strict=True)]  # fmt: skip
    (warning,) = compare(steady, temperature=0).warnings
    assert warning.startswith("AR: 1 of 24 generations far off")


def test_prompts_of_different_cost_are_not_drift() -> None:
    results = [ar(f"p{i}", slow=1 + i / 4, repetition=r) for i in range(8) for r in range(2)]
    assert compare(results, temperature=0).warnings == ()


def test_cut_and_empty_rounds_are_mentioned() -> None:
    rounds = [make_round(2, 1), make_round(2, 1, cut=True), make_round(0, 0), make_round(2, 2)]
    warnings = " ".join(compare([distinct(rounds, "SD-K2", 0, "a")], temperature=0).warnings)
    assert "25 % of rounds were cut" in warnings
    assert "Nothing was drafted in 33 % of rounds" in warnings


def test_looping_output_is_mentioned() -> None:
    looping = dataclasses.replace(ar("a"), generated_ids=[*range(50), *[3, 4] * 40])
    c = compare([looping, ar("b")], temperature=0)
    assert c.baseline is not None and c.baseline.repetition == 0.5
    assert "AR: 1 of 2 generations end in a loop" in c.warnings[0]
    both = [looping, dataclasses.replace(sd("a"), generated_ids=looping.generated_ids)]
    told = [warning for warning in compare(both, temperature=0).warnings if "in a loop" in warning]
    assert told == ["AR and SD-K2: 1 of 1 generation each end in a loop, which flatters acceptance and speedup."]
    several = [*both, dataclasses.replace(sd("b"), generated_ids=looping.generated_ids), ar("b")]
    told = [warning for warning in compare(several, temperature=0).warnings if "in a loop" in warning]
    assert [warning.partition(" end")[0] for warning in told] == ["AR: 1 of 2 generations", "SD-K2: 2 of 2 generations"]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([*range(500), *[7] * 64], True),  # the last 64 tokens
        ([*range(500), *[7] * 63], False),  # 63 of 563
        ([*range(200), *list(range(900, 932)) * 2], True),  # a period of 32, twice
        ([*range(200), *list(range(900, 933)) * 2], False),  # a period of 33
        ([*range(30), *[1, 2, 3] * 10], True),  # half of the text, ten times
        ([*range(40), *[1, 2, 3] * 10], False),
        ([*range(4), *list(range(900, 910)) * 2], False),  # said twice is not a loop
        ([5, 5, 5], False),
        ([*[7] * 100, *range(30)], False),  # recovered
        ([7], False),
        ([], False),
        (list(range(100)), False),
    ],
)
def test_loops(ids: list[int], expected: bool) -> None:
    assert loops(ids) is expected
