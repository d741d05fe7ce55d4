"""Peak memory: it sees what was used and is gone again, and begins anew with each phase."""

from __future__ import annotations

import mmap
import resource
import sys
from pathlib import Path

import psutil
import pytest
import torch

from specprof.profiling import memory
from specprof.profiling.memory import PeakMemory

MB = 2**20
CPU = torch.device("cpu")


def can_restart() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def use_and_drop(size: int) -> None:
    # Straight from the system: after a day's tests malloc has so much to hand out that it need not ask.
    with mmap.mmap(-1, size) as pages:
        for offset in range(0, size, mmap.PAGESIZE):
            pages[offset] = 1


class TestOnCpu:
    def test_a_peak_that_is_gone_again_is_seen(self) -> None:
        peak = PeakMemory(CPU)
        peak.start()
        before = resident()
        use_and_drop(200 * MB)
        assert resident() < before + 100 * MB
        assert peak.stop("decode") > before + 150 * MB

    def test_at_least_what_is_in_use(self) -> None:
        peak = PeakMemory(CPU)
        peak.start()
        held = torch.ones(50 * MB, dtype=torch.uint8)
        assert peak.stop("load") >= resident() * 0.95 > held.nbytes

    @pytest.mark.skipif(not can_restart(), reason="the system doesn't let a process restart its mark")
    def test_each_phase_begins_anew(self) -> None:
        peak = PeakMemory(CPU)
        peak.start()
        use_and_drop(200 * MB)
        first = peak.stop("load")
        peak.start()
        second = peak.stop("decode")
        assert second < first - 100 * MB
        assert peak.by_phase == {"load": first, "decode": second}

    @pytest.mark.skipif(not can_restart(), reason="the system doesn't let a process restart its mark")
    def test_the_largest_of_a_phase_is_kept(self) -> None:
        peak = PeakMemory(CPU)
        values = []
        for size in (10 * MB, 200 * MB, 10 * MB):
            peak.start()
            use_and_drop(size)
            values.append(peak.stop("decode"))
        assert peak.by_phase == {"decode": max(values)}
        assert values[1] == max(values)
        assert values[2] < values[1] - 100 * MB  # what stop returns is this time's

    def test_where_the_mark_cannot_be_restarted(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path)  # a directory can't be written
        peak = PeakMemory(CPU)
        peak.start()
        assert peak.stop("decode") > 0

    @pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
    def test_without_proc(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, unit: int) -> None:
        monkeypatch.setattr(memory, "_STATUS", tmp_path / "missing")
        monkeypatch.setattr(sys, "platform", platform)
        expected = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        assert PeakMemory(CPU).stop("decode") >= expected > 0
        assert PeakMemory(CPU).stop("decode") < 2 * expected

    def test_bytes_not_kilobytes(self) -> None:
        assert PeakMemory(CPU).stop("load") == pytest.approx(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.9
        )
        assert PeakMemory(CPU).stop("load") > 20 * MB  # no Python with torch is smaller


@pytest.mark.gpu
class TestOnCuda:
    def test_peak(self) -> None:
        device = torch.device("cuda")
        peak = PeakMemory(device)
        peak.start()
        before = torch.cuda.memory_allocated()
        torch.ones(64 * MB, dtype=torch.uint8, device=device)
        assert peak.stop("draft") >= before + 64 * MB
        peak.start()
        assert peak.stop("verify") < before + 64 * MB
        assert set(peak.by_phase) == {"draft", "verify"}
