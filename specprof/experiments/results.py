"""The results store: one JSON Lines file that is only ever appended to, and reading it back.

A process that is killed loses at most the line it was writing. One process writes at a time; any number read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from specprof.errors import ResourceError, UsageError
from specprof.experiments.records import (
    SCHEMA,
    CellStarted,
    Failure,
    Generation,
    GenerationKey,
    Machine,
    Record,
    Session,
    lines_of,
    parse,
    to_json_line,
    to_record,
)
from specprof.experiments.store import check_writable

if TYPE_CHECKING:
    from filelock import BaseFileLock

FILE_NAME = "records.jsonl"

MAX_NOTES = 20
_BLOCK = 1 << 16

LOG = logging.getLogger("specprof")


@dataclass(slots=True)
class Contents:
    """What a store holds."""

    sessions: dict[str, Session] = field(default_factory=dict)
    machines: dict[str, Machine] = field(default_factory=dict)
    cells: dict[tuple[str, str], CellStarted] = field(default_factory=dict)
    """By config hash and machine class; the last line of each."""
    generations: dict[GenerationKey, Generation] = field(default_factory=dict)
    """Of two with one key, the first."""
    failures: dict[tuple[str, str | None], Failure] = field(default_factory=dict)
    """By config hash and machine class: the last since the cell was last started."""
    largest_sequence: int = 0
    notes: list[str] = field(default_factory=list)
    """What was skipped on reading, one sentence each."""

    def add(self, record: Record) -> None:
        """Take the next record of the file."""
        match record:
            case Session():
                self.sessions[record.session] = record
            case Machine():
                self.machines[record.machine_class] = record
            case CellStarted():
                self._start(record)
            case Generation():
                self.generations.setdefault(record.key, record)
                self.largest_sequence = max(self.largest_sequence, record.sequence)
            case Failure():
                self.failures[record.config_hash, record.machine_class] = record
                self.largest_sequence = max(self.largest_sequence, record.sequence)

    def _start(self, cell: CellStarted) -> None:
        # A cell that is tried again has not failed again yet; and once its models load, that they didn't is past.
        for machine_class in (cell.machine_class, None):
            self.failures.pop((cell.config_hash, machine_class), None)
        if cell.machine_class:
            self.failures.pop((cell.config_hash, ""), None)
            self.cells.pop((cell.config_hash, ""), None)
        self.cells[cell.config_hash, cell.machine_class] = cell


class ResultStore:
    """Appends records to ``<directory>/records.jsonl``, alone: a context manager over an exclusive lock.

    The lock is the operating system's and dies with its process, however that ends.
    """

    def __init__(self, path: Path, lock: BaseFileLock, descriptor: int, contents: Contents) -> None:
        """Use :meth:`open`."""
        self.path = path
        self.contents = contents
        """What the file holds, without the rounds of what was there before."""
        self._lock = lock
        self._descriptor = descriptor
        self._writing = threading.Lock()
        self._sequence = contents.largest_sequence

    @classmethod
    def open(cls, directory: Path) -> ResultStore:
        """Lock a directory's store, create it where there is none, cut off a line its last writer left torn, read it.

        Raises:
            ResourceError: another process is writing there, or nothing can be written.
            UsageError: a version that is incompatible wrote it.
        """
        check_writable(directory)
        path = directory / FILE_NAME
        with reported(path):
            directory.mkdir(parents=True, exist_ok=True)
            lock = _locked(path)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
                try:
                    _mend(path, descriptor)
                    return cls(path, lock, descriptor, _read(path, with_rounds=False))
                except BaseException:
                    os.close(descriptor)
                    raise
            except BaseException:
                lock.release(force=True)
                raise

    def append(self, record: Record, *, sync: bool = False) -> None:
        """Write one line, whole or not at all; when this returns, the death of this process can't lose it.

        Args:
            sync: wait until it is on the disk, where a power failure can't either.

        Raises:
            ResourceError: it could not be written; the file is as it was.
        """
        line = to_json_line(record).encode()
        with self._writing, reported(self.path):
            before = os.fstat(self._descriptor)
            if before.st_nlink == 0:
                raise ResourceError(
                    f"{self.path} was deleted while it was being written", "measure again what it held, and leave it"
                )
            try:
                written = os.write(self._descriptor, line)
                if written < len(line):
                    # Only a full disk takes half a line; the other half gets it to say so.
                    os.write(self._descriptor, line[written:])
                    raise OSError("only a part of a line was taken")
            except OSError:
                os.ftruncate(self._descriptor, before.st_size)
                raise
            self.contents.add(_without_rounds(record))
            if sync:
                os.fsync(self._descriptor)

    def sync(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            ResourceError: the disk refuses.
        """
        with self._writing, reported(self.path):
            os.fsync(self._descriptor)

    def next_sequence(self) -> int:
        """A number larger than every one in the file and every one given out: order without a clock."""
        with self._writing:
            self._sequence = max(self._sequence, self.contents.largest_sequence) + 1
            return self._sequence

    def remove(self, cells: Collection[tuple[str, str]]) -> None:
        """Take cells out of the file, by config hash and machine class, with all their generations and failures.

        The file is replaced as a whole: until then it is the old one, whatever happens.

        Raises:
            ResourceError: the new file can't be written; the old one stays.
        """
        with self._writing, reported(self.path):
            descriptor, name = tempfile.mkstemp(prefix=f".{FILE_NAME}.", dir=self.path.parent)
            try:
                with open(descriptor, "wb") as kept, open(self.path, "rb") as lines:
                    kept.writelines(line for line in lines if not _belongs(line, cells))
                    kept.flush()
                    os.fsync(kept.fileno())
                shutil.copymode(self.path, name)
                os.replace(name, self.path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND)
            os.close(self._descriptor)
            self._descriptor = descriptor
            self.contents = _read(self.path, with_rounds=False)

    def close(self) -> None:
        """Let the next writer in; idempotent."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1
            self._lock.release(force=True)

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def read_contents(directory: Path, *, with_rounds: bool = False) -> Contents:
    """What a directory's store holds, while somebody may be writing to it.

    Args:
        with_rounds: several times the memory and the time; only who looks inside generations needs them.

    Raises:
        UsageError: there is none, or an incompatible version wrote it.
        ResourceError: it can't be read.
    """
    path = directory / FILE_NAME
    check_is_there(path)
    with reported(path, "reading"):
        return _read(path, with_rounds=with_rounds)


def _read(path: Path, *, with_rounds: bool) -> Contents:
    contents = Contents()
    for _, record in read_records(path, contents.notes, with_rounds=with_rounds):
        contents.add(record)
    return contents


def read_records(path: Path, notes: list[str], *, with_rounds: bool) -> Iterator[tuple[dict[str, Any], Record]]:
    """Every line that is a record, as the object it is and as what that means; ``notes`` says what was skipped.

    Raises:
        UsageError: an incompatible version wrote it.
    """
    skipped = unknown = 0
    with open(path, "rb") as file:
        for number, line in enumerate(lines_of(file), start=1):
            try:
                values = parse(line.decode(), with_rounds=with_rounds)
                record = to_record(values)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    notes.append(f"line {number}, the last, is skipped: it is incomplete, its writer was stopped")
                    continue
                skipped += 1
                if skipped <= MAX_NOTES:
                    notes.append(f"line {number} is skipped: {error}")
                continue
            if record is None:
                unknown += 1
                continue
            if isinstance(record, Session):
                _check_schema(path, record)
            yield values, record
    if skipped > MAX_NOTES:
        notes.append(f"{_lines(skipped - MAX_NOTES)} skipped besides")
    if unknown:
        notes.append(f"{_lines(unknown)} of a kind that only a later version knows")


def _lines(number: int) -> str:
    return "1 line is" if number == 1 else f"{number} lines are"


def check_is_there(path: Path) -> None:
    """Refuse to read a store that isn't.

    Raises:
        UsageError: there is no such file.
    """
    if not path.is_file():
        raise UsageError(
            f"there are no results of a sweep in {path.parent}",
            "run `specprof sweep`, or name the directory that has them (--results-dir)",
        )


def _check_schema(path: Path, session: Session) -> None:
    if session.schema != SCHEMA:
        raise UsageError(
            f"{path} is of schema {session.schema!r}; this version reads {SCHEMA}",
            "use the version of specprof that wrote it, or another --results-dir",
        )


# Writing alone, and whole lines


def _locked(path: Path) -> BaseFileLock:
    from filelock import FileLock, Timeout

    lock_path = path.with_name(f"{path.name}.lock")
    # Read first: older versions of the library empty the file when they try its lock.
    holder = _holder(lock_path)
    lock = FileLock(lock_path, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ResourceError(
            f"another sweep{_holder(lock_path) or holder} is writing to {path.parent}",
            "wait for it to end, or choose another --results-dir",
        ) from None
    # Only for that message: the lock is the lock without it.
    with contextlib.suppress(OSError):
        lock_path.write_text(f"{os.getpid()} {time.strftime('%Y-%m-%d %H:%M:%S')}\n", encoding="utf-8")
    return lock


def _holder(lock_path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        process, _, since = lock_path.read_text(encoding="utf-8")[:80].strip().partition(" ")
        if process.isdigit():
            return f" (process {process}, since {since})" if since else f" (process {process})"
    return ""


def _mend(path: Path, descriptor: int) -> None:
    """End the file with its last whole line."""
    size = os.fstat(descriptor).st_size
    end = size
    tail = b""
    while end > 0 and b"\n" not in tail:
        start = max(0, end - _BLOCK)
        tail = os.pread(descriptor, end - start, start) + tail
        end = start
    torn = tail[tail.rfind(b"\n") + 1 :]
    if not torn:
        return
    try:
        parse(torn.decode())
    except ValueError:
        os.ftruncate(descriptor, size - len(torn))
        LOG.info("%s: its last line was incomplete (its writer was stopped) and is removed", path)
    else:
        os.write(descriptor, b"\n")  # nothing of it is missing but its end


def _without_rounds(record: Record) -> Record:
    # A sweep of days would collect them by the gigabyte.
    if isinstance(record, Generation):
        return dataclasses.replace(record, result=dataclasses.replace(record.result, rounds=()))
    return record


def _belongs(line: bytes, cells: Collection[tuple[str, str]]) -> bool:
    try:
        record = to_record(parse(line.decode(), with_rounds=False))
    except ValueError:
        return False
    if isinstance(record, Failure) and record.machine_class is None:
        return any(record.config_hash == config_hash for config_hash, _ in cells)
    if isinstance(record, CellStarted | Generation | Failure):
        return (record.config_hash, record.machine_class) in cells
    return False


@contextlib.contextmanager
def reported(path: Path, doing: str = "writing") -> Iterator[None]:
    """An error of the operating system, as one that says what was being done."""
    try:
        yield
    except OSError as error:
        hint = "free some space or check its permissions; what was finished before is kept"
        raise ResourceError(
            f"{doing} {path} failed: {error.strerror or error}",
            hint if doing == "writing" else "check its permissions, or name another --results-dir",
        ) from error
