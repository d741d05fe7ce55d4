"""Where events go while they happen: standard output as JSON lines, the terminal as coloured text."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

from specprof.profiling.events import Event, Prefilled, PromptEnded, Round, RunEnded, RunStarted, to_json_line

Sink = Callable[[Event], None]


def tee(events: Iterable[Event], sinks: Sequence[Sink]) -> Iterator[Event]:
    """Pass events on, each shown to the sinks first: between rounds, outside everything that is timed."""
    for event in events:
        for sink in sinks:
            sink(event)
        yield event


class JsonLines:
    """A sink that writes one event a line. If its reader goes away or its disk fills up, the run goes on without it."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.failure: OSError | None = None

    def __call__(self, event: Event) -> None:
        if self.failure is not None:
            return
        try:
            self.out.write(to_json_line(event))
            if isinstance(event, RunStarted | PromptEnded | RunEnded):
                self.out.flush()
        except OSError as error:
            self.failure = error
            what = "the reader of standard output is gone" if isinstance(error, BrokenPipeError) else str(error)
            logging.getLogger("specprof").warning("%s; the run goes on", what)


_STYLES = {"accepted": "\x1b[32m", "corrected": "\x1b[31;4m", "bonus": "\x1b[34;1m", "target": ""}
_RESET = "\x1b[0m"


class TextStream:
    """A sink that writes one decoder's text: accepted green, corrected red and underlined, bonus blue.

    Without colour, corrected tokens stand in ``[ ]`` and bonus tokens in ``{ }``.
    """

    def __init__(self, tokenizer: Any, decoder: str, *, color: bool, out: TextIO | None = None) -> None:
        self.tokenizer, self.decoder, self.color = tokenizer, decoder, color
        self.out = out or sys.stderr

    def __call__(self, event: Event) -> None:
        if isinstance(event, Prefilled | Round | PromptEnded) and event.decoder != self.decoder:
            return
        match event:
            case Prefilled():
                self._ids: list[int] = []
                self._shown = ""
                self.out.write(f"--- {event.prompt_id}\n")
                self._write([event.first_token], "target")
            case Round():
                accepted = event.emitted_tokens[: event.num_accepted]
                last = event.emitted_tokens[event.num_accepted :]
                self._write(accepted, "accepted")
                self._write(last, "corrected" if event.num_accepted < len(event.draft_tokens) else "bonus")
            case PromptEnded():
                self.out.write("\n")
                self.out.flush()

    def _write(self, tokens: Iterable[int], kind: str) -> None:
        self._ids.extend(tokens)
        text = self.tokenizer.decode(self._ids, skip_special_tokens=True)
        # A character whose bytes are still coming decodes to U+FFFD: wait for the token that completes it.
        if text.endswith("\ufffd") or len(text) <= len(self._shown):
            return
        new, self._shown = printable(text[len(self._shown) :]), text
        if self.color:
            style = _STYLES[kind]
            self.out.write(f"{style}{new}{_RESET}" if style else new)
        else:
            brackets = {"corrected": "[]", "bonus": "{}"}.get(kind, "")
            self.out.write(f"{brackets[0]}{new}{brackets[1]}" if brackets else new)
        self.out.flush()


def printable(text: str) -> str:
    """Text that can't command a terminal: control characters are shown, not sent."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
