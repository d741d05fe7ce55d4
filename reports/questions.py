"""The questions of a report, each a section: why, is it faster, where does the time go, which K, is it the target's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from specprof.experiments.matrix import DraftLength
from specprof.experiments.study import Study
from specprof.profiling.attribution import attribute
from specprof.profiling.comparison import PHASES, Arm, Comparison
from specprof.profiling.cost_model import Prediction
from specprof.profiling.metrics import manner
from specprof.profiling.numbers import DASH, count, fixed, interval, megabytes, milliseconds, percent, rate, times
from specprof.profiling.speedup import Speedup
from specprof.reports import explain, figures
from specprof.reports.by_study import each
from specprof.reports.document import Block, Bullets, Cell, Column, Paragraph, Section, Table
from specprof.reports.rejections import rejections
from specprof.reports.signs import VERDICT_MARKS
from specprof.reports.streams import streams


def why(studies: Sequence[Study]) -> Section:
    return Section("why", "Why", each(studies, lambda study, _: _explained(study)))


def _explained(study: Study) -> Iterator[Block]:
    if study.headline is None:
        return
    yield Bullets(tuple(explain.sentences(study.headline, measured=study.speedups)))
    found = attribute(study.headline)
    if found is None:
        return
    rows = [
        ("plain decoding", found.ar_seconds_per_token, None),
        (f"ideal: that / {found.tokens_per_round:.2f} tokens a round", found.ideal_seconds_per_token, None),
        *((f"+ {loss.name}", loss.seconds_per_token, loss.share) for loss in found.losses),
        ("= measured", found.measured_seconds_per_token, None),
    ]
    yield Table(
        (Column(f"K = {study.best_k}", "left"), Column("ms per token"), Column("of the gap")),
        tuple(
            (Cell(name), Cell(f"{seconds * 1e3:.3f}"), Cell("" if share is None else percent(share)))
            for name, seconds, share in rows
        ),
        "What an emitted token costs above the ideal, cause by cause; below zero, it made up for some of it. All "
        "rounds count here, cut ones too.",
    )


def speed(studies: Sequence[Study], detailed: Sequence[Study]) -> Section:
    blocks: list[Block | None] = []
    if len(studies) > 1:
        blocks.append(_overview(studies))
    blocks.append(figures.speedup_heatmap(studies))
    # Of several studies the figure before has every K by domain, and in a comment there is no room for it twice.
    blocks += each(detailed, lambda study, _: _speed_of(study, every_k=len(studies) == 1))
    return Section("speed", "Is it faster, by how much, how sure?", tuple(filter(None, blocks)))


def _overview(studies: Sequence[Study]) -> Table:
    columns = (
        Column("", "left"), Column("best K"), Column("speedup"), Column("95 % interval"), Column("tokens per round"),
        Column("prompts"),
    )  # fmt: skip
    rows = []
    for study in studies:
        comparison = study.headline
        speedup = comparison.speedup_decode if comparison else None
        acceptance = comparison.acceptance if comparison else None
        rows.append(
            (
                Cell(study.title),
                Cell(DASH if study.best_k is None else str(study.best_k)),
                _speedup_cell(speedup),
                Cell(interval(speedup) if speedup else DASH),
                Cell(fixed(acceptance.mean_acceptance_length) if acceptance else DASH),
                Cell(str(comparison.num_prompts) if comparison else DASH),
            )
        )
    return Table(columns, tuple(rows), "Every study at its best K.")


def _speedup_cell(speedup: Speedup | None) -> Cell:
    if speedup is None:
        return Cell(DASH)
    return Cell(times(speedup.value), VERDICT_MARKS.get(speedup.verdict, ""))


def _speed_of(study: Study, *, every_k: bool) -> Iterator[Block | None]:
    comparison = study.headline
    if comparison is None:
        return
    yield _key_table(comparison)
    yield _domain_table(study, comparison, every_k=every_k)


def _key_table(comparison: Comparison) -> Table:
    arms = [arm for arm in (comparison.baseline, comparison.speculative) if arm is not None]
    columns = (Column("", "left"), *(Column(arm.decoder) for arm in arms), Column("ratio"), Column("95 % interval"))
    decode, e2e = comparison.speedup_decode, comparison.speedup_e2e

    def row(
        label: str, text: Callable[[Arm], str], speedup: Speedup | None = None, ratio: str = ""
    ) -> tuple[Cell, ...]:
        last = (_speedup_cell(speedup), Cell(interval(speedup))) if speedup else (Cell(ratio), Cell(""))
        return (Cell(label), *(Cell(text(arm)) for arm in arms), *last)

    rows = (
        row("tokens/s, decode (higher is better)", lambda arm: rate(arm.tokens_per_second), decode),
        row("tokens/s, end to end", lambda arm: rate(arm.tokens_per_second_e2e), e2e),
        row("first token, ms (lower is better)", lambda arm: milliseconds(arm.ttft_seconds)),
        row("per token after, ms", lambda arm: milliseconds(arm.tpot_seconds)),
        row("tokens generated", lambda arm: str(arm.num_tokens)),
        row("rounds", lambda arm: str(arm.num_rounds)),
        row("texts that end in a loop", lambda arm: percent(arm.repetition)),
    )
    sample = f"{count(comparison.num_prompts, 'prompt')}, {count(comparison.num_repetitions, 'repetition')}"
    return Table(columns, rows, f"{sample}, {manner(comparison.temperature)}; the intervals are over prompts.")


def _domain_table(study: Study, comparison: Comparison, *, every_k: bool) -> Table | None:
    shown = study.comparisons if every_k or study.best_k is None else {study.best_k: comparison}
    several = len(shown) > 1
    if not several and len(comparison.domains) < 2:
        return None
    columns = (
        *((Column("K"),) if several else ()),
        Column("domain", "left"), Column("prompts"), Column("speedup"), Column("95 % interval"),
        Column("tokens per round"), Column("accepted"),
    )  # fmt: skip
    rows = []
    for k, at_k in shown.items():
        lines = [(name, domain.speedup_decode, domain.acceptance) for name, domain in at_k.domains.items()]
        for name, speedup, acceptance in [*lines, ("all", at_k.speedup_decode, at_k.acceptance)]:
            rows.append(
                (
                    *((Cell(str(k)),) if several else ()),
                    Cell(name),
                    Cell(str(speedup.n_prompts if speedup else _num_prompts(study, k, name))),
                    _speedup_cell(speedup),
                    Cell(interval(speedup) if speedup else DASH),
                    Cell(fixed(acceptance.mean_acceptance_length) if acceptance else DASH),
                    Cell(percent(acceptance.draft_acceptance_rate) if acceptance else DASH),
                )
            )
    return Table(columns, tuple(rows), "By domain." if several else f"By domain; K = {study.best_k}.")


def time(studies: Sequence[Study]) -> Section:
    return Section("time", "Where does the time go?", each(studies, _time_of))


def _num_prompts(study: Study, k: DraftLength, domain: str) -> int:
    """Of a domain, or of ``all``, where there is no speedup to tell."""
    prompts = {result.prompt_id for result in study.results.get(k, ())}
    return sum(domain == "all" or study.domain_of.get(prompt_id) == domain for prompt_id in prompts)


def _time_of(study: Study, suffix: str) -> Iterator[Block | None]:
    comparison = study.headline
    if comparison is None:
        return
    yield figures.time_per_token(study, name=f"time{suffix}")
    yield _phase_table(study, comparison)
    yield figures.latencies(study, name=f"latency{suffix}")


def _phase_table(study: Study, comparison: Comparison) -> Table:
    arms = [arm for arm in (comparison.baseline, comparison.speculative) if arm is not None]
    columns = [Column("ms", "left")]
    for arm in arms:
        columns += [Column(f"{arm.decoder} per round"), Column("per token"), Column("share")]
    phases = [arm.phases.by_name for arm in arms]
    slowest = max((phase.seconds_per_round or 0.0 for each in phases for phase in each.values()), default=0.0)
    rows = []
    for name in PHASES:
        cells = [Cell(name)]
        for arm in arms:
            phase = arm.phases.by_name[name]
            nothing = name == "draft" and arm is comparison.baseline
            cells += [
                Cell(DASH if nothing else milliseconds(phase.seconds_per_round, like=slowest)),
                Cell(DASH if nothing else milliseconds(phase.seconds_per_token, like=slowest)),
                Cell(DASH if nothing else percent(phase.share)),
            ]
        rows.append(tuple(cells))
    totals = [Cell("total")]
    for arm in arms:
        whole = arm.phases
        totals.append(Cell(milliseconds(whole.seconds_per_round, like=slowest)))
        totals.append(Cell(milliseconds(whole.seconds_per_token, like=slowest)))
        totals.append(Cell(percent(sum(phase.share or 0.0 for phase in whole.by_name.values()) or None)))
    return Table(tuple(columns), (*rows, tuple(totals)), f"Means over all rounds; K = {study.best_k}.")


def lengths(studies: Sequence[Study]) -> Section:
    return Section("best-k", "Which K is best?", each(studies, _lengths_of))


def _lengths_of(study: Study, suffix: str) -> Iterator[Block | None]:
    if study.headline is None:
        return
    yield figures.predicted_against_measured([study], name=f"prediction{suffix}")
    yield _prediction_table(study)
    yield _cost_table(study)
    yield figures.cost_curve(study, name=f"cost{suffix}")


def _prediction_table(study: Study) -> Table | None:
    """Measured and predicted, wherever either is known."""
    surveyed: dict[DraftLength, Prediction] = {p.k: p for c in study.comparisons.values() for p in c.predictions}
    lengths = sorted({*surveyed, *study.comparisons}, key=lambda k: (k == "auto", k))
    rows = []
    tau: float | None
    expected: float | None
    for k in lengths:
        prediction, comparison = surveyed.get(k), study.comparisons.get(k)
        speedup = comparison.speedup_decode if comparison else None
        costs = comparison.costs if comparison else None
        if prediction is not None:
            tau, expected = prediction.tokens_per_round, prediction.speedup
        elif costs is not None and costs.speedup_predicted_with_ar_overhead is not None:
            tau, expected = costs.tokens_per_round, costs.speedup_predicted_with_ar_overhead
        else:
            tau, expected = None, None
        rows.append(
            (
                Cell(str(k), "best" if k == study.best_k and len(study.comparisons) > 1 else ""),
                Cell(fixed(tau)),
                Cell(fixed(tau / expected if tau and expected else None)),
                Cell(times(expected)),
                Cell(times(prediction.speedup_from_alpha if prediction else None)),
                _speedup_cell(speedup),
                Cell(interval(speedup) if speedup else DASH),
            )
        )
    if not rows:
        return None
    columns = [
        "K", "tokens per round", "break-even", "predicted", "with one alpha for all places", "measured",
        "95 % interval",
    ]  # fmt: skip
    how = (
        "Predicted from this run's acceptance, place by place, and from costs surveyed before it."
        if surveyed
        else "Predicted from each K's own acceptance and costs: what the model leaves out is the difference."
    )
    return Table(tuple(Column(name) for name in columns), tuple(rows), how)


def _cost_table(study: Study) -> Table | None:
    if study.curve is None:
        return None
    columns = (
        "K",
        "drafting a token, c",
        "verifying, v",
        "the rest, o",
        "break-even, tokens per round",
        "rounds timed",
    )
    rows = tuple(
        (
            Cell(str(row["k"])),
            Cell(fixed(row["draft_cost_ratio"], 3)),
            Cell(fixed(row["verify_ratio"], 3)),
            Cell(fixed(row["overhead_ratio"], 3)),
            Cell(fixed(row["break_even_tau"])),
            Cell(str(row["num_rounds"])),
        )
        for row in study.curve.by_k()
    )
    step = milliseconds(study.curve.target_step_seconds)
    return Table(tuple(map(Column, columns)), rows, f"In one-token passes of the target, which take {step} ms.")


def acceptance(studies: Sequence[Study], *, redact: bool) -> Section:
    found = each(studies, lambda study, suffix: _acceptance_of(study, suffix, redact))
    return Section("acceptance", "Why are tokens rejected?", found)


def _acceptance_of(study: Study, suffix: str, redact: bool) -> Iterator[Block | None]:
    counts = study.headline.acceptance if study.headline else None
    if counts is None:
        return
    if not counts.num_spec_steps:
        yield Paragraph("There is no complete round with a draft.")
        return
    accepted = percent(counts.draft_acceptance_rate)
    yield Paragraph(
        f"{fixed(counts.mean_acceptance_length)} tokens per round: {fixed(counts.accepted_per_step)} of "
        f"{counts.num_draft_tokens / counts.num_spec_steps:.3g} drafted ones are accepted ({accepted}), "
        f"and one is corrected or a bonus. Alpha is {fixed(counts.alpha)}. "
        f"{count(counts.num_spec_steps, 'round')}; left out: {counts.num_cut_rounds} cut by the end of the text, "
        f"{counts.num_empty_rounds} with nothing drafted."
    )
    yield figures.acceptance_by_position(study, name=f"acceptance{suffix}")
    yield figures.accepted_per_round(study, name=f"accepted-per-round{suffix}")
    if study.best_k is not None and not redact:  # a table of texts
        yield rejections(study.arm(study.best_k, baseline=False))


def output(studies: Sequence[Study]) -> Section:
    return Section("output", "Is the output still the target's?", each(studies, _output_of))


def _output_of(study: Study, suffix: str) -> Iterator[Block]:
    if study.headline is None:
        return
    matches = {k: c.output_matches_baseline for k, c in study.comparisons.items() if c.output_matches_baseline}
    if not matches:
        if study.temperature > 0:
            yield Paragraph(
                "Texts are drawn at random, so that two arms differ even where their law is the same. "
                "`specprof verify` tests the law."
            )
        else:
            yield Paragraph("Plain decoding was not run beside it, so there is nothing to compare with.")
        return
    columns = ("K", "prompts", "identical", "numerical ties", "failures", "not looked into")
    rows = []
    for k, match in matches.items():
        verdicts = [divergence.verdict for divergence in match.divergences]
        rows.append(
            (
                Cell(str(k)),
                Cell(str(match.num_prompts)),
                Cell(str(match.num_identical)),
                Cell(str(verdicts.count("tie"))),
                Cell(str(verdicts.count("failure")), "failed" if "failure" in verdicts else ""),
                Cell(str(verdicts.count(None))),
            )
        )
    yield Table(tuple(map(Column, columns)), tuple(rows), "Greedy texts of both arms, token by token.")
    differing = [(k, divergence) for k, match in matches.items() for divergence in match.divergences]
    if differing:
        yield Table(
            (Column("K"), Column("prompt", "left"), Column("first difference at token"), Column("gap of logits"),
             Column("explained by rounding up to"), Column("", "left")),
            tuple(
                (
                    Cell(str(k)), Cell(d.prompt_id), Cell(str(d.position + 1)), Cell(fixed(d.gap, 5)),
                    Cell(fixed(d.tolerance, 5)),
                    Cell({"tie": "numerical tie", "failure": "failure"}.get(d.verdict or "", DASH),
                         "failed" if d.verdict == "failure" else ""),
                )
                for k, d in differing[:20]
            ),
            "Where they part, and whether rounding explains it." + (" The first 20." if len(differing) > 20 else ""),
        )  # fmt: skip


def tokens(studies: Sequence[Study], *, redact: bool) -> Section:
    return Section("tokens", "Token by token", each(studies, lambda study, _: streams(study, redact=redact)))


def device(studies: Sequence[Study]) -> Section:
    return Section("device", "Memory and energy", each(studies, lambda study, _: (_device_table(study),)))


def _device_table(study: Study) -> Table | None:
    comparison = study.headline
    arms = [arm for arm in (comparison.baseline, comparison.speculative) if arm is not None] if comparison else []
    if not arms:
        return None
    rows = [
        ("peak memory, MB", [megabytes(arm.peak_memory_bytes) for arm in arms]),
        ("of which prefill, MB", [megabytes(arm.prefill_peak_memory_bytes) for arm in arms]),
        ("energy, J per token", [fixed(arm.energy_joules_per_token, 3) for arm in arms]),
    ]
    return Table(
        (Column("", "left"), *(Column(arm.decoder) for arm in arms)),
        tuple((Cell(label), *map(Cell, values)) for label, values in rows),
        "Energy is what the hardware counted while it generated: a GPU's board or a processor's packages, idle power "
        "included. A dash: there is no counter that can be read.",
    )
