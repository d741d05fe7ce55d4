"""What a process and the device it computes on are doing, seen from outside: the process itself is not asked."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import psutil

from specprof.profiling.energy import EnergyMeter, visible_gpu
from specprof.profiling.feed import Device

_Value = TypeVar("_Value")


class DeviceReader:
    """Reads what a process has of this machine, and the GPU its models are on.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._gpu: _Gpu | None = None
        meter = EnergyMeter.meter_or_reason()
        self._meter = None if isinstance(meter, str) else meter
        self._joules, self._at = self._meter.read() if self._meter else None, time.monotonic()
        psutil.cpu_percent()  # what has been since the last call is counted from the first

    def look_at(self, config: Mapping[str, Any]) -> None:
        """Learn from a run's configuration where its models are."""
        target = (config.get("models") or {}).get("target") or {}
        kind, _, index = str(target.get("device")).partition(":")
        if kind == "cuda" and self._gpu is None:
            self._gpu = _Gpu.found(int(index or 0))

    def read(self) -> Device:
        """The GPU if the models are on one and it can be asked, else the machine."""
        return self._gpu.read() if self._gpu else self._machine()

    def _machine(self) -> Device:
        memory = total = None
        try:
            memory = psutil.Process(self._pid).memory_info().rss
            total = psutil.virtual_memory().total
        except (psutil.Error, OSError):
            pass
        return Device("cpu", memory, total, min(psutil.cpu_percent() / 100, 1.0), self._watts())

    def _watts(self) -> float | None:
        """Of the processor since the last reading."""
        if self._meter is None:
            return None
        joules, at = self._meter.read(), time.monotonic()
        before, seconds = self._joules, at - self._at
        self._joules, self._at = joules, at
        return None if joules is None or before is None or seconds <= 0 else (joules - before) / seconds


class _Gpu:
    """A GPU, as NVML shows it."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        name = self._asked(lambda: nvml.nvmlDeviceGetName(handle))
        self._name = name.decode() if isinstance(name, bytes) else name or "cuda"

    @classmethod
    def found(cls, index: int) -> _Gpu | None:
        """The one that CUDA calls ``index``; None where NVML doesn't tell."""
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return None
        handle = visible_gpu(index, nvml)
        return None if handle is None else cls(nvml, handle)

    def read(self) -> Device:
        nvml, handle = self._nvml, self._handle
        memory = self._asked(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        utilisation = self._asked(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)
        watts = self._asked(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000)
        used, total = (None, None) if memory is None else (int(memory.used), int(memory.total))
        return Device(self._name, used, total, utilisation, watts)

    def _asked(self, query: Callable[[], _Value]) -> _Value | None:
        # Each by itself: a slice of a GPU, or an old one, answers some of them.
        try:
            return query()
        except self._nvml.NVMLError:
            return None
