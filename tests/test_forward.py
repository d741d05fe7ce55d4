"""Our own forward, and Hugging Face's over our cache, against Hugging Face's own logits."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specprof.errors import UsageError
from specprof.models.attention import EXPLICIT_ATTENTION_WIDTH
from specprof.models.transformer import LlamaForward
from specprof.models.wrapper import ForwardName, ModelWrapper
from tiny_models import FAMILIES, random_model, tiny_gpt2, tiny_llama, tiny_mistral, tiny_phi3, tiny_qwen2, tiny_qwen3

VOCAB = 61
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}

torch.set_num_threads(1)


def changed(model: Any, **values: Any) -> Any:
    """A random model of the same class whose configuration differs in some values."""
    return random_model(type(model.config).from_dict({**model.config.to_dict(), **values}))


def made(config_name: str, **values: Any) -> Any:
    """A random model of a family that our own forward doesn't cover."""
    import transformers

    return random_model(getattr(transformers, config_name)(**values, initializer_range=0.3))


def mixed_layers(model: Any) -> Any:
    """Layers that see everything and layers that see the last 8 tokens, in turn."""
    layers = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    return changed(model, use_sliding_window=True, sliding_window=8, num_hidden_layers=4, layer_types=layers)


VARIANTS: dict[str, Callable[[], Any]] = {
    "gpt2_untied": lambda: changed(tiny_gpt2(vocab_size=VOCAB), tie_word_embeddings=False),
    "llama_biases": lambda: changed(tiny_llama(vocab_size=VOCAB), attention_bias=True, mlp_bias=True),
    "llama_ungrouped": lambda: changed(tiny_llama(vocab_size=VOCAB), num_key_value_heads=4),
    "mistral_no_window": lambda: changed(tiny_mistral(vocab_size=VOCAB), sliding_window=None),
    "phi3_no_window_tied": lambda: changed(tiny_phi3(vocab_size=VOCAB), sliding_window=None, tie_word_embeddings=True),
    "qwen2_mixed_layers": lambda: mixed_layers(tiny_qwen2(vocab_size=VOCAB)),
    "qwen3_mixed_layers": lambda: mixed_layers(tiny_qwen3(vocab_size=VOCAB)),
    "qwen3_biases": lambda: changed(tiny_qwen3(vocab_size=VOCAB), attention_bias=True),
}
OWN = [*(name for name in FAMILIES if name != "gpt_neox"), *VARIANTS]

SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
OTHERS: dict[str, Callable[[], Any]] = {
    # No position ids: distances are added to the attention scores.
    "bloom": lambda: made("BloomConfig", **SMALL),
    # Positions are offset by two.
    "opt": lambda: made("OPTConfig", **SMALL, ffn_dim=48, max_position_embeddings=256, word_embed_proj_dim=32),
    # Soft-capped scores, layers with and without a window of 8.
    "gemma2": lambda: made(
        "Gemma2Config", **SMALL, num_key_value_heads=2, head_dim=8, intermediate_size=48, sliding_window=8
    ),
    # One key-value head for all query heads.
    "falcon": lambda: made("FalconConfig", **SMALL),
}
CASES: list[tuple[ForwardName, str, torch.dtype]] = [
    *(("own", name, dtype) for name in OWN for dtype in TOLERANCE),
    *(("hf", name, dtype) for name in FAMILIES for dtype in TOLERANCE),
    # Their attention rounds to float32 in float64 too.
    *(("hf", name, torch.float32) for name in OTHERS),
]


def build(name: str, dtype: torch.dtype) -> Any:
    """A model of its own to change."""
    model = copy.deepcopy(FAMILIES[name](vocab_size=VOCAB) if name in FAMILIES else {**VARIANTS, **OTHERS}[name]())
    model.to(dtype)
    if dtype == torch.float64:
        in_full_precision(model)
    return model


def in_full_precision(model: Any) -> None:
    """Let Hugging Face's RMS norms compute in float64 as everything else does.

    They round to float32 whatever the type, and that error of 1e-7 would hide smaller ones of ours.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            weight, eps = module.weight, module.variance_epsilon

            def rms_norm(x: Tensor, weight: Tensor = weight, eps: float = eps) -> Tensor:
                return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

            module.forward = rms_norm


@dataclass
class Case:
    wrapper: ModelWrapper
    reference: Any
    """A model of the same weights that no wrapper has touched."""
    tolerance: float

    def expected(self, tokens: list[int]) -> Tensor:
        """Hugging Face's logits after every token, from one pass without a cache."""
        logits: Tensor = self.reference(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        return logits

    def check(self, logits: Tensor, expected: Tensor) -> None:
        assert logits.shape == expected.shape
        torch.testing.assert_close(logits, expected, atol=self.tolerance, rtol=self.tolerance)


@pytest.fixture(
    scope="module",
    params=CASES,
    ids=lambda param: f"{param[0]}-{param[1]}-{str(param[2]).removeprefix('torch.')}",
)
def case(request: pytest.FixtureRequest) -> Case:
    forward, name, dtype = request.param
    model = build(name, dtype)
    wrapper = ModelWrapper(model, forward=forward)
    assert wrapper.forward_name == forward
    return Case(wrapper, build(name, dtype), TOLERANCE[dtype])


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=count)


@torch.inference_mode()
def test_the_oracle_is_not_flat(case: Case) -> None:
    expected = case.expected(random_tokens(40))
    assert expected.std(-1).min() > 0.1
    assert len(set(expected.argmax(-1).tolist())) > 3


@torch.inference_mode()
@pytest.mark.parametrize("length", [1, 2, 7, EXPLICIT_ATTENTION_WIDTH, EXPLICIT_ATTENTION_WIDTH + 1, 90])
def test_prefill(case: Case, length: int) -> None:
    tokens = random_tokens(length)
    logits = case.wrapper.extend(torch.tensor(tokens), case.wrapper.new_cache(100), length)
    case.check(logits, case.expected(tokens))


@torch.inference_mode()
@pytest.mark.parametrize("prompt", [1, 20])
def test_every_width_on_top_of_a_cache(case: Case, prompt: int) -> None:
    tokens = random_tokens(prompt + sum(range(1, 10)) + 40, seed=1)
    expected = case.expected(tokens)
    cache = case.wrapper.new_cache(len(tokens))
    end = 0
    for width in (prompt, *range(1, 10), 40):  # the last is wide enough for the other attention path
        start, end = end, end + width
        logits = case.wrapper.extend(torch.tensor(tokens[start:end]), cache, width)
        case.check(logits, expected[start:end])
        assert cache.length == end


@torch.inference_mode()
def test_random_rollbacks_and_continuations(case: Case) -> None:
    draw = random.Random(2)
    tokens = random_tokens(30, seed=3)
    cache = case.wrapper.new_cache(160)
    case.wrapper.extend(torch.tensor(tokens), cache)
    for _ in range(12):
        keep = draw.randint(max(0, len(tokens) - 9), len(tokens))
        new = draw.choices(range(VOCAB), k=draw.randint(1, 9))
        cache.truncate(keep)
        tokens = tokens[:keep] + new
        logits = case.wrapper.extend(torch.tensor(new), cache, len(new))
        case.check(logits, case.expected(tokens)[-len(new) :])


@torch.inference_mode()
@pytest.mark.parametrize("num_logits", [1, 2, 5])
def test_the_last_logits_alone(case: Case, num_logits: int) -> None:
    tokens = random_tokens(45, seed=4)
    expected = case.expected(tokens)
    for prompt in (0, 38):
        cache = case.wrapper.new_cache(64)
        if prompt:
            case.wrapper.extend(torch.tensor(tokens[:prompt]), cache)
        case.check(case.wrapper.extend(torch.tensor(tokens[prompt:]), cache, num_logits), expected[-num_logits:])


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("family", OWN)
def test_low_precision_is_as_accurate_as_hugging_face(family: str, dtype: torch.dtype) -> None:
    tokens = random_tokens(60, seed=5)
    model = build(family, dtype)
    # Rounded once, then computed in float64: what both would get without rounding on the way.
    exact_model = copy.deepcopy(model).to(torch.float64)
    in_full_precision(exact_model)
    exact = exact_model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    theirs = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].double()
    wrapper = ModelWrapper(model, forward="own")
    cache = wrapper.new_cache(60)
    parts = [
        wrapper.extend(torch.tensor(tokens[a:b]), cache, b - a) for a, b in ((0, 40), (40, 41), (41, 50), (50, 60))
    ]
    ours = torch.cat(parts).double()
    error = {"ours": (ours - exact).pow(2).mean().sqrt(), "theirs": (theirs - exact).pow(2).mean().sqrt()}
    assert 0 < error["ours"] < 1.5 * error["theirs"]


# --- weights


FUSED = [name for name in OWN if not name.startswith(("gpt2", "phi3"))]


@torch.inference_mode()
@pytest.mark.parametrize("family", OWN)
def test_wrapping_leaves_the_model_as_it_was(family: str) -> None:
    model = build(family, torch.float32)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.tensor([random_tokens(50)])
    before = model(input_ids=ids).logits
    ModelWrapper(model, forward="own")
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Memory behind tensors: what several of them share counts once, and whole."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def forward_matrices(forward: Any) -> list[Tensor]:
    """Every matrix the own forward holds, rope tables and biases left out."""
    held = [getattr(layer, slot) for layer in forward.layers for slot in layer.__dataclass_fields__]
    matrices = [value for value in held if isinstance(value, Tensor) and value.dim() == 2]
    return [*matrices, forward.embedding, forward.head]


@pytest.mark.parametrize("family", OWN)
def test_no_weight_is_held_twice(family: str) -> None:
    model = build(family, torch.float32)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    before = storage_bytes(matrices)
    wrapper = ModelWrapper(model, forward="own")
    after = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    # One sum over what the model and the forward hold between them.
    assert storage_bytes([*after, *forward_matrices(wrapper._forward)]) == before
    assert wrapper.memory_footprint_mb * 2**20 == sum(
        t.nbytes for t in {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}.values()
    )


@pytest.mark.parametrize("family", FUSED)
def test_fused_projections_share_their_memory_with_the_modules(family: str) -> None:
    model = build(family, torch.float32)
    wrapper = ModelWrapper(model, forward="own")
    assert isinstance(wrapper._forward, LlamaForward)
    for layer, module in zip(wrapper._forward.layers, model.model.layers, strict=True):
        attention, mlp = module.self_attn, module.mlp
        for fused, parts in (
            (layer.qkv, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.gate_up, (mlp.gate_proj, mlp.up_proj)),
        ):
            assert isinstance(fused, Tensor)
            places = [fused.data_ptr() + row * fused.stride(0) * 4 for row in range(fused.shape[0])]
            row = 0
            for part in parts:
                assert part.weight.data_ptr() == places[row]
                assert torch.equal(part.weight, fused[row : row + part.out_features])
                row += part.out_features
            assert row == fused.shape[0]


@torch.inference_mode()
def test_one_model_can_be_wrapped_twice() -> None:
    model = build("llama", torch.float64)
    tokens = torch.tensor(random_tokens(12))
    first, second = ModelWrapper(model), ModelWrapper(model)
    expected = first.extend(tokens, first.new_cache(12), 12)
    torch.testing.assert_close(second.extend(tokens, second.new_cache(12), 12), expected, rtol=0, atol=0)


# --- who runs what


def rope(**values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **values}}


UNSUPPORTED: dict[str, tuple[Callable[[], Any], str]] = {
    "family": (lambda: FAMILIES["gpt_neox"](vocab_size=VOCAB), "no own forward for the gpt_neox family"),
    "linear rope": (lambda: changed(tiny_llama(vocab_size=VOCAB), **rope(rope_type="linear", factor=2.0)), "'linear'"),
    "dynamic rope": (
        lambda: changed(tiny_llama(vocab_size=VOCAB), **rope(rope_type="dynamic", factor=2.0)),
        "'dynamic'",
    ),
    "yarn rope": (
        lambda: changed(
            tiny_qwen2(vocab_size=VOCAB), **rope(rope_type="yarn", factor=2.0, original_max_position_embeddings=128)
        ),
        "'yarn'",
    ),
    "partial rope": (
        lambda: changed(tiny_phi3(vocab_size=VOCAB), **rope(rope_type="default", partial_rotary_factor=0.5)),
        "position encoding",
    ),
    "llama activation": (lambda: changed(tiny_llama(vocab_size=VOCAB), hidden_act="gelu"), "activation 'gelu'"),
    "gpt2 activation": (lambda: changed(tiny_gpt2(vocab_size=VOCAB), activation_function="relu"), "GPT-2"),
    "gpt2 layer scaling": (
        lambda: changed(tiny_gpt2(vocab_size=VOCAB), scale_attn_by_inverse_layer_idx=True),
        "GPT-2",
    ),
    "gpt2 upcast": (lambda: changed(tiny_gpt2(vocab_size=VOCAB), reorder_and_upcast_attn=True), "GPT-2"),
    "gpt2 unscaled": (lambda: changed(tiny_gpt2(vocab_size=VOCAB), scale_attn_weights=False), "GPT-2"),
}


@torch.inference_mode()
@pytest.mark.parametrize("variant", UNSUPPORTED)
def test_what_our_forward_cannot_run_goes_to_hugging_face(variant: str) -> None:
    make, reason = UNSUPPORTED[variant]
    model = copy.deepcopy(make())
    with pytest.raises(UsageError) as caught:
        ModelWrapper(model, forward="own")
    assert reason in caught.value.message
    assert "--forward auto" in caught.value.hint
    wrapper = ModelWrapper(model)
    assert wrapper.forward_name == "hf"
    assert wrapper.why_not_own is not None
    assert reason in wrapper.why_not_own
    # And it decodes as it should there.
    tokens = random_tokens(30)
    cache = wrapper.new_cache(40)
    wrapper.extend(torch.tensor(tokens[:20]), cache)
    wrapper.extend(torch.tensor([1, 2, 3]), cache)
    cache.truncate(20)
    logits = wrapper.extend(torch.tensor(tokens[20:]), cache, 10)
    torch.testing.assert_close(logits, model(input_ids=torch.tensor([tokens])).logits[0, 20:], atol=2e-4, rtol=2e-4)


def test_replaced_projections_go_to_hugging_face() -> None:
    """An adapter's layer has the weight of the layer it wraps, and does more with it."""

    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.weight, self.bias, self.out_features = base, base.weight, base.bias, base.out_features

        def forward(self, x: Tensor) -> Tensor:
            return 2 * F.linear(x, self.weight, self.bias)

    model = copy.deepcopy(tiny_llama(vocab_size=VOCAB))
    model.model.layers[1].mlp.down_proj = Adapted(model.model.layers[1].mlp.down_proj)
    wrapper = ModelWrapper(model)
    tokens = random_tokens(9)
    logits = wrapper.extend(torch.tensor(tokens), wrapper.new_cache(9), 9)
    torch.testing.assert_close(logits, model(input_ids=torch.tensor([tokens])).logits[0], atol=2e-4, rtol=2e-4)
    assert wrapper.why_not_own == "layers were replaced by Adapted"


def test_a_model_with_hooks_is_left_to_hugging_face() -> None:
    model = copy.deepcopy(tiny_llama(vocab_size=VOCAB))
    seen: list[object] = []
    model.model.layers[0].register_forward_hook(lambda *call: seen.append(call))
    wrapper = ModelWrapper(model)
    assert wrapper.why_not_own == "hooks hang on its layers, which our forward would not call"
    wrapper.forward(torch.tensor([[1, 2]]))
    assert seen


def test_hugging_face_can_be_asked_for() -> None:
    wrapper = ModelWrapper(copy.deepcopy(tiny_llama(vocab_size=VOCAB)), forward="hf")
    assert wrapper.forward_name == "hf"
    assert wrapper.why_not_own is None
    assert ModelWrapper(copy.deepcopy(tiny_llama(vocab_size=VOCAB))).forward_name in ("native", "own")
