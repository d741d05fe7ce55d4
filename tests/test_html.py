"""A report as a page: complete, readable in both themes, shortened where it must be, and text in it is only text."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sample_report import GOLDEN_HTML, HOSTILE, SVG, blocks, sample, tables
from specprof.errors import ResourceError
from specprof.profiling.pieces import KIND_WORDS, Piece
from specprof.profiling.signs import visible
from specprof.reports import html
from specprof.reports.document import Cell, Figure, Report, Section, TokenStream
from specprof.reports.inline_svg import Stylesheet, inline
from specprof.reports.palette import COLORS

VOID = {"meta", "link", "br"}
NOT_OF_THE_CELL = {"sign", "unshown"}
REFERENCES = {"src", "href", "xlink:href", "srcset", "action", "formaction", "poster", "data", "background", "ping"}


class Page(HTMLParser):
    """What a page consists of. Every element must be closed, and in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.tables: list[list[list[str]]] = []
        self._open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        assert len(given) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, given))
        if tag not in VOID:
            self._open.append((tag, given.get("class", "")))
        match tag:
            case "table":
                self.tables.append([])
            case "tr":
                self.tables[-1].append([])
            case "td" | "th":
                self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        names = tuple(name for name, _ in self._open)
        self.texts.append((names, data))
        classes = {name for _, given in self._open for name in given.split()}
        if {"td", "th"} & set(names) and not classes & NOT_OF_THE_CELL:
            self.tables[-1][-1][-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def inside(self, tag: str) -> list[str]:
        return [text for names, text in self.texts if names[-1:] == (tag,)]

    def with_class(self, name: str) -> list[tuple[str, dict[str, str]]]:
        return [(tag, given) for tag, given in self.elements if name in given.get("class", "").split()]

    @property
    def structure(self) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
        """Elements and attributes, but for those that are there because of what a text is."""
        return [
            (tag, tuple((name, re.sub(r"\b(short|long)\b", "", value)) for name, value in given.items()))
            for tag, given in self.elements
            if tag != "br" and given.get("class") not in ("unseen", "unshown")
        ]


def with_streams(report: Report, *streams: TokenStream) -> Report:
    return dataclasses.replace(report, sections=(*report.sections, Section("more", "More", streams)))


def long_stream(rounds: int, title: str = "long") -> TokenStream:
    pieces = (Piece(" the", "accepted", 0.9, 0.8), Piece(" cat", "corrected"))
    return TokenStream(title, (pieces,) * rounds)


PLAIN = html.render(sample())
PAGE = Page(PLAIN)


def test_the_page_is_the_one_on_file() -> None:
    assert GOLDEN_HTML.read_text("utf-8") == PLAIN, "if it should change: python tests/sample_report.py"


def test_ids_are_unique_and_every_reference_has_its_target() -> None:
    ids = [given["id"] for _, given in PAGE.elements if "id" in given]
    assert len(ids) == len(set(ids)) and {"faster", "text", "method"} <= set(ids)
    anchors = {given["href"][1:] for tag, given in PAGE.elements if given.get("href", "").startswith("#")}
    labels = {
        name
        for _, given in PAGE.elements
        for key in ("aria-labelledby", "aria-describedby")
        for name in given.get(key, "").split()
    }
    paints = set(re.findall(r"url\(#([^)]*)\)", PLAIN))
    assert anchors >= {"faster", "text", "method", "page_content", "speedup_2"}
    assert labels == {"speedup_title", "speedup_caption"} and paints == {"speedup_1", "speedup_3"}
    assert (anchors | labels | paints) - set(ids) == set()


def outside(text: str) -> Iterator[str]:
    """What a page would load, run or lead to that isn't in it."""
    page = Page(text)
    for tag, attributes in page.elements:
        if tag in ("iframe", "object", "embed", "base", "form", "foreignobject", "img", "image"):
            yield tag
        if tag == "script" and attributes["type"] != "application/json":
            yield "script"
        for name, value in attributes.items():
            if (
                name.startswith("on")
                or name == "style"
                or (name in REFERENCES and not value.startswith(("#", "data:")))
            ):
                yield f"{tag} {name}={value}"
    styles = "".join(page.inside("style"))
    yield from re.findall(r"@import|url\((?!#)|https?:|//", styles)


def test_the_page_needs_nothing_else() -> None:
    assert list(outside(PLAIN)) == []


def test_the_search_for_references_finds_some() -> None:
    assert len(list(outside("<p onclick=x></p><a href='//x'></a><style>@import 'x'; a{b:url(x)}</style>"))) == 4


def test_the_policy_allows_the_one_style_sheet_and_nothing_else() -> None:
    (policy,) = (given["content"] for tag, given in PAGE.elements if "http-equiv" in given)
    (style,) = PAGE.inside("style")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def test_headings_are_in_order() -> None:
    levels = [int(tag[1]) for tag, _ in PAGE.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and set(levels) == {1, 2, 3}
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert [text for tag in ("h1", "h2") for text in PAGE.inside(tag)] == [
        sample().title,
        *(section.title for section in sample().sections),
    ]


def test_the_verdict_comes_before_the_warnings_and_both_before_the_sections() -> None:
    places = [PLAIN.index(f">{text}<") for text in (sample().verdict, sample().sections[0].title)]
    places.insert(1, PLAIN.index(sample().warnings[0]))
    assert places == sorted(places)


def test_every_table_holds_the_numbers_of_its_block() -> None:
    assert PAGE.tables == [
        [[column.name for column in table.columns], *([cell.text for cell in row] for row in table.rows)]
        for table in tables(sample())
    ]
    scopes = [given["scope"] for tag, given in PAGE.elements if tag == "th"]
    assert scopes.count("row") == sum(len(table.rows) for table in tables(sample()))
    assert scopes.count("col") == sum(len(table.columns) for table in tables(sample()))


def test_every_text_of_the_report_is_in_the_page() -> None:
    seen: list[str] = []

    def noted(text: str) -> str:
        seen.append(text)
        return text

    sample(noted)
    shown = "".join(text for _, text in PAGE.texts)
    for text in seen:
        if text.isprintable() and text not in sample().summary.values():
            assert text in shown, text


def test_marks_show_without_colour() -> None:
    signs = [text for names, text in PAGE.texts if names[-2:] == ("td", "span")]
    assert signs[:4] == ["\u25b2", "faster: ", "?", "doubtful: "]
    assert signs[6:8] == ["\u2605", "best: "] and signs[-1] == "\u2715", "a cell that says so itself isn't said twice"


def test_tokens_say_what_became_of_them() -> None:
    hints = [(given["class"].split()[1], given["title"]) for _, given in PAGE.with_class("token") if "title" in given]
    first = sample().sections[1].blocks[0]
    assert isinstance(first, TokenStream)
    assert [kind for kind, _ in hints] == 2 * [piece.kind for pieces in first.rounds for piece in pieces]
    assert ("accepted", "accepted; target 0.812, draft 0.744") in hints
    assert ("accepted", "accepted; target 0.641") in hints, "a missing probability is left out"
    assert ("rejected", "rejected; target <0.001, draft 0.310") in hints
    assert ("corrected", "corrected") in hints
    assert len(PAGE.with_class("legend")) == 1, "once in a section"
    assert "41 more rounds not shown." in PLAIN
    assert len(PAGE.with_class("rounds")) == 2
    css = html._resource("page.css")
    for kind in KIND_WORDS.keys() - {"plain"}:
        (rule,) = re.findall(rf"^\.{kind} {{(.*)}}$", css, re.MULTILINE)
        assert re.search("border|line-through", rule), f"{kind} is told by its shape too"


def test_what_cannot_be_seen_in_a_token_is_shown() -> None:
    text = "a\tb\nc\x1b\u202e\u200b\udc80\ud800\x00"
    stream = TokenStream("t", ((Piece(text, "accepted"), Piece("", "accepted")),))
    page = Page(html.render(with_streams(sample(), stream)))
    marks = [text for names, text in page.texts if names[-3:] == ("li", "span", "span")]
    assert marks[-9:] == [
        "\u2192", "\u23ce", "\\u{1b}", "\\u{202e}", "\\u{200b}", "\\x80", "\\u{d800}", "\\u{0}", "\u00b7",
    ]  # fmt: skip


def test_only_a_kept_newline_begins_a_line() -> None:
    stream = TokenStream("t", ((Piece("a\n", "rejected"), Piece("b\n", "corrected")),))
    page = Page(html.render(dataclasses.replace(sample(), sections=(Section("s", "S", (stream,)),))))
    assert [tag for tag, _ in page.elements].count("br") == 1
    assert sum(text == "\u23ce" for _, text in page.texts) == 2


def test_the_summary_is_json_that_cannot_end_its_element() -> None:
    summary = {"text": "</script><!--<script>&\u2028\udc80", "number": 1.5, "missing": None}
    page = Page(html.render(dataclasses.replace(sample(), summary=summary)))
    (text,) = page.inside("script")
    assert json.loads(text) == summary
    assert not set(text) & set("<>&\u2028") and text.isascii()
    assert "<script" not in html.render(dataclasses.replace(sample(), summary={}))


# What comes from outside


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_text_and_nothing_else(name: str) -> None:
    report = sample(lambda _: HOSTILE[name])
    rendered = html.render(report)
    rendered.encode()
    page = Page(rendered)
    assert page.structure == PAGE.structure
    assert list(outside(rendered)) == []
    shown = visible(HOSTILE[name])
    assert "".join(page.inside("h1")) == "".join(page.inside("title")) == shown
    assert "".join(page.inside("code")) == shown * 2, "the formula and the command"
    assert {cell for table in page.tables for row in table for cell in row} == {shown}
    assert page.inside("text")[0] == shown


@given(st.text(min_size=1, max_size=20))
@settings(max_examples=40)
def test_any_text_leaves_the_page_as_it_is(text: str) -> None:
    assert Page(html.render(sample(lambda _: text))).structure == PAGE.structure


@given(st.lists(st.sampled_from([*HOSTILE.values()]), min_size=1, max_size=3), st.integers(0, 60))
@settings(max_examples=20)
def test_one_hostile_text_anywhere_leaves_the_page_as_it_is(parts: list[str], place: int) -> None:
    counter = itertools.count()
    report = sample(lambda text: "".join(parts) if next(counter) == place else text)
    assert Page(html.render(report)).structure == PAGE.structure


# Figures


def figure(svg: str) -> Figure:
    (found,) = (block for block in blocks(sample()) if isinstance(block, Figure))
    return dataclasses.replace(found, svg=svg)


def drawn(body: str) -> tuple[str, str]:
    """The element and the style sheet that come of an SVG's body."""
    styles = Stylesheet()
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{body}</svg>'
    return inline(figure(svg), styles), styles.text()


def test_a_figure_wears_the_colours_of_the_page() -> None:
    svg, css = drawn(
        '<path style="fill: #0B6AA7; stroke:#ffffff"/><rect fill="#d7e7f4" stroke="#123456" stroke-width="2"/>'
        '<path fill="#000000" style="fill: #0b6aa7"/><path style="stroke:#ffffff;fill: #0B6AA7"/>'
    )
    assert css.splitlines() == [
        ".s0{fill:var(--series0);stroke:var(--ground)}",
        ".s1{fill:var(--heat5);stroke:#123456}",
        ".s2{fill:var(--series0)}",
        ".s3{stroke:var(--ground);fill:var(--series0)}",
    ]
    assert "style" not in svg and "fill=" not in svg and 'stroke-width="2"' in svg


def test_no_light_colour_is_left_in_the_sample() -> None:
    figures = PLAIN[PLAIN.index("<svg") : PLAIN.index("</svg>")] + PLAIN[PLAIN.index(".s0{") : PLAIN.index("</style>")]
    assert "var(--series0)" in figures
    assert not set(re.findall("#[0-9a-f]{6}", figures.lower())) & {light for light, _ in COLORS.values()}


def test_text_in_a_figure_takes_the_font_of_the_page() -> None:
    _, css = drawn(
        "<text style=\"font: 700 12px 'DejaVu Sans', sans-serif; text-anchor: middle\">a</text>"
        "<text style=\"font-style: oblique; font-size: 10px; font-family: 'DejaVu Sans'\">b</text>"
        "<text style=\"font: italic 9.5px 'X'\">c</text>"
    )
    assert css.splitlines() == [
        ".s0{font-weight:700;font-size:12px;text-anchor:middle}",
        ".s1{font-style:oblique;font-size:10px}",
        ".s2{font-style:italic;font-size:9.5px}",
    ]


@pytest.mark.parametrize(
    "body",
    [
        "<script>x</script>",
        "<style>*{color:red}</style>",
        "<foreignObject><p>x</p></foreignObject>",
        '<a href="https://evil.example"><text>x</text></a>',
        '<h:img xmlns:h="http://www.w3.org/1999/xhtml" src="x"/>',
        "<!-- x -->",
        "<?x y?>",
        "<animate/>",
    ],
)
def test_what_does_not_draw_is_left_out_of_a_figure(body: str) -> None:
    assert drawn(f"<g>{body}</g>") == drawn("<g></g>")


@pytest.mark.parametrize(
    "attribute",
    [
        'onload="x"',
        'href="https://evil.example/#a"',
        'xlink:href="javascript:x"',
        'fill="url(https://evil.example#x)"',
        'style="fill: url(//evil.example)"',
        'style="fill: u\\72l(x)"',
        'style="--x: {}"',
        'style="fill: &lt;/style&gt;"',
        'style="behavior: image-set(x)"',
        'xmlns:x="http://x" x:y="z"',
        'class="quiet"',
        'id="never-referred-to"',
    ],
)
def test_what_leaves_a_figure_is_left_out_of_it(attribute: str) -> None:
    assert drawn(f"<g {attribute}></g>") == drawn("<g></g>")


def test_references_inside_a_figure_hold() -> None:
    svg, css = drawn(
        '<defs><clipPath id="a.b"/><path id="m"/></defs><use xlink:href="#m" clip-path="url(#a.b)"/>'
        '<use href="#m" style="fill: url(\'#a.b\')"/><use href="#nowhere"/>'
    )
    assert 'clipPath id="speedup_2"' in svg and 'path id="speedup_1"' in svg
    assert svg.count('href="#speedup_1"') == 2 and 'clip-path="url(#speedup_2)"' in svg and "nowhere" not in svg
    assert css == ".s0{fill:url(#speedup_2)}\n"


def test_figures_of_a_page_share_their_classes_but_no_ids() -> None:
    twice = tuple(
        dataclasses.replace(figure(SVG.replace("NAME", name).replace("TEXT", "t")), name=name) for name in ("a", "b")
    )
    page = Page(html.render(dataclasses.replace(sample(), sections=(Section("s", "S", twice),))))
    ids = [given["id"] for _, given in page.elements if "id" in given]
    assert len(ids) == len(set(ids)) and {"a_1", "b_1"} <= set(ids)
    classes = {given.get("class", "") for _, given in page.elements}
    assert {name for name in classes if re.fullmatch(r"s\d+", name)} == {f"s{number}" for number in range(11 + 1)}, (
        "those of one figure, and one more that refers to a pattern of the other"
    )


# Size


def test_a_report_that_fits_is_whole() -> None:
    size = len(PLAIN.encode())
    assert html.render(sample(), max_bytes=size) == PLAIN
    assert "Shortened" not in PLAIN and "Shortened" in html.render(sample(), max_bytes=size - 1)


def test_token_streams_are_shortened_first_and_as_little_as_needed() -> None:
    report = with_streams(sample(), long_stream(500), long_stream(30))
    limit = len(html.render(with_streams(sample(), long_stream(100), long_stream(30))).encode()) + 400
    shortened = html.render(report, max_bytes=limit)
    assert limit - 300 < len(shortened.encode()) <= limit
    assert shortened == html.render(report, max_bytes=limit), "always in the same way"
    (rounds,) = re.findall(r"token streams end after (\d+) rounds\.", shortened)
    assert 95 <= int(rounds) <= 105
    assert f"{500 - int(rounds)} more rounds not shown." in shortened
    assert Page(shortened).tables == PAGE.tables


def test_then_streams_go_from_the_end_then_rows_of_data_but_not_the_first_and_last() -> None:
    rows = tuple((Cell(f"{k}"), Cell(f"{k / 7:.3f}")) for k in range(400))
    speedup = figure(SVG.replace("NAME", "speedup").replace("TEXT", "t"))
    wide = dataclasses.replace(
        speedup, table=dataclasses.replace(speedup.table, columns=speedup.table.columns[:2], rows=rows)
    )
    streams = (long_stream(1, "one"), long_stream(1, "two"))
    report = dataclasses.replace(sample(), sections=(Section("s", "S", (wide, *streams)),))
    whole = len(html.render(report).encode())

    fewer = html.render(report, max_bytes=whole - 10)
    assert ">one<" in fewer and ">two<" not in fewer and "1 of 2 token streams are left out." in fewer
    assert len(Page(fewer).tables[0]) == 401

    thin = html.render(report, max_bytes=whole // 2)
    ((_, *kept),) = Page(thin).tables
    assert "2 of 2 token streams are left out; tables under figures keep one row in" in thin
    (every,) = re.findall(r"keep one row in (\d+), and the last", thin)
    assert [int(row[0]) for row in kept] == [*range(0, 399, int(every)), 399]
    assert f"{len(kept)} of 400 rows are shown." in thin
    assert len(thin.encode()) <= whole // 2


def test_what_cannot_be_made_to_fit_is_refused() -> None:
    with pytest.raises(ResourceError, match="even without token streams") as refused:
        html.render(sample(), max_bytes=3000)
    assert "fewer runs" in refused.value.hint
    with pytest.raises(ResourceError):
        html.render(Report("t", "s", "v", (), ()), max_bytes=3000)


def test_a_report_of_nothing_is_a_page() -> None:
    page = Page(html.render(Report("t", "s", "v", (), ())))
    assert page.inside("h1") == ["t"] and page.tables == []


# Colours


def luminance(color: str) -> float:
    """Relative luminance as WCAG defines it."""
    channels = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


TEXT_ON = {
    "ink": ["ground", "panel", "accepted", "corrected", "bonus", *(f"heat{step}" for step in range(9))],
    "quiet": ["ground", "panel", "accepted", "corrected", "bonus"],
    **{name: ["ground", "panel"] for name in ("good", "bad", "doubt", "series0")},
}
DRAWN = ["draft", "verify", "sample", "overhead", "ar", "sd", "good", "bad", "doubt", *(f"series{i}" for i in range(6))]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_their_ground(theme: int) -> None:
    colors = {name: pair[theme] for name, pair in COLORS.items()}
    weak = [
        (ink, ground, round(contrast(colors[ink], colors[ground]), 2))
        for ink, grounds in TEXT_ON.items()
        for ground in grounds
        if contrast(colors[ink], colors[ground]) < 4.5
    ]
    faint = [name for name in DRAWN if contrast(colors[name], colors["ground"]) < 3]
    assert (weak, faint) == ([], [])


def test_the_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


def test_the_style_sheet_uses_no_colours_but_those_checked() -> None:
    css = html._resource("page.css")
    inks = set(re.findall(r"(?<![-\w])color: var\(--([\w-]+)\)", css))
    grounds = set(re.findall(r"background: var\(--([\w-]+)\)", css))
    assert inks and inks <= TEXT_ON.keys()
    assert grounds and grounds <= {ground for grounds in TEXT_ON.values() for ground in grounds}
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b|rgb|hsl", css) == [], "colours are in the palette"


def test_every_colour_has_a_variable_in_both_themes_and_light_ones_are_told_apart() -> None:
    lights = [light for light, _ in COLORS.values()]
    assert len(set(lights)) == len(lights)
    for name, (light, dark) in COLORS.items():
        assert re.fullmatch("#[0-9a-f]{6}", light) and re.fullmatch("#[0-9a-f]{6}", dark)
        assert re.findall(rf"--{name}: (.*);", PLAIN) == [light, dark]


def test_rendering_loads_nothing_heavy() -> None:
    program = """
import sys, specprof.reports.html, specprof.reports.markdown
print(sorted({"torch", "matplotlib", "pandas", "numpy", "transformers", "textual"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
