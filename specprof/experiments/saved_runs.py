"""Runs that ``specprof run`` kept, one file of events each."""

from __future__ import annotations

import os
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from specprof.errors import ResourceError, UsageError
from specprof.experiments.records import LONGEST_LINE, check_round, checked, lines_of, parse_object
from specprof.experiments.results import FILE_NAME
from specprof.profiling.comparison import Comparison, compare
from specprof.profiling.cost_model import CostCurve
from specprof.profiling.events import Event, PromptEnded, Round, RunEnded, RunStarted
from specprof.profiling.metrics import BASELINE, GenerationResult, fold, title_of
from specprof.profiling.output_match import Divergence

_EVENTS: dict[str, type[Event]] = {cls.__name__: cls for cls in typing.get_args(Event)}
_LAST_BYTES = 4096
"""More than most :class:`RunEnded` take; those with many differences take more."""


@dataclass(frozen=True, slots=True)
class SavedRun:
    """What the first and the last line of its file say."""

    run_id: str
    path: Path
    pair: str
    k: int | str
    temperature: float
    num_prompts: int
    repetitions: int
    complete: bool
    """False: it was interrupted, or is still going on."""


def saved_runs(directory: Path) -> list[SavedRun]:
    """The runs in a directory, the oldest first; files of other kinds are passed over."""
    runs = []
    for path in sorted(directory.glob("*.jsonl")):
        if path.name != FILE_NAME and path.is_file():
            run = _summary(path)
            if run is not None:
                runs.append(run)
    return runs


@dataclass(frozen=True, slots=True)
class Asked:
    """What is read of a run's configuration."""

    pair: dict[str, Any]
    k: int | str
    temperature: float
    repetitions: int
    prompts: tuple[dict[str, Any], ...]
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    drafter: str = "model"
    cost_curve: dict[str, Any] | None = None
    draft_layers: int | None = None
    vocab_method: str | None = None
    models: dict[str, Any] = field(default_factory=dict)
    engine_used: str = "eager"
    caveats: tuple[str, ...] = ()
    command: str | None = None

    @property
    def domain_of(self) -> dict[str, str]:
        """By prompt id; a prompt may lack one."""
        return {str(p.get("prompt_id")): str(p["domain"]) for p in self.prompts if p.get("domain") is not None}


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run's finished generations, and what it was asked for."""

    started: RunStarted
    asked: Asked
    results: tuple[GenerationResult, ...]
    curve: CostCurve | None
    """What rounds of each draft length cost, where that was surveyed."""
    differences: tuple[Divergence, ...] = ()
    """Why greedy texts differ, of those that were looked into."""
    complete: bool = True
    """False: it was interrupted, or is still going on."""

    def compared(self) -> Comparison:
        """The comparison that the run itself printed, if it came so far."""
        return compare(
            self.results,
            temperature=self.asked.temperature,
            domains=self.asked.domain_of,
            curve=self.curve,
            differences=self.differences,
            seed=abs(self.asked.seed),
        )

    @property
    def title(self) -> str:
        asked = self.asked
        return title_of(
            str(asked.pair.get("name", "a pair")),
            asked.temperature,
            asked.top_k,
            asked.top_p,
            k=asked.k,
            drafter=asked.drafter,
            draft_layers=asked.draft_layers,
            vocab_method=asked.vocab_method,
        )

    @property
    def subtitle(self) -> str | None:
        target = mapping(self.asked.models.get("target"))
        what = f"{target['model']} on {target.get('device')}, {target.get('dtype')}" if "model" in target else None
        forward = f"{target['forward']} forward" if "forward" in target else None
        engine = None if self.asked.engine_used == "eager" else f"{self.asked.engine_used} engine"
        return "; ".join(filter(None, (", ".join(filter(None, (what, forward, engine))), *self.asked.caveats))) or None


def read_run(path: Path) -> FinishedRun:
    """A run's file; each of its results has the texts of all of its tokens. A torn last line (its writer was stopped)
    is skipped.

    Raises:
        UsageError: the file is not a run, or is damaged.
        ResourceError: it can't be read.
    """
    try:
        events = run_events(path)
        started = next(events)
        assert isinstance(started, RunStarted)
        asked = Asked(**checked(Asked, started.config))
        if isinstance(asked.k, str) and asked.k != "auto":
            raise ValueError(f"k is {asked.k!r}, neither a number nor auto")
        curve = None if asked.cost_curve is None else CostCurve.from_dict(asked.cost_curve)
        ends: list[RunEnded] = []
        results = _with_all_texts(list(fold(_noting(ends, events))))
        decoders = {result.decoder for result in results} - {BASELINE}
        if len(decoders) > 1:
            raise ValueError(f"it is of several decoders: {', '.join(sorted(decoders))}")
        return FinishedRun(started, asked, results, curve, differences(ends[-1]) if ends else (), bool(ends))
    except ValueError as error:
        raise UsageError(f"{path} is damaged, or no run: {error}", "name another, or measure again") from error


def run_events(path: Path, having: bytes = b"") -> Iterator[Event]:
    """What happened in a run, read as it is asked for; the first is its :class:`RunStarted`. A torn last line (its
    writer was stopped) is skipped.

    Args:
        having: after the first, only events whose lines have these bytes in them: most need not be made sense of.

    Raises:
        UsageError: the file is not a run, or is damaged; on the way, where it is.
        ResourceError: it can't be read.
    """
    try:
        with open(path, "rb") as file:
            lines = lines_of(file)
            started = _read(path, 1, next(lines, b""))
            if not isinstance(started, RunStarted):
                raise UsageError(f"{path} is not a run", "`specprof results list` lists what there is")
            yield started
            for number, line in enumerate(lines, start=2):
                if having in line and (event := _read(path, number, line)) is not None:
                    yield event
    except OSError as error:
        raise ResourceError(f"reading {path} failed: {error.strerror or error}", "check its permissions") from error


def run_token_texts(path: Path) -> dict[str, str]:
    """What the tokens of a run stand for, by id, as far as it says.

    Raises:
        UsageError: the file is not a run, or is damaged in a place that has to be looked at.
        ResourceError: it can't be read.
    """
    texts: dict[str, str] = {}
    for event in run_events(path, having=b"PromptEnded"):
        if isinstance(event, PromptEnded) and event.token_texts:
            texts.update(event.token_texts)
    return texts


def differences(ended: RunEnded) -> tuple[Divergence, ...]:
    """What a run found out about greedy texts that differ.

    Raises:
        ValueError: it is not that.
    """
    return tuple(Divergence(**checked(Divergence, each)) for each in ended.differences)


def _noting(ends: list[RunEnded], events: Iterator[Event]) -> Iterator[Event]:
    for event in events:
        if isinstance(event, RunEnded):
            ends.append(event)
        yield event


def _with_all_texts(results: list[GenerationResult]) -> tuple[GenerationResult, ...]:
    """A token is noted with one generation of those that have it, which may be of another prompt or arm."""
    texts: dict[str, str] = {}
    for result in results:
        texts.update(result.token_texts or {})
    return tuple(replace(result, token_texts=texts) for result in results) if texts else tuple(results)


def _read(path: Path, number: int, line: bytes) -> Event | None:
    """None: it is torn."""
    try:
        return _event(line)
    except ValueError as error:
        if line.endswith(b"\n"):
            raise UsageError(
                f"line {number} of {path} is damaged: {error}", "name a run's file, or measure again"
            ) from error
    return None


def _event(line: bytes) -> Event:
    values = parse_object(line.decode())
    cls = _EVENTS.get(str(values.get("event")))
    if cls is None:
        raise ValueError("it is not an event")
    event = cls(**checked(cls, values))
    if isinstance(event, Round):
        check_round(event)
    return event


def _summary(path: Path) -> SavedRun | None:
    try:
        with open(path, "rb") as file:
            started = _event(next(lines_of(file), b""))
            if not isinstance(started, RunStarted):
                return None
            asked = Asked(**checked(Asked, started.config))
            last = _last_line(file)
    except (OSError, ValueError):
        return None
    try:
        complete = isinstance(_event(last), RunEnded)
    except ValueError:
        complete = False
    return SavedRun(
        run_id=path.stem,
        path=path,
        pair=str(asked.pair.get("name", "")),
        k=asked.k,
        temperature=asked.temperature,
        num_prompts=len(asked.prompts),
        repetitions=asked.repetitions,
        complete=complete,
    )


def _last_line(file: BinaryIO) -> bytes:
    end, size = file.seek(0, os.SEEK_END), _LAST_BYTES
    while True:
        file.seek(max(0, end - size))
        lines = file.readlines()
        if len(lines) > 1 or size >= min(end, LONGEST_LINE):
            return lines[-1]
        size *= 4


def mapping(value: Any) -> dict[str, Any]:
    """What is expected to be an object, and in a damaged file may be anything."""
    return value if isinstance(value, dict) else {}
