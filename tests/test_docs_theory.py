"""docs/theory.md and docs/metrics.md against the code: every number, every table, every key.

The checks take the document as text, so that the last test can change one number after the other
and see that each change is noticed.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import statistics as stdlib_statistics
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import specprof
from command_line import QUICK, isolate, ok
from specprof.decoding.rejection import count_accepted, next_token_probs, overlap, residual
from specprof.profiling import caveats, cost_model, machine, output_match, statistics
from specprof.profiling.acceptance import AcceptanceCounts
from test_metrics import make_round

DOCS = Path(__file__).parent.parent / "docs"
THEORY, METRICS = ((DOCS / name).read_text(encoding="utf-8") for name in ("theory.md", "metrics.md"))

UNITS = {
    "": 1.0,
    "%": 0.01,
    "ms": 1e-3,
    "M": 1e6,
    "B": 1e9,
    "MB": 1e6,
    "GB": 1e9,
    "GB/s": 1e9,
    "GFLOP": 1e9,
    "TFLOP/s": 1e12,
    "FLOP/byte": 1.0,
    "bytes": 1.0,
    "passes": 1.0,
}
NUMBER = r"\d+(?:\.\d+)?"
STRUCTURAL = {0.0, 1.0}
"""Part of formulas like 1 - alpha, and of counting from one; nothing that could be wrong by a digit."""

Table = list[dict[str, str]]


@dataclass(frozen=True)
class Section:
    sheets: list[str]
    """Lines of the fenced blocks: a label, two spaces or more, and an equation."""
    tables: list[Table]
    prose: str


def section_of(document: str, title: str) -> Section:
    """The part under the second-level heading that begins with ``title``."""
    (body,) = re.findall(rf"^## {re.escape(title)}.*?\n(.*?)(?=^## |\Z)", document, re.S | re.M)
    sheets = [line for block in re.findall(r"^```\n(.*?)^```", body, re.S | re.M) for line in block.splitlines()]
    rest = re.sub(r"^```\n.*?^```", "", body, flags=re.S | re.M)
    tables = [_table(match) for match in re.findall(r"(?:^\|.*\n)+", rest, re.M)]
    return Section(sheets, tables, re.sub(r"^\|.*\n", "", rest, flags=re.M))


def _table(text: str) -> Table:
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    assert all(len(row) == len(header) for row in rows), text
    return [dict(zip(header, row, strict=True)) for row in rows]


def value_of(text: str) -> tuple[float, float]:
    """A printed quantity and half of its last digit, both in basic units."""
    match = re.fullmatch(rf"({NUMBER}) ?(\D.*)?", text.strip().strip("*"))
    assert match, f"not a quantity: {text}"
    unit = UNITS[match[2] or ""]
    decimals = len(match[1].partition(".")[2])
    return float(match[1]) * unit, 0.5 * 10**-decimals * unit


def check_printed(printed: str, value: float, where: str = "") -> None:
    """``printed`` is ``value``, rounded to as many digits as it has."""
    shown, half = value_of(printed)
    assert abs(shown - value) <= half * (1 + 1e-6), f"{where}: {printed} is printed, {value:.6g} comes out"


def evaluate_sheets(section: Section) -> Mapping[str, Any]:
    """Check every line: ``name = quantity`` defines, ``expression = quantity`` is checked, with a name in front both.

    Names hold until the end of the section, and each has to be used. Returns them with their values.
    """
    names: dict[str, Any] = {
        "max": max,
        "min": min,
        "expected_tokens": cost_model.expected_tokens,
        "predicted_speedup": cost_model.predicted_speedup,
        "break_even_alpha": cost_model.break_even_alpha,
        "best_k": cost_model.best_k,
    }
    defined, expressions = [], ""
    for line in section.sheets:
        if not line.strip():
            continue
        label, equation = re.split(r"\s{2,}", line, maxsplit=1)
        *left, printed = equation.split(" = ")
        name = left.pop(0) if re.fullmatch(r"[A-Za-z]\w*", left[0]) else None
        value = value_of(printed)[0]
        if left:
            (expression,) = left
            expressions += f" {expression}"
            value = eval(expression.replace("^", "**"), {"__builtins__": {}}, names)
            check_printed(printed, value, label)
        if name is not None:
            assert name not in defined, f"{name} is defined twice"
            names[name] = value
            defined.append(name)
    unused = [name for name in defined if not re.search(rf"\b{name}\b", expressions)]
    assert not unused, f"not used: {unused}"
    return names


def numbers_in(text: str) -> set[float]:
    """Numbers that stand alone or before M and B, as in 7B; not those in names: float16, H100, Llama-3.1."""
    found = re.findall(rf"(?<![\w.-])({NUMBER})([MB]\b)?(?!\.?\w)(?!-[A-Za-z])", text)
    return {float(number) * UNITS[suffix] for number, suffix in found}


def check_prose(section: Section) -> None:
    """What the text says stands in a block or a table of its section, where it is computed."""
    shown = set()
    for cell in (cell for table in section.tables for row in table for pair in row.items() for cell in pair):
        shown |= numbers_in(cell)
    labels = []
    for line in filter(str.strip, section.sheets):
        label, equation = re.split(r"\s{2,}", line, maxsplit=1)
        labels.append(label)
        shown |= numbers_in(equation)
    references = r"\[[^\]]*\]\([^)]*\)|arXiv \d+\.\d+|[Ss]ection \d+(\.\d+)?"
    unknown = numbers_in(re.sub(references, "", "\n".join([section.prose, *labels]))) - shown - STRUCTURAL
    assert not unknown, f"computed nowhere in its section: {sorted(unknown)}"


# theory.md, section by section

DATA_SHEETS = {"A100 80 GB": (312, 2039), "H100": (989, 3350), "H200": (989, 4800)}
"""TFLOP/s of dense float16 and GB/s, SXM versions, as NVIDIA's data sheets have them."""
WORDS = ("the", "cat", "sat", "on", "mat")


def check_memory(document: str) -> None:
    section = section_of(document, "1.")
    names = evaluate_sheets(section)
    check_prose(section)
    (table,) = section.tables
    assert [row["GPU"] for row in table] == list(DATA_SHEETS)
    moved, done = 2 * 7e9, 2 * 7e9
    for row in table:
        peak, bandwidth = float(row["peak, TFLOP/s"]) * 1e12, float(row["memory, GB/s"]) * 1e9
        assert (peak / 1e12, bandwidth / 1e9) == DATA_SHEETS[row["GPU"]]
        check_printed(row["ridge, FLOP/byte"], peak / bandwidth, row["GPU"])
        check_printed(row["busy at most"], done / moved / (peak / bandwidth), row["GPU"])
        check_printed(row["one pass at least, ms"], 1e3 * moved / bandwidth, row["GPU"])
        check_printed(row["tokens/s at most"], bandwidth / moved, row["GPU"])
    assert names["m"] == packaged_parameters()


def packaged_parameters() -> int:
    """Of tiny_dev's target, from the header of its file."""
    path = Path(specprof.__file__).parent / "models/pairs/tiny_dev/target/model.safetensors"
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def check_round(document: str) -> None:
    section = section_of(document, "2.")
    assert not section.sheets
    check_prose(section)
    laws, decisions, correction, outcomes = section.tables
    drafted = [row["drafted"] for row in decisions]
    context = ["the", "cat"]
    for row in laws:
        position = int(row["position"])
        assert row["after"].split() == [*context, *drafted[: position - 1]], f"position {position}"
    for row in decisions:
        assert row["drafted"] in WORDS
    assert [(row["position"], row["model"]) for row in laws] == [
        *((str(position), model) for position in (1, 2, 3, 4) for model in ("draft", "target")),
        ("5", "target"),
    ]
    draft_probs, target_probs = (
        torch.tensor([[float(row[w]) for w in WORDS] for row in laws if row["model"] == model], dtype=torch.float64)
        for model in ("draft", "target")
    )
    for law in (*draft_probs, *target_probs):
        assert float(law.sum()) == pytest.approx(1)

    tokens = torch.tensor([WORDS.index(word) for word in drafted])
    rows = torch.arange(len(drafted))
    of_target, of_draft = target_probs[rows, tokens], draft_probs[rows, tokens]
    uniforms = torch.tensor([float(row["uniform"]) for row in decisions], dtype=torch.float64)
    accepted = int(count_accepted(of_target, of_draft, uniforms))
    verdicts = ["accepted"] * accepted + ["rejected"] + ["not judged"] * (len(drafted) - accepted - 1)
    alphas = overlap(target_probs[:-1], draft_probs)
    for i, row in enumerate(decisions):
        where = f"position {i + 1}"
        assert row["position"] == str(i + 1)
        assert row["verdict"] == verdicts[i], where
        check_printed(row["draft_probs"], float(of_draft[i]), where)
        check_printed(row["target_probs"], float(of_target[i]), where)
        check_printed(row["accepted with probability"], min(1.0, float(of_target[i] / of_draft[i])), where)
        check_printed(row["alpha"], float(alphas[i]), where)

    check_correction(correction, target_probs[accepted], draft_probs[accepted])
    assert f"At position {accepted + 1}:" in section.prose
    for row in outcomes:
        changed = uniforms.clone()
        changed[accepted] = float(row[f"uniform at position {accepted + 1}"])
        number = count_accepted(of_target, of_draft, changed)
        law = next_token_probs(target_probs, draft_probs, number).tolist()
        last = float(row["uniform of the last"])
        word = WORDS[next(i for i, mass in enumerate(accumulate(law)) if last < mass)]
        emitted = [*drafted[: int(number)], word]
        assert row["accepted"] == str(int(number)) and row["words"] == str(len(emitted))
        assert row["emitted"].split() == emitted
        assert row["the last one is"] == ("bonus" if int(number) == len(drafted) else "corrected")
    assert [int(row["accepted"]) for row in outcomes] == [accepted, len(drafted)]
    assert float(outcomes[0][f"uniform at position {accepted + 1}"]) == float(uniforms[accepted])


def check_correction(table: Table, target: torch.Tensor, draft: torch.Tensor) -> None:
    """The residual's table, and that the two ways to be emitted add up to the target."""
    as_drafted, excess = torch.minimum(target, draft), (target - draft).clamp_min(0)
    law = residual(target, draft)
    columns = {
        "target_probs": target,
        "draft_probs": draft,
        "emitted as drafted": as_drafted,
        "excess": excess,
        "residual": law,
        "emitted as the correction": (1 - as_drafted.sum()) * law,
        "together": as_drafted + (1 - as_drafted.sum()) * law,
    }
    torch.testing.assert_close(columns["together"], target)
    assert [row["word"] for row in table] == [*WORDS, "sum"]
    assert list(table[0]) == ["word", *columns]
    for name, values in columns.items():
        for row, value in zip(table, [*values.tolist(), float(values.sum())], strict=True):
            check_printed(row[name], value, f"{name} of {row['word']}")


def check_proof(document: str) -> None:
    section = section_of(document, "3.")
    evaluate_sheets(section)
    check_prose(section)
    assert not section.tables
    printed = {line.split("  ")[0]: line.split(" = ")[-1] for line in section.sheets}
    t, d = (float(printed[f"{name}_probs of the first"]) for name in ("target", "draft"))
    target, draft = torch.tensor([t, 1 - t]).double(), torch.tensor([d, 1 - d]).double()
    for wrong, law in two_word_laws(target, draft).items():
        check_printed(printed[wrong], float(law[0]), wrong)
    for line in section.sheets[2:]:
        is_right = line.startswith("as it should be")
        assert (float(line.split(" = ")[-1]) == t) == is_right, line


def two_word_laws(target: torch.Tensor, draft: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """Laws of the emitted word by enumeration of what can happen, for the sampler and its broken versions."""
    accept, rest = (target / draft).clamp_max(1), residual(target, draft)
    one_hot = torch.eye(2).double()
    picked = torch.stack((1 - draft[1] ** 2, draft[1] ** 2))
    outcome = [accept[x] * one_hot[x] + (1 - accept[x]) * rest for x in range(2)]
    return {
        "as it should be": draft[0] * outcome[0] + draft[1] * outcome[1],
        "drafts of word 2 are dropped": draft[0] * outcome[0] + draft[1] * target,
        "correction from target_probs": sum(
            (draft[x] * (accept[x] * one_hot[x] + (1 - accept[x]) * target) for x in range(2)), torch.zeros(2).double()
        ),
        "two drawn, the target picks": picked[0] * outcome[0] + picked[1] * outcome[1],
        "greedy draft tested as if drawn": outcome[int(draft.argmax())],
    }


def check_speed(document: str) -> None:
    section = section_of(document, "4.")
    evaluate_sheets(section)
    check_prose(section)
    taus, lengths, cases = section.tables
    for row in taus:
        for column, printed in list(row.items())[1:]:
            k = int(column.removeprefix("K = "))
            check_printed(printed, cost_model.expected_tokens(float(row["alpha"]), k), f"{row['alpha']}, {column}")
    (alpha,) = (float(number) for number in re.findall(rf"For alpha = ({NUMBER}); the best", section.prose))
    check_best_lengths(lengths, alpha)
    for row in cases:
        where = row["case"]
        alpha, c, v, o = (float(row[name]) for name in ("alpha", "c", "v", "o"))
        k = int(row["K"])
        tau = cost_model.expected_tokens(alpha, k)
        check_printed(row["tau"], tau, where)
        check_printed(row["costs"], cost_model.break_even_tau(k, c, v, o), where)
        check_printed(row["speedup"], cost_model.predicted_speedup(tau, k, c, v, o), where)
        needed = cost_model.break_even_alpha(k, c, v, o)
        assert (row["pays above alpha"] == "never") == (needed is None), where
        if needed is not None:
            check_printed(row["pays above alpha"], needed, where)


def check_best_lengths(table: Table, alpha: float) -> None:
    longest = max(int(row["K"]) for row in table)
    for column in list(table[0])[2:]:
        match = re.fullmatch(rf"c = ({NUMBER}), v = 1(?: \+ ({NUMBER}) K)?", column)
        assert match, column
        c, growth = float(match[1]), float(match[2] or 0)
        best = cost_model.best_k([alpha] * longest, c, lambda k, growth=growth: 1 + growth * k, 0.0)  # type: ignore[misc]
        for row in table:
            k, printed = int(row["K"]), row[column]
            tau = cost_model.expected_tokens(alpha, k)
            check_printed(row["tau"], tau, f"K = {k}")
            check_printed(printed, cost_model.predicted_speedup(tau, k, c, 1 + growth * k, 0.0), f"{column}, K = {k}")
            assert printed.startswith("**") == (k == best.k), f"best of {column} is {best.k}"


CHECKS: dict[str, Callable[[str], None]] = {
    "1.": check_memory,
    "2.": check_round,
    "3.": check_proof,
    "4.": check_speed,
}


@pytest.mark.parametrize("title", CHECKS)
def test_every_number_of_the_theory_is_right(title: str) -> None:
    CHECKS[title](THEORY)


def test_every_section_of_the_theory_is_checked() -> None:
    assert re.findall(r"^## (\S+)", THEORY, re.M) == list(CHECKS)
    introduction = THEORY.partition("\n## ")[0]
    assert not numbers_in(introduction)


def test_the_theory_says_target_and_draft_and_never_p_or_q_alone() -> None:
    body = THEORY.partition("\n## ")[2]
    assert not re.findall(r"(?<!top-)\b[pq]\b", body)


DRAWN = {"uniform", "uniform at position 3", "uniform of the last"}
"""Columns of section 2 whose numbers are drawn: any would do that leads to the same verdicts."""


def mutants() -> Iterator[tuple[str, str, str]]:
    """Section title, the number that was changed and its line, and the document with this one number changed.

    All numbers of blocks and tables; those of the text are among them.
    """
    title, columns = "", list[str]()
    for line in re.finditer(r"^.*\n", THEORY, re.M):
        text = line[0]
        if text.startswith("## "):
            title = text.split()[1]
        in_table = text.startswith("|")
        columns = (columns or [cell.strip() for cell in text.split("|")]) if in_table else []
        for number in re.finditer(rf"(?<![\w.-]){NUMBER}(?!\.?\d)", text):
            is_drawn = in_table and columns[text[: number.start()].count("|")] in DRAWN
            equation = re.search(r"\S\s{2,}\S.* = ", text)
            is_computed = in_table or (equation and number.start() > equation.start())
            if is_computed and not is_drawn and float(number[0]) not in STRUCTURAL:
                # An operand by its first digit, or rounding would hide the change; a result by its last.
                is_result = in_table or number.start() > text.rfind(" = ")
                place = len(number[0]) - 1 if is_result else re.search("[1-9]", number[0]).start()  # type: ignore[union-attr]
                at = line.start() + number.start() + place
                digit = str((int(THEORY[at]) + 5) % 10)
                yield title, f"{number[0]} in {text}", THEORY[:at] + digit + THEORY[at + 1 :]


def test_a_changed_number_is_noticed() -> None:
    unnoticed, total = [], 0
    for title, number, document in mutants():
        total += 1
        try:
            CHECKS[title](document)
        except Exception:
            continue
        unnoticed.append(number)
    assert total > 300
    assert not unnoticed


# metrics.md

ALIASES = {"domains.*.speedup_decode": "speedup_decode", "domains.*.acceptance": "acceptance"}
"""Objects whose keys are described once, elsewhere."""


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        isolate(tmp_path_factory.mktemp("run"), patch)
        surveyed = [argument for argument in QUICK if argument != "--no-cost-curve"]
        return ok("run", *surveyed, "--no-save", "--json").document


def documented_keys() -> set[str]:
    """``acceptance.alpha`` for the row ``alpha`` under the heading ``acceptance``; ``*`` stands for any name."""
    keys = set()
    for heading, body in re.findall(r"^### ([^\n]*)\n(.*?)(?=^##|\Z)", METRICS, re.S | re.M):
        parents = re.findall(r"`([^`]+)`", heading) or [""]
        for table in re.findall(r"(?:^\|.*\n)+", body, re.M):
            for row in _table(table):
                assert "key" in row, heading
                keys |= {f"{parent}.{row['key'].strip('`')}".lstrip(".") for parent in parents}
    return keys


def keys_of(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all keys; what lies in an object described elsewhere is left out."""
    if path and any(_matches(path, alias) for alias in ALIASES):
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            inner_path = f"{path}.{key}".lstrip(".")
            yield inner_path
            yield from keys_of(inner, inner_path)
    elif isinstance(value, list):
        for item in value:
            yield from keys_of(item, f"{path}[]")


def _matches(path: str, pattern: str) -> bool:
    names, parts = path.split("."), pattern.split(".")
    return len(names) == len(parts) and all(part in (name, "*") for name, part in zip(names, parts, strict=True))


def test_every_key_of_the_document_is_described_and_every_described_key_exists(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    described = documented_keys()
    parents = {key.rpartition(".")[0] for key in described}
    found = {*keys_of(document), *keys_that_need_luck(monkeypatch)}
    missing = {
        path
        for path in found
        # A name that a star stands for, such as that of a domain, is no key.
        if not any(_matches(path, key) for key in described)
        and not any(parent.endswith(".*") and _matches(path, parent) for parent in parents)
    }
    assert not missing, f"docs/metrics.md says nothing about: {sorted(missing)}"
    gone = {key for key in described if not any(_matches(path, key) for path in found)}
    assert not gone, f"docs/metrics.md describes what is not there: {sorted(gone)}"
    for alias, original in ALIASES.items():
        parent, _, name = alias.rpartition(".*.")
        for inner in document[parent].values():
            assert inner[name].keys() == document[original].keys()


def keys_that_need_luck(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Keys of a run that diverges, and of a machine with a GPU."""
    divergence = dataclasses.asdict(output_match.Divergence("code_000", 3))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name="GPU", total_memory=2**34)
    )
    gpu = machine.describe()["gpu"]
    monkeypatch.undo()
    return {
        *keys_of([divergence], "output_matches_baseline.divergences"),
        *keys_of(gpu, "machine.gpu"),
    }


def test_limits_are_those_of_the_code() -> None:
    (table,) = section_of(METRICS, "Can the figures").tables
    defaults = {
        "resamples": _default(statistics.paired_bootstrap_ratio, "resamples"),
        "confidence": _default(statistics.paired_bootstrap_ratio, "confidence"),
        "outlier": _default(statistics.modified_z_outliers, "threshold"),
    }
    for row in table:
        module, _, name = row["where"].strip("`").partition(".")
        home = {"statistics": statistics, "caveats": caveats}[module]
        value = defaults.get(row["limit"], getattr(home, name))
        assert float(row["value"]) == value, row["limit"]


def _default(function: Callable[..., object], parameter: str) -> Any:
    return inspect.signature(function).parameters[parameter].default


def test_the_text_on_trust_agrees_with_its_table() -> None:
    section = section_of(METRICS, "Can the figures")
    limits = [float(row["value"]) for row in section.tables[0]]
    robust = 1 / stdlib_statistics.NormalDist().inv_cdf(0.75)  # median absolute deviation to standard deviation
    allowed = {*limits, *(100 * limit for limit in limits), round(robust, 4)} | STRUCTURAL
    prose = section.prose.replace("Hesterberg 2015", "")
    assert numbers_in(prose) <= {round(number, 9) for number in allowed}


def test_other_tools_are_compared_by_keys_that_exist(document: dict[str, Any]) -> None:
    table = section_of(METRICS, "The same thing").tables[0]
    names = {key.rpartition(".")[2] for key in keys_of(document)}
    for row in table:
        assert row["specprof"].strip("`") in names


def test_the_example_by_all_definitions() -> None:
    section = section_of(METRICS, "The same thing")
    printed = {row["number"].strip("`"): row["value"] for row in section.tables[1]}
    first = [make_round(4, accepted) for accepted in (4, 4, 2, 3)]
    last = make_round(1, 1, cut=True)
    second = [make_round(4, accepted) for accepted in (0, 1)]
    prose = " ".join(section.prose.split())
    assert "accepts 4, 4, 2 and 3 drafts, then a last round has room for 1 draft and accepts it" in prose
    assert "returns 20 tokens. The second accepts 0 and 1, and returns 4." in prose
    requests = [[*first, last], second]
    tokens = [1 + sum(round.num_accepted + 1 for round in rounds) for rounds in requests]
    assert tokens == [20, 4]

    ours = AcceptanceCounts.of([*first, last, *second], greedy=True)
    uncut = [dataclasses.replace(round, cut=False) for rounds in requests for round in rounds]
    all_rounds = AcceptanceCounts.of(uncut, greedy=True)
    by_request = [
        AcceptanceCounts.of([dataclasses.replace(round, cut=False) for round in rounds], greedy=True)
        for rounds in requests
    ]
    expected = {
        "mean_acceptance_length": ours.mean_acceptance_length,
        "draft_acceptance_rate": ours.draft_acceptance_rate,
        "length, cut round counted": all_rounds.mean_acceptance_length,
        "rate, cut round counted": all_rounds.draft_acceptance_rate,
        "length, mean over requests": _mean([counts.mean_acceptance_length for counts in by_request]),
        "rate, mean over requests": _mean([counts.draft_acceptance_rate for counts in by_request]),
        "length, completion tokens over verifications, mean over requests": _mean(
            [n / len(rounds) for n, rounds in zip(tokens, requests, strict=True)]
        ),
        "length without the target's token": all_rounds.accepted_per_step,
        "Accepted per Verified, mean over requests": _mean(
            [
                (counts.num_accepted_draft_tokens + counts.num_spec_steps)
                / (counts.num_draft_tokens + counts.num_spec_steps)
                for counts in by_request
            ]
        ),
    }
    assert printed.keys() == expected.keys()
    for name, value in expected.items():
        assert value is not None
        check_printed(printed[name], value, name)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    assert len(known) == len(values)
    return sum(known) / len(known)
