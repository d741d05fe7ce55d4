"""What proposes: draft models that keep up with the context, and lookups that find what followed last time."""

from __future__ import annotations

import copy
import functools
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specprof.decoding.drafters import DraftModel, LayerSkip, NGramLookup, RandomTokens
from specprof.decoding.request import Request
from specprof.decoding.sampling import Sampling, probabilities
from specprof.decoding.token_bytes import TokenBytes
from specprof.decoding.translation import SharedVocabulary, TokenIntersection
from specprof.decoding.vocabulary import compare_vocabularies
from specprof.errors import UsageError
from specprof.models.wrapper import ModelWrapper
from tiny_models import tiny_gpt2, tiny_gpt_neox, tiny_llama, tiny_mistral
from tiny_tokenizers import BYTES, SPACE, TRAINED, metaspace

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
        drafter = DraftModel(gpt2, SharedVocabulary(VOCAB, rows))
        drafter.start(request_for((1, 2, 3), temperature=temperature), detail=True)
        drafter.observe((4,))
        draft = drafter.propose(30)
        assert max(draft.tokens.tolist()) < rows
        assert draft.probs is not None
        assert draft.probs.shape == (30, rows)
        torch.testing.assert_close(draft.probs.sum(-1), torch.ones(30, dtype=draft.probs.dtype))

    @pytest.mark.parametrize("temperature", [0.0, 1.5])
    def test_a_targets_extra_rows_have_probability_zero(self, gpt2: ModelWrapper, temperature: float) -> None:
        drafter = DraftModel(gpt2, SharedVocabulary(VOCAB, VOCAB + 7))
        drafter.start(request_for(temperature=temperature), detail=True)
        drafter.observe((4,))
        draft = drafter.propose(6)
        assert draft.probs is not None
        assert draft.probs.shape == (6, VOCAB + 7)
        assert not draft.probs[:, VOCAB:].any()
        torch.testing.assert_close(draft.probs.sum(-1), torch.ones(6, dtype=draft.probs.dtype))

    @pytest.mark.parametrize("temperature", [0.0, 1.5])
    def test_withheld_tokens_are_never_proposed(self, gpt2: ModelWrapper, temperature: float) -> None:
        plain = DraftModel(gpt2)
        plain.start(request_for(temperature=temperature), detail=False)
        plain.observe((4,))
        withheld = frozenset(plain.propose(30).tokens.tolist())
        drafter = DraftModel(gpt2, SharedVocabulary(VOCAB, VOCAB, withheld))
        drafter.start(request_for(temperature=temperature), detail=True)
        drafter.observe((4,))
        draft = drafter.propose(30)
        assert not withheld & set(draft.tokens.tolist())
        assert draft.probs is not None and not draft.probs[:, sorted(withheld)].any()
        torch.testing.assert_close(draft.probs.sum(-1), torch.ones(30, dtype=draft.probs.dtype))

    def test_the_draft_of_a_prompt_given_in_its_own_tokens(self, gpt2: ModelWrapper) -> None:
        drafter = DraftModel(gpt2)
        drafter.start(Request(PROMPT, 50, draft_prompt_ids=(1, 2)), detail=False)
        drafter.observe((3,))
        assert drafter.propose(4).tokens.tolist() == greedy_continuation(gpt2, [1, 2, 3], 4)


class TestThreshold:
    @pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan])
    def test_a_threshold_that_is_no_probability(self, gpt2: ModelWrapper, threshold: float) -> None:
        with pytest.raises(UsageError, match="is not in"):
            DraftModel(gpt2, threshold=threshold)

    @pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(0.8, top_k=4)])
    def test_the_draft_ends_with_the_first_token_it_was_unsure_of(self, gpt2: ModelWrapper, sampling: Sampling) -> None:
        """The token itself stays, whichever it is: only the law that it was drawn from decides."""
        lengths = set()
        for threshold in (0.15, 0.25, 0.5):
            drafter = DraftModel(gpt2, threshold=threshold)
            drafter.start(Request(PROMPT, 100, sampling), detail=False)
            drafter.observe((7,))
            context = [*PROMPT, 7]
            for _ in range(8):
                tokens = drafter.propose(4).tokens.tolist()
                lengths.add(len(tokens))
                law = Sampling(1.0) if sampling.greedy else sampling
                sure = [
                    float(probabilities(logits_after(gpt2, [*context, *tokens[:i]]), law).max()) >= threshold
                    for i in range(len(tokens))
                ]
                assert all(sure[:-1])
                assert len(tokens) == 4 or not sure[-1]
                emitted = [*tokens[: len(tokens) // 2 + 1], 7]
                drafter.observe(emitted)
                context += emitted
        assert len(lengths) > 2

    def test_a_threshold_changes_no_token_before_it_ends_the_draft(self, gpt2: ModelWrapper) -> None:
        for sampling in (Sampling(), Sampling(1.0)):
            drafts = []
            for threshold in (0.0, 0.6):
                drafter = DraftModel(gpt2, threshold=threshold)
                drafter.start(Request(PROMPT, 100, sampling), detail=False)
                drafter.observe((7,))
                drafts.append(drafter.propose(20))
            whole, ended = drafts
            assert 0 < len(ended.tokens) < len(whole.tokens) == 20
            assert ended.tokens.tolist() == whole.tokens.tolist()[: len(ended.tokens)]
            assert (ended.probs is None) == (whole.probs is None) == sampling.greedy
            if ended.probs is not None and whole.probs is not None:
                assert torch.equal(ended.probs, whole.probs[: len(ended.tokens)])


class Spelling:
    """A draft of another vocabulary than a target's, and texts of the target."""

    def __init__(self, draft_tokenizer: Any, max_context: int = 256) -> None:
        self.target_tokenizer = TRAINED["byte-level"]()
        sizes = len(draft_tokenizer) + 5, len(self.target_tokenizer) + 3
        self.verdict = compare_vocabularies(draft_tokenizer, self.target_tokenizer, *sizes)
        network = copy.deepcopy(tiny_llama(vocab_size=sizes[0])).to(torch.float64)
        network.config.max_position_embeddings = max_context
        self.model = ModelWrapper(network)
        self.translation = TokenIntersection(self.verdict, draft_tokenizer, self.target_tokenizer, CPU)
        self.drafter = DraftModel(self.model, self.translation)
        own, theirs = TokenBytes.of(draft_tokenizer), TokenBytes.of(self.target_tokenizer)
        assert own is not None and theirs is not None
        self.own, self.theirs = own, theirs

    def continuation(self, k: int) -> list[int]:
        """What the draft should propose, from its context alone."""
        context, proposal = list(self.drafter._context), []
        for _ in range(k):
            token = self.translation.restrict(logits_after(self.model, context)).argmax()
            context.append(int(token))
            proposal.append(int(self.translation.proposed(token)))
        return proposal

    def assert_context_says(self, text: bytes) -> None:
        said = b"".join(self.own.by_id.get(token, b"") for token in self.drafter._context)
        assert said.removeprefix(b" ") == text


@functools.cache
def pieces() -> Spelling:
    return Spelling(TRAINED["metaspace"]())


BY_BYTES = metaspace(["<unk>", "</s>", *BYTES, SPACE], eos="</s>")


class TestAnotherVocabulary:
    @pytest.mark.parametrize("seed", range(4))
    def test_keeps_up_with_whatever_is_emitted(self, seed: int) -> None:
        """Tokens that the draft spells, special ones, pieces of characters; from none to all accepted."""
        pair, chance = pieces(), random.Random(seed)
        prompt = pair.target_tokenizer.encode("The quick brown fox jumps")
        text = b"The quick brown fox jumps"
        mapped = set(pair.verdict.to_target.values())
        spelt = [token for token in pair.theirs.by_id if token not in mapped]
        nothing = [len(pair.target_tokenizer)]  # a padding row
        pair.drafter.start(Request(tuple(prompt), 200), detail=False)
        pair.drafter.observe(prompt[-1:])
        text += pair.theirs.by_id[prompt[-1]]
        several = False
        for accepted in [0, 3, 1, 3, 3, 0, 2, 0, 3, 1, 0, 0]:
            proposal = pair.drafter.propose(3).tokens.tolist()
            assert proposal == pair.continuation(3)
            last = chance.choice(chance.choice([sorted(mapped), spelt, spelt, nothing]))
            several |= len(pair.translation.context([last])) > 1
            emitted = [*proposal[:accepted], last]
            pair.drafter.observe(emitted)
            text += b"".join(pair.theirs.by_id.get(token, b"") for token in emitted)
            pair.assert_context_says(text)
        assert several

    def test_keeps_up_where_its_context_is_cut_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the cache holds of tokens that are no longer there is not used."""
        pair = pieces()
        settle, recut = pair.translation.settle, []

        def watched(context: list[int]) -> int:
            before = len(context)
            stayed = settle(context)
            recut.append(stayed < before - 1)
            return stayed

        monkeypatch.setattr(pair.translation, "settle", watched)
        text = "The fox and the dog is the fox and naïve the dog   jumps    over the the fox " * 2
        tokens = pair.target_tokenizer.encode(text)
        # Some of it is cut as the target never would.
        tokens = [part for token in tokens for part in self.bytes_of(pair, token)] + tokens
        pair.drafter.start(Request(tuple(tokens[:2]), 250), detail=False)
        for token in tokens[2:]:
            pair.drafter.observe((token,))
            assert pair.drafter.propose(3).tokens.tolist() == pair.continuation(3)
        assert sum(recut) > 5

    @staticmethod
    def bytes_of(pair: Spelling, token: int) -> list[int]:
        ids = pair.theirs.ids_by_bytes()
        text = pair.theirs.by_id[token]
        return [ids[text[:2]], *(ids[text[i : i + 1]] for i in range(2, len(text)))] if text[:2] in ids else [token]

    @pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7, top_k=5), Sampling(1.0, top_p=0.5)])
    def test_laws_are_those_of_the_mapped_tokens(self, sampling: Sampling) -> None:
        pair = pieces()
        own = list(pair.verdict.to_target)
        theirs = list(pair.verdict.to_target.values())
        pair.drafter.start(Request((5, 6, 7), 50, sampling), detail=False)
        pair.drafter.observe((8,))
        context = list(pair.drafter._context)
        draft = pair.drafter.propose(6)
        assert draft.probs is not None and draft.probs.shape == (6, pair.verdict.target_size)
        for token, law in zip(draft.tokens.tolist(), draft.probs, strict=True):
            expected = probabilities(logits_after(pair.model, context)[own], sampling)
            torch.testing.assert_close(law[theirs], expected)
            assert law.sum().item() == pytest.approx(1) and law[token] > 0
            context.append(own[theirs.index(token)])

    def test_a_prompt_that_says_nothing(self) -> None:
        pair = pieces()
        pair.drafter.start(Request((pair.target_tokenizer.eos_token_id,), 20), detail=False)
        pair.drafter.observe((5,))
        assert pair.drafter.propose(3).tokens.tolist() == pair.continuation(3)

    def test_a_token_of_many_tokens_outgrows_the_cache(self) -> None:
        pair = Spelling(BY_BYTES)
        long = [token for token, text in pair.theirs.by_id.items() if len(text) > 3 and text.isascii()]
        pair.drafter.start(Request((long[0],), 12), detail=False)
        room = pair.drafter._cache.capacity
        for token in long[1:12]:
            pair.drafter.observe((token,))
            assert pair.drafter.propose(2).tokens.tolist() == pair.continuation(2)
        assert pair.drafter._cache.capacity >= len(pair.drafter._context) > room

    def test_a_context_that_runs_out_ends_the_drafts_and_nothing_else(self) -> None:
        pair = Spelling(BY_BYTES, max_context=40)
        long = [token for token, text in pair.theirs.by_id.items() if len(text) > 3 and text.isascii()]
        pair.drafter.start(Request((long[0],), 20), detail=False)
        lengths = []
        for token in long[1:20]:
            pair.drafter.observe((token,))
            room = 40 - len(pair.drafter._context)
            tokens = pair.drafter.propose(4).tokens.tolist()
            assert len(tokens) == max(0, min(4, room))
            assert tokens == pair.continuation(len(tokens))
            lengths.append(len(tokens))
        assert lengths[0] == 4 and lengths[-5:] == [0] * 5
        # The next text begins anew.
        pair.drafter.start(Request((long[0],), 20), detail=False)
        pair.drafter.observe((long[1],))
        assert pair.drafter.propose(4).tokens.tolist() == pair.continuation(4)


class TestLayerSkip:
    @pytest.mark.parametrize("depth", [-1, 0, 2, 3])
    def test_depths_that_leave_nothing_to_draft_or_to_verify(self, gpt2: ModelWrapper, depth: int) -> None:
        with pytest.raises(UsageError):
            LayerSkip(gpt2, depth)

    def test_a_target_without_our_forward(self) -> None:
        with pytest.raises(UsageError):
            LayerSkip(ModelWrapper(tiny_gpt_neox(vocab_size=VOCAB)), 1)

    def test_it_needs_the_targets_cache(self, gpt2: ModelWrapper) -> None:
        with pytest.raises(ValueError, match="target's cache"):
            LayerSkip(gpt2, 1).start(request_for(), detail=False)

    @pytest.mark.parametrize("family", [tiny_gpt2, tiny_llama, tiny_mistral], ids=lambda family: family.__name__)
    def test_drafts_what_its_first_layer_would_say(self, family: Any) -> None:
        """With as many layers only, and the same head, over the target's own keys and values."""
        network = copy.deepcopy(family(vocab_size=VOCAB)).to(torch.float64)
        target = ModelWrapper(network)
        shallow = copy.deepcopy(network)
        layers = shallow.transformer.h if family is tiny_gpt2 else shallow.model.layers
        del layers[1:]
        shallow.config.num_hidden_layers = 1
        if getattr(shallow.config, "layer_types", None):
            shallow.config.layer_types = shallow.config.layer_types[:1]
        first = ModelWrapper(shallow)

        drafter, context = LayerSkip(target, 1), [*PROMPT, 7]
        cache = target.new_cache(100)
        drafter.start(request_for(), detail=False, target_cache=cache)
        target.extend(torch.tensor(PROMPT), cache)
        drafter.observe((7,))
        for accepted in (2, 0, 4, 1, 4):
            draft = drafter.propose(4)
            assert draft.tokens.tolist() == greedy_continuation(first, context, 4)
            assert draft.early is not None and draft.early.depth == 1 and draft.early.hidden.shape[0] == 4
            start = cache.length
            target.extend(torch.tensor([context[-1], *draft.tokens.tolist()]), cache, 5, draft.early)
            emitted = [*draft.tokens.tolist()[:accepted], 11]
            cache.truncate(start + len(emitted))
            drafter.observe(emitted)
            context += emitted
        empty = drafter.propose(0)
        assert (empty.tokens.tolist(), empty.probs, empty.early) == ([], None, None)


class TestRandomTokens:
    def drafted(self, k: int, *, seed: int = 0, temperature: float = 1.0) -> Any:
        drafter = RandomTokens(VOCAB, CPU)
        drafter.start(Request(PROMPT, 30, Sampling(temperature), seed=seed), detail=False)
        drafter.observe((3,))
        return drafter.propose(k)

    def test_every_token_is_as_likely(self) -> None:
        draft = self.drafted(5000)
        assert draft.probs.shape == (5000, VOCAB)
        assert draft.probs.unique().tolist() == [pytest.approx(1 / VOCAB)]
        counts = torch.bincount(draft.tokens, minlength=VOCAB)
        assert len(counts) == VOCAB
        assert ((counts - 5000 / VOCAB) ** 2 / (5000 / VOCAB)).sum() < 110  # 60 degrees of freedom: 1e-4

    def test_the_seed_decides(self) -> None:
        assert torch.equal(self.drafted(9).tokens, self.drafted(9).tokens)
        assert not torch.equal(self.drafted(9).tokens, self.drafted(9, seed=1).tokens)

    def test_nothing_and_greedy(self) -> None:
        assert self.drafted(0).tokens.tolist() == [] and self.drafted(0).probs is None
        assert self.drafted(4, temperature=0.0).probs is None


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
