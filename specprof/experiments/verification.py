"""Decodes with both arms and asks whether every token has the target's law.

The law of each token is computed afterwards, by a pass of the target over the whole text: it shares neither cache nor
width with the passes the token was drawn from. What is tested is in
:data:`~specprof.profiling.verification.CHECKS`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from specprof.decoding.sampling import Sampling
from specprof.experiments.arms import Arms
from specprof.experiments.config import RunConfig
from specprof.experiments.engine import Decoder
from specprof.experiments.run import EncodedPrompt, request_for
from specprof.experiments.tie import diagnose
from specprof.experiments.token_laws import (
    MANY_TOKENS,
    RANK_BINS,
    Generation,
    Place,
    RoundingSample,
    Statistic,
    TokenScores,
    laws_of,
)
from specprof.profiling.events import Prefilled, Round
from specprof.profiling.goodness import MIN_EXPECTED, Scores, Shift, Values, score_test, uniformity_test
from specprof.profiling.verification import (
    CHECK_LEVEL,
    ArmLaw,
    Check,
    GreedyVerification,
    LawVerification,
    Verification,
)

ROUNDING_TOKENS = 256
"""Of each arm, how rounding is measured."""

_SAME_LAW = 1e-4
"""Draft and target that differ by less, as rounding makes them, are one."""


def verify(
    config: RunConfig, arms: Arms, prompts: Sequence[EncodedPrompt], tick: Callable[[], None] = lambda: None
) -> Verification:
    """Put both arms' output to the test: the target's law when sampling, its tokens when greedy.

    Args:
        tick: called after each of :func:`verify_steps`.
    """
    if config.temperature == 0:
        return _verify_greedy(config, arms, prompts, tick)
    control = _verify_arm(config, arms, arms.baseline, prompts, tick)
    return LawVerification(config.temperature, control, _verify_arm(config, arms, arms.speculative, prompts, tick))


def verify_steps(config: RunConfig, prompts: Sequence[EncodedPrompt]) -> int:
    """How often :func:`verify` calls its ``tick``."""
    return (2 if config.temperature == 0 else 4) * config.repetitions * len(prompts)


def _generate(config: RunConfig, arms: Arms, decoder: Decoder, prompt: EncodedPrompt, repetition: int) -> Generation:
    ids: list[int] = []
    places: list[Place] = []
    drafted: list[int | None] = []
    rounds: list[Round] = []
    for event in decoder.events(request_for(config, arms, prompt, repetition)):
        if isinstance(event, Prefilled):
            ids, places, drafted = [event.first_token], ["free"], [None]
        elif isinstance(event, Round):
            k = len(event.draft_tokens)
            for index, token in enumerate(event.emitted_tokens):
                ids.append(token)
                places.append("judged" if index < k else "bonus" if k else "free")
                drafted.append(event.draft_tokens[index] if index < k else None)
            rounds.append(event)
    return Generation(prompt.ids, tuple(ids), tuple(places), tuple(drafted), tuple(rounds))


# Greedy


def _verify_greedy(
    config: RunConfig, arms: Arms, prompts: Sequence[EncodedPrompt], tick: Callable[[], None]
) -> GreedyVerification:
    differences, speculative = [], []
    for repetition, prompt in itertools.product(range(config.repetitions), prompts):
        plain = _generate(config, arms, arms.baseline, prompt, repetition)
        tick()
        speculative.append(_generate(config, arms, arms.speculative, prompt, repetition))
        tick()
        difference = diagnose(
            arms.target,
            prompt.prompt.prompt_id,
            prompt.ids,
            speculative[-1].ids,
            plain.ids,
            arms.speculative.length.longest + 1,
        )
        if difference is not None:
            differences.append(difference)
    drafted, accepted, rejected = _counts(speculative)
    return GreedyVerification(
        len(speculative), sum(len(g.ids) for g in speculative), drafted, accepted, rejected, tuple(differences)
    )


def _counts(generations: Sequence[Generation]) -> tuple[int, int, int]:
    """Drafted, accepted and rejected tokens; what follows a rejected one was not judged."""
    rounds = [round for generation in generations for round in generation.rounds]
    return (
        sum(len(round.draft_tokens) for round in rounds),
        sum(round.num_accepted for round in rounds),
        sum(round.num_accepted < len(round.draft_tokens) for round in rounds),
    )


# Sampling


def _verify_arm(
    config: RunConfig, arms: Arms, decoder: Decoder, prompts: Sequence[EncodedPrompt], tick: Callable[[], None]
) -> ArmLaw:
    speculates = decoder is arms.speculative
    generations = []
    for repetition, prompt in itertools.product(range(config.repetitions), prompts):
        generations.append(_generate(config, arms, decoder, prompt, repetition))
        tick()
    sampling = Sampling(config.temperature, config.top_k, config.top_p)
    drafter = arms.drafter
    width = arms.speculative.length.longest + 1 if speculates else 1
    rounding = RoundingSample(arms.target, drafter, sampling, width)
    for generation in generations:
        if rounding.num_tokens < ROUNDING_TOKENS:
            rounding.observe(generation.beginning(ROUNDING_TOKENS))
    tokens = TokenScores(sampling, rounding.slack)
    for generation in generations:
        for laws in laws_of(arms.target, drafter, generation, sampling):
            tokens.observe(laws)
        tick()
    judged: Place | None = "judged" if speculates else None
    checks = [_draft_check("unjudged", _ratio(tokens, judged), tokens, judged, rounding)]
    if speculates:
        checks.append(_draft_check("corrected", "overlap", tokens, judged, rounding))
        checks.append(_draft_check("bonus", _ratio(tokens, "bonus"), tokens, "bonus", rounding))
    checks.append(_sharpness_check(tokens, rounding))
    if speculates:
        checks.append(_acceptance_check(generations))
    checks.append(_ranks_check(tokens.numbers(np.random.default_rng(config.seed)), rounding.bin_shifts()))
    drafted, accepted, rejected = _counts(generations)
    return ArmLaw(
        label=decoder.label,
        num_texts=len(generations),
        num_tokens=sum(len(generation.ids) for generation in generations),
        num_drafted=drafted,
        num_accepted=accepted,
        num_rejected=rejected,
        num_bonus=sum(generation.places.count("bonus") for generation in generations),
        checks=tuple(checks),
        num_impossible=tokens.num_impossible,
        num_borderline=tokens.num_borderline,
        rounding=rounding.result(),
    )


def _check(name: str, scores: Scores, shift: Shift, *, tilts: bool = False) -> Check:
    """``tilts``: as :func:`score_test` has it; else what is looked for is a share of tokens."""
    score = score_test(scores, CHECK_LEVEL, shift, tilts=tilts)
    if score is None:
        return Check(name, len(scores), not_tested=f"too few of {_tokens(scores)} carry the test")
    # No more than all tokens can have a fault: what could miss that tells something only where it fails.
    vacuous = not tilts and score.detectable > 1
    return Check(
        name,
        score.num_tokens,
        p=score.p,
        z=score.z,
        allowance=score.allowance,
        estimate=score.estimate,
        interval=score.interval,
        detectable=score.detectable,
        not_tested=f"a fault of all {_tokens(scores)} could be missed" if vacuous else None,
    )


def _tokens(values: Scores | Values) -> str:
    return f"{len(values):,} token{'' if len(values) == 1 else 's'}"


def _ratio(tokens: TokenScores, place: Place | None) -> Statistic:
    return "ratio" if tokens.num_at(place) >= MANY_TOKENS else "low ratio"


def _draft_check(
    name: str, kind: Statistic, tokens: TokenScores, place: Place | None, rounding: RoundingSample
) -> Check:
    scores = tokens.scores(kind, place)
    if not len(scores):
        no_place = "no draft was accepted whole" if name == "bonus" else "nothing was drafted"
        unknown = "what the draft would propose at a given place is not known afterwards"
        return Check(name, 0, not_tested=unknown if tokens.num_at(place) else no_place)
    if scores.slopes.mean() < _SAME_LAW:
        return Check(name, len(scores), not_tested="the draft proposes what the target would")
    return _check(name, scores, rounding.shift(kind))


def _sharpness_check(tokens: TokenScores, rounding: RoundingSample) -> Check:
    scores = tokens.scores("sharpness", None)
    if len(scores) and not scores.variances.any():
        return Check("sharpness", len(scores), not_tested="the target is certain of every token")
    return _check("sharpness", scores, rounding.shift("sharpness"), tilts=True)


def _acceptance_check(generations: Sequence[Generation]) -> Check:
    """At each place that was judged, a draft token is accepted with probability alpha, whatever was accepted before."""
    alphas: list[float] = []
    accepted: list[bool] = []
    for generation in generations:
        for round in generation.rounds:
            judged = (round.alpha or ())[: round.num_accepted + 1]
            alphas += judged
            accepted += [index < round.num_accepted for index in range(len(judged))]
    if not alphas:
        return Check("acceptance", 0, not_tested="nothing was drafted")
    alpha = np.clip(np.asarray(alphas, dtype=np.float64), 0.0, 1.0)  # a sum of probabilities may round to more than 1
    for outcome, expected, seen in (
        ("accepted", alpha.sum(), sum(accepted)),
        ("rejected", (1 - alpha).sum(), len(accepted) - sum(accepted)),
    ):
        if max(expected, seen) < MIN_EXPECTED:
            few = f"only {seen} of {len(alpha)} draft tokens were" if seen else "nothing was"
            return Check("acceptance", len(alpha), not_tested=f"{few} {outcome}")
    variance = alpha * (1 - alpha)
    growth = (1 - alpha) * (1 - 2 * alpha)
    scores = Scores(np.asarray(accepted) - alpha, variance, variance * (1 - 2 * alpha), 1 - alpha, growth)
    return _check("acceptance", scores, Shift())


def _ranks_check(numbers: Values, shifts: tuple[Shift, ...]) -> Check:
    if not np.isfinite(numbers).all():
        return Check("ranks", len(numbers), not_tested="the target gives some tokens a probability that is no number")
    found = uniformity_test(numbers, CHECK_LEVEL, bins=RANK_BINS, shifts=shifts)
    if found is None:
        return Check("ranks", len(numbers), not_tested=f"{_tokens(numbers)} are too few for {RANK_BINS} bins")
    return Check(
        "ranks",
        found.num_tokens,
        p=found.p,
        chi_square=found.chi_square,
        degrees_of_freedom=found.degrees_of_freedom,
        allowance=found.allowance,
        detectable=found.detectable,
    )
