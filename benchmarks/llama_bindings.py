"""llama.cpp through its Python bindings, llama-cpp-python: its passes, in greedy loops of ours.

The loops do as little as they can between passes: a batch of token ids in, the best token of each row out.
Everything stays loaded between prompts, as on our side.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from llama_binaries import Decoded

from specprof.errors import UnavailableError

_POSITIONS = 1024


class Model:
    """One model and its context; the cache holds what was passed, up to ``length``."""

    def __init__(self, api: Any, path: Path, threads: int) -> None:
        self.api = api
        model_params = api.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self._model = api.llama_model_load_from_file(str(path).encode(), model_params)
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = _POSITIONS
        params.n_threads = params.n_threads_batch = threads
        self._context = self._model and api.llama_init_from_model(self._model, params)
        if not self._context:
            raise UnavailableError(f"llama.cpp can't load {path.name}", "another version of llama-cpp-python may")
        self._vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._memory = api.llama_get_memory(self._context)
        self._batch = api.llama_batch_init(_POSITIONS, 0, 1)
        self.length = 0

    def extend(self, tokens: list[int], rows: int = 1) -> list[int]:
        """Pass tokens behind the cached ones; the best next token after each of the last ``rows``."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = self.length + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index >= len(tokens) - rows
        if self.api.llama_decode(self._context, batch):
            raise UnavailableError("llama.cpp failed to decode", "ask for fewer new tokens")
        self.length += len(tokens)
        logits = np.ctypeslib.as_array(self.api.llama_get_logits(self._context), (rows, self._vocabulary))
        best: list[int] = logits.argmax(1).tolist()
        return best

    def truncate(self, length: int) -> None:
        if length < self.length:
            self.api.llama_memory_seq_rm(self._memory, 0, length, -1)
            self.length = length


class Bindings:
    """llama-cpp-python with the models of a folder, see :class:`llama_binaries.Binaries`.

    Raises:
        UnavailableError: the package isn't installed or doesn't load.
    """

    name = "llama-cpp-python"

    def __init__(self, models: Path, threads: int) -> None:
        try:
            self._api: Any = importlib.import_module("llama_cpp")
        except Exception as error:  # a library that doesn't load is a RuntimeError or an OSError
            raise UnavailableError(f"llama-cpp-python can't be used: {error}", "pip install llama-cpp-python") from None
        self._quiet = self._api.llama_log_callback(lambda level, text, data: None)
        self._api.llama_log_set(self._quiet, None)
        self._api.llama_backend_init()
        self._folder, self._threads = models, threads
        self._models: dict[str, Model] = {}

    def decode(self, dtype: str, k: int, prompt: list[int], length: int) -> Decoded:
        """Decode ``length`` tokens greedily behind a prompt, plainly if ``k`` is 0. The first comes with the prompt's
        pass, and is not counted."""
        target = self._model("target", dtype)
        target.truncate(0)
        tokens = target.extend(prompt)
        if not k:
            begin = perf_counter()
            while len(tokens) < length:
                tokens += target.extend(tokens[-1:])
            return Decoded(length - 1, perf_counter() - begin, tokens=tuple(tokens))

        draft = self._model("draft", dtype)
        draft.truncate(0)
        draft.extend(prompt)
        drafted = accepted = 0
        begin = perf_counter()
        while len(tokens) < length:
            size = min(k, length - len(tokens) - 1)
            # After a round in which everything was accepted the draft has yet to see its own last token.
            proposal = draft.extend(tokens[draft.length - len(prompt) :]) if size else []
            while len(proposal) < size:
                proposal += draft.extend(proposal[-1:])
            chosen = target.extend([tokens[-1], *proposal], size + 1)
            matching = next((i for i, token in enumerate(proposal) if token != chosen[i]), size)
            tokens += chosen[: matching + 1]
            drafted, accepted = drafted + size, accepted + matching
            cached = len(prompt) + len(tokens) - 1
            target.truncate(cached)
            draft.truncate(cached)
        return Decoded(length - 1, perf_counter() - begin, drafted, accepted, tuple(tokens))

    def describe(self) -> dict[str, str | None]:
        return {"kind": "python", "version": self._api.__version__}

    def _model(self, role: str, dtype: str) -> Model:
        name = f"{role}-{dtype}.gguf"
        if name not in self._models:
            self._models[name] = Model(self._api, self._folder / name, self._threads)
        return self._models[name]
