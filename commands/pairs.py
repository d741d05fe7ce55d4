"""Which two models a command line means."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from specprof.errors import UsageError
from specprof.models.loader import canonical_dtype
from specprof.models.registry import ModelPair, get_pair

DEFAULT_PAIR = "tiny_dev"


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
