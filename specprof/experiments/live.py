"""An engine to watch and to steer: a process of its own that decodes, and what a screen has in its hands of it."""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from specprof.data.prompts import Prompt
from specprof.errors import ResourceError
from specprof.experiments.config import RunConfig
from specprof.experiments.executors import cause_of_death, end, oom_kills
from specprof.experiments.live_device import DeviceReader
from specprof.profiling.events import RunStarted
from specprof.profiling.feed import Control, Failed, Loading, Message, from_json_line

ENGINE = "specprof.experiments.live_engine:serve"
"""What runs in the child, as ``module:callable``: a name, so that the parent need not import torch."""

_BYTES_A_READ = 2 << 20
"""At most, of messages; what has come beyond it waits for the next call."""
_SOCKET_BYTES = 1 << 20
_LOG_LINES = 20
_START_AGAIN = "its last words may say why; start it again"
_LONGEST_LOG_LINE = 2000
_DEVICE_SECONDS = 1.0
_LARGEST = 2**63 - 1
_STOP_SECONDS = 2.0
"""That an engine which decodes has to end its file."""


@dataclass(frozen=True, slots=True)
class Session:
    """What an engine is started with."""

    config: RunConfig
    prompts: tuple[Prompt, ...]
    results_dir: Path | None
    """Where each run is kept; None keeps nothing."""
    command: str | None
    """That asked for it, kept with the runs."""
    threads: int | None
    """Of PyTorch; None leaves a core to the screen."""


class ControlPage:
    """A :class:`Control` in memory that two processes share.

    Each field is 8 aligned bytes, written and read at once: there is no lock, and nobody ever waits. Two fields may be
    of two successive controls for a moment, each of them whole.

    Args:
        descriptor: of a file of :attr:`SIZE` bytes or more; None makes one, which has no name.
    """

    SIZE = 128

    def __init__(self, descriptor: int | None = None) -> None:
        if descriptor is None:
            with tempfile.TemporaryFile() as file:
                file.write(bytes(self.SIZE))  # on a full disk this says so; a file with holes is a signal later
                file.flush()
                self.descriptor = os.dup(file.fileno())
        else:
            self.descriptor = descriptor
        self._memory = mmap.mmap(self.descriptor, self.SIZE)
        self._bytes = memoryview(self._memory)
        self._whole, self._real = self._bytes.cast("q"), self._bytes.cast("d")

    def write(self, control: Control) -> None:
        whole, real = self._whole, self._real
        whole[3], whole[4], whole[5] = min(control.k, _LARGEST), control.race, control.paused
        real[6], real[7] = control.temperature, control.pace
        # Last, and read first: whoever sees that all is to begin anew sees the K to do it with.
        whole[0], whole[1], whole[2] = control.steps, control.skips, control.restarts

    def read(self) -> Control:
        whole, real = self._whole, self._real
        steps, skips, restarts = whole[0], whole[1], whole[2]
        return Control(bool(whole[5]), steps, skips, restarts, whole[3], real[6], bool(whole[4]), real[7])

    @property
    def stopped(self) -> bool:
        """Whether the engine is to end."""
        return bool(self._whole[8])

    def stop(self) -> None:
        self._whole[8] = 1

    @property
    def has_begun(self) -> bool:
        """Whether the engine decodes: there may be a file to be ended."""
        return bool(self._whole[9])

    def begin(self) -> None:
        self._whole[9] = 1

    def close(self) -> None:
        """Idempotent."""
        if self.descriptor < 0:
            return
        for view in (self._whole, self._real, self._bytes):
            view.release()
        self._memory.close()
        os.close(self.descriptor)
        self.descriptor = -1


# The child is not multiprocessing's: that would import the parent's __main__ again. It gets the parent's sys.path, so
# that both find the same specprof, and nothing else of it.
_CHILD = """
import importlib, sys
module, name = sys.argv[1].split(":")
arguments, sys.path[:] = sys.argv[2:5], sys.argv[5:]
getattr(importlib.import_module(module), name)(arguments)
"""


class LiveFeed:
    """Starts an engine, and is its :class:`~specprof.profiling.feed.Feed`.

    Args:
        session: what to decode.
        control: what is wanted to begin with; its counts are what later ones are counted from.
        engine: ``module:callable``, what runs in the child.

    Raises:
        ResourceError: it can't be started.
    """

    live = True

    def __init__(self, session: Session, control: Control, *, engine: str = ENGINE) -> None:
        if os.name != "posix":
            raise ResourceError("an engine to watch needs Linux or macOS", "`specprof run` measures here as well")
        self._messages: deque[Message] = deque([Loading(f"loading {session.config.pair.name}")])
        self._received, self._logged = b"", b""
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._more = self._over = self._closed = False
        self._oom_kills = oom_kills()
        self._next_glance = time.monotonic() + _DEVICE_SECONDS
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            try:
                self._page = ControlPage()
                undo.callback(self._page.close)
                self._page.write(control)
                self._socket, display = socket.socketpair()
                undo.callback(self._socket.close)
                theirs.callback(display.close)
                display.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
                # Nothing is ever written to the lifeline. It breaks when this process ends, however it ends.
                lifeline, self._lifeline = self._pipe(theirs, undo)
                self._stderr, stderr = self._pipe(undo, theirs)
                # A file, not a pipe: writing to it waits for nobody.
                asked = theirs.enter_context(tempfile.TemporaryFile())
                pickle.dump((session, control), asked)
                asked.seek(0)
                descriptors = (display.fileno(), lifeline, self._page.descriptor)
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _CHILD, engine, *map(str, descriptors), *sys.path],
                    stdin=asked,
                    stdout=stderr,  # what a library prints is no message, and the screen is not to be printed on
                    stderr=stderr,
                    pass_fds=descriptors,
                    process_group=0,  # Ctrl-C is a key of the screen's
                )
            except OSError as error:
                raise ResourceError(
                    f"no engine can be started: {error.strerror or error}",
                    "end other processes, or free memory and disk space",
                ) from error
            undo.pop_all()
        self._socket.setblocking(False)
        os.set_blocking(self._stderr, False)
        self._device = DeviceReader(self._process.pid)

    @staticmethod
    def _pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
        """A pipe whose ends are closed with these."""
        reading, writing = os.pipe()
        reader.callback(os.close, reading)
        writer.callback(os.close, writing)
        return reading, writing

    @property
    def pid(self) -> int:
        """Of the engine."""
        return self._process.pid

    def read(self) -> Sequence[Message]:
        """What has come since the last call, in order; never waits. :class:`Failed` is the last there is."""
        if self._over or self._closed:
            return ()
        gone = self._process.poll() is not None  # before the rest is read: what comes after it can't be missed
        self._read_log()
        messages = [*self._messages, *self._incoming()]
        self._messages.clear()
        for number, message in enumerate(messages):
            if isinstance(message, RunStarted):
                self._device.look_at(message.config)
            if isinstance(message, Failed):
                self._over = True
                self._read_log()  # what it said of it may have come just now
                return [*messages[:number], replace(message, log_lines=message.log_lines or tuple(self._log))]
        if gone and not self._more:
            self._over = True
            return [*messages, self._failure()]
        if not gone and time.monotonic() >= self._next_glance:
            self._next_glance = time.monotonic() + _DEVICE_SECONDS
            messages.append(self._device.read())
        return messages

    def send(self, control: Control) -> None:
        if not self._closed:
            self._page.write(control)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        begun = self._page.has_begun
        self._page.stop()
        self._socket.close()  # it need not wait for anybody who reads
        try:
            if begun:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_STOP_SECONDS)
        finally:
            end(self._process)
            os.close(self._lifeline)
            os.close(self._stderr)
            self._page.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)

    def _incoming(self) -> Iterator[Message]:
        """Messages that are here; :attr:`_more` says whether there may be others behind them."""
        budget, parts = _BYTES_A_READ, [self._received]
        self._more = True
        while budget > 0:
            try:
                part = self._socket.recv(min(budget, 1 << 18))
            except (BlockingIOError, ConnectionError):
                part = b""
            if not part:
                self._more = False
                break
            parts.append(part)
            budget -= len(part)
        *lines, self._received = b"".join(parts).split(b"\n")
        for line in lines:
            try:
                yield from_json_line(line.decode())
            except ValueError as error:
                yield Failed(f"the engine said what is no message: {_shown(str(error).encode())}", _START_AGAIN, 1)
                return

    def _read_log(self) -> None:
        """Keep the last lines of what the engine said, and of what it said over and over in one line the last."""
        for _ in range(16):
            try:
                part = os.read(self._stderr, 1 << 16)
            except BlockingIOError:
                return
            if not part:
                return
            *lines, rest = (self._logged + part).split(b"\n")
            self._logged = rest[-_LONGEST_LOG_LINE:]
            self._log += map(_shown, lines)

    def _failure(self) -> Failed:
        died = cause_of_death(self._process.returncode, self._oom_kills, "the engine")
        exit_code, hint = 1, _START_AGAIN
        if died.reason == "out of memory":
            exit_code, hint = 4, "use smaller models, or fewer new tokens"
        elif self._process.returncode == -signal.SIGKILL:
            hint = "somebody or something ended it; start it again"
        lines = (*self._log, *filter(None, (_shown(self._logged),)))
        return Failed(died.message, hint, exit_code, lines[-_LOG_LINES:])


def _shown(line: bytes) -> str:
    """What is to be seen of a line in the end: a progress bar writes it many times."""
    text = line.rstrip(b"\r").rpartition(b"\r")[2]
    return text[-_LONGEST_LOG_LINE:].decode(errors="replace")
