"""How much faster, for every domain and draft length."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from specprof.experiments.matrix import DraftLength
from specprof.experiments.study import Study
from specprof.profiling.numbers import DASH, count, interval, times
from specprof.profiling.speedup import Speedup
from specprof.reports.document import Cell, Figure, Mark, Table
from specprof.reports.drawing import BOLDER, NORMAL, SMALL, WIDTH, Fill, Sheet, Stroke, color, draw, fit, text_width
from specprof.reports.figure_data import ALL, TO, labels, lengths, table

MOST_ROWS = 60
"""Drawn; the table has the others too."""

_STEPS_PER_DOUBLING = 4
_LABEL_ROOM = 170.0
_HEADING, _GAP = 26.0, 2.0
_BEST = Fill(edge="ink", edge_width=2)
_DOUBTFUL = Fill(hatch="//////", hatch_role="quiet")
_INTERVAL = "95 % interval"
_CROSS = Stroke("rule", 0.8)


@dataclass(frozen=True, slots=True)
class _Entry:
    speedup: Speedup | None
    note: str
    """Why there is no speedup, or not the whole one; else empty."""

    @property
    def value(self) -> float | None:
        return None if self.speedup is None else self.speedup.value

    @property
    def doubtful(self) -> bool:
        return self.speedup is not None and self.speedup.verdict == "not distinguishable"


@dataclass(frozen=True, slots=True)
class _Row:
    study: str
    """Empty where there is only one."""
    domain: str
    entries: Mapping[DraftLength, _Entry]

    @property
    def name(self) -> str:
        return f"{self.study}: {self.domain}" if self.study else self.domain

    @property
    def best(self) -> DraftLength | None:
        """The fastest of several."""
        values = {k: entry.value for k, entry in self.entries.items() if entry.value is not None}
        return max(values.items(), key=lambda item: item[1])[0] if len(values) > 1 else None


def speedup_heatmap(studies: Sequence[Study], *, name: str = "speedup") -> Figure | None:
    """Speedup by pair, domain and K; where every study has one K, side by side on one axis.

    None where nothing was measured, and for one number alone.
    """
    rows = list(_rows([study for study in studies if any(study.comparisons)]))  # K = 0 speculates about nothing
    measured = [entry for row in rows for entry in row.entries.values() if entry.value is not None]
    if not measured or len(measured) == len(rows) == 1:
        return None
    drawn = rows
    if len(rows) > MOST_ROWS:
        drawn = [row for row in rows if row.domain == ALL] or rows
    drawn = drawn[:MOST_ROWS]
    one_length = all(sum(entry.value is not None for entry in row.entries.values()) <= 1 for row in rows)
    paint = _Intervals(drawn) if one_length else _Heatmap(drawn, lengths(studies))
    caption = _caption(rows, one_length)
    if len(drawn) < len(rows):
        caption += f" Drawn are {len(drawn)} rows of {len(rows)}; the table has all."
    return Figure(
        name=name,
        title="Speedup over plain decoding",
        caption=caption,
        svg=draw(name, paint.height, paint.paint),
        table=_table(rows, lengths(studies)),
    )


def _rows(studies: Sequence[Study]) -> Iterator[_Row]:
    names = labels(studies) if len(studies) > 1 else [""]
    for study, name in zip(studies, names, strict=False):
        for domain in study.domains:
            yield _Row(name, domain, {k: _entry(study, domain, k) for k in lengths([study])})
        if len(study.domains) != 1:
            yield _Row(name, ALL, {k: _Entry(c.speedup_decode, "") for k, c in study.comparisons.items()})


def _entry(study: Study, domain: str, k: DraftLength) -> _Entry:
    comparison = study.comparisons.get(k)
    found = comparison.domains.get(domain) if comparison else None
    # A study of one domain has its speedup even where prompts are not told apart by domain.
    whole = comparison.speedup_decode if comparison and not comparison.domains and len(study.domains) == 1 else None
    note = next((missing.sign for missing in study.missing if (missing.domain, missing.k) == (domain, k)), "")
    return _Entry(found.speedup_decode if found else whole, note)


def _table(rows: Sequence[_Row], ks: Sequence[DraftLength]) -> Table:
    def cell(row: _Row, k: DraftLength) -> Cell:
        entry = row.entries.get(k)
        if entry is None:
            return Cell(DASH)
        if entry.speedup is None or entry.value is None:
            return Cell(entry.note or DASH, "failed" if entry.note == "failed" else "")
        spread = f" {interval(entry.speedup)}" if entry.speedup.ci else ""
        return Cell(f"{times(entry.value)}{spread}{f' ({entry.note})' if entry.note else ''}", _mark(row, k, entry))

    return table(["", *(f"K = {k}" for k in ks)], ([row.name, *(cell(row, k) for k in ks)] for row in rows))


def _mark(row: _Row, k: DraftLength, entry: _Entry) -> Mark:
    if k == row.best and (entry.value or 0.0) > 1:
        return "best"
    verdict = entry.speedup.verdict if entry.speedup else None
    return "doubtful" if verdict == "not distinguishable" else verdict or ""


def _caption(rows: Sequence[_Row], one_length: bool) -> str:
    cells = [(row, k, entry) for row in rows for k, entry in row.entries.items() if row.domain != ALL]
    measured = [(entry.value, row, k, entry) for row, k, entry in cells if entry.value is not None]
    if not measured:
        measured = [(e.value, row, k, e) for row in rows for k, e in row.entries.items() if e.value is not None]
    fastest = max(measured, key=lambda cell: cell[0])
    slowest = min(measured, key=lambda cell: cell[0])

    def worded(cell: tuple[float, _Row, DraftLength, _Entry]) -> str:
        value, row, k, entry = cell
        at = "" if one_length else f" at K = {k}"
        spread = f" {interval(entry.speedup)}" if entry.speedup and entry.speedup.ci else ""
        return f"{fit(row.name, 400)}{at}, {times(value)}{spread}"

    sentences = [f"Fastest is {worded(fastest)}; slowest is {worded(slowest)}."]
    if len(measured) == 1:
        sentences = [f"{worded(fastest)}."]
    doubtful = sum(entry.doubtful for *_, entry in measured)
    if doubtful:
        sentences.append(f"In {doubtful} of {count(len(measured), 'case')} the 95 % interval contains 1x.")
    lost = [entry.note for *_, entry in cells if entry.value is None and entry.note]
    if lost:
        sentences.append(f"{count(len(lost), 'cell')} could not be measured.")
    return " ".join(sentences)


def _label_width(rows: Sequence[_Row]) -> float:
    return min(_LABEL_ROOM, max(text_width(fit(row.domain, _LABEL_ROOM), NORMAL) for row in rows)) + 14


def _headings(rows: Sequence[_Row]) -> Iterator[tuple[_Row, bool]]:
    """Rows, and whether a study begins with it."""
    before = ""
    for row in rows:
        yield row, row.study != before
        before = row.study


class _Heatmap:
    def __init__(self, rows: Sequence[_Row], ks: Sequence[DraftLength]) -> None:
        self.rows, self.ks = rows, ks
        self.left = _label_width(rows)
        self.width = min(112.0, (WIDTH - self.left) / len(ks))
        self.narrow = self.width < text_width(f"00.00{TO}00.00", SMALL) + 8
        noted = any(entry.note and entry.value is not None for row in rows for entry in row.entries.values())
        self.row_height = 40.0 + 15 * self.narrow + 12 * noted
        headings = sum(begins for _, begins in _headings(rows))
        self.height = _HEADING + headings * _HEADING + len(rows) * self.row_height + 56

    def paint(self, sheet: Sheet) -> None:
        for column, k in enumerate(self.ks):
            short = str(k) if self.width < 46 else f"K = {k}"
            sheet.text(self.left + (column + 0.5) * self.width, 12, short, role="quiet", size=SMALL, align="center")
        if self.width < 46:
            sheet.text(self.left - 14, 12, "K", role="quiet", size=SMALL, align="right")
        y = _HEADING
        for row, begins in _headings(self.rows):
            if begins:
                sheet.text(0, y + 13, fit(row.study, WIDTH / BOLDER), bold=True)
                y += _HEADING
            sheet.text(self.left - 14, y + self.row_height / 2, fit(row.domain, _LABEL_ROOM), align="right",
                       bold=row.domain == ALL)  # fmt: skip
            for column, k in enumerate(self.ks):
                if k in row.entries:
                    self._cell(sheet, self.left + column * self.width, y, row.entries[k], best=row.best == k)
            y += self.row_height
        self._scale(sheet, y + 16)

    def _cell(self, sheet: Sheet, x: float, y: float, entry: _Entry, *, best: bool) -> None:
        x, y = x + _GAP / 2, y + _GAP / 2
        width, height = self.width - _GAP, self.row_height - _GAP
        if entry.speedup is None or entry.value is None:
            sheet.box(x, y, width, height, Fill("panel"))
            if entry.note in ("failed", "skipped"):
                sheet.line([x, x + width], [y, y + height], _CROSS)
                sheet.line([x, x + width], [y + height, y], _CROSS)
            note = _short(entry.note or DASH, width)
            sheet.text(x + width / 2, y + height / 2, note, role="quiet", size=SMALL, align="center")
            return
        sheet.box(x, y, width, height, Fill(f"heat{_step(entry.value)}"))
        if entry.doubtful:
            sheet.box(x, y + height - 6, width, 6, _DOUBTFUL)
        if best:
            sheet.box(x + 1, y + 1, width - 2, height - 2, _BEST)
        lines = self._lines(entry)
        first = y + (height - 4) / 2 - 6.5 * (len(lines) - 1)
        for index, line in enumerate(lines):
            sheet.text(x + width / 2, first + 13 * index, line, size=SMALL if index else NORMAL, align="center",
                       bold=not index)  # fmt: skip

    def _lines(self, entry: _Entry) -> list[str]:
        assert entry.speedup is not None
        value = f"{entry.value:.2f}" if self.width < 46 else times(entry.value)
        lines = [value]
        if entry.speedup.ci is not None:
            low, high = entry.speedup.ci
            lines += [f"{low:.2f}{TO}", f"{high:.2f}"] if self.narrow else [f"{low:.2f}{TO}{high:.2f}"]
        if entry.note:
            lines.append(_short(entry.note, self.width - _GAP))
        return lines

    def _scale(self, sheet: Sheet, y: float) -> None:
        names = {0: "0.5x or less", 2: "0.71x", 4: "1x", 6: "1.41x", 8: "2x or more"}
        start, width = 34.0, 30.0
        for step in range(9):
            sheet.box(start + step * width, y, width - 1, 12, Fill(f"heat{step}"))
            if step in names:
                sheet.text(start + (step + 0.5) * width, y + 22, names[step], role="quiet", size=SMALL, align="center")
        entries = [(_BEST, "best K of its row")] if any(row.best for row in self.rows) else []
        if any(entry.doubtful for row in self.rows for entry in row.entries.values()):
            entries.append((_DOUBTFUL, "95 % interval contains 1x"))
        sheet.key(start + 9 * width + 40, y + 6, entries)


def _short(note: str, room: float) -> str:
    shorter = {"failed": "fail", "skipped": "skip"}.get(note, note.replace(" of ", "/"))
    return next((text for text in (note, shorter, "part") if text_width(text, SMALL) <= room), "!")


def _step(value: float) -> int:
    """0..8; 4 is 1x, and four steps are a doubling."""
    return round(min(max(4 + _STEPS_PER_DOUBLING * math.log2(value), 0), 8)) if value > 0 else 0


class _Intervals:
    """One number a row: its place on an axis says more than a colour."""

    _ROW = 28.0

    def __init__(self, rows: Sequence[_Row]) -> None:
        self.rows = rows
        self.left = _label_width(rows)
        self.texts = [_worded(row) for row in rows]
        self.right = 18 + max(text_width(text, SMALL) for text in (*self.texts, _INTERVAL))
        headings = sum(begins for _, begins in _headings(rows))
        self.field = headings * _HEADING + len(rows) * self._ROW
        self.height = self.field + 40

    def paint(self, sheet: Sheet) -> None:
        entries = [entry for row in self.rows for entry in row.entries.values() if entry.value is not None]
        ends = [end for entry in entries for end in _ends(entry)]
        low, high = min(*ends, 0.9) / 1.05, max(*ends, 1.1) * 1.05
        axes = sheet.axes(self.left, 0, WIDTH - self.left - self.right, self.field)
        axes.set_xscale("log")
        axes.set(xlim=(low, high), ylim=(self.field, 0))
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x", color=color("rule"), linewidth=0.8)
        ticks = _ticks(low, high, (WIDTH - self.left - self.right) / 42)
        axes.set_xticks(ticks, labels=[f"{tick:g}x" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_yticks([])
        Stroke("ink", 1.2).plot(axes, [1, 1], [0, self.field])
        y = 0.0
        for (row, begins), text in zip(_headings(self.rows), self.texts, strict=True):
            if begins:
                sheet.text(0, y + 14, fit(row.study, WIDTH / BOLDER), bold=True)
                y += _HEADING
            middle = y + self._ROW / 2
            sheet.text(self.left - 14, middle, fit(row.domain, _LABEL_ROOM), align="right", bold=row.domain == ALL)
            sheet.text(WIDTH - self.right + 14, middle, text, size=SMALL)
            for entry in row.entries.values():
                if entry.value is not None and entry.speedup is not None:
                    role = {"faster": "good", "slower": "bad", None: "ink"}.get(entry.speedup.verdict, "doubt")
                    Stroke(role, 2).plot(axes, _ends(entry), [middle] * 2)
                    face = "ground" if entry.doubtful else ""
                    Stroke(role, marker="o", size=8, face=face).plot(axes, [entry.value], [middle])
            y += self._ROW
        sheet.text(WIDTH - self.right + 14, self.field + 11, _INTERVAL, role="quiet", size=SMALL)


def _worded(row: _Row) -> str:
    entry = next((entry for entry in row.entries.values() if entry.value is not None), None)
    note = next((entry.note for entry in row.entries.values() if entry.note), "")
    if entry is None or entry.speedup is None:
        return note or DASH
    spread = interval(entry.speedup) if entry.speedup.ci else ""
    return " ".join(filter(None, (times(entry.value), spread, note and f"({note})")))


def _ends(entry: _Entry) -> tuple[float, float]:
    assert entry.speedup is not None and entry.value is not None
    return entry.speedup.ci or (entry.value, entry.value)


def _ticks(low: float, high: float, most: float) -> list[float]:
    """Round numbers between two, 1 among them, no more than fit on a logarithmic axis."""
    steps = (step for step in (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0) if high / step < 100)
    for step in steps:
        ticks = sorted({1.0, *(index * step for index in range(math.ceil(low / step), int(high / step) + 1))})
        closest = min((math.log(b / a) for a, b in itertools.pairwise(ticks)), default=math.inf)
        if closest >= math.log(high / low) / most:
            return ticks
    return [1.0]
