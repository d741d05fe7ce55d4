"""Pictures of the screen, kept beside the tests as snapshots/NAME.svg, that a later picture has to equal.

`pytest --snapshot-update` draws them anew. What is drawn depends on the versions of Textual and Rich, which are kept
with the pictures: under others there is nothing to compare with.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from textual.app import App

DIRECTORY = Path(__file__).with_name("snapshots")
FONTS = re.compile(r"@font-face\s*\{[^}]*\}\s*")
NAME = re.compile(r"terminal-\d+")
"""Of a picture's own styles: a checksum of all that is in it."""
MOST_DIFFERENCES = 30


@pytest.fixture
def snapshot(request: pytest.FixtureRequest) -> Callable[[App[Any], str], None]:
    """``snapshot(app, "name")``: the app's screen is as it was."""
    update = bool(request.config.getoption("--snapshot-update"))
    return lambda app, name: check(app.export_screenshot(), name, update=update)


def check(svg: str, name: str, *, update: bool) -> None:
    """Compare a picture with the one that is kept, or keep it."""
    file, version, now = DIRECTORY / f"{name}.svg", DIRECTORY / "VERSION", versions()
    drawn = normalized(svg)
    if update:
        DIRECTORY.mkdir(exist_ok=True)
        version.write_text(now + "\n", "utf-8")
        file.write_text(drawn, "utf-8")
        return
    if not file.exists():
        pytest.fail(f"{file} is missing; `pytest --snapshot-update` makes it: look at it before you keep it")
    kept_by = version.read_text("utf-8").strip() if version.exists() else "an unknown version"
    if kept_by != now:
        pytest.skip(f"the pictures are of {kept_by}, this is {now}")
    kept = file.read_text("utf-8")
    if drawn != kept:
        lines = list(difflib.unified_diff(kept.splitlines(), drawn.splitlines(), "kept", "drawn", n=0, lineterm=""))
        pytest.fail("\n".join((f"the screen is not as in {file}:", *lines[:MOST_DIFFERENCES])))


def normalized(svg: str) -> str:
    """The picture without what says nothing of the screen, one element a line."""
    return re.sub(r">\s*<", ">\n<", NAME.sub("terminal", FONTS.sub("", svg))).rstrip() + "\n"


def versions() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("textual", "rich"))
