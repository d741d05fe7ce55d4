"""What stands for the meaning of a cell where colour is not enough."""

from __future__ import annotations

from specprof.reports.document import Mark

CELL_SIGNS: dict[Mark, tuple[str, str]] = {
    "best": ("\N{BLACK STAR}", "best"),
    "faster": ("\N{BLACK UP-POINTING TRIANGLE}", "faster"),
    "slower": ("\N{BLACK DOWN-POINTING TRIANGLE}", "slower"),
    "doubtful": ("?", "doubtful"),
    "failed": ("\N{MULTIPLICATION X}", "failed"),
}
"""A sign before the cell's text, and the word for it."""
