"""Two measurements against each other: small cases by hand, slowdowns of known size, and what can't be compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sample_store
from specprof.errors import UsageError
from specprof.experiments.changes import changes, machine_changes
from specprof.experiments.difference import Contrast, contrast, contrasts
from specprof.experiments.matrix import DraftLength, Missing
from specprof.experiments.quantities import Difference, Estimate
from specprof.experiments.records import Failure, Record
from specprof.experiments.results import read_contents
from specprof.experiments.study import Study, of_sweep
from specprof.experiments.thresholds import QUANTITIES
from specprof.profiling.comparison import compare
from specprof.profiling.metrics import GenerationResult
from specprof.profiling.statistics import paired_bootstrap
from specprof.reports import difference as report
from specprof.reports.document import Bullets, Paragraph, Table
from specprof.reports.tables import to_text
from test_comparison import ar, distinct, sd
from test_metrics import make_round

MACHINE: dict[str, Any] = {
    "cpu": "An EPYC", "cores": 2, "torch_threads": 1, "gpu": None, "torch": "2.12.0", "specprof": "0.1.0",
}  # fmt: skip
HERE, ELSEWHERE = "a" * 12, "b" * 12
TWELVE = [f"p{number:02}" for number in range(12)]


def drafted(
    prompt_id: str, accepted: Sequence[int] = (1, 1, 1), *, k: int = 2, slow: float = 1.0, repetition: int = 0
) -> GenerationResult:
    """Rounds of 16 ms, or ``slow`` times as long."""
    rounds = [
        make_round(
            k,
            number,
            draft_seconds=0.004 * slow,
            verify_seconds=0.011 * slow,
            sample_seconds=0.0005 * slow,
            overhead_seconds=0.0005 * slow,
        )
        for number in accepted
    ]
    return distinct(rounds, f"SD-K{k}", repetition, prompt_id)


def study(
    results: Sequence[GenerationResult] | Mapping[DraftLength, Sequence[GenerationResult]],
    *,
    domains: Mapping[str, str] | None = None,
    temperature: float = 0.0,
    **fields: Any,
) -> Study:
    """Of K = 2, unless the results are given by draft length."""
    by_k = results if isinstance(results, Mapping) else {2: results}
    domain_of = dict(domains or {result.prompt_id: "code" for some in by_k.values() for result in some})
    values: dict[str, Any] = {
        "name": "a-run",
        "title": "tiny_dev  K = 2  greedy",
        "pair": "tiny_dev",
        "drafter": "model",
        "temperature": temperature,
        "domains": tuple(dict.fromkeys(domain_of.values())),
        "domain_of": domain_of,
        "comparisons": {
            k: compare(some, temperature=temperature, domains=domain_of) for k, some in by_k.items() if some
        },
        "results": {k: tuple(some) for k, some in by_k.items()},
        "missing": (),
        "curve": None,
        "caveats": (),
        "config": {"max_new_tokens": 96, "seed": 0},
        "models": {role: {"model": f"tiny_dev/{role}", "dtype": "float32"} for role in ("target", "draft")},
        "machine": MACHINE,
        "machine_class": HERE,
        "commands": (),
        "is_sweep": False,
    }  # fmt: skip
    return Study(**(values | fields))


def noisy(slow_sd: float = 1.0, slow_ar: float = 1.0, prompts: Sequence[str] = TWELVE, seed: int = 0) -> list[Any]:
    """Prompts that differ in text and acceptance; both arms as slow as they are told, within 1 %."""
    text, noise = np.random.default_rng(7), np.random.default_rng(seed)
    found = []
    for prompt in prompts:
        accepted = text.integers(0, 3, 12).tolist()
        tokens = sum(accepted) + 12
        found.append(ar(prompt, tokens=tokens, slow=slow_ar * float(noise.normal(1, 0.01))))
        found.append(drafted(prompt, accepted, slow=slow_sd * float(noise.normal(1, 0.01))))
    return found


def differences(before: Study, after: Study, *, seed: int = 0) -> tuple[Difference, ...]:
    return contrast(before, after, seed=seed).differences


def only(rows: Sequence[Difference]) -> Difference:
    (row,) = rows
    return row


# Arithmetic


def test_by_hand() -> None:
    before = study([r for p in "abcdef" for r in (ar(p), drafted(p))])
    # The draft now agrees less: 0.5 of 2 accepted; a round takes half as long again.
    now = {p: [1, 0, 0, 1] if p in "ace" else [0, 1, 1, 0] for p in "abcdef"}
    after = study([r for p, accepted in now.items() for r in (ar(p), drafted(p, accepted, slow=1.5))])
    row = only(differences(before, after))
    assert (row.k, row.k_after, row.domain, row.num_prompts) == (2, 2, None, 6)
    # 12 ms a token alone; 16 ms a round of 2 tokens before, 24 ms a round of 1.5 tokens after
    assert row.speedup.before.value == pytest.approx(1.5)
    assert row.speedup.after.value == pytest.approx(0.75)
    assert row.speedup.ratio.value == pytest.approx(0.5)
    assert row.speedup.ratio.ci == pytest.approx((0.5, 0.5))
    assert row.speedup.difference.value == pytest.approx(-0.75)
    assert row.sd_tokens_per_second.before.value == pytest.approx(125)
    assert row.sd_tokens_per_second.after.value == pytest.approx(62.5)
    assert row.ar_tokens_per_second.before.value == pytest.approx(1 / 0.012)
    assert row.ar_tokens_per_second.ratio == Estimate(1, (1, 1))
    assert (row.acceptance_length.before.value, row.acceptance_length.after.value) == (2, 1.5)
    assert row.acceptance_length.difference == Estimate(-0.5, (-0.5, -0.5))
    assert (row.acceptance_rate.before.value, row.acceptance_rate.after.value) == (0.5, 0.25)
    assert row.verdict == "slower"


def test_figures_are_those_of_the_studies_themselves() -> None:
    """Repetitions enter by their median, prompts by their tokens, as everywhere."""
    results = [
        *(ar("a", repetition=i, slow=slow) for i, slow in enumerate([1, 50, 1])),
        *(ar("b", repetition=i, tokens=12, slow=2) for i in range(3)),
        *(drafted("a", repetition=i, slow=slow) for i, slow in enumerate([3, 1, 1])),
        *(drafted("b", [1] * 6, repetition=i) for i in range(3)),
    ]
    before, after = study(results), study(noisy())
    known = before.comparisons[2]
    row = only(differences(before, before))
    assert known.speedup_decode and known.baseline and known.speculative and known.acceptance
    assert row.speedup.before.value == pytest.approx(known.speedup_decode.value)
    assert row.sd_tokens_per_second.after.value == pytest.approx(known.speculative.tokens_per_second)
    assert row.ar_tokens_per_second.after.value == pytest.approx(known.baseline.tokens_per_second)
    assert row.acceptance_length.after.value == pytest.approx(known.acceptance.mean_acceptance_length)
    assert row.acceptance_rate.after.value == pytest.approx(known.acceptance.draft_acceptance_rate)
    known, row = after.comparisons[2], only(differences(after, after))
    assert known.speedup_decode is not None
    assert row.speedup.after.ci == pytest.approx(known.speedup_decode.ci)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8, 13, 50])
def test_a_measurement_equals_itself_exactly(number: int) -> None:
    one = study(noisy(prompts=[f"p{i}" for i in range(number)]))
    row = only(differences(one, one))
    for name in QUANTITIES:
        quantity = row.quantity(name)
        assert (quantity.ratio.value, quantity.difference.value) == (1, 0)
        assert quantity.ratio.ci == ((1, 1) if number >= 5 else None)
    assert row.verdict == ("not distinguishable" if number >= 5 else None)


def test_a_slowdown_is_found_and_noise_is_not() -> None:
    slower = only(differences(study(noisy()), study(noisy(slow_sd=1 / 0.94, seed=1))))
    assert slower.verdict == "slower" and slower.speedup.ratio.value == pytest.approx(0.94, abs=0.01)
    faster = only(differences(study(noisy()), study(noisy(slow_ar=1.05, seed=1))))
    assert faster.verdict == "faster" and faster.sd_tokens_per_second.ratio.value == pytest.approx(1, abs=0.01)


def test_a_busy_machine_slows_both_arms_and_no_speedup() -> None:
    found = contrast(study(noisy()), study(noisy(slow_sd=1.3, slow_ar=1.3, seed=3)))
    row = only(found.differences)
    assert row.speedup.ratio.value == pytest.approx(1, abs=0.01)
    assert row.sd_tokens_per_second.ratio.value == pytest.approx(1 / 1.3, abs=0.01)
    assert any("Plain decoding itself is 23 % slower in B" in warning for warning in found.warnings)


@pytest.mark.slow
def test_intervals_cover_the_truth() -> None:
    trials, covered, wrong = 150, 0, 0
    generator = np.random.default_rng(5)
    base = study([ar("p0"), drafted("p0")])
    for _ in range(trials):
        both = []
        for _ in range(2):
            results = []
            for prompt in range(20):
                results.append(ar(f"p{prompt}", tokens=4, slow=float(generator.lognormal(0, 0.1))))
                results.append(drafted(f"p{prompt}", [1, 1], slow=float(generator.lognormal(0, 0.1))))
            both.append(dataclasses.replace(base, results={2: tuple(results)}))
        row = only(differences(*both, seed=int(generator.integers(1000))))
        assert row.speedup.ratio.ci is not None
        covered += row.speedup.ratio.ci[0] <= 1 <= row.speedup.ratio.ci[1]
        wrong += row.verdict != "not distinguishable"
    assert covered + wrong == trials
    # 95 % nominal: three binomial deviations below it
    assert covered / trials >= 0.89


def test_the_interval_is_that_of_eight_sums_resampled_together() -> None:
    before, after = noisy(), noisy(slow_sd=1.1, seed=1)
    columns = [
        [measure(result) for result in side if (result.decoder == "AR") == plain]
        for side in (before, after)
        for plain in (True, False)
        for measure in (lambda result: result.decode_seconds, lambda result: float(result.num_decode_tokens))
    ]

    def ratio(sums: Any) -> Any:
        a, b, c, d, e, f, g, h = sums
        return np.stack([((e / f) / (g / h)) / ((a / b) / (c / d))])

    row = only(differences(study(before), study(after)))
    tokens = np.array(columns[1::2]).sum(axis=0)
    assert row.speedup.ratio.ci == pytest.approx(paired_bootstrap(columns, ratio, weights=[tokens], ratios=[0])[0])


def test_without_a_baseline_tokens_per_second_decide() -> None:
    plain = [result for result in noisy() if result.decoder != "AR"]
    slower = [result for result in noisy(slow_sd=1.2, seed=1) if result.decoder != "AR"]
    found = contrast(study(plain), study(slower))
    row = only(found.differences)
    assert (row.decisive, row.verdict) == ("sd_tokens_per_second", "slower")
    assert row.speedup.ratio.value is row.ar_tokens_per_second.before.value is None
    assert report.sentence(found).startswith("B is 17 % slower than A on 12 prompts (1")
    assert any(warning.startswith("A and B have no plain decoding: tokens/s are") for warning in found.warnings)
    assert not any("no plain decoding" in warning for warning in contrast(study(noisy()), study(noisy())).warnings)
    # One side has it: its own speedup is known, the ratio is not.
    row = only(differences(study(noisy()), study(slower)))
    assert row.speedup.before.value is not None and row.speedup.after.value is row.speedup.ratio.value is None
    assert row.verdict == "slower"
    (told,) = [w for w in contrast(study(noisy()), study(slower)).warnings if "no plain decoding" in w]
    assert told.startswith("B has no plain decoding")


def test_a_share_ends_at_none_and_all() -> None:
    accepted = {"a": [2, 2, 2], "b": [2, 2, 2], "c": [2, 2, 2], "d": [2, 2, 2], "e": [0, 2, 1]}
    high = study([r for p, some in accepted.items() for r in (ar(p), drafted(p, some))])
    low = study([r for p, some in accepted.items() for r in (ar(p), drafted(p, [2 - n for n in some]))])
    rate = only(differences(high, low)).acceptance_rate
    assert rate.before.value == pytest.approx(27 / 30) and rate.after.value == pytest.approx(3 / 30)
    assert rate.before.ci is not None and rate.after.ci is not None and rate.ratio.ci is not None
    assert 0.5 < rate.before.ci[0] < 0.9 and rate.before.ci[1] == 1
    assert rate.after.ci[0] == 0 and 0.1 < rate.after.ci[1] < 0.5 and rate.ratio.ci[0] == 0
    assert rate.difference.ci is not None and rate.difference.ci[0] == -1 < rate.difference.ci[1] < 0


@pytest.mark.parametrize(("number", "told"), [(2, "too few for an interval"), (6, "would make the interval narrower")])
def test_few_prompts_are_said_to_be_few(number: int, told: str) -> None:
    prompts = [f"p{i}" for i in range(number)]
    found = contrast(study(noisy(prompts=prompts)), study(noisy(slow_sd=2, prompts=prompts, seed=1)))
    assert [told in warning for warning in found.warnings] == [True] and f"{number} prompts only" in found.warnings[0]
    assert (only(found.differences).verdict, "too few prompts" in report.sentence(found)) == (
        (None, True) if number < 5 else ("slower", False)
    )


def test_nothing_accepted_leaves_a_ratio_undefined_and_a_difference_not() -> None:
    nothing = study([ar("a"), drafted("a", [0] * 6), ar("b"), drafted("b", [0] * 6)])
    something = study([ar("a"), drafted("a"), ar("b"), drafted("b")])
    rate = only(differences(nothing, something)).acceptance_rate
    assert (rate.before.value, rate.after.value, rate.ratio.value, rate.ratio.ci) == (0, 0.5, None, None)
    assert rate.difference.value == 0.5
    json.dumps(report.to_dict(contrasts([nothing], [something])), allow_nan=False)


# Which prompts


def test_only_shared_prompts_count() -> None:
    before = study([ar("a"), drafted("a"), ar("b", slow=9), drafted("b")])
    after = study([ar("a"), drafted("a"), ar("c", slow=5), drafted("c")])
    found = contrast(before, after)
    row = only(found.differences)
    assert row.num_prompts == 1 and row.speedup.before.value == pytest.approx(1.5) and row.speedup.ratio.value == 1
    assert (row.speedup.ratio.ci, row.verdict) == (None, None)
    assert found.warnings[:2] == ("Left out: 1 prompt only in A (b).", "Left out: 1 prompt only in B (c).")
    assert report.sentence(found) == "B and A are equally fast on 1 prompt (speedup 1.50x -> 1.50x, 1.00)."


def test_an_id_of_another_text_is_left_out_and_counted() -> None:
    longer = [
        dataclasses.replace(result, num_prompt_tokens=99) if result.prompt_id == "p03" else result for result in noisy()
    ]
    found = contrast(study(noisy()), study(longer))
    assert only(found.differences).num_prompts == 11
    assert found.warnings[0] == "Left out: 1 prompt not of as many tokens in A as in B, and so of other texts (p03)."
    every = [dataclasses.replace(result, num_prompt_tokens=99) for result in noisy()]
    with pytest.raises(UsageError, match="share no prompt: those of the same names are not of as many tokens"):
        differences(study(noisy()), study(every))
    # Another target may read the same text as other tokens.
    models = {"target": {"model": "other/target"}}
    found = contrast(study(noisy()), study(every, models=models))
    assert only(found.differences).num_prompts == 12
    assert "The targets differ: prompts are taken to be the same where their names are." in found.warnings


def test_a_prompt_that_one_arm_lacks_is_left_out() -> None:
    found = contrast(
        study(noisy()), study([result for result in noisy() if (result.prompt_id, result.decoder) != ("p05", "AR")])
    )
    assert only(found.differences).num_prompts == 11
    assert "Left out: 1 prompt not decoded by every arm of both (p05)." in found.warnings


def test_no_prompt_in_common() -> None:
    with pytest.raises(UsageError, match=r"A and B share no prompt$") as refused:
        differences(study([ar("a"), drafted("a")]), study([ar("b"), drafted("b")]))
    assert "same prompts" in refused.value.hint
    with pytest.raises(UsageError, match="B has no finished generations"):
        differences(study([ar("a"), drafted("a")]), study([]))
    with pytest.raises(UsageError, match="share no prompt"):
        differences(study([ar("a")]), study([drafted("a")]))


def test_domains_follow_all_prompts() -> None:
    domains = {prompt: "code" if number < 8 else "chat" for number, prompt in enumerate(TWELVE)}
    rows = differences(study(noisy(), domains=domains), study(noisy(slow_sd=1.1, seed=1), domains=domains))
    assert [(row.domain, row.num_prompts) for row in rows] == [(None, 12), ("code", 8), ("chat", 4)]
    alone = only(
        differences(*(study(noisy(slow, seed=seed, prompts=TWELVE)[:16]) for slow, seed in ((1.0, 0), (1.1, 1))))
    )
    assert rows[1].speedup == alone.speedup


# Draft lengths


def test_two_draft_lengths_of_one_each_are_compared() -> None:
    before = study({4: [ar("a"), drafted("a", k=4), ar("b"), drafted("b", k=4)]})
    found = contrast(before, study([ar("a"), drafted("a"), ar("b"), drafted("b")]))
    row = only(found.differences)
    assert (row.k, row.k_after) == (4, 2) and "K 4 -> 2" in found.changes
    assert report.label(row) == "all prompts, K = 4 -> 2"


def several(*lengths: int, slow: float = 1.0) -> dict[DraftLength, list[GenerationResult]]:
    return {k: [r for p in "ab" for r in (ar(p), drafted(p, k=k, slow=slow * k))] for k in lengths}


def test_draft_lengths_that_one_lacks_are_listed() -> None:
    found = contrast(study(several(2, 4, 8)), study(several(1, 2, 4)))
    assert [row.k for row in found.differences] == [2, 4]
    assert found.unmatched == ("Only in A: K = 8.", "Only in B: K = 1.")
    assert found.headline is not None and found.headline.k == 2, "the best of A"
    with pytest.raises(UsageError, match="A has K = 2, 4, B has K = 1, 3"):
        differences(study(several(2, 4)), study(several(1, 3)))


def test_a_draft_length_that_failed_after_is_a_row_without_figures() -> None:
    failure = Failure("c" * 12, HERE, "s1", 9, "", "out of memory", "12 GB", None, None, None)
    missing = (Missing("code", 8, 0, 6, failure),)
    found = contrast(study(several(2, 8)), study(several(2), missing=missing))
    good, bad = found.differences
    assert (good.k, good.num_prompts, good.reason) == (2, 2, None)
    assert (bad.k, bad.num_prompts, bad.reason) == (8, 0, "B: 0 of 6 generations, out of memory")
    assert bad.speedup.ratio.value is None and bad.verdict is None
    assert "B is incomplete: code, K = 8: 0 of 6 generations, out of memory." in found.warnings
    assert found.unmatched == ()


# What differs


def test_changes_are_named() -> None:
    before = study([ar("a"), drafted("a")], config={"max_new_tokens": 96, "seed": 0, "device": None, "baseline": True})
    after = study(
        [ar("a"), drafted("a")],
        drafter="ngram",
        temperature=0.8,
        config={"max_new_tokens": 48, "seed": 1, "device": "auto", "top_k": 5},
        models={"target": {"model": "tiny_dev/target", "dtype": "float16"}},
        machine=MACHINE | {"torch": "2.13.0", "git_commit": "0123abc"},
        machine_class=ELSEWHERE,
    )
    assert changes(before, before) == ()
    assert changes(before, after) == (
        "drafter model -> ngram", "temperature 0 -> 0.8", "max new tokens 96 -> 48", "seed 0 -> 1",
        "target dtype float32 -> float16", "torch 2.12.0 -> 2.13.0", "commit of specprof not set -> 0123abc",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cpu": "A Xeon"}, "cpu An EPYC -> A Xeon"),
        ({"cores": 8}, "cores 2 -> 8"),
        ({"torch_threads": 4}, "threads 1 -> 4"),
        ({"gpu": {"name": "H200", "cuda": "13.0"}}, "gpu not set -> H200"),
    ],
)
def test_other_hardware_is_refused_unless_allowed(change: dict[str, Any], told: str) -> None:
    before, after = study(noisy()), study(noisy(seed=1), machine=MACHINE | change, machine_class=ELSEWHERE)
    with pytest.raises(UsageError, match=f"different machines: {told}") as refused:
        contrast(before, after)
    assert "--allow-machine-mismatch" in refused.value.hint
    found = contrast(before, after, allow_machine_mismatch=True)
    assert found.other_hardware == (told,) and told in found.changes
    text = to_text(report.render(contrasts([before], [after], allow_machine_mismatch=True)), width=100, color=False)
    assert f"DIFFERENT MACHINES: {told}" in text and "FROM DIFFERENT MACHINES, not to be compared" in text


def test_other_versions_are_allowed_and_said() -> None:
    after = study(noisy(seed=1), machine=MACHINE | {"torch": "2.13.0", "specprof": "0.2.0"}, machine_class=ELSEWHERE)
    found = contrast(study(noisy()), after)
    assert found.same_machine
    assert found.warnings[0].startswith("Other versions: specprof 0.1.0 -> 0.2.0, torch 2.12.0 -> 2.13.0.")


def test_of_an_unknown_machine_its_class_decides() -> None:
    unknown = study(noisy(), machine={}), study(noisy(), machine={}, machine_class=ELSEWHERE)
    assert machine_changes(*unknown).hardware == (f"machine class {HERE} -> {ELSEWHERE}",)
    assert machine_changes(unknown[0], unknown[0]).hardware == ()


# Many studies


def test_studies_are_matched_by_what_they_are_of() -> None:
    def of(name: str, **fields: Any) -> Study:
        return study(several(2, 4), name=name, title=name, **fields)

    before = [of("greedy"), of("warm", temperature=0.8), of("ngram", drafter="ngram"), of("old", pair="old")]
    after = [of("ngram'", drafter="ngram"), of("warm'", temperature=0.8), of("greedy'"), of("new", pair="new")]
    found = contrasts(before, after)
    assert [(each.before.name, each.after.name) for each in found.contrasts] == [
        ("greedy", "greedy'"), ("warm", "warm'"), ("ngram", "ngram'"),
    ]  # fmt: skip
    assert [line[:14] for line in found.unmatched] == ["Only in A: old", "Only in B: new"]
    with pytest.raises(UsageError, match="nothing in B is like anything in A"):
        contrasts(before[3:], after)


def test_studies_of_several_machines_are_matched_with_their_own() -> None:
    other: dict[str, Any] = {"machine": MACHINE | {"cpu": "A Xeon"}, "machine_class": ELSEWHERE}
    here, there = study(several(2), name="here"), study(several(2), name="there", **other)
    found = contrasts([here, there], [there, here])
    assert [(each.before.name, each.after.name) for each in found.contrasts] == [("here", "here"), ("there", "there")]
    found = contrasts([here, there], [here])
    assert [each.before.name for each in found.contrasts] == ["here"] and len(found.unmatched) == 1
    with pytest.raises(UsageError, match="different machines"):
        contrasts([here, here], [there])


def test_of_several_that_fit_the_one_with_the_same_settings_is_taken() -> None:
    long, short = study(several(2), name="long"), study(several(2), name="short", config={"max_new_tokens": 8})
    found = contrasts([long, short], [short])
    assert [each.before.name for each in found.contrasts] == ["short"]


def test_two_sweeps(tmp_path: Path) -> None:
    def sweep(name: str, records: list[Record]) -> Study:
        sample_store.write(tmp_path / name, records)
        (found,) = of_sweep(read_contents(tmp_path / name, with_rounds=True), name)
        return found

    more: list[Record] = [sample_store.cell(sample_store.config(2)), sample_store.generation(9, sample_store.config(2))]
    found = contrast(sweep("monday", sample_store.story()), sweep("tuesday", [*sample_store.story(), *more]))
    row = only(found.differences)
    assert (row.k, row.num_prompts) == (4, 2)
    assert row.speedup.before.value == pytest.approx(2) and row.speedup.ratio.value == 1
    assert found.unmatched == ("Only in B: K = 2.",)
    assert "B is incomplete: code, K = 2: 1 of 2 generations." in found.warnings


# What is said


def verdict_of(after: list[GenerationResult], before: list[GenerationResult] | None = None) -> str:
    return report.sentence(contrast(study(before or noisy()), study(after)))


def test_the_verdict_in_a_sentence() -> None:
    assert verdict_of(noisy(slow_sd=1 / 0.94, seed=1)).startswith(
        "B is 6 % slower than A on 12 prompts (speedup 1.51x -> 1.43x, 0.94 ["
    )
    assert verdict_of(noisy(slow_sd=0.9, seed=1)).startswith("B is 12 % faster than A on 12 prompts (speedup 1.5")
    # The very same drafts beside slower plain decoding are not faster.
    assert verdict_of(noisy(slow_ar=1.1, seed=1)).startswith("B's speedup is 10 % higher than A's on 12 prompts (")
    same = verdict_of(noisy(seed=1))
    assert same.startswith("B and A can't be told apart on 12 prompts (speedup 1.5")
    alone = [ar("a"), drafted("a")]
    assert verdict_of([ar("a"), drafted("a", slow=2)], alone) == (
        "B is 50 % slower than A on 1 prompt (speedup 1.50x -> 0.75x, 0.50); too few prompts for a verdict."
    )
    assert verdict_of(alone, alone).startswith("B and A are equally fast on 1 prompt (speedup 1.50x -> 1.50x, 1.00)")


def test_a_third_decimal_shows_what_two_would_hide() -> None:
    barely = report.sentence(contrast(study(noisy()), study([
        dataclasses.replace(result, per_token_latencies=[t * 1.003 for t in result.per_token_latencies])
        if result.decoder != "AR" else result for result in noisy()
    ])))  # fmt: skip
    assert barely.startswith("B is less than 1 % slower") and barely.endswith("0.997 [0.997, 0.997]).")


def rows_of(found: Contrast) -> dict[str, dict[str, Any]]:
    return {name: dataclasses.asdict(found.differences[0].quantity(name)) for name in QUANTITIES}


def test_json_has_every_number_of_the_table() -> None:
    domains = {prompt: "code" if number < 7 else "chat" for number, prompt in enumerate(TWELVE)}
    found = contrasts([study(noisy(), domains=domains)], [study(noisy(1.1, seed=1), domains=domains)])
    document = json.loads(json.dumps(report.to_dict(found), allow_nan=False))
    rows = document["comparisons"][0]["differences"]
    assert [row["domain"] for row in rows] == [None, "code", "chat"]
    speedups, rates, acceptance = (block for block in report.blocks(found) if isinstance(block, Table))

    def two(estimate: dict[str, Any]) -> str:
        low, high = estimate["ci"]
        return f"{estimate['value']:.2f} [{low:.2f}, {high:.2f}]"

    for row, *cells in zip(rows, speedups.rows, rates.rows, acceptance.rows, strict=True):
        speedup, rate, accepted = ([cell.text for cell in line] for line in cells)
        assert speedup[0] == rate[0] == accepted[0] == (row["domain"] or "all prompts")
        before, after = row["speedup"]["before"]["value"], row["speedup"]["after"]["value"]
        assert speedup[1:4] == [str(row["num_prompts"]), f"{before:.2f}x", f"{after:.2f}x"]
        assert speedup[4] == two(row["speedup"]["ratio"]) and speedup[5] == row["verdict"]
        sd_rate, ar_rate = row["sd_tokens_per_second"], row["ar_tokens_per_second"]
        assert rate[1] == f"{sd_rate['before']['value']:.1f} -> {sd_rate['after']['value']:.1f}"
        assert rate[2] == two(sd_rate["ratio"]) and rate[4] == two(ar_rate["ratio"])
        length = row["acceptance_length"]
        assert accepted[1] == f"{length['before']['value']:.2f} -> {length['after']['value']:.2f}"
    text = to_text(report.render(found), width=100, color=False)
    for table in (speedups, rates, acceptance):
        assert table.caption in text
        for line in table.rows:
            assert " ".join(cell.text for cell in line) in " ".join(text.split())


def test_the_terminal_is_told_what_the_report_is_told() -> None:
    found = contrasts([study(several(2, 4))], [study(several(2, 4, 8), config={"seed": 3})])
    text = " ".join(to_text(report.render(found), width=200, color=False).split())
    for block in report.blocks(found):
        if isinstance(block, Paragraph):
            assert " ".join(block.text.split()) in text
        elif isinstance(block, Bullets):
            assert all(" ".join(item.split()) in text for item in block.items)
    first, *_ = report.blocks(found)
    assert isinstance(first, Paragraph) and first.tone == "strong" and "at K = 2" in first.text


def test_text_from_files_is_inert_on_the_terminal() -> None:
    evil = "\x1b[31mred\x1b]0;x\x07 [bold]b[/bold] \u202eesrever"
    domains = {prompt: evil if number < 8 else "chat" for number, prompt in enumerate(TWELVE)}
    hostile = study(
        noisy(), domains=domains, name=evil, title=evil, config={"seed": evil}, caveats=(evil,), machine_class=evil,
        missing=(Missing(evil, 2, 1, 2, None),), models={"target": {"model": evil}},
    )  # fmt: skip
    text = to_text(
        report.render(contrasts([study(noisy())], [hostile], allow_machine_mismatch=True)), width=300, color=False
    )
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert "[bold]b[/bold]" in text


def test_sampled_texts_are_compared_as_well() -> None:
    row = only(differences(study([ar("a"), sd("a")], temperature=0.8), study([ar("a"), sd("a")], temperature=0.8)))
    assert row.speedup.ratio.value == 1


def test_a_pair_that_failed_altogether_is_no_silence() -> None:
    failed = (Missing("code", 2, 0, 6, None), Missing("code", 0, 0, 6, None))
    after = study({}, missing=failed, machine={}, machine_class="", pair="gpt2")
    found = contrasts([study(several(2)), study(several(2), pair="gpt2")], [after, study(several(2))])
    good, bad = found.contrasts
    assert only(good.differences).num_prompts == 2 and good.after.pair == "tiny_dev"
    assert only(bad.differences).reason == "B: 0 of 6 generations" and bad.headline is None
    assert report.sentence(bad) == "A and B have no speed in common to be compared (B: 0 of 6 generations)."
    assert not any("Left out" in warning for warning in bad.warnings)
    assert report.sentence(bad) in to_text(report.render(found), width=100, color=False)
    with pytest.raises(UsageError, match="A has no finished generations"):
        contrast(after, study(several(2), pair="gpt2"))
