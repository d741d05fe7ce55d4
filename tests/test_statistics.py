"""Statistics against scipy, hyperfine's rule, and simulation; the cost model against its equations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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
    effective_number,
    median,
    modified_z_outliers,
    paired_bootstrap,
    paired_bootstrap_ratio,
    percentile,
    ratio_of_rates,
    student_quantile,
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


def interval_by_scipy(
    columns: Sequence[npt.NDArray[np.float64]],
    statistic: Callable[..., npt.NDArray[np.float64]],
    *,
    paired: bool = True,
    number: float | None = None,
) -> tuple[float, float]:
    """Student's t times scipy's bootstrap standard error, around the statistic itself; ``number``: of rows, if they
    tell no more than so many."""
    n = number or len(columns[0])
    error = stats.bootstrap(
        columns,
        lambda *drawn, axis: statistic(*(column.sum(axis) for column in drawn)),
        paired=paired,
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(1),
        method="percentile",
    ).standard_error
    margin = stats.t.ppf(0.975, n - 1) * math.sqrt(n / (n - 1)) * error
    value = statistic(*(column.sum() for column in columns))
    return float(value - margin), float(value + margin)


def test_bootstrap_agrees_with_scipy() -> None:
    generator = np.random.default_rng(3)
    slow = generator.gamma(9.0, 1.0, 40)
    fast = slow / 1.4 * generator.normal(1, 0.15, 40)
    ours = paired_bootstrap_ratio(slow, fast, resamples=20_000)
    theirs = np.exp(interval_by_scipy((slow, fast), lambda a, b: np.log(a / b)))
    assert ours == pytest.approx(tuple(theirs), abs=0.002)
    # The pairing is what makes it narrow: unpaired resampling of the same data is several times as wide.
    assert ours is not None
    low, high = np.exp(interval_by_scipy((slow, fast), lambda a, b: np.log(a / b), paired=False))
    assert ours[1] - ours[0] < 0.6 * (high - low)


@pytest.mark.parametrize("n", [5, 9, 40])
def test_the_interval_of_a_mean_is_students(n: int) -> None:
    """The bootstrap's error of a mean is known without resampling, and with the root it is the textbook's."""
    values = np.random.default_rng(n).normal(3, 1, n)
    (ours,) = paired_bootstrap([values], lambda sums: sums / n, resamples=40_000)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02 * (theirs.high - theirs.low))


@given(st.floats(0.5, 0.9999), st.integers(1, 300))
def test_students_quantile_is_scipys(probability: float, degrees: int) -> None:
    assert student_quantile(probability, degrees) == pytest.approx(
        stats.t.ppf(probability, degrees), abs=1e-9, rel=1e-9
    )


@given(st.floats(0.5, 0.999), st.floats(1, 300))
def test_students_quantile_of_broken_degrees_is_scipys(probability: float, degrees: float) -> None:
    assert student_quantile(probability, degrees) == pytest.approx(
        stats.t.ppf(probability, degrees), abs=1e-9, rel=1e-4
    )


def test_rows_of_unequal_weight_tell_as_much_as_fewer_equal_ones() -> None:
    assert effective_number([3.0] * 7) == pytest.approx(7)
    assert effective_number([1.0, 1.0, 1.0, 0.0, 0.0]) == pytest.approx(3)
    assert effective_number([4.0, 1.0, 1.0]) == pytest.approx(36 / 18)
    assert effective_number([100.0, 1.0, 1.0, 1.0, 1.0]) == 2


def test_the_interval_knows_that_long_texts_weigh_more() -> None:
    """Of rows all but alike in weight it is the usual one; where few rows carry the sum it is wider than that."""
    generator = np.random.default_rng(4)
    values = generator.normal(3, 1, 12)

    def mean(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return sums[:1] / sums[1:]

    def margin(weights: npt.NDArray[np.float64], told: bool) -> float:
        (interval,) = paired_bootstrap([weights * values, weights], mean, weights=[weights] if told else None)
        assert interval is not None
        return (interval[1] - interval[0]) / 2

    equal, unequal = np.full(12, 5.0), generator.lognormal(0, 1, 12)
    assert margin(equal, told=True) == pytest.approx(margin(equal, told=False))
    number = effective_number(unequal)
    factor = [stats.t.ppf(0.975, n - 1) * math.sqrt(n / (n - 1)) for n in (number, 12)]
    assert margin(unequal, told=True) / margin(unequal, told=False) == pytest.approx(factor[0] / factor[1])


def test_bootstrap_with_weights_agrees_with_scipy() -> None:
    generator = np.random.default_rng(5)
    tokens, other = generator.integers(20, 200, 30).astype(float), generator.integers(20, 200, 30).astype(float)
    slow, fast = tokens * generator.normal(2, 0.2, 30), other * generator.normal(1.5, 0.2, 30)
    ours = paired_bootstrap_ratio(slow, fast, numerator_weights=tokens, denominator_weights=other, resamples=20_000)
    shares = (tokens + other) / (tokens + other).sum()
    theirs = np.exp(
        interval_by_scipy(
            (slow, tokens, fast, other), lambda a, b, c, d: np.log(a / b / (c / d)), number=1 / (shares**2).sum()
        )
    )
    assert ours == pytest.approx(tuple(theirs), abs=0.002)


def test_bootstrap_is_repeatable_and_needs_five_pairs() -> None:
    a, b = [1.0, 2.0, 3.0, 1.2, 1.7], [1.5, 1.9, 2.0, 1.2, 1.0]
    interval = paired_bootstrap_ratio(a, b, seed=1)
    assert interval is not None and interval == paired_bootstrap_ratio(a, b, seed=1)
    assert interval != paired_bootstrap_ratio(a, b, seed=2)
    for fewer in range(5):
        assert paired_bootstrap_ratio(a[:fewer], b[:fewer]) is None


def test_the_interval_of_the_inverse_is_the_inverse_of_the_interval() -> None:
    a, b = [1.0, 2.0, 3.0, 1.2, 1.7, 4.0], [1.5, 1.9, 2.0, 1.2, 1.0, 2.2]
    one, other = paired_bootstrap_ratio(a, b), paired_bootstrap_ratio(b, a)
    assert one is not None and other is not None
    assert one == pytest.approx((1 / other[1], 1 / other[0]))


def test_a_ratio_beyond_all_numbers_has_no_interval() -> None:
    assert paired_bootstrap_ratio([1e-150, 1.0, 1.0, 1.0, 1e150], [1e150, 1.0, 1.0, 1.0, 1e-150]) is None


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


@pytest.mark.parametrize("n", [5, 9, 30])
def test_bootstrap_covers_the_truth(n: int) -> None:
    """However few prompts: percentiles of the resamples miss it 17 times in 100 with 5."""
    generator = np.random.default_rng(11)
    trials, missed = 800, 0
    for _ in range(trials):
        tokens = generator.lognormal(4, 0.3, n)
        seconds = tokens * generator.lognormal(0, 0.08, n)
        speedups = generator.lognormal(0, 0.2, n)
        interval = paired_bootstrap_ratio(
            seconds, seconds / speedups, numerator_weights=tokens, denominator_weights=tokens, resamples=500
        )
        assert interval is not None
        missed += not interval[0] <= math.exp(-(0.2**2) / 2) <= interval[1]
    # 5 % nominal, 5.5 % in longer simulations: three binomial standard deviations to either side
    assert 0.03 <= missed / trials <= 0.08


def test_bootstrap_of_sums_agrees_with_scipy() -> None:
    """The ratio of two speedups and the difference of two mean lengths, from eight columns."""
    generator = np.random.default_rng(8)
    columns = [generator.gamma(30.0, 1.0, 25) for _ in range(4)]
    columns += [generator.integers(5, 40, 25).astype(float) for _ in range(4)]

    def statistics(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        a, b, c, d, e, f, g, h = sums
        return np.stack([(a / b) / (c / d), e / f - g / h])

    ratio, difference = paired_bootstrap(columns, statistics, ratios=[0], resamples=20_000)
    low, high = interval_by_scipy(columns, lambda *sums: np.log(statistics(np.stack(sums))[0]))
    assert ratio == pytest.approx((math.exp(low), math.exp(high)), rel=0.01 * (high - low))
    low, high = interval_by_scipy(columns, lambda *sums: statistics(np.stack(sums))[1])
    assert difference == pytest.approx((low, high), abs=0.01 * (high - low))


def test_a_ratio_is_a_statistic_of_sums() -> None:
    generator = np.random.default_rng(2)
    slow, fast = generator.gamma(9.0, 1.0, 30), generator.gamma(9.0, 1.0, 30)
    (interval,) = paired_bootstrap([slow, fast], lambda sums: np.stack([sums[0] / sums[1]]), ratios=[0])
    assert interval == paired_bootstrap_ratio(slow, fast)


@pytest.mark.parametrize("n", [5, 7, 12, 33, 150])
def test_equal_columns_have_equal_sums_in_every_resample(n: int) -> None:
    column = np.random.default_rng(n).lognormal(0, 1, n)
    others = list(np.random.default_rng(0).random((5, n)))
    columns = [column, *others, column.copy()]
    for ratios in ([], [0]):
        assert paired_bootstrap(columns, lambda sums: np.stack([sums[-1] / sums[0]]), ratios=ratios) == ((1.0, 1.0),)


def test_a_statistic_that_a_resample_leaves_undefined_has_no_interval() -> None:
    # one resample in three or so is without the fifth row
    rare, common = [0.0, 0.0, 0.0, 0.0, 5.0], [1.0, 2.0, 3.0, 2.0, 1.0]

    def statistics(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.stack([sums[1] / sums[0], sums[0] / sums[1], np.nan * sums[0]])

    over_rare, over_common, unknown = paired_bootstrap([rare, common], statistics)
    assert over_rare is None and unknown is None
    assert over_common is not None and over_common[0] < 5 / 9 < over_common[1]
    assert paired_bootstrap([rare, common], statistics, ratios=[1])[1] is None, "0 has no logarithm"
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
