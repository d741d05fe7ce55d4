"""Whatever goes wrong in a sweep: what was measured stays, what failed says why, the rest goes on."""

from __future__ import annotations

import datetime
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import specprof.experiments.sweep
from command_line import isolate
from specprof.errors import ResourceError
from specprof.experiments.executors import LocalExecutor
from specprof.experiments.plan import Plan
from specprof.experiments.results import read_contents
from specprof.experiments.summary import cell_states
from specprof.experiments.sweep import Policy
from toy_sweep import (
    FAULTS,
    HERE,
    KILLED,
    PROCESSES,
    SECONDS,
    TOY,
    Inline,
    Told,
    failures,
    go_on,
    keys,
    lines,
    plan_of,
    prompts,
    said,
)

SOON = 10.0
"""Seconds; a limit that only a hang exceeds."""


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where every worker writes its process id."""
    path = tmp_path / "processes"
    path.touch()
    monkeypatch.setenv(PROCESSES, str(path))
    return path


def started(processes: Path) -> list[int]:
    return [int(line) for line in processes.read_text().splitlines()]


def living(processes: Path) -> list[int]:
    """Workers that are left over, after a moment to disappear in."""
    deadline = time.monotonic() + SOON
    while (left := [pid for pid in started(processes) if _lives(pid)]) and time.monotonic() < deadline:
        time.sleep(0.005)
    return left


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def with_faults(monkeypatch: pytest.MonkeyPatch, **faults: str) -> None:
    """``K1="odd"``, ``K1_code0="odd"``, ``load="odd"``."""
    named = {name.removeprefix("K").replace("_", " "): fault for name, fault in faults.items()}
    monkeypatch.setenv(FAULTS, json.dumps(named))


def planned_without(plan: Plan, *lengths: int) -> set[Any]:
    """Keys of the cells that draft otherwise."""
    return {task.key(HERE) for task in plan.tasks if task.cell.run.k not in lengths}


# --- one cell


@pytest.mark.parametrize(
    ("fault", "reason", "message", "hint"),
    [
        ("user error", "error", "the cell is wrong", "write another"),
        ("odd", "error", "ZeroDivisionError: division by zero", None),
        ("segfault", "crash", "the worker process was killed by SIGSEGV", None),
        ("exit:3", "crash", "the worker process ended with exit status 3", None),
        ("signal:SIGKILL", "crash", "the worker process was killed (SIGKILL), though memory had not run out", None),
    ],
)
def test_a_cell_that_fails_is_written_down_and_the_others_are_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: Path,
    fault: str,
    reason: str,
    message: str,
    hint: str | None,
) -> None:
    with_faults(monkeypatch, K2_code1=fault)
    plan, told = plan_of(k=(1, 2, 4)), Told()
    remaining = go_on(plan, tmp_path, watch=told)

    (failed,) = (cell for cell in plan.cells if not remaining.is_open(cell))
    assert (failed.run.k, failed.config.prompt_domain) == (2, "code")
    (line,) = lines(tmp_path, "failure")
    assert (line["reason"], line["message"], line["hint"]) == (reason, message, hint)
    assert (line["config_hash"], line["machine_class"]) == (failed.config_hash, HERE)
    assert (line["prompt_id"], line["repetition"]) == ("code1", 0)
    assert told.failures == [(2, reason)]
    progress = remaining.progress()
    assert (progress.cells_done, progress.cells_failed, progress.cells) == (7, 1, 8)

    # All other cells, and of this one what came before.
    others = {key for key in planned_without(plan) if key.config_hash != failed.config_hash}
    assert others <= set(keys(tmp_path))
    assert {key[2] for key in set(keys(tmp_path)) - others} <= {"code0"}
    sequence = [line["sequence"] for line in lines(tmp_path, "generation", "failure")]
    assert sequence == list(range(1, len(sequence) + 1))
    assert len(started(processes)) == (1 if reason == "error" else 2)
    assert living(processes) == []


def test_what_failed_is_tried_again_only_when_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(k=(1, 2))
    with_faults(monkeypatch, K2="segfault")
    go_on(plan, tmp_path)
    assert failures(tmp_path) == [(2, "crash"), (2, "crash")]
    written = lines(tmp_path, "generation", "failure", "cell", "machine")

    monkeypatch.delenv(FAULTS)
    told = Told()
    remaining = go_on(plan, tmp_path, watch=told)
    assert lines(tmp_path, "generation", "failure", "cell", "machine") == written
    assert sorted(failure.reason for failure in remaining.failures.values()) == ["crash", "crash"]
    assert told.failures == [] and told.notes == []

    remaining = go_on(plan, tmp_path, retry_failed=True)
    assert remaining.failures == {}
    assert sorted(keys(tmp_path)) == sorted(planned_without(plan))
    assert {state.state for state in cell_states(read_contents(tmp_path))} == {"done"}
    assert go_on(plan, tmp_path).failures == {}


def test_what_fails_again_is_written_down_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(prompts(1, ("code",)))
    for fault, reason in (("segfault", "crash"), ("odd", "error")):
        with_faults(monkeypatch, K1=fault)
        remaining = go_on(plan, tmp_path, retry_failed=True)
        assert [failure.reason for failure in remaining.failures.values()] == [reason]
    assert failures(tmp_path) == [(1, "crash"), (1, "error")]
    assert len(keys(tmp_path)) == len(set(keys(tmp_path)))


def test_a_cell_that_fails_elsewhere_is_tried_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(prompts(1, ("code",)))
    with_faults(monkeypatch, K2="odd")
    go_on(plan, tmp_path, executor=Inline("elsewhere"), machine_class="elsewhere")
    monkeypatch.delenv(FAULTS)
    assert go_on(plan, tmp_path).failures == {}
    assert planned_without(plan) <= set(keys(tmp_path))


def test_a_baseline_that_fails_leaves_its_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_faults(monkeypatch, K0="odd")
    plan = plan_of(prompts(1, ("code",)))
    go_on(plan, tmp_path)
    assert failures(tmp_path) == [(0, "error")]
    assert set(keys(tmp_path)) == planned_without(plan, 0)


# --- time


def test_a_generation_that_hangs_fails_its_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: Path
) -> None:
    with_faults(monkeypatch, K1="sleep")
    plan = plan_of(prompts(1, ("code",)))
    began = time.monotonic()
    go_on(plan, tmp_path, policy=Policy(cell_timeout=0.3))
    assert time.monotonic() - began < SOON
    (failure,) = lines(tmp_path, "failure")
    assert (failure["reason"], failure["message"]) == ("timeout", "it took longer than 0.3 s")
    assert set(keys(tmp_path)) == planned_without(plan, 1)
    assert len(started(processes)) == 2 and living(processes) == []


class Slow(Inline):
    """Every generation takes a while, by the clock the driver looks at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        super().__init__(HERE)
        self.now = 0.0
        self.seconds = seconds
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def lives_on(self) -> bool:
        self.now += self.seconds
        return True


def test_the_time_of_a_cell_is_that_of_all_its_generations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing hangs here: the worker is not killed, and the message says which time was exceeded."""
    plan = plan_of(prompts(5, ("code",)), k=(1,), repetitions=2)
    executor = Slow(monkeypatch, 1.0)
    go_on(plan, tmp_path, executor=executor, policy=Policy(cell_timeout=8.0))
    monkeypatch.undo()
    assert sorted(failures(tmp_path)) == [(0, "timeout"), (1, "timeout")]
    assert {line["message"] for line in lines(tmp_path, "failure")} == {"it took longer than 8 s"}
    counts = {k: sum(line["K"] == k for line in lines(tmp_path, "generation")) for k in (0, 1)}
    assert counts == {0: 8, 1: 8}
    assert len(executor.started[0].asked) == 16  # nothing was thrown away, nobody was killed


def test_the_time_begins_anew_in_every_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(prompts(5, ("code",)), k=(1,), repetitions=2)
    for _ in range(2):
        go_on(plan, tmp_path, executor=Slow(monkeypatch, 1.0), policy=Policy(cell_timeout=8.0), retry_failed=True)
        monkeypatch.undo()
    assert sorted(keys(tmp_path)) == sorted(planned_without(plan))


# --- memory


@pytest.mark.parametrize("fault", ["memory", "fill memory"])
def test_out_of_memory_skips_what_drafts_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    with_faults(monkeypatch, K2_conversation0=fault)
    plan = plan_of(prompts(1), k=(1, 2, 4, 8), temperatures=(0.0, 0.8), repetitions=2)
    go_on(plan, tmp_path)
    found = failures(tmp_path)
    assert {k for k, reason in found if reason == "out of memory"} == {2}
    skipped = {k for k, reason in found if reason == "skipped"}
    assert skipped == {4, 8}
    assert len(found) == len({line["config_hash"] for line in lines(tmp_path, "failure")})
    messages = {line["message"] for line in lines(tmp_path, "failure") if line["reason"] == "skipped"}
    assert messages == {"K = 2 ran out of memory, and more drafted tokens need more"}
    assert planned_without(plan, 2, 4, 8) <= set(keys(tmp_path))
    states = {(state.config.K, state.state) for state in cell_states(read_contents(tmp_path))}
    assert {(0, "done"), (1, "done"), (2, "failed"), (4, "skipped"), (8, "skipped")} <= states

    monkeypatch.delenv(FAULTS)
    assert len(go_on(plan, tmp_path).failures) == len(found)
    assert go_on(plan, tmp_path, retry_failed=True).failures == {}
    assert sorted(keys(tmp_path)) == sorted(planned_without(plan))


def test_out_of_memory_skips_nothing_of_another_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_faults(monkeypatch, K1="memory")
    plan = plan_of(prompts(1, ("code",)), pairs=("tiny_dev", "tiny_cross"), k=(1, 2))
    go_on(plan, tmp_path)
    assert failures(tmp_path) == [(1, "out of memory"), (2, "skipped")] * 2


def test_what_is_done_is_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on(plan_of(prompts(1, ("code",)), k=(4,)), tmp_path)
    with_faults(monkeypatch, K1="memory")
    remaining = go_on(plan_of(prompts(1, ("code",)), k=(1, 4)), tmp_path)
    assert [failure.reason for failure in remaining.failures.values()] == ["out of memory"]


# --- loading


@pytest.mark.parametrize(
    ("fault", "reason", "message", "hint"),
    [
        ("user error", "load", "the cell is wrong", "write another"),
        ("odd", "load", "ZeroDivisionError: division by zero", None),
        ("too large", "out of memory", "big needs 16.0 GB on cpu, 2.0 GB are available", "use a smaller model"),
        ("segfault", "crash", "the worker process was killed by SIGSEGV", None),
    ],
)
def test_a_pair_that_does_not_load_fails_with_all_its_cells(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: Path,
    fault: str,
    reason: str,
    message: str | None,
    hint: str | None,
) -> None:
    monkeypatch.setenv(FAULTS, json.dumps({"load": fault}))
    plan, told = plan_of(), Told()
    remaining = go_on(plan, tmp_path, watch=told)
    assert not any(map(remaining.is_open, plan.cells))
    found = lines(tmp_path, "failure")
    assert {line["config_hash"] for line in found} == {cell.config_hash for cell in plan.cells}
    assert len(found) == len(plan.cells)
    assert {(line["reason"], line["hint"]) for line in found} == {(reason, hint)}
    assert message is None or {line["message"] for line in found} == {message}
    assert {line["prompt_id"] for line in found} == {None}
    assert lines(tmp_path, "generation") == []
    assert {state.state for state in cell_states(read_contents(tmp_path))} == {"failed"}
    assert living(processes) == []

    monkeypatch.delenv(FAULTS)
    assert len(go_on(plan, tmp_path).failures) == len(plan.cells)
    assert keys(tmp_path) == []
    assert go_on(plan, tmp_path, retry_failed=True).failures == {}
    assert sorted(keys(tmp_path)) == sorted(planned_without(plan))
    assert {state.state for state in cell_states(read_contents(tmp_path))} == {"done"}


def test_a_cell_that_is_refused_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_faults(monkeypatch, K2="refuse")
    plan = plan_of(prompts(2, ("code",)))
    go_on(plan, tmp_path)
    (failure,) = lines(tmp_path, "failure")
    assert (failure["reason"], failure["message"], failure["hint"]) == (
        "error", "this cell can't be run", "leave it out",
    )  # fmt: skip
    assert set(keys(tmp_path)) == planned_without(plan, 2)


@pytest.fixture
def broken_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pair of the user's whose target is not there; returns where it should be."""
    isolate(tmp_path, monkeypatch)
    (tmp_path / "specprof.toml").write_text(
        f'[pairs.mine]\ndraft = "tiny_dev/draft"\ntarget = "{tmp_path}/target"\n', encoding="utf-8"
    )
    return tmp_path / "target"


def test_a_pair_that_is_not_there_fails_and_is_measured_once_it_is(tmp_path: Path, broken_pair: Path) -> None:
    import shutil

    from specprof.models import hub

    def plan() -> Plan:
        return plan_of(prompts(1, ("code",)), pairs=("tiny_dev", "mine"))

    for _ in range(2):  # the second session says so again, and writes nothing
        remaining = go_on(plan(), tmp_path / "results")
        assert len(remaining.failures) == 3
        found = lines(tmp_path / "results", "failure")
        assert [(line["reason"], line["machine_class"]) for line in found] == [("load", "")] * 3
        assert all(str(broken_pair) in line["message"] and line["hint"] for line in found)
    assert set(keys(tmp_path / "results")) == planned_without(plan())

    shutil.copytree(hub.resolve("tiny_dev/target").directory, broken_pair)
    remaining = go_on(plan(), tmp_path / "results")
    assert remaining.failures == {}
    assert set(keys(tmp_path / "results")) == planned_without(plan())


# --- stopping


def test_fail_fast_stops_at_the_first_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: Path) -> None:
    with_faults(monkeypatch, K2="odd")
    plan = plan_of(pairs=("tiny_dev", "tiny_cross"))
    remaining = go_on(plan, tmp_path, policy=Policy(fail_fast=True))
    assert failures(tmp_path) == [(2, "error")]
    assert lines(tmp_path)[-1]["kind"] == "failure"
    order = [(task.cell.run.k, task.key(HERE)) for task in plan.tasks]
    until = next(place for place, (k, _) in enumerate(order) if k == 2)
    assert keys(tmp_path) == [key for _, key in order[:until]]
    assert remaining.progress().cells_failed == 1
    assert living(processes) == []


def test_fail_fast_stops_before_any_worker_starts(tmp_path: Path, broken_pair: Path, processes: Path) -> None:
    plan = plan_of(prompts(1, ("code",)), pairs=("mine", "tiny_dev"))
    go_on(plan, tmp_path / "results", policy=Policy(fail_fast=True))
    assert keys(tmp_path / "results") == []
    assert started(processes) == []


def test_fail_fast_stops_all_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: Path) -> None:
    with_faults(monkeypatch, K2_code0="odd")
    plan = plan_of(prompts(3), repetitions=20, split="baseline")
    executor = LocalExecutor(make_bench=TOY, num_workers=2)
    go_on(plan, tmp_path, executor=executor, policy=Policy(fail_fast=True))
    assert failures(tmp_path) == [(2, "error")]
    assert len(keys(tmp_path)) < len(list(plan.tasks)) - 60
    assert living(processes) == []


class Limited(Told):
    """Lets the store's file grow no further after some generations."""

    def __init__(self, path: Path, after: int) -> None:
        super().__init__()
        self.path, self.after = path, after

    def measured(self, progress: Any) -> None:
        super().measured(progress)
        if len(self.progress) == self.after:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.path.stat().st_size + 50, hard))


@pytest.fixture
def limits() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_disk_that_is_full_ends_the_sweep(tmp_path: Path, processes: Path, num_workers: int) -> None:
    plan = plan_of(prompts(3), split="baseline")
    told = Limited(tmp_path / "records.jsonl", 7)
    executor = LocalExecutor(make_bench=TOY, num_workers=num_workers)
    with pytest.raises(ResourceError) as failed:
        go_on(plan, tmp_path, executor=executor, watch=told, close=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert "records.jsonl" in failed.value.message
    assert "kept" in failed.value.hint
    assert len(keys(tmp_path)) == 7  # whole lines
    assert living(processes) == []
    assert threading.active_count() < 10
    go_on(plan, tmp_path)
    assert sorted(keys(tmp_path)) == sorted(planned_without(plan))


class Impatient(Told):
    """Ctrl-C, after some generations."""

    def measured(self, progress: Any) -> None:
        super().measured(progress)
        if len(self.progress) == 5:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_ctrl_c_ends_the_sweep_and_the_workers(tmp_path: Path, processes: Path, num_workers: int) -> None:
    plan = plan_of(prompts(3), repetitions=4, split="baseline")
    executor = LocalExecutor(make_bench=TOY, num_workers=num_workers)
    with pytest.raises(KeyboardInterrupt):
        go_on(plan, tmp_path, watch=Impatient(), executor=executor, close=False)
    assert len(executor.workers()) == num_workers
    assert [worker.pid for worker in executor.workers() if _lives(worker.pid)] == living(processes) == []
    assert 5 <= len(keys(tmp_path)) < len(list(plan.tasks)) / 2
    assert lines(tmp_path, "failure") == []  # interrupted is not failed
    go_on(plan, tmp_path)
    assert sorted(keys(tmp_path)) == sorted(planned_without(plan))


def test_ctrl_c_while_a_generation_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: Path) -> None:
    with_faults(monkeypatch, K2="sleep")
    plan = plan_of(prompts(1, ("code",)))
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        go_on(plan, tmp_path)
    assert time.monotonic() - began < 3
    assert living(processes) == []
    assert lines(tmp_path, "failure") == []


def test_a_terminal_interrupts_the_driver_only(tmp_path: Path, processes: Path) -> None:
    """Ctrl-C reaches the whole process group: the workers are not in it, and the driver ends them."""
    driver = start(tmp_path / "results", processes, start_new_session=True)
    grow(tmp_path / "results", 30)
    (worker,) = started(processes)
    assert os.getpgid(worker) != os.getpgid(driver.pid) == driver.pid
    os.killpg(driver.pid, signal.SIGINT)
    driver.wait(SOON)
    assert driver.returncode == -signal.SIGINT
    assert living(processes) == []
    assert lines(tmp_path / "results", "failure") == []


# --- clocks


class Backwards(datetime.datetime):
    """A clock that is being set back while one looks at it."""

    at = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Backwards:
        cls.at -= datetime.timedelta(hours=1)
        return cls.at.astimezone(tz)  # type: ignore[return-value]


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    go_on(plan, tmp_path / "forwards")
    monkeypatch.setattr(specprof.experiments.sweep, "datetime", Backwards)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    go_on(plan_of(prompts(1)), tmp_path / "backwards")
    go_on(plan, tmp_path / "backwards")
    found = lines(tmp_path / "backwards", "generation")
    started_at = [line["started_at"] for line in found]
    assert started_at == sorted(started_at, reverse=True) and len(set(started_at)) == len(started_at)
    assert [line["sequence"] for line in found] == list(range(1, len(found) + 1))
    assert said(tmp_path / "backwards") == said(tmp_path / "forwards")
    assert {state.state for state in cell_states(read_contents(tmp_path / "backwards"))} == {"done"}


# --- kill -9


def start(directory: Path, processes: Path, **options: Any) -> subprocess.Popen[bytes]:
    """A session of its own process."""
    script = Path(__file__).with_name("toy_sweep.py")
    environment = {**os.environ, PROCESSES: str(processes), SECONDS: "0.002"}
    return subprocess.Popen(
        [sys.executable, str(script), str(directory)], stdout=subprocess.DEVNULL, env=environment, **options
    )


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def grow(directory: Path, number: int) -> None:
    """Wait until the store has so many more lines, or nobody adds any."""
    path = directory / "records.jsonl"
    wanted, deadline = num_lines(path) + number, time.monotonic() + SOON
    while num_lines(path) < wanted:
        assert time.monotonic() < deadline, "nothing is being written"
        time.sleep(0.0005)


def tear(path: Path, draw: random.Random) -> None:
    """What a death in the middle of a write leaves: a part of the last line, from nothing to all but its end."""
    content = path.read_bytes()
    last = content[content[:-1].rfind(b"\n") + 1 :]
    os.truncate(path, len(content) - draw.randint(1, len(last)))


@pytest.mark.parametrize("times", [7, pytest.param(21, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_goes_on_as_if_nothing_had_happened(
    times: int, tmp_path: Path, processes: Path
) -> None:
    draw = random.Random(20)
    directory, path = tmp_path / "killed", tmp_path / "killed" / "records.jsonl"
    plan = plan_of(prompts(3, ("code", "conversation", "custom")), **KILLED)
    num_killed = num_torn = 0
    while num_killed < times:
        driver = start(directory, processes)
        if num_killed % 5 == 0:
            time.sleep(draw.uniform(0.0, 0.6))  # anywhere, while it starts as well
        else:
            grow(directory, draw.randint(4, 44))  # 26 of them begin a session
            time.sleep(draw.uniform(0, 0.006))
        driver.kill()
        num_killed += driver.wait() == -signal.SIGKILL
        assert living(processes) == []
        if path.exists() and path.stat().st_size and draw.random() < 0.5:
            tear(path, draw)
            num_torn += 1
    assert num_torn >= times // 4
    measured_until_now = len(read_contents(directory).generations)
    assert 0 < measured_until_now < len(list(plan.tasks)), "every kill has to hit a sweep at work"

    assert start(directory, processes).wait() == 0
    assert living(processes) == []
    go_on(plan, tmp_path / "whole", executor=Inline(HERE))
    assert len(keys(directory)) == len(set(keys(directory)))
    assert said(directory) == said(tmp_path / "whole")
    assert lines(directory, "failure") == []
    sequence = [line["sequence"] for line in lines(directory, "generation")]
    assert sequence == sorted(set(sequence))
    assert read_contents(directory).notes == []


COMMAND = [
    *("sweep", "--pair", "tiny_dev", "--k", "1,3", "-n", "2", "--reps", "3", "--max-new-tokens", "24"),
    *("--temperature", "0,0.8", "--deterministic", "--warmup", "0", "--domain", "code,conversation"),
]
NUM_GENERATIONS = 2 * 2 * 3 * 3 * 2 + 2 * 2 * 3
"""Domains, prompts, arms, repetitions and temperatures; and controls."""


def command(directory: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "specprof", *COMMAND, "--results-dir", str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(directory: Path) -> None:
    driver = command(directory)
    out, err = driver.communicate()
    assert driver.returncode == 0, err.decode()
    assert b"K = 3" in out


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    finish(directory)
    return directory


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.slow
def test_the_command_is_killed_and_goes_on(tmp_path: Path, uninterrupted: Path, seed: int) -> None:
    """The same with the command itself and real models: five kills each."""
    draw = random.Random(seed)
    path = tmp_path / "records.jsonl"
    for point in range(5):
        driver = command(tmp_path)
        if point == 0:
            time.sleep(draw.uniform(0, 6))
        else:
            wanted = num_lines(path) + draw.randint(1, 25)
            while num_lines(path) < wanted and driver.poll() is None:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.05))
        workers = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
        driver.communicate()
        assert driver.returncode == -signal.SIGKILL
        _, left = psutil.wait_procs(workers, timeout=SOON)
        assert left == []
        if path.exists() and path.stat().st_size and draw.random() < 0.5:
            tear(path, draw)
    assert len(read_contents(tmp_path).generations) < NUM_GENERATIONS
    finish(tmp_path)
    assert len(keys(tmp_path)) == len(set(keys(tmp_path))) == NUM_GENERATIONS
    assert said(tmp_path) == said(uninterrupted)
    assert lines(tmp_path, "failure") == []
