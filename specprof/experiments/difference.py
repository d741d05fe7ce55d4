"""Two measurements of the same prompts set against each other: what became faster or slower, by how much, how sure.

The first is called *before* (A), the second *after* (B). Everything is of the prompts that both decoded.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from specprof.errors import UsageError
from specprof.experiments.matrix import DraftLength, Missing
from specprof.experiments.saved_runs import mapping
from specprof.experiments.study import Study
from specprof.profiling.comparison import FEW_PROMPTS, MAX_DRIFT, counted, few_prompts
from specprof.profiling.metrics import AcceptanceCounts, GenerationResult
from specprof.profiling.statistics import Interval, Verdict, cost_over_repetitions, paired_bootstrap, verdict

QUANTITIES = (
    "speedup",
    "sd_tokens_per_second",
    "ar_tokens_per_second",
    "acceptance_length",
    "acceptance_rate",
)
"""What a :class:`Difference` tells, the weightiest first."""
SPEEDS = QUANTITIES[:3]


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float | None
    ci: Interval | None
    """95 % interval, from resampling prompts; None with fewer than five, and where a resample leaves it undefined."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """One figure of both measurements; what is undefined is None."""

    before: Estimate
    after: Estimate
    ratio: Estimate
    """After over before."""
    difference: Estimate
    """After minus before."""


@dataclass(frozen=True, slots=True)
class Difference:
    """All that differs at one draft length, over the prompts of one domain or of all."""

    k: DraftLength
    k_after: DraftLength
    """The same, unless both measured but one draft length each."""
    domain: str | None
    """None: all prompts."""
    num_prompts: int
    """That every arm decoded which both measurements have."""
    speedup: Quantity
    """Of speculative over plain decoding, each measurement against its own baseline."""
    sd_tokens_per_second: Quantity
    """Speculative; decode only, as all speeds here."""
    ar_tokens_per_second: Quantity
    """Plain decoding."""
    acceptance_length: Quantity
    """Mean acceptance length: tokens per complete round."""
    acceptance_rate: Quantity
    """Accepted over drafted."""
    verdict: Verdict | None
    """On *after*, from the interval of :attr:`decisive`."""
    reason: str | None = None
    """Why there is no figure, where *after* was asked for one."""

    @property
    def decisive(self) -> str:
        """The name of the speed that the verdict is about: the first that both measurements have."""
        return next((name for name in SPEEDS if self.quantity(name).ratio.value is not None), SPEEDS[0])

    def quantity(self, name: str) -> Quantity:
        """One of :data:`QUANTITIES`."""
        quantity = getattr(self, name)
        assert isinstance(quantity, Quantity)
        return quantity


@dataclass(frozen=True, slots=True)
class MachineChanges:
    """What differs between two machines, each as ``cpu X -> Y``."""

    hardware: tuple[str, ...]
    """What makes tokens per second incomparable: processors, cores, threads, GPUs."""
    versions: tuple[str, ...]
    """What may be the very thing that is compared: this project's and PyTorch's."""
    other: tuple[str, ...]
    """What is only worth mentioning."""


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
            f"A and B were measured on different machines: {_listed(machine.hardware)}",
            "measure both on one machine; --allow-machine-mismatch compares what can be compared, the speedups",
        )
    columns = _columns(before, after)
    rows = _differences(before, after, columns, seed)
    return Contrast(
        before=before,
        after=after,
        differences=rows,
        changes=changes(before, after),
        warnings=tuple(_warnings(before, after, columns, rows, machine)),
        unmatched=tuple(_only_in("A", before, after, rows) + _only_in("B", after, before, rows)),
        other_hardware=machine.hardware,
    )


def differences(before: Study, after: Study, *, seed: int = 0) -> tuple[Difference, ...]:
    """What differs, for every draft length that both have, or the only ones of both.

    A prompt counts where every arm has decoded it that both studies have, and where it has as many tokens in both:
    else an id stands for two texts. Four rates of a prompt, plain and speculative before and after, are resampled
    together.

    Args:
        seed: of the bootstrap.

    Raises:
        UsageError: they share no draft length, or no prompt.
    """
    return _differences(before, after, _columns(before, after), seed)


def _differences(before: Study, after: Study, columns: Sequence[_Column], seed: int) -> tuple[Difference, ...]:
    domain_of = {**after.domain_of, **before.domain_of}
    rows = []
    for column in columns:
        parts: list[tuple[str | None, list[str]]] = [(None, column.shared)]
        domains = list(dict.fromkeys(domain_of[prompt_id] for prompt_id in column.before if prompt_id in domain_of))
        if len(domains) > 1:
            parts += [(name, [prompt for prompt in column.shared if domain_of.get(prompt) == name]) for name in domains]
        for domain, prompts in parts:
            reason = None if prompts else _why_missing(after, domain, (column.k_after, 0))
            if prompts or reason is not None or domain is None:
                rows.append(_difference(column, domain, prompts, reason, seed))
    return tuple(rows)


# Which studies and draft lengths go together


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


def _draft_lengths(before: Study, after: Study) -> list[tuple[DraftLength, DraftLength]]:
    """Before and after: those that both have, and those that *after* tried in vain.

    Raises:
        UsageError: none.
    """
    for side, study in (("A", before), ("B", after)):
        if not study.comparisons and (study is before or not study.missing):
            why = f" that count ({'; '.join(study.caveats)})" if study.caveats else ""
            raise UsageError(f"{side} has no finished generations{why}", "let it run to its end, or name another")
    old, new = list(before.comparisons), list(after.comparisons)
    found: list[tuple[DraftLength, DraftLength]] = [
        (k, k) for k in old if k in after.comparisons or _why_missing(after, None, (k,)) is not None
    ]
    if not found and len(old) == len(new) == 1:
        return [(old[0], new[0])]
    if not found:
        raise UsageError(
            f"A and B have no draft length in common: A has K = {_lengths(old)}, B has K = {_lengths(new)}",
            "name one cell of each (`specprof results list`), or measure the same draft lengths",
        )
    return found


def _why_missing(study: Study, domain: str | None, lengths: Collection[DraftLength]) -> str | None:
    """Why *after* has no figure that it was asked for; None if it was not."""
    for missing in study.missing:
        if missing.k in lengths and domain in (None, missing.domain):
            return f"B: {_progress(missing)}"
    return None


def _progress(missing: Missing) -> str:
    done = f"{missing.num_done} of {missing.num_expected} generations"
    return done if missing.failure is None else f"{done}, {missing.failure.reason}"


def _same_target(before: Study, after: Study) -> bool:
    """Whether a prompt has to be the same tokens in both."""
    old, new = (mapping(study.models.get("target")).get("model") for study in (before, after))
    return before.pair == after.pair if old is None or new is None else bool(old == new)


# The figures of a prompt, and of many


@dataclass(frozen=True, slots=True)
class _Prompt:
    lengths: frozenset[int | None]
    ar: tuple[float, float] | None
    """Seconds and tokens, decode only."""
    sd: tuple[float, float] | None
    accepted: int
    drafted: int
    rounds: int

    def row(self) -> tuple[float, ...]:
        undefined = (np.nan, np.nan)
        return (*(self.ar or undefined), *(self.sd or undefined), self.accepted, self.drafted, self.rounds)


@dataclass(frozen=True, slots=True)
class _Column:
    """What both studies measured of one draft length."""

    k: DraftLength
    k_after: DraftLength
    before: Mapping[str, _Prompt]
    """By prompt id."""
    after: Mapping[str, _Prompt]
    shared: list[str]
    """Prompt ids."""
    named_alike: list[str]
    """Those and the ones that are left out because they are not of as many tokens in both."""


def _columns(before: Study, after: Study) -> list[_Column]:
    """By draft length.

    Raises:
        UsageError: the studies share no draft length, or no prompt.
    """
    columns = []
    for k, k_after in _draft_lengths(before, after):
        old, new = _prompts(before, k), _prompts(after, k_after)
        alike = _decoded_in_both(old, new)
        shared = [prompt for prompt in alike if old[prompt].lengths == new[prompt].lengths]
        columns.append(_Column(k, k_after, old, new, shared if _same_target(before, after) else alike, alike))
    if not any(column.shared or _why_missing(after, None, (column.k_after, 0)) for column in columns):
        alike = [prompt for column in columns for prompt in column.named_alike]
        why = ": those of the same names are not of as many tokens in both" if alike else ""
        raise UsageError(
            f"A and B share no prompt{why}",
            "compare measurements of the same prompts: the same --prompts, --domain, -n and --chat-template",
        )
    return columns


def _prompts(study: Study, k: DraftLength) -> dict[str, _Prompt]:
    plain, speculative = _by_prompt(study.arm(k, baseline=True)), _by_prompt(study.arm(k, baseline=False))
    found = {}
    for prompt_id in dict.fromkeys([*plain, *speculative]):
        ar, sd = plain.get(prompt_id, []), speculative.get(prompt_id, [])
        counts = AcceptanceCounts.of((round for result in sd for round in result.rounds), greedy=False)
        found[prompt_id] = _Prompt(
            lengths=frozenset(result.num_prompt_tokens for result in [*ar, *sd]),
            ar=_speed(ar),
            sd=_speed(sd),
            accepted=counts.num_accepted_draft_tokens,
            drafted=counts.num_draft_tokens,
            rounds=counts.num_spec_steps,
        )
    return found


def _by_prompt(results: Iterable[GenerationResult]) -> dict[str, list[GenerationResult]]:
    found: dict[str, list[GenerationResult]] = defaultdict(list)
    for result in results:
        found[result.prompt_id].append(result)
    return found


def _speed(results: Iterable[GenerationResult]) -> tuple[float, float] | None:
    return cost_over_repetitions((result.decode_seconds, result.num_decode_tokens) for result in results)


def _decoded_in_both(before: Mapping[str, _Prompt], after: Mapping[str, _Prompt]) -> list[str]:
    """Prompts that every arm decoded which both studies have."""
    arms = [has for has in (_has_ar, _has_sd) if any(map(has, before.values())) and any(map(has, after.values()))]
    shared = [prompt_id for prompt_id in before if prompt_id in after] if arms else []
    return [prompt_id for prompt_id in shared if all(has(before[prompt_id]) and has(after[prompt_id]) for has in arms)]


def _has_ar(prompt: _Prompt) -> bool:
    return prompt.ar is not None


def _has_sd(prompt: _Prompt) -> bool:
    return prompt.sd is not None


def _difference(
    column: _Column, domain: str | None, prompts: Sequence[str], reason: str | None, seed: int
) -> Difference:
    speedup, sd_rate, ar_rate, length, rate = _quantities(column, prompts, seed) if prompts else _UNKNOWN
    row = Difference(
        k=column.k,
        k_after=column.k_after,
        domain=domain,
        num_prompts=len(prompts),
        speedup=speedup,
        sd_tokens_per_second=sd_rate,
        ar_tokens_per_second=ar_rate,
        acceptance_length=length,
        acceptance_rate=rate,
        verdict=None,
        reason=reason,
    )
    return dataclasses.replace(row, verdict=verdict(row.quantity(row.decisive).ratio.ci))


_UNKNOWN = [Quantity(*(Estimate(None, None),) * 4)] * len(QUANTITIES)
_Array = npt.NDArray[np.float64]


def _quantities(column: _Column, prompts: Sequence[str], seed: int) -> list[Quantity]:
    table = np.array([(*column.before[prompt].row(), *column.after[prompt].row()) for prompt in prompts])
    with np.errstate(divide="ignore", invalid="ignore"):
        values = _statistics(table.sum(axis=0)[:, None])[:, 0]
    intervals = paired_bootstrap(list(table.T), _statistics, ratios=_RATIOS, seed=seed)
    estimates = [
        Estimate(float(value), _possible(ci, *limits)) if np.isfinite(value) else Estimate(None, None)
        for value, ci, limits in zip(values, intervals, _LIMITS, strict=True)
    ]
    return [Quantity(*estimates[start : start + 4]) for start in range(0, len(estimates), 4)]


# Of each quantity four statistics; the share of accepted tokens may be 0, and a difference is no ratio.
_ANY = (-np.inf, np.inf)
_LIMITS = [_ANY] * 4 * (len(QUANTITIES) - 1) + [(0.0, 1.0), (0.0, 1.0), (0.0, np.inf), (-1.0, 1.0)]
_RATIOS = [4 * quantity + statistic for quantity in range(len(QUANTITIES) - 1) for statistic in range(3)]


def _possible(ci: Interval | None, least: float, most: float) -> Interval | None:
    return None if ci is None else (max(ci[0], least), min(ci[1], most))


def _statistics(sums: _Array) -> _Array:
    """Of each quantity before, after, their ratio and their difference."""
    half = len(sums) // 2
    pairs = zip(_figures(sums[:half]), _figures(sums[half:]), strict=True)
    return np.stack([value for old, new in pairs for value in (old, new, new / old, new - old)])


def _figures(sums: _Array) -> tuple[_Array, ...]:
    """:data:`QUANTITIES` of one measurement."""
    ar_seconds, ar_tokens, sd_seconds, sd_tokens, accepted, drafted, rounds = sums
    sd_rate, ar_rate = sd_tokens / sd_seconds, ar_tokens / ar_seconds
    return sd_rate / ar_rate, sd_rate, ar_rate, 1 + accepted / rounds, accepted / drafted


# What differs in how they were measured


_SETTINGS = {
    "k_max": "most tokens of K auto", "top_k": "top-k", "top_p": "top-p", "max_new_tokens": "max new tokens",
    "seed": "seed", "draft_threshold": "draft threshold", "draft_layers": "draft layers",
    "vocab_method": "vocab method", "device": "device", "device_map": "device map", "forward": "forward asked for",
    "engine": "engine asked for", "engine_used": "engine", "compile": "compiled",
    "ignore_eos": "ignore EOS", "detail": "detail", "deterministic": "deterministic", "chat_template": "chat template",
    "random_weights": "random weights", "scale_layers": "layers of random weights",
    "synthetic_acceptance": "synthetic acceptance", "repetitions": "repetitions", "warmup": "warm-up prompts",
    "baseline": "plain decoding beside it",
}  # fmt: skip
_MODEL = ("model", "revision", "dtype", "device", "forward")
_HARDWARE = {"cpu": "cpu", "cores": "cores", "torch_threads": "threads", "c_compiler": "C compiler"}
_GPU_HARDWARE = {"name": "gpu"}
_VERSIONS = {"specprof": "specprof", "torch": "torch"}
_GPU_VERSIONS = {"cuda": "CUDA"}
_MENTIONED = {
    "git_commit": "commit of specprof",
    "transformers": "transformers",
    "python": "Python",
    "platform": "platform",
}
_GPU_MENTIONED = {"driver": "GPU driver", "count": "number of GPUs"}


def changes(before: Study, after: Study) -> tuple[str, ...]:
    """Everything that is recorded and differs, as ``torch 2.12 -> 2.13``; text in it is from files."""
    found = []
    old, new = list(before.comparisons), list(after.comparisons)
    if len(old) == len(new) == 1 and old != new:
        found.append(_change("K", old[0], new[0]))
    for label, of in _OF_STUDIES.items():
        found += _changed(label, of(before), of(after))
    for key, label in _SETTINGS.items():
        if key in before.config and key in after.config:
            found += _changed(label, before.config[key], after.config[key])
    for role in ("target", "draft"):
        models = mapping(before.models.get(role)), mapping(after.models.get(role))
        if all(models):
            for key in _MODEL:
                found += _changed(role if key == "model" else f"{role} {key}", models[0].get(key), models[1].get(key))
    machine = machine_changes(before, after)
    return (*found, *machine.hardware, *machine.versions, *machine.other)


_OF_STUDIES: dict[str, Callable[[Study], Any]] = {
    "pair": lambda study: study.pair,
    "drafter": lambda study: study.drafter,
    "temperature": lambda study: study.temperature,
}


def machine_changes(before: Study, after: Study) -> MachineChanges:
    """What differs between the machines of two studies; nothing where one has measured nothing."""
    if not (before.comparisons and after.comparisons):
        return MachineChanges((), (), ())
    old, new = before.machine, after.machine
    gpus = mapping(old.get("gpu")), mapping(new.get("gpu"))

    def of(names: Mapping[str, str], gpu_names: Mapping[str, str]) -> tuple[str, ...]:
        found = [line for key, label in names.items() for line in _changed(label, old.get(key), new.get(key))]
        found += [line for key, label in gpu_names.items() for line in _changed(label, *(gpu.get(key) for gpu in gpus))]
        return tuple(found)

    hardware, versions = of(_HARDWARE, _GPU_HARDWARE), of(_VERSIONS, _GPU_VERSIONS)
    if before.machine_class != after.machine_class and not (hardware or versions):
        # Of a machine that was not described, its class is all there is to go by.
        hardware = tuple(_changed("machine class", before.machine_class, after.machine_class))
    return MachineChanges(hardware, versions, of(_MENTIONED, _GPU_MENTIONED))


def _changed(label: str, before: Any, after: Any) -> list[str]:
    # A run leaves open what a sweep calls auto.
    unset = (None, "auto")
    return [] if before == after or (before in unset and after in unset) else [_change(label, before, after)]


def _change(label: str, before: Any, after: Any) -> str:
    return f"{label} {_short(before)} -> {_short(after)}"


def _short(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


# What a reader has to know


def _warnings(
    before: Study,
    after: Study,
    columns: Sequence[_Column],
    rows: Sequence[Difference],
    machine: MachineChanges,
) -> Iterable[str]:
    if before.results == after.results:
        yield "A and B are one and the same measurement."
    if machine.versions:
        yield f"Other versions: {_listed(machine.versions)}. They may be what made a difference."
    yield from _left_out(before, after, columns)
    for side, study in (("A", before), ("B", after)):
        for missing in study.missing:
            what = "plain decoding" if missing.k == 0 else f"K = {missing.k}"
            yield f"{side} is incomplete: {missing.domain}, {what}: {_progress(missing)}."
        for caveat in study.caveats:
            yield f"{side}: {caveat}."
    whole = [row for row in rows if row.domain is None and row.num_prompts]
    if not whole:
        return
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


def _left_out(before: Study, after: Study, columns: Sequence[_Column]) -> Iterable[str]:
    why: dict[str, str] = {}
    compared = {prompt for column in columns for prompt in column.shared}
    for column in columns:
        for prompt in [*column.before, *column.after] if column.after else []:
            if prompt in compared:
                continue
            if prompt not in column.after:
                why[prompt] = "only in A"
            elif prompt not in column.before:
                why[prompt] = "only in B"
            elif prompt in column.named_alike:
                why[prompt] = "not of as many tokens in A as in B, and so of other texts"
            else:
                why[prompt] = "not decoded by every arm of both"
    for reason in dict.fromkeys(why.values()):
        prompts = [prompt for prompt, of_prompt in why.items() if of_prompt == reason]
        yield f"Left out: {counted(len(prompts), 'prompt')} {reason} ({_some_of(prompts)})."
    if not _same_target(before, after):
        yield "The targets differ: prompts are taken to be the same where their names are."


def _only_in(side: str, study: Study, other: Study, rows: Sequence[Difference]) -> list[str]:
    compared = {k for row in rows for k in (row.k, row.k_after)}
    lengths = [k for k in study.comparisons if k not in compared and k not in other.comparisons]
    return [f"Only in {side}: K = {_lengths(lengths)}."] if lengths else []


def _some(studies: Sequence[Study]) -> str:
    return _listed([_described(study) for study in studies[:4]]) + (", ..." if len(studies) > 4 else "")


def _described(study: Study) -> str:
    what = " ".join(study.title.split())
    return f"{what} ({study.name}{f', machine class {study.machine_class}' if study.machine_class else ''})"


def _some_of(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:3]) + (f" and {len(every) - 3} more" if len(every) > 3 else "")


def _listed(items: Iterable[str]) -> str:
    return ", ".join(items)


def _lengths(lengths: Iterable[DraftLength]) -> str:
    return ", ".join(map(str, lengths))
