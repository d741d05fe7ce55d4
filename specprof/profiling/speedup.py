"""How much faster, and how sure. Prompts are the unit of chance; repetitions only steady the figure of each."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from specprof.profiling.metrics import GenerationResult
from specprof.profiling.statistics import (
    RESAMPLES,
    Interval,
    Verdict,
    cost_over_repetitions,
    paired_bootstrap_ratio,
    ratio_of_rates,
    verdict,
)

PromptTimes = Mapping[str, Sequence[tuple[float, int]]]
"""By prompt id: seconds and tokens of each repetition."""

Timing = Callable[[GenerationResult], tuple[float, int]]
"""Seconds and tokens of a generation: :func:`decoding` or :func:`end_to_end`."""


@dataclass(frozen=True, slots=True)
class Speedup:
    """Autoregressive over speculative seconds per token, the same prompts in both; above 1 is faster."""

    value: float | None
    ci: Interval | None
    """95 % interval, from resampling prompts; None with fewer than five."""
    verdict: Verdict | None
    n_prompts: int


def decoding(result: GenerationResult) -> tuple[float, int]:
    """Rounds and the tokens they emit: prefill and first token left out."""
    return result.decode_seconds, result.num_decode_tokens


def end_to_end(result: GenerationResult) -> tuple[float, int]:
    return result.total_time, result.num_tokens


def speedup_between(
    baseline: Sequence[GenerationResult], speculative: Sequence[GenerationResult], timing: Timing, seed: int
) -> Speedup | None:
    return speedup_of(_by_prompt(baseline, timing), _by_prompt(speculative, timing), seed)


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


def tokens_per_second(results: Sequence[GenerationResult], timing: Timing) -> float | None:
    totals = _costs_by_prompt(_by_prompt(results, timing)).values()
    return sum(tokens for _, tokens in totals) / math.fsum(seconds for seconds, _ in totals) if totals else None


def _by_prompt(results: Sequence[GenerationResult], timing: Timing) -> PromptTimes:
    times: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for result in results:
        times[result.prompt_id].append(timing(result))
    return times


def _costs_by_prompt(times: PromptTimes) -> dict[str, tuple[float, float]]:
    """Seconds and tokens of each prompt; prompts that took no time or gave no token have no speed."""
    costs = {prompt_id: cost_over_repetitions(repetitions) for prompt_id, repetitions in times.items()}
    return {prompt_id: cost for prompt_id, cost in costs.items() if cost is not None}
