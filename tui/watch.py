"""The main screen: what is generated, round by round, and what it costs."""

from __future__ import annotations

from typing import Protocol

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.widgets import Footer

from specprof.profiling.feed import Control
from specprof.tui.header_bar import HeaderBar
from specprof.tui.panels import AcceptancePanel, CompactBar, DevicePanel, PhasePanel, SignsPanel, SpeedPanel
from specprof.tui.round_panel import RoundPanel
from specprof.tui.state import ArmName, TuiState
from specprof.tui.stream import TokenStream


class Watched(Protocol):
    """What the screen is of."""

    state: TuiState
    control: Control

    @property
    def live(self) -> bool:
        """Whether an engine decodes; else a saved run is shown once more."""
        ...

    def pending(self) -> str:
        """What was asked for and has not come into effect."""
        ...


class WatchScreen(Screen[None]):
    """Shows a state; what keys do to the engine is the app's."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (81, "-stacked"), (120, "-wide")]  # noqa: RUF012  # Textual's own type
    VERTICAL_BREAKPOINTS = [(0, "-short"), (24, "-medium"), (38, "-tall")]  # noqa: RUF012

    BINDINGS = [  # noqa: RUF012
        Binding("space", "app.pause", "pause"),
        Binding("s", "app.step", "step"),
        Binding("n", "app.skip", "next"),
        Binding("d", "app.details", "details"),
        Binding("e", "app.explain", "explain"),
        Binding("question_mark", "app.help", "help", key_display="?"),
        Binding("q", "app.quit", "quit"),
        Binding("plus,equals_sign", "app.change_k(1)", "K", key_display="+/-"),
        Binding("minus", "app.change_k(-1)", "K -1", show=False),
        Binding("right_square_bracket", "app.change_temperature(0.1)", "temperature", key_display="[/]", show=False),
        Binding("left_square_bracket", "app.change_temperature(-0.1)", "temperature -0.1", show=False),
        Binding("greater_than_sign,full_stop", "app.change_pace(2)", "faster replay", show=False),
        Binding("less_than_sign,comma", "app.change_pace(0.5)", "slower replay", show=False),
        Binding("b", "switch_arm", "plain"),
        Binding("f", "fold", "fold"),
        Binding("r", "app.race", "race"),
        Binding("left", "select(-1)", "round before", show=False),
        Binding("right", "select(1)", "round after", show=False),
        Binding("escape", "follow", "latest round", show=False),
        Binding("w", "app.save_report", "report"),
        Binding("y", "app.copy_round", "copy", show=False),
        Binding("x", "app.take_screenshot", "screenshot", show=False),
        Binding("t", "app.next_theme", "theme", show=False),
        Binding("m", "app.menu", "new run"),
    ]

    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self._watched = watched
        self._arm: ArmName = "SD"
        self._shown: tuple[object, ...] | None = None
        self._titles: dict[str | None, tuple[object, ...]] = {}

    def compose(self) -> ComposeResult:
        yield HeaderBar(id="header")
        with Horizontal(id="body"):
            with Vertical(id="main"):
                with Horizontal(id="streams"):
                    yield TokenStream(id="stream")
                    yield TokenStream(id="rival")
                yield RoundPanel(id="round")
            with Vertical(id="side"):
                yield AcceptancePanel(id="acceptance")
                yield PhasePanel(id="phases")
                yield SpeedPanel(id="speed")
                yield DevicePanel(id="device")
                yield SignsPanel(id="signs")
        yield CompactBar(id="compact")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one("#stream").focus()
        self.show()

    def on_resize(self) -> None:
        self.call_after_refresh(self.show)

    def show(self) -> None:
        """Draw what has changed since the last time."""
        state, control = self._watched.state, self._watched.control
        now = (state.revision, self._arm, control, self._has_signs)
        if now == self._shown:
            return
        self._shown = now
        with self.app.batch_update():
            self._show(state, control)

    def _show(self, state: TuiState, control: Control) -> None:
        self.query_one(HeaderBar).show(
            state,
            elapsed=state.measured_seconds,
            live=self._watched.live,
            pace=control.pace,
            pending=self._watched.pending(),
        )
        self._show_streams(state)
        self.query_one(RoundPanel).show(state)
        self.query_one(AcceptancePanel).show(state)
        self.query_one(PhasePanel).show(state, self._arm)
        self.query_one(SpeedPanel).show(state)
        self.query_one(DevicePanel).show(state)
        self.query_one(CompactBar).show(state)

    def _show_streams(self, state: TuiState) -> None:
        other: ArmName = "AR" if self._arm == "SD" else "SD"
        shown, elsewhere = state.arms[self._arm], state.arms[other]
        self.set_class(state.racing, "-racing")
        stream = self.query_one("#stream", TokenStream)
        stream.show(shown.transcript, state.selected if self._arm == "SD" and not state.follows else None)
        if elsewhere.generation is not None and elsewhere.decoding and not shown.decoding:
            # A still screen needs a word.
            words = f"{_title(other)} has its turn: {elsewhere.generation.num_tokens} tokens"
        else:
            words = ""
        self._entitle(stream, self._arm, words)
        if state.racing:
            rival = self.query_one("#rival", TokenStream)
            rival.show(elsewhere.transcript, None)
            self._entitle(rival, other, "")

    def _entitle(self, stream: TokenStream, arm: ArmName, words: str) -> None:
        """Only if it differs: a new title has the whole text drawn again."""
        titles = (arm, words, self.app.theme, self._has_signs)
        if self._titles.get(stream.id) == titles:
            return
        self._titles[stream.id] = titles
        stream.border_title = _title(arm)
        legend = stream.legend() if arm == "SD" and not self._has_signs else ""
        stream.border_subtitle = words or legend

    @property
    def _has_signs(self) -> bool:
        """Whether a panel of its own tells what signs mean."""
        return self.has_class("-wide") and self.has_class("-tall")

    def action_fold(self) -> None:
        for stream in self.query(TokenStream):
            stream.folded = not stream.folded

    def action_switch_arm(self) -> None:
        self._arm = "AR" if self._arm == "SD" else "SD"
        self.show()

    def action_select(self, step: int) -> None:
        self._watched.state.select_neighbour(-1 if step < 0 else 1)
        self._arm = "SD"
        self.show()
        if (selected := self._watched.state.selected) is not None:
            self.query_one("#stream", TokenStream).bring_into_view(selected)

    def action_follow(self) -> None:
        self._watched.state.select(None)
        self.show()

    def on_token_stream_round_selected(self, message: TokenStream.RoundSelected) -> None:
        if self._arm == "SD":
            self._watched.state.select(message.number)
            self.show()


def _title(arm: ArmName) -> str:
    return "Speculative decoding" if arm == "SD" else "Plain decoding"
