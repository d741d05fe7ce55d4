"""Keys and values of one sequence in a preallocated slab.

Every layer owns one slab ``[1, num_kv_heads, capacity, head_dim]`` for keys and one for
values, filled up to ``length``. Rolling back rejected draft tokens changes that integer:
entries beyond it are never attended and are overwritten by the next pass, so the cost
does not depend on the context, and nothing is ever concatenated or copied.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import torch
from torch import Tensor


class Slab:
    """The storage behind one or more :class:`KVCache` handles.

    ``keys[i]`` and ``values[i]`` are ``[1, num_kv_heads, capacity, head_dim]``. With
    ``stacked`` they are views of one ``[2, num_layers, num_kv_heads, capacity, head_dim]``
    tensor, which our own forward slices for all layers at once.
    """

    def __init__(self, num_layers: int, capacity: int) -> None:
        self.num_layers = num_layers
        self.capacity = capacity
        self.stacked: Tensor | None = None
        self.keys: list[Tensor | None] = [None] * num_layers
        self.values: list[Tensor | None] = [None] * num_layers
        self.handles: weakref.WeakSet[KVCache] = weakref.WeakSet()

    @classmethod
    def uniform(
        cls,
        num_layers: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Slab:
        """A slab whose layers have one shape, allocated now."""
        slab = cls(num_layers, capacity)
        # zeros, not empty: a mask adds to scores, and 0 * NaN of a stale entry would still be NaN
        slab._adopt(torch.zeros(2, num_layers, num_kv_heads, capacity, head_dim, dtype=dtype, device=device))
        return slab

    def _adopt(self, stacked: Tensor) -> None:
        self.stacked = stacked
        self.keys = list(stacked[0].unsqueeze(1).unbind(0))
        self.values = list(stacked[1].unsqueeze(1).unbind(0))

    def allocate(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Allocate one layer in the shape of the first keys and values ``[1, heads, tokens, head_dim]`` it receives."""

        def zeros(like: Tensor) -> Tensor:
            return like.new_zeros(like.shape[0], like.shape[1], self.capacity, like.shape[3])

        self.keys[layer], self.values[layer] = zeros(keys), zeros(values)

    def copy(self, length: int, capacity: int) -> Slab:
        """A slab of another capacity holding the first ``length`` entries of this one."""
        other = Slab(self.num_layers, capacity)
        if self.stacked is not None:
            two, layers, heads, _, dim = self.stacked.shape
            other._adopt(self.stacked.new_zeros(two, layers, heads, capacity, dim))
            assert other.stacked is not None
            other.stacked[:, :, :, :length] = self.stacked[:, :, :, :length]
            return other
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            if keys is None or values is None:
                continue
            other.allocate(layer, keys, values)
            other.keys[layer][:, :, :length] = keys[:, :, :length]  # type: ignore[index]
            other.values[layer][:, :, :length] = values[:, :, :length]  # type: ignore[index]
        return other

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values) if t is not None)


class KVCache:
    """A handle on a slab: the sequence's entries are the first ``length``.

    ``cache[i]`` is layer i's ``(keys, values)``, each ``[1, num_kv_heads, length, head_dim]``,
    as views.
    """

    def __init__(self, slab: Slab, length: int = 0) -> None:
        self.slab = slab
        self.length = length
        slab.handles.add(self)

    @property
    def capacity(self) -> int:
        return self.slab.capacity

    def truncate(self, length: int) -> None:
        """Roll back to the first ``length`` entries."""
        if not 0 <= length <= self.length:
            raise ValueError(f"can't truncate a cache of {self.length} entries to {length}")
        self.length = length

    def extended(self, num_tokens: int) -> KVCache:
        """A handle of the same length with room for ``num_tokens`` more, this one left as it is.

        Shares the slab unless that would overwrite entries that a longer handle, still
        alive, can see, or the slab is full; then the entries are copied once.
        """
        needed = self.length + num_tokens
        seen_by_longer = any(h is not self and h.length > self.length for h in list(self.slab.handles))
        if needed <= self.capacity and not seen_by_longer:
            return KVCache(self.slab, self.length)
        return KVCache(self.slab.copy(self.length, max(self.capacity, 2 * needed)), self.length)

    def __len__(self) -> int:
        return self.slab.num_layers

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        keys, values = self.slab.keys[layer], self.slab.values[layer]
        if keys is None or values is None:
            raise IndexError(f"layer {layer} holds nothing yet")
        return keys[:, :, : self.length], values[:, :, : self.length]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[layer] for layer in range(len(self)))

    def __repr__(self) -> str:
        return f"KVCache(layers={len(self)}, length={self.length}, capacity={self.capacity})"
