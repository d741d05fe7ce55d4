"""What a run was asked to do."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from specprof.decoding.settings import Sampling
from specprof.errors import UsageError
from specprof.models.registry import ModelPair

DRAFTERS = ("model", "ngram")
RANDOM_WEIGHTS = "random weights: the cost is real, acceptance and text mean nothing"


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides a run's outcome, machine and prompts aside.

    Raises:
        UsageError: a value that means nothing, or two that exclude each other.
    """

    pair: ModelPair
    k: int = 4
    drafter: str = "model"
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 96
    seed: int = 0
    warmup: int = 1
    """Prompts decoded by both arms before anything is measured."""
    repetitions: int = 3
    baseline: bool = True
    device: str | None = None
    """None chooses: cuda where there is one, else cpu."""
    forward: str = "auto"
    ignore_eos: bool = False
    detail: bool = False
    deterministic: bool = False
    chat_template: str = "auto"
    random_weights: bool = False
    synthetic_acceptance: float | None = None
    revision: str | None = None
    offline: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.k < 0:
            raise UsageError(f"k = {self.k} is negative", "k is the number of tokens drafted per round, 0 or more")
        if self.drafter not in DRAFTERS:
            raise UsageError(f"there is no drafter {self.drafter!r}", f"drafters: {', '.join(DRAFTERS)}")
        Sampling(self.temperature, self.top_k, self.top_p)  # refuses what can't be sampled with
        for name, value, least in (
            ("max-new-tokens", self.max_new_tokens, 1),
            ("reps", self.repetitions, 1),
            ("warmup", self.warmup, 0),
        ):
            if value < least:
                raise UsageError(f"--{name} {value} is less than {least}", f"give {least} or more")
        if self.synthetic_acceptance is not None and not 0 <= self.synthetic_acceptance <= 1:
            raise UsageError(
                f"synthetic acceptance {self.synthetic_acceptance} is not in [0, 1]", "it is a probability"
            )
        if self.forward not in ("auto", "own", "hf"):
            raise UsageError(f"there is no forward {self.forward!r}", "forwards: auto, own, hf")
        if self.chat_template not in ("auto", "off"):
            raise UsageError(f"--chat-template {self.chat_template!r} is not a choice", "choices: auto, off")

    @property
    def num_arms(self) -> int:
        return 2 if self.baseline else 1

    @property
    def stops_at_eos(self) -> bool:
        """Text that is not the target's means nothing, its end least of all."""
        return not (self.ignore_eos or self.random_weights or self.synthetic_acceptance is not None)

    @property
    def caveats(self) -> tuple[str, ...]:
        """What every output has to say about these numbers."""
        caveats = []
        if self.random_weights:
            caveats.append(RANDOM_WEIGHTS)
        if self.synthetic_acceptance is not None:
            caveats.append(
                f"synthetic acceptance {self.synthetic_acceptance:g}: the cost is real, the text is not the target's"
            )
        return tuple(caveats)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"caveats": list(self.caveats)}
