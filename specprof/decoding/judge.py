"""The target's verdict on a draft: decided on the device, read by the host once per round."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from specprof.decoding.drafters import Draft
from specprof.decoding.rejection import count_accepted, next_token_probs, overlap
from specprof.decoding.request import Request
from specprof.decoding.sampling import draw, probabilities, random_stream
from specprof.models.scores import are_numbers, scores_of
from specprof.profiling.events import Round


@dataclass(frozen=True, slots=True)
class Ruling:
    """A verdict that is still on the device."""

    tokens: Tensor
    """Sampling, ``[k + 2]``: the drafted tokens, how many are accepted, the token after those.
    Greedy, ``[2 k + 1]``: the drafted tokens, then the target's own choices; comparing two handfuls of integers
    is cheaper on the host than in kernels."""
    seen: Tensor | None
    """``[3, k]``: per drafted token its target probability, its draft probability, and alpha; ``[4, k]`` with the
    random number it is judged by."""
    drafted_by: Tensor | None
    """What the draft model chose by: :attr:`~specprof.decoding.drafters.Draft.scores`."""
    chosen_by: Tensor
    """What the target chose by. Sampling, ``[1]``: for the last token; greedy, ``[k + 1]``: for each of its choices."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict on the host."""

    draft_tokens: tuple[int, ...]
    num_accepted: int
    next_token: int
    """The corrected token, or the bonus."""
    target_prob: tuple[float, ...] | None = None
    draft_prob: tuple[float, ...] | None = None
    alpha: tuple[float, ...] | None = None
    uniforms: tuple[float, ...] | None = None
    no_numbers: Literal["draft", "target"] | None = field(default=None, kw_only=True)
    """Whose logits were not numbers where they mattered: the rest then means nothing."""

    def round(
        self,
        key: tuple[str, str, int],
        index: int,
        emitted: Sequence[int],
        seconds: tuple[float, float, float, float],
        *,
        cut: bool,
        k: int | None,
    ) -> Round:
        """The event of the round that ended so.

        Args:
            key: prompt, decoder and repetition.
            index: of the round.
            emitted: what became text.
            seconds: of draft, verify, sample and overhead.
            cut, k: see :class:`~specprof.profiling.events.Round`.
        """
        return Round(
            *key,
            index,
            self.draft_tokens,
            self.num_accepted,
            tuple(emitted),
            *seconds,
            cut=cut,
            target_prob=self.target_prob,
            draft_prob=self.draft_prob,
            alpha=self.alpha,
            k=k,
            uniforms=self.uniforms,
        )


class Judge:
    """Accepts or rejects drafted tokens and chooses the one after them.

    Args:
        request: how tokens are chosen, and the key of its random numbers.
        device: the target's.
        detail: look at probabilities when greedy too, and at random numbers when sampling.
        synthetic_acceptance: replace the verdict by coin flips, after doing the work of a real one.
    """

    def __init__(
        self, request: Request, device: torch.device, *, detail: bool, synthetic_acceptance: float | None
    ) -> None:
        self.sampling = request.sampling
        self.detail = detail
        self.synthetic_acceptance = synthetic_acceptance
        stream = (request.seed, request.prompt_id, request.repetition)
        self.generator = random_stream(device, "target", *stream)
        self.coin = random.Random(repr(("synthetic", *stream)))

    def first_token(self, logits: Tensor) -> int | None:
        """The token after the prompt, from ``[1, vocab]`` logits; None if they are no numbers."""
        rows = logits if self.sampling.greedy else probabilities(logits, self.sampling)
        token = rows.argmax(-1) if self.sampling.greedy else draw(rows, self.generator)
        return int(token.item()) if are_numbers(scores_of(rows, token).tolist()) else None

    def decide(self, logits: Tensor, draft: Draft) -> Ruling:
        """Rule on a draft without waiting for the device.

        Args:
            logits: ``[k + 1, vocab]``, the target's after the last token and after each drafted one.
            draft: k tokens.
        """
        return self._match(logits, draft) if self.sampling.greedy else self._sample(logits, draft)

    def read(self, ruling: Ruling) -> Verdict:
        """The one wait of a round for the device."""
        tokens, chosen_by = ruling.tokens.tolist(), ruling.chosen_by.tolist()
        if self.sampling.greedy:
            k = len(tokens) // 2
            drafted, chosen = tokens[:k], tokens[k:]
            num_accepted = next((i for i in range(k) if drafted[i] != chosen[i]), k)
            next_token = chosen[num_accepted]
            chosen_by = chosen_by[: num_accepted + 1]  # what follows a rejected token is nobody's text
        else:
            *drafted, num_accepted, next_token = tokens
        if ruling.drafted_by is not None and not are_numbers(ruling.drafted_by.tolist()):
            return Verdict(tuple(drafted), num_accepted, next_token, no_numbers="draft")
        if not are_numbers(chosen_by):
            return Verdict(tuple(drafted), num_accepted, next_token, no_numbers="target")
        if self.synthetic_acceptance is not None:
            rejected = (i for i in range(len(drafted)) if self.coin.random() >= self.synthetic_acceptance)
            return Verdict(tuple(drafted), next(rejected, len(drafted)), next_token)
        seen = () if ruling.seen is None else map(tuple, ruling.seen.tolist())
        return Verdict(tuple(drafted), num_accepted, next_token, *seen)

    def _match(self, logits: Tensor, draft: Draft) -> Ruling:
        """Greedy: accept while the draft is the target's own choice."""
        chosen, seen = logits.argmax(-1), None
        if self.detail and draft.probs is not None:
            k = draft.tokens.shape[0]
            target_prob = scores_of(logits[:k].float().softmax(-1), draft.tokens)
            draft_prob = scores_of(draft.probs, draft.tokens).to(target_prob)
            match = draft.tokens == chosen[:k]
            seen = torch.stack((target_prob, draft_prob, match.to(target_prob)))
        return Ruling(torch.cat((draft.tokens, chosen)), seen, draft.scores, scores_of(logits, chosen))

    def _sample(self, logits: Tensor, draft: Draft) -> Ruling:
        """Sampling: accept with probability min(1, p_target / p_draft), else draw from the residual."""
        target_probs = probabilities(logits, self.sampling)
        if draft.probs is None:
            token = draw(target_probs, self.generator)
            chosen_by = scores_of(target_probs, token)
            return Ruling(torch.cat((torch.zeros_like(token), token)), None, draft.scores, chosen_by)
        k, draft_probs = draft.tokens.shape[0], draft.probs.to(target_probs)
        target_prob, draft_prob = (scores_of(probs, draft.tokens) for probs in (target_probs[:k], draft_probs))
        uniforms = torch.rand(k, generator=self.generator, device=logits.device, dtype=target_probs.dtype)
        accepted = count_accepted(target_prob, draft_prob, uniforms)
        law = next_token_probs(target_probs, draft_probs, accepted)
        token = draw(law, self.generator).view(1)
        seen = torch.stack(
            (target_prob, draft_prob, overlap(target_probs[:k], draft_probs), *((uniforms,) if self.detail else ()))
        )
        tokens = torch.cat((draft.tokens, accepted.view(1), token))
        return Ruling(tokens, seen, draft.scores, law.index_select(0, token))
