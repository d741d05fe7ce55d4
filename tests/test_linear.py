"""The forms of a matrix product: one result, and a choice that is measured where it matters and nowhere else."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from specprof.models import linear
from specprof.models.linear import MAX_MEASURED_WIDTH, LinearChoice, by_columns, by_rows, by_twin_columns

torch.set_num_threads(1)

FORMS = {1: (by_rows, by_columns, by_twin_columns), 2: (by_rows, by_columns), 9: (by_rows, by_columns)}


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.t().contiguous().t(),
    "slice": lambda x: torch.cat((x, x), 1)[:, : x.shape[1]],
    "strided": lambda x: x.repeat_interleave(2, 0)[::2],
    "expanded": lambda x: x[:1].expand(x.shape),
}
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda w: w,
    "transposed": lambda w: w.t().contiguous().t(),  # GPT-2's checkpoint
    "slice": lambda w: torch.cat((w, w))[: w.shape[0]],
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("rows", INPUTS)
@pytest.mark.parametrize("width", FORMS)
def test_all_forms_are_one_product(
    width: int, rows: str, weight: str, bias: bool, dtype: torch.dtype, tolerance: float
) -> None:
    x = INPUTS[rows](normal(width, 48, dtype=dtype))
    w = WEIGHTS[weight](normal(32, 48, dtype=dtype, seed=1))
    b = normal(32, dtype=dtype, seed=2) if bias else None
    expected = F.linear(x, w, b)
    for form in FORMS[width]:
        result = form(x, w, b)
        assert result.shape == (width, 32)
        torch.testing.assert_close(result, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("width", FORMS)
def test_results_can_be_reshaped_and_written_to(width: int) -> None:
    """What the forward does with a projection: view it as heads, split it, multiply in place."""
    x, w = normal(width, 16), normal(32, 16, seed=1)
    for form in FORMS[width]:
        out = form(x, w, None)
        assert torch.equal(out.reshape(width, 4, 8).flatten(1), out)
        gate, up = form(x, w, None).chunk(2, -1)
        torch.testing.assert_close(F.silu(gate).mul_(up), F.silu(out[:, :16]) * out[:, 16:])


# --- the choice


@pytest.fixture
def small_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 1000 bytes of weights were many, so that small ones are large."""
    monkeypatch.setattr(linear, "_LEAST_BYTES", 1000)
    monkeypatch.setattr(linear, "_OTHER_BYTES", 1000)


def large() -> list[Tensor]:
    return [normal(32, 16), normal(16, 32)]


@pytest.mark.usefixtures("small_scale")
def test_large_float32_weights_are_measured_once_per_width() -> None:
    choice = LinearChoice(large(), measure=True)
    assert choice.chosen() == {}
    first = choice[3]
    assert first in FORMS[2]
    assert choice.chosen() == {3: first.__name__}
    assert all(choice[3] is first for _ in range(20))
    assert choice[1] in FORMS[1]
    assert list(choice.chosen()) == [1, 3]


@pytest.mark.usefixtures("small_scale")
@pytest.mark.parametrize("fastest", FORMS[1])
def test_the_fastest_form_wins(fastest: linear.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def timed(form: linear.Linear) -> linear.Linear:
        def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            clock[0] += 1.0 if form is fastest else 2.0
            return F.linear(x, weight, bias)

        run.__name__ = form.__name__
        return run

    for form in FORMS[1]:
        monkeypatch.setattr(linear, form.__name__, timed(form))
    monkeypatch.setattr(linear, "perf_counter", lambda: clock[0])
    choice = LinearChoice(large(), measure=True)
    assert choice[1].__name__ == fastest.__name__
    assert choice.chosen() == {1: fastest.__name__}


@pytest.mark.usefixtures("small_scale")
def test_the_least_time_decides_and_warm_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process can only slow a form down; the first pass of each meets whatever it meets."""
    clock, calls = [0.0], itertools.count()

    def disturbed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        clock[0] += 2.0 if next(calls) in (6, 7) else 100.0  # one repeat over the two weights is left in peace
        return F.linear(x, weight, bias)

    early = itertools.count()

    def slower(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        clock[0] += 1.0 if next(early) in (0, 1) else 3.0  # quick in the warm-up alone
        return F.linear(x, weight, bias)

    monkeypatch.setattr(linear, "by_rows", disturbed)
    monkeypatch.setattr(linear, "by_columns", slower)
    monkeypatch.setattr(linear, "perf_counter", lambda: clock[0])
    assert LinearChoice(large(), measure=True)[2] is disturbed


@pytest.mark.usefixtures("small_scale")
def test_wide_passes_are_by_rows() -> None:
    choice = LinearChoice(large(), measure=True)
    assert choice[MAX_MEASURED_WIDTH + 1] is by_rows
    assert choice.chosen() == {}
    assert choice[MAX_MEASURED_WIDTH] in FORMS[2]
    assert list(choice.chosen()) == [MAX_MEASURED_WIDTH]


@pytest.mark.usefixtures("small_scale")
@pytest.mark.parametrize(
    ("weights", "measure"),
    [
        (large(), False),
        ([w.double() for w in large()], True),
        ([w.bfloat16() for w in large()], True),
        ([large()[0], large()[1].half()], True),
        ([w.to("meta") for w in large()], True),  # not on the CPU
        ([normal(2, 2)], True),  # too few to matter
        ([], True),
    ],
    ids=["not asked", "float64", "bfloat16", "mixed", "not on the CPU", "small", "none"],
)
def test_everything_else_is_by_rows_unmeasured(weights: list[Tensor], measure: bool) -> None:
    choice = LinearChoice(weights, measure=measure)
    assert all(choice[width] is by_rows for width in range(1, 20))
    assert choice.chosen() == {}


def test_a_small_model_is_not_measured() -> None:
    choice = LinearChoice([normal(64, 64)] * 64, measure=True)  # 2**20 bytes
    assert choice[1] is by_rows
    assert choice.chosen() == {}


@pytest.mark.usefixtures("small_scale")
def test_the_measurement_reads_a_bounded_part_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_SAMPLE_BYTES", 5000)
    seen: set[int] = set()

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.add(weight.data_ptr())
        return by_rows(x, weight, bias)

    monkeypatch.setattr(linear, "by_columns", watched)
    weights = [normal(16, 32) for _ in range(10)]  # 2048 bytes each
    LinearChoice(weights, measure=True)[2]
    assert seen == {w.data_ptr() for w in weights[:3]}
