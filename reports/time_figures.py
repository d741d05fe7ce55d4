"""Where the time goes: by round and token, by phase, by draft length."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specprof.experiments.matrix import DraftLength
from specprof.experiments.study import Study
from specprof.profiling.comparison import PHASES, Arm
from specprof.profiling.metrics import GenerationResult
from specprof.profiling.numbers import DASH, milliseconds, percent
from specprof.reports.document import Figure, Table
from specprof.reports.drawing import NORMAL, PHASE_FILLS, SMALL, WIDTH, Fill, Sheet, Stroke, color, draw, text_width
from specprof.reports.figure_data import PLAIN, compared, table

MOST_POINTS = 300
"""Of a curve."""
_QUANTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)

_ARMS = {
    "ar": Stroke("ar", 1.8, dashes=(5, 2), marker="s", face="ground"),
    "sd": Stroke("sd", 1.8, marker="o", face="ground"),
}
_LEVEL = Stroke("ink", 1.2, dashes=(3, 2))

Seconds = npt.NDArray[np.float64]


# Latencies


@dataclass(frozen=True, slots=True)
class _Curve:
    label: str
    role: str
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    curves: tuple[_Curve, ...]


def latencies(study: Study, *, name: str = "latency") -> Figure | None:
    """How rounds, first tokens and emitted tokens are distributed in time, plain decoding beside the best K."""
    k = study.best_k
    if k is None:
        return None
    arms = [
        (label, role, results)
        for label, role, results in (
            (PLAIN, "ar", compared(study, k, baseline=True)),
            (f"K = {k}", "sd", compared(study, k, baseline=False)),
        )
        if results
    ]

    def panel(title: str, measured: Sequence[Seconds]) -> _Panel:
        curves = (_Curve(*arm[:2], seconds) for arm, seconds in zip(arms, measured, strict=True))
        return _Panel(title, tuple(curve for curve in curves if curve.seconds.size))

    panels = [
        panel("a round", [_rounds(results) for *_, results in arms]),
        panel("the first token", [_positive([r.time_to_first_token for r in results]) for *_, results in arms]),
        panel("an emitted token", [_tokens(results) for *_, results in arms]),
    ]
    panels = [panel for panel in panels if panel.curves]
    if not panels:
        return None
    return Figure(
        name=name,
        title=f"Latency, {PLAIN} and K = {k}" if len(arms) > 1 else f"Latency, {arms[0][0]}",
        caption=_latency_caption(panels),
        svg=draw(name, 226, lambda sheet: _paint_latencies(sheet, panels)),
        table=_quantile_table(panels),
    )


def _positive(seconds: Sequence[float] | Seconds) -> Seconds:
    values = np.asarray(seconds, dtype=np.float64)
    return values[values > 0]  # the axis is logarithmic; a clock too coarse for a round says nothing of it


def _rounds(results: Sequence[GenerationResult]) -> Seconds:
    return _positive([seconds for result in results for seconds in result.per_token_latencies])


def _tokens(results: Sequence[GenerationResult]) -> Seconds:
    """A round's time, shared evenly among the tokens it emits."""
    rounds = [round for result in results for round in result.rounds if round.emitted_tokens]
    numbers = np.asarray([len(round.emitted_tokens) for round in rounds], dtype=np.int64)
    seconds = np.asarray([round.seconds for round in rounds], dtype=np.float64)
    return _positive(np.repeat(seconds / numbers, numbers))


def _paint_latencies(sheet: Sheet, panels: Sequence[_Panel]) -> None:
    left, gap = 44.0, 30.0
    width = (WIDTH - left - 8 - 2 * gap) / 3
    for index, panel in enumerate(panels):
        x = left + index * (width + gap)
        sheet.text(x, 9, panel.title, bold=True)
        axes = sheet.axes(x, 66, width, 124)
        axes.set_xscale("log")
        low = min(float(curve.seconds.min()) for curve in panel.curves) * 1e3
        high = max(float(curve.seconds.max()) for curve in panel.curves) * 1e3
        if high < 1.5 * low:
            low, high = low / 1.25, high * 1.25
        axes.set(xlim=(low / 1.04, high * 1.04), ylim=(0, 1))
        for row, curve in enumerate(panel.curves):
            stroke = _ARMS[curve.role]
            points = np.linspace(0, 1, min(MOST_POINTS, max(curve.seconds.size, 2)))
            median = float(np.median(curve.seconds))
            dataclasses.replace(stroke, marker="").plot(axes, np.quantile(curve.seconds, points) * 1e3, points)
            dataclasses.replace(stroke, width=0.0).plot(axes, [median * 1e3], [0.5])
            sheet.key(x, 28 + 16 * row, [(stroke, f"{curve.label}, median {milliseconds(median)} ms")])
        ticks = _log_ticks(low / 1.04, high * 1.04, width / 34)
        axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.grid(visible=True, axis="x", color=color("rule"), linewidth=0.8)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], labels=["0 %", "", "50 %", "", "100 %"] if not index else [""] * 5)
    sheet.text(left, 218, "share that took no longer than so many ms (logarithmic)", role="quiet", size=SMALL)


def _log_ticks(low: float, high: float, most: float) -> list[float]:
    decades = [10.0**power for power in range(-6, 9)]
    for factors in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{decade * f:.6g}") for decade in decades for f in factors if low <= decade * f <= high]
        closest = min((np.log(b / a) for a, b in itertools.pairwise(ticks)), default=np.inf)
        if ticks and closest >= np.log(high / low) / most:
            return ticks
    return [float(f"{np.sqrt(low * high):.3g}")]


def _quantile_table(panels: Sequence[_Panel]) -> Table:
    curves = [(f"{panel.title}, {curve.label}", curve.seconds) for panel in panels for curve in panel.curves]
    rows = [[f"p{q}", *(milliseconds(float(np.percentile(s, q))) for _, s in curves)] for q in _QUANTILES]
    rows.append(["max", *(milliseconds(float(s.max())) for _, s in curves)])
    rows.append(["number", *(str(s.size) for _, s in curves)])
    return table(["ms", *(label for label, _ in curves)], rows)


def _latency_caption(panels: Sequence[_Panel]) -> str:
    parts = []
    for panel in panels:
        medians = {curve.role: milliseconds(float(np.median(curve.seconds))) for curve in panel.curves}
        beside = f" ({PLAIN}: {medians['ar']} ms)" if len(medians) == 2 else ""
        parts.append(f"{panel.title.split(' ', 1)[1]} takes {medians.get('sd', medians.get('ar'))} ms{beside}")
    return (
        f"The median {', the median '.join(parts)}. "
        "A round's time counts evenly for the tokens that it emits, all at one instant."
    )


# Phases


def time_per_token(study: Study, *, name: str = "time") -> Figure | None:
    """What an emitted token takes, phase by phase: plain decoding, and every K."""
    headline = study.headline
    arms: list[tuple[str, Arm]] = []
    if headline is not None and headline.baseline is not None:
        arms.append((PLAIN, headline.baseline))
    arms += [(f"K = {k}", c.speculative) for k, c in study.comparisons.items() if c.speculative is not None]
    bars = [(label, arm, total) for label, arm in arms if (total := arm.phases.seconds_per_token)]
    if not bars:
        return None
    plain = bars[0][2] if bars[0][0] == PLAIN else None
    return Figure(
        name=name,
        title="Time per emitted token",
        caption=_time_caption(bars, plain, study.best_k),
        svg=draw(name, 44 + 30 * len(bars) + 26, lambda sheet: _paint_bars(sheet, bars, plain)),
        table=_time_table(bars),
    )


_Bar = tuple[str, Arm, float]
"""A label, and seconds per emitted token."""


def _paint_bars(sheet: Sheet, bars: Sequence[_Bar], plain: float | None) -> None:
    left = max(text_width(label, NORMAL) for label, *_ in bars) + 14
    room = WIDTH - left - 150
    longest = max(total for *_, total in bars)
    sheet.key(left - 8, 9, [(PHASE_FILLS[phase], phase) for phase in PHASES])
    y = 36.0
    for label, arm, total in bars:
        sheet.text(left - 12, y + 11, label, align="right")
        x = left
        for phase, part in arm.phases.by_name.items():
            width = (part.seconds_per_token or 0.0) / longest * room
            if width >= 0.3:
                sheet.box(x, y, max(width - 1, 0.3), 22, PHASE_FILLS[phase])
                _inside(sheet, x, y, width, 22, percent(part.share), phase)
            x += width
        sheet.text(left + room + 62, y + 11, f"{milliseconds(total)} ms", size=SMALL, align="right", bold=True)
        if plain is not None and label != PLAIN:
            sheet.text(WIDTH, y + 11, f"{total / plain:.2f} times plain", size=SMALL, align="right")
        y += 30
    if plain is not None and len(bars) > 1:
        x = left + plain / longest * room
        sheet.line([x, x], [30, y - 2], _LEVEL, behind=True)
        sheet.text(x, y + 8, PLAIN, role="quiet", size=SMALL, align="center")


def _inside(sheet: Sheet, x: float, y: float, width: float, height: float, text: str, phase: str) -> None:
    """A number on a coloured area that has room for it, on a patch free of hatching."""
    taken = text_width(text, SMALL) + 6
    if width >= taken + 4:
        middle = x + width / 2
        sheet.box(middle - taken / 2, y + height / 2 - 7, taken, 14, Fill(phase))
        sheet.text(middle, y + height / 2, text, role="ground", size=SMALL, align="center")


def _time_table(bars: Sequence[_Bar]) -> Table:
    longest = max(total for *_, total in bars)

    def rows() -> Iterator[list[str]]:
        for label, arm, total in bars:
            cells = []
            for name, phase in arm.phases.by_name.items():
                nothing = name == "draft" and label == PLAIN  # it never drafted: nothing to measure, not a measured 0
                spent = f"{milliseconds(phase.seconds_per_token, like=longest)} ({percent(phase.share)})"
                cells.append(DASH if nothing else spent)
            yield [label, *cells, milliseconds(total, like=longest)]

    return table(["ms per emitted token", *PHASES, "total"], rows())


def _time_caption(bars: Sequence[_Bar], plain: float | None, best: DraftLength | None) -> str:
    shown = next((bar for bar in bars if bar[0] == f"K = {best}"), bars[-1])
    label, arm, total = shown
    shares = {name: phase.share or 0.0 for name, phase in arm.phases.by_name.items()}
    most = max(shares, key=lambda name: shares[name])
    beside = ""
    if plain is not None and label != PLAIN:
        beside = f", {total / plain:.2f} times the {milliseconds(plain)} ms of {PLAIN}"
    where = f"In {PLAIN}" if label == PLAIN else f"At {label}"
    return (
        f"{where} a token takes {milliseconds(total)} ms{beside}; the largest part is {most}, {percent(shares[most])}."
    )
