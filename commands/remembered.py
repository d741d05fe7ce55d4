"""What was chosen on the start screen last, for the next time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from specprof.commands.narration import LOG
from specprof.files import write_whole
from specprof.profiling.feed import AUTO_K
from specprof.tui.choices import Choice

_KEYS = ("pair", "draft", "target", "k", "temperature", "drafter", "draft_layers", "prompts")
"""Not the text that was typed: it may be private."""


def remembered_in() -> Path:
    """The file; it need not exist."""
    from platformdirs import user_state_path

    return user_state_path("specprof", appauthor=False) / "tui.json"


def remember(choice: Choice) -> None:
    """Keep it; where that fails, the next start begins with the defaults."""
    path = remembered_in()
    values = {key: getattr(choice, key) for key in _KEYS}
    text = json.dumps(values, indent=2) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))
    except (OSError, UnicodeEncodeError) as error:
        LOG.debug("what was chosen is not remembered: %s", error)


def last_choice(default: Choice) -> Choice:
    """What was chosen last; ``default`` where nothing was, or what is kept of it is damaged."""
    path = remembered_in()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return dataclasses.replace(default, **_checked(values))
    except FileNotFoundError:
        return default
    except (OSError, ValueError, RecursionError) as error:
        LOG.debug("%s is not read: %s", path, error)
        return default


def _checked(values: Any) -> dict[str, Any]:
    """What is known of it, if that has the right types."""
    if not isinstance(values, dict):
        raise ValueError("it is no object")
    known = {key: values[key] for key in _KEYS if key in values}
    for key, value in known.items():
        if not _fits(key, value):
            raise ValueError(f"{key} is {value!r}")
    return known


def _fits(key: str, value: Any) -> bool:
    match key:
        case "k":
            return type(value) is int and value >= AUTO_K
        case "temperature":
            return type(value) in (int, float) and 0 <= value < float("inf")
        case "draft_layers":
            return value is None or (type(value) is int and value > 0)
        case "drafter" | "prompts":
            return isinstance(value, str) and value != ""
        case _:
            return value is None or isinstance(value, str)
