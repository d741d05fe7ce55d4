"""From logits to a token: temperature, top-k, top-p, and drawing from the result."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from specprof.decoding.settings import Sampling

__all__ = ["Sampling", "draw", "probabilities", "random_stream", "uniforms"]

_WHOLE = 2**48
"""A probability of 1, counted in whole numbers: fine enough for any sum of float32."""


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution tokens are drawn from: ``[..., vocab]`` logits to probabilities, in float32 or wider.

    Order as in Hugging Face: temperature, then top-k, then top-p.
    """
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    probs = logits.softmax(-1)
    if sampling.top_p < 1:
        probs = _nucleus(probs, sampling.top_p)
    return probs


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    ordered, index = probs.sort(-1, descending=True)
    # A token stays if the mass before it is short of top_p; the first always does. In whole numbers, whose sum is the
    # same in every order: CUDA adds floats up in none, and refuses to where kernels have to be deterministic.
    mass = (ordered.double() * _WHOLE).long()
    outside = mass.cumsum(-1) - mass >= max(1, int(top_p * _WHOLE))
    kept = ordered.masked_fill(outside, 0.0)
    kept = kept / kept.sum(-1, keepdim=True)
    return torch.zeros_like(probs).scatter(-1, index, kept)


def draw(probs: Tensor, generator: torch.Generator) -> Tensor:
    """One token per row of ``[..., vocab]`` probabilities without a wait for the device."""
    return _by_mass(probs, generator) if probs.device.type == "cpu" else _by_race(probs, generator)


def _by_mass(probs: Tensor, generator: torch.Generator) -> Tensor:
    """The token at which a random share of the mass is passed: one random number a row, as a CPU makes them singly."""
    passed = probs.cumsum(-1, dtype=torch.float64)
    share = uniforms((*probs.shape[:-1], 1), generator)
    # A law that has no numbers is passed nowhere.
    return torch.searchsorted(passed, share * passed[..., -1:], right=True).squeeze(-1).clamp_(max=probs.shape[-1] - 1)


def uniforms(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """What tokens are drawn by on a CPU: as many numbers at once or one by one, they are the same ones."""
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _by_race(probs: Tensor, generator: torch.Generator) -> Tensor:
    """argmax_x p(x) / E(x) with E ~ Exp(1) has law p: the first of independent exponential clocks with rates p.

    A random number a token is no work for a GPU, and a largest number is the same in whichever order it is looked for,
    where sums of floats are not.
    """
    clocks = torch.empty_like(probs).exponential_(generator=generator)
    # A clock at exactly 0 would make 0/0 of an impossible token.
    return (probs / clocks.clamp_(min=torch.finfo(probs.dtype).tiny)).argmax(-1)


def random_stream(device: torch.device, *key: object) -> torch.Generator:
    """A generator whose numbers depend on the key alone: each prompt, repetition and use has its own stream."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "little", signed=False) >> 1)
