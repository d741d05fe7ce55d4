"""A YAML file of settings, each with the line it stands on, so that what is wrong with it can be found."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from specprof.errors import UsageError
from specprof.experiments.number_lists import quoted

MAX_BYTES = 2**18
MAX_DEPTH = 8
_EXAMPLE = "write one setting a line, such as `k: [1, 2, 4]`"
_STANDARD = "tag:yaml.org,2002:"
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


@dataclass(frozen=True, slots=True)
class Entry:
    """A value as read, and as it was written."""

    value: Any
    """A text, number, boolean, None, a list of these, or an empty dict: no setting is a mapping."""
    line: int
    """Counted from 1; of the key where there is one."""
    text: str | None = None
    """A scalar as it was written; None of a list or a mapping."""
    items: tuple[Entry, ...] = ()
    """Of a list."""


def read_settings(path: Path) -> dict[str, Entry]:
    """The keys of a YAML mapping, in order.

    Aliases are refused, with which a few lines can stand for billions, and so are tags, which can stand for objects.

    Raises:
        UsageError: it can't be read, isn't UTF-8, isn't one YAML mapping of values and lists, or names a key twice.
    """
    text = _read_text(path)
    try:
        _refuse_structure(path, text)
        return _entries(path, yaml.compose(text, yaml.SafeLoader))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UsageError(
            f"{path}, line {line}: the character U+{error.character:04X} has no place in YAML", "remove it"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UsageError(
            f"{path}{where}: {', '.join(filter(None, (error.context, error.problem)))}",
            "correct it; a text with : # or quotes needs quotes",
        ) from error


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {path}", "name a YAML file, such as configs/tiny.yaml") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a directory", "name a YAML file in it") from error
    except OSError as error:
        raise UsageError(
            f"can't read {path}: {error.strerror or error}", "check the path and its permissions"
        ) from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES // 1024} KiB", "a file of settings has a few dozen lines")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{path}, line {line}: it is not UTF-8 text (byte {error.start})", "save it as UTF-8"
        ) from error


def _refuse_structure(path: Path, text: str) -> None:
    """Refuse what would take long to build, before any of it is built."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise UsageError(
                f"{path}, line {_line(event)}: the alias {quoted(f'*{event.anchor}')} is not read",
                "write the value out, or in quotes if it is a text",
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise UsageError(f"{path}, line {_line(event)}: it is nested too deeply", _EXAMPLE)


def _entries(path: Path, node: yaml.Node | None) -> dict[str, Entry]:
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
        raise UsageError(f"{path} is empty", _EXAMPLE)
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{path}, line {_line(node)}: there is no `name: value`", _EXAMPLE)
    _checked_kind(path, node, "map")
    entries: dict[str, Entry] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise UsageError(f"{path}, line {_line(key)}: the name of a setting is not text", _EXAMPLE)
        if key.value in entries:
            lines = f"lines {entries[key.value].line} and {_line(key)}"
            raise UsageError(f"{path}, {lines}: {key.value!r} is set twice", "keep one of them")
        entries[key.value] = _entry(path, value, _line(key))
    return entries


def _entry(path: Path, node: yaml.Node, line: int) -> Entry:
    if isinstance(node, yaml.ScalarNode):
        kind = _checked_kind(path, node, "str", "int", "float", "bool", "null", "timestamp", "value", "merge")
        return Entry(_scalar(node, kind), line, node.value)
    if isinstance(node, yaml.SequenceNode):
        _checked_kind(path, node, "seq")
        items = tuple(_entry(path, item, _line(item)) for item in node.value)
        return Entry([item.value for item in items], line, None, items)
    _checked_kind(path, node, "map")
    return Entry({}, line)


def _checked_kind(path: Path, node: yaml.Node, *kinds: str) -> str:
    """The kind of value a node is of, if it is one of these."""
    kind = node.tag.removeprefix(_STANDARD)
    if kind in kinds:
        return kind
    tag = node.tag.replace(_STANDARD, "!!")
    raise UsageError(
        f"{path}, line {_line(node)}: the tag {quoted(tag)} is not read", "write a plain value or a list of them"
    )


def _scalar(node: yaml.ScalarNode, kind: str) -> str | int | float | bool | None:
    """What people mean by it: YAML 1.1 would read 1e-3 as text, 010 as eight and 1:30 as ninety."""
    text: str = node.value
    if kind == "null":
        return None
    if kind == "bool" and text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    number = "float" if kind == "str" and node.style is None and _EXPONENT.fullmatch(text) else kind
    try:
        return int(text) if number == "int" else float(text) if number == "float" else text
    except ValueError:
        return text


def _line(part: yaml.Node | yaml.Event) -> int:
    assert part.start_mark is not None
    return int(part.start_mark.line) + 1
