"""Greedy, and speculation's text is not plain decoding's: rounding at a tie, or a fault?

A pass of several tokens adds up in another order than passes of one, so logits differ by rounding. Where the target's
two best tokens are closer than that, either is as much its choice as the other. Anything else is a fault.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specprof.models.wrapper import ModelWrapper
from specprof.profiling.comparison import first_difference
from specprof.profiling.verification import Difference

_ROUNDING_STEPS = 4
"""Each of two logits may be rounded one step (eps times its size) up in one pass and down in the other. Where both
passes happen to round alike, the observed difference is 0 and this is what is left."""
_MAX_STEPS = 64
_MAX_SHARE = 0.1
"""Passes of different width whose logits differ by more steps, or by more of the largest logit, don't compute the same
thing: that would excuse everything."""


def diagnose(
    target: ModelWrapper,
    prompt_id: str,
    prompt_ids: Sequence[int],
    speculative_ids: Sequence[int],
    plain_ids: Sequence[int],
    width: int,
) -> Difference | None:
    """Look at the target's logits where two greedy continuations of one prompt part.

    Args:
        speculative_ids, plain_ids: generated tokens.
        width: tokens to a verify pass, K + 1.

    Returns:
        None if they are equal.
    """
    position = first_difference(speculative_ids, plain_ids)
    if position is None:
        return None
    shared = list(plain_ids[:position])
    narrow = _logits(target, prompt_ids, shared, 1, 0)
    wide = [_logits(target, prompt_ids, shared, width, row) for row in range(min(width, len(shared)))]
    observed = max((float((logits - narrow).abs().max()) for logits in wide), default=0.0)
    largest, eps = float(narrow.abs().max()), torch.finfo(target.dtype).eps
    # Each of two logits moves by what was observed at most, in opposite directions.
    tolerance = max(2 * observed, _ROUNDING_STEPS * eps * largest)
    is_rounding = observed <= min(_MAX_STEPS * eps, _MAX_SHARE) * largest
    best, second = narrow.topk(2).values.tolist()
    chosen = [ids[position] if position < len(ids) else None for ids in (speculative_ids, plain_ids)]
    gap = None
    if None not in chosen:
        gap = best - min(float(narrow[token]) for token in chosen if token is not None)
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
        # Where a text ends is decided by its tokens alone: of two equal ones, one ended where it should not have.
        verdict="tie" if is_rounding and gap is not None and gap <= tolerance else "failure",
    )


@torch.inference_mode()
def _logits(target: ModelWrapper, prompt: Sequence[int], text: Sequence[int], width: int, row: int) -> Tensor:
    """The target's logits ``[vocab]`` after ``prompt + text``, in float64, on the CPU; ``text`` is fed ``width`` tokens
    at a time.

    Its last token is in ``row`` of the last pass. What follows it there it can't see; as at the length limit, nothing
    does beyond the model's context.
    """
    last = len(text) - 1 - row
    end = len(prompt) + len(text)
    room = end + width if target.max_context is None else min(end + width, target.max_context)
    cache = target.new_cache(room)
    device = target.device
    logits = target.extend(torch.tensor(prompt, device=device), cache)
    if not text:
        return logits[0].double().cpu()
    for begin in range(0, last, width):
        target.extend(torch.tensor(text[begin : min(begin + width, last)], device=device), cache)
    padding = [0] * min(width - 1 - row, room - end)
    window = torch.tensor([*text[last:], *padding], device=device)
    return target.extend(window, cache, window.shape[0])[row].double().cpu()
