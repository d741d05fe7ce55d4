"""Attention of a pass's tokens over the keys and values they see."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EXPLICIT_ATTENTION_WIDTH = 32
"""Up to this many query rows, three matrix operations beat the fused kernels' set-up; prefill uses SDPA."""


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of a few query rows over a slab.

    Args:
        q: ``[heads, q, head_dim]``.
        k, v: ``[kv_heads, keys, head_dim]``; each serves heads / kv_heads query heads.
        mask: additive ``[q, keys]``, or None if every row sees every key.
        scale: 1/sqrt(head_dim).

    Returns:
        ``[heads, q, head_dim]``
    """
    heads, width, dim = q.shape
    groups = heads // k.shape[0]
    # Query heads that share a key head become rows of one product, instead of the keys being repeated.
    rows = q.reshape(k.shape[0], groups * width, dim)
    if mask is None:
        scores = torch.baddbmm(rows.new_empty(()), rows, k.transpose(1, 2), beta=0, alpha=scale)
    else:
        bias = mask if groups == 1 else mask.repeat(groups, 1)
        scores = torch.baddbmm(bias, rows, k.transpose(1, 2), alpha=scale)
    weights = torch.softmax(scores, -1, dtype=torch.float32 if scores.dtype.itemsize < 4 else None).to(v.dtype)
    return torch.bmm(weights, v).view(heads, width, dim)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """:func:`attention` by PyTorch's fused kernels; without a mask, row i sees the keys up to i."""
    grouped = q.shape[0] != k.shape[0]
    return F.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )[0]


def causal_mask(start: int, width: int, window: int | None, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive ``[width, start + width]``: row i sees keys up to start + i, the last ``window`` of them if given."""
    end = start + width
    mask = torch.full((width, end), float("-inf"), dtype=dtype, device=device)
    visible = mask.triu(start + 1)  # -inf above the diagonal, 0 on and below it
    if window is None or end <= window:
        return visible
    return visible + torch.full_like(mask, float("-inf")).tril(start - window)
