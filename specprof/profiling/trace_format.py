"""The Trace Event Format: spans, counters and arrows as the JSON objects that Perfetto and chrome://tracing read.

Times are nanoseconds here, microseconds there. A decoder is a process, numbered from 1.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

# Thread ids are pid * 10 + one of these: unique over all processes, because readers look thread names up by tid alone.
GENERATIONS, HOST, DRAFT, TARGET, SAMPLE = range(1, 6)
_THREADS = {GENERATIONS: "generations", HOST: "host", DRAFT: "draft", TARGET: "target", SAMPLE: "sample"}

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _tid(pid: int, thread: int) -> int:
    return pid * 10 + thread


def process_names(pid: int, decoder: str) -> list[dict[str, Any]]:
    """What a decoder and its threads are called, and their order."""

    def metadata(kind: str, tid: int, key: str, value: str | int) -> dict[str, Any]:
        return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {key: value}}

    names = [
        metadata("process_name", _tid(pid, HOST), "name", decoder),
        metadata("process_sort_index", _tid(pid, HOST), "sort_index", pid),
    ]
    for thread, name in _THREADS.items():
        names.append(metadata("thread_name", _tid(pid, thread), "name", name))
        names.append(metadata("thread_sort_index", _tid(pid, thread), "sort_index", thread))
    return names


def span(
    pid: int, thread: int, category: str, name: str, start: int, end: int, args: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """From ``start`` to ``end`` on one thread of a process."""
    event = {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": pid,
        "tid": _tid(pid, thread),
        "ts": _microseconds(start),
        "dur": _microseconds(end - start),
    }
    return event if args is None else event | {"args": args}


def flow(pid: int, phase: str, thread: int, at: int, flow_id: int) -> dict[str, Any]:
    """An arrow from a draft to its verification: ``s`` leaves the span it stands in, ``f`` enters the one it stands in
    (``bp``: not the next one)."""
    event = {
        "ph": phase,
        "name": "draft to verify",
        "cat": "flow",
        "id": flow_id,
        "pid": pid,
        "tid": _tid(pid, thread),
        "ts": _microseconds(at),
    }
    return event | {"bp": "e"} if phase == "f" else event


def instant(pid: int, thread: int, name: str, at: int, args: Mapping[str, Any]) -> dict[str, Any]:
    """A mark on one thread."""
    return {
        "ph": "i",
        "s": "t",
        "name": name,
        "cat": "instant",
        "pid": pid,
        "tid": _tid(pid, thread),
        "ts": _microseconds(at),
        "args": args,
    }


def counter(pid: int, name: str, unit: str, at: int, value: float) -> dict[str, Any]:
    """What a curve of the process is from there on."""
    return {
        "ph": "C",
        "name": name,
        "cat": "counter",
        "pid": pid,
        "tid": _tid(pid, HOST),
        "ts": _microseconds(at),
        "args": {unit: value},
    }


def memory(pid: int, at: int, peak_bytes: int) -> dict[str, Any]:
    return counter(pid, "peak memory", "MiB", at, peak_bytes / 2**20)


def _microseconds(nanoseconds: int) -> float:
    """The unit of the format, as a number that is the same nanosecond again for readers that round and that cut off.

    Without this a reader that cuts off sees neighbours overlap by a nanosecond, and drops one.
    """
    value = nanoseconds / 1000
    while int(value * 1000.0) < nanoseconds:
        value = math.nextafter(value, math.inf)
    return value


# Halves of characters, which are no text, and what would command a terminal that shows the file. The rest stays
# readable: Perfetto (52) shows an escaped letter as its escape.
_ODD = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def encoded(value: Any) -> str:
    """JSON; None in the place of numbers that it hasn't."""
    try:
        text = _encode(value)
    except ValueError:  # NaN
        text = _encode(_finite(value))
    return _ODD.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return "\ufffd" if 0xD800 <= code <= 0xDFFF else f"\\u{code:04x}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
