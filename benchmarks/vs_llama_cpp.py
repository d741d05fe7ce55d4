"""Our decoding on the CPU against llama.cpp's, side by side.

    python benchmarks/vs_llama_cpp.py --bin DIR      the folder of llama.cpp's programs
    python benchmarks/vs_llama_cpp.py --python       llama-cpp-python

The packaged pair, greedy, a fixed length, the same token ids in. Ours decodes in float32; llama.cpp with float32
weights, and with float16 weights beside it, both with the cache type and attention that it chooses by itself. For
each prompt every arm of both sides is run in turn, several times; tokens per second are of decoding alone, the
prompt's pass left out on both sides, from the median over repetitions of each prompt. Texts are compared with our
plain decoding's; llama.cpp rounds its cache to float16, so that near ties may fall the other way.

With --bin the seconds are those that the programs print: llama-bench for plain decoding (passes only: no token is
chosen, and its text is random, behind a random prompt of the same length) and llama-speculative-simple. With --python
llama.cpp's passes run in loops of this benchmark. Prompts whose text ends before the length are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from gguf_of import write_gguf
from llama_binaries import Binaries, Decoded
from llama_bindings import Bindings

from specprof.data.prompts import PromptDataset, builtin, encode
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import DraftModel
from specprof.decoding.request import Request
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.errors import SpecprofError, UnavailableError, UsageError
from specprof.models import hub
from specprof.models.loader import load_model
from specprof.models.wrapper import ModelWrapper
from specprof.profiling import machine
from specprof.profiling.events import Prefilled, Round

OURS, FLOAT32, FLOAT16 = "specprof float32", "llama.cpp float32", "llama.cpp float16"
SIDES = (OURS, FLOAT32, FLOAT16)
Decodings = list[list[Decoded]]
"""By prompt, then by repetition."""

WHAT_TO_INSTALL = """\
There is no llama.cpp to compare with: name yours.

  --bin DIR   the folder of its programs llama-bench and llama-speculative-simple
                git clone https://github.com/ggml-org/llama.cpp
                cd llama.cpp
                cmake -B build -DCMAKE_BUILD_TYPE=Release
                cmake --build build --parallel --target llama-bench llama-speculative-simple
              and then --bin llama.cpp/build/bin
  --python    its Python bindings
                pip install llama-cpp-python

Either way the packaged models are written for it with the gguf package: pip install gguf
"""


def ours(decoder: AutoregressiveDecoder | SpeculativeDecoder, prompt: list[int], length: int) -> Decoded:
    """One prompt through our loop, timed from the first token to the last, measuring and all. As in llama.cpp's
    figures, drafted and accepted count every round."""
    events = decoder.events(Request(tuple(prompt), length))
    first = next(events)
    begin = perf_counter()
    rounds = [event for event in events if isinstance(event, Round)]
    seconds = perf_counter() - begin
    assert isinstance(first, Prefilled)
    tokens = (first.first_token, *(token for round in rounds for token in round.emitted_tokens))
    drafted, accepted = sum(len(round.draft_tokens) for round in rounds), sum(round.num_accepted for round in rounds)
    return Decoded(len(tokens) - 1, seconds, drafted, accepted, tokens)


def tokens_per_second(decoded: Decodings) -> float:
    """Over all prompts, from each prompt's median seconds per token."""
    seconds = [statistics.median(one.seconds / one.num_tokens for one in repetitions) for repetitions in decoded]
    return len(seconds) / math.fsum(seconds)


def acceptance(decoded: Decodings) -> float | None:
    drafted = sum(one.num_drafted for repetitions in decoded for one in repetitions)
    return sum(one.num_accepted for repetitions in decoded for one in repetitions) / drafted if drafted else None


def equal_texts(decoded: Decodings, texts: list[tuple[int, ...]]) -> int | None:
    """Prompts whose text is ``texts``' in every repetition, None if the tool writes none of its own."""
    if any(one.tokens is None for repetitions in decoded for one in repetitions):
        return None
    return sum(
        all(one.tokens is not None and one.tokens[: len(text)] == text for one in repetitions)
        for repetitions, text in zip(decoded, texts, strict=True)
    )


def measure(args: argparse.Namespace, models: Path) -> dict[str, Any]:
    """The document: every figure by arm (AR, K = 1, ...) and side."""
    threads: int = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    theirs = Bindings(models, threads) if args.python else Binaries(args.bin, models, threads)
    for role in ("target", "draft"):
        for dtype in ("float32", "float16"):
            write_gguf(hub.resolve(f"tiny_dev/{role}").directory, models / f"{role}-{dtype}.gguf", dtype)

    target_model, tokenizer = load_model("tiny_dev/target", "float32", "cpu")
    draft_model, _ = load_model("tiny_dev/draft", "float32", "cpu")
    target, draft = ModelWrapper(target_model, tokenizer), ModelWrapper(draft_model, tokenizer)
    plain = AutoregressiveDecoder(target)
    decoders: dict[int, AutoregressiveDecoder | SpeculativeDecoder] = {0: plain}
    decoders |= {k: SpeculativeDecoder(target, DraftModel(draft), k) for k in args.k}

    length: int = args.max_new_tokens
    encoded = (encode(prompt, tokenizer) for prompt in in_turn(builtin()))
    continued = ((ids, tuple(plain.generate(ids, length).generated_ids)) for ids in encoded)
    taken = list(islice((both for both in continued if goes_on(both[1], length, target.eos_token_ids)), args.prompts))
    if not taken:
        raise UsageError(f"no prompt's text is {length} tokens long", "ask for fewer with --max-new-tokens")
    prompts, texts = [ids for ids, _ in taken], [text for _, text in taken]

    arms = [(k, side) for k in decoders for side in SIDES]
    decoded: dict[tuple[int, str], Decodings] = {arm: [[] for _ in prompts] for arm in arms}
    for repetition in range(args.reps + 1):
        for index, ids in enumerate(prompts):
            for k, side in arms:
                if side == OURS:
                    one = ours(decoders[k], ids, length)
                else:
                    one = theirs.decode(side.removeprefix("llama.cpp "), k, ids, length)
                if repetition:  # the first is warm-up
                    decoded[k, side][index].append(one)
        print(f"repetition {repetition} of {args.reps}", file=sys.stderr)

    def by_arm(figure: Callable[[Decodings], float | None]) -> dict[str, dict[str, float | None]]:
        return {f"K = {k}" if k else "AR": {side: figure(decoded[k, side]) for side in SIDES} for k in decoders}

    return {
        "schema": "specprof.benchmark.vs_llama_cpp/1",
        "tokens_per_second": by_arm(tokens_per_second),
        "acceptance_rate": by_arm(acceptance),
        "equal_texts": by_arm(lambda decodings: equal_texts(decodings, texts)),
        "prompts": len(prompts),
        "prompt_tokens": sum(map(len, prompts)),
        "max_new_tokens": length,
        "repetitions": args.reps,
        "threads": threads,
        "why_not_native": target.why_not_native,
        "llama_cpp": theirs.describe(),
        "machine": machine.describe(),
    }


def in_turn(prompts: PromptDataset) -> PromptDataset:
    return prompts.take(len(prompts.prompts))


def goes_on(text: tuple[int, ...], length: int, stop_ids: frozenset[int]) -> bool:
    """Whether a text reaches the length without ending: llama.cpp's programs stop at an end, or forbid it."""
    return len(text) == length and stop_ids.isdisjoint(text)


def table(document: dict[str, Any]) -> str:
    """The document as text: tokens per second and how ours compare, acceptance, equal texts."""
    rates, accepted, equal = (document[key] for key in ("tokens_per_second", "acceptance_rate", "equal_texts"))
    if len(rates) > 2:
        speculative = [row for arm, row in rates.items() if arm != "AR"]
        rates = rates | {"best K": {side: max(row[side] for row in speculative) for side in SIDES}}

    def line(name: str, row: dict[str, float | None], form: str, *rest: str) -> str:
        cells = ("-" if row[side] is None else format(row[side], form) for side in SIDES)
        return "".join((f"{name:<14}", *(f"{cell:>20}" for cell in cells), *(f"{cell:>11}" for cell in rest)))

    lines = ["".join((f"{'':<14}", *(f"{side:>20}" for side in SIDES), f"{'/ float32':>11}", f"{'/ float16':>11}"))]
    lines.append("tokens/s")
    for arm, row in rates.items():
        lines.append(line(f"  {arm}", row, ".0f", *(f"{row[OURS] / row[side]:.2f}x" for side in (FLOAT32, FLOAT16))))
    lines.append("accepted / drafted")
    lines.extend(line(f"  {arm}", row, ".3f") for arm, row in accepted.items() if arm != "AR")
    lines.append("equal texts")
    lines.extend(line(f"  {arm}", row, "d") for arm, row in equal.items())
    theirs, reason = document["llama_cpp"], document["why_not_native"]
    lines.append(
        f"{document['prompts']} prompts ({document['prompt_tokens']} tokens) x {document['max_new_tokens']} tokens, "
        f"{document['repetitions']} repetitions, {document['threads']} threads; "
        f"llama.cpp: {theirs['kind']}, {theirs['version'] or 'version unknown'}; "
        f"specprof's forward: {'in C' if reason is None else f'in PyTorch ({reason})'}"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--bin", type=Path, metavar="DIR", help="folder of llama.cpp's programs")
    which.add_argument("--python", action="store_true", help="use llama-cpp-python")
    parser.add_argument("--k", type=draft_lengths, default=[1, 2, 4], help="draft lengths (1,2,4)")
    parser.add_argument("--max-new-tokens", type=at_least_two, default=96)
    parser.add_argument("--prompts", type=at_least_one, default=12)
    parser.add_argument("--reps", type=at_least_one, default=3)
    parser.add_argument("--threads", type=at_least_one, help="on both sides; PyTorch's choice by default")
    parser.add_argument("--json", action="store_true", help="print the document")
    parser.add_argument("-o", type=Path, metavar="FILE", help="write the document to a file, too")
    args = parser.parse_args()
    if args.bin is None and not args.python:
        print(WHAT_TO_INSTALL, end="", file=sys.stderr)
        sys.exit(UnavailableError.exit_code)
    if args.o and not args.o.parent.is_dir():
        parser.error(f"-o: there is no folder {args.o.parent}")
    try:
        with tempfile.TemporaryDirectory() as models:
            document = measure(args, Path(models))
    except SpecprofError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
    if args.o:
        args.o.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=2) if args.json else table(document))
    sys.exit(0 if all(row[OURS] == document["prompts"] for row in document["equal_texts"].values()) else 1)


def draft_lengths(text: str) -> list[int]:
    return [at_least_one(k) for k in text.split(",")]


def at_least_one(text: str) -> int:
    return _at_least(text, 1)


def at_least_two(text: str) -> int:  # the first comes with the prompt's pass
    return _at_least(text, 2)


def _at_least(text: str, least: int) -> int:
    if not text.strip().isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number >= {least}")
    return int(text)


if __name__ == "__main__":
    main()
