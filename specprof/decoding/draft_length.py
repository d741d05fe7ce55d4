"""How many tokens to draft in the next round."""

from __future__ import annotations

import random
from typing import Protocol

from specprof.errors import UsageError
from specprof.profiling.events import Round


class DraftLength(Protocol):
    """Chooses K for each round.

    It may look at all that happened in earlier rounds and at nothing in the one to come: a choice that knew the
    tokens would change their distribution.
    """

    @property
    def name(self) -> str:
        """``4``, ``auto``: what stands after K in a decoder's label."""
        ...

    @property
    def longest(self) -> int:
        """The largest K it may choose."""
        ...

    def choose(self, room: int) -> int:
        """K of the next round; ``room`` tokens are the most that can be drafted before the length limit."""
        ...

    def observe(self, round: Round) -> None:
        """What became of it."""
        ...


class FixedK:
    """The same K every round; 0 is plain decoding."""

    def __init__(self, k: int) -> None:
        if k < 0:
            raise UsageError(f"k = {k} is negative", "k is the number of tokens drafted per round, 0 or more")
        self.longest = k
        self.name = str(k)

    def choose(self, room: int) -> int:
        return self.longest

    def observe(self, round: Round) -> None:
        return


class EveryK:
    """Each K up to the longest in turn, over and over in a shuffled order: what rounds of each cost, side by side.

    Args:
        shortest: where to begin.
        streak: rounds of one K in a row. The first of them finds in the caches what rounds of another K left there, and
            may have the draft catch up.
    """

    name = "survey"

    def __init__(self, longest: int, seed: int = 0, *, shortest: int = 0, streak: int = 1) -> None:
        self.longest, self.shortest, self.streak = longest, shortest, streak
        self._shuffle = random.Random(seed).shuffle
        self._next: list[int] = []

    def choose(self, room: int) -> int:
        if not self._next:
            order = list(range(self.shortest, self.longest + 1))
            self._shuffle(order)
            self._next = [k for k in order for _ in range(self.streak)]
        return self._next.pop()

    def observe(self, round: Round) -> None:
        return


class AdaptiveK:
    """The K that has lately promised the most tokens per second.

    Expected tokens come from the running acceptance rate at each position, costs from how long rounds of each K took
    beside each other. Both are learned on the way: the first rounds try short and long drafts, later ones a neighbour
    of the best K now and then, so that a change of acceptance is noticed. What was learned is kept from one generation
    to the next.
    ``benchmarks/adaptive_k.py`` compares it with every fixed K.

    Args:
        longest: the largest K to choose; 0, plain decoding, is always a choice.
    """

    name = "auto"

    def __init__(self, longest: int = 8) -> None:
        if longest < 1:
            raise UsageError(f"k-max = {longest} is not >= 1", "it is the largest number of tokens to draft per round")
        self.longest = longest
        self._acceptance = RunningAcceptance(longest)
        self._cost = [0.0] * (longest + 1)
        self._tries = [0] * (longest + 1)
        self._pace = 1.0
        self._rounds_since_trial = 0
        self._trials = 0

    def choose(self, room: int) -> int:
        firsts = {k for k in _FIRST_LENGTHS if k < self.longest} | {self.longest}
        untried = [k for k in firsts if k <= room and self._tries[k] < _FIRST_TRIES]
        if untried:
            # The longest of the least tried: it tells most about acceptance.
            return min(untried, key=lambda k: (self._tries[k], -k))
        speeds = self.speeds()
        best = speeds.index(max(speeds))
        # A round without a draft tells nothing about acceptance: where none pays, look again sooner.
        if self._rounds_since_trial < (_ROUNDS_BETWEEN_TRIALS if best else _ROUNDS_WITHOUT_DRAFT):
            return best
        self._rounds_since_trial = 0
        self._trials += 1
        neighbours = [k for k in (best + 1, best - 1) if 1 <= k <= self.longest]
        return neighbours[self._trials % len(neighbours)] if neighbours else best

    def observe(self, round: Round) -> None:
        # A draft that the length limit shortened is as good as one of that K; one that an end of text cut short isn't.
        if round.k is None or len(round.emitted_tokens) <= round.num_accepted:
            return
        self._rounds_since_trial += 1
        # By what was asked for: a drafter that often proposes less is judged by what asking it brings.
        self._acceptance.observe(round.k, round.num_accepted)
        self._observe_cost(round.k, round.seconds)

    def _observe_cost(self, k: int, seconds: float) -> None:
        """Costs are in units of the machine's present pace: when it slows down for a while, or the context grows, a K
        tried long ago must not look cheap beside those tried since."""
        seconds = max(seconds, 1e-9)  # a coarse clock may say 0
        if not self._cost[k]:
            self._cost[k] = seconds / self._pace
        # A round that was interrupted counts as slow, not as slow as it was.
        surprise = min(max(seconds / (self._cost[k] * self._pace), 0.5), 2.0)
        self._tries[k] += 1
        self._cost[k] *= 1 + (surprise - 1) / min(self._tries[k], _COST_ROUNDS)
        self._pace *= 1 + (surprise - 1) / _PACE_ROUNDS

    def speeds(self) -> list[float]:
        """Expected tokens per time of each K from 0 on, by what was seen so far; 0 where nothing was."""
        reached, tokens, speeds = 1.0, 0.0, []
        for cost, rate in zip(self._cost, [*self._acceptance.conditional_rates(), 0.0], strict=True):
            tokens += reached
            speeds.append(tokens / cost if cost else 0.0)
            reached *= rate
        return speeds


class RunningAcceptance:
    """Acceptance rates at each position, given that it was reached; older rounds count less and less.

    Kept apart by how many rounds in a row were accepted whole: where a text repeats itself, or a model writes
    what every model would write, much more is accepted than elsewhere.
    """

    def __init__(self, positions: int) -> None:
        self._by_streak = [_Counts(positions) for _ in range(_LONGEST_STREAK + 1)]
        self._overall = _Counts(positions)
        self._streak = 0

    def observe(self, k: int, num_accepted: int) -> None:
        """One round: k asked for, of which the first ``num_accepted`` were proposed and accepted."""
        if k == 0:
            return
        self._overall.observe(k, num_accepted)
        self._by_streak[self._streak].observe(k, num_accepted)
        self._streak = min(self._streak + 1, _LONGEST_STREAK) if num_accepted == k else 0

    def conditional_rates(self) -> list[float]:
        """Rates by position for the next round. Where little was seen, a rate leans on that of all positions."""
        counts, overall = self._by_streak[self._streak], self._overall
        everywhere = (overall.all_accepted + 1) / (overall.all_reached + 2)
        pooled = (counts.all_accepted + _PRIOR * everywhere) / (counts.all_reached + _PRIOR)
        prior = _PRIOR * pooled
        return [(a + prior) / (r + _PRIOR) for a, r in zip(counts.accepted, counts.reached, strict=True)]


class _Counts:
    """Accepted and reached, by position and together, older rounds counting less."""

    def __init__(self, positions: int) -> None:
        self.accepted, self.reached = [0.0] * positions, [0.0] * positions
        self.all_accepted = self.all_reached = 0.0

    def observe(self, k: int, num_accepted: int) -> None:
        num_reached = min(num_accepted + 1, k)
        for position in range(num_reached):
            self.reached[position] = _MEMORY * self.reached[position] + 1
            self.accepted[position] = _MEMORY * self.accepted[position] + (position < num_accepted)
        self.all_accepted = _MEMORY * self.all_accepted + num_accepted
        self.all_reached = _MEMORY * self.all_reached + num_reached


_FIRST_TRIES = 5
_FIRST_LENGTHS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_COST_ROUNDS = 100
_PACE_ROUNDS = 8
_ROUNDS_BETWEEN_TRIALS = 40
_ROUNDS_WITHOUT_DRAFT = 6
_LONGEST_STREAK = 4
_MEMORY = 0.99
_PRIOR = 12.0
"""Rounds that the common rate counts for."""
