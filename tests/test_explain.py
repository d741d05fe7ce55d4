"""Why a speedup is what it is: causes that add up, and the change that would help."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_line import QUICK, command, isolate, ok
from specprof.profiling.attribution import attribute, best_change
from specprof.profiling.comparison import compare
from specprof.profiling.cost_model import CostCurve
from specprof.profiling.events import Round
from specprof.profiling.metrics import GenerationResult
from specprof.reports import explain as report
from specprof.reports.tables import to_text
from test_comparison import ar, distinct, sd
from test_metrics import make_round

USAGE = 2


def test_by_hand() -> None:
    # AR: 10 + 1 + 1 ms a token. SD, K = 2: 4 + 11 + 0.5 + 0.5 ms a round of 2 tokens, half of the drafts in vain.
    found = attribute(compare([ar("a"), sd("a"), ar("b"), sd("b")], temperature=0))
    assert found is not None
    assert (found.ideal_speedup, found.measured_speedup) == pytest.approx((2, 1.5))
    assert found.ar_seconds_per_token == pytest.approx(0.012)
    assert found.ideal_seconds_per_token == pytest.approx(0.006)
    assert found.measured_seconds_per_token == pytest.approx(0.008)
    losses = {loss.name: loss.seconds_per_token for loss in found.losses}
    assert losses == pytest.approx(
        {
            "drafting accepted tokens": 0.001,
            "drafting rejected tokens": 0.001,
            "verifying more than one token": 0.0005,
            "sampling": -0.00025,
            "overhead": -0.00025,
        }
    )
    assert sum(loss.share or 0 for loss in found.losses) == pytest.approx(1)
    assert found.prefill_seconds == pytest.approx(0, abs=1e-12)


def test_the_speedup_is_the_headline_s() -> None:
    # Drawn at random, b ended at once in one arm: it has a speed in the other only, and enters no speedup.
    comparison = compare([ar("a"), sd("a"), ar("b", slow=10), sd("b", accepted=())], temperature=0.8)
    assert comparison.speedup_decode is not None and comparison.speedup_decode.value == pytest.approx(1.5)
    assert report.sentences(comparison)[0].startswith("Measured 1.50x")


_MILLISECONDS = st.floats(0.001, 50)


def timed(drafted: int, accepted: int, draft: float, verify: float, sample: float, overhead: float) -> Round:
    """A round whose phases take so many milliseconds."""
    return make_round(
        drafted,
        accepted,
        draft_seconds=1e-3 * draft,
        verify_seconds=1e-3 * verify,
        sample_seconds=1e-3 * sample,
        overhead_seconds=1e-3 * overhead,
    )


@given(
    st.lists(st.tuples(st.integers(0, 4), _MILLISECONDS, _MILLISECONDS, _MILLISECONDS, _MILLISECONDS), min_size=1),
    st.tuples(_MILLISECONDS, _MILLISECONDS, _MILLISECONDS),
    st.integers(1, 3),
)
def test_causes_add_up_to_the_gap(
    rounds: list[tuple[int, float, float, float, float]], step: tuple[float, float, float], repetitions: int
) -> None:
    drafted = [timed(4, accepted, *seconds) for accepted, *seconds in rounds]
    plain = timed(0, 0, 0.0, *step)
    results = [
        distinct(some, decoder, repetition, "a")
        for repetition in range(repetitions)
        for some, decoder in (([plain] * 5, "AR"), (drafted, "SD-K4"))
    ]
    comparison = compare(results, temperature=0)
    found = attribute(comparison)
    assert found is not None and comparison.speedup_decode is not None
    assert sum(loss.seconds_per_token for loss in found.losses) == pytest.approx(
        found.gap_seconds_per_token, rel=1e-9, abs=1e-12
    )
    assert found.measured_speedup == pytest.approx(comparison.speedup_decode.value)
    assert [loss.seconds_per_token for loss in found.losses] == sorted(
        (loss.seconds_per_token for loss in found.losses), reverse=True
    )
    assert to_text(report.render(comparison, title="t"), width=80, color=False)


def test_the_change_that_would_help_is_what_the_cost_model_says() -> None:
    # At position 1 all drafts are accepted, at position 2 none: K = 1 wins.
    comparison = compare([ar("a"), sd("a", accepted=[1] * 8), ar("b"), sd("b", accepted=[1] * 8)], temperature=0)
    change = best_change(comparison)
    assert change is not None and comparison.costs is not None
    assert (change.k, change.best_k) == (2, 1)
    assert change.best_speedup == comparison.costs.best_k_speedup_predicted
    assert change.best_speedup > change.speedup
    assert any("K 2 -> 1" in line for line in report.sentences(comparison))


def test_a_draft_that_is_never_right_is_better_left_out() -> None:
    comparison = compare([ar("a"), sd("a", accepted=[0] * 6), ar("b"), sd("b", accepted=[0] * 6)], temperature=0)
    assert any("not to speculate" in line for line in report.sentences(comparison))
    found = attribute(comparison)
    assert found is not None
    assert found.losses[0].name == "drafting rejected tokens"
    assert next(loss for loss in found.losses if loss.name == "drafting accepted tokens").seconds_per_token == 0


@pytest.mark.parametrize("results", [[], [ar("a")], [sd("a")]])
def test_one_arm_explains_nothing(results: list[object]) -> None:
    comparison = compare(results, temperature=0)  # type: ignore[arg-type]
    assert attribute(comparison) is None
    assert report.sentences(comparison) == [
        "Nothing to explain: it takes generations of both arms, plain and speculative, with complete rounds."
    ]
    assert report.to_dict(comparison)["attribution"] is None


# The command


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    isolate(tmp_path, monkeypatch)
    ok("run", *QUICK, "--k", "3")
    return tmp_path


def test_the_newest_run_is_explained(kept: Path) -> None:
    (run,) = Path("results").glob("*.jsonl")
    newest = ok("explain")
    assert newest.out.startswith("tiny_dev  K = 3  greedy\n")
    assert "= measured" in newest.out and "\x1b" not in newest.out
    assert ok("explain", run.stem).out == newest.out
    document = ok("explain", "--json").document
    assert document["schema"] == "specprof.explain/1" and document["name"] == run.stem
    parts = document["attribution"]
    assert sum(loss["seconds_per_token"] for loss in parts["losses"]) == pytest.approx(parts["gap_seconds_per_token"])
    measured = ok("results", "show", run.stem, "--json").document["speedup_decode"]["value"]
    assert parts["measured_speedup"] == pytest.approx(measured)
    assert json.dumps(document, allow_nan=False)


def test_what_can_not_be_explained(kept: Path) -> None:
    for arguments, what in (
        (("--results-dir", "elsewhere"), "no complete run in elsewhere"),
        (("nothing-of-that-name",), "no cell and no run 'nothing-of-that-name'"),
        (("--color", "red"), "--color 'red'"),
    ):
        outcome = command("explain", *arguments)
        assert outcome.code == USAGE and what in outcome.told[0]
        assert not outcome.out


def test_both_sides_of_the_advice_come_from_the_same_costs() -> None:
    # Surveyed rounds cost more than the run's own: advice that mixed the two would gain by that alone.
    dear = CostCurve((0.0, 0.003, 0.008), (0.010, 0.012, 0.014), (0.002, 0.002, 0.002), (9, 9, 9))
    comparison = compare([ar("a"), sd("a"), ar("b"), sd("b")], temperature=0, curve=dear)
    by_k = {prediction.k: prediction.speedup for prediction in comparison.predictions}
    change = best_change(comparison)
    assert change is not None and comparison.costs is not None
    assert change.speedup == by_k[2] != comparison.costs.speedup_predicted_with_ar_overhead
    assert change.best_speedup == max(1.0, *by_k.values())


def spent(draft: float, verify: float, accepted: int, k: int = 4) -> GenerationResult:
    """Six rounds of prompt a whose drafting and verifying take so many milliseconds."""
    rounds = [dataclasses.replace(timed(k, accepted, draft, verify, 0.5, 0.5), k=k) for _ in range(6)]
    return distinct(rounds, f"SD-K{k}", 0, "a")


def test_drafting_is_one_cause_whatever_became_of_the_tokens() -> None:
    # Drafting 6 ms a round, verifying 4.5 ms more than one token: neither part of drafting is as much alone.
    comparison = compare([ar("a"), spent(6, 14.5, 2)], temperature=0)
    found = attribute(comparison)
    assert found is not None and found.losses[0].name == "verifying more than one token"
    (cause,) = (line for line in report.sentences(comparison) if "largest cause" in line)
    assert "cause is drafting" in cause and "1.000 ms of it for tokens that were rejected" in cause


def test_nothing_drafted_is_nothing_to_explain() -> None:
    comparison = compare([ar("a"), spent(0, 10, 0, k=0)], temperature=0)
    assert attribute(comparison) is None
    assert report.sentences(comparison) == [
        "Nothing to explain: it takes generations of both arms, plain and speculative, with complete rounds."
    ]


def test_a_round_that_costs_less_than_a_step_loses_nothing() -> None:
    comparison = compare([ar("a"), spent(1, 5, 3)], temperature=0)
    found = attribute(comparison)
    assert found is not None and found.gap_seconds_per_token < 0
    assert all(loss.share is None for loss in found.losses)
    first, *others = report.sentences(comparison)
    assert "nothing is lost" in first and not any("largest cause" in line for line in others)


def test_several_lengths_measured_need_no_prediction() -> None:
    comparison = compare([ar("a"), sd("a"), ar("b"), sd("b")], temperature=0)
    lines = report.sentences(comparison, measured={1: 1.2, 2: 1.5, 4: 0.9})
    assert "K = 2 is the best of those measured (1, 2, 4)." in lines
    lines = report.sentences(comparison, measured={1: 0.8, 2: 0.7})
    assert any("not to speculate" in line and "(1, 2)" in line for line in lines)


def test_what_is_measured_to_be_faster_is_never_advised_against() -> None:
    # By the survey nothing pays; by the clock, on six prompts, it does.
    hopeless = CostCurve((0.0, 0.02, 0.04), (0.010, 0.020, 0.030), (0.002, 0.002, 0.002), (9, 9, 9))
    results = [generation for prompt in "abcdef" for generation in (ar(prompt), sd(prompt))]
    comparison = compare(results, temperature=0, curve=hopeless)
    assert comparison.costs is not None and comparison.costs.best_k == 0
    assert comparison.speedup_decode is not None and comparison.speedup_decode.verdict == "faster"
    assert not any("not to speculate" in line for line in report.sentences(comparison))
