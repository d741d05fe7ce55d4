"""What rounds of every draft length cost, before anything is compared: real rounds, side by side."""

from __future__ import annotations

import copy
import itertools
import time
from collections import Counter
from collections.abc import Sequence

from specprof.decoding.draft_length import EveryK
from specprof.experiments.arms import Arms
from specprof.experiments.config import RunConfig
from specprof.experiments.run import EncodedPrompt, request_for
from specprof.profiling.cost_model import CostCurve
from specprof.profiling.events import Round

ROUNDS_EACH = 24
"""Of every length; their median is the cost."""
SECONDS = 15.0
"""After which fewer have to do."""


def survey_costs(config: RunConfig, arms: Arms, prompts: Sequence[EncodedPrompt]) -> CostCurve | None:
    """Decode prompts in rounds that draft 0, 1, ... K tokens in turn, and take the median cost of each length.

    Every length meets the same contexts, at the lengths that the prompts reach, with the drafter, the kernels and
    the clock of what is measured afterwards. Models have to be warm. What is generated is thrown away.

    Returns:
        None where nothing is drafted, or no length was met often enough before time ran out.
    """
    longest = arms.speculative.length.longest
    if longest < 1:
        return None
    decoder = copy.copy(arms.speculative)  # of the same parts: what these have captured needn't be captured again
    decoder.length = EveryK(longest, config.seed)
    deadline = time.monotonic() + SECONDS
    rounds: list[Round] = []
    met = Counter[int]()
    for turn, prompt in itertools.product(range(ROUNDS_EACH), prompts):
        for event in decoder.events(request_for(config, arms, prompt, -1 - turn)):
            if isinstance(event, Round) and event.k is not None and not event.cut:
                rounds.append(event)
                met[event.k] += 1
            if len(met) > longest and min(met.values()) >= ROUNDS_EACH:
                return CostCurve.of(rounds)
            if time.monotonic() > deadline:
                return CostCurve.of(rounds)
    return CostCurve.of(rounds)
