"""The models inside the package: whole, the ones that were measured, and going on from however a prompt ends."""

from __future__ import annotations

import functools
import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import held_out

import specprof.models
from specprof.data.prompts import Prompt, builtin, encode
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.models.loader import load_model, load_tokenizer
from specprof.models.wrapper import ForwardName, ModelWrapper
from specprof.profiling.caveats import loops

PAIRS = Path(specprof.models.__file__).parent / "pairs"
MODELS = ("tiny_dev/target", "tiny_dev/draft", "tiny_cross/draft")
RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "data/packaged_pair.json").read_text(encoding="utf-8"))
"""Checksums, and what the target wrote when it was put into the package."""


@pytest.fixture(scope="module")
def target() -> ModelWrapper:
    return ModelWrapper(*load_model("tiny_dev/target", "float32", "cpu"))


@pytest.mark.parametrize("model_id", MODELS)
def test_weights_are_the_recorded_ones_and_finite(model_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    folder = PAIRS / model_id
    for name in ("model.safetensors", "tokenizer.json"):
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert digest == RECORDED["sha256"][f"{model_id}/{name}"], f"{model_id}/{name} is not the recorded file"
    model, tokenizer = load_model(model_id, "float16", "cpu", offline=True)
    weights = list(model.parameters())
    assert all(weight.isfinite().all() for weight in weights)
    assert len(tokenizer) == model.config.vocab_size
    assert model.config.max_position_embeddings == 1024


def test_all_of_it_is_small() -> None:
    assert sum(file.stat().st_size for file in PAIRS.rglob("*.safetensors")) <= 25e6


@pytest.mark.parametrize("forward", ["own", "hf"])
def test_the_recorded_continuations(forward: ForwardName) -> None:
    model = ModelWrapper(*load_model("tiny_dev/target", "float32", "cpu"), forward=forward)
    for recorded in RECORDED["continuations"]:
        ids = model.tokenizer.encode(recorded["prompt"])
        assert model.tokenizer.decode(recorded["tokens"]) == recorded["text"]
        assert AutoregressiveDecoder(model).generate(ids, len(recorded["tokens"])).generated_ids == recorded["tokens"]


CODE = 'def mean(values):\n    """Return the mean of a list of numbers.'
BEGINNINGS = {
    '"""': CODE + '\n    """',
    '"""\n': CODE + '\n    """\n',
    ":\n": "def mean(values):\n",
    "indentation": CODE + '\n    """\n    ',
    "space": "def mean(values):\n    return ",
    "nothing": "def mean(values):\n    total = sum(val",
    "colon": "### Instruction:\nWhat is a cell?\n\n### Response:",
    "colon and newline": "### Instruction:\nWhat is a cell?\n\n### Response:\n",
    "space in a sentence": "### Instruction:\nWhat is a cell?\n\n### Response:\nA cell is ",
    "full stop": "### Instruction:\nWhat is a cell?\n\n### Response:\nA cell is a small part.",
}


@pytest.mark.parametrize("ending", BEGINNINGS)
def test_it_goes_on_however_a_prompt_ends(ending: str, target: ModelWrapper) -> None:
    ids = encode(Prompt("a", "code", BEGINNINGS[ending]), target.tokenizer)
    assert target.tokenizer.decode(ids) == BEGINNINGS[ending]
    decoder = AutoregressiveDecoder(target)
    texts = [target.tokenizer.decode(decoder.generate(ids, 24).generated_ids)]
    texts += [target.tokenizer.decode(decoder.generate(ids, 24, 0.8, seed=seed).generated_ids) for seed in range(9)]
    assert sum(bool(text.removesuffix("<|endoftext|>").strip()) for text in texts) >= 9, texts


@functools.cache
def targets_tokenizer() -> Any:
    return load_tokenizer("tiny_dev/target")


@given(st.text(st.sampled_from('ab_1 \t".:,(\u00e9\U0001f600'), max_size=20), st.text(max_size=20))
def test_a_newline_ends_a_token(line: str, rest: str) -> None:
    tokenizer = targets_tokenizer()
    if rest.lstrip(" \t")[:1].isspace():  # several newlines are one token
        return
    begun = tokenizer.encode(line + "\n")
    assert tokenizer.encode(line + "\n" + rest) == begun + tokenizer.encode(rest)


@pytest.mark.slow
def test_packaged_prompts_do_not_end_in_loops() -> None:
    made = list(held_out.continuations(PAIRS / "tiny_dev/target", 96, 0.8, every=3))
    assert len(made) == len(builtin()) / 3
    assert sum(not loops(each.tokens) for each in made) >= 0.8 * len(made)


def test_drafts_are_often_right(target: ModelWrapper) -> None:
    """Better than the first pair's: 2.3 tokens a round at K = 4, by which it is known that this is the trained one."""
    draft = ModelWrapper(*load_model("tiny_dev/draft", "float32", "cpu"))
    same = total = 0
    with torch.inference_mode():
        for prompt in builtin().take(12):
            ids = torch.tensor(encode(prompt, target.tokenizer))
            greedy = [model.extend(ids, model.new_cache(len(ids)), len(ids)).argmax(-1) for model in (target, draft)]
            same, total = same + int((greedy[0] == greedy[1]).sum()), total + len(ids)
    assert same > 0.5 * total
