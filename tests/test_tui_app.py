"""The app as a person uses it: keys, screens, failures, floods, in terminals of any size."""

# ruff: noqa: RUF001  the signs of the stream are meant as they are
from __future__ import annotations

import asyncio
import json
import re
import threading
import time
import tracemalloc
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from textual.color import Color
from textual.containers import VerticalScroll
from textual.pilot import Pilot
from textual.screen import Screen

from sample_feed import hostile_run, sample_run
from specprof.errors import ResourceError, UnavailableError
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round
from specprof.profiling.feed import Control, Dropped, Failed, Going, Kept, Loading, Message, Refused, Texts
from specprof.profiling.signs import spelled
from specprof.tui.app import SpecprofApp
from specprof.tui.choices import Choice, Offer, PairOffer
from specprof.tui.contrast import contrast
from specprof.tui.details import Explain, Help, RoundDetails
from specprof.tui.header_bar import HeaderBar
from specprof.tui.panels import CompactBar, SignsPanel
from specprof.tui.round_panel import RoundPanel
from specprof.tui.start import StartScreen
from specprof.tui.stream import TokenStream
from specprof.tui.waiting import FailureScreen, LoadingScreen
from specprof.tui.watch import WatchScreen

OFFER = Offer((PairOffer("tiny_dev", "0.7M drafts for 7.3M", True),), ("code", "conversation"), ("model", "ngram"))
CHOICE = Choice(pair="tiny_dev", temperature=0.8)
SIZES = [(60, 20), (80, 24), (100, 30), (120, 40), (200, 60)]


@dataclass
class ScriptedFeed:
    """Says what the test puts into it, and notes what it is told."""

    live: bool = True
    waiting: list[Message] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)
    closed: bool = False

    def read(self) -> Sequence[Message]:
        if self.closed:
            return ()
        said, self.waiting = self.waiting, []
        return said

    def send(self, control: Control) -> None:
        self.controls.append(control)

    def close(self) -> None:
        self.closed = True

    @property
    def control(self) -> Control:
        return self.controls[-1]


@dataclass
class Session:
    """An app over a scripted feed, and the pilot that types into it."""

    app: SpecprofApp
    pilot: Pilot[None]
    feed: ScriptedFeed

    async def say(self, *messages: Message) -> None:
        self.feed.waiting.extend(messages)
        self.app.tick()
        await self.pilot.pause()
        self.app.tick()  # a screen that has just been opened is drawn with the next tick
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    def on(self, screen: type[Screen[Any]]) -> bool:
        """Whether this screen is shown."""
        return isinstance(self.app.screen, screen)

    def text(self) -> str:
        """What the terminal shows."""
        lines = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in line) for line in lines)

    def notes(self) -> str:
        """What has been said in passing."""
        return "\n".join(note.message for note in self.app._notifications)


def texts_of(events: Sequence[Event]) -> Texts:
    known: dict[str, str] = {}
    for event in events:
        if isinstance(event, PromptEnded):
            known |= event.token_texts or {}
    return Texts(known)


def told(events: Sequence[Event]) -> list[Message]:
    """Events as a feed tells them: what tokens stand for comes first."""
    return [texts_of(events), *events]


RUN = sample_run(3)


def up_to_round(number: int, events: Sequence[Event] = RUN) -> list[Message]:
    """A run until so many speculative rounds have been made."""
    seen = 0
    for index, event in enumerate(events):
        seen += isinstance(event, Round) and bool(event.draft_tokens)
        if seen == number:
            return told(events)[: index + 2]
    raise AssertionError("the run is shorter")


def watch(
    script: Callable[[Session], Coroutine[Any, Any, None]],
    *,
    size: tuple[int, int] = (120, 40),
    live: bool = True,
    start: bool = True,
    open_feed: Callable[[Choice], Any] | None = None,
    **options: Any,
) -> SpecprofApp:
    feed = ScriptedFeed(live)

    async def run() -> SpecprofApp:
        app = SpecprofApp(open_feed or (lambda choice: feed), OFFER, CHOICE, start=start, fps=0.001, **options)
        async with app.run_test(size=size, notifications=True) as pilot:
            session = Session(app, pilot, feed)
            if start and open_feed is None:
                await until(lambda: bool(feed.controls))
            await script(session)
        return app

    return asyncio.run(run())


async def until(done: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.01)


# From start to end


def test_loading_then_the_main_screen() -> None:
    async def script(s: Session) -> None:
        await s.say(Loading("warm-up", 1, 3))
        assert s.on(LoadingScreen)
        assert "warm-up" in s.text() and "tiny_dev" in s.text()
        await s.say(*up_to_round(5))
        assert s.on(WatchScreen)
        assert "tiny_dev" in s.text() and "K 4" in s.text() and "0.8" in s.text()

    watch(script)


def test_a_choice_is_asked_for_and_remembered_once_it_works() -> None:
    remembered: list[Choice] = []

    async def script(s: Session) -> None:
        assert s.on(StartScreen)
        s.app.screen.dismiss(CHOICE)
        await until(lambda: bool(s.feed.controls))
        assert s.feed.control == Control(k=4, temperature=0.8)
        await s.say(Loading("warm-up", 1, 3))
        assert not remembered
        await s.say(*up_to_round(2))
        await s.say(*told(RUN))
        assert remembered == [CHOICE]

    watch(script, start=False, remember=remembered.append)


def test_loading_can_be_cancelled_while_the_feed_is_opened() -> None:
    feed, release = ScriptedFeed(), threading.Event()

    def slowly(choice: Choice) -> ScriptedFeed:
        release.wait(10)
        return feed

    async def script(s: Session) -> None:
        assert s.on(LoadingScreen)
        await s.press("escape")
        assert s.on(StartScreen)
        release.set()
        await until(lambda: feed.closed)
        assert s.on(StartScreen)

    watch(script, open_feed=slowly)


def test_loading_can_be_cancelled_in_the_engine() -> None:
    async def script(s: Session) -> None:
        await s.say(Loading("loading tiny_dev"))
        await s.press("escape")
        await until(lambda: s.feed.closed)
        assert s.on(StartScreen)

    watch(script)


def test_what_cannot_be_opened_is_said_and_there_is_a_way_back() -> None:
    def refuse(choice: Choice) -> ScriptedFeed:
        raise UnavailableError("[b]no[/b] such model", "name another")

    async def script(s: Session) -> None:
        await until(lambda: s.on(FailureScreen))
        await s.pilot.pause()
        assert "[b]no[/b] such model" in s.text() and "name another" in s.text()
        await s.press("enter")
        assert s.on(StartScreen)

    assert watch(script, open_feed=refuse).failure is None


def test_a_dead_engine_leaves_the_app_alive() -> None:
    failed = Failed("the engine was killed (SIGKILL)", "free memory", 4, ("line one", "\x1b[31mline two"))

    async def script(s: Session) -> None:
        await s.say(*up_to_round(7))
        await s.say(failed)
        assert s.on(FailureScreen)
        assert "killed" in s.text() and "free memory" in s.text() and "line one" in s.text()
        assert "\x1b" not in s.text()
        await s.press("q")

    app = watch(script)
    assert app.failure == failed


def test_an_unexpected_failure_to_open_is_told_too() -> None:
    def stumble(choice: Choice) -> ScriptedFeed:
        raise ZeroDivisionError("in some library")

    async def script(s: Session) -> None:
        await until(lambda: s.on(FailureScreen))
        await s.pilot.pause()
        assert "ZeroDivisionError" in s.text() and "report it" in s.text()
        await s.press("q")

    failure = watch(script, open_feed=stumble).failure
    assert failure is not None and failure.exit_code == 1 and any("stumble" in line for line in failure.log_lines)


def test_the_way_back_from_a_failure_forgets_it() -> None:
    async def script(s: Session) -> None:
        await s.say(Failed("it failed", "try again", 4))
        await s.press("escape")
        assert s.on(StartScreen)
        assert s.app.failure is None
        await s.press("escape")

    watch(script)


def test_m_ends_the_engine_and_asks_anew() -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(3))
        await s.press("m")
        assert s.on(StartScreen)
        await until(lambda: s.feed.closed)

    watch(script)


@pytest.mark.parametrize(("key", "code"), [("q", 0), ("ctrl+q", 0), ("ctrl+c", 130)])
def test_leaving(key: str, code: int) -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(3))
        await s.press(key)

    app = watch(script)
    app.end()
    assert app.return_code == code


def test_files_of_every_run_are_known_at_the_end() -> None:
    async def script(s: Session) -> None:
        await s.say(*told(RUN), Kept("one.jsonl"))
        await s.say(*told(RUN), Kept("two.jsonl"))

    app = watch(script)
    app.end()
    assert app.kept == ["one.jsonl", "two.jsonl"]


# Keys


def test_pause_and_resume() -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(3))
        await s.press("space")
        assert s.feed.control.paused
        await s.say(Going("paused"))
        assert "paused" in s.text()
        await s.press("space")
        assert not s.feed.control.paused

    watch(script)


def test_space_at_the_end_decodes_again() -> None:
    async def script(s: Session) -> None:
        await s.say(*told(RUN), Going("finished"))
        assert "finished" in s.text()
        await s.press("space")
        assert s.feed.control.restarts == 1 and not s.feed.control.paused

    watch(script)


def test_a_step_shows_a_round_in_three_stages() -> None:
    events = up_to_round(4)
    last = events.pop()
    assert isinstance(last, Round)

    async def script(s: Session) -> None:
        await s.say(*events)
        counted = s.app.state.acceptance.num_spec_steps
        await s.press("s")
        assert s.feed.control.paused and s.feed.control.steps == 1
        await s.say(Going("paused"), last)
        seen = []
        for stage in ("draft", "verify", "decision"):
            shown = s.app.state.shown
            assert shown is not None and shown.stage == stage and shown.round == last
            seen.append(s.text())
            await s.press("s")
        assert len(set(seen)) == 3
        # The third press after the round had been shown whole asked for the next one.
        assert s.feed.control.steps == 2
        assert s.app.state.acceptance.num_spec_steps == counted + 1

    watch(script)


def test_there_is_nothing_to_step_through_at_the_end() -> None:
    async def script(s: Session) -> None:
        await s.say(*told(RUN), Going("finished"))
        await s.press("s")
        assert not s.feed.control.paused and not s.app.state.stepping
        assert "space" in s.notes()

    watch(script)


def test_going_on_ends_stepping() -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(3))
        await s.press("s")
        await s.say(*told(RUN), Going("finished"))
        await s.press("space")
        assert not s.app.state.stepping and not s.feed.control.paused

    watch(script)


def test_what_the_engine_refuses_is_said_and_taken_back() -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(3))
        await s.press("]")
        await s.say(Refused("this [b]can't[/b] be sampled", "stay at 0", 4, 0.8))
        assert s.app.control.temperature == 0.8
        assert "this [b]can't[/b] be sampled" in s.notes()

    watch(script)


def test_settings_on_the_way() -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(3))
        await s.press("plus", "plus", "minus")
        assert s.feed.control.k == 5
        assert "K 5" in s.text()
        await s.press(*["minus"] * 9)
        assert s.feed.control.k == 1
        await s.press("]", "]", "[")
        assert s.feed.control.temperature == 0.9
        await s.press(*["["] * 12)
        assert s.feed.control.temperature == 0.0
        await s.press("n")
        assert s.feed.control.skips == 1
        await s.press("r")
        assert s.feed.control.race

    watch(script)


def test_a_replay_changes_its_pace_and_nothing_else() -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(3))
        before = s.feed.control
        await s.press("plus", "]", "r")
        assert s.feed.control == before
        await s.press(*[">"] * 6)
        assert s.feed.control.pace == 16
        await s.press(*["<"] * 9)
        assert s.feed.control.pace == 0.25

    watch(script, live=False)


def test_views() -> None:
    async def script(s: Session) -> None:
        await s.say(*told(RUN))
        stream = s.app.screen.query_one("#stream", TokenStream)
        assert stream.border_title == "Speculative decoding"
        await s.press("b")
        assert stream.border_title == "Plain decoding"
        await s.press("b")
        assert stream.border_title == "Speculative decoding"

    watch(script)


def test_folding_what_was_rejected() -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(30))
        stream = s.app.screen.query_one("#stream", TokenStream)
        unfolded, height = s.text(), stream.virtual_size.height
        assert "¦" in unfolded and "‹+" not in unfolded
        await s.press("f")
        assert stream.folded and stream.follows
        assert re.search(r"‹\+[1-4]›", s.text()) and stream.virtual_size.height < height
        await s.press("b", "b", "f")
        assert s.text() == unfolded

    watch(script)


@pytest.mark.parametrize(
    ("size", "panel"), [((120, 40), True), ((120, 38), True), ((120, 37), False), ((80, 24), False)]
)
def test_signs_are_explained_once(size: tuple[int, int], panel: bool) -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(5))
        assert s.app.screen.query_one(SignsPanel).display == panel
        stream = s.app.screen.query_one("#stream", TokenStream)
        assert bool(stream.border_subtitle) != panel
        await s.pilot.resize_terminal(*(100, 30) if panel else (130, 44))
        await s.pilot.pause()
        assert bool(stream.border_subtitle) == panel

    watch(script, size=size)


_DRAWN = re.compile("[\u2500-\u259f\u2800-\u28ff]+")


@pytest.mark.parametrize("theme", ["textual-dark", "textual-light"])
def test_every_word_can_be_read(theme: str) -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(12))
        for key in ("s", "d", "escape", "e", "escape", "question_mark"):
            await s.press(key)
            pages = s.app.screen.query(VerticalScroll)
            seen = pages.first().region if pages else s.app.screen.region  # what is behind a page is darker
            for strip in s.app.screen._compositor.render_strips()[seen.y : seen.bottom]:
                for segment in strip.crop(seen.x, seen.right):
                    words, style = _DRAWN.sub("", segment.text).strip(), segment.style
                    if not words or style is None or style.color is None or style.bgcolor is None:
                        continue
                    ink, paper = Color.from_rich_color(style.color), Color.from_rich_color(style.bgcolor)
                    assert contrast(ink, paper) >= 4.5, (key, words, ink, paper)

    watch(script, theme=theme)


def test_selecting_rounds_by_keys() -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(6))
        state = s.app.state
        last = state.shown
        await s.press("left", "left")
        assert last is not None and state.selected is not None
        before = state.arms["SD"].transcript.round_at(state.selected)
        assert before != last.round
        await s.press("right")
        assert state.shown not in (None, last) and state.shown.round != before
        await s.press("left", "escape")
        assert state.shown == last

    watch(script)


@pytest.mark.parametrize(("key", "screen"), [("d", RoundDetails), ("e", Explain), ("question_mark", Help)])
def test_pages_over_the_main_screen(key: str, screen: type[Any]) -> None:
    async def script(s: Session) -> None:
        await s.say(*told(RUN))
        await s.press(key)
        assert s.on(screen)
        # What happens goes on behind it.
        await s.say(*told(RUN))
        assert s.on(screen)
        await s.press("escape")
        assert s.on(WatchScreen)

    watch(script)


def test_keys_before_there_is_anything_to_show(tmp_path: Path) -> None:
    async def script(s: Session) -> None:
        await s.say(*told(RUN)[:2])
        assert s.on(WatchScreen)
        for key in "dewyxbrnst+-?":
            await s.press({"+": "plus", "-": "minus", "?": "question_mark"}.get(key, key))
            while not s.on(WatchScreen):
                await s.press("escape")

    watch(script, directory=tmp_path)


def test_copying_a_round() -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(4))
        await s.press("y")
        shown = s.app.state.shown
        assert shown is not None
        record = json.loads(s.app.clipboard)
        assert record["index"] == shown.round.index and record["draft_tokens"] == list(shown.round.draft_tokens)
        assert len(record["texts"]) == len(record["draft_tokens"])

    watch(script)


def test_a_screenshot(tmp_path: Path) -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(4))
        await s.press("x")

    watch(script, directory=tmp_path / "new")
    [picture] = (tmp_path / "new").iterdir()
    assert picture.suffix == ".svg" and "tiny_dev" in picture.read_text().replace("&#160;", " ")


def test_a_screenshot_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def script(s: Session) -> None:
        await s.say(*up_to_round(4))
        await s.press("x")
        assert "can't be written" in s.notes()

    watch(script, directory=tmp_path / "file" / "below")


def test_themes() -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(4))
        seen = [s.app.theme]
        for _ in range(4):
            await s.press("t")
            seen.append(s.app.theme)
        assert len(set(seen)) == 4 and seen[0] == seen[-1]

    watch(script, theme="textual-dark")


def test_a_report_is_written_while_the_engine_waits() -> None:
    written: list[Path] = []
    release = threading.Event()

    def save(path: Path) -> list[Path]:
        release.wait(10)
        written.append(path)
        return [Path("r.html"), Path("r.md")]

    async def script(s: Session) -> None:
        await s.say(Kept("run.jsonl"), *told(RUN))
        await s.press("w")
        assert s.feed.control.paused
        release.set()
        await until(lambda: bool(written))
        await until(lambda: not s.feed.control.paused)
        assert "r.html" in s.notes()

    watch(script, save_report=save)
    assert written == [Path("run.jsonl")]


def test_a_report_does_not_go_on_with_what_somebody_has_stopped() -> None:
    release = threading.Event()
    done = threading.Event()

    def save(path: Path) -> list[Path]:
        release.wait(10)
        done.set()
        return [path]

    async def script(s: Session) -> None:
        await s.say(Kept("run.jsonl"), *told(RUN))
        await s.press("w", "s")
        release.set()
        await until(lambda: "report: run.jsonl" in s.notes())
        assert s.feed.control.paused and s.feed.control.steps == 1

    watch(script, save_report=save)
    assert done.is_set()


@pytest.mark.parametrize("name", ["a[/b]c", "a\x1b[31mc"])
def test_names_are_no_markup(tmp_path: Path, name: str) -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(4))
        await s.press("x")
        assert ("[/b]" in s.notes() or "u{1b}[31m" in s.notes()) and "\x1b" not in s.notes()
        assert s.text()

    watch(script, directory=tmp_path / name)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ResourceError("the [disk] is full", "free some space"), "the [disk] is full"),
        (ValueError("no such [font]"), "this is a bug in specprof: ValueError: no such [font]"),
    ],
)
def test_a_report_that_fails_says_why(error: Exception, said: str) -> None:
    def save(path: Path) -> list[Path]:
        raise error

    async def script(s: Session) -> None:
        await s.say(Kept("run.jsonl"), *told(RUN))
        await s.press("w")
        await until(lambda: not s.feed.control.paused)
        assert said in s.notes() and s.text()  # what is watched goes on

    watch(script, save_report=save)


def test_no_report_of_nothing() -> None:
    async def script(s: Session) -> None:
        await s.say(*told(RUN))
        await s.press("w")
        assert not s.feed.control.paused

    watch(script, save_report=lambda path: pytest.fail("there is nothing to report on"))


def test_the_palette_knows_every_key() -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(4))
        commands = {command.title for command in s.app.get_system_commands(s.app.screen)}
        assert {"pause", "step", "race", "details", "explain", "report", "screenshot", "theme", "quit"} <= commands
        pause = next(c for c in s.app.get_system_commands(s.app.screen) if c.title == "pause")
        await pause.callback()
        assert s.feed.control.paused

    watch(script)


# Whatever comes


@pytest.mark.parametrize("size", SIZES)
def test_every_size(size: tuple[int, int]) -> None:
    async def script(s: Session) -> None:
        await s.say(*told(RUN))
        assert len(s.text().splitlines()) == size[1]
        header = s.app.screen.query_one(HeaderBar)
        assert header.region.width == size[0]
        wide, compact = size[0] >= 120, size[0] < 81 or size[1] < 24
        assert s.app.screen.query_one(CompactBar).display == compact
        assert s.app.screen.query_one("#side").display != compact
        assert s.app.screen.query_one("#stream").region.height >= 5
        if wide:
            assert s.app.screen.query_one(RoundPanel).display

    watch(script, size=size)


def test_resizing_on_the_way() -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(5))
        for size in (*SIZES, *reversed(SIZES), (30, 8), (120, 40)):
            await s.pilot.resize_terminal(*size)
            await s.pilot.pause()
            await s.say(*told(RUN))
            assert len(s.text().splitlines()) == size[1]

    watch(script)


@pytest.mark.parametrize("size", [(60, 20), (120, 40)])
def test_texts_that_would_command_a_terminal(size: tuple[int, int]) -> None:
    async def script(s: Session) -> None:
        await s.say(*told(hostile_run(2)))
        for key in ("b", "d"):
            shown = s.text()
            assert not any(spelled(character) for character in shown.replace("\n", ""))
            await s.press(key)
        shown = s.text()
        assert not any(spelled(character) for character in shown.replace("\n", ""))

    watch(script, size=size)


def test_texts_that_end_with_their_first_token() -> None:
    short = [event for event in RUN if not isinstance(event, Round)]

    async def script(s: Session) -> None:
        await s.say(*told(short), Going("finished"))
        assert "finished" in s.text()
        await s.press("d", "e")

    watch(script)


def test_dropped_rounds_are_told() -> None:
    async def script(s: Session) -> None:
        await s.say(*up_to_round(4), Dropped(12))
        assert "dropped 12" in s.text()

    watch(script)


def test_a_flood_stays_bounded_and_responsive() -> None:
    def flood() -> Iterator[list[Message]]:
        events = sample_run(2, num_tokens=200)
        yield told(events)
        beginning = [event for event in events if isinstance(event, Prefilled | Round)]
        for _ in range(20):
            yield list(beginning)

    async def script(s: Session) -> None:
        source = flood()
        await s.say(*next(source))
        waited = []
        for _ in range(12):
            await s.say(*next(source))
            start = time.perf_counter()
            await s.press("b")
            waited.append(time.perf_counter() - start)
        # 500 events came before each key. The figure itself is for benchmarks/observer.py.
        assert sorted(waited)[len(waited) // 2] < 1
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for messages in source:
            await s.say(*messages)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert after - before < 6_000_000

    watch(script)
