"""What is made small: surprise at a text, and the distance of a draft from its target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def surprise(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy in nats per token; ``[rows, length, vocabulary]`` and ``[rows, length]`` to a scalar."""
    return F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())


def divergence(draft: Tensor, target: Tensor) -> Tensor:
    """KL(target || draft) in nats per token, of logits ``[rows, length, vocabulary]``."""
    target_log_probs = target.float().log_softmax(-1)
    return (target_log_probs.exp() * (target_log_probs - draft.float().log_softmax(-1))).sum(-1).mean()


def rejected(draft: Tensor, target: Tensor) -> Tensor:
    """The share of sampled drafts that rejection sampling turns down: their distance in total variation.

    Leviathan, Kalman and Matias 2023, corollary 3.6.
    """
    return 0.5 * (draft.float().softmax(-1) - target.float().softmax(-1)).abs().sum(-1).mean()


class Distillation(nn.Module):
    """Tokens to the loss of a draft that learns from its target.

    Args:
        of_rejections: weight of :func:`rejected`; the rest is :func:`divergence`, which has a slope also where the two
            share nothing, and is therefore what a young draft learns from.
    """

    def __init__(self, draft: nn.Module, target: nn.Module, of_rejections: float) -> None:
        super().__init__()
        self.draft, self.target, self.of_rejections = draft, target, of_rejections

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.target(tokens)
        draft = self.draft(tokens)
        loss = (1 - self.of_rejections) * divergence(draft, target)
        return loss + self.of_rejections * rejected(draft, target) if self.of_rejections else loss
