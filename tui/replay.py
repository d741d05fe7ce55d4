"""A saved run as a feed: what happened, at the pace at which it happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from specprof.errors import SpecprofError
from specprof.profiling.events import Event, Prefilled, Round, RunStarted
from specprof.profiling.feed import FASTEST, SLOWEST, Control, Failed, Going, Kept, Message, Texts

MOST_EVENTS = 5000
"""That one reading gives: a screen that has fallen behind still draws, and hears keys, on its way."""


class Replay:
    """Plays a run with its own measured times.

    A prefill and a round are due when their seconds have passed; what needs no time is due with what stands before it.
    Of a :class:`~specprof.profiling.feed.Control` it follows ``paused``, ``steps``, ``skips``, ``restarts`` and
    ``pace``: what was decoded, and how, is over.

    Args:
        events: begins to read the run, anew on each call; what it raises of :class:`~specprof.errors.SpecprofError`
            ends the replay with one :class:`~specprof.profiling.feed.Failed`.
        texts: what all of its tokens stand for, as in :class:`~specprof.profiling.feed.Texts`.
        clock: seconds, from anywhere.
        path: of the run's file, for who wants to do more with it.
    """

    live = False

    def __init__(
        self,
        events: Callable[[], Iterator[Event]],
        texts: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
        path: str | None = None,
    ) -> None:
        self._open = events
        self._clock = clock
        self._control = Control()
        self._beginning: list[Message] = [Texts(dict(texts)), *([Kept(path)] if path else [])]
        self._mode: Literal["running", "paused", "finished"] = "running"
        self._over = False
        self._looked_at: float | None = None
        """The clock; it is first looked at when something is read."""
        self._playing = self._from_the_beginning()

    def read(self) -> Sequence[Message]:
        """What is due since the last call, at most :data:`MOST_EVENTS` events of it; never waits."""
        if self._over:
            return ()
        self._let_time_pass()
        messages = [*self._beginning, *self._going()]
        self._beginning = []
        try:
            for _ in range(MOST_EVENTS):
                event = self._playing.take()
                if event is None:
                    break
                messages.append(event)
                if isinstance(event, RunStarted):
                    self._mode = "running"  # whoever is told so takes it for going on: a pause has to be said again
        except SpecprofError as error:
            self.close()
            return [*messages, Failed(error.message, error.hint, error.exit_code)]
        return messages + self._going()

    def send(self, control: Control) -> None:
        """From now on; steps count while it is paused, and only then."""
        if self._looked_at is not None:
            self._let_time_pass()
        before, self._control = self._control, control
        if control.restarts > before.restarts:
            self._playing.events.close()
            self._playing = self._from_the_beginning()
        playing = self._playing
        if control.paused and not before.paused:
            playing.now = playing.shown  # what was due, and nobody has seen yet, is for afterwards
        playing.skips += max(0, control.skips - before.skips)
        if control.paused:
            playing.steps += max(0, control.steps - before.steps)

    def close(self) -> None:
        self._over = True
        self._playing.events.close()  # and the file with it

    def _from_the_beginning(self) -> _Playing:
        def events() -> Generator[Event, None, None]:  # which opens nothing before it is asked for something
            yield from self._open()

        return _Playing(events())

    def _let_time_pass(self) -> None:
        now = self._clock()
        if self._looked_at is not None and not self._control.paused:
            self._playing.now += (now - self._looked_at) * min(FASTEST, max(SLOWEST, self._control.pace))
        self._looked_at = now

    def _going(self) -> list[Message]:
        """What has to be said of how it goes."""
        mode: Literal["running", "paused", "finished"] = "paused" if self._control.paused else "running"
        if self._playing.at_end:
            mode = "finished"
        if mode == self._mode:
            return []
        self._mode = mode
        return [Going(mode)]


@dataclass(slots=True)
class _Playing:
    """Once through a run, in seconds since its beginning."""

    events: Generator[Event, None, None]
    now: float = 0.0
    shown: float = 0.0
    """When the last event that was given was due."""
    due: float = 0.0
    """When the next one is."""
    steps: int = 0
    """Prefills and rounds to give although they are not due."""
    skips: int = 0
    """Prompts to leave for the next, whatever is due."""
    at_end: bool = False
    _next: Event | None = None
    _prompt: tuple[str, int] | None = None

    def take(self) -> Event | None:
        """The next event, if it is due or asked for."""
        event = self._look_ahead()
        if event is None:
            return None
        if self.due > self.now:
            if not self.skips:
                if not self.steps:
                    return None
                self.steps -= 1
            self.now = self.due
        if isinstance(event, Prefilled) and self._prompt != (prompt := (event.prompt_id, event.repetition)):
            self._prompt = prompt
            self.skips = max(0, self.skips - 1)
        self._next, self.shown = None, self.due
        return event

    def _look_ahead(self) -> Event | None:
        """The next event, due or not; None at the end."""
        if self._next is None and not self.at_end:
            self._next = next(self.events, None)
            self.at_end = self._next is None
            if isinstance(self._next, Prefilled | Round):
                self.due += self._next.seconds
        return self._next
