"""Whether tokens follow the target's law: a sound engine passes, every broken one is found, and nothing is vacuous."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from specprof.data.prompts import Prompt
from specprof.decoding import judge
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import Draft, Drafter, DraftModel, LayerSkip, NGramLookup, RandomTokens
from specprof.decoding.rejection import count_accepted, next_token_probs
from specprof.decoding.sampling import Sampling, probabilities
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.experiments import token_laws, verification
from specprof.experiments.arms import Arms
from specprof.experiments.config import RunConfig
from specprof.experiments.run import EncodedPrompt
from specprof.experiments.verification import verify, verify_steps
from specprof.models.registry import get_pair
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.verification import (
    CHECK_LEVEL,
    CHECKS,
    CONTROL_CHECKS,
    FAMILY_LEVEL,
    ArmLaw,
    Check,
    GreedyVerification,
    LawVerification,
    Rounding,
)
from specprof.reports import verify as report
from specprof.reports.tables import to_text
from tiny_models import tiny_gpt2

VOCAB = 24
ALL = list(CHECKS)
PROMPTS = [EncodedPrompt(Prompt(f"p{i}", "custom", "-"), (1 + i, 2, 3, 2 + i)) for i in range(4)]


@functools.cache
def target(dtype: torch.dtype = torch.float32) -> ModelWrapper:
    model = copy.deepcopy(tiny_gpt2(vocab_size=VOCAB)).to(dtype)
    return ModelWrapper(model, measure_linear=False)


@functools.cache
def draft(dtype: torch.dtype = torch.float32, noise: float = 0.35) -> ModelWrapper:
    """The target with noise on its weights: often right, often wrong."""
    model = copy.deepcopy(tiny_gpt2(vocab_size=VOCAB))
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.add_(noise * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return ModelWrapper(model.to(dtype), measure_linear=False)


def arms_of(drafter: Drafter | None = None, *, k: int = 2, model: ModelWrapper | None = None) -> Arms:
    model = model or target()
    speculative = SpeculativeDecoder(model, drafter or DraftModel(draft()), k)
    return Arms(model, None, AutoregressiveDecoder(model), speculative, None, 0, (), None, None, {})


def asked(**changes: Any) -> RunConfig:
    settings = {"k": 2, "temperature": 0.8, "max_new_tokens": 120, "repetitions": 1, "ignore_eos": True}
    return RunConfig(get_pair("tiny_dev"), **(settings | changes))


def verified(drafter: Drafter | None = None, **changes: Any) -> LawVerification:
    config = asked(**changes)
    found = verify(config, arms_of(drafter, k=config.longest_draft), PROMPTS)
    assert isinstance(found, LawVerification)
    return found


def check(arm: ArmLaw, name: str) -> Check:
    return next(check for check in arm.checks if check.name == name)


# --- a sound engine


@functools.cache
def sound(seed: int = 0) -> LawVerification:
    return verified(seed=seed, repetitions=2, max_new_tokens=90)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_a_sound_engine_passes(seed: int) -> None:
    found = sound(seed)
    assert found.verdict == "passed" and not found.control.failures
    arm = found.speculative
    assert [check.name for check in arm.tested] == ALL
    assert [check.name for check in found.control.tested] == list(CONTROL_CHECKS) == ["unjudged", "sharpness", "ranks"]
    # One false alarm in ten thousand verifications: of all tests of both arms.
    assert CHECK_LEVEL * (len(arm.checks) + len(found.control.checks)) == pytest.approx(FAMILY_LEVEL) == 1e-4
    # It was put to the test: drafts were accepted, rejected and accepted whole.
    assert arm.num_tokens == 720 and min(arm.num_accepted, arm.num_rejected, arm.num_bonus) > 70
    assert arm.num_drafted > arm.num_accepted + arm.num_rejected
    for name in ("unjudged", "acceptance", "sharpness"):
        found_from, interval = check(arm, name).detectable, check(arm, name).interval
        assert found_from is not None and interval is not None and 0 < found_from < 0.25
        assert interval[1] - interval[0] < found_from


@pytest.mark.slow
def test_the_same_seed_finds_the_same() -> None:
    assert verified(max_new_tokens=30) == verified(max_new_tokens=30) != verified(max_new_tokens=30, seed=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"top_k": 6, "top_p": 0.8, "max_new_tokens": 40},
        *(
            pytest.param(changes, marks=pytest.mark.slow)
            for changes in ({"top_k": 6, "top_p": 0.8}, {"top_k": 5}, {"top_p": 0.9}, {"temperature": 1.5})
        ),
    ],
    ids=str,
)
def test_every_manner_of_sampling_passes(changes: dict[str, Any]) -> None:
    found = verified(**changes)
    assert found.verdict == "passed"
    assert found.speculative.num_impossible == found.control.num_impossible == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_measured_and_allowed_for(dtype: torch.dtype) -> None:
    drafter = DraftModel(draft(dtype))
    found = verify(asked(top_k=8, max_new_tokens=70), arms_of(drafter, model=target(dtype)), PROMPTS)
    assert isinstance(found, LawVerification) and found.verdict == "passed"
    for arm, width in ((found.speculative, 3), (found.control, 1)):
        assert arm.rounding is not None and arm.rounding.width == width
        assert 1e-6 < arm.rounding.mean_total_variation < arm.rounding.limit
        assert arm.rounding.num_tokens == 280
        allowance = check(arm, "sharpness").allowance
        assert allowance is not None and 1e-4 < allowance < 1
    exact = sound().speculative
    assert all((check.allowance or 0) < 1e-3 for check in exact.checks)


DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "ngram": lambda: NGramLookup(VOCAB, target().device),
    "layerskip": lambda: LayerSkip(target(), 1),
    "random": lambda: RandomTokens(VOCAB, target().device),
    "threshold": lambda: DraftModel(draft(), threshold=0.3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAFTERS)
def test_every_drafter_passes_and_is_tested(name: str) -> None:
    arm = verified(DRAFTERS[name]()).speculative
    assert not arm.failures
    assert {"unjudged", "sharpness", "acceptance", "ranks"} <= {check.name for check in arm.tested}


# --- broken engines


def resampled_from_target(monkeypatch: pytest.MonkeyPatch) -> Drafter:
    def wrong(target_probs: Tensor, draft_probs: Tensor, num_accepted: Tensor) -> Tensor:
        return target_probs[num_accepted]

    monkeypatch.setattr(judge, "next_token_probs", wrong)
    return DraftModel(draft())


def accepts_everything(monkeypatch: pytest.MonkeyPatch) -> Drafter:
    def wrong(target_prob: Tensor, draft_prob: Tensor, uniforms: Tensor) -> Tensor:
        return torch.tensor(len(target_prob))

    monkeypatch.setattr(judge, "count_accepted", wrong)
    return DraftModel(draft())


def accepts_by_temperature_1(monkeypatch: pytest.MonkeyPatch) -> Drafter:
    def wrong(target_prob: Tensor, draft_prob: Tensor, uniforms: Tensor) -> Tensor:
        # p^T / q^T is the ratio at temperature 1 up to the normalisers.
        return count_accepted(target_prob**0.8, draft_prob**0.8, uniforms)

    monkeypatch.setattr(judge, "count_accepted", wrong)
    return DraftModel(draft())


def bonus_from_the_draft(monkeypatch: pytest.MonkeyPatch) -> Drafter:
    drafter = Further(draft())

    def wrong(target_probs: Tensor, draft_probs: Tensor, num_accepted: Tensor) -> Tensor:
        if int(num_accepted) < len(draft_probs):
            return next_token_probs(target_probs, draft_probs, num_accepted)
        return drafter.beyond

    monkeypatch.setattr(judge, "next_token_probs", wrong)
    return drafter


def laws_of_the_place_before(monkeypatch: pytest.MonkeyPatch) -> Drafter:
    return OffByOne(draft())


def lets_a_third_through(monkeypatch: pytest.MonkeyPatch) -> Drafter:
    def wrong(target_prob: Tensor, draft_prob: Tensor, uniforms: Tensor) -> Tensor:
        leaks = torch.rand(len(uniforms), generator=generator) < 1 / 3
        return count_accepted(target_prob, draft_prob, torch.where(leaks, 0.0, uniforms))

    generator = torch.Generator().manual_seed(1)
    monkeypatch.setattr(judge, "count_accepted", wrong)
    return DraftModel(draft())


class Further(DraftModel):
    """Knows its law after the last proposed token too."""

    def propose(self, k: int) -> Draft:
        longer = super().propose(k + 1)
        assert longer.probs is not None
        self.beyond = longer.probs[-1]
        return Draft(longer.tokens[:k], longer.probs[:k] if k else None)


class OffByOne(DraftModel):
    """Says of each token the law that the one before was drawn from."""

    def propose(self, k: int) -> Draft:
        proposed = super().propose(k)
        return proposed if proposed.probs is None else Draft(proposed.tokens, proposed.probs.roll(1, 0))


@pytest.mark.parametrize(
    ("broken", "found_by", "repetitions"),
    [
        (lets_a_third_through, "unjudged", 1),
        *(
            pytest.param(*broken, marks=pytest.mark.slow)
            for broken in (
                (resampled_from_target, "corrected", 2),
                (accepts_everything, "unjudged", 1),
                (accepts_by_temperature_1, "acceptance", 8),
                (bonus_from_the_draft, "bonus", 2),
                (laws_of_the_place_before, "acceptance", 1),
            )
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_engine_is_found(
    broken: Callable[[pytest.MonkeyPatch], Drafter], found_by: str, repetitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = verified(broken(monkeypatch), repetitions=repetitions)
    assert found.verdict == "failed" and found_by in found.speculative.failures
    assert not found.control.failures  # which plain decoding is not blamed for
    first = report.sentences(found)[0]
    assert first.startswith("The output is not the target's: ") and report.NAMES[found_by] in first
    assert "plain decoding passes its own 3 tests" in first
    assert f"(p {check(found.speculative, found_by).p:.2g})" in " ".join(report.sentences(found))
    assert sum("looks" in sentence for sentence in report.sentences(found)) == 1


@pytest.mark.slow
def test_the_size_of_a_fault_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = verified(lets_a_third_through(monkeypatch)).speculative
    for name in ("unjudged", "acceptance"):
        share = check(arm, name).estimate
        assert share is not None and 0.15 < share < 0.5
    monkeypatch.undo()
    arm = verified(resampled_from_target(monkeypatch), repetitions=2).speculative
    interval = check(arm, "corrected").interval
    assert interval is not None and 0.3 < interval[0] < 1 < interval[1] < 1.9
    monkeypatch.undo()
    found = verified(accepts_everything(monkeypatch))
    sentences = report.sentences(found)
    nearly_all = r"(all|9\d % \[\d+, 100\])"  # by what was drawn
    assert re.match(rf"It looks as if {nearly_all} of the draft's tokens were let through unjudged \(p ", sentences[1])
    assert all(sentence.startswith("Also, ") for sentence in sentences[2:])
    interval = check(found.speculative, "corrected").interval
    assert interval is not None and interval[0] > 1 and "over 100 %" in rendered(found)


@pytest.mark.slow
def test_another_temperature_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def cold(logits: Tensor, sampling: Sampling) -> Tensor:
        return probabilities(logits, dataclasses.replace(sampling, temperature=0.6))

    monkeypatch.setattr(judge, "probabilities", cold)
    arm = verified().speculative
    assert "sharpness" in arm.failures
    interval = check(arm, "sharpness").interval
    assert interval is not None and interval[0] > 0  # a sharper law
    assert 0.55 < 0.8 / (1 + (check(arm, "sharpness").estimate or 0)) < 0.65
    assert interval[0] < 0.8 / 0.6 - 1 < interval[1]


def test_rejecting_everything_is_not_called_a_negative_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(target_prob: Tensor, draft_prob: Tensor, uniforms: Tensor) -> Tensor:
        return torch.tensor(0)

    monkeypatch.setattr(judge, "count_accepted", wrong)
    found = verified(max_new_tokens=60)
    assert found.verdict == "failed" and (check(found.speculative, "acceptance").estimate or 0) < 0
    sentences = " ".join(report.sentences(found))
    assert "Draft tokens are accepted less often than both models' probabilities say" in sentences
    assert "looks" not in sentences and " -" not in sentences


def test_a_token_that_top_k_excludes_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def wider(logits: Tensor, sampling: Sampling) -> Tensor:
        return probabilities(logits, dataclasses.replace(sampling, top_k=sampling.top_k + 1))

    monkeypatch.setattr(judge, "probabilities", wider)
    found = verified(top_k=4, max_new_tokens=40)
    assert found.speculative.num_impossible > 0 and "impossible" in found.speculative.failures
    assert found.verdict == "failed" and found.control.num_impossible == 0


class Inaccurate(ModelWrapper):
    """Passes of some widths behind a prompt compute something else."""

    widths: Sequence[int] = ()

    def extend(self, ids: Tensor, cache: Any, num_logits: int = 1, early: Any = None) -> Tensor:
        wrong = cache.length > 0 and len(ids) in self.widths
        logits = super().extend(ids, cache, num_logits, early)
        return logits.roll(1, -1) if wrong else logits


@pytest.mark.parametrize(
    ("widths", "verdict"), [((3,), "failed"), pytest.param((1, 2, 3), "control failed", marks=pytest.mark.slow)]
)
def test_passes_that_compute_something_else_are_no_rounding(widths: Sequence[int], verdict: str) -> None:
    model = Inaccurate(target().model, measure_linear=False)
    model.widths = widths
    found = verify(asked(max_new_tokens=40), arms_of(model=model), PROMPTS)
    assert isinstance(found, LawVerification) and found.verdict == verdict
    assert "rounding" in found.speculative.failures
    sentences = report.sentences(found)
    if verdict == "control failed":
        assert sentences[0].startswith("Plain decoding itself fails (")
    assert any("they don't compute the same" in sentence for sentence in sentences)
    assert not any("looks" in sentence for sentence in sentences)  # nothing follows from laws that are not known


class NoNumbers(ModelWrapper):
    """Passes over long texts overflow."""

    def extend(self, ids: Tensor, cache: Any, num_logits: int = 1, early: Any = None) -> Tensor:
        logits = super().extend(ids, cache, num_logits, early)
        return logits * torch.nan if num_logits > 8 else logits


def test_laws_that_are_no_numbers_fail_and_are_not_printed() -> None:
    found = verify(asked(max_new_tokens=40), arms_of(model=NoNumbers(target().model, measure_linear=False)), PROMPTS)
    assert isinstance(found, LawVerification) and found.verdict == "control failed"
    sentences = report.sentences(found)
    assert "The target's passes compute probabilities that are no numbers." in sentences
    assert found.control.num_impossible == found.control.num_tokens == 160
    assert "nan" not in rendered(found).lower()
    assert json.dumps(report.to_dict(found), allow_nan=False)


# --- what can't be tested is said


def test_a_draft_that_is_the_target_puts_nothing_to_the_test() -> None:
    found = verified(DraftModel(target()), max_new_tokens=60)
    assert found.verdict == "passed" and found.speculative.num_rejected == 0
    assert check(found.speculative, "acceptance").not_tested == "nothing was rejected"
    assert check(found.speculative, "unjudged").not_tested == "the draft proposes what the target would"
    assert any(sentence == "Not tested, acceptance: nothing was rejected." for sentence in report.sentences(found))
    assert "not tested" in rendered(found)


def test_without_a_draft_nothing_was_tested() -> None:
    never = DraftModel(draft())
    never.propose = lambda k: Draft(torch.zeros(0, dtype=torch.long), None)  # type: ignore[method-assign]
    found = verified(never, max_new_tokens=30)
    assert found.verdict == "not tested" and report.sentences(found)[0] == "Not tested: nothing was drafted."


def test_a_few_tokens_are_too_few() -> None:
    found = verified(max_new_tokens=16)
    assert found.verdict == "passed"
    few = check(found.speculative, "corrected")
    assert few.p is not None and few.detectable is not None and few.detectable > 1
    assert few.not_tested == f"a fault of all {few.num_tokens} tokens could be missed"
    assert few not in found.speculative.tested
    assert f"Not tested, corrected tokens: {few.not_tested}." in report.sentences(found)


def test_certainty_and_too_few_tokens_are_told_apart() -> None:
    certain = check(verified(top_k=1, max_new_tokens=20).control, "sharpness")
    assert certain.p is None and certain.not_tested == "the target is certain of every token"
    few = check(verified(max_new_tokens=8).speculative, "bonus")
    assert few.p is None and few.not_tested == f"too few of {few.num_tokens} tokens carry the test"


def test_one_token_tests_nothing() -> None:
    ticks: list[None] = []
    config = asked(max_new_tokens=1)
    found = verify(config, arms_of(), PROMPTS, lambda: ticks.append(None))
    assert isinstance(found, LawVerification) and found.verdict == "not tested" and rendered(found)
    assert len(ticks) == verify_steps(config, PROMPTS) == 16


# --- laws afterwards


@pytest.mark.parametrize("name", [*DRAFTERS, "model", "in portions"])
def test_laws_afterwards_are_those_that_tokens_were_judged_by(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "in portions":
        monkeypatch.setattr(token_laws, "_LOGITS_AT_ONCE", 7 * VOCAB)
    drafter = DRAFTERS[name]() if name in DRAFTERS else DraftModel(draft())
    arms, config = arms_of(drafter, k=3), asked(k=3, max_new_tokens=40, top_k=12)
    generation = verification._generate(config, arms, arms.speculative, PROMPTS[1], 0)
    portions = list(token_laws.laws_of(target(), drafter, generation, Sampling(0.8, top_k=12)))
    assert (len(portions) > 1) == (name == "in portions")
    wholly = torch.cat([laws.target for laws in portions])
    ids = torch.tensor([*generation.prompt_ids, *generation.ids])[None]
    logits, _ = target().forward(ids, use_cache=False)
    expected = probabilities(logits[0, len(generation.prompt_ids) - 1 : -1], Sampling(0.8, top_k=12))
    torch.testing.assert_close(wholly, expected, rtol=1e-3, atol=1e-6)
    proposed = torch.cat([laws.draft for laws in portions if laws.draft is not None])
    row, compared = 1, 0
    for round in generation.rounds:
        assert round.target_prob is not None or not round.draft_tokens
        for index in range(min(round.num_accepted + 1, len(round.draft_tokens))):
            token = round.draft_tokens[index]
            assert generation.places[row + index] == "judged" and generation.drafted[row + index] == token
            assert round.target_prob is not None and round.draft_prob is not None
            assert float(wholly[row + index, token]) == pytest.approx(round.target_prob[index], rel=1e-3, abs=1e-6)
            assert float(proposed[row + index, token]) == pytest.approx(round.draft_prob[index], rel=1e-3, abs=1e-6)
            compared += 1
        row += len(round.emitted_tokens)
    assert row == len(generation.ids) == 40 and compared > 10


# --- greedy


def test_greedy_texts_are_compared_token_by_token() -> None:
    ticks: list[None] = []
    config = asked(temperature=0.0, max_new_tokens=40)
    found = verify(config, arms_of(), PROMPTS, lambda: ticks.append(None))
    assert isinstance(found, GreedyVerification) and found.verdict == "passed"
    assert (found.num_texts, found.num_tokens, found.differences) == (4, 160, ())
    assert min(found.num_accepted, found.num_rejected) > 10
    assert len(ticks) == verify_steps(config, PROMPTS)
    assert (
        report.sentences(found)[0]
        == "The output is the target's: token for token plain decoding's, over 4 texts, 160 tokens."
    )


def test_a_greedy_engine_that_accepts_everything_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: judge.Judge, ruling: judge.Ruling) -> judge.Verdict:
        tokens = ruling.tokens.tolist()
        k = len(tokens) // 2
        return judge.Verdict(tuple(tokens[:k]), k, tokens[-1])

    monkeypatch.setattr(judge.Judge, "read", wrong)
    found = verify(asked(temperature=0.0, max_new_tokens=20), arms_of(), PROMPTS)
    assert isinstance(found, GreedyVerification) and found.verdict == "failed"
    assert {difference.verdict for difference in found.differences} == {"failure"}
    assert "differ from plain decoding's by more than rounding" in report.sentences(found)[0]
    assert "failure" in rendered(found) and PROMPTS[0].prompt.prompt_id in rendered(found)
    assert len(report.to_dict(found)["differences"]) == len(found.differences)


# --- shown


def rendered(found: LawVerification | GreedyVerification) -> str:
    return to_text(report.render(found, title="a pair"), width=100, color=False)


def test_a_power_of_nothing_is_a_dash() -> None:
    found = verified(max_new_tokens=12)
    sharpness = check(found.control, "sharpness")
    assert sharpness.detectable == float("inf") and sharpness.p is not None
    row = next(line for line in rendered(found).split("AR (control")[1].splitlines() if line.startswith("temperature"))
    assert row.split()[-1] == "-"
    assert json.dumps(report.to_dict(found), allow_nan=False)


def test_what_is_shown_and_what_is_written_are_the_same_numbers() -> None:
    found = sound()
    document = report.to_dict(found)
    assert json.loads(json.dumps(document, allow_nan=False))["verdict"] == "passed"
    speculative = document["arms"]["speculative"]
    assert [check["name"] for check in speculative["checks"]] == ALL
    tested = [check for check in speculative["checks"] if check["not_tested"] is None]
    assert len(tested) >= 4 and speculative["smallest_p"] == min(check["p"] for check in tested)
    text = rendered(found)
    assert document["sentences"][0] in text
    assert f"smallest p {speculative['smallest_p']:.2g} (level 1.1e-05)" in text
    share = min(c["detectable"] for c in speculative["checks"] if c["name"] in ("unjudged", "acceptance"))
    assert f"A sampler that let {share * 100:.2g} % of the draft's tokens through unjudged" in document["sentences"][1]
    for row in tested:
        if row["z"] is not None:
            assert f"{row['z']:+.2f}" in text and f"{row['p']:.2g}" in text


# --- what a failure is called


def arm_with(*checks: Check, **changes: Any) -> ArmLaw:
    rounding = Rounding(3, 256, 1e-6, 1e-7, 1e-3)
    return dataclasses.replace(ArmLaw("SD-K2", 4, 480, 300, 200, 60, 70, checks, 0, 0, rounding), **changes)


def failure(name: str, estimate: float, z: float = 9.0, width: float = 0.1, p: float = 1e-19) -> Check:
    interval = (estimate - width, estimate + width)
    return Check(name, 300, p=p, z=z, allowance=0.0, estimate=estimate, interval=interval, detectable=0.1)


def told(*checks: Check, **changes: Any) -> list[str]:
    """What is said of an arm after the verdict."""
    control = arm_with(
        Check("ranks", 480, p=0.5, chi_square=18.0, degrees_of_freedom=19, allowance=0.0, detectable=0.3)
    )
    found = LawVerification(0.8, control, arm_with(*checks, **changes))
    assert found.verdict == "failed" and rendered(found)
    assert report.sentences(found)[0].endswith("; plain decoding passes its own 1 test.")
    return report.sentences(found)[1:]


def test_one_failure_is_explained_and_the_others_are_told() -> None:
    assert told(failure("acceptance", 0.2, z=8), failure("unjudged", 0.25, z=30), failure("ranks", 0, z=0)) == [
        "It looks as if 25 % [15, 35] of the draft's tokens were let through unjudged (p 1e-19).",
        "Also, draft tokens are accepted more often than both models' probabilities say (p 1e-19).",
        "Also, likely and unlikely tokens do not come as often as the target's law says (p 1e-19).",
    ]
    # What rounding may have moved is no evidence.
    moved = dataclasses.replace(failure("unjudged", 0.25, z=30), allowance=25.0)
    assert "to be rejected were accepted" in told(failure("acceptance", 0.2, z=8), moved)[0]


def test_no_share_is_above_all_or_below_none() -> None:
    assert told(failure("corrected", 4.33), failure("bonus", -0.4, z=-9.0)) == [
        "Tokens that would be accepted if drafted come more often than the target's law says (p 1e-19).",
        "Bonus tokens are less like the draft's than the target's law makes them (p 1e-19).",
    ]
    assert told(failure("bonus", 1.04)) == ["It looks as if all of the bonus tokens came from the draft (p 1e-19)."]
    assert told(failure("unjudged", 0.98))[0].startswith("It looks as if 98 % [88, 100] of the draft's tokens ")


def test_temperatures_that_there_can_be() -> None:
    assert told(failure("sharpness", 0.6))[0] == "It looks like a temperature of 0.5 [0.471, 0.533] (p 1e-19)."
    assert "like a temperature of 8 [4, ∞]" in told(failure("sharpness", -0.9, z=-9.0))[0]
    flat = told(failure("sharpness", -1.2, z=-9.0))
    assert flat == ["Likely tokens come less often than the target's law says (p 1e-19)."]
    frozen = dataclasses.replace(failure("sharpness", float("inf")), interval=(float("inf"), float("inf")))
    assert told(frozen) == ["It looks like a temperature of 0 [0, 0] (p 1e-19)."]


def test_a_p_value_is_never_nothing() -> None:
    assert told(failure("acceptance", 0.2, p=0.0))[0].endswith("were accepted (p < 1e-300).")


def test_impossible_tokens_are_counted() -> None:
    assert told(num_impossible=1) == [
        "1 token has probability 0, or none that is a number: no such token can be drawn."
    ]
    assert told(num_impossible=7)[0].startswith("7 tokens have probability 0")


def test_a_control_that_fails_is_not_always_rounding() -> None:
    speculative = arm_with(failure("ranks", 0, p=0.4))
    found = LawVerification(0.8, arm_with(failure("sharpness", 0.6)), speculative)
    sentences = report.sentences(found)
    assert found.verdict == "control failed" and not any("in a single pass" in sentence for sentence in sentences)
    assert "The fault is in what both arms share, the target's passes and the sampler, or in this test." in sentences
    assert "SD-K2 passes." in sentences
    untested = LawVerification(0.8, found.control, arm_with())
    assert "SD-K2 could not be tested." in report.sentences(untested)


# --- tokens at the border of what top-k and top-p keep


@pytest.mark.parametrize(
    ("sampling", "token", "slack", "possible"),
    [
        (Sampling(1.0, top_k=2), 2, 0.0, False),
        (Sampling(1.0, top_k=2), 2, 0.04, False),
        (Sampling(1.0, top_k=2), 2, 0.06, True),  # 0.1 below the second: either may move
        (Sampling(0.5, top_k=2), 2, 0.06, True),
        (Sampling(1.0, top_k=2), 3, 0.06, False),
        (Sampling(1.0, top_p=0.6), 1, 0.0, True),  # the first has 0.5103 of the mass
        (Sampling(1.0, top_p=0.505), 1, 0.0, False),
        (Sampling(1.0, top_p=0.505), 1, 0.02, True),
        (Sampling(1.0, top_p=0.4), 1, 0.02, False),
        (Sampling(1.0, top_k=2, top_p=0.99), 3, 0.06, False),
        (Sampling(1.0, top_k=2, top_p=0.99), 2, 0.06, True),
    ],
)
def test_a_token_at_the_border(sampling: Sampling, token: int, slack: float, possible: bool) -> None:
    logits = torch.tensor([2.0, 1.1, 1.0, 0.0, -1.0])
    assert token_laws._within_rounding(logits, token, sampling, slack) is possible
