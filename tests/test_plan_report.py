"""The tables of a sweep, before it and after it, as text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from specprof.data.prompts import Prompt
from specprof.errors import UnavailableError
from specprof.experiments.estimate import PairEstimate
from specprof.experiments.matrix import DraftLength, Matrix, Missing, matrices
from specprof.experiments.plan import Plan, Unavailable
from specprof.experiments.records import Failure, GenerationKey
from specprof.experiments.remaining import Remaining
from specprof.experiments.results import read_contents
from specprof.profiling.comparison import Comparison
from specprof.reports import matrix as matrix_report
from specprof.reports import plan as plan_report
from specprof.reports.tables import to_text
from toy_sweep import ELSEWHERE, HERE, Inline, go_on, plan_of, prompts

DOMAINS = ("code", "conversation", "summarization")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    """Three domains, K 1 and 2, five prompts twice."""
    return found(plan_of(prompts(5, DOMAINS)), tmp_path_factory.mktemp("measured"))[0]


def found(plan: Plan, directory: Path, *machine_classes: str) -> list[Matrix]:
    """What a toy sweep of a plan comes to on each of some machine classes."""
    for name in machine_classes or (HERE,):
        go_on(plan, directory, executor=Inline(name), machine_class=name)
    return matrices(read_contents(directory, with_rounds=True), {cell.config_hash for cell in plan.cells})


def text(*shown: Matrix, width: int = 120, color: bool = False) -> str:
    written = to_text(matrix_report.render(shown), width=width, color=color, ascii=True)
    assert all(len(line) <= width for line in written.splitlines()) or color
    return written


def table(label: str, written: str) -> list[str]:
    """The lines of a table, from its heading to the empty line after it."""
    lines = written.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(label))
    return lines[start : lines.index("", start)]


def failure(reason: str, message: str, hint: str | None = None) -> Failure:
    return Failure("hash", HERE, "session", 1, "now", reason, message, hint, None, None)


def with_speedup(matrix: Matrix, domain: str, values: dict[DraftLength, float]) -> Matrix:
    """The same, had the draft lengths been so fast in one domain."""
    changed: dict[DraftLength, Comparison] = {}
    for k, comparison in matrix.comparisons.items():
        of = comparison.domains[domain]
        assert of.speedup_decode is not None
        speedup = dataclasses.replace(of.speedup_decode, value=values[k])
        domains = comparison.domains | {domain: dataclasses.replace(of, speedup_decode=speedup)}
        changed[k] = dataclasses.replace(comparison, domains=domains)
    return dataclasses.replace(matrix, comparisons=changed)


# What was measured


def test_draft_lengths_stand_below_each_other_and_domains_beside(measured: Matrix) -> None:
    written = text(measured)
    assert written.startswith("tiny_dev  greedy\n")
    for label in ("speedup", "tokens/round"):
        heading, *rows = table(label, written)
        assert heading.split() == [label, *DOMAINS, "all"]
        assert [row[:5] for row in rows] == ["K = 1", "K = 2"]
    figures = re.findall(r"(\d\.\d\d)x(?: \*)? \[(\d\.\d\d), (\d\.\d\d)\]", written)
    assert len(figures) == 8
    assert all(float(low) <= float(value) <= float(high) for value, low, high in figures)
    some = measured.comparisons[2].domains["code"].speedup_decode
    assert some is not None and f"{some.value:.2f}x" in table("speedup", written)[2]


def test_the_best_length_of_each_domain_is_marked_and_none_of_all(measured: Matrix) -> None:
    faster = with_speedup(measured, "code", {1: 1.31, 2: 1.32})
    faster = with_speedup(faster, "conversation", {1: 1.52, 2: 1.51})
    faster = with_speedup(faster, "summarization", {1: 1.01, 2: 1.02})
    rows = table("speedup", text(faster))
    assert [re.findall(r"(\d\.\d\d)x \*", row) for row in rows[1:]] == [["1.52"], ["1.32", "1.02"]]


def test_where_nothing_is_faster_than_plain_decoding_nothing_is_best(measured: Matrix) -> None:
    slower = with_speedup(measured, "conversation", {1: 0.97, 2: 0.81})
    written = text(slower)
    assert "0.97x [" in written and "0.97x *" not in written
    assert "No K measured is faster than plain decoding: conversation." in written
    assert "No K measured" not in text(measured)


@pytest.mark.parametrize("width", [80, 60, 40])
def test_a_narrow_terminal_loses_no_figure(measured: Matrix, width: int) -> None:
    written = text(measured, width=width)
    wide = text(measured)
    assert "..." not in written and "\N{HORIZONTAL ELLIPSIS}" not in written
    for pattern in (r"\d\.\d\dx", r"\[\d\.\d\d, \d\.\d\d\]"):
        assert sorted(re.findall(pattern, written)) == sorted(re.findall(pattern, wide))
    assert re.search(r"^K = 1 .*\]", wide, re.MULTILINE), "with room, an interval stands beside its figure"
    assert not re.search(r"^K = 1 .*\]", written, re.MULTILINE)


def test_what_the_figures_rest_on_is_said(measured: Matrix) -> None:
    written = text(measured)
    assert re.search(r"^Decode speedup over plain decoding, \d+ tokens/s; \* best K measured\.$", written, re.MULTILINE)
    assert "15 prompts, 2 repetitions; 95 % intervals over prompts." in written
    assert "Output: all outputs are token-identical to plain decoding." in written
    assert "5 prompts in a domain: so few make the interval wide; use 10 or more (-n)." in written


def test_below_five_prompts_a_domain_has_no_interval(tmp_path: Path) -> None:
    written = text(found(plan_of(prompts(4, DOMAINS)), tmp_path)[0])
    assert all(row.count("[") == 1 for row in table("speedup", written)[1:]), "only that of all domains together"
    assert "4 prompts in a domain: too few for an interval; use 10 or more (-n)." in written


def test_enough_prompts_are_not_called_few(tmp_path: Path) -> None:
    (matrix,) = found(plan_of(prompts(10, ("code",)), repetitions=1, k=(1,)), tmp_path)
    written = text(matrix)
    assert "10 prompts, 1 repetition; 95 %" in written and "so few" not in written
    assert table("speedup", written)[0].split() == ["speedup", "code"], "one domain needs no column for all"


def test_drift_and_loops_are_told_where_they_matter(measured: Matrix) -> None:
    for value, said in ((0.2, "became 20 % slower"), (-0.1, "became 10 % faster"), (0.04, None)):
        written = text(dataclasses.replace(measured, drift=value))
        assert (f"Plain decoding {said} during" in written) if said else "during the sweep" not in written
    comparisons = {
        k: dataclasses.replace(c, baseline=c.baseline and dataclasses.replace(c.baseline, repetition=0.58))
        for k, c in measured.comparisons.items()
    }
    loops = dataclasses.replace(measured, comparisons=comparisons)
    assert "58 % of plain decoding's texts end in a loop, which flatters" in text(loops)
    assert "end in a loop" not in text(measured)


def test_a_drift_of_few_generations_is_no_news(tmp_path: Path) -> None:
    (matrix,) = found(plan_of(prompts(1, ("code",)), repetitions=1), tmp_path)
    assert "during the sweep" not in text(dataclasses.replace(matrix, drift=0.5))


def test_what_decoded_where(measured: Matrix) -> None:
    target = {"model": "some/target", "device": "cpu", "dtype": "float32"}
    on_cpu = dataclasses.replace(measured, models={"target": target}, machine={"cpu": "a CPU", "cores": 2, "gpu": None})
    assert "some/target on cpu (a CPU, 2 cores), float32; at most 8 new tokens" in text(on_cpu)
    gpu = dataclasses.replace(
        measured,
        models={"target": target | {"device": "cuda:0", "dtype": "bfloat16"}},
        machine={"cpu": "a CPU", "cores": 2, "gpu": {"name": "a GPU"}},
        caveats=("random weights",),
    )
    assert "some/target on cuda:0 (a GPU), bfloat16; at most 8 new tokens; random weights" in text(gpu)


def test_machine_classes_are_named_if_there_are_several(tmp_path: Path, measured: Matrix) -> None:
    several = found(plan_of(prompts(1, ("code",))), tmp_path, HERE, ELSEWHERE)
    written = text(*several)
    assert f"machine class {HERE}" in written and f"machine class {ELSEWHERE}" in written
    assert "machine class" not in text(measured)


def test_one_matrix_for_each_temperature_and_drafter(tmp_path: Path) -> None:
    plan = plan_of(prompts(1, ("code",)), temperatures=(0.0, 0.8), drafters=("model", "ngram"))
    written = text(*found(plan, tmp_path))
    titles = [line for line in written.splitlines() if line.startswith("tiny_dev")]
    assert titles == [
        "tiny_dev  greedy",
        "tiny_dev  greedy  drafter ngram",
        "tiny_dev  temperature 0.8",
        "tiny_dev  temperature 0.8  drafter ngram",
    ]


def test_without_colour_there_are_no_control_sequences_and_with_it_the_same_words(measured: Matrix) -> None:
    colored = text(measured, color=True)
    assert "\x1b[" in colored and "\x1b" not in text(measured)
    lines = re.sub(r"\x1b\[[\d;]*m", "", colored).splitlines()
    assert [line.rstrip() for line in lines] == text(measured).splitlines()


def test_names_cannot_command_the_terminal(tmp_path: Path) -> None:
    plan = plan_of([Prompt("p", "evil\x1b[2J[bold]", "a text")])
    written = to_text(matrix_report.render(found(plan, tmp_path)), width=120, color=False)
    assert "\x1b" not in written and "evil\N{REPLACEMENT CHARACTER}[2J[bold]" in written


# What was not


def holes(matrix: Matrix, *, failed: Failure | None, at: Iterable[tuple[str, DraftLength]]) -> Matrix:
    missing = tuple(Missing(domain, k, 1, 4, failed) for domain, k in at)
    return dataclasses.replace(matrix, missing=(*matrix.missing, *missing))


def without_figures(matrix: Matrix, k: DraftLength) -> Matrix:
    return dataclasses.replace(matrix, comparisons={n: c for n, c in matrix.comparisons.items() if n != k})


def test_a_failed_cell_says_so_in_its_place_and_below_why(measured: Matrix) -> None:
    crash = failure("crash", "the worker process was killed by SIGSEGV", "try again")
    written = text(holes(measured, failed=crash, at=[("code", 2)]))
    assert "(failed)" in table("speedup", written)[2] and "(failed)" not in table("speedup", written)[1]
    assert "Failed (crash): code K = 2: the worker process was killed by SIGSEGV (try again)" in written


def test_cells_that_fail_alike_are_told_once(measured: Matrix) -> None:
    crash, skip = failure("out of memory", "no room"), failure("skipped", "not tried: K = 2 ran out of memory")
    both = holes(measured, failed=crash, at=[("code", 2), ("code", 4), ("conversation", 2), ("conversation", 4)])
    both = holes(both, failed=skip, at=[("code", 8), ("summarization", 4), ("summarization", 8)])
    lines = text(both).splitlines()
    assert "Failed (out of memory): code, conversation K = 2, 4: no room" in lines
    assert "Skipped: code K = 8; summarization K = 4, 8: not tried: K = 2 ran out of memory" in lines


def test_many_failures_end_with_where_the_others_are(measured: Matrix) -> None:
    many = measured
    for number in range(12):
        many = holes(many, failed=failure("error", f"reason {number}"), at=[("code", 2)])
    written = text(many)
    assert written.count("Failed (error)") == 8 and "... and 4 more, see `specprof results list`." in written


def test_a_cell_that_is_not_finished_says_how_far_it_is(measured: Matrix) -> None:
    written = text(holes(measured, failed=None, at=[("code", 1)]))
    assert "(1 of 4)" in table("speedup", written)[1]
    assert "(n of m): so many of a cell's generations were made" in written
    assert "(n of m)" not in text(measured)


def test_without_its_baseline_a_domain_has_no_speedup_and_that_is_said(measured: Matrix) -> None:
    changed = {
        k: dataclasses.replace(
            c, domains=c.domains | {"code": dataclasses.replace(c.domains["code"], speedup_decode=None)}
        )
        for k, c in measured.comparisons.items()
    }
    written = text(dataclasses.replace(measured, comparisons=changed))
    assert re.match(r"K = 1 +-  ", table("speedup", written)[1])
    assert "Not measured by plain decoding, so without a speedup: code." in written


def test_where_nothing_was_measured_only_the_reason_stands_and_it_stands_last(measured: Matrix) -> None:
    nothing = without_figures(without_figures(measured, 1), 2)
    nothing = dataclasses.replace(nothing, machine_class="", models={})
    nothing = holes(nothing, failed=failure("load", "no such model", "get it"), at=[(d, 1) for d in DOMAINS])
    written = text(nothing, measured)
    assert written.endswith("\n\ntiny_dev  greedy\nFailed (load): code, conversation, summarization K = 1: "
                            "no such model (get it)\n")  # fmt: skip
    assert written.startswith(text(measured)) and "machine class" not in written


# What is to be done


def shown(plan: Plan, remaining: Remaining, *rows: PairEstimate, width: int = 120) -> str:
    written = to_text(plan_report.render(plan, remaining, rows), width=width, color=False, ascii=True)
    assert all(len(line) <= width for line in written.splitlines())
    return written


def row(pair: str = "tiny_dev", **changes: Any) -> PairEstimate:
    whole = PairEstimate(pair, 6, 2, 1, 30, 20, 12.0, True, 32_000_000)
    return dataclasses.replace(whole, **changes)


def test_a_plan_says_what_is_done_and_what_is_not() -> None:
    plan = plan_of(prompts(2, ("code",)))
    baseline, first, second = plan.cells
    done = [task.key(HERE) for task in plan.tasks if task.cell is first]
    half = [task.key(HERE) for task in plan.tasks if task.cell is baseline][:2]
    remaining = Remaining(plan, [*done, *half], machine_class=HERE)
    remaining.close(second, failure("timeout", "no answer within 2 s"))
    heading, *rows = table("cell", shown(plan, remaining, row()))
    assert heading.split() == ["cell", "pair", "domain", "drafter", "K", "T", "generations", "state"]
    assert [line.split(maxsplit=6)[3:] for line in rows] == [
        ["none", "0", "0", "2 x 2 + 3  5 to make"],
        ["model", "1", "0", "2 x 2  done"],
        ["model", "2", "0", "2 x 2  failed: timeout"],
    ]
    written = shown(plan, remaining, row())
    assert "Failed before: timeout: no answer within 2 s\n--retry-failed tries cells again" in written
    narrow = shown(plan, remaining, row(), width=80)
    assert "\N{HORIZONTAL ELLIPSIS}" not in narrow and "..." not in narrow
    assert sorted(narrow.split()) == sorted(written.split())


def test_several_pairs_are_added_up() -> None:
    plan = plan_of(prompts(1, ("code",)))
    remaining = Remaining(plan, [], machine_class=HERE)
    one, two, total = table("pair", shown(plan, remaining, row(), row("other", seconds=7200.0, weight_bytes=None)))[1:]
    assert one.split() == ["tiny_dev", "6", "2", "1", "30", "20", "12", "s", "32", "MB"]
    assert two.split() == ["other", "6", "2", "1", "30", "20", "2.0", "h", "-"]
    assert total.split() == ["all", "12", "4", "2", "60", "40", "2.0", "h"]
    unknown = table("pair", shown(plan, remaining, row(), row("other", seconds=None)))[-1]
    assert unknown.split()[-1] == "-", "a sum of which a part is unknown is unknown"
    assert "all " not in shown(plan, remaining, row()).splitlines()[2]


def test_a_time_that_was_not_measured_is_called_rough() -> None:
    plan = plan_of(prompts(1, ("code",)))
    remaining = Remaining(plan, [], machine_class=HERE)
    assert "12 s (rough)" in shown(plan, remaining, row(from_measurements=False))
    assert "rough" not in shown(plan, remaining, row())
    assert "rough" not in shown(plan, remaining, row(seconds=0.0, from_measurements=False)), "nothing is to be made"


def test_a_pair_that_cannot_be_had_is_told_once_with_what_to_do() -> None:
    plan = plan_of(prompts(1, DOMAINS))
    error = UnavailableError("far is not cached", "run it once with a network")
    plan = dataclasses.replace(plan, batches=(), unavailable=(Unavailable(plan.cells, error),))
    written = shown(plan, Remaining(plan, [], machine_class=HERE))
    assert written.startswith("cell ")
    assert written.count("far is not cached") == 1
    assert "tiny_dev is not available: far is not cached (run it once with a network)" in written
    assert written.count(" not available\n") == len(plan.cells)


def test_the_same_as_a_document() -> None:
    plan = plan_of(prompts(2, ("code",)))
    measured_keys: list[GenerationKey] = [task.key(HERE) for task in plan.tasks if task.cell is plan.cells[1]]
    remaining = Remaining(plan, measured_keys, machine_class=HERE)
    remaining.close(plan.cells[2], failure("crash", "gone"))
    document = plan_report.to_dict(plan, remaining, [row()])
    assert document["schema"] == "specprof.plan/1"
    assert document["pairs"][0]["num_missing"] == 20
    assert [(cell["num_missing"], cell["failure"]) for cell in document["cells"]] == [(7, None), (0, None), (4, "gone")]
    assert [cell["config_hash"] for cell in document["cells"]] == [cell.config_hash for cell in plan.cells]


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, "-"), (0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")]
)
def test_durations(seconds: float | None, said: str) -> None:
    assert plan_report.duration(seconds) == said


@pytest.mark.parametrize(
    ("models", "machine"),
    [
        ({"target": {"device": "cpu"}}, {}),
        ({"target": 5}, {}),
        ({"target": {"device": "cpu", "model": 5, "dtype": 3}}, {"cpu": 5, "cores": "many"}),
        ({"target": {"device": "cuda:0", "model": "m", "dtype": "float16"}}, {"gpu": "H200"}),
    ],
)
def test_what_a_store_says_of_models_and_machines_may_be_anything(
    measured: Matrix, models: dict[str, Any], machine: dict[str, Any]
) -> None:
    assert "Decode speedup" in text(dataclasses.replace(measured, models=models, machine=machine))
