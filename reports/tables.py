"""The comparison as a table for terminals and pipes.

It answers in this order: faster, by how much, how sure; how much is accepted; where the time goes;
latency and memory; what the cost model says; is the output still the target's.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from specprof.profiling.acceptance import AcceptanceCounts
from specprof.profiling.comparison import Arm, Comparison
from specprof.profiling.cost_model import CostCurve
from specprof.profiling.metrics import manner
from specprof.profiling.numbers import DASH, count, fixed, interval, megabytes, milliseconds, percent, rate, times
from specprof.profiling.output_match import OutputMatch
from specprof.profiling.speedup import Speedup

T = TypeVar("T")

LABEL_WIDTH = 12
PHASE_COLORS = {"draft": "cyan", "verify": "blue", "sample": "magenta", "overhead": "bright_black"}
VERDICT_COLORS = {"faster": "bold green", "slower": "bold red", "not distinguishable": "bold yellow"}
SHOWN_DIVERGENCES = 3


def render(comparison: Comparison, *, title: str, subtitle: str | None = None) -> RenderableType:
    """The comparison as a Rich renderable. ``title`` and ``subtitle`` are data: never read as markup."""
    sections = [
        Group(_heading(title, subtitle), _speed(comparison)),
        _acceptance(comparison),
        _domains(comparison),
        _time(comparison),
        _latency(comparison),
        _cost_model(comparison),
        _other_lengths(comparison),
        _output(comparison),
        _warnings(comparison),
    ]
    shown: list[RenderableType] = []
    for section in sections:
        if section is not None:
            shown += [Text(), section] if shown else [section]
    return Group(*shown)


def to_text(renderable: RenderableType, *, width: int, color: bool, ascii: bool = False) -> str:
    """Print to a string; without colour, no line ends in blanks.

    Args:
        width: columns.
        color: with ANSI control sequences; without, the text has none.
        ascii: 7-bit characters only.
    """
    sink = io.TextIOWrapper(io.BytesIO(), encoding="ascii" if ascii else "utf-8", errors="replace", newline="")
    console = Console(
        file=sink,
        width=width,
        height=100,  # without one Rich ignores the width on a dumb terminal
        force_jupyter=False,
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.print(renderable)
    sink.seek(0)
    return "".join(f"{line.rstrip()}\n" for line in sink.read().splitlines())


def plain(text: str) -> str:
    """Text from outside made safe to print: control characters and bidirectional overrides become a visible mark."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _controls(character) else character for character in text)


def _controls(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Cs"} or unicodedata.bidirectional(character) in {
        "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
    }  # fmt: skip


class _Bar:
    """A bar that fills its column; eighths of a cell where the terminal has them."""

    def __init__(self, share: float, color: str) -> None:
        self.share = min(max(share, 0.0), 1.0)
        self.color = color

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = self.share * options.max_width
        if options.ascii_only:
            drawn = "#" * max(round(cells), 1 if self.share > 0 else 0)
        else:
            eighths = max(round(cells * 8), 1 if self.share > 0 else 0)
            drawn = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
        yield Segment(drawn.ljust(options.max_width), Style.parse(self.color))
        yield Segment.line()


class _Rule:
    """A line across, thinner than Rich's own and without a title."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Segment(("-" if options.ascii_only else "─") * options.max_width, Style.parse("dim"))
        yield Segment.line()


# The sections


def _heading(title: str, subtitle: str | None) -> RenderableType:
    lines: list[RenderableType] = [Text(plain(title), style="bold")]
    if subtitle:
        lines.append(Text(plain(subtitle), style="dim"))
    return Group(*lines, _Rule())


def _speed(comparison: Comparison) -> RenderableType:
    decode, e2e = comparison.speedup_decode, comparison.speedup_e2e
    if decode is None:
        present = comparison.baseline or comparison.speculative
        if present is None:
            return _section("Speed", [Text("nothing was measured, so there is no speedup")])
        missing = "speculative" if comparison.speculative is None else "autoregressive"
        return _section(
            "Speed", [Text(f"{plain(present.decoder)} only: the {missing} arm was not run, so there is no speedup")]
        )
    headline = Text(_headline(decode, e2e), style=VERDICT_COLORS.get(decode.verdict or "", "bold"))
    lines: list[RenderableType] = [Text.assemble(headline, _spread(decode))]
    if e2e is not None:
        lines.append(Text(f"{times(e2e.value)} end to end, prefill included{_spread(e2e)}"))
    lines.append(Text(_sample(comparison, decode if decode.n_prompts or e2e is None else e2e), style="dim"))
    if comparison.explanation:
        lines.append(Text(comparison.explanation))
    return _section("Speed", lines)


def _headline(speedup: Speedup, e2e: Speedup | None = None) -> str:
    if speedup.value is None and e2e is not None and e2e.value is not None:
        return f"{DASH} no prompt was decoded by both arms beyond the first token, which is the prefill's"
    if speedup.value is None:
        return f"{DASH} no prompt was decoded by both arms"
    if speedup.verdict == "not distinguishable":
        return f"{times(speedup.value)} decode, not distinguishable from 1.00x"
    if speedup.verdict is None:
        return f"{times(speedup.value)} decode, too few prompts for a verdict"
    return f"{times(speedup.value)} decode, {speedup.verdict}"


def _sample(comparison: Comparison, speedup: Speedup) -> str:
    prompts = count(speedup.n_prompts, "prompt")
    repetitions = count(comparison.num_repetitions, "repetition")
    how = manner(comparison.temperature)
    return f"{prompts}, {repetitions}, {how}; 95 % interval over prompts"


def _acceptance(comparison: Comparison) -> RenderableType | None:
    counts = comparison.acceptance
    if counts is None:
        return None
    k = counts.num_spec_tokens
    lines: list[RenderableType] = []
    if k is None:
        lines.append(Text(f"{DASH} no complete round with a draft"))
    else:
        drafted = counts.num_draft_tokens / counts.num_spec_steps
        drafting = " that drafted" if counts.num_empty_rounds else ""
        lines.append(
            Text.assemble(
                (f"{fixed(counts.mean_acceptance_length)} tokens per round{drafting}", "bold"),
                f" = {fixed(counts.accepted_per_step)} of {drafted:.3g} drafted + 1 corrected or bonus",
            )
        )
        alpha = "" if counts.alpha is None else f", alpha {counts.alpha:.2f}"
        lines.append(Text(f"{percent(counts.draft_acceptance_rate)} of drafted tokens accepted{alpha}"))
        lines.extend(_positions(counts))
        lengths = {length: rounds for length, rounds in enumerate(counts.draft_length_histogram) if rounds}
        if len(lengths) > 1:
            total = sum(lengths.values())
            shares = ", ".join(f"{length} in {percent(rounds / total)}" for length, rounds in lengths.items())
            lines.append(Text(f"drafted per round: {shares}"))
    left_out = []
    if counts.num_cut_rounds:
        left_out.append(f"{counts.num_cut_rounds} cut by the end of the text")
    if counts.num_empty_rounds:
        left_out.append(f"{counts.num_empty_rounds} with nothing drafted")
    rounds = f"{counts.num_spec_steps} rounds" + (f"; left out: {', '.join(left_out)}" if left_out else "")
    lines.append(Text(rounds, style="dim"))
    return _section("Acceptance", lines)


def _positions(counts: AcceptanceCounts) -> Iterator[RenderableType]:
    """Rates by position, eight to a block, so that a long draft stays within 80 columns."""
    per_position, conditional = counts.acceptance_rate_per_pos, counts.conditional_acceptance_rate
    for start in range(0, len(per_position), 8):
        block = slice(start, start + 8)
        table = _grid("left", *["right"] * len(per_position[block]))
        table.add_row("position", *[str(start + 1 + i) for i in range(len(per_position[block]))], style="dim")
        table.add_row("accepted", *[percent(rate) for rate in per_position[block]])
        table.add_row("if reached", *[percent(rate) for rate in conditional[block]])
        yield table


def _domains(comparison: Comparison) -> RenderableType | None:
    if not comparison.domains:
        return None
    table = _grid("left", "right", "right", "right", "right", "left")
    table.add_row("", "prompts", "per round", "accepted", "speedup", "95 % interval", style="dim")
    for name, domain in comparison.domains.items():
        counts, speedup = domain.acceptance, domain.speedup_decode
        verdict_style = VERDICT_COLORS.get((speedup.verdict if speedup else None) or "", "").removeprefix("bold ")
        table.add_row(
            Text(plain(name)),
            str(speedup.n_prompts) if speedup else DASH,
            fixed(counts.mean_acceptance_length) if counts else DASH,
            percent(counts.draft_acceptance_rate) if counts else DASH,
            Text(times(speedup.value) if speedup else DASH, style=verdict_style),
            interval(speedup) if speedup else DASH,
        )
    return _section("Domains", [table])


def _time(comparison: Comparison) -> RenderableType | None:
    arms = _arms(comparison)
    if not arms:
        return None
    phases = [phase for arm in arms for phase in arm.phases.by_name.values()]
    longest = max(phase.seconds_per_token or 0.0 for phase in phases)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False, expand=True)
    table.add_column(width=9, no_wrap=True, overflow="crop")
    for _ in arms:
        table.add_column(justify="right", no_wrap=True, min_width=6, overflow="crop")
        table.add_column(justify="right", no_wrap=True, min_width=5, overflow="crop")
        table.add_column(ratio=1)
    slowest = max(arm.phases.seconds_per_token or 0.0 for arm in arms)
    names = [cell for arm in arms for cell in (Text(plain(arm.decoder), style="bold"), "", "")]
    table.add_row("ms/token", *names)
    for name, color in PHASE_COLORS.items():
        cells: list[RenderableType] = []
        for arm in arms:
            phase = arm.phases.by_name[name]
            # An arm that never drafted spent nothing on it: nothing to measure rather than a measured zero.
            if name == "draft" and arm is comparison.baseline:
                cells += [DASH, DASH, ""]
                continue
            cells.append(milliseconds(phase.seconds_per_token, like=slowest))
            cells.append(percent(phase.share))
            cells.append(_Bar((phase.seconds_per_token or 0.0) / longest if longest else 0.0, color))
        table.add_row(name, *cells)
    totals = [cell for arm in arms for cell in (milliseconds(arm.phases.seconds_per_token, like=slowest), "", "")]
    table.add_row("total", *totals, style="bold")
    return _section("Time", [table])


def _latency(comparison: Comparison) -> RenderableType | None:
    arms = _arms(comparison)
    if not arms:
        return None
    table = _grid("left", *["right"] * len(arms))
    table.add_row("", *[Text(plain(arm.decoder), style="bold") for arm in arms])
    rows = [
        ("tokens/s, decode", [rate(arm.tokens_per_second) for arm in arms]),
        ("tokens/s, end to end", [rate(arm.tokens_per_second_e2e) for arm in arms]),
        ("first token, ms", [milliseconds(arm.ttft_seconds) for arm in arms]),
        ("per token after, ms", [milliseconds(arm.tpot_seconds) for arm in arms]),
        ("tokens per round", [_tokens_per_round(arm) for arm in arms]),
        ("round p50, ms", [milliseconds(arm.latency_p50) for arm in arms]),
        ("round p95, ms", [milliseconds(arm.latency_p95) for arm in arms]),
        ("round p99, ms", [milliseconds(arm.latency_p99) for arm in arms]),
        ("peak memory, MB", [megabytes(arm.peak_memory_bytes) for arm in arms]),
    ]
    if any(arm.energy_joules_per_token is not None for arm in arms):  # a row of dashes on most machines
        rows.append(("energy, J per token", [fixed(arm.energy_joules_per_token, 3) for arm in arms]))
    for label, cells in rows:
        table.add_row(label, *cells)
    return _section("Latency", [table])


def _cost_model(comparison: Comparison) -> RenderableType | None:
    costs, counts = comparison.costs, comparison.acceptance
    if costs is None or costs.speedup_predicted is None or counts is None:
        return None
    k = counts.num_spec_tokens
    measured = comparison.speedup_decode.value if comparison.speedup_decode else None
    table = _grid("left", "left")
    table.add_row("one target pass", f"{milliseconds(costs.target_step_seconds)} ms; in such passes:")
    table.add_row("a drafted token", f"c = {fixed(costs.draft_cost_ratio, 3)}")
    table.add_row(f"verifying {costs.draft_tokens_per_round:.3g}", f"v = {fixed(costs.verify_ratio, 3)}")
    table.add_row(
        "the rest",
        f"o = {fixed(costs.overhead_ratio, 3)}   (plain decoding: {fixed(costs.ar_overhead_ratio, 3)})",
    )
    table.add_row(
        "predicted",
        Text.assemble(
            (times(costs.speedup_predicted_with_ar_overhead), "bold"),
            f" over this run's baseline, measured {times(measured)}",
        ),
    )
    table.add_row("", f"{times(costs.speedup_predicted)} over bare target passes")
    table.add_row("break-even", _break_even(comparison))
    if costs.best_k is not None:
        table.add_row(f"best K up to {k}", _best_k(comparison, costs.best_k))
    return _section("Cost model", [table])


def _other_lengths(comparison: Comparison) -> RenderableType | None:
    """Every K that this run can speak of."""
    found = _some(comparison.predictions)
    if len(found) < 2:  # of its own K the cost model above says more
        return None
    table = _grid("left", *["right"] * len(found))
    table.add_row("K", *(str(p.k) for p in found))
    table.add_row("break-even, tokens/round", *(fixed(p.break_even_tau) for p in found))
    how = "tokens/round, same texts" if found[0].replayed else "predicted tokens/round"
    table.add_row(how, *(fixed(p.tokens_per_round) for p in found))
    best = max(found, key=lambda p: p.speedup)
    table.add_row("predicted speedup", *(Text(times(p.speedup), style="bold" if p is best else "") for p in found))
    if any(p.speedup_from_alpha is not None for p in found):
        table.add_row("with one alpha for all", *(times(p.speedup_from_alpha) for p in found))
    return _section("Other K", [table])


_MOST_LENGTHS = 9


def _some(items: Sequence[T]) -> list[T]:
    """All, or where that is too wide every second, third, ..., the first and the last among them."""
    step = -(-len(items) // _MOST_LENGTHS)
    return [item for index, item in enumerate(items) if index % step == 0 or index == len(items) - 1]


def render_costs(curve: CostCurve, *, title: str, subtitle: str | None = None) -> RenderableType:
    """What rounds of each draft length cost, and from which acceptance on they pay."""
    rows = _some([row for row in curve.by_k() if row["k"]])
    table = _grid("left", *["right"] * len(rows))

    def add(label: str, key: str, digits: int = 2) -> None:
        table.add_row(label, *(fixed(row[key], digits) for row in rows))

    table.add_row("K", *(str(row["k"]) for row in rows))
    add("a drafted token, c", "draft_cost_ratio", 3)
    add("verifying, v", "verify_ratio", 3)
    add("the rest, o", "overhead_ratio", 3)
    add("break-even, tokens/round", "break_even_tau")
    add("break-even alpha", "break_even_alpha")
    step = Text(f"one target pass  {milliseconds(curve.target_step_seconds)} ms; in such passes:")
    rounds = Text(f"{min(curve.num_rounds)} rounds or more of each length, side by side", style="dim")
    lines: list[RenderableType] = [step, table, rounds]
    if any(row["break_even_alpha"] is None for row in rows):
        lines.append(Text("A dash: not even if everything were accepted.", style="dim"))
    return Group(_heading(title, subtitle), _section("Cost curve", lines))


def _break_even(comparison: Comparison) -> str:
    costs, counts = comparison.costs, comparison.acceptance
    assert costs is not None and counts is not None
    bare = costs.break_even_tau
    over_baseline = None if bare is None else bare / (1 + (costs.ar_overhead_ratio or 0))
    per_round = f"{fixed(over_baseline)} tokens per round (here {fixed(costs.tokens_per_round)})"
    over_passes = f"{fixed(bare)} over bare target passes"
    if costs.draft_tokens_per_round != counts.num_spec_tokens:
        return f"{per_round}\n{over_passes}"  # an alpha belongs to one draft length
    if costs.break_even_alpha is None:
        return f"{per_round}\n{over_passes}\nout of reach even if everything were accepted"
    return f"{per_round}\n{over_passes}\nalpha {costs.break_even_alpha:.2f} (here {fixed(counts.alpha)})"


def _best_k(comparison: Comparison, k: int) -> str:
    if k == 0 or comparison.costs is None:
        return "none: plain decoding is fastest"
    source = "the survey's costs" if comparison.predictions else "this run's costs"
    return f"{k}, predicted {times(comparison.costs.best_k_speedup_predicted)} from {source}"


def _output(comparison: Comparison) -> RenderableType | None:
    if comparison.baseline is None or comparison.speculative is None:
        return None
    match = comparison.output_matches_baseline
    if match is None:
        return _section("Output", [Text("not compared: sampling keeps the target's distribution, not its tokens")])
    identical = match.num_identical == match.num_prompts
    color = "green" if identical else "bold red" if match.failures else "yellow"
    lines: list[RenderableType] = [
        Text(
            f"{match.num_identical} of {match.num_prompts} prompts token-identical to plain decoding",
            style=color,
        )
    ]
    if not identical:
        lines.append(Text(_divergences(match)))
    return _section("Output", lines)


def _divergences(match: OutputMatch) -> str:
    shown = [f"{plain(d.prompt_id)} at token {d.position + 1}" for d in match.divergences[:SHOWN_DIVERGENCES]]
    more = len(match.divergences) - len(shown)
    where = f"first difference: {', '.join(shown)}" + (f", and {more} more" if more else "")
    ties = sum(divergence.verdict == "tie" for divergence in match.divergences)
    if ties == len(match.divergences):
        return f"{where}; rounding explains {'it' if ties == 1 else 'each'}: two tokens the target likes equally"
    return f"{where}; NOT EXPLAINED BY ROUNDING: {len(match.failures)}" if match.failures else where


def _warnings(comparison: Comparison) -> RenderableType | None:
    if not comparison.warnings:
        return None
    return _section("Warnings", [Text(plain(warning), style="yellow") for warning in comparison.warnings])


# Layout


def _section(label: str, lines: Sequence[RenderableType]) -> RenderableType:
    table = Table(box=None, padding=0, pad_edge=False, show_header=False, expand=True)
    table.add_column(width=LABEL_WIDTH, no_wrap=True, overflow="crop")
    table.add_column(ratio=1)
    table.add_row(Text(label, style="bold"), Group(*lines))
    return table


def _grid(*justify: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for side in justify:
        table.add_column(justify="right" if side == "right" else "left", overflow="fold")
    return table


def _arms(comparison: Comparison) -> list[Arm]:
    return [arm for arm in (comparison.baseline, comparison.speculative) if arm is not None]


# Numbers


def _spread(speedup: Speedup) -> str:
    return f"   {interval(speedup)}" if speedup.ci else ""


def _tokens_per_round(arm: Arm) -> str:
    return f"{(arm.num_tokens - arm.num_generations) / arm.num_rounds:.2f}" if arm.num_rounds else DASH
