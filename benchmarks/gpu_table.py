"""What the figures of ``benchmarks/gpu.py`` say: what limits a row, what was to be reached, and a table of it all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

DASH = "-"
NOTHING = "nothing alone"
_ENOUGH = 0.5
"""Of a row's time, for one thing to be what limits it."""


def limits(seconds: float, alone: Mapping[str, float | None]) -> dict[str, Any]:
    """Shares of a round's time, and what that says.

    Args:
        seconds: of a round.
        alone: seconds that a round would take if it had nothing but that to do; None if that is not known.
    """
    shares = {name: each / seconds for name, each in alone.items() if each is not None}
    largest = max(shares, key=lambda name: shares[name])
    verdict = largest if shares[largest] >= _ENOUGH else NOTHING
    return {"shares": shares, "by": verdict}


def must_reach(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each figure that was set as a goal: what is measured, and whether that is enough; None where it was not measured,
    which a benchmark of toy sizes never has."""
    gpt2, llama = (document["shapes"].get(name) or {} for name in ("gpt2_dev", "tinyllama_llama3"))
    plain, best = _row(gpt2, 0), _row(gpt2, max((row["k"] for row in gpt2.get("rows", ())), default=0))
    theirs = gpt2.get("hugging_face") or {}
    assisted = theirs.get("assisted") or {}
    ratios = [row["draft_cost_ratio"] for row in _rows(llama) if row.get("draft_cost_ratio") is not None]
    rolled_back = [abs(row["share"]) for shape in document["shapes"].values() for row in shape["rollback"]]
    goals = (
        (
            "gpt2_dev: speculation over assisted generation, equal acceptance",
            _over(assisted.get("seconds_per_round"), best.get("seconds_per_round")), ">=", 8.0,
        ),
        (
            "gpt2-xl: plain decoding over generate",
            _over(theirs.get("dynamic"), plain.get("seconds_per_token")), ">=", 8.0,
        ),
        (
            "gpt2-xl: plain decoding over generate, compiled static cache",
            _over(theirs.get("static"), plain.get("seconds_per_token")), ">=", 1.2,
        ),
        ("Llama-3-8B bfloat16: share of the bandwidth", llama.get("share_of_bandwidth"), ">=", 0.80),
        ("gpt2-xl float16: share of the bandwidth", gpt2.get("share_of_bandwidth"), ">=", 0.55),
        ("TinyLlama for Llama-3-8B: c", min(ratios, default=None), "<=", 0.18),
        ("gpt2_dev: host's share of a round", best.get("host_share"), "<=", 0.15),
        ("gpt2_dev: cost of watching", (gpt2.get("instrumentation") or {}).get("cost"), "<=", 0.01),
        ("rolling back all over nothing, largest share of a round", max(rolled_back, default=None), "<=", 0.02),
    )  # fmt: skip
    found = []
    for what, measured, sign, goal in goals:
        reached = None
        if measured is not None and not document["quick"]:
            reached = measured >= goal if sign == ">=" else measured <= goal
        found.append({"what": what, "measured": measured, "sign": sign, "goal": goal, "reached": reached})
    return found


def _rows(shape: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of the engine that is best there."""
    return [row for row in shape.get("rows", ()) if row["engine"] == shape["engine"]]


def _row(shape: Mapping[str, Any], k: int) -> Mapping[str, Any]:
    return next((row for row in _rows(shape) if row["k"] == k), {})


def _over(theirs: float | None, ours: float | None) -> float | None:
    return None if theirs is None or not ours else theirs / ours


# The table


def render(document: Mapping[str, Any]) -> str:
    """All of it, as text."""
    return "\n".join(_lines(document))


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    machine = document["machine"]
    gpu = machine.get("gpu") or {}
    yield f"{gpu.get('name') or machine.get('cpu') or 'this machine'}; PyTorch {machine.get('torch')}, " + (
        f"transformers {machine.get('transformers')}; {document['seconds']:.0f} s"
    )
    if document["quick"]:
        yield "Toy sizes: that everything runs, not how fast."
    floor = _scaled(document["tiny_kernel_seconds"], 1e6, 2, " us")
    yield f"copy {document['copy_bytes_per_second'] / 1e9:.0f} GB/s; a kernel with nothing to do, in a graph: {floor}"
    for name, shape in document["shapes"].items():
        yield ""
        yield from _shape_lines(name, shape, document["acceptance"])
    if document["packaged"] is not None:
        yield ""
        yield from _packaged_lines(document["packaged"])
    if document["attention"]:
        yield ""
        yield from _attention_lines(document["attention"])
    if document["linear_rows"]:
        yield ""
        yield from _linear_lines(document["linear_rows"])
    if document["skipped"]:
        yield ""
        yield "Not measured"
        yield from (f"  {line}" for line in document["skipped"])
    yield ""
    yield "To be reached"
    for goal in document["must_reach"]:
        verdict = {True: "reached", False: "NOT REACHED", None: DASH}[goal["reached"]]
        measured = _number(goal["measured"], 3)
        yield f"  {goal['what']:<68}{measured:>10}  {goal['sign']} {goal['goal']:<5g} {verdict}"


_COLUMNS = (
    "tok/s",
    "ms/round",
    "tok/round",
    "draft ms",
    "verify ms",
    "host ms",
    "host",
    "c",
    "v",
    "speedup",
    "limited by",
)


def _shape_lines(name: str, shape: Mapping[str, Any], acceptance: float) -> Iterator[str]:
    yield (
        f"{name}: {shape['draft']} ({shape['draft_dtype']}) for {shape['target']} ({shape['dtype']}), random weights, "
        f"{acceptance:.0%} of drafted tokens accepted"
    )
    yield f"  {'':<14}" + "".join(f"{column:>11}" for column in _COLUMNS)
    for row in shape["rows"]:
        label = f"{row['engine']} {'AR' if not row['k'] else 'K = ' + str(row['k'])}"
        seconds = row["seconds_per_token"]
        cells = (
            _number(None if not seconds else 1 / seconds, 1),
            _scaled(row["seconds_per_round"], 1e3, 3),
            _number(row.get("tokens_per_round"), 2),
            _scaled(row.get("draft_seconds") if row["k"] else None, 1e3, 3),
            _scaled(row.get("verify_seconds"), 1e3, 3),
            _scaled(row.get("host_seconds"), 1e3, 3),
            _scaled(row.get("host_share"), 100, 1, " %"),
            _number(row["draft_cost_ratio"], 3),
            _number(row["verify_ratio"], 2),
            _number(row["speedup"], 2),
        )
        limited = row["limits"]
        shares = [] if limited is None else [f"{what} {share:.0%}" for what, share in limited["shares"].items()]
        by = DASH if limited is None else f"{limited['by']} ({', '.join(shares)})"
        yield f"  {label:<14}" + "".join(f"{cell:>11}" for cell in cells) + f"   {by}"
    target, draft = shape["passes"]["target"], shape["passes"]["draft"]
    for role, one in (("target", target), ("draft", draft)):
        yield (
            f"  a pass of the {role}: {one['bytes'] / 1e9:.3f} GB, {_number(one['kernels'], 0)} kernels, launched in "
            f"{_scaled(one['launch_seconds'], 1e6, 0, ' us')}"
        )
    yield f"  AR, {shape['engine']}: {shape['share_of_bandwidth']:.1%} of the speed of a copy"
    watching = shape["instrumentation"]
    yield f"  watching costs {DASH if watching is None else _scaled(watching['cost'], 100, 2, ' %')} of a generation"
    for row in shape["rollback"]:
        yield (
            f"  at context {row['context']}, rolling back {row['k']} entries instead of none: "
            f"{_scaled(row['seconds'], 1e6, 1, ' us')} ({row['share']:+.1%} of a round)"
        )
    theirs = shape["hugging_face"]
    assisted = theirs["assisted"]
    yield (
        f"  generate: dynamic cache {_rate(theirs['dynamic'])} tok/s, static {_rate(theirs['static'])} tok/s; assisted "
        + (DASH if assisted is None else f"{assisted['seconds_per_round'] * 1e3:.2f} ms a round at K = {assisted['k']}")
    )
    yield f"  peak memory {_scaled(shape['peak_memory_bytes'], 2**-30, 2, ' GiB')}"


def _packaged_lines(packaged: Mapping[str, Any]) -> Iterator[str]:
    equal = "every arm wrote the same text" if packaged["texts_are_equal"] else "THE TEXTS DIFFER"
    yield f"packaged pair, trained, float32: {equal}"
    for row in packaged["rows"]:
        label = f"{row['engine']} {'AR' if not row['k'] else 'K = ' + str(row['k'])}"
        rate, per_round = _number(row["tokens_per_second"], 1), _number(row["tokens_per_round"], 2)
        yield f"  {label:<14}{rate:>11} tok/s {per_round:>7} tokens per round"
    yield f"  assisted generation: {_scaled(packaged['assisted_seconds_per_round'], 1e3, 2, ' ms')} a round"


def _attention_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    names = list(dict.fromkeys(row["attention"] for row in rows))
    yield "attention of few rows over a slab, us (largest error against float64)"
    yield f"  {'length':>7}{'rows':>6}" + "".join(f"{name:>22}" for name in names)
    for length, width in dict.fromkeys((row["length"], row["width"]) for row in rows):
        cells = {row["attention"]: row for row in rows if (row["length"], row["width"]) == (length, width)}
        yield f"  {length:>7}{width:>6}" + "".join(
            f"{_scaled(cells[name]['seconds'], 1e6, 1)} ({_error(cells[name]['error'])})".rjust(22) for name in names
        )


def _linear_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "a square matrix product of few rows"
    yield "  rows                     " + "".join(f"{row['width']:>7}" for row in rows)
    yield "  us                       " + "".join(f"{row['seconds'] * 1e6:>7.1f}" for row in rows)
    for key, label in (
        ("same_wherever_it_stands", "same bits in any row     "),
        ("same_as_alone", "same bits as one row     "),
    ):
        yield f"  {label}" + "".join(f"{'yes' if row[key] else 'no':>7}" for row in rows)


def _rate(seconds: float | None) -> str:
    return DASH if not seconds else f"{1 / seconds:.1f}"


def _error(value: float | None) -> str:
    return DASH if value is None else f"{value:.0e}"


def _number(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:.{digits}f}"


def _scaled(value: float | None, scale: float, digits: int, unit: str = "") -> str:
    return DASH if value is None else f"{value * scale:.{digits}f}{unit}"
