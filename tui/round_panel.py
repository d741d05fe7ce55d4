"""One round, a line for each drafted token, and in words what happens in it."""

from __future__ import annotations

from rich.cells import cell_len

from specprof.profiling.numbers import count, milliseconds
from specprof.profiling.pieces import KIND_WORDS
from specprof.tui.bars import Glyphs, Line, column, cut, inline, quoted, wrapped
from specprof.tui.page import MUTED, VERDICT_STYLES, prob
from specprof.tui.panel import Panel
from specprof.tui.rounds import COIN, STAGES, Position, RoundView
from specprof.tui.state import TuiState


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
        took = milliseconds(round.draft_seconds)
        if not model_drafts:
            return f"The drafter proposes {count(k, 'token')} ({took} ms); the target has seen none of them."
        if k == 1:
            return f"The draft proposes 1 token: 1 cheap pass ({took} ms)."
        return f"The draft proposes {k} tokens, one after the other: {k} cheap passes ({took} ms)."
    if shown.stage == "verify":
        them = "it" if k == 1 else f"all {k} at once"
        each = "it" if k == 1 else "each"
        took = milliseconds(round.verify_seconds)
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
