"""A model directory of the Llama architecture as a GGUF file, for llama.cpp: the same weights, token for token.

The file's vocabulary holds ``<0>``, ``<1>``, ... in place of texts. A prompt written that way is read as exactly
these tokens and output comes back as them, so that no second tokenizer stands between two engines that are compared.
The writing is done by the ``gguf`` package (``pip install gguf``).
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from specprof.errors import ResourceError, UsageError

Array = npt.NDArray[Any]

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_FILE_TYPES = {"float32": 0, "float16": 1}  # ALL_F32, MOSTLY_F16 of llama.cpp's llama_ftype
_ID = re.compile(r"<(\d+)>")


def write_gguf(directory: Path, path: Path, dtype: str) -> None:
    """Write the model in ``directory`` (config.json, model.safetensors) to ``path``.

    Args:
        dtype: float32 or float16, of the matrices; norms are always float32, as llama.cpp wants them.

    Raises:
        ResourceError: the gguf package isn't installed.
        UsageError: the model is not a plain Llama.
    """
    gguf = _gguf()
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if (
        config["model_type"] != "llama"
        or rope.get("rope_type", "default") != "default"
        or config.get("attention_bias")
        or config.get("mlp_bias")
    ):
        raise UsageError(f"{directory} is not a plain Llama model", "only Llama with default RoPE and no biases")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(directory.name)
    writer.add_file_type(_FILE_TYPES[dtype])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([written([token]) for token in range(config["vocab_size"])])
    writer.add_token_types([gguf.TokenType.USER_DEFINED] * config["vocab_size"])
    writer.add_token_merges(["< >"])  # llama.cpp refuses a BPE vocabulary without any; nothing reaches this one
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)

    for name, tensor in tensors(load_file(directory / "model.safetensors"), heads, kv_heads):
        writer.add_tensor(name, tensor.astype(np.float32 if tensor.ndim == 1 else dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(weights: dict[str, Array], heads: int, kv_heads: int) -> Iterator[tuple[str, Array]]:
    """The weights under llama.cpp's names, those of queries and keys in its order of rows. A head that is tied to the
    embedding isn't there in either.

    Raises:
        UsageError: a tensor that a plain Llama doesn't have.
    """
    for name, tensor in weights.items():
        stem = name.removesuffix(".weight")
        if stem in _OUTSIDE:
            yield f"{_OUTSIDE[stem]}.weight", tensor
            continue
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
        if layer is None or layer[2] not in _LAYER:
            raise UsageError(f"{name} is no tensor of a plain Llama model", "only plain Llama models are converted")
        part = _LAYER[layer[2]]
        if part in ("attn_q", "attn_k"):
            tensor = interleaved(tensor, heads if part == "attn_q" else kv_heads)
        yield f"blk.{layer[1]}.{part}.weight", tensor


def interleaved(weight: Array, heads: int) -> Array:
    """Rows of a query or key projection ``[heads * dim, hidden]``, per head from halves (rotary position i turns rows
    i and i + dim/2, as in Hugging Face's Llama) to pairs (rows 2i and 2i + 1, as llama.cpp turns them)."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def written(tokens: Iterable[int]) -> str:
    """Token ids as a text of the file's vocabulary."""
    return "".join(f"<{token}>" for token in tokens)


def read_back(text: str) -> list[int]:
    """The token ids in a text of the file's vocabulary; whatever stands between them is skipped."""
    return [int(token) for token in _ID.findall(text)]


def _gguf() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError:
        raise ResourceError("the models can't be written for llama.cpp: gguf is missing", "pip install gguf") from None
