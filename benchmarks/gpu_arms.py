"""The pairs of ``benchmarks/gpu.py``, the arms that decode with them, and how much of that there is time for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeAlias

import torch

from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import DraftModel
from specprof.decoding.request import Request
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.decoding.static import StaticDecoder
from specprof.decoding.translation import SharedVocabulary
from specprof.errors import SpecprofError
from specprof.models.random_weights import random_model
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.events import Round

ENGINES = ("eager", "static", "graph", "compiled")

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
