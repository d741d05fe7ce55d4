"""What holds for every test: few threads, no network, no GPU test without a GPU, reproducible property tests."""

from __future__ import annotations

import os

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

# Timings vary on shared machines: a slow example is no failure. In CI the same examples are drawn every time.
settings.register_profile("local", deadline=None)
settings.register_profile("continuous", deadline=None, derandomize=True)
settings.load_profile("continuous" if os.environ.get("CI") else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--wheel", metavar="FILE", help="check this wheel (test_packaging.py) instead of building one")
    parser.addoption("--snapshot-update", action="store_true", help="draw the pictures in tests/snapshots anew")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked gpu where CUDA is absent; torch is imported only if there is such a test."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
