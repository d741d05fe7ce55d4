"""A drafter of one's own: after a token, what followed it in the text so far, as often as it did."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch

from specprof.decoding.drafters import Draft
from specprof.decoding.request import Request
from specprof.decoding.sampling import random_stream
from specprof.models.kv_cache import KVCache
from specprof.models.wrapper import ModelWrapper


class BigramDrafter:
    def __init__(self, target: ModelWrapper) -> None:
        self.vocab_size, self.device = target.vocab_size, target.device

    def start(self, request: Request, *, detail: bool, target_cache: KVCache | None = None) -> None:
        self.greedy = request.sampling.greedy
        self.random = random_stream(self.device, "draft", request.seed, request.prompt_id, request.repetition)
        self.followers: defaultdict[int, Counter[int]] = defaultdict(Counter)
        self.context: list[int] = []
        self.observe(request.prompt_ids)

    def propose(self, k: int) -> Draft:
        laws, last = [torch.empty(0, self.vocab_size, device=self.device)], self.context[-1]
        tokens: list[int] = []
        while len(tokens) < k and last in self.followers:
            seen = self.followers[last]
            law = torch.zeros(1, self.vocab_size, device=self.device)
            law[0, list(seen)] = torch.tensor([n / seen.total() for n in seen.values()], device=self.device)
            last = int(law.argmax() if self.greedy else torch.multinomial(law, 1, generator=self.random))
            tokens.append(last)
            laws.append(law)
        return Draft(torch.tensor(tokens, dtype=torch.long, device=self.device), torch.cat(laws))

    def observe(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if self.context:
                self.followers[self.context[-1]][token] += 1
            self.context.append(token)
