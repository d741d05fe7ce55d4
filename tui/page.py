"""What pages of text are made of: headings, columns, tokens in quotes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from textual.content import Content

from specprof.profiling.numbers import DASH
from specprof.profiling.signs import EMPTY, NEWLINE, TAB, probability, visible
from specprof.tui.rounds import TokenVerdict

MUTED = "$foreground 75%"
VERDICT_STYLES: dict[TokenVerdict, str] = {
    "accepted": "$text-success",
    "rejected": "$text-error",
    "not judged": MUTED,
}
VERDICT_SIGNS: dict[TokenVerdict, str] = {
    "accepted": "\N{CHECK MARK}",
    "rejected": "\N{BALLOT X}",
    "not judged": EMPTY,
}

_GAP = 2
_MOST_CELLS = 18
"""Of a token in a column."""
_NARROWEST = 12
"""A column that wraps, whatever room there is."""


def page(blocks: Iterable[Content | None]) -> Content:
    """Blocks below one another with an empty line between them; None takes no room."""
    return Content("\n\n").join([block for block in blocks if block is not None])


def lines(*parts: Content | str | None) -> Content:
    """Parts below one another; None takes no room."""
    return Content("\n").join([plain(part) if isinstance(part, str) else part for part in parts if part is not None])


def plain(text: str, style: str = "") -> Content:
    """A text as it is: never markup."""
    return Content.styled(text, style) if style else Content(text)


def heading(text: str) -> Content:
    return plain(text, "bold $text-primary")


def columns(
    heads: Sequence[str],
    rows: Sequence[Sequence[Content | str]],
    *,
    right: Collection[int] = (),
    width: int | None = None,
) -> Content:
    """A table.

    Args:
        heads: of the columns; no such line if all are empty.
        right: numbers of the columns that end on the same cell, as numbers do.
        width: in cells; what the last column has too much for it goes on below itself.
    """
    cells = [[plain(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    if any(heads):
        cells.insert(0, [plain(head, MUTED) for head in heads])
    widths = [max(cell.cell_length for cell in column) for column in zip(*cells, strict=True)]
    before = sum(widths[:-1]) + _GAP * (len(widths) - 1)
    room = None if width is None else max(width - before, _NARROWEST)
    return lines(*(_row(row, widths, right, before, room) for row in cells))


def _row(
    cells: Sequence[Content], widths: Sequence[int], right: Collection[int], before: int, room: int | None
) -> Content:
    parts = [
        cell.pad_left(width - cell.cell_length) if number in right else cell.pad_right(width - cell.cell_length)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    last = parts[-1] if len(cells) - 1 in right else cells[-1]  # white space at the end could wrap
    below = [last] if room is None or last.cell_length <= room else last.wrap(room)
    first = Content(" " * _GAP).join([*parts[:-1], below[0]])
    return lines(first, *(line.pad_left(before) for line in below[1:]))


def width_of(block: Content) -> int:
    """Cells that the longest line takes."""
    return max((line.cell_length for line in block.split("\n")), default=0)


def token(text: str, style: str = "", *, most: int = _MOST_CELLS) -> Content:
    """A token's text in quotes, everything in it visible.

    Args:
        most: cells.
    """
    shown = visible(text).replace("\n", NEWLINE).replace("\t", TAB) or EMPTY
    content = Content(shown)
    if content.cell_length > most - 2:
        content = content.truncate(most - 2, ellipsis=True)
    return plain(f'"{content.plain}"', style)


def prob(value: float | None) -> str:
    return DASH if value is None else probability(value)
