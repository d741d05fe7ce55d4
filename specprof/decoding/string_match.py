"""String-level exact match (SLEM): the draft writes text, the target's tokenizer reads it.

Timor et al. 2025 (arXiv 2502.05202), algorithm 2. The draft uses all of its own vocabulary, and the two
tokenizers need have nothing in common; every proposal takes a detour over text. Proposals come with no law that they
were drawn from, so this is for greedy decoding. The target's own tokens are never read anew: what is
emitted is what the target chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from specprof.decoding.drafters import Draft, with_room
from specprof.decoding.request import Request
from specprof.errors import UsageError
from specprof.models.kv_cache import KVCache
from specprof.models.scores import scores_of
from specprof.models.wrapper import ModelWrapper

_WINDOW = 8
"""Tokens before a continuation that are read together with it: where they end, pieces are cut as in running text."""
_UNFINISHED = "\ufffd"
"""What the bytes of a character that is not complete yet decode to."""


class StringMatch:
    """Drafts text with a model of any vocabulary.

    Args:
        model: the draft, with its tokenizer.
        target_tokenizer: a Hugging Face tokenizer.
        target_size: rows of the target's head.
    """

    def __init__(self, model: ModelWrapper, target_tokenizer: Any, target_size: int) -> None:
        self.model = model
        self.target_tokenizer = target_tokenizer
        self.target_size = target_size

    def start(self, request: Request, *, detail: bool, target_cache: KVCache | None = None) -> None:
        if not request.sampling.greedy:
            raise UsageError(
                "string-level matching can't be sampled with: its proposals have no probabilities",
                "use --temperature 0 or --vocab-method tli",
            )
        self._keep_probs = detail
        self._emitted = list(request.prompt_ids)
        self._unread = 0  # tokens at the end of _emitted that the draft has not been given yet
        tokenizer = self.model.tokenizer
        text = _decode(self.target_tokenizer, request.prompt_ids)
        self._context = list(request.draft_prompt_ids or tokenizer.encode(text) or [0])
        self._drafted: list[int] = []
        self._cache: KVCache = self.model.new_cache(len(self._context) + request.max_new_tokens)
        self.model.extend(torch.tensor(self._context, device=self.model.device), self._cache)

    def propose(self, k: int) -> Draft:
        # While part of a character is unread, what the draft would write does not follow what the target wrote.
        self._drafted, scores = ([], None) if self._unread else self._write(k)
        text = _continuation(self.model.tokenizer, self._context, self._drafted).rstrip(_UNFINISHED)
        tokens = _encode_after(self.target_tokenizer, self._emitted, text)[:k]
        # A tokenizer may know tokens that its model's head has no row for.
        tokens = tokens[: next((i for i, token in enumerate(tokens) if token >= self.target_size), k)]
        proposed = torch.tensor(tokens, dtype=torch.long, device=self.model.device)
        probs = F.one_hot(proposed, self.target_size).float() if self._keep_probs and tokens else None
        return Draft(proposed, probs, scores=scores)

    def _write(self, k: int) -> tuple[list[int], Tensor | None]:
        """The k tokens that the draft finds most probable, one after the other, and the logit of each."""
        self._cache, k = with_room(self.model, self._cache, len(self._context), k)
        step = torch.tensor(self._context[self._cache.length :], device=self.model.device)
        written, scores = [], []
        for _ in range(k):
            logits = self.model.extend(step, self._cache)
            step = logits.argmax(-1)
            written.append(step)
            scores.append(scores_of(logits, step))
        return (torch.cat(written).tolist(), torch.cat(scores)) if written else ([], None)

    def observe(self, tokens: Sequence[int]) -> None:
        before = len(self._emitted) - self._unread
        self._emitted.extend(tokens)
        text = _continuation(self.target_tokenizer, self._emitted[:before], self._emitted[before:])
        self._unread = len(self._emitted) - before if text.endswith(_UNFINISHED) else 0
        if not self._unread:
            kept, rest = self._agreed(text)
            self._context += kept
            valid = len(self._context)
            self._context += _encode_after(self.model.tokenizer, self._context, rest)
        else:
            valid = len(self._context)
        self._cache.truncate(min(self._cache.length, valid, len(self._context) - 1))

    def _agreed(self, text: str) -> tuple[list[int], str]:
        """The drafted tokens that ``text`` begins with, and the rest of it."""
        for count in range(len(self._drafted), 0, -1):
            written = _continuation(self.model.tokenizer, self._context, self._drafted[:count])
            if text.startswith(written) and not written.endswith(_UNFINISHED):
                return self._drafted[:count], text[len(written) :]
        return [], text


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _window(tokenizer: Any, tokens: Sequence[int]) -> tuple[list[int], str]:
    """The last tokens and their text. They don't begin inside a character, if that can be helped: in SentencePiece's
    reading, one byte astray spoils all that are next to it.
    """
    for size in range(_WINDOW, _WINDOW + 4):
        window = list(tokens[-size:])
        text = _decode(tokenizer, window)
        if not text.startswith(_UNFINISHED):
            break
    return window, text


def _continuation(tokenizer: Any, before: Sequence[int], ids: Sequence[int]) -> str:
    """The text that ``ids`` add to that of the tokens before them (a piece decoded alone loses its leading space)."""
    window, known = _window(tokenizer, before)
    return _decode(tokenizer, [*window, *ids])[len(known) :]


def _encode_after(tokenizer: Any, before: Sequence[int], text: str) -> list[int]:
    """Tokens of a text that follows given tokens."""
    if not text:
        return []
    window, known = _window(tokenizer, before)
    together = tokenizer.encode(known + text, add_special_tokens=False)
    if together[: len(window)] == window:
        return list(together[len(window) :])
    # The window isn't how the tokenizer itself would have cut it: cut the text alone, but not as the
    # beginning of a text, where SentencePiece would put a space.
    for other in ("\n", "."):
        first = tokenizer.encode(other, add_special_tokens=False)
        apart = tokenizer.encode(other + text, add_special_tokens=False)
        if apart[: len(first)] == first:
            return list(apart[len(first) :])
    return list(tokenizer.encode(text, add_special_tokens=False))
