"""The other side of an executor: what runs in a worker's process."""

from __future__ import annotations

import fcntl
import importlib
import logging
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from specprof.experiments.executors import ANSWER, LOGGED, Bench, Failed, Generated, LogLine, Ready, failure_of

_LOG = logging.getLogger("specprof")

_Value = Ready | Generated | Failed


class Server:
    """A bench that answers to bytes: whatever happens in it becomes an answer that can be sent."""

    def __init__(self, make_bench: str) -> None:
        self._make_bench = make_bench
        self._bench: Bench | None = None

    def answer(self, request: bytes) -> bytes:
        """What a call, pickled as method and arguments, comes to: Ready, Generated or Failed, pickled."""
        try:
            method, arguments = pickle.loads(request)
        except Exception as error:
            value: _Value = Failed("error", f"the request can't be read: {failure_of(error).message}", None)
        else:
            value = self._answer(method, arguments)
        try:
            return pickle.dumps(value)
        except Exception as error:
            return pickle.dumps(Failed("error", f"the answer can't be sent: {failure_of(error).message}", None))

    def _answer(self, method: str, arguments: Sequence[Any]) -> _Value:
        try:
            if self._bench is None:
                self._bench = _made(self._make_bench)
            if method == "prepare":
                return self._bench.prepare(*arguments)
            return Generated(tuple(self._bench.generate(*arguments)))
        except (Exception, SystemExit) as error:
            _LOG.debug("%s failed in a worker", method, exc_info=True)
            return failure_of(error, loading=method == "prepare")


def _made(name: str) -> Bench:
    module, _, attribute = name.partition(":")
    bench: Bench = getattr(importlib.import_module(module), attribute)()
    return bench


class Forward(logging.Handler):
    """Hands what is logged here to the driver, which has the user's format and knows what else is on the terminal."""

    def __init__(self, send: Callable[[LogLine], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send((record.name, record.levelno, self.format(record)))
        except OSError:
            self.handleError(record)


def log_through(handler: Forward, root_level: int, level: int) -> None:
    """Log nothing but through this, at the driver's levels."""
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(root_level)
    _LOG.setLevel(level)
    logging.captureWarnings(True)


def serve(arguments: Sequence[str]) -> None:
    """Answer until the driver hangs up; the whole life of a local worker's process.

    Args:
        arguments: file descriptors of the socket and of the lifeline, log levels of the root and of specprof, and
            ``module:callable`` for what to work with.
    """
    socket, lifeline, root_level, level = map(int, arguments[:4])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for descriptor in (socket, lifeline):
        os.set_inheritable(descriptor, False)
    die_with_the_driver(lifeline)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    connection, sending = Connection(socket), threading.Lock()

    def send(kind: bytes, content: bytes) -> None:
        with sending:
            connection.send_bytes(kind + content)

    log_through(Forward(lambda line: send(LOGGED, pickle.dumps(line))), root_level, level)
    if level <= logging.DEBUG:
        import faulthandler

        faulthandler.enable()
    server = Server(arguments[4])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what holds files puts them away, as after Ctrl-C
    try:
        send(ANSWER, b"")
        while True:
            send(ANSWER, server.answer(connection.recv_bytes()))
    except (EOFError, OSError):
        os._exit(0)  # the driver is gone: nobody waits for a tidy end
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGTERM)


def die_with_the_driver(lifeline: int) -> None:
    """End this process when the other end of the pipe is closed, which the kernel does for whoever held it."""
    if hasattr(fcntl, "F_SETSIG"):
        # Linux: the kernel kills us itself, also while native code holds the interpreter's lock.
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)

    def wait() -> None:
        os.read(lifeline, 1)
        os._exit(1)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
