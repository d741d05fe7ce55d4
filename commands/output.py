"""What a command prints on stdout, and the document it writes to a file."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from specprof.commands.narration import wants_color
from specprof.errors import ResourceError
from specprof.files import write_whole

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDEST = 120
"""Columns beyond which a line is hard to follow."""


def typed(context: typer.Context) -> str:
    """The command line, as a shell would take it again."""
    return shlex.join(["specprof", *(context.obj or [])])


def print_table(shown: RenderableType, color: str, *, piped: int = 100, widest: int = WIDEST) -> None:
    """As wide as the terminal, within reason; the same text plain where there is none.

    Args:
        piped: columns without a terminal.
    """
    from specprof.reports.tables import to_text

    width = min(shutil.get_terminal_size().columns, widest) if sys.stdout.isatty() else piped
    ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
    sys.stdout.write(to_text(shown, width=width, color=wants_color(color, sys.stdout), ascii=ascii_only))


def write_document(path: Path, document: dict[str, Any], *, kept: object = None) -> None:
    """Write ``--output``.

    Args:
        kept: where the measurements are, if they are somewhere: a failure here does not cost them.

    Raises:
        ResourceError: it can't be written.
    """
    try:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        hint = (
            f"what was measured is kept: {kept}"
            if kept
            else "name another --output, where there is space and permission, and run again"
        )
        raise ResourceError(f"writing {path} failed: {error.strerror or error}", hint) from error


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that is the old one or the new one, never a part.

    Raises:
        ResourceError: it can't be written.
    """
    try:
        write_whole(path, write)
    except OSError as error:
        raise ResourceError(
            f"writing {path} failed: {error.strerror or error}",
            "name a file in a directory that exists, is writable and has space left",
        ) from error


def make_directory(path: Path) -> None:
    """Make it, unless it is there.

    Raises:
        ResourceError: it can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"making the directory {path} failed: {error.strerror or error}", "name files in another directory"
        ) from error
