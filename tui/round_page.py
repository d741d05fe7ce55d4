"""Everything there is to say of one round."""

from __future__ import annotations

from textual.content import Content

from specprof.profiling.numbers import DASH, count
from specprof.profiling.pieces import KIND_WORDS, Kind
from specprof.profiling.signs import visible
from specprof.tui.lines import FANCY
from specprof.tui.page import (
    MUTED,
    VERDICT_SIGNS,
    VERDICT_STYLES,
    columns,
    heading,
    lines,
    page,
    plain,
    prob,
    token,
    width_of,
)
from specprof.tui.rounds import COIN, Position, RoundView
from specprof.tui.run_facts import RunFacts

_LAST: dict[Kind, tuple[str, str]] = {
    "corrected": (FANCY.corrected, "bold $text-warning"),
    "bonus": (FANCY.bonus, "bold $text-primary"),
}
"""Sign and style of what the target added, as in the text."""
_MOST_CELLS = 200
"""Of the token in the text of the rule."""


def round_page(shown: RoundView, run: RunFacts | None, width: int) -> Content:
    """A round in full: what was drafted, the rule with its numbers, where the time went.

    Args:
        width: in cells; what does not fit side by side stands below one another.
    """
    return page((_head(shown, run), _positions(shown, width), _rule(shown), _times(shown, width), _tokens(shown)))


def _head(shown: RoundView, run: RunFacts | None) -> Content:
    round = shown.round
    where = f"round {round.index + 1} of {visible(round.prompt_id)}, repetition {round.repetition + 1}"
    facts = "" if run is None else f", {visible(run.pair)}, " + ("greedy" if run.greedy else f"T {run.temperature:g}")
    return lines(plain(shown.headline, "bold"), plain(where + facts, MUTED))


# The positions


def _positions(shown: RoundView, width: int) -> Content:
    if not shown.positions:
        return lines("Nothing was drafted here.", _last(shown))
    # Why a token was judged as it was stands in the rule too.
    tables = (_table(shown, why=True), _table(shown, why=False))
    return lines(next((table for table in tables if width_of(table) <= width), _list(shown)), _last(shown))


def _table(shown: RoundView, *, why: bool) -> Content:
    heads = ("", "token", "id", "draft", "target", "ratio", "u", "alpha", "verdict", *(("why",) if why else ()))
    rows: list[tuple[Content | str, ...]] = []
    for position in shown.positions:
        numbers = (position.draft_prob, position.target_prob, position.ratio, position.uniform, _alpha(shown, position))
        token_id = str(shown.round.draft_tokens[position.number - 1])
        reason = (plain(position.why, MUTED),) if why else ()
        first = (str(position.number), _text(shown, position), token_id)
        rows.append((*first, *map(prob, numbers), _verdict(position), *reason))
    return columns(heads, rows, right={0, 2, 3, 4, 5, 6, 7})


def _list(shown: RoundView) -> Content:
    parts: list[Content] = []
    for position in shown.positions:
        token_id = shown.round.draft_tokens[position.number - 1]
        parts.append(Content(f"{position.number}  ") + _text(shown, position) + Content("  ") + _verdict(position))
        numbers = (
            f"   draft {prob(position.draft_prob)}, target {prob(position.target_prob)}, ratio {prob(position.ratio)}"
        )
        parts.append(plain(numbers))
        parts.append(plain(f"   u {prob(position.uniform)}, alpha {prob(_alpha(shown, position))}, id {token_id}"))
        if position.why:
            parts.append(plain(f"   {position.why}", MUTED))
    return lines(*parts)


def _text(shown: RoundView, position: Position) -> Content:
    if not position.text and _behind_the_end(shown, position):
        return Content(DASH)
    return token(position.text, VERDICT_STYLES[position.verdict])


def _behind_the_end(shown: RoundView, position: Position) -> bool:
    """An end of sequence among the accepted tokens is the end of the text."""
    round = shown.round
    return len(round.emitted_tokens) <= round.num_accepted and position.number > len(round.emitted_tokens)


def _verdict(position: Position) -> Content:
    return plain(f"{VERDICT_SIGNS[position.verdict]} {position.verdict}", VERDICT_STYLES[position.verdict])


def _alpha(shown: RoundView, position: Position) -> float | None:
    alpha = shown.round.alpha
    return None if alpha is None or position.number > len(alpha) else alpha[position.number - 1]


def _last(shown: RoundView) -> Content | None:
    if shown.last is None:
        return None
    kind = shown.last.kind
    name = "the target's token" if kind == "plain" else KIND_WORDS[kind]
    sign, style = _LAST.get(kind, (FANCY.corrected, "bold"))
    last = token(shown.last.text, style)
    return Content.assemble((sign, style), "  ", last, (f"  {name}", style), f", id {shown.round.emitted_tokens[-1]}")


# The rule


def _rule(shown: RoundView) -> Content | None:
    if not shown.positions:
        return None
    greedy = shown.positions[0].greedy
    judged = [position for position in shown.positions if position.verdict != "not judged"]
    if shown.synthetic:
        rule = COIN
        worked = [plain(f"{p.number}  {p.verdict}", VERDICT_STYLES[p.verdict]) for p in judged]
    elif greedy:
        rule = "Greedy: a drafted token is accepted if it is what the target finds most probable at its place."
        worked = [plain(f"{p.number}  {p.why}: {p.verdict}", VERDICT_STYLES[p.verdict]) for p in judged]
    else:
        rule = (
            "A drafted token is accepted with probability min(1, target / draft): if a random number u between 0 and 1 "
            "is below that ratio. The first one that is not ends the round. So tokens come out as often as if the "
            "target had drawn them alone."
        )
        worked = [plain(_worked(position), VERDICT_STYLES[position.verdict]) for position in judged]
    return lines(heading("The rule"), rule, *worked, _ending(shown, greedy))


def _worked(position: Position) -> str:
    """The rule with this token's numbers."""
    if position.ratio is None:
        return f"{position.number}  probabilities were not recorded: {position.verdict}"
    drawn = f"min(1, {prob(position.target_prob)} / {prob(position.draft_prob)}) = {prob(position.ratio)}"
    if position.uniform is None:
        return f"{position.number}  {drawn}, u was not recorded: {position.verdict}"
    sign = "<" if position.verdict == "accepted" else ">="
    return f"{position.number}  {drawn}, u {prob(position.uniform)} {sign} {prob(position.ratio)}: {position.verdict}"


def _ending(shown: RoundView, greedy: bool) -> Content:
    k, accepted = len(shown.positions), shown.round.num_accepted
    if shown.last is None:
        return plain("An end of the text is among the accepted tokens: nothing behind it belongs to the text.")
    last = token(shown.last.text, "bold", most=_MOST_CELLS)
    if shown.synthetic:
        how = "the target's"
    elif accepted == k:
        how = "the target's own choice" if greedy else "drawn from the target's probabilities"
    else:
        how = (
            "the target's own choice"
            if greedy
            else "drawn from what the target gives more probability than the draft, norm(max(0, target - draft))"
        )
    if accepted == k:
        everything = "The drafted token was" if k == 1 else f"All {k} were"
        return Content.assemble(f"{everything} accepted: the same pass gives one token more, {how}: ", last, ".")
    behind = k - accepted - 1
    rest = f" {count(behind, 'token')} behind it {'was' if behind == 1 else 'were'} never judged." if behind else ""
    return Content.assemble(f"In the place of token {accepted + 1}: ", last, f", {how}.{rest}")


# Time and tokens


def _times(shown: RoundView, width: int) -> Content:
    round = shown.round
    k, total = len(round.draft_tokens), round.seconds
    phases = (
        ("draft", round.draft_seconds, f"proposing {count(k, 'token')}"),
        ("verify", round.verify_seconds, f"one pass of the target over {count(k + 1, 'position')}"),
        ("sample", round.sample_seconds, "judging the draft, choosing the token after it"),
        ("overhead", round.overhead_seconds, "roll-back, and whatever else the host does"),
    )
    rows = [(name, *_time(seconds, total), plain(what, MUTED)) for name, seconds, what in phases]
    emitted = len(round.emitted_tokens)
    each = plain(f"{total / emitted * 1000:.3f} ms for each of {count(emitted, 'token')}" if emitted else "", MUTED)
    rows.append(("together", *_time(total, total), each))
    table = columns(("", "ms", "share", ""), rows, right={1, 2}, width=width)
    return lines(heading("Time"), table)


def _time(seconds: float, total: float) -> tuple[str, str]:
    return f"{seconds * 1000:.3f}", f"{seconds / total * 100:.1f} %" if total > 0 else DASH


def _tokens(shown: RoundView) -> Content:
    round = shown.round
    drafted = len(round.draft_tokens)
    asked = DASH if round.k is None else str(round.k)
    counts = f"asked for {asked}, drafted {drafted}, accepted {round.num_accepted}"
    gained = f"The text grew by {count(len(round.emitted_tokens), 'token')}; plain decoding would take a pass for each."
    cut = (
        "Cut by the end of the text or by the length limit: it counts in speed, and not in acceptance."
        if round.cut
        else "A complete round: it counts in speed and in acceptance."
    )
    return lines(heading("Tokens"), counts, gained, plain(cut, MUTED))
