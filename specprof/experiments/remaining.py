"""What is left of a plan: which cells are open, which generations are missing, how long that will take."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from specprof.experiments.plan import Batch, Cell, Plan, Task
from specprof.experiments.records import Failure, GenerationKey

_RECENT = 40
"""Generations of a pair that its pace is taken from."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a sweep is."""

    cells: int
    cells_done: int
    cells_failed: int
    tasks: int
    tasks_done: int
    seconds_left: float | None
    """None until something was measured."""


class Remaining:
    """Keeps account of a plan while it is worked on.

    Args:
        plan: everything.
        measured: what the store holds.
        machine_class: of the machine that all workers run on. None if they may differ: then a candidate that is
            complete on any machine is not measured again; its baseline is, wherever another candidate needs it.
    """

    def __init__(self, plan: Plan, measured: Iterable[GenerationKey], *, machine_class: str | None) -> None:
        self.plan = plan
        self.machine_class = machine_class
        self.num_workers = 1
        """That share the work."""
        self.failures: dict[str, Failure] = {}
        """By config hash, of the cells that nothing more is done about."""
        self._measured = set(measured)
        self._pace: dict[str, deque[float]] = {}
        self._all = Counter(task.cell.config_hash for task in plan.tasks)
        classes = {key.machine_class for key in self._measured} if machine_class is None else {machine_class}
        self._left = _missing_by_class(plan, self._measured, classes)
        """By config hash and machine class; a class that has measured nothing yet lacks all."""
        self._cells = {cell.config_hash: cell for cell in plan.cells}

    def is_open(self, cell: Cell) -> bool:
        return cell.config_hash not in self.failures

    def is_done(self, cell: Cell) -> bool:
        return self.num_missing(cell) == 0

    def num_missing(self, cell: Cell) -> int:
        if cell.config_hash not in self._all:  # its models can't be had
            return cell.num_generations
        return min([self._all[cell.config_hash], *self._left[cell.config_hash].values()])

    def missing(self, batch: Batch, machine_class: str | None) -> list[Task]:
        """Generations to be made on a machine of this class (None: of a class yet unknown), in order."""
        wanted = {cell.config_hash for cell in batch.cells if self.is_open(cell)}
        if self.machine_class is None:
            unfinished = {cell.config_hash for cell in batch.cells if not self.is_done(cell)} & wanted
            baselines = {cell.config_hash for cell in batch.cells if cell.run.k == 0} & wanted
            wanted = unfinished | baselines if unfinished else set()
        return [
            task
            for task in batch.tasks
            if task.cell.config_hash in wanted
            and (machine_class is None or task.key(machine_class) not in self._measured)
        ]

    def measured(self, task: Task, machine_class: str, seconds: float) -> bool:
        """Take a finished generation into account; True if its cell is now complete."""
        self._measured.add(task.key(machine_class))
        self._pace.setdefault(task.cell.pair_name, deque(maxlen=_RECENT)).append(seconds)
        left = self._left[task.cell.config_hash]
        left[machine_class] = left.get(machine_class, self._all[task.cell.config_hash]) - 1
        return left[machine_class] == 0

    def close(self, cell: Cell, failure: Failure) -> None:
        """Nothing more is done about this cell."""
        self.failures[cell.config_hash] = failure

    def larger(self, cell: Cell) -> list[Cell]:
        """Open cells of the same pair that draft more, and so need more memory."""
        return [
            other
            for other in self._cells.values()
            if other.pair_name == cell.pair_name
            and other.run.longest_draft > cell.run.longest_draft
            and self.is_open(other)
            and not self.is_done(other)
        ]

    def progress(self) -> Progress:
        open_tasks, tasks_done = Counter[str](), 0
        for config_hash, number in self._all.items():
            cell = self._cells[config_hash]
            left = self.num_missing(cell)
            tasks_done += number - left
            if self.is_open(cell):
                open_tasks[cell.pair_name] += left
        return Progress(
            cells=len(self._cells),
            cells_done=sum(map(self.is_done, self._cells.values())),
            cells_failed=len(self.failures),
            tasks=self._all.total(),
            tasks_done=tasks_done,
            seconds_left=self._seconds_left(open_tasks),
        )

    def _seconds_left(self, open_tasks: Counter[str]) -> float | None:
        recent = list(itertools.chain.from_iterable(self._pace.values()))
        if not recent:
            return None
        overall = sum(recent) / len(recent)
        paces = {name: sum(seconds) / len(seconds) for name, seconds in self._pace.items()}
        return sum(count * paces.get(name, overall) for name, count in open_tasks.items()) / self.num_workers


def _missing_by_class(plan: Plan, measured: set[GenerationKey], classes: set[str]) -> dict[str, dict[str, int]]:
    """For each cell, how many of its generations each machine class lacks."""
    counts = {cell.config_hash: dict.fromkeys(classes, 0) for batch in plan.batches for cell in batch.cells}
    for task in plan.tasks:
        for machine_class in classes:
            counts[task.cell.config_hash][machine_class] += task.key(machine_class) not in measured
    return counts
