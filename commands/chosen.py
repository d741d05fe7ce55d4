"""What a command line chooses: two models, how many tokens to draft, prompts."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Literal

from specprof.commands.narration import LOG
from specprof.data.prompts import Prompt, PromptDataset, builtin
from specprof.errors import UsageError
from specprof.experiments.config import RunConfig
from specprof.models import hub
from specprof.models.devices import canonical_dtype
from specprof.models.registry import ModelPair, get_pair

DEFAULT_PAIR = "tiny_dev"
MOST_THREADS = max(256, os.cpu_count() or 1)


def chosen_pair(
    pair: str | None, draft: str | None, target: str | None, dtype: str | None, *, drafter: str = "model"
) -> ModelPair:
    """``--pair``, or ``--draft`` and ``--target``, or the packaged pair; ``--dtype`` overrides both dtypes.

    Raises:
        UsageError: an unknown name or dtype, or flags that exclude each other.
    """
    # An empty name (an unset variable in a script) is a wrong name, not the default.
    if pair is not None and (draft is not None or target is not None):
        raise UsageError("--pair and --draft/--target exclude each other", "give one or the other")
    if draft is not None and drafter != "model":
        raise UsageError(f"--draft does not apply to --drafter {drafter}", "leave it out: no second model is loaded")
    if draft is not None and target is None:
        raise UsageError("--draft needs --target", "name both models, by hub id or directory")
    if target is not None and draft is None and drafter == "model":
        raise UsageError(
            "--target needs --draft", "name both models, or use --drafter ngram (or another that needs no draft)"
        )
    if target is not None:
        # The last part of a path or id reads well in a title; the record has the whole.
        name = f"{drafter if draft is None else Path(draft).name}+{Path(target).name}"
        chosen = ModelPair(name, target if draft is None else draft, target)
    else:
        chosen = get_pair(DEFAULT_PAIR if pair is None else pair)
    if dtype is None:
        return chosen
    dtype = canonical_dtype(dtype)
    return dataclasses.replace(chosen, draft_dtype=dtype, target_dtype=dtype)


def chosen_k(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--k {text!r} is neither a number nor auto", "2 to 8 is usual; 0 is plain decoding") from None


def chosen_threads(threads: int) -> int:
    """Raise UsageError if there are none, or too many."""
    if threads < 1:
        raise UsageError(f"--threads {threads} is less than 1", "give 1 or more")
    if threads > MOST_THREADS:  # of too many the thread library ends the process without a word
        raise UsageError(f"--threads {threads} is more than {MOST_THREADS}", "give as many as there are cores")
    return threads


def chosen_prompts(
    texts: list[str], path: str | None, domains: list[str], limit: int | None, *, packaged: int
) -> list[Prompt]:
    """What to decode: given texts, a file, standard input, or the packaged prompts.

    Args:
        packaged: how many of the packaged ones, where no limit is given.

    Raises:
        UsageError: the sources exclude each other, or nothing is left.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--num-prompts {limit} is less than 1", "give 1 or more")
    if texts and path:
        raise UsageError("--prompt and --prompts exclude each other", "give texts, or a file")
    if texts:
        dataset = PromptDataset.from_texts(texts)
    elif path == "-":
        dataset = PromptDataset.read(sys.stdin.buffer)
    elif path:
        dataset = PromptDataset.load(path)
    else:
        dataset = builtin()
        limit = limit or packaged
    if domains:
        dataset = PromptDataset(tuple(p for name in dict.fromkeys(domains) for p in dataset.get_by_domain(name)))
    return list(dataset if limit is None else dataset.take(limit))


def check_models_are_here(config: RunConfig) -> None:
    """Fetch or miss the models before PyTorch is imported: a typo should cost a second, not ten."""
    if config.random_weights:
        return
    found = [hub.resolve(config.pair.target_model_id, revision=config.revision, offline=config.offline)]
    if config.drafter == "model":
        found.append(hub.resolve(config.pair.draft_model_id, offline=config.offline))
    for model in found:
        LOG.debug("%s: %s, in %s", model.model_id, model.source, model.directory)
