"""What every decoder offers on top of its events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch

from specprof.decoding.request import Request, prompt_tokens
from specprof.decoding.sampling import Sampling
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.events import Event
from specprof.profiling.metrics import GenerationResult, fold


class EventDecoder(ABC):
    """Continues one sequence at a time, and tells what happens as it happens."""

    target: ModelWrapper

    @abstractmethod
    def events(self, request: Request) -> Iterator[Event]:
        """Decode one request.

        Raises:
            UsageError: prompt and new tokens exceed a model's context (before anything runs).
        """

    def generate(
        self,
        prompt_ids: torch.Tensor | Sequence[int],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop_ids: frozenset[int] | None = None,
    ) -> GenerationResult:
        """Continue ``prompt_ids`` (``[1, n]``, ``[n]`` or a sequence) by up to ``max_new_tokens``.

        ``stop_ids`` defaults to the model's end-of-sequence tokens.
        """
        request = Request(
            prompt_tokens(prompt_ids),
            max_new_tokens,
            Sampling(temperature, top_k, top_p),
            self.target.eos_token_ids if stop_ids is None else stop_ids,
            seed,
        )
        return next(fold(self.events(request)))
