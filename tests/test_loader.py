"""Weights into memory: types, devices, memory, and directories whose weights don't fit their configuration."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from packaged import llama_parameters
from specprof.errors import ResourceError, SpecprofError, UnavailableError, UsageError
from specprof.models import checkpoint, footprint
from specprof.models.devices import DTYPES, choose_device, compute_dtype
from specprof.models.footprint import available_memory, memory_footprint_bytes, memory_needed, parameter_count
from specprof.models.loader import load_model, load_tokenizer
from specprof.models.random_weights import known_models, model_config, random_model
from specprof.models.registry import REGISTRY
from tiny_models import FAMILIES, save_model_dir, tiny_gpt2, tiny_llama, tiny_phi3, tiny_tokenizer

ROOT = Path(__file__).parent.parent
PACKAGED = ROOT / "specprof" / "models" / "pairs" / "tiny_dev"
IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    shutil.copytree(PACKAGED / "draft", directory)
    return directory


def change_config(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def failure(kind: type[SpecprofError], *arguments: Any, **options: Any) -> SpecprofError:
    with pytest.raises(kind) as caught:
        load_model(*arguments, **options)
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


# --- types


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float16", torch.float32),
        ("fp16", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("bf16", torch.bfloat16),
        ("float32", torch.float32),
        ("fp32", torch.float32),
    ],
)
def test_dtypes_on_the_cpu(dtype: str, expected: torch.dtype) -> None:
    model, _ = load_model("tiny_dev/draft", dtype, "cpu")
    assert compute_dtype(dtype, "cpu") is expected
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    parameters = llama_parameters("tiny_dev/draft")
    assert parameter_count(model) == parameters
    assert memory_footprint_bytes(model) == pytest.approx(parameters * expected.itemsize, rel=1e-3)
    assert memory_needed(PACKAGED / "draft", dtype, "cpu") == parameters * expected.itemsize


def test_half_precision_keeps_its_type_on_cuda() -> None:
    assert compute_dtype("float16", "cuda") is torch.float16
    assert compute_dtype("bfloat16", "cuda:1") is torch.bfloat16


def test_float16_on_the_cpu_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="specprof")
    load_model("tiny_dev/draft", "float16", "cpu")
    assert "float16 weights compute in float32" in caplog.text
    caplog.clear()
    load_model("tiny_dev/draft", "float32", "cpu")
    assert caplog.text == ""


def test_weights_are_those_of_the_file() -> None:
    from safetensors.torch import load_file

    model, _ = load_model("tiny_dev/target", "float32", "cpu")
    stored = load_file(PACKAGED / "target" / "model.safetensors")
    state = model.state_dict()
    assert set(stored) == set(state) - {"lm_head.weight"}
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in stored.items())
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_int4() -> None:
    bitsandbytes: Any = pytest.importorskip("bitsandbytes")
    reference, _ = load_model("tiny_dev/target", "float32", "cpu")
    model, _ = load_model("tiny_dev/target", "int4", "cpu")
    up = model.model.layers[0].mlp.up_proj
    assert up.weight.dtype is torch.uint8
    assert up.weight.numel() * 2 == 672 * 256
    assert up.compute_dtype is torch.float32
    # Rows of 672 are not whole blocks of 64, which bitsandbytes gets wrong on the CPU.
    assert model.model.layers[0].mlp.down_proj.weight.dtype is torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert parameter_count(model) == parameter_count(reference) == llama_parameters("tiny_dev/target")
    assert memory_footprint_bytes(model) == pytest.approx(memory_needed(PACKAGED / "target", "int4", "cpu"), rel=1e-3)
    assert memory_footprint_bytes(model) < memory_footprint_bytes(reference) / 2
    # Every weight is the original up to the error of NF4 (about 9 % of a normal distribution), and the model
    # computes exactly what a float32 model with those rounded weights does, the first time and again.
    rounded = copy.deepcopy(reference)
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            values = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            original = reference.get_submodule(name).weight
            assert 0.03 < (values - original).norm() / original.norm() < 0.15
            rounded.get_submodule(name).weight.copy_(values)
    with torch.inference_mode():
        first, again, expected = model(IDS).logits, model(IDS).logits, rounded(IDS).logits
    assert torch.equal(first, again)
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first, reference(IDS).logits, atol=1e-2)


def test_unknown_dtype_lists_the_known() -> None:
    error = failure(UsageError, "tiny_dev/draft", "float8")
    assert "float8" in error.message
    assert all(name in error.hint for name in (*DTYPES, "nf4"))


def test_int4_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    error = failure(ResourceError, "tiny_dev/draft", "int4", "cpu")
    assert error.exit_code == 4
    assert "pip install bitsandbytes" in error.hint
    with pytest.raises(ResourceError, match="bitsandbytes"):
        random_model("gpt2", "nf4", "cpu")


# --- devices and memory


def test_default_device_is_cuda_if_there_is_any() -> None:
    assert choose_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert "no CUDA device" in failure(ResourceError, "tiny_dev/draft", "float16", "cuda").message
    assert "MPS" in failure(ResourceError, "tiny_dev/draft", "float16", "mps").message
    for bad in ("gpu", "cuda:x", "meta"):
        assert failure(UsageError, "tiny_dev/draft", "float16", bad).exit_code == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "cuda:3" in failure(ResourceError, "tiny_dev/draft", "float16", "cuda:3").message


def test_too_little_memory_names_both_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "available_memory", lambda device: 1_400_000_000)
    with pytest.raises(ResourceError, match=r"needs 6\.2 GB on cpu, 1\.4 GB are available"):
        random_model("gpt2-xl", "float32", "cpu")
    monkeypatch.setattr(footprint, "available_memory", lambda device: 20_000_000)
    assert "0.0 GB are available" in failure(ResourceError, "tiny_dev/target", "float32", "cpu").message


def test_available_memory_is_within_the_container(tmp_path: Path) -> None:
    import psutil

    assert 0 < available_memory("cpu") <= psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 200000\n")
    assert footprint._container_room(tmp_path) == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert footprint._container_room(tmp_path) is None
    assert footprint._container_room(tmp_path / "none") is None


# --- tokenizers


def test_packaged_tokenizers_are_one() -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (PACKAGED / "draft" / name).read_bytes() == (PACKAGED / "target" / name).read_bytes()
    tokenizer = load_tokenizer("tiny_dev/draft")
    text = "def f(x):\n    return x + 1  # naïve, 日本"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer) == 4096


def test_packaged_chat_template() -> None:
    tokenizer = load_tokenizer("tiny_dev/target")

    def render(*contents: str) -> Any:
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    article = "Title\n\nSome text.\n\nSummarize the above article:"
    assert render(article) == article + "\n"
    assert render("Why?") == "### Instruction:\nWhy?\n\n### Response:\n"
    assert render("Hi", "Hello.", "Why?") == (
        "### Instruction:\nHi\n\n### Response:\nHello.\n\n### Instruction:\nWhy?\n\n### Response:\n"
    )
    with pytest.raises(Exception, match="user and assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_tokenizer_failures(model_dir: Path) -> None:
    (model_dir / "tokenizer.json").write_text('{"version": "1.0", "model": 3}')
    error = failure(UnavailableError, str(model_dir), "float32", "cpu")
    assert "the tokenizer of" in error.message
    (model_dir / "tokenizer.json").unlink()
    assert "no tokenizer files" in failure(UnavailableError, str(model_dir), "float32", "cpu").message


# --- directories that transformers would load into something else, or not at all


def test_a_directory_as_save_pretrained_writes_it(tmp_path: Path) -> None:
    for name in ("gpt2", "phi3"):
        original = FAMILIES[name]()
        directory = save_model_dir(tmp_path / name, original, tiny_tokenizer(), max_shard_size="200kB")
        assert (directory / "model.safetensors.index.json").is_file()
        model, tokenizer = load_model(str(directory), "float32", "cpu")
        with torch.inference_mode():
            assert torch.equal(model(IDS).logits, original(IDS).logits)
        assert tokenizer.eos_token_id == 0


def test_half_the_bytes_of_the_weights(model_dir: Path) -> None:
    path = model_dir / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "damaged" in failure(UnavailableError, str(model_dir), "float32", "cpu").message


def test_weights_of_another_shape(model_dir: Path) -> None:
    stored = json.loads((model_dir / "config.json").read_text())["intermediate_size"]
    change_config(model_dir, intermediate_size=stored + 64)
    error = failure(UnavailableError, str(model_dir), "float32", "cpu")
    assert "don't fit its config.json: model.layers.0.mlp." in error.message
    assert str(stored + 64) in error.message
    assert str(stored) in error.message


def test_weights_that_lack_a_layer(model_dir: Path) -> None:
    stored = json.loads((model_dir / "config.json").read_text())["num_hidden_layers"]
    change_config(model_dir, num_hidden_layers=stored + 1)
    error = failure(UnavailableError, str(model_dir), "float32", "cpu")
    assert f"lack model.layers.{stored}." in error.message
    assert "8 more tensors" in error.message


def test_untied_head_that_was_never_stored(model_dir: Path) -> None:
    change_config(model_dir, tie_word_embeddings=False)
    assert "lack lm_head.weight" in failure(UnavailableError, str(model_dir), "float32", "cpu").message


def test_weights_without_a_place_are_said(model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copy(PACKAGED / "target" / "model.safetensors", model_dir)
    shutil.copy(PACKAGED / "target" / "config.json", model_dir)
    change_config(model_dir, num_hidden_layers=7)
    load_model(str(model_dir), "float32", "cpu")
    assert "no place for 9 tensors (model.layers.7." in caplog.text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "not a causal language model (BertForMaskedLM)"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "not a causal language model"),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "not a causal language model"),
        ({"model_type": "llama9000"}, "does not know the model type 'llama9000'"),
        ({"model_type": ...}, "names no model_type"),
        ({"hidden_size": "wide"}, "makes no sense to transformers"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised already"),
    ],
)
def test_configurations_that_are_refused(model_dir: Path, values: dict[str, Any], said: str) -> None:
    change_config(model_dir, **values)
    assert said in failure(UnavailableError, str(model_dir), "float32", "cpu").message


def test_code_that_comes_with_a_model_runs_only_on_request(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    (model_dir / "configuration_own.py").write_text(
        f"from transformers import LlamaConfig\nopen({str(ran)!r}, 'w').close()\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    (model_dir / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_own import OwnConfig\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    change_config(
        model_dir,
        model_type="own",
        architectures=["OwnForCausalLM"],
        auto_map={
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    )
    error = failure(UnavailableError, str(model_dir), "float32", "cpu")
    assert "--trust-remote-code" in error.hint
    assert not ran.exists()
    # Trusted code is copied into a cache of modules: keep that out of the user's.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    model, _ = load_model(str(model_dir), "float32", "cpu", trust_remote_code=True)
    assert type(model).__name__ == "OwnForCausalLM"
    assert ran.exists()
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)


def python(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_loading_says_nothing() -> None:
    dtypes = ["float16", "int4"] if importlib.util.find_spec("bitsandbytes") else ["float16"]
    script = (
        "import sys; from specprof.models.loader import load_model\n"
        "[load_model('tiny_dev/draft', dtype, 'cpu') for dtype in sys.argv[1:]]"
    )
    done = python(script, *dtypes)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_model_is_reported_before_torch_is_imported() -> None:
    script = (
        "import sys\nfrom specprof.models.loader import load_model\n"
        "try:\n    load_model('no-such/model')\n"
        "except Exception as error:\n    print(type(error).__name__, 'torch' in sys.modules)"
    )
    assert python(script).stdout.split() == ["UnavailableError", "False"]


# --- random weights


@pytest.mark.parametrize(
    ("model_id", "millions", "vocabulary"),
    [
        ("gpt2", 124.4, 50257),
        ("gpt2-xl", 1557.6, 50257),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1100.0, 32000),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8030.3, 128256),
        ("microsoft/Phi-3-mini-4k-instruct", 3821.1, 32064),
    ],
)
def test_packaged_configurations_are_the_true_ones(model_id: str, millions: float, vocabulary: int) -> None:
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    config = transformers.AutoConfig.for_model(**model_config(model_id))
    with torch.device("meta"):
        model = auto.from_config(config)
    assert round(parameter_count(model) / 1e6, 1) == millions
    assert config.vocab_size == vocabulary
    if "Llama-3" in model_id:
        assert (config.rope_parameters["rope_theta"], config.num_key_value_heads) == (500000.0, 8)
    if "Phi-3" in model_id:
        assert config.sliding_window == 2047


def test_every_registered_model_can_be_built() -> None:
    needed = {model_id for pair in REGISTRY.values() for model_id in (pair.draft_model_id, pair.target_model_id)}
    assert needed == set(known_models())


def test_random_gpt2_is_the_true_architecture() -> None:
    start = time.perf_counter()
    model = random_model("gpt2", "float16", "cpu")
    assert time.perf_counter() - start < 15
    assert parameter_count(model) == 124_439_808
    assert memory_footprint_bytes(model) == 4 * 124_439_808
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not model.training
    block = model.transformer.h[11]
    assert torch.equal(block.ln_1.weight, torch.ones(768))
    assert torch.equal(block.attn.c_attn.bias, torch.zeros(2304))
    weight = block.mlp.c_fc.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert not torch.equal(weight[0], weight[1])
    with torch.inference_mode():
        logits = model(IDS).logits
    assert logits.shape == (1, 4, 50257)
    assert logits.isfinite().all()
    assert logits.std() > 0.1


def test_random_llama_has_the_true_buffers_and_the_seed_counts() -> None:
    reference, _ = load_model("tiny_dev/target", "float32", "cpu")
    model = random_model("tiny_dev/target", "float32", "cpu", seed=1)
    buffers = dict(reference.named_buffers())
    assert {name for name, _ in model.named_buffers()} == set(buffers)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name])
    assert "model.rotary_emb.inv_freq" in buffers
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with torch.inference_mode():
        first, same, other = (
            random_model("tiny_dev/target", "float32", "cpu", seed=seed)(IDS).logits for seed in (1, 1, 2)
        )
    assert first.isfinite().all()
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_random_int4() -> None:
    pytest.importorskip("bitsandbytes")
    model = random_model("tiny_dev/target", "int4", "cpu")
    assert parameter_count(model) == llama_parameters("tiny_dev/target")
    assert memory_footprint_bytes(model) == pytest.approx(memory_needed(PACKAGED / "target", "int4", "cpu"), rel=1e-3)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    layers = model.model.layers
    assert layers[0].mlp.up_proj.weight.dtype is torch.uint8
    assert layers[0].mlp.up_proj.weight.data_ptr() != layers[1].mlp.up_proj.weight.data_ptr()
    with torch.inference_mode():
        assert model(IDS).logits.isfinite().all()


def test_random_model_of_a_directory_without_weights(tmp_path: Path) -> None:
    tiny_phi3().config.save_pretrained(tmp_path)
    model = random_model(str(tmp_path), "bfloat16", "cpu")
    assert parameter_count(model) == parameter_count(tiny_phi3())
    assert model.dtype is torch.bfloat16
    assert model.model.rotary_emb.inv_freq.dtype is torch.float32
    change_config(tmp_path, num_attention_heads=0)
    with pytest.raises(UnavailableError, match="can't build"):
        random_model(str(tmp_path), "float32", "cpu")


def test_random_model_of_an_unknown_id() -> None:
    with pytest.raises(UnavailableError, match="no configuration of org/unknown is packaged") as caught:
        random_model("org/unknown")
    assert "gpt2-xl" in caught.value.hint


@pytest.mark.gpu
def test_loading_on_cuda() -> None:
    for dtype, expected in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        model, _ = load_model("tiny_dev/target", dtype, "cuda")
        assert {p.dtype for p in model.parameters()} == {expected}
        assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"cuda"}
        twin = random_model("tiny_dev/target", dtype, "cuda")
        assert {t.device.type for t in (*twin.parameters(), *twin.buffers())} == {"cuda"}
        assert twin(IDS.cuda()).logits.isfinite().all()


# --- the tiny models themselves


@pytest.mark.parametrize("name", FAMILIES)
def test_tiny_models_are_not_flat(name: str) -> None:
    state = torch.random.get_rng_state()
    model = FAMILIES[name](seed=3, vocab_size=64)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.inference_mode():
        logits = model(torch.arange(1, 33)[None]).logits[0]
    assert logits.shape == (32, 64)
    assert logits.std() > 0.5
    assert logits.argmax(-1).unique().numel() > 4
    assert all(parameter.abs().max() > 0 for parameter in model.parameters())


def test_parameters_and_bytes_by_hand() -> None:
    # gpt2: two tables, 2 x (2 norms, QKV, projection, two MLP matrices, with biases), final norm.
    block = 2 * 64 + 32 * 96 + 96 + 32 * 32 + 32 + 32 * 128 + 128 + 128 * 32 + 32
    assert parameter_count(tiny_gpt2()) == 4096 * 32 + 256 * 32 + 2 * block + 64
    # llama, untied: two tables, 2 x (Q, K, V, O, three MLP matrices, 2 norms), final norm.
    block = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48 + 64
    expected = 2 * 4096 * 32 + 2 * block + 32
    assert parameter_count(tiny_llama()) == expected
    assert memory_footprint_bytes(tiny_llama()) == 4 * expected + 2 * 4 * 4  # and two buffers of 4 frequencies
    stored = checkpoint.stored_tensors(PACKAGED / "target", "tiny_dev/target")
    loaded, _ = load_model("tiny_dev/target", "fp32", "cpu")
    assert sum(math.prod(tensor.shape) for tensor in stored) == parameter_count(loaded)
