"""Drives a sweep: hands generations to workers one at a time, and writes down what comes back."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from specprof.errors import ResourceError
from specprof.experiments.executors import Died, Executor, Failed, Generated, Ready, Worker
from specprof.experiments.plan import Batch, Cell, Plan, Task, prompt_hash
from specprof.experiments.records import CellStarted, Failure, Generation, Machine
from specprof.experiments.remaining import Progress, Remaining
from specprof.experiments.results import ResultStore
from specprof.profiling.events import Event
from specprof.profiling.metrics import fold

LOAD_TIMEOUT = 3600.0
"""Seconds after which a pair that neither loads nor fails counts as hanging."""
SYNC_SECONDS = 10.0
"""A machine that loses its power loses at most so much; a process that dies loses nothing that was written."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do about cells that fail."""

    fail_fast: bool = False
    cell_timeout: float | None = None
    """Seconds a cell's generations may take in one session, loading left out."""


class Watch(Protocol):
    """Is told what happens, in whatever thread it happens."""

    def measured(self, progress: Progress) -> None: ...
    def finished(self, cell: Cell, progress: Progress) -> None: ...
    def failed(self, cells: Sequence[Cell], failure: Failure, progress: Progress) -> None: ...
    def note(self, text: str) -> None: ...


class Sweep:
    """One session of working through a plan.

    Each worker has a thread that talks to it in lockstep: a generation is written down before the next one is
    asked for, so that nothing else runs on this machine while something is measured.

    Args:
        session: the id that is written beside each record.
    """

    def __init__(
        self,
        plan: Plan,
        remaining: Remaining,
        store: ResultStore,
        executor: Executor,
        watch: Watch,
        *,
        session: str,
        policy: Policy = Policy(),
    ) -> None:
        self.plan, self.remaining, self.store, self.executor, self.watch = plan, remaining, store, executor, watch
        self.session, self.policy = session, policy
        self._batches = [batch for batch in plan.batches if remaining.missing(batch, remaining.machine_class)]
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._num_workers = self._num_busy = 0
        self._stop = threading.Event()
        self._spent: dict[str, float] = defaultdict(float)
        self._deaths: Counter[Task] = Counter()
        self._machines: set[str] = set()
        self._synced = time.monotonic()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Measure what is missing.

        Raises:
            ResourceError: the store can't be written.
            KeyboardInterrupt: the workers are gone; what was written stays.
        """
        for pair in self.plan.unavailable:
            if self._stop.is_set():  # at the first failure, if that was asked for
                break
            self._fail_to_load(pair.cells, "", Failed("load", pair.error.message, pair.error.hint))
        threads: list[threading.Thread] = []
        try:
            if self._batches and not self._stop.is_set():
                workers = self.executor.workers()
                self.remaining.num_workers = self._num_workers = len(workers)
                threads += [threading.Thread(target=self._work, args=(worker,), daemon=True) for worker in workers]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        except KeyboardInterrupt:
            self._halt()
            self.executor.close()
            for thread in threads:
                thread.join(timeout=5)
            raise
        finally:
            self.store.sync()
        if self._error is not None:
            raise self._error

    def _work(self, worker: Worker) -> None:
        """One worker's thread: batch after batch, with a fresh worker where one died."""
        try:
            while (batch := self._next_batch()) is not None:
                while not self._do(worker, batch):
                    try:
                        worker = self.executor.replace(worker)
                    except ResourceError as error:
                        self._leave(worker, batch, error)
                        return
                with self._changed:
                    self._num_busy -= 1
                    self._changed.notify_all()
        except BaseException as error:  # a thread has nobody to tell: run() raises it
            self._error = self._error or error
            self._halt()
            self.executor.close()

    def _next_batch(self) -> Batch | None:
        """Waits while another worker is busy: its batch comes back if it has to leave."""
        with self._changed:
            while not self._batches and self._num_busy and not self._stop.is_set():
                self._changed.wait()
            if not self._batches or self._stop.is_set():
                return None
            self._num_busy += 1
            return self._batches.pop(0)

    def _leave(self, worker: Worker, batch: Batch, error: ResourceError) -> None:
        """A worker died and can't be replaced, as when its node is gone: the others do its work, if there are any."""
        with self._changed:
            self._num_busy -= 1
            self._num_workers -= 1
            if not self._num_workers:
                raise error
            self.remaining.num_workers = self._num_workers
            self._batches.insert(0, batch)
            self._changed.notify_all()
        self.watch.note(f"{worker.name} is gone, the others go on: {error.message}")

    def _halt(self) -> None:
        with self._changed:
            self._stop.set()
            self._changed.notify_all()

    def _do(self, worker: Worker, batch: Batch) -> bool:
        """Measure what a batch still lacks; False if the worker died."""
        tasks = self.remaining.missing(batch, self.remaining.machine_class)
        if not tasks or self._stop.is_set():
            return True
        wanted = {task.cell.config_hash for task in tasks}
        cells = {cell.config_hash: cell for cell in batch.cells if cell.config_hash in wanted}
        self.watch.note(f"loading {batch.pair.name}")
        ready = worker.prepare(batch.job(cells.values()), LOAD_TIMEOUT)
        if self._stop.is_set():
            return True
        if isinstance(ready, Died) and self._may_retry(worker, tasks[0], ready):
            return False
        if not isinstance(ready, Ready):
            self._fail_to_load(list(cells.values()), self.remaining.machine_class or "", ready)
            return not isinstance(ready, Died)
        self._describe(ready)
        for config_hash, cell in cells.items():
            method, engine = ready.vocab_methods.get(config_hash), ready.engines.get(config_hash)
            self._start(cell, ready.machine_class, ready.models, method, engine)
            if config_hash in ready.refused:
                self._fail([cell], ready.machine_class, ready.refused[config_hash])
        return all(
            self._measure(worker, task, ready.machine_class)
            for task in self.remaining.missing(batch, ready.machine_class)
        )

    def _measure(self, worker: Worker, task: Task, machine_class: str) -> bool:
        """One generation; False if the worker died."""
        cell = task.cell
        if self._stop.is_set() or not self.remaining.is_open(cell):
            return True
        limit = self.policy.cell_timeout
        left = None if limit is None else limit - self._spent[cell.config_hash]
        if left is not None and left <= 0:
            self._fail([cell], machine_class, Failed("timeout", f"it took longer than {limit:g} s", None), task=task)
            return True
        started_at, began = _now(), time.monotonic()
        reply = worker.generate(cell.config_hash, task.prompt.prompt_id, task.repetition, left)
        seconds = time.monotonic() - began
        if self._stop.is_set():
            return True
        self._spent[cell.config_hash] += seconds
        if isinstance(reply, Generated):
            self._keep(task, machine_class, started_at, seconds, reply.events)
            return True
        if isinstance(reply, Died) and self._may_retry(worker, task, reply):
            return False
        if isinstance(reply, Died) and reply.reason == "timeout":
            # The worker had what was left of the cell's time, which says little to whoever gave the whole.
            reply = Died("timeout", f"it took longer than {limit:g} s")
        self._fail([cell], machine_class, reply, task=task)
        return not isinstance(reply, Died)

    def _may_retry(self, worker: Worker, task: Task, died: Died) -> bool:
        """Whether what a worker died over is tried again; a hang would only hang again."""
        if died.reason == "timeout" or self._deaths[task] >= self.executor.retries:
            return False
        self._deaths[task] += 1
        self.watch.note(f"{worker.name}: {died.message}; another one goes on")
        return True

    # What is written. One thread at a time.

    def _describe(self, ready: Ready) -> None:
        with self._lock:
            if ready.machine_class not in self._machines:
                self._machines.add(ready.machine_class)
                self.store.append(Machine(ready.machine_class, self.session, ready.machine))
            for note in ready.notes:
                self.watch.note(f"note: {note}")

    def _start(
        self,
        cell: Cell,
        machine_class: str,
        models: Mapping[str, Any],
        vocab_method: str | None = None,
        engine: str | None = None,
    ) -> None:
        with self._lock:
            before = self.store.contents.cells.get((cell.config_hash, machine_class))
            if not models and before is not None:
                models = before.models  # they don't load today; what was measured was measured with them
            self.store.append(
                CellStarted(
                    cell.config_hash,
                    machine_class,
                    self.session,
                    cell.config.to_dict(),
                    {role: model for role, model in models.items() if role == "target" or cell.uses_draft_model},
                    vocab_method,
                    len(cell.prompts),
                    cell.run.repetitions,
                    cell.run.caveats,
                    tuple(map(prompt_hash, cell.prompts)),
                    engine,
                )
            )

    def _keep(
        self, task: Task, machine_class: str, started_at: str, seconds: float, happened: tuple[Event, ...]
    ) -> None:
        (result,) = fold(happened)
        cell, config = task.cell, task.cell.config
        with self._lock:
            self.store.append(
                Generation(
                    config_hash=cell.config_hash,
                    machine_class=machine_class,
                    session=self.session,
                    sequence=self.store.next_sequence(),
                    started_at=started_at,
                    prompt_id=task.prompt.prompt_id,
                    prompt_hash=prompt_hash(task.prompt),
                    domain=config.prompt_domain,
                    repetition=task.repetition,
                    control=task.control,
                    pair=config.model_pair_name,
                    K=config.K or 0,
                    temperature=config.temperature,
                    result=result,
                )
            )
            complete = self.remaining.measured(task, machine_class, seconds)
            if complete or time.monotonic() - self._synced > SYNC_SECONDS:
                self.store.sync()
                self._synced = time.monotonic()
            progress = self.remaining.progress()
            self.watch.measured(progress)
            if complete:
                self.watch.finished(cell, progress)

    def _fail_to_load(self, cells: Sequence[Cell], machine_class: str, why: Failed | Died) -> None:
        tried = [cell for cell in cells if self.remaining.is_open(cell)]
        for cell in tried:
            self._start(cell, machine_class, {})
        if tried:
            self._fail(tried, machine_class, why)

    def _fail(self, cells: Sequence[Cell], machine_class: str, why: Failed | Died, *, task: Task | None = None) -> None:
        hint = why.hint if isinstance(why, Failed) else None
        with self._lock:
            self._write_off(cells, machine_class, why.reason, why.message, hint, task)
            if why.reason == "out of memory" and task is not None:
                larger = self.remaining.larger(task.cell)
                for cell in larger:
                    if (cell.config_hash, machine_class) not in self.store.contents.cells:
                        self._start(cell, machine_class, {})
                message = f"K = {task.cell.run.k} ran out of memory, and more drafted tokens need more"
                self._write_off(larger, machine_class, "skipped", message, None, None)
            self.store.sync()
            if self.policy.fail_fast:
                self._halt()

    def _write_off(
        self,
        cells: Sequence[Cell],
        machine_class: str,
        reason: str,
        message: str,
        hint: str | None,
        task: Task | None,
    ) -> None:
        for cell in cells:
            failure = Failure(
                config_hash=cell.config_hash,
                machine_class=machine_class,
                session=self.session,
                sequence=self.store.next_sequence(),
                at=_now(),
                reason=reason,
                message=message,
                hint=hint,
                prompt_id=task.prompt.prompt_id if task else None,
                repetition=task.repetition if task else None,
            )
            self.store.append(failure)
            self.remaining.close(cell, failure)
        if cells:
            self.watch.failed(cells, failure, self.remaining.progress())


def _now() -> str:
    """For people to read; the order of records is their sequence."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
