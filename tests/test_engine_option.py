"""``--engine`` and ``--compile``: what decodes, what is refused, and what is said and recorded of it."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import QUICK, Outcome, command, isolate, ok
from specprof.data.prompts import builtin
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import DraftModel, NGramLookup
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.decoding.static import StaticDecoder
from specprof.errors import UsageError
from specprof.experiments.arms import Arms, load_arms
from specprof.experiments.bench import Bench
from specprof.experiments.config import RunConfig
from specprof.experiments.cost_survey import survey_costs
from specprof.experiments.engine import Engine, choose_engine
from specprof.experiments.executors import Ready
from specprof.experiments.plan import Batch, make_plan
from specprof.experiments.run import encode_prompts, measure, prepare_rounds, warm_up
from specprof.experiments.sweep_config import SweepConfig
from specprof.models import loader
from specprof.models.registry import get_pair
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.events import Event, Round, RunStarted
from specprof.profiling.metrics import fold
from tiny_models import tiny_gpt2, tiny_gpt_neox, tiny_tokenizer

USAGE = 2

load_model_once = functools.cache(loader.load_model)


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    monkeypatch.setattr(loader, "load_model", load_model_once)


def run(*arguments: str) -> Outcome:
    return ok("run", *QUICK, "--no-save", "--device", "cpu", *arguments)


def texts(events: list[Event]) -> dict[str, list[int]]:
    return {result.decoder: result.generated_ids for result in fold(events)}


def config(**changes: Any) -> RunConfig:
    quick = RunConfig(get_pair("tiny_dev"), k=2, max_new_tokens=12, repetitions=1, deterministic=True, device="cpu")
    return dataclasses.replace(quick, **changes)


@functools.cache
def static_arms() -> Arms:
    return load_arms(config(engine="static"))


# What decodes


def test_the_static_engine_writes_the_text_of_the_default_one() -> None:
    usual, static = run("--jsonl").events, run("--jsonl", "--engine", "static").events
    assert texts(static) == texts(usual) and set(texts(usual)) == {"AR", "SD-K4"}
    recorded = [events[0].config for events in (usual, static) if isinstance(events[0], RunStarted)]
    assert [c["engine"] for c in recorded] == ["auto", "static"]
    assert [c["engine_used"] for c in recorded] == ["eager", "static"]
    assert [c["capture_seconds"] for c in recorded] == [None, None]  # nothing was captured, which took no 0 seconds


def test_what_ran_is_in_the_document_and_in_the_table() -> None:
    assert run("--json", "--engine", "static").document["engine"] == "static"
    assert run("--json", "--engine", "eager").document["engine"] == "eager"
    assert "float32, own forward, static engine" in run("--engine", "static").out
    assert "engine" not in run("--engine", "eager").out


def test_a_saved_run_says_what_ran() -> None:
    ok("run", *QUICK, "--device", "cpu", "--engine", "static")
    (kept,) = Path("results").glob("*.jsonl")
    assert "float32, own forward, static engine" in ok("results", "show", kept.stem).out


@pytest.mark.parametrize("k", ["0", "auto"])
def test_every_way_to_choose_k(k: str) -> None:
    document = run("--engine", "static", "--k", k, "--json").document if k == "0" else adaptive()
    assert document["engine"] == "static" and document["output_matches_baseline"]["num_identical"] == 1


def adaptive() -> dict[str, Any]:
    quick = [flag for flag in QUICK if flag != "--deterministic"]
    outcome = ok("run", *quick, "--no-save", "--device", "cpu", "--engine", "static", "--k", "auto", "--json")
    return outcome.document


def test_what_rounds_cost_is_surveyed_on_the_engine_that_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same decoder: nothing is captured twice."""
    arms = static_arms()
    monkeypatch.setattr("specprof.experiments.cost_survey.ROUNDS_EACH", 2)
    before = arms.speculative.length
    curve = survey_costs(config(), arms, encode_prompts(config(), arms, list(builtin().take(1))))
    assert curve is not None and [row["k"] for row in curve.by_k()] == [0, 1, 2]
    assert arms.speculative.length is before


def test_verify_puts_the_engine_to_the_test() -> None:
    flags = ("-n", "2", "--max-new-tokens", "12", "--device", "cpu", "--deterministic", "--engine", "static")
    greedy = ok("verify", *flags, "--temperature", "0", "--json").document
    assert greedy["verdict"] == "passed" and greedy["config"]["engine_used"] == "static"
    assert "static engine" in ok("verify", *flags, "--temperature", "0.8").out


def test_rounds_are_made_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every slab length that the prompts take, the longest too."""
    arms = load_arms(config(engine="static"))
    prompts = encode_prompts(config(), arms, list(builtin().take(2)))
    long = dataclasses.replace(prompts[0], ids=prompts[0].ids * (600 // len(prompts[0].ids) + 1))
    prompts.append(long)
    warm_up(config(warmup=1), arms, prompts)
    made: list[int] = []
    monkeypatch.setattr("specprof.decoding.static_lane.Lane.make_phases", lambda lane, k: made.append(k))
    assert list(measure(config(), arms, prompts, "run"))
    assert not made

    # And the test sees it where they aren't.
    fresh = load_arms(config(engine="static"))
    with pytest.raises(KeyError):
        prepare_rounds(config(), fresh, prompts, (fresh.speculative,))
    assert made


def test_a_decoder_that_is_eager_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = load_arms(config())
    assert isinstance(arms.baseline, AutoregressiveDecoder) and isinstance(arms.speculative, SpeculativeDecoder)
    monkeypatch.setattr(AutoregressiveDecoder, "events", None)
    prepare_rounds(config(), arms, encode_prompts(config(), arms, list(builtin().take(1))), (arms.baseline,))


# A sweep


def static_batch(**changes: Any) -> Batch:
    asked = SweepConfig(k=(2,), max_new_tokens=8, repetitions=1, num_prompts=1, deterministic=True, device="cpu")
    asked = asked.with_flags(domains="code,conversation", **changes)
    prompts = [builtin().get_by_domain(domain)[0] for domain in ("code", "conversation")]
    (batch,) = make_plan(asked, prompts).batches
    return batch


def test_a_sweep_decodes_with_the_engine_and_records_it() -> None:
    tokens = {}
    for engine in ("eager", "static"):
        bench, batch = Bench(), static_batch(engine=engine)
        ready = bench.prepare(batch.job(batch.cells))
        assert isinstance(ready, Ready) and not ready.refused
        assert set(ready.engines) == {cell.config_hash for cell in batch.cells}
        assert set(ready.engines.values()) == {engine}
        tokens[engine] = [
            next(fold(bench.generate(cell.config_hash, cell.prompts[0].prompt_id, 0))).generated_ids
            for cell in batch.cells
        ]
    assert tokens["static"] == tokens["eager"] and len(tokens["eager"]) == 4


def test_one_decoder_serves_all_domains_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has captured for one serves the others."""
    made = []
    usual = StaticDecoder.__init__

    def counted(decoder: StaticDecoder, *arguments: Any, **options: Any) -> None:
        made.append(decoder)
        usual(decoder, *arguments, **options)

    monkeypatch.setattr(StaticDecoder, "__init__", counted)
    batch = static_batch(engine="static")
    Bench().prepare(batch.job(batch.cells))
    assert len(batch.cells) == 4 and len(made) == 4  # two arms of each of two runs: a run's other arm is not decoded


def test_cells_of_other_engines_are_other_cells() -> None:
    hashes = [{cell.config_hash for cell in static_batch(**asked).cells} for asked in ({}, {"engine": "static"})]
    assert hashes[0].isdisjoint(hashes[1])
    assert hashes[0] == {cell.config_hash for cell in static_batch(engine="auto").cells}  # finished ones stay finished


# What is chosen where nothing is asked for


def on_cuda(**changes: Any) -> ModelWrapper:
    """A model that says it is on a GPU; it is never run."""
    return ModelWrapper(copy.deepcopy(tiny_gpt2()), device="cuda", **changes)


def test_auto_is_eager_on_a_cpu_and_graphs_on_cuda() -> None:
    here = ModelWrapper(copy.deepcopy(tiny_gpt2()))
    assert choose_engine(config(), here, [DraftModel(here)]) == Engine()
    target = on_cuda()
    chosen = choose_engine(config(device=None), target, [DraftModel(on_cuda())])
    assert (chosen.name, chosen.asked_for, chosen.why_not_graph) == ("graph", False, None)
    asked = choose_engine(config(device=None, engine="graph", compile=True), target, [DraftModel(on_cuda())])
    assert (asked.name, asked.asked_for, asked.compiles) == ("graph", True, True)


def test_auto_says_why_a_pair_on_cuda_gets_no_graphs() -> None:
    target = on_cuda()
    for drafter, reason in (
        (NGramLookup(target.vocab_size, torch.device("cpu")), "prompt lookup"),
        (DraftModel(target, threshold=0.5), "threshold"),
        (DraftModel(on_cuda(forward="hf")), "Hugging Face's forward"),
    ):
        chosen = choose_engine(config(device=None), target, [drafter])
        assert chosen.name == "eager" and chosen.why_not_graph is not None and reason in chosen.why_not_graph


def test_a_capture_that_failed_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Without a GPU there are no graphs, which is as good a failure as any."""
    arms = static_arms()
    engine = Engine("graph")
    speculative = engine.speculating(
        arms.target, arms.drafter, 2, detail=False, synthetic_acceptance=None
    )  # fmt: skip
    graphs = dataclasses.replace(arms, engine=engine, baseline=engine.plain(arms.target), speculative=speculative)
    prepare_rounds(config(), graphs, [], ())
    assert "no CUDA graphs: CUDA graphs need a CUDA device" in caplog.text
    described = graphs.describe_engine()
    assert described == {
        "engine_used": "static",
        "why_not_graph": "CUDA graphs need a CUDA device",
        "capture_seconds": None,
        "attention": {},
    }


# What is refused


REFUSED: dict[str, tuple[tuple[str, ...], str, str]] = {
    "engine": (("--engine", "warp"), "there is no engine 'warp'", "auto, eager, static, graph"),
    "compile": (("--compile",), "--compile needs --engine static or graph", "leave it out"),
    "compile eager": (("--compile", "--engine", "eager"), "--compile needs --engine static or graph", "leave it out"),
    "graph": (("--engine", "graph", "--device", "cpu"), "CUDA graphs need a CUDA device", "--engine static"),
    "forward": (("--engine", "static", "--forward", "hf"), "excludes --forward hf: it needs our", "--engine auto"),
    "device map": (("--engine", "static", "--device-map", "auto"), "excludes --device-map auto", "--engine auto"),
    "drafter": (("--engine", "static", "--drafter", "ngram"), "excludes --drafter ngram", "--engine auto"),
    "threshold": (("--engine", "static", "--draft-threshold", "0.5"), "excludes --draft-threshold", "--engine auto"),
    "method": (("--engine", "static", "--vocab-method", "slem"), "excludes --vocab-method slem", "--engine auto"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("subcommand", ["run", "verify"])
def test_an_engine_that_cannot_be_meant(subcommand: str, case: str) -> None:
    arguments, error, hint = REFUSED[case]
    if "slem" in arguments:
        arguments = (*arguments, "--temperature", "0")
    outcome = command(subcommand, *arguments)
    assert outcome.code == USAGE and not outcome.out
    assert error in outcome.told[0] and hint in outcome.told[1]


def test_no_graphs_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever device is chosen where none is named; before a model is read."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("specprof.models.loader.load_model", None)
    outcome = command("run", *QUICK, "--engine", "graph")
    assert outcome.code == USAGE and outcome.told[0] == "CUDA graphs need a CUDA device"


def test_a_pair_of_another_vocabulary_cannot_be_static() -> None:
    outcome = command("run", *QUICK, "--device", "cpu", "--pair", "tiny_cross", "--engine", "static")
    assert outcome.code == USAGE
    assert "--engine static can't run this pair: draft and target have different vocabularies" in outcome.told[0]
    assert "--engine auto" in outcome.told[1]


def test_a_family_without_our_forward_cannot_be_static() -> None:
    target = ModelWrapper(tiny_gpt_neox(), tiny_tokenizer())
    with pytest.raises(UsageError, match=r"can't run this pair: .* runs on Hugging Face's forward"):
        choose_engine(config(engine="static"), target, [DraftModel(target)])


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"engine": "warp"}, "--engine 'warp' is not a choice"),
        ({"compile": True}, "--compile needs --engine"),
        ({"engine": "static", "drafters": "model,ngram"}, "--engine static excludes --drafter ngram"),
        ({"engine": "graph", "device": "cpu"}, "CUDA graphs need a CUDA device"),
    ],
)
def test_a_sweep_refuses_the_same(flags: dict[str, Any], error: str) -> None:
    with pytest.raises(UsageError) as caught:
        SweepConfig().with_flags(**flags)
    assert error in caught.value.message


def test_a_sweep_s_file_can_name_it() -> None:
    Path("sweep.yaml").write_text("engine: static\ncompile: true\n")
    asked = SweepConfig.load("sweep.yaml")
    assert (asked.engine, asked.compile) == ("static", True)
    runs = list(asked.run_configs(get_pair("tiny_dev")))
    assert {(each.engine, each.compile) for each in runs} == {("static", True)}
    Path("wrong.yaml").write_text("k: 2\nengine: warp\n")
    with pytest.raises(UsageError, match=r"wrong.yaml, line 2: engine"):
        SweepConfig.load("wrong.yaml")


def test_the_screen_takes_the_same_options() -> None:
    outcome = command("tui", "--engine", "warp")
    assert outcome.code == USAGE and "there is no engine 'warp'" in outcome.told[0]


def test_rounds_of_the_static_engine_are_whole() -> None:
    """K is never shortened, so no round's shape depends on how much text is left."""
    arms = static_arms()
    prompt = encode_prompts(config(), arms, list(builtin().take(1)))
    rounds = [event for event in measure(config(), arms, prompt, "run") if isinstance(event, Round)]
    assert {round.k for round in rounds if round.decoder != "AR"} == {2}
