"""A sheet to draw a figure on, and the SVG that becomes of it.

Places and sizes are in pixels of a sheet 720 wide, y downward from its top edge. Colours go by their role in
:mod:`specprof.reports.palette`; the ground stays transparent.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.typing import MarkerType

from specprof.reports.palette import COLORS
from specprof.reports.tables import plain

WIDTH = 720
SMALL, NORMAL = 10.0, 11.5
"""Font sizes."""
BOLDER = 1.15
"""Times as wide as :func:`text_width` says is bold text, at most."""

_DOTS_PER_INCH = 72  # so that a point is a pixel
_FONT = "DejaVu Sans"  # comes with matplotlib, and is as wide as any that a browser takes for sans-serif
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": _FONT,
    "font.size": SMALL,
    "hatch.linewidth": 0.8,
    "path.simplify": False,
    "axes.unicode_minus": False,
}

Align = Literal["left", "center", "right"]


def color(role: str) -> str:
    return COLORS[role][0]


@dataclass(frozen=True, slots=True)
class Stroke:
    """How a line, its markers, or markers alone are drawn."""

    role: str
    width: float = 0.0
    """Of the line; 0: there is none."""
    dashes: tuple[float, float] | None = None
    marker: MarkerType = ""
    size: float = 6.0
    """Of the markers."""
    face: str | None = ""
    """Of the markers, by role; empty: filled, None: hollow."""

    def line(self, xs: Iterable[float], ys: Iterable[float]) -> Line2D:
        face = self.role if self.face == "" else self.face
        line = Line2D(
            list(xs),
            list(ys),
            color=color(self.role),
            linewidth=self.width,
            linestyle="-" if self.width else "none",
            solid_capstyle="butt",
            marker=self.marker or "none",
            markersize=self.size,
            markerfacecolor=color(face) if face else "none",
            markeredgewidth=1.4,
        )
        if self.dashes and self.width:
            line.set_dashes(self.dashes)
        return line

    def plot(self, axes: Axes, xs: Iterable[float], ys: Iterable[float], *, clip: bool = True) -> None:
        """In the axes' own units; their limits stay."""
        line = self.line(xs, ys)
        axes.add_line(line)
        line.set_clip_on(clip)


@dataclass(frozen=True, slots=True)
class Fill:
    """How an area is drawn. Each is a role of the palette; None: without."""

    role: str | None = None
    hatch: str = ""
    hatch_role: str = "ground"
    edge: str | None = None
    edge_width: float = 0.8

    def looks(self) -> Iterator[dict[str, Any]]:
        """Properties of the patches it takes."""
        if self.role or self.edge:
            yield {
                "facecolor": color(self.role) if self.role else "none",
                "edgecolor": color(self.edge) if self.edge else "none",
                "linewidth": self.edge_width if self.edge else 0.0,
                "joinstyle": "miter",
            }
        if self.hatch:
            # One of its own: before matplotlib 3.11 a hatch has the colour of its patch's edge.
            yield {"facecolor": "none", "edgecolor": color(self.hatch_role), "hatch": self.hatch, "linewidth": 0.0}


PHASE_FILLS = {
    "draft": Fill("draft"),
    "verify": Fill("verify", "///"),
    "sample": Fill("sample", "xxxx"),
    "overhead": Fill("overhead", "----"),
}


@dataclass(frozen=True, slots=True)
class Sheet:
    figure: Figure
    height: float

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """A field with a quiet frame: a line below and horizontal rules."""
        bottom = self.height - top - height
        axes = self.figure.add_axes((left / WIDTH, bottom / self.height, width / WIDTH, height / self.height))
        axes.patch.set_visible(False)
        for side in ("left", "right", "top"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(color("quiet"))
        axes.spines["bottom"].set_linewidth(0.8)
        axes.tick_params(axis="both", which="both", color=color("quiet"), labelcolor=color("quiet"), labelsize=SMALL)
        axes.tick_params(axis="both", which="both", length=0, width=0.8, pad=5)
        axes.grid(axis="y", color=color("rule"), linewidth=0.8)
        axes.set_axisbelow(True)
        return axes

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        role: str = "ink",
        size: float = NORMAL,
        align: Align = "left",
        bold: bool = False,
    ) -> None:
        """One line, centred on y. The text must be :func:`fit` to be shown if it comes from outside."""
        self.figure.text(
            x / WIDTH,
            1 - y / self.height,
            text,
            color=color(role),
            fontsize=size,
            ha=align,
            va="center_baseline",
            weight="bold" if bold else "normal",
        )

    def box(self, x: float, y: float, width: float, height: float, fill: Fill) -> None:
        """A rectangle from its top left corner."""
        place = ((x / WIDTH, 1 - (y + height) / self.height), width / WIDTH, height / self.height)
        for look in fill.looks():
            self.figure.add_artist(Rectangle(*place, transform=self.figure.transFigure, **look))

    def line(self, xs: Sequence[float], ys: Sequence[float], stroke: Stroke, *, behind: bool = False) -> None:
        """``behind``: below the boxes, else above them."""
        line = stroke.line([x / WIDTH for x in xs], [1 - y / self.height for y in ys])
        line.set_transform(self.figure.transFigure)
        if behind:
            line.set_zorder(0)
        self.figure.add_artist(line)

    def key(self, x: float, y: float, entries: Iterable[tuple[Stroke | Fill, str]], *, room: float = WIDTH) -> None:
        """What the marks mean, in rows that begin at x and take ``room``: each a sample of the mark and its name."""
        start, gap = x, 20.0
        for look, label in entries:
            sample = 16.0 if isinstance(look, Fill) else 28.0 if look.width else 12.0
            taken = sample + 6 + text_width(label, SMALL)
            if x > start and x + taken > start + room:
                x, y = start, y + 16
            if isinstance(look, Fill):
                self.box(x, y - 5, sample, 10, look)
            else:
                self.line([x, x + sample / 2, x + sample], [y] * 3, dataclasses.replace(look, marker=""))
                self.line([x + sample / 2], [y], dataclasses.replace(look, width=0.0))
            self.text(x + sample + 6, y, label, size=SMALL)
            x += taken + gap


def draw(name: str, height: float, paint: Callable[[Sheet], None]) -> str:
    """The ``<svg>`` element of what is painted on a sheet; the same for the same painting, always.

    Args:
        name: that its ids begin with.
        height: of the sheet, pixels.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # not as the reader's own matplotlibrc has it
        matplotlib.rcParams.update(_SETTINGS | {"svg.hashsalt": name})
        # Browsers take letters that this font lacks from another one.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(WIDTH / _DOTS_PER_INCH, height / _DOTS_PER_INCH), dpi=_DOTS_PER_INCH)
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        paint(Sheet(figure, height))
        sink = io.StringIO()
        figure.savefig(sink, format="svg", metadata={"Date": None})
    return _tidied(sink.getvalue(), name)


# Text from outside


def fit(text: str, room: float, size: float = NORMAL) -> str:
    """Text made safe to draw, on one line, shortened with an ellipsis to ``room`` pixels."""
    shown = "".join("\N{REPLACEMENT CHARACTER}" if character in "\ufffe\uffff" else character for character in text)
    shown = plain(shown) if text.strip() else "(blank)"
    if text_width(shown, size) <= room and len(shown) <= room:
        return shown
    kept = ""
    for character in shown[: int(room)]:
        if text_width(kept + character + "…", size) > room:
            break
        kept += character
    return kept.rstrip() + "…"


def text_width(text: str, size: float) -> float:
    """Pixels that a line takes, or somewhat more."""
    return size * sum(map(_advance, text))


@functools.lru_cache(maxsize=4096)
def _advance(character: str) -> float:
    """In units of the font's size."""
    if unicodedata.combining(character):
        return 0.0
    font = _font()
    if not font.get_char_index(ord(character)):
        return 1.0
    return float(font.load_char(ord(character)).linearHoriAdvance) / 65536 / _MEASURED_SIZE


_MEASURED_SIZE = 100


@functools.cache
def _font() -> Any:
    font = font_manager.get_font(font_manager.findfont(FontProperties(family=_FONT)))
    font.set_size(_MEASURED_SIZE, _DOTS_PER_INCH)
    return font


# From matplotlib's SVG to one that can stand in a page beside others

_LONG_NUMBER = re.compile(r"-?\d+\.\d+")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
_SPACES = re.compile(r"\s+")
_NO_ROTATION = re.compile(r"rotate\(-?0 [^)]*\)$")
_NUMERIC = {"d", "x", "y", "width", "height", "transform", "style", "viewBox"}
_SHARED_STYLE = {"stroke-linejoin": "round", "stroke-linecap": "butt"}
"""That matplotlib's style sheet gives to all elements; a style sheet would reach the whole page."""


def _tidied(source: str, name: str) -> str:
    root = ElementTree.fromstring(source)
    view_box = root.get("viewBox", "")
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({key: _shortened(key, value) for key, value in attributes.items()})
        if _NO_ROTATION.match(element.get("transform", "")):
            del element.attrib["transform"]
    _number_ids(root, name)
    children = [part for child in root for part in _unwrapped(child)]
    tidy = ElementTree.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": view_box,
            "font-family": "sans-serif",
            **_SHARED_STYLE,
            "style": f"max-width:{WIDTH}px",
        },
    )
    tidy.extend(children)
    for element in tidy.iter():
        element.tail = "\n" if element in children else None
        if not (element.text or "").strip():
            element.text = None
    tidy.text = "\n"
    return ElementTree.tostring(tidy, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _shortened(key: str, value: str) -> str:
    if key not in _NUMERIC:
        return value
    value = _LONG_NUMBER.sub(_two_decimals, _SPACES.sub(" ", value.strip()))
    if key != "style":
        return value
    declarations = [tuple(map(str.strip, part.split(":", 1))) for part in value.split(";") if ":" in part]
    style = ";".join(
        f"{prop}:{_without_family(setting) if prop == 'font' else setting}"
        for prop, setting in declarations
        if prop != "font-family"
    )
    return style.replace("fill-opacity:0;", "fill:none;")  # of hollow markers, else black


def _two_decimals(number: re.Match[str]) -> str:
    text = f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _without_family(font: str) -> str:
    """``bold 10px 'DejaVu Sans'`` as ``bold 10px sans-serif``."""
    return re.sub(r"(?<=px) .*", " sans-serif", font)


def _number_ids(root: ElementTree.Element, name: str) -> None:
    """Ids that something refers to are numbered after the figure's name; the others go."""
    used: dict[str, str] = {}
    for element in root.iter():
        for value in (element.get("clip-path", ""), element.get("style", "")):
            used.update(dict.fromkeys(_REFERENCE.findall(value), ""))
        if element.get("href", "").startswith("#"):
            used[element.get("href", "")[1:]] = ""
    used = {old: f"{name}-{number}" for number, old in enumerate(used, start=1)}
    for element in root.iter():
        old = element.attrib.pop("id", "")
        if old in used:
            element.set("id", used[old])
        if "href" in element.attrib:
            element.set("href", f"#{used[element.attrib['href'][1:]]}")
        for key in ("clip-path", "style"):
            if key in element.attrib:
                element.set(key, _REFERENCE.sub(lambda found: f"url(#{used[found[1]]})", element.attrib[key]))


def _unwrapped(element: ElementTree.Element) -> list[ElementTree.Element]:
    """The element, or what is in it where it only groups or says nothing."""
    if element.tag in ("metadata", "style"):
        return []
    children = [part for child in list(element) for part in _unwrapped(child)]
    styles = {child.get("style") for child in children} if len(children) > 2 else set()
    if element.tag == "g" and len(styles) == 1 and {child.tag for child in children} == {"use"}:
        # The markers of a line: their look stands once.
        for child in children:
            element.set("style", child.attrib.pop("style"))
    if element.tag == "g" and not element.attrib:
        return children
    if element.tag == "defs" and not children:
        return []
    for child in list(element):
        element.remove(child)
    element.extend(children)
    return [element]
