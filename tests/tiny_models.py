"""Small random models of every family, built when a test asks for one; nothing is downloaded.

Weights are drawn wide enough that logits are far from flat: greedy choices then differ from
token to token and from model to model. Building leaves the global random state as it was.
Models are cached: a test that changes one must copy it first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from specprof.models.loader import load_tokenizer, quiet_transformers

VOCAB_SIZE = 4096
"""Of :func:`tiny_tokenizer`."""

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}


def _build(config_name: str, seed: int, dtype: torch.dtype, **values: Any) -> Any:
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(getattr(transformers, config_name)(**values))
        for name, parameter in model.named_parameters():
            # Fresh norms are all one and biases all zero, which would hide a forward that forgot them.
            if parameter.dim() == 1:
                centre = 0.0 if name.endswith("bias") else 1.0
                torch.nn.init.normal_(parameter, centre, 0.1)
    return model.to(dtype).eval().requires_grad_(False)


@functools.cache
def tiny_gpt2(seed: int = 0, vocab_size: int = VOCAB_SIZE, dtype: torch.dtype = torch.float32) -> Any:
    """GPT-2: learned positions, biases, fused QKV, tied head."""
    return _build(
        "GPT2Config",
        seed,
        dtype,
        vocab_size=vocab_size,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )


@functools.cache
def tiny_llama(seed: int = 0, vocab_size: int = VOCAB_SIZE, dtype: torch.dtype = torch.float32) -> Any:
    """Llama with grouped queries: 4 heads over 2 key-value heads, untied head."""
    return _build("LlamaConfig", seed, dtype, vocab_size=vocab_size, **SMALL)


@functools.cache
def tiny_llama3_rope(seed: int = 0, vocab_size: int = VOCAB_SIZE, dtype: torch.dtype = torch.float32) -> Any:
    """Llama with Llama-3.1's scaled rotary frequencies, tied head."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    return _build(
        "LlamaConfig", seed, dtype, vocab_size=vocab_size, rope_parameters=rope, tie_word_embeddings=True, **SMALL
    )


@functools.cache
def tiny_mistral(seed: int = 0, vocab_size: int = VOCAB_SIZE, dtype: torch.dtype = torch.float32) -> Any:
    """Mistral with a sliding window of 8 tokens."""
    return _build("MistralConfig", seed, dtype, vocab_size=vocab_size, sliding_window=8, **SMALL)


@functools.cache
def tiny_qwen2(seed: int = 0, vocab_size: int = VOCAB_SIZE, dtype: torch.dtype = torch.float32) -> Any:
    """Qwen2: biases on Q, K and V, tied head."""
    return _build("Qwen2Config", seed, dtype, vocab_size=vocab_size, tie_word_embeddings=True, **SMALL)


@functools.cache
def tiny_qwen3(seed: int = 0, vocab_size: int = VOCAB_SIZE, dtype: torch.dtype = torch.float32) -> Any:
    """Qwen3: norms on Q and K, a head width (16) that is not hidden size over heads."""
    return _build("Qwen3Config", seed, dtype, vocab_size=vocab_size, head_dim=16, **SMALL)


@functools.cache
def tiny_phi3(seed: int = 0, vocab_size: int = VOCAB_SIZE, dtype: torch.dtype = torch.float32) -> Any:
    """Phi-3: fused QKV and gate-up, a sliding window of 8 tokens."""
    values = {**SMALL, "pad_token_id": 0, "original_max_position_embeddings": 256, "sliding_window": 8}
    return _build("Phi3Config", seed, dtype, vocab_size=vocab_size, **values)


@functools.cache
def tiny_gpt_neox(seed: int = 0, vocab_size: int = VOCAB_SIZE, dtype: torch.dtype = torch.float32) -> Any:
    """GPT-NeoX: parallel residual, partial rotary; a family that our own forward doesn't cover."""
    values = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
    return _build("GPTNeoXConfig", seed, dtype, vocab_size=vocab_size, **values)


FAMILIES: dict[str, Callable[..., Any]] = {
    "gpt2": tiny_gpt2,
    "llama": tiny_llama,
    "llama3_rope": tiny_llama3_rope,
    "mistral": tiny_mistral,
    "qwen2": tiny_qwen2,
    "qwen3": tiny_qwen3,
    "phi3": tiny_phi3,
    "gpt_neox": tiny_gpt_neox,
}


@functools.cache
def tiny_tokenizer() -> Any:
    """The packaged tokenizer: 4096 tokens."""
    return load_tokenizer("tiny_dev/target")


def save_model_dir(path: Path, model: Any, tokenizer: Any = None, **options: Any) -> Path:
    """Write a model directory as a user would have it; ``options`` go to ``save_pretrained``."""
    with quiet_transformers():
        model.save_pretrained(path, **options)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
    return path


def random_model(config: Any) -> Any:
    """A model of any configuration, of which no norm is one and no bias zero."""
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = auto.from_config(config)
        for name, parameter in model.named_parameters():
            # Fresh norms are all one and biases all zero, which would hide a forward that forgot them.
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, 0.0 if name.endswith("bias") else 1.0, 0.1)
    return model.eval().requires_grad_(False)
