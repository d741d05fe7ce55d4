"""Our decoding against Hugging Face's, side by side in one process.

    python benchmarks/vs_hf.py [--json] [--k 1,2,4] [--max-new-tokens 96]

The packaged pair, greedy, float32, the same weights and prompts, a fixed length, and token-identical
output (checked). Hugging Face is set up to do the same work: its assistant drafts exactly K tokens
(constant schedule, no confidence stop), and neither model ends early. Each prompt is decoded by every
arm in turn; tokens per second are over the whole call, prefill included, because that is all
``generate`` tells; the median over repetitions counts.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from hf_generate import drafting, generate, without_end

from specprof.data.prompts import builtin, encode
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import DraftModel
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.models.loader import load_model
from specprof.models.wrapper import ModelWrapper
from specprof.profiling import machine

NEVER_STOPS: frozenset[int] = frozenset()
Generate = Callable[[list[int]], list[int]]
Arm = tuple[str, str]
"""``AR`` or ``K = 4``, and whose: ``hf`` or ``ours``."""


def hugging_face(target: Any, draft: Any | None, k: int, length: int) -> Generate:
    """``generate``, plain or assisted, for a fixed number of tokens."""

    def plain(prompt: list[int]) -> list[int]:
        with without_end(target):
            return generate(target, prompt, length)

    def assisted(prompt: list[int]) -> list[int]:
        with without_end(target, draft), drafting(draft, k):
            return generate(target, prompt, length, assistant_model=draft)

    return plain if draft is None else assisted


def ours(decoder: AutoregressiveDecoder | SpeculativeDecoder, length: int) -> Generate:
    return lambda prompt: decoder.generate(prompt, length, stop_ids=NEVER_STOPS).generated_ids


def arms(length: int, ks: Sequence[int]) -> tuple[dict[Arm, Generate], ModelWrapper]:
    """Every arm of both sides, and our target."""
    target_model, tokenizer = load_model("tiny_dev/target", "float32", "cpu")
    draft_model, _ = load_model("tiny_dev/draft", "float32", "cpu")
    # The own forward fuses projections in the models it is given; Hugging Face gets untouched copies.
    theirs, their_draft = copy.deepcopy(target_model), copy.deepcopy(draft_model)
    target, draft = ModelWrapper(target_model, tokenizer), ModelWrapper(draft_model, tokenizer)
    found: dict[Arm, Generate] = {
        ("AR", "hf"): hugging_face(theirs, None, 0, length),
        ("AR", "ours"): ours(AutoregressiveDecoder(target), length),
    }
    for k in ks:
        found[f"K = {k}", "hf"] = hugging_face(theirs, their_draft, k, length)
        found[f"K = {k}", "ours"] = ours(SpeculativeDecoder(target, DraftModel(draft), k), length)
    return found, target


def measure(length: int, ks: Sequence[int], num_prompts: int, repetitions: int) -> dict[str, Any]:
    """The document: tokens per second of every arm, and how many outputs differ."""
    runs, target = arms(length, ks)
    prompts = [encode(prompt, target.tokenizer) for prompt in builtin().take(num_prompts)]
    seconds: dict[Arm, list[list[float]]] = {arm: [[] for _ in prompts] for arm in runs}
    differing = 0
    for repetition in range(repetitions + 1):
        for index, prompt in enumerate(prompts):
            outputs = []
            for arm, run in runs.items():
                begin = perf_counter()
                outputs.append(run(prompt))
                if repetition:  # the first is warm-up
                    seconds[arm][index].append(perf_counter() - begin)
            differing += any(output != outputs[0] for output in outputs)
        print(f"repetition {repetition} of {repetitions}", file=sys.stderr)
    rates = {arm: length * len(prompts) / math.fsum(map(statistics.median, times)) for arm, times in seconds.items()}
    rows = {name: {"hf": rates[name, "hf"], "ours": rates[name, "ours"]} for name, side in runs if side == "ours"}
    return {
        "schema": "specprof.benchmark.vs_hf/1",
        "tokens_per_second": {name: row | {"ratio": row["ours"] / row["hf"]} for name, row in rows.items()},
        "prompts": len(prompts),
        "max_new_tokens": length,
        "repetitions": repetitions,
        "outputs_that_differ": differing,
        "linear": target.linear_forms,
        "machine": machine.describe(),
    }


def table(document: dict[str, Any]) -> str:
    lines = [f"{'tokens/s':<10}{'generate':>12}{'specprof':>12}{'ratio':>9}"]
    for name, row in document["tokens_per_second"].items():
        lines.append(f"{name:<10}{row['hf']:>12.0f}{row['ours']:>12.0f}{row['ratio']:>8.2f}x")
    lines.append(
        f"{document['prompts']} prompts x {document['max_new_tokens']} tokens, {document['repetitions']} repetitions; "
        f"outputs that differ: {document['outputs_that_differ']}"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", default="1,2,4", help="draft lengths")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    document = measure(args.max_new_tokens, tuple(map(int, args.k.split(","))), args.prompts, args.reps)
    print(json.dumps(document, indent=2) if args.json else table(document))
    sys.exit(1 if document["outputs_that_differ"] else 0)


if __name__ == "__main__":
    main()
