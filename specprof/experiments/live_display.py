"""Tells a screen what happens, without ever waiting for it."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from specprof.profiling.events import Prefilled, PromptEnded, Round
from specprof.profiling.feed import Dropped, Message, Texts, to_json_line

FLUSH_SECONDS = 0.05
"""At most so often is anything sent."""
_LAST_WORDS_SECONDS = 1.0


class Display:
    """Collects messages and sends them in batches, one line each, over a socket that is read or not.

    Where the socket is full, a batch is dropped whole: its prefills and rounds are lost to the screen and counted,
    everything else goes with the next batch that can be sent.

    Args:
        connection: to whoever reads; it is made non-blocking.
        clock: seconds, from any origin.
    """

    def __init__(self, connection: socket.socket, clock: Callable[[], float] = time.monotonic) -> None:
        connection.setblocking(False)
        self._connection, self._clock = connection, clock
        self._text: Callable[[int], str] = str
        self._batch: list[Message] = []
        self._kept: list[Message] = []
        """Of dropped batches, what must not be lost."""
        self._tail = b""
        """Of a batch that was sent in part."""
        self._told: set[int] = set()
        self._dropped = self._dropped_told = 0
        self._due = 0.0
        self._is_read = True

    def explain_with(self, text: Callable[[int], str]) -> None:
        """What a token stands for, as each is told once before the first event that has it."""
        self._text = text

    def add(self, message: Message) -> None:
        """Take a message for the next batch."""
        if isinstance(message, PromptEnded):  # its tokens have been told
            message = replace(message, token_texts=None)
        self._batch.append(message)

    def tick(self) -> None:
        """Send what was collected, if it is time."""
        if (self._batch or self._kept or self._tail) and self._clock() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Send what was collected now, as far as the socket takes it."""
        self._due = self._clock() + FLUSH_SECONDS
        if self._tail:
            self._tail = self._tail[self._sent(self._tail) :]
        if not self._batch and not self._kept:
            return
        if not self._tail:
            tokens, data = self._packed()
            sent = self._sent(data)
            if sent:
                self._tail = data[sent:]
                self._taken(tokens)
                return
        self._drop()

    def finish(self) -> None:
        """Send what is left, and wait a little for it: nothing comes after it."""
        tokens, data = self._packed()
        if self._is_read:
            with contextlib.suppress(OSError):
                self._connection.settimeout(_LAST_WORDS_SECONDS)
                self._connection.sendall(self._tail + data)
        self._taken(tokens)
        self._tail, self._is_read = b"", False

    def _packed(self) -> tuple[set[int], bytes]:
        """All there is to send, and the tokens that it explains."""
        tokens = _tokens(self._batch) - self._told
        texts = [Texts({str(token): self._text(token) for token in sorted(tokens)})] if tokens else []
        dropped = [Dropped(self._dropped)] if self._dropped != self._dropped_told else []
        # What is missing comes before the ends that were kept: one of them may be of a text that lost its last rounds.
        messages: list[Message] = [*dropped, *self._kept, *texts, *self._batch]
        return tokens, "".join(map(to_json_line, messages)).encode()

    def _taken(self, tokens: set[int]) -> None:
        self._told |= tokens
        self._dropped_told = self._dropped
        self._kept.clear()
        self._batch.clear()

    def _drop(self) -> None:
        kept = [message for message in self._batch if not isinstance(message, Prefilled | Round)]
        self._dropped += len(self._batch) - len(kept)
        self._kept += kept
        self._batch.clear()

    def _sent(self, data: bytes) -> int:
        """How many bytes the socket took."""
        if not self._is_read:
            return len(data)
        total = 0
        try:
            while total < len(data):
                total += self._connection.send(memoryview(data)[total:])
        except BlockingIOError:
            pass
        except OSError:  # nobody reads any more, and nobody misses anything
            self._is_read = False
            return len(data)
        return total


def _tokens(messages: Iterable[Message]) -> set[int]:
    tokens: set[int] = set()
    for message in messages:
        if isinstance(message, Prefilled):
            tokens.add(message.first_token)
        elif isinstance(message, Round):
            tokens.update(message.draft_tokens, message.emitted_tokens)
    return tokens
