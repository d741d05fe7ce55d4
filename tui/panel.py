"""A frame with lines in it, of which only those are painted that have changed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest

from rich.segment import Segment
from rich.style import Style
from textual.content import Content
from textual.geometry import Region
from textual.strip import Strip
from textual.visual import Visual
from textual.widget import Widget

from specprof.tui.bars import UNICODE, Line
from specprof.tui.contrast import readable

_Draw = Callable[[int, int], list[Line]]
"""Lines for a width and a height, both in cells."""


class Panel(Widget):
    """Lines in a frame, drawn for the size there is; of another drawing, only lines that differ are painted."""

    ALLOW_SELECT = False

    DEFAULT_CSS = """
    Panel {
        width: 1fr;
        height: 8;
        padding: 0 1;
        border: round $foreground 30%;
        border-title-color: $text;
        border-subtitle-color: $text-muted;
    }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes, markup=False)
        self.glyphs = UNICODE
        self._titles = ("", "")
        self._drawn: object = None
        self._draw: _Draw | None = None
        self._lines: list[Line] = []
        self._inks: dict[str, Style] = {}

    def present(self, key: object, draw: _Draw) -> None:
        """Draw, unless what was drawn last had the same key, or looks the same."""
        if self._draw is None or key != self._drawn:
            self._drawn, self._draw = key, draw
            self._paint()

    def on_resize(self) -> None:
        self._paint()

    def _paint(self) -> None:
        width, height = self.content_size
        if self._draw is None or not width or not height:
            return
        before, drawn = self._lines, self._draw(width, height)[:height]
        self._lines = drawn
        changed = [
            Region(0, y, width, 1)
            for y, (old, new) in enumerate(zip_longest(before, drawn))
            if y < height and (old or []) != (new or [])
        ]
        if changed:
            self.refresh(*changed)

    def render_line(self, y: int) -> Strip:
        line = self._lines[y] if y < len(self._lines) else []
        strip = Strip([Segment(text, self._ink(style)) for text, style in line if text])
        return strip.crop_extend(0, self.content_size.width, self._ink(""))

    def _ink(self, style: str) -> Style:
        """As it is on the screen, on what is behind it."""
        ink = self._inks.get(style)
        if ink is None:
            (sample,) = Visual.to_strips(self, Content.styled("-", style), 1, 1, self.visual_style)
            ink = next(iter(sample)).style or Style()
            if "$text" in style:
                ink += Style(color=readable(ink.color, ink.bgcolor, self._ink("").color))
            self._inks[style] = ink
        return ink

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._inks.clear()

    def entitle(self, title: str, subtitle: str = "") -> None:
        """What the frame says; never markup."""
        # Setting a title paints the whole panel again, also if it is the same.
        if (title, subtitle) != self._titles:
            self._titles = (title, subtitle)
            self.border_title = Content(title)
            self.border_subtitle = Content(subtitle)
