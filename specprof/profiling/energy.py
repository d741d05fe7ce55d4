"""Joules drawn, from counters the hardware keeps: NVML's on NVIDIA GPUs, RAPL's on Linux processors.

A counter counts whatever draws power behind it, idle power and other processes included. NVML's is the whole board;
RAPL's is the processor packages, without memory modules and without a GPU. Reading one is cheap beside a generation
(RAPL: about 10 microseconds a package, and the kernel's own read of the register) and belongs outside everything timed.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")

# "approximately every 100 ms on NVIDIA GPUs": ML.ENERGY, Thermally Stable Profiling for Accurate GPU Energy
# Measurement. PETSc's manual (PetscLogGpuEnergyMeter) has 20 to 100 ms. On A100 and H100 the sensor behind it looks at
# 25 % of the time only (Yang et al., SC24, arXiv 2312.02741), so the figure of one short generation can be far off.
NVML_RESOLUTION_SECONDS = 0.1

# "updated every ~1msec": Intel Software Developer's Manual, volume 3B, MSR_PKG_ENERGY_STATUS.
RAPL_RESOLUTION_SECONDS = 0.001


class _Counter(Protocol):
    def joules(self) -> float | None:
        """Since some origin; None while it can't be read."""


@dataclass(frozen=True, slots=True)
class EnergyMeter:
    """Joules that the devices of a run have drawn since some origin."""

    source: str
    """``nvml: NVIDIA H200``, ``rapl: 2 packages``."""
    resolution_seconds: float
    """How often the counter moves. What is not much longer than this can't be told from noise, alone: sums over many
    generations can."""
    counters: tuple[_Counter, ...]

    @classmethod
    def meter_or_reason(
        cls,
        gpus: Sequence[str | int] = (),
        *,
        powercap: Path = POWERCAP,
        nvml: Any = None,
        environ: Mapping[str, str] = os.environ,
    ) -> EnergyMeter | str:
        """The meter of these devices, or one sentence on why there is none.

        Args:
            gpus: the NVIDIA GPUs that the models are on, by UUID (``torch.cuda.get_device_properties(i).uuid``, with
                or without ``GPU-`` in front) or by CUDA index, which ``CUDA_VISIBLE_DEVICES`` maps. None
                of them: the processor.
            powercap: where the kernel shows RAPL's counters.
            nvml: a module like ``pynvml``; None: that one, if it is installed.
            environ: the environment CUDA was started in.
        """
        try:
            return _nvml_meter(gpus, nvml, environ) if gpus else _rapl_meter(powercap)
        except _NoMeter as reason:
            return str(reason)

    def read(self) -> float | None:
        """Joules since some origin, never falling; None while a counter can't be read."""
        total = 0.0
        for counter in self.counters:
            joules = counter.joules()
            if joules is None:
                return None
            total += joules
        return total

    def since(self, before: float | None) -> float | None:
        """Joules drawn since an earlier :meth:`read`; None if either reading failed."""
        now = self.read()
        return None if before is None or now is None else now - before


class _NoMeter(Exception):
    """Why there is none: one sentence."""


# RAPL


@dataclass(slots=True)
class _RaplPackage:
    energy_file: Path
    range_microjoules: int
    """The counter starts again past it, at 250 W after 4 to 17 minutes. Twice between two readings looks like once."""
    last_microjoules: int
    total_microjoules: int = 0

    def joules(self) -> float | None:
        try:
            now = _whole_number(self.energy_file)
        except (OSError, ValueError):
            return None
        if now > self.range_microjoules:
            return None
        moved = now - self.last_microjoules
        self.total_microjoules += moved if moved >= 0 else moved + self.range_microjoules
        self.last_microjoules = now
        return self.total_microjoules / 1e6


def _rapl_meter(powercap: Path) -> EnergyMeter:
    # AMD's processors appear under Intel's name too. Sub-zones (core, dram: intel-rapl:0:0) are left out, and so is
    # psys, which counts the packages a second time.
    packages = [
        _rapl_package(zone, powercap)
        for zone in sorted(powercap.glob("intel-rapl:*"))
        if zone.name.count(":") == 1 and _first_line(zone / "name").startswith("package")
    ]
    if not packages:
        if not sys.platform.startswith("linux"):
            raise _NoMeter("the energy of a processor can be read on Linux only")
        raise _NoMeter(f"there is no RAPL counter under {powercap}: virtual machines and containers hide them")
    number = "1 package" if len(packages) == 1 else f"{len(packages)} packages"
    return EnergyMeter(f"rapl: {number}", RAPL_RESOLUTION_SECONDS, tuple(packages))


def _rapl_package(zone: Path, powercap: Path) -> _RaplPackage:
    energy_file, range_file = zone / "energy_uj", zone / "max_energy_range_uj"
    try:
        package = _RaplPackage(energy_file, _whole_number(range_file), _whole_number(energy_file))
    except PermissionError:
        # Since CVE-2020-8694: how much power a processor draws tells what it computes.
        allowing = f"sudo chmod a+r {powercap}/intel-rapl:*/energy_uj"
        raise _NoMeter(f"only root may read {energy_file}; until the next boot, `{allowing}` changes that") from None
    except OSError as error:
        raise _NoMeter(f"{energy_file} can't be read: {error.strerror or error}") from None
    except ValueError as error:
        raise _NoMeter(f"RAPL's counter {zone} makes no sense: {error}") from None
    if package.last_microjoules > package.range_microjoules:
        raise _NoMeter(f"RAPL's counter {zone} makes no sense: it is past its own range")
    return package


def _whole_number(path: Path) -> int:
    text = path.read_text(encoding="ascii", errors="replace").strip()
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{path.name} holds {text[:20]!r}")
    return int(text)


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").partition("\n")[0]
    except OSError:
        return ""


# NVML


@dataclass(frozen=True, slots=True)
class _Gpu:
    nvml: Any
    handle: Any
    uuid: str
    """Without ``GPU-`` in front, which PyTorch leaves out."""
    name: str

    def joules(self) -> float | None:
        try:
            return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)) / 1e3
        except self.nvml.NVMLError:
            return None


def _nvml_meter(gpus: Sequence[str | int], nvml: Any, environ: Mapping[str, str]) -> EnergyMeter:
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            raise _NoMeter(
                "a GPU's energy is read through NVML, whose Python module is missing: `pip install nvidia-ml-py`"
            ) from None
    try:
        nvml.nvmlInit()
        installed = [_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        raise _NoMeter(f"NVML, which reads a GPU's energy, does not answer: {error}") from None
    # Two models on one GPU are one counter.
    chosen = {gpu.uuid: gpu for gpu in (_chosen(wanted, installed, environ) for wanted in gpus)}
    for gpu in chosen.values():
        try:
            nvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle)
        except nvml.NVMLError as error:
            raise _NoMeter(f"{gpu.name} has no energy counter that NVML can read: {error}") from None
    names = [gpu.name for gpu in chosen.values()]
    counted = [name if names.count(name) == 1 else f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    return EnergyMeter(f"nvml: {', '.join(counted)}", NVML_RESOLUTION_SECONDS, tuple(chosen.values()))


def visible_gpu(index: int, nvml: Any, environ: Mapping[str, str] = os.environ) -> Any | None:
    """NVML's handle of the GPU that CUDA calls ``index``; None where there is no telling.

    Args:
        nvml: a module like ``pynvml``.
        environ: the environment CUDA was started in.
    """
    try:
        nvml.nvmlInit()
        installed = [_gpu(nvml, number) for number in range(nvml.nvmlDeviceGetCount())]
        return _chosen(index, installed, environ).handle
    except (nvml.NVMLError, _NoMeter):
        return None


def _gpu(nvml: Any, index: int) -> _Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    return _Gpu(nvml, handle, _bare(_text(nvml.nvmlDeviceGetUUID(handle))), _text(nvml.nvmlDeviceGetName(handle)))


def _chosen(wanted: str | int, installed: Sequence[_Gpu], environ: Mapping[str, str]) -> _Gpu:
    if isinstance(wanted, int):
        wanted = _visible(wanted, installed, environ)
    if isinstance(wanted, int):
        return installed[wanted]
    # CUDA_VISIBLE_DEVICES may have a UUID's first digits only, as long as they are one GPU's.
    matching = [gpu for gpu in installed if gpu.uuid.startswith(_bare(wanted))]
    if len(matching) != 1:
        raise _NoMeter(f"NVML shows no GPU {wanted}; a slice of a GPU (MIG) has no energy counter of its own")
    return matching[0]


def _visible(index: int, installed: Sequence[_Gpu], environ: Mapping[str, str]) -> str | int:
    """NVML's index or the UUID of the GPU that CUDA calls ``index``."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    entries = [str(i) for i in range(len(installed))] if visible is None else [e.strip() for e in visible.split(",")]
    if index >= len(entries) or entries[index] == "":
        raise _NoMeter(f"there is no GPU {index}: CUDA_VISIBLE_DEVICES={visible}")
    entry = entries[index]
    if not entry.isdigit():
        return entry
    # CUDA puts the fastest first unless told otherwise, NVML goes by the bus.
    if len({gpu.name for gpu in installed}) > 1 and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        raise _NoMeter("CUDA and NVML may number GPUs of several kinds differently: set CUDA_DEVICE_ORDER=PCI_BUS_ID")
    if int(entry) >= len(installed):
        raise _NoMeter(f"NVML shows {len(installed)} GPUs, and no number {entry}")
    return int(entry)


def _bare(uuid: str) -> str:
    return uuid.removeprefix("GPU-").lower()


def _text(value: str | bytes) -> str:
    # Old versions of pynvml answer in bytes.
    return value.decode() if isinstance(value, bytes) else value
