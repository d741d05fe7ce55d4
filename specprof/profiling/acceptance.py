"""How many draft tokens survived, counted round by round. A number that is undefined is None, never 0."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from specprof.profiling.events import Round


@dataclass(slots=True)
class AcceptanceCounts:
    """Draft tokens proposed and accepted, counted round by round; names as in vLLM's metrics.

    Only complete rounds in which something was drafted enter a rate. Rounds cut by the
    length limit or an end of sequence, and rounds whose drafter had nothing to propose,
    are counted beside them.
    """

    greedy: bool = False
    """At temperature 0 a draft token is accepted exactly if it matches, so the match is its alpha."""
    num_spec_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_draft_tokens: int = 0
    num_cut_rounds: int = 0
    num_empty_rounds: int = 0
    _drafted: Counter[int] = field(default_factory=Counter)
    _accepted_at: list[int] = field(default_factory=list)
    _reached_at: list[int] = field(default_factory=list)
    _asked_at: Counter[int] = field(default_factory=Counter)
    _asked: set[int] = field(default_factory=set)
    _num_short: int = 0
    _alpha_sum: float = 0.0
    _alpha_positions: int = 0

    def observe(self, round: Round) -> None:
        drafted, accepted = len(round.draft_tokens), round.num_accepted
        if round.cut:
            self.num_cut_rounds += 1
            return
        self._drafted[drafted] += 1
        asked = drafted if round.k is None else max(round.k, drafted)
        self._asked.add(asked)
        self._asked_at.update(range(min(accepted + 1, asked)))
        self._num_short += drafted < asked
        if not drafted:
            self.num_empty_rounds += 1
            return
        self.num_spec_steps += 1
        self.num_draft_tokens += drafted
        self.num_accepted_draft_tokens += accepted
        # The first rejected position is reached too; those behind it were never judged.
        reached = min(accepted + 1, drafted)
        longer = drafted - len(self._accepted_at)
        if longer > 0:
            self._accepted_at.extend([0] * longer)
            self._reached_at.extend([0] * longer)
        for position in range(reached):
            self._reached_at[position] += 1
        for position in range(accepted):
            self._accepted_at[position] += 1
        if self.greedy:
            self._alpha_sum += accepted
            self._alpha_positions += reached
        elif round.alpha is not None:
            self._alpha_sum += math.fsum(round.alpha[:reached])
            self._alpha_positions += reached

    @classmethod
    def of(cls, rounds: Iterable[Round], *, greedy: bool) -> AcceptanceCounts:
        counts = cls(greedy=greedy)
        for round in rounds:
            counts.observe(round)
        return counts

    @property
    def num_spec_tokens(self) -> int | None:
        """K: the longest draft."""
        return len(self._accepted_at) or None

    @property
    def draft_acceptance_rate(self) -> float | None:
        """Accepted over drafted, pooled."""
        return ratio(self.num_accepted_draft_tokens, self.num_draft_tokens)

    @property
    def mean_acceptance_length(self) -> float | None:
        """Tokens per round (block efficiency, tau): includes the bonus or corrected token."""
        return None if self.accepted_per_step is None else 1 + self.accepted_per_step

    @property
    def accepted_per_step(self) -> float | None:
        return ratio(self.num_accepted_draft_tokens, self.num_spec_steps)

    @property
    def acceptance_rate_per_pos(self) -> list[float]:
        """At each position: accepted there over all rounds."""
        return [accepted / self.num_spec_steps for accepted in self._accepted_at]

    @property
    def conditional_acceptance_rate(self) -> list[float | None]:
        """At each position: accepted there over reached there (all before it accepted); None if never reached."""
        return [ratio(a, r) for a, r in zip(self._accepted_at, self._reached_at, strict=True)]

    @property
    def proposes_in_full(self) -> bool:
        """Whether the drafter proposed as many tokens as it was asked for, every time."""
        return self._num_short == 0

    @property
    def num_asked_tokens(self) -> int | None:
        """Tokens asked of the drafter, where that was the same number in all rounds."""
        return next(iter(self._asked)) if len(self._asked) == 1 else None

    @property
    def gain_rates(self) -> list[float | None]:
        """At each position: accepted there, over rounds that got so far and were asked for a token there. A drafter
        that has nothing to propose gains nothing: where drafts end early, what rounds yield follows from these."""
        accepted = [*self._accepted_at, *[0] * (max(self._asked_at, default=-1) + 1 - len(self._accepted_at))]
        return [ratio(number, self._asked_at[position]) for position, number in enumerate(accepted)]

    @property
    def acceptance_histogram(self) -> list[int]:
        """Rounds with exactly 0, 1, ... K accepted; the bonus token is not counted."""
        if not self._accepted_at:
            return []
        at_least = [self.num_spec_steps, *self._accepted_at, 0]
        return [at_least[j] - at_least[j + 1] for j in range(len(at_least) - 1)]

    @property
    def draft_length_histogram(self) -> list[int]:
        """Rounds in which exactly 0, 1, ... K tokens were drafted."""
        return [self._drafted[length] for length in range(max(self._drafted, default=-1) + 1)]

    @property
    def alpha(self) -> float | None:
        """Mean over reached positions of sum_x min(p_target, p_draft) (Leviathan et al., arXiv 2211.17192, 3.1).

        At temperature 0 of the match. None when sampling without the probabilities recorded.
        """
        if not self._alpha_positions:
            return None
        return min(1.0, self._alpha_sum / self._alpha_positions)  # of equal models, rounded sums may come out above

    def to_dict(self) -> dict[str, Any]:
        names = (
            "num_spec_steps num_draft_tokens num_accepted_draft_tokens num_spec_tokens draft_acceptance_rate "
            "mean_acceptance_length accepted_per_step acceptance_rate_per_pos conditional_acceptance_rate "
            "acceptance_histogram draft_length_histogram alpha num_cut_rounds num_empty_rounds"
        )
        return {name: getattr(self, name) for name in names.split()}


def ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
