"""What a command prints on stdout, and the document it writes to a file."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specprof.commands.narration import wants_color
from specprof.errors import ResourceError

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDEST = 120
"""Columns beyond which a line is hard to follow."""


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
            else "free some space or choose another --output, and run again"
        )
        raise ResourceError(f"writing {path} failed: {error.strerror or error}", hint) from error
