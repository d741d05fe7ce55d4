"""Whole generations have the target's law: all paths enumerated, and in draws with the decoder's own random streams."""

from __future__ import annotations

import copy
import functools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from goodness_of_fit import ALPHA, chi_square_p, total_variation, total_variation_bound
from specprof.decoding import autoregressive, drafters, judge
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.draft_length import AdaptiveK, DraftLength
from specprof.decoding.drafters import Draft, Drafter, DraftModel, LayerSkip, NGramLookup, RandomTokens
from specprof.decoding.rejection import count_accepted
from specprof.decoding.request import Request
from specprof.decoding.sampling import Sampling, probabilities, random_stream
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.decoding.translation import SharedVocabulary, TokenIntersection
from specprof.decoding.vocabulary import VocabularyVerdict, compare_vocabularies
from specprof.models.kv_cache import KVCache, Slab
from specprof.models.loader import quiet_transformers
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.events import Prefilled, PromptEnded, Round
from tiny_models import tiny_gpt2, tiny_llama
from tiny_tokenizers import byte_level, metaspace

Decoder = AutoregressiveDecoder | SpeculativeDecoder
Sequence = tuple[int, ...]

EOS = 0
CPU = torch.device("cpu")

TARGET_SEED = {2: 3, 3: 12, 4: 1, 5: 4, 6: 10}
"""By vocabulary size: weights with which most texts neither end at once nor are all the same."""

# --- models of a few tokens


@functools.cache
def few_tokens_model(seed: int, vocab_size: int, head_scale: float = 1.0, layers: int = 1) -> ModelWrapper:
    """One layer or two in float64, so that rounding is no part of the question; the head's scale sets how peaked."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.5,
        bos_token_id=EOS,
        eos_token_id=EOS,
        pad_token_id=None,
    )
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = LlamaForCausalLM(config)
    with torch.no_grad():
        network.lm_head.weight.mul_(head_scale)
    return ModelWrapper(network.double().eval().requires_grad_(False))


def target_of(vocab_size: int, layers: int = 1) -> ModelWrapper:
    return few_tokens_model(TARGET_SEED[vocab_size], vocab_size, layers=layers)


@dataclass(frozen=True)
class Setting:
    """A target, a drafter and how they are asked to go on."""

    vocab_size: int
    k: int | Callable[[], DraftLength]
    max_new_tokens: int
    sampling: Sampling
    drafter: Callable[[], Drafter]
    prompt: Sequence = (1, 2)
    compared: int = 99
    """How many of the first tokens are the outcome; more than are generated: all, length included."""
    draws: int = 700
    layers: int = 1

    @property
    def target(self) -> ModelWrapper:
        return target_of(self.vocab_size, self.layers)

    @property
    def decoder(self) -> SpeculativeDecoder:
        return SpeculativeDecoder(self.target, self.drafter(), self.k if isinstance(self.k, int) else self.k())

    def request(self, seed: int = 0, repetition: int = 0) -> Request:
        return Request(self.prompt, self.max_new_tokens, self.sampling, frozenset({EOS}), seed, "law", repetition)


def draft(
    vocab_size: int, target_size: int | None = None, seed: int = 2, *, threshold: float = 0.0, withheld: Sequence = ()
) -> DraftModel:
    translation = SharedVocabulary(vocab_size, target_size or vocab_size, frozenset(withheld))
    return DraftModel(few_tokens_model(seed, vocab_size), translation, threshold=threshold)


def adversary(vocab_size: int) -> DraftModel:
    """Prefers what the target would least say."""
    return DraftModel(few_tokens_model(TARGET_SEED[vocab_size], vocab_size, head_scale=-8.0))


def ngram(vocab_size: int) -> NGramLookup:
    return NGramLookup(vocab_size, CPU)


def layer_skip(vocab_size: int) -> LayerSkip:
    return LayerSkip(target_of(vocab_size, layers=2), 1)


# --- drafts of another vocabulary


VOCABULARIES: dict[str, tuple[Any, Any]] = {
    # The target's "ab" is two tokens of the draft, whose "c" is none of the target.
    "spelt": (byte_level(["b", "</s>", "a", "c"], eos="</s>"), byte_level(["<end>", "a", "ab"], eos="<end>")),
    # Of two kinds, with pieces of a character; the target's "b" is nothing that the draft could read.
    "pieces": (
        metaspace(["<unk>", "é", "</s>", "<0xC3>", "a", "<0xA9>", "\u2581"], eos="</s>"),
        byte_level(["<end>", "a", "Ã", "©", "b"], eos="<end>"),
    ),
    # The same tokens under other ids.
    "shuffled": (byte_level(["b", "</s>", "a"], eos="</s>"), byte_level(["<end>", "a", "b"], eos="<end>")),
    "no end": (byte_level(["b", "a", "c"]), byte_level(["<end>", "a", "b"], eos="<end>")),
}
MAPS = {
    "spelt": {1: 0, 2: 1},
    "pieces": {2: 0, 4: 1, 3: 2, 5: 3},
    "shuffled": {1: 0, 2: 1, 0: 2},
    "no end": {1: 1, 0: 2},
}


def verdict_on(name: str) -> VocabularyVerdict:
    draft_tokenizer, target_tokenizer = VOCABULARIES[name]
    return compare_vocabularies(draft_tokenizer, target_tokenizer, len(draft_tokenizer), len(target_tokenizer))


def translated(
    name: str,
    model: ModelWrapper | None = None,
    *,
    to_target: dict[int, int] | None = None,
    kind: type[TokenIntersection] = TokenIntersection,
    threshold: float = 0.0,
) -> DraftModel:
    """A draft of another vocabulary; ``to_target`` replaces the map."""
    verdict = verdict_on(name)
    verdict = replace(verdict, to_target=to_target or verdict.to_target)
    translation = kind(verdict, *VOCABULARIES[name], CPU)
    return DraftModel(model or few_tokens_model(2, verdict.draft_size), translation, threshold=threshold)


@functools.cache
def rearranged_target() -> ModelWrapper:
    """The target itself, its tokens under the ids that "shuffled" gives them in the draft."""
    network = copy.deepcopy(target_of(3).model)
    rows = torch.tensor([theirs for _, theirs in sorted(MAPS["shuffled"].items())])
    for matrix in (network.model.embed_tokens.weight, network.lm_head.weight):
        matrix.copy_(matrix[rows])
    return ModelWrapper(network)


def wrong(name: str) -> dict[int, int]:
    """A map that takes every token for another one."""
    own, theirs = zip(*MAPS[name].items(), strict=True)
    return dict(zip(own, (*theirs[1:], theirs[0]), strict=True))


# --- choices of K


class AsAccepted:
    """One more after a draft that was accepted whole, else one more than was accepted."""

    name, longest = "as-accepted", 3

    def __init__(self) -> None:
        self.k = 1

    def choose(self, room: int) -> int:
        return self.k

    def observe(self, round: Round) -> None:
        self.k = min(round.num_accepted + 1, 3)


class AsEmitted:
    """As many as the last token's id, none after 0: whatever was emitted before may decide."""

    name, longest = "as-emitted", 3

    def __init__(self) -> None:
        self.k = 3

    def choose(self, room: int) -> int:
        return self.k

    def observe(self, round: Round) -> None:
        self.k = round.emitted_tokens[-1]


class Clocked(AdaptiveK):
    """Takes a round to last as long as its K says."""

    def observe(self, round: Round) -> None:
        seconds = 1.0 + 0.2 * (round.k or 0)
        super().observe(
            replace(round, draft_seconds=0.0, verify_seconds=seconds, sample_seconds=0.0, overhead_seconds=0.0)
        )


@functools.cache
def experienced() -> Clocked:
    """Has seen rounds until what comes of the next one decides on the K after it."""
    policy, chance = Clocked(3), random.Random(1)
    liked = True

    def observed(policy: Clocked, k: int, accepted: int) -> Clocked:
        seconds = (0.0, 0.0, 0.0, 0.0)
        policy.observe(Round("", "", 0, 0, (1,) * k, accepted, (1,) * (accepted + 1), *seconds, k=k))
        return policy

    for _ in range(400):
        k = policy.choose(1000)
        if len({observed(copy.deepcopy(policy), k, accepted).choose(1000) for accepted in range(k + 1)}) > 1:
            return policy
        liked ^= chance.random() < 0.2
        observed(policy, k, k if liked else 0)
    raise AssertionError("in 400 rounds, acceptance decided on nothing")


POLICIES: dict[str, Callable[[], DraftLength]] = {
    "as accepted": AsAccepted,
    "as emitted": AsEmitted,
    "adaptive": lambda: Clocked(3),
    "adaptive, experienced": lambda: copy.deepcopy(experienced()),
}

REPETITIVE = (1, 2, 3, 2, 1, 3, 1, 2)

SETTINGS: dict[str, Setting] = {
    "K=2, cool": Setting(4, 2, 4, Sampling(0.7), lambda: draft(4)),
    "K=3, hot": Setting(4, 3, 6, Sampling(1.5), lambda: draft(4), compared=4),
    "K=5": Setting(4, 5, 8, Sampling(1.0), lambda: draft(4), compared=4),
    "top-p": Setting(6, 2, 4, Sampling(1.5, top_p=0.8), lambda: draft(6)),
    "adversarial draft": Setting(4, 2, 4, Sampling(0.7), lambda: adversary(4)),
    "n-gram": Setting(4, 3, 5, Sampling(1.0), lambda: ngram(4), prompt=REPETITIVE, compared=4),
    "another vocabulary": Setting(3, 2, 4, Sampling(0.7), lambda: translated("spelt")),
    "another kind of vocabulary": Setting(5, 3, 5, Sampling(1.0), lambda: translated("pieces"), (1, 2, 3), compared=4),
    "adaptive K": Setting(4, lambda: AdaptiveK(3), 6, Sampling(1.0), lambda: draft(4), compared=4),
    "threshold": Setting(4, 3, 5, Sampling(1.0), lambda: draft(4, threshold=0.5), compared=4),
}
PERFECT = Setting(4, 3, 6, Sampling(1.0), lambda: draft(4, seed=TARGET_SEED[4]), compared=4)

# --- the law, from the target alone


def law_of(setting: Setting) -> dict[Sequence, float]:
    """Every outcome and its probability: the target teacher-forced over every continuation, without a cache."""
    law: dict[Sequence, float] = {}
    depth = min(setting.max_new_tokens, setting.compared)

    def extend(tokens: Sequence, probability: float) -> None:
        if len(tokens) == depth or tokens[-1:] == (EOS,):
            law[tokens] = probability
            return
        logits, _ = setting.target.forward(torch.tensor([setting.prompt + tokens]), use_cache=False)
        for token, share in enumerate(probabilities(logits[0, -1], setting.sampling).tolist()):
            if share > 0:
                extend((*tokens, token), probability * share)

    extend((), 1.0)
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    return law


# --- one generation


@dataclass(frozen=True)
class Generation:
    tokens: Sequence
    rounds: tuple[Round, ...]

    @property
    def drafted(self) -> int:
        return sum(len(round.draft_tokens) for round in self.rounds)

    @property
    def accepted(self) -> int:
        return sum(round.num_accepted for round in self.rounds)

    @property
    def rejected(self) -> int:
        return sum(round.num_accepted < len(round.draft_tokens) for round in self.rounds)


def generate(decoder: Decoder, request: Request) -> Generation:
    first, *rounds, ended = decoder.events(request)
    assert isinstance(first, Prefilled) and isinstance(ended, PromptEnded)
    checked = tuple(round for round in rounds if isinstance(round, Round))
    tokens = (first.first_token, *(token for round in checked for token in round.emitted_tokens))
    stopped = tokens[-1] == EOS
    assert len(checked) == len(rounds) and ended.finish_reason == ("stop" if stopped else "length")
    assert EOS not in tokens[:-1] and len(tokens) <= request.max_new_tokens
    assert stopped or len(tokens) == request.max_new_tokens
    return Generation(tokens, checked)


# --- exactly: every random choice of a generation is a fork, and every path is walked


@dataclass
class Forks:
    """Stands in for chance: replays the start of a path, goes left after it, and knows which way is next."""

    path: list[int] = field(default_factory=list)
    laws: list[list[float]] = field(default_factory=list)

    def choose(self, law: list[float]) -> int:
        step = len(self.laws)
        # What only rounding makes possible is not walked.
        law = [share if share > 1e-13 else 0.0 for share in law]
        self.laws.append(law)
        if step == len(self.path):
            self.path.append(next(i for i, share in enumerate(law) if share))
        return self.path[step]

    def paths(self) -> Iterator[None]:
        """Once per path, until all have been walked."""
        while True:
            self.laws.clear()
            yield
            assert len(self.path) == len(self.laws)
            while self.path:
                last, law = self.path.pop(), self.laws[len(self.path)]
                following = next((i for i in range(last + 1, len(law)) if law[i]), None)
                if following is not None:
                    self.path.append(following)
                    break
            if not self.path:
                return

    @property
    def probability(self) -> float:
        return math.prod(law[step] for law, step in zip(self.laws, self.path, strict=True))

    def randint(self, high: int, size: Sequence, **options: Any) -> Tensor:
        """In the place of ``torch.randint``."""
        return torch.tensor([self.choose([1 / high] * high) for _ in range(*size)], dtype=torch.long)

    def draw(self, probs: Tensor, generator: torch.Generator) -> Tensor:
        """In the place of ``sampling.draw``."""
        return torch.tensor(self.choose(probs.flatten().tolist())).view(probs.shape[:-1])

    def count(self, target_prob: Tensor, draft_prob: Tensor, uniforms: Tensor) -> Tensor:
        """In the place of ``count_accepted``: the real one, asked in the middle of either side of each threshold."""
        ratios = [min(1.0, p / q) for p, q in zip(target_prob.tolist(), draft_prob.tolist(), strict=True)]
        asked: list[float] = []
        for ratio in ratios:
            rejected = self.choose([ratio, 1 - ratio]) == 1
            asked.append((1 + ratio) / 2 if rejected else ratio / 2)
            if rejected:
                break
        # Behind a rejection stand tokens that would be accepted if they were asked.
        asked += [ratio / 2 for ratio in ratios[len(asked) :]]
        return count_accepted(target_prob, draft_prob, uniforms.new_tensor(asked))


AFTER: dict[tuple[ModelWrapper, Sequence], Tensor] = {}
"""What a model says after a text; every path asks for the same few again."""


def remember(patch: pytest.MonkeyPatch) -> None:
    """Have models answer from memory. Caches hold the tokens in place of their keys: what a decoder feeds and what
    it rolls back decides as before.
    """
    new_cache, extend = ModelWrapper.new_cache, ModelWrapper.extend

    def tokens_only(self: ModelWrapper, capacity: int) -> KVCache:
        return KVCache(Slab.uniform(1, 1, capacity, 1, dtype=torch.long, device=CPU))

    def answer(self: ModelWrapper, ids: Tensor, cache: KVCache, num_logits: int = 1, early: object = None) -> Tensor:
        keys = cache.slab.keys[0]
        assert early is None and keys is not None
        end = cache.length + len(ids)
        keys[0, 0, cache.length : end, 0] = ids
        cache.length = end
        text = tuple(keys[0, 0, :end, 0].tolist())
        rows = []
        for length in range(end - num_logits + 1, end + 1):
            key = (self, text[:length])
            if key not in AFTER:
                AFTER[key] = extend(self, torch.tensor(text[:length]), new_cache(self, length))
            rows.append(AFTER[key])
        return torch.cat(rows)

    patch.setattr(ModelWrapper, "new_cache", tokens_only)
    patch.setattr(ModelWrapper, "extend", answer)


def enumerated(
    decoder: Callable[[], Decoder], setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[Sequence, float], list[Generation]]:
    """The exact law of what ``decoder``, a new one for each path, generates, and the generations."""
    forks, generations = Forks(), []
    law: dict[Sequence, float] = {}
    with monkeypatch.context() as patch:
        for module in (judge, drafters, autoregressive):
            patch.setattr(module, "draw", forks.draw)
        patch.setattr(judge, "count_accepted", forks.count)
        patch.setattr(torch, "randint", forks.randint)
        if setting.layers == 1:  # layer skip is about what is in the caches
            remember(patch)
        for _ in forks.paths():
            generation = generate(decoder(), setting.request())
            tokens = generation.tokens[: setting.compared]
            law[tokens] = law.get(tokens, 0.0) + forks.probability
            generations.append(generation)
    return law, generations


def totals(generations: list[Generation]) -> tuple[int, int, int]:
    """Tokens drafted and accepted, drafts with a rejection."""
    return (
        sum(generation.drafted for generation in generations),
        sum(generation.accepted for generation in generations),
        sum(generation.rejected for generation in generations),
    )


def worst_error(law: dict[Sequence, float], expected: dict[Sequence, float]) -> float:
    return max(abs(law.get(tokens, 0.0) - expected.get(tokens, 0.0)) for tokens in law.keys() | expected.keys())


WALKED: dict[str, Setting] = {
    "K=1": Setting(3, 1, 4, Sampling(1.0), lambda: draft(3)),
    "K=2": Setting(3, 2, 4, Sampling(0.7), lambda: draft(3)),
    "K=3": Setting(2, 3, 6, Sampling(1.5), lambda: draft(2), prompt=(1,)),
    "K=5, always cut": Setting(2, 5, 5, Sampling(1.0), lambda: draft(2), prompt=(1,)),
    "top-k": Setting(5, 2, 4, Sampling(1.0, top_k=2), lambda: draft(5)),
    "top-p": Setting(5, 2, 4, Sampling(1.0, top_p=0.7), lambda: draft(5)),
    "adversarial draft": Setting(3, 2, 4, Sampling(0.7), lambda: adversary(3)),
    "n-gram, K=5": Setting(3, 5, 7, Sampling(1.0), lambda: ngram(3), prompt=(1, 2, 2, 1, 1, 2)),
    "draft with more rows": Setting(3, 2, 4, Sampling(1.0), lambda: draft(5, 3)),
    "draft with fewer rows": Setting(4, 2, 4, Sampling(1.0), lambda: draft(3, 4), prompt=(1, 3)),
    "withheld": Setting(3, 2, 4, Sampling(1.0), lambda: draft(4, 3, withheld=(1,))),
    "spelt, K=1": Setting(3, 1, 4, Sampling(1.0), lambda: translated("spelt")),
    "spelt, K=2": Setting(3, 2, 4, Sampling(0.7), lambda: translated("spelt")),
    "spelt, K=3, top-k": Setting(3, 3, 5, Sampling(1.0, top_k=2), lambda: translated("spelt")),
    "spelt, top-p": Setting(3, 2, 4, Sampling(1.0, top_p=0.8), lambda: translated("spelt")),
    "spelt, threshold": Setting(3, 2, 4, Sampling(0.7), lambda: translated("spelt", threshold=0.7)),
    "spelt, wrong map": Setting(3, 2, 4, Sampling(0.7), lambda: translated("spelt", to_target=wrong("spelt"))),
    "pieces, top-k": Setting(5, 2, 4, Sampling(0.7, top_k=3), lambda: translated("pieces"), (1, 2, 3, 4)),
    "no end": Setting(3, 2, 4, Sampling(1.0), lambda: translated("no end")),
    "shuffled, wrong map": Setting(3, 2, 4, Sampling(1.0), lambda: translated("shuffled", to_target=wrong("shuffled"))),
    **{f"K {name}": Setting(3, k, 7, Sampling(1.0, top_k=2), lambda: draft(3)) for name, k in POLICIES.items()},
    **{
        f"threshold {t}": Setting(3, 3, 5, Sampling(1.0), functools.partial(draft, 3, threshold=t)) for t in (0.8, 0.84)
    },
    "layer skip": Setting(3, 2, 4, Sampling(1.0), lambda: layer_skip(3), layers=2),
    "layer skip, K=3": Setting(2, 3, 5, Sampling(0.7), lambda: layer_skip(2), prompt=(1,), layers=2),
    "random": Setting(2, 3, 5, Sampling(1.0), lambda: RandomTokens(2, CPU), prompt=(1,)),
}


WALKED_SLOWLY = ("threshold 0.84", "K adaptive")
"""Each is the longer of two that walk the same code."""


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(setting, id=name, marks=[pytest.mark.slow] if name in WALKED_SLOWLY else [])
        for name, setting in WALKED.items()
    ],
)
def test_every_path_adds_up_to_the_targets_law(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    law, generations = enumerated(lambda: setting.decoder, setting, monkeypatch)
    assert all(totals(generations))
    assert sum(law.values()) == pytest.approx(1, abs=1e-10)
    assert worst_error(law, law_of(setting)) < 1e-10
    lengths = {
        (round.k, len(round.draft_tokens)) for g in generations for round in g.rounds if round.k and not round.cut
    }
    if not isinstance(setting.k, int):
        assert len({k for k, _ in lengths}) > 1, "K never changed"
    elif threshold := getattr(setting.drafter(), "threshold", 0.0):
        assert len(lengths) > 1, f"at {threshold} no draft ended early, or all did"


def test_every_path_of_autoregression(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = WALKED["top-k"]
    law, generations = enumerated(lambda: AutoregressiveDecoder(setting.target), setting, monkeypatch)
    assert worst_error(law, law_of(setting)) < 1e-12
    assert len(generations) == len(law) and totals(generations) == (0, 0, 0)


# --- in draws


def counts_of(decoder: Decoder, setting: Setting, law: dict[Sequence, float]) -> tuple[np.ndarray, list[Generation]]:
    generations = [generate(decoder, setting.request(r % 3, r)) for r in range(setting.draws)]
    seen = Counter(generation.tokens[: setting.compared] for generation in generations)
    assert seen.keys() <= law.keys(), "an impossible text"
    return np.array([seen[tokens] for tokens in law]), generations


SHARE = ALPHA / (len(SETTINGS) + 2)
COMPUTED = ("K=2, cool", "another vocabulary")
"""Settings whose models compute every pass; the others answer from memory."""
DRAWN_ALWAYS = (*COMPUTED, "adversarial draft", "n-gram")
"""The others are slow tests: what they are about is walked exactly above, and drawing adds the random streams."""


def assert_law(counts: np.ndarray, law: dict[Sequence, float]) -> None:
    probability = np.array(list(law.values()))
    assert chi_square_p(counts, probability) > SHARE
    assert total_variation(counts, probability) < total_variation_bound(probability, int(counts.sum()), SHARE)


@pytest.mark.parametrize(
    "name", [name if name in DRAWN_ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS]
)
def test_generations_follow_the_targets_law(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = SETTINGS[name]
    law = law_of(setting)
    if name not in COMPUTED:
        remember(monkeypatch)
    counts, generations = counts_of(setting.decoder, setting, law)
    drafted, accepted, rejected = totals(generations)
    assert drafted and accepted and rejected
    if name == "adversarial draft":
        assert accepted / drafted < 0.1
    assert_law(counts, law)


def test_a_draft_that_is_the_target_is_always_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    law = law_of(PERFECT)
    remember(monkeypatch)
    counts, generations = counts_of(PERFECT.decoder, PERFECT, law)
    rounds = [round for generation in generations for round in generation.rounds]
    assert all(round.num_accepted == len(round.draft_tokens) for round in rounds)
    alphas = [alpha for round in rounds for alpha in round.alpha or ()]
    assert len(alphas) > PERFECT.draws and min(alphas) > 1 - 1e-12
    assert_law(counts, law)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("family", [tiny_gpt2, tiny_llama], ids=lambda family: family.__name__)
def test_a_target_that_drafts_for_itself_accepts_all(family: Callable[..., Any], temperature: float) -> None:
    """In float32, where one pass over five tokens and five over one round differently."""
    target = ModelWrapper(family(vocab_size=61))
    decoder, alphas = SpeculativeDecoder(target, DraftModel(target), 4), list[float]()
    for seed in range(3):
        request = Request((5, 9, 3), 40, Sampling(temperature), seed=seed)
        for round in decoder.events(request):
            if isinstance(round, Round):
                assert round.num_accepted == len(round.draft_tokens)
                alphas += round.alpha or ()
    assert len(alphas) > 80 and min(alphas) > 1 - 1e-4


def test_the_maps_are_what_they_are_said_to_be() -> None:
    for name, to_target in MAPS.items():
        verdict = verdict_on(name)
        assert (verdict.kind, verdict.to_target) == ("overlapping", to_target)
        assert not set(wrong(name).items()) & set(to_target.items())


def test_a_wrong_map_costs_acceptance_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target drafts for itself under other ids. That both have the target's law is shown above."""
    setting = WALKED["shuffled, wrong map"]
    accepted = {}
    for name, to_target in (("right", MAPS["shuffled"]), ("wrong", wrong("shuffled"))):

        def decoder(to_target: dict[int, int] = to_target) -> Decoder:
            drafter = translated("shuffled", rearranged_target(), to_target=to_target)
            return SpeculativeDecoder(setting.target, drafter, 2)

        law, generations = enumerated(decoder, setting, monkeypatch)
        assert worst_error(law, law_of(setting)) < 1e-10
        accepted[name] = [alpha for g in generations for round in g.rounds for alpha in round.alpha or ()]
    assert min(accepted["right"]) > 1 - 1e-12
    assert max(accepted["wrong"]) < 0.95


def test_autoregression_follows_the_targets_law(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = SETTINGS["top-p"]
    law = law_of(setting)
    remember(monkeypatch)
    counts, generations = counts_of(AutoregressiveDecoder(setting.target), setting, law)
    assert totals(generations) == (0, 0, 0)
    assert_law(counts, law)


# --- decoders broken on purpose are found out


def _resamples_from_the_target(patch: pytest.MonkeyPatch) -> None:
    def broken(target_probs: Tensor, draft_probs: Tensor, num_accepted: Tensor) -> Tensor:
        return target_probs[num_accepted.reshape(1)][0]

    patch.setattr(judge, "next_token_probs", broken)


def _reports_another_law(patch: pytest.MonkeyPatch) -> None:
    propose = DraftModel.propose

    def broken(self: DraftModel, k: int) -> Draft:
        draft = propose(self, k)
        return draft if draft.probs is None else replace(draft, probs=(0.5 * draft.probs.log()).softmax(-1))

    patch.setattr(DraftModel, "propose", broken)


def _forgets_a_token_when_rolling_back(patch: pytest.MonkeyPatch) -> None:
    # The draft notices and takes the token in again; the target does not.
    def broken(self: KVCache, length: int) -> None:
        self.length = length - 1

    patch.setattr(KVCache, "truncate", broken)


def _draws_draft_and_verdict_from_one_stream(patch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device, use: str, *key: object) -> torch.Generator:
        return random_stream(device, "target", *key)

    patch.setattr(drafters, "random_stream", broken)


def _drops_an_unsure_token_it_has_drawn(patch: pytest.MonkeyPatch) -> None:
    # Whether the draft goes on then depends on the token, and not on the law before it.
    propose = DraftModel.propose

    def broken(self: DraftModel, k: int) -> Draft:
        draft = propose(self, k)
        if draft.probs is None:
            return draft
        sure = (draft.probs[torch.arange(len(draft.tokens)), draft.tokens] >= 0.5).long().cumprod(0).sum()
        return replace(draft, tokens=draft.tokens[:sure], probs=draft.probs[:sure])

    patch.setattr(DraftModel, "propose", broken)


def _forgets_to_renormalise(patch: pytest.MonkeyPatch) -> None:
    # Drawn from the tokens that both have, tested with what the softmax over all of them said.
    restrict, laws = TokenIntersection.restrict, TokenIntersection.laws
    seen: list[Tensor] = []

    def watched(self: TokenIntersection, logits: Tensor) -> Tensor:
        seen.append(logits)
        return restrict(self, logits)

    def broken(self: TokenIntersection, probs: Tensor) -> Tensor:
        return laws(self, (torch.cat(seen[-len(probs) :]) / 0.7).softmax(-1))

    patch.setattr(TokenIntersection, "restrict", watched)
    patch.setattr(TokenIntersection, "laws", broken)


@pytest.mark.parametrize(
    ("break_it", "name"),
    [
        (_resamples_from_the_target, "K=2"),
        (_reports_another_law, "K=2"),
        (_forgets_a_token_when_rolling_back, "K=2"),
        (_drops_an_unsure_token_it_has_drawn, "K=2"),
        (_drops_an_unsure_token_it_has_drawn, "spelt, threshold"),
        (_forgets_to_renormalise, "spelt, K=1"),
        (_forgets_to_renormalise, "spelt, K=2"),
        (_reports_another_law, "spelt, K=2"),
    ],
)
def test_paths_find_broken_decoders(
    break_it: Callable[[pytest.MonkeyPatch], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = WALKED[name]
    break_it(monkeypatch)
    law, _ = enumerated(lambda: setting.decoder, setting, monkeypatch)
    assert worst_error(law, law_of(setting)) > 1e-3


@pytest.mark.parametrize(
    "break_it", [_resamples_from_the_target, _reports_another_law, _draws_draft_and_verdict_from_one_stream]
)
def test_draws_find_broken_decoders(
    break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = replace(SETTINGS["K=2, cool"], draws=700)
    law = law_of(setting)
    break_it(monkeypatch)
    remember(monkeypatch)
    counts, _ = counts_of(setting.decoder, setting, law)
    with pytest.raises(AssertionError):
        assert_law(counts, law)


# --- random streams


def _without_times(decoder: Decoder, request: Request) -> list[tuple[Any, ...]]:
    rounds = generate(decoder, request).rounds
    return [(r.draft_tokens, r.num_accepted, r.emitted_tokens, r.target_prob, r.draft_prob, r.alpha) for r in rounds]


@pytest.mark.parametrize("name", ["K=3, hot", "n-gram"])
def test_one_seed_one_text(name: str) -> None:
    setting = replace(SETTINGS[name], max_new_tokens=12)
    decoder = setting.decoder
    again = [_without_times(decoder, setting.request(seed)) for seed in (0, 1, 0)]
    assert again[0] == again[2] == _without_times(setting.decoder, setting.request(0))
    texts = {generate(decoder, setting.request(seed)).tokens for seed in range(20)}
    assert len(texts) > 5


def test_repetitions_and_prompt_ids_have_their_own_streams() -> None:
    setting = SETTINGS["K=5"]
    requests = [setting.request(repetition=r) for r in range(8)]
    requests += [replace(requests[0], prompt_id=name) for name in "abcdefgh"]
    for decoder in (setting.decoder, AutoregressiveDecoder(setting.target)):
        assert len({generate(decoder, request).tokens for request in requests}) > 4


def test_the_first_token_does_not_depend_on_the_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    remember(monkeypatch)
    setting = SETTINGS["K=5"]
    decoders: list[Decoder] = [AutoregressiveDecoder(setting.target)]
    for k in (0, 1, 2, 5):
        decoders += [
            SpeculativeDecoder(setting.target, drafter, k) for drafter in (draft(4), draft(4, seed=5), ngram(4))
        ]
    firsts = [[generate(decoder, setting.request(seed)).tokens[0] for seed in range(20)] for decoder in decoders]
    assert all(first == firsts[0] for first in firsts) and len(set(firsts[0])) > 2


def test_nothing_drafted_is_autoregression() -> None:
    setting = SETTINGS["K=5"]
    plain = SpeculativeDecoder(setting.target, draft(4), 0)
    for seed in range(20):
        expected = generate(AutoregressiveDecoder(setting.target), setting.request(seed))
        assert generate(plain, setting.request(seed)).tokens == expected.tokens


def test_the_drafts_stream_does_not_depend_on_k() -> None:
    setting = replace(SETTINGS["K=5"], max_new_tokens=12)
    first_drafts = [
        [
            generate(SpeculativeDecoder(setting.target, draft(4), k), setting.request(seed)).rounds[:1]
            for seed in range(20)
        ]
        for k in (2, 5)
    ]
    compared = 0
    for short, long in zip(*first_drafts, strict=True):
        for one, other in zip(short, long, strict=True):
            assert len(one.draft_tokens) == 2 and other.draft_tokens[:2] == one.draft_tokens
            compared += 1
    assert compared > 5
