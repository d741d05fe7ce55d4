"""Energy: the counters of a made-up machine, through their wraps and failures, and of GPUs that a stand-in shows.

Neither a powercap tree nor a GPU is at hand where these run, so the tree is written to a directory and NVML is a small
module of the same functions.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from specprof.profiling.energy import EnergyMeter

RANGE = 262_143_328_850


def zone(
    powercap: Path, name: str, label: str, microjoules: int | str, largest: int | str = RANGE, *, ending: str = "\n"
) -> Path:
    directory = powercap / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "name").write_text(label + ending)
    (directory / "max_energy_range_uj").write_text(f"{largest}{ending}")
    (directory / "energy_uj").write_text(f"{microjoules}{ending}")
    return directory / "energy_uj"


def meter(powercap: Path) -> EnergyMeter:
    found = EnergyMeter.meter_or_reason(powercap=powercap)
    assert isinstance(found, EnergyMeter), found
    return found


def reason(*arguments: Any, **options: Any) -> str:
    found = EnergyMeter.meter_or_reason(*arguments, **options)
    assert isinstance(found, str)
    assert "\n" not in found and not found.endswith(".")
    return found


# RAPL


def test_packages_are_summed_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 7_000_000)
    others = [
        zone(tmp_path, "intel-rapl:0:0", "core", 1),
        zone(tmp_path, "intel-rapl:0:1", "dram", 1),
        zone(tmp_path, "intel-rapl:2", "psys", 1),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1),
    ]
    (tmp_path / "intel-rapl").mkdir()
    found = meter(tmp_path)
    assert found.source == "rapl: 2 packages"
    assert found.resolution_seconds == 0.001
    before = found.read()
    assert before is not None
    first.write_text("6500000\n")
    second.write_text("7250000\n")
    for other in others:
        other.write_text("900000000\n")
    assert found.since(before) == pytest.approx(1.5 + 0.25)


def test_one_package(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0-die-1", 0)
    assert meter(tmp_path).source == "rapl: 1 package"


def test_the_counter_starts_again_past_its_range(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 900, 1000)
    found = meter(tmp_path)
    readings = [found.read()]
    for microjoules in (950, 30, 30, 999, 0, 500):
        counter.write_text(f"{microjoules}\n")
        readings.append(found.read())
    joules = [reading for reading in readings if reading is not None]
    assert joules == sorted(joules)
    moved = [round((b - a) * 1e6) for a, b in itertools.pairwise(joules)]
    assert moved == [50, 80, 0, 969, 1, 500]


def test_a_reading_that_fails_is_none_and_what_was_drawn_meanwhile_is_not_lost(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 0)
    found = meter(tmp_path)
    before = found.read()
    counter.unlink()
    assert found.read() is None
    assert found.since(before) is None
    for garbage in ("", "\n", "a lot", "-5", "1.5", "\x00\xff", str(RANGE + 1)):
        counter.write_text(garbage)
        assert found.read() is None, garbage
    counter.write_text("4000000\n")
    assert found.since(before) == pytest.approx(3.0)
    assert found.since(None) is None


def test_what_only_root_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    unreadable = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    read_text = Path.read_text

    def as_a_user(path: Path, *arguments: Any, **options: Any) -> str:
        if path == unreadable:
            raise PermissionError(13, "Permission denied")
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", as_a_user)  # the tests may be run by root, whom no mode keeps out
    said = reason(powercap=tmp_path)
    assert f"only root may read {unreadable}" in said
    assert f"sudo chmod a+r {tmp_path}/intel-rapl:*/energy_uj" in said


@pytest.mark.parametrize(
    ("microjoules", "largest", "problem"),
    [
        ("lots", RANGE, "energy_uj holds 'lots'"),
        (5, "", "max_energy_range_uj holds ''"),
        (5, "-1", "max_energy_range_uj holds '-1'"),
        (5, 4, "past its own range"),
    ],
)
def test_counters_that_make_no_sense(tmp_path: Path, microjoules: int | str, largest: int | str, problem: str) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", microjoules, largest)
    said = reason(powercap=tmp_path)
    assert problem in said and "makes no sense" in said


def test_a_package_without_a_counter(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5).unlink()
    assert "can't be read: No such file or directory" in reason(powercap=tmp_path)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_no_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    zone(tmp_path, "intel-rapl:0", "psys", 5)
    expected = "no RAPL counter" if platform == "linux" else "on Linux only"
    assert expected in reason(powercap=tmp_path)
    assert expected in reason(powercap=tmp_path / "nowhere")


def test_this_machine() -> None:
    found = EnergyMeter.meter_or_reason()
    if isinstance(found, str):
        assert found
        return
    readings = [found.read() for _ in range(3)]
    assert None not in readings and readings == sorted(readings, key=float)  # type: ignore[arg-type]


# NVML

UUIDS = ("GPU-aa11", "GPU-aa22", "GPU-bb33")


class NVMLError(Exception):
    pass


def nvml(
    names: tuple[str, ...] = ("NVIDIA H200",) * 3,
    *,
    broken: Mapping[str, str] | None = None,
    as_bytes: bool = False,
) -> types.SimpleNamespace:
    """Three GPUs; number i has drawn i millijoules when first read, and 1000 (i + 1) more each time after.

    Args:
        broken: what a function answers with, by its name.
    """
    reads = dict.fromkeys(range(len(names)), 0)

    def text(value: str) -> str | bytes:
        return value.encode() if as_bytes else value

    def energy(handle: int) -> int:
        reads[handle] += 1
        return handle + 1000 * (handle + 1) * (reads[handle] - 1)

    functions = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: len(names),
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda handle: text(UUIDS[handle]),
        "nvmlDeviceGetName": lambda handle: text(names[handle]),
        "nvmlDeviceGetTotalEnergyConsumption": energy,
    }

    def failing(message: str) -> Any:
        def fail(*_: Any) -> Any:
            raise NVMLError(message)

        return fail

    functions |= {name: failing(message) for name, message in (broken or {}).items()}
    return types.SimpleNamespace(NVMLError=NVMLError, **functions)


def joules_per_read(found: EnergyMeter | str) -> float:
    """Tells which GPUs a meter reads: 1 J for number 0, 2 J for number 1, 3 J for number 2."""
    assert isinstance(found, EnergyMeter), found
    moved = found.since(found.read())
    assert moved is not None
    return moved


@pytest.mark.parametrize("as_bytes", [False, True])
def test_gpus_by_uuid(as_bytes: bool) -> None:
    library = nvml(as_bytes=as_bytes)
    for gpus, expected in (
        (["GPU-aa22"], 2.0),
        (["aa22"], 2.0),
        (["BB33"], 3.0),
        (["aa11", "GPU-bb33"], 4.0),
        (["aa22", "aa22"], 2.0),
    ):
        found = EnergyMeter.meter_or_reason(gpus, nvml=library, environ={"CUDA_VISIBLE_DEVICES": "2"})
        assert joules_per_read(found) == pytest.approx(expected), gpus


@pytest.mark.parametrize(
    ("visible", "index", "expected"),
    [(None, 0, 1.0), (None, 2, 3.0), ("2,0", 0, 3.0), ("2,0", 1, 1.0), (" 1 , 2", 1, 3.0), ("GPU-bb,GPU-aa1", 1, 1.0)],
)
def test_gpus_by_index(visible: str | None, index: int, expected: float) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert joules_per_read(EnergyMeter.meter_or_reason([index], nvml=nvml(), environ=environ)) == pytest.approx(
        expected
    )


@pytest.mark.parametrize(
    ("gpu", "visible", "problem"),
    [
        (1, "0", "there is no GPU 1: CUDA_VISIBLE_DEVICES=0"),
        (0, "", "there is no GPU 0"),
        (0, "7", "NVML shows 3 GPUs, and no number 7"),
        (0, "-1", "shows no GPU -1"),
        (0, "GPU-aa", "shows no GPU GPU-aa"),
        (0, "MIG-1234", "MIG"),
        ("cc44", "0", "shows no GPU cc44"),
    ],
)
def test_gpus_that_are_not_there(gpu: str | int, visible: str, problem: str) -> None:
    assert problem in reason([gpu], nvml=nvml(), environ={"CUDA_VISIBLE_DEVICES": visible})


def test_several_kinds_of_gpus_are_not_guessed_at() -> None:
    library = nvml(("NVIDIA T4", "NVIDIA H200", "NVIDIA T4"))
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in reason([1], nvml=library, environ={})
    by_bus = EnergyMeter.meter_or_reason([1], nvml=library, environ={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert joules_per_read(by_bus) == pytest.approx(2.0)
    assert isinstance(EnergyMeter.meter_or_reason(["aa22"], nvml=library, environ={}), EnergyMeter)


def test_sources_of_gpus() -> None:
    def source(*gpus: str, names: tuple[str, ...] = ("NVIDIA H200",) * 3) -> str:
        found = EnergyMeter.meter_or_reason(gpus, nvml=nvml(names))
        assert isinstance(found, EnergyMeter)
        return found.source

    assert source("aa11") == source("aa11", "aa11") == "nvml: NVIDIA H200"
    assert source("aa11", "aa22", "bb33") == "nvml: 3 x NVIDIA H200"
    assert source("aa11", "aa22", names=("NVIDIA A", "NVIDIA B", "C")) == "nvml: NVIDIA A, NVIDIA B"
    found = EnergyMeter.meter_or_reason(["aa11"], nvml=nvml())
    assert isinstance(found, EnergyMeter) and found.resolution_seconds == 0.1


@pytest.mark.parametrize(
    ("function", "message", "said"),
    [
        ("nvmlInit", "Driver Not Loaded", "does not answer: Driver Not Loaded"),
        ("nvmlDeviceGetCount", "Unknown Error", "does not answer: Unknown Error"),
        ("nvmlDeviceGetHandleByIndex", "Insufficient Permissions", "does not answer: Insufficient Permissions"),
        ("nvmlDeviceGetTotalEnergyConsumption", "Not Supported", "NVIDIA H200 has no energy counter"),
    ],
)
def test_what_nvml_refuses(function: str, message: str, said: str) -> None:
    assert said in reason(["aa11"], nvml=nvml(broken={function: message}))


def test_a_gpu_that_is_lost_on_the_way() -> None:
    library = nvml()
    found = EnergyMeter.meter_or_reason(["aa11", "aa22"], nvml=library)
    assert isinstance(found, EnergyMeter)
    before = found.read()
    library.nvmlDeviceGetTotalEnergyConsumption = nvml(
        broken={"nvmlDeviceGetTotalEnergyConsumption": "GPU is lost"}
    ).nvmlDeviceGetTotalEnergyConsumption
    assert found.read() is None
    assert found.since(before) is None


def test_the_module_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    assert isinstance(EnergyMeter.meter_or_reason(["aa11"]), EnergyMeter)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in reason(["aa11"])


def test_nothing_but_the_standard_library_is_loaded() -> None:
    program = (
        "import sys; before = set(sys.modules); import specprof.profiling.energy; "
        "print(sorted({n.split('.')[0] for n in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['specprof']"
