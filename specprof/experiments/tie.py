"""Greedy, and speculation's text is not plain decoding's: rounding at a tie, or a fault?

A pass of several tokens adds up in another order than passes of one, so logits differ by rounding. Where the target's
two best tokens are closer than that, either is as much its choice as the other. Anything else is a fault.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specprof.models.wrapper import ModelWrapper
from specprof.profiling.output_match import first_difference
from specprof.profiling.verification import Difference

_PLACES = 64
"""Where rounding is looked at, before the texts part."""
_MAX_STEPS = 64
_MAX_SHARE = 0.1
"""Passes of different width whose logits differ by more steps of the dtype, or by more of the best logit, don't compute
the same thing: that would excuse everything."""


def diagnose(
    target: ModelWrapper,
    prompt_id: str,
    prompt_ids: Sequence[int],
    speculative_ids: Sequence[int],
    plain_ids: Sequence[int],
    width: int,
) -> Difference | None:
    """Look at the target's logits where two greedy continuations of one prompt part, and at the rest of the
    speculative one: behind a tie it is a text of its own, in which every token has to be the target's choice too.

    Args:
        speculative_ids, plain_ids: generated tokens.
        width: tokens to a verify pass, K + 1.

    Returns:
        None if they are equal.
    """
    position = first_difference(speculative_ids, plain_ids)
    if position is None:
        return None
    text = [*prompt_ids, *plain_ids[:position]]
    begin = max(1, len(text) - _PLACES)
    narrow, wide = _logits(target, text, begin, 1), _logits(target, text, begin, width)
    observed = float((narrow - wide).abs().max())
    here = narrow[-1]
    best, second = here.topk(2).values.tolist()
    step = torch.finfo(target.dtype).eps * max(abs(best), abs(second))
    # Each of the two logits moves by what was observed at most, in opposite directions; where all passes happened to
    # round alike, one of them may still round one step the other way.
    tolerance = max(2 * observed, step)
    is_rounding = observed <= min(_MAX_STEPS * step, _MAX_SHARE * max(abs(best), abs(second)))
    chosen = [ids[position] if position < len(ids) else None for ids in (speculative_ids, plain_ids)]
    # Where a text ends is decided by its tokens alone: of two equal ones, one ended where it should not have.
    gap = None if None in chosen else best - min(float(here[token]) for token in chosen if token is not None)
    explained = is_rounding and gap is not None and gap <= tolerance
    return Difference(
        prompt_id=prompt_id,
        position=position,
        speculative_token=chosen[0],
        plain_token=chosen[1],
        gap=gap,
        top2_gap=best - second,
        tolerance=tolerance,
        width_difference=observed,
        dtype=str(target.dtype).removeprefix("torch."),
        verdict="tie"
        if explained and _follows(target, prompt_ids, speculative_ids, position, tolerance)
        else "failure",
    )


def _follows(
    target: ModelWrapper, prompt: Sequence[int], generated: Sequence[int], position: int, tolerance: float
) -> bool:
    """Whether every token behind ``position`` is the target's choice, given what the text has before it."""
    text = [*prompt, *generated[:-1]]
    begin = len(prompt) + position
    if begin >= len(text):
        return True
    logits = _logits(target, text, begin + 1, 1)
    tokens = torch.tensor(generated[position + 1 :])
    return bool((logits.max(-1).values - logits[torch.arange(len(tokens)), tokens] <= tolerance).all())


@torch.inference_mode()
def _logits(target: ModelWrapper, text: Sequence[int], begin: int, width: int) -> Tensor:
    """The target's logits ``[len(text) - begin + 1, vocab]`` after ``text[:begin]``, and after each token behind that,
    which is fed ``width`` tokens at a time; in float64, on the CPU."""
    cache = target.new_cache(len(text))
    device = target.device
    rows = [target.extend(torch.tensor(text[:begin], device=device), cache).double().cpu()]
    for start in range(begin, len(text), width):
        piece = torch.tensor(text[start : start + width], device=device)
        rows.append(target.extend(piece, cache, piece.shape[0]).double().cpu())
    return torch.cat(rows)
