"""Probabilities against Hugging Face's own processors, draws against their law, streams against each other."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from goodness_of_fit import ALPHA, chi_square_p
from specprof.decoding import sampling as drawing
from specprof.decoding.sampling import Sampling, draw, probabilities, random_stream, uniforms
from specprof.errors import UsageError

CPU = torch.device("cpu")

# --- probabilities


def hugging_face(logits: Tensor, sampling: Sampling) -> Tensor:
    """What ``generate`` samples from: its processors, in its order, on logits it made float32 first."""
    scores = logits if logits.dtype == torch.float64 else logits.float()
    ids = torch.zeros(scores.shape[0], 1, dtype=torch.long)
    if sampling.temperature != 1:
        scores = TemperatureLogitsWarper(sampling.temperature)(ids, scores)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(ids, scores)
    return scores.softmax(-1)


def logits_of(rows: int, vocab_size: int, spread: float, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(vocab_size)
    return (spread * torch.randn(rows, vocab_size, generator=generator, dtype=torch.float64)).to(dtype)


SETTINGS = [
    Sampling(temperature, top_k, top_p)
    for temperature, top_k, top_p in itertools.product((0.3, 1.0, 1.7), (0, 1, 7, 10_000), (1.0, 0.95, 0.5, 1e-3))
]


@pytest.mark.parametrize("vocab_size", [5, 64, 2000])
@pytest.mark.parametrize("spread", [0.3, 3.0, 30.0])
def test_probabilities_equal_hugging_faces(vocab_size: int, spread: float) -> None:
    logits = logits_of(9, vocab_size, spread, torch.float64)
    for sampling in SETTINGS:
        ours, theirs = probabilities(logits, sampling), hugging_face(logits, sampling)
        assert torch.equal(ours > 0, theirs > 0), sampling
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_probabilities_of_lower_precision_logits(dtype: torch.dtype) -> None:
    logits = logits_of(40, 64, 3.0, dtype)
    for sampling in SETTINGS:
        ours, theirs = probabilities(logits, sampling), hugging_face(logits, sampling)
        assert ours.dtype == torch.float32
        # Among equal logits at the edge of the nucleus either may be kept: the laws are the same up to their names.
        torch.testing.assert_close(ours.sort(-1).values, theirs.sort(-1).values, rtol=1e-4, atol=1e-7)
        for row, law in zip(logits, ours, strict=True):
            kept = law > 0
            assert kept.all() or row[kept].min() >= row[~kept].max()
        torch.testing.assert_close(ours.sum(-1), torch.ones(40))


def test_half_precision_logits_really_tie() -> None:
    logits = logits_of(40, 64, 3.0, torch.bfloat16)
    assert any(len(row.unique()) < 64 for row in logits)  # else the test above says less than it seems to


def test_probabilities_of_any_shape() -> None:
    logits = logits_of(6, 11, 2.0, torch.float32)
    for sampling in (Sampling(1.0), Sampling(0.7, 3, 0.8)):
        rows = probabilities(logits, sampling)
        assert torch.equal(probabilities(logits.view(2, 3, 11), sampling), rows.view(2, 3, 11))
        torch.testing.assert_close(probabilities(logits[0], sampling), rows[0])


def test_probabilities_leave_the_logits_alone() -> None:
    logits = logits_of(3, 11, 2.0, torch.float32)
    before = logits.clone()
    probabilities(logits, Sampling(0.7, 3, 0.8))
    assert torch.equal(logits, before)


def test_low_temperature_is_greedy() -> None:
    logits = logits_of(9, 64, 3.0, torch.float32)
    for temperature in (1e-3, 1e-9, 1e-30):
        law = probabilities(logits * 1000, Sampling(temperature))
        assert torch.equal(law, torch.nn.functional.one_hot(logits.argmax(-1), 64).float())


def test_the_likeliest_token_is_in_every_nucleus() -> None:
    logits = logits_of(9, 64, 3.0, torch.float32)
    for top_p in (1e-3, 1e-15, 1e-30):
        law = probabilities(logits, Sampling(1.0, top_p=top_p))
        assert torch.equal(law, torch.nn.functional.one_hot(logits.argmax(-1), 64).float())


def test_banned_tokens_stay_banned() -> None:
    logits = torch.tensor([1.0, float("-inf"), 2.0, float("-inf")])
    for sampling in SETTINGS:
        assert not probabilities(logits, sampling)[[1, 3]].any()


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1e-38},
        {"temperature": 1e38},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": -0.5},
        {"top_p": 1.01},
        {"top_p": float("nan")},
    ],
)
def test_values_that_mean_nothing(values: dict[str, float]) -> None:
    with pytest.raises(UsageError) as caught:
        Sampling(**values)  # type: ignore[arg-type]
    assert next(iter(values)).replace("_", "-") in caught.value.message and caught.value.hint


def test_greedy_is_temperature_zero() -> None:
    assert Sampling().greedy and not Sampling(1e-6).greedy


def test_settings_that_keep_every_token() -> None:
    assert Sampling().keeps_all and Sampling(0.8).keeps_all
    assert not Sampling(0.8, top_k=5).keeps_all and not Sampling(0.8, top_p=0.9).keeps_all


# --- draws

LAWS = {
    "uniform": np.full(32, 1 / 32),
    "one of one": np.ones(1),
    "zeros": np.array([0.0, 0.25, 0.0, 0.0, 0.5, 0.25, 0.0]),
    "point mass": np.eye(9)[4],
    "peaked": np.array([1 - 3e-4, 1e-4, 1e-4, 1e-4]),
    "six decades": np.geomspace(1, 1e-6, 13) / np.geomspace(1, 1e-6, 13).sum(),
    "two decades over many": np.geomspace(1, 1e-2, 150) / np.geomspace(1, 1e-2, 150).sum(),
}


WAYS = {"by mass": drawing._by_mass, "by race": drawing._by_race}
"""Of a CPU and of a GPU; both can be tried on a CPU."""
EACH_WAY = pytest.mark.parametrize("draw", WAYS.values(), ids=WAYS.keys())


def test_a_cpu_draws_by_mass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(drawing, "_by_race")
    assert draw(torch.eye(5)[3], random_stream(CPU, "cpu")) == 3


@EACH_WAY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS.keys())
def test_draws_follow_the_law(law: np.ndarray, dtype: torch.dtype, draw: Callable[..., Tensor]) -> None:
    draws, batch = 200_000, 10_000
    generator = random_stream(CPU, "draws", len(law))
    rows = torch.from_numpy(law).to(dtype).expand(batch, -1)
    tokens = torch.cat([draw(rows, generator) for _ in range(draws // batch)])
    counts = np.bincount(tokens.numpy(), minlength=len(law))
    assert counts.sum() == draws and not counts[law == 0].any()
    assert chi_square_p(counts, law) > ALPHA / (4 * len(LAWS))


def test_a_share_of_the_mass_is_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each share from 0 to almost 1; impossible tokens have none, whichever share ends beside them."""
    law = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    shares = [0.0, 0.125, 0.25 - 2**-53, 0.25, 0.5, 0.75 - 2**-53, 0.75, 1 - 2**-53]
    monkeypatch.setattr(drawing, "uniforms", lambda shape, _: torch.tensor(shares, dtype=torch.float64).view(shape))
    for scale in (1.0, 0.25, 8.0):  # a law that isn't normalised is drawn from as if it were
        tokens = draw((law * scale).expand(len(shares), -1), random_stream(CPU, "shares"))
        assert tokens.tolist() == [1, 1, 1, 3, 3, 3, 4, 4], scale


@EACH_WAY
def test_a_law_of_no_numbers_gives_some_token(draw: Callable[..., Tensor]) -> None:
    """It is found out by its score; until then it must not point outside the vocabulary."""
    for law in (torch.full((3, 7), float("nan")), torch.tensor([[0.5, float("nan"), 0.5]]), torch.zeros(2, 5)):
        tokens = draw(law, random_stream(CPU, "none"))
        assert ((tokens >= 0) & (tokens < law.shape[-1])).all()


def test_uniforms_are_the_same_ones_at_once_and_one_by_one() -> None:
    one, other = random_stream(CPU, "uniforms"), random_stream(CPU, "uniforms")
    for count in (1, 2, 15, 16, 17, 40):  # PyTorch's generators have a way of their own for many
        assert uniforms((count,), one).tolist() == [float(uniforms((1,), other)) for _ in range(count)]


@EACH_WAY
def test_draws_one_at_a_time_follow_the_law(draw: Callable[..., Tensor]) -> None:
    # As the loops draw: a few numbers per call, which some generators make from a fresh seed each time.
    law = np.array([0.05, 0.4, 0.0, 0.3, 0.25])
    generator = random_stream(CPU, "one at a time")
    probs = torch.from_numpy(law)
    tokens = [int(draw(probs, generator)) for _ in range(40_000)]
    assert chi_square_p(np.bincount(tokens, minlength=5), law) > ALPHA / 4
    pairs = np.bincount(np.array(tokens[:-1]) * 5 + np.array(tokens[1:]), minlength=25)
    assert chi_square_p(pairs, np.outer(law, law)) > ALPHA / 4


@EACH_WAY
def test_a_shifted_law_is_noticed(draw: Callable[..., Tensor]) -> None:
    law = LAWS["uniform"]
    shifted = law + np.where(np.arange(32) < 16, 1, -1) * 1e-3
    rows = torch.from_numpy(shifted).expand(200_000, -1)
    tokens = draw(rows, random_stream(CPU, "shifted"))
    assert chi_square_p(np.bincount(tokens.numpy(), minlength=32), law) < 1e-12


@EACH_WAY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_impossible_tokens_never_win_among_many(dtype: torch.dtype, draw: Callable[..., Tensor]) -> None:
    probs = torch.zeros(50_000, dtype=dtype)
    probs[[7, 40_000]] = torch.tensor([1e-30, 1.0], dtype=dtype)  # also the almost impossible one
    generator = random_stream(CPU, "many")
    assert {int(draw(probs, generator)) for _ in range(300)} == {40_000}


@EACH_WAY
def test_a_law_that_underflows_is_still_drawn_from(draw: Callable[..., Tensor]) -> None:
    # Not normalised and next to the smallest float32: the scale must not matter.
    probs = torch.tensor([0.0, 2e-38, 6e-38]).expand(20_000, -1)
    counts = np.bincount(draw(probs, random_stream(CPU, "underflow")).numpy(), minlength=3)
    assert chi_square_p(counts, [0, 0.25, 0.75]) > ALPHA / 2


@EACH_WAY
def test_draw_keeps_the_leading_shape(draw: Callable[..., Tensor]) -> None:
    generator = random_stream(CPU, "shape")
    assert draw(torch.full((2, 3, 4), 0.25), generator).shape == (2, 3)
    assert draw(torch.full((4,), 0.25), generator).shape == ()


# --- streams


def test_streams_repeat() -> None:
    first, again = (torch.rand(100, generator=random_stream(CPU, "target", 3, "p", 1)) for _ in range(2))
    assert torch.equal(first, again)


def test_streams_repeat_in_another_process() -> None:
    code = (
        "import torch; from specprof.decoding.sampling import random_stream; "
        "print(torch.rand(5, generator=random_stream(torch.device('cpu'), 'draft', 7, 'prompt é', 2)).tolist())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = torch.rand(5, generator=random_stream(CPU, "draft", 7, "prompt é", 2)).tolist()
    assert printed.strip() == str(here)


def test_each_part_of_the_key_has_its_own_stream() -> None:
    keys = [
        (use, seed, prompt, repetition)
        for use in ("draft", "target")
        for seed in (0, 1, -1)
        for prompt in ("", "a", "0")
        for repetition in (0, 1)
    ]
    # 1 and "1" differ, and where one part ends is part of the key.
    keys += [("draft", 0, "1", 0), ("draft", 0, 1, 0), ("draft", 0, "a'", 0), ("draft", "0, 'a'", 0, 0)]  # type: ignore[list-item]
    starts = {tuple(torch.rand(4, generator=random_stream(CPU, *key)).tolist()) for key in keys}
    assert len(starts) == len(set(map(repr, keys)))


def test_neighbouring_streams_are_independent() -> None:
    """Runs that differ in one number of the key: their numbers are uniform, alone and in pairs."""
    first = {
        use: np.stack([torch.rand(2, generator=random_stream(CPU, use, seed, "", 0)).numpy() for seed in range(8000)])
        for use in ("draft", "target")
    }
    draft, target = first["draft"], first["target"]
    p = [stats.kstest(column, "uniform").pvalue for column in (*draft.T, *target.T)]
    for one, other in [
        (draft[:, 0], target[:, 0]),  # two uses of one key
        (draft[:-1, 0], draft[1:, 0]),  # neighbouring seeds
        (target[:, 0], target[:, 1]),  # within a stream
    ]:
        counts, _, _ = np.histogram2d(one, other, bins=8, range=((0, 1), (0, 1)))
        p.append(chi_square_p(counts, np.full((8, 8), 1 / 64)))
    assert min(p) > ALPHA / len(p)
