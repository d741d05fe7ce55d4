"""What the shell offers behind an option.

Asked at every press of the tab key: nothing heavy is loaded, and nothing fails.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import typer

from specprof.errors import SpecprofError

Completer = Callable[[typer.Context, str], Iterator[str]]

_RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
_MOST = 50


def one_of(values: Sequence[str]) -> Completer:
    """One of the values."""

    def complete(context: typer.Context, incomplete: str) -> Iterator[str]:
        return (value for value in values if value.startswith(incomplete))

    return complete


def some_of(complete_one: Completer) -> Completer:
    """Several with commas between them: the last is completed, those before it are not offered again."""

    def complete(context: typer.Context, incomplete: str) -> Iterator[str]:
        before, comma, last = incomplete.rpartition(",")
        for value in complete_one(context, last):
            if value not in before.split(","):
                yield f"{before}{comma}{value}"

    return complete


def pair(context: typer.Context, incomplete: str) -> Iterator[str]:
    """Registered pairs, and those of specprof.toml as far as that can be read."""
    from specprof.models.registry import REGISTRY, user_pairs

    try:
        own = user_pairs()
    except (OSError, SpecprofError):
        own = {}
    return (name for name in (*REGISTRY, *own) if name.startswith(incomplete))


def run(context: typer.Context, incomplete: str) -> Iterator[str]:
    """Ids of runs in the results directory, the newest first."""
    directory = Path(context.params.get("results_dir") or "results")
    try:
        ids = sorted((path.stem for path in directory.glob("*.jsonl") if _RUN_ID.fullmatch(path.stem)), reverse=True)
    except OSError:
        return
    given = context.params.get("names") or ()
    yield from [name for name in ids if name.startswith(incomplete) and name not in given][:_MOST]
