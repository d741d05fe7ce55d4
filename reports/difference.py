"""Two measurements side by side: a sentence, tables and what changed, for terminals, reports and programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from specprof.experiments.difference import Contrast, Contrasts
from specprof.experiments.quantities import Difference, Estimate, Quantity
from specprof.experiments.study import Study
from specprof.profiling.numbers import DASH, count, fixed, percent, rate, times
from specprof.profiling.statistics import Interval, verdict
from specprof.reports.document import Block, Bullets, Cell, Column, Mark, Paragraph, Table
from specprof.reports.signs import VERDICT_MARKS
from specprof.reports.tables import VERDICT_COLORS, plain

SCHEMA = "specprof.compare/1"

_STYLES: dict[str, str] = {
    "faster": VERDICT_COLORS["faster"],
    "slower": VERDICT_COLORS["slower"],
    "doubtful": VERDICT_COLORS["not distinguishable"],
    "failed": "red",
}
_TONES = {"strong": "bold", "warning": "yellow", "quiet": "dim"}


def to_dict(found: Contrasts) -> dict[str, Any]:
    """Plain JSON types; None where a number is undefined."""
    return {
        "comparisons": [_contrast_to_dict(contrast) for contrast in found.contrasts],
        "unmatched": list(found.unmatched),
    }


def render(found: Contrasts) -> RenderableType:
    """What :func:`blocks` says, for a terminal."""
    shown: list[RenderableType] = []
    previous: Block | None = None
    for block in blocks(found):
        apart = isinstance(block, Table) or (isinstance(block, Paragraph) and not isinstance(previous, Paragraph))
        if previous is not None and (apart or _begins(block)):
            shown.append(Text())
        shown += _on_terminal(block)
        previous = block
    return Group(*shown)


def blocks(found: Contrasts) -> tuple[Block, ...]:
    """What a report's section on the comparison says; the verdict first."""
    said: list[Block] = []
    for contrast in found.contrasts:
        said += _blocks_of(contrast)
    said += [Paragraph(line, "warning") for line in found.unmatched]
    return tuple(said)


def sentence(contrast: Contrast) -> str:
    """Faster or slower, by how much, how sure."""
    row = contrast.headline
    if row is None or row.quantity(row.decisive).ratio.value is None:
        reason = next((row.reason for row in contrast.differences if row.reason is not None), None)
        return f"A and B have no speed in common to be compared{'' if reason is None else f' ({reason})'}."
    quantity = row.quantity(row.decisive)
    prompts = count(row.num_prompts, "prompt")
    several = len({other.k for other in contrast.differences}) > 1
    where = f"{prompts} at K = {row.k}" if several else prompts
    figures = f"({_WORDS[row.decisive](quantity)}, {_ratio(quantity.ratio)})"
    if row.verdict == "not distinguishable":
        return f"B and A can't be told apart on {where} {figures}."
    if quantity.ratio.value == 1:
        return f"B and A are equally fast on {where} {figures}."
    doubt = "" if row.verdict else "; too few prompts for a verdict"
    # Where plain decoding changed too, speculation may gain less and yet be no slower.
    agreed = row.decisive != "speedup" or _rates_agree(contrast, row)
    way = ("faster", "slower") if agreed else ("higher", "lower")
    change = f"{_percent_of(quantity)} {way[not _grew(quantity)]}"
    what = f"B is {change} than A" if agreed else f"B's speedup is {change} than A's"
    return f"{what} on {where} {figures}{doubt}."


def label(row: Difference) -> str:
    """What a row is of; the domain's name is text from outside."""
    return f"{_domain(row)}, {_length(row)}"


def _domain(row: Difference) -> str:
    return "all prompts" if row.domain is None else row.domain


def _length(row: Difference) -> str:
    return f"K = {row.k}" if row.k == row.k_after else f"K = {row.k} -> {row.k_after}"


def _rates_agree(contrast: Contrast, row: Difference) -> bool:
    """Whether speculative tokens per second say what the speedup says."""
    rates, speedup = row.sd_tokens_per_second.ratio, row.speedup.ratio
    if rates.value is None or speedup.value is None or not contrast.same_machine:
        return False
    return verdict(rates.ci) == row.verdict and (rates.value > 1) == (speedup.value > 1)


def _grew(quantity: Quantity) -> bool:
    return quantity.ratio.value is not None and quantity.ratio.value > 1


def _percent_of(quantity: Quantity) -> str:
    assert quantity.ratio.value is not None
    change = abs(quantity.ratio.value - 1) * 100
    return "less than 1 %" if change < 0.5 else f"{change:.0f} %"


_WORDS: dict[str, Callable[[Quantity], str]] = {
    "speedup": lambda quantity: f"speedup {_both(quantity, times)}",
    "sd_tokens_per_second": lambda quantity: f"{_both(quantity, rate)} tokens/s",
    "ar_tokens_per_second": lambda quantity: f"plain decoding, {_both(quantity, rate)} tokens/s",
}


# One comparison, as blocks


def _blocks_of(contrast: Contrast) -> list[Block]:
    said: list[Block] = [Paragraph(sentence(contrast), "strong")]
    if contrast.other_hardware:
        said.append(
            Paragraph(
                f"DIFFERENT MACHINES: {', '.join(contrast.other_hardware)}. Only speedups and acceptance can be "
                "compared; tokens per second tell the machines apart, not A and B.",
                "warning",
            )
        )
    said.append(Bullets((_named("A", contrast.before), _named("B", contrast.after))))
    said += [table for table in (_speedups(contrast), _rates(contrast), _acceptance(contrast)) if table is not None]
    if contrast.changes:
        said += [Paragraph("What differs:"), Bullets(contrast.changes)]
    else:
        said.append(Paragraph("No recorded setting, model or version differs."))
    said += [Paragraph(line, "warning") for line in contrast.warnings]
    said += [Paragraph(line, "quiet") for line in contrast.unmatched]
    return said


def _named(side: str, study: Study) -> str:
    return f"{side}: {study.name}  {study.title}"


def _speedups(contrast: Contrast) -> Table | None:
    if not _have_speedups(contrast.differences):
        return None
    columns: list[_Shown] = [
        _PROMPTS,
        (Column("A"), lambda row: Cell(times(row.speedup.before.value))),
        (Column("B"), lambda row: Cell(times(row.speedup.after.value))),
        (Column("B / A"), lambda row: Cell(_ratio(row.speedup.ratio), _mark(row))),
        _VERDICT,
    ]
    return _table(contrast, "Speedup over plain decoding{}; 95 % intervals in brackets, over prompts.", columns)


def _rates(contrast: Contrast) -> Table | None:
    doubt: Mark = "" if contrast.same_machine else "doubtful"

    def of(name: str, label: str) -> list[_Shown]:
        if not any(_known(row.quantity(name)) for row in contrast.differences):
            return []
        return [
            (Column(label), lambda row: Cell(_both(row.quantity(name), rate), doubt)),
            (Column("B / A"), lambda row: Cell(_ratio(row.quantity(name).ratio), doubt)),
        ]

    columns = [*of("sd_tokens_per_second", "speculative"), *of("ar_tokens_per_second", "plain")]
    if columns and not _have_speedups(contrast.differences):
        columns = [_PROMPTS, *columns, _VERDICT]
    elsewhere = "" if contrast.same_machine else "; FROM DIFFERENT MACHINES, not to be compared"
    return _table(contrast, f"Tokens per second, decode only, A -> B{{}}{elsewhere}.", columns) if columns else None


def _acceptance(contrast: Contrast) -> Table | None:
    if not any(_known(row.acceptance_length) for row in contrast.differences):
        return None
    columns: list[_Shown] = [
        (Column("tokens per round"), lambda row: Cell(_both(row.acceptance_length, fixed))),
        (Column("B - A"), lambda row: Cell(_signed(row.acceptance_length.difference, lambda x: f"{x:+.2f}"))),
        (Column("accepted"), lambda row: Cell(_both(row.acceptance_rate, percent))),
        (Column("B - A"), lambda row: Cell(_signed(row.acceptance_rate.difference, lambda x: f"{100 * x:+.1f}"))),
    ]
    return _table(contrast, "Acceptance, A -> B{}; the difference of shares in percentage points.", columns)


_Shown = tuple[Column, Callable[[Difference], Cell]]
"""A column, and what a row has in it."""
_PROMPTS: _Shown = (Column("prompts"), lambda row: Cell(str(row.num_prompts)))
_VERDICT: _Shown = (Column("verdict", "left"), lambda row: _verdict_cell(row))


def _table(contrast: Contrast, caption: str, columns: Sequence[_Shown]) -> Table:
    """One row for each difference; a draft length that all have in common stands in the caption (at ``{}``)."""
    rows = contrast.differences
    lengths = {_length(row) for row in rows}
    name = _domain if len(lengths) == 1 else label
    return Table(
        columns=(Column("", "left"), *(column for column, _ in columns)),
        rows=tuple((Cell(name(row)), *(cell(row) for _, cell in columns)) for row in rows),
        caption=caption.format(f", {lengths.pop()}" if len(lengths) == 1 else ""),
    )


def _have_speedups(rows: Sequence[Difference]) -> bool:
    return any(row.speedup.ratio.value is not None for row in rows)


def _known(quantity: Quantity) -> bool:
    return quantity.before.value is not None or quantity.after.value is not None


def _mark(row: Difference) -> Mark:
    return VERDICT_MARKS.get(row.verdict, "")


def _verdict_cell(row: Difference) -> Cell:
    if row.reason is not None:
        return Cell(row.reason, "failed")
    return Cell(row.verdict or ("too few prompts" if row.num_prompts else "no prompt in common"), _mark(row))


def _both(quantity: Quantity, text: Callable[[float | None], str]) -> str:
    return f"{text(quantity.before.value)} -> {text(quantity.after.value)}" if _known(quantity) else DASH


def _ratio(estimate: Estimate) -> str:
    """A third decimal where two would hide what an interval says about 1."""
    value, ci = estimate.value, estimate.ci
    if value is None:
        return DASH
    hidden = ci is not None and verdict(ci) != verdict((round(ci[0], 2), round(ci[1], 2)))
    digits = 3 if hidden else 2
    return f"{value:.{digits}f}{_interval(ci, lambda end: f'{end:.{digits}f}')}"


def _signed(estimate: Estimate, text: Callable[[float], str]) -> str:
    return DASH if estimate.value is None else f"{text(estimate.value)}{_interval(estimate.ci, text)}"


def _interval(ci: Interval | None, text: Callable[[float], str]) -> str:
    return "" if ci is None else f" [{text(ci[0])}, {text(ci[1])}]"


# Blocks on a terminal


def _begins(block: Block) -> bool:
    """Whether a comparison begins with it."""
    return isinstance(block, Paragraph) and block.tone == "strong"


def _on_terminal(block: Block) -> list[RenderableType]:
    if isinstance(block, Paragraph):
        return [Text(plain(block.text), style=_TONES.get(block.tone, ""))]
    if isinstance(block, Bullets):
        return [Text(f"  {plain(item)}") for item in block.items]
    assert isinstance(block, Table)
    table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in block.columns:
        table.add_column(Text(plain(column.name)), justify=column.align, overflow="fold")
    for row in block.rows:
        table.add_row(*(Text(plain(cell.text), style=_STYLES.get(cell.mark, "")) for cell in row))
    return [Text(plain(block.caption), style="bold"), table]


# For programs


def _contrast_to_dict(contrast: Contrast) -> dict[str, Any]:
    headline = contrast.headline
    return {
        "before": _study_to_dict(contrast.before),
        "after": _study_to_dict(contrast.after),
        "sentence": sentence(contrast),
        "verdict": None if headline is None else headline.verdict,
        "other_hardware": list(contrast.other_hardware),
        "differences": [dataclasses.asdict(row) | {"decisive": row.decisive} for row in contrast.differences],
        "changes": list(contrast.changes),
        "warnings": list(contrast.warnings),
        "unmatched": list(contrast.unmatched),
    }


def _study_to_dict(study: Study) -> dict[str, Any]:
    return {
        "name": study.name,
        "title": study.title,
        "pair": study.pair,
        "drafter": study.drafter,
        "temperature": study.temperature,
        "machine_class": study.machine_class,
    }
