"""The law of every token of a text, computed afterwards, and what is kept of it to test the token against.

A pass over the whole text shares neither cache nor width with the passes the tokens were drawn from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from specprof.decoding.drafters import Drafter, DraftModel, LayerSkip, NGramLookup, RandomTokens
from specprof.decoding.sampling import Sampling, probabilities
from specprof.decoding.translation import SharedVocabulary
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.events import Round
from specprof.profiling.goodness import Scores, Shift, Values
from specprof.profiling.verification import Rounding

Statistic = Literal["ratio", "low ratio", "overlap", "sharpness"]
"""Functions of a token: the ratio of its draft to its target probability, the same up to a lower bound, the same up to
1 (the probability of accepting it, were it drafted), and its log probability."""

MAX_RATIO = 100.0
"""Of draft to target probability. Large ratios tell most about a leak, but then few tokens carry the test ..."""
MAX_LOW_RATIO = 10.0
"""... so where there are few, they count less."""
MANY_TOKENS = 1000
MIN_LOG_PROB = -20.0
RANK_BINS = 20
_LEAST = -1e4
"""Log probability of what can't be: 0 times minus infinity would be no number."""
_VARIATION_STEPS = 16
_HARMLESS_VARIATION = 1e-3
"""Rounding may move this much probability, or 16 steps of the dtype: 0.016 in float16, 0.125 in bfloat16."""
_LOGIT_STEPS = 4
"""How far a logit may move at least, in steps of the dtype at the largest: few passes may happen not to differ."""
_LOGITS_AT_ONCE = 2**22
"""Bounds the memory of the laws that are held at a time."""

Place = Literal["free", "judged", "bonus"]
"""How a token was drawn: straight from the target, instead of or as a draft token, after a whole accepted draft.
It is known before the token is, so tokens of one kind have the target's law too; accepted tokens alone don't, nor
corrected ones, because which of the two a token is depends on the token."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What one arm made of one prompt."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    places: tuple[Place, ...]
    drafted: tuple[int | None, ...]
    """For each token, the one that was drafted for its place."""
    rounds: tuple[Round, ...]

    def beginning(self, num_tokens: int) -> Generation:
        """Its first tokens, with all of its rounds."""
        kept = slice(num_tokens)
        return replace(self, ids=self.ids[kept], places=self.places[kept], drafted=self.drafted[kept])


@dataclass(frozen=True, slots=True)
class Laws:
    """Of c tokens of one text in a row."""

    tokens: Tensor
    """``[c]``"""
    places: tuple[Place, ...]
    logits: Tensor
    """``[c, vocab]``, the target's."""
    target: Tensor
    """``[c, vocab]``: what tokens should be drawn from."""
    log_probs: Tensor
    """``[c, vocab]``: its logarithm before top-k and top-p, finite where rounding decides what those exclude."""
    draft: Tensor | None
    """``[c, vocab]``; None if it is not known."""
    has_draft: Tensor
    """``[c]``: 1 for rows of ``draft`` that are a law, else 0."""

    def statistics(self) -> dict[Statistic, tuple[Tensor, Tensor]]:
        """What tokens are tested by: a bounded function of a token, and how its law changes with the size of the fault
        that the function is most sensitive to; ``[c, vocab]`` each."""
        tilt = self.target * (self.log_probs - (self.target * self.log_probs).sum(-1, keepdim=True))
        found: dict[Statistic, tuple[Tensor, Tensor]] = {"sharpness": (self.log_probs.clamp_min(MIN_LOG_PROB), tilt)}
        if self.draft is None:
            return found
        ratio = (self.draft / self.log_probs.exp().clamp_min(_tiny(self.target))).clamp_max(MAX_RATIO)
        found["ratio"] = ratio, self.draft - self.target
        found["low ratio"] = ratio.clamp_max(MAX_LOW_RATIO), self.draft - self.target
        residual = (self.target - self.draft).clamp_min(0)
        found["overlap"] = ratio.clamp_max(1.0), residual.sum(-1, keepdim=True) * self.target - residual
        return found


def laws_of(target: ModelWrapper, drafter: Drafter, generation: Generation, sampling: Sampling) -> Iterator[Laws]:
    """The laws of all tokens of a text: from one pass over it, or several if it is long."""
    at_once = max(1, _LOGITS_AT_ONCE // target.vocab_size)
    text, begin = (*generation.prompt_ids, *generation.ids), 0
    drafts = _draft_laws(drafter, generation, sampling, at_once)
    for logits in _passes(target, text, len(generation.prompt_ids), at_once, at_once):
        rows = slice(begin, begin + logits.shape[0])
        begin += logits.shape[0]
        probs = probabilities(logits, sampling)
        draft = _of_places(drafter, generation, rows, probs) if drafts is None else next(drafts).to(probs)
        yield Laws(
            tokens=torch.tensor(generation.ids[rows], device=logits.device),
            places=generation.places[rows],
            logits=logits,
            target=probs,
            log_probs=(logits.to(probs) / sampling.temperature).log_softmax(-1).clamp_min(_LEAST),
            draft=draft,
            has_draft=torch.zeros_like(probs[:, 0]) if draft is None else (draft.sum(-1) > 0.5).to(probs),
        )


def _of_places(drafter: Drafter, generation: Generation, rows: slice, like: Tensor) -> Tensor | None:
    """Laws of drafters that need no model, ``[c, vocab]``."""
    if isinstance(drafter, RandomTokens):
        return torch.full_like(like, 1 / drafter.vocab_size)
    if isinstance(drafter, NGramLookup):
        # What it proposes follows from the text before, so its law is a point mass; elsewhere it has none.
        laws = torch.zeros_like(like)
        for row, token in enumerate(generation.drafted[rows]):
            if token is not None:
                laws[row, token] = 1.0
        return laws
    return None


def _draft_laws(drafter: Drafter, generation: Generation, sampling: Sampling, at_once: int) -> Iterator[Tensor] | None:
    """Laws over the target's vocabulary of a drafter that is a model, in the same portions as the target's."""
    start = len(generation.prompt_ids)
    text = (*generation.prompt_ids, *generation.ids)
    if isinstance(drafter, LayerSkip):
        return (probabilities(logits, sampling) for logits in _early_passes(drafter, text, start, at_once))
    if not isinstance(drafter, DraftModel) or not isinstance(drafter.translation, SharedVocabulary):
        return None
    translation = drafter.translation
    context = translation.context(text)
    return (
        translation.laws(probabilities(translation.restrict(logits), sampling))
        for logits in _passes(drafter.model, context, start, at_once, at_once)
    )


@torch.inference_mode()
def _passes(model: ModelWrapper, text: Sequence[int], start: int, first: int, step: int) -> Iterator[Tensor]:
    """Logits ``[c, vocab]`` that tell the tokens from ``start`` on: ``first`` of them by a pass over all before, then
    ``step`` more by each pass."""
    cache = model.new_cache(len(text))
    done, told = 0, start
    while told < len(text):
        count = min(first if done == 0 else step, len(text) - told)
        fed = torch.tensor(text[done : told + count - 1], device=model.device)
        yield model.extend(fed, cache, count)
        told += count
        done = told - 1


@torch.inference_mode()
def _early_passes(drafter: LayerSkip, text: Sequence[int], start: int, at_once: int) -> Iterator[Tensor]:
    """The same, ``at_once``, from the first layers, which tell one token to a pass."""
    model, told = drafter.model, start
    cache = model.new_cache(len(text))
    fed = list(text[:start])
    while told < len(text):
        rows = []
        for _ in range(min(at_once, len(text) - told)):
            logits, _ = model.extend_early(torch.tensor(fed, device=model.device), cache, drafter.depth)
            rows.append(logits)
            fed = [text[told]]
            told += 1
        yield torch.cat(rows)


# What is kept of each token


class TokenScores:
    """Collects the scores of tokens.

    Args:
        slack: how far rounding moves a logit.
    """

    def __init__(self, sampling: Sampling, slack: float) -> None:
        self.sampling, self.slack = sampling, slack
        self.num_impossible = self.num_borderline = 0
        self._places: list[Place] = []
        self._with_draft: list[Values] = []
        self._scores: dict[Statistic, list[Values]] = defaultdict(list)
        self._ranks: list[Values] = []

    def observe(self, laws: Laws) -> None:
        self._places += laws.places
        self._with_draft.append(_numpy(laws.has_draft))
        for kind, (function, tilt) in laws.statistics().items():
            self._scores[kind].append(_scores(laws, function, tilt))
        rows = torch.arange(len(laws.tokens), device=laws.tokens.device)
        prob = laws.target[rows, laws.tokens]
        likelier = (laws.target * (laws.target > prob[:, None])).sum(-1)
        as_likely = (laws.target * (laws.target == prob[:, None])).sum(-1)
        self._ranks.append(_numpy(torch.stack((likelier, as_likely))))
        for row in torch.nonzero(~(prob > 0)).flatten().tolist():  # 0, or no number
            if _within_rounding(laws.logits[row], int(laws.tokens[row]), self.sampling, self.slack):
                self.num_borderline += 1
            else:
                self.num_impossible += 1

    def num_at(self, place: Place | None) -> int:
        return len(self._places) if place is None else self._places.count(place)

    def scores(self, kind: Statistic, place: Place | None) -> Scores:
        """Of the tokens at some places, where the law that the statistic needs is known."""
        if not self._scores[kind]:
            return Scores(*np.zeros((5, 0)))
        wanted = np.array([place is None or at == place for at in self._places])
        if kind != "sharpness":
            wanted &= np.concatenate(self._with_draft) > 0
        return Scores(*np.concatenate(self._scores[kind], axis=1)[:, wanted])

    def numbers(self, generator: np.random.Generator) -> Values:
        """``[n]``, uniform on [0, 1] if the law is right: the mass of likelier tokens, and a random part of that of
        tokens as likely as this one, itself among them."""
        likelier, as_likely = np.concatenate(self._ranks, axis=1)
        return np.asarray(np.clip(likelier + generator.random(len(likelier)) * as_likely, 0.0, 1.0))


def _scores(laws: Laws, function: Tensor, tilt: Tensor) -> Values:
    """``[5, c]``: what :class:`Scores` holds."""
    centred = function - (laws.target * function).sum(-1, keepdim=True)
    rows = torch.arange(len(laws.tokens), device=laws.tokens.device)
    squares = centred**2
    products = (laws.target * squares, laws.target * squares * centred, tilt * centred, tilt * squares)
    moments = [product.sum(-1) for product in products]
    return _numpy(torch.stack((centred[rows, laws.tokens], *moments)))


def _within_rounding(logits: Tensor, token: int, sampling: Sampling, slack: float) -> bool:
    """Whether a token that top-k or top-p exclude would not be if logits were ``slack`` other than they are."""
    scaled, step = logits.double().cpu() / sampling.temperature, 2 * slack / sampling.temperature
    if 0 < sampling.top_k < len(scaled):
        kth = scaled.topk(sampling.top_k).values[-1]
        if scaled[token] < kth - step:
            return False
        scaled = scaled.masked_fill(scaled < kth - step, float("-inf"))
    if sampling.top_p == 1:
        return bool(scaled[token] > float("-inf"))
    before = float(scaled.softmax(-1)[scaled > scaled[token] + step].sum())
    # As small as it can be if what is before loses and the rest gains.
    less = before * float(np.exp(-step))
    return less / (less + 1 - before) < sampling.top_p if before < 1 else False


# Rounding


class RoundingSample:
    """How the laws of a sample of texts change when they are computed in passes as decoding makes them.

    Each statistic is shifted by what the change does to its mean; that much is allowed for.
    """

    def __init__(self, target: ModelWrapper, drafter: Drafter, sampling: Sampling, width: int) -> None:
        self.target, self.drafter, self.sampling, self.width = target, drafter, sampling, width
        self.num_tokens = 0
        self._furthest = self._largest = self._variation = 0.0
        self._shifts: dict[Statistic, list[Values]] = defaultdict(list)
        self._bins: list[Values] = []

    def observe(self, generation: Generation) -> None:
        text, start = (*generation.prompt_ids, *generation.ids), len(generation.prompt_ids)
        rows = _passes(self.target, text, start, 1, self.width)
        stepwise = torch.cat([logits.cpu() for logits in rows])
        begin = 0
        for laws in laws_of(self.target, self.drafter, generation, self.sampling):
            logits = stepwise[begin : begin + len(laws.tokens)].to(laws.logits)
            begin += len(laws.tokens)
            change = probabilities(logits, self.sampling) - laws.target
            self.num_tokens += len(laws.tokens)
            self._variation += float(change.abs().sum()) / 2
            self._furthest = max(self._furthest, float((logits - laws.logits).abs().max()))
            self._largest = max(self._largest, float(laws.logits.abs().max()))
            for kind, (function, _) in laws.statistics().items():
                shift = _numpy((change * function).sum(-1))
                self._shifts[kind].append(shift if kind == "sharpness" else shift[_numpy(laws.has_draft) > 0])
            self._bins.append(_bin_changes(laws.target, change))

    @property
    def slack(self) -> float:
        """How far a logit may move."""
        return max(self._furthest, _LOGIT_STEPS * torch.finfo(self.target.dtype).eps * self._largest)

    def shift(self, kind: Statistic) -> Shift:
        parts = self._shifts[kind]
        return Shift.of(np.concatenate(parts)) if parts else Shift()

    def bin_shifts(self) -> tuple[Shift, ...]:
        return tuple(Shift.of(column) for column in np.concatenate(self._bins).T) if self._bins else ()

    def result(self) -> Rounding | None:
        if not self.num_tokens:
            return None
        limit = max(_VARIATION_STEPS * torch.finfo(self.target.dtype).eps, _HARMLESS_VARIATION)
        return Rounding(self.width, self.num_tokens, self._furthest, self._variation / self.num_tokens, limit)


def _bin_changes(law: Tensor, change: Tensor) -> Values:
    """``[c, bins]``: how much likelier each bin of ranks becomes when ``change`` is added to the law."""
    ordered, index = law.sort(-1, descending=True)
    moved = change.gather(-1, index)
    ends = torch.arange(1, RANK_BINS, dtype=law.dtype, device=law.device).div(RANK_BINS).expand(len(law), -1)
    below = ordered.cumsum(-1)
    # The token whose share of the ranks holds the bin's end counts in proportion.
    at = torch.searchsorted(below, ends.contiguous()).clamp_max(law.shape[-1] - 1)
    share = (ends - (below - ordered).gather(-1, at)) / ordered.gather(-1, at).clamp_min(_tiny(law))
    up_to = (moved.cumsum(-1) - moved).gather(-1, at) + moved.gather(-1, at) * share.clamp(0, 1)
    edge = up_to.new_zeros(len(law), 1)
    return _numpy(torch.cat((edge, up_to, edge), -1).diff(dim=-1))


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny


def _numpy(values: Tensor) -> Values:
    return values.detach().to("cpu", torch.float64).numpy()
