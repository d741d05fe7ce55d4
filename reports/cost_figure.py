"""What a round costs, by the number of tokens it drafts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from specprof.experiments.matrix import DraftLength
from specprof.experiments.study import Study
from specprof.profiling.comparison import Comparison
from specprof.profiling.numbers import fixed, milliseconds
from specprof.reports.document import Figure
from specprof.reports.drawing import PHASE_FILLS, SMALL, WIDTH, Sheet, Stroke, draw
from specprof.reports.figure_data import PLAIN, table

_LEVEL = Stroke("ink", 1.2, dashes=(3, 2))


@dataclass(frozen=True, slots=True)
class _Cost:
    k: int
    draft: float
    verify: float
    rest: float
    """Seconds of a round."""
    needed: float | None
    """Tokens it has to yield to keep up with plain decoding."""
    yielded: float | None

    @property
    def total(self) -> float:
        return self.draft + self.verify + self.rest


def cost_curve(study: Study, *, name: str = "cost") -> Figure | None:
    """What a round costs by the number of tokens it drafts, and how many it has to yield for that."""
    costs = _surveyed(study) or _measured(study.comparisons)
    if len(costs) < 2 or (study.curve is None and len(costs) < 3):
        return None  # of one K alone the phases per token say as much
    if min(cost.total for cost in costs) <= 0:
        return None  # a clock too coarse for a round
    step = costs[0]
    return Figure(
        name=name,
        title="What a round costs",
        caption=_cost_caption(costs),
        svg=draw(name, 322, lambda sheet: _paint_costs(sheet, costs)),
        table=table(
            ["K", "draft, ms", "verify, ms", "rest, ms", "round, ms", "verify, in passes", "tokens to break even",
             "tokens per round"],
            [
                [str(c.k), *(milliseconds(s, like=costs[-1].total) for s in (c.draft, c.verify, c.rest, c.total)),
                 fixed(c.verify / step.verify), fixed(c.needed), fixed(c.yielded)]
                for c in costs
            ],
        ),
    )  # fmt: skip


def _surveyed(study: Study) -> list[_Cost]:
    curve = study.curve
    if curve is None:
        return []
    predictions = study.headline.predictions if study.headline is not None else ()
    yielded = {prediction.k: prediction.tokens_per_round for prediction in predictions}
    return [
        _Cost(k, curve.draft_seconds[k] if k else 0.0, curve.verify_seconds[k], curve.rest_seconds[k],
              curve.break_even_tau(k) if k else None, yielded.get(k))
        for k in range(curve.longest + 1)
    ]  # fmt: skip


def _measured(comparisons: Mapping[DraftLength, Comparison]) -> list[_Cost]:
    """Of several K, each with its own rounds."""
    found: list[_Cost] = []
    for k, comparison in comparisons.items():
        costs = comparison.costs
        if k == "auto" or costs is None or costs.ar_overhead_ratio is None:
            continue
        step = costs.target_step_seconds
        if not found:
            found.append(_Cost(0, 0.0, step, costs.ar_overhead_ratio * step, None, None))
        if costs.draft_cost_ratio is None or costs.verify_ratio is None or costs.overhead_ratio is None:
            continue
        drafted, tau = costs.draft_tokens_per_round or 0.0, costs.tokens_per_round
        predicted = costs.speedup_predicted_with_ar_overhead
        found.append(
            _Cost(k, drafted * costs.draft_cost_ratio * step, costs.verify_ratio * step, costs.overhead_ratio * step,
                  tau / predicted if tau and predicted else None, tau)
        )  # fmt: skip
    return found


def _paint_costs(sheet: Sheet, costs: Sequence[_Cost]) -> None:
    left, top, height = 52.0, 58.0, 190.0
    width, foot = WIDTH - left, top + height
    scale = height / (1.02 * max(cost.total for cost in costs))  # pixels per second
    axes = sheet.axes(left, top, width, height)
    axes.set(xlim=(0, 1), ylim=(0, height / scale * 1e3))
    axes.set_xticks([])
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    named = {"verify": "verify", "draft": "draft", "overhead": "sampling and overhead"}
    keys = [(PHASE_FILLS[phase], label) for phase, label in named.items()]
    sheet.key(left, 9, [*keys, (_LEVEL, "verifying one token, as plain decoding does")])
    sheet.text(left, 32, "ms per round", role="quiet", size=SMALL)
    pitch = width / len(costs)
    wide = min(pitch * 0.72, 64.0)
    for index, cost in enumerate(costs):
        middle, y = left + (index + 0.5) * pitch, foot
        for phase, seconds in (("verify", cost.verify), ("draft", cost.draft), ("overhead", cost.rest)):
            tall = seconds * scale
            y -= tall
            if tall >= 0.3:
                sheet.box(middle - wide / 2, y, wide, max(tall - 0.7, 0.3), PHASE_FILLS[phase])
        sheet.text(middle, y - 9, milliseconds(cost.total), size=SMALL, align="center")
        label = f"K = {cost.k}" if pitch >= 46 else str(cost.k)
        sheet.text(middle, foot + 13, label if cost.k else "plain", role="quiet", size=SMALL, align="center")
        pays = cost.yielded is not None and cost.needed is not None and cost.yielded > cost.needed
        if cost.k:
            sheet.text(middle, foot + 32, fixed(cost.needed), size=SMALL, align="center")
            sheet.text(middle, foot + 48, fixed(cost.yielded), size=SMALL, align="center", bold=pays)
    level = foot - costs[0].verify * scale
    sheet.line([left, left + width], [level, level], _LEVEL)
    sheet.text(left - 8, foot + 32, "needs", role="quiet", size=SMALL, align="right")
    sheet.text(left - 8, foot + 48, "yields", role="quiet", size=SMALL, align="right")
    legend = "tokens per round: needed to keep up with plain decoding, and yielded (bold: more than needed)"
    sheet.text(left, foot + 66, legend, role="quiet", size=SMALL)


def _cost_caption(costs: Sequence[_Cost]) -> str:
    step, longest = costs[0], costs[-1]
    text = (
        f"A round that drafts {longest.k} takes {milliseconds(longest.total)} ms where a step of {PLAIN} takes "
        f"{milliseconds(step.total)} ms, so it has to yield {fixed(longest.needed)} tokens to keep up. Verifying "
        f"{longest.k} tokens costs {fixed(longest.verify / step.verify)} target passes of one token; 1 would be free."
    )
    paying = [cost for cost in costs if cost.needed is not None and cost.yielded is not None]
    if paying:
        faster = [str(cost.k) for cost in paying if (cost.yielded or 0.0) > (cost.needed or 0.0)]
        text += f" Rounds yield more than they need at K = {', '.join(faster)}." if faster else " No K yields enough."
    return text
