"""Prompts from public data sets; a domain whose data set can't be had takes the packaged prompts instead.

Rows are streamed, so that only the beginning of each data set is downloaded. Each data set is read by a process of
its own (``python -m specprof.data.sources DOMAIN N SEED``): a connection that hangs can be given up, and pyarrow,
which aborts the interpreter on exit while a stream is open (apache/arrow#45214), takes nothing else with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any

from specprof.data.prompts import Prompt, PromptDataset, builtin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PER_DOMAIN = 50
TINY_PER_DOMAIN = 5
BUILTIN = "built-in"
ARTICLE_TOKENS = 512
ARTICLE_REQUEST = "\n\nSummarize the above article:"

_ROWS = 1000
_ANSWER_SECONDS = 5.0
_PATIENCE_SECONDS = 60.0


class _Unusable(Exception):
    """Why a data set gives no prompts; the packaged ones take its place."""


@dataclass(frozen=True, slots=True)
class Source:
    """A data set on the Hugging Face hub, and how one of its rows becomes a text."""

    domain: str
    dataset: str
    config: str | None
    split: str
    text: Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a domain's prompts came from."""

    domain: str
    source: str
    """The data set, or ``built-in``."""
    reason: str | None
    """Why they are the built-in ones; None for those of a data set."""


def _humaneval_text(row: Mapping[str, Any]) -> str:
    return _field(row, "prompt")


def _alpaca_text(row: Mapping[str, Any]) -> str:
    instruction, given = _field(row, "instruction"), _field(row, "input")
    return f"{instruction}\n\n{given}" if given.strip() else instruction


def _cnn_text(row: Mapping[str, Any]) -> str:
    return _field(row, "article")


def _field(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise _Unusable(f"its rows have no text under {name!r}")
    return value


SOURCES = (
    Source("code", "openai/openai_humaneval", None, "test", _humaneval_text),
    Source("conversation", "tatsu-lab/alpaca", None, "train", _alpaca_text),
    # Where the hub keeps what used to be plain "cnn_dailymail".
    Source("summarization", "abisee/cnn_dailymail", "3.0.0", "test", _cnn_text),
)


def missing_library() -> str | None:
    """What to install before data sets can be read; None if nothing is missing."""
    if find_spec("datasets") is None:
        return "the datasets library is not installed (pip install 'specprof[datasets]')"
    return None


def build(
    tokenizer: PreTrainedTokenizerBase,
    *,
    per_domain: int = PER_DOMAIN,
    seed: int = 0,
    unavailable: str | None = None,
) -> tuple[PromptDataset, tuple[Origin, ...]]:
    """Prompts of every domain, each from its data set or, where that fails, the packaged ones.

    Args:
        tokenizer: whose tokens measure the 512 that an article is cut to.
        per_domain: prompts of each domain, 50 at most.
        seed: which of the first 1000 rows of each data set are taken; the packaged prompts are always the same.
        unavailable: why no data set is to be asked, where that is known.

    Returns:
        The prompts, and where each domain's came from.
    """
    if unavailable is not None:
        answers: list[list[str] | _Unusable] = [_Unusable(unavailable) for _ in SOURCES]
    else:
        answers = _read_all(per_domain, seed)
    prompts: list[Prompt] = []
    origins = []
    for source, answer in zip(SOURCES, answers, strict=True):
        if isinstance(answer, _Unusable):
            prompts += builtin().get_by_domain(source.domain)[:per_domain]
            origins.append(Origin(source.domain, BUILTIN, str(answer)))
            continue
        if source.domain == "summarization":
            answer = [cut(article, tokenizer, ARTICLE_TOKENS) + ARTICLE_REQUEST for article in answer]
        prompts += [Prompt(f"{source.domain}_{i:03d}", source.domain, text) for i, text in enumerate(answer)]
        origins.append(Origin(source.domain, source.dataset, None))
    return PromptDataset(tuple(prompts)), tuple(origins)


def cut(text: str, tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> str:
    """The longest beginning of a text, in whole words, that encodes to no more than ``num_tokens`` (one word at least).

    Words rather than tokens: a token may end inside a character, and what is left encodes to other tokens.
    """
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    fitting = bisect_right(
        ends, num_tokens, key=lambda end: len(tokenizer.encode(text[:end], add_special_tokens=False, verbose=False))
    )
    return text[: ends[max(fitting, 1) - 1]]


def _read_all(n: int, seed: int) -> list[list[str] | _Unusable]:
    """Texts of every data set, read side by side, or why there are none."""
    # -P: a file named datasets.py where the user happens to be is not the library.
    command = [sys.executable, "-P", "-m", "specprof.data.sources"]
    without_torch = {**os.environ, "USE_TORCH": "0"}  # which datasets would import, in vain
    readers = [
        subprocess.Popen(
            [*command, source.domain, str(n), str(seed)],
            env=without_torch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for source in SOURCES
    ]
    with ThreadPoolExecutor(len(readers)) as pool:
        try:
            return list(pool.map(_answer, readers))
        finally:
            for reader in readers:
                reader.kill()  # none is left after Ctrl-C, either


def _answer(reader: subprocess.Popen[bytes]) -> list[str] | _Unusable:
    with reader:
        try:
            out, err = reader.communicate(timeout=_PATIENCE_SECONDS)
            texts, problem = json.loads(out)
        except subprocess.TimeoutExpired:
            reader.kill()
            return _Unusable(f"it was not read within {_PATIENCE_SECONDS:g} s")
        except ValueError:
            lines = [line.strip() for line in err.decode(errors="replace").splitlines() if line.strip()]
            return _Unusable(f"reading it ended with code {reader.returncode} ({lines[-1] if lines else 'no message'})")
    return _Unusable(problem) if texts is None else texts


def read_texts(source: Source, n: int, seed: int) -> list[str]:
    """n different texts from the first 1000 rows of a data set, drawn and ordered by the seed.

    Raises:
        _Unusable: it can't be read, has fewer, or its rows are not what they were.
    """
    try:
        from datasets import load_dataset  # type: ignore[import-untyped]

        stream = load_dataset(source.dataset, source.config, split=source.split, streaming=True)
        texts = [source.text(row) for row in islice(stream, _ROWS)]
    except _Unusable:
        raise
    except Exception as error:  # the errors of datasets, huggingface_hub, httpx, fsspec and pyarrow
        raise _Unusable(_first_line(error)) from error
    usable = list(dict.fromkeys(filter(str.strip, texts)))
    if len(usable) < n:
        raise _Unusable(f"it has {len(usable)} usable rows, {n} are needed")
    # Not the stream's own shuffle: its order changes with the version of datasets, and it sleeps 5 s when closed.
    random.Random(seed).shuffle(usable)
    return usable[:n]


def _first_line(error: Exception) -> str:
    said = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {said}"[:200]


def _ask_for(source: Source) -> None:
    """Learn from one request what the streaming would go on asking for 23 s: that the hub refuses, or fails.

    Raises:
        _Unusable: it does.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(source.dataset, timeout=_ANSWER_SECONDS)
    except HfHubHTTPError as error:
        raise _Unusable(f"the hub answers {error.response.status_code} when asked for {source.dataset}") from error
    except Exception as error:
        raise _Unusable(f"{source.dataset} can't be asked for: {_first_line(error)}") from error


def _main(domain: str, n: str, seed: str) -> None:
    """Answer with one JSON list: the texts (or null) and the problem (or null)."""
    source = next(source for source in SOURCES if source.domain == domain)
    answer: tuple[list[str] | None, str | None]
    with contextlib.redirect_stdout(sys.stderr):
        try:
            _ask_for(source)
            answer = (read_texts(source, int(n), int(seed)), None)
        except _Unusable as error:
            answer = (None, str(error))
    print(json.dumps(answer), flush=True)
    os._exit(0)  # an open stream would abort or hang the ordinary way out


if __name__ == "__main__":
    _main(*sys.argv[1:])
