"""Attention of a few rows over a slab whose filled length only the device knows.

A pass whose shapes may not depend on data attends a fixed number of slab entries (its bucket)
and hides those that its rows must not see: entries after a row's position, which are stale or
not written yet, and entries that a sliding window has left behind.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from specprof.errors import ResourceError

_ROW_TILE = 4


class SlabRows:
    """Where the rows of one pass stand, and what they see. Masks are built once per distinct window.

    Args:
        positions: ``[width]`` int64, consecutive: row i is at ``positions[i]`` and its own key is there.
        bucket: number of slab entries attended; every position is less than it.
        dtype: of the model, and so of the masks.
    """

    __slots__ = ("_lengths", "_packed", "bucket", "dtype", "positions")

    def __init__(self, positions: Tensor, bucket: int, dtype: torch.dtype) -> None:
        self.positions, self.bucket, self.dtype = positions, bucket, dtype
        self._packed: dict[tuple[int | None, int, int], Tensor] = {}
        self._lengths: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def width(self) -> int:
        return self.positions.shape[0]

    def bias(self, window: int | None) -> Tensor:
        """Additive ``[width, bucket]``: 0 where a row sees the key, -inf elsewhere.

        Args:
            window: a row sees the last ``window`` keys up to its own; None: all of them.
        """
        return self.packed_bias(window, 1)

    def packed_bias(self, window: int | None, groups: int, spare: int = 0) -> Tensor:
        """:meth:`bias` for the rows of ``groups`` query heads below each other: ``[groups * width + spare, bucket]``.

        Args:
            spare: rows after them that see everything.
        """
        window = self.narrowing(window)
        bias = self._packed.get((window, groups, spare))
        if bias is None:
            if spare:
                bias = F.pad(self.packed_bias(window, groups), (0, 0, 0, spare))
            else:
                bias = self._visible(window) if groups == 1 else self.packed_bias(window, 1).repeat(groups, 1)
            self._packed[window, groups, spare] = bias
        return bias

    def narrowing(self, window: int | None) -> int | None:
        """The window if there are entries it hides, else None."""
        return window if window is not None and window < self.bucket else None

    def lengths(self) -> tuple[Tensor, Tensor, Tensor]:
        """The rows as one sequence among several, int32: its starts and ends among rows ``[2]`` and among entries
        ``[2]``, and how many entries are filled ``[1]``."""
        if self._lengths is None:
            like = {"dtype": torch.int32, "device": self.positions.device}
            self._lengths = (
                torch.arange(0, 2 * self.width, self.width, **like),  # type: ignore[call-overload]  # hidden by **
                torch.arange(0, 2 * self.bucket, self.bucket, **like),  # type: ignore[call-overload]  # hidden by **
                (self.positions[-1:] + 1).int(),
            )
        return self._lengths

    def _visible(self, window: int | None) -> Tensor:
        age = self.positions.unsqueeze(1) - torch.arange(self.bucket, device=self.positions.device)
        hidden = age < 0
        if window is not None:
            hidden |= age >= window
        bias = torch.zeros(hidden.shape, dtype=self.dtype, device=hidden.device)
        return bias.masked_fill_(hidden, float("-inf"))


SlabAttention: TypeAlias = Callable[[Tensor, Tensor, Tensor, SlabRows, int | None, float], Tensor]
"""``(q [heads, width, dim], keys, values [kv_heads, bucket, dim], rows, window, scale) -> [heads, width, dim]``"""


def explicit(q: Tensor, keys: Tensor, values: Tensor, rows: SlabRows, window: int | None, scale: float) -> Tensor:
    """Three plain operations: scores, softmax (in float32 for 16-bit types), weighted sum.

    Args:
        q: ``[heads, width, dim]``.
        keys, values: ``[kv_heads, bucket, dim]``; each head serves heads / kv_heads query heads.
        rows: where the query rows stand.
        window: how many keys a row sees, its own included; None: all up to its own.
        scale: of the scores, usually 1/sqrt(dim).

    Returns:
        ``[heads, width, dim]``
    """
    heads, width, dim = q.shape
    groups = heads // keys.shape[0]
    # Query heads that share a key head become rows of one product, instead of the keys being repeated.
    packed = q.reshape(keys.shape[0], groups * width, dim)
    spare = _spare_rows(packed)
    if spare:
        packed = F.pad(packed, (0, 0, 0, spare))
    scores = torch.baddbmm(rows.packed_bias(window, groups, spare), packed, keys.transpose(1, 2), alpha=scale)
    weights = torch.softmax(scores, -1, dtype=torch.float32 if scores.dtype.itemsize < 4 else None).to(values.dtype)
    return torch.bmm(weights, values)[:, : groups * width].reshape(heads, width, dim)


def _spare_rows(packed: Tensor) -> int:
    """Rows to add to ``packed [kv_heads, rows, dim]`` for a row's result not to depend on which row it is.

    MKL takes rows in tiles and sums up differently in a last one that is not full: in float64 always, in float32
    in a product of its own, among several products not, in 16-bit types not (measured with one to eight threads).
    """
    products, number, _ = packed.shape
    itemsize = packed.dtype.itemsize
    alike = packed.device.type != "cpu" or itemsize < 4 or (itemsize < 8 and products > 1) or number <= _ROW_TILE
    return 0 if alike else -number % _ROW_TILE


def varlen(q: Tensor, keys: Tensor, values: Tensor, rows: SlabRows, window: int | None, scale: float) -> Tensor:
    """As :func:`explicit`, by PyTorch's kernel for sequences of several lengths, given one; CUDA and 16 bits only.

    Raises:
        ResourceError: this PyTorch's kernel takes no lengths from the device.
    """
    if (missing := why_not_varlen()) is not None:
        raise ResourceError(missing, "use a newer PyTorch")
    from torch.nn.attention.varlen import varlen_attn

    query_starts, key_starts, filled = rows.lengths()
    out = varlen_attn(
        q.transpose(0, 1),
        keys.transpose(0, 1),
        values.transpose(0, 1),
        query_starts,
        key_starts,
        rows.width,
        rows.bucket,
        scale=scale,
        # How many keys before its own a row sees, and none after it; rows stand at the end of what is filled.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[0] != keys.shape[0],
        seqused_k=filled,
    )
    assert isinstance(out, Tensor)  # a pair only where more is asked for
    return out.transpose(0, 1)


@functools.cache
def why_not_varlen() -> str | None:
    """Why PyTorch's variable-length attention can't serve a slab, or None if it can."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return f"PyTorch {torch.__version__} has no variable-length attention"
    missing = {"seqused_k", "window_size", "enable_gqa", "scale"} - inspect.signature(varlen_attn).parameters.keys()
    if missing:
        return f"the variable-length attention of PyTorch {torch.__version__} has no {', '.join(sorted(missing))}"
    return None
