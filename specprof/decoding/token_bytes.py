"""What a tokenizer's tokens stand for: byte strings, the one form in which two vocabularies can be compared.

Decoding a token alone does not tell: a SentencePiece piece loses its leading space, and a piece of a
multi-byte character becomes U+FFFD. So the bytes are read from the token strings themselves, by
the conventions of the two kinds of tokenizer that nearly all language models have:

* byte-level BPE (GPT-2, Llama-3, Qwen): every byte has a printable stand-in, a space is ``Ġ``;
* metaspace (SentencePiece; Llama-2, TinyLlama, Phi-3, Mistral): a space is ``▁``, and ``<0xHH>`` is a byte.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

Kind = Literal["byte-level", "metaspace"]

_SPACE = "\u2581"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_alphabet() -> dict[str, int]:
    """The stand-in of each byte in byte-level BPE (GPT-2's ``bytes_to_unicode``): itself where printable."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
_STAND_IN = {byte: character for character, byte in _BYTE_OF.items()}


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """A tokenizer's vocabulary as byte strings."""

    kind: Kind
    by_id: dict[int, bytes]
    """What each ordinary token stands for; special tokens stand for nothing."""
    byte_ids: dict[int, int]
    """Metaspace: the token ``<0xHH>`` of each byte, by the byte."""
    eos: int | None
    backend: Any
    """The tokenizer itself, of the ``tokenizers`` library."""

    @classmethod
    def of(cls, tokenizer: Any) -> TokenBytes | None:
        """Read a Hugging Face tokenizer; None if it is of neither kind."""
        kind = kind_of(tokenizer)
        if kind is None:
            return None
        special = set(tokenizer.all_special_ids)
        added = {}
        for index, token in tokenizer.added_tokens_decoder.items():
            if token.special:
                special.add(index)
            else:
                added[index] = token.content.encode()  # added tokens are matched as the text they are
        by_id, byte_ids = {}, {}
        for token, index in tokenizer.get_vocab().items():
            if index in special:
                continue
            piece = _BYTE_PIECE.fullmatch(token) if kind == "metaspace" else None
            if index in added:
                by_id[index] = added[index]
            elif piece is not None:
                byte_ids[int(piece[1], 16)] = index
                by_id[index] = bytes.fromhex(piece[1])
            elif kind == "metaspace":
                by_id[index] = token.replace(_SPACE, " ").encode()
            elif all(character in _BYTE_OF for character in token):
                by_id[index] = bytes(_BYTE_OF[character] for character in token)
        return cls(kind, by_id, byte_ids, tokenizer.eos_token_id, tokenizer.backend_tokenizer)

    def ids_by_bytes(self) -> dict[bytes, int]:
        """The token of each byte string: of several the one that text is made of, so ``q`` and not ``<0x71>``."""
        fallback = set(self.byte_ids.values())
        found: dict[bytes, int] = {}
        for index, text in sorted(self.by_id.items(), key=lambda item: (item[0] in fallback, item[0])):
            found.setdefault(text, index)
        return found

    def encode(self, text: bytes) -> list[int]:
        """Tokens for bytes in the middle of a text; they may begin or end inside a character."""
        try:
            return self._encode_text(text.decode())
        except UnicodeDecodeError:
            pass
        if self.kind == "byte-level":
            return self._encode_stand_ins(text)
        ids: list[int] = []
        # surrogateescape turns a byte that belongs to no character into U+DC00 + byte.
        for stray, run in groupby(text.decode("utf-8", "surrogateescape"), lambda c: "\udc80" <= c <= "\udcff"):
            if stray:
                ids += [self.byte_ids[ord(c) - 0xDC00] for c in run if ord(c) - 0xDC00 in self.byte_ids]
            else:
                ids += self._encode_text("".join(run))
        return ids

    def _encode_text(self, text: str) -> list[int]:
        if self.kind == "byte-level":
            found = list(self.backend.encode(text, add_special_tokens=False).ids)
            # Some normalise a text, put a space before it, or read a special token that is spelled out.
            same = b"".join(self.by_id.get(token, b"") for token in found) == text.encode()
            return found if same else self._encode_stand_ins(text.encode())
        # Not the tokenizer as a whole: it would put a space before what it takes for a new text.
        return [token.id for token in self.backend.model.tokenize(text.replace(" ", _SPACE))]

    def _encode_stand_ins(self, text: bytes) -> list[int]:
        return [token.id for token in self.backend.model.tokenize("".join(_STAND_IN[byte] for byte in text))]


def kind_of(tokenizer: Any) -> Kind | None:
    """Which of the two conventions a tokenizer follows, by how it decodes; None if neither."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return None
    steps = list(_steps(json.loads(decoder.__getstate__())))
    if any(step["type"] == "ByteLevel" for step in steps):
        return "byte-level"
    if any(_replaces_metaspace(step) for step in steps):
        return "metaspace"
    return None


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _steps(part)]


def _replaces_metaspace(step: dict[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return bool(step["replacement"] == _SPACE)
    return bool(step["type"] == "Replace" and step["pattern"].get("String") == _SPACE and step["content"] == " ")
