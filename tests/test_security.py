"""What others made is data: it runs nothing, reaches nothing outside, commands no terminal, and writes nowhere else.

SECURITY.md says what is trusted. That every command keeps to itself what it starts, asks and writes is looked at by
an audit hook in the process itself and in all that it starts (``test_audit.py``).
"""

from __future__ import annotations

import ast
import csv
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import large_run
import sample_store
from command_line import QUICK, command, isolate, ok
from sample_report import HOSTILE
from specprof.experiments import records, saved_runs
from specprof.experiments.sweep_config import SweepConfig
from specprof.models import hub
from specprof.models.native import library
from test_html import outside

ROOT = Path(__file__).resolve().parent.parent
USAGE, UNAVAILABLE, RESOURCES = 2, 3, 4


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "some" / "where" / "below"
    here.mkdir(parents=True)
    isolate(here, monkeypatch)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path.parent / "no-such-config"))  # matplotlib makes it
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


# The code itself

PICKLES = {"executors.py", "serving.py", "live.py", "live_engine.py"}
"""Modules that talk to a child of their own over a socket or a pipe that nobody else has."""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Calls, each with its name as it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def forbidden(name: str, source: str) -> Iterator[str]:
    """What no module may do, as far as it can be read."""
    tree = ast.parse(source)
    for called, call in calls(tree):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        last = called.rpartition(".")[2]
        if called in (
            "eval",
            "exec",
            "__import__",
            "os.system",
            "os.popen",
            "os.startfile",
            "torch.load",
            "numpy.load",
        ):
            yield called
        if called.startswith(("yaml.", "pandas.")) and last in ("load", "load_all", "unsafe_load", "read_pickle"):
            yield called
        if last == "compose" and [ast.unparse(argument) for argument in call.args[1:]] != ["yaml.SafeLoader"]:
            yield f"{called} without SafeLoader"
        if given.get("shell", "False") != "False":
            yield f"{called} with a shell"
        if last == "Environment" and given.get("autoescape") != "True":
            yield f"{called} without autoescape"
        if called.startswith(("os.spawn", "os.exec", "os.posix_spawn", "tempfile.mktemp", "pty.")):
            yield called
        if last == "from_pretrained" and given.get("local_files_only") != "True":
            yield f"{called} may ask a hub that nobody named"
    for node in ast.walk(tree):
        command = [ast.unparse(part) for part in node.elts[:3]] if isinstance(node, ast.List) else []
        # -P: a file in the folder where the user happens to be is no module. _CHILD sets its path itself.
        if command[:1] == ["sys.executable"] and command[1] != "'-P'" and command[1:] != ["'-c'", "_CHILD"]:
            yield f"Python without -P: {ast.unparse(node)}"
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    unwanted = {"marshal", "shelve", "dill", "cloudpickle", "joblib", "xml.dom", "telnetlib", "code"}
    if name not in PICKLES:
        unwanted.add("pickle")
    yield from sorted(imported & unwanted)


def test_no_module_can_run_what_it_reads() -> None:
    modules = [path for folder in ("specprof", "commands", "reports", "tui") for path in (ROOT / folder).rglob("*.py")]
    assert len(modules) > 100
    found = {str(path.relative_to(ROOT)): [*forbidden(path.name, path.read_text("utf-8"))] for path in modules}
    assert {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "os.system('ls')",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader)",
        "yaml.compose(text, yaml.Loader)",
        "subprocess.run(text, shell=True)",
        "jinja2.Environment()",
        "AutoTokenizer.from_pretrained(name)",
        "subprocess.run([sys.executable, '-m', 'specprof'])",
        "import pickle",
        "from marshal import loads",
    ],
)
def test_that_search_finds_something(source: str) -> None:
    assert list(forbidden("x.py", source))


# Folders of others


PLANTED = ("json", "torch", "numpy", "psutil", "transformers", "datasets", "ray", "specprof", "sitecustomize", "rich")


@pytest.mark.slow
def test_a_folder_that_one_happens_to_be_in_lends_no_modules(tmp_path: Path) -> None:
    """As Python itself has it for a script; what is started beside it must not have it otherwise."""
    ran = tmp_path / "ran"
    for name in PLANTED:
        Path(f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write({name!r})\n")
    Path("matplotlibrc").write_text("text.usetex: True\nbackend: module://json\n")
    program = "import sys; from specprof.profiling.machine import describe_apart; print(describe_apart()['torch'])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, env=without_test_paths(), check=False
    )
    assert not ran.exists(), ran.read_text()
    assert done.returncode == 0, done.stderr
    assert re.match(r"\d+\.\d+", done.stdout)


def without_test_paths() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONPATH": str(ROOT)}


# Models of others


@pytest.fixture
def model() -> Path:
    """A copy of the packaged target, to be spoiled."""
    source = hub.local_directory("tiny_dev/target")
    assert source is not None
    directory = Path("model")
    directory.mkdir()
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            (directory / file.name).symlink_to(file)
        else:
            shutil.copyfile(file, directory / file.name)
    return directory


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def of_the_model(*arguments: str) -> tuple[str, ...]:
    return ("run", *QUICK, "--no-save", "--target", "./model", "--drafter", "ngram", *arguments)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}),
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "somebody/repository--evil.Model"}}),
        ("config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}}),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}},
        ),
    ],
)
def test_code_that_comes_with_a_model_is_ignored_or_refused(model: Path, file: str, values: dict[str, Any]) -> None:
    ran = model / "ran"
    (model / "evil.py").write_text(f"open({str(ran.resolve())!r}, 'w').close()\n")
    change(model / file, **values)
    outcome = command(*of_the_model())
    assert not ran.exists()
    assert outcome.code in (0, UNAVAILABLE) and "Traceback" not in outcome.err
    if outcome.code:
        assert "--trust-remote-code" in outcome.told[1]


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_model_names_no_code_on_the_hub(model: Path, key: str) -> None:
    """transformers takes such a name for a kernel to be fetched and run."""
    change(model / "config.json", **{key: "kernels-community/flash-attn"})
    ok(*of_the_model())


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('touch ran').read() }}",
        "{% include '/etc/passwd' %}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ range(10 ** 9) | list }}",
        "{{ raise_exception('\x1b[31mred\nhint: none') }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_a_chat_template_that_is_a_program(model: Path, template: str) -> None:
    change(model / "tokenizer_config.json", chat_template=template)
    outcome = command(*of_the_model("--domain", "conversation"))
    assert outcome.code == USAGE, outcome.err
    error, hint = outcome.told
    assert "chat template fails" in error and "--chat-template off" in hint
    harmless(outcome.err)
    assert not Path("ran").exists()


def test_a_sweeps_file_cannot_allow_code(tmp_path: Path) -> None:
    Path("sweep.yaml").write_text("pairs: [tiny_dev]\nk: [1]\n\ntrust_remote_code: true\n")
    outcome = command("sweep", "--config", "sweep.yaml", "--dry-run")
    assert outcome.code == USAGE
    error, hint = outcome.told
    assert "sweep.yaml, line 4" in error and "--trust-remote-code" in hint
    Path("sweep.yaml").write_text("pairs: [tiny_dev]\nk: [1]\ntrust_remote_code: false\n")
    assert not SweepConfig.load("sweep.yaml").trust_remote_code


# Compiled code


def test_compiled_code_is_run_from_a_place_of_ones_own_only(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "specprof" / "native"
    folder.mkdir(parents=True, mode=0o700)
    kept = folder / library._name("origin", b"code")
    kept.write_bytes(b"code")
    kept.chmod(0o700)
    for above in (folder.parent, folder.parent.parent):
        for mode, trusted in ((0o755, True), (0o777, False), (0o1777, True), (0o700, True)):
            above.chmod(mode)
            assert list(library._kept(folder, "origin")) == [kept] * trusted, f"{above} {mode:o}"
    kept.write_bytes(b"other code")
    assert list(library._kept(folder, "origin")) == []


# Prompts of others

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What commands a terminal or reorders its lines."""


def test_prompts_command_no_terminal() -> None:
    evil = "\x1b]52;c;ZWNobw==\x07\x1b[2J\x9b31m\u202e"
    for prompt in ({"prompt_id": f"a{evil}"}, {"domain": f"d{evil}"}, {"text": f"x{evil}y"}):
        Path("prompts.json").write_text(json.dumps([{"text": "x"} | prompt]))
        outcome = command("run", *QUICK, "--prompts", "prompts.json", "--verbose", "--no-save")
        assert outcome.code == (0 if "text" in prompt else USAGE)
        harmless(outcome.out + outcome.err)
        harmless(command("prompts", "--check", "prompts.json").out)


# Results of others


class Names:
    """What stands for each text of a file: for the same always the same, so that the file stays coherent."""

    def __init__(self, first: int) -> None:
        self._words = itertools.cycle([*WORDS[first:], *WORDS[:first]])
        self._of: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        if text not in self._of:
            self._of[text] = f"{next(self._words)}{len(self._of)}"
        return self._of[text]


WORDS = [
    *(text for name, text in HOSTILE.items() if name != "long"),
    "../../../evil",
    "/tmp/../evil",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "[link=https://evil.example]x[/link] [bold]y[/] [@click=app.bell]z[/]",
    "\x1b]52;c;ZWNobw==\x07 \x1b]0;title\x1b\\ \x1bP1$r\x1b\\ \x1b_x\x1b\\",
    "| a | b |\n|---|---|\n| `c` | <!-- d --> |",
    "](javascript:alert(1))",
    "{{7*7}} ${7*7} #{7*7} <%= 7*7 %>",
    "x' OR 1=1 --",
    "%n%s%x {0} {0.__class__}",
    "$(touch evil) `touch evil` ; touch evil",
]
FIXED = frozenset({"event", "kind", "schema", "decoder", "finish_reason", "config_hash", "machine_class", "started_at"})
"""Keys whose texts are one of a few, or a key of other lines: with anything else the file is refused or means less."""
AS_THEY_ARE = frozenset({"auto", "eager", "model", "float32"})


def spoiled(value: Any, name: Callable[[str], str], key: str = "") -> Any:
    match value:
        case dict():
            free = key in ("token_texts", "machine")
            return {k if not free or k.isdecimal() else name(k): spoiled(v, name, k) for k, v in value.items()}
        case list():
            return [spoiled(one, name, key) for one in value]
        case str():
            return value if key in FIXED or value in AS_THEY_ARE or not value else name(value)
    return value


def spoil(path: Path, first: int) -> None:
    name = Names(first)
    lines = [json.dumps(spoiled(json.loads(line), name)) for line in path.read_text("utf-8").splitlines()]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def harmless(text: str) -> None:
    """It can be printed."""
    assert not (found := CONTROLS.search(text)), repr(text[found.start() - 50 : found.end() + 50])


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def spoiled_run(first: int) -> Path:
    path = large_run.write(Path("results"), large_run.run(large_run.prompts(6), num_tokens=24, curve=large_run.CURVE))
    spoil(path, first)
    return path


@pytest.mark.parametrize("first", range(0, len(WORDS), 9))
def test_a_run_of_others_commands_no_terminal(first: int) -> None:
    path = spoiled_run(first)
    (saved,) = saved_runs.saved_runs(Path("results"))
    assert saved.complete
    before = tree(Path())
    for arguments in (
        ("results", "list"),
        ("results", "list", "--json"),
        ("results", "show", path.stem),
        ("results", "show", path.stem, "--json"),
        ("explain",),
        ("explain", "--json"),
        ("compare", str(path), str(path)),
        ("compare", str(path), str(path), "--json"),
    ):
        outcome = ok(*arguments)
        harmless(outcome.out + outcome.err)
    assert tree(Path()) == before


@pytest.mark.parametrize("first", range(0, len(WORDS), 17))
def test_a_run_of_others_makes_a_page_and_a_text_that_are_inert(first: int, tmp_path: Path) -> None:
    path = spoiled_run(first)
    before = tree(tmp_path)
    outcome = ok("report", str(path), "--compare", str(path))
    harmless(outcome.out + outcome.err)
    made = tree(tmp_path) - before
    (name,) = (Path(name).stem for name in made if name.endswith(".html"))
    assert re.fullmatch(r"[\w.-]+", name) and not name.startswith("..")
    results = f"some/where/below/results/{name}"
    assert {name for name in made if not name.startswith(f"{results}_figures")} == {f"{results}.html", f"{results}.md"}
    page, text = (Path("results", f"{name}{ending}").read_text("utf-8") for ending in (".html", ".md"))
    assert list(outside(page)) == []
    for form in (page, text):
        harmless(form)
    drawings = list(Path("results", f"{name}_figures").iterdir())
    assert len(drawings) > 4
    for drawing in drawings:
        inert_drawing(drawing.read_text("utf-8"))


def inert_drawing(text: str) -> None:
    harmless(text)
    for element in ElementTree.fromstring(text).iter():
        assert element.tag.rpartition("}")[2] not in ("script", "foreignObject", "iframe", "a", "animate", "set")
        for name, value in element.attrib.items():
            assert not name.lower().startswith("on")
            if name.rpartition("}")[2] in ("href", "src"):
                assert value.startswith(("#", "data:image/png;base64,"))
            assert "javascript:" not in value and not re.search(r"url\((?!['\"]?#)", value)


@pytest.mark.parametrize("first", range(0, len(WORDS), 9))
def test_a_sweep_of_others_commands_no_terminal_and_no_spreadsheet(first: int, tmp_path: Path) -> None:
    spoil(sample_store.write(Path("results"), [*sample_store.story(), sample_store.failure(20)]), first)
    before = tree(tmp_path)
    listed = ok("results", "list")
    document = ok("results", "list", "--json").document
    shown = [ok("results", "show", cell["config_hash"]) for cell in document["cells"]]
    assert len(shown) == 2
    exported = ok("results", "export", "--csv", "cells.csv", "--parquet", "cells.parquet")
    printed = ok("results", "export", "--csv", "-")
    for outcome in (listed, *shown, exported):
        harmless(outcome.out + outcome.err)
    assert tree(tmp_path) - before == {"some/where/below/cells.csv", "some/where/below/cells.parquet"}
    assert Path("cells.csv").read_text("utf-8") == printed.out
    harmless(printed.out)
    with open("cells.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 6
    assert [cell for row in rows for cell in row if re.match(r"[=+@\t\r]|-(?!\d)", cell)] == []


def test_a_name_is_not_a_place(tmp_path: Path) -> None:
    """A file may call itself what it likes, its own name too."""
    path = spoiled_run(0)
    evil = path.with_name("..evil <b>\x1b[31m;$(touch evil).jsonl")
    path.rename(evil)
    before = tree(tmp_path)
    harmless(ok("results", "list").out)
    outcome = ok("report", "--md", "-", str(evil))
    harmless(outcome.out + outcome.err)
    harmless(command("report", "../../evil").err)
    harmless(command("results", "show", "\x1b[31m../x").err)
    assert tree(tmp_path) == before
    ok("report", str(evil))
    assert all(
        re.fullmatch(r"results/[\w.-]+(/[\w.-]+)?", name)
        for name in tree(Path()) - {"results"}
        if "evil <b>" not in name
    )


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"event": "RunStarted", "config": ' + "[" * 50_000 + "]" * 50_000 + "}",
        '{"event": "RunStarted", "run_id": ' + "9" * 100_000 + "}",
    ],
)
def test_json_that_breaks_readers(line: str) -> None:
    for name in ("run.jsonl", "records.jsonl"):
        Path("results").mkdir(exist_ok=True)
        Path("results", name).write_text(line + "\n")
        for arguments in (("results", "list"), ("report", f"results/{name}"), ("explain", f"results/{name}")):
            outcome = command(*arguments)
            assert outcome.code in (0, USAGE), outcome.err
            assert "Traceback" not in outcome.err and len(outcome.err) < 2000
        Path("results", name).unlink()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "\n"])
def test_a_line_without_an_end_is_not_read_to_its_end(end: str) -> None:
    """As objects this would take gigabytes."""
    directory = Path("results")
    path = large_run.write(directory, large_run.run(large_run.prompts(1), num_tokens=4))
    sample_store.write(directory, sample_store.story())
    for name in (path.name, "records.jsonl"):
        with open(directory / name, "a") as file:
            file.write("[" + "[]," * (records.LONGEST_LINE // 3) + "[]]" + end)
    outcome = command("report", str(path))
    assert outcome.code == (USAGE if end else 0)
    if end:
        assert "it is longer than 64 MiB" in outcome.told[0]
    listed = ok("results", "list")
    assert ("is skipped: it is longer than 64 MiB" if end else "it is incomplete") in listed.err
    with open(directory / path.name, "ab") as file:
        file.write(b"\n")
    assert "is damaged: it is longer" in command("explain", str(path)).told[0]
    # A file of another kind that lies beside it.
    (directory / "other.jsonl").write_bytes(b"[" * (records.LONGEST_LINE + 10))
    assert path.stem in ok("results", "list").out
