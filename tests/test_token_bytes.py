"""What tokens stand for: a text's tokens are its bytes, and any bytes have tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from specprof.decoding.token_bytes import TokenBytes, kind_of
from specprof.models.loader import load_tokenizer
from tiny_tokenizers import (
    BYTES,
    SPACE,
    TRAINED,
    byte_level,
    fast,
    metaspace,
    train_byte_level,
    train_metaspace,
    word_piece,
)

TOKENIZERS: dict[str, Callable[[], Any]] = {
    **TRAINED,
    "tiny_dev": lambda: load_tokenizer("tiny_dev/target"),
    "tiny_cross": lambda: load_tokenizer("tiny_cross/draft"),
}
READ: dict[str, tuple[Any, TokenBytes]] = {}

HOSTILE = (
    "",
    " ",
    "   leading and trailing   ",
    "\n\n\n\ttabs\tand\r\nCRLF\r\r\n",
    "    if x:\n        return\n\n\n\n",
    "e\u0301 a\u0308\u0323 ❤\ufe0f 👩\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 🇩🇪",
    "日本語、中文。한국어 العربية עברית हिन्दी",
    "\x00\x01\x7f\x80\x9f\u2028\ufeff\ufffd\U0010ffff\ue000",
    "1234567890" * 3,
    "<0x41> <0x0A> <unk",
    " " * 70 + "\n" * 70,
    "\u00a0\u3000\u2003",
)


def read(name: str) -> tuple[Any, TokenBytes]:
    if name not in READ:
        tokenizer = TOKENIZERS[name]()
        found = TokenBytes.of(tokenizer)
        assert found is not None
        READ[name] = tokenizer, found
    return READ[name]


def joined(found: TokenBytes, ids: list[int]) -> bytes:
    return b"".join(found.by_id[index] for index in ids)


CHARACTERS = st.characters(codec="utf-8", exclude_characters=SPACE)  # SentencePiece itself reads that one as a space
SPECIAL = st.sampled_from([" ", "  ", "\n", "\r\n", "\t", "🙂", "👩\u200d💻", "e\u0301", "é", "語", " the", "ing", "7"])
ANY_TEXT = st.text(CHARACTERS) | st.lists(SPECIAL | CHARACTERS).map("".join)
ANY_BYTES = (st.binary() | ANY_TEXT.map(str.encode)).filter(lambda text: SPACE.encode() not in text)


def assert_tokens_are_its_bytes(name: str, text: str) -> None:
    tokenizer, found = read(name)
    whole = joined(found, tokenizer.encode(text, add_special_tokens=False))
    if found.kind == "metaspace" and text and not (name == "metaspace pre-tokenizer" and text.startswith(" ")):
        assert whole[:1] == b" "  # it puts one before every text, or before those that don't begin with one
        whole = whole[1:]
    assert whole == text.encode()


@pytest.mark.parametrize("name", TOKENIZERS)
class TestText:
    @settings(max_examples=80)
    @given(text=ANY_TEXT)
    def test_the_tokens_of_a_text_are_its_bytes(self, name: str, text: str) -> None:
        assert_tokens_are_its_bytes(name, text)

    @pytest.mark.parametrize("text", HOSTILE)
    def test_hostile_texts(self, name: str, text: str) -> None:
        assert_tokens_are_its_bytes(name, text)
        _, found = read(name)
        assert joined(found, found.encode(text.encode())) == text.encode()

    @settings(max_examples=80)
    @given(text=ANY_TEXT)
    def test_in_the_middle_of_a_text_nothing_is_put_before_it(self, name: str, text: str) -> None:
        _, found = read(name)
        assert joined(found, found.encode(text.encode())) == text.encode()

    @settings(max_examples=80)
    @given(text=ANY_BYTES, begin=st.integers(0, 5), end=st.integers(0, 5))
    @example(text="🙂".encode(), begin=1, end=1)
    @example(text=b"\xff\xfe\x80abc\xc3", begin=0, end=0)
    @example(text=b" \xf0\x9f\x99\x82\xf0\x9f", begin=0, end=0)
    def test_bytes_may_begin_or_end_inside_a_character(self, name: str, text: bytes, begin: int, end: int) -> None:
        part = text[begin : len(text) - end]
        _, found = read(name)
        assert joined(found, found.encode(part)) == part

    def test_it_cuts_as_the_tokenizer_does(self, name: str) -> None:
        tokenizer, found = read(name)
        text = " the dog and the fox"
        before = tokenizer.encode("x", add_special_tokens=False)
        assert [*before, *found.encode(text.encode())] == tokenizer.encode("x" + text, add_special_tokens=False)

    def test_ids_by_bytes(self, name: str) -> None:
        _, found = read(name)
        ids = found.ids_by_bytes()
        assert len(ids) == len(set(ids.values())) == len(set(found.by_id.values()))
        assert all(found.by_id[index] == text for text, index in ids.items())
        assert all(bytes([byte]) in ids for byte in range(256))

    def test_special_tokens_stand_for_nothing(self, name: str) -> None:
        tokenizer, found = read(name)
        special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        assert special and not special & found.by_id.keys()
        assert found.eos == tokenizer.eos_token_id
        assert len(found.by_id) == len(tokenizer) - len(special)


# --- kinds


def test_kinds() -> None:
    assert {name: read(name)[1].kind for name in TOKENIZERS} == {
        "byte-level": "byte-level",
        "metaspace": "metaspace",
        "metaspace pre-tokenizer": "metaspace",
        "tiny_dev": "byte-level",
        "tiny_cross": "metaspace",
    }


def test_a_word_piece_tokenizer_is_neither() -> None:
    assert kind_of(word_piece()) is None
    assert TokenBytes.of(word_piece()) is None


def test_a_tokenizer_that_says_nothing_of_how_it_decodes_is_neither() -> None:
    assert TokenBytes.of(fast(Tokenizer(models.BPE({"a": 0}, [])))) is None
    assert TokenBytes.of(object()) is None  # as one without a backend of the tokenizers library


def test_a_metaspace_of_another_character_is_not_read_as_if_it_were_that_one() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "_": 1}, []))
    tokenizer.decoder = decoders.Metaspace(replacement="_")
    assert kind_of(fast(tokenizer)) is None
    tokenizer.decoder = decoders.Metaspace()
    assert kind_of(fast(tokenizer)) == "metaspace"


def test_steps_within_steps() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Sequence([decoders.ByteLevel()])])
    assert kind_of(fast(tokenizer)) == "byte-level"


# --- single tokens


def test_a_piece_comes_before_the_byte_of_the_same_meaning() -> None:
    found = TokenBytes.of(metaspace(["<unk>", *BYTES, "q"]))
    assert found is not None
    byte, piece = 1 + ord("q"), 257
    assert found.by_id[byte] == found.by_id[piece] == b"q"
    assert found.ids_by_bytes()[b"q"] == piece  # though its id is the larger one
    assert found.encode(b"qr") == [piece, 1 + ord("r")]


def test_of_two_pieces_of_one_meaning_the_first() -> None:
    tokenizer = metaspace(["<unk>", "x", "é"])
    tokenizer.add_tokens(["x ", " x"])
    tokenizer.add_tokens([SPACE])  # as text it is that character; as a piece it would be a space
    found = TokenBytes.of(tokenizer)
    assert found is not None
    assert found.by_id == {1: b"x", 2: "é".encode(), 3: b"x ", 4: b" x", 5: SPACE.encode()}


@pytest.mark.parametrize("train", [train_byte_level, train_metaspace])
def test_added_tokens_are_their_text_and_special_ones_nothing(train: Any) -> None:
    tokenizer = train()
    size = len(tokenizer)
    contents = ["Ġodd token", "<0x41><0x42>", "naïve 🙂", "<|tool|>"]
    tokenizer.add_tokens([AddedToken(content, normalized=False) for content in contents])
    tokenizer.add_tokens([AddedToken("<|user|>", special=True)])
    found = TokenBytes.of(tokenizer)
    assert found is not None
    added = {index: text for index, text in found.by_id.items() if index >= size}
    assert added == {size + i: content.encode() for i, content in enumerate(contents)}
    ids = tokenizer.encode("a naïve 🙂 and <|tool|><|user|>", add_special_tokens=False)
    assert [index for index in ids if index >= size] == [size + 2, size + 3, size + 4]


def test_a_token_with_a_character_that_is_no_stand_in_is_left_out() -> None:
    found = TokenBytes.of(byte_level(["a", "Ġa", "語"]))
    assert found is not None
    assert found.by_id == {0: b"a", 1: b" a"}


def test_a_vocabulary_without_byte_tokens_leaves_out_what_it_cannot_say() -> None:
    found = TokenBytes.of(metaspace(["<unk>", "a", SPACE]))
    assert found is not None
    assert found.byte_ids == {}
    assert found.encode(b"a\x80 a") == [1, 2, 1]


# --- byte-level tokenizers that do something to the text first


def test_a_special_token_that_is_spelled_out_is_text() -> None:
    found = read("byte-level")[1]
    for text in (b"<|end|>", b" hello<|end|>\n"):
        assert joined(found, found.encode(text)) == text


def test_a_space_before_every_text_is_not_put_before_bytes_in_the_middle() -> None:
    tokenizer = train_byte_level()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    found = TokenBytes.of(tokenizer)
    assert found is not None
    assert joined(found, tokenizer.encode("the", add_special_tokens=False)) == b" the"
    for text in (b"the", b" the", b"\nthe", "语".encode()):
        assert joined(found, found.encode(text)) == text


def test_a_normaliser_does_not_change_bytes_in_the_middle() -> None:
    tokenizer = train_byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()  # as of Qwen
    found = TokenBytes.of(tokenizer)
    assert found is not None
    text = "cafe\u0301".encode()
    assert joined(found, tokenizer.encode(text.decode(), add_special_tokens=False)) == "café".encode()
    assert joined(found, found.encode(text)) == text
