"""The text as it grows: every token where it stands, and what became of it."""

from __future__ import annotations

from typing import ClassVar, Literal

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.cache import LRUCache
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from specprof.tui.contrast import readable
from specprof.tui.lines import FANCY, Line, Lines, Look
from specprof.tui.transcript import Transcript

_GUTTER = 2
"""Cells at the left, where the selected round has its mark."""
_STRIPS = 1000
"""Drawn lines to keep: more than a screen has."""


class TokenStream(ScrollView, can_focus=True):
    """One transcript, followed as it grows unless somebody scrolls up.

    Colours say what became of a token, and so do the signs of :class:`~specprof.tui.lines.Signs`.
    """

    ALLOW_SELECT = False

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "stream--text",
        "stream--accepted",
        "stream--corrected",
        "stream--bonus",
        "stream--rejected",
        "stream--unjudged",
        "stream--sign",
        "stream--heading",
        "stream--prompt",
        "stream--selected",
        "stream--mark",
    }

    DEFAULT_CSS = """
    TokenStream {
        overflow-x: hidden;
        overflow-y: scroll;
        scrollbar-size-vertical: 1;
        background: $surface;
        color: $foreground;

        .stream--accepted { color: $text-success; }
        .stream--corrected { color: $text-warning; text-style: bold; }
        .stream--bonus { color: $text-primary; text-style: bold; }
        .stream--rejected { color: $text-error; text-style: strike; }
        .stream--unjudged { color: $text-error 65%; text-style: strike; }
        .stream--sign { color: $foreground 60%; }
        .stream--heading { color: $foreground 70%; }
        .stream--prompt { color: $foreground 70%; text-style: italic; }
        .stream--selected { background: $primary 20%; }
        .stream--mark { color: $primary; text-style: bold; }
    }
    """

    class RoundSelected(Message):
        """A round was clicked."""

        def __init__(self, stream: TokenStream, number: int) -> None:
            super().__init__()
            self.stream = stream
            self.number = number
            """Of its entry in the transcript."""

        @property
        def control(self) -> TokenStream:
            return self.stream

    def __init__(self, transcript: Transcript | None = None, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._signs = FANCY
        self._transcript = Transcript() if transcript is None else transcript
        self._lines = Lines(0, self._signs)
        self._width = 0
        """Cells that a line has; 0 before there is a place on the screen."""
        self._end = 0
        """Number of the next entry to take."""
        self._selected: int | None = None
        self._follows = True
        self._strips: LRUCache[int, Strip] = LRUCache(_STRIPS)
        self._styles: dict[str, Style] = {}

    @property
    def folded(self) -> bool:
        """Whether rejected tokens are told by their number alone."""
        return self._lines.folded

    @folded.setter
    def folded(self, folded: bool) -> None:
        if folded != self._lines.folded:
            self._lines.folded = folded
            self._break_anew()

    @property
    def follows(self) -> bool:
        """Whether the end stays in view."""
        return self._follows

    def show(self, transcript: Transcript, selected: int | None = None) -> None:
        """Bring the screen up to date; to be called whenever something may have happened.

        Args:
            transcript: another one than before is shown from its end.
            selected: number of the entry that is set off.
        """
        if transcript is not self._transcript:
            self._transcript = transcript
            self._selected = selected
            self._rebuild()
            self._go_to_end()
            return
        if selected != self._selected:
            changed = (self._selected, selected)
            self._selected = selected
            for number in changed:
                self._redraw(range(0) if number is None else self._lines.lines_of(number))
        self._pull()

    def bring_into_view(self, number: int) -> None:
        """Scroll to an entry, if it can't be seen; at the end this means to follow again."""
        lines = self._lines.lines_of(number)
        if not lines:
            return
        top, height = self.scroll_offset.y + self._lines.forgotten, self.size.height
        if lines.start < top or lines.stop > top + height:
            # A few lines of what is before it, to read it in its place.
            self._scroll_to_line(lines.start - height // 3)

    def legend(self) -> Text:
        """What colours and signs mean, in one line."""
        signs = self._signs
        return Text.assemble(
            ("accepted", self._style("accepted")),
            "  ",
            (signs.rejected[0], self._style("sign")),
            ("rejected", self._style("rejected")),
            (signs.unjudged, self._style("sign")),
            ("not judged", self._style("unjudged")),
            (signs.rejected[1], self._style("sign")),
            "  ",
            (signs.corrected, self._style("sign")),
            ("corrected", self._style("corrected")),
            "  ",
            (signs.bonus, self._style("sign")),
            ("bonus", self._style("bonus")),
        )

    def render_line(self, y: int) -> Strip:
        number = self._lines.forgotten + self.scroll_offset.y + y
        line = self._lines.at(number)
        if line is None:
            return Strip.blank(self._width, self._style("text"))
        strip = self._strips.get(number)
        if strip is None:
            strip = self._strips[number] = self._strip(line)
        return strip

    def on_resize(self) -> None:
        width = self.scrollable_content_region.width
        if width != self._width:
            self._width = width
            self._break_anew()
        elif self._follows:
            self._go_to_end()

    def _break_anew(self) -> None:
        """Into other lines, with what is being read where it is."""
        follows = self._follows
        reading = self._lines.at(self._lines.forgotten + self.scroll_offset.y)
        number = reading.runs[0][2] if reading is not None and reading.runs else None
        self._rebuild()
        if follows:
            self._go_to_end()
        elif number is not None and (lines := self._lines.lines_of(number)):
            self._scroll_to_line(lines.start)

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None:
            return
        line = self._lines.at(self._lines.forgotten + self.scroll_offset.y + offset.y)
        number = None if line is None else line.entry_at(offset.x - _GUTTER)
        if number is not None and self._transcript.round_at(number) is not None:
            self.post_message(self.RoundSelected(self, number))

    def action_scroll_end(self) -> None:
        """At once: the end moves on while a scrolling screen is on its way to it."""
        self._go_to_end()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self._follows = round(new_value) >= self.max_scroll_y

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._strips.clear()
        self._styles.clear()

    def _pull(self) -> None:
        """Take what is new in the transcript, and let go of what it has forgotten."""
        if not self._width or self._end == self._transcript.end:
            return
        begin = self._transcript.begin
        fewer, last = self._lines.forget(begin), self._lines.end - 1
        self._end = max(self._end, begin)
        for entry in self._transcript.since(self._end):
            self._lines.add(self._end, entry)
            self._end += 1
        if fewer and not self._follows:
            self._scroll_to_line(self._lines.forgotten + self.scroll_offset.y - fewer)
        self._redraw(range(max(last, self._lines.forgotten), self._lines.end))
        if fewer:
            self.refresh()
        self._set_height(self._lines.end - self._lines.forgotten)
        if self._follows:
            self._go_to_end()

    def _rebuild(self) -> None:
        """Break everything into lines anew."""
        self._lines = Lines(self._width - _GUTTER, self._signs, folded=self._lines.folded)
        self._strips.clear()
        self._end = self._transcript.begin
        self._set_height(0)
        self._pull()
        self.refresh()

    def _set_height(self, height: int) -> None:
        """Of what can be scrolled through. Setting ``virtual_size`` itself would lay out the whole screen each time."""
        if height == self.virtual_size.height:
            return
        self.set_reactive(TokenStream.virtual_size, Size(self._width, height))
        self.vertical_scrollbar.window_virtual_size = height
        self.scroll_y = self.validate_scroll_y(self.scroll_y)

    def _go_to_end(self) -> None:
        self.scroll_to(y=self.max_scroll_y, animate=False, force=True)
        self._follows = True

    def _scroll_to_line(self, line: int) -> None:
        self.scroll_to(y=line - self._lines.forgotten, animate=False, force=True)

    def _redraw(self, lines: range) -> None:
        for line in lines:
            self._strips.discard(line)
        if lines:
            self.refresh_lines(lines.start - self._lines.forgotten, len(lines))

    def _strip(self, line: Line) -> Strip:
        rest = self._style("text")
        selected = self.get_component_rich_style("stream--selected").bgcolor
        marked = any(number == self._selected for _, _, number in line.runs)
        segments = [Segment(self._signs.selected, self._style("mark")) if marked else Segment(" ", rest)]
        segments.append(Segment(" " * (_GUTTER - 1), rest))
        for text, look, number in line.runs:
            style = self._style(look)
            segments.append(Segment(text, style + Style(bgcolor=selected) if number == self._selected else style))
        return Strip(segments, _GUTTER + line.cells).crop_extend(0, self._width, rest)

    def _style(self, look: Look | Literal["mark"]) -> Style:
        style = self._styles.get(look)
        if style is None:
            style = self.get_component_rich_style(f"stream--{look}")
            if look not in ("text", "mark"):
                style += Style(color=readable(style.color, style.bgcolor, self._style("text").color))
            self._styles[look] = style
        return style
