"""What ran this: hardware, driver, versions. Nothing that names a person, a host or a network."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import specprof
from specprof.errors import ResourceError

T = TypeVar("T")


def describe() -> dict[str, Any]:
    """The machine as plain JSON types; what can't be found out is None. Reads only this machine."""
    return {
        "platform": _quietly(platform.platform),
        "cpu": _quietly(_cpu_model),
        "cores": _quietly(_cores),
        "memory_bytes": _quietly(_memory_bytes),
        "python": platform.python_version(),
        "specprof": specprof.__version__,
        "git_commit": _quietly(_git_commit),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "torch_threads": _quietly(_torch_threads),
        "c_compiler": _quietly(_c_compiler),
        "gpu": _quietly(_gpu),
    }


def machine_class(machine: Mapping[str, Any]) -> str:
    """12 hexadecimal digits over what has to be equal for two timings to be compared.

    Args:
        machine: of :func:`describe`. Processor or GPU, cores, threads and the versions of what computes count;
            the driver, the kernel and this project's commit do not.
    """
    gpu = machine.get("gpu")
    gpu = gpu if isinstance(gpu, dict) else {}  # from a file, it may be anything
    same = {
        "cpu": machine.get("cpu"),
        "cores": machine.get("cores"),
        "torch_threads": machine.get("torch_threads"),
        "gpu": gpu.get("name"),
        "cuda": gpu.get("cuda"),
        "torch": machine.get("torch"),
        "specprof": machine.get("specprof"),
    }
    if machine.get("c_compiler"):  # with one the forward in C runs, ten times as fast as what runs without
        same["forward_in_c"] = True
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:12]


def describe_apart() -> dict[str, Any]:
    """:func:`describe` from a process of its own: PyTorch, and a context on the GPU, stay out of this one.

    Raises:
        ResourceError: that process failed, as it does where PyTorch can't be imported.
    """
    # -P: a file named torch.py where the user happens to be is not the library.
    command = [sys.executable, "-P", "-m", "specprof.profiling.machine"]
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    finished = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if finished.returncode != 0:
        last = (finished.stderr.strip().splitlines() or [f"exit status {finished.returncode}"])[-1]
        raise ResourceError(
            f"this machine could not be described: {last}", 'check that `python -c "import torch"` works'
        )
    description: dict[str, Any] = json.loads(finished.stdout)
    return description


def _quietly(query: Callable[[], T]) -> T | None:
    # A machine that can't answer a question about itself is no reason not to measure on it.
    with contextlib.suppress(Exception):
        return query()
    return None


def _version(distribution: str) -> str | None:
    return _quietly(lambda: metadata.version(distribution))


def _cpu_model() -> str | None:
    if sys.platform == "darwin":
        return _output_of("sysctl", "-n", "machdep.cpu.brand_string")
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in {"model name", "Model"}:
                return value.strip() or None
    return platform.processor() or platform.machine() or None


def _cores() -> int | None:
    # Containers and taskset leave fewer than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _c_compiler() -> str | None:
    """By name, unless it is not to be used."""
    if os.environ.get("SPECPROF_NATIVE") == "0":
        return None
    named = os.environ.get("CC", "").split()[:1]
    return next((Path(name).name for name in (*named, "cc", "gcc", "clang") if shutil.which(name)), None)


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def _gpu() -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "driver": _quietly(_driver),
        "count": torch.cuda.device_count(),
    }


def _driver() -> str | None:
    answer = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return answer.splitlines()[0].strip() if answer else None


def _git_commit() -> str | None:
    package = Path(specprof.__file__).resolve().parent
    # Installed into an environment that lies inside some other repository, that repository's commit says nothing.
    if not (package.parent / ".git").exists():
        return None
    return _output_of("git", "-C", str(package.parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def _output_of(*command: str) -> str | None:
    finished = subprocess.run(command, capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL)
    return finished.stdout.strip() or None if finished.returncode == 0 else None


if __name__ == "__main__":
    print(json.dumps(describe()))
