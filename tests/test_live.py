"""A live engine: what it decodes is what a run measures, it does what it is told, and nobody is left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from specprof.commands.named import studies_of
from specprof.data.prompts import Prompt
from specprof.errors import ResourceError
from specprof.experiments.config import RunConfig
from specprof.experiments.live import ControlPage, LiveFeed, Session
from specprof.experiments.live_device import DeviceReader
from specprof.experiments.live_display import Display
from specprof.experiments.saved_runs import read_run, saved_runs
from specprof.experiments.study import of_run
from specprof.models.registry import ModelPair, get_pair
from specprof.profiling.events import Prefilled, PromptEnded, Round, RunEnded, RunStarted, read_events
from specprof.profiling.feed import (
    AUTO_K,
    Control,
    Device,
    Dropped,
    Failed,
    Going,
    Kept,
    Loading,
    Message,
    Prompts,
    Refused,
    Texts,
    from_json_line,
)
from test_import_hygiene import HEAVY, loaded_after
from toy_engine import FLOOD, TOY

SOON = 30.0
"""Seconds; a limit that only a hang exceeds."""
PROMPTS = (Prompt("p0", "code", "def f(x):"), Prompt("p1", "custom", "Once upon a"))
NEW_TOKENS = 24


def session(results: Path | None = None, command: str | None = None, **changes: Any) -> Session:
    config = RunConfig(
        get_pair("tiny_dev"),
        k=2,
        max_new_tokens=NEW_TOKENS,
        repetitions=1,
        device="cpu",
        deterministic=True,
        detail=True,
        ignore_eos=True,
    )
    return Session(replace(config, **changes), PROMPTS, results, command, 1)


class Screen:
    """Whoever watches a feed and steers it."""

    def __init__(self, session: Session, k: int = 2) -> None:
        self.control = Control(k=k)
        self.feed = LiveFeed(session, self.control)

    def send(self, **changes: Any) -> None:
        self.control = replace(self.control, **changes)
        self.feed.send(self.control)

    def until(self, enough: Callable[[list[Message]], bool]) -> list[Message]:
        """What comes from now on, until it is enough."""
        messages: list[Message] = []
        deadline = time.monotonic() + SOON
        while not enough(messages):
            messages += self.feed.read()
            assert time.monotonic() < deadline, messages[-5:]
            time.sleep(0.002)
        return [message for message in messages if not isinstance(message, Device | Texts)]

    def until_mode(self, mode: str) -> list[Message]:
        return self.until(lambda messages: any(isinstance(m, Going) and m.mode == mode for m in messages))

    def until_number(self, number: int) -> list[Message]:
        """So many events of generations, and what comes soon after them."""
        found = self.until(lambda messages: len(generated(messages)) >= number)
        time.sleep(0.12)
        return [*found, *(m for m in self.feed.read() if not isinstance(m, Device | Texts))]

    def anew(self, **changes: Any) -> None:
        self.send(restarts=self.control.restarts + 1, **changes)

    def step(self, number: int = 1) -> list[Message]:
        self.send(paused=True, steps=self.control.steps + number)
        return generated(self.until_number(number))


def generated(messages: Sequence[Message]) -> list[Message]:
    return [m for m in messages if isinstance(m, Prefilled | Round)]


def of_type(messages: Sequence[Message], *types: Any) -> list[Any]:
    return [m for m in messages if isinstance(m, types)]


def tokens(messages: Sequence[Message], decoder: str, prompt_id: str) -> list[int]:
    found = [
        m for m in messages if isinstance(m, Prefilled | Round) and (m.decoder, m.prompt_id) == (decoder, prompt_id)
    ]
    return [t for m in found for t in ((m.first_token,) if isinstance(m, Prefilled) else m.emitted_tokens)]


def untimed(event: Message) -> Any:
    """What of an event is the same whenever it happens."""
    values = dataclasses.asdict(event)
    for name in list(values):
        if name.endswith(("_seconds", "_bytes", "_joules")):
            del values[name]
    return type(event).__name__, values


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("live") / "results"


@pytest.fixture(scope="module")
def first(results: Path) -> Iterator[tuple[Screen, list[Message]]]:
    """A screen on an engine that has finished once, and everything that came until then."""
    screen = Screen(session(results, "specprof tui"))
    messages: list[Message] = []
    while not any(isinstance(m, Going) and m.mode == "finished" for m in messages):
        messages += screen.feed.read()
        assert not of_type(messages, Failed), messages
        time.sleep(0.01)
    yield screen, messages
    screen.feed.close()


@pytest.fixture
def screen(first: tuple[Screen, list[Message]]) -> Iterator[Screen]:
    """The same engine, finished; afterwards it is as it was."""
    screen = first[0]
    screen.feed.read()
    yield screen
    screen.anew(k=2, temperature=0.0, race=False, paused=False)
    screen.until_mode("finished")


@contextlib.contextmanager
def toy(command: str) -> Iterator[LiveFeed]:
    feed = LiveFeed(session(command=command), Control(skips=3), engine=TOY)
    try:
        yield feed
    finally:
        feed.close()


def everything(feed: LiveFeed) -> list[Message]:
    messages: list[Message] = []
    deadline = time.monotonic() + SOON
    while not of_type(messages, Failed):
        messages += feed.read()
        assert time.monotonic() < deadline, messages
        time.sleep(0.01)
    assert not feed.read()
    return messages


def failure(feed: LiveFeed) -> Failed:
    """What it ends with."""
    failed = everything(feed)[-1]
    assert isinstance(failed, Failed)
    return failed


# --- what is decoded


def test_a_run_is_what_measure_makes_of_it(first: tuple[Screen, list[Message]]) -> None:
    from specprof.experiments.arms import load_arms
    from specprof.experiments.run import encode_prompts, measure

    asked = session()
    arms = load_arms(asked.config)
    measured = list(measure(asked.config, arms, encode_prompts(asked.config, arms, PROMPTS), "a-run"))
    (kept,) = of_type(first[1], Kept)
    saved = list(read_events(Path(kept.path).read_text().splitlines()))
    assert list(map(untimed, saved[1:])) == list(map(untimed, measured[1:]))
    started, live = saved[0], measured[0]
    assert isinstance(started, RunStarted) and isinstance(live, RunStarted)
    same = {"load_peak_memory_bytes": 0, "command": "specprof tui"}
    assert started.config | same == live.config | same | {"caveats": []}
    shown = of_type(first[1], RunStarted, Prefilled, Round, PromptEnded, RunEnded)
    assert shown == [replace(e, token_texts=None) if isinstance(e, PromptEnded) else e for e in saved]
    run = read_run(Path(kept.path))
    assert run.complete and len(run.results) == 4 and not any(r.interactive for r in run.results)
    assert run.compared().output_matches_baseline is not None


def test_what_comes_before_the_first_round(first: tuple[Screen, list[Message]]) -> None:
    messages = of_type(first[1], Loading, Prompts, RunStarted, Kept, Going)
    assert messages[0] == Loading("loading tiny_dev")
    assert [p.text for p in messages[1].prompts] == ["def f(x):", "Once upon a"]
    assert messages[2:6] == [Loading("warm-up", n, 3) for n in range(4)]
    assert [type(m) for m in messages[6:]] == [RunStarted, Kept, Going, Going]
    assert [m.mode for m in messages[8:]] == ["running", "finished"]
    assert messages[6].config["command"] == "specprof tui" and messages[6].machine["torch_threads"] == 1


def test_each_token_is_told_once_and_before_it_comes(first: tuple[Screen, list[Message]]) -> None:
    told: dict[str, str] = {}
    for message in first[1]:
        if isinstance(message, Texts):
            assert not told.keys() & message.tokens.keys()
            told |= message.tokens
        elif isinstance(message, Prefilled):
            assert str(message.first_token) in told
        elif isinstance(message, Round):
            assert {str(t) for t in (*message.draft_tokens, *message.emitted_tokens)} <= told.keys()
    assert told and all(told.values())


def test_the_machine_is_looked_at_from_outside(first: tuple[Screen, list[Message]]) -> None:
    devices = of_type(first[1], Device)
    assert devices and {d.name for d in devices} == {"cpu"}
    for device in devices:
        assert 0 < device.memory_bytes < device.memory_total_bytes
        assert 0 <= device.utilisation <= 1
    assert devices[-1].memory_bytes > 100e6, "of the engine, not of this process's start"


# --- steering


def test_a_step_is_one_round(screen: Screen) -> None:
    screen.anew(paused=True)
    started = screen.until_mode("paused")
    assert of_type(started, RunStarted) and not generated(started)
    assert [type(m) for m in screen.step()] == [Prefilled]
    for index in range(3):
        (round,) = screen.step()
        assert isinstance(round, Round) and round.index == index
    several = screen.step(2)
    assert [m.index for m in of_type(several, Round)] == [3, 4]
    assert not generated(screen.feed.read())
    screen.send(paused=False)
    rest = screen.until_mode("finished")
    assert [m.mode for m in of_type(rest, Going)] == ["running", "finished"]
    assert [m.interactive for m in of_type(rest, PromptEnded)] == [True, False, False, False]


def test_a_step_while_running_pauses(screen: Screen) -> None:
    screen.anew()
    screen.until(lambda messages: bool(generated(messages)))
    screen.send(paused=True, steps=screen.control.steps + 1)
    screen.until_mode("paused")
    time.sleep(0.12)
    screen.feed.read()
    time.sleep(0.06)
    assert not generated(screen.feed.read())
    assert len(screen.step()) == 1


def test_a_step_can_come_with_a_restart(screen: Screen) -> None:
    screen.anew(paused=True, steps=screen.control.steps + 1)
    assert [type(m) for m in generated(screen.until_number(1))] == [Prefilled]


def test_the_end_of_a_generation_is_no_step(screen: Screen) -> None:
    screen.anew(paused=True)
    screen.until_mode("paused")
    screen.send(steps=screen.control.steps + NEW_TOKENS)
    messages = screen.until_number(NEW_TOKENS)
    assert len(generated(messages)) == NEW_TOKENS
    (ended,) = of_type(messages, PromptEnded)
    assert ended.decoder == "AR" and ended.interactive


def test_another_k_holds_from_the_next_round_on_and_is_another_run(
    screen: Screen, first: tuple[Screen, list[Message]]
) -> None:
    screen.anew(paused=True)
    screen.until_mode("paused")
    begun = screen.step(NEW_TOKENS + 2)  # all of plain decoding, a prefill, and one round
    assert begun[-1].k == 2  # type: ignore[union-attr]
    screen.send(k=5)
    assert all(round.k == 5 and len(round.draft_tokens) == 5 for round in screen.step())  # type: ignore[union-attr]
    screen.send(paused=False)
    messages = screen.until_mode("finished")
    place = messages.index(of_type(messages, RunStarted)[0])
    before, after = messages[:place], messages[place:]
    (ended,) = of_type(before, PromptEnded)
    assert (ended.prompt_id, ended.decoder, ended.interactive) == ("p0", "SD-K2", True)
    assert not of_type(before, RunEnded), "it was left before its end"
    (started,) = of_type(after, RunStarted)
    assert started.config["k"] == 5
    ends = of_type(after, PromptEnded)
    assert [e.prompt_id for e in ends] == ["p0", "p0", "p1", "p1"] and not any(e.interactive for e in ends)
    assert {e.decoder for e in ends} == {"AR", "SD-K5"}
    for prompt in PROMPTS:
        expected = tokens(first[1], "SD-K2", prompt.prompt_id)
        assert len(expected) == NEW_TOKENS
        assert tokens(after, "SD-K5", prompt.prompt_id) == expected


def test_a_run_that_starts_paused_says_so(screen: Screen) -> None:
    screen.anew(paused=True)
    screen.until_mode("paused")
    screen.step(3)
    screen.send(k=4, skips=screen.control.skips + 1)
    screen.send(steps=screen.control.steps + 1)
    messages = screen.until(lambda messages: bool(of_type(messages, RunStarted)) and bool(of_type(messages, Going)))
    place = messages.index(of_type(messages, RunStarted)[0])
    assert [m.mode for m in of_type(messages[place:], Going)] == ["paused"]


def test_another_k_during_the_last_generation_is_another_run_too(
    screen: Screen, first: tuple[Screen, list[Message]]
) -> None:
    screen.anew(paused=True)
    screen.until_mode("paused")
    screen.send(skips=screen.control.skips + 1)
    speculative = [m for m in generated(first[1]) if (m.prompt_id, m.decoder) == ("p1", "SD-K2")]  # type: ignore[union-attr]
    assert screen.step(len(speculative) + 2)[-1].decoder == "AR"  # type: ignore[union-attr]
    screen.send(k=1, paused=False)
    messages = screen.until_mode("finished")
    (started,) = of_type(messages, RunStarted)
    assert started.config["k"] == 1 and len(of_type(messages, PromptEnded)) == 5
    assert [type(m) for m in of_type(messages, RunEnded, RunStarted)] == [RunStarted, RunEnded], "one came to its end"


def test_k_has_a_limit(screen: Screen) -> None:
    screen.send(k=500)
    messages = screen.until_mode("finished")
    (started,) = of_type(messages, RunStarted)
    assert started.config["k"] == 8 == max(r.k or 0 for r in of_type(messages, Round))
    (refused,) = of_type(messages, Refused)
    assert (refused.k, refused.temperature) == (8, 0.0) and "K 500 " in refused.message and refused.hint


def test_what_excludes_something_else_is_not_done(screen: Screen) -> None:
    screen.send(k=AUTO_K)  # not with --deterministic
    (refused,) = of_type(screen.until(lambda messages: bool(of_type(messages, Refused))), Refused)
    assert (refused.k, refused.temperature) == (2, 0.0) and refused.message and refused.hint
    screen.anew()
    messages = screen.until_mode("finished")
    (started,) = of_type(messages, RunStarted)
    assert started.config["k"] == 2
    assert not of_type(messages, Refused), "it is said once"


def test_another_temperature_holds_from_the_next_generation_on(screen: Screen) -> None:
    screen.anew(paused=True)
    screen.until_mode("paused")
    screen.step(2)
    screen.send(temperature=0.8)
    assert len(screen.step(NEW_TOKENS - 3)) == NEW_TOKENS - 3, "the generation goes on as it is"
    screen.send(paused=False)
    messages = screen.until_mode("finished")
    (started,) = of_type(messages, RunStarted)
    assert started.config["temperature"] == 0.8
    rounds = of_type(messages[messages.index(started) :], Round)
    assert any(round.uniforms for round in rounds), "which is how a drafted token is judged when sampling"


def test_a_prompt_is_left_for_the_next(screen: Screen) -> None:
    screen.anew(paused=True)
    screen.until_mode("paused")
    screen.step(3)
    screen.send(skips=screen.control.skips + 1, paused=False)
    messages = screen.until_mode("finished")
    assert [(e.prompt_id, e.decoder) for e in of_type(messages, PromptEnded)] == [("p1", "SD-K2"), ("p1", "AR")]
    assert {m.prompt_id for m in of_type(messages, Prefilled, Round)} == {"p1"}
    assert not of_type(messages, RunEnded), "a prompt is missing"


def test_a_run_of_which_nothing_is_finished_leaves_no_file(screen: Screen, results: Path) -> None:
    screen.anew(paused=True)
    (kept,) = of_type(screen.until_mode("paused"), Kept)
    screen.step(3)
    screen.send(skips=screen.control.skips + 2)
    screen.until_mode("finished")
    assert Path(kept.path).parent == results and results.is_dir()
    assert not Path(kept.path).exists()


def test_a_run_that_is_given_up_is_not_complete(screen: Screen, results: Path) -> None:
    screen.anew(paused=True)
    (kept,) = of_type(screen.until_mode("paused"), Kept)
    screen.step(NEW_TOKENS + 3)
    screen.anew()
    screen.until(lambda messages: bool(of_type(messages, RunStarted)))
    run = read_run(Path(kept.path))
    assert not run.complete and [r.decoder for r in run.results] == ["AR"]
    assert "interrupted: 1 of 4 generations were made" in of_run(run).caveats
    (listed,) = [saved for saved in saved_runs(results) if saved.path == Path(kept.path)]
    assert not listed.complete
    assert [study.name for study in studies_of([listed.run_id], results)] == [listed.run_id], "it can be named"


def test_a_race_is_run_by_whoever_is_behind(screen: Screen) -> None:
    screen.anew(race=True)
    messages = screen.until_mode("finished")
    ends = of_type(messages, PromptEnded)
    assert len(ends) == 4 and all(e.interactive for e in ends)
    for prompt in PROMPTS:
        events = [e for e in of_type(messages, Prefilled, Round, PromptEnded) if e.prompt_id == prompt.prompt_id]
        assert {type(e) for e in events[:2]} == {Prefilled}
        seconds, under_way = {"AR": 0.0, "SD-K2": 0.0}, {"AR", "SD-K2"}
        for event in events[2:]:
            if isinstance(event, PromptEnded):
                under_way.remove(event.decoder)
                continue
            assert seconds[event.decoder] == min(seconds[name] for name in under_way)
            seconds[event.decoder] += event.seconds
        assert tokens(messages, "AR", prompt.prompt_id) == tokens(messages, "SD-K2", prompt.prompt_id)


def test_a_race_begins_with_the_next_prompt(screen: Screen) -> None:
    screen.anew(paused=True)
    screen.until_mode("paused")
    screen.step(2)
    screen.send(race=True, paused=False)
    ends = of_type(screen.until_mode("finished"), PromptEnded)
    assert [(e.prompt_id, e.interactive) for e in ends] == [("p0", True), ("p0", False), ("p1", True), ("p1", True)]


# --- the end


@pytest.mark.slow
def test_stopping_ends_the_file_and_k_can_choose_itself(results: Path) -> None:
    long = session(results, repetitions=1000, deterministic=False)
    screen = Screen(long, AUTO_K)
    messages = screen.until(lambda messages: len(of_type(messages, PromptEnded)) >= 4)
    pid = screen.feed.pid
    screen.feed.close()
    assert not psutil.pid_exists(pid)
    (kept,) = of_type(messages, Kept)
    run = read_run(Path(kept.path))
    assert not run.complete and run.asked.k == "auto" and len(run.results) >= 4
    assert {r.decoder for r in run.results} == {"AR", "SD-Kauto"}
    assert not any(r.interactive for r in run.results)
    assert len({round.k for r in run.results for round in r.rounds}) > 2, "it tries several"
    assert screen.feed.read() == ()
    screen.feed.close()
    screen.feed.send(Control())


@pytest.mark.slow
def test_a_load_that_fails_says_why(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    feed = LiveFeed(session(pair=ModelPair("own", missing, missing)), Control(k=2))
    failed = failure(feed)
    feed.close()
    assert failed.exit_code == 3
    assert missing in failed.message and failed.hint


def test_results_that_have_no_place_are_known_before_anything_is_loaded(tmp_path: Path) -> None:
    from specprof.experiments.live_engine import Engine

    (tmp_path / "file").touch()
    ours, theirs = socket.socketpair()
    page = ControlPage()
    with ours, theirs, pytest.raises(ResourceError, match="nothing can be written"):
        Engine(session(tmp_path / "file"), Control(), page, Display(theirs)).work()
    page.close()


@pytest.mark.slow
def test_an_engine_that_is_killed_while_it_decodes(results: Path) -> None:
    screen = Screen(session(results, repetitions=1000))
    messages = screen.until(lambda messages: len(of_type(messages, PromptEnded)) >= 2)
    os.kill(screen.feed.pid, signal.SIGKILL)
    assert "SIGKILL" in of_type(everything(screen.feed), Failed)[0].message
    screen.feed.close()
    (kept,) = of_type(messages, Kept)
    run = read_run(Path(kept.path))
    assert not run.complete and len(run.results) >= 2


@pytest.mark.slow
def test_an_engine_ends_with_its_screen(tmp_path: Path) -> None:
    program = """
import time
from test_live import *
feed = LiveFeed(session(), Control(k=2))
while not of_type(feed.read(), RunStarted):
    time.sleep(0.01)
print(feed.pid, flush=True)
time.sleep(300)
"""
    path = os.pathsep.join(sys.path)
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert parent.stdout is not None
    engine = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    psutil.wait_procs([engine], timeout=SOON)
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


# --- around an engine


@pytest.mark.parametrize(
    ("kills", "exit_code", "hint"), [((3, 3), 1, "somebody or something ended it"), ((3, 4), 4, "smaller models")]
)
def test_a_killed_engine_says_so_once(
    kills: tuple[int, int], exit_code: int, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specprof.experiments.live.oom_kills", lambda: kills[0])
    monkeypatch.setattr("specprof.experiments.executors.oom_kills", lambda: kills[1])
    with toy("wait") as feed:
        while not of_type(feed.read(), Going):
            time.sleep(0.01)
        os.kill(feed.pid, signal.SIGKILL)
        messages = everything(feed)
        (failed,) = of_type(messages, Failed)
        assert messages.index(failed) == len(messages) - 1
        assert failed.exit_code == exit_code and "SIGKILL" in failed.message and hint in failed.hint


@pytest.mark.parametrize(
    ("command", "exit_code", "words"),
    [("signal SIGSEGV", 1, "SIGSEGV"), ("signal SIGABRT", 1, "SIGABRT"), ("say ", 1, "exit status 3")],
)
def test_how_an_engine_died(command: str, exit_code: int, words: str) -> None:
    with toy(command) as feed:
        failed = failure(feed)
        assert failed.exit_code == exit_code and words in failed.message


def test_the_last_words_of_an_engine_are_kept() -> None:
    lines = [f"line {n}" for n in range(30)]
    with toy("say " + "\n".join([*lines, "10%\r20%\r30%\r", "\udcff and no end"])) as feed:
        failed = failure(feed)
    assert failed.log_lines == (*lines[-18:], "30%", "\ufffd and no end")


def test_nothing_comes_after_a_failure() -> None:
    with toy("fail") as feed:
        messages = everything(feed)
    assert messages[-2:] == [Going("running"), Failed("it is broken", "mend it", 5)]


@pytest.mark.parametrize("line", ["what?", "[]", '{"aside":"Unheard"}', '{"event":"Round","k":1}', "\udcff"])
def test_what_is_no_message_is_a_failure(line: str) -> None:
    with toy(f"utter {line}") as feed:
        messages = everything(feed)
    assert messages[-2] == Going("running")
    failed = messages[-1]
    assert isinstance(failed, Failed) and failed.exit_code == 1
    assert "is no message" in failed.message and failed.hint and failed.log_lines == ("its last words",)


def test_what_is_wanted_arrives_and_a_stop_is_waited_for(tmp_path: Path) -> None:
    with toy(f"echo {tmp_path / 'stopped'}") as feed:
        for paused in (True, False, True):
            feed.send(Control(paused=paused))
            wanted, got = Going("paused" if paused else "running"), None
            deadline = time.monotonic() + SOON
            while got != wanted:
                got = next(iter(of_type(feed.read(), Going)[-1:]), None)
                assert time.monotonic() < deadline
                time.sleep(0.01)
    assert (tmp_path / "stopped").exists()


def test_what_is_not_read_for_a_while_is_dropped_and_counted() -> None:
    with toy("flood") as feed:
        time.sleep(1.0)
        messages: list[Message] = []
        deadline = time.monotonic() + SOON
        while not of_type(messages, Going) and time.monotonic() < deadline:
            messages += feed.read()
            time.sleep(0.05)
        (dropped, *_) = reversed(of_type(messages, Dropped))
        rounds = of_type(messages, Round)
        assert 0 < len(rounds) < FLOOD
        assert dropped.events == FLOOD + 10 - len(rounds) - len(of_type(messages, Prefilled))
        assert [e.prompt_id for e in of_type(messages, PromptEnded)] == [f"p{n}" for n in range(10)]
        assert len(of_type(messages, RunStarted)) == 1


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts what is open where Linux shows it")
def test_nothing_is_left_open() -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    with toy("wait"):
        pass
    before = opened()
    with toy("wait") as feed:
        assert opened() > before
        feed.close()
        assert opened() == before
        assert not psutil.pid_exists(feed.pid)


def test_an_engine_that_can_not_be_started_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(psutil.Process().open_files()), psutil.Process().num_fds()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ResourceError, match="no engine can be started"):
        LiveFeed(session(), Control())
    assert (len(psutil.Process().open_files()), psutil.Process().num_fds()) == before


def test_a_full_disk_is_known_before_it_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: Full(os.memfd_create("full"), "r+"))
    with pytest.raises(ResourceError, match=r"no engine can be started: No space left") as raised:
        LiveFeed(session(), Control())
    assert "disk space" in raised.value.hint


def test_on_other_systems_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = session()
    monkeypatch.setattr("specprof.experiments.live.os", types.SimpleNamespace(name="nt"))
    with pytest.raises(ResourceError, match="needs Linux or macOS"):
        LiveFeed(asked, Control())


def test_a_screen_needs_no_torch() -> None:
    loaded = loaded_after("import specprof.experiments.live")
    assert loaded.isdisjoint({*HEAVY, "numpy"})


# --- what it runs on


class NvmlError(Exception):
    pass


def nvml_module(**changes: Any) -> types.ModuleType:
    """As pynvml, of a machine with two GPUs."""
    module = types.ModuleType("pynvml")
    answers: dict[str, Any] = {
        "NVMLError": NvmlError,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
        "nvmlDeviceGetName": lambda handle: f"Card {handle}",
        "nvmlDeviceGetMemoryInfo": lambda handle: types.SimpleNamespace(used=handle + 3, total=100),
        "nvmlDeviceGetUtilizationRates": lambda handle: types.SimpleNamespace(gpu=25),
        "nvmlDeviceGetPowerUsage": lambda handle: 350_500,
    }
    for name, answer in (answers | changes).items():
        setattr(module, name, answer)
    return module


def refuses(*_: object) -> None:
    raise NvmlError("not supported")


def on(device: str) -> dict[str, Any]:
    return {"models": {"target": {"device": device}}}


@pytest.fixture
def one_name(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    return monkeypatch


def test_a_gpu_is_asked_where_the_models_are_on_one(one_name: pytest.MonkeyPatch) -> None:
    one_name.setitem(sys.modules, "pynvml", nvml_module())
    reader = DeviceReader(os.getpid())
    cpu = reader.read()
    assert cpu.name == "cpu" and cpu.memory_bytes == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    reader.look_at(on("cuda:1"))
    assert reader.read() == Device("Card 1", 4, 100, 0.25, 350.5)


def test_a_gpu_need_not_answer_everything(one_name: pytest.MonkeyPatch) -> None:
    silent = dict.fromkeys(("nvmlDeviceGetPowerUsage", "nvmlDeviceGetUtilizationRates"), refuses)
    one_name.setitem(sys.modules, "pynvml", nvml_module(**silent))
    reader = DeviceReader(os.getpid())
    reader.look_at(on("cuda"))
    assert reader.read() == Device("Card 0", 3, 100, None, None)


@pytest.mark.parametrize("module", [None, nvml_module(nvmlInit=refuses)])
def test_a_gpu_that_can_not_be_asked_is_left_out(module: types.ModuleType | None, one_name: pytest.MonkeyPatch) -> None:
    one_name.setitem(sys.modules, "pynvml", module)
    reader = DeviceReader(os.getpid())
    reader.look_at(on("cuda:0"))
    assert reader.read().name == "cpu"


def test_a_process_that_is_gone_has_no_memory() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert DeviceReader(gone.pid).read().memory_bytes is None


# --- what is shared


def test_a_control_page_is_seen_by_both() -> None:
    ours = ControlPage()
    theirs = ControlPage(os.dup(ours.descriptor))
    control = Control(True, 3, 2**40, 4, AUTO_K, 0.7, True, 0.25)
    ours.write(control)
    assert theirs.read() == control
    ours.write(Control(k=10**20))
    assert theirs.read().k > 10**6, "no K is an error here"
    ours.write(Control())
    assert theirs.read() == Control()
    assert (theirs.stopped, ours.has_begun) == (False, False)
    ours.stop()
    theirs.begin()
    assert (theirs.stopped, ours.has_begun) == (True, True)
    for page in (ours, theirs, ours):
        page.close()


# --- telling


class Told:
    """A display, its clock, and what comes out at the other end."""

    def __init__(self, size: int | None = None) -> None:
        self.reader, writer = socket.socketpair()
        self.reader.setblocking(False)
        if size is not None:
            writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        self.now = 0.0
        self.display = Display(writer, lambda: self.now)
        self.display.explain_with(lambda token: f"<{token}>")
        self._writer, self._received = writer, b""

    def read(self) -> list[Message]:
        with contextlib.suppress(BlockingIOError):
            while part := self.reader.recv(1 << 16):
                self._received += part
        *lines, self._received = self._received.split(b"\n")
        return [from_json_line(line.decode()) for line in lines]

    def fill(self) -> None:
        """Rounds until nothing more goes in, and some of them are lost."""
        for index in range(10_000):
            self.display.add(round_of(index))
            self.display.flush()
            if self.display._dropped:
                return
        raise AssertionError("the socket takes everything")

    def close(self) -> None:
        self.reader.close()
        self._writer.close()


@pytest.fixture
def told() -> Iterator[Told]:
    told = Told(4096)
    yield told
    told.close()


def round_of(index: int, token: int = 7) -> Round:
    return Round("p0", "SD-K1", 0, index, (token,), 1, (token, token + 1), 0.0, 0.0, 0.0, 0.0)


ENDED = PromptEnded("p0", "SD-K1", 0, "length", 0, token_texts={"7": "x"})


def test_messages_go_in_batches(told: Told) -> None:
    told.display.add(Going("running"))
    told.display.tick()
    assert told.read() == [Going("running")]
    told.display.add(round_of(0))
    told.display.tick()
    assert told.read() == [], "too soon"
    told.display.add(ENDED)
    told.now += 0.05
    told.display.tick()
    assert told.read() == [Texts({"7": "<7>", "8": "<8>"}), round_of(0), replace(ENDED, token_texts=None)]
    told.display.add(round_of(1))
    told.display.add(round_of(2, 8))
    told.display.flush()
    assert told.read() == [Texts({"9": "<9>"}), round_of(1), round_of(2, 8)]


def test_a_full_socket_loses_rounds_and_nothing_else(told: Told) -> None:
    told.fill()
    told.display.add(round_of(1, 40))
    told.display.add(ENDED)
    told.display.flush()
    told.display.add(RunEnded(0))
    told.display.flush()
    before = told.read()
    assert not of_type(before, PromptEnded, RunEnded, Dropped)
    told.display.add(round_of(2, 40))
    told.display.flush()
    after = [*told.read()]
    told.display.flush()
    after += told.read()
    # The end of a batch that was under way comes first, if there is one.
    kept = after[after.index(Dropped(2)) :]
    assert kept == [
        Dropped(2),
        replace(ENDED, token_texts=None),
        RunEnded(0),
        Texts({"40": "<40>", "41": "<41>"}),
        round_of(2, 40),
    ]
    told.display.add(Going("paused"))
    told.display.flush()
    assert told.read() == [Going("paused")], "what was dropped is said once"


def test_a_batch_that_was_sent_in_part_is_sent_to_its_end(told: Told) -> None:
    many = [round_of(index) for index in range(300)]
    for round in many:
        told.display.add(round)
    told.display.flush()
    received = told.read()
    assert 0 < len(received) < 301
    for _ in range(100):
        told.display.flush()
        received += told.read()
    assert received[1:] == many


def test_a_closed_socket_is_nobody_who_waits(told: Told) -> None:
    told.display.add(Going("running"))
    told.display.flush()
    told.reader.close()
    for index in range(1000):
        told.display.add(round_of(index))
        told.display.flush()
    told.display.add(Failed("a", "b", 1))
    told.display.finish()


def test_the_last_words_are_waited_for() -> None:
    told = Told(4096)
    told.fill()
    told.display.add(Failed("a", "b", 1))
    messages: list[Message] = []

    def read_late() -> None:
        time.sleep(0.1)
        deadline = time.monotonic() + SOON
        while not of_type(messages, Failed) and time.monotonic() < deadline:
            messages.extend(told.read())

    thread = threading.Thread(target=read_late)
    thread.start()
    told.display.finish()
    thread.join()
    told.close()
    assert messages[-1] == Failed("a", "b", 1)
