"""The command line: one file per subcommand; here they are gathered, and failures become exit codes."""

from __future__ import annotations

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
from specprof.commands.explain import explain
from specprof.commands.load import load
from specprof.commands.prompts import prompts
from specprof.commands.report import report
from specprof.commands.results import results
from specprof.commands.run import run
from specprof.commands.sweep import sweep
from specprof.commands.tui import tui
from specprof.commands.verify import verify
from specprof.errors import SpecprofError

INTERRUPTED = 130
BROKEN_PIPE = 141

app = typer.Typer(
    name="specprof",
    help="Find out what speculative decoding does for your models, on your hardware, with your prompts, and why.",
    epilog="Start with: specprof run",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command()(run)
app.command()(load)
app.command()(prompts)
app.command()(sweep)
app.command()(explain)
app.command()(report)
app.command()(compare)
app.command()(verify)
app.command()(tui)
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
        raise typer.Exit(2)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    arguments = list(sys.argv[1:] if args is None else args)
    _open_standard_streams()
    try:
        code = app(arguments, prog_name="specprof", standalone_mode=False, obj=arguments)
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
        print(f"error: {_one_line(what)}\nhint:  {_one_line(hint)}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        # The interpreter flushes stdout on its way out, and would fail on it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _open_standard_streams() -> None:
    """Let the program run under a shell that closed its streams (``>&-``), and print any text on any terminal."""
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  # open as long as the process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
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
    if isinstance(error, OSError):
        # A full disk or a closed terminal under stdout: the machine's state, not a bug.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space" if full else "check the path and its permissions"
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", hint, 4
    what = f"this is a bug in specprof: {type(error).__name__}: {error}"
    return what, "please report it with the output of the same command and --debug", 1


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
