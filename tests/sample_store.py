"""Records of a sweep that never ran, with numbers that are easy to check."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from specprof.experiments.records import SCHEMA, CellStarted, Failure, Generation, Machine, Record, Session
from specprof.experiments.results import ResultStore
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round
from specprof.profiling.metrics import BenchmarkConfig, fold

HERE = "aaaaaaaaaaaa"
ELSEWHERE = "bbbbbbbbbbbb"
SECONDS_PER_ROUND = 0.01
TOKENS_PER_ROUND = 2
"""Of a speculative round; an autoregressive one yields one in the same time: the speedup is 2."""


def config(
    k: int | None = 0, domain: str = "code", pair: str = "tiny_dev", temperature: float = 0.0
) -> BenchmarkConfig:
    return BenchmarkConfig(pair, k, temperature, 24, domain, 0)


AR, SD = config(0), config(4)


def session(name: str = "s1") -> Session:
    return Session(name, SCHEMA, "0.1.0", "2026-11-21T10:00:00.000+00:00", 0, "specprof sweep")


def machine(machine_class: str = HERE) -> Machine:
    return Machine(machine_class, "s1", {"cpu": "An EPYC", "gpu": None, "torch": "2.13.0", "specprof": "0.1.0"})


def cell(
    asked: BenchmarkConfig = SD, machine_class: str = HERE, *, num_prompts: int = 2, repetitions: int = 1
) -> CellStarted:
    target = {"model": "tiny_dev/target", "dtype": "float32", "device": "cpu", "revision": "3d618cc2"}
    models = {"target": target, "draft": {"model": "tiny_dev/draft", "dtype": "float32", "device": "cpu"}}
    return CellStarted(
        asked.config_hash(), machine_class, "s1", asked.to_dict(), models, None, num_prompts, repetitions, ()
    )


def generation(
    sequence: int,
    asked: BenchmarkConfig = SD,
    prompt: int = 0,
    *,
    repetition: int = 0,
    machine_class: str = HERE,
    control: bool = False,
    num_rounds: int = 3,
    prompt_hash: str = "0123456789ab",
) -> Generation:
    key = (f"{asked.prompt_domain}_{prompt:03}", asked.decoder_label, repetition)
    rounds = []
    for index in range(num_rounds):
        first = 1000 + 10 * index
        drafted = tuple(range(first, first + 4)) if asked.K else ()
        emitted = (first, 7)[: TOKENS_PER_ROUND if asked.K else 1]
        accepted = 1 if asked.K else 0
        seconds = (0.002 if asked.K else 0.0, 0.006 if asked.K else 0.008, 0.001, 0.001)
        assert abs(sum(seconds) - SECONDS_PER_ROUND) < 1e-9
        rounds.append(Round(*key, index, drafted, accepted, emitted, *seconds, k=4 if asked.K else None))
    started = Prefilled(*key, 10, 5, 0.02, 0.01, 0.001, 2**20)
    (result,) = fold([started, *rounds, PromptEnded(*key, "length", 2**21)])
    return Generation(
        config_hash=asked.config_hash(),
        machine_class=machine_class,
        session="s1",
        sequence=sequence,
        started_at="2026-11-21T10:00:01.500+00:00",
        prompt_id=key[0],
        prompt_hash=prompt_hash,
        domain=asked.prompt_domain,
        repetition=repetition,
        control=control,
        pair=asked.model_pair_name,
        K=asked.K or 0,
        temperature=asked.temperature,
        result=result,
    )


def failure(
    sequence: int,
    asked: BenchmarkConfig = SD,
    machine_class: str | None = HERE,
    *,
    reason: str = "out of memory",
    message: str = "12 GB are not enough",
) -> Failure:
    at, hint = "2026-11-21T10:00:02.000+00:00", "use a smaller model"
    return Failure(asked.config_hash(), machine_class, "s1", sequence, at, reason, message, hint, None, None)


def story() -> list[Record]:
    """A baseline and a candidate, both done, of two prompts each, and a control."""
    return [
        session(),
        machine(),
        cell(AR),
        cell(SD),
        generation(1, AR, control=True),
        *(generation(2 + prompt, AR, prompt) for prompt in range(2)),
        *(generation(4 + prompt, SD, prompt) for prompt in range(2)),
    ]


def write(directory: Path, records: Iterable[Record]) -> Path:
    with ResultStore.open(directory) as store:
        for record in records:
            store.append(record)
    return store.path


def many(number: int) -> Iterator[Record]:
    """A finished sweep of so many generations, as long as real ones: 96 tokens, decoded alone or with K = 4."""
    draw = random.Random(0)
    cells = [config(k, domain) for domain in ("code", "conversation") for k in (0, 4)]
    yield session()
    yield machine()
    for asked in cells:
        yield cell(asked, num_prompts=50, repetitions=number // 200)
    for sequence in range(number):
        asked = cells[sequence % len(cells)]
        turn = sequence // len(cells)
        key = (f"{asked.prompt_domain}_{turn % 50:03}", asked.decoder_label, turn // 50)
        events: list[Event] = [Prefilled(*key, 100, 7, draw.random() / 50, 0.001, 0.001, 2**27)]
        for index in range(32 if asked.K else 95):
            drafted = tuple(draw.randrange(50_000) for _ in range(4)) if asked.K else ()
            emitted = (*drafted[:2], draw.randrange(50_000))
            seconds = (draw.random() / 500, draw.random() / 100, draw.random() / 1000, draw.random() / 1000)
            events.append(Round(*key, index, drafted, len(drafted[:2]), emitted, *seconds, k=4 if asked.K else None))
        (result,) = fold([*events, PromptEnded(*key, "length", 2**28)])
        yield Generation(
            asked.config_hash(), HERE, "s1", sequence + 1, "2026-11-21T10:00:01.500+00:00", key[0], "0123456789ab",
            asked.prompt_domain, key[2], False, "tiny_dev", asked.K or 0, 0.0, result,
        )  # fmt: skip
