"""What the cost model says, beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from specprof.experiments.matrix import DraftLength
from specprof.experiments.study import Study
from specprof.profiling.cost_model import Prediction
from specprof.profiling.numbers import DASH, fixed, interval, percent, times
from specprof.profiling.speedup import Speedup
from specprof.reports.document import Figure, Table
from specprof.reports.drawing import SMALL, WIDTH, Fill, Sheet, Stroke, color, draw, fit, text_width
from specprof.reports.figure_data import PLAIN, labels, table

MOST_POINTS = 100
"""Drawn; the table has the others too."""
MOST_STUDIES = 16

_MARKERS = "osD^vPX*"
_MEASURED = Stroke("sd", marker="o", size=6.5)
_PREDICTED = Stroke("ink", marker="D", size=11, face=None)
_PLACE_BY_PLACE = Stroke("series0", 1.8, marker=".", size=8)
_LEVEL = Stroke("ink", 1.2)
_ONE_ALPHA = Stroke("series1", 1.4, dashes=(4, 2))


@dataclass(frozen=True, slots=True)
class _Point:
    """One K of one study; what was measured and what was predicted are known."""

    study: str
    k: DraftLength
    measured: Speedup
    predicted: float
    """From the survey where it covers K, else from K's own rounds."""
    from_rounds: float | None

    @property
    def value(self) -> float:
        assert self.measured.value is not None
        return self.measured.value

    @property
    def error(self) -> float:
        return self.predicted / self.value - 1


def predicted_against_measured(studies: Sequence[Study], *, name: str = "prediction") -> Figure | None:
    """One study: speedup by K, predicted and measured. Several: each K's prediction against its measurement."""
    names = labels(studies)
    points = [point for study, label in zip(studies, names, strict=True) for point in _points(study, label)]
    telling = [study for study, label in zip(studies, names, strict=True) if any(p.study == label for p in points)]
    if not telling:
        return None
    if len(telling) == 1:
        return _by_length(telling[0], points, name)
    return _scatter(points, name)


def _points(study: Study, label: str) -> list[_Point]:
    found = []
    for k, comparison in study.comparisons.items():
        surveyed = {prediction.k: prediction.speedup for prediction in comparison.predictions}
        own = comparison.costs.speedup_predicted_with_ar_overhead if comparison.costs else None
        predicted = surveyed.get(k, own) if isinstance(k, int) else own
        measured = comparison.speedup_decode
        if measured is not None and measured.value is not None and predicted is not None:
            found.append(_Point(label, k, measured, predicted, own))
    return found


# One study: over K


def _by_length(study: Study, points: Sequence[_Point], name: str) -> Figure:
    # Every comparison of a run is of one survey; a sweep has none.
    predictions = next((c.predictions for c in study.comparisons.values() if c.predictions), ())
    return Figure(
        name=name,
        title="Speedup predicted and measured",
        caption=_length_caption(points, predictions),
        svg=draw(name, 290, lambda sheet: _paint_lengths(sheet, points, predictions)),
        table=_length_table(points, predictions),
    )


def _paint_lengths(sheet: Sheet, points: Sequence[_Point], predictions: Sequence[Prediction]) -> None:
    left, right = 44.0, 8.0
    axes = sheet.axes(left, 44, WIDTH - left - right, 206)
    ks = sorted({k for k in (*(p.k for p in points), *(p.k for p in predictions)) if isinstance(k, int)})
    place: dict[DraftLength, float] = {k: float(k) for k in ks}
    if any(point.k == "auto" for point in points):
        place["auto"] = max(place.values(), default=0.0) + 1
    values = [1.0]
    keys: list[tuple[Stroke | Fill, str]] = [
        (_MEASURED, "measured, 95 % interval" if any(p.measured.ci for p in points) else "measured"),
    ]
    if not predictions:
        keys.append((_PREDICTED, "predicted from its rounds"))
    uniform = [(p.k, p.speedup_from_alpha) for p in predictions if p.speedup_from_alpha is not None]
    if len(predictions) > 1:
        _PLACE_BY_PLACE.plot(axes, [p.k for p in predictions], [p.speedup for p in predictions])
        values += [p.speedup for p in predictions]
        best = max(predictions, key=lambda prediction: prediction.speedup)
        if all(point.k != best.k for point in points):
            _label(axes, best.k, best.speedup, times(best.speedup), (0, -14), "center")
        keys.append((_PLACE_BY_PLACE, "predicted, place by place"))
    if len(uniform) > 1:
        _ONE_ALPHA.plot(axes, *zip(*uniform, strict=True))
        values += [speedup for _, speedup in uniform]
        keys.append((_ONE_ALPHA, "predicted, one alpha"))
    keys.append((_LEVEL, PLAIN))
    for point in points:
        x, ci = place[point.k], point.measured.ci
        if ci:
            Stroke("sd", 2).plot(axes, [x, x], ci)
        if not predictions:
            _PREDICTED.plot(axes, [x], [point.predicted])
        _MEASURED.plot(axes, [x], [point.value])
        values += [point.value, point.predicted, *(ci or ())]
        _label(axes, x, point.value, times(point.value), (10, 0), "left")
    low, high = min(values), max(values)
    margin = max(0.08 * (high - low), 0.04)
    axes.set_ylim(low - margin, high + margin)
    first, last = min(place.values()), max(place.values())
    _LEVEL.plot(axes, [first - 0.5, last + 0.9], [1, 1])
    axes.set_xlim(first - 0.5, last + 0.9)
    axes.set_xticks(list(place.values()), labels=[f"K = {k}" if len(place) <= 10 else str(k) for k in place])
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}x" if abs(value) < 100 else f"{value:.0f}x")
    sheet.key(left - 8, 9, keys, room=WIDTH - left)


def _label(
    axes: Axes, x: float, y: float, text: str, offset: tuple[float, float], align: Literal["left", "center"]
) -> None:
    axes.annotate(
        text,
        (x, y),
        offset,
        textcoords="offset points",
        ha=align,
        va="center",
        fontsize=SMALL,
        color=color("ink"),
    )


def _length_caption(points: Sequence[_Point], predictions: Sequence[Prediction]) -> str:
    text = _distance(points)
    if len(predictions) > 1:
        best = max(predictions, key=lambda prediction: prediction.speedup)
        text += f" Of every K that the survey covers, K = {best.k} should do best: {times(best.speedup)}."
    return text


def _length_table(points: Sequence[_Point], predictions: Sequence[Prediction]) -> Table:
    by_k = {point.k: point for point in points}
    curve: dict[DraftLength, Prediction] = {prediction.k: prediction for prediction in predictions}
    ks = sorted({*by_k, *curve}, key=lambda k: (isinstance(k, str), k))

    def row(k: DraftLength) -> list[str]:
        point, prediction = by_k.get(k), curve.get(k)
        return [
            f"K = {k}",
            times(point.value) if point else DASH,
            interval(point.measured) if point else DASH,
            times(point.from_rounds) if point else DASH,
            times(prediction.speedup) if prediction else DASH,
            times(prediction.speedup_from_alpha) if prediction else DASH,
            fixed(prediction.tokens_per_round) if prediction else DASH,
        ]

    columns = ["", "measured", "95 % interval", "predicted from that K's rounds", "predicted, place by place",
               "predicted, one alpha", "tokens per round, predicted"]  # fmt: skip
    return table(columns if predictions else columns[:4], [row(k) if predictions else row(k)[:4] for k in ks])


# Several studies: against each other


def _scatter(points: Sequence[_Point], name: str) -> Figure:
    studies = list(dict.fromkeys(point.study for point in points))
    drawn = [point for point in points if point.study in studies[:MOST_STUDIES]][:MOST_POINTS]
    caption = _distance(points)
    if len(drawn) < len(points):
        caption += f" Drawn are {len(drawn)} of {len(points)} points; the table has all."
    return Figure(
        name=name,
        title="Speedup predicted and measured",
        caption=caption,
        svg=draw(name, 400, lambda sheet: _paint_scatter(sheet, drawn)),
        table=table(
            ["", "K", "measured", "95 % interval", "predicted", "off by"],
            [
                [p.study, str(p.k), times(p.value), interval(p.measured), times(p.predicted), f"{p.error * 100:+.0f} %"]
                for p in points
            ],
        ),
    )


def _paint_scatter(sheet: Sheet, points: Sequence[_Point]) -> None:
    left, side = 52.0, 330.0
    axes = sheet.axes(left, 16, side, side)
    values = [v for p in points for v in (p.value, p.predicted, *(p.measured.ci or ()))]
    low, high = min(*values, 1.0), max(*values, 1.0)
    margin = 0.05 * (high - low) + 0.03
    low, high = max(low - margin, 0.0), high + margin
    axes.fill_between([low, high], [low * 0.9, high * 0.9], [low * 1.1, high * 1.1], color=color("heat4"), linewidth=0)
    Stroke("quiet", 1.2).plot(axes, [low, high], [low, high])
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.grid(visible=True, axis="x", color=color("rule"), linewidth=0.8)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(lambda value, _: f"{value:g}x")
    studies = list(dict.fromkeys(point.study for point in points))
    labelled: list[tuple[float, float]] = []  # where two labels would touch, the table tells them apart
    for point in points:
        index = studies.index(point.study)
        if point.measured.ci:
            Stroke(f"series{index % 6}", 1.4).plot(axes, [point.predicted] * 2, point.measured.ci)
        _mark(index).plot(axes, [point.predicted], [point.value])
        spot = axes.transData.transform((point.predicted, point.value))
        text = str(point.k)
        if all(abs(spot[0] - x) > 8 + text_width(text, SMALL) or abs(spot[1] - y) > 11 for x, y in labelled):
            _label(axes, point.predicted, point.value, text, (7, 0), "left")
            labelled.append((float(spot[0]), float(spot[1])))
    sheet.text(left, 384, "predicted", role="quiet", size=SMALL)
    sheet.text(left - 44, 6, "measured", role="quiet", size=SMALL)
    x, room = left + side + 30, WIDTH - left - side - 30
    sheet.text(x, 24, "the number beside a mark is K", role="quiet", size=SMALL)
    y = 44.0
    for index, study in enumerate(studies):
        sheet.key(x - 8, y, [(_mark(index), fit(study, room - 40, SMALL))])
        y += 17
    sheet.key(x - 8, y + 8, [(Fill("heat4", edge="rule"), "within 10 % of the prediction")])


def _mark(index: int) -> Stroke:
    return Stroke(f"series{index % 6}", marker=_MARKERS[index % len(_MARKERS)], size=7)


def _distance(points: Sequence[_Point]) -> str:
    if len(points) == 1:
        (point,) = points
        spread = f" {interval(point.measured)}" if point.measured.ci else ""
        return f"At K = {point.k}, {times(point.predicted)} predicted and {times(point.value)}{spread} measured."
    errors = [abs(point.error) for point in points]
    worst = max(points, key=lambda point: abs(point.error))
    several = len({point.study for point in points}) > 1
    where = f"K = {worst.k} of {fit(worst.study, 300)}" if several else f"K = {worst.k}"
    return (
        f"Predictions are off by {percent(statistics.median(errors))} at the median, and by "
        f"{percent(max(errors))} at most ({where}: {times(worst.predicted)} predicted, "
        f"{times(worst.value)} measured)."
    )
