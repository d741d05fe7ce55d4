"""What speculation should yield, from acceptance and costs.

Costs are counted in target passes: the unit is the target's one-token forward.
c is one draft step, v the verification of k drafted tokens (a pass over k + 1 positions),
o everything else in a round. A round then costs k c + v + o and yields tau tokens.
Leviathan et al., Fast Inference from Transformers via Speculative Decoding (arXiv 2211.17192),
is the case v = 1, o = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

VerifyRatio = Mapping[int, float] | Callable[[int], float]
"""v(k), by the number of drafted tokens k >= 1."""


@dataclass(frozen=True, slots=True)
class BestK:
    """The draft length with the highest predicted speedup; k = 0 says not to speculate."""

    k: int
    speedup_predicted: float


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
    needed = break_even_tau(k, c, v, o)
    if needed <= 1:
        return 0.0
    if needed > k + 1:
        return None
    low, high = 0.0, 1.0
    # expected_tokens grows with alpha; 60 halvings reach the spacing of doubles.
    for _ in range(60):
        middle = (low + high) / 2
        if expected_tokens(middle, k) < needed:
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
