"""The packaged pair, which is trained, on a GPU: what is accepted is real, and every arm writes the same text."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

from gpu_arms import Document, Pair, Plan, decoder_of, rounds_of
from hf_generate import assisted

from specprof.data.prompts import builtin, encode
from specprof.decoding.drafters import DraftModel
from specprof.decoding.request import Request
from specprof.models.loader import load_model
from specprof.models.wrapper import ModelWrapper

Texts: TypeAlias = list[list[int]]
"""By prompt: the tokens after the first."""

_NO_FIGURES = dict.fromkeys(("tokens_per_second", "tokens_per_round", "seconds_per_round"))


def measure_packaged(plan: Plan) -> Document:
    """All rows of it, and whether the texts are equal."""
    models = {role: load_model(f"tiny_dev/{role}", "float32", plan.device) for role in ("target", "draft")}
    tokenizer = models["target"][1]
    target, draft = (ModelWrapper(models[role][0], tokenizer, plan.device) for role in ("target", "draft"))
    pair = Pair(target, DraftModel(draft), "float32")
    k = max(plan.ks)
    prompts = [encode(prompt, tokenizer) for prompt in builtin().take(2 if plan.num_layers else 4)]
    rows: list[Document] = []
    texts: list[Texts] = []
    for engine, width in itertools.product(plan.engines, (0, k)):
        name = f"packaged pair, {engine}, {'AR' if not width else f'K = {k}'}"
        figures, written = plan.attempt(name, partial(_arm, engine, width, pair, prompts, plan)) or (_NO_FIGURES, None)
        rows.append({"engine": engine, "k": width} | figures)
        texts += [] if written is None else [written]
    name = "packaged pair, assisted generation"
    seconds, written = plan.attempt(name, partial(_assisted, pair, prompts, plan, k)) or (None, None)
    texts += [] if written is None else [written]
    return {
        "k": k,
        "rows": rows,
        "assisted_seconds_per_round": seconds,
        "texts_are_equal": all(text == texts[0] for text in texts),
    }


def _arm(engine: str, k: int, pair: Pair, prompts: Sequence[list[int]], plan: Plan) -> tuple[Document, Texts]:
    decoder = decoder_of(engine, pair, k, None)
    requests = [Request(tuple(prompt), plan.new_tokens, prompt_id=str(i)) for i, prompt in enumerate(prompts)]
    for request in requests:
        rounds_of(decoder, request)
    rounds = [rounds_of(decoder, request) for request in requests]
    everything = [round for each in rounds for round in each]
    num_tokens = sum(len(round.emitted_tokens) for round in everything)
    figures = {
        "tokens_per_second": num_tokens / sum(round.seconds for round in everything),
        "tokens_per_round": num_tokens / len(everything),
        "seconds_per_round": statistics.median(round.seconds for round in everything),
    }
    return figures, [[token for round in each for token in round.emitted_tokens] for each in rounds]


def _assisted(pair: Pair, prompts: Sequence[list[int]], plan: Plan, k: int) -> tuple[float, Texts]:
    models = pair.target.model, pair.draft.model.model
    assisted(*models, prompts[0], plan.new_tokens, k)
    found = [assisted(*models, prompt, plan.new_tokens, k) for prompt in prompts]
    # The first token is the prefill's.
    return statistics.median(seconds for seconds, _ in found), [tokens[1:] for _, tokens in found]
