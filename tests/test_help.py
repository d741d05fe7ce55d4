"""Help reads well on any terminal, in the same order everywhere, and ends with examples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from command_line import isolate, ok
from specprof.commands import app, options
from specprof.commands.help import PANELS, panel_of, panels
from specprof.experiments.thresholds import AFTER, OPERATORS, QUANTITIES


def every_command() -> Iterator[tuple[str, Any]]:
    waiting: list[tuple[str, Any]] = [("", get_command(app))]
    while waiting:
        path, command = waiting.pop(0)
        yield path, command
        waiting += [(f"{path} {name}".strip(), each) for name, each in getattr(command, "commands", {}).items()]


COMMANDS = dict(every_command())
ENDINGS = (".", "]", "or off.")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("path", COMMANDS)
def test_help_fits_the_terminal(path: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text, _, examples = ok(*path.split(), "--help", terminal=True).out.partition("\nExamples:\n")
    assert max(map(len, text.splitlines())) <= min(columns, 100)
    assert max(map(len, examples.splitlines())) < 80
    assert all(character.isprintable() or character == "\n" for character in text + examples)


@pytest.mark.parametrize("path", COMMANDS)
def test_help_is_the_same_in_a_pipe_and_on_a_dumb_terminal(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = ok(*path.split(), "--help", terminal=True).out
    assert ok(*path.split(), "-h").out == shown
    monkeypatch.setenv("TERM", "dumb")
    assert ok(*path.split(), "--help", terminal=True).out == shown


@pytest.mark.parametrize("path", COMMANDS)
def test_help_ends_with_two_to_five_examples(path: str) -> None:
    examples = ok(*path.split(), "--help").out.partition("\nExamples:\n")[2].splitlines()
    commands = [line for line in examples if re.match(r"  specprof\b", line)]
    assert 2 <= len(commands) <= 5
    assert any(re.match(rf"  specprof {path}".rstrip(), line) for line in commands)
    assert all(re.match(r"  (specprof|#|  )", line) for line in examples if line)


@pytest.mark.parametrize("path", [path for path in COMMANDS if path not in ("", "results")])
def test_every_option_has_a_group_and_a_sentence(path: str) -> None:
    for parameter in COMMANDS[path].params:
        assert parameter.help and parameter.help.endswith(ENDINGS), parameter.name
        if parameter.param_type_name == "option":
            assert panel_of(parameter) in PANELS[:-1], parameter.name
            assert parameter.is_flag or parameter.count or parameter.metavar, f"{parameter.name} shows a type of Python"


def test_commands_have_their_options_in_one_order() -> None:
    orders = {
        (path, panel): [parameter.opts[-1] for parameter in members]
        for path, command in COMMANDS.items()
        for panel, members in panels(command.params).items()
        if panel != "Arguments"
    }
    for ((one, panel), first), ((other, of_other), second) in combinations(orders.items(), 2):
        both = set(first) & set(second)
        if panel == of_other:
            assert [n for n in first if n in both] == [n for n in second if n in both], f"{one} and {other}: {panel}"


def test_the_shared_options_are_shown_under_one_heading_everywhere() -> None:
    places: dict[str, set[str]] = {}
    for command in COMMANDS.values():
        for parameter in command.params:
            if parameter.opts[-1].startswith("--"):
                places.setdefault(parameter.opts[-1], set()).add(panel_of(parameter))
    several = {name for name, panels in places.items() if len(panels) > 1}
    assert several <= {
        "--pair",
        "--domain",
        "--seed",
        "--chat-template",
        "--offline",
        "--prompt",
        "--list",
        "--max-tokens",
    }


def test_short_texts_of_commands_are_whole() -> None:
    listed = ok("--help").out.partition("\nCommands:\n")[2].partition("\n\n")[0]
    assert len(listed.splitlines()) == 10 and all(
        line.endswith(".") and "..." not in line for line in listed.splitlines()
    )


def test_thresholds_are_named_as_they_are() -> None:
    text = " ".join(ok("compare", "--help").out.split())
    for name in (*QUANTITIES, AFTER, *OPERATORS):
        assert name in text


def test_a_default_that_only_help_names_is_the_true_one() -> None:
    from specprof.experiments.sweep_config import SweepConfig

    text = " ".join(ok("sweep", "--help").out.split())
    config = SweepConfig()
    for option, default in {
        "--k K,...": ",".join(map(str, config.k)),
        "--pair PAIR,...": ",".join(config.pairs),
        "--num-prompts N": config.num_prompts,
        "--max-new-tokens N": config.max_new_tokens,
        "--reps N": config.repetitions,
        "--warmup N": config.warmup,
        "--seed N": config.seed,
        "--forward NAME": config.forward,
        "--engine NAME": config.engine,
        "--vocab-method NAME": config.vocab_method,
        "--drafter NAME,...": ",".join(config.drafters),
    }.items():
        assert re.search(rf"{re.escape(option)} [^\[]*\[default: {re.escape(str(default))}\]", text), option
    assert f"[default: {options.DEFAULT_NUM_PROMPTS} packaged, all own]" in " ".join(ok("run", "--help").out.split())
