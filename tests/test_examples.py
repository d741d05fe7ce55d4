"""The examples do what docs/extending.md says, and stand there as they are."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from command_line import QUICK, isolate, ok
from docs_pages import ROOT, blocks
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import Draft
from specprof.decoding.sampling import Sampling
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.experiments.saved_runs import read_run
from specprof.models.wrapper import ModelWrapper
from test_sequence_law import Setting, assert_law, counts_of, law_of, target_of, totals
from tiny_models import tiny_gpt2, tiny_llama

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@functools.cache
def example(name: str) -> Any:
    """The module of an example."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_page_has_the_file_as_it_is(name: str) -> None:
    texts = [block.text for block in blocks("docs/extending.md") if block.language == "python"]
    assert (ROOT / "examples" / name).read_text(encoding="utf-8") in texts
    assert len((ROOT / "examples" / name).read_text(encoding="utf-8").splitlines()) <= 45


# The drafter


@pytest.mark.parametrize("family", [tiny_gpt2, tiny_llama], ids=lambda family: family.__name__)
@pytest.mark.parametrize("k", [1, 4])
def test_greedy_output_is_plain_decodings(family: object, k: int) -> None:
    target = ModelWrapper(family(seed=3))  # type: ignore[operator]
    accepted = 0
    for start in range(4):
        prompt = [start + 1, 7, 8, 7, 8, 7]
        drafted = SpeculativeDecoder(target, example("bigram_drafter").BigramDrafter(target), k).generate(
            prompt, 24, stop_ids=frozenset()
        )
        plain = AutoregressiveDecoder(target).generate(prompt, 24, stop_ids=frozenset())
        assert drafted.generated_ids == plain.generated_ids
        accepted += sum(round.num_accepted for round in drafted.rounds)
    assert accepted


def setting(drafter: type) -> Setting:
    return Setting(3, 2, 3, Sampling(1.0), lambda: drafter(target_of(3)), prompt=(1, 2, 1, 1, 2, 2, 1))


def test_sampled_output_has_the_targets_law() -> None:
    asked = setting(example("bigram_drafter").BigramDrafter)
    counts, generations = counts_of(asked.decoder, asked, law_of(asked))
    assert all(totals(generations))
    assert_law(counts, law_of(asked))


def test_a_drafter_that_lies_about_its_law_is_found_out() -> None:
    class Liar(example("bigram_drafter").BigramDrafter):  # type: ignore[misc]
        def propose(self, k: int) -> Draft:
            draft = super().propose(k)
            return Draft(draft.tokens, torch.full_like(draft.probs, 1 / 3))

    asked = setting(Liar)
    counts, _ = counts_of(asked.decoder, asked, law_of(asked))
    with pytest.raises(AssertionError):
        assert_law(counts, law_of(asked))


# The report


def test_the_reports_numbers_are_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    document = ok("run", *QUICK, "-n", "4", "--reps", "2", "--json").document
    text = example("latex_report").render(read_run(Path(document["events_file"])))
    expected = {"all": document["speedup_decode"]}
    expected |= {name: domain["speedup_decode"] for name, domain in document["domains"].items()}
    for name, speedup in expected.items():
        [numbers] = re.findall(rf"^{name} & (.*) \\\\$", text, re.M)
        low, high = speedup["ci"] or (None, None)
        wanted = [] if speedup["value"] is None else [speedup["value"]]
        wanted += [] if low is None else [low, high]
        assert re.findall(r"[\d.]+", numbers) == [f"{number:.2f}" for number in wanted], json.dumps(speedup)


def test_names_from_outside_stay_text() -> None:
    report = example("latex_report")
    assert report.escaped("\\input{x} 50 %_$") == r"input\{x\} 50 \%\_\$"
    assert report.cell(None) == "--"
