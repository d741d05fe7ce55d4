"""Our forward as one call into C: a model in float32 on a CPU.

Between two products of a small model PyTorch spends more time on finding the next operation than on the
product. ``forward.c`` runs all layers in one call, and reads weights in 16 bits where the checkpoint had no
more: the same numbers, half the bytes. Long prompts are PyTorch's, which multiplies many rows well.

The logits of a token depend on neither the tokens beside it in a pass nor the number of threads: speculative
and plain decoding see the same bits.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Sequence
from time import perf_counter

import torch
from torch import Tensor

from specprof.models.kv_cache import KVCache, Slab
from specprof.models.linear import Matrix
from specprof.models.native.library import Library, library
from specprof.models.rows import NextRows, Rows
from specprof.models.transformer import EarlyStates, GPT2Forward, GPT2Layer, LlamaForward, LlamaLayer, OwnForward

_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ENDLESS = 2**31 - 1
"""Positions, where no table of them ends."""
_UNKNOWN_TOKEN = 1
"""What ``forward.c`` returns; 0 if all went well."""
_LONGEST = 512
"""Tokens to a call: from here on the two are equally fast, and other machines' libraries may be faster."""
_SAME = 1e-3
"""Of the largest logit: more than rounding makes of two orders of summation, less than any mistake."""
_SAMPLE = 17
"""Tokens: more than a matrix product is measured for, so that comparing chooses nothing."""
_ALONE = 256 << 20
"""Bytes of weights in float32 from which one thread in C is no match for several in PyTorch."""
_TRIES = 10
_SURE = 2e-3
"""Seconds of a pass from which more threads are faster, without trying."""


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int32),
        ("cols", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("packed", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("norm1", "norm1_bias", "norm2", "norm2_bias", "q_norm", "k_norm")),
        *((name, _Matrix) for name in ("qkv", "out", "up", "down")),
        ("window", ctypes.c_int32),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in (
                *("gpt2", "num_layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab"),
                "context",
            )
        ),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("embedding", "positions", "norm", "norm_bias")),
        ("layers", ctypes.POINTER(_Layer)),
        ("head", _Matrix),
        *((name, ctypes.c_void_p) for name in ("x", "qkv", "attended", "inner", "scratch")),
        ("scores_floats", ctypes.c_int64),
        ("num_threads", ctypes.c_int32),
    )


def native_forward(own: OwnForward) -> NativeForward | str:
    """The same model run in C, or why it can't be."""
    why = unsupported(own)
    if why is not None:
        return why
    found = library()
    if isinstance(found, str):
        return found
    why = _misfit(own, found)
    if why is not None:
        return why
    assert isinstance(own, LlamaForward | GPT2Forward)
    native = NativeForward(own, found)
    # Somebody's compiler made it, and it has never run on this machine.
    return native if native.agrees() else "the compiled code computes other numbers than PyTorch"


def unsupported(own: OwnForward) -> str | None:
    """Why this model is not one for C, whatever the machine has; None if it is."""
    if own.embedding.device.type != "cpu":
        return "the model is not on the CPU"
    if not own.layers:
        return "it has no layers"
    matrices = _all_matrices(own)
    if not isinstance(own, LlamaForward | GPT2Forward) or not all(isinstance(m, Tensor) for m in matrices):
        return "the weights are quantised"
    other = next((m.dtype for m in (own.embedding, *matrices) if m.dtype != torch.float32), None)
    if other is not None:
        return f"it computes in float32, and the weights are {str(other).removeprefix('torch.')}"
    return None


def _misfit(own: OwnForward, found: Library) -> str | None:
    hidden, inner = own.embedding.shape[1], own.layers[0].down.shape[1]
    for what, size in (("head", own.head_dim), ("hidden", hidden), ("intermediate", inner)):
        if size % found.lanes:
            return f"the {what} size {size} is not a multiple of {found.lanes}"
    import psutil

    size = sum(m.nbytes for m in _all_matrices(own))
    if not found.threaded and size > _ALONE and torch.get_num_threads() > 1:
        return "the C compiler has no OpenMP, and PyTorch's operations have several threads"
    if size > psutil.virtual_memory().available / 2:
        return "there is not enough memory for a second copy of the weights"
    return None


def _all_matrices(own: OwnForward) -> list[Tensor]:
    return [own.head, *(matrix for layer in own.layers for matrix in _matrices(layer))]  # type: ignore[list-item]  # or refused


def _matrices(layer: LlamaLayer | GPT2Layer) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    return layer.qkv, layer.out, layer.up if isinstance(layer, GPT2Layer) else layer.gate_up, layer.down


def _plain(ids: Tensor) -> Tensor:
    """As ``forward.c`` reads them."""
    return ids if ids.dtype == torch.long and ids.is_contiguous() else ids.long().contiguous()


def narrowest(weight: Tensor) -> torch.dtype:
    """The smallest type that holds every number of a float32 tensor as it is."""
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(weight.to(dtype).float(), weight):
            return dtype
    return torch.float32


class NativeForward(OwnForward):
    """:class:`LlamaForward` or :class:`GPT2Forward` in C.

    Keeps a second copy of the weights, laid out for it, beside those of ``own``, which runs the long passes:
    what is changed in those later, it doesn't see. Passes work in buffers of the model's, one at a time.
    """

    name = "native"

    def __init__(self, own: LlamaForward | GPT2Forward, found: Library) -> None:
        self.own = own
        self.embedding, self.head, self.linear = own.embedding, own.head, own.linear
        self.heads, self.kv_heads, self.head_dim = own.heads, own.kv_heads, own.head_dim
        self.layers: Sequence[LlamaLayer | GPT2Layer] = own.layers
        self.vocab, hidden = own.embedding.shape
        self._library = found
        self._held: list[object] = []
        self._packed: list[Tensor] = []
        self._capacity, self._most_threads = 0, 0
        self._threads: dict[int, int] = {}
        self._turn = threading.RLock()

        inner = self.layers[0].down.shape[1]  # type: ignore[union-attr]  # dense: unsupported() has looked
        both = inner if isinstance(own, GPT2Forward) else 2 * inner
        widths = (hidden, (self.heads + 2 * self.kv_heads) * self.head_dim, self.heads * self.head_dim, both)
        self._states, *others = (torch.zeros(found.max_width, width) for width in widths)
        layers = (_Layer * len(self.layers))(*map(self._layer, self.layers))
        self._held += (layers, *others)
        norm, norm_bias = own.norm if isinstance(own, GPT2Forward) else (own.norm, None)
        self._model = _Model(
            gpt2=isinstance(own, GPT2Forward),
            num_layers=len(layers),
            hidden=hidden,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            intermediate=inner,
            vocab=self.vocab,
            context=own.positions.shape[0] if isinstance(own, GPT2Forward) else _ENDLESS,
            eps=own.eps,
            scale=own.scale,
            embedding=self._at(own.embedding),
            positions=self._at(own.positions) if isinstance(own, GPT2Forward) else None,
            norm=self._at(norm),
            norm_bias=self._at(norm_bias),
            layers=layers,
            head=self._matrix(own.head, None),
            x=self._states.data_ptr(),
            qkv=others[0].data_ptr(),
            attended=others[1].data_ptr(),
            inner=others[2].data_ptr(),
        )

    def _layer(self, layer: LlamaLayer | GPT2Layer) -> _Layer:
        norms: tuple[Tensor | None, ...]
        if isinstance(layer, GPT2Layer):
            norms, window = (*layer.norm1, *layer.norm2, None, None), 0
            biases = (layer.qkv_bias, layer.out_bias, layer.up_bias, layer.down_bias)
        else:
            norms = (layer.input_norm, None, layer.post_norm, None, layer.q_norm, layer.k_norm)
            window = layer.window or 0
            biases = (layer.qkv_bias, layer.out_bias, layer.gate_up_bias, layer.down_bias)
        return _Layer(*map(self._at, norms), *map(self._matrix, _matrices(layer), biases), window)

    def _at(self, values: Tensor | None) -> int | None:
        """Where they lie, kept alive."""
        if values is None:
            return None
        self._held.append(values := values.contiguous())
        return values.data_ptr()

    def _matrix(self, weight: Matrix, bias: Tensor | None) -> _Matrix:
        assert isinstance(weight, Tensor)
        dtype = narrowest(weight)
        if dtype == torch.float16 and not self._library.reads_float16:
            dtype = torch.float32
        lanes, (rows, cols) = self._library.lanes, weight.shape
        blocks = -(-rows // lanes)
        packed = torch.zeros(blocks, cols, lanes, dtype=dtype)
        whole = rows // lanes
        packed[:whole] = weight[: whole * lanes].view(whole, lanes, cols).transpose(1, 2)
        if whole < blocks:  # of a vocabulary only
            packed[whole, :, : rows - whole * lanes] = weight[whole * lanes :].t()
        self._packed.append(packed)
        return _Matrix(blocks * lanes, cols, _KINDS[dtype], packed.data_ptr(), self._at(bias))

    @property
    def in_pytorch(self) -> OwnForward:
        return self.own

    def new_slab(self, capacity: int) -> Slab:
        return self.own.new_slab(capacity)

    def __call__(self, ids: Tensor, cache: KVCache, num_logits: int, early: EarlyStates | None = None) -> Tensor:
        if early is not None:
            return super().__call__(ids, cache, num_logits, early)
        width = ids.shape[0]
        if not 0 < width <= _LONGEST:
            return self.own(ids, cache, num_logits)
        ids = _plain(ids)
        logits = torch.empty(min(num_logits, width), self._model.head.rows)
        unread = width - logits.shape[0]  # tokens before the first whose logits are wanted
        for first in range(0, width, self._library.max_width):
            part = ids[first : first + self._library.max_width]
            wanted = logits[max(0, first - unread) : max(0, first - unread + part.shape[0])]
            self._append(part, cache, wanted if len(wanted) else None)
        return logits[:, : self.vocab]

    def _append(self, ids: Tensor, cache: KVCache, logits: Tensor | None) -> None:
        width = ids.shape[0]
        threads = self._threads.get(width)
        if threads is None:
            threads = self._threads[width] = self._fastest(ids, cache, logits)
        self._pass(ids, width, cache.slab, cache.length, 0, len(self.layers), logits, threads)
        cache.length += width

    def greedy(self, ids: Tensor, cache: KVCache, steps: int) -> tuple[Tensor, Tensor]:
        if not self.drafts(ids.shape[0]):
            return super().greedy(ids, cache, steps)
        return self._draft(ids, cache, steps)

    def with_laws(
        self, ids: Tensor, cache: KVCache, steps: int, temperature: float, uniforms: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """:meth:`~specprof.models.wrapper.ModelWrapper.extend_with_laws`, where :meth:`drafts` allows the width."""
        if uniforms is not None and (
            uniforms.dtype != torch.float64 or not uniforms.is_contiguous() or len(uniforms) != steps
        ):
            raise ValueError(f"{steps} numbers to draw by are [{steps}] in float64, one beside the other")
        laws = torch.empty(steps, self.vocab)
        return *self._draft(ids, cache, steps, temperature, uniforms, laws), laws

    def drafts(self, width: int) -> bool:
        """Whether several steps can be taken in one call after ``width`` tokens."""
        return width <= self._library.max_width and 1 in self._threads

    def _draft(
        self,
        ids: Tensor,
        cache: KVCache,
        steps: int,
        temperature: float = 1.0,
        uniforms: Tensor | None = None,
        laws: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``native_draft`` of forward.c."""
        width = ids.shape[0]
        ids = _plain(ids)
        start, slab = cache.length, cache.slab
        chosen, scores = torch.empty(steps, dtype=torch.long), torch.empty(steps)
        logits = torch.empty(self._model.head.rows)
        assert slab.stacked is not None
        with self._turn:
            self._prepare(slab, self._threads[1])
            cos, sin = self._rope(start, start + width + steps - 1)
            problem = self._library.draft(
                ctypes.addressof(self._model),
                ids.data_ptr(),
                width,
                start,
                slab.stacked.data_ptr(),
                slab.capacity,
                cos,
                sin,
                logits.data_ptr(),
                steps,
                chosen.data_ptr(),
                scores.data_ptr(),
                temperature,
                None if uniforms is None else uniforms.data_ptr(),
                None if laws is None else laws.data_ptr(),
            )
            self._check(problem, ids, slab)
        cache.length = start + width + steps - 1
        return chosen, scores

    def at(self, ids: Tensor, rows: Rows, slab: Slab, num_logits: int) -> Tensor:
        return self.own.at(ids, rows, slab, num_logits)

    def _embed(self, ids: Tensor, rows: Rows) -> Tensor:
        return self.own._embed(ids, rows)

    def _norm(self, x: Tensor) -> Tensor:
        return self.own._norm(x)

    def _run(self, x: Tensor, slab: Slab, rows: Rows, first: int, last: int) -> Tensor:
        if x.shape[0] > self._library.max_width or not isinstance(rows, NextRows):
            return self.own._run(x, slab, rows, first, last)
        states = self._states[: x.shape[0]]
        with self._turn:
            states.copy_(x)
            self._pass(None, x.shape[0], slab, rows.start, first, last, None, torch.get_num_threads())
            return states.clone()

    def _logits(self, x: Tensor) -> Tensor:
        if x.shape[0] > self._library.max_width:
            return self.own._logits(x)
        logits = torch.empty(x.shape[0], self._model.head.rows)
        with self._turn:
            self._states[: x.shape[0]].copy_(x)
            self._pass(None, x.shape[0], None, 0, 0, 0, logits, torch.get_num_threads())
        return logits[:, : self.vocab]

    def _pass(
        self,
        ids: Tensor | None,
        width: int,
        slab: Slab | None,
        start: int,
        first: int,
        last: int,
        logits: Tensor | None,
        threads: int,
    ) -> None:
        """``native_forward`` of forward.c."""
        entries = None if slab is None else slab.stacked
        with self._turn:
            self._prepare(slab, threads)
            cos, sin = self._rope(start, start + width)
            problem = self._library.forward(
                ctypes.addressof(self._model),
                None if ids is None else ids.data_ptr(),
                width,
                start,
                first,
                last,
                None if entries is None else entries.data_ptr(),
                0 if slab is None else slab.capacity,
                cos,
                sin,
                None if logits is None else logits.data_ptr(),
                0 if logits is None else logits.shape[0],
            )
        self._check(problem, ids, slab)

    def _check(self, problem: int, ids: Tensor | None, slab: Slab | None) -> None:
        if problem == _UNKNOWN_TOKEN:
            raise IndexError(f"of the tokens {ids} one is not in the vocabulary of {self.vocab}")
        if problem:
            entries = 0 if slab is None else slab.capacity
            raise IndexError(f"the tokens don't fit a cache of {entries} and a context of {self._model.context}")

    def _rope(self, start: int, end: int) -> tuple[int | None, int | None]:
        """Where the rotations of position ``start`` lie."""
        own = self.own
        if not isinstance(own, LlamaForward):
            return None, None
        if end > own._cos.shape[0]:
            own._extend_rope(end)
        offset = 4 * start * self.head_dim
        return own._cos.data_ptr() + offset, own._sin.data_ptr() + offset

    def _prepare(self, slab: Slab | None, threads: int) -> None:
        """Room for every thread's normed states, and its scores over all entries of the slab."""
        capacity = 0 if slab is None else slab.capacity
        self._model.num_threads = threads
        if capacity <= self._capacity and threads <= self._most_threads:
            return
        self._capacity, self._most_threads = max(capacity, self._capacity), max(threads, self._most_threads)
        floats = -(-self._capacity // self._library.lanes) * self._library.lanes
        states = self._library.max_width * self.embedding.shape[1]
        self._scratch = torch.empty(self._most_threads, states + self._library.tile * floats)
        self._model.scratch, self._model.scores_floats = self._scratch.data_ptr(), floats

    def _fastest(self, ids: Tensor, cache: KVCache, logits: Tensor | None) -> int:
        """One thread or all: a small model's operations are over before a second thread has joined in.

        Not some number between: threads that are done without are ended, and made again for the other model.
        """
        most = torch.get_num_threads() if self._library.threaded else 1
        least = dict.fromkeys((most, 1), math.inf)
        for _ in range(_TRIES):
            for threads in least:
                begin = perf_counter()
                # The same tokens at the same place write the same entries, as often as you like.
                self._pass(ids, ids.shape[0], cache.slab, cache.length, 0, len(self.layers), logits, threads)
                # The least, not the median: whatever else the machine does can only make it look slower.
                least[threads] = min(least[threads], perf_counter() - begin)
                if least[most] > _SURE:
                    return most
        return min(least, key=lambda threads: least[threads])

    def agrees(self) -> bool:
        """Whether it computes what PyTorch does, up to rounding, and the same bits for one token as for many."""
        rows = self.own.positions.shape[0] if isinstance(self.own, GPT2Forward) else _SAMPLE
        ids = torch.arange(min(_SAMPLE, rows)) % self.vocab
        with torch.inference_mode():
            expected, found = (
                forward(ids[:width], KVCache(self.new_slab(len(ids))), width)
                for forward, width in ((self.own, len(ids)), (self, min(len(ids), self._library.max_width)))
            )
            alone = self(ids[:1], KVCache(self.new_slab(1)), 1)
        expected = expected[: len(found)]
        largest = float(expected.abs().max())
        # Where weights are broken there is nothing to agree with; what they compute is looked at elsewhere.
        return not math.isfinite(largest) or (
            torch.allclose(found, expected, rtol=0, atol=_SAME * largest) and torch.equal(alone, found[:1])
        )

    @property
    def packed_bytes(self) -> int:
        """Of the second copy of the weights."""
        return sum(held.nbytes for held in self._packed)
