"""The line above everything: what runs, how, and how far it is."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from specprof.profiling.numbers import count
from specprof.profiling.signs import visible
from specprof.tui.bars import Glyphs, Line, Part, cut, inline, line_width
from specprof.tui.page import MUTED
from specprof.tui.panel import Panel
from specprof.tui.run_facts import RunFacts
from specprof.tui.state import TuiState


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
        (1, (visible(run.pair), "bold")),
        (3, (f"K {_current_k(state, run)}", "")),
        (6, ("greedy" if run.greedy else f"temperature {run.temperature:g}", "")),
    ]
    if run.drafter != "model":
        items.append((9, (f"drafter {visible(run.drafter)}", "")))
    threads = "" if run.threads is None else f", {count(run.threads, 'thread')}"
    items.append((10, (f"{visible(run.device)}{threads}", MUTED)))
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
        items.append((5, (f"{state.num_ended} of {count(run.num_generations, 'text')}", "")))
    items.append((4, (_clock(elapsed), "")))
    if caveats := state.caveats:
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
    return f"{glyphs.loading} {visible(loading.what)}{steps}", "bold $text-primary"


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


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
