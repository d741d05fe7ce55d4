"""One generation, asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from specprof.decoding.sampling import Sampling
from specprof.errors import UsageError
from specprof.profiling.events import FinishReason


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and how to continue it.

    Raises:
        UsageError: nothing to continue, or nothing to generate.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    """End-of-sequence tokens; generation ends with the first one, which is kept."""
    seed: int = 0
    prompt_id: str = ""
    repetition: int = 0
    draft_prompt_ids: tuple[int, ...] | None = None
    """The prompt as a draft of another vocabulary reads it; None leaves that to the drafter."""

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise UsageError(f"prompt {self.prompt_id or '(unnamed)'} has no tokens", "give it some text")
        if self.max_new_tokens < 1:
            raise UsageError(f"max-new-tokens {self.max_new_tokens} is not >= 1", "ask for at least one token")

    @property
    def num_positions(self) -> int:
        """Cache entries the generation may need."""
        return len(self.prompt_ids) + self.max_new_tokens

    def place(self, num_generated: int) -> str:
        """Where the token after so many stands, in words."""
        return f"at token {num_generated + 1} of the answer to {self.prompt_id or 'the prompt'}"

    def until_stop(self, tokens: Sequence[int]) -> Sequence[int]:
        """The tokens up to the first that ends the text, which stays."""
        for index, token in enumerate(tokens):
            if token in self.stop_ids:
                return tokens[: index + 1]
        return tokens

    def finish_reason(self, num_generated: int, last_token: int) -> FinishReason | None:
        """Why generation ends here, or None if it goes on."""
        if last_token in self.stop_ids:
            return "stop"
        return "length" if num_generated >= self.max_new_tokens else None


def prompt_tokens(prompt_ids: torch.Tensor | Sequence[int]) -> tuple[int, ...]:
    """Token ids given as ``[1, n]`` or ``[n]`` tensor or as a sequence.

    Raises:
        ValueError: more than one sequence.
    """
    if not isinstance(prompt_ids, torch.Tensor):
        return tuple(prompt_ids)
    if prompt_ids.dim() == 2 and prompt_ids.shape[0] == 1:
        prompt_ids = prompt_ids[0]
    if prompt_ids.dim() != 1:
        raise ValueError(f"prompt_ids must be one sequence, [n] or [1, n], not {list(prompt_ids.shape)}")
    return tuple(prompt_ids.tolist())
