"""What a sweep writes, and what it leaves out because it is written already."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specprof.experiments.executors import LocalExecutor
from specprof.experiments.plan import Plan, Task
from specprof.experiments.records import GenerationKey
from specprof.experiments.remaining import Remaining
from specprof.experiments.results import read_contents
from specprof.experiments.summary import cell_states
from toy_sweep import ELSEWHERE, FAULTS, HERE, TOY, Inline, Told, go_on, keys, lines, plan_of, prompts, said


def planned(plan: Plan, machine_class: str = HERE) -> list[GenerationKey]:
    return [task.key(machine_class) for task in plan.tasks]


def rewrite(directory: Path, keep: Callable[[dict[str, Any]], bool]) -> int:
    """Take lines out of a store; returns how many generations."""
    before = lines(directory)
    kept = [line for line in before if keep(line)]
    (directory / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    return len([line for line in before if line["kind"] == "generation"]) - len(lines(directory, "generation"))


class NoWorkers:
    """Must not be asked for any."""

    retries = 0

    def workers(self) -> Any:
        raise AssertionError("a worker was started")

    def replace(self, worker: object) -> Any:
        raise AssertionError("a worker was replaced")

    def close(self) -> None:
        pass


# --- from nothing


def test_everything_is_written_once_in_the_order_of_the_plan(tmp_path: Path) -> None:
    plan, told = plan_of(prompts(3), temperatures=(0.0, 0.8)), Told()
    remaining = go_on(plan, tmp_path, watch=told)
    assert keys(tmp_path) == planned(plan)
    sequence = [line["sequence"] for line in lines(tmp_path, "generation")]
    assert sequence == list(range(1, len(sequence) + 1))
    kinds = [line["kind"] for line in lines(tmp_path)]
    assert kinds[: 2 + len(plan.cells)] == ["session", "machine"] + ["cell"] * len(plan.cells)
    assert set(kinds[2 + len(plan.cells) :]) == {"generation"}
    (session,) = lines(tmp_path, "session")
    assert {line["session"] for line in lines(tmp_path)} == {session["session"]}

    assert sorted(cell.config_hash for cell in told.finished_cells) == sorted(cell.config_hash for cell in plan.cells)
    assert [progress.tasks_done for progress in told.progress] == list(range(1, len(sequence) + 1))
    last = told.progress[-1]
    assert (last.cells, last.cells_done, last.cells_failed) == (12, 12, 0)
    assert (last.tasks, last.seconds_left) == (len(sequence), 0.0)
    assert told.failures == [] and remaining.failures == {}
    assert {state.state for state in cell_states(read_contents(tmp_path))} == {"done"}


def test_a_line_says_what_was_measured(tmp_path: Path) -> None:
    plan = plan_of(prompts(1, ("code",)), k=(2,), repetitions=1)
    go_on(plan, tmp_path)
    cells = {line["config_hash"]: line for line in lines(tmp_path, "cell")}
    for cell in plan.cells:
        written = cells[cell.config_hash]
        assert written["config"] == cell.config.to_dict()
        assert (written["num_prompts"], written["repetitions"]) == (1, 1)
        assert (written["machine_class"], written["models"]) == (HERE, {"target": {"model": "toy"}})
    (machine,) = lines(tmp_path, "machine")
    assert (machine["machine_class"], machine["machine"]) == (HERE, {"cpu": "toy"})
    (candidate,) = (line for line in lines(tmp_path, "generation") if line["K"] == 2)
    assert (candidate["pair"], candidate["domain"], candidate["prompt_id"]) == ("tiny_dev", "code", "code0")
    assert (candidate["repetition"], candidate["control"], candidate["temperature"]) == (0, False, 0.0)
    assert candidate["decoder"] == "SD-K2" and len(candidate["generated_ids"]) == 8
    contents = read_contents(tmp_path, with_rounds=True)
    for generation in contents.generations.values():
        emitted = [token for round in generation.result.rounds for token in round.emitted_tokens]
        assert generation.result.generated_ids[1:] == emitted
        assert generation.key in planned(plan)


def test_several_pairs_one_after_the_other(tmp_path: Path) -> None:
    plan, told = plan_of(prompts(1), pairs=("tiny_dev", "tiny_cross")), Told()
    go_on(plan, tmp_path, watch=told)
    assert keys(tmp_path) == planned(plan)
    assert [note for note in told.notes if "loading" in note] == ["loading tiny_dev", "loading tiny_cross"]


# --- going on


def test_nothing_to_do_starts_no_worker(tmp_path: Path) -> None:
    plan = plan_of()
    go_on(plan, tmp_path)
    before = lines(tmp_path)
    remaining = go_on(plan, tmp_path, executor=NoWorkers())
    assert [line for line in lines(tmp_path) if line["kind"] != "session"] == before[1:]
    progress = remaining.progress()
    assert (progress.cells_done, progress.tasks_done) == (progress.cells, progress.tasks)


@pytest.mark.parametrize("seed", range(3))
def test_only_what_is_missing_is_measured(tmp_path: Path, seed: int) -> None:
    import random

    plan = plan_of(temperatures=(0.0, 0.8))
    go_on(plan, tmp_path)
    whole, order = said(tmp_path), keys(tmp_path)
    draw = random.Random(seed)
    lost = rewrite(tmp_path, lambda line: line["kind"] != "generation" or draw.random() < 0.7)
    kept = keys(tmp_path)
    largest = max(line["sequence"] for line in lines(tmp_path, "generation"))
    told = Told()
    go_on(plan, tmp_path, watch=told)
    again = keys(tmp_path)
    assert lost > 5
    assert again[: len(kept)] == kept
    assert again[len(kept) :] == [key for key in order if key not in kept]  # and in the same order
    assert said(tmp_path) == whole
    sequence = [line["sequence"] for line in lines(tmp_path, "generation")][len(kept) :]
    assert sequence == list(range(largest + 1, largest + 1 + lost))
    assert told.progress[0].tasks_done == len(kept) + 1
    sessions = {line["session"] for line in lines(tmp_path, "generation")[len(kept) :]}
    assert sessions == {lines(tmp_path, "session")[-1]["session"]}


def test_a_session_names_only_cells_it_works_on(tmp_path: Path) -> None:
    plan = plan_of()
    go_on(plan, tmp_path)
    one = plan.cells[-1].config_hash
    rewrite(tmp_path, lambda line: line["kind"] == "session" or line.get("config_hash") != one)
    go_on(plan, tmp_path)
    last = lines(tmp_path, "session")[-1]["session"]
    assert [line["config_hash"] for line in lines(tmp_path, "cell") if line["session"] == last] == [one]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"number": 1}, {"number": 3}),
        ({"repetitions": 1}, {"repetitions": 3}),
        ({"k": (1,)}, {"k": (1, 2, 4)}),
        ({"temperatures": (0.8,)}, {"temperatures": (0.0, 0.8)}),
        ({"domains": ("code",)}, {"domains": ("code", "conversation")}),
    ],
)
def test_a_sweep_that_grows_measures_what_is_new(tmp_path: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    def plan(number: int = 2, domains: tuple[str, ...] = ("code", "conversation"), **settings: Any) -> Plan:
        return plan_of(prompts(number, domains), **settings)

    small, large = plan(**before), plan(**after)
    go_on(small, tmp_path)
    go_on(large, tmp_path)
    found = keys(tmp_path)
    assert sorted(found) == sorted(planned(large))
    assert found[: len(planned(small))] == planned(small)
    # The cells' last lines say how much makes them complete now.
    states = cell_states(read_contents(tmp_path))
    assert {state.state for state in states} == {"done"}
    assert {state.num_expected for state in states} == {
        len(cell.prompts) * cell.run.repetitions for cell in large.cells
    }


def test_a_sweep_that_shrinks_has_nothing_to_do(tmp_path: Path) -> None:
    go_on(plan_of(prompts(3), repetitions=3), tmp_path)
    go_on(plan_of(prompts(1), repetitions=2, k=(2,)), tmp_path, executor=NoWorkers())


def test_done_means_the_prompts_that_were_last_asked_for(tmp_path: Path) -> None:
    go_on(plan_of(prompts(4, ("code",)), repetitions=2), tmp_path)
    grown = plan_of(prompts(8, ("code",)), repetitions=1)
    go_on(grown, tmp_path)
    late = {f"code{i}" for i in range(5, 8)}
    rewrite(tmp_path, lambda line: line["kind"] != "generation" or line["prompt_id"] not in late)
    # 9 generations of each cell are there, and 8 were asked for: but not these.
    states = cell_states(read_contents(tmp_path))
    assert {(state.state, state.num_done, state.num_expected) for state in states} == {("partial", 5, 8)}
    go_on(grown, tmp_path)
    states = cell_states(read_contents(tmp_path))
    assert {(state.state, state.num_done, state.num_expected) for state in states} == {("done", 8, 8)}


def test_models_that_do_not_load_today_are_still_those_of_yesterday(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on(plan_of(prompts(1)), tmp_path)
    monkeypatch.setenv(FAULTS, json.dumps({"load": "odd"}))
    go_on(plan_of(prompts(2)), tmp_path)
    for state in cell_states(read_contents(tmp_path)):
        assert state.state == "failed" and state.num_done == 2
        assert state.cell.models == {"target": {"model": "toy"}}


def test_another_order_is_the_same_sweep(tmp_path: Path) -> None:
    go_on(plan_of(order_seed=1), tmp_path)
    go_on(plan_of(order_seed=2), tmp_path, executor=NoWorkers())


def test_a_prompt_that_says_something_else_is_another(tmp_path: Path) -> None:
    first, second = prompts(2, ("code",)), prompts(2, ("code",))
    second[1] = type(second[1])(second[1].prompt_id, "code", "another text")
    go_on(plan_of(first), tmp_path)
    go_on(plan_of(second), tmp_path)
    assert Counter(key[2] for key in keys(tmp_path)[6 + 6 + 3 :]) == {"code1": 6}
    assert len(set(keys(tmp_path))) == len(keys(tmp_path))
    # What the first text measured is kept, and is in no figure of the second's.
    edited = cell_states(read_contents(tmp_path))
    assert {(state.state, state.num_done, state.num_expected) for state in edited} == {("done", 4, 4)}
    go_on(plan_of(second), tmp_path / "alone")
    alone = cell_states(read_contents(tmp_path / "alone"))
    assert [state.speedup for state in edited] == [state.speedup for state in alone]


def test_a_unit_that_was_torn_is_completed(tmp_path: Path) -> None:
    """Stopped between the baseline and the candidates of a prompt, in the middle of a line."""
    plan = plan_of(prompts(2, ("code",)))
    go_on(plan, tmp_path)
    path, whole = tmp_path / "records.jsonl", said(tmp_path)
    text = path.read_text().splitlines(keepends=True)
    num_before = len(lines(tmp_path)) - len(keys(tmp_path))
    path.write_text("".join(text[: num_before + 4]) + text[num_before + 4][:100])
    go_on(plan, tmp_path)
    assert keys(tmp_path) == planned(plan)
    assert said(tmp_path) == whole


# --- machines


def test_another_machine_measures_everything_anew(tmp_path: Path) -> None:
    plan = plan_of()
    go_on(plan, tmp_path, executor=Inline(HERE))
    go_on(plan, tmp_path, executor=Inline(ELSEWHERE), machine_class=ELSEWHERE)
    assert keys(tmp_path) == planned(plan) + planned(plan, ELSEWHERE)
    assert [line["machine_class"] for line in lines(tmp_path, "machine")] == [HERE, ELSEWHERE]
    go_on(plan, tmp_path, executor=NoWorkers())
    states = cell_states(read_contents(tmp_path))
    assert Counter((state.state, state.cell.machine_class) for state in states) == {
        ("done", HERE): 6,
        ("done", ELSEWHERE): 6,
    }


def test_a_speedup_is_of_one_machine(tmp_path: Path) -> None:
    """A candidate without a baseline on its own class has none."""
    plan = plan_of(prompts(2, ("code",)))
    go_on(plan, tmp_path, executor=Inline(HERE))
    go_on(plan, tmp_path, executor=Inline(ELSEWHERE), machine_class=ELSEWHERE)
    rewrite(tmp_path, lambda line: not (line.get("machine_class") == ELSEWHERE and line.get("K") == 0))
    speedups = {
        (state.cell.machine_class, state.config.K): state.speedup for state in cell_states(read_contents(tmp_path))
    }
    assert speedups[HERE, 1] is not None and speedups[HERE, 2] is not None
    assert speedups[ELSEWHERE, 1] is None and speedups[ELSEWHERE, 2] is None


def test_where_machines_differ_a_candidate_is_measured_on_one_of_them(tmp_path: Path) -> None:
    plan = plan_of(prompts(2), temperatures=(0.0, 0.8), split="baseline")
    executor = Inline(HERE, ELSEWHERE)
    go_on(plan, tmp_path, executor=executor, machine_class=None)
    found = keys(tmp_path)
    assert len(found) == len(set(found)) == len(planned(plan))
    assert {(key[0], *key[2:]) for key in found} == {(key[0], *key[2:]) for key in planned(plan)}
    # A baseline and its candidates went to one machine.
    baseline_of = {cell.config_hash: cell.config.baseline().config_hash() for cell in plan.cells}
    places: dict[str, set[str]] = {}
    for key in found:
        places.setdefault(baseline_of[key[0]], set()).add(key[1])
    assert all(len(classes) == 1 for classes in places.values())
    go_on(plan, tmp_path, executor=NoWorkers(), machine_class=None)


def test_a_baseline_follows_its_candidate_to_another_machine(tmp_path: Path) -> None:
    go_on(plan_of(k=(1,)), tmp_path, executor=Inline(HERE))
    told = Told()
    plan = plan_of(k=(1, 2))
    go_on(plan, tmp_path, executor=Inline(ELSEWHERE), machine_class=None, watch=told)
    new = [key for key in keys(tmp_path) if key[1] == ELSEWHERE]
    lengths = {cell.config_hash: cell.run.k for cell in plan.cells}
    assert {lengths[key[0]] for key in new} == {0, 2}
    assert new == [key for key in planned(plan, ELSEWHERE) if lengths[key.config_hash] != 1]
    assert all(progress.tasks_done <= progress.tasks for progress in told.progress)
    last = told.progress[-1]
    assert (last.cells_done, last.tasks_done) == (last.cells, last.tasks)
    go_on(plan, tmp_path, executor=NoWorkers(), machine_class=None)


def test_a_node_that_dies_costs_nothing_where_generations_are_tried_again(tmp_path: Path) -> None:
    plan, told = plan_of(), Told()
    remaining = go_on(plan, tmp_path, executor=Inline(HERE, retries=1, deaths=(3, 9)), watch=told)
    assert keys(tmp_path) == planned(plan)
    assert remaining.failures == {} and lines(tmp_path, "failure") == []
    assert sum("the node went away" in note for note in told.notes) == 2


def test_a_generation_that_kills_twice_is_given_up(tmp_path: Path) -> None:
    plan = plan_of()
    remaining = go_on(plan, tmp_path, executor=Inline(HERE, retries=1, deaths=(3, 4)))
    (failure,) = remaining.failures.values()
    assert (failure.reason, failure.message) == ("crash", "the node went away")
    assert len(set(keys(tmp_path))) == len(keys(tmp_path))
    assert set(keys(tmp_path)) >= {key for key in planned(plan) if key.config_hash != failure.config_hash}


# --- several workers


def test_two_workers_measure_what_one_does(tmp_path: Path) -> None:
    alone = plan_of(prompts(2), temperatures=(0.0, 0.8))
    shared = plan_of(prompts(2), temperatures=(0.0, 0.8), split="baseline")
    told = Told()
    go_on(alone, tmp_path / "one", executor=Inline(HERE))
    remaining = go_on(shared, tmp_path / "two", executor=LocalExecutor(make_bench=TOY, num_workers=2), watch=told)
    assert remaining.num_workers == 2
    assert said(tmp_path / "two") == said(tmp_path / "one")
    assert len(keys(tmp_path / "two")) == len(keys(tmp_path / "one"))
    sequence = [line["sequence"] for line in lines(tmp_path / "two", "generation")]
    assert sequence == sorted(sequence)
    # Each batch was one worker's, from beginning to end.
    written = keys(tmp_path / "two")
    for batch in shared.batches:
        own = [task.key(HERE) for task in batch.tasks]
        assert [key for key in written if key in own] == own
    assert told.progress[-1].cells_done == told.progress[-1].cells


class Lockstep(Inline):
    """Workers that look at what is on disk whenever they are asked for something."""

    def __init__(self, directory: Path) -> None:
        super().__init__(HERE)
        self.directory = directory
        self.seen: list[int] = []

    def lives_on(self) -> bool:
        self.seen.append(len(keys(self.directory)))
        return True


def test_everything_is_on_disk_before_the_next_one_is_asked_for(tmp_path: Path) -> None:
    plan, executor = plan_of(), Lockstep(tmp_path)
    go_on(plan, tmp_path, executor=executor)
    assert executor.seen == list(range(len(planned(plan))))


def test_workers_import_nothing_of_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the driver: this is what makes a dry run and a resumed sweep that is complete quick."""
    import subprocess
    import sys

    code = (
        "import sys, pathlib, toy_sweep as t; from specprof.experiments import matrix, estimate;"
        f"r = t.go_on(t.plan_of(), pathlib.Path({str(tmp_path)!r}));"
        "print([m for m in ('torch', 'transformers', 'pandas', 'ray') if m in sys.modules], r.progress().cells_done)"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert found.stdout.strip() == "[] 6", found.stderr


def test_remaining_and_store_agree(tmp_path: Path) -> None:
    plan = plan_of()
    after = go_on(plan, tmp_path)
    anew = Remaining(plan, read_contents(tmp_path).generations, machine_class=HERE)
    for cell in plan.cells:
        assert after.num_missing(cell) == anew.num_missing(cell) == 0
    left: list[Task] = [task for batch in plan.batches for task in anew.missing(batch, HERE)]
    assert left == []
