"""A report of anything a run or a sweep may have left: built, laid out in both forms, and its numbers those measured."""

from __future__ import annotations

import dataclasses
import functools
import html.parser
import json
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import large_run
import sample_store
from large_run import CURVE, prompts
from sample_report import HOSTILE, blocks, tables
from sample_store import ELSEWHERE, HERE
from specprof.experiments.records import Record
from specprof.experiments.results import read_contents
from specprof.experiments.saved_runs import read_run
from specprof.experiments.study import Study, of_run, of_sweep
from specprof.profiling.comparison import Comparison, Speedup
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round, RunEnded, RunStarted
from specprof.profiling.metrics import BenchmarkConfig, fold
from specprof.reports import explain, html, markdown
from specprof.reports.document import (
    Block,
    Bullets,
    Cell,
    Command,
    Definitions,
    Figure,
    Paragraph,
    Piece,
    Report,
    Table,
    TokenStream,
)
from specprof.reports.report import MOST_DETAILED, report, to_dict
from specprof.reports.results import finite
from specprof.reports.tables import costs_by_k

QUESTIONS = ["why", "speed", "time", "best-k", "acceptance", "output", "tokens", "device"]


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
    "one domain": lambda: large_run.run(prompts(4, ["code"])),
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
        lambda e: dataclasses.replace(
            e, draft_seconds=0.0, verify_seconds=0.0, sample_seconds=0.0, overhead_seconds=0.0
        )
        if isinstance(e, Round)
        else e,
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


@pytest.mark.parametrize("case", RUNS)
def test_a_run_has_a_report(case: str) -> None:
    check(report([study(case)]))


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5, 9, 12])
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


def test_nothing_has_one() -> None:
    check(report([]))


def check(whole: Report) -> None:
    """What holds for every report of runs that have ordinary names."""
    for text in texts(whole):
        assert not re.search(r"\b(None|nan|inf|null|True|False)\b|[{}]", text), text
        assert text == text.strip() or "\n" in text or not text.strip(), repr(text)
    sound(whole)


def sound(whole: Report) -> None:
    """What holds for any report."""
    page, text = html.render(whole), markdown.render(whole, figures="figures")
    assert markdown.render(whole)
    assert len(page) < 1_000_000 and len(text) <= 60_000
    assert whole.title and whole.verdict
    assert re.fullmatch(r"\S.*[^.\s]\.", whole.verdict, re.DOTALL) and whole.verdict.count(". ") == 0, whole.verdict
    names = [section.name for section in whole.sections]
    figures = [block.name for block in blocks(whole) if isinstance(block, Figure)]
    for unique in (names, figures, names + figures):
        assert len(set(unique)) == len(unique), unique
        assert all(re.fullmatch(r"[A-Za-z0-9-]+", name) for name in unique)
    for section in whole.sections:
        assert section.blocks, section.name
    for table in tables(whole):
        assert table.columns and all(len(row) == len(table.columns) for row in table.rows), table.caption
    parser = _Ids()
    parser.feed(page)
    assert len(set(parser.ids)) == len(parser.ids)
    assert set(names) <= set(parser.ids)
    json.dumps(whole.summary, allow_nan=False)


class _Ids(html.parser.HTMLParser if False else __import__("html.parser").parser.HTMLParser):  # type: ignore[misc]
    pass
