"""``specprof tui``: watch speculative decoding happen, live or once more."""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from specprof import __version__
from specprof.commands import completing, narration, options
from specprof.commands.choosing import Settings, flags_of, offer
from specprof.commands.chosen import DEFAULT_PAIR, chosen_k
from specprof.commands.completing import one_of
from specprof.commands.exit_codes import HUNG_UP
from specprof.commands.help import PROMPTS, RESULTS, SCREEN
from specprof.commands.narration import LOG
from specprof.commands.options import defaulting, option
from specprof.commands.output import make_directory, typed
from specprof.commands.remembered import last_choice, remember
from specprof.commands.run_document import saved_run_document
from specprof.data.prompts import DOMAINS
from specprof.errors import SpecprofError, UsageError
from specprof.profiling.feed import AUTO_K, FASTEST, SLOWEST, Control
from specprof.tui.choices import LARGEST_K, Choice, Offer

if TYPE_CHECKING:
    from specprof.profiling.feed import Failed, Feed
    from specprof.tui.app import SpecprofApp

SCHEMA = "specprof.tui/1"
FPS = (1.0, 30.0)

_OF_A_REPLAY = frozenset({"replay", "speed", "fps", "theme", "results_dir", "as_json", "debug"})
"""What can be asked of one."""
_CHOSEN = frozenset({"pair", "draft", "target", "k", "temperature", "drafter", "draft_layers", "prompts", "prompt"})
"""What the start screen asks for."""
_LOG_RECORDS = 1000
_GLANCE_SECONDS = 2.0
_CANDIDATES = 6


def tui(
    context: typer.Context,
    pair: options.Pair = None,
    draft: options.Draft = None,
    target: options.Target = None,
    dtype: options.Dtype = None,
    revision: options.Revision = None,
    random_weights: options.RandomWeights = False,
    scale_layers: options.ScaleLayers = None,
    offline: options.Offline = False,
    trust_remote_code: options.TrustRemoteCode = False,
    k: Annotated[str | None, defaulting(options.K, Choice().k)] = None,
    drafter: Annotated[str | None, defaulting(options.DRAFTER, Choice().drafter)] = None,
    draft_layers: options.DraftLayers = None,
    draft_threshold: options.DraftThreshold = 0.0,
    vocab_method: options.VocabMethod = "auto",
    synthetic_acceptance: options.SyntheticAcceptance = None,
    prompt: Annotated[str | None, option(PROMPTS, "--prompt", metavar="TEXT", help="A text to continue.")] = None,
    prompts: Annotated[
        str | None,
        option(
            PROMPTS,
            "--prompts",
            metavar="FILE|DOMAIN",
            offers=one_of(DOMAINS),
            help=f"A JSON, JSONL or text file, or packaged prompts: {', '.join(DOMAINS)}.",
        ),
    ] = None,
    num_prompts: options.NumPrompts = None,
    max_new_tokens: options.MaxNewTokens = 96,
    temperature: Annotated[float | None, defaulting(options.TEMPERATURE, Choice().temperature)] = None,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    seed: options.Seed = 0,
    ignore_eos: options.IgnoreEos = False,
    chat_template: options.ChatTemplate = "auto",
    reps: options.Reps = 1,
    deterministic: options.Deterministic = False,
    device: options.Device = None,
    device_map: options.DeviceMap = None,
    forward: options.Forward = "auto",
    engine: options.Engine = "auto",
    compile: options.Compile = False,
    threads: Annotated[int | None, defaulting(options.THREADS, "all cores but the screen's")] = None,
    replay: Annotated[
        str | None,
        option(
            SCREEN,
            "--replay",
            metavar="RUN",
            offers=completing.run,
            help="Show a run once more: as `specprof results list` has it, or its file.",
        ),
    ] = None,
    speed: Annotated[
        float,
        option(SCREEN, "--speed", metavar="X", help="--replay: seconds of the run that pass in one, 0.25 to 16."),
    ] = 1.0,
    fps: Annotated[
        float, option(SCREEN, "--fps", metavar="N", help="Times a second that the screen is drawn, 1 to 30.")
    ] = 10.0,
    theme: Annotated[
        str | None,
        option(
            SCREEN,
            "--theme",
            metavar="NAME",
            help="textual-dark, textual-light, ansi-dark, ansi-light, nord, ... [default: textual-dark]",
        ),
    ] = None,
    as_json: Annotated[
        bool, option(RESULTS, "--json", help="Print the runs as one JSON document, once the screen is left.")
    ] = False,
    results_dir: options.ResultsDir = Path("results"),
    no_save: options.NoSave = False,
    debug: options.Debug = False,
) -> None:
    """Watch what is drafted, accepted and rejected, as it is measured.

    With --pair, --target or --replay it starts at once; else a screen asks what to watch.

    Examples:
        # choose a pair and prompts, then watch
        specprof tui

        # at once
        specprof tui --pair tiny_dev --k 4 --temperature 0.8 --prompts code

        # a saved run once more, at half its speed
        specprof tui --replay 20261121-101500-7f3c --speed 0.5

        # the numbers of what was watched
        specprof tui --json > runs.json
    """
    narration.set_up(detailed=False, quiet=False, as_json=False)
    _check_screen_flags(context, fps, speed, replayed=replay is not None)
    with ExitStack() as until_the_end:
        kept_in: Path | None = results_dir
        if no_save:
            # The document is made of what is kept: for as long as that takes.
            kept_in = Path(until_the_end.enter_context(tempfile.TemporaryDirectory())) if as_json else None
        if replay is not None:
            subject = _replayed(_run_file(replay, results_dir), speed)
        else:
            settings = Settings(
                {
                    "draft_threshold": draft_threshold,
                    "vocab_method": vocab_method,
                    "top_k": top_k,
                    "top_p": top_p,
                    "max_new_tokens": max_new_tokens,
                    "seed": seed,
                    "repetitions": reps,
                    "device": device,
                    "device_map": device_map,
                    "forward": forward,
                    "engine": engine,
                    "compile": compile,
                    "ignore_eos": ignore_eos,
                    "deterministic": deterministic,
                    "chat_template": chat_template,
                    "random_weights": random_weights,
                    "scale_layers": scale_layers,
                    "synthetic_acceptance": synthetic_acceptance,
                    "revision": revision,
                    "offline": offline,
                    "trust_remote_code": trust_remote_code,
                },
                dtype=dtype,
                num_prompts=num_prompts,
                threads=threads,
                results_dir=kept_in,
            )
            if prompt is not None and prompts is not None:
                raise UsageError("--prompt and --prompts exclude each other", "give a text, or a file")
            chosen = {
                "k": None if k is None else _number_of(chosen_k(k)),
                "temperature": temperature,
                "drafter": drafter,
                "draft_layers": draft_layers,
                "prompts": prompts,
                "prompt": prompt,
            }
            asked = {name: value for name, value in chosen.items() if value is not None}
            subject = _live(context, settings, asked, pair=pair, draft=draft, target=target)
        app = _shown(subject, results_dir, reports=not no_save, fps=fps, theme=theme)
        kept = [path for path in map(Path, app.kept) if path.is_file()]
        if not no_save:
            for path in kept:
                LOG.info("events: %s", path)
        if as_json:
            runs = [saved_run_document(path, kept=not no_save) for path in subject.runs or kept]
            print(json.dumps({"schema": SCHEMA, "specprof_version": __version__, "runs": runs}, indent=2))
    if app.failure is not None:
        if debug:
            for line in app.failure.log_lines:
                LOG.info("engine: %s", line)
        raise _error(app.failure)
    if app.return_code:
        raise typer.Exit(app.return_code)


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is shown."""

    open_feed: Callable[[Choice], Feed]
    offer: Offer
    choice: Choice
    start: bool
    runs: tuple[Path, ...] = ()
    """Files that are there already; none of a live run."""


def _replayed(path: Path, speed: float) -> _Subject:
    from specprof.experiments.saved_runs import run_events, run_token_texts
    from specprof.tui.replay import Replay

    next(run_events(path))  # it is a run

    def open_feed(choice: Choice) -> Feed:
        replay = Replay(lambda: run_events(path), run_token_texts(path), path=str(path))
        replay.send(Control(pace=choice.pace))
        return replay

    return _Subject(open_feed, Offer((), (), (), replay=True), Choice(pace=speed), start=True, runs=(path,))


def _live(
    context: typer.Context,
    settings: Settings,
    asked: dict[str, Any],
    *,
    pair: str | None,
    draft: str | None,
    target: str | None,
) -> _Subject:
    """An engine to watch; what can be refused without a screen is.

    Args:
        asked: of :class:`~specprof.tui.choices.Choice`, beside the models.
    """
    start = any(name is not None for name in (pair, draft, target))
    if start:
        choice = Choice(pair=pair, draft=draft, target=target, **asked)
        settings.session(choice, None)
    else:
        choice = Choice(pair=DEFAULT_PAIR, **asked)
        settings.run_config(choice)
        if "prompt" in asked or "prompts" in asked:
            settings.prompts(choice)
        choice = replace(last_choice(choice), **asked)

    def open_feed(choice: Choice) -> Feed:
        from specprof.experiments.live import LiveFeed

        command = typed(context) if start and choice == first else _command(context, choice)
        session = settings.session(choice, command)
        return LiveFeed(session, Control(k=choice.k, temperature=choice.temperature))

    first = choice
    return _Subject(open_feed, offer(), choice, start)


def _shown(subject: _Subject, results_dir: Path, *, reports: bool, fps: float, theme: str | None) -> SpecprofApp:
    """The app, after the screen was left.

    Raises:
        UsageError: there is no such theme, or no terminal.
    """
    from specprof.tui.app import SpecprofApp

    app = SpecprofApp(
        subject.open_feed,
        subject.offer,
        subject.choice,
        start=subject.start,
        save_report=(lambda path: _save_report(path, results_dir)) if reports else None,
        remember=(lambda _: None) if subject.offer.replay else remember,
        directory=results_dir,
        fps=fps,
        theme=theme,
    )
    if theme is not None and theme not in app.available_themes:
        raise UsageError(f"there is no theme {theme!r}", f"themes: {', '.join(app.available_themes)}")
    _check_terminal()
    with _terminal_to_itself():
        _end_with_the_terminal(app)
        try:
            app.run()
        finally:
            app.end()
    return app


def _end_with_the_terminal(app: SpecprofApp) -> None:
    """A terminal that hangs up ends the app even where the signal of it is ignored, as ``nohup`` has it: drawing on
    it would wait for ever, and the engine go on."""
    import termios

    try:
        descriptor = sys.stderr.fileno()
        termios.tcgetattr(descriptor)
    except (termios.error, OSError):
        return  # nothing that could hang up

    def watch() -> None:
        while True:
            time.sleep(_GLANCE_SECONDS)
            try:
                termios.tcgetattr(descriptor)
            except (termios.error, OSError):
                app.end()
                os._exit(HUNG_UP)

    threading.Thread(target=watch, name="terminal", daemon=True).start()


def _check_screen_flags(context: typer.Context, fps: float, speed: float, *, replayed: bool) -> None:
    for flag, value, (least, most) in (("--fps", fps, FPS), ("--speed", speed, (SLOWEST, FASTEST))):
        if not least <= value <= most:
            raise UsageError(f"{flag} {value:g} is not in {least:g} to {most:g}", "choose a number in between")
    given = _given(context)
    if not replayed and "speed" in given:
        raise UsageError("--speed needs --replay", "an engine is as fast as it is; a replay has a speed")
    for name, words in given.items():
        if replayed and name not in _OF_A_REPLAY:
            raise UsageError(f"{words[0]} does not apply to --replay", "a replay shows what was measured: leave it out")


def _given(context: typer.Context) -> dict[str, list[str]]:
    """What was typed on the command line, by parameter, in one spelling."""
    given = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.name is not None:
            value = context.params[parameter.name]
            given[parameter.name] = [parameter.opts[-1]] + ([] if value is True else [str(value)])
    return given


def _command(context: typer.Context, choice: Choice) -> str:
    """The command line that leads to a choice at once."""
    others = [words for name, words in _given(context).items() if name not in _CHOSEN]
    return shlex.join(["specprof", "tui", *flags_of(choice), *(word for words in others for word in words)])


def _number_of(k: int | Literal["auto"]) -> int:
    if k == "auto":
        return AUTO_K
    if k < 0:
        raise UsageError(f"k = {k} is negative", "k is the number of tokens drafted per round, 0 or more; or auto")
    if k > LARGEST_K:
        raise UsageError(f"k = {k} is more than {LARGEST_K}", "2 to 8 is usual")
    return k


def _run_file(name: str, directory: Path) -> Path:
    """The file of a run.

    Raises:
        UsageError: there is none of that name, or several.
    """
    for path in (Path(name), directory / f"{name}.jsonl"):
        if path.is_file():
            return path
    from specprof.experiments.saved_runs import saved_runs

    runs = saved_runs(directory)
    found = [run for run in runs if name and run.run_id.startswith(name)]
    if len(found) == 1:
        return found[0].path
    if found:
        raise UsageError(f"{name!r} fits {len(found)} runs", f"name one: {_some([run.run_id for run in found])}")
    hint = (
        f"there are: {_some([run.run_id for run in runs])}" if runs else "make one with `specprof run`, or name a file"
    )
    raise UsageError(f"there is no run {name!r} in {directory}", hint)


def _some(names: list[str]) -> str:
    """The newest of them."""
    more = len(names) - _CANDIDATES
    return ", ".join(names[: -_CANDIDATES - 1 : -1]) + (f" and {more} more" if more > 0 else "")


def _check_terminal() -> None:
    """Raise UsageError unless there is a terminal to draw on, and one to type on."""
    hint = "for pipes, files and jobs there is `specprof run`"
    if os.name != "posix":
        raise UsageError("this needs Linux, macOS or another Unix", hint)
    for stream, what in ((sys.stdin, "standard input"), (sys.stderr, "standard error, where it is drawn,")):
        if not stream.isatty():
            raise UsageError(f"this needs a terminal, and {what} is none", hint)
    if os.environ.get("TERM") == "dumb":
        raise UsageError("this needs a terminal that can place text, and TERM is dumb", hint)
    if "utf" not in (sys.stderr.encoding or "").lower():
        raise UsageError(f"this needs a terminal that takes UTF-8, and this one has {sys.stderr.encoding}", hint)


@contextmanager
def _terminal_to_itself() -> Iterator[None]:
    """Nothing but the screen is written to the terminal meanwhile; what was to be said is said afterwards."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    waiting = [MemoryHandler(_LOG_RECORDS, logging.CRITICAL + 1, handler) for handler in handlers]
    stdout = sys.__stdout__
    for stale in ("COLUMNS", "LINES"):  # of the shell that exported them; Textual would believe them for ever
        os.environ.pop(stale, None)
    with ExitStack() as afterwards:
        _restored_at_last(afterwards)
        for handler in waiting:
            afterwards.callback(handler.close)  # which says it all
        afterwards.callback(setattr, root, "handlers", handlers)
        root.handlers[:] = waiting
        if stdout is not None and sys.__stderr__ is not None and not stdout.isatty():
            # The screen is drawn on standard error, but Textual asks standard output how large it is.
            sys.stdout.flush()
            number = stdout.fileno()
            document = os.dup(number)
            afterwards.callback(os.close, document)
            afterwards.callback(os.dup2, document, number)
            os.dup2(sys.__stderr__.fileno(), number)
        yield


def _restored_at_last(afterwards: ExitStack) -> None:
    """However the screen is left, the terminal takes keys as it did before."""
    import termios

    with suppress(termios.error, OSError):
        descriptor = sys.stdin.fileno()
        afterwards.callback(termios.tcsetattr, descriptor, termios.TCSANOW, termios.tcgetattr(descriptor))


def _save_report(run: Path, directory: Path) -> list[Path]:
    """Report on a run, in a process of its own: figures are large, and slow to draw.

    Raises:
        SpecprofError: what that process said.
    """
    make_directory(directory)
    paths = [directory / f"{run.stem}{ending}" for ending in (".html", ".md")]
    command = [sys.executable, "-P", "-m", "specprof", "report", str(run.resolve())]
    done = subprocess.run(
        [*command, "--html", str(paths[0]), "--md", str(paths[1]), "--quiet"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return paths
    said = dict(line.split(":", 1) for line in done.stderr.splitlines() if line.startswith(("error:", "hint:")))
    last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
    raise _of_kind(done.returncode, said.get("error", last).strip(), said.get("hint", "try `specprof report`").strip())


def _error(failure: Failed) -> SpecprofError:
    return _of_kind(failure.exit_code, failure.message, failure.hint)


def _of_kind(exit_code: int, message: str, hint: str) -> SpecprofError:
    kinds = {kind.exit_code: kind for kind in SpecprofError.__subclasses__()}
    return kinds.get(exit_code, SpecprofError)(message, hint)
