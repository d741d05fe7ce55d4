"""Writes docs/cli.md from the program's own help: every command, option, default, example and exit code.

python scripts/cli_reference.py            write it
python scripts/cli_reference.py --check    say whether it is up to date
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from specprof.commands import app
from specprof.commands.exit_codes import MEANINGS
from specprof.commands.help import help_record, panels

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"

ENVIRONMENT = {
    "SPECPROF_RESULTS": "where results are kept, as `--results-dir`",
    "SPECPROF_NATIVE": "0: do without the forward in C",
    "CC": "the C compiler, if it is to be another than `cc`",
    "OMP_NUM_THREADS": "threads that PyTorch computes with, as `--threads`",
    "CUDA_VISIBLE_DEVICES": "the GPUs there are",
    "CUDA_DEVICE_ORDER": "how CUDA numbers them",
    "HF_HOME": "where downloaded models lie",
    "HF_HUB_OFFLINE": "1: ask no network, as `--offline`",
    "TRANSFORMERS_OFFLINE": "the same",
    "HF_TOKEN": "a token of the Hugging Face Hub, for gated models",
    "HF_ENDPOINT": "another hub",
    "HF_HUB_ETAG_TIMEOUT": "seconds that a hub has to answer in",
    "HF_HUB_DOWNLOAD_TIMEOUT": "seconds that a download may stand still",
    "OLLAMA_HOST": "the Ollama server, as `load --ollama --host`",
    "RAY_ADDRESS": "the Ray cluster, as `sweep --ray-address`",
    "XDG_CONFIG_HOME": "where `specprof/config.toml` is, instead of `~/.config`",
    "XDG_CACHE_HOME": "where the compiled forward is kept, instead of `~/.cache`",
    "XDG_STATE_HOME": "where `tui` keeps what was chosen last, instead of `~/.local/state`",
    "NO_COLOR": "anything: no colour",
    "CI": "anything: no progress bars",
    "TERM": "dumb: neither colour nor bars, and no `tui`",
}

HEAD = """\
# Command line

Every command with its options, as `--help` has them. This page is written by `python scripts/cli_reference.py`.

Standard output is data, standard error is narration: a command can be piped, and `--json` prints one document. What is
written goes to the files that a command names: `--results-dir` (default `results`), `-o`, `--html` and so on.
"""

COMPLETION = """\
## Completion

    specprof --install-completion
    specprof --show-completion

The first adds to the start-up files of the shell it is called from (bash, zsh, fish or PowerShell); the second prints
the script, for a place of your choice. A new shell then completes commands, options and what can stand behind them:
pairs (those of `specprof.toml` too), drafters, types, forwards, engines, domains, prompts, and runs in the results
directory. Lists of `sweep` are completed item by item. Where there is nothing to offer, the shell offers files.
"""


def page() -> str:
    """The whole of docs/cli.md."""
    found = list(_commands())
    contents = [f"- [{path}](#{path.replace(' ', '-')}): {_first_line(command)}" for path, command, _ in found]
    parts = [HEAD, "\n".join(contents) + "\n"]
    parts += [_section(path, command, context) for path, command, context in found]
    parts += [
        "## Exit codes\n\n" + _table(("code", "meaning"), [(str(code), text) for code, text in MEANINGS.items()]),
        "## Environment\n\n" + _table(("variable", "meaning"), [(f"`{n}`", text) for n, text in ENVIRONMENT.items()]),
        COMPLETION,
    ]
    return "\n".join(parts)


def _commands() -> Iterator[tuple[str, Any, typer.Context]]:
    """Every command as it is typed, the program itself first."""
    waiting: list[tuple[Any, typer.Context | None]] = [(get_command(app), None)]
    while waiting:
        command, parent = waiting.pop(0)
        context = typer.Context(command, info_name=command.name, parent=parent, **command.context_settings)
        yield context.command_path, command, context
        waiting[:0] = [(each, context) for each in getattr(command, "commands", {}).values()]


def _first_line(command: Any) -> str:
    return str(command.help).partition("\n")[0]


def _section(path: str, command: Any, context: typer.Context) -> str:
    usage = " ".join((path, *command.collect_usage_pieces(context)))
    parts = [f"## {path}\n", f"```text\n{usage}\n```\n", inspect.cleandoc(command.help) + "\n"]
    for panel, members in panels(command.get_params(context)).items():
        rows = [help_record(member, context) for member in members]
        parts.append(_table((panel, ""), [(f"`{name}`", text) for name, text in rows]))
    if command.epilog:
        lines = inspect.cleandoc(command.epilog).splitlines()
        parts += ["Examples:\n", "".join(f"    {line}".rstrip() + "\n" for line in lines)]
    return "\n".join(parts)


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = ["| {} | {} |".format(*head), "|---|---|"]
    lines += [f"| {_cell(name)} | {_cell(text)} |" for name, text in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    args = parser.parse_args()
    if not args.check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE.name} is out of date: python scripts/cli_reference.py writes it anew")


if __name__ == "__main__":
    main()
