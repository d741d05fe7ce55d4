"""What has to hold of every case, whatever was typed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from fuzz import values
from fuzz.case import Case, Result, allowed
from specprof.profiling.events import from_json_line

CODES = {0, 2, 3, 4, 5, 6, 7, 8, 130, 141}
"""That the documentation knows; 1 is a bug."""
TOLD = {2, 3, 4, 5, 6, 8}
"""That come with one error and one hint."""
NOTHING_WRITTEN = {2, 3, 5}
PEAK_GROWTH = 3 << 30
_CACHES = ("config", "home/.config", "home/.cache", "relative")
"""Of matplotlib (``relative`` where the environment names it so), and of the forward in C; PyTorch makes an empty
folder among the temporary files."""
_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SHARES = {"share", "draft_acceptance_rate", "alpha", "acceptance_rate", "target_mass", "drafted_share"}
_SHARE_LISTS = {"acceptance_rate_per_pos", "conditional_acceptance_rate"}


def problems(case: Case, result: Result) -> list[str]:
    """Each in a sentence; none if all is well."""
    return list(_problems(case, result))


def _problems(case: Case, result: Result) -> Iterator[str]:
    if result.code is None:
        yield "it had to be stopped: it hangs"
        return
    if result.code not in CODES:
        yield f"it ended with {result.code}"
    debug = "--debug" in case.arguments
    if "Traceback" in result.out or ("Traceback" in result.err and not debug):
        yield "there is a traceback"
    if "this is a bug" in result.err:
        yield "it calls itself a bug"
    yield from _words(case, result)
    yield from _marks(case, result)
    yield from _documents(case, result)
    yield from _files(case, result)
    if result.peak_growth_bytes > PEAK_GROWTH:
        yield f"its memory grew by {result.peak_growth_bytes / 2**30:.1f} GiB"


def _words(case: Case, result: Result) -> Iterator[str]:
    """One error and one hint where something is wrong, neither where nothing is."""
    if "2>" in case.redirect:
        return
    lines = _SEQUENCE.sub("", result.err).splitlines()
    errors, hints = (sum(line.startswith(word) for line in lines) for word in ("error:", "hint:"))
    if result.code in TOLD:
        if result.out.startswith("Usage:"):  # a command without its subcommand: that is what there is to say
            return
        if (errors, hints) != (1, 1):
            yield f"{errors} errors and {hints} hints are told"
        elif "--debug" not in case.arguments and not (
            lines[-2].startswith("error: ") and lines[-1].startswith("hint:  ")
        ):
            yield "the error and the hint are not what stands last"
        elif any(line.strip() in ("error:", "hint:") for line in lines):
            yield "an error or a hint says nothing"
    elif errors or hints:
        yield f"an error is told, and it ends with {result.code}"


def _marks(case: Case, result: Result) -> Iterator[str]:
    """What data holds must not command a terminal or a page."""
    if case.terminal:
        for payload in (values.TITLE, "\x9b", "\x07", values.RED):
            if payload in result.out + result.err:
                yield f"{payload!r} reaches the terminal"
        return
    for name, text in (("standard output", result.out), ("standard error", result.err)):
        if "--csv" in case.arguments and name == "standard output":
            continue  # data, for another program
        found = _CONTROL.search(_COLOUR.sub("", text) if _coloured(case) else text)
        if found:
            yield f"{found[0]!r} reaches {name}: {text[max(0, found.start() - 60) : found.end() + 20]!r}"
    for path, text in (*result.files.items(), ("standard output", result.out)):
        if (path.endswith(".html") or text.lstrip().startswith("<!doctype")) and values.SCRIPT in text:
            yield f"a script reaches {path}"


def _coloured(case: Case) -> bool:
    arguments = " ".join(case.arguments)
    return "--color always" in arguments or "--color=always" in arguments or case.environment.get("FORCE_COLOR") == "1"


def _documents(case: Case, result: Result) -> Iterator[str]:
    asked_for_help = not {"-h", "--help", "--version"}.isdisjoint(case.arguments)
    if result.code in NOTHING_WRITTEN and result.out and not result.out.startswith("Usage:"):
        yield "it refuses, and prints something"
    if result.code == 0 and "--jsonl" in case.arguments and not case.redirect:
        for line in result.out.splitlines():
            try:
                from_json_line(line)
            except ValueError:
                yield f"not an event: {line[:80]!r}"
                return
    elif "--json" in case.arguments and result.out and not case.redirect and not asked_for_help:
        yield from _document("standard output", result.out)
    for path, text in result.files.items():
        if path.endswith(".json") and result.code in (0, 6, 8) and len(text) < 4 << 20:
            yield from _document(path, text)


def _document(name: str, text: str) -> Iterator[str]:
    try:
        document = json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        yield f"{name} is not JSON: {error}"
        return
    if isinstance(document, dict) and str(document.get("schema", "")).startswith("specprof."):
        yield from _numbers(document, "")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _numbers(value: Any, where: str) -> Iterator[str]:
    """Times are not negative, shares are shares, and what belongs together fits."""
    if isinstance(value, list):
        for element in value:
            yield from _numbers(element, where)
        return
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{where} is {value}"
    if not isinstance(value, dict):
        return
    for key, part in value.items():
        here = f"{where}.{key}"
        if key in ("config", "machine", "models", "attribution"):
            continue  # what the file says of itself, passed on; and losses, of which some are gains
        for number in part if isinstance(part, list) else [part]:
            if not isinstance(number, int | float) or isinstance(number, bool):
                continue
            if (key.endswith("_seconds") or key == "seconds" or key.startswith("latency_p")) and number < 0:
                yield f"{here} is negative: {number}"
            if (key in _SHARES or (key in _SHARE_LISTS and isinstance(part, list))) and not -1e-9 <= number <= 1.02:
                yield f"{here} is no share: {number}"
            if key.startswith("num_") and number < 0:
                yield f"{here} is negative: {number}"
        if key.startswith("speedup") and isinstance(part, dict):
            yield from _speedup(part, here)
        if key == "phases" and isinstance(part, dict):
            yield from _phases(part, here)
        yield from _numbers(part, here)
    k, tau = value.get("num_spec_tokens"), value.get("mean_acceptance_length")
    if isinstance(k, int) and isinstance(tau, float) and not 1 - 1e-9 <= tau <= k + 1 + 1e-9:
        yield f"{where}: {tau} tokens per round at K = {k}"


def _speedup(found: dict[str, Any], where: str) -> Iterator[str]:
    number, ends = found.get("value"), found.get("ci")
    if isinstance(number, float) and number < 0:
        yield f"{where} is negative: {number}"
    if isinstance(ends, list) and len(ends) == 2 and ends[0] > ends[1]:
        yield f"{where} has an interval that ends before it begins: {ends}"


def _phases(found: dict[str, Any], where: str) -> Iterator[str]:
    shares = [phase.get("share") for phase in found.values() if isinstance(phase, dict)]
    known = [share for share in shares if isinstance(share, float)]
    if known and len(known) == len(shares) and not math.isclose(sum(known), 1, abs_tol=1e-6):
        yield f"{where} sum to {sum(known)} of a round"


def _files(case: Case, result: Result) -> Iterator[str]:
    """Nothing is written but where it was named; nothing at all by what refuses."""
    for path in result.changed:
        if path in ("tmp", "home") or allowed(path, _CACHES) or path.startswith("tmp/torchinductor_"):
            continue
        if not allowed(path, case.writes):
            yield f"it wrote {path!r}, which nobody named"
        elif result.code in NOTHING_WRITTEN and not case.process and not _of_removing(case, path):
            yield f"it refuses, and wrote {path!r}"


def _of_removing(case: Case, path: str) -> bool:
    """It takes a store's lock, and cuts off what the last writer left torn, before it looks for names."""
    return case.arguments[:2] == ("results", "rm") and path.endswith(("records.jsonl", "records.jsonl.lock"))
