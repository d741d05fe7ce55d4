"""Sweeps without models: a bench whose text follows from what was asked, with faults on request.

As a script it is one session of a small sweep: ``python toy_sweep.py DIRECTORY``. Workers import this module too,
so what only the driver needs is imported inside functions.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from specprof.data.prompts import Prompt
from specprof.experiments.config import RunConfig
from specprof.experiments.executors import Died, Failed, Generated, Job, LocalExecutor, Ready, Worker, failure_of
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round
from toy_bench import ToyBench as Saboteur
from toy_bench import job as job_that

if TYPE_CHECKING:
    from specprof.experiments.executors import Executor
    from specprof.experiments.plan import Cell, Plan
    from specprof.experiments.records import Failure
    from specprof.experiments.remaining import Progress, Remaining
    from specprof.experiments.sweep import Policy

TOY = "toy_sweep:ToyBench"
HERE = "0123456789ab"
"""The toy's machine class."""
ELSEWHERE = "ba9876543210"

FAULTS = "TOY_FAULTS"
"""JSON: what goes wrong (a way of toy_bench), by ``load``, by K, or by K and prompt: ``4``, ``4 p1``, ``auto``."""
PROCESSES = "TOY_PROCESSES"
"""A file that every worker adds its process id to."""
SECONDS = "TOY_SECONDS"
"""How long a generation takes."""


class ToyBench:
    """What a worker works with. Answers for a machine of the class it is made with."""

    def __init__(self, machine_class: str = HERE) -> None:
        self._machine_class = machine_class
        self._faults: dict[str, str] = json.loads(os.environ.get(FAULTS, "{}"))
        self._seconds = float(os.environ.get(SECONDS, "0"))
        self._runs: Mapping[str, RunConfig] = {}
        self._prompts: dict[str, Prompt] = {}
        if PROCESSES in os.environ:
            with open(os.environ[PROCESSES], "a") as file:
                file.write(f"{os.getpid()}\n")

    def prepare(self, job: Job) -> Ready:
        if "load" in self._faults:
            Saboteur().prepare(job_that(self._faults["load"]))
        self._runs = job.runs
        self._prompts = {prompt.prompt_id: prompt for prompt in job.prompts}
        refused = {
            config_hash: Failed("error", "this cell can't be run", "leave it out")
            for config_hash, run in job.runs.items()
            if self._faults.get(str(run.k)) == "refuse"
        }
        return Ready({"cpu": "toy"}, self._machine_class, {"target": {"model": "toy"}}, (), {}, refused)

    def generate(self, config_hash: str, prompt_id: str, repetition: int) -> tuple[Event, ...]:
        run = self._runs[config_hash]
        for name in (str(run.k), f"{run.k} {prompt_id}"):
            if name in self._faults:
                Saboteur().generate(self._faults[name], prompt_id, repetition)
        time.sleep(self._seconds)
        return tuple(generation(run, self._prompts[prompt_id], repetition))


def generation(run: RunConfig, prompt: Prompt, repetition: int) -> Iterator[Event]:
    """Follows from its arguments; greedy text from the prompt alone, as a target's would."""
    assert run.k != "auto"
    decoder = f"SD-K{run.k}" if run.k else "AR"
    drawn_with = [prompt.raw_text] if run.temperature == 0 else [prompt.raw_text, run.k, run.seed, repetition]
    text = [_number(*drawn_with, place) % 50 for place in range(run.max_new_tokens)]
    yield Prefilled(prompt.prompt_id, decoder, repetition, len(prompt.raw_text), text[0], 0.01, 0.0, 0.0)
    at, index = 1, 0
    while at < len(text):
        drafted = min(run.k, len(text) - at - 1)
        accepted = _number(prompt.raw_text, run.k, at) % (drafted + 1)
        emitted = tuple(text[at : at + accepted + 1])
        draft = (*emitted[:accepted], *[99] * (drafted - accepted))
        seconds = (1 + _number(prompt.raw_text, run.k, repetition, at) % 100 / 500) / 1000
        k = run.k if run.k else None
        yield Round(prompt.prompt_id, decoder, repetition, index, draft, accepted, emitted,
                    drafted * 1e-4, seconds, 1e-5, 1e-5, drafted < run.k, k=k)  # fmt: skip
        at, index = at + len(emitted), index + 1
    yield PromptEnded(prompt.prompt_id, decoder, repetition, "length", 0)


def _number(*of: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(of).encode()).digest()[:6])


# --- the driver's side


def prompts(number: int = 2, domains: Sequence[str] = ("code", "conversation")) -> list[Prompt]:
    return [Prompt(f"{domain}{i}", domain, f"text {i} about {domain}") for domain in domains for i in range(number)]


def plan_of(
    some_prompts: Sequence[Prompt] | None = None,
    *,
    order_seed: int = 0,
    split: Literal["pair", "baseline"] = "pair",
    offline: bool = True,
    **settings: Any,
) -> Plan:
    """A plan of the packaged pair's: K 1 and 2, 8 tokens, 2 repetitions, unless ``settings`` say otherwise."""
    from specprof.experiments.plan import make_plan
    from specprof.experiments.sweep_config import SweepConfig

    defaults: dict[str, Any] = {"k": (1, 2), "repetitions": 2, "max_new_tokens": 8}
    chosen = prompts() if some_prompts is None else some_prompts
    return make_plan(SweepConfig(**(defaults | settings)), chosen, offline=offline, order_seed=order_seed, split=split)


@dataclass
class Told:
    """Keeps what a sweep tells."""

    progress: list[Progress] = field(default_factory=list)
    finished_cells: list[Cell] = field(default_factory=list)
    failures: list[tuple[int | str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def measured(self, progress: Progress) -> None:
        self.progress.append(progress)

    def finished(self, cell: Cell, progress: Progress) -> None:
        self.finished_cells.append(cell)

    def failed(self, cells: Sequence[Cell], failure: Failure, progress: Progress) -> None:
        self.failures += [(cell.run.k, failure.reason) for cell in cells]

    def note(self, text: str) -> None:
        self.notes.append(text)


def go_on(
    plan: Plan,
    directory: Path,
    *,
    executor: Executor | None = None,
    machine_class: str | None = HERE,
    retry_failed: bool = False,
    policy: Policy | None = None,
    watch: Told | None = None,
    close: bool = True,
) -> Remaining:
    """One session, as the command has it: measure what the store lacks. ``close``: the executor, whatever happens."""
    from specprof.commands.sweep import _remaining
    from specprof.experiments.records import SCHEMA, Session
    from specprof.experiments.results import ResultStore
    from specprof.experiments.sweep import Policy, Sweep

    executor = executor or LocalExecutor(make_bench=TOY)
    session = f"session {time.monotonic_ns()}"
    try:
        with ResultStore.open(directory) as opened:
            remaining = _remaining(plan, opened.contents, machine_class, retry_failed=retry_failed)
            opened.append(Session(session, SCHEMA, "0", "now", 0, None))
            sweep = Sweep(
                plan, remaining, opened, executor, watch or Told(), session=session, policy=policy or Policy()
            )
            sweep.run()
            return remaining
    finally:
        if close:
            executor.close()


class Inline:
    """Workers that live in this process, each on a machine of its own class; the ray executor seen from the driver.

    Args:
        deaths: after so many generations, all workers together, the one that is asked next dies.
    """

    def __init__(self, *machine_classes: str, retries: int = 0, deaths: Sequence[int] = ()) -> None:
        self.retries = retries
        self.started: list[InlineWorker] = []
        self._machine_classes = machine_classes
        self._deaths = list(deaths)
        self._asked = 0

    def workers(self) -> Sequence[Worker]:
        self.started = [InlineWorker(name, ToyBench(name), self) for name in self._machine_classes]
        return self.started

    def replace(self, worker: Worker) -> Worker:
        return InlineWorker(worker.name, ToyBench(worker.name), self)

    def close(self) -> None:
        pass

    def lives_on(self) -> bool:
        self._asked += 1
        return self._asked not in self._deaths


class InlineWorker:
    def __init__(self, name: str, bench: ToyBench, executor: Inline) -> None:
        self.name, self._bench, self._executor = name, bench, executor
        self.asked: list[tuple[str, str, int]] = []

    def prepare(self, job: Job, timeout: float | None) -> Ready | Failed | Died:
        return self._bench.prepare(job)

    def generate(
        self, config_hash: str, prompt_id: str, repetition: int, timeout: float | None
    ) -> Generated | Failed | Died:
        self.asked.append((config_hash, prompt_id, repetition))
        if not self._executor.lives_on():
            return Died("crash", "the node went away")
        try:
            return Generated(self._bench.generate(config_hash, prompt_id, repetition))
        except Exception as error:
            return failure_of(error)

    def kill(self) -> None:
        pass


# --- what a store holds, read without the code that wrote it


def lines(directory: Path, *kinds: str) -> list[dict[str, Any]]:
    """Every line of a store, or those of some kinds; each has to be whole."""
    text = (directory / "records.jsonl").read_text()
    assert text.endswith("\n") or not text
    found = [json.loads(line) for line in text.splitlines()]
    return [line for line in found if line["kind"] in kinds] if kinds else found


def keys(directory: Path) -> list[tuple[Any, ...]]:
    """Of every generation, in order, those that occur twice included."""
    names = ("config_hash", "machine_class", "prompt_id", "prompt_hash", "repetition", "control")
    return [tuple(line[name] for name in names) for line in lines(directory, "generation")]


def said(directory: Path) -> dict[tuple[Any, ...], Any]:
    """What every generation said, and how: all that does not depend on a clock."""
    timeless = ("generated_ids", "finish_reason", "num_prompt_tokens", "pair", "K", "temperature", "domain", "decoder")
    whole = lines(directory, "generation")
    drafts = [(line["rounds"].get("draft_tokens"), line["rounds"].get("num_accepted")) for line in whole]
    return {
        key: (*(line[name] for name in timeless), draft)
        for key, line, draft in zip(keys(directory), whole, drafts, strict=True)
    }


def failures(directory: Path) -> list[tuple[int | str, str]]:
    """K and reason of every failure, in order."""
    lengths = {line["config_hash"]: line["config"]["K"] for line in lines(directory, "cell")}
    return [(lengths[line["config_hash"]], line["reason"]) for line in lines(directory, "failure")]


KILLED: dict[str, Any] = {"k": (1, 2, 4), "repetitions": 4, "temperatures": (0.0, 0.8)}
"""What is swept as a script: 288 generations and 12 controls."""

if __name__ == "__main__":
    go_on(plan_of(prompts(3, ("code", "conversation", "custom")), **KILLED), Path(sys.argv[1]))
