"""Whether speculation returned the tokens that the target returns alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from specprof.profiling.metrics import GenerationResult

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


def output_match(
    baseline: Sequence[GenerationResult],
    speculative: Sequence[GenerationResult],
    differences: Iterable[Divergence],
) -> OutputMatch | None:
    """Of each prompt, the earliest difference between repetitions of the two arms; None where an arm is missing.

    Args:
        differences: those that were looked into, to be told in place of the bare position.
    """
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
