"""Four-bit weights as bitsandbytes makes them: which matrices, how they are multiplied, what they weigh.

Cheap to import: bitsandbytes and transformers come in when a model is quantised.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

from specprof.errors import ResourceError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_BLOCK = 64
BYTES_PER_WEIGHT = 0.5 + 4 / _BLOCK
"""Four bits, and one 32-bit scale for every block."""

# bitsandbytes leaves the token tables and the output head unquantised.
_NOT_QUANTISED = ("embed", "lm_head", "wte", "wpe")

_log = logging.getLogger("specprof")


def require_bitsandbytes() -> None:
    """Raise ResourceError if the library that makes int4 weights is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ResourceError("int4 needs the bitsandbytes library", "pip install bitsandbytes, or use --dtype float16")


# --- what is quantised


def is_quantised(name: str, shape: tuple[int, ...], device: str | torch.device) -> bool:
    """Whether the parameter of this name and shape is stored in four bits on ``device``."""
    return len(shape) == 2 and not any(part in name for part in _NOT_QUANTISED) and not _is_ragged(shape[1], device)


def quantization_config(model: Any, compute: torch.dtype, device: torch.device) -> Any:
    """bitsandbytes NF4 weights that are expanded to ``compute`` for every product.

    What stays unquantised of ``model`` (whose weights may be on the meta device): its output head, tied
    matrices, and on the CPU every matrix whose rows are no multiple of a block.
    """
    import transformers
    from transformers.quantizers.base import get_keys_to_not_convert

    ragged = [
        name
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and _is_ragged(_row_length(module), device)
    ]
    if ragged:
        _log.info(
            "%d matrices stay in %s: bitsandbytes would expand them wrongly on the CPU",
            len(ragged),
            str(compute).removeprefix("torch."),
        )
    config: Any = transformers.BitsAndBytesConfig
    return config(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_use_double_quant=False,
        llm_int8_skip_modules=[*get_keys_to_not_convert(model), *ragged],
    )


def keep_int4_layout(model: Any) -> None:
    """Keep bitsandbytes from repacking weights at the first forward on CPUs with AVX512-BF16: it rounds the
    scales to bfloat16, and fails where a row is no multiple of a block (0.50.2)."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _row_length(module: Any) -> int:
    # Conv1D, GPT-2's linear, keeps its matrix transposed and is turned before it is quantised.
    return int(module.in_features if hasattr(module, "in_features") else module.weight.shape[0])


def _is_ragged(row_length: int, device: str | torch.device) -> bool:
    """On the CPU bitsandbytes (0.50.2) quantises a matrix as one run of blocks, but expands it as if each row began
    a new one: wrong weights wherever rows are no multiple of a block. CUDA is right."""
    import torch

    return torch.device(device).type == "cpu" and row_length % _BLOCK != 0


# --- what a quantised model holds


def layer_types() -> tuple[type[nn.Module], ...]:
    """The classes of quantised linear layers; none as long as nobody imported bitsandbytes to make one."""
    bitsandbytes: Any = sys.modules.get("bitsandbytes")
    if bitsandbytes is None:
        return ()
    return bitsandbytes.nn.Linear4bit, bitsandbytes.nn.LinearNF4, bitsandbytes.nn.LinearFP4


def scales(parameter: Tensor) -> list[Tensor]:
    """What a quantised weight needs besides its four-bit numbers: block scales and the table of the 16 values."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return []
    tensors = [state.absmax, state.code]
    if state.nested:  # the scales are quantised too
        tensors += [state.offset, state.state2.absmax, state.state2.code]
    return tensors


# --- how wide a pass may be


def fused_int4_width(model: Any) -> int | None:
    """The most rows (tokens) that bitsandbytes' fused kernel multiplies with every int4 matrix of ``model``.

    Wider passes expand whole matrices to 16 bits first, about nine times the memory traffic. None without int4
    matrices, on other devices than CUDA, or if this version of bitsandbytes doesn't tell.
    """
    layers = [module for module in model.modules() if type(module) in layer_types()]
    if not layers or layers[0].weight.device.type != "cuda":
        return None
    matrices = set()
    for layer in layers:
        out_features, in_features = layer.weight.quant_state.shape
        if in_features % layer.weight.quant_state.blocksize:
            return 0
        matrices.add((layer.compute_dtype, out_features, in_features))
    try:
        from bitsandbytes.backends.cuda import ops

        uses_fused = partial(ops._gemm_4bit_use_custom_fn, layers[0].weight.device.index)
        return widest(matrices, uses_fused, ops._gemm_4bit_custom_max_m)
    except (ImportError, AttributeError, TypeError):  # private names, which another version may not have
        return None


def widest(
    matrices: Collection[tuple[torch.dtype, int, int]],
    uses_fused: Callable[[torch.dtype, int, int, int], bool],
    limit: int,
) -> int:
    """The largest number of rows up to which every matrix ``(dtype, out, in)`` is multiplied by the fused kernel.

    Args:
        matrices: of the model.
        uses_fused: ``(dtype, rows, out, in)``.
        limit: no kernel takes more rows.
    """
    rows = 0
    while rows < limit and all(uses_fused(dtype, rows + 1, n, k) for dtype, n, k in matrices):
        rows += 1
    return rows
