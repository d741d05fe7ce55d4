"""Loads a pair and makes the two arms of a comparison: plain and speculative decoding of one target."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from specprof.decoding.draft_length import AdaptiveK
from specprof.decoding.drafters import Drafter, DraftModel, LayerSkip, NGramLookup, RandomTokens
from specprof.decoding.static import StaticDecoder
from specprof.decoding.string_match import StringMatch
from specprof.decoding.translation import SharedVocabulary, TokenIntersection, Translation
from specprof.decoding.vocabulary import VocabularyVerdict, compare_vocabularies
from specprof.errors import IncompatiblePairError, UsageError
from specprof.experiments.config import RunConfig
from specprof.experiments.engine import (
    Engine,
    EngineName,
    PlainDecoder,
    SpeculatingDecoder,
    check_device,
    choose_engine,
)
from specprof.models import checkpoint, hub, loader
from specprof.models.devices import choose_device
from specprof.models.int4 import fused_int4_width
from specprof.models.random_weights import model_config, random_model, random_tokenizer
from specprof.models.registry import ModelPair
from specprof.models.static_forward import attention_chosen
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.memory import PeakMemory


@dataclass(frozen=True, slots=True)
class Arms:
    """Two decoders over one loaded target."""

    target: ModelWrapper
    draft: ModelWrapper | None
    baseline: PlainDecoder
    speculative: SpeculatingDecoder
    tokenizer: Any
    load_peak_bytes: int
    notes: tuple[str, ...]
    """What the user should know about how the models were loaded."""
    vocabulary: VocabularyVerdict | None
    """Of a draft model and the target."""
    vocab_method: str | None
    """How a draft of another vocabulary proposes; None where there is one vocabulary, or no draft model."""
    candidates: Mapping[str, SpeculatingDecoder]
    """By vocab method, what ``speculative`` is still to be chosen from."""
    engine: Engine = field(default_factory=Engine)
    """What both arms decode with."""

    @property
    def drafter(self) -> Drafter:
        """What proposes to the speculative arm."""
        drafter = self.speculative.drafter
        assert drafter is not None  # only plain decoding has none
        return drafter

    @property
    def stop_ids(self) -> frozenset[int]:
        return self.target.eos_token_ids

    @property
    def forward_used(self) -> str:
        """Whose forward decodes: static rounds are made of ours in PyTorch, whatever takes in the prompt."""
        return self.target.forward_name if self.engine.name == "eager" else "own"

    def describe_engine(self) -> dict[str, Any]:
        """What decodes, for the record; after warm-up, which is when graphs are captured."""
        static = [decoder for decoder in (self.baseline, self.speculative) if isinstance(decoder, StaticDecoder)]
        captured = self.engine.name == "graph" and self.why_not_captured is None
        return {
            "engine_used": self.engine_used,
            "why_not_graph": self.engine.why_not_graph or self.why_not_captured,
            "capture_seconds": sum(decoder.capture_seconds for decoder in static) if captured else None,
            "attention": attention_chosen() if static else None,
        }

    @property
    def engine_used(self) -> EngineName:
        """What decodes: where a capture failed, rounds that were to be graphs go on uncaptured."""
        return self.engine.name if self.why_not_captured is None else "static"

    @property
    def why_not_captured(self) -> str | None:
        """Why rounds that were to be graphs are not, as far as capturing them has been tried."""
        if self.engine.name != "graph":
            return None
        static = (decoder for decoder in (self.baseline, self.speculative) if isinstance(decoder, StaticDecoder))
        return next(filter(None, (decoder.why_uncaptured for decoder in static)), None)

    def describe(self, pair: ModelPair) -> dict[str, Any]:
        """What was loaded, for the record."""
        wrappers = {"target": self.target} | ({"draft": self.draft} if self.draft else {})
        stored = {"target": pair.target_dtype, "draft": pair.draft_dtype}
        return {
            role: {
                "model": wrapper.name,
                "parameters": wrapper.param_count,
                "memory_bytes": round(wrapper.memory_footprint_mb * 2**20),
                "packed_bytes": wrapper.packed_bytes,
                "stored_dtype": stored[role],
                "dtype": str(wrapper.dtype).removeprefix("torch."),
                "device": str(wrapper.device),
                "forward": wrapper.forward_name if self.engine.name == "eager" else "own",
                "why_not_own": wrapper.why_not_own,
                "why_not_native": wrapper.why_not_native,
            }
            for role, wrapper in wrappers.items()
        }


@dataclass(frozen=True, slots=True)
class Models:
    """What several arms can be made of."""

    target: ModelWrapper
    draft: ModelWrapper | None
    vocabulary: VocabularyVerdict | None
    """Of a draft model and the target."""
    load_peak_bytes: int


def load_arms(config: RunConfig) -> Arms:
    """Load what the configuration names and check that it fits together.

    Raises:
        UnavailableError, ResourceError: a model can't be had, or doesn't fit.
        IncompatiblePairError: the vocabularies have too little in common.
        UsageError: k is larger than the context, or the engine asked for can't run this.
    """
    verdict = compared_vocabularies(config)
    if verdict is not None:
        vocabulary_methods(config, verdict)  # a pair that can't work is refused before its weights are read
    return make_arms(config, load_models(config, verdict))


def compared_vocabularies(config: RunConfig) -> VocabularyVerdict | None:
    """Of the draft model and the target, None without a draft model."""
    if config.drafter != "model":
        return None
    return vocabulary_verdict(
        config.pair,
        revision=config.revision,
        offline=config.offline,
        trust_remote_code=config.trust_remote_code,
        random_weights=config.random_weights,
    )


def load_models(config: RunConfig, verdict: VocabularyVerdict | None) -> Models:
    """The target, and the draft model if the configuration drafts with one.

    Raises:
        UnavailableError, ResourceError: a model can't be had, or doesn't fit.
        UsageError: the engine asked for needs another device.
    """
    device = choose_device(config.device)
    check_device(config, device)
    memory = PeakMemory(device)
    memory.start()
    target = _load(config, "target", device)
    draft = _load(config, "draft", device, share_with=target) if config.drafter == "model" else None
    return Models(target, draft, verdict, memory.stop("load"))


def make_arms(config: RunConfig, models: Models) -> Arms:
    """The decoders of one configuration, over models that several may share.

    Raises:
        IncompatiblePairError: the vocabularies have too little in common for it.
        UsageError: k is larger than the context, a drafter the target doesn't offer, or an engine that can't run them.
    """
    target, draft, verdict = models.target, models.draft, models.vocabulary
    if config.drafter != "model":
        draft, verdict = None, None
    methods = () if verdict is None else vocabulary_methods(config, verdict)
    for wrapper in filter(None, (target, draft)):
        if wrapper.max_context is not None and config.longest_draft >= wrapper.max_context:
            raise UsageError(
                f"k = {config.longest_draft} is not less than the context of {wrapper.name}, {wrapper.max_context}",
                "k is the number of tokens drafted per round; 2 to 8 is usual",
            )
    drafters = {method: _drafter(config, target, draft, verdict, method) for method in methods or ("",)}
    engine = choose_engine(config, target, drafters.values())
    candidates = {
        method: engine.speculating(
            target,
            drafter,
            AdaptiveK(config.longest_draft) if config.k == "auto" else config.k,
            detail=config.detail,
            synthetic_acceptance=config.synthetic_acceptance,
        )
        for method, drafter in drafters.items()
    }
    return Arms(
        target,
        draft,
        engine.plain(target),
        next(iter(candidates.values())),
        target.tokenizer,
        models.load_peak_bytes,
        tuple(_notes(config, target, draft, verdict, engine)),
        verdict,
        next(iter(methods), None),
        candidates if len(methods) > 1 else {},
        engine,
    )


def _drafter(
    config: RunConfig,
    target: ModelWrapper,
    draft: ModelWrapper | None,
    verdict: VocabularyVerdict | None,
    method: str,
) -> Drafter:
    if draft is not None and verdict is not None:
        if method == "slem":
            return StringMatch(draft, target.tokenizer, target.vocab_size)
        translation: Translation
        if method == "tli":
            translation = TokenIntersection(verdict, draft.tokenizer, target.tokenizer, draft.device)
        else:
            translation = SharedVocabulary(draft.vocab_size, target.vocab_size, verdict.withheld)
        return DraftModel(draft, translation, threshold=config.draft_threshold)
    if config.drafter == "layerskip":
        return LayerSkip(target, config.draft_layers or 0, threshold=config.draft_threshold)
    if config.drafter == "self":
        return DraftModel(target, threshold=config.draft_threshold)
    if config.drafter == "random":
        return RandomTokens(target.vocab_size, target.device)
    return NGramLookup(target.vocab_size, target.device)


def _load(config: RunConfig, role: str, device: torch.device, share_with: ModelWrapper | None = None) -> ModelWrapper:
    pair, is_target = config.pair, role == "target"
    model_id = pair.target_model_id if is_target else pair.draft_model_id
    dtype = pair.target_dtype if is_target else pair.draft_dtype
    # A 4-bit draft of the very model it drafts for computes in the target's type: then they can share their tables.
    same_model = share_with is not None and pair.draft_model_id == pair.target_model_id
    expanded_to = (
        str(share_with.dtype).removeprefix("torch.") if same_model and share_with and dtype == "int4" else None
    )
    if config.random_weights:
        model = random_model(
            model_id, dtype, device, seed=config.seed, num_layers=config.scale_layers, expanded_to=expanded_to
        )
        tokenizer = random_tokenizer(model_id)
    else:
        model, tokenizer = loader.load_model(
            model_id,
            dtype,
            device,
            device_map=config.device_map,
            expanded_to=expanded_to,
            revision=config.revision if is_target or same_model else None,
            offline=config.offline,
            trust_remote_code=config.trust_remote_code,
        )
    if same_model and share_with is not None:
        loader.share_tables(model, share_with.model)
    return ModelWrapper(
        model,
        tokenizer,
        device,
        forward=config.forward,  # type: ignore[arg-type]  # RunConfig has checked it
        measure_linear=not config.deterministic,
        name=model_id,
    )


def vocabulary_verdict(
    pair: ModelPair,
    *,
    revision: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
    random_weights: bool = False,
) -> VocabularyVerdict:
    """Compare a pair's vocabularies before any weights are read: tokenizers and configurations are enough to know.

    ``revision`` is the target's.
    """
    sides = {"draft": (pair.draft_model_id, None), "target": (pair.target_model_id, revision)}
    tokenizers, rows = {}, {}
    for role, (model_id, commit) in sides.items():
        if random_weights:
            tokenizers[role], described = random_tokenizer(model_id), model_config(model_id)
        else:
            tokenizers[role] = loader.load_tokenizer(
                model_id, revision=commit, offline=offline, trust_remote_code=trust_remote_code
            )
            directory = hub.resolve(model_id, revision=commit, offline=offline, remote_code=trust_remote_code).directory
            described = checkpoint.read_config(directory, model_id)
        rows[role] = described.get("vocab_size") or len(tokenizers[role])
    verdict = compare_vocabularies(tokenizers["draft"], tokenizers["target"], rows["draft"], rows["target"])
    if random_weights and verdict.kind != "identical":
        return dataclasses.replace(verdict, reason=f"of stand-in tokenizers, {verdict.reason}")
    return verdict


def vocabulary_methods(config: RunConfig, verdict: VocabularyVerdict) -> tuple[str, ...]:
    """How the draft's tokens become the target's: nothing to do, one method, or several to choose from by trial.

    Raises:
        IncompatiblePairError: no method serves.
    """
    if config.vocab_method == "slem":
        return ("slem",)
    if verdict.kind in ("identical", "padding"):
        return ()
    # Text is matched greedily, and drafted without regard to how sure the draft is.
    text_serves = config.vocab_method == "auto" and config.temperature == 0 and not config.draft_threshold
    if verdict.kind == "overlapping":
        # Where nothing is drafted, or what is accepted means nothing, there is nothing to try.
        tells = config.longest_draft > 0 and not config.caveats
        return ("tli", "slem") if text_serves and tells else ("tli",)
    if verdict.kind == "unreadable" and text_serves:
        return ("slem",)
    raise incompatible_vocabularies(config.pair, verdict)


def incompatible_vocabularies(pair: ModelPair, verdict: VocabularyVerdict) -> IncompatiblePairError:
    without = "use --drafter ngram, which needs no second model"
    if verdict.kind == "unreadable":
        without = f"compare text (--vocab-method slem, at temperature 0, without a draft threshold); or {without}"
    return IncompatiblePairError(
        f"{pair.draft_model_id} can't draft for {pair.target_model_id}: {verdict.reason}", without
    )


def _notes(
    config: RunConfig,
    target: ModelWrapper,
    draft: ModelWrapper | None,
    verdict: VocabularyVerdict | None,
    engine: Engine,
) -> list[str]:
    notes = list(config.caveats)
    for wrapper in filter(None, (target, draft)):
        if wrapper.forward_name == "hf" and config.forward == "auto":
            notes.append(f"{wrapper.name}: Hugging Face's forward is used ({wrapper.why_not_own})")
        if wrapper.why_not_native is not None and engine.name == "eager" and wrapper.device.type == "cpu":
            notes.append(
                f"{wrapper.name}: the forward in C, the fastest on a CPU, is not used ({wrapper.why_not_native})"
            )
    if engine.why_not_graph is not None:
        notes.append(f"no CUDA graphs, rounds are launched operation by operation: {engine.why_not_graph}")
    if verdict is not None and verdict.kind not in ("identical", "padding"):
        notes.append(f"different vocabularies: {verdict.reason}")
    elif verdict is not None and config.vocab_method == "tli":
        notes.append("draft and target have one vocabulary: --vocab-method tli has nothing to do")
    fused = fused_int4_width(target.model)
    if fused is not None and config.longest_draft + 1 > fused:
        notes.append(
            f"{target.name}: the fused 4-bit kernel multiplies up to {fused} rows; verifying {config.longest_draft} "
            f"drafted tokens takes {config.longest_draft + 1}, and expands every weight: try --k {fused - 1}"
        )
    return notes
