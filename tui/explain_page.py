"""Why it is as fast as it is, as far as can be told by now."""

from __future__ import annotations

from collections.abc import Iterator

from textual.content import Content

from specprof.profiling.acceptance import AcceptanceCounts
from specprof.profiling.numbers import DASH, count, fixed, interval, percent, times
from specprof.profiling.round_costs import Costs
from specprof.profiling.signs import visible
from specprof.profiling.speedup import Speedup
from specprof.profiling.statistics import FEWEST_PAIRS
from specprof.tui.page import MUTED, columns, heading, lines, page, plain, prob, token, width_of
from specprof.tui.rounds import COIN, Position, RoundView, view
from specprof.tui.state import TuiState
from specprof.tui.transcript import Tokens

_MOST_REJECTIONS = 5
_VERDICTS = {
    "faster": ("\N{BLACK UP-POINTING TRIANGLE}", "$text-success", "faster than plain decoding"),
    "slower": ("\N{BLACK DOWN-POINTING TRIANGLE}", "$text-error", "slower than plain decoding"),
    "not distinguishable": ("=", "", "not distinguishable from plain decoding in speed"),
}


def explain_page(state: TuiState, width: int) -> Content:
    """What the finished texts come to, what a round costs, what to try, and what is not known yet.

    Args:
        width: in cells.
    """
    figures = state.figures
    costs, speedup = figures.costs, figures.speedup
    return page(
        (
            lines(_verdict(speedup), figures.explanation, *(visible(caveat) for caveat in state.caveats)),
            _costs(costs, speedup, width),
            _acceptance(costs, state.acceptance, width),
            _try(costs, state.acceptance),
            _rejections(state, width),
            _missing(state),
        )
    )


def _verdict(speedup: Speedup | None) -> Content:
    if speedup is None or speedup.value is None:
        return plain("How fast it is can't be told yet.", "bold")
    value = times(speedup.value)
    texts = count(speedup.n_prompts, "prompt")
    if speedup.verdict is None or speedup.ci is None:
        return plain(f"? {value} plain decoding's speed on {texts}: too few for a verdict.", "bold")
    sign, style, words = _VERDICTS[speedup.verdict]
    low, high = speedup.ci
    return plain(f"{sign} {value} [{low:.2f}, {high:.2f}]: {words}, on {texts}.", f"bold {style}".strip())


# Costs and what they predict


def _costs(costs: Costs | None, speedup: Speedup | None, width: int) -> Content | None:
    if costs is None:
        return None
    k, c, v, o = costs.draft_tokens_per_round, costs.draft_cost_ratio, costs.verify_ratio, costs.overhead_ratio
    if k is None or c is None or v is None or o is None:
        return None
    drafting = f"{k:.2f}".rstrip("0").rstrip(".")
    rows: list[tuple[str, str, Content]] = [
        ("draft", fixed(k * c), plain(f"K c: {drafting} tokens of {c:.3f} each", MUTED)),
        ("verify", fixed(v), plain("v: the pass that reads all of them", MUTED)),
        ("sample and overhead", fixed(o), plain("o", MUTED)),
        ("together", fixed(costs.break_even_tau), plain("in passes of the target over one token", MUTED)),
        ("tokens per round", fixed(costs.tokens_per_round), plain("tau: what it yields", MUTED)),
    ]
    predicted = times(costs.speedup_predicted_with_ar_overhead)
    overhead = fixed(costs.ar_overhead_ratio)
    rows.append(("predicted", predicted, plain(f"tau / together x (1 + {overhead}, plain decoding's own o)", MUTED)))
    rows.append(("measured", times(speedup.value if speedup else None), plain(_certainty(speedup), MUTED)))
    head = heading(f"What a round costs (one pass: {costs.target_step_seconds * 1000:.2f} ms)")
    return lines(head, columns(("", "", ""), rows, right={1}, width=width))


def _certainty(speedup: Speedup | None) -> str:
    if speedup is None or speedup.value is None:
        return "no prompt was decoded by both yet"
    if speedup.ci is None:
        return f"{count(speedup.n_prompts, 'prompt')}, no interval yet"
    return f"{interval(speedup)}, {count(speedup.n_prompts, 'prompt')}"


def _acceptance(costs: Costs | None, counts: AcceptanceCounts, width: int) -> Content | None:
    if counts.draft_acceptance_rate is None:
        return None
    needed_tau, needed_alpha = (None, None) if costs is None else (costs.break_even_tau, costs.break_even_alpha)
    out_of_reach = (
        costs is not None
        and needed_tau is not None
        and needed_alpha is None
        and costs.draft_tokens_per_round == counts.num_spec_tokens
    )
    rows = [
        ("accepted of all drafted", percent(counts.draft_acceptance_rate), ""),
        ("tokens per round", fixed(counts.mean_acceptance_length), _needed(needed_tau)),
        ("alpha", prob(counts.alpha), "even 1 would not break even" if out_of_reach else _needed(needed_alpha)),
    ]
    by_position = ", ".join(percent(rate) for rate in counts.conditional_acceptance_rate)
    return lines(
        heading("What acceptance there is, and what it takes"),
        columns(
            ("", "", ""),
            [(name, value, plain(needed, MUTED)) for name, value, needed in rows],
            right={1},
            width=width,
        ),
        Content.assemble("of those judged, by position: ", by_position),
    )


def _needed(value: float | None) -> str:
    return "" if value is None else f"breaks even at {value:.2f}, against bare passes"


def _try(costs: Costs | None, counts: AcceptanceCounts) -> Content | None:
    longest = counts.num_spec_tokens
    if costs is None or costs.best_k is None or longest is None:
        return None
    best, gain = costs.best_k, times(costs.best_k_speedup_predicted)
    now = times(costs.speedup_predicted_with_ar_overhead)
    if best == 0:
        advice = (
            f"By these costs and this acceptance no K up to {longest} pays: plain decoding is the fastest. "
            "A cheaper draft, or one more like the target, would change that."
        )
    elif not costs.best_k_is_advisable:
        advice = f"No K up to {longest} promises more than the {now} that is predicted as it is."
    elif best < longest:
        advice = f"Draft less: K {best} would give {gain}; as it is, {now} is predicted."
    else:
        advice = f"K {best} is the best up to {longest}: {gain}. Of longer drafts nothing is known yet; + tries one."
    return lines(heading("What to try"), advice)


# What was rejected


def _rejections(state: TuiState, width: int) -> Content | None:
    found = [each for each, _ in zip(_latest_rejections(state), range(_MOST_REJECTIONS), strict=False)]
    if not found:
        return None
    heads = ("token", "draft", "target", "ratio", "u", "instead", "where")
    rows = []
    for shown, position in found:
        instead = DASH if shown.last is None else token(shown.last.text, "bold")
        where = plain(f"{visible(shown.round.prompt_id)}, round {shown.round.index + 1}", MUTED)
        numbers = (position.draft_prob, position.target_prob, position.ratio, position.uniform)
        rows.append((token(position.text, "$text-error"), *map(prob, numbers), instead, where))
    table = columns(heads, rows, right={1, 2, 3, 4})
    if width_of(table) > width:
        table = columns(heads[:3], [row[:3] for row in rows], right={1, 2})
    return lines(heading("What was rejected last"), table, plain(_why(found[0][1]), MUTED))


def _latest_rejections(state: TuiState) -> Iterator[tuple[RoundView, Position]]:
    """The latest first; of each round, the one token that was judged and not taken."""
    transcript = state.arms["SD"].transcript
    greedy, synthetic = (False, False) if state.run is None else (state.run.greedy, state.run.synthetic)
    for at in range(transcript.end - 1, transcript.begin - 1, -1):
        entry = transcript.at(at)
        if isinstance(entry, Tokens) and entry.round is not None and entry.round.draft_tokens:
            shown = view(entry.round, entry.pieces, greedy=greedy, synthetic=synthetic)
            for position in shown.positions:
                if position.verdict == "rejected":
                    yield shown, position


def _why(position: Position) -> str:
    if position.synthetic:
        return COIN
    if position.greedy:
        return "Greedy: each was not what the target finds most probable at its place."
    return "Each was less probable to the target than to the draft, and its u was not below the ratio of the two."


# What is not known yet


def _missing(state: TuiState) -> Content | None:
    told = [plain(f"- {sentence}") for sentence in _reasons(state)]
    return lines(heading("What is not known yet, and what is left out"), *told) if told else None


def _reasons(state: TuiState) -> Iterator[str]:
    plain_arm, speculative = state.arms["AR"], state.arms["SD"]
    over = state.status in ("finished", "failed")
    if not plain_arm.times.rounds:
        yield "Costs need steps of plain decoding: " + ("this run has none." if over else "none was made so far.")
    if not state.acceptance.num_spec_steps:
        yield "Acceptance needs a complete round of speculation: " + (
            "this run has none." if over else "none was made so far."
        )
    elif state.acceptance.alpha is None:
        yield "alpha needs probabilities, which were not recorded."
    num_paired = len(plain_arm.measured.keys() & speculative.measured.keys())
    if not num_paired:
        yield "A speedup needs a prompt that both have decoded to its end."
    elif num_paired < FEWEST_PAIRS:
        yield (
            f"An interval and a verdict need {FEWEST_PAIRS} prompts that both have decoded to their ends: "
            f"{num_paired} so far."
        )
    if state.num_interactive:
        yield (
            f"{count(state.num_interactive, 'text')} paused, stepped through, raced or changed on the way: "
            "left out of the speedup."
        )
    if state.num_dropped:
        events = count(state.num_dropped, "event")
        yield f"{events} came too fast to be shown: their texts are left out here, no file misses them."
