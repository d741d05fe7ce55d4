"""Leaving our own forward early and resuming it: the same numbers as one plain pass, whatever is resumed where."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from specprof.errors import UsageError
from specprof.models.attention import EXPLICIT_ATTENTION_WIDTH
from specprof.models.loader import quiet_transformers
from specprof.models.transformer import EarlyStates
from specprof.models.wrapper import ModelWrapper
from tiny_models import (
    tiny_gpt2,
    tiny_gpt_neox,
    tiny_llama,
    tiny_llama3_rope,
    tiny_mistral,
    tiny_phi3,
    tiny_qwen2,
    tiny_qwen3,
)

VOCAB = 61
LAYERS = 4
WINDOW = 8

torch.set_num_threads(1)


def deep(model: Any, **values: Any) -> Any:
    """A float64 model of the same class with more layers, so that there are several depths."""
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    depth = {model.config.attribute_map.get("num_hidden_layers", "num_hidden_layers"): LAYERS}
    config = type(model.config).from_dict({**model.config.to_dict(), "layer_types": None, **depth, **values})
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        made = auto.from_config(config)
        for name, parameter in made.named_parameters():
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, 0.0 if name.endswith("bias") else 1.0, 0.1)
    return made.to(torch.float64).eval().requires_grad_(False)


MIXED = {
    "use_sliding_window": True,
    "sliding_window": WINDOW,
    "layer_types": ["full_attention", "sliding_attention"] * (LAYERS // 2),
}
MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: deep(tiny_gpt2(vocab_size=VOCAB)),
    "llama": lambda: deep(tiny_llama(vocab_size=VOCAB)),
    "llama3_rope": lambda: deep(tiny_llama3_rope(vocab_size=VOCAB)),
    "mistral": lambda: deep(tiny_mistral(vocab_size=VOCAB)),
    "qwen2": lambda: deep(tiny_qwen2(vocab_size=VOCAB)),
    "qwen2_mixed_layers": lambda: deep(tiny_qwen2(vocab_size=VOCAB), **MIXED),
    "qwen3": lambda: deep(tiny_qwen3(vocab_size=VOCAB)),
    "phi3": lambda: deep(tiny_phi3(vocab_size=VOCAB)),
}


@pytest.fixture(scope="module", params=MODELS)
def wrapper(request: pytest.FixtureRequest) -> ModelWrapper:
    wrapper = ModelWrapper(MODELS[request.param](), forward="own")
    assert wrapper.num_layers == LAYERS
    return wrapper


def draw_tokens(count: int, seed: int = 0) -> Tensor:
    return torch.tensor(random.Random(seed).choices(range(VOCAB), k=count))


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-11, rtol=1e-11)


def plain(wrapper: ModelWrapper, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits after every token, keys and values ``[2, layers, heads, q, dim]``, from one pass."""
    cache = wrapper.new_cache(len(tokens))
    logits = wrapper.extend(tokens, cache, len(tokens))
    assert cache.slab.stacked is not None
    return logits, cache.slab.stacked


def contents(cache: Any) -> Tensor:
    stacked: Tensor = cache.slab.stacked
    return stacked[:, :, :, : cache.length]


@pytest.mark.parametrize("depth", range(1, LAYERS))
@pytest.mark.parametrize("prompt", [0, 5, 20])
def test_resumed_is_one_plain_pass(wrapper: ModelWrapper, depth: int, prompt: int) -> None:
    """Any number of tokens drafted one by one, or at once, then all of them and more verified."""
    for width in (2, 5, 9):
        tokens = draw_tokens(prompt + width, seed=width)
        expected, keys_and_values = plain(wrapper, tokens)
        for early in range(width):
            for steps in {(1,) * early, (early,) if early else ()}:
                cache = wrapper.new_cache(len(tokens))
                if prompt:
                    wrapper.extend(tokens[:prompt], cache)
                hidden = []
                for step in steps:
                    _, states = wrapper.extend_early(tokens[cache.length : cache.length + step], cache, depth)
                    hidden.append(states)
                assert cache.length == prompt + early
                cache.truncate(prompt)
                begun = EarlyStates(depth, torch.cat(hidden)) if hidden else None
                logits = wrapper.extend(tokens[prompt:], cache, width, begun)
                assert cache.length == len(tokens)
                assert_same(logits, expected[prompt:])
                assert_same(contents(cache), keys_and_values)


@pytest.mark.parametrize("depth", range(1, LAYERS))
def test_early_logits_are_the_truncated_models(depth: int) -> None:
    """Norm and head right after a few layers: the model whose other layers were cut off."""
    for make in (MODELS["gpt2"], MODELS["phi3"]):
        whole, cut = make(), make()
        backbone = cut.transformer if hasattr(cut, "transformer") else cut.model
        name = "h" if hasattr(backbone, "h") else "layers"
        setattr(backbone, name, getattr(backbone, name)[:depth])
        cut.config.num_hidden_layers = depth
        if getattr(cut.config, "layer_types", None):
            cut.config.layer_types = cut.config.layer_types[:depth]
        tokens = draw_tokens(12)
        short = ModelWrapper(cut, forward="own")
        expected = short.extend(tokens, short.new_cache(12))
        wrapper = ModelWrapper(whole, forward="own")
        cache = wrapper.new_cache(12)
        logits, hidden = wrapper.extend_early(tokens, cache, depth)
        assert logits.shape == (1, VOCAB)
        assert hidden.shape == (12, 32)
        assert_same(logits, expected)
        assert cache.length == 12
        assert cache.slab.stacked is not None
        assert not cache.slab.stacked[:, depth:].any()  # the other layers were not touched


def test_wide_resumed_pass(wrapper: ModelWrapper) -> None:
    """Wide enough for the fused attention, in either half."""
    wide = EXPLICIT_ATTENTION_WIDTH + 8
    for prompt in (0, 3):
        tokens = draw_tokens(prompt + 2 * wide, seed=3)
        expected, keys_and_values = plain(wrapper, tokens)
        for early in (1, wide, 2 * wide - 1):
            cache = wrapper.new_cache(len(tokens))
            if prompt:
                wrapper.extend(tokens[:prompt], cache)
            _, hidden = wrapper.extend_early(tokens[prompt : prompt + early], cache, 2)
            cache.truncate(prompt)
            logits = wrapper.extend(tokens[prompt:], cache, 4, EarlyStates(2, hidden))
            assert_same(logits, expected[-4:])
            assert_same(contents(cache), keys_and_values)


def test_rounds_of_drafting_and_rolling_back(wrapper: ModelWrapper) -> None:
    """As a decoder does it: draft k tokens early, verify all, keep some, go on; the rejected leave nothing behind."""
    draw = random.Random(5)
    depth = 2
    tokens = draw_tokens(15).tolist()
    cache = wrapper.new_cache(200)
    wrapper.extend(torch.tensor(tokens[:-1]), cache)
    for _ in range(12):
        start, k = cache.length, draw.randint(1, 6)
        ids = [tokens[-1], *draw.choices(range(VOCAB), k=k)]
        hidden = [wrapper.extend_early(torch.tensor([token]), cache, depth)[1] for token in ids[:-1]]
        cache.truncate(start)
        logits = wrapper.extend(torch.tensor(ids), cache, k + 1, EarlyStates(depth, torch.cat(hidden)))
        expected, keys_and_values = plain(wrapper, torch.tensor([*tokens[:-1], *ids]))
        assert_same(logits, expected[start:])
        assert_same(contents(cache), keys_and_values)
        kept = draw.randint(0, k)
        cache.truncate(start + 1 + kept)
        tokens += [*ids[1 : 1 + kept], draw.randrange(VOCAB)]


@torch.inference_mode()
def test_hidden_states_are_hugging_faces(wrapper: ModelWrapper) -> None:
    """The residual stream after a layer, before the last norm. Theirs rounds its norms to float32."""
    tokens = draw_tokens(20)
    theirs = wrapper.model(input_ids=tokens[None], use_cache=False, output_hidden_states=True).hidden_states
    for depth in range(1, LAYERS):
        _, hidden = wrapper.extend_early(tokens, wrapper.new_cache(20), depth)
        torch.testing.assert_close(hidden, theirs[depth][0], atol=1e-5, rtol=1e-5)


def test_states_that_are_wrong_show() -> None:
    """The comparison above would see states of another depth, or of other tokens."""
    wrapper = ModelWrapper(MODELS["llama"](), forward="own")
    tokens = draw_tokens(6)
    expected, _ = plain(wrapper, tokens)
    for depth, ids in ((1, tokens), (2, tokens.flip(0))):
        cache = wrapper.new_cache(6)
        _, hidden = wrapper.extend_early(ids[:5], cache, depth)
        cache.truncate(0)
        assert not torch.allclose(wrapper.extend(tokens, cache, 1, EarlyStates(2, hidden)), expected[-1:], atol=1e-3)


# --- refusals


@pytest.mark.parametrize("depth", [-1, 0, LAYERS, LAYERS + 1])
def test_depth_outside(depth: int) -> None:
    wrapper = ModelWrapper(MODELS["llama"](), name="a model")
    cache = wrapper.new_cache(8)
    for call in (
        lambda: wrapper.extend_early(torch.tensor([1]), cache, depth),
        lambda: wrapper.extend(torch.tensor([1, 2]), cache, 1, EarlyStates(depth, torch.zeros(1, 32).double())),
        lambda: wrapper.check_depth(depth),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.message == f"a model has 4 layers: {depth} of them can't draft for all"
        assert caught.value.hint == "draft with 1 to 3 layers"
    assert cache.length == 0


def test_a_single_layer_has_none_to_skip() -> None:
    wrapper = ModelWrapper(deep(tiny_gpt2(vocab_size=VOCAB), n_layer=1))
    with pytest.raises(UsageError, match="a single layer"):
        wrapper.check_depth(1)


@pytest.mark.parametrize("early", [2, 3])
def test_at_least_one_token_is_new(early: int) -> None:
    wrapper = ModelWrapper(MODELS["llama"]())
    cache = wrapper.new_cache(8)
    _, hidden = wrapper.extend_early(torch.arange(early), cache, 1)
    cache.truncate(0)
    with pytest.raises(ValueError, match="of 2 tokens at most 1 can be"):
        wrapper.extend(torch.tensor([0, 1]), cache, 1, EarlyStates(1, hidden))


def test_room_is_checked() -> None:
    wrapper = ModelWrapper(MODELS["llama"]())
    with pytest.raises(UsageError, match=r"0 \+ 5 tokens don't fit a cache of 4"):
        wrapper.extend_early(torch.arange(5), wrapper.new_cache(4), 1)


@pytest.mark.parametrize(
    ("wrapper", "reason", "hint"),
    [
        (lambda: ModelWrapper(tiny_gpt_neox()), "no own forward for the gpt_neox family", "another drafter"),
        (lambda: ModelWrapper(copy.deepcopy(tiny_llama()), forward="hf"), "Hugging Face's was asked for", "auto"),
    ],
    ids=["unsupported", "asked for"],
)
def test_hugging_faces_forward_cannot_be_left_early(wrapper: Any, reason: str, hint: str) -> None:
    hf: ModelWrapper = wrapper()
    cache = hf.new_cache(8)
    for call in (
        lambda: hf.extend_early(torch.tensor([1]), cache, 1),
        lambda: hf.extend(torch.tensor([1, 2]), cache, 1, EarlyStates(1, torch.zeros(1, 32))),
    ):
        with pytest.raises(UsageError, match="layer skip needs our own forward, but") as caught:
            call()
        assert reason in caught.value.message
        assert hint in caught.value.hint
