"""One pair of true shapes and random weights: every arm's speed, and what a round is held up by."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from gpu_arms import (
    Decoder,
    Document,
    Pair,
    Plan,
    Shape,
    decoder_of,
    load_pair,
    rounds_of,
    wall_seconds,
    watched_seconds,
)
from gpu_probes import launch_seconds, num_kernels
from gpu_table import limits
from hf_generate import assisted, seconds_per_token

from specprof.decoding.request import Request
from specprof.decoding.static import StaticDecoder
from specprof.errors import ResourceError
from specprof.models.kv_cache import KVCache
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.events import Round

SHORT = 8
"""Tokens of the generation that is taken off."""

TOO_UNEVEN = "the machine was too uneven to tell"


def measure_shape(shape: Shape, plan: Plan, bandwidth: float, kernel_seconds: float | None) -> Document:
    """All rows of one pair."""
    pair = load_pair(shape, plan)
    long = request_of(pair.target, plan.prompt_tokens, plan.new_tokens)
    arms = warm_arms(shape, pair, plan, long)
    speeds = measure_speeds(shape, arms, plan, long)
    rows: list[Document] = []
    for engine in plan.engines:
        for k in (0, *plan.ks):
            row: Document = {"engine": engine, "k": k, "seconds_per_token": None, "seconds_per_round": None}
            if (engine, k) in arms:
                row |= speeds.get((engine, k), {}) | phases(arms[engine, k], long, plan)
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
        what = f"{shape.name}, {engine}, {arm_name(k)}"
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


def arm_name(k: int) -> str:
    return f"K = {k}" if k else "AR"


def measure_speeds(
    shape: Shape, arms: Mapping[tuple[str, int], Decoder], plan: Plan, long: Request
) -> dict[tuple[str, int], Document]:
    """Seconds per token and per round of each arm, by turns; an arm whose long generation took no longer than its
    short one has none, and that is noted."""
    differences: dict[tuple[str, int], list[float]] = {arm: [] for arm in arms}
    for repetition in range(plan.repetitions):
        order = list(arms.items())
        for arm, decoder in reversed(order) if repetition % 2 else order:
            differences[arm].append(wall_seconds(decoder, long) - wall_seconds(decoder, shorter(long)))
    speeds = {}
    for arm, decoder in arms.items():
        rounds = len(rounds_of(decoder, long)) - len(rounds_of(decoder, shorter(long)))
        seconds = statistics.median(differences[arm])
        if seconds <= 0:
            plan.skipped.append(f"{shape.name}, {arm[0]}, {arm_name(arm[1])}: {TOO_UNEVEN}")
            continue
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
