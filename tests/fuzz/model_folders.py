"""Folders of models: small sound ones, and what can become of them."""

from __future__ import annotations

import functools
import json
import random
import struct
import tempfile
from pathlib import Path
from typing import Any

from fuzz import values
from fuzz.case import File

_HELD: list[tempfile.TemporaryDirectory[str]] = []
"""Until this process ends."""


@functools.cache
def sound(family: str) -> Path:
    """A small model with the packaged tokenizer, made once in a process."""
    from tiny_models import FAMILIES, save_model_dir, tiny_tokenizer

    _HELD.append(tempfile.TemporaryDirectory(prefix="specprof-fuzz-"))
    folder = Path(_HELD[-1].name) / family
    return save_model_dir(folder, FAMILIES[family](), tiny_tokenizer())


def model_folder(draw: random.Random, name: str) -> list[File]:
    """A copy of a small model, damaged in one or two ways; sometimes in none."""
    family = draw.choice(("llama", "llama", "gpt2", "qwen2", "gpt_neox"))
    source = sound(family)
    files = [File(name, copy_of=source)]
    for _ in range(draw.choice((0, 1, 1, 1, 1, 2))):
        files += draw.choice(_DAMAGES)(draw, name, source)
    return files


def _config(draw: random.Random, name: str, source: Path) -> list[File]:
    config = json.loads((source / "config.json").read_text())
    key = draw.choice((*config, *_SIZES))
    config[key] = draw.choice(_ODD_SETTINGS)
    return [File(f"{name}/config.json", json.dumps(config).encode("utf-8", "surrogatepass"))]


def _sizes(draw: random.Random, name: str, source: Path) -> list[File]:
    """Of a plausible name, and a size that no machine has or that the weights don't."""
    config = json.loads((source / "config.json").read_text())
    present = [key for key in _SIZES if key in config]
    config[draw.choice(present)] = draw.choice((0, 1, 2, 3, 7, 33, 64, 2**16, 2**31, 2**40, 10**12, 2**63, -1))
    return [File(f"{name}/config.json", json.dumps(config).encode())]


_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "head_dim", "n_embd", "n_layer", "n_head", "n_positions", "n_ctx",
    "n_inner", "eos_token_id", "bos_token_id", "pad_token_id",
)  # fmt: skip
_ODD_SETTINGS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 10**30, 0.5, -0.5, 1e308, "", "x", "float64", "gpt2", "t5", "bert", "llama", [], [0],  # noqa: E501
    [0, 4095], [99999], [-1], ["x"], {}, {"rope_type": "yarn"}, {"rope_type": "llama3"}, {"rope_type": "nope"},
    {"quant_method": "gptq"}, ["BertForMaskedLM"], ["T5ForConditionalGeneration"], ["Nope"], {"AutoConfig": "x.Y"},
    "../../x", "/etc/passwd", *values.PAYLOADS[:3], float("nan"), float("inf"), {"x": {"y": 1}},
)  # fmt: skip


def _config_bytes(draw: random.Random, name: str, source: Path) -> list[File]:
    whole = (source / "config.json").read_bytes()
    odd = (b"", b"{}", b"[]", b"null", b"3", b"{", b"\xff\xfe", b"[" * 100_000, b'{"model_type": "llama"}',
           b'{"model_type": 3}', b'{"model_type": "llama", "model_type": "gpt2"}', whole[: draw.randrange(len(whole))],
           whole.decode().encode("utf-16"), b"\xef\xbb\xbf" + whole)  # fmt: skip
    return [File(f"{name}/config.json", draw.choice(odd))]


def _cut_weights(draw: random.Random, name: str, source: Path) -> list[File]:
    whole = (source / "model.safetensors").read_bytes()
    size = draw.choice((0, 1, 7, 8, 9, 100, draw.randrange(len(whole)), len(whole) - 1))
    return [File(f"{name}/model.safetensors", whole[:size] + (b"x" if draw.random() < 0.1 else b""))]


def _header(draw: random.Random, name: str, source: Path) -> list[File]:
    """What the weights' header says, and the weights don't."""
    header, data = _split((source / "model.safetensors").read_bytes())
    tensor = draw.choice([key for key in header if key != "__metadata__"])
    entry = header[tensor]
    match draw.randrange(9):
        case 0:
            entry["shape"] = draw.choice(
                ([], [0], [1], [2**40, 2**40], [-1, -1], ["x"], [1.5], None, entry["shape"][::-1])
            )
        case 1:
            entry["dtype"] = draw.choice(("F64", "F16", "I64", "BOOL", "F8_E4M3", "F4", "NOPE", 3, None, ""))
        case 2:
            entry["data_offsets"] = draw.choice(([0, 0], [0, 2**60], [-1, 5], [5], [], None, ["a", "b"], [0.5, 1]))
        case 3:
            del header[tensor]
        case 4:
            header[draw.choice(("", "x", tensor + "x", values.TITLE, "lm_head.weight"))] = header.pop(tensor)
        case 5:
            header["__metadata__"] = draw.choice((None, 3, {"format": "tf"}, {"x": 3}, []))
        case 6:
            header[tensor] = draw.choice((None, 3, [], {}))
        case 7:
            header = {}
        case _:
            other = draw.choice([key for key in header if key != "__metadata__"])
            header[tensor], header[other] = header[other], header[tensor]
    return [File(f"{name}/model.safetensors", _joined(header, data))]


def _numbers(draw: random.Random, name: str, source: Path) -> list[File]:
    """Weights that are no numbers, or too large for what is done with them."""
    header, data = _split((source / "model.safetensors").read_bytes())
    tensor = draw.choice([key for key in header if key != "__metadata__"])
    begin, end = header[tensor]["data_offsets"]
    number = struct.pack("<f", draw.choice((float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 0.0, 1e-40)))
    some = slice(begin, end) if draw.random() < 0.6 else slice(begin, min(end, begin + 4))
    changed = bytearray(data)
    changed[some] = number * ((some.stop - some.start) // 4)
    return [File(f"{name}/model.safetensors", _joined(header, bytes(changed)))]


def _split(whole: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", whole[:8])
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def _joined(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def _other_weights(draw: random.Random, name: str, source: Path) -> list[File]:
    index: Any = draw.choice(
        ({}, {"weight_map": {}}, {"weight_map": {"a": "b.safetensors"}}, {"weight_map": {"a": "../x.safetensors"}},
         {"weight_map": {"a": 3}}, {"weight_map": []}, {"weight_map": {"a": "model.bin"}},
         {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}, [], None)
    )  # fmt: skip
    return [
        File(f"{name}/model.safetensors", link_to="gone"),
        *draw.choice(
            (
                [],
                [File(f"{name}/pytorch_model.bin", b"\x80\x04cos\nsystem\nq\x00X\x05\x00\x00\x00touchq\x01\x85R.")],
                [File(f"{name}/model.gguf", b"GGUF")],
                [File(f"{name}/model.safetensors.index.json", json.dumps(index).encode())],
                [File(f"{name}/model.safetensors", b"version https://git-lfs.github.com/spec/v1\n")],
            )
        ),
    ]


def _odd_files(draw: random.Random, name: str, source: Path) -> list[File]:
    """A folder, a loop, a device or nothing where a file should be."""
    which = draw.choice(sorted(path.name for path in source.iterdir()))
    place = f"{name}/{which}"
    return draw.choice(
        (
            [File(place, b""), File(place, link_to=which)],
            [File(place, b""), File(place, link_to="/dev/null")],
            [File(place, b""), File(place, link_to="/nowhere/at/all")],
            [File(place, b"")],
            [File(place, b"\x00" * 100)],
            [File(place, b"{}")],
            [File(place, link_to="loop"), File(f"{name}/loop", link_to=which)],
            [File(place, b""), File(place, link_to="folder"), File(f"{name}/folder")],
        )
    )


def _tokenizer(draw: random.Random, name: str, source: Path) -> list[File]:
    which = draw.choice(("tokenizer.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"))
    if not (source / which).is_file():
        return []
    document = json.loads((source / which).read_text())
    if which == "tokenizer.json" and draw.random() < 0.4:
        _other_vocabulary(draw, document)
    else:
        key = draw.choice(list(document))
        document[key] = draw.choice(_ODD_SETTINGS)
    return [File(f"{name}/{which}", json.dumps(document).encode("utf-8", "surrogatepass"))]


def _other_vocabulary(draw: random.Random, document: dict[str, Any]) -> None:
    """Fewer tokens than the model has, or more."""
    vocabulary = document["model"]["vocab"]
    if draw.random() < 0.5:
        for number in range(draw.choice((1, 100))):
            vocabulary[f"extra{number}"] = len(vocabulary)
    else:
        kept = {token: index for token, index in vocabulary.items() if index < draw.choice((0, 10, 300, 4000))}
        document["model"]["vocab"] = kept
        document["model"]["merges"] = []


def _loop(draw: random.Random, name: str, source: Path) -> list[File]:
    return [File(f"{name}/self", link_to=".")] if draw.random() < 0.5 else [File(f"{name}/x", link_to=f"../{name}/x")]


_DAMAGES = (_config, _config, _sizes, _sizes, _config_bytes, _cut_weights, _header, _header, _numbers, _numbers,
            _other_weights, _odd_files, _tokenizer, _tokenizer, _loop)  # fmt: skip
