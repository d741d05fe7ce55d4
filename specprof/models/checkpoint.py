"""What a model's directory holds: its configuration, its tokenizer's files, its weights as their headers describe them.

Nothing here reads weights: a safetensors file is judged by its header and its size.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specprof.errors import UnavailableError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of weights that can run code when loaded."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
DESCRIPTIONS = (".json", ".model", ".txt", ".jinja")
"""Endings of the files beside the weights that a model is made from."""
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers")
_WIDTHS = (
    "vocab_size", "hidden_size", "n_embd", "intermediate_size", "n_inner", "num_attention_heads", "n_head",
    "num_key_value_heads", "head_dim", "num_local_experts", "num_experts",
)  # fmt: skip
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx")
_MOST_LAYERS, _WIDEST, _MOST_POSITIONS = 10_000, 2**24, 2**31
_SLACK = 8
"""Of sizes against weights: only what would exhaust memory on the way to a better message is refused here."""
_MAX_HEADER_BYTES = 100_000_000
_SAMPLE_BYTES = 4096
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as a safetensors header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Where in its file."""
    num_bytes: int

    @property
    def is_parameter(self) -> bool:
        """False for attention masks and frequencies that old checkpoints stored as weights (gpt2's do)."""
        is_mask = self.name.endswith(("attn.bias", "attention.bias")) and len(self.shape) == 4
        return not (is_mask or self.name.endswith((".masked_bias", "rotary_emb.inv_freq")))


def check_model_directory(directory: Path, model_id: str) -> None:
    """Raise UnavailableError unless ``directory`` holds a readable config.json and intact safetensors weights."""
    config = read_config(directory, model_id)
    missing = missing_files(directory)
    if missing:
        raise _missing_weights(directory, model_id, missing)
    tensors = stored_tensors(directory, model_id)
    _check_sizes_fit(config, tensors, model_id)
    stored = {tensor.name for tensor in tensors}
    absent = sorted(set(_weight_map(directory, model_id)) - stored)
    if absent:
        raise UnavailableError(
            f"the weights of {model_id} are incomplete: its index names {absent[0]}"
            f"{f' and {len(absent) - 1} more tensors' if len(absent) > 1 else ''}, no file holds it",
            _fetch_again(directory, model_id),
        )


def check_tokenizer_files(directory: Path, model_id: str) -> None:
    """Raise UnavailableError unless ``directory`` holds a tokenizer in one of the usual forms."""
    present = tokenizer_files(directory)
    if not present:
        raise UnavailableError(
            f"{model_id} has no tokenizer files",
            f"put tokenizer.json and tokenizer_config.json into {directory} (tokenizer.save_pretrained writes them)",
        )
    if present == ["vocab.json"] and not (directory / "merges.txt").is_file():
        raise UnavailableError(
            f"the tokenizer of {model_id} is incomplete: vocab.json is there, merges.txt is not",
            f"copy merges.txt (or tokenizer.json) into {directory}",
        )


def tokenizer_files(directory: Path) -> list[str]:
    """Names of the files in ``directory`` that a tokenizer can be made from."""
    return [name for name in _TOKENIZERS if (directory / name).is_file()]


def read_config(directory: Path, model_id: str) -> dict[str, Any]:
    """``config.json`` as a dictionary.

    Raises:
        UnavailableError: it is missing, not a JSON object, or of a size that no model has.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise UnavailableError(
            f"{model_id} is not a model: it has no config.json",
            f"give the directory that holds config.json and {WEIGHTS} (looked in {directory})",
        )
    config = _json_object(path, model_id)
    for key, size in _sizes(config):
        if size > (_MOST_LAYERS if key in _DEPTHS else _MOST_POSITIONS if key in _POSITIONS else _WIDEST):
            raise _too_large(model_id, key, size, "no model is that large")
    return config


def _check_sizes_fit(config: dict[str, Any], tensors: list[StoredTensor], model_id: str) -> None:
    """Refuse, before anything is built by it, a configuration of another order of magnitude than the weights."""
    largest = max((size for tensor in tensors for size in tensor.shape), default=0)
    for key, size in _sizes(config):
        if key in _DEPTHS and size > _SLACK * len(tensors):
            raise _too_large(model_id, key, size, f"its weights are {len(tensors)} tensors")
        if key in _WIDTHS and size > _SLACK * largest:
            raise _too_large(model_id, key, size, f"the longest side of its weights is {largest}")


def _sizes(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The sizes that a configuration names, those of a model inside another among them."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key, value in part.items():
            if key in (*_DEPTHS, *_WIDTHS, *_POSITIONS) and type(value) in (int, float):
                yield key, value


def _too_large(model_id: str, key: str, size: int, why: str) -> UnavailableError:
    return UnavailableError(
        f"config.json of {model_id} says {key} = {str(size)[:24]}, and {why}",
        "use the config.json of the original model",
    )


def missing_files(directory: Path) -> list[str]:
    """Names of the files that loading needs and ``directory`` lacks; empty if it is complete."""
    missing = [] if (directory / CONFIG).is_file() else [CONFIG]
    if not (directory / WEIGHTS).is_file():
        if (directory / INDEX).is_file():
            shards = sorted(set(_weight_map(directory, str(directory)).values()))
            missing += [name for name in shards if not (directory / name).is_file()]
        else:
            missing.append(WEIGHTS)
    return missing


def fingerprint(directory: Path) -> str:
    """12 hexadecimal digits that tell a model without a commit from its retrained self.

    Of configuration and tokenizer the whole contents; of weights a few bytes from the middle of every tensor, because
    reading gigabytes takes too long and training changes nearly all numbers of a tensor that it changes at all.

    Raises:
        UnavailableError: the weights are incomplete or damaged.
    """
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.suffix in DESCRIPTIONS and path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    for path in _weight_files(directory, str(directory)):
        tensors = _read_header(path, str(directory))
        with path.open("rb") as file:
            for tensor in tensors:
                digest.update(f"{path.name}\0{tensor.name}\0{tensor.dtype}\0{tensor.shape}\0".encode())
                file.seek(tensor.begin + max(0, tensor.num_bytes - _SAMPLE_BYTES) // 2)
                digest.update(file.read(min(tensor.num_bytes, _SAMPLE_BYTES)))
    return digest.hexdigest()[:12]


def stored_tensors(directory: Path, model_id: str) -> list[StoredTensor]:
    """Every tensor of the weights, from the headers alone.

    Raises:
        UnavailableError: a file that is truncated, or not safetensors.
    """
    return [tensor for path in _weight_files(directory, model_id) for tensor in _read_header(path, model_id)]


def _weight_files(directory: Path, model_id: str) -> list[Path]:
    names = sorted(set(_weight_map(directory, model_id).values())) or [WEIGHTS]
    return [directory / name for name in names]


def _weight_map(directory: Path, model_id: str) -> dict[str, str]:
    """Tensor name to shard name; empty for weights in one file."""
    path = directory / INDEX
    if (directory / WEIGHTS).is_file() or not path.is_file():
        return {}
    weight_map = _json_object(path, model_id).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnavailableError(f"{INDEX} of {model_id} has no weight_map", _fetch_again(directory, model_id))
    for name in weight_map.values():
        # A shard lies beside its index: a path would let an index read other files.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UnavailableError(
                f"{INDEX} of {model_id} names {name!r}, which is not a safetensors file beside it",
                _fetch_again(directory, model_id),
            )
    return weight_map


def _read_header(path: Path, model_id: str) -> list[StoredTensor]:
    """Tensors of one file. Format: 8 bytes of length, a JSON header, then the data, nothing after it.

    Source: https://huggingface.co/docs/safetensors/index#format
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start == b"version ":
                raise UnavailableError(
                    f"{path.name} of {model_id} is a Git LFS pointer, not the weights",
                    f"run `git lfs pull` in {path.parent}",
                )
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise _corrupt(path, model_id, f"it ends inside its header, at {size} bytes")
            header = file.read(length)
    except OSError as error:
        raise _unreadable(path, error) from error
    data = 8 + length
    try:
        entries = json.loads(header).items()
        tensors = [_stored(name, entry, data) for name, entry in entries if name != "__metadata__"]
        end = max(tensor.begin + tensor.num_bytes for tensor in tensors)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _corrupt(path, model_id, "its header can't be read") from error
    if end != size:
        raise _corrupt(path, model_id, f"it has {size} bytes, its header describes {end}")
    return tensors


def _stored(name: str, entry: dict[str, Any], data: int) -> StoredTensor:
    """One header entry, its offsets counted from ``data``; ValueError unless they enclose exactly its elements."""
    (begin, end), shape = entry["data_offsets"], tuple(entry["shape"])
    bits = _BITS.get(entry["dtype"])
    whole = all(type(number) is int and number >= 0 for number in (begin, end, *shape))
    if not whole or end < begin or (bits and (end - begin) * 8 != math.prod(shape) * bits):
        raise ValueError(f"{name}: {entry}")
    return StoredTensor(name, entry["dtype"], shape, data + begin, end - begin)


def _json_object(path: Path, model_id: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        reason = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "not UTF-8 text"
        raise UnavailableError(
            f"{path.name} of {model_id} is not valid JSON ({reason})", _fetch_again(path.parent, model_id)
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if not isinstance(value, dict):
        raise UnavailableError(f"{path.name} of {model_id} is not a JSON object", _fetch_again(path.parent, model_id))
    return value


def _missing_weights(directory: Path, model_id: str, missing: list[str]) -> UnavailableError:
    if missing != [WEIGHTS]:
        return UnavailableError(
            f"{model_id} is incomplete: {count(missing)} of its index {'is' if len(missing) == 1 else 'are'} missing"
            f" ({some(missing)})",
            _fetch_again(directory, model_id),
        )
    names = sorted(path.name for path in directory.iterdir())
    pickles = [name for name in names if name.endswith(PICKLES)]
    others = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    if any(name.startswith("model-0") for name in others):
        return UnavailableError(
            f"{model_id} has shards but no {INDEX}", f"copy the index file into {directory} as well"
        )
    if others:
        return UnavailableError(
            f"{model_id} has no {WEIGHTS} (found {some(others)})",
            "give a directory written by save_pretrained, or rename the file if it holds the same tensors",
        )
    if pickles:
        return pickled_weights(model_id, pickles, str(directory))
    return UnavailableError(
        f"{model_id} has no weights: no {WEIGHTS} in {directory}",
        "give a directory written by save_pretrained, or fetch the weights",
    )


def pickled_weights(model_id: str, names: list[str], source: str) -> UnavailableError:
    """The refusal of weights that only a pickle holds: loading one runs whatever code is in it."""
    return UnavailableError(
        f"{model_id} has pickled weights only ({some(names)}), which can run code when loaded: refused",
        'if you trust them, convert them once: python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{source}', use_safetensors=False).save_pretrained('converted')\" "
        "and copy the tokenizer files",
    )


def _corrupt(path: Path, model_id: str, why: str) -> UnavailableError:
    return UnavailableError(f"{path.name} of {model_id} is damaged: {why}", _fetch_again(path.parent, model_id))


def _unreadable(path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(f"can't read {path}: {error.strerror}", "check its permissions")


def _fetch_again(directory: Path, model_id: str) -> str:
    if directory.parent.name == "snapshots" and directory.parents[1].name == f"models--{model_id.replace('/', '--')}":
        return f"remove it from the cache with `hf cache rm model/{model_id}`, then run this again with a network"
    return f"copy or convert the model into {directory} again"


def count(names: list[str]) -> str:
    return f"{len(names)} file{'s' if len(names) > 1 else ''}"


def some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
