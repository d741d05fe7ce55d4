"""Whether two vocabularies are one: by their tokens, not by their size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from specprof.decoding.vocabulary import VocabularyVerdict, compare_vocabularies
from tiny_models import tiny_tokenizer

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]


def tokenizer(words: Sequence[str] | dict[str, int]) -> Any:
    vocabulary = words if isinstance(words, dict) else {word: index for index, word in enumerate(words)}
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="the")))


def compare(
    draft: Sequence[str] | dict[str, int],
    target: Sequence[str] | dict[str, int],
    draft_size: int | None = None,
    target_size: int | None = None,
) -> VocabularyVerdict:
    return compare_vocabularies(
        tokenizer(draft), tokenizer(target), draft_size or len(draft), target_size or len(target)
    )


def test_identical() -> None:
    verdict = compare(WORDS, WORDS)
    assert verdict == VocabularyVerdict("identical", 9, 9, 9, "9 tokens, all equal")
    assert verdict.compatible


def test_a_real_tokenizer_with_itself() -> None:
    verdict = compare_vocabularies(tiny_tokenizer(), tiny_tokenizer(), 4096, 4096)
    assert (verdict.kind, verdict.shared) == ("identical", 4096)


@pytest.mark.parametrize(("draft_size", "target_size"), [(9, 12), (12, 9), (16, 12)])
def test_heads_with_padding_rows(draft_size: int, target_size: int) -> None:
    verdict = compare(WORDS, WORDS, draft_size, target_size)
    assert verdict.kind == "padding"
    assert verdict.compatible
    assert (verdict.draft_size, verdict.target_size) == (draft_size, target_size)
    assert verdict.shared == min(draft_size, target_size)
    assert verdict.reason == f"9 tokens are equal; {draft_size} rows in the draft's head, {target_size} in the target's"


def test_both_heads_padded_alike() -> None:
    assert compare(WORDS, WORDS, 16, 16).kind == "identical"


def test_one_tokenizer_knows_more_tokens() -> None:
    """A chat model's extra specials behind the vocabulary of its base."""
    verdict = compare(WORDS, [*WORDS, "<|user|>", "<|end|>"])
    assert verdict.kind == "padding"
    assert verdict.shared == 9
    assert compare([*WORDS, "<|user|>"], WORDS).kind == "padding"


def test_equal_sizes_are_not_enough() -> None:
    changed = [*WORDS[:4], "leaps", *WORDS[5:]]
    verdict = compare(changed, WORDS)
    assert verdict.kind == "different"
    assert not verdict.compatible
    assert verdict.shared == 0
    assert (
        verdict.reason == "1 of 9 common token ids differ, the first is 4: 'leaps' in the draft, 'jumps' in the target"
    )


def test_the_same_words_in_another_order() -> None:
    verdict = compare(WORDS[::-1], WORDS)
    assert verdict.kind == "different"
    assert verdict.reason.startswith("8 of 9 common token ids differ, the first is 0: 'dog'")


def test_another_size_and_other_tokens() -> None:
    verdict = compare(["x", "y", "z"], WORDS)
    assert verdict.kind == "different"
    assert (verdict.draft_size, verdict.target_size) == (3, 9)


def test_ids_with_holes() -> None:
    sparse = {"the": 0, "quick": 1, "fox": 3}
    assert compare(sparse, WORDS, 9, 9).kind == "padding"
    assert compare({**sparse, "fox": 4}, WORDS, 9, 9).kind == "different"


def test_as_many_tokens_but_not_the_same_ones() -> None:
    verdict = compare({"the": 0, "quick": 1, "dog": 2}, {"the": 0, "quick": 1, "fox": 3}, 4, 4)
    assert verdict.kind == "padding"
    assert verdict.reason.startswith("2 tokens are equal")


def test_no_id_in_common() -> None:
    verdict = compare({"the": 0}, {"the": 5}, 1, 6)
    assert verdict.kind == "different"
    assert not verdict.compatible
