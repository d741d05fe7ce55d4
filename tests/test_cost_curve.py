"""What rounds of every K cost, and what one run tells of all the others."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_line import QUICK, command, isolate, ok
from specprof.data.prompts import builtin
from specprof.decoding.draft_length import EveryK
from specprof.decoding.drafters import LayerSkip, NGramLookup
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.experiments.arms import Arms, load_arms
from specprof.experiments.config import RunConfig
from specprof.experiments.cost_survey import ROUNDS_EACH, survey_costs
from specprof.experiments.observer import Observer
from specprof.experiments.run import EncodedPrompt, encode_prompts, request_for
from specprof.models.registry import get_pair
from specprof.profiling.cost_model import CostCurve, alpha_for, expected_tokens, predictions, replayed_tau
from specprof.profiling.events import from_json_line, to_json_line
from specprof.profiling.metrics import fold
from test_metrics import make_round

LONGEST = 6
CONFIG = RunConfig(get_pair("tiny_dev"), k=LONGEST, max_new_tokens=40, deterministic=True, device="cpu")
HINDSIGHT = Observer(str, hindsight=True)
USAGE = 2


@functools.cache
def loaded() -> Arms:
    return load_arms(CONFIG)


@functools.cache
def some_prompts() -> list[EncodedPrompt]:
    return encode_prompts(CONFIG, loaded(), list(builtin().take(3)))


def curve(longest: int = 4) -> CostCurve:
    """10 ms a pass, a tenth of it more for each token drafted, 2 ms to draft one, 1 ms of the rest."""
    lengths = range(longest + 1)
    return CostCurve(
        tuple(0.002 * k for k in lengths),
        tuple(0.010 + 0.001 * k for k in lengths),
        (0.001,) * (longest + 1),
        (5,) * (longest + 1),
    )


# The curve


def test_ratios_by_hand() -> None:
    c = curve()
    assert c.draft_cost_ratio(2) == pytest.approx(0.2)
    assert c.verify_ratio(4) == pytest.approx(1.4)
    assert c.overhead_ratio(3) == c.baseline_overhead == pytest.approx(0.1)
    # 4 + 12 + 1 ms against 11 ms of plain decoding
    assert c.break_even_tau(2) == pytest.approx(17 / 11)
    assert c.speedup(2, 2.5) == pytest.approx(2.5 * 11 / 17)
    assert CostCurve.from_dict(json.loads(json.dumps(c.to_dict()))) == c


def test_it_is_the_median_of_rounds_of_each_length() -> None:
    rounds = [
        dataclasses.replace(make_round(k, 0, draft_seconds=0.001 * k * slow, verify_seconds=0.01 * slow), k=k)
        for k in range(3)
        for slow in (1, 1, 9)
    ]
    found = CostCurve.of(rounds)
    assert found is not None
    assert found.draft_seconds == pytest.approx((0, 0.001, 0.002))
    assert found.num_rounds == (3, 3, 3)
    # A lookup that found nothing was asked for two tokens all the same.
    asked = dataclasses.replace(make_round(0, 0, draft_seconds=0.5), k=2)
    with_it = CostCurve.of([*rounds, asked])
    assert with_it is not None and with_it.num_rounds == (3, 3, 4)


@pytest.mark.parametrize("lengths", [(), (0,), (1, 2), (0, 2)])
def test_a_gap_is_no_curve(lengths: tuple[int, ...]) -> None:
    assert CostCurve.of([dataclasses.replace(make_round(k, 0), k=k) for k in lengths]) is None


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"draft_seconds": [0.0], "verify_seconds": [1.0, 2.0], "rest_seconds": [0.0], "num_rounds": [1]},
        {"draft_seconds": [0.0], "verify_seconds": [0.0], "rest_seconds": [0.0], "num_rounds": [1]},
        {"draft_seconds": ["x"], "verify_seconds": [1.0], "rest_seconds": [0.0], "num_rounds": [1]},
        {"draft_seconds": None, "verify_seconds": [1.0], "rest_seconds": [0.0], "num_rounds": [1]},
        {"draft_seconds": [10**400], "verify_seconds": [1.0], "rest_seconds": [0.0], "num_rounds": [1]},
    ],
)
def test_what_is_no_curve_is_refused(record: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError):
        CostCurve.from_dict(record)


@given(st.floats(0, 1), st.integers(1, 12))
def test_alpha_for_inverts_expected_tokens(alpha: float, k: int) -> None:
    found = alpha_for(expected_tokens(alpha, k), k)
    assert found is not None
    assert expected_tokens(found, k) == pytest.approx(expected_tokens(alpha, k), rel=1e-9)
    assert alpha_for(k + 1.5, k) is None and alpha_for(1.0, k) == 0


# Predictions


def test_without_texts_they_follow_from_the_rate_at_each_position() -> None:
    one, two = predictions(curve(), [0.5, 0.25, None, 0.9], alpha=0.4)
    assert (one.k, two.k) == (1, 2)
    assert not one.replayed
    assert (one.tokens_per_round, two.tokens_per_round) == pytest.approx((1.5, 1.625))
    assert two.speedup == pytest.approx(1.625 * 11 / 17)
    assert two.tokens_per_round_from_alpha == pytest.approx(1 + 0.4 + 0.16)


def test_rounds_counted_by_hand() -> None:
    # K = 2: [T T | +1], [F], [T F] and [T] for which no token is left to draft.
    text = [True, True, False, False, True, False, True]
    assert replayed_tau([text], 2) == pytest.approx(7 / 4)
    assert replayed_tau([text], 1) == pytest.approx(7 / 5)
    assert replayed_tau([[False] * 5], 3) == 1
    assert replayed_tau([[True] * 8], 3) == 4
    assert replayed_tau([], 3) is replayed_tau([[]], 3) is None


def test_one_run_tells_the_rounds_of_every_other_k() -> None:
    arms = loaded()

    def decoded(k: int, *, hindsight: bool = False) -> list[tuple[int, int]]:
        decoder, observer = SpeculativeDecoder(arms.target, arms.drafter, k), Observer(str, None, hindsight)
        results = [next(fold(observer.events(decoder, request_for(CONFIG, arms, p, 0)))) for p in some_prompts()]
        matches.extend(result.draft_matches for result in results if result.draft_matches is not None)
        return [(result.num_decode_tokens, len(result.rounds)) for result in results]

    matches: list[tuple[bool, ...]] = []
    decoded(LONGEST, hindsight=True)
    assert len(matches) == 3
    for k in (1, 2, 3, 5, LONGEST):
        counted = decoded(k)
        tokens, rounds = map(sum, zip(*counted, strict=True))
        assert replayed_tau(matches, k) == pytest.approx(tokens / rounds)
    assert len(matches) == 3, "hindsight is for those who ask"


def test_hindsight_agrees_with_every_verdict_of_a_round() -> None:
    arms = loaded()
    decoder = SpeculativeDecoder(arms.target, arms.drafter, 3)
    for prompt in some_prompts():
        (result,) = fold(HINDSIGHT.events(decoder, request_for(CONFIG, arms, prompt, 0)))
        assert result.draft_matches is not None and len(result.draft_matches) == result.num_decode_tokens
        place = 0
        for round in result.rounds:
            judged = result.draft_matches[place : place + len(round.draft_tokens)][: round.num_accepted + 1]
            accepted = [True] * round.num_accepted + [False] * (round.num_accepted < len(round.draft_tokens))
            # An end of sequence among the accepted ones ends the text; there is no hindsight beyond it.
            assert list(judged) == accepted[: len(judged)]
            assert len(judged) == len(accepted) or len(round.emitted_tokens) <= round.num_accepted
            place += len(round.emitted_tokens)


def test_where_hindsight_has_nothing_to_say() -> None:
    arms = loaded()
    target = arms.target
    sampled = dataclasses.replace(CONFIG, temperature=0.8)
    for drafter, config in (
        (NGramLookup(target.vocab_size, target.device), CONFIG),
        (LayerSkip(target, 3), CONFIG),
        (arms.drafter, sampled),
    ):
        decoder = SpeculativeDecoder(target, drafter, 2)
        (result,) = fold(HINDSIGHT.events(decoder, request_for(config, arms, some_prompts()[0], 0)))
        assert result.draft_matches is None


def test_matches_survive_a_file() -> None:
    arms = loaded()
    decoder = SpeculativeDecoder(arms.target, arms.drafter, 3)
    events = list(HINDSIGHT.events(decoder, request_for(CONFIG, arms, some_prompts()[0], 0)))
    assert [from_json_line(to_json_line(event)) for event in events] == events


# The survey


def test_every_length_comes_up_equally_often() -> None:
    lengths = EveryK(3, seed=1)
    chosen = [lengths.choose(99) for _ in range(40)]
    assert Counter(chosen) == {k: 10 for k in range(4)}
    assert chosen[:4] != chosen[4:8] or chosen[4:8] != chosen[8:12], "shuffled anew each time"


def test_a_survey_measures_every_length_and_leaves_the_output_alone() -> None:
    arms = loaded()
    found = survey_costs(CONFIG, arms, some_prompts())
    assert found is not None and found.longest == LONGEST
    assert min(found.num_rounds) >= ROUNDS_EACH
    assert found.target_step_seconds > 0 and found.draft_seconds[LONGEST] > found.draft_seconds[1] > 0
    # What it decodes with is as lossless as every other choice of K.
    decoder = SpeculativeDecoder(arms.target, arms.drafter, EveryK(LONGEST))
    for prompt in some_prompts():
        request = request_for(CONFIG, arms, prompt, 0)
        (surveyed,), (plain,) = fold(decoder.events(request)), fold(arms.baseline.events(request))
        assert surveyed.generated_ids == plain.generated_ids


def test_nothing_drafted_is_nothing_surveyed() -> None:
    plain = dataclasses.replace(loaded(), speculative=SpeculativeDecoder(loaded().target, loaded().drafter, 0))
    assert survey_costs(CONFIG, plain, some_prompts()) is None


# The command


SURVEYED = tuple(argument for argument in QUICK if argument != "--no-cost-curve")


@pytest.fixture
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


@pytest.mark.usefixtures("_isolated")
def test_cost_only_says_what_would_pay_and_generates_nothing() -> None:
    shown = ok("run", *SURVEYED, "--k", "3", "--cost-only")
    assert "Cost curve" in shown.out and "break-even alpha" in shown.out
    document = ok("run", *SURVEYED, "--k", "3", "--cost-only", "--json", "-o", "costs.json").document
    assert document["schema"] == "specprof.costs/1"
    assert document["engine"] == document["config"]["engine_used"] == "eager"
    assert [row["k"] for row in document["by_k"]] == [0, 1, 2, 3]
    assert document["by_k"][2]["break_even_tau"] > 1
    assert json.loads(Path("costs.json").read_text())["by_k"] == document["by_k"]
    assert not Path("results").exists()


@pytest.mark.usefixtures("_isolated")
def test_a_run_predicts_every_k_and_its_file_does_again() -> None:
    document = ok("run", *SURVEYED, "--k", "3", "--max-new-tokens", "24", "--json").document
    assert [prediction["k"] for prediction in document["predictions"]] == [1, 2, 3]
    assert all(prediction["replayed"] for prediction in document["predictions"])
    best = max(document["predictions"], key=lambda prediction: prediction["speedup"])
    assert document["costs"]["best_k"] == (best["k"] if best["speedup"] > 1 else 0)
    again = ok("results", "show", document["run_id"], "--json").document
    assert again["predictions"] == document["predictions"]
    assert "Other K" in ok("results", "show", document["run_id"]).out
    assert ok("run", *QUICK, "--k", "3", "--json").document["predictions"] == []


@pytest.mark.usefixtures("_isolated")
def test_a_trace_is_written_beside_the_run() -> None:
    ok("run", *QUICK, "--trace", "t.json.gz", "--k", "2")
    trace = json.loads(gzip.decompress(Path("t.json.gz").read_bytes()))
    rounds = [event for event in trace["traceEvents"] if event.get("name") == "round"]
    assert rounds and all("draft_prob" in json.dumps(event["args"]) for event in rounds if event["args"].get("draft"))


@pytest.mark.usefixtures("_isolated")
@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--cost-only", "--no-cost-curve"), "--cost-only and --no-cost-curve exclude each other"),
        (("--cost-only", "--jsonl"), "--cost-only and --jsonl exclude each other"),
        (("--cost-only", "--trace", "t.json"), "--cost-only and --trace exclude each other"),
    ],
)
def test_flags_that_exclude_each_other(arguments: tuple[str, ...], what: str) -> None:
    outcome = command("run", *SURVEYED, *arguments)
    assert outcome.code == USAGE and outcome.told[0] == what


@pytest.mark.usefixtures("_isolated")
def test_where_nothing_is_drafted_there_is_nothing_to_survey() -> None:
    outcome = command("run", *SURVEYED, "--k", "0", "--cost-only")
    assert outcome.code == USAGE and "no costs of drafting" in outcome.told[0]


def test_rounds_whose_drafts_end_early_cost_what_they_cost_on_average() -> None:
    # Asked for 2 each time: a third of the rounds found nothing to propose, and were cheap.
    full = make_round(2, 1, k=2, draft_seconds=0.004, verify_seconds=0.012)
    empty = make_round(0, 0, k=2, draft_seconds=0.001, verify_seconds=0.009)
    others = [make_round(k, 0, k=k) for k in (0, 1)]
    curve = CostCurve.of([*others, full, full, empty])
    assert curve is not None
    assert curve.draft_seconds[2] == pytest.approx(0.003)
    assert curve.verify_seconds[2] == pytest.approx(0.011)
