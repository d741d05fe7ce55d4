"""The view every surface shows: faster or not, by how much, how sure, where the time goes, still the target's output.

What shows it computes nothing of its own: a figure in a table, a page or a JSON document is a field of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specprof.profiling import cost_model
from specprof.profiling.acceptance import AcceptanceCounts
from specprof.profiling.caveats import loop_warnings, loops, measurement_warnings, sample_warnings
from specprof.profiling.events import Round
from specprof.profiling.metrics import BASELINE, BYTES_PER_MB, GenerationResult
from specprof.profiling.numbers import count
from specprof.profiling.output_match import Divergence, OutputMatch, output_match
from specprof.profiling.round_costs import Costs, costs_of, explanation_of, with_best_of
from specprof.profiling.speedup import Speedup, decoding, end_to_end, speedup_between, tokens_per_second
from specprof.profiling.statistics import median, percentile


@dataclass(frozen=True, slots=True)
class Phase:
    """One kind of work inside rounds, over all of an arm's rounds."""

    seconds: float
    share: float | None
    """Of the rounds' wall time."""
    seconds_per_round: float | None
    seconds_per_token: float | None
    """Per emitted token."""


PHASES = ("draft", "verify", "sample", "overhead")
"""Fields of :class:`Phases`, in the order of a round."""


@dataclass(frozen=True, slots=True)
class Phases:
    """Where the rounds' wall time went; the four sum to it."""

    draft: Phase
    verify: Phase
    sample: Phase
    overhead: Phase
    """Whatever no phase accounts for: roll-back, the host's work, launch gaps."""

    @property
    def by_name(self) -> dict[str, Phase]:
        return {name: getattr(self, name) for name in PHASES}

    @property
    def seconds_per_round(self) -> float | None:
        """Of all four together."""
        return _sum(phase.seconds_per_round for phase in self.by_name.values())

    @property
    def seconds_per_token(self) -> float | None:
        """Of all four together."""
        return _sum(phase.seconds_per_token for phase in self.by_name.values())


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
    given = list(results)
    baseline, speculative = _arms(measured(given), candidate)
    warnings = []
    if said := left_out(given):
        warnings.append(f"{said}.")
    if baseline and speculative:
        shared = {r.prompt_id for r in baseline} & {r.prompt_id for r in speculative}
        unpaired = {r.prompt_id for r in [*baseline, *speculative]} - shared
        if unpaired:
            warnings.append(f"{count(len(unpaired), 'prompt')} decoded by one arm only: left out.")
        baseline = [r for r in baseline if r.prompt_id in shared]
        speculative = [r for r in speculative if r.prompt_id in shared]

    greedy = temperature == 0
    arms = [results for results in (baseline, speculative) if results]
    prompts = {r.prompt_id for r in [*baseline, *speculative]}
    acceptance = _acceptance(speculative, greedy)
    speedup = speedup_between(baseline, speculative, decoding, seed)
    predictions = _predictions(curve, acceptance, speculative)
    costs = with_best_of(costs_of(_rounds(baseline), _rounds(speculative), acceptance), predictions)
    warnings.extend(loop_warnings(arms))
    for arm in arms:
        warnings.extend(measurement_warnings(arm))
    warnings.extend(sample_warnings(len(prompts) if speedup else None, acceptance))
    return Comparison(
        temperature=temperature,
        num_prompts=len(prompts),
        num_repetitions=max((len({r.repetition for r in arm}) for arm in arms), default=0),
        speedup_decode=speedup,
        speedup_e2e=speedup_between(baseline, speculative, end_to_end, seed),
        acceptance=acceptance,
        baseline=_arm(baseline),
        speculative=_arm(speculative),
        costs=costs,
        predictions=predictions,
        output_matches_baseline=output_match(baseline, speculative, differences) if greedy else None,
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
    return f"{count(number, 'generation')} paused, stepped through or raced: left out" if number else None


def _arms(
    results: Iterable[GenerationResult], candidate: str | None
) -> tuple[list[GenerationResult], list[GenerationResult]]:
    """Of plain decoding, and of the candidate; an arm that was not run is empty."""
    by_decoder: dict[str, list[GenerationResult]] = defaultdict(list)
    for result in results:
        by_decoder[result.decoder or ("SD" if result.is_speculative else BASELINE)].append(result)
    baseline = by_decoder.pop(BASELINE, [])
    if candidate is None and len(by_decoder) > 1:
        raise ValueError(f"several speculative arms, name one as candidate: {', '.join(sorted(by_decoder))}")
    if candidate is not None and candidate not in by_decoder:
        raise ValueError(f"no results of {candidate}; there are: {', '.join(sorted(by_decoder)) or 'none'}")
    return baseline, by_decoder[candidate] if candidate else next(iter(by_decoder.values()), [])


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
        tokens_per_second=tokens_per_second(results, decoding),
        tokens_per_second_e2e=tokens_per_second(results, end_to_end),
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
    joules = [result.energy_joules for result in results if result.energy_joules is not None]
    num_tokens = sum(result.num_tokens for result in results)
    return math.fsum(joules) / num_tokens if len(joules) == len(results) and num_tokens else None


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


def _sum(parts: Iterable[float | None]) -> float | None:
    known = list(parts)
    return None if None in known else sum(part for part in known if part is not None)


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
            speedup_decode=speedup_between(of(domain, baseline), of(domain, speculative), decoding, seed),
            acceptance=_acceptance(of(domain, speculative), greedy),
        )
        for domain in present
    }


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
