"""Is ``--k auto`` as good as the best fixed K? Tokens per second of both, on each packaged domain.

Every prompt is decoded by every arm in turn, the arms in another order each time, so that drift hits all of
them. Each arm is warmed up on the first prompts of the domain; K auto learns there, as it does in `specprof run`.
The interval is a bootstrap over prompts. On a machine whose speed varies, times say less about the choices of K than
about when they were made, so the same rounds are also counted at the median time that rounds of their length took.

    python benchmarks/adaptive_k.py [--pair tiny_dev] [--temperature 0] [--reps 3]
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict

import numpy as np

from specprof.data.prompts import builtin
from specprof.decoding.draft_length import AdaptiveK
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.experiments.arms import Arms, load_arms
from specprof.experiments.config import RunConfig
from specprof.experiments.engine import Decoder
from specprof.experiments.run import EncodedPrompt, encode_prompts, request_for, warm_shapes
from specprof.models.registry import get_pair
from specprof.profiling.metrics import GenerationResult, fold

AUTO = "SD-Kauto"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="tiny_dev")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--k-max", type=int, default=8)
    parser.add_argument("--fixed", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=12, help="per domain")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    args = parser.parse_args()
    config = RunConfig(
        get_pair(args.pair), k=max(args.fixed), temperature=args.temperature, max_new_tokens=args.max_new_tokens
    )
    arms = load_arms(config)
    warm_shapes(arms)
    drafter = arms.drafter
    for domain in ("code", "conversation", "summarization"):
        prompts = encode_prompts(config, arms, list(builtin().get_by_domain(domain))[: args.prompts])
        lengths = [*args.fixed, AdaptiveK(args.k_max)]
        decoders: list[Decoder] = [arms.baseline]
        decoders += [SpeculativeDecoder(arms.target, drafter, length) for length in lengths]
        for prompt in prompts[:2]:
            for decoder in decoders:
                next(fold(decoder.events(request_for(config, arms, prompt, -1))))
        report(domain, measure(config, arms, decoders, prompts, args.reps))


def measure(
    config: RunConfig, arms: Arms, decoders: list[Decoder], prompts: list[EncodedPrompt], reps: int
) -> dict[str, dict[str, list[GenerationResult]]]:
    """Results of each arm by prompt."""
    results: dict[str, dict[str, list[GenerationResult]]] = defaultdict(lambda: defaultdict(list))
    order = random.Random(0)
    for repetition in range(reps):
        for prompt in prompts:
            for decoder in order.sample(decoders, len(decoders)):
                result = next(fold(decoder.events(request_for(config, arms, prompt, repetition))))
                results[decoder.label][prompt.prompt.prompt_id].append(result)
    return results


def report(domain: str, results: dict[str, dict[str, list[GenerationResult]]]) -> None:
    speeds = {label: speed(list(by_prompt.values())) for label, by_prompt in results.items()}
    best = max((label for label in speeds if label not in ("AR", AUTO)), key=lambda label: speeds[label])
    ratio, low, high = paired_ratio(results[AUTO], results[best])
    typical = typical_speeds(results)
    best_typical = max((label for label in typical if label != AUTO), key=lambda label: typical[label])
    order = ["AR", *sorted(label for label in speeds if label not in ("AR", AUTO)), AUTO]
    print(f"{domain:14} " + "  ".join(f"{label} {speeds[label]:.0f}" for label in order) + "  tokens/s")
    print(f"{'':14} K auto / best fixed ({best}): {ratio:.3f}   [{low:.3f}, {high:.3f}]")
    same = typical[AUTO] / typical[best_typical]
    print(f"{'':14} each round at the typical time of its length ({best_typical}): {same:.3f}")


def typical_speeds(results: dict[str, dict[str, list[GenerationResult]]]) -> dict[str, float]:
    """Tokens per second of each arm if every round took the median time of all rounds that drafted as many tokens."""
    rounds = {
        label: [round for runs in by_prompt.values() for run in runs for round in run.rounds]
        for label, by_prompt in results.items()
        if label != "AR"
    }
    by_length: dict[int, list[float]] = defaultdict(list)
    for round in (round for some in rounds.values() for round in some):
        by_length[len(round.draft_tokens)].append(round.seconds)
    typical = {length: float(np.median(seconds)) for length, seconds in by_length.items()}
    return {
        label: sum(len(round.emitted_tokens) for round in some)
        / sum(typical[len(round.draft_tokens)] for round in some)
        for label, some in rounds.items()
    }


def speed(prompts: list[list[GenerationResult]]) -> float:
    """Decode tokens per second, pooled over prompts; of each prompt the median repetition."""
    tokens = sum(runs[0].num_decode_tokens for runs in prompts)
    return tokens / sum(float(np.median([run.decode_seconds for run in runs])) for runs in prompts)


def paired_ratio(
    ours: dict[str, list[GenerationResult]], theirs: dict[str, list[GenerationResult]]
) -> tuple[float, float, float]:
    """Ratio of speeds and its 95 % interval over prompts."""
    ids, generator = list(ours), np.random.default_rng(0)
    picks = [ids, *([ids[i] for i in generator.integers(0, len(ids), len(ids))] for _ in range(2000))]
    ratios = [speed([ours[i] for i in pick]) / speed([theirs[i] for i in pick]) for pick in picks]
    low, high = np.percentile(ratios[1:], [2.5, 97.5])
    return ratios[0], float(low), float(high)


if __name__ == "__main__":
    main()
