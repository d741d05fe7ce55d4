"""What a device can do at best, measured without a model: the floors that rows of ``benchmarks/gpu.py`` stand on."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F

from specprof.errors import SpecprofError
from specprof.models.attention_choice import CANDIDATES, AttentionChoice
from specprof.models.slab_attention import SlabAttention, SlabRows, explicit

Work = Callable[[], object]
Rows = list[dict[str, Any]]


def seconds_of(work: Work, device: torch.device, *, inner: int = 20, repetitions: int = 7) -> float:
    """Median seconds of one call. On CUDA ``inner`` calls are one graph, so that launches are no part of it."""
    if device.type != "cuda":
        for _ in range(2):
            work()
        times = []
        for _ in range(repetitions):
            begin = perf_counter()
            work()
            times.append(perf_counter() - begin)
        return statistics.median(times)
    replay = _captured(work, inner)
    replay()
    torch.cuda.synchronize()
    spans: list[float] = []
    for _ in range(repetitions):
        begin_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin_event.record()
        replay()
        end_event.record()
        end_event.synchronize()
        spans.append(begin_event.elapsed_time(end_event) / 1e3 / inner)
    return statistics.median(spans)


def _captured(work: Work, inner: int) -> Work:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(inner):
            work()
    return graph.replay


def copy_bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes read and written per second by copying a tensor larger than any cache; the best of a few."""
    source = torch.ones(num_bytes // 4, device=device)
    place = torch.empty_like(source)
    return max(2 * num_bytes / seconds_of(lambda: place.copy_(source), device, inner=4) for _ in range(3))


def tiny_kernel_seconds(device: torch.device) -> float | None:
    """What a kernel that does nothing worth mentioning takes inside a graph, of a long chain; None without graphs."""
    if device.type != "cuda":
        return None
    number = torch.zeros(64, device=device)
    return seconds_of(lambda: number.add_(1), device, inner=1000)


@torch.inference_mode()
def linear_rows(device: torch.device, dtype: torch.dtype, out: int, into: int, most: int = 16) -> Rows:
    """``F.linear`` of 1 to ``most`` rows: its time, and whether a row's result is the same to the last bit wherever
    the row stands, and however many rows there are."""
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(out, into, generator=generator) / into**0.5).to(device, dtype)
    x = torch.randn(most, into, generator=generator).to(device, dtype)
    alone = F.linear(x[:1], weight)[0]
    rows = []
    for width in range(1, most + 1):
        some = x[:width].contiguous()
        product = F.linear(some, weight)
        turned = F.linear(some.flip(0).contiguous(), weight).flip(0)
        rows.append(
            {
                "width": width,
                "seconds": seconds_of(partial(F.linear, some, weight), device, inner=4),
                "same_wherever_it_stands": torch.equal(product, turned),
                "same_as_alone": torch.equal(product[0], alone),
            }
        )
    return rows


@torch.inference_mode()
def attention_times(
    device: torch.device,
    dtype: torch.dtype,
    *,
    heads: int,
    kv_heads: int,
    dim: int,
    lengths: Sequence[int],
    widths: Sequence[int],
) -> Rows:
    """Seconds of every attention there is to choose from, and its largest error against float64."""
    rows = []
    for length in lengths:
        generator = torch.Generator().manual_seed(length)
        keys, values = (torch.randn(kv_heads, length, dim, generator=generator).to(device, dtype) for _ in range(2))
        for width in widths:
            q = torch.randn(heads, width, dim, generator=generator).to(device, dtype)
            positions = torch.arange(length - width, length, device=device)
            rows64 = SlabRows(positions, length, torch.float64)
            exact = explicit(q.double(), keys.double(), values.double(), rows64, None, dim**-0.5)
            attentions: dict[str, SlabAttention] = {**CANDIDATES, "choice": AttentionChoice()}
            for name, attend in attentions.items():
                # Masks are built once per pass, which has many layers: they are no part of this.
                where = SlabRows(positions, length, dtype)
                row: dict[str, Any] = {"length": length, "width": width, "attention": name}
                try:
                    found = attend(q, keys, values, where, None, dim**-0.5)
                    again = partial(attend, q, keys, values, where, None, dim**-0.5)
                    row |= {"seconds": seconds_of(again, device), "error": float((found.double() - exact).abs().max())}
                except (SpecprofError, RuntimeError, ValueError) as error:
                    row |= {"seconds": None, "error": None, "why": str(error).splitlines()[0]}
                rows.append(row)
    return rows


def num_kernels(work: Work, device: torch.device) -> int | None:
    """Kernels, copies and fills that one call launches; None where that is not CUDA."""
    if device.type != "cuda":
        return None
    from torch.autograd import DeviceType  # type: ignore[attr-defined]  # it is there
    from torch.profiler import ProfilerActivity, profile

    work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        work()
        torch.cuda.synchronize()
    return len([event for event in found.events() or () if event.device_type == DeviceType.CUDA])


def launch_seconds(work: Work, device: torch.device) -> float | None:
    """What the host takes to launch one call, whenever the device gets to it; None where that is not CUDA."""
    if device.type != "cuda":
        return None
    times = []
    for _ in range(12):
        torch.cuda.synchronize()
        begin = perf_counter()
        work()
        times.append(perf_counter() - begin)
    return statistics.median(times[2:])
