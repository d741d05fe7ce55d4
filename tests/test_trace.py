"""A trace holds to the Trace Event Format, and shows what the events say: every phase, every round, nothing else."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import itertools
import json
import math
import tracemalloc
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specprof.errors import ResourceError
from specprof.profiling.acceptance import AcceptanceCounts
from specprof.profiling.events import (
    SCHEMA,
    Event,
    Prefilled,
    PromptEnded,
    Round,
    RunEnded,
    RunStarted,
    read_events,
    to_json_line,
)
from specprof.profiling.trace import MAX_EVENTS, TraceSummary, TraceWriter, trace_file

AR, SD = "AR", "SD-K2"

REQUIRED = {
    "M": {"name", "pid", "tid", "args"},
    "X": {"name", "cat", "pid", "tid", "ts", "dur"},
    "C": {"name", "cat", "pid", "tid", "ts", "args"},
    "i": {"name", "cat", "pid", "tid", "ts", "s", "args"},
    "s": {"name", "cat", "pid", "tid", "ts", "id"},
    "f": {"name", "cat", "pid", "tid", "ts", "id", "bp"},
}
NAMES = {
    "X": {
        "generation", "prefill", "prefill draft", "prefill target", "prefill overhead",
        "round", "draft", "verify", "sample", "overhead",
    },
    "C": {"accepted", "speed", "cumulative acceptance", "peak memory"},
    "i": {"rejected", "end of text"},
    "s": {"draft to verify"},
    "f": {"draft to verify"},
    "M": {"process_name", "process_sort_index", "thread_name", "thread_sort_index"},
}  # fmt: skip


UNSEEN = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0xD800, 0xE000))}
UNSEEN -= {"\n"}
"""What a terminal would obey, and what is no character."""


class Trace:
    """A trace read back, refused unless it is one."""

    def __init__(self, text: str) -> None:
        assert not set(text) & UNSEEN
        self.document: dict[str, Any] = json.loads(text, parse_constant=_refuse)
        assert set(self.document) == {"traceEvents", "displayTimeUnit", "otherData"}
        assert self.document["displayTimeUnit"] == "ms"
        self.events: list[dict[str, Any]] = self.document["traceEvents"]
        self.other: dict[str, Any] = self.document["otherData"]
        self._check_keys()
        self._check_tracks()
        self._check_nesting()
        self._check_flows()
        self._check_counters()

    def of(self, phase: str, *names: str, decoder: str | None = None) -> list[dict[str, Any]]:
        """Trace events of a phase, of some names and of one process (or of any)."""
        return [
            event
            for event in self.events
            if event["ph"] == phase
            and (not names or event["name"] in names)
            and (decoder is None or decoder == self.processes[event["pid"]])
        ]

    def spans(self) -> list[dict[str, dict[str, Any]]]:
        """Of each prefill and round, in order: its own slice and its phases', by name."""
        spans: list[dict[str, dict[str, Any]]] = []
        for event in self.of("X"):
            if event["name"] in ("prefill", "round"):
                spans.append({})
            if event["name"] != "generation":
                assert event["name"] not in spans[-1]
                spans[-1][event["name"]] = event
        return spans

    def _check_keys(self) -> None:
        for event in self.events:
            phase = event["ph"]
            assert REQUIRED[phase] <= set(event) <= REQUIRED[phase] | {"ph", "args"}
            assert event["name"] in NAMES[phase]
            for key in {"pid", "tid", "id"} & set(event):
                assert type(event[key]) is int and event[key] >= 0
            for key in {"ts", "dur"} & set(event):
                assert nanoseconds(event[key]) >= 0
            assert event.get("s", "t") == "t" and event.get("bp", "e") == "e"

    def _check_tracks(self) -> None:
        """Every track has a name and a place; no thread id belongs to two processes."""
        self.processes = {event["pid"]: event["args"]["name"] for event in self.of("M", "process_name")}
        threads = {event["tid"]: (event["pid"], event["args"]["name"]) for event in self.of("M", "thread_name")}
        assert len(threads) == len(self.of("M", "thread_name")) == 5 * len(self.processes)
        for kind in ("process_sort_index", "thread_sort_index"):
            assert all(type(event["args"]["sort_index"]) is int for event in self.of("M", kind))
        for event in self.events:
            assert threads[event["tid"]][0] == event["pid"]
        expected = {"draft": "draft", "verify": "target", "sample": "sample", "generation": "generations"}
        expected |= {"prefill draft": "draft", "prefill target": "target"}
        for event in self.of("X"):
            assert threads[event["tid"]][1] == expected.get(event["name"], "host")

    def _check_nesting(self) -> None:
        """On each thread slices lie within one another or side by side, and begin in the order of the file."""
        open_until: dict[int, list[int]] = defaultdict(list)
        last: dict[int, int] = defaultdict(int)
        for event in self.events:
            if event["ph"] not in ("X", "i"):
                continue
            tid, start = event["tid"], nanoseconds(event["ts"])
            end = start + nanoseconds(event.get("dur", 0))
            assert start >= last[tid]
            last[tid] = start
            stack = open_until[tid]
            while stack and stack[-1] <= start:
                stack.pop()
            assert not stack or end <= stack[-1]
            stack.append(end)

    def _check_flows(self) -> None:
        """Each flow leaves a draft and enters the verify slice of the same round."""
        top: dict[int, dict[str, Any]] = {}
        ends: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for event in self.events:
            if event["ph"] == "X":
                top[event["tid"]] = event
            elif event["ph"] in "sf":
                within = top[event["tid"]]
                start = nanoseconds(within["ts"])
                length = max(1, nanoseconds(within["dur"]))
                assert start <= nanoseconds(event["ts"]) < start + length
                assert within["name"] == {"s": "draft", "f": "verify"}[event["ph"]]
                ends[event["id"]].append({"at": event, "slice": within})
        assert len(ends) == len(self.of("s")) == len(self.of("f")) == len(self.of("X", "draft"))
        for start_of, finish in ends.values():
            assert (start_of["at"]["ph"], finish["at"]["ph"]) == ("s", "f")
            assert start_of["at"]["pid"] == finish["at"]["pid"]
            assert start_of["at"]["ts"] <= finish["at"]["ts"]
            assert start_of["slice"]["args"]["index"] == finish["slice"]["args"]["index"]

    def _check_counters(self) -> None:
        last: dict[tuple[int, str], int] = defaultdict(int)
        for event in self.of("C"):
            (value,) = event["args"].values()
            assert type(value) in (int, float) and math.isfinite(value) and value >= 0
            track, at = (event["pid"], event["name"]), nanoseconds(event["ts"])
            assert at >= last[track]
            last[track] = at


def nanoseconds(microseconds: float) -> int:
    """As readers understand a time: some round, some cut off, and both have to see the same."""
    assert type(microseconds) in (int, float)
    assert int(microseconds * 1000.0) == round(microseconds * 1000.0)
    return int(microseconds * 1000.0)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def write_trace(events: Iterable[Event], out: TextIO, **options: Any) -> TraceSummary:
    writer = TraceWriter(out, **options)
    for event in events:
        writer(event)
    return writer.close()


def traced(events: Iterable[Event], **options: Any) -> tuple[Trace, TraceSummary]:
    out = io.StringIO()
    summary = write_trace(events, out, **options)
    trace = Trace(out.getvalue())
    assert summary.num_events == len(trace.events)
    assert summary.num_generations == len(trace.of("X", "generation")) == trace.other["num_generations"]
    assert summary.num_rounds == len(trace.of("X", "round")) == trace.other["num_rounds"]
    assert summary.num_rounds_left_out == trace.other["num_rounds_left_out"]
    assert summary.complete == (summary.num_rounds_left_out == 0)
    return trace, summary


def check_durations(trace: Trace, events: Iterable[Event]) -> None:
    """Each prefill and round lasts as long as the event says, and so does each phase, to the nanosecond; the phases
    follow each other from its beginning to its end."""
    for event, slices in zip(timed(events), trace.spans(), strict=True):
        if isinstance(event, Prefilled):
            phases = {
                "prefill draft": event.draft_seconds,
                "prefill target": event.target_seconds,
                "prefill overhead": event.overhead_seconds,
            }
        else:
            phases = {
                "draft": event.draft_seconds,
                "verify": event.verify_seconds,
                "sample": event.sample_seconds,
                "overhead": event.overhead_seconds,
            }
        whole = slices.pop("prefill" if isinstance(event, Prefilled) else "round")
        assert whole["args"]["prompt_id"] == event.prompt_id
        assert abs(nanoseconds(whole["dur"]) - event.seconds * 1e9) <= 1
        assert set(slices) <= set(phases)
        at = nanoseconds(whole["ts"])
        for name, seconds in phases.items():
            length = nanoseconds(slices[name]["dur"]) if name in slices else 0
            assert abs(length - seconds * 1e9) <= 1
            if name in slices:
                assert nanoseconds(slices[name]["ts"]) == at
            at += length
        assert at == nanoseconds(whole["ts"]) + nanoseconds(whole["dur"])


def timed(events: Iterable[Event]) -> list[Prefilled | Round]:
    return [event for event in events if isinstance(event, Prefilled | Round)]


def rounds_of(events: Iterable[Event], decoder: str | None = None) -> list[Round]:
    return [event for event in events if isinstance(event, Round) and decoder in (None, event.decoder)]


# ---- what really happens


@functools.cache
def measured() -> tuple[tuple[Event, ...], Any]:
    """tiny_dev on two prompts, sampled, with the probabilities recorded; and its tokenizer."""
    from specprof.data.prompts import Prompt
    from specprof.experiments.arms import load_arms
    from specprof.experiments.config import RunConfig
    from specprof.experiments.run import encode_prompts, measure
    from specprof.models.registry import get_pair

    config = RunConfig(
        get_pair("tiny_dev"),
        k=3,
        temperature=0.8,
        max_new_tokens=48,
        repetitions=1,
        detail=True,
        deterministic=True,
        device="cpu",
    )
    arms = load_arms(config)
    prompts = [Prompt(f"p{i}", "custom", text) for i, text in enumerate(("def f(x):", "Once upon a"))]
    return tuple(measure(config, arms, encode_prompts(config, arms, prompts), "r1")), arms.tokenizer


def test_a_run_of_tiny_dev() -> None:
    events, tokenizer = measured()
    trace, summary = traced(events, decode=tokenizer.decode)
    check_durations(trace, events)
    assert trace.processes == {1: "AR", 2: "SD-K3"}
    assert summary.complete and "left_out" not in trace.other
    assert summary.num_generations == 4 and summary.num_rounds == len(rounds_of(events))
    assert trace.other["run_id"] == "r1" and trace.other["config"]["k"] == 3

    for event, shown in zip(rounds_of(events), trace.of("X", "round"), strict=True):
        args = shown["args"]
        fields = {key: value for key, value in dataclasses.asdict(event).items() if key in args}
        assert {"prompt_id", "repetition", "index", "draft_tokens", "num_accepted", "emitted_tokens"} <= set(fields)
        assert json.loads(json.dumps(fields)) == {key: args[key] for key in fields}
        assert args["text"] == tokenizer.decode(event.emitted_tokens)
        if event.draft_tokens:
            assert {"target_prob", "draft_prob", "alpha", "k"} <= set(args)
            assert args["draft_text"] == tokenizer.decode(event.draft_tokens)

    speculative = rounds_of(events, "SD-K3")
    rejected = [r for r in speculative if len(r.emitted_tokens) == r.num_accepted + 1 <= len(r.draft_tokens)]
    assert rejected
    for round, shown in zip(rejected, trace.of("i", "rejected"), strict=True):
        assert round.target_prob is not None
        assert shown["args"]["draft_token"] == round.draft_tokens[round.num_accepted]
        assert shown["args"]["corrected_token"] == round.emitted_tokens[-1]
        assert shown["args"]["target_prob"] == round.target_prob[round.num_accepted]
    ended = [event for event in events if isinstance(event, PromptEnded)]
    assert [g["args"]["finish_reason"] for g in trace.of("X", "generation")] == [e.finish_reason for e in ended]
    assert len(trace.of("i", "end of text")) == sum(event.finish_reason == "stop" for event in ended)


def test_counters_of_a_run() -> None:
    events, _ = measured()
    trace, _ = traced(events)
    speculative = rounds_of(events, "SD-K3")
    acceptance = trace.of("C", "cumulative acceptance")
    assert acceptance[-1]["args"]["rate"] == AcceptanceCounts.of(speculative, greedy=False).draft_acceptance_rate
    at_rounds = {event["ts"] for event in trace.of("X", "round")}
    during = [event["args"]["tokens"] for event in trace.of("C", "accepted") if event["ts"] in at_rounds]
    # The arms take turns: where a generation's end is not the next one's beginning, its counters fall back to 0.
    assert sum(during) == sum(round.num_accepted for round in speculative)
    assert not trace.of("C", "accepted", "cumulative acceptance", decoder="AR")
    first, slices = rounds_of(events)[0], trace.spans()[1]
    speed = next(event for event in trace.of("C", "speed") if event["ts"] == slices["round"]["ts"])
    assert speed["args"]["tokens/s"] == pytest.approx(len(first.emitted_tokens) / first.seconds, rel=1e-3)
    memory = [event["args"]["MiB"] * 2**20 for event in trace.of("C", "peak memory")]
    peaks = [e.peak_memory_bytes for e in events if isinstance(e, Prefilled | PromptEnded) and e.peak_memory_bytes]
    assert sorted(memory) == sorted(peaks)


def test_a_saved_run_gives_the_trace_of_the_live_one() -> None:
    events, _ = measured()
    live, saved = io.StringIO(), io.StringIO()
    write_trace(events, live)
    write_trace(read_events([to_json_line(event) for event in events]), saved)
    assert saved.getvalue() == live.getvalue()


# ---- what could happen


def prefilled(prompt_id: str = "p0", decoder: str = SD, repetition: int = 0, **values: Any) -> Prefilled:
    values = {"target_seconds": 0.02, "draft_seconds": 0.0 if decoder == AR else 0.005} | values
    return Prefilled(prompt_id, decoder, repetition, 7, 1, overhead_seconds=0.001, **values)


def plain(index: int = 0, prompt_id: str = "p0", repetition: int = 0) -> Round:
    return Round(prompt_id, AR, repetition, index, (), 0, (5,), 0.0, 0.01, 0.001, 0.0005)


def drafted(index: int = 0, prompt_id: str = "p0", repetition: int = 0, **values: Any) -> Round:
    values = {"draft_tokens": (3, 4), "num_accepted": 1, "emitted_tokens": (3, 9), "k": 2} | values
    values = {"draft_seconds": 0.004, "verify_seconds": 0.012, "sample_seconds": 0.001} | values
    return Round(prompt_id, SD, repetition, index, overhead_seconds=0.0005, **values)


def ended(
    prompt_id: str = "p0", decoder: str = SD, repetition: int = 0, reason: Any = "length", memory: int = 0
) -> PromptEnded:
    return PromptEnded(prompt_id, decoder, repetition, reason, memory)


# Down to nanoseconds, nothing at all, and seconds that are no multiple of anything.
seconds = st.sampled_from([0.0, 1e-9, 4e-10, 0.1, 1 / 3]) | st.floats(0, 1e3)


@st.composite
def rounds(draw: st.DrawFn, prompt_id: str, decoder: str, repetition: int, index: int) -> Round:
    k = 0 if decoder == AR else draw(st.integers(0, 3))
    proposed = tuple(draw(st.lists(st.integers(0, 9), min_size=k, max_size=k)))
    accepted = draw(st.integers(0, k))
    emitted = (*proposed[:accepted], 7)
    if accepted and draw(st.booleans()):  # an end of sequence among the accepted
        emitted = proposed[: draw(st.integers(1, accepted))]
    probabilities = draw(st.none() | st.just(tuple(0.5 for _ in proposed)))
    return Round(
        prompt_id,
        decoder,
        repetition,
        index,
        proposed,
        accepted,
        emitted,
        0.0 if decoder == AR else draw(seconds),
        draw(seconds),
        draw(seconds),
        draw(seconds),
        cut=draw(st.booleans()),
        target_prob=probabilities,
        draft_prob=probabilities,
        k=None if decoder == AR else k + draw(st.integers(0, 1)),
    )


@st.composite
def generations(draw: st.DrawFn) -> list[Event]:
    """One generation: whole, without its beginning, or without its end."""
    key = draw(st.sampled_from(["p0", "p1", '"<&\x7f\ud800'])), draw(st.sampled_from([AR, SD])), draw(st.integers(0, 1))
    events: list[Event] = []
    if draw(st.integers(0, 9)):
        drafting = 0.0 if key[1] == AR else draw(seconds)
        events.append(Prefilled(*key, 5, 1, draw(seconds), drafting, draw(seconds), draw(st.integers(0, 2**40))))
    events += [draw(rounds(*key, index)) for index in range(draw(st.integers(0, 4)))]
    if draw(st.integers(0, 9)):
        events.append(PromptEnded(*key, draw(st.sampled_from(["stop", "length"])), draw(st.integers(0, 2**40))))
    return events


runs = st.lists(generations(), max_size=4).map(lambda parts: list(itertools.chain.from_iterable(parts)))


@given(runs)
def test_any_run(events: list[Event]) -> None:
    trace, summary = traced(events)
    assert summary.complete
    # A lone half of a character can't be shown as it is.
    sound = [dataclasses.replace(e, prompt_id=e.prompt_id.replace("\ud800", "\ufffd")) for e in timed(events)]
    check_durations(trace, sound)


@given(runs, st.randoms())
def test_generations_that_overlap(events: list[Event], random: Any) -> None:
    by_arm = {name: [event for event in events if getattr(event, "decoder", AR) == name] for name in (AR, SD)}
    mixed: list[Event] = []
    while left := [arm for arm in by_arm.values() if arm]:
        mixed.append(random.choice(left).pop(0))
    trace, summary = traced(mixed)
    assert summary.num_rounds == len(rounds_of(events))
    assert len(trace.spans()) == len(timed(events))


@given(runs, st.integers(0, 120))
def test_a_limit_is_kept_and_cuts_the_end_off(events: list[Event], limit: int) -> None:
    whole, _ = traced(events)
    trace, summary = traced(events, max_events=limit)
    assert summary.num_events <= limit
    assert summary.num_rounds + summary.num_rounds_left_out == len(rounds_of(events))
    assert trace.of("X", "round") == whole.of("X", "round")[: summary.num_rounds]
    assert trace.spans() == whole.spans()[: len(trace.spans())]


def test_no_events_at_all() -> None:
    trace, summary = traced([])
    assert summary == TraceSummary(0, 0, 0, 0) and trace.events == []


def test_a_generation_without_rounds() -> None:
    trace, summary = traced([prefilled(), ended(reason="stop", memory=5)])
    assert summary == TraceSummary(len(trace.events), 1, 0, 0)
    assert [event["name"] for event in trace.of("X")] == [
        "prefill", "prefill draft", "prefill target", "prefill overhead", "generation"
    ]  # fmt: skip
    (generation,) = trace.of("X", "generation")
    assert nanoseconds(generation["dur"]) == 26_000_000
    assert trace.of("i")[0]["name"] == "end of text" and not trace.of("C")


def test_the_baseline_alone_shows_no_draft() -> None:
    trace, _ = traced([prefilled(decoder=AR), plain(0), plain(1), ended(decoder=AR)])
    assert trace.processes == {1: AR}
    assert {event["name"] for event in trace.of("X")} == {
        "generation", "prefill", "prefill target", "prefill overhead", "round", "verify", "sample", "overhead"
    }  # fmt: skip
    assert not trace.of("s") and not trace.of("i")
    assert {event["name"] for event in trace.of("C")} == {"speed"}


def test_interrupted_generations_end_with_what_there_was() -> None:
    trace, _ = traced([prefilled(), drafted(), prefilled("p1"), drafted(0, "p1"), drafted(1, "p1")])
    shown = [event["args"] for event in trace.of("X", "generation")]
    assert [(g["prompt_id"], g["finish_reason"], g["num_rounds"], g["num_tokens"]) for g in shown] == [
        ("p0", "interrupted", 1, 3),
        ("p1", "interrupted", 2, 5),
    ]


def test_a_new_run_ends_what_the_last_one_left_open() -> None:
    first, second = (RunStarted(name, SCHEMA, {"k": 2}, {"cpu": "x"}) for name in ("r1", "r2"))
    trace, _ = traced([first, prefilled(), drafted(), second, prefilled(), drafted(), ended(), RunEnded(0)])
    assert [g["args"]["finish_reason"] for g in trace.of("X", "generation")] == ["interrupted", "length"]
    assert trace.other["run_id"] == "r1"


def test_a_draft_ended_by_an_end_of_sequence_was_not_rejected() -> None:
    cut = drafted(draft_tokens=(3, 0, 5), num_accepted=2, emitted_tokens=(3, 0), cut=True)
    trace, _ = traced([prefilled(), cut, ended(reason="stop")])
    assert not trace.of("i", "rejected") and not trace.of("C", "cumulative acceptance")
    trace, _ = traced([prefilled(), drafted(), ended()])
    (rejected,) = trace.of("i", "rejected")
    assert rejected["args"] == {
        "prompt_id": "p0", "index": 0, "position": 1, "draft_token": 4, "corrected_token": 9
    }  # fmt: skip


# ---- size


def long_run(num_rounds: int) -> Iterable[Event]:
    """Generations of 50 rounds, the arms in turn."""
    hundred: list[Event] = [prefilled(decoder=AR), *map(plain, range(50)), ended(decoder=AR)]
    hundred += [prefilled(), *map(drafted, range(50)), ended()]
    return itertools.chain.from_iterable(itertools.repeat(hundred, num_rounds // 100))


def test_a_long_run_is_cut_at_the_limit() -> None:
    trace, summary = traced(long_run(5000), max_events=20_000)
    assert 20_000 - 50 < summary.num_events <= 20_000
    assert not summary.complete and summary.num_rounds + summary.num_rounds_left_out == 5000
    assert trace.other["left_out"] == (
        "the trace ends at its limit of 20000 trace events: "
        f"{summary.num_rounds_left_out} rounds that came later are not shown"
    )
    reasons = [event["args"]["finish_reason"] for event in trace.of("X", "generation")]
    assert set(reasons[:-1]) == {"length"} and reasons[-1] == "left out from here on"


def test_a_hundred_thousand_rounds() -> None:
    out = io.StringIO()
    summary = write_trace(long_run(100_000), out)
    document = json.loads(out.getvalue())
    assert MAX_EVENTS - 50 < summary.num_events == len(document["traceEvents"]) <= MAX_EVENTS
    assert summary.num_rounds + document["otherData"]["num_rounds_left_out"] == 100_000


def test_memory_does_not_grow_with_the_run() -> None:
    class Nowhere(io.StringIO):
        def write(self, text: str) -> int:
            return len(text)

    def peak(num_rounds: int) -> int:
        tracemalloc.start()
        try:
            write_trace(long_run(num_rounds), Nowhere())
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)  # what stays allocated from the first time on
    assert peak(2000) < peak(200) + 20_000


# ---- text, numbers and files


def test_hostile_text_is_data() -> None:
    hostile = '</script>"\\\n\x00\x1b[31m\x7f\x9b\u2028\u202e\ud800 \U0001f600 ]}]'
    started = RunStarted(hostile, SCHEMA, {"pair": hostile, "k": math.nan, "models": {"x": 1}}, {hostile: hostile})
    events: list[Event] = [started, prefilled(hostile), drafted(0, hostile), ended(hostile)]
    trace, _ = traced(events, decode=lambda ids: hostile)
    shown = hostile.replace("\ud800", "\ufffd")
    (round,) = trace.of("X", "round")
    assert round["args"]["prompt_id"] == round["args"]["text"] == round["args"]["draft_text"] == shown
    assert trace.other["run_id"] == trace.other["config"]["pair"] == shown
    assert trace.other["config"]["k"] is None
    assert trace.other["machine"] == {shown: shown}
    decoder = dataclasses.replace(prefilled(), decoder=hostile)
    assert traced([decoder])[0].processes == {1: shown}


def test_letters_stay_readable() -> None:
    out = io.StringIO()
    write_trace([prefilled("código_000"), drafted(0, "código_000")], out, decode=lambda ids: "naïve \U0001f600")
    assert "código_000" in out.getvalue() and "naïve \U0001f600" in out.getvalue()


def test_numbers_that_are_none() -> None:
    odd = drafted(target_prob=(0.5, math.nan), draft_prob=(math.inf, 1.0), verify_seconds=math.nan, sample_seconds=-1.0)
    trace, _ = traced([prefilled(), odd, drafted(1), ended()])
    first, _ = trace.of("X", "round")
    assert first["args"]["target_prob"] == [0.5, None] and first["args"]["draft_prob"] == [None, 1.0]
    assert nanoseconds(first["dur"]) == 4_500_000


def to_file(path: Path, events: Iterable[Event]) -> None:
    with trace_file(path) as sink:
        for event in events:
            sink(event)


def test_files_plain_and_compressed(tmp_path: Path) -> None:
    texts = []
    for name in ("trace.json", "trace.json.gz"):
        to_file(tmp_path / name, [prefilled(), drafted(), ended()])
        data = (tmp_path / name).read_bytes()
        texts.append((gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8"))
    assert texts[0] == texts[1]
    assert len(Trace(texts[0]).of("X", "round")) == 1


def test_an_interrupted_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "trace.json.gz"

    def interrupted() -> Iterator[Event]:
        yield prefilled()
        yield drafted()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_file(path, interrupted())
    (generation,) = Trace(gzip.decompress(path.read_bytes()).decode("utf-8")).of("X", "generation")
    assert generation["args"]["finish_reason"] == "interrupted"


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "trace.json"
    with pytest.raises(ResourceError, match=r"the trace could not be written to .*trace.json: No such file"):
        trace_file(path).__enter__()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("num_rounds", [1, 2000])
def test_a_full_disk_is_told_at_the_end_and_the_run_goes_on(num_rounds: int) -> None:
    taken: list[Event] = []

    def run() -> Iterator[Event]:
        events: list[Event] = [prefilled(), *map(drafted, range(num_rounds))]
        for event in events:
            taken.append(event)
            yield event

    with pytest.raises(ResourceError, match="the trace could not be written: No space left"):
        to_file(Path("/dev/full"), run())
    assert len(taken) == 1 + num_rounds


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(("kept", "hint"), [(Path("run.jsonl"), "kept: run.jsonl"), (None, "has room")])
def test_a_full_disk_says_where_the_measurement_is(kept: Path | None, hint: str) -> None:
    with pytest.raises(ResourceError) as caught, trace_file(Path("/dev/full"), kept=kept) as sink:
        sink(prefilled())
    assert caught.value.hint.endswith(hint)


def test_closing_twice_writes_once() -> None:
    out = io.StringIO()
    writer = TraceWriter(out)
    writer(prefilled())
    assert writer.close() == writer.close()
    Trace(out.getvalue())
