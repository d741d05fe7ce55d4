"""Whether two models speak the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class VocabularyVerdict:
    """How a draft's vocabulary compares with its target's."""

    kind: Literal["identical", "padding", "different"]
    """``padding``: the tokens both know are the same, one head or tokenizer has more rows."""
    draft_size: int
    target_size: int
    """Rows of the output heads."""
    shared: int
    """Token ids that mean the same in both, from 0 up."""
    reason: str

    @property
    def compatible(self) -> bool:
        return self.kind != "different"


def compare_vocabularies(
    draft_tokenizer: Any, target_tokenizer: Any, draft_size: int, target_size: int
) -> VocabularyVerdict:
    """Compare token by token, not by size.

    Args:
        draft_tokenizer, target_tokenizer: Hugging Face tokenizers.
        draft_size, target_size: rows of the models' output heads (``config.vocab_size``).
    """
    draft = {index: token for token, index in draft_tokenizer.get_vocab().items()}
    target = {index: token for token, index in target_tokenizer.get_vocab().items()}
    common = draft.keys() & target.keys()
    unlike = [index for index in sorted(common) if draft[index] != target[index]]
    if unlike or not common:
        first = unlike[0] if unlike else 0
        reason = (
            f"{len(unlike)} of {len(common)} common token ids differ, the first is {first}: "
            f"{draft.get(first)!r} in the draft, {target.get(first)!r} in the target"
        )
        return VocabularyVerdict("different", draft_size, target_size, 0, reason)
    if draft == target and draft_size == target_size:
        return VocabularyVerdict("identical", draft_size, target_size, target_size, f"{len(target)} tokens, all equal")
    shared = min(draft_size, target_size)
    reason = f"{len(common)} tokens are equal; {draft_size} rows in the draft's head, {target_size} in the target's"
    return VocabularyVerdict("padding", draft_size, target_size, shared, reason)
