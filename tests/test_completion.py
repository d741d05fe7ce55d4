"""What a shell offers at the tab key: asked as shells ask, through the variables that Typer's scripts set."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import command, isolate
from specprof.commands.options import FORWARDS
from specprof.experiments.config import DRAFTERS, ENGINES, RunConfig
from specprof.models.devices import DTYPES
from specprof.models.registry import REGISTRY, get_pair

HEAVY = {"torch", "pandas", "matplotlib", "textual", "transformers", "huggingface_hub"}
RUNS = ("20261121-101500-7f3c", "20261122-093011-a2d0")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    for name in (*RUNS, "records", "baseline"):
        Path("results", f"{name}.jsonl").parent.mkdir(exist_ok=True)
        Path("results", f"{name}.jsonl").touch()
    Path("specprof.toml").write_text('[pairs.mine]\ndraft = "a"\ntarget = "b"\nnotes = "half [/b] markup"\n')


def offered(line: str, monkeypatch: pytest.MonkeyPatch, shell: str = "bash") -> list[str]:
    """What completes the last word of a command line; none yet where it ends with a space."""
    words = line.split(" ")
    monkeypatch.setenv("_SPECPROF_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    outcome = command()
    assert outcome.code == 0 and outcome.err == "", outcome.err
    return outcome.out.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("specprof ver", ["verify"]),
        ("specprof results ", ["list", "show", "rm", "export"]),
        ("specprof run --pair ", [*REGISTRY, "mine"]),
        ("specprof run --pair tiny_", ["tiny_dev", "tiny_cross"]),
        ("specprof run --drafter ", list(DRAFTERS)),
        ("specprof run --dtype ", list(DTYPES)),
        ("specprof verify --engine ", list(ENGINES)),
        ("specprof tui --forward ", list(FORWARDS)),
        ("specprof run --domain c", ["code", "conversation"]),
        ("specprof run --color a", ["auto", "always"]),
        ("specprof sweep --drafter model,n", ["model,ngram"]),
        ("specprof sweep --pair tiny_dev,tiny", ["tiny_dev,tinyllama_llama3", "tiny_dev,tiny_cross"]),
        ("specprof sweep --executor ", ["local", "ray"]),
        ("specprof explain ", list(reversed(RUNS))),
        ("specprof explain 20261121", [RUNS[0]]),
        (f"specprof compare {RUNS[0]} 2026112", list(reversed(RUNS))),
        (f"specprof report {RUNS[0]} ", [RUNS[1]]),
        ("specprof report --compare ", list(reversed(RUNS))),
        ("specprof results show ", list(reversed(RUNS))),
        ("specprof results rm ", list(reversed(RUNS))),
        ("specprof tui --replay ", list(reversed(RUNS))),
        ("specprof prompts --show code_01", [f"code_01{n}" for n in range(10)]),
        ("specprof run --no-b", ["--no-baseline"]),
        ("specprof run --prompts ", []),  # the shell offers files
    ],
)
def test_what_is_offered(line: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert offered(line, monkeypatch) == expected


def test_runs_are_those_of_the_directory_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere", "20260101-000000-0000.jsonl").touch()
    assert offered("specprof explain --results-dir elsewhere ", monkeypatch) == ["20260101-000000-0000"]
    monkeypatch.setenv("SPECPROF_RESULTS", "elsewhere")
    assert offered("specprof explain ", monkeypatch) == ["20260101-000000-0000"]
    assert offered("specprof explain --results-dir nowhere ", monkeypatch) == []


def test_a_damaged_file_of_pairs_costs_its_own_pairs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("specprof.toml").write_text("[pairs.mine\n")
    assert offered("specprof run --pair ", monkeypatch) == list(REGISTRY)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_help_texts_are_text_in_shells_that_show_them(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = " ".join(offered("specprof run --k", monkeypatch, shell))
    assert "--k-max" in said and "default" in said and "8]" in said


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_what_is_offered_is_taken(drafter: str) -> None:
    RunConfig(get_pair("tiny_dev"), drafter=drafter, draft_layers=1 if drafter == "layerskip" else None)


@pytest.mark.parametrize("forward", FORWARDS)
def test_forwards_that_are_offered_are_taken(forward: str) -> None:
    RunConfig(get_pair("tiny_dev"), forward=forward)


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"} | environment
    return subprocess.run(
        [sys.executable, "-m", "specprof", *arguments], capture_output=True, text=True, env=variables, check=False
    )


@pytest.mark.parametrize(
    ("shell", "file"),
    [
        ("bash", ".bash_completions/specprof.sh"),
        ("zsh", ".zfunc/_specprof"),
        ("fish", ".config/fish/completions/specprof.fish"),
    ],
)
def test_installing_puts_what_is_shown_into_the_shells_place(shell: str, file: str, tmp_path: Path) -> None:
    shown = process("--show-completion", shell)
    assert shown.returncode == 0 and "_SPECPROF_COMPLETE=complete_" in shown.stdout
    installed = process("--install-completion", shell, HOME=str(tmp_path))
    assert installed.returncode == 0, installed.stderr
    assert (tmp_path / file).read_text().strip() == shown.stdout.strip()


def test_a_shell_that_is_not_known_is_no_bug() -> None:
    assert process("--show-completion").returncode == 2


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_in_bash(tmp_path: Path) -> None:
    program = tmp_path / "specprof"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m specprof "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    script = process("--show-completion", "bash").stdout + (
        "\nCOMP_WORDS=(specprof run --pair tiny_c) COMP_CWORD=3\n_specprof_completion specprof\n"
        "printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    variables = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=variables, check=False)
    assert done.stdout == "tiny_cross\n", done.stderr


def test_completing_loads_nothing_heavy() -> None:
    program = (
        "import atexit, os, sys\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from specprof.commands import main\nmain([])\n"
    )
    variables = {"_SPECPROF_COMPLETE": "complete_bash", "COMP_WORDS": "specprof run --pair ", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | variables, check=False
    )
    assert "tiny_dev" in done.stdout
    loaded = set(done.stderr.split())
    assert "specprof.commands" in loaded
    assert loaded.isdisjoint({"torch", "pandas", "matplotlib", "textual", "transformers", "huggingface_hub"})
