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
_WITHIN = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


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
    """Size of the fault, 0 if there is none. What another fault did may be more than all, or less than nothing, of
    the one that is looked for: it is not bounded."""
    interval: tuple[float, float]
    """Of the size, :data:`CONFIDENCE`, with the spread that sums have at that size."""
    detectable: float
    """The smallest fault that would be found with probability :data:`POWER`; infinite if none would."""


def score_test(scores: Scores, level: float, shift: Shift | None = None, *, tilts: bool = False) -> Score | None:
    """Test whether the sum of scores is what the laws say.

    Args:
        level: p-values below it count as found.
        shift: allowed for.
        tilts: the fault weights a law by powers of probabilities, as temperature does, instead of mixing in a part of
            another.

    Returns:
        None where nothing can be said: no token could have scored otherwise, a few carry the whole sum, or there are
        scores that are no numbers.
    """
    variance, slope, growth = map(math.fsum, (scores.variances, scores.slopes, scores.variance_slopes))
    total = math.fsum(scores.deviations)
    allowed = len(scores) * (Shift() if shift is None else shift).bound
    if not (variance > 0 and slope > 0 and math.isfinite(total + allowed)):
        return None
    spread = math.sqrt(variance)
    skewness = math.fsum(scores.thirds) / spread**3
    if not abs(skewness) <= MAX_SKEWNESS:
        return None
    beyond = math.copysign(max(abs(total) - allowed, 0.0), total) / spread
    needed = max(_critical(level / 2, skewness), _critical(level / 2, -skewness)) * spread + allowed
    squares = math.fsum(scores.slopes**2)
    fault = _Tilt(slope, variance, growth) if tilts else _Mixture(slope, variance, growth, squares)
    signs = (1, -1) if tilts else (1,)  # laws are tilted either way, and a size that counts as found is found both ways
    power = NormalDist().inv_cdf(POWER)

    def found(size: float) -> bool:
        return all(abs(fault.mean(sign * size)) - power * fault.spread(sign * size) >= needed for sign in signs)

    return Score(
        num_tokens=len(scores),
        z=total / spread,
        p=two_sided(beyond, skewness),
        allowance=allowed / spread,
        skewness=skewness,
        estimate=fault.size(total),
        interval=fault.interval(total),
        detectable=_smallest(found),
    )


@dataclass(frozen=True, slots=True)
class _Mixture:
    """What a sum of scores is when a share of tokens comes from another law."""

    slope: float
    variance: float
    growth: float
    squares: float
    """Sum of the squared slopes."""

    def mean(self, share: float) -> float:
        return share * self.slope

    def spread(self, share: float) -> float:
        # The mean square about the lawful mean, less the square of how far the mean has moved.
        return math.sqrt(max(self.variance + share * self.growth - share**2 * self.squares, 0.0))

    def size(self, total: float) -> float:
        return total / self.slope

    def interval(self, total: float) -> tuple[float, float]:
        """All shares whose mean is within ``_WITHIN`` of their own spreads (Wilson's interval)."""
        a = self.slope**2 + _WITHIN**2 * self.squares
        b = total * self.slope + _WITHIN**2 * self.growth / 2
        c = total**2 - _WITHIN**2 * self.variance
        size = self.size(total)
        if (
            b**2 < a * c
        ):  # no share explains it: far outside of 0 to 1 there is no spread to speak of but the lawful one
            margin = _WITHIN * math.sqrt(self.variance) / self.slope
            return size - margin, size + margin
        root = math.sqrt(b**2 - a * c)
        return min((b - root) / a, size), max((b + root) / a, size)


@dataclass(frozen=True, slots=True)
class _Tilt:
    """What a sum of scores is when laws are weighted by a power of the probabilities.

    The mean's derivative is the variance, whose own is ``growth`` at first; it can't become negative, so it is taken to
    change by the same factor for each step of the power. To the second order that is exact.
    """

    slope: float
    variance: float
    growth: float

    def mean(self, power: float) -> float:
        rate = self.growth / self.slope
        return self.slope * (math.expm1(_bounded(rate * power)) / rate if rate else power)

    def spread(self, power: float) -> float:
        return math.sqrt(self.variance * math.exp(_bounded(power * self.growth / self.variance)))

    def size(self, total: float) -> float:
        """Infinite if no power moves the sum that far."""
        rate, first = self.growth / self.slope, total / self.slope
        if abs(rate * first) < 1e-12:
            return first
        return math.log1p(rate * first) / rate if rate * first > -1 else math.copysign(math.inf, total)

    def interval(self, total: float) -> tuple[float, float]:
        size = self.size(total)
        margin = _WITHIN * self.spread(size) if math.isfinite(size) else 0.0
        return self.size(total - margin), self.size(total + margin)


def _bounded(exponent: float) -> float:
    return min(max(exponent, -600.0), 600.0)


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
        None with fewer than :data:`MIN_EXPECTED` numbers to a bin, or where some are no numbers.
    """
    n = len(numbers)
    expected = n / bins
    # Root chi-square is a distance: a shift of the bins moves it by no more than its own length.
    allowed = math.sqrt(n * bins * math.fsum(shift.bound**2 for shift in shifts))
    if expected < MIN_EXPECTED or not math.isfinite(float(numbers.sum()) + allowed):
        return None
    counts = np.bincount(np.minimum((numbers * bins).astype(int), bins - 1), minlength=bins)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    beyond = max(math.sqrt(statistic) - allowed, 0.0) ** 2
    df = bins - 1
    critical = _smallest(lambda x: chi_square_tail(x, df) < level)

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
    return _smallest(lambda z: skewed_tail(z, skewness) < tail)


def _smallest(holds: Callable[[float], bool]) -> float:
    """The smallest positive number for which a condition holds that, once it does, goes on holding; infinite if none.

    All conditions here are of that kind: the distance that a fault moves a sum outgrows what the sum's spread takes
    from it, and tails only fall.
    """
    # The order of magnitude first: bisecting a range of many orders would spend its steps on the upper ones.
    below, above = 0.0, 1e-6
    while not holds(above):
        if above > _LARGEST_EFFECT:
            return math.inf
        below, above = above, 2 * above
    for _ in range(50):
        middle = (below + above) / 2
        below, above = (below, middle) if holds(middle) else (middle, above)
    return above
