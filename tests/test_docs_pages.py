"""The pages hold together: links lead somewhere, commands and their flags exist, tables agree with the code."""

from __future__ import annotations

import contextlib
import re
import shlex
import tomllib
from pathlib import Path

import cli_reference
import pytest
import typer
from typer.main import get_command

from docs_pages import PAGES, ROOT, Command, anchors, commands, links
from specprof.commands import app, exit_codes
from specprof.errors import SpecprofError

ALL = [command for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page}: {link}"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.is_file():
            continue
        reached.add(page)
        paths = (link.partition("#")[0] for link in links(str(page.relative_to(ROOT))) if not link.startswith("http"))
        waiting += [(page.parent / path).resolve() for path in paths if path]
    assert {str(page.relative_to(ROOT)) for page in reached} >= {page for page in PAGES if page.startswith("docs/")}


def test_images_are_shown_somewhere() -> None:
    shown = {
        ((ROOT / page).parent / link).resolve() for page in PAGES for link in links(page) if not link.startswith("http")
    }
    images = {path for path in (ROOT / "docs" / "images").iterdir() if path.suffix in (".svg", ".png")}
    assert images <= shown


# Commands


def parsed(words: tuple[str, ...]) -> None:
    """Parse a command line of specprof as the program does, and stop before anything is done."""
    arguments = [word for word in words[1:] if word != ">"]
    if words[-2:-1] == (">",):
        arguments.pop()
    command: typer.core.TyperCommand | typer.core.TyperGroup = get_command(app)  # type: ignore[assignment]
    context = None
    name: str | None = "specprof"
    while True:
        context = command.make_context(name, arguments, parent=context)
        rest = [*getattr(context, "_protected_args", []), *context.args]
        if not isinstance(command, typer.core.TyperGroup) or not rest:
            assert not rest, rest
            return
        name, command, arguments = command.resolve_command(context, rest)  # type: ignore[assignment]


def test_the_dry_parse_refuses_what_the_program_refuses() -> None:
    parsed(("specprof", "run", "--k", "2", "-n", "3"))
    parsed(("specprof", "results", "show", "3f0c", "--json"))
    for wrong in ("run --speed 9", "run -n x", "results shw", "compare A", "explain a b"):
        with pytest.raises(typer.TyperException):
            parsed(("specprof", *wrong.split()))


OURS = [
    c for c in ALL if any(w[0] == "specprof" for w in c.programs) and not re.search("--(install|show)-comp", c.text)
]
"""But for those that act as soon as they are parsed: test_completion.py has them."""


@pytest.mark.parametrize("command", OURS, ids=str)
def test_flags_of_the_program_exist(command: Command) -> None:
    for words in command.programs:
        if words[0] == "specprof":
            with contextlib.suppress(typer.Exit):  # of --help, --version
                parsed(words)


@pytest.mark.parametrize(
    "command", [c for c in ALL if any(w[0].endswith("python") or w[0].endswith("sh") for w in c.programs)], ids=str
)
def test_scripts_and_their_flags_exist(command: Command) -> None:
    for words in command.programs:
        program, *arguments = words
        if not program.endswith(("python", "bash", "sh")) or arguments[:1] in (["-m"], ["-c"]):
            continue
        script = (ROOT / arguments[0]).read_text(encoding="utf-8")
        for flag in (word.partition("=")[0] for word in arguments if word.startswith("--")):
            parameter = rf"^    {flag[2:].replace('-', '_')}: "  # of a function that Typer calls
            assert f'"{flag}"' in script or re.search(parameter, script, re.M), f"{arguments[0]} has no {flag}"
        if arguments[0].endswith("train_pair.py"):
            assert re.search(rf'"{arguments[1]}"|^def {arguments[1]}\(', script, re.M), arguments[1]


@pytest.mark.parametrize("command", [c for c in ALL if any(w[0] == "make" for w in c.programs)], ids=str)
def test_targets_of_make_exist(command: Command) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in command.programs:
        for target in (word for word in words[1:] if re.fullmatch(r"[a-z-]+", word)):
            assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize(
    "command", [c for c in ALL if any({"pip", "pipx", "uv"} & set(w[:1]) for w in c.programs)], ids=str
)
def test_extras_exist(command: Command) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for words in command.programs:
        for extra in re.findall(r"specprof\[([\w,]+)\]", " ".join(words)):
            assert set(extra.split(",")) <= set(project["optional-dependencies"])
        if "-c" in words:
            assert (ROOT / words[words.index("-c") + 1]).is_file()


# What the program says of itself


def test_the_reference_is_up_to_date() -> None:
    assert cli_reference.PAGE.read_text(encoding="utf-8") == cli_reference.page(), (
        "docs/cli.md is out of date: python scripts/cli_reference.py"
    )


def source() -> str:
    folders = ("specprof", "commands", "tui", "reports")
    return "\n".join(path.read_text(encoding="utf-8") for name in folders for path in (ROOT / name).rglob("*.py"))


FOR_OTHERS = {
    "OMP_NUM_THREADS": "PyTorch's",
    "HF_HOME": "huggingface_hub's",
    "HF_TOKEN": "huggingface_hub's",
    "HF_ENDPOINT": "huggingface_hub's",
    "HF_HUB_DOWNLOAD_TIMEOUT": "huggingface_hub's",
    "HF_HUB_OFFLINE": "huggingface_hub's, and ours in a tuple of names",
    "TRANSFORMERS_OFFLINE": "the same",
    "XDG_STATE_HOME": "platformdirs'",
    "XDG_CACHE_HOME": "platformdirs'",
}
SET_BY_US = {
    "CUBLAS_WORKSPACE_CONFIG": "--deterministic sets it",
    "COLUMNS": "tui drops it",
    "LINES": "tui drops it",
}


def test_environment_variables_of_the_reference_are_those_of_the_code() -> None:
    read = set(re.findall(r"""environ(?:\.get|\.pop|\.setdefault)?[(\[]\s*"([A-Z_]+)\"""", source()))
    read |= set(re.findall(r"""envvar="(\w+)\"""", source()))
    told = set(cli_reference.ENVIRONMENT)
    assert read - told <= set(SET_BY_US), "read by the code, not on the page"
    assert told - read <= set(FOR_OTHERS), "on the page, not read by the code"
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        assert f'"{name}"' in source()


def test_variables_that_pages_name_are_in_the_reference() -> None:
    ours = re.compile(r"`((?:SPECPROF|HF)_[A-Z_]+)\b")
    for page in PAGES:
        named = set(ours.findall((ROOT / page).read_text(encoding="utf-8")))
        assert named <= set(cli_reference.ENVIRONMENT), page


def test_exit_codes_are_those_of_the_code() -> None:
    of_errors = {kind.exit_code for kind in SpecprofError.__subclasses__()}
    constants = {value for name, value in vars(exit_codes).items() if name.isupper() and isinstance(value, int)}
    assert set(exit_codes.MEANINGS) == {0} | of_errors | constants


def test_tables_of_exit_codes_agree() -> None:
    known = set(exit_codes.MEANINGS)
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for table in re.findall(r"^\| (?:exit )?code \|.*?(?=^[^|]|\Z)", text, re.M | re.S):
            codes = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.M) for code in row.split(",")}
            assert codes <= known and codes >= known - {exit_codes.HUNG_UP, exit_codes.TERMINATED}, page
        for code in re.findall(r"\bexits? (?:code|with|status) (\d+)", text):
            assert int(code) in known, f"{page}: {code}"


def test_command_lines_are_found() -> None:
    lines = {shlex.join(words) for command in ALL for words in command.programs}
    assert "specprof run" in lines and "jq .speedup_decode.value" in lines
    assert len(ALL) > 100
    assert Path(cli_reference.PAGE).name in {Path(command.page).name for command in ALL}
