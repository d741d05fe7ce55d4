"""What a run's rounds cost in passes of its target, what that predicts, and in words what to make of it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from specprof.profiling import cost_model
from specprof.profiling.acceptance import AcceptanceCounts
from specprof.profiling.events import Round
from specprof.profiling.speedup import Speedup
from specprof.profiling.statistics import median

FEWEST_ROUNDS = 5
"""Rounds of one draft length it takes to believe their median cost."""


@dataclass(frozen=True, slots=True)
class Costs:
    """The run's own costs in units of the target's one-token pass, and what they predict.

    A speculative round costs K c + v + o passes and yields tau tokens; without any, there is the unit alone.
    """

    target_step_seconds: float
    """Median target pass of the autoregressive arm: the unit."""
    draft_tokens_per_round: float | None = None
    """K; its mean where drafts differ in length, empty ones included. Every figure here is of complete rounds."""
    tokens_per_round: float | None = None
    """tau, over the same rounds."""
    draft_cost_ratio: float | None = None
    """c: median time to draft one token."""
    verify_ratio: float | None = None
    """v: median target pass over K + 1 positions."""
    overhead_ratio: float | None = None
    """o: median time of everything else in a round."""
    ar_overhead_ratio: float | None = None
    """The same for an autoregressive round. The prediction below leaves it out, as the literature does."""
    speedup_predicted: float | None = None
    """tau / (K c + v + o)."""
    speedup_predicted_with_ar_overhead: float | None = None
    """The same times (1 + ar_overhead_ratio): what this run's own baseline loop should measure."""
    break_even_tau: float | None = None
    break_even_alpha: float | None = None
    """None also where even alpha = 1 would not break even."""
    best_k: int | None = None
    """Best draft length up to K by this run's acceptance and costs; 0 is plain decoding. v between measured
    draft lengths is interpolated."""
    best_k_speedup_predicted: float | None = None

    @property
    def best_k_is_advisable(self) -> bool:
        """Whether it is what runs, or is predicted to be faster than what runs, whose drafts may be shorter than K."""
        best, now = self.best_k_speedup_predicted, self.speedup_predicted_with_ar_overhead
        return self.best_k == self.draft_tokens_per_round or (best is not None and (now is None or best > now))


def costs_of(steps: Sequence[Round], speculative: Sequence[Round], acceptance: AcceptanceCounts | None) -> Costs | None:
    """What rounds cost, and what that predicts; None without a single step of plain decoding.

    Args:
        steps: of the autoregressive arm.
        speculative: rounds of the other.
        acceptance: of the latter.
    """
    t1 = median([round.verify_seconds for round in steps])
    if not t1:
        return None
    b = float(np.median([round.sample_seconds + round.overhead_seconds for round in steps])) / t1
    costs = Costs(target_step_seconds=t1, ar_overhead_ratio=b)
    rounds = [round for round in speculative if not round.cut]
    longest = max((len(round.draft_tokens) for round in rounds), default=0)
    if acceptance is None or not longest:
        return costs
    k = sum(len(round.draft_tokens) for round in rounds) / len(rounds)
    tau = 1 + sum(round.num_accepted for round in rounds) / len(rounds)
    c = cost_model.typical(rounds, lambda round: round.draft_seconds) / t1 / k
    v = cost_model.typical(rounds, lambda round: round.verify_seconds) / t1
    o = cost_model.typical(rounds, lambda round: round.sample_seconds + round.overhead_seconds) / t1
    if k * c + v + o <= 0:
        return costs
    predicted = cost_model.predicted_speedup(tau, k, c, v, o)
    best = cost_model.best_k(acceptance.gain_rates, c, _verify_curve(rounds, longest, t1), o, baseline_overhead=b)
    return dataclasses.replace(
        costs,
        draft_tokens_per_round=k,
        tokens_per_round=tau,
        draft_cost_ratio=c,
        verify_ratio=v,
        overhead_ratio=o,
        speedup_predicted=predicted,
        speedup_predicted_with_ar_overhead=predicted * (1 + b),
        break_even_tau=cost_model.break_even_tau(k, c, v, o),
        # Which alpha would break even is asked of one draft length.
        break_even_alpha=cost_model.break_even_alpha(longest, c, v, o) if k == longest else None,
        best_k=best.k,
        best_k_speedup_predicted=best.speedup_predicted,
    )


def _verify_curve(rounds: Sequence[Round], longest: int, t1: float) -> Callable[[int], float]:
    """v at every draft length: measured where enough rounds drafted that many, else on the line between."""
    seconds: dict[int, list[float]] = defaultdict(list)
    for round in rounds:
        seconds[len(round.draft_tokens)].append(round.verify_seconds)
    known = {n: float(np.median(s)) / t1 for n, s in seconds.items() if n and (len(s) >= FEWEST_ROUNDS or n == longest)}
    known[0] = 1.0
    lengths = sorted(known)
    return lambda n: float(np.interp(n, lengths, [known[length] for length in lengths]))


def with_best_of(costs: Costs | None, predictions: Sequence[cost_model.Prediction]) -> Costs | None:
    """With the best K of the survey, if there was one: of other draft lengths it tells more than this run's rounds."""
    if costs is None or not predictions:
        return costs
    best = max(predictions, key=lambda prediction: prediction.speedup)
    if best.speedup <= 1:
        return dataclasses.replace(costs, best_k=0, best_k_speedup_predicted=1.0)
    return dataclasses.replace(costs, best_k=best.k, best_k_speedup_predicted=best.speedup)


def explanation_of(speedup: Speedup | None, costs: Costs | None) -> str | None:
    """What a round costs and yields; when slower, the largest cost and what it would have to be."""
    if costs is None:
        return None
    k, tau = costs.draft_tokens_per_round, costs.tokens_per_round
    c, v, o, b = costs.draft_cost_ratio, costs.verify_ratio, costs.overhead_ratio, costs.ar_overhead_ratio
    if k is None or tau is None or c is None or v is None or o is None or b is None:
        return None
    sentences = [
        f"A round costs {k * c + v + o:.2f} target passes (drafting {k * c:.2f}, verifying {v:.2f}, "
        f"sampling and overhead {o:.2f}) and yields {tau:.2f} tokens."
    ]
    slower = speedup is not None and speedup.value is not None and speedup.value < 1
    if slower and speedup is not None and speedup.verdict != "not distinguishable":
        # An ideal round is one target pass and the baseline's own overhead, with nothing spent on drafting.
        losses = {"draft": k * c, "verify": v - 1, "overhead": o - b}
        worst = max(losses, key=lambda name: losses[name])
        fewer = costs.best_k is not None and 0 < costs.best_k < k
        sentences.append(_advice(worst, losses[worst], k, tau * (1 + b), c, v, o, fewer=fewer))
    return " ".join(sentences)


def _advice(worst: str, loss: float, k: float, worth: float, c: float, v: float, o: float, *, fewer: bool) -> str:
    """``worth``: target passes the baseline needs for the tokens one round yields; ``fewer``: whether a shorter draft
    would pay."""
    if worst == "draft":
        affordable = (worth - v - o) / k
        at_most = f"it would pay below {affordable:.2f}" if affordable > 0 else "not even a free drafter would pay"
        return f"The largest loss is drafting: {c:.2f} of a target pass per token; at this acceptance {at_most}."
    if worst == "verify":
        return (
            f"The largest loss is verification: a pass over {k + 1:.3g} positions costs {v:.2f} one-token passes, "
            "more than a target bound by memory bandwidth would take; "
            + ("drafting fewer tokens helps." if fewer else "at this acceptance no shorter draft pays either.")
        )
    return (
        f"The largest loss is sampling and overhead: {loss:.2f} of a target pass per round above what plain decoding "
        "spends; a target that takes longer per pass would not notice it."
    )
