"""Whether the output is still the target's: a sentence, what would have been found, and the tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from specprof.profiling.goodness import POWER
from specprof.profiling.verification import (
    ArmLaw,
    Check,
    Difference,
    GreedyVerification,
    LawVerification,
    Verification,
)
from specprof.reports.numbers import DASH, count
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
_VERDICT_COLORS = {"passed": "bold green", "not tested": "bold yellow"}


def to_dict(verification: Verification) -> dict[str, Any]:
    """The same as plain JSON types; None where there is no number."""
    record = verification.to_dict() | {"sentences": sentences(verification)}
    return {key: _finite(value) for key, value in record.items()}


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
    arm = found.speculative
    if found.verdict == "control failed":
        failed = _listed(found.control.failures)
        yield f"Plain decoding itself fails ({failed}): speculation is not to blame, or not alone."
        yield (
            "The target does not compute one law step by step and in a single pass, or this test is wrong for it. "
            f"{arm.label} {'fails as well' if arm.failures else 'passes'}."
        )
    elif found.verdict == "failed":
        yield f"The output is not the target's: {_listed(arm.failures)}; plain decoding passes the same tests."
    elif found.verdict == "not tested":
        why = "nothing was drafted" if not arm.num_drafted else "there are too few tokens"
        yield f"Not tested: {why}."
    else:
        smallest = DASH if arm.smallest_p is None else _p(arm.smallest_p)
        yield (
            f"The output is the target's: {len(arm.tested)} tests over {arm.num_tokens:,} tokens, "
            f"smallest p {smallest} (level {_p(arm.level)})."
        )
    blamed = found.control if found.verdict == "control failed" else arm
    for name in blamed.failures:
        yield from _looks_like(blamed, name, found.temperature)
    if found.verdict == "passed":
        yield from _power(arm, found.temperature)
    for check in arm.checks:
        if check.not_tested is not None and check.name not in arm.failures and found.verdict != "not tested":
            yield f"Not tested, {NAMES[check.name]}: {check.not_tested}."


def _power(arm: ArmLaw, temperature: float) -> Iterator[str]:
    share, change = arm.detectable("unjudged", "acceptance"), arm.detectable("sharpness")
    would = f"would have been found with {_percent(POWER)} probability"
    if share is not None:
        yield f"A sampler that let {_percent(share)} of the draft's tokens through unjudged {would}."
    if change is not None and change < 1:
        temperatures = f"a temperature of {_temperature(temperature, change)} or {_temperature(temperature, -change)}"
        yield f"A{temperatures[1:]} {would}." if share is None else f"So would {temperatures}."


def _looks_like(arm: ArmLaw, name: str, temperature: float) -> Iterator[str]:
    check = next((check for check in arm.checks if check.name == name), None)
    if name == "impossible":
        yield f"{arm.num_impossible} tokens have probability 0 under top-k and top-p; one is one too many."
    elif name == "rounding" and arm.rounding is not None:
        yield (
            f"Passes of {arm.rounding.width} tokens move {_percent(arm.rounding.mean_total_variation)} of the "
            f"probability, rounding no more than {_percent(arm.rounding.limit)}: they don't compute the same."
        )
    elif check is not None and check.estimate is not None and check.p is not None:
        size = _size(check, temperature)
        yield {
            "unjudged": f"It looks as if {size} of the draft's tokens were let through unjudged (p {_p(check.p)}).",
            "corrected": f"It looks as if {size} of the corrected tokens came from the target's law instead of the "
            f"residual (p {_p(check.p)}).",
            "bonus": f"It looks as if {size} of the bonus tokens came from the draft (p {_p(check.p)}).",
            "sharpness": f"It looks like a temperature of {size} (p {_p(check.p)}).",
            "acceptance": f"It looks as if {size} of the draft tokens that are to be rejected were accepted "
            f"(p {_p(check.p)}).",
        }[name]
    elif check is not None and check.p is not None:
        yield f"Tokens are not as likely as the target makes them (p {_p(check.p)})."


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
        detectable = DASH if check.detectable is None else f"bins {_percent(check.detectable)} off"
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
        moved = f"{arm.rounding.mean_total_variation:.1g} of probability"
        yield NAMES["rounding"], f"{arm.rounding.num_tokens:,}", "", "", moved, f"limit {arm.rounding.limit:.2g}"


def _size(check: Check, temperature: float) -> str:
    if check.estimate is None or check.interval is None:
        return DASH
    low, high = check.interval
    if check.name == "sharpness":
        ends = [_temperature(temperature, change) for change in (high, low)]
        return f"{_temperature(temperature, check.estimate)} [{ends[0]}, {ends[1]}]"
    return f"{check.estimate * 100:.1f} % [{low * 100:.1f}, {high * 100:.1f}]"


def _detectable(check: Check, temperature: float) -> str:
    if check.detectable is None or check.not_tested is not None:
        return DASH
    if check.name == "sharpness":
        if check.detectable >= 1:
            return DASH
        return " or ".join(_temperature(temperature, change) for change in (check.detectable, -check.detectable))
    return _percent(check.detectable)


def _temperature(temperature: float, change: float) -> str:
    """``change`` is that of 1 / temperature, relative."""
    return DASH if change <= -1 else f"{temperature / (1 + change):.3g}"


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
    return f"{value:.2g}"


def _percent(share: float) -> str:
    return f"{share * 100:.2g} %" if share < 0.995 else f"{share * 100:.0f} %"


def _finite(value: Any) -> Any:
    """JSON has no infinity: what would never be found is None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and value in (float("inf"), float("-inf")) else value
