"""The start screen: what can be chosen, by keys alone and by mouse, in windows of all sizes."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Input

from specprof.profiling.feed import AUTO_K
from specprof.tui.choices import PACKAGED, Choice, Entries, Offer, PairOffer, parse_k, parse_temperature, show_k
from specprof.tui.start import CHOSEN, NOT_CHOSEN, StartScreen

OFFER = Offer(
    (
        PairOffer("tiny_dev", "tiny_dev/draft for tiny_dev/target", True, "Packaged: runs anywhere."),
        PairOffer("gpt2_dev", "gpt2 for gpt2-xl", False, "124M for 1.5B."),
        PairOffer("[red]own[/]\x1b[2J", "./a for ./b\u202e", None, "[link=x]notes"),
    ),
    ("code", "conversation", "summarization"),
    ("model", "ngram", "layerskip", "self", "random"),
)
OWN, FILE, TEXT = 3, 4, 5
"""Lines of the lists that open a field."""
SIZES = [(120, 40), (80, 24), (60, 20)]


class Alone(App[Choice]):
    """The start screen and nothing else."""

    def __init__(self, choice: Choice, offer: Offer) -> None:
        super().__init__()
        self.start = StartScreen(offer, choice)

    def on_mount(self) -> None:
        self.push_screen(self.start, self.exit)


Acting = Callable[[Pilot[Choice], StartScreen], Awaitable[Any]]


def shown(
    act: Acting,
    choice: Choice = Choice("tiny_dev"),  # noqa: B008  # frozen
    *,
    size: tuple[int, int] = (80, 24),
    offer: Offer = OFFER,
) -> Choice | None:
    """What the screen was dismissed with after something was done to it."""
    app = Alone(choice, offer)

    async def use() -> None:
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await act(pilot, app.start)
            await pilot.pause()

    asyncio.run(use())
    return app.return_value


def pressing(*keys: str) -> Acting:
    async def act(pilot: Pilot[Choice], _: StartScreen) -> None:
        await pilot.press(*keys)

    return act


def typing(text: str) -> list[str]:
    names = {" ": "space", "/": "slash", ".": "full_stop", "-": "minus", "_": "underscore"}
    return [names.get(character, character) for character in text]


def text_of(screen: StartScreen) -> str:
    """All that is to be seen in the window."""
    width, height = screen.size
    strips = screen._compositor.render_strips()
    assert len(strips) == height
    return "\n".join(strip.text[:width] for strip in strips)


def test_enter_starts_with_what_is_proposed() -> None:
    assert shown(pressing("enter")) == Choice("tiny_dev")


def test_every_field_shows_what_was_chosen_last() -> None:
    last = Choice(
        pair=None,
        draft="./small",
        target="org/large",
        k=AUTO_K,
        temperature=0.7,
        drafter="model",
        prompts="./mine.jsonl",
    )
    assert shown(pressing("enter"), last) == last
    skipping = Choice("gpt2_dev", drafter="layerskip", draft_layers=3, prompt="Once upon a time")
    assert shown(pressing("enter"), skipping) == skipping


def test_all_of_it_by_keys_alone() -> None:
    keys = ["end", "tab", *typing("./a"), "tab", *typing("b/c"), "tab", "tab"]  # models; the drafter stays
    keys += ["down", "tab", "backspace", *typing("auto"), "tab", "backspace", *typing("0.8"), "enter"]
    assert shown(pressing(*keys)) == Choice(
        None, "./a", "b/c", k=AUTO_K, temperature=0.8, drafter="model", prompts="code"
    )


def test_layers_are_asked_for_where_they_count() -> None:
    keys = ["tab", "down", "down", "tab", "tab", "tab", "tab", *typing("2"), "tab", "enter"]  # enter on the button
    assert shown(pressing(*keys)) == Choice("tiny_dev", drafter="layerskip", draft_layers=2)


def test_a_typed_text_may_hold_any_key() -> None:
    text = "q ?[b]"
    keys = ["tab", "tab", "end", "tab", "q", "space", "question_mark"]
    keys += ["left_square_bracket", "b", "right_square_bracket", "enter"]
    assert shown(pressing(*keys)) == Choice("tiny_dev", prompt=text)


def test_a_file_is_told_from_a_domain_of_its_name() -> None:
    keys = ["tab", "tab", "end", "up", "tab", *"code", "enter"]
    assert shown(pressing(*keys)) == Choice("tiny_dev", prompts="./code")


def test_a_draft_is_not_asked_for_where_none_is_needed() -> None:
    async def act(pilot: Pilot[Choice], screen: StartScreen) -> None:
        await pilot.press("end", "tab", *typing("x"), "shift+tab")
        assert screen.query_one("#draft").display
        screen.query_one("#drafter").focus()
        await pilot.press("down")
        assert not screen.query_one("#draft").display and screen.query_one("#target").display
        screen.query_one("#target Input").focus()
        await pilot.press(*typing("gpt2"), "enter")

    assert shown(act) == Choice(None, None, "gpt2", drafter="ngram")


@pytest.mark.parametrize(
    ("keys", "field", "words"),
    [
        (["end"], "draft", "Name the draft model"),
        (["tab", "tab", "tab", "x"], "k", "neither a whole number nor auto"),
        (["tab", "tab", "end"], "prompt", "Type the text"),
    ],
)
def test_what_can_not_be_meant_is_said_beside_its_field(keys: Sequence[str], field: str, words: str) -> None:
    async def act(pilot: Pilot[Choice], screen: StartScreen) -> None:
        await pilot.press(*keys)
        assert not screen.query(".-wrong"), "nobody wanted to start yet"
        await pilot.press("enter")
        await pilot.pause()
        assert words in str(screen.query_one(f"#{field} .problem").render())
        assert screen.query_one(f"#{field}").has_class("-wrong")
        assert screen.focused is screen.query_one(f"#{field} Input")
        assert words in " ".join(text_of(screen).split()), "it is in sight"

    assert shown(act, size=(120, 40)) is None


def test_a_problem_goes_when_it_is_mended() -> None:
    async def act(pilot: Pilot[Choice], screen: StartScreen) -> None:
        await pilot.press("tab", "tab", "tab", "backspace", "x", "enter")
        assert screen.query(".-wrong")
        await pilot.press("backspace", "6")
        await pilot.pause()
        assert not screen.query(".-wrong")
        await pilot.press("enter")

    assert shown(act) == Choice("tiny_dev", k=6)


@pytest.mark.parametrize("keys", [["q"], ["escape"], ["tab", "tab", "tab", "escape", "escape"]])
def test_leaving(keys: Sequence[str]) -> None:
    """Escape leaves a field first."""
    assert shown(pressing(*keys, "enter")) is None


def test_escape_in_a_field_quits_nothing() -> None:
    assert shown(pressing("tab", "tab", "tab", "escape", "enter")) == Choice("tiny_dev")


def test_the_mouse_chooses_without_starting() -> None:
    async def act(pilot: Pilot[Choice], screen: StartScreen) -> None:
        await pilot.click("#pair", offset=(5, 2))
        assert screen.is_current
        assert screen.entries.pair == "gpt2_dev"
        await pilot.click("#start")

    assert shown(act) == Choice("gpt2_dev")


def test_words_from_outside_are_only_words() -> None:
    async def act(pilot: Pilot[Choice], screen: StartScreen) -> None:
        await pilot.press("down", "down")
        await pilot.pause()
        seen = text_of(screen)
        assert f"{CHOSEN} [red]own[/]\\u{{1b}}[2J" in seen and "[link=x]notes" in seen
        assert "\\u{202e}" in seen and "\x1b" not in seen

    assert shown(act, size=(120, 40)) is None


@pytest.mark.parametrize("size", SIZES)
def test_everything_can_be_reached_in_a_window_of_any_size(size: tuple[int, int]) -> None:
    """What has the focus is in sight, whole."""

    async def act(pilot: Pilot[Choice], screen: StartScreen) -> None:
        seen = []
        for _ in range(7):
            await pilot.pause()
            focused = screen.focused
            assert focused is not None
            region, window = focused.region, screen.query_one("#form").region
            assert window.contains_region(region) or region.height > window.height, focused
            seen.append(focused.id or getattr(focused.parent, "id", None))
            await pilot.press("tab")
        assert seen == ["pair", "drafter", "prompts", "k", "temperature", "start", "quit"]

    shown(act, size=size)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_shown_from_its_beginning(size: tuple[int, int]) -> None:
    async def act(pilot: Pilot[Choice], screen: StartScreen) -> None:
        await pilot.pause()
        assert screen.query_one("#form").scroll_offset.y == 0

    shown(act, size=size)


def test_nothing_scrolls_at_80_by_24() -> None:
    async def act(pilot: Pilot[Choice], screen: StartScreen) -> None:
        assert screen.query_one("#form").max_scroll_y == 0
        seen = text_of(screen)
        assert f"{CHOSEN} tiny_dev" in seen and f"{NOT_CHOSEN} gpt2_dev" in seen
        assert "Start" in seen and "Temperature" in seen and "next field" in seen

    shown(act)


def test_wide_fields_stand_side_by_side_and_narrow_ones_below_each_other() -> None:
    async def beside(pilot: Pilot[Choice], screen: StartScreen) -> None:
        assert screen.query_one("#drafter").region.y == screen.query_one("#prompts").region.y

    async def below(pilot: Pilot[Choice], screen: StartScreen) -> None:
        assert screen.query_one("#drafter").region.bottom <= screen.query_one("#prompts").region.y

    shown(beside, size=(80, 24))
    shown(below, size=(60, 20))


def test_a_window_that_changes_its_size() -> None:
    async def act(pilot: Pilot[Choice], screen: StartScreen) -> None:
        for size in (60, 20), (200, 60), (80, 24):
            await pilot.resize_terminal(*size)
            await pilot.pause()
        await pilot.press("enter")

    assert shown(act, size=(120, 40)) == Choice("tiny_dev")


def test_without_pairs_models_are_named() -> None:
    offer = Offer((), OFFER.domains, ("self",))
    choice = Choice(None, None, "org/large", drafter="self")
    assert shown(pressing("enter"), choice, offer=offer) == choice


def test_typing_changes_nothing_but_the_field() -> None:
    async def act(pilot: Pilot[Choice], screen: StartScreen) -> None:
        await pilot.press("tab", "tab", "tab", "q")
        assert screen.query_one("#k Input", Input).value == "4q"

    shown(act)


@pytest.mark.parametrize(("text", "k"), [("4", 4), (" 0 ", 0), ("auto", AUTO_K), ("AUTO", AUTO_K)])
def test_k(text: str, k: int) -> None:
    assert parse_k(text) == k
    assert parse_k(show_k(k)) == k


@pytest.mark.parametrize(("text", "temperature"), [("0", 0.0), ("0,8", 0.8), (" 1e-2 ", 0.01)])
def test_temperature(text: str, temperature: float) -> None:
    assert parse_temperature(text) == temperature


@pytest.mark.parametrize("text", ["", "hot", "-1", "inf", "nan"])
def test_no_temperature(text: str) -> None:
    with pytest.raises(ValueError, match=r"Give .*\.$"):
        parse_temperature(text)


GOOD = Entries("tiny_dev", "", "", "4", "0", "model", "", PACKAGED, "", None)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"pair": None, "target": "x"}, "draft", "Name the draft model"),
        ({"pair": None, "draft": "x", "target": " "}, "target", "Name the target model"),
        ({"k": ""}, "k", "2 to 8 is usual"),
        ({"k": "4.5"}, "k", "neither a whole number nor auto"),
        ({"k": "-4"}, "k", "0 is plain decoding"),
        ({"temperature": "hot"}, "temperature", "0 is greedy"),
        ({"drafter": "layerskip"}, "draft_layers", "how many of the target's layers"),
        ({"drafter": "layerskip", "draft_layers": "0"}, "draft_layers", "1 or more"),
        ({"prompts": None, "prompt": " "}, "prompt", "Type the text"),
        ({"prompts": None}, "prompts_file", "Name a file"),
        ({"prompts": None, "prompts_file": "-"}, "prompts_file", "the keyboard"),
    ],
)
def test_entries_that_mean_nothing(changes: dict[str, Any], field: str, words: str) -> None:
    entries = dataclasses.replace(GOOD, **changes)
    ((found, said),) = entries.problems().items()
    assert found == field and words in said
    with pytest.raises(ValueError, match=re.escape(said)):
        entries.choice()


@pytest.mark.parametrize(
    ("changes", "choice"),
    [
        ({}, Choice("tiny_dev")),
        ({"draft": "x", "draft_layers": "junk", "prompts_file": "x"}, Choice("tiny_dev")),
        ({"pair": None, "drafter": "self", "target": " b/c "}, Choice(None, None, "b/c", drafter="self")),
        ({"prompts": None, "prompts_file": "code"}, Choice("tiny_dev", prompts="./code")),
        ({"prompts": None, "prompts_file": "/code"}, Choice("tiny_dev", prompts="/code")),
        ({"prompts": None, "prompt": " a ", "prompts_file": "x"}, Choice("tiny_dev", prompt=" a ")),
    ],
)
def test_only_fields_that_count_do(changes: dict[str, Any], choice: Choice) -> None:
    assert dataclasses.replace(GOOD, **changes).choice() == choice
