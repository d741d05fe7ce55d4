"""Events survive JSON lines and a kill at any byte."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specprof.profiling.events import (
    SCHEMA,
    Event,
    Prefilled,
    PromptEnded,
    Round,
    RunEnded,
    RunStarted,
    from_json_line,
    read_events,
    to_json_line,
)

RUN: list[Event] = [
    RunStarted("r1", SCHEMA, {"K": 4, "temperature": 0.0}, {"gpu": None}),
    Prefilled("código_000", "SD-K4", 0, 12, 5, 0.02, 0.005, 0.001),
    Round("código_000", "SD-K4", 0, 0, (1, 2, 3), 2, (1, 2, 9), 0.004, 0.01, 0.001, 0.002),
    Round("código_000", "SD-K4", 0, 1, (), 0, (7,), 0.0, 0.01, 0.001, 0.002, cut=True),
    Round(
        "código_000", "SD-K4", 0, 2, (4,), 1, (4, 8), 0.1, 0.2, 0.3, 0.4,
        target_prob=(0.5,), draft_prob=(0.25,), alpha=(0.75,), k=3,
    ),
    PromptEnded("código_000", "SD-K4", 0, "stop", 1024),
    RunEnded(2048),
]  # fmt: skip

ids = st.integers(0, 2**31)
seconds = st.floats(0, 1e6)
probabilities = st.none() | st.lists(st.floats(0, 1), max_size=5).map(tuple)
rounds = st.builds(
    Round,
    prompt_id=st.text(),
    decoder=st.text(),
    repetition=ids,
    index=ids,
    draft_tokens=st.lists(ids, max_size=5).map(tuple),
    num_accepted=ids,
    emitted_tokens=st.lists(ids, max_size=5).map(tuple),
    draft_seconds=seconds,
    verify_seconds=seconds,
    sample_seconds=seconds,
    overhead_seconds=seconds,
    cut=st.booleans(),
    target_prob=probabilities,
    draft_prob=probabilities,
    alpha=probabilities,
    k=st.none() | ids,
)


@pytest.mark.parametrize("event", RUN, ids=lambda event: type(event).__name__)
def test_round_trip(event: Event) -> None:
    line = to_json_line(event)
    assert line.endswith("\n") and line.count("\n") == 1
    assert from_json_line(line) == event


@given(rounds)
def test_any_round_survives(event: Round) -> None:
    line = to_json_line(event)
    assert len(line.splitlines()) == 1, "text from a prompt must not break the line"
    assert from_json_line(line) == event


def test_undefined_fields_are_left_out() -> None:
    record = json.loads(to_json_line(RUN[2]))
    assert record.keys().isdisjoint({"alpha", "k"}) and record["event"] == "Round"


def test_seconds_are_sums_of_their_parts() -> None:
    prefilled, first = RUN[1], RUN[2]
    assert isinstance(prefilled, Prefilled) and isinstance(first, Round)
    assert prefilled.seconds == pytest.approx(0.026)
    assert first.seconds == pytest.approx(0.017)


def test_killed_at_any_byte() -> None:
    lines = [to_json_line(event) for event in RUN]
    whole = "".join(lines)
    ends = [len("".join(lines[: n + 1])) for n in range(len(lines))]
    for cut in range(len(whole) + 1):
        # A line that lacks only its newline is whole.
        expected = sum(end - 1 <= cut for end in ends)
        assert list(read_events(whole[:cut].splitlines(keepends=True))) == RUN[:expected], cut


def test_torn_line_elsewhere_is_an_error() -> None:
    lines = [to_json_line(event) for event in RUN]
    lines[2] = lines[2][:20] + "\n"
    events = read_events(lines)
    assert [next(events), next(events)] == RUN[:2]
    with pytest.raises(ValueError):
        next(events)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{}",
        "3",
        "null",
        "[]",
        '{"event":"Nonsense"}',
        '{"event":"RunEnded"}',
        '{"event":"RunEnded","peak_memory_bytes":1,"colour":2}',
        '{"event":"Round","draft_tokens":5}',
    ],
)
def test_what_is_not_an_event(line: str) -> None:
    with pytest.raises(ValueError):
        from_json_line(line)
