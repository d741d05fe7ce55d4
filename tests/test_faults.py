"""Signals, memory and disks that run out, clocks that are set, and others at work in the same directory.

Each case is a process of its own in which one thing goes wrong at a chosen place (tests/faulty). Whatever it is:
the exit code says which kind, nobody sees a traceback, nobody is left behind, what was finished can be read.
"""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from command_line import QUICK, Outcome, isolate, ok, process
from specprof.experiments.saved_runs import saved_runs
from specprof.profiling.events import PromptEnded, RunEnded, from_json_line

ROOT = Path(__file__).parents[1]
FAULTY = Path(__file__).with_name("faulty")
RESOURCES, SOME_FAILED, BROKEN_PIPE = 4, 7, 141
PATIENCE = 120

INT, TERM, HUP, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")

RUN = ("run", *QUICK, "-n", "2", "--reps", "2")
SWEEP = (
    "sweep", "--pair", "tiny_dev", "--k", "2", "-n", "1", "--domain", "code", "--reps", "2", "--max-new-tokens", "8",
    "--warmup", "0", "--deterministic",
)  # fmt: skip
NUM_GENERATIONS = 7


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def told(self) -> tuple[str, str]:
        return Outcome(self.code, self.out, self.err).told


def faulty(
    command: Sequence[str], at: str, fault: str, argument: Any = None, *, nth: int = 1, worker: bool = False,
    **environment: str,
) -> Ended:  # fmt: skip
    """A command in which something goes wrong; nothing that it started outlives it, nor any temporary file."""
    asked = {"at": at, "nth": nth, "fault": fault, "argument": argument, "worker": worker}
    child = subprocess.Popen(
        [sys.executable, "-m", "specprof", *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(FAULTY), "FAULTY": json.dumps(asked)} | environment,
    )  # fmt: skip
    out, err = child.communicate(timeout=PATIENCE)
    assert "Traceback" not in err and "Exception ignored" not in err, err
    assert remaining(child.pid) == []
    if child.returncode != -KILL:
        # PyTorch makes itself a folder for what it compiles; nothing is in it.
        assert [path.name for path in Path("tmp").rglob("*") if not path.name.startswith("torchinductor_")] == []
    return Ended(child.returncode, out, err)


def remaining(session: int) -> list[str]:
    """Processes of a session that are left over, after a moment to disappear in."""
    deadline = time.monotonic() + 10
    while left := list(_of(session)):
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return left


def _of(session: int) -> Iterator[str]:
    for found in psutil.process_iter():
        try:
            if os.getsid(found.pid) == session and found.status() != psutil.STATUS_ZOMBIE:
                yield " ".join(found.cmdline())
        except (psutil.Error, ProcessLookupError):
            continue


def generations(directory: str = "results") -> int:
    """Of all runs in a directory, finished and kept; each file can be read to its last whole line."""
    found = 0
    for path in Path(directory).glob("[0-9]*.jsonl"):
        text = path.read_text()
        found += sum(
            isinstance(from_json_line(line), PromptEnded) for line in text.splitlines(True) if line[-1] == "\n"
        )
    return found


# Signals

PLACES: dict[str, tuple[Sequence[str], str, int, int]] = {
    # name: command, place, which call, generations that are kept at least
    "starting": (RUN, "specprof.commands", 1, 0),
    "reading the flags": (RUN, "specprof.commands.run:run", 1, 0),
    "importing": (RUN, "torch.nn", 1, 0),
    "loading": (RUN, "specprof.models.loader:load_model", 2, 0),
    "compiling": (RUN, "specprof.models.native.library:_run", 2, 0),
    "warming up": (RUN, "specprof.experiments.run:warm_shapes", 1, 0),
    "surveying": (("run", *QUICK[:-1]), "specprof.experiments.cost_survey:survey_costs", 1, 0),
    "drafting": (RUN, "specprof.decoding.drafters:DraftModel.propose", 9, 1),
    "verifying": (RUN, "specprof.models.wrapper:ModelWrapper.extend", 70, 1),
    "keeping a generation": (RUN, "specprof.experiments.store:RunFile._flush", 5, 3),
    "comparing": (RUN, "specprof.profiling.comparison:compare", 1, 8),
    "writing the document": ((*RUN, "-o", "run.json"), "specprof.commands.output:write_document", 1, 8),
    "writing a trace": ((*RUN, "--trace", "trace.json.gz"), "specprof.profiling.trace:trace_file", 1, 0),
    "printing": (RUN, "specprof.reports.tables:to_text", 1, 8),
    "planning a sweep": (SWEEP, "specprof.experiments.plan:make_plan", 1, 0),
    "locking a store": (SWEEP, "specprof.experiments.results:ResultStore.open", 1, 0),
    "starting a worker": (SWEEP, "specprof.experiments.executors:LocalWorker.__init__", 1, 0),
    "asking a worker": (SWEEP, "specprof.experiments.executors:LocalWorker.prepare", 1, 0),
    "keeping a sweep's generation": (SWEEP, "specprof.experiments.results:ResultStore.append", 5, 0),
    "a sweep's table": (SWEEP, "specprof.commands.sweep:_matrices", 1, 0),
    "reading a run": (
        ("report", "saved", "--html", "made.html", "--md", "made.md"),
        "specprof.experiments.saved_runs:read_run",
        1,
        0,
    ),
    "drawing": (("report", "saved", "--html", "made.html", "--md", "made.md"), "matplotlib.figure", 1, 0),
    "writing a report": (
        ("report", "saved", "--html", "made.html", "--md", "made.md"),
        "specprof.files:write_whole",
        2,
        0,
    ),
    "explaining": (("explain", "saved"), "specprof.profiling.comparison:compare", 1, 0),
    "a dead sweep's list": (("results", "list", "--results-dir", "saved"), "specprof.experiments.results", 1, 0),
}
SIGNALS = (INT, TERM, HUP)
EVERYWHERE = bool(os.environ.get("SPECPROF_ALL_FAULTS"))
"""Every signal at every place; else some places have one each, and the signals take turns."""
FAST = ("starting", "keeping a generation")
SELDOM = (
    "loading", "warming up", "surveying", "drafting", "comparing", "printing", "planning a sweep", "asking a worker",
    "keeping a sweep's generation", "reading a run", "reading the flags",
)  # fmt: skip


def signalled() -> Iterator[Any]:
    for turn, place in enumerate(PLACES):
        if place in SELDOM and not EVERYWHERE:
            continue
        for number in SIGNALS if EVERYWHERE else (SIGNALS[turn % 3],):
            marks = () if place in FAST else (pytest.mark.slow,)
            yield pytest.param(place, number, id=f"{number.name} while {place}", marks=marks)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that came to its end."""
    directory = tmp_path_factory.mktemp("finished")
    ok(*RUN, "--results-dir", str(directory))
    return directory


@pytest.mark.parametrize(("place", "number"), [*signalled()])
def test_a_signal_ends_it_and_what_is_finished_is_kept(
    place: str, number: signal.Signals, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    command, at, nth, kept = PLACES[place]
    if "saved" in command:
        Path("saved").symlink_to(request.getfixturevalue("finished"))
    ended = faulty(command, at, "signal", number, nth=nth, XDG_CACHE_HOME=str(tmp_path / "cache" if nth == 2 else ""))
    default = at.endswith("specprof.commands") and number != INT
    assert ended.code == (-number if default else 128 + number), ended.err
    assert ended.out == ""
    assert generations() >= kept
    if kept and kept < 8:
        assert ended.err.splitlines()[-1].startswith("warning: interrupted; what was finished is in results/")
    assert not [path for path in Path().iterdir() if path.name.startswith(".")], "a draft of a file"
    if "sweep" in command and Path("results/records.jsonl").exists() and place != "a sweep's table":
        assert "the same command goes on" in ended.err or place == "locking a store"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["keeping a sweep's generation", "asking a worker"])
def test_after_a_signal_the_same_sweep_goes_on(place: str) -> None:
    command, at, nth, _ = PLACES[place]
    assert faulty(command, at, "signal", TERM, nth=nth).code == 128 + TERM
    before = Path("results/records.jsonl").read_text().splitlines()
    ok(*command)
    lines = [json.loads(line) for line in Path("results/records.jsonl").read_text().splitlines()]
    assert [json.dumps(line) for line in lines[: len(before)]] == [json.dumps(json.loads(line)) for line in before]
    made = [line for line in lines if line["kind"] == "generation"]
    keys = {(line["config_hash"], line["prompt_id"], line["repetition"], line["control"]) for line in made}
    assert len(keys) == len(made) == NUM_GENERATIONS
    assert not [line for line in lines if line["kind"] == "failure"]


@pytest.mark.slow
def test_a_report_that_is_killed_leaves_the_old_one(finished: Path) -> None:
    Path("saved").symlink_to(finished)
    report = ("report", "saved", "--html", "made.html")
    ok(*report)
    before = Path("made.html").read_bytes()
    assert faulty((*report, "--title", "another"), "os:fsync", "signal", KILL).code == -KILL
    assert Path("made.html").read_bytes() == before and len(before) > 10_000


# Readers that go away


@pytest.mark.parametrize(
    "command",
    [
        pytest.param((*RUN, "--json"), marks=pytest.mark.slow),
        *([pytest.param(RUN, marks=pytest.mark.slow)] if EVERYWHERE else []),
        pytest.param(("explain", "saved"), marks=pytest.mark.slow),
        pytest.param(("report", "saved", "--json"), marks=pytest.mark.slow),
        ("results", "list", "--results-dir", "saved"),
        pytest.param(("prompts", "--json"), marks=pytest.mark.slow),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_reader_that_is_gone(command: tuple[str, ...], finished: Path) -> None:
    Path("saved").symlink_to(finished)
    child = process(*command)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    err = child.stderr.read()
    assert child.wait(PATIENCE) == BROKEN_PIPE, err
    assert "Traceback" not in err and "Exception ignored" not in err and "BrokenPipe" not in err
    if command[0] == "run":
        assert generations() == 8


# Memory that runs out

MEMORY = {
    "loading": ("specprof.models.loader:load_model", 1),
    "preparing": ("specprof.models.native.forward:NativeForward.__init__", 1),
    "prefilling": ("specprof.models.wrapper:ModelWrapper.new_cache", 3),
    "decoding": ("specprof.models.wrapper:ModelWrapper.extend", 60),
}
LONG = ("run", *QUICK, "--max-new-tokens", "900", "-n", "2", "--domain", "code")


@pytest.mark.slow
@pytest.mark.parametrize("when", MEMORY if EVERYWHERE else [when for when in MEMORY if when != "preparing"])
def test_memory_that_runs_out(when: str) -> None:
    at, nth = MEMORY[when]
    ended = faulty(LONG, at, "memory", nth=nth)
    assert ended.code == RESOURCES, ended.err
    error, hint = ended.told
    assert "memory" in error and "memory" in hint and "bug" not in error
    assert ended.out == ""
    generations()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["loading", "decoding"] if EVERYWHERE else ["decoding"])
def test_memory_that_runs_out_in_a_sweep(when: str) -> None:
    at, nth = MEMORY[when]
    ended = faulty((*SWEEP, "--json", "--max-new-tokens", "900"), at, "memory", nth=nth, worker=True)
    assert ended.code == SOME_FAILED, ended.err
    failures = json.loads(ended.out)["failures"]
    assert failures and {failure["reason"] for failure in failures} == {"out of memory"}


# Disks that are full


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "at", "kept"),
    [
        ((*RUN, "-o", "run.json"), "specprof.commands.output:write_document", 8),
        ((*RUN, "--trace", "trace.json"), "specprof.profiling.trace:trace_file", 0),
        (("report", "saved", "--html", "made.html", "--md", "made.md"), "specprof.files:write_whole", 0),
        (SWEEP, "specprof.experiments.executors:LocalWorker.generate", 0),
    ],
    ids=["the document", "a trace", "a report", "a sweep"],
)
def test_a_disk_that_is_full(command: tuple[str, ...], at: str, kept: int, finished: Path) -> None:
    if "saved" in command:
        Path("saved").symlink_to(finished)
    ended = faulty(command, at, "disk", 1500)
    assert ended.code == RESOURCES, ended.err
    error, hint = ended.told
    assert "File too large" in error and ("space" in hint or "kept" in hint)
    assert ended.out == "" and generations() >= kept
    parts = [path for path in Path().rglob("*") if "made" in str(path) and path.is_file()]
    assert not parts, "nothing is better than a part"
    if "sweep" in command:
        ok(*command)


@pytest.mark.parametrize("output", ["-o", "--trace"] if EVERYWHERE else ["--trace"])
@pytest.mark.slow
def test_a_device_that_is_full(output: str) -> None:
    ended = faulty((*RUN, output, "/dev/full"), "", "clock", 0)
    assert ended.code == RESOURCES, ended.err
    error, _ = ended.told
    assert "No space left on device" in error
    assert generations() >= (8 if output == "-o" else 0)


# Clocks that are set

CLOCKS = {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime", "now", "utcnow", "today"}
FOR_PEOPLE = {
    ("specprof/experiments/sweep.py", "_now"): "beside records, which are ordered by their sequence",
    ("commands/sweep.py", "_now"): "beside a session",
    ("specprof/experiments/store.py", "new_run_id"): "run ids begin with it",
    ("specprof/experiments/results.py", "_locked"): "since when another sweep is at work",
    ("tui/app.py", "action_take_screenshot"): "the name of a file",
}
"""Where the wall clock is read, and what for."""


def test_nothing_is_measured_by_the_wall_clock() -> None:
    found = set()
    for folder in ("specprof", "commands", "tui", "reports"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not path.resolve().is_relative_to((ROOT / folder).resolve()) or path.is_symlink():
                continue
            name = str(path.relative_to(ROOT))
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found |= {(name, function) for function in _reading_the_clock(tree)}
    assert {place for place in found if not place[0].startswith(tuple(f"specprof/{part}/" for part in LINKED))} == set(
        FOR_PEOPLE
    )


LINKED = ("commands", "tui", "reports")


def _reading_the_clock(tree: ast.Module) -> Iterator[str]:
    """Functions that call what tells the time of day; ``import time`` and ``from time import`` are both seen."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in ("time", "datetime")
        for alias in node.names
    }
    assert not imported & CLOCKS - {"time"}, "from time import time"
    assert not imported & {"time"} or "datetime" in imported
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.Attribute)
                    and node.attr in CLOCKS
                    and isinstance(node.value, ast.Name)
                    and node.value.id in ("time", "datetime", "date")
                ):
                    yield function.name


def test_the_search_for_clocks_finds_one() -> None:
    assert list(_reading_the_clock(ast.parse("import time\ndef f():\n    return time.time()"))) == ["f"]
    assert list(_reading_the_clock(ast.parse("import time\ndef f():\n    return time.monotonic()"))) == []


@pytest.mark.slow
def test_a_clock_that_is_set_back_and_forth_changes_no_duration() -> None:
    """By an hour, whenever anybody looks."""
    begin = time.perf_counter()
    ended = faulty((*RUN, "--json", "--trace", "trace.json"), "", "clock", 3600)
    seconds = time.perf_counter() - begin
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    (path,) = Path("results").iterdir()
    events = [json.loads(line) for line in path.read_text().splitlines()]
    spent = [
        value for event in events for name, value in event.items()
        if name.endswith("_seconds") and isinstance(value, float)
    ]  # fmt: skip
    assert len(spent) > 100 and all(0 <= value < seconds for value in spent) and 0 < sum(spent) < seconds
    assert 0.01 < document["speedup_decode"]["value"] < 100
    trace = json.loads(Path("trace.json").read_text())
    stamps = [event["ts"] for event in trace["traceEvents"] if "ts" in event]
    assert min(stamps) >= 0 and max(stamps) < seconds * 1e6


# Others in the same directory


@pytest.mark.slow
def test_four_runs_at_once_in_one_directory() -> None:
    children = [process(*RUN, "--seed", str(seed), "--json") for seed in range(4)]
    reading: list[subprocess.Popen[str]] = []
    while any(child.poll() is None for child in children) and len(reading) < 3:
        reading.append(process("results", "list", "--json"))
        _, err = reading[-1].communicate(timeout=PATIENCE)
        assert reading[-1].returncode in (0, 2) and "Traceback" not in err, err
    outputs = [child.communicate(timeout=PATIENCE) for child in children]
    assert [child.returncode for child in children] == [0] * 4, outputs
    documents = [json.loads(out) for out, _ in outputs]
    runs = saved_runs(Path("results"))
    assert len({run.run_id for run in runs}) == len(runs) == 4
    assert {document["run_id"] for document in documents} == {run.run_id for run in runs}
    for path in Path("results").iterdir():
        events = [from_json_line(line) for line in path.read_text().splitlines()]
        assert isinstance(events[-1], RunEnded) and sum(isinstance(event, PromptEnded) for event in events) == 8


@pytest.mark.slow
def test_two_sweeps_at_once_on_one_store() -> None:
    """One works, the other is told so at once; a report reads what there is meanwhile."""
    first = process(*SWEEP)
    deadline = time.monotonic() + PATIENCE
    while not Path("results/records.jsonl").exists():
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.01)
    second = process(*SWEEP)
    out, err = second.communicate(timeout=PATIENCE)
    assert second.returncode == RESOURCES and out == ""
    error, hint = Outcome(second.returncode, out, err).told
    assert "another" in error and hint
    assert first.wait(PATIENCE) == 0
    lines = [json.loads(line) for line in Path("results/records.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "generation" for line in lines) == NUM_GENERATIONS
    assert len({line["session"] for line in lines if line["kind"] == "session"}) == 1
