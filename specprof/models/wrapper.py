"""One interface over our own forward and any Hugging Face causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from specprof.errors import CorrectnessError, UnavailableError, UsageError
from specprof.models import transformer
from specprof.models.footprint import memory_footprint_bytes, parameter_count
from specprof.models.hugging_face import HFForward
from specprof.models.kv_cache import KVCache
from specprof.models.native.forward import NativeForward, native_forward
from specprof.models.scores import are_numbers, scores_of

ForwardName = Literal["auto", "native", "own", "hf"]


class ModelWrapper:
    """A model, its tokenizer, and what decoding needs of them.

    Two ways in. :meth:`forward` takes and returns caches and leaves the caller's as they
    were, which is what one explores with. :meth:`extend` appends to a cache in place, which
    is what the decoding loops call.

    Args:
        model: a Hugging Face causal LM.
        tokenizer: its tokenizer, or None if text is not needed.
        device: where the model is; by default wherever its weights are. Of a model that is spread over several
            (:func:`specprof.models.loader.load_model`) where tokens come from and logits go to.
        forward: ``native`` (our forward in C: float32 on a CPU with a C compiler), ``own`` (our forward in PyTorch),
            ``hf`` (Hugging Face's) or ``auto``, the first of these that can.
        measure_linear: see :class:`specprof.models.linear.LinearChoice`.
        name: what to call it; by default the id or directory it was loaded from.

    Raises:
        UsageError: ``native`` or ``own`` was asked of a model it can't run.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        device: torch.device | str | None = None,
        *,
        forward: ForwardName = "auto",
        measure_linear: bool = True,
        name: str | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = torch.device(device) if device is not None else _device_of(model)
        self.why_not_own = transformer.unsupported(model)
        self.why_not_native: str | None = None
        """Where our own forward was chosen, why not the one in C."""
        self.max_context = _max_context(model.config)
        self.name = name or str(getattr(model, "name_or_path", "") or model.config.model_type)
        self._forward = self._choose(forward, measure_linear)

    def _choose(self, forward: ForwardName, measure_linear: bool) -> transformer.Forward:
        if forward in ("native", "own") and self.why_not_own is not None:
            raise UsageError(f"our own forward can't run {self.name}: {self.why_not_own}", "use --forward auto or hf")
        if forward == "hf" or self.why_not_own is not None:
            return HFForward(self.model)
        own = transformer.own_forward(self.model, measure_linear=measure_linear)
        if forward == "own":
            return own
        native = native_forward(own)
        if not isinstance(native, str):
            return native
        if forward == "native":
            raise UsageError(f"the forward in C can't run {self.name}: {native}", "use --forward auto or own")
        self.why_not_native = native
        return own

    # --- for the decoding loops

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache with room for ``capacity`` tokens.

        Raises:
            UsageError: more than the model's context.
        """
        self.check_context(capacity)
        return KVCache(self._forward.new_slab(capacity))

    @torch.inference_mode()
    def extend(
        self, ids: Tensor, cache: KVCache, num_logits: int = 1, early: transformer.EarlyStates | None = None
    ) -> Tensor:
        """Append ``ids [q]`` to ``cache`` in place; logits ``[num_logits, vocab]`` after the last of them.

        Args:
            ids: tokens that follow the ``cache.length`` first entries.
            cache: of :meth:`new_cache`.
            num_logits: how many of the last positions.
            early: what :meth:`extend_early` made of the first m < q of ``ids`` at these positions, so that they go
                through the rest of the layers only. The cache is rolled back to before them first.

        Raises:
            UsageError: they don't fit the cache; ``early`` without our own forward, or of an impossible depth.
        """
        _check_room(ids.shape[0], cache)
        if early is None:
            return self._forward(ids, cache, num_logits)
        self.check_depth(early.depth)
        if early.hidden.shape[0] >= ids.shape[0]:
            raise ValueError(f"of {ids.shape[0]} tokens at most {ids.shape[0] - 1} can be through the first layers")
        return self._layered()(ids, cache, num_logits, early)

    @torch.inference_mode()
    def extend_greedily(self, ids: Tensor, cache: KVCache, steps: int) -> tuple[Tensor, Tensor]:
        """Append ``ids [q]``, then the likeliest token after them, and so on: ``steps >= 1`` choices ``[steps]``, and
        the logit of each.

        The last of them is not appended.

        Raises:
            UsageError: they don't fit the cache.
        """
        _check_room(ids.shape[0] + steps - 1, cache)
        return self._forward.greedy(ids, cache, steps)

    def gives_laws(self, width: int) -> bool:
        """Whether :meth:`extend_with_laws` can be called with ``width`` tokens: it is the forward in C's alone."""
        native = self._native()
        return native is not None and native.drafts(width)

    @torch.inference_mode()
    def extend_with_laws(
        self, ids: Tensor, cache: KVCache, steps: int, temperature: float = 1.0, uniforms: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`extend_greedily`, with the laws that each token was chosen from.

        Args:
            ids: tokens that follow the ``cache.length`` first entries.
            cache: of :meth:`new_cache`.
            steps: how many tokens to choose, at least 1.
            temperature: of the laws, above 0.
            uniforms: ``[steps]``, float64: the share of its law's mass that each token is drawn by. None chooses the
                likeliest.

        Returns:
            tokens ``[steps]``; of each that was drawn its probability, of each that was not its logit; and the laws
            ``[steps, vocab]``.

        Raises:
            UsageError: they don't fit the cache.
        """
        _check_room(ids.shape[0] + steps - 1, cache)
        native = self._native()
        assert native is not None, "gives_laws() says whether"
        return native.with_laws(ids, cache, steps, temperature, uniforms)

    def _native(self) -> NativeForward | None:
        return self._forward if isinstance(self._forward, NativeForward) else None

    @torch.inference_mode()
    def extend_early(self, ids: Tensor, cache: KVCache, depth: int) -> tuple[Tensor, Tensor]:
        """Append ``ids [q]`` to the first ``depth`` layers of ``cache`` in place, and read the head there.

        Returns:
            logits ``[1, vocab]`` after the last token, and the residual stream ``[q, hidden]`` after those layers.

        Raises:
            UsageError: they don't fit the cache; not our own forward; no such depth.
        """
        _check_room(ids.shape[0], cache)
        self.check_depth(depth)
        return self._layered().early(ids, cache, depth)

    def check_depth(self, depth: int) -> None:
        """Raise UsageError if this model can't draft for itself with its first ``depth`` layers."""
        self._layered()
        if self.num_layers < 2:
            raise UsageError(f"{self.name} has a single layer: there is none to skip", "use another drafter")
        if not 1 <= depth < self.num_layers:
            raise UsageError(
                f"{self.name} has {self.num_layers} layers: {depth} of them can't draft for all",
                f"draft with 1 to {self.num_layers - 1} layers",
            )

    def _layered(self) -> transformer.OwnForward:
        """Our own forward, the one that can be left early."""
        if isinstance(self._forward, transformer.OwnForward):
            return self._forward
        if self.why_not_own is not None:
            raise UsageError(f"layer skip needs our own forward, but {self.why_not_own}", "use another drafter")
        raise UsageError("layer skip needs our own forward, but Hugging Face's was asked for", "use --forward auto")

    def check_context(self, num_tokens: int) -> None:
        """Raise UsageError if the model's positions end before ``num_tokens``."""
        if self.max_context is not None and num_tokens > self.max_context:
            raise UsageError(
                f"{num_tokens} tokens are more than the context of {self.max_context} that {self.name} was made for",
                "shorten the prompt or lower --max-new-tokens",
            )

    def check_tokens(self, ids: Sequence[int]) -> None:
        """Raise UnavailableError if a token that the tokenizer made is none of this model's."""
        largest = max(ids, default=0)
        if largest >= self.vocab_size:
            raise UnavailableError(
                f"the tokenizer of {self.name} is another model's: it makes token {largest}, "
                f"and the model has {self.vocab_size}",
                "use the tokenizer that belongs to these weights",
            )

    def check_numbers(self) -> None:
        """Run one token; raise CorrectnessError if the logits are not numbers (broken weights, an overflow)."""
        logits, _ = self.forward(torch.zeros(1, 1, dtype=torch.long))
        if not are_numbers(scores_of(logits[0], logits[0].argmax(-1)).tolist()):
            raise self.no_numbers("at its first token")

    def no_numbers(self, where: str) -> CorrectnessError:
        """What to raise where its logits are not numbers."""
        dtype = str(self.dtype).removeprefix("torch.")
        again = "the weights are broken: fetch them again, or check what made them"
        if dtype != "float32":
            again = f"{dtype} may be too narrow for it: try --dtype float32 or bfloat16; else {again}"
        return CorrectnessError(f"{self.name} computes no numbers (NaN or infinity) in {dtype}, {where}", again)

    # --- for exploring

    @torch.inference_mode()
    def forward(
        self, input_ids: Tensor, past_key_values: KVCache | None = None, use_cache: bool = True
    ) -> tuple[Tensor, KVCache | None]:
        """Logits of every input position, and the cache that now includes them.

        Args:
            input_ids: ``[1, q]``.
            past_key_values: what came before; it keeps its length and contents.
            use_cache: False returns None in the cache's place.

        Returns:
            logits ``[1, q, vocab]`` and the cache.
        """
        if input_ids.dim() != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] == 0:
            raise ValueError(f"input_ids must be [1, q] with q >= 1, not {list(input_ids.shape)}")
        width = input_ids.shape[1]
        past = past_key_values if past_key_values is not None else KVCache(self._forward.new_slab(max(64, 2 * width)))
        self.check_context(past.length + width)
        cache = past.extended(width)
        logits = self.extend(input_ids[0].to(self.device), cache, width)
        return logits.unsqueeze(0), cache if use_cache else None

    def truncate_cache(self, cache: KVCache, keep_length: int) -> KVCache:
        """A cache of the first ``keep_length`` entries; ``cache`` itself keeps its length. Copies nothing."""
        rolled_back = KVCache(cache.slab, cache.length)
        rolled_back.truncate(keep_length)
        return rolled_back

    def get_cache_length(self, cache: KVCache | None) -> int:
        return 0 if cache is None else cache.length

    def reset_cache(self) -> None:
        """What ``past_key_values`` starts from: no cache at all."""
        return

    # --- facts

    @property
    def forward_name(self) -> str:
        """``native``, ``own`` or ``hf``: whose forward runs."""
        return self._forward.name

    @property
    def own_forward(self) -> transformer.OwnForward | None:
        """Our forward in PyTorch's operations, which the one in C stands on too; None where there is none."""
        return self._forward.in_pytorch if isinstance(self._forward, transformer.OwnForward) else None

    @property
    def linear_forms(self) -> dict[int, str]:
        """The matrix product chosen for each width so far (own forward, CPU)."""
        choice = getattr(self._forward, "linear", None)
        return {} if choice is None else choice.chosen()

    @property
    def vocab_size(self) -> int:
        """Rows of the output head, padding rows included."""
        return int(self.model.config.vocab_size)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def num_layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def param_count(self) -> int:
        return parameter_count(self.model)

    @property
    def memory_footprint_mb(self) -> float:
        """Weights and buffers in MB (2^20 bytes), shared storage counted once."""
        return memory_footprint_bytes(self.model) / 2**20

    @property
    def packed_bytes(self) -> int:
        """Of the second copy of the weights that the forward in C keeps; 0 without it."""
        return getattr(self._forward, "packed_bytes", 0)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Every token that ends a text: what the generation config, the config and the tokenizer name."""
        found: set[int] = set()
        for owner in (getattr(self.model, "generation_config", None), self.model.config, self.tokenizer):
            value = getattr(owner, "eos_token_id", None)
            if value is not None:
                found.update(value if isinstance(value, (list, tuple)) else [value])
        return frozenset(found)

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's end-of-sequence token, else the smallest the model names."""
        own = getattr(self.tokenizer, "eos_token_id", None)
        return own if own is not None else min(self.eos_token_ids, default=None)

    def __repr__(self) -> str:
        return (
            f"ModelWrapper({self.name}, {self.param_count / 1e6:.1f}M parameters, "
            f"{self.memory_footprint_mb:.0f} MB, {self.device}, forward={self.forward_name})"
        )


def _check_room(num_tokens: int, cache: KVCache) -> None:
    if cache.length + num_tokens > cache.capacity:
        raise UsageError(
            f"{cache.length} + {num_tokens} tokens don't fit a cache of {cache.capacity}",
            "create the cache with new_cache(capacity) for the whole generation",
        )


def _device_of(model: Any) -> torch.device:
    hook = getattr(model, "_hf_hook", None)  # of a model that accelerate has spread: some weights may be placeholders
    return next(model.parameters()).device if hook is None else torch.device(hook.execution_device)


def _max_context(config: Any) -> int | None:
    for key in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
        value = getattr(config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
