"""Small tokenizers of every kind, trained or put together when a test asks for one."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = (
    "The quick brown fox jumps over the lazy dog. The dog sleeps, and the fox is quick.",
    "def add(first, second):\n    if first:\n        return first + second\n    return second\n",
    "for i in range(10):\n\tprint(i)\n\nx = 1234567890\r\n",
    "Übermäßig café naïve, déjà vu; Ελληνικά, русский язык, 日本語のテキスト, 中文文本。",
    "Emoji 🙂🙂 and 👩‍💻 families 👨‍👩‍👧.      Many      spaces.\n\n\n\nMany lines.",
)
"""What the tokenizers below are trained on; those with a fallback to bytes without the last, so that they need it."""

SPACE = "\u2581"


def fast(tokenizer: Tokenizer, **tokens: str | None) -> Any:
    """As transformers has it."""
    wrapped: Any = PreTrainedTokenizerFast
    return wrapped(tokenizer_object=tokenizer, **tokens)


def byte_level(vocabulary: Sequence[str], merges: Sequence[tuple[str, str]] = (), eos: str | None = None) -> Any:
    """Byte-level BPE with these tokens, by id; ``eos`` is one of them."""
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return fast(tokenizer, eos_token=eos)


def metaspace(vocabulary: Sequence[str], merges: Sequence[tuple[str, str]] = (), eos: str | None = None) -> Any:
    """BPE as Llama-2 has it, with these tokens, by id; ``<unk>`` must be one of them."""
    model = models.BPE(
        {token: index for index, token in enumerate(vocabulary)},
        list(merges),
        byte_fallback="<0x00>" in vocabulary,
        unk_token="<unk>",
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return fast(tokenizer, unk_token="<unk>", eos_token=eos)


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _trained(tokenizer: Tokenizer, vocab_size: int, texts: Sequence[str], **options: Any) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **options)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _pieces(tokenizer: Tokenizer) -> tuple[list[str], list[tuple[str, str]]]:
    """Vocabulary and merges that training found."""
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [(left, right) for left, right in model["merges"]]


def train_byte_level(vocab_size: int = 400, texts: Sequence[str] = TEXTS) -> Any:
    """Byte-level BPE, as of GPT-2 or Llama-3; ``<|end|>`` is 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    options = {"special_tokens": ["<|end|>"], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    return fast(_trained(tokenizer, vocab_size, texts, **options), eos_token="<|end|>")


def train_metaspace(vocab_size: int = 260, texts: Sequence[str] = TEXTS[:-1]) -> Any:
    """BPE with byte fallback, as of Llama-2: ``<unk>``, ``<s>``, ``</s>``, 256 bytes, then ``vocab_size`` pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    pieces, merges = _pieces(_trained(tokenizer, vocab_size, texts))
    return metaspace(["<unk>", "<s>", "</s>", *BYTES, *pieces], merges, eos="</s>")


def train_metaspace_pre_tokenizer(vocab_size: int = 220, texts: Sequence[str] = TEXTS[:-1]) -> Any:
    """The other way to write it: the spaces are replaced by a pre-tokenizer, and by a decoder of that name."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    pieces, merges = _pieces(_trained(tokenizer, vocab_size, texts))
    vocabulary = {token: index for index, token in enumerate(["<unk>", "</s>", *BYTES, *pieces])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return fast(tokenizer, unk_token="<unk>", eos_token="</s>")


def word_piece(texts: Sequence[str] = TEXTS) -> Any:
    """Neither kind: it forgets where spaces were. Not trained: with ties, training finds another one every time."""
    splitter = pre_tokenizers.BertPreTokenizer()
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})
    letters = sorted(set("".join(words)))
    vocabulary = dict.fromkeys(["[UNK]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), *words])
    model = models.WordPiece({token: index for index, token in enumerate(vocabulary)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    return fast(tokenizer, unk_token="[UNK]", eos_token="[SEP]")


TRAINED = {
    "byte-level": functools.cache(train_byte_level),
    "metaspace": functools.cache(train_metaspace),
    "metaspace pre-tokenizer": functools.cache(train_metaspace_pre_tokenizer),
}
