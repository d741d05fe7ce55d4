"""``benchmarks/soak.py``: a short one, and faults that are planted in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, Any

import pytest
import torch

_BENCHMARKS = str(Path(__file__).parent.parent / "benchmarks")
sys.path.insert(0, _BENCHMARKS)
import soak as bench  # noqa: E402

sys.path.remove(_BENCHMARKS)

ROUNDS = 1500
SHORT = bench.LIMITS | {"memory": 40_000.0, "pace": 0.0, "objects": 20_000.0, "covered": 20.0}
"""What a few seconds beside other tests can tell: the leaks below are far beyond it."""


@pytest.mark.slow
def test_a_short_soak_and_leaks_that_are_planted(capsys: pytest.CaptureFixture[str]) -> None:
    sound = bench.soak(ROUNDS, num_prompts=3, limits=SHORT)
    assert sound.crossed == (), bench.table(sound)
    assert sound.rounds >= ROUNDS and sum(tenth.rounds for tenth in sound.tenths) == sound.rounds
    assert len(sound.tenths) == bench.TENTHS and all(tenth.generations for tenth in sound.tenths)
    assert all(0.5 < tenth.covered <= 1.001 for tenth in sound.tenths)
    text = bench.table(sound)
    assert len(text.splitlines()) == bench.TENTHS + 3 and text.endswith("within all limits")

    held: list[Any] = []
    files: list[IO[bytes]] = []

    def leak() -> None:
        held.append(bytearray(b"x" * 100_000))
        held.append(torch.zeros(10))
        if len(held) % 50 == 0:
            files.append(open(__file__, "rb"))  # noqa: SIM115

    leaking = bench.soak(ROUNDS, num_prompts=3, limits=SHORT, each=leak)
    for file in files:
        file.close()
    assert {"memory", "files", "tensors"} <= set(leaking.crossed), bench.table(leaking)
    assert leaking.memory_kb > 2 * sound.memory_kb and leaking.memory_kb > 100_000
    assert "crossed: " in bench.table(leaking)


def test_the_slope_and_its_error() -> None:
    flat = [(i * 100, 5_000_000 + (i % 7) * 4096) for i in range(300)]
    slope, error = bench._slope(flat)
    assert abs(slope) < 3 * error + 0.05
    growing = [(rounds, rss + 2 * rounds) for rounds, rss in flat]
    slope, error = bench._slope(growing)
    assert slope == pytest.approx(2, abs=0.1) and error < 0.1
