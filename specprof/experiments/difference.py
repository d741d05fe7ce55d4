"""Two measurements of the same prompts set against each other, and all that has to be said of it.

The first is called *before* (A), the second *after* (B). Everything is of the prompts that both decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from specprof.errors import UsageError
from specprof.experiments.changes import MachineChanges, changes, machine_changes
from specprof.experiments.quantities import Difference, differences
from specprof.experiments.shared_prompts import Column, left_out, progress, shared_columns
from specprof.experiments.study import Study
from specprof.profiling.caveats import FEW_PROMPTS, MAX_DRIFT, few_prompts


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two studies, and all that is to be said of their difference."""

    before: Study
    after: Study
    differences: tuple[Difference, ...]
    """By draft length; all prompts first, then domain by domain where there are several."""
    changes: tuple[str, ...]
    warnings: tuple[str, ...]
    unmatched: tuple[str, ...]
    """Draft lengths that one of the two lacks."""
    other_hardware: tuple[str, ...]
    """What differs between the machines, if that was allowed: tokens per second can't be compared then."""

    @property
    def same_machine(self) -> bool:
        return not self.other_hardware

    @property
    def headline(self) -> Difference | None:
        """Over all prompts, at the draft length that was best before."""
        found = [row for row in self.differences if row.domain is None and row.num_prompts]
        return next((row for row in found if row.k == self.before.best_k), found[0] if found else None)


@dataclass(frozen=True, slots=True)
class Contrasts:
    contrasts: tuple[Contrast, ...]
    unmatched: tuple[str, ...]
    """Studies that one side lacks."""


def contrasts(
    before: Sequence[Study], after: Sequence[Study], *, allow_machine_mismatch: bool = False, seed: int = 0
) -> Contrasts:
    """Set studies against their like: the same pair, drafter and temperature, and as far as there are several, the
    same machine and settings. One study of each side is compared whatever it is.

    Raises:
        UsageError: nothing matches, nothing is shared, or the machines differ and may not.
    """
    pairs = [(before[0], after[0])] if len(before) == len(after) == 1 else _matched(before, after)
    if not pairs:
        raise UsageError(
            f"nothing in B is like anything in A, which has {_some(before)}",
            f"name studies of the same pair, drafter and temperature; B has {_some(after)}",
        )
    matched = {id(study) for pair in pairs for study in pair}
    return Contrasts(
        contrasts=tuple(
            contrast(old, new, allow_machine_mismatch=allow_machine_mismatch, seed=seed) for old, new in pairs
        ),
        unmatched=tuple(
            f"Only in {side}: {_described(study)}."
            for side, studies in (("A", before), ("B", after))
            for study in studies
            if id(study) not in matched
        ),
    )


def contrast(before: Study, after: Study, *, allow_machine_mismatch: bool = False, seed: int = 0) -> Contrast:
    """Two studies in every respect.

    Raises:
        UsageError: nothing is shared, or the machines differ and may not.
    """
    machine = machine_changes(before, after)
    if machine.hardware and not allow_machine_mismatch:
        raise UsageError(
            f"A and B were measured on different machines: {', '.join(machine.hardware)}",
            "measure both on one machine; --allow-machine-mismatch compares what can be compared, the speedups",
        )
    columns = shared_columns(before, after)
    rows = differences(before, after, columns, seed)
    return Contrast(
        before=before,
        after=after,
        differences=rows,
        changes=changes(before, after),
        warnings=tuple(_warnings(before, after, columns, rows, machine)),
        unmatched=tuple(_only_in("A", before, after, rows) + _only_in("B", after, before, rows)),
        other_hardware=machine.hardware,
    )


def _matched(before: Sequence[Study], after: Sequence[Study]) -> list[tuple[Study, Study]]:
    candidates = []
    for number, old in enumerate(before):
        for other, new in enumerate(after):
            if _kind(old) == _kind(new) and old.comparisons and (new.comparisons or new.missing):
                hardware = bool(machine_changes(old, new).hardware)
                candidates.append((hardware, not new.comparisons, len(changes(old, new)), number, other))
    elsewhere = all(hardware for hardware, *_ in candidates)
    pairs: dict[int, int] = {}
    for hardware, _, _, number, other in sorted(candidates):
        # Machines are only mixed up where no two measurements come from one.
        if number not in pairs and other not in pairs.values() and (elsewhere or not hardware):
            pairs[number] = other
    return [(before[number], after[other]) for number, other in sorted(pairs.items())]


def _kind(study: Study) -> tuple[str, str, float]:
    return study.pair, study.drafter, study.temperature


def _warnings(
    before: Study,
    after: Study,
    columns: Sequence[Column],
    rows: Sequence[Difference],
    machine: MachineChanges,
) -> Iterable[str]:
    if before.results == after.results:
        yield "A and B are one and the same measurement."
    if machine.versions:
        yield f"Other versions: {', '.join(machine.versions)}. They may be what made a difference."
    yield from left_out(before, after, columns)
    for side, study in (("A", before), ("B", after)):
        for missing in study.missing:
            what = "plain decoding" if missing.k == 0 else f"K = {missing.k}"
            yield f"{side} is incomplete: {missing.domain}, {what}: {progress(missing)}."
        for caveat in study.caveats:
            yield f"{side}: {caveat}."
    whole = [row for row in rows if row.domain is None and row.num_prompts]
    if not whole:
        return
    lacking = [
        side
        for side, estimate in (("A", whole[0].ar_tokens_per_second.before), ("B", whole[0].ar_tokens_per_second.after))
        if estimate.value is None
    ]
    if lacking:
        yield (
            f"{' and '.join(lacking)} {'have' if len(lacking) > 1 else 'has'} no plain decoding: tokens/s are "
            "compared, which also tell of a machine that was busier one time than the other."
        )
    fewest = min(row.num_prompts for row in whole)
    if fewest < FEW_PROMPTS:
        yield few_prompts(fewest)
    plain = whole[0].ar_tokens_per_second.ratio
    if not machine.hardware and plain.value is not None and abs(plain.value - 1) > MAX_DRIFT:
        direction = "faster" if plain.value > 1 else "slower"
        yield (
            f"Plain decoding itself is {abs(plain.value - 1) * 100:.0f} % {direction} in B: tokens/s tell of that too, "
            "speedups are each against the plain decoding of the same measurement."
        )


def _only_in(side: str, study: Study, other: Study, rows: Sequence[Difference]) -> list[str]:
    compared = {k for row in rows for k in (row.k, row.k_after)}
    lengths = [k for k in study.comparisons if k not in compared and k not in other.comparisons]
    return [f"Only in {side}: K = {', '.join(map(str, lengths))}."] if lengths else []


def _some(studies: Sequence[Study]) -> str:
    return ", ".join(_described(study) for study in studies[:4]) + (", ..." if len(studies) > 4 else "")


def _described(study: Study) -> str:
    what = " ".join(study.title.split())
    return f"{what} ({study.name}{f', machine class {study.machine_class}' if study.machine_class else ''})"
