"""What happened during decoding, in order.

A live run, a saved file and a pipe are the same thing: an ``Iterable[Event]``.
Events hold ids and floats, never tensors, so they cross processes and files
unchanged. There is no token event: a round emits its tokens at one instant,
tokens are a view of :class:`Prefilled` and :class:`Round`.

Autoregressive decoding emits the same events with nothing drafted.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

SCHEMA = "specprof.events/1"

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class RunStarted:
    """First line of every file: what was asked for and what ran it."""

    run_id: str
    schema: str
    config: dict[str, Any]
    machine: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The prompt is in the caches and the first token is chosen; it belongs to no round."""

    prompt_id: str
    decoder: str
    """``AR`` or ``SD-K4``: which arm of the run this generation belongs to."""
    repetition: int
    num_prompt_tokens: int
    first_token: int
    target_seconds: float
    draft_seconds: float
    overhead_seconds: float
    """The rest of the time to the first token: choosing it, and the host's work."""
    peak_memory_bytes: int = 0
    """High-water mark of the prefill (0: not measured)."""

    @property
    def seconds(self) -> float:
        """Time to first token."""
        return self.target_seconds + self.draft_seconds + self.overhead_seconds


@dataclass(frozen=True, slots=True)
class Round:
    """One draft and one verify (nothing drafted: one autoregressive step)."""

    prompt_id: str
    decoder: str
    repetition: int
    index: int
    draft_tokens: tuple[int, ...]
    num_accepted: int
    emitted_tokens: tuple[int, ...]
    """The accepted prefix, then the corrected token (one was rejected) or the bonus token (all accepted);
    shorter when an end-of-sequence token among the accepted ones ended the text."""
    draft_seconds: float
    verify_seconds: float
    sample_seconds: float
    overhead_seconds: float
    """Wall time of the round that no phase accounts for: roll-back, the host's work, launch gaps."""
    cut: bool = False
    """The length limit shortened the draft, or an end of sequence cut the accepted run:
    counted in throughput, left out of acceptance rates."""
    target_prob: tuple[float, ...] | None = None
    """Target probability of each draft token (recorded when sampling, or with detail)."""
    draft_prob: tuple[float, ...] | None = None
    alpha: tuple[float, ...] | None = None
    """Per draft position, sum over the vocabulary of min(p_target, p_draft)."""
    k: int | None = None
    """Tokens asked of the drafter, which may have proposed fewer; None where there is no drafter."""
    uniforms: tuple[float, ...] | None = None
    """Sampling, with detail: the random number in [0, 1) of each draft token. One that was judged is accepted where
    that is below target_prob / draft_prob."""

    @property
    def seconds(self) -> float:
        """Wall time of the round."""
        return self.draft_seconds + self.verify_seconds + self.sample_seconds + self.overhead_seconds


@dataclass(frozen=True, slots=True)
class PromptEnded:
    """A generation is complete; a generation without this line was interrupted."""

    prompt_id: str
    decoder: str
    repetition: int
    finish_reason: FinishReason
    peak_memory_bytes: int
    """High-water mark of the rounds."""
    draft_matches: tuple[bool, ...] | None = None
    """Greedy, in hindsight: for each token after the first, whether the draft would have proposed it there.
    Rounds show that only of the tokens they judged, and the bonus tokens are not among them."""
    token_texts: dict[str, str] | None = None
    """What tokens, drafted ones included, are as text, by id; each is noted once in a run, with the first finished
    generation that has it (in a sweep: with each prompt's first repetition, all of its own).
    A byte that is no character by itself is U+DC00 + byte, as Python's surrogateescape has it."""
    energy_joules: float | None = None
    """What the device's energy counter went up by from the prefill to here; None where there is none to read."""
    interactive: bool = False
    """Somebody paused it, stepped through it or changed its settings on the way, or it raced another: caches and
    clocks were not those of a measurement, and headline figures leave it out."""


@dataclass(frozen=True, slots=True)
class RunEnded:
    """Last line of a file; its absence says the run died, or was left before its end."""

    peak_memory_bytes: int
    """High-water mark of all generations."""
    differences: tuple[dict[str, Any], ...] = ()
    """Greedy: of each prompt where speculation's text differs from plain decoding's, why it does
    (:class:`~specprof.profiling.verification.Difference`)."""


Event = RunStarted | Prefilled | Round | PromptEnded | RunEnded

_BY_NAME: dict[str, type[Event]] = {cls.__name__: cls for cls in (RunStarted, Prefilled, Round, PromptEnded, RunEnded)}
_TUPLES = {
    "draft_tokens",
    "emitted_tokens",
    "target_prob",
    "draft_prob",
    "alpha",
    "uniforms",
    "draft_matches",
    "differences",
}


def to_json_line(event: Event) -> str:
    """One event as one line of JSON, newline included; fields that are None are left out."""
    record: dict[str, Any] = {"event": type(event).__name__}
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        if value is not None:
            record[field.name] = value
    return json.dumps(record, separators=(",", ":")) + "\n"


def from_json_line(line: str) -> Event:
    """Inverse of :func:`to_json_line`.

    Raises:
        ValueError: the line is not an event (torn, or of another schema).
    """
    record = json.loads(line)
    try:
        cls = _BY_NAME[record.pop("event")]
        values: dict[str, Any] = {key: tuple(value) if key in _TUPLES else value for key, value in record.items()}
        return cls(**values)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not an event: {line[:80]!r}") from error


def read_events(lines: Iterable[str]) -> Iterator[Event]:
    """Events of a saved run. A torn last line (the writer was killed) is skipped; a torn line elsewhere is an error."""
    pending: ValueError | None = None
    for line in lines:
        if pending is not None:
            raise pending
        try:
            yield from_json_line(line)
        except ValueError as error:
            pending = error
