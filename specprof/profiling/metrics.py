"""What one generation measured, a fold of its events, and what was asked for.

Nothing here touches a clock or a tensor. A number that is undefined is None, never 0.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from specprof.profiling.acceptance import AcceptanceCounts, ratio
from specprof.profiling.events import Event, FinishReason, Prefilled, PromptEnded, Round, RunStarted
from specprof.profiling.statistics import percentile

BASELINE = "AR"
"""Decoder label of plain autoregressive decoding: nothing drafted."""

BYTES_PER_MB = 2**20


def manner(temperature: float) -> str:
    """``greedy``, or ``temperature 0.8``: as titles have it."""
    return "greedy" if temperature == 0 else f"temperature {temperature:g}"


def title_of(
    pair: str,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    *,
    domain: str | None = None,
    k: int | str | None = None,
    drafter: str = "model",
    draft_layers: int | str | None = None,
    vocab_method: str | None = None,
) -> str:
    """What was asked for, in one line; what is as always is left out."""
    parts = [
        pair,
        domain,
        None if k is None else f"K = {k}",
        manner(temperature),
        f"top-k {top_k}" if top_k else None,
        f"top-p {top_p:g}" if top_p < 1 else None,
        None if drafter == "model" else f"drafter {drafter}{f' ({draft_layers} layers)' if draft_layers else ''}",
        None if vocab_method is None else f"vocab method {vocab_method}",
    ]
    return "  ".join(part for part in parts if part)


IN_EVENTS_ONLY = ("rounds", "draft_matches", "token_texts")
"""Fields of a result that its JSON leaves to the events."""


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """One generation. The speculative fields are None for autoregressive decoding."""

    generated_ids: list[int]
    per_token_latencies: list[float]
    """Seconds of each round, in order. An autoregressive round emits one token, a speculative round one to K + 1.
    The first token comes from the prefill and belongs to no round: its latency is ``time_to_first_token``."""
    total_time: float
    """Seconds of prefill and rounds together."""
    peak_memory_mb: float
    """Mebibytes (2**20 bytes)."""
    time_to_first_token: float
    """Seconds."""
    acceptance_rate: float | None = None
    """Accepted over drafted, over complete rounds."""
    tokens_per_step: float | None = None
    """Tokens emitted per round, cut rounds included."""
    num_speculation_rounds: int | None = None
    draft_time_total_ms: float | None = None
    """Milliseconds in rounds; the draft's prefill is ``prefill_draft_seconds``."""
    verify_time_total_ms: float | None = None
    sampling_time_total_ms: float | None = None
    prompt_id: str = ""
    decoder: str = ""
    repetition: int = 0
    finish_reason: FinishReason | None = None
    num_prompt_tokens: int | None = None
    prefill_target_seconds: float | None = None
    prefill_draft_seconds: float | None = None
    prefill_peak_memory_mb: float | None = None
    """Mebibytes; ``peak_memory_mb`` is the larger of this and the rounds' peak."""
    energy_joules: float | None = None
    """Of the whole device, from the prefill to the end."""
    interactive: bool = False
    """Paused, stepped through, or raced: left out of headline figures."""
    rounds: tuple[Round, ...] = field(default=(), repr=False, compare=False)
    """What happened, round by round; not part of the JSON, which the events already are."""
    draft_matches: tuple[bool, ...] | None = field(default=None, repr=False, compare=False)
    """As in :class:`~specprof.profiling.events.PromptEnded`; not part of the JSON either."""
    token_texts: dict[str, str] | None = field(default=None, repr=False, compare=False)
    """The same."""

    @property
    def num_tokens(self) -> int:
        return len(self.generated_ids)

    @property
    def is_speculative(self) -> bool:
        """Whether a drafter took part, even one that proposed nothing (its acceptance rate is then None)."""
        return self.acceptance_rate is not None or self.num_speculation_rounds is not None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens over total time, prefill included."""
        return self.num_tokens / self.total_time if self.num_tokens and self.total_time > 0 else None

    @property
    def decode_seconds(self) -> float:
        """Seconds in rounds: the prefill left out."""
        return math.fsum(self.per_token_latencies)

    @property
    def num_decode_tokens(self) -> int:
        """Tokens emitted by rounds: the first token left out."""
        return max(self.num_tokens - 1, 0)

    @property
    def latency_p50(self) -> float | None:
        """Median seconds per round."""
        return percentile(self.per_token_latencies, 50)

    @property
    def latency_p95(self) -> float | None:
        return percentile(self.per_token_latencies, 95)

    @property
    def latency_p99(self) -> float | None:
        return percentile(self.per_token_latencies, 99)

    def summary(self) -> str:
        """One line for people: ``SD  | 5 tok | 11.4 tok/s | p50=90ms p95=98ms | mem=1823MB | accept=0.78 rounds=18``.

        The autoregressive line begins with ``AR`` and ends after the memory.
        """
        rate = "-" if self.tokens_per_second is None else f"{self.tokens_per_second:.1f}"
        parts = [
            "SD " if self.is_speculative else "AR ",
            f"{self.num_tokens} tok",
            f"{rate} tok/s",
            f"p50={_milliseconds(self.latency_p50)} p95={_milliseconds(self.latency_p95)}",
            f"mem={self.peak_memory_mb:.0f}MB",
        ]
        if self.is_speculative:
            accept = "-" if self.acceptance_rate is None else f"{self.acceptance_rate:.2f}"
            rounds = "-" if self.num_speculation_rounds is None else str(self.num_speculation_rounds)
            parts.append(f"accept={accept} rounds={rounds}")
        return " | ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Every field but what the events hold, as plain JSON types."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in IN_EVENTS_ONLY}

    def to_json_line(self) -> str:
        """One JSON object and a newline."""
        return json.dumps(self.to_dict(), allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> GenerationResult:
        """Inverse of :meth:`to_dict`; unknown keys (of a later version) are ignored.

        Raises:
            ValueError: a required key is missing.
        """
        return cls(**_known_fields(cls, record, ignore=IN_EVENTS_ONLY))


@dataclass(frozen=True, slots=True)
class BenchmarkConfig:
    """What was asked for: one cell of a benchmark, identified by :meth:`config_hash`.

    Raises:
        ValueError: a value that can't be meant.
    """

    model_pair_name: str
    K: int | Literal["auto"] | None
    """Tokens drafted per round, or ``auto``; 0 or None is autoregressive decoding."""
    temperature: float
    max_new_tokens: int
    prompt_domain: str
    seed: int
    top_k: int = 0
    top_p: float = 1.0
    dtype: str = "auto"
    device: str = "auto"
    drafter: str = "model"
    forward: str = "auto"
    random_weights: bool = False
    synthetic_acceptance: float | None = None
    k_max: int | None = None
    draft_layers: int | None = None
    draft_threshold: float = 0.0
    vocab_method: str = "auto"
    ignore_eos: bool = False
    detail: bool = False
    deterministic: bool = False
    chat_template: str = "auto"
    scale_layers: int | None = None
    device_map: str | None = None
    engine: str = "auto"
    compile: bool = False
    target_model_id: str | None = None
    """Which models, and in which types; None: what the name of a registered pair says."""
    draft_model_id: str | None = None
    target_dtype: str | None = None
    draft_dtype: str | None = None
    target_revision: str | None = None
    """Commit of the hub repository, or fingerprint of a directory: retrained weights are another cell."""
    draft_revision: str | None = None

    def __post_init__(self) -> None:
        # A count that went through JSON or YAML as 4.0 and a temperature written 0 are still the same cell.
        for name in ("K", "max_new_tokens", "seed", "top_k", "k_max", "draft_layers", "scale_layers"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        for name in ("temperature", "top_p", "synthetic_acceptance", "draft_threshold"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else _finite(name, value))
        if isinstance(self.K, int) and self.K < 0:
            raise ValueError(f"K is {self.K}; it must be 0 or more")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or more")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; it must be 1 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.synthetic_acceptance is not None and not 0 <= self.synthetic_acceptance <= 1:
            raise ValueError(f"synthetic_acceptance is {self.synthetic_acceptance}; it must lie between 0 and 1")

    @property
    def decoder_label(self) -> str:
        """``AR``, ``SD-K4`` or ``SD-Kauto``."""
        return f"SD-K{self.K}" if self.K else BASELINE

    def baseline(self) -> BenchmarkConfig:
        """The autoregressive cell this one is compared with: the same but for everything that concerns drafting."""
        return dataclasses.replace(
            self,
            K=0,
            drafter="model",
            k_max=None,
            draft_layers=None,
            draft_threshold=0.0,
            vocab_method="auto",
            detail=False,
            draft_model_id=None,
            draft_dtype=None,
            draft_revision=None,
        )

    def config_hash(self) -> str:
        """12 hexadecimal digits of the SHA-256 of the canonical JSON: the same in every process and key order.

        Optional fields enter only where they differ from their default,
        so that a field added later leaves the hashes of finished cells alone.
        """
        cell = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.default is dataclasses.MISSING or getattr(self, f.name) != f.default
        }
        cell["K"] = self.K or 0
        canonical = json.dumps(cell, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> BenchmarkConfig:
        """Inverse of :meth:`to_dict`; unknown keys are ignored.

        Raises:
            ValueError: a required key is missing, or a value can't be meant.
        """
        return cls(**_known_fields(cls, record))


def fold(events: Iterable[Event]) -> Iterator[GenerationResult]:
    """One result per :class:`PromptEnded`, in order.

    Generations that never ended are dropped, as are those whose beginning is missing.
    """
    unfinished: dict[tuple[str, str, int], tuple[Prefilled, list[Round]]] = {}
    for event in events:
        if isinstance(event, RunStarted):
            unfinished.clear()
        elif isinstance(event, Prefilled):
            unfinished[_generation(event)] = (event, [])
        elif isinstance(event, Round) and _generation(event) in unfinished:
            unfinished[_generation(event)][1].append(event)
        elif isinstance(event, PromptEnded) and _generation(event) in unfinished:
            prefilled, rounds = unfinished.pop(_generation(event))
            yield _result(prefilled, rounds, event)


def _result(prefilled: Prefilled, rounds: Sequence[Round], ended: PromptEnded) -> GenerationResult:
    result = GenerationResult(
        generated_ids=[prefilled.first_token, *(token for round in rounds for token in round.emitted_tokens)],
        per_token_latencies=[round.seconds for round in rounds],
        total_time=prefilled.seconds + math.fsum(round.seconds for round in rounds),
        peak_memory_mb=max(prefilled.peak_memory_bytes, ended.peak_memory_bytes) / BYTES_PER_MB,
        time_to_first_token=prefilled.seconds,
        prompt_id=prefilled.prompt_id,
        decoder=prefilled.decoder,
        repetition=prefilled.repetition,
        finish_reason=ended.finish_reason,
        num_prompt_tokens=prefilled.num_prompt_tokens,
        prefill_target_seconds=prefilled.target_seconds,
        prefill_draft_seconds=prefilled.draft_seconds,
        prefill_peak_memory_mb=prefilled.peak_memory_bytes / BYTES_PER_MB,
        rounds=tuple(rounds),
        draft_matches=ended.draft_matches,
        token_texts=ended.token_texts,
        energy_joules=ended.energy_joules,
        interactive=ended.interactive,
    )
    if prefilled.decoder == BASELINE:
        return result
    return dataclasses.replace(
        result,
        acceptance_rate=AcceptanceCounts.of(rounds, greedy=False).draft_acceptance_rate,
        tokens_per_step=ratio(result.num_decode_tokens, len(rounds)),
        num_speculation_rounds=len(rounds),
        draft_time_total_ms=1e3 * math.fsum(round.draft_seconds for round in rounds),
        verify_time_total_ms=1e3 * math.fsum(round.verify_seconds for round in rounds),
        sampling_time_total_ms=1e3 * math.fsum(round.sample_seconds for round in rounds),
    )


def _generation(event: Prefilled | Round | PromptEnded) -> tuple[str, str, int]:
    return event.prompt_id, event.decoder, event.repetition


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    # Below a millisecond whole numbers say nothing.
    return f"{seconds * 1e3:.0f}ms" if seconds >= 1e-3 else f"{seconds * 1e3:.2g}ms"


def _known_fields(cls: type[Any], record: Mapping[str, Any], ignore: Iterable[str] = ()) -> dict[str, Any]:
    fields = [f for f in dataclasses.fields(cls) if f.name not in ignore]
    missing = [
        f.name
        for f in fields
        if f.name not in record and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"not a {cls.__name__}: {', '.join(missing)} missing")
    return {f.name: record[f.name] for f in fields if f.name in record}


def _whole(name: str, value: Any) -> int | Literal["auto"] | None:
    if value is None and name in ("K", "k_max", "draft_layers", "scale_layers"):
        return None
    if value == "auto" and name == "K":
        return "auto"
    number = _finite(name, value)
    if isinstance(value, float) and number != math.floor(number):
        raise ValueError(f"{name} is {value!r}; it must be a whole number")
    return int(value)  # of the value itself: not every large number is a float


def _finite(name: str, value: Any) -> float:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not -sys.float_info.max <= value <= sys.float_info.max:
        raise ValueError(f"{name} is {value!r}; it must be a finite number")
    return float(value) + 0.0  # -0.0 + 0.0 is 0.0: the two zeros are one temperature
