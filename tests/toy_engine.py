"""Engines without models, for what goes on around one: the session's command says what they do."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Sequence

from specprof.experiments.live import ControlPage, Session
from specprof.experiments.live_display import Display
from specprof.experiments.serving import die_with_the_driver
from specprof.profiling.events import Prefilled, PromptEnded, Round, RunStarted
from specprof.profiling.feed import Control, Failed, Going

TOY = "toy_engine:serve"
FLOOD = 40_000
"""Rounds, more than any socket holds."""


def serve(arguments: Sequence[str]) -> None:
    """Do what the command says: a word, and what it needs."""
    display_fd, lifeline, page_fd = map(int, arguments)
    die_with_the_driver(lifeline)
    session, control = pickle.load(sys.stdin.buffer)
    assert isinstance(session, Session) and isinstance(control, Control)
    display, page = Display(socket.socket(fileno=display_fd)), ControlPage(page_fd)
    word, _, rest = (session.command or "").partition(" ")
    if word == "say":
        os.write(1, rest.encode("utf-8", "surrogateescape"))
        os._exit(3)
    if word == "signal":
        os.kill(os.getpid(), signal.Signals[rest])
    if word == "fail":
        display.add(Going("running"))
        display.add(Failed("it is broken", "mend it", 5))
        display.add(Going("paused"))
        display.finish()
        os._exit(5)
    if word == "utter":
        display.add(Going("running"))
        display.finish()
        os.write(2, b"its last words\n")
        os.write(display_fd, rest.encode("utf-8", "surrogateescape") + b"\n")
    if word == "flood":
        _flood(display)
    if word == "echo":
        page.begin()
        while not page.stopped:
            display.add(Going("paused" if page.read().paused else "running"))
            display.flush()
            time.sleep(0.005)
        os.write(2, b"stopped\n")
        open(rest, "w").close()
        os._exit(0)
    display.add(Going("finished"))
    for _ in range(3000):
        display.tick()
        time.sleep(0.1)


def _flood(display: Display) -> None:
    """Many rounds of several generations, faster than anybody reads."""
    display.add(RunStarted("the-run", "", {}, {}))
    for prompt in range(10):
        key = (f"p{prompt}", "AR", 0)
        display.add(Prefilled(*key, 1, 0, 0.0, 0.0, 0.0))
        for index in range(FLOOD // 10):
            display.add(Round(*key, index, (), 0, (index % 500,), 0.0, 0.0, 0.0, 0.0))
            if index % 100 == 0:
                display.flush()
        display.add(PromptEnded(*key, "length", 0, token_texts={"0": "x"}))
        display.flush()
