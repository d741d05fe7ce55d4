"""What stands for the meaning of a cell where colour is not enough."""

from __future__ import annotations

from specprof.reports.document import Mark, Table

CELL_SIGNS: dict[Mark, tuple[str, str]] = {
    "best": ("\N{BLACK STAR}", "best"),
    "faster": ("\N{BLACK UP-POINTING TRIANGLE}", "faster"),
    "slower": ("\N{BLACK DOWN-POINTING TRIANGLE}", "slower"),
    "doubtful": ("?", "doubtful"),
    "failed": ("\N{MULTIPLICATION X}", "failed"),
}
"""A sign before the cell's text, and the word for it."""

VERDICT_MARKS: dict[str | None, Mark] = {"faster": "faster", "slower": "slower", "not distinguishable": "doubtful"}
"""How a cell is marked that bears a verdict on speed."""


def signs_in(table: Table) -> list[tuple[str, str]]:
    """Those that its cells bear, with their words."""
    used = {cell.mark for row in table.rows for cell in row}
    return [sign for mark, sign in CELL_SIGNS.items() if mark in used]
