"""What a draft of another vocabulary costs and loses: tiny_cross beside tiny_dev, which has the same target.

Prints the acceptance of both by class of the token that the target chose, and the time that translating between the
vocabularies takes, as a share of the time spent drafting.

    python benchmarks/cross_vocabulary.py [--k 4] [--temperature 0] [--prompts 36]
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from time import perf_counter
from typing import Any

from specprof.data.prompts import builtin
from specprof.decoding.drafters import DraftModel
from specprof.decoding.token_bytes import TokenBytes
from specprof.decoding.translation import TokenIntersection
from specprof.experiments.arms import Arms, load_arms
from specprof.experiments.config import RunConfig
from specprof.experiments.run import encode_prompts, request_for, warm_shapes
from specprof.models.registry import get_pair
from specprof.profiling.acceptance import AcceptanceCounts
from specprof.profiling.events import Round

TRANSLATING = ("restrict", "proposed", "laws", "context", "settle")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--prompts", type=int, default=36)
    args = parser.parse_args()
    base = RunConfig(get_pair("tiny_dev"), k=args.k, temperature=args.temperature)
    methods = ["tli", "slem"] if args.temperature == 0 else ["tli"]
    configs = {"tiny_dev": base}
    configs |= {m: dataclasses.replace(base, pair=get_pair("tiny_cross"), vocab_method=m) for m in methods}
    mapped: set[int] = set()
    pieces: dict[int, bytes] = {}
    rows = {}
    for name, config in configs.items():
        arms = load_arms(config)
        if name == "tli":
            mapped = set(arms.vocabulary.to_target.values()) if arms.vocabulary else set()
            tokens = TokenBytes.of(arms.tokenizer)
            pieces = tokens.by_id if tokens else {}
        rows[name] = rounds_of(config, arms, args.prompts)
    print(
        f"K = {args.k}, temperature {args.temperature:g}, {args.prompts} prompts; share accepted where judged, by token"
    )
    for name, rounds in rows.items():
        counts = AcceptanceCounts.of(rounds, greedy=args.temperature == 0)
        line = (
            f"{name:10} {counts.mean_acceptance_length:.3f} tokens/round, {counts.draft_acceptance_rate:.3f} accepted"
        )
        print(line + "; " + by_class(rounds, mapped, pieces))


def rounds_of(config: RunConfig, arms: Arms, num_prompts: int) -> list[Round]:
    """All complete rounds over the packaged prompts; prints what translating took."""
    warm_shapes(arms)
    drafter, spent = arms.drafter, Counter[str]()
    if isinstance(drafter, DraftModel) and isinstance(drafter.translation, TokenIntersection):
        for name in TRANSLATING:
            setattr(drafter.translation, name, timed(getattr(drafter.translation, name), name, spent))
    rounds = []
    for prompt in encode_prompts(config, arms, list(builtin().take(num_prompts))):
        events = arms.speculative.events(request_for(config, arms, prompt, 0))
        rounds += [event for event in events if isinstance(event, Round) and not event.cut]
    if spent:
        drafting = sum(round.draft_seconds for round in rounds)
        shares = ", ".join(f"{name} {seconds / drafting:.1%}" for name, seconds in spent.items())
        print(f"translating takes {sum(spent.values()) / drafting:.1%} of the drafting time ({shares})")
    return rounds


def timed(call: Callable[..., Any], name: str, spent: Counter[str]) -> Callable[..., Any]:
    @functools.wraps(call)
    def wrapper(*args: Any) -> Any:
        begin = perf_counter()
        result = call(*args)
        spent[name] += perf_counter() - begin  # type: ignore[assignment]  # a Counter of seconds
        return result

    return wrapper


def by_class(rounds: list[Round], mapped: set[int], pieces: dict[int, bytes]) -> str:
    """Share accepted of the target's own choices, up to and including the first rejected, by class of token."""

    def kind(token: int) -> str:
        if not pieces.get(token, b" ").isascii():
            return "not ASCII"
        return "in both vocabularies" if token in mapped else "the target's only"

    judged, accepted = Counter[str](), Counter[str]()
    for round in rounds:
        judged.update(map(kind, round.emitted_tokens[: len(round.draft_tokens)]))
        accepted.update(map(kind, round.emitted_tokens[: round.num_accepted]))
    total = sum(judged.values())
    parts = (f"{name} ({judged[name] / total:.0%}) {accepted[name] / judged[name]:.2f}" for name in sorted(judged))
    return ", ".join(parts)


if __name__ == "__main__":
    main()
