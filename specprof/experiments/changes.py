"""What differs in how two studies were measured: models, settings, machines, versions. Text in it is from files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specprof.experiments.saved_runs import mapping
from specprof.experiments.study import Study

_SETTINGS = {
    "k_max": "most tokens of K auto", "top_k": "top-k", "top_p": "top-p", "max_new_tokens": "max new tokens",
    "seed": "seed", "draft_threshold": "draft threshold", "draft_layers": "draft layers",
    "vocab_method": "vocab method", "device": "device", "device_map": "device map", "forward": "forward asked for",
    "engine": "engine asked for", "engine_used": "engine", "compile": "compiled",
    "ignore_eos": "ignore EOS", "detail": "detail", "deterministic": "deterministic", "chat_template": "chat template",
    "random_weights": "random weights", "scale_layers": "layers of random weights",
    "synthetic_acceptance": "synthetic acceptance", "repetitions": "repetitions", "warmup": "warm-up prompts",
    "baseline": "plain decoding beside it",
}  # fmt: skip
_MODEL = ("model", "revision", "dtype", "device", "forward")
_HARDWARE = {"cpu": "cpu", "cores": "cores", "torch_threads": "threads", "c_compiler": "C compiler"}
_GPU_HARDWARE = {"name": "gpu"}
_VERSIONS = {"specprof": "specprof", "torch": "torch"}
_GPU_VERSIONS = {"cuda": "CUDA"}
_MENTIONED = {
    "git_commit": "commit of specprof",
    "transformers": "transformers",
    "python": "Python",
    "platform": "platform",
}
_GPU_MENTIONED = {"driver": "GPU driver", "count": "number of GPUs"}


@dataclass(frozen=True, slots=True)
class MachineChanges:
    """What differs between two machines, each as ``cpu X -> Y``."""

    hardware: tuple[str, ...]
    """What makes tokens per second incomparable: processors, cores, threads, GPUs."""
    versions: tuple[str, ...]
    """What may be the very thing that is compared: this project's and PyTorch's."""
    other: tuple[str, ...]
    """What is only worth mentioning."""


def changes(before: Study, after: Study) -> tuple[str, ...]:
    """Everything that is recorded and differs, as ``torch 2.12 -> 2.13``."""
    found = []
    old, new = list(before.comparisons), list(after.comparisons)
    if len(old) == len(new) == 1 and old != new:
        found.append(_change("K", old[0], new[0]))
    found += _changed("pair", before.pair, after.pair)
    found += _changed("drafter", before.drafter, after.drafter)
    found += _changed("temperature", before.temperature, after.temperature)
    for key, label in _SETTINGS.items():
        if key in before.config and key in after.config:
            found += _changed(label, before.config[key], after.config[key])
    for role in ("target", "draft"):
        models = mapping(before.models.get(role)), mapping(after.models.get(role))
        if all(models):
            for key in _MODEL:
                found += _changed(role if key == "model" else f"{role} {key}", models[0].get(key), models[1].get(key))
    machine = machine_changes(before, after)
    return (*found, *machine.hardware, *machine.versions, *machine.other)


def machine_changes(before: Study, after: Study) -> MachineChanges:
    """What differs between the machines of two studies; nothing where one has measured nothing."""
    if not (before.comparisons and after.comparisons):
        return MachineChanges((), (), ())
    old, new = before.machine, after.machine
    gpus = mapping(old.get("gpu")), mapping(new.get("gpu"))

    def of(names: Mapping[str, str], gpu_names: Mapping[str, str]) -> tuple[str, ...]:
        found = [line for key, label in names.items() for line in _changed(label, old.get(key), new.get(key))]
        found += [line for key, label in gpu_names.items() for line in _changed(label, *(gpu.get(key) for gpu in gpus))]
        return tuple(found)

    hardware, versions = of(_HARDWARE, _GPU_HARDWARE), of(_VERSIONS, _GPU_VERSIONS)
    if before.machine_class != after.machine_class and not (hardware or versions):
        # Of a machine that was not described, its class is all there is to go by.
        hardware = tuple(_changed("machine class", before.machine_class, after.machine_class))
    return MachineChanges(hardware, versions, of(_MENTIONED, _GPU_MENTIONED))


def _changed(label: str, before: Any, after: Any) -> list[str]:
    # A run leaves open what a sweep calls auto.
    unset = (None, "auto")
    return [] if before == after or (before in unset and after in unset) else [_change(label, before, after)]


def _change(label: str, before: Any, after: Any) -> str:
    return f"{label} {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
