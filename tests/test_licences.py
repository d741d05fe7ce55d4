"""docs/licences.md is what scripts/licences.py makes of what is installed."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import licences
import pytest

SCRIPT = Path(licences.__file__)


def test_the_page_is_the_one_on_file() -> None:
    other = {one.name: one.version for one in licences.needed() if installed(one.name) not in (one.version, None)}
    if other := {name: version for name, version in other.items() if version != "-"}:
        pytest.skip(f"the page is of the tested versions, and here others are installed than {other}")
    checked = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def installed(name: str) -> str | None:
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def test_another_page_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md").write_text("another")
    monkeypatch.setattr(licences, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", ["licences.py", "--check"])
    assert licences.main() == 1 and "run python scripts/licences.py" in capsys.readouterr().err


def test_what_is_needed_is_there_with_its_extras() -> None:
    found = {one.name.lower(): one for one in licences.needed()}
    assert {"torch", "sympy", "markupsafe", "textual"} <= found.keys(), "what is needed by what is needed"
    assert not {"pytest", "ruff", "specprof"} & found.keys()
    assert found["ray"].extras == {"ray"} and found["pandas"].extras == {"analysis", "datasets"}
    assert not found["torch"].extras and found["nvidia-ml-py"].extras == {"energy"}
    assert all(one.licence == "-" or len(one.licence) > 2 for one in found.values())


def test_a_copyleft_is_named() -> None:
    notes = [line for line in licences.page().splitlines() if line.startswith("- ")]
    assert "certifi" in notes[0] and "tqdm" in notes[0] and "numpy" not in notes[0]
