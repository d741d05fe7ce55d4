"""Whether two models speak the same tokens, and which tokens of one are tokens of the other."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from specprof.decoding.token_bytes import TokenBytes

VocabularyKind = Literal["identical", "padding", "overlapping", "disjoint", "unreadable"]


@dataclass(frozen=True, slots=True)
class VocabularyVerdict:
    """How a draft's vocabulary compares with its target's."""

    kind: VocabularyKind
    """``identical``; ``padding``: ordinary tokens have one id in both, one has rows or special tokens more;
    ``overlapping``: some byte strings are a token of both; ``disjoint``: none; ``unreadable``: a tokenizer is
    neither byte-level nor SentencePiece-like, so its tokens can't be compared."""
    draft_size: int
    target_size: int
    """Rows of the output heads."""
    shared: int
    """Draft tokens that are tokens of the target too."""
    reason: str
    to_target: dict[int, int] = field(default_factory=dict, repr=False)
    """Overlapping: the target's token of each shared draft token, one to one."""
    withheld: frozenset[int] = field(default_factory=frozenset, repr=False)
    """Padding: ids below both sizes that mean different things; the draft may not propose them."""

    def to_dict(self) -> dict[str, Any]:
        """The verdict without the map."""
        hidden = ("to_target", "withheld")
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in hidden}


def compare_vocabularies(
    draft_tokenizer: Any, target_tokenizer: Any, draft_size: int, target_size: int
) -> VocabularyVerdict:
    """Compare token by token, not by size.

    Args:
        draft_tokenizer, target_tokenizer: Hugging Face tokenizers.
        draft_size, target_size: rows of the models' output heads (``config.vocab_size``).
    """
    draft, target = ({i: t for t, i in tok.get_vocab().items()} for tok in (draft_tokenizer, target_tokenizer))
    if draft == target and draft_size == target_size:
        return VocabularyVerdict("identical", draft_size, target_size, target_size, f"{len(target)} tokens, all equal")
    common = draft.keys() & target.keys()
    unlike = frozenset(index for index in common if draft[index] != target[index])
    # Models fine-tuned from one base name the special tokens behind its vocabulary as they like (Phi-3 and Llama-2).
    if len(unlike) < len(common) and all(
        _is_special(draft_tokenizer, i) or _is_special(target_tokenizer, i) for i in unlike
    ):
        shared = min(draft_size, target_size) - len(unlike)
        reason = f"{len(common) - len(unlike)} tokens are equal"
        reason += f", {len(unlike)} special ones differ" if unlike else ""
        reason += f"; {draft_size} rows in the draft's head, {target_size} in the target's"
        return VocabularyVerdict("padding", draft_size, target_size, shared, reason, withheld=unlike)
    return _compare_bytes(draft_tokenizer, target_tokenizer, draft_size, target_size)


def _compare_bytes(draft_tokenizer: Any, target_tokenizer: Any, draft_size: int, target_size: int) -> VocabularyVerdict:
    draft, target = TokenBytes.of(draft_tokenizer), TokenBytes.of(target_tokenizer)
    if draft is None or target is None:
        sides = " and ".join(side for side, found in (("draft", draft), ("target", target)) if found is None)
        reason = f"the {sides}'s tokenizer is neither byte-level nor SentencePiece-like"
        return VocabularyVerdict("unreadable", draft_size, target_size, 0, reason)
    target_ids = {text: i for text, i in target.ids_by_bytes().items() if i < target_size}
    to_target = {
        i: target_ids[text] for text, i in draft.ids_by_bytes().items() if i < draft_size and text in target_ids
    }
    kinds = f"{draft.kind} draft, {target.kind} target"
    if not to_target:
        reason = f"no token of the draft is one of the target ({kinds})"
        return VocabularyVerdict("disjoint", draft_size, target_size, 0, reason)
    if draft.eos is not None and target.eos is not None:
        to_target[draft.eos] = target.eos  # or the draft could never propose an end
    reason = f"{len(to_target)} of the draft's {len(draft.by_id)} tokens are tokens of the target too ({kinds})"
    return VocabularyVerdict("overlapping", draft_size, target_size, len(to_target), reason, to_target)


def _is_special(tokenizer: Any, index: int) -> bool:
    added = tokenizer.added_tokens_decoder.get(index)
    return index in tokenizer.all_special_ids or (added is not None and added.special)
