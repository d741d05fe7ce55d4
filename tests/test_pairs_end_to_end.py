"""Every registered pair runs: true sizes, head shapes and kinds of tokenizer, with random weights and few layers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import Outcome, isolate, ok
from specprof.experiments import arms
from specprof.experiments.arms import Arms
from specprof.models import int4
from specprof.profiling.events import Round

# After the first token K = 2 fits once whole; the second round is cut short.
SHORT = (
    "--max-new-tokens", "4", "--ignore-eos", "--k", "2", "-n", "1", "--reps", "1", "--warmup", "0", "--deterministic",
    "--no-save",
)  # fmt: skip
SCALED = ("--random-weights", "--scale-layers", "1")


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Arms]]:
    """The models that a command loads."""
    seen: list[Arms] = []
    load_arms = arms.load_arms

    def noting(config: Any) -> Arms:
        seen.append(load_arms(config))
        return seen[-1]

    monkeypatch.setattr(arms, "load_arms", noting)
    yield seen
    seen.clear()  # gigabytes, which the failure of a test would keep


def run(*arguments: str) -> tuple[Outcome, dict[str, Any]]:
    """Events on standard output, and the document; both arms say the same, and something was drafted."""
    outcome = ok("run", *SHORT, *arguments, "--jsonl", "-o", "run.json")
    document = json.loads(Path("run.json").read_text())
    assert document["output_matches_baseline"]["num_identical"] == document["num_prompts"] == 1
    assert document["baseline"]["num_tokens"] == document["speculative"]["num_tokens"] >= 4
    drafted = [e.draft_tokens for e in outcome.events if isinstance(e, Round) and e.decoder == "SD-K2"]
    assert len(drafted[0]) == 2
    return outcome, document


@pytest.mark.slow
def test_gpt2_dev() -> None:
    _, document = run("--pair", "gpt2_dev", *SCALED)
    draft, target = (document["config"]["models"][role] for role in ("draft", "target"))
    # tokens, positions, a layer, the last norm
    assert draft["parameters"] == (50257 + 1024 + 2) * 768 + 12 * 768**2 + 13 * 768
    assert target["parameters"] == (50257 + 1024 + 2) * 1600 + 12 * 1600**2 + 13 * 1600
    assert {draft["forward"], target["forward"]} <= {"native", "own"}
    assert document["config"]["vocabulary"]["kind"] == "identical"


@pytest.mark.slow
def test_the_draft_of_tinyllama_llama3_for_a_small_target() -> None:
    """The cheap half of that pair: a SentencePiece draft of 32000 rows for a byte-level target."""
    models = ("--draft", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "--target", "tiny_dev/target")
    outcome, document = run(*models, *SCALED)
    check_crossed(outcome, document, 32000, 4096)


def check_crossed(outcome: Outcome, document: dict[str, Any], draft_rows: int, target_rows: int) -> None:
    vocabulary = document["config"]["vocabulary"]
    assert (vocabulary["kind"], vocabulary["draft_size"], vocabulary["target_size"]) == (
        "overlapping", draft_rows, target_rows,
    )  # fmt: skip
    assert "metaspace draft, byte-level target" in vocabulary["reason"]
    assert "stand-in tokenizers" in vocabulary["reason"], "the verdict is not on the tokenizers of these names"
    assert document["config"]["vocab_method"] == "tli" and "trial" not in outcome.err, "there is nothing to try"


def test_a_target_drafts_for_itself_in_4_bits(loaded: list[Arms]) -> None:
    """As llama3_self does, with weights that mean something."""
    Path("specprof.toml").write_text(
        "[pairs.self]\ndraft = 'tiny_dev/target'\ntarget = 'tiny_dev/target'\ndraft_dtype = 'int4'\n"
    )
    _, document = run("--pair", "self", "--max-new-tokens", "64")
    check_int4_self(document, loaded)
    assert document["acceptance"]["draft_acceptance_rate"] > 0.5


def check_int4_self(document: dict[str, Any], loaded: list[Arms]) -> None:
    """A smaller form of the same model drafts, and the tables are the target's own."""
    models = document["config"]["models"]
    assert document["config"]["pair"]["draft_dtype"] == "int4"
    assert models["draft"]["parameters"] == models["target"]["parameters"]
    assert models["draft"]["memory_bytes"] < models["target"]["memory_bytes"]
    assert models["draft"]["forward"] == "own" and models["target"]["forward"] in ("native", "own")
    (pair,) = loaded
    assert pair.draft is not None
    draft, target = pair.draft.model, pair.target.model
    assert any(isinstance(module, int4.layer_types()) for module in draft.modules())
    assert not any(isinstance(module, int4.layer_types()) for module in target.modules())
    for table in ("get_input_embeddings", "get_output_embeddings"):
        assert getattr(draft, table)().weight.data_ptr() == getattr(target, table)().weight.data_ptr()


# With Llama-3's tables of 128256 rows: 5 GB and more, and half a minute each.


@pytest.mark.slow
def test_tinyllama_llama3() -> None:
    outcome, document = run("--pair", "tinyllama_llama3", *SCALED)
    check_crossed(outcome, document, 32000, 128256)


@pytest.mark.slow
def test_phi3_llama3() -> None:
    outcome, document = run("--pair", "phi3_llama3", *SCALED)
    check_crossed(outcome, document, 32064, 128256)


@pytest.mark.slow
def test_llama3_self(loaded: list[Arms]) -> None:
    _, document = run("--pair", "llama3_self", *SCALED)
    check_int4_self(document, loaded)
    models = document["config"]["models"]
    tables, layer = 2 * 128256 * 4096, 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    assert models["target"]["parameters"] == tables + layer + 3 * 4096
    # a layer in 4 bits, and a scale of 32 bits for every 64 weights
    assert models["draft"]["memory_bytes"] == pytest.approx(4 * tables + layer * 0.5625, rel=1e-4)
    assert document["config"]["vocabulary"]["kind"] == "identical"


@pytest.mark.slow
def test_the_card_of_llama3_self(loaded: list[Arms]) -> None:
    document = ok("load", "--pair", "llama3_self", *SCALED, "--n-tokens", "0", "--json").document
    sizes = {role: facts["memory_bytes"] for role, facts in document["models"].items()}
    assert {role: facts["dtype"] for role, facts in document["models"].items()} == {
        "draft": "int4",
        "target": "float16",
    }
    (pair,) = loaded
    tables = 2 * 128256 * 4096 * torch.float32.itemsize
    assert document["memory_bytes"] == pytest.approx(sizes["draft"] + sizes["target"] - tables, rel=1e-4)
    assert pair.target.dtype == torch.float32 and document["vocabulary"]["target_mass"] is None
