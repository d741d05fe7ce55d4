"""Whether tokens follow the laws they should have been drawn from: exact moments, p-values, and what would be found.

Every token has, given the text before it, a known law, so for any bounded function g of a token the sum of
``g(token) - E[g]`` is a martingale whose conditional variances are known too: divided by their root it is close to
standard normal (martingale central limit theorem; Hall & Heyde, Martingale Limit Theory and Its Application, 1980,
theorem 3.2). Tokens need not be independent, nor texts of a fixed length. What is left of the skewness is taken into
account, because the p-values that matter here lie far out in the tail.

numpy and the standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

POWER = 0.99
"""What counts as "would have been found"."""
CONFIDENCE = 0.95
"""Of the intervals of estimates."""
MAX_SKEWNESS = 2.0
"""Of a sum; beyond, too few tokens carry it."""
MIN_EXPECTED = 5.0
"""Draws that a cell of a chi-square test, or either outcome of a coin, has to expect."""
_NEGLIGIBLE_SKEWNESS = 0.01
_FAR_OUT = 1e-3
_LARGEST_EFFECT = 1e6


@dataclass(frozen=True, slots=True)
class Scores:
    """A function g of each token beside what its law says about it, ``[n]`` each.

    ``slopes`` and ``variance_slopes`` describe the fault that is looked for: how fast the mean of g and its mean
    square about the lawful mean grow with the size of the fault.
    """

    deviations: Values
    """g(token) - E[g]."""
    variances: Values
    thirds: Values
    """Third central moments."""
    slopes: Values
    variance_slopes: Values

    def __len__(self) -> int:
        return len(self.deviations)


@dataclass(frozen=True, slots=True)
class Shift:
    """How far rounding moves the mean of g, from a sample of tokens: computed step by step as it was when they were
    drawn, a law is not exactly the one that is computed afterwards over the whole text."""

    mean: float = 0.0
    error: float = 0.0
    """Standard error of the mean."""

    @classmethod
    def of(cls, shifts: Values) -> Shift:
        if len(shifts) < 2:
            return cls()
        return cls(float(shifts.mean()), float(shifts.std(ddof=1) / math.sqrt(len(shifts))))

    @property
    def bound(self) -> float:
        """Per token, beyond which it isn't rounding."""
        return abs(self.mean) + 3 * self.error


@dataclass(frozen=True, slots=True)
class Score:
    """What a sum of scores says."""

    num_tokens: int
    z: float
    p: float
    """Two-sided, after the allowance for rounding."""
    allowance: float
    """In units of z."""
    skewness: float
    estimate: float
    """Size of the fault, 0 if there is none."""
    interval: tuple[float, float]
    detectable: float
    """The smallest fault that would be found with probability :data:`POWER`; infinite if none would."""


def score_test(scores: Scores, level: float, shift: Shift | None = None, *, exponential: bool = False) -> Score | None:
    """Test whether the sum of scores is what the laws say.

    Args:
        level: p-values below it count as found.
        shift: allowed for.
        exponential: the fault tilts a law by powers of probabilities, as temperature does, instead of mixing in a part
            of another: the mean of g then changes less than in proportion on one side.

    Returns:
        None where nothing can be said: no token could have scored otherwise, or a few carry the whole sum.
    """
    variance, slope = math.fsum(scores.variances), math.fsum(scores.slopes)
    if not variance > 0 or not slope > 0:
        return None
    spread = math.sqrt(variance)
    skewness = math.fsum(scores.thirds) / spread**3
    if abs(skewness) > MAX_SKEWNESS:
        return None
    total = math.fsum(scores.deviations)
    allowed = len(scores) * (Shift() if shift is None else shift).bound
    beyond = math.copysign(max(abs(total) - allowed, 0.0), total) / spread
    estimate, margin = total / slope, NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * spread / slope
    needed = max(_critical(level / 2, skewness), _critical(level / 2, -skewness)) * spread + allowed
    growth, power = math.fsum(scores.variance_slopes), NormalDist().inv_cdf(POWER)
    # The second derivative of a mean by an exponential tilt is the first one of its variance.
    curvature = abs(growth) / 2 if exponential else 0.0

    def found(size: float) -> bool:
        moved = size * slope - size**2 * curvature
        return moved - power * math.sqrt(max(variance + size * growth, 0.0)) >= needed

    return Score(
        num_tokens=len(scores),
        z=total / spread,
        p=two_sided(beyond, skewness),
        allowance=allowed / spread,
        skewness=skewness,
        estimate=estimate,
        interval=(estimate - margin, estimate + margin),
        detectable=_smallest(found),
    )


@dataclass(frozen=True, slots=True)
class Uniformity:
    """What a chi-square test of numbers that should be uniform on [0, 1) says."""

    num_tokens: int
    chi_square: float
    degrees_of_freedom: int
    p: float
    """After the allowance for rounding."""
    allowance: float
    """In units of the root of chi-square."""
    detectable: float
    """Root mean square relative deviation of the bins that would be found with probability :data:`POWER`."""


def uniformity_test(
    numbers: Values, level: float, *, bins: int = 20, shifts: tuple[Shift, ...] = ()
) -> Uniformity | None:
    """Pearson's chi-square test in equal bins.

    Args:
        numbers: ``[n]`` in [0, 1].
        shifts: of each bin's probability, allowed for.

    Returns:
        None with fewer than :data:`MIN_EXPECTED` numbers to a bin.
    """
    n = len(numbers)
    expected = n / bins
    if expected < MIN_EXPECTED:
        return None
    counts = np.bincount(np.minimum((numbers * bins).astype(int), bins - 1), minlength=bins)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    # Root chi-square is a distance: a shift of the bins moves it by no more than its own length.
    allowed = math.sqrt(n * bins * math.fsum(shift.bound**2 for shift in shifts))
    beyond = max(math.sqrt(statistic) - allowed, 0.0) ** 2
    df = bins - 1
    critical = _root(lambda x: chi_square_tail(x, df) < level, 0.0, 1e4)

    def found(noncentrality: float) -> bool:
        return noncentral_chi_square_tail(critical, df, noncentrality) >= POWER

    distance = math.sqrt(_smallest(found)) + allowed
    return Uniformity(n, statistic, df, chi_square_tail(beyond, df), allowed, distance / math.sqrt(n))


# Tails of distributions


def two_sided(z: float, skewness: float = 0.0) -> float:
    """Probability of a standardised sum as far out on its side, doubled."""
    return min(1.0, 2 * (skewed_tail(z, skewness) if z > 0 else skewed_tail(-z, -skewness)))


def skewed_tail(z: float, skewness: float) -> float:
    """P(Z > z) of a standardised sum: the normal law, corrected for skewness by a shifted gamma law (Pearson III).

    It has the first three moments of the sum. At z = 4 a skewness of 0.3 makes the normal tail too small by 4.
    On its light side that law ends where the sum may not: far out there, the normal tail is kept.
    """
    normal = 0.5 * math.erfc(z / math.sqrt(2))
    if abs(skewness) < _NEGLIGIBLE_SKEWNESS:
        return normal
    shape = 4 / skewness**2
    if skewness > 0:
        return gamma_tails(shape, shape + z * math.sqrt(shape))[1]
    return max(gamma_tails(shape, shape - z * math.sqrt(shape))[0], min(normal, _FAR_OUT))


def chi_square_tail(x: float, df: int) -> float:
    """P(X > x) of the chi-square law."""
    return gamma_tails(df / 2, x / 2)[1]


def noncentral_chi_square_tail(x: float, df: int, noncentrality: float) -> float:
    """P(X > x) of the noncentral chi-square law: central ones with ``df + 2 j``, j from a Poisson law."""
    mean = noncentrality / 2
    if mean == 0:
        return chi_square_tail(x, df)
    width = 10 * math.sqrt(mean) + 10
    return math.fsum(
        math.exp(j * math.log(mean) - mean - math.lgamma(j + 1)) * chi_square_tail(x, df + 2 * j)
        for j in range(max(0, int(mean - width)), int(mean + width) + 1)
    )


def gamma_tails(shape: float, x: float) -> tuple[float, float]:
    """P(X < x) and P(X > x) of the gamma law of scale 1: the smaller of them to full relative precision.

    Series and continued fraction of the incomplete gamma function (DLMF 8.7.1 and 8.9.2).
    """
    if x <= 0:
        return 0.0, 1.0
    factor = math.exp(shape * math.log(x) - x - math.lgamma(shape))
    if x < shape + 1:
        term = total = 1 / shape
        denominator = shape
        while term > total * 1e-16:
            denominator += 1
            term *= x / denominator
            total += term
        lower = min(factor * total, 1.0)
        return lower, 1 - lower
    # Modified Lentz.
    b = x + 1 - shape
    c, d = math.inf, 1 / b
    fraction = d
    for i in range(1, 1_000_000):
        a = -i * (i - shape)
        b += 2
        d = 1 / _off_zero(a * d + b)
        c = _off_zero(b + a / c)
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    upper = min(factor * fraction, 1.0)
    return 1 - upper, upper


def _off_zero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300


def _critical(tail: float, skewness: float) -> float:
    """The z that is exceeded with probability ``tail``."""
    return _root(lambda z: skewed_tail(z, skewness) < tail, 0.0, 200.0)


def _smallest(found: Callable[[float], bool]) -> float:
    """The smallest size for which ``found`` holds; infinite if there is none."""
    return _root(found, 0.0, math.inf)


def _root(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where a condition begins to hold, below ``high``; else ``high``."""
    # First the order of magnitude: bisecting a range of many orders would spend its steps on the upper ones.
    start, step = low, 1e-6
    while not holds(start + step):
        low = start + step
        if low >= high or step > _LARGEST_EFFECT:
            return high
        step *= 2
    high = start + step
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
