"""``--fail-if``: thresholds that a measurement has to keep, for scripts and continuous integration."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specprof.errors import ThresholdError, UsageError

if TYPE_CHECKING:
    from specprof.experiments.difference import Contrasts
    from specprof.experiments.quantities import Difference, Estimate

QUANTITIES = ("speedup", "sd_tokens_per_second", "ar_tokens_per_second", "acceptance_length", "acceptance_rate")
"""What a :class:`~specprof.experiments.quantities.Difference` tells, the weightiest first."""
AFTER = "_after"
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
NAMES = f"{', '.join(QUANTITIES)}: B over A, 0.97 is 3 % less; or with {AFTER}: what B has, as speedup{AFTER}<1.2"
_EXPRESSION = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*([^\s%]+)\s*(%?)\s*")
_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Threshold:
    """One expression of ``--fail-if``: it names what must not be."""

    name: str
    """A quantity, for B over A; or with ``_after``, for B alone."""
    operator: str
    number: float

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.number:g}"

    def estimate(self, row: Difference) -> Estimate:
        quantity = row.quantity(self.name.removesuffix(AFTER))
        return quantity.after if self.name.endswith(AFTER) else quantity.ratio

    def crossed(self, estimate: Estimate, *, certain: bool) -> bool:
        """Whether it holds; of what was not measured it is taken to hold."""
        holds = OPERATORS[self.operator]
        if certain:
            return estimate.ci is None or all(holds(end, self.number) for end in estimate.ci)
        return estimate.value is None or holds(estimate.value, self.number)


@dataclass(frozen=True, slots=True)
class Judged:
    """A threshold beside one figure."""

    threshold: Threshold
    where: str
    """The domain and K, text from outside among it."""
    estimate: Estimate
    crossed: bool
    reason: str | None
    """Why it counts as crossed without a figure."""

    def __str__(self) -> str:
        """``code, K = 4: speedup 0.94 < 0.97 [0.92, 0.96]``."""
        name, value, ci = self.threshold.name, self.estimate.value, self.estimate.ci
        if self.reason is not None:
            return f"{self.where}: {name} {self.reason}"
        assert value is not None
        digits = self._digits(value)
        number = f"{self.threshold.number:.{max(digits, _decimals(self.threshold.number))}f}"
        interval = "" if ci is None else f" [{ci[0]:.{digits}f}, {ci[1]:.{digits}f}]"
        return f"{self.where}: {name} {value:.{digits}f} {self.threshold.operator} {number}{interval}"

    def _digits(self, value: float) -> int:
        """So many that what is printed is true as it stands."""
        holds = OPERATORS[self.threshold.operator]
        wanted = holds(value, self.threshold.number)
        return next((n for n in range(2, 16) if holds(round(value, n), self.threshold.number) == wanted), 16)


def parse(expressions: Sequence[str]) -> tuple[Threshold, ...]:
    """Thresholds as they are written.

    Raises:
        UsageError: one can't be read, or names nothing.
    """
    return tuple(map(_parsed, expressions))


def check_flags(*, certain: bool, each_domain: bool, anything_to_judge: bool) -> None:
    """Refuse flags that say how to judge where nothing is judged.

    Raises:
        UsageError: there is one.
    """
    for given, flag in ((certain, "--certain"), (each_domain, "--each-domain")):
        if given and not anything_to_judge:
            raise UsageError(f"{flag} needs --fail-if", "for example --fail-if 'speedup<0.97'")


def judged(
    thresholds: Sequence[Threshold], found: Contrasts, *, certain: bool = False, each_domain: bool = False
) -> list[Judged]:
    """Every threshold beside every draft length, of all prompts together; ``each_domain``: of each domain too."""
    several = len(found.contrasts) > 1
    verdicts = []
    for threshold in thresholds:
        for contrast in found.contrasts:
            for row in contrast.differences:
                if row.domain is None or each_domain:
                    estimate = threshold.estimate(row)
                    where = f"{contrast.after.title}, {row.label}" if several else row.label
                    if contrast.other_hardware and "tokens_per_second" in threshold.name:
                        where += " (different machines)"
                    crossed = threshold.crossed(estimate, certain=certain)
                    reason = _why_unjudged(threshold, row, certain=certain)
                    verdicts.append(Judged(threshold, where, estimate, crossed, reason))
    return verdicts


def to_dicts(verdicts: Sequence[Judged]) -> list[dict[str, Any]]:
    """Plain JSON types."""
    return [
        {
            "threshold": str(verdict.threshold),
            "where": verdict.where,
            "value": verdict.estimate.value,
            "ci": verdict.estimate.ci,
            "crossed": verdict.crossed,
            "reason": verdict.reason,
        }
        for verdict in verdicts
    ]


def check(verdicts: Sequence[Judged], found: Contrasts) -> None:
    """End a command that has said everything else.

    Raises:
        ThresholdError: a threshold is crossed.
    """
    crossed = [str(verdict) for verdict in verdicts if verdict.crossed]
    if not crossed:
        return
    more = f"; and {len(crossed) - _SHOWN} more" if len(crossed) > _SHOWN else ""
    changes = dict.fromkeys(change for contrast in found.contrasts for change in contrast.changes)
    hint = (
        f"what differs from A to B: {'; '.join(list(changes)[:_SHOWN])}"
        if changes
        else "nothing recorded differs from A to B: measure again, with more prompts and an idle machine"
    )
    raise ThresholdError(f"--fail-if: {'; '.join(crossed[:_SHOWN])}{more}", hint)


def _parsed(text: str) -> Threshold:
    match = _EXPRESSION.fullmatch(text)
    if match is None:
        raise UsageError(f"--fail-if {text!r} is not NAME < NUMBER", "for example 'speedup<0.97'; also <= > >=")
    name, sign, digits, percent = match.groups()
    if name.removesuffix(AFTER) not in QUANTITIES:
        raise UsageError(f"--fail-if {text!r}: there is no {name!r}", f"names: {NAMES}")
    try:
        number = float(digits) / (100 if percent else 1)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"--fail-if {text!r}: {digits!r} is not a number", "for example 'speedup<0.97'")
    if number < 0:
        raise UsageError(
            f"--fail-if {text!r} can never {'hold' if '<' in sign else 'fail to hold'}: {name} is not negative",
            "a ratio of B over A below 1 is a loss: 'speedup<0.97' is a loss of 3 % or more",
        )
    return Threshold(name, sign, number)


def _why_unjudged(threshold: Threshold, row: Difference, *, certain: bool) -> str | None:
    estimate, quantity = threshold.estimate(row), row.quantity(threshold.name.removesuffix(AFTER))
    if estimate.value is None:
        if row.reason is not None or not row.num_prompts:
            return f"was not measured ({row.reason or 'no prompt in common'})"
        without = [side for side, of in (("A", quantity.before), ("B", quantity.after)) if of.value is None]
        return f"was not measured (not in {' and '.join(without)})" if without else "has no ratio (it is 0 in A)"
    if certain and estimate.ci is None:
        return f"has no interval to be certain by ({row.num_prompts} prompt{'s' * (row.num_prompts != 1)})"
    return None


def _decimals(number: float) -> int:
    """As many as it is written with."""
    return len(f"{number:g}".partition(".")[2])
