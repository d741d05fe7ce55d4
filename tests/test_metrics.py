"""One generation's figures, the identity of a configuration, and acceptance, against hand-computed cases."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specprof.profiling.acceptance import AcceptanceCounts
from specprof.profiling.cost_model import expected_tokens_by_position
from specprof.profiling.events import Prefilled, PromptEnded, Round, RunEnded, RunStarted
from specprof.profiling.metrics import BenchmarkConfig, GenerationResult, fold

SPECULATIVE: dict[str, Any] = {
    "acceptance_rate": 0.78,
    "tokens_per_step": 4.12,
    "num_speculation_rounds": 18,
    "draft_time_total_ms": 120.5,
    "verify_time_total_ms": 310.2,
    "sampling_time_total_ms": 9.3,
}


def result(**changes: Any) -> GenerationResult:
    fields: dict[str, Any] = {
        "generated_ids": [1, 2, 3, 4, 5],
        "per_token_latencies": [0.08, 0.09, 0.08, 0.10, 0.09],
        "total_time": 0.44,
        "peak_memory_mb": 1823.0,
        "time_to_first_token": 0.08,
    }
    return GenerationResult(**(fields | changes))


def config(**changes: Any) -> BenchmarkConfig:
    fields: dict[str, Any] = {
        "model_pair_name": "gpt2_dev",
        "K": 4,
        "temperature": 0.0,
        "max_new_tokens": 200,
        "prompt_domain": "code",
        "seed": 42,
    }
    return BenchmarkConfig(**(fields | changes))


def make_round(drafted: int, accepted: int, *, index: int = 0, **changes: Any) -> Round:
    fields: dict[str, Any] = {
        "prompt_id": "p",
        "decoder": "SD-K4",
        "repetition": 0,
        "index": index,
        "draft_tokens": tuple(range(drafted)),
        "num_accepted": accepted,
        "emitted_tokens": (*range(accepted), 99),
        "draft_seconds": 0.004,
        "verify_seconds": 0.010,
        "sample_seconds": 0.001,
        "overhead_seconds": 0.002,
    }
    return Round(**(fields | changes))


# GenerationResult


def test_documented_properties() -> None:
    r = result(**SPECULATIVE)
    assert r.tokens_per_second == pytest.approx(5 / 0.44)
    assert (r.num_tokens, r.is_speculative) == (5, True)
    for q, value in ((50, r.latency_p50), (95, r.latency_p95), (99, r.latency_p99)):
        assert value == pytest.approx(np.percentile(r.per_token_latencies, q))


def test_summary_lines() -> None:
    assert (
        result(**SPECULATIVE).summary()
        == "SD  | 5 tok | 11.4 tok/s | p50=90ms p95=98ms | mem=1823MB | accept=0.78 rounds=18"
    )
    ar = result(generated_ids=list(range(50)), total_time=50 / 63.2, per_token_latencies=[0.015] * 49, peak_memory_mb=0)
    assert ar.summary() == "AR  | 50 tok | 63.2 tok/s | p50=15ms p95=15ms | mem=0MB"


def test_summary_below_a_millisecond_is_not_zero() -> None:
    assert "p50=0.42ms" in result(per_token_latencies=[0.00042]).summary()


def test_nothing_generated_is_undefined_and_not_zero() -> None:
    r = result(generated_ids=[], per_token_latencies=[], total_time=0.0)
    assert r.tokens_per_second is r.latency_p50 is r.latency_p99 is None
    assert (r.num_tokens, r.num_decode_tokens, r.decode_seconds) == (0, 0, 0)
    assert r.summary() == "AR  | 0 tok | - tok/s | p50=- p95=- | mem=1823MB"


def test_zero_time_has_no_speed() -> None:
    assert result(total_time=0.0).tokens_per_second is None


def test_one_round_is_every_percentile() -> None:
    r = result(per_token_latencies=[0.25])
    assert r.latency_p50 == r.latency_p95 == r.latency_p99 == 0.25


def test_speculative_although_nothing_was_ever_proposed() -> None:
    r = result(num_speculation_rounds=3)
    assert r.is_speculative
    assert r.summary().endswith("accept=- rounds=3")


def test_json_line_round_trip() -> None:
    r = result(**SPECULATIVE, prompt_id="code_000", decoder="SD-K4", finish_reason="stop", rounds=(make_round(4, 2),))
    line = r.to_json_line()
    assert line.endswith("\n") and line.count("\n") == 1
    assert "rounds" not in json.loads(line)
    assert GenerationResult.from_dict(json.loads(line)) == r


def test_json_leaves_no_undefined_number_as_nan() -> None:
    with pytest.raises(ValueError):
        result(total_time=math.nan).to_json_line()


def test_from_dict_ignores_what_it_does_not_know() -> None:
    record = result().to_dict() | {"colour": "green", "rounds": [1]}
    assert GenerationResult.from_dict(record) == result()


@pytest.mark.parametrize("name", ["generated_ids", "total_time", "time_to_first_token"])
def test_from_dict_names_what_is_missing(name: str) -> None:
    record = result().to_dict()
    del record[name]
    with pytest.raises(ValueError, match=name):
        GenerationResult.from_dict(record)


# BenchmarkConfig


@pytest.mark.parametrize(("k", "label"), [(4, "SD-K4"), (1, "SD-K1"), ("auto", "SD-Kauto"), (0, "AR"), (None, "AR")])
def test_decoder_label(k: int | str | None, label: str) -> None:
    assert config(K=k).decoder_label == label


def test_hash_is_twelve_hex_digits() -> None:
    digits = config().config_hash()
    assert len(digits) == 12 and set(digits) <= set("0123456789abcdef")


def test_hash_of_equal_configurations_is_equal() -> None:
    c = config()
    shuffled = dict(reversed(c.to_dict().items()))
    assert BenchmarkConfig.from_dict(json.loads(json.dumps(shuffled))).config_hash() == c.config_hash()
    assert config(temperature=0).config_hash() == c.config_hash()
    assert config(temperature=-0.0).config_hash() == c.config_hash()
    assert config(K=4.0, top_p=1, seed=42.0).config_hash() == c.config_hash()
    assert config(K=None).config_hash() == config(K=0).config_hash()


CHANGES: list[dict[str, Any]] = [
    {"model_pair_name": "tiny_dev"},
    {"K": 5},
    {"temperature": 0.1},
    {"max_new_tokens": 201},
    {"prompt_domain": "conversation"},
    {"seed": 43},
    {"top_k": 40},
    {"top_p": 0.9},
    {"dtype": "float16"},
    {"device": "cuda"},
    {"drafter": "ngram"},
    {"forward": "hf"},
    {"engine": "static"},
    {"compile": True},
    {"random_weights": True},
    {"synthetic_acceptance": 0.8},
    {"k_max": 4},
    {"draft_layers": 2},
    {"draft_threshold": 0.4},
    {"vocab_method": "tli"},
    {"ignore_eos": True},
    {"detail": True},
    {"deterministic": True},
    {"chat_template": "off"},
    {"scale_layers": 2},
    {"device_map": "auto"},
    {"target_model_id": "gpt2-large"},
    {"draft_model_id": "distilgpt2"},
    {"target_dtype": "float32"},
    {"draft_dtype": "int4"},
    {"target_revision": "0123456789ab"},
    {"draft_revision": "0123456789ab"},
]
"""One of each field, none of them its default."""


@pytest.mark.parametrize("change", CHANGES)
def test_every_field_enters_the_hash(change: dict[str, Any]) -> None:
    changed = config(**change)
    assert changed.config_hash() != config().config_hash()
    assert BenchmarkConfig.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed


def test_every_field_is_tested_above() -> None:
    assert sorted(name for change in CHANGES for name in change) == sorted(
        f.name for f in dataclasses.fields(BenchmarkConfig)
    )


def test_no_two_changes_have_one_hash() -> None:
    assert len({config(**change).config_hash() for change in CHANGES}) == len(CHANGES)


@pytest.mark.parametrize(
    ("change", "digits"),
    [
        ({}, "ad73554a29a0"),
        ({"K": 0}, "446ac35625d9"),
        ({"K": "auto", "k_max": 8}, "d3e5e938a98c"),
        ({"temperature": 0.8, "top_k": 50, "top_p": 0.95}, "09b3e368e58e"),
        ({"drafter": "layerskip", "draft_layers": 2, "draft_threshold": 0.4}, "01eaf291da18"),
        ({"random_weights": True, "synthetic_acceptance": 0.8, "scale_layers": 4}, "508541beb1bf"),
        (
            {"target_model_id": "gpt2-large", "target_dtype": "float32", "target_revision": "0123456789ab"},
            "a4f217e2cb37",
        ),
        (
            {name: changes[name] for changes in CHANGES for name in changes if name not in ("engine", "compile")},
            "68a4c694971f",  # of when there was one engine
        ),
    ],
)
def test_hash_of_what_is_on_disk_already(change: dict[str, Any], digits: str) -> None:
    """Stores hold these: a hash that changes has every finished cell measured again."""
    assert config(**change).config_hash() == digits


@pytest.mark.parametrize("change", CHANGES)
def test_what_concerns_drafting_leaves_the_baseline_alone(change: dict[str, Any]) -> None:
    drafting = {
        "K", "drafter", "k_max", "draft_layers", "draft_threshold", "vocab_method", "detail",
        "draft_model_id", "draft_dtype", "draft_revision",
    }  # fmt: skip
    same = config(**change).baseline() == config().baseline()
    assert same == drafting.issuperset(change)


def test_a_baseline_is_its_own() -> None:
    baseline = config(drafter="ngram", K="auto", k_max=3).baseline()
    assert (baseline.decoder_label, baseline.baseline()) == ("AR", baseline)


def test_hash_is_the_same_in_another_process() -> None:
    code = (
        "from specprof.profiling.metrics import BenchmarkConfig as C;"
        "print(C(seed=42,prompt_domain='code',max_new_tokens=200,temperature=0.0,K=4,model_pair_name='gpt2_dev').config_hash())"
    )
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        answer = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert answer.stdout.strip() == config().config_hash()


@pytest.mark.parametrize(
    "change",
    [
        {"K": -1},
        {"K": 1.5},
        {"K": True},
        {"K": "4"},
        {"K": "AUTO"},
        {"k_max": 1.5},
        {"draft_layers": "2"},
        {"draft_threshold": math.nan},
        {"scale_layers": True},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"max_new_tokens": 0},
        {"max_new_tokens": None},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"top_p": math.nan},
        {"synthetic_acceptance": 1.5},
    ],
)
def test_values_that_cannot_be_meant(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        config(**change)


def test_config_without_a_required_key() -> None:
    record = config().to_dict()
    del record["seed"]
    with pytest.raises(ValueError, match="seed"):
        BenchmarkConfig.from_dict(record)


# AcceptanceCounts


def test_acceptance_by_hand() -> None:
    rounds = [
        make_round(3, 3),
        make_round(3, 1),
        make_round(3, 0),
        make_round(2, 2),  # a prompt-lookup drafter proposes fewer
        make_round(3, 1, cut=True),
        make_round(0, 0),
    ]
    counts = AcceptanceCounts.of(rounds, greedy=True)
    assert counts.to_dict() == {
        "num_spec_steps": 4,
        "num_draft_tokens": 11,
        "num_accepted_draft_tokens": 6,
        "num_spec_tokens": 3,
        "draft_acceptance_rate": pytest.approx(6 / 11),
        "mean_acceptance_length": pytest.approx(2.5),
        "accepted_per_step": pytest.approx(1.5),
        "acceptance_rate_per_pos": [3 / 4, 2 / 4, 1 / 4],
        # position 3 was reached once: the fourth round had no third token
        "conditional_acceptance_rate": [3 / 4, 2 / 3, 1 / 1],
        "acceptance_histogram": [1, 1, 1, 1],
        # with the empty round, without the cut one
        "draft_length_histogram": [1, 0, 1, 3],
        # reached: 3 + 2 + 1 + 2; matched: 3 + 1 + 0 + 2
        "alpha": pytest.approx(6 / 8),
        "num_cut_rounds": 1,
        "num_empty_rounds": 1,
    }


def test_nothing_observed_is_undefined() -> None:
    record = AcceptanceCounts.of([make_round(4, 0, cut=True)], greedy=True).to_dict()
    for name in ("num_spec_tokens", "draft_acceptance_rate", "mean_acceptance_length", "accepted_per_step", "alpha"):
        assert record[name] is None
    assert record["acceptance_histogram"] == record["draft_length_histogram"] == []
    assert record["num_cut_rounds"] == 1


def test_position_never_reached_has_no_conditional_rate() -> None:
    counts = AcceptanceCounts.of([make_round(3, 0)] * 2, greedy=True)
    assert counts.conditional_acceptance_rate == [0.0, None, None]
    assert counts.acceptance_rate_per_pos == [0.0, 0.0, 0.0]


def test_alpha_when_sampling_is_over_reached_positions() -> None:
    rounds = [make_round(3, 1, alpha=(0.9, 0.5, 0.1)), make_round(3, 3, alpha=(0.8, 0.7, 0.6)), make_round(3, 0)]
    assert AcceptanceCounts.of(rounds, greedy=False).alpha == pytest.approx((0.9 + 0.5 + 0.8 + 0.7 + 0.6) / 5)
    assert AcceptanceCounts.of([make_round(3, 2)], greedy=False).alpha is None


@given(st.lists(st.integers(1, 6).flatmap(lambda k: st.tuples(st.just(k), st.integers(0, k))), min_size=1))
def test_acceptance_identities(pairs: list[tuple[int, int]]) -> None:
    counts = AcceptanceCounts.of([make_round(k, a) for k, a in pairs], greedy=True)
    histogram = counts.acceptance_histogram
    accepted = [a for _, a in pairs]
    assert histogram == [accepted.count(j) for j in range(max(k for k, _ in pairs) + 1)]
    drafted = counts.draft_length_histogram
    assert sum(drafted) == counts.num_spec_steps == len(pairs)
    assert sum(k * rounds for k, rounds in enumerate(drafted)) == counts.num_draft_tokens
    assert len(drafted) - 1 == counts.num_spec_tokens and drafted[-1] > 0
    assert counts.mean_acceptance_length == pytest.approx(1 + np.mean(accepted))
    assert counts.accepted_per_step == pytest.approx(sum(counts.acceptance_rate_per_pos))
    assert counts.alpha is not None and counts.draft_acceptance_rate is not None
    assert counts.alpha >= counts.draft_acceptance_rate - 1e-12


@given(st.lists(st.integers(0, 4).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1))
def test_gain_rates_give_back_the_tokens_per_round(rounds: list[tuple[int, int]]) -> None:
    # Asked for 4 each time, drafters that end early or have nothing: yield per round over all of them.
    counts = AcceptanceCounts.of((make_round(drafted, accepted, k=4) for drafted, accepted in rounds), greedy=True)
    known = [rate for rate in counts.gain_rates if rate is not None]
    expected = 1 + sum(accepted for _, accepted in rounds) / len(rounds)
    assert expected_tokens_by_position(known, len(known)) == pytest.approx(expected)


def test_gain_rates_count_only_what_was_asked_for() -> None:
    counts = AcceptanceCounts.of([make_round(1, 1, k=1), make_round(1, 1, k=3), make_round(0, 0, k=3)], greedy=True)
    assert counts.gain_rates == [pytest.approx(2 / 3), 0.0]
    assert AcceptanceCounts.of([make_round(2, 1)], greedy=True).gain_rates == [1.0, 0.0]


# fold


def generation(decoder: str, repetition: int, rounds: list[Round], *, ended: bool = True) -> list[Any]:
    head = Prefilled("p", decoder, repetition, 7, 11, 0.020, 0.005, 0.001)
    body = [dataclasses.replace(r, decoder=decoder, repetition=repetition, index=i) for i, r in enumerate(rounds)]
    return [head, *body, *([PromptEnded("p", decoder, repetition, "length", 3 * 2**20)] if ended else [])]


def test_fold_speculative_by_hand() -> None:
    rounds = [make_round(4, 2), make_round(4, 4), make_round(2, 1, cut=True)]
    (r,) = fold(generation("SD-K4", 1, rounds))
    assert r.generated_ids == [11, 0, 1, 99, 0, 1, 2, 3, 99, 0, 99]
    assert r.per_token_latencies == pytest.approx([0.017] * 3)
    assert r.total_time == pytest.approx(0.026 + 3 * 0.017)
    assert r.time_to_first_token == pytest.approx(0.026)
    assert r.peak_memory_mb == 3
    assert r.acceptance_rate == pytest.approx(6 / 8)
    assert r.tokens_per_step == pytest.approx(10 / 3)
    assert r.num_speculation_rounds == 3
    assert r.draft_time_total_ms == pytest.approx(12)
    assert r.verify_time_total_ms == pytest.approx(30)
    assert r.sampling_time_total_ms == pytest.approx(3)
    assert (r.prompt_id, r.decoder, r.repetition, r.finish_reason, r.num_prompt_tokens) == (
        "p",
        "SD-K4",
        1,
        "length",
        7,
    )
    assert (r.prefill_target_seconds, r.prefill_draft_seconds) == (0.020, 0.005)
    assert len(r.rounds) == 3


def test_fold_autoregressive_leaves_the_speculative_fields_alone() -> None:
    (r,) = fold(generation("AR", 0, [make_round(0, 0), make_round(0, 0)]))
    assert r.generated_ids == [11, 99, 99]
    assert not r.is_speculative
    assert all(getattr(r, name) is None for name in SPECULATIVE)


def test_fold_of_a_generation_that_ended_with_its_first_token() -> None:
    (r,) = fold(generation("SD-K4", 0, []))
    assert (r.num_tokens, r.num_speculation_rounds) == (1, 0)
    assert r.acceptance_rate is r.tokens_per_step is r.latency_p50 is None
    assert r.total_time == r.time_to_first_token


def test_fold_keeps_order_and_drops_the_interrupted() -> None:
    died = generation("AR", 0, [make_round(0, 0)], ended=False)
    again = generation("AR", 0, [make_round(0, 0)] * 2)
    other = generation("SD-K4", 0, [make_round(4, 1)])
    headless = generation("SD-K4", 5, [make_round(4, 1)])[1:]
    started = RunStarted("r", "specprof.events/1", {}, {})
    results = list(fold([started, *died, started, *again, *headless, *other, RunEnded(0)]))
    assert [(r.decoder, r.num_tokens) for r in results] == [("AR", 3), ("SD-K4", 3)]


def test_fold_does_not_join_the_halves_of_two_runs() -> None:
    started = RunStarted("r", "specprof.events/1", {}, {})
    died = generation("AR", 0, [make_round(0, 0)], ended=False)
    ended = PromptEnded("p", "AR", 0, "length", 0)
    assert list(fold([*died, started, ended])) == []


def test_fold_is_lazy() -> None:
    def stream() -> Any:
        yield from generation("AR", 0, [make_round(0, 0)])
        raise AssertionError("read on past the first result")

    assert next(fold(stream())).num_tokens == 2


def test_import_is_cheap() -> None:
    code = (
        "import sys, specprof.profiling.metrics, specprof.profiling.comparison, specprof.profiling.machine,"
        "specprof.profiling.cost_model, specprof.reports.tables;"
        "print([m for m in ('torch', 'transformers', 'textual', 'typer', 'matplotlib') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("seed", [2**53 + 1, 2**63 - 1])
def test_a_large_seed_is_that_seed(seed: int) -> None:
    assert config(seed=seed).seed == seed and config(seed=seed).config_hash() != config(seed=seed - 1).config_hash()


@pytest.mark.parametrize("name", ["K", "temperature", "max_new_tokens", "seed", "top_p", "k_max"])
def test_a_number_beyond_all_bounds_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        config(**{name: 10**400})
