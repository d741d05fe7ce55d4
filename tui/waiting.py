"""The screens before there is anything to watch, and after there can be no more of it."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer, Static

from specprof.profiling.feed import Failed, Loading
from specprof.profiling.signs import visible
from specprof.tui.page import MUTED, lines, plain

_BAR_CELLS = 30
_DOTS = 3


class LoadingScreen(Screen[None]):
    """Models are on their way.

    Args:
        pair: what is being loaded, for people.
    """

    class Cancelled(Message):
        """Nobody wants to wait for it any more."""

    DEFAULT_CSS = """
    LoadingScreen { align: center middle; }
    LoadingScreen > Vertical {
        width: 100%;
        max-width: 64;
        height: auto;
        border: round $primary;
        padding: 1 2;
    }
    LoadingScreen Static { width: 1fr; height: auto; }
    """
    BINDINGS = [  # noqa: RUF012  # Textual's own type
        Binding("escape,c", "cancel", "cancel"),
        Binding("q", "app.quit", "quit"),
    ]

    def __init__(self, pair: str) -> None:
        super().__init__()
        self._pair = pair
        self._shown = self._progress(None, 0.0)

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(plain(visible(self._pair), "bold"))
            yield Static(self._shown, id="progress")
        yield Footer(show_command_palette=False)

    def show(self, loading: Loading | None, elapsed: float) -> None:
        """How far it is; to be called now and then.

        Args:
            loading: None: nothing was heard yet.
            elapsed: seconds since it was asked for.
        """
        progress = self._progress(loading, elapsed)
        if not progress.is_same(self._shown):
            self._shown = progress
            self.query_one("#progress", Static).update(progress)

    def _progress(self, loading: Loading | None, elapsed: float) -> Content:
        minutes, seconds = divmod(int(elapsed), 60)
        what = "starting the engine" if loading is None else visible(loading.what)
        if loading is None or loading.total <= 0:
            # A glimpse that it is alive, once a second.
            bar = plain("." * (seconds % _DOTS + 1))
        else:
            done = min(max(loading.done, 0), loading.total)
            filled = done * _BAR_CELLS // loading.total
            bar = Content.assemble(
                ("\N{FULL BLOCK}" * filled, "$text-primary"),
                ("\N{LIGHT SHADE}" * (_BAR_CELLS - filled), MUTED),
                f" {done} of {loading.total}",
            )
        return lines(what, bar, plain(f"{minutes}:{seconds:02} since it was started", MUTED))

    def action_cancel(self) -> None:
        self.post_message(self.Cancelled())


class FailureScreen(Screen[None]):
    """Something went wrong: what, what to do about it, and the last that the engine said."""

    class Back(Message):
        """To where a run is chosen."""

    DEFAULT_CSS = """
    FailureScreen { align: center middle; }
    FailureScreen > VerticalScroll {
        width: 100%;
        max-width: 112;
        height: auto;
        max-height: 100%;
        border: round $error;
        border-title-color: $text-error;
        border-subtitle-color: $text-muted;
        padding: 0 0 0 2;
        scrollbar-gutter: stable;
        scrollbar-size: 0 1;
    }
    FailureScreen Static { width: 1fr; height: auto; padding-right: 1; }
    FailureScreen #log { margin-top: 1; }
    """
    BINDINGS = [  # noqa: RUF012  # Textual's own type
        Binding("escape,enter", "back", "choose again"),
        Binding("y", "copy", "copy"),
        Binding("q", "app.quit", "quit"),
    ]

    def __init__(self, failure: Failed) -> None:
        super().__init__()
        self._failure = failure

    def compose(self) -> ComposeResult:
        failure = self._failure
        with VerticalScroll() as box:
            box.border_title = "It did not work"
            yield Static(plain(_readable(failure.message), "bold"), id="what")
            yield Static(Content.assemble(("what to do: ", MUTED), _readable(failure.hint)), id="hint")
            if failure.log_lines:
                log = (plain(_readable(line)) for line in failure.log_lines)
                yield Static(lines(plain("the last of what was said:", MUTED), *log), id="log")
        yield Footer(show_command_palette=False)

    def action_back(self) -> None:
        self.post_message(self.Back())

    def action_copy(self) -> None:
        failure = self._failure
        self.app.copy_to_clipboard(
            "\n".join((f"error: {failure.message}", f"hint: {failure.hint}", *failure.log_lines))
        )
        self.notify("copied")


def _readable(text: str) -> str:
    return visible(text).expandtabs(4)
