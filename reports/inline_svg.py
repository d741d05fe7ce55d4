"""A figure as part of a page: no ids but its own, no style but the page's, the reader's colours, nothing that acts.

A policy that allows no inline style must not make a figure grey: what its ``style`` attributes say becomes classes.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from specprof.profiling.signs import visible
from specprof.reports.document import Figure
from specprof.reports.palette import COLORS

_NAMESPACE = "{http://www.w3.org/2000/svg}"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
_ELEMENTS = frozenset(
    [
        "svg",
        "g",
        "defs",
        "symbol",
        "use",
        "path",
        "rect",
        "circle",
        "ellipse",
        "line",
        "polyline",
        "polygon",
        "text",
        "tspan",
        "title",
        "desc",
        "image",
        "marker",
        "pattern",
        "clipPath",
        "mask",
        "linearGradient",
        "radialGradient",
        "stop",
    ]
)
_DEAD_ATTRIBUTES = frozenset(("id", "class", "style", "version"))
_PAINTS = frozenset(("fill", "stroke", "stop-color", "color"))
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")
_VALUE = re.compile(r"[^\\{}<>@;:]*")
_INSIDE = re.compile(r"url\(\s*['\"]?#([^'\")]+)['\"]?\s*\)")
_HEX = re.compile(r"#[0-9a-fA-F]{6}(?![0-9a-fA-F])")
_FONT = re.compile(r"(?:(italic|oblique|normal)\s+)?(?:(\d00|bold|normal)\s+)?([\d.]+px)\b")
_VARIABLES = {light: f"var(--{name})" for name, (light, _) in COLORS.items()}


class Stylesheet:
    """Classes for the declarations that the figures of one page use, in order of first use."""

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}

    def name(self, declarations: str) -> str:
        return self._classes.setdefault(declarations, f"s{len(self._classes)}")

    def text(self) -> str:
        return "".join(f".{name}{{{declarations}}}\n" for declarations, name in self._classes.items())


def inline(figure: Figure, styles: Stylesheet) -> str:
    """The figure's ``<svg>`` element for HTML, named by the elements ``NAME_title`` and ``NAME_caption``.

    Its ids are ``NAME_1``, ``NAME_2`` and so on, those that something in it refers to; a colour of the palette is
    replaced by the variable of its name. Elements and attributes that draw nothing are left out.

    :raises xml.etree.ElementTree.ParseError: it isn't XML.
    """
    root = ElementTree.fromstring(visible(figure.svg))
    ids = _referenced(root, figure.name)
    _clean(root, ids, styles)
    for child in [child for child in root if child.tag in ("title", "desc")]:
        root.remove(child)  # the page has both beside the figure
    root.attrib |= {
        "role": "img",
        "aria-labelledby": f"{figure.name}_title",
        "aria-describedby": f"{figure.name}_caption",
    }
    return ElementTree.tostring(root, encoding="unicode")


def declarations(style: str) -> list[tuple[str, str]]:
    """What a ``style`` attribute says, in the page's colours and fonts, without what could leave the figure."""
    found = []
    for declaration in style.split(";"):
        name, _, value = (part.strip() for part in declaration.partition(":"))
        if name == "font":
            found += _font(value)
        elif name != "font-family" and _NAME.fullmatch(name) and _VALUE.fullmatch(value) and _stays(value):
            found.append((name, _in_variables(value)))
    return found


def _font(value: str) -> list[tuple[str, str]]:
    """A font without its family, which is the page's."""
    match = _FONT.match(value)
    if match is None:
        return []
    names = ("font-style", "font-weight", "font-size")
    return [(name, part) for name, part in zip(names, match.groups(), strict=True) if part is not None]


def _clean(element: ElementTree.Element, ids: dict[str, str], styles: Stylesheet) -> None:
    for child in list(element):
        if isinstance(child.tag, str) and child.tag.removeprefix(_NAMESPACE) in _ELEMENTS:
            _clean(child, ids, styles)
        else:
            element.remove(child)
    element.tag = element.tag.removeprefix(_NAMESPACE)
    element.text, element.tail = _text(element.text), _text(element.tail)

    given = dict(element.attrib)
    element.attrib.clear()
    said: dict[str, str] = {}
    for name, value in given.items():
        if name in _PAINTS and _HEX.fullmatch(value):
            said[name] = _in_variables(value)
        elif name in ("href", _XLINK_HREF):
            if value.startswith("#") and value[1:] in ids:
                element.set("href", f"#{ids[value[1:]]}")
            elif element.tag == "image" and value.startswith("data:image/png;base64,"):
                element.set("href", value)
        elif name not in _DEAD_ATTRIBUTES and _NAME.fullmatch(name) and not name.startswith("on") and _stays(value):
            element.set(name, _renamed(" ".join(value.split()), ids))
    said |= dict(declarations(given.get("style", "")))
    if said:
        element.set("class", styles.name(_renamed(";".join(f"{name}:{value}" for name, value in said.items()), ids)))
    if given.get("id") in ids:
        element.set("id", ids[given["id"]])


def _text(text: str | None) -> str | None:
    """Without the indentation between elements."""
    return text if text and text.strip() else None


def _referenced(root: ElementTree.Element, name: str) -> dict[str, str]:
    """New names for the ids that something in the figure refers to."""
    targets = {element.get("id") for element in root.iter()} - {None}
    ids: dict[str, str] = {}
    for element in root.iter():
        for attribute, value in element.attrib.items():
            links = [value[1:]] if attribute in ("href", _XLINK_HREF) else _INSIDE.findall(value)
            for link in links:
                if link in targets:
                    ids.setdefault(link, f"{name}_{len(ids) + 1}")
    return ids


def _renamed(value: str, ids: dict[str, str]) -> str:
    return _INSIDE.sub(lambda match: f"url(#{ids.get(match[1], '')})", value)


def _stays(value: str) -> bool:
    """Whether it refers to nothing outside the figure."""
    return re.search(r"url|image-set|://", _INSIDE.sub("", value), re.IGNORECASE) is None


def _in_variables(value: str) -> str:
    return _HEX.sub(lambda match: _VARIABLES.get(match[0].lower(), match[0]), value)
