"""What the draft gets wrong: the tokens that are rejected most often, and what the target wanted instead."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from specprof.profiling.metrics import GenerationResult
from specprof.profiling.numbers import DASH, fixed, percent
from specprof.reports.document import Cell, Column, Table

SHOWN = 8
LONGEST = 60
"""Characters of a token's text: some are whole lines of spaces or dashes."""


def rejections(results: Sequence[GenerationResult]) -> Table | None:
    """Of a speculative arm's generations; None without a rejection."""
    texts: dict[str, str] = {}
    found: dict[tuple[int, int], list[tuple[float, float] | None]] = defaultdict(list)
    for result in results:
        texts |= result.token_texts or {}
        for round in result.rounds:
            place = round.num_accepted
            if not round.cut and place < min(len(round.draft_tokens), len(round.emitted_tokens)):
                probabilities = None
                if round.target_prob is not None and round.draft_prob is not None:
                    probabilities = (round.target_prob[place], round.draft_prob[place])
                found[round.draft_tokens[place], round.emitted_tokens[place]].append(probabilities)
    if not found:
        return None
    total = sum(map(len, found.values()))
    # Of two equally frequent ones the first by id: the same file gives the same page.
    frequent = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))[:SHOWN]
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            Cell(_quoted(texts, drafted)),
            Cell(_quoted(texts, emitted)),
            Cell(str(len(seen))),
            Cell(percent(len(seen) / total)),
            *(Cell(fixed(_mean([each[side] for each in seen if each is not None]))) for side in (1, 0)),
        )
        for (drafted, emitted), seen in frequent
    )
    columns: tuple[Column, ...] = (
        Column("rejected", "left"), Column("instead", "left"), Column("times"), Column("of all rejections"),
        Column("draft's probability of the rejected"), Column("target's"),
    )  # fmt: skip
    if all(row[-1].text == row[-2].text == DASH for row in rows):
        columns, rows = columns[:-2], tuple(row[:-2] for row in rows)
    return Table(columns, rows, f"What is rejected most often; {total} rejections, {len(found)} different ones.")


def _quoted(texts: dict[str, str], token: int) -> str:
    text = texts.get(str(token))
    if text is None:
        return f"[{token}]"
    return repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}...")


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
