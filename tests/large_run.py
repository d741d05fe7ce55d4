"""Runs that never ran: what `specprof run` would have kept of them, as large as asked, with texts and probabilities.

By hand, alone on the machine, the time and the memory that a report of 100,000 rounds takes:

    python tests/large_run.py 100000
"""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from specprof.profiling.cost_model import CostCurve
from specprof.profiling.events import (
    SCHEMA,
    Event,
    Prefilled,
    PromptEnded,
    Round,
    RunEnded,
    RunStarted,
    to_json_line,
)

RUN = "20261121-101500-7f3c"
DOMAINS = ("code", "conversation", "summarization")
STEP = 0.004
"""Seconds of the target's pass over one token."""
CURVE = CostCurve(
    draft_seconds=tuple(0.0004 * k for k in range(5)),
    verify_seconds=tuple(STEP * (1 + 0.05 * k) for k in range(5)),
    rest_seconds=(0.0004,) + (0.0006,) * 4,
    num_rounds=(12,) * 5,
)

_SYLLABLES = ("ta", "re", "no", "li", "du", "ka", "the", "and", "for", "in", "x_", "=", "(", "):", "\n    ", "0", ",")
_CHARACTERS = "é漢字🙂ß"
_VOCABULARY = 2000


def token_text(token: int) -> str:
    """What a token of these runs stands for: mostly some letters, now and then a byte of a longer character."""
    if token % 97 == 0:
        encoded = _CHARACTERS[token // 97 % len(_CHARACTERS)].encode()
        return bytes([encoded[token // 500 % len(encoded)]]).decode("utf-8", "surrogateescape")
    space = " " if token % 3 else ""
    return space + _SYLLABLES[token % len(_SYLLABLES)] + _SYLLABLES[token // 7 % len(_SYLLABLES)]


def prompts(number: int, domains: Sequence[str] = DOMAINS) -> list[tuple[str, str]]:
    """Ids and domains, the domains in turn."""
    return [(f"{domains[i % len(domains)]}_{i // len(domains):03}", domains[i % len(domains)]) for i in range(number)]


def run(
    asked: Sequence[tuple[str, str]] = tuple(prompts(6)),
    *,
    k: int | str = 4,
    temperature: float = 0.0,
    baseline: bool = True,
    repetitions: int = 1,
    num_tokens: int = 48,
    accepted: float = 0.7,
    curve: CostCurve | None = None,
    joules: float | None = None,
    machine: Mapping[str, Any] | None = None,
    run_id: str = RUN,
    seed: int = 0,
    **config: Any,
) -> Iterator[Event]:
    """The events of a run, both arms in turn (ABBA), whose texts agree as greedy ones do.

    Args:
        accepted: how likely the draft has a token right, wherever it stands.
        joules: of each generation.
        config: what ``specprof run`` notes beside this, or instead.
    """
    yield RunStarted(
        run_id,
        SCHEMA,
        {
            "pair": {"name": "tiny_dev"},
            "k": k,
            "temperature": temperature,
            "repetitions": repetitions,
            "prompts": [{"prompt_id": prompt_id, "domain": domain} for prompt_id, domain in asked],
            "seed": seed,
            "drafter": "model",
            "max_new_tokens": num_tokens,
            "caveats": [],
            "cost_curve": None if curve is None else curve.to_dict(),
            "models": {
                role: {"model": f"tiny_dev/{role}", "parameters": 5_000_000, "device": "cpu", "dtype": "float32"}
                for role in ("target", "draft")
            },
            "command": "specprof run --pair tiny_dev",
        }
        | config,
        {"cpu": "An EPYC", "cores": 2, "gpu": None, "torch": "2.13.0", "specprof": "0.1.0"}
        if machine is None
        else dict(machine),
    )
    for repetition in range(repetitions):
        for index, (prompt_id, _) in enumerate(asked):
            labels = ("AR", f"SD-K{k}") if baseline else (f"SD-K{k}",)
            for label in labels if (index + repetition) % 2 == 0 else labels[::-1]:
                made = _Generation(prompt_id, label, repetition, temperature, num_tokens, accepted, f"{seed}-{index}")
                yield from made.events(None if label == "AR" else k, curve is not None, joules)
    yield RunEnded(2**27)


class _Generation:
    def __init__(
        self, prompt_id: str, label: str, repetition: int, temperature: float, num_tokens: int, accepted: float, at: str
    ) -> None:
        self.key = (prompt_id, label, repetition)
        self.sampled = temperature > 0
        text = random.Random(at)
        self.tokens = [text.randrange(_VOCABULARY) for _ in range(num_tokens)]
        self.matches = [text.random() < accepted for _ in range(num_tokens - 1)]
        self.noise = random.Random(f"{at}-{self.key}")

    def events(self, k: int | str | None, hindsight: bool, joules: float | None) -> Iterator[Event]:
        yield Prefilled(*self.key, 40, self.tokens[0], self._about(0.02), self._about(0.004), 0.001, 2**26)
        place, index, seen = 1, 0, {self.tokens[0]}
        while place < len(self.tokens):
            wanted = 0 if k is None else index % 4 if k == "auto" else int(k)
            round = self._round(index, place, wanted, drafter=k is not None)
            seen.update(round.draft_tokens, round.emitted_tokens)
            yield round
            place, index = place + len(round.emitted_tokens), index + 1
        yield PromptEnded(
            *self.key,
            "length",
            2**27,
            draft_matches=tuple(self.matches) if hindsight and k is not None else None,
            token_texts=None if self.key[2] else {str(token): token_text(token) for token in sorted(seen)},
            energy_joules=joules,
        )

    def _round(self, index: int, place: int, wanted: int, *, drafter: bool) -> Round:
        room = len(self.tokens) - place - 1
        k = min(wanted, room)
        right = 0
        while right < k and self.matches[place - 1 + right]:
            right += 1
        wrong = [self.noise.randrange(_VOCABULARY) for _ in range(k - right)]
        drafted = (*self.tokens[place : place + right], *wrong)
        noted = self.sampled and k > 0
        seen = [tuple(round(self.noise.random(), 9) for _ in range(k)) if noted else None for _ in range(3)]
        return Round(
            *self.key,
            index,
            drafted,
            right,
            tuple(self.tokens[place : place + right + 1]),
            self._about(0.0004 * k) if drafter else 0.0,
            self._about(STEP * (1 + 0.05 * k)),
            self._about(0.0002),
            self._about(0.0003),
            cut=k < wanted,
            target_prob=seen[0],
            draft_prob=seen[1],
            alpha=seen[2],
            k=k if drafter else None,
        )

    def _about(self, seconds: float) -> float:
        return round(seconds * self.noise.lognormvariate(0, 0.05), 9)


def interfered(happened: Iterable[Event], *, most: int | None = None) -> Iterator[Event]:
    """The same, but somebody paused the first so many generations; None: all of them."""
    number = 0
    for event in happened:
        if isinstance(event, PromptEnded):
            number += 1
            event = dataclasses.replace(event, interactive=most is None or number <= most)
        yield event


def write(directory: Path, happened: Iterator[Event] | Sequence[Event], run_id: str = RUN) -> Path:
    """Keep events as `specprof run` does."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{run_id}.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(map(to_json_line, happened))
    return path


def large(num_rounds: int) -> list[Event]:
    """A run of about so many rounds, sampled, with the probability of every drafted token: texts of 96 tokens of three
    domains, three times each."""
    per_pair = sum(isinstance(event, Round) for event in run(prompts(12), temperature=0.8, num_tokens=96)) / 12
    number = max(3, round(num_rounds / per_pair / 3))
    return list(run(prompts(number), temperature=0.8, num_tokens=96, repetitions=3, curve=CURVE))


def _measure(num_rounds: int) -> None:
    """Print what `specprof report` costs in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        path = write(Path(name), large(num_rounds))
        rounds = path.read_text(encoding="utf-8").count('{"event":"Round"')
        begin = time.perf_counter()
        child = subprocess.Popen([sys.executable, "-m", "specprof", "report", "--results-dir", name, "-q"])
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - begin
        sizes = {file.name: file.stat().st_size for file in sorted(Path(name).iterdir()) if file.is_file()}
    assert os.waitstatus_to_exitcode(status) == 0
    cpu, memory = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    print(f"{rounds} rounds: {seconds:.1f} s, {cpu:.1f} s of CPU, {memory:.0f} MB")
    print(sizes)


if __name__ == "__main__":
    _measure(int(sys.argv[1]))
