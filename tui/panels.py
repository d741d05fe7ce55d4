"""The panels of the main screen: each shows one thing of a state, and paints only what has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Literal

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.content import Content
from textual.geometry import Region
from textual.strip import Strip
from textual.visual import Visual
from textual.widget import Widget

from specprof.profiling import signs
from specprof.profiling.comparison import Costs, Speedup, counted
from specprof.profiling.feed import Device
from specprof.profiling.pieces import KIND_WORDS
from specprof.profiling.statistics import FEWEST_PAIRS
from specprof.tui.bars import (
    UNICODE,
    Glyphs,
    Line,
    Part,
    bar,
    column,
    cut,
    flow,
    inline,
    line_width,
    quoted,
    sparkline,
    wrapped,
)
from specprof.tui.contrast import readable
from specprof.tui.page import DASH, MUTED, VERDICT_STYLES, number, percent, prob, times
from specprof.tui.rounds import COIN, STAGES, Position, RoundView
from specprof.tui.state import RECENT_ROUNDS, Arm, ArmName, PhaseTimes, RunFacts, TuiState

PHASES: tuple[Literal["draft", "verify", "sample", "overhead"], ...] = ("draft", "verify", "sample", "overhead")
_PHASE_STYLES = {
    "draft": "$text-primary",
    "verify": "$text-accent",
    "sample": "$text-secondary",
    "overhead": MUTED,
}
_SPEEDUP_STYLES = {"faster": "bold $text-success", "slower": "bold $text-error", None: "bold"}
_BYTES_PER_GB = 1e9
NAMES: dict[ArmName, str] = {"SD": "speculative", "AR": "plain"}
_SHORT_NAMES: dict[ArmName, str] = {"SD": "SD", "AR": "AR"}
_SPELLED_OUT = 38
"""Cells from which on there is room for names of arms."""

_Draw = Callable[[int, int], list[Line]]
"""Lines for a width and a height, both in cells."""


class Panel(Widget):
    """Lines in a frame, drawn for the size there is; of another drawing, only lines that differ are painted."""

    ALLOW_SELECT = False

    DEFAULT_CSS = """
    Panel {
        width: 1fr;
        height: 8;
        padding: 0 1;
        border: round $foreground 30%;
        border-title-color: $text;
        border-subtitle-color: $text-muted;
    }
    """

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes, markup=False)
        self.glyphs = UNICODE
        self._titles = ("", "")
        self._drawn: object = None
        self._draw: _Draw | None = None
        self._lines: list[Line] = []
        self._inks: dict[str, Style] = {}

    def present(self, key: object, draw: _Draw) -> None:
        """Draw, unless what was drawn last had the same key, or looks the same."""
        if self._draw is None or key != self._drawn:
            self._drawn, self._draw = key, draw
            self._paint()

    def on_resize(self) -> None:
        self._paint()

    def _paint(self) -> None:
        width, height = self.content_size
        if self._draw is None or not width or not height:
            return
        before, drawn = self._lines, self._draw(width, height)[:height]
        self._lines = drawn
        changed = [
            Region(0, y, width, 1)
            for y, (old, new) in enumerate(zip_longest(before, drawn))
            if y < height and (old or []) != (new or [])
        ]
        if changed:
            self.refresh(*changed)

    def render_line(self, y: int) -> Strip:
        line = self._lines[y] if y < len(self._lines) else []
        strip = Strip([Segment(text, self._ink(style)) for text, style in line if text])
        return strip.crop_extend(0, self.content_size.width, self._ink(""))

    def _ink(self, style: str) -> Style:
        """As it is on the screen, on what is behind it."""
        ink = self._inks.get(style)
        if ink is None:
            (sample,) = Visual.to_strips(self, Content.styled("-", style), 1, 1, self.visual_style)
            ink = next(iter(sample)).style or Style()
            if "$text" in style:
                ink += Style(color=readable(ink.color, ink.bgcolor, self._ink("").color))
            self._inks[style] = ink
        return ink

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._inks.clear()

    def entitle(self, title: str, subtitle: str = "") -> None:
        """What the frame says; never markup."""
        # Setting a title paints the whole panel again, also if it is the same.
        if (title, subtitle) != self._titles:
            self._titles = (title, subtitle)
            self.border_title = Content(title)
            self.border_subtitle = Content(subtitle)


class HeaderBar(Panel):
    """One line: what runs, how, and how far it is. What matters least is left out first."""

    DEFAULT_CSS = """
    HeaderBar { height: 1; border: none; background: $panel; }
    """

    def show(self, state: TuiState, *, elapsed: float, live: bool, pace: float, pending: str) -> None:
        """
        Args:
            elapsed: seconds.
            live: an engine decodes; else a saved run is replayed.
            pace: of the replay: how many seconds pass in one.
            pending: what was asked for and has not come into effect, in words.
        """
        left = _settings(state)
        right = _progress(state, self.glyphs, elapsed=elapsed, live=live, pace=pace, pending=pending)
        self.present((left, right), lambda width, _: [_header(left, right, width, self.glyphs)])


_Item = tuple[int, Part]
"""How early it is left out: the highest first."""


def _settings(state: TuiState) -> tuple[_Item, ...]:
    run = state.run
    if run is None:
        return ((1, ("specprof", "bold")),)
    items = [
        (1, (signs.visible(run.pair), "bold")),
        (3, (f"K {_current_k(state, run)}", "")),
        (6, ("greedy" if run.greedy else f"temperature {run.temperature:g}", "")),
    ]
    if run.drafter != "model":
        items.append((9, (f"drafter {signs.visible(run.drafter)}", "")))
    threads = "" if run.threads is None else f", {counted(run.threads, 'thread')}"
    items.append((10, (f"{signs.visible(run.device)}{threads}", MUTED)))
    return tuple(items)


def _current_k(state: TuiState, run: RunFacts) -> int | str:
    """As last asked of the drafter: a run may be told to go on with another K."""
    asked = next((r.k for r in reversed(state.arms["SD"].latest) if r.k is not None and not r.cut), None)
    return run.k if asked is None or run.k == "auto" else asked


def _progress(
    state: TuiState, glyphs: Glyphs, *, elapsed: float, live: bool, pace: float, pending: str
) -> tuple[_Item, ...]:
    items = [(0, _status(state, glyphs, live=live, pace=pace))]
    if pending:
        items.append((2, (pending, "$text-warning")))
    run = state.run
    if run is not None and run.num_generations:
        items.append((5, (f"{state.num_ended} of {counted(run.num_generations, 'text')}", "")))
    items.append((4, (_clock(elapsed), "")))
    if caveats := _caveats(state):
        # Nothing beside these numbers matters more; the panel has the whole sentence.
        items.append((1, (inline(caveats[0].split(":")[0], glyphs), "bold $text-warning")))
    if state.num_dropped:
        items.append((7, (f"dropped {state.num_dropped}", "$text-warning")))
    if state.num_interactive:
        items.append((8, (f"interactive {state.num_interactive}", MUTED)))
    return tuple(items)


def _status(state: TuiState, glyphs: Glyphs, *, live: bool, pace: float) -> Part:
    match state.status:
        case "failed":
            return f"{glyphs.failed} failed", "bold $text-error"
        case "finished":
            return f"{glyphs.finished} finished", "bold $text-primary"
        case "paused":
            return f"{glyphs.paused} {'paused' if live else 'replay paused'}", "bold $text-warning"
        case "running" if live:
            return f"{glyphs.running} live", "bold $text-success"
        case "running":
            return f"{glyphs.replay} replay x{pace:g}", "bold $text-primary"
    loading = state.loading
    if loading is None:
        return f"{glyphs.loading} loading", "bold $text-primary"
    steps = f" {loading.done} of {loading.total}" if loading.total else ""
    return f"{glyphs.loading} {signs.visible(loading.what)}{steps}", "bold $text-primary"


def _header(left: Sequence[_Item], right: Sequence[_Item], width: int, glyphs: Glyphs) -> Line:
    # A long name gives way before anything is left out.
    (_, (name, name_style)), *settings = left
    shortest = min(cell_len(name), 14)
    right = [(level, (cut(words, width // 2, glyphs), style)) for level, (words, style) in right]
    kept = {level for level, _ in (*settings, *right)}

    def side(items: Sequence[_Item]) -> Line:
        parts: Line = []
        for level, part in items:
            if level in kept:
                parts += [(glyphs.separator, MUTED), part] if parts else [part]
        return parts

    def room() -> int:
        others = side(settings)
        return width - 2 - line_width(side(right)) - (line_width([(glyphs.separator, ""), *others]) if others else 0)

    while room() < shortest and kept - {0}:
        kept.remove(max(kept))
    line: Line = [(cut(name, max(1, room()), glyphs), name_style)]
    if others := side(settings):
        line += [(glyphs.separator, MUTED), *others]
    progress = side(right)
    gap = max(1, width - line_width(line) - line_width(progress))
    return [*line, (" " * gap, ""), *progress]


class RoundPanel(Panel):
    """One round, a line for each drafted token: what the draft and the target make of it, and why it stays or goes."""

    DEFAULT_CSS = """
    RoundPanel { height: 10; }
    RoundPanel.-teaching { height: 14; }
    """

    def show(self, state: TuiState) -> None:
        self.set_class(state.stepping, "-teaching")
        shown = state.shown
        if shown is None:
            self.entitle("Round")
            self.present(None, lambda width, _: wrapped("no round yet: nothing has been drafted", width, MUTED))
            return
        of = f" of {inline(shown.round.prompt_id, self.glyphs)}" if shown.round.prompt_id else ""
        stage = ""
        if state.stepping:
            stage = f", {STAGES.index(shown.stage) + 1} of {len(STAGES)}: {shown.stage}"
        self.entitle(f"Round {shown.round.index + 1}{of}{stage}", "s: next" if state.stepping else shown.headline)
        model_drafts = state.run is None or state.run.drafter == "model"
        lesson = teaching(shown, model_drafts=model_drafts) if state.stepping else ""
        self.present((shown, lesson), lambda width, height: _round_lines(shown, lesson, width, height, self.glyphs))


def _round_lines(shown: RoundView, lesson: str, width: int, height: int, glyphs: Glyphs) -> list[Line]:
    if not shown.positions:
        lines: list[Line] = [[("no token was drafted", MUTED)]]
        return [*lines, *_last_line(shown, width, glyphs), *wrapped(lesson, width)]
    told = wrapped(lesson, width)
    last = _last_line(shown, width, glyphs)
    table = _Table(shown, width, glyphs)
    # Of a long draft in a low panel the end is left out, never the lesson.
    room = max(2, height - 1 - len(last) - len(told))
    if told and room > len(shown.positions):
        told = [[], *told]
    rows = [table.row(position) for position in shown.positions]
    if len(rows) > room:
        rows = [*rows[: room - 1], [(f"{glyphs.ellipsis} {len(rows) - room + 1} more", MUTED)]]
    return [table.heading, *rows, *last, *told]


_NUMBER_WIDTH = 6
"""``<0.001``"""
_WORD_WIDTH = len("not judged")
_WHY_WIDTH = 24
"""Less would cut off most reasons."""


class _Table:
    """Which columns a width has room for: those that come first in :attr:`numbers` matter most."""

    def __init__(self, shown: RoundView, width: int, glyphs: Glyphs) -> None:
        self.stage = shown.stage
        self.glyphs = glyphs
        self.number_width = len(str(len(shown.positions)))
        self.token_width = min(18, max(7, width // 4))
        numbers = ["draft", "target"]
        if not shown.positions[0].greedy:
            numbers.append("ratio")
            if shown.round.uniforms is not None:
                numbers.append("u")
        room = width - self.number_width - 1 - self.token_width - 2
        self.numbers = numbers[: max(0, room // (_NUMBER_WIDTH + 1))]
        room -= len(self.numbers) * (_NUMBER_WIDTH + 1)
        self.has_words = room >= _WORD_WIDTH + 1
        room -= (_WORD_WIDTH + 1) * self.has_words
        self.why_width = room - 1 if self.has_words and room > _WHY_WIDTH else 0
        if not self.has_words:
            self.token_width += room

    @property
    def heading(self) -> Line:
        token = column("token", self.token_width, self.glyphs)
        numbers = "".join(f" {name:>{_NUMBER_WIDTH}}" for name in self.numbers)
        return [(f"{'':{self.number_width}} {token}{numbers}", MUTED)]

    def row(self, position: Position) -> Line:
        judged = self.stage != "decision" or position.verdict != "not judged"
        token = column(quoted(position.text, self.glyphs), self.token_width, self.glyphs)
        line: Line = [(f"{position.number:>{self.number_width}} ", MUTED), (token, "bold" if judged else MUTED)]
        line += [
            (f" {self._number(name, position):>{_NUMBER_WIDTH}}", "" if judged else MUTED) for name in self.numbers
        ]
        if self.stage != "decision":
            return line
        style = VERDICT_STYLES[position.verdict]
        sign = {
            "accepted": self.glyphs.accepted,
            "rejected": self.glyphs.rejected,
            "not judged": self.glyphs.hidden,
        }[position.verdict]
        line.append((f" {sign}", style))
        if self.has_words:
            line.append((f" {position.verdict:{_WORD_WIDTH}}", style))
        if self.why_width:
            line.append((f" {cut(position.why, self.why_width, self.glyphs)}", MUTED))
        return line

    def _number(self, name: str, position: Position) -> str:
        if name == "draft":
            return prob(position.draft_prob)
        if self.stage == "draft" or (name == "u" and self.stage == "verify"):
            return self.glyphs.hidden
        if name == "target":
            return prob(position.target_prob)
        return prob(position.ratio if name == "ratio" else position.uniform)


def _last_line(shown: RoundView, width: int, glyphs: Glyphs) -> list[Line]:
    """What the target added."""
    if shown.stage != "decision" or shown.last is None:
        return []
    kind = shown.last.kind
    sign = glyphs.text.bonus if kind == "bonus" else glyphs.text.corrected
    style = "bold $text-primary" if kind == "bonus" else "bold $text-warning"
    probability = "" if shown.last.target_prob is None else f" {prob(shown.last.target_prob)}"
    name = {"plain": "target's token", "corrected": "corrected token"}.get(kind, KIND_WORDS[kind])
    before = f"{sign} {name} "
    token = cut(quoted(shown.last.text, glyphs), max(1, width - cell_len(before) - len(probability)), glyphs)
    return [[(before, style), (token, "bold"), (probability, "")]]


def teaching(shown: RoundView, *, model_drafts: bool = True) -> str:
    """What happens at this stage of a round, in words and with its numbers.

    Args:
        model_drafts: a pass of a model stands behind every drafted token.
    """
    round, positions = shown.round, shown.positions
    k = len(positions)
    if not k:
        return "Nothing was drafted: the target makes one token, as in plain decoding."
    if shown.stage == "draft":
        took = _milliseconds(round.draft_seconds)
        if not model_drafts:
            return f"The drafter proposes {counted(k, 'token')} ({took} ms); the target has seen none of them."
        if k == 1:
            return f"The draft proposes 1 token: 1 cheap pass ({took} ms)."
        return f"The draft proposes {k} tokens, one after the other: {k} cheap passes ({took} ms)."
    if shown.stage == "verify":
        them = "it" if k == 1 else f"all {k} at once"
        each = "it" if k == 1 else "each"
        took = _milliseconds(round.verify_seconds)
        return f"The target reads {them}, in one pass ({took} ms), and says how probable it finds {each}."
    if shown.synthetic:
        return f"{COIN} {_outcome(shown)}"
    rule = (
        "Each is accepted if it is the token that the target would have chosen."
        if positions[0].greedy
        else "Each is accepted with probability min(1, target/draft): if a random number u is below that."
    )
    return f"{rule} {_outcome(shown)}"


def _outcome(shown: RoundView) -> str:
    k, accepted = len(shown.positions), shown.round.num_accepted
    if shown.last is None:
        return "The text ends with an accepted one: nothing comes after it."
    if accepted == k:
        all_of_them = "It is accepted" if k == 1 else f"All {k} are accepted"
        return f"{all_of_them}, and the same pass of the target yields one token more: the bonus."
    rejected = shown.positions[accepted]
    if shown.synthetic:
        replaced = f"The first rejected one, {rejected.number}, is replaced by a token of the target's"
    elif rejected.greedy:
        replaced = f"The first that is not, {rejected.number}, is replaced by the target's choice"
    else:
        why = f" ({rejected.why})" if rejected.uniform is not None else ""
        replaced = (
            f"The first rejected one, {rejected.number}{why}, is replaced by a token drawn from what the draft "
            "underrates"
        )
    return f"{replaced}; what stands behind it is thrown away." if rejected.number < k else f"{replaced}."


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
            [(number(counts.mean_acceptance_length), "bold"), (" tokens per round", "")],
            [("alpha ", MUTED), (number(counts.alpha), "")],
            [(counted(counts.num_spec_steps, "round"), MUTED)],
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
        self.entitle("Time per round, ms" if arm == "SD" else "Time per step, ms", NAMES[arm])
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
    for phase in PHASES:
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
    names = NAMES if width >= _SPELLED_OUT else _SHORT_NAMES
    # Where there is room, figures stand below those of the phases.
    first, last, whole = (12, width - 28, 16) if width >= _SPELLED_OUT else (8, 8, 10)
    lines.append([(f"{'tokens/s':{first}}{f'last {RECENT_ROUNDS}':>{last}}{'whole run':>{whole}}", MUTED)])
    for name in ("SD", "AR"):
        arm = state.arms[name]
        lines.append(
            [
                (f"{names[name]:{first}}", ""),
                (f"{_rate(arm.recent.tokens_per_second):>{last}}", "bold"),
                (f"{_rate(arm.times.tokens_per_second):>{whole}}", ""),
            ]
        )
    figures = state.figures
    lines += flow(_speedup_segments(figures.speedup, _without(state)), width, glyphs)
    lines += [[(cut(inline(caveat, glyphs), width, glyphs), "$text-warning")] for caveat in _caveats(state)]
    return lines + flow(_prediction_segments(figures.costs), width, glyphs)


def _caveats(state: TuiState) -> tuple[str, ...]:
    return () if state.run is None else state.run.caveats


def _without(state: TuiState) -> str:
    """Tokens per second are of all texts, the speedup is not."""
    return f"without {counted(state.num_interactive, 'interactive text')}" if state.num_interactive else ""


def _speedup_segments(speedup: Speedup | None, without: str = "") -> list[Line]:
    segments = _told_speedup(speedup)
    if without and speedup is not None and speedup.value is not None:
        segments.insert(1, [(without, MUTED)])
    return segments


def _told_speedup(speedup: Speedup | None) -> list[Line]:
    if speedup is None or speedup.value is None:
        return [[("speedup ", MUTED), (DASH, "")], [("no text of both arms yet", MUTED)]]
    style = _SPEEDUP_STYLES.get(speedup.verdict, "bold $text-warning")
    if speedup.ci is None:
        few = f"no interval: {speedup.n_prompts} of {FEWEST_PAIRS} prompts"
        return [[(f"{speedup.value:.2f}x", "bold"), (" so far", "")], [(few, MUTED)]]
    interval = f"[{speedup.ci[0]:.2f}, {speedup.ci[1]:.2f}]"
    if speedup.verdict == "not distinguishable":
        return [[(f"{speedup.value:.2f}x ", style), (interval, "")], [("not distinguishable", style)]]
    return [
        [(f"{speedup.value:.2f}x {speedup.verdict} ", style), (interval, "")],
        [(counted(speedup.n_prompts, "prompt"), MUTED)],
    ]


def advisable(costs: Costs) -> bool:
    """Whether the best K is what runs, or is predicted to be faster than that, whose drafts may be shorter than K."""
    best, now = costs.best_k_speedup_predicted, costs.speedup_predicted_with_ar_overhead
    return costs.best_k == costs.draft_tokens_per_round or (best is not None and (now is None or best > now))


def _prediction_segments(costs: Costs | None) -> list[Line]:
    predicted = None if costs is None else costs.speedup_predicted_with_ar_overhead
    segments: list[Line] = [[("predicted ", MUTED), (times(predicted), "")]]
    if costs is not None and costs.best_k is not None and advisable(costs):
        best = times(costs.best_k_speedup_predicted) if costs.best_k else "plain decoding"
        segments.append([("best K ", MUTED), (f"{costs.best_k} ({best})", "")])
    return segments


def _race_line(state: TuiState, name: ArmName, width: int, glyphs: Glyphs) -> Line:
    generation = state.arms[name].generation
    most = state.run.max_new_tokens if state.run else 0
    names = NAMES if width >= _SPELLED_OUT else _SHORT_NAMES
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
    first = max(line_width(sample) for sample, _, _ in told) + 1
    return [
        [*sample, (" " * (first - line_width(sample)), ""), (f"{name:{_WORD_WIDTH}} ", ""), (meaning, MUTED)]
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
        [(number(counts.mean_acceptance_length), "bold"), (" tokens per round", MUTED)],
    ]
    line = flow(segments, width, glyphs)[0]
    room = min(30, width - line_width(line) - len(glyphs.separator))
    return [*line, (f"  {_lately(state, room, glyphs)}", "$text-success")] if room > 3 else line


def _compact_speed(state: TuiState, width: int, glyphs: Glyphs) -> Line:
    sd, ar = (state.arms[name].recent.tokens_per_second for name in ("SD", "AR"))
    names = NAMES if width > 96 else _SHORT_NAMES
    tokens: Line = [(f"{names['SD']} ", MUTED), (_rate(sd), "bold"), (f"  {names['AR']} ", MUTED), (_rate(ar), "bold")]
    return flow([[*tokens, (" tokens/s", MUTED)], *_speedup_segments(state.figures.speedup)], width, glyphs)[0]


def _compact_phases(state: TuiState, width: int, glyphs: Glyphs) -> Line:
    recent = state.arms["SD"].recent
    # Of each: its name, its share, a space, the bar; and what separates them.
    fixed = sum(len(phase) + 1 + len(" 99 %") for phase in PHASES) + (len(PHASES) - 1) * len(glyphs.separator)
    room = min(10, max(0, (width - fixed) // len(PHASES)))
    segments: list[Line] = []
    for phase in PHASES:
        share = getattr(recent, phase) / recent.seconds if recent.seconds else None
        segments.append([(phase, MUTED), (f" {percent(share):>4}", "")])
        if room > 1:
            segments[-1] += [(" ", ""), *bar(share or 0.0, room, _PHASE_STYLES[phase], glyphs)]
    return flow(segments, width, glyphs)[0]


def _lately(state: TuiState, width: int, glyphs: Glyphs) -> str:
    """Share that was accepted in each of the latest rounds, as many as there is room for."""
    shares = [accepted / drafted for accepted, drafted in state.recent_accepted]
    return sparkline(shares[-width:] if width > 0 else [], glyphs)


# Numbers


def _rate(value: float | None) -> str:
    return DASH if value is None else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _milliseconds(seconds: float | None, like: float | None = None) -> str:
    """To three significant digits, or to those of another figure's (seconds) in the same column."""
    if seconds is None:
        return DASH
    scale = (seconds if like is None else like) * 1e3
    return f"{seconds * 1e3:.{0 if scale >= 100 else 1 if scale >= 10 else 2 if scale >= 1 else 3}f}"


def _gigabytes(size: int) -> str:
    gigabytes = size / _BYTES_PER_GB
    return f"{gigabytes:.1f}" if gigabytes < 100 else f"{gigabytes:.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
