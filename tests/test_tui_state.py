"""The state of the screen against events written by hand, and against the comparison of the same events."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest

from sample_feed import hostile_run, sample_run
from specprof.profiling.comparison import compare
from specprof.profiling.events import SCHEMA, Event, Prefilled, PromptEnded, Round, RunEnded, RunStarted
from specprof.profiling.feed import Device, Dropped, Failed, Going, Kept, Loading, Message, Prompts, PromptText, Texts
from specprof.profiling.metrics import fold
from specprof.profiling.speedup import Speedup
from specprof.tui.run_facts import facts
from specprof.tui.state import RECENT_ROUNDS, TuiState
from specprof.tui.transcript import Entry, Gap, Heading, Tokens, Transcript

TEXTS = Texts({str(token): f" t{token}" for token in range(20)})
STARTED = RunStarted("r", SCHEMA, {"temperature": 0.8, "k": 4}, {})


def told(*messages: Message, state: TuiState | None = None) -> TuiState:
    state = TuiState() if state is None else state
    for message in messages:
        state.apply(message)
    return state


def prefilled(arm: str = "SD-K4", prompt: str = "p", repetition: int = 0) -> Prefilled:
    return Prefilled(prompt, arm, repetition, 10, 1, 0.01, 0.002, 0.001)


def a_round(
    index: int = 0, accepted: int = 1, drafted: int = 2, arm: str = "SD-K4", prompt: str = "p", **more: Any
) -> Round:
    tokens = tuple(range(2, 3 + accepted))
    return Round(
        prompt,
        arm,
        0,
        index,
        (*tokens[:accepted], *(9,) * (drafted - accepted)),
        accepted,
        tokens,
        0.1,
        0.2,
        0.3,
        0.4,
        **more,
    )


def step(index: int = 0, prompt: str = "p") -> Round:
    return Round(prompt, "AR", 0, index, (), 0, (5,), 0.0, 0.5, 0.1, 0.1)


def ended(arm: str = "SD-K4", prompt: str = "p", **more: Any) -> PromptEnded:
    return PromptEnded(prompt, arm, 0, "length", 0, **more)


def entries(state: TuiState, arm: str = "SD") -> list[Entry]:
    return state.arms["SD" if arm == "SD" else "AR"].transcript.since(0)


def spoken(state: TuiState, arm: str = "SD") -> str:
    """The text that was generated."""
    pieces = [piece for entry in entries(state, arm) if isinstance(entry, Tokens) for piece in entry.pieces]
    return "".join(piece.text for piece in pieces if piece.kind != "rejected")


# Folding


def test_counts_of_a_run() -> None:
    state = told(STARTED, TEXTS, prefilled(), a_round(), a_round(1, 2), a_round(2, 0, cut=True), ended())
    arm = state.arms["SD"]
    assert (arm.times.rounds, arm.times.tokens, arm.num_generations, state.num_ended) == (3, 6, 1, 1)
    assert arm.times.draft == pytest.approx(0.3) and arm.times.seconds == pytest.approx(3.0)
    assert arm.times.tokens_per_second == pytest.approx(2.0)
    assert list(state.recent_accepted) == [(1, 2), (2, 2)]  # a cut round says nothing of acceptance
    assert state.acceptance.draft_acceptance_rate == pytest.approx(3 / 4)
    assert arm.generation is not None and arm.generation.ended and arm.generation.num_tokens == 7
    assert arm.generation.seconds == pytest.approx(3.013)
    assert spoken(state) == " t1 t2 t3 t2 t3 t4 t2"
    assert state.arms["AR"].times.rounds == 0 and state.arms["AR"].times.tokens_per_second is None


def test_recent_figures_are_of_the_latest_rounds() -> None:
    state = told(STARTED, TEXTS, prefilled(), *(a_round(index, accepted=0) for index in range(60)))
    told(*(a_round(60 + index, accepted=2) for index in range(RECENT_ROUNDS - 10)), state=state)
    recent = state.arms["SD"].recent
    assert (recent.rounds, recent.tokens) == (50, 10 + 3 * 40)
    assert state.arms["SD"].times.rounds == 100
    assert sum(accepted for accepted, _ in state.recent_accepted) == 80 and len(state.recent_accepted) == 50


def test_headings_say_what_is_decoded() -> None:
    prompts = Prompts((PromptText("p", "code", "def f():"),))
    state = told(STARTED, prompts, TEXTS, prefilled(), ended(), prefilled(prompt="q"))
    headings = [entry for entry in entries(state) if isinstance(entry, Heading)]
    assert headings == [Heading("p", "code", "def f():", 1), Heading("q", None, "", 2)]


def test_a_domain_is_known_from_the_run_too() -> None:
    started = RunStarted("r", SCHEMA, {"prompts": [{"prompt_id": "p", "domain": "code"}]}, {})
    assert entries(told(started, prefilled()))[0] == Heading("p", "code", "", 1)


def test_revision_goes_up_with_every_message() -> None:
    state, seen = TuiState(), [0]
    messages: list[Message] = [Loading("x"), STARTED, TEXTS, prefilled(), a_round(), ended(), RunEnded(0)]
    for message in [*messages, Going("finished")]:
        state.apply(message)
        seen.append(state.revision)
    assert seen == sorted(set(seen))


def test_asides() -> None:
    device = Device("cpu", 5)
    state = told(Loading("tiny", 1, 2), device, Dropped(7), Kept("a.jsonl"), Kept(None), Kept("b.jsonl"))
    assert (state.status, state.loading) == ("loading", Loading("tiny", 1, 2))
    assert (state.device, state.num_dropped, state.kept) == (device, 7, ["a.jsonl", "b.jsonl"])
    told(STARTED, state=state)
    assert (state.status, state.loading) == ("running", None)
    told(Going("paused"), state=state)
    assert (state.status, state.loading) == ("paused", None)


def test_a_failure_keeps_everything_else() -> None:
    state = told(STARTED, TEXTS, prefilled(), a_round())
    before = (spoken(state), state.arms["SD"].times.rounds, state.acceptance.draft_acceptance_rate, state.run)
    failed = Failed("the engine was killed", "try again", 1, ("last line",))
    told(failed, state=state)
    assert (state.status, state.failure) == ("failed", failed)
    assert before == (spoken(state), state.arms["SD"].times.rounds, state.acceptance.draft_acceptance_rate, state.run)


def test_a_character_of_several_tokens() -> None:
    texts = Texts({"1": "\udce2", "2": "\udc82", "3": "\udcac"})
    state = told(STARTED, texts, prefilled(), a_round(drafted=1), ended())
    assert spoken(state) == "\N{EURO SIGN}"
    cut_off = told(STARTED, texts, prefilled(), a_round(accepted=0), ended())
    assert spoken(cut_off) == "\udce2\udc82"


# What was dropped


def test_dropped_rounds_leave_a_gap() -> None:
    state = told(STARTED, TEXTS, prefilled(), a_round(0), a_round(4), a_round(5), ended())
    assert [type(entry) for entry in entries(state)] == [Heading, Tokens, Tokens, Gap, Tokens, Tokens]
    assert state.arms["SD"].measured == {}


def test_a_dropped_beginning() -> None:
    state = told(
        STARTED, TEXTS, a_round(3), a_round(4), ended(), prefilled(prompt="q"), a_round(prompt="q"), ended(prompt="q")
    )
    assert [type(entry) for entry in entries(state)] == [Gap, Tokens, Tokens, Heading, Tokens, Tokens]
    assert list(state.arms["SD"].measured) == ["q"]
    assert state.arms["SD"].num_generations == 2


def test_a_dropped_end_and_beginning_begin_another_generation() -> None:
    state = told(STARTED, TEXTS, prefilled(), a_round(), a_round(2, prompt="q"), ended(prompt="q"))
    generation = state.arms["SD"].generation
    assert generation is not None and (generation.prompt_id, generation.whole, generation.ended) == ("q", False, True)
    assert state.arms["SD"].measured == {} and state.num_ended == 1


def test_an_end_of_what_never_began() -> None:
    state = told(STARTED, TEXTS, prefilled(), a_round(), ended(prompt="other"))
    generation = state.arms["SD"].generation
    assert generation is not None and not generation.ended
    assert state.arms["SD"].measured == {}


def test_what_somebody_interfered_with_is_not_measured() -> None:
    state = told(STARTED, TEXTS, prefilled(), a_round(), ended(interactive=True))
    assert state.arms["SD"].measured == {} and (state.num_ended, state.num_interactive) == (1, 1)
    assert state.arms["SD"].times.rounds == 1  # it was there to be seen all the same


# Against the comparison


def _results(events: Iterable[Event], temperature: float) -> Any:
    return compare(fold(events), temperature=temperature)


def assert_same(found: Speedup | None, expected: Speedup | None, num_prompts: int) -> None:
    """But for the order in which seconds were added up."""
    assert found is not None and expected is not None and found.value is not None
    assert (found.verdict, found.n_prompts, expected.n_prompts) == (expected.verdict, num_prompts, num_prompts)
    assert found.value == pytest.approx(expected.value, rel=1e-9)
    assert found.ci == (None if expected.ci is None else pytest.approx(expected.ci, rel=1e-9))


@pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "sampling"])
def test_figures_are_those_of_the_comparison(temperature: float) -> None:
    events = sample_run(6, temperature=temperature, repetitions=2, num_tokens=60)
    state = told(*events)
    expected = _results(events, temperature)
    assert_same(state.figures.speedup, expected.speedup_decode, num_prompts=6)
    assert state.acceptance.to_dict() == expected.acceptance.to_dict()
    got, wanted = dataclasses.asdict(state.figures.costs), dataclasses.asdict(expected.costs)  # type: ignore[arg-type]
    survey = {"best_k", "best_k_speedup_predicted"}  # which the comparison may know from other costs
    for name in got.keys() - survey:
        assert got[name] == (None if wanted[name] is None else pytest.approx(wanted[name], rel=0.05)), name
    assert state.figures.explanation is not None


def test_figures_come_with_the_end_of_a_generation() -> None:
    values = []
    state = told(STARTED, TEXTS)
    batches: list[list[Message]] = [
        [prefilled(), a_round(), ended()],
        [prefilled("AR"), step(), step(1)],
        [ended("AR")],
    ]
    for events in batches:
        speedup = told(*events, state=state).figures.speedup
        values.append(speedup and speedup.value)
    # 0.7 seconds a token alone, a second for two together
    assert values == [None, None, pytest.approx(0.7 / 0.5)]


def test_interference_stays_out_of_the_speedup() -> None:
    events = sample_run(6, num_tokens=40)
    marked = [
        dataclasses.replace(event, interactive=True)
        if isinstance(event, PromptEnded) and event.prompt_id.endswith("_000")
        else event
        for event in events
    ]
    state, expected = told(*marked), _results(marked, 0.8)
    assert_same(state.figures.speedup, expected.speedup_decode, num_prompts=3)
    assert state.num_interactive == 6


def test_dropped_rounds_stay_out_of_the_speedup() -> None:
    events = sample_run(4, num_tokens=40)
    victim = next(event for event in events if isinstance(event, Round) and event.index == 3)
    state = told(*(event for event in events if event is not victim))
    whole = [event for event in events if getattr(event, "prompt_id", None) != victim.prompt_id]
    assert_same(state.figures.speedup, _results(whole, 0.8).speedup_decode, num_prompts=3)


# Steps


def test_a_dropped_end_is_known_from_what_was_dropped() -> None:
    state = told(STARTED, TEXTS, prefilled(), a_round(), Dropped(3), ended())
    assert not state.arms["SD"].measured
    assert [type(entry) for entry in entries(state)][-1] is Gap


def test_one_gap_is_told_once() -> None:
    state = told(STARTED, TEXTS, prefilled(), a_round(), Dropped(1), a_round(2), Dropped(1), ended())
    assert sum(isinstance(entry, Gap) for entry in entries(state)) == 1


def test_rounds_of_interfered_texts_are_in_no_prediction() -> None:
    alone: list[Message] = [prefilled("AR"), step(), step(1), ended("AR")]
    calm = told(STARTED, TEXTS, *alone, prefilled(), a_round(), a_round(1), ended())
    state = told(STARTED, TEXTS, prefilled(prompt="x"), a_round(0, 0, prompt="x"), ended(prompt="x", interactive=True))
    told(*alone, prefilled(), a_round(), a_round(1), ended(), state=state)
    assert state.acceptance.num_spec_steps == 3, "what is on the screen counts all rounds"
    assert state.figures.costs == calm.figures.costs is not None


def test_a_prompt_that_was_left_does_not_stop_the_figures() -> None:
    alone: list[Message] = [prefilled("AR"), step(), ended("AR")]
    left: list[Message] = [prefilled(), a_round()]
    state = told(STARTED, TEXTS, *alone, *left)
    before = state.figures
    assert before.speedup is None
    again = dataclasses.replace(prefilled(), repetition=1), dataclasses.replace(a_round(), repetition=1)
    told(*again, dataclasses.replace(ended(), repetition=1), state=state)
    after = state.figures.speedup
    assert after is not None and after.value is not None


def test_figures_are_exact_at_the_end() -> None:
    run = sample_run(12, num_tokens=40)
    state = told(*run, Going("finished"))
    expected, found = compare(fold(run), temperature=0.8).speedup_decode, state.figures.speedup
    assert expected is not None and found is not None
    assert found.ci == pytest.approx(expected.ci, rel=1e-12)


def test_a_round_is_revealed_stage_by_stage() -> None:
    state = told(STARTED, TEXTS, prefilled())
    state.stepping = True
    told(a_round(), state=state)
    seen = []
    for _ in range(4):
        shown = state.shown
        assert shown is not None and shown.round == a_round()
        seen.append((state.stage, shown.headline, len(entries(state)), state.arms["SD"].times.rounds))
        revealed = state.reveal()
    assert seen == [
        ("draft", "the draft proposes 2", 2, 0),
        ("verify", "the target reads all 2 in one pass", 2, 0),
        (None, "1 of 2 accepted + corrected", 3, 1),
        (None, "1 of 2 accepted + corrected", 3, 1),
    ]
    assert not revealed


@pytest.mark.parametrize(
    "next_event", [a_round(1), ended(), RunEnded(0), prefilled("AR"), STARTED, Failed("x", "y", 1)]
)
def test_time_goes_on_without_its_last_stage(next_event: Message) -> None:
    state = told(STARTED, TEXTS, prefilled())
    state.stepping = True
    told(a_round(), next_event, state=state)
    assert [entry.round for entry in entries(state) if isinstance(entry, Tokens)][1] == a_round()
    assert state.stage == ("draft" if isinstance(next_event, Round) else None)


def test_nothing_is_staged_where_nothing_is_drafted() -> None:
    state = told(STARTED, TEXTS, prefilled("AR"))
    state.stepping = True
    told(step(), state=state)
    assert state.stage is None and state.arms["AR"].times.rounds == 1


def test_another_round_may_be_looked_at_meanwhile() -> None:
    state = told(STARTED, TEXTS, prefilled(), a_round())
    state.stepping = True
    told(a_round(1, 2), state=state)
    state.select(2)
    assert state.shown is not None and state.shown.round == a_round()
    state.select(None)
    assert state.shown is not None and state.shown.round == a_round(1, 2) and state.shown.stage == "draft"


# Selecting


def test_selecting_rounds() -> None:
    state = told(STARTED, TEXTS)
    state.select_neighbour(-1)
    assert chosen(state) == (None, True) and state.shown is None
    told(prefilled(), a_round(0), a_round(1), a_round(2, 0, 0), a_round(3), state=state)  # entries 0 to 5
    assert chosen(state) == (5, True)
    state.select_neighbour(-1)
    assert chosen(state) == (3, False)  # nothing was drafted in 4
    told(a_round(4), state=state)
    assert chosen(state) == (3, False)
    for _ in range(5):
        state.select_neighbour(-1)
    assert chosen(state) == (2, False)
    for expected in [(3, False), (5, False), (6, False), (6, True)]:
        state.select_neighbour(1)
        assert chosen(state) == expected
    for neither in (0, 4, 99, -1):
        state.select(neither)
        assert chosen(state) == (6, True)


def chosen(state: TuiState) -> tuple[int | None, bool]:
    return state.selected, state.follows


def test_a_selected_round_may_be_forgotten() -> None:
    state = told(STARTED, TEXTS, prefilled(), a_round())
    state.select(2)
    told(*(a_round(index) for index in range(1, 2000)), state=state)
    last = state.arms["SD"].transcript.end - 1
    assert state.selected == last and state.shown is not None and state.shown.round.index == 1999


# Runs


def test_another_run_begins_anew_and_keeps_the_text() -> None:
    state = told(STARTED, TEXTS, prefilled(), a_round(), ended(), prefilled("AR"), step(), ended("AR"), RunEnded(0))
    text = spoken(state)
    told(dataclasses.replace(STARTED, run_id="s", config={"temperature": 0.0}), state=state)
    assert spoken(state) == text and state.run is not None and state.run.run_id == "s" and state.run.greedy
    assert (state.num_ended, state.num_interactive) == (0, 0)
    assert state.figures.speedup is None and state.figures.costs is None
    assert state.acceptance.draft_acceptance_rate is None and not state.recent_accepted
    assert all(arm.times.rounds == arm.num_generations == 0 and not arm.measured for arm in state.arms.values())
    told(prefilled(), a_round(), state=state)
    assert spoken(state).startswith(text) and state.arms["SD"].num_generations == 1


def test_a_text_that_was_left_is_no_race() -> None:
    state = told(STARTED, TEXTS, prefilled("AR"), step(), dataclasses.replace(prefilled(), repetition=1))
    assert not state.racing and not state.arms["AR"].decoding


def test_a_race() -> None:
    def going() -> tuple[bool, list[str]]:
        return state.racing, [name for name, arm in state.arms.items() if arm.decoding]

    state = told(STARTED, TEXTS, prefilled(), a_round(), ended(), prefilled("AR"))
    assert going() == (False, ["AR"])
    told(prefilled(prompt="q"), state=state)
    assert going() == (False, ["SD"])  # another prompt: the end of the first was dropped
    told(prefilled("AR", "q"), state=state)
    assert going() == (True, ["AR", "SD"])
    told(a_round(prompt="q"), step(prompt="q"), a_round(1, prompt="q"), step(1, prompt="q"), state=state)
    assert spoken(state, "AR").endswith(" t1 t5 t5") and not any(isinstance(e, Gap) for e in entries(state))
    told(ended(prompt="q"), state=state)
    assert going()[1] == ["AR"]
    told(ended("AR", "q"), state=state)
    assert going()[1] == []


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"pair": None, "models": [], "prompts": "x", "k": None, "temperature": "hot", "seed": None, "caveats": 3},
        {"pair": {"name": ["a"]}, "models": {"target": 5, "draft": {"model": None}}, "prompts": [1, {}, None]},
        {"max_new_tokens": True, "repetitions": -1, "seed": -3, "k": "auto", "prompts": [{"domain": "d"}]},
        {"seed": float("inf"), "max_new_tokens": float("nan"), "repetitions": float("inf"), "k": float("nan")},
        {"seed": 10**400, "max_new_tokens": -(10**400), "repetitions": 10**400, "temperature": 10**400},
        {"k": True, "temperature": float("nan"), "prompts": [{"prompt_id": ["x"], "domain": {}}]},
    ],
)
def test_any_config_is_survived(config: dict[str, Any]) -> None:
    known = facts(RunStarted("r", SCHEMA, config, {"torch_threads": "many"}))
    assert known.threads is None and known.seed >= 0
    assert known.k == "auto" or (isinstance(known.k, int) and not isinstance(known.k, bool))
    assert all(isinstance(name, str) and name for name in (known.pair, known.device))
    told(RunStarted("r", SCHEMA, config, {}), TEXTS, prefilled(), a_round(), ended())


def test_what_a_run_says_of_itself() -> None:
    known = facts(next(event for event in sample_run(2, k=3, seed=5) if isinstance(event, RunStarted)))
    assert (known.pair, known.k, known.temperature, known.seed) == ("tiny_dev", 3, 0.8, 5)
    assert known.device == "cpu"
    assert (known.num_generations, known.max_new_tokens, known.greedy) == (4, 96, False)


def test_hostile_texts_go_through() -> None:
    state = told(*hostile_run(2))
    assert state.num_ended == 4 and state.shown is not None


# Bounds


def test_a_transcript_forgets_the_oldest() -> None:
    transcript = Transcript(most=3)
    numbers = [transcript.add(Tokens((), a_round(index))) for index in range(5)]
    assert numbers == [0, 1, 2, 3, 4] and (transcript.begin, transcript.end) == (2, 5)
    assert transcript.at(1) is None and transcript.at(5) is None and transcript.at(2) == Tokens((), a_round(2))
    assert transcript.since(0) == transcript.since(2) and len(transcript.since(4)) == 1 and transcript.since(5) == []
    assert (transcript.round_before(3), transcript.round_before(2), transcript.round_after(3)) == (2, None, 4)
    assert (transcript.round_before(99), transcript.round_after(-5), transcript.round_after(4)) == (4, 2, None)


def test_memory_stays_bounded() -> None:
    """40,000 tokens: what a state holds is no more at their end than after the first third."""
    state = told(STARTED, TEXTS)
    held, tokens = [], 0
    tracemalloc.start()
    try:
        for _ in range(3):
            for number in range(80):
                told(prefilled(prompt=f"p{number}"), state=state)
                tokens += 1
                for index in range(33):
                    told(a_round(index, 4, 4, prompt=f"p{number}"), state=state)
                    tokens += 5
                told(ended(prompt=f"p{number}"), state=state)
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert tokens >= 39_000
    assert held[2] < held[0] * 1.1 + 100_000
