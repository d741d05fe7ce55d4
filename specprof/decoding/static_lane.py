"""What generations on the static path go through one after another: state on the device, rounds made for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specprof.decoding.capture import Graphs, Step, warm_up
from specprof.decoding.drafters import DraftModel
from specprof.decoding.judge import Verdict
from specprof.decoding.request import Request
from specprof.decoding.sampling import draw, probabilities
from specprof.decoding.static_round import DeviceText, Manner, Reading, StaticRound
from specprof.decoding.translation import SharedVocabulary
from specprof.errors import ResourceError
from specprof.models.kv_cache import KVCache
from specprof.models.scores import are_numbers, scores_of
from specprof.models.static_forward import StaticForward
from specprof.models.wrapper import ModelWrapper


@dataclass(frozen=True, slots=True)
class Equipment:
    """What all lanes of a decoder have in common."""

    target: ModelWrapper
    drafter: DraftModel | None
    target_forward: StaticForward
    draft_forward: StaticForward | None
    padding: int
    """Rows of a plain step where there is no drafter."""
    graphs: Graphs | None
    """Where to capture; None: nothing is captured."""
    must_capture: bool
    """Whether a capture that fails is an error; otherwise its step runs as it is."""
    compiles: bool

    @property
    def captures(self) -> bool:
        return self.graphs is not None and (self.must_capture or self.graphs.failure is None)


class Lane:
    """A generation at a time, of any length that fits the slabs.

    Args:
        equipment: whose.
        bucket: slab entries.
        widest: rows of the widest verify pass.
    """

    def __init__(self, equipment: Equipment, bucket: int, widest: int) -> None:
        self._equipment = equipment
        self._device_text = DeviceText(
            equipment.target_forward, equipment.draft_forward, bucket, widest, equipment.target.vocab_size
        )
        self._reading = Reading(self._device_text)
        self._manner: Manner | None = None
        self.phases: dict[int, tuple[Step, Step, Step]] = {}
        """By K: draft, verify, decide."""
        self.rounds: dict[int, Step] = {}
        """By K: all of it as one."""
        self.text: list[int] = []
        """Prompt and tokens."""
        self._drafted_from = 0
        """Entries of the draft's slab that are the text's, at least."""

    def follow(self, request: Request, manner: Manner) -> None:
        """Make ready for a request."""
        if manner != self._manner:
            self._manner = manner
            self.phases.clear()
            self.rounds.clear()
        self._device_text.forget()
        self._device_text.seed(request)

    def prefill_draft(self, request: Request) -> None:
        """Run the prompt through the draft, if there is one."""
        drafter, slab = self._equipment.drafter, self._device_text.draft_slab
        if drafter is not None and slab is not None:
            self._extend_draft(drafter, request.prompt_ids, KVCache(slab))
            self._drafted_from = len(request.prompt_ids)

    def prefill_target(self, request: Request) -> Tensor:
        """Run the prompt through the target; logits ``[1, vocab]`` after it."""
        ids = torch.tensor(request.prompt_ids, device=self._device_text.device)
        return self._equipment.target.extend(ids, KVCache(self._device_text.target_slab))

    def begin(self, request: Request, logits: Tensor) -> int:
        """Choose the first token; the text begins."""
        text = self._device_text
        rows = logits if request.sampling.greedy else probabilities(logits, request.sampling)
        first = rows.argmax(-1) if request.sampling.greedy else draw(rows, text.generators[0])
        token = int(first.item())
        if not are_numbers(scores_of(rows, first).tolist()):
            raise self._equipment.target.no_numbers(request.place(0))
        text.begin(request.prompt_ids, token)
        self.text = [*request.prompt_ids, token]
        return token

    def catch_up(self, k: int) -> None:
        """Before ``k`` tokens are drafted: run the draft over what was emitted in rounds that drafted none.

        The round itself takes in the last two tokens.
        """
        drafter, slab = self._equipment.drafter, self._device_text.draft_slab
        missed = self.text[self._drafted_from : -2]
        if k and missed and drafter is not None and slab is not None:
            self._extend_draft(drafter, missed, KVCache(slab, self._drafted_from))

    def read(self, k: int) -> Verdict:
        """Wait for the result of the round just launched."""
        assert self._manner is not None
        return self._reading.read(self._manner, k)

    def emit(self, request: Request, verdict: Verdict, k: int, room: int) -> Sequence[int]:
        """What a round adds to the text: up to ``room`` tokens, up to the end of the text.

        Raises:
            CorrectnessError: a model computes no numbers.
        """
        if verdict.no_numbers is not None:
            drafter, target = self._equipment.drafter, self._equipment.target
            broken = drafter.model if drafter is not None and verdict.no_numbers == "draft" else target
            raise broken.no_numbers(request.place(len(self.text) - len(request.prompt_ids)))
        emitted = request.until_stop((*verdict.draft_tokens[: verdict.num_accepted], verdict.next_token))[:room]
        self.text += emitted
        if k:
            self._drafted_from = len(self.text) - 2
        return emitted

    def make_phases(self, k: int) -> None:
        """Capture the phases of rounds that draft ``k`` tokens, or compile what they run, or simply name them."""
        round = self._round(k)
        drafting = (round.draft,) if k else ()  # of nothing there is nothing to capture
        *draft, verify, decide = self._made(*drafting, round.verify, round.decide)
        self.phases[k] = (draft[0] if draft else round.draft, verify, decide)

    def make_round(self, k: int) -> None:
        """The same for the whole round as one step."""
        (self.rounds[k],) = self._made(self._round(k).whole)

    def _round(self, k: int) -> StaticRound:
        equipment = self._equipment
        assert self._manner is not None
        width = equipment.padding if equipment.drafter is None else k + 1
        vocabulary, draft_size = None, 0
        if equipment.drafter is not None:
            assert isinstance(equipment.drafter.translation, SharedVocabulary)
            vocabulary, draft_size = equipment.drafter.translation, equipment.drafter.model.vocab_size
        return StaticRound(self._device_text, k, width, self._manner, vocabulary, draft_size)

    def _made(self, *steps: Step) -> tuple[Step, ...]:
        equipment, text = self._equipment, self._device_text
        if equipment.graphs is not None and equipment.captures:
            states, last = [generator.get_state() for generator in text.generators], text.last.clone()
            try:
                return tuple([equipment.graphs.capture(step, text.generators, (text.last,)) for step in steps])
            except ResourceError:
                # Generators are in the hands of the graphs there are: others go on from where they were.
                self.phases.clear()
                self.rounds.clear()
                text.renew_generators(states)
                if equipment.must_capture:
                    raise
                text.last.copy_(last)  # from here on steps run as they are
        if equipment.compiles or text.device.type == "cuda":  # passes are compiled, and attention timed, on first use
            for step in steps:
                warm_up(step, text.generators, (text.last,))
        return steps

    @staticmethod
    def _extend_draft(drafter: DraftModel, tokens: Sequence[int], cache: KVCache) -> None:
        ids = torch.tensor(drafter.translation.context(tokens), device=drafter.model.device)
        drafter.model.extend(ids, cache)
