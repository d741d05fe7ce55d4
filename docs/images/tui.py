"""The pictures of `specprof tui`: what a live engine says of the packaged pair, shown on a screen that nobody sees.

Usage: python docs/images/tui.py DIRECTORY          (part of make.sh: 1 minute, nothing else running)
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from textual.pilot import Pilot

from specprof.commands.choosing import Settings, offer
from specprof.experiments.live import LiveFeed
from specprof.profiling.events import PromptEnded, Round
from specprof.profiling.feed import Control, Failed, Going, Message
from specprof.profiling.metrics import BASELINE
from specprof.tui.app import SpecprofApp
from specprof.tui.choices import Choice

CHOICE = Choice(pair="tiny_dev", k=4, temperature=0.8)
NUM_PROMPTS = 6
FULL, COMPACT = (120, 40), (80, 24)
SMALLER = (
    (r"@font-face\s*\{[^}]*\}\s*", ""),  # to be fetched from the network; any monospace font will do
    (r"terminal-\d+", "t"),  # of another number in each picture
    (r' shape-rendering="crispEdges"', ""),
    (r"<style>", "<style>\n    rect { shape-rendering: crispEdges; }"),
    (r"&#160;", "\u00a0"),
)
"""What is replaced in pictures, by what."""


class Played:
    """Says what an engine has said, when it is told to."""

    live = True

    def __init__(self) -> None:
        self.waiting: list[Message] = []

    def read(self) -> Sequence[Message]:
        said, self.waiting = self.waiting, []
        return said

    def send(self, control: Control) -> None:
        pass

    def close(self) -> None:
        pass


class Screen:
    """The app, and the keys and messages that it gets."""

    def __init__(self, app: SpecprofApp, pilot: Pilot[None], feed: Played) -> None:
        self.app, self.pilot, self.feed = app, pilot, feed

    async def say(self, *messages: Message) -> None:
        self.feed.waiting.extend(messages)
        for _ in range(2):  # a screen that has just been opened is drawn with the next tick
            self.app.tick()
            await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    def save(self, directory: Path, name: str) -> None:
        svg = self.app.export_screenshot(title="specprof tui")
        for pattern, instead in SMALLER:
            svg = re.sub(pattern, instead, svg)
        (directory / f"{name}.svg").write_text(svg, encoding="utf-8")


def said_by_engine(*, race: bool) -> list[Message]:
    """All that there is to be shown of one run; nobody wins a race by stopping early."""
    settings = Settings({"max_new_tokens": 96, "repetitions": 1, "ignore_eos": race}, num_prompts=NUM_PROMPTS)
    feed = LiveFeed(settings.session(CHOICE, None), Control(k=CHOICE.k, temperature=CHOICE.temperature, race=race))
    messages: list[Message] = []
    try:
        while Going("finished") not in messages:
            messages += feed.read()
            if messages and isinstance(messages[-1], Failed):
                sys.exit(f"{messages[-1].message}; {messages[-1].hint}")
            time.sleep(0.1)
    finally:
        feed.close()
    return messages


def stepped(messages: Sequence[Message]) -> int:
    """Index of a round with two accepted tokens and one that is rejected at a ratio that can be read, as late in the
    run as there is one."""
    found = [
        (_pairs_before(messages, index), ratio, index)
        for index, message in enumerate(messages)
        if (ratio := _rejection(message)) is not None
    ]
    pairs = max(pairs for pairs, *_ in found)
    return max((ratio, index) for known, ratio, index in found if known == pairs)[1]


def _rejection(message: Message) -> float | None:
    if not isinstance(message, Round) or message.num_accepted != 2 or len(message.draft_tokens) != 4:
        return None
    assert message.target_prob is not None and message.draft_prob is not None
    ratio = message.target_prob[2] / message.draft_prob[2]
    return ratio if 0.1 <= ratio < 1 else None


def _pairs_before(messages: Sequence[Message], index: int) -> int:
    """Prompts that both arms had finished."""
    ended = [m.prompt_id for m in messages[:index] if isinstance(m, PromptEnded)]
    return sum(ended.count(prompt_id) == 2 for prompt_id in set(ended))


def telling(messages: Sequence[Message], begin: int) -> int:
    """Index of a round of the same text, soon after a bonus, with a token of each verdict; the round before if there
    is none."""
    first = messages[begin]
    assert isinstance(first, Round)
    bonus = False
    for index, message in enumerate(messages[begin:], begin):
        if not isinstance(message, Round) or message.prompt_id != first.prompt_id:
            break
        bonus = bonus or message.num_accepted == len(message.draft_tokens) > 0
        if bonus and 0 < message.num_accepted < len(message.draft_tokens) - 1:
            return index
    return begin


def midway(messages: Sequence[Message]) -> int:
    """Index at which the speculative arm has three quarters of the first text."""
    rounds = [i for i, m in enumerate(messages) if isinstance(m, Round) and m.decoder != BASELINE]
    text = messages[rounds[0]]
    assert isinstance(text, Round)
    of_text = [i for i in rounds if getattr(messages[i], "prompt_id", None) == text.prompt_id]
    return of_text[len(of_text) * 3 // 4]


async def draw(directory: Path, messages: Sequence[Message], race: Sequence[Message]) -> None:
    step = stepped(messages)
    until = messages[: telling(messages, step) + 1]
    for name, size, theme, shown, keys in (
        ("tui", FULL, "textual-dark", until, ()),
        ("tui-light", FULL, "textual-light", until, ()),
        ("tui-compact", COMPACT, "textual-dark", until, ()),
        ("tui-details", FULL, "textual-dark", messages[: step + 1], ("d",)),
        ("tui-race", FULL, "textual-dark", race[: midway(race) + 1], ()),
        ("tui-start", FULL, "textual-dark", (), ()),
    ):
        async with _screen(size, theme, start=bool(shown)) as screen:
            await screen.say(*shown)
            await screen.press(*keys)
            screen.save(directory, name)
    async with _screen(FULL, "textual-dark", start=True) as screen:
        await screen.say(*messages[:step])
        await screen.press("s")
        await screen.say(Going("paused"), messages[step])
        for stage in ("draft", "verify", "decision"):
            screen.save(directory, f"tui-step-{stage}")
            await screen.press("s")


@asynccontextmanager
async def _screen(size: tuple[int, int], theme: str, *, start: bool) -> AsyncIterator[Screen]:
    feed = Played()
    app = SpecprofApp(lambda _: feed, offer(), CHOICE, start=start, fps=0.001, theme=theme)
    async with app.run_test(size=size) as pilot:
        await app.workers.wait_for_complete()
        await pilot.pause()
        yield Screen(app, pilot, feed)


if __name__ == "__main__":
    live, raced = said_by_engine(race=False), said_by_engine(race=True)
    asyncio.run(draw(Path(sys.argv[1]), live, raced))
