"""Medians, intervals, outliers, drift: each with its reference. What is undefined is None."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Values = Sequence[float] | npt.NDArray[np.floating]
Interval = tuple[float, float]
Verdict = Literal["faster", "slower", "not distinguishable"]
Statistics = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
"""Of sums [columns, resamples], several statistics [statistics, resamples]; NaN or infinite where undefined."""

FEWEST_PAIRS = 5
"""It takes so many for an interval, and with it a verdict: of fewer, even how much they differ is hardly known."""

RESAMPLES = 10_000

_RESAMPLED_AT_ONCE = 2_000_000
"""Bounds the memory of the bootstrap: counts held at a time."""

_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(64)
"""Of Gauss's quadrature over -1..1."""


def median(values: Values) -> float | None:
    return percentile(values, 50)


def percentile(values: Values, q: float) -> float | None:
    """Percentile q (0..100), linear between neighbours."""
    return float(np.percentile(values, q)) if len(values) else None


def ratio_of_rates(
    numerators: Values,
    denominators: Values,
    *,
    numerator_weights: Values | None = None,
    denominator_weights: Values | None = None,
) -> float | None:
    """(sum numerators / sum of their weights) / (sum denominators / sum of their weights); no weights: sums."""
    top, bottom, top_weights, bottom_weights = _paired(numerators, denominators, numerator_weights, denominator_weights)
    if not top.size:
        return None
    return float(top.sum() / top_weights.sum() / (bottom.sum() / bottom_weights.sum()))


def paired_bootstrap_ratio(
    numerators: Values,
    denominators: Values,
    *,
    numerator_weights: Values | None = None,
    denominator_weights: Values | None = None,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Interval of :func:`ratio_of_rates` over all pairs; None with fewer than :data:`FEWEST_PAIRS`.

    Pairs (prompts) are resampled with replacement, both sides together; see :func:`paired_bootstrap`.

    Raises:
        ValueError: lengths differ, or a value is not positive.
    """
    columns = _paired(numerators, denominators, numerator_weights, denominator_weights)

    def ratio(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        top, bottom, top_weights, bottom_weights = sums
        return np.stack([top / top_weights / (bottom / bottom_weights)])

    (interval,) = paired_bootstrap(
        columns,
        ratio,
        weights=[columns[2] + columns[3]],
        ratios=[0],
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )
    return interval


def paired_bootstrap(
    columns: Sequence[Values],
    statistics: Statistics,
    *,
    weights: Sequence[Values] | None = None,
    ratios: Collection[int] = (),
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Interval | None, ...]:
    """Intervals of statistics that are functions of sums, as pooled rates, their ratios and differences are.

    Rows (prompts) are resampled with replacement, all columns of one together. The interval is the t interval with the
    bootstrap's standard error: the statistic -+ t(n - 1) sqrt(n / (n - 1)) times the standard deviation over resamples,
    the root because resamples of n rows spread too little by that much (Hesterberg, What Teachers Should Know About the
    Bootstrap, The American Statistician 69, 2015). Percentiles of the resamples lie too close together where rows
    are few: with 5 they miss the truth 17 times in 100. Rows of unequal weight tell as much as fewer equal ones:
    n is Kish's effective number (sum w)^2 / sum w^2 (Survey Sampling, 1965), at least 2. docs/metrics.md says how often
    the truth is missed. Statistics of equal columns are equal in every resample.

    Args:
        columns: each as long as there are rows.
        statistics: from the columns' sums.
        weights: for each statistic, how much each row counts in it; None: all alike.
        ratios: which of them (by index) are ratios, and positive: these have their interval on the logarithmic scale,
            where it is that of the inverse, turned round.

    Returns:
        One interval for each statistic; None with fewer than :data:`FEWEST_PAIRS` rows, and where a resample leaves it
        undefined.

    Raises:
        ValueError: lengths differ.
    """
    arrays = [np.ascontiguousarray(column, dtype=np.float64) for column in columns]
    if len({array.shape for array in arrays}) != 1:
        raise ValueError(f"columns of different lengths: {[len(array) for array in arrays]}")
    n = len(arrays[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        measured = statistics(np.array([[array.sum()] for array in arrays]))[:, 0]
    if n < FEWEST_PAIRS:
        return (None,) * len(measured)
    generator = np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, step := max(1, _RESAMPLED_AT_ONCE // n)):
        # How often each row was drawn: [resamples, n]; a sum is then one product. Column by column, because one
        # product of them all may add up equal columns in different orders.
        counts = generator.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - start)).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(statistics(np.stack([counts @ array for array in arrays])))
    errors = [
        _standard_errors(confidence, n if weights is None else effective_number(weights[index]))
        for index in range(len(measured))
    ]
    return tuple(
        (_interval_of_ratio if index in ratios else _interval)(value, resampled, margin)
        for index, (value, resampled, margin) in enumerate(
            zip(measured, np.concatenate(found, axis=1), errors, strict=True)
        )
    )


@functools.lru_cache(maxsize=32)
def _standard_errors(confidence: float, number: float) -> float:
    """To either side of what so many rows of equal weight say."""
    return student_quantile((1 + confidence) / 2, number - 1) * math.sqrt(number / (number - 1))


def _interval_of_ratio(value: float, resampled: npt.NDArray[np.float64], errors: float) -> Interval | None:
    with np.errstate(divide="ignore", invalid="ignore"):
        interval = _interval(np.log(value), np.log(resampled), errors)
    if interval is None:
        return None
    with np.errstate(over="ignore", under="ignore"):
        low, high = np.exp(interval)
    return (float(low), float(high)) if low > 0 and np.isfinite(high) else None


def _interval(value: float, resampled: npt.NDArray[np.float64], errors: float) -> Interval | None:
    """So many standard errors to either side."""
    if not (np.isfinite(value) and np.all(np.isfinite(resampled))):
        return None
    margin = errors * float(np.std(resampled))
    return float(value) - margin, float(value) + margin


def effective_number(weights: Values) -> float:
    """How many rows of equal weight tell as much as these: (sum w)^2 / sum w^2 (Kish 1965), at least 2."""
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    return max(2.0, 1 / float(shares @ shares))


def student_quantile(probability: float, degrees: float) -> float:
    """Of Student's t distribution, upper half (``probability`` in [0.5, 1)), for 1 degree of freedom or more.

    In the angle arctan(t / sqrt(degrees)) its density is a power of the cosine (Abramowitz & Stegun, 26.7.3 and
    26.7.4), whose integral is bisected.
    """
    half = math.sqrt(math.pi) / 2 * math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees + 1) / 2))
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        angles = middle * (1 + _NODES) / 2
        within = middle / 2 * float(_NODE_WEIGHTS @ np.cos(angles) ** (degrees - 1))
        if (1 + within / half) / 2 < probability:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def cost_over_repetitions(measured: Iterable[tuple[float, float]]) -> tuple[float, float] | None:
    """What one prompt cost, from the seconds and tokens of each repetition: the median of seconds per token, times the
    mean number of tokens; and that number. None where no repetition took time and gave a token."""
    counted = [(seconds, tokens) for seconds, tokens in measured if seconds > 0 and tokens > 0]
    if not counted:
        return None
    mean_tokens = sum(tokens for _, tokens in counted) / len(counted)
    return float(np.median([seconds / tokens for seconds, tokens in counted])) * mean_tokens, mean_tokens


def verdict(interval: Interval | None) -> Verdict | None:
    """What an interval of a speedup says about 1."""
    if interval is None:
        return None
    low, high = interval
    if low > 1:
        return "faster"
    return "slower" if high < 1 else "not distinguishable"


def modified_z_outliers(values: Values, threshold: float = 10.0) -> tuple[int, ...]:
    """Indices of values more than ``threshold`` robust standard deviations from the median.

    The deviation is 1.4826 times the median absolute deviation (Iglewicz & Hoaglin, How to Detect
    and Handle Outliers, 1993); the threshold is hyperfine's. If more than half of the values
    are equal there is no scale to judge by, and nothing is flagged.
    """
    if not len(values):
        return ()
    distances = np.abs(np.asarray(values, dtype=float) - np.median(values))
    deviation = 1.4826 * float(np.median(distances))
    if deviation == 0:
        return ()
    return tuple(int(index) for index in np.flatnonzero(distances > threshold * deviation))


def drift(values: Values) -> float | None:
    """Relative change of the median from the first to the second half of values in time order.

    None with fewer than four values. A middle value belongs to neither half.
    """
    half = len(values) // 2
    if half < 2:
        return None
    before, after = float(np.median(values[:half])), float(np.median(values[-half:]))
    return after / before - 1 if before else None


def _paired(
    numerators: Values,
    denominators: Values,
    numerator_weights: Values | None,
    denominator_weights: Values | None,
) -> tuple[npt.NDArray[np.float64], ...]:
    columns = tuple(
        np.asarray([1.0] * len(numerators) if column is None else column, dtype=np.float64)
        for column in (numerators, denominators, numerator_weights, denominator_weights)
    )
    if len({column.shape for column in columns}) != 1:
        raise ValueError(f"pairs of different lengths: {[len(column) for column in columns]}")
    if not all(np.all(np.isfinite(column) & (column > 0)) for column in columns):
        raise ValueError("a ratio of rates needs positive, finite values")
    return columns
