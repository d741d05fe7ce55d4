"""Pages over the main screen: a round in full, why it is as fast as it is, help."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from specprof.tui.explain_page import explain_page
from specprof.tui.help_page import help_page
from specprof.tui.round_page import round_page
from specprof.tui.rounds import RoundView
from specprof.tui.run_facts import RunFacts
from specprof.tui.state import TuiState


class _Text(Static):
    """Built anew for each width, drawn anew only if that makes a difference."""

    def __init__(self, build: Callable[[int], Content]) -> None:
        super().__init__()
        self._build = build
        self._shown: Content | None = None

    def on_resize(self) -> None:
        self.show()

    def show(self) -> None:
        content = self._build(self.size.width)
        if self._shown is None or not self._shown.is_same(content):
            self._shown = content
            self.update(content)


class _Page(ModalScreen[None]):
    """A text to scroll through; Escape or a click beside it closes it."""

    DEFAULT_CSS = """
    _Page { align: center middle; }
    _Page > VerticalScroll {
        width: 100%;
        max-width: 112;
        height: auto;
        max-height: 100%;
        border: round $primary;
        border-title-color: $text;
        border-subtitle-color: $text-muted;
        background: $surface;
        padding-left: 2;
        scrollbar-gutter: stable;
        scrollbar-size-vertical: 1;
    }
    _Page _Text { width: 1fr; min-height: 1; padding-right: 1; }
    """
    BINDINGS = [Binding("escape,q", "dismiss", "close")]  # noqa: RUF012  # Textual's own type

    def __init__(self, title: str, keys: str, build: Callable[[int], Content]) -> None:
        super().__init__()
        self._title, self._keys, self._build = title, keys, build

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title, box.border_subtitle = self._title, f"{self._keys}, \N{UP DOWN ARROW} scroll"
            yield _Text(self._build)

    def on_click(self, event: events.Click) -> None:
        under, _ = self.get_widget_at(event.screen_x, event.screen_y)
        if under is self:
            self.dismiss()


class RoundDetails(_Page):
    """Everything of a round.

    Args:
        run: whose round it is; None: not known.
    """

    BINDINGS = [  # noqa: RUF012
        Binding("d", "dismiss", "close"),
        Binding("y", "app.copy_round", "copy as JSON"),
    ]

    def __init__(self, shown: RoundView, run: RunFacts | None) -> None:
        title = f"Round {shown.round.index + 1}"
        super().__init__(title, "esc close, y copy as JSON", partial(round_page, shown, run))


class Explain(_Page):
    """Why it is fast or slow; what becomes known while it is read is told."""

    BINDINGS = [Binding("e", "dismiss", "close")]  # noqa: RUF012

    def __init__(self, state: TuiState) -> None:
        super().__init__("Why it is as fast as it is", "esc close", partial(explain_page, state))

    def on_mount(self) -> None:
        self.set_interval(1.0, self.query_one(_Text).show)


class Help(_Page):
    """What keys, signs and panels are."""

    BINDINGS = [Binding("question_mark", "dismiss", "close")]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__("Help", "esc close", help_page)
