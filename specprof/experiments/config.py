"""What a run was asked to do."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from specprof.decoding.settings import Sampling
from specprof.errors import UsageError
from specprof.models.registry import ModelPair

DRAFTERS = ("model", "ngram", "layerskip", "self", "random")
WITH_PROBABILITIES = ("model", "layerskip", "self")
"""Drafters that know how sure they are of a token."""
VOCAB_METHODS = ("auto", "tli", "slem")
ENGINES = ("auto", "eager", "static", "graph")
STATIC_ENGINES = ("static", "graph")
"""Engines whose rounds have fixed shapes and leave every decision to the device."""
STATIC_DRAFTERS = ("model", "self")
"""Drafters that propose without the host."""
DEFAULT_K_MAX = 8
MOST_REPETITIONS = 10_000
"""A sweep lists every generation before it makes the first."""
NO_GRAPHS = ("CUDA graphs need a CUDA device", "--engine static runs the same path uncaptured")
RANDOM_WEIGHTS = "random weights: the cost is real, acceptance and text mean nothing"


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides a run's outcome, machine and prompts aside.

    Raises:
        UsageError: a value that means nothing, or two that exclude each other.
    """

    pair: ModelPair
    k: int | Literal["auto"] = 4
    """Tokens drafted per round; ``auto`` chooses them round by round."""
    k_max: int | None = None
    """The most that ``auto`` drafts; None is 8."""
    drafter: str = "model"
    draft_layers: int | None = None
    """How many of the target's layers draft (layerskip)."""
    draft_threshold: float = 0.0
    """A draft ends where no token has at least this probability."""
    vocab_method: str = "auto"
    """How a draft of another vocabulary proposes: tli (token-level intersection), slem (string-level match)."""
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
    device_map: str | None = None
    """``auto`` spreads each model over several GPUs."""
    forward: str = "auto"
    engine: str = "auto"
    """How rounds are launched: eager (operation by operation), static (fixed shapes, nothing decided by the host),
    graph (static rounds as CUDA graphs), auto (graph on CUDA where the pair can, else eager)."""
    compile: bool = False
    """Fuse the operations of static rounds with torch.compile."""
    ignore_eos: bool = False
    detail: bool = False
    deterministic: bool = False
    chat_template: str = "auto"
    random_weights: bool = False
    scale_layers: int | None = None
    """Layers of each model with random weights; None is their true number."""
    synthetic_acceptance: float | None = None
    revision: str | None = None
    offline: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        self._check_length()
        self._check_drafter()
        Sampling(self.temperature, self.top_k, self.top_p)  # refuses what can't be sampled with
        for name, value, least in (
            ("max-new-tokens", self.max_new_tokens, 1),
            ("reps", self.repetitions, 1),
            ("warmup", self.warmup, 0),
        ):
            if value < least:
                raise UsageError(f"--{name} {value} is less than {least}", f"give {least} or more")
        if self.repetitions > MOST_REPETITIONS:
            raise UsageError(
                f"--reps {self.repetitions} is more than {MOST_REPETITIONS}", "more prompts tell more than repetitions"
            )
        if self.scale_layers is not None and not self.random_weights:
            raise UsageError("--scale-layers needs --random-weights", "a trained model keeps all its layers")
        if self.synthetic_acceptance is not None and not 0 <= self.synthetic_acceptance <= 1:
            raise UsageError(
                f"synthetic acceptance {self.synthetic_acceptance} is not in [0, 1]", "it is a probability"
            )
        if self.forward not in ("auto", "native", "own", "hf"):
            raise UsageError(f"there is no forward {self.forward!r}", "forwards: auto, native, own, hf")
        self._check_device_map()
        self._check_engine()
        if self.chat_template not in ("auto", "off"):
            raise UsageError(f"--chat-template {self.chat_template!r} is not a choice", "choices: auto, off")

    def _check_device_map(self) -> None:
        if self.device_map is None:
            return
        if self.device_map != "auto":
            raise UsageError(f"there is no device map {self.device_map!r}", "device maps: auto")
        for given, flag, why in (
            (self.device not in (None, "cuda"), f"--device {self.device}", "which is one device"),
            (self.forward in ("native", "own"), f"--forward {self.forward}", "which runs on one device"),
            (self.random_weights, "--random-weights", "which are made on one device"),
        ):
            if given:
                raise UsageError(f"--device-map auto excludes {flag}, {why}", f"leave out --device-map or {flag}")

    def _check_engine(self) -> None:
        if self.engine not in ENGINES:
            raise UsageError(f"there is no engine {self.engine!r}", f"engines: {', '.join(ENGINES)}")
        if self.engine not in STATIC_ENGINES:
            if self.compile:
                raise UsageError("--compile needs --engine static or graph", "name one of them, or leave it out")
            return
        if self.engine == "graph" and self.device is not None and not self.device.startswith("cuda"):
            raise UsageError(*NO_GRAPHS)
        for given, flag, why in (
            (self.forward in ("hf", "native"), f"--forward {self.forward}", "it needs our own forward in PyTorch"),
            (self.device_map is not None, "--device-map auto", "it needs each model on one device"),
            (self.drafter not in STATIC_DRAFTERS, f"--drafter {self.drafter}", "that one proposes on the host"),
            (self.draft_threshold > 0, "--draft-threshold", "all its drafts are of one length"),
            (self.vocab_method == "slem", "--vocab-method slem", "text is matched on the host"),
        ):
            if given:
                raise UsageError(
                    f"--engine {self.engine} excludes {flag}: {why}", f"use --engine auto, or leave out {flag}"
                )

    def _check_length(self) -> None:
        if self.k == "auto":
            if self.k_max is not None and self.k_max < 1:
                raise UsageError(f"--k-max {self.k_max} is less than 1", "give 1 or more")
            if self.deterministic:
                raise UsageError(
                    "--k auto and --deterministic exclude each other: it chooses by measured times", "give a fixed --k"
                )
        elif self.k < 0:
            raise UsageError(f"k = {self.k} is negative", "k is the number of tokens drafted per round, 0 or more")
        elif self.k_max is not None:
            raise UsageError("--k-max needs --k auto", f"with a fixed k, {self.k} are drafted every round")

    def _check_drafter(self) -> None:
        if self.drafter not in DRAFTERS:
            raise UsageError(f"there is no drafter {self.drafter!r}", f"drafters: {', '.join(DRAFTERS)}")
        if self.drafter == "layerskip" and self.draft_layers is None:
            raise UsageError("--drafter layerskip needs --draft-layers N", "N of the target's layers draft")
        if self.drafter != "layerskip" and self.draft_layers is not None:
            raise UsageError(
                f"--draft-layers does not apply to --drafter {self.drafter}", "use it with --drafter layerskip"
            )
        if self.draft_layers is not None and self.draft_layers < 1:
            raise UsageError(f"--draft-layers {self.draft_layers} is less than 1", "give 1 or more")
        if not 0 <= self.draft_threshold <= 1:
            raise UsageError(f"--draft-threshold {self.draft_threshold} is not in [0, 1]", "it is a probability")
        if self.draft_threshold and self.drafter not in WITH_PROBABILITIES:
            raise UsageError(
                f"--draft-threshold does not apply to --drafter {self.drafter}: its tokens have no probabilities",
                f"drafters that have them: {', '.join(WITH_PROBABILITIES)}",
            )
        if self.draft_threshold and self.k == 0:
            raise UsageError("--draft-threshold does not apply to --k 0: nothing is drafted", "give --k 1 or more")
        if self.vocab_method not in VOCAB_METHODS:
            raise UsageError(f"there is no vocab method {self.vocab_method!r}", f"methods: {', '.join(VOCAB_METHODS)}")
        if self.vocab_method != "auto" and self.drafter != "model":
            raise UsageError(
                f"--vocab-method does not apply to --drafter {self.drafter}", "it is for drafts of another vocabulary"
            )
        if self.vocab_method == "slem" and self.temperature > 0:
            raise UsageError(
                "--vocab-method slem can't be sampled with: its proposals have no probabilities",
                "use --temperature 0, or --vocab-method tli",
            )
        if self.vocab_method == "slem" and self.draft_threshold:
            raise UsageError("--draft-threshold does not apply to --vocab-method slem", "use --vocab-method tli")

    @property
    def longest_draft(self) -> int:
        """The most tokens a round can draft."""
        return (self.k_max or DEFAULT_K_MAX) if self.k == "auto" else self.k

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
