"""The head of a report: what it is called, what it comes to, and what to beware of."""

from __future__ import annotations

from collections.abc import Sequence

from specprof.experiments.study import Study
from specprof.profiling.numbers import count, interval, times
from specprof.profiling.speedup import Speedup
from specprof.profiling.statistics import Verdict

_WORDS = {
    "faster": "is faster than plain decoding",
    "slower": "is slower than plain decoding",
    "not distinguishable": "is not distinguishable from plain decoding in speed",
}


def verdict(studies: Sequence[Study]) -> str:
    """One sentence: is it faster, by how much."""
    if len(studies) == 1:
        return _verdict(studies[0])
    told = [(speedup.value, study) for study in studies if (speedup := _speedup(study)) and speedup.value is not None]
    if not told:
        return "No speedup was measured."
    pays = sum(_verdict_on(study) == "faster" for _, study in told)
    unjudged = sum(_verdict_on(study) is None for _, study in told)
    few = f" ({unjudged} with too few prompts for a verdict)" if unjudged else ""
    value, best = max(told, key=lambda pair: pair[0])
    return (
        f"Speculation is faster than plain decoding in {pays} of {len(told)} studies{few}; the highest speedup is "
        f"{times(value)} ({best.title}, K = {best.best_k})."
    )


def _verdict_on(study: Study) -> Verdict | None:
    speedup = _speedup(study)
    return None if speedup is None else speedup.verdict


def _verdict(study: Study) -> str:
    comparison = study.headline
    if comparison is None:
        return "Nothing was measured."
    speedup = comparison.speedup_decode
    if speedup is None:
        arm = comparison.speculative or comparison.baseline
        return f"No speedup: only {arm.decoder} was measured." if arm else "No speedup: nothing was measured."
    if speedup.value is None:
        return "No speedup: no text has more than one token."
    how = _WORDS.get(speedup.verdict or "", "has too few prompts for a verdict")
    certain = f" {interval(speedup)}" if speedup.ci else ""
    which = f"K = {study.best_k}" + (", the best measured," if len(study.comparisons) > 1 else "")
    return f"Speculation with {which} {how}: {times(speedup.value)}{certain}{_spread(study)}."


def _spread(study: Study) -> str:
    """The domains, where there are several: the best first."""
    comparison = study.headline
    assert comparison is not None
    found = {
        name: domain.speedup_decode.value
        for name, domain in comparison.domains.items()
        if domain.speedup_decode is not None and domain.speedup_decode.value is not None
    }
    if len(found) < 2:
        return ""
    ranked = sorted(found.items(), key=lambda item: -item[1])
    return "; " + ", ".join(f"{times(value)} on {name}" for name, value in ranked)


def _speedup(study: Study) -> Speedup | None:
    return study.headline.speedup_decode if study.headline else None


def title(studies: Sequence[Study]) -> str:
    if len(studies) == 1:
        return studies[0].title
    pairs = list(dict.fromkeys(study.pair for study in studies))
    return f"{', '.join(pairs[:4])}{', ...' if len(pairs) > 4 else ''}: {len(studies)} studies"


def subtitle(studies: Sequence[Study]) -> str:
    settings = dict.fromkeys(_setting(study) for study in studies)
    return "; ".join(filter(None, list(settings)[:3]))


def _setting(study: Study) -> str:
    """What decoded where."""
    target = study.models.get("target")
    if not isinstance(target, dict) or "model" not in target:
        return ""
    gpu = study.machine.get("gpu")
    name = gpu.get("name") if isinstance(gpu, dict) else None
    hardware = study.machine.get("cpu") if target.get("device") == "cpu" else name
    where = f" on {target['device']}{f' ({hardware})' if hardware else ''}" if "device" in target else ""
    return ", ".join(filter(None, (f"{target['model']}{where}", str(target.get("dtype") or ""))))


def warnings(studies: Sequence[Study]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for study in studies:
        of = f"{study.title}: " if len(studies) > 1 else ""
        found |= dict.fromkeys(f"{of}{caveat}" for caveat in study.caveats)
        found |= dict.fromkeys(
            f"{of}{warning}" for warning in _of_comparisons(study) if warning.removesuffix(".") not in study.caveats
        )
    if len({study.machine_class for study in studies}) > 1:
        found["The studies were measured on different machines or versions: compare speedups, not seconds."] = None
    return tuple(found)


def _of_comparisons(study: Study) -> list[str]:
    """Each warning once, with the draft lengths it is about where it is not about all."""
    lengths: dict[str, list[str]] = {}
    for k, comparison in study.comparisons.items():
        match = comparison.output_matches_baseline
        differ = len(match.failures) if match else 0
        changed = [f"The output is not the target's: {count(differ, 'prompt')} differ."] if differ else []
        for warning in (*comparison.warnings, *changed):
            lengths.setdefault(warning, []).append(str(k))
    return [
        warning if len(ks) == len(study.comparisons) or f"SD-K{ks[0]}" in warning else f"K = {', '.join(ks)}: {warning}"
        for warning, ks in lengths.items()
    ]
