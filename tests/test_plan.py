"""What a sweep has to do and in which order, and what is left of it."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from specprof.data.prompts import Prompt
from specprof.errors import UnavailableError
from specprof.experiments.plan import NUM_CONTROLS, Plan, Task, cell_config, prompt_hash
from specprof.experiments.records import GenerationKey
from specprof.experiments.remaining import Remaining
from toy_sweep import ELSEWHERE, HERE, plan_of, prompts


def written(tasks: Iterable[Task]) -> list[GenerationKey]:
    return [task.key(HERE) for task in tasks]


def hashes(**settings: Any) -> dict[int | str, str]:
    """Of a plan's cells, by K."""
    plan = plan_of(prompts(1, ("code",)), **settings)
    return {cell.run.k: cell.config_hash for cell in plan.cells}


# --- the order


def test_the_same_seed_gives_the_same_order_and_another_seed_another() -> None:
    first = written(plan_of(order_seed=3).tasks)
    assert written(plan_of(order_seed=3).tasks) == first
    other = written(plan_of(order_seed=4).tasks)
    assert other != first
    assert sorted(other) == sorted(first)


def test_the_order_is_shuffled() -> None:
    plan = plan_of(prompts(6), repetitions=3)
    tasks = [task for task in plan.tasks if not task.control]
    seen = [tuple(dict.fromkeys(task.prompt.prompt_id for task in tasks if task.repetition == r)) for r in range(3)]
    assert len(set(seen)) == 3  # each repetition goes through the prompts anew
    assert all(len(order) == 12 for order in seen)
    turns = {tuple(task.cell.run.k for task in tasks[at : at + 3]) for at in range(0, len(tasks), 3)}
    assert len(turns) == 6  # all orders of plain decoding and two K
    firsts = Counter(task.cell.run.k for task in tasks[::3])
    assert min(firsts.values()) >= 4  # none of them is always the first


@pytest.mark.parametrize("split", ["pair", "baseline"])
@pytest.mark.parametrize(
    ("number", "settings"),
    [
        (1, {"repetitions": 1}),
        (3, {"repetitions": 2}),
        (2, {"temperatures": (0.0, 0.8), "drafters": ("model", "ngram")}),
        (2, {"k": (2, "auto"), "k_max": 3}),
    ],
)
def test_every_generation_once_and_three_controls_of_every_baseline(
    number: int, settings: dict[str, Any], split: Any
) -> None:
    plan = plan_of(prompts(number), split=split, **settings)
    tasks = list(plan.tasks)
    assert len({task.key(HERE) for task in tasks}) == len(tasks)
    expected = Counter({cell.config_hash: len(cell.prompts) * cell.run.repetitions for cell in plan.cells})
    assert Counter(task.cell.config_hash for task in tasks if not task.control) == expected
    baselines = {cell.config_hash for cell in plan.cells if cell.run.k == 0}
    controls = Counter(task.cell.config_hash for task in tasks if task.control)
    assert controls == dict.fromkeys(baselines, NUM_CONTROLS)
    assert all(task.prompt in task.cell.prompts for task in tasks)
    assert all(task.cell.config.prompt_domain == task.prompt.domain for task in tasks)


@pytest.mark.parametrize(("number", "repetitions"), [(1, 1), (1, 2), (4, 3)])
@pytest.mark.parametrize("split", ["pair", "baseline"])
def test_controls_stand_at_the_beginning_in_the_middle_and_at_the_end(
    number: int, repetitions: int, split: Any
) -> None:
    for batch in plan_of(prompts(number), split=split, repetitions=repetitions).batches:
        tasks = batch.tasks
        places: dict[str, list[int]] = {}
        for place, task in enumerate(tasks):
            if task.control:
                assert task.cell.run.k == 0 and task.prompt == task.cell.prompts[0]
                places.setdefault(task.cell.config_hash, []).append(place)
        num_baselines = len(places)
        for found in places.values():
            beginning, middle, end = found
            assert beginning < num_baselines
            assert end >= len(tasks) - num_baselines
            # Between two prompts, and half of what is measured on either side.
            measured_before = sum(not task.control for task in tasks[:middle])
            one_turn = sum(task.prompt == tasks[num_baselines].prompt and not task.control for task in tasks)
            one_turn //= repetitions
            assert measured_before % one_turn == 0
            assert abs(2 * measured_before - sum(not task.control for task in tasks)) <= 2 * one_turn


def test_a_baseline_and_its_candidates_follow_one_another_on_each_prompt() -> None:
    plan = plan_of(prompts(3), temperatures=(0.0, 0.8), drafters=("model", "ngram"))
    tasks = [task for task in plan.tasks if not task.control]
    turn = 1 + 2 * 2
    for at in range(0, len(tasks), turn):
        together = tasks[at : at + turn]
        assert len({(task.prompt, task.repetition, task.cell.run.temperature) for task in together}) == 1
        arms = {(task.cell.run.drafter, task.cell.run.k) for task in together}
        assert arms == {("model", 0), ("model", 1), ("model", 2), ("ngram", 1), ("ngram", 2)}


def test_both_temperatures_are_spread_over_the_whole_sweep() -> None:
    tasks = list(plan_of(prompts(5), temperatures=(0.0, 0.8), repetitions=3).tasks)
    half = Counter(task.cell.run.temperature for task in tasks[: len(tasks) // 2])
    assert min(half.values()) > len(tasks) / 6


# --- cells


def test_one_baseline_for_all_drafters_and_lengths() -> None:
    plan = plan_of(temperatures=(0.0, 0.8), drafters=("model", "ngram", "layerskip"), draft_layers=1)
    baselines = [cell for cell in plan.cells if cell.run.k == 0]
    assert {(cell.config.prompt_domain, cell.run.temperature) for cell in baselines} == {
        (domain, temperature) for domain in ("code", "conversation") for temperature in (0.0, 0.8)
    }
    assert len(baselines) == 4
    assert len(plan.cells) == 4 + 4 * 3 * 2
    hashed = {cell.config_hash for cell in baselines}
    assert {cell.config.baseline().config_hash() for cell in plan.cells} == hashed
    assert len({cell.config_hash for cell in plan.cells}) == len(plan.cells)


def test_batches_by_baseline_are_parts_of_the_pair() -> None:
    whole = plan_of(temperatures=(0.0, 0.8))
    split = plan_of(temperatures=(0.0, 0.8), split="baseline")
    assert len(whole.batches) == 1 and len(split.batches) == 4
    for batch in split.batches:
        (baseline,) = {cell.config.baseline().config_hash() for cell in batch.cells}
        assert [cell.config_hash for cell in batch.cells if cell.run.k == 0] == [baseline]
        assert {task.cell.config_hash for task in batch.tasks} == {cell.config_hash for cell in batch.cells}
    assert sorted(written(split.tasks)) == sorted(written(whole.tasks))


def test_a_job_has_the_prompts_of_its_batch_in_a_fixed_order() -> None:
    """A choice between methods is made on the first few: a resumed sweep has to choose as the first one did."""
    (batch,) = plan_of(prompts(2)).batches
    job = batch.job(batch.cells)
    assert [prompt.prompt_id for prompt in job.prompts] == ["code0", "code1", "conversation0", "conversation1"]
    assert set(job.runs) == {cell.config_hash for cell in batch.cells}
    few = batch.job([batch.cells[-1]])
    assert few.prompts == job.prompts
    assert list(few.runs) == [batch.cells[-1].config_hash]


@pytest.mark.parametrize(
    "settings", [{"repetitions": 5}, {"warmup": 3}, {"offline": False}, {"num_prompts": 3}, {"domains": ("code",)}]
)
def test_what_leaves_a_cell_what_it_is(settings: dict[str, Any]) -> None:
    assert hashes(**settings) == hashes()


def test_more_prompts_are_the_same_cell() -> None:
    few, more = (plan_of(prompts(number, ("code",))) for number in (1, 4))
    assert [cell.config_hash for cell in few.cells] == [cell.config_hash for cell in more.cells]
    assert set(written(few.tasks)) < set(written(more.tasks))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperatures": (0.8,)}, {"max_new_tokens": 9}, {"seed": 1}, {"top_k": 5}, {"top_p": 0.9}, {"forward": "hf"},
        {"ignore_eos": True}, {"deterministic": True}, {"chat_template": "off"}, {"device": "cpu"},
        {"dtype": "float32"}, {"random_weights": True}, {"synthetic_acceptance": 0.5},
    ],
)  # fmt: skip
def test_what_makes_other_cells_of_all(settings: dict[str, Any]) -> None:
    assert not set(hashes(**settings).values()) & set(hashes().values())


@pytest.mark.parametrize(
    "settings", [{"drafters": ("ngram",)}, {"draft_threshold": 0.3}, {"vocab_method": "tli"}, {"detail": True}]
)
def test_what_makes_other_candidates_of_the_same_baseline(settings: dict[str, Any]) -> None:
    changed, before = hashes(**settings), hashes()
    assert changed[0] == before[0]
    assert not {changed[1], changed[2]} & set(before.values())


# --- whose weights


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The packaged pair, as directories of the user's own."""
    with resources.as_file(resources.files("specprof") / "models/pairs/tiny_dev") as packaged:
        return Path(shutil.copytree(packaged, tmp_path / "mine"))


def retrain(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] * 1.01
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def test_retrained_weights_are_other_cells(copied: Path) -> None:
    def cells() -> dict[tuple[str, int | str], str]:
        own: dict[str, Any] = {
            "draft": str(copied / "draft"),
            "target": str(copied / "target"),
            "drafters": ("model", "ngram"),
        }
        found = plan_of(prompts(1, ("code",)), **own).cells
        return {(cell.run.drafter, cell.run.k): cell.config_hash for cell in found}

    before = cells()
    assert cells() == before

    retrain(copied / "draft")
    other_draft = cells()
    concerned = {name for name in before if before[name] != other_draft[name]}
    assert concerned == {("model", 1), ("model", 2)}  # neither plain decoding nor prompt lookup know the draft

    retrain(copied / "target")
    assert not set(cells().values()) & set(other_draft.values())


def test_models_of_the_same_weights_in_another_place_are_other_cells(copied: Path) -> None:
    elsewhere = shutil.copytree(copied, copied.parent / "again" / "mine")
    here, there = (hashes(draft=str(at / "draft"), target=str(at / "target")) for at in (copied, elsewhere))
    assert not set(here.values()) & set(there.values())


def test_the_packaged_pair_is_known_by_name_and_fingerprint() -> None:
    plan = plan_of(prompts(1, ("code",)))
    baseline, candidate = plan.cells[0].config, plan.cells[1].config
    assert baseline.target_model_id is candidate.draft_model_id is None
    assert baseline.draft_revision is None
    assert baseline.target_revision == candidate.target_revision
    assert len(baseline.target_revision or "") == len(candidate.draft_revision or "") == 12
    assert candidate.draft_revision != candidate.target_revision


def test_random_weights_have_no_revision() -> None:
    config = plan_of(prompts(1, ("code",)), random_weights=True).cells[1].config
    assert config.target_revision is config.draft_revision is None


def test_k_auto_says_how_far_it_goes() -> None:
    cells = {cell.run.k: cell.config for cell in plan_of(prompts(1, ("code",)), k=("auto", 8)).cells}
    assert (cells["auto"].k_max, cells[8].k_max) == (8, None)
    assert plan_of(prompts(1, ("code",)), k=("auto",), k_max=8).cells[1].config == cells["auto"]


def test_a_configuration_needs_no_plan() -> None:
    cell = plan_of(prompts(1, ("code",))).cells[1]
    revisions = (cell.config.target_revision, cell.config.draft_revision)
    assert cell_config(cell.run, "code", revisions) == cell.config


def test_the_text_of_a_prompt_tells_generations_apart() -> None:
    assert prompt_hash(Prompt("p", "code", "def f(x):")) == "faf6233083f7"
    assert prompt_hash(Prompt("q", "custom", "def f(x):")) == "faf6233083f7"
    assert prompt_hash(Prompt("p", "code", "def f(y):")) != "faf6233083f7"
    (first, *_), (again, *_) = (plan_of([Prompt("p", "code", text)]).tasks for text in ("def f(x):", "def f(y):"))
    assert first.cell.config_hash == again.cell.config_hash
    assert first.key(HERE) != again.key(HERE)


# --- models that can't be had


@pytest.fixture
def own_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "specprof").mkdir()
    (tmp_path / "specprof" / "config.toml").write_text(
        f'[pairs.gone]\ndraft = "{tmp_path}/no/draft"\ntarget = "{tmp_path}/no/target"\n'
        f'[pairs.half]\ndraft = "{tmp_path}/no/draft"\ntarget = "tiny_dev/target"\n'
    )


@pytest.mark.usefixtures("own_pairs")
def test_a_pair_that_cannot_be_had_stands_beside_one_that_can() -> None:
    plan = plan_of(prompts(1), pairs=("gone", "tiny_dev", "half"))
    assert [batch.pair.name for batch in plan.batches] == ["tiny_dev"]
    for pair, name, lacks in zip(plan.unavailable, ("gone", "half"), ("target", "draft"), strict=True):
        assert [cell.pair_name for cell in pair.cells] == [name] * 6
        assert f"no/{lacks}" in pair.error.message
        assert pair.error.hint
    assert len(plan.cells) == 18
    assert {task.cell.pair_name for task in plan.tasks} == {"tiny_dev"}
    progress = Remaining(plan, (), machine_class=HERE).progress()
    assert (progress.cells, progress.cells_done, progress.tasks) == (18, 0, len(list(plan.tasks)))


@pytest.mark.usefixtures("own_pairs")
def test_no_pair_at_all_is_a_plan_of_what_is_lacking() -> None:
    plan = plan_of(pairs=("gone", "half"))
    assert list(plan.tasks) == []
    assert [isinstance(pair.error, UnavailableError) for pair in plan.unavailable] == [True, True]
    progress = Remaining(plan, (), machine_class=HERE).progress()
    assert (progress.cells, progress.cells_done, progress.tasks) == (12, 0, 0)


@pytest.mark.usefixtures("own_pairs")
def test_a_draft_that_cannot_be_had_is_no_loss_where_none_is_used() -> None:
    assert not plan_of(pairs=("half",), drafters=("ngram",)).unavailable


# --- what is left


def baseline_of(plan: Plan) -> Any:
    return next(cell for cell in plan.cells if cell.run.k == 0)


def test_what_is_measured_here_is_left_out() -> None:
    plan = plan_of(prompts(1, ("code",)))
    (batch,) = plan.batches
    done = [task for task in batch.tasks if task.cell.run.k == 1]
    remaining = Remaining(plan, written(done), machine_class=HERE)
    assert remaining.missing(batch, HERE) == [task for task in batch.tasks if task not in done]
    assert [remaining.is_done(cell) for cell in plan.cells] == [False, True, False]
    assert [remaining.num_missing(cell) for cell in plan.cells] == [2 + NUM_CONTROLS, 0, 2]
    progress = remaining.progress()
    assert (progress.cells_done, progress.tasks_done, progress.tasks) == (1, 2, 9)
    assert progress.seconds_left is None
    for task in remaining.missing(batch, HERE):
        complete = remaining.measured(task, HERE, 2.0)
        assert complete == remaining.is_done(task.cell)
    assert remaining.progress() == dataclasses.replace(progress, cells_done=3, tasks_done=9, seconds_left=0.0)
    assert remaining.missing(batch, HERE) == []


def test_what_was_measured_elsewhere_does_not_count_here() -> None:
    plan = plan_of(prompts(1, ("code",)))
    (batch,) = plan.batches
    remaining = Remaining(plan, [task.key(ELSEWHERE) for task in plan.tasks], machine_class=HERE)
    assert remaining.missing(batch, HERE) == list(batch.tasks)
    assert remaining.progress().cells_done == 0


def test_seconds_left_follow_the_pace_and_the_workers() -> None:
    plan = plan_of(prompts(1, ("code",)), pairs=("tiny_dev", "tiny_cross"))
    first, second = plan.batches
    alone, shared = (Remaining(plan, (), machine_class=HERE) for _ in range(2))
    shared.num_workers = 2
    for remaining in (alone, shared):
        remaining.measured(first.tasks[0], HERE, 3.0)
    # The other pair's pace is not known yet.
    assert alone.progress().seconds_left == 3.0 * (8 + 9)
    assert shared.progress().seconds_left == 3.0 * (8 + 9) / 2
    alone.measured(second.tasks[0], HERE, 1.0)
    assert alone.progress().seconds_left == 3.0 * 8 + 1.0 * 8


def test_larger_drafts_of_the_same_pair_that_are_not_done() -> None:
    plan = plan_of(prompts(1, ("code",)), pairs=("tiny_dev", "tiny_cross"), k=(1, 2, 4, "auto"), k_max=3)
    cells = {(cell.pair_name, cell.run.k): cell for cell in plan.cells}
    done = [task for task in plan.tasks if task.cell == cells["tiny_dev", 4]]
    remaining = Remaining(plan, written(done), machine_class=HERE)
    assert remaining.larger(cells["tiny_dev", 1]) == [cells["tiny_dev", 2], cells["tiny_dev", "auto"]]
    assert remaining.larger(cells["tiny_cross", 2]) == [cells["tiny_cross", 4], cells["tiny_cross", "auto"]]
    assert remaining.larger(cells["tiny_dev", 4]) == []


# --- where workers may be of several machine classes


def test_a_candidate_that_is_complete_anywhere_is_done() -> None:
    plan = plan_of(prompts(1, ("code",)))
    (batch,) = plan.batches
    remaining = Remaining(plan, [task.key(ELSEWHERE) for task in plan.tasks], machine_class=None)
    assert remaining.progress().cells_done == 3
    assert remaining.missing(batch, None) == remaining.missing(batch, HERE) == []


def test_generations_of_two_classes_do_not_make_one_complete_cell() -> None:
    plan = plan_of(prompts(1, ("code",)))
    (batch,) = plan.batches
    own = [task for task in batch.tasks if task.cell.run.k == 1]
    half = [own[0].key(HERE), own[1].key(ELSEWHERE)]
    remaining = Remaining(plan, half, machine_class=None)
    assert not remaining.is_done(own[0].cell)
    assert [task for task in remaining.missing(batch, HERE) if task.cell.run.k == 1] == [own[1]]
    assert [task for task in remaining.missing(batch, ELSEWHERE) if task.cell.run.k == 1] == [own[0]]


def test_a_baseline_is_measured_again_on_the_class_that_a_candidate_needs_it_on() -> None:
    plan = plan_of(prompts(1, ("code",)))
    (batch,) = plan.batches
    elsewhere = [task.key(ELSEWHERE) for task in batch.tasks if task.cell.run.k != 2]
    remaining = Remaining(plan, elsewhere, machine_class=None)
    before = remaining.progress()
    assert (before.cells_done, before.tasks_done) == (2, 7)
    to_do = remaining.missing(batch, HERE)
    assert {task.cell.run.k for task in to_do} == {0, 2}
    assert len(to_do) == 2 + 2 + NUM_CONTROLS
    complete = [task.cell.run.k for task in to_do if remaining.measured(task, HERE, 1.0)]
    assert sorted(complete) == [0, 2]
    after = remaining.progress()
    assert (after.cells_done, after.tasks_done, after.tasks) == (3, 9, 9)
    assert all(remaining.is_done(cell) for cell in plan.cells)


def test_a_cell_begun_elsewhere_is_complete_when_one_class_has_all_of_it() -> None:
    plan = plan_of(prompts(2, ("code",)))
    (batch,) = plan.batches
    own = [task for task in batch.tasks if task.cell.run.k == 1]
    remaining = Remaining(plan, [task.key(ELSEWHERE) for task in own[:3]], machine_class=None)
    assert remaining.num_missing(own[0].cell) == 1
    left = []
    complete = []
    for task in own:
        complete.append(remaining.measured(task, HERE, 1.0))
        left.append(remaining.num_missing(task.cell))
    assert left == [1, 1, 1, 0]  # the class that lacks least counts
    assert complete == [False, False, False, True]
