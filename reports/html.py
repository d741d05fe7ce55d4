"""A report as one HTML file that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import json
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from specprof.profiling.pieces import KIND_WORDS, Piece
from specprof.profiling.signs import EMPTY, NEWLINE, TAB, probability, spelled, visible
from specprof.reports.document import Block, Figure, Report
from specprof.reports.inline_svg import Stylesheet, inline
from specprof.reports.palette import COLORS
from specprof.reports.signs import CELL_SIGNS, signs_in
from specprof.reports.thinning import fitting


def render(report: Report, *, max_bytes: int = 5_000_000) -> str:
    """The report as a page of at most ``max_bytes`` of UTF-8, in which every text is nothing but text.

    A larger one is shortened, which the page says: token streams first, then the tables under figures.

    :raises ResourceError: even the shortest page is larger.
    """
    return fitting(report, _page, max_bytes)


def _page(report: Report, note: str) -> str:
    styles = Stylesheet()
    drawings = {
        block.name: Markup(inline(block, styles))
        for section in report.sections
        for block in section.blocks
        if isinstance(block, Figure)
    }
    css = f"{_variables()}{_resource('page.css')}{styles.text()}"
    return _template().render(
        report=report,
        note=note,
        drawings=drawings,
        css=Markup(css),
        css_hash=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        summary=Markup(_json(report.summary)) if report.summary else None,
    )


@functools.cache
def _template() -> Template:
    # Every text passes through `finalize`, then is escaped: nothing has to be remembered in the template.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.filters |= {"kind": _kind, "token": _token, "hint": _hint, "marks": signs_in}
    environment.globals |= {"signs": CELL_SIGNS, "words": KIND_WORDS}
    return environment.from_string(_resource("page.html"))


def _resource(name: str) -> str:
    return importlib.resources.files("specprof.reports").joinpath(name).read_text("utf-8")


@functools.cache
def _variables() -> str:
    """The palette as variables: light, and dark for who prefers that on a screen."""
    light, dark = ("".join(f"  --{name}: {colors[index]};\n" for name, colors in COLORS.items()) for index in (0, 1))
    return f":root {{\n{light}}}\n@media screen and (prefers-color-scheme: dark) {{ :root {{\n{dark}}} }}\n"


def _json(document: dict[str, Any]) -> str:
    """JSON that can't end the element it stands in."""
    text = json.dumps(document, allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _kind(block: Block) -> str:
    return type(block).__name__


def _token(piece: Piece) -> Markup:
    """A token's text with what can't be seen in it shown. Only a token that was kept begins a new line."""
    if not piece.text:
        return _mark(EMPTY)
    parts = []
    for character in piece.text:
        if character == "\n":
            parts.append(_mark(NEWLINE) + Markup("" if piece.kind == "rejected" else "<br>"))
        elif character == "\t":
            parts.append(_mark(TAB) + "\t")
        else:
            mark = spelled(character)
            parts.append(escape(character) if mark is None else _mark(mark))
    return Markup("").join(parts)


def _mark(text: str) -> Markup:
    return Markup('<span class="unseen">{}</span>').format(text)


def _hint(piece: Piece) -> str:
    """What became of a token, and how likely each model held it."""
    probabilities = (("target", piece.target_prob), ("draft", piece.draft_prob))
    known = ", ".join(f"{name} {probability(value)}" for name, value in probabilities if value is not None)
    return "; ".join(filter(None, (KIND_WORDS[piece.kind], known)))
