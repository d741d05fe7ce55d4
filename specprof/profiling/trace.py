"""A run as a timeline for Perfetto (ui.perfetto.dev) or chrome://tracing: the Trace Event Format, as JSON.

Every decoder is a process; its threads are the generations, the host's rounds, and the
draft, target and sample phases of each. Events hold durations, not times of day, so
generations are laid end to end on one clock that starts at 0.

Written as events come: a trace needs no memory that grows with the run.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import specprof
from specprof.errors import ResourceError
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round, RunStarted

SCHEMA = "specprof.trace/1"

MAX_EVENTS = 200_000
"""More than this makes viewers slow; about 18,000 speculative rounds."""

Decode = Callable[[Sequence[int]], str]

# Thread ids are pid * 10 + one of these: unique over all processes, because readers look thread names up by tid alone.
_GENERATIONS, _HOST, _DRAFT, _TARGET, _SAMPLE = range(1, 6)
_THREADS = {_GENERATIONS: "generations", _HOST: "host", _DRAFT: "draft", _TARGET: "target", _SAMPLE: "sample"}

_OPENING_EVENTS, _CLOSING_EVENTS = 12, 5
"""The most that the first round or prefill of a generation writes, and its end: kept free below the limit."""

_NOTES = {
    "clock": "Generations are laid end to end as they were decoded; gaps between them (and warm-up) are not shown.",
    "overhead": "Wall time no phase accounts for, drawn at the end of its round or prefill, wherever in it it fell.",
    "verify": "The target's pass: over the draft and one more token, or over one token where nothing is drafted.",
    "counters": "Accepted tokens and tokens/s hold for the round they start with, and are 0 between generations. "
    "Cumulative acceptance is accepted / drafted, rounds that the end of the text or the length limit cut left out.",
}

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """What a trace shows."""

    num_events: int
    num_generations: int
    num_rounds: int
    num_rounds_left_out: int
    """Rounds that came after the limit of events was reached."""

    @property
    def complete(self) -> bool:
        return self.num_rounds_left_out == 0


@dataclass(slots=True)
class _Arm:
    """One decoder: its process in the trace, its generation in progress, its acceptance so far."""

    pid: int
    generation: tuple[str, int] | None = None
    """Prompt id and repetition."""
    start: int = 0
    """Nanoseconds, as are the next two."""
    decode_start: int = 0
    end: int = 0
    num_rounds: int = 0
    num_tokens: int = 0
    drafts: bool = False
    num_drafted: int = 0
    num_accepted: int = 0

    def tid(self, thread: int) -> int:
        return self.pid * 10 + thread


class TraceWriter:
    """A sink for events that writes their trace; :meth:`close` completes it.

    Args:
        out: where the JSON goes, in UTF-8; the caller closes it.
        decode: text of token ids, to be shown beside them.
        max_events: once the next round would exceed it, the rounds from there on are counted, not shown.

    A disk that fills up does not end the run: :meth:`close` tells.
    """

    def __init__(self, out: TextIO, *, decode: Decode | None = None, max_events: int = MAX_EVENTS) -> None:
        self._out = out
        self._decode = decode
        self._max_events = max_events
        self._arms: dict[str, _Arm] = {}
        self._run: RunStarted | None = None
        self._now = 0
        self._num_events = 0
        self._num_generations = 0
        self._num_rounds = 0
        self._num_rounds_left_out = 0
        self._full = False
        self._closed = False
        self._failure: OSError | None = None
        self._write('{"traceEvents":[')

    @property
    def summary(self) -> TraceSummary:
        return TraceSummary(self._num_events, self._num_generations, self._num_rounds, self._num_rounds_left_out)

    def __call__(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._end_all("interrupted")
                self._run = self._run or event
            case Prefilled():
                if self._begin(event):
                    self._prefill(event, self._arms[event.decoder])
            case Round():
                arm = self._arms.get(event.decoder)
                if (arm is not None and arm.generation == _generation(event)) or self._begin(event):
                    self._round(event, self._arms[event.decoder])
                else:
                    self._num_rounds_left_out += 1
            case PromptEnded():
                arm = self._arms.get(event.decoder)
                if arm is not None and arm.generation == _generation(event):
                    self._end(arm, event.finish_reason, event.peak_memory_bytes)

    def close(self) -> TraceSummary:
        """End what is still open as interrupted, and the document.

        Raises:
            ResourceError: something could not be written; the file is incomplete.
        """
        if not self._closed:
            self._closed = True
            self._end_all("interrupted")
            self._write(f'\n],"displayTimeUnit":"ms","otherData":{_json(self._other_data())}}}\n')
        if self._failure is not None:
            raise _not_written(self._failure) from self._failure
        return self.summary

    def _begin(self, event: Prefilled | Round) -> bool:
        """Open the event's generation, unless the trace is full."""
        arm = self._arms.get(event.decoder)
        if arm is not None:
            self._end(arm, "interrupted")
            names = []
        else:
            arm = _Arm(pid=len(self._arms) + 1)
            names = _names(arm, event.decoder)
        if not self._fits(len(names) + _OPENING_EVENTS + _CLOSING_EVENTS):
            return False
        self._arms[event.decoder] = arm
        self._emit(names)
        arm.generation = _generation(event)
        arm.start = arm.decode_start = arm.end = self._now
        arm.num_rounds = arm.num_tokens = 0
        self._num_generations += 1
        return True

    def _prefill(self, event: Prefilled, arm: _Arm) -> None:
        start = self._now
        draft, target, end = _ends(start, event.draft_seconds, event.target_seconds, event.overhead_seconds)
        args = {
            "prompt_id": event.prompt_id,
            "repetition": event.repetition,
            "num_prompt_tokens": event.num_prompt_tokens,
            "first_token": event.first_token,
        } | self._text("text", (event.first_token,))
        batch = [_slice(arm, _HOST, "prefill", "prefill", start, end, args)]
        if event.peak_memory_bytes:
            batch.append(_memory(arm, start, event.peak_memory_bytes))
        if draft > start:
            batch.append(_slice(arm, _DRAFT, "prefill", "prefill draft", start, draft))
        batch.append(_slice(arm, _TARGET, "prefill", "prefill target", draft, target))
        if end > target:
            batch.append(_slice(arm, _HOST, "prefill", "prefill overhead", target, end))
        self._emit(batch)
        self._now = arm.end = arm.decode_start = end
        arm.num_tokens = 1

    def _round(self, event: Round, arm: _Arm) -> None:
        start = self._now
        seconds = event.draft_seconds, event.verify_seconds, event.sample_seconds, event.overhead_seconds
        draft, verify, sample, end = _ends(start, *seconds)
        drafts = bool(event.draft_tokens) or event.k is not None
        shows_draft = bool(event.draft_tokens) or draft > start
        batch = [_slice(arm, _HOST, "round", "round", start, end, self._round_args(event))]
        if drafts:
            batch.append(_counter(arm, "accepted", "tokens", start, event.num_accepted))
        if end > start:
            batch.append(_counter(arm, "speed", "tokens/s", start, len(event.emitted_tokens) / ((end - start) / 1e9)))
        if shows_draft:
            args = {"index": event.index, "draft_tokens": event.draft_tokens}
            args |= self._text("draft_text", event.draft_tokens)
            batch.append(_slice(arm, _DRAFT, "round", "draft", start, draft, args))
            # Within the draft's slice, as near to its end as can be: at its end the slice would be over.
            batch.append(_flow(arm, "s", _DRAFT, max(start, draft - 1), self._num_rounds))
        positions = {"index": event.index, "num_positions": len(event.draft_tokens) + 1}
        batch.append(_slice(arm, _TARGET, "round", "verify", draft, verify, positions))
        if shows_draft:
            batch.append(_flow(arm, "f", _TARGET, draft, self._num_rounds))
        if sample > verify:
            batch.append(_slice(arm, _SAMPLE, "round", "sample", verify, sample))
        if _rejects(event):
            batch.append(_instant(arm, _SAMPLE, "rejected", sample, self._rejection(event)))
        if end > sample:
            batch.append(_slice(arm, _HOST, "round", "overhead", sample, end))
        counts = bool(event.draft_tokens) and not event.cut
        drafted = arm.num_drafted + len(event.draft_tokens) * counts
        accepted = arm.num_accepted + event.num_accepted * counts
        if counts:
            batch.append(_counter(arm, "cumulative acceptance", "rate", end, accepted / drafted))

        if not self._fits(len(batch)):
            self._num_rounds_left_out += 1
            return
        self._emit(batch)
        self._num_rounds += 1
        self._now = arm.end = end
        arm.num_rounds += 1
        arm.num_tokens += len(event.emitted_tokens)
        arm.drafts = arm.drafts or drafts
        arm.num_drafted, arm.num_accepted = drafted, accepted

    def _end(self, arm: _Arm, reason: str, peak_memory_bytes: int = 0) -> None:
        if arm.generation is None:
            return
        prompt_id, repetition = arm.generation
        arm.generation = None
        args = {
            "prompt_id": prompt_id,
            "repetition": repetition,
            "finish_reason": reason,
            "num_rounds": arm.num_rounds,
            "num_tokens": arm.num_tokens,
        }
        batch = [_slice(arm, _GENERATIONS, "generation", "generation", arm.start, arm.end, args)]
        if reason == "stop":
            batch.append(_instant(arm, _GENERATIONS, "end of text", arm.end, {"prompt_id": prompt_id}))
        if peak_memory_bytes and arm.num_rounds:
            batch.append(_memory(arm, arm.decode_start, peak_memory_bytes))
        if arm.num_rounds:
            batch.append(_counter(arm, "speed", "tokens/s", arm.end, 0))
        if arm.num_rounds and arm.drafts:
            batch.append(_counter(arm, "accepted", "tokens", arm.end, 0))
        self._emit(batch)

    def _end_all(self, reason: str) -> None:
        for arm in self._arms.values():
            self._end(arm, reason)

    def _fits(self, num_events: int) -> bool:
        """Whether the trace has room for so many more. The first that don't fit are the end of it: no gaps."""
        kept_free = _CLOSING_EVENTS * sum(arm.generation is not None for arm in self._arms.values())
        if not self._full and self._num_events + num_events + kept_free > self._max_events:
            self._full = True
            self._end_all("left out from here on")
        return not self._full

    def _emit(self, batch: Iterable[Mapping[str, Any]]) -> None:
        for event in batch:
            self._write((",\n" if self._num_events else "\n") + _json(event))
            self._num_events += 1

    def _write(self, text: str) -> None:
        if self._failure is None:
            try:
                self._out.write(text)
            except OSError as error:
                self._failure = error

    def _round_args(self, event: Round) -> dict[str, Any]:
        args: dict[str, Any] = {
            "prompt_id": event.prompt_id,
            "repetition": event.repetition,
            "index": event.index,
            "k": event.k,
            "draft_tokens": event.draft_tokens,
            "num_accepted": event.num_accepted,
            "emitted_tokens": event.emitted_tokens,
            "cut": event.cut,
            "target_prob": event.target_prob,
            "draft_prob": event.draft_prob,
            "alpha": event.alpha,
        }
        args |= self._text("draft_text", event.draft_tokens) | self._text("text", event.emitted_tokens)
        return {key: value for key, value in args.items() if value is not None}

    def _rejection(self, event: Round) -> dict[str, Any]:
        position = event.num_accepted
        draft_token, token = event.draft_tokens[position], event.emitted_tokens[position]
        args: dict[str, Any] = {
            "prompt_id": event.prompt_id,
            "index": event.index,
            "position": position,
            "draft_token": draft_token,
            "corrected_token": token,
        }
        for name, values in (("target_prob", event.target_prob), ("draft_prob", event.draft_prob)):
            if values is not None and position < len(values):
                args[name] = values[position]
        return args | self._text("draft_text", (draft_token,)) | self._text("text", (token,))

    def _text(self, key: str, tokens: Sequence[int]) -> dict[str, str]:
        return {key: self._decode(tokens)} if self._decode is not None and tokens else {}

    def _other_data(self) -> dict[str, Any]:
        data: dict[str, Any] = {"schema": SCHEMA, "exporter": f"specprof {specprof.__version__}"} | _NOTES
        if self._run is not None:
            data |= {
                "run_id": self._run.run_id,
                "config": _scalars(self._run.config),
                "machine": _scalars(self._run.machine),
            }
        data |= {
            "num_generations": self._num_generations,
            "num_rounds": self._num_rounds,
            "num_rounds_left_out": self._num_rounds_left_out,
        }
        if self._full:
            data["left_out"] = (
                f"the trace ends at its limit of {self._max_events} trace events: "
                f"{self._num_rounds_left_out} rounds that came later are not shown"
            )
        return data


def write_trace(
    events: Iterable[Event], out: TextIO, *, decode: Decode | None = None, max_events: int = MAX_EVENTS
) -> TraceSummary:
    """Write the trace of a run, live or saved, whole or interrupted; see :class:`TraceWriter`.

    Raises:
        ResourceError: it could not be written.
    """
    writer = TraceWriter(out, decode=decode, max_events=max_events)
    for event in events:
        writer(event)
    return writer.close()


@contextmanager
def trace_file(path: Path, *, decode: Decode | None = None, max_events: int = MAX_EVENTS) -> Iterator[TraceWriter]:
    """A sink that writes to a file, compressed if its name ends in ``.gz``, and completes it whatever happens.

    Raises:
        ResourceError: the file can't be opened, or (on leaving) not be written.
    """
    try:
        out = _open(path)
    except OSError as error:
        raise _not_written(error) from error
    writer = TraceWriter(out, decode=decode, max_events=max_events)
    try:
        yield writer
    finally:
        try:
            try:
                writer.close()
            finally:
                out.close()
        except OSError as error:
            raise _not_written(error) from error


def _open(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "wt", encoding="utf-8", newline="\n", compresslevel=6)
    return path.open("w", encoding="utf-8", newline="\n")


def _not_written(error: OSError) -> ResourceError:
    where = f" to {error.filename}" if error.filename else ""
    return ResourceError(
        f"the trace could not be written{where}: {error.strerror or error}",
        "name a file in a directory that exists, is writable and has room",
    )


def _generation(event: Prefilled | Round | PromptEnded) -> tuple[str, int]:
    return event.prompt_id, event.repetition


def _rejects(event: Round) -> bool:
    """Whether a draft token was replaced. A draft cut by an end of sequence among its accepted tokens has no such."""
    return event.num_accepted < min(len(event.draft_tokens), len(event.emitted_tokens))


def _ends(start: int, *seconds: float) -> list[int]:
    """Ends of spans in a row, in nanoseconds: each rounded from the sum, so that errors don't add up."""
    durations = (value if 0 < value < math.inf else 0.0 for value in seconds)
    return [start + round(total * 1e9) for total in itertools.accumulate(durations)]


def _names(arm: _Arm, decoder: str) -> list[dict[str, Any]]:
    def metadata(kind: str, tid: int, key: str, value: str | int) -> dict[str, Any]:
        return {"ph": "M", "name": kind, "pid": arm.pid, "tid": tid, "args": {key: value}}

    names = [
        metadata("process_name", arm.tid(_HOST), "name", decoder),
        metadata("process_sort_index", arm.tid(_HOST), "sort_index", arm.pid),
    ]
    for thread, name in _THREADS.items():
        names.append(metadata("thread_name", arm.tid(thread), "name", name))
        names.append(metadata("thread_sort_index", arm.tid(thread), "sort_index", thread))
    return names


def _slice(
    arm: _Arm, thread: int, category: str, name: str, start: int, end: int, args: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    event = {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": arm.pid,
        "tid": arm.tid(thread),
        "ts": _microseconds(start),
        "dur": _microseconds(end - start),
    }
    return event if args is None else event | {"args": args}


def _flow(arm: _Arm, phase: str, thread: int, at: int, flow_id: int) -> dict[str, Any]:
    """``s`` leaves the slice it stands in, ``f`` enters the one it stands in (``bp``: not the next one)."""
    event = {
        "ph": phase,
        "name": "draft to verify",
        "cat": "flow",
        "id": flow_id,
        "pid": arm.pid,
        "tid": arm.tid(thread),
        "ts": _microseconds(at),
    }
    return event | {"bp": "e"} if phase == "f" else event


def _instant(arm: _Arm, thread: int, name: str, at: int, args: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "ph": "i",
        "s": "t",
        "name": name,
        "cat": "instant",
        "pid": arm.pid,
        "tid": arm.tid(thread),
        "ts": _microseconds(at),
        "args": args,
    }


def _counter(arm: _Arm, name: str, unit: str, at: int, value: float) -> dict[str, Any]:
    return {
        "ph": "C",
        "name": name,
        "cat": "counter",
        "pid": arm.pid,
        "tid": arm.tid(_HOST),
        "ts": _microseconds(at),
        "args": {unit: value},
    }


def _memory(arm: _Arm, at: int, peak_bytes: int) -> dict[str, Any]:
    return _counter(arm, "peak memory", "MiB", at, peak_bytes / 2**20)


def _microseconds(nanoseconds: int) -> float:
    """The unit of the format, as a number that is the same nanosecond again for readers that round and that cut off.

    Without this a reader that cuts off sees neighbours overlap by a nanosecond, and drops one.
    """
    value = nanoseconds / 1000
    while int(value * 1000.0) < nanoseconds:
        value = math.nextafter(value, math.inf)
    return value


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if isinstance(value, str | int | float)}


# Halves of characters, which are no text, and what would command a terminal that shows the file. The rest stays
# readable: Perfetto (52) shows an escaped letter as its escape.
_ODD = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def _json(value: Any) -> str:
    try:
        text = _encode(value)
    except ValueError:  # NaN
        text = _encode(_finite(value))
    return _ODD.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return "\ufffd" if 0xD800 <= code <= 0xDFFF else f"\\u{code:04x}"


def _finite(value: Any) -> Any:
    """The same with None in the place of numbers that JSON hasn't."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
