"""The machine describes itself without failing, naming nobody, whatever can't be asked."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import specprof
from specprof.profiling import machine


def test_describe() -> None:
    described = machine.describe()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert described["python"] == platform.python_version()
    assert described["specprof"] == specprof.__version__
    assert described["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert described["torch_threads"] == torch.get_num_threads()
    assert described["cores"] >= 1
    assert described["memory_bytes"] > 2**20
    assert (described["gpu"] is not None) == torch.cuda.is_available()


def test_nobody_is_named() -> None:
    described = machine.describe()
    assert set(described) == {
        "platform", "cpu", "cores", "memory_bytes", "python", "specprof", "git_commit", "torch", "transformers",
        "torch_threads", "c_compiler", "gpu",
    }  # fmt: skip
    if len(home := str(Path.home())) > 1:
        assert home not in json.dumps(described)


def test_with_and_without_the_forward_in_c_it_is_not_the_same_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "gcc" else None)
    with_one = machine.describe()
    monkeypatch.setenv("SPECPROF_NATIVE", "0")
    without = machine.describe()
    assert (with_one["c_compiler"], without["c_compiler"]) == ("gcc", None)
    assert machine.machine_class(with_one) != machine.machine_class(without)


def test_what_fails_is_none(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise OSError("no such thing here")

    for name in ("_cpu_model", "_cores", "_memory_bytes", "_torch_threads", "_c_compiler", "_gpu"):
        monkeypatch.setattr(machine, name, broken)
    monkeypatch.setattr(subprocess, "run", broken)
    monkeypatch.setattr(importlib.metadata, "version", broken)
    described = machine.describe()
    assert {name for name, value in described.items() if value is not None} <= {"platform", "python", "specprof"}
    assert capfd.readouterr() == ("", "")


def test_commit_only_of_our_own_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site_packages = tmp_path / "project" / ".venv" / "site-packages" / "specprof"
    site_packages.mkdir(parents=True)
    (tmp_path / "project" / ".git").mkdir()
    asked: list[tuple[str, ...]] = []

    def answer(*command: str) -> str:
        asked.append(command)
        return "abc123"

    monkeypatch.setattr(machine, "_output_of", answer)
    monkeypatch.setattr(specprof, "__file__", str(site_packages / "__init__.py"))
    assert machine._git_commit() is None and not asked
    checkout = tmp_path / "project" / "specprof" / "__init__.py"
    monkeypatch.setattr(specprof, "__file__", str(checkout))
    assert machine._git_commit() == "abc123"


def test_a_failing_command_is_quiet(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert machine._output_of("git", "-C", str(tmp_path / "absent"), "describe") is None
    assert capfd.readouterr() == ("", "")


def test_gpu_as_torch_reports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name = "Test GPU"
        total_memory = 8 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(machine, "_output_of", lambda *_: "570.1\n570.1")
    assert machine._gpu() == {
        "name": "Test GPU",
        "memory_bytes": 8 * 2**30,
        "cuda": torch.version.cuda,
        "driver": "570.1",
        "count": 2,
    }


@pytest.mark.parametrize("gpu", ["H200", 5, [], True])
def test_a_description_from_a_file_may_hold_anything(gpu: object) -> None:
    assert machine.machine_class({"cpu": 3, "gpu": gpu}) == machine.machine_class({"cpu": 3, "gpu": None})
