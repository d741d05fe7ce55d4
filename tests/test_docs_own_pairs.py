"""docs/own_pairs.md quotes what the program says: each command of its table of errors is run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from command_line import command, isolate, ok
from docs_pages import ROOT
from packaged import directory_of

PAGE = (ROOT / "docs" / "own_pairs.md").read_text(encoding="utf-8")
ERRORS = re.findall(r"^\| `specprof (.*?)` \| (.*?) \| (.*?) \|$", PAGE, re.M)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page talks about."""
    isolate(tmp_path, monkeypatch)
    for name, model in {"small": "draft", "large": "target"}.items():
        os.symlink(directory_of(f"tiny_dev/{model}"), name)
    os.mkdir("empty")
    shutil.copytree(directory_of("tiny_dev/target"), "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    Path("pickled", "pytorch_model.bin").touch()
    [toml] = re.findall(r"^```toml\n(.*?)^```", PAGE, re.M | re.S)
    Path("specprof.toml").write_text(toml)


def test_there_are_errors_to_look_at() -> None:
    assert len(ERRORS) >= 8


@pytest.mark.parametrize(("arguments", "error", "hint"), ERRORS, ids=[each[0] for each in ERRORS])
def test_the_program_says_what_the_page_says(arguments: str, error: str, hint: str) -> None:
    outcome = command(*shlex.split(arguments))
    assert outcome.code in (2, 3)
    said, advised = outcome.told
    assert said == error
    assert advised.startswith(hint.removesuffix("...")) and (hint.endswith("...") or advised == hint)


def test_the_pair_of_the_page_is_one() -> None:
    [pair] = [pair for pair in ok("load", "--list", "--json").document["pairs"] if pair["name"] == "mine"]
    assert (pair["draft_dtype"], pair["target_dtype"]) == ("float16", "bfloat16")


def test_the_card_of_the_page_is_what_load_prints() -> None:
    [card] = re.findall(r"^```text\n(note .*?)^```", PAGE, re.M | re.S)
    shown = ok("load", "--pair", "tiny_cross", "--device", "cpu").out
    varying = re.compile(r"\d+\.\d+ GB were available|\d+\.\d MB|forward +: \w+|^output.*$", re.M)
    assert varying.sub("", shown) == varying.sub("", card)
