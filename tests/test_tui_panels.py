"""The panels of the main screen: what they say of a state, in any width, whatever the texts are."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import re
from collections.abc import Awaitable, Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.app import App, ComposeResult
from textual.containers import VerticalScroll
from textual.geometry import Region
from textual.pilot import Pilot

from sample_feed import hostile_run, hostile_texts, sample_run
from specprof.profiling.acceptance import AcceptanceCounts
from specprof.profiling.comparison import compare
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round, RunStarted
from specprof.profiling.feed import Device, Dropped, Failed, Going, Loading, Texts
from specprof.profiling.metrics import fold
from specprof.profiling.signs import spelled
from specprof.tui.bars import UNICODE, Glyphs, bar, column, cut, flow, line_width, quoted, sparkline
from specprof.tui.header_bar import HeaderBar
from specprof.tui.panel import Panel
from specprof.tui.panels import AcceptancePanel, CompactBar, DevicePanel, PhasePanel, SignsPanel, SpeedPanel
from specprof.tui.round_panel import RoundPanel, teaching
from specprof.tui.state import ArmName, TuiState

GLYPHS = [UNICODE]
A_DEVICE = Device("An EPYC", 1_310_000_000, 16_800_000_000, 0.71)


def told(events: Sequence[Event], *, stepping: bool = False) -> TuiState:
    """A state that was told what the tokens are, and these events."""
    state = TuiState()
    texts: dict[str, str] = {}
    for event in events:
        if isinstance(event, PromptEnded):
            texts |= event.token_texts or {}
    state.stepping = stepping
    for message in (Texts(texts), Going("running"), *events):
        state.apply(message)
    return state


def until_round(events: Sequence[Event], which: Callable[[Round], bool]) -> list[Event]:
    """Up to the first such round of the speculative arm, and what the texts are of."""
    found = next(
        i for i, e in enumerate(events) if isinstance(e, Round) and e.decoder != "AR" and e.draft_tokens and which(e)
    )
    return list(events[: found + 1])


def stepped(events: Sequence[Event], which: Callable[[Round], bool], stages: int) -> TuiState:
    """That round is the one being stepped through."""
    upto = until_round(events, which)
    state = told(events)  # for the texts of all tokens
    state.stepping = False
    for event in upto[:-1]:
        state.apply(event)
    state.stepping = True
    state.apply(upto[-1])
    for _ in range(stages):
        state.reveal()
    return state


class Screen(App[None]):
    """All panels below one another, as wide as the terminal."""

    CSS = "VerticalScroll { scrollbar-size: 0 0; }"

    def __init__(self) -> None:
        super().__init__()
        self.panels = (
            HeaderBar(),
            RoundPanel(),
            AcceptancePanel(),
            PhasePanel(),
            SpeedPanel(),
            DevicePanel(),
            CompactBar(),
        )
        self.header, self.round, self.acceptance, self.phases, self.speed, self.device, self.compact = self.panels

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield from self.panels

    def show(
        self,
        state: TuiState,
        *,
        arm: ArmName = "SD",
        elapsed: float = 83.2,
        live: bool = True,
        pace: float = 1.0,
        pending: str = "",
    ) -> None:
        self.header.show(state, elapsed=elapsed, live=live, pace=pace, pending=pending)
        self.phases.show(state, arm)
        for panel in (self.round, self.acceptance, self.speed, self.device, self.compact):
            panel.show(state)


def on_screen(act: Callable[[Screen, Pilot[None]], Awaitable[None]], width: int = 44, *, height: int = 60) -> None:
    async def run() -> None:
        app = Screen()
        async with app.run_test(size=(width, height)) as pilot:
            await pilot.pause()
            await act(app, pilot)

    asyncio.run(run())


def lines(panel: Panel) -> list[str]:
    """What stands on the screen, frame included."""
    strips = panel.render_lines(panel.outer_size.region)
    return [strip.text for strip in strips]


def words(panel: Panel) -> str:
    """Without the frame, on one line."""
    framed = not isinstance(panel, HeaderBar | CompactBar)
    inner = [line[2:-2] for line in lines(panel)[1:-1]] if framed else lines(panel)
    return re.sub(r"\s+", " ", " ".join(inner)).strip()


def seen(state: TuiState, width: int = 44, **shown: object) -> dict[str, str]:
    """The words of every panel."""
    found: dict[str, str] = {}

    async def act(app: Screen, pilot: Pilot[None]) -> None:
        app.show(state, **shown)  # type: ignore[arg-type]
        await pilot.pause()
        names = ("header", "round", "acceptance", "phases", "speed", "device", "compact")
        found.update(zip(names, map(words, app.panels), strict=True))

    on_screen(act, width)
    return found


# Drawing


@given(
    st.floats(-1, 2, allow_nan=False) | st.sampled_from([0.0, 1.0, 1e-9]), st.integers(0, 40), st.sampled_from(GLYPHS)
)
def test_a_bar_is_as_wide_as_asked_and_never_lies(share: float, width: int, glyphs: Glyphs) -> None:
    (drawn, style), (track, _) = bar(share, width, "bold", glyphs)
    assert style == "bold"
    assert cell_len(drawn + track) == width
    assert set(track) <= {glyphs.rest}
    filled = len(drawn)
    assert (filled == 0) == (share <= 0 or width == 0)
    assert abs(filled - max(0.0, min(1.0, share)) * width) <= 1
    if share >= 1:
        assert drawn == glyphs.full * width


def test_a_bar_is_drawn_to_an_eighth() -> None:
    assert [bar(eighth / 8, 1, "", UNICODE)[0][0] for eighth in range(9)] == ["", *"▏▎▍▌▋▊▉█"]


def test_a_sparkline_goes_from_low_to_high() -> None:
    assert sparkline([0, 0.5, 1, 2, -1], UNICODE) == "▁▅██▁"


@given(st.sampled_from(sorted(hostile_texts().values())), st.integers(0, 20), st.sampled_from(GLYPHS))
def test_what_is_cut_fits(text: str, width: int, glyphs: Glyphs) -> None:
    shown = quoted(text, glyphs)
    assert cell_len(cut(shown, width, glyphs)) <= width
    assert cell_len(column(shown, width, glyphs)) == width
    assert not [c for c in shown if spelled(c) or c in "\n\t"]


@given(st.lists(st.text("abc", min_size=1, max_size=12), max_size=8), st.integers(12, 40))
def test_segments_flow_into_as_few_lines_as_hold_them(texts: list[str], width: int) -> None:
    flowing = flow([[(text, "")] for text in texts], width, UNICODE)
    assert all(line_width(line) <= width for line in flowing)
    assert [text for line in flowing for text, _ in line if text != UNICODE.separator] == texts
    for line, following in itertools.pairwise(flowing):
        assert line_width(line) + len(UNICODE.separator) + cell_len(following[0][0]) > width


# Every panel


def _sampled() -> TuiState:
    return told(sample_run()[:150])


def _hostile() -> TuiState:
    return told(hostile_run(config_of="nobody", pair={"name": "[bold]\x1b[31m漢字\n[/]"}, drafter="\u202ex"))


STATES: dict[str, Callable[[], TuiState]] = {
    "nothing yet": TuiState,
    "no round yet": lambda: told(sample_run(2)[:1]),
    "sampled": _sampled,
    "greedy, K 9": lambda: told(sample_run(2, k=9, temperature=0.0)),
    "K auto": lambda: told(sample_run(2, k="auto")),
    "without detail": lambda: told(sample_run(2, detail=False)),
    "no plain decoding": lambda: told(sample_run(2, baseline=False)),
    "hostile": _hostile,
}


@pytest.mark.parametrize("width", [30, 37, 60])
def test_every_line_is_as_wide_as_the_panel(width: int) -> None:
    async def act(app: Screen, pilot: Pilot[None]) -> None:
        for name, make in STATES.items():
            state = make()
            for device in (None, Device("\x1b[2J漢字" * 20, 10**10, None, 0.5, 300.0)):
                state.device = device
                app.show(state, live=False, pace=0.25, pending="K 6 from the next round")
                for panel in app.panels:
                    for line in lines(panel):
                        assert cell_len(line) == width, (name, panel, line)
                        assert not [c for c in line if spelled(c) or c in "\n\t"], (name, panel, line)

    on_screen(act, width)


def test_nothing_is_said_of_what_is_not_known() -> None:
    shown = seen(TuiState())
    assert shown["header"] == "specprof … loading · 01:23"
    assert shown["round"] == "no round yet: nothing has been drafted"
    assert shown["acceptance"] == "nothing drafted yet"
    phases = re.sub("░+ ", "", shown["phases"])
    assert phases == "last 50 whole run draft - - - verify - - - sample - - - overhead - - - total - - -"
    assert "speculative - - plain - - speedup - · no text of both arms yet predicted -" in shown["speed"]
    assert shown["device"] == "- memory - · busy - · power -"
    assert not re.search(r"\d", shown["compact"])


def test_what_has_not_changed_is_not_painted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    painted: list[Panel] = []
    lines_painted: dict[Panel, int] = {}
    refresh = Panel.refresh

    def counted(panel: Panel, *regions: Region, layout: bool = False, **options: bool) -> Panel:
        if regions:  # else a title has changed
            painted.append(panel)
            lines_painted[panel] = len(regions)
        return refresh(panel, *regions, layout=layout, **options)

    monkeypatch.setattr(Panel, "refresh", counted)
    events = sample_run()

    async def act(app: Screen, pilot: Pilot[None]) -> None:
        state = told(events[:40])
        app.show(state)
        await pilot.pause()
        assert set(painted) == set(app.panels)
        painted.clear()
        app.show(state)
        state.revision += 1
        app.show(state, elapsed=83.9)
        assert not painted
        app.show(state, elapsed=84.1)
        assert painted == [app.header]
        painted.clear()
        state.apply(A_DEVICE)
        app.show(state, elapsed=84.1)
        assert painted == [app.device]
        painted.clear()
        state.apply(dataclasses.replace(A_DEVICE, watts=40.0))
        app.show(state, elapsed=84.1)
        assert painted == [app.device] and lines_painted[app.device] == 1  # the other lines are what they were
        painted.clear()
        rounds = iter(e for e in events[40:] if isinstance(e, Round) and e.draft_tokens)
        state.apply(next(rounds))
        app.show(state, elapsed=84.1)
        assert {app.round, app.acceptance, app.phases, app.speed, app.compact} <= set(painted)
        assert len(painted) == len(set(painted))

    on_screen(act)


def test_another_size_is_drawn_for() -> None:
    async def act(app: Screen, pilot: Pilot[None]) -> None:
        app.show(_sampled())
        await pilot.pause()
        assert "whole run" not in words(app.phases)
        await pilot.resize_terminal(80, 60)
        await pilot.pause()
        assert "whole run" in words(app.phases)
        assert " accepted" in lines(app.round)[2]
        assert all(cell_len(line) == 80 for panel in app.panels for line in lines(panel))

    on_screen(act, 30)


@pytest.mark.parametrize("theme", ["textual-dark", "textual-light", "ansi-dark", "ansi-light"])
def test_colours_are_the_themes(theme: str) -> None:
    """A bar of each phase in its own; what is no colour of the theme would be drawn as all the rest."""

    async def act(app: Screen, pilot: Pilot[None]) -> None:
        app.theme = theme
        app.show(_sampled())
        await pilot.pause()
        colours = {
            segment.style.color
            for strip in app.phases.render_lines(app.phases.outer_size.region)[2:6]
            for segment in strip
            if segment.style is not None and set(segment.text) & set("█" + UNICODE.parts)
        }
        assert len(colours) >= 3

    on_screen(act, 60)


@pytest.mark.parametrize("height", [5, 7])
def test_signs_are_told_where_there_is_room(height: int) -> None:
    class Only(App[None]):
        CSS = f"SignsPanel {{ height: {height}; }}"

        def compose(self) -> ComposeResult:
            yield SignsPanel()

    async def run() -> None:
        app = Only()
        async with app.run_test(size=(46, 20)) as pilot:
            await pilot.pause()
            panel = app.query_one(SignsPanel)
            shown = words(panel)
            signs = panel.glyphs.text
            begin, end = signs.rejected
            assert f"{begin}{'rejected' if height == 5 else 'word'}{end}" in shown
            assert signs.unjudged in shown and signs.corrected in shown and signs.bonus in shown
            for word in ("accepted", "rejected", "not judged", "corrected", "bonus"):
                assert word in shown
            assert ("behind a rejected one" in shown) == (height == 7)
            assert all(line[-3] == " " for line in lines(panel)[1:-1])  # nothing is cut off

    asyncio.run(run())


# The header


def test_the_header_says_what_runs_and_how_far() -> None:
    state = told(sample_run()[:150])
    state.apply(Dropped(12))
    state.num_interactive = 3
    wide = seen(state, 140, elapsed=3723.0, pending="K 6 from the next round")["header"]
    assert wide == (
        "tiny_dev · K 4 · temperature 0.8 · cpu ● live · K 6 from the next round · "
        f"{state.num_ended} of 6 texts · 1:02:03 · dropped 12 · interactive 3"
    )
    at_60 = seen(state, 60, pending="K 6 from the next round")["header"]
    assert at_60.startswith("tiny_dev · K 4 ● live")
    assert at_60.endswith("01:23")
    assert "dropped" not in at_60
    plain = seen(told(sample_run(temperature=0.0, drafter="ngram")[:30]), 100)["header"]
    assert "greedy · drafter ngram" in plain
    assert "dropped" not in plain
    assert "interactive" not in plain


def test_the_header_says_how_it_goes() -> None:
    async def act(app: Screen, pilot: Pilot[None]) -> None:
        for message, live, said in (
            (Going("running"), True, "● live"),
            (Going("running"), False, "► replay x0.25"),
            (Going("paused"), True, "‖ paused"),
            (Going("paused"), False, "‖ replay paused"),
            (Going("finished"), True, "■ finished"),
            (Failed("out of memory", "use less", 4), True, "✗ failed"),
            (Loading("loading tiny_dev"), True, "… loading tiny_dev"),
            (Loading("warm-up", 3, 10), True, "… warm-up 3 of 10"),
        ):
            state = _sampled()
            state.apply(message)
            app.show(state, live=live, pace=0.25)
            assert f" {said} ·" in words(app.header)

    on_screen(act, 80)


def test_what_was_asked_for_is_told_first() -> None:
    state = told(sample_run()[:150])
    for width in (60, 80, 120):
        assert "K 6 from the next prompt on" in seen(state, width, pending="K 6 from the next prompt on")["header"]
    both = "K 6, temperature 0.9 from the next prompt on"
    assert both in seen(state, 100, pending=both)["header"]
    assert "K 6, temperature 0.9" in seen(state, 60, pending=both)["header"]


def test_a_long_name_gives_way() -> None:
    state = told(sample_run(1, pair={"name": "an/extremely-long-name-of-a-target+and-of-its-draft"})[:9])
    shown = seen(state, 60)["header"]
    assert shown.startswith("an/extremely")
    assert "… · K 4" in shown
    assert shown.endswith("01:23")


def test_the_header_has_the_k_that_is_drafted_now() -> None:
    events = sample_run(1)
    state = told([e if not isinstance(e, Round) or e.k is None else dataclasses.replace(e, k=7) for e in events])
    assert "K 7" in seen(state)["header"]
    assert "K auto" in seen(told(sample_run(1, k="auto")))["header"]


# The round


def _cells(app: Screen) -> list[str]:
    return [line[2:-2].rstrip() for line in lines(app.round)[1:-1]]


def _table(state: TuiState, width: int = 80) -> list[str]:
    found: list[str] = []

    async def act(app: Screen, pilot: Pilot[None]) -> None:
        app.show(state)
        await pilot.pause()
        found.extend([lines(app.round)[0], *_cells(app), lines(app.round)[-1]])

    on_screen(act, width)
    return found


def test_a_round_is_a_table_with_its_numbers() -> None:
    state = told(until_round(sample_run(), lambda r: 0 < r.num_accepted < 3))
    shown = state.shown
    assert shown is not None
    round = shown.round
    assert round.target_prob is not None
    assert round.draft_prob is not None
    assert round.uniforms is not None
    title, heading, *rows = _table(state)
    assert f"Round {round.index + 1} of {round.prompt_id} " in title
    assert heading.split() == ["token", "draft", "target", "ratio", "u"]
    for index in range(4):
        target, draft = round.target_prob[index], round.draft_prob[index]
        assert rows[index].startswith(f'{index + 1} "')
        numbers = [f"{draft:.3f}", f"{target:.3f}", f"{min(1, target / draft):.3f}", f"{round.uniforms[index]:.3f}"]
        assert f"{' '.join(f'{n:>6}' for n in numbers)} " in rows[index]
    accepted = round.num_accepted
    assert [row.split(" ", 1)[1].split('"')[-1].split(maxsplit=4)[4] for row in rows[:4]] == (
        ["✓ accepted"] * accepted + ["✗ rejected"] + ["· not judged"] * (3 - accepted)
    )
    assert rows[4].startswith('» corrected token "')
    assert f"{accepted} of 4 accepted + corrected" in rows[-1]


def test_wide_panels_say_why() -> None:
    state = told(until_round(sample_run(), lambda r: r.num_accepted < 3))
    shown = state.shown
    assert shown is not None
    rejected = shown.positions[shown.round.num_accepted]
    table = "\n".join(_table(state, 110))
    assert f"✗ rejected   {rejected.why}" in table
    assert ">=" in rejected.why
    assert "behind a rejected token" in table


def test_a_bonus_is_one() -> None:
    assert any(
        '⁺ bonus token "' in line for line in _table(told(until_round(sample_run(), lambda r: r.num_accepted == 4)))
    )


def test_greedy_rounds_have_no_ratio() -> None:
    _, heading, *rows = _table(told(until_round(sample_run(temperature=0.0), lambda r: r.num_accepted == 1)))
    assert heading.split() == ["token", "draft", "target"]
    assert rows[0].endswith("✓ accepted   the target's choice too")
    assert rows[1].endswith("✗ rejected   the target chose another")


def test_probabilities_that_nobody_has_are_dashes() -> None:
    events = [
        dataclasses.replace(e, draft_prob=None, target_prob=None, uniforms=None, alpha=None)
        if isinstance(e, Round)
        else e
        for e in sample_run(drafter="ngram")
    ]
    state = told(until_round(events, lambda r: r.num_accepted == 2))
    _, heading, *rows = _table(state)
    assert heading.split() == ["token", "draft", "target", "ratio"]
    assert all(re.search(r'" +-{1} +- +- [✓✗·]', row) for row in rows[:4])
    assert "alpha -" in seen(state)["acceptance"]


def test_a_long_draft_is_cut_and_says_so() -> None:
    state = told(until_round(sample_run(k=9), lambda r: r.num_accepted == 9))
    rows = _table(state)[2:-1]
    assert [row.split()[0] for row in rows[:6]] == ["1", "2", "3", "4", "5", "…"]
    assert rows[5] == "… 4 more"
    six = told(until_round(sample_run(k=6), lambda r: r.num_accepted == 6))
    assert [row.split()[0] for row in _table(six)[2:8]] == ["1", "2", "3", "4", "5", "6"]


def test_tokens_of_any_kind_stay_in_their_place() -> None:
    """Each of the hostile texts, where a drafted token stands."""
    state = told(hostile_run())
    begin, end = state.arms["SD"].transcript.begin, state.arms["SD"].transcript.end
    rounds = [number for number in range(begin, end) if state.arms["SD"].transcript.round_at(number)]

    async def act(app: Screen, pilot: Pilot[None]) -> None:
        for number in rounds:
            state.select(number)
            app.round.show(state)
            for line in lines(app.round):
                assert cell_len(line) == 50, line
                assert not [c for c in line if spelled(c) or c in "\n\t"], line

    on_screen(act, 50)
    assert len(rounds) > 5


# Step by step


def _rejecting(round: Round) -> bool:
    return round.num_accepted == 2


def test_the_draft_comes_first() -> None:
    state = stepped(sample_run(1), _rejecting, 0)
    title, _, *rows = _table(state)
    assert ", 1 of 3: draft ─" in title
    assert " s: next ─" in rows[-1]
    assert re.fullmatch(r'1 ".*" +\d\.\d{3} +· +· +·', rows[0])
    told_so = " ".join(rows[4:-1]).strip()
    assert re.match(r"The draft proposes 4 tokens, one after the other: 4 cheap passes \(\d\.\d+ ms\)\.", told_so)
    assert "corrected" not in told_so


def test_then_the_target_reads_it() -> None:
    state = stepped(sample_run(1), _rejecting, 1)
    _, _, *rows = _table(state)
    assert re.fullmatch(r'1 ".*" +\d\.\d{3} +\d\.\d{3} +\d\.\d{3} +·', rows[0])
    shown = state.shown
    assert shown is not None
    took = f"{shown.round.verify_seconds * 1e3:.2f} ms"
    assert f"The target reads all 4 at once, in one pass ({took}), and says" in " ".join(rows)


@pytest.mark.parametrize("width", [44, 80])
def test_then_the_rule_decides(width: int) -> None:
    state = stepped(sample_run(1), _rejecting, 2)
    shown = state.shown
    assert shown is not None
    rejected = shown.positions[2]
    lesson = seen(state, width)["round"]
    assert "Each is accepted with probability min(1, target/draft)" in lesson
    assert f"The first rejected one, 3 ({rejected.why}), is replaced by a token drawn" in lesson
    assert lesson.endswith("what stands behind it is thrown away.")


def test_lessons_fit_what_happened() -> None:
    def lesson(events: Sequence[Event], which: Callable[[Round], bool]) -> str:
        state = told(until_round(events, which))
        assert state.shown is not None
        return teaching(state.shown)

    sampled, greedy = sample_run(), sample_run(temperature=0.0)
    assert "All 4 are accepted" in lesson(sampled, lambda r: r.num_accepted == 4)
    assert "the bonus" in lesson(greedy, lambda r: r.num_accepted == 4)
    rejected = lesson(greedy, lambda r: r.num_accepted == 1)
    assert "The first that is not, 2, is replaced by the target's choice; what stands behind" in rejected
    assert "thrown away" not in lesson(sampled, lambda r: r.num_accepted == 3 == len(r.draft_tokens) - 1)
    one = lesson(sample_run(k=1), lambda r: r.num_accepted == 1)
    assert "It is accepted, and" in one
    state = told(until_round(sampled, lambda r: r.num_accepted == 4))
    assert state.shown is not None
    over = dataclasses.replace(state.shown, last=None)
    assert teaching(over).endswith("The text ends with an accepted one: nothing comes after it.")
    draft = state.shown.at("draft")
    assert "passes" not in teaching(draft, model_drafts=False)
    assert "The drafter proposes 4 tokens" in teaching(draft, model_drafts=False)


# Figures


def test_acceptance_is_that_of_the_run() -> None:
    events = sample_run()
    counts = AcceptanceCounts.of((e for e in events if isinstance(e, Round) and e.decoder != "AR"), greedy=False)
    assert counts.draft_acceptance_rate is not None
    assert counts.mean_acceptance_length is not None
    shown = seen(told(events))["acceptance"]
    assert shown.startswith(
        f"{counts.draft_acceptance_rate * 100:.0f} % accepted · {counts.mean_acceptance_length:.2f} tokens per round"
    )
    assert f"alpha {counts.alpha:.2f} · {counts.num_spec_steps} rounds" in shown
    for position, (rate, reached) in enumerate(
        zip(counts.acceptance_rate_per_pos, counts.conditional_acceptance_rate, strict=True), 1
    ):
        assert reached is not None
        assert re.search(rf" {position} [█▉▊▋▌▍▎▏]+░* {rate * 100:.0f} % {reached * 100:.0f} % if reached", shown)
    latest = re.search(r"last 50 ([▁▂▃▄▅▆▇█]+)$", shown)
    assert latest is not None
    rounds = [e for e in events if isinstance(e, Round) and e.draft_tokens and not e.cut]
    assert latest[1] == sparkline([r.num_accepted / 4 for r in rounds[-len(latest[1]) :]], UNICODE)


def test_more_positions_than_lines_are_counted() -> None:
    assert "… 5 more positions" in seen(told(sample_run(k=9)))["acceptance"]


@pytest.mark.parametrize("arm", ["SD", "AR"])
def test_phases_sum_to_the_round(arm: ArmName) -> None:
    events = sample_run()
    shown = seen(told(events), arm=arm)["phases"]
    rounds = [e for e in events if isinstance(e, Round) and (e.decoder == "AR") == (arm == "AR")]
    number = r"(\d+\.\d+)"
    rows = dict(
        (name, (float(lately), int(share), float(whole)))
        for name, lately, share, whole in re.findall(
            rf"(draft|verify|sample|overhead|total) [^\d]*{number} (\d+) % {number}", shown
        )
    )
    assert set(rows) == {"draft", "verify", "sample", "overhead", "total"}
    mean = sum(r.seconds for r in rounds[-50:]) / 50
    assert rows["total"][0] == pytest.approx(mean * 1e3, abs=0.006)
    assert rows["total"][2] == pytest.approx(sum(r.seconds for r in rounds) / len(rounds) * 1e3, abs=0.006)
    for column_number in (0, 2):
        parts = sum(row[column_number] for name, row in rows.items() if name != "total")
        assert parts == pytest.approx(rows["total"][column_number], abs=0.025)
    verify = sum(r.verify_seconds for r in rounds[-50:]) / 50
    assert rows["verify"][:2] == (pytest.approx(verify * 1e3, abs=0.006), round(verify / mean * 100))
    if arm == "AR":
        assert rows["draft"] == (0, 0, 0)


def test_speed_is_that_of_the_comparison() -> None:
    events = sample_run(7)
    shown = seen(told(events), 60)["speed"]
    compared = compare(fold(events), temperature=0.8)
    speedup, costs = compared.speedup_decode, compared.costs
    assert speedup is not None
    assert speedup.value is not None
    assert speedup.ci is not None
    assert costs is not None
    assert costs.speedup_predicted_with_ar_overhead is not None
    low, high = speedup.ci
    assert f"{speedup.value:.2f}x faster [{low:.2f}, {high:.2f}] · 7 prompts" in shown
    assert f"predicted {costs.speedup_predicted_with_ar_overhead:.2f}x · best K {costs.best_k} (" in shown
    assert compared.baseline is not None
    assert compared.speculative is not None
    assert re.search(rf"speculative \d+\.\d {compared.speculative.tokens_per_second:.1f} plain", shown)
    assert re.search(rf"plain \d+\.\d {compared.baseline.tokens_per_second:.1f} ", shown)


def test_an_interval_needs_five_prompts() -> None:
    shown = seen(told(sample_run(3)), 80)
    assert "x so far · no interval: 3 of 5 prompts" in shown["speed"]
    assert "no interval: 3 of 5 prompts" in shown["compact"]


def test_doubt_is_said_in_words() -> None:
    # Rounds that take about as long as what they yield, longer on every other prompt.
    slow = [
        dataclasses.replace(
            e, verify_seconds=0.00207 * len(e.emitted_tokens) * (1.1 if e.prompt_id[-1] == "1" else 0.9) - 0.0006
        )
        if isinstance(e, Round) and e.decoder != "AR"
        else e
        for e in sample_run(6)
    ]
    verdict = told(slow).figures.speedup
    assert verdict is not None
    assert verdict.verdict == "not distinguishable"
    shown = seen(told(slow), 60)["speed"]
    assert re.search(r"\d\.\d\dx \[\d\.\d\d, \d\.\d\d\] · not distinguishable", shown)
    slower = [
        dataclasses.replace(e, draft_seconds=0.02) if isinstance(e, Round) and e.decoder != "AR" else e
        for e in sample_run(6)
    ]
    worse = seen(told(slower), 60)["speed"]
    assert "x slower [" in worse
    assert "best K 0 (plain decoding)" in worse


def test_a_run_without_plain_decoding_has_no_speedup() -> None:
    shown = seen(told(sample_run(baseline=False)), 60)
    assert "plain - -" in shown["speed"]
    assert "speedup - · no text of both arms yet predicted -" in shown["speed"]


def test_a_race_shows_both_clocks() -> None:
    events = sample_run(1, num_tokens=40)
    begun = [e for e in events if isinstance(e, RunStarted | Prefilled)]
    state = told(begun)
    rounds = [e for e in events if isinstance(e, Round)]
    fast, slow = ([e for e in rounds if (e.decoder == "AR") == plain] for plain in (False, True))
    for event in (*fast[:3], *slow[:3]):
        state.apply(event)
    assert state.racing
    sd, ar = (state.arms[name].generation for name in ("SD", "AR"))
    assert sd is not None
    assert ar is not None
    assert sd.num_tokens > ar.num_tokens == 4
    shown = seen(state)["speed"]
    for name, generation in (("speculative", sd), ("plain", ar)):
        assert re.search(rf"{name} [█▉▊▋▌▍▎▏]+░* +{generation.num_tokens}/40 +{generation.seconds:.2f} s", shown)
    ended = [e for e in events if isinstance(e, PromptEnded) and e.decoder != "AR"]
    for event in fast[3:]:
        state.apply(event)
    state.apply(ended[0])
    assert re.search(r"speculative █+ 40/40 +\d\.\d\d s ✓ plain", seen(state)["speed"])


def test_the_device_has_what_is_known() -> None:
    state = _sampled()
    assert seen(state)["device"] == "cpu memory - · busy - · power -"
    state.apply(A_DEVICE)
    assert seen(state, 60)["device"] == "An EPYC memory 1.3 of 16.8 GB (8 %) · busy 71 % · power -"
    state.apply(Device("A GPU", 139 * 10**9, None, 0.0, 312.4))
    assert seen(state, 60)["device"] == "A GPU memory 139 GB · busy 0 % · power 312 W"


def test_a_small_terminal_has_the_figures_that_matter() -> None:
    state = told(sample_run(7))
    rate, length = state.acceptance.draft_acceptance_rate, state.acceptance.mean_acceptance_length
    assert rate is not None
    shown = seen(state, 80)["compact"]
    assert re.match(rf"accepted {rate * 100:.0f} % [█▉▊▋▌▍▎▏]+░* · {length:.2f} tokens per round", shown)
    assert re.search(r"SD \d+\.\d AR \d+\.\d tokens/s · \d\.\d\dx faster \[", shown)
    assert [int(share) for share in re.findall(r"(?:draft|verify|sample|overhead) (\d+) %", shown)] == [
        round(getattr(state.arms["SD"].recent, name) / state.arms["SD"].recent.seconds * 100)
        for name in ("draft", "verify", "sample", "overhead")
    ]


def test_a_coin_is_never_given_out_as_the_rule() -> None:
    caveat = "synthetic acceptance 0.5: the cost is real, the text is not the target's"
    changes = {"synthetic_acceptance": 0.5, "caveats": [caveat]}
    events = [
        dataclasses.replace(e, config=e.config | changes) if isinstance(e, RunStarted) else e for e in sample_run(1)
    ]
    state = stepped(events, lambda round: round.num_accepted < len(round.draft_tokens) and not round.cut, 2)
    assert state.shown is not None and state.shown.stage == "decision"
    lesson = teaching(state.shown)
    assert "A coin decides, not the target" in lesson and "is replaced by a token of the target's" in lesson
    assert "min(1" not in lesson and "underrates" not in lesson and "would have chosen" not in lesson
    wide = seen(state, 160)
    assert "synthetic acceptance 0.5" in wide["header"] and caveat in wide["speed"]
    narrow = seen(state, 44)
    assert "synthetic" in narrow["header"] and "synthetic acceptance 0.5: the cost" in narrow["speed"]
    assert "synthetic" not in seen(told(sample_run(1)), 160)["header"]


def test_the_speedup_says_what_it_is_without() -> None:
    events = [
        dataclasses.replace(e, interactive=True) if isinstance(e, PromptEnded) and e.prompt_id == last else e
        for last in [sample_run(3)[-2].prompt_id]  # type: ignore[union-attr]
        for e in sample_run(3)
    ]
    state = told(events)
    assert state.num_interactive == 2
    for width in (44, 60):
        assert "x so far without 2 interactive texts" in seen(state, width)["speed"].replace(" · ", " ")
    assert "without" not in seen(told(sample_run(3)), 60)["speed"]


def test_the_best_k_is_shown_where_it_advisable() -> None:
    state = told(sample_run(7))
    figures = state.figures
    assert figures.costs is not None and figures.costs.best_k_is_advisable
    now = figures.costs.speedup_predicted_with_ar_overhead
    assert now is not None
    less = dataclasses.replace(figures.costs, best_k=2, best_k_speedup_predicted=now - 0.1)
    assert not less.best_k_is_advisable
    assert dataclasses.replace(less, best_k_speedup_predicted=now + 0.1).best_k_is_advisable
    assert "best K" in seen(state, 60)["speed"]
