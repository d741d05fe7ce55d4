"""A worker that is gone for good, as when its node is: the others do its work."""

from __future__ import annotations

from pathlib import Path

import pytest

from specprof.errors import ResourceError
from specprof.experiments.executors import Worker
from toy_sweep import HERE, Inline, Told, failures, go_on, keys, plan_of


class Vanishing(Inline):
    """No place for another worker."""

    def replace(self, worker: Worker) -> Worker:
        raise ResourceError(f"there is no place for {worker.name}", "wait for one")


@pytest.mark.parametrize("death", [1, 2, 17, 30])
def test_what_a_node_leaves_behind_is_done_by_the_others(tmp_path: Path, death: int) -> None:
    plan, told = plan_of(split="baseline"), Told()
    remaining = go_on(plan, tmp_path, executor=Vanishing(HERE, HERE, retries=1, deaths=[death]), watch=told)
    assert sorted(keys(tmp_path)) == sorted(task.key(HERE) for task in plan.tasks)
    assert failures(tmp_path) == []
    assert remaining.num_workers == 1
    assert any("is gone, the others go on: there is no place" in note for note in told.notes)


def test_without_others_the_sweep_ends_and_the_next_one_goes_on(tmp_path: Path) -> None:
    plan = plan_of(split="baseline")
    with pytest.raises(ResourceError, match="there is no place"):
        go_on(plan, tmp_path, executor=Vanishing(HERE, retries=1, deaths=[5]))
    assert len(keys(tmp_path)) == 4 and failures(tmp_path) == []
    go_on(plan, tmp_path, executor=Inline(HERE))
    assert sorted(keys(tmp_path)) == sorted(task.key(HERE) for task in plan.tasks)
