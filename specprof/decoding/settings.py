"""How a token is chosen: what a command line can be refused for before PyTorch is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass

from specprof.errors import UsageError

MIN_TEMPERATURE = 1e-30
"""Logits divided by less overflow float32."""
MAX_TEMPERATURE = 1e30
"""Logits divided by more are all alike, and soon the temperature itself overflows float32."""


def check_temperature(value: float, name: str = "temperature") -> None:
    """Refuse what logits can't be divided by, under the name it was given by.

    Raises:
        UsageError: it is negative, no number, or too small or too large.
    """
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"{name} {value} is not a number >= 0", "0 is greedy, 1 is the model's own")
    if 0 < value < MIN_TEMPERATURE:
        raise UsageError(f"{name} {value} is too small to divide by", "0 is greedy")
    if value > MAX_TEMPERATURE:
        raise UsageError(f"{name} {value} is too large to divide by", "1 is the model's own")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen; draft and target always share one.

    Raises:
        UsageError: a value that means nothing.
    """

    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most probable tokens whose mass reaches this; 1 keeps all."""

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if self.top_k < 0:
            raise UsageError(f"top-k {self.top_k} is negative", "0 keeps every token")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p {self.top_p} is not in (0, 1]", "1 keeps every token")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def keeps_all(self) -> bool:
        """Whether every token can be drawn."""
        return self.top_k == 0 and self.top_p == 1
