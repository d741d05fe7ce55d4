"""The packaged models as their own files describe them, for tests that outlive the next training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specprof.models import checkpoint, hub
from specprof.models.loader import load_tokenizer


def directory_of(name: str) -> Path:
    """Where a packaged model such as ``tiny_dev/draft`` is."""
    directory = hub.local_directory(name)
    assert directory is not None, name
    return directory


def llama_parameters(name: str) -> int:
    """Parameters of a packaged model by its configuration: a Llama whose embedding is its head too."""
    config = checkpoint.read_config(directory_of(name), name)
    assert config["model_type"] == "llama" and config["tie_word_embeddings"] and not config["attention_bias"]
    width, mlp = config["hidden_size"], config["intermediate_size"]
    queries, keys = (config[f"num_{which}_heads"] * config["head_dim"] for which in ("attention", "key_value"))
    layer = 2 * width * queries + 2 * width * keys + 3 * width * mlp + 2 * width
    parameters: int = config["vocab_size"] * width + config["num_hidden_layers"] * layer + width
    return parameters


def new_token(text: Sequence[int], after: int) -> int:
    """The first token behind ``after`` others that is none of them: a text that ends there has had no end before."""
    return next(token for i, token in enumerate(text) if i >= after and token not in text[:i])


def copy_that_ends_at(token: int, name: str, to: Path) -> Path:
    """A copy of a packaged model in which one more token ends a text."""
    shutil.copytree(directory_of(name), to)
    ends: list[Any] = [load_tokenizer(name).eos_token_id, token]
    for file in (to / "config.json", to / "generation_config.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": ends}))
    return to
