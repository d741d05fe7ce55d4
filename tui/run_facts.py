"""What was asked for and what runs it, from the first line of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specprof.profiling.events import RunStarted


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What was asked for, and what runs it."""

    run_id: str
    pair: str
    drafter: str
    k: int | str
    temperature: float
    max_new_tokens: int
    seed: int
    device: str
    threads: int | None
    num_generations: int
    """Of both arms together, all prompts, all repetitions."""
    domain_of: Mapping[str, str]
    caveats: tuple[str, ...]
    synthetic: bool = False
    """Acceptance is made up: tokens are accepted by the toss of a coin."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def facts(started: RunStarted) -> RunFacts:
    """What a run's first line says of it; it may be from a file, where anything may stand."""
    config, machine = started.config, started.machine
    pair, models = _mapping(config.get("pair")), _mapping(config.get("models"))
    target = _mapping(models.get("target"))
    prompts = [_mapping(prompt) for prompt in _list(config.get("prompts"))]
    arms = 2 if config.get("baseline", True) else 1
    k = config.get("k")
    return RunFacts(
        run_id=started.run_id,
        pair=str(pair.get("name") or "-"),
        drafter=str(config.get("drafter") or "model"),
        k=k if isinstance(k, int) and not isinstance(k, bool) else "auto",
        temperature=_number(config.get("temperature")),
        max_new_tokens=int(_number(config.get("max_new_tokens"))),
        seed=abs(int(_number(config.get("seed")))),
        device=str(target.get("device") or "-"),
        threads=threads if isinstance(threads := machine.get("torch_threads"), int) else None,
        num_generations=len(prompts) * int(_number(config.get("repetitions"))) * arms,
        domain_of={str(p["prompt_id"]): str(p["domain"]) for p in prompts if p.get("domain") and "prompt_id" in p},
        caveats=tuple(str(caveat) for caveat in _list(config.get("caveats"))),
        synthetic=config.get("synthetic_acceptance") is not None,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _number(value: Any) -> float:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if known and abs(value) <= sys.float_info.max else 0.0
