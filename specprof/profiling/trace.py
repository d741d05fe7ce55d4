"""A run as a timeline for Perfetto (ui.perfetto.dev) or chrome://tracing: the Trace Event Format, as JSON.

Every decoder is a process; its threads are the generations, the host's rounds, and the
draft, target and sample phases of each. Events hold durations, not times of day, so
generations are laid end to end on one clock that starts at 0.

Written as events come: a trace needs no memory that grows with the run.
"""

from __future__ import annotations

import gzip
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import specprof
from specprof.errors import ResourceError
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round, RunStarted
from specprof.profiling.trace_format import (
    DRAFT,
    GENERATIONS,
    HOST,
    SAMPLE,
    TARGET,
    counter,
    encoded,
    flow,
    instant,
    memory,
    process_names,
    span,
)

SCHEMA = "specprof.trace/1"

MAX_EVENTS = 200_000
"""More than this makes viewers slow; about 18,000 speculative rounds."""

Decode = Callable[[Sequence[int]], str]

_OPENING_EVENTS, _CLOSING_EVENTS = 12, 5
"""The most that the first round or prefill of a generation writes, and its end: kept free below the limit."""

_NOTES = {
    "clock": "Generations are laid end to end as they were decoded; gaps between them (and warm-up) are not shown.",
    "overhead": "Wall time no phase accounts for, drawn at the end of its round or prefill, wherever in it it fell.",
    "verify": "The target's pass: over the draft and one more token, or over one token where nothing is drafted.",
    "counters": "Accepted tokens and tokens/s hold for the round they start with, and are 0 between generations. "
    "Cumulative acceptance is accepted / drafted, rounds that the end of the text or the length limit cut left out.",
}


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
            OSError: something could not be written; the file is incomplete.
        """
        if not self._closed:
            self._closed = True
            self._end_all("interrupted")
            self._write(f'\n],"displayTimeUnit":"ms","otherData":{encoded(self._other_data())}}}\n')
        if self._failure is not None:
            raise self._failure
        return self.summary

    def _begin(self, event: Prefilled | Round) -> bool:
        """Open the event's generation, unless the trace is full."""
        arm = self._arms.get(event.decoder)
        if arm is not None:
            self._end(arm, "interrupted")
            names = []
        else:
            arm = _Arm(pid=len(self._arms) + 1)
            names = process_names(arm.pid, event.decoder)
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
        batch = [span(arm.pid, HOST, "prefill", "prefill", start, end, args)]
        if event.peak_memory_bytes:
            batch.append(memory(arm.pid, start, event.peak_memory_bytes))
        if draft > start:
            batch.append(span(arm.pid, DRAFT, "prefill", "prefill draft", start, draft))
        batch.append(span(arm.pid, TARGET, "prefill", "prefill target", draft, target))
        if end > target:
            batch.append(span(arm.pid, HOST, "prefill", "prefill overhead", target, end))
        self._emit(batch)
        self._now = arm.end = arm.decode_start = end
        arm.num_tokens = 1

    def _round(self, event: Round, arm: _Arm) -> None:
        start = self._now
        seconds = event.draft_seconds, event.verify_seconds, event.sample_seconds, event.overhead_seconds
        draft, verify, sample, end = _ends(start, *seconds)
        drafts = bool(event.draft_tokens) or event.k is not None
        shows_draft = bool(event.draft_tokens) or draft > start
        batch = [span(arm.pid, HOST, "round", "round", start, end, self._round_args(event))]
        if drafts:
            batch.append(counter(arm.pid, "accepted", "tokens", start, event.num_accepted))
        if end > start:
            batch.append(
                counter(arm.pid, "speed", "tokens/s", start, len(event.emitted_tokens) / ((end - start) / 1e9))
            )
        if shows_draft:
            args = {"index": event.index, "draft_tokens": event.draft_tokens}
            args |= self._text("draft_text", event.draft_tokens)
            batch.append(span(arm.pid, DRAFT, "round", "draft", start, draft, args))
            # Within the draft's slice, as near to its end as can be: at its end the slice would be over.
            batch.append(flow(arm.pid, "s", DRAFT, max(start, draft - 1), self._num_rounds))
        positions = {"index": event.index, "num_positions": len(event.draft_tokens) + 1}
        batch.append(span(arm.pid, TARGET, "round", "verify", draft, verify, positions))
        if shows_draft:
            batch.append(flow(arm.pid, "f", TARGET, draft, self._num_rounds))
        if sample > verify:
            batch.append(span(arm.pid, SAMPLE, "round", "sample", verify, sample))
        if _rejects(event):
            batch.append(instant(arm.pid, SAMPLE, "rejected", sample, self._rejection(event)))
        if end > sample:
            batch.append(span(arm.pid, HOST, "round", "overhead", sample, end))
        counts = bool(event.draft_tokens) and not event.cut
        drafted = arm.num_drafted + len(event.draft_tokens) * counts
        accepted = arm.num_accepted + event.num_accepted * counts
        if counts:
            batch.append(counter(arm.pid, "cumulative acceptance", "rate", end, accepted / drafted))

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
        batch = [span(arm.pid, GENERATIONS, "generation", "generation", arm.start, arm.end, args)]
        if reason == "stop":
            batch.append(instant(arm.pid, GENERATIONS, "end of text", arm.end, {"prompt_id": prompt_id}))
        if peak_memory_bytes and arm.num_rounds:
            batch.append(memory(arm.pid, arm.decode_start, peak_memory_bytes))
        if arm.num_rounds:
            batch.append(counter(arm.pid, "speed", "tokens/s", arm.end, 0))
        if arm.num_rounds and arm.drafts:
            batch.append(counter(arm.pid, "accepted", "tokens", arm.end, 0))
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
            self._write((",\n" if self._num_events else "\n") + encoded(event))
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


@contextmanager
def trace_file(
    path: Path, *, decode: Decode | None = None, max_events: int = MAX_EVENTS, kept: object = None
) -> Iterator[TraceWriter]:
    """A sink that writes to a file, compressed if its name ends in ``.gz``, and completes it whatever happens.

    Args:
        kept: where the measurements are, if they are somewhere: a failure on leaving does not cost them.

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
            raise _not_written(error, kept) from error


def _open(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "wt", encoding="utf-8", newline="\n", compresslevel=6)
    return path.open("w", encoding="utf-8", newline="\n")


def _not_written(error: OSError, kept: object = None) -> ResourceError:
    where = f" to {error.filename}" if error.filename else ""
    hint = f"what was measured is kept: {kept}" if kept else "name a file in a directory that is writable and has room"
    return ResourceError(f"the trace could not be written{where}: {error.strerror or error}", hint)


def _generation(event: Prefilled | Round | PromptEnded) -> tuple[str, int]:
    return event.prompt_id, event.repetition


def _rejects(event: Round) -> bool:
    """Whether a draft token was replaced. A draft cut by an end of sequence among its accepted tokens has no such."""
    return event.num_accepted < min(len(event.draft_tokens), len(event.emitted_tokens))


def _ends(start: int, *seconds: float) -> list[int]:
    """Ends of spans in a row, in nanoseconds: each rounded from the sum, so that errors don't add up."""
    durations = (value if 0 < value < math.inf else 0.0 for value in seconds)
    return [start + round(total * 1e9) for total in itertools.accumulate(durations)]


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if isinstance(value, str | int | float)}
