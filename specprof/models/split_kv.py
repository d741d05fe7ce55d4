"""Attention of a few rows over a long slab, with the slab's length split over the whole GPU.

A few query rows make too little work for a GPU if one block of threads walks the whole slab for
each key head: most processors idle, and memory is read at a fraction of its speed. Here the slab
is cut into blocks of entries that are dealt out to several blocks of threads. Each keeps the
weighted sum of its values, its largest score and the sum of its weights; a second kernel merges
them. Only the device knows where the rows stand: blocks past the last row or before its window
are never read, and no shape depends on it.

How a row is summed up depends on shapes and on its own position alone, so a token gets the same bits
whichever row of a pass it is.
"""

from __future__ import annotations

import functools
import importlib.util
import math

import torch
from torch import Tensor

from specprof.errors import ResourceError
from specprof.models.slab_attention import SlabRows

MOST_ROWS = 128
"""Query rows that share a key head: more would not fit into one block of threads."""

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_BLOCK = 64
_SMALLEST_TILE = 16
_BLOCKS_PER_PROCESSOR = 2
_MOST_SPLITS = 64


@functools.cache
def available() -> str | None:
    """Why there is no Triton to compile the kernels with, or None if there is."""
    return None if importlib.util.find_spec("triton") is not None else "Triton is not installed"


def split_kv(q: Tensor, keys: Tensor, values: Tensor, rows: SlabRows, window: int | None, scale: float) -> Tensor:
    """As :func:`specprof.models.slab_attention.explicit`, in two kernels.

    Raises:
        ResourceError: Triton is not installed.
        ValueError: the shapes or the type are beyond what the kernels hold.
    """
    out: Tensor = _attend(q, keys, values, rows.positions, window, scale)
    return out


def _splits(kv_heads: int, bucket: int, device: torch.device) -> int:
    """Blocks of threads per key head: enough for all processors, not more than there are blocks of entries."""
    wanted = _BLOCKS_PER_PROCESSOR * _processors(device) // kv_heads
    return max(1, min(wanted, math.ceil(bucket / _BLOCK), _MOST_SPLITS))


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 8  # Triton's interpreter: enough for several splits
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


# An operator of its own, so that torch.compile takes it as it is and looks at nothing in it.
@torch.library.custom_op(
    "specprof::split_kv",
    mutates_args=(),
    schema="(Tensor q, Tensor keys, Tensor values, Tensor positions, int? window, float scale) -> Tensor",
)
def _attend(q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, window: int | None, scale: float) -> Tensor:
    if (missing := available()) is not None:
        raise ResourceError(missing, "pip install triton, where there is a CUDA GPU")
    (heads, width, dim), (kv_heads, bucket, _) = q.shape, keys.shape
    groups = heads // kv_heads
    rows = groups * width
    if rows > MOST_ROWS:
        raise ValueError(f"{rows} query rows share a key head, at most {MOST_ROWS} can")
    if q.dtype not in _DTYPES:
        raise ValueError(f"no kernel for {str(q.dtype).removeprefix('torch.')}")
    from specprof.models.split_kv_kernels import attend_part, merge_parts

    splits = _splits(kv_heads, bucket, q.device)
    q, keys, values = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, keys, values))
    parts = torch.empty(kv_heads, splits, rows, dim, dtype=torch.float32, device=q.device)
    tops, sums = torch.empty(2, kv_heads, splits, rows, dtype=torch.float32, device=q.device)
    out = torch.empty(heads, width, dim, dtype=q.dtype, device=q.device)
    padded_dim = max(_SMALLEST_TILE, _power_of_two(dim))
    with torch.cuda.device_of(q):  # Triton launches on the current device
        attend_part[kv_heads, splits](
            *(q, keys, values, positions, parts, tops, sums),
            *(q.stride(0), q.stride(1), keys.stride(0), keys.stride(1), values.stride(0), values.stride(1)),
            scale * math.log2(math.e),
            window or 0,
            WINDOWED=window is not None,
            WIDTH=width,
            GROUPS=groups,
            DIM=dim,
            SPLITS=splits,
            BLOCK=_BLOCK,
            PADDED_ROWS=max(_SMALLEST_TILE, _power_of_two(rows)),
            PADDED_DIM=padded_dim,
            num_warps=8 if rows > 64 else 4,
            num_stages=2,
        )
        merge_parts[kv_heads, rows](
            *(parts, tops, sums, out),
            ROWS=rows,
            DIM=dim,
            SPLITS=splits,
            PADDED_SPLITS=_power_of_two(splits),
            PADDED_DIM=padded_dim,
            num_warps=4,
        )
    return out


@_attend.register_fake
def _(q: Tensor, keys: Tensor, values: Tensor, positions: Tensor, window: int | None, scale: float) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _power_of_two(number: int) -> int:
    """The least one that is not below ``number``."""
    return 1 << (number - 1).bit_length()
