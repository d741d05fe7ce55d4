"""What a model weighs, in its files and in memory, and what a device has room for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specprof.errors import ResourceError
from specprof.models import checkpoint, int4
from specprof.models.devices import canonical_dtype, compute_dtype

if TYPE_CHECKING:
    import torch

# --- what it will take, and what there is


def memory_needed(directory: Path, dtype: str, device: str | torch.device, *, expanded_to: str | None = None) -> int:
    """Bytes the weights in ``directory`` will take once loaded, from the file headers."""
    stored = checkpoint.stored_tensors(directory, str(directory))
    shapes = ((t.name, t.shape) for t in stored if t.is_parameter)
    return bytes_for(shapes, dtype, device, expanded_to=expanded_to)


def bytes_for(
    shapes: Iterable[tuple[str, tuple[int, ...]]],
    dtype: str,
    device: str | torch.device,
    *,
    expanded_to: str | None = None,
) -> int:
    """Bytes that parameters of these names and shapes take in ``dtype`` on ``device``."""
    plain = compute_dtype(dtype, device, expanded_to=expanded_to).itemsize
    packed = canonical_dtype(dtype) == "int4"
    total = 0.0
    for name, shape in shapes:
        quantised = packed and int4.is_quantised(name, shape, device)
        total += math.prod(shape) * (int4.BYTES_PER_WEIGHT if quantised else plain)
    return math.ceil(total)


_FIRST_VERSION = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def available_memory(device: str | torch.device) -> int:
    """Bytes that can still be allocated on ``device``; on the CPU within the container's limit."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    import psutil

    available = int(psutil.virtual_memory().available)
    limits = (_container_room(group) for group in _own_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")))
    return min([available, *(limit for limit in limits if limit is not None)])


def require_memory(needed: int, device: str | torch.device, what: str, *, elsewhere: str = "another --device") -> None:
    """Raise ResourceError, naming both figures, if ``needed`` bytes are not available on ``device``."""
    available = available_memory(device)
    if needed > available:
        raise ResourceError(
            f"{what} needs {needed / 1e9:.1f} GB on {device}, {available / 1e9:.1f} GB are available",
            f"free memory, or use a smaller model, a smaller dtype (--dtype int4) or {elsewhere}",
        )


def _own_groups(mounted: Path, own: Path) -> Iterator[Path]:
    """Folders of the control groups that this process is in, from its own to the outermost, of either version.

    In a container some of what ``own`` names may not be mounted: its outermost folder then is the container's.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = mounted / controllers
            yield from (root / Path(*part) for part in _beginnings(Path(path).parts[1:]))


def _beginnings(parts: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [parts[:length] for length in range(len(parts), -1, -1)]


def _container_room(group: Path) -> int | None:
    """Bytes left below the memory limit of a control group; None without a limit."""
    names = ("memory.max", "memory.current") if (group / "memory.max").is_file() else _FIRST_VERSION
    try:
        limit, used = (int((group / name).read_text()) for name in names)
        fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such files, or "max"
        return None
    # The page cache counts as used, but gives way; the first version names that of all below "total".
    return limit - used + int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))


# --- what it takes


def parameter_count(model: Any) -> int:
    """Number of parameters; tied ones once, quantised ones as what they stand for."""
    return sum(_num_elements(parameter) for parameter in _distinct(model.parameters()))


def memory_footprint_bytes(*models: Any) -> int:
    """Bytes of all parameters and buffers as they lie in memory; shared storage once, int4 packed with its scales."""
    held = _distinct([tensor for model in models for tensor in (*model.parameters(), *model.buffers())])
    return sum(tensor.nbytes + sum(scale.nbytes for scale in int4.scales(tensor)) for tensor in held)


def bytes_by_device(model: Any) -> dict[str, int]:
    """Bytes of parameters by where they lie; what main memory only lends to a GPU counts as ``cpu``."""
    held: dict[str, int] = {}
    for parameter in _distinct(model.parameters()):
        # Between two passes accelerate leaves a placeholder on the meta device.
        place = "cpu" if parameter.device.type == "meta" else str(parameter.device)
        held[place] = held.get(place, 0) + parameter.nbytes + sum(s.nbytes for s in int4.scales(parameter))
    return held


def is_spread(model: Any) -> bool:
    """Whether accelerate moves what passes between this model's modules from device to device."""
    return bool(getattr(model, "hf_device_map", None))


def _distinct(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors that share their memory, once."""
    seen: dict[Any, torch.Tensor] = {}
    for tensor in tensors:
        place = (tensor.device, tensor.data_ptr()) if tensor.device.type != "meta" and tensor.numel() else id(tensor)
        seen.setdefault(place, tensor)
    return list(seen.values())


def _num_elements(parameter: torch.Tensor) -> int:
    state = getattr(parameter, "quant_state", None)
    return math.prod(state.shape) if state is not None else parameter.numel()
