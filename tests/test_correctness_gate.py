"""Greedy speculation that is not the target's output ends with an error of its own, after all that was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Outcome, command, isolate, ok
from specprof.commands.run import _check_output
from specprof.decoding.judge import Judge, Ruling
from specprof.errors import CorrectnessError
from specprof.experiments import run as experiment
from specprof.experiments import tie
from specprof.experiments.saved_runs import differences
from specprof.profiling.comparison import Comparison, Divergence, compare
from specprof.profiling.events import RunEnded, from_json_line
from test_comparison import ar, sd

CORRECTNESS = 6
SHORT = ("-n", "2", "--max-new-tokens", "12", "--reps", "1", "--warmup", "0", "--deterministic", "--no-cost-curve")


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that accepts everything."""
