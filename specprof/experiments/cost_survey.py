"""What rounds of every draft length cost, before anything is compared: real rounds, side by side."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from specprof.decoding.draft_length import EveryK
from specprof.decoding.request import Request
from specprof.experiments.arms import Arms
from specprof.experiments.config import RunConfig
from specprof.experiments.run import EncodedPrompt, request_for
from specprof.profiling.cost_model import CostCurve
from specprof.profiling.events import Event, Round

ROUNDS_EACH = 24
"""Of every length; their median is the cost."""
STREAK = 4
"""Rounds of one length in a row. The first of them is not counted: those after it find the weights where the last pass
has left them, as rounds of a fixed length do."""
PLAIN_ROUNDS = 12
"""Of plain decoding, on each prompt."""
SECONDS = 15.0
"""After which fewer have to do."""


def survey_costs(config: RunConfig, arms: Arms, prompts: Sequence[EncodedPrompt]) -> CostCurve | None:
    """Decode prompts in rounds that draft 1, ... K tokens, a few of each in turn, and plainly: median costs by length.

    Every length meets the same contexts, at the lengths that the prompts reach, with the drafter, the kernels and
    the clock of what is measured afterwards. Models have to be warm. What is generated is thrown away.

    Returns:
        None where nothing is drafted, or no length was met often enough before time ran out.
    """
    longest = arms.speculative.length.longest
    if longest < 1:
        return None
    decoder = copy.copy(arms.speculative)  # of the same parts: what these have captured needn't be captured again
    decoder.length = EveryK(longest, config.seed, shortest=1, streak=STREAK)
    deadline = time.monotonic() + SECONDS
    rounds: list[Round] = []
    met = Counter[int]()
    for turn, prompt in itertools.product(range(ROUNDS_EACH), prompts):
        request = request_for(config, arms, prompt, -1 - turn)
        # Plain decoding by the loop that it is measured with: a round that drafts nothing does more around its pass.
        for found in (_plain_rounds(arms, request), _settled_rounds(decoder.events(request))):
            for round in found:
                rounds.append(round)
                met[round.k or 0] += 1
                if len(met) > longest and min(met.values()) >= ROUNDS_EACH:
                    return CostCurve.of(rounds)
                if time.monotonic() > deadline:
                    return CostCurve.of(rounds)
    return CostCurve.of(rounds)


def _plain_rounds(arms: Arms, request: Request) -> Iterator[Round]:
    rounds = (event for event in arms.baseline.events(request) if isinstance(event, Round))
    for round in itertools.islice(rounds, 1, 1 + PLAIN_ROUNDS):
        yield dataclasses.replace(round, k=0)


def _settled_rounds(events: Iterable[Event]) -> Iterator[Round]:
    """Those that follow one of the same length, and were not cut."""
    before: int | None = None
    for event in events:
        if isinstance(event, Round):
            if event.k is not None and event.k == before and not event.cut:
                yield event
            before = event.k
