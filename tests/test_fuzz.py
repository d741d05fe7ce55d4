"""Command lines, files, folders and environments that nobody would think of: none ends as a bug, hangs, or says what
can't be. ``make fuzz`` runs others, and more of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fuzz.case import Case, Result
from fuzz.chunk import run_chunk
from fuzz.draw import draw_case
from fuzz.invariants import problems

SEED = 8
CHUNK = 25
FAST, ALL = 100, 2050
"""Cases: of every test run, and together with the slow ones."""


def run(first: int, record: Callable[[str, object], None]) -> None:
    chunk = run_chunk(SEED, range(first, first + CHUNK))
    record("fuzz", chunk.to_dict())
    assert not chunk.failures, "\n\n".join(chunk.failures)


@pytest.mark.parametrize("first", range(0, FAST, CHUNK))
def test_some_cases(first: int, record_property: Callable[[str, object], None]) -> None:
    run(first, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FAST, ALL, CHUNK))
def test_more_cases(first: int, record_property: Callable[[str, object], None]) -> None:
    run(first, record_property)


def test_a_case_follows_from_its_number() -> None:
    assert [str(draw_case(3, number)) for number in range(40)] == [str(draw_case(3, number)) for number in range(40)]
    assert len({str(draw_case(seed, number)) for seed in (1, 2) for number in range(40)}) > 70


TOLD = "error: no\nhint:  yes\n"
SPEEDUP = '{"schema": "specprof.run/1", "speedup_decode": {"value": 1.2, "ci": [1.3, 1.1]}}'


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (Result(None, "", "", ()), "hangs"),
        (Result(1, "", TOLD, ()), "ended with 1"),
        (Result(-11, "", "", ()), "ended with -11"),
        (Result(2, "", f"Traceback (most recent call last):\n{TOLD}", ()), "traceback"),
        (Result(2, "", "error: no\n", ()), "1 errors and 0 hints"),
        (Result(2, "", f"{TOLD}more\n", ()), "not what stands last"),
        (Result(0, "{}", TOLD, ()), "an error is told"),
        (Result(2, "{}", TOLD, ()), "prints something"),
        (Result(0, "\x1b]0;pwned\x07{}", "", ()), "reaches standard output"),
        (Result(0, "{", "", ()), "is not JSON"),
        (Result(0, '{"x": NaN}', "", ()), "NaN is not JSON"),
        (Result(0, '{"schema": "specprof.run/1", "ttft_seconds": -1}', "", ()), "negative"),
        (Result(0, '{"schema": "specprof.run/1", "alpha": 1.5}', "", ()), "no share"),
        (Result(0, '{"schema": "specprof.run/1", "a": {"num_spec_tokens": 2, "mean_acceptance_length": 3.5}}', "", ()), "3.5"),  # noqa: E501
        (Result(0, '{"schema": "specprof.run/1", "phases": {"draft": {"share": 0.7}}}', "", ()), "sum to 0.7"),
        (Result(0, SPEEDUP, "", ()), "ends before it begins"),
        (Result(0, "{}", "", ("elsewhere",)), "nobody named"),
        (Result(2, "", TOLD, ("results/x.jsonl",)), "it refuses, and wrote"),
        (Result(0, "{}", "", (), 4 << 30), "memory grew"),
        (Result(0, "{}", "", ("results/r.html",), files={"results/r.html": "<script>alert('pwned')</script>"}), "script"),  # noqa: E501
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(result: Result, problem: str) -> None:
    assert any(problem in found for found in problems(Case("flags", ("run", "--json")), result))


def test_what_is_right_is_not() -> None:
    case = Case("flags", ("run", "--json"))
    assert problems(case, Result(2, "", TOLD, ())) == []
    assert problems(case, Result(0, '{"schema": "specprof.run/1", "alpha": 0.5}', "", ("results/x.jsonl",))) == []
