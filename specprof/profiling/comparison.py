"""The view every surface shows: faster or not, by how much, how sure, where the time goes, still the target's output.

All arithmetic between results and a table, a page or a JSON document happens here, once.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from specprof.profiling import cost_model
from specprof.profiling.events import Round
from specprof.profiling.metrics import BASELINE, BYTES_PER_MB, AcceptanceCounts, GenerationResult
from specprof.profiling.statistics import (
    FEWEST_PAIRS,
    RESAMPLES,
    Interval,
    Verdict,
    cost_over_repetitions,
    drift,
    median,
    modified_z_outliers,
    paired_bootstrap_ratio,
    percentile,
    ratio_of_rates,
    verdict,
)

FEW_PROMPTS = 10
MAX_DRIFT = 0.05
MAX_CUT_SHARE = 0.20
MAX_EMPTY_SHARE = 0.20

LONGEST_PERIOD = 32
LOOPED_TOKENS = 64
SHORTEST_LOOP = 16

FEWEST_ROUNDS = 5
"""Rounds of one draft length it takes to believe their median cost."""


@dataclass(frozen=True, slots=True)
class Speedup:
    """Autoregressive over speculative seconds per token, the same prompts in both; above 1 is faster."""

    value: float | None
    ci: Interval | None
    """95 % interval, from resampling prompts; None with fewer than five."""
    verdict: Verdict | None
    n_prompts: int


@dataclass(frozen=True, slots=True)
class Phase:
    """One kind of work inside rounds, over all of an arm's rounds."""

    seconds: float
    share: float | None
    """Of the rounds' wall time."""
    seconds_per_round: float | None
    seconds_per_token: float | None
    """Per emitted token."""


@dataclass(frozen=True, slots=True)
class Phases:
    """Where the rounds' wall time went; the four sum to it."""

    draft: Phase
    verify: Phase
    sample: Phase
    overhead: Phase
    """Whatever no phase accounts for: roll-back, the host's work, launch gaps."""


@dataclass(frozen=True, slots=True)
class Arm:
    """What one decoder did."""

    decoder: str
    num_prompts: int
    num_generations: int
    num_tokens: int
    num_rounds: int
    tokens_per_second: float | None
    """Decode only: prefill and first token left out."""
    tokens_per_second_e2e: float | None
    ttft_seconds: float | None
    """Median time to first token."""
    tpot_seconds: float | None
    """Median over generations of (end - first token) / (tokens - 1)."""
    latency_p50: float | None
    """Seconds per round, which for a speculative arm is a burst of tokens."""
    latency_p95: float | None
    latency_p99: float | None
    phases: Phases
    peak_memory_bytes: int | None
    prefill_peak_memory_bytes: int | None
    """The prefill's share of it; at long prompts it is the larger one."""
    repetition: float | None
    """Share of generations that end in a loop (see :func:`loops`)."""
    energy_joules_per_token: float | None
    """Of the whole device while it generated, prefill included, per generated token; None without a counter."""


@dataclass(frozen=True, slots=True)
class Costs:
    """The run's own costs in units of the target's one-token pass, and what they predict.

    A speculative round costs K c + v + o passes and yields tau tokens.
    """

    target_step_seconds: float | None
    """Median target pass of the autoregressive arm: the unit."""
    draft_tokens_per_round: float | None
    """K; its mean where drafts differ in length, empty ones included. Every figure here is of complete rounds."""
    tokens_per_round: float | None
    """tau, over the same rounds."""
    draft_cost_ratio: float | None
    """c: median time to draft one token."""
    verify_ratio: float | None
    """v: median target pass over K + 1 positions."""
    overhead_ratio: float | None
    """o: median time of everything else in a round."""
    ar_overhead_ratio: float | None
    """The same for an autoregressive round. The prediction below leaves it out, as the literature does."""
    speedup_predicted: float | None
    """tau / (K c + v + o)."""
    speedup_predicted_with_ar_overhead: float | None
    """The same times (1 + ar_overhead_ratio): what this run's own baseline loop should measure."""
    break_even_tau: float | None
    break_even_alpha: float | None
    """None also where even alpha = 1 would not break even."""
    best_k: int | None
    """Best draft length up to K by this run's acceptance and costs; 0 is plain decoding. v between measured
    draft lengths is interpolated."""
    best_k_speedup_predicted: float | None


TieVerdict = Literal["tie", "failure"]


@dataclass(frozen=True, slots=True)
class Divergence:
    prompt_id: str
    position: int
    """Index of the first generated token that differs."""
    verdict: TieVerdict | None = None
    """Whether rounding explains it: two tokens about equally likely, of which a pass of another width prefers the
    other. None where that was not looked into."""
    gap: float | None = None
    """Between the target's logits of the two tokens."""
    tolerance: float | None = None
    """What rounding can make of a gap there."""


@dataclass(frozen=True, slots=True)
class OutputMatch:
    """Greedy decoding only: whether speculation returned the tokens the target returns alone."""

    num_prompts: int
    num_identical: int
    divergences: tuple[Divergence, ...]

    @property
    def failures(self) -> tuple[Divergence, ...]:
        """Those that rounding does not explain."""
        return tuple(divergence for divergence in self.divergences if divergence.verdict == "failure")


@dataclass(frozen=True, slots=True)
class Domain:
    speedup_decode: Speedup | None
    acceptance: AcceptanceCounts | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run. An arm that was not run, and whatever needs it, is None."""

    temperature: float
    num_prompts: int
    num_repetitions: int
    speedup_decode: Speedup | None
    speedup_e2e: Speedup | None
    acceptance: AcceptanceCounts | None
    baseline: Arm | None
    speculative: Arm | None
    costs: Costs | None
    predictions: tuple[cost_model.Prediction, ...]
    """For every draft length up to this run's, from its acceptance and the costs surveyed before it; empty without
    a survey."""
    output_matches_baseline: OutputMatch | None
    domains: dict[str, Domain]
    explanation: str | None
    """What a round costs and yields, and what that means."""
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; None where a number is undefined."""
        record = _plain(self)
        assert isinstance(record, dict)
        return record


def compare(
    results: Iterable[GenerationResult],
    *,
    temperature: float,
    domains: Mapping[str, str] | None = None,
    candidate: str | None = None,
    curve: cost_model.CostCurve | None = None,
    differences: Iterable[Divergence] = (),
    seed: int = 0,
) -> Comparison:
    """Set the speculative arm beside the autoregressive one.

    A prompt's cost in an arm is its median over repetitions of seconds per token, times its mean
    number of tokens; a speedup is the ratio of the arms' total seconds per total tokens over the
    prompts both arms decoded. ``speedup_decode`` counts rounds and the tokens they emit,
    ``speedup_e2e`` everything.

    Args:
        results: finished generations in time order, as :func:`~specprof.profiling.metrics.fold` yields them.
        domains: prompt id to domain, for the breakdown.
        candidate: the speculative arm's label; needed only if the results hold several.
        curve: what rounds of each draft length cost, surveyed beside this run.
        differences: why greedy texts differ, of those that were looked into.
        seed: of the bootstrap.

    Raises:
        ValueError: several speculative arms and no candidate named, or the candidate is not among them.
    """
    by_decoder: dict[str, list[GenerationResult]] = defaultdict(list)
    given = list(results)
    for result in measured(given):
        by_decoder[result.decoder or ("SD" if result.is_speculative else BASELINE)].append(result)
    baseline = by_decoder.pop(BASELINE, [])
    if candidate is None and len(by_decoder) > 1:
        raise ValueError(f"several speculative arms, name one as candidate: {', '.join(sorted(by_decoder))}")
    if candidate is not None and candidate not in by_decoder:
        raise ValueError(f"no results of {candidate}; there are: {', '.join(sorted(by_decoder)) or 'none'}")
    speculative = by_decoder[candidate] if candidate else next(iter(by_decoder.values()), [])

    warnings = []
    if said := left_out(given):
        warnings.append(f"{said}.")
    if baseline and speculative:
        shared = {r.prompt_id for r in baseline} & {r.prompt_id for r in speculative}
        unpaired = {r.prompt_id for r in [*baseline, *speculative]} - shared
        if unpaired:
            warnings.append(f"{counted(len(unpaired), 'prompt')} decoded by one arm only: left out.")
        baseline = [r for r in baseline if r.prompt_id in shared]
        speculative = [r for r in speculative if r.prompt_id in shared]

    greedy = temperature == 0
    arms = [results for results in (baseline, speculative) if results]
    prompts = {r.prompt_id for r in [*baseline, *speculative]}
    acceptance = _acceptance(speculative, greedy)
    speedup = _speedup(baseline, speculative, _decode, seed)
    predictions = _predictions(curve, acceptance, speculative)
    costs = _with_best(costs_of(_rounds(baseline), _rounds(speculative), acceptance), predictions)
    for arm in arms:
        warnings.extend(_measurement_warnings(arm))
    warnings.extend(_sample_warnings(len(prompts) if speedup else None, acceptance))
    return Comparison(
        temperature=temperature,
        num_prompts=len(prompts),
        num_repetitions=max((len({r.repetition for r in arm}) for arm in arms), default=0),
        speedup_decode=speedup,
        speedup_e2e=_speedup(baseline, speculative, _end_to_end, seed),
        acceptance=acceptance,
        baseline=_arm(baseline),
        speculative=_arm(speculative),
        costs=costs,
        predictions=predictions,
        output_matches_baseline=_output_match(baseline, speculative, differences) if greedy else None,
        domains=_by_domain(baseline, speculative, domains or {}, greedy, seed),
        explanation=explanation_of(speedup, costs),
        warnings=tuple(warnings),
    )


def measured(results: Iterable[GenerationResult]) -> list[GenerationResult]:
    """Those that nobody interfered with."""
    return [result for result in results if not result.interactive]


def left_out(results: Sequence[GenerationResult]) -> str | None:
    """How many of them :func:`measured` leaves out, and why; None: none."""
    number = sum(result.interactive for result in results)
    return f"{counted(number, 'generation')} paused, stepped through or raced: left out" if number else None


def loops(token_ids: Sequence[int]) -> bool:
    """Whether a text ends by repeating itself, which makes every drafter look good.

    True if its tail has a period of at most 32 tokens and covers the last 64 tokens,
    or at least half of the text in three periods and 16 tokens or more.
    """
    ids = np.asarray(token_ids)
    half = max(SHORTEST_LOOP, math.ceil(len(ids) / 2))
    for period in range(1, min(LONGEST_PERIOD, len(ids) - 1) + 1):
        differs = np.flatnonzero(ids[period:] != ids[:-period])
        covered = len(ids) - (int(differs[-1]) + 1 if differs.size else 0)
        if covered >= LOOPED_TOKENS or (covered >= half and covered >= 3 * period):
            return True
    return False


# Speed: prompts are the unit of sampling, repetitions only steady each prompt's figure.

PromptTimes = Mapping[str, Sequence[tuple[float, int]]]
"""By prompt id: seconds and tokens of each repetition."""

_Measure = Callable[[GenerationResult], tuple[float, int]]


def _decode(result: GenerationResult) -> tuple[float, int]:
    return result.decode_seconds, result.num_decode_tokens


def _end_to_end(result: GenerationResult) -> tuple[float, int]:
    return result.total_time, result.num_tokens


def _by_prompt(results: Sequence[GenerationResult], measure: _Measure) -> PromptTimes:
    times: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for result in results:
        times[result.prompt_id].append(measure(result))
    return times


def _costs_by_prompt(times: PromptTimes) -> dict[str, tuple[float, float]]:
    """Seconds and tokens of each prompt; prompts that took no time or gave no token have no speed."""
    costs = {prompt_id: cost_over_repetitions(repetitions) for prompt_id, repetitions in times.items()}
    return {prompt_id: cost for prompt_id, cost in costs.items() if cost is not None}


def _speedup(
    baseline: Sequence[GenerationResult], speculative: Sequence[GenerationResult], measure: _Measure, seed: int
) -> Speedup | None:
    return speedup_of(_by_prompt(baseline, measure), _by_prompt(speculative, measure), seed)


def speedup_of(
    baseline: PromptTimes, speculative: PromptTimes, seed: int = 0, resamples: int | None = None
) -> Speedup | None:
    """Of the prompts that both arms decoded; None while an arm has decoded none.

    Args:
        resamples: of the bootstrap, at most; None: as many as any figure that is kept.
    """
    if not baseline or not speculative:
        return None
    ar, sd = _costs_by_prompt(baseline), _costs_by_prompt(speculative)
    pairs = [(*ar[prompt_id], *sd[prompt_id]) for prompt_id in ar if prompt_id in sd]
    if not pairs:
        return Speedup(value=None, ci=None, verdict=None, n_prompts=0)
    ar_seconds, ar_tokens, sd_seconds, sd_tokens = zip(*pairs, strict=True)
    ci = paired_bootstrap_ratio(
        ar_seconds,
        sd_seconds,
        numerator_weights=ar_tokens,
        denominator_weights=sd_tokens,
        resamples=min(RESAMPLES, resamples or RESAMPLES),
        seed=seed,
    )
    value = ratio_of_rates(ar_seconds, sd_seconds, numerator_weights=ar_tokens, denominator_weights=sd_tokens)
    return Speedup(value=value, ci=ci, verdict=verdict(ci), n_prompts=len(pairs))


def _tokens_per_second(results: Sequence[GenerationResult], measure: _Measure) -> float | None:
    totals = _costs_by_prompt(_by_prompt(results, measure)).values()
    return sum(tokens for _, tokens in totals) / math.fsum(seconds for seconds, _ in totals) if totals else None


# One arm


def _arm(results: Sequence[GenerationResult]) -> Arm | None:
    if not results:
        return None
    latencies = [seconds for result in results for seconds in result.per_token_latencies]
    return Arm(
        decoder=results[0].decoder,
        num_prompts=len({r.prompt_id for r in results}),
        num_generations=len(results),
        num_tokens=sum(r.num_tokens for r in results),
        num_rounds=len(latencies),
        tokens_per_second=_tokens_per_second(results, _decode),
        tokens_per_second_e2e=_tokens_per_second(results, _end_to_end),
        ttft_seconds=median([r.time_to_first_token for r in results]),
        tpot_seconds=median([r.decode_seconds / r.num_decode_tokens for r in results if r.num_decode_tokens]),
        latency_p50=percentile(latencies, 50),
        latency_p95=percentile(latencies, 95),
        latency_p99=percentile(latencies, 99),
        phases=_phases(_rounds(results)),
        peak_memory_bytes=_largest_bytes(r.peak_memory_mb for r in results),
        prefill_peak_memory_bytes=_largest_bytes(r.prefill_peak_memory_mb or 0.0 for r in results),
        repetition=sum(loops(r.generated_ids) for r in results) / len(results),
        energy_joules_per_token=_energy_per_token(results),
    )


def _energy_per_token(results: Sequence[GenerationResult]) -> float | None:
    measured = [result.energy_joules for result in results if result.energy_joules is not None]
    num_tokens = sum(result.num_tokens for result in results)
    return math.fsum(measured) / num_tokens if len(measured) == len(results) and num_tokens else None


def _largest_bytes(megabytes: Iterable[float]) -> int | None:
    return int(max(megabytes) * BYTES_PER_MB) or None


def _phases(rounds: Sequence[Round]) -> Phases:
    wall = math.fsum(round.seconds for round in rounds)
    num_tokens = sum(len(round.emitted_tokens) for round in rounds)

    def phase(seconds: float) -> Phase:
        return Phase(
            seconds=seconds,
            share=seconds / wall if wall else None,
            seconds_per_round=seconds / len(rounds) if rounds else None,
            seconds_per_token=seconds / num_tokens if num_tokens else None,
        )

    return Phases(
        draft=phase(math.fsum(round.draft_seconds for round in rounds)),
        verify=phase(math.fsum(round.verify_seconds for round in rounds)),
        sample=phase(math.fsum(round.sample_seconds for round in rounds)),
        overhead=phase(math.fsum(round.overhead_seconds for round in rounds)),
    )


def _rounds(results: Iterable[GenerationResult]) -> list[Round]:
    return [round for result in results for round in result.rounds]


def _acceptance(results: Sequence[GenerationResult], greedy: bool) -> AcceptanceCounts | None:
    return AcceptanceCounts.of(_rounds(results), greedy=greedy) if results else None


def _by_domain(
    baseline: Sequence[GenerationResult],
    speculative: Sequence[GenerationResult],
    domains: Mapping[str, str],
    greedy: bool,
    seed: int,
) -> dict[str, Domain]:
    present = {domains[r.prompt_id]: None for r in [*baseline, *speculative] if r.prompt_id in domains}

    def of(domain: str, results: Sequence[GenerationResult]) -> list[GenerationResult]:
        return [r for r in results if domains.get(r.prompt_id) == domain]

    return {
        domain: Domain(
            speedup_decode=_speedup(of(domain, baseline), of(domain, speculative), _decode, seed),
            acceptance=_acceptance(of(domain, speculative), greedy),
        )
        for domain in present
    }


# Costs


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
    costs = Costs(
        target_step_seconds=t1,
        draft_tokens_per_round=None,
        tokens_per_round=None,
        draft_cost_ratio=None,
        verify_ratio=None,
        overhead_ratio=None,
        ar_overhead_ratio=b,
        speedup_predicted=None,
        speedup_predicted_with_ar_overhead=None,
        break_even_tau=None,
        break_even_alpha=None,
        best_k=None,
        best_k_speedup_predicted=None,
    )
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


def _predictions(
    curve: cost_model.CostCurve | None, acceptance: AcceptanceCounts | None, speculative: Sequence[GenerationResult]
) -> tuple[cost_model.Prediction, ...]:
    if curve is None or acceptance is None:
        return ()
    matches = [result.draft_matches for result in speculative if result.draft_matches is not None]
    return cost_model.predictions(
        curve,
        acceptance.gain_rates,
        # One alpha for all places has nothing to say of drafts that end early.
        acceptance.alpha if acceptance.proposes_in_full else None,
        matches if len(matches) == len(speculative) else (),
    )


def _with_best(costs: Costs | None, predictions: Sequence[cost_model.Prediction]) -> Costs | None:
    """Costs that were surveyed tell more of other draft lengths than those of this one."""
    if costs is None or not predictions:
        return costs
    best = max(predictions, key=lambda prediction: prediction.speedup)
    if best.speedup <= 1:
        return dataclasses.replace(costs, best_k=0, best_k_speedup_predicted=1.0)
    return dataclasses.replace(costs, best_k=best.k, best_k_speedup_predicted=best.speedup)


def _verify_curve(rounds: Sequence[Round], longest: int, t1: float) -> Callable[[int], float]:
    """v at every draft length: measured where enough rounds drafted that many, else on the line between."""
    seconds: dict[int, list[float]] = defaultdict(list)
    for round in rounds:
        seconds[len(round.draft_tokens)].append(round.verify_seconds)
    known = {n: float(np.median(s)) / t1 for n, s in seconds.items() if n and (len(s) >= FEWEST_ROUNDS or n == longest)}
    known[0] = 1.0
    lengths = sorted(known)
    return lambda n: float(np.interp(n, lengths, [known[length] for length in lengths]))


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
        sentences.append(_advice(worst, losses[worst], k, tau * (1 + b), c, v, o))
    return " ".join(sentences)


def _advice(worst: str, loss: float, k: float, worth: float, c: float, v: float, o: float) -> str:
    """``worth``: target passes the baseline needs for the tokens one round yields."""
    if worst == "draft":
        affordable = (worth - v - o) / k
        at_most = f"it would pay below {affordable:.2f}" if affordable > 0 else "not even a free drafter would pay"
        return f"The largest loss is drafting: {c:.2f} of a target pass per token; at this acceptance {at_most}."
    if worst == "verify":
        return (
            f"The largest loss is verification: a pass over {k + 1:g} positions costs {v:.2f} one-token passes, "
            "more than a target bound by memory bandwidth would take; drafting fewer tokens helps."
        )
    return (
        f"The largest loss is sampling and overhead: {loss:.2f} of a target pass per round above what plain decoding "
        "spends; a target that takes longer per pass would not notice it."
    )


# Is it still the target's output; can the figures be trusted


def _output_match(
    baseline: Sequence[GenerationResult],
    speculative: Sequence[GenerationResult],
    differences: Iterable[Divergence],
) -> OutputMatch | None:
    if not baseline or not speculative:
        return None
    expected: dict[str, list[int]] = {}
    by_repetition: dict[tuple[str, int], list[int]] = {}
    for result in baseline:
        expected.setdefault(result.prompt_id, result.generated_ids)
        by_repetition[result.prompt_id, result.repetition] = result.generated_ids
    diverged: dict[str, int] = {}
    for result in speculative:
        prompt_id, ids = result.prompt_id, result.generated_ids
        position = first_difference(by_repetition.get((prompt_id, result.repetition), expected[prompt_id]), ids)
        if position is not None:
            diverged[prompt_id] = min(position, diverged.get(prompt_id, position))
    known = {(difference.prompt_id, difference.position): difference for difference in differences}
    num_prompts = len({result.prompt_id for result in speculative})
    return OutputMatch(
        num_prompts=num_prompts,
        num_identical=num_prompts - len(diverged),
        divergences=tuple(known.get(place, Divergence(*place)) for place in diverged.items()),
    )


def first_difference(expected: Sequence[int], actual: Sequence[int]) -> int | None:
    """Index of the first token that differs, or that only one of two texts has; None if they are equal."""
    for position, (a, b) in enumerate(zip(expected, actual, strict=False)):
        if a != b:
            return position
    return None if len(expected) == len(actual) else min(len(expected), len(actual))


def _measurement_warnings(results: Sequence[GenerationResult]) -> list[str]:
    decoder, warnings = results[0].decoder, []
    looping = sum(loops(r.generated_ids) for r in results)
    if looping:
        warnings.append(
            f"{decoder}: {looping} of {counted(len(results), 'generation')} end in a loop, "
            "which flatters acceptance and speedup."
        )
    steadiness = relative_to_prompt(results)
    change = drift(steadiness)
    if change is not None and abs(change) > MAX_DRIFT:
        direction = "slower" if change > 0 else "faster"
        warnings.append(f"{decoder}: rounds became {_percent(abs(change))} {direction} during the run (drift).")
    outliers = modified_z_outliers(steadiness)
    if outliers:
        warnings.append(
            f"{decoder}: {len(outliers)} of {counted(len(results), 'generation')} far off the others in speed "
            "(10 robust deviations); kept, the median over repetitions bears it."
        )
    return warnings


def relative_to_prompt(results: Sequence[GenerationResult]) -> list[float]:
    """Seconds per round of each generation over its prompt's median, in time order.

    Prompts differ in context length and so in cost; repetitions of one prompt should not.
    Without repetitions there is nothing to compare.
    """
    repeated = Counter(r.prompt_id for r in results if r.decode_seconds > 0)
    kept = [r for r in results if r.decode_seconds > 0 and repeated[r.prompt_id] > 1]
    seconds_per_round: dict[str, list[float]] = defaultdict(list)
    for r in kept:
        seconds_per_round[r.prompt_id].append(r.decode_seconds / len(r.per_token_latencies))
    typical = {prompt_id: float(np.median(values)) for prompt_id, values in seconds_per_round.items()}
    return [r.decode_seconds / len(r.per_token_latencies) / typical[r.prompt_id] for r in kept]


def few_prompts(number: int) -> str:
    """What to say of so few."""
    if number < FEWEST_PAIRS:
        return f"{counted(number, 'prompt')} only: too few for an interval or a verdict; use {FEWEST_PAIRS} or more."
    return f"{number} prompts only: more would make the interval narrower, and stand for more kinds of text."


def _sample_warnings(num_pairs: int | None, acceptance: AcceptanceCounts | None) -> list[str]:
    warnings = []
    if num_pairs is not None and num_pairs < FEW_PROMPTS:
        warnings.append(few_prompts(num_pairs))
    if acceptance is None:
        return warnings
    total = acceptance.num_spec_steps + acceptance.num_cut_rounds + acceptance.num_empty_rounds
    if total and acceptance.num_cut_rounds / total > MAX_CUT_SHARE:
        warnings.append(
            f"{_percent(acceptance.num_cut_rounds / total)} of rounds were cut by the end of the text "
            "and are left out of acceptance; longer generations help."
        )
    if acceptance.num_spec_steps and acceptance.num_empty_rounds / total > MAX_EMPTY_SHARE:
        warnings.append(
            f"Nothing was drafted in {_percent(acceptance.num_empty_rounds / total)} of rounds; "
            "acceptance describes the others."
        )
    return warnings


def counted(number: int, noun: str) -> str:
    """``1 prompt``, ``2 prompts``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def _plain(value: Any) -> Any:
    if isinstance(value, AcceptanceCounts):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
