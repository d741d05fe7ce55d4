"""``specprof results``: what was measured, listed, shown, removed and exported."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sample_store
from command_line import Outcome, command, isolate, ok
from sample_store import AR, ELSEWHERE, HERE, SD
from specprof.experiments import frame
from specprof.experiments.records import SCHEMA, to_json_line
from specprof.experiments.results import ResultStore, read_contents
from specprof.profiling import events
from specprof.profiling.events import Prefilled, PromptEnded, Round, RunEnded, RunStarted

USAGE, RESOURCES = 2, 4
RUN = "20261121-114500-7f3c"


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


@pytest.fixture
def store() -> Path:
    """A done baseline, a done candidate, a failed one, one skipped and one that was interrupted."""
    failed, skipped = sample_store.config(8), sample_store.config(16)
    return sample_store.write(
        Path("results"),
        [
            *sample_store.story(),
            sample_store.cell(failed),
            sample_store.failure(6, failed),
            sample_store.cell(skipped),
            sample_store.failure(7, skipped, reason="skipped", message="not tried: K = 8 ran out of memory"),
            sample_store.cell(sample_store.config(2, "conversation")),
            sample_store.generation(8, sample_store.config(2, "conversation")),
        ],
    )


@pytest.fixture
def run() -> Path:
    return write_run(Path("results"), RUN)


def write_run(directory: Path, run_id: str, *, complete: bool = True) -> Path:
    """What ``specprof run`` would have left of two prompts."""
    directory.mkdir(exist_ok=True)
    config = {
        "pair": {"name": "tiny_dev"}, "k": 4, "temperature": 0.0, "repetitions": 1, "seed": 0, "drafter": "model",
        "prompts": [{"prompt_id": f"code_00{n}", "domain": "code"} for n in range(2)], "caveats": [],
        "models": {"target": {"model": "tiny_dev/target", "device": "cpu", "dtype": "float32"}},
    }  # fmt: skip
    happened: list[events.Event] = [RunStarted(run_id, events.SCHEMA, config, {"specprof": "0.1.0"})]
    for prompt in range(2):
        for asked in (AR, SD):
            result = sample_store.generation(1, asked, prompt).result
            key = (result.prompt_id, result.decoder, 0)
            happened += [Prefilled(*key, 10, 5, 0.02, 0.01, 0.001), *result.rounds, PromptEnded(*key, "length", 2**21)]
    path = directory / f"{run_id}.jsonl"
    whole = [*happened, RunEnded(2**21)] if complete else happened[:-1]
    path.write_text("".join(map(events.to_json_line, whole)))
    return path


def refused(code: int, *arguments: str) -> tuple[str, str]:
    outcome = command("results", *arguments)
    assert outcome.code == code and outcome.out == "", outcome
    assert "Traceback" not in outcome.err
    return outcome.told


# list


def test_the_list_says_how_far_each_cell_is_and_how_fast(store: Path, run: Path) -> None:
    write_run(Path("results"), "20261121-114501-0000", complete=False)
    header, *rows = ok("results", "list").out.splitlines()
    assert (
        " ".join(header.split()) == "cell pair domain decoder drafter T prompts reps generations state tokens/s speedup"
    )
    cells = [row.split() for row in rows[:5]]
    assert [cell[0] for cell in cells] == [
        sample_store.config(*asked).config_hash()
        for asked in [(0, "code"), (4, "code"), (8, "code"), (16, "code"), (2, "conversation")]
    ]
    assert cells[0][1:] == ["tiny_dev", "code", "AR", "-", "0", "2", "1", "2/2", "done", "100.0", "-"]
    assert cells[1][3:] == ["SD-K4", "model", "0", "2", "1", "2/2", "done", "200.0", "2.00x"]
    assert [cell[8:] for cell in cells[2:]] == [
        ["0/2", "failed", "-", "-"], ["0/2", "skipped", "-", "-"], ["1/2", "partial", "200.0", "-"],
    ]  # fmt: skip
    assert [row.split() for row in rows[6:]] == [
        ["run", "pair", "K", "T", "prompts", "reps", "state"],
        [RUN, "tiny_dev", "4", "0", "2", "1", "complete"],
        ["20261121-114501-0000", "tiny_dev", "4", "0", "2", "1", "interrupted"],
    ]


def test_the_list_as_one_document(store: Path, run: Path) -> None:
    document = ok("results", "list", "--json").document
    assert document["schema"] == SCHEMA and document["notes"] == []
    _, candidate, failed, *_ = document["cells"]
    assert candidate["config_hash"] == SD.config_hash() and candidate["machine_class"] == HERE
    assert candidate["baseline_config_hash"] == AR.config_hash() and candidate["speedup"] == pytest.approx(2.0)
    assert (candidate["state"], candidate["num_done"], candidate["num_expected"]) == ("done", 2, 2)
    assert failed["failure"]["reason"] == "out of memory" and failed["speedup"] is None
    [saved] = document["runs"]
    assert saved["run_id"] == RUN and saved["complete"] is True and saved["path"] == f"results/{RUN}.jsonl"


def test_a_list_of_some(store: Path, run: Path) -> None:
    def hashes(*arguments: str) -> int:
        return len(ok("results", "list", "--json", *arguments).document["cells"])

    assert hashes("--domain", "conversation") == 1 and hashes("--pair", "tiny_dev") == 5
    assert hashes("--pair", "tiny_dev", "--domain", "code") == 4
    nothing = ok("results", "list", "--pair", "gpt2_dev")
    assert nothing.out == "" and "nothing in results" in nothing.err


def test_machines_are_named_where_there_are_several(store: Path) -> None:
    assert HERE not in ok("results", "list").out
    sample_store.write(Path("results"), [sample_store.cell(SD, ELSEWHERE), sample_store.cell(AR, "")])
    out = ok("results", "list").out
    assert "machine class" in out.splitlines()[0] and HERE in out and ELSEWHERE in out
    assert any(row.endswith("-") and AR.config_hash() in row for row in out.splitlines())


def test_a_list_of_runs_needs_no_store(run: Path) -> None:
    Path("results/prompts.jsonl").write_text('{"raw_text": "not a run"}\n')
    out = ok("results", "list").out
    assert RUN in out and "prompts.jsonl" not in out
    assert list(Path("results").glob("*.lock")) == []


@pytest.mark.parametrize("subcommand", [["list"], ["show", "a"], ["rm", "a", "--yes"], ["export", "--csv", "-"]])
def test_where_there_is_nothing(subcommand: list[str]) -> None:
    error, hint = refused(USAGE, *subcommand)
    of_what = " of a sweep" if subcommand[0] == "export" else ""
    assert error == f"there are no results{of_what} in results"
    assert "specprof sweep" in hint and "--results-dir" in hint
    assert not Path("results").exists()
    Path("file").write_text("")
    refused(USAGE, *subcommand, "--results-dir", "file")


def test_another_place(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("results").rename("elsewhere")
    monkeypatch.setenv("SPECPROF_RESULTS", "elsewhere")
    assert SD.config_hash() in ok("results", "list").out
    assert SD.config_hash() in ok("results", "list", "--results-dir", "elsewhere").out


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["lst"], "`specprof results --help` lists what there is"),
        (["list", "--sort"], "`specprof results list --help` lists what there is"),
        (["--results-dir", "x", "rm", "--sort"], "`specprof results rm --help` lists what there is"),
        (["show"], "`specprof results show --help` lists what there is"),
    ],
)
def test_a_wrong_word_is_told_where_the_right_ones_are(arguments: list[str], hint: str) -> None:
    outcome = command("results", *arguments)
    assert outcome.code == USAGE
    assert outcome.told[1] == hint


def test_without_a_subcommand_it_says_what_there_is() -> None:
    outcome = command("results")
    assert (outcome.code, outcome.err) == (USAGE, "")
    assert all(word in outcome.out for word in ("list", "show", "rm", "export"))


# show


def test_a_cell_is_shown_beside_its_baseline(store: Path) -> None:
    shown = ok("results", "show", SD.config_hash()[:5]).out
    assert shown.startswith("tiny_dev  code  K = 4  greedy\ntiny_dev/target on cpu, float32\n")
    for part in ("2.00x decode", "Acceptance", "Time", "Cost model", "2 prompts, 1 repetition"):
        assert part in shown
    assert shown.endswith(f"{SD.config_hash()}: done, 2/2 generations\n")
    document = ok("results", "show", SD.config_hash(), "--json").document
    assert document["schema"] == "specprof.cell/1" and document["speedup_decode"]["value"] == pytest.approx(2.0)
    assert document["baseline"]["num_generations"] == 2 and document["baseline_config_hash"] == AR.config_hash()
    assert document["machine"]["cpu"] == "An EPYC" and document["models"]["target"]["model"] == "tiny_dev/target"


def test_a_baseline_is_shown_alone(store: Path) -> None:
    assert "the speculative arm was not run" in ok("results", "show", AR.config_hash()).out


def test_why_a_cell_failed(store: Path) -> None:
    failed = sample_store.config(8).config_hash()
    assert ok("results", "show", failed).out.splitlines()[-3:] == [
        f"{failed}: failed, 0/2 generations",
        "out of memory: 12 GB are not enough",
        "hint: use a smaller model",
    ]
    document = ok("results", "show", failed, "--json").document
    assert document["failure"]["message"] == "12 GB are not enough" and document["speculative"] is None


def test_a_run_is_shown_as_it_was(run: Path) -> None:
    shown = ok("results", "show", RUN[:9]).out
    assert shown.startswith("tiny_dev  K = 4  greedy\ntiny_dev/target on cpu, float32\n") and "2.00x decode" in shown
    document = ok("results", "show", RUN, "--json").document
    assert document["schema"] == "specprof.run/1" and document["run_id"] == RUN
    assert document["speedup_decode"]["value"] == pytest.approx(2.0)
    assert document["events_file"] == f"results/{RUN}.jsonl" and document["specprof_version"] == "0.1.0"


def test_a_run_that_was_interrupted_shows_what_it_finished(run: Path) -> None:
    text = run.read_bytes()
    run.write_bytes(text[: len(text) * 2 // 3])
    document = ok("results", "show", RUN, "--json").document
    assert document["num_prompts"] == 1
    lines = text.splitlines(keepends=True)
    run.write_bytes(b"".join([*lines[:3], b"damage\n", *lines[3:]]))
    error, hint = refused(USAGE, "show", RUN)
    assert error.startswith(f"line 4 of results/{RUN}.jsonl is damaged") and "measure again" in hint


def test_names_that_mean_nothing_or_too_much(store: Path, run: Path) -> None:
    error, hint = refused(USAGE, "show", "zzz")
    assert error == "there is no cell and no run 'zzz'"
    assert hint == "there are: " + ", ".join(
        [
            *(sample_store.config(k).config_hash() for k in (0, 4, 8, 16)),
            sample_store.config(2, "conversation").config_hash(),
            RUN,
        ]
    )
    refused(USAGE, "show", "")
    write_run(Path("results"), "20261121-120000-0000")
    error, hint = refused(USAGE, "show", "2026")
    assert "fits 2 cells and runs" in error and hint == f"name one: {RUN}, 20261121-120000-0000"
    assert refused(USAGE, "rm", "2026", "--yes")[0] == error
    sample_store.write(Path("results"), [sample_store.cell(SD, ELSEWHERE)])
    error, hint = refused(USAGE, "show", SD.config_hash())
    assert hint == f"name one: {SD.config_hash()}@{HERE}, {SD.config_hash()}@{ELSEWHERE}"
    assert "partial, 0/2" in ok("results", "show", f"{SD.config_hash()}@bb").out


# rm


def test_a_cell_and_a_run_are_removed(store: Path, run: Path) -> None:
    outcome = ok("results", "rm", SD.config_hash(), RUN, "--yes")
    assert outcome.out == "" and outcome.err == "removed 1 cell with 2 generations and 1 run\n"
    assert not run.exists()
    left = read_contents(Path("results"))
    assert (SD.config_hash(), HERE) not in left.cells and len(left.cells) == 4
    assert SD.config_hash() not in {key.config_hash for key in left.generations}


def test_whoever_removes_a_baseline_hears_of_it(store: Path) -> None:
    outcome = ok("results", "rm", AR.config_hash(), "--yes")
    assert "warning: without their baseline these cells lose their speedup: " in outcome.err
    assert SD.config_hash() in outcome.err and sample_store.config(2, "conversation").config_hash() not in outcome.err
    assert ok("results", "list", "--json").document["cells"][0]["speedup"] is None


def test_all_that_failed_or_everything(store: Path, run: Path) -> None:
    assert "removed 2 cells with 0 generations\n" in ok("results", "rm", "--failed", "--yes").err
    assert ok("results", "rm", "--failed").err == "nothing to remove\n"
    assert "removed 3 cells with 5 generations and 1 run\n" in ok("results", "rm", "--all", "--yes").err
    assert not run.exists() and not read_contents(Path("results")).generations
    with ResultStore.open(Path("results")) as store_:
        assert store_.next_sequence() >= 1


def test_without_a_terminal_nothing_is_removed_unasked(store: Path) -> None:
    before = store.read_bytes()
    error, hint = refused(USAGE, "rm", SD.config_hash())
    assert error == "removing 1 cell with 2 generations asks first, and there is no terminal" and "--yes" in hint
    for wrong in ([], ["--failed", "--all"], [SD.config_hash(), "--all"]):
        assert refused(USAGE, "rm", *wrong, "--yes")[0] == "name what to remove, in one way"
    assert refused(USAGE, "rm", "zzz", "--yes")[0].startswith("there is no cell")
    assert store.read_bytes() == before


@pytest.mark.parametrize(("answer", "left"), [("y", 4), ("n", 5)])
def test_on_a_terminal_it_asks(store: Path, answer: str, left: int) -> None:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "specprof", "results", "rm", SD.config_hash()],
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    out, err = child.communicate(timeout=30)
    os.close(ours)
    assert (child.returncode, out) == (0, "")
    assert "remove 1 cell with 2 generations? [y/N]" in err
    assert len(read_contents(Path("results")).cells) == left


def test_nothing_is_removed_while_a_sweep_is_writing(store: Path) -> None:
    with ResultStore.open(Path("results")):
        error, _ = refused(RESOURCES, "rm", "--all", "--yes")
        assert error.startswith(f"another sweep (process {os.getpid()}")
        assert SD.config_hash() in ok("results", "list").out


# export


def test_csv_and_parquet_hold_what_load_results_returns(store: Path) -> None:
    import pandas as pd  # type: ignore[import-untyped]

    outcome = ok("results", "export", "--csv", "all.csv", "--parquet", "all.parquet")
    assert outcome.out == "" and outcome.err == "all.parquet: 6 generations\nall.csv: 6 generations\n"
    expected = frame.load_results("results")
    pd.testing.assert_frame_equal(pd.read_parquet("all.parquet"), expected)
    kinds: Any = {name: str(kind) for name, kind in expected.dtypes.items() if name != "started_at"}
    from_csv = pd.read_csv("all.csv", dtype=kinds, parse_dates=["started_at"])
    pd.testing.assert_frame_equal(from_csv, expected.astype({"started_at": from_csv.started_at.dtype}))
    assert ok("results", "export", "--csv", "-").out == Path("all.csv").read_text()
    assert sorted(path.name for path in Path().iterdir()) == ["all.csv", "all.parquet", "results"]


def test_an_export_replaces_a_file_as_a_whole_or_not_at_all(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("kept.csv").write_text("old")
    Path("link.csv").symlink_to("kept.csv")
    os.chmod("kept.csv", 0o600)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(full))
        error, hint = refused(RESOURCES, "export", "--csv", "link.csv")
    assert error == "writing link.csv failed: No space left on device" and "space" in hint
    assert Path("kept.csv").read_text() == "old" and len(list(Path().iterdir())) == 3
    ok("results", "export", "--csv", "link.csv")
    assert Path("link.csv").is_symlink() and Path("kept.csv").read_text().startswith("sequence,")
    assert Path("kept.csv").stat().st_mode & 0o777 == 0o600


def test_where_nothing_can_be_exported_to(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(USAGE, "export")[0] == "nothing to export to"
    for path in ("results", "none/all.csv"):
        assert path in refused(RESOURCES, "export", "--csv", path)[0]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    error, hint = refused(RESOURCES, "export", "--parquet", "all.parquet")
    assert error == "writing Parquet needs pyarrow" and hint == "pip install 'specprof[analysis]'"
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert refused(RESOURCES, "export", "--csv", "-")[0] == "loading results needs pandas"


# A file that somebody made

NASTY: list[Any] = [
    None,
    True,
    -1,
    0,
    10**40,
    1e300,
    1e-320,
    2**62,
    "",
    "\x1b[31mred\x07\u202e",
    "9" * 50,
    [],
    [[[]]],
    {},
    {"a": []},
]


def no_traceback(outcome: Outcome) -> None:
    assert outcome.code in (0, USAGE, RESOURCES), outcome.err
    assert "\x1b" not in outcome.out + outcome.err and "\x07" not in outcome.out + outcome.err
    assert "\u202e" not in outcome.out.replace("\\u202e", "")


def look_at_everything() -> None:
    listed = command("results", "list", "--json")
    no_traceback(listed)
    no_traceback(command("results", "list"))
    for cell in listed.document["cells"] if listed.code == 0 else []:
        name = cell["config_hash"] + "@" + (cell["machine_class"] or "")
        no_traceback(command("results", "show", name))
        shown = command("results", "show", name, "--json")
        no_traceback(shown)
        if shown.code == 0:
            assert shown.document["schema"]
    no_traceback(command("results", "export", "--parquet", "out.parquet", "--csv", "out.csv"))


@pytest.mark.parametrize("kind", [0, 1, 3, 7, 10], ids=["session", "machine", "cell", "generation", "failure"])
def test_whatever_a_line_says_there_is_an_answer(store: Path, kind: int) -> None:
    lines = store.read_text().splitlines()
    values = json.loads(lines[kind])
    variants = [values | {key: nasty} for key in values if key != "kind" for nasty in NASTY]
    if values["kind"] == "cell":
        variants += [
            values | {"config": values["config"] | {key: nasty}} for key in values["config"] for nasty in NASTY
        ]
    if values["kind"] == "generation":
        variants += [
            values | {"rounds": values["rounds"] | {key: [nasty]}} for key in values["rounds"] for nasty in NASTY
        ]
        variants += [values | {"per_token_latencies": [nasty, nasty]} for nasty in NASTY]
    # All at once: each under a name of its own, so that none takes another's place.
    changed = [
        json.dumps({"prompt_hash": f"h{n}", "machine_class": f"{n:04}"} | variant) for n, variant in enumerate(variants)
    ]
    store.write_text("\n".join([*lines[:kind], *changed, *lines[kind + 1 :]]) + "\n")
    no_traceback(command("results", "list"))
    document = ok("results", "list", "--json").document if kind else {"cells": [1]}
    assert document["cells"]
    no_traceback(command("results", "export", "--parquet", "out.parquet", "--csv", "out.csv"))
    if values["kind"] == "generation":
        same_place = [json.dumps(variant) for variant in variants]
        store.write_text("\n".join([*lines[:kind], *same_place, *lines[kind + 1 :]]) + "\n")
    look_at_everything() if values["kind"] != "cell" else None


def test_times_too_small_for_a_rate(store: Path) -> None:
    tiny = sample_store.generation(20, repetition=1)
    result = dataclasses.replace(tiny.result, per_token_latencies=[5e-324], total_time=5e-324)
    with store.open("a") as file:
        file.write(to_json_line(dataclasses.replace(tiny, result=result)))
    look_at_everything()


@pytest.mark.parametrize(
    "event", [RunStarted, Prefilled, Round, PromptEnded, RunEnded], ids=lambda event: event.__name__
)
def test_whatever_a_run_says_there_is_an_answer(run: Path, event: type[events.Event]) -> None:
    lines = run.read_text().splitlines()
    place = next(n for n, line in enumerate(lines) if json.loads(line)["event"] == event.__name__)
    values = json.loads(lines[place])
    variants = [values | {key: nasty} for key in values if key != "event" for nasty in NASTY][::5]
    if event is RunStarted:
        variants += [
            values | {"config": values["config"] | {key: nasty}} for key in values["config"] for nasty in NASTY[::4]
        ]
    for variant in variants:
        run.write_text("\n".join([*lines[:place], json.dumps(variant), *lines[place + 1 :]]) + "\n")
        if event in (RunStarted, RunEnded):  # the others are not looked at
            no_traceback(command("results", "list"))
        no_traceback(command("results", "show", RUN))


def test_cells_that_look_alike_say_in_what_they_differ(tmp_path: Path) -> None:
    one, other = (dataclasses.replace(sample_store.SD, seed=seed, target_revision=f"{seed}abcdef") for seed in (1, 2))
    sample_store.write(Path("results"), [sample_store.cell(one), sample_store.cell(other), sample_store.cell()])
    rows = ok("results", "list").out.splitlines()
    assert rows[0].endswith("differs in")
    assert rows[1].endswith("seed 1, target_revision 1abcdef")
    assert rows[2].endswith("seed 2, target_revision 2abcdef")
    assert rows[3].endswith("seed 0, target_revision -")
