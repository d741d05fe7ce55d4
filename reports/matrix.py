"""What a sweep found, as tables: draft lengths down, domains across."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from specprof.experiments.matrix import DraftLength, Matrix, Missing
from specprof.experiments.records import Failure
from specprof.experiments.saved_runs import mapping
from specprof.profiling.acceptance import AcceptanceCounts
from specprof.profiling.caveats import FEW_PROMPTS, MAX_DRIFT
from specprof.profiling.comparison import Comparison
from specprof.profiling.numbers import DASH, count
from specprof.profiling.speedup import Speedup
from specprof.profiling.statistics import FEWEST_PAIRS
from specprof.reports.tables import VERDICT_COLORS, plain

ALL = "all"
FEWEST_FOR_DRIFT = 10
"""Generations of the baseline; fewer are as likely to differ by chance."""
NOTABLE_LOOPS = 0.1
SHOWN_FAILURES = 8


def render(matrices: Sequence[Matrix]) -> RenderableType:
    """Every matrix, with what it says in sentences; those that nothing was measured for come last."""
    shown: list[RenderableType] = []
    several_machines = len({matrix.machine_class for matrix in matrices if matrix.machine_class}) > 1
    for matrix in sorted(matrices, key=lambda matrix: not matrix.comparisons):
        shown += [Text()] if shown else []
        shown.append(_one(matrix, name_class=several_machines))
    return Group(*shown)


def _one(matrix: Matrix, *, name_class: bool) -> RenderableType:
    parts: list[RenderableType] = [Text(plain(matrix.title), style="bold")]
    subtitle = [*(_setting(matrix) if matrix.comparisons else []), *matrix.caveats]
    if name_class and matrix.machine_class:
        subtitle.append(f"machine class {matrix.machine_class}")
    if subtitle:
        parts.append(Text(plain("; ".join(subtitle)), style="dim"))
    if matrix.comparisons:
        parts += [Text(), _Table("speedup", matrix, _speedup_text), Text()]
        if any(comparison.acceptance for comparison in matrix.comparisons.values()):
            parts += [_Table("tokens/round", matrix, _acceptance_text), Text()]
        parts += [Text(plain(line)) for line in _sentences(matrix)]
    parts += [Text(plain(line), style="yellow") for line in [*_doubts(matrix), *_failures(matrix.missing)]]
    return Group(*parts)


def _setting(matrix: Matrix) -> list[str]:
    """What decoded where."""
    length = f"at most {count(matrix.config.max_new_tokens, 'new token')}"
    target, machine = mapping(matrix.models.get("target")), mapping(matrix.machine)
    device, cores = target.get("device"), machine.get("cores")
    if device is None or "model" not in target:
        return [length]
    if device == "cpu":
        hardware = [machine.get("cpu"), count(cores, "core") if isinstance(cores, int) else None]
    else:
        hardware = [mapping(machine.get("gpu")).get("name")]
    known = ", ".join(str(part) for part in hardware if part)
    parts = [f"{target['model']} on {device}{f' ({known})' if known else ''}"]
    if "dtype" in target:
        parts.append(str(target["dtype"]))
    if "forward" in target:
        parts.append(f"{target['forward']} forward")
    if matrix.config.engine in ("static", "graph"):
        parts.append(f"{matrix.config.engine} engine")
    return [", ".join(parts), length]


_CellText = Callable[[Matrix, str, DraftLength], Sequence[Text]]


@dataclass(frozen=True, slots=True)
class _Table:
    """One figure of every cell. Where it is too wide, a cell's parts stand below each other, then columns do."""

    label: str
    matrix: Matrix
    cell: _CellText

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        domains = self.matrix.domains
        left = [*domains, *([ALL] if len(domains) > 1 else [])]
        unbounded = options.update(max_width=10_000)
        whole = self._table(left, " ")
        if console.measure(whole, options=unbounded).maximum <= options.max_width:
            yield whole
            return
        while left:
            number = len(left)
            table = self._table(left, "\n")
            while number > 1 and console.measure(table, options=unbounded).maximum > options.max_width:
                number -= 1
                table = self._table(left[:number], "\n")
            yield table
            left = left[number:]
            if left:
                yield Text()

    def _table(self, columns: Sequence[str], between: str) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="none")
        table.add_column(self.label, no_wrap=True)
        for name in columns:
            table.add_column(Text(plain(name)), no_wrap=True)
        for k in self.matrix.comparisons:
            texts = (Text(between).join(self.cell(self.matrix, name, k)) for name in columns)
            table.add_row(f"K = {k}", *texts)
        return table


def _speedup_text(matrix: Matrix, domain: str, k: DraftLength) -> list[Text]:
    speedup = _of_domain(matrix.comparisons[k], domain)[0]
    hole = _hole(matrix, domain, k)
    if speedup is None or speedup.value is None:
        return [Text(hole or DASH)]
    color = VERDICT_COLORS.get(speedup.verdict or "", "")
    best = domain != ALL and _faster(matrix, domain) == k
    texts = [Text(f"{speedup.value:.2f}x{' *' if best else ''}", style=color)]
    if speedup.ci is not None:
        texts.append(Text(f"[{speedup.ci[0]:.2f}, {speedup.ci[1]:.2f}]", style=color))
    if hole:
        texts.append(Text(f"({hole})"))
    return texts


def _acceptance_text(matrix: Matrix, domain: str, k: DraftLength) -> list[Text]:
    acceptance = _of_domain(matrix.comparisons[k], domain)[1]
    if acceptance is None or acceptance.mean_acceptance_length is None:
        return [Text(DASH)]
    return [Text(f"{acceptance.mean_acceptance_length:.2f}")]


def _of_domain(comparison: Comparison, domain: str) -> tuple[Speedup | None, AcceptanceCounts | None]:
    if domain == ALL and ALL not in comparison.domains:
        return comparison.speedup_decode, comparison.acceptance
    found = comparison.domains.get(domain)
    return (found.speedup_decode, found.acceptance) if found else (None, None)


def _faster(matrix: Matrix, domain: str) -> DraftLength | None:
    """The best draft length, if it is any better than none."""
    best = matrix.best(domain)
    if best is None:
        return None
    speedup = matrix.comparisons[best].domains[domain].speedup_decode
    return best if speedup and speedup.value and speedup.value > 1 else None


def _hole(matrix: Matrix, domain: str, k: DraftLength) -> str | None:
    """Why a cell has no figure, or not the whole one."""
    return next((missing.sign for missing in matrix.missing if (missing.domain, missing.k) == (domain, k)), None)


def _sentences(matrix: Matrix) -> list[str]:
    some = next(iter(matrix.comparisons.values()))
    pace = some.baseline.tokens_per_second if some.baseline is not None else None
    lines = [
        f"Decode speedup over plain decoding{'' if pace is None else f', {pace:.0f} tokens/s'}; * best K measured.",
        f"{count(some.num_prompts, 'prompt')}, {count(some.num_repetitions, 'repetition')}; "
        "95 % intervals over prompts.",
    ]
    slower = [d for d in matrix.domains if matrix.best(d) is not None and _faster(matrix, d) is None]
    if slower:
        lines.append(f"No K measured is faster than plain decoding: {', '.join(slower)}.")
    matches = [comparison.output_matches_baseline for comparison in matrix.comparisons.values()]
    compared = [match for match in matches if match is not None]
    if compared:
        total, same = sum(match.num_prompts for match in compared), sum(match.num_identical for match in compared)
        what = "all outputs are" if same == total else f"{same} of {total} outputs are"
        lines.append(f"Output: {what} token-identical to plain decoding.")
    return lines


def _doubts(matrix: Matrix) -> list[str]:
    """What makes the figures less than they look."""
    lines = []
    if any(missing.failure is None and missing.num_done and missing.k for missing in matrix.missing):
        lines.append("(n of m): so many of a cell's generations were made; the same command goes on.")
    lines += [
        f"{missing.domain}: only {missing.num_done} of {missing.num_expected} generations of plain decoding were made; "
        "speedups are of the prompts that have one."
        for missing in matrix.missing
        if missing.k == 0 and missing.num_done
    ]
    unpaired = [
        name
        for name in matrix.domains
        if any(name in c.domains and c.domains[name].speedup_decode is None for c in matrix.comparisons.values())
    ]
    if unpaired:
        lines.append(f"Not measured by plain decoding, so without a speedup: {', '.join(unpaired)}.")
    baseline = next((c.baseline for c in matrix.comparisons.values() if c.baseline is not None), None)
    if baseline is not None and baseline.repetition is not None and baseline.repetition > NOTABLE_LOOPS:
        lines.append(
            f"{baseline.repetition * 100:.0f} % of plain decoding's texts end in a loop, "
            "which flatters acceptance and speedup."
        )
    enough = baseline is not None and baseline.num_generations >= FEWEST_FOR_DRIFT
    if enough and matrix.drift is not None and abs(matrix.drift) > MAX_DRIFT:
        direction = "slower" if matrix.drift > 0 else "faster"
        lines.append(
            f"Plain decoding became {abs(matrix.drift) * 100:.0f} % {direction} during the sweep; "
            "cells take turns, so that this meets all of them."
        )
    numbers = [
        domain.speedup_decode.n_prompts
        for comparison in matrix.comparisons.values()
        for domain in comparison.domains.values()
        if domain.speedup_decode is not None
    ]
    lines += dict.fromkeys(
        warning for c in matrix.comparisons.values() for warning in c.warnings if "far off the others" in warning
    )
    if numbers and 0 < min(numbers) < FEW_PROMPTS:
        few = count(min(numbers), "prompt")
        tells = "too few for an interval" if min(numbers) < FEWEST_PAIRS else "so few make the interval wide"
        lines.append(f"{few} in a domain: {tells}; use {FEW_PROMPTS} or more (-n).")
    return lines


def _failures(missing: Iterable[Missing]) -> list[str]:
    """What failed and why, each reason once."""
    alike: dict[tuple[str, str, str | None], list[Missing]] = {}
    for cell in missing:
        if cell.failure is not None:
            alike.setdefault((cell.failure.reason, cell.failure.message, cell.failure.hint), []).append(cell)
    lines = [_failed(cells, failure) for cells in alike.values() if (failure := cells[0].failure) is not None]
    if len(lines) > SHOWN_FAILURES:
        return [*lines[:SHOWN_FAILURES], f"... and {len(lines) - SHOWN_FAILURES} more, see `specprof results list`."]
    return lines


def _failed(cells: Sequence[Missing], failure: Failure) -> str:
    """For instance ``Failed (crash): code K = 4, 8; summarization K = 8: the worker process was killed``."""
    lengths: dict[str, list[DraftLength]] = {}
    for cell in cells:
        lengths.setdefault(cell.domain, []).append(cell.k)
    domains: dict[str, list[str]] = {}
    for domain, ks in lengths.items():
        domains.setdefault(_decoders(ks), []).append(domain)
    which = "; ".join(f"{', '.join(names)} {ks}" for ks, names in domains.items())
    how = "Skipped" if failure.reason == "skipped" else f"Failed ({failure.reason})"
    return f"{how}: {which}: {failure.message}{f' ({failure.hint})' if failure.hint else ''}"


def _decoders(lengths: Sequence[DraftLength]) -> str:
    drafted = ", ".join(str(k) for k in lengths if k)
    return ", ".join(["plain decoding"] * (0 in lengths) + [f"K = {drafted}"] * bool(drafted))
