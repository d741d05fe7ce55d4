"""What measuring costs, and what does not depend on the context.

    python benchmarks/overhead.py [--json]

1. The instrumented loop (clock, events, fold) over a bare loop that does the same forwards and keeps
   nothing but tokens, interleaved, on the packaged pair.
2. Rolling back a cache at several context lengths.
3. ``specprof --help`` as a process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from time import perf_counter

import torch

from specprof.data.prompts import builtin, encode
from specprof.decoding.drafters import DraftModel
from specprof.decoding.request import Request
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.models.loader import load_model
from specprof.models.wrapper import ModelWrapper
from specprof.profiling import machine


@torch.inference_mode()
def bare(target: ModelWrapper, draft: ModelWrapper, prompt: list[int], length: int, k: int) -> list[int]:
    """Greedy speculative decoding that records nothing."""
    total = len(prompt) + length
    cache, drafter = target.new_cache(total), DraftModel(draft)
    logits = target.extend(torch.tensor(prompt), cache)
    drafter.start(Request(tuple(prompt), length), detail=False)
    tokens = [int(logits.argmax(-1).item())]
    drafter.observe(tokens)
    while len(tokens) < length:
        before = cache.length
        proposal = drafter.propose(min(k, length - len(tokens) - 1)).tokens
        ids = torch.cat((torch.tensor((tokens[-1],)), proposal))
        chosen = target.extend(ids, cache, ids.shape[0]).argmax(-1).tolist()
        drafted = proposal.tolist()
        accepted = next((i for i, token in enumerate(drafted) if token != chosen[i]), len(drafted))
        emitted = [*drafted[:accepted], chosen[accepted]]
        cache.truncate(before + len(emitted))
        drafter.observe(emitted)
        tokens.extend(emitted)
    return tokens


def instrumentation(target: ModelWrapper, draft: ModelWrapper, prompts: list[list[int]], repetitions: int) -> float:
    """Seconds of the instrumented loop over seconds of the bare one: median over prompts of paired ratios."""
    length, k = 96, 4
    decoder = SpeculativeDecoder(target, DraftModel(draft), k)
    ratios = []
    for prompt in prompts:
        times: dict[str, list[float]] = {"bare": [], "instrumented": []}
        for repetition in range(repetitions + 1):
            outputs = []
            for name in sorted(times, reverse=bool(repetition % 2)):
                begin = perf_counter()
                if name == "bare":
                    outputs.append(bare(target, draft, prompt, length, k))
                else:
                    outputs.append(decoder.generate(prompt, length, stop_ids=frozenset()).generated_ids)
                if repetition:
                    times[name].append(perf_counter() - begin)
            assert outputs[0] == outputs[1]
        ratios.append(statistics.median(times["instrumented"]) / statistics.median(times["bare"]))
    return statistics.median(ratios)


@torch.inference_mode()
def rollback(target: ModelWrapper, contexts: tuple[int, ...]) -> dict[int, float]:
    """Microseconds to roll a cache back by 4 entries, by context length."""
    result = {}
    for context in contexts:
        cache = target.new_cache(context)
        target.extend(torch.zeros(context, dtype=torch.long), cache)
        times = []
        for _ in range(2000):
            begin = perf_counter()
            cache.truncate(context - 4)
            times.append(perf_counter() - begin)
            cache.length = context
        result[context] = statistics.median(times) * 1e6
    return result


def help_seconds() -> float:
    """Wall time of ``specprof --help``: median of 7 processes."""
    times = []
    for _ in range(7):
        begin = perf_counter()
        subprocess.run([sys.executable, "-m", "specprof", "--help"], check=True, capture_output=True)
        times.append(perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    target_model, tokenizer = load_model("tiny_dev/target", "float32", "cpu")
    draft_model, _ = load_model("tiny_dev/draft", "float32", "cpu")
    target, draft = ModelWrapper(target_model, tokenizer), ModelWrapper(draft_model, tokenizer)
    prompts = [encode(prompt, tokenizer) for prompt in builtin().take(12)]
    by_context = rollback(target, (16, 128, 1024))
    document = {
        "schema": "specprof.benchmark.overhead/1",
        "instrumented_over_bare": instrumentation(target, draft, prompts, args.reps),
        "rollback_microseconds": by_context,
        "help_seconds": help_seconds(),
        "machine": machine.describe(),
    }
    if args.json:
        print(json.dumps(document, indent=2))
        return
    print(f"instrumented loop over bare loop   {document['instrumented_over_bare']:.3f}")
    for context, microseconds in by_context.items():
        print(f"rollback at context {context:<5}          {microseconds:.2f} us")
    print(f"specprof --help                    {document['help_seconds']:.2f} s")


if __name__ == "__main__":
    main()
