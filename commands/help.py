"""How ``--help`` looks: options in the same groups everywhere, then examples."""

from __future__ import annotations

import inspect
from typing import Any

from typer.core import TyperCommand, TyperGroup

MODELS = "Models"
DRAFTING = "Drafting"
PROMPTS = "Prompts and sampling"
MEASURING = "Measuring"
MACHINE = "Machine"
SWEEP = "The sweep"
SCREEN = "The screen"
OLLAMA = "Ollama"
CHOICE = "What to take"
THRESHOLDS = "Comparing"
RESULTS = "Results"
MESSAGES = "Messages"
OTHER = "Options"
PANELS = (
    CHOICE, MODELS, DRAFTING, PROMPTS, MEASURING, MACHINE, SWEEP, SCREEN, OLLAMA, THRESHOLDS, RESULTS, MESSAGES, OTHER,
)  # fmt: skip

_WIDEST_NAME = 26
"""Columns; a longer one has a line of its own."""


class Command(TyperCommand):
    """A command whose help is plain text: it reads the same on any terminal and in a pipe.

    Its function's docstring is the help; what stands below ``Examples:`` is shown last, line by line.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **_with_examples(named))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_options(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(self.epilog, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        return _escaped(super().shell_complete(ctx, incomplete))


class Group(TyperGroup):
    """The same of a command with subcommands."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **_with_examples(named))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        _write_options(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(self.epilog, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        return _escaped(super().shell_complete(ctx, incomplete))


def panel_of(parameter: Any) -> str:
    """The heading under which help has a parameter."""
    if parameter.param_type_name == "argument":
        return "Arguments"
    if parameter.rich_help_panel is not None:
        return str(parameter.rich_help_panel)
    return MESSAGES if parameter.name == "help" else OTHER


def panels(parameters: Any) -> dict[str, list[Any]]:
    """Parameters that help shows, by heading, in the order of the headings."""
    shown = [parameter for parameter in parameters if not parameter.hidden]
    if {panel_of(parameter) for parameter in shown} <= {MESSAGES, OTHER}:
        return {OTHER: shown}
    found = {panel: [each for each in shown if panel_of(each) == panel] for panel in ("Arguments", *PANELS)}
    return {panel: members for panel, members in found.items() if members}


def help_record(parameter: Any, ctx: Any) -> tuple[str, str]:
    """How a parameter is written, and what it does."""
    name, text = parameter.get_help_record(ctx)
    if parameter.param_type_name == "argument":
        name = parameter.metavar + ("..." if parameter.nargs == -1 else "")
    return name, " ".join(text.split())


def _with_examples(named: dict[str, Any]) -> dict[str, Any]:
    """The help text parted at its heading."""
    text, _, examples = inspect.cleandoc(named["help"] or "").partition("\nExamples:\n")
    return named | {"help": text, "epilog": examples}


def _write_options(command: Any, ctx: Any, formatter: Any) -> None:
    grouped = {
        panel: [help_record(parameter, ctx) for parameter in members]
        for panel, members in panels(command.get_params(ctx)).items()
    }
    # One column for all groups.
    width = max(len(name) for rows in grouped.values() for name, _ in rows)
    for panel, rows in grouped.items():
        with formatter.section(panel):
            formatter.write_dl([(name.ljust(min(width, _WIDEST_NAME)), text) for name, text in rows], _WIDEST_NAME)


def _write_examples(examples: str | None, formatter: Any) -> None:
    if not examples:
        return
    with formatter.section("Examples"):
        for line in inspect.cleandoc(examples).splitlines():
            formatter.write(f"{'':>{formatter.current_indent}}{line}".rstrip() + "\n")


def _escaped(items: Any) -> Any:
    """For completion in zsh and fish, Typer reads help texts as Rich's markup, in which [default: 8] is a style."""
    from rich.markup import escape

    for item in items:
        if item.help:
            item.help = escape(item.help)
    return items
