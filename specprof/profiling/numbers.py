"""Numbers as text, the same in every table, page and sentence. None is a dash."""

from __future__ import annotations

from specprof.profiling.metrics import BYTES_PER_MB
from specprof.profiling.speedup import Speedup

DASH = "-"


def count(number: int, noun: str) -> str:
    """``1 prompt``, ``2 prompts``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def fixed(value: float | None, digits: int = 2) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def times(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}x"


def percent(value: float | None) -> str:
    return DASH if value is None else f"{value * 100:.0f} %"


def milliseconds(seconds: float | None, *, like: float | None = None) -> str:
    """To three significant digits; ``like`` (seconds) lends its decimals to a whole column."""
    if seconds is None:
        return DASH
    scale = (seconds if like is None else like) * 1e3
    decimals = 0 if scale >= 100 else 1 if scale >= 10 else 2 if scale >= 1 else 3
    if like is not None:
        decimals = min(decimals + 1, 3)  # the small phases of a slow round should not all read 0
    return f"{seconds * 1e3:.{decimals}f}"


def rate(value: float | None) -> str:
    return DASH if value is None else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def megabytes(size: int | None) -> str:
    return DASH if size is None else f"{size / BYTES_PER_MB:.0f}"


def interval(speedup: Speedup) -> str:
    return f"[{speedup.ci[0]:.2f}, {speedup.ci[1]:.2f}]" if speedup.ci else DASH
