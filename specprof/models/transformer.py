"""Our own forward pass for GPT-2 and the Llama family, one sequence at a time.

Hugging Face's modules cost more in Python and small kernels than a small model's
arithmetic does. This forward reads the same weights, fuses the projections that share an
input, writes keys and values straight into the slab, and calls nothing that is not a tensor
operation, except int4 layers. Hugging Face's forward stays the oracle in the tests and the path
of every other model.

Shapes: ``q`` tokens of one sequence are rows, hidden states are ``[q, hidden]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specprof.models import int4
from specprof.models.kv_cache import KVCache, Slab
from specprof.models.linear import LinearChoice, Matrix, QuantisedMatrix
from specprof.models.rows import NextRows, Rows
from specprof.models.scores import scores_of

LLAMA_FAMILY = frozenset({"llama", "mistral", "qwen2", "qwen3", "phi3"})
STATIC_ROPE = frozenset({"default", "llama3"})


class Forward(Protocol):
    """Runs tokens through a model on top of what its cache holds."""

    name: str

    def new_slab(self, capacity: int) -> Slab: ...

    def __call__(self, ids: Tensor, cache: KVCache, num_logits: int) -> Tensor:
        """Append ``ids [q]`` to the cache; logits ``[num_logits, vocab]`` after each of the last tokens."""
        ...

    def greedy(self, ids: Tensor, cache: KVCache, steps: int) -> tuple[Tensor, Tensor]:
        """Append ``ids [q]``, then the likeliest token after them, and so on: ``steps >= 1`` choices ``[steps]``, and
        the logit of each.

        The last of them is not appended.
        """
        ...


def greedily(forward: Forward, ids: Tensor, cache: KVCache, steps: int) -> tuple[Tensor, Tensor]:
    """:meth:`Forward.greedy`, pass by pass."""
    chosen, scores = [], []
    for _ in range(steps):
        logits = forward(ids, cache, 1)
        ids = logits.argmax(-1)
        chosen.append(ids)
        scores.append(scores_of(logits, ids))
    return torch.cat(chosen), torch.cat(scores)


def unsupported(model: Any) -> str | None:
    """Why our own forward can't run this Hugging Face model, or None if it can."""
    config = model.config
    kind = config.model_type
    if kind not in LLAMA_FAMILY | {"gpt2"}:
        return f"no own forward for the {kind} family"
    if _quantised_otherwise(config):
        return "the weights are quantised, and not by bitsandbytes to 4 bits"
    if len({p.device for p in model.parameters()}) != 1 or getattr(model, "hf_device_map", None):
        return "the weights are spread over devices"
    known = (*_plain_layers(), *int4.layer_types())
    replaced = sorted({type(m).__name__ for m in model.modules() if _has_matrix(m) and type(m) not in known})
    if replaced:
        return f"layers were replaced by {', '.join(replaced)}"
    if any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
        return "hooks hang on its layers, which our forward would not call"
    if kind == "gpt2":
        odd = config.scale_attn_by_inverse_layer_idx or config.reorder_and_upcast_attn or not config.scale_attn_weights
        if odd or config.add_cross_attention or config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
            return "a variant of GPT-2's attention or activation"
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in STATIC_ROPE or rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"position encoding {rope.get('rope_type')!r}"
    if config.hidden_act not in ("silu", "swish"):
        return f"activation {config.hidden_act!r}"
    return None


def _quantised_otherwise(config: Any) -> bool:
    how = getattr(config, "quantization_config", None)
    if how is None:
        return False
    return not (how.get("load_in_4bit") if isinstance(how, dict) else getattr(how, "load_in_4bit", False))


def _has_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2


def _plain_layers() -> tuple[type[nn.Module], ...]:
    """What our forward reads only the weights of; an adapter does more with its own."""
    from transformers.pytorch_utils import Conv1D

    return nn.Linear, nn.Embedding, Conv1D


def own_forward(model: Any, *, measure_linear: bool = True) -> OwnForward:
    """The own forward of a supported model, sharing its weights."""
    build = GPT2Forward if model.config.model_type == "gpt2" else LlamaForward
    return build(model, measure_linear=measure_linear)


@dataclass(frozen=True, slots=True)
class EarlyStates:
    """Tokens that are through the first layers already, keys and values in the slab: what :meth:`OwnForward.early` did.

    Attributes:
        depth: number of layers behind them.
        hidden: ``[m, hidden]``, the residual stream after those layers.
    """

    depth: int
    hidden: Tensor


class OwnForward(ABC):
    """What our forwards have in common: the way through a stack of layers, which can be left early and resumed."""

    name = "own"

    embedding: Tensor
    head: Matrix
    heads: int
    kv_heads: int
    head_dim: int
    layers: Sequence[Any]
    linear: LinearChoice

    @property
    def in_pytorch(self) -> OwnForward:
        """The same in PyTorch's operations."""
        return self

    def new_slab(self, capacity: int) -> Slab:
        return Slab.uniform(
            len(self.layers),
            self.kv_heads,
            capacity,
            self.head_dim,
            dtype=self.embedding.dtype,
            device=self.embedding.device,
        )

    def reserve(self, positions: int) -> None:
        """Make whatever depends on the position for so many at once: it is not replaced until there are more."""
        return

    def __call__(self, ids: Tensor, cache: KVCache, num_logits: int, early: EarlyStates | None = None) -> Tensor:
        """Append ``ids [q]`` to the cache; logits ``[num_logits, vocab]`` after each of the last tokens.

        Args:
            early: the first m < q of ``ids`` at these positions, not to be run through the first layers again.
        """
        start, depth = cache.length, len(self.layers)
        rows = NextRows(start, ids.shape[0])
        if early is None:
            x = self._run(self._embed(ids, rows), cache.slab, rows, 0, depth)
        else:
            known = early.hidden.shape[0]
            new = NextRows(start + known, rows.width - known)
            rest = self._run(self._embed(ids[known:], new), cache.slab, new, 0, early.depth)
            x = self._run(torch.cat((early.hidden, rest)), cache.slab, rows, early.depth, depth)
        cache.length = rows.end
        return self._logits(x[-num_logits:])

    def greedy(self, ids: Tensor, cache: KVCache, steps: int) -> tuple[Tensor, Tensor]:
        return greedily(self, ids, cache, steps)

    def at(self, ids: Tensor, rows: Rows, slab: Slab, num_logits: int) -> Tensor:
        """Run ``ids [q]`` at the places of ``rows``; logits ``[num_logits, vocab]`` after each of the last tokens."""
        x = self._run(self._embed(ids, rows), slab, rows, 0, len(self.layers))
        return self._logits(x[-num_logits:])

    def early(self, ids: Tensor, cache: KVCache, depth: int) -> tuple[Tensor, Tensor]:
        """Append ``ids [q]`` to the first ``depth`` layers of the cache, and read the head there.

        Returns:
            logits ``[1, vocab]`` after the last token, and the residual stream ``[q, hidden]`` for
            :class:`EarlyStates`.
        """
        rows = NextRows(cache.length, ids.shape[0])
        hidden = self._run(self._embed(ids, rows), cache.slab, rows, 0, depth)
        cache.length = rows.end
        return self._logits(hidden[-1:]), hidden

    def _logits(self, x: Tensor) -> Tensor:
        """Norm and head of the last rows alone: a prefill needs the logits of one position, not of all."""
        return self.linear[x.shape[0]](self._norm(x), self.head, None)

    @abstractmethod
    def _embed(self, ids: Tensor, rows: Rows) -> Tensor:
        """``[q, hidden]`` of tokens at the positions of ``rows``."""

    @abstractmethod
    def _run(self, x: Tensor, slab: Slab, rows: Rows, first: int, last: int) -> Tensor:
        """``x [q, hidden]`` through the layers first..last - 1, whose keys and values go into the slab."""

    @abstractmethod
    def _norm(self, x: Tensor) -> Tensor:
        """The norm before the head."""


@dataclass(slots=True)
class LlamaLayer:
    input_norm: Tensor
    qkv: Matrix
    """``[(heads + 2 kv_heads) head_dim, hidden]``"""
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Matrix
    out_bias: Tensor | None
    post_norm: Tensor
    gate_up: Matrix
    """``[2 intermediate, hidden]``"""
    gate_up_bias: Tensor | None
    down: Matrix
    down_bias: Tensor | None
    window: int | None


class LlamaForward(OwnForward):
    """Llama, TinyLlama, Mistral, Qwen2, Qwen3, Phi-3: RMSNorm, rotary positions, grouped keys, SwiGLU."""

    layers: list[LlamaLayer]

    def __init__(self, model: Any, *, measure_linear: bool = True) -> None:
        config, backbone = model.config, model.model
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps: float = config.rms_norm_eps
        self.embedding = backbone.embed_tokens.weight.detach()
        self.norm: Tensor = backbone.norm.weight.detach()
        self.head, _ = _matrix(model.lm_head)
        windows = _sliding_windows(config)
        self.layers = [_llama_layer(layer, window) for layer, window in zip(backbone.layers, windows, strict=True)]
        self.hidden = self.norm.shape
        self.scale = self.head_dim**-0.5
        self._inverse_frequencies = backbone.rotary_emb.inv_freq.float()
        self._rope_scale = float(backbone.rotary_emb.attention_scaling)
        self._cos = self._sin = self.embedding.new_zeros(0, 1, self.head_dim)
        self._outgrown: list[tuple[Tensor, Tensor]] = []
        matrices = [w for layer in self.layers for w in (layer.qkv, layer.out, layer.gate_up, layer.down)]
        self.linear = LinearChoice([*matrices, self.head], measure=measure_linear)

    def reserve(self, positions: int) -> None:
        self._extend_rope(positions)

    def new_slab(self, capacity: int) -> Slab:
        self._extend_rope(capacity)
        return super().new_slab(capacity)

    def _embed(self, ids: Tensor, rows: Rows) -> Tensor:
        return F.embedding(ids, self.embedding)

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.hidden, self.norm, self.eps)

    def _run(self, x: Tensor, slab: Slab, rows: Rows, first: int, last: int) -> Tensor:
        width, hq, hkv = rows.width, self.heads, self.kv_heads
        if rows.end > self._cos.shape[0]:
            self._extend_rope(rows.end)
        cos, sin = rows.of(self._cos), rows.of(self._sin)
        linear, hidden, eps, scale = self.linear[width], self.hidden, self.eps, self.scale
        write, attend = rows.write, rows.attend
        half = self.head_dim // 2

        views = rows.views(slab, first, last)
        for layer, (new_k, new_v, keys, values) in zip(self.layers[first:last], views, strict=True):
            h = F.rms_norm(x, hidden, layer.input_norm, eps)
            qkv = linear(h, layer.qkv, layer.qkv_bias).reshape(width, hq + 2 * hkv, self.head_dim)
            qk = qkv[:, : hq + hkv]
            if layer.q_norm is not None and layer.k_norm is not None:
                qk = torch.cat(
                    (
                        F.rms_norm(qk[:, :hq], layer.q_norm.shape, layer.q_norm, eps),
                        F.rms_norm(qk[:, hq:], layer.k_norm.shape, layer.k_norm, eps),
                    ),
                    dim=1,
                )
            # Rotary positions: x cos + rotate_half(x) sin; the sign of rotate_half is in the table.
            qk = torch.addcmul(qk * cos, torch.roll(qk, half, -1), sin)
            write(new_k, qk[:, hq:].transpose(0, 1))
            write(new_v, qkv[:, hq + hkv :].transpose(0, 1))
            attended = attend(qk[:, :hq].transpose(0, 1), keys, values, layer.window, scale)
            x = x + linear(attended.transpose(0, 1).reshape(width, -1), layer.out, layer.out_bias)
            h = F.rms_norm(x, hidden, layer.post_norm, eps)
            gate, up = linear(h, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
            x = x + linear(F.silu(gate).mul_(up), layer.down, layer.down_bias)
        return x

    def _extend_rope(self, capacity: int) -> None:
        """Tables ``[capacity, 1, head_dim]``: cos, and sin with rotate_half's sign, computed in float32 as trained."""
        if capacity <= self._cos.shape[0]:
            return
        # A captured graph goes on reading the tables it was captured with. At least doubling keeps what all that
        # were outgrown hold below what the last one does.
        self._outgrown.append((self._cos, self._sin))
        capacity = max(capacity, 2 * self._cos.shape[0])
        positions = torch.arange(capacity, device=self.embedding.device, dtype=torch.float32)
        angles = positions[:, None] * self._inverse_frequencies[None].to(self.embedding.device)
        cos, sin = angles.cos() * self._rope_scale, angles.sin() * self._rope_scale
        self._cos = torch.cat((cos, cos), -1).unsqueeze(1).to(self.embedding.dtype)
        self._sin = torch.cat((-sin, sin), -1).unsqueeze(1).to(self.embedding.dtype)


@dataclass(slots=True)
class GPT2Layer:
    norm1: tuple[Tensor, Tensor]
    qkv: Matrix
    """``[3 hidden, hidden]``: a transposed view of the checkpoint's ``[hidden, 3 hidden]``"""
    qkv_bias: Tensor | None
    out: Matrix
    out_bias: Tensor | None
    norm2: tuple[Tensor, Tensor]
    up: Matrix
    up_bias: Tensor | None
    down: Matrix
    down_bias: Tensor | None


class GPT2Forward(OwnForward):
    """GPT-2: LayerNorm, learned positions, one key head per query head, GELU."""

    layers: list[GPT2Layer]

    def __init__(self, model: Any, *, measure_linear: bool = True) -> None:
        config, backbone = model.config, model.transformer
        self.heads = self.kv_heads = config.n_head
        self.head_dim = config.n_embd // config.n_head
        self.eps: float = config.layer_norm_epsilon
        self.embedding = backbone.wte.weight.detach()
        self.positions: Tensor = backbone.wpe.weight.detach()
        self.norm = (backbone.ln_f.weight.detach(), backbone.ln_f.bias.detach())
        self.head, _ = _matrix(model.lm_head)
        self.layers = [_gpt2_layer(block) for block in backbone.h]
        self.hidden = self.norm[0].shape
        self.scale = self.head_dim**-0.5
        matrices = [w for layer in self.layers for w in (layer.qkv, layer.out, layer.up, layer.down)]
        self.linear = LinearChoice([*matrices, self.head], measure=measure_linear)

    def _embed(self, ids: Tensor, rows: Rows) -> Tensor:
        return F.embedding(ids, self.embedding) + rows.of(self.positions)

    def _norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.hidden, *self.norm, self.eps)

    def _run(self, x: Tensor, slab: Slab, rows: Rows, first: int, last: int) -> Tensor:
        width = rows.width
        linear, hidden, eps, scale = self.linear[width], self.hidden, self.eps, self.scale
        write, attend = rows.write, rows.attend

        views = rows.views(slab, first, last)
        for layer, (new_k, new_v, keys, values) in zip(self.layers[first:last], views, strict=True):
            h = F.layer_norm(x, hidden, *layer.norm1, eps)
            qkv = linear(h, layer.qkv, layer.qkv_bias).reshape(width, 3, self.heads, self.head_dim)
            q, k, v = qkv.permute(1, 2, 0, 3).unbind(0)
            write(new_k, k)
            write(new_v, v)
            attended = attend(q, keys, values, None, scale)
            x = x + linear(attended.transpose(0, 1).reshape(width, -1), layer.out, layer.out_bias)
            h = F.layer_norm(x, hidden, *layer.norm2, eps)
            h = F.gelu(linear(h, layer.up, layer.up_bias), approximate="tanh")
            x = x + linear(h, layer.down, layer.down_bias)
        return x


def _sliding_windows(config: Any) -> list[int | None]:
    """Each layer's window in tokens, its own included; None sees the whole context."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is not None:
        return [window if kind == "sliding_attention" else None for kind in types]
    if not getattr(config, "use_sliding_window", True):
        window = None
    return [window] * config.num_hidden_layers


def _llama_layer(layer: Any, window: int | None) -> LlamaLayer:
    attn, mlp = layer.self_attn, layer.mlp
    if hasattr(attn, "qkv_proj"):
        qkv, qkv_bias = _matrix(attn.qkv_proj)
        gate_up, gate_up_bias = _matrix(mlp.gate_up_proj)
    else:
        qkv, qkv_bias = _fuse(attn.q_proj, attn.k_proj, attn.v_proj)
        gate_up, gate_up_bias = _fuse(mlp.gate_proj, mlp.up_proj)
    out, out_bias = _matrix(attn.o_proj)
    down, down_bias = _matrix(mlp.down_proj)
    return LlamaLayer(
        input_norm=layer.input_layernorm.weight.detach(),
        qkv=qkv,
        qkv_bias=qkv_bias,
        q_norm=attn.q_norm.weight.detach() if hasattr(attn, "q_norm") else None,
        k_norm=attn.k_norm.weight.detach() if hasattr(attn, "k_norm") else None,
        out=out,
        out_bias=out_bias,
        post_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=gate_up,
        gate_up_bias=gate_up_bias,
        down=down,
        down_bias=down_bias,
        window=window,
    )


def _gpt2_layer(block: Any) -> GPT2Layer:
    def norm(module: Any) -> tuple[Tensor, Tensor]:
        return module.weight.detach(), module.bias.detach()

    return GPT2Layer(
        norm(block.ln_1),
        *_matrix(block.attn.c_attn, transposed=True),
        *_matrix(block.attn.c_proj, transposed=True),
        norm(block.ln_2),
        *_matrix(block.mlp.c_fc, transposed=True),
        *_matrix(block.mlp.c_proj, transposed=True),
    )


def _matrix(layer: Any, *, transposed: bool = False) -> tuple[Matrix, Tensor | None]:
    """A layer's matrix ``[out, in]`` (kept as ``[in, out]`` if transposed, and dense) and its bias."""
    if type(layer) in int4.layer_types():
        return QuantisedMatrix((layer,)), None
    weight = layer.weight.detach()
    return weight.t() if transposed else weight, None if layer.bias is None else layer.bias.detach()


def _fuse(*layers: Any) -> tuple[Matrix, Tensor | None]:
    """Projections of one input as one matrix; the layers' own weights become views of it, so nothing is held twice."""
    if any(type(layer) in int4.layer_types() for layer in layers):
        return QuantisedMatrix(layers), None
    weight = torch.cat([layer.weight.detach() for layer in layers])
    for layer, rows in zip(layers, weight.split([layer.out_features for layer in layers]), strict=True):
        layer.weight = nn.Parameter(rows, requires_grad=False)
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    return weight, torch.cat(biases) if biases else None
