"""The target's verdict on a draft: decided on the device, read by the host once per round."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from specprof.decoding.drafters import Draft
from specprof.decoding.rejection import count_accepted, next_token_probs, overlap
from specprof.decoding.request import Request
from specprof.decoding.sampling import draw, probabilities, random_stream


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

    def first_token(self, logits: Tensor) -> int:
        """The token after the prompt, from ``[1, vocab]`` logits."""
        if self.sampling.greedy:
            return int(logits.argmax(-1).item())
        return int(draw(probabilities(logits, self.sampling), self.generator).item())

    def decide(self, logits: Tensor, draft: Draft) -> Ruling:
        """Rule on a draft without waiting for the device.

        Args:
            logits: ``[k + 1, vocab]``, the target's after the last token and after each drafted one.
            draft: k tokens.
        """
        return self._match(logits, draft) if self.sampling.greedy else self._sample(logits, draft)

    def read(self, ruling: Ruling) -> Verdict:
        """Wait for the device: the one synchronisation of a round."""
        tokens = ruling.tokens.tolist()
        if self.sampling.greedy:
            k = len(tokens) // 2
            drafted, chosen = tokens[:k], tokens[k:]
            num_accepted = next((i for i in range(k) if drafted[i] != chosen[i]), k)
            next_token = chosen[num_accepted]
        else:
            *drafted, num_accepted, next_token = tokens
        if self.synthetic_acceptance is not None:
            rejected = (i for i in range(len(drafted)) if self.coin.random() >= self.synthetic_acceptance)
            return Verdict(tuple(drafted), next(rejected, len(drafted)), next_token)
        seen = () if ruling.seen is None else map(tuple, ruling.seen.tolist())
        return Verdict(tuple(drafted), num_accepted, next_token, *seen)

    def _match(self, logits: Tensor, draft: Draft) -> Ruling:
        """Greedy: accept while the draft is the target's own choice."""
        chosen, seen = logits.argmax(-1), None
        if self.detail and draft.probs is not None:
            target_prob, draft_prob = _at(draft.tokens, logits.float().softmax(-1), draft.probs)
            match = draft.tokens == chosen[: draft.tokens.shape[0]]
            seen = torch.stack((target_prob, draft_prob, match.to(target_prob)))
        return Ruling(torch.cat((draft.tokens, chosen)), seen)

    def _sample(self, logits: Tensor, draft: Draft) -> Ruling:
        """Sampling: accept with probability min(1, p_target / p_draft), else draw from the residual."""
        target_probs = probabilities(logits, self.sampling)
        if draft.probs is None:
            token = draw(target_probs, self.generator)
            return Ruling(torch.cat((torch.zeros_like(token), token)), None)
        k, draft_probs = draft.tokens.shape[0], draft.probs.to(target_probs)
        target_prob, draft_prob = _at(draft.tokens, target_probs, draft_probs)
        uniforms = torch.rand(k, generator=self.generator, device=logits.device, dtype=target_probs.dtype)
        accepted = count_accepted(target_prob, draft_prob, uniforms)
        token = draw(next_token_probs(target_probs, draft_probs, accepted), self.generator)
        seen = torch.stack(
            (target_prob, draft_prob, overlap(target_probs[:k], draft_probs), *((uniforms,) if self.detail else ()))
        )
        return Ruling(torch.cat((draft.tokens, accepted.view(1), token.view(1))), seen)


def _at(tokens: Tensor, target_probs: Tensor, draft_probs: Tensor) -> tuple[Tensor, Tensor]:
    """The probability of each drafted token under both models, ``[k]`` each."""
    rows = torch.arange(tokens.shape[0], device=tokens.device)
    return target_probs[rows, tokens], draft_probs[rows, tokens].to(target_probs)
