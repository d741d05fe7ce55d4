"""What is learnt of a generation beside its decoder: its tokens' texts, the energy it took, and that its phases are
its time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from specprof.decoding.request import Request
from specprof.experiments.arms import load_arms
from specprof.experiments.engine import Decoder
from specprof.experiments.observer import Observer, draft_matches, text_of
from specprof.experiments.run import measure, request_for
from specprof.experiments.saved_runs import read_run
from specprof.profiling.comparison import compare
from specprof.profiling.energy import EnergyMeter
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round, to_json_line
from specprof.profiling.metrics import GenerationResult, fold
from test_experiment import encoded, loaded, quick
from tiny_models import tiny_tokenizer


@dataclass
class Counter:
    """Joules that go up by one with every reading, but for readings that fail."""

    failing: Sequence[int] = ()
    step: float = 1.0
    readings: int = 0
    at: list[str] = field(default_factory=list)

    def joules(self) -> float | None:
        self.readings += 1
        self.at.append("read")
        return None if self.readings - 1 in self.failing else 100 + self.step * self.readings


def request(prompt: int = 0, repetition: int = 0) -> Request:
    return request_for(quick(), loaded(), encoded(quick())[prompt], repetition)


def arms() -> tuple[Decoder, Decoder]:
    return loaded().baseline, loaded().speculative


def observed(
    observer: Observer,
    *,
    prompts: Sequence[int] = (0, 1),
    repetition: int = 0,
    decoders: Sequence[Decoder] | None = None,
) -> list[GenerationResult]:
    events = [
        event
        for prompt in prompts
        for decoder in decoders or arms()
        for event in observer.events(decoder, request(prompt, repetition))
    ]
    return list(fold(events))


def metered(counter: Counter) -> Observer:
    return Observer(str, EnergyMeter("made up", 0.001, (counter,)))


# Energy


def test_energy_is_what_the_counter_went_up_by() -> None:
    results = observed(metered(Counter(step=2.5)))
    assert [result.energy_joules for result in results] == [2.5] * 4, "one reading before, one after"
    both = compare(results, temperature=0)
    for arm in (both.baseline, both.speculative):
        assert arm is not None and arm.energy_joules_per_token == pytest.approx(2 * 2.5 / arm.num_tokens)


@pytest.mark.parametrize(("failing", "lost"), [((0,), 0), ((1,), 0), ((2,), 1), ((7,), 3)])
def test_where_one_reading_fails_its_generation_has_none_and_its_arm_has_none(
    failing: Sequence[int], lost: int
) -> None:
    results = observed(metered(Counter(failing)))
    assert [result.energy_joules is None for result in results] == [index == lost for index in range(4)]
    both = compare(results, temperature=0)
    assert both.baseline is not None and both.speculative is not None
    known = [arm.energy_joules_per_token is not None for arm in (both.baseline, both.speculative)]
    assert known == [lost % 2 == 1, lost % 2 == 0], "part of the energy over all tokens would be too little"


def test_without_a_meter_there_is_none() -> None:
    results = observed(Observer(str))
    assert {result.energy_joules for result in results} == {None}
    both = compare(results, temperature=0)
    assert both.baseline is not None and both.baseline.energy_joules_per_token is None


def test_readings_enclose_the_generation_and_stay_out_of_it() -> None:
    """Before the first event is asked for, and after the decoder is done."""
    counter = Counter()

    class Noted:
        def events(self, request: Request) -> Iterator[Event]:
            for event in loaded().baseline.events(request):
                counter.at.append("decode")
                yield event

    unending = request_for(quick(ignore_eos=True), loaded(), encoded(quick())[0], 0)
    list(metered(counter).events(Noted(), unending))  # type: ignore[arg-type]
    assert counter.at[0] == counter.at[-1] == "read" and counter.at.count("read") == 2
    assert len(counter.at) > 5


# Texts


def test_the_first_repetition_notes_what_every_token_stands_for() -> None:
    """Drafts of random tokens are rejected."""
    observer = Observer(lambda token: f"<{token}>")
    unlike = (loaded().baseline, load_arms(quick(drafter="random")).speculative)
    first, again = (observed(observer, repetition=repetition, decoders=unlike) for repetition in (0, 1))
    for result in first:
        seen = {*result.generated_ids, *(token for round in result.rounds for token in round.draft_tokens)}
        assert result.token_texts == {str(token): f"<{token}>" for token in seen}
    assert {result.token_texts is None for result in again} == {True}
    rejected = [t for r in first for round in r.rounds for t in round.draft_tokens[round.num_accepted :]]
    assert set(rejected) - {token for result in first for token in result.generated_ids}, "drafted and not emitted"


def test_in_a_run_each_token_is_noted_once_whatever_the_repetition() -> None:
    observer = Observer(lambda token: f"<{token}>", noted=set())
    again = observed(observer, prompts=(0,), repetition=1)
    first = observed(observer)
    seen = {token for r in (*again, *first) for round in r.rounds for token in (*round.draft_tokens, *r.generated_ids)}
    told = [item for result in (*again, *first) for item in (result.token_texts or {}).items()]
    assert sorted(told) == sorted((str(token), f"<{token}>") for token in seen), "each, and none twice"
    assert again[0].token_texts, "of a later repetition, which came first"
    assert first[0].token_texts is None and first[1].token_texts is None, "nothing new: greedy, it is the same text"
    assert first[2].token_texts, "another prompt has other tokens"


def test_a_run_says_what_all_its_tokens_stand_for(tmp_path: Path) -> None:
    config = quick(temperature=1.0, repetitions=3)
    path = tmp_path / "run.jsonl"
    path.write_text("".join(map(to_json_line, measure(config, loaded(), encoded(config), "run"))))
    text = text_of(tiny_tokenizer())
    results = read_run(path).results
    assert {result.repetition for result in results} == {0, 1, 2}
    for result in results:
        seen = {*result.generated_ids, *(token for round in result.rounds for token in round.draft_tokens)}
        assert result.token_texts is not None
        assert {str(token): text(token) for token in seen}.items() <= result.token_texts.items()


def test_all_other_events_are_the_decoders_own() -> None:
    plain = [e for e in loaded().speculative.events(request()) if not isinstance(e, PromptEnded)]
    seen = [e for e in Observer(str).events(loaded().speculative, request()) if not isinstance(e, PromptEnded)]
    assert [type(event) for event in seen] == [type(event) for event in plain]
    tokens = [[(e.draft_tokens, e.emitted_tokens) for e in events if isinstance(e, Round)] for events in (plain, seen)]
    assert tokens[0] == tokens[1]


def test_the_texts_of_tokens_are_their_bytes() -> None:
    tokenizer = tiny_tokenizer()
    text = text_of(tokenizer)
    written = "def f(x): # 日本語 🙂 é\n"
    pieces = [text(token) for token in tokenizer(written)["input_ids"]]
    assert "".join(pieces).encode("utf-8", "surrogateescape").decode() == written
    assert any("\udc80" <= character <= "\udcff" for piece in pieces for character in piece), "some are halves"
    assert text(tokenizer.eos_token_id) == tokenizer.eos_token


@pytest.mark.parametrize("error", [IndexError("beyond"), TypeError("None"), OverflowError("negative")])
def test_a_token_beyond_the_tokenizer_has_no_text(error: Exception) -> None:
    class Strict:
        def decode(self, ids: Any) -> str:
            raise error

    assert text_of(Strict())(10**9) == ""
    assert isinstance(text_of(tiny_tokenizer())(10**6), str)


# Hindsight


def test_hindsight_says_what_the_rounds_judged() -> None:
    for result in observed(Observer(str, hindsight=True), prompts=(0, 1, 2)):
        if not result.is_speculative:
            assert result.draft_matches is None
            continue
        assert result.draft_matches is not None and len(result.draft_matches) == result.num_decode_tokens
        place = 0
        for round in result.rounds:
            assert all(result.draft_matches[place : place + round.num_accepted])
            if round.num_accepted < len(round.draft_tokens):
                assert not result.draft_matches[place + round.num_accepted]
            place += len(round.emitted_tokens)


def test_sampled_text_has_no_hindsight() -> None:
    sampled = request_for(quick(temperature=1.0), loaded(), encoded(quick())[0], 0)
    assert draft_matches(loaded().speculative, sampled, (5, 6, 7)) is None
    assert {result.draft_matches for result in observed(Observer(str))} == {None}, "unless asked for"


# Time


@pytest.mark.parametrize("arm", [0, 1], ids=["plain", "speculative"])
def test_prefill_and_rounds_are_the_time_that_passed(arm: int) -> None:
    """By a clock around the decoder. A machine with other things to do may spoil a try, not all of them."""
    decoder = arms()[arm]
    long = request_for(quick(ignore_eos=True), loaded(), encoded(quick())[0], 0, max_new_tokens=60)
    outside = []
    for _ in range(12):
        begin = time.perf_counter()
        events = list(decoder.events(long))
        passed = time.perf_counter() - begin
        told = sum(event.seconds for event in events if isinstance(event, Prefilled | Round))
        assert told <= passed
        # Making caches and events, and reading how much memory there is, belong to no phase.
        outside.append(passed - told - 1e-3)
        if outside[-1] <= 50e-6 * len(events):
            return
    pytest.fail(f"of each round at least {min(outside) / len(events) * 1e6:.0f} us belong to no phase")
