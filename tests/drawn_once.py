"""Every figure is drawn once: for tests of reports of the same few runs, which are about what stands around figures."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from specprof.reports import figures

_drawn: dict[bytes, Any] = {}


def draw_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was drawn before, of equal measurements, is taken again."""
    for name in figures.__all__:
        monkeypatch.setattr(figures, name, _once(name, getattr(figures, name)))


def _once(name: str, figure: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(figure)
    def drawn(*arguments: Any, **options: Any) -> Any:
        key = pickle.dumps((name, arguments, options))
        if key not in _drawn:
            _drawn[key] = figure(*arguments, **options)
        return _drawn[key]

    return drawn
