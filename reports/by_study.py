"""Parts of a section, study by study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from specprof.experiments.study import Study
from specprof.reports.document import Block, Paragraph


def each(studies: Sequence[Study], blocks: Callable[[Study, str], Iterable[Block | None]]) -> tuple[Block, ...]:
    """Blocks of every study, under its title where there are several; figures need names of their own then."""
    shown: list[Block] = []
    for number, study in enumerate(studies):
        found = [block for block in blocks(study, f"-{number + 1}" if number else "") if block is not None]
        if found and len(studies) > 1:
            shown.append(Paragraph(study.title, "strong"))
        shown += found
    return tuple(shown)
