"""``specprof sweep`` as its user meets it: what is printed, what is written, what it exits with."""

from __future__ import annotations

import functools
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import Outcome, command, isolate, ok, process
from specprof.experiments import executors
from specprof.experiments.results import ResultStore
from specprof.profiling import machine
from toy_sweep import FAULTS, HERE, PROCESSES, SECONDS, TOY, lines

FAILED_CELLS, USAGE, UNAVAILABLE, RESOURCES, INTERRUPTED, BROKEN_PIPE = 7, 2, 3, 4, 130, 141
ANY = ("sweep", "--pair", "tiny_dev", "-n", "1", "--reps", "1", "--max-new-tokens", "4", "--warmup", "0",
       "--deterministic")  # fmt: skip
TINY = (*ANY, "--k", "1,2", "--domain", "code,conversation")
"""6 cells, 12 generations: one for each cell, and three controls for each of two baselines."""
CODE = (*ANY, "--domain", "code")
LONG = ("sweep", "--k", "1,2", "-n", "5", "--reps", "50", "--max-new-tokens", "32", "--deterministic")
"""Goes on for minutes, unless somebody ends it."""


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def this_machine() -> dict[str, Any]:
    """Asked once: every command starts a process to ask."""
    return machine.describe_apart()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, this_machine: dict[str, Any]) -> tuple[Path, Outcome]:
    """A sweep of real models and what it printed."""
    directory = tmp_path_factory.mktemp("finished") / "Ergebnisse von früher"
    with pytest.MonkeyPatch.context() as patched:
        isolate(directory.parent, patched)
        patched.setattr(machine, "describe_apart", lambda: this_machine)
        return directory, ok(*TINY, "--results-dir", str(directory), "--json", "-o", str(directory.parent / "out.json"))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, this_machine: dict[str, Any]) -> None:
    monkeypatch.setattr(machine, "describe_apart", lambda: this_machine)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers without models, on a machine of their own class."""
    toy_executor = functools.partial(executors.LocalExecutor, make_bench=TOY)
    monkeypatch.setattr(executors, "LocalExecutor", toy_executor)
    monkeypatch.setattr(machine, "describe_apart", lambda: {"cpu": "toy", "gpu": None})
    monkeypatch.setattr(machine, "machine_class", lambda description: HERE)


def faulty(monkeypatch: pytest.MonkeyPatch, **faults: str) -> None:
    """``k2="memory"``: what goes wrong with K = 2."""
    monkeypatch.setenv(FAULTS, json.dumps({name.removeprefix("k"): fault for name, fault in faults.items()}))


def everything_in(directory: Path) -> dict[Path, bytes]:
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# What is printed


def test_stdout_is_one_document(finished: tuple[Path, Outcome]) -> None:
    directory, outcome = finished
    document = outcome.document
    assert set(document) == {
        "schema", "specprof_version", "session", "results", "config", "num_cells", "num_cells_done",
        "num_cells_failed", "matrices", "failures",
    }  # fmt: skip
    assert document["schema"] == "specprof.sweep/1"
    assert document["results"] == str(directory / "records.jsonl")
    assert [document[f"num_cells{suffix}"] for suffix in ("", "_done", "_failed")] == [6, 6, 0]
    assert document["config"]["k"] == [1, 2] and document["config"]["domains"] == ["code", "conversation"]
    assert document["failures"] == []
    (matrix,) = document["matrices"]
    assert set(matrix) == {
        "pair", "drafter", "temperature", "config", "machine_class", "machine", "models", "caveats", "domains",
        "best_k", "baseline_drift", "by_k", "missing",
    }  # fmt: skip
    assert (matrix["pair"], matrix["drafter"], matrix["temperature"]) == ("tiny_dev", "model", 0)
    assert matrix["domains"] == ["code", "conversation"] and list(matrix["by_k"]) == ["1", "2"]
    for comparison in matrix["by_k"].values():
        assert comparison["speedup_decode"]["value"] > 0
        assert comparison["output_matches_baseline"] == {"num_prompts": 2, "num_identical": 2, "divergences": []}


def test_a_file_gets_the_same_document(finished: tuple[Path, Outcome]) -> None:
    directory, outcome = finished
    assert json.loads((directory.parent / "out.json").read_text()) == outcome.document


def test_every_generation_is_written_once(finished: tuple[Path, Outcome]) -> None:
    directory, outcome = finished
    generations = lines(directory, "generation")
    assert len(generations) == 12 and sum(line["control"] for line in generations) == 6
    (session,) = lines(directory, "session")
    assert session["session"] == outcome.document["session"]
    assert session["command"].startswith("specprof sweep --pair tiny_dev -n 1 --reps 1 ")


def test_the_same_command_again_shows_what_is_done(finished: tuple[Path, Outcome], here: None) -> None:
    directory, first = finished
    before = everything_in(directory)
    again = ok(*TINY, "--results-dir", str(directory))
    assert f"sweep: 6 cells, 6 done; 0 of 12 generations to make, into {directory}/records.jsonl" in again.err
    assert "loading" not in again.err
    written = {name: content for name, content in everything_in(directory).items() if name.suffix == ".jsonl"}
    assert written == {name: content for name, content in before.items() if name.suffix == ".jsonl"}
    table = again.out.splitlines()
    assert table[0] == "tiny_dev  greedy"
    assert re.match(r"tiny_dev/target on cpu.*, float32, (native|own) forward; at most 4 new tokens$", table[1])
    assert table[3].split() == ["speedup", "code", "conversation", "all"]
    value = first.document["matrices"][0]["by_k"]["2"]["speedup_decode"]["value"]
    assert table[5].startswith("K = 2 ") and f"{value:.2f}x" in table[5]


def test_an_ascii_terminal_gets_ascii(finished: tuple[Path, Outcome], here: None) -> None:
    directory, _ = finished
    plain = ok(*TINY, "--results-dir", str(directory))
    assert ok(*TINY, "--results-dir", str(directory), encoding="ascii").out == plain.out
    assert plain.out.isascii() and max(map(len, plain.out.splitlines())) <= 120


def test_colour_where_it_is_wanted(finished: tuple[Path, Outcome], here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    again = (*TINY, "--results-dir", str(finished[0]))
    assert "\x1b[" not in ok(*again).out and "\x1b[" in ok(*again, "--color", "always").out
    assert "\x1b[" in ok(*again, terminal=True).out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in ok(*again, terminal=True).out


def test_quiet_is_quiet_and_json_lines_are_json(finished: tuple[Path, Outcome], here: None) -> None:
    again = (*TINY, "--results-dir", str(finished[0]), "--json")
    assert ok(*again, "--quiet").err == ""
    narrated = [json.loads(line) for line in ok(*again, "--log-json").err.splitlines()]
    assert narrated[0]["message"].startswith("sweep: 6 cells, 6 done")


def test_more_of_the_same_sweep_needs_only_what_is_new(finished: tuple[Path, Outcome], here: None) -> None:
    shutil.copytree(finished[0], "results")
    document = ok(*ANY, "--domain", "code", "--k", "1,4", "--dry-run", "--json").document
    assert [cell["num_missing"] for cell in document["cells"]] == [0, 0, 1]
    assert document["pairs"][0]["from_measurements"] is True


# Before it is done


def test_a_dry_run_writes_nothing(toy: None) -> None:
    outcome = ok(*TINY, "--dry-run")
    assert everything_in(Path()) == {} and not Path("results").exists()
    assert outcome.out.startswith("pair ")
    assert outcome.out.count(" to make\n") == 6
    document = ok(*TINY, "--dry-run", "--json").document
    assert set(document) == {"schema", "pairs", "cells", "config"} and document["schema"] == "specprof.plan/1"
    assert [cell["num_missing"] for cell in document["cells"]] == [4, 4, 1, 1, 1, 1]
    assert everything_in(Path()) == {}


def test_a_dry_run_of_what_is_done_half_done_and_failed(toy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty(monkeypatch, k2="user error")
    assert command(*CODE, "--k", "1,2").code == FAILED_CELLS
    before = everything_in(Path())
    document = ok(*TINY, "--dry-run", "--json").document
    states = {(cell["config"]["K"], cell["config"]["prompt_domain"]): cell for cell in document["cells"]}
    assert states[1, "code"]["num_missing"] == 0 and states[1, "conversation"]["num_missing"] == 1
    assert states[2, "code"]["failure"] == "the cell is wrong" and states[2, "conversation"]["failure"] is None
    table = ok(*TINY, "--dry-run").out
    assert table.count(" failed: error\n") == 1 and table.count(" done\n") == 2
    assert "Failed before: error: the cell is wrong" in table and "--retry-failed tries" in table
    retried = ok(*TINY, "--dry-run", "--retry-failed").out
    assert "failed:" not in retried and retried.count(" to make\n") == 4
    assert everything_in(Path()) == before


def test_a_damaged_store_is_told_about_before_it_is_used(toy: None) -> None:
    Path("results").mkdir()
    Path("results/records.jsonl").write_text("what is this\n")
    dry = ok(*TINY, "--dry-run")
    assert "warning: results/records.jsonl: line 1 is skipped" in dry.err
    assert Path("results/records.jsonl").read_text() == "what is this\n"


# What fails


def test_a_cell_that_fails_is_told_in_its_place_and_left_alone_until_it_is_asked_for(
    toy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty(monkeypatch, k2="user error")
    outcome = command(*TINY)
    assert outcome.code == FAILED_CELLS
    assert "warning: tiny_dev code K = 2 failed: error: the cell is wrong (write another)" in outcome.err
    assert outcome.err.endswith("warning: 2 cells failed; --retry-failed tries again\n")
    assert "Failed (error): code, conversation K = 2: the cell is wrong (write another)" in outcome.out

    monkeypatch.delenv(FAULTS)
    again = command(*TINY, "--json")
    assert again.code == FAILED_CELLS
    assert "warning: 2 cells failed before; --retry-failed tries again" in again.err
    document = again.document
    assert document["num_cells_failed"] == 2 and document["num_cells_done"] == 4
    assert [(failure["cell"], failure["reason"], failure["message"], failure["hint"])
            for failure in document["failures"]] == [
        ("tiny_dev code K = 2", "error", "the cell is wrong", "write another"),
        ("tiny_dev conversation K = 2", "error", "the cell is wrong", "write another"),
    ]  # fmt: skip

    retried = ok(*TINY, "--retry-failed", "--json").document
    assert retried["num_cells_failed"] == 0 and retried["num_cells_done"] == 6 and retried["failures"] == []


def test_longer_drafts_are_skipped_when_memory_ran_out(toy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty(monkeypatch, k2="cuda")
    outcome = command(*CODE, "--k", "1,2,4,8", "--order-seed", "1")
    assert outcome.code == FAILED_CELLS
    assert "Failed (out of memory): code K = 2: " in outcome.out
    assert "Skipped: code K = 4, 8: K = 2 ran out of memory, and more drafted tokens need more" in outcome.out
    assert "tiny_dev, 2 cells skipped: K = 2 ran out of memory" in outcome.err


@pytest.mark.parametrize(
    ("fault", "flags", "reason"),
    [("segfault", (), "crash"), ("sleep", ("--cell-timeout", "0.5"), "timeout"), ("odd", (), "error")],
)
def test_what_happens_to_one_cell_costs_no_other(
    toy: None, monkeypatch: pytest.MonkeyPatch, fault: str, flags: tuple[str, ...], reason: str
) -> None:
    faulty(monkeypatch, k1=fault)
    outcome = command(*CODE, "--k", "1,2", *flags, "--json")
    assert outcome.code == FAILED_CELLS
    document = outcome.document
    assert [failure["reason"] for failure in document["failures"]] == [reason]
    assert document["num_cells_done"] == 2 and "Traceback" not in outcome.err
    assert document["matrices"][0]["by_k"]["2"]["speedup_decode"]["value"] is not None


def test_fail_fast_stops_there(toy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty(monkeypatch, load="user error")
    outcome = command(*TINY, "--fail-fast", "--json")
    assert outcome.code == FAILED_CELLS and lines(Path("results"), "generation") == []
    faulty(monkeypatch, k1="user error")
    outcome = command(*TINY, "--fail-fast", "--results-dir", "other", "--json")
    assert outcome.code == FAILED_CELLS and outcome.document["num_cells_failed"] == 1
    assert outcome.document["num_cells_done"] < 5


def test_a_pair_that_cannot_be_had_costs_the_other_nothing(toy: None) -> None:
    outcome = command(*TINY, "--pair", "gpt2_dev", "--offline")
    assert outcome.code == FAILED_CELLS
    assert "gpt2_dev, 6 cells failed: load: gpt2-xl is not cached" in outcome.err
    measured, missing = outcome.out.split("\n\ngpt2_dev  greedy\n")
    assert measured.startswith("tiny_dev  greedy\n") and "speedup" in measured
    assert missing.startswith("Failed (load): code, conversation plain decoding, K = 1, 2: gpt2-xl is not cached")


def test_a_pair_that_cannot_be_had_alone_is_an_error(toy: None) -> None:
    outcome = command("sweep", "--pair", "gpt2_dev", "--offline")
    assert outcome.code == UNAVAILABLE and outcome.out == ""
    assert outcome.told[0].startswith("gpt2-xl is not cached")
    assert everything_in(Path()) == {}


# What can't be meant


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--pair", "nope"), "there is no pair named 'nope'"),
        (("--k", "0"), "--k 0 drafts nothing"),
        (("--k", "4-1"), "--k 4-1 runs backwards"),
        (("--k-max", "4"), "--k-max needs --k auto"),
        (("--domain", "prose"), "no prompt has the domain 'prose'"),
        (("--temperature", "-1"), "--temperature -1 is negative"),
        (("--drafter", "medusa"), "--drafter 'medusa' is not a choice"),
        (("--draft-layers", "2"), "--draft-layers does not apply to --drafter model"),
        (("--prompts", "none.json"), "none.json does not exist"),
        (("-n", "0"), "--num-prompts 0 is less than 1"),
        (("--cell-timeout", "0"), "--cell-timeout 0 is not a time"),
        (("--cell-timeout", "nan"), "--cell-timeout nan is not a time"),
        (("--executor", "slurm"), "there is no executor 'slurm'"),
        (("--workers", "2"), "--workers does not apply to --executor local"),
        (("--ray-address", "auto"), "--ray-address does not apply to --executor local"),
        (("--executor", "ray", "--gpus", "0"), "--gpus does not apply to --executor ray"),
        (("--executor", "ray", "--workers", "0"), "--workers 0 is less than 1"),
        (("--gpus", "0", "--device", "cpu"), "--gpus and --device cpu exclude each other"),
        (("--gpus", "first"), "--gpus 'first' names no GPUs"),
        (("--gpus", "auto"), "--gpus 'auto' names no GPUs"),
        (("--device", "abacus"), "there is no device 'abacus'"),
        (("--device", "cuda:x"), "there is no device 'cuda:x'"),
        (("--color", "blue"), "--color 'blue' is not a choice"),
        (("--config", "none.yaml"), "there is no file none.yaml"),
        (("--frobnicate",), "No such option: --frobnicate"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    toy: None, flags: tuple[str, ...], error: str
) -> None:
    outcome = command("sweep", *flags)
    assert outcome.code == USAGE and outcome.out == ""
    assert outcome.told[0].startswith(error) and outcome.told[1]
    assert everything_in(Path()) == {} and not Path("results").exists()


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--device", "cuda"), "there is no device cuda: PyTorch finds 0 CUDA devices"),
        (("--gpus", "0,1"), "there is no GPU 1: 0 found"),
        (("-o", "no/such/place.json"), "no/such/place.json can't be written: there is no directory no/such"),
        (("--results-dir", "file"), "nothing can be written to file: file is not a directory"),
        (("--results-dir", "file/below"), "nothing can be written to file/below: file is not a directory"),
    ],
)
def test_what_this_machine_lacks_is_said_before_anything_is_written(
    toy: None, flags: tuple[str, ...], error: str
) -> None:
    Path("file").touch()
    outcome = command(*TINY, *flags)
    assert outcome.code == RESOURCES and outcome.out == ""
    assert outcome.told[0] == error
    assert everything_in(Path()) == {Path("file"): b""}


def test_gpus_that_are_there_are_taken(toy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "describe_apart", lambda: {"gpu": {"name": "a GPU", "count": 2}})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    outcome = command(*TINY, "--gpus", "0-2")
    assert outcome.code == RESOURCES and outcome.told == ("there is no GPU 2: 2 found", "use 0 to 1")
    assert command(*TINY, "--device", "cuda:2").told[1] == "use cuda:0 to cuda:1"
    document = ok(*TINY, "--gpus", "0,1", "--json").document
    assert document["num_cells_done"] == 6


def test_two_sweeps_do_not_write_into_one_directory(toy: None) -> None:
    with ResultStore.open(Path("results")):
        outcome = command(*TINY)
        assert outcome.code == RESOURCES
        assert re.match(rf"another sweep \(process {os.getpid()}, since .*\) is writing to results$", outcome.told[0])
        assert ok(*TINY, "--dry-run").out.count(" to make\n") == 6
    assert command(*TINY).code == 0


def test_a_file_says_what_flags_would_and_flags_win(toy: None) -> None:
    Path("mine.yaml").write_text("k: [1, 2]\ndomains: [code]\nnum_prompts: 1\nrepetitions: 1\n")
    config = ok("sweep", "--config", "mine.yaml", "--k", "3", "--dry-run", "--json").document["config"]
    assert (config["k"], config["domains"], config["num_prompts"]) == ([3], ["code"], 1)
    Path("mine.yaml").write_text("k: [1, 2]\ndomain: [code]\n")
    outcome = command("sweep", "--config", "mine.yaml")
    assert outcome.code == USAGE
    assert outcome.told[0] == "mine.yaml, line 2: unknown key 'domain'"
    assert "did you mean domains?" in outcome.told[1]


def test_prompts_that_change_are_measured_again(toy: None) -> None:
    flags = ("--prompts", "mine.json", "--k", "1", "-n", "2", "--json")
    Path("mine.json").write_text('["one text", "another text"]')
    ok(*ANY, *flags)
    Path("mine.json").write_text('["one text", "yet another text"]')
    outcome = ok(*ANY, *flags)
    texts = {line["prompt_hash"] for line in lines(Path("results"), "generation")}
    assert len(texts) == 3 and outcome.document["num_cells_done"] == outcome.document["num_cells"]
    assert outcome.document["matrices"][0]["by_k"]["1"]["num_prompts"] == 2


# While it runs


def test_lines_tell_how_far_it_is(toy: None) -> None:
    told = [line for line in ok(*TINY).err.splitlines() if " generations, " in line]
    assert 5 <= len(told) <= 10
    assert re.match(r"\d+ of 12 generations, \d of 6 cells, \d+ s left", told[0])
    assert re.match(r"12 of 12 generations, 6 of 6 cells, best \d\.\d\dx tiny_dev \w+ K = [12]$", told[-1])


def test_on_a_terminal_a_bar_stays_below_what_is_said(toy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECONDS, "0.12")
    err = ok(*TINY, terminal=True).err
    assert err.count("\x1b[?25l") == err.count("\x1b[?25h") == 1, "the cursor comes back"
    assert "\r\x1b[2Kloading tiny_dev" in err, "what is logged takes the place of the bar"
    assert re.search(r"\d+ of 12 generations, \d of 6 cells, \d s left", err)
    assert err.endswith("\r\x1b[1A\x1b[2Kresults: results/records.jsonl\n"), "the bar is gone in the end"


def test_interrupted_it_says_how_to_go_on(toy: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(SECONDS, "0.2")
    monkeypatch.setenv(PROCESSES, str(tmp_path / "processes"))

    def interrupt() -> None:
        while not Path("results/records.jsonl").exists() or not lines_so_far():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    def lines_so_far() -> int:
        return Path("results/records.jsonl").read_text().count('"generation"')

    threading.Thread(target=interrupt, daemon=True).start()
    outcome = command(*TINY)
    assert outcome.code == INTERRUPTED and outcome.out == ""
    made = len(lines(Path("results"), "generation"))
    assert 1 <= made < 12
    said = f"warning: interrupted; {made} of 12 generations are done and kept in results/records.jsonl: "
    assert outcome.err.splitlines()[-1] == said + "the same command goes on"
    assert all(ended(int(pid)) for pid in (tmp_path / "processes").read_text().split())

    monkeypatch.setenv(SECONDS, "0")
    rest = ok(*TINY)
    assert f"{12 - made} of 12 generations to make" in rest.err
    assert len(lines(Path("results"), "generation")) == 12


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# In a process of its own


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for_generations(directory: Path, number: int) -> None:
    patience = time.monotonic() + 60
    path = directory / "records.jsonl"
    while time.monotonic() < patience:
        if path.exists() and path.read_text().count('{"kind":"generation"') >= number:
            return
        time.sleep(0.05)
    raise TimeoutError("the sweep has measured nothing in a minute")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_sweep_that_is_stopped_leaves_nobody_behind(sent: signal.Signals) -> None:
    if not Path("/proc/self/task").exists():
        pytest.skip("needs /proc")
    child = process(*LONG)
    wait_for_generations(Path("results"), 2)
    workers = children(child.pid)
    assert workers
    child.send_signal(sent)
    out, err = child.communicate(timeout=20)
    assert out == "" and "Traceback" not in err
    if sent == signal.SIGKILL:
        assert child.returncode == -sent
    else:
        assert child.returncode == 128 + sent
        assert "warning: interrupted; " in err and err.splitlines()[-1].endswith(": the same command goes on")
    patience = time.monotonic() + 5
    while not all(map(ended, workers)) and time.monotonic() < patience:
        time.sleep(0.05)
    assert all(map(ended, workers))
    made = len(lines(Path("results"), "generation"))
    dry = process(*LONG, "--dry-run", "--json")
    document = json.loads(dry.communicate(timeout=60)[0])
    assert document["pairs"][0]["num_missing"] == document["pairs"][0]["num_generations"] - made


@pytest.mark.slow
def test_a_reader_that_goes_away_loses_nothing() -> None:
    child = process(*TINY, "--json")
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    err = child.stderr.read()
    assert child.wait(60) == BROKEN_PIPE, err
    assert "Traceback" not in err and "Exception ignored" not in err
    assert len(lines(Path("results"), "generation")) == 12


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_leaves_it_clean() -> None:
    screen = Screen([sys.executable, "-m", "specprof", *LONG])
    screen.read_until(r"\d+ of \d+ generations, ")
    screen.type(b"\x03")
    rest = screen.read_to_end()
    assert screen.child.wait(10) == INTERRUPTED
    assert "\x1b[?25h" in rest, "the cursor is shown again"
    assert "interrupted; " in rest and "Traceback" not in rest
    assert all(len(line) <= 80 for line in re.sub(r"\x1b\[[\d;?]*\w", "", screen.seen).replace("\r", "\n").split("\n")
               if "generations, " in line), "a bar that wraps can't be erased"  # fmt: skip


class Screen:
    """A terminal of 80 columns that a process runs on."""

    def __init__(self, arguments: list[str]) -> None:
        ours, theirs = pty.openpty()
        self._terminal = ours
        self.seen = ""
        self.child = subprocess.Popen(
            arguments,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"COLUMNS": "80", "LINES": "24"},
            start_new_session=True,
            preexec_fn=functools.partial(_take_terminal, theirs),
        )
        os.close(theirs)

    def type(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    def read_until(self, pattern: str) -> None:
        for _ in self._pieces():
            if re.search(pattern, self.seen):
                return
        raise AssertionError(f"{pattern} never came: {self.seen}")

    def read_to_end(self) -> str:
        before = len(self.seen)
        for _ in self._pieces():
            pass
        os.close(self._terminal)
        return self.seen[before:]

    def _pieces(self) -> Iterator[str]:
        patience = time.monotonic() + 60
        while time.monotonic() < patience:
            if not select.select([self._terminal], [], [], 1)[0]:
                continue
            try:
                piece = os.read(self._terminal, 65536).decode(errors="replace")
            except OSError:  # Linux says so when the last process has closed its end
                return
            if not piece:
                return
            self.seen += piece
            yield piece
        raise TimeoutError(self.seen)


def _take_terminal(descriptor: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)
