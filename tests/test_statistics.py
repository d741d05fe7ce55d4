"""Statistics against scipy, hyperfine's rule, and simulation; the cost model against its equations."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from specprof.profiling.cost_model import (
    best_k,
    break_even_alpha,
    break_even_tau,
    expected_tokens,
    expected_tokens_by_position,
    predicted_speedup,
)
from specprof.profiling.statistics import (
    drift,
    median,
    modified_z_outliers,
    paired_bootstrap,
    paired_bootstrap_ratio,
    percentile,
    ratio_of_rates,
    verdict,
)

alphas = st.floats(0, 1)
ks = st.integers(0, 16)
costs = st.floats(0, 4)


def test_median_and_percentile() -> None:
    assert median([3.0, 1.0, 2.0]) == 2
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert median([]) is percentile([], 99) is None


def test_ratio_of_rates_by_hand() -> None:
    # 12 s for 4 tokens against 6 s for 4 tokens
    assert ratio_of_rates([10, 2], [4, 2], numerator_weights=[3, 1], denominator_weights=[2, 2]) == 2
    assert ratio_of_rates([], []) is None


def test_bootstrap_agrees_with_scipy() -> None:
    generator = np.random.default_rng(3)
    slow = generator.gamma(9.0, 1.0, 40)
    fast = slow / 1.4 * generator.normal(1, 0.15, 40)
    ours = paired_bootstrap_ratio(slow, fast, resamples=20_000)
    theirs = stats.bootstrap(
        (slow, fast),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.004)
    # The pairing is what makes it narrow: unpaired resampling of the same data is several times as wide.
    assert ours is not None
    unpaired = stats.bootstrap(
        (slow, fast),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        vectorized=True,
        method="percentile",
        n_resamples=2_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert ours[1] - ours[0] < 0.6 * (unpaired.high - unpaired.low)


def test_bootstrap_with_weights_agrees_with_scipy() -> None:
    generator = np.random.default_rng(5)
    tokens, other = generator.integers(20, 200, 30).astype(float), generator.integers(20, 200, 30).astype(float)
    slow, fast = tokens * generator.normal(2, 0.2, 30), other * generator.normal(1.5, 0.2, 30)
    ours = paired_bootstrap_ratio(slow, fast, numerator_weights=tokens, denominator_weights=other, resamples=20_000)
    theirs = stats.bootstrap(
        (slow, tokens, fast, other),
        lambda a, b, c, d, axis: a.sum(axis) / b.sum(axis) / (c.sum(axis) / d.sum(axis)),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.004)


def test_bootstrap_is_repeatable_and_needs_two_pairs() -> None:
    a, b = [1.0, 2.0, 3.0], [1.5, 1.9, 2.0]
    assert paired_bootstrap_ratio(a, b, seed=1) == paired_bootstrap_ratio(a, b, seed=1)
    assert paired_bootstrap_ratio([1.0], [2.0]) is None
    assert paired_bootstrap_ratio([], []) is None


def test_bootstrap_in_chunks_is_one_bootstrap() -> None:
    n = 3_000  # more than one chunk at 10,000 resamples
    generator = np.random.default_rng(0)
    fast = generator.gamma(9.0, 1.0, n)
    interval = paired_bootstrap_ratio(1.5 * fast + generator.normal(0, 0.1, n), fast)
    assert interval is not None
    assert interval[0] < 1.5 < interval[1] and interval[1] - interval[0] < 0.01


@pytest.mark.parametrize(("a", "b"), [([1.0, 2.0], [1.0]), ([1.0, 0.0], [1.0, 1.0]), ([1.0, math.nan], [1.0, 1.0])])
def test_bootstrap_refuses_what_has_no_ratio(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError):
        paired_bootstrap_ratio(a, b)


def test_bootstrap_covers_the_truth() -> None:
    generator = np.random.default_rng(11)
    trials, covered = 200, 0
    for _ in range(trials):
        fast = generator.gamma(16.0, 1.0, 30)
        slow = 1.3 * fast * generator.lognormal(-0.005, 0.1, 30)
        interval = paired_bootstrap_ratio(slow, fast, resamples=1_000)
        assert interval is not None
        covered += interval[0] <= 1.3 <= interval[1]
    # 95 % nominal; four binomial standard deviations below a true 92 % is 0.84
    assert 0.85 <= covered / trials <= 0.995


def test_bootstrap_of_sums_agrees_with_scipy() -> None:
    """The ratio of two speedups and the difference of two mean lengths, from eight columns."""
    generator = np.random.default_rng(8)
    columns = [generator.gamma(30.0, 1.0, 25) for _ in range(4)]
    columns += [generator.integers(5, 40, 25).astype(float) for _ in range(4)]

    def statistics(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        a, b, c, d, e, f, g, h = sums
        return np.stack([(a / b) / (c / d), e / f - g / h])

    for statistic, ours in enumerate(paired_bootstrap(columns, statistics, resamples=20_000)):
        theirs = stats.bootstrap(
            columns,
            lambda *drawn, axis, which=statistic: statistics(np.stack([column.sum(axis) for column in drawn]))[which],
            paired=True,
            vectorized=True,
            method="percentile",
            n_resamples=20_000,
            rng=np.random.default_rng(1),
        ).confidence_interval
        assert ours is not None
        width = theirs.high - theirs.low
        assert ours == pytest.approx((theirs.low, theirs.high), abs=0.04 * width)


def test_a_ratio_is_a_statistic_of_sums() -> None:
    generator = np.random.default_rng(2)
    slow, fast = generator.gamma(9.0, 1.0, 30), generator.gamma(9.0, 1.0, 30)
    (interval,) = paired_bootstrap([slow, fast], lambda sums: np.stack([sums[0] / sums[1]]))
    assert interval == paired_bootstrap_ratio(slow, fast)


@pytest.mark.parametrize("n", [2, 3, 7, 12, 33, 150])
def test_equal_columns_have_equal_sums_in_every_resample(n: int) -> None:
    column = np.random.default_rng(n).lognormal(0, 1, n)
    others = list(np.random.default_rng(0).random((5, n)))
    both = paired_bootstrap([column, *others, column.copy()], lambda sums: np.stack([sums[-1] / sums[0]]))
    assert both == ((1.0, 1.0),)


def test_a_statistic_that_a_resample_leaves_undefined_has_no_interval() -> None:
    rare, common = [0.0, 0.0, 5.0], [1.0, 2.0, 3.0]  # one resample in four or so is without the third row
    over_rare, over_common, unknown = paired_bootstrap(
        [rare, common], lambda sums: np.stack([sums[1] / sums[0], sums[0] / sums[1], np.nan * sums[0]])
    )
    assert over_rare is None and unknown is None
    assert over_common is not None and over_common[0] == 0 and over_common[1] <= 5 / 3
    assert paired_bootstrap([[1.0], [2.0]], lambda sums: np.stack([sums[0], sums[1]])) == (None, None)
    with pytest.raises(ValueError):
        paired_bootstrap([[1.0, 2.0], [1.0]], lambda sums: sums)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((1.1, 1.3), "faster"),
        ((0.7, 0.9), "slower"),
        ((0.9, 1.1), "not distinguishable"),
        ((1.0, 1.2), "not distinguishable"),
        (None, None),
    ],
)
def test_verdict(interval: tuple[float, float] | None, expected: str | None) -> None:
    assert verdict(interval) == expected


def test_outliers_by_hand() -> None:
    values = [10.0, 11.0, 9.0, 10.0, 12.0, 8.0]  # median 10, deviations 0 1 1 0 2 2, MAD 1
    assert modified_z_outliers([*values, 10 + 14.9, 10.0]) == (6,)
    assert modified_z_outliers([*values, 10 + 14.9, 10.0], threshold=15) == ()
    assert modified_z_outliers([*values, 10 + 14.8, 10.0]) == ()  # 10 x 1.4826 is the line
    assert modified_z_outliers([*values, -100.0, 10.0]) == (6,)
    assert modified_z_outliers([1.0, 1.0, 1.0, 50.0]) == ()
    assert modified_z_outliers([]) == ()


def test_drift() -> None:
    assert drift([1.0, 1.0, 9.0, 1.2, 1.2]) == pytest.approx(0.2)
    assert drift([2.0, 2.0, 1.0, 1.0]) == pytest.approx(-0.5)
    assert drift([1.0, 2.0, 3.0]) is None


# Cost model


@given(alphas, ks)
def test_expected_tokens_is_leviathans_equation(alpha: float, k: int) -> None:
    value = expected_tokens(alpha, k)
    assert 1 <= value <= k + 1
    if alpha < 0.999:
        assert value == pytest.approx((1 - alpha ** (k + 1)) / (1 - alpha))


def test_expected_tokens_at_the_ends() -> None:
    assert expected_tokens(1, 7) == 8
    assert expected_tokens(0, 7) == 1
    assert expected_tokens(0.8, 0) == 1


@pytest.mark.parametrize(("alpha", "k"), [(-0.1, 2), (1.1, 2), (math.nan, 2), (0.5, -1)])
def test_expected_tokens_refuses(alpha: float, k: int) -> None:
    with pytest.raises(ValueError):
        expected_tokens(alpha, k)


def test_expected_tokens_is_what_rejection_yields() -> None:
    generator = np.random.default_rng(0)
    k, alpha = 4, 0.7
    accepted = np.cumprod(generator.random((40_000, k)) < alpha, axis=1).sum(axis=1)
    assert 1 + accepted.mean() == pytest.approx(expected_tokens(alpha, k), abs=0.03)


def test_expected_tokens_by_position() -> None:
    assert expected_tokens_by_position([0.8, 0.5, 0.25], 3) == pytest.approx(1 + 0.8 + 0.4 + 0.1)
    assert expected_tokens_by_position([0.8, None], 1) == pytest.approx(1.8)
    with pytest.raises(ValueError):
        expected_tokens_by_position([0.8, None], 2)


def test_speedup_of_the_paper() -> None:
    # Leviathan et al., theorem 3.8 with v = 1, o = 0: (1 - a^(k+1)) / ((1 - a)(k c + 1))
    tau = expected_tokens(0.8, 5)
    assert predicted_speedup(tau, 5, 0.05, 1, 0) == pytest.approx((1 - 0.8**6) / (0.2 * 1.25))


@given(st.integers(1, 12), costs, costs, costs)
def test_break_even_is_where_the_speedup_is_one(k: int, c: float, v: float, o: float) -> None:
    alpha = break_even_alpha(k, c, v, o)
    needed = break_even_tau(k, c, v, o)
    if alpha is None:
        assert needed > k + 1
    elif alpha == 0:
        assert needed <= 1
    else:
        assert predicted_speedup(expected_tokens(alpha, k), k, c, v, o) == pytest.approx(1)


def test_break_even_of_one_draft_token_is_linear() -> None:
    assert break_even_alpha(1, 0.3, 1.1, 0.2) == pytest.approx(0.3 + 1.1 + 0.2 - 1)
    assert break_even_alpha(1, 1.0, 1.1, 0.2) is None
    assert break_even_alpha(4, 0.0, 1.0, 0.0) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_best_k_is_the_best(rates: list[float], c: float, growth: float, o: float) -> None:
    best = best_k(rates, c, lambda k: 1 + growth * k, o)
    by_hand = {0: 1.0} | {
        k: expected_tokens_by_position(rates, k) / (k * c + 1 + growth * k + o) for k in range(1, len(rates) + 1)
    }
    assert best.speedup_predicted == pytest.approx(max(by_hand.values()))
    assert by_hand[best.k] == pytest.approx(best.speedup_predicted)


def test_best_k_keeps_to_what_is_known() -> None:
    assert best_k([0.9, 0.9, None, 0.9], 0.01, lambda k: 1.0, 0.0).k == 2
    assert best_k([0.9, 0.9, 0.9], 0.01, {1: 1.0, 3: 9.0}, 0.0).k == 1
    assert best_k([0.9], 1.0, {1: 1.0}, 0.0).k == 0
    # what a slow baseline loop spends makes speculation worth more
    assert best_k([0.9], 1.0, {1: 1.0}, 0.0, baseline_overhead=0.2).k == 1
