"""What has been generated, in the order it came, as far back as anybody scrolls."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from specprof.profiling.events import Round
from specprof.profiling.pieces import Piece

MOST_ENTRIES = 1500
"""Memory stays bounded however long a run is; the file has everything."""


@dataclass(frozen=True, slots=True)
class Heading:
    """A generation begins."""

    prompt_id: str
    domain: str | None
    prompt: str
    """The prompt's text; empty where it is not known."""
    number: int
    """Of the generation in its arm, from 1."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one round brought; what the prefill or the end of a text brought has no round."""

    pieces: tuple[Piece, ...]
    round: Round | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Events were dropped here: text is missing on the screen, and nowhere else."""


Entry = Heading | Tokens | Gap


class Transcript:
    """Entries by number, counted from 0 since the start; the oldest are forgotten."""

    def __init__(self, most: int = MOST_ENTRIES) -> None:
        self._entries: deque[Entry] = deque(maxlen=most)
        self.end = 0
        """Number of the next entry."""

    @property
    def begin(self) -> int:
        """Number of the oldest entry that is kept."""
        return self.end - len(self._entries)

    def add(self, entry: Entry) -> int:
        """Append; returns the entry's number."""
        self._entries.append(entry)
        self.end += 1
        return self.end - 1

    def at(self, number: int) -> Entry | None:
        """None: not there yet, or not any more."""
        return self._entries[number - self.begin] if self.begin <= number < self.end else None

    def since(self, number: int) -> list[Entry]:
        """Entries from that number on, as far as they are kept."""
        first = max(number, self.begin)
        return [self._entries[i - self.begin] for i in range(first, self.end)]

    def round_before(self, number: int) -> int | None:
        """Number of the last entry before this one that is a round with a draft."""
        return next((i for i in range(min(number, self.end) - 1, self.begin - 1, -1) if self.round_at(i)), None)

    def round_after(self, number: int) -> int | None:
        """Number of the first entry after this one that is a round with a draft."""
        return next((i for i in range(max(number + 1, self.begin), self.end) if self.round_at(i)), None)

    def round_at(self, number: int) -> Round | None:
        """The round of an entry, if it is one in which something was drafted."""
        entry = self.at(number)
        return entry.round if isinstance(entry, Tokens) and entry.round and entry.round.draft_tokens else None
