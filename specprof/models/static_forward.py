"""Our own forward with its place in the sequence on the device: the same operations whatever was decoded.

Where the tokens of a pass stand is a tensor, every shape is fixed, and nothing asks the device for a number. Such a
pass can be captured into a CUDA graph and replayed, and compiled; eager, it gives what the usual forward gives, up
to the rounding of attention over a longer slab.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from specprof.errors import ResourceError
from specprof.models.attention_choice import AttentionChoice
from specprof.models.kv_cache import Slab
from specprof.models.rows import LayerViews
from specprof.models.slab_attention import SlabAttention, SlabRows
from specprof.models.transformer import OwnForward

Entries: TypeAlias = Sequence[tuple[Tensor, Tensor]]

_ATTENTION = AttentionChoice()
"""One for all: rounds of one shape then attend by one function, whichever decoder they are of."""
_MOST_SHAPES = 256
"""Passes to compile of one model, by width and slab length; PyTorch would give up after 8."""


def attention_chosen() -> dict[str, str]:
    """What static passes attend with, by shape in words, where there was a choice."""
    return _ATTENTION.chosen()


class FixedRows:
    """Tokens at positions that only the device knows, over the first ``bucket`` entries of a slab.

    Args:
        positions: ``[width]`` int64, consecutive and less than ``bucket``.
        entries: keys and values of each layer, ``[kv_heads, capacity, head_dim]``.
        bucket: entries attended; those after a row's own position are hidden from it.
        attention: what to attend with.
    """

    def __init__(self, positions: Tensor, entries: Entries, bucket: int, attention: SlabAttention) -> None:
        self.width, self.end = positions.shape[0], bucket
        self._positions, self._entries, self._attention = positions, entries, attention
        self._slab_rows = SlabRows(positions, bucket, entries[0][0].dtype)

    def of(self, table: Tensor) -> Tensor:
        positions = self._positions
        if self.end > table.shape[0]:  # rows beyond the context are never looked at, but the table has to be read
            positions = positions.clamp_max(table.shape[0] - 1)
        return table.index_select(0, positions)

    def views(self, slab: Slab, first: int, last: int) -> Iterable[LayerViews]:
        for keys, values in self._entries[first:last]:
            if self.end < keys.shape[1]:
                keys, values = keys[:, : self.end], values[:, : self.end]
            yield keys, values, keys, values

    def write(self, place: Tensor, new: Tensor) -> Tensor:
        return place.index_copy_(1, self._positions, new)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float) -> Tensor:
        return self._attention(q, k, v, self._slab_rows, window, scale)


class StaticForward:
    """Runs an :class:`~specprof.models.transformer.OwnForward` at positions that are on the device.

    Args:
        own: whose weights and layers these are.
        attention: what to attend with; by default what is fastest.
        compile: fuse each pass with ``torch.compile``, once per width and slab length, on its second use.
    """

    def __init__(self, own: OwnForward, attention: SlabAttention | None = None, *, compile: bool = False) -> None:
        self.own = own
        self.attention = attention or _ATTENTION
        self._compiled: Callable[[Tensor, Tensor, Slab, Entries, int, int], Tensor] | None = None
        if compile:
            self._compiled = torch.compile(self._run, fullgraph=True, dynamic=False)
            self._limit = torch._dynamo.config.patch(recompile_limit=_MOST_SHAPES)
        self._met: set[tuple[int, int, int, int]] = set()
        self._entries: WeakKeyDictionary[Slab, Entries] = WeakKeyDictionary()

    def new_slab(self, capacity: int) -> Slab:
        return self.own.new_slab(capacity)

    def __call__(
        self, ids: Tensor, positions: Tensor, slab: Slab, bucket: int, num_logits: int | None = None
    ) -> Tensor:
        """Write the keys and values of ``ids`` into the slab, and read the head.

        Args:
            ids: ``[q]`` int64, on the device.
            positions: ``[q]`` int64, on the device: consecutive, less than ``bucket``. What they are is not checked.
            slab: of :meth:`new_slab`, or of the usual forward.
            bucket: entries of the slab to attend, at most its capacity.
            num_logits: how many of the last positions; None: all.

        Returns:
            logits ``[num_logits, vocab]``

        Raises:
            ResourceError: compiling it failed.
        """
        entries = self._entries.get(slab)
        if entries is None:
            entries = self._entries[slab] = _entries_of(slab)
        wanted = ids.shape[0] if num_logits is None else num_logits
        if self._compiled is None:
            return self._run(ids, positions, slab, entries, bucket, wanted)
        shape = (ids.shape[0], slab.capacity, bucket, wanted)
        if shape not in self._met:
            self._met.add(shape)
            # Choices that are made by measuring are made here, where nothing is traced.
            return self._run(ids, positions, slab, entries, bucket, wanted)
        try:
            with self._limit:
                return self._compiled(ids, positions, slab, entries, bucket, wanted)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
            raise ResourceError(f"a pass can't be compiled: {reason}", "leave out --compile") from error

    def _run(
        self, ids: Tensor, positions: Tensor, slab: Slab, entries: Entries, bucket: int, num_logits: int
    ) -> Tensor:
        return self.own.at(ids, FixedRows(positions, entries, bucket, self.attention), slab, num_logits)


def _entries_of(slab: Slab) -> Entries:
    """Keys and values of each layer as tensors that know nothing of each other.

    As views of one tensor they would have the compiler copy all of it for every entry that is written.
    """
    keys, values = ([from_dlpack(t[0]) for t in side if t is not None] for side in (slab.keys, slab.values))
    return list(zip(keys, values, strict=True))
