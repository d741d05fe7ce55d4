"""Every command of the documentation is run, in the order of its page; what can't be is listed with the reason."""

from __future__ import annotations

import functools
import glob
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from command_line import Outcome, command, isolate, ok
from docs_pages import PAGES, ROOT, Command, blocks, commands
from packaged import directory_of
from specprof.profiling.events import RunStarted

NOT_RUN = {
    r"^(make|pip|pipx|uv|\S*/pip)\b": "makes an environment, from a package index",
    r"^(hf|ollama|ray|srun|sbatch|docker|export|curl|git clone)\b|^head=|^RAY_": "another program, or a cluster",
    r"#SBATCH": "Slurm",
    r"GITHUB_STEP_SUMMARY": "GitHub",
    r"^python -m pytest": "the tests themselves",
    r"^python benchmarks/": "takes minutes; its flags are checked, and it has tests of its own",
    r"^python scripts/train_pair": "trains for hours; has tests of its own",
    r"^bash scripts/gpu": "a GPU",
    r"^specprof tui": "a terminal; test_tui_terminal.py has one",
    r"--(install|show)-completion": "acts on the shell it is called from; test_completion.py has some",
    r"--pair (gpt2_dev|phi3_llama3|tinyllama_llama3|llama3_self)": "gigabytes of a hub's weights, or of random ones",
    r"^specprof (run|load) (?!.*--scale-layers 1).*(gpt2|meta-llama|owner/)": "a model of a hub",
    r"--tokenizer gpt2": "a tokenizer of a hub",
    r"--ollama": "an Ollama server; test_ollama.py has one",
    r"--gpus|--device(-map)? (cuda|auto)|--engine graph": "GPUs",
    r"--executor ray": "Ray; test_ray.py has it",
}
WITHOUT_OUTPUT = {"gh": "GitHub's program"}
"""Programs at the end of a pipe that are not run; what they are fed is."""

RUN_IDS = ("20261120-114500-7f3c", "20261121-101500-7f3c", "20261122-093011-a2d0")
SHORT = ("-n", "1", "--max-new-tokens", "8", "--reps", "1", "--warmup", "0", "--deterministic")
QUICK = {"run": SHORT, "sweep": SHORT, "verify": ("-n", "2", "--max-new-tokens", "8", "--reps", "1", "--deterministic")}
"""What is added to commands that decode: the last of two values counts. Deterministic leaves out timing the matrix
products."""


def why_not(line: Command) -> str | None:
    """The reason for which a command is not run."""
    for pattern, reason in NOT_RUN.items():
        if re.search(pattern, line.text) or (pattern == "#SBATCH" and "#SBATCH" in line.block.text):
            return reason
    return None


def test_reasons_are_needed() -> None:
    lines = [line for page in PAGES for line in commands(page)]
    reasons = {why_not(line) for line in lines}
    assert reasons == {None, *NOT_RUN.values()}


@dataclass(frozen=True, slots=True)
class Workshop:
    """What the pages take for granted: two models, prompts, saved runs, sweeps."""

    directory: Path
    cell: str
    """Of the sweep in ``results``, one that is compared with its baseline."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    directory = tmp_path_factory.mktemp("workshop")
    with pytest.MonkeyPatch.context() as patch:
        isolate(directory, patch)
        shutil.copytree(ROOT / "configs", "configs")
        for name, model in {"small": "draft", "large": "target", "draft": "draft", "my-model": "target"}.items():
            os.symlink(directory_of(f"tiny_dev/{model}"), name)
        Path("mine.jsonl").write_text('{"prompt": "def mean(values):", "domain": "code"}\n"Once upon a time"\n')
        ok("prompts", "--output", "prompts.json", "--offline", "-q")
        quick = ("-n", "3", "--max-new-tokens", "12", "--reps", "1", "--warmup", "0", "-q", "--deterministic")
        unsurveyed = (*quick, "--no-cost-curve")
        for k, run_id in enumerate(RUN_IDS, 2):
            [started, *_] = ok("run", "--k", str(k), *unsurveyed, "--jsonl").events
            assert isinstance(started, RunStarted)
            made = Path("results", f"{started.run_id}.jsonl")
            made.with_stem(run_id).write_text(made.read_text().replace(started.run_id, run_id))
            made.unlink()
        ok("sweep", "--k", "1,2,4", *quick)
        for copy in ("sweep-monday", "sweep-tuesday", "results-code"):
            os.mkdir(copy)
            shutil.copy("results/records.jsonl", copy)
        os.mkdir("new")
        for copy in ("baseline.jsonl", "new.jsonl", f"new/{RUN_IDS[2]}.jsonl"):
            shutil.copy(f"results/{RUN_IDS[2]}.jsonl", copy)
        cells = ok("results", "list", "--json").document["cells"]
        yield Workshop(directory, next(cell["config_hash"] for cell in cells if cell["K"]))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page(page: str, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "page"
    shutil.copytree(workshop.directory, there, symlinks=True)
    isolate(there, monkeypatch)
    for line in commands(page):
        if why_not(line) is None:
            for pipeline in line.pipelines:
                run_pipeline(line, pipeline, workshop)
    names: dict[str, object] = {}
    monkeypatch.syspath_prepend(ROOT / "examples")
    examples = {path.read_text() for path in (ROOT / "examples").glob("*.py")}
    for block in blocks(page):
        if block.language == "python" and block.text not in examples:
            exec(compile(block.text, f"{page}:{block.number}", "exec"), names)


def run_pipeline(line: Command, pipeline: Sequence[tuple[str, ...]], workshop: Workshop) -> None:
    """Run the programs of a line, each fed with what the one before it said."""
    said = b""
    for words in pipeline:
        program, *arguments = [_meant(word, workshop) for word in words]
        written = None
        if ">" in arguments:
            written, arguments = arguments[arguments.index(">") + 1], arguments[: arguments.index(">")]
        if program == "specprof":
            outcome = _specprof(arguments, said, surveyed=".predictions" in line.text)
            assert outcome.code in ((0, 8) if "--fail-if" in arguments else (0,)), f"{line}\n{outcome.err}"
            said = outcome.out.encode()
        elif program == "jq":
            said = _jq(line, arguments, said)
        elif program in WITHOUT_OUTPUT:
            assert said, line
        elif program == "echo":
            said = " ".join(arguments).encode() + b"\n"
        elif program == "head":
            said = b"".join(said.splitlines(keepends=True)[:10])
            assert said, line
        elif program == "python":
            _python(*arguments)
        elif program in ("mkdir", "cat"):
            names = [name for pattern in arguments for name in sorted(glob.glob(pattern)) or [pattern]]
            said = subprocess.run([program, *names], check=True, stdout=subprocess.PIPE).stdout
        else:
            raise AssertionError(f"{line}: {program} fits no category: run it here, or say in NOT_RUN why not")
        if written is not None:
            Path(written).write_bytes(said)


_DONE: dict[tuple[str, ...], Outcome] = {}
"""What several lines and pages have is run once: they all find the same workshop."""


def _specprof(arguments: Sequence[str], stdin: bytes, *, surveyed: bool) -> Outcome:
    name = next((argument for argument in arguments if argument in QUICK), None)
    short = () if name is None or arguments[0] != name or "--help" in arguments else QUICK[name]
    if "rm" in arguments[:2]:
        short = ("--yes",)
    if "prompts" in arguments[:1] and "--output" in arguments:
        short = ("--offline",)
    if name == "run" and not surveyed and "--cost-only" not in arguments:
        short = (*short, "--no-cost-curve")
    if name == "sweep" and not {"--json", "--pair", "--dry-run"} & set(arguments):
        short = (*short, "--dry-run")  # those that remain are enough of them: each has a process that loads PyTorch
    if "auto" in arguments:
        short = tuple(word for word in short if word != "--deterministic")
    words = (*arguments, *short)
    if stdin or words not in _DONE:
        _DONE[words] = command(*words, stdin=stdin)
    return _DONE[words]


@functools.cache
def _python(script: str, *arguments: str) -> None:
    subprocess.run([sys.executable, str(ROOT / script), *arguments], check=True, stdout=subprocess.DEVNULL)


def _meant(word: str, workshop: Workshop) -> str:
    """Names of things that a reader would have."""
    meant = {"A": RUN_IDS[0], "B": RUN_IDS[2], "RUN": RUN_IDS[1], "CELL": workshop.cell, "3f0c": workshop.cell[:6]}
    return meant.get(word, word)


def _jq(line: Command, arguments: Sequence[str], said: bytes) -> bytes:
    if shutil.which("jq") is None:
        return said
    done = subprocess.run(["jq", *arguments], input=said, capture_output=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stderr.decode()}"
    about_failures = "fail" in shlex.join(arguments)
    assert about_failures or done.stdout.strip() not in (b"", b"null"), f"{line}\n{done.stdout.decode()}"
    return done.stdout
