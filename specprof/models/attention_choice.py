"""Which attention over a slab is right on this GPU, and of those the fastest: tried out once for each shape of pass."""

from __future__ import annotations

import functools
import logging
import math
import statistics
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from specprof.models.slab_attention import SlabAttention, SlabRows, explicit, varlen
from specprof.models.split_kv import split_kv

MAX_MEASURED_WIDTH = 32
"""Wider passes are no verify passes, and rare."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""How far attention of standard normal numbers may be from float64: a few roundings of scores and weights.

Of float32 those of TF32, which a user may have allowed.
"""

_UNSEEN = 1e4
"""What entries are filled with that no row may look at."""
_SAMPLE_BYTES = 128 << 20
_MOST_LAYERS = 64
_REPEATS = 5

CANDIDATES: Mapping[str, SlabAttention] = {"explicit": explicit, "varlen": varlen, "split_kv": split_kv}
"""The functions to choose from; those that can't run here raise."""

_log = logging.getLogger("specprof")


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
        functions: what to choose from; by default :data:`CANDIDATES`.
        timer: how to time; by default by replaying a CUDA graph, which is why nothing else is measured.
    """

    def __init__(
        self, *, measure: bool = True, functions: Mapping[str, SlabAttention] = CANDIDATES, timer: Timer | None = None
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
        measured = measure(shape, self._functions, self._timer or replay_seconds, device)
        self.measured[shape] = measured
        for name, reason in measured.left_out.items():
            _log.debug("attention of %s: not by %s: %s", shape, name, reason)
        return explicit if measured.fastest is None else self._functions[measured.fastest]


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
