"""A report as Markdown: what the page says, small enough for a comment, and text in it is only text.

Read back by a parser of its own, with all that GitHub has switched on: HTML, tables, strikethrough, bare addresses.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from sample_report import GOLDEN_MARKDOWN, HOSTILE, blocks, sample, tables
from specprof.errors import ResourceError
from specprof.profiling.pieces import Piece
from specprof.profiling.signs import visible
from specprof.reports import html, markdown
from specprof.reports.document import (
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
from specprof.reports.signs import CELL_SIGNS

JOINER = "\u2060"
FOUND_BY_GITHUB = re.compile(r"@[a-z0-9]|#\d|\bGH-\d|\bwww\.|://", re.IGNORECASE)
"""What becomes a link in a rendered comment, whatever Markdown says."""

SIGNS = "|".join(re.escape(sign) for sign, _ in CELL_SIGNS.values())


def parser() -> MarkdownIt:
    reader = MarkdownIt("gfm-like")
    assert reader.options["html"] and reader.linkify is not None
    reader.linkify.set({"fuzzy_link": False, "fuzzy_email": True})  # GitHub leaves evil.example alone, without www.
    return reader


READER = parser()


def leaves(text: str) -> Iterator[Token]:
    for token in READER.parse(text):
        if token.type == "inline":
            yield from token.children or ()
        else:
            yield token


def structure(text: str) -> list[str]:
    """Kinds of tokens, those of text itself left out."""
    return [token.type for token in leaves(text) if token.type not in ("text", "text_special")]


def rendered(text: str) -> str:
    """What a reader sees, one space for each piece of white space."""
    shown = "".join(token.content if token.type != "softbreak" else " " for token in leaves(text))
    return " ".join(shown.split())


def tables_in(text: str) -> list[list[list[str]]]:
    found: list[list[list[str]]] = []
    inside = False
    for token in READER.parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            inside = True
        elif token.type == "inline" and inside:
            found[-1][-1].append("".join(child.content for child in token.children or ()))
            inside = False
    return found


def with_blocks(*more: Paragraph | Bullets | Table | TokenStream | Command | Definitions) -> str:
    return markdown.render(Report("t", "s", "v", (), (Section("s", "S", more),)))


def body(*more: Paragraph | Bullets | Table | TokenStream | Command | Definitions) -> str:
    return with_blocks(*more).partition("## S\n\n")[2]


WHOLE = markdown.render(sample())


def test_the_text_is_the_one_on_file() -> None:
    text = markdown.render(sample(), figures="figures")
    assert GOLDEN_MARKDOWN.read_text("utf-8") == text, "if it should change: python tests/sample_report.py"


def test_sections_and_figures_are_those_of_the_page_in_its_order() -> None:
    page = html.render(sample())
    headings = [line.lstrip("# ") for line in WHOLE.splitlines() if line.startswith("#")]
    assert headings == re.findall(r"<h\d[^>]*>([^<]*)</h\d>", page)
    assert [len(line) - len(line.lstrip("#")) for line in WHOLE.splitlines() if line.startswith("#")] == [
        int(level) for level in re.findall(r"<h(\d)", page)
    ]


def test_every_table_holds_the_numbers_of_its_block() -> None:
    bare = [[[re.sub(f"^({SIGNS}) ", "", cell) for cell in row] for row in table] for table in tables_in(WHOLE)]
    assert bare == [
        [[column.name for column in table.columns], *([cell.text for cell in row] for row in table.rows)]
        for table in tables(sample())
    ]


def test_columns_are_aligned_as_they_say() -> None:
    rules = [line for line in WHOLE.splitlines() if set(line) <= set("|:- ") and "--" in line]
    assert rules == ["| :--- | ---: | ---: | ---: |", "| :--- | ---: | ---: |"]


def test_marks_have_a_sign_and_the_best_is_bold() -> None:
    (row,) = (line for line in WHOLE.splitlines() if line.startswith("| K = 4"))
    assert "**\u2605 1.52x \\[1.44, 1.60\\]**" in row and "\u25b2 1.21x" in row and "\u2715 failed" in row
    assert "\u2605 best, \u25b2 faster, \u25bc slower, ? doubtful, \u2715 failed" in WHOLE


def test_pictures_are_linked_where_there_are_some() -> None:
    assert "image" not in structure(WHOLE)
    text = markdown.render(sample(), figures="my (pictures)/of run")
    (picture,) = (token for token in leaves(text) if token.type == "image")
    assert picture.attrs["src"] == "my%20%28pictures%29/of%20run/speedup.svg"
    assert picture.content == "Speedup by draft length"


def test_tokens_are_told_apart_by_brackets() -> None:
    assert "def fibon(~~ce(~~)\\[**acci**\\](n):\u23ce\u2192{return}" in WHOLE
    assert "\\[**\u2423\u2423**\\]" in WHOLE, "white space that would not show"
    assert "41 more rounds not shown." in WHOLE


@pytest.mark.parametrize("edge", ["x", ".", " ", "*", "~", "_", "\\", "]", "\u3000", "\u20ac", "\n"])
def test_rejected_and_corrected_tokens_keep_their_looks_whatever_they_consist_of(edge: str) -> None:
    pieces = (Piece("a", "accepted"), Piece(f"{edge}b{edge}", "rejected"), Piece(f"{edge}c{edge}", "corrected"))
    kinds = structure(body(TokenStream("t", ((*pieces, Piece("d", "accepted")),))))
    assert kinds.count("s_open") == kinds.count("strong_open") == 2, "in the legend and here"


def test_pieces_are_escaped_for_what_they_spell_together() -> None:
    for apart in (
        ("www", ".evil.example"),
        ("@", "org"),
        ("https", ":", "//x.y"),
        ("#", "1"),
        ("`", "x", "`"),
        ("*", "*a**"),
    ):
        stream = TokenStream("t", (tuple(Piece(text, "accepted") for text in apart),))
        text = body(stream)
        assert "".join(apart) in rendered(text).replace(JOINER, "")
        assert not FOUND_BY_GITHUB.search(rendered(text)) and {"link_open", "code_inline"}.isdisjoint(structure(text))


def test_a_long_stream_is_cut() -> None:
    stream = TokenStream("t", ((Piece(" a", "accepted"), Piece(" b", "corrected")),) * 200, 7)
    assert "143 more rounds not shown." in body(stream)


# What comes from outside


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_text_and_nothing_else(name: str) -> None:
    text = markdown.render(sample(lambda _: HOSTILE[name]), max_bytes=10**7)
    text.encode()
    assert structure(text) == structure(markdown.render(sample(lambda _: "x")))
    shown = rendered(text)
    assert {"html_block", "html_inline", "link_open", "image"}.isdisjoint(structure(text))
    line = " ".join(visible(HOSTILE[name]).split())
    texts = "".join("\n" if token.type in ("code_inline", "fence") else token.content or "\n" for token in leaves(text))
    assert not FOUND_BY_GITHUB.search(texts)
    assert shown.replace(JOINER, "").count(line) >= 10


@pytest.mark.parametrize("name", HOSTILE)
def test_a_cell_shows_its_text(name: str) -> None:
    text = markdown.render(sample(lambda _: HOSTILE[name]), max_bytes=10**7)
    cells = {re.sub(f"^({SIGNS}) ", "", cell) for table in tables_in(text) for row in table for cell in row}
    assert {cell.replace(JOINER, "") for cell in cells} == {" ".join(visible(HOSTILE[name]).split())}


ANY_TEXT = st.one_of(
    st.text(min_size=1, max_size=20), st.text("-+=#>|`*_~[]()!:\\<&1.) \nab@$/w", min_size=1, max_size=12)
).filter(lambda text: text.strip() != "" and visible(text).strip() != "")  # what is left blank is left out


@given(ANY_TEXT)
@settings(max_examples=150)
def test_any_text_leaves_the_structure_as_it_is(text: str) -> None:
    assert structure(markdown.render(sample(lambda _: text))) == structure(markdown.render(sample(lambda _: "x")))


@given(ANY_TEXT)
@settings(max_examples=150)
def test_any_text_is_shown_as_it_is(text: str) -> None:
    shown = rendered(body(Paragraph(text)))
    assert shown.replace(JOINER, "") == " ".join(visible(text).replace(JOINER, "").split())
    assert not FOUND_BY_GITHUB.search(shown)


@given(st.sampled_from([*HOSTILE.values()]), st.integers(0, 60))
@settings(max_examples=30)
def test_one_hostile_text_anywhere_leaves_the_structure_as_it_is(hostile: str, place: int) -> None:
    counter = itertools.count()
    report = sample(lambda text: hostile if next(counter) == place else "x")
    assert structure(markdown.render(report)) == structure(markdown.render(sample(lambda _: "x")))


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_where_there_is_no_text_there_is_nothing(text: str) -> None:
    left = structure(markdown.render(sample(lambda _: text)))
    assert {"strong_open", "em_open"} & set(left) <= {"strong_open"}
    assert "****" not in markdown.render(sample(lambda _: text))


def test_a_name_with_underscores_stays_readable() -> None:
    assert markdown.escaped("draft_acceptance_rate is 0.5 [0.4, 0.6]") == "draft_acceptance_rate is 0.5 \\[0.4, 0.6\\]"
    assert markdown.escaped("- no list") == "\\- no list" and markdown.escaped("12. no list") == "12\\. no list"


def test_a_command_keeps_its_lines_and_cannot_end_its_block() -> None:
    (fence,) = (token for token in leaves(body(Command("a \\\n  b\n````\nc"))) if token.type == "fence")
    assert fence.content == "a \\\n  b\n````\nc\n" and fence.info == "sh"


def test_a_formula_may_hold_backticks() -> None:
    for formula in ("a `b` c", "`", "``x", "a | b"):
        (code,) = (token for token in leaves(body(Definitions((("t", "m", formula),)))) if token.type == "code_inline")
        assert code.content == formula


# Size


def test_long_streams_are_shortened_first_then_long_tables() -> None:
    streams = tuple(
        TokenStream(f"t{n}", ((Piece("x" * 100, "accepted"), Piece("y", "bonus")),) * 64) for n in range(20)
    )
    report = dataclasses.replace(sample(), sections=(*sample().sections, Section("more", "More", streams)))
    text = markdown.render(report)
    assert 50_000 < len(text.encode()) <= 60_000
    assert re.search(r"Shortened to fit into 60 kB: token streams end after \d+ rounds\.", text)
    assert tables_in(text) == tables_in(WHOLE)

    rows = tuple((Cell(f"{k}"), Cell(f"{k / 7:.3f}"), Cell("-")) for k in range(9000))
    (figure,) = (block for block in blocks(sample()) if isinstance(block, Figure))
    long = dataclasses.replace(figure, table=dataclasses.replace(figure.table, rows=rows))
    text = markdown.render(dataclasses.replace(sample(), sections=(Section("s", "S", (long, *streams)),)))
    ((_, *kept),) = tables_in(text)
    assert len(text.encode()) <= 60_000 and (kept[0][0], kept[-1][0]) == ("0", "8999")
    assert "20 of 20 token streams are left out; tables under figures keep one row in" in text


def test_what_cannot_be_made_to_fit_is_refused() -> None:
    with pytest.raises(ResourceError, match=r"more than 0\.1 kB"):
        markdown.render(sample(), max_bytes=100)
