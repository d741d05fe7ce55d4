"""Whether tokens follow the target's law: a sound engine passes, every broken one is found, and nothing is vacuous."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from specprof.data.prompts import Prompt
from specprof.decoding import judge
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import Draft, Drafter, DraftModel, LayerSkip, NGramLookup, RandomTokens
from specprof.decoding.rejection import count_accepted, next_token_probs, residual
from specprof.decoding.sampling import probabilities
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.experiments.arms import Arms
from specprof.experiments.config import RunConfig
from specprof.experiments.run import EncodedPrompt
from specprof.experiments.verification import verify, verify_steps
from specprof.models.registry import get_pair
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.verification import ArmLaw, Check, GreedyVerification, LawVerification
from specprof.reports import verify as report
from tiny_models import tiny_gpt2

VOCAB = 24
PROMPTS = [EncodedPrompt(Prompt(f"p{i}", "custom", "-"), (1 + i, 2, 3, 2 + i)) for i in range(4)]


@functools.cache
def target(dtype: torch.dtype = torch.float32) -> ModelWrapper:
    model = copy.deepcopy(tiny_gpt2(vocab_size=VOCAB)).to(dtype)
    return ModelWrapper(model, measure_linear=False)


@functools.cache
def draft(dtype: torch.dtype = torch.float32, noise: float = 0.35) -> ModelWrapper:
    """The target with noise on its weights: often right, often wrong."""
    model = copy.deepcopy(tiny_gpt2(vocab_size=VOCAB))
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.add_(noise * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return ModelWrapper(model.to(dtype), measure_linear=False)


def arms_of(drafter: Drafter | None = None, *, k: int = 2, model: ModelWrapper | None = None) -> Arms:
    model = model or target()
    speculative = SpeculativeDecoder(model, drafter or DraftModel(draft()), k)
    return Arms(model, None, AutoregressiveDecoder(model), speculative, None, 0, (), None, None, {})


def asked(**changes: Any) -> RunConfig:
    settings = {"k": 2, "temperature": 0.8, "max_new_tokens": 120, "repetitions": 2, "ignore_eos": True}
    return RunConfig(get_pair("tiny_dev"), **(settings | changes))


def verified(drafter: Drafter | None = None, **changes: Any) -> LawVerification:
    config = asked(**changes)
    found = verify(config, arms_of(drafter, k=config.longest_draft), PROMPTS)
    assert isinstance(found, LawVerification)
    return found
