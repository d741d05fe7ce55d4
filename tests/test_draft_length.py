"""What chooses K: by what happened before and by nothing else, never more than allowed, and in the end well."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.draft_length import AdaptiveK, DraftLength, FixedK
from specprof.decoding.drafters import DraftModel, NGramLookup
from specprof.decoding.request import Request
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.errors import UsageError
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.cost_model import expected_tokens
from specprof.profiling.events import Round
from specprof.profiling.metrics import fold
from tiny_models import tiny_llama

torch.set_num_threads(1)


def round_of(k: int | None, accepted: int, seconds: float, *, proposed: int | None = None, cut: bool = False) -> Round:
    drafted = (1,) * ((k or 0) if proposed is None else proposed)
    return Round("", "SD-Kauto", 0, 0, drafted, accepted, (1,) * (accepted + 1), 0.0, seconds, 0.0, 0.0, cut, k=k)


def simulated(
    policy: DraftLength, rounds: int, alpha: float, seconds: Callable[[int], float], seed: int = 0, noise: float = 0.1
) -> Counter[int]:
    """The choices of ``rounds`` rounds in which each token is accepted with probability ``alpha``."""
    chance, chosen = random.Random(seed), Counter[int]()
    for _ in range(rounds):
        k = policy.choose(1000)
        chosen[k] += 1
        accepted = next((i for i in range(k) if chance.random() >= alpha), k)
        policy.observe(round_of(k, accepted, seconds(k) * (1 + noise * chance.random())))
    return chosen


# --- fixed


@pytest.mark.parametrize("k", [0, 1, 7])
def test_a_fixed_k(k: int) -> None:
    policy = FixedK(k)
    assert (policy.name, policy.longest, policy.choose(1000)) == (str(k), k, k)
    assert simulated(policy, 10, 0.1, lambda k: 1.0) == {k: 10}


def test_a_negative_k() -> None:
    with pytest.raises(UsageError, match="k = -1 is negative"):
        FixedK(-1)


# --- adaptive


@pytest.mark.parametrize("longest", [0, -3])
def test_a_longest_draft_of_nothing(longest: int) -> None:
    with pytest.raises(UsageError, match=f"k-max = {longest} is not >= 1"):
        AdaptiveK(longest)


@given(
    longest=st.integers(1, 9),
    rounds=st.lists(st.tuples(st.integers(0, 9), st.floats(1e-6, 1e3), st.integers(0, 9), st.booleans()), max_size=120),
)
@settings(max_examples=50)
def test_whatever_happens_k_is_in_range(longest: int, rounds: list[tuple[int, float, int, bool]]) -> None:
    policy = AdaptiveK(longest)
    assert (policy.name, policy.longest) == ("auto", longest)
    for accepted, seconds, proposed, cut in rounds:
        k = policy.choose(1000)
        assert 0 <= k <= longest
        proposed = min(proposed, k)  # a lookup finds what it finds
        policy.observe(round_of(k, min(accepted, proposed), seconds, proposed=proposed, cut=cut))


@pytest.mark.parametrize("longest", [1, 6, 40])
def test_short_and_long_drafts_are_tried_first(longest: int) -> None:
    """All the short ones and the longest, but not each of forty: that would take a text's length."""
    tried = simulated(AdaptiveK(longest), 60, 0.7, lambda k: 1 + 0.1 * k)
    assert {k for k in (0, 1, 2, 3, 4, longest) if k <= longest} <= set(tried)
    assert len(tried) <= 14


def test_asking_twice_is_asking_once() -> None:
    """It may not matter how often a choice is looked at, as long as nothing happens in between."""
    policy = AdaptiveK(4)
    simulated(policy, 30, 0.6, lambda k: 1 + 0.1 * k)
    assert policy.choose(1000) == policy.choose(1000)


def test_the_same_history_leads_to_the_same_choices() -> None:
    one, other = (simulated(AdaptiveK(5), 200, 0.6, lambda k: 1 + 0.1 * k, seed=4) for _ in range(2))
    assert one == other


ENDED = dataclasses.replace(round_of(4, 4, 1e6, cut=True), emitted_tokens=(1, 1))


@pytest.mark.parametrize("ignored", [ENDED, round_of(None, 0, 1e-6)], ids=["end of text", "plain"])
def test_rounds_that_say_nothing(ignored: Round) -> None:
    """After an end of text nobody knows what would have been accepted; plain rounds aren't its own."""
    policies = AdaptiveK(5), AdaptiveK(5)
    for policy in policies:
        simulated(policy, 50, 0.6, lambda k: 1 + 0.1 * k)
    for _ in range(30):
        policies[0].observe(ignored)
    after = [simulated(policy, 100, 0.6, lambda k: 1 + 0.1 * k, seed=2) for policy in policies]
    assert after[0] == after[1]


SITUATIONS: dict[str, tuple[float, Callable[[int], float]]] = {
    "a cheap draft that is nearly always right": (0.95, lambda k: 1 + 0.02 * k),
    "a draft that is always wrong": (0.0, lambda k: 1 + 0.2 * k),
    "a draft that costs as much as the target": (0.6, lambda k: 1 + 1.0 * k),
    "a fair draft": (0.6, lambda k: 1 + 0.25 * k),
    "a pass over more than two tokens that costs twice as much": (0.9, lambda k: (1 if k < 2 else 2.2) + 0.05 * k),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_in_the_end_it_chooses_well(name: str) -> None:
    """Nearly as many tokens per second as with the best fixed K, trials included."""
    alpha, seconds = SITUATIONS[name]
    policy = AdaptiveK(8)
    simulated(policy, 150, alpha, seconds)
    chosen = simulated(policy, 600, alpha, seconds, seed=1)

    def speed(choices: Counter[int]) -> float:
        tokens = sum(expected_tokens(alpha, k) * n for k, n in choices.items())
        return tokens / sum(seconds(k) * n for k, n in choices.items())

    fixed = [speed(Counter({k: 1})) for k in range(9)]
    assert speed(chosen) > 0.93 * max(fixed)
    # And not because all are alike.
    assert min(fixed) < 0.8 * max(fixed)


def test_it_notices_that_acceptance_fell_and_rose_again() -> None:
    policy, costs = AdaptiveK(6), lambda k: 1 + 0.15 * k
    means = []
    for alpha in (0.95, 0.05, 0.95):
        simulated(policy, 400, alpha, costs)
        chosen = simulated(policy, 200, alpha, costs, seed=1)
        means.append(sum(k * n for k, n in chosen.items()) / 200)
    assert means[0] > 4 and means[1] < 1 and means[2] > 4


def test_it_notices_that_drafting_became_dear() -> None:
    policy = AdaptiveK(6)
    simulated(policy, 400, 0.7, lambda k: 1 + 0.02 * k)
    before = simulated(policy, 200, 0.7, lambda k: 1 + 0.02 * k, seed=1)
    simulated(policy, 800, 0.7, lambda k: 1 + 1.5 * k)
    after = simulated(policy, 200, 0.7, lambda k: 1 + 1.5 * k, seed=1)
    assert sum(k * n for k, n in before.items()) > 2 * sum(k * n for k, n in after.items())


def test_a_machine_that_is_twice_as_slow_changes_nothing() -> None:
    def seconds(unit: float) -> Callable[[int], float]:
        return lambda k: unit * (1 + 0.1 * k)

    fast, slow = (simulated(AdaptiveK(6), 300, 0.6, seconds(unit)) for unit in (1.0, 2.0))
    assert fast == slow


# --- in the loop


@pytest.fixture(scope="module")
def models() -> tuple[ModelWrapper, ModelWrapper]:
    target = copy.deepcopy(tiny_llama(vocab_size=61)).to(torch.float64)
    noisy, generator = copy.deepcopy(target), torch.Generator().manual_seed(3)
    for parameter in noisy.parameters():
        if parameter.dim() == 2:
            parameter.add_(0.05 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return ModelWrapper(target), ModelWrapper(noisy)


@pytest.mark.parametrize("lookup", [False, True], ids=["draft model", "lookup"])
def test_generations_with_adaptive_k(models: tuple[ModelWrapper, ModelWrapper], lookup: bool) -> None:
    target, draft = models
    drafter = NGramLookup(61, target.device) if lookup else DraftModel(draft)
    decoder = SpeculativeDecoder(target, drafter, AdaptiveK(4))
    assert decoder.label == "SD-Kauto"
    asked = Counter[int | None]()
    for seed in range(4):
        prompt = tuple(random.Random(seed).choices(range(61), k=6)) * 2
        request = Request(prompt, 50)
        events = list(decoder.events(request))
        expected = AutoregressiveDecoder(target).generate(prompt, 50, stop_ids=frozenset())
        (result,) = fold(events)
        assert result.generated_ids == expected.generated_ids
        done = 1
        for event in events:
            if not isinstance(event, Round):
                continue
            room = 50 - done - 1
            assert event.k is not None and len(event.draft_tokens) <= event.k <= min(4, room)
            assert lookup or len(event.draft_tokens) == event.k
            assert not event.cut or event.k == room  # without stop tokens, only the limit cuts
            asked[event.k] += 1
            done += len(event.emitted_tokens)
    # What it learnt in one generation it knows in the next: every K was tried, and not anew every time.
    assert set(asked) == set(range(5))
    assert result.decoder == "SD-Kauto"
    assert max(asked.values()) > 2 * min(asked.values())


def test_it_learns_where_the_length_limit_is_shorter_than_its_longest_draft() -> None:
    policy = AdaptiveK(longest=500)
    chosen = set()
    for room in [3, 2, 1, 0] * 30:
        k = min(policy.choose(room), room)
        chosen.add(k)
        policy.observe(round_of(k, k, 1.0 + k))  # accepted whole, and worth nothing: K costs what it yields
    assert chosen == {0, 1, 2, 3}
    assert policy.choose(500) > 3, "what was never tried is tried as soon as there is room"
