"""Where two greedy texts part: rounding at a tie, or a fault."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import DraftModel
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.experiments.tie import diagnose
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.output_match import first_difference
from specprof.profiling.verification import Difference
from tiny_models import tiny_llama

PROMPT = (5, 17, 3, 40)
LENGTH = 12
NO_STOP: frozenset[int] = frozenset()
LOW = [torch.bfloat16, torch.float16]
VOCAB = 61


@functools.cache
def target(dtype: torch.dtype) -> ModelWrapper:
    return ModelWrapper(copy.deepcopy(tiny_llama(vocab_size=VOCAB)).to(dtype), measure_linear=False)


def plain(model: ModelWrapper, length: int = LENGTH) -> list[int]:
    return AutoregressiveDecoder(model).generate(PROMPT, length, stop_ids=NO_STOP).generated_ids


def doubled(dtype: torch.dtype, position: int, scale: float) -> tuple[ModelWrapper, list[int], int]:
    """A model, its text, and a token that is ``scale`` times as likely, in logits, as the one at a position."""
    text = plain(target(dtype))
    token = text[position]
    other = next(i for i in range(VOCAB) if i not in text)
    model = copy.deepcopy(target(dtype).model)
    model.lm_head.weight[other] = model.lm_head.weight[token] * scale
    return ModelWrapper(model, measure_linear=False), text, other


def parted(model: ModelWrapper, text: Sequence[int], position: int, token: int) -> list[int]:
    """The text with another token at a position, and what the model makes of it from there."""
    begun = [*text[:position], token]
    room = len(text) - len(begun)
    if not room:
        return begun
    decoder = AutoregressiveDecoder(model)
    return [*begun, *decoder.generate([*PROMPT, *begun], room, stop_ids=NO_STOP).generated_ids]


def diagnosed(model: ModelWrapper, speculative: Sequence[int], ar: Sequence[int], width: int = 4) -> Difference:
    found = diagnose(model, "p", PROMPT, speculative, ar, width)
    assert found is not None
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()
    return found


@pytest.mark.parametrize("position", [0, 1, 7])
@pytest.mark.parametrize("dtype", [*LOW, torch.float32], ids=str)
def test_equal_rows_of_the_head_are_a_tie(dtype: torch.dtype, position: int) -> None:
    model, text, other = doubled(dtype, position, 1.0)
    found = diagnosed(model, parted(model, text, position, other), text)
    assert (found.verdict, found.position, found.gap, found.top2_gap) == ("tie", position, 0.0, 0.0)
    assert (found.speculative_token, found.plain_token) == (other, text[position])
    assert found.dtype == str(dtype).removeprefix("torch.") and 0 < found.tolerance < 0.5
    # Which of the two has it makes no difference.
    assert diagnosed(model, text, parted(model, text, position, other)).verdict == "tie"


def test_what_follows_a_tie_has_to_be_the_targets_choice_too() -> None:
    model, text, other = doubled(torch.float32, 3, 1.0)
    speculative = parted(model, text, 3, other)
    assert diagnosed(model, speculative, text).verdict == "tie"
    for position in (4, len(text) - 1):
        wrong = next(i for i in range(VOCAB) if i not in (*text, *speculative))
        broken = [*speculative[:position], wrong, *speculative[position + 1 :]]
        assert diagnosed(model, broken, text).verdict == "failure"


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_a_gap_of_a_rounding_step_is_a_tie_and_a_larger_one_is_not(dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    verdicts = set()
    for steps in (0.5, 1, 2, 4, 8, 60):
        model, text, other = doubled(dtype, 3, 1 - steps * eps)
        found = diagnosed(model, parted(model, text, 3, other), text)
        assert found.gap is not None
        assert found.verdict == ("tie" if found.gap <= found.tolerance else "failure")
        verdicts.add(found.verdict)
    assert verdicts == {"tie", "failure"} and found.verdict == "failure"


@pytest.mark.parametrize("dtype", [*LOW, torch.float32], ids=str)
def test_a_wrong_token_is_a_failure(dtype: torch.dtype) -> None:
    model = target(dtype)
    text = plain(model)
    wrong = next(i for i in range(VOCAB) if i not in text)
    found = diagnosed(model, parted(model, text, 5, wrong), text)
    assert found.verdict == "failure" and found.position == 5
    assert found.gap is not None and found.gap >= found.top2_gap > 0 and found.gap > found.tolerance


def test_two_wrong_tokens_that_are_equal_are_no_tie() -> None:
    model, text, other = doubled(torch.float32, 3, 1.0)
    worst = next(i for i in range(VOCAB) if i not in (*text, other))
    model.model.lm_head.weight[worst - 1] = model.model.lm_head.weight[worst]
    assert worst - 1 not in text
    assert diagnosed(model, parted(model, text, 3, worst), parted(model, text, 3, worst - 1)).verdict == "failure"


def test_a_text_that_ends_before_the_other_is_a_failure() -> None:
    model = target(torch.float32)
    text = plain(model)
    found = diagnosed(model, text[:7], text)
    assert (found.verdict, found.position, found.gap) == ("failure", 7, None)
    assert (found.speculative_token, found.plain_token) == (None, text[7])
    assert diagnosed(model, text, text[:7]).plain_token is None
    assert diagnosed(model, [], text).position == 0


def test_equal_texts_have_no_difference() -> None:
    assert diagnose(target(torch.float32), "p", PROMPT, [1, 2], [1, 2], 4) is None
    assert first_difference([1, 2], [1, 2]) is None and first_difference([], []) is None
    assert (first_difference([1, 2], [1, 3]), first_difference([1], [1, 3]), first_difference([4], [])) == (1, 1, 0)


class Noisy(ModelWrapper):
    """Passes of one width behind a prompt move the logits of the tokens in one of their rows."""

    width, row, noise = 4, 1, 0.0

    def extend(self, ids: Tensor, cache: Any, num_logits: int = 1, early: Any = None) -> Tensor:
        wide = cache.length >= len(PROMPT) and len(ids) == self.width
        logits = super().extend(ids, cache, num_logits, early)
        if wide and num_logits > self.row:
            logits[self.row, ::2] += self.noise
        return logits


@pytest.mark.parametrize("steps", [40, -40])
def test_the_tolerance_is_twice_what_passes_of_a_round_s_width_move_a_logit(steps: int) -> None:
    """In whichever row of the pass it is that they do, and a tie is what that could have turned round."""
    eps = torch.finfo(torch.float32).eps
    for times, verdict in ((70, "tie"), (120, "failure")):
        logits = target(torch.float32).forward(torch.tensor([[*PROMPT, *plain(target(torch.float32))[:6]]]))[0][0, -1]
        best = float(logits.max())
        exact, text, other = doubled(torch.float32, 6, 1 - times * eps)
        model = Noisy(exact.model, measure_linear=False)
        model.noise = steps * eps * best
        found = diagnosed(model, parted(exact, text, 6, other), text, 4)
        assert found.width_difference == pytest.approx(40 * eps * best, rel=0.15)
        assert found.tolerance == 2 * found.width_difference
        assert found.gap == pytest.approx(times * eps * best, rel=0.2) and found.verdict == verdict
        # Passes of another width have nothing to do with it.
        assert diagnosed(model, parted(exact, text, 6, other), text, 3).verdict == "failure"


def test_at_the_end_of_the_context_there_is_room_for_no_more() -> None:
    model = target(torch.float32)
    assert model.max_context is not None
    prompt = [3 + i % 50 for i in range(model.max_context - 5)]
    text = AutoregressiveDecoder(model).generate(prompt, 5, stop_ids=NO_STOP).generated_ids
    other = next(i for i in range(VOCAB) if i not in text)
    found = diagnose(model, "p", prompt, [*text[:4], other], text, 8)
    assert found is not None and found.verdict == "failure" and found.width_difference < 1e-3


class Inaccurate(ModelWrapper):
    """Passes of several tokens behind a prompt compute something else."""

    def extend(self, ids: Tensor, cache: Any, num_logits: int = 1, early: Any = None) -> Tensor:
        wrong = cache.length > 0 and len(ids) > 1
        logits = super().extend(ids, cache, num_logits, early)
        return logits.roll(1, -1) if wrong else logits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_verify_pass_that_computes_something_else_excuses_nothing(dtype: torch.dtype) -> None:
    model = Inaccurate(copy.deepcopy(target(dtype).model), measure_linear=False)
    drafter = DraftModel(target(dtype))
    text = plain(model)
    speculative = SpeculativeDecoder(model, drafter, 3).generate(PROMPT, LENGTH, stop_ids=NO_STOP).generated_ids
    found = diagnosed(model, speculative, text)
    assert found.gap is not None and found.gap <= found.tolerance  # twice a difference as large as that allows anything
    assert found.verdict == "failure"


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_what_a_sound_engine_does_otherwise_is_a_tie(dtype: torch.dtype) -> None:
    """Pairs of equal rows make ties all over the text. Which token wins them is up to the kernels of the machine."""
    model = copy.deepcopy(target(dtype).model)
    rows = model.lm_head.weight
    rows[1::2] = rows[0:-1:2] * (1 + torch.finfo(dtype).eps)
    wrapper, draft = ModelWrapper(model, measure_linear=False), target(dtype)
    for k in (1, 3, 5):
        speculative = SpeculativeDecoder(wrapper, DraftModel(draft), k).generate(PROMPT, 60, stop_ids=NO_STOP)
        found = diagnose(wrapper, "p", PROMPT, speculative.generated_ids, plain(wrapper, 60), k + 1)
        assert found is None or found.verdict == "tie"
