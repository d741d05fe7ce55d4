"""Headless Chromium, to see a page as its readers do; every start has a profile of its own, and no network."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


def find() -> str | None:
    """Where the browser is, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def dump_dom(page: Path) -> tuple[str, list[str]]:
    """The document after scripts and loading had their time, and what the page's console said."""
    done = _run("--dump-dom", "--virtual-time-budget=2000", "--enable-logging=stderr", "--v=0", page.as_uri())
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def screenshot(page: Path, picture: Path, *, width: int, height: int, dark: bool = False) -> None:
    """A PNG of the page's top, of ``width`` by ``height`` CSS pixels."""
    scheme = "--blink-settings=preferredColorScheme=" + ("0" if dark else "1")
    _run(scheme, f"--window-size={width},{height}", f"--screenshot={picture}", page.as_uri())


def pdf(page: Path, document: Path) -> None:
    """The page as it prints."""
    _run("--no-pdf-header-footer", f"--print-to-pdf={document}", page.as_uri())


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = find()
    assert program is not None, "no browser"
    with tempfile.TemporaryDirectory() as profile:
        return subprocess.run(
            [program, *QUIET, f"--user-data-dir={profile}", *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
            check=True,
        )
