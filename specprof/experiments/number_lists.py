"""Lists of numbers as people write them in flags and files: ``1,2,4``, ``1-8``, ``1-16*2``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, TypeVar

from specprof.errors import UsageError

MAX_VALUES = 256
"""The most values one list may have: a longer one is a slip of the keyboard."""

_Number = TypeVar("_Number")


def parse_numbers(text: str, *, name: str) -> tuple[int | Literal["auto"], ...]:
    """Whole numbers: ``1,2,4``; ``1-8``; ``1-8+2`` (steps of 2); ``1-16*2`` (doubling); and the word ``auto``.

    A range holds its end only if its steps meet it. A number given twice counts once.

    Args:
        name: what an error calls the list, such as ``--k``.

    Raises:
        UsageError: it is none of these, or has more than MAX_VALUES numbers.
    """
    return _distinct(_whole_numbers(text, name), name)


def parse_decimals(text: str, *, name: str) -> tuple[float, ...]:
    """Numbers: ``0,0.8``; ``0-1+0.25`` (a range has to name its step); ``0.25-1*2``.

    Raises:
        UsageError: it is none of these, or has more than MAX_VALUES numbers.
    """
    return _distinct((float(number) for item in _items(text, name) for number in _expand(item, name, _DECIMAL)), name)


def quoted(text: str) -> str:
    """Text in quotes, for a sentence: without control characters, and not a page of it."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _whole_numbers(text: str, name: str) -> Iterator[int | Literal["auto"]]:
    for item in _items(text, name):
        if item == "auto":
            yield "auto"
        else:
            yield from map(int, _expand(item, name, _WHOLE))


@dataclass(frozen=True, slots=True)
class _Kind:
    """How numbers of one kind are written."""

    pattern: str
    what: str
    example: str
    default_step: Decimal | None

    def match(self, item: str) -> re.Match[str] | None:
        """A single number (group 1), or a range: with its end (2), operator (3) and step (4)."""
        number = self.pattern
        return re.fullmatch(rf"({number})(?:\s*-\s*({number})(?:\s*([+*])\s*({number}))?)?", item)


_WHOLE = _Kind(
    "[0-9]{1,12}",
    "a whole number, a range of them or auto",
    "write 1,2,4 or 1-8, 1-8+2 (steps of 2), 1-16*2 (doubling)",
    Decimal(1),
)
_DECIMAL = _Kind(
    r"(?:[0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})(?:[eE][-+]?[0-9]{1,2})?",
    "a number or a range of them",
    "write 0,0.8 or 0-1+0.25 (steps of 0.25), 0.25-1*2 (doubling)",
    None,
)


def _items(text: str, name: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not any(items):
        raise UsageError(f"{name} is empty", "give at least one number")
    if not all(items):
        raise UsageError(f"{name} {quoted(text)} has a comma too many", "put one comma between two numbers")
    return items


def _expand(item: str, name: str, kind: _Kind) -> Iterator[Decimal]:
    """The numbers of a single number or a range, exactly: 0-1+0.1 holds 0.3 and ends with 1."""
    found = kind.match(item)
    if found is None:
        if item.startswith("-") and kind.match(item[1:].lstrip()):
            raise UsageError(f"{name} {item} is negative", kind.example)
        raise UsageError(f"{name} {quoted(item)} is not {kind.what}", kind.example)
    start = Decimal(found[1])
    if found[2] is None:
        yield start
        return
    stop, operator = Decimal(found[2]), found[3] or "+"
    step = Decimal(found[4]) if found[4] else kind.default_step
    if step is None:
        raise UsageError(f"{name} {item} does not name its step", f"for steps of 0.25, write {item}+0.25")
    if stop < start:
        raise UsageError(f"{name} {item} runs backwards", f"put the smaller number first: {found[2]}-{found[1]}")
    if operator == "+" and step <= 0:
        raise UsageError(f"{name} {item} never reaches its end", "add more than 0")
    if operator == "*" and (step <= 1 or start <= 0):
        raise UsageError(f"{name} {item} never reaches its end", "begin above 0 and multiply by more than 1")
    number = start
    while number <= stop:
        yield number
        number = number + step if operator == "+" else number * step


def _distinct(numbers: Iterable[_Number], name: str) -> tuple[_Number, ...]:
    """Each once, where it first stands; a list that goes on and on is given up in time."""
    found: dict[_Number, None] = {}
    for number in numbers:
        found[number] = None
        if len(found) > MAX_VALUES:
            raise UsageError(f"{name} has more than {MAX_VALUES} values", "take larger steps, or fewer ranges")
    return tuple(found)
