"""A generated text, token by token: what was drafted, what became of it."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import replace

from specprof.experiments.study import Study
from specprof.profiling.metrics import GenerationResult
from specprof.profiling.pieces import Piece, TokenReader, pieces_of
from specprof.reports.document import TokenStream

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
    text = TokenReader(result.token_texts or {}, 1 + sum(len(round.emitted_tokens) for round in shown))
    first = (Piece(text.emitted(result.generated_ids[0]), "first"),)
    rounds = (first, *(tuple(pieces_of(round, text)) for round in shown))
    if redact:
        rounds = tuple(tuple(map(_redacted, pieces)) for pieces in rounds)
    return TokenStream(title, rounds, len(result.rounds) - len(shown))


def _redacted(piece: Piece) -> Piece:
    return replace(piece, text="".join(c if c in _SHAPES else "\N{LIGHT SHADE}" for c in piece.text))
