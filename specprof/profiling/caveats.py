"""What makes a run's figures doubtful, in sentences: loops, drift, outliers, few prompts, cut and empty rounds."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from specprof.profiling.acceptance import AcceptanceCounts
from specprof.profiling.metrics import GenerationResult
from specprof.profiling.numbers import count, percent
from specprof.profiling.statistics import FEWEST_PAIRS, drift, modified_z_outliers

FEW_PROMPTS = 10
MAX_DRIFT = 0.05
MAX_CUT_SHARE = 0.20
MAX_EMPTY_SHARE = 0.20

LONGEST_PERIOD = 32
LOOPED_TOKENS = 64
SHORTEST_LOOP = 16


def measurement_warnings(results: Sequence[GenerationResult]) -> list[str]:
    """Of the generations of one arm, one at least, in time order."""
    decoder, warnings = results[0].decoder, []
    steadiness = relative_to_prompt(results)
    change = drift(steadiness)
    if change is not None and abs(change) > MAX_DRIFT:
        direction = "slower" if change > 0 else "faster"
        warnings.append(f"{decoder}: rounds became {percent(abs(change))} {direction} during the run (drift).")
    outliers = modified_z_outliers(steadiness)
    if outliers:
        warnings.append(
            f"{decoder}: {len(outliers)} of {count(len(results), 'generation')} far off the others in speed "
            "(10 robust deviations); kept, the median over repetitions bears it."
        )
    return warnings


def loop_warnings(arms: Iterable[Sequence[GenerationResult]]) -> list[str]:
    """Of generations that end in a loop. Greedy, both arms write one text, of which one line is enough."""
    found: dict[str, list[str]] = {}
    for results in arms:
        if looping := sum(loops(result.generated_ids) for result in results):
            found.setdefault(f"{looping} of {count(len(results), 'generation')}", []).append(results[0].decoder)
    return [
        f"{' and '.join(decoders)}: {number}{' each' if len(decoders) > 1 else ''} end in a loop, "
        "which flatters acceptance and speedup."
        for number, decoders in found.items()
    ]


def sample_warnings(num_pairs: int | None, acceptance: AcceptanceCounts | None) -> list[str]:
    """Of how much the speedup (``num_pairs`` prompts; None: there is no speedup) and the acceptance stand on."""
    warnings = []
    if num_pairs is not None and num_pairs < FEW_PROMPTS:
        warnings.append(few_prompts(num_pairs))
    if acceptance is None:
        return warnings
    total = acceptance.num_spec_steps + acceptance.num_cut_rounds + acceptance.num_empty_rounds
    if total and acceptance.num_cut_rounds / total > MAX_CUT_SHARE:
        warnings.append(
            f"{percent(acceptance.num_cut_rounds / total)} of rounds were cut by the end of the text "
            "and are left out of acceptance; longer generations help."
        )
    complete = acceptance.num_spec_steps + acceptance.num_empty_rounds
    if acceptance.num_spec_steps and acceptance.num_empty_rounds / complete > MAX_EMPTY_SHARE:
        warnings.append(
            f"Nothing was drafted in {percent(acceptance.num_empty_rounds / complete)} of rounds; "
            "acceptance describes the others."
        )
    return warnings


def few_prompts(number: int) -> str:
    """What to say of so few."""
    if number < FEWEST_PAIRS:
        return f"{count(number, 'prompt')} only: too few for an interval or a verdict; use {FEWEST_PAIRS} or more."
    return f"{number} prompts only: more would make the interval narrower, and stand for more kinds of text."


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
