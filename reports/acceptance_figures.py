"""How much of what is drafted is accepted: place by place, and round by round."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator, PercentFormatter

from specprof.experiments.matrix import DraftLength
from specprof.experiments.study import Study
from specprof.profiling.acceptance import AcceptanceCounts
from specprof.profiling.numbers import DASH, count, fixed, percent
from specprof.reports.document import Figure
from specprof.reports.drawing import BOLDER, SMALL, WIDTH, Fill, Sheet, Stroke, color, draw, fit, text_width
from specprof.reports.figure_data import ALL, TO, table

MOST_PANELS = 12
"""Drawn; the table has the others too."""
FEWEST_ROUNDS = 5
"""That have to reach a place for its rate to be drawn; the table has it always."""

_TOP, _LEFT, _GAP = 30.0, 44.0, 26.0
_FROM_THE_START = Stroke("series0", 1.8, marker="o", size=5)
_ONCE_REACHED = Stroke("series1", 1.4, dashes=(4, 2), marker="s", size=5, face="ground")
_EVERYONE = Stroke("quiet", 1.2, dashes=(1, 2))
_ROUNDS = Fill("heat6", edge="series0")
_LAW = Stroke("ink", marker="D", size=4.5, face="ground")
_WIDE = 180.0
"""Panels wider than this have numbers in them."""
_PANEL_HEIGHT, _PANEL_HEAD, _PANEL_FOOT = 132.0, 26.0, 26.0


def acceptance_by_position(study: Study, *, name: str = "acceptance") -> Figure | None:
    """At the longest draft: how often each place of it is accepted, from the start and once it is reached."""
    k = _longest(study)
    if k is None:
        return None
    whole, domains = _counts(study, k)
    panels = dict(list(domains.items())[:MOST_PANELS])
    longest = whole.num_spec_tokens or 1

    def paint_panel(axes: Axes, counts: AcceptanceCounts) -> None:
        if counts is not whole:
            _EVERYONE.plot(axes, range(1, longest + 1), whole.acceptance_rate_per_pos)
        rates = counts.acceptance_rate_per_pos
        bounds = [_wilson(rate * counts.num_spec_steps, counts.num_spec_steps) for rate in rates]
        own = range(1, len(rates) + 1)
        lows, highs = zip(*bounds, strict=True)
        axes.fill_between(own, lows, highs, color=color("series0"), alpha=0.2, linewidth=0)
        once_there = _believable(counts)
        # At the first place the two are the same; from there on they part.
        dataclasses.replace(_ONCE_REACHED, marker="").plot(axes, own, once_there, clip=False)
        dataclasses.replace(_ONCE_REACHED, width=0.0).plot(axes, own[1:], once_there[1:], clip=False)
        _FROM_THE_START.plot(axes, own, rates, clip=False)
        labelled = _width(len(panels)) > _WIDE
        _set_limits(axes, 1, longest, 34.0 if labelled else 10.0)
        if labelled:
            _beside(axes, len(rates), rates[-1], "left")
            if len(rates) > 1:
                _beside(axes, 1, rates[0], "right")
        _number_places(axes, 1, longest, k)

    keys: list[tuple[Stroke | Fill, str]] = [
        (_FROM_THE_START, "accepted, and all before it (95 % interval)"),
        (_ONCE_REACHED, "accepted, if reached"),
    ]
    if list(panels) != [ALL]:
        keys.append((_EVERYONE, ALL))
    note = f"if reached: drawn where {FEWEST_ROUNDS} rounds or more came so far"
    svg = _panels(name, panels, keys, "place in the draft", paint_panel, top=1.0, note=note)
    everyone = domains if ALL in domains else {**domains, ALL: whole}
    return Figure(
        name=name,
        title=f"Acceptance by place in the draft, K = {k}",
        caption=_acceptance_caption(whole, domains) + _left_out(panels, domains),
        svg=svg,
        table=table(
            ["", *(str(place) for place in range(1, longest + 1)), "rounds"],
            [row for domain, counts in everyone.items() for row in _acceptance_rows(domain, counts, longest)],
        ),
    )


def accepted_per_round(study: Study, *, name: str = "accepted-per-round") -> Figure | None:
    """At the longest draft: how many of it rounds accept, beside what one and the same chance for all would yield."""
    k = _longest(study)
    if k is None:
        return None
    whole, domains = _counts(study, k)
    panels = dict(list(domains.items())[:MOST_PANELS])
    longest = whole.num_spec_tokens or 1
    top = max(max((*_shares(counts), *(_geometric(counts) or ()))) for counts in panels.values())

    def paint_panel(axes: Axes, counts: AcceptanceCounts) -> None:
        shares, law = _shares(counts), _geometric(counts)
        bars = Path.make_compound_path(*(_bar(accepted, share) for accepted, share in enumerate(shares)))
        for look in _ROUNDS.looks():
            axes.add_patch(PathPatch(bars, **look))
        if law is not None:
            _LAW.plot(axes, range(len(law)), law, clip=False)
        _set_limits(axes, 0, longest, 0.5 * _width(len(panels)) / (longest + 1))
        _number_places(axes, 0, longest, k)

    keys: list[tuple[Stroke | Fill, str]] = [(_ROUNDS, "rounds that accept so many of the draft")]
    if any(_geometric(counts) for counts in panels.values()):
        keys.append((_LAW, "if all places had the same chance, alpha"))
    svg = _panels(name, panels, keys, "accepted draft tokens", paint_panel, top=top * 1.08)
    everyone = domains if ALL in domains else {**domains, ALL: whole}
    return Figure(
        name=name,
        title=f"Accepted tokens per round, K = {k}",
        caption=_histogram_caption(whole) + _left_out(panels, domains),
        svg=svg,
        table=table(
            ["", *(str(accepted) for accepted in range(longest + 1)), "mean", "alpha", "rounds"],
            [row for domain, counts in everyone.items() for row in _histogram_rows(domain, counts, longest)],
        ),
    )


# The panels


def _panels(
    name: str,
    panels: Mapping[str, AcceptanceCounts],
    keys: Sequence[tuple[Stroke | Fill, str]],
    x_label: str,
    paint: Callable[[Axes, AcceptanceCounts], None],
    *,
    top: float,
    note: str = "",
) -> str:
    """One field for each domain, alike in scale; ``top`` is the largest share to be seen."""
    columns = _columns(len(panels))
    rows = -(-len(panels) // columns)
    width = _width(len(panels))
    pitch = _PANEL_HEAD + _PANEL_HEIGHT + _PANEL_FOOT

    def paint_all(sheet: Sheet) -> None:
        sheet.key(_LEFT - 4, 8, keys, room=WIDTH - _LEFT)
        for index, (domain, counts) in enumerate(panels.items()):
            row, column = divmod(index, columns)
            left, y = _LEFT + column * (width + _GAP), _TOP + row * pitch
            rounds = count(counts.num_spec_steps, "round") if width > _WIDE else ""
            sheet.text(left, y + 8, fit(domain, (width - text_width(rounds, SMALL) - 10) / BOLDER), bold=True)
            sheet.text(left + width, y + 8, rounds, role="quiet", size=SMALL, align="right")
            axes = sheet.axes(left, y + _PANEL_HEAD, width, _PANEL_HEIGHT)
            paint(axes, counts)
            axes.set_ylim(0, top)
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
            axes.tick_params(axis="y", labelleft=column == 0)
        sheet.text(_LEFT, _TOP + rows * pitch + 4, note, role="quiet", size=SMALL)
        sheet.text(WIDTH - 6, _TOP + rows * pitch + 4, x_label, role="quiet", size=SMALL, align="right")

    return draw(name, _TOP + rows * pitch + 14, paint_all)


def _columns(number: int) -> int:
    return {1: 1, 2: 2, 3: 3, 5: 3, 6: 3, 9: 3}.get(number, 4)


def _width(number: int) -> float:
    """Of one of so many panels."""
    columns = _columns(number)
    return (WIDTH - _LEFT - 6 - (columns - 1) * _GAP) / columns


def _number_places(axes: Axes, first: int, last: int, k: DraftLength) -> None:
    """Every place that there is room for, K among them."""
    low, high = axes.get_xlim()
    room = axes.bbox.width / (high - low)
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128) if step * room >= 15 or step > last)
    end = f"K = {last}" if k != "auto" and axes.bbox.width > _WIDE else str(last)
    # What would touch the last label gives way to it.
    places = [place for place in range(first, last, step) if (last - place) * room >= 18 + 3 * (len(end) - 1)]
    axes.set_xticks([*places, last], labels=[*map(str, places), end])


def _set_limits(axes: Axes, first: int, last: int, margin: float) -> None:
    """So many pixels beside the outermost places."""
    pitch = (axes.bbox.width - 2 * margin) / max(last - first, 1)
    axes.set_xlim(first - margin / pitch, last + margin / pitch)


def _beside(axes: Axes, x: float, share: float, align: Literal["left", "right"]) -> None:
    axes.annotate(
        percent(share),
        (x, share),
        (7 if align == "left" else -7, 6 if share < 0.04 else 0),  # not on the axis
        textcoords="offset points",
        ha=align,
        va="center",
        fontsize=SMALL,
        color=color("ink"),
    )


# What is drawn


def _longest(study: Study) -> DraftLength | None:
    """The K with the longest drafts that tell anything of acceptance."""
    found = {
        k: comparison.acceptance.num_spec_tokens or 0
        for k, comparison in study.comparisons.items()
        if comparison.acceptance is not None and comparison.acceptance.num_spec_tokens
    }
    return max(found.items(), key=lambda item: item[1])[0] if found else None


def _counts(study: Study, k: DraftLength) -> tuple[AcceptanceCounts, dict[str, AcceptanceCounts]]:
    """Of all prompts, and of each domain that had a complete round; one entry at least."""
    comparison = study.comparisons[k]
    assert comparison.acceptance is not None
    domains = {}
    for name in dict.fromkeys((*study.domains, *comparison.domains)):
        found = comparison.domains.get(name)
        if found is not None and found.acceptance is not None and found.acceptance.num_spec_steps:
            domains[name] = found.acceptance
    return comparison.acceptance, domains or {ALL: comparison.acceptance}


def _wilson(successes: float, trials: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927)."""
    z = 1.959964
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _believable(counts: AcceptanceCounts) -> list[float]:
    """The rate at each place once it is reached; not a number where few rounds came so far."""
    # A place is reached by the rounds that accepted the one before it, if they drafted as far.
    came = [1.0, *counts.acceptance_rate_per_pos]
    return [
        math.nan if rate is None or round(share * counts.num_spec_steps) < FEWEST_ROUNDS else rate
        for rate, share in zip(counts.conditional_acceptance_rate, came, strict=False)
    ]


def _bar(x: float, height: float) -> Path:
    return Path([(x - 0.39, 0), (x - 0.39, height), (x + 0.39, height), (x + 0.39, 0), (x - 0.39, 0)], closed=True)


def _shares(counts: AcceptanceCounts) -> list[float]:
    return [rounds / counts.num_spec_steps for rounds in counts.acceptance_histogram]


def _geometric(counts: AcceptanceCounts) -> list[float] | None:
    """Shares of rounds with 0, 1, ... K accepted if each place were accepted with probability alpha, independently;
    the drafts as long as they were. None without an alpha."""
    alpha = counts.alpha
    if alpha is None:
        return None
    drafted = counts.draft_length_histogram
    shares = [0.0] * len(drafted)
    for length, rounds in enumerate(drafted):
        if length:
            for accepted in range(length + 1):
                stops = 1.0 if accepted == length else 1 - alpha
                shares[accepted] += rounds / counts.num_spec_steps * alpha**accepted * stops
    return shares


# Words and numbers


def _acceptance_caption(whole: AcceptanceCounts, domains: Mapping[str, AcceptanceCounts]) -> str:
    rates, once_there = whole.acceptance_rate_per_pos, whole.conditional_acceptance_rate
    sentence = f"The draft is right at the first place in {percent(rates[0])} of rounds"
    last = len(rates)
    if last > 1:
        sentence += f" and at all {last} in {percent(rates[-1])}"
        reached = [place for place, rate in enumerate(_believable(whole)) if place and not math.isnan(rate)]
        if reached:
            place = min(reached[-1], 3)
            sentence += (
                f"; once it gets to the {_ordinal(place + 1)}, it is right there in {percent(once_there[place])}"
            )
    firsts = {name: counts.acceptance_rate_per_pos[0] for name, counts in domains.items()}
    best, worst = max(firsts, key=lambda name: firsts[name]), min(firsts, key=lambda name: firsts[name])
    if firsts[best] == firsts[worst]:
        return f"{sentence}."
    return (
        f"{sentence}. The first place goes best on {fit(best, 200)} ({percent(firsts[best])}) "
        f"and worst on {fit(worst, 200)} ({percent(firsts[worst])})."
    )


def _ordinal(number: int) -> str:
    return {2: "second", 3: "third"}.get(number, f"{number}th")


def _histogram_caption(whole: AcceptanceCounts) -> str:
    shares, law = _shares(whole), _geometric(whole)
    k = len(shares) - 1
    every = "the one" if k == 1 else f"all {k}"
    sentence = f"Nothing is accepted in {percent(shares[0])} of rounds, {every} in {percent(shares[-1])}"
    if law is None:
        return f"{sentence}."
    measured, expected = _variance(shares), _variance(law)
    if measured > 1.1 * expected:
        judgement = "rounds differ more than that, some places are easy, others hard"
    elif measured < 0.9 * expected:
        judgement = "rounds differ less than that"
    else:
        judgement = "rounds differ about as much as that"
    return (
        f"{sentence}. With one chance for all places (alpha {fixed(whole.alpha)}) it would be {percent(law[0])} and "
        f"{percent(law[-1])}: {judgement}."
    )


def _variance(shares: Sequence[float]) -> float:
    mean = sum(accepted * share for accepted, share in enumerate(shares))
    return sum((accepted - mean) ** 2 * share for accepted, share in enumerate(shares))


def _left_out(panels: Mapping[str, object], domains: Mapping[str, object]) -> str:
    if len(panels) == len(domains):
        return ""
    return f" Drawn are {count(len(panels), 'domain')} of {len(domains)}; the table has all."


def _acceptance_rows(domain: str, counts: AcceptanceCounts, longest: int) -> Iterator[list[str]]:
    rates = counts.acceptance_rate_per_pos
    bounds = [_wilson(rate * counts.num_spec_steps, counts.num_spec_steps) for rate in rates]
    spreads = [f"{low * 100:.0f}{TO}{high * 100:.0f} %" for low, high in bounds]
    rest = [DASH] * (longest - len(rates))
    rounds = str(counts.num_spec_steps)
    yield [f"{domain}: accepted", *map(percent, rates), *rest, rounds]
    yield [f"{domain}: 95 % interval", *spreads, *rest, rounds]
    yield [f"{domain}: if reached", *map(percent, counts.conditional_acceptance_rate), *rest, rounds]


def _histogram_rows(domain: str, counts: AcceptanceCounts, longest: int) -> Iterator[list[str]]:
    shares, law = _shares(counts), _geometric(counts)
    rest = [DASH] * (longest + 1 - len(shares))
    mean, alpha = fixed(counts.accepted_per_step), fixed(counts.alpha)
    yield [f"{domain}: rounds", *map(percent, shares), *rest, mean, alpha, str(counts.num_spec_steps)]
    if law is not None:
        mean = fixed(sum(accepted * share for accepted, share in enumerate(law)))
        yield [f"{domain}: with alpha alone", *map(percent, law), *rest, mean, alpha, DASH]
