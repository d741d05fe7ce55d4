"""The other side of :mod:`specprof.experiments.live`: decodes prompts by both arms, as it is steered."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NoReturn

import torch

from specprof.decoding.draft_length import AdaptiveK
from specprof.decoding.request import Request
from specprof.errors import SpecprofError, UsageError
from specprof.experiments.arms import Arms, load_arms
from specprof.experiments.config import DEFAULT_K_MAX, RunConfig
from specprof.experiments.engine import Decoder
from specprof.experiments.executors import failure_of
from specprof.experiments.live import ControlPage, Session
from specprof.experiments.live_display import Display
from specprof.experiments.observer import Observer, text_of
from specprof.experiments.run import (
    RunTotals,
    choose_method,
    differences,
    encode_prompts,
    energy_meter,
    request_for,
    run_details,
    turns,
    warm_up,
    warm_up_steps,
)
from specprof.experiments.serving import die_with_the_driver
from specprof.experiments.store import RunFile, check_writable, new_run_id
from specprof.profiling import events, machine
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round, RunEnded, RunStarted
from specprof.profiling.feed import (
    AUTO_K,
    LONGEST_DRAFT,
    Control,
    Failed,
    Going,
    Kept,
    Loading,
    Prompts,
    PromptText,
    Refused,
)
from specprof.reproducibility import make_deterministic

LOG = logging.getLogger("specprof")

_GLANCE = 0.005
"""Seconds between two looks at what is wanted, while nothing is decoded."""
_TRACEBACK_LINES = 20
_LONGEST_PROMPT = 4000
"""Characters of one that a screen is sent, its last: it shows a few lines."""

_Next = Literal["go", "skip", "anew", "stop"]
"""What becomes of a prompt: its next round; the next prompt; another run; the end. Of a run: it came to its end; so it
did, without some prompts; it is left for another; it is left."""


def serve(arguments: Sequence[str]) -> NoReturn:
    """Decode until told to stop; the whole life of the engine's process.

    Args:
        arguments: file descriptors of the socket to the screen, of the lifeline, and of what is wanted. The session
            and the first control come over standard input, pickled.
    """
    display_fd, lifeline, page_fd = map(int, arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for descriptor in (display_fd, lifeline, page_fd):
        os.set_inheritable(descriptor, False)
    die_with_the_driver(lifeline)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr, force=True)
    LOG.setLevel(logging.INFO)
    logging.captureWarnings(True)
    session, control = pickle.load(sys.stdin.buffer)
    display, status = Display(socket.socket(fileno=display_fd)), 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what holds files puts them away, as after Ctrl-C
    try:
        Engine(session, control, ControlPage(page_fd), display).work()
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGTERM)  # nobody looks any more
    except (Exception, SystemExit) as error:
        failed = _failed(error)
        display.add(failed)
        status = failed.exit_code
    display.finish()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # nobody waits for libraries to tidy up


def _failed(error: BaseException) -> Failed:
    failure = failure_of(error)
    if isinstance(error, SpecprofError):
        return Failed(error.message, error.hint, error.exit_code)
    lines = "".join(traceback.format_exception(error)).splitlines()[-_TRACEBACK_LINES:]
    if failure.reason == "out of memory":
        return Failed(failure.message, "use smaller models, or fewer new tokens", 4, tuple(lines))
    hint = "please report it with these lines; `specprof run` with --debug says more"
    return Failed(f"the engine failed: {failure.message}", hint, 1, tuple(lines))


class LiveK:
    """The K that is wanted, from the next round on; nothing of that round is known when it is chosen."""

    def __init__(self, longest: int, adaptive: AdaptiveK) -> None:
        self.longest = longest
        self.name = ""
        """K of the run, which a generation keeps in its label to its end."""
        self.k: int | Literal["auto"] = 0
        self._adaptive = adaptive

    def choose(self, room: int) -> int:
        return self._adaptive.choose(room) if self.k == "auto" else self.k

    def observe(self, round: Round) -> None:
        if self.k == "auto":
            self._adaptive.observe(round)


class Engine:
    """Decodes runs: all prompts by both arms, with one K and one temperature each.

    Args:
        session: what to decode.
        control: what is wanted at first.
        page: where what is wanted is looked up from then on.
        display: who is told.
    """

    def __init__(self, session: Session, control: Control, page: ControlPage, display: Display) -> None:
        self._session, self._page, self._display = session, page, display
        self._steps, self._skips, self._restarts = control.steps, control.skips, control.restarts
        self._asked: tuple[int, float] | None = None
        self._mode: str | None = None

    def work(self) -> None:
        """Load, warm up and decode, until told to stop.

        Raises:
            SpecprofError: a model can't be had, something doesn't fit, a file can't be written.
        """
        self._load()
        self._page.begin()
        while True:
            then = self._run()
            if then == "stop" or (then != "anew" and not self._is_wanted_again()):
                return

    # --- before anything is decoded

    def _load(self) -> None:
        session, config, display = self._session, self._session.config, self._display
        texts = (PromptText(p.prompt_id, p.domain, p.raw_text[-_LONGEST_PROMPT:]) for p in session.prompts)
        display.add(Prompts(tuple(texts)))
        display.flush()
        if session.results_dir is not None:
            check_writable(session.results_dir)
        if config.deterministic:
            make_deterministic()
        torch.set_num_threads(session.threads or _threads_beside_a_screen())
        arms = load_arms(config)
        for note in arms.notes:
            LOG.info("note: %s", note)
        self._prompts = encode_prompts(config, arms, session.prompts)
        arms, finding = choose_method(config, arms, self._prompts)
        if finding is not None:
            LOG.info("note: %s", finding)
        self._arms = arms
        self._length = arms.speculative.length = _length(config, arms)
        control = self._page.read()
        self._wanted = self._configured(control)  # what can't be had at first is an error, and later it is not
        self._follow(control)
        self._observer = Observer(text_of(arms.tokenizer), energy_meter(arms.target, arms.draft))
        display.explain_with(self._observer.text)
        self._warm_up()
        self._machine = machine.describe()
        gc.collect()  # what loading left behind, now and not between two rounds

    def _warm_up(self) -> None:
        total, done = warm_up_steps(self._wanted, self._prompts), 0

        def tell() -> None:
            self._display.add(Loading("warm-up", done, total))
            self._display.flush()

        def tick() -> None:
            nonlocal done
            done += 1
            tell()

        tell()
        warm_up(self._wanted, self._arms, self._prompts, tick)

    # --- what is wanted

    def _configured(self, control: Control) -> RunConfig:
        """What a run is configured as under this control.

        Raises:
            UsageError: this K or temperature excludes something else that was asked for.
        """
        config = self._session.config
        auto = control.k == AUTO_K
        longest = min(config.longest_draft if config.k == "auto" else DEFAULT_K_MAX, self._length.longest)
        wanted = replace(
            config,
            k="auto" if auto else max(0, min(control.k, self._length.longest)),
            k_max=longest if auto else None,
            temperature=control.temperature,
        )
        if self._arms.vocab_method == "slem":
            replace(wanted, vocab_method="slem")  # refuses to sample: text has no probabilities
        return wanted

    def _follow(self, control: Control) -> None:
        """Take over a K and a temperature as far as they can be had; what can't is said no to, once."""
        asked = (control.k, control.temperature)
        if asked == self._asked:
            return
        self._asked = asked
        longest = self._length.longest
        try:
            self._wanted = self._configured(control)
        except UsageError as error:
            self._refuse(error.message, error.hint)
        else:
            if control.k > longest:
                hint = "a larger K can be chosen before the start, as far as the models have the context for it"
                self._refuse(f"K {control.k} is too large here: it is {longest}", hint)
        self._length.k = self._wanted.k

    def _refuse(self, message: str, hint: str) -> None:
        holds = self._wanted
        self._display.add(Refused(message, hint, AUTO_K if holds.k == "auto" else holds.k, holds.temperature))
        self._display.flush()  # somebody waits for it

    def _is_wanted_again(self) -> bool:
        """Wait until the prompts are to be decoded once more; False: it is the end."""
        while not self._page.stopped:
            control = self._page.read()
            self._follow(control)
            if control.restarts > self._restarts or self._wanted != self._config:
                return True
            self._steps, self._skips = control.steps, control.skips  # there is nothing to step through or to leave
            self._go("finished")
            self._wait()
        return False

    def _go(self, mode: Literal["running", "paused", "finished"]) -> None:
        if mode != self._mode:
            self._mode = mode
            self._display.add(Going(mode))
            self._display.flush()  # somebody waits for it

    def _wait(self) -> None:
        self._display.tick()
        time.sleep(_GLANCE)

    # --- decoding

    def _run(self) -> _Next:
        """One run, to its end or until another is wanted."""
        control = self._page.read()
        self._restarts = control.restarts
        self._follow(control)
        config = self._config = self._wanted
        arms, prompts, display = self._arms, self._prompts, self._display
        self._length.name = str(config.k)
        details = run_details(config, arms, prompts, None, self._session.command)
        started = RunStarted(new_run_id(), events.SCHEMA, details, self._machine)
        with RunKeeper(self._session.results_dir, started) as keep:
            display.add(started)
            display.add(Kept(None if keep.path is None else str(keep.path)))
            self._mode = None  # a run that starts is taken for running
            totals = RunTotals()

            def take(event: Event) -> None:
                totals.add(event)
                keep(event)
                display.add(event)
                display.tick()

            then = self._decode(take)
            if then == "go":
                display.flush()  # what comes now may take a while
                found = differences(config, arms, prompts, totals, config.longest_draft + 1)
                take(RunEnded(totals.peak_memory_bytes, found))
        return then

    def _decode(self, take: Callable[[Event], None]) -> _Next:
        observer, has_skipped = replace(self._observer, noted=set()), False
        for repetition, prompt, decoders in turns(self._config, self._arms, self._prompts):
            request = request_for(self._config, self._arms, prompt, repetition)
            generations = [Generation(observer, decoder, request) for decoder in decoders]
            race = len(generations) > 1 and self._page.read().race
            for at_once in [generations] if race else [[generation] for generation in generations]:
                with contextlib.ExitStack() as stack:
                    for generation in at_once:
                        stack.callback(generation.close)
                        generation.interactive = race
                    then = self._interleaved(at_once, take)
                if then != "go":
                    break
            if then in ("anew", "stop"):
                return then
            has_skipped |= then == "skip"
        return "skip" if has_skipped else "go"

    def _interleaved(self, generations: Sequence[Generation], take: Callable[[Event], None]) -> _Next:
        """Several generations to their ends, the one that is behind in time next."""
        under_way = list(generations)
        while under_way:
            generation = min(under_way, key=Generation.progress)
            if not generation.is_complete:  # its end is no round, and nothing to wait for
                then = self._permission(under_way)
                if then != "go":
                    return then
            event = generation.next()
            if isinstance(event, PromptEnded):
                under_way.remove(generation)
            take(event)
        return "go"

    def _permission(self, under_way: Sequence[Generation]) -> _Next:
        """Wait until the next round may be made, or until there is to be none."""
        has_begun = any(generation.has_begun for generation in under_way)
        while not self._page.stopped:
            control = self._page.read()
            if control.restarts > self._restarts:
                return "anew"
            if control.skips > self._skips:
                self._skips += 1
                return "skip"
            k = self._length.k
            self._follow(control)
            if not has_begun and self._wanted != self._config:
                return "anew"
            steps = control.paused and control.steps > self._steps
            if steps or (has_begun and (control.paused or self._length.k != k)):
                for generation in under_way:
                    generation.interactive = True
            self._go("paused" if control.paused else "running")
            if steps:
                self._steps += 1
                return "go"
            if not control.paused:
                self._steps = control.steps
                return "go"
            self._wait()
        return "stop"


class Generation:
    """One prompt by one arm, a round at a time."""

    def __init__(self, observer: Observer, decoder: Decoder, request: Request) -> None:
        self.interactive = False
        """Whether anything was done to it that no measurement has."""
        self._request = request
        self._events = observer.events(decoder, request)
        self._seconds = 0.0
        self._num_tokens, self._last_token = 0, -1

    @property
    def has_begun(self) -> bool:
        return self._num_tokens > 0

    @property
    def is_complete(self) -> bool:
        """Whether it has all its tokens, and only its end is to come."""
        return self.has_begun and self._request.finish_reason(self._num_tokens, self._last_token) is not None

    def progress(self) -> tuple[bool, float]:
        """How far it is, in seconds of its rounds; all begin before one goes on."""
        return self.has_begun, self._seconds

    def next(self) -> Event:
        """Its prefill, its next round, or its end."""
        event = next(self._events)
        match event:
            case Prefilled():
                self._num_tokens, self._last_token = 1, event.first_token
            case Round():
                self._seconds += event.seconds
                self._num_tokens += len(event.emitted_tokens)
                self._last_token = event.emitted_tokens[-1]
            case PromptEnded():
                event = replace(event, interactive=self.interactive)
        return event

    def close(self) -> None:
        """Leave it where it is."""
        self._events.close()


class RunKeeper:
    """The file of a run, which is there from its first finished generation on.

    Args:
        directory: where it is kept; None keeps nothing.
        started: its first line.

    Raises:
        ResourceError: it can't be written.
    """

    def __init__(self, directory: Path | None, started: RunStarted) -> None:
        self._file = None if directory is None else RunFile(directory, started.run_id)
        self._held: list[Event] = [started]
        self._has_finished = False

    @property
    def path(self) -> Path | None:
        return None if self._file is None else self._file.path

    def __call__(self, event: Event) -> None:
        if self._file is None:
            return
        self._held.append(event)
        self._has_finished |= isinstance(event, PromptEnded)
        if self._has_finished:
            for held in self._held:
                self._file(held)
            self._held.clear()

    def __enter__(self) -> RunKeeper:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._file is not None:
            self._file.__exit__(None, None, None)


def _length(config: RunConfig, arms: Arms) -> LiveK:
    """K as far as the models have room for it."""
    contexts = (wrapper.max_context for wrapper in (arms.target, arms.draft) if wrapper is not None)
    longest = min([max(config.longest_draft, LONGEST_DRAFT), *(context - 1 for context in contexts if context)])
    adaptive = config.longest_draft if config.k == "auto" else DEFAULT_K_MAX
    return LiveK(longest, AdaptiveK(min(adaptive, longest)))


def _threads_beside_a_screen() -> int:
    """PyTorch's choice, but for one core that is left to whoever draws.

    Threads meet after every operation: were all cores taken, each frame that is drawn on one of them would hold up
    all of them. ``benchmarks/observer.py`` measures it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(torch.get_num_threads(), cores - 1))
