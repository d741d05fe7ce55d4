"""As much of a report as fits: its token streams are shortened first, then the tables under its figures."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterator

from specprof.errors import ResourceError
from specprof.reports.document import Block, Figure, Report, Table, TokenStream


@dataclasses.dataclass(frozen=True, slots=True)
class _Cut:
    """The most that is left of a report."""

    rounds: int
    """Of each token stream."""
    streams: int
    every: int = 1
    """Of the rows of a figure's table, beside the last."""


def fitting(report: Report, render: Callable[[Report, str], str], max_bytes: int) -> str:
    """What ``render`` makes of the report in at most ``max_bytes`` of UTF-8.

    ``render`` is given what is left of the report, and a sentence on what is not: empty for all of it. The same report
    is always cut in the same way.

    :raises ResourceError: there is nothing left to cut.
    """
    whole = render(report, "")
    if _size(whole) <= max_bytes:
        return whole
    cuts = list(_cuts(report))
    texts: dict[_Cut, str] = {}

    def fits(cut: _Cut) -> bool:
        texts[cut] = render(_cut(report, cut), _sentence(report, cut, max_bytes))
        return _size(texts[cut]) <= max_bytes

    # Each cut leaves less than the one before: a search in halves finds the first that fits.
    found = bisect.bisect_left(cuts, True, key=fits)
    if found == len(cuts):
        least = _size(texts[cuts[-1]] if cuts else whole)
        raise ResourceError(
            f"The report takes {megabytes(least)} even without token streams and with the shortest tables: more than "
            f"{megabytes(max_bytes)}.",
            "Report on fewer runs at a time.",
        )
    return texts[cuts[found]]


def shortened(stream: TokenStream, rounds: int) -> TokenStream:
    """At most so many rounds of a stream, which says how many are missing."""
    omitted = stream.omitted + max(len(stream.rounds) - rounds, 0)
    return dataclasses.replace(stream, rounds=stream.rounds[:rounds], omitted=omitted)


def megabytes(number: int) -> str:
    return f"{number / 1e6:.3g} MB" if number >= 1_000_000 else f"{number / 1e3:.3g} kB"


def _cuts(report: Report) -> Iterator[_Cut]:
    streams = [len(block.rounds) for block in _blocks(report) if isinstance(block, TokenStream)]
    rows = [len(block.table.rows) for block in _blocks(report) if isinstance(block, Figure)]
    for rounds in range(max(streams, default=0) - 1, 0, -1):
        yield _Cut(rounds, len(streams))
    for number in range(len(streams) - 1, -1, -1):
        yield _Cut(1, number)
    for every in range(2, max(rows, default=0)):
        yield _Cut(0, 0, every)


def _blocks(report: Report) -> Iterator[Block]:
    for section in report.sections:
        yield from section.blocks


def _cut(report: Report, cut: _Cut) -> Report:
    left = cut.streams
    sections = []
    for section in report.sections:
        blocks: list[Block] = []
        for block in section.blocks:
            if isinstance(block, TokenStream):
                left -= 1
                if left >= 0:
                    blocks.append(shortened(block, cut.rounds))
            elif isinstance(block, Figure):
                blocks.append(dataclasses.replace(block, table=_thinned(block.table, cut.every)))
            else:
                blocks.append(block)
        sections.append(dataclasses.replace(section, blocks=tuple(blocks)))
    return dataclasses.replace(report, sections=tuple(sections))


def _thinned(table: Table, every: int) -> Table:
    if not table.rows:
        return table
    rows = (*table.rows[:-1][::every], table.rows[-1])
    if len(rows) == len(table.rows):
        return table
    note = f"{len(rows)} of {len(table.rows)} rows are shown."
    return dataclasses.replace(table, rows=rows, caption=" ".join(filter(None, (table.caption, note))))


def _sentence(report: Report, cut: _Cut, max_bytes: int) -> str:
    streams = sum(isinstance(block, TokenStream) for block in _blocks(report))
    parts = []
    if cut.streams:
        parts.append(f"token streams end after {cut.rounds} {'round' if cut.rounds == 1 else 'rounds'}")
    if cut.streams < streams:
        parts.append(f"{streams - cut.streams} of {streams} token streams are left out")
    if cut.every > 1:
        parts.append(f"tables under figures keep one row in {cut.every}, and the last")
    return f"Shortened to fit into {megabytes(max_bytes)}: {'; '.join(parts)}."


def _size(text: str) -> int:
    return len(text.encode())
