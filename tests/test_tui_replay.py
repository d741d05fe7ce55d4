"""A replay gives what was kept, when it is due, and does as it is told."""

from __future__ import annotations

import itertools
import math
import os
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from large_run import write
from sample_feed import hostile_run, hostile_texts, sample_events, sample_run
from specprof.errors import ResourceError, UsageError
from specprof.experiments.config import RunConfig
from specprof.experiments.saved_runs import read_run, run_events, run_token_texts
from specprof.models.registry import get_pair
from specprof.profiling.events import (
    SCHEMA,
    Event,
    Prefilled,
    PromptEnded,
    Round,
    RunEnded,
    RunStarted,
    from_json_line,
    to_json_line,
)
from specprof.profiling.feed import FASTEST, SLOWEST, Control, Failed, Feed, Going, Kept, Message, Texts
from specprof.tui.replay import MOST_EVENTS, Replay

TEXTS = {"5": " five"}


def prefilled(prompt: str, decoder: str = "SD-K4", repetition: int = 0) -> Prefilled:
    """One second."""
    return Prefilled(prompt, decoder, repetition, 10, 5, 0.5, 0.25, 0.25)


def round_of(prompt: str, index: int, decoder: str = "SD-K4", repetition: int = 0) -> Round:
    """Half a second."""
    return Round(prompt, decoder, repetition, index, (), 0, (5,), 0.125, 0.125, 0.125, 0.125)


def ended(prompt: str, decoder: str = "SD-K4", repetition: int = 0) -> PromptEnded:
    return PromptEnded(prompt, decoder, repetition, "length", 0)


STARTED = RunStarted("r1", SCHEMA, {}, {})
RUN: list[Event] = [
    STARTED,
    prefilled("a", "AR"),  # due at 1
    round_of("a", 0, "AR"),  # 1.5
    round_of("a", 1, "AR"),  # 2
    ended("a", "AR"),
    prefilled("a"),  # 3
    round_of("a", 0),  # 3.5
    ended("a"),
    prefilled("b"),  # 4.5
    round_of("b", 0),  # 5
    round_of("b", 1),  # 5.5
    ended("b"),
    prefilled("b", repetition=1),  # 6.5
    round_of("b", 0, repetition=1),  # 7
    ended("b", repetition=1),
    RunEnded(0),
]
LENGTH = 7.0
FINISHED = Going("finished")


class Player:
    """A replay and the clock it goes by."""

    def __init__(self, events: Sequence[Event] = RUN) -> None:
        self.now = 1000.0
        self.opened: list[Iterator[Event]] = []
        self.closed = 0
        self.control = Control()
        self.events = events
        self.replay: Feed = Replay(self.opening, TEXTS, clock=lambda: self.now)

    def opening(self) -> Iterator[Event]:
        self.opened.append(self.reading())  # kept, so that what is not closed stays open
        return self.opened[-1]

    def reading(self) -> Iterator[Event]:
        try:
            yield from self.events
        finally:
            self.closed += 1

    def after(self, seconds: float) -> list[Message]:
        self.now += seconds
        return list(self.replay.read())

    def want(self, **settings: Any) -> None:
        self.control = replace(self.control, **settings)
        self.replay.send(self.control)

    def begun(self) -> Player:
        """The first reading, which is of what is due at once, is over."""
        assert self.after(0) == [Texts(TEXTS), STARTED]
        return self


def test_all_of_it_in_order_and_then_finished_once() -> None:
    player = Player()
    assert player.after(0) == [Texts(TEXTS), STARTED]
    assert player.after(LENGTH) == [*RUN[1:], FINISHED]
    assert player.after(LENGTH) == []
    assert not player.replay.live
    assert player.closed == 1


def test_events_are_due_when_their_time_has_passed() -> None:
    player = Player().begun()
    given = [player.after(0.5) for _ in range(14)]
    assert given[:8] == [[], RUN[1:2], RUN[2:3], RUN[3:5], [], RUN[5:6], RUN[6:8], []]
    assert given[8:] == [RUN[8:9], RUN[9:10], RUN[10:12], [], RUN[12:13], [*RUN[13:], FINISHED]]


def test_not_a_moment_earlier() -> None:
    player = Player().begun()
    assert player.after(1 - 2**-20) == []
    assert player.after(2**-20) == RUN[1:2]


def test_the_clock_begins_with_the_first_reading() -> None:
    player = Player()
    player.now += 100
    player.want(pace=2.0)
    player.now += 100
    player.begun()


@pytest.mark.parametrize(
    ("pace", "kept_to"),
    [(1, 1), (0.25, 0.25), (16, 16), (3, 3), (0, SLOWEST), (-4, SLOWEST), (100, FASTEST), (math.inf, FASTEST),
     (-math.inf, SLOWEST), (math.nan, SLOWEST)],
)  # fmt: skip
def test_pace(pace: float, kept_to: float) -> None:
    player = Player()
    player.want(pace=pace)
    player.begun()
    assert player.after(0.99 / kept_to) == []
    assert player.after(0.02 / kept_to) == RUN[1:2]
    assert player.after(1 / kept_to) == RUN[2:5]


def test_the_pace_changes_on_the_way() -> None:
    player = Player().begun()
    player.now += 0.5
    player.want(pace=0.25)
    assert player.after(1.75) == []
    assert player.after(0.25) == RUN[1:2]
    player.want(pace=16.0)
    assert player.after(1 / 16) == RUN[2:5]


def test_a_pause_stops_the_clock() -> None:
    player = Player().begun()
    assert player.after(1.0) == RUN[1:2]
    player.want(paused=True)
    assert player.after(0) == [Going("paused")]
    assert player.after(1000) == []
    player.want(paused=False)
    assert player.after(0.25) == [Going("running")]
    assert player.after(0.25) == RUN[2:3]


def test_what_nobody_has_seen_yet_waits_for_the_end_of_the_pause() -> None:
    player = Player().begun()
    player.now += 3
    player.want(paused=True)
    assert player.after(1) == [Going("paused")]
    player.want(paused=False)
    assert player.after(1) == [Going("running"), *RUN[1:2]]


def test_paused_from_the_start() -> None:
    player = Player()
    player.want(paused=True)
    assert player.after(0) == [Texts(TEXTS), Going("paused"), STARTED, Going("paused")]
    assert player.after(10) == []


def test_a_step_is_one_prefill_or_round_and_what_comes_with_it() -> None:
    player = Player().begun()
    given = []
    for steps in range(1, 12):
        player.want(paused=True, steps=steps)
        given.append([m for m in player.after(5) if m != Going("paused")])
        assert player.after(5) == []
    assert [message for messages in given for message in messages] == [*RUN[1:], FINISHED]
    assert [[type(message) for message in messages] for messages in given] == [
        [Prefilled],
        [Round],
        [Round, PromptEnded],
        [Prefilled],
        [Round, PromptEnded],
        [Prefilled],
        [Round],
        [Round, PromptEnded],
        [Prefilled],
        [Round, PromptEnded, RunEnded, Going],
        [],
    ]


def test_several_steps_at_once() -> None:
    player = Player().begun()
    player.want(paused=True, steps=3)
    assert player.after(0) == [Going("paused"), *RUN[1:5]]
    player.want(paused=False)
    assert player.after(0.75) == [Going("running")]
    assert player.after(0.25) == RUN[5:6]


def test_steps_while_it_runs_are_none() -> None:
    player = Player().begun()
    player.want(steps=5)
    assert player.after(0) == []
    player.want(paused=True)
    assert player.after(0) == [Going("paused")]
    player.want(steps=6)
    assert player.after(0) == RUN[1:2]


@pytest.mark.parametrize("paused", [False, True])
def test_skipping_goes_to_the_beginning_of_the_next_prompt(paused: bool) -> None:
    player = Player().begun()
    assert player.after(1.5) == RUN[1:3]
    player.want(paused=paused)
    player.after(0)
    player.want(skips=1)
    assert player.after(0) == RUN[3:9], "all of the prompt, so that counts stay right, and the next one's prefill"
    player.want(paused=False)
    assert [m for m in player.after(0.5) if not isinstance(m, Going)] == RUN[9:10]


def test_the_same_prompt_again_is_a_next_one() -> None:
    player = Player().begun()
    player.after(1)
    player.want(skips=2)
    assert player.after(0) == RUN[2:13]


def test_skipping_the_last_prompt_ends_it() -> None:
    player = Player().begun()
    player.after(6.5)
    player.want(skips=1)
    assert player.after(0) == [*RUN[13:], FINISHED]
    player.want(skips=2)
    assert player.after(1) == []


def test_skipping_before_the_first_prompt_has_begun() -> None:
    player = Player()
    player.want(skips=1)
    assert player.after(0) == [Texts(TEXTS), *RUN[:2]]


@pytest.mark.parametrize("seconds", [0.0, 3.0, LENGTH])
def test_from_the_beginning_again(seconds: float) -> None:
    player = Player().begun()
    finished = FINISHED in player.after(seconds)
    assert finished == (seconds == LENGTH)
    player.now += 1
    player.want(restarts=1)
    assert player.closed == 1
    assert player.after(0.5) == [*([Going("running")] if finished else []), STARTED]
    assert len(player.opened) == 2
    assert player.after(LENGTH - 0.5) == [*RUN[1:], FINISHED]


def test_what_was_asked_for_before_is_over_with_a_restart() -> None:
    player = Player().begun()
    player.want(paused=True, steps=100, skips=100)
    assert FINISHED in player.after(0)
    player.want(restarts=1)
    assert player.after(0) == [Going("paused"), STARTED, Going("paused")]
    player.want(restarts=2, steps=101)
    assert player.after(0) == [*RUN[:2], Going("paused")], "who sees a run start takes it for going on"


def test_how_it_was_decoded_is_over() -> None:
    player = Player().begun()
    player.want(k=9, temperature=1.5, race=True)
    assert player.after(LENGTH) == [*RUN[1:], FINISHED]


def test_one_reading_is_bounded() -> None:
    many: list[Event] = [STARTED, *(round_of("a", index) for index in range(2 * MOST_EVENTS)), RunEnded(0)]
    player = Player(many).begun()
    given = [player.after(10**6), player.after(0), player.after(0), player.after(0)]
    assert [len(messages) for messages in given] == [MOST_EVENTS, MOST_EVENTS, 2, 0]
    assert [message for messages in given for message in messages] == [*many[1:], FINISHED]


@given(
    st.lists(
        st.tuples(st.floats(0, 2), st.sampled_from(("pause", "go on", "step", "skip", "pace")), st.integers(0, 3)),
        max_size=20,
    )
)
def test_whatever_is_wanted_every_event_comes_once_and_in_order(told: list[tuple[float, str, int]]) -> None:
    player = Player().begun()
    given: list[Message] = []
    for seconds, what, number in told:
        match what:
            case "pause" | "go on":
                player.want(paused=what == "pause")
            case "step":
                player.want(paused=True, steps=player.control.steps + number)
            case "skip":
                player.want(skips=player.control.skips + number)
            case "pace":
                player.want(pace=float(number))
        given += player.after(seconds)
    player.want(paused=False, pace=1.0)
    given += player.after(LENGTH)
    assert [message for message in given if not isinstance(message, Going)] == RUN[1:]
    modes = ["running", *(message.mode for message in given if isinstance(message, Going))]
    assert all(before != after for before, after in itertools.pairwise(modes))
    assert modes.index("finished") == len(modes) - 1


def test_a_flood_is_read_in_flat_memory_and_little_time() -> None:
    def peak(num_rounds: int) -> int:
        """Bytes; and the whole of it comes."""

        def events() -> Iterator[Event]:
            yield STARTED
            for index in range(num_rounds):
                yield Round("a", "SD-K4", 0, index, (1, 2, 3, 4), 4, (1, 2, 3, 4, 5), 0.001, 0.001, 0.001, 0.001)

        now = 0.0
        replay, tokens = Replay(events, {}, clock=lambda: now), 0
        replay.send(Control(pace=16.0))
        tracemalloc.start()
        while True:
            messages = replay.read()
            tokens += sum(len(message.emitted_tokens) for message in messages if isinstance(message, Round))
            if FINISHED in messages:
                break
            now += 0.1
        assert tokens == 5 * num_rounds
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    begin = time.process_time()
    assert peak(20_000) < 1.2 * peak(4_000) + 100_000
    assert time.process_time() - begin < 3


def test_a_run_that_is_damaged_on_the_way_fails_once(tmp_path: Path) -> None:
    path = write(tmp_path, sample_run(1))
    lines = path.read_bytes().splitlines(keepends=True)
    lines[20] = b'{"event":"Round","prompt_id":\n'
    path.write_bytes(b"".join(lines))
    player = Player()
    replay = Replay(lambda: run_events(path), {}, clock=lambda: player.now)
    messages = list(replay.read())
    player.now += 1000
    messages += replay.read()
    *events, failed = messages[1:]
    assert events == sample_run(1)[:20]
    assert isinstance(failed, Failed) and failed.exit_code == UsageError.exit_code
    assert failed.message.startswith(f"line 21 of {path} is damaged") and failed.hint
    assert list(replay.read()) == []
    replay.send(Control(restarts=1))
    player.now += 1000
    assert list(replay.read()) == []


def test_a_run_that_is_gone_fails_when_it_is_read(tmp_path: Path) -> None:
    replay = Replay(lambda: run_events(tmp_path / "gone.jsonl"), TEXTS)
    [texts, failed] = replay.read()
    assert texts == Texts(TEXTS)
    assert isinstance(failed, Failed) and failed.exit_code == ResourceError.exit_code


def test_closing() -> None:
    player = Player()
    assert not player.opened, "nothing is read before it is asked for"
    player.begun()
    assert player.closed == 0
    player.replay.close()
    assert player.closed == 1
    player.replay.close()
    player.want(restarts=1)
    assert player.after(LENGTH) == []
    assert (len(player.opened), player.closed) == (1, 1)


def test_closing_lets_go_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, sample_run(1))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    replay = Replay(lambda: run_events(path), {}, path=str(path))
    assert Kept(str(path)) in replay.read()
    replay.close()
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_is_replayed_as_it_was_kept(tmp_path: Path) -> None:
    run = sample_run(4, repetitions=2)
    path = write(tmp_path, run)
    texts = run_token_texts(path)
    now = 0.0
    replay = Replay(lambda: run_events(path), texts, clock=lambda: now)
    given: list[Message] = []
    while FINISHED not in given:
        given += replay.read()
        now += 0.1
    assert given == [Texts(texts), *run, FINISHED]
    assert now == pytest.approx(math.fsum(e.seconds for e in run if isinstance(e, Prefilled | Round)), abs=0.25)


# ---- reading the file


def test_run_events_is_the_file(tmp_path: Path) -> None:
    run = sample_run(2)
    path = write(tmp_path, run)
    assert list(run_events(path)) == run
    with open(path, "ab") as file:
        file.write(b'{"event":"Rou')
    assert list(run_events(path)) == run, "its writer was stopped"


def test_run_events_reads_as_it_is_asked(tmp_path: Path) -> None:
    path = write(tmp_path, sample_events(2, num_tokens=2000))
    assert path.stat().st_size > 1_000_000
    tracemalloc.start()
    number = sum(1 for _ in run_events(path))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number > 4000 and most < 500_000


@pytest.mark.parametrize("content", [b"", b'{"event":"Ru', to_json_line(RUN[1]).encode()])
def test_what_is_no_run(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    for read in (run_events, run_token_texts):
        with pytest.raises(UsageError, match=r"x\.jsonl is not a run"):
            list(read(path))


@pytest.mark.parametrize("read", [run_events, run_token_texts])
def test_what_can_not_be_read(read: Any, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone.jsonl"):
        with pytest.raises(ResourceError, match=r"reading .* failed"):
            list(read(path))


@pytest.mark.parametrize(
    "line", [b"{}", b"\xff\xfe", b"[1]", b'{"event":"PromptEnded"}', b'{"event":"PromptEnded","token_texts":{"1":2}}']
)
def test_damage_is_named_by_its_line(line: bytes, tmp_path: Path) -> None:
    path = write(tmp_path, sample_run(1))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join((*lines[:5], line + b"\n", *lines[5:])))
    events = run_events(path)
    assert len([next(events) for _ in range(5)]) == 5
    with pytest.raises(UsageError, match=r"line 6 of .* is damaged"):
        next(events)
    if b"PromptEnded" in line:
        with pytest.raises(UsageError, match=r"line 6 of .* is damaged"):
            run_token_texts(path)


def test_token_texts_are_those_of_all_generations(tmp_path: Path) -> None:
    run = sample_run(3, repetitions=2)
    told = [event.token_texts for event in run if isinstance(event, PromptEnded)]
    assert None in told, "the second repetition says nothing new"
    expected = {token: text for texts in told for token, text in (texts or {}).items()}
    assert run_token_texts(write(tmp_path, run)) == expected
    assert run_token_texts(write(tmp_path, run[:1])) == {}


# ---- the runs that tests and pictures are made of


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("k", [1, 4, "auto"])
def test_sample_rounds_keep_to_the_rules(k: int | str, temperature: float) -> None:
    run = sample_run(3, k=k, temperature=temperature, num_tokens=60)
    assert run == sample_run(3, k=k, temperature=temperature, num_tokens=60)
    speculative = [event for event in run if isinstance(event, Round) and event.decoder == f"SD-K{k}"]
    verdicts = set()
    for event in speculative:
        drafted, accepted = event.draft_tokens, event.num_accepted
        assert len(event.emitted_tokens) == accepted + 1 and event.emitted_tokens[:accepted] == drafted[:accepted]
        if not drafted:
            assert event.cut and event.target_prob is None
            continue
        assert event.target_prob is not None and event.draft_prob is not None and event.alpha is not None
        if accepted < len(drafted):
            assert drafted[accepted] != event.emitted_tokens[accepted]
        if temperature == 0:
            assert event.uniforms is None and event.alpha == tuple(
                float(position < accepted) for position in range(len(drafted))
            )
            continue
        assert event.uniforms is not None
        judged = list(zip(event.uniforms, event.draft_prob, event.target_prob, event.alpha, strict=True))[
            : accepted + 1
        ]
        for position, (uniform, draft, target, alpha) in enumerate(judged):
            assert (uniform * draft < target) == (position < accepted)
            assert min(draft, target) <= alpha <= 1 - abs(draft - target) + 1e-6
            verdicts.add((position < accepted, target < draft))
    if temperature > 0:
        assert (True, True) in verdicts, "accepted by luck"
        assert (False, True) in verdicts and (False, False) not in verdicts


def test_a_sample_run_is_a_run(tmp_path: Path) -> None:
    run = read_run(write(tmp_path, sample_run(6)))
    assert run.complete and run.title == "tiny_dev  K = 4  temperature 0.8"
    speedup = run.compared().speedup_decode
    assert (
        speedup is not None
        and speedup.n_prompts == 6
        and speedup.ci is not None
        and speedup.value is not None
        and speedup.value > 1.2
    )
    assert {len(result.generated_ids) for result in run.results} == {96}
    greedy = read_run(write(tmp_path, sample_run(2, temperature=0.0)))
    texts = {(result.prompt_id, tuple(result.generated_ids)) for result in greedy.results}
    assert len(greedy.results) == 4 and len(texts) == 2, "greedy: both arms say the same"


def test_a_sample_run_is_configured_as_a_real_one_is() -> None:
    started = sample_run(1)[0]
    assert isinstance(started, RunStarted)
    beside = {"models", "load_peak_memory_bytes", "vocabulary", "cost_curve", "prompts", "command"}
    assert started.config.keys() == RunConfig(get_pair("tiny_dev")).to_dict().keys() | beside


def test_hostile_texts_come_through_a_file(tmp_path: Path) -> None:
    run = hostile_run()
    path = write(tmp_path, run)
    assert list(run_events(path)) == run == [from_json_line(to_json_line(event)) for event in run]
    assert set(hostile_texts().values()) <= set(run_token_texts(path).values())
