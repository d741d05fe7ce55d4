"""What a person chooses before anything is decoded, what there is to choose from, and what can't be meant."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

from specprof.profiling.feed import AUTO_K

PACKAGED = "packaged"
"""Value of :attr:`Choice.prompts`: some of every packaged domain."""

DRAFT_MODEL = "model"
"""The drafter that needs a second model."""

LARGEST_K = 1000
"""A number that nobody means by tokens drafted per round is one that was mistyped."""

LAYER_SKIP = "layerskip"
"""The drafter that needs :attr:`Choice.draft_layers`."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to watch."""

    pair: str | None = None
    """A pair's name; None: the two models named below, or what is packaged."""
    draft: str | None = None
    """Hub id or directory, as ``target``; None where the drafter needs no second model."""
    target: str | None = None
    k: int = 4
    """Tokens drafted per round, or :data:`~specprof.profiling.feed.AUTO_K`."""
    temperature: float = 0.0
    drafter: str = DRAFT_MODEL
    draft_layers: int | None = None
    """How many of the target's layers draft (layerskip only)."""
    prompts: str = PACKAGED
    """:data:`PACKAGED`, the name of a packaged domain, or the path of a file."""
    prompt: str = ""
    """One text to continue; where there is one, ``prompts`` does not count."""
    pace: float = 1.0
    """Of a replay, to begin with: how many seconds pass in one."""


@dataclass(frozen=True, slots=True)
class PairOffer:
    """A pair that has a name."""

    name: str
    what: str
    """Which model drafts for which."""
    here: bool | None
    """Whether both models are on this machine; None: there is no telling."""
    notes: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """What there is to choose from."""

    pairs: tuple[PairOffer, ...]
    domains: tuple[str, ...]
    drafters: tuple[str, ...]
    replay: bool = False
    """A saved run is shown: there is nothing to choose, and no way back to choosing."""


@dataclass(frozen=True, slots=True)
class Entries:
    """The fields of a form, as they are typed."""

    pair: str | None
    """None: the two models named below."""
    draft: str
    target: str
    k: str
    temperature: str
    drafter: str
    draft_layers: str
    prompts: str | None
    """:data:`PACKAGED` or a domain; None: the file or the text named below."""
    prompts_file: str
    prompt: str | None
    """None: a file is meant, not a text."""

    @property
    def needs_draft(self) -> bool:
        return self.pair is None and self.drafter == DRAFT_MODEL

    def problems(self) -> dict[str, str]:
        """What is wrong, in words, by the name of the field; empty if :meth:`choice` can be had."""
        found = {
            "draft": _name_problem(self.draft, "draft") if self.needs_draft else None,
            "target": _name_problem(self.target, "target") if self.pair is None else None,
            "k": _problem(parse_k, self.k),
            "temperature": _problem(parse_temperature, self.temperature),
            "draft_layers": _problem(parse_layers, self.draft_layers) if self.drafter == LAYER_SKIP else None,
            "prompts_file": self._file_problem(),
            "prompt": self._text_problem(),
        }
        return {name: words for name, words in found.items() if words is not None}

    def choice(self) -> Choice:
        """What the entries mean.

        Raises:
            ValueError: they have :meth:`problems`; the first, in words.
        """
        for words in self.problems().values():
            raise ValueError(words)
        own = self.pair is None
        return Choice(
            pair=self.pair,
            draft=self.draft.strip() if self.needs_draft else None,
            target=self.target.strip() if own else None,
            k=parse_k(self.k),
            temperature=parse_temperature(self.temperature),
            drafter=self.drafter,
            draft_layers=parse_layers(self.draft_layers) if self.drafter == LAYER_SKIP else None,
            prompts=self.prompts or (PACKAGED if self.prompt is not None else _as_path(self.prompts_file.strip())),
            prompt="" if self.prompts is not None or self.prompt is None else self.prompt,
        )

    def _file_problem(self) -> str | None:
        if self.prompts is not None or self.prompt is not None:
            return None
        name = self.prompts_file.strip()
        if not name:
            return "Name a file of prompts: JSON, JSONL or plain text."
        return "Standard input is the keyboard here: name a file." if name == "-" else None

    def _text_problem(self) -> str | None:
        if self.prompts is not None or self.prompt is None:
            return None
        return None if self.prompt.strip() else "Type the text to continue."


def parse_k(text: str) -> int:
    """``auto`` or a number, 0 to :data:`LARGEST_K`.

    Raises:
        ValueError: neither; the message says what is wanted.
    """
    text = text.strip()
    if text.lower() == "auto":
        return AUTO_K
    if not text:
        raise ValueError("Give a number, 2 to 8 is usual, or auto.")
    try:
        k = int(text)
    except ValueError:
        raise ValueError("This is neither a whole number nor auto.") from None
    if k < 0:
        raise ValueError("Give 0 or more; 0 is plain decoding.")
    if k > LARGEST_K:
        raise ValueError(f"Give {LARGEST_K} at most; 2 to 8 is usual.")
    return k


def show_k(k: int) -> str:
    """Inverse of :func:`parse_k`."""
    return "auto" if k == AUTO_K else str(k)


def parse_temperature(text: str) -> float:
    """A number, 0 or more.

    Raises:
        ValueError: it isn't; the message says what is wanted.
    """
    try:
        temperature = float(text.strip().replace(",", "."))
    except ValueError:
        raise ValueError("Give a number: 0 is greedy, 0.8 is usual, 1 is the model's own.") from None
    if not math.isfinite(temperature) or temperature < 0:
        raise ValueError("Give 0 (greedy) or more.")
    return temperature


def parse_layers(text: str) -> int:
    """A number of layers, 1 or more.

    Raises:
        ValueError: it isn't; the message says what is wanted.
    """
    try:
        layers = int(text.strip())
    except ValueError:
        raise ValueError("Give a whole number: how many of the target's layers draft.") from None
    if layers < 1:
        raise ValueError("Give 1 or more.")
    return layers


def _as_path(name: str) -> str:
    """A file beside us may have the name of a domain."""
    return name if os.sep in name else os.path.join(os.curdir, name)


def _name_problem(text: str, role: str) -> str | None:
    return None if text.strip() else f"Name the {role} model: a hub id such as gpt2, or a directory."


def _problem(parse: Callable[[str], object], text: str) -> str | None:
    try:
        parse(text)
    except ValueError as error:
        return str(error)
    return None
