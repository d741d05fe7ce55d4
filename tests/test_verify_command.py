"""``specprof verify``: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from command_line import command, isolate, ok
from specprof.decoding import judge

USAGE, UNAVAILABLE, INCORRECT = 2, 3, 6
QUICK = (
    "verify", "-n", "2", "--reps", "1", "--max-new-tokens", "24", "--ignore-eos", "--device", "cpu", "--deterministic",
)  # fmt: skip
UNLIKE = ("--drafter", "random")
"""Drafts that are surely none of the target's text, however good the packaged draft is."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


def test_a_sound_engine(tmp_path: Path) -> None:
    found = ok(*QUICK, "-o", "verified.json")
    lines = found.out.splitlines()
    assert lines[0] == "tiny_dev  K = 4  temperature 0.8  float32"
    assert lines[2].startswith("The output is the target's: ") and "\x1b" not in found.out
    assert any(line.startswith("SD-K4 (speculative)") for line in lines)
    assert any(line.startswith("AR (control, plain decoding)") for line in lines)
    document = json.loads((tmp_path / "verified.json").read_text())
    assert document["schema"] == "specprof.verify/1" and document["pair"] == "tiny_dev"
    assert (document["mode"], document["verdict"], document["temperature"]) == ("distribution", "passed", 0.8)
    assert " ".join(document["sentences"][0].split()) in " ".join(found.out.split())
    assert document["machine"]["cpu"] and document["config"]["k"] == 4
    assert set(document["config"]["models"]) == {"target", "draft"}
    assert [file.name for file in tmp_path.iterdir()] == ["verified.json"]  # and nothing else is written
    assert "prompts: 2, repetitions: 1, 2 arms" in found.err


SMALL = (*QUICK, "-n", "1", "--max-new-tokens", "12", "--json")


def test_json_is_one_document() -> None:
    first = ok(*SMALL, "--quiet")
    assert not first.err
    for arm in first.document["arms"].values():
        assert arm["num_tokens"] == 12
        assert arm["failures"] == []
        for check in arm["checks"]:
            assert check["p"] is not None or check["not_tested"]
            assert check["num_tokens"] <= arm["num_tokens"] or check["name"] == "acceptance"


@pytest.mark.slow
def test_the_seed_decides() -> None:
    first, again, other = (ok(*SMALL, "--seed", seed).document for seed in ("0", "0", "1"))
    assert first["arms"] == again["arms"] != other["arms"] and other["config"]["seed"] == 1


def test_a_broken_engine_ends_with_its_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(target_prob: Tensor, draft_prob: Tensor, uniforms: Tensor) -> Tensor:
        return torch.tensor(len(target_prob))

    monkeypatch.setattr(judge, "count_accepted", wrong)
    found = command(*QUICK, *UNLIKE, "--json", "-o", "failed.json")
    assert found.code == INCORRECT
    error, hint = found.told
    assert error.startswith("The output is not the target's: ") and "--seed" in hint
    assert found.document["verdict"] == "failed" and found.document["sentences"][0] == error
    assert "acceptance" in found.document["arms"]["speculative"]["failures"]
    assert json.loads(Path("failed.json").read_text()) == found.document


def test_greedy() -> None:
    found = ok(*QUICK, "--temperature", "0")
    assert found.out.startswith("tiny_dev  K = 4  greedy  float32\n\nThe output is the target's: token for token ")
    assert "2 texts" in found.out and "tokens were drafted" in found.out


@pytest.mark.slow
def test_a_greedy_fault_is_no_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    read = judge.Judge.read

    def wrong(self: judge.Judge, ruling: judge.Ruling) -> judge.Verdict:
        verdict = read(self, ruling)
        return judge.Verdict(verdict.draft_tokens, len(verdict.draft_tokens), verdict.next_token)

    monkeypatch.setattr(judge.Judge, "read", wrong)
    found = command(*QUICK, *UNLIKE, "--temperature", "0", "--json")
    assert found.code == INCORRECT and found.document["verdict"] == "failed"
    assert (found.document["mode"], found.document["num_texts"]) == ("greedy", 2)
    assert {difference["verdict"] for difference in found.document["differences"]} == {"failure"}


def test_nothing_drafted_is_said(tmp_path: Path) -> None:
    found = ok(*QUICK, "--drafter", "ngram", "--max-new-tokens", "1")
    assert "Not tested: nothing was drafted." in found.out
    assert "warning: Not tested: nothing was drafted. Give more prompts" in found.err


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (("--k", "0"), USAGE, "--k 0 drafts nothing"),
        (("--k", "many"), USAGE, "--k 'many'"),
        (("--reps", "0"), USAGE, "--reps 0 is less than 1"),
        (("--temperature", "-1"), USAGE, "temperature -1.0"),
        (("--vocab-method", "slem"), USAGE, "slem can't be sampled with"),
        (("-n", "0"), USAGE, "--num-prompts 0 is less than 1"),
        (("--prompt", "a", "--prompts", "b.txt"), USAGE, "exclude each other"),
        (("--pair", "no_such_pair"), USAGE, "no_such_pair"),
        (("--color", "red"), USAGE, "--color 'red'"),
        (("--draft", "./nowhere", "--target", "./nowhere"), UNAVAILABLE, "nowhere"),
        (("-o", "no/such/directory/file.json"), None, "no/such/directory"),
    ],
)
def test_what_is_refused_before_anything_runs(arguments: tuple[str, ...], code: int | None, what: str) -> None:
    found = command("verify", *arguments)
    assert found.code != 0 and (code is None or found.code == code)
    assert what in found.told[0] and not found.out and "loading" not in found.err
