"""Text for training: documents of a JSONL file, and their tokens as one long row on disk."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

EVERY = 400
"""Characters: about so often a document is cut, and its pieces encoded each on its own, as a prompt and what follows it
are. A prompt ends where it likes: between a quote and the newline after it, in a space, inside a word. Whoever has only
seen text encoded in one piece has never seen the tokens at such an end followed by anything."""
AT_LINE_ENDS, AT_SPACES = 0.6, 0.2
"""Of the cuts: before a newline, and after a space; the others are anywhere."""
_LINE_END, _SPACE = re.compile(r"(?=\n)"), re.compile(r"(?<= )")
_AT_A_TIME = 1000


@dataclass(frozen=True, slots=True)
class Document:
    text: str
    domain: str


def documents(path: Path) -> Iterator[Document]:
    """Of a JSONL file (``.jsonl`` or ``.jsonl.xz``) with a ``text`` on each line, and a ``domain`` where it has one.

    Raises:
        SystemExit: for a line that is something else, with its number.
    """
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                found = json.loads(line)
                document = Document(found["text"], found.get("domain", "text"))
            except (ValueError, KeyError, TypeError, AttributeError):
                _refuse(path, number)
            if not isinstance(document.text, str) or not isinstance(document.domain, str):
                _refuse(path, number)
            yield document


def _refuse(path: Path, number: int) -> NoReturn:
    raise SystemExit(f'error: {path}, line {number}: not a JSON object with a "text"')


def encoded(tokenizer: PreTrainedTokenizerBase, corpus: Path, kept: Path, seed: int = 0) -> NDArray[np.uint16]:
    """All documents in random order as tokens, each followed by the end token; ``[tokens]``, read from disk.

    ``kept`` holds them from the first call on.
    """
    if not kept.exists():
        random = np.random.default_rng(seed)
        texts = [document.text for document in documents(corpus)]
        random.shuffle(texts)
        unfinished = kept.with_suffix(".unfinished")
        with unfinished.open("wb") as out:
            for begin in range(0, len(texts), _AT_A_TIME):
                for tokens in _tokens(tokenizer, texts[begin : begin + _AT_A_TIME], random):
                    out.write(tokens.tobytes())
        unfinished.rename(kept)
    return np.memmap(kept, np.uint16, "r")


def _tokens(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], random: np.random.Generator
) -> Iterator[NDArray[np.uint16]]:
    pieces = [cut(text, random) for text in texts]
    ids = iter(tokenizer([each for of_text in pieces for each in of_text], add_special_tokens=False)["input_ids"])
    for of_text in pieces:
        yield np.array([*chain.from_iterable(islice(ids, len(of_text))), tokenizer.eos_token_id], np.uint16)


def cut(text: str, random: np.random.Generator) -> list[str]:
    """The text in pieces, of which there are about one for every :data:`EVERY` characters, and at least one."""
    ends = {0, len(text)}
    for _ in range(random.poisson(len(text) / EVERY)):
        kind = random.random()
        places = _LINE_END if kind < AT_LINE_ENDS else _SPACE if kind < AT_LINE_ENDS + AT_SPACES else None
        middle = int(random.integers(len(text)))
        found = places.search(text, middle) if places else None
        ends.add(found.start() if found else middle)
    return [text[begin:end] for begin, end in pairwise(sorted(ends))]


@dataclass(frozen=True, slots=True)
class Windows:
    """Stretches of a long row of tokens, chosen at random, but the same ones whenever a step is taken again.

    Args:
        stride: a stretch begins at a multiple of it, where a text does.
    """

    tokens: NDArray[np.uint16]
    seed: int
    stride: int = 1

    def batch(self, step: int, rows: int, length: int) -> Tensor:
        """``[rows, length]``, int64, on the CPU.

        Raises:
            SystemExit: there is less text than that.
        """
        if len(self.tokens) < length:
            raise SystemExit(f"error: {len(self.tokens)} tokens of text are not enough for windows of {length}")
        places = (len(self.tokens) - length) // self.stride + 1
        begins = np.random.default_rng((self.seed, step)).integers(0, places, rows) * self.stride
        return torch.from_numpy(np.stack([self.tokens[b : b + length] for b in begins]).astype(np.int64))


@dataclass(frozen=True, slots=True)
class Mixed:
    """Batches of one kind of text or of another.

    Args:
        share: of batches that are of the first kind.
    """

    first: Windows
    second: Windows
    share: float

    def batch(self, step: int, rows: int, length: int) -> Tensor:
        """``[rows, length]``, int64, on the CPU."""
        random = np.random.default_rng((self.first.seed, self.second.seed, step)).random()
        return (self.first if random < self.share else self.second).batch(step, rows, length)
