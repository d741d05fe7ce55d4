"""The emitted tokens have the target's law: exactly, by enumeration, and in draws; and broken rules are found out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from goodness_of_fit import ALPHA, chi_square_p
from specprof.decoding.rejection import count_accepted, next_token_probs, overlap, residual
from specprof.decoding.sampling import Sampling, draw, probabilities

# --- the laws


@dataclass(frozen=True)
class Laws:
    """What target and draft would say after every prefix of drafted tokens.

    ``target[j]`` is ``[V] * j + [V]``: the law of the token after each prefix of j tokens, j = 0..K;
    ``draft[j]`` likewise, j = 0..K - 1.
    """

    target: tuple[Tensor, ...]
    draft: tuple[Tensor, ...]

    @property
    def k(self) -> int:
        return len(self.draft)

    @property
    def vocab_size(self) -> int:
        return self.target[0].shape[-1]

    def rows(self, drafted: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """``[K + 1, V]`` and ``[K, V]``: what the verify pass sees for one drafted sequence."""
        target = torch.stack([law[drafted[:j]] for j, law in enumerate(self.target)])
        draft = [law[drafted[:j]] for j, law in enumerate(self.draft)]
        return target, torch.stack(draft) if draft else target.new_zeros(0, self.vocab_size)


Shape = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def dirichlet(concentration: float) -> Shape:
    """Small concentrations are peaked, down to underflow."""

    def law(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return generator.dirichlet([concentration] * shape[-1], shape[:-1])

    return law


def point_mass(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.eye(shape[-1])[generator.integers(shape[-1], size=shape[:-1])]


def with_zeros(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    weights = generator.random(shape) * (generator.random(shape) < 0.5)
    weights[..., 0] += weights.sum(-1) == 0
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def first_half(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    weights = generator.random(shape) * (np.arange(shape[-1]) < shape[-1] // 2)
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def second_half(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return first_half(generator, shape)[..., ::-1].copy()


def truncated(sampling: Sampling) -> Shape:
    def law(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return probabilities(torch.from_numpy(generator.normal(0, 2, shape)), sampling).numpy()

    return law


def make_laws(seed: int, vocab_size: int, k: int, target: Shape, draft: Shape, dtype: torch.dtype) -> Laws:
    generator = np.random.default_rng(seed)

    def tree(shape: Shape, depth: int) -> tuple[Tensor, ...]:
        levels = (shape(generator, (vocab_size,) * (j + 1)) for j in range(depth))
        return tuple(torch.from_numpy(level).to(dtype) for level in levels)

    return Laws(tree(target, k + 1), tree(draft, k))


RANDOM, PEAKED, SPIKED = dirichlet(1.0), dirichlet(0.1), dirichlet(0.003)
SHAPES: dict[str, tuple[Shape, Shape]] = {
    "random": (RANDOM, RANDOM),
    "peaked target": (PEAKED, RANDOM),
    "peaked draft": (RANDOM, PEAKED),
    "both peaked": (PEAKED, PEAKED),
    "spiked, down to underflow": (SPIKED, SPIKED),
    "disjoint": (first_half, second_half),
    "point-mass draft": (RANDOM, point_mass),
    "point-mass target": (point_mass, RANDOM),
    "two point masses": (point_mass, point_mass),
    "zeros": (with_zeros, with_zeros),
    "top-k": (truncated(Sampling(1.0, top_k=2)), truncated(Sampling(1.0, top_k=2))),
    "top-p": (truncated(Sampling(0.7, top_p=0.6)), truncated(Sampling(0.7, top_p=0.6))),
    "top-k and top-p": (truncated(Sampling(1.5, 3, 0.8)), truncated(Sampling(1.5, 3, 0.8))),
}

# --- the rules under test: the real one, and ones broken on purpose


@dataclass(frozen=True)
class Rule:
    """One verdict, as ``SpeculativeDecoder`` composes it."""

    count: Callable[[Tensor, Tensor, Tensor], Tensor] = count_accepted
    next_probs: Callable[[Tensor, Tensor, Tensor], Tensor] = next_token_probs
    one_uniform: bool = False
    """Every position sees the same uniform."""
    one_off: bool = False
    """A token is judged by the draft's law of another position than it was drawn at."""


REAL = Rule()


def _resample_from_target(target: Tensor, draft: Tensor, accepted: Tensor) -> Tensor:
    return target[accepted.reshape(1)][0]


def _residual_not_normalised(target: Tensor, draft: Tensor, accepted: Tensor) -> Tensor:
    nothing = draft.new_zeros(1, draft.shape[-1])
    row = accepted.reshape(1)
    return (target[row] - torch.cat((draft, nothing))[row]).clamp_min(0)[0]


def _residual_without_clamp(target: Tensor, draft: Tensor, accepted: Tensor) -> Tensor:
    nothing = draft.new_zeros(1, draft.shape[-1])
    row = accepted.reshape(1)
    excess = (target[row] - torch.cat((draft, nothing))[row])[0].abs()
    return excess / excess.sum()


def _bonus_one_early(target: Tensor, draft: Tensor, accepted: Tensor) -> Tensor:
    early = torch.cat((target[:-1], target[-2:-1]))
    return next_token_probs(early, draft, accepted)


def _always_accepts_first(target_prob: Tensor, draft_prob: Tensor, uniforms: Tensor) -> Tensor:
    first = torch.arange(uniforms.shape[0]) == 0
    return ((uniforms * draft_prob < target_prob) | first).long().cumprod(0).sum()


def _accepts_after_a_rejection(target_prob: Tensor, draft_prob: Tensor, uniforms: Tensor) -> Tensor:
    return (uniforms * draft_prob < target_prob).long().sum()


MUTANTS = {
    "resamples from the target": Rule(next_probs=_resample_from_target),
    "residual of absolute differences": Rule(next_probs=_residual_without_clamp),
    "bonus from position K - 1": Rule(next_probs=_bonus_one_early),
    "draft law one position off": Rule(one_off=True),
    "accepts the first blindly": Rule(count=_always_accepts_first),
    "goes on after a rejection": Rule(count=_accepts_after_a_rejection),
    "one uniform for all positions": Rule(one_uniform=True),
}

# --- exact


def acceptance_probability(rule: Rule, target_prob: Tensor, draft_prob: Tensor) -> float:
    """Where the rule's answer for one token turns from accepted to rejected, to the last bit of a float64 uniform."""

    def accepts(uniform: float) -> bool:
        return bool(rule.count(target_prob.view(1), draft_prob.view(1), target_prob.new_tensor([uniform])))

    low, high = 0.0, 1.0
    if not accepts(low):
        return 0.0
    if accepts(math.nextafter(1.0, 0.0)):
        return 1.0
    while low < (middle := (low + high) / 2) < high and high - low > 2**-54:
        low, high = (middle, high) if accepts(middle) else (low, middle)
    return high


def outcomes(rule: Rule, target: Tensor, draft: Tensor, drafted: tuple[int, ...]) -> Iterator[tuple[int, float]]:
    """(accepted, probability) over all uniforms: the rule is asked once in each cell between its own thresholds."""
    k = len(drafted)
    index = torch.tensor(drafted, dtype=torch.long)
    target_prob, draft_prob = target[torch.arange(k), index], draft[torch.arange(k), index]
    edges = [acceptance_probability(rule, *pair) for pair in zip(target_prob, draft_prob, strict=True)]
    intervals = [[(0.0, edge), (edge, 1.0)] for edge in edges]
    if rule.one_uniform and k:
        cuts = sorted({0.0, *edges, 1.0})
        cells = [((low, high),) * k for low, high in itertools.pairwise(cuts)]
        widths = [cell[0][1] - cell[0][0] for cell in cells]
    else:
        cells = list(itertools.product(*intervals))
        widths = [math.prod(high - low for low, high in cell) for cell in cells]
    for cell, width in zip(cells, widths, strict=True):
        if width > 0:
            uniforms = target.new_tensor([(low + high) / 2 for low, high in cell])
            yield int(rule.count(target_prob, draft_prob, uniforms)), width


def emitted_law(rule: Rule, laws: Laws) -> Tensor:
    """``[V] * (K + 1)``: the law of K + 1 tokens, of which one round emits the first and the target the rest."""
    v, k = laws.vocab_size, laws.k
    mass = [torch.zeros((v,) * length, dtype=torch.float64) for length in range(k + 2)]
    for drafted in itertools.product(range(v), repeat=k):
        weight = math.prod(float(law[drafted[: j + 1]]) for j, law in enumerate(laws.draft))
        if weight == 0:
            continue
        target, draft = laws.rows(drafted)
        if rule.one_off:
            draft = draft.roll(1, 0)
        for accepted, probability in outcomes(rule, target, draft, drafted):
            law = rule.next_probs(target, draft, torch.tensor(accepted))
            mass[accepted + 1][drafted[:accepted]] += weight * probability * law
    for length in range(1, k + 1):
        mass[length + 1] += mass[length].unsqueeze(-1) * laws.target[length]
    return mass[-1]


def target_law(laws: Laws) -> Tensor:
    """``[V] * (K + 1)``: the same from the target alone."""
    joint = laws.target[0].double()
    for law in laws.target[1:]:
        joint = joint.unsqueeze(-1) * law
    return joint


def worst_error(rule: Rule, laws: Laws) -> float:
    return float((emitted_law(rule, laws) - target_law(laws)).abs().max())


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(("vocab_size", "k"), [(2, 2), (4, 2), (6, 1), (6, 2)])
def test_emitted_law_is_the_targets_exactly(shapes: tuple[Shape, Shape], vocab_size: int, k: int) -> None:
    for seed in range(2):
        laws = make_laws(seed, vocab_size, k, *shapes, torch.float64)
        assert worst_error(REAL, laws) < 1e-12


@pytest.mark.parametrize("shape", [RANDOM, PEAKED, with_zeros, point_mass])
def test_emitted_law_when_draft_equals_target(shape: Shape) -> None:
    laws = make_laws(3, 5, 2, shape, shape, torch.float64)
    equal = replace(laws, draft=laws.target[:2])
    assert worst_error(REAL, equal) < 1e-12
    nearly = tuple(law * (1 + 1e-15 * torch.linspace(-1, 1, 5, dtype=torch.float64)) for law in equal.draft)
    assert worst_error(REAL, replace(laws, draft=nearly)) < 1e-12


def test_emitted_law_of_three_positions() -> None:
    assert worst_error(REAL, make_laws(5, 3, 3, RANDOM, PEAKED, torch.float64)) < 1e-12


def test_emitted_law_in_single_precision() -> None:
    for shapes in SHAPES.values():
        assert worst_error(REAL, make_laws(7, 4, 2, *shapes, torch.float32)) < 1e-6


@st.composite
def generated_laws(draw_value: st.DrawFn) -> Laws:
    vocab_size, k = draw_value(st.integers(1, 4)), draw_value(st.integers(0, 2))
    weight = st.one_of(st.just(0.0), st.floats(1e-12, 1e-6), st.floats(1e-3, 1.0))

    def level(j: int) -> Tensor:
        values = draw_value(st.lists(weight, min_size=vocab_size ** (j + 1), max_size=vocab_size ** (j + 1)))
        table = torch.tensor(values, dtype=torch.float64).reshape((vocab_size,) * (j + 1)).clone()
        table[..., 0] += table.sum(-1) == 0
        return table / table.sum(-1, keepdim=True)

    target = tuple(level(j) for j in range(k + 1))
    return Laws(target, tuple(target[j] if draw_value(st.booleans()) else level(j) for j in range(k)))


@settings(max_examples=60)
@given(generated_laws())
def test_emitted_law_is_the_targets_for_generated_laws(laws: Laws) -> None:
    assert worst_error(REAL, laws) < 1e-12


@pytest.mark.parametrize("rule", MUTANTS.values(), ids=MUTANTS.keys())
def test_enumeration_finds_broken_rules(rule: Rule) -> None:
    laws = make_laws(11, 4, 2, RANDOM, RANDOM, torch.float64)
    assert worst_error(rule, laws) > 1e-3


def test_enumeration_finds_a_residual_that_was_not_normalised() -> None:
    # Not among the mutants: a race of clocks does not mind the scale, a caller of the function would.
    laws = make_laws(11, 4, 2, RANDOM, RANDOM, torch.float64)
    assert worst_error(Rule(next_probs=_residual_not_normalised), laws) > 1e-3


# --- the functions one by one


def test_acceptance_probability_is_the_ratio() -> None:
    for target_prob, draft_prob in [(0.1, 0.4), (0.4, 0.1), (0.3, 0.3), (0.0, 0.5), (1e-9, 1.0), (1.0, 1e-9)]:
        pair = torch.tensor([target_prob, draft_prob], dtype=torch.float64)
        assert acceptance_probability(REAL, *pair) == pytest.approx(min(1, target_prob / draft_prob), abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_impossible_token_is_never_accepted(dtype: torch.dtype) -> None:
    impossible, drafted, zero = (torch.tensor([value], dtype=dtype) for value in (0.0, 0.5, 0.0))
    assert count_accepted(impossible, drafted, zero) == 0

    def accepts_equality(target_prob: Tensor, draft_prob: Tensor, uniforms: Tensor) -> Tensor:
        return (uniforms * draft_prob <= target_prob).long().cumprod(0).sum()

    assert accepts_equality(impossible, drafted, zero) == 1  # what the strict comparison is there for


@given(st.lists(st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3), max_size=6))
def test_accepted_is_a_prefix(rows: list[tuple[float, float, float]]) -> None:
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)
    accepted = [u * q < p for p, q, u in rows]
    expected = next((i for i, yes in enumerate(accepted) if not yes), len(rows))
    assert int(count_accepted(*table.unbind(1))) == expected


def test_nothing_drafted_leaves_the_target() -> None:
    law = torch.tensor([[0.2, 0.5, 0.3]])
    none = count_accepted(torch.empty(0), torch.empty(0), torch.empty(0))
    assert none.dim() == 0 and none == 0
    assert torch.equal(next_token_probs(law, torch.empty(0, 3), none), law[0])


def test_residual_where_nothing_is_left() -> None:
    law = torch.tensor([[0.2, 0.5, 0.3, 0.0], [0.0, 0.0, 1.0, 0.0]])
    assert torch.equal(residual(law, law), law)
    # The draft claims more everywhere (rounding can do this): still a law, not a division by zero.
    assert torch.equal(residual(law, law * (1 + 1e-6)), law)
    tiny = torch.tensor([0.5, 0.5]), torch.tensor([0.5, math.nextafter(0.5, 0.0)])
    assert torch.isfinite(residual(*tiny)).all() and residual(*tiny).sum() == pytest.approx(1)


@given(generated_laws())
def test_residual_is_a_law_on_what_the_draft_underrates(laws: Laws) -> None:
    for target, draft in zip(laws.target, laws.draft, strict=False):
        law = residual(target, draft)
        assert torch.allclose(law.sum(-1), torch.ones((), dtype=law.dtype)) and (law >= 0).all()
        left = (target > draft).any(-1, keepdim=True)
        assert not law[(target <= draft) & left].any()


def test_overlap_is_the_acceptance_probability() -> None:
    laws = make_laws(2, 6, 1, RANDOM, PEAKED, torch.float64)
    target, draft = laws.target[0], laws.draft[0]
    accepted = sum(
        float(q) * acceptance_probability(REAL, p, q) for p, q in zip(target, draft, strict=True) if float(q) > 0
    )
    assert float(overlap(target, draft)) == pytest.approx(accepted, abs=1e-12)
    assert torch.equal(overlap(laws.target[1], laws.target[1]), laws.target[1].sum(-1))


# --- in draws

DRAWS, WIDTH, VOCAB = 200_000, 3, 8


@dataclass(frozen=True)
class Tables:
    """Laws that know the position and the previous token: ``target [K + 1, V, V]``, ``draft [K, V, V]``."""

    target: Tensor
    draft: Tensor


def make_tables(seed: int, target: Shape, draft: Shape) -> Tables:
    generator = np.random.default_rng(seed)
    shapes = ((target, WIDTH + 1), (draft, WIDTH))
    return Tables(*(torch.from_numpy(shape(generator, (rows, VOCAB, VOCAB))).float() for shape, rows in shapes))


def played(rule: Rule, tables: Tables, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts ``[K + 1, V]`` of (accepted, next token) and ``[V]`` of the first emitted token; token 0 comes before."""
    generator = torch.Generator().manual_seed(seed)
    previous = torch.zeros(DRAWS, dtype=torch.long)
    tokens, draft_rows, target_rows = [], [], [tables.target[0][previous]]
    for j in range(WIDTH):
        draft_rows.append(tables.draft[j][previous])
        previous = draw(draft_rows[-1], generator)
        tokens.append(previous)
        target_rows.append(tables.target[j + 1][previous])
    drafted, draft_probs, target_probs = torch.stack(tokens, 1), torch.stack(draft_rows, 1), torch.stack(target_rows, 1)
    if rule.one_off:
        draft_probs = draft_probs.roll(1, 1)
    pick = drafted.unsqueeze(-1)
    draft_prob, target_prob = draft_probs.gather(-1, pick)[..., 0], target_probs[:, :WIDTH].gather(-1, pick)[..., 0]
    uniforms = torch.rand(DRAWS, WIDTH, generator=generator)
    if rule.one_uniform:
        uniforms = uniforms[:, :1].expand(-1, WIDTH)
    accepted = torch.vmap(rule.count)(target_prob, draft_prob, uniforms)
    token = draw(torch.vmap(rule.next_probs)(target_probs, draft_probs, accepted), generator)
    cells = torch.bincount(accepted * VOCAB + token, minlength=(WIDTH + 1) * VOCAB).view(WIDTH + 1, VOCAB)
    first = torch.bincount(torch.where(accepted > 0, drafted[:, 0], token), minlength=VOCAB)
    return cells.numpy(), first.numpy()


def cell_law(tables: Tables) -> np.ndarray:
    """``[K + 1, V]`` from theory: reach a prefix by overlaps, then be rejected into (p - q)+ or end in the bonus."""
    target, draft = tables.target.double().numpy(), tables.draft.double().numpy()
    reached = np.eye(VOCAB)[0]
    rows = []
    for j in range(WIDTH):
        rows.append(reached @ np.maximum(target[j] - draft[j], 0))
        reached = reached @ np.minimum(target[j], draft[j])
    return np.stack([*rows, reached @ target[WIDTH]])


def p_values(rule: Rule, tables: Tables, seed: int) -> tuple[float, float, float]:
    """Of the joint cells, of the number accepted alone (acceptance by position), and of the first token."""
    cells, first = played(rule, tables, seed)
    law = cell_law(tables)
    law /= law.sum()  # float32 rounding of the tables
    first_law = tables.target[0, 0].double().numpy()
    return (
        chi_square_p(cells, law),
        chi_square_p(cells.sum(1), law.sum(1)),
        chi_square_p(first, first_law / first_law.sum()),
    )


PLAYED = {name: SHAPES[name] for name in ("random", "peaked target", "both peaked", "disjoint", "zeros", "top-p")}


@pytest.mark.parametrize("name", PLAYED)
def test_draws_follow_the_targets_law(name: str) -> None:
    assert min(p_values(REAL, make_tables(17, *PLAYED[name]), seed=19)) > ALPHA / (3 * len(PLAYED))


@pytest.mark.parametrize("rule", MUTANTS.values(), ids=MUTANTS.keys())
def test_draws_find_broken_rules(rule: Rule) -> None:
    assert min(p_values(rule, make_tables(17, RANDOM, RANDOM), seed=19)) < 1e-12
