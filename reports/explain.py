"""Why the speedup is what it is, in words and a short column of figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from specprof.experiments.matrix import DraftLength
from specprof.profiling.attribution import Attribution, Change, attribute, best_change
from specprof.profiling.comparison import Comparison
from specprof.profiling.numbers import interval, times
from specprof.reports.tables import plain

SCHEMA = "specprof.explain/1"

CAUSES = {
    "drafting accepted tokens": "The draft takes long for what it is: a smaller or faster draft model would help.",
    "drafting rejected tokens": "Much is drafted in vain: a draft closer to the target would help.",
    "verifying more than one token": "A pass over several tokens costs much more than one over a single token, "
    "which a target bound by memory bandwidth would not show.",
    "sampling": "Judging drafts takes long beside the models' passes: a larger target would not notice it.",
    "overhead": "The work between the passes takes long beside them: a larger target would not notice it.",
}
DRAFTING = ("drafting accepted tokens", "drafting rejected tokens")
_NOTABLE_GAIN = 1.005


def to_dict(comparison: Comparison, *, measured: Mapping[DraftLength, float] | None = None) -> dict[str, Any]:
    """The same as plain JSON types; None where a run doesn't tell."""
    found, change = attribute(comparison), best_change(comparison)
    return {
        "attribution": None
        if found is None
        else dataclasses.asdict(found)
        | {
            "ideal_speedup": found.ideal_speedup,
            "measured_speedup": found.measured_speedup,
            "gap_seconds_per_token": found.gap_seconds_per_token,
        },
        "best_change": None if change is None else dataclasses.asdict(change),
        "explanation": sentences(comparison, measured=measured),
    }


def render(
    comparison: Comparison, *, title: str, measured: Mapping[DraftLength, float] | None = None
) -> RenderableType:
    """The verdict, where the time goes, and what would help."""
    found = attribute(comparison)
    heading = Text(plain(title), style="bold")
    words = [Text(line) for line in sentences(comparison, measured=measured)]
    if found is None:
        return Group(heading, Text(), *words)
    return Group(heading, Text(), words[0], Text(), _column(found), Text(), *words[1:])


def sentences(comparison: Comparison, *, measured: Mapping[DraftLength, float] | None = None) -> list[str]:
    """The verdict, the largest cause and the change that would help most.

    Args:
        measured: speedups by draft length, where several were measured: what they say needs no prediction.
    """
    found, change = attribute(comparison), best_change(comparison)
    if found is None:
        return ["Nothing to explain: it takes generations of both arms, plain and speculative, with complete rounds."]
    lines = [_verdict(comparison, found)]
    if found.gap_seconds_per_token > 0:
        lines.append(_cause(found))
    if measured is not None and len(measured) > 1:
        lines.append(_best_of(measured))
    elif change is not None:
        lines.append(_advice(change))
    if found.prefill_seconds is not None and found.prefill_seconds > 0:
        lines.append(
            f"Preparing to draft delays the first token by {_ms(found.prefill_seconds)} ms; that is not in the above."
        )
    return lines


def _cause(found: Attribution) -> str:
    """Drafting is one cause, whatever became of the tokens; the larger part of it says what would help."""
    seconds = {loss.name: loss.seconds_per_token for loss in found.losses}
    drafting = {name: seconds.pop(name) for name in DRAFTING}
    total = sum(drafting.values())
    worst = max(seconds, key=seconds.__getitem__)
    if total < seconds[worst]:
        return f"The largest cause is {worst}: {_ms(seconds[worst])} ms per token. {CAUSES[worst]}"
    part = max(drafting, key=drafting.__getitem__)
    in_vain = _ms(drafting["drafting rejected tokens"])
    return (
        f"The largest cause is drafting: {_ms(total)} ms per token, {in_vain} ms of it for tokens that were rejected. "
        f"{CAUSES[part]}"
    )


def _verdict(comparison: Comparison, found: Attribution) -> str:
    speedup = comparison.speedup_decode
    certain = f" {interval(speedup)}" if speedup is not None and speedup.ci is not None else ""
    measured = f"Measured {times(found.measured_speedup)}{certain}. A round yields {found.tokens_per_round:.2f} tokens"
    if found.gap_seconds_per_token <= 0:
        return f"{measured}, and costs no more than one step of plain decoding: nothing is lost."
    return f"{measured}: if it cost no more than one step of plain decoding, it would be {found.ideal_speedup:.2f}x."


def _best_of(measured: Mapping[DraftLength, float]) -> str:
    best = max(measured, key=measured.__getitem__)
    tried = ", ".join(map(str, measured))
    if measured[best] <= 1:
        return (
            f"What would help most: not to speculate. None of the K measured ({tried}) is faster than plain decoding."
        )
    return f"K = {best} is the best of those measured ({tried})."


def _advice(change: Change) -> str:
    if change.best_k == 0:
        return (
            f"What would help most: not to speculate. By this run's acceptance and costs no draft of up to "
            f"{change.k:.3g} tokens pays ({change.speedup:.2f}x predicted at {change.k:.3g})."
        )
    if change.best_speedup < change.speedup * _NOTABLE_GAIN or change.best_k == change.k:
        longer = " Longer drafts were not tried." if change.at_limit else ""
        return f"K = {change.k:.3g} is about the best of the lengths up to it.{longer}"
    return (
        f"What would help most: K {change.k:.3g} -> {change.best_k}: {change.speedup:.2f}x -> "
        f"{change.best_speedup:.2f}x, predicted from this run's acceptance and costs."
    )


def _column(found: Attribution) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="none")
    table.add_column("ms per token")
    table.add_column("", justify="right")
    table.add_column("of the gap", justify="right")
    table.add_row("plain decoding", _ms(found.ar_seconds_per_token), "")
    table.add_row(f"ideal: that / {found.tokens_per_round:.2f}", _ms(found.ideal_seconds_per_token), "")
    for loss in found.losses:
        share = "" if loss.share is None else f"{loss.share * 100:.0f} %"
        table.add_row(f"+ {loss.name}", _ms(loss.seconds_per_token), share)
    table.add_row("= measured", _ms(found.measured_seconds_per_token), "")
    return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f}"
