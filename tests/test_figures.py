"""Figures of studies of every shape: what they draw fits, is in the palette's colours, and says what was measured."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import sample_store
from specprof.experiments.matrix import DraftLength, Missing
from specprof.experiments.results import read_contents
from specprof.experiments.study import Study, of_sweep
from specprof.profiling.comparison import compare
from specprof.profiling.cost_model import CostCurve
from specprof.profiling.metrics import GenerationResult
from specprof.profiling.numbers import fixed, interval, milliseconds, percent, times
from specprof.reports import figures
from specprof.reports.document import Figure
from specprof.reports.drawing import fit, text_width
from specprof.reports.figure_data import labels
from specprof.reports.palette import COLORS
from test_comparison import ar, distinct, sd
from test_metrics import make_round

OF_STUDIES = (figures.speedup_heatmap, figures.predicted_against_measured)
OF_ONE = (
    figures.acceptance_by_position,
    figures.accepted_per_round,
    figures.latencies,
    figures.time_per_token,
    figures.cost_curve,
)
PHASE_FIELDS = ("draft_seconds", "verify_seconds", "sample_seconds", "overhead_seconds")
LIGHT = {light for light, _ in COLORS.values()}
CURVE = CostCurve(
    draft_seconds=tuple(0.0004 * k for k in range(5)),
    verify_seconds=tuple(0.004 * (1 + 0.05 * k) for k in range(5)),
    rest_seconds=(0.0004,) + (0.0006,) * 4,
    num_rounds=(12,) * 5,
)


def a_study(
    results: Mapping[DraftLength, Sequence[GenerationResult]],
    domain_of: Mapping[str, str],
    *,
    curve: CostCurve | None = None,
    missing: Sequence[Missing] = (),
    of: Sequence[str] = (),
    temperature: float = 0.0,
    **changes: Any,
) -> Study:
    study = Study(
        name="20261121-101500-7f3c",
        title="tiny_dev  greedy",
        pair="tiny_dev",
        drafter="model",
        temperature=temperature,
        domains=tuple(of) or tuple(dict.fromkeys(domain_of.values())),
        domain_of=domain_of,
        comparisons={
            k: compare(of_k, temperature=temperature, domains=domain_of, curve=curve) for k, of_k in results.items()
        },
        results={k: tuple(of_k) for k, of_k in results.items()},
        missing=tuple(missing),
        curve=curve,
        caveats=(),
        config={},
        models={},
        machine={},
        machine_class="aaaaaaaaaaaa",
        commands=(),
        is_sweep=len(results) > 1,
    )
    return dataclasses.replace(study, **changes)


def measured(
    ks: Sequence[DraftLength], domains: Sequence[str], *, prompts: int = 5, rounds: int = 12, seed: int = 0, **more: Any
) -> Study:
    """Of rounds drawn by chance; ``auto`` drafts 1 to 6."""
    draw = np.random.default_rng(seed)
    domain_of = {f"{domain[:40]}-{number}": domain for domain in domains for number in range(prompts)}
    results: dict[DraftLength, list[GenerationResult]] = {}
    for k in ks:
        results[k] = []
        for prompt_id in domain_of:
            made = []
            for _ in range(rounds):
                drafted = int(draw.integers(1, 7)) if k == "auto" else k
                accepted = int(np.cumprod(draw.random(drafted) < 0.6).sum())
                times_of_phases = draw.gamma(9, (0.0003 * drafted, 0.0012 + 0.00004 * drafted, 0.00004, 0.00002)).T / 9
                seconds: dict[str, Any] = dict(zip(PHASE_FIELDS, map(float, times_of_phases), strict=True))
                made.append(make_round(drafted, accepted, **seconds))
            plain = ar(prompt_id, tokens=sum(round.num_accepted + 1 for round in made), slow=0.12)
            results[k] += [plain, distinct(made, f"SD-K{k}", 0, prompt_id)]
    return a_study(results, domain_of, **more)


def every_figure(*studies: Study) -> list[Figure]:
    """That the studies have; the names of what is drawn of one study by its index."""
    found = [draw(studies) for draw in OF_STUDIES]
    for index, study in enumerate(studies):
        found += [draw(study, name=f"{draw.__name__.replace('_', '-')}-{index}") for draw in OF_ONE]
    return [figure for figure in found if figure is not None]


def cells(figure: Figure) -> list[list[str]]:
    return [[cell.text for cell in row] for row in figure.table.rows]


def drawn_texts(figure: Figure) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(figure.svg).iter() if element.tag.endswith("text")]


# What holds for every figure

NAMES_OF_ALL_KINDS = (
    "code",
    "$x_1$ <script>alert(1)</script> & \"quoted\" 'too'",
    "W" * 200,
    "\u202eright to left\u2066",
    "nul \0 bell \a escape \x1b[31m",
    "漢字かな交じり文の長い名前がここに続く",
    "surrogate \ud800 byte \udc80 and \uffff",
    "two\nlines\tand a tab",
    "combining e\u0301\u0302\u0303",
    "🙂 emoji 👩‍👩‍👧",
    "  ",
    "summarization",
)


def shapes() -> dict[str, Callable[[], list[Study]]]:
    one, all_cut = [make_round(2, 1)], [make_round(4, 1, cut=True)] * 3
    none_accepted = [ar("a"), sd("a", accepted=[0, 0, 0]), ar("b"), sd("b", accepted=[0, 0])]
    failure = sample_store.failure(1)
    skipped = dataclasses.replace(failure, reason="skipped")
    lost = [
        Missing("code", 4, 0, 2, failure),
        Missing("chat", 2, 1, 2, None),
        Missing("maths", 2, 0, 2, None),
        Missing("code", 8, 0, 2, skipped),
        Missing("maths", 0, 1, 2, None),
    ]
    return {
        "one of each": lambda: [measured([4], ["code"], curve=CURVE)],
        "three domains": lambda: [measured([4], ["code", "conversation", "summarization"], curve=CURVE)],
        "a sweep": lambda: [measured([1, 2, 4, "auto"], ["code", "conversation", "summarization"])],
        "auto alone": lambda: [measured(["auto"], ["code", "conversation"])],
        "large": lambda: [measured(range(1, 17), [f"domain {i}" for i in range(12)], prompts=2, rounds=4)],
        "hostile names": lambda: [
            measured([1, 16], NAMES_OF_ALL_KINDS, title="$a$ <b> \x1b[31m " + "M" * 300, curve=CURVE),
            measured([3], NAMES_OF_ALL_KINDS[:5], title="\u202e", seed=1),
        ],
        "alike": lambda: [measured([k], ["code"], seed=k) for k in (1, 2)] * 2,
        "one prompt": lambda: [measured([3], ["code"], prompts=1)],
        "one round": lambda: [a_study({2: [ar("a", tokens=2), distinct(one, "SD-K2", 0, "a")]}, {"a": "code"})],
        "zero accepted": lambda: [a_study({2: none_accepted}, {"a": "x", "b": "y"}, curve=CURVE)],
        "all cut": lambda: [a_study({4: [ar("a"), distinct(all_cut, "SD-K4", 0, "a")]}, {"a": "code"})],
        "plain decoding alone": lambda: [a_study({4: [ar("a"), ar("b")]}, {"a": "x", "b": "y"})],
        "no baseline": lambda: [a_study({4: [sd("a", k=4), sd("b", k=4)]}, {"a": "x", "b": "y"})],
        "no domains": lambda: [a_study({2: [ar("a"), sd("a"), ar("b"), sd("b")]}, {})],
        "sampling": lambda: [measured([2, 4], ["code", "chat"], temperature=0.8)],
        "failed cells": lambda: [
            measured([1, 2], ["code", "chat"], missing=lost, of=["code", "chat", "maths"]),
            a_study({}, {}, of=["code"], missing=lost[:1]),
        ],
        "nothing": lambda: [a_study({}, {})],
        "a clock too coarse": lambda: [
            a_study({2: [ar("a", slow=0), sd("a"), ar("b", slow=0), sd("b")]}, {"a": "x", "b": "y"})
        ],
        "a thousand times": lambda: [
            a_study({2: [ar("a", slow=5000), sd("a"), ar("b", slow=1), sd("b")]}, {"a": "x", "b": "y"})
        ],
    }  # fmt: skip


@pytest.fixture(scope="module", params=shapes())
def drawn(request: pytest.FixtureRequest) -> list[Figure]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return every_figure(*shapes()[request.param]())


def test_most_shapes_have_most_figures() -> None:
    assert len(every_figure(*shapes()["three domains"]())) == 7
    assert len(every_figure(*shapes()["a sweep"]())) == 7
    assert [f.name for f in every_figure(*shapes()["one of each"]())] == [
        "prediction", "acceptance-by-position-0", "accepted-per-round-0", "latencies-0", "time-per-token-0",
        "cost-curve-0",
    ]  # fmt: skip
    assert every_figure(*shapes()["nothing"]()) == []


def test_a_figure_is_xml_of_its_own(drawn: list[Figure]) -> None:
    for figure in drawn:
        root = ElementTree.fromstring(figure.svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert figure.svg.startswith("<svg ") and "width" not in root.attrib and "height" not in root.attrib
        assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {
            "svg", "g", "defs", "path", "use", "text", "clipPath", "rect", "pattern",
        }  # fmt: skip
        assert "<style" not in figure.svg and "http" not in figure.svg.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_ids_are_the_figures_own_and_references_meet_them(drawn: list[Figure]) -> None:
    everywhere: list[str] = []
    for figure in drawn:
        ids = [element.attrib["id"] for element in ElementTree.fromstring(figure.svg).iter() if "id" in element.attrib]
        references = re.findall(r'href="#([^"]*)"', figure.svg) + re.findall(r"url\(#([^)]*)\)", figure.svg)
        assert all(re.fullmatch(rf"{re.escape(figure.name)}-\d+", name) for name in ids)
        assert set(references) == set(ids)
        assert figure.svg.count("href=") + figure.svg.count("url(") == len(references)
        everywhere += ids
    assert len(everywhere) == len(set(everywhere))


def test_colours_are_the_palettes(drawn: list[Figure]) -> None:
    for figure in drawn:
        without_references = re.sub(r'href="[^"]*"|url\([^)]*\)|<text[^>]*>[^<]*</text>', "", figure.svg)
        assert set(re.findall(r"#\w+", without_references)) <= LIGHT
        assert set(re.findall(r"(?:fill|stroke):([^;\"]*)", figure.svg)) <= LIGHT | {"none"} | set(
            re.findall(r"url\([^)]*\)", figure.svg)
        )
        root = ElementTree.fromstring(figure.svg)
        defined = {part for defs in root.iter("{http://www.w3.org/2000/svg}defs") for part in defs.iter()}
        parents = {child: parent for parent in root.iter() for child in parent}
        for element in root.iter():
            if element.tag.rpartition("}")[2] in ("path", "text", "use") and element not in defined:
                style = element.get("style") or parents[element].attrib["style"]
                assert "fill:" in style, "what has no fill is black, on dark ground too"


@dataclasses.dataclass(frozen=True)
class Box:
    text: str
    left: float
    top: float
    right: float
    bottom: float


def boxes(figure: Figure) -> list[Box]:
    """Where texts stand, in a font as wide as any."""
    found = []
    for element in ElementTree.fromstring(figure.svg).iter("{http://www.w3.org/2000/svg}text"):
        style, text = element.attrib["style"], element.text or ""
        size = float(re.findall(r"([\d.]+)px", style)[0])
        assert size >= 9
        width = text_width(text, size) * (1.08 if "bold" in style else 1)
        x, y = float(element.attrib["x"]), float(element.attrib["y"])
        left = x - width * {"start": 0, "middle": 0.5, "end": 1}[re.findall(r"text-anchor:(\w+)", style)[0]]
        found.append(Box(text, left, y - 0.72 * size, left + width, y + 0.2 * size))
    return found


def test_texts_are_within_the_sheet_and_apart(drawn: list[Figure]) -> None:
    for figure in drawn:
        _, _, width, height = map(float, ElementTree.fromstring(figure.svg).attrib["viewBox"].split())
        assert width == 720
        for box in (found := boxes(figure)):
            assert box.left >= -0.5 and box.right <= width + 0.5, (figure.name, box)
            assert box.top >= 0 and box.bottom <= height, (figure.name, box)
        for a, b in itertools.combinations(found, 2):
            apart = a.right <= b.left + 0.5 or b.right <= a.left + 0.5 or a.bottom <= b.top or b.bottom <= a.top
            assert apart, (figure.name, a, b)


def test_sizes_are_bounded(drawn: list[Figure]) -> None:
    for figure in drawn:
        assert len(figure.svg) < 120_000, figure.name


def test_tables_are_whole(drawn: list[Figure]) -> None:
    for figure in drawn:
        assert figure.caption and figure.title and re.fullmatch(r"[a-z0-9-]+", figure.name)
        assert figure.table.rows
        assert [column.align for column in figure.table.columns][:2] == ["left", "right"]
        for row in figure.table.rows:
            assert len(row) == len(figure.table.columns)
            assert all(cell.text for cell in row)
            assert not any(word in cell.text for cell in row[1:] for word in ("nan", "inf", "None"))
        assert "nan" not in figure.svg.replace("&lt;", "") and "nan" not in figure.caption


def test_drawn_twice_and_elsewhere_the_same() -> None:
    program = (
        "import hashlib, test_figures as t\n"
        "found = t.every_figure(*t.shapes()['a sweep'](), *t.shapes()['three domains']())\n"
        "print(hashlib.sha256(''.join(f.svg + f.caption for f in found).encode()).hexdigest())"
    )
    settings = {"PYTHONPATH": str(Path(__file__).parent), "PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | settings, capture_output=True, text=True, check=True
    )
    found = every_figure(*shapes()["a sweep"](), *shapes()["three domains"]())
    assert done.stdout.strip() == hashlib.sha256("".join(f.svg + f.caption for f in found).encode()).hexdigest()


def test_the_readers_matplotlib_settings_neither_enter_nor_change() -> None:
    import matplotlib

    (study,) = shapes()["three domains"]()
    expected = every_figure(study)
    with matplotlib.rc_context({"lines.marker": "x", "font.size": 40, "text.color": "red", "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        assert every_figure(study) == expected
        assert dict(matplotlib.rcParams) == before


def test_figures_need_no_torch() -> None:
    program = (
        "import sys, specprof.reports.figures; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# Text from outside


@pytest.mark.parametrize("text", NAMES_OF_ALL_KINDS)
@pytest.mark.parametrize("room", [20.0, 100.0, 160.0])
def test_fitted_text_fits_and_is_visible(text: str, room: float) -> None:
    shown = fit(text, room, 11.5)
    assert text_width(shown, 11.5) <= room
    assert not set(shown) & set("\0\a\x1b\n\t\u202e\u2066\ud800\udc80\uffff")
    assert shown in (text, "(blank)") or "…" in shown or "\N{REPLACEMENT CHARACTER}" in shown


def test_text_that_fits_is_left_alone() -> None:
    assert fit("summarization", 160) == "summarization"
    assert fit("a" * 60, 160).endswith("a…")
    assert len(fit("\u0301" * 10_000, 160)) <= 161


def test_dollars_are_dollars() -> None:
    (study,) = [measured([2], ["$x^2$", "$"])]
    for figure in every_figure(study):
        texts = drawn_texts(figure)
        assert figure.name in ("prediction", "latencies-0", "time-per-token-0") or "$x^2$" in texts


# What each figure says


def test_speedups_are_the_comparisons() -> None:
    study = measured([1, 2, 4], ["code", "chat"], prompts=5)
    figure = figures.speedup_heatmap([study])
    assert figure is not None
    assert [column.name for column in figure.table.columns] == ["", "K = 1", "K = 2", "K = 4"]
    assert [row[0] for row in cells(figure)] == ["code", "chat", "all prompts"]
    for row in figure.table.rows:
        best = None
        for cell, (k, comparison) in zip(row[1:], study.comparisons.items(), strict=True):
            domain = comparison.domains.get(row[0].text)
            speedup = domain.speedup_decode if domain else comparison.speedup_decode
            assert speedup is not None and speedup.value is not None
            assert cell.text == f"{times(speedup.value)} {interval(speedup)}"
            assert times(speedup.value) in drawn_texts(figure)
            best = max(filter(None, (best, (speedup.value, k))))
        assert best is not None
        marked = [k for cell, k in zip(row[1:], study.comparisons, strict=True) if cell.mark == "best"]
        assert marked == ([best[1]] if best[0] > 1 else [])


def test_cells_that_failed_say_so() -> None:
    figure = figures.speedup_heatmap(shapes()["failed cells"]()[:1])
    assert figure is not None
    code, chat, maths, _ = cells(figure)
    assert code[3:] == ["failed", "skipped"] and chat[2].endswith("(1 of 2)") and maths[2] == "0 of 2"
    assert {"failed", "skipped", "1 of 2", "0 of 2"} <= set(drawn_texts(figure))
    assert "3 cells could not be measured" in figure.caption
    assert figure.table.rows[0][3].mark == "failed"


def test_a_sweep_of_a_store(tmp_path: Path) -> None:
    failed = sample_store.config(8)
    sample_store.write(
        tmp_path,
        [*sample_store.story(), sample_store.cell(failed), sample_store.failure(9, failed, reason="out of memory")],
    )
    (study,) = of_sweep(read_contents(tmp_path, with_rounds=True), "results")
    assert len(every_figure(study)) == 5
    figure = figures.speedup_heatmap([study])
    assert figure is None, "one number of one domain, and a failure that others tell of"


def test_a_number_alone_is_no_figure() -> None:
    assert figures.speedup_heatmap([measured([4], ["code"])]) is None
    figure = figures.speedup_heatmap([measured([4], ["code"]), measured([4], ["code"], seed=1)])
    assert figure is not None
    names = [row[0] for row in cells(figure)]
    assert len(set(names)) == 2 and names[0] == "tiny_dev greedy (1): code"
    apart = [measured([4], ["code"]), measured([4], ["code"], name="b"), measured([4], ["code"], machine_class="c")]
    assert labels(apart) == ["tiny_dev greedy, 20261121-101500-7f3c, aaaaaaaaaaaa", "tiny_dev greedy, b",
                             "tiny_dev greedy, 20261121-101500-7f3c, c"]  # fmt: skip


def test_more_rows_than_can_be_drawn() -> None:
    many = [f"domain {number}" for number in range(40)]
    studies = [measured([1, 2], many, prompts=1, rounds=2, name=name) for name in "ab"]
    figure = figures.speedup_heatmap(studies)
    assert figure is not None
    assert len(figure.table.rows) == 82 and "2 rows of 82" in figure.caption
    assert drawn_texts(figure).count("all prompts") == 2


def test_acceptance_is_the_comparisons() -> None:
    study = measured([2, 4], ["code", "chat"])
    figure = figures.acceptance_by_position(study)
    acceptance = study.comparisons[4].domains["chat"].acceptance
    assert figure is not None and acceptance is not None
    rows = {row[0]: row[1:] for row in cells(figure)}
    rounds = str(acceptance.num_spec_steps)
    assert rows["chat: accepted"] == [*map(percent, acceptance.acceptance_rate_per_pos), rounds]
    assert rows["chat: if reached"] == [*map(percent, acceptance.conditional_acceptance_rate), rounds]
    assert len(rows) == 3 * 3
    overall = study.comparisons[4].acceptance
    assert overall is not None
    assert f"first place in {percent(overall.acceptance_rate_per_pos[0])} of rounds" in figure.caption


def test_rates_of_few_rounds_are_in_the_table_but_not_drawn() -> None:
    # the third place is reached by one round only, which accepts it
    results = [ar("a", tokens=20), sd("a", accepted=[1] * 6 + [3] + [0] * 3, k=3)]
    figure = figures.acceptance_by_position(a_study({3: results}, {"a": "code"}))
    assert figure is not None and cells(figure)[2] == ["code: if reached", "70 %", "14 %", "100 %", "10"]
    dashed = re.findall(r'd="(M [^"]*)"[^>]*stroke-dasharray[^>]*stroke:#b55208', figure.svg)
    assert [path.count("L") for path in dashed if path.count("L") != 2] == [1]


def test_intervals_of_shares_are_wilsons() -> None:
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    results = [ar("a", tokens=20), sd("a", accepted=[1] * 7 + [0] * 3, k=1)]
    figure = figures.acceptance_by_position(a_study({1: results}, {"a": "code"}))
    assert figure is not None
    low, high = binomtest(7, 10).proportion_ci(method="wilson")
    assert cells(figure)[1] == ["code: 95 % interval", f"{low * 100:.0f}\N{EN DASH}{high * 100:.0f} %", "10"]


def test_accepted_tokens_are_the_histogram_and_the_law_is_geometric() -> None:
    # 10 of 16 places judged are right: 0 accepted in 5 rounds, 1 in one, 3 in 3
    results = [ar("a", tokens=19), sd("a", accepted=[0] * 5 + [1] + [3] * 3, k=3)]
    study = a_study({3: results}, {"a": "code"})
    figure = figures.accepted_per_round(study)
    acceptance = study.comparisons[3].acceptance
    assert figure is not None and acceptance is not None and acceptance.alpha == pytest.approx(10 / 16)
    alpha = acceptance.alpha or 0.0
    shares = [5 / 9, 1 / 9, 0, 3 / 9]
    law = [1 - alpha, alpha * (1 - alpha), alpha**2 * (1 - alpha), alpha**3]
    assert cells(figure)[:2] == [
        ["code: rounds", *map(percent, shares), fixed(10 / 9), "0.62", "9"],
        ["code: with alpha alone", *map(percent, law), fixed(alpha + alpha**2 + alpha**3), "0.62", "-"],
    ]
    assert "rounds differ more than that" in figure.caption


def test_latencies_are_the_comparisons() -> None:
    study = measured([2, 4], ["code", "chat"], prompts=2, rounds=400)
    figure, best = figures.latencies(study), study.headline
    assert figure is not None and best is not None and best.baseline is not None and best.speculative is not None
    rows = {row[0]: row[1:] for row in cells(figure)}
    names = [column.name for column in figure.table.columns[1:]]
    k = study.best_k
    assert names == [f"{what}, {arm}" for what in ("a round", "the first token", "an emitted token")
                     for arm in ("plain decoding", f"K = {k}")]  # fmt: skip
    assert list(rows) == ["p1", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "max", "number"]
    for quantile, name in (("p50", "latency_p50"), ("p95", "latency_p95"), ("p99", "latency_p99")):
        for column, arm in ((0, best.baseline), (1, best.speculative)):
            assert rows[quantile][column] == milliseconds(getattr(arm, name))
    assert rows["p50"][3] == milliseconds(best.speculative.ttft_seconds)
    assert rows["number"] == [str(n) for n in (
        best.baseline.num_rounds, best.speculative.num_rounds, 4, 4,
        best.baseline.num_tokens - 4, best.speculative.num_tokens - 4)]  # fmt: skip
    curves = re.findall(r'<path d="(M [^"]*)"[^>]*stroke:(?:#00704f|#5b626b)', figure.svg)
    assert max(curve.count("L") for curve in curves) == 299, "thinned to 300 points"


def test_prompts_of_one_arm_alone_are_left_out() -> None:
    results = [ar("a"), sd("a"), ar("b", slow=100)]
    figure = figures.latencies(a_study({2: results}, {"a": "x", "b": "x"}))
    assert figure is not None and cells(figure)[-1][1:] == ["6", "3", "1", "1", "6", "6"]


def test_times_are_the_comparisons_and_sum_up() -> None:
    study = measured([2, 4], ["code", "chat"])
    figure = figures.time_per_token(study)
    assert figure is not None
    plain, *others = cells(figure)
    assert plain[:2] == ["plain decoding", "-"] and [row[0] for row in others] == ["K = 2", "K = 4"]
    for row, comparison in zip(others, study.comparisons.values(), strict=True):
        assert comparison.speculative is not None
        phases = comparison.speculative.phases
        parts = [phases.draft, phases.verify, phases.sample, phases.overhead]
        assert [cell.split(" (")[1] for cell in row[1:5]] == [f"{percent(part.share)})" for part in parts]
        assert sum(float(cell.split()[0]) for cell in row[1:5]) == pytest.approx(float(row[5]), abs=0.003)
    assert {"draft", "verify", "sample", "overhead"} <= set(drawn_texts(figure))


def test_predictions_are_the_comparisons() -> None:
    sweep = measured([1, 2, 4], ["code", "chat"])
    figure = figures.predicted_against_measured([sweep])
    assert figure is not None
    for row, comparison in zip(cells(figure), sweep.comparisons.values(), strict=True):
        assert comparison.costs is not None and comparison.speedup_decode is not None
        predicted = comparison.costs.speedup_predicted_with_ar_overhead
        assert row[1:] == [
            times(comparison.speedup_decode.value),
            interval(comparison.speedup_decode),
            times(predicted),
        ]

    run = measured([4], ["code", "chat"], curve=CURVE)
    figure = figures.predicted_against_measured([run])
    assert figure is not None
    predictions = run.comparisons[4].predictions
    assert [row[0] for row in cells(figure)] == ["K = 1", "K = 2", "K = 3", "K = 4"]
    assert [row[4:] for row in cells(figure)] == [
        [times(p.speedup), times(p.speedup_from_alpha), fixed(p.tokens_per_round)] for p in predictions
    ]
    assert cells(figure)[0][1:4] == ["-", "-", "-"]
    costs = run.comparisons[4].costs
    assert costs is not None and costs.speedup_predicted_with_ar_overhead != pytest.approx(predictions[3].speedup, 0.02)
    assert cells(figure)[3][3] == times(costs.speedup_predicted_with_ar_overhead)  # its own rounds', not the survey's
    assert f"K = {max(predictions, key=lambda p: p.speedup).k} should do best" in figure.caption

    several = figures.predicted_against_measured([run, sweep])
    assert several is not None
    assert [row[1] for row in cells(several)] == ["4", "1", "2", "4"]
    assert "off by" in several.caption


def test_costs_are_the_curves() -> None:
    study = measured([4], ["code"], curve=CURVE)
    figure = figures.cost_curve(study)
    assert figure is not None
    rows = cells(figure)
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    assert rows[4][1:7] == ["1.600", "4.800", "0.600", "7.000", "1.20", fixed(CURVE.break_even_tau(4))]
    assert rows[0][6:] == ["-", "-"]
    assert [row[7] for row in rows[1:]] == [fixed(p.tokens_per_round) for p in study.comparisons[4].predictions]


def test_costs_of_a_sweep_are_its_rounds() -> None:
    study = measured([2, 4], ["code"])
    figure = figures.cost_curve(study)
    assert figure is not None
    rows = cells(figure)
    for row, comparison in zip(rows[1:], study.comparisons.values(), strict=True):
        costs, speedup = comparison.costs, comparison.speedup_decode
        assert costs is not None and speedup is not None and costs.tokens_per_round is not None
        assert costs.speedup_predicted_with_ar_overhead is not None
        assert row[5] == fixed(costs.verify_ratio)
        assert row[6:] == [fixed(costs.tokens_per_round / costs.speedup_predicted_with_ar_overhead),
                           fixed(costs.tokens_per_round)]  # fmt: skip
    assert figures.cost_curve(measured([4], ["code"])) is None
    assert figures.cost_curve(measured(["auto"], ["code"])) is None
