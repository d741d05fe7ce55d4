"""Which two models a command line means."""

from __future__ import annotations

import dataclasses

from specprof.errors import UsageError
from specprof.models.registry import ModelPair, get_pair

DEFAULT_PAIR = "tiny_dev"


def chosen_pair(
    pair: str | None, draft: str | None, target: str | None, dtype: str | None, *, needs_draft: bool
) -> ModelPair:
    """``--pair``, or ``--draft`` and ``--target``, or the packaged pair; ``--dtype`` overrides both dtypes.

    Raises:
        UsageError: an unknown name, or flags that exclude each other.
    """
    if pair and (draft or target):
        raise UsageError("--pair and --draft/--target exclude each other", "give one or the other")
    if draft and not target:
        raise UsageError("--draft needs --target", "name both models, by hub id or directory")
    if target and not draft and needs_draft:
        raise UsageError("--target needs --draft", "name both models, or use --drafter ngram, which needs no draft")
    if target:
        chosen = ModelPair(f"{draft or 'ngram'}+{target}", draft or target, target)
    else:
        chosen = get_pair(pair or DEFAULT_PAIR)
    return dataclasses.replace(chosen, draft_dtype=dtype, target_dtype=dtype) if dtype else chosen
