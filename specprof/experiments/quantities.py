"""What became faster or slower between two studies, by how much, how sure: at each draft length, and by domain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specprof.experiments.matrix import DraftLength
from specprof.experiments.shared_prompts import Column, why_missing
from specprof.experiments.study import Study
from specprof.experiments.thresholds import QUANTITIES
from specprof.profiling.statistics import Interval, Verdict, paired_bootstrap, verdict

SPEEDS = QUANTITIES[:3]


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float | None
    ci: Interval | None
    """95 % interval, from resampling prompts; None with fewer than five, and where a resample leaves it undefined."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """One figure of both measurements; what is undefined is None."""

    before: Estimate
    after: Estimate
    ratio: Estimate
    """After over before."""
    difference: Estimate
    """After minus before."""


@dataclass(frozen=True, slots=True)
class Difference:
    """All that differs at one draft length, over the prompts of one domain or of all."""

    k: DraftLength
    k_after: DraftLength
    """The same, unless both measured but one draft length each."""
    domain: str | None
    """None: all prompts."""
    num_prompts: int
    """That every arm decoded which both measurements have."""
    speedup: Quantity
    """Of speculative over plain decoding, each measurement against its own baseline."""
    sd_tokens_per_second: Quantity
    """Speculative; decode only, as all speeds here."""
    ar_tokens_per_second: Quantity
    """Plain decoding."""
    acceptance_length: Quantity
    """Mean acceptance length: tokens per complete round."""
    acceptance_rate: Quantity
    """Accepted over drafted."""
    verdict: Verdict | None
    """On *after*, from the interval of :attr:`decisive`."""
    reason: str | None = None
    """Why there is no figure, where *after* was asked for one."""

    @property
    def label(self) -> str:
        """``code, K = 4``; the domain's name is text from outside."""
        length = f"K = {self.k}" if self.k == self.k_after else f"K = {self.k} -> {self.k_after}"
        return f"{'all prompts' if self.domain is None else self.domain}, {length}"

    @property
    def decisive(self) -> str:
        """The name of the speed that the verdict is about: the first that both measurements have."""
        return next((name for name in SPEEDS if self.quantity(name).ratio.value is not None), SPEEDS[0])

    def quantity(self, name: str) -> Quantity:
        """One of :data:`QUANTITIES`."""
        quantity = getattr(self, name)
        assert isinstance(quantity, Quantity)
        return quantity


def differences(before: Study, after: Study, columns: Sequence[Column], seed: int) -> tuple[Difference, ...]:
    """What differs, column by column: over all prompts, then over those of each domain.

    A prompt counts where every arm has decoded it that both studies have, and where it has as many tokens in both:
    else an id stands for two texts. Four rates of a prompt, plain and speculative before and after, are resampled
    together.

    Args:
        seed: of the bootstrap.
    """
    domain_of = {**after.domain_of, **before.domain_of}
    rows = []
    for column in columns:
        parts: list[tuple[str | None, list[str]]] = [(None, column.shared)]
        domains = list(dict.fromkeys(domain_of[prompt_id] for prompt_id in column.before if prompt_id in domain_of))
        if len(domains) > 1:
            parts += [(name, [prompt for prompt in column.shared if domain_of.get(prompt) == name]) for name in domains]
        for domain, prompts in parts:
            reason = None if prompts else why_missing(after, domain, (column.k_after, 0))
            if prompts or reason is not None or domain is None:
                rows.append(_difference(column, domain, prompts, reason, seed))
    return tuple(rows)


def _difference(
    column: Column, domain: str | None, prompts: Sequence[str], reason: str | None, seed: int
) -> Difference:
    speedup, sd_rate, ar_rate, length, rate = _quantities(column, prompts, seed) if prompts else _UNKNOWN
    row = Difference(
        k=column.k,
        k_after=column.k_after,
        domain=domain,
        num_prompts=len(prompts),
        speedup=speedup,
        sd_tokens_per_second=sd_rate,
        ar_tokens_per_second=ar_rate,
        acceptance_length=length,
        acceptance_rate=rate,
        verdict=None,
        reason=reason,
    )
    return dataclasses.replace(row, verdict=verdict(row.quantity(row.decisive).ratio.ci))


_TOKEN_COLUMNS = ((1, 3), (8, 10))
"""Of both arms before, and after: where :meth:`~specprof.experiments.shared_prompts.Prompt.row` has them."""
_UNKNOWN = [Quantity(*(Estimate(None, None),) * 4)] * len(QUANTITIES)
_Array = npt.NDArray[np.float64]


def _quantities(column: Column, prompts: Sequence[str], seed: int) -> list[Quantity]:
    table = np.array([(*column.before[prompt].row(), *column.after[prompt].row()) for prompt in prompts])
    with np.errstate(divide="ignore", invalid="ignore"):
        values = _statistics(table.sum(axis=0)[:, None])[:, 0]
    old, new = (np.nansum(table[:, columns], axis=1) for columns in _TOKEN_COLUMNS)
    weights = [old, new, old + new, old + new] * len(QUANTITIES)
    intervals = paired_bootstrap(list(table.T), _statistics, weights=weights, ratios=_RATIOS, seed=seed)
    estimates = [
        Estimate(float(value), _possible(ci, *limits)) if np.isfinite(value) else Estimate(None, None)
        for value, ci, limits in zip(values, intervals, _LIMITS, strict=True)
    ]
    return [Quantity(*estimates[start : start + 4]) for start in range(0, len(estimates), 4)]


# Of each quantity four statistics; the share of accepted tokens may be 0, and a difference is no ratio.
_ANY = (-np.inf, np.inf)
_LIMITS = [_ANY] * 4 * (len(QUANTITIES) - 1) + [(0.0, 1.0), (0.0, 1.0), (0.0, np.inf), (-1.0, 1.0)]
_RATIOS = [4 * quantity + statistic for quantity in range(len(QUANTITIES) - 1) for statistic in range(3)]


def _possible(ci: Interval | None, least: float, most: float) -> Interval | None:
    return None if ci is None else (max(ci[0], least), min(ci[1], most))


def _statistics(sums: _Array) -> _Array:
    """Of each quantity before, after, their ratio and their difference."""
    half = len(sums) // 2
    pairs = zip(_figures(sums[:half]), _figures(sums[half:]), strict=True)
    return np.stack([value for old, new in pairs for value in (old, new, new / old, new - old)])


def _figures(sums: _Array) -> tuple[_Array, ...]:
    """:data:`QUANTITIES` of one measurement."""
    ar_seconds, ar_tokens, sd_seconds, sd_tokens, accepted, drafted, rounds = sums
    sd_rate, ar_rate = sd_tokens / sd_seconds, ar_tokens / ar_seconds
    return sd_rate / ar_rate, sd_rate, ar_rate, 1 + accepted / rounds, accepted / drafted
