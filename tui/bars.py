"""Lines of a panel: words, signs and bars that fit into a width, drawn with characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size

from specprof.profiling.signs import visible
from specprof.tui import lines as stream
from specprof.tui.page import MUTED, VERDICT_SIGNS

Part = tuple[str, str]
"""Words and their style; the style's colours are the theme's."""
Line = list[Part]
_TRACK = "$foreground 25%"


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What is drawn with."""

    full: str
    """A cell of a bar."""
    parts: str
    """Parts of a cell, growing."""
    rest: str
    """A cell of a bar's track."""
    levels: str
    """Of a sparkline."""
    ellipsis: str
    separator: str
    running: str
    paused: str
    finished: str
    replay: str
    failed: str
    loading: str
    accepted: str
    rejected: str
    hidden: str
    """Of a number that is only known in a later stage, and of a token that nobody judged."""
    text: stream.Signs
    """As in the text that is generated."""


UNICODE = Glyphs(
    full="█",
    parts="▏▎▍▌▋▊▉",
    rest="░",
    levels="▁▂▃▄▅▆▇█",
    ellipsis="…",
    separator=" · ",
    running="●",
    paused="‖",
    finished="■",
    replay="►",
    failed="✗",
    loading="…",
    accepted=VERDICT_SIGNS["accepted"],
    rejected=VERDICT_SIGNS["rejected"],
    hidden=VERDICT_SIGNS["not judged"],
    text=stream.FANCY,
)


def bar(share: float, width: int, style: str, glyphs: Glyphs) -> Line:
    """On a track that is as wide as asked and stands for all of it.

    The share, within 0 and 1, is drawn to an eighth of a cell where there are characters for it. Something is never
    drawn as nothing.
    """
    steps = len(glyphs.parts) + 1
    filled = round(min(1.0, max(0.0, share)) * width * steps)
    if share > 0 and not filled and width:
        filled = 1
    whole, part = divmod(filled, steps)
    filled_cells = glyphs.full * whole + (glyphs.parts[part - 1] if part else "")
    return [(filled_cells, style), (glyphs.rest * (width - len(filled_cells)), _TRACK)]


def sparkline(shares: Sequence[float], glyphs: Glyphs) -> str:
    """A cell for each share, within 0 and 1."""
    top = len(glyphs.levels) - 1
    return "".join(glyphs.levels[round(min(1.0, max(0.0, share)) * top)] for share in shares)


def cut(text: str, width: int, glyphs: Glyphs) -> str:
    """No wider than the width, in cells; an ellipsis says that something is left out."""
    if cell_len(text) <= width:
        return text
    room = width - cell_len(glyphs.ellipsis)
    return set_cell_size(text, room).rstrip() + glyphs.ellipsis if room >= 0 else ""


def inline(text: str, glyphs: Glyphs) -> str:
    """On one line, with everything to be seen."""
    return visible(text).replace("\n", glyphs.text.newline).replace("\t", glyphs.text.tab)


def quoted(token: str, glyphs: Glyphs) -> str:
    """A token, so that the spaces at its ends can be seen."""
    return f'"{inline(token, glyphs)}"' if token else glyphs.text.empty


def column(text: str, width: int, glyphs: Glyphs) -> str:
    """:func:`cut`, and filled up."""
    return set_cell_size(cut(text, width, glyphs), width)


def line_width(line: Line) -> int:
    return sum(cell_len(text) for text, _ in line)


def flow(segments: Sequence[Line], width: int, glyphs: Glyphs) -> list[Line]:
    """Segments one after another, in as few lines as hold them; none is broken."""
    lines: list[Line] = []
    for segment in segments:
        if lines and line_width(lines[-1]) + cell_len(glyphs.separator) + line_width(segment) <= width:
            lines[-1] = [*lines[-1], (glyphs.separator, MUTED), *segment]
        else:
            lines.append(list(segment))
    return lines


def wrapped(text: str, width: int, style: str = "") -> list[Line]:
    """A sentence in lines, broken between words."""
    lines: list[str] = []
    for word in text.split():
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [[(line, style)] for line in lines]
