"""Attention of a few rows over a slab whose filled length only the device knows.

A pass whose shapes may not depend on data attends a fixed number of slab entries (its bucket)
and hides those that its rows must not see: entries after a row's position, which are stale or
not written yet, and entries that a sliding window has left behind.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import statistics
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from specprof.errors import ResourceError

MAX_MEASURED_WIDTH = 32
"""Wider passes are no verify passes, and rare."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""How far attention of standard normal numbers may be from float64: a few roundings of scores and weights.

Of float32 those of TF32, which a user may have allowed.
"""

_ROW_TILE = 4
_UNSEEN = 1e4
_SAMPLE_BYTES = 128 << 20
_MOST_LAYERS = 64
_REPEATS = 5

_log = logging.getLogger("specprof")


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


def candidates() -> dict[str, SlabAttention]:
    """The functions to choose from; those that can't run here raise."""
    from specprof.models.split_kv import split_kv

    return {"explicit": explicit, "varlen": varlen, "split_kv": split_kv}


# --- the choice


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What a choice is made for: ``width`` rows of ``heads`` over ``bucket`` entries of ``kv_heads``."""

    heads: int
    kv_heads: int
    width: int
    dim: int
    bucket: int
    window: int | None
    dtype: torch.dtype

    def __str__(self) -> str:
        window = "" if self.window is None else f" (window {self.window})"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.width} over {self.bucket}{window}, {self.heads}/{self.kv_heads} heads of {self.dim}, {dtype}"


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out of a measurement.

    Attributes:
        seconds: per layer, of each function that may be used.
        left_out: the others, and why.
    """

    seconds: dict[str, float]
    left_out: dict[str, str]

    @property
    def fastest(self) -> str | None:
        return min(self.seconds, key=lambda name: self.seconds[name], default=None)


Timer: TypeAlias = Callable[[Callable[[], object]], float]
"""Seconds that a piece of work takes."""


class AttentionChoice:
    """The attention function to use for each shape of pass, measured on CUDA when the shape is first met.

    Every candidate is first held against float64: what raises or is off is left out, and the fastest of
    the others is used from then on. :func:`explicit` serves everything that isn't measured: the CPU, wide
    passes, deterministic runs, and shapes first met while a CUDA graph is recorded or a function compiled.

    Args:
        measure: False keeps :func:`explicit` for every shape, which makes runs repeatable to the last bit.
        functions: what to choose from; by default :func:`candidates`.
        timer: how to time; by default by replaying a CUDA graph, which is why nothing else is measured.
    """

    def __init__(
        self, *, measure: bool = True, functions: Mapping[str, SlabAttention] | None = None, timer: Timer | None = None
    ) -> None:
        self.measured: dict[AttentionShape, Measured] = {}
        self._measure, self._functions, self._timer = measure, functions, timer
        self._by_shape: dict[tuple[object, ...], SlabAttention] = {}

    def __call__(
        self, q: Tensor, keys: Tensor, values: Tensor, rows: SlabRows, window: int | None, scale: float
    ) -> Tensor:
        """As :func:`explicit`, by the function that is in use for these shapes."""
        return self.function(q, keys, rows, window)(q, keys, values, rows, window, scale)

    def function(self, q: Tensor, keys: Tensor, rows: SlabRows, window: int | None) -> SlabAttention:
        """The function to use, by the shapes of its arguments."""
        if not self._measure or (self._timer is None and not q.is_cuda):
            return explicit
        (heads, width, dim), kv_heads = q.shape, keys.shape[0]
        if width > MAX_MEASURED_WIDTH:
            return explicit
        window = rows.narrowing(window)
        shape = (heads, kv_heads, width, dim, rows.bucket, window, q.dtype)
        function = self._by_shape.get(shape)
        if function is None:
            if _only_recorded(q.device) or torch.are_deterministic_algorithms_enabled():
                return explicit
            function = self._fastest(AttentionShape(*shape), q.device)
            self._by_shape[shape] = function
        return function

    def chosen(self) -> dict[str, str]:
        """The functions measured so far, by shape in words: recorded with results."""
        return {str(shape): measured.fastest or "explicit" for shape, measured in self.measured.items()}

    def _fastest(self, shape: AttentionShape, device: torch.device) -> SlabAttention:
        functions = candidates() if self._functions is None else self._functions
        measured = measure(shape, functions, self._timer or replay_seconds, device)
        self.measured[shape] = measured
        for name, reason in measured.left_out.items():
            _log.debug("attention of %s: not by %s: %s", shape, name, reason)
        return explicit if measured.fastest is None else functions[measured.fastest]


def _only_recorded(device: torch.device) -> bool:
    """Whether operations now run are written down for later, by a compiler or a CUDA graph."""
    return torch.compiler.is_compiling() or (device.type == "cuda" and torch.cuda.is_current_stream_capturing())


def measure(
    shape: AttentionShape, functions: Mapping[str, SlabAttention], timer: Timer, device: torch.device
) -> Measured:
    """Check and time every function on slabs of random numbers."""
    seconds: dict[str, float] = {}
    left_out: dict[str, str] = {}
    on_device = torch.cuda.device(device if device.type == "cuda" else -1)
    # Not in inference mode: a graph allocates state of PyTorch's own generator, which could then not be seeded again.
    with on_device, torch.inference_mode(False), torch.no_grad():
        for name, function in functions.items():
            # Whatever a library or compiler does with shapes it doesn't know: the others remain.
            try:
                error = largest_error(shape, function, device)
                if error <= TOLERANCE[shape.dtype]:
                    seconds[name] = _seconds(shape, function, timer, device)
                else:
                    left_out[name] = f"off by {error:.2g}"
            except Exception as problem:
                left_out[name] = textwrap.shorten(str(problem) or type(problem).__name__, 120, placeholder=" ...")
    return Measured(seconds, left_out)


def largest_error(shape: AttentionShape, function: SlabAttention, device: torch.device) -> float:
    """The largest difference from float64 with few, some and all entries filled."""
    last_start = shape.bucket - shape.width
    return max(
        (_error(shape, function, start, device) for start in sorted({0, last_start // 3, last_start})),
        key=lambda error: math.inf if math.isnan(error) else error,
    )


def _error(shape: AttentionShape, function: SlabAttention, start: int, device: torch.device) -> float:
    q, slab = _random(shape, 1, device)
    keys, values = slab[0]
    # What no row sees is made so large that a function that looked at one entry of it would be found out.
    values[:, start + shape.width :] = _UNSEEN
    if shape.window is not None:
        values[:, : max(0, start - shape.window + 1)] = _UNSEEN
    positions = torch.arange(start, start + shape.width, device=device)
    scale = shape.dim**-0.5
    result = function(q, keys, values, SlabRows(positions, shape.bucket, shape.dtype), shape.window, scale)
    exact = SlabRows(positions, shape.bucket, torch.float64)
    groups = shape.heads // shape.kv_heads
    worst = 0.0
    for head in range(shape.kv_heads):  # one by one: in float64 a long slab is large
        own = slice(head * groups, (head + 1) * groups)
        one = slice(head, head + 1)
        expected = explicit(q[own].double(), keys[one].double(), values[one].double(), exact, shape.window, scale)
        error = float((result[own].double() - expected).abs().max())
        if not error <= worst:  # also if it is no number
            worst = error
            if math.isnan(error):
                break
    return worst


def _seconds(shape: AttentionShape, function: SlabAttention, timer: Timer, device: torch.device) -> float:
    """Seconds per layer, in a pass over as many layers as no cache holds."""
    of_one = 2 * shape.kv_heads * shape.bucket * shape.dim * shape.dtype.itemsize
    layers = min(_MOST_LAYERS, math.ceil(_SAMPLE_BYTES / of_one))
    q, slabs = _random(shape, layers, device)
    start = max(0, shape.bucket * 3 // 4 - shape.width)  # between two sizes of bucket, on average
    positions = torch.arange(start, start + shape.width, device=device)

    def work() -> None:
        rows = SlabRows(positions, shape.bucket, shape.dtype)  # masks are made once a pass
        for keys, values in slabs:
            function(q, keys, values, rows, shape.window, shape.dim**-0.5)

    return timer(work) / layers


def _random(shape: AttentionShape, layers: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Queries ``[heads, width, dim]`` and slabs ``[layers, 2, kv_heads, bucket, dim]``, the same every time."""
    generator = torch.Generator(device).manual_seed(0)  # the run's own random numbers are left alone

    def normal(*size: int) -> Tensor:
        return torch.empty(size, dtype=shape.dtype, device=device).normal_(generator=generator)

    return normal(shape.heads, shape.width, shape.dim), normal(layers, 2, shape.kv_heads, shape.bucket, shape.dim)


def replay_seconds(work: Callable[[], object]) -> float:
    """Seconds the GPU takes for ``work``, the median of a few: recorded, so that launching it costs nothing."""
    work()  # what is made on first use, such as a library's handles, can't be made while recording
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Other threads (who watches the device) may go on calling CUDA meanwhile.
    stream = _recording_stream(torch.cuda.current_device())
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        work()
    seconds: list[float] = []
    for repeat in range(_REPEATS + 1):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if repeat:  # the first is warm-up
            seconds.append(begin.elapsed_time(end) / 1000)
    return statistics.median(seconds)


@functools.cache
def _recording_stream(device: int) -> torch.cuda.Stream:
    """The default one stays with the device of a process's first graph; libraries keep work space for each stream."""
    return torch.cuda.Stream(device)
