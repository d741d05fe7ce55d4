"""Medians, intervals, outliers, drift: each with its reference. What is undefined is None."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Values = Sequence[float] | npt.NDArray[np.floating]
Interval = tuple[float, float]
Verdict = Literal["faster", "slower", "not distinguishable"]
Statistics = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
"""Of sums [columns, resamples], several statistics [statistics, resamples]; NaN or infinite where undefined."""

_RESAMPLED_AT_ONCE = 2_000_000
"""Bounds the memory of the bootstrap: counts held at a time."""


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
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Interval of :func:`ratio_of_rates` over all pairs; None with fewer than two.

    Pairs (prompts) are resampled with replacement, both sides together, and the percentiles
    of the resampled ratios are read off: Efron & Tibshirani, An Introduction to the Bootstrap
    (1993), chapter 13. With few pairs the interval is somewhat too narrow.

    Raises:
        ValueError: lengths differ, or a value is not positive.
    """
    columns = _paired(numerators, denominators, numerator_weights, denominator_weights)

    def ratio(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        top, bottom, top_weights, bottom_weights = sums
        return np.stack([top / top_weights / (bottom / bottom_weights)])

    return paired_bootstrap(columns, ratio, resamples=resamples, confidence=confidence, seed=seed)[0]


def paired_bootstrap(
    columns: Sequence[Values],
    statistics: Statistics,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Interval | None, ...]:
    """Intervals of statistics that are functions of sums, as pooled rates, their ratios and differences are.

    Rows (prompts) are resampled with replacement, all columns of one together; percentiles as in
    :func:`paired_bootstrap_ratio`. Statistics of equal columns are equal in every resample.

    Args:
        columns: each as long as there are rows.
        statistics: from the columns' sums.

    Returns:
        One interval for each statistic; None with fewer than two rows, and where a resample leaves it undefined.

    Raises:
        ValueError: lengths differ.
    """
    arrays = [np.ascontiguousarray(column, dtype=np.float64) for column in columns]
    if len({array.shape for array in arrays}) != 1:
        raise ValueError(f"columns of different lengths: {[len(array) for array in arrays]}")
    n = len(arrays[0])
    if n < 2:
        return (None,) * len(statistics(np.ones((len(arrays), 1))))
    generator = np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, step := max(1, _RESAMPLED_AT_ONCE // n)):
        # How often each row was drawn: [resamples, n]; a sum is then one product. Column by column, because one
        # product of them all may add up equal columns in different orders.
        counts = generator.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - start)).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(statistics(np.stack([counts @ array for array in arrays])))
    tail = 50 * (1 - confidence)
    return tuple(_interval(values, tail) for values in np.concatenate(found, axis=1))


def _interval(values: npt.NDArray[np.float64], tail: float) -> Interval | None:
    if not np.all(np.isfinite(values)):
        return None
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


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
