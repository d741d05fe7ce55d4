"""A model's true architecture with random weights, without a download: its cost is real, its text is not."""

from __future__ import annotations

import copy
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specprof.errors import SpecprofError, UnavailableError, UsageError
from specprof.models import checkpoint, footprint, hub
from specprof.models.devices import canonical_dtype, choose_device, compute_dtype
from specprof.models.int4 import keep_int4_layout, quantization_config, require_bitsandbytes
from specprof.models.loader import load_tokenizer, quiet_transformers

if TYPE_CHECKING:
    import torch

_CONFIGS = Path(__file__).parent / "configs"
# What the generation_config.json of these models says beyond their config.json.
_STOP_IDS = {
    "meta-llama/Meta-Llama-3-8B-Instruct": [128001, 128009],
    "microsoft/Phi-3-mini-4k-instruct": [32000, 32001, 32007],
}
# Models with a SentencePiece vocabulary; the others of the registered pairs have byte-level BPE.
_SENTENCEPIECE = ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "microsoft/Phi-3-mini-4k-instruct")
_STANDARD_DEVIATION = 0.02
# Odd, so that rows of a tiled matrix, whose lengths are powers of two and the like, don't repeat.
_BLOCK = 1_000_003

_log = logging.getLogger("specprof")


def known_models() -> list[str]:
    """Ids of the models whose configuration is packaged."""
    return [*sorted(path.stem.replace("--", "/") for path in _CONFIGS.glob("*.json")), *hub.PACKAGED_IDS]


def model_config(model_id: str) -> dict[str, Any]:
    """The true configuration of a model of the registered pairs, or that of a local directory.

    Raises:
        UnavailableError: neither.
    """
    directory = hub.local_directory(model_id)
    if directory is not None:
        return checkpoint.read_config(directory, model_id)
    if model_id not in known_models():
        raise UnavailableError(
            f"no configuration of {model_id} is packaged, so it can't be built with random weights",
            f"packaged: {', '.join(known_models())}; or give a directory with its config.json",
        )
    path = _CONFIGS / f"{model_id.replace('/', '--')}.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def random_model(
    model_id: str,
    dtype: str = "float16",
    device: str | torch.device | None = None,
    *,
    seed: int = 0,
    num_layers: int | None = None,
    expanded_to: str | None = None,
) -> Any:
    """The architecture of ``model_id`` in eval mode, its matrices tiled from one block of N(0, 0.02) numbers.

    Norms are one and biases zero; buffers (rotary frequencies) are the true ones.

    Args:
        model_id: a model of the registered pairs, a packaged id, or a directory with a config.json.
        dtype: as :func:`specprof.models.loader.load_model`.
        device: as :func:`specprof.models.loader.load_model`.
        seed: of the random numbers.
        num_layers: keep at most so many layers, everything else as it is; None keeps all.
        expanded_to: what int4 weights are expanded to, and the type of all others; by default the device's best.

    Raises:
        UsageError: an unknown dtype or device, or no layers.
        UnavailableError: no such configuration, or one that transformers can't build.
        ResourceError: no such device, too little memory, or int4 without bitsandbytes.
    """
    dtype = canonical_dtype(dtype)
    if dtype == "int4":
        require_bitsandbytes()
    config = model_config(model_id)
    device = choose_device(device)
    compute = compute_dtype(dtype, device, expanded_to=expanded_to)
    with quiet_transformers():
        model = _empty_model(config, model_id, compute, num_layers)
        shapes = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
        needed = footprint.bytes_for(shapes, dtype, device, expanded_to=expanded_to)
        footprint.require_memory(needed, device, f"{model_id} in {dtype}")
        if dtype == "int4":
            _replace_linears(model, compute, device)
        _fill(model, compute, device, seed)
    if model_id in _STOP_IDS:
        model.generation_config.eos_token_id = _STOP_IDS[model_id]
    if dtype == "float16" and device.type == "cpu":
        _log.info("%s: float16 weights compute in float32 on the CPU", model_id)
    return model.eval().requires_grad_(False)


def random_tokenizer(model_id: str = "tiny_dev/target") -> Any:
    """A tokenizer for a model with random weights: its own if its directory has one, else a packaged one of its kind.

    The packaged ones are SentencePiece-like (tiny_cross's, 2048 tokens) and byte-level (tiny_dev's, 4096); the rows
    of the model beyond those are padding.

    Raises:
        UnavailableError: a tokenizer in the directory that can't be loaded.
    """
    directory = hub.local_directory(model_id)
    if directory is not None and checkpoint.tokenizer_files(directory):
        return load_tokenizer(model_id)
    return load_tokenizer("tiny_cross/draft" if model_id in _SENTENCEPIECE else "tiny_dev/target")


def _empty_model(config: dict[str, Any], model_id: str, compute: torch.dtype, num_layers: int | None) -> Any:
    """The model with its buffers in place and its parameters without memory."""
    import transformers
    from accelerate import init_empty_weights  # type: ignore[import-untyped]

    auto: Any = transformers.AutoModelForCausalLM
    values = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype", "auto_map")}
    try:
        architecture = transformers.AutoConfig.for_model(**values)
        if num_layers is not None:
            _keep_layers(architecture, num_layers, model_id)
        # Buffers are computed as usual: on the meta device rotary frequencies would be lost.
        with init_empty_weights(include_buffers=False):
            model = auto.from_config(architecture, dtype=compute)
    except SpecprofError:
        raise
    except Exception as error:  # a configuration from a directory may hold anything
        raise UnavailableError(
            f"transformers can't build {model_id} from its config.json: {error}",
            "give the configuration of a causal language model",
        ) from error
    model.tie_weights()
    return model


def _keep_layers(config: Any, num_layers: int, model_id: str) -> None:
    """Cut a transformers configuration, and its lists with an entry for every layer, to the first layers."""
    depth = config.num_hidden_layers  # transformers answers for n_layer as well
    if num_layers < 1:
        raise UsageError(f"{model_id} can't be built with {num_layers} layers", f"it has {depth}: give 1 or more")
    config.num_hidden_layers = min(num_layers, depth)
    for name, value in list(vars(config).items()):
        if "layer" in name and isinstance(value, list) and len(value) == depth:  # layer_types, no_rope_layers
            setattr(config, name, value[:num_layers])


def _replace_linears(model: Any, compute: torch.dtype, device: torch.device) -> None:
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    quantization = quantization_config(model, compute, device)
    replace_with_bnb_linear(
        model, modules_to_not_convert=quantization.llm_int8_skip_modules, quantization_config=quantization
    )
    model.config.quantization_config = quantization
    model.is_loaded_in_4bit = True
    keep_int4_layout(model)


def _fill(model: Any, compute: torch.dtype, device: torch.device, seed: int) -> None:
    """Give every parameter memory on ``device`` and its value; move the buffers there."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(seed)
    block = (torch.randn(_BLOCK, generator=generator) * _STANDARD_DEVIATION).to(device=device, dtype=compute)
    filled: dict[int, nn.Parameter] = {}
    quantised: dict[tuple[int, int], nn.Parameter] = {}
    offset = 0
    for module in model.modules():
        for name, empty in list(module._parameters.items()):
            if empty is None:
                continue
            # Tied parameters are one object, and stay one.
            if id(empty) not in filled:
                if hasattr(empty, "quant_type"):
                    filled[id(empty)] = _quantised(module, block, quantised)
                else:
                    filled[id(empty)] = nn.Parameter(_values(name, empty.shape, block, offset), requires_grad=False)
                offset += empty.numel()
            module._parameters[name] = filled[id(empty)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = buffer.to(device)


def _values(name: str, shape: Any, block: torch.Tensor, offset: int) -> torch.Tensor:
    if len(shape) < 2:
        return block.new_zeros(shape) if name.endswith("bias") else block.new_ones(shape)
    return _tile(shape, block, offset)


def _tile(shape: Any, block: torch.Tensor, offset: int) -> torch.Tensor:
    """``block`` repeated from ``offset`` on, as a tensor of ``shape``."""
    values = block.new_empty(math.prod(shape))
    start = offset % _BLOCK
    position = min(_BLOCK - start, values.numel())
    values[:position] = block[start : start + position]
    while position < values.numel():
        count = min(_BLOCK, values.numel() - position)
        values[position : position + count] = block[:count]
        position += count
    return values.view(*shape)


def _quantised(module: Any, block: torch.Tensor, made: dict[tuple[int, int], torch.nn.Parameter]) -> torch.nn.Parameter:
    """The weight of a 4-bit linear: random numbers, quantised as loading would, once for each shape in ``made``."""
    import bitsandbytes

    params4bit: Any = bitsandbytes.nn.Params4bit  # type: ignore[attr-defined]
    shape = (module.out_features, module.in_features)
    if shape not in made:
        weight = _tile(shape, block, 0)
        made[shape] = params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=False).to(
            block.device
        )
    parameter: Any = copy.deepcopy(made[shape])
    parameter.module = module
    module.quant_state = parameter.quant_state
    return parameter  # type: ignore[no-any-return]
