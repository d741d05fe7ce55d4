"""The stream of tokens: any text in any width, appended or broken into lines anew, scrolled, selected, clicked."""

# ruff: noqa: RUF001  the signs of the stream are meant as they are
from __future__ import annotations

import asyncio
import dataclasses
import time
import tracemalloc
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.app import App, ComposeResult
from textual.color import Color
from textual.pilot import Pilot
from textual.strip import Strip

from sample_feed import hostile_run, hostile_texts, sample_run
from specprof.profiling.events import Event, PromptEnded, Round
from specprof.profiling.feed import Prompts, PromptText, Texts
from specprof.profiling.pieces import KIND_WORDS, Kind, Piece
from specprof.profiling.signs import visible
from specprof.tui.lines import FANCY, Line, Lines, Signs
from specprof.tui.state import TuiState
from specprof.tui.stream import TokenStream
from specprof.tui.transcript import Entry, Gap, Heading, Tokens, Transcript


class Screen(App[None]):
    """A stream and nothing else."""

    CSS = "TokenStream { width: 100%; height: 100%; }"

    def __init__(self, transcript: Transcript | None = None) -> None:
        super().__init__()
        self.stream = TokenStream(transcript)
        self.clicked: list[int] = []

    def compose(self) -> ComposeResult:
        yield self.stream

    def on_token_stream_round_selected(self, message: TokenStream.RoundSelected) -> None:
        self.clicked.append(message.number)


def on_screen(app: Screen, act: Callable[[Pilot[None]], Awaitable[None]], size: tuple[int, int] = (40, 12)) -> None:
    """Run a few actions on an app that draws for real, onto nothing."""

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await act(pilot)

    asyncio.run(run())


def drawn(stream: TokenStream) -> list[str]:
    """What stands on the screen, line by line, spaces at the end left out."""
    return [stream.render_line(y).text.rstrip() for y in range(stream.size.height)]


def at_end(stream: TokenStream) -> bool:
    """Whether it stays at the end, where it is then."""
    assert not stream.follows or stream.scroll_offset.y == stream.max_scroll_y
    return stream.follows


def round_of(*kinds: Kind, index: int = 0) -> Round:
    drafted = sum(kind in ("accepted", "rejected") for kind in kinds)
    accepted = kinds.count("accepted")
    return Round("p", "SD-K4", 0, index, (7,) * drafted, accepted, (7,) * (accepted + 1), 0.1, 0.1, 0.1, 0.1)


def tokens(*pieces: tuple[str, Kind]) -> Tokens:
    """A round whose pieces these are."""
    made = tuple(Piece(text, kind) for text, kind in pieces)
    return Tokens(made, round_of(*(kind for _, kind in pieces)))


def filled(number: int, most: int = 10_000) -> Transcript:
    """Of rounds that take a line of 20 cells or so each."""
    transcript = Transcript(most)
    for i in range(number):
        transcript.add(tokens((f"round {i:05} with", "accepted"), ("x\n", "bonus")))
    return transcript


def told(events: Sequence[Event], prompt: str = "") -> TuiState:
    """A state that has taken all of a run."""
    state = TuiState()
    ids = dict.fromkeys(event.prompt_id for event in events if isinstance(event, Round))
    state.apply(Prompts(tuple(PromptText(prompt_id, "code", prompt) for prompt_id in ids)))
    texts = [event.token_texts for event in events if isinstance(event, PromptEnded) and event.token_texts]
    state.apply(Texts({token: text for each in texts for token, text in each.items()}))
    for event in events:
        state.apply(event)
    return state


def broken(
    entries: Sequence[Entry], width: int, signs: Signs = FANCY, *, folded: bool = False
) -> list[list[tuple[str, str, int]]]:
    """All entries as lines, at once."""
    lines = Lines(width, signs, folded=folded)
    for number, entry in enumerate(entries):
        lines.add(number, entry)
    return contents(lines)


def contents(lines: Lines) -> list[list[tuple[str, str, int]]]:
    return [list(line.runs) for n in range(lines.forgotten, lines.end) if (line := lines.at(n)) is not None]


def texts_of(entries: Sequence[Entry], width: int = 40, signs: Signs = FANCY) -> list[str]:
    return ["".join(text for text, _, _ in runs) for runs in broken(entries, width, signs)]


def shows_itself(text: str) -> bool:
    return not any(
        unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} or c == "\N{VARIATION SELECTOR-16}" for c in text
    )


# What stands where


def test_signs_say_what_became_of_a_token() -> None:
    entries: list[Entry] = [
        Heading("code-03", "code", "def f(x):", 3),
        Tokens((Piece(" a", "first"),)),
        tokens((" b", "accepted"), (" c", "rejected"), (" d", "rejected"), (" e", "rejected"), (" f", "corrected")),
        tokens((" g", "accepted"), (" h", "bonus")),
        tokens((" i", "rejected"), ("\n", "corrected")),
        Tokens((Piece("j", "plain"),)),
    ]
    assert texts_of(entries) == [
        "── 3  code-03  (code) " + "─" * 17,
        "│ def f(x):",
        " a b‹ c¦ d e›» f g⁺ h‹ i›»⏎",
        "j",
    ]
    looks = {text: look for text, look, _ in broken(entries, 40)[2]}
    assert looks[" c"] == "rejected" and looks[" d e"] == "unjudged" and looks["›»"] == "sign"


def test_a_sign_is_a_cell() -> None:
    assert {cell_len(sign) for sign in _all(FANCY)} == {1}


def _all(signs: Signs) -> str:
    values = [getattr(signs, field.name) for field in dataclasses.fields(signs)]
    return "".join("".join(value) for value in values)


def test_headings_and_gaps_have_lines_of_their_own() -> None:
    prompt = "first line\nsecond line\n\nthird line\n \nfourth\tline\n"
    entries: list[Entry] = [
        tokens(("ab", "accepted"), ("c", "bonus")),
        Gap(),
        tokens(("d", "accepted"), ("e", "bonus")),
    ]
    entries.append(Heading("p\n1", None, prompt, 2))
    assert texts_of(entries, 30) == [
        "ab⁺c",
        "⋯ some rounds were not shown ⋯"[:29],
        "⋯",
        "d⁺e",
        "",
        "── 2  p 1 " + "─" * 19,
        "│ …second line⏎",
        "│ third line⏎",
        "│ fourth→line⏎",
    ]


def test_a_long_prompt_is_shown_by_its_end() -> None:
    lines = texts_of([Heading("p", None, "word " * 10_000 + "the end", 1)], 40)
    assert len(lines) == 4 and lines[1].startswith("│ …") and lines[-1].endswith("the end")
    assert all(cell_len(line) <= 39 for line in lines)


def test_an_unknown_prompt_takes_no_line() -> None:
    assert len(texts_of([Heading("p", "code", "", 1)])) == 1


def test_a_prompt_of_blank_lines_takes_no_line() -> None:
    assert len(texts_of([Heading("p", None, "\n \n\n\n", 1)])) == 1


def test_newlines_and_tabs() -> None:
    assert texts_of([tokens(("a\n\n\tb\r\n", "accepted"), ("\tc", "bonus"))]) == ["a⏎", "⏎", "→   b\\u{d}⏎", "⁺→  c"]


def test_what_was_rejected_ends_no_line() -> None:
    assert texts_of([tokens(("a\n\tb", "rejected"), ("c", "corrected"))]) == ["‹a⏎→b›»c"]
    assert texts_of([tokens(("", "rejected"), ("", "corrected"))]) == ["‹·›»"]


def test_a_sign_stays_beside_its_token() -> None:
    # 9 cells for text, 10 with a sign that hangs over.
    assert texts_of([tokens(("12345678", "accepted"), ("a", "bonus"))], 10) == ["12345678", "⁺a"]
    assert texts_of([tokens(("123456789\n", "accepted"), ("a", "bonus"))], 10) == ["123456789⏎", "⁺a"]
    assert texts_of([tokens(("12345678", "rejected"), ("a", "corrected"))], 10) == ["‹12345678›", "»a"]


def test_short_words_stay_whole() -> None:
    # 19 cells for text
    assert texts_of([tokens((" later in the year", "accepted"), (" trains", "accepted"), (" x", "bonus"))], 20) == [
        " later in the year ",
        "trains⁺ x",
    ]
    assert texts_of([tokens(("later in the year", "accepted"), (" trains", "rejected"), (" be", "corrected"))], 20) == [
        "later in the year",
        "‹ trains›» be",
    ]
    assert texts_of([tokens(("at last", "accepted"), (" extraordinarily", "accepted"), (" x", "bonus"))], 20) == [
        "at last extraordina",
        "rily⁺ x",
    ]
    assert texts_of([tokens(("à la fin de", "accepted"), (" l'année", "accepted"), (" x", "bonus"))], 16) == [
        "à la fin de ",
        "l'année⁺ x",
    ]


def test_what_was_rejected_can_be_folded() -> None:
    entries: list[Entry] = [
        tokens((" b", "accepted"), (" c", "rejected"), (" d", "rejected"), (" e", "rejected"), (" f", "corrected")),
        tokens((" g", "rejected"), (" h", "corrected")),
        tokens((" i", "accepted"), (" j", "bonus")),
        Tokens((Piece(" k", "rejected"),)),
    ]
    (line,) = broken(entries, 40, folded=True)
    assert "".join(text for text, _, _ in line) == " b‹+3›» f‹+1›» h i⁺ j‹+1›"


def test_wide_and_combining_characters_stay_whole() -> None:
    wide = texts_of([tokens(("漢字漢字漢字", "accepted"), ("e\u0301\u0301", "bonus"))], 6)
    assert wide == ["漢字", "漢字", "漢字", "⁺e\u0301\u0301"]
    # a mark that has nothing to stand on, and one whose base was another token
    assert texts_of([tokens(("a", "accepted"), ("\u0301", "bonus"))], 9) == ["a⁺◌\u0301"]
    assert texts_of([tokens(("e", "accepted"), ("\u0301", "accepted"), ("", "bonus"))], 9) == ["e\u0301⁺"]


@pytest.mark.parametrize("signs", [FANCY], ids=["fancy"])
@pytest.mark.parametrize("width", [0, 1, 5, 17, 60, 200])
def test_hostile_texts_stay_inside_their_lines(width: int, signs: Signs) -> None:
    pairs = [(text, kind) for text in hostile_texts().values() for kind in KIND_WORDS]
    entries: list[Entry] = [Tokens((Piece(text, kind),)) for text, kind in pairs]
    entries += [Heading(text, text, text * 2, 1) for text in hostile_texts().values()]
    for line in texts_of(entries, width, signs):
        assert cell_len(line) <= max(width, 4)
        assert shows_itself(line)


_CHARACTERS = st.sampled_from("ab \n\t漢🙂é\u0301\u200d\ufe0f\u202e\x1b\udcff")
_TEXT = st.one_of(
    st.text(_CHARACTERS, max_size=6), st.text(max_size=4), st.sampled_from(list(hostile_texts().values())[:-2])
)
_PIECES = st.lists(st.tuples(_TEXT, st.sampled_from(list(KIND_WORDS))), max_size=6)
_ENTRIES = st.lists(
    st.one_of(
        _PIECES.map(lambda pieces: Tokens(tuple(Piece(text, kind) for text, kind in pieces))),
        st.builds(Heading, _TEXT, st.none() | _TEXT, _TEXT, st.just(1)),
        st.just(Gap()),
    ),
    max_size=12,
)


@settings(max_examples=80, deadline=None)
@given(_ENTRIES, st.integers(0, 50), st.integers(1, 8), st.integers(1, 5), st.booleans())
def test_appending_is_breaking_anew(entries: list[Entry], width: int, most: int, batch: int, folded: bool) -> None:
    """Whatever is kept is what it was before older lines were forgotten, and each entry knows its lines."""
    transcript, lines, taken = Transcript(most), Lines(width, folded=folded), 0
    for begin in range(0, len(entries), batch):
        for entry in entries[begin : begin + batch]:
            transcript.add(entry)
        if transcript.begin >= max(taken, 1):
            return  # nothing is left of what was there: then it is another text
        lines.forget(transcript.begin)
        for entry in transcript.since(taken):
            lines.add(taken, entry)
            taken += 1
    everything = broken(entries, width, folded=folded)
    assert lines.end == len(everything)
    assert contents(lines) == everything[lines.forgotten :]
    for number in range(transcript.begin, transcript.end):
        has = [n for n, runs in enumerate(everything) if any(run[2] == number for run in runs)]
        if has:
            known = lines.lines_of(number)
            following = [n for n, runs in enumerate(everything) if any(run[2] > number for run in runs)]
            assert known.start == max(has[0], lines.forgotten)
            assert has[-1] < known.stop <= min([*following, len(everything) - 1]) + 1
    for runs in everything:
        text = "".join(text for text, _, _ in runs)
        assert sum(cell_len(part) for part, _, _ in runs) == cell_len(text) <= max(width, 4)
        assert shows_itself(text)


@settings(max_examples=60, deadline=None)
@given(_PIECES, st.integers(6, 50), st.booleans())
def test_no_character_is_lost(pieces: list[tuple[str, Kind]], width: int, folded: bool) -> None:
    emitted = [(text, kind) for text, kind in pieces if kind != "rejected"]
    entry = Tokens(tuple(Piece(text, kind) for text, kind in pieces))
    runs = [run for line in broken([entry], width, folded=folded) for run in line]
    shown = "".join(text for text, look, _ in runs if look not in ("sign", "rejected", "unjudged"))
    expected = "".join(visible(text) for text, _ in emitted)
    for left_out in "\n\t \N{VARIATION SELECTOR-16}\N{DOTTED CIRCLE}":  # signs, stops of tabs
        shown, expected = shown.replace(left_out, ""), expected.replace(left_out, "")
    assert "".join(shown) == "".join(c for c in expected if not "\ufe00" <= c <= "\ufe0f")


def test_only_what_fits_is_kept() -> None:
    """40,000 tokens: memory does not grow, and the last ones take no longer than the first ones."""
    transcript, lines, taken = Transcript(), Lines(100), 0
    entry = tokens((" four", "accepted"), (" more", "accepted"), (" words\n", "rejected"), (" here", "corrected"))
    seconds, held = [], []
    tracemalloc.start()
    try:
        for _ in range(10):
            begin = time.process_time()
            for _ in range(1000):
                transcript.add(entry)
                for new in transcript.since(taken):
                    lines.add(taken, new)
                    taken += 1
                lines.forget(transcript.begin)
            seconds.append(time.process_time() - begin)
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert taken == 10_000
    assert lines.end - lines.forgotten < 1000
    assert held[-1] < held[1] * 1.2 + 50_000
    assert min(seconds[5:]) < 3 * min(seconds[:5])


# On the screen


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 40), (200, 60)])
def test_every_line_is_as_wide_as_the_stream(size: tuple[int, int]) -> None:
    state = told(hostile_run(2, temperature=0.8), prompt="\x1b[2J[bold]漢\u0301\t" * 30)
    app = Screen(state.arms["SD"].transcript)

    async def act(pilot: Pilot[None]) -> None:
        stream = app.stream
        width = stream.scrollable_content_region.width
        assert width == size[0] - 1
        stream.show(state.arms["SD"].transcript, state.selected)
        for y in range(0, stream.virtual_size.height, size[1]):
            stream.scroll_to(y=y, animate=False)
            await pilot.pause()
            for line in range(stream.size.height):
                strip = stream.render_line(line)
                assert strip.cell_length == width
                assert sum(cell_len(segment.text) for segment in strip) == width
                assert shows_itself(strip.text)
        assert "\x1b" not in app.export_screenshot()

    on_screen(app, act, size)


def test_arms_of_a_run_read_as_their_text() -> None:
    """What stands there in order is what was generated."""
    state = told(sample_run(1, temperature=0.8), prompt="def longest_run(items):")
    transcript = state.arms["SD"].transcript
    app = Screen()

    async def act(pilot: Pilot[None]) -> None:
        app.stream.show(transcript)
        await pilot.pause()
        lines = drawn(app.stream)
        assert lines[0].startswith("  ── 1  code_000  (code) ─")
        assert lines[1] == "  │ def longest_run(items):"
        assert any("⏎" in line for line in lines[2:])

    on_screen(app, act, (100, 60))


def test_it_follows_the_end_unless_somebody_reads() -> None:
    transcript = filled(100)
    app = Screen(transcript)

    async def act(pilot: Pilot[None]) -> None:
        stream = app.stream
        stream.focus()
        stream.show(transcript)
        await pilot.pause()
        assert at_end(stream) and "round 00099" in drawn(stream)[-1]
        transcript.add(tokens(("more", "accepted"), ("x\n", "bonus")))
        stream.show(transcript)
        assert "more" in drawn(stream)[-1]
        await pilot.press("pageup")
        await pilot.wait_for_scheduled_animations()
        before = drawn(stream)
        assert not at_end(stream) and "round 00099" not in before[-1]
        transcript.add(tokens(("and more", "accepted"), ("x\n", "bonus")))
        stream.show(transcript)
        await pilot.pause()
        assert drawn(stream) == before
        await pilot.press("end")
        await pilot.pause()
        assert at_end(stream) and "and more" in drawn(stream)[-1]
        await pilot.press("home")
        await pilot.wait_for_scheduled_animations()
        assert "round 00000" in drawn(stream)[0]
        stream.scroll_to(y=stream.max_scroll_y, animate=False)
        transcript.add(tokens(("the last", "accepted"), ("x\n", "bonus")))
        stream.show(transcript)
        assert at_end(stream) and "the last" in drawn(stream)[-1]

    on_screen(app, act)


def test_reading_goes_on_while_the_oldest_is_forgotten() -> None:
    transcript = filled(100, most=100)
    app = Screen(transcript)

    async def act(pilot: Pilot[None]) -> None:
        stream = app.stream
        stream.show(transcript)
        stream.scroll_to(y=50, animate=False)
        before = drawn(stream)
        assert "round 00050" in before[0]
        for _ in range(30):
            transcript.add(tokens(("more", "accepted"), ("x\n", "bonus")))
            stream.show(transcript)
        await pilot.pause()
        assert stream.virtual_size.height == 100
        assert drawn(stream) == before
        for _ in range(60):  # until it is gone
            transcript.add(tokens(("more", "accepted"), ("x\n", "bonus")))
            stream.show(transcript)
        assert "round 00090" in drawn(stream)[0]
        for _ in range(500):  # more than are kept, at once
            transcript.add(tokens(("another", "accepted"), ("x\n", "bonus")))
        stream.show(transcript)
        assert "another" in drawn(stream)[0] and stream.virtual_size.height == 100

    on_screen(app, act)


@pytest.mark.parametrize("reads", [False, True], ids=["follows", "reads"])
def test_another_size_keeps_the_place(reads: bool) -> None:
    transcript = Transcript()
    for i in range(200):
        transcript.add(tokens((f" round {i:05} and what it brought", "accepted"), (" x", "bonus")))
    app = Screen(transcript)

    async def act(pilot: Pilot[None]) -> None:
        stream = app.stream
        stream.show(transcript)
        if reads:
            stream.scroll_to(y=40, animate=False)
        await pilot.pause()
        first = stream._lines.at(40)
        assert first is not None
        for size in [(200, 60), (60, 20), (30, 8), (81, 30)]:
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert stream.render_line(0).cell_length == size[0] - 1
            assert contents(stream._lines) == broken(transcript.since(0), size[0] - 3)
            if reads and stream.max_scroll_y > stream.scroll_offset.y:
                assert not at_end(stream)
                assert f"round {first.runs[0][2]:05}" in "".join(drawn(stream)[:3])
            else:
                assert stream.scroll_offset.y == stream.max_scroll_y
                assert "round 00199" in "".join(line[2:] for line in drawn(stream))

    on_screen(app, act, (60, 20))


def test_the_selected_round_is_set_off() -> None:
    transcript = filled(8)
    app = Screen(transcript)

    async def act(pilot: Pilot[None]) -> None:
        stream = app.stream
        stream.show(transcript, 3)
        marks = [line[0:1] for line in drawn(stream)]
        assert marks[:5] == [" ", " ", " ", "▌", " "]
        own = next(s.style for s in stream.render_line(3) if "round" in s.text)
        other = next(s.style for s in stream.render_line(2) if "round" in s.text)
        assert own is not None and other is not None and own.bgcolor != other.bgcolor and own.color == other.color
        stream.show(transcript, 5)
        assert [line[0:1] for line in drawn(stream)][3:6] == [" ", " ", "▌"]
        stream.show(transcript, None)
        assert not any(line.startswith("▌") for line in drawn(stream))

    on_screen(app, act)


def test_folding_keeps_the_place() -> None:
    transcript = Transcript()
    for i in range(100):
        transcript.add(tokens((f"round {i:05}", "accepted"), (" rejected" * 8, "rejected"), ("x\n", "corrected")))
    app = Screen(transcript)

    async def act(pilot: Pilot[None]) -> None:
        stream = app.stream
        stream.show(transcript)
        stream.bring_into_view(50)
        await pilot.pause()
        line = stream._lines.at(stream.scroll_offset.y)
        assert line is not None
        (first,) = {run[2] for run in line.runs}
        for folded in (True, False):
            stream.folded = folded
            await pilot.pause()
            assert not at_end(stream) and f"round {first:05}" in drawn(stream)[0]
            assert ("‹+1›" in drawn(stream)[0]) == folded
        stream.action_scroll_end()
        stream.folded = True
        await pilot.pause()
        assert at_end(stream) and drawn(stream)[-1] == "  round 00099‹+1›»x⏎"

    on_screen(app, act)


def test_it_scrolls_to_a_round() -> None:
    transcript = filled(100)
    app = Screen(transcript)

    async def act(pilot: Pilot[None]) -> None:
        stream = app.stream
        stream.show(transcript)
        stream.bring_into_view(20)
        assert not at_end(stream) and "round 00020" in drawn(stream)[4]
        before = stream.scroll_offset
        stream.bring_into_view(22)  # is there already
        assert stream.scroll_offset == before
        stream.bring_into_view(99)
        assert at_end(stream) and "round 00099" in drawn(stream)[-1]
        stream.bring_into_view(0)
        assert "round 00000" in drawn(stream)[0]
        stream.bring_into_view(98)
        assert "round 00098" in drawn(stream)[-2]
        stream.bring_into_view(1000)  # there is none
        assert at_end(stream)

    on_screen(app, act)


def test_a_click_selects_a_round() -> None:
    transcript = Transcript()
    transcript.add(Heading("p", None, "", 1))
    transcript.add(Tokens((Piece("first", "first"),)))
    transcript.add(tokens((" abc", "accepted"), (" d", "bonus")))
    transcript.add(Tokens((Piece(" plain", "plain"),), round_of("plain")))
    transcript.add(tokens((" 漢字", "rejected"), (" e", "corrected")))
    app = Screen(transcript)

    async def act(pilot: Pilot[None]) -> None:
        app.stream.show(transcript)
        assert drawn(app.stream)[1] == "  first abc⁺ d plain‹ 漢字›» e"
        for x, y in [(4, 0), (3, 1), (0, 1), (8, 1), (15, 1), (24, 1), (36, 1), (5, 6)]:
            await pilot.click(TokenStream, offset=(x, y))
        await pilot.pause()
        assert app.clicked == [2, 4]

    on_screen(app, act)


def test_another_transcript_is_shown_from_its_end() -> None:
    app = Screen()

    async def act(pilot: Pilot[None]) -> None:
        stream, one, other = app.stream, filled(100), filled(3)
        stream.show(one)
        stream.scroll_to(y=10, animate=False)
        stream.show(other, 1)
        await pilot.pause()
        assert drawn(stream)[:4] == [
            "  round 00000 with⁺x⏎",
            "▌ round 00001 with⁺x⏎",
            "  round 00002 with⁺x⏎",
            "",
        ]
        stream.show(Transcript())
        assert not any(drawn(stream)) and stream.virtual_size.height == 0
        stream.show(one)
        assert stream.follows and "round 00099" in drawn(stream)[-1]

    on_screen(app, act)


def test_only_new_lines_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    transcript = filled(5)
    app = Screen(transcript)
    lines: list[Line | None] = []
    draw = TokenStream._strip

    def noted(stream: TokenStream, line: Line) -> Strip:
        lines.append(line)
        return draw(stream, line)

    monkeypatch.setattr(TokenStream, "_strip", noted)

    async def act(pilot: Pilot[None]) -> None:
        stream = app.stream
        stream.show(transcript, 3)
        await pilot.pause()
        lines.clear()
        stream.show(transcript, 3)
        await pilot.pause()
        assert lines == []
        transcript.add(tokens(("new", "accepted"), ("x", "bonus")))
        stream.show(transcript, 3)
        await pilot.pause()
        assert lines == [stream._lines.at(4), stream._lines.at(5)]
        for _ in range(40):
            transcript.add(tokens(("new", "accepted"), ("x\n", "bonus")))
        stream.show(transcript, 3)
        await pilot.pause()
        lines.clear()
        transcript.add(tokens(("new", "accepted"), ("x\n", "bonus")))
        stream.show(transcript, 3)
        await pilot.pause()  # all of them move up, two have changed
        assert 0 < len(lines) <= 2

    on_screen(app, act, (40, 20))


def test_nothing_is_laid_out_again_for_a_line_more(monkeypatch: pytest.MonkeyPatch) -> None:
    transcript = filled(50)
    app = Screen(transcript)

    async def act(pilot: Pilot[None]) -> None:
        app.stream.show(transcript)
        await pilot.pause()
        laid_out: list[object] = []
        refresh = app.screen._refresh_layout

        def noted(*args: Any) -> None:
            laid_out.append(args)
            refresh(*args)

        monkeypatch.setattr(app.screen, "_refresh_layout", noted)
        for _ in range(5):
            transcript.add(tokens(("new", "accepted"), ("x\n", "bonus")))
            app.stream.show(transcript)
            await pilot.pause()
        assert laid_out == []
        assert app.stream.vertical_scrollbar.window_virtual_size == 55

    on_screen(app, act)


def _luminance(color: Color) -> float:
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in color.normalized)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colours_can_be_read_in_every_theme() -> None:
    app = Screen(filled(3))

    async def act(pilot: Pilot[None]) -> None:
        for theme in app.available_themes:
            app.theme = theme
            await pilot.pause()
            colours = {span.style: span for span in app.stream.legend().spans}
            assert len(colours) >= 5
            for look in ("accepted", "corrected", "bonus", "rejected"):
                style = app.stream._style(look)
                assert style.color is not None and style.bgcolor is not None
                if style.color.triplet is None or style.bgcolor.triplet is None:
                    assert theme.startswith("ansi")
                    continue
                levels = sorted(_luminance(Color.from_rich_color(each)) for each in (style.color, style.bgcolor))
                assert (levels[1] + 0.05) / (levels[0] + 0.05) >= 4, (theme, look)

    on_screen(app, act)


def test_the_legend_shows_each_sign() -> None:
    app = Screen()

    async def act(pilot: Pilot[None]) -> None:
        assert app.stream.legend().plain == "accepted  ‹rejected¦not judged›  »corrected  ⁺bonus"

    on_screen(app, act)
