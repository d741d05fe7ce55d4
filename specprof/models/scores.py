"""The numbers that tokens were chosen by: looked at on the host, they tell whether they were numbers at all."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor


def scores_of(rows: Tensor, chosen: Tensor) -> Tensor:
    """What ``rows [n, vocab]``, logits or laws, hold at the tokens ``chosen [n]`` from them.

    One NaN or infinity that could have reached a choice reaches its score: argmax takes a NaN for the largest, a
    softmax over one is NaN everywhere, and so is a softmax over an infinity.
    """
    return rows.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


def are_numbers(scores: Iterable[float]) -> bool:
    """Whether every choice was made by numbers."""
    return all(map(math.isfinite, scores))
