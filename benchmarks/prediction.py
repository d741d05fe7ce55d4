"""Does one run at K = 8 tell what every other K would have done? Predicted against measured speedups.

The costs of each K are surveyed first, as `specprof run` does; then every prompt is decoded by plain decoding and by
every K in turn, in another order each time. Predictions use the survey and the run at the largest K alone.

    python benchmarks/prediction.py [--pair tiny_dev] [--temperature 0] [-n 18] [--reps 2]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from statistics import median

from specprof.data.prompts import builtin
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.experiments.arms import load_arms
from specprof.experiments.config import RunConfig
from specprof.experiments.cost_survey import survey_costs
from specprof.experiments.engine import Decoder
from specprof.experiments.observer import Observer
from specprof.experiments.run import encode_prompts, request_for, warm_up
from specprof.models.registry import get_pair
from specprof.profiling.comparison import Comparison, compare
from specprof.profiling.metrics import BASELINE, GenerationResult, fold


def measure(config: RunConfig, ks: Sequence[int], num_prompts: int, repetitions: int) -> dict[int, Comparison]:
    """Every K beside the same plain decoding, with the costs that were surveyed before."""
    arms = load_arms(config)
    prompts = encode_prompts(config, arms, list(builtin().take(num_prompts)))
    warm_up(config, arms, prompts)
    curve = survey_costs(config, arms, prompts)
    decoders: list[Decoder] = [arms.baseline]
    decoders += [SpeculativeDecoder(arms.target, arms.drafter, k) for k in ks]
    results: list[GenerationResult] = []
    observer = Observer(str, hindsight=True)
    order = random.Random(0)
    for repetition in range(repetitions):
        for prompt in prompts:
            for decoder in order.sample(decoders, len(decoders)):
                results += fold(observer.events(decoder, request_for(config, arms, prompt, repetition)))

    def compared(k: int) -> Comparison:
        of_both = [result for result in results if result.decoder in (BASELINE, f"SD-K{k}")]
        return compare(of_both, temperature=config.temperature, curve=curve)

    return {k: compared(k) for k in ks}


def table(measured: Mapping[int, Comparison]) -> str:
    """What the run at the largest K says of each, beside what each was."""
    longest = max(measured)
    predicted = {prediction.k: prediction for prediction in measured[longest].predictions}
    lines = [
        f"{'K':>3}  tokens/round      speedup",
        f"{'':3}  measured  from {longest}  measured  from {longest}   error",
    ]
    errors, speedups = [], {}
    for k, comparison in measured.items():
        assert comparison.speedup_decode is not None and comparison.speedup_decode.value is not None
        assert comparison.speculative is not None
        speedups[k] = comparison.speedup_decode.value
        errors.append(predicted[k].speedup / speedups[k] - 1)
        arm = comparison.speculative
        tau = (arm.num_tokens - arm.num_generations) / arm.num_rounds
        rates = f"{tau:8.3f}  {predicted[k].tokens_per_round:6.3f}"
        lines.append(f"{k:3}  {rates}  {speedups[k]:7.3f}x {predicted[k].speedup:6.3f}x  {errors[-1] * 100:+5.1f} %")
    chosen = max(measured, key=lambda k: predicted[k].speedup)
    best = max(measured, key=lambda k: speedups[k])
    sizes = sorted(abs(error) for error in errors)
    lines.append(f"absolute error: median {median(sizes) * 100:.1f} %, worst {sizes[-1] * 100:.1f} %")
    lines.append(
        f"best K: predicted {chosen}, measured {best}; tokens/s at the predicted one over the best's: "
        f"{speedups[chosen] / speedups[best]:.3f}"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="tiny_dev")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("-n", "--prompts", type=int, default=18)
    parser.add_argument("--reps", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    args = parser.parse_args()
    pair, longest = get_pair(args.pair), max(args.k)
    config = RunConfig(pair, k=longest, temperature=args.temperature, max_new_tokens=args.max_new_tokens)
    print(table(measure(config, args.k, args.prompts, args.reps)))


if __name__ == "__main__":
    main()
