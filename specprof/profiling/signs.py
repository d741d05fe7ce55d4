"""What stands for a character that can't be seen."""

from __future__ import annotations

import unicodedata

NEWLINE = "\N{RETURN SYMBOL}"
TAB = "\N{RIGHTWARDS ARROW}"
SPACE = "\N{OPEN BOX}"
EMPTY = "\N{MIDDLE DOT}"
"""A token without text: the first bytes of a character that the next one ends."""

_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
"""Letters and marks by category, but nothing is drawn for them."""


def spelled(character: str) -> str | None:
    """How to write a character that shows nothing, reorders its line or is half of one: ``\\u{200b}``, ``\\x80``.

    None for all others, and for a newline and a tab, which are white space everywhere.
    """
    if character in "\n\t":
        return None
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    never_a_character = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    if never_a_character or character in _BLANK or unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
        return f"\\u{{{code:x}}}"
    return None


def visible(text: str) -> str:
    """The text with every character :func:`spelled` out that has to be; it can be encoded as UTF-8."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(spelled(character) or character for character in text)


def probability(value: float) -> str:
    return "<0.001" if 0 < value < 0.0005 else f"{value:.3f}"
