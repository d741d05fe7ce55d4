"""What figures have in common beside the drawing: what studies are called, tables of what is drawn."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from specprof.experiments.matrix import DraftLength
from specprof.experiments.study import Study
from specprof.profiling.metrics import GenerationResult
from specprof.reports.document import Cell, Column, Table

PLAIN = "plain decoding"
ALL = "all prompts"
TO = "\N{EN DASH}"
"""Between the ends of an interval."""


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Cell]]) -> Table:
    """Text beside its row's name, which is the first of it."""
    return Table(
        columns=tuple(Column(name, "right" if index else "left") for index, name in enumerate(columns)),
        rows=tuple(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows),
    )


def labels(studies: Sequence[Study]) -> list[str]:
    """A name for each that no other has: its title, and what else it takes."""
    names = [" ".join(study.title.split()) for study in studies]
    for further in ([study.name for study in studies], [study.machine_class for study in studies]):
        alike: dict[str, set[str]] = defaultdict(set)
        for name, more in zip(names, further, strict=True):
            alike[name].add(more)
        names = [f"{name}, {more}" if len(alike[name]) > 1 else name for name, more in zip(names, further, strict=True)]
    common = Counter(names)
    return [f"{name} ({index})" if common[name] > 1 else name for index, name in enumerate(names, start=1)]


def lengths(studies: Iterable[Study]) -> list[DraftLength]:
    """Every draft length that was asked for, the shortest first."""
    found = {k for study in studies for k in (*study.comparisons, *(missing.k for missing in study.missing)) if k}
    return sorted(found, key=lambda k: (isinstance(k, str), k))


def compared(study: Study, k: DraftLength, *, baseline: bool) -> list[GenerationResult]:
    """The generations of one arm that the comparison at K is of: their prompts were decoded by both arms, if both
    arms were run."""
    results, others = study.arm(k, baseline=baseline), study.arm(k, baseline=not baseline)
    shared = {result.prompt_id for result in others}
    return [result for result in results if not others or result.prompt_id in shared]
