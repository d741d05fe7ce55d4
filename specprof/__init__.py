"""specprof: what speculative decoding does for your models, on your hardware, with your prompts, and why."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pandas  # type: ignore[import-untyped]

__version__ = "0.1.0"

__all__ = ["__version__", "load_results"]


def load_results(directory: str | Path = "results") -> pandas.DataFrame:
    """What sweeps measured, as a pandas data frame: one row per generation, controls included.

    docs/results.md describes the columns.

    Raises:
        UsageError: there are no results in ``directory``, or an incompatible version wrote them.
        ResourceError: pandas is not installed, or the file can't be read.
    """
    # By name: parts that import this package for its version don't come to depend on the experiments.
    frame = importlib.import_module("specprof.experiments.frame")
    return frame.load_results(directory)
