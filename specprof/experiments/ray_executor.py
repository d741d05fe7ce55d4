"""Workers on a Ray cluster, or on a small one of our own that ends with us.

Each worker is an actor that keeps a process of its own beside it, the same one that runs without Ray: so a crash has
the same causes and the same words, and the process that is measured carries none of Ray's threads. The process ends
with its actor, the actor with the driver.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from specprof import __version__
from specprof.errors import ResourceError, SpecprofError, UsageError
from specprof.experiments.executors import (
    BENCH,
    STOPPED,
    Died,
    Failed,
    Generated,
    Job,
    LocalWorker,
    LogLine,
    Ready,
    Worker,
    failure_of,
    log,
)
from specprof.experiments.ray_cluster import connected, library, parsed
from specprof.experiments.serving import Forward, log_through

_LOG = logging.getLogger("specprof")

_START_SECONDS = 60.0
"""How long a worker may take to find a place in the cluster."""
_SLACK_SECONDS = 20.0
"""What an answer may take beyond its time limit, which is kept on the worker's side: the network's share."""

_Answer = TypeVar("_Answer", Ready, Generated)


class _Host:
    """The actor: starts a worker process on its node and passes on what is asked of it."""

    def __init__(self, name: str, make_bench: str, root_level: int, level: int) -> None:
        _forget_rays_threads()
        self._lines: list[LogLine] = []
        log_through(Forward(self._lines.append), root_level, level)
        # Ray puts libraries of its own before the installed ones; they are not for what is measured.
        rays = os.path.dirname(library().__file__)
        self._worker = LocalWorker(name, {}, make_bench, [path for path in sys.path if not path.startswith(rays)])

    def greet(self) -> tuple[str, str]:
        """Our version there, and the node's name."""
        return __version__, socket.gethostname()

    def prepare(self, job: Job, timeout: float | None) -> tuple[Ready | Failed | Died, list[LogLine]]:
        return self._worker.prepare(job, timeout), self._logged()

    def generate(
        self, config_hash: str, prompt_id: str, repetition: int, timeout: float | None
    ) -> tuple[Generated | Failed | Died, list[LogLine]]:
        return self._worker.generate(config_hash, prompt_id, repetition, timeout), self._logged()

    def _logged(self) -> list[LogLine]:
        lines = self._lines[:]
        self._lines.clear()
        return lines


def _forget_rays_threads() -> None:
    """Ray sets OMP_NUM_THREADS to the actor's share of the CPUs, which is one. The node's own setting counts."""
    import psutil

    try:
        of_node = psutil.Process(os.getppid()).environ()
    except psutil.Error:
        return
    os.environ.pop("OMP_NUM_THREADS", None)
    if "OMP_NUM_THREADS" in of_node:
        os.environ["OMP_NUM_THREADS"] = of_node["OMP_NUM_THREADS"]


class RayWorker:
    """An actor, asked over the network."""

    def __init__(self, name: str, make_bench: str, options: Mapping[str, Any]) -> None:
        ray = library()
        self.name = name
        self._make_bench = make_bench
        self._options = dict(options)
        self._asking = threading.RLock()
        self._ended: Died | None = None
        self._stopped = False
        self._actor = (
            ray.remote(_Host)
            .options(max_restarts=0, max_concurrency=1, **options)
            .remote(name, make_bench, logging.getLogger().level, _LOG.getEffectiveLevel())
        )
        self._greeting = self._actor.greet.remote()

    def wait_until_started(self) -> str:
        """The name of the node it runs on.

        Raises:
            ResourceError: the cluster has no place for it, or it can't run there; then it is killed.
        """
        with self._asking:
            try:
                return self._started()
            except ResourceError:
                self.kill()
                raise

    def _started(self) -> str:
        ray = library()
        try:
            version, node = ray.get(self._greeting, timeout=_START_SECONDS)
        except ray.exceptions.GetTimeoutError as error:
            raise ResourceError(
                f"the Ray cluster had no place for a worker within {_START_SECONDS:g} s",
                "see `ray status` for what its nodes are busy with",
            ) from error
        except ray.exceptions.RayError as error:
            raise ResourceError(
                f"a worker can't be started on the Ray cluster: {_cause(error)}",
                "specprof has to be installed on every node, in the environment that `ray start` ran in"
                if getattr(error, "actor_init_failed", False)
                else "see `ray status` for the nodes that are left",
            ) from error
        if version != __version__:
            raise ResourceError(
                f"{node} has specprof {version}, this machine has {__version__}",
                "install the same version on every node",
            )
        return str(node)

    def prepare(self, job: Job, timeout: float | None) -> Ready | Failed | Died:
        return self._ask(Ready, timeout, self._actor.prepare, job)

    def generate(
        self, config_hash: str, prompt_id: str, repetition: int, timeout: float | None
    ) -> Generated | Failed | Died:
        return self._ask(Generated, timeout, self._actor.generate, config_hash, prompt_id, repetition)

    def kill(self) -> None:
        self._stopped = True
        self._kill_actor()
        with self._asking:
            self._ended = self._ended or STOPPED

    def successor(self) -> RayWorker:
        """A fresh actor of the same name, in a place of the same kind."""
        return RayWorker(self.name, self._make_bench, self._options)

    def _ask(
        self, expected: type[_Answer], timeout: float | None, method: Any, *arguments: object
    ) -> _Answer | Failed | Died:
        ray = library()
        with self._asking:
            if self._ended is not None:
                return self._ended
            limit = None if timeout is None else timeout + _SLACK_SECONDS
            try:
                answer, lines = ray.get(method.remote(*arguments, timeout), timeout=limit)
            except ray.exceptions.GetTimeoutError:
                return self._end(Died("timeout", f"no answer within {timeout:g} s, nor from its node"))
            except ray.exceptions.RayTaskError as error:
                return failure_of(error.cause if isinstance(error.cause, Exception) else error)
            except ray.exceptions.RayError as error:
                return self._end(STOPPED if self._stopped else _death(error))
            except BaseException:
                self._end(STOPPED)
                raise
            for line in lines:
                log(line)
            if isinstance(answer, Died):
                return self._end(answer)
            assert isinstance(answer, expected | Failed)
            return answer

    def _end(self, died: Died) -> Died:
        self._ended = self._ended or died
        self._kill_actor()
        return self._ended

    def _kill_actor(self) -> None:
        ray = library()
        if ray.is_initialized():  # otherwise Ray would start a cluster in order to look for the actor
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(self._actor, no_restart=True)


class RayExecutor:
    """One worker per GPU of a Ray cluster, or, where it has none, one per node.

    Args:
        num_workers: another number of workers, spread over the nodes.
        make_bench: ``module:callable``, what a worker works with.
        address: ``host:port`` of the cluster's head, or ``auto`` for the one that runs on this machine. None:
            RAY_ADDRESS if it is set, else a cluster of our own, on this machine, which ``close`` ends.

    Raises:
        UsageError: an address of another form.
        ResourceError: the library is missing.
    """

    retries = 1

    def __init__(self, num_workers: int | None = None, make_bench: str = BENCH, address: str | None = None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ResourceError("--executor ray needs the ray library", "pip install 'specprof[ray]'")
        if num_workers is not None and num_workers < 1:
            raise UsageError(f"--workers {num_workers} is less than 1", "give 1 or more")
        self._address = address or os.environ.get("RAY_ADDRESS") or None
        if self._address is not None:
            parsed(self._address)
        self._num_workers = num_workers
        self._make_bench = make_bench
        self._lock = threading.Lock()
        self._workers: list[RayWorker] = []
        self._closed = False
        self._open = contextlib.ExitStack()

    def workers(self) -> list[RayWorker]:
        """All workers, on their nodes and listening.

        What Ray starts here ends with the thread that called this first.

        Raises:
            ResourceError: the cluster can't be reached, or has no place for any worker.
        """
        with self._lock:
            if not self._workers and not self._closed:
                try:
                    self._open.enter_context(connected(self._address, self._num_workers))
                    self._workers = self._started(_places(self._num_workers))
                except BaseException:
                    self._open.close()
                    raise
            return list(self._workers)

    def _started(self, places: Sequence[Mapping[str, Any]]) -> list[RayWorker]:
        starting = [RayWorker(f"ray {i}", self._make_bench, place) for i, place in enumerate(places)]
        started, nodes = [], []
        failure: SpecprofError | None = None
        for worker in starting:
            try:
                nodes.append(worker.wait_until_started())
                started.append(worker)
            except SpecprofError as error:
                failure = error
        if failure is not None:
            if not started:
                raise failure
            _LOG.warning("only %d of %d workers run: %s", len(started), len(starting), failure.message)
        _LOG.info("Ray: %d worker(s) on %s", len(started), ", ".join(sorted(set(nodes))))
        crowded = sorted({node for node in nodes if nodes.count(node) > 1})
        if crowded and not any("num_gpus" in place for place in places):
            _LOG.warning(
                "several workers share the cores of %s: their times are for trying things out, not for comparing",
                ", ".join(crowded),
            )
        return started

    def replace(self, worker: Worker) -> RayWorker:
        """A fresh worker in a place of the same kind; where there was one per node, on the same node.

        Raises:
            ResourceError: there is no such place any more.
        """
        assert isinstance(worker, RayWorker)
        worker.kill()
        with self._lock:
            if self._closed:
                return worker
            fresh = worker.successor()
            self._workers[self._workers.index(worker)] = fresh
        try:
            fresh.wait_until_started()
        except SpecprofError:
            if not self._closed:
                raise
        return fresh

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.kill()
            self._open.close()


def _places(num_workers: int | None) -> list[dict[str, Any]]:
    """What each worker asks of the scheduler."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray = library()
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if num_gpus:
        free = int(ray.available_resources().get("GPU", 0))
        if free < (num_workers or 1):
            raise ResourceError(
                f"{free} of the cluster's {num_gpus} GPUs are free, {num_workers or 1} are needed",
                "wait for the others, or ask for fewer --workers",
            )
        return [{"num_cpus": 1, "num_gpus": 1}] * (num_workers or free)
    if num_workers is not None:
        return [{"num_cpus": 1, "scheduling_strategy": "SPREAD"}] * num_workers
    # Never two on one node: they would disturb each other's times.
    return [
        {"num_cpus": 1, "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)}
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
    ]


# --- what Ray says of a death


def _death(error: Exception) -> Died:
    ray = library()
    text = str(error)
    if isinstance(error, ray.exceptions.OutOfMemoryError) or re.search(
        r"low on memory|NODE_OUT_OF_MEMORY|OutOfMemoryError", text
    ):
        return Died("out of memory", "Ray ended the worker because its node was running out of memory")
    return Died("crash", _cause(error))


def _cause(error: Exception) -> str:
    """The one sentence of Ray's report that says why."""
    text = str(error)
    if type(error).__name__ == "ActorUnavailableError":
        return "the Ray actor can't be reached: its node, or the network, is down"
    if "The actor never ran" in text:
        return "the node that it belongs to is gone"
    if found := re.search(r"The actor is dead because (.+?)(\. |\.?$|\n)", text):
        return f"the Ray actor died because {found[1]}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300] if lines else ''}"
