"""The panels of figures on the main screen: each shows one thing of a state, and paints only what has changed."""

from __future__ import annotations

from typing import Literal

from specprof.profiling.feed import Device
from specprof.profiling.numbers import DASH, count, fixed, percent, rate, times
from specprof.profiling.round_costs import Costs
from specprof.profiling.speedup import Speedup
from specprof.profiling.statistics import FEWEST_PAIRS
from specprof.tui.bars import Glyphs, Line, bar, cut, flow, inline, line_width, sparkline
from specprof.tui.page import MUTED
from specprof.tui.panel import Panel
from specprof.tui.state import RECENT_ROUNDS, Arm, ArmName, PhaseTimes, TuiState

_PHASES: tuple[Literal["draft", "verify", "sample", "overhead"], ...] = ("draft", "verify", "sample", "overhead")
_PHASE_STYLES = {
    "draft": "$text-primary",
    "verify": "$text-accent",
    "sample": "$text-secondary",
    "overhead": MUTED,
}
_SPEEDUP_STYLES = {"faster": "bold $text-success", "slower": "bold $text-error"}
_BYTES_PER_GB = 1e9
_NAMES: dict[ArmName, str] = {"SD": "speculative", "AR": "plain"}
_SHORT_NAMES: dict[ArmName, str] = {"SD": "SD", "AR": "AR"}
_SPELLED_OUT = 38
"""Cells from which on there is room for names of arms."""


class AcceptancePanel(Panel):
    """How much of what is drafted is accepted, overall, by position and lately."""

    DEFAULT_CSS = """
    AcceptancePanel { height: 10; }
    """

    def on_mount(self) -> None:
        self.entitle("Acceptance")

    def show(self, state: TuiState) -> None:
        counts = state.acceptance
        key = (state.run and state.run.run_id, counts.num_spec_steps, counts.num_empty_rounds)
        self.present(key, lambda width, height: _acceptance_lines(state, width, height, self.glyphs))


def _acceptance_lines(state: TuiState, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    counts = state.acceptance
    if counts.draft_acceptance_rate is None:
        return [[("nothing drafted yet", MUTED)]]
    head = flow(
        [
            [(percent(counts.draft_acceptance_rate), "bold"), (" accepted", "")],
            [(fixed(counts.mean_acceptance_length), "bold"), (" tokens per round", "")],
            [("alpha ", MUTED), (fixed(counts.alpha), "")],
            [(count(counts.num_spec_steps, "round"), MUTED)],
        ],
        width,
        glyphs,
    )
    name = f"last {len(state.recent_accepted)} "
    lately: Line = [(name, MUTED), (_lately(state, width - len(name), glyphs), "$text-success")]
    rates, reached = counts.acceptance_rate_per_pos, counts.conditional_acceptance_rate
    room = max(1, height - len(head) - 1)
    rows = [
        _position_line(index + 1, rate, if_reached, width, glyphs)
        for index, (rate, if_reached) in enumerate(zip(rates, reached, strict=True))
    ]
    if len(rows) > room:
        rows = [*rows[: room - 1], [(f"{glyphs.ellipsis} {len(rows) - room + 1} more positions", MUTED)]]
    return [*head, *rows, lately]


def _position_line(position: int, rate: float, if_reached: float | None, width: int, glyphs: Glyphs) -> Line:
    conditional = f"  {percent(if_reached):>5} if reached" if width >= 36 else ""
    room = max(1, width - 3 - 6 - len(conditional))
    return [
        (f"{position:>2} ", MUTED),
        *bar(rate, room, "$text-success", glyphs),
        (f" {percent(rate):>5}", ""),
        (conditional, MUTED),
    ]


class PhasePanel(Panel):
    """Where a round's time goes."""

    DEFAULT_CSS = """
    PhasePanel { height: 8; }
    """

    def show(self, state: TuiState, arm: ArmName) -> None:
        shown = state.arms[arm]
        self.entitle("Time per round, ms" if arm == "SD" else "Time per step, ms", _NAMES[arm])
        key = (state.run and state.run.run_id, arm, shown.times.rounds)
        self.present(key, lambda width, _: _phase_lines(shown, width, self.glyphs))


def _phase_lines(arm: Arm, width: int, glyphs: Glyphs) -> list[Line]:
    recent, whole = arm.recent, arm.times
    has_whole = width >= _SPELLED_OUT
    room = max(0, width - 9 - 8 - 6 - 10 * has_whole)
    like = recent.seconds / recent.rounds if recent.rounds else None

    def numbers(lately: float | None, share: float | None, overall: float | None, style: str) -> Line:
        line: Line = [(f"{_milliseconds(lately, like):>8} {percent(share):>5}", style)]
        return [*line, (f"{_milliseconds(overall, like):>10}", MUTED)] if has_whole else line

    lines: list[Line] = [
        [(f"{'':{9 + room}}{_last(whole.rounds):>8}{'':6}{'whole run' if has_whole else '':>10}", MUTED)]
    ]
    for phase in _PHASES:
        share = getattr(recent, phase) / recent.seconds if recent.seconds else None
        lines.append(
            [
                (f"{phase:8} ", ""),
                *bar(share or 0.0, room, _PHASE_STYLES[phase], glyphs),
                *numbers(_per_round(recent, phase), share, _per_round(whole, phase), ""),
            ]
        )
    everything = numbers(
        _per_round(recent, "seconds"), 1.0 if recent.seconds else None, _per_round(whole, "seconds"), "bold"
    )
    return [*lines, [(f"{'total':{9 + room}}", ""), *everything]]


def _last(rounds: int) -> str:
    return f"last {min(rounds, RECENT_ROUNDS) or RECENT_ROUNDS}"


def _per_round(phases: PhaseTimes, what: Literal["draft", "verify", "sample", "overhead", "seconds"]) -> float | None:
    return getattr(phases, what) / phases.rounds if phases.rounds else None


def _milliseconds(seconds: float | None, like: float | None = None) -> str:
    """To three significant digits, or to those of another figure's (seconds) in the same column."""
    if seconds is None:
        return DASH
    scale = (seconds if like is None else like) * 1e3
    return f"{seconds * 1e3:.{0 if scale >= 100 else 1 if scale >= 10 else 2 if scale >= 1 else 3}f}"


class SpeedPanel(Panel):
    """Tokens per second of both arms, what that comes to, and what the costs predict."""

    DEFAULT_CSS = """
    SpeedPanel { height: 8; }
    """

    def on_mount(self) -> None:
        self.entitle("Speed")

    def show(self, state: TuiState) -> None:
        self.entitle("Race" if state.racing else "Speed")
        arms = (state.arms["SD"], state.arms["AR"])
        tokens = tuple((arm.times.rounds, arm.generation and arm.generation.num_tokens) for arm in arms)
        key = (state.run and state.run.run_id, state.racing, state.num_ended, state.num_interactive, tokens)
        self.present(key, lambda width, _: _speed_lines(state, width, self.glyphs))


def _speed_lines(state: TuiState, width: int, glyphs: Glyphs) -> list[Line]:
    lines: list[Line] = []
    if state.racing:
        lines += [_race_line(state, name, width, glyphs) for name in ("SD", "AR")]
    names = _NAMES if width >= _SPELLED_OUT else _SHORT_NAMES
    # Where there is room, figures stand below those of the phases.
    first, last, whole = (12, width - 28, 16) if width >= _SPELLED_OUT else (8, 8, 10)
    lines.append([(f"{'tokens/s':{first}}{f'last {RECENT_ROUNDS}':>{last}}{'whole run':>{whole}}", MUTED)])
    for name in ("SD", "AR"):
        arm = state.arms[name]
        lines.append(
            [
                (f"{names[name]:{first}}", ""),
                (f"{rate(arm.recent.tokens_per_second):>{last}}", "bold"),
                (f"{rate(arm.times.tokens_per_second):>{whole}}", ""),
            ]
        )
    figures = state.figures
    lines += flow(_speedup_segments(figures.speedup, _without(state)), width, glyphs)
    lines += [[(cut(inline(caveat, glyphs), width, glyphs), "$text-warning")] for caveat in state.caveats]
    return lines + flow(_prediction_segments(figures.costs), width, glyphs)


def _without(state: TuiState) -> str:
    """Tokens per second are of all texts, the speedup is not."""
    return f"without {count(state.num_interactive, 'interactive text')}" if state.num_interactive else ""


def _speedup_segments(speedup: Speedup | None, without: str = "") -> list[Line]:
    segments = _told_speedup(speedup)
    if without and speedup is not None and speedup.value is not None:
        segments.insert(1, [(without, MUTED)])
    return segments


def _told_speedup(speedup: Speedup | None) -> list[Line]:
    if speedup is None or speedup.value is None:
        return [[("speedup ", MUTED), (DASH, "")], [("no text of both arms yet", MUTED)]]
    style = _SPEEDUP_STYLES.get(speedup.verdict or "", "bold $text-warning")
    if speedup.ci is None:
        few = f"no interval: {speedup.n_prompts} of {FEWEST_PAIRS} prompts"
        return [[(f"{speedup.value:.2f}x", "bold"), (" so far", "")], [(few, MUTED)]]
    interval = f"[{speedup.ci[0]:.2f}, {speedup.ci[1]:.2f}]"
    if speedup.verdict == "not distinguishable":
        return [[(f"{speedup.value:.2f}x ", style), (interval, "")], [("not distinguishable", style)]]
    return [
        [(f"{speedup.value:.2f}x {speedup.verdict} ", style), (interval, "")],
        [(count(speedup.n_prompts, "prompt"), MUTED)],
    ]


def _prediction_segments(costs: Costs | None) -> list[Line]:
    predicted = None if costs is None else costs.speedup_predicted_with_ar_overhead
    segments: list[Line] = [[("predicted ", MUTED), (times(predicted), "")]]
    if costs is not None and costs.best_k is not None and costs.best_k_is_advisable:
        best = times(costs.best_k_speedup_predicted) if costs.best_k else "plain decoding"
        segments.append([("best K ", MUTED), (f"{costs.best_k} ({best})", "")])
    return segments


def _race_line(state: TuiState, name: ArmName, width: int, glyphs: Glyphs) -> Line:
    generation = state.arms[name].generation
    most = state.run.max_new_tokens if state.run else 0
    names = _NAMES if width >= _SPELLED_OUT else _SHORT_NAMES
    shown = f"{names[name]:{len(names['SD'])}} "
    if generation is None or not most:
        return [(f"{shown}{DASH}", "")]
    finished = generation.ended
    tail = f" {generation.num_tokens:>{len(str(most))}}/{most} {generation.seconds:6.2f} s"
    sign = f" {glyphs.accepted}" if finished else "  "
    room = max(1, width - len(shown) - len(tail) - 2)
    return [
        (shown, "bold"),
        *bar(generation.num_tokens / most, room, "$text-success" if name == "SD" else "$text-primary", glyphs),
        (tail, "bold" if finished else ""),
        (sign, "$text-success"),
    ]


class DevicePanel(Panel):
    """What the engine runs on; a dash where there is no telling."""

    DEFAULT_CSS = """
    DevicePanel { height: 5; }
    """

    def on_mount(self) -> None:
        self.entitle("Device")

    def show(self, state: TuiState) -> None:
        device, run = state.device, state.run
        name = device.name if device is not None else run.device if run is not None else DASH
        self.present((device, name), lambda width, _: _device_lines(name, device, width, self.glyphs))


def _device_lines(name: str, device: Device | None, width: int, glyphs: Glyphs) -> list[Line]:
    device = device or Device(name)
    used, total, share = device.memory_bytes, device.memory_total_bytes, device.utilisation
    of = "" if total is None else f" of {_gigabytes(total)}"
    memory = f"{DASH if used is None else _gigabytes(used)}{of}" + ("" if used is None and total is None else " GB")
    segments: list[Line] = [
        [("memory ", MUTED), (memory, "")],
        [("busy ", MUTED), (percent(share), "")],
        [("power ", MUTED), (DASH if device.watts is None else f"{device.watts:.0f} W", "")],
    ]
    if used is not None and total and width >= 32:
        segments[0].append((f" ({percent(used / total)})", MUTED))
    return [[(cut(inline(name, glyphs), width, glyphs), "bold")], *flow(segments, width, glyphs)]


def _gigabytes(size: int) -> str:
    gigabytes = size / _BYTES_PER_GB
    return f"{gigabytes:.1f}" if gigabytes < 100 else f"{gigabytes:.0f}"


class SignsPanel(Panel):
    """What colours and signs of the text mean."""

    DEFAULT_CSS = """
    SignsPanel { height: 1fr; max-height: 7; }
    """

    def on_mount(self) -> None:
        self.entitle("Signs", "f: fold what was rejected")
        self.present("signs", lambda width, height: _signs_lines(width, height, self.glyphs))


def _signs_lines(width: int, height: int, glyphs: Glyphs) -> list[Line]:
    text = glyphs.text
    begin, end = text.rejected
    told: list[tuple[Line, str, str]] = [
        ([("word", "$text-success")], "accepted", "drafted, target agrees"),
        ([(begin, MUTED), ("word", "$text-error strike"), (end, MUTED)], "rejected", "drafted, not kept"),
        ([(text.unjudged, MUTED), ("word", "$text-error strike")], "not judged", "behind a rejected one"),
        ([(text.corrected, MUTED), ("word", "bold $text-warning")], "corrected", "the target's, instead"),
        ([(text.bonus, MUTED), ("word", "bold $text-primary")], "bonus", "if all are accepted"),
    ]
    if height < len(told):
        # Each word in its own look says it too.
        short: list[Line] = [
            [part if part[0] != "word" else (name, part[1]) for part in sample] for sample, name, _ in told
        ]
        return flow(short, width, glyphs)
    first, second = max(line_width(sample) for sample, _, _ in told) + 1, max(len(name) for _, name, _ in told)
    return [
        [*sample, (" " * (first - line_width(sample)), ""), (f"{name:{second}} ", ""), (meaning, MUTED)]
        for sample, name, meaning in told
    ]


class CompactBar(Panel):
    """The figures that matter most, where there is no room for panels."""

    DEFAULT_CSS = """
    CompactBar { height: 3; border: none; background: $panel; }
    """

    def show(self, state: TuiState) -> None:
        key = (state.run and state.run.run_id, state.num_ended, *(arm.times.rounds for arm in state.arms.values()))
        self.present(key, lambda width, _: _compact_lines(state, width, self.glyphs))


def _compact_lines(state: TuiState, width: int, glyphs: Glyphs) -> list[Line]:
    return [
        _compact_acceptance(state, width, glyphs),
        _compact_speed(state, width, glyphs),
        _compact_phases(state, width, glyphs),
    ]


def _compact_acceptance(state: TuiState, width: int, glyphs: Glyphs) -> Line:
    counts = state.acceptance
    rate = counts.draft_acceptance_rate
    if rate is None:
        return [("accepted ", MUTED), (DASH, ""), ("  nothing drafted yet", MUTED)]
    segments: list[Line] = [
        [("accepted ", MUTED), (f"{percent(rate)} ", "bold"), *bar(rate, 8, "$text-success", glyphs)],
        [(fixed(counts.mean_acceptance_length), "bold"), (" tokens per round", MUTED)],
    ]
    line = flow(segments, width, glyphs)[0]
    room = min(30, width - line_width(line) - len(glyphs.separator))
    return [*line, (f"  {_lately(state, room, glyphs)}", "$text-success")] if room > 3 else line


def _compact_speed(state: TuiState, width: int, glyphs: Glyphs) -> Line:
    sd, ar = (state.arms[name].recent.tokens_per_second for name in ("SD", "AR"))
    names = _NAMES if width > 96 else _SHORT_NAMES
    tokens: Line = [(f"{names['SD']} ", MUTED), (rate(sd), "bold"), (f"  {names['AR']} ", MUTED), (rate(ar), "bold")]
    return flow([[*tokens, (" tokens/s", MUTED)], *_speedup_segments(state.figures.speedup)], width, glyphs)[0]


def _compact_phases(state: TuiState, width: int, glyphs: Glyphs) -> Line:
    recent = state.arms["SD"].recent
    # Of each: its name, its share, a space, the bar; and what separates them.
    taken = sum(len(phase) + 1 + len(" 99 %") for phase in _PHASES) + (len(_PHASES) - 1) * len(glyphs.separator)
    room = min(10, max(0, (width - taken) // len(_PHASES)))
    segments: list[Line] = []
    for phase in _PHASES:
        share = getattr(recent, phase) / recent.seconds if recent.seconds else None
        segments.append([(phase, MUTED), (f" {percent(share):>4}", "")])
        if room > 1:
            segments[-1] += [(" ", ""), *bar(share or 0.0, room, _PHASE_STYLES[phase], glyphs)]
    return flow(segments, width, glyphs)[0]


def _lately(state: TuiState, width: int, glyphs: Glyphs) -> str:
    """Share that was accepted in each of the latest rounds, as many as there is room for."""
    shares = [accepted / drafted for accepted, drafted in state.recent_accepted]
    return sparkline(shares[-width:] if width > 0 else [], glyphs)
