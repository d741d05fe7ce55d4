"""The baseline: one token per pass of the target."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from specprof.decoding.decoder import EventDecoder
from specprof.decoding.request import Request
from specprof.decoding.sampling import draw, probabilities, random_stream
from specprof.models.scores import are_numbers, scores_of
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round
from specprof.profiling.memory import PeakMemory
from specprof.profiling.timer import RoundClock


class AutoregressiveDecoder(EventDecoder):
    """Token-by-token decoding with an explicit KV cache, timed like the speculative loop.

    Greedy at temperature 0, else sampling. It emits the same events as
    :class:`~specprof.decoding.speculative.SpeculativeDecoder`, with nothing drafted.
    """

    label = "AR"

    def __init__(self, target: ModelWrapper) -> None:
        self.target = target

    @torch.inference_mode()
    def events(self, request: Request) -> Iterator[Event]:
        """Decode one request.

        Raises:
            UsageError: prompt and new tokens exceed the model's context (before anything runs).
            CorrectnessError: the model computes no numbers.
        """
        target, device = self.target, self.target.device
        key = (request.prompt_id, self.label, request.repetition)
        cache = target.new_cache(request.num_positions)
        generator = random_stream(device, "target", request.seed, request.prompt_id, request.repetition)
        clock, memory = RoundClock(device), PeakMemory(device)
        memory.start()

        def choose(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if request.sampling.greedy:
                chosen = logits.argmax(-1)
                return chosen, scores_of(logits, chosen)
            probs = probabilities(logits, request.sampling)
            chosen = draw(probs, generator)
            return chosen, scores_of(probs, chosen)

        def read(chosen: torch.Tensor, scores: torch.Tensor, place: int) -> int:
            token = int(chosen.item())  # the one wait: the score is there with it
            if not are_numbers(scores.tolist()):
                raise target.no_numbers(request.place(place))
            return token

        clock.start()
        logits = target.extend(torch.tensor(request.prompt_ids, device=device), cache)
        clock.mark()
        step, score = choose(logits)
        token = read(step, score, 0)
        (target_seconds,), rest = clock.finish()
        yield Prefilled(*key, len(request.prompt_ids), token, target_seconds, 0.0, rest, memory.stop("prefill"))
        memory.start()

        num_generated = 1
        while (finish := request.finish_reason(num_generated, token)) is None:
            clock.start()
            logits = target.extend(step, cache)
            clock.mark()
            step, score = choose(logits)
            clock.mark()
            token = read(step, score, num_generated)
            (verify, sample), overhead = clock.finish()
            yield Round(*key, num_generated - 1, (), 0, (token,), 0.0, verify, sample, overhead)
            num_generated += 1
        yield PromptEnded(*key, finish, memory.stop("decode"))

    def generate_text(self, prompt: str, max_new_tokens: int = 128, temperature: float = 0.0, *, seed: int = 0) -> str:
        """The continuation of a text, as text, without special tokens."""
        tokenizer = self.target.tokenizer
        prompt_ids = tokenizer.encode(prompt)
        self.target.check_tokens(prompt_ids)
        result = self.generate(prompt_ids, max_new_tokens, temperature, seed=seed)
        # Decoded alone, a SentencePiece continuation would lose the space it begins with.
        before = tokenizer.decode(prompt_ids, skip_special_tokens=True)
        return str(tokenizer.decode([*prompt_ids, *result.generated_ids], skip_special_tokens=True)[len(before) :])
