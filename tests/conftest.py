"""What holds for every test: few threads, no network, no GPU test without a GPU, reproducible property tests."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

# Before torch and huggingface_hub are imported, which read these once. Several small test models run faster on one
# thread than on many, and no test may reach for a hub. Subprocesses of the tests inherit both.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

from snapshots import snapshot

# Screens are looked at in colour, whatever the terminal is that the tests run in.
for _name in ("NO_COLOR", "TEXTUAL", "TEXTUAL_THEME"):
    os.environ.pop(_name, None)

__all__ = ["snapshot"]  # a fixture of all tests

# Shells start what runs in the background deaf to Ctrl-C, and so would be the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Timings vary on shared machines: a slow example is no failure. In CI the same examples are drawn every time.
settings.register_profile("local", deadline=None)
settings.register_profile("continuous", deadline=None, derandomize=True)
settings.load_profile("continuous" if os.environ.get("CI") else "local")


LONGEST = ("test_sweep_faults.py",)
"""Files that keep a worker for minutes: begun first, none of them is left alone at the end."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--wheel", metavar="FILE", help="check this wheel (test_packaging.py) instead of building one")
    parser.addoption("--snapshot-update", action="store_true", help="draw the pictures in tests/snapshots anew")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files of which ``-m slow`` or ``-m "not slow"`` runs no test are not even imported, by every process anew."""
    if collection_path.suffix != ".py" or config.option.markexpr not in ("slow", "not slow"):
        return None
    text = collection_path.read_text(encoding="utf-8")
    some, all_are = "mark.slow" in text, re.search(r"^pytestmark = pytest\.mark\.slow\b", text, re.MULTILINE)
    return True if (all_are if config.option.markexpr == "not slow" else not some) else None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the fuzz tests ran, whichever processes they ran in."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    called = [report.user_properties for report in reports if getattr(report, "when", None) == "call"]
    told = [value for properties in called for name, value in properties if name == "fuzz"]
    if told:
        from fuzz.chunk import Chunk, table

        total = Chunk()
        for figures in told:
            total.add(Chunk.from_dict(figures))
        terminalreporter.section("fuzz")
        terminalreporter.write_line("\n".join(table(total)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked gpu where CUDA is absent; torch is imported only if there is such a test."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
