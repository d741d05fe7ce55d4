"""The analysis notebook is a valid file without outputs, runs on any store, and finds the numbers specprof finds."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sample_store
from sample_store import HERE, cell, config, machine, session
from specprof.experiments.matrix import Matrix, matrices
from specprof.experiments.records import Generation, Record
from specprof.experiments.results import read_contents
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round
from specprof.profiling.metrics import BenchmarkConfig, fold

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "analysis.ipynb"
PHASES = ("draft", "verify", "sample", "overhead")

RUNNER = """
import ast, json, sys
cells, names = json.loads(sys.stdin.read())
space = {"__name__": "__main__"}
for number, source in enumerate(cells):
    tree = ast.parse(source, f"cell {number}")
    shown = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {number}", "exec"), space)
    if shown is not None:  # what Jupyter does with a cell's last line
        value = eval(compile(ast.Expression(shown.value), f"cell {number}", "eval"), space)
        print(value.to_string() if hasattr(value, "to_string") else value)
def plain(value):
    return json.loads(value.reset_index().to_json(orient="records", double_precision=15))
found = {name: plain(space[name]) for name in names}
found["figures"] = len(space["plt"].get_fignums())
print("\\n" + json.dumps(found))
"""


def notebook() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return document


def code_cells() -> list[str]:
    return ["".join(cell["source"]) for cell in notebook()["cells"] if cell["cell_type"] == "code"]


def executed(store: Path, cwd: Path) -> tuple[str, dict[str, Any]]:
    """What the code cells print, run one after the other in a process of their own, and some of what they find."""
    done = subprocess.run(
        [sys.executable, "-W", "error:::__main__", "-c", RUNNER],
        input=json.dumps([code_cells(), ["speedups", "acceptance", "phases", "drifts"]]),
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"MPLBACKEND": "agg", "SPECPROF_RESULTS": str(store), "PATH": "/usr/bin:/bin", "HOME": str(cwd)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed, _, found = done.stdout.rstrip("\n").rpartition("\n")
    return printed, json.loads(found)


# The file


def test_the_file_is_a_notebook_without_outputs() -> None:
    document = notebook()
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in document["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", id) for id in ids)
    for entry in document["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        if entry["cell_type"] == "code":
            assert entry["outputs"] == [] and entry["execution_count"] is None
            keys |= {"outputs", "execution_count"}
        else:
            assert entry["cell_type"] == "markdown"
        assert set(entry) == keys and entry["metadata"] == {}
        assert all(line.endswith("\n") for line in entry["source"][:-1]) and not entry["source"][-1].endswith("\n")
    assert document["metadata"]["kernelspec"]["name"] == "python3"


def test_a_sentence_leads_to_every_question() -> None:
    cells = notebook()["cells"]
    assert cells[0]["cell_type"] == "markdown" and "RESULTS" in "".join(cells[0]["source"])
    for before, after in itertools.pairwise(cells):
        if before["cell_type"] == "markdown" and before is not cells[0]:
            text = "".join(before["source"])
            assert after["cell_type"] == "code" and text.startswith("## ") and text.rstrip().endswith("."), text


def test_nothing_is_needed_but_the_analysis_extra() -> None:
    imported = {
        name.split(".")[0]
        for source in code_cells()
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - set(sys.stdlib_module_names) == {"specprof", "pandas", "matplotlib"}
    assert max(len(line) for source in code_cells() for line in source.splitlines()) <= 120


# What it finds


def records() -> Iterator[Record]:
    """Two domains and a temperature besides, several K with one of ``auto``, repetitions, controls, a text that was
    changed between two sweeps, rounds that were cut or had nothing drafted; times at random."""
    draw = random.Random(7)
    yield session()
    yield machine()
    greedy = [config(k, domain) for domain in ("code", "conversation") for k in (0, 2, 4)]
    cells = [*greedy, config("auto", "code"), config(0, temperature=0.8), config(4, temperature=0.8)]  # type: ignore[arg-type]
    for asked in cells:
        yield cell(asked, num_prompts=6, repetitions=2)
    sequence = 0
    for asked in cells:
        sequence += 1
        yield one(draw, sequence, asked, 0, 0, text="old" * 4)
    for repetition in range(2):
        for prompt in range(6):
            for asked in cells:
                if asked.K == 2 and prompt == 3:
                    continue  # not decoded by both
                sequence += 1
                yield one(draw, sequence, asked, prompt, repetition)
        sequence += 1
        yield one(draw, sequence, greedy[0], 0, repetition, control=True)


def one(
    draw: random.Random,
    sequence: int,
    asked: BenchmarkConfig,
    prompt: int,
    repetition: int,
    *,
    control: bool = False,
    text: str = "0123456789ab",
) -> Generation:
    key = (f"{asked.prompt_domain}_{prompt:03}", asked.decoder_label, repetition)
    events: list[Event] = [Prefilled(*key, 10, 5, draw.random() / 50, 0.001, 0.001, 2**20)]
    for index in range(draw.randrange(5, 12)):
        length = draw.randrange(1, 5) if asked.K == "auto" else asked.K or 0
        if index == 2 and asked.K:
            length = 0
        drafted = tuple(draw.randrange(1000) for _ in range(length))
        accepted = draw.randint(0, length)
        draft = draw.random() / 500 if length else 0.0
        verify, sample, overhead = (draw.random() / 100 for _ in range(3))
        emitted, asked_for = (*drafted[:accepted], 7), 4 if asked.K else None
        verify *= 1.6 - 0.1 * length
        events.append(
            Round(
                *key, index, drafted, accepted, emitted, draft, verify, sample, overhead, index == 4, k=asked_for
            )
        )  # fmt: skip
    (result,) = fold([*events, PromptEnded(*key, "length", 2**21)])
    return dataclasses.replace(
        sample_store.generation(sequence, asked, prompt, repetition=repetition, control=control, prompt_hash=text),
        K=asked.K or 0,
        result=result,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("results")
    sample_store.write(directory, records())
    return directory


@pytest.fixture(scope="module")
def ran(store: Path) -> tuple[str, dict[str, Any]]:
    return executed(store, store)


@pytest.fixture(scope="module")
def expected(store: Path) -> list[Matrix]:
    contents = read_contents(store, with_rounds=True)
    return matrices(contents, {config_hash for config_hash, _ in contents.cells})


def test_speedups_are_those_of_the_comparison(ran: tuple[str, dict[str, Any]], expected: list[Matrix]) -> None:
    printed, found = ran
    by_cell = {(row["temperature"], row["domain"], row["decoder"]): row for row in found["speedups"]}
    assert len(by_cell) == len(found["speedups"]) == 6
    seen = 0
    for matrix in expected:
        for k, comparison in matrix.comparisons.items():
            for domain, numbers in comparison.domains.items():
                speedup = numbers.speedup_decode
                assert speedup is not None and speedup.value is not None and speedup.ci is not None
                row = by_cell[matrix.config.temperature, domain, f"SD-K{k}"]
                assert row["prompts"] == speedup.n_prompts == (5 if k == 2 else 6)
                assert row["speedup"] == pytest.approx(speedup.value, rel=1e-9)
                assert (row["low"], row["high"]) == pytest.approx(speedup.ci, rel=1e-9)
                assert row["verdict"] == speedup.verdict
                assert f"{round(speedup.value, 3):g}" in printed
                seen += 1
    assert seen == 6


def test_acceptance_by_position_is_that_of_the_comparison(
    ran: tuple[str, dict[str, Any]], expected: list[Matrix]
) -> None:
    rows, seen = ran[1]["acceptance"], 0
    for matrix in expected:
        for k, comparison in matrix.comparisons.items():
            for domain, numbers in comparison.domains.items():
                counts = numbers.acceptance
                assert counts is not None
                mine = [
                    row
                    for row in rows
                    if (row["domain"], row["decoder"]) == (domain, f"SD-K{k}") and row["setting"] == setting(matrix)
                ]
                # Prompts that plain decoding did not decode are in none of the sample's cells, so nothing is left out.
                assert [row["position"] for row in mine] == list(range(1, (counts.num_spec_tokens or 0) + 1))
                assert [row["accepted"] for row in mine] == pytest.approx(counts.acceptance_rate_per_pos)
                assert [row["if_reached"] for row in mine] == pytest.approx(counts.conditional_acceptance_rate)
                assert {row["rounds"] for row in mine} == {counts.num_spec_steps}
                seen += len(mine)
    assert seen == len(rows) == 2 + 4 + 2 + 4 + 4 + 4


def test_phases_are_those_of_the_comparison(ran: tuple[str, dict[str, Any]], expected: list[Matrix]) -> None:
    (sampled,) = [matrix for matrix in expected if matrix.config.temperature]
    comparison = sampled.comparisons[4]
    assert comparison.baseline is not None and comparison.speculative is not None
    for arm in (comparison.baseline, comparison.speculative):
        (row,) = [
            row for row in ran[1]["phases"] if row["setting"] == setting(sampled) and row["decoder"] == arm.decoder
        ]  # one domain: the cell is the arm
        for name in PHASES:
            assert row[name] == pytest.approx(1e3 * getattr(arm.phases, name).seconds_per_token), name


def test_drift_is_that_of_the_matrix(ran: tuple[str, dict[str, Any]], expected: list[Matrix]) -> None:
    assert {row["machine_class"] for row in ran[1]["drifts"]} == {HERE}
    found = {row["setting"]: row["drift"] for row in ran[1]["drifts"]}
    assert found == {setting(matrix): pytest.approx(matrix.drift, rel=1e-9) for matrix in expected}
    assert all(value != 0 for value in found.values())


def test_one_generation_and_the_figures(ran: tuple[str, dict[str, Any]]) -> None:
    printed, found = ran
    # A figure of speedups and one of phases and one of drift for each setting; one of acceptance for each decoder.
    assert found["figures"] == 2 + 2 + 2 + 3
    told = re.search(r"code_000, SD-K2: (\d+) tokens, 1 from the prefill, (\d+) from (\d+) rounds", printed)
    assert told is not None and int(told[1]) == int(told[2]) + 1
    table = printed[told.end() :].splitlines()
    assert len([line for line in table if re.match(r"\d+ +\[", line)]) == int(told[3])


def setting(matrix: Matrix) -> str:
    return dataclasses.replace(matrix.config.baseline(), prompt_domain="").config_hash()


@pytest.mark.parametrize("what", ["one prompt", "plain decoding only"])
def test_little_to_go_on(tmp_path: Path, what: str) -> None:
    few: list[Record] = [session(), machine()]
    for sequence, asked in enumerate((config(0), config(4)) if what == "one prompt" else (config(0),)):
        few += [cell(asked, num_prompts=1), sample_store.generation(1 + sequence, asked)]
    sample_store.write(tmp_path / "results", few)
    _, found = executed(Path("results"), tmp_path)
    if what == "one prompt":
        (row,) = found["speedups"]
        assert row["speedup"] == pytest.approx(2.0) and row["low"] is None and row["verdict"] is None
    else:
        assert found["speedups"] == [] and found["acceptance"] == []
    assert len(found["phases"]) == (2 if what == "one prompt" else 1)
