"""The app: which screen is shown, what comes from the engine, and what keys ask of it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from textual import work
from textual.app import App, SystemCommand
from textual.binding import Binding
from textual.screen import Screen

from specprof.errors import SpecprofError
from specprof.files import write_whole
from specprof.profiling import events
from specprof.profiling.feed import AUTO_K, FASTEST, LONGEST_DRAFT, SLOWEST, Control, Failed, Feed, Kept, Refused
from specprof.profiling.signs import visible
from specprof.tui.choices import Choice, Offer
from specprof.tui.contrast import LIGHT
from specprof.tui.details import Explain, Help, RoundDetails
from specprof.tui.start import StartScreen
from specprof.tui.state import TuiState
from specprof.tui.waiting import FailureScreen, LoadingScreen
from specprof.tui.watch import WatchScreen

HOTTEST = 2.0
THEMES = ("textual-dark", "textual-light", "ansi-dark", "ansi-light")

_ANSWERED_WITHIN = (0.03, 0.06)
"""Seconds after a key when an engine has usually answered: too soon for a reader to notice, not for the next frame."""

_TRACEBACK_LINES = 20

INTERRUPTED = 130
ENDED_BY = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
"""Without these the terminal would be left as it is; a SIGHUP need not come from a terminal that is gone."""


class SpecprofApp(App[None]):
    """Watch speculative decoding happen.

    Args:
        open_feed: what a choice leads to; called in a thread of its own.
        offer: what there is to choose from.
        choice: what is chosen, or proposed.
        start: with the choice, at once; False asks first.
        save_report: writes a report on the run kept in a file, and says where; called in a thread of its own.
        remember: told of each choice that was started.
        directory: for screenshots.
        fps: times a second that the screen is drawn.
    """

    TITLE = "specprof"
    CSS_PATH = "tui.tcss"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS = [  # noqa: RUF012  # Textual's own type
        Binding("ctrl+c", "interrupt", "quit", show=False, priority=True, system=True),
        Binding("ctrl+q", "quit", "quit", show=False, priority=True, system=True),
    ]

    def __init__(
        self,
        open_feed: Callable[[Choice], Feed],
        offer: Offer,
        choice: Choice,
        *,
        start: bool,
        save_report: Callable[[Path], Sequence[Path]] | None = None,
        remember: Callable[[Choice], None] = lambda _: None,
        directory: Path = Path("."),
        fps: float = 10.0,
        theme: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.register_theme(LIGHT)
        self.failure: Failed | None = None
        """What went wrong, if that is the last thing there is to say."""
        self.kept: list[str] = []
        """Files of all runs."""
        self.state = TuiState()
        self.control = Control()
        self._open_feed, self._offer, self._choice = open_feed, offer, choice
        self._start, self._save_report, self._remember = start, save_report, remember
        self._directory, self._fps, self._clock = directory, fps, clock
        self._wanted_theme = theme
        self._feed: Feed | None = None
        self._attempt = 0
        self._began = 0.0
        self._watch: WatchScreen | None = None
        self._loading: LoadingScreen | None = None
        self._saving = False

    @property
    def live(self) -> bool:
        return self._feed is None or self._feed.live

    # From start to end

    def on_mount(self) -> None:
        if self._wanted_theme is not None:
            self.theme = self._wanted_theme
        for number, code in ENDED_BY.items():
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # as nohup has it
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                asyncio.get_running_loop().add_signal_handler(number, self.exit, None, code)
        _resume_only_what_was_suspended()
        self.set_interval(1 / self._fps, self.tick)
        if self._start:
            self.begin(self._choice)
        else:
            self.ask()

    def ask(self) -> None:
        """Show the start screen."""
        self._show_alone(StartScreen(self._offer, self._choice), self._chosen)

    def _chosen(self, choice: Choice | None) -> None:
        if choice is None:
            self.exit()
        else:
            self.begin(choice)

    def begin(self, choice: Choice) -> None:
        """Load what was chosen."""
        self._choice = choice
        self._attempt += 1
        self._began = self._clock()
        self.failure = None
        self.state = TuiState()
        self.control = Control(k=choice.k, temperature=choice.temperature, pace=choice.pace)
        self._watch = None
        self._loading = LoadingScreen(choice.pair or choice.target or "the models")
        self._show_alone(self._loading)
        self._open(choice, self._attempt)

    @work(thread=True, group="open")
    def _open(self, choice: Choice, attempt: int) -> None:
        # Looking a model up may take seconds of network.
        try:
            feed = self._open_feed(choice)
        except SpecprofError as error:
            self.call_from_thread(self._refused, attempt, Failed(error.message, error.hint, error.exit_code))
        except Exception as error:  # of any library on the way: what was shown stays, and says so
            lines = tuple(traceback.format_exc().splitlines()[-_TRACEBACK_LINES:])
            what = f"this is a bug in specprof: {type(error).__name__}: {error}"
            self.call_from_thread(self._refused, attempt, Failed(what, "please report it with these lines", 1, lines))
        else:
            self.call_from_thread(self._opened, attempt, feed)

    def _refused(self, attempt: int, failure: Failed) -> None:
        if attempt == self._attempt:
            self._fail(failure)

    def _opened(self, attempt: int, feed: Feed) -> None:
        if attempt != self._attempt:  # cancelled in the meantime
            feed.close()
            return
        self._feed = feed
        feed.send(self.control)

    def tick(self) -> None:
        """Take what has come, and draw."""
        if self._feed is not None:
            self._take(self._feed)
            if self.state.failure is not None:
                self._fail(self.state.failure)
            elif self.state.run is not None:
                self._show_watch()
        if self._loading is not None and self._loading.is_mounted:
            self._loading.show(self.state.loading, self._clock() - self._began)

    def _take(self, feed: Feed) -> None:
        for message in feed.read():
            self.state.apply(message)
            if isinstance(message, Kept) and message.path is not None and message.path not in self.kept:
                self.kept.append(message.path)
            elif isinstance(message, Refused):
                self.control = dataclasses.replace(self.control, k=message.k, temperature=message.temperature)
                self.notify(f"{message.message}; {message.hint}", severity="warning", timeout=10)

    def _show_watch(self) -> None:
        if self._watch is None:
            self._remember(self._choice)  # it works
            self._loading = None
            self._watch = WatchScreen(self)
            self._show_alone(self._watch)
        elif self._watch.is_mounted:
            self._watch.show()

    def _fail(self, failure: Failed) -> None:
        self.failure = failure
        self._let_go()
        self._show_alone(FailureScreen(failure))

    def _let_go(self) -> None:
        """Of the engine and of what is on its way."""
        self._attempt += 1
        self._watch = self._loading = None
        feed, self._feed = self._feed, None
        if feed is not None:
            self._take(feed)
            self._close(feed)

    @work(thread=True, group="close")
    def _close(self, feed: Feed) -> None:
        feed.close()  # waits a moment for the engine to end by itself

    def end(self) -> None:
        """End the engine; to be called when the terminal has been restored."""
        if self._feed is not None:
            self._take(self._feed)
            self._feed.close()

    def _show_alone(self, screen: Screen[Any], callback: Callable[[Any], None] | None = None) -> None:
        while len(self.screen_stack) > 1:
            self.pop_screen()
        self.push_screen(screen, callback)

    def on_loading_screen_cancelled(self) -> None:
        self._let_go()
        self.ask()

    def on_failure_screen_back(self) -> None:
        self.action_menu()

    # What keys ask for

    def steer(self, **changes: Any) -> None:
        """Tell the engine what is wanted from now on."""
        self.control = dataclasses.replace(self.control, **changes)
        if self._feed is not None:
            self._feed.send(self.control)
        if self._watch is not None:
            self._watch.show()
        for soon in _ANSWERED_WITHIN:
            self.set_timer(soon, self.tick)

    def pending(self) -> str:
        run, control = self.state.run, self.control
        if run is None or not self.live:
            return ""
        waiting = []
        if run.k != (k := "auto" if control.k == AUTO_K else control.k):
            waiting.append(f"counts of K {k}")  # drafts have that length from the next round on
        if abs(run.temperature - control.temperature) > 1e-9:
            waiting.append(f"temperature {control.temperature:g}")
        if control.race and not self.state.racing:
            waiting.append("race")
        return f"{', '.join(waiting)} from the next prompt on" if waiting else ""

    def action_pause(self) -> None:
        self.state.stepping = False
        if self.state.status == "finished":
            self.steer(restarts=self.control.restarts + 1, paused=False)
            return
        self.steer(paused=not self.control.paused)

    def action_step(self) -> None:
        if self.state.status == "finished":
            self.notify("all is decoded: space decodes it once more")
            return
        self.state.stepping = True
        if not self.control.paused or not self.state.reveal():
            self.steer(paused=True, steps=self.control.steps + 1)
        elif self._watch is not None:
            self._watch.show()

    def action_skip(self) -> None:
        self.steer(skips=self.control.skips + 1)

    def action_change_k(self, step: int) -> None:
        if not self._can_change("K"):
            return
        k = 4 if self.control.k == AUTO_K else self.control.k + step
        self.steer(k=min(max(k, 1), max(LONGEST_DRAFT, self._choice.k)))

    def action_change_temperature(self, step: float) -> None:
        if self._can_change("the temperature"):
            self.steer(temperature=round(min(max(self.control.temperature + step, 0.0), HOTTEST), 2))

    def action_change_pace(self, factor: float) -> None:
        if self.live:
            self.notify("only a replay has a pace; live, the engine goes as fast as it can")
        else:
            self.steer(pace=min(max(self.control.pace * factor, SLOWEST), FASTEST))

    def action_race(self) -> None:
        if self._can_change("who decodes when"):
            self.steer(race=not self.control.race)
            self.notify("race from the next prompt on" if self.control.race else "the race ends with this prompt")

    def _can_change(self, what: str) -> bool:
        if not self.live:
            self.notify(f"a replay can't change {what}: it shows what was measured", severity="warning")
        return self.live

    def action_details(self) -> None:
        shown = self.state.shown
        if shown is None:
            self.notify("there is no round to show yet")
        else:
            self.push_screen(RoundDetails(shown.at("decision"), self.state.run))

    def action_explain(self) -> None:
        self.push_screen(Explain(self.state))

    def action_help(self) -> None:
        self.push_screen(Help())

    def action_menu(self) -> None:
        if self._offer.replay:
            self.notify("a replay is all there is here: q leaves it")
            return
        self.failure = None
        self._let_go()
        self.ask()

    def action_copy_round(self) -> None:
        shown = self.state.shown
        if shown is None:
            self.notify("there is no round to copy yet")
            return
        record = json.loads(events.to_json_line(shown.round))
        self.copy_to_clipboard(json.dumps(record | {"texts": [position.text for position in shown.positions]}))
        self.notify(f"round {shown.round.index + 1} copied as JSON")

    def action_take_screenshot(self) -> None:
        name = time.strftime("specprof-%Y%m%d-%H%M%S.svg")
        path = self._directory / name
        picture = self.export_screenshot()
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda draft: draft.write_text(picture, encoding="utf-8"))
        except OSError as error:
            self.notify(f"the screenshot can't be written: {error.strerror or error}", severity="error")
        else:
            self.notify(f"screenshot: {path}")

    def action_next_theme(self) -> None:
        here = THEMES.index(self.theme) if self.theme in THEMES else -1
        self.theme = THEMES[(here + 1) % len(THEMES)]
        self.notify(f"theme {self.theme}", timeout=2)

    def action_save_report(self) -> None:
        if self._save_report is None or not self.state.kept:
            self.notify("nothing is kept of this run, so there is nothing to report on", severity="warning")
        elif self.state.num_ended == self.state.num_interactive:
            self.notify("no text is finished yet that nobody interfered with", severity="warning")
        elif not self._saving:
            self._saving = True
            self.notify("writing the report; the engine waits, and the text it is at does not count")
            # Drawing figures takes all of a core: what is measured meanwhile would not be worth much.
            was_paused = self.control.paused
            self.steer(paused=True)
            self._write_report(Path(self.state.kept[-1]), None if was_paused else self.control)

    @work(thread=True, group="report")
    def _write_report(self, path: Path, paused_by: Control | None) -> None:
        assert self._save_report is not None
        try:
            said, severity = "report: " + " and ".join(map(str, self._save_report(path))), "information"
        except SpecprofError as error:
            said, severity = f"no report: {error.message}; {error.hint}", "error"
        except OSError as error:
            said, severity = f"no report: {error.strerror or error}", "error"
        except Exception as error:  # of what draws the figures: what is watched goes on
            said, severity = f"no report, this is a bug in specprof: {type(error).__name__}: {error}", "error"
        self.call_from_thread(self._report_written, said, severity, paused_by)

    def _report_written(self, said: str, severity: Any, paused_by: Control | None) -> None:
        """Say so; and go on, unless something else has been asked for in the meantime."""
        self._saving = False
        self.notify(said, severity=severity, timeout=15)
        if self.control == paused_by:
            self.steer(paused=False)

    def notify(self, message: str, **options: Any) -> None:
        """Messages name files and quote what others said: none of it is markup, all of it can be seen."""
        super().notify(visible(message), **options | {"markup": False})

    def action_interrupt(self) -> None:
        self.exit(return_code=INTERRUPTED)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Everything the keys do, by name."""
        if isinstance(screen, WatchScreen):
            for binding in screen.BINDINGS:
                assert isinstance(binding, Binding)
                key = self.get_key_display(binding)
                yield SystemCommand(binding.description, f"key {key}", self._doing(screen, binding.action))
        yield SystemCommand("theme", "light, dark, or the terminal's own colours", self.action_next_theme)
        yield SystemCommand("quit", "end the engine and leave", self.action_quit)

    def _doing(self, screen: Screen[Any], action: str) -> Callable[[], Any]:
        async def do() -> None:
            await screen.run_action(action)

        return do


def _resume_only_what_was_suspended() -> None:
    """Textual takes the terminal over anew at every SIGCONT. Where it had not given it back before, it would take the
    settings to be restored from a terminal that it has already changed, and read keys twice."""
    suspend, resume = signal.getsignal(signal.SIGTSTP), signal.getsignal(signal.SIGCONT)
    if not callable(suspend) or not callable(resume):
        return  # a driver without a terminal
    suspended = False

    def on_suspend(number: int, frame: FrameType | None) -> None:
        nonlocal suspended
        suspended = True
        suspend(number, frame)

    def on_resume(number: int, frame: FrameType | None) -> None:
        nonlocal suspended
        if suspended:
            suspended = False
            resume(number, frame)

    signal.signal(signal.SIGTSTP, on_suspend)
    signal.signal(signal.SIGCONT, on_resume)
