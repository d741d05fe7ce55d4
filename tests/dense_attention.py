"""Attention as one would write it down, and random slabs to try other ways of computing it on."""

from __future__ import annotations

import torch
from torch import Tensor

STALE = 1e4
"""Of entries that no row may see: one of them shows in any result."""


def dense(q: Tensor, keys: Tensor, values: Tensor, start: int, window: int | None, scale: float) -> Tensor:
    """``[heads, width, dim]`` in float64: every row by itself, over exactly the entries that it sees."""
    heads, width, _ = q.shape
    groups = heads // keys.shape[0]
    result = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    for head in range(heads):
        for row in range(width):
            end = start + row + 1
            begin = 0 if window is None else max(0, end - window)
            seen_keys = keys[head // groups, begin:end].double()
            seen_values = values[head // groups, begin:end].double()
            weights = torch.softmax(seen_keys @ q[head, row].double() * scale, 0)
            result[head, row] = weights @ seen_values
    return result


def slab(
    heads: int,
    kv_heads: int,
    width: int,
    dim: int,
    bucket: int,
    start: int,
    dtype: torch.dtype,
    *,
    seed: int = 0,
    device: str = "cpu",
    spare: int = 8,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries ``[heads, width, dim]``, keys and values ``[kv_heads, bucket, dim]``.

    Keys and values are the beginning of a longer slab, stale after the last of the rows, which begin at ``start``.
    """
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(heads, width, dim, generator=generator).to(dtype).to(device)
    both = torch.randn(2, kv_heads, bucket + spare, dim, generator=generator).to(dtype).to(device)
    both[:, :, start + width :] = STALE
    keys, values = both[:, :, :bucket]
    return q, keys, values
