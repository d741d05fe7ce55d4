"""Pairs whose speedup is known before they are measured: ``run``, ``report``, ``compare`` and ``sweep`` say so, with
the cause.

Passes take the time they are told to, on a clock that nothing else moves; all the rest is a real run of real models.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import independent
from command_line import Outcome, isolate, ok
from paced import Clock, Log, Pace, PacedModel
from specprof.experiments import arms
from specprof.models import hub, loader

TARGET = str(hub.local_directory("tiny_dev/target"))
load_model_once = functools.cache(loader.load_model)
Runs = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """A run of the packaged target, with its own copy as the draft: every draft is accepted."""
    isolate(tmp_path, monkeypatch)
    monkeypatch.setattr(loader, "load_model", load_model_once)
    monkeypatch.setattr("specprof.experiments.run.warm_shapes", lambda arms: None)
    perfect = tmp_path / "perfect"
    perfect.symlink_to(TARGET)
    clock = Clock()
    clock.install(monkeypatch)

    def measured(*arguments: str, target: Pace, draft: Pace | None = None) -> tuple[dict[str, Any], str]:
        paces = {TARGET: target, str(perfect): draft or target}

        def paced(*given: Any, name: str, **options: Any) -> PacedModel:
            return PacedModel(*given, name=name, pace=paces[name], clock=clock, log=Log(), **options)

        monkeypatch.setattr(arms, "ModelWrapper", paced)
        outcome: Outcome = ok(
            "run", "--target", TARGET, *(("--draft", str(perfect)) if draft else ()), *arguments, "-n", "5",
            "--reps", "1", "--warmup", "0", "--ignore-eos", "--deterministic", "--no-cost-curve", "-o", "run.json",
        )  # fmt: skip
        return json.loads(Path("run.json").read_text()), outcome.out

    return measured


def test_a_perfect_draft_at_a_tenth_of_the_cost_is_as_fast_as_arithmetic_has_it(run: Runs) -> None:
    # 1 token from the prefill and 3 rounds of 4, each of 3 drafts and a verification
    document, table = run(
        "--k", "3", "--max-new-tokens", "13", target=Pace(1.0, prefill=2.0), draft=Pace(0.1, prefill=0.5)
    )
    truth = 4 / (1 + 3 * 0.1)
    speedup = document["speedup_decode"]
    assert (speedup["value"], speedup["verdict"]) == (pytest.approx(truth), "faster")
    assert speedup["ci"] == pytest.approx([truth, truth])
    assert document["speedup_e2e"]["value"] == pytest.approx((2 + 12) / (2.5 + 3 * 1.3))
    assert document["acceptance"]["draft_acceptance_rate"] == document["acceptance"]["alpha"] == 1
    assert document["costs"]["draft_cost_ratio"] == pytest.approx(0.1)
    assert document["costs"]["verify_ratio"] == pytest.approx(1)
    assert document["costs"]["best_k"] == 3
    assert document["baseline"]["tpot_seconds"] == pytest.approx(1)
    assert document["speculative"]["tpot_seconds"] == pytest.approx(1.3 / 4)
    assert "3.08x decode, faster" in table and "largest loss" not in table
    report = ok("report", document["run_id"], "--md", "-").out
    assert "faster than plain decoding: 3.08x" in report


def test_copied_text_looked_up_for_nothing_is_faster_by_the_rounds_it_saves(run: Runs) -> None:
    prompts = [part for word in "abcde" for part in ("--prompt", f"{word} = 1; " * 24)]
    document, _ = run("--drafter", "ngram", "--k", "4", "--max-new-tokens", "33", *prompts, target=Pace(1.0))
    sd = document["speculative"]
    truth = (sd["num_tokens"] - sd["num_generations"]) / sd["num_rounds"]  # a round costs one pass, drafts nothing
    assert truth > 1.2, "text that repeats itself is copied"
    assert document["speedup_decode"]["value"] == pytest.approx(truth)
    assert document["baseline"]["repetition"] > 0 and any("end in a loop" in told for told in document["warnings"])


@pytest.mark.parametrize(
    ("draft", "more", "arguments", "cause"),
    [
        (Pace(0.9), 0.0, ("--synthetic-acceptance", "0.5"), "drafting: 0.90 of a target pass"),
        (Pace(0.01), 0.8, ("--synthetic-acceptance", "0.3"), "verification: a pass over 5"),
        (None, 0.25, ("--drafter", "random"), "verification: a pass over 5"),
    ],
    ids=["dear draft", "dear verification", "random tokens"],
)  # fmt: skip
def test_what_is_slow_is_called_slower_and_by_its_cause(
    draft: Pace | None, more: float, arguments: tuple[str, ...], cause: str, run: Runs
) -> None:
    target = Pace(1.0, more)
    document, table = run("--k", "4", *arguments, "--max-new-tokens", "17", target=target, draft=draft)
    texts = independent.texts_of_run(Path(document["events_file"]).read_text().splitlines())
    rounds = [round for text in texts if text["decoder"] != "AR" for round in text["rounds"]]
    spent = sum(
        len(round["draft_tokens"]) * (draft.step if draft else 0) + target.seconds(len(round["draft_tokens"]) + 1, 1)
        for round in rounds
    )
    truth = sum(len(round["emitted_tokens"]) for round in rounds) / spent
    speedup = document["speedup_decode"]
    assert speedup["value"] == pytest.approx(truth) and truth < 0.8
    assert speedup["verdict"] == "slower" and speedup["ci"][1] < 1
    assert (
        f"The largest loss is {cause}" in document["explanation"] and f"{speedup['value']:.2f}x decode, slower" in table
    )
    assert "is slower than plain decoding" in ok("report", document["run_id"], "--md", "-").out
    explained = ok("explain", document["run_id"]).out
    assert ("drafting" if draft and draft.step > 0.5 else "verifying") in explained.partition("The largest cause is")[
        2
    ][:40]


def test_a_slower_one_after_a_faster_one_is_told_by_compare(run: Runs) -> None:
    asked = ("--k", "3", "--max-new-tokens", "13")
    before, _ = run(*asked, target=Pace(1.0), draft=Pace(0.1))
    after, _ = run(*asked, target=Pace(1.0), draft=Pace(0.4))
    document = ok("compare", before["run_id"], after["run_id"], "--json").document
    (difference,) = [row for row in document["comparisons"][0]["differences"] if row["domain"] is None]
    assert difference["speedup"]["ratio"]["value"] == pytest.approx((1 + 3 * 0.1) / (1 + 3 * 0.4))
    assert difference["verdict"] == "slower"
    assert difference["ar_tokens_per_second"]["ratio"]["value"] == pytest.approx(1)
    assert "B is 41 % slower than A" in ok("compare", before["run_id"], after["run_id"]).out
    same = ok("compare", before["run_id"], before["run_id"], "--json").document["comparisons"][0]["differences"][0]
    assert (same["speedup"]["ratio"]["value"], same["verdict"]) == (1, "not distinguishable")


@pytest.mark.slow
def test_a_sweep_that_drafts_at_random_says_that_it_is_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine's own clock: of 8 drafted tokens next to none is accepted, and verifying them is not free."""
    isolate(tmp_path, monkeypatch)
    (matrix,) = ok(
        "sweep", "--drafter", "random", "--k", "8", "-n", "6", "--domain", "code", "--reps", "2", "--warmup", "0",
        "--max-new-tokens", "24", "--ignore-eos", "--deterministic", "--json",
    ).document["matrices"]  # fmt: skip
    comparison = matrix["by_k"]["8"]
    speedup = comparison["speedup_decode"]
    assert speedup["verdict"] == "slower" and speedup["value"] < 0.9
    assert comparison["acceptance"]["draft_acceptance_rate"] < 0.02
    assert comparison["costs"]["verify_ratio"] > 1
    assert math.isclose(sum(phase["share"] for phase in comparison["speculative"]["phases"].values()), 1)
    assert "slower" in ok("report", "--md", "-").out
