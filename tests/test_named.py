"""What names on a command line mean."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import large_run
import sample_store
from command_line import isolate
from large_run import prompts
from sample_store import AR, ELSEWHERE, SD
from specprof.commands.named import newest, studies_of
from specprof.errors import UsageError

RESULTS = Path("results")
OLD, NEW = "20261121-101500-7f3c", "20261122-101500-aaaa"
OTHER = sample_store.config(2, "conversation")


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


@pytest.fixture
def runs() -> list[Path]:
    return [keep(OLD), keep(NEW, k=2)]


@pytest.fixture
def store() -> Path:
    baseline = sample_store.config(0, "conversation")
    more = [sample_store.cell(asked) for asked in (baseline, OTHER)]
    return sample_store.write(
        RESULTS, [*sample_store.story(), *more, sample_store.generation(8, baseline), sample_store.generation(9, OTHER)]
    )


def keep(run_id: str, *, k: int = 4, complete: bool = True, directory: Path = RESULTS) -> Path:
    events = list(large_run.run(prompts(2), k=k, num_tokens=6, run_id=run_id))
    return large_run.write(directory, events if complete else events[:-1], run_id)


def names(*given: str, directory: Path = RESULTS) -> list[str]:
    return [study.name for study in studies_of(given, directory)]


def refused(*given: str, directory: Path = RESULTS) -> UsageError:
    with pytest.raises(UsageError) as caught:
        studies_of(given, directory)
    assert caught.value.message and caught.value.hint
    return caught.value


def made(path: Path, seconds: float) -> None:
    """Pretend it was last written then."""
    os.utime(path, (seconds, seconds))


# Names


def test_runs_by_whole_and_partial_names(runs: list[Path]) -> None:
    assert names(OLD) == names("20261121") == names(OLD[:-1]) == [OLD]
    assert names("20261122", "20261121") == [NEW, OLD], "in the order given"
    assert names(OLD, "20261121", str(runs[0]), f"./{runs[0]}") == [OLD], "each once"


def test_cells_by_whole_and_partial_names(store: Path) -> None:
    whole = SD.config_hash()
    assert names(whole) == names(whole[:6]) == [whole]
    [study] = studies_of([whole], RESULTS)
    assert list(study.comparisons) == [4] and study.domains == ("code",) and study.is_sweep
    assert names(whole, OTHER.config_hash()) == [whole, OTHER.config_hash()]


def test_a_baseline_is_nothing_to_compare(store: Path) -> None:
    error = refused(AR.config_hash())
    assert "plain decoding" in error.message


def test_a_cell_of_two_machines_is_named_with_one(store: Path) -> None:
    sample_store.write(RESULTS, [sample_store.machine(ELSEWHERE), sample_store.cell(SD, ELSEWHERE)])
    assert "fits 2" in refused(SD.config_hash()).message
    [study] = studies_of([f"{SD.config_hash()}@{sample_store.HERE}"], RESULTS)
    assert study.machine_class == sample_store.HERE


def test_names_of_several_things_and_of_none(runs: list[Path], store: Path) -> None:
    error = refused("2026")
    assert "fits 2" in error.message and OLD in error.hint and NEW in error.hint
    for unknown in ("nothing", "", "x" * 5000, "a\0b", "\udcff"):
        assert "no cell and no run" in refused(unknown).message
    assert "no cell and no run" in refused(OLD, "nothing").message


def test_where_there_are_no_results() -> None:
    for given in ("anything", OLD):
        refused(given)
    refused("anything", directory=Path("nowhere"))


# Files and directories


def test_a_runs_file(runs: list[Path], tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.txt"
    runs[0].rename(moved)
    assert names(str(moved)) == names("elsewhere.txt", directory=Path("nowhere")) == [OLD]


def test_an_interrupted_run_by_its_name() -> None:
    keep(OLD, complete=False)
    assert names(OLD) == [OLD]


def test_a_later_run_that_was_interrupted_is_passed_over_aloud(caplog: pytest.LogCaptureFixture) -> None:
    keep(OLD)
    assert [study.name for study in newest(RESULTS)] == [OLD] and not caplog.records
    keep(NEW, complete=False)
    for studies in (newest(RESULTS), studies_of(["results"], Path("nowhere"))):
        assert [study.name for study in studies] == [OLD]
    assert caplog.messages == [f"{NEW} was interrupted, or is still going on: this is {OLD}"] * 2


def test_a_sweep_by_its_directory_or_its_file(store: Path) -> None:
    assert (
        names("results") == names("results/") == names(str(store)) == names(str(store.parent.resolve())) == ["results"]
    )
    assert names("results", str(store)) == ["results"], "each once"


def test_a_directory_of_runs_is_its_newest(runs: list[Path]) -> None:
    assert names("results", directory=Path("nowhere")) == [NEW]
    assert names("results", NEW) == [NEW]


def test_a_directory_of_both_is_its_sweep(runs: list[Path], store: Path) -> None:
    assert names("results") == ["results"]


def test_a_directory_of_neither(tmp_path: Path) -> None:
    RESULTS.mkdir()
    assert "no complete run in results" in refused("results").message
    keep(OLD, complete=False)
    assert "no complete run in results" in refused("results").message


def test_two_sweeps_of_one_name_are_two() -> None:
    """In different directories of the same name: what was, and what is."""
    for parent in ("before", "after"):
        sample_store.write(Path(parent, "results"), sample_store.story())
    assert names("before/results", "after/results") == ["results", "results"]


def test_studies_that_differ_in_what_their_titles_leave_out_are_all_there() -> None:
    shorter = [sample_store.config(k) for k in (0, 4)]
    longer = [type(c)(**c.to_dict() | {"max_new_tokens": 48}) for c in shorter]
    records = [*sample_store.story()]
    for number, asked in enumerate(longer):
        records += [sample_store.cell(asked), sample_store.generation(10 + number, asked)]
    sample_store.write(RESULTS, records)
    assert names("results") == ["results", "results"] == [study.name for study in newest(RESULTS)]


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"not a run\n", b'{"event":"Round"}\n', b"\xff\xfe\n", b"{}\n", b"[" * 9999]
)
def test_a_file_that_is_no_run(content: bytes, runs: list[Path]) -> None:
    Path("file.jsonl").write_bytes(content)
    assert "file.jsonl" in refused("file.jsonl").message


def test_a_run_that_is_damaged_in_the_middle(runs: list[Path]) -> None:
    lines = runs[0].read_text().splitlines(keepends=True)
    runs[0].write_text("".join([*lines[:5], lines[5][:20] + "\n", *lines[6:]]))
    error = refused(OLD)
    assert "line 6" in error.message and "damaged" in error.message and "measure again" in error.hint


def test_a_store_that_has_measured_nothing() -> None:
    store = sample_store.write(RESULTS, [sample_store.session()])
    for given in ("results", str(store)):
        assert "measured nothing yet" in refused(given).message


# The newest


def test_the_newest_run_that_is_complete(runs: list[Path]) -> None:
    keep("20261123-101500-bbbb", complete=False)
    assert [study.name for study in newest(RESULTS)] == [NEW]


def test_a_sweep_that_was_written_later_is_the_newest(runs: list[Path], store: Path) -> None:
    made(store, 3e9)
    assert [study.name for study in newest(RESULTS)] == ["results"]
    made(store, 1e9)
    assert [study.name for study in newest(RESULTS)] == [NEW]


def test_without_a_run_the_sweep_is_the_newest(store: Path) -> None:
    made(store, 1e9)
    keep(OLD, complete=False)
    assert [study.name for study in newest(RESULTS)] == ["results"]


def test_the_newest_of_nothing() -> None:
    with pytest.raises(UsageError, match="no complete run in results"):
        newest(RESULTS)
