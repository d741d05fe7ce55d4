"""int4 models: on our own forward as on Hugging Face's, what they weigh, what they share, how wide a pass may be."""

from __future__ import annotations

import copy
import functools
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from command_line import ok
from packaged import llama_parameters
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import DraftModel
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.errors import UsageError
from specprof.models import int4, linear
from specprof.models.devices import compute_dtype
from specprof.models.footprint import memory_footprint_bytes, memory_needed, parameter_count
from specprof.models.int4 import fused_int4_width, widest
from specprof.models.linear import LinearChoice, QuantisedMatrix
from specprof.models.loader import load_model, quiet_transformers, share_tables
from specprof.models.transformer import EarlyStates, GPT2Forward, LlamaForward
from specprof.models.wrapper import ModelWrapper
from tiny_models import (
    VOCAB_SIZE,
    save_model_dir,
    tiny_gpt2,
    tiny_llama,
    tiny_llama3_rope,
    tiny_phi3,
    tiny_qwen2,
    tiny_tokenizer,
)

bitsandbytes: Any = pytest.importorskip("bitsandbytes")

torch.set_num_threads(1)


def larger(model: Any, **values: Any) -> Any:
    """A float32 model of the same class whose rows are whole blocks of 64, unless ``values`` say otherwise."""
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    if model.config.model_type == "gpt2":
        sizes = {"n_embd": 64}
    if "head_dim" not in model.config.to_dict():
        sizes.pop("head_dim", None)
    config = type(model.config).from_dict({**model.config.to_dict(), **sizes, "initializer_range": 0.15, **values})
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        made = auto.from_config(config)
        for name, parameter in made.named_parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter, 0.0 if name.endswith("bias") else 1.0, 0.1)
    return made.eval().requires_grad_(False)


MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: larger(tiny_gpt2()),
    "llama": lambda: larger(tiny_llama()),
    "phi3": lambda: larger(tiny_phi3()),  # fused QKV and gate-up, a sliding window of 8
    "qwen2": lambda: larger(tiny_qwen2()),  # biases on Q, K and V, a tied head
    "llama_ragged": lambda: larger(tiny_llama(), intermediate_size=96),  # rows of 96 stay dense on the CPU
    "gpt2_ragged": lambda: larger(tiny_gpt2(), n_inner=96),
}


@functools.cache
def checkpoints() -> Path:
    return Path(tempfile.mkdtemp(prefix="specprof-int4-"))


@pytest.fixture(scope="module", autouse=True)
def _no_checkpoints_left() -> Iterator[None]:
    yield
    shutil.rmtree(checkpoints())


@functools.cache
def saved(name: str) -> str:
    """The model as a checkpoint."""
    return str(save_model_dir(checkpoints() / name, MODELS[name](), tiny_tokenizer()))


@functools.cache
def quantised(name: str) -> Any:
    model, _ = load_model(saved(name), "int4", "cpu")
    return model


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def draw_tokens(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB_SIZE), k=count)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal up to float32 rounding, relative to the size of the logits."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


# --- our own forward


def test_every_int4_layer_is_called_by_our_own_forward(name: str) -> None:
    model = quantised(name)
    wrapper = ModelWrapper(model)
    assert (wrapper.forward_name, wrapper.why_not_own) == ("own", None)
    forward: Any = wrapper._forward
    assert isinstance(forward, (LlamaForward, GPT2Forward))
    held = [getattr(layer, slot) for layer in forward.layers for slot in layer.__dataclass_fields__]
    called = [layer for matrix in held if isinstance(matrix, QuantisedMatrix) for layer in matrix.layers]
    four_bit = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert {id(layer) for layer in called} == {id(module) for module in four_bit}
    per_layer = {"gpt2": 4, "llama": 7, "phi3": 4, "qwen2": 7, "llama_ragged": 6, "gpt2_ragged": 3}
    assert len(called) == 2 * per_layer[name]
    # And nothing of them is held in another form, biases included.
    dense = [value for value in held if isinstance(value, Tensor) and value.dim() == 2]
    assert len(dense) == (2 if name.endswith("ragged") else 0)
    assert all(getattr(layer, "qkv_bias", None) is None for layer in forward.layers)


@torch.inference_mode()
@pytest.mark.parametrize("prompt", [0, 20])
def test_logits_are_hugging_faces(name: str, prompt: int) -> None:
    model = quantised(name)
    wrapper = ModelWrapper(model, forward="own")
    tokens = draw_tokens(prompt + 1 + 2 + 5 + 40, seed=1)
    expected = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    assert expected.std(-1).min() > 0.1
    cache = wrapper.new_cache(len(tokens))
    end = 0
    for width in (prompt, 1, 2, 5, 40):
        if width:
            start, end = end, end + width
            assert_close(wrapper.extend(torch.tensor(tokens[start:end]), cache, width), expected[start:end])


@torch.inference_mode()
def test_logits_after_rolling_back(name: str) -> None:
    model, draw = quantised(name), random.Random(2)
    wrapper = ModelWrapper(model, forward="own")
    tokens = draw_tokens(30, seed=3)
    cache = wrapper.new_cache(100)
    wrapper.extend(torch.tensor(tokens), cache)
    for width in (1, 2, 5, 40):
        keep = len(tokens) - draw.randint(0, 9)
        new = draw.choices(range(VOCAB_SIZE), k=width)
        cache.truncate(keep)
        tokens = tokens[:keep] + new
        logits = wrapper.extend(torch.tensor(new), cache, width)
        assert_close(logits, model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -width:])


@torch.inference_mode()
def test_wrapping_leaves_the_model_as_it_was(name: str) -> None:
    model, _ = load_model(saved(name), "int4", "cpu")
    ids = torch.tensor([draw_tokens(12)])
    before, weight = model(input_ids=ids).logits, memory_footprint_bytes(model)
    wrapper = ModelWrapper(model, forward="own")
    wrapper.forward(ids)
    assert torch.equal(model(input_ids=ids).logits, before)
    assert memory_footprint_bytes(model) == weight


@torch.inference_mode()
def test_early_exit_and_resumption(name: str) -> None:
    wrapper = ModelWrapper(quantised(name), forward="own")
    tokens = torch.tensor(draw_tokens(16, seed=4))
    whole = wrapper.new_cache(16)
    expected = wrapper.extend(tokens, whole, 16)
    assert whole.slab.stacked is not None
    for early in (1, 5):
        cache = wrapper.new_cache(16)
        wrapper.extend(tokens[:10], cache)
        hidden = [wrapper.extend_early(tokens[i : i + 1], cache, 1)[1] for i in range(10, 10 + early)]
        cache.truncate(10)
        logits = wrapper.extend(tokens[10:], cache, 6, EarlyStates(1, torch.cat(hidden)))
        assert_close(logits, expected[10:])
        assert cache.slab.stacked is not None
        torch.testing.assert_close(cache.slab.stacked, whole.slab.stacked, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_self_speculation_is_token_identical(name: str) -> None:
    """The llama3_self arrangement: a float target, and its own weights in four bits as the draft."""
    plain, tokenizer = load_model(saved(name), "float32", "cpu")
    target, draft = ModelWrapper(plain, tokenizer), ModelWrapper(quantised(name), tokenizer)
    assert draft.forward_name == "own"
    accepted = 0
    for seed in range(3):
        prompt = draw_tokens(10, seed=seed)
        expected = AutoregressiveDecoder(target).generate(prompt, 24, stop_ids=frozenset()).generated_ids
        result = SpeculativeDecoder(target, DraftModel(draft), 4).generate(prompt, 24, stop_ids=frozenset())
        assert result.generated_ids == expected
        accepted += sum(decoded.num_accepted for decoded in result.rounds)
        # Four bits as the target are as good: every draft of itself is accepted.
        own = AutoregressiveDecoder(draft).generate(prompt, 24, stop_ids=frozenset()).generated_ids
        same = SpeculativeDecoder(draft, DraftModel(draft), 4).generate(prompt, 24, stop_ids=frozenset())
        assert same.generated_ids == own != expected
        assert same.acceptance_rate == 1
    assert accepted > 0


def test_dense_matrices_of_a_mixed_model_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_LEAST_BYTES", 0)
    monkeypatch.setattr(linear, "_OTHER_BYTES", 1000)
    calls = []

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(x)
            return 3 * x

    weight, x = torch.ones(5, 8), torch.arange(16.0).view(2, 8)
    matrix = QuantisedMatrix((Layer(), Layer()))
    choice = LinearChoice([weight, matrix], measure=True)
    product = choice[2]
    assert list(choice.chosen()) == [2] and not calls  # what is quantised has one form only
    torch.testing.assert_close(product(x, weight, torch.ones(5)), F.linear(x, weight, torch.ones(5)))
    assert torch.equal(product(x, matrix, None), torch.cat((3 * x, 3 * x), 1))
    assert len(calls) == 2
    assert torch.equal(LinearChoice([matrix], measure=True)[2](x, QuantisedMatrix((Layer(),)), None), 3 * x)


# --- what still goes to Hugging Face


class Adapted(bitsandbytes.nn.Linear4bit):  # type: ignore[misc]
    """An adapter over a four-bit layer."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = super().forward(x) + 1
        return result


def test_adapters_over_int4_layers_go_to_hugging_face() -> None:
    model, _ = load_model(saved("llama"), "int4", "cpu")
    model.model.layers[1].mlp.down_proj.__class__ = Adapted
    wrapper = ModelWrapper(model)
    assert (wrapper.forward_name, wrapper.why_not_own) == ("hf", "layers were replaced by Adapted")


def test_8_bit_layers_go_to_hugging_face() -> None:
    model = copy.deepcopy(tiny_llama())
    model.model.layers[0].mlp.up_proj = bitsandbytes.nn.Linear8bitLt(32, 48, bias=False, has_fp16_weights=False)
    assert ModelWrapper(model).why_not_own == "layers were replaced by Linear8bitLt"


@pytest.mark.parametrize(
    "how",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        SimpleNamespace(quant_method="awq"),
    ],
    ids=["gptq", "8 bit", "an object"],
)
def test_other_quantisations_go_to_hugging_face(how: Any) -> None:
    model = copy.deepcopy(tiny_llama())
    model.config.quantization_config = how
    wrapper = ModelWrapper(model)
    assert wrapper.forward_name == "hf"
    assert wrapper.why_not_own == "the weights are quantised, and not by bitsandbytes to 4 bits"
    with pytest.raises(UsageError, match="quantised"):
        ModelWrapper(model, forward="own")


# --- the type they are expanded to


@torch.inference_mode()
@pytest.mark.parametrize("wanted", ["bfloat16", "fp32"])
def test_compute_dtype_by_name(wanted: str) -> None:
    model, _ = load_model(saved("qwen2"), "int4", "cpu", expanded_to=wanted)
    expected = torch.bfloat16 if wanted == "bfloat16" else torch.float32
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight.dtype is torch.uint8
    assert attention.q_proj.compute_dtype is expected
    assert model.model.embed_tokens.weight.dtype is model.model.norm.weight.dtype is expected
    wrapper = ModelWrapper(model)
    assert (wrapper.dtype, wrapper.forward_name) == (expected, "own")
    logits, _ = wrapper.forward(torch.tensor([draw_tokens(8)]))
    reference = quantised("qwen2")(input_ids=torch.tensor([draw_tokens(8)])).logits
    assert logits.dtype is expected
    assert F.cosine_similarity(logits.float().flatten(), reference.flatten(), dim=0) > 0.95
    packed = memory_needed(Path(saved("qwen2")), "int4", "cpu", expanded_to=wanted)
    assert memory_footprint_bytes(model) == pytest.approx(packed, rel=1e-2)


def test_the_default_compute_dtype_is_the_devices() -> None:
    assert compute_dtype("int4", "cpu") is torch.float32
    assert compute_dtype("int4", "cuda", expanded_to="fp16") is torch.float16
    assert compute_dtype("int4", "cpu", expanded_to="bfloat16") is torch.bfloat16


@pytest.mark.parametrize(
    ("dtype", "wanted", "said"),
    [
        ("float16", "float32", "float16 weights can't be expanded to float32"),
        ("int4", "nf4", "int4 weights can't be expanded to nf4"),
        ("int4", "float8", "there is no dtype 'float8'"),
    ],
)
def test_compute_dtypes_that_make_no_sense(dtype: str, wanted: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_model("tiny_dev/draft", dtype, "cpu", expanded_to=wanted)


# --- one set of tables


def tables(model: Any) -> int:
    return int(model.get_input_embeddings().weight.nbytes)


@torch.inference_mode()
@pytest.mark.parametrize(("name", "tied"), [("qwen2", True), ("llama", False)])
def test_two_forms_of_one_checkpoint_share_their_tables(name: str, tied: bool) -> None:
    target, _ = load_model(saved(name), "float32", "cpu")
    draft, _ = load_model(saved(name), "int4", "cpu")
    ids = torch.tensor([draw_tokens(9)])
    before, logits = memory_footprint_bytes(draft), draft(input_ids=ids).logits
    held = storage(target, draft)
    freed = share_tables(draft, target)
    assert freed == tables(target) * (1 if tied else 2)
    assert storage(target, draft) == held - freed
    assert draft.get_input_embeddings().weight is target.get_input_embeddings().weight
    assert draft.get_output_embeddings().weight is target.get_output_embeddings().weight
    assert (draft.get_output_embeddings().weight is draft.get_input_embeddings().weight) == tied
    assert memory_footprint_bytes(draft) == before  # of each model alone
    assert torch.equal(draft(input_ids=ids).logits, logits)
    assert_close(ModelWrapper(draft, forward="own").forward(ids)[0], logits)
    assert share_tables(draft, target) == 0  # there is nothing left to share


def storage(*models: Any) -> int:
    """Bytes of all parameters of several models, shared ones once."""
    return sum({p.data_ptr(): p.nbytes for model in models for p in model.parameters()}.values())


def test_tables_that_differ_are_left_alone() -> None:
    def embedding(model: Any) -> Tensor:
        weight: Tensor = model.get_input_embeddings().weight
        return weight

    target = copy.deepcopy(tiny_llama())
    one_value = copy.deepcopy(target)
    embedding(one_value)[4095, 31] += 1e-3
    other_type = copy.deepcopy(target).to(torch.float64)
    other_shape = tiny_llama(vocab_size=64)
    for model in (one_value, other_type, other_shape):
        own, head = embedding(model), model.lm_head.weight
        freed = share_tables(model, target)
        assert embedding(model) is own
        # The head of the first is equal, and shared for itself.
        assert freed == (head.nbytes if model is one_value else 0)
        assert (model.lm_head.weight is target.lm_head.weight) == (model is one_value)


def test_a_tied_head_stays_tied() -> None:
    """Also beside a model whose head equals it, but whose embedding doesn't."""
    tied, target = copy.deepcopy(tiny_llama3_rope()), copy.deepcopy(tiny_llama(seed=1))
    target.lm_head.weight.copy_(tied.lm_head.weight)
    assert share_tables(tied, target) == 0
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    target.model.embed_tokens.weight.copy_(tied.lm_head.weight)
    assert share_tables(tied, target) == tables(target)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight is target.model.embed_tokens.weight


# --- what they weigh

TARGET_INT4_BYTES = (
    4 * 4096 * 256  # embedding and head are one table, in float32
    + 8 * 4 * (2 * 256 + 256 * 672)  # per layer: two norms, and down, whose rows of 672 are no whole blocks
    + 4 * 256  # the last norm
    + 8 * (4 * 256 * 256 + 2 * 256 * 672) * 9 // 16  # half a byte, and 4 bytes for every 64
    + 8 * 6 * 16 * 4  # with every matrix the table of its 16 values
    + 2 * 4 * 32  # rotary frequencies, and the original ones
)


def test_footprint_by_hand() -> None:
    model, _ = load_model("tiny_dev/target", "int4", "cpu")
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (8, 256, 672)
    assert memory_footprint_bytes(model) == TARGET_INT4_BYTES


def test_footprint_of_double_quantised_scales() -> None:
    """Scales in 8 bits, every 256 of them with a 32-bit scale, and the two tables and the offset they need."""
    layer = bitsandbytes.nn.Linear4bit(256, 512, bias=False, compress_statistics=True, quant_type="nf4").to("cpu")
    numbers = 256 * 512
    scales = numbers // 64
    assert memory_footprint_bytes(layer) == numbers // 2 + scales + 4 * (scales // 256) + 4 + 4 * 16 + 4 * 256
    assert parameter_count(layer) == numbers


def test_load_prints_the_footprint() -> None:
    outcome = ok(
        "load", "--model", "tiny_dev/target", "--dtype", "int4", "--device", "cpu", "--n-tokens", "4", "--json"
    )
    facts = outcome.document["models"]["model"]
    assert facts["memory_bytes"] == TARGET_INT4_BYTES
    assert (facts["forward"], facts["dtype"], facts["compute_dtype"]) == ("own", "int4", "float32")
    assert facts["parameters"] == llama_parameters("tiny_dev/target")
    card = ok("load", "--model", "tiny_dev/target", "--dtype", "int4", "--device", "cpu", "--n-tokens", "0").out
    assert f"memory     : {TARGET_INT4_BYTES / 2**20:.1f} MB (int4, computes in float32)" in card


# --- how wide a pass may be


def test_no_width_without_int4_layers_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused_int4_width(quantised("llama")) is None
    assert fused_int4_width(tiny_llama()) is None
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    assert int4.layer_types() == ()
    assert fused_int4_width(tiny_llama()) is None


def test_widest_is_the_narrowest_matrix_s() -> None:
    def rule(dtype: torch.dtype, rows: int, out_features: int, in_features: int) -> bool:
        return rows <= (7 if dtype is torch.float32 else out_features // 64) or rows == 100

    wide, narrow = (torch.bfloat16, 2048, 64), (torch.bfloat16, 320, 64)
    assert widest([wide], rule, 1000) == 32
    assert widest([wide, narrow], rule, 1000) == 5
    assert widest([wide, (torch.float32, 4096, 64)], rule, 1000) == 7
    assert widest([wide], rule, 16) == 16
    assert widest([(torch.bfloat16, 0, 64)], rule, 16) == 0


@pytest.fixture
def cuda_ops(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """bitsandbytes' choice of CUDA kernels, as it would be on an H200. A CPU build of torch lacks one name it needs."""
    if not hasattr(torch._C, "_cuda_getCurrentRawStream"):
        monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", None, raising=False)
    ops = pytest.importorskip("bitsandbytes.backends.cuda.ops")
    for private in ("_gpu_dispatch_props", "_gemm_4bit_use_custom_cuda", "_gemm_4bit_use_custom_fn"):
        if not hasattr(ops, private):
            pytest.skip(f"this bitsandbytes has no {private}")
    monkeypatch.setattr(ops, "_gpu_dispatch_props", lambda device_index: (132, 9, 0))
    ops._gemm_4bit_use_custom_cuda.cache_clear()
    yield ops
    ops._gemm_4bit_use_custom_cuda.cache_clear()


def on_cuda(monkeypatch: pytest.MonkeyPatch, *shapes: tuple[int, int]) -> Any:
    """What fused_int4_width asks of a model with int4 layers of these shapes on a CUDA device."""

    class Layer:
        compute_dtype = torch.bfloat16

        def __init__(self, shape: tuple[int, int]) -> None:
            state = SimpleNamespace(shape=torch.Size(shape), blocksize=64)
            self.weight = SimpleNamespace(device=torch.device("cuda:0"), quant_state=state)

    monkeypatch.setattr(int4, "layer_types", lambda: (Layer,))
    layers = [nn.Linear(1, 1), *map(Layer, shapes)]
    return SimpleNamespace(modules=lambda: iter(layers))


LLAMA_3_8B = [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)]


def test_width_by_the_librarys_rule(cuda_ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused_int4_width(on_cuda(monkeypatch, *LLAMA_3_8B)) == 5
    assert fused_int4_width(on_cuda(monkeypatch, *LLAMA_3_8B[:3])) == 7
    assert fused_int4_width(on_cuda(monkeypatch, LLAMA_3_8B[2])) == 32
    # Rows that are no whole blocks are always expanded.
    assert fused_int4_width(on_cuda(monkeypatch, (4096, 4096), (4096, 100))) == 0


@pytest.mark.parametrize("private", ["_gemm_4bit_use_custom_fn", "_gemm_4bit_custom_max_m"])
def test_no_width_where_the_library_does_not_tell(private: str, cuda_ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cuda_ops, private)
    assert fused_int4_width(on_cuda(monkeypatch, *LLAMA_3_8B)) is None


def test_no_width_where_the_rule_takes_other_arguments(cuda_ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_ops, "_gemm_4bit_use_custom_fn", lambda properties: True)
    assert fused_int4_width(on_cuda(monkeypatch, *LLAMA_3_8B)) is None


def last_matrix(name: str) -> str:
    return "transformer.h.1.mlp.c_proj" if name.startswith("gpt2") else "model.layers.1.mlp.down_proj"


@pytest.mark.gpu
@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
def test_int4_on_cuda(name: str) -> None:
    """There no matrix stays dense for its rows, kernels differ by width, and logits are those of either forward."""
    model, _ = load_model(saved(name), "int4", "cuda", expanded_to="float16")
    assert type(model.get_submodule(last_matrix(name))) is bitsandbytes.nn.Linear4bit
    wrapper = ModelWrapper(model)
    assert (wrapper.forward_name, wrapper.dtype) == ("own", torch.float16)
    width = fused_int4_width(model)
    assert width is None or (width == 0 if name.endswith("ragged") else width >= 4)
    tokens = torch.tensor(draw_tokens(48, seed=1), device="cuda")
    expected = model(input_ids=tokens[None], use_cache=False).logits[0]
    cache, end = wrapper.new_cache(48), 0
    for rows in (1, 2, 5, 40):
        start, end = end, end + rows
        logits = wrapper.extend(tokens[start:end], cache, rows)
        assert (logits - expected[start:end]).abs().max() < 0.02 * expected.abs().max()
