"""What passes between an engine that decodes and a screen that shows it.

The two live in processes of their own, so that drawing never stands in the way of what is measured. Towards the
screen: events as they are kept in files, and a few messages beside them, one JSON object a line. Towards the engine:
one :class:`Control`, which it reads once per round.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from specprof.profiling import events
from specprof.profiling.events import Event

AUTO_K = -1
"""Value of :attr:`Control.k` that lets K be chosen round by round."""


LONGEST_DRAFT = 8
"""K that can be chosen on the way, where the session begins with a smaller one."""


SLOWEST, FASTEST = 0.25, 16.0
"""Paces of a replay: seconds that pass in one."""


@dataclass(frozen=True, slots=True)
class Loading:
    """The models are on their way; nothing is decoded yet."""

    what: str
    """``loading tiny_dev``, ``warm-up``."""
    done: int = 0
    total: int = 0
    """Steps of it; 0: not known."""


@dataclass(frozen=True, slots=True)
class PromptText:
    prompt_id: str
    domain: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is going to be decoded."""

    prompts: tuple[PromptText, ...]


@dataclass(frozen=True, slots=True)
class Texts:
    """What tokens stand for, by id: each token is explained once, before the first event that has it.

    As in :class:`~specprof.profiling.events.PromptEnded`: a byte that is no character by itself is U+DC00 + byte.
    """

    tokens: dict[str, str]


@dataclass(frozen=True, slots=True)
class Going:
    """What the engine is doing from here on."""

    mode: Literal["running", "paused", "finished"]
    """``finished``: all prompts are decoded; it waits to be told to decode them again."""


@dataclass(frozen=True, slots=True)
class Device:
    """A glance at what the engine runs on; None: there is no telling."""

    name: str
    memory_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilisation: float | None = None
    """Of the whole device, 0 to 1."""
    watts: float | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """Events that the screen was too slow to be shown, since the engine started. No file misses them."""

    events: int


@dataclass(frozen=True, slots=True)
class Kept:
    """Where the events of the run that has just started are kept; None: nowhere."""

    path: str | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A K or a temperature that was wanted can't be had, or not all of it; said once, and the engine goes on."""

    message: str
    hint: str
    k: int
    """That holds instead; or :data:`AUTO_K`."""
    temperature: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine is gone, or can't do what it was asked; the last message."""

    message: str
    hint: str
    exit_code: int
    log_lines: tuple[str, ...] = ()
    """The last of what it said on stderr."""


Aside = Loading | Prompts | Texts | Going | Device | Dropped | Kept | Refused | Failed
Message = Event | Aside

_ASIDES: dict[str, type[Aside]] = {cls.__name__: cls for cls in typing.get_args(Aside)}


def to_json_line(message: Message) -> str:
    """One message as one line of JSON, newline included."""
    if not isinstance(message, Aside):
        return events.to_json_line(message)
    record = {"aside": type(message).__name__} | dataclasses.asdict(message)
    return json.dumps(record, separators=(",", ":")) + "\n"


def from_json_line(line: str) -> Message:
    """Inverse of :func:`to_json_line`.

    Raises:
        ValueError: the line is not a message.
    """
    if line.startswith('{"event"'):
        return events.from_json_line(line)
    record = json.loads(line)
    try:
        cls = _ASIDES[record.pop("aside")]
        if cls is Prompts:
            return Prompts(tuple(PromptText(**each) for each in record["prompts"]))
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in record.items()}
        return cls(**values)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a message: {line[:80]!r}") from error


@dataclass(frozen=True, slots=True)
class Control:
    """What is wanted of an engine, as a whole; it does what differs from what it is doing."""

    paused: bool = False
    steps: int = 0
    """Rounds to make although paused, counted from the start: one more is one round."""
    skips: int = 0
    """Prompts to leave for the next, counted from the start."""
    restarts: int = 0
    """Times to decode all prompts anew, counted from the start."""
    k: int = 4
    """Tokens drafted per round, from the next round on; or :data:`AUTO_K`."""
    temperature: float = 0.0
    """From the next prompt on."""
    race: bool = False
    """Decode each prompt with both arms at once, the one that is behind in time next; from the next prompt on."""
    pace: float = 1.0
    """Of a replay: how many seconds pass in one."""


class Feed(Protocol):
    """A source of messages, live or from a file."""

    live: bool

    def read(self) -> Sequence[Message]:
        """What has come since the last call, in order; never waits."""
        ...

    def send(self, control: Control) -> None:
        """Say what is wanted from now on; never waits."""
        ...

    def close(self) -> None:
        """End it; idempotent."""
        ...
