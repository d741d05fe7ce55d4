"""Which device a model goes to, and the type its weights take there.

Cheap to import: torch comes in with the first question that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from specprof.errors import ResourceError, UsageError

if TYPE_CHECKING:
    import torch

DTYPES = ("float16", "bfloat16", "float32", "int4")

_ALIASES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "nf4": "int4"}


def canonical_dtype(dtype: str) -> str:
    """The full name of a dtype.

    Raises:
        UsageError: there is no such dtype.
    """
    name = _ALIASES.get(dtype, dtype)
    if name not in DTYPES:
        raise UsageError(f"there is no dtype {dtype!r}", f"dtypes: {', '.join(DTYPES)} (or {', '.join(_ALIASES)})")
    return name


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for; by default CUDA if there is any, else the CPU.

    Raises:
        UsageError: not a device specprof knows.
        ResourceError: this machine doesn't have it.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"there is no device {device!r}", "devices: cpu, cuda, cuda:N, mps") from error
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"specprof doesn't run on {chosen.type!r}", "devices: cpu, cuda, cuda:N, mps")
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise ResourceError(
                "CUDA was asked for, but PyTorch finds no CUDA device",
                "use --device cpu, or install a CUDA build of torch and check `nvidia-smi`",
            )
        if (chosen.index or 0) >= count:
            raise ResourceError(
                f"there is no {chosen}: {count} CUDA device(s) found", f"use cuda:0 to cuda:{count - 1}"
            )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ResourceError("MPS was asked for, but this machine has none", "use --device cpu")
    return chosen


def map_devices(device: str | torch.device, dtype: str) -> list[torch.device]:
    """Where ``device_map="auto"`` may put weights, in this order: every CUDA device, then main memory (not of int4
    weights, which bitsandbytes keeps on the GPU); ``device`` alone if it is no CUDA device."""
    import torch

    if torch.device(device).type != "cuda":
        return [torch.device(device)]
    places = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return places if canonical_dtype(dtype) == "int4" else [*places, torch.device("cpu")]


def compute_dtype(dtype: str, device: str | torch.device, *, expanded_to: str | None = None) -> torch.dtype:
    """The type that weights of ``dtype`` compute in: float32 for float16 on the CPU, which has no fast half type;
    for int4 the type its weights are expanded to, by name or the device's best."""
    import torch

    name = canonical_dtype(dtype)
    kind = torch.device(device).type
    types = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    if name == "int4":
        if expanded_to is not None:
            return types[canonical_dtype(expanded_to)]
        if kind == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.float32 if kind == "cpu" else torch.float16
    if name == "float16" and kind == "cpu":
        return torch.float32
    return types[name]
