"""Colours that can be read; some themes have pale ones on a pale background."""

from __future__ import annotations

import dataclasses

from rich.color import Color as RichColor
from textual.color import Color
from textual.theme import BUILTIN_THEMES, Theme

CONTRAST = 4.5
"""At least, of words and their background."""
LIGHT: Theme = dataclasses.replace(
    BUILTIN_THEMES["textual-light"],
    background="#F7F7F7",
    surface="#FFFFFF",
    panel="#E4E4E4",
    variables={
        "text-success": "#1D6B37",
        "text-warning": "#8A5200",
        "text-accent": "#8A5200",
        "footer-key-foreground": "#00579B",
    },
)
"""Takes the place of the one it is made from, which is grey, and whose words are hard to read on it."""
_SHARES = (0.0, 0.15, 0.3, 0.45, 0.6)


def readable(color: RichColor | None, background: RichColor | None, ink: RichColor | None) -> RichColor | None:
    """A colour, or as much of the ink in it as it takes to be read on the background."""
    if not all(each is not None and each.triplet is not None for each in (color, background, ink)):
        return color  # the terminal's own, which only it knows
    wanted, paper, black = (Color.from_rich_color(each) for each in (color, background, ink))
    mixed = wanted
    for share in _SHARES:
        mixed = wanted.blend(black, share)
        if contrast(mixed, paper) >= CONTRAST:
            break
    return mixed.rich_color


def contrast(color: Color, background: Color) -> float:
    """As the Web Content Accessibility Guidelines define it, 1 to 21."""
    low, high = sorted((_luminance(color), _luminance(background)))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: Color) -> float:
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in color.normalized)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
