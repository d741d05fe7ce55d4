"""The forward pass in C: PyTorch's numbers, the same bits however a sequence is cut, a way out where it can't run."""

from __future__ import annotations

import copy
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import DraftModel
from specprof.decoding.request import Request
from specprof.decoding.sampling import Sampling
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.errors import CorrectnessError, UsageError
from specprof.models.kv_cache import KVCache
from specprof.models.loader import load_model
from specprof.models.native import forward as native
from specprof.models.native import library as compiled
from specprof.models.native.forward import NativeForward
from specprof.models.native.library import Library
from specprof.models.transformer import EarlyStates, OwnForward, own_forward
from specprof.models.wrapper import ModelWrapper
from terminal import is_running, until
from tiny_models import (
    random_model,
    tiny_gpt2,
    tiny_llama,
    tiny_llama3_rope,
    tiny_mistral,
    tiny_phi3,
    tiny_qwen2,
    tiny_qwen3,
)

VOCAB = 61
"""Not a multiple of any number of lanes."""
WIDTHS = range(1, 17)
SOURCE = resources.files("specprof.models.native").joinpath("forward.c").read_text(encoding="utf-8")

torch.set_num_threads(1)


def changed(model: Any, **values: Any) -> Any:
    """A random model of the same class in sizes that C can run."""

    gpt2 = model.config.model_type == "gpt2"
    sizes = {"n_embd": 64} if gpt2 else {"hidden_size": 64, "intermediate_size": 80, "head_dim": 16}
    config = type(model.config).from_dict({**model.config.to_dict(), "vocab_size": VOCAB, **sizes, **values})
    return random_model(config)


def mixed_layers(model: Any) -> Any:
    """Layers that see everything and layers that see the last 8 tokens, in turn."""
    layers = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    return changed(model, use_sliding_window=True, sliding_window=8, num_hidden_layers=4, layer_types=layers)


MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: changed(tiny_gpt2()),
    "gpt2_untied": lambda: changed(tiny_gpt2(), tie_word_embeddings=False),
    "llama": lambda: changed(tiny_llama()),
    "llama_biases": lambda: changed(tiny_llama(), attention_bias=True, mlp_bias=True),
    "llama_32": lambda: changed(tiny_llama3_rope(), head_dim=32),
    "llama_64": lambda: changed(tiny_llama(), head_dim=64, num_key_value_heads=1),
    "llama_96": lambda: changed(tiny_llama(), head_dim=96, num_key_value_heads=4),
    "llama_128": lambda: changed(tiny_llama(), head_dim=128),
    "mistral": lambda: changed(tiny_mistral()),
    "mistral_window_23": lambda: changed(tiny_mistral(), sliding_window=23),
    "qwen2": lambda: changed(tiny_qwen2()),
    "qwen2_mixed_layers": lambda: mixed_layers(tiny_qwen2()),
    "qwen3_48": lambda: changed(tiny_qwen3(), head_dim=48),
    "phi3": lambda: changed(tiny_phi3()),
}
EVERY = pytest.mark.parametrize("name", MODELS)
OWN: dict[str, OwnForward] = {}


def own(name: str) -> Any:
    """The forward in PyTorch, built once."""
    if name not in OWN:
        OWN[name] = own_forward(MODELS[name](), measure_linear=False)
    return OWN[name]


@pytest.fixture(scope="module")
def found() -> Library:
    """What this machine's compiler makes."""
    library = compiled.library()
    if isinstance(library, str):
        pytest.skip(library)
    return library


def in_c(forward: Any, found: Library, threads: int = 1) -> NativeForward:
    model = NativeForward(forward, found)
    model._threads = dict.fromkeys(WIDTHS, threads)  # nothing to measure
    return model


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits_of(forward: OwnForward, ids: Tensor, widths: Sequence[int], capacity: int | None = None) -> Tensor:
    """After every token, taken in so many at a time."""
    cache = KVCache(forward.new_slab(capacity or len(ids)))
    parts = [forward(part, cache, len(part)) for part in ids.split(list(widths))]
    assert cache.length == len(ids)
    return torch.cat(parts)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-4 * float(expected.abs().max()), rtol=0)


def same(found: Tensor, expected: Tensor) -> None:
    """Bit by bit."""
    assert torch.equal(found.contiguous().view(torch.int32), expected.contiguous().view(torch.int32))


# --- PyTorch's numbers


def check_agreement(name: str, found: Library) -> None:
    ids = tokens(sum(WIDTHS) + 9)
    expected = logits_of(own(name), ids, [len(ids)])
    assert expected.std(-1).min() > 0.1  # nothing that any forward would give
    forward = in_c(own(name), found)
    close(logits_of(forward, ids, [*WIDTHS, 9]), expected)
    close(logits_of(forward, ids, [9, *reversed(WIDTHS)]), expected)


@EVERY
def test_every_width_on_top_of_every_context(name: str, found: Library) -> None:
    check_agreement(name, found)


@torch.inference_mode()
@EVERY
@pytest.mark.parametrize("context", [0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 90])
def test_after_a_prefill_by_pytorch(name: str, context: int, found: Library) -> None:
    """On entries that PyTorch wrote, to the last entry of the slab, and rolled back in between."""
    forward = in_c(own(name), found)
    ids = tokens(context + 16, seed=context)
    expected = logits_of(own(name), ids, [len(ids)])
    for width in (1, 2, 5, 9, 16):
        cache = KVCache(forward.new_slab(context + width))
        if context:
            own(name)(ids[:context], cache, 1)
        for _ in range(2):
            close(forward(ids[context : context + width], cache, width), expected[context : context + width])
            assert cache.length == cache.capacity
            cache.truncate(context)
        # Its own entries serve PyTorch.
        close(own(name)(ids[context : context + width], cache, width), expected[context : context + width])


@torch.inference_mode()
@pytest.mark.parametrize("width", [17, 32, 41])
def test_prompts_are_taken_in_pieces(width: int, found: Library) -> None:
    forward, ids = in_c(own("llama"), found), tokens(width)
    expected = logits_of(forward, ids, [1] * width)
    same(logits_of(forward, ids, [width]), expected)
    for num_logits in (1, 9, 10, width - 1, width):
        cache = KVCache(forward.new_slab(width))
        same(forward(ids, cache, num_logits), expected[-num_logits:])
        assert cache.length == width


def test_two_threads_may_share_a_model(found: Library) -> None:
    forward, ids = in_c(own("llama"), found), [tokens(12, seed) for seed in range(2)]
    expected = [logits_of(forward, each, [12]) for each in ids]

    def wrong(which: int) -> int:
        return sum(not torch.equal(logits_of(forward, ids[which], [12]), expected[which]) for _ in range(100))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(wrong, range(2))) == [0, 0]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_weights_are_no_disagreement(broken: float, found: Library) -> None:
    """They are found out when the model is checked, by whose numbers they are."""
    model = copy.deepcopy(MODELS["llama"]())
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = broken
    assert in_c(own_forward(model), found).agrees()
    with pytest.raises(CorrectnessError, match="computes no numbers"):
        ModelWrapper(model).check_numbers()


@torch.inference_mode()
def test_long_prompts_are_pytorchs(found: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_LONGEST", 20)
    ids, forward = tokens(21), in_c(own("llama"), found)
    same(logits_of(forward, ids, [21]), logits_of(own("llama"), ids, [21]))
    with pytest.raises(AssertionError):
        same(logits_of(forward, ids, [20, 1]), logits_of(own("llama"), ids, [20, 1]))


@torch.inference_mode()
@pytest.mark.parametrize("num_logits", [1, 2, 5])
def test_the_last_logits_alone(num_logits: int, found: Library) -> None:
    forward, ids = in_c(own("gpt2"), found), tokens(5)
    same(forward(ids, KVCache(forward.new_slab(5)), num_logits), logits_of(forward, ids, [5])[-num_logits:])


@torch.inference_mode()
def test_tokens_of_other_types_and_layouts(found: Library) -> None:
    forward, ids = in_c(own("llama"), found), tokens(6)
    expected = logits_of(forward, ids, [6])
    same(logits_of(forward, ids.int(), [6]), expected)
    columns = torch.stack((ids, ids + 1), 1)
    same(logits_of(forward, columns[:, 0], [6]), expected)


# --- the same bits


LENGTH = 50
ALONE: dict[tuple[str, int], Tensor] = {}


def alone(name: str, found: Library) -> Tensor:
    """Logits of tokens that were taken in one by one."""
    key = (name, found.lanes)
    if key not in ALONE:
        ALONE[key] = logits_of(in_c(own(name), found), tokens(LENGTH), [1] * LENGTH)
    return ALONE[key]


@st.composite
def splits(draw: st.DrawFn) -> list[int]:
    """Widths of the passes that take a sequence in."""
    widths: list[int] = []
    while (left := LENGTH - sum(widths)) > 0:
        widths.append(draw(st.integers(1, min(16, left))))
    return widths


@settings(max_examples=60)
@given(st.sampled_from(list(MODELS)), splits(), st.sampled_from([1, 2, 3]), st.integers(0, 40))
def test_a_tokens_logits_are_the_same_in_any_pass(name: str, widths: list[int], threads: int, spare: int) -> None:
    library = compiled.library()
    if isinstance(library, str):
        pytest.skip(library)
    forward = in_c(own(name), library, threads)
    same(logits_of(forward, tokens(LENGTH), widths, LENGTH + spare), alone(name, library))


@torch.inference_mode()
@EVERY
def test_what_follows_a_token_changes_nothing(name: str, found: Library) -> None:
    """Drafted tokens that are rejected leave no trace."""
    forward, ids = in_c(own(name), found), tokens(LENGTH)
    cache = KVCache(forward.new_slab(LENGTH + 16))
    for start in range(0, LENGTH - 5, 5):
        forward(torch.cat((ids[start : start + 2], tokens(9, seed=start + 1))), cache, 1)
        cache.truncate(start + 2)
        same(forward(ids[start + 2 : start + 5], cache, 3), alone(name, found)[start + 2 : start + 5])


@torch.inference_mode()
@EVERY
def test_a_pass_that_is_left_early_and_resumed(name: str, found: Library) -> None:
    forward, ids = in_c(own(name), found), tokens(LENGTH)
    for start, known, width in ((0, 1, 2), (7, 3, 4), (20, 4, 12), (0, 15, 16)):
        cache = KVCache(forward.new_slab(LENGTH))
        if start:
            logits_ = [forward(part, cache, len(part)) for part in ids[:start].split(16)]
            same(torch.cat(logits_), alone(name, found)[:start])
        states = []
        for t in range(start, start + known):
            logits, hidden = forward.early(ids[t : t + 1], cache, 1)
            assert logits.shape == (1, VOCAB)
            states.append(hidden)
        cache.length = start
        early = EarlyStates(1, torch.cat(states))
        same(forward(ids[start : start + width], cache, width, early), alone(name, found)[start : start + width])
        assert cache.length == start + width


@torch.inference_mode()
def test_logits_of_the_first_layers_are_pytorchs(found: Library) -> None:
    forward, ids = in_c(own("qwen3_48"), found), tokens(9)
    (ours, hidden), (theirs, expected) = (f.early(ids, KVCache(f.new_slab(9)), 1) for f in (forward, own("qwen3_48")))
    close(ours, theirs)
    close(hidden, expected)


# --- greedy choices


@torch.inference_mode()
@EVERY
@pytest.mark.parametrize("width", [1, 2, 5, 16])
def test_greedy_is_argmax_step_by_step(name: str, width: int, found: Library) -> None:
    for threads in (1, 2):
        forward = in_c(own(name), found, threads)
        ids, context, steps = tokens(7 + width, seed=width), 7, 9
        texts, caches = [], []
        for step_by_step in (True, False):
            cache = KVCache(forward.new_slab(context + width + steps - 1))  # to its last entry
            forward(ids[:context], cache, 1)
            choose = OwnForward.greedy if step_by_step else NativeForward.greedy
            chosen, scores = choose(forward, ids[context:], cache, steps)
            texts.append((chosen.tolist(), scores.tolist()))
            caches.append(cache)
        assert texts[0] == texts[1]
        assert caches[0].length == caches[1].length == caches[0].capacity
        stacked = [cache.slab.stacked for cache in caches]
        assert stacked[0] is not None and stacked[1] is not None
        same(stacked[0], stacked[1])


@torch.inference_mode()
def test_greedy_to_gpt2s_last_position(found: Library) -> None:
    forward = in_c(own("gpt2"), found)
    context = own("gpt2").positions.shape[0]
    ids = tokens(context - 8)
    cache = KVCache(forward.new_slab(context))
    forward(ids, cache, 1)
    again = KVCache(cache.slab, cache.length)
    chosen, scores = forward.greedy(tokens(2), cache, 7)
    assert cache.length == context
    expected = OwnForward.greedy(forward, tokens(2), again, 7)
    assert torch.equal(chosen, expected[0]) and torch.equal(scores, expected[1])


@torch.inference_mode()
@pytest.mark.parametrize("equal", [(0, 1), (17, 60), (3, 20, 33), (59, 60)])
def test_the_first_of_equal_logits(equal: tuple[int, ...], found: Library) -> None:
    model = MODELS["llama"]()
    model.lm_head.weight[list(equal)] = 5 * model.lm_head.weight[equal[-1]]
    forward = in_c(own_forward(model), found)
    seen = set()
    for seed in range(40):
        cache = KVCache(forward.new_slab(8))
        logits = forward(tokens(3, seed), cache, 1)
        assert len(set(logits[0, list(equal)].tolist())) == 1
        cache.truncate(0)
        seen.add(int(forward.greedy(tokens(3, seed), cache, 1)[0]))
        chosen, score = forward.greedy(tokens(3, seed), KVCache(forward.new_slab(8)), 1)
        assert int(chosen) == int(logits.argmax()) and score.equal(logits.max().view(1))
    assert equal[0] in seen and not seen & set(equal[1:])


# --- sampled choices


def step_by_step(
    forward: NativeForward, ids: Tensor, cache: KVCache, temperature: float, shares: Tensor
) -> tuple[list[int], Tensor]:
    """Tokens and laws as PyTorch's operations make them of the logits of C."""
    chosen, laws = [], []
    for share in shares:
        law = (forward(ids, cache, 1)[0] / temperature).softmax(-1)
        passed = law.double().cumsum(0)
        ids = (passed > share * passed[-1]).nonzero()[0]
        chosen.append(int(ids))
        laws.append(law)
    return chosen, torch.stack(laws)


@torch.inference_mode()
@EVERY
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_sampled_is_drawn_step_by_step(name: str, temperature: float, found: Library) -> None:
    for threads, width in ((1, 1), (2, 2), (2, 5)):
        forward = in_c(own(name), found, threads)
        ids, context = tokens(7 + width, seed=width), 7
        shares = torch.rand(9, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
        caches = [KVCache(forward.new_slab(context + width + len(shares) - 1)) for _ in range(2)]
        for cache in caches:
            forward(ids[:context], cache, 1)
        expected, laws = step_by_step(forward, ids[context:], caches[0], temperature, shares)
        chosen, scores, found_laws = forward.with_laws(ids[context:], caches[1], len(shares), temperature, shares)
        assert chosen.tolist() == expected
        torch.testing.assert_close(found_laws, laws, rtol=2e-5, atol=1e-12)
        torch.testing.assert_close(found_laws.sum(-1), torch.ones(len(shares)))
        assert scores.tolist() == found_laws[torch.arange(len(shares)), chosen].tolist()
        assert caches[0].length == caches[1].length == caches[1].capacity


@torch.inference_mode()
def test_sampled_at_the_ends_of_the_scale(found: Library) -> None:
    forward = in_c(own("llama"), found)
    context, shares = tokens(9), torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)

    def sampled(temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        cache = KVCache(forward.new_slab(20))
        forward(context[:-1], cache, 1)
        return forward.with_laws(context[-1:], cache, 3, temperature, shares)

    cache = KVCache(forward.new_slab(20))
    forward(context[:-1], cache, 1)
    greedy, _ = forward.greedy(context[-1:], cache, 3)
    for cold in (1e-3, 1e-30):
        chosen, scores, laws = sampled(cold)
        assert chosen.tolist() == greedy.tolist() and scores.tolist() == [1.0] * 3
        assert ((laws == 0) | (laws == 1)).all()
    for hot in (1e30, 1e300):  # the second one overflows float32
        chosen, _, laws = sampled(hot)
        assert chosen.tolist() == [0, VOCAB // 2, VOCAB - 1]
        torch.testing.assert_close(laws, torch.full((3, VOCAB), 1 / VOCAB))


def test_numbers_to_draw_by_that_c_would_misread(found: Library) -> None:
    forward, good = in_c(own("llama"), found), torch.rand(6, dtype=torch.float64)
    for shares in (good.float()[:3], good[:2], good[::2]):
        with pytest.raises(ValueError, match="3 numbers to draw by"):
            forward.with_laws(tokens(1), KVCache(forward.new_slab(8)), 3, 1.0, shares)


@torch.inference_mode()
def test_a_token_that_is_ruled_out_is_never_drawn(found: Library) -> None:
    """A logit of minus infinity has probability 0 in C as in PyTorch."""
    model = changed(tiny_gpt2(), tie_word_embeddings=False)
    model.lm_head.weight[[0, 30, VOCAB - 1]] = 0
    model.transformer.ln_f.bias[:] = 1
    model.lm_head.weight[[0, VOCAB - 1]] = -1e37
    forward, cache = in_c(own_forward(model), found), KVCache(in_c(own_forward(model), found).new_slab(20))
    logits = forward(tokens(5), cache, 1)
    assert (logits[0, [0, VOCAB - 1]] < -1e30).all()
    shares = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    chosen, _, laws = forward.with_laws(tokens(1), cache, 2, 1.0, shares)
    assert not laws[:, [0, VOCAB - 1]].any() and not set(chosen.tolist()) & {0, VOCAB - 1}


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_draft_is_the_same_in_one_call_and_in_many(
    temperature: float, width: int, pair: tuple[ModelWrapper, ModelWrapper], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = pair
    model.extend(torch.tensor([1]), model.new_cache(1))  # one token at once has been tried
    request = Request(PROMPT, 60, Sampling(temperature), seed=5)
    drafts = []
    for at_once in (True, False):
        if not at_once:
            monkeypatch.setattr(ModelWrapper, "gives_laws", lambda self, width: False)
        calls = called(monkeypatch, NativeForward, "with_laws")
        drafter = DraftModel(model)
        drafter.start(request, detail=True)
        rounds = []
        for tail in range(6):
            drafter.observe((40 + tail, 50)[:width])
            rounds.append(drafter.propose(4))
        assert len(calls) == (6 if at_once else 0)
        drafts.append(rounds)
    for once, many in zip(*drafts, strict=True):
        assert once.tokens.tolist() == many.tokens.tolist()
        torch.testing.assert_close(once.probs, many.probs, rtol=2e-5, atol=1e-12)
        torch.testing.assert_close(once.scores, many.scores, rtol=2e-5, atol=1e-12)


def called(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> list[object]:
    """A list that grows with each call of a method."""
    calls: list[object] = []
    method = getattr(kind, name)

    def noted(*values: Any) -> Any:
        calls.append(values)
        return method(*values)

    monkeypatch.setattr(kind, name, noted)
    return calls


@pytest.mark.parametrize(
    ("sampling", "threshold"), [(Sampling(0.9, top_k=5), 0.0), (Sampling(0.9, top_p=0.5), 0.0), (Sampling(0.9), 0.2)]
)
def test_what_is_looked_at_between_steps_is_no_single_call(
    sampling: Sampling,
    threshold: float,
    pair: tuple[ModelWrapper, ModelWrapper],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = called(monkeypatch, NativeForward, "with_laws")
    drafter = DraftModel(pair[1], threshold=threshold)
    drafter.start(Request(PROMPT, 20, sampling), detail=False)
    drafter.observe((3,))
    for _ in range(2):
        assert drafter.propose(3).probs is not None
        drafter.observe((3,))
    assert not calls


# --- decoding


@pytest.fixture(scope="module")
def pair(found: Library) -> tuple[ModelWrapper, ModelWrapper]:
    target, draft = (ModelWrapper(*load_model(f"tiny_dev/{part}", "float32", "cpu")) for part in ("target", "draft"))
    assert (target.forward_name, draft.forward_name) == ("native", "native")
    return target, draft


class Adversary(DraftModel):
    """Proposes what the draft does not, now and then."""

    def propose(self, k: int) -> Any:
        draft = super().propose(k)
        if k and len(self._context) % 3 == 0:
            draft.tokens[k // 2 :] = (draft.tokens[k // 2 :] + 1) % self.model.vocab_size
        return draft


PROMPT = (17, 4, 250, 99, 1000, 31, 7)


@pytest.mark.parametrize("k", range(1, 9))
def test_speculative_text_is_plain_text(k: int, pair: tuple[ModelWrapper, ModelWrapper]) -> None:
    target, draft = pair
    plain = AutoregressiveDecoder(target).generate(PROMPT, 60, stop_ids=frozenset()).generated_ids
    for drafter in (DraftModel(draft), Adversary(draft), DraftModel(target)):
        result = SpeculativeDecoder(target, drafter, k).generate(PROMPT, 60, stop_ids=frozenset())
        assert result.generated_ids == plain


def test_a_seed_gives_a_text(pair: tuple[ModelWrapper, ModelWrapper]) -> None:
    target, draft = pair

    def text(seed: int) -> list[int]:
        request = Request(PROMPT, 40, sampling=Sampling(temperature=0.9), seed=seed)
        events = SpeculativeDecoder(target, DraftModel(draft), 3).events(request)
        return [token for event in events for token in getattr(event, "emitted_tokens", ())]

    assert text(1) == text(1) != text(2)


# --- weights


def rounded(name: str, dtype: torch.dtype) -> Any:
    """As if from a checkpoint in 16 bits."""
    model = copy.deepcopy(MODELS[name]())
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
        if dtype == torch.bfloat16:
            parameter.view(-1)[0] = 2.0**-40  # float16 has no such number
    return model


@pytest.mark.parametrize("name", ["gpt2", "llama_biases", "llama_64", "phi3"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_16_bits_give_the_same_bits(
    name: str, dtype: torch.dtype, found: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = own_forward(rounded(name, dtype))
    short = in_c(forward, found)
    expected = dtype if dtype == torch.bfloat16 or found.reads_float16 else torch.float32
    assert {short._model.layers[0].up.kind, short._model.head.kind} == {native._KINDS[expected]}
    monkeypatch.setattr(native, "narrowest", lambda weight: torch.float32)
    long = in_c(forward, found)
    assert {long._model.layers[0].up.kind, long._model.head.kind} == {0}
    ids = tokens(LENGTH)
    for widths in ([1] * LENGTH, [2, 3, 4, 5, 6, 7, 8, 9, 6]):
        same(logits_of(short, ids, widths), logits_of(long, ids, widths))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, -0.5, 65504.0, 2.0**-24], torch.float16),
        ([1.0, 65536.0], torch.bfloat16),
        ([1.0, 2.0**-25], torch.bfloat16),
        ([1.0, 1 + 2.0**-7], torch.float16),
        ([65536.0, 1 + 2.0**-8], torch.float32),
        ([1.0, 0.1], torch.float32),
        ([1.0, float("nan")], torch.float32),
    ],
)
def test_the_narrowest_type_that_holds_a_weight(values: list[float], expected: torch.dtype) -> None:
    assert native.narrowest(torch.tensor(values)) == expected


@torch.inference_mode()
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_broken_weights_give_no_numbers(name: str, value: float, found: Library) -> None:
    model = MODELS[name]()
    layer = model.transformer.h[0].mlp.c_fc if name == "gpt2" else model.model.layers[0].self_attn.v_proj
    layer.weight[3, 5] = value
    forward = in_c(own_forward(model), found, 2)
    ids = tokens(20)
    assert logits_of(own_forward(model), ids, [20]).isnan().any()
    assert logits_of(forward, ids, [8, 1, 2, 9]).isnan().any()
    cache = KVCache(forward.new_slab(40))
    chosen, scores = forward.greedy(ids[:5], cache, 9)
    assert ((chosen >= 0) & (chosen < VOCAB)).all() and scores.isnan().all()
    again, _ = OwnForward.greedy(forward, ids[:5], KVCache(forward.new_slab(40)), 9)
    assert chosen.tolist() == again.tolist()
    shares = torch.linspace(0, 0.9, 9, dtype=torch.float64)
    chosen, scores, laws = forward.with_laws(ids[:5], KVCache(forward.new_slab(40)), 9, 0.8, shares)
    assert ((chosen >= 0) & (chosen < VOCAB)).all() and scores.isnan().all() and laws.isnan().all()


@torch.inference_mode()
def test_a_key_that_is_no_number_is_not_overlooked(found: Library) -> None:
    forward, ids = in_c(own("llama"), found), tokens(20)
    cache = KVCache(forward.new_slab(20))
    forward(ids[:16], cache, 1)
    assert cache.slab.stacked is not None
    cache.slab.stacked[0, 0, :, 3] = float("nan")
    assert forward(ids[16:], cache, 4).isnan().all()


# --- what is out of bounds


@torch.inference_mode()
@pytest.mark.parametrize("bad", [-1, VOCAB, 2**40, -(2**62)])
def test_unknown_tokens_are_refused(bad: int, found: Library) -> None:
    forward = in_c(own("llama"), found)
    cache = KVCache(forward.new_slab(8))
    ids = torch.tensor([1, bad, 2])
    calls: list[Callable[[], object]] = [lambda: forward(ids, cache, 1), lambda: forward.greedy(ids, cache, 2)]
    for call in calls:
        with pytest.raises(IndexError, match=f"not in the vocabulary of {VOCAB}"):
            call()
        assert cache.length == 0
    assert cache.slab.stacked is not None and not cache.slab.stacked.any()


@torch.inference_mode()
@pytest.mark.parametrize(("name", "capacity"), [("llama", 8), ("gpt2", 300)])
def test_nothing_is_written_behind_the_slab_or_read_behind_the_positions(
    name: str, capacity: int, found: Library
) -> None:
    forward = in_c(own(name), found)
    end = min(capacity, 256)  # GPT-2's positions
    calls: list[Callable[[KVCache], object]] = [
        lambda cache: forward(tokens(3), cache, 1),
        lambda cache: forward.greedy(tokens(1), cache, 3),
    ]
    for call in calls:
        cache = KVCache(forward.new_slab(capacity), end - 2)
        with pytest.raises(IndexError, match="don't fit"):
            call(cache)
        assert cache.length == end - 2
        cache.truncate(end - 3)
        call(cache)
        assert cache.length == end


def test_the_wrapper_says_what_does_not_fit(pair: tuple[ModelWrapper, ModelWrapper]) -> None:
    cache = pair[0].new_cache(4)
    with pytest.raises(UsageError, match="don't fit a cache of 4"):
        pair[0].extend_greedily(tokens(2), cache, 4)
    assert [len(each) for each in pair[0].extend_greedily(tokens(2), cache, 3)] == [3, 3]


# --- models that are not for C


def test_models_it_cannot_run_say_why(found: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(model: Any) -> str:
        wrapper = ModelWrapper(model)
        assert wrapper.forward_name == "own"
        assert wrapper.why_not_native is not None
        with pytest.raises(UsageError) as caught:
            ModelWrapper(model, forward="native")
        assert wrapper.why_not_native in caught.value.message and "--forward auto" in caught.value.hint
        return wrapper.why_not_native

    assert reason(copy.deepcopy(MODELS["llama"]()).bfloat16()) == "it computes in float32, and the weights are bfloat16"
    assert reason(copy.deepcopy(MODELS["llama"]()).double()) == "it computes in float32, and the weights are float64"
    assert reason(changed(tiny_llama(), num_hidden_layers=0)) == "it has no layers"
    odd = changed(tiny_llama(), head_dim=10)
    assert reason(odd) == f"the head size 10 is not a multiple of {found.lanes}"
    assert "the intermediate size 50" in reason(changed(tiny_llama(), intermediate_size=50))
    assert "the hidden size 36" in reason(changed(tiny_llama(), hidden_size=36 if found.lanes > 4 else 34))
    nothing_left = type("Memory", (), {"available": 1000})
    monkeypatch.setattr("psutil.virtual_memory", nothing_left)
    assert "not enough memory" in reason(MODELS["llama"]())


# --- other processors and compilers


def compile_(source: str, made: Path, *flags: str, compiler: str | None = None) -> Library:
    code = made.with_suffix(".c")
    code.write_text(source, encoding="utf-8")
    which = (compiler,) if compiler else compiled._compiler()
    assert which is not None
    command = (*which, *compiled._FLAGS, *flags, "-Wno-unknown-pragmas", "-o", str(made), str(code), "-lm")
    subprocess.run(command, check=True, capture_output=True, timeout=100)
    return compiled._load(made)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86-64")
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize(
    ("flags", "lanes"), [(("-march=x86-64",), 4), (("-mavx",), 8), (("-mavx2", "-mfma", "-mf16c"), 8)]
)
def test_other_instruction_sets(compiler: str, flags: tuple[str, ...], lanes: int, tmp_path: Path) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler}")
    if not set(compiled._instruction_sets().split()) >= {flag.removeprefix("-m") for flag in flags} - {"arch=x86-64"}:
        pytest.skip("this processor can't run it")
    library = compile_(SOURCE, tmp_path / "other.so", *flags, "-Wall", "-Wextra", "-Werror", compiler=compiler)
    assert (library.lanes, library.reads_float16) == (lanes, "-mf16c" in flags)
    for name in MODELS:
        check_agreement(name, library)
        forward = in_c(own(name), library)
        expected = logits_of(forward, tokens(LENGTH), [1] * LENGTH)
        for widths in ([16, 16, 16, 2], [2, 3, 4, 5, 6, 7, 8, 9, 6], [9, 1, 15, 1, 14, 10]):
            same(logits_of(forward, tokens(LENGTH), widths), expected)
        half = in_c(own_forward(rounded(name, torch.float16)), library)
        same(logits_of(half, tokens(9), [9]), logits_of(half, tokens(9), [4, 5]))


# --- ways out


@pytest.fixture
def on_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Library | str]:
    """The library as a new process meets it, with a cache of its own."""
    monkeypatch.delenv("SPECPROF_NATIVE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    fresh = compiled.library.__wrapped__
    monkeypatch.setattr(native, "library", fresh)
    return fresh


COMPILER = """#!/bin/sh
for last; do :; done
if [ "$last" = --version ]; then echo toy 1; exit; fi
echo made >> {log}
{first}
while [ $# -gt 0 ]; do
    if [ "$1" = -o ]; then cp {code} "$2"; fi
    shift
done
"""


class Compiler:
    """Somebody's compiler: a script, which copies what was compiled before."""

    def __init__(self, folder: Path, code: Path | None, first: str = "") -> None:
        self.script, self.log = folder / "toy-cc", folder / "log"
        self.script.write_text(COMPILER.format(log=self.log, code=code, first=first))
        self.script.chmod(0o755)

    @property
    def times(self) -> int:
        """How often it was called on to compile."""
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture(scope="module")
def code(found: Library, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled library."""
    made = tmp_path_factory.mktemp("code") / "made.so"
    compile_(SOURCE, made, compiled._TUNED, "-O1")
    return made


@pytest.fixture
def compiler(tmp_path: Path, code: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler(tmp_path, code)
    monkeypatch.setenv("CC", str(made.script))
    return made


def falls_back(reason: str) -> None:
    """PyTorch's forward runs, and says why."""
    model = MODELS["llama"]()
    wrapper = ModelWrapper(model)
    assert wrapper.forward_name == "own"
    assert wrapper.why_not_native is not None and reason in wrapper.why_not_native
    assert "\n" not in wrapper.why_not_native
    with pytest.raises(UsageError) as caught:
        ModelWrapper(model, forward="native")
    assert reason in caught.value.message and "--forward auto" in caught.value.hint
    ids = tokens(3)
    close(wrapper.extend(ids, wrapper.new_cache(3), 3), model(input_ids=ids[None]).logits[0])


def leftovers(folder: Path) -> list[str]:
    """Anything that a build puts on a disk."""
    return [str(path) for pattern in ("specprof-*", "**/*.so*", "**/.native*") for path in folder.glob(pattern)]


Fresh = Callable[[], Library | str]


def test_no_compiler(on_first_use: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    falls_back("there is no C compiler")


def test_forbidden(on_first_use: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECPROF_NATIVE", "0")
    falls_back("SPECPROF_NATIVE=0 forbids it")


def test_a_compiler_that_fails(on_first_use: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", shutil.which("false") or "false")
    falls_back("false refused the code: it gave no reason")
    with_reason = Compiler(tmp_path, None, "echo 'forward.c:1: error: no such thing' >&2; exit 1")
    monkeypatch.setenv("CC", str(with_reason.script))
    falls_back("toy-cc refused the code: forward.c:1: error: no such thing")
    assert with_reason.times == 2 * len(compiled._ATTEMPTS)
    makes_nothing = Compiler(tmp_path, None, "exit 0")
    monkeypatch.setenv("CC", str(makes_nothing.script))
    falls_back("the compiled code can't be used")
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"no library at all")
    makes_garbage = Compiler(tmp_path, garbage)
    monkeypatch.setenv("CC", str(makes_garbage.script))
    falls_back("the compiled code can't be used")
    no_program = tmp_path / "no-program"
    no_program.write_text("neither script nor program")
    no_program.chmod(0o755)
    monkeypatch.setenv("CC", str(no_program))
    falls_back("the compiled code can't be used")
    assert not list(tmp_path.glob("specprof-*"))


@pytest.mark.parametrize("when", ["asked for its version", "compiling"])
def test_a_compiler_that_hangs(when: str, on_first_use: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Compiler(tmp_path, None, "sleep 1000 & echo $! > pid; wait")
    if when != "compiling":
        slow.script.write_text("#!/bin/sh\nsleep 1000 & echo $! > pid; wait\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CC", str(slow.script))
    monkeypatch.setattr(compiled, "COMPILE_SECONDS", 0.3)
    assert on_first_use() == f"{slow.script} took more than 0.3 s over it"
    # Not three times, once for each set of flags; and nothing of it runs on.
    assert slow.times == (when == "compiling")
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not is_running(pid), lambda: f"what the compiler started, {pid}, is still there")
    assert not leftovers(tmp_path)


def test_it_is_compiled_once(on_first_use: Fresh, compiler: Compiler, tmp_path: Path) -> None:
    assert isinstance(on_first_use(), Library)
    assert isinstance(on_first_use(), Library)
    assert compiler.times == 1
    (kept,) = (tmp_path / "cache/specprof/native").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o700
    assert len(leftovers(tmp_path)) == 1


def test_a_cache_that_cannot_be_written(
    on_first_use: Fresh, compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    wrapper = ModelWrapper(MODELS["llama"]())
    assert wrapper.forward_name == "native"
    assert wrapper.extend(tokens(3), wrapper.new_cache(3), 3).isfinite().all()
    assert isinstance(on_first_use(), Library)
    assert compiler.times == 2
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("damage", ["cut short", "changed", "emptied", "other", "a folder"])
def test_a_damaged_file_is_made_anew(damage: str, on_first_use: Fresh, compiler: Compiler, tmp_path: Path) -> None:
    on_first_use()
    (kept,) = (tmp_path / "cache/specprof/native").iterdir()
    content = kept.read_bytes()
    if damage == "a folder":
        kept.unlink()
        kept.mkdir()
    else:
        kept.write_bytes(
            {
                "cut short": content[: len(content) // 2],
                "changed": content[:5000] + bytes(100) + content[5100:],
                "emptied": b"",
                "other": b"no library at all",
            }[damage]
        )
    assert ModelWrapper(MODELS["llama"]()).forward_name == "native"
    assert compiler.times == 2
    if damage != "a folder":
        assert kept.read_bytes() == content
        assert isinstance(on_first_use(), Library) and compiler.times == 2


def test_what_others_can_write_is_not_run(on_first_use: Fresh, compiler: Compiler, tmp_path: Path) -> None:
    on_first_use()
    folder = tmp_path / "cache/specprof/native"
    (kept,) = folder.iterdir()
    for mode in (0o722, 0o720, 0o702):
        kept.chmod(mode)
        times = compiler.times
        assert isinstance(on_first_use(), Library) and compiler.times == times + 1
        assert kept.stat().st_mode & 0o777 == 0o700  # it is the one just made
    for mode in (0o777, 0o770):
        folder.chmod(mode)
        times = compiler.times
        assert isinstance(on_first_use(), Library) and compiler.times == times + 1
    folder.chmod(0o700)
    content = kept.read_bytes()
    kept.unlink()
    (tmp_path / "elsewhere").write_bytes(content)
    kept.symlink_to(tmp_path / "elsewhere")
    times = compiler.times
    assert isinstance(on_first_use(), Library) and compiler.times == times + 1
    assert not kept.is_symlink()


def test_somebody_elses_file_is_not_run(
    on_first_use: Fresh, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_first_use()
    somebody_else = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: somebody_else)
    assert isinstance(on_first_use(), Library) and compiler.times == 2


def test_another_source_or_compiler_is_another_file(
    on_first_use: Fresh, compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_first_use()
    folder = tmp_path / "cache/specprof/native"
    command = (str(compiler.script), *compiled._FLAGS, *compiled._ATTEMPTS[0])
    source = SOURCE.encode()
    assert isinstance(compiled._build(source, command), Library) and compiler.times == 1
    assert isinstance(compiled._build(source + b"/* */", command), Library) and compiler.times == 2
    compiler.script.write_text(compiler.script.read_text().replace("toy 1", "toy 2"))
    on_first_use()
    assert compiler.times == 3
    monkeypatch.setattr(compiled, "_instruction_sets", lambda: "another processor")
    on_first_use()
    assert compiler.times == 4 == len(list(folder.iterdir()))


FIRST_USE = """
from specprof.models.native.library import Library, library
found = library()
assert isinstance(found, Library), found
print(found.lanes)
"""


def test_processes_that_compile_at_once(
    on_first_use: Fresh, code: Path, found: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Compiler(tmp_path, code, "sleep 0.5")
    monkeypatch.setenv("CC", str(compiler.script))
    processes = [
        subprocess.Popen([sys.executable, "-c", FIRST_USE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output, errors) == (0, f"{found.lanes}\n", "")
    assert compiler.times == 3
    assert len(leftovers(tmp_path)) == 1


def test_code_that_computes_wrong_numbers_is_refused(
    on_first_use: Fresh, found: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = "static inline vec sigmoid(vec x) {"
    assert right in SOURCE
    library = compile_(SOURCE.replace(right, right + " x *= 1.01f;"), tmp_path / "wrong.so", "-O1")
    monkeypatch.setattr(native, "library", lambda: library)
    falls_back("the compiled code computes other numbers than PyTorch")
