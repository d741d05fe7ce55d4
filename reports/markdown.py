"""A report as GitHub-flavoured Markdown that fits into a comment: the same sections, words and numbers as the page."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from urllib.parse import quote

from specprof.profiling.pieces import KIND_WORDS, Kind
from specprof.profiling.signs import EMPTY, NEWLINE, SPACE, TAB, visible
from specprof.reports.document import (
    Block,
    Bullets,
    Cell,
    Command,
    Definitions,
    Figure,
    Paragraph,
    Report,
    Section,
    Table,
    TokenStream,
)
from specprof.reports.signs import CELL_SIGNS, signs_in
from specprof.reports.thinning import fitting, shortened

_ROUNDS = 64
"""Of a token stream: in a comment it shows what happened, it isn't there to be read to its end."""

_JOINER = "&#8288;"
"""A word joiner, which shows nothing: between ``@`` and a name there is no mention. A backslash would not do, since
names, numbers and addresses are looked for after Markdown is read."""

_FOUND_LATER = re.compile(
    r"@|#(?=\d)|:(?=//)|(?<![a-z0-9])(?:www(?=\.)|GH-(?=\d))|:(?=[a-z_+-][\w+-]*:)", re.IGNORECASE
)
"""Mentions, numbers of issues, addresses and ``:emoji:``."""


def render(report: Report, *, figures: str | None = None, max_bytes: int = 60_000) -> str:
    """The report as at most ``max_bytes`` of UTF-8, in which every text is nothing but text.

    ``figures`` is the directory of the pictures, relative to this text, each named ``NAME.svg``; None: no pictures.
    A longer text is shortened, which it says: token streams first, then the tables under figures.

    :raises ResourceError: even the shortest text is longer.
    """
    return fitting(report, lambda left, note: _document(left, note, figures), max_bytes)


def escaped(text: str) -> str:
    """The text on one line, without white space at its ends, as Markdown that shows it and means nothing else."""
    return _not_a_block(_line(text))


def _line(text: str) -> str:
    return _inert(" ".join(visible(text).split()))


def _not_a_block(line: str) -> str:
    """A line that begins no list and no quotation."""
    return re.sub(r"^(\d{0,9})([-+=.)>])", r"\1\\\2", line)


def _inert(text: str) -> str:
    """Text as part of a line that begins with something else."""
    text = re.sub(r"&(?=[#\w])", "&amp;", text)
    text = re.sub(r"[\\`*\[\]~|#$<]|!(?=\[)", r"\\\g<0>", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word it means nothing
    return re.sub(_FOUND_LATER, rf"\g<0>{_JOINER}", text)


def _document(report: Report, note: str, figures: str | None) -> str:
    parts = [f"# {escaped(report.title)}", escaped(report.subtitle), _strong(report.verdict)]
    if report.warnings:
        parts.append("> [!WARNING]\n" + "\n".join(f"> - {escaped(warning)}" for warning in report.warnings))
    parts.append(escaped(note))
    for section in report.sections:
        parts += _section(section, figures)
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section, figures: str | None) -> Iterator[str]:
    yield f"## {escaped(section.title)}"
    explained = False
    for block in section.blocks:
        if isinstance(block, TokenStream):
            yield from _stream(block, explain=not explained)
            explained = True
        else:
            yield from _block(block, figures)


def _block(block: Block, figures: str | None) -> Iterator[str]:
    match block:
        case Paragraph(text, "strong"):
            yield _strong(text)
        case Paragraph(text, "warning"):
            yield f"> [!WARNING]\n> {escaped(text)}"
        case Paragraph(text):
            yield escaped(text)
        case Bullets(items):
            yield "\n".join(f"- {escaped(item)}" for item in items)
        case Table():
            yield from _table(block)
        case Figure():
            yield f"### {escaped(block.title)}"
            if figures is not None:
                yield f"![{_line(block.title)}]({quote(figures, errors='surrogateescape')}/{block.name}.svg)"
            yield escaped(block.caption)
            yield from _table(block.table)
        case Command(text):
            yield _fenced(text)
        case Definitions(terms):
            yield "\n".join(
                f"- {_strong(term)}: {escaped(meaning)}{f' {_code(formula)}' if formula.strip() else ''}"
                for term, meaning, formula in terms
            )


def _table(table: Table) -> Iterator[str]:
    if table.caption.strip():
        yield f"*{_line(table.caption)}*"
    if not table.columns:
        return
    rules = ["---:" if column.align == "right" else ":---" for column in table.columns]
    rows = [
        [_line(column.name) for column in table.columns],
        rules,
        *([_cell(cell) for cell in row] for row in table.rows),
    ]
    yield "\n".join(f"| {' | '.join(row)} |" for row in rows)
    if key := signs_in(table):
        yield ", ".join(f"{sign} {word}" for sign, word in key)


def _cell(cell: Cell) -> str:
    if not cell.mark:
        return _line(cell.text)
    marked = f"{CELL_SIGNS[cell.mark][0]} {_line(cell.text)}".strip()
    return f"**{marked}**" if cell.mark == "best" else marked


def _stream(stream: TokenStream, *, explain: bool) -> Iterator[str]:
    yield f"### {escaped(stream.title)}"
    if explain:
        yield (
            f"Accepted tokens are plain; (~~{KIND_WORDS['rejected']}~~), [**{KIND_WORDS['corrected']}**], "
            f"{{{KIND_WORDS['bonus']}}}."
        )
    shown = shortened(stream, _ROUNDS)
    yield _tokens([(piece.kind, piece.text) for pieces in shown.rounds for piece in pieces])
    if shown.omitted:
        yield f"{shown.omitted} more round{'' if shown.omitted == 1 else 's'} not shown."


_AROUND: dict[Kind, tuple[str, str]] = {
    "rejected": ("(~~", "~~)"),
    "corrected": (r"\[**", r"**\]"),
    "bonus": ("{", "}"),
}
"""Brackets outside of the emphasis: next to them it holds whatever the token begins and ends with."""


def _tokens(pieces: Sequence[tuple[Kind, str]]) -> str:
    """The tokens in one paragraph, neighbours of one look together: what they spell together is escaped together."""
    text = ""
    for around, run in itertools.groupby(pieces, key=lambda piece: _AROUND.get(piece[0], ("", ""))):
        spelled = visible("".join(token for _, token in run).replace("\n", NEWLINE).replace("\t", TAB))
        bare = spelled.strip()
        before, after = around
        if not before:
            text += _inert(spelled)
        elif bare:
            lead, tail = " " * spelled[0].isspace(), " " * spelled[-1].isspace()
            text += f"{lead}{before}{_inert(bare)}{after}{tail}"
        else:
            text += f"{before}{SPACE * len(spelled) or EMPTY}{after}"
    return _not_a_block(text.strip())


def _strong(text: str) -> str:
    line = _line(text)
    return f"**{line}**" if line else ""


def _fenced(text: str) -> str:
    fence = "`" * max(_longest_run(text) + 1, 3)
    return f"{fence}sh\n{visible(text)}\n{fence}"


def _code(text: str) -> str:
    fence = "`" * (_longest_run(text) + 1)
    line = " ".join(visible(text).split())
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _longest_run(text: str) -> int:
    """Of backticks."""
    return max((len(run) for run in re.findall("`+", text)), default=0)
