"""What a verification found: whether the output is still the target's. Plain data, for every way to show it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from specprof.profiling.goodness import POWER

FAMILY_LEVEL = 1e-4
"""Of all tests of both arms together (Bonferroni): a false alarm in ten thousand verifications."""

CHECKS = {
    "unjudged": "draft tokens let through without being judged, by how much likelier the draft makes a token",
    "corrected": "rejected tokens replaced by the target's law instead of the residual, by how likely a token would be "
    "accepted",
    "bonus": "bonus tokens that come from the draft, in the same way",
    "sharpness": "another temperature, by the log probability of a token",
    "acceptance": "draft tokens accepted more or less often than both models' probabilities say",
    "ranks": "anything else, by how much probability lies on tokens likelier than the one drawn",
}
"""The tests of speculation, and what each is most sensitive to, and by what: in JSON beside their results."""

CONTROL_CHECKS = ("unjudged", "sharpness", "ranks")
"""Those that say something where nothing is drafted."""

CHECK_LEVEL = FAMILY_LEVEL / (len(CHECKS) + len(CONTROL_CHECKS))
"""A p-value below it is a failure."""

OutputVerdict = Literal["passed", "failed", "control failed", "not tested"]


@dataclass(frozen=True, slots=True)
class Check:
    """One test of one arm."""

    name: str
    """One of :data:`CHECKS`."""
    num_tokens: int
    p: float | None = None
    z: float | None = None
    chi_square: float | None = None
    degrees_of_freedom: int | None = None
    allowance: float | None = None
    """For rounding, measured; in units of z, or of the root of chi-square."""
    estimate: float | None = None
    """Size of the fault that is looked for: a share of tokens; of ``sharpness``, the relative change of
    1 / temperature. Another fault may look like more than all of them, or less than none."""
    interval: tuple[float, float] | None = None
    """95 %."""
    detectable: float | None = None
    """The smallest fault that would have been found with 99 % probability; of ``ranks``, the root mean square
    relative deviation of a bin."""
    not_tested: str | None = None
    """Why it says nothing. With a p-value: because it could have missed any fault; a failure still is one."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """How far the target's law differs between a pass over the whole text and passes as decoding makes them."""

    width: int
    """Tokens to a pass, as in decoding."""
    num_tokens: int
    max_logit_difference: float
    mean_total_variation: float
    limit: float
    """Of the mean total variation: beyond, it isn't rounding."""

    @property
    def plausible(self) -> bool:
        return self.mean_total_variation <= self.limit  # nor is it rounding where a pass computes no numbers


@dataclass(frozen=True, slots=True)
class ArmLaw:
    """Whether one arm's tokens follow the target's law."""

    label: str
    num_texts: int
    num_tokens: int
    num_drafted: int
    num_accepted: int
    num_rejected: int
    num_bonus: int
    checks: tuple[Check, ...]
    num_impossible: int
    """Tokens of probability 0, which top-k or top-p exclude, or for which the target computes no number."""
    num_borderline: int
    """Tokens excluded by no more than rounding."""
    rounding: Rounding | None
    """None without tokens to measure it with."""

    @property
    def failures(self) -> tuple[str, ...]:
        """Names of what failed."""
        failed = [check.name for check in self.checks if check.p is not None and check.p < CHECK_LEVEL]
        if self.num_impossible:
            failed.append("impossible")
        if self.rounding is not None and not self.rounding.plausible:
            failed.append("rounding")
        return tuple(failed)

    @property
    def tested(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.p is not None and check.not_tested is None)

    @property
    def smallest_p(self) -> float | None:
        return min((check.p for check in self.tested if check.p is not None), default=None)

    def detectable(self, *names: str) -> float | None:
        """The smallest fault that one of these checks would have found."""
        return min((c.detectable for c in self.tested if c.name in names and c.detectable is not None), default=None)


@dataclass(frozen=True, slots=True)
class LawVerification:
    """Sampling: both arms' tokens against the target's law."""

    temperature: float
    control: ArmLaw
    """Plain decoding: what fails here too is not speculation's fault."""
    speculative: ArmLaw

    @property
    def verdict(self) -> OutputVerdict:
        if self.control.failures:
            return "control failed"
        if self.speculative.failures:
            return "failed"
        return "passed" if self.speculative.num_drafted and self.speculative.tested else "not tested"

    def to_dict(self) -> dict[str, Any]:
        return {
            "mode": "distribution",
            "verdict": self.verdict,
            "temperature": self.temperature,
            "family_level": FAMILY_LEVEL,
            "level": CHECK_LEVEL,
            "power": POWER,
            "tests": CHECKS,
            "arms": {"control": _arm(self.control), "speculative": _arm(self.speculative)},
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """Where speculation's greedy text first differs from plain decoding's, and what the target's logits say to it."""

    prompt_id: str
    position: int
    """Index of the first generated token that differs, or that only one of them has."""
    speculative_token: int | None
    """None: the text ended before."""
    plain_token: int | None
    gap: float | None
    """How far below the best logit the worse of the two tokens lies, computed one token at a time. None where a text
    ended before the other."""
    top2_gap: float
    """Between the two best logits there."""
    tolerance: float
    """Gaps up to it are rounding."""
    width_difference: float
    """The furthest that passes of the width of a round move a logit there."""
    dtype: str
    verdict: Literal["tie", "failure"]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class GreedyVerification:
    """Greedy: both arms' texts, token by token."""

    num_texts: int
    num_tokens: int
    num_drafted: int
    num_accepted: int
    num_rejected: int
    differences: tuple[Difference, ...]

    @property
    def failures(self) -> tuple[Difference, ...]:
        return tuple(difference for difference in self.differences if difference.verdict == "failure")

    @property
    def ties(self) -> tuple[Difference, ...]:
        return tuple(difference for difference in self.differences if difference.verdict == "tie")

    @property
    def verdict(self) -> OutputVerdict:
        if self.failures:
            return "failed"
        return "passed" if self.num_drafted else "not tested"

    def to_dict(self) -> dict[str, Any]:
        return {
            "mode": "greedy",
            "verdict": self.verdict,
            "temperature": 0.0,
            "num_identical": self.num_texts - len(self.differences),
            **dataclasses.asdict(self),
        }


Verification = LawVerification | GreedyVerification


def _arm(arm: ArmLaw) -> dict[str, Any]:
    return dataclasses.asdict(arm) | {"failures": list(arm.failures), "smallest_p": arm.smallest_p}
