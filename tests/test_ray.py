"""Workers on Ray: two of them on this machine. Mostly slow, for Ray takes seconds to start.

The order matters: once there is a connection to Ray in this process, it is the one that is used.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from specprof.errors import ResourceError, UsageError
from specprof.experiments.executors import Died, Failed, Generated, LocalExecutor, Ready
from specprof.experiments.ray_executor import RayExecutor, RayWorker
from test_executors import gone_within
from toy_bench import TOY, events, job

TESTS = str(Path(__file__).parent)
SOON = 20.0


def needs_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs ray")


@pytest.fixture(scope="module")
def executor() -> Iterator[RayExecutor]:
    needs_ray()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", TESTS)
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.delenv("OMP_NUM_THREADS", raising=False)
        executor = RayExecutor(2, TOY)
        executor.workers()
    yield executor
    executor.close()


def machine_of(worker: RayWorker) -> dict[str, Any]:
    ready = worker.prepare(job(num_prompts=200), SOON)
    assert isinstance(ready, Ready), ready
    return ready.machine


def generate(worker: RayWorker, config_hash: str, timeout: float | None = SOON) -> Generated | Failed | Died:
    return worker.generate(config_hash, "p0", 1, timeout)


# --- clusters that are not there


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_an_error_at_once() -> None:
    needs_ray()
    address = f"127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(ResourceError) as told:
        RayExecutor(1, TOY, address).workers()
    assert time.monotonic() - started < 5
    assert told.value.message == f"no Ray cluster answers at {address}: Connection refused"


@pytest.mark.slow
def test_something_else_that_listens_is_an_error_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_ray()
    monkeypatch.setattr("specprof.experiments.ray_cluster._JOIN_SECONDS", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ResourceError) as told:
            RayExecutor(1, TOY, address).workers()
    assert told.value.message == f"no Ray cluster answers at {address} within 4 s"


@pytest.mark.slow
def test_no_cluster_on_this_machine_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needs_ray()
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ResourceError) as told:
        RayExecutor(1, TOY).workers()
    assert told.value.message.startswith(
        "no Ray cluster can be joined at auto: Could not find any running Ray instance"
    )


@pytest.mark.parametrize(
    "address", ["somewhere", "host:", ":6379", "ray://host:10001", "host:http", "host:65536", f"host:{'9' * 5000}"]
)
def test_what_is_no_address_is_said_before_anything_starts(address: str) -> None:
    needs_ray()
    with pytest.raises(UsageError):
        RayExecutor(1, TOY, address)


def test_no_workers_are_no_executor() -> None:
    needs_ray()
    with pytest.raises(UsageError):
        RayExecutor(0, TOY)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ResourceError) as told:
        RayExecutor(1, TOY)
    assert told.value.hint == "pip install 'specprof[ray]'"


# --- a cluster of two nodes, both of them on this machine


class Cluster:
    """Two raylets, each of which believes to be a machine of its own."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.head = self._start(directory, "--head", f"--port={self.port}", "--include-dashboard=false")
        deadline = time.monotonic() + SOON
        while not self.answers():
            assert time.monotonic() < deadline and self.head.poll() is None
            time.sleep(0.2)
        self.node = self._start(directory / "n", f"--address={self.address}")

    def _start(self, directory: Path, *flags: str) -> subprocess.Popen[bytes]:
        options = ("--block", "--num-cpus=1", f"--object-store-memory={100 * 2**20}", f"--temp-dir={directory}")
        return subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *options, *flags],
            env=os.environ | {"PYTHONPATH": TESTS, "RAY_USAGE_STATS_ENABLED": "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )

    def answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """What a power failure does to it."""
        if node.poll() is None:
            for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            node.wait()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    needs_ray()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # Sockets lie in it, whose paths have to be short.
    with tempfile.TemporaryDirectory(prefix="specprof-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        cluster = Cluster(Path(directory))
        yield cluster
        cluster.kill(cluster.node)
        cluster.kill(cluster.head)


def started_on(cluster: Cluster) -> RayExecutor:
    """An executor with a worker on both nodes, once the second has joined."""
    for _ in range(20):
        executor = RayExecutor(None, TOY, cluster.address)
        if len(executor.workers()) == 2:
            return executor
        executor.close()
        time.sleep(0.5)
    raise AssertionError("the second node never came")


@pytest.mark.slow
def test_a_node_dies_and_the_other_goes_on(cluster: Cluster) -> None:
    executor = started_on(cluster)
    try:
        processes = {worker: psutil.Process(machine_of(worker)["pid"]) for worker in executor.workers()}
        doomed, other = sorted(processes, key=lambda worker: cluster.head.pid in ancestors(processes[worker]))
        assert cluster.node.pid in ancestors(processes[doomed])
        assert cluster.head.pid in ancestors(processes[other])
        timer = threading.Timer(0.5, cluster.kill, (cluster.node,))
        timer.start()
        died = generate(doomed, "sleep", None)
        assert isinstance(died, Died) and died.reason == "crash"
        assert generate(other, "any") == Generated(events("p0", 1))
        with pytest.raises(ResourceError, match="a worker can't be started on the Ray cluster"):
            executor.replace(doomed)  # the other node has one already
        assert generate(other, "any") == Generated(events("p0", 1))
    finally:
        executor.close()
    assert cluster.answers()  # it is not ours to end
    again = RayExecutor(1, TOY, cluster.address)
    try:
        machine_of(again.workers()[0])
    finally:
        again.close()


def ancestors(process: psutil.Process) -> set[int]:
    return {parent.pid for parent in process.parents()}


# --- workers


@pytest.mark.slow
def test_two_workers_answer_as_a_local_one_does(executor: RayExecutor) -> None:
    first, second = executor.workers()
    pids = {machine_of(worker)["pid"] for worker in (first, second)}
    assert len(pids) == 2
    local = LocalExecutor(make_bench=TOY)
    try:
        (alone,) = local.workers()
        assert isinstance(alone.prepare(job(), SOON), Ready)
        for config_hash in ("any", "large", "user error", "memory", "odd", "unpicklable", "wrong type"):
            expected = alone.generate(config_hash, "p0", 1, SOON)
            assert generate(first, config_hash) == generate(second, config_hash) == expected
    finally:
        local.close()


@pytest.mark.slow
def test_a_worker_is_measured_under_the_nodes_conditions(executor: RayExecutor) -> None:
    """Ray lowers the priority of what it runs, sets its threads to one and puts its own libraries first."""
    worker = executor.workers()[0]
    machine = machine_of(worker)
    process = psutil.Process(machine["pid"])
    assert process.nice() == psutil.Process().nice()
    assert "OMP_NUM_THREADS" not in process.environ()
    assert machine["num_prompts"] == 200
    assert not any("thirdparty_files" in argument for argument in machine["arguments"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config_hash", "expected"),
    [
        ("segfault", Died("crash", "the worker process was killed by SIGSEGV")),
        ("exit:3", Died("crash", "the worker process ended with exit status 3")),
        (
            "signal:SIGKILL",
            Died("crash", "the worker process was killed (SIGKILL), though memory had not run out"),
        ),
    ],
)
def test_a_crash_has_the_same_words_as_without_ray(executor: RayExecutor, config_hash: str, expected: Died) -> None:
    worker = executor.workers()[0]
    machine_of(worker)
    assert generate(worker, config_hash) == expected
    assert generate(worker, "any") == expected
    fresh = executor.replace(worker)
    assert fresh in executor.workers()
    machine_of(fresh)
    assert generate(fresh, "any") == Generated(events("p0", 1))


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed(executor: RayExecutor) -> None:
    worker = executor.workers()[0]
    pid = machine_of(worker)["pid"]
    assert generate(worker, "sleep natively", 0.5) == Died("timeout", "no answer within 0.5 s")
    assert gone_within(pid, 2)
    machine_of(executor.replace(worker))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["its process", "its actor", "by us"])
def test_one_worker_is_killed_while_the_other_works(
    executor: RayExecutor, way: str, capfd: pytest.CaptureFixture[str]
) -> None:
    doomed, other = executor.workers()
    pid = machine_of(doomed)["pid"]
    machine_of(other)
    answers: dict[str, object] = {}
    threads = [
        threading.Thread(target=lambda: answers.update(doomed=generate(doomed, "sleep", None))),
        threading.Thread(target=lambda: answers.update(other=generate(other, "sleep:1.5"))),
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    if way == "its process":
        os.kill(pid, signal.SIGKILL)
    elif way == "its actor":
        os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    else:
        doomed.kill()
    for thread in threads:
        thread.join(SOON)
    assert answers["other"] == Generated(events("p0", 1))
    assert (
        answers["doomed"]
        == {
            "its process": Died("crash", "the worker process was killed (SIGKILL), though memory had not run out"),
            "its actor": Died("crash", "the Ray actor died because its worker process has died"),
            "by us": Died("crash", "the worker process was stopped"),
        }[way]
    )
    assert gone_within(pid, 2)
    fresh = executor.replace(doomed)
    machine_of(fresh)
    assert generate(fresh, "any") == Generated(events("p0", 1))
    time.sleep(0.5)  # Ray tells of it some time later
    assert capfd.readouterr().out == ""


DRIVER = f"""
import sys
from specprof.experiments.ray_executor import RayExecutor
from toy_bench import TOY, job
executor = RayExecutor(1, TOY)
(worker,) = executor.workers()
pid = worker.prepare(job(), {SOON}).machine["pid"]
"""


def driver(program: str, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        | {"PYTHONPATH": TESTS, "HOME": str(home)},
        process_group=0,
    )


@pytest.mark.slow
def test_nothing_is_printed_and_nothing_stays(tmp_path: Path) -> None:
    needs_ray()
    before = set(Path("/tmp").glob("specprof-ray-*"))
    process = driver(
        """
worker.generate("print:hello", "p0", 0, None)
worker.generate("segfault", "p0", 0, None)
executor.replace(worker)
executor.close()
executor.close()
print(pid)
""",
        tmp_path,
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert gone_within(int(out), 1)
    assert set(Path("/tmp").glob("specprof-ray-*")) == before
    assert list(tmp_path.iterdir()) == []  # Ray would keep a token at home


@pytest.mark.slow
def test_all_dies_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    needs_ray()
    process = driver("print(pid, flush=True)\nworker.generate('sleep', 'p0', 0, None)", tmp_path)
    assert process.stdout
    pid = int(process.stdout.readline())
    family = psutil.Process(process.pid).children(recursive=True)
    agents = {child.pid for child in family if child.name() in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")}
    assert pid in {child.pid for child in family} - agents
    process.kill()
    process.communicate()
    assert gone_within(pid, 5)
    # Ray's own agents, which hold nothing, take up to a minute to notice.
    assert all(gone_within(child.pid, 10) for child in family if child.pid not in agents)


@pytest.mark.slow
def test_control_c_is_for_the_driver(tmp_path: Path) -> None:
    needs_ray()
    process = driver(
        """
import signal
signal.signal(signal.SIGINT, lambda *_: print("interrupt", flush=True))
print("listening", flush=True)
print(type(worker.generate("sleep:2", "p0", 0, None)).__name__)
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
executor.close()
""",
        tmp_path,
    )
    assert process.stdout
    assert process.stdout.readline() == "listening\n"
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (out, err) == ("interrupt\nGenerated\nTrue\n", "")
