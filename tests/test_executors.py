"""Local workers: what they answer, and every way in which they can die."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from specprof.errors import ResourceError, UsageError
from specprof.experiments.executors import (
    Died,
    Failed,
    Generated,
    LocalExecutor,
    LocalWorker,
    Ready,
    decoded,
    failure_of,
    oom_kills,
)
from toy_bench import TOY, events, job

SOON = 10.0
"""Seconds; a limit that only a hang exceeds."""


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalWorker]:
    """A worker for what leaves it alive."""
    executor = LocalExecutor(make_bench=TOY)
    (worker,) = executor.workers()
    assert isinstance(worker.prepare(job(), SOON), Ready)
    yield worker
    executor.close()


@pytest.fixture
def executor() -> Iterator[LocalExecutor]:
    executor = LocalExecutor(make_bench=TOY)
    yield executor
    executor.close()


def generate(worker: LocalWorker, config_hash: str, timeout: float | None = SOON) -> Generated | Failed | Died:
    return worker.generate(config_hash, "p0", 1, timeout)


def machine_of(worker: LocalWorker, name: str = "toy") -> dict[str, object]:
    ready = worker.prepare(job(name), SOON)
    assert isinstance(ready, Ready), ready
    return ready.machine


# --- answers


def test_a_worker_prepares_and_generates(executor: LocalExecutor) -> None:
    (worker,) = executor.workers()
    assert worker.name == "local"
    ready = worker.prepare(job(num_prompts=500), SOON)  # more than a socket holds
    assert isinstance(ready, Ready)
    assert ready.machine["pid"] == worker.pid != os.getpid()
    assert ready.machine["num_prompts"] == 500
    assert ready.refused == {"other": Failed("load", "not here", None)}
    assert generate(worker, "any") == Generated(events("p0", 1))
    large = generate(worker, "large")
    assert large == Generated(events("p0", 1, 20_000))
    assert generate(worker, "any", None) == Generated(events("p0", 1))


def test_workers_are_started_once(executor: LocalExecutor) -> None:
    assert executor.workers() == executor.workers()


def test_two_workers_answer_at_the_same_time() -> None:
    executor = LocalExecutor(make_bench=TOY, num_workers=2)
    first, second = executor.workers()
    try:
        for worker in (first, second):
            machine_of(worker)
        answers: dict[str, object] = {}

        def ask(worker: LocalWorker) -> None:
            answers[worker.name] = generate(worker, "sleep:1")

        threads = [threading.Thread(target=ask, args=(worker,)) for worker in (first, second)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - started < 1.9
        assert answers == dict.fromkeys(("worker 0", "worker 1"), Generated(events("p0", 1)))
    finally:
        executor.close()


@pytest.mark.parametrize(
    ("config_hash", "reason", "message", "hint"),
    [
        ("user error", "error", "the cell is wrong", "write another"),
        ("no space", "error", "the disk is full", "free some space"),
        ("too large", "out of memory", "big needs 16.0 GB on cpu, 2.0 GB are available", "use a smaller model"),
        ("memory", "out of memory", "MemoryError", None),
        ("cuda", "out of memory", "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ...",
         None),
        ("allocator", "out of memory",
         "RuntimeError: [enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory", None),
        ("errno", "out of memory", "OSError: [Errno 12] Cannot allocate memory", None),
        ("fill memory", "out of memory", "MemoryError", None),
        ("odd", "error", "ZeroDivisionError: division by zero", None),
        ("long", "error", "ValueError: " + "x" * 299 + "…", None),
        ("leave", "error", "SystemExit: 4", None),
        ("wrong type", "error", "TypeError: 'int' object is not iterable", None),
    ],
)  # fmt: skip
def test_an_exception_is_an_answer(
    shared: LocalWorker, config_hash: str, reason: str, message: str, hint: str | None
) -> None:
    assert generate(shared, config_hash) == Failed(reason, message, hint)
    assert generate(shared, "any") == Generated(events("p0", 1))  # the worker lives


def test_what_fails_while_loading_says_so(shared: LocalWorker) -> None:
    assert shared.prepare(job("odd"), SOON) == Failed("load", "ZeroDivisionError: division by zero", None)
    assert shared.prepare(job("user error"), SOON) == Failed("load", "the cell is wrong", "write another")
    assert shared.prepare(job("memory"), SOON) == Failed("out of memory", "MemoryError", None)


@pytest.mark.parametrize(
    ("make_bench", "message"),
    [
        ("toy_bench:BrokenBench", "ImportError: no module named flux"),
        ("no_such_module:Bench", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_bench_that_cannot_be_made_fails_to_load(make_bench: str, message: str) -> None:
    executor = LocalExecutor(make_bench=make_bench)
    try:
        (worker,) = executor.workers()
        assert worker.prepare(job(), SOON) == Failed("load", message, None)
    finally:
        executor.close()


def test_an_answer_that_cannot_be_sent_is_a_failure(shared: LocalWorker) -> None:
    answer = generate(shared, "unpicklable")
    assert isinstance(answer, Failed)
    assert answer.message.startswith("the answer can't be sent: ")


def test_an_answer_that_cannot_be_read_is_a_failure(shared: LocalWorker) -> None:
    answer = generate(shared, "unreadable")
    assert answer == Failed(
        "error", "the worker's answer can't be read: AttributeError: the class is unknown here", None
    )
    assert generate(shared, "any") == Generated(events("p0", 1))


def test_an_answer_of_another_kind_is_a_failure() -> None:
    assert decoded(pickle.dumps(3), Ready) == Failed("error", "the worker answered with int, not Ready", None)


def test_what_the_loader_says_of_memory_is_understood() -> None:
    """Its words are matched: this fails if they change."""
    from specprof.models.footprint import require_memory

    with pytest.raises(ResourceError) as told:
        require_memory(10**16, "cpu", "a model")
    assert failure_of(told.value, loading=True).reason == "out of memory"


# --- deaths


@pytest.mark.parametrize(
    ("config_hash", "reason", "message"),
    [
        ("segfault", "crash", "the worker process was killed by SIGSEGV"),
        ("exit:3", "crash", "the worker process ended with exit status 3"),
        ("exit:0", "crash", "the worker process ended with exit status 0"),
        ("signal:SIGABRT", "crash", "the worker process was killed by SIGABRT"),
        ("signal:SIGKILL", "crash", "the worker process was killed (SIGKILL), though memory had not run out"),
    ],
)
def test_a_death_is_an_answer(executor: LocalExecutor, config_hash: str, reason: str, message: str) -> None:
    (worker,) = executor.workers()
    machine_of(worker)
    died = generate(worker, config_hash)
    assert died == Died(reason, message)
    assert generate(worker, "any") is died  # and stays dead
    fresh = executor.replace(worker)
    assert executor.workers() == [fresh]
    assert fresh.name == worker.name
    machine_of(fresh)
    assert generate(fresh, "any") == Generated(events("p0", 1))


def test_a_death_while_loading(executor: LocalExecutor) -> None:
    (worker,) = executor.workers()
    assert worker.prepare(job("segfault"), SOON) == Died("crash", "the worker process was killed by SIGSEGV")


@pytest.mark.parametrize("config_hash", ["sleep", "sleep natively"])
def test_a_worker_that_hangs_is_killed(executor: LocalExecutor, config_hash: str) -> None:
    (worker,) = executor.workers()
    machine_of(worker)
    started = time.monotonic()
    assert generate(worker, config_hash, 0.5) == Died("timeout", "no answer within 0.5 s")
    assert 0.5 <= time.monotonic() - started < 1.5
    assert not psutil.pid_exists(worker.pid)


def test_a_worker_that_hangs_while_it_starts_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep(300)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    executor = LocalExecutor(make_bench=TOY)
    try:
        (worker,) = executor.workers()
        assert worker.prepare(job(num_prompts=500), 0.5) == Died("timeout", "no answer within 0.5 s")
    finally:
        executor.close()


def test_a_worker_that_hangs_up_is_dead(executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specprof.experiments.executors._GRACE", 0.3)
    (worker,) = executor.workers()
    machine_of(worker)
    assert generate(worker, "hang up") == Died("crash", "the worker process hung up")
    assert not psutil.pid_exists(worker.pid)


def test_kill_ends_a_call_that_waits(executor: LocalExecutor) -> None:
    (worker,) = executor.workers()
    machine_of(worker)
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(generate(worker, "sleep", None)))
    thread.start()
    time.sleep(0.3)
    assert not answers
    worker.kill()
    thread.join(SOON)
    assert answers == [Died("crash", "the worker process was stopped")]
    worker.kill()
    assert generate(worker, "any") == answers[0]
    assert not psutil.pid_exists(worker.pid)


def test_an_interrupted_call_leaves_no_answer_behind(executor: LocalExecutor) -> None:
    """The next call would take it for its own."""
    (worker,) = executor.workers()
    machine_of(worker)
    timer = threading.Timer(0.3, signal.raise_signal, (signal.SIGINT,))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        generate(worker, "sleep:1")
    assert isinstance(generate(worker, "any"), Died)


def test_close_ends_everything_and_stays_closed() -> None:
    executor = LocalExecutor(make_bench=TOY, num_workers=2)
    workers = executor.workers()
    pids = [worker.pid for worker in workers]
    executor.close()
    executor.close()
    assert not any(map(psutil.pid_exists, pids))
    assert executor.replace(workers[0]) is workers[0]
    assert isinstance(workers[0].prepare(job(), SOON), Died)
    unused = LocalExecutor(make_bench=TOY)
    unused.close()
    assert unused.workers() == []


def test_nothing_is_left_of_fifty_dead_workers(executor: LocalExecutor) -> None:
    (worker,) = executor.workers()
    gc.collect()
    us = psutil.Process()
    descriptors, threads, children = us.num_fds(), us.num_threads(), {child.pid for child in us.children()}
    children.remove(worker.pid)
    for _ in range(50):
        worker = executor.replace(worker)
    assert us.num_fds() == descriptors
    assert us.num_threads() == threads
    assert {child.pid for child in us.children()} == children | {worker.pid}
    machine_of(worker)


# --- the process


def test_a_worker_starts_without_torch_and_without_our_main_module(shared: LocalWorker) -> None:
    machine = machine_of(shared)
    assert machine["torch"] is False
    assert machine["main"] is None
    assert machine["process_group"] == shared.pid


def test_logging_arrives_at_the_drivers_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    caplog.set_level(logging.INFO, "specprof")
    executor = LocalExecutor(make_bench=TOY)
    try:
        (worker,) = executor.workers()
        machine_of(worker, "log")
        assert caplog.record_tuples == [("specprof", logging.INFO, "loading a model")]
        generate(worker, "odd")
        assert len(caplog.records) == 1  # no traceback unless the details are wanted
    finally:
        executor.close()


def test_the_traceback_is_a_detail(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "specprof")
    executor = LocalExecutor(make_bench=TOY)
    try:
        (worker,) = executor.workers()
        machine_of(worker)
        generate(worker, "odd")
        (record,) = caplog.records
        assert "generate failed in a worker" in record.getMessage()
        assert "toy_bench.py" in record.getMessage()
    finally:
        executor.close()


DRIVER = f"""
import sys
from specprof.experiments.executors import LocalExecutor
from toy_bench import TOY, job
executor = LocalExecutor(make_bench=TOY)
(worker,) = executor.workers()
machine = worker.prepare(job(), {SOON}).machine
print(worker.pid, flush=True)
"""


def driver(program: str, *, own_group: bool = False) -> subprocess.Popen[str]:
    """A program that starts a worker and then does what is asked."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        process_group=0 if own_group else None,
    )


def gone_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:  # an orphan that nobody has collected yet
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("config_hash", ["sleep", "sleep natively"])
def test_a_worker_dies_with_its_driver(config_hash: str) -> None:
    process = driver(f"worker.generate({config_hash!r}, 'p0', 0, None)")
    assert process.stdout
    pid = int(process.stdout.readline())
    time.sleep(0.2)
    assert psutil.pid_exists(pid)
    process.kill()
    process.communicate()
    assert gone_within(pid, 2)


def test_an_idle_worker_dies_with_a_driver_that_ends_without_closing() -> None:
    process = driver("")
    out, err = process.communicate(timeout=SOON)
    assert gone_within(int(out), 2)
    assert (process.returncode, err) == (0, "")


def test_control_c_is_for_the_driver() -> None:
    process = driver(
        """
import signal
interrupts = []
signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))
print("listening", flush=True)
print(type(worker.generate("sleep:1", "p0", 0, None)).__name__, len(interrupts), flush=True)
executor.close()
""",
        own_group=True,
    )
    assert process.stdout
    pid = int(process.stdout.readline())
    assert process.stdout.readline() == "listening\n"
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    os.kill(pid, signal.SIGINT)  # as `kill -INT` of every python there is
    out, err = process.communicate(timeout=SOON)
    assert (out, err) == ("Generated 1\n", "")


def test_a_workers_prints_are_narration() -> None:
    process = driver("worker.generate('print:hello', 'p0', 0, None); executor.close()")
    out, err = process.communicate(timeout=SOON)
    assert out.split() == [out.strip()]  # the pid that the driver printed, and nothing else
    assert err == "hello\nhello\n"


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(DRIVER + "print(machine['main'])\nexecutor.close()\n")
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[1:] == ["None"]


# --- GPUs


@pytest.mark.parametrize(
    ("visible", "gpus", "expected"),
    [
        (None, (0, 1), [("PCI_BUS_ID", "0"), ("PCI_BUS_ID", "1")]),
        (None, (3,), [("PCI_BUS_ID", "3")]),
        ("4,GPU-ab12", (1, 0), [(None, "GPU-ab12"), (None, "4")]),
    ],
)
def test_a_worker_sees_its_own_gpu_only(
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    gpus: tuple[int, ...],
    expected: list[tuple[str | None, str]],
) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    executor = LocalExecutor(gpus, TOY)
    try:
        workers = executor.workers()
        assert [worker.name for worker in workers] == [f"gpu {gpu}" for gpu in gpus]
        seen = [machine_of(worker) for worker in workers]
        assert [(machine["order"], machine["visible"]) for machine in seen] == expected
        again = machine_of(executor.replace(workers[0]))
        assert (again["order"], again["visible"]) == expected[0]
    finally:
        executor.close()


@pytest.mark.parametrize(
    ("visible", "gpus", "message"),
    [
        (None, (), "no GPU is named"),
        (None, (0, 0), "GPU 0 is named twice"),
        (None, (-1,), "there is no GPU -1"),
        ("4,5", (0, 2), "there is no GPU 2: CUDA_VISIBLE_DEVICES=4,5 shows 2"),
        ("", (0,), "there is no GPU 0: CUDA_VISIBLE_DEVICES= shows 0"),
    ],
)
def test_gpus_that_cannot_be_meant(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, gpus: tuple[int, ...], message: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UsageError) as told:
        LocalExecutor(gpus, TOY)
    assert told.value.message == message


@pytest.mark.parametrize("after", [4, None])
def test_the_kernel_says_what_it_killed_for_want_of_memory(monkeypatch: pytest.MonkeyPatch, after: int | None) -> None:
    told = iter([3 if after else None, after])  # when the worker started, and when it was gone
    monkeypatch.setattr("specprof.experiments.executors.oom_kills", lambda: next(told))
    executor = LocalExecutor(make_bench=TOY)
    try:
        (worker,) = executor.workers()
        assert isinstance(worker.prepare(job(), SOON), Ready)
        assert worker.generate("signal:SIGKILL", "p0", 0, SOON) == Died(
            "out of memory", "the worker process was killed (SIGKILL), which the system does when memory runs out"
        )
    finally:
        executor.close()


def test_the_counts_of_machine_and_container_add_up(tmp_path: Path) -> None:
    machine, container = tmp_path / "vmstat", tmp_path / "memory.events"
    assert oom_kills((machine, container)) is None
    machine.write_text("nr_free_pages 5\noom_kill 2\n")
    assert oom_kills((machine, container)) == 2
    container.write_text("oom 9\noom_kill 1\noom_group_kill 0\n")
    assert oom_kills((machine, container)) == 3
