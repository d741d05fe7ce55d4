"""Why the speedup is what it is: where a speculative round's time goes beyond what its tokens had to cost.

If a round cost no more than one step of plain decoding, each token would cost 1/tau of such a step, and the
speedup would be tau. What it costs above that has a cause, and the causes add up to the difference.
"""

from __future__ import annotations

from dataclasses import dataclass

from specprof.profiling.comparison import Arm, Comparison


@dataclass(frozen=True, slots=True)
class Loss:
    """One cause, in seconds per emitted token."""

    name: str
    seconds_per_token: float
    share: float | None
    """Of the whole gap; below 0 where this made up for some of it. None without a gap."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """The gap between the ideal and the measured speedup, cause by cause."""

    tokens_per_round: float
    """tau over all rounds: the speedup if a round cost one step of plain decoding."""
    ar_seconds_per_token: float
    ideal_seconds_per_token: float
    """``ar_seconds_per_token / tokens_per_round``."""
    measured_seconds_per_token: float
    losses: tuple[Loss, ...]
    """They add up to measured - ideal; the largest first."""
    prefill_seconds: float | None
    """What the draft's prefill adds to the time to the first token; in no loss above, decoding begins after it."""

    @property
    def ideal_speedup(self) -> float:
        return self.tokens_per_round

    @property
    def measured_speedup(self) -> float:
        return self.ar_seconds_per_token / self.measured_seconds_per_token

    @property
    def gap_seconds_per_token(self) -> float:
        return self.measured_seconds_per_token - self.ideal_seconds_per_token


@dataclass(frozen=True, slots=True)
class Change:
    """The draft length that would have been best by this run's own acceptance and costs."""

    k: float
    """Tokens asked of the drafter per round here; the mean of what it drafted, where that differs (``auto``)."""
    best_k: int
    """0: not to speculate."""
    speedup: float
    """Predicted at k, by the model that predicts the other."""
    best_speedup: float

    @property
    def at_limit(self) -> bool:
        """No longer draft was tried, so whether one would be better is not known."""
        return self.best_k >= self.k


def attribute(comparison: Comparison) -> Attribution | None:
    """Split the gap of a comparison; None where an arm is missing or decoded nothing.

    Seconds per token are those of the headline (per prompt the median over repetitions); phases share them as they
    share the wall time of all rounds.
    """
    ar, sd = comparison.baseline, comparison.speculative
    if ar is None or sd is None or not ar.tokens_per_second or not sd.tokens_per_second or not sd.num_rounds:
        return None
    if comparison.acceptance is None or comparison.acceptance.num_spec_tokens is None:
        return None  # nothing was drafted, so that there is no speculation to explain
    tau = (sd.num_tokens - sd.num_generations) / sd.num_rounds
    before, after = 1 / ar.tokens_per_second, 1 / sd.tokens_per_second
    speedup = comparison.speedup_decode
    if speedup is not None and speedup.value is not None and speedup.n_prompts < comparison.num_prompts:
        # Of some prompts one arm made a single token, which the prefill yields: the arms' speeds are not of one set.
        before = after * speedup.value
    accepted = comparison.acceptance.draft_acceptance_rate if comparison.acceptance else None
    draft = after * _share(sd, "draft")
    useful = draft * (accepted or 0.0)

    def above_plain_decoding(phase: str) -> float:
        return after * _share(sd, phase) - before * _share(ar, phase) / tau

    parts = {
        "drafting accepted tokens": useful,
        "drafting rejected tokens": draft - useful,
        "verifying more than one token": above_plain_decoding("verify"),
        "sampling": above_plain_decoding("sample"),
        "overhead": above_plain_decoding("overhead"),
    }
    gap = after - before / tau
    # Of what is no gap there are no shares.
    losses = [Loss(name, seconds, seconds / gap if gap > 0 else None) for name, seconds in parts.items()]
    return Attribution(
        tokens_per_round=tau,
        ar_seconds_per_token=before,
        ideal_seconds_per_token=before / tau,
        measured_seconds_per_token=after,
        losses=tuple(sorted(losses, key=lambda loss: -loss.seconds_per_token)),
        prefill_seconds=_difference(sd.ttft_seconds, ar.ttft_seconds),
    )


def best_change(comparison: Comparison) -> Change | None:
    """What another draft length would have done; None where the run doesn't tell."""
    costs, acceptance = comparison.costs, comparison.acceptance
    if costs is None or acceptance is None or costs.best_k is None or costs.best_k_speedup_predicted is None:
        return None
    if costs.draft_tokens_per_round is None or costs.speedup_predicted_with_ar_overhead is None:
        return None
    asked = acceptance.num_asked_tokens
    k = costs.draft_tokens_per_round if asked is None else asked
    # Where costs were surveyed, the other lengths are predicted from the survey: then this one has to be, too.
    surveyed = {prediction.k: prediction.speedup for prediction in comparison.predictions}
    speedup = surveyed.get(asked or 0, costs.speedup_predicted_with_ar_overhead)
    measured = comparison.speedup_decode
    if costs.best_k == 0 and asked is not None and measured is not None and measured.verdict == "faster":
        return Change(k, asked, speedup, speedup)  # whatever the model says, it is faster
    return Change(k, costs.best_k, speedup, costs.best_k_speedup_predicted)


def _share(arm: Arm, phase: str) -> float:
    return arm.phases.by_name[phase].share or 0.0


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
