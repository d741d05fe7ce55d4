"""Synthetic acceptance: rounds accept as often as asked for, whatever the models make of each other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from goodness_of_fit import ALPHA, chi_square_p
from specprof.decoding.drafters import DraftModel
from specprof.decoding.request import Request
from specprof.decoding.sampling import Sampling
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.errors import UsageError
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.cost_model import expected_tokens
from specprof.profiling.events import Prefilled, PromptEnded, Round
from tiny_models import tiny_llama

NEW_TOKENS = 240


def decoder(acceptance: float | None, k: int) -> SpeculativeDecoder:
    target, draft = (ModelWrapper(tiny_llama(seed, vocab_size=16)) for seed in (1, 2))
    return SpeculativeDecoder(target, DraftModel(draft), k, synthetic_acceptance=acceptance)


def rounds_of(speculative: SpeculativeDecoder, request: Request) -> tuple[Round, ...]:
    """All rounds of one generation, of which every token is accounted for."""
    first, *middle, ended = speculative.events(request)
    rounds = tuple(event for event in middle if isinstance(event, Round))
    assert isinstance(first, Prefilled) and isinstance(ended, PromptEnded) and len(rounds) == len(middle)
    assert ended.finish_reason == "length"
    assert 1 + sum(len(round.emitted_tokens) for round in rounds) == request.max_new_tokens
    for round in rounds:
        assert len(round.emitted_tokens) == round.num_accepted + 1
        assert round.emitted_tokens[:-1] == round.draft_tokens[: round.num_accepted]
    return rounds


def request(temperature: float, repetition: int = 0, seed: int = 0, max_new_tokens: int = NEW_TOKENS) -> Request:
    return Request((3, 1, 4), max_new_tokens, Sampling(temperature), seed=seed, repetition=repetition)


@pytest.mark.parametrize(
    ("acceptance", "k", "temperature"),
    [
        (0.6, 3, 0.0),
        (0.8, 4, 1.0),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((0.3, 1, 1.0), (0.95, 8, 0.0))),
    ],
)
def test_accepted_follow_the_truncated_geometric_law(acceptance: float, k: int, temperature: float) -> None:
    law = [acceptance**j * (1 - acceptance) for j in range(k)] + [acceptance**k]
    # So many rounds fit whatever is accepted: that these are looked at does not depend on their outcome.
    fit = (NEW_TOKENS - 1) // (k + 1)
    accepted: list[int] = []
    for repetition in range(-(-400 // fit)):
        rounds = rounds_of(decoder(acceptance, k), request(temperature, repetition))[:fit]
        assert len(rounds) == fit and not any(round.cut for round in rounds)
        assert all(len(round.draft_tokens) == k for round in rounds)
        accepted += [round.num_accepted for round in rounds]
    counts = [accepted.count(j) for j in range(k + 1)]
    assert chi_square_p(counts, law) > ALPHA / 4
    tau = 1 + sum(accepted) / len(accepted)
    spread = (sum((1 + j) ** 2 * p for j, p in enumerate(law)) - expected_tokens(acceptance, k) ** 2) ** 0.5
    assert abs(tau - expected_tokens(acceptance, k)) < 4.5 * spread / len(accepted) ** 0.5


def test_another_rate_is_noticed() -> None:
    accepted = [round.num_accepted for r in range(11) for round in rounds_of(decoder(0.7, 4), request(0.0, r))[:47]]
    assert chi_square_p([accepted.count(j) for j in range(5)], [0.8**j * 0.2 for j in range(4)] + [0.8**4]) < 1e-6


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("k", [1, 4])
def test_none_and_all(temperature: float, k: int) -> None:
    none = rounds_of(decoder(0.0, k), request(temperature, max_new_tokens=31))
    assert len(none) == 30 and not any(round.num_accepted for round in none)
    every = rounds_of(decoder(1.0, k), request(temperature, max_new_tokens=31))
    assert len(every) == 30 // (k + 1) and all(round.num_accepted == k for round in every)
    assert [round.cut for round in every] == [False] * len(every)


@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 7, 20])
def test_the_number_of_tokens_is_exact(max_new_tokens: int) -> None:
    for acceptance in (0.0, 0.5, 1.0):
        rounds_of(decoder(acceptance, 4), request(1.0, max_new_tokens=max_new_tokens))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_seeds_repeat_and_differ(temperature: float) -> None:
    def pattern(seed: int, repetition: int = 0) -> list[tuple[int, tuple[int, ...]]]:
        rounds = rounds_of(decoder(0.5, 3), request(temperature, repetition, seed, 60))
        return [(round.num_accepted, round.emitted_tokens) for round in rounds]

    assert pattern(0) == pattern(0)
    accepted = [tuple(count for count, _ in pattern(*key)) for key in [(0, 0), (1, 0), (0, 1)]]
    assert len(set(accepted)) == 3


def test_acceptance_does_not_depend_on_the_models() -> None:
    """The coins are a stream of their own: other drafts, other temperatures, same rounds."""
    target, one, other = (ModelWrapper(tiny_llama(seed, vocab_size=16)) for seed in (1, 2, 3))
    patterns = set()
    for draft in (one, other, target):
        for temperature in (0.0, 1.0):
            speculative = SpeculativeDecoder(target, DraftModel(draft), 3, synthetic_acceptance=0.6)
            rounds = rounds_of(speculative, request(temperature, max_new_tokens=60))
            patterns.add(tuple(round.num_accepted for round in rounds))
    assert len(patterns) == 1


def test_without_it_the_models_decide() -> None:
    rounds = rounds_of(decoder(None, 4), request(0.0, max_new_tokens=60))
    synthetic = rounds_of(decoder(1.0, 4), request(0.0, max_new_tokens=60))
    assert sum(round.num_accepted for round in rounds) < sum(round.num_accepted for round in synthetic)


def test_a_rate_out_of_range() -> None:
    for acceptance in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError):
            decoder(acceptance, 2)


def test_a_stop_among_the_accepted_ends_the_text() -> None:
    question = request(1.0, max_new_tokens=20)
    first, free, *_ = decoder(1.0, 4).events(question)
    assert isinstance(first, Prefilled) and isinstance(free, Round) and not free.cut
    drafted = free.draft_tokens
    end = next(i for i in range(1, 4) if drafted[i] not in (first.first_token, *drafted[:i]))
    stopping = replace(question, stop_ids=frozenset({drafted[end]}))
    _, cut, ended = decoder(1.0, 4).events(stopping)
    assert isinstance(cut, Round) and cut.cut and cut.emitted_tokens == drafted[: end + 1]
    assert isinstance(ended, PromptEnded) and ended.finish_reason == "stop"
