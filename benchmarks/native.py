"""The forward in C against the one in PyTorch, step by step, on the packaged pair.

    python benchmarks/native.py [--json] [--context 300] [--reps 5]

1. Microseconds of one pass by how many tokens it takes in, for each step from PyTorch's operations to what runs by
   default: all layers in one call on one thread, on all threads, weights in 16 bits. Of the packaged target, which
   the processor's cache may hold, and of GPT-2 (124M; random weights), which it doesn't.
2. A draft of 4 tokens, the likeliest or drawn: pass by pass, and in one call.
3. Decoding speed, plain and speculative, with either forward, in turn on the same prompts; outputs are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from specprof.data.prompts import builtin, encode
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import DraftModel
from specprof.decoding.sampling import Sampling, draw, probabilities, uniforms
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.models.kv_cache import KVCache
from specprof.models.loader import load_model
from specprof.models.native import forward as native
from specprof.models.random_weights import random_model
from specprof.models.wrapper import ForwardName, ModelWrapper
from specprof.profiling import machine

WIDTHS = (1, 2, 3, 5, 9)
MODELS = {"tiny_dev/target": 200, "gpt2": 20}
"""How many passes of each are timed."""
DRAFTED, DRAFTS = 4, 200
STEPS: tuple[tuple[str, ForwardName, bool, int | None], ...] = (
    ("PyTorch's operations", "own", False, None),
    ("one call into C, one thread", "native", False, 1),
    ("all threads", "native", False, None),
    ("weights in 16 bits", "native", True, None),
)
"""What it is called, whose forward, weights in 16 bits where they fit, how many threads (None: all)."""
FORWARDS: tuple[ForwardName, ForwardName] = ("own", "native")
NEVER_STOPS: frozenset[int] = frozenset()


def wrapped(model_id: str, forward: ForwardName, *, sixteen_bits: bool = True) -> ModelWrapper:
    """A model on one of our forwards, its weights in 16 bits where that loses nothing, or not."""
    if model_id == "gpt2":
        model, tokenizer = random_model(model_id, "float32", torch.device("cpu"), seed=0, num_layers=None), None
        for parameter in model.parameters():  # as if they came from a checkpoint in 16 bits
            parameter.data = parameter.data.half().float()
    else:
        model, tokenizer = load_model(model_id, "float32", "cpu")
    narrowest = native.narrowest
    if not sixteen_bits:
        native.narrowest = lambda weight: torch.float32
    try:
        return ModelWrapper(model, tokenizer, forward=forward)
    finally:
        native.narrowest = narrowest


@torch.inference_mode()
def microseconds(
    call: Callable[[ModelWrapper, KVCache], object], model: ModelWrapper, context: int, calls: int
) -> float:
    """Of one call on top of so many tokens: the median of many."""
    cache = model.new_cache(context + 16)
    model.extend(torch.arange(context), cache)
    times = []
    for _ in range(calls):
        cache.truncate(context)
        begin = perf_counter()
        call(model, cache)
        times.append(perf_counter() - begin)
    return statistics.median(times[calls // 10 :]) * 1e6  # the first ones choose how products are formed


def taking_in(width: int) -> Callable[[ModelWrapper, KVCache], object]:
    ids = torch.arange(width)
    return lambda model, cache: model.extend(ids, cache, width)


def passes(model_id: str, context: int) -> dict[str, dict[int, float]]:
    """Microseconds by step and tokens."""
    rows = {}
    all_threads = torch.get_num_threads()
    for name, forward, sixteen_bits, threads in STEPS:
        torch.set_num_threads(threads or all_threads)
        model = wrapped(model_id, forward, sixteen_bits=sixteen_bits)
        rows[name] = {w: microseconds(taking_in(w), model, context, MODELS[model_id]) for w in WIDTHS}
    torch.set_num_threads(all_threads)
    return rows


def drafts(context: int) -> dict[str, dict[str, float]]:
    """Microseconds of a draft, its tokens the likeliest ones or drawn at temperature 1, by how it is made."""
    first, generator = torch.arange(1), torch.Generator()
    pytorch, in_c = (wrapped("tiny_dev/draft", forward) for forward in FORWARDS)
    for model in (pytorch, in_c):
        microseconds(taking_in(1), model, context, DRAFTS)

    def stepwise(choose: Callable[[Tensor], Tensor]) -> Callable[[ModelWrapper, KVCache], None]:
        def draft(model: ModelWrapper, cache: KVCache) -> None:
            ids = first
            for _ in range(DRAFTED):
                ids = choose(model.extend(ids, cache))

        return draft

    def drawn_at_once(model: ModelWrapper, cache: KVCache) -> None:
        model.extend_with_laws(first, cache, DRAFTED, 1.0, uniforms((DRAFTED,), generator))

    ways: dict[str, tuple[Callable[[ModelWrapper, KVCache], object], ...]] = {
        "greedy": (
            stepwise(lambda logits: logits.argmax(-1)),
            lambda model, cache: model.extend_greedily(first, cache, DRAFTED),
        ),
        "drawn": (stepwise(lambda logits: draw(probabilities(logits, Sampling(1.0)), generator)), drawn_at_once),
    }
    return {
        "PyTorch's operations": {name: microseconds(way[0], pytorch, context, DRAFTS) for name, way in ways.items()},
        "one call into C a token": {name: microseconds(way[0], in_c, context, DRAFTS) for name, way in ways.items()},
        "one call into C": {name: microseconds(way[1], in_c, context, DRAFTS) for name, way in ways.items()},
    }


def speeds(num_prompts: int, length: int, repetitions: int) -> tuple[dict[str, dict[str, float]], int]:
    """Decoded tokens per second by forward and arm, prefill left out; and how many outputs differ."""
    arms: dict[tuple[str, str], AutoregressiveDecoder | SpeculativeDecoder] = {}
    for forward in FORWARDS:
        target = wrapped("tiny_dev/target", forward)
        draft = wrapped("tiny_dev/draft", forward)
        arms[forward, "AR"] = AutoregressiveDecoder(target)
        for k in (1, 2, 4):
            arms[forward, f"K = {k}"] = SpeculativeDecoder(target, DraftModel(draft), k)
    tokenizer = target.tokenizer
    prompts = [encode(prompt, tokenizer) for prompt in builtin().take(num_prompts)]
    seconds: dict[tuple[str, str], list[list[float]]] = {key: [[] for _ in prompts] for key in arms}
    differing = 0
    for repetition in range(repetitions + 1):
        for index, prompt in enumerate(prompts):
            outputs = []
            for key, decoder in arms.items():
                result = decoder.generate(prompt, length, stop_ids=NEVER_STOPS)
                outputs.append(result.generated_ids)
                if repetition:  # the first is warm-up
                    seconds[key][index].append(result.decode_seconds)
            differing += any(output != outputs[0] for output in outputs)
        print(f"repetition {repetition} of {repetitions}", file=sys.stderr)
    rows: dict[str, dict[str, float]] = {}
    for (whose, arm), times in seconds.items():
        rate = (length - 1) * len(prompts) / sum(map(statistics.median, times))
        rows.setdefault(arm, {})[whose] = rate
    return rows, differing


def measure(context: int, num_prompts: int, length: int, repetitions: int) -> dict[str, Any]:
    """The document."""
    by_model, by_draft = {model: passes(model, context) for model in MODELS}, drafts(context)
    by_arm, differing = speeds(num_prompts, length, repetitions)
    return {
        "schema": "specprof.benchmark.native/1",
        "pass_microseconds": by_model,
        "draft_microseconds": by_draft,
        "tokens_per_second": by_arm,
        "outputs_that_differ": differing,
        "context": context,
        "prompts": num_prompts,
        "max_new_tokens": length,
        "machine": machine.describe(),
    }


def table(document: dict[str, Any]) -> str:
    lines: list[str] = []
    for model, by_step in document["pass_microseconds"].items():
        lines.append(f"{f'{model}, us a pass':<30}" + "".join(f"{f'{width} tok':>9}" for width in WIDTHS))
        lines += [f"{name:<30}" + "".join(f"{row[width]:>9.0f}" for width in WIDTHS) for name, row in by_step.items()]
        lines.append("")
    lines.append(f"{f'draft, us for {DRAFTED} tokens':<30}{'greedy':>9}{'drawn':>9}")
    lines += [
        f"{name:<30}" + "".join(f"{us:>9.0f}" for us in row.values())
        for name, row in document["draft_microseconds"].items()
    ]
    lines += ["", f"{'decode, tokens/s':<30}{'PyTorch':>9}{'C':>9}{'ratio':>9}"]
    for arm, rates in document["tokens_per_second"].items():
        lines.append(f"{arm:<30}{rates['own']:>9.0f}{rates['native']:>9.0f}{rates['native'] / rates['own']:>8.2f}x")
    lines.append(
        f"after {document['context']} tokens of context, and {document['prompts']} prompts x "
        f"{document['max_new_tokens']} tokens; outputs that differ: {document['outputs_that_differ']}"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=300)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    why = wrapped("tiny_dev/target", "auto").why_not_native
    if why is not None:
        sys.exit(f"there is nothing to compare: {why}")
    document = measure(args.context, args.prompts, args.max_new_tokens, args.reps)
    print(json.dumps(document, indent=2) if args.json else table(document))


if __name__ == "__main__":
    main()
