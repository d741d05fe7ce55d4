from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, ParamSpec

import pytest
from textual.app import App
from textual.screen import Screen
from textual.widgets import Static

import sample_feed
from sample_feed import hostile_run, sample_run
from specprof.profiling.events import Event, PromptEnded, Round, RunStarted
from specprof.profiling.feed import Dropped, Failed, Going, Loading, Texts
from specprof.profiling.signs import probability
from specprof.tui.details import Explain, Help, RoundDetails
from specprof.tui.explain_page import explain_page
from specprof.tui.help_page import KEYS, help_page
from specprof.tui.lines import FANCY
from specprof.tui.page import columns, plain, token, width_of
from specprof.tui.round_page import round_page
from specprof.tui.rounds import RoundView, view
from specprof.tui.state import TuiState
from specprof.tui.transcript import Tokens
from specprof.tui.waiting import FailureScreen, LoadingScreen
from specprof.tui.watch import WatchScreen

WIDE, NARROW = 108, 54
HOSTILE = "[bold red]loud[/] [/nothing] \x1b[2J\x07 \u202egnp\u200b\udcff"
SIZES = ((60, 20), (80, 24), (120, 40))


P = ParamSpec("P")


def on_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def state_of(events: Iterable[Event]) -> TuiState:
    state = TuiState()
    kept = list(events)
    for event in kept:
        if isinstance(event, PromptEnded) and event.token_texts:
            state.apply(Texts(event.token_texts))
    for event in kept:
        state.apply(event)
    return state


def views(state: TuiState, *, greedy: bool = False) -> list[RoundView]:
    transcript = state.arms["SD"].transcript
    entries = transcript.since(transcript.begin)
    return [view(e.round, e.pieces, greedy=greedy) for e in entries if isinstance(e, Tokens) and e.round is not None]


@pytest.fixture(scope="module")
def sampled() -> TuiState:
    return state_of(sample_run(6))


def with_accepted(state: TuiState, accepted: int, drafted: int = 4) -> RoundView:
    return next(
        shown for shown in views(state) if (shown.round.num_accepted, len(shown.positions)) == (accepted, drafted)
    )


# A round


def test_a_round_is_told_with_all_its_numbers(sampled: TuiState) -> None:
    shown = with_accepted(sampled, 1)
    round = shown.round
    text = round_page(shown, sampled.run, WIDE).plain
    assert f"round {round.index + 1} of {round.prompt_id}, repetition 1, tiny_dev, T 0.8" in text
    assert round.target_prob and round.draft_prob and round.uniforms and round.alpha
    table = text.splitlines()[4:8]
    for index, (line, position) in enumerate(zip(table, shown.positions, strict=True)):
        ratio = min(1.0, round.target_prob[index] / round.draft_prob[index])
        numbers = (round.draft_prob[index], round.target_prob[index], ratio, round.uniforms[index], round.alpha[index])
        after = line.split(f"{token(position.text).plain}")[1].split()
        assert after[:6] == [str(round.draft_tokens[index]), *map(probability, numbers)]
        assert position.verdict in line and position.why in line
    assert [position.verdict for position in shown.positions] == ["accepted", "rejected", "not judged", "not judged"]
    assert shown.last is not None
    assert f"corrected, id {round.emitted_tokens[-1]}" in text
    assert f"In the place of token 2: {token(shown.last.text).plain}, drawn from" in text
    assert "2 tokens behind it were never judged" in text


def test_the_rule_is_worked_out_for_each_token_that_was_judged(sampled: TuiState) -> None:
    for shown in views(sampled):
        text = round_page(shown, sampled.run, WIDE).plain
        worked = [line for line in text.splitlines() if "min(1, 0" in line or "min(1, <" in line]
        judged = shown.positions[: shown.round.num_accepted + 1]
        assert len(worked) == len(judged)
        for line, position in zip(worked, judged, strict=True):
            assert line.startswith(f"{position.number}  ")
            assert line.endswith(position.verdict)
            assert (" < " in line) == (position.verdict == "accepted")


COINS = "synthetic acceptance 0.5: the cost is real, the text is not the target's"


def with_coins(num_prompts: int) -> TuiState:
    """Whose acceptance is made up."""
    changes = {"synthetic_acceptance": 0.5, "caveats": [COINS]}
    return state_of(
        dataclasses.replace(e, config=e.config | changes) if isinstance(e, RunStarted) else e
        for e in sample_run(num_prompts)
    )


def test_a_coin_is_never_given_out_as_the_rule() -> None:
    state = with_coins(2)
    shown = state.shown
    assert shown is not None and shown.synthetic and shown.positions
    details, why = round_page(shown, state.run, WIDE).plain, explain_page(state, WIDE).plain
    for text in (details, why):
        assert "A coin decides, not the target" in text
        assert "min(1" not in text and "Greedy:" not in text and "was not below the ratio" not in text
        assert "were not recorded" not in text.split("What is not known")[0] and "as if the target" not in text
    assert COINS in why and COINS not in explain_page(state_of(sample_run(2)), WIDE).plain


def test_all_accepted_gives_a_bonus(sampled: TuiState) -> None:
    shown = with_accepted(sampled, 4)
    text = round_page(shown, sampled.run, WIDE).plain
    assert "All 4 were accepted: the same pass gives one token more, drawn from the target's probabilities" in text
    assert f"bonus token, id {shown.round.emitted_tokens[-1]}" in text
    assert "asked for 4, drafted 4, accepted 4" in text
    assert "The text grew by 5 tokens" in text
    assert "never judged" not in text


def test_time_is_shared_out(sampled: TuiState) -> None:
    shown = with_accepted(sampled, 1)
    text = round_page(shown, sampled.run, WIDE).plain
    rows = {line.split()[0]: line.split() for line in text[text.index("\nTime\n") :].splitlines() if " % " in line}
    assert list(rows) == ["draft", "verify", "sample", "overhead", "together"]
    assert float(rows["verify"][1]) == pytest.approx(shown.round.verify_seconds * 1000, abs=0.0005)
    assert float(rows["together"][1]) == pytest.approx(shown.round.seconds * 1000, abs=0.0005)
    assert sum(float(row[2]) for row in list(rows.values())[:4]) == pytest.approx(100, abs=0.2)
    assert f"{shown.round.seconds * 500:.3f} ms for each of 2 tokens" in text


def test_narrow_pages_say_the_same_below_one_another(sampled: TuiState) -> None:
    shown = with_accepted(sampled, 1)
    wide, narrow = (round_page(shown, sampled.run, width).plain for width in (WIDE, NARROW))
    assert "verdict" in wide and "verdict" not in narrow
    for number in (*(shown.round.target_prob or ()), *(shown.round.uniforms or ()), *(shown.round.alpha or ())):
        assert probability(number) in narrow
    first = narrow.split("\n\n")[1].splitlines()
    assert all(len(line) <= NARROW for line in first)


def test_a_table_that_almost_fits_leaves_the_reasons_to_the_rule(sampled: TuiState) -> None:
    text = round_page(with_accepted(sampled, 1), sampled.run, 76).plain
    assert "verdict" in text and "  why" not in text
    assert all(len(line) <= 76 for line in text.split("\n\n")[1].splitlines())


def test_greedy_rounds_have_no_ratio() -> None:
    state = state_of(sample_run(2, temperature=0.0))
    shown = next(shown for shown in views(state, greedy=True) if 0 < shown.round.num_accepted < 3)
    text = round_page(shown, state.run, WIDE).plain
    assert "tiny_dev, greedy" in text
    assert "accepted if it is what the target finds most probable" in text
    assert "1  the target's choice too: accepted" in text
    assert "the target chose another: rejected" in text
    assert "the target's own choice" in text
    assert "min(1" not in text and "random" not in text
    assert shown.round.draft_prob and shown.round.target_prob and shown.round.alpha
    first = (values[0] for values in (shown.round.draft_prob, shown.round.target_prob, shown.round.alpha))
    draft, target, alpha = map(probability, first)
    assert f"{draft}   {target}      -  -  {alpha}  " in text.splitlines()[4]


def test_what_was_not_recorded_is_a_dash(sampled: TuiState) -> None:
    shown = with_accepted(sampled, 1)
    bare = dataclasses.replace(shown.round, target_prob=None, draft_prob=None, alpha=None, uniforms=None, k=None)
    pieces = next(
        e.pieces for e in sampled.arms["SD"].transcript.since(0) if isinstance(e, Tokens) and e.round == shown.round
    )
    text = round_page(view(bare, pieces, greedy=False), None, WIDE).plain
    assert text.splitlines()[4].split()[-8:-2] == [str(bare.draft_tokens[0]), "-", "-", "-", "-", "-"]
    assert "1  probabilities were not recorded: accepted" in text
    assert "asked for -" in text
    unjudged = round_page(view(dataclasses.replace(shown.round, uniforms=None), pieces, greedy=False), None, WIDE).plain
    assert "u was not recorded: rejected" in unjudged


def test_a_text_that_ended_within_its_draft() -> None:
    events = list(sample_run(1, num_tokens=64))
    at = next(i for i, e in enumerate(events) if isinstance(e, Round) and e.num_accepted == 4)
    round = events[at]
    assert isinstance(round, Round)
    events[at] = dataclasses.replace(round, emitted_tokens=round.emitted_tokens[:2], cut=True)
    state = state_of(events[: at + 1])
    shown = state.shown
    assert shown is not None and shown.round.cut
    text = round_page(shown, state.run, WIDE).plain
    assert "An end of the text is among the accepted tokens" in text
    assert "it counts in speed, and not in acceptance" in text
    assert [line.split()[1] for line in text.splitlines()[6:8]] == ["-", "-"]  # no text is known of these
    assert "bonus" not in text


def test_a_round_without_a_draft() -> None:
    round = Round("p", "SD-K4", 0, 6, (), 0, (7,), 0.0, 0.0, 0.0, 0.0, k=4)
    text = round_page(view(round, (), greedy=False), None, WIDE).plain
    assert "Nothing was drafted here." in text
    assert "The rule" not in text
    assert "together  0.000      -" in text


# Why it is fast or slow


def test_with_nothing_yet_it_says_what_it_waits_for() -> None:
    text = explain_page(TuiState(), WIDE).plain
    assert text.splitlines() == [
        "How fast it is can't be told yet.",
        "",
        "What is not known yet, and what is left out",
        "- Costs need steps of plain decoding: none was made so far.",
        "- Acceptance needs a complete round of speculation: none was made so far.",
        "- A speedup needs a prompt that both have decoded to its end.",
    ]


def test_costs_sum_to_what_the_figures_say(sampled: TuiState) -> None:
    text = explain_page(sampled, WIDE).plain
    costs, speedup = sampled.figures.costs, sampled.figures.speedup
    assert costs and speedup and speedup.value and speedup.ci and sampled.figures.explanation
    assert costs.draft_tokens_per_round and costs.draft_cost_ratio and costs.verify_ratio and costs.overhead_ratio
    assert costs.target_step_seconds and costs.speedup_predicted_with_ar_overhead and costs.tokens_per_round
    low, high = speedup.ci
    verdict = f"{speedup.value:.2f}x [{low:.2f}, {high:.2f}]: faster than plain decoding, on 6 prompts."
    assert text.splitlines()[0] == f"\N{BLACK UP-POINTING TRIANGLE} {verdict}"
    assert sampled.figures.explanation in text
    assert f"What a round costs (one pass: {costs.target_step_seconds * 1000:.2f} ms)" in text
    table = text[text.index("What a round costs") :].splitlines()[1:8]
    rows = {line.split("  ")[0]: line for line in table}
    parts = (costs.draft_tokens_per_round * costs.draft_cost_ratio, costs.verify_ratio, costs.overhead_ratio)
    for name, value in zip(("draft", "verify", "sample and overhead", "together"), (*parts, sum(parts)), strict=True):
        assert f"  {value:.2f}  " in rows[name]
    assert f"{costs.speedup_predicted_with_ar_overhead:.2f}x" in rows["predicted"]
    assert f"{speedup.value:.2f}x" in rows["measured"]
    assert "What is not known yet" not in text


def test_it_says_that_fewer_would_be_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_feed, "DRAFT_SECONDS", 0.0009)
    state = state_of(sample_run(6))
    costs = state.figures.costs
    assert costs is not None and costs.best_k is not None and 0 < costs.best_k < 4
    text = explain_page(state, WIDE).plain
    gain, now = costs.best_k_speedup_predicted, costs.speedup_predicted_with_ar_overhead
    assert f"Draft less: K {costs.best_k} would give {gain:.2f}x; as it is, {now:.2f}x is predicted." in text


def test_it_says_that_no_draft_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_feed, "DRAFT_SECONDS", 0.004)
    text = explain_page(state_of(sample_run(6)), WIDE).plain
    assert text.startswith("\N{BLACK DOWN-POINTING TRIANGLE} ")
    assert "slower than plain decoding" in text.splitlines()[0]
    assert "The largest loss is drafting" in text
    assert "no K up to 4 pays" in text
    assert "even 1 would not break even" in text


def test_few_prompts_have_no_verdict() -> None:
    text = explain_page(state_of(sample_run(2)), WIDE).plain
    assert "plain decoding's speed on 2 prompts: too few for a verdict." in text.splitlines()[0]
    assert "An interval and a verdict need 5 prompts that both have decoded to their ends: 2 so far." in text


def test_one_arm_is_not_enough() -> None:
    state = state_of(sample_run(2, baseline=False))
    assert "Costs need steps of plain decoding: none was made so far." in explain_page(state, WIDE).plain
    state.apply(Going("finished"))
    text = explain_page(state, WIDE).plain
    assert "Costs need steps of plain decoding: this run has none." in text
    assert "What a round costs" not in text
    assert "accepted of all drafted" in text


def test_what_was_left_out_is_told() -> None:
    events = [dataclasses.replace(e, interactive=True) if isinstance(e, PromptEnded) else e for e in sample_run(1)]
    state = state_of(events)
    state.apply(Dropped(7))
    text = explain_page(state, WIDE).plain
    assert "2 texts paused, stepped through, raced or changed on the way: left out of the speedup." in text
    assert "7 events came too fast to be shown" in text


def test_the_latest_rejections_come_with_their_probabilities(sampled: TuiState) -> None:
    rejected = [r for r in (shown.round for shown in views(sampled)) if r.num_accepted < len(r.draft_tokens)]
    text = explain_page(sampled, WIDE).plain
    table = text[text.index("What was rejected last\n") :].splitlines()[2:7]
    for line, round in zip(table, reversed(rejected), strict=False):
        at = round.num_accepted
        assert round.draft_prob and round.target_prob
        assert probability(round.draft_prob[at]) in line and probability(round.target_prob[at]) in line
        assert line.endswith(f"{round.prompt_id}, round {round.index + 1}")
    narrow = explain_page(sampled, NARROW).plain
    assert narrow[narrow.index("What was rejected last\n") :].splitlines()[1].split() == ["token", "draft", "target"]


# What pages are made of


def test_columns_wrap_their_last_below_itself() -> None:
    block = columns(("", "what"), [("a", "one two three four five six"), ("bb", "x")], right={0}, width=20)
    assert block.plain == "    what\n a  one two three\n    four five six\nbb  x"
    assert width_of(block) <= 20


def test_a_token_shows_everything_in_it() -> None:
    assert token(" a\n\tb").plain == '" a\N{RETURN SYMBOL}\N{RIGHTWARDS ARROW}b"'
    assert token("").plain == '"\N{MIDDLE DOT}"'
    assert token("\x1b[31m").plain == '"\\u{1b}[31m"'
    assert token("x" * 1000).cell_length == token("\u6f22" * 1000).cell_length == 18
    assert plain("[b]x[/b]").plain == "[b]x[/b]"


def test_help_knows_every_key() -> None:
    shown = {key for _, keys in KEYS for names, _ in keys for key in names}
    app: App[None] = App()
    displays = [app.get_key_display(binding) for binding in bindings_of(WatchScreen)]
    known = {key for display in displays for key in (display.split("/") if len(display) > 1 else display)}
    assert known - shown == {",", "."}  # "<" and ">" without shift
    assert shown <= known


def bindings_of(screen: type[Screen[Any]]) -> list[Any]:
    from textual.binding import Binding

    return list(Binding.make_bindings(screen.BINDINGS))


def test_help_explains_the_signs_that_are_used() -> None:
    text = help_page(WIDE).plain
    for sign in ("".join(FANCY.rejected), FANCY.unjudged, FANCY.corrected, FANCY.bonus, FANCY.newline, FANCY.selected):
        assert f"{sign}  " in text
    assert "1 + accepted / rounds" in text


# On the screen


class Showing(App[None]):
    """Shows one screen, and notes what it asks of the app."""

    def __init__(self, screen: Screen[Any]) -> None:
        super().__init__()
        self.animation_level = "none"
        self.shown = screen
        self.asked: list[str] = []

    def on_mount(self) -> None:
        self.push_screen(self.shown)

    def action_copy_round(self) -> None:
        self.asked.append("copy")

    def on_loading_screen_cancelled(self) -> None:
        self.asked.append("cancelled")

    def on_failure_screen_back(self) -> None:
        self.asked.append("back")

    def text(self) -> str:
        return "\n".join("".join(s.text for s in strip) for strip in self.screen._compositor.render_strips())

    def told(self) -> str:
        """The text without its white space and frame: lines break where they break."""
        return "".join(self.text().replace("\N{BOX DRAWINGS LIGHT VERTICAL}", "").split())


def pages(state: TuiState) -> list[Screen[Any]]:
    assert state.shown is not None
    return [RoundDetails(state.shown, state.run), Explain(state), Help()]


@on_a_loop
async def test_pages_close_by_their_own_key_and_by_escape(sampled: TuiState) -> None:
    app = Showing(Screen())
    async with app.run_test() as pilot:
        for number, own in enumerate(("d", "e", "question_mark")):
            for key in ("escape", "q", "d", "e", "question_mark"):
                page = pages(sampled)[number]
                await app.push_screen(page)
                await pilot.press(key)
                assert (app.screen is page) == (key not in ("escape", "q", own))


@on_a_loop
async def test_a_click_beside_a_page_closes_it_and_one_on_it_does_not(sampled: TuiState) -> None:
    app = Showing(Explain(sampled))
    async with app.run_test(size=(140, 60)) as pilot:
        await pilot.click(offset=(70, 30))
        assert app.screen is app.shown
        await pilot.click(offset=(1, 1))
        assert app.screen is not app.shown


@on_a_loop
async def test_a_round_is_copied_by_the_app(sampled: TuiState) -> None:
    app = Showing(pages(sampled)[0])
    async with app.run_test() as pilot:
        await pilot.press("y", "left", "right")
        assert app.asked == ["copy"]
        assert app.screen is app.shown


@pytest.mark.parametrize("size", SIZES)
@on_a_loop
async def test_pages_can_be_read_to_their_end(sampled: TuiState, size: tuple[int, int]) -> None:
    ends = ("itcountsinspeed", "uwasnotbelow", "Thefilemissesnothing")
    app = Showing(Screen())
    async with app.run_test(size=size) as pilot:
        for page, end in zip(pages(sampled), ends, strict=True):
            await app.push_screen(page)
            await pilot.pause()
            if size[1] < 30:
                assert end not in app.told()
            await pilot.press("end")
            await pilot.pause()
            assert end in app.told()
            assert "esc close" in app.text()


@on_a_loop
async def test_a_page_is_built_anew_for_another_width(sampled: TuiState) -> None:
    app = Showing(RoundDetails(with_accepted(sampled, 1), sampled.run))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        assert "verdict" in app.text()
        await pilot.resize_terminal(60, 40)
        await pilot.pause()
        assert "verdict" not in app.text() and "\N{BALLOT X} rejected" in app.text()
        await pilot.resize_terminal(120, 40)
        await pilot.pause()
        assert "verdict" in app.text()


@on_a_loop
async def test_what_becomes_known_is_told_while_it_is_read() -> None:
    events = sample_run(1)
    state = TuiState()
    app = Showing(Explain(state))
    async with app.run_test() as pilot:
        assert "none was made so far" in app.text()
        for event in events:
            state.apply(event)
        await pilot.pause(1.2)
        assert "none was made so far" not in app.text()
        assert "A round costs" in app.text()


@on_a_loop
async def test_hostile_texts_are_shown_and_do_nothing() -> None:
    state = state_of(hostile_run())
    run = next(e for e in sample_run(1) if isinstance(e, RunStarted))
    state.apply(dataclasses.replace(run, config=run.config | {"pair": {"name": HOSTILE}}))
    failure = Failed(HOSTILE, HOSTILE, 1, (HOSTILE,))
    shown = [RoundDetails(each, state.run) for each in views(state)[:7]]
    app = Showing(Screen())
    async with app.run_test(size=(80, 120)) as pilot:
        for page in [*shown, Explain(state), LoadingScreen(HOSTILE), FailureScreen(failure)]:
            await app.push_screen(page)
            await pilot.pause()
            assert all(strip.cell_length == 80 for strip in app.screen._compositor.render_strips())
            text = app.text().replace("\n", "")
            assert text.isprintable()
            if not isinstance(page, Explain):
                assert "[boldred]loud[/][/nothing]\\u{1b}[2J\\u{7}\\u{202e}gnp\\u{200b}\\xff" in app.told()


# Before and after


@on_a_loop
async def test_loading_says_what_how_far_and_how_long() -> None:
    page = LoadingScreen("tiny_dev")
    app = Showing(page)
    async with app.run_test(size=(60, 20)) as pilot:
        assert "tiny_dev" in app.text() and "starting the engine" in app.text() and "0:00" in app.text()
        page.show(Loading("loading tiny_dev"), 1.0)
        await pilot.pause()
        assert "loading tiny_dev" in app.text() and "\N{FULL BLOCK}" not in app.text() and ".." in app.text()
        page.show(Loading("warm-up", 3, 9), 67.4)
        await pilot.pause()
        assert "warm-up" in app.text() and "3 of 9" in app.text() and "1:07" in app.text()
        assert app.text().count("\N{FULL BLOCK}") == 10 and app.text().count("\N{LIGHT SHADE}") == 20
        page.show(Loading("warm-up", 12, 9), 67.4)
        await pilot.pause()
        assert app.text().count("\N{FULL BLOCK}") == 30


@on_a_loop
async def test_loading_is_drawn_only_when_something_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    page = LoadingScreen("tiny_dev")
    async with Showing(page).run_test():
        drawn: list[object] = []
        monkeypatch.setattr(Static, "update", lambda self, content: drawn.append(content))
        for tenth in range(31):
            page.show(Loading("warm-up", 1, 2), tenth / 10)
        assert len(drawn) == 4  # the first, and once a second


@pytest.mark.parametrize("key", ["escape", "c"])
@on_a_loop
async def test_loading_can_be_cancelled(key: str) -> None:
    app = Showing(LoadingScreen("tiny_dev"))
    async with app.run_test() as pilot:
        await pilot.press(key)
        assert app.asked == ["cancelled"]


FAILURE = Failed("the engine was killed", "take a smaller model", 4, tuple(f"line {i}" for i in range(40)))


@on_a_loop
async def test_a_failure_is_told_with_what_to_do_and_what_was_said() -> None:
    app = Showing(FailureScreen(FAILURE))
    async with app.run_test(size=(60, 20)) as pilot:
        assert FAILURE.message in app.text() and f"what to do: {FAILURE.hint}" in app.text()
        assert "line 3" in app.text() and "line 39" not in app.text()
        await pilot.press("end")
        await pilot.pause()
        assert "line 39" in app.text()
        await pilot.press("y")
        assert app.clipboard.splitlines() == [
            "error: the engine was killed",
            "hint: take a smaller model",
            *FAILURE.log_lines,
        ]
        assert app.asked == []


@on_a_loop
async def test_a_failure_without_a_log_has_no_room_for_one() -> None:
    app = Showing(FailureScreen(Failed("no such model", "name another", 3)))
    async with app.run_test():
        assert "no such model" in app.text()
        assert "was said" not in app.text()


@pytest.mark.parametrize("key", ["escape", "enter"])
@on_a_loop
async def test_a_failure_leads_back(key: str) -> None:
    app = Showing(FailureScreen(FAILURE))
    async with app.run_test() as pilot:
        await pilot.press(key)
        assert app.asked == ["back"]


@pytest.mark.parametrize("make", [lambda: LoadingScreen("tiny_dev"), lambda: FailureScreen(FAILURE)])
@on_a_loop
async def test_q_quits(make: Callable[[], Screen[Any]]) -> None:
    app = Showing(make())
    async with app.run_test() as pilot:
        assert app.is_running
        await pilot.press("q")
        await pilot.pause()
        assert not app.is_running
