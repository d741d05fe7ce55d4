"""Tests of laws: p-values are right in the middle and in the tail, and the power they claim is the power they have."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from specprof.profiling.goodness import (
    MAX_SKEWNESS,
    POWER,
    Scores,
    Shift,
    Values,
    chi_square_tail,
    gamma_tails,
    noncentral_chi_square_tail,
    score_test,
    skewed_tail,
    two_sided,
    uniformity_test,
)

LEVEL = 2e-5

# --- tails, with scipy as oracle


@pytest.mark.parametrize("df", [1, 2, 3, 19, 300])
@pytest.mark.parametrize("quantile", [0.01, 0.5, 0.99, 1 - 1e-12])
def test_chi_square_tail(df: int, quantile: float) -> None:
    x = float(stats.chi2.ppf(quantile, df))
    assert chi_square_tail(x, df) == pytest.approx(stats.chi2.sf(x, df), rel=1e-9)
    assert chi_square_tail(50 * df, df) == pytest.approx(stats.chi2.sf(50 * df, df), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("shape", [0.5, 4.0, 1e4])
def test_both_gamma_tails(shape: float) -> None:
    for x in (0.1 * shape, 0.97 * shape, shape, 1.04 * shape, 3 * shape):
        lower, upper = gamma_tails(shape, x)
        assert lower + upper == pytest.approx(1)
        assert min(lower, upper) == pytest.approx(
            min(stats.gamma.cdf(x, shape), stats.gamma.sf(x, shape)), rel=1e-8, abs=1e-300
        )
    assert gamma_tails(shape, 0.0) == gamma_tails(shape, -1.0) == (0.0, 1.0)


@pytest.mark.parametrize("noncentrality", [0.0, 0.3, 20.0, 400.0])
def test_noncentral_chi_square_tail(noncentrality: float) -> None:
    for x in (5.0, 40.0, 300.0):
        expected = stats.ncx2.sf(x, 19, noncentrality) if noncentrality else stats.chi2.sf(x, 19)
        assert noncentral_chi_square_tail(x, 19, noncentrality) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("skewness", [-1.5, -0.3, 0.0, 0.005, 0.02, 0.3, 1.5])
def test_skewed_tail(skewness: float) -> None:
    for z in (-3.0, -1.0, 0.0, 1.0, 2.0, 4.5):
        exact = float(stats.pearson3.sf(z, skewness)) if abs(skewness) > 0.01 else float(stats.norm.sf(z))
        far_on_the_light_side = skewness < 0 and exact < 1e-3
        if far_on_the_light_side:
            assert exact <= skewed_tail(z, skewness) <= stats.norm.sf(z) * (1 + 1e-9)
        else:
            assert skewed_tail(z, skewness) == pytest.approx(exact, rel=1e-8)
    assert two_sided(0.0) == 1.0 and two_sided(2.5) == two_sided(-2.5) == pytest.approx(2 * stats.norm.sf(2.5))
    assert two_sided(-4.0, 0.5) < two_sided(4.0, 0.5)


# --- simulated tokens: a target and a draft of few tokens, laws that differ from place to place


@functools.cache
def laws(places: int, vocab: int = 12, seed: int = 0) -> tuple[Values, Values]:
    """Target and draft, ``[places, vocab]`` each."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (places, vocab))
    close = logits + generator.normal(0, 1, (places, vocab))
    return softmax(logits), softmax(close)


def softmax(logits: Values) -> Values:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def draws(law: Values, generator: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.asarray((law.cumsum(-1) < generator.random((len(law), 1))).sum(-1).clip(max=law.shape[1] - 1))


def mixture_scores(tokens: np.ndarray[tuple[int], np.dtype[np.int64]], target: Values, draft: Values) -> Scores:
    """Against a share of tokens that are the draft's."""
    g = np.minimum(draft / target, 10.0)
    return scores_of(tokens, target, g, draft - target)


def sharpness_scores(tokens: np.ndarray[tuple[int], np.dtype[np.int64]], target: Values) -> Scores:
    log_probs = np.log(target)
    return scores_of(tokens, target, log_probs, target * (log_probs - (target * log_probs).sum(-1, keepdims=True)))


def scores_of(tokens: np.ndarray[tuple[int], np.dtype[np.int64]], target: Values, g: Values, tilt: Values) -> Scores:
    centred = g - (target * g).sum(-1, keepdims=True)
    return Scores(
        centred[np.arange(len(tokens)), tokens],
        (target * centred**2).sum(-1),
        (target * centred**3).sum(-1),
        (tilt * centred).sum(-1),
        (tilt * centred**2).sum(-1),
    )


def ranks(tokens: np.ndarray[tuple[int], np.dtype[np.int64]], target: Values, generator: np.random.Generator) -> Values:
    prob = target[np.arange(len(tokens)), tokens][:, None]
    return np.asarray((target * (target > prob)).sum(-1) + generator.random(len(tokens)) * prob[:, 0])


@pytest.mark.slow
def test_p_values_of_lawful_tokens_are_uniform() -> None:
    target, draft = laws(400)
    generator = np.random.default_rng(1)
    p: dict[str, list[float]] = {"mixture": [], "sharpness": [], "ranks": []}
    for _ in range(400):
        tokens = draws(target, generator)
        for name, scores in (
            ("mixture", mixture_scores(tokens, target, draft)),
            ("sharpness", sharpness_scores(tokens, target)),
        ):
            skewness = scores.thirds.sum() / scores.variances.sum() ** 1.5
            p[name].append(two_sided(scores.deviations.sum() / math.sqrt(scores.variances.sum()), skewness))
        counts = np.bincount((ranks(tokens, target, generator) * 20).astype(int), minlength=20)
        p["ranks"].append(chi_square_tail(float(((counts - 20) ** 2 / 20).sum()), 19))
    for name, values in p.items():
        assert stats.kstest(values, "uniform").pvalue > 1e-3, name


def test_what_is_tested_is_what_was_simulated() -> None:
    """The functions above take the parts of the test apart; here they are together."""
    target, draft = laws(400)
    tokens = draws(target, np.random.default_rng(3))
    scores = mixture_scores(tokens, target, draft)
    score = score_test(scores, LEVEL)
    assert score is not None and score.num_tokens == len(scores) == 400
    assert score.z == pytest.approx(scores.deviations.sum() / math.sqrt(scores.variances.sum()))
    assert score.p == pytest.approx(two_sided(score.z, score.skewness)) and score.allowance == 0
    assert score.interval[0] < score.estimate < score.interval[1]
    assert score.estimate == pytest.approx(scores.deviations.sum() / scores.slopes.sum())
    for share in score.interval:  # where the sum is 1.96 standard deviations from what is expected of such a share
        spread = scores.variances.sum() + share * scores.variance_slopes.sum() - share**2 * (scores.slopes**2).sum()
        distance = scores.deviations.sum() - share * scores.slopes.sum()
        assert abs(distance) == pytest.approx(1.959964 * math.sqrt(spread))
    numbers = ranks(tokens, target, np.random.default_rng(0))
    found = uniformity_test(numbers, LEVEL)
    assert found is not None and found.degrees_of_freedom == 19
    counts = np.histogram(numbers, np.linspace(0, 1, 21))[0]
    assert (found.chi_square, found.p) == pytest.approx(tuple(stats.chisquare(counts)))


@pytest.mark.parametrize("ratio", [3.0, 30.0])
def test_false_alarms_in_the_tail_are_as_rare_as_claimed(ratio: float) -> None:
    """One law for all tokens: then the sum is that of a multinomial draw, and a million runs cost a second."""
    n, runs, level = 400, 400_000, 1e-3
    law = np.array([0.6, 0.3, 0.09, 0.01])
    g = np.array([0.2, 1.0, 2.0, ratio])
    centred = g - law @ g
    spread, skewness = math.sqrt(n * law @ centred**2), n * law @ centred**3 / (n * law @ centred**2) ** 1.5
    z = np.random.default_rng(2).multinomial(n, law, size=runs) @ centred / spread
    values, counts = np.unique(z.round(9), return_counts=True)
    alarms = sum(int(count) for value, count in zip(values, counts, strict=True) if two_sided(value, skewness) < level)
    # A sum of a few rare tokens is uneven.
    assert 0.3 * level < alarms / runs < 1.5 * level
    uncorrected = (np.abs(z) > stats.norm.isf(level / 2)).mean()
    if ratio == 30:
        assert uncorrected > 2 * level  # without the correction there would be many more


@pytest.mark.slow
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_stated_power_is_the_power(share: float) -> None:
    """A fault of the stated size is found in 99 of 100 runs, half of it much less often."""
    target, draft = laws(1500)
    generator = np.random.default_rng(4)
    lawful = draws(target, generator)
    for name in ("mixture", "sharpness"):
        reference = mixture_scores(lawful, target, draft) if name == "mixture" else sharpness_scores(lawful, target)
        stated = score_test(reference, LEVEL, tilts=name == "sharpness")
        assert stated is not None
        size = share * stated.detectable
        if name == "mixture":
            assert size < 0.5
            law = (1 - size) * target + size * draft
        else:
            law = softmax((1 + size) * np.log(target))
        found = 0
        runs = 300
        for _ in range(runs):
            tokens = draws(law, generator)
            scores = mixture_scores(tokens, target, draft) if name == "mixture" else sharpness_scores(tokens, target)
            z = scores.deviations.sum() / math.sqrt(scores.variances.sum())
            found += two_sided(z, stated.skewness) < LEVEL
        if share == 1:
            assert found >= POWER * runs - 4 * math.sqrt(runs * POWER * (1 - POWER)), name
        else:
            assert found < 0.6 * runs, name


def test_the_stated_power_of_the_ranks_is_the_power() -> None:
    generator = np.random.default_rng(5)
    n, runs = 2000, 300
    reference = uniformity_test(generator.random(n), LEVEL)
    assert reference is not None
    for share, least, most in ((1.0, 0.97, 1.0), (0.5, 0.0, 0.5)):
        bins = 1 + share * reference.detectable * np.tile([1.0, -1.0], 10)
        counts = generator.multinomial(n, bins / 20, size=runs)
        statistics = ((counts - n / 20) ** 2 / (n / 20)).sum(-1)
        found = np.mean([chi_square_tail(float(statistic), 19) < LEVEL for statistic in statistics])
        assert least <= found <= most


def sizes_found(kind: str, size: float, runs: int, places: int = 1500) -> tuple[float, float]:
    """Mean estimate of a fault of some size, and the share of the intervals that hold it."""
    target, _ = laws(places)
    draft = laws(places, seed=1)[0]  # has nothing to do with the target: few tokens tell most
    generator = np.random.default_rng(6)
    estimates, covered = [], 0
    for _ in range(runs):
        if kind == "mixture":
            score = score_test(
                mixture_scores(draws((1 - size) * target + size * draft, generator), target, draft), LEVEL
            )
        elif kind == "coin":
            alpha = np.minimum(target, draft).sum(-1)
            accepted = generator.random(places) < alpha + size * (1 - alpha)
            variance, skew = alpha * (1 - alpha), 1 - 2 * alpha
            score = score_test(
                Scores(accepted - alpha, variance, variance * skew, 1 - alpha, (1 - alpha) * skew), LEVEL
            )
        else:
            tokens = draws(softmax((1 + size) * np.log(target)), generator)
            score = score_test(sharpness_scores(tokens, target), LEVEL, tilts=True)
        assert score is not None and score.interval[0] <= score.estimate <= score.interval[1]
        estimates.append(score.estimate)
        covered += score.interval[0] <= size <= score.interval[1] * (1 + 1e-9)
    return float(np.mean(estimates)), covered / runs


@pytest.mark.parametrize(
    ("kind", "size"), [("mixture", 0.3), ("mixture", 1.0), ("coin", 0.3), ("tilt", -0.2), ("tilt", 0.4)]
)
def test_the_size_of_a_fault_is_estimated_without_bias(kind: str, size: float) -> None:
    estimate, covered = sizes_found(kind, size, runs=60)
    assert estimate == pytest.approx(size, abs=0.01) and covered >= 52 / 60


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "size"),
    [(kind, size) for kind in ("mixture", "coin") for size in (0.05, 0.1, 0.3)]
    + [("tilt", size) for size in (-0.2, -0.1, 0.1, 0.2)],
)
def test_intervals_hold_what_they_should(kind: str, size: float) -> None:
    estimate, covered = sizes_found(kind, size, runs=600)
    assert estimate == pytest.approx(size, abs=0.01) and 0.93 <= covered <= 0.97


def test_a_fault_of_all_tokens_leaves_no_spread_but_is_not_known_exactly() -> None:
    alpha = np.full(50, 0.8)
    variance, skew = alpha * (1 - alpha), 1 - 2 * alpha
    scores = Scores(1 - alpha, variance, variance * skew, 1 - alpha, (1 - alpha) * skew)
    score = score_test(scores, LEVEL)
    assert score is not None and score.estimate == pytest.approx(1) == pytest.approx(score.interval[1])
    assert 0.5 < score.interval[0] < 0.9  # of 10 that should have been rejected, none was


def test_what_no_share_explains_has_an_interval_all_the_same() -> None:
    target, draft = laws(400)
    scores = mixture_scores(draws(target, np.random.default_rng(1)), target, draft)
    for times in (8.0, -8.0):
        moved = times * scores.slopes
        score = score_test(Scores(moved, scores.variances, scores.thirds, scores.slopes, scores.variance_slopes), LEVEL)
        assert score is not None and score.estimate == pytest.approx(times)
        assert score.interval[0] < times < score.interval[1] and 1 < abs(score.interval[0]) < 16


def test_a_law_sharper_than_any_tilt_makes_it() -> None:
    target, _ = laws(400)
    score = score_test(sharpness_scores(target.argmax(-1), target), LEVEL, tilts=True)
    assert score is not None and score.estimate == math.inf == score.interval[1] and score.p < LEVEL
    assert math.isfinite(score.detectable)


# --- rounding


def test_a_shift_within_rounding_is_allowed_for_and_no_more() -> None:
    target, draft = laws(1500)
    scores = mixture_scores(draws(target, np.random.default_rng(7)), target, draft)
    plain = score_test(scores, LEVEL)
    assert plain is not None
    per_token = 6 * math.sqrt(scores.variances.sum()) / len(scores)
    shifted = Scores(
        scores.deviations + per_token, scores.variances, scores.thirds, scores.slopes, scores.variance_slopes
    )
    alarmed = score_test(shifted, LEVEL)
    allowed = score_test(shifted, LEVEL, Shift(per_token))
    assert alarmed is not None and allowed is not None
    assert alarmed.p < LEVEL < allowed.p
    assert alarmed.z == allowed.z == pytest.approx(plain.z + 6)
    assert allowed.allowance == pytest.approx(6)
    assert allowed.detectable > 1.5 * alarmed.detectable  # what is allowed for is not found
    further = Scores(
        scores.deviations - 2 * per_token, scores.variances, scores.thirds, scores.slopes, scores.variance_slopes
    )
    beyond = score_test(further, LEVEL, Shift(per_token))
    assert beyond is not None and beyond.p < LEVEL


def test_a_shift_of_bins_within_rounding_is_allowed_for() -> None:
    generator = np.random.default_rng(8)
    bins = (1 + 0.2 * np.tile([1.0, -1.0], 10)) / 20
    numbers = (generator.choice(20, size=3000, p=bins) + generator.random(3000)) / 20
    alarmed = uniformity_test(numbers, LEVEL)
    allowed = uniformity_test(numbers, LEVEL, shifts=tuple(Shift(value - 0.05) for value in bins))
    assert alarmed is not None and allowed is not None
    assert alarmed.p < LEVEL < allowed.p and alarmed.chi_square == allowed.chi_square
    assert allowed.detectable == pytest.approx(alarmed.detectable + 0.2, rel=1e-6)


def test_a_shift_is_known_as_well_as_its_sample_is_large() -> None:
    changes = np.random.default_rng(9).normal(0.01, 0.1, 400)
    shift = Shift.of(changes)
    assert shift.mean == pytest.approx(changes.mean())
    assert shift.bound == pytest.approx(abs(changes.mean()) + 3 * changes.std(ddof=1) / 20)
    assert Shift.of(changes[:1]) == Shift.of(changes[:0]) == Shift() and Shift().bound == 0


# --- nothing to say


def test_what_can_not_be_tested() -> None:
    zeros = np.zeros(50)
    assert score_test(Scores(zeros, zeros, zeros, zeros, zeros), LEVEL) is None  # no token could have been another
    assert score_test(Scores(*np.zeros((5, 0))), LEVEL) is None
    target = np.tile([0.999, 0.001], (20, 1))
    few = mixture_scores(np.zeros(20, dtype=np.int64), target, np.tile([0.5, 0.5], (20, 1)))
    assert few.thirds.sum() / few.variances.sum() ** 1.5 > MAX_SKEWNESS
    assert score_test(few, LEVEL) is None  # one token would carry the whole sum
    assert uniformity_test(np.random.default_rng(0).random(99), LEVEL) is None
    assert uniformity_test(np.random.default_rng(0).random(100), LEVEL) is not None


def test_scores_that_are_no_numbers_say_nothing() -> None:
    target, draft = laws(400)
    scores = mixture_scores(draws(target, np.random.default_rng(1)), target, draft)
    deviations = scores.deviations.copy()
    deviations[3] = math.nan
    broken = Scores(deviations, scores.variances, scores.thirds, scores.slopes, scores.variance_slopes)
    assert score_test(broken, LEVEL) is None and score_test(scores, LEVEL, Shift(math.nan)) is None
    numbers = np.random.default_rng(0).random(400)
    assert uniformity_test(numbers, LEVEL, shifts=(Shift(math.nan),)) is None
    numbers[7] = math.nan
    assert uniformity_test(numbers, LEVEL) is None


def test_a_fault_that_no_number_of_tokens_shows_is_never_found() -> None:
    # Its mean grows slower than rounding is allowed to move it.
    ones = np.ones(100)
    score = score_test(Scores(ones * 0, ones, ones * 0, ones * 1e-12, ones * 0), LEVEL)
    assert score is not None and math.isinf(score.detectable)


def test_numbers_at_the_ends_have_a_bin() -> None:
    found = uniformity_test(np.linspace(0, 1, 2001), LEVEL)
    assert found is not None and found.p > 0.99
