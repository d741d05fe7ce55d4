"""What proposes the tokens that the target verifies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from specprof.decoding.request import Request
from specprof.decoding.sampling import draw, probabilities, random_stream
from specprof.models.kv_cache import KVCache
from specprof.models.wrapper import ModelWrapper


@dataclass(frozen=True, slots=True)
class Draft:
    """Proposed tokens, on the drafter's device."""

    tokens: Tensor
    """``[k]``; k may be smaller than asked for, down to 0."""
    probs: Tensor | None
    """``[k, vocab]``: the laws the tokens were drawn from; None when greedy, unless detail is wanted."""


class Drafter(Protocol):
    """Anything that proposes a continuation.

    ``start`` once per generation, then ``propose`` and ``observe`` in turn. The output stays the
    target's whatever is proposed, as long as ``Draft.probs`` is the law the tokens were drawn from.
    """

    name: str

    def start(self, request: Request, *, detail: bool) -> None:
        """Take in the prompt."""
        ...

    def propose(self, k: int) -> Draft:
        """Up to k tokens that may follow the context."""
        ...

    def observe(self, tokens: Sequence[int]) -> None:
        """The tokens emitted since the last call: an accepted prefix of the proposal, then one token of the target's.

        Whatever the drafter holds of rejected tokens is rolled back here.
        """
        ...


class DraftModel:
    """A smaller model that shares the target's vocabulary.

    Args:
        model: the draft.
        vocab_size: rows of the target's head. Heads of one vocabulary may differ in padding rows: the draft
            never proposes a token the target lacks, and gives the target's extra rows probability 0.
    """

    name = "model"

    def __init__(self, model: ModelWrapper, *, vocab_size: int | None = None) -> None:
        self.model = model
        self._missing_rows = 0 if vocab_size is None else vocab_size - model.vocab_size

    def start(self, request: Request, *, detail: bool) -> None:
        model = self.model
        self._sampling = request.sampling
        self._keep_probs = detail or not request.sampling.greedy
        self._generator = random_stream(model.device, "draft", request.seed, request.prompt_id, request.repetition)
        self._context = self._known(request.prompt_ids)
        self._cache: KVCache = model.new_cache(request.num_positions)
        model.extend(torch.tensor(self._context, device=model.device), self._cache)

    def propose(self, k: int) -> Draft:
        # After full acceptance the last drafted token is not in the cache yet: the first step then takes
        # it in together with the bonus token.
        step = torch.tensor(self._context[self._cache.length :], device=self.model.device)
        tokens, probs = [], []
        for _ in range(k):
            logits = self.model.extend(step, self._cache)
            step, law = self._choose(logits)
            tokens.append(step)
            probs.append(law)
        if not tokens:
            return Draft(step.new_empty(0), None)
        return Draft(torch.cat(tokens), torch.cat(probs) if self._keep_probs else None)  # type: ignore[arg-type]

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """``[1, vocab]`` logits to a token ``[1]`` and, if kept, the law ``[1, target's vocab]``."""
        if self._missing_rows < 0:
            logits = logits[:, : self._missing_rows]
        greedy = self._sampling.greedy
        if greedy and not self._keep_probs:
            return logits.argmax(-1), None
        probs = logits.float().softmax(-1) if greedy else probabilities(logits, self._sampling)
        token = logits.argmax(-1) if greedy else draw(probs, self._generator)
        return token, F.pad(probs, (0, self._missing_rows)) if self._missing_rows > 0 else probs

    def observe(self, tokens: Sequence[int]) -> None:
        # What the cache holds beyond the old context are drafted tokens; the last emitted token is never among them.
        valid = len(self._context) + len(tokens) - 1
        self._cache.truncate(min(self._cache.length, valid))
        self._context.extend(self._known(tokens))

    def _known(self, tokens: Sequence[int]) -> list[int]:
        # The target can emit a padding row that the draft lacks. Any token may stand in for it: what the draft
        # makes of the context is its own affair, as long as it says which law it drew from.
        last = self.model.vocab_size - 1
        return [min(token, last) for token in tokens]


class NGramLookup:
    """Prompt lookup (Saxena 2023; Hugging Face's ``prompt_lookup_num_tokens``): what followed last time.

    Finds the most recent earlier occurrence of the context's last n tokens, for n from
    ``max_ngram`` down to 1, and proposes the tokens after it. Needs no model; finds nothing on a
    text that does not repeat itself, and then the round is a plain step.
    """

    name = "ngram"

    def __init__(self, vocab_size: int, device: torch.device, *, max_ngram: int = 3) -> None:
        self.vocab_size, self.device, self.max_ngram = vocab_size, device, max_ngram

    def start(self, request: Request, *, detail: bool) -> None:
        self._keep_probs = detail or not request.sampling.greedy
        self._context: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}
        """Where the most recent occurrence of an n-gram is continued; the context's own end is not in it yet."""
        self.observe(request.prompt_ids)

    def propose(self, k: int) -> Draft:
        context = self._context
        proposal: list[int] = []
        for n in range(min(self.max_ngram, len(context)), 0, -1):
            position = self._follows.get(tuple(context[-n:]))
            if position is not None:
                proposal = context[position : position + k]
                break
        tokens = torch.tensor(proposal, dtype=torch.long, device=self.device)
        # A lookup is certain of its proposal: its law is a point mass.
        probs = F.one_hot(tokens, self.vocab_size).float() if self._keep_probs and proposal else None
        return Draft(tokens, probs)

    def observe(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            end = len(self._context)
            for n in range(1, min(self.max_ngram, end) + 1):
                self._follows[tuple(self._context[end - n :])] = end
            self._context.append(token)
