"""What a pair is worth on documents it was not trained on, domain by domain."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from specprof.data.prompts import Prompt, builtin, encode
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.experiments.arms import load_arms
from specprof.experiments.config import RunConfig
from specprof.models.loader import load_model
from specprof.models.registry import ModelPair
from specprof.models.wrapper import ModelWrapper
from training.corpus import Document

NEW_TOKENS = 96
PROMPT_TOKENS = 160
"""At most; a prompt is the first half of its document."""
READ = 4000
"""Characters of a document, of which the first half has more tokens than a prompt."""
TEMPERATURES = (0.0, 1.0)


@torch.inference_mode()
def bits_per_byte(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, documents: list[Document]
) -> dict[str, float]:
    """How many bits a model needs for a byte of text, by domain: of each document, as many tokens as it can read.

    A document follows the end of another one, as in training.
    Unlike nats per token this is the same measure for every tokenizer.
    """
    nats: dict[str, float] = {}
    num_bytes: dict[str, int] = {}
    for document in documents:
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        read = ids[: model.config.max_position_embeddings - 1]
        tokens = torch.tensor([[tokenizer.eos_token_id, *read]], device=model.device)
        logits = model(tokens[:, :-1], use_cache=False).logits[0].float()
        text = document.text if len(read) == len(ids) else str(tokenizer.decode(read))
        nats[document.domain] = nats.get(document.domain, 0.0) + float(
            F.cross_entropy(logits, tokens[0, 1:], reduction="sum")
        )
        num_bytes[document.domain] = num_bytes.get(document.domain, 0) + len(text.encode())
    return {domain: nats[domain] / num_bytes[domain] / math.log(2) for domain in sorted(nats)}


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Of one domain, temperature and draft length."""

    domain: str
    temperature: float
    k: int
    tokens_per_round: float


def acceptance(
    target: Path, draft: Path, documents: list[Document], *, per_domain: int, ks: tuple[int, ...]
) -> Iterator[Acceptance]:
    """Tokens per round where the beginnings of held-out documents are gone on with, by specprof's own loop."""
    pair = ModelPair("held_out", str(draft), str(target), "float32", "float32")
    for k in ks:
        arms = load_arms(RunConfig(pair, k=k, device="cpu"))
        for domain in sorted({document.domain for document in documents}):
            texts = [document.text for document in documents if document.domain == domain][:per_domain]
            prompts = [_beginning(arms.tokenizer(text[:READ], add_special_tokens=False)["input_ids"]) for text in texts]
            for temperature in TEMPERATURES:
                emitted = [
                    len(each.emitted_tokens)
                    for seed, prompt in enumerate(prompts)
                    for each in arms.speculative.generate(prompt, NEW_TOKENS, temperature, seed=seed).rounds
                    if not each.cut
                ]
                yield Acceptance(domain, temperature, k, statistics.fmean(emitted) if emitted else math.nan)


def _beginning(tokens: list[int]) -> list[int]:
    return tokens[: min(PROMPT_TOKENS, max(1, len(tokens) // 2))]


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a target makes of a packaged prompt."""

    prompt: Prompt
    tokens: tuple[int, ...]
    text: str


def continuations(target: Path, num_tokens: int, temperature: float, every: int = 1) -> Iterator[Continuation]:
    """Of every packaged prompt, or one in ``every``, in order, as plain decoding with seed 0 writes it."""
    model = ModelWrapper(*load_model(str(target), "float32", "cpu"))
    for prompt in builtin().get_all()[::every]:
        ids = encode(prompt, model.tokenizer)
        tokens = AutoregressiveDecoder(model).generate(ids, num_tokens, temperature).generated_ids
        yield Continuation(prompt, tuple(tokens), model.tokenizer.decode(tokens))
