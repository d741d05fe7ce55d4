"""Speculative decoding: draft, verify, accept, correct or add a bonus, roll back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specprof.decoding.drafters import Draft, Drafter
from specprof.decoding.rejection import count_accepted, next_token_probs, overlap
from specprof.decoding.request import Request, prompt_tokens
from specprof.decoding.sampling import Sampling, draw, probabilities, random_stream
from specprof.errors import UsageError
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round
from specprof.profiling.memory import PeakMemory
from specprof.profiling.metrics import GenerationResult, fold
from specprof.profiling.timer import RoundClock


class SpeculativeDecoder:
    """Lossless speculative decoding of one sequence.

    Args:
        target: the model whose distribution the output has.
        drafter: what proposes; see :mod:`specprof.decoding.drafters`.
        k: tokens proposed per round; 0 is plain decoding.
        detail: record per-position probabilities when greedy too (costs a softmax per position).
        synthetic_acceptance: accept each drafted token with this probability instead of testing it. The cost of
            a round is real, the text is not the target's.

    Raises:
        UsageError: k or the synthetic acceptance is out of range.
    """

    def __init__(
        self,
        target: ModelWrapper,
        drafter: Drafter,
        k: int = 4,
        *,
        detail: bool = False,
        synthetic_acceptance: float | None = None,
    ) -> None:
        if k < 0:
            raise UsageError(f"k = {k} is negative", "k is the number of tokens drafted per round, 0 or more")
        if synthetic_acceptance is not None and not 0 <= synthetic_acceptance <= 1:
            raise UsageError(f"synthetic acceptance {synthetic_acceptance} is not in [0, 1]", "it is a probability")
        self.target = target
        self.drafter = drafter
        self.k = k
        self.detail = detail
        self.synthetic_acceptance = synthetic_acceptance

    @property
    def label(self) -> str:
        return f"SD-K{self.k}"

    @torch.inference_mode()
    def events(self, request: Request) -> Iterator[Event]:
        """Decode one request.

        Raises:
            UsageError: prompt and new tokens exceed a model's context (before anything runs).
        """
        target, drafter, device = self.target, self.drafter, self.target.device
        key = (request.prompt_id, self.label, request.repetition)
        cache = target.new_cache(request.num_positions)
        judge = Judge(request, device, self.detail, self.synthetic_acceptance)
        clock, memory = RoundClock(device), PeakMemory(device)
        memory.start()

        clock.start()
        # First, because it too refuses what doesn't fit its context.
        drafter.start(request, detail=self.detail)
        clock.mark()
        logits = target.extend(torch.tensor(request.prompt_ids, device=device), cache)
        clock.mark()
        token = judge.first_token(logits)
        drafter.observe((token,))
        (draft_seconds, target_seconds), rest = clock.finish()
        yield Prefilled(
            *key, len(request.prompt_ids), token, target_seconds, draft_seconds, rest, memory.stop("prefill")
        )
        memory.start()

        num_generated, index = 1, 0
        while (finish := request.finish_reason(num_generated, token)) is None:
            k = min(self.k, request.max_new_tokens - num_generated - 1)  # the verify pass itself adds one
            length = cache.length
            clock.start()
            draft = drafter.propose(k)
            clock.mark()
            ids = torch.cat((torch.tensor((token,), device=device), draft.tokens))
            logits = target.extend(ids, cache, ids.shape[0])
            clock.mark()
            verdict = judge(logits, draft)
            clock.mark()
            emitted = request.until_stop((*verdict.draft_tokens[: verdict.num_accepted], verdict.next_token))
            cache.truncate(length + len(emitted))
            drafter.observe(emitted)
            (drafting, verify, sample), overhead = clock.finish()
            yield Round(
                *key,
                index,
                verdict.draft_tokens,
                verdict.num_accepted,
                tuple(emitted),
                drafting,
                verify,
                sample,
                overhead,
                cut=k < self.k or len(emitted) <= verdict.num_accepted,
                target_prob=verdict.target_prob,
                draft_prob=verdict.draft_prob,
                alpha=verdict.alpha,
            )
            token = emitted[-1]
            num_generated += len(emitted)
            index += 1
        yield PromptEnded(*key, finish, memory.stop("decode"))

    def generate(
        self,
        prompt_ids: torch.Tensor | Sequence[int],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop_ids: frozenset[int] | None = None,
    ) -> GenerationResult:
        """Continue ``prompt_ids`` as :meth:`AutoregressiveDecoder.generate` does, speculatively."""
        request = Request(
            prompt_tokens(prompt_ids),
            max_new_tokens,
            Sampling(temperature, top_k, top_p),
            self.target.eos_token_ids if stop_ids is None else stop_ids,
            seed,
        )
        return next(fold(self.events(request)))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the target made of a draft, on the host."""

    draft_tokens: tuple[int, ...]
    num_accepted: int
    next_token: int
    """The corrected token, or the bonus."""
    target_prob: tuple[float, ...] | None = None
    draft_prob: tuple[float, ...] | None = None
    alpha: tuple[float, ...] | None = None


class Judge:
    """Accepts or rejects drafted tokens and chooses the one after them; reads the device once per round."""

    def __init__(self, request: Request, device: torch.device, detail: bool, synthetic_acceptance: float | None):
        self.sampling = request.sampling
        self.detail = detail
        self.synthetic_acceptance = synthetic_acceptance
        stream = (request.seed, request.prompt_id, request.repetition)
        self.generator = random_stream(device, "target", *stream)
        self.coin = random.Random(repr(("synthetic", *stream)))

    def first_token(self, logits: Tensor) -> int:
        """The token after the prompt, from ``[1, vocab]`` logits."""
        if self.sampling.greedy:
            return int(logits.argmax(-1).item())
        return int(draw(probabilities(logits, self.sampling), self.generator).item())

    def __call__(self, logits: Tensor, draft: Draft) -> Verdict:
        """``logits [k + 1, vocab]``: the target's after the last token and after each drafted one."""
        if self.synthetic_acceptance is not None:
            return self._flip_coins(logits, draft, self.synthetic_acceptance)
        return self._match(logits, draft) if self.sampling.greedy else self._sample(logits, draft)

    def _match(self, logits: Tensor, draft: Draft) -> Verdict:
        """Greedy: accept while the draft is the target's own choice."""
        k = draft.tokens.shape[0]
        tokens = torch.cat((draft.tokens, logits.argmax(-1))).tolist()
        drafted, chosen = tuple(tokens[:k]), tokens[k:]
        accepted = next((i for i in range(k) if drafted[i] != chosen[i]), k)
        verdict = Verdict(drafted, accepted, chosen[accepted])
        if self.detail and draft.probs is not None:
            return _with_probabilities(verdict, draft, logits.float().softmax(-1))
        return verdict

    def _sample(self, logits: Tensor, draft: Draft) -> Verdict:
        """Sampling: accept with probability min(1, p_target / p_draft), else draw from the residual."""
        target_probs = probabilities(logits, self.sampling)
        if draft.probs is None:
            return Verdict((), 0, int(draw(target_probs, self.generator).item()))
        k, draft_probs = draft.tokens.shape[0], draft.probs.to(target_probs)
        rows = torch.arange(k, device=logits.device)
        target_prob, draft_prob = target_probs[rows, draft.tokens], draft_probs[rows, draft.tokens]
        uniforms = torch.rand(k, generator=self.generator, device=logits.device, dtype=target_probs.dtype)
        accepted = count_accepted(target_prob, draft_prob, uniforms)
        token = draw(next_token_probs(target_probs, draft_probs, accepted), self.generator)
        seen = torch.stack((target_prob, draft_prob, overlap(target_probs[:k], draft_probs)))
        *drafted, num_accepted, next_token = torch.cat((draft.tokens, accepted.view(1), token.view(1))).tolist()
        return Verdict(tuple(drafted), num_accepted, next_token, *map(tuple, seen.tolist()))

    def _flip_coins(self, logits: Tensor, draft: Draft, acceptance: float) -> Verdict:
        """Do the work of a real verdict, then accept by chance."""
        real = self._match(logits, draft) if self.sampling.greedy else self._sample(logits, draft)
        k = len(real.draft_tokens)
        accepted = next((i for i in range(k) if self.coin.random() >= acceptance), k)
        return Verdict(real.draft_tokens, accepted, real.next_token)


def _with_probabilities(verdict: Verdict, draft: Draft, target_probs: Tensor) -> Verdict:
    assert draft.probs is not None
    k, rows = draft.tokens.shape[0], torch.arange(draft.tokens.shape[0], device=target_probs.device)
    seen = torch.stack((target_probs[rows, draft.tokens], draft.probs[rows, draft.tokens].to(target_probs)))
    target_prob, draft_prob = map(tuple, seen.tolist())
    match = tuple(float(i < verdict.num_accepted) for i in range(k))
    return Verdict(verdict.draft_tokens, verdict.num_accepted, verdict.next_token, target_prob, draft_prob, alpha=match)
