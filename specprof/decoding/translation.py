"""Between a draft's tokens and its target's.

The draft keeps its own context in its own tokens. What leaves it, proposals and the laws they were drawn
from, is in the target's. The output stays the target's whatever the map: only what the draft is good for
depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from specprof.decoding.token_bytes import TokenBytes
from specprof.decoding.vocabulary import VocabularyVerdict

_WORDS_SETTLED = 3
_LONGEST_TAIL = 24


class Translation(Protocol):
    """How a draft model's tokens become the target's, and back."""

    restricts: bool
    """Whether :meth:`restrict` changes anything."""

    def restrict(self, logits: Tensor) -> Tensor:
        """``[.., draft rows]`` logits with what the target has no token for at -inf, or cut off."""
        ...

    def proposed(self, tokens: Tensor) -> Tensor:
        """Draft tokens ``[k]`` as the target's."""
        ...

    def laws(self, probs: Tensor) -> Tensor:
        """Laws ``[k, draft rows]`` of restricted logits over the target's rows, ``[k, target rows]``."""
        ...

    def prompt(self, tokens: Sequence[int]) -> list[int]:
        """A prompt of the target's tokens in the draft's."""
        ...

    def context(self, tokens: Sequence[int]) -> list[int]:
        """Emitted tokens of the target in the draft's, as the continuation of a text; accepted ones one for one."""
        ...

    def settle(self, context: list[int]) -> int:
        """Rewrite the end of a context of the draft as its tokenizer would have cut it; how many tokens stayed."""
        ...


class SharedVocabulary:
    """One vocabulary; the heads may differ in padding rows.

    The draft never proposes a token the target lacks, and gives the target's extra rows probability 0.

    Args:
        draft_size, target_size: rows of the heads.
        withheld: ids that both have but that mean different things.
    """

    def __init__(self, draft_size: int, target_size: int, withheld: frozenset[int] = frozenset()) -> None:
        self._last = draft_size - 1
        self._missing_rows = target_size - draft_size
        self._withheld = torch.tensor(sorted(i for i in withheld if i < min(draft_size, target_size)))
        self.restricts = self._missing_rows < 0 or len(self._withheld) > 0

    def restrict(self, logits: Tensor) -> Tensor:
        if self._missing_rows < 0:
            logits = logits[..., : self._missing_rows]
        if len(self._withheld):
            if self._withheld.device != logits.device:
                self._withheld = self._withheld.to(logits.device)  # once: what is captured copies nothing from the host
            logits = logits.index_fill(-1, self._withheld, float("-inf"))
        return logits

    def proposed(self, tokens: Tensor) -> Tensor:
        return tokens

    def laws(self, probs: Tensor) -> Tensor:
        return F.pad(probs, (0, self._missing_rows)) if self._missing_rows > 0 else probs

    def prompt(self, tokens: Sequence[int]) -> list[int]:
        return self.context(tokens)

    def context(self, tokens: Sequence[int]) -> list[int]:
        # The target can emit a padding row that the draft lacks. Any token may stand in for it: what the draft
        # makes of the context is its own affair, as long as it says which law it drew from.
        return [min(token, self._last) for token in tokens]

    def settle(self, context: list[int]) -> int:
        return len(context)


class TokenIntersection:
    """Token-level intersection (TLI): the draft proposes those of its tokens that are tokens of the target too.

    Timor et al. 2025, Accelerating LLM Inference with Lossless Speculative Decoding Algorithms for
    Heterogeneous Vocabularies (arXiv 2502.05202), algorithm 4. Logits are restricted before temperature, top-k and
    top-p, so that the softmax renormalises, and the law that a token is tested with is the one it was drawn from.

    Args:
        verdict: an ``overlapping`` one.
        draft_tokenizer, target_tokenizer: Hugging Face tokenizers.
        device: the draft's.
    """

    restricts = True

    def __init__(
        self, verdict: VocabularyVerdict, draft_tokenizer: Any, target_tokenizer: Any, device: torch.device
    ) -> None:
        draft, target = TokenBytes.of(draft_tokenizer), TokenBytes.of(target_tokenizer)
        assert draft is not None and target is not None
        self._draft_bytes, self._target_bytes = draft, target
        self._draft_tokenizer = draft_tokenizer
        self._to_draft = {theirs: own for own, theirs in verdict.to_target.items()}
        own = torch.tensor(list(verdict.to_target))
        theirs = torch.tensor(list(verdict.to_target.values()))
        closed = torch.full((verdict.draft_size,), float("-inf"))
        closed[own] = 0.0
        self._closed = closed.to(device)
        self._target_of = torch.zeros(verdict.draft_size, dtype=torch.long).index_copy(0, own, theirs).to(device)
        # A target row without a draft token reads the row of zeros that laws() appends.
        self._source = torch.full((verdict.target_size,), verdict.draft_size).index_copy(0, theirs, own).to(device)

    def restrict(self, logits: Tensor) -> Tensor:
        if self._closed.dtype != logits.dtype:
            self._closed = self._closed.to(logits.dtype)
        return logits + self._closed

    def proposed(self, tokens: Tensor) -> Tensor:
        return self._target_of[tokens]

    def laws(self, probs: Tensor) -> Tensor:
        return F.pad(probs, (0, 1)).index_select(-1, self._source)

    def prompt(self, tokens: Sequence[int]) -> list[int]:
        text = b"".join(self._target_bytes.by_id.get(token, b"") for token in tokens)
        if self._target_bytes.kind == "metaspace":
            text = text.removeprefix(b" ")  # the space that such a tokenizer puts before a text
        ids: list[int] = self._draft_tokenizer.encode(text.decode("utf-8", "replace"))
        return ids or [0]  # of a prompt that says nothing: the draft needs something to go on from

    def context(self, tokens: Sequence[int]) -> list[int]:
        ids: list[int] = []
        for token in tokens:
            own = self._to_draft.get(token)
            # A token of no draft token is fed as its bytes; a special one says nothing to the draft.
            ids += self._draft_bytes.encode(self._target_bytes.by_id.get(token, b"")) if own is None else [own]
        return ids

    def settle(self, context: list[int]) -> int:
        # Token by token, what the target wrote is cut in ways that the draft never saw in training: an indented
        # "if" arrives as "\n", "   ", " if" instead of "\n", "    ", "if", and a character byte by byte. That costs
        # acceptance (docs/log.md).
        start = self._beginning_of_tail(context)
        tail = context[start:]
        settled = self._draft_bytes.encode(b"".join(self._draft_bytes.by_id[token] for token in tail))
        same = next((i for i, (old, new) in enumerate(zip(tail, settled, strict=False)) if old != new), None)
        context[start:] = settled
        return start + (min(len(tail), len(settled)) if same is None else same)

    def _beginning_of_tail(self, context: Sequence[int]) -> int:
        """Where the third word from the end begins; the end itself if there is none near."""
        words = 0
        for start in range(len(context) - 1, max(-1, len(context) - 1 - _LONGEST_TAIL), -1):
            text = self._draft_bytes.by_id.get(context[start])
            if text is None:  # a special token
                break
            words += len(text) > 1 and text[:1] == b" " and not text[1:2].isspace()
            if words == _WORDS_SETTLED:
                return start
        return len(context)
