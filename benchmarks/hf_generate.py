"""Hugging Face's ``generate`` as a reference arm, doing the same work as ours: greedy, a fixed length, K drafted."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor


class _Clock:
    """A streamer that notes when tokens arrive; handing them over waits for the device, as printing them would."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []

    def put(self, value: Tensor) -> None:
        value.tolist()
        self.arrivals.append(perf_counter())

    def end(self) -> None:
        return


@contextmanager
def without_end(*models: Any) -> Iterator[None]:
    """No model ends a text early; an assistant looks that up in its own settings."""
    before = [model.generation_config.eos_token_id for model in models]
    for model in models:
        model.generation_config.eos_token_id = None
    try:
        yield
    finally:
        for model, token in zip(models, before, strict=True):
            model.generation_config.eos_token_id = token


@contextmanager
def drafting(draft: Any, k: int) -> Iterator[None]:
    """The assistant drafts exactly k tokens, which it reads from its own generation config."""
    settings = {
        "num_assistant_tokens": k,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0.0,
    }
    config = draft.generation_config
    before = {name: getattr(config, name) for name in settings}
    for name, value in settings.items():
        setattr(config, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def generate(model: Any, prompt: list[int], length: int, **options: Any) -> list[int]:
    """The tokens, ``length`` of them where no model may end a text: see :func:`without_end`."""
    ids = torch.tensor([prompt], device=model.device)
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, pad_token_id=0, **options
    )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens


def seconds_per_token(model: Any, prompt: list[int], length: int, **options: Any) -> float:
    """Of plain decoding after the first token; ``cache_implementation="static"`` is compiled on CUDA."""
    clock = _Clock()
    with without_end(model):
        generate(model, prompt, length, streamer=clock, **options)
    first, *_, last = clock.arrivals[1:]  # the first to arrive is the prompt
    return (last - first) / (len(clock.arrivals) - 2)


def assisted(target: Any, draft: Any, prompt: list[int], length: int, k: int) -> tuple[float, list[int]]:
    """Median seconds of a round of assisted generation that drafts exactly k tokens, from one round's begin to the
    next one's, and the tokens generated.

    The first round has both prefills in it, and the last ones may be shorter: neither counts. With random weights next
    to nothing is accepted; what a round costs hardly depends on that.
    """
    with without_end(target, draft), drafting(draft, k), _recorded() as rounds:
        tokens = generate(target, prompt, length, assistant_model=draft)
    spans = [
        after["begin"] - round["begin"] for round, after in itertools.pairwise(rounds[1:]) if round["drafted"] == k
    ]
    return statistics.median(spans), tokens


@contextmanager
def _recorded() -> Iterator[list[dict[str, Any]]]:
    """When each round of assisted generation begins, and how many tokens it drafts."""
    from transformers import GenerationMixin

    mixin: Any = GenerationMixin
    rounds: list[dict[str, Any]] = []
    usual = mixin._get_candidate_generator

    def patched(self: Any, *arguments: Any, **options: Any) -> Any:
        generator = usual(self, *arguments, **options)
        get_candidates = generator.get_candidates

        def watched(input_ids: Tensor, *more: Any, **named: Any) -> Any:
            begin = perf_counter()
            found = get_candidates(input_ids, *more, **named)
            rounds.append({"begin": begin, "drafted": found[0].shape[1] - input_ids.shape[1]})
            return found

        generator.get_candidates = watched
        return generator

    mixin._get_candidate_generator = patched
    try:
        yield rounds
    finally:
        mixin._get_candidate_generator = usual
