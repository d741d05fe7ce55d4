"""What is learnt of a generation beside its decoder, outside everything that is timed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import DraftModel
from specprof.decoding.request import Request
from specprof.decoding.token_bytes import TokenBytes
from specprof.experiments.engine import Decoder
from specprof.profiling.energy import EnergyMeter
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round

TextOf = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Observer:
    """Completes the end of each generation."""

    text: TextOf
    """What a token stands for, which is noted: who looks at it later needs no tokenizer."""
    meter: EnergyMeter | None = None
    hindsight: bool = False
    """Greedy: one pass of the draft over each text says what it would have proposed at every place."""
    noted: set[int] | None = None
    """Tokens of the run that have been noted; it grows, and each is noted once, with the first finished generation that
    has it. None: generations are kept apart from each other, and a prompt's first repetition notes all of its own."""

    def events(self, decoder: Decoder, request: Request) -> Generator[Event, None, None]:
        """Decode one request; the events of the decoder, the last of them completed."""
        seen: set[int] = set()
        generated: list[int] = []
        before = self.meter.read() if self.meter else None
        for event in decoder.events(request):
            match event:
                case Prefilled():
                    seen.add(event.first_token)
                    generated = [event.first_token]
                case Round():
                    seen.update(event.draft_tokens, event.emitted_tokens)
                    generated.extend(event.emitted_tokens)
                case PromptEnded():
                    joules = self.meter.since(before) if self.meter else None
                    texts = self._noted_now(seen, request.repetition)
                    matches = draft_matches(decoder, request, generated) if self.hindsight else None
                    event = replace(event, energy_joules=joules, token_texts=texts, draft_matches=matches)
            yield event

    def _noted_now(self, seen: set[int], repetition: int) -> dict[str, str] | None:
        if self.noted is None:
            new = set() if repetition else seen
        else:
            new = seen - self.noted
            self.noted.update(new)
        return {str(token): self.text(token) for token in sorted(new)} or None


@torch.inference_mode()
def draft_matches(decoder: Decoder, request: Request, generated: Sequence[int]) -> tuple[bool, ...] | None:
    """For each generated token after the first, whether the draft model would have proposed it; None where that says
    nothing: sampling, acceptance that is made up, a drafter without a model."""
    if isinstance(decoder, AutoregressiveDecoder) or not isinstance(decoder.drafter, DraftModel):
        return None
    if not request.sampling.greedy or decoder.synthetic_acceptance is not None:
        return None
    return decoder.drafter.hindsight([*request.prompt_ids, *generated], len(generated) - 1)


def text_of(tokenizer: Any) -> TextOf:
    """What a token stands for. A byte that is no character by itself becomes U+DC00 + byte (surrogateescape), so that
    the texts of a whole generation, joined and encoded the same way, are its bytes."""
    known = TokenBytes.of(tokenizer)

    def text(token: int) -> str:
        if known is not None and token in known.by_id:
            return known.by_id[token].decode("utf-8", "surrogateescape")
        try:
            return str(tokenizer.decode([token]))
        except Exception:  # an id beyond the tokenizer's vocabulary, which a padded model may emit: any library's own
            return ""

    return text
