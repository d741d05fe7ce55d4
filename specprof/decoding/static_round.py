"""A round of fixed K whose whole state is on the device: draft, verify, decide, and not one number read in between.

The three steps take nothing and return nothing: they work on the tensors of a :class:`DeviceText`, the same ones every
time, with operations that do not depend on what is in them. So a step can be captured once and replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from specprof.decoding.judge import Verdict
from specprof.decoding.rejection import count_accepted, next_token_probs, overlap
from specprof.decoding.request import Request
from specprof.decoding.sampling import Sampling, draw, probabilities, random_stream
from specprof.decoding.translation import SharedVocabulary
from specprof.models.scores import are_numbers, scores_of
from specprof.models.static_forward import StaticForward

_STREAMS = ("target", "draft", "coin")


@dataclass(frozen=True, slots=True)
class Manner:
    """How tokens are chosen and what is recorded of that: what a captured round has fixed beside its K."""

    sampling: Sampling
    detail: bool
    synthetic_acceptance: float | None

    @property
    def keeps_probs(self) -> bool:
        """Whether anybody looks at the laws that drafted tokens come from."""
        return self.detail or not self.sampling.greedy

    @property
    def num_seen(self) -> int:
        """Numbers recorded of each drafted token: see :class:`~specprof.decoding.judge.Ruling`."""
        if not self.keeps_probs:
            return 0
        return 4 if self.detail and not self.sampling.greedy else 3


class DeviceText:
    """One generation as the device knows it.

    Args:
        target, draft: what decodes; without a draft, plain decoding.
        bucket: slab entries, for all tokens and what the last round writes beyond them.
        widest: rows of the widest verify pass.
        vocab_size: rows of the target's head.
    """

    def __init__(
        self, target: StaticForward, draft: StaticForward | None, bucket: int, widest: int, vocab_size: int
    ) -> None:
        table = target.own.embedding
        device, dtype = table.device, table.dtype
        self.target, self.draft, self.bucket = target, draft, bucket
        self.target_slab = target.new_slab(bucket)
        self.draft_slab = None if draft is None else draft.new_slab(bucket)
        self.tokens = torch.zeros(bucket, dtype=torch.long, device=device)
        """By position, the prompt's too. What stands behind the last emitted one means nothing."""
        self.last = torch.ones(1, dtype=torch.long, device=device)
        """Position of the last emitted token. It is in neither slab yet; a draft may lack the one before it too."""
        self.drafted = torch.zeros(widest, dtype=torch.long, device=device)
        self.logits = torch.zeros(widest, vocab_size, dtype=dtype, device=device)
        """The target's, after the last token and after each drafted one."""
        self._wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.draft_probs = self.logits.new_zeros(0, vocab_size)
        self.ruling = torch.zeros(widest + 1, dtype=torch.long, device=device)
        """The drafted tokens, how many are accepted, the token after those."""
        self.scores = torch.zeros(2 * widest, dtype=self._wide, device=device)
        """What the drafted tokens were chosen by, then what the target chose by: see
        :class:`~specprof.decoding.judge.Ruling`."""
        self.seen = torch.zeros(4, widest, dtype=self._wide, device=device)
        self.generators = tuple(torch.Generator(device) for _ in _STREAMS)
        """Of the target, the draft, and coins."""

    @property
    def device(self) -> torch.device:
        return self.tokens.device

    def seed(self, request: Request) -> None:
        """Begin the random streams of a request, which the usual decoders draw from too."""
        key = (request.seed, request.prompt_id, request.repetition)
        for use, generator in zip(_STREAMS, self.generators, strict=True):
            generator.manual_seed(random_stream(torch.device("cpu"), use, *key).initial_seed())

    def renew_generators(self, states: Sequence[Tensor]) -> None:
        """Go on with other generators, in these states."""
        self.generators = tuple(torch.Generator(self.device) for _ in _STREAMS)
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)

    def forget(self) -> None:
        """Empty the slabs: an infinity that was left behind would be seen through any mask."""
        for slab in (self.target_slab, self.draft_slab):
            if slab is not None and slab.stacked is not None:
                slab.stacked.zero_()

    def begin(self, prompt: Sequence[int], first_token: int) -> None:
        """Take in the text up to the first token; the slabs hold the prompt."""
        self.tokens[: len(prompt) + 1] = torch.tensor((*prompt, first_token), device=self.device)
        self.last.fill_(len(prompt))

    def keep_probs(self) -> None:
        """Make room for the laws of drafted tokens: not before they are asked for, a vocabulary is long."""
        if not len(self.draft_probs):
            widest, vocab_size = self.logits.shape
            self.draft_probs = torch.zeros(widest, vocab_size, dtype=self._wide, device=self.device)


class StaticRound:
    """The steps of a round that drafts ``k`` tokens.

    Args:
        text: whose state they work on.
        k: 0 is a plain step.
        width: rows of the verify pass, k + 1 or, to pad a plain step, more.
        manner: how tokens are chosen.
        vocabulary: between draft and target.
        draft_size: rows of the draft's embedding.
    """

    def __init__(
        self,
        text: DeviceText,
        k: int,
        width: int,
        manner: Manner,
        vocabulary: SharedVocabulary | None,
        draft_size: int,
    ) -> None:
        self.text, self.k, self.manner = text, k, manner
        self._vocabulary, self._last_row = vocabulary, draft_size - 1
        self._ahead = torch.arange(width, device=text.device)
        self._pair = torch.arange(-1, 1, device=text.device)
        if manner.keeps_probs and k:
            text.keep_probs()

    def whole(self) -> None:
        """All three steps."""
        self.draft()
        self.verify()
        self.decide()

    def draft(self) -> None:
        """Propose ``k`` tokens.

        The first step takes in two tokens, the last ones of the text: after full acceptance the draft has not seen
        the first of them, and to take in a token again changes nothing.
        """
        text, manner = self.text, self.manner
        if not self.k:
            return
        assert text.draft is not None and text.draft_slab is not None and self._vocabulary is not None
        positions = text.last + self._pair
        step = text.tokens.index_select(0, positions)
        scores = []
        for i in range(self.k):
            # The target can emit a padding row that the draft lacks: any token may stand in for it.
            logits = text.draft(step.clamp_max(self._last_row), positions, text.draft_slab, text.bucket, 1)
            logits = self._vocabulary.restrict(logits)
            if manner.sampling.greedy:
                step = logits.argmax(-1)
                scores.append(scores_of(logits, step))
                law = logits.float().softmax(-1) if manner.keeps_probs else None
            else:
                law = probabilities(logits, manner.sampling)
                step = draw(law, text.generators[1])
                scores.append(scores_of(law, step))
            text.drafted[i : i + 1].copy_(step)
            if law is not None:
                text.draft_probs[i : i + 1].copy_(self._vocabulary.laws(law))
            positions = text.last + (i + 1)
        text.scores[: self.k].copy_(torch.cat(scores))

    def verify(self) -> None:
        """Run the target over the last token and the drafted ones; rows of padding repeat the last token."""
        text, width = self.text, len(self._ahead)
        last = text.tokens.index_select(0, text.last)
        ids = torch.cat((last, text.drafted[: self.k])) if self.k else last.expand(width)
        positions = text.last + self._ahead
        text.logits[:width].copy_(text.target(ids, positions, text.target_slab, text.bucket))

    def decide(self) -> None:
        """Accept a prefix of the drafted tokens, choose the one after it, and append both to the text."""
        text, k = self.text, self.k
        drafted, logits = text.drafted[:k], text.logits[: k + 1]
        accepted, following = (self._match if self.manner.sampling.greedy else self._sample)(drafted, logits)
        if self.manner.synthetic_acceptance is not None and k:
            coins = torch.rand(k, generator=text.generators[2], device=text.device)
            accepted = _leading(coins < self.manner.synthetic_acceptance)
        ahead = self._ahead[: k + 1]
        emitted = torch.where(ahead < accepted, F.pad(drafted, (0, 1)), following)
        text.tokens.index_copy_(0, text.last + 1 + ahead, emitted)
        text.last.add_(accepted + 1)
        text.ruling[: k + 2].copy_(torch.cat((drafted, accepted.view(1), following)))

    def _match(self, drafted: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Greedy: accept while the draft is the target's own choice."""
        chosen = logits.argmax(-1)
        self.text.scores[self.k : 2 * self.k + 1].copy_(scores_of(logits, chosen))
        match = drafted == chosen[: self.k]
        accepted = _leading(match)
        if self.manner.keeps_probs and self.k:
            draft_probs = self.text.draft_probs[: self.k].float()
            target_prob = scores_of(logits[: self.k].float().softmax(-1), drafted)
            draft_prob = scores_of(draft_probs, drafted)
            self._see(target_prob, draft_prob, match.to(target_prob))
        return accepted, chosen.index_select(0, accepted.view(1))

    def _sample(self, drafted: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Sampling: accept with probability min(1, p_target / p_draft), else draw from the residual."""
        text, k = self.text, self.k
        target_probs = probabilities(logits, self.manner.sampling)
        if not k:
            following = draw(target_probs, text.generators[0])
            text.scores[:1].copy_(scores_of(target_probs, following))
            return text.last.new_zeros(()), following
        draft_probs = text.draft_probs[:k]
        target_prob, draft_prob = (scores_of(probs, drafted) for probs in (target_probs[:k], draft_probs))
        uniforms = torch.rand(k, generator=text.generators[0], device=text.device, dtype=target_probs.dtype)
        accepted = count_accepted(target_prob, draft_prob, uniforms)
        law = next_token_probs(target_probs, draft_probs, accepted)
        following = draw(law, text.generators[0]).view(1)
        text.scores[k : k + 1].copy_(law.index_select(0, following))
        self._see(target_prob, draft_prob, overlap(target_probs[:k], draft_probs), uniforms)
        return accepted, following

    def _see(self, *numbers: Tensor) -> None:
        recorded = numbers[: self.manner.num_seen]
        self.text.seen[: len(recorded), : self.k].copy_(torch.stack(recorded))


class Reading:
    """What a round found out, on its way to the host."""

    def __init__(self, text: DeviceText) -> None:
        self._text = text
        on_cuda = text.device.type == "cuda"

        def like(source: Tensor) -> Tensor:
            return torch.empty(source.shape, dtype=source.dtype, pin_memory=on_cuda)

        self._ruling, self._scores, self._seen = like(text.ruling), like(text.scores), like(text.seen)
        self._arrived = torch.cuda.Event() if on_cuda else None

    def read(self, manner: Manner, k: int) -> Verdict:
        """Wait for the round that was launched last: the one wait of a round."""
        text, ruling, scores, seen = self._text, self._ruling, self._scores, self._seen
        ruling[: k + 2].copy_(text.ruling[: k + 2], non_blocking=True)
        scores[: 2 * k + 1].copy_(text.scores[: 2 * k + 1], non_blocking=True)
        if k and manner.num_seen:
            seen.copy_(text.seen, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(text.device))
            self._arrived.synchronize()
        *drafted, accepted, following = ruling[: k + 2].tolist()
        numbers = scores[: 2 * k + 1].tolist()
        drafted_by, chosen_by = numbers[:k], numbers[k:]
        if not are_numbers(drafted_by):
            return Verdict(tuple(drafted), accepted, following, no_numbers="draft")
        # What follows a rejected token is nobody's text, and when sampling was not written.
        if not are_numbers(chosen_by[: accepted + 1] if manner.sampling.greedy else chosen_by[:1]):
            return Verdict(tuple(drafted), accepted, following, no_numbers="target")
        if not k or not manner.num_seen or manner.synthetic_acceptance is not None:
            return Verdict(tuple(drafted), accepted, following)
        return Verdict(tuple(drafted), accepted, following, *map(tuple, seen[: manner.num_seen, :k].tolist()))


def _leading(match: Tensor) -> Tensor:
    """How many of ``[k]`` are true before the first that is not; 0-d."""
    return match.long().cumprod(0).sum()
