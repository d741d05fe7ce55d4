"""How two vocabularies compare: by what their tokens stand for, not by their size."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from specprof.decoding.token_bytes import TokenBytes
from specprof.decoding.vocabulary import VocabularyVerdict, compare_vocabularies
from specprof.models.loader import load_tokenizer
from tiny_models import tiny_tokenizer
from tiny_tokenizers import BYTES, TRAINED, byte_level, fast, metaspace, train_metaspace, word_piece

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]


def word_level(words: Sequence[str] | dict[str, int]) -> Any:
    vocabulary = words if isinstance(words, dict) else {word: index for index, word in enumerate(words)}
    return fast(Tokenizer(WordLevel(vocabulary, unk_token="the")))


def compare(
    draft: Any, target: Any, draft_size: int | None = None, target_size: int | None = None
) -> VocabularyVerdict:
    return compare_vocabularies(draft, target, draft_size or len(draft), target_size or len(target))


def specials(*contents: str) -> list[AddedToken]:
    return [AddedToken(content, special=True) for content in contents]


def extended(tokenizer: Any, *tokens: AddedToken) -> Any:
    tokenizer.add_tokens(list(tokens))
    return tokenizer


# --- one vocabulary


def test_identical() -> None:
    verdict = compare(word_level(WORDS), word_level(WORDS))
    assert verdict == VocabularyVerdict("identical", 9, 9, 9, "9 tokens, all equal")


def test_a_real_tokenizer_with_itself() -> None:
    verdict = compare(tiny_tokenizer(), tiny_tokenizer())
    assert (verdict.kind, verdict.shared) == ("identical", 4096)


def test_both_heads_padded_alike() -> None:
    assert compare(word_level(WORDS), word_level(WORDS), 16, 16).kind == "identical"


@pytest.mark.parametrize(("draft_size", "target_size"), [(9, 12), (12, 9), (16, 12)])
def test_heads_with_padding_rows(draft_size: int, target_size: int) -> None:
    verdict = compare(word_level(WORDS), word_level(WORDS), draft_size, target_size)
    assert verdict.kind == "padding"
    assert (verdict.draft_size, verdict.target_size) == (draft_size, target_size)
    assert verdict.shared == min(draft_size, target_size)
    assert verdict.reason == f"9 tokens are equal; {draft_size} rows in the draft's head, {target_size} in the target's"
    assert not verdict.withheld and not verdict.to_target


def test_one_tokenizer_knows_more_tokens() -> None:
    """A chat model's extra specials behind the vocabulary of its base."""
    longer = [*WORDS, "<|user|>", "<|end|>"]
    for draft, target in ((WORDS, longer), (longer, WORDS)):
        verdict = compare(word_level(draft), word_level(target))
        assert (verdict.kind, verdict.shared, verdict.withheld) == ("padding", 9, frozenset())


def test_ids_with_holes() -> None:
    sparse = {"the": 0, "quick": 1, "fox": 3}
    assert compare(word_level(sparse), word_level(WORDS), 9, 9).kind == "padding"
    verdict = compare(word_level({"the": 0, "quick": 1, "dog": 2}), word_level(sparse), 4, 4)
    assert verdict.kind == "padding"
    assert verdict.reason.startswith("2 tokens are equal")


def test_one_base_with_other_special_tokens() -> None:
    """Phi-3 and TinyLlama, both on Llama-2's vocabulary: what stands behind it is each model's own."""
    draft = extended(train_metaspace(), *specials("<pad>"))
    target = extended(train_metaspace(), *specials("<|endoftext|>", "<|assistant|>"))
    base = len(train_metaspace())
    verdict = compare(draft, target, base + 1, base + 61)
    assert verdict.kind == "padding"
    assert verdict.withheld == {base}
    assert verdict.shared == base
    assert verdict.reason == (
        f"{base} tokens are equal, 1 special ones differ; {base + 1} rows in the draft's head, {base + 61} "
        "in the target's"
    )
    assert compare(target, draft).withheld == {base}


def test_a_token_that_is_special_on_one_side_only_is_withheld() -> None:
    draft = extended(train_metaspace(), AddedToken("<tool>", special=False))
    target = extended(train_metaspace(), *specials("<|endoftext|>"))
    base = len(train_metaspace())
    for verdict in (compare(draft, target), compare(target, draft)):
        assert verdict.kind == "padding" and verdict.withheld == {base}


def test_special_tokens_inside_the_vocabulary_that_have_other_names() -> None:
    draft = metaspace(["<unk>", "</s>", "a", "b"], eos="</s>")
    target = metaspace(["<unk>", "<eos>", "a", "b"], eos="<eos>")
    verdict = compare(draft, target)
    assert verdict.kind == "padding" and verdict.shared == 3 and verdict.withheld == {1}


# --- two vocabularies


def test_an_ordinary_token_that_differs_makes_it_another_vocabulary() -> None:
    words = [f"Ġ{word}" for word in WORDS]
    changed = [*words[:4], "Ġleaps", *words[5:]]
    verdict = compare(byte_level(changed), byte_level(words))
    assert verdict.kind == "overlapping"
    assert verdict.to_target == {i: i for i in range(9) if i != 4}
    assert verdict.shared == 8
    assert verdict.reason == (
        "8 of the draft's 9 tokens are tokens of the target too (byte-level draft, byte-level target)"
    )
    added = [extended(train_metaspace(), AddedToken(content, special=False)) for content in ("one more", "another")]
    assert compare(added[0], added[1]).kind == "overlapping"


def test_the_same_tokens_in_another_order() -> None:
    words = [f"Ġ{word}" for word in WORDS]
    verdict = compare(byte_level(words[::-1]), byte_level(words))
    assert verdict.kind == "overlapping"
    assert verdict.to_target == {8 - i: i for i in range(9)}


def test_no_id_in_common() -> None:
    verdict = compare_vocabularies(byte_level(["Ġthe"]), byte_level(["a", "b", "Ġthe"]), 1, 3)
    assert (verdict.kind, verdict.to_target) == ("overlapping", {0: 2})


KINDS: dict[str, Callable[[], Any]] = {
    **TRAINED,
    "tiny_dev": tiny_tokenizer,
    "tiny_cross": lambda: load_tokenizer("tiny_cross/draft"),
}


@pytest.mark.parametrize("target_kind", KINDS)
@pytest.mark.parametrize("draft_kind", KINDS)
def test_the_map_is_one_to_one_and_keeps_the_bytes(draft_kind: str, target_kind: str) -> None:
    if draft_kind == target_kind:
        return
    draft, target = KINDS[draft_kind](), KINDS[target_kind]()
    verdict = compare(draft, target)
    draft_bytes, target_bytes = TokenBytes.of(draft), TokenBytes.of(target)
    assert draft_bytes is not None and target_bytes is not None
    assert verdict.kind == "overlapping" and not verdict.withheld
    to_target = dict(verdict.to_target)
    assert len(to_target) == len(set(to_target.values())) == verdict.shared
    assert to_target.pop(draft.eos_token_id) == target.eos_token_id
    assert all(draft_bytes.by_id[own] == target_bytes.by_id[theirs] for own, theirs in to_target.items())
    # All that could be mapped is: every byte string that is a token of both, bytes of characters among them.
    assert {draft_bytes.by_id[own] for own in to_target} == set(draft_bytes.ids_by_bytes()) & set(
        target_bytes.ids_by_bytes()
    )
    assert len(to_target) >= 256
    assert {bytes([0xF0]), b" ", b"\n"} <= {draft_bytes.by_id[own] for own in to_target}
    # Told apart by decoding, these two would be one: a piece's leading space is lost.
    assert {b"the", b" the"} & {draft_bytes.by_id[own] for own in to_target}


def test_a_byte_gives_way_to_the_piece_of_the_same_meaning() -> None:
    draft = metaspace(["<unk>", *BYTES, "q"])
    verdict = compare(draft, byte_level(["q", "r"]))
    assert verdict.to_target == {257: 0, 1 + ord("r"): 1}
    assert compare(byte_level(["q", "r"]), draft).to_target == {0: 257, 1: 1 + ord("r")}


def test_rows_that_a_head_lacks_are_not_mapped() -> None:
    letters = [*"abcdef"]
    draft, target = byte_level(letters), byte_level(letters[::-1])
    assert compare(draft, target, draft_size=4).to_target == {0: 5, 1: 4, 2: 3, 3: 2}
    assert compare(draft, target, target_size=4).to_target == {2: 3, 3: 2, 4: 1, 5: 0}


@pytest.mark.parametrize(("draft_eos", "target_eos"), [(None, "<end>"), ("</s>", None), (None, None)])
def test_without_an_end_of_text_on_both_sides_none_is_mapped(draft_eos: str | None, target_eos: str | None) -> None:
    draft = metaspace(["<unk>", "a", "b", "c", *filter(None, [draft_eos])], eos=draft_eos)
    target = byte_level(["c", "b", "a", *filter(None, [target_eos])], eos=target_eos)
    verdict = compare(draft, target)
    assert (verdict.kind, verdict.to_target, verdict.shared) == ("overlapping", {1: 2, 2: 1, 3: 0}, 3)


def test_special_tokens_are_not_mapped_though_they_have_one_name() -> None:
    draft = extended(byte_level(["a", "b", "c", "<end>"], eos="<end>"), *specials("<|user|>"))
    target = extended(byte_level(["<end>", "c", "b", "a"], eos="<end>"), *specials("<|user|>"))
    assert compare(draft, target).to_target == {0: 3, 1: 2, 2: 1, 3: 0}


# --- nothing to go by


def test_disjoint() -> None:
    verdict = compare(byte_level(["x", "y"]), metaspace(["<unk>", "a", "b"]))
    assert (verdict.kind, verdict.shared, verdict.to_target) == ("disjoint", 0, {})
    assert verdict.reason == "no token of the draft is one of the target (byte-level draft, metaspace target)"


def test_an_end_of_text_alone_is_not_enough() -> None:
    verdict = compare(byte_level(["x", "<end>"], eos="<end>"), byte_level(["<end>", "a"], eos="<end>"))
    assert (verdict.kind, verdict.to_target) == ("disjoint", {})


def test_unreadable() -> None:
    readable, unreadable = TRAINED["byte-level"](), word_piece()
    reason = "tokenizer is neither byte-level nor SentencePiece-like"
    for draft, target, whose in (
        (unreadable, readable, "the draft's"),
        (readable, unreadable, "the target's"),
        (unreadable, word_level(WORDS), "the draft and target's"),
    ):
        verdict = compare(draft, target)
        assert (verdict.kind, verdict.shared, verdict.reason) == ("unreadable", 0, f"{whose} {reason}")


def test_a_special_token_where_an_ordinary_one_is_may_not_make_all_of_it_padding() -> None:
    """Two tokens at two ids, and neither is the same: whatever is special, this is not one vocabulary."""
    verdict = compare(byte_level(["<end>", "a"], eos="<end>"), byte_level(["a", "<end>"], eos="<end>"))
    assert (verdict.kind, verdict.to_target) == ("overlapping", {0: 1, 1: 0})


def test_unreadable_tokenizers_may_still_be_one() -> None:
    assert compare(word_piece(), word_piece()).kind == "identical"


# --- what is told of it


def test_as_a_record() -> None:
    verdict = compare(TRAINED["metaspace"](), TRAINED["byte-level"]())
    record = json.loads(json.dumps(verdict.to_dict()))
    assert record == {
        "kind": "overlapping",
        "draft_size": len(TRAINED["metaspace"]()),
        "target_size": 400,
        "shared": verdict.shared,
        "reason": verdict.reason,
    }
    assert len(repr(verdict)) < 300
