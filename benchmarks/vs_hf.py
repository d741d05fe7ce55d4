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
from collections.abc import Callable
from time import perf_counter

import torch

from specprof.data.prompts import builtin, encode
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import DraftModel
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.models.loader import load_model
from specprof.models.wrapper import ModelWrapper
from specprof.profiling import machine

NEVER_STOPS: frozenset[int] = frozenset()
Generate = Callable[[list[int]], list[int]]


def hugging_face(target: object, draft: object | None, k: int, length: int) -> Generate:
    """``generate``, plain or assisted, for a fixed number of tokens.

    The assistant's settings are read from the assistant's own generation config, end-of-sequence too.
    """
    target = copy.deepcopy(target)
    target.generation_config.eos_token_id = None  # type: ignore[attr-defined]
    options: dict[str, object] = {}
    if draft is not None:
        draft = copy.deepcopy(draft)
        config = draft.generation_config  # type: ignore[attr-defined]
        config.eos_token_id = None
        config.num_assistant_tokens = k
        config.num_assistant_tokens_schedule = "constant"
        config.assistant_confidence_threshold = 0.0
        options["assistant_model"] = draft

    def generate(prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        output = target.generate(  # type: ignore[attr-defined]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, pad_token_id=0, **options
        )
        tokens: list[int] = output[0, len(prompt) :].tolist()
        return tokens

    return generate


def ours(decoder: AutoregressiveDecoder | SpeculativeDecoder, length: int) -> Generate:
    return lambda prompt: decoder.generate(prompt, length, stop_ids=NEVER_STOPS).generated_ids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", default="1,2,4", help="draft lengths")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    target_model, tokenizer = load_model("tiny_dev/target", "float32", "cpu")
    draft_model, _ = load_model("tiny_dev/draft", "float32", "cpu")
    # The own forward fuses projections in the models it is given; Hugging Face gets untouched copies.
    reference_target, reference_draft = copy.deepcopy(target_model), copy.deepcopy(draft_model)
    target, draft = ModelWrapper(target_model, tokenizer), ModelWrapper(draft_model, tokenizer)
    prompts = [encode(prompt, tokenizer) for prompt in builtin().take(args.prompts)]
    length: int = args.max_new_tokens

    pairs = {
        "AR": (
            hugging_face(reference_target, None, 0, length),
            ours(AutoregressiveDecoder(target), length),
        )
    }
    for k in map(int, args.k.split(",")):
        pairs[f"K = {k}"] = (
            hugging_face(reference_target, reference_draft, k, length),
            ours(SpeculativeDecoder(target, DraftModel(draft), k), length),
        )
    arms = {(name, side): run for name, both in pairs.items() for side, run in zip(("hf", "ours"), both, strict=True)}

    seconds: dict[tuple[str, str], list[list[float]]] = {arm: [[] for _ in prompts] for arm in arms}
    differing = 0
    for repetition in range(args.reps + 1):
        for index, prompt in enumerate(prompts):
            outputs = []
            for arm, run in arms.items():
                begin = perf_counter()
                outputs.append(run(prompt))
                if repetition:  # the first is warm-up
                    seconds[arm][index].append(perf_counter() - begin)
            differing += any(output != outputs[0] for output in outputs)
        print(f"repetition {repetition} of {args.reps}", file=sys.stderr)

    def rate(arm: tuple[str, str]) -> float:
        return length * len(prompts) / math.fsum(statistics.median(times) for times in seconds[arm])

    rows = {
        name: {
            "hf": rate((name, "hf")),
            "ours": rate((name, "ours")),
            "ratio": rate((name, "ours")) / rate((name, "hf")),
        }
        for name in pairs
    }
    if args.json:
        document = {
            "schema": "specprof.benchmark.vs_hf/1",
            "tokens_per_second": rows,
            "prompts": len(prompts),
            "max_new_tokens": length,
            "repetitions": args.reps,
            "outputs_that_differ": differing,
            "linear": target.linear_forms,
            "machine": machine.describe(),
        }
        print(json.dumps(document, indent=2))
    else:
        print(f"{'tokens/s':<10}{'generate':>12}{'specprof':>12}{'ratio':>9}")
        for name, row in rows.items():
            print(f"{name:<10}{row['hf']:>12.0f}{row['ours']:>12.0f}{row['ratio']:>8.2f}x")
        print(f"{len(prompts)} prompts x {length} tokens, {args.reps} repetitions; outputs that differ: {differing}")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
