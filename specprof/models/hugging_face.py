"""Hugging Face's own forward over our slab: for every model that ours is not for."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from specprof.models.kv_cache import KVCache, Slab
from specprof.models.transformer import greedily


class HFForward:
    """Hugging Face's own forward over our slab."""

    name = "hf"

    def __init__(self, model: Any) -> None:
        self.model = model
        parameters = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in parameters
        self.keeps_logits = "logits_to_keep" in parameters

    def new_slab(self, capacity: int) -> Slab:
        return Slab(self.model.config.num_hidden_layers, capacity)

    def __call__(self, ids: Tensor, cache: KVCache, num_logits: int) -> Tensor:
        start, end = cache.length, cache.length + ids.shape[0]
        extra: dict[str, Any] = {}
        if self.takes_positions:
            extra["position_ids"] = torch.arange(start, end, device=ids.device)[None]
        if self.keeps_logits:
            extra["logits_to_keep"] = num_logits
        output = self.model(input_ids=ids[None], past_key_values=SlabCache(cache), use_cache=True, **extra)
        cache.length = end
        logits: Tensor = output.logits
        return logits[0, -num_logits:]

    def greedy(self, ids: Tensor, cache: KVCache, steps: int) -> tuple[Tensor, Tensor]:
        return greedily(self, ids, cache, steps)


class SlabLayer(CacheLayerMixin):
    """One layer of a :class:`SlabCache`: writes in place, returns views, never concatenates."""

    # Views end where the sequence ends, so a single query row needs no mask: not a static cache.
    is_compileable = False
    is_sliding = False
    is_croppable = True

    def __init__(self, owner: KVCache, layer: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owner, self.layer = owner, layer
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.owner.slab.allocate(self.layer, key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        slab, start = self.owner.slab, self.owner.length
        end = start + key_states.shape[2]
        if slab.keys[self.layer] is None:
            self.lazy_initialization(key_states, value_states)
        keys, values = slab.keys[self.layer], slab.values[self.layer]
        assert keys is not None and values is not None
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.owner.length

    def get_max_length(self) -> int:
        return self.owner.capacity


class SlabCache(Cache):
    """Shows a :class:`KVCache` to Hugging Face's attention layers."""

    def __init__(self, cache: KVCache) -> None:
        super().__init__(layers=[SlabLayer(cache, layer) for layer in range(len(cache))])
