"""Run the split-KV kernels with Triton's interpreter and print, for each case, how far off they are.

Started by test_split_kv.py in a process of its own: Triton decides at its import whether to interpret.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from dense_attention import dense, slab
from specprof.models.attention_choice import AttentionChoice
from specprof.models.slab_attention import SlabAttention, SlabRows
from specprof.models.split_kv import split_kv

torch.set_num_threads(1)

# heads, kv_heads, width, dim, bucket: one split and several, dims and rows that fill no tile, GQA
SHAPES = [(4, 4, 1, 64, 64), (8, 2, 3, 16, 300), (8, 1, 9, 80, 200), (3, 3, 5, 24, 1024)]
DTYPES = [torch.float32, torch.float16]  # the interpreter multiplies no bfloat16


def result_at(
    function: SlabAttention, start: int, window: int | None, q: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    rows = SlabRows(torch.arange(start, start + q.shape[1]), keys.shape[1], q.dtype)
    return function(q, keys, values, rows, window, q.shape[2] ** -0.5)


def errors() -> list[tuple[str, float]]:
    found = []
    for dtype in DTYPES:
        for heads, kv_heads, width, dim, bucket in SHAPES:
            for start, window in ((0, None), (70, 5), (bucket - width, None), (bucket - width, 100), (33, 1)):
                if start + width > bucket:
                    continue
                q, keys, values = slab(heads, kv_heads, width, dim, bucket, start, dtype)
                result = result_at(split_kv, start, window, q, keys, values)
                expected = dense(q, keys, values, start, window, dim**-0.5)
                case = f"{dtype} {heads}/{kv_heads} heads of {dim}, {width} at {start} of {bucket}, window {window}"
                found.append((case, float((result.double() - expected).abs().max())))
    return found


def row_differences() -> list[tuple[str, bool]]:
    """Whether a token's bits depend on which row of a pass it is, or on the other rows."""
    found = []
    for dtype in DTYPES:
        for window in (None, 40):
            whole = slab(6, 2, 4, 16, 400, 126, dtype)
            result = result_at(split_kv, 126, window, *whole)
            for row in range(4):
                q, keys, values = slab(6, 2, 4, 16, 400, 126 + row, dtype, seed=1)
                seen = 127 + row
                q[:, 0] = whole[0][:, row]
                keys[:, :seen], values[:, :seen] = whole[1][:, :seen], whole[2][:, :seen]
                first = result_at(split_kv, 126 + row, window, q, keys, values)
                found.append((f"{dtype} row {row}, window {window}", torch.equal(first[:, 0], result[:, row])))
    return found


def compiled_error() -> float:
    """torch.compile takes the kernels as one operator."""

    def attend(q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
        return split_kv(q, keys, values, SlabRows(positions, 128, torch.float32), None, 0.25)

    q, keys, values = slab(4, 2, 2, 16, 128, 90, torch.float32)
    compiled = torch.compile(attend, fullgraph=True, dynamic=False, backend="aot_eager")
    result = compiled(q, keys, values, torch.arange(90, 92))
    return float((result.double() - dense(q, keys, values, 90, None, 0.25)).abs().max())


def measured() -> dict[str, str]:
    """What a choice between all functions says of those that can't run here, and that split_kv passes its check."""
    choice = AttentionChoice(timer=lambda work: 1.0)
    q, keys, values = slab(4, 2, 2, 16, 128, 90, torch.float16)
    result_at(choice, 90, None, q, keys, values)
    [outcome] = choice.measured.values()
    return {name: "" for name in outcome.seconds} | outcome.left_out


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "errors": errors(),
                "rows": row_differences(),
                "compiled": compiled_error(),
                "measured": measured(),
            }
        )
    )
