"""Random weights in true configurations: at reduced depth, and with a tokenizer of the right kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from specprof.errors import UnavailableError, UsageError
from specprof.models.footprint import memory_footprint_bytes, parameter_count
from specprof.models.random_weights import known_models, model_config, random_model, random_tokenizer
from specprof.models.wrapper import ModelWrapper
from tiny_models import save_model_dir, tiny_llama, tiny_qwen2, tiny_tokenizer

TINYLLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
LLAMA_3 = "meta-llama/Meta-Llama-3-8B-Instruct"
PHI_3 = "microsoft/Phi-3-mini-4k-instruct"

TINYLLAMA_LAYER = 2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 5632 + 2 * 2048


# --- true configurations


# Each field as the config.json of the model's repository on the hub has it.
TRUE_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257},
    "gpt2-xl": {"n_layer": 48, "n_embd": 1600, "n_head": 25, "n_positions": 1024, "vocab_size": 50257},
    TINYLLAMA: {
        "num_hidden_layers": 22, "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32,
        "num_key_value_heads": 4, "max_position_embeddings": 2048, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
        "vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    },
    LLAMA_3: {
        "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 8192, "rope_theta": 500000.0, "rms_norm_eps": 1e-5,
        "vocab_size": 128256, "bos_token_id": 128000, "eos_token_id": 128009, "tie_word_embeddings": False,
    },
    PHI_3: {
        "num_hidden_layers": 32, "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 32,
        "num_key_value_heads": 32, "max_position_embeddings": 4096, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
        "vocab_size": 32064, "bos_token_id": 1, "eos_token_id": 32000, "tie_word_embeddings": False,
        "sliding_window": 2047,
    },
}  # fmt: skip


@pytest.mark.parametrize("model_id", TRUE_CONFIGURATIONS)
def test_packaged_configurations_field_by_field(model_id: str) -> None:
    expected = TRUE_CONFIGURATIONS[model_id]
    config = model_config(model_id)
    assert {key: config[key] for key in expected} == expected


def test_a_directory_comes_before_a_packaged_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does when weights are loaded."""
    monkeypatch.chdir(tmp_path)
    save_model_dir(tmp_path / "gpt2", tiny_llama(), random_tokenizer(TINYLLAMA))
    assert model_config("gpt2")["model_type"] == "llama"
    assert len(random_tokenizer("gpt2")) == 2048


# --- reduced depth


@pytest.mark.parametrize(
    ("model_id", "layer", "rest", "head", "stop_ids"),
    [
        # a layer: QKV and projection, two MLP matrices, all with biases, two norms; the rest: positions, a norm
        ("gpt2", 12 * 768**2 + 13 * 768, (1024 + 2) * 768, (50257, 768), {50256}),
        ("gpt2-xl", 12 * 1600**2 + 13 * 1600, (1024 + 2) * 1600, (50257, 1600), {50256}),
        # a layer: Q and O, K and V, three MLP matrices, two norms; the rest: a table apart from the head, a norm
        (TINYLLAMA, TINYLLAMA_LAYER, 32000 * 2048 + 2048, (32000, 2048), {2}),
        (PHI_3, 4 * 3072**2 + 3 * 3072 * 8192 + 2 * 3072, 32064 * 3072 + 3072, (32064, 3072), {32000, 32001, 32007}),
        pytest.param(
            LLAMA_3,
            2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096,
            128256 * 4096 + 4096,
            (128256, 4096),
            {128001, 128009},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_true_shapes_at_reduced_depth(
    model_id: str, layer: int, rest: int, head: tuple[int, int], stop_ids: set[int]
) -> None:
    model = random_model(model_id, "bfloat16", "cpu", num_layers=2)
    parameters = 2 * layer + rest + head[0] * head[1]
    assert parameter_count(model) == parameters
    assert memory_footprint_bytes(model) == pytest.approx(2 * parameters, rel=1e-4)
    assert model.lm_head.weight.shape == head
    assert model.config.num_hidden_layers == 2
    assert ModelWrapper(model, forward="hf").eos_token_ids == stop_ids
    with torch.inference_mode():
        logits = model(torch.tensor([[5, 6, 7]])).logits
    assert logits.shape == (1, 3, head[0])
    assert logits.isfinite().all() and logits.float().std() > 0.1


def test_the_depth_is_all_that_is_reduced() -> None:
    whole, cut = (random_model("tiny_dev/target", "float32", "cpu", num_layers=n) for n in (None, 3))
    assert [len(model.model.layers) for model in (whole, cut)] == [8, 3]
    expected = {name: value for name, value in whole.config.to_dict().items() if "layer" not in name}
    assert {name: value for name, value in cut.config.to_dict().items() if "layer" not in name} == expected
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        kept = whole(ids, output_hidden_states=True).hidden_states[3]
        assert torch.equal(cut.model(ids).last_hidden_state, cut.model.norm(kept))


def test_lists_of_layers_are_cut_with_them(tmp_path: Path) -> None:
    config = tiny_qwen2().config.to_dict()
    types = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config |= {"num_hidden_layers": 4, "layer_types": types, "sliding_window": 8}
    config |= {"use_sliding_window": True, "eos_token_id": [0, 1, 2, 3]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = random_model(str(tmp_path), "float32", "cpu", num_layers=2)
    assert model.config.layer_types == types[:2]
    assert model.config.eos_token_id == [0, 1, 2, 3]  # as long as the layers are many, but no list of layers
    assert [layer.self_attn.sliding_window for layer in model.model.layers] == [None, 8]
    with torch.inference_mode():
        assert model(torch.arange(1, 20)[None]).logits.isfinite().all()


@pytest.mark.parametrize(("model_id", "depth"), [("gpt2", 12), (TINYLLAMA, 22), (LLAMA_3, 32), ("tiny_dev/target", 8)])
def test_a_depth_that_no_model_has(model_id: str, depth: int) -> None:
    for num_layers in (-1, 0):
        with pytest.raises(UsageError) as caught:
            random_model(model_id, "float32", "cpu", num_layers=num_layers)
        assert caught.value.message == f"{model_id} can't be built with {num_layers} layers"
        assert caught.value.hint == f"it has {depth}: give 1 or more"


def test_more_layers_than_there_are_is_all_of_them() -> None:
    depth = model_config("tiny_dev/draft")["num_hidden_layers"]
    model = random_model("tiny_dev/draft", "float32", "cpu", num_layers=depth + 2)
    assert model.config.num_hidden_layers == len(model.model.layers) == depth


def test_int4_at_reduced_depth() -> None:
    pytest.importorskip("bitsandbytes")
    model = random_model(TINYLLAMA, "int4", "cpu", num_layers=1)
    assert parameter_count(model) == 2 * 32000 * 2048 + TINYLLAMA_LAYER + 2048
    (layer,) = model.model.layers
    quantised = [module.weight for module in layer.modules() if hasattr(module, "in_features")]
    assert len(quantised) == 7 and all(weight.dtype is torch.uint8 for weight in quantised)
    # Half a byte a weight and four for each 64 of them; tables, head and norms are float32.
    assert memory_footprint_bytes(model) == pytest.approx(
        (TINYLLAMA_LAYER - 2 * 2048) * (0.5 + 4 / 64) + (2 * 32000 * 2048 + 3 * 2048) * 4, rel=1e-4
    )
    with torch.inference_mode():
        assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


@pytest.mark.slow
def test_int4_of_the_largest_at_reduced_depth() -> None:
    pytest.importorskip("bitsandbytes")
    model = random_model(LLAMA_3, "int4", "cpu", num_layers=1)
    assert model.lm_head.weight.shape == (128256, 4096)
    assert list(model.model.layers[0].self_attn.k_proj.weight.quant_state.shape) == [1024, 4096]
    with torch.inference_mode():
        assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


# --- tokenizers


@pytest.mark.parametrize("model_id", known_models())
def test_the_tokenizer_is_of_the_right_kind_and_fits(model_id: str) -> None:
    tokenizer = random_tokenizer(model_id)
    assert len(tokenizer) <= model_config(model_id)["vocab_size"]
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1
    # A character that no text has is in no vocabulary: it is the bytes it is made of.
    pieces, rare = tokenizer.tokenize("of the"), tokenizer.tokenize("\ue0a5")
    if model_id in (TINYLLAMA, PHI_3, "tiny_cross/draft"):
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
        assert pieces == ["▁of", "▁the"] and rare[1:] == ["<0xEE>", "<0x82>", "<0xA5>"]
    else:
        assert tokenizer.eos_token_id == 0
        assert pieces[-1] == "Ġthe" and "".join(rare) == "îĤ¥"


def test_a_directory_keeps_its_own_tokenizer(tmp_path: Path) -> None:
    own = save_model_dir(tmp_path / "own", tiny_llama(), random_tokenizer("tiny_cross/draft"))
    (own / "model.safetensors").unlink()
    assert len(random_tokenizer(str(own))) == 2048
    none = save_model_dir(tmp_path / "none", tiny_llama())
    assert random_tokenizer(str(none)).get_vocab() == tiny_tokenizer().get_vocab()


def test_a_damaged_tokenizer_of_a_directory_is_not_replaced(tmp_path: Path) -> None:
    directory = save_model_dir(tmp_path / "model", tiny_llama(), tiny_tokenizer())
    (directory / "tokenizer.json").write_text('{"version": "1.0", "model": 3}')
    with pytest.raises(UnavailableError, match="tokenizer of"):
        random_tokenizer(str(directory))
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text("{}")
    with pytest.raises(UnavailableError, match=r"merges\.txt"):
        random_tokenizer(str(directory))


# --- the packaged draft of another vocabulary


def test_the_draft_of_another_vocabulary_reads_and_writes_any_text() -> None:
    tokenizer = random_tokenizer("tiny_cross/draft")
    assert len(tokenizer) == 2048
    for text in ("def f(x):\n    return x + 1", "naïve, 日本 😀", "a  b   c\n\n\td", " leading", "12345"):
        ids = tokenizer.encode(text)
        assert ids[0] != tokenizer.bos_token_id and tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    question = [{"role": "user", "content": "Why?"}]
    expected = tiny_tokenizer().apply_chat_template(question, tokenize=False)
    assert expected == "### Instruction:\nWhy?\n\n### Response:\n"
    assert tokenizer.apply_chat_template(question, tokenize=False) == expected
