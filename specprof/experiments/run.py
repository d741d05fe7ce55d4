"""Decodes prompts with both arms, interleaved, and tells what happened as it happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from specprof.data.prompts import Prompt, encode
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.request import Request
from specprof.decoding.sampling import Sampling
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.errors import UsageError
from specprof.experiments.arms import Arms
from specprof.experiments.config import RunConfig
from specprof.models.linear import MAX_MEASURED_WIDTH
from specprof.models.loader import quiet_transformers
from specprof.models.wrapper import ModelWrapper
from specprof.profiling import events, machine
from specprof.profiling.events import Event, Prefilled, PromptEnded, RunEnded, RunStarted

Decoder = AutoregressiveDecoder | SpeculativeDecoder

WARMUP_TOKENS = 32
_SHAPE_REPEATS = 3


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    prompt: Prompt
    ids: tuple[int, ...]


def encode_prompts(config: RunConfig, arms: Arms, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
    """Token ids of each prompt.

    Raises:
        UsageError: a prompt without tokens, or one that leaves no room in the context.
    """
    encoded = []
    for prompt in prompts:
        with quiet_transformers():  # it has something to say about long prompts; what follows says it better
            ids = tuple(encode(prompt, arms.tokenizer, chat_template=config.chat_template))  # type: ignore[arg-type]
        if not ids:
            raise UsageError(f"prompt {prompt.prompt_id} is empty", "give it some text")
        for wrapper in filter(None, (arms.target, arms.draft)):
            _check_fits(prompt, len(ids), config.max_new_tokens, wrapper)
        encoded.append(EncodedPrompt(prompt, ids))
    return encoded


def _check_fits(prompt: Prompt, num_tokens: int, max_new_tokens: int, wrapper: ModelWrapper) -> None:
    context = wrapper.max_context
    if context is not None and num_tokens + max_new_tokens > context:
        raise UsageError(
            f"prompt {prompt.prompt_id} has {num_tokens} tokens; with {max_new_tokens} new ones it exceeds "
            f"the context of {wrapper.name}, {context}",
            "shorten the prompt or lower --max-new-tokens",
        )


def measure(config: RunConfig, arms: Arms, prompts: Sequence[EncodedPrompt], run_id: str) -> Iterator[Event]:
    """Every prompt by every arm, ``config.repetitions`` times.

    The arms alternate on each prompt and swap places from one to the next (ABBA), so that a
    machine that warms up or slows down does it to both.
    """
    details = config.to_dict() | {
        "models": arms.describe(),
        "load_peak_memory_bytes": arms.load_peak_bytes,
        "prompts": [{"prompt_id": p.prompt.prompt_id, "domain": p.prompt.domain} for p in prompts],
    }
    yield RunStarted(run_id, events.SCHEMA, details, machine.describe())
    peak = 0
    for repetition in range(config.repetitions):
        for index, prompt in enumerate(prompts):
            for decoder in _order(config, arms, index + repetition):
                for event in decoder.events(_request(config, arms, prompt, repetition)):
                    if isinstance(event, Prefilled | PromptEnded):
                        peak = max(peak, event.peak_memory_bytes)
                    yield event
    yield RunEnded(peak)


def warm_up_steps(config: RunConfig, prompts: Sequence[EncodedPrompt]) -> int:
    """How often :func:`warm_up` calls its ``tick``."""
    return 1 + config.num_arms * min(config.warmup, len(prompts))


def warm_up(config: RunConfig, arms: Arms, prompts: Sequence[EncodedPrompt], tick: Callable[[], None]) -> None:
    """Run every shape of every arm before anything is measured.

    First passes allocate, choose kernels and fault pages in; left inside they would be charged to
    whichever arm came first. ``tick`` is called after each step.

    Raises:
        UnavailableError: a model's logits are not numbers.
    """
    _warm_shapes(arms, config.k)
    tick()
    for prompt in prompts[: config.warmup]:
        for decoder in _order(config, arms, 0):
            request = _request(config, arms, prompt, -1, max_new_tokens=min(WARMUP_TOKENS, config.max_new_tokens))
            for _ in decoder.events(request):
                pass
            tick()


@torch.inference_mode()
def _warm_shapes(arms: Arms, k: int) -> None:
    # All the widths a choice of kernel is made for, and beyond those the one that most rounds have.
    verified = sorted({*range(1, min(k + 1, MAX_MEASURED_WIDTH) + 1), k + 1})
    widths: dict[ModelWrapper, Sequence[int]] = {arms.target: verified}
    if arms.draft is not None:
        widths[arms.draft] = (1, 2)
    for wrapper, span in widths.items():
        room = min(64 + k + 2, wrapper.max_context or 64 + k + 2)
        cache = wrapper.new_cache(room)
        for width in span:
            ids = torch.zeros(width, dtype=torch.long, device=wrapper.device)
            for _ in range(_SHAPE_REPEATS):
                cache.truncate(0)
                wrapper.extend(ids, cache, width)
        wrapper.check_numbers()


def _order(config: RunConfig, arms: Arms, turn: int) -> tuple[Decoder, ...]:
    if not config.baseline:
        return (arms.speculative,)
    return (arms.baseline, arms.speculative) if turn % 2 == 0 else (arms.speculative, arms.baseline)


def _request(
    config: RunConfig, arms: Arms, prompt: EncodedPrompt, repetition: int, *, max_new_tokens: int | None = None
) -> Request:
    return Request(
        prompt.ids,
        max_new_tokens or config.max_new_tokens,
        Sampling(config.temperature, config.top_k, config.top_p),
        arms.stop_ids if config.stops_at_eos else frozenset(),
        config.seed,
        prompt.prompt.prompt_id,
        repetition,
    )
