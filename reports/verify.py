"""Whether the output is still the target's: a sentence, what would have been found, and the tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from specprof.profiling.goodness import POWER
from specprof.profiling.numbers import DASH, count
from specprof.profiling.verification import (
    CHECK_LEVEL,
    ArmLaw,
    Check,
    Difference,
    GreedyVerification,
    LawVerification,
    Rounding,
    Verification,
)
from specprof.reports.results import finite
from specprof.reports.tables import plain

SCHEMA = "specprof.verify/1"

NAMES = {
    "unjudged": "draft tokens unjudged",
    "corrected": "corrected tokens",
    "bonus": "bonus from the draft",
    "sharpness": "temperature",
    "acceptance": "acceptance",
    "ranks": "ranks",
    "impossible": "impossible tokens",
    "rounding": "rounding",
}
_SHOWN_DIFFERENCES = 8
_LEAST_P = 1e-300
"""Below, there are no numbers to compute it with."""
_VERDICT_COLORS = {"passed": "bold green", "not tested": "bold yellow"}


def to_dict(verification: Verification) -> dict[str, Any]:
    """The same as plain JSON types; None where there is no number."""
    record = verification.to_dict() | {"sentences": sentences(verification)}
    return {key: finite(value) for key, value in record.items()}


def render(verification: Verification, *, title: str) -> RenderableType:
    """The verdict, what would have been found, and every test beside it."""
    first, *rest = sentences(verification)
    words = [Text(first, style=_VERDICT_COLORS.get(verification.verdict, "bold red")), *map(Text, rest)]
    heading = Text(plain(title), style="bold")
    if isinstance(verification, LawVerification):
        return Group(heading, Text(), *words, Text(), _tests(verification))
    if verification.differences:
        return Group(heading, Text(), *words, Text(), _differences(verification))
    return Group(heading, Text(), *words)


def sentences(verification: Verification) -> list[str]:
    """The verdict first, then what it rests on."""
    if isinstance(verification, GreedyVerification):
        return list(_greedy(verification))
    return list(_law(verification))


# Sampling


def _law(found: LawVerification) -> Iterator[str]:
    arm, control = found.speculative, found.control
    if found.verdict == "control failed":
        yield f"Plain decoding itself fails ({_listed(control.failures)}): speculation is not to blame, or not alone."
        if "rounding" in control.failures:
            yield "The target does not compute one law step by step and in a single pass."
        else:
            yield "The fault is in what both arms share, the target's passes and the sampler, or in this test."
        yield f"{arm.label} {'fails as well' if arm.failures else 'passes' if arm.tested else 'could not be tested'}."
    elif found.verdict == "failed":
        yield f"The output is not the target's: {_listed(arm.failures)}; {_of_the_control(control)}."
    elif found.verdict == "not tested":
        why = "no test could have found a fault" if arm.num_drafted else "nothing was drafted"
        yield f"Not tested: {why}."
    else:
        smallest = DASH if arm.smallest_p is None else _p(arm.smallest_p)
        yield (
            f"The output is the target's: {count(len(arm.tested), 'test')} over {arm.num_tokens:,} tokens, "
            f"smallest p {smallest} (level {_p(CHECK_LEVEL)})."
        )
    yield from _failures(control if found.verdict == "control failed" else arm, found.temperature)
    if found.verdict == "passed":
        yield from _power(arm, found.temperature)
    for check in arm.checks:
        if check.not_tested is not None and check.name not in arm.failures and arm.num_drafted:
            yield f"Not tested, {NAMES[check.name]}: {check.not_tested}."


def _of_the_control(control: ArmLaw) -> str:
    if not control.tested:
        return "nothing could be tested of plain decoding"
    return f"plain decoding passes its own {count(len(control.tested), 'test')}"


def _power(arm: ArmLaw, temperature: float) -> Iterator[str]:
    share, change = arm.detectable("unjudged", "acceptance"), arm.detectable("sharpness")
    would = f"would have been found with {_percent(POWER)} probability"
    if share is not None:
        yield f"A sampler that let {_percent(share)} of the draft's tokens through unjudged {would}."
    if change is not None and change < 1:
        temperatures = f"a temperature of {_temperature(temperature, change)} or {_temperature(temperature, -change)}"
        yield f"A{temperatures[1:]} {would}." if share is None else f"So would {temperatures}."


def _failures(arm: ArmLaw, temperature: float) -> Iterator[str]:
    """What is seen, of each failure, and of one of them what it looks like: a fault of one kind makes several tests
    fail, each of which would explain it by another."""
    failed = {check.name: check for check in arm.checks if check.name in arm.failures}
    if arm.rounding is not None and "rounding" in arm.failures:
        yield _of_the_passes(arm.rounding)
    if "impossible" in arm.failures:
        tokens = "1 token has" if arm.num_impossible == 1 else f"{arm.num_impossible:,} tokens have"
        yield f"{tokens} probability 0, or none that is a number: no such token can be drawn."
    suspect = None if "rounding" in arm.failures else _suspect(failed.values())
    if suspect is not None:
        yield f"{_looks_like(suspect, temperature)} ({_p_is(suspect)})."
    for check in failed.values():
        if check is not suspect:
            seen = _seen(check) if suspect is None else f"Also, {_seen(check)[0].lower()}{_seen(check)[1:]}"
            yield f"{seen} ({_p_is(check)})."


def _of_the_passes(rounding: Rounding) -> str:
    if not math.isfinite(rounding.mean_total_variation):
        return "The target's passes compute probabilities that are no numbers."
    moved, limit = _percent(rounding.mean_total_variation), _percent(rounding.limit)
    return (
        f"Passes of {count(rounding.width, 'token')} move {moved} of the probability, rounding no more than {limit}: "
        "they don't compute the same."
    )


def _suspect(failed: Iterable[Check]) -> Check | None:
    """The clearest failure of those whose fault, in a size that there can be, explains what was seen."""
    explained = [check for check in failed if _is_possible(check)]
    return max(explained, key=lambda check: abs(check.z or 0.0) - (check.allowance or 0.0), default=None)


def _is_possible(check: Check) -> bool:
    if check.estimate is None or check.interval is None:
        return False
    if check.name == "sharpness":
        return check.estimate > -1
    return check.estimate > 0 and check.interval[0] <= 1


def _looks_like(check: Check, temperature: float) -> str:
    if check.name == "sharpness":
        return f"It looks like a temperature of {_size(check, temperature)}"
    share = "all" if (check.estimate or 0.0) >= 1 else _size(check, temperature)
    return {
        "unjudged": f"It looks as if {share} of the draft's tokens were let through unjudged",
        "corrected": f"It looks as if {share} of the corrected tokens came from the target's law, not the residual",
        "bonus": f"It looks as if {share} of the bonus tokens came from the draft",
        "acceptance": f"It looks as if {share} of the draft tokens that are to be rejected were accepted",
    }[check.name]


def _seen(check: Check) -> str:
    more = "more" if (check.z or 0.0) > 0 else "less"
    return {
        "unjudged": f"Tokens are {more} like the draft's than the target's law makes them",
        "corrected": f"Tokens that would be accepted if drafted come {more} often than the target's law says",
        "bonus": f"Bonus tokens are {more} like the draft's than the target's law makes them",
        "sharpness": f"Likely tokens come {more} often than the target's law says",
        "acceptance": f"Draft tokens are accepted {more} often than both models' probabilities say",
        "ranks": "Likely and unlikely tokens do not come as often as the target's law says",
    }[check.name]


def _tests(found: LawVerification) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="none")
    table.add_column("", no_wrap=True)
    for heading in ("tokens", "z", "p", "estimate"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("would find", justify="right", no_wrap=True)
    for arm in (found.speculative, found.control):
        if arm is found.control:
            table.add_row()
        what = "control, plain decoding" if arm is found.control else "speculative"
        table.add_row(Text(f"{arm.label} ({what})", style="bold"))
        for check in arm.checks:
            failed = check.name in arm.failures
            table.add_row(*_row(check, found.temperature, failed), style="red" if failed else "")
        for row in _counts(arm):
            table.add_row(*row)
    return table


def _row(check: Check, temperature: float, failed: bool) -> tuple[str, ...]:
    if check.p is None or (check.not_tested is not None and not failed):
        return NAMES[check.name], f"{check.num_tokens:,}", DASH, DASH, DASH, "not tested"
    if check.chi_square is not None:
        statistic = f"chi² {check.chi_square:.1f}"
        off = check.detectable is not None and math.isfinite(check.detectable)
        detectable = f"bins {_percent(check.detectable or 0.0)} off" if off else DASH
    else:
        statistic = DASH if check.z is None else f"{check.z:+.2f}"
        detectable = _detectable(check, temperature)
    return (
        NAMES[check.name],
        f"{check.num_tokens:,}",
        statistic,
        _p(check.p),
        _size(check, temperature),
        detectable,
    )


def _counts(arm: ArmLaw) -> Iterator[tuple[str, ...]]:
    borderline = f"{arm.num_borderline} at the border" if arm.num_borderline else ""
    yield NAMES["impossible"], f"{arm.num_tokens:,}", "", "", f"{arm.num_impossible}", borderline
    if arm.rounding is not None:
        variation = arm.rounding.mean_total_variation
        moved = f"{variation:.1g} of probability" if math.isfinite(variation) else DASH
        yield NAMES["rounding"], f"{arm.rounding.num_tokens:,}", "", "", moved, f"limit {arm.rounding.limit:.2g}"


def _size(check: Check, temperature: float) -> str:
    """Of a share, what there can be of it: an estimate of more than all or less than none is another fault's doing."""
    if check.estimate is None or check.interval is None:
        return DASH
    low, high = check.interval
    if check.name == "sharpness":
        if check.estimate <= -1:
            return DASH
        ends = [_temperature(temperature, change) for change in (high, low)]
        return f"{_temperature(temperature, check.estimate)} [{ends[0]}, {ends[1]}]"
    if low > 1:
        return "over 100 %"
    if high < 0:
        return "below 0 %"
    bounded = (min(max(value, 0.0), 1.0) * 100 for value in (check.estimate, low, high))
    share, least, most = (f"{value:.1f}".removesuffix(".0") for value in bounded)
    return f"{share} % [{least}, {most}]"


def _detectable(check: Check, temperature: float) -> str:
    if check.detectable is None or check.not_tested is not None:
        return DASH
    if check.name == "sharpness":
        if check.detectable >= 1:
            return DASH
        return " or ".join(_temperature(temperature, change) for change in (check.detectable, -check.detectable))
    return _percent(check.detectable) if math.isfinite(check.detectable) else DASH


def _temperature(temperature: float, change: float) -> str:
    """``change`` is that of 1 / temperature, relative."""
    return "∞" if change <= -1 else f"{temperature / (1 + change):.3g}"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(NAMES[name] for name in names)


# Greedy


def _greedy(found: GreedyVerification) -> Iterator[str]:
    texts = count(found.num_texts, "text")
    over = f"{texts}, {found.num_tokens:,} tokens"
    if found.failures:
        failed = f"{len(found.failures)} of {texts} {'differs' if len(found.failures) == 1 else 'differ'}"
        yield f"The output is not the target's: {failed} from plain decoding's by more than rounding."
    elif not found.num_drafted:
        yield "Not tested: nothing was drafted."
    elif found.differences:
        part = f"{len(found.ties)} of {texts} {'parts' if len(found.ties) == 1 else 'part'}"
        yield f"The output is the target's: {part} from plain decoding's at a tie, where rounding decides."
    else:
        yield f"The output is the target's: token for token plain decoding's, over {over}."
    drafted, accepted, rejected = found.num_drafted, found.num_accepted, found.num_rejected
    yield f"{drafted:,} tokens were drafted, {accepted:,} accepted and {rejected:,} rejected."
    for outcome, number in (("accepted", found.num_accepted), ("rejected", found.num_rejected)):
        if found.num_drafted and not number:
            yield f"Not tested: nothing was {outcome}."


def _differences(found: GreedyVerification) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="none")
    table.add_column("prompt", no_wrap=True)
    for heading in ("at token", "speculative", "plain", "gap", "rounding", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for difference in [*found.failures, *found.ties][:_SHOWN_DIFFERENCES]:
        table.add_row(*_difference(difference), style="red" if difference.verdict == "failure" else "")
    more = len(found.differences) - _SHOWN_DIFFERENCES
    if more > 0:
        table.add_row(f"and {more} more")
    return table


def _difference(difference: Difference) -> tuple[str, ...]:
    tokens = (difference.speculative_token, difference.plain_token)
    return (
        plain(difference.prompt_id),
        str(difference.position + 1),
        *("ended" if token is None else str(token) for token in tokens),
        DASH if difference.gap is None else f"{difference.gap:.3g}",
        f"{difference.tolerance:.2g}",
        difference.verdict,
    )


# Numbers


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= _LEAST_P else f"< {_LEAST_P:g}"


def _p_is(check: Check) -> str:
    return DASH if check.p is None else f"p {_p(check.p)}"


def _percent(share: float) -> str:
    return f"{share * 100:.2g} %" if share < 0.995 else f"{share * 100:.0f} %"
