"""A Ray cluster to work on: one that is there, or a small one of our own that ends with us."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from specprof.errors import ResourceError, UsageError
from specprof.experiments.executors import failure_of

_LOG = logging.getLogger("specprof")

_CONNECT_SECONDS = 5.0
_JOIN_SECONDS = 20.0
"""That another process may take to join, Ray's own import included."""

_QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
_OBJECT_STORE_BYTES = 100 * 2**20
"""Prompts and events are small; by default Ray would set 30 % of the memory aside."""


def library() -> Any:
    """The library, imported when it is needed: half a second. Its types say less than they claim."""
    import ray

    return ray


@contextlib.contextmanager
def connected(address: str | None, num_workers: int | None) -> Iterator[None]:
    """Ray, connected to a cluster that is there or to one of our own. A connection that our caller made is used.

    Raises:
        ResourceError: no cluster can be joined, or started.
    """
    ray = library()
    if ray.is_initialized():
        yield
        return
    if address is not None:
        _check_joinable(address)
    # Its sockets are in there, and their paths may have 107 bytes: the usual temporary directory can be too deep.
    directory = None if address else tempfile.mkdtemp(prefix="specprof-ray-", dir="/tmp")
    try:
        with _without_rays_output(), _environment(_QUIET if address else _QUIET | _for_our_own_cluster()):
            _start_or_join(address, directory, num_workers)
            yield
    finally:
        ray.shutdown()
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


def parsed(address: str) -> tuple[str, int] | None:
    """Host and port; None for ``auto``.

    Raises:
        UsageError: it is no address.
    """
    if address == "auto":
        return None
    host, colon, port = address.rpartition(":")
    is_port = port.isdecimal() and len(port) <= 5 and int(port) < 2**16
    if not colon or not host or not is_port or "://" in address:
        raise UsageError(
            f"{address!r} is not the address of a Ray cluster",
            "give host:port as `ray start --head` prints it, or auto for the cluster that runs on this machine",
        )
    return host.strip("[]"), int(port)


def _start_or_join(address: str | None, directory: str | None, num_workers: int | None) -> None:
    ray = library()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if address is None:
        options |= {
            "include_dashboard": False,
            "num_cpus": max(os.cpu_count() or 1, num_workers or 1),
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_temp_dir": directory,
        }
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or "local", **options)
    except Exception as error:
        what = f"no Ray cluster can be joined at {address}" if address else "Ray can't be started"
        raise ResourceError(f"{what}: {failure_of(error).message}", _JOIN_HINT if address else _START_HINT) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)  # Ray has put its own in the place


_START_HINT = "`ray stop` ends what is left of other clusters; --executor local needs none"
_JOIN_HINT = "start one with `ray start --head`, and run this on one of its nodes"


def _check_joinable(address: str) -> None:
    """Try it in another process: Ray itself goes on for minutes where nothing, or something else, answers."""
    try:
        if place := parsed(address):
            socket.create_connection(place, _CONNECT_SECONDS).close()
        program = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='critical')"
        tried = subprocess.run(
            [sys.executable, "-P", "-c", program, address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_JOIN_SECONDS,
            check=False,
            env=os.environ | _QUIET,
        )
    except subprocess.TimeoutExpired as error:
        raise ResourceError(f"no Ray cluster answers at {address} within {_JOIN_SECONDS:g} s", _JOIN_HINT) from error
    except OSError as error:
        raise ResourceError(f"no Ray cluster answers at {address}: {error.strerror or error}", _JOIN_HINT) from error
    if tried.returncode:
        reasons = [line for line in tried.stderr.splitlines() if re.match(r"[\w.]+(Error|Exception): ", line)]
        reason = reasons[-1].split(": ", 1)[1] if reasons else f"exit status {tried.returncode}"
        raise ResourceError(f"no Ray cluster can be joined at {address}: {reason}", _JOIN_HINT)


@functools.cache
def _for_our_own_cluster() -> dict[str, str]:
    return {
        # Ray's workers give way to other processes unless told otherwise; what is measured should not.
        "RAY_worker_niceness": "0",
        # Whoever reaches a cluster can run code on it. Without this Ray would write a token into the home directory;
        # it reads one once per process.
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These variables, unless the user has set them."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


class _Retell(logging.Handler):
    """Ray's log, as a detail of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        _LOG.debug("Ray: %s", record.getMessage())


@contextlib.contextmanager
def _without_rays_output() -> Iterator[None]:
    """Take what Ray would print into our log: it writes on stderr as it likes, and tells of dead nodes on stdout,
    which is for results, whatever one sets."""
    internals: Any = importlib.import_module("ray._private.worker")
    logger = logging.getLogger("ray")
    theirs, handlers = internals.print_to_stdstream, logger.handlers[:]

    def retell(message: Mapping[str, Any], *_: object, **__: object) -> None:
        _LOG.debug("Ray: %s", " ".join(str(line) for line in message["lines"]))

    internals.print_to_stdstream, logger.handlers[:] = retell, [_Retell()]
    try:
        yield
    finally:
        internals.print_to_stdstream, logger.handlers[:] = theirs, handlers
