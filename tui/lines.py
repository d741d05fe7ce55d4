"""A transcript broken into lines of cells: no colour, no widget."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from rich.cells import cell_len, get_character_cell_size

from specprof.profiling.pieces import Piece
from specprof.profiling.signs import EMPTY, NEWLINE, TAB, spelled, visible
from specprof.tui.transcript import Entry, Heading, Tokens

Look = Literal["text", "accepted", "corrected", "bonus", "rejected", "unjudged", "sign", "heading", "prompt"]
"""What a run of characters is; the widget knows how that looks."""

PROMPT_LINES = 3
"""Of a prompt, the last: where the generation goes on from."""
_TAB_CELLS = 4
_WORDS = re.compile(" +|[^ ]+")
_FIRST_WORD = re.compile("( *)([^ \n\t]*)")
_NARROWEST = 4
"""Cells to break lines for, at least; whoever has fewer sees the left of them."""


@dataclass(frozen=True, slots=True)
class Signs:
    """What says without colour what became of a token; none is more than a cell wide."""

    rejected: tuple[str, str] = ("\u2039", "\u203a")
    """Before and behind the drafted tokens that the text did not go on with: single angle quotation marks."""
    unjudged: str = "\u00a6"
    """Before the first of them that nobody looked at any more: broken bar."""
    corrected: str = "\u00bb"
    bonus: str = "\u207a"
    """Superscript plus."""
    newline: str = NEWLINE
    tab: str = TAB
    empty: str = EMPTY
    base: str = "\u25cc"
    """Dotted circle: for a mark to stand on where there is no character before it."""
    rule: str = "\u2500"
    prompt: str = "\u2502 "
    gap: str = "\u22ef"
    more: str = "\u2026"
    selected: str = "\u258c"


FANCY = Signs()


@dataclass(slots=True)
class Line:
    """One line of the screen, as runs of one look and of one entry."""

    runs: list[tuple[str, Look, int]] = field(default_factory=list)
    """Text without control characters, look, number of the entry."""
    cells: int = 0

    def append(self, text: str, look: Look, number: int, cells: int) -> None:
        if self.runs and self.runs[-1][1:] == (look, number):
            text = self.runs.pop()[0] + text
        self.runs.append((text, look, number))
        self.cells += cells

    def entry_at(self, cell: int) -> int | None:
        """Number of the entry that has this cell."""
        for text, _, number in self.runs:
            cell -= cell_len(text)
            if cell < 0:
                return number
        return None


class Lines:
    """Add entries in their order; forget the oldest. Lines are counted from the first there ever was.

    Args:
        width: in cells.
        folded: of drafted tokens that were thrown away there is only the number.
    """

    def __init__(self, width: int, signs: Signs = FANCY, *, folded: bool = False) -> None:
        self.signs = signs
        self.folded = folded
        self.forgotten = 0
        """Lines that are not kept any more: number of the first that is."""
        self._kept: deque[Line] = deque()
        self._begins: deque[int] = deque()
        """Of each kept entry, the line with its first cell."""
        self._oldest = 0
        """Number of the first kept entry."""
        # A sign at the end of a line has the last cell for itself.
        self._room = max(width, _NARROWEST) - 1
        self._broken = False
        self._began: int | None = None
        self._number = 0

    @property
    def end(self) -> int:
        """Number of the next line."""
        return self.forgotten + len(self._kept)

    def at(self, line: int) -> Line | None:
        return self._kept[line - self.forgotten] if self.forgotten <= line < self.end else None

    def lines_of(self, number: int) -> range:
        """Lines on which an entry has a cell; empty if it is not kept."""
        index = number - self._oldest
        if not 0 <= index < len(self._begins):
            return range(0)
        # The next one may begin on the line on which this one ends.
        last = self._begins[index + 1] if index + 1 < len(self._begins) else self.end - 1
        return range(max(self._begins[index], self.forgotten), last + 1)

    def add(self, number: int, entry: Entry) -> None:
        """Append an entry."""
        if not self._begins:
            self._oldest = number
        self._number, self._began = number, None
        match entry:
            case Tokens():
                self._tokens(entry.pieces)
            case Heading():
                self._heading(entry)
            case _:
                self._break()
                self._put(f"{self.signs.gap} some rounds were not shown {self.signs.gap}", "heading")
                self._break()
        self._begins.append(max(self.end - 1, self.forgotten) if self._began is None else self._began)

    def forget(self, before: int) -> int:
        """Forget the entries before this number.

        Returns:
            How many lines there are fewer.
        """
        while self._begins and self._oldest < before:
            self._begins.popleft()
            self._oldest += 1
        first = self._begins[0] if self._begins else self.end
        count = max(first - self.forgotten, 0)
        for _ in range(count):
            self._kept.popleft()
        self.forgotten += count
        return count

    def _tokens(self, pieces: tuple[Piece, ...]) -> None:
        rejected = 0
        for piece in pieces:
            if piece.kind == "rejected":
                if not self.folded:
                    self._rejected(piece.text, rejected)
                rejected += 1
                continue
            if rejected:
                self._end_of_rejected(rejected)
                rejected = 0
            match piece.kind:
                case "corrected":
                    self._sign(self.signs.corrected, piece.text)
                    self._text(piece.text, "corrected")
                case "bonus":
                    self._sign(self.signs.bonus, piece.text)
                    self._text(piece.text, "bonus")
                case "accepted":
                    self._text(piece.text, "accepted")
                case _:
                    self._text(piece.text, "text")
        if rejected:
            self._end_of_rejected(rejected)

    def _rejected(self, text: str, before: int) -> None:
        """
        Args:
            before: how many tokens of this draft were thrown away before it.
        """
        shown = text.replace("\n", self.signs.newline).replace("\t", self.signs.tab) or self.signs.empty
        if before < 2:
            self._sign(self.signs.unjudged if before else self.signs.rejected[0], shown)
        self._put(shown, "unjudged" if before else "rejected")

    def _end_of_rejected(self, number: int) -> None:
        begin, end = self.signs.rejected
        if self.folded:
            count = f"{begin}+{number}{end}"
            self._append(self._here(len(count)), count, "sign", len(count))
        else:
            self._hang(end)

    def _heading(self, heading: Heading) -> None:
        self._break()
        if self._kept:
            self._line()
            self._break()
        rule = self.signs.rule
        names = [f"{heading.number}", heading.prompt_id, f"({heading.domain})" if heading.domain else ""]
        title = _clipped(visible("  ".join(filter(None, names)).replace("\n", " ").replace("\t", " ")), self._room - 4)
        self._put(f"{rule * 2} {title} ", "heading")
        self._put(rule * (self._room - self._here().cells), "heading")
        self._break()
        for text, ended in self._tail(heading.prompt):
            self._put(self.signs.prompt, "sign")
            self._put(text, "prompt")
            if ended:
                self._hang(self.signs.newline)
            self._break()

    def _tail(self, prompt: str) -> list[tuple[str, bool]]:
        """The last lines of a prompt that are not blank, and whether a newline ends them."""
        room = max(self._room - len(self.signs.prompt), 2)
        # What is longer than this many characters does not fit, unless many of them take no cell at all.
        seen = prompt[-PROMPT_LINES * room - 1 :]
        paragraphs = seen.split("\n")
        lines: list[tuple[str, bool]] = []
        for index, paragraph in enumerate(paragraphs):
            text, cells = "", 0
            for glyph, size in _glyphs(paragraph.replace("\t", self.signs.tab)):
                if cells + size > room:
                    # Between words, if that leaves more than half of the line.
                    at = text.rfind(" ", len(text) // 2) + 1 or len(text)
                    lines.append((text[:at], False))
                    text = text[at:]
                    cells = cell_len(text)
                text, cells = text + glyph, cells + size
            lines.append((text, index < len(paragraphs) - 1))
        shown = [(text, ended) for text, ended in lines if text.strip()]
        if not shown or (len(lines) <= PROMPT_LINES and len(seen) == len(prompt)):
            return shown
        (first, ended), *others = shown[-PROMPT_LINES:]
        return [(self.signs.more + _clipped_left(first, room - len(self.signs.more)), ended), *others]

    def _text(self, text: str, look: Look) -> None:
        """Of the generated text: newlines end lines, tabs go to the next stop."""
        if text.isascii() and text.isprintable():
            self._put(text, look)
            return
        for index, paragraph in enumerate(text.split("\n")):
            if index:
                self._hang(self.signs.newline)
                self._break()
            for column, part in enumerate(paragraph.split("\t")):
                if column:
                    self._sign(self.signs.tab)
                    self._put(" " * (-self._here().cells % _TAB_CELLS), look)
                self._put(part, look)

    def _put(self, text: str, look: Look) -> None:
        if not text.isascii() or not text.isprintable():
            self._put_glyphs(text, look)
            return
        for word in _WORDS.findall(text):
            if not word.isspace():
                self._keep_whole(len(word))
            while word:
                line = self._here(1)
                part, word = word[: self._room - line.cells], word[self._room - line.cells :]
                self._append(line, part, look, len(part))

    def _put_glyphs(self, text: str, look: Look) -> None:
        for word in _WORDS.findall(text):
            glyphs = list(_glyphs(word))
            if not word.isspace() and glyphs and glyphs[0][1]:
                self._keep_whole(sum(cells for _, cells in glyphs))
            for glyph, cells in glyphs:
                line = self._here(cells)
                if not cells and (not line.runs or line.runs[-1][1] == "sign"):
                    glyph, cells = self.signs.base + glyph, 1
                    line = self._here(cells)
                self._append(line, glyph, look, cells)

    def _keep_whole(self, cells: int, before: int = 0) -> None:
        """A short word that does not fit goes to the next line, if this one is more than half full.

        Args:
            before: cells of what belongs before it.
        """
        if self._broken or not self._kept:
            return
        taken = self._kept[-1].cells
        if taken + before + cells > self._room < 2 * taken and 2 * cells <= self._room:
            self._break()

    def _sign(self, sign: str, text: str = "") -> None:
        """A sign that what follows should stand beside.

        Args:
            text: what follows.
        """
        if (found := _FIRST_WORD.match(text)) and (word := found[2]):
            self._keep_whole(sum(cells for _, cells in _glyphs(word)), len(sign) + len(found[1]))
        self._append(self._here(len(sign) + 1), sign, "sign", len(sign))

    def _hang(self, sign: str) -> None:
        """A sign that should stand beside what it follows: it may take the cell behind the end."""
        line = self._here()
        if line.cells + len(sign) > self._room + 1:
            line = self._line()
        self._append(line, sign, "sign", len(sign))

    def _append(self, line: Line, text: str, look: Look, cells: int) -> None:
        line.append(text, look, self._number, cells)
        if self._began is None:
            self._began = self.end - 1

    def _here(self, cells: int = 0) -> Line:
        """The line that so many cells more go to."""
        if self._broken or not self._kept:
            return self._line()
        line = self._kept[-1]
        return self._line() if line.cells and line.cells + cells > self._room else line

    def _break(self) -> None:
        """What follows begins a line, which takes shape only when something does."""
        self._broken = True

    def _line(self) -> Line:
        self._broken = False
        self._kept.append(Line())
        return self._kept[-1]


def _glyphs(text: str) -> Iterator[tuple[str, int]]:
    """Characters as they can be shown, and their cells: 0 for those that stand on the one before."""
    for character in text:
        # Terminals disagree on whether these change the width of what they follow, and on nothing else about them.
        if "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef":
            continue
        spelling = spelled(character)
        if spelling is None:
            yield character, get_character_cell_size(character)
        else:
            yield from ((letter, 1) for letter in spelling)


def _clipped(text: str, room: int) -> str:
    kept, cells = "", 0
    for glyph, size in _glyphs(text):
        cells += size
        if cells > room:
            break
        kept += glyph
    return kept


def _clipped_left(text: str, room: int) -> str:
    excess = cell_len(text) - room
    while text and excess > 0:
        excess -= cell_len(text[0])
        text = text[1:]
    return text
