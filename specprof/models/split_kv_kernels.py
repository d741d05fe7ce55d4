"""The Triton kernels of :mod:`specprof.models.split_kv`, which is where to read what they do.

Imported only where Triton is. Names in capitals are constants of a compiled kernel.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton compiles annotations too, and knows none but its own.

from __future__ import annotations

import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def attend_part(
    q,  # [heads, WIDTH, DIM]
    keys,  # [kv_heads, bucket, DIM]
    values,
    positions,  # [WIDTH] int64, consecutive
    parts,  # [kv_heads, SPLITS, GROUPS * WIDTH, DIM] float32
    tops,  # [kv_heads, SPLITS, GROUPS * WIDTH] float32
    sums,
    q_head,  # strides
    q_row,
    key_head,
    key_entry,
    value_head,
    value_entry,
    scale,  # times log2(e): exponentials are taken to base 2
    window,
    WINDOWED: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED_ROWS: tl.constexpr,
    PADDED_DIM: tl.constexpr,
):
    """The rows of one key head over every SPLITS-th block of entries: weighted sum, largest score, sum of weights."""
    kv_head = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    row = tl.arange(0, PADDED_ROWS)
    dim = tl.arange(0, PADDED_DIM)
    is_row = row < GROUPS * WIDTH
    is_dim = dim < DIM

    first = tl.load(positions).to(tl.int32)
    last = first + WIDTH - 1
    position = first + row % WIDTH
    begin = 0
    if WINDOWED:
        begin = tl.maximum(first - window + 1, 0) // BLOCK

    head = kv_head * GROUPS + row // WIDTH
    query_at = q + head[:, None] * q_head + (row % WIDTH)[:, None] * q_row + dim[None, :]
    query = tl.load(query_at, mask=is_row[:, None] & is_dim[None, :], other=0.0)

    top = tl.full([PADDED_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([PADDED_ROWS], tl.float32)
    part = tl.zeros([PADDED_ROWS, PADDED_DIM], tl.float32)
    # Blocks are dealt out in turns, so that every split has work however little of the bucket is filled.
    mine = begin + (split + SPLITS - begin % SPLITS) % SPLITS
    for block in range(mine, last // BLOCK + 1, SPLITS):
        entry = block * BLOCK + tl.arange(0, BLOCK)
        held = entry <= last
        key_at = keys + kv_head * key_head + entry[None, :] * key_entry + dim[:, None]
        key = tl.load(key_at, mask=held[None, :] & is_dim[:, None], other=0.0)
        scores = tl.dot(query, key, input_precision="ieee") * scale
        seen = entry[None, :] <= position[:, None]
        if WINDOWED:
            seen = seen & (entry[None, :] > position[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))

        higher = tl.maximum(top, tl.max(scores, 1))
        # A row that has seen nothing yet would subtract -inf from -inf.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        keep = tl.exp2(top - base)
        total = total * keep + tl.sum(weights, 1)
        value_at = values + kv_head * value_head + entry[:, None] * value_entry + dim[None, :]
        value = tl.load(value_at, mask=held[:, None] & is_dim[None, :], other=0.0)
        part = tl.dot(weights.to(value.dtype), value, acc=part * keep[:, None], input_precision="ieee")
        top = higher

    at = (kv_head * SPLITS + split) * (GROUPS * WIDTH) + row
    tl.store(tops + at, top, mask=is_row)
    tl.store(sums + at, total, mask=is_row)
    tl.store(parts + at[:, None] * DIM + dim[None, :], part, mask=is_row[:, None] & is_dim[None, :])


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def merge_parts(
    parts,  # [kv_heads, SPLITS, ROWS, DIM] float32
    tops,  # [kv_heads, SPLITS, ROWS] float32
    sums,
    out,  # [kv_heads, ROWS, DIM], contiguous
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    PADDED_SPLITS: tl.constexpr,
    PADDED_DIM: tl.constexpr,
):
    """One row from its parts."""
    kv_head = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1)
    split = tl.arange(0, PADDED_SPLITS)
    dim = tl.arange(0, PADDED_DIM)
    is_split = split < SPLITS
    is_dim = dim < DIM

    at = (kv_head * SPLITS + split) * ROWS + row
    top = tl.load(tops + at, mask=is_split, other=float("-inf"))
    share = tl.exp2(top - tl.max(top, 0))  # the largest is finite: a row sees its own key
    total = tl.sum(share * tl.load(sums + at, mask=is_split, other=0.0), 0)
    part_at = parts + at[:, None] * DIM + dim[None, :]
    part = tl.load(part_at, mask=is_split[:, None] & is_dim[None, :], other=0.0)
    merged = tl.sum(part * share[:, None], 0) / total
    tl.store(out + (kv_head * ROWS + row) * DIM + dim, merged.to(out.dtype.element_ty), mask=is_dim)
