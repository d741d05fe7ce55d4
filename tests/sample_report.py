"""A report with one of every block, made up, and texts that try to be more than text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from specprof.profiling.pieces import Kind, Piece
from specprof.reports.document import (
    Block,
    Bullets,
    Cell,
    Column,
    Command,
    Definitions,
    Figure,
    Mark,
    Paragraph,
    Report,
    Section,
    Table,
    TokenStream,
)

GOLDEN_HTML, GOLDEN_MARKDOWN = (Path(__file__).with_name("data") / f"report.golden.{kind}" for kind in ("html", "md"))
"""What :func:`sample` comes out as; ``python tests/sample_report.py`` writes both anew."""

HOSTILE = {
    "script": "<script>document.title='owned';document.body.append('owned')</script>",
    "end of style": "</style><script>document.title='owned'</script>",
    "end of title": "</title><img src=x onerror=\"document.title='owned'\">",
    "end of script": "</script><svg onload=\"document.title='owned'\">",
    "attribute": "\" onmouseover=\"document.title='owned'\" autofocus onfocus=\"document.title='owned'\" x='",
    "address": "javascript:alert(1) https://evil.example/?a=1&b=2 www.evil.example mailto:a@evil.example",
    "template": "{{7*7}} {% raw %} ${7*7} {#",
    "ends": "]]> --> -- <!-- <?xml ?> <![CDATA[ &lt;b&gt; &#60;b&#62; &amp;",
    "terminal": "\x1b[31mred\x1b[0m \x1b]8;;https://evil.example\x07link\x1b]8;;\x07 \x9b2J \x07",
    "null": "a\x00b\x08c\x7fd\rE\x0cF\x85G\ufffeH",
    "bidi": "\u202egnp.exe\u202c \u2066x\u2069 \u200f \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "unseen": "zero\u200bwidth\u200d\ufeff\u2060\u00ad\u2028\u2029\u3164\U000e0041",
    "half": "\udc80\udcff \ud800 \udfff",
    "markdown": "a | b `code` ``x`` **bold** _it_ ~~no~~ [l](javascript:alert(1)) ![i](https://evil.example/i.png) \\",
    "lines": "# head\n\n- item\n\n---\n\n```\ncode\n```\n\n> quote\n\n1. one\n\n    indented\n\n| a |\n|---|\n\n==",
    "reference": "[x]: https://evil.example\n\n[x] [^1] [ ] <https://evil.example> <a@evil.example>",
    "mention": "@everyone @org/team #123 GH-7 org/repo#5 :tada: $x^2$ a@b.example",
    "long": "x" * 10_000,
}

SVG = """\
<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="540pt" height="216pt" viewBox="0 0 540 216"
 xmlns="http://www.w3.org/2000/svg" version="1.1">
 <metadata><about>https://drawn.example/</about></metadata>
 <defs><style type="text/css">*{stroke-linejoin: round; stroke-linecap: butt}</style></defs>
 <title>drawn by hand</title>
 <g id="NAME-figure_1">
  <g id="NAME-patch_1"><path d="M 0 216
L 540 216
L 540 0
L 0 0
z
" style="fill: #ffffff"/></g>
  <g id="NAME-axes_1">
   <g clip-path="url(#NAME-clip)">
    <path d="M 60 160 L 180 90 L 300 60 L 420 100" style="fill: none; stroke: #0b6aa7; stroke-width: 1.5"/>
    <path d="M 60 150 L 180 120 L 300 110 L 420 140"
     style="fill: none; stroke: #b55208; stroke-width: 1.5; stroke-dasharray: 5.55,2.4"/>
   </g>
   <defs><path id="NAME-marker" d="M -3 -3 L 3 -3 L 3 3 L -3 3 z" style="stroke: #0b6aa7; fill: #0B6AA7"/></defs>
   <g><use xlink:href="#NAME-marker" x="180" y="90"/><use xlink:href="#NAME-marker" x="300" y="60"/></g>
   <rect x="440" y="60" width="60" height="100" fill="#d7e7f4" stroke="#d5dbe1"/>
   <rect x="440" y="110" width="60" height="50" style="fill: url(#NAME-hatch)"/>
   <line x1="60" y1="170" x2="500" y2="170" stroke="#57606a" stroke-width="0.8"/>
   <text style="font: 700 12px 'DejaVu Sans', sans-serif; text-anchor: middle; fill: #1b1f24" x="270" y="24">TEXT</text>
   <text style="font-size: 10px; font-family: 'DejaVu Sans'; text-anchor: middle; fill: #57606a" x="270" y="196"
    transform="rotate(-0 270 196)">draft length K</text>
  </g>
 </g>
 <defs>
  <clipPath id="NAME-clip"><rect x="50" y="30" width="380" height="140"/></clipPath>
  <pattern id="NAME-hatch" patternUnits="userSpaceOnUse" x="0" y="0" width="8" height="8">
   <rect x="0" y="0" width="9" height="9" fill="#f5f7f9"/>
   <path d="M 0 8 L 8 0" style="stroke: #1b1f24; stroke-width: 1.0"/>
  </pattern>
 </defs>
</svg>
"""


def sample(text: Callable[[str], str] = str) -> Report:
    """``text`` says what stands in every place where there is a text."""
    return Report(
        title=text("tiny_dev: speculative against plain decoding"),
        subtitle=text("tiny_dev/target on cpu, float32; 12 prompts, 3 repetitions; 21 November 2026"),
        verdict=text("Speculation is faster: 1.31x [1.24, 1.38] at K = 4, most of all on code."),
        warnings=(
            text("Only 12 prompts: the intervals are wide."),
            text("The machine slowed down by 4 % during the run."),
        ),
        sections=(
            Section(
                "faster",
                text("Is it faster?"),
                (*_paragraphs(text), _bullets(text), _speedups(text), _figure("speedup", text)),
            ),
            Section("text", text("What became of the tokens"), (_stream(text), _stream(text, omitted=41))),
            Section(
                "method", text("Method"), (_definitions(text), Command(text("specprof run --pair tiny_dev --k 4")))
            ),
        ),
        summary={text("speedup"): 1.31, "interval": [1.24, 1.38], "title": text("a <b> & c"), "missing": None},
    )


def _paragraphs(text: Callable[[str], str]) -> tuple[Paragraph, ...]:
    return (
        Paragraph(text("A round yields 2.61 tokens.")),
        Paragraph(text("Where the time goes is below."), "strong"),
        Paragraph(text("Nothing ran at K = 8 on news."), "warning"),
        Paragraph(text("Seeds are fixed."), "quiet"),
    )


def _bullets(text: Callable[[str], str]) -> Bullets:
    return Bullets((text("Yes, on all three domains."), text("K = 4 is the best of those measured.")))


def _speedups(text: Callable[[str], str]) -> Table:
    rows: tuple[tuple[str, tuple[tuple[str, Mark], ...]], ...] = (
        ("K = 1", (("1.12x [1.08, 1.15]", "faster"), ("1.01x [0.97, 1.05]", "doubtful"), ("0.93x", "slower"))),
        ("K = 4", (("1.52x [1.44, 1.60]", "best"), ("1.21x [1.15, 1.27]", "faster"), ("failed", "failed"))),
        ("K = 8", (("1.40x", ""), ("-", ""), ("-", ""))),
    )
    columns = (Column(text("speedup"), "left"), *(Column(text(name)) for name in ("code", "conversation", "news")))
    cells = tuple((Cell(text(name)), *(Cell(text(number), mark) for number, mark in numbers)) for name, numbers in rows)
    return Table(columns, cells, text("Decode speedup over plain decoding, 95 % intervals."))


def _figure(name: str, text: Callable[[str], str]) -> Figure:
    rows = tuple((Cell(text(f"{k}")), Cell(text(f"{1 + k / 16:.3f}")), Cell(text("-"))) for k in range(1, 6))
    columns = (Column(text("K"), "left"), Column(text("code")), Column(text("news")))
    return Figure(
        name,
        text("Speedup by draft length"),
        text("Code gains up to K = 4; news never does."),
        SVG.replace("NAME", name).replace("TEXT", _xml(text("code and news"))),
        Table(columns, rows),
    )


def _xml(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _stream(text: Callable[[str], str], omitted: int = 0) -> TokenStream:
    def pieces(*known: tuple[str, Kind, float | None, float | None]) -> tuple[Piece, ...]:
        return tuple(Piece(text(word), kind, target, draft) for word, kind, target, draft in known)

    return TokenStream(
        text("code_003, K = 4"),
        (
            pieces(("def", "first", None, None)),
            pieces(
                (" fib", "accepted", 0.812, 0.744),
                ("on", "accepted", 0.6412, None),
                ("ce", "rejected", 0.0001, 0.31),
                ("(", "rejected", None, None),
                ("acci", "corrected", None, None),
            ),
            pieces(("(n):", "accepted", 1.0, 0.9), ("\n\t", "accepted", 0.99, 0.98), ("return", "bonus", 0.5, None)),
            pieces((" \u0645\u0631\u062d\u0628\u0627", "accepted", 0.5, 0.5), ("", "accepted", 0.1, 0.1)),
            pieces((" n", "plain", None, None), ("  ", "corrected", None, None), ("\udc80\u200b", "plain", None, None)),
        ),
        omitted,
    )


def _definitions(text: Callable[[str], str]) -> Definitions:
    return Definitions(
        (
            (text("acceptance rate"), text("Accepted over drafted tokens."), text("sum accepted / sum drafted")),
            (text("round"), text("One draft and one verification."), ""),
        )
    )


def blocks(report: Report) -> list[Block]:
    return [block for section in report.sections for block in section.blocks]


def tables(report: Report) -> list[Table]:
    """All of them in order, those under figures included."""
    shown = (block.table if isinstance(block, Figure) else block for block in blocks(report))
    return [block for block in shown if isinstance(block, Table)]


if __name__ == "__main__":
    from specprof.reports import html, markdown

    GOLDEN_HTML.write_text(html.render(sample()), "utf-8")
    GOLDEN_MARKDOWN.write_text(markdown.render(sample(), figures="figures"), "utf-8")
