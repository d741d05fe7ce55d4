"""What proposes the tokens that the target verifies."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from specprof.decoding.request import Request
from specprof.decoding.sampling import draw, probabilities, random_stream, uniforms
from specprof.decoding.translation import SharedVocabulary, Translation
from specprof.errors import UsageError
from specprof.models.kv_cache import KVCache
from specprof.models.scores import scores_of
from specprof.models.transformer import EarlyStates
from specprof.models.wrapper import ModelWrapper


@dataclass(frozen=True, slots=True)
class Draft:
    """Proposed tokens, on the drafter's device."""

    tokens: Tensor
    """``[k]``; k may be smaller than asked for, down to 0."""
    probs: Tensor | None
    """``[k, vocab]``: the laws the tokens were drawn from; None when greedy, unless detail is wanted."""
    early: EarlyStates | None = None
    """What the target's own layers already made of the first of the tokens to verify, if they drafted."""
    scores: Tensor | None = None
    """``[drafted]``: what the draft model chose by; None where no model drafts. Not as many as tokens where these are
    another vocabulary's."""


class Drafter(Protocol):
    """Anything that proposes a continuation.

    ``start`` once per generation, then ``propose`` and ``observe`` in turn. The output stays the
    target's whatever is proposed, as long as ``Draft.probs`` is the law the tokens were drawn from.
    A drafter that fills in ``Draft.scores`` has the model they came from as ``model``.
    """

    def start(self, request: Request, *, detail: bool, target_cache: KVCache | None = None) -> None:
        """Take in the prompt. ``target_cache``, still empty, is for a drafter that shares the target's layers."""
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
    """A smaller model.

    Args:
        model: the draft.
        translation: between its tokens and the target's; None if draft and target have one vocabulary of one size.
        threshold: the draft ends with the first token before which no token had at least this probability: where
            the draft is unsure, rejection is likely. Waits for the device at every step but the last. Whether a
            draft goes on depends on nothing but the tokens already in it, so the output stays the target's.

    Raises:
        UsageError: the threshold is no probability.
    """

    def __init__(self, model: ModelWrapper, translation: Translation | None = None, *, threshold: float = 0.0) -> None:
        if not 0 <= threshold <= 1:
            raise UsageError(f"draft threshold {threshold} is not in [0, 1]", "it is a probability")
        self.model = model
        self.translation = translation or SharedVocabulary(model.vocab_size, model.vocab_size)
        self.threshold = threshold

    def start(self, request: Request, *, detail: bool, target_cache: KVCache | None = None) -> None:
        model = self.model
        self._begin(request, detail)
        self._context = list(request.draft_prompt_ids or self.translation.prompt(request.prompt_ids))
        self._cache: KVCache = model.new_cache(len(self._context) + request.max_new_tokens)
        model.extend(torch.tensor(self._context, device=model.device), self._cache)

    def _begin(self, request: Request, detail: bool) -> None:
        self._sampling = request.sampling
        self._keep_probs = detail or not request.sampling.greedy
        # Where nobody looks at a step before the next one, the model takes all of them at once.
        plain = request.sampling.greedy or request.sampling.keeps_all
        self._at_once = plain and not (self.threshold or self.translation.restricts)
        self._generator = random_stream(self.model.device, "draft", request.seed, request.prompt_id, request.repetition)

    def propose(self, k: int) -> Draft:
        self._cache, k = with_room(self.model, self._cache, len(self._context), k)
        # After full acceptance the last drafted token is not in the cache yet: the first step then takes
        # it in together with the bonus token.
        step = torch.tensor(self._context[self._cache.length :], device=self.model.device)
        if k and self._at_once and (not self._keep_probs or self.model.gives_laws(len(step))):
            return self._in_one_call(step, k)
        tokens, scores, probs = [], [], []
        for left in reversed(range(k)):
            step, score, law = self._choose(self.translation.restrict(self._extend(step)))
            tokens.append(step)
            scores.append(score)
            probs.append(law)
            if left and self.threshold and law is not None and float(law.max()) < self.threshold:
                break
        if not tokens:
            return Draft(step.new_empty(0), None)
        proposed = self.translation.proposed(torch.cat(tokens))
        laws = self.translation.laws(torch.cat(probs)) if self._keep_probs else None  # type: ignore[arg-type]
        return Draft(proposed, laws, scores=torch.cat(scores))

    def _in_one_call(self, step: Tensor, k: int) -> Draft:
        """What k steps would propose."""
        if not self._keep_probs:
            tokens, scores = self.model.extend_greedily(step, self._cache, k)
            return Draft(self.translation.proposed(tokens), None, scores=scores)
        greedy = self._sampling.greedy
        temperature, shares = (1.0, None) if greedy else (self._sampling.temperature, uniforms((k,), self._generator))
        tokens, scores, laws = self.model.extend_with_laws(step, self._cache, k, temperature, shares)
        return Draft(self.translation.proposed(tokens), self.translation.laws(laws), scores=scores)

    def _extend(self, step: Tensor) -> Tensor:
        """Logits ``[1, draft rows]`` after the tokens ``[q]``."""
        return self.model.extend(step, self._cache)

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Restricted logits ``[1, rows]`` to a token ``[1]``, its score ``[1]`` and, where someone looks at it, its law
        ``[1, rows]``."""
        if self._sampling.greedy:
            token, looked_at = logits.argmax(-1), self._keep_probs or self.threshold > 0
            return token, scores_of(logits, token), logits.float().softmax(-1) if looked_at else None
        probs = probabilities(logits, self._sampling)
        token = draw(probs, self._generator)
        return token, scores_of(probs, token), probs

    def observe(self, tokens: Sequence[int]) -> None:
        # What the cache holds beyond the old context are drafted tokens; the last emitted token is never among them.
        valid = len(self._context) + len(tokens) - 1
        self._context.extend(self.translation.context(tokens))
        settled = self.translation.settle(self._context)
        # The next step needs one token at least, also after one that means nothing to the draft.
        self._cache.truncate(min(self._cache.length, valid, settled, len(self._context) - 1))

    def hindsight(self, tokens: Sequence[int], num_tokens: int) -> tuple[bool, ...] | None:
        """Greedy: whether this would have proposed each of the last ``num_tokens`` of a text, given those before it.

        One pass over the whole text. None where that is not the question: a draft that ends where it is unsure, or
        that reads the text in tokens of its own.
        """
        if self.threshold or not num_tokens or not isinstance(self.translation, SharedVocabulary):
            return None
        text = torch.tensor(self.translation.context(tokens), device=self.model.device)
        logits = self.model.extend(text[:-1], self.model.new_cache(len(text) - 1), num_tokens)
        chosen = self.translation.restrict(logits).argmax(-1)
        return tuple((chosen == text[-num_tokens:]).tolist())


def with_room(model: ModelWrapper, cache: KVCache, length: int, k: int) -> tuple[KVCache, int]:
    """A draft's cache with room for k tokens after ``length``, or for how many its context still has room for.

    One token of the target can be several of the draft, so how many there will be isn't known when
    a generation begins.
    """
    if model.max_context is not None:
        k = max(0, min(k, model.max_context - length))
    if length + k > cache.capacity:
        cache = cache.extended(length + k - cache.length)
    return cache, k


class LayerSkip(DraftModel):
    """The target's first layers and its head draft for the whole (self-speculation by early exit).

    Zhang et al. 2023, Draft & Verify (arXiv 2309.08168); Elhoushi et al. 2024, LayerSkip (arXiv 2404.16710).
    Draft and target share the weights and the keys and values of those layers: a draft costs no memory, and
    verifying it begins where it left off.

    Args:
        target: the model that drafts for itself.
        depth: how many layers draft, 1 to all but one.
        threshold: as for :class:`DraftModel`.

    Raises:
        UsageError: the depth is out of range, or the target doesn't run on our own forward.
    """

    def __init__(self, target: ModelWrapper, depth: int, *, threshold: float = 0.0) -> None:
        super().__init__(target, threshold=threshold)
        target.check_depth(depth)
        self.depth = depth

    def start(self, request: Request, *, detail: bool, target_cache: KVCache | None = None) -> None:
        if target_cache is None:
            raise ValueError("layer skip drafts in the target's cache, and was given none")
        self._begin(request, detail)
        self._at_once = False  # each step's hidden states are wanted
        self._context = list(request.prompt_ids)  # which the target takes in
        self._cache = KVCache(target_cache.slab)

    def propose(self, k: int) -> Draft:
        self._cache.length = len(self._context) - 1
        self._hidden: list[Tensor] = []
        draft = super().propose(k)
        if not self._hidden:
            return draft
        return dataclasses.replace(draft, early=EarlyStates(self.depth, torch.cat(self._hidden)))

    def _extend(self, step: Tensor) -> Tensor:
        logits, hidden = self.model.extend_early(step, self._cache, self.depth)
        self._hidden.append(hidden)
        return logits

    def observe(self, tokens: Sequence[int]) -> None:
        self._context.extend(tokens)

    def hindsight(self, tokens: Sequence[int], num_tokens: int) -> tuple[bool, ...] | None:
        return None  # a pass that stops at a layer reads the head after its last token only


class NGramLookup:
    """Prompt lookup (Saxena 2023; Hugging Face's ``prompt_lookup_num_tokens``): what followed last time.

    Finds the most recent earlier occurrence of the context's last n tokens, for n from
    ``max_ngram`` down to 1, and proposes the tokens after it. Needs no model; finds nothing on a
    text that does not repeat itself, and then the round is a plain step.
    """

    def __init__(self, vocab_size: int, device: torch.device, *, max_ngram: int = 3) -> None:
        self.vocab_size, self.device, self.max_ngram = vocab_size, device, max_ngram

    def start(self, request: Request, *, detail: bool, target_cache: KVCache | None = None) -> None:
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


class RandomTokens:
    """Tokens drawn evenly from the vocabulary, for nothing: what a round costs when all but no draft is accepted."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size, self.device = vocab_size, device

    def start(self, request: Request, *, detail: bool, target_cache: KVCache | None = None) -> None:
        self._keep_probs = detail or not request.sampling.greedy
        self._generator = random_stream(self.device, "draft", request.seed, request.prompt_id, request.repetition)

    def propose(self, k: int) -> Draft:
        tokens = torch.randint(self.vocab_size, (k,), generator=self._generator, device=self.device)
        if not (self._keep_probs and k):
            return Draft(tokens, None)
        return Draft(tokens, torch.full((k, self.vocab_size), 1 / self.vocab_size, device=self.device))

    def observe(self, tokens: Sequence[int]) -> None:
        return
