"""A generated text as pieces: each token's text, and what became of it."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from specprof.profiling.events import Prefilled, Round

Kind = Literal["first", "accepted", "rejected", "corrected", "bonus", "plain"]

KIND_WORDS: dict[Kind, str] = {
    "first": "first token",
    "accepted": "accepted",
    "rejected": "rejected",
    "corrected": "corrected",
    "bonus": "bonus token",
    "plain": "plain decoding",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A token's text and what became of it."""

    text: str
    kind: Kind
    target_prob: float | None = None
    draft_prob: float | None = None


class TokenReader:
    """Text of one token after another; a character that several tokens make up appears with the last of them.

    Args:
        texts: what tokens stand for, by id, as in :class:`~specprof.profiling.events.PromptEnded`.
        num_tokens: how many come, where that is known: with the last of them, what has begun is not waited for.
    """

    def __init__(self, texts: Mapping[str, str], num_tokens: int | None = None) -> None:
        self._texts = texts
        self._left = num_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def emitted(self, token: int) -> str:
        """Of the next token of the text."""
        if self._left is not None:
            self._left -= 1
        encoded = self._encoded(token)
        return self._named(token) if encoded is None else self._decoder.decode(encoded, final=self._left == 0)

    def rejected(self, token: int) -> str:
        """Of a token that the text did not go on with."""
        encoded = self._encoded(token)
        if encoded is None:
            return self._named(token)
        begun, _ = self._decoder.getstate()
        text = (begun + encoded).decode("utf-8", "surrogateescape")
        return text.removeprefix(begun.decode("utf-8", "surrogateescape"))

    def rest(self) -> str:
        """What has begun and will never end: the text is over."""
        return self._decoder.decode(b"", final=True)

    def _encoded(self, token: int) -> bytes | None:
        try:
            return self._texts[str(token)].encode("utf-8", "surrogateescape")
        except (KeyError, UnicodeEncodeError):  # not noted; or a surrogate that stands for no byte, from elsewhere
            return None

    def _named(self, token: int) -> str:
        return self._texts.get(str(token), f"[{token}]")


def first_piece(prefilled: Prefilled, text: TokenReader) -> Piece:
    """The token that the prefill chose."""
    return Piece(text.emitted(prefilled.first_token), "first")


def pieces_of(round: Round, text: TokenReader) -> Iterator[Piece]:
    """A round's tokens in reading order: the rejected ones stand before the one that replaced the first of them."""

    def piece(index: int, read: Callable[[int], str], accepted: bool) -> Piece:
        # What stands behind the first rejected token was never judged: its probabilities would mislead.
        judged = index <= round.num_accepted
        return Piece(
            read(round.draft_tokens[index]),
            "accepted" if accepted else "rejected",
            round.target_prob[index] if judged and round.target_prob else None,
            round.draft_prob[index] if judged and round.draft_prob else None,
        )

    kept = round.emitted_tokens[: round.num_accepted]
    yield from (piece(index, text.emitted, True) for index in range(len(kept)))
    all_accepted = round.num_accepted == len(round.draft_tokens)
    if len(round.emitted_tokens) > len(kept):  # else the text ended with an accepted one: nothing stands behind it
        yield from (piece(index, text.rejected, False) for index in range(round.num_accepted, len(round.draft_tokens)))
    for token in round.emitted_tokens[len(kept) :]:
        yield Piece(text.emitted(token), ("bonus" if all_accepted else "corrected") if round.draft_tokens else "plain")
