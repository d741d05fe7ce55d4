"""The lines of a results store: what was measured, by whom, and what went wrong.

One JSON object a line. Keys that are unknown are ignored and kinds that are unknown are skipped: a later version
wrote them. What is written under one name here is read under that name for as long as the schema is ``/1``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from specprof.profiling.acceptance import AcceptanceCounts
from specprof.profiling.events import Round
from specprof.profiling.metrics import BASELINE, IN_EVENTS_ONLY, BenchmarkConfig, GenerationResult

SCHEMA = "specprof.results/1"

REASONS = ("out of memory", "load", "crash", "timeout", "error", "skipped")
"""Why a cell can fail. ``skipped``: it was not tried, because another one's failure foretold its own."""


@dataclass(frozen=True, slots=True)
class Session:
    """One invocation of the command that writes; the lines after it name it."""

    session: str
    schema: str
    specprof: str
    started_at: str
    order_seed: int
    command: str | None


@dataclass(frozen=True, slots=True)
class Machine:
    """What measured. Timings are compared within one machine class only."""

    machine_class: str
    session: str
    machine: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CellStarted:
    """A cell is being worked on; written once per session, a later line replaces an earlier one."""

    config_hash: str
    machine_class: str
    session: str
    config: dict[str, Any]
    """:meth:`BenchmarkConfig.to_dict`."""
    models: dict[str, Any]
    """What was loaded: ids, parameters, dtypes, revisions."""
    vocab_method: str | None
    num_prompts: int
    repetitions: int
    """``num_prompts * repetitions`` generations make the cell complete."""
    caveats: tuple[str, ...]
    prompt_hashes: tuple[str, ...] = ()
    """Of the prompts that are asked for; what else is there of the cell was asked for earlier."""
    engine_used: str | None = None
    """``eager``, ``static`` or ``graph``; None where that was not recorded."""


class GenerationKey(NamedTuple):
    """What makes two generations the same measurement, made twice."""

    config_hash: str
    machine_class: str
    prompt_id: str
    prompt_hash: str
    repetition: int
    control: bool


@dataclass(frozen=True, slots=True)
class Generation:
    """One measurement: one prompt, decoded once."""

    config_hash: str
    machine_class: str
    session: str
    sequence: int
    """Order of the store: 1 more than the largest before it."""
    started_at: str
    prompt_id: str
    prompt_hash: str
    domain: str
    repetition: int
    control: bool
    """A baseline's generation made again to show drift; enters no speedup."""
    pair: str
    K: int | str
    temperature: float
    result: GenerationResult

    @property
    def key(self) -> GenerationKey:
        return GenerationKey(
            self.config_hash, self.machine_class, self.prompt_id, self.prompt_hash, self.repetition, self.control
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell, or one generation of it, that could not be measured."""

    config_hash: str
    machine_class: str | None
    """None: the machine was not known yet."""
    session: str
    sequence: int
    at: str
    reason: str
    """One of :data:`REASONS`."""
    message: str
    hint: str | None
    prompt_id: str | None
    repetition: int | None


COUNTS = (
    "num_spec_steps",
    "num_draft_tokens",
    "num_accepted_draft_tokens",
    "num_cut_rounds",
    "num_empty_rounds",
)
"""Keys of a speculative generation's line that follow from its rounds, for readers who leave those out."""

Record = Session | Machine | CellStarted | Generation | Failure

_KINDS: dict[str, type[Record]] = {
    "session": Session,
    "machine": Machine,
    "cell": CellStarted,
    "generation": Generation,
    "failure": Failure,
}
_KIND_OF = {cls: kind for kind, cls in _KINDS.items()}


def to_json_line(record: Record) -> str:
    """One record as one line of JSON, newline included.

    Raises:
        ValueError: a number is not finite, which JSON can't say.
    """
    line: dict[str, Any] = {"kind": _KIND_OF[type(record)]}
    line |= {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "result"}
    if isinstance(record, Generation):
        line |= {key: value for key, value in record.result.to_dict().items() if key not in line}
        if record.result.is_speculative:
            counts = AcceptanceCounts.of(record.result.rounds, greedy=False)
            line |= {name: getattr(counts, name) for name in COUNTS}
        if record.result.token_texts is not None:
            line["token_texts"] = record.result.token_texts
        line["rounds"] = rounds_to_columns(record.result.rounds)
    return json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n"


def from_json_line(line: str, *, with_rounds: bool = True) -> Record | None:
    """Inverse of :func:`to_json_line`; None: a kind that this version doesn't know.

    Args:
        with_rounds: False leaves ``result.rounds`` empty, and what they hold unread.

    Raises:
        ValueError: not a record.
    """
    return to_record(parse(line, with_rounds=with_rounds))


LONGEST_LINE = 2**26
"""Bytes. Nothing that is written here comes near it, and as objects it may take twenty times as much."""


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one that is too long, as much as :func:`parse_object` needs to refuse it."""
    while line := file.readline(LONGEST_LINE + 1):
        end = line
        while len(end) > LONGEST_LINE and not end.endswith(b"\n"):
            end = file.readline(LONGEST_LINE + 1)
        yield line if line is end or not end.endswith(b"\n") else line + b"\n"


def parse(line: str, *, with_rounds: bool = True) -> dict[str, Any]:
    """A line's keys and values, unchecked but for the kind.

    Raises:
        ValueError: not an object with a kind.
    """
    values = parse_object(line if with_rounds else _without_rounds(line))
    if not isinstance(values.get("kind"), str):
        raise ValueError("it is not a record: it has no kind")
    return values


def parse_object(text: str) -> dict[str, Any]:
    """JSON as its standard has it: no NaN, no Infinity.

    Raises:
        ValueError: not an object.
    """
    if len(text) > LONGEST_LINE:
        raise ValueError(f"it is longer than {LONGEST_LINE >> 20} MiB")
    try:
        values = json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is too deeply nested") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error.msg} at character {error.pos + 1})") from error
    if not isinstance(values, dict):
        raise ValueError("it is not an object")
    return values


def to_record(values: Mapping[str, Any]) -> Record | None:
    """What :func:`parse` found, as the record it is; None: a kind that this version doesn't know.

    Raises:
        ValueError: a key is missing, or a value is not what its key says.
    """
    cls = _KINDS.get(values["kind"])
    if cls is None:
        return None
    if cls is Generation:
        result = GenerationResult(**checked(GenerationResult, values, without=IN_EVENTS_ONLY))
        _check_counts(values)
        columns = _object("rounds", values.get("rounds", {}))
        rounds = rounds_from_columns(columns, result.prompt_id, result.decoder, result.repetition)
        # Whoever doesn't look at the rounds has no use for their text either.
        texts = _CHECKS["dict[str, str] | None"]("token_texts", values.get("token_texts")) if rounds else None
        generation = Generation(
            **checked(Generation, values, without=("result",)),
            result=dataclasses.replace(result, rounds=rounds, token_texts=texts),
        )
        if result.decoder != (f"SD-K{generation.K}" if generation.K else BASELINE):
            raise ValueError(f"decoder {result.decoder!r} is not that of K = {generation.K}")
        return generation
    record = cls(**checked(cls, values))
    if isinstance(record, CellStarted):
        _check_config(record.config)
    return record


def _check_counts(values: Mapping[str, Any]) -> None:
    """Raise ValueError unless what a data frame takes from the line beside its fields are counts."""
    for name in COUNTS:
        if values.get(name) is not None:
            _whole(name, values[name])


def _without_rounds(line: str) -> str:
    """Most of a line is its rounds, and most of the time reading it is theirs: cut them off where they stand last."""
    head, key, columns = line.rstrip().rpartition(',"rounds":{')
    # Inside a string that quotation mark would be escaped. Columns hold no objects: the first brace ends them.
    if key and head.startswith('{"kind":"generation"') and columns.find("}") == len(columns) - 2 and columns[-1] == "}":
        return head + "}"
    return line


def _check_config(config: dict[str, Any]) -> None:
    for field in dataclasses.fields(BenchmarkConfig):
        if field.name in config and field.type in ("str", "str | None", "bool"):  # it looks at its numbers itself
            _CHECKS[str(field.type)](field.name, config[field.name])
    try:
        BenchmarkConfig.from_dict(config)
    except TypeError as error:
        raise ValueError(f"config: {error}") from error


# Rounds, column by column: names once instead of in every round, and a column is what a data frame wants.

_BESIDE_COLUMNS = ("prompt_id", "decoder", "repetition", "index")
_COLUMNS = tuple(field for field in dataclasses.fields(Round) if field.name not in _BESIDE_COLUMNS)


def rounds_to_columns(rounds: Sequence[Round]) -> dict[str, list[Any]]:
    """``{field: [its value in each round]}``; a field that is None everywhere is left out, ``cut`` where all is False.

    Seconds are rounded to nanoseconds, probabilities to 9 significant digits.
    """
    columns: dict[str, list[Any]] = {}
    for field in _COLUMNS:
        values = [getattr(round, field.name) for round in rounds]
        if any(value is not None and value is not False for value in values):
            columns[field.name] = [_rounded(field.name, value) for value in values]
    return columns


def rounds_from_columns(
    columns: Mapping[str, Sequence[Any]], prompt_id: str, decoder: str, repetition: int
) -> tuple[Round, ...]:
    """Inverse of :func:`rounds_to_columns`; columns that are unknown are ignored.

    Raises:
        ValueError: not columns of rounds.
    """
    known = _checked_columns(columns)
    if not known:
        return ()
    rows = enumerate(zip(*known.values(), strict=True))
    rounds = tuple(Round(prompt_id, decoder, repetition, i, **dict(zip(known, row, strict=True))) for i, row in rows)
    for round in rounds:
        check_round(round)
    return rounds


def check_round(round: Round) -> None:
    """Refuse what no decoder does.

    Raises:
        ValueError: more tokens accepted than drafted, a time below 0, or probabilities of other tokens.
    """
    if not 0 <= round.num_accepted <= len(round.draft_tokens):
        raise ValueError(f"round {round.index}: {round.num_accepted} of {len(round.draft_tokens)} tokens accepted")
    if min(round.draft_seconds, round.verify_seconds, round.sample_seconds, round.overhead_seconds) < 0:
        raise ValueError(f"round {round.index}: a time is negative")
    for name in ("target_prob", "draft_prob", "alpha", "uniforms"):
        values = getattr(round, name)
        if values is not None and len(values) != len(round.draft_tokens):
            raise ValueError(
                f"round {round.index}: {len(values)} of {name} for {len(round.draft_tokens)} tokens drafted"
            )
        if values and not 0 <= min(values) <= max(values) <= _LARGEST_PROBABILITY:
            raise ValueError(f"round {round.index}: {name} is no probability")


def _rounded(name: str, value: Any) -> Any:
    if name.endswith("_seconds"):
        return round(value, 9)
    if not isinstance(value, tuple):
        return value
    return [float(f"{element:.9g}") if isinstance(element, float) else element for element in value]


def _checked_columns(columns: Mapping[str, Any]) -> dict[str, list[Any]]:
    known: dict[str, list[Any]] = {}
    for field in _COLUMNS:
        if field.name in columns:
            column, check = columns[field.name], _CHECKS[str(field.type)]
            if not isinstance(column, list):
                raise ValueError(f"rounds: {field.name} is not a column")
            known[field.name] = [check(field.name, value) for value in column]
        elif columns and field.default is dataclasses.MISSING:
            raise ValueError(f"rounds: {field.name} is missing")
    if len({len(column) for column in known.values()}) > 1:
        raise ValueError("rounds: columns of different lengths")
    return known


# Whatever stands in a file is to be what the fields say before anybody computes with it.

_LARGEST_PROBABILITY = 1.01
"""A sum of many rounded ones may be a little above 1."""
_LARGEST = 2**63
_LARGEST_FLOAT = 1e100  # what is computed from it stays finite


def checked(cls: type[Any], values: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    """Arguments for a dataclass from what JSON held: keys that are unknown left out, values as its fields are typed.

    Raises:
        ValueError: a key is missing, or a value is not what its field says.
    """
    arguments = {}
    for field in dataclasses.fields(cls):
        if field.name in without:
            continue
        if field.name in values:
            arguments[field.name] = _CHECKS[str(field.type)](field.name, values[field.name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"not a {cls.__name__}: {field.name} is missing")
    return arguments


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is not text")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is neither true nor false")
    return value


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or not -_LARGEST <= value < _LARGEST:
        raise ValueError(f"{name} is not a whole number, or too large")
    return value


def _number(name: str, value: Any) -> float:
    if type(value) is float and abs(value) <= _LARGEST_FLOAT:
        return value
    return float(_whole(name, value))


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value


def _texts_by_key(name: str, value: Any) -> dict[str, str]:
    return {key: _text(name, text) for key, text in _object(name, value).items()}


def _length(name: str, value: Any) -> int | str:
    return value if isinstance(value, str) else _whole(name, value)


def _flags(name: str, value: Any) -> list[bool]:
    return [_flag(name, element) for element in _list(name, value)]


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list")
    return value


def _whole_numbers(name: str, value: Any) -> list[int]:
    values = _list(name, value)
    if not _only(values, {int}) or (values and (min(values) < -_LARGEST or max(values) >= _LARGEST)):
        raise ValueError(f"{name} are not whole numbers, or too large")
    return values


def _numbers(name: str, value: Any) -> list[float]:
    values = _list(name, value)
    if _only(values, {float}) and max(map(abs, values), default=0.0) <= _LARGEST_FLOAT:
        return values
    return [_number(name, element) for element in values]


def _only(values: Iterable[Any], types: set[type]) -> bool:
    return set(map(type, values)) <= types


def _or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


def _as_tuple(check: Callable[[str, Any], list[Any]]) -> Callable[[str, Any], tuple[Any, ...]]:
    return lambda name, value: tuple(check(name, value))


def _objects(name: str, value: Any) -> list[dict[str, Any]]:
    return [_object(name, element) for element in _list(name, value)]


def _texts(name: str, value: Any) -> list[str]:
    return [_text(name, element) for element in _list(name, value)]


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "str": _text,
    "str | None": _or_none(_text),
    "FinishReason | None": _or_none(_text),
    "TieVerdict | None": _or_none(_text),
    "bool": _flag,
    "int": _whole,
    "int | None": _or_none(_whole),
    "int | str": _length,
    "float": _number,
    "float | None": _or_none(_number),
    "dict[str, Any]": _object,
    "dict[str, Any] | None": _or_none(_object),
    "dict[str, str] | None": _or_none(_texts_by_key),
    "tuple[dict[str, Any], ...]": _as_tuple(_objects),
    "list[int]": _whole_numbers,
    "list[float]": _numbers,
    "FinishReason": _text,
    "tuple[str, ...]": _as_tuple(_texts),
    "tuple[int, ...]": _as_tuple(_whole_numbers),
    "tuple[bool, ...] | None": _or_none(_as_tuple(_flags)),
    "tuple[float, ...] | None": _or_none(_as_tuple(_numbers)),
}
"""By a field's annotation."""
