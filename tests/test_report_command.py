"""`specprof report`: what it writes, what it prints, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import large_run
import sample_store
from command_line import Outcome, command, isolate, ok
from drawn_once import draw_once
from large_run import CURVE, RUN, prompts
from specprof.experiments.saved_runs import read_run
from specprof.experiments.study import of_run
from specprof.profiling.events import Event, PromptEnded
from specprof.reports.report import SCHEMA, to_dict
from specprof.reports.results import finite
from test_import_hygiene import HEAVY

USAGE, RESOURCES = 2, 4
PATH = Path("results", f"{RUN}.jsonl")
WITHOUT_FIGURES = 4


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    draw_once(monkeypatch)
    large_run.write(Path("results"), large_run.run(curve=CURVE))


def refused(code: int, *arguments: str) -> tuple[str, str]:
    """It fails in two lines, having printed and written nothing."""
    before = tree()
    outcome = command("report", *arguments)
    assert (outcome.code, outcome.out) == (code, ""), outcome
    assert "Traceback" not in outcome.err and "this is a bug" not in outcome.err
    assert tree() == before
    return outcome.told


def tree() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def figures(directory: str) -> list[str]:
    return sorted(os.listdir(directory))


# What is written


def test_alone_it_writes_both_forms_of_the_newest_and_prints_where() -> None:
    outcome = ok("report")
    assert outcome.out.splitlines() == [f"results/{RUN}.html", f"results/{RUN}.md"]
    assert "faster than plain decoding" in outcome.err
    page, text = Path(f"results/{RUN}.html").read_text(), Path(f"results/{RUN}.md").read_text()
    assert page.startswith("<!doctype html>") and text.startswith("# ")
    drawn = figures(f"results/{RUN}_figures")
    assert {"time.svg", "latency.svg", "acceptance.svg"} <= set(drawn)
    linked = re.findall(r"\]\(([^)]+\.svg)\)", text)
    assert sorted(linked) == [f"{RUN}_figures/{name}" for name in drawn]
    for name in drawn:
        assert Path(f"results/{RUN}_figures", name).read_text().startswith("<svg")
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600 for path in Path("results").rglob("*.svg"))


def test_it_says_the_same_again() -> None:
    ok("report")
    before = tree()
    ok("report", RUN)
    assert tree() == before


def test_quietly() -> None:
    outcome = ok("report", "-q")
    assert outcome.err == "" and len(outcome.out.splitlines()) == 2


def test_one_form_where_one_is_asked_for() -> None:
    before = set(tree())
    assert ok("report", "--html", "r.html").out == "r.html\n"
    assert set(tree()) - before == {"r.html"}
    assert ok("report", RUN, "--md", "r.md").out == "r.md\n"
    assert {path.split("/")[0] for path in set(tree()) - before} == {"r.html", "r.md", "r_figures"}
    both = ok("report", "--html", "a.html", "--md", "b.md").out.splitlines()
    assert both == ["a.html", "b.md"]
    assert Path("a.html").read_text() == Path("r.html").read_text()


def test_markdown_on_standard_output() -> None:
    before = tree()
    outcome = ok("report", "--md", "-")
    assert outcome.out.startswith("# ") and outcome.out.endswith("\n") and not outcome.out.endswith("\n\n")
    assert ".svg" not in outcome.out, "there are no files to point to"
    assert tree() == before
    assert ok("report", "--md", "-", "--html", "r.html").out == outcome.out and Path("r.html").exists()


def test_numbers_as_one_document() -> None:
    before = tree()
    document = ok("report", "--json").document
    assert tree() == before
    assert document == json.loads(json.dumps(finite(to_dict([of_run(read_run(PATH))]))))
    assert document["schema"] == SCHEMA and document["studies"][0]["name"] == RUN
    assert ok("report", "--json", "--html", "r.html", "--md", "r.md").document == document
    assert Path("r.html").exists() and Path("r.md").exists() and Path("r_figures").exists()


def test_a_title_of_ones_own() -> None:
    text = ok("report", "--md", "-", "--title", "Mine & <b>yours</b>").out
    assert text.startswith("# Mine &") and "tiny_dev  K = 4" not in text.splitlines()[0] and "\n<b>" not in text
    ok("report", "--html", "r.html", "--title", "Mine & <b>yours</b>")
    assert "<title>Mine &amp; &lt;b&gt;yours&lt;/b&gt;</title>" in Path("r.html").read_text()


def test_several_runs_are_one_report() -> None:
    second = "20261122-101500-aaaa"
    large_run.write(Path("results"), large_run.run(prompts(3), temperature=0.8, run_id=second), second)
    outcome = ok("report", RUN, second)
    assert outcome.out.splitlines()[0] == f"results/{RUN}.html"
    assert "2 studies" in Path(f"results/{RUN}.md").read_text()
    document = ok("report", RUN, second, "--json").document
    assert [study["temperature"] for study in document["studies"]] == [0.0, 0.8]


def test_a_sweep_is_named_as_its_directory() -> None:
    sample_store.write(Path("my sweep"), sample_store.story())
    assert ok("report", "--results-dir", "my sweep").out.splitlines() == [
        "my sweep/my_sweep.html",
        "my sweep/my_sweep.md",
    ]


def test_where_there_is_no_results_directory_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert ok("report", f"../{PATH}").out.splitlines()[0] == f"results/{RUN}.html"


@pytest.mark.parametrize(
    "name", ["../../up", "a" * 5000, "\N{GRINNING FACE}" * 100, "", "..", "\ud800\udcff", "a\0b\nc", "é"]
)
def test_whatever_a_run_calls_itself_is_the_name_of_a_file_here(name: str, tmp_path: Path) -> None:
    path = large_run.write(tmp_path / "other", large_run.run(prompts(2), run_id=name))
    for written in ok("report", str(path)).out.splitlines():
        assert Path(written).parent == Path("results") and Path(written).is_file()
    assert set(os.listdir(tmp_path)) == {"results", "other"}


def test_an_interrupted_run_is_reported() -> None:
    events = list(large_run.run(prompts(3)))
    stop = [i for i, event in enumerate(events) if isinstance(event, PromptEnded)][2] + 3
    large_run.write(Path("results"), events[:stop])
    assert ok("report", RUN, "--md", "-").out
    assert "no complete run" in refused(USAGE)[0]


@pytest.mark.parametrize("most", [3, None])
def test_texts_that_somebody_interfered_with(most: int | None) -> None:
    large_run.write(Path("results"), large_run.interfered(large_run.run(curve=CURVE), most=most))
    said = f"{12 if most is None else most} generations paused, stepped through or raced: left out"
    ok("report", RUN)
    for path in (f"results/{RUN}.html", f"results/{RUN}.md"):
        shown, *_ = Path(path).read_text().split('<script type="application/json"')
        assert shown.count(said) == 1, "it is said once"
    text = Path(f"results/{RUN}.md").read_text()
    assert ("Nothing was measured." in text) == (most is None)
    assert ok("report", RUN, "--json").document["studies"][0]["caveats"] == [said]
    shown = ok("results", "show", RUN).out
    assert said in " ".join(shown.split()) and ("nothing was measured" in shown) == (most is None)
    assert "was not run" not in shown
    if most is None:
        error, hint = command("explain", RUN).told
        assert error == f"nothing was measured in {RUN} ({said})" and "specprof run" in hint
    else:
        assert ok("explain", RUN, "--json").document["name"] == RUN


@pytest.mark.parametrize("most", [3, None])
def test_comparing_with_texts_that_somebody_interfered_with(most: int | None) -> None:
    other = "20261122-101500-aaaa"
    happened = large_run.interfered(large_run.run(run_id=other), most=most)
    large_run.write(Path("results"), happened, other)
    outcome = command("compare", RUN, other)
    said = f"{12 if most is None else most} generations paused, stepped through or raced: left out"
    if most is None:
        assert outcome.code == USAGE and outcome.out == ""
        assert outcome.told[0] == f"B has no finished generations that count ({said})"
    else:
        assert outcome.code == 0 and f"B: {said}." in " ".join(outcome.out.split())


# Size and text


def test_a_page_that_is_too_large_is_thinned_and_says_so() -> None:
    ok("report", "--html", "r.html")
    whole = Path("r.html").stat().st_size
    limit = whole - 15_000
    ok("report", "--html", "r.html", "--max-size", f"{limit / 1000}KB")
    assert Path("r.html").stat().st_size <= limit and "Shortened to fit" in Path("r.html").read_text()


@pytest.mark.parametrize("size", ["5 mb", "5000K", "0.75MB"])
def test_ways_to_write_a_size(size: str) -> None:
    assert ok("report", "--html", "r.html", "--max-size", size).out == "r.html\n"


@pytest.mark.parametrize("size", ["", "big", "5GB", "-5MB", "5MB5", "1e6", "nan", "inf", "9" * 400, "9" * 5000 + "MB"])
def test_no_sizes(size: str) -> None:
    error, hint = refused(USAGE, "--html", "r.html", "--max-size", size)
    assert "--max-size" in error and "5MB" in hint


@pytest.mark.parametrize("size", ["0", "10KB"])
def test_a_size_that_nothing_fits_into(size: str) -> None:
    Path("r.html").write_text("old")
    error, _ = refused(RESOURCES, "--html", "r.html", "--md", "r.md", "--max-size", size)
    assert "even without token streams" in error


def test_redacted_text_shows_no_letter() -> None:
    def secret(event: Event) -> Event:
        if isinstance(event, PromptEnded):
            return dataclasses.replace(
                event, token_texts=event.token_texts and dict.fromkeys(event.token_texts, "Xyzzy")
            )
        return event

    large_run.write(Path("results"), list(map(secret, large_run.run())))
    for arguments, shown in ((), True), (("--redact-text",), False):
        ok("report", "--html", "r.html", "--md", "r.md", *arguments)
        for path in ("r.html", "r.md"):
            assert ("Xyzzy" in Path(path).read_text()) is shown
    assert "\N{LIGHT SHADE}" in Path("r.html").read_text()


def test_redacted_is_the_command_too() -> None:
    large_run.write(Path("results"), large_run.run(command="specprof run --prompt 'Xyzzy plugh'"))
    assert "Xyzzy" in ok("report", "--json").out
    ok("report", "--html", "r.html", "--md", "r.md", "--redact-text")
    for shown in (Path("r.html").read_text(), Path("r.md").read_text(), ok("report", "--json", "--redact-text").out):
        assert "Xyzzy" not in shown and "specprof run ..." in shown


# What is refused


@pytest.mark.parametrize("names", [["nothing"], [RUN, "nothing"], ["2027"], [""]])
def test_names_of_nothing(names: list[str]) -> None:
    error, hint = refused(USAGE, *names)
    assert "no cell and no run" in error and RUN in hint


@pytest.mark.parametrize(
    ("name", "what"),
    [("results/none.jsonl", "there is no file"), ("none.jsonl", "there is no file"), ("/dev/null", "neither a file")],
)
def test_files_that_are_none(name: str, what: str) -> None:
    assert what in refused(USAGE, name)[0]


def test_what_was_measured_is_never_overwritten() -> None:
    kept = Path("results", f"{RUN}.jsonl")
    before = kept.read_bytes()
    for arguments in (("--html", str(kept)), ("--md", str(kept)), (RUN, "--html", f"results/../{kept}")):
        assert "would be lost" in refused(USAGE, *arguments)[0]
    assert kept.read_bytes() == before


@pytest.mark.parametrize(
    "arguments", [("--html", "-", "--md", "-"), ("--html", "-", "--json"), ("--md", "-", "--json")]
)
def test_one_thing_at_a_time_is_printed(arguments: tuple[str, ...]) -> None:
    assert "standard output" in refused(USAGE, *arguments)[0]


def test_the_page_can_be_printed() -> None:
    assert ok("report", "--html", "-").out.startswith("<!doctype html>")


@pytest.mark.parametrize("flags", [(), ("--json",), ("--md", "-"), ("--html", "r.html")])
def test_where_nothing_was_measured(flags: tuple[str, ...]) -> None:
    PATH.unlink()
    error, hint = refused(USAGE, *flags)
    assert "no complete run in results" in error and "specprof run" in hint


def test_a_damaged_run() -> None:
    PATH.write_text(PATH.read_text().replace('"num_accepted":', '"accepted":', 1))
    error, hint = refused(USAGE)
    assert "damaged" in error and "measure again" in hint


def test_two_things_on_one_output() -> None:
    assert "--json" in refused(USAGE, "--json", "--md", "-")[0]
    assert "named for two outputs" in refused(USAGE, "--html", "r", "--md", "./r")[0]


@pytest.mark.parametrize("flag", ["--html", "--md"])
@pytest.mark.parametrize("path", ["none/r", "results", f"{PATH}/r"])
def test_places_where_no_file_can_be(flag: str, path: str) -> None:
    error, _ = refused(RESOURCES, flag, path)
    assert "can't be written" in error
    other = {"--html": "--md", "--md": "--html"}[flag]
    refused(RESOURCES, flag, path, other, "fine")


def test_figures_that_have_no_place() -> None:
    Path("r_figures").write_text("a file of that name")
    error, _ = refused(RESOURCES, "--md", "r.md", "--html", "r.html")
    assert "r_figures" in error


def test_results_that_have_no_place(tmp_path: Path) -> None:
    Path("file").write_text("")
    refused(RESOURCES, str(PATH), "--results-dir", "file/results")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_is_not_ours() -> None:
    Path("theirs").mkdir(mode=0o500)
    refused(RESOURCES, "--html", "theirs/r.html")


def test_a_full_disk_leaves_the_old_page() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    outcome = command("report", "--html", "/dev/full")
    assert outcome.code == RESOURCES and "No space left" in outcome.told[0]


def test_a_reader_that_goes_away_is_no_failure() -> None:
    program = subprocess.Popen(
        [sys.executable, "-m", "specprof", "report", "--md", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert program.stdout is not None and program.stderr is not None
    program.stdout.close()
    told = program.stderr.read()
    assert program.wait() == 141 and b"Traceback" not in told and b"error:" not in told


# What it takes


@pytest.mark.parametrize("arguments", [["-q"], ["--json"]])
def test_it_loads_no_models(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from specprof.commands import main\n"
        f"try:\n    main(['report', *{arguments}])\n"
        "except SystemExit as ended:\n    assert not ended.code, ended.code\n"
        "print(*(name for name in sys.modules if '.' not in name), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.split())
    assert "specprof" in loaded and loaded.isdisjoint(set(HEAVY) - {"matplotlib"})
    assert done.stdout


def test_help() -> None:
    outcome: Outcome = ok("report", "--help")
    for flag in ("--html", "--md", "--json", "--title", "--max-size", "--redact-text", "--results-dir"):
        assert flag in outcome.out
    assert "\x1b" not in outcome.out
