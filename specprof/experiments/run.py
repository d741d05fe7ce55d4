"""Decodes prompts with both arms, interleaved, and tells what happened as it happens."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from specprof.data.prompts import Prompt, encode
from specprof.decoding.request import Request
from specprof.decoding.sampling import Sampling
from specprof.decoding.static import StaticDecoder
from specprof.errors import UsageError
from specprof.experiments.arms import Arms
from specprof.experiments.config import RunConfig
from specprof.experiments.engine import Decoder
from specprof.experiments.observer import Observer, text_of
from specprof.experiments.tie import diagnose
from specprof.models.linear import MAX_MEASURED_WIDTH
from specprof.models.loader import quiet_transformers
from specprof.models.wrapper import ModelWrapper
from specprof.profiling import events, machine
from specprof.profiling.acceptance import AcceptanceCounts
from specprof.profiling.cost_model import CostCurve
from specprof.profiling.energy import EnergyMeter
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round, RunEnded, RunStarted
from specprof.profiling.output_match import first_difference

LOG = logging.getLogger("specprof")

WARMUP_TOKENS = 32
MASS_TOKENS = 256
"""Of each sample text."""
TRIAL_PROMPTS = 6
_SHAPE_REPEATS = 3


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    prompt: Prompt
    ids: tuple[int, ...]
    draft_ids: tuple[int, ...] | None = None
    """As a draft of another vocabulary reads it, in its own chat template."""


def encode_prompts(config: RunConfig, arms: Arms, prompts: Sequence[Prompt]) -> list[EncodedPrompt]:
    """Token ids of each prompt.

    Raises:
        UsageError: a prompt without tokens, or one that leaves no room in the context.
        UnavailableError: a tokenizer makes tokens that its model hasn't.
    """
    encoded = []
    for prompt in prompts:
        ids, draft_ids = _ids(config, prompt, arms.tokenizer), None
        if not ids:
            raise UsageError(f"prompt {prompt.prompt_id} is empty", "give it some text")
        arms.target.check_tokens(ids)
        _check_fits(prompt, len(ids), config.max_new_tokens, arms.target)
        if arms.draft is not None:
            if arms.vocab_method is not None:
                draft_ids = _ids(config, prompt, arms.draft.tokenizer)
                arms.draft.check_tokens(draft_ids)
            _check_fits(prompt, len(draft_ids or ids), config.max_new_tokens, arms.draft)
        encoded.append(EncodedPrompt(prompt, ids, draft_ids or None))
    return encoded


def _ids(config: RunConfig, prompt: Prompt, tokenizer: Any) -> tuple[int, ...]:
    with quiet_transformers():  # it has something to say about long prompts; what follows says it better
        return tuple(encode(prompt, tokenizer, chat_template=config.chat_template))  # type: ignore[arg-type]


def _check_fits(prompt: Prompt, num_tokens: int, max_new_tokens: int, wrapper: ModelWrapper) -> None:
    context = wrapper.max_context
    if context is not None and num_tokens + max_new_tokens > context:
        raise UsageError(
            f"prompt {prompt.prompt_id} has {num_tokens} tokens; with {max_new_tokens} new ones it exceeds "
            f"the context of {wrapper.name}, {context}",
            "shorten the prompt or lower --max-new-tokens",
        )


def measure(
    config: RunConfig,
    arms: Arms,
    prompts: Sequence[EncodedPrompt],
    run_id: str,
    curve: CostCurve | None = None,
    command: str | None = None,
) -> Iterator[Event]:
    """Every prompt by every arm, ``config.repetitions`` times.

    The arms alternate on each prompt and swap places from one to the next (ABBA), so that a
    machine that warms up or slows down does it to both.

    Args:
        curve: kept with the run.
        command: that asked for it, kept as well.
    """
    # Where the costs of other draft lengths are known, what they would have made of a text is worth a pass over it.
    meter = energy_meter(arms.target, arms.draft)
    observer = Observer(text_of(arms.tokenizer), meter, hindsight=curve is not None, noted=set())
    details = run_details(config, arms, prompts, curve, command)
    yield RunStarted(run_id, events.SCHEMA, details, machine.describe())
    totals = RunTotals()
    for repetition, prompt, decoders in turns(config, arms, prompts):
        for decoder in decoders:
            for event in observer.events(decoder, request_for(config, arms, prompt, repetition)):
                totals.add(event)
                yield event
    width = arms.speculative.length.longest + 1
    yield RunEnded(totals.peak_memory_bytes, differences(config, arms, prompts, totals, width))


def run_details(
    config: RunConfig,
    arms: Arms,
    prompts: Sequence[EncodedPrompt],
    curve: CostCurve | None,
    command: str | None,
) -> dict[str, Any]:
    """What the first line of a run says of what was asked for and loaded."""
    return config.to_dict() | {
        "models": arms.describe(config.pair),
        **arms.describe_engine(),
        "load_peak_memory_bytes": arms.load_peak_bytes,
        "vocabulary": None if arms.vocabulary is None else arms.vocabulary.to_dict(),
        "vocab_method": arms.vocab_method,
        "cost_curve": None if curve is None else curve.to_dict(),
        "prompts": [{"prompt_id": p.prompt.prompt_id, "domain": p.prompt.domain} for p in prompts],
        "command": command,
    }


def turns(
    config: RunConfig, arms: Arms, prompts: Sequence[EncodedPrompt]
) -> Iterator[tuple[int, EncodedPrompt, tuple[Decoder, ...]]]:
    """The generations of a run in their order: each repetition of each prompt, with the arms as they take turns."""
    for repetition in range(config.repetitions):
        for index, prompt in enumerate(prompts):
            yield repetition, prompt, _order(config, arms, index + repetition)


@dataclass(slots=True)
class RunTotals:
    """What the last line of a run says of all the others."""

    peak_memory_bytes: int = 0
    texts: dict[tuple[str, int, str], tuple[int, ...]] = field(default_factory=dict)
    """Tokens of each finished generation, by prompt, repetition and decoder."""
    _begun: dict[tuple[str, int, str], list[int]] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        match event:
            case Prefilled():
                self.peak_memory_bytes = max(self.peak_memory_bytes, event.peak_memory_bytes)
                self._begun[_generation(event)] = [event.first_token]
            case Round():
                self._begun[_generation(event)].extend(event.emitted_tokens)
            case PromptEnded():
                self.peak_memory_bytes = max(self.peak_memory_bytes, event.peak_memory_bytes)
                self.texts[_generation(event)] = tuple(self._begun.pop(_generation(event)))


def _generation(event: Prefilled | Round | PromptEnded) -> tuple[str, int, str]:
    return event.prompt_id, event.repetition, event.decoder


def differences(
    config: RunConfig, arms: Arms, prompts: Sequence[EncodedPrompt], totals: RunTotals, width: int
) -> tuple[dict[str, Any], ...]:
    """Why greedy texts of the two arms differ: of each prompt where they do, the first place in any repetition.

    Args:
        width: tokens to a verify pass, the longest draft and one.
    """
    if config.temperature > 0 or not config.baseline or config.synthetic_acceptance is not None:
        return ()
    return tuple(_differences(config, arms, prompts, totals.texts, width))


def _differences(
    config: RunConfig,
    arms: Arms,
    prompts: Sequence[EncodedPrompt],
    texts: Mapping[tuple[str, int, str], Sequence[int]],
    width: int,
) -> Iterator[dict[str, Any]]:
    labels = (arms.speculative.label, arms.baseline.label)
    for prompt in prompts:
        prompt_id = prompt.prompt.prompt_id
        keys = [[(prompt_id, repetition, label) for label in labels] for repetition in range(config.repetitions)]
        # A generation that was broken off has no text to compare.
        pairs = [(texts[one], texts[other]) for one, other in keys if one in texts and other in texts]
        parted = [(position, *pair) for pair in pairs if (position := first_difference(*pair)) is not None]
        if parted:
            _, speculative, plain = min(parted)
            found = diagnose(arms.target, prompt_id, prompt.ids, speculative, plain, width)
            assert found is not None
            yield dataclasses.asdict(found)


def decode_for(seconds: float, config: RunConfig, arms: Arms, prompts: Sequence[EncodedPrompt]) -> None:
    """Every prompt by every arm for whoever watches, and all of them again until ``seconds`` have passed."""
    until = time.monotonic() + seconds
    while True:
        for index, prompt in enumerate(prompts):
            for decoder in _order(config, arms, index):
                _decode(config, arms, decoder, prompt, -1, config.max_new_tokens)
        if time.monotonic() >= until:
            return


def energy_meter(*models: ModelWrapper | None) -> EnergyMeter | None:
    """Of all devices that models are on; None where no counter can be read."""
    parameters = (p for wrapper in models if wrapper is not None for p in wrapper.model.parameters())
    devices = {parameter.device for parameter in parameters if parameter.device.type == "cuda"}
    found = EnergyMeter.meter_or_reason([str(torch.cuda.get_device_properties(device).uuid) for device in devices])
    if isinstance(found, str):
        LOG.debug("no energy is measured: %s", found)
        return None
    return found


@torch.inference_mode()
def target_mass(arms: Arms, texts: Sequence[Prompt]) -> float:
    """How much of the target's probability lies on tokens that the draft has too, on average over some texts."""
    assert arms.vocabulary is not None
    shared = torch.tensor(sorted(arms.vocabulary.to_target.values()), device=arms.target.device)
    masses = []
    for text in texts:
        ids = torch.tensor([encode(text, arms.tokenizer)[:MASS_TOKENS]])
        logits, _ = arms.target.forward(ids, use_cache=False)
        masses.append(logits[0].float().softmax(-1)[:, shared].sum(-1))
    return float(torch.cat(masses).mean())


def choose_method(config: RunConfig, arms: Arms, prompts: Sequence[EncodedPrompt]) -> tuple[Arms, str | None]:
    """Where a draft of another vocabulary can propose in two ways: try both on a few prompts, keep the one that
    yields more tokens per round, and say what was found."""
    if not arms.candidates:
        return arms, None
    lengths = {}
    for method, decoder in arms.candidates.items():
        generations = (
            _decode(config, arms, decoder, prompt, -1, config.max_new_tokens) for prompt in prompts[:TRIAL_PROMPTS]
        )
        rounds = [event for events in generations for event in events if isinstance(event, Round)]
        lengths[method] = AcceptanceCounts.of(rounds, greedy=True).mean_acceptance_length or 1.0
    # On a tie the first, which needs no detour over text.
    best = max(lengths, key=lambda method: lengths[method])
    found = ", ".join(f"{method} {length:.2f}" for method, length in lengths.items())
    chosen = dataclasses.replace(arms, speculative=arms.candidates[best], vocab_method=best, candidates={})
    return chosen, f"vocab method {best}: tokens per round in a trial: {found}"


def warm_up_steps(config: RunConfig, prompts: Sequence[EncodedPrompt]) -> int:
    """How often :func:`warm_up` calls its ``tick``."""
    return 1 + config.num_arms * min(config.warmup, len(prompts))


def warm_up(
    config: RunConfig,
    arms: Arms,
    prompts: Sequence[EncodedPrompt],
    tick: Callable[[], None] = lambda: None,
    *,
    decoders: Sequence[Decoder] | None = None,
) -> None:
    """Run every shape of every arm (or of some decoders) before anything is measured.

    First passes allocate, choose kernels and fault pages in; left inside they would be charged to
    whichever arm came first. ``tick`` is called after each step.

    Raises:
        CorrectnessError: a model's logits are not numbers.
    """
    warm_shapes(arms)
    prepare_rounds(config, arms, prompts, decoders or _order(config, arms, 0))
    tick()
    # K auto tries every K in its first rounds, which takes more of them.
    length = max(WARMUP_TOKENS, config.max_new_tokens) if config.k == "auto" else WARMUP_TOKENS
    for prompt in prompts[: config.warmup]:
        for decoder in decoders or _order(config, arms, 0):
            _decode(config, arms, decoder, prompt, -1, length)
            tick()


def prepare_rounds(
    config: RunConfig, arms: Arms, prompts: Sequence[EncodedPrompt], decoders: Sequence[Decoder]
) -> None:
    """On the static path, make the rounds of every slab length that the prompts take: captured, or compiled, once."""
    for prompt, decoder in itertools.product(prompts, decoders):
        if isinstance(decoder, StaticDecoder):
            events = decoder.events(request_for(config, arms, prompt, -1))
            assert isinstance(events, Generator)
            with contextlib.closing(events):  # and leave it there
                next((event for event in events if isinstance(event, Round)), None)
    if arms.why_not_captured is not None:
        LOG.warning("no CUDA graphs: %s; rounds go on uncaptured", arms.why_not_captured)


def _decode(
    config: RunConfig, arms: Arms, decoder: Decoder, prompt: EncodedPrompt, repetition: int, length: int
) -> list[Event]:
    request = request_for(config, arms, prompt, repetition, max_new_tokens=min(length, config.max_new_tokens))
    return list(decoder.events(request))


@torch.inference_mode()
def warm_shapes(arms: Arms) -> None:
    """Run the widths that rounds have through every model."""
    k = arms.speculative.length.longest
    # All the widths a choice of kernel is made for, and beyond those the one that most rounds have.
    verified = sorted({*range(1, min(k + 1, MAX_MEASURED_WIDTH) + 1), k + 1})
    widths: dict[ModelWrapper, Sequence[int]] = {arms.target: verified}
    if arms.draft is not None:
        # After a full acceptance two tokens are new to the draft; in another vocabulary one can be several.
        widths[arms.draft] = (1, 2) if arms.vocab_method is None else range(1, 9)
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


def request_for(
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
        prompt.draft_ids,
    )
