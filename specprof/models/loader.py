"""Weights from a checked directory into memory: which type they take, where they go, whether they fit.

Cheap to import: torch and transformers come in once the files are found, so that a
missing model is reported before anything slow happens.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specprof.errors import ResourceError, UnavailableError, UsageError, is_about_memory
from specprof.models import checkpoint, footprint, hub, int4
from specprof.models.devices import canonical_dtype, choose_device, compute_dtype, map_devices

if TYPE_CHECKING:
    import torch

_MAP_SHARE = 0.9
"""Of each device's memory, how much weights may take where they are spread: caches and activations need the rest."""

_log = logging.getLogger("specprof")


def load_model(
    model_id: str,
    dtype: str = "float16",
    device: str | torch.device | None = None,
    *,
    device_map: str | Mapping[str, Any] | None = None,
    expanded_to: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """A causal language model ready to run, and its tokenizer.

    Args:
        model_id: a packaged name, a local directory or a hub id, see :func:`specprof.models.hub.resolve`.
        dtype: float16, bfloat16, float32 or int4 (or fp16, bf16, fp32, nf4). On the CPU float16 computes in float32.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; by default CUDA if there is any, else the CPU.
        device_map: ``auto`` lets accelerate spread a model that is too large for ``device`` over all CUDA devices
            and then main memory; one that is not stays whole. Or where each module goes, as accelerate takes it.
            Whatever happens in between, inputs and logits are on ``device``.
        expanded_to: what int4 weights are expanded to, and the type of all others; by default the device's best.
        revision: branch, tag or commit of a hub repository.
        offline: never use the network.
        trust_remote_code: run Python code that comes with the model.

    Returns:
        The Hugging Face model (eval mode, no gradients) and its tokenizer.

    Raises:
        UsageError: an unknown dtype, device or device map.
        UnavailableError: the model is missing, gated, incomplete, corrupt, or not a causal language model.
        ResourceError: no such device, too little memory, or int4 without bitsandbytes.
    """
    dtype = canonical_dtype(dtype)
    if expanded_to is not None and (dtype != "int4" or canonical_dtype(expanded_to) == "int4"):
        raise UsageError(f"{dtype} weights can't be expanded to {expanded_to}", "expand int4 weights to a float type")
    if dtype == "int4":
        int4.require_bitsandbytes()
    if device is not None:
        device = choose_device(device)  # before a download that would be for nothing
    if isinstance(device_map, str) and device_map != "auto":
        raise UsageError(f"there is no device map {device_map!r}", "device maps: auto, or a mapping of module names")
    found = hub.resolve(model_id, revision=revision, offline=offline, remote_code=trust_remote_code)
    checkpoint.check_tokenizer_files(found.directory, model_id)
    config = _load_config(found.directory, model_id, trust_remote_code)
    device = choose_device(device)
    needed = footprint.memory_needed(found.directory, dtype, device, expanded_to=expanded_to)
    if device_map == "auto" and needed <= _MAP_SHARE * footprint.available_memory(device):
        device_map = None
    if device_map is None:
        spread = ", or --device-map auto" if device.type == "cuda" else ""
        footprint.require_memory(needed, device, f"{model_id} in {dtype}", elsewhere=f"another --device{spread}")
        where = _Placement(device)
    else:
        room = {place: int(_MAP_SHARE * footprint.available_memory(place)) for place in map_devices(device, dtype)}
        _require_room(needed, room, f"{model_id} in {dtype}")
        where = _Placement(device, device_map, room)
    tokenizer = _read_tokenizer(found.directory, model_id, trust_remote_code)
    model = _load_weights(found.directory, model_id, config, dtype, where, expanded_to, trust_remote_code)
    return model, tokenizer


def load_tokenizer(
    model_id: str, *, revision: str | None = None, offline: bool = False, trust_remote_code: bool = False
) -> Any:
    """The tokenizer of a model; its weights are not needed, and not fetched.

    Raises:
        UnavailableError: as :func:`load_model`.
    """
    directory = hub.resolve_tokenizer(model_id, revision=revision, offline=offline, remote_code=trust_remote_code)
    return _read_tokenizer(directory, model_id, trust_remote_code)


def share_tables(model: Any, other: Any) -> int:
    """Let ``model`` use the token embedding and the output head of ``other`` where they are equal to its own.

    For two forms of one checkpoint (int4 and 16 bits), whose tables are the same numbers twice. Before a
    :class:`specprof.models.wrapper.ModelWrapper` is built of ``model``.

    Returns:
        Bytes freed; 0 where shape, type, device or a value differs, or a model is spread. A tied head stays tied.
    """
    if footprint.is_spread(model) or footprint.is_spread(other):
        return 0
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head.weight is embedding.weight:
        tables = [([embedding, head], other.get_input_embeddings())]
    else:
        tables = [([embedding], other.get_input_embeddings()), ([head], other.get_output_embeddings())]
    freed = 0
    for holders, twin in tables:
        own = holders[0].weight
        if own.data_ptr() != twin.weight.data_ptr() and _equal_tables(own, twin.weight):
            freed += own.nbytes
            for holder in holders:
                holder.weight = twin.weight
    return freed


def _equal_tables(one: torch.Tensor, other: torch.Tensor) -> bool:
    import torch

    if not one.is_floating_point() or (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    # In pieces: on CUDA a comparison makes a tensor of as many booleans.
    return all(torch.equal(*rows) for rows in zip(one.split(4096), other.split(4096), strict=True))


def _load_config(directory: Path, model_id: str, trust_remote_code: bool) -> Any:
    """The configuration, of an architecture that transformers can run as a causal language model."""
    raw = checkpoint.read_config(directory, model_id)
    with quiet_transformers():
        import transformers
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = raw.get("model_type")
    brings_code = isinstance(raw.get("auto_map"), dict)
    if not isinstance(kind, str):
        raise UnavailableError(
            f"config.json of {model_id} names no model_type", "use a configuration written by save_pretrained"
        )
    if raw.get("quantization_config"):
        raise UnavailableError(
            f"the weights of {model_id} are quantised already, specprof quantises 16- or 32-bit weights itself",
            "give the unquantised model, with --dtype int4 if four bits are wanted",
        )
    if not (brings_code and trust_remote_code):
        if kind not in transformers.CONFIG_MAPPING and brings_code:
            raise UnavailableError(
                f"{model_id} (model type {kind}) runs Python code that comes with it: refused",
                "read that code, then allow it with --trust-remote-code",
            )
        if kind not in transformers.CONFIG_MAPPING:
            raise UnavailableError(
                f"transformers {transformers.__version__} does not know the model type {kind!r} of {model_id}",
                "check model_type in config.json, or upgrade transformers",
            )
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or not _is_causal(raw):
            made_for = ", ".join(raw.get("architectures") or [kind])
            raise UnavailableError(
                f"{model_id} is not a causal language model ({made_for})",
                "give a decoder-only model, such as one whose architecture ends in ForCausalLM",
            )
    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(
                directory, local_files_only=True, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # a damaged configuration fails in ways as various as its fields
        raise UnavailableError(
            f"config.json of {model_id} makes no sense to transformers: {_reason(error)}",
            "compare it with the original model's",
        ) from error
    # It would let a configuration name another weight file than the ones that were checked, or a kernel on the hub,
    # which is code.
    config.transformers_weights = None
    config._attn_implementation = config._experts_implementation = None
    return config


def _is_causal(raw: dict[str, Any]) -> bool:
    if raw.get("is_encoder_decoder"):
        return False
    architectures = raw.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        return True
    # Base models (GPT2Model) share their head with the embedding; ForMaskedLM, ForSequenceClassification don't.
    endings = ("ForCausalLM", "LMHeadModel", "LMHead", "Model", "ForConditionalGeneration")
    return any(str(name).endswith(endings) for name in architectures)


def _read_tokenizer(directory: Path, model_id: str, trust_remote_code: bool) -> Any:
    if (directory / checkpoint.CONFIG).is_file():
        checkpoint.read_config(directory, model_id)  # which transformers reads too, and may try to build by
    try:
        with quiet_transformers():
            import transformers

            auto: Any = transformers.AutoTokenizer
            tokenizer = auto.from_pretrained(directory, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # tokenizers raises bare Exceptions, transformers nearly everything else
        if is_about_memory(error):
            raise ResourceError(
                f"memory ran out while the tokenizer of {model_id} was loaded", "free memory, or use smaller models"
            ) from error
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise UnavailableError(
                f"the tokenizer of {model_id} runs Python code that comes with it: refused",
                "read that code, then allow it with --trust-remote-code",
            ) from error
        raise UnavailableError(
            f"the tokenizer of {model_id} can't be loaded: {_reason(error)}",
            "copy the tokenizer files of the original model again",
        ) from error
    return tokenizer


@dataclass(frozen=True, slots=True)
class _Placement:
    """Where weights go: all to ``device``, or by a map, within so many bytes of each place."""

    device: torch.device
    map: str | Mapping[str, Any] | None = None
    room: Mapping[torch.device, int] = field(default_factory=dict)

    def options(self, dtype: str) -> dict[str, Any]:
        """Arguments of ``from_pretrained``."""
        if self.map is None:
            return {"device_map": {"": self.device}} if dtype == "int4" or self.device.type != "cpu" else {}
        if self.map != "auto":
            return {"device_map": dict(self.map)}  # type: ignore[arg-type]
        names = {place: place.index if place.type == "cuda" else place.type for place in self.room}
        return {"device_map": "auto", "max_memory": {names[place]: size for place, size in self.room.items()}}

    def __str__(self) -> str:
        return str(self.device) if self.map is None else _listed(self.room)


def _require_room(needed: int, room: Mapping[torch.device, int], what: str) -> None:
    total = sum(room.values())
    if needed > total:
        raise ResourceError(
            f"{what} needs {needed / 1e9:.1f} GB, weights may take {total / 1e9:.1f} GB of {_listed(room)} together",
            "free memory, add a GPU, or use a smaller model or dtype (--dtype int4)",
        )


def _load_weights(
    directory: Path,
    model_id: str,
    config: Any,
    dtype: str,
    where: _Placement,
    expanded_to: str | None,
    trust_remote_code: bool,
) -> Any:
    import torch

    device = where.device
    compute = compute_dtype(dtype, device, expanded_to=expanded_to)
    options = where.options(dtype)
    if dtype == "float16" and compute is torch.float32:
        _log.info("%s: float16 weights compute in float32 on the CPU", model_id)
    if dtype == "int4":
        options["quantization_config"] = _quantization_of(config, model_id, compute, device, trust_remote_code)
    try:
        with quiet_transformers():
            import transformers

            auto: Any = transformers.AutoModelForCausalLM
            model, report = auto.from_pretrained(
                directory,
                config=config,
                dtype=compute,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                ignore_mismatched_sizes=True,  # reported below, by name
                output_loading_info=True,
                **options,
            )
    except ImportError as error:
        raise ResourceError(
            f"{model_id} in {dtype} needs a library that can't be imported: {_reason(error)}", "install or repair it"
        ) from error
    except Exception as error:  # whatever a model's own code makes of weights that don't fit it
        if is_about_memory(error):
            raise ResourceError(
                f"memory ran out while {model_id} was loaded on {where}",
                "free memory, or use a smaller model, a smaller dtype or another --device",
            ) from error
        if where.map is not None and "dispatched on the CPU or the disk" in str(error):  # of 4-bit weights
            raise _too_large(model_id, where) from error
        raise UnavailableError(
            f"the weights of {model_id} can't be loaded: {_reason(error)}", "fetch or convert the model again"
        ) from error
    _check_report(report, model_id)
    if where.map is not None:
        _check_places(model, model_id, where)
    if dtype == "int4":
        int4.keep_int4_layout(model)
    return model.eval().requires_grad_(False)


def _check_report(report: dict[str, Any], model_id: str) -> None:
    """transformers fills what doesn't fit with random numbers and goes on; we don't."""
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, stored, expected = mismatched[0]
        raise UnavailableError(
            f"the weights of {model_id} don't fit its config.json: {name} is {list(stored)}, not {list(expected)}",
            "use the config.json that belongs to these weights",
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise UnavailableError(
            f"the weights of {model_id} lack {missing[0]}"
            f"{f' and {len(missing) - 1} more tensors' if len(missing) > 1 else ''} that its config.json asks for",
            "use the config.json that belongs to these weights, or fetch them again",
        )
    unexpected = sorted(report["unexpected_keys"])
    if unexpected:
        _log.warning("%s: its config.json has no place for %d tensors (%s)", model_id, len(unexpected), unexpected[0])


def _check_places(model: Any, model_id: str, where: _Placement) -> None:
    """Refuse weights left on disk, and say where the others lie."""
    import torch
    from accelerate import dispatch_model  # type: ignore[import-untyped]

    if "disk" in getattr(model, "hf_device_map", {}).values():
        raise _too_large(model_id, where)
    held = footprint.bytes_by_device(model)
    home = torch.empty(0, device=where.device).device  # which names the index
    if not footprint.is_spread(model) and list(held) != [str(home)]:
        # All of it found room on one device, another one than inputs come from.
        dispatch_model(model, {"": next(iter(held))}, force_hooks=True)
    _log.info("%s: %s", model_id, ", ".join(f"{size / 1e9:.2f} GB on {place}" for place, size in held.items()))
    if where.device.type == "cuda" and "cpu" in held:
        _log.warning(
            "%s: %.2f GB of its weights stay in main memory, and are copied to the GPU in every pass",
            model_id,
            held["cpu"] / 1e9,
        )


def _too_large(model_id: str, where: _Placement) -> ResourceError:
    return ResourceError(
        f"{model_id} does not fit {where}: part of it would be read from disk in every pass",
        "free memory, add a GPU, or use a smaller model or dtype (--dtype int4)",
    )


def _listed(places: Iterable[torch.device]) -> str:
    return " and ".join("main memory" if place.type == "cpu" else str(place) for place in places)


def _quantization_of(
    config: Any, model_id: str, compute: torch.dtype, device: torch.device, trust_remote_code: bool
) -> Any:
    import torch
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    try:
        with quiet_transformers(), torch.device("meta"):
            outline = auto.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # a damaged configuration fails in ways as various as its fields
        raise UnavailableError(
            f"transformers can't build {model_id} from its config.json: {_reason(error)}",
            "compare it with the original model's",
        ) from error
    return int4.quantization_config(outline, compute, device)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep progress bars, load reports and import messages of transformers and what it loads with off stderr."""
    import transformers

    transformers_log: Any = transformers.utils.logging
    others = [logging.getLogger(name) for name in ("bitsandbytes", "accelerate")]
    levels = [log.level for log in others]
    verbosity = transformers_log.get_verbosity()
    bars = transformers_log.is_progress_bar_enabled()
    for log in others:
        log.setLevel(logging.ERROR)
    transformers_log.set_verbosity_error()
    transformers_log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(others, levels, strict=True):
            log.setLevel(level)
        transformers_log.set_verbosity(verbosity)
        if bars:
            transformers_log.enable_progress_bar()


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
