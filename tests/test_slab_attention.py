"""Attention over a slab: one result however it is computed, stale entries unseen, and a choice that trusts nobody."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dense_attention import dense, slab
from specprof.errors import ResourceError
from specprof.models import attention_choice
from specprof.models.attention_choice import (
    CANDIDATES,
    MAX_MEASURED_WIDTH,
    TOLERANCE,
    AttentionChoice,
    AttentionShape,
    largest_error,
    measure,
)
from specprof.models.slab_attention import SlabAttention, SlabRows, explicit, varlen, why_not_varlen
from specprof.models.split_kv import available, split_kv

torch.set_num_threads(1)

CPU = torch.device("cpu")
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
WINDOWS = [None, 1, 5, 1000]


def standing(start: int, width: int, bucket: int, dtype: torch.dtype, device: str = "cpu") -> SlabRows:
    return SlabRows(torch.arange(start, start + width, device=device), bucket, dtype)


# --- masks


@pytest.mark.parametrize("window", [None, 1, 3, 7, 8])
def test_a_row_sees_its_window_up_to_itself(window: int | None) -> None:
    bias = standing(2, 4, 8, torch.float32).bias(window)
    assert bias.dtype == torch.float32 and bias.shape == (4, 8)
    for row, at in enumerate(range(2, 6)):
        seen = {key for key in range(at + 1) if window is None or key > at - window}
        assert {key for key in range(8) if bias[row, key] == 0} == seen
        assert all(bias[row, key] == float("-inf") for key in range(8) if key not in seen)


def test_masks_are_made_once_per_window_that_hides_something() -> None:
    rows = standing(2, 3, 8, torch.bfloat16)
    assert rows.bias(None) is rows.bias(None) is rows.bias(8) is rows.bias(9)
    assert rows.bias(7) is rows.bias(7) is not rows.bias(None)
    packed = rows.packed_bias(7, 2)
    assert packed is rows.packed_bias(7, 2)
    assert torch.equal(packed, torch.cat((rows.bias(7), rows.bias(7))))


# --- explicit


@st.composite
def passes(draw: st.DrawFn) -> tuple[AttentionShape, int]:
    kv_heads, groups, width = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    bucket = draw(st.integers(width, 70))
    shape = AttentionShape(
        kv_heads * groups,
        kv_heads,
        width,
        draw(st.sampled_from([2, 8, 16])),
        bucket,
        draw(st.none() | st.integers(1, bucket + 2)),
        draw(st.sampled_from(list(CLOSE))),
    )
    return shape, draw(st.integers(0, bucket - width))


@settings(max_examples=150, deadline=None)
@given(passes(), st.integers(0, 2**31))
def test_explicit_is_dense_attention(case: tuple[AttentionShape, int], seed: int) -> None:
    """Over all shapes, windows and positions, stale entries after the rows included."""
    shape, start = case
    q, keys, values = slab(
        shape.heads, shape.kv_heads, shape.width, shape.dim, shape.bucket, start, shape.dtype, seed=seed
    )
    rows = standing(start, shape.width, shape.bucket, shape.dtype)
    scale = shape.dim**-0.5
    result = explicit(q, keys, values, rows, shape.window, scale)
    assert result.dtype == shape.dtype
    expected = dense(q, keys, values, start, shape.window, scale)
    torch.testing.assert_close(result.double(), expected, atol=CLOSE[shape.dtype], rtol=CLOSE[shape.dtype])


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", list(CLOSE))
def test_stale_entries_change_not_a_bit(dtype: torch.dtype, window: int | None) -> None:
    q, keys, values = slab(4, 2, 3, 8, 64, 20, dtype)
    rows = standing(20, 3, 64, dtype)
    stale = explicit(q, keys, values, rows, window, 0.3)
    keys[:, 23:], values[:, 23:] = 0.0, -1.0
    assert torch.equal(explicit(q, keys, values, rows, window, 0.3), stale)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("dtype", list(CLOSE))
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "dim"), [(2, 2, 5, 16), (8, 2, 3, 64), (6, 2, 9, 32), (4, 4, 2, 64), (7, 1, 3, 16)]
)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_depends_on_its_own_token_and_position_alone(
    threads: int, heads: int, kv_heads: int, width: int, dim: int, dtype: torch.dtype, window: int | None
) -> None:
    torch.set_num_threads(threads)
    try:
        assert_rows_are_invariant(explicit, heads, kv_heads, width, dim, 64, dtype, window)
    finally:
        torch.set_num_threads(1)


def assert_rows_are_invariant(
    function: SlabAttention,
    heads: int,
    kv_heads: int,
    width: int,
    dim: int,
    bucket: int,
    dtype: torch.dtype,
    window: int | None,
    device: str = "cpu",
) -> None:
    """To the bit: neither what the other rows hold nor which row of a pass a token is changes its result."""
    start = bucket // 3
    whole = slab(heads, kv_heads, width, dim, bucket, start, dtype, device=device)
    result = function(*whole, standing(start, width, bucket, dtype, device), window, dim**-0.5)
    for row in range(width):
        q, keys, values = slab(heads, kv_heads, width, dim, bucket, start + row, dtype, seed=1, device=device)
        seen = start + row + 1
        q[:, 0] = whole[0][:, row]
        keys[:, :seen], values[:, :seen] = whole[1][:, :seen], whole[2][:, :seen]
        # the same token as the first row of a pass whose later rows hold other tokens
        first = function(q, keys, values, standing(start + row, width, bucket, dtype, device), window, dim**-0.5)
        assert torch.equal(first[:, 0], result[:, row])
        # and at its row of a pass whose other rows hold other tokens
        q, keys, values = slab(heads, kv_heads, width, dim, bucket, start, dtype, seed=2, device=device)
        q[:, row] = whole[0][:, row]
        keys[:, :seen], values[:, :seen] = whole[1][:, :seen], whole[2][:, :seen]
        same = function(q, keys, values, standing(start, width, bucket, dtype, device), window, dim**-0.5)
        assert torch.equal(same[:, row], result[:, row])


# --- varlen


def documented_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
) -> Tensor:
    """What ``torch.nn.attention.varlen.varlen_attn`` is documented to do, for one sequence."""
    assert all(t.dtype == torch.int32 for t in (cu_seq_q, cu_seq_k, seqused_k))
    width, heads, _ = query.shape
    assert cu_seq_q.tolist() == [0, width] and max_q == width
    assert cu_seq_k.tolist() == [0, key.shape[0]] and max_k == key.shape[0]
    assert enable_gqa == (heads != key.shape[1])
    left, right = window_size
    used = int(seqused_k)
    q_at = torch.arange(width).unsqueeze(1) + used - width  # aligned at the end
    k_at = torch.arange(used)
    hidden = k_at > q_at + right
    if left >= 0:
        hidden |= k_at < q_at - left
    repeated = [t[:used].repeat_interleave(heads // key.shape[1], 1).double() for t in (key, value)]
    scores = torch.einsum("qhd,khd->hqk", query.double(), repeated[0]) * scale
    weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), -1)
    return torch.einsum("hqk,khd->qhd", weights, repeated[1]).to(query.dtype)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_varlen_asks_for_the_same_attention(
    heads: int, kv_heads: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel is CUDA's; what it is told is what the documentation says leads to the same result."""
    module = pytest.importorskip("torch.nn.attention.varlen")
    if (reason := why_not_varlen()) is not None:
        pytest.skip(reason)
    real = inspect.signature(module.varlen_attn)

    def stand_in(*arguments: Any, **named: Any) -> Tensor:
        real.bind(*arguments, **named)
        return documented_varlen(*arguments, **named)

    monkeypatch.setattr(module, "varlen_attn", stand_in)
    for start in (0, 13, 28):
        q, keys, values = slab(heads, kv_heads, 4, 8, 32, start, torch.float64)
        result = varlen(q, keys, values, standing(start, 4, 32, torch.float64), window, 0.3)
        torch.testing.assert_close(result, dense(q, keys, values, start, window, 0.3), atol=1e-12, rtol=1e-12)


def test_an_older_pytorch_is_told_from_its_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("torch.nn.attention.varlen")

    def older(query: Tensor, key: Tensor, value: Tensor, *, window_size: Any, scale: Any) -> None: ...

    monkeypatch.setattr(module, "varlen_attn", older)
    why_not_varlen.cache_clear()
    try:
        reason = why_not_varlen()
        assert reason is not None and "enable_gqa, seqused_k" in reason
        with pytest.raises(ResourceError, match="enable_gqa, seqused_k"):
            varlen(*slab(2, 2, 1, 8, 8, 0, torch.float16), standing(0, 1, 8, torch.float16), None, 1.0)
    finally:
        why_not_varlen.cache_clear()


# --- the choice


@pytest.fixture(autouse=True)
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_choice, "_SAMPLE_BYTES", 1 << 16)


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def slow(*arguments: Any) -> Tensor:
    time.sleep(1e-3)
    return explicit(*arguments)


def slower(*arguments: Any) -> Tensor:
    time.sleep(4e-3)
    return explicit(*arguments)


def raising(*arguments: Any) -> Tensor:
    raise RuntimeError("no kernel for these shapes\nand a long story")


def one_more(q: Tensor, keys: Tensor, values: Tensor, rows: SlabRows, window: int | None, scale: float) -> Tensor:
    """Its window is one entry too wide."""
    return explicit(q, keys, values, rows, None if window is None else window + 1, scale)


def aligned_at_the_start(
    q: Tensor, keys: Tensor, values: Tensor, rows: SlabRows, window: int | None, scale: float
) -> Tensor:
    return explicit(
        q, keys, values, SlabRows(rows.positions - rows.positions[0], rows.bucket, rows.dtype), window, scale
    )


def unscaled(q: Tensor, keys: Tensor, values: Tensor, rows: SlabRows, window: int | None, scale: float) -> Tensor:
    return explicit(q, keys, values, rows, window, 1.0)


def no_number(q: Tensor, *others: Any) -> Tensor:
    return torch.full_like(q, float("nan"))


def heads_mixed_up(q: Tensor, *others: Any) -> Tensor:
    return explicit(q.flip(0), *others).flip(0)


WRONG = {f.__name__: f for f in (one_more, aligned_at_the_start, unscaled, no_number, heads_mixed_up)}
SHAPE = AttentionShape(4, 2, 3, 16, 48, 9, torch.float32)


def call(choice: AttentionChoice, width: int = 3, window: int | None = None) -> Tensor:
    q, keys, values = slab(4, 2, width, 16, 48, 20, torch.float32)
    return choice(q, keys, values, standing(20, width, 48, torch.float32), window, 0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_function_is_found_out(name: str, dtype: torch.dtype) -> None:
    shape = AttentionShape(4, 2, 3, 16, 48, 9, dtype)
    measured = measure(shape, {"explicit": explicit, name: WRONG[name]}, seconds, CPU)
    assert list(measured.seconds) == ["explicit"]
    assert measured.left_out[name].startswith("off by ")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bucket", [64, 4096])
def test_one_stale_entry_is_found_out_in_a_long_slab(bucket: int, dtype: torch.dtype) -> None:
    def sees_the_next(q: Tensor, keys: Tensor, values: Tensor, rows: SlabRows, *others: Any) -> Tensor:
        return explicit(q, keys, values, SlabRows(rows.positions + 1, rows.bucket, rows.dtype), *others)

    shape = AttentionShape(2, 1, 2, 16, bucket, None, dtype)
    assert not largest_error(shape, sees_the_next, CPU) <= TOLERANCE[dtype]
    assert largest_error(shape, explicit, CPU) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("window", [None, 1, 100])
def test_rounding_passes(window: int | None, dtype: torch.dtype) -> None:
    assert largest_error(AttentionShape(8, 2, 5, 64, 512, window, dtype), explicit, CPU) <= TOLERANCE[dtype]


def test_what_raises_is_left_out_with_its_reason() -> None:
    measured = measure(SHAPE, {"explicit": explicit, "raising": raising}, seconds, CPU)
    assert measured.left_out == {"raising": "no kernel for these shapes and a long story"}
    assert measured.fastest == "explicit"


def test_what_raises_while_it_is_timed_is_left_out() -> None:
    def refusing(work: Callable[[], object]) -> float:
        raise RuntimeError("can't be recorded")

    measured = measure(SHAPE, {"slow": slow}, refusing, CPU)
    assert measured.fastest is None and measured.left_out == {"slow": "can't be recorded"}


def test_the_fastest_is_used_from_then_on() -> None:
    choice = AttentionChoice(functions={"slower": slower, "raising": raising, "slow": slow}, timer=seconds)
    assert choice.chosen() == {}
    torch.testing.assert_close(call(choice), call(AttentionChoice()))
    assert choice.chosen() == {"3 over 48, 4/2 heads of 16, float32": "slow"}
    [measured] = choice.measured.values()
    assert measured.seconds["slow"] < measured.seconds["slower"]
    assert list(measured.left_out) == ["raising"]


def test_each_shape_is_measured_once() -> None:
    works: list[int] = []

    def counting(work: Callable[[], object]) -> float:
        works.append(1)
        return seconds(work)

    choice = AttentionChoice(functions={"explicit": explicit}, timer=counting)
    for _ in range(3):
        call(choice)
    assert len(works) == 1
    call(choice, window=48)  # hides nothing: the same shape
    assert len(works) == 1
    call(choice, window=47)
    call(choice, width=2)
    assert len(works) == 3
    assert list(choice.chosen()) == [
        "3 over 48, 4/2 heads of 16, float32",
        "3 over 48 (window 47), 4/2 heads of 16, float32",
        "2 over 48, 4/2 heads of 16, float32",
    ]


def test_explicit_serves_if_nothing_else_is_left() -> None:
    choice = AttentionChoice(functions={"raising": raising}, timer=seconds)
    assert torch.equal(call(choice), call(AttentionChoice()))
    assert list(choice.chosen().values()) == ["explicit"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_the_cpu_explicit_is_used_unmeasured(dtype: torch.dtype) -> None:
    choice = AttentionChoice()
    q, keys, values = slab(4, 2, 3, 16, 48, 20, dtype)
    rows = standing(20, 3, 48, dtype)
    assert choice.function(q, keys, rows, None) is explicit
    assert torch.equal(choice(q, keys, values, rows, None, 0.25), explicit(q, keys, values, rows, None, 0.25))
    assert choice.chosen() == {}


def test_unless_asked_or_where_kernels_are_deterministic_nothing_is_measured() -> None:
    slow_only = {"slow": slow}
    choice = AttentionChoice(measure=False, functions=slow_only, timer=seconds)
    call(choice)
    assert choice.chosen() == {}
    choice = AttentionChoice(functions=slow_only, timer=seconds)
    torch.use_deterministic_algorithms(True)
    try:
        call(choice)
        assert choice.chosen() == {}
    finally:
        torch.use_deterministic_algorithms(False)
    call(choice)
    assert list(choice.chosen().values()) == ["slow"]


def test_wide_passes_are_explicit() -> None:
    choice = AttentionChoice(functions={"slow": slow}, timer=seconds)
    q, keys, _ = slab(2, 2, MAX_MEASURED_WIDTH + 1, 8, 64, 0, torch.float32)
    rows = standing(0, MAX_MEASURED_WIDTH + 1, 64, torch.float32)
    assert choice.function(q, keys, rows, None) is explicit
    assert choice.function(q[:, :-1], keys, standing(0, MAX_MEASURED_WIDTH, 64, torch.float32), None) is slow


def test_measuring_leaves_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    call(AttentionChoice(functions={"explicit": explicit}, timer=seconds))
    assert torch.equal(torch.rand(4), expected)


def test_a_compiled_function_takes_what_was_chosen_and_never_measures() -> None:
    choice = AttentionChoice(functions={"slow": explicit}, timer=seconds)

    def attend(q: Tensor, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
        return choice(q, keys, values, SlabRows(positions, 48, torch.float32), None, 0.25)

    compiled = torch.compile(attend, fullgraph=True, dynamic=False, backend="eager")
    q, keys, values = slab(4, 2, 3, 16, 48, 20, torch.float32)
    positions = torch.arange(20, 23)
    expected = explicit(q, keys, values, SlabRows(positions, 48, torch.float32), None, 0.25)
    assert torch.equal(compiled(q, keys, values, positions), expected)
    assert choice.chosen() == {}
    attend(q, keys, values, positions)
    assert list(choice.chosen().values()) == ["slow"]
    torch.compiler.reset()
    assert torch.equal(compiled(q, keys, values, positions), expected)


# --- on a GPU

ON_GPU = [
    # GPT-2 XL, TinyLlama, Llama-3-8B, Phi-3-mini with its window
    (25, 25, 6, 64, 1024, None),
    (32, 4, 1, 64, 512, None),
    (32, 4, 9, 64, 2048, None),
    (32, 8, 5, 128, 4096, None),
    (32, 32, 3, 96, 4096, 2047),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["explicit", "varlen", "split_kv"])
@pytest.mark.parametrize(("heads", "kv_heads", "width", "dim", "bucket", "window"), ON_GPU)
def test_every_function_is_right_on_a_gpu(
    heads: int, kv_heads: int, width: int, dim: int, bucket: int, window: int | None, name: str, dtype: torch.dtype
) -> None:
    if name == "varlen" and (dtype == torch.float32 or why_not_varlen() is not None):
        pytest.skip("no such kernel")
    if name == "split_kv" and (reason := available()) is not None:
        pytest.skip(reason)
    shape = AttentionShape(heads, kv_heads, width, dim, bucket, window, dtype)
    assert largest_error(shape, CANDIDATES[name], torch.device("cuda")) <= TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads", "width", "dim", "bucket", "window"), ON_GPU)
def test_split_kv_rows_are_invariant_on_a_gpu(
    heads: int, kv_heads: int, width: int, dim: int, bucket: int, window: int | None, dtype: torch.dtype
) -> None:
    if (reason := available()) is not None:
        pytest.skip(reason)
    assert_rows_are_invariant(split_kv, heads, kv_heads, width, dim, bucket, dtype, window, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_choice_is_measured_on_a_gpu_and_replayed_at_other_positions(dtype: torch.dtype) -> None:
    choice = AttentionChoice()
    q, keys, values = slab(32, 8, 5, 128, 2048, 2043, dtype, device="cuda")
    positions = torch.arange(100, 105, device="cuda")

    def attend() -> Tensor:
        return choice(q, keys, values, SlabRows(positions, 2048, dtype), None, 128**-0.5)

    attend()
    [measured] = choice.measured.values()
    assert {"explicit", "split_kv"} <= measured.seconds.keys() | measured.left_out.keys()
    assert "explicit" in measured.seconds, measured.left_out
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend()
    for start in (0, 700, 2043):
        positions.copy_(torch.arange(start, start + 5))
        graph.replay()
        expected = dense(q, keys, values, start, None, 128**-0.5)
        torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=0)
    torch.manual_seed(0)  # the recordings left the state of PyTorch's own generator to be written to
