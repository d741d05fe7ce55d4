"""Greedy speculation that is not the target's output ends with an error of its own, after all that was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Outcome, command, isolate, ok
from specprof.commands.run import _check_output
from specprof.decoding.judge import Judge, Ruling, Verdict
from specprof.errors import CorrectnessError
from specprof.experiments.saved_runs import differences, read_run, saved_runs
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.comparison import Comparison, compare
from specprof.profiling.events import RunEnded
from specprof.profiling.metrics import fold
from specprof.profiling.output_match import Divergence
from test_comparison import ar, sd

CORRECTNESS = 6
SHORT = (
    "-n", "2", "--max-new-tokens", "12", "--ignore-eos", "--reps", "1", "--warmup", "0", "--deterministic",
    "--no-cost-curve",
)  # fmt: skip
UNLIKE = ("--drafter", "random")
"""Drafts that are surely none of the target's text, however good the packaged draft is."""


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that accepts everything."""
    read = Judge.read

    def accepting(judge: Judge, ruling: Ruling) -> Verdict:
        verdict = read(judge, ruling)
        return dataclasses.replace(verdict, num_accepted=len(verdict.draft_tokens))

    monkeypatch.setattr(Judge, "read", accepting)


def run(*arguments: str) -> Outcome:
    return command("run", *SHORT, *UNLIKE, *arguments)


def failing(outcome: Outcome) -> None:
    assert outcome.code == CORRECTNESS
    error, hint = outcome.told
    assert error.startswith("speculation changed the output of 2 of 2 prompts, ") and " at token " in error
    assert "--forward hf" in hint


def test_a_broken_engine_is_told_after_its_table(broken: None) -> None:
    outcome = run()
    failing(outcome)
    assert "accept" in outcome.out and "tokens/s" in outcome.out
    [saved] = saved_runs(Path("results"))
    assert saved.complete
    assert str(saved.path) in outcome.err, "where its events are"
    assert outcome.err.index(str(saved.path)) < outcome.err.index("error:")


def test_a_broken_engine_is_told_after_its_document(broken: None) -> None:
    outcome = run("--json", "--output", "out.json")
    failing(outcome)
    match = outcome.document["output_matches_baseline"]
    assert (match["num_prompts"], match["num_identical"]) == (2, 0)
    for found in match["divergences"]:
        assert found["verdict"] == "failure" and found["gap"] > found["tolerance"] > 0
    assert Path("out.json").read_text() == outcome.out
    [saved] = saved_runs(Path("results"))
    compared = read_run(saved.path).compared().output_matches_baseline
    assert compared is not None and [dataclasses.asdict(d) for d in compared.failures] == match["divergences"]


def test_a_broken_engine_is_told_after_its_events(broken: None) -> None:
    outcome = run("--jsonl", "--no-save")
    failing(outcome)
    ended = outcome.events[-1]
    assert isinstance(ended, RunEnded) and [found["verdict"] for found in ended.differences] == ["failure"] * 2
    assert not Path("results").exists()


def test_the_report_of_such_a_run_says_so(broken: None) -> None:
    failing(run())
    ok("report", "--html", "r.html", "--md", "r.md")
    for text in (Path("r.html").read_text(), Path("r.md").read_text()):
        assert "output is not the target" in text and "2 prompts" in text
    [study] = ok("report", "--json").document["studies"]
    assert {d["verdict"] for d in study["by_k"]["4"]["output_matches_baseline"]["divergences"]} == {"failure"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--temperature", "1"),
        ("--synthetic-acceptance", "0.5"),
        ("--no-baseline",),
        ("--k", "0"),
        ("--temperature", "1", "--synthetic-acceptance", "0.5"),
    ],
    ids=" ".join,
)
def test_where_texts_may_differ_or_there_is_but_one_nothing_is_judged(arguments: tuple[str, ...], broken: None) -> None:
    document = ok("run", *SHORT, *UNLIKE, "--json", *arguments).document
    [saved] = saved_runs(Path("results"))
    assert read_run(saved.path).differences == ()
    match = document["output_matches_baseline"] or {"divergences": []}
    assert all(found["verdict"] is None for found in match["divergences"])


def test_an_engine_that_works_passes() -> None:
    match = ok("run", *SHORT, "--json").document["output_matches_baseline"]
    assert match == {"num_prompts": 2, "num_identical": 2, "divergences": []}


def test_a_tie_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tokens are exactly as likely everywhere, and a pass of several rounds one of them up."""
    text = [
        token for result in fold(ok("run", *SHORT, "--jsonl", "--no-save").events) for token in result.generated_ids
    ]
    often = text[1]
    extend, twin = ModelWrapper.extend, next(token for token in range(1, 4096) if token not in text)

    def rounding(wrapper: ModelWrapper, *arguments: Any, **options: Any) -> Any:
        logits = extend(wrapper, *arguments, **options).clone()
        # As near as two numbers can be that differ.
        aim = torch.tensor(float("inf") if logits.shape[0] > 1 else float("-inf"))
        logits[:, twin] = logits[:, often].nextafter(aim)
        return logits

    monkeypatch.setattr(ModelWrapper, "extend", rounding)
    outcome = ok("run", *SHORT, "--json")
    found = outcome.document["output_matches_baseline"]["divergences"]
    assert found and {each["verdict"] for each in found} == {"tie"}
    assert all(0 <= each["gap"] <= each["tolerance"] < 1e-3 for each in found)
    assert "numerical tie" in ok("report", "--md", "-").out


# By hand


def other(**known: Any) -> Comparison:
    """Of two prompts, the second of which parts at its fifth token."""
    parted = sd("b")
    parted = dataclasses.replace(parted, generated_ids=[*parted.generated_ids[:4], 777, *parted.generated_ids[5:]])
    ended = RunEnded(0, ({"prompt_id": "b", "position": 4} | known,) if known else ())
    return compare([ar("a"), sd("a"), ar("b"), parted], temperature=0, differences=differences(ended))


def test_what_was_found_out_is_said_of_the_place_it_was_found_at() -> None:
    match = other(verdict="tie", gap=0.25, tolerance=0.5, dtype="bfloat16").output_matches_baseline
    assert match is not None and match.divergences == (Divergence("b", 4, "tie", 0.25, 0.5),) and not match.failures
    elsewhere = other(position=3, verdict="tie").output_matches_baseline
    assert elsewhere is not None and elsewhere.divergences == (Divergence("b", 4),)


@pytest.mark.parametrize("known", [{}, {"verdict": "tie"}, {"position": 2, "verdict": "failure"}])
def test_only_a_failure_is_one(known: dict[str, Any]) -> None:
    _check_output(other(**known))


def test_nothing_to_compare_is_no_failure() -> None:
    _check_output(compare([ar("a")], temperature=0))
    _check_output(compare([ar("a"), sd("a")], temperature=1))


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"gap": 2.0, "tolerance": 0.001}, "the logits of the two tokens are 2 apart, and rounding explains 0.001"),
        ({}, "b at token 5"),
        ({"gap": None, "tolerance": 0.001}, "b at token 5"),
    ],
)
def test_a_failure_says_where(known: dict[str, Any], words: str) -> None:
    with pytest.raises(CorrectnessError) as caught:
        _check_output(other(verdict="failure", **known))
    assert "1 of 2 prompts" in caught.value.message and caught.value.message.endswith(words)
    assert caught.value.exit_code == CORRECTNESS and caught.value.hint
