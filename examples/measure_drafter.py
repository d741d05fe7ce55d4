"""Measures a drafter of one's own as `specprof run` measures those it knows."""

import dataclasses

from bigram_drafter import BigramDrafter

from specprof.data.prompts import builtin
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.experiments.arms import load_arms
from specprof.experiments.config import RunConfig
from specprof.experiments.run import encode_prompts, measure, warm_up
from specprof.models.registry import get_pair
from specprof.profiling.comparison import compare
from specprof.profiling.metrics import fold
from specprof.reports.tables import render, to_text

config = RunConfig(get_pair("tiny_dev"), drafter="ngram", k=4, repetitions=1, max_new_tokens=48)
arms = load_arms(config)  # "ngram" needs no second model; what it drafts with is replaced
speculative = SpeculativeDecoder(arms.target, BigramDrafter(arms.target), k=4)
arms = dataclasses.replace(arms, speculative=speculative)
prompts = encode_prompts(config, arms, builtin().take(6).get_all())
warm_up(config, arms, prompts)
results = fold(measure(config, arms, prompts, "bigrams"))
comparison = compare(results, temperature=config.temperature)
print(to_text(render(comparison, title="tiny_dev  K = 4  greedy  bigrams"), width=100, color=False))
