"""A saved run as a feed: what happened, at the pace at which it happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Literal

from specprof.errors import SpecprofError
from specprof.profiling.events import Event, Prefilled, Round
from specprof.profiling.feed import Control, Failed, Going, Message, Texts

SLOWEST, FASTEST = 0.25, 16.0
"""Paces that are kept to; others count as the nearest of them."""
MOST_EVENTS = 4000
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
        title: of the run, for people.
    """

    live = False

    def __init__(
        self,
        events: Callable[[], Iterator[Event]],
        texts: Mapping[str, str],
        *,
        clock: Callable[[], float] = time.monotonic,
        title: str | None = None,
    ) -> None:
        self.title = title
        self._open = events
        self._clock = clock
        self._control = Control()
        self._texts: Texts | None = Texts(dict(texts))
        self._mode: Literal["running", "paused", "finished"] = "running"
        self._over = False
        """Nothing will come any more, whatever is wanted."""
        self._looked_at: float | None = None
        """The clock, at the first reading and ever since."""
        self._rewind()

    def read(self) -> Sequence[Message]:
        """What is due since the last call, at most :data:`MOST_EVENTS` events of it; never waits."""
        if self._over:
            return ()
        self._let_time_pass()
        messages: list[Message] = []
        if self._texts is not None:
            messages.append(self._texts)
            self._texts = None
        messages += self._going()
        try:
            for _ in range(MOST_EVENTS):
                event = self._take()
                if event is None:
                    break
                messages.append(event)
        except SpecprofError as error:
            self.close()
            return [*messages, Failed(error.message, error.hint, error.exit_code)]
        return messages + self._going()

    def send(self, control: Control) -> None:
        """From now on; steps count while it is paused, and only then."""
        self._let_time_pass()
        before, self._control = self._control, control
        if control.restarts > before.restarts:
            self._rewind()
        self._skips += max(0, control.skips - before.skips)
        if control.paused:
            self._steps += max(0, control.steps - before.steps)

    def close(self) -> None:
        self._over = True
        if isinstance(self._events, Generator):
            self._events.close()  # and the file with it

    def _rewind(self) -> None:
        if isinstance(self._events, Generator):
            self._events.close()
        self._events: Iterator[Event] = self._open()
        self._next: Event | None = None
        self._at_end = False
        self._played = 0.0
        """Seconds of the run that have passed by now, and those that have until the next event is due."""
        self._due = 0.0
        self._prompt: tuple[str, int] | None = None
        self._skips = self._steps = 0

    def _let_time_pass(self) -> None:
        now = self._clock()
        if self._looked_at is not None and not self._control.paused:
            self._played += (now - self._looked_at) * min(FASTEST, max(SLOWEST, self._control.pace))
        self._looked_at = now

    def _going(self) -> list[Message]:
        """What has to be said of how it goes."""
        mode: Literal["running", "paused", "finished"] = "paused" if self._control.paused else "running"
        if self._at_end:
            mode = "finished"
        if mode == self._mode:
            return []
        self._mode = mode
        return [Going(mode)]

    def _take(self) -> Event | None:
        """The next event, if it is due."""
        event = self._look_ahead()
        if event is None:
            return None
        if self._due > self._played:
            if self._skips == self._steps == 0:
                return None
            if not self._skips:
                self._steps -= 1
            self._played = self._due
        if isinstance(event, Prefilled) and self._prompt != (prompt := (event.prompt_id, event.repetition)):
            self._prompt = prompt
            self._skips = max(0, self._skips - 1)
        self._next = None
        return event

    def _look_ahead(self) -> Event | None:
        """The next event, due or not; None at the end."""
        if self._next is None and not self._at_end:
            self._next = next(self._events, None)
            self._at_end = self._next is None
            if isinstance(self._next, Prefilled | Round):
                self._due += self._next.seconds
        return self._next
