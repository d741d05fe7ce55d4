"""A worker's side with real models: it says what `specprof run` says, cell by cell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import isolate, ok
from specprof.data.prompts import Prompt, builtin
from specprof.errors import SpecprofError
from specprof.experiments import arms, run
from specprof.experiments.bench import Bench
from specprof.experiments.config import RunConfig
from specprof.experiments.executors import LocalExecutor, Ready
from specprof.experiments.plan import Cell, Plan
from specprof.models.registry import get_pair
from specprof.profiling import machine
from specprof.profiling.metrics import GenerationResult, fold
from toy_sweep import go_on, keys, lines, plan_of

LENGTH = 16


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Preparing a deterministic cell is for the whole life of a worker's process."""
    yield
    torch.use_deterministic_algorithms(False)


def some(number: int = 1) -> list[Prompt]:
    dataset = builtin()
    return [prompt for domain in ("code", "conversation") for prompt in dataset.get_by_domain(domain)[:number]]


def plan(chosen: list[Prompt] | None = None, **settings: Any) -> Plan:
    defaults: dict[str, Any] = {
        "max_new_tokens": LENGTH, "device": "cpu", "warmup": 0, "deterministic": True, "repetitions": 1, "k": (2,)
    }  # fmt: skip
    return plan_of(some() if chosen is None else chosen, **(defaults | settings))


def prepare(bench: Bench, of: Plan, cells: list[Cell] | None = None) -> Ready:
    (batch,) = of.batches
    return bench.prepare(batch.job(batch.cells if cells is None else cells))


def generate(bench: Bench, cell: Cell, prompt_id: str, repetition: int = 0) -> GenerationResult:
    (result,) = fold(bench.generate(cell.config_hash, prompt_id, repetition))
    return result


def cell_of(of: Plan, k: int | str, domain: str = "code", **config: Any) -> Cell:
    (cell,) = (
        cell
        for cell in of.cells
        if cell.run.k == k
        and cell.config.prompt_domain == domain
        and all(getattr(cell.run, name) == value for name, value in config.items())
    )
    return cell


@pytest.fixture(scope="module")
def bench() -> Bench:
    """Keeps the packaged pair loaded from test to test."""
    return Bench()


@pytest.fixture(scope="module")
def crossed() -> Bench:
    """The same with a draft of another vocabulary."""
    return Bench()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_cell_says_what_a_run_says(
    bench: Bench, temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(tmp_path, monkeypatch)
    of = plan(builtin().get_by_domain("code")[:2], temperatures=(temperature,), repetitions=2, seed=5)
    assert prepare(bench, of).refused == {}
    found = {
        (result.decoder, result.prompt_id, result.repetition): result
        for cell in of.cells
        for prompt in cell.prompts
        for repetition in range(2)
        for result in [generate(bench, cell, prompt.prompt_id, repetition)]
    }
    outcome = ok(
        *("run", "--pair", "tiny_dev", "--k", "2", "--domain", "code", "-n", "2", "--reps", "2"),
        *("--max-new-tokens", str(LENGTH), "--temperature", str(temperature), "--seed", "5"),
        *("--warmup", "0", "--deterministic", "--device", "cpu", "--jsonl", "--results-dir", str(tmp_path)),
    )
    said = {(result.decoder, result.prompt_id, result.repetition): result for result in fold(outcome.events)}
    assert set(said) == set(found) and len(said) == 2 * 2 * 2
    for key, result in said.items():
        assert found[key].generated_ids == result.generated_ids
        assert found[key].finish_reason == result.finish_reason
        assert found[key].num_prompt_tokens == result.num_prompt_tokens
        drafted = [(round.draft_tokens, round.num_accepted, round.cut) for round in result.rounds]
        assert [(round.draft_tokens, round.num_accepted, round.cut) for round in found[key].rounds] == drafted
    texts = {tuple(result.generated_ids) for (decoder, *_), result in said.items() if decoder == "SD-K2"}
    assert len(texts) == (2 if temperature == 0 else 4)


def test_every_drafter_returns_what_the_target_returns(bench: Bench) -> None:
    drafters = ("model", "ngram", "layerskip", "self", "random")
    of = plan(some()[:1], k=(3,), drafters=drafters, draft_layers=1, ignore_eos=True)
    ready = prepare(bench, of)
    assert ready.refused == {}
    assert ready.models["draft"]["model"] == "tiny_dev/draft"
    for cell in of.cells:
        (prompt,) = cell.prompts
        plain = generate(bench, cell_of(of, 0, cell.config.prompt_domain), prompt.prompt_id)
        result = generate(bench, cell, prompt.prompt_id)
        assert result.generated_ids == plain.generated_ids
        assert result.decoder == cell.config.decoder_label
        assert len(result.generated_ids) == LENGTH
        if cell.run.drafter == "self":
            assert result.acceptance_rate == 1.0
        if cell.run.k == 0:
            assert result.acceptance_rate is None


def test_k_auto_is_one_cell(bench: Bench) -> None:
    of = plan(some()[:1], k=("auto", 2), k_max=3, deterministic=False, ignore_eos=True, max_new_tokens=32, warmup=1)
    assert prepare(bench, of).refused == {}
    cell = cell_of(of, "auto")
    result = generate(bench, cell, cell.prompts[0].prompt_id)
    assert result.decoder == "SD-Kauto"
    assert {round.k for round in result.rounds} <= {0, 1, 2, 3}
    assert 1 <= max(len(round.draft_tokens) for round in result.rounds) <= 3
    assert len(result.generated_ids) == 32
    fixed = generate(bench, cell_of(of, 2), cell.prompts[0].prompt_id)
    assert {round.k for round in fixed.rounds if not round.cut} == {2}


def test_models_are_loaded_once_for_all_jobs_of_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[str, str]] = []

    def load_models(config: RunConfig, *rest: Any) -> Any:
        loaded.append((config.pair.name, config.drafter))
        return original(config, *rest)

    original = arms.load_models
    monkeypatch.setattr("specprof.experiments.bench.load_models", load_models)
    bench, of = Bench(), plan(some()[:1], temperatures=(0.0, 0.8))
    prepare(bench, of)
    prepare(bench, of, [cell_of(of, 2, temperature=0.8)])
    assert loaded == [("tiny_dev", "model")]
    ready = prepare(bench, plan(some()[:1], pairs=("tiny_cross",), drafters=("ngram",)))
    assert loaded == [("tiny_dev", "model"), ("tiny_cross", "ngram")]
    assert set(ready.models) == {"target"}  # what nobody drafts with is not loaded


def test_what_was_prepared_before_is_gone(bench: Bench) -> None:
    of = plan(some()[:1], temperatures=(0.0, 0.8))
    first, second = cell_of(of, 2, temperature=0.0), cell_of(of, 2, temperature=0.8)
    prepare(bench, of, [first])
    prepare(bench, of, [second])
    generate(bench, second, first.prompts[0].prompt_id)
    with pytest.raises(KeyError):
        generate(bench, first, first.prompts[0].prompt_id)


# --- what can't be run


def test_a_cell_that_cannot_be_run_is_refused_by_itself(bench: Bench) -> None:
    of = plan(k=(2, 5000))
    ready = prepare(bench, of)
    assert set(ready.refused) == {cell_of(of, 5000, domain).config_hash for domain in ("code", "conversation")}
    for why in ready.refused.values():
        assert (why.reason, why.message.split(" is not less")[0]) == ("error", "k = 5000")
        assert why.hint
    assert generate(bench, cell_of(of, 2), cell_of(of, 2).prompts[0].prompt_id).generated_ids


def test_a_cell_whose_warm_up_needs_too_much_memory_is_refused_by_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warm_up(config: RunConfig, *rest: Any, **named: Any) -> None:
        if config.k == 4:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory")
        original(config, *rest, **named)

    original = run.warm_up
    monkeypatch.setattr("specprof.experiments.bench.warm_up", warm_up)
    of = plan(k=(2, 4))
    ready = prepare(bench, of)
    assert {why.reason for why in ready.refused.values()} == {"out of memory"}
    assert set(ready.refused) == {cell_of(of, 4, domain).config_hash for domain in ("code", "conversation")}
    assert generate(bench, cell_of(of, 2), cell_of(of, 2).prompts[0].prompt_id).generated_ids


@pytest.mark.parametrize("pair", ["tiny_dev", "tiny_cross"])
def test_a_prompt_that_is_too_long_fails_where_it_is_measured(bench: Bench, crossed: Bench, pair: str) -> None:
    """Not while another domain's cells are warmed up with it, or a method is chosen."""
    long = Prompt("long", "code", "word " * 5000)
    (short,) = (prompt for prompt in some() if prompt.domain == "conversation")
    of = plan([long, short], pairs=(pair,), warmup=1)
    bench = crossed if pair == "tiny_cross" else bench
    assert prepare(bench, of).refused == {}
    with pytest.raises(SpecprofError, match="prompt long has"):
        generate(bench, cell_of(of, 2), "long")
    assert generate(bench, cell_of(of, 2, "conversation"), short.prompt_id).generated_ids


def test_prompts_that_are_all_too_long_are_refused(bench: Bench) -> None:
    ready = prepare(bench, plan([Prompt("long", "code", "word " * 5000)], warmup=1))
    assert len(ready.refused) == 2
    assert all("prompt long has" in why.message for why in ready.refused.values())


# --- a draft of another vocabulary


def test_the_method_is_chosen_once_for_all_cells_and_again_the_same(crossed: Bench) -> None:
    of = plan(pairs=("tiny_cross",), max_new_tokens=8)
    ready = prepare(crossed, of)
    drafting = [cell for cell in of.cells if cell.run.k]
    methods = {ready.vocab_methods[cell.config_hash] for cell in drafting}
    assert len(methods) == 1 and methods <= {"tli", "slem"}
    assert ready.vocab_methods[cell_of(of, 0).config_hash] is None
    assert any("vocab method" in note for note in ready.notes)
    plain = generate(crossed, cell_of(of, 0), drafting[0].prompts[0].prompt_id)
    assert generate(crossed, drafting[0], drafting[0].prompts[0].prompt_id).generated_ids == plain.generated_ids
    # What is left of an interrupted sweep are the cells of one domain: it has to come out as it did.
    again = prepare(crossed, of, [cell_of(of, 2, "conversation")])
    assert set(again.vocab_methods.values()) == methods
    assert [note for note in again.notes if "trial" in note] == [note for note in ready.notes if "trial" in note]


# --- whole sweeps


def test_a_worker_says_what_it_is_and_what_it_holds(bench: Bench) -> None:
    ready = prepare(bench, plan(some()[:1]))
    assert ready.machine_class == machine.machine_class(ready.machine) == machine.machine_class(machine.describe())
    assert ready.models["target"]["model"] == get_pair("tiny_dev").target_model_id


@pytest.mark.slow
def test_a_real_sweep_is_complete_and_knows_it(tmp_path: Path) -> None:
    here = machine.machine_class(machine.describe_apart())
    of = plan(temperatures=(0.0, 0.8), drafters=("model", "ngram"))
    remaining = go_on(of, tmp_path, executor=LocalExecutor(), machine_class=here)
    assert remaining.failures == {}
    assert keys(tmp_path) == [task.key(here) for task in of.tasks]
    (described,) = lines(tmp_path, "machine")
    assert machine.machine_class(described["machine"]) == here
    texts: dict[tuple[float, str], set[tuple[int, ...]]] = {}
    for line in lines(tmp_path, "generation"):
        if line["temperature"] == 0:
            texts.setdefault((0.0, line["prompt_id"]), set()).add(tuple(line["generated_ids"]))
    assert all(len(said) == 1 for said in texts.values())
    assert go_on(of, tmp_path, executor=LocalExecutor(make_bench="nothing:here"), machine_class=here).failures == {}
