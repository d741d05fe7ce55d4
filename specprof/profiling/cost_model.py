"""What speculation should yield, from acceptance and costs.

Costs are counted in target passes: the unit is the target's one-token forward.
c is one draft step, v the verification of k drafted tokens (a pass over k + 1 positions),
o everything else in a round. A round then costs k c + v + o and yields tau tokens.
Leviathan et al., Fast Inference from Transformers via Speculative Decoding (arXiv 2211.17192),
is the case v = 1, o = 0.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specprof.profiling.events import Round

VerifyRatio = Mapping[int, float] | Callable[[int], float]
"""v(k), by the number of drafted tokens k >= 1."""


@dataclass(frozen=True, slots=True)
class BestK:
    """The draft length with the highest predicted speedup; k = 0 says not to speculate."""

    k: int
    speedup_predicted: float


@dataclass(frozen=True, slots=True)
class CostCurve:
    """What warm rounds cost, by the number of tokens they are asked to draft: seconds, at index k = 0, 1, ... K."""

    draft_seconds: tuple[float, ...]
    verify_seconds: tuple[float, ...]
    rest_seconds: tuple[float, ...]
    """Sampling and overhead."""
    num_rounds: tuple[int, ...]
    """That each cost is of."""

    @property
    def longest(self) -> int:
        return len(self.verify_seconds) - 1

    @property
    def target_step_seconds(self) -> float:
        """The unit of all ratios: the target's pass over one token."""
        return self.verify_seconds[0]

    @property
    def baseline_overhead(self) -> float:
        """b: what plain decoding spends beside its pass, in passes."""
        return self.rest_seconds[0] / self.target_step_seconds

    def draft_cost_ratio(self, k: int) -> float:
        """c of k drafted tokens."""
        return self.draft_seconds[k] / k / self.target_step_seconds

    def verify_ratio(self, k: int) -> float:
        """v(k)."""
        return self.verify_seconds[k] / self.target_step_seconds

    def overhead_ratio(self, k: int) -> float:
        """o of rounds that draft k."""
        return self.rest_seconds[k] / self.target_step_seconds

    def break_even_tau(self, k: int) -> float:
        """Tokens a round has to yield to keep up with plain decoding, its overhead included."""
        seconds = self.draft_seconds[k] + self.verify_seconds[k] + self.rest_seconds[k]
        return seconds / (self.verify_seconds[0] + self.rest_seconds[0])

    def speedup(self, k: int, tau: float) -> float:
        """Of rounds that draft k and yield tau tokens, over plain decoding."""
        return tau / self.break_even_tau(k)

    def by_k(self) -> list[dict[str, Any]]:
        """The ratios of each draft length, 0 included, as plain JSON types."""
        rows: list[dict[str, Any]] = []
        for k in range(self.longest + 1):
            needed = self.break_even_tau(k) if k else None
            rows.append(
                {
                    "k": k,
                    "draft_cost_ratio": self.draft_cost_ratio(k) if k else None,
                    "verify_ratio": self.verify_ratio(k),
                    "overhead_ratio": self.overhead_ratio(k),
                    "break_even_tau": needed,
                    "break_even_alpha": None if needed is None else alpha_for(needed, k),
                    "num_rounds": self.num_rounds[k],
                }
            )
        return rows

    @classmethod
    def of(cls, rounds: Iterable[Round]) -> CostCurve | None:
        """Of rounds that drafted 0, 1, ... K tokens each; None if one of those lengths is missing.

        K is the longest draft that was asked for. Rounds that proposed fewer tokens than they were asked for,
        as a lookup may, count where they were asked: that is what asking costs.
        """
        by_k: dict[int, list[Round]] = {}
        for round in rounds:
            if round.k is not None:
                by_k.setdefault(round.k, []).append(round)
        lengths = range(max(by_k, default=-1) + 1)
        if len(by_k) < 2 or not all(k in by_k for k in lengths):
            return None

        def medians(seconds: Callable[[Round], float]) -> tuple[float, ...]:
            return tuple(typical(by_k[k], seconds) for k in lengths)

        return cls(
            draft_seconds=medians(lambda round: round.draft_seconds),
            verify_seconds=medians(lambda round: round.verify_seconds),
            rest_seconds=medians(lambda round: round.sample_seconds + round.overhead_seconds),
            num_rounds=tuple(len(by_k[k]) for k in lengths),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_dict` reads it."""
        return {name: list(values) for name, values in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Sequence[Any]]) -> CostCurve:
        """Inverse of :meth:`to_dict`.

        Raises:
            ValueError: not a cost curve.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        try:
            columns = {name: tuple(map(float, record[name])) for name in names}
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"not a cost curve: {error}") from error
        if len({len(column) for column in columns.values()}) != 1 or not columns["verify_seconds"]:
            raise ValueError("not a cost curve: columns of different lengths, or empty ones")
        if not all(0 <= value < math.inf for column in columns.values() for value in column):
            raise ValueError("not a cost curve: a time is negative or endless")
        if not all(columns["verify_seconds"]):
            raise ValueError("not a cost curve: a pass that takes no time")
        return cls(**columns | {"num_rounds": tuple(map(int, columns["num_rounds"]))})  # type: ignore[arg-type]


def typical(rounds: Sequence[Round], seconds: Callable[[Round], float]) -> float:
    """What a round costs: the median over rounds that drafted as many tokens, weighted by how often each number occurs.

    Rounds that draft more cost more. One median over rounds of two lengths would be either's, not what they cost.
    """
    by_length: dict[int, list[float]] = {}
    for round in rounds:
        by_length.setdefault(len(round.draft_tokens), []).append(seconds(round))
    return math.fsum(len(some) * statistics.median(some) for some in by_length.values()) / len(rounds)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What drafting k tokens per round should yield."""

    k: int
    tokens_per_round: float
    """tau."""
    replayed: bool
    """Whether tau is what rounds of k would have made of the very same texts, cut rounds included. Else it comes from
    the acceptance rate at each position of this run's rounds, which begin elsewhere than shorter ones would."""
    speedup: float
    tokens_per_round_from_alpha: float | None
    """tau if every position were accepted with the same probability (Leviathan et al.)."""
    speedup_from_alpha: float | None
    break_even_tau: float


def predictions(
    curve: CostCurve,
    conditional_rates: Sequence[float | None],
    alpha: float | None,
    matches: Sequence[Sequence[bool]] = (),
) -> tuple[Prediction, ...]:
    """For every k whose cost and acceptance are known, from 1 on.

    Args:
        matches: of each greedy text, whether the draft would have proposed each of its tokens (:func:`replayed_tau`).
    """
    found = []
    for k in range(1, curve.longest + 1):
        tau = replayed_tau(matches, k)
        replayed = tau is not None
        if tau is None:
            if k > len(conditional_rates) or conditional_rates[k - 1] is None:
                break
            tau = expected_tokens_by_position(conditional_rates, k)
        uniform = None if alpha is None else expected_tokens(alpha, k)
        found.append(
            Prediction(
                k=k,
                tokens_per_round=tau,
                replayed=replayed,
                speedup=curve.speedup(k, tau),
                tokens_per_round_from_alpha=uniform,
                speedup_from_alpha=None if uniform is None else curve.speedup(k, uniform),
                break_even_tau=curve.break_even_tau(k),
            )
        )
    return tuple(found)


def replayed_tau(matches: Iterable[Sequence[bool]], k: int) -> float | None:
    """Tokens per round that drafts of k would have yielded on texts that are decided already; None without any.

    Greedy text does not depend on k, nor does what the draft would propose at a place in it. So the rounds
    of every k can be counted: each takes in the tokens that the draft has right, at most k, and one more. The last
    round of a text drafts no more than there is room for.

    Args:
        matches: for each text, whether the draft would have proposed each of its tokens after the first.
    """
    num_tokens = num_rounds = 0
    for text in matches:
        place = 0
        while place < len(text):
            last = min(place + k, len(text) - 1)
            while place < last and text[place]:
                place += 1
            place += 1
            num_rounds += 1
        num_tokens += len(text)
    return num_tokens / num_rounds if num_rounds else None


def expected_tokens(alpha: float, k: int) -> float:
    """Tokens per round if every draft token is accepted with probability alpha, independently.

    (1 - alpha^(k+1)) / (1 - alpha), Leviathan et al. equation 1; written as the sum it is,
    which has no pole at alpha = 1.

    Raises:
        ValueError: alpha outside 0..1, or k negative.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must lie between 0 and 1")
    return expected_tokens_by_position([alpha] * k, k)


def expected_tokens_by_position(conditional_rates: Sequence[float | None], k: int) -> float:
    """Tokens per round for k drafted, from the acceptance rate at each position given that it was reached.

    1 + r_1 + r_1 r_2 + ... + r_1 ... r_k: no assumption that positions are alike.

    Raises:
        ValueError: k negative, or a rate among the first k not known.
    """
    rates = [rate for rate in conditional_rates[: max(k, 0)] if rate is not None]
    if k < 0 or len(rates) < k:
        raise ValueError(f"acceptance is known for {len(rates)} positions, k is {k}")
    survivors = 1.0
    terms = [survivors]
    for rate in rates:
        survivors *= rate
        terms.append(survivors)
    return math.fsum(terms)


def break_even_tau(k: float, c: float, v: float, o: float) -> float:
    """Tokens a round must yield to be worth its cost: k c + v + o."""
    return k * c + v + o


def predicted_speedup(tau: float, k: float, c: float, v: float, o: float) -> float:
    """tau / (k c + v + o).

    The baseline is the bare target pass. A baseline loop that itself spends a share b of a pass
    on sampling and overhead is slower by 1 + b, and the measured speedup higher by as much.
    """
    return tau / break_even_tau(k, c, v, o)


def break_even_alpha(k: int, c: float, v: float, o: float) -> float | None:
    """The alpha at which speculation starts to pay; None if even alpha = 1 does not."""
    return alpha_for(break_even_tau(k, c, v, o), k)


def alpha_for(tau: float, k: int) -> float | None:
    """The alpha that yields tau tokens per round of k drafted; None if even alpha = 1 does not.

    Inverse of :func:`expected_tokens`.
    """
    if tau <= 1:
        return 0.0
    if tau > k + 1:
        return None
    low, high = 0.0, 1.0
    # expected_tokens grows with alpha; 60 halvings reach the spacing of doubles.
    for _ in range(60):
        middle = (low + high) / 2
        if expected_tokens(middle, k) < tau:
            low = middle
        else:
            high = middle
    return high


def best_k(
    conditional_rates: Sequence[float | None],
    c: float,
    verify_ratio: VerifyRatio,
    o: float,
    *,
    baseline_overhead: float = 0.0,
) -> BestK:
    """The draft length with the highest predicted speedup, among those whose acceptance and cost are known.

    ``baseline_overhead`` is the share of a pass that the baseline's loop adds to each token.
    Not speculating is always a candidate, with speedup 1; on a tie the shorter draft wins.
    """
    best = BestK(0, 1.0)
    for k, rate in enumerate(conditional_rates, start=1):
        if rate is None:
            break
        if isinstance(verify_ratio, Mapping):
            if k not in verify_ratio:
                continue
            v = verify_ratio[k]
        else:
            v = verify_ratio(k)
        tau = expected_tokens_by_position(conditional_rates, k)
        speedup = predicted_speedup(tau, k, c, v, o) * (1 + baseline_overhead)
        if speedup > best.speedup_predicted:
            best = BestK(k, speedup)
    return best
