"""The domain x K matrix of a store says what a comparison of the same generations says, and what is lacking."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specprof.data.prompts import Prompt
from specprof.experiments.matrix import Matrix, chosen, matrices
from specprof.experiments.plan import Plan
from specprof.experiments.records import Generation
from specprof.experiments.results import Contents, read_contents
from specprof.profiling.comparison import compare
from specprof.profiling.metrics import BenchmarkConfig
from specprof.reports.matrix import render
from specprof.reports.tables import to_text
from toy_sweep import ELSEWHERE, FAULTS, HERE, Inline, go_on, plan_of, prompts

ALL_DOMAINS = ("code", "conversation")


def measured(directory: Path, plan: Plan, machine_class: str = HERE) -> Contents:
    go_on(plan, directory, executor=Inline(machine_class), machine_class=machine_class)
    return read_contents(directory, with_rounds=True)


def hashes(contents: Contents) -> set[str]:
    return {config_hash for config_hash, _ in contents.cells}


def all_of(contents: Contents) -> list[Matrix]:
    return matrices(contents, hashes(contents))


def config_of(contents: Contents, generation: Generation) -> BenchmarkConfig:
    return BenchmarkConfig.from_dict(contents.cells[generation.config_hash, generation.machine_class].config)


def changed(contents: Contents, change: Callable[[Generation], Generation | None]) -> Contents:
    found = [change(generation) for generation in contents.generations.values()]
    return dataclasses.replace(contents, generations={g.key: g for g in found if g is not None})


def slowed(generation: Generation, factor: float) -> Generation:
    latencies = [seconds * factor for seconds in generation.result.per_token_latencies]
    total = generation.result.total_time * factor
    result = dataclasses.replace(generation.result, per_token_latencies=latencies, total_time=total)
    return dataclasses.replace(generation, result=result)


def compared(contents: Contents, k: int, temperature: float) -> Any:
    """By hand: all generations of the two cells, in the order they were made, controls left out."""
    ordered = sorted(contents.generations.values(), key=lambda generation: generation.sequence)
    wanted = [g for g in ordered if g.temperature == temperature and g.K in (0, k) and not g.control]
    domains = {generation.prompt_id: generation.domain for generation in wanted}
    return compare([g.result for g in wanted], temperature=temperature, domains=domains)


def test_a_matrix_holds_the_comparisons_of_its_generations(tmp_path: Path) -> None:
    contents = measured(tmp_path, plan_of(prompts(4), k=(4, 1, 2), temperatures=(0.0, 0.8)))
    greedy, sampled = all_of(contents)
    assert (greedy.config.temperature, sampled.config.temperature) == (0.0, 0.8)
    for matrix in (greedy, sampled):
        assert list(matrix.comparisons) == [1, 2, 4]
        assert matrix.domains == ALL_DOMAINS
        assert matrix.missing == ()
        assert (matrix.machine_class, matrix.machine) == (HERE, {"cpu": "toy"})
        for k, comparison in matrix.comparisons.items():
            assert isinstance(k, int)
            by_hand = compared(contents, k, matrix.config.temperature)
            assert comparison == by_hand
            assert comparison.speedup_decode is not None and comparison.speedup_decode.n_prompts == 8
            assert set(comparison.domains) == set(ALL_DOMAINS)
        for domain in matrix.domains:
            speedups = {k: found.domains[domain].speedup_decode for k, found in matrix.comparisons.items()}
            values = {k: speedup.value for k, speedup in speedups.items() if speedup and speedup.value}
            assert matrix.best(domain) == max(values, key=lambda k: values[k])
    assert greedy.comparisons[2] != greedy.comparisons[4]


def test_other_seeds_move_the_intervals_only(tmp_path: Path) -> None:
    contents = measured(tmp_path, plan_of(prompts(5), k=(2,)))
    (first,), (second,) = (matrices(contents, hashes(contents), seed=seed) for seed in (0, 1))
    one, other = first.comparisons[2].speedup_decode, second.comparisons[2].speedup_decode
    assert one is not None and other is not None
    assert one.value == other.value and one.ci != other.ci


def test_drafters_have_matrices_of_their_own(tmp_path: Path) -> None:
    plan = plan_of(prompts(2), drafters=("model", "ngram", "layerskip"), draft_layers=1)
    found = all_of(measured(tmp_path, plan))
    assert [matrix.title for matrix in found] == [
        "tiny_dev  greedy",
        "tiny_dev  greedy  drafter ngram",
        "tiny_dev  greedy  drafter layerskip (1 layers)",
    ]
    baselines = [matrix.comparisons[1].baseline for matrix in found]
    assert baselines[0] is not None and baselines[0] == baselines[1] == baselines[2]


def test_only_what_is_wanted_is_shown(tmp_path: Path) -> None:
    plan = plan_of(prompts(2), k=(1, 2))
    contents = measured(tmp_path, plan)
    one = next(cell for cell in plan.cells if cell.run.k == 2)
    (matrix,) = matrices(contents, {one.config_hash})
    assert list(matrix.comparisons) == [2]
    assert matrix.domains == (one.config.prompt_domain,)
    assert matrix.comparisons[2].baseline is not None  # found without being named
    baselines = {cell.config_hash for cell in plan.cells if cell.run.k == 0}
    assert matrices(contents, baselines) == matrices(contents, set()) == []


def test_another_sweep_of_the_same_cells_is_left_out(tmp_path: Path) -> None:
    small, large = plan_of(prompts(2)), plan_of(prompts(4), repetitions=3)
    whole = measured(tmp_path / "whole", large)
    alone = measured(tmp_path / "alone", small)
    keys = {task.key(HERE) for task in small.tasks}
    (cut,), (only,) = all_of(chosen(whole, keys)), all_of(alone)
    for k in (1, 2):
        one, other = cut.comparisons[k].speedup_decode, only.comparisons[k].speedup_decode
        assert one is not None and other is not None
        assert one.value == pytest.approx(other.value)
        assert cut.comparisons[k].num_repetitions == 2


# --- controls


def test_controls_enter_no_speedup(tmp_path: Path) -> None:
    contents = measured(tmp_path, plan_of(prompts(3), repetitions=3))
    slow = changed(contents, lambda g: slowed(g, 1000) if g.control else g)
    none = changed(contents, lambda g: None if g.control else g)
    (matrix,), (with_slow,), (without,) = all_of(contents), all_of(slow), all_of(none)
    assert matrix.comparisons == with_slow.comparisons == without.comparisons
    assert matrix.drift != with_slow.drift


def test_controls_show_drift(tmp_path: Path) -> None:
    """One prompt, once: only the controls say that the machine became slower."""
    contents = measured(tmp_path, plan_of(prompts(1, ("code",)), repetitions=1))
    last = max(g.sequence for g in contents.generations.values())
    slower = changed(contents, lambda g: slowed(g, 2 if g.sequence > last / 2 else 1))
    (steady,), (drifting,) = all_of(contents), all_of(slower)
    assert steady.drift is not None and abs(steady.drift) < 0.2
    assert drifting.drift == pytest.approx(1.0, abs=0.3)
    alone = changed(slower, lambda g: None if g.control else g)
    assert all_of(alone)[0].drift is None


# --- what is lacking


def test_a_cell_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAULTS, json.dumps({"2": "odd"}))
    (matrix,) = all_of(measured(tmp_path, plan_of(prompts(2))))
    assert list(matrix.comparisons) == [1]
    assert [(missing.domain, missing.k, missing.num_done) for missing in matrix.missing] == [
        ("code", 2, 0),
        ("conversation", 2, 0),
    ]
    for missing in matrix.missing:
        assert missing.num_expected == 4
        assert missing.failure is not None and missing.failure.message.startswith("ZeroDivisionError")
    assert matrix.best("code") == 1


def test_a_pair_that_did_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAULTS, json.dumps({"load": "odd"}))
    go_on(plan_of(prompts(2)), tmp_path)
    (matrix,) = all_of(read_contents(tmp_path, with_rounds=True))
    assert matrix.comparisons == {}
    assert {missing.failure.reason for missing in matrix.missing if missing.failure} == {"load"}
    assert [missing.k for missing in matrix.missing] == [0, 0, 1, 1, 2, 2]
    assert matrix.best("code") is None and matrix.drift is None
    json.dumps(matrix.to_dict(), allow_nan=False)


def test_a_cell_that_is_partly_measured(tmp_path: Path) -> None:
    whole = measured(tmp_path, plan_of(prompts(3), k=(1, 2)))
    partial = changed(
        whole, lambda g: None if g.K == 2 and g.domain == "code" and (g.prompt_id == "code1" or g.repetition) else g
    )
    (matrix,), (complete,) = all_of(partial), all_of(whole)
    (missing,) = matrix.missing
    assert (missing.domain, missing.k, missing.num_done, missing.num_expected) == ("code", 2, 2, 6)
    assert missing.failure is None
    code = matrix.comparisons[2].domains["code"].speedup_decode
    assert code is not None and code.n_prompts == 2
    assert matrix.comparisons[2].domains["conversation"] == complete.comparisons[2].domains["conversation"]
    assert matrix.comparisons[1] == complete.comparisons[1]
    assert any("1 prompt decoded by one arm only" in warning for warning in matrix.comparisons[2].warnings)


def test_a_length_that_was_measured_in_one_domain_only(tmp_path: Path) -> None:
    measured(tmp_path, plan_of(prompts(2), k=(1,)))
    contents = measured(tmp_path, plan_of(prompts(2, ("conversation",)), k=(2,)))
    (matrix,) = all_of(contents)
    assert matrix.domains == ALL_DOMAINS
    assert set(matrix.comparisons[1].domains) == set(ALL_DOMAINS)
    assert set(matrix.comparisons[2].domains) == {"conversation"}
    assert matrix.missing == ()  # nobody asked for it
    assert matrix.best("code") == 1


def test_a_candidate_without_its_baseline(tmp_path: Path) -> None:
    contents = changed(measured(tmp_path, plan_of(prompts(2))), lambda g: g if g.K else None)
    (matrix,) = all_of(contents)
    assert matrix.comparisons[2].speedup_decode is None
    assert matrix.comparisons[2].speculative is not None
    assert matrix.best("code") is None and matrix.drift is None
    json.dumps(matrix.to_dict(), allow_nan=False)


# --- what must not be mixed


def test_machine_classes_have_matrices_of_their_own(tmp_path: Path) -> None:
    plan = plan_of(prompts(2))
    before = all_of(measured(tmp_path, plan))
    here, elsewhere = all_of(measured(tmp_path, plan, ELSEWHERE))
    assert [here] == before
    assert (here.machine_class, elsewhere.machine_class) == (HERE, ELSEWHERE)
    slow = changed(
        read_contents(tmp_path, with_rounds=True), lambda g: slowed(g, 9) if g.machine_class == ELSEWHERE else g
    )
    assert all_of(slow)[0] == here


def reworded() -> list[Prompt]:
    return [Prompt("code0", "code", "another text about code"), *prompts(3, ("code",))[1:]]


def test_of_an_id_that_stood_for_several_texts_the_last_counts(tmp_path: Path) -> None:
    measured(tmp_path, plan_of(prompts(3, ("code",))))
    both = measured(tmp_path, plan_of(reworded()))
    assert len({g.prompt_hash for g in both.generations.values()}) == 4
    (matrix,) = all_of(both)
    (alone,) = all_of(measured(tmp_path / "alone", plan_of(reworded())))
    for k in (1, 2):
        found, wanted = matrix.comparisons[k].speedup_decode, alone.comparisons[k].speedup_decode
        assert found is not None and wanted is not None
        assert found.value == pytest.approx(wanted.value) and found.n_prompts == 3
        match = matrix.comparisons[k].output_matches_baseline
        assert match is not None and match.num_identical == match.num_prompts == 3
    assert matrix.missing == ()


def test_a_text_is_compared_with_the_same_text(tmp_path: Path) -> None:
    """The baseline was measured with another text under this id since: the candidate is not set beside that."""
    measured(tmp_path, plan_of(prompts(3, ("code",)), k=(1, 2)))
    both = measured(tmp_path, plan_of(reworded(), k=(1,)))
    (matrix,) = all_of(both)
    first, second = matrix.comparisons[1], matrix.comparisons[2]
    for comparison, number in ((first, 3), (second, 2)):
        assert comparison.speedup_decode is not None and comparison.speedup_decode.n_prompts == number
        match = comparison.output_matches_baseline
        assert match is not None and match.num_identical == match.num_prompts == number
    (missing,) = matrix.missing
    assert (missing.k, missing.num_done, missing.num_expected) == (2, 4, 6)


def test_auto_up_to_four_is_not_auto_up_to_eight(tmp_path: Path) -> None:
    contents = measured(tmp_path, plan_of(prompts(2), k=(2,)))

    def auto(k_max: int) -> Contents:
        """The cells of K = 2, as if K had been chosen."""
        names = {}
        cells = {}
        for (config_hash, machine_class), cell in contents.cells.items():
            config = BenchmarkConfig.from_dict(cell.config)
            if config.K:
                config = dataclasses.replace(config, K="auto", k_max=k_max)
                cell = dataclasses.replace(cell, config_hash=config.config_hash(), config=config.to_dict())
            names[config_hash] = cell.config_hash
            cells[cell.config_hash, machine_class] = cell

        def renamed(generation: Generation) -> Generation:
            result = dataclasses.replace(generation.result, decoder="SD-Kauto" if generation.K else "AR")
            generation = dataclasses.replace(generation, config_hash=names[generation.config_hash], result=result)
            return slowed(generation, k_max) if generation.K else generation

        return dataclasses.replace(changed(contents, renamed), cells=cells)

    four, eight = auto(4), auto(8)
    both = dataclasses.replace(four, cells=four.cells | eight.cells, generations=four.generations | eight.generations)
    found = {matrix.config.k_max: matrix for matrix in all_of(both)}
    assert set(found) == {4, 8}
    assert [found[4], found[8]] == [*all_of(four), *all_of(eight)]
    first, second = (found[k_max].comparisons["auto"].speedup_decode for k_max in (4, 8))
    assert first is not None and second is not None
    assert first.value == pytest.approx(2 * (second.value or 0))


# --- JSON


def test_the_document_is_plain_json(tmp_path: Path) -> None:
    contents = measured(tmp_path, plan_of(prompts(2), k=(1, 2), temperatures=(0.0, 0.8)))
    for matrix in all_of(contents):
        document = json.loads(json.dumps(matrix.to_dict(), allow_nan=False))
        assert document["domains"] == list(ALL_DOMAINS)
        assert list(document["by_k"]) == ["1", "2"]
        assert document["config"]["K"] is None
        speedup = matrix.comparisons[2].speedup_decode
        assert speedup is not None
        assert document["by_k"]["2"]["speedup_decode"]["value"] == speedup.value
        assert document["best_k"]["code"] == matrix.best("code")
        assert document["baseline_drift"] == matrix.drift


def test_generations_without_a_rate_leave_no_nan(tmp_path: Path) -> None:
    """One token each: no round, nothing to divide by."""
    contents = measured(tmp_path, plan_of(prompts(2), max_new_tokens=1))
    (matrix,) = all_of(contents)
    document = json.dumps(matrix.to_dict(), allow_nan=False)
    assert json.loads(document)["by_k"]["2"]["speedup_decode"]["value"] is None


def test_a_baseline_that_is_not_complete_is_named(tmp_path: Path) -> None:
    plan = plan_of(prompts(2, ("code",)), k=(1,))
    go_on(plan, tmp_path)
    path = tmp_path / "records.jsonl"
    plain = {cell.config_hash for cell in plan.cells if cell.run.k == 0}
    kept = [
        line
        for line in path.read_text().splitlines(keepends=True)
        if not (json.loads(line).get("config_hash") in plain and json.loads(line).get("prompt_id") == "code1")
    ]
    path.write_text("".join(kept))
    (matrix,) = all_of(read_contents(tmp_path, with_rounds=True))
    assert [(missing.k, missing.num_done, missing.num_expected) for missing in matrix.missing] == [(0, 2, 4)]
    shown = to_text(render([matrix]), width=120, color=False)
    assert "code: only 2 of 4 generations of plain decoding were made" in shown
