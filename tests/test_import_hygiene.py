"""What is cheap to import stays cheap: each case starts a fresh interpreter and looks at what it has loaded."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = (
    "torch", "transformers", "textual", "matplotlib", "huggingface_hub", "bitsandbytes", "ray", "pandas", "ollama",
)  # fmt: skip


def loaded_after(statement: str) -> set[str]:
    """Names of the top-level modules in memory once the statement has run."""
    program = (
        f"{statement}\nimport json, sys\nprint(json.dumps([n for n in sys.modules if '.' not in n]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_the_probe_sees_a_loaded_module() -> None:
    assert "textual" in loaded_after("import textual")


def test_commands_load_nothing_heavy() -> None:
    assert loaded_after("import specprof.commands").isdisjoint(HEAVY)


def test_help_loads_nothing_heavy() -> None:
    program = """
import runpy, sys
sys.argv = ["specprof", "--help"]
try:
    runpy.run_module("specprof", run_name="__main__", alter_sys=True)
except SystemExit as ended:
    assert ended.code in (0, None), ended.code
"""
    assert loaded_after(program).isdisjoint(HEAVY)


def test_help_and_version_answer() -> None:
    for flag in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-m", "specprof", flag], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "specprof" in done.stdout.lower()


@pytest.mark.parametrize(
    "module",
    [
        "specprof",
        "specprof.errors",
        "specprof.data.prompts",
        "specprof.profiling.events",
        "specprof.profiling.metrics",
        "specprof.profiling.statistics",
        "specprof.profiling.cost_model",
        "specprof.profiling.energy",
        "specprof.profiling.host_profile",
        "specprof.models.registry",
        "specprof.models.int4",
        "specprof.models.ollama",
        "specprof.decoding.settings",
        "specprof.experiments.config",
    ],
)
def test_what_needs_no_torch_loads_none(module: str) -> None:
    assert loaded_after(f"import {module}").isdisjoint(HEAVY)
