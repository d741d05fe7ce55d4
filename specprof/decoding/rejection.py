"""Rejection sampling: the emitted tokens have exactly the target's distribution.

Leviathan et al. 2023 (arXiv 2211.17192, algorithm 1 and appendix A.1) and Chen et al. 2023
(arXiv 2302.01318, theorem 1). Pure functions of tensors: no model, no device read.

A drafted token x is accepted with probability min(1, p_target(x) / p_draft(x)). After a
rejection the next token is drawn from norm(max(0, p_target - p_draft)), the residual; after
K acceptances from the target's distribution at position K, the bonus.
"""

from __future__ import annotations

import torch
from torch import Tensor


def count_accepted(target_prob: Tensor, draft_prob: Tensor, uniforms: Tensor) -> Tensor:
    """How many drafted tokens are accepted before the first rejection.

    Args:
        target_prob, draft_prob: ``[K]``, the probability of each drafted token under both models.
        uniforms: ``[K]`` draws from [0, 1).

    Returns:
        0-d integer tensor in 0..K.
    """
    # u q < p instead of u < p / q: no division by a draft probability that rounded to 0, and strict,
    # so that a token the target gives probability 0 is never accepted.
    return (uniforms * draft_prob < target_prob).long().cumprod(0).sum()


def residual(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """norm(max(0, p_target - p_draft)) over the last dimension.

    Where the two are equal up to rounding nothing is left to normalise; a rejection there has
    probability zero, and the target's own distribution stands in.
    """
    excess = (target_probs - draft_probs).clamp_min(0)
    total = excess.sum(-1, keepdim=True)
    return torch.where(total > 0, excess / total, target_probs)


def next_token_probs(target_probs: Tensor, draft_probs: Tensor, num_accepted: Tensor) -> Tensor:
    """The law of the token after the accepted ones.

    Args:
        target_probs: ``[K + 1, vocab]``.
        draft_probs: ``[K, vocab]``.
        num_accepted: 0-d integer tensor.

    Returns:
        ``[vocab]``: the residual at the rejected position, or the target's own after K acceptances.
    """
    # After K acceptances nothing was drafted: a draft row of zeros makes the residual the target itself.
    nothing = draft_probs.new_zeros(1, draft_probs.shape[-1])
    row = num_accepted.reshape(1)
    return residual(target_probs[row], torch.cat((draft_probs, nothing))[row])[0]


def overlap(target_probs: Tensor, draft_probs: Tensor) -> Tensor:
    """``alpha`` per position: sum over the vocabulary of min(p_target, p_draft), the acceptance probability."""
    return torch.minimum(target_probs, draft_probs).sum(-1)
