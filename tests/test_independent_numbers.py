"""Each headline number of real runs and sweeps against a few lines of numpy over their raw lines; and every surface
shows that number."""

from __future__ import annotations

import ast
import csv
import functools
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

import independent
from command_line import isolate, ok
from packaged import copy_that_ends_at, new_token
from specprof.models import hub, loader
from specprof.models.linear import by_rows

COPIES = [f"{word} {word} {word} {word} {word} {word}" for word in ("one two", "a b c", "x = 1;", "so it goes", "1, 2")]
CASES: dict[str, tuple[str, ...]] = {
    "greedy": ("--k", "3", "-n", "6", "--reps", "2", "--max-new-tokens", "16"),
    "sampled": ("--k", "3", "-n", "6", "--reps", "3", "--max-new-tokens", "12", "--temperature", "0.9",
                "--top-p", "0.95", "--no-cost-curve"),
    "auto": ("--k", "auto", "--k-max", "4", "-n", "3", "--reps", "1", "--max-new-tokens", "40", "--no-cost-curve"),
    "lookup": ("--drafter", "ngram", "--k", "3", "--reps", "2", "--max-new-tokens", "24", "--temperature", "0.7",
               *(part for text in COPIES for part in ("--prompt", text))),
    "ends": ("--k", "4", "-n", "6", "--reps", "1", "--max-new-tokens", "40", "--no-cost-curve"),
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    document: dict[str, Any]
    lines: list[str]
    table: str
    markdown: str

    @property
    def config(self) -> Mapping[str, Any]:
        config: dict[str, Any] = self.document["config"]
        return config

    @property
    def domain_of(self) -> dict[str, str]:
        return {prompt["prompt_id"]: prompt["domain"] for prompt in self.config["prompts"]}

    @functools.cached_property
    def texts(self) -> list[independent.Text]:
        return independent.texts_of_run(self.lines)


load_model_once = functools.cache(loader.load_model)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Measured]]:
    """A case, decoded once."""
    with pytest.MonkeyPatch.context() as patched:
        isolate(tmp_path_factory.mktemp("measured"), patched)
        patched.setattr(loader, "load_model", load_model_once)
        patched.setattr("specprof.models.linear.measure_forms", lambda weights, width: {by_rows: 0.0})
        yield functools.cache(_measure)


def _measure(case: str) -> Measured:
    models: tuple[str, ...] = ()
    if case == "ends":
        # A token that some texts come to, and others not.
        text = ok("run", "-n", "1", "--reps", "1", "--warmup", "0", "--no-cost-curve", "--no-save", "--jsonl")
        tokens = independent.texts_of_run(text.out.splitlines())[0]["tokens"]
        end = new_token(tokens, after=5)
        models = ("--target", str(copy_that_ends_at(end, "tiny_dev/target", Path("target"))),
                  "--draft", str(hub.local_directory("tiny_dev/draft")))  # fmt: skip
    outcome = ok("run", *models, *CASES[case], "--warmup", "0", "-o", f"{case}.json")
    document = json.loads(Path(f"{case}.json").read_text())
    lines = Path(document["events_file"]).read_text().splitlines()
    return Measured(document, lines, outcome.out, ok("report", document["run_id"], "--md", "-").out)


def same(found: Any, expected: Any, where: str = "", rel: float = 1e-9) -> None:
    """Whether a document has every number that was computed, to all digits but the last few."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            same(found[key], value, f"{where}.{key}", rel)
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, f"{where}[{index}]", rel)
    elif expected is None or isinstance(expected, str | bool):
        assert found == expected, where
    else:
        assert found == pytest.approx(float(expected), rel=rel, abs=1e-15), where


def test_what_checks_knows_nothing_of_what_is_checked() -> None:
    tree = ast.parse(Path(independent.__file__).read_text())
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported == {"__future__", "collections", "collections.abc", "json", "numpy", "typing"}


@pytest.mark.parametrize("case", CASES)
def test_every_number_of_a_run_follows_from_its_lines(case: str, measured: Callable[[str], Measured]) -> None:
    run = measured(case)
    greedy = run.config["temperature"] == 0
    expected = independent.figures(run.texts, run.domain_of, greedy=greedy, curve=run.config["cost_curve"])
    same(run.document, expected)
    # Nothing is left unchecked, also of what is added later.
    for section in ("acceptance", "baseline", "speculative", "costs"):
        assert set(run.document[section]) == set(expected[section]), section
    for prediction, by_hand in zip(run.document["predictions"], expected["predictions"], strict=True):
        assert set(prediction) == set(by_hand)
    for arm in ("baseline", "speculative"):
        phases = run.document[arm]["phases"]
        assert sum(phase["share"] for phase in phases.values()) == pytest.approx(1)
        wall = sum(
            independent.decode(text)[0] for text in run.texts if (text["decoder"] == "AR") == (arm == "baseline")
        )
        assert sum(phase["seconds"] for phase in phases.values()) == pytest.approx(wall)


def test_the_cases_are_what_they_are_meant_to_be(measured: Callable[[str], Measured]) -> None:
    """Else the test above would check less than it says."""
    greedy, sampled, auto, lookup, ends = (measured(case).document for case in CASES)
    assert greedy["predictions"] and greedy["predictions"][0]["replayed"] and len(greedy["domains"]) == 3
    assert sampled["acceptance"]["num_cut_rounds"] and sampled["num_repetitions"] == 3
    assert sum(map(bool, auto["acceptance"]["draft_length_histogram"])) > 1
    assert lookup["predictions"] and not lookup["predictions"][0]["replayed"]
    assert lookup["acceptance"]["num_empty_rounds"] and lookup["acceptance"]["num_spec_steps"]
    assert "stop" in {text["finish_reason"] for text in measured("ends").texts}
    assert len({len(text["tokens"]) for text in measured("ends").texts}) > 1, ends["speculative"]


@pytest.mark.parametrize("case", CASES)
def test_rounds_and_texts_agree_with_each_other(case: str, measured: Callable[[str], Measured]) -> None:
    """What every line has to keep to, whatever was measured."""
    run = measured(case)
    limit = run.config["max_new_tokens"]
    for text in run.texts:
        assert 1 <= len(text["tokens"]) <= limit
        assert (text["finish_reason"] == "length") == (len(text["tokens"]) == limit) or text["tokens"]
        for index, round in enumerate(text["rounds"]):
            drafted, accepted, emitted = round["draft_tokens"], round["num_accepted"], round["emitted_tokens"]
            assert round["index"] == index and all(round[f"{phase}_seconds"] >= 0 for phase in independent.PHASES)
            assert emitted[:accepted] == drafted[: len(emitted)][:accepted]
            if not round["cut"]:
                assert len(emitted) == accepted + 1
            if text["decoder"] == "AR":
                assert (len(emitted), drafted, round["draft_seconds"]) == (1, [], 0)
    if run.config["drafter"] == "ngram":
        # A lookup is certain of its proposal, so what overlaps is the target's probability of that token.
        judged = [round for text in run.texts for round in text["rounds"] if round.get("alpha")]
        assert judged
        for round in judged:
            assert round["draft_prob"] == pytest.approx([1.0] * len(round["draft_prob"]))
            assert round["alpha"] == pytest.approx(round["target_prob"], rel=1e-5)


@pytest.mark.parametrize("key", ["speedup_decode", "speedup_e2e"])
@pytest.mark.parametrize("case", ["greedy", "sampled", "lookup"])
def test_the_interval_is_that_of_another_bootstrap(case: str, key: str, measured: Callable[[str], Measured]) -> None:
    """Prompts drawn by indices instead of counts, with another seed: the same but for the luck of the draw."""
    run = measured(case)
    plain = [text for text in run.texts if text["decoder"] == "AR"]
    drafted = [text for text in run.texts if text["decoder"] != "AR"]
    timing = independent.decode if key == "speedup_decode" else independent.end_to_end
    pairs = independent.paired(plain, drafted, timing)
    n = len(pairs)
    a, b, c, d = pairs[np.random.default_rng(7).integers(n, size=(20_000, n))].sum(axis=1).T
    tokens = pairs[:, 1] + pairs[:, 3]
    number = tokens.sum() ** 2 / (tokens**2).sum()
    margin = stats.t.ppf(0.975, number - 1) * np.sqrt(number / (number - 1)) * np.std(np.log(a / b / (c / d)))
    speedup = run.document[key]
    low, high = np.log(speedup["ci"]) - np.log(speedup["value"])
    assert -low == pytest.approx(high)
    assert high == pytest.approx(margin, rel=0.06)
    says = "faster" if speedup["ci"][0] > 1 else "slower" if speedup["ci"][1] < 1 else "not distinguishable"
    assert speedup["verdict"] == says


# Every surface


def shows(text: str, value: float | None, unit: str = "") -> bool:
    """Whether a printed number is a value, rounded to the digits it has."""
    if value is None:
        return text == "-"
    assert text.endswith(unit), (text, unit)
    digits = text.removesuffix(unit).strip()
    decimals = len(digits.partition(".")[2])
    return bool(abs(float(digits) - value) <= 0.5000001 * 10**-decimals)


def numbers_after(label: str, page: str) -> list[str]:
    """The cells of the first line that begins with a label, in a table for terminals or in Markdown."""
    line = next(line for line in page.splitlines() if line.strip(" |*").startswith(label))
    rest = line.strip(" |*").removeprefix(label)
    return [cell.strip(" *") for cell in re.split(r"\||\s{2,}", rest) if cell.strip(" *")]


@pytest.mark.parametrize("case", CASES)
def test_the_table_shows_the_same(case: str, measured: Callable[[str], Measured]) -> None:
    run = measured(case)
    document, table = run.document, run.table
    for speedup, words in ((document["speedup_decode"], "decode"), (document["speedup_e2e"], "end to end")):
        line = next(line for line in table.splitlines() if f"x {words}" in line)
        assert shows(re.findall(r"([\d.]+x)", line)[0], speedup["value"], "x")
        if speedup["ci"] is not None:
            low, high = re.search(r"\[([\d.]+), ([\d.]+)\]", line).groups()  # type: ignore[union-attr]
            assert shows(low, speedup["ci"][0]) and shows(high, speedup["ci"][1])
        if words == "decode" and speedup["verdict"] is not None:
            assert speedup["verdict"] in line
    counts, arms = document["acceptance"], [document["baseline"], document["speculative"]]
    yields, accepted = re.search(r"([\d.]+) tokens per round(?: that drafted)? = ([\d.]+) of", table).groups()  # type: ignore[union-attr]
    assert shows(yields, counts["mean_acceptance_length"]) and shows(accepted, counts["accepted_per_step"])
    share, alpha = re.search(r"(\d+) % of drafted tokens accepted, alpha ([\d.]+)", table).groups()  # type: ignore[union-attr]
    assert shows(share, 100 * counts["draft_acceptance_rate"]) and shows(alpha, counts["alpha"])
    for label, rates in (("accepted ", "acceptance_rate_per_pos"), ("if reached", "conditional_acceptance_rate")):
        cells = numbers_after(label, table)
        assert len(cells) == counts["num_spec_tokens"]
        for cell, rate in zip(cells, counts[rates], strict=True):
            assert shows(cell, None if rate is None else 100 * rate, "%" if rate is not None else "")
    for label, key, scale in (
        ("tokens/s, decode", "tokens_per_second", 1),
        ("tokens/s, end to end", "tokens_per_second_e2e", 1),
        ("first token, ms", "ttft_seconds", 1e3),
        ("per token after, ms", "tpot_seconds", 1e3),
        ("round p50, ms", "latency_p50", 1e3),
        ("round p95, ms", "latency_p95", 1e3),
        ("round p99, ms", "latency_p99", 1e3),
        ("peak memory, MB", "peak_memory_bytes", 2**-20),
    ):
        line = next(line for line in table.splitlines() if label in line)
        for cell, arm in zip(line.split()[-2:], arms, strict=True):
            assert shows(cell, arm[key] * scale), label
    costs = document["costs"]
    for letter, key in (("c", "draft_cost_ratio"), ("v", "verify_ratio"), ("o", "overhead_ratio")):
        assert shows(re.search(rf"  {letter} = ([\d.]+)", table)[1], costs[key])  # type: ignore[index]
    predicted = re.search(r"predicted +([\d.]+x) over this run's baseline", table)[1]  # type: ignore[index]
    assert shows(predicted, costs["speedup_predicted_with_ar_overhead"], "x")


@pytest.mark.parametrize("case", CASES)
def test_the_report_shows_the_same(case: str, measured: Callable[[str], Measured]) -> None:
    run = measured(case)
    document, page = run.document, run.markdown.replace("\\", "")
    arms = [document["baseline"], document["speculative"]]
    for label, key, scale, ratio in (
        ("tokens/s, decode (higher is better)", "tokens_per_second", 1, "speedup_decode"),
        ("tokens/s, end to end", "tokens_per_second_e2e", 1, "speedup_e2e"),
        ("first token, ms (lower is better)", "ttft_seconds", 1e3, None),
        ("per token after, ms", "tpot_seconds", 1e3, None),
        ("tokens generated", "num_tokens", 1, None),
        ("rounds |", "num_rounds", 1, None),
    ):
        cells = numbers_after(label, page)
        for cell, arm in zip(cells[:2], arms, strict=True):
            assert shows(cell, arm[key] * scale), label
        if ratio is not None:
            speedup = document[ratio]
            assert shows(cells[2].split()[-1], speedup["value"], "x")
            if speedup["ci"] is not None:
                low, high = cells[3].strip("[]").split(", ")
                assert shows(low, speedup["ci"][0]) and shows(high, speedup["ci"][1])
    for phase in independent.PHASES:
        cells = numbers_after(phase, page[page.index("| AR per round |") :])
        by_arm = [arm["phases"][phase] for arm in arms]
        for i, (cell, wanted) in enumerate(
            zip(
                cells,
                [p[key] for p in by_arm for key in ("seconds_per_round", "seconds_per_token", "share")],
                strict=True,
            )
        ):
            if cell == "-":
                assert (phase, i < 3) == ("draft", True)
            else:
                assert shows(cell, wanted * 100, "%") if cell.endswith("%") else shows(cell, wanted * 1e3)
    counts = document["acceptance"]
    for label, rates in (("all prompts: accepted", "acceptance_rate_per_pos"),
                         ("all prompts: if reached", "conditional_acceptance_rate")):  # fmt: skip
        if label in page:
            for cell, rate in zip(numbers_after(label, page), counts[rates], strict=False):
                assert shows(cell, None if rate is None else 100 * rate, "%" if rate is not None else ""), label
    # The gap between the ideal and what was measured, cause by cause.
    labels = ("plain decoding |", "ideal: that", "+ drafting rejected", "+ verifying more", "+ drafting accepted",
              "+ sampling", "+ overhead")  # fmt: skip
    plain, ideal, *losses = (
        next(float(cell) for cell in numbers_after(label, page) if re.fullmatch(r"-?[\d.]+", cell)) for label in labels
    )
    tau = np.mean([len(round["emitted_tokens"]) for t in run.texts if t["decoder"] != "AR" for round in t["rounds"]])
    assert ideal == pytest.approx(plain / tau, abs=2e-3)
    assert ideal + sum(losses) == pytest.approx(1e3 / arms[1]["tokens_per_second"], abs=5e-3)


SWEEP = ("sweep", "--k", "2,4", "-n", "3", "--domain", "code,conversation", "--reps", "2", "--max-new-tokens", "12",
         "--warmup", "0", "--deterministic", "--ignore-eos")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_every_number_of_a_sweep_follows_from_its_lines(
    temperature: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its document, the table of a cell, and its export as CSV."""
    isolate(tmp_path, monkeypatch)
    (matrix,) = ok(*SWEEP, "--temperature", temperature, "--json").document["matrices"]
    lines = Path("results/records.jsonl").read_text().splitlines()
    assert list(matrix["by_k"]) == ["2", "4"]
    for k, document in matrix["by_k"].items():
        texts = independent.texts_of_sweep(lines, int(k))
        domain_of = {text["prompt_id"]: text["domain"] for text in texts}
        assert len(texts) == 2 * 2 * 6
        expected = independent.figures(texts, domain_of, greedy=temperature == "0")
        same(document, expected, rel=1e-5)  # a store keeps the phases of rounds to the nanosecond
        for section in ("acceptance", "baseline", "speculative", "costs"):
            assert set(document[section]) == set(expected[section]), section

    rows = list(csv.DictReader(io.StringIO(ok("results", "export", "--csv", "-").out)))
    records = [record for record in map(json.loads, lines) if record["kind"] == "generation"]
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        seconds = sum(sum(record["rounds"].get(f"{phase}_seconds", [0.0])) for phase in independent.PHASES)
        tokens = len(record["generated_ids"])
        by_hand = {
            "num_tokens": tokens,
            "decode_seconds": seconds,
            "total_time": record["time_to_first_token"] + seconds,
            "tokens_per_second": tokens / (record["time_to_first_token"] + seconds),
            "tokens_per_second_decode": (tokens - 1) / seconds,
        }
        if record["K"]:
            (text,) = [t for t in independent.texts_of_sweep([json.dumps(record)], record["K"])]
            counts = independent.acceptance([text], greedy=temperature == "0")
            by_hand |= {name: counts[name] for name in (
                "num_spec_steps", "num_draft_tokens", "num_accepted_draft_tokens", "num_cut_rounds", "num_empty_rounds",
            )}  # fmt: skip
            by_hand["acceptance_rate"] = counts["draft_acceptance_rate"]
            by_hand["tokens_per_step"] = (tokens - 1) / len(text["rounds"])
            for phase, name in (("draft", "draft"), ("verify", "verify"), ("sample", "sampling")):
                by_hand[f"{name}_time_total_ms"] = 1e3 * sum(round[f"{phase}_seconds"] for round in text["rounds"])
        for name, value in by_hand.items():
            assert float(row[name]) == pytest.approx(value, rel=1e-5), name
