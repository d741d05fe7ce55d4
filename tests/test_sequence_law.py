"""Whole generations have the target's law: all paths enumerated, and in draws with the decoder's own random streams."""

from __future__ import annotations

import functools
import math
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
from specprof.decoding.drafters import Draft, Drafter, DraftModel, NGramLookup
from specprof.decoding.rejection import count_accepted
from specprof.decoding.request import Request
from specprof.decoding.sampling import Sampling, probabilities, random_stream
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.models.kv_cache import KVCache
from specprof.models.loader import quiet_transformers
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.events import Prefilled, PromptEnded, Round

Decoder = AutoregressiveDecoder | SpeculativeDecoder
Sequence = tuple[int, ...]

EOS = 0

TARGET_SEED = {2: 3, 3: 12, 4: 1, 5: 4, 6: 10}
"""By vocabulary size: weights with which most texts neither end at once nor are all the same."""

# --- models of a few tokens


@functools.cache
def one_layer_model(seed: int, vocab_size: int, head_scale: float = 1.0) -> ModelWrapper:
    """One layer in float64, so that rounding is no part of the question; the head's scale sets how peaked it is."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
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


@dataclass(frozen=True)
class Setting:
    """A target, a drafter and how they are asked to go on."""

    vocab_size: int
    k: int
    max_new_tokens: int
    sampling: Sampling
    drafter: Callable[[], Drafter]
    prompt: Sequence = (1, 2)
    compared: int = 99
    """How many of the first tokens are the outcome; more than are generated: all, length included."""
    draws: int = 700

    @property
    def target(self) -> ModelWrapper:
        return one_layer_model(TARGET_SEED[self.vocab_size], self.vocab_size)

    @property
    def decoder(self) -> SpeculativeDecoder:
        return SpeculativeDecoder(self.target, self.drafter(), self.k)

    def request(self, seed: int = 0, repetition: int = 0) -> Request:
        return Request(self.prompt, self.max_new_tokens, self.sampling, frozenset({EOS}), seed, "law", repetition)


def draft(vocab_size: int, target_size: int | None = None, seed: int = 2) -> DraftModel:
    return DraftModel(one_layer_model(seed, vocab_size), vocab_size=target_size)


def adversary(vocab_size: int) -> DraftModel:
    """Prefers what the target would least say."""
    return DraftModel(one_layer_model(TARGET_SEED[vocab_size], vocab_size, head_scale=-8.0))


def ngram(vocab_size: int) -> NGramLookup:
    return NGramLookup(vocab_size, torch.device("cpu"))


REPETITIVE = (1, 2, 3, 2, 1, 3, 1, 2)

SETTINGS: dict[str, Setting] = {
    "K=1": Setting(5, 1, 4, Sampling(1.0), lambda: draft(5)),
    "K=2, cool": Setting(4, 2, 4, Sampling(0.7), lambda: draft(4)),
    "K=3, hot": Setting(4, 3, 6, Sampling(1.5), lambda: draft(4), compared=4),
    "K=5": Setting(4, 5, 8, Sampling(1.0), lambda: draft(4), compared=4),
    "top-k": Setting(6, 2, 4, Sampling(1.0, top_k=3), lambda: draft(6)),
    "top-p": Setting(6, 2, 4, Sampling(1.5, top_p=0.8), lambda: draft(6)),
    "adversarial draft": Setting(4, 2, 4, Sampling(0.7), lambda: adversary(4)),
    "n-gram": Setting(4, 3, 5, Sampling(1.0), lambda: ngram(4), prompt=REPETITIVE, compared=4),
    "draft with more rows": Setting(4, 2, 4, Sampling(1.0), lambda: draft(7, 4)),
    "draft with fewer rows": Setting(5, 2, 4, Sampling(1.0), lambda: draft(3, 5)),
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


def enumerated(
    decoder: Decoder, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[Sequence, float], list[Generation]]:
    """The exact law of what ``decoder`` generates, and the generation of each path."""
    forks, generations = Forks(), []
    law: dict[Sequence, float] = {}
    with monkeypatch.context() as patch:
        for module in (judge, drafters, autoregressive):
            patch.setattr(module, "draw", forks.draw)
        patch.setattr(judge, "count_accepted", forks.count)
        for _ in forks.paths():
            generation = generate(decoder, setting.request())
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
}


@pytest.mark.parametrize("setting", WALKED.values(), ids=WALKED.keys())
def test_every_path_adds_up_to_the_targets_law(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    law, generations = enumerated(setting.decoder, setting, monkeypatch)
    assert all(totals(generations))
    assert sum(law.values()) == pytest.approx(1, abs=1e-10)
    assert worst_error(law, law_of(setting)) < 1e-10


def test_every_path_of_autoregression(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = WALKED["top-k"]
    law, generations = enumerated(AutoregressiveDecoder(setting.target), setting, monkeypatch)
    assert worst_error(law, law_of(setting)) < 1e-12
    assert len(generations) == len(law) and totals(generations) == (0, 0, 0)


# --- in draws


def counts_of(decoder: Decoder, setting: Setting, law: dict[Sequence, float]) -> tuple[np.ndarray, list[Generation]]:
    generations = [generate(decoder, setting.request(r % 3, r)) for r in range(setting.draws)]
    seen = Counter(generation.tokens[: setting.compared] for generation in generations)
    assert seen.keys() <= law.keys(), "an impossible text"
    return np.array([seen[tokens] for tokens in law]), generations


SHARE = ALPHA / (len(SETTINGS) + 2)


def assert_law(counts: np.ndarray, law: dict[Sequence, float]) -> None:
    probability = np.array(list(law.values()))
    assert chi_square_p(counts, probability) > SHARE
    assert total_variation(counts, probability) < total_variation_bound(probability, int(counts.sum()), SHARE)


@pytest.mark.parametrize("name", SETTINGS)
def test_generations_follow_the_targets_law(name: str) -> None:
    setting = SETTINGS[name]
    law = law_of(setting)
    counts, generations = counts_of(setting.decoder, setting, law)
    drafted, accepted, rejected = totals(generations)
    assert drafted and accepted and rejected
    if name == "adversarial draft":
        assert accepted / drafted < 0.1
    assert_law(counts, law)


def test_a_draft_that_is_the_target_is_always_accepted() -> None:
    law = law_of(PERFECT)
    counts, generations = counts_of(PERFECT.decoder, PERFECT, law)
    rounds = [round for generation in generations for round in generation.rounds]
    assert all(round.num_accepted == len(round.draft_tokens) for round in rounds)
    alphas = [alpha for round in rounds for alpha in round.alpha or ()]
    assert len(alphas) > PERFECT.draws and min(alphas) > 1 - 1e-12
    assert_law(counts, law)


def test_autoregression_follows_the_targets_law() -> None:
    setting = SETTINGS["top-p"]
    law = law_of(setting)
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


@pytest.mark.parametrize(
    "break_it", [_resamples_from_the_target, _reports_another_law, _forgets_a_token_when_rolling_back]
)
def test_paths_find_broken_decoders(
    break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = WALKED["K=2"]
    break_it(monkeypatch)
    law, _ = enumerated(setting.decoder, setting, monkeypatch)
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


def test_the_first_token_does_not_depend_on_the_draft() -> None:
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
