"""A generated text, token by token: what was drafted, what became of it."""

from __future__ import annotations

import codecs
import string
from collections.abc import Callable, Iterator, Mapping, Sequence

from specprof.experiments.study import Study
from specprof.profiling.events import Round
from specprof.profiling.metrics import GenerationResult
from specprof.reports.document import Piece, TokenStream

MOST_STREAMS = 3
MOST_ROUNDS = 160

_SHAPES = frozenset(f"{string.punctuation} \n\t")
"""What is left of a text without its letters. Bytes and characters that are spelled out would be letters again."""


def streams(study: Study, *, redact: bool = False) -> list[TokenStream]:
    """Of the headline's draft length: the first text of each domain, then further ones up to three.

    Args:
        redact: shapes instead of letters.
    """
    if study.best_k is None:
        return []
    texts: dict[str, GenerationResult] = {}
    # Of a prompt's repetitions one has noted what its tokens stand for.
    for result in sorted(study.arm(study.best_k, baseline=False), key=lambda result: result.token_texts is None):
        if result.rounds:
            texts.setdefault(result.prompt_id, result)
    return [_stream(study, texts[prompt_id], redact) for prompt_id in _some(study.domain_of, list(texts))]


def _some(domain_of: Mapping[str, str], prompt_ids: Sequence[str]) -> list[str]:
    firsts = {domain_of.get(prompt_id): prompt_id for prompt_id in reversed(prompt_ids)}
    chosen = [prompt_id for prompt_id in prompt_ids if prompt_id in firsts.values()]
    others = [prompt_id for prompt_id in prompt_ids if prompt_id not in chosen]
    return [*chosen, *others][:MOST_STREAMS]


def _stream(study: Study, result: GenerationResult, redact: bool) -> TokenStream:
    domain = study.domain_of.get(result.prompt_id)
    title = f"{result.prompt_id}{f' ({domain})' if domain else ''}, {result.decoder}"
    shown = result.rounds[:MOST_ROUNDS]
    text = _Reader(result.token_texts or {}, 1 + sum(len(round.emitted_tokens) for round in shown), redact)
    first = (Piece(text.emitted(result.generated_ids[0]), "first"),)
    rounds = (first, *(tuple(_pieces(round, text)) for round in shown))
    return TokenStream(title, rounds, len(result.rounds) - len(shown))


def _pieces(round: Round, text: _Reader) -> Iterator[Piece]:
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


class _Reader:
    """Text of one token after another; a character that several tokens make up appears with the last of them."""

    def __init__(self, texts: Mapping[str, str], num_tokens: int, redact: bool) -> None:
        self._texts = texts
        self._left = num_tokens
        self._redact = redact
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def emitted(self, token: int) -> str:
        """Of the next of ``num_tokens``; with the last, what has begun is not waited for any more."""
        self._left -= 1
        encoded = self._encoded(token)
        return self._shown(token if encoded is None else self._decoder.decode(encoded, final=self._left == 0))

    def rejected(self, token: int) -> str:
        """A token that the text did not go on with."""
        encoded = self._encoded(token)
        if encoded is None:
            return self._shown(token)
        begun, _ = self._decoder.getstate()
        text = (begun + encoded).decode("utf-8", "surrogateescape")
        return self._shown(text.removeprefix(begun.decode("utf-8", "surrogateescape")))

    def _encoded(self, token: int) -> bytes | None:
        try:
            return self._texts[str(token)].encode("utf-8", "surrogateescape")
        except (KeyError, UnicodeEncodeError):  # not noted; or a surrogate that stands for no byte, from elsewhere
            return None

    def _shown(self, text: str | int) -> str:
        shown = text if isinstance(text, str) else self._texts.get(str(text), f"[{text}]")
        return "".join(c if c in _SHAPES else "\N{LIGHT SHADE}" for c in shown) if self._redact else shown
