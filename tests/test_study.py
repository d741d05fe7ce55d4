"""What a report is of: the study that a run is, and those that a sweep's cells make up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import large_run
import sample_store
from large_run import CURVE, RUN, prompts
from sample_store import ELSEWHERE, HERE
from specprof.errors import UsageError
from specprof.experiments.results import read_contents
from specprof.experiments.saved_runs import read_run, saved_runs
from specprof.experiments.study import of_run, of_sweep
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round, RunEnded, RunStarted


def test_a_run_is_a_study_of_one_draft_length(tmp_path: Path) -> None:
    run = read_run(large_run.write(tmp_path, large_run.run(k=3, curve=CURVE)))
    study = of_run(run)
    assert (study.name, study.pair, study.drafter, study.temperature) == (RUN, "tiny_dev", "model", 0.0)
    assert study.title == run.title and study.domains == large_run.DOMAINS and not study.is_sweep
    assert study.domain_of == dict(prompts(6))
    assert list(study.comparisons) == [3] == list(study.results) and study.best_k == 3
    assert study.headline == run.compared() and study.curve == CURVE
    assert study.commands == ("specprof run --pair tiny_dev",)
    assert {result.decoder for result in study.arm(3, baseline=True)} == {"AR"}
    assert {result.decoder for result in study.arm(3, baseline=False)} == {"SD-K3"}
    assert study.arm(4, baseline=False) == ()


@pytest.mark.parametrize(("k", "key"), [(0, 0), ("auto", "auto")])
def test_draft_lengths_of_other_kinds(k: int | str, key: int | str, tmp_path: Path) -> None:
    study = of_run(read_run(large_run.write(tmp_path, large_run.run(k=k))))
    assert list(study.comparisons) == [key] and study.best_k == key
    assert study.headline is not None and study.headline.speculative is not None
    assert study.headline.speculative.decoder == f"SD-K{k}"


def test_a_run_without_a_finished_generation_has_no_headline(tmp_path: Path) -> None:
    study = of_run(read_run(large_run.write(tmp_path, [next(large_run.run())])))
    assert (study.comparisons, study.best_k, study.headline) == ({}, None, None)


@pytest.mark.parametrize("most", [3, None])
def test_texts_that_somebody_interfered_with_are_left_out_and_counted(most: int | None, tmp_path: Path) -> None:
    study = of_run(read_run(large_run.write(tmp_path, large_run.interfered(large_run.run(), most=most))))
    number = 12 if most is None else most
    assert study.caveats == (f"{number} generations paused, stepped through or raced: left out",)
    assert len(study.results[4]) == 12 - number
    # Of the first three, two are one prompt's: what is left of the other is of one arm only.
    assert [comparison.num_prompts for comparison in study.comparisons.values()] == ([] if most is None else [4])


def test_a_sweep_is_a_study_of_each_pair_temperature_and_machine(tmp_path: Path) -> None:
    sample_store.write(
        tmp_path,
        [
            *sample_store.story(),
            *_pair(sample_store.config(0), sample_store.config(2), 20),
            *_pair(sample_store.config(0, temperature=0.8), sample_store.config(4, temperature=0.8), 40),
            sample_store.machine(ELSEWHERE),
            *_pair(sample_store.config(0), sample_store.config(4), 60, ELSEWHERE),
        ],
    )
    contents = read_contents(tmp_path, with_rounds=True)
    studies = of_sweep(contents, "mine")
    assert [(s.temperature, s.machine_class, list(s.comparisons)) for s in studies] == [
        (0.0, HERE, [2, 4]), (0.8, HERE, [4]), (0.0, ELSEWHERE, [4]),
    ]  # fmt: skip
    assert {study.name for study in studies} == {"mine"} and all(study.is_sweep for study in studies)
    assert studies[0].machine == sample_store.machine().machine and studies[0].commands == ("specprof sweep",)
    assert [len(studies[0].arm(k, baseline=True)) for k in (2, 4)] == [2, 2], "the baseline stands beside each"

    [cell] = of_sweep(contents, "one", {sample_store.config(2).config_hash()}, HERE)
    assert list(cell.comparisons) == [2] and cell.headline is not None and cell.headline.baseline is not None
    assert of_sweep(contents, "none", {sample_store.config(2).config_hash()}, ELSEWHERE) == []


def _pair(baseline: Any, candidate: Any, sequence: int, machine_class: str = HERE) -> list[Any]:
    records: list[Any] = []
    for asked in (baseline, candidate):
        records.append(sample_store.cell(asked, machine_class))
        records += [
            sample_store.generation(sequence + len(records) + prompt, asked, prompt, machine_class=machine_class)
            for prompt in range(2)
        ]
    return records


# Files that are not quite right


def test_a_run_is_complete_however_long_its_last_line_is(tmp_path: Path) -> None:
    """Of every prompt whose texts part it says why."""
    difference = {"prompt_id": "code_000", "position": 3, "verdict": "tie", "gap": 1e-6, "tolerance": 1e-4}
    *events, ended = large_run.run(prompts(2))
    assert isinstance(ended, RunEnded)
    for number in (0, 1, 60, 2000):
        last = dataclasses.replace(ended, differences=(difference,) * number)
        path = large_run.write(tmp_path, [*events, last])
        [run] = saved_runs(tmp_path)
        assert run.complete, number
        with open(path, "a", encoding="utf-8") as file:
            file.write('{"event":"Rou')
        [run] = saved_runs(tmp_path)
        assert not run.complete
        assert len(read_run(path).differences) == number


def test_a_run_of_which_nothing_but_the_beginning_was_written(tmp_path: Path) -> None:
    large_run.write(tmp_path, [next(large_run.run(prompts(400)))])
    [run] = saved_runs(tmp_path)
    assert not run.complete and run.num_prompts == 400


def _config(**changes: Any) -> Callable[[Event], Event]:
    def change(event: Event) -> Event:
        return dataclasses.replace(event, config=event.config | changes) if isinstance(event, RunStarted) else event

    return change


def _second_decoder(event: Event) -> Event:
    if isinstance(event, Prefilled | Round | PromptEnded) and (event.decoder, event.prompt_id) == ("SD-K4", "code_001"):
        return dataclasses.replace(event, decoder="SD-K9")
    return event


def _probabilities(event: Event) -> Event:
    return dataclasses.replace(event, target_prob=(0.5,)) if isinstance(event, Round) and event.k else event


def _end(**changes: Any) -> Callable[[Event], Event]:
    return lambda event: dataclasses.replace(event, **changes) if isinstance(event, PromptEnded) else event


def _negative(event: Event) -> Event:
    """Of a run that notes its probabilities."""
    if not isinstance(event, Round) or not event.k:
        return event
    return dataclasses.replace(event, alpha=(-0.5,) * len(event.draft_tokens))


def _differences(*values: Any) -> Callable[[Event], Event]:
    return lambda event: dataclasses.replace(event, differences=values) if isinstance(event, RunEnded) else event


@pytest.mark.parametrize(
    "change",
    [
        _config(k="many"),
        _config(k=None),
        _config(prompts=[3]),
        _config(pair=[]),
        _config(cost_curve={"draft_seconds": []}),
        _config(cost_curve={key: [] for key in CURVE.to_dict()}),
        _config(cost_curve=CURVE.to_dict() | {"verify_seconds": [0.0] * 5}),
        _config(cost_curve=CURVE.to_dict() | {"rest_seconds": [-1.0] * 5}),
        _config(cost_curve=CURVE.to_dict() | {"num_rounds": ["many"] * 5}),
        _config(command=["specprof"]),
        _config(caveats="none"),
        _second_decoder,
        _probabilities,
        _negative,
        _differences({"prompt_id": "code_000"}),
        _differences({"prompt_id": "code_000", "position": "first"}),
        _end(token_texts={"1": 2}),
        _end(energy_joules="much"),
        _end(draft_matches=[0, 1]),
    ],
)
def test_a_damaged_run_is_refused(change: Callable[[Event], Event], tmp_path: Path) -> None:
    path = large_run.write(tmp_path, [change(event) for event in large_run.run(curve=CURVE)])
    with pytest.raises(UsageError, match="damaged"):
        of_run(read_run(path))


def test_a_cost_that_is_endless_is_refused(tmp_path: Path) -> None:
    """JSON has no infinity, but 1e999 reads as one."""
    path = large_run.write(tmp_path, large_run.run(cost_curve=CURVE.to_dict() | {"rest_seconds": ["R"] * 5}))
    path.write_text(path.read_text().replace('"R"', "1e999"))
    with pytest.raises(UsageError, match="damaged"):
        read_run(path)


def test_equal_models_agree_by_no_more_than_all(tmp_path: Path) -> None:
    """Sums of many rounded probabilities come out above 1; what is predicted from them is of an alpha of 1."""

    def agreed(event: Event) -> Event:
        if isinstance(event, Round) and event.k:
            return dataclasses.replace(event, alpha=(1.0000003,) * len(event.draft_tokens))
        return event

    events = map(agreed, large_run.run(temperature=1.0, accepted=1.0, curve=CURVE))
    found = of_run(read_run(large_run.write(tmp_path, list(events)))).headline
    assert found is not None and found.acceptance is not None and found.acceptance.alpha == 1.0
    assert found.predictions[-1].tokens_per_round_from_alpha == 5.0
