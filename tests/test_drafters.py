"""What proposes: draft models that keep up with the context, and lookups that find what followed last time."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specprof.decoding.drafters import DraftModel, NGramLookup
from specprof.decoding.request import Request
from specprof.decoding.sampling import Sampling, probabilities
from specprof.errors import UsageError
from specprof.models.wrapper import ModelWrapper
from tiny_models import tiny_gpt2, tiny_gpt_neox, tiny_llama, tiny_mistral

VOCAB = 61
CPU = torch.device("cpu")
PROMPT = (5, 9, 3, 22, 17, 40)

torch.set_num_threads(1)


def request_for(prompt: Sequence[int] = PROMPT, max_new_tokens: int = 100, **values: float) -> Request:
    return Request(tuple(prompt), max_new_tokens, Sampling(**values))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=[tiny_gpt2, tiny_llama, tiny_mistral, tiny_gpt_neox], ids=lambda f: f.__name__)
def wrapper(request: pytest.FixtureRequest) -> ModelWrapper:
    return ModelWrapper(copy.deepcopy(request.param(vocab_size=VOCAB)).to(torch.float64))


@pytest.fixture(scope="module")
def gpt2() -> ModelWrapper:
    return ModelWrapper(copy.deepcopy(tiny_gpt2(vocab_size=VOCAB)).to(torch.float64))


def logits_after(wrapper: ModelWrapper, context: Sequence[int]) -> Tensor:
    """``[vocab]``, from a fresh cache."""
    return wrapper.extend(torch.tensor(context), wrapper.new_cache(len(context)))[0]


def greedy_continuation(wrapper: ModelWrapper, context: Sequence[int], k: int) -> list[int]:
    text = list(context)
    for _ in range(k):
        text.append(int(logits_after(wrapper, text).argmax()))
    return text[len(context) :]


class TestDraftModel:
    def test_proposes_its_own_greedy_continuation(self, wrapper: ModelWrapper) -> None:
        drafter = DraftModel(wrapper)
        drafter.start(request_for(), detail=False)
        drafter.observe((7,))
        draft = drafter.propose(5)
        assert draft.tokens.tolist() == greedy_continuation(wrapper, [*PROMPT, 7], 5)
        assert draft.probs is None

    @pytest.mark.parametrize("seed", range(3))
    def test_keeps_up_with_whatever_is_accepted(self, wrapper: ModelWrapper, seed: int) -> None:
        """After each round, with none to all accepted: the proposals are those of a draft that starts there anew."""
        draw = random.Random(seed)
        drafter, context = DraftModel(wrapper), [*PROMPT, 7]
        drafter.start(request_for(), detail=False)
        drafter.observe((7,))
        for accepted in [4, 0, 4, 4, draw.randint(0, 4), 1, draw.randint(0, 4), 4]:  # twice all: catch-up twice
            proposal = drafter.propose(4).tokens.tolist()
            assert proposal == greedy_continuation(wrapper, context, 4)
            emitted = [*proposal[:accepted], draw.randrange(VOCAB)]
            drafter.observe(emitted)
            context += emitted

    def test_rounds_of_different_length(self, gpt2: ModelWrapper) -> None:
        drafter, context = DraftModel(gpt2), [*PROMPT, 7]
        drafter.start(request_for(), detail=False)
        drafter.observe((7,))
        for k, accepted in ((3, 3), (0, 0), (0, 0), (1, 1), (6, 2), (1, 0), (2, 2)):
            draft = drafter.propose(k)
            assert draft.tokens.tolist() == greedy_continuation(gpt2, context, k)
            assert draft.tokens.dtype == torch.int64
            emitted = [*draft.tokens.tolist()[:accepted], 11]
            drafter.observe(emitted)
            context += emitted

    def test_a_round_cut_short(self, gpt2: ModelWrapper) -> None:
        """An end of text among the accepted tokens: fewer are emitted than were accepted."""
        drafter = DraftModel(gpt2)
        drafter.start(request_for(), detail=False)
        drafter.observe((7,))
        proposal = drafter.propose(5).tokens.tolist()
        drafter.observe(proposal[:2])
        assert drafter.propose(3).tokens.tolist() == greedy_continuation(gpt2, [*PROMPT, 7, *proposal[:2]], 3)

    def test_starting_again_forgets_the_old_context(self, gpt2: ModelWrapper) -> None:
        drafter = DraftModel(gpt2)
        drafter.start(request_for(), detail=False)
        drafter.observe((7,))
        drafter.propose(5)
        drafter.start(request_for((1, 2)), detail=False)
        drafter.observe((3,))
        assert drafter.propose(4).tokens.tolist() == greedy_continuation(gpt2, [1, 2, 3], 4)

    def test_laws_are_what_the_tokens_were_drawn_from(self, wrapper: ModelWrapper) -> None:
        sampling = Sampling(temperature=0.8, top_k=20, top_p=0.9)
        drafter = DraftModel(wrapper)
        drafter.start(Request(PROMPT, 100, sampling), detail=False)
        drafter.observe((7,))
        context = [*PROMPT, 7]
        for _ in range(3):
            draft = drafter.propose(4)
            assert draft.probs is not None
            for token, law in zip(draft.tokens.tolist(), draft.probs, strict=True):
                torch.testing.assert_close(law, probabilities(logits_after(wrapper, context), sampling))
                assert law[token] > 0
                context.append(token)
            drafter.observe([*draft.tokens.tolist(), 7])
            context.append(7)

    def test_frequencies_follow_the_law(self, gpt2: ModelWrapper) -> None:
        drafter, counts = DraftModel(gpt2), torch.zeros(VOCAB, dtype=torch.float64)
        drafter.start(request_for(max_new_tokens=4, temperature=1.0), detail=False)
        drafter.observe((7,))
        law, n = probabilities(logits_after(gpt2, [*PROMPT, 7]), Sampling(1.0)), 2000
        for _ in range(n):
            drafter._cache.truncate(len(PROMPT))  # the same place again
            counts[drafter.propose(1).tokens] += 1
        assert ((counts / n) - law).abs().sum() < 4 * (2 * law * (1 - law) / (torch.pi * n)).sqrt().sum()

    def test_the_seed_decides(self, gpt2: ModelWrapper) -> None:
        def proposal(seed: int, prompt_id: str = "", repetition: int = 0) -> list[int]:
            drafter = DraftModel(gpt2)
            drafter.start(
                Request(PROMPT, 30, Sampling(1.5), seed=seed, prompt_id=prompt_id, repetition=repetition), detail=False
            )
            drafter.observe((7,))
            return drafter.propose(12).tokens.tolist()

        assert proposal(1) == proposal(1)
        others = [proposal(1), proposal(2), proposal(1, "a"), proposal(1, repetition=1)]
        assert len(set(map(tuple, others))) == 4

    def test_detail_keeps_the_laws_of_greedy_choices(self, gpt2: ModelWrapper) -> None:
        drafter = DraftModel(gpt2)
        drafter.start(request_for(), detail=True)
        drafter.observe((7,))
        draft = drafter.propose(3)
        assert draft.probs is not None
        assert draft.probs.shape == (3, VOCAB)
        torch.testing.assert_close(draft.probs.sum(-1), torch.ones(3))
        assert draft.probs.argmax(-1).tolist() == draft.tokens.tolist() == greedy_continuation(gpt2, [*PROMPT, 7], 3)
        torch.testing.assert_close(
            draft.probs[0].double(), logits_after(gpt2, [*PROMPT, 7]).softmax(-1), atol=1e-6, rtol=0
        )

    def test_a_draft_with_too_small_a_context(self, gpt2: ModelWrapper) -> None:
        with pytest.raises(UsageError, match="257 tokens are more than the context of 256"):
            DraftModel(gpt2).start(request_for(max_new_tokens=251), detail=False)
        DraftModel(gpt2).start(request_for(max_new_tokens=250), detail=False)

    @pytest.mark.parametrize("temperature", [0.0, 1.5])
    def test_a_target_with_fewer_rows_is_never_proposed_a_token_it_lacks(
        self, gpt2: ModelWrapper, temperature: float
    ) -> None:
        rows = 5
        drafter = DraftModel(gpt2, vocab_size=rows)
        drafter.start(request_for((1, 2, 3), temperature=temperature), detail=True)
        drafter.observe((4,))
        draft = drafter.propose(30)
        assert max(draft.tokens.tolist()) < rows
        assert draft.probs is not None
        assert draft.probs.shape == (30, rows)
        torch.testing.assert_close(draft.probs.sum(-1), torch.ones(30, dtype=draft.probs.dtype))

    @pytest.mark.parametrize("temperature", [0.0, 1.5])
    def test_a_targets_extra_rows_have_probability_zero(self, gpt2: ModelWrapper, temperature: float) -> None:
        drafter = DraftModel(gpt2, vocab_size=VOCAB + 7)
        drafter.start(request_for(temperature=temperature), detail=True)
        drafter.observe((4,))
        draft = drafter.propose(6)
        assert draft.probs is not None
        assert draft.probs.shape == (6, VOCAB + 7)
        assert not draft.probs[:, VOCAB:].any()
        torch.testing.assert_close(draft.probs.sum(-1), torch.ones(6, dtype=draft.probs.dtype))


def looked_up(context: Sequence[int], k: int, max_ngram: int) -> list[int]:
    """The definition, read off the whole context: the most recent earlier occurrence of the longest suffix."""
    end = len(context)
    for n in range(min(max_ngram, end), 0, -1):
        for begin in range(end - n - 1, -1, -1):
            if list(context[begin : begin + n]) == list(context[end - n :]):
                return list(context[begin + n : begin + n + k])
    return []


class TestNGramLookup:
    def start(self, prompt: Sequence[int], max_ngram: int = 3, temperature: float = 0.0) -> NGramLookup:
        drafter = NGramLookup(VOCAB, CPU, max_ngram=max_ngram)
        drafter.start(request_for(prompt, temperature=temperature), detail=False)
        return drafter

    def test_what_followed_last_time(self) -> None:
        assert self.start([1, 2, 3, 4, 5, 1, 2]).propose(3).tokens.tolist() == [3, 4, 5]

    def test_the_most_recent_occurrence(self) -> None:
        assert self.start([1, 2, 8, 1, 2, 9, 1, 2]).propose(2).tokens.tolist() == [9, 1]

    def test_a_longer_match_before_a_more_recent_one(self) -> None:
        assert self.start([7, 1, 2, 8, 5, 2, 9, 7, 1, 2]).propose(1).tokens.tolist() == [8]

    def test_up_to_the_end_of_the_text(self) -> None:
        assert self.start([4, 4]).propose(5).tokens.tolist() == [4]
        assert self.start([1, 2, 1, 2]).propose(9).tokens.tolist() == [1, 2]

    @pytest.mark.parametrize("prompt", [[1], [1, 2, 3, 4]])
    def test_nothing_repeats(self, prompt: list[int]) -> None:
        draft = self.start(prompt).propose(4)
        assert draft.tokens.tolist() == []
        assert draft.tokens.dtype == torch.int64
        assert draft.probs is None

    def test_k_of_zero(self) -> None:
        assert self.start([1, 1, 1]).propose(0).tokens.tolist() == []

    def test_emitted_tokens_are_looked_up_too(self) -> None:
        drafter = self.start([1, 2, 3])
        drafter.observe((9, 1))
        assert drafter.propose(2).tokens.tolist() == [2, 3]
        drafter.observe((2, 50, 9, 1))
        assert drafter.propose(2).tokens.tolist() == [2, 50]

    def test_starting_again_forgets(self) -> None:
        drafter = self.start([1, 2, 1])
        drafter.start(request_for([3, 1]), detail=False)
        assert drafter.propose(2).tokens.tolist() == []

    def test_the_law_is_a_point_mass(self) -> None:
        draft = self.start([1, 2, 3, 1], temperature=1.0).propose(2)
        assert draft.probs is not None
        assert draft.probs.shape == (2, VOCAB)
        assert draft.probs.nonzero().tolist() == [[0, 2], [1, 3]]
        assert draft.probs.sum() == 2
        greedy = self.start([1, 2, 3, 1]).propose(2)
        assert greedy.probs is None

    @settings(max_examples=150)
    @given(
        prompt=st.lists(st.integers(0, 3), min_size=1, max_size=25),
        rounds=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=6),
        max_ngram=st.integers(1, 4),
        k=st.integers(0, 6),
    )
    def test_is_the_definition(self, prompt: list[int], rounds: list[list[int]], max_ngram: int, k: int) -> None:
        drafter, context = self.start(prompt, max_ngram), list(prompt)
        for emitted in [[], *rounds]:
            drafter.observe(emitted)
            context += emitted
            assert drafter.propose(k).tokens.tolist() == looked_up(context, k, max_ngram)
