"""What the screens look like, as pictures: `pytest --snapshot-update` draws them anew, for a person to look at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from textual.app import App

from sample_feed import sample_run
from specprof.profiling.events import Event, Prefilled, Round
from specprof.profiling.feed import Device, Failed, Going, Loading, Message, Prompts, PromptText
from specprof.tui.app import SpecprofApp
from specprof.tui.choices import Choice, Offer, PairOffer
from test_tui_app import ScriptedFeed, Session, told, until

Snapshot = Callable[[App[Any], str], None]
Script = Callable[[Session], Coroutine[Any, Any, None]]

FULL, STACKED, COMPACT, SMALL = (120, 40), (100, 40), (80, 24), (60, 20)

OFFER = Offer(
    (
        PairOffer("tiny_dev", "tiny_dev/draft for tiny_dev/target", True, "Comes with the package; its text is poor."),
        PairOffer("gpt2_dev", "distilbert/distilgpt2 for openai-community/gpt2-large", True),
        PairOffer("qwen2_small", "Qwen/Qwen2.5-0.5B-Instruct for Qwen/Qwen2.5-7B-Instruct", False),
        PairOffer("llama3_small", "meta-llama/Llama-3.2-1B for meta-llama/Llama-3.1-8B", None),
    ),
    ("code", "conversation", "summarization"),
    ("model", "ngram", "layerskip", "self", "random"),
)
CHOICE = Choice(pair="tiny_dev", temperature=0.8)
PROMPTS = Prompts(
    tuple(
        PromptText(f"{domain}_{number:03}", domain, text)
        for number in range(2)
        for domain, text in (
            ("code", "from itertools import groupby\n\n\ndef longest_run(items: list[str]) -> int:\n"),
            ("conversation", "We have two days and no car. Where would you begin?"),
            ("summarization", "Say in short what the council decided about the railway."),
        )
    )
)
DEVICE = Device("AMD EPYC 9B14", 412_000_000, 8_300_000_000, 0.97)
RUN = sample_run(6)


def until_round(prompt_id: str, number: int) -> list[Message]:
    """A run until its draft has made so many rounds of one prompt."""
    messages: list[Message] = [PROMPTS, DEVICE, *told(RUN)]
    speculative = (
        index
        for index, message in enumerate(messages)
        if isinstance(message, Round) and message.draft_tokens and message.prompt_id == prompt_id
    )
    return messages[: [*speculative][number - 1] + 1]


MIDDLE = until_round("code_001", 14)


def raced(share: float) -> list[Message]:
    """Both arms at one text, as far as each had come when this share of the slower one's time was over."""
    messages = told(sample_run(1))
    due: list[tuple[float, Event]] = []
    for arm in ("SD-K4", "AR"):
        seconds = 0.0
        for event in messages:
            if isinstance(event, Prefilled | Round) and event.decoder == arm:
                seconds += event.seconds
                due.append((seconds, event))
    due.sort(key=lambda one: one[0])
    return [PROMPTS, DEVICE, *messages[:2], *(event for when, event in due if when <= share * due[-1][0])]


def draw(script: Script, *, size: tuple[int, int] = FULL, start: bool = True, theme: str = "textual-dark") -> None:
    """An app at a time that stands still, told what the script tells it."""
    feed = ScriptedFeed()

    began = iter((0.0,))

    def clock() -> float:
        return next(began, 12.0)

    async def run() -> None:
        app = SpecprofApp(lambda _: feed, OFFER, CHOICE, start=start, fps=0.001, theme=theme, clock=clock)
        async with app.run_test(size=size) as pilot:
            if start:
                await until(lambda: bool(feed.controls))
            await script(Session(app, pilot, feed))

    asyncio.run(run())


def draw_after(
    snapshot: Snapshot, name: str, messages: Sequence[Message], *keys: str, size: tuple[int, int] = FULL, **options: Any
) -> None:
    async def script(s: Session) -> None:
        await s.say(*messages)
        await s.press(*keys)
        snapshot(s.app, name)

    draw(script, size=size, **options)


@pytest.mark.parametrize("size", [FULL, SMALL])
def test_start(snapshot: Snapshot, size: tuple[int, int]) -> None:
    draw_after(snapshot, f"start-{size[0]}x{size[1]}", (), size=size, start=False)


def test_loading(snapshot: Snapshot) -> None:
    draw_after(snapshot, "loading", [Loading("loading tiny_dev/target", 1, 3)], size=COMPACT)


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_main(snapshot: Snapshot, theme: str) -> None:
    draw_after(snapshot, f"main-{theme}", MIDDLE, theme=f"textual-{theme}")


@pytest.mark.parametrize("size", [STACKED, COMPACT, SMALL])
def test_main_on_smaller_screens(snapshot: Snapshot, size: tuple[int, int]) -> None:
    draw_after(snapshot, f"main-{size[0]}x{size[1]}", MIDDLE, size=size)


def test_a_round_in_stages(snapshot: Snapshot) -> None:
    async def script(s: Session) -> None:
        await s.say(*MIDDLE[:-1])
        await s.press("s")
        await s.say(Going("paused"), MIDDLE[-1])
        await s.press("s")
        snapshot(s.app, "step-verify")

    draw(script)


@pytest.mark.parametrize(("name", "key"), [("details", "d"), ("explain", "e"), ("help", "question_mark")])
def test_pages(snapshot: Snapshot, name: str, key: str) -> None:
    draw_after(snapshot, name, MIDDLE, key)


def test_failure(snapshot: Snapshot) -> None:
    log = ("warming up: 2 prompts", "terminate called after throwing an instance of 'std::bad_alloc'")
    failed = Failed("the engine was killed (SIGKILL)", "free some memory, or choose a smaller pair", 4, log)
    draw_after(snapshot, "failure", [*MIDDLE, failed], size=COMPACT)


def test_race(snapshot: Snapshot) -> None:
    draw_after(snapshot, "race", raced(0.55))
