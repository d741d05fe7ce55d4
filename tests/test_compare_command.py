"""``specprof compare``, end to end on files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import sample_store
from command_line import QUICK, Outcome, command, isolate, ok
from specprof.experiments.records import Record
from specprof.profiling import events
from specprof.profiling.events import Event, Prefilled, PromptEnded, RunEnded, RunStarted
from specprof.profiling.metrics import GenerationResult
from test_difference import MACHINE, TWELVE, noisy

USAGE, CROSSED = 2, 8


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


def write(name: str, results: Sequence[GenerationResult], machine: dict[str, Any] | None = None, **config: Any) -> str:
    """What ``specprof run`` would have left of them."""
    asked = {
        "pair": {"name": "tiny_dev"}, "k": 2, "temperature": 0.0, "repetitions": 1, "seed": 0, "drafter": "model",
        "prompts": [{"prompt_id": p, "domain": "code" if p < "p08" else "chat"} for p in TWELVE],
    }  # fmt: skip
    happened: list[Event] = [
        RunStarted(Path(name).stem, events.SCHEMA, asked | config, MACHINE if machine is None else machine)
    ]
    for result in results:
        key = (result.prompt_id, result.decoder, result.repetition)
        happened += [Prefilled(*key, 7, 11, 0.02, 0.005, 0.001), *result.rounds, PromptEnded(*key, "length", 2**20)]
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("".join(map(events.to_json_line, [*happened, RunEnded(2**20)])), encoding="utf-8")
    return name


@pytest.fixture
def baseline() -> str:
    return write("results/baseline.jsonl", noisy())


@pytest.fixture
def slower() -> str:
    """By 6 % in its rounds."""
    return write("results/slower.jsonl", noisy(slow_sd=1 / 0.94, seed=1))


def refused(code: int, *arguments: str) -> tuple[str, str]:
    outcome = command("compare", *arguments)
    assert outcome.code == code and outcome.out == "" and len(outcome.err.splitlines()) == 2, outcome
    return outcome.told


def test_a_slowdown_fails_the_gate_after_the_table(baseline: str, slower: str) -> None:
    outcome = command("compare", baseline, slower, "--fail-if", "speedup<0.97")
    assert outcome.code == CROSSED
    assert outcome.out.startswith("B is 6 % slower than A on 12 prompts (speedup 1.51x -> 1.43x, 0.94 [")
    assert outcome.told[0].startswith("--fail-if: all prompts, K = 2: speedup 0.94 < 0.97 [0.9")
    assert outcome.out == ok("compare", baseline, slower).out, "the same table, whatever the gate says"
    passed = ok("compare", baseline, slower, "--fail-if", "speedup<0.90")
    assert "no threshold is crossed: speedup<0.9" in passed.err
    assert "\x1b" not in passed.out


def test_a_measurement_does_not_fail_against_itself(baseline: str) -> None:
    same = [name + sign for name in ("speedup", "acceptance_length", "sd_tokens_per_second") for sign in ("<1", ">1")]
    outcome = ok("compare", baseline, baseline, *(word for one in same for word in ("--fail-if", one)))
    assert "A and B are one and the same measurement." in outcome.out


def test_runs_are_named_as_they_are_listed(baseline: str, slower: str) -> None:
    assert ok("compare", "base", "slow").out == ok("compare", baseline, slower).out
    assert ok("compare", "base", "slow", "--results-dir", "results").out == ok("compare", "base", "slow").out


def test_json_and_the_written_document(baseline: str, slower: str) -> None:
    outcome = command(
        "compare", baseline, slower, "--fail-if", "speedup<0.97", "--each-domain", "--json", "-o", "c.json"
    )
    assert outcome.code == CROSSED
    document = outcome.document
    assert json.loads(Path("c.json").read_text(encoding="utf-8")) == document
    assert document["schema"] == "specprof.compare/1" and (document["before"], document["after"]) == (baseline, slower)
    (comparison,) = document["comparisons"]
    assert comparison["verdict"] == "slower" and comparison["sentence"].startswith("B is 6 % slower")
    rows = comparison["differences"]
    assert [(row["domain"], row["num_prompts"]) for row in rows] == [(None, 12), ("code", 8), ("chat", 4)]
    assert [judged["value"] for judged in document["thresholds"]] == [row["speedup"]["ratio"]["value"] for row in rows]
    assert all(judged["crossed"] for judged in document["thresholds"])
    assert comparison["sentence"] in ok("compare", baseline, slower).out


def test_another_machine_is_refused_unless_allowed(baseline: str) -> None:
    other = write("other.jsonl", noisy(seed=2), MACHINE | {"cpu": "A Xeon"})
    error, hint = refused(USAGE, baseline, other)
    assert "different machines: cpu An EPYC -> A Xeon" in error and "--allow-machine-mismatch" in hint
    out = ok("compare", baseline, other, "--allow-machine-mismatch").out
    assert "DIFFERENT MACHINES: cpu An EPYC -> A Xeon." in out and "FROM DIFFERENT MACHINES" in out
    newer = write("newer.jsonl", noisy(seed=2), MACHINE | {"torch": "2.13.0"})
    assert "Other versions: torch 2.12.0 -> 2.13.0." in ok("compare", baseline, newer).out


def test_what_is_refused(baseline: str, slower: str) -> None:
    Path("damaged.jsonl").write_bytes(Path(baseline).read_bytes()[:3000] + b"\n{]\n")
    Path("notes.txt").write_text("hello\n")
    elsewhere = write("elsewhere.jsonl", noisy(prompts=["q1", "q2"]))
    for arguments, told in (
        ((baseline, "nothing-of-that-name"), "nothing-of-that-name"),
        ((baseline, "damaged.jsonl"), "damaged.jsonl is damaged"),
        ((baseline, "notes.txt"), "notes.txt"),
        ((baseline, elsewhere), "share no prompt"),
        ((baseline, slower, "--fail-if", "speed<1"), "there is no 'speed'"),
        ((baseline, slower, "--fail-if", "speedup less"), "is not NAME < NUMBER"),
        ((baseline, slower, "--fail-if", ""), "is not NAME < NUMBER"),
        ((baseline, slower, "--certain"), "--certain needs --fail-if"),
        ((baseline, slower, "--each-domain"), "--each-domain needs --fail-if"),
        ((baseline, slower, "--color", "red"), "--color 'red'"),
        ((baseline,), "Missing argument"),
    ):
        error, hint = refused(USAGE, *arguments)
        assert told in error and hint, arguments
    refused(4, baseline, slower, "-o", "no/such/directory.json")


def test_text_from_files_is_inert(baseline: str) -> None:
    evil = "\x1b[31mred\u202e"
    prompts = [{"prompt_id": p, "domain": evil if p < "p08" else "chat"} for p in TWELVE]
    results = noisy(slow_sd=1.2, seed=1)
    hostile = write("hostile.jsonl", results, prompts=prompts, pair={"name": evil}, caveats=[evil])
    other = write("hostile2.jsonl", noisy(), prompts=prompts, pair={"name": evil})
    outcome: Outcome = command("compare", other, hostile, "--fail-if", "speedup<0.97", "--each-domain")
    assert outcome.code == CROSSED
    assert not {"\x1b", "\u202e"} & set(outcome.out + outcome.err)
    assert "\ufffd[31mred" in outcome.out


def test_two_sweeps_of_which_one_failed(tmp_path: Path) -> None:
    more = sample_store.config(8)
    done: list[Record] = [
        sample_store.cell(more),
        *(sample_store.generation(9 + prompt, more, prompt) for prompt in range(2)),
    ]
    sample_store.write(Path("monday"), [*sample_store.story(), *done])
    sample_store.write(Path("tuesday"), [*sample_store.story(), sample_store.cell(more), sample_store.failure(9, more)])
    assert ok("compare", "monday", "monday", "--fail-if", "speedup<1").code == 0
    outcome = command("compare", "monday", "tuesday", "--fail-if", "speedup<0.5")
    assert outcome.code == CROSSED
    assert outcome.told[0] == (
        "--fail-if: all prompts, K = 8: speedup was not measured (B: 0 of 2 generations, out of memory)"
    )
    cell = sample_store.SD.config_hash()
    assert "K = 4" in ok("compare", cell, cell, "--results-dir", "monday").out


def test_two_real_runs() -> None:
    ok("run", *QUICK, "--k", "3", "--results-dir", "one")
    ok("run", *QUICK, "--k", "2", "--results-dir", "two")
    outcome = ok("compare", "one", "two", "--fail-if", "acceptance_length_after<1")
    assert "K 3 -> 2" in outcome.out and "1 prompt" in outcome.out
