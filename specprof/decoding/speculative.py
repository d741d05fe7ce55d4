"""Speculative decoding: draft, verify, accept, correct or add a bonus, roll back."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from specprof.decoding.decoder import EventDecoder
from specprof.decoding.draft_length import DraftLength, FixedK
from specprof.decoding.drafters import Drafter
from specprof.decoding.judge import Judge
from specprof.decoding.request import Request
from specprof.errors import UsageError
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.events import Event, Prefilled, PromptEnded
from specprof.profiling.memory import PeakMemory
from specprof.profiling.timer import RoundClock


class SpeculativeDecoder(EventDecoder):
    """Lossless speculative decoding of one sequence.

    Args:
        target: the model whose distribution the output has.
        drafter: what proposes; see :mod:`specprof.decoding.drafters`.
        k: tokens proposed per round, 0 is plain decoding; or what chooses them, :class:`AdaptiveK`.
        detail: record per-position probabilities when greedy too (costs a softmax per position), and the random
            numbers when sampling.
        synthetic_acceptance: accept each drafted token with this probability instead of testing it. The cost of
            a round is real, the text is not the target's.

    Raises:
        UsageError: k or the synthetic acceptance is out of range.
    """

    def __init__(
        self,
        target: ModelWrapper,
        drafter: Drafter,
        k: int | DraftLength = 4,
        *,
        detail: bool = False,
        synthetic_acceptance: float | None = None,
    ) -> None:
        if synthetic_acceptance is not None and not 0 <= synthetic_acceptance <= 1:
            raise UsageError(f"synthetic acceptance {synthetic_acceptance} is not in [0, 1]", "it is a probability")
        self.target = target
        self.drafter = drafter
        self.length = FixedK(k) if isinstance(k, int) else k
        self.detail = detail
        self.synthetic_acceptance = synthetic_acceptance

    @property
    def label(self) -> str:
        return f"SD-K{self.length.name}"

    @torch.inference_mode()
    def events(self, request: Request) -> Iterator[Event]:
        """Decode one request.

        Raises:
            UsageError: prompt and new tokens exceed a model's context (before anything runs).
            CorrectnessError: a model computes no numbers.
        """
        target, drafter, device = self.target, self.drafter, self.target.device
        key = (request.prompt_id, self.label, request.repetition)
        cache = target.new_cache(request.num_positions)
        judge = Judge(request, device, detail=self.detail, synthetic_acceptance=self.synthetic_acceptance)
        clock, memory = RoundClock(device), PeakMemory(device)
        memory.start()

        clock.start()
        # First, because it too refuses what doesn't fit its context.
        drafter.start(request, detail=self.detail, target_cache=cache)
        clock.mark()
        logits = target.extend(torch.tensor(request.prompt_ids, device=device), cache)
        clock.mark()
        first = judge.first_token(logits)
        if first is None:
            raise target.no_numbers(request.place(0))
        token = first
        drafter.observe((token,))
        (draft_seconds, target_seconds), rest = clock.finish()
        yield Prefilled(
            *key, len(request.prompt_ids), token, target_seconds, draft_seconds, rest, memory.stop("prefill")
        )
        memory.start()

        num_generated, index = 1, 0
        while (finish := request.finish_reason(num_generated, token)) is None:
            start = cache.length
            clock.start()
            room = request.max_new_tokens - num_generated - 1  # the verify pass itself adds one
            wanted = self.length.choose(room)
            k = min(wanted, room)
            draft = drafter.propose(k)
            clock.mark()
            ids = torch.cat((torch.tensor((token,), device=device), draft.tokens))
            logits = target.extend(ids, cache, ids.shape[0], draft.early)
            clock.mark()
            ruling = judge.decide(logits, draft)
            clock.mark()
            verdict = judge.read(ruling)
            if verdict.no_numbers is not None:
                broken = getattr(drafter, "model", target) if verdict.no_numbers == "draft" else target
                raise broken.no_numbers(request.place(num_generated))
            emitted = request.until_stop((*verdict.draft_tokens[: verdict.num_accepted], verdict.next_token))
            cache.truncate(start + len(emitted))
            drafter.observe(emitted)
            (drafting, verify, sample), overhead = clock.finish()
            cut = k < wanted or len(emitted) <= verdict.num_accepted
            round = verdict.round(key, index, emitted, (drafting, verify, sample, overhead), cut=cut, k=k)
            self.length.observe(round)
            yield round
            token = emitted[-1]
            num_generated += len(emitted)
            index += 1
        yield PromptEnded(*key, finish, memory.stop("decode"))
