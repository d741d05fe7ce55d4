"""Whether draws follow a law: Pearson's chi-square with small cells pooled, and total variation with its noise."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats  # type: ignore[import-untyped]

ALPHA = 1e-4
"""Of a whole family of tests; each test of the family gets its share of it (Bonferroni)."""


def chi_square_p(counts: ArrayLike, law: ArrayLike) -> float:
    """p-value of ``counts`` under ``law`` (probabilities of the same shape); 0 if something impossible was seen.

    Cells that expect fewer than 5 are pooled, as the approximation asks for.
    """
    observed, probability = np.ravel(np.asarray(counts, float)), np.ravel(np.asarray(law, float))
    assert observed.shape == probability.shape and abs(probability.sum() - 1) < 1e-6
    if observed[probability == 0].any():
        return 0.0
    expected = observed.sum() * probability
    order = np.argsort(expected)
    # The smallest cells go into the pool, and more of them until the pool itself expects 5.
    pooled = int(max(np.count_nonzero(expected < 5), np.searchsorted(expected[order].cumsum(), 5) + 1))
    groups = np.maximum(np.arange(len(order)) - pooled + 1, 0)
    observed, expected = np.bincount(groups, observed[order]), np.bincount(groups, expected[order])
    assert len(expected) > 1 or np.count_nonzero(probability) == 1, "too few draws to say anything"
    return float(stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), max(len(expected) - 1, 1)))


def total_variation(counts: ArrayLike, law: ArrayLike) -> float:
    observed, probability = np.ravel(np.asarray(counts, float)), np.ravel(np.asarray(law, float))
    return float(np.abs(observed / observed.sum() - probability).sum() / 2)


def total_variation_bound(law: ArrayLike, draws: int, alpha: float) -> float:
    """What the total variation of ``draws`` draws from ``law`` exceeds with probability below ``alpha``.

    The mean is that of independent normal errors, at most; a draw moves it by 1/draws (McDiarmid's inequality).
    """
    probability = np.ravel(np.asarray(law, float))
    mean = np.sqrt(probability * (1 - probability) / (2 * math.pi * draws)).sum()
    return float(mean + math.sqrt(math.log(1 / alpha) / (2 * draws)))
