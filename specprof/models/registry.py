"""The pairs specprof knows by name: the registered ones, and the user's own from TOML."""

from __future__ import annotations

import contextlib
import difflib
import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specprof.errors import UsageError


@dataclass(frozen=True, slots=True)
class ModelPair:
    """A draft model and the target it drafts for; ids are hub ids, directories or packaged names."""

    name: str
    draft_model_id: str
    target_model_id: str
    draft_dtype: str = "float16"
    target_dtype: str = "float16"
    notes: str = ""


_LLAMA_3 = "meta-llama/Meta-Llama-3-8B-Instruct"

REGISTRY: dict[str, ModelPair] = {
    pair.name: pair
    for pair in (
        ModelPair(
            "gpt2_dev",
            draft_model_id="gpt2",
            target_model_id="gpt2-xl",
            notes="124M for 1.5B, one vocabulary, no token required.",
        ),
        ModelPair(
            "tinyllama_llama3",
            draft_model_id="TinyLlama/TinyLlama-1.1B-Chat-v1.0",
            target_model_id=_LLAMA_3,
            notes="Different vocabularies (32000 and 128256 tokens); the target is gated.",
        ),
        ModelPair(
            "phi3_llama3",
            draft_model_id="microsoft/Phi-3-mini-4k-instruct",
            target_model_id=_LLAMA_3,
            notes="Different vocabularies (32064 and 128256 tokens), a costly draft; the target is gated.",
        ),
        ModelPair(
            "llama3_self",
            draft_model_id=_LLAMA_3,
            target_model_id=_LLAMA_3,
            draft_dtype="int4",
            notes="Self-speculation: the same weights in 4 bits draft for the 16-bit model; gated.",
        ),
        ModelPair(
            "tiny_dev",
            draft_model_id="tiny_dev/draft",
            target_model_id="tiny_dev/target",
            notes="Packaged: 1.7M for 7.3M parameters, trained for each other, runs anywhere without a download.",
        ),
        ModelPair(
            "tiny_cross",
            draft_model_id="tiny_cross/draft",
            target_model_id="tiny_dev/target",
            notes="Packaged: tiny_dev's target with a draft of another vocabulary (2048 Llama-2-like pieces).",
        ),
    )
}

_KEYS = {
    "draft": "draft_model_id",
    "target": "target_model_id",
    "draft_dtype": "draft_dtype",
    "target_dtype": "target_dtype",
    "notes": "notes",
}


def list_pairs() -> list[str]:
    """Names of the registered pairs (the user's own are in :func:`user_pairs`)."""
    return list(REGISTRY)


def get_pair(name: str) -> ModelPair:
    """The pair of that name: registered, else from the user's configuration files.

    Raises:
        UsageError: no such pair, or a configuration file that can't be read.
    """
    if name in REGISTRY:
        _check_not_shadowed(name)
        return REGISTRY[name]
    own = user_pairs()
    if name in own:
        return own[name]
    known = [*REGISTRY, *own]
    closest = difflib.get_close_matches(name, known, n=1)
    suggestion = f"did you mean {closest[0]}? " if closest else ""
    raise UsageError(
        f"there is no pair named {name!r}",
        f"{suggestion}known pairs: {', '.join(known)}; "
        "for any other pair give --draft and --target, or name it in ./specprof.toml",
    )


def config_paths() -> tuple[Path, ...]:
    """The project's configuration file, then the user's; neither need exist."""
    # The XDG specification has relative values ignored.
    xdg = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    home = xdg if xdg.is_absolute() else Path(os.path.expanduser("~/.config"))
    return Path("specprof.toml"), home / "specprof" / "config.toml"


def user_pairs(paths: Iterable[Path] | None = None) -> dict[str, ModelPair]:
    """The pairs named in ``[pairs.NAME]`` tables of configuration files; the first file that names a pair wins.

    Args:
        paths: files to read, those that don't exist are skipped; None reads :func:`config_paths`.

    Raises:
        UsageError: a file that isn't UTF-8 TOML, an unknown key, a wrong type or a registered pair's name.
    """
    pairs: dict[str, ModelPair] = {}
    for path in config_paths() if paths is None else paths:
        for name, table in _pair_tables(Path(path)).items():
            pairs.setdefault(name, _pair(name, table, Path(path)))
    return pairs


def _check_not_shadowed(name: str) -> None:
    """Raise UsageError if the user means another pair by a registered one's name: it would be passed over without a
    word. A file that can't be read says nothing of it."""
    for path in config_paths():
        shadowed = False
        with contextlib.suppress(UsageError):
            shadowed = name in _pair_tables(path)
        if shadowed:
            raise _shadows(name, path)


def _pair_tables(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from error
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}", "check its permissions, or move it away") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # The message ends in "(at line 3, column 7)".
        raise UsageError(f"{path} is not valid TOML: {error}", "correct that line") from error
    except (RecursionError, ValueError) as error:  # a whole number of thousands of digits
        raise UsageError(f"{path} can't be read: {error}", "nest less deeply, and write shorter numbers") from error
    pairs = document.get("pairs", {})
    if not isinstance(pairs, dict):
        raise UsageError(f"{path}: `pairs` is not a table", "write each pair as a table: [pairs.NAME]")
    return pairs


def _pair(name: str, table: Any, path: Path) -> ModelPair:
    where = f"{path}: [pairs.{name}]"
    example = 'a pair needs draft = "..." and target = "..." (hub ids or directories)'
    if name in REGISTRY:
        raise _shadows(name, path)
    if not isinstance(table, dict):
        raise UsageError(f"{where} is not a table", example)
    for key, value in table.items():
        if key not in _KEYS:
            raise UsageError(f"{where} has the unknown key {key!r}", f"known keys: {', '.join(_KEYS)}")
        if not isinstance(value, str):
            raise UsageError(f"{where}: {key} is {type(value).__name__}, not a string", "put the value in quotes")
    for key in ("draft", "target"):
        if not table.get(key):
            raise UsageError(f"{where} has no {key}", example)
    values = {_KEYS[key]: value for key, value in table.items()}
    for key in ("draft_model_id", "target_model_id"):
        values[key] = _beside(path, values[key])
    return ModelPair(name, **values)


def _shadows(name: str, path: Path) -> UsageError:
    return UsageError(f"{path}: [pairs.{name}] shadows the registered pair {name}", "choose another name")


def _beside(path: Path, model_id: str) -> str:
    """A directory given relative to the configuration file, made absolute; anything else as it is."""
    candidate = Path(os.path.expanduser(model_id))
    is_path = model_id.startswith(("./", "../", "~")) or model_id in (".", "..")
    if is_path or (path.parent / candidate).is_dir():
        return str((path.parent / candidate).resolve())
    return model_id
