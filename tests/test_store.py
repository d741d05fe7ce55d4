"""Results on disk: whole generations, whatever becomes of the process that writes them."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from command_line import QUICK, command, isolate, process
from specprof.commands.sinks import JsonLines, tee
from specprof.errors import ResourceError, UsageError
from specprof.experiments.store import RunFile, check_outputs, check_writable, new_run_id
from specprof.profiling.events import (
    SCHEMA,
    Event,
    Prefilled,
    PromptEnded,
    Round,
    RunEnded,
    RunStarted,
    from_json_line,
    read_events,
    to_json_line,
)
from specprof.profiling.metrics import fold

RESOURCES, INTERRUPTED, BROKEN_PIPE = 4, 130, 141
LONG = (
    "--max-new-tokens", "48", "--ignore-eos", "--reps", "100", "--warmup", "0", "--deterministic", "--no-cost-curve",
    "--results-dir", "results",
)  # fmt: skip
"""Goes on for minutes, unless somebody ends it."""


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


def generation(number: int) -> list[Event]:
    key = (f"prompt_{number}", "SD-K2", 0)
    return [
        Prefilled(*key, 3, 7, 0.1, 0.05, 0.01),
        Round(*key, 0, (1, 2), 1, (1, 9), 0.01, 0.02, 0.001, 0.001, target_prob=(0.5, 0.25), draft_prob=(1.0, 0.5)),
        Round(*key, 1, (3, 4), 2, (3, 4, 5), 0.01, 0.02, 0.001, 0.001),
        PromptEnded(*key, "length", 1000),
    ]


def story(num_generations: int) -> list[Event]:
    started = RunStarted("run", SCHEMA, {"text": "ä\u2028\n"}, {})
    return [started, *(event for n in range(num_generations) for event in generation(n)), RunEnded(1000)]


def saved(path: Path) -> list[Event]:
    with path.open(encoding="utf-8") as file:
        return list(read_events(file))


# The file


def test_a_file_holds_the_events_that_were_written(tmp_path: Path) -> None:
    events = story(3)
    with RunFile(tmp_path / "new" / "dir", "run") as file:
        for event in events:
            file(event)
    assert file.path == tmp_path / "new" / "dir" / "run.jsonl"
    assert saved(file.path) == events


def test_lines_reach_the_disk_when_a_generation_ends_and_never_inside_one(tmp_path: Path) -> None:
    with RunFile(tmp_path / "results", "run") as file:
        assert not file.path.parent.exists(), "nothing is created before there is something to write"
        on_disk = 0
        for index, event in enumerate(story(3), start=1):
            file(event)
            if isinstance(event, RunStarted | PromptEnded | RunEnded):
                on_disk = index
            assert len(file.path.read_text().splitlines()) == on_disk


def test_a_file_cut_at_any_byte_of_its_last_lines_is_readable(tmp_path: Path) -> None:
    events = story(2)[:-1]
    whole = "".join(map(to_json_line, events)).encode()
    last_lines = sum(len(to_json_line(event).encode()) for event in events[-2:])
    path = tmp_path / "cut.jsonl"
    finished = list(fold(events))
    for size in range(len(whole) - last_lines, len(whole) + 1):
        path.write_bytes(whole[:size])
        found = saved(path)
        assert found == events[: len(found)]
        # The line is lost only if a byte of it is: the line break ends it, but doesn't belong to it.
        assert len(found) >= whole[:size].count(b"\n")
        assert list(fold(found)) == finished[: 2 if len(found) == len(events) else 1]
    assert len(found) == len(events)


def test_a_line_torn_in_the_middle_is_an_error(tmp_path: Path) -> None:
    lines = [to_json_line(event) for event in story(1)]
    lines[2] = lines[2][:20] + "\n"
    with pytest.raises(ValueError):
        list(read_events(lines))


def test_a_run_never_writes_into_another_ones_file(tmp_path: Path) -> None:
    for expected in (1, 1):
        with RunFile(tmp_path, "same") as file:
            if (tmp_path / "same.jsonl").exists():
                with pytest.raises(ResourceError, match="exists"):
                    file(story(0)[0])
            else:
                file(story(0)[0])
        assert len((tmp_path / "same.jsonl").read_text().splitlines()) == expected


def test_run_ids_differ_and_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {new_run_id() for _ in range(50)}
    assert len(ids) > 40  # 16 random bits: two alike among fifty happen once in fifty times
    now = time.localtime()
    monkeypatch.setattr("time.strftime", lambda form: f"{now.tm_year + 1}0101-000000")
    assert new_run_id() > max(ids)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_no_directory_can_be_below_a_file(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file is not a directory"):
        RunFile(tmp_path / place, "run")


def test_checking_creates_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    check_outputs((tmp_path / "c.json", None))
    with pytest.raises(ResourceError, match="no directory"):
        check_outputs((tmp_path / "a" / "c.json",))
    assert list(tmp_path.iterdir()) == []


def test_what_a_command_reads_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.json").write_text("[]")
    Path("link.json").symlink_to("mine.json")
    Path("hard.json").hardlink_to("mine.json")
    whole = str(tmp_path / "mine.json")
    for one, other in (
        ("mine.json", "mine.json"),
        ("./mine.json", whole),
        ("link.json", "mine.json"),
        (whole, "link.json"),
        ("hard.json", "mine.json"),
    ):
        with pytest.raises(UsageError, match="is used by this command, and would be overwritten"):
            check_outputs((None, Path("new.json"), Path(one)), used=(None, other))
    check_outputs((Path("mine.json"), Path("new.json")), used=("code", "-", None))


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    loop, away, new = tmp_path / "loop", tmp_path / "away", tmp_path / "new"
    loop.symlink_to("loop")
    away.symlink_to("nowhere/file")
    new.symlink_to("file")
    for link in (loop, away):
        with pytest.raises(ResourceError, match="it is a link that leads nowhere"):
            check_outputs((link,), used=("mine.json",))
    check_outputs((new,))  # makes the file


def test_two_outputs_need_two_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a\.json was named for two outputs"):
        check_outputs((tmp_path / "a.json", tmp_path / "b.json", tmp_path / "a.json"))
    check_outputs((Path("/dev/null"), Path("/dev/null")), used=("/dev/null",))  # which takes anything


# A run that ends before its time


def finished(path: Path) -> int:
    """Generations that can be read from a file a run left behind, every one of them whole."""
    events = saved(path)
    assert isinstance(events[0], RunStarted)
    assert not any(isinstance(event, RunEnded) for event in events)
    results = list(fold(events))
    assert len(results) == sum(isinstance(event, PromptEnded) for event in events)
    assert all(len(result.generated_ids) > 1 for result in results)
    return len(results)


def results_file() -> Path:
    (path,) = Path("results").iterdir()
    return path


def wait_for_generations(number: int) -> None:
    patience = time.monotonic() + 60
    while time.monotonic() < patience:
        if sum(path.read_text().count('"PromptEnded"') for path in Path("results").glob("*.jsonl")) >= number:
            return
        time.sleep(0.02)
    raise TimeoutError("the run has finished nothing in a minute")


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_keeps_what_was_finished(sent: signal.Signals) -> None:
    child = process("run", *LONG)
    wait_for_generations(3)
    child.send_signal(sent)
    out, err = child.communicate(timeout=20)
    assert finished(results_file()) >= 3
    assert out == "" and "Traceback" not in err
    if sent == signal.SIGKILL:
        assert child.returncode == -signal.SIGKILL
        return
    assert child.returncode == INTERRUPTED
    assert err.splitlines()[-1] == f"warning: interrupted; what was finished is in {results_file()}"


@pytest.mark.slow
def test_a_reader_that_goes_away_doesnt_stop_the_run() -> None:
    child = process("run", *LONG, "--reps", "1", "-n", "3", "--max-new-tokens", "24", "--jsonl", "-o", "run.json")
    assert child.stdout is not None and child.stderr is not None
    assert isinstance(from_json_line(child.stdout.readline()), RunStarted)
    child.stdout.close()
    err = child.stderr.read()
    assert child.wait(20) == BROKEN_PIPE, err
    assert "warning: the reader of standard output is gone; the run goes on" in err
    assert "Traceback" not in err and "Exception ignored" not in err and "BrokenPipe" not in err
    events = saved(results_file())
    assert isinstance(events[-1], RunEnded) and len(list(fold(events))) == 6
    assert Path("run.json").stat().st_size > 1000


def test_a_file_that_can_not_grow_keeps_what_was_finished(tmp_path: Path) -> None:
    events = story(50)
    first = len("".join(map(to_json_line, events[:5])).encode())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal that goes with it. The file is closed under the limit too: closing tries once more.
    resource.setrlimit(resource.RLIMIT_FSIZE, (first + 50, limits[1]))
    try:
        with RunFile(tmp_path, "run") as file, pytest.raises(ResourceError, match="File too large") as caught:
            list(tee(events, [file]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "free some space" in caught.value.hint and "--results-dir" in caught.value.hint
    assert finished(tmp_path / "run.jsonl") == 1


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_what_was_finished() -> None:
    child = process("run", *LONG)
    # No file of the child's may grow beyond 60 kB; Python ignores the signal that goes with it.
    resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (60_000, 60_000))
    out, err = child.communicate(timeout=60)
    assert child.returncode == RESOURCES and out == ""
    error, hint = err.splitlines()[-2:]
    assert error == f"error: writing {results_file()} failed: File too large"
    assert "free some space" in hint and "--results-dir" in hint
    assert finished(results_file()) >= 1


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "[Errno 28] No space left on device"), (errno.EPIPE, "the reader of standard output is gone")],
)
def test_a_disk_that_fills_up_under_stdout_doesnt_stop_the_run(
    number: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    written: list[str] = []

    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(number, os.strerror(number))

        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    sink = JsonLines(Full())
    for event in story(2):
        sink(event)
    # The first line was tried, the others spared; what failed is there to be raised when all is done.
    assert len(written) == 1 and sink.failure is not None and sink.failure.errno == number
    assert caplog.messages == [f"{said}; the run goes on"]


def test_a_place_that_only_looks_writable() -> None:
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    outcome = command("run", *QUICK, "--results-dir", "/proc/specprof")
    assert outcome.code == RESOURCES and "/proc/specprof" in outcome.told[0]
