"""Decoding on the static path: every round does the same, on the same tensors, and the host looks on.

Plain and speculative decoding are one loop here: a round without a draft is a plain step. On CUDA the steps of a round
are captured into graphs, one for each phase where phases are timed, one for all where they are not; elsewhere the same
steps run one operation at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from specprof.decoding.capture import Graphs
from specprof.decoding.decoder import EventDecoder
from specprof.decoding.draft_length import DraftLength, FixedK
from specprof.decoding.drafters import Drafter, DraftModel
from specprof.decoding.request import Request
from specprof.decoding.static_lane import Equipment, Lane
from specprof.decoding.static_round import Manner
from specprof.decoding.translation import SharedVocabulary
from specprof.errors import UsageError
from specprof.models.static_forward import StaticForward
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.events import Event, Prefilled, PromptEnded
from specprof.profiling.memory import PeakMemory
from specprof.profiling.metrics import BASELINE
from specprof.profiling.timer import RoundClock

SMALLEST_BUCKET = 512
"""Slab entries; the next ones are twice as long each."""


class StaticDecoder(EventDecoder):
    """Lossless speculative decoding of one sequence, or plain decoding, without host reads inside a round.

    The text is that of :class:`~specprof.decoding.speculative.SpeculativeDecoder` and of
    :class:`~specprof.decoding.autoregressive.AutoregressiveDecoder`, and so are the events, with one difference: K is
    never shortened. What the last rounds draft beyond the length limit is thrown away; those rounds are ``cut``. When
    sampling, they may therefore end otherwise than with a shortened draft.

    Args:
        target: the model whose distribution the output has.
        draft: what proposes; None is plain decoding.
        k: tokens proposed per round, or what chooses them.
        detail: as for :class:`~specprof.decoding.speculative.SpeculativeDecoder`.
        synthetic_acceptance: likewise; the coins are tossed on the device, so which tokens are accepted differs.
        capture: into CUDA graphs; None: where that is possible.
        compile: fuse the passes with ``torch.compile``; takes some ten seconds for each width and slab length.
        width: plain decoding: pad each pass to so many rows. With K + 1 of them its numbers are, to the last bit, those
            of a verify pass, where matrix products do not depend on which row is whose (in float64, MKL's do).

    Raises:
        UsageError: this target or draft can't be decoded this way (:func:`why_not_static`), or an option is out of
            range.
    """

    def __init__(
        self,
        target: ModelWrapper,
        draft: DraftModel | None,
        k: int | DraftLength = 0,
        *,
        detail: bool = False,
        synthetic_acceptance: float | None = None,
        capture: bool | None = None,
        compile: bool = False,
        width: int | None = None,
    ) -> None:
        reason = why_not_static(target, draft)
        if reason is not None:
            raise UsageError(f"the static path is not for this: {reason}", "use --engine eager")
        if synthetic_acceptance is not None and not 0 <= synthetic_acceptance <= 1:
            raise UsageError(f"synthetic acceptance {synthetic_acceptance} is not in [0, 1]", "it is a probability")
        if capture and (reason := why_not_captured(target, draft)) is not None:
            raise UsageError(reason, "--engine static runs the same path uncaptured")
        if draft is None and k != 0:
            raise UsageError("without a draft nothing can be drafted", "give a draft, or k = 0")
        if width is not None and (draft is not None or width < 1):
            raise UsageError(f"a width of {width} rows", "it pads plain decoding, to one row or more")
        self.target, self.drafter = target, draft
        self.length: DraftLength = FixedK(k) if isinstance(k, int) else k
        self.detail, self.synthetic_acceptance = detail, synthetic_acceptance
        self._why_not = why_not_captured(target, draft) if capture is None else None
        self._equipment = Equipment(
            target,
            draft,
            _static(target, compile, target.max_context),
            None if draft is None else _static(draft.model, compile, target.max_context),
            padding=width or 1,
            graphs=Graphs(target.device) if capture or (capture is None and self._why_not is None) else None,
            must_capture=bool(capture),
            compiles=compile,
        )
        self._idle: dict[tuple[int, int], list[Lane]] = {}

    @property
    def label(self) -> str:
        return BASELINE if self.drafter is None else f"SD-K{self.length.name}"

    @property
    def captured(self) -> bool:
        """Whether rounds are replayed from CUDA graphs."""
        return self._equipment.captures

    @property
    def why_uncaptured(self) -> str | None:
        """Why they are not, although nobody said that they shouldn't be."""
        graphs = self._equipment.graphs
        return self._why_not if graphs is None else graphs.failure

    @property
    def capture_seconds(self) -> float:
        """Spent so far in capturing, on first use of each K and slab length: no part of any round."""
        return 0.0 if self._equipment.graphs is None else self._equipment.graphs.seconds

    @torch.inference_mode(False)
    @torch.no_grad()
    def events(self, request: Request) -> Iterator[Event]:
        """Decode one request.

        Raises:
            UsageError: prompt and new tokens exceed a model's context (before anything runs).
            CorrectnessError: a model computes no numbers.
        """
        key = (request.prompt_id, self.label, request.repetition)
        clock, memory = RoundClock(self.target.device), PeakMemory(self.target.device)
        with self._lane(request) as lane:
            memory.start()
            clock.start()
            lane.prefill_draft(request)
            clock.mark()
            logits = lane.prefill_target(request)
            clock.mark()
            token = lane.begin(request, logits)
            (draft_seconds, target_seconds), rest = clock.finish()
            num_prompt = len(request.prompt_ids)
            yield Prefilled(*key, num_prompt, token, target_seconds, draft_seconds, rest, memory.stop("prefill"))
            memory.start()

            num_generated, index = 1, 0
            while (finish := request.finish_reason(num_generated, token)) is None:
                clock.start()
                room = request.max_new_tokens - num_generated - 1  # the verify pass itself adds one
                k = self.length.choose(room)
                if k not in lane.phases:
                    lane.make_phases(k)
                    clock.start()
                draft, verify, decide = lane.phases[k]
                if self.drafter is not None:  # the time of a phase that isn't there would be in no sum
                    lane.catch_up(k)
                    draft()
                    clock.mark()
                verify()
                clock.mark()
                decide()
                clock.mark()
                verdict = lane.read(k)
                emitted = lane.emit(request, verdict, k, room + 1)
                (*drafting, verifying, sampling), overhead = clock.finish()
                seconds = (sum(drafting), verifying, sampling, overhead)
                cut = k > room or len(emitted) <= verdict.num_accepted
                asked = None if self.drafter is None else k
                round = verdict.round(key, index, emitted, seconds, cut=cut, k=asked)
                self.length.observe(round)
                yield round
                token = emitted[-1]
                num_generated += len(emitted)
                index += 1
            yield PromptEnded(*key, finish, memory.stop("decode"))

    @torch.inference_mode(False)
    @torch.no_grad()
    def tokens(self, request: Request) -> list[int]:
        """The tokens that :meth:`events` emits, with nothing recorded and nothing timed.

        Raises:
            CorrectnessError: as for :meth:`events`.
            UsageError: likewise; K is not fixed, so that it would have to be chosen by what was timed.
        """
        if not isinstance(self.length, FixedK):
            raise UsageError(f"K {self.length.name} is chosen by timing rounds", "use events(), or a fixed K")
        k = self.length.longest
        with self._lane(request) as lane:
            lane.prefill_draft(request)
            tokens = [lane.begin(request, lane.prefill_target(request))]
            if k not in lane.rounds:
                lane.make_round(k)
            round = lane.rounds[k]
            while request.finish_reason(len(tokens), tokens[-1]) is None:
                round()
                tokens += lane.emit(request, lane.read(k), k, request.max_new_tokens - len(tokens))
        return tokens

    @contextmanager
    def _lane(self, request: Request) -> Iterator[Lane]:
        """Where to decode a request: of a generation that has ended, or a new one."""
        self.target.check_context(request.num_positions)
        if self.drafter is not None:
            self.drafter.model.check_context(request.num_positions)
        if request.draft_prompt_ids not in (None, request.prompt_ids):
            raise UsageError("on the static path draft and target read one prompt", "use --engine eager")
        widest = max(self.length.longest + 1, self._equipment.padding)
        bucket = bucket_for(request.num_positions, widest, self.target.max_context)
        idle = self._idle.setdefault((bucket, widest), [])
        lane = idle.pop() if idle else Lane(self._equipment, bucket, widest)
        lane.follow(request, Manner(request.sampling, self.detail, self.synthetic_acceptance))
        try:
            yield lane
        finally:
            idle.append(lane)


def bucket_for(positions: int, widest: int, max_context: int | None) -> int:
    """Slab entries for a request of so many positions, of which there are few different numbers.

    A round's width lies behind the last position, for what is drafted beyond it.
    """
    bucket = SMALLEST_BUCKET
    while bucket < positions + widest:
        bucket *= 2
    if max_context is None:
        return bucket
    return min(bucket, -(-(max_context + widest) // _MULTIPLE) * _MULTIPLE)


def why_not_static(target: ModelWrapper, drafter: Drafter | None) -> str | None:
    """Why this target and drafter can't be decoded on the static path, or None if they can."""
    if drafter is not None and type(drafter) is not DraftModel:
        return f"{_OTHER_DRAFTERS.get(type(drafter).__name__, 'this drafter')} needs the host in every round"
    if isinstance(drafter, DraftModel):
        if not isinstance(drafter.translation, SharedVocabulary):
            return "draft and target have different vocabularies, between which the host translates"
        if drafter.threshold:
            return "a draft threshold has the host look at every drafted token"
        if drafter.model.device != target.device:
            return f"the draft is on {drafter.model.device} and the target on {target.device}"
    for model in (target, *(() if drafter is None else (drafter.model,))):
        if model.own_forward is None:
            return f"{model.name} runs on Hugging Face's forward ({model.why_not_own or 'which was asked for'})"
    return None


def why_not_captured(target: ModelWrapper, drafter: Drafter | None) -> str | None:
    """Why their rounds can't be captured into CUDA graphs, or None as far as one can know before trying."""
    if target.device.type != "cuda":
        return "CUDA graphs need a CUDA device"
    return why_not_static(target, drafter)


def _static(model: ModelWrapper, compile: bool, max_context: int | None) -> StaticForward:
    own = model.own_forward
    assert own is not None, "why_not_static lets no other model through"
    if compile and max_context is not None:
        # Slabs go a few rounds beyond the context. Were they to make tables longer, all passes would be compiled anew.
        own.reserve(max_context + SMALLEST_BUCKET)
    return StaticForward(own, compile=compile)


_OTHER_DRAFTERS = {
    "LayerSkip": "layer skip",
    "NGramLookup": "prompt lookup",
    "RandomTokens": "the random drafter",
    "StringMatch": "matching text",
}
_MULTIPLE = 16
"""Slab lengths are divisible by it: attention kernels like their rows aligned."""
