"""The command line: one file per subcommand; here they are gathered, and failures become exit codes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from specprof import __version__
from specprof.commands.load import load
from specprof.commands.run import run
from specprof.errors import SpecprofError

INTERRUPTED = 130
BROKEN_PIPE = 141

app = typer.Typer(
    name="specprof",
    help="Find out what speculative decoding does for your models, on your hardware, with your prompts, and why.",
    epilog="Start with: specprof run",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command()(run)
app.command()(load)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"specprof {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments
    try:
        code = app(arguments, prog_name="specprof", standalone_mode=False)
        sys.stdout.flush()
    except SpecprofError as error:
        if debug:
            raise
        code = _tell(error.message, error.hint, error.exit_code)
    except typer.TyperException as error:
        hint = f"`specprof {_subcommand(arguments)}--help` lists what there is"
        code = _tell(error.format_message(), hint, error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        code = BROKEN_PIPE
    except OSError as error:
        if debug:
            raise
        # A full disk or a closed terminal under stdout: the machine's state, not a bug.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        code = _tell(_sentence(error), "free some space" if full else "check the path and its permissions", 4)
    except Exception as error:
        if debug:
            raise
        what = f"this is a bug in specprof: {type(error).__name__}: {_sentence(error)}"
        code = _tell(what, "please report it with the output of the same command and --debug", 1)
    if code == BROKEN_PIPE:
        # The interpreter flushes stdout on its way out, and would fail on the closed pipe once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _tell(what: str, hint: str, code: int) -> int:
    print(f"error: {_one_line(what)}\nhint:  {_one_line(hint)}", file=sys.stderr)
    return code


def _sentence(error: Exception) -> str:
    return str(error) or type(error).__name__


def _one_line(text: str) -> str:
    """One printable line: messages quote file names and models' words, which may hold anything."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def _subcommand(arguments: Sequence[str]) -> str:
    names = {command.callback.__name__ for command in app.registered_commands if command.callback}
    return next((f"{argument} " for argument in arguments if argument in names), "")
