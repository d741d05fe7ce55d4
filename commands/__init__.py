"""The command line: one file per subcommand; here they are gathered, and failures become exit codes."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from specprof import __version__
from specprof.commands.compare import compare
from specprof.commands.ending import EndedBySignals
from specprof.commands.exit_codes import BROKEN_PIPE, BUG, INTERRUPTED, RESOURCES, USAGE
from specprof.commands.explain import explain
from specprof.commands.help import Command, Group
from specprof.commands.load import load
from specprof.commands.prompts import prompts
from specprof.commands.report import report
from specprof.commands.results import results
from specprof.commands.run import run
from specprof.commands.sweep import sweep
from specprof.commands.tui import tui
from specprof.commands.verify import verify
from specprof.errors import SpecprofError, is_about_memory

app = typer.Typer(
    name="specprof",
    cls=Group,
    help="""Find out what speculative decoding does for your models, on your hardware, with your prompts, and why.

    Examples:
        # is it faster, by how much, and why? The packaged pair, no download
        specprof run
        specprof explain
        specprof report

        # every command has examples of its own
        specprof run --help
    """,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
for _function in (run, load, prompts, sweep, explain, report, compare, verify, tui):
    app.command(cls=Command)(_function)
app.add_typer(results)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"specprof {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(USAGE)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    arguments = list(sys.argv[1:] if args is None else args)
    ending = EndedBySignals()
    _open_standard_streams()
    try:
        with ending:
            code = app(arguments, prog_name="specprof", standalone_mode=False, obj=arguments)
        if code == BUG and any(word.startswith(("--install-completion", "--show-completion")) for word in arguments):
            code = USAGE  # Typer's own word for a shell that it can't complete for
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        code = BROKEN_PIPE
    except SystemExit as ended:
        # Inside a command Typer meets a broken pipe first, and would say 1.
        code = BROKEN_PIPE if isinstance(ended.__context__, BrokenPipeError) else ended.code
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        what, hint, code = _failure(error, arguments)
        with contextlib.suppress(OSError):  # where nothing can be told, the exit code tells it
            print(f"error: {_one_line(what)}\nhint:  {_one_line(hint)}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # The interpreter flushes both on its way out, and would fail on it once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(ending.code or code)


class _Closed(io.TextIOWrapper):
    """Standard output that a shell closed: what is printed there is lost, which is no success."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "standard output is closed")


def _open_standard_streams() -> None:
    """Let the program run under a shell that closed its streams (``>&-``), and print any text on any terminal."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  # open as long as the process
    if sys.stdout is None:
        sys.stdout = _Closed(open(os.devnull, "wb"), encoding="utf-8")  # noqa: SIM115  # no other file gets its number
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: a character it lacks is no failure


def _failure(error: Exception, arguments: Sequence[str]) -> tuple[str, str, int]:
    """What went wrong, what to do, and the exit code."""
    if isinstance(error, SpecprofError):
        return error.message, error.hint, error.exit_code
    if isinstance(error, typer.TyperException):
        return error.format_message(), f"`specprof {_subcommand(arguments)}--help` lists what there is", error.exit_code
    if is_about_memory(error):
        return (
            f"memory ran out: {error or type(error).__name__}",
            "free memory, or use smaller models or a smaller dtype",
            RESOURCES,
        )
    if isinstance(error, OSError):
        # A full disk or a closed terminal under stdout: the machine's state, not a bug.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space" if full else "check the path and its permissions"
        if error.errno == errno.EBADF:
            hint = "leave it open, or let it go to a file or to /dev/null"
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", hint, RESOURCES
    what = f"this is a bug in specprof: {type(error).__name__}: {error}"
    return what, "please report it with the output of the same command and --debug", BUG


def _one_line(text: str) -> str:
    """One printable line: messages quote file names and models' words, which may hold anything."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def _subcommand(arguments: Sequence[str]) -> str:
    """The words of ``arguments`` that say which help to read."""
    names = {command.callback.__name__ for command in app.registered_commands if command.callback}
    below = {command.name or "" for command in results.registered_commands}
    for number, argument in enumerate(arguments):
        if argument == results.info.name:
            return " ".join([argument, *[word for word in arguments[number + 1 :] if word in below][:1], ""])
        if argument in names:
            return f"{argument} "
    return ""
