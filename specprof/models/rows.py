"""Where the tokens of a pass stand in their sequence, and how they reach the keys and values before them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from specprof.models.attention import EXPLICIT_ATTENTION_WIDTH, attention, causal_mask, fused_attention
from specprof.models.kv_cache import Slab

LayerViews: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of one layer: where new keys and new values are written, then all keys and all values that the pass attends,
``[kv_heads, entries, head_dim]`` each."""


class Rows(Protocol):
    """The tokens of one pass: as many rows in every matrix."""

    width: int
    end: int
    """Entries of the slab that the pass reads and writes: no row stands beyond."""

    @property
    def write(self) -> Callable[[Tensor, Tensor], object]:
        """Puts the second, ``[kv_heads, width, head_dim]``, into the first of two: where :data:`LayerViews` says."""
        ...

    def of(self, table: Tensor) -> Tensor:
        """``[width, ...]``: what a table by position holds for the rows."""
        ...

    def views(self, slab: Slab, first: int, last: int) -> Iterable[LayerViews]:
        """Of the layers first..last - 1."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float) -> Tensor:
        """``q [heads, width, head_dim]`` over the views ``k, v``; returns ``[heads, width, head_dim]``.

        Args:
            window: a row sees that many keys, its own included; None: all up to its own.
        """
        ...


class NextRows:
    """Tokens that follow the first ``start`` entries of a slab: the host knows where, and slices.

    Args:
        start: entries before them.
        width: how many tokens.
    """

    write = staticmethod(Tensor.copy_)

    def __init__(self, start: int, width: int) -> None:
        self.start, self.width, self.end = start, width, start + width
        self._masks: dict[int | None, Tensor] = {}

    def of(self, table: Tensor) -> Tensor:
        return table[self.start : self.end]

    def views(self, slab: Slab, first: int, last: int) -> Iterable[LayerViews]:
        assert slab.stacked is not None
        entries = slab.stacked[:, first:last, :, : self.end]
        keys, values = entries.unbind(0)
        new_keys, new_values = entries[:, :, :, self.start :].unbind(0)
        return zip(new_keys.unbind(0), new_values.unbind(0), keys.unbind(0), values.unbind(0), strict=True)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float) -> Tensor:
        if self.width == 1:
            if window is not None and k.shape[1] > window:
                k, v = k[:, -window:], v[:, -window:]
            return attention(q, k, v, None, scale)
        if self.start == 0 and self.width > EXPLICIT_ATTENTION_WIDTH and (window is None or self.width <= window):
            return fused_attention(q, k, v, None, scale)
        mask = self._mask(window, q.dtype, q.device)
        return (fused_attention if self.width > EXPLICIT_ATTENTION_WIDTH else attention)(q, k, v, mask, scale)

    def _mask(self, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Built once per distinct window among the layers."""
        if window is not None and self.end <= window:
            window = None
        mask = self._masks.get(window)
        if mask is None:
            mask = self._masks[window] = causal_mask(self.start, self.width, window, dtype=dtype, device=device)
        return mask
