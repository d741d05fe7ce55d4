"""Which engine decodes: the eager loops, rounds of fixed shape on the device, or these as CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.draft_length import DraftLength
from specprof.decoding.drafters import Drafter, DraftModel
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.decoding.static import StaticDecoder, why_not_captured, why_not_static
from specprof.errors import UsageError
from specprof.experiments.config import NO_GRAPHS, RunConfig
from specprof.models.wrapper import ModelWrapper

EngineName = Literal["eager", "static", "graph"]
PlainDecoder: TypeAlias = AutoregressiveDecoder | StaticDecoder
SpeculatingDecoder: TypeAlias = SpeculativeDecoder | StaticDecoder
Decoder: TypeAlias = AutoregressiveDecoder | SpeculativeDecoder | StaticDecoder


@dataclass(frozen=True, slots=True)
class Engine:
    """What both arms decode with: a comparison of two engines would say little about speculation."""

    name: EngineName = "eager"
    compiles: bool = False
    asked_for: bool = False
    """A capture that fails is then an error; otherwise rounds go on uncaptured."""
    why_not_graph: str | None = None
    """On CUDA, why rounds are launched one operation after the other."""

    def plain(self, target: ModelWrapper) -> PlainDecoder:
        """The baseline."""
        if self.name == "eager":
            return AutoregressiveDecoder(target)
        return StaticDecoder(target, None, capture=self._capture, compile=self.compiles)

    def speculating(
        self,
        target: ModelWrapper,
        drafter: Drafter,
        k: int | DraftLength,
        *,
        detail: bool,
        synthetic_acceptance: float | None,
    ) -> SpeculatingDecoder:
        """The arm that drafts."""
        if self.name == "eager":
            return SpeculativeDecoder(target, drafter, k, detail=detail, synthetic_acceptance=synthetic_acceptance)
        assert isinstance(drafter, DraftModel), "choose_engine lets no other drafter through"
        return StaticDecoder(
            target,
            drafter,
            k,
            detail=detail,
            synthetic_acceptance=synthetic_acceptance,
            capture=self._capture,
            compile=self.compiles,
        )

    @property
    def _capture(self) -> bool | None:
        if self.name == "static":
            return False
        return True if self.asked_for else None


def check_device(config: RunConfig, device: torch.device) -> None:
    """Refuse graphs where there can be none, before anything is loaded.

    Raises:
        UsageError: graphs were asked for, and the device has none.
    """
    if config.engine == "graph" and device.type != "cuda":
        raise UsageError(*NO_GRAPHS)


def choose_engine(config: RunConfig, target: ModelWrapper, drafters: Iterable[Drafter]) -> Engine:
    """The engine asked for, or the fastest that the models and every drafter can run on.

    Raises:
        UsageError: the one asked for can't run them.
    """
    check_device(config, target.device)
    if config.engine == "eager" or (config.engine == "auto" and target.device.type != "cuda"):
        return Engine()
    why = _why_not(config.engine, target, drafters)
    if why is None:
        name: EngineName = "static" if config.engine == "static" else "graph"
        return Engine(name, config.compile, asked_for=config.engine == "graph")
    if config.engine != "auto":
        raise UsageError(
            f"--engine {config.engine} can't run this pair: {why}", "use --engine auto, which takes what the pair can"
        )
    return Engine(why_not_graph=why)


def _why_not(engine: str, target: ModelWrapper, drafters: Iterable[Drafter]) -> str | None:
    for drafter in drafters:
        why = why_not_static(target, drafter)
        if why is None and engine != "static":
            why = why_not_captured(target, drafter)
        if why is not None:
            return why
    return None
