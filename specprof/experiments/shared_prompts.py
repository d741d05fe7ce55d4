"""What two studies have in common: draft lengths, and prompts that every arm decoded; and what is left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specprof.errors import UsageError
from specprof.experiments.matrix import DraftLength, Missing
from specprof.experiments.saved_runs import mapping
from specprof.experiments.study import Study
from specprof.profiling.acceptance import AcceptanceCounts
from specprof.profiling.metrics import GenerationResult
from specprof.profiling.numbers import count
from specprof.profiling.statistics import cost_over_repetitions


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one study measured of a prompt; an arm that has no speed is None."""

    lengths: frozenset[int | None]
    """Tokens of the prompt, in every generation."""
    ar: tuple[float, float] | None
    """Seconds and tokens, decode only."""
    sd: tuple[float, float] | None
    accepted: int
    drafted: int
    rounds: int

    def row(self) -> tuple[float, ...]:
        """Seconds and tokens of both arms, accepted, drafted, rounds: of many prompts, the sums are what counts."""
        undefined = (np.nan, np.nan)
        return (*(self.ar or undefined), *(self.sd or undefined), self.accepted, self.drafted, self.rounds)


@dataclass(frozen=True, slots=True)
class Column:
    """What both studies measured of one draft length."""

    k: DraftLength
    k_after: DraftLength
    before: Mapping[str, Prompt]
    """By prompt id."""
    after: Mapping[str, Prompt]
    shared: list[str]
    """Prompt ids."""
    named_alike: list[str]
    """Those and the ones that are left out because they are not of as many tokens in both."""


def shared_columns(before: Study, after: Study) -> list[Column]:
    """By draft length.

    Raises:
        UsageError: the studies share no draft length, or no prompt.
    """
    columns = []
    for k, k_after in _draft_lengths(before, after):
        old, new = _prompts(before, k), _prompts(after, k_after)
        alike = _decoded_in_both(old, new)
        shared = [prompt for prompt in alike if old[prompt].lengths == new[prompt].lengths]
        columns.append(Column(k, k_after, old, new, shared if _same_target(before, after) else alike, alike))
    if not any(column.shared or why_missing(after, None, (column.k_after, 0)) for column in columns):
        alike = [prompt for column in columns for prompt in column.named_alike]
        why = ": those of the same names are not of as many tokens in both" if alike else ""
        raise UsageError(
            f"A and B share no prompt{why}",
            "compare measurements of the same prompts: the same --prompts, --domain, -n and --chat-template",
        )
    return columns


def _draft_lengths(before: Study, after: Study) -> list[tuple[DraftLength, DraftLength]]:
    """Before and after: those that both have, and those that *after* tried in vain.

    Raises:
        UsageError: none.
    """
    for side, study in (("A", before), ("B", after)):
        if not study.comparisons and (study is before or not study.missing):
            why = f" that count ({'; '.join(study.caveats)})" if study.caveats else ""
            raise UsageError(f"{side} has no finished generations{why}", "let it run to its end, or name another")
    old, new = list(before.comparisons), list(after.comparisons)
    found: list[tuple[DraftLength, DraftLength]] = [
        (k, k) for k in old if k in after.comparisons or why_missing(after, None, (k,)) is not None
    ]
    if not found and len(old) == len(new) == 1:
        return [(old[0], new[0])]
    if not found:
        of_a, of_b = (", ".join(map(str, lengths)) for lengths in (old, new))
        raise UsageError(
            f"A and B have no draft length in common: A has K = {of_a}, B has K = {of_b}",
            "name one cell of each (`specprof results list`), or measure the same draft lengths",
        )
    return found


def why_missing(study: Study, domain: str | None, lengths: Collection[DraftLength]) -> str | None:
    """Why *after* has no figure that it was asked for; None if it was not."""
    for missing in study.missing:
        if missing.k in lengths and domain in (None, missing.domain):
            return f"B: {progress(missing)}"
    return None


def progress(missing: Missing) -> str:
    """``3 of 20 generations, out of memory``."""
    done = f"{missing.num_done} of {missing.num_expected} generations"
    return done if missing.failure is None else f"{done}, {missing.failure.reason}"


def _same_target(before: Study, after: Study) -> bool:
    """Whether a prompt has to be the same tokens in both."""
    old, new = (mapping(study.models.get("target")).get("model") for study in (before, after))
    return before.pair == after.pair if old is None or new is None else bool(old == new)


def _prompts(study: Study, k: DraftLength) -> dict[str, Prompt]:
    plain, speculative = _by_prompt(study.arm(k, baseline=True)), _by_prompt(study.arm(k, baseline=False))
    found = {}
    for prompt_id in dict.fromkeys([*plain, *speculative]):
        ar, sd = plain.get(prompt_id, []), speculative.get(prompt_id, [])
        counts = AcceptanceCounts.of((round for result in sd for round in result.rounds), greedy=False)
        found[prompt_id] = Prompt(
            lengths=frozenset(result.num_prompt_tokens for result in [*ar, *sd]),
            ar=_speed(ar),
            sd=_speed(sd),
            accepted=counts.num_accepted_draft_tokens,
            drafted=counts.num_draft_tokens,
            rounds=counts.num_spec_steps,
        )
    return found


def _by_prompt(results: Iterable[GenerationResult]) -> dict[str, list[GenerationResult]]:
    found: dict[str, list[GenerationResult]] = defaultdict(list)
    for result in results:
        found[result.prompt_id].append(result)
    return found


def _speed(results: Iterable[GenerationResult]) -> tuple[float, float] | None:
    return cost_over_repetitions((result.decode_seconds, result.num_decode_tokens) for result in results)


def _decoded_in_both(before: Mapping[str, Prompt], after: Mapping[str, Prompt]) -> list[str]:
    """Prompts that every arm decoded which both studies have."""
    arms = [has for has in (_has_ar, _has_sd) if any(map(has, before.values())) and any(map(has, after.values()))]
    shared = [prompt_id for prompt_id in before if prompt_id in after] if arms else []
    return [prompt_id for prompt_id in shared if all(has(before[prompt_id]) and has(after[prompt_id]) for has in arms)]


def _has_ar(prompt: Prompt) -> bool:
    return prompt.ar is not None


def _has_sd(prompt: Prompt) -> bool:
    return prompt.sd is not None


def left_out(before: Study, after: Study, columns: Sequence[Column]) -> Iterable[str]:
    """Which prompts are in no column, and why, in sentences."""
    why: dict[str, str] = {}
    compared = {prompt for column in columns for prompt in column.shared}
    for column in columns:
        for prompt in [*column.before, *column.after] if column.after else []:
            if prompt in compared:
                continue
            if prompt not in column.after:
                why[prompt] = "only in A"
            elif prompt not in column.before:
                why[prompt] = "only in B"
            elif prompt in column.named_alike:
                why[prompt] = "not of as many tokens in A as in B, and so of other texts"
            else:
                why[prompt] = "not decoded by every arm of both"
    for reason in dict.fromkeys(why.values()):
        prompts = [prompt for prompt, of_prompt in why.items() if of_prompt == reason]
        yield f"Left out: {count(len(prompts), 'prompt')} {reason} ({_some_of(prompts)})."
    if not _same_target(before, after):
        yield "The targets differ: prompts are taken to be the same where their names are."


def _some_of(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:3]) + (f" and {len(every) - 3} more" if len(every) > 3 else "")
