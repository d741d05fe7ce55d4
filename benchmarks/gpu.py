"""How close decoding comes to what a GPU can do, and what it is held up by.

    python benchmarks/gpu.py [--json] [-o FILE] [--shapes gpt2_dev,...] [--engines eager,static,graph]
    python benchmarks/gpu.py --device cpu --quick

Takes under 8 minutes on a data-centre GPU. Models have their true shapes and random weights, so nothing is downloaded;
tokens are accepted with a fixed probability (``--acceptance``), which leaves the cost of a round as it is. The packaged
pair, which is trained, shows acceptance that is real, and text that is Hugging Face's token for token.

Seconds per token are those after the first: a generation of N tokens less one of 8, over the N - 8. Every arm is warm
before it is timed, arms take turns, medians count. Speculation and Hugging Face's assisted generation are compared by
the seconds of a round that drafts equally many tokens: at equal acceptance, rounds yield equally many.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from gpu_arms import ENGINES, QUICK_SHAPES, SHAPES, Document, Plan, Shape
from gpu_packaged import measure_packaged
from gpu_probes import attention_times, copy_bandwidth, linear_rows, tiny_kernel_seconds
from gpu_shape import measure_shape
from gpu_table import must_reach, render

from specprof.errors import SpecprofError
from specprof.models.devices import choose_device
from specprof.profiling import machine

SCHEMA = "specprof.benchmark.gpu/1"


def benchmark(plan: Plan, shapes: Sequence[Shape], *, quick: bool) -> Document:
    """Everything that fits the time, as one document."""
    begin = perf_counter()
    device = plan.device
    bandwidth = copy_bandwidth(device, 2**24 if quick else 2**30)
    kernel_seconds = tiny_kernel_seconds(device)
    found: dict[str, Document] = {}
    for shape in shapes:
        if not plan.has_time(shape.name, 0 if quick else 30):
            continue
        say(f"{shape.name} ({perf_counter() - begin:.0f} s)")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        document = plan.attempt(shape.name, partial(measure_shape, shape, plan, bandwidth, kernel_seconds))
        if document is not None:
            found[shape.name] = document
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    say(f"packaged pair ({perf_counter() - begin:.0f} s)")
    packaged = plan.attempt("packaged pair", lambda: measure_packaged(plan)) if plan.has_time("packaged pair") else None
    say(f"attention and matrix products ({perf_counter() - begin:.0f} s)")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    size, lengths = (256, (64,)) if quick else (4096, (512, 2048, 8192))
    attention = plan.attempt(
        "attention",
        lambda: attention_times(
            device, dtype, heads=32, kv_heads=8, dim=32 if quick else 128, lengths=lengths, widths=(1, 5)
        ),
    )
    linear = plan.attempt("rows of a matrix product", lambda: linear_rows(device, dtype, size, size))
    document = {
        "schema": SCHEMA,
        "device": str(device),
        "quick": quick,
        "acceptance": plan.acceptance,
        "prompt_tokens": plan.prompt_tokens,
        "new_tokens": plan.new_tokens,
        "copy_bytes_per_second": bandwidth,
        "tiny_kernel_seconds": kernel_seconds,
        "shapes": found,
        "packaged": packaged,
        "attention": attention,
        "linear_rows": linear,
        "skipped": plan.skipped,
        "seconds": perf_counter() - begin,
        "machine": machine.describe(),
    }
    document["must_reach"] = must_reach(document)
    return document


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cuda, cuda:1, cpu; by default the GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="toy sizes: that everything runs, not how fast")
    parser.add_argument("--shapes", help=f"of {', '.join(shape.name for shape in SHAPES)}; by default all")
    parser.add_argument("--engines", default="eager,static,graph", help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--k", default="2,4", help="draft lengths")
    parser.add_argument("--acceptance", type=float, default=0.8, help="probability that a drafted token is accepted")
    parser.add_argument("--seconds", type=float, default=440.0, help="what would begin later is left out")
    parser.add_argument("--json", action="store_true", help="print the document instead of the table")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the document to FILE as well")
    args = parser.parse_args(arguments)
    engines = tuple(args.engines.split(","))
    if unknown := [engine for engine in engines if engine not in ENGINES]:
        parser.error(f"there is no engine {unknown[0]!r}; engines: {', '.join(ENGINES)}")
    wanted = None if args.shapes is None else args.shapes.split(",")
    if unknown := [name for name in wanted or () if name not in [shape.name for shape in SHAPES]]:
        parser.error(f"there is no shape {unknown[0]!r}; shapes: {', '.join(shape.name for shape in SHAPES)}")
    try:
        device = choose_device(args.device)
    except SpecprofError as error:
        parser.error(f"{error.message}; {error.hint}")
    if device.type != "cuda" and not args.quick:
        parser.error("the true shapes are for a GPU; --device cpu --quick runs everything at toy sizes")
    plan = Plan(
        device,
        engines,
        tuple(map(int, args.k.split(","))),
        args.acceptance,
        prompt_tokens=16 if args.quick else 128,
        new_tokens=64 if args.quick else 128,
        repetitions=3,
        num_layers=2 if args.quick else None,
        deadline=perf_counter() + args.seconds,
    )
    shapes = [s for s in (QUICK_SHAPES if args.quick else SHAPES) if wanted is None or s.name in wanted]
    document = benchmark(plan, shapes, quick=args.quick)
    if args.output is not None:
        args.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=2) if args.json else render(document))
    if not document["shapes"]:
        sys.exit("error: no shape could be measured; why is noted above")


if __name__ == "__main__":
    main()
