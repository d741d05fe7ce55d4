"""Prompts by domain: the packaged ones, the user's own files, and how each becomes token ids."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TextIO

from specprof.errors import ResourceError, UsageError
from specprof.files import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DOMAINS = ("code", "conversation", "summarization")
"""The packaged domains; files of the user's own may name others."""

CUSTOM_DOMAIN = "custom"
"""Domain of a prompt that names none."""

_CHAT_DOMAINS = frozenset({"conversation", "summarization"})
_TEXT_KEYS = ("raw_text", "prompt", "text")
_SCHEMA_HINT = 'write a list of texts, or of objects such as {"prompt_id": "a", "domain": "code", "raw_text": "..."}'

_JSON_LIST = re.compile(r'\s*\[\s*["{]')
_JSON_OBJECT = re.compile(r'\s*\{\s*"')
_FINAL_LINE_END = re.compile(r"\r?\n\Z")

ChatTemplate = Literal["auto", "off"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text to continue."""

    prompt_id: str
    domain: str
    raw_text: str
    token_count: int | None = None
    """Tokens of the encoded prompt, for the tokenizer that was last asked; None before that."""


@dataclass(frozen=True, slots=True)
class DomainStats:
    """How many prompts a domain has, and how long they are in tokens; None where not all of them are counted."""

    domain: str
    n: int
    min: int | None
    mean: float | None
    max: int | None


@dataclass(frozen=True, slots=True)
class PromptDataset:
    """Prompts in a fixed order, each with its own ``prompt_id``.

    Raises:
        UsageError: there is no prompt, or two of them share an id.
    """

    prompts: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UsageError("there is no prompt", "give at least one text to continue")
        prompt_id, count = Counter(prompt.prompt_id for prompt in self.prompts).most_common(1)[0]
        if count > 1:
            raise UsageError(f"prompt_id {prompt_id!r} occurs {count} times", "give every prompt an id of its own")

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> PromptDataset:
        """Each text as one prompt of the domain ``custom``.

        Raises:
            UsageError: one of them holds nothing but white space, or can't be written as UTF-8.
        """
        return cls(tuple(_checked(Prompt(f"custom_{i:03d}", CUSTOM_DOMAIN, text)) for i, text in enumerate(texts)))

    @classmethod
    def read(cls, stream: BinaryIO) -> PromptDataset:
        """Prompts of a pipe, which has no suffix: JSON or JSON Lines if it begins like a list of texts or objects
        or like an object, else plain text; each read as :meth:`load` reads it.

        Raises:
            UsageError: it is empty, isn't UTF-8, or begins like JSON and isn't; the message says where.
        """
        name = "standard input"
        text = _decoded(stream.read(), name)
        suffix = ".json" if _JSON_LIST.match(text) else ".jsonl" if _JSON_OBJECT.match(text) else ""
        return cls._parse(text, suffix, name)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PromptDataset:
        """Prompts of a file, read by its suffix.

        ``.json`` is a list and ``.jsonl`` one item a line; an item is a text, or an object with the text under
        ``raw_text``, ``prompt`` or ``text`` and optionally ``prompt_id``, ``domain`` and ``token_count``.
        Any other file is plain text: the whole of it is one prompt, but for the line end that editors put at the end
        of a file. Texts are kept as they are.

        Raises:
            UsageError: the file can't be read, isn't UTF-8, or doesn't hold prompts; the message says where.
        """
        path = Path(path)
        return cls._parse(_read_text(path), path.suffix.lower(), str(path))

    @classmethod
    def _parse(cls, text: str, suffix: str, name: str) -> PromptDataset:
        try:
            match suffix:
                case ".json":
                    return cls(_from_items(_json_items(text)))
                case ".jsonl" | ".ndjson":
                    return cls(_from_items(_json_lines_items(text)))
                case _:
                    return cls.from_texts([_FINAL_LINE_END.sub("", text)])
        except UsageError as error:
            raise UsageError(f"{name}: {error.message}", error.hint) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the prompts as a JSON list that :meth:`load` reads back; the file appears whole or not at all.

        Raises:
            ResourceError: the file can't be written.
        """
        document = json.dumps([dataclasses.asdict(prompt) for prompt in self.prompts], ensure_ascii=False, indent=2)
        try:
            write_whole(Path(path), lambda draft: draft.write_text(document + "\n", encoding="utf-8"))
        except OSError as error:
            raise ResourceError(
                f"can't write {path}: {error.strerror or error}", "name a file in a folder that exists and is writable"
            ) from error

    @property
    def domains(self) -> tuple[str, ...]:
        """Each domain once, in the order of its first prompt."""
        return tuple(dict.fromkeys(prompt.domain for prompt in self.prompts))

    def get_all(self) -> list[Prompt]:
        """Every prompt, in order."""
        return list(self.prompts)

    def get_by_domain(self, domain: str) -> list[Prompt]:
        """The prompts of one domain, in order.

        Raises:
            UsageError: there is none.
        """
        found = [prompt for prompt in self.prompts if prompt.domain == domain]
        if not found:
            raise UsageError(f"no prompt has the domain {domain!r}", f"choose from: {', '.join(self.domains)}")
        return found

    def take(self, n: int) -> PromptDataset:
        """The first n prompts, taken from the domains in turn (all of them if there are no more than n).

        Raises:
            UsageError: n is not positive.
        """
        if n < 1:
            raise UsageError(f"{n} prompts were asked for", "ask for at least 1")
        turns = zip_longest(*(self.get_by_domain(domain) for domain in self.domains))
        in_turn = (prompt for prompt in chain.from_iterable(turns) if prompt is not None)
        return PromptDataset(tuple(islice(in_turn, min(n, len(self)))))

    def with_token_counts(
        self, tokenizer: PreTrainedTokenizerBase, *, chat_template: ChatTemplate = "auto"
    ) -> PromptDataset:
        """The same prompts, each with the number of tokens :func:`encode` makes of it."""
        counted = (
            dataclasses.replace(prompt, token_count=len(encode(prompt, tokenizer, chat_template=chat_template)))
            for prompt in self.prompts
        )
        return PromptDataset(tuple(counted))

    def stats(self) -> tuple[DomainStats, ...]:
        """Number and token counts of each domain's prompts."""
        return tuple(_stats(domain, self.get_by_domain(domain)) for domain in self.domains)

    def table(self, sources: Mapping[str, str] | None = None) -> str:
        """Number and token counts of each domain's prompts as lines of text.

        Args:
            sources: where each domain's prompts came from, for a last column.
        """
        width = max(20, *(len(domain) for domain in self.domains))
        lines = [f"{'domain':<{width}}{'n':>5}{'min':>7}{'mean':>8}{'max':>7}"]
        for row in self.stats():
            lines.append(
                f"{row.domain:<{width}}{row.n:>5}{_number(row.min):>7}{_number(row.mean):>8}{_number(row.max):>7}"
            )
        if sources is not None:
            column = ("source", *(sources[domain] for domain in self.domains))
            lines = [f"{line}  {source}" for line, source in zip(lines, column, strict=True)]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    def print_stats(self, file: TextIO | None = None) -> None:
        """Print :meth:`table`; to standard output if no file is given."""
        print(self.table(), file=sys.stdout if file is None else file)

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)


def builtin() -> PromptDataset:
    """The packaged prompts, written for this project: code, conversation and summarization."""
    text = resources.files("specprof.data").joinpath("builtin_prompts.json").read_text(encoding="utf-8")
    return PromptDataset(_from_items(_json_items(text)))


def encode(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, *, chat_template: ChatTemplate = "auto") -> list[int]:
    """Token ids to prefill for a prompt.

    With ``"auto"``, conversation and summarization go through the tokenizer's chat template where it has one.
    Everything else is encoded as it stands, with whatever special tokens the tokenizer adds by itself. White space
    belongs to the text, at its end too: code behind a newline goes on otherwise than behind a colon.

    Raises:
        UsageError: the prompt holds no text, or the chat template can't render it.
    """
    text = prompt.raw_text
    if not text.strip():
        raise UsageError(f"prompt {prompt.prompt_id!r} holds no text", "give it at least one word")
    if chat_template == "auto" and prompt.domain in _CHAT_DOMAINS and tokenizer.chat_template:
        # The template writes the special tokens itself, the beginning of sequence included: the tokenizer
        # must not add them a second time.
        ids = tokenizer.encode(_render_chat(text, tokenizer), add_special_tokens=False)
    else:
        ids = tokenizer.encode(text)
    return list(ids)


def _render_chat(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    messages = [{"role": "user", "content": text}]
    try:
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # it is a program of the model's, though a confined one, and fails in any way it likes
        raise UsageError(
            f"the tokenizer's chat template fails on a single user message: {error}",
            "use --chat-template off to decode the prompts as plain text",
        ) from error
    return str(rendered)


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist", "check the path of the prompt file") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a directory", "name one prompt file: JSON, JSON Lines or plain text") from error
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror or error}", "check the path and its rights") from error
    return _decoded(raw, str(path))


def _decoded(raw: bytes, name: str) -> str:
    if not raw.strip():
        raise UsageError(f"{name} is empty", "it takes at least one prompt")
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8: byte {error.start} (0x{raw[error.start]:02x}) can't be decoded",
            "save it as UTF-8, for instance with: iconv -f LATIN1 -t UTF-8",
        ) from error


def _json_items(text: str) -> list[tuple[str, Any]]:
    """Items of a JSON list, each with the words that say where it is."""
    document = _parse_json(text, "")
    if not isinstance(document, list):
        raise UsageError(f"the top of the file is {_kind(document)}, not a list of prompts", _SCHEMA_HINT)
    return [(f"item {number}", item) for number, item in enumerate(document, start=1)]


def _json_lines_items(text: str) -> list[tuple[str, Any]]:
    # Only a newline ends a line here: str.splitlines would also cut at U+2028, which JSON allows inside a text.
    lines = enumerate(text.split("\n"), start=1)
    return [(f"line {number}", _parse_json(line, f"line {number}: ")) for number, line in lines if line.strip()]


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if where else f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"{where}not valid JSON at {place}: {error.msg}", _SCHEMA_HINT) from error
    except (RecursionError, ValueError) as error:
        raise UsageError(f"{where}JSON that can't be read: {error}", _SCHEMA_HINT) from error


def _from_items(items: list[tuple[str, Any]]) -> tuple[Prompt, ...]:
    seen: Counter[str] = Counter()
    prompts = []
    for where, item in items:
        try:
            prompt = _from_item(item, seen)
        except UsageError as error:
            raise UsageError(f"{where}: {error.message}", error.hint) from error
        seen[prompt.domain] += 1
        prompts.append(prompt)
    return tuple(prompts)


def _from_item(item: object, seen: Counter[str]) -> Prompt:
    """One prompt; ``seen`` counts the earlier ones of each domain, to number those that bring no id."""
    record = {"raw_text": item} if isinstance(item, str) else item
    if not isinstance(record, dict):
        raise UsageError(f"a prompt can't be {_kind(item)}", _SCHEMA_HINT)
    key = next((key for key in _TEXT_KEYS if key in record), None)
    if key is None:
        raise UsageError(f"none of the keys {', '.join(_TEXT_KEYS)} is there", _SCHEMA_HINT)
    domain = _text_of(record, "domain", default=CUSTOM_DOMAIN)
    prompt_id = _text_of(record, "prompt_id", default=f"{domain}_{seen[domain]:03d}")
    token_count = record.get("token_count")
    if token_count is not None and (type(token_count) is not int or token_count < 0):
        raise UsageError("token_count is not a whole number", "leave it out: it is counted when a tokenizer is known")
    return _checked(Prompt(prompt_id, domain, _text_of(record, key), token_count))


def _text_of(record: dict[str, Any], key: str, default: str | None = None) -> str:
    value = record.get(key, default)
    if not isinstance(value, str):
        raise UsageError(f"{key} is {_kind(value)}, not a text", _SCHEMA_HINT)
    return value


def _checked(prompt: Prompt) -> Prompt:
    for key, value in (("prompt_id", prompt.prompt_id), ("domain", prompt.domain)):
        # Both are printed in tables and used as keys: a line break or an escape sequence has no place there.
        if not value.strip() or not value.isprintable():
            raise UsageError(f"{key} {value!r} is blank or not printable", "use letters, digits, - and _")
    if not prompt.raw_text.strip():
        raise UsageError("the prompt holds nothing but white space", "give it at least one word")
    try:
        prompt.raw_text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(prompt.raw_text[error.start])
        raise UsageError(
            f"character {error.start} (U+{code:04X}) is half of a surrogate pair", "write the whole character"
        ) from error
    return prompt


def _stats(domain: str, prompts: list[Prompt]) -> DomainStats:
    counts = [prompt.token_count for prompt in prompts if prompt.token_count is not None]
    if len(counts) < len(prompts):
        return DomainStats(domain, len(prompts), None, None, None)
    return DomainStats(domain, len(prompts), min(counts), statistics.fmean(counts), max(counts))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    return {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}.get(
        type(value), "null"
    )
