"""What there is to choose from before something is watched, and what a choice becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specprof.commands.chosen import DEFAULT_PAIR, chosen_pair, chosen_prompts, chosen_threads
from specprof.commands.options import DEFAULT_NUM_PROMPTS
from specprof.data.prompts import DOMAINS, Prompt
from specprof.errors import SpecprofError, UsageError
from specprof.experiments.config import DRAFTERS, RunConfig
from specprof.experiments.store import check_writable
from specprof.models import checkpoint, hub
from specprof.models.registry import REGISTRY, ModelPair, user_pairs
from specprof.profiling.feed import AUTO_K
from specprof.tui.choices import PACKAGED, Choice, Offer, PairOffer, show_k

if TYPE_CHECKING:
    from specprof.experiments.live import Session


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides a run beside a choice, and no screen asks for.

    Raises:
        UsageError: there are no threads, or too many.
        ResourceError: nothing can be written to the directory.
    """

    config: Mapping[str, Any]
    """Of :class:`~specprof.experiments.config.RunConfig`, by name."""
    dtype: str | None = None
    num_prompts: int | None = None
    threads: int | None = None
    """Of the engine's PyTorch; None leaves them."""
    results_dir: Path | None = None
    """Where runs are kept; None keeps nothing."""

    def __post_init__(self) -> None:
        if self.threads is not None:
            chosen_threads(self.threads)
        if self.results_dir is not None:
            check_writable(self.results_dir)

    def run_config(self, choice: Choice) -> RunConfig:
        """The run that is meant; probabilities are recorded, somebody looks.

        Raises:
            UsageError: it can't be meant.
        """
        return RunConfig(
            pair=chosen_pair(choice.pair, choice.draft, choice.target, self.dtype, drafter=choice.drafter),
            k="auto" if choice.k == AUTO_K else choice.k,
            temperature=choice.temperature,
            drafter=choice.drafter,
            draft_layers=choice.draft_layers,
            detail=True,
            **self.config,
        )

    def prompts(self, choice: Choice) -> list[Prompt]:
        """What is decoded.

        Raises:
            UsageError: the file can't be read, or nothing is left.
        """
        texts = [choice.prompt] if choice.prompt else []
        if texts or choice.prompts == PACKAGED:
            path, domains = None, []
        elif choice.prompts in DOMAINS:
            path, domains = None, [choice.prompts]
        elif choice.prompts == "-":
            raise UsageError("--prompts - reads standard input, which is the keyboard here", "name a file")
        else:
            path, domains = choice.prompts, []
        return chosen_prompts(texts, path, domains, self.num_prompts, packaged=DEFAULT_NUM_PROMPTS)

    def session(self, choice: Choice, command: str | None) -> Session:
        """What an engine is started with.

        Args:
            command: that asked for it.

        Raises:
            SpecprofError: it can't be meant, or a model isn't there.
        """
        from specprof.experiments.live import Session

        config = self.run_config(choice)
        prompts = self.prompts(choice)
        _check_models(config)
        return Session(config, tuple(prompts), self.results_dir, command, self.threads)


def _check_models(config: RunConfig) -> None:
    """Miss what should be on this machine. What has to be fetched is left to the engine: on its way it can be stopped.

    Raises:
        SpecprofError: a model isn't there, or is damaged.
    """
    if config.random_weights:
        return
    asked = [(config.pair.target_model_id, config.revision)]
    if config.drafter == "model":
        asked.append((config.pair.draft_model_id, None))
    offline = config.offline or hub.offline_by_environment()
    for model_id, revision in asked:
        if offline or hub.local_directory(model_id) is not None or not hub.is_hub_id(model_id):
            hub.resolve(model_id, revision=revision, offline=offline)


def offer() -> Offer:
    """Pairs that have a name, what is on this machine first; and the packaged prompts.

    Raises:
        UsageError: the user's file of pairs can't be read.
    """
    pairs = [_pair_offer(pair) for pair in (*REGISTRY.values(), *user_pairs().values())]
    pairs.sort(key=lambda offered: (offered.name != DEFAULT_PAIR, not offered.here))
    return Offer(tuple(pairs), DOMAINS, DRAFTERS)


def _pair_offer(pair: ModelPair) -> PairOffer:
    what = f"{pair.draft_model_id} for {pair.target_model_id}"
    return PairOffer(pair.name, what, _is_here(pair.draft_model_id) and _is_here(pair.target_model_id), pair.notes)


def _is_here(model_id: str) -> bool:
    """At a glance: weights are not looked into, and nobody is asked."""
    try:
        directory = hub.local_directory(model_id)
        if directory is not None:
            return not checkpoint.missing_files(directory)
        if not hub.is_hub_id(model_id):
            return False
        from huggingface_hub import constants

        cached = Path(constants.HF_HUB_CACHE, f"models--{model_id.replace('/', '--')}", "snapshots")
        return any(not checkpoint.missing_files(snapshot) for snapshot in cached.glob("*"))
    except (OSError, SpecprofError):
        return False


def flags_of(choice: Choice) -> list[str]:
    """The flags that say the same."""
    flags = ["--pair", choice.pair] if choice.pair is not None else []
    if choice.draft is not None:
        flags += ["--draft", choice.draft]
    if choice.target is not None:
        flags += ["--target", choice.target]
    flags += ["--k", show_k(choice.k), "--temperature", f"{choice.temperature:g}", "--drafter", choice.drafter]
    if choice.draft_layers is not None:
        flags += ["--draft-layers", str(choice.draft_layers)]
    if choice.prompt:
        flags += ["--prompt", choice.prompt]
    elif choice.prompts != PACKAGED:
        flags += ["--prompts", choice.prompts]
    return flags
