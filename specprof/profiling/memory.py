"""Peak memory: the allocator's high-water mark on a GPU, the process's resident set on a CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class PeakMemory:
    """High-water mark of memory by phase.

    On CUDA this is ``torch.cuda.max_memory_allocated``. On Linux CPUs it is ``VmHWM``,
    restarted through ``/proc/self/clear_refs``; where that is not allowed (or on macOS,
    which has no restart) the mark is the process's since its start.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.by_phase: dict[str, int] = {}

    def start(self) -> None:
        """Begin a phase: the mark falls back to what is in use now."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            _CLEAR_REFS.write_text("5")
        except OSError:
            return

    def stop(self, phase: str) -> int:
        """End a phase: its peak in bytes, kept as the largest seen for that name."""
        peak = self._peak_bytes()
        self.by_phase[phase] = max(peak, self.by_phase.get(phase, 0))
        return peak

    def _peak_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        except OSError:
            pass
        return _max_resident_bytes()


def _max_resident_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
