"""Loads a pair and makes the two arms of a comparison: plain and speculative decoding of one target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import Drafter, DraftModel, NGramLookup
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.decoding.vocabulary import VocabularyVerdict, compare_vocabularies
from specprof.errors import IncompatiblePairError, UsageError
from specprof.experiments.config import RunConfig
from specprof.models import hub, loader
from specprof.models.random_weights import model_config, random_model, random_tokenizer
from specprof.models.registry import ModelPair
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.memory import PeakMemory

MOST_PADDING = 0.02
"""Share of a vocabulary that padding rows make up at most (Qwen2.5: 152064 rows and 151936)."""


@dataclass(frozen=True, slots=True)
class Arms:
    """Two decoders over one loaded target."""

    target: ModelWrapper
    draft: ModelWrapper | None
    baseline: AutoregressiveDecoder
    speculative: SpeculativeDecoder
    tokenizer: Any
    load_peak_bytes: int
    notes: tuple[str, ...]
    """What the user should know about how the models were loaded."""

    @property
    def stop_ids(self) -> frozenset[int]:
        return self.target.eos_token_ids

    def describe(self) -> dict[str, Any]:
        """What was loaded, for the record."""
        wrappers = {"target": self.target} | ({"draft": self.draft} if self.draft else {})
        return {
            role: {
                "model": wrapper.name,
                "parameters": wrapper.param_count,
                "memory_bytes": round(wrapper.memory_footprint_mb * 2**20),
                "dtype": str(wrapper.dtype).removeprefix("torch."),
                "device": str(wrapper.device),
                "forward": wrapper.forward_name,
                "why_not_own": wrapper.why_not_own,
            }
            for role, wrapper in wrappers.items()
        }


def load_arms(config: RunConfig) -> Arms:
    """Load what the configuration names and check that it fits together.

    Raises:
        UnavailableError, ResourceError: a model can't be had, or doesn't fit.
        IncompatiblePairError: the vocabularies differ.
        UsageError: k is larger than the context.
    """
    device = loader.choose_device(config.device)
    memory = PeakMemory(device)
    memory.start()
    needs_draft = config.drafter == "model"
    if needs_draft and not config.random_weights:
        verdict = vocabulary_verdict(
            config.pair,
            revision=config.revision,
            offline=config.offline,
            trust_remote_code=config.trust_remote_code,
        )
        if not verdict.compatible:
            raise different_vocabularies(config.pair, verdict.reason)
    if needs_draft and config.random_weights:
        _check_sizes(config.pair)
    target = _load(config, "target", device)
    draft = _load(config, "draft", device) if needs_draft else None
    for wrapper in filter(None, (target, draft)):
        if wrapper.max_context is not None and config.k >= wrapper.max_context:
            raise UsageError(
                f"k = {config.k} is not less than the context of {wrapper.name}, {wrapper.max_context}",
                "k is the number of tokens drafted per round; 2 to 8 is usual",
            )
    drafter: Drafter
    if draft is not None:
        drafter = DraftModel(draft, vocab_size=target.vocab_size)
    else:
        drafter = NGramLookup(target.vocab_size, target.device)
    speculative = SpeculativeDecoder(
        target, drafter, config.k, detail=config.detail, synthetic_acceptance=config.synthetic_acceptance
    )
    load_peak = memory.stop("load")
    notes = tuple(_notes(config, target, draft))
    return Arms(target, draft, AutoregressiveDecoder(target), speculative, target.tokenizer, load_peak, notes)


def _load(config: RunConfig, role: str, device: torch.device) -> ModelWrapper:
    model_id = config.pair.target_model_id if role == "target" else config.pair.draft_model_id
    dtype = config.pair.target_dtype if role == "target" else config.pair.draft_dtype
    if config.random_weights:
        model, tokenizer = random_model(model_id, dtype, device, seed=config.seed), random_tokenizer()
    else:
        model, tokenizer = loader.load_model(
            model_id,
            dtype,
            device,
            revision=config.revision if role == "target" else None,
            offline=config.offline,
            trust_remote_code=config.trust_remote_code,
        )
    return ModelWrapper(
        model,
        tokenizer,
        device,
        forward=config.forward,  # type: ignore[arg-type]  # RunConfig has checked it
        measure_linear=not config.deterministic,
        name=model_id,
    )


def vocabulary_verdict(
    pair: ModelPair, *, revision: str | None = None, offline: bool = False, trust_remote_code: bool = False
) -> VocabularyVerdict:
    """Compare a pair's vocabularies before any weights are read: tokenizers and configurations are enough to know.

    ``revision`` is the target's.
    """
    sides = {"draft": (pair.draft_model_id, None), "target": (pair.target_model_id, revision)}
    tokenizers, rows = {}, {}
    for role, (model_id, commit) in sides.items():
        tokenizers[role] = loader.load_tokenizer(
            model_id, revision=commit, offline=offline, trust_remote_code=trust_remote_code
        )
        directory = hub.resolve(model_id, revision=commit, offline=offline, remote_code=trust_remote_code).directory
        rows[role] = hub.read_config(directory, model_id).get("vocab_size") or len(tokenizers[role])
    return compare_vocabularies(tokenizers["draft"], tokenizers["target"], rows["draft"], rows["target"])


def different_vocabularies(pair: ModelPair, reason: str) -> IncompatiblePairError:
    return IncompatiblePairError(
        f"{pair.draft_model_id} and {pair.target_model_id} have different vocabularies: {reason}",
        "choose a draft with the target's tokenizer, or use --drafter ngram, which needs no second model",
    )


def _check_sizes(pair: ModelPair) -> None:
    """Random weights come without tokenizers of their own; heads that differ by more than padding tell all the same."""
    sizes = (model_config(model_id).get("vocab_size") for model_id in (pair.draft_model_id, pair.target_model_id))
    draft, target = sizes
    if draft and target and abs(target - draft) > MOST_PADDING * max(target, draft):
        raise different_vocabularies(pair, f"{draft} and {target} tokens")


def _notes(config: RunConfig, target: ModelWrapper, draft: ModelWrapper | None) -> list[str]:
    notes = list(config.caveats)
    for wrapper in filter(None, (target, draft)):
        if wrapper.forward_name == "hf" and config.forward == "auto":
            notes.append(f"{wrapper.name}: Hugging Face's forward is used ({wrapper.why_not_own})")
    return notes
