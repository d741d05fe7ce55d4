"""A report of whatever a run or a sweep left: built, laid out in both forms, and its numbers are those measured."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import large_run
import sample_store
from drawn_once import draw_once
from large_run import CURVE, prompts
from sample_report import HOSTILE, blocks, tables
from sample_store import ELSEWHERE, HERE, SD
from specprof.experiments.records import CellStarted, Failure, Machine, Record, Session
from specprof.experiments.results import read_contents
from specprof.experiments.saved_runs import read_run
from specprof.experiments.study import Study, of_run, of_sweep
from specprof.profiling.comparison import Comparison
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round, RunEnded, RunStarted
from specprof.profiling.metrics import BenchmarkConfig
from specprof.profiling.speedup import Speedup
from specprof.reports import explain, html, markdown
from specprof.reports.document import (
    Bullets,
    Command,
    Definitions,
    Figure,
    Paragraph,
    Report,
    Table,
    TokenStream,
)
from specprof.reports.report import MOST_DETAILED, report, to_dict
from specprof.reports.results import finite
from test_html import Page

QUESTIONS = ["why", "speed", "time", "best-k", "acceptance", "output", "tokens", "device"]


@pytest.fixture(autouse=True)
def _figures(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_once(monkeypatch)


def of(happened: Iterator[Event] | Sequence[Event]) -> Study:
    """The study of a run that was kept and read again."""
    with tempfile.TemporaryDirectory() as directory:
        return of_run(read_run(large_run.write(Path(directory), happened)))


def of_store(records: Sequence[Record], name: str = "results") -> list[Study]:
    with tempfile.TemporaryDirectory() as directory:
        sample_store.write(Path(directory), records)
        return of_sweep(read_contents(Path(directory), with_rounds=True), name)


def changed(happened: Iterator[Event], change: Callable[[Event], Event | None]) -> list[Event]:
    """Events as ``change`` makes them; None leaves one out."""
    return [event for event in map(change, happened) if event is not None]


# Runs of every kind


def all_cut(event: Event) -> Event:
    return dataclasses.replace(event, cut=True) if isinstance(event, Round) else event


def first_token_only(event: Event) -> Event | None:
    return None if isinstance(event, Round) else event


def of_long_ago(event: Event) -> Event:
    """Before texts, hindsight and energy were noted."""
    if isinstance(event, PromptEnded):
        return dataclasses.replace(event, token_texts=None, draft_matches=None, energy_joules=None)
    if isinstance(event, RunStarted):
        config = {key: value for key, value in event.config.items() if key not in ("cost_curve", "command", "models")}
        return dataclasses.replace(event, config=config, machine={})
    return event


def without_drafts(happened: Iterator[Event]) -> list[Event]:
    """Half of the rounds found nothing to propose."""

    def empty(event: Event) -> Event:
        if isinstance(event, Round) and event.k and event.index % 2:
            return dataclasses.replace(
                event, draft_tokens=(), num_accepted=0, emitted_tokens=event.emitted_tokens[-1:], cut=False
            )
        return event

    return changed(happened, empty)


def looked_into(*differences: dict[str, Any]) -> Callable[[Event], Event]:
    """The end of a run that found out why texts differ."""
    return lambda event: dataclasses.replace(event, differences=differences) if isinstance(event, RunEnded) else event


def other_text(event: Event) -> Event:
    """Speculation's text of the first prompt parts from plain decoding's in its first round."""
    if isinstance(event, Round) and (event.prompt_id, event.index) == ("code_000", 0) and event.decoder != "AR":
        return dataclasses.replace(event, emitted_tokens=(*event.emitted_tokens[:-1], 1999))
    return event


def position(happened: Sequence[Event]) -> int:
    """Where the texts of :func:`other_text` part."""
    first = next(e for e in happened if isinstance(e, Round) and e.prompt_id == "code_000" and e.decoder != "AR")
    return len(first.emitted_tokens)


RUNS: dict[str, Callable[[], Iterator[Event] | Sequence[Event]]] = {
    "three domains": lambda: large_run.run(curve=CURVE, joules=2.5),
    "one prompt": lambda: large_run.run(prompts(1), curve=CURVE),
    "one domain": lambda: large_run.run(prompts(6, ["code"])),
    "repetitions": lambda: large_run.run(prompts(3), repetitions=3),
    "sampled": lambda: large_run.run(temperature=0.8, curve=CURVE),
    "no baseline": lambda: large_run.run(baseline=False, curve=CURVE),
    "no baseline, one prompt": lambda: large_run.run(prompts(1), baseline=False),
    "K = 0": lambda: large_run.run(k=0),
    "K = auto": lambda: large_run.run(k="auto"),
    "K = 1": lambda: large_run.run(k=1),
    "zero accepted": lambda: large_run.run(accepted=0.0, curve=CURVE),
    "all accepted": lambda: large_run.run(accepted=1.0, curve=CURVE),
    "sampled, zero accepted": lambda: large_run.run(accepted=0.0, temperature=1.0),
    "all rounds cut": lambda: changed(large_run.run(curve=CURVE), all_cut),
    "no rounds": lambda: changed(large_run.run(curve=CURVE), first_token_only),
    "no rounds, no baseline": lambda: changed(large_run.run(baseline=False), first_token_only),
    "one round": lambda: large_run.run(prompts(2), num_tokens=2),
    "of long ago": lambda: changed(large_run.run(), of_long_ago),
    "of long ago, sampled": lambda: changed(large_run.run(temperature=1.0), of_long_ago),
    "caveats": lambda: large_run.run(caveats=["random weights: text means nothing", "synthetic acceptance 0.7"]),
    "lookup": lambda: without_drafts(large_run.run(drafter="ngram", models={"target": {"model": "t", "dtype": "x"}})),
    "a tie": lambda: changed(large_run.run(), other_text),
    "phases that take no time": lambda: changed(
        large_run.run(),
        lambda e: dataclasses.replace(e, sample_seconds=0.0, overhead_seconds=0.0) if isinstance(e, Round) else e,
    ),
    "a clock that stands": lambda: changed(
        large_run.run(curve=CURVE),
        lambda e: (
            dataclasses.replace(e, draft_seconds=0.0, verify_seconds=0.0, sample_seconds=0.0, overhead_seconds=0.0)
            if isinstance(e, Round)
            else e
        ),
    ),
    "nothing asked": lambda: large_run.run([]),
    "prompts without a domain": lambda: large_run.run(prompts=[{"prompt_id": "code_000"}], pair={}),
    "a GPU": lambda: large_run.run(
        machine={"gpu": {"name": "NVIDIA H200", "driver": "580.1", "cuda": "13.0"}, "cpu": "An EPYC"}
    ),
    "huge times": lambda: changed(
        large_run.run(), lambda e: dataclasses.replace(e, verify_seconds=1e99) if isinstance(e, Round) else e
    ),
}


@functools.cache
def study(case: str) -> Study:
    return of(RUNS[case]())


@functools.cache
def reported(case: str) -> Report:
    return report([study(case)])


@pytest.mark.parametrize("case", RUNS)
def test_a_run_has_a_report(case: str) -> None:
    check(reported(case))


@pytest.mark.parametrize("number", [0, 1, 2, 3, 12])
def test_a_run_that_was_interrupted_has_one(number: int) -> None:
    """After so many generations, in the middle of the next."""
    kept, ended = [], 0
    for event in large_run.run(prompts(6), curve=CURVE):
        if isinstance(event, RunEnded) or (ended == number and isinstance(event, PromptEnded)):
            break
        kept.append(event)
        ended += isinstance(event, PromptEnded)
    found = of(kept)
    check(report([found]))
    assert sum(len(results) for results in found.results.values()) == number
    assert found.headline is None if not number else found.headline is not None
    assert (found.headline is not None and found.headline.speedup_decode is not None) == (number >= 2)


def test_several_runs_have_one() -> None:
    whole = report([study("three domains"), study("sampled"), study("no rounds"), study("K = auto")])
    check(whole)
    assert "of 3 studies" in whole.verdict and "4 studies" in whole.title
    check(report([study("no baseline"), study("no rounds")]))
    assert report([study("no baseline"), study("no rounds")]).verdict == "No speedup was measured."


def test_studies_of_few_prompts_are_not_counted_as_slow() -> None:
    told = report([study("three domains"), study("one prompt"), study("one domain")]).verdict
    assert "in 2 of 3 studies (1 with too few prompts for a verdict); the highest" in told


def test_nothing_has_one() -> None:
    check(report([]))


def check(whole: Report) -> None:
    """What holds for every report of runs that have ordinary names."""
    for text in texts(whole):
        assert not re.search(r"\b(None|nan|inf|null|True|False)\b|[{}]", text), text
    assert re.fullmatch(r"[A-Z].*[^.\s]\.", whole.verdict) and ". " not in whole.verdict, whole.verdict
    sound(whole)


def sound(whole: Report) -> tuple[str, str]:
    """Both forms of any report, and what holds for them."""
    page, text = html.render(whole), markdown.render(whole, figures="figures")
    assert len(page.encode()) < 5_000_000 and len(text.encode()) <= 60_000
    assert whole.title and whole.verdict
    names = [section.name for section in whole.sections]
    figures = [block.name for block in blocks(whole) if isinstance(block, Figure)]
    assert len(set(names)) == len(names) and len(set(figures)) == len(figures), names + figures
    assert all(re.fullmatch(r"[A-Za-z0-9-]+", name) for name in names + figures)
    assert all(section.title and section.blocks for section in whole.sections)
    for table in tables(whole):
        assert table.columns and all(len(row) == len(table.columns) for row in table.rows), table.caption
    ids = [attributes["id"] for _, attributes in Page(page).elements if "id" in attributes]
    assert len(set(ids)) == len(ids) and set(names) <= set(ids)
    json.dumps(whole.summary, allow_nan=False)
    return page, text


def texts(whole: Report) -> Iterator[str]:
    """Everything that is said in words, but for generated text."""
    yield from (whole.title, whole.subtitle, whole.verdict, *whole.warnings)
    for section in whole.sections:
        yield section.title
    for table in tables(whole):
        yield table.caption
        yield from (column.name for column in table.columns)
        yield from (cell.text for row in table.rows for cell in row)
    for block in blocks(whole):
        match block:
            case Paragraph() | Command():
                yield block.text
            case Bullets():
                yield from block.items
            case Figure():
                yield from (block.title, block.caption)
            case TokenStream():
                yield block.title
            case Definitions():
                yield from (part for term in block.terms for part in term)


def section(whole: Report, name: str) -> list[Any]:
    """A section's blocks."""
    return [block for found in whole.sections if found.name == name for block in found.blocks]


def rows(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


# The verdict


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        ("three domains", r"Speculation with K = 4 is faster than plain decoding: [\d.]+x \[.*\]; .*x on code.*"),
        ("zero accepted", r"Speculation with K = 4 is slower than plain decoding: 0\.\d\dx \[.*\]; .*"),
        ("one prompt", r"Speculation with K = 4 has too few prompts for a verdict: \d\.\d\dx\."),
        ("one domain", r"Speculation with K = 4 is faster than plain decoding: \d\.\d\dx \[.*\]\."),
        ("no baseline", r"No speedup: only SD-K4 was measured\."),
        ("no rounds", r"No speedup: no text has more than one token\."),
        ("nothing asked", r"Nothing was measured\."),
    ],
)
def test_the_verdict(case: str, verdict: str) -> None:
    assert re.fullmatch(verdict, reported(case).verdict), reported(case).verdict


# The numbers


def of_comparison(case: str) -> tuple[Report, Comparison]:
    found = study(case).headline
    assert found is not None
    return reported(case), found


@pytest.mark.parametrize("case", ["three domains", "sampled", "no baseline", "K = auto", "no rounds", "huge times"])
def test_the_key_table_has_what_was_measured(case: str) -> None:
    whole, found = of_comparison(case)
    arms = [arm for arm in (found.baseline, found.speculative) if arm is not None]
    [table] = [t for t in section(whole, "speed") if isinstance(t, Table) and "first token, ms" in str(rows(t))]
    assert [column.name for column in table.columns[1:-2]] == [arm.decoder for arm in arms]
    shown = {row[0].partition(" (")[0]: row[1:] for row in rows(table)}
    for label, values, speedup in [
        ("tokens/s, decode", [arm.tokens_per_second for arm in arms], found.speedup_decode),
        ("tokens/s, end to end", [arm.tokens_per_second_e2e for arm in arms], found.speedup_e2e),
    ]:
        assert [number(text) for text in shown[label][:-2]] == approximately(values)
        assert shown[label][-2:] == worded(speedup) or (speedup is None and shown[label][-2:] == ["", ""])
    for label, values in [
        ("first token, ms", [arm.ttft_seconds for arm in arms]),
        ("per token after, ms", [arm.tpot_seconds for arm in arms]),
    ]:
        milliseconds = [None if value is None else value * 1e3 for value in values]
        assert [number(text) for text in shown[label][:-2]] == approximately(milliseconds)
    assert shown["tokens generated"][:-2] == [str(arm.num_tokens) for arm in arms]
    assert shown["rounds"][:-2] == [str(arm.num_rounds) for arm in arms]


def number(text: str) -> float | None:
    return None if text == "-" else float(text.removesuffix("x").removesuffix(" %"))


def approximately(values: Sequence[float | None]) -> list[Any]:
    return [None if value is None else pytest.approx(value, rel=6e-3) for value in values]


def worded(speedup: Speedup | None) -> list[str]:
    if speedup is None or speedup.value is None:
        return ["-", "-"]
    return [f"{speedup.value:.2f}x", f"[{speedup.ci[0]:.2f}, {speedup.ci[1]:.2f}]" if speedup.ci else "-"]


def test_the_domain_table_has_what_was_measured() -> None:
    whole, found = of_comparison("three domains")
    [table] = [t for t in section(whole, "speed") if isinstance(t, Table) and t.caption == "By domain; K = 4."]
    expected = []
    parts = [(name, domain.speedup_decode, domain.acceptance) for name, domain in found.domains.items()]
    for name, speedup, acceptance in [*parts, ("all", found.speedup_decode, found.acceptance)]:
        assert speedup is not None and acceptance is not None and acceptance.mean_acceptance_length is not None
        tau, rate = acceptance.mean_acceptance_length, acceptance.draft_acceptance_rate or 0.0
        expected.append([name, str(speedup.n_prompts), *worded(speedup), f"{tau:.2f}", f"{100 * rate:.0f} %"])
    assert rows(table) == expected and len(expected) == 4


def test_the_prediction_table_has_what_was_predicted() -> None:
    whole, found = of_comparison("three domains")
    [table] = [t for t in section(whole, "best-k") if isinstance(t, Table) and "Predicted from" in t.caption]
    expected = []
    for p in found.predictions:
        measured = worded(found.speedup_decode) if p.k == 4 else ["-", "-"]
        alpha = "-" if p.speedup_from_alpha is None else f"{p.speedup_from_alpha:.2f}x"
        even = f"{p.break_even_tau:.2f}"
        expected.append([str(p.k), f"{p.tokens_per_round:.2f}", even, f"{p.speedup:.2f}x", alpha, *measured])
    assert rows(table) == expected and len(expected) == 4


def test_the_cost_table_has_what_was_surveyed() -> None:
    whole = reported("three domains")
    [table] = [t for t in section(whole, "best-k") if isinstance(t, Table) and "one-token passes" in t.caption]
    assert [row[0] for row in rows(table)] == ["0", "1", "2", "3", "4"]
    for row, k in zip(rows(table)[1:], range(1, 5), strict=True):
        values = [CURVE.draft_cost_ratio(k), CURVE.verify_ratio(k), CURVE.overhead_ratio(k), CURVE.break_even_tau(k)]
        assert [float(text) for text in row[1:5]] == [pytest.approx(value, abs=0.006) for value in values]
        assert int(row[5]) == CURVE.by_k()[k]["num_rounds"]
    assert "4.00 ms" in table.caption


def test_the_phases_sum_to_the_round() -> None:
    whole, found = of_comparison("three domains")
    [table] = [t for t in section(whole, "time") if isinstance(t, Table)]
    for number_of_arm, arm in enumerate((found.baseline, found.speculative)):
        assert arm is not None
        phases = [getattr(arm.phases, row[0]) for row in rows(table)[:4]]
        for column, field in enumerate(("seconds_per_round", "seconds_per_token")):
            shown = [number(row[1 + 3 * number_of_arm + column]) for row in rows(table)]
            values = [getattr(phase, field) * 1e3 for phase in phases]
            assert [value or 0.0 for value in shown[:4]] == [pytest.approx(value, abs=6e-4) for value in values]
            assert shown[4] == pytest.approx(sum(values), abs=6e-4)
        assert rows(table)[4][3 + 3 * number_of_arm] == "100 %"
    assert rows(table)[0][1:4] == ["-"] * 3, "plain decoding drafts nothing: no measured 0"


def test_the_bullets_are_those_of_explain() -> None:
    whole, found = of_comparison("three domains")
    first, table = section(whole, "why")
    assert isinstance(first, Bullets) and list(first.items) == explain.sentences(found) and len(first.items) >= 2
    explained = explain.to_dict(found)["attribution"]
    assert [row[0].removeprefix("+ ") for row in rows(table)][2:-1] == [loss["name"] for loss in explained["losses"]]
    parts = [float(row[1]) for row in rows(table)[1:-1]]
    assert sum(parts) == pytest.approx(float(rows(table)[-1][1]), abs=4e-3)


def test_the_document_has_the_same_numbers() -> None:
    found = study("three domains")
    document = to_dict([found])
    assert json.loads(json.dumps(finite(document), allow_nan=False)) == finite(document)
    [only] = document["studies"]
    assert only["by_k"]["4"] == found.comparisons[4].to_dict() | {"explain": explain.to_dict(found.comparisons[4])}
    assert only["best_measured_k"] == 4 and only["cost_curve"] == CURVE.to_dict()
    assert only["commands"] == list(found.commands)
    whole = report([found])
    assert whole.summary == finite(document) and document["verdict"] == whole.verdict
    assert Page(html.render(whole)).texts, "the page embeds it"


def test_every_question_has_its_section_in_order() -> None:
    whole = reported("three domains")
    names = [found.name for found in whole.sections]
    assert names == [*QUESTIONS, "definitions", "method", "machine"]
    figures = [block.name for block in blocks(whole) if isinstance(block, Figure)]
    assert set(figures) >= {"time", "latency", "cost", "acceptance", "accepted-per-round"}


def test_what_is_empty_is_left_out() -> None:
    names = {found.name for found in reported("nothing asked").sections}
    assert names == {"definitions", "method", "machine"}


def test_a_title_may_be_given() -> None:
    assert report([study("one prompt")], title="mine").title == "mine"


def test_energy_is_shown_or_a_dash() -> None:
    for case, joules in (("three domains", "0.052"), ("one domain", "-")):
        [table] = section(reported(case), "device")
        assert rows(table)[-1] == ["energy, J per token", joules, joules], "2.5 J for 48 tokens"


# Is it the target's output


TIE = {"prompt_id": "code_000", "position": 3, "verdict": "tie", "gap": 1e-6, "tolerance": 1e-4, "dtype": "float32"}
FAILURE = {"prompt_id": "code_000", "position": 3, "verdict": "failure", "gap": 2.0, "tolerance": 1e-4}


@pytest.mark.parametrize(
    ("difference", "counts", "warned"),
    [(TIE, ["1", "0", "0"], False), (FAILURE, ["0", "1", "0"], True), (None, ["0", "0", "1"], False)],
)
def test_a_difference_is_told(difference: dict[str, Any] | None, counts: list[str], warned: bool) -> None:
    happened = changed(large_run.run(), other_text)
    at = position(happened)
    known = [] if difference is None else [difference | {"position": at}]
    whole = report([of(changed(iter(happened), looked_into(*known)))])
    check(whole)
    summary, detail = section(whole, "output")
    assert rows(summary) == [["4", "6", "5", *counts]]
    [row] = rows(detail)
    assert row[:3] == ["4", "code_000", str(at + 1)]
    words = {"tie": "numerical tie", "failure": "failure"}
    assert row[5] == ("-" if difference is None else words[difference["verdict"]])
    assert [cell.mark for cell in summary.rows[0]].count("failed") == warned
    assert any("output is not the target's: 1 prompt" in warning for warning in whole.warnings) == warned


def test_texts_that_agree_are_said_to() -> None:
    [only] = section(reported("three domains"), "output")
    assert rows(only) == [["4", "6", "6", "0", "0", "0"]]


@pytest.mark.parametrize(("case", "word"), [("sampled", "specprof verify"), ("no baseline", "nothing to compare with")])
def test_why_nothing_is_compared(case: str, word: str) -> None:
    [only] = section(reported(case), "output")
    assert isinstance(only, Paragraph) and word in only.text


def test_caveats_come_before_everything() -> None:
    warnings = reported("caveats").warnings
    assert warnings[:2] == ("random weights: text means nothing", "synthetic acceptance 0.7")


# Sweeps


def sweep(
    *, lengths: Sequence[int] = (2, 4), domains: Sequence[str] = ("code", "conversation"), **more: Any
) -> list[Record]:
    """A finished sweep of one pair."""
    made: list[Record] = [sample_store.session(), sample_store.machine()]
    return [*made, *cells(lengths=lengths, domains=domains, **more)]


def cells(
    *,
    lengths: Sequence[int] = (2, 4),
    domains: Sequence[str] = ("code", "conversation"),
    num_prompts: int = 3,
    machine_class: str = HERE,
    **config: Any,
) -> list[Record]:
    made: list[Record] = []
    for domain in domains:
        for k in (0, *lengths):
            asked = sample_store.config(k, domain, **config)
            made.append(sample_store.cell(asked, machine_class, num_prompts=num_prompts))
            for prompt in range(num_prompts):
                sequence = 1 + len(made)
                made.append(sample_store.generation(sequence, asked, prompt, machine_class=machine_class))
    return made


def failed(*asked: BenchmarkConfig, reason: str = "out of memory") -> list[Record]:
    return [
        record for each in asked for record in (sample_store.cell(each), sample_store.failure(900, each, reason=reason))
    ]


def test_a_sweep_has_a_report() -> None:
    found = of_store(sweep())
    assert [each.is_sweep for each in found] == [True] and found[0].commands == ("specprof sweep",)
    whole = report(found)
    check(whole)
    [table] = [t for t in section(whole, "speed") if isinstance(t, Table) and t.caption == "By domain."]
    assert [row[:3] for row in rows(table)] == [
        [k, domain, count] for k in "24" for domain, count in [("code", "3"), ("conversation", "3"), ("all", "6")]
    ]
    [predicted] = [t for t in section(whole, "best-k") if isinstance(t, Table) and "each K's own" in t.caption]
    assert [row[0] for row in rows(predicted)] == ["2", "4"]
    assert "2.00x" in whole.verdict and "the best measured" in whole.verdict


def test_cells_that_failed_were_skipped_or_are_incomplete_are_told() -> None:
    incomplete = sample_store.config(16)
    records = [
        *sweep(domains=["code"]),
        *failed(sample_store.config(8)),
        *failed(sample_store.config(12), reason="skipped"),
        sample_store.cell(incomplete),
        sample_store.generation(950, incomplete),
    ]
    whole = report(of_store(records))
    check(whole)
    [table] = section(whole, "missing")
    assert [row[1:4] for row in rows(table)] == [
        ["code", "8", "out of memory"], ["code", "12", "skipped"], ["code", "16", "1 of 2"],
    ]  # fmt: skip
    assert rows(table)[0][4] == "12 GB are not enough (use a smaller model)"


def test_a_sweep_of_which_every_cell_failed_has_a_report() -> None:
    records = [sample_store.session(), sample_store.machine(), *failed(sample_store.config(0), SD)]
    [found] = of_store(records)
    assert found.comparisons == {} and found.headline is None
    whole = report([found])
    check(whole)
    assert whole.verdict == "Nothing was measured."
    assert [row[2:4] for row in rows(section(whole, "missing")[0])] == [
        ["plain", "out of memory"],
        ["4", "out of memory"],
    ]


def test_a_sweep_without_its_baseline_has_a_report() -> None:
    records = [*sweep(domains=["code"])[:2], sample_store.cell(SD), sample_store.generation(3, SD)]
    whole = report(of_store(records))
    check(whole)
    assert whole.verdict == "No speedup: only SD-K4 was measured."


def test_pairs_and_machines_are_told_apart() -> None:
    records = [
        *sweep(),
        *cells(pair="gpt2_dev"),
        *cells(temperature=0.8),
        sample_store.machine(ELSEWHERE),
        *cells(machine_class=ELSEWHERE),
    ]
    found = of_store(records)
    assert len(found) == 4
    whole = report(found)
    check(whole)
    assert any("different machines" in warning for warning in whole.warnings)
    assert "faster than plain decoding in 4 of 4 studies" in whole.verdict
    [machines] = [table for table in section(whole, "machine") if isinstance(table, Table)]
    assert {column.name for column in machines.columns[1:]} == {HERE, ELSEWHERE}
    overview = section(whole, "speed")[0]
    assert len({row[0] for row in rows(overview)}) == 4, "two of one title are not told apart"


def test_of_many_studies_the_first_are_shown_in_detail() -> None:
    records = [
        *sweep()[:2],
        *(r for t in range(MOST_DETAILED + 3) for r in cells(domains=["code"], temperature=t / 10)),
    ]
    found = of_store(records)
    assert len(found) == MOST_DETAILED + 3
    whole = report(found)
    check(whole)
    assert len(rows(section(whole, "speed")[0])) == MOST_DETAILED + 3
    assert any(f"Of {MOST_DETAILED + 3} studies" in warning for warning in whole.warnings)
    latencies = [block for block in blocks(whole) if isinstance(block, Figure) and block.name.startswith("latency")]
    assert len(latencies) == MOST_DETAILED


def test_of_many_cells_that_failed_some_are_shown() -> None:
    failing = failed(*(sample_store.config(k, f"domain {d}") for d in range(20) for k in range(1, 5)))
    whole = report(of_store([*sweep(domains=["code"]), *failing]))
    check(whole)
    [table] = section(whole, "missing")
    assert len(table.rows) == 40 and "And 40 more" in table.caption


@pytest.mark.slow
def test_a_large_sweep_fits_into_both_forms() -> None:
    pairs = ("tiny_dev", "gpt2_dev", "a", "b", "c", "d")
    domains = [f"domain {number}" for number in range(8)]
    several = [cells(domains=domains, lengths=range(1, 9), pair=pair, num_prompts=2) for pair in pairs]
    whole = report(of_store([*sweep()[:2], *(record for some in several for record in some)]))
    assert len(markdown.render(whole, figures="figures").encode()) <= 60_000
    assert len(html.render(whole)) < 2_000_000


# Whatever stands in a file

_SHORT = [text for name, text in HOSTILE.items() if name != "long"]
ENEMIES = (" ".join(_SHORT[:10]), " ".join(_SHORT[10:]), HOSTILE["long"][:2000])
"""All together, since what becomes of each is for the tests of both forms; and those that break more than a form."""


@pytest.mark.parametrize("text", ENEMIES)
def test_hostile_names_are_only_names(text: str) -> None:
    named = text[:900]  # it stands in many places

    def hostile(event: Event) -> Event:
        if isinstance(event, RunStarted):
            return event
        if isinstance(event, PromptEnded):
            event = dataclasses.replace(event, token_texts=event.token_texts and dict.fromkeys(event.token_texts, text))
        if isinstance(event, Prefilled | Round | PromptEnded):
            return dataclasses.replace(event, prompt_id=event.prompt_id + named)
        return dataclasses.replace(event, differences=({"prompt_id": named, "position": 3, "verdict": text},))

    happened = large_run.run(
        [(prompt_id, domain + named) for prompt_id, domain in prompts(2)],
        num_tokens=12,
        run_id=named,
        curve=CURVE,
        machine={
            named: named,
            "cpu": named,
            "gpu": {"name": named, "driver": named},
            "cores": [named],
            "git_commit": {},
        },
        pair={"name": named},
        drafter=named,
        vocab_method=named,
        caveats=[named],
        command=named,
        models={"target": {"model": named, "device": named, "dtype": named, "parameters": named}, "draft": named},
        prompts=[{"prompt_id": prompt_id + named, "domain": domain + named} for prompt_id, domain in prompts(2)],
        forward=named,
        chat_template=[named],
    )
    inert(report([of(changed(happened, hostile))]))
    inert(
        report(
            [of(changed(large_run.run(prompts(1), run_id=named, pair={"name": named}, num_tokens=12), hostile))] * 2,
            title=named,
        )
    )


@pytest.mark.parametrize("text", ENEMIES)
def test_hostile_names_in_a_sweep(text: str) -> None:
    named = text[:900]  # it stands in many places

    def renamed(record: Record) -> Record:
        match record:
            case Session():
                return dataclasses.replace(record, command=named)
            case Machine():
                return dataclasses.replace(record, machine={"cpu": named, "gpu": {"name": named}, named: [named]})
            case CellStarted():
                return dataclasses.replace(record, caveats=(named,), models={"target": {"model": named}, named: named})
            case Failure():
                return dataclasses.replace(record, reason=named, message=text, hint=named)
        return record

    failing = sample_store.config(8, named, pair=named)
    records = [*sweep(domains=[named], pair=named), *failed(failing)]
    inert(report(of_store([renamed(record) for record in records], name=named)))


def inert(whole: Report) -> None:
    page, text = sound(whole)
    elements = Page(page).elements
    assert {tag for tag, _ in elements}.isdisjoint({"img", "iframe", "object", "form", "base"})
    assert {attributes.get("type") for tag, attributes in elements if tag == "script"} == {"application/json"}
    assert not any(name.startswith("on") for _, attributes in elements for name in attributes)
    for form in (page, text):
        assert form.encode("utf-8")
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", form)


def test_numbers_beyond_every_bound_are_no_numbers() -> None:
    """JSON has no infinity, but 1e999 reads as one."""
    with tempfile.TemporaryDirectory() as directory:
        path = large_run.write(Path(directory), large_run.run(machine={"cores": "CORES"}))
        path.write_text(path.read_text().replace('"CORES"', "1e999"))
        inert(report([of_run(read_run(path))]))


# Size


def test_a_long_run_has_a_small_report() -> None:
    found = of(large_run.large(20_000))
    assert sum(len(result.rounds) for results in found.results.values() for result in results) == pytest.approx(
        20_000, rel=0.05
    )
    whole = report([found])
    check(whole)
    assert len(html.render(whole).encode()) < 1_000_000
    for figure in (block for block in blocks(whole) if isinstance(block, Figure)):
        points = len(re.findall(r"[ML] ?-?[\d.]+[ ,]-?[\d.]+", figure.svg)) + figure.svg.count("<use ")
        assert points < 4000, figure.name
        assert len(figure.table.rows) <= 100
    for stream in (block for block in blocks(whole) if isinstance(block, TokenStream)):
        assert len(stream.rounds) <= 161
