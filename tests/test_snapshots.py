"""A picture that is kept is worth something only if another picture is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.widgets import Static

import snapshots


class Page(App[None]):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        yield Static(self.text, markup=False)


def picture(text: str, look: Callable[[App[Any]], None] | None = None) -> str:
    async def drawn() -> str:
        app = Page(text)
        async with app.run_test(size=(40, 6)):
            if look is not None:
                look(app)
            return app.export_screenshot()

    return asyncio.run(drawn())


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(snapshots, "DIRECTORY", tmp_path)
    return tmp_path


def check(svg: str, *, update: bool = False) -> None:
    snapshots.check(svg, "page", update=update)


def test_the_same_screen_passes_and_another_fails() -> None:
    check(picture("acceptance 0.71"), update=True)
    check(picture("acceptance 0.71"))
    with pytest.raises(pytest.fail.Exception, match=r"not as in .*page\.svg") as failed:
        check(picture("acceptance 0.72"))
    told = str(failed.value)
    assert "0.71" in told and "0.72" in told


def test_a_colour_counts() -> None:
    svg = picture("acceptance")
    check(svg, update=True)
    assert "#e0e0e0" in svg
    with pytest.raises(pytest.fail.Exception):
        check(svg.replace("#e0e0e0", "#e0e0e1"))


def test_a_missing_picture_says_how_to_make_it() -> None:
    with pytest.raises(pytest.fail.Exception, match="--snapshot-update"):
        check(picture("x"))


def test_pictures_of_another_version_are_not_compared(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(picture("x"), update=True)
    monkeypatch.setattr(snapshots, "versions", lambda: "textual 99")
    with pytest.raises(pytest.skip.Exception, match=r"of textual 8\.\S+, rich \S+, this is textual 99"):
        check(picture("y"))
    (kept / "VERSION").unlink()
    with pytest.raises(pytest.skip.Exception, match="unknown version"):
        check(picture("x"))


def test_what_is_kept_names_no_other_place(kept: Path) -> None:
    check(picture("a <b> & c"), update=True)
    svg = (kept / "page.svg").read_text("utf-8")
    assert "@font-face" in picture("x") and "@font-face" not in svg and "cdnjs" not in svg
    assert "terminal-r1" in svg and "&lt;b&gt;" in svg


def test_the_fixture_looks_at_an_app(
    kept: Path, snapshot: Callable[[App[Any], str], None], request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--snapshot-update"):
        with pytest.raises(pytest.fail.Exception, match="is missing"):
            picture("x", lambda app: snapshot(app, "page"))
        check(picture("x"), update=True)
    picture("x", lambda app: snapshot(app, "page"))
    assert (kept / "page.svg").exists()
