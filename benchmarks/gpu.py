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
import contextlib
import gc
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

import torch
from gpu_hugging_face import assisted, seconds_per_token
from gpu_probes import (
    attention_times,
    copy_bandwidth,
    launch_seconds,
    linear_rows,
    num_kernels,
    tiny_kernel_seconds,
)
from gpu_table import limits, must_reach, render

from specprof.data.prompts import builtin, encode
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import DraftModel
from specprof.decoding.request import Request
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.decoding.static import StaticDecoder
from specprof.decoding.translation import SharedVocabulary
from specprof.errors import ResourceError, SpecprofError
from specprof.models.kv_cache import KVCache
from specprof.models.loader import choose_device, load_model
from specprof.models.random_weights import random_model
from specprof.models.wrapper import ModelWrapper
from specprof.profiling import machine
from specprof.profiling.events import Round

SCHEMA = "specprof.benchmark.gpu/1"
ENGINES = ("eager", "static", "graph", "compiled")
SHORT = 8
"""Tokens of the generation that is taken off."""

Decoder: TypeAlias = AutoregressiveDecoder | SpeculativeDecoder | StaticDecoder
Document: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """A pair to build with random weights."""

    name: str
    draft_id: str
    target_id: str
    dtype: str
    draft_dtype: str | None = None
    """None: as the target's; int4 needs bitsandbytes, and is the target's where that is missing."""
    contexts: tuple[int, ...] = (128, 896)
    """Tokens before the rounds that tell what rolling back costs."""
    compiled_cache: bool = False
    """Whether Hugging Face's static cache is worth the minute it takes to compile."""


_LLAMA_3 = "meta-llama/Meta-Llama-3-8B-Instruct"
_TINY_LLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
SHAPES = (
    Shape("gpt2_dev", "gpt2", "gpt2-xl", "float16", compiled_cache=True),
    Shape("tinyllama_llama3", _TINY_LLAMA, _LLAMA_3, "bfloat16", contexts=(128, 1920)),
    Shape("llama3_self", _LLAMA_3, _LLAMA_3, "bfloat16", "int4", contexts=(128,)),
)
QUICK_SHAPES = (
    Shape("gpt2_dev", "tiny_dev/draft", "tiny_dev/target", "float32", contexts=(16, 64), compiled_cache=True),
    Shape("tinyllama_llama3", "tiny_cross/draft", "tiny_dev/target", "float32", contexts=(16,)),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure."""

    device: torch.device
    engines: tuple[str, ...]
    ks: tuple[int, ...]
    acceptance: float
    prompt_tokens: int
    new_tokens: int
    repetitions: int
    num_layers: int | None
    """Of each model; None: all."""
    deadline: float
    """On the clock of ``perf_counter``: what would begin later is left out."""
    skipped: list[str] = field(default_factory=list)

    def has_time(self, what: str, seconds: float = 0.0) -> bool:
        """Whether something that takes so long may begin; noted if not."""
        if perf_counter() + seconds <= self.deadline:
            return True
        self.skipped.append(f"{what}: no time was left")
        return False

    def attempt(self, what: str, work: Callable[[], Any]) -> Any:
        """A measurement that may be impossible here; None if it is, and why is noted."""
        try:
            return work()
        except (SpecprofError, RuntimeError, ValueError, ImportError, TypeError, AttributeError) as error:
            lines = str(error).strip().splitlines()
            self.skipped.append(f"{what}: {lines[0] if lines else type(error).__name__}")
            return None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models, loaded."""

    target: ModelWrapper
    draft: DraftModel
    draft_dtype: str


def load_pair(shape: Shape, plan: Plan) -> Pair:
    """The pair with random weights. The draft's rows are the target's first: all drafts are of one vocabulary."""

    def wrapped(model_id: str, dtype: str, seed: int) -> ModelWrapper:
        model = random_model(model_id, dtype, plan.device, seed=seed, num_layers=plan.num_layers)
        return ModelWrapper(model, None, plan.device, name=model_id)

    target = wrapped(shape.target_id, shape.dtype, 0)
    draft_dtype = shape.draft_dtype or shape.dtype
    draft = None
    if draft_dtype == "int4":
        draft = plan.attempt(f"{shape.name}, int4 draft", lambda: wrapped(shape.draft_id, "int4", 0))
        draft_dtype = draft_dtype if draft is not None else shape.dtype
    if draft is None:
        draft = target if shape.draft_id == shape.target_id else wrapped(shape.draft_id, draft_dtype, 1)
    vocabulary = SharedVocabulary(draft.vocab_size, target.vocab_size)
    return Pair(target, DraftModel(draft, vocabulary), draft_dtype)


def decoder_of(engine: str, pair: Pair, k: int, acceptance: float | None) -> Decoder:
    """An arm; k = 0 is plain decoding."""
    if engine == "eager":
        if not k:
            return AutoregressiveDecoder(pair.target)
        return SpeculativeDecoder(pair.target, pair.draft, k, synthetic_acceptance=acceptance)
    return StaticDecoder(
        pair.target,
        pair.draft if k else None,
        k,
        synthetic_acceptance=acceptance if k else None,
        capture=engine != "static",
        compile=engine == "compiled",
    )


def rounds_of(decoder: Decoder, request: Request) -> list[Round]:
    return [event for event in decoder.events(request) if isinstance(event, Round)]


def wall_seconds(decoder: Decoder, request: Request) -> float:
    """Of a generation that nobody watches, where there is such a thing."""
    synchronize(decoder.target.device)
    begin = perf_counter()
    if isinstance(decoder, StaticDecoder):
        decoder.tokens(request)
    else:
        rounds_of(decoder, request)
    return perf_counter() - begin


def watched_seconds(decoder: Decoder, request: Request) -> float:
    synchronize(decoder.target.device)
    begin = perf_counter()
    rounds_of(decoder, request)
    return perf_counter() - begin


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# A shape


def measure_shape(shape: Shape, plan: Plan, bandwidth: float, kernel_seconds: float | None) -> Document:
    """All rows of one pair."""
    pair = load_pair(shape, plan)
    long = request_of(pair.target, plan.prompt_tokens, plan.new_tokens)
    arms = warm_arms(shape, pair, plan, long)
    speeds = measure_speeds(arms, plan, long)
    rows: list[Document] = []
    for engine in plan.engines:
        for k in (0, *plan.ks):
            row: Document = {"engine": engine, "k": k, "seconds_per_token": None, "seconds_per_round": None}
            if (engine, k) in arms:
                row |= speeds[engine, k] | phases(arms[engine, k], long, plan)
            rows.append(row)
    finished = {(row["engine"], row["k"]): row for row in rows if row["seconds_per_token"]}
    best = next((engine for engine in ("compiled", "graph", "static", "eager") if (engine, 0) in finished), None)
    if best is None:
        raise ResourceError("plain decoding could not be measured", "see what is said of each engine")
    context = plan.prompt_tokens + plan.new_tokens // 2
    passes = {
        "target": one_pass(pair.target, plan, context),
        "draft": one_pass(pair.draft.model, plan, context),
    }
    for row in rows:
        add_ratios(row, finished.get((row["engine"], 0), {}))
        row["limits"] = row_limits(row, passes, bandwidth, kernel_seconds) if row["seconds_per_round"] else None
    document: Document = {
        "target": shape.target_id,
        "draft": shape.draft_id,
        "dtype": shape.dtype,
        "draft_dtype": pair.draft_dtype,
        "layers": pair.target.num_layers,
        "draft_layers": pair.draft.model.num_layers,
        "context": context,
        "engine": best,
        "rows": rows,
        "passes": passes,
        "share_of_bandwidth": passes["target"]["bytes"] / finished[best, 0]["seconds_per_token"] / bandwidth,
    }
    document["instrumentation"] = instrumentation(arms, best, plan, long)
    rolled_back = (rollback(pair, best, context, plan) for context in shape.contexts)
    document["rollback"] = [row for row in rolled_back if row is not None]
    document["hugging_face"] = hugging_face(shape, pair, plan, long)
    document["peak_memory_bytes"] = torch.cuda.max_memory_allocated() if plan.device.type == "cuda" else None
    return document


def request_of(target: ModelWrapper, prompt_tokens: int, new_tokens: int) -> Request:
    """Tokens that mean nothing, of a text that never ends."""
    numbers = torch.randint(0, target.vocab_size, (prompt_tokens,), generator=torch.Generator().manual_seed(0))
    return Request(tuple(numbers.tolist()), new_tokens, prompt_id="benchmark")


def shorter(request: Request) -> Request:
    return Request(request.prompt_ids, SHORT, prompt_id=request.prompt_id)


def warm_arms(shape: Shape, pair: Pair, plan: Plan, long: Request) -> dict[tuple[str, int], Decoder]:
    """The arms that can run here, warm: everything captured, compiled, chosen."""
    arms: dict[tuple[str, int], Decoder] = {}
    for engine, k in itertools.product(plan.engines, (0, *plan.ks)):
        what = f"{shape.name}, {engine}, {'AR' if not k else f'K = {k}'}"
        if not plan.has_time(what):
            continue

        def warm(engine: str = engine, k: int = k) -> Decoder:
            decoder = decoder_of(engine, pair, k, plan.acceptance)
            for request in (shorter(long), long):
                rounds_of(decoder, request)
                wall_seconds(decoder, request)
            return decoder

        decoder = plan.attempt(what, warm)
        if decoder is not None:
            arms[engine, k] = decoder
    return arms


def measure_speeds(
    arms: Mapping[tuple[str, int], Decoder], plan: Plan, long: Request
) -> dict[tuple[str, int], Document]:
    """Seconds per token and per round of each arm, by turns."""
    walls: dict[tuple[str, int], list[tuple[float, float]]] = {arm: [] for arm in arms}
    for repetition in range(plan.repetitions):
        order = list(arms.items())
        for arm, decoder in reversed(order) if repetition % 2 else order:
            walls[arm].append((wall_seconds(decoder, long), wall_seconds(decoder, shorter(long))))
    speeds = {}
    for arm, decoder in arms.items():
        rounds = len(rounds_of(decoder, long)) - len(rounds_of(decoder, shorter(long)))
        whole, start = (statistics.median(times) for times in zip(*walls[arm], strict=True))
        seconds = max(whole - start, 1e-9)
        speeds[arm] = {
            "seconds_per_token": seconds / (long.max_new_tokens - SHORT),
            "seconds_per_round": seconds / max(rounds, 1),
            "tokens_per_round": (long.max_new_tokens - SHORT) / max(rounds, 1),
        }
    return speeds


def phases(decoder: Decoder, long: Request, plan: Plan) -> Document:
    """Medians over the rounds of watched generations; the host's share is what the device's phases don't cover."""
    rounds = [round for _ in range(min(2, plan.repetitions)) for round in rounds_of(decoder, long)[1:]]
    return {
        "draft_seconds": statistics.median(round.draft_seconds for round in rounds),
        "verify_seconds": statistics.median(round.verify_seconds for round in rounds),
        "sample_seconds": statistics.median(round.sample_seconds for round in rounds),
        "host_seconds": statistics.median(round.overhead_seconds for round in rounds),
        "host_share": statistics.median(round.overhead_seconds / round.seconds for round in rounds),
        "capture_seconds": decoder.capture_seconds if isinstance(decoder, StaticDecoder) else None,
    }


def add_ratios(row: Document, plain: Mapping[str, Any]) -> None:
    """c, v and the speedup, over plain decoding on the same engine."""
    k, one = row["k"], plain.get("verify_seconds")
    known = bool(k and one and row.get("verify_seconds"))
    row["draft_cost_ratio"] = row["draft_seconds"] / k / one if known else None
    row["verify_ratio"] = row["verify_seconds"] / one if known else None
    both = row["seconds_per_token"] and plain.get("seconds_per_token")
    row["speedup"] = plain["seconds_per_token"] / row["seconds_per_token"] if both and k else None


def bytes_read(target: ModelWrapper, context: int) -> int:
    """What a pass of one token has to read: every weight but the rows of tables it looks nothing up in, and the keys
    and values of the context."""
    model, config = target.model, target.model.config
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    weights = {parameter.data_ptr(): parameter.numel() * parameter.element_size() for parameter in model.parameters()}
    if inputs.data_ptr() != outputs.data_ptr():
        weights.pop(inputs.data_ptr())
    positions = getattr(getattr(model, "transformer", None), "wpe", None)
    if positions is not None:
        weights.pop(positions.weight.data_ptr())
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    entry = 2 * target.num_layers * heads * dim * inputs.element_size()
    return int(sum(weights.values()) + entry * context)


@torch.inference_mode()
def one_pass(model: ModelWrapper, plan: Plan, context: int) -> Document:
    """What a pass of one token reads and launches."""
    slab = model.new_cache(context + 2).slab
    token = torch.zeros(1, dtype=torch.long, device=model.device)

    def step() -> None:
        model.extend(token, KVCache(slab, context))

    return {
        "bytes": bytes_read(model, context),
        "kernels": num_kernels(step, plan.device),
        "launch_seconds": launch_seconds(step, plan.device),
    }


def row_limits(
    row: Document, passes: Mapping[str, Document], bandwidth: float, kernel_seconds: float | None
) -> Document:
    """A round is one pass of the target and K of the draft."""

    def both(what: str) -> float | None:
        target, draft = passes["target"][what], passes["draft"][what]
        return None if target is None else float(target + row["k"] * draft)

    read, kernels = both("bytes"), both("kernels")
    assert read is not None
    return limits(
        row["seconds_per_round"],
        {
            "bandwidth": read / bandwidth,
            "kernels": None if kernels is None or kernel_seconds is None else kernels * kernel_seconds,
            "launches": both("launch_seconds") if row["engine"] in ("eager", "static") else None,
            "host": row["host_seconds"],
        },
    )


def instrumentation(arms: Mapping[tuple[str, int], Decoder], engine: str, plan: Plan, long: Request) -> Document | None:
    """Seconds of a generation that is watched over one that is not, less 1; None where there is no other."""
    k = max((k for each, k in arms if each == engine), default=0)
    decoder = arms.get((engine, k))
    if not isinstance(decoder, StaticDecoder):
        return None
    ratios = []
    for repetition in range(2 * plan.repetitions + 1):
        ways = (watched_seconds, wall_seconds)
        times = {way: way(decoder, long) for way in (ways if repetition % 2 else reversed(ways))}
        ratios.append(times[watched_seconds] / times[wall_seconds])
    return {"k": k, "cost": statistics.median(ratios) - 1}


def rollback(pair: Pair, engine: str, context: int, plan: Plan) -> Document | None:
    """Seconds of a round that rolls back all K entries less those of one that keeps them, at a context."""
    k = max(plan.ks)
    limit = min(wrapper.max_context or context + 4096 for wrapper in (pair.target, pair.draft.model))
    num_rounds = min(32, (limit - context - 2) // (k + 1))
    what = f"rollback at {context}"
    if num_rounds < 4:
        plan.skipped.append(f"{what}: the models' context is {limit}")
        return None
    if not plan.has_time(what):
        return None

    def measured() -> tuple[float, float]:
        request = request_of(pair.target, context, num_rounds * (k + 1))
        decoders = [decoder_of(engine, pair, k, acceptance) for acceptance in (0.0, 1.0)]
        times: list[list[float]] = [[], []]
        for repetition in range(plan.repetitions + 1):
            for decoder, seconds in zip(decoders, times, strict=True):
                rounds = first_rounds(decoder, request, num_rounds)
                if repetition:  # the first is warm-up
                    seconds += [round.seconds for round in rounds[1:]]
        return statistics.median(times[0]), statistics.median(times[1])

    found = plan.attempt(what, measured)
    if found is None:
        return None
    rejected, accepted = found
    return {"context": context, "k": k, "seconds": rejected - accepted, "share": (rejected - accepted) / accepted}


def first_rounds(decoder: Decoder, request: Request, number: int) -> list[Round]:
    """So many rounds of a generation, which is left there."""
    events = decoder.events(request)
    assert isinstance(events, Generator)
    with contextlib.closing(events):
        return list(itertools.islice((event for event in events if isinstance(event, Round)), number))


def hugging_face(shape: Shape, pair: Pair, plan: Plan, long: Request) -> Document:
    """``generate`` on the same weights."""
    prompt, tokens = list(long.prompt_ids), max(16, long.max_new_tokens // 2)
    target, draft = pair.target.model, pair.draft.model.model
    found: Document = dict.fromkeys(("dynamic", "static", "assisted"))

    def after_warm_up(work: Callable[[], float]) -> float:
        work()
        return statistics.median(work() for _ in range(max(1, plan.repetitions - 1)))

    if plan.has_time(f"{shape.name}, generate"):
        found["dynamic"] = plan.attempt(
            f"{shape.name}, generate", lambda: after_warm_up(lambda: seconds_per_token(target, prompt, tokens))
        )
    k = max(plan.ks)
    what = f"{shape.name}, assisted generation"
    if pair.draft.model.vocab_size != pair.target.vocab_size:
        plan.skipped.append(f"{what}: it needs tokenizers where the vocabularies differ")
    elif plan.has_time(what, 10):
        seconds = plan.attempt(what, lambda: after_warm_up(lambda: assisted(target, draft, prompt, tokens, k)[0]))
        found["assisted"] = None if seconds is None else {"k": k, "seconds_per_round": seconds}
    what = f"{shape.name}, generate with its static cache"
    if shape.compiled_cache and plan.has_time(what, 120 if plan.num_layers is None else 0):
        found["static"] = plan.attempt(
            what,
            lambda: after_warm_up(lambda: seconds_per_token(target, prompt, tokens, cache_implementation="static")),
        )
        if plan.device.type == "cuda":
            torch.compiler.reset()
    return found


# The packaged pair


def measure_packaged(plan: Plan) -> Document:
    """The trained pair on its own prompts: what is accepted is real, and every arm writes the same text."""
    models = {role: load_model(f"tiny_dev/{role}", "float32", plan.device) for role in ("target", "draft")}
    tokenizer = models["target"][1]
    target, draft = (ModelWrapper(models[role][0], tokenizer, plan.device) for role in ("target", "draft"))
    pair = Pair(target, DraftModel(draft), "float32")
    k = max(plan.ks)
    prompts = [encode(prompt, tokenizer) for prompt in builtin().take(2 if plan.num_layers else 4)]
    rows: list[Document] = []
    texts: dict[str, list[list[int]]] = {}
    for engine in plan.engines:
        for width in (0, k):
            name = f"{engine}, {'AR' if not width else f'K = {k}'}"
            row = plan.attempt(
                f"packaged pair, {name}",
                partial(_packaged_row, engine, width, pair, prompts, plan, texts, name),
            )
            rows.append({"engine": engine, "k": width} | (row or dict.fromkeys(_PACKAGED)))
    found = plan.attempt(
        "packaged pair, assisted generation", lambda: _packaged_assisted(pair, prompts, plan, k, texts)
    )
    outputs = list(texts.values())
    return {
        "k": k,
        "rows": rows,
        "assisted_seconds_per_round": found,
        "texts_are_equal": all(output == outputs[0] for output in outputs),
    }


_PACKAGED = ("tokens_per_second", "tokens_per_round", "seconds_per_round")


def _packaged_row(
    engine: str,
    k: int,
    pair: Pair,
    prompts: Sequence[list[int]],
    plan: Plan,
    texts: dict[str, list[list[int]]],
    name: str,
) -> Document:
    decoder = decoder_of(engine, pair, k, None)
    requests = [Request(tuple(prompt), plan.new_tokens, prompt_id=str(i)) for i, prompt in enumerate(prompts)]
    for request in requests:
        rounds_of(decoder, request)
    rounds = [rounds_of(decoder, request) for request in requests]
    texts[name] = [[token for round in each for token in round.emitted_tokens] for each in rounds]
    everything = [round for each in rounds for round in each]
    num_tokens = sum(len(round.emitted_tokens) for round in everything)
    return {
        "tokens_per_second": num_tokens / sum(round.seconds for round in everything),
        "tokens_per_round": num_tokens / len(everything),
        "seconds_per_round": statistics.median(round.seconds for round in everything),
    }


def _packaged_assisted(
    pair: Pair, prompts: Sequence[list[int]], plan: Plan, k: int, texts: dict[str, list[list[int]]]
) -> float:
    models = pair.target.model, pair.draft.model.model
    assisted(*models, prompts[0], plan.new_tokens, k)
    found = [assisted(*models, prompt, plan.new_tokens, k) for prompt in prompts]
    texts["assisted"] = [tokens[1:] for _, tokens in found]  # the first is the prefill's
    return statistics.median(seconds for seconds, _ in found)


# All of it


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
        new_tokens=24 if args.quick else 128,
        repetitions=1 if args.quick else 3,
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
