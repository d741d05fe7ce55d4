"""The results store: appended to by one process, read by many, and whole whatever becomes of its writer."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import sample_store
import specprof
from sample_store import AR, ELSEWHERE, HERE, SD
from specprof.errors import ResourceError, UsageError
from specprof.experiments import frame
from specprof.experiments.records import (
    CellStarted,
    Failure,
    Generation,
    Machine,
    Record,
    Session,
    from_json_line,
    to_json_line,
)
from specprof.experiments.results import FILE_NAME, Contents, ResultStore, read_contents
from specprof.experiments.summary import CellState, cell_states, compared, orphaned
from specprof.profiling.comparison import compare
from specprof.profiling.events import Round
from specprof.profiling.metrics import BenchmarkConfig, GenerationResult

GOLDEN = Path(__file__).parent / "data" / "results_v1.jsonl"


def contents_of(records: list[Record]) -> Contents:
    contents = Contents()
    for record in records:
        contents.add(record)
    return contents


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A store of one done baseline and one done candidate."""
    sample_store.write(tmp_path / "results", sample_store.story())
    return tmp_path / "results"


# What is written is there


def test_a_store_holds_what_was_appended(results: Path) -> None:
    assert [path.name for path in sorted(results.iterdir())] == [FILE_NAME, f"{FILE_NAME}.lock"]
    assert (results / FILE_NAME).read_text() == "".join(map(to_json_line, sample_store.story()))
    expected = contents_of(sample_store.story())
    assert read_contents(results) == expected
    with ResultStore.open(results) as store:
        assert store.contents == expected
        assert not any(generation.result.rounds for generation in store.contents.generations.values())
    whole = read_contents(results, with_rounds=True)
    assert all(generation.result.rounds for generation in whole.generations.values())


def test_a_line_is_on_its_way_to_the_disk_when_append_returns(tmp_path: Path) -> None:
    with ResultStore.open(tmp_path / "new" / "dir") as store:
        for number, record in enumerate(sample_store.story(), start=1):
            store.append(record, sync=number % 2 == 0)
            assert store.path.read_bytes().count(b"\n") == number
        store.sync()
        assert store.contents == read_contents(tmp_path / "new" / "dir")


def test_what_is_kept_in_memory_has_no_rounds(tmp_path: Path) -> None:
    with ResultStore.open(tmp_path) as store:
        store.append(sample_store.generation(1))
        [kept] = store.contents.generations.values()
        assert kept == sample_store.generation(1) and kept.result.rounds == ()


def test_threads_append_whole_lines_and_never_share_a_sequence(tmp_path: Path) -> None:
    with ResultStore.open(tmp_path) as store:

        def work(prompt: int) -> None:
            for repetition in range(25):
                store.append(sample_store.generation(store.next_sequence(), prompt=prompt, repetition=repetition))

        threads = [threading.Thread(target=work, args=(prompt,)) for prompt in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = read_contents(tmp_path)
    assert not found.notes and len(found.generations) == 100
    assert sorted(generation.sequence for generation in found.generations.values()) == list(range(1, 101))


def test_order_comes_from_the_file_and_never_from_the_clock(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backwards = iter(range(10**9, 0, -1000))
    for name in ("time", "monotonic"):
        monkeypatch.setattr(f"time.{name}", lambda: float(next(backwards)))
    with ResultStore.open(results) as store:
        assert (store.next_sequence(), store.next_sequence()) == (6, 7)
        store.append(sample_store.generation(40, repetition=1))
        assert store.next_sequence() == 41
        store.append(sample_store.failure(50, AR))
    with ResultStore.open(results) as store:
        assert store.next_sequence() == 51


def test_of_two_generations_with_one_key_the_first_counts(tmp_path: Path) -> None:
    first, second = sample_store.generation(1), sample_store.generation(2, num_rounds=5)
    assert first.key == second.key and first.result != second.result
    sample_store.write(tmp_path, [first, second])
    contents = read_contents(tmp_path)
    assert contents.generations == {first.key: first} and contents.largest_sequence == 2
    assert len(specprof.load_results(tmp_path)) == 1


# Killed, cut, damaged


def test_a_file_cut_at_any_byte_of_its_last_two_records_loses_nothing_else(tmp_path: Path) -> None:
    records: list[Record] = [
        sample_store.session(), sample_store.cell(),
        *(sample_store.generation(1 + prompt, prompt=prompt, num_rounds=1) for prompt in range(2)),
    ]  # fmt: skip
    lines = [to_json_line(record).encode() for record in records]
    whole, path = b"".join(lines), tmp_path / FILE_NAME
    extra = sample_store.failure(99)
    path.write_bytes(whole)
    for size in range(len(whole), len(whole) - len(lines[-1]) - len(lines[-2]) - 1, -1):
        os.truncate(path, size)
        # A line that lacks nothing but its end is whole.
        kept = len(list(complete(whole[:size])))
        assert kept >= len(records) - 2
        found = read_contents(tmp_path, with_rounds=size % 2 == 0)
        assert found.generations == contents_of(records[:kept]).generations
        assert len(found.notes) == (not whole[:size].endswith((b"\n", b"}}")))
        if size % 31 and size < len(whole) - 2:
            continue  # locking and writing take longer
        again = tmp_path / "again"
        again.mkdir(exist_ok=True)
        (again / FILE_NAME).write_bytes(whole[:size])
        with ResultStore.open(again) as store:
            store.append(extra)
        assert (again / FILE_NAME).read_bytes() == b"".join(lines[:kept]) + to_json_line(extra).encode()
    assert kept == len(records) - 2


def complete(text: bytes) -> Iterator[bytes]:
    for line in text.splitlines():
        try:
            json.loads(line)
        except ValueError:
            continue
        yield line


def test_a_torn_line_is_said_to_be_removed(results: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (results / FILE_NAME).open("ab") as file:
        file.write(b'{"kind":"generation","config_')
    assert read_contents(results).notes == ["line 10, the last, is skipped: it is incomplete, its writer was stopped"]
    with caplog.at_level(logging.INFO, "specprof"), ResultStore.open(results) as store:
        assert store.contents.notes == []
    [message] = caplog.messages
    assert FILE_NAME in message and "incomplete" in message
    assert (results / FILE_NAME).read_bytes().endswith(b"}}\n")


def test_a_torn_line_of_any_length_is_found(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(b'{"kind":"' + b"x" * 300_000)
    with ResultStore.open(tmp_path) as store:
        store.append(sample_store.session())
    assert path.read_bytes() == to_json_line(sample_store.session()).encode()


@pytest.mark.parametrize("damage", [b"\n", b"\xff\xfe\n", b"[[[\n", b'{"kind":"cell"}\n', b"\0\0\0\n", b'{"a":1}\n'])
def test_a_damaged_line_in_the_middle_is_skipped_and_named(results: Path, damage: bytes) -> None:
    path = results / FILE_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], damage, *lines[4:]]))
    found = read_contents(results)
    [note] = found.notes
    assert note.startswith("line 5 is skipped: ")
    found.notes.clear()
    assert found == contents_of(sample_store.story())


def test_many_damaged_lines_are_counted(results: Path) -> None:
    with (results / FILE_NAME).open("ab") as file:
        file.write(b"damage\n" * 100)
    notes = read_contents(results).notes
    assert len(notes) == 21 and notes[-1] == "80 lines are skipped besides"


def test_kinds_of_a_later_version_are_passed_over_and_kept(results: Path) -> None:
    with (results / FILE_NAME).open("ab") as file:
        file.write(b'{"kind":"energy","joules":3}\n')
    assert read_contents(results).notes == ["1 line is of a kind that only a later version knows"]
    with ResultStore.open(results) as store:
        store.remove({(SD.config_hash(), HERE)})
    assert b"joules" in (results / FILE_NAME).read_bytes()


def test_a_store_of_an_incompatible_version_is_left_alone(tmp_path: Path) -> None:
    session = Session("s", "specprof.results/2", "9.0", "2030", 0, None)
    path = tmp_path / FILE_NAME
    path.write_text(to_json_line(session))
    for attempt in (read_contents, ResultStore.open, specprof.load_results):
        with pytest.raises(UsageError, match="results/2"):
            attempt(tmp_path)
    assert path.read_text() == to_json_line(session)
    # Who was refused holds no lock.
    path.unlink()
    ResultStore.open(tmp_path).close()


@pytest.mark.parametrize("reading", [read_contents, specprof.load_results])
def test_there_is_no_store(tmp_path: Path, reading: object) -> None:
    assert callable(reading)
    for directory in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="no results of a sweep") as refused:
            reading(directory)
        assert "specprof sweep" in refused.value.hint
    assert list(tmp_path.iterdir()) == []


def test_the_golden_store_stays_readable(tmp_path: Path) -> None:
    """Written once by version 0.1.0; a change that can't read it breaks every store there is."""
    shutil.copy(GOLDEN, tmp_path / FILE_NAME)
    contents, rows = read_contents(tmp_path, with_rounds=True), specprof.load_results(tmp_path)
    assert contents.notes == []
    baseline, candidate, failed = cell_states(contents)
    assert [state.cell.config_hash for state in (baseline, candidate)] == [AR.config_hash(), SD.config_hash()]
    assert [state.state for state in (baseline, candidate, failed)] == ["done", "done", "failed"]
    assert candidate.speedup == pytest.approx(2.0) and candidate.tokens_per_second == pytest.approx(200.0)
    assert failed.failure is not None and failed.failure.reason == "out of memory"
    assert contents.generations == contents_of(sample_store.story()).generations
    for old, new in zip(
        contents.generations.values(), contents_of(sample_store.story()).generations.values(), strict=True
    ):
        assert old.result.rounds == new.result.rounds
    assert len(rows) == 5 and rows.num_tokens.sum() == 3 * 4 + 2 * 7


def test_the_examples_of_the_documentation_are_records() -> None:
    text = (Path(__file__).parents[1] / "docs" / "results.md").read_text(encoding="utf-8")
    records = [from_json_line(example) for example in re.findall(r"```json\n(.*)\n```", text)]
    assert [type(record) for record in records] == [Session, Machine, CellStarted, Generation, Failure]
    columns = re.findall(r"`(\w+)`", text)
    assert set(frame.COLUMNS) <= set(columns), "every column of the frame is described"
    for cls in (Session, Machine, CellStarted, Generation, Failure, GenerationResult, Round):
        names = {field.name for field in dataclasses.fields(cls)} - {"result", "rounds", "index", "draft_matches"}
        assert names <= set(columns), "and every key of a line"


# Alone

HOLDER = """
    import sys, time
    from pathlib import Path
    from specprof.experiments.results import ResultStore
    store = ResultStore.open(Path(sys.argv[1]))
    print("locked", flush=True)
    time.sleep(60)
"""


def holder(directory: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(directory)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "locked\n"
    return child


def test_a_second_writer_is_refused_until_the_first_is_gone_however_it_goes(results: Path) -> None:
    child = holder(results)
    try:
        for _ in range(2):  # being refused takes nothing from the message
            with pytest.raises(ResourceError) as refused:
                ResultStore.open(results)
            assert refused.value.message.startswith(f"another sweep (process {child.pid}, since 20")
            assert refused.value.message.endswith(f"is writing to {results}")
            assert "--results-dir" in refused.value.hint
        assert read_contents(results) == contents_of(sample_store.story()), "reading needs no lock"
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        with ResultStore.open(results) as store:
            store.append(sample_store.failure(9))
    finally:
        child.kill()
        child.communicate()


def test_a_process_can_have_a_store_open_once(tmp_path: Path) -> None:
    with ResultStore.open(tmp_path), pytest.raises(ResourceError, match=f"process {os.getpid()}"):
        ResultStore.open(tmp_path)
    first = ResultStore.open(tmp_path)
    first.close()
    first.close()
    ResultStore.open(tmp_path).close()


# No room, no permission, no file

WRITER = """
    import resource, sys
    from pathlib import Path
    import sample_store
    from specprof.errors import ResourceError
    from specprof.experiments.results import ResultStore, read_contents
    directory = Path(sys.argv[1])
    sequence = 0
    with ResultStore.open(directory) as store:
        # As a full disk does, this takes a part of the line that passes it.
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            while True:
                sequence += 1
                store.append(sample_store.generation(sequence, repetition=sequence))
        except ResourceError as error:
            print(error.message, error.hint, sep="|")
        text = store.path.read_bytes()
        assert text.endswith(b"}}\\n") and text.count(b"\\n") == len(store.contents.generations) == sequence - 1 > 3
        assert read_contents(directory) == store.contents
        # Smaller records still fit, and the store still takes them.
        store.append(sample_store.failure(sequence))
        assert read_contents(directory) == store.contents and store.contents.failures
"""


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    message, hint = done.stdout.strip().split("|")
    assert message == f"writing {tmp_path / FILE_NAME} failed: File too large"
    assert "free some space" in hint and "kept" in hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written(results: Path) -> None:
    results.chmod(0o500)
    try:
        with pytest.raises(ResourceError, match="not writable"):
            ResultStore.open(results)
        assert read_contents(results).cells
    finally:
        results.chmod(0o700)


def test_a_file_that_may_not_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ResourceError, match="is not a directory"):
            ResultStore.open(directory)
    (tmp_path / "dir" / FILE_NAME).mkdir(parents=True)
    with pytest.raises(ResourceError, match="Is a directory"):
        ResultStore.open(tmp_path / "dir")
    if Path("/proc/self").exists():
        with pytest.raises(ResourceError, match="/proc/specprof"):
            ResultStore.open(Path("/proc/specprof"))


def test_a_directory_that_a_file_takes_the_place_of(results: Path) -> None:
    with ResultStore.open(results) as store:
        for path in results.iterdir():
            path.unlink()
        results.rmdir()
        results.write_text("")
        with pytest.raises(ResourceError, match="was deleted while"):
            store.append(sample_store.generation(9))
    assert results.read_text() == ""


# Removing


def test_what_is_removed_is_gone_and_the_rest_is_untouched(results: Path) -> None:
    sample_store.write(results, [sample_store.cell(SD, ELSEWHERE), sample_store.generation(8, machine_class=ELSEWHERE)])
    os.chmod(results / FILE_NAME, 0o640)
    with ResultStore.open(results) as store:
        store.remove({(SD.config_hash(), HERE)})
        left = store.contents
        assert set(left.cells) == {(AR.config_hash(), HERE), (SD.config_hash(), ELSEWHERE)}
        assert {key.config_hash for key in left.generations if key.machine_class == HERE} == {AR.config_hash()}
        # The store goes on in the new file.
        store.append(sample_store.generation(store.next_sequence(), repetition=3))
    assert read_contents(results) == left
    assert (results / FILE_NAME).stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in results.iterdir()) == [FILE_NAME, f"{FILE_NAME}.lock"]


def test_a_failure_of_no_known_machine_goes_with_its_cell(tmp_path: Path) -> None:
    sample_store.write(tmp_path, [sample_store.cell(SD, ""), sample_store.failure(1, SD, None)])
    with ResultStore.open(tmp_path) as store:
        store.remove({(SD.config_hash(), "")})
        assert not store.contents.cells and not store.contents.failures


def test_removing_that_fails_leaves_the_old_file(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (results / FILE_NAME).read_bytes()
    with ResultStore.open(results) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(ResourceError, match="No space left"):
                store.remove({(SD.config_hash(), HERE)})
        assert (results / FILE_NAME).read_bytes() == before
        assert len(list(results.iterdir())) == 2, "no temporary file stays"
        store.append(sample_store.failure(9))
    assert read_contents(results).failures


# How far cells are


def states(*records: Record) -> list[CellState]:
    return cell_states(contents_of(list(records)))


def test_a_cell_is_done_when_all_its_generations_are_there() -> None:
    records = sample_store.story()
    baseline, candidate = states(*records)
    assert (baseline.state, baseline.num_done, baseline.num_expected) == ("done", 2, 2), "a control doesn't count"
    assert baseline.speedup is None and baseline.tokens_per_second == pytest.approx(100.0)
    assert (candidate.state, candidate.config) == ("done", SD)
    assert candidate.speedup == pytest.approx(2.0) and candidate.tokens_per_second == pytest.approx(200.0)
    _, unfinished = states(*records[:-1])
    assert (unfinished.state, unfinished.num_done) == ("partial", 1)
    assert unfinished.speedup == pytest.approx(2.0), "over the prompts both have"


def test_a_speedup_is_the_one_a_comparison_finds(results: Path) -> None:
    contents = read_contents(results, with_rounds=True)
    for state in cell_states(contents):
        comparison = compared(contents, state)
        arm = comparison.baseline if state.config == AR else comparison.speculative
        assert arm is not None and arm.num_generations == 2, "controls left out"
        assert arm.tokens_per_second == pytest.approx(state.tokens_per_second)
        if state.config == SD:
            assert comparison.speedup_decode is not None
            assert comparison.speedup_decode.value == pytest.approx(state.speedup)
            ordered = sorted(contents.generations.values(), key=lambda generation: generation.sequence)
            again = compare([g.result for g in ordered if not g.control], temperature=0.0, domains={})
            assert again.speedup_decode == comparison.speedup_decode


def test_failures_count_from_the_last_start_on() -> None:
    start, failed = sample_store.cell(), sample_store.failure(5)
    assert [state.state for state in states(start)] == ["partial"]
    [state] = states(start, failed)
    assert state.state == "failed" and state.failure == failed
    [state] = states(start, failed, start)
    assert state.state == "partial" and state.failure is None, "it is being tried again"
    [state] = states(start, sample_store.failure(5, reason="skipped"))
    assert state.state == "skipped"
    done = [sample_store.generation(6 + prompt, prompt=prompt) for prompt in range(2)]
    [state] = states(start, failed, *done)
    assert state.state == "done" and state.failure is None


def test_a_failure_before_the_machine_is_known_is_that_of_the_cell() -> None:
    load = sample_store.failure(5, SD, None, reason="load")
    assert [state.state for state in states(sample_store.cell(), load)] == ["failed"]
    assert [state.state for state in states(sample_store.cell(SD, ""), load)] == ["failed"]
    assert [state.state for state in states(sample_store.cell(SD, ""), sample_store.failure(5, SD, ""))] == ["failed"]
    # Once the models load there is a machine, and nothing left of the cell without one.
    [state] = states(sample_store.cell(SD, ""), load, sample_store.cell())
    assert (state.cell.machine_class, state.state) == (HERE, "partial")


def test_machines_of_different_classes_share_nothing() -> None:
    there = [sample_store.generation(9 + prompt, prompt=prompt, machine_class=ELSEWHERE) for prompt in range(2)]
    records = [*sample_store.story(), sample_store.cell(SD, ELSEWHERE), *there]
    here, elsewhere = [state for state in states(*records) if state.config == SD]
    assert here.speedup is not None and elsewhere.state == "done" and elsewhere.speedup is None


def test_another_text_under_the_same_id_is_another_prompt() -> None:
    records: list[Record] = [sample_store.cell(AR), sample_store.cell(SD), sample_store.generation(1, AR)]
    _, candidate = states(*records, sample_store.generation(2, SD, prompt_hash="another text"))
    assert candidate.num_done == 1 and candidate.speedup is None


def test_who_loses_a_speedup_with_a_baseline() -> None:
    baseline, candidate = states(*sample_store.story())
    assert orphaned([baseline, candidate], [baseline]) == [candidate]
    assert orphaned([baseline, candidate], [candidate]) == []
    assert orphaned([baseline, candidate], [baseline, candidate]) == []


# Data frames


def test_a_row_for_every_generation(results: Path) -> None:
    rows = specprof.load_results(results)
    assert tuple(rows.columns) == frame.COLUMNS and len(rows) == 5
    assert list(rows.sequence) == [1, 2, 3, 4, 5] and list(rows.control) == [True, False, False, False, False]
    kinds = {name: str(rows[name].dtype) for name in rows}
    assert kinds["K"] == kinds["num_tokens"] == kinds["num_draft_tokens"] == "Int64"
    assert kinds["total_time"] == kinds["acceptance_rate"] == kinds["temperature"] == "float64"
    assert kinds["control"] == "bool" and kinds["pair"] == "string" and kinds["started_at"].endswith("UTC]")
    plain, drafted = rows.iloc[1], rows.iloc[3]
    assert (plain.decoder, plain.K, drafted.decoder, drafted.K) == ("AR", 0, "SD-K4", 4)
    assert (plain.tokens_per_second_decode, drafted.tokens_per_second_decode) == pytest.approx((100.0, 200.0))
    assert (drafted.num_tokens, drafted.num_spec_steps, drafted.num_accepted_draft_tokens) == (7, 3, 3)
    assert rows[["num_draft_tokens", "acceptance_rate", "drafter", "draft_model"]].iloc[1].isna().all()
    assert (drafted.drafter, drafted.draft_model) == ("model", "tiny_dev/draft")
    assert (drafted.cpu, drafted.torch, drafted.specprof) == ("An EPYC", "2.13.0", "0.1.0")
    assert drafted.target_revision == "3d618cc2" and drafted.started_at.year == 2026
    medians = rows[~rows.control].groupby("decoder").tokens_per_second_decode.median()
    assert medians["SD-K4"] / medians["AR"] == pytest.approx(2.0)


def test_a_store_of_nothing_is_a_frame_of_nothing(tmp_path: Path) -> None:
    sample_store.write(tmp_path, [sample_store.session()])
    rows = specprof.load_results(str(tmp_path))
    assert len(rows) == 0 and tuple(rows.columns) == frame.COLUMNS


def test_draft_lengths_that_are_chosen_have_no_number(tmp_path: Path) -> None:
    chosen = BenchmarkConfig("tiny_dev", "auto", 0.0, 24, "code", 0)
    sample_store.write(tmp_path, [sample_store.cell(chosen), sample_store.generation(1, chosen)])
    [length] = specprof.load_results(tmp_path).K.isna()
    assert length


def test_text_that_no_file_can_hold_is_replaced(tmp_path: Path) -> None:
    sample_store.write(tmp_path, [_with(sample_store.generation(1), prompt_id="half a \ud83d", started_at="yesterday")])
    rows = specprof.load_results(tmp_path)
    assert rows.prompt_id[0] == "half a ?" and rows.started_at.isna().all()


def test_pandas_is_asked_for_where_it_is_missing(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ResourceError, match="needs pandas") as refused:
        specprof.load_results(results)
    assert refused.value.hint == "pip install 'specprof[analysis]'"


def test_importing_the_package_loads_no_library() -> None:
    code = "import sys, specprof.experiments.results; print(sorted({'pandas', 'torch', 'filelock'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# Large

MEASURE = """
    import json, re, sys, time
    from pathlib import Path
    began = time.monotonic()
    if sys.argv[2] == "list":
        from specprof.experiments.results import read_contents
        from specprof.experiments.summary import cell_states
        found = [len(cell_states(contents := read_contents(Path(sys.argv[1])))), len(contents.generations)]
    else:
        import specprof
        found = list(specprof.load_results(sys.argv[1]).shape)
    # Not ru_maxrss: a child begins with its parent's, and tests before this one may have been large.
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    print(json.dumps([found, time.monotonic() - began, peak]))
"""


@pytest.mark.slow
def test_ten_thousand_generations_are_read_in_seconds(tmp_path: Path) -> None:
    """Measured on two cores of an EPYC: 1.1 s and 110 MB to list, 1.6 s and 150 MB to load, imports included."""
    with (tmp_path / FILE_NAME).open("w") as file:
        file.writelines(to_json_line(record) for record in sample_store.many(10_000))
    figures = {}
    for what in ("list", "load"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path), what],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        found, seconds, megabytes = json.loads(done.stdout)
        figures[what] = (seconds, megabytes)
        assert found == ([4, 10_000] if what == "list" else [10_000, len(frame.COLUMNS)])
        assert seconds < 10 and megabytes < 500, figures  # for a machine that others work on too
    print({what: f"{seconds:.2f} s, {megabytes:.0f} MB" for what, (seconds, megabytes) in figures.items()})


def _with(record: Record, **changes: object) -> Record:
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]
