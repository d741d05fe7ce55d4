"""Which matrix product multiplies a few tokens with a weight fastest on this CPU.

A verify pass multiplies 1 to ~9 rows with every weight of the model. CPU BLAS libraries
differ several times in how well they stream a weight for so few rows, depending on how
the same product is written down, on the processor and on the thread count (measured:
docs/log.md). So the choice is made by timing the model's own weights, once per width,
when that width is first used, which is during warm-up. All forms give the same product
up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class QuantisedMatrix:
    """``[out, in]`` in the hands of quantised layers that share their input: each knows its own rows and bias."""

    layers: tuple[nn.Module, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """``x [tokens, in] -> [tokens, out]``"""
        parts: list[Tensor] = [layer(x) for layer in self.layers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


Matrix: TypeAlias = Tensor | QuantisedMatrix
Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``(x [tokens, in], weight [out, in], bias [out] or None) -> [tokens, out]``"""
Product = Callable[[Tensor, Matrix, Tensor | None], Tensor]
"""The same for any matrix; a quantised one brings its bias."""

MAX_MEASURED_WIDTH = 16
"""Wider passes are bound by arithmetic, where ``F.linear`` is the right form."""

_LEAST_BYTES = 1 << 20
"""Below this a pass is all overhead and the forms differ little."""
_SAMPLE_BYTES = 96 << 20
_OTHER_BYTES = 64 << 20
_REPEATS = 5


def by_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The usual form, x @ W^T."""
    return F.linear(x, weight, bias)


def by_columns(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(W @ x^T)^T: the weight is the left operand and is read in storage order."""
    columns = x.contiguous().t()
    if bias is None:
        return torch.mm(weight, columns).t()
    return torch.addmm(bias.unsqueeze(1), weight, columns).t()


def by_twin_columns(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One token as two equal columns: some libraries' matrix-matrix kernel outruns their matrix-vector kernel."""
    return by_columns(torch.cat((x, x)), weight, bias)[:1]


def by_kind(form: Linear, x: Tensor, matrix: Matrix, bias: Tensor | None) -> Tensor:
    """A dense matrix by ``form``, a quantised one by its own layers."""
    return form(x, matrix, bias) if isinstance(matrix, Tensor) else matrix(x)


class LinearChoice:
    """The form to use for each width (number of tokens), measured on first use."""

    def __init__(self, weights: Sequence[Matrix], *, measure: bool) -> None:
        """
        Args:
            weights: the matrices ``[out, in]`` a forward pass multiplies, in order.
            measure: False keeps ``F.linear`` for every width, which makes runs repeatable to the last bit.
        """
        dense = [w for w in weights if isinstance(w, Tensor)]
        total = sum(w.numel() * w.element_size() for w in dense)
        suitable = bool(dense) and all(w.device.type == "cpu" and w.dtype == torch.float32 for w in dense)
        self._all_dense = len(dense) == len(weights)
        self._measure = measure and suitable and total > _LEAST_BYTES
        self._weights = sample_of(dense) if self._measure else []
        self._by_width: dict[int, Linear] = {}

    def __getitem__(self, width: int) -> Product:
        form: Linear = by_rows
        if self._measure and width <= MAX_MEASURED_WIDTH:
            if width not in self._by_width:
                seconds = measure_forms(self._weights, width)
                self._by_width[width] = min(seconds, key=lambda form: seconds[form])
            form = self._by_width[width]
        # A form alone where there is nothing to tell apart: this is called for every matrix of every pass.
        return form if self._all_dense else partial(by_kind, form)  # type: ignore[return-value]

    def chosen(self) -> dict[int, str]:
        """The forms measured so far, by width: recorded with results."""
        return {width: form.__name__ for width, form in sorted(self._by_width.items())}


def measure_forms(weights: Sequence[Tensor], width: int) -> dict[Linear, float]:
    """Seconds each form takes to multiply ``width`` tokens with all of ``weights``: the least of a few, met cold."""
    forms = (by_rows, by_columns, by_twin_columns) if width == 1 else (by_rows, by_columns)
    times: dict[Linear, list[float]] = {form: [] for form in forms}
    inputs = {w.shape[1]: torch.ones(width, w.shape[1]) for w in weights}
    other = torch.zeros(_OTHER_BYTES // 4)
    for repeat in range(_REPEATS + 1):
        for form in forms:
            # Between two passes of one model the other model runs: weights are met cold, and the forms
            # differ most in how they read from memory.
            other.add_(1)
            begin = perf_counter()
            for weight in weights:
                form(inputs[weight.shape[1]], weight, None)
            if repeat:  # the first is warm-up
                times[form].append(perf_counter() - begin)
    # The least, not the median: whatever else the machine does can only make a form look slower.
    return {form: min(spent) for form, spent in times.items()}


def sample_of(weights: Sequence[Tensor]) -> list[Tensor]:
    """The first weights up to a total size that no cache holds: one pass over them sees memory as decoding does."""
    sample, total = [], 0
    for weight in weights:
        sample.append(weight)
        total += weight.numel() * weight.element_size()
        if total > _SAMPLE_BYTES:
            break
    return sample
