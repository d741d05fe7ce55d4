"""What a report says, before it is HTML or Markdown: sections of sentences, tables, figures and texts.

Every number of a report is put into words once, here; both forms only lay it out. All text is data, much of it
from outside: whoever renders it escapes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from specprof.profiling.pieces import Piece

Mark = Literal["", "best", "faster", "slower", "doubtful", "failed"]
"""What a cell means beside its text; never the only bearer of that meaning."""


@dataclass(frozen=True, slots=True)
class Cell:
    text: str
    mark: Mark = ""


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    align: Literal["left", "right"] = "right"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows are as long as there are columns; the first column names the row."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Paragraph:
    text: str
    tone: Literal["", "strong", "warning", "quiet"] = ""


@dataclass(frozen=True, slots=True)
class Bullets:
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture and the numbers it is drawn from."""

    name: str
    """Unique in a report: an id in HTML, a file name beside Markdown. Letters, digits and hyphens."""
    title: str
    caption: str
    """What to see in it."""
    svg: str
    """A whole ``<svg>`` element without a prolog, in the light colours of :mod:`specprof.reports.palette`; text is
    text. Ids in it begin with ``name``."""
    table: Table


@dataclass(frozen=True, slots=True)
class TokenStream:
    """A generated text, round by round. A round's rejected pieces stand before the one that replaced the first of
    them."""

    title: str
    rounds: tuple[tuple[Piece, ...], ...]
    omitted: int = 0
    """Rounds left out at the end."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to type into a shell."""

    text: str


@dataclass(frozen=True, slots=True)
class Definitions:
    """Words, what they mean, and the formula where there is one (else empty)."""

    terms: tuple[tuple[str, str, str], ...]


Block = Paragraph | Bullets | Table | Figure | TokenStream | Command | Definitions


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    """Unique in a report: the anchor, the same in HTML and Markdown. Letters, digits and hyphens."""
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Report:
    title: str
    subtitle: str
    verdict: str
    """One sentence: what the whole report comes to."""
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]
    summary: dict[str, Any] = field(default_factory=dict)
    """The numbers as plain JSON types, for programs."""
