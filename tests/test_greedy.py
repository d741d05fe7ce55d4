"""Greedy decoding is the target's own, whatever is drafted: token for token, and round for round as Hugging Face's."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from specprof.data.prompts import builtin, encode
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import Drafter, DraftModel, LayerSkip, NGramLookup, RandomTokens
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.decoding.string_match import StringMatch
from specprof.decoding.translation import TokenIntersection
from specprof.decoding.vocabulary import compare_vocabularies
from specprof.models.loader import load_model, quiet_transformers
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.metrics import GenerationResult
from tiny_models import FAMILIES

NEW_TOKENS = 24
NO_STOP: frozenset[int] = frozenset()
TARGETS = ("gpt2", "llama", "phi3", "mistral", "gpt_neox")
DRAFTERS = ("unrelated", "equal", "perturbed", "ngram")
EXACT = [torch.float64, torch.float32]
LOW = [torch.bfloat16, torch.float16]
LENGTHS = [(1, 2, 5), pytest.param((3, 4, 6, 7, 8), marks=pytest.mark.slow)]
VOCAB = {torch.float64: 61, torch.float32: 61, torch.bfloat16: 2048, torch.float16: 2048}
"""Few tokens, so that unrelated models sometimes agree; many, so that two of them are sometimes as good as equal."""

torch.set_num_threads(1)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


PROMPTS = (
    tuple(random.Random(0).choices(range(61), k=7)),
    (3, 4, 5, 6) * 4,  # longer than Mistral's and Phi-3's window of 8, and it repeats itself
)


@functools.cache
def model(family: str, dtype: torch.dtype, seed: int = 0) -> Any:
    model = copy.deepcopy(FAMILIES[family](seed=seed, vocab_size=VOCAB[dtype])).to(dtype)
    model.generation_config.eos_token_id = None
    # Or Hugging Face would hide every token of that id in a prompt from attention.
    model.generation_config.pad_token_id = None
    return model


@functools.cache
def perturbed(family: str, dtype: torch.dtype) -> Any:
    """The same model with noise on every matrix: it is often right and often wrong."""
    noisy = copy.deepcopy(model(family, dtype))
    generator = torch.Generator().manual_seed(3)
    for parameter in noisy.parameters():
        if parameter.dim() == 2:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((0.05 * parameter.double().std() * noise).to(dtype))
    return noisy


@functools.cache
def wrapper(family: str, dtype: torch.dtype, which: str = "target") -> ModelWrapper:
    sources: dict[str, Callable[[], Any]] = {
        "target": lambda: copy.deepcopy(model(family, dtype)),
        "unrelated": lambda: copy.deepcopy(model(family, dtype, seed=9)),
        "perturbed": lambda: copy.deepcopy(perturbed(family, dtype)),
    }
    return ModelWrapper(sources[which]())


def drafter(kind: str, family: str, dtype: torch.dtype) -> Drafter:
    target = wrapper(family, dtype)
    if kind == "ngram":
        return NGramLookup(VOCAB[dtype], target.device)
    if kind == "random":
        return RandomTokens(VOCAB[dtype], target.device)
    if kind == "layerskip":
        return LayerSkip(target, 1)
    return DraftModel(target if kind == "equal" else wrapper(family, dtype, kind))


@functools.cache
def autoregressive(family: str, dtype: torch.dtype, prompt: tuple[int, ...]) -> list[int]:
    decoder = AutoregressiveDecoder(wrapper(family, dtype))
    return decoder.generate(prompt, NEW_TOKENS, stop_ids=NO_STOP).generated_ids


def speculative(kind: str, family: str, dtype: torch.dtype, prompt: tuple[int, ...], k: int) -> GenerationResult:
    decoder = SpeculativeDecoder(wrapper(family, dtype), drafter(kind, family, dtype), k)
    return decoder.generate(prompt, NEW_TOKENS, stop_ids=NO_STOP)


def drafted_and_accepted(results: Sequence[GenerationResult]) -> tuple[int, int]:
    rounds = [round for result in results for round in result.rounds]
    return sum(len(round.draft_tokens) for round in rounds), sum(round.num_accepted for round in rounds)


# --- exact


@pytest.mark.parametrize("prompt", PROMPTS, ids=["random", "repeating"])
@pytest.mark.parametrize("dtype", EXACT, ids=name_of)
@pytest.mark.parametrize("family", TARGETS)
def test_autoregressive_is_hugging_faces_generate(family: str, dtype: torch.dtype, prompt: tuple[int, ...]) -> None:
    with quiet_transformers(), torch.inference_mode():
        expected = model(family, dtype).generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
    assert autoregressive(family, dtype, prompt) == expected[0, len(prompt) :].tolist()
    assert len(set(autoregressive(family, dtype, prompt))) > 2  # a text, not one token for ever


@pytest.mark.parametrize("ks", LENGTHS, ids=str)
@pytest.mark.parametrize("kind", DRAFTERS)
@pytest.mark.parametrize("dtype", EXACT, ids=name_of)
@pytest.mark.parametrize("family", TARGETS)
def test_speculative_is_autoregressive(family: str, dtype: torch.dtype, kind: str, ks: tuple[int, ...]) -> None:
    results = []
    for prompt in PROMPTS:
        for k in ks:
            result = speculative(kind, family, dtype, prompt, k)
            assert result.generated_ids == autoregressive(family, dtype, prompt), f"k={k}"
            results.append(result)
    drafted, accepted = drafted_and_accepted(results)
    rejected = drafted - accepted
    if kind == "equal":
        assert drafted == accepted > 0
    elif kind == "unrelated":
        assert rejected > 0.8 * drafted > 0
    else:
        assert drafted > 0 and accepted > 0 and rejected > 0


@pytest.mark.parametrize("ks", LENGTHS, ids=str)
@pytest.mark.parametrize("dtype", EXACT, ids=name_of)
@pytest.mark.parametrize("family", [family for family in TARGETS if family != "gpt_neox"])
def test_layer_skip_is_autoregressive(family: str, dtype: torch.dtype, ks: tuple[int, ...]) -> None:
    """The cache that drafts is the one that verifies, and the draft's hidden states are its first layer's work."""
    results = []
    for prompt in PROMPTS:
        for k in ks:
            result = speculative("layerskip", family, dtype, prompt, k)
            assert result.generated_ids == autoregressive(family, dtype, prompt), f"k={k}"
            results.append(result)
    drafted, accepted = drafted_and_accepted(results)
    assert 0 < accepted < drafted


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_random_tokens_change_nothing(family: str) -> None:
    results = [speculative("random", family, torch.float64, prompt, k) for prompt in PROMPTS for k in (1, 4)]
    for result, prompt in zip(results, [prompt for prompt in PROMPTS for _ in (1, 4)], strict=True):
        assert result.generated_ids == autoregressive(family, torch.float64, prompt)
    drafted, accepted = drafted_and_accepted(results)
    assert drafted > 100 and accepted < 0.1 * drafted


def test_every_number_of_acceptances_occurred() -> None:
    """The runs above roll back by every distance, from nothing to all K."""
    counts = {
        (len(round.draft_tokens), round.num_accepted)
        for prompt in PROMPTS
        for family in TARGETS
        for round in speculative("perturbed", family, torch.float64, prompt, 4).rounds
    }
    assert {(4, accepted) for accepted in range(5)} <= counts


# --- Hugging Face's assisted generation


@contextmanager
def assisted_rounds() -> Iterator[list[tuple[int, int]]]:
    """(drafted, accepted) of every round of Hugging Face's assisted generation, which reports nothing itself."""
    import transformers

    mixin: Any = transformers.GenerationMixin
    rounds: list[tuple[int, int]] = []
    original = mixin._get_candidate_generator

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        generator = original(self, *args, **kwargs)
        get, update = generator.get_candidates, generator.update_candidate_strategy
        drafted = 0

        def get_candidates(input_ids: Any, **more: Any) -> Any:
            nonlocal drafted
            candidates = get(input_ids, **more)
            drafted = candidates[0].shape[1] - input_ids.shape[1]
            return candidates

        def update_candidate_strategy(input_ids: Any, scores: Any, num_matches: Any) -> Any:
            rounds.append((drafted, int(num_matches)))
            return update(input_ids, scores, num_matches)

        generator.get_candidates, generator.update_candidate_strategy = get_candidates, update_candidate_strategy
        return generator

    mixin._get_candidate_generator = watched
    try:
        yield rounds
    finally:
        mixin._get_candidate_generator = original


@pytest.mark.parametrize("k", [1, 4, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 7))])
@pytest.mark.parametrize("kind", ["unrelated", "equal", "perturbed"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_rounds_are_hugging_faces_assisted_generation(family: str, kind: str, k: int) -> None:
    """Drafted and accepted of every round, with the same k, no confidence threshold and no end of text."""
    dtype, prompt = torch.float64, PROMPTS[0]
    result = speculative(kind, family, dtype, prompt, k)
    ours = [(len(round.draft_tokens), round.num_accepted) for round in result.rounds]

    drafts = {"unrelated": lambda: model(family, dtype, seed=9), "perturbed": lambda: perturbed(family, dtype)}
    draft = copy.deepcopy(drafts.get(kind, lambda: model(family, dtype))())
    draft.generation_config.update(
        num_assistant_tokens=k, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    # Its first round drafts right behind the prompt, ours behind the first token: that is its prompt's last.
    begun = torch.tensor([[*prompt, result.generated_ids[0]]])
    with quiet_transformers(), torch.inference_mode(), assisted_rounds() as theirs:
        text = model(family, dtype).generate(
            begun, assistant_model=draft, max_new_tokens=NEW_TOKENS - 1, do_sample=False
        )
    assert text[0, len(prompt) :].tolist() == result.generated_ids
    assert ours == theirs
    assert len(ours) > 2


# --- the packaged pair of two vocabularies


HOSTILE = (
    "Ünïcödé is façile: el niño comió piñatas à l'œuvre, straße und Öl.",
    "Привет, мир! Как дела? Καλημέρα κόσμε. 你好,世界。こんにちは世界 한국어 العربية",
    "🙂🙂🚀 flags 🇩🇪🇫🇷, families 👩\u200d👩\u200d👧\u200d👦 and skin 👍🏽👍🏿 and ❤\ufe0f",
    "e\u0301e\u0301 combining a\u0308\u0323 marks z\u0335\u0336",
    "def f(x):\n\tif x:\n\t\tfor y in x:\n\t\t\tyield y\n\t\telse:\n\t    return",
    "class A:\n    def b(self):\n        if self.c:\n            while True:\n                try:",
    "3.14159265358979 1234567890 0000 1,000,000 0xDEADBEEF 2024-01-31T12:59:59Z 1e-10",
    "a" + " " * 37 + "b" + " " * 12 + "c  d   e    f",
    "one\n\n\n\n\n\ntwo\n\n\n\n\n\n\n\n\n\n\nthree\r\nfour\r\n\r\nfive",
    "   leading spaces, \t tabs \t\t\t and control \x00\x01\x1b characters \ufeff\u2028",
    "<s> </s> <unk> <0x0A> [INST] <|endoftext|> are only words here, ▁ too",
    "x",
)


@functools.cache
def crossed() -> tuple[ModelWrapper, ModelWrapper]:
    target, draft = (
        ModelWrapper(*load_model(name, "fp32", "cpu"), name=name) for name in ("tiny_dev/target", "tiny_cross/draft")
    )
    return target, draft


@functools.cache
def crossed_texts(source: str) -> list[tuple[list[int], list[int]]]:
    """Prompts, and how the target goes on."""
    target, _ = crossed()
    if source == "packaged":
        prompts = [encode(prompt, target.tokenizer) for prompt in builtin().take(21)]
    else:
        prompts = [target.tokenizer.encode(text) for text in HOSTILE]
    plain = AutoregressiveDecoder(target)
    return [(prompt, plain.generate(prompt, NEW_TOKENS, stop_ids=NO_STOP).generated_ids) for prompt in prompts]


@pytest.mark.parametrize("source", ["hostile", pytest.param("packaged", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["tli", "slem"])
def test_a_draft_of_another_vocabulary_changes_no_token(method: str, source: str) -> None:
    target, draft = crossed()
    drafter: Drafter
    if method == "tli":
        verdict = compare_vocabularies(draft.tokenizer, target.tokenizer, draft.vocab_size, target.vocab_size)
        drafter = DraftModel(draft, TokenIntersection(verdict, draft.tokenizer, target.tokenizer, draft.device))
    else:
        drafter = StringMatch(draft, target.tokenizer, target.vocab_size)
    decoder, results = SpeculativeDecoder(target, drafter, 4), []
    for prompt, expected in crossed_texts(source):
        results.append(decoder.generate(prompt, NEW_TOKENS, stop_ids=NO_STOP))
        assert results[-1].generated_ids == expected
    drafted, accepted = drafted_and_accepted(results)
    # By chance one draft in thousands would be accepted, and how many more are depends on how good the draft is.
    assert len(results) >= 12 and 0.02 * drafted < accepted < drafted


# --- 16-bit types


@torch.inference_mode()
def logits_at(target: ModelWrapper, prompt: Sequence[int], text: Sequence[int], width: int, row: int) -> Tensor:
    """The target's logits ``[vocab]`` after ``prompt + text``, fed ``width`` tokens at a time behind the prompt.

    The last of ``text`` is in ``row`` of the last pass. What follows it there is padding, which it can't see.
    """
    cache = target.new_cache(len(prompt) + len(text) + width)
    target.extend(torch.tensor(prompt), cache)
    last = len(text) - 1 - row
    for begin in range(0, last, width):
        target.extend(torch.tensor(text[begin : min(begin + width, last)]), cache)
    window = [*text[last:], *[0] * (width - 1 - row)]
    return target.extend(torch.tensor(window), cache, width)[row].double()


def tie(target: ModelWrapper, prompt: Sequence[int], text: Sequence[int], width: int) -> tuple[float, float]:
    """Margin between the two best tokens after ``text``, one token at a time, and how far wider passes move a logit."""
    narrow = logits_at(target, prompt, text, 1, 0)
    wide = [logits_at(target, prompt, text, width, row) for row in range(min(width, len(text)))]
    best, second = narrow.topk(2).values.tolist()
    # Logits that differ at all differ by one rounding step.
    step = torch.finfo(target.dtype).eps * abs(best)
    return best - second, max(step, *(float((logits - narrow).abs().max()) for logits in wide))


def first_divergence(left: Sequence[int], right: Sequence[int]) -> int | None:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b), None)


@pytest.mark.parametrize("dtype", LOW, ids=name_of)
@pytest.mark.parametrize("family", TARGETS)
def test_low_precision_diverges_at_ties_only(family: str, dtype: torch.dtype) -> None:
    """Passes of different width round differently; a token may change where two were as good as equal, and only there.

    The logits are computed anew, over fresh caches: a divergence that comes from a wrong cache has a wide margin there.
    """
    target = wrapper(family, dtype)
    results = []
    for seed in range(6):
        prompt = tuple(random.Random(seed).choices(range(61), k=7))
        plain = autoregressive(family, dtype, prompt)
        result = speculative("perturbed", family, dtype, prompt, 5)
        results.append(result)
        position = first_divergence(plain, result.generated_ids)
        if position is not None:
            assert position > 0  # both chose the first token from the same prefill
            margin, difference = tie(target, prompt, plain[:position], 6)
            assert margin <= 2 * difference, f"prompt {seed}, token {position}"
    drafted, accepted = drafted_and_accepted(results)
    assert 0 < accepted < drafted


@pytest.mark.parametrize("dtype", LOW, ids=name_of)
@pytest.mark.parametrize("family", TARGETS)
def test_most_positions_are_no_ties(family: str, dtype: torch.dtype) -> None:
    """The rule above means something: at most positions it would not excuse another token."""
    target = wrapper(family, dtype)
    text = autoregressive(family, dtype, PROMPTS[0])
    ties = [tie(target, PROMPTS[0], text[:position], 5) for position in range(1, NEW_TOKENS, 3)]
    assert sum(margin <= 2 * difference for margin, difference in ties) < 0.5 * len(ties)
    assert all(0 <= difference < 0.3 for _, difference in ties)
