"""The baseline loop: the model's own text, as events and as a result."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import torch
from torch import Tensor

from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.request import Request, prompt_tokens
from specprof.decoding.sampling import Sampling, probabilities
from specprof.errors import UsageError
from specprof.models.loader import quiet_transformers
from specprof.models.wrapper import ModelWrapper
from specprof.profiling import timer
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round, from_json_line, to_json_line
from specprof.profiling.metrics import GenerationResult, fold
from tiny_models import tiny_gpt2, tiny_gpt_neox, tiny_llama, tiny_tokenizer

VOCAB = 61
PROMPT = (5, 9, 3, 22, 17)
NO_STOP: frozenset[int] = frozenset()

torch.set_num_threads(1)


class Watched(ModelWrapper):
    """Counts its passes."""

    passes = 0

    def extend(self, *args: Any, **kwargs: Any) -> Tensor:
        self.passes += 1
        return super().extend(*args, **kwargs)


@pytest.fixture(scope="module", params=[tiny_gpt2, tiny_llama, tiny_gpt_neox], ids=lambda family: family.__name__)
def wrapper(request: pytest.FixtureRequest) -> ModelWrapper:
    return ModelWrapper(copy.deepcopy(request.param(vocab_size=VOCAB)))


@pytest.fixture(scope="module")
def gpt2() -> ModelWrapper:
    return ModelWrapper(copy.deepcopy(tiny_gpt2(vocab_size=VOCAB)))


def greedy_text(wrapper: ModelWrapper, prompt: tuple[int, ...], n: int) -> list[int]:
    """By the definition: the best next token of the whole text so far, from a pass without a cache."""
    text = list(prompt)
    for _ in range(n):
        logits = wrapper.model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
        text.append(int(logits.argmax()))
    return text[len(prompt) :]


def run(wrapper: ModelWrapper, request: Request) -> list[Event]:
    return list(AutoregressiveDecoder(wrapper).events(request))


# --- the text


def test_greedy_is_the_models_best_next_token(wrapper: ModelWrapper) -> None:
    result = AutoregressiveDecoder(wrapper).generate(PROMPT, 20, stop_ids=NO_STOP)
    assert result.generated_ids == greedy_text(wrapper, PROMPT, 20)
    assert result.finish_reason == "length"


@torch.inference_mode()
@pytest.mark.parametrize("eos", [None, [60, 49], [47]])
def test_hf_match(eos: list[int] | None) -> None:
    """Hugging Face's generate, with and without end-of-sequence tokens."""
    model = copy.deepcopy(tiny_gpt2(vocab_size=VOCAB))
    model.generation_config.eos_token_id = eos
    model.config.eos_token_id = None
    with quiet_transformers():
        expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=24, do_sample=False)[0, len(PROMPT) :].tolist()
    result = AutoregressiveDecoder(ModelWrapper(model)).generate(PROMPT, 24)  # stops where the model says
    assert result.generated_ids == expected
    assert (result.finish_reason == "stop") == (eos is not None) == (len(expected) < 24)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_exactly_as_many_as_asked_for(gpt2: ModelWrapper, n: int) -> None:
    result = AutoregressiveDecoder(gpt2).generate(PROMPT, n, stop_ids=NO_STOP)
    assert result.num_tokens == n
    assert len(result.per_token_latencies) == n - 1


def test_a_prompt_of_one_token(wrapper: ModelWrapper) -> None:
    result = AutoregressiveDecoder(wrapper).generate([7], 8, stop_ids=NO_STOP)
    assert result.generated_ids == greedy_text(wrapper, (7,), 8)


def test_ends_with_the_first_stop_token_which_is_kept(gpt2: ModelWrapper) -> None:
    decoder = AutoregressiveDecoder(gpt2)
    text = decoder.generate(PROMPT, 30, stop_ids=NO_STOP).generated_ids
    for position, token in enumerate(text):
        result = decoder.generate(PROMPT, 30, stop_ids=frozenset({token, 1000}))
        assert result.generated_ids == text[: text.index(token) + 1]
        assert result.finish_reason == "stop"
        assert position >= result.num_tokens - 1
    both = decoder.generate(PROMPT, 30, stop_ids=frozenset(text[-2:])).generated_ids
    assert both == text[: min(text.index(token) for token in text[-2:]) + 1]


def test_a_stop_token_as_the_first_and_as_the_last(gpt2: ModelWrapper) -> None:
    decoder = AutoregressiveDecoder(gpt2)
    text = decoder.generate(PROMPT, 30, stop_ids=NO_STOP).generated_ids
    first = decoder.generate(PROMPT, 30, stop_ids=frozenset({text[0]}))
    assert (first.generated_ids, first.finish_reason, first.rounds) == (text[:1], "stop", ())
    fresh = next(i for i, token in enumerate(text) if i > 3 and token not in text[:i])
    last = decoder.generate(PROMPT, fresh + 1, stop_ids=frozenset({text[fresh]}))
    assert (last.num_tokens, last.finish_reason) == (fresh + 1, "stop")


def test_stop_tokens_of_the_prompt_do_not_stop(gpt2: ModelWrapper) -> None:
    text = AutoregressiveDecoder(gpt2).generate(PROMPT, 6, stop_ids=NO_STOP).generated_ids
    others = frozenset(PROMPT) - frozenset(text)
    assert others
    assert AutoregressiveDecoder(gpt2).generate(PROMPT, 6, stop_ids=others).generated_ids == text


def test_every_form_of_a_prompt(gpt2: ModelWrapper) -> None:
    decoder = AutoregressiveDecoder(gpt2)
    forms: list[Any] = [PROMPT, list(PROMPT), torch.tensor(PROMPT), torch.tensor([PROMPT])]
    texts = [decoder.generate(form, 6, stop_ids=NO_STOP).generated_ids for form in forms]
    assert all(text == texts[0] for text in texts)


@pytest.mark.parametrize("shape", [(2, 3), (1, 1, 3), ()])
def test_more_than_one_sequence(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="prompt_ids must be one sequence"):
        prompt_tokens(torch.zeros(shape, dtype=torch.long))


# --- what can't be


def test_a_context_exactly_full(gpt2: ModelWrapper) -> None:
    result = AutoregressiveDecoder(gpt2).generate(PROMPT, 256 - len(PROMPT), stop_ids=NO_STOP)
    assert result.num_tokens == 251


def test_one_token_over_is_refused_before_anything_runs() -> None:
    watched = Watched(copy.deepcopy(tiny_gpt2(vocab_size=VOCAB)))
    with pytest.raises(UsageError, match="257 tokens are more than the context of 256"):
        AutoregressiveDecoder(watched).generate(PROMPT, 252)
    assert watched.passes == 0


@pytest.mark.parametrize(("prompt", "n"), [((), 5), (PROMPT, 0), (PROMPT, -1)])
def test_nothing_to_do(gpt2: ModelWrapper, prompt: tuple[int, ...], n: int) -> None:
    with pytest.raises(UsageError) as caught:
        AutoregressiveDecoder(gpt2).generate(prompt, n)
    assert caught.value.hint


# --- sampling


def test_the_seed_decides(gpt2: ModelWrapper) -> None:
    def sampled(**key: Any) -> tuple[int, ...]:
        events = run(gpt2, Request(PROMPT, 20, Sampling(1.5), **key))
        return tuple(next(fold(events)).generated_ids)

    assert sampled(seed=3) == sampled(seed=3)
    assert len({sampled(seed=3), sampled(seed=4), sampled(prompt_id="a"), sampled(repetition=1), sampled()}) == 5


def test_a_prompts_text_does_not_depend_on_what_ran_before(gpt2: ModelWrapper) -> None:
    decoder = AutoregressiveDecoder(gpt2)
    alone = decoder.generate(PROMPT, 20, 1.0, seed=1).generated_ids
    torch.manual_seed(0)
    decoder.generate([1, 2, 3], 9, 1.0, seed=2)
    assert decoder.generate(PROMPT, 20, 1.0, seed=1).generated_ids == alone


def test_truncated_sampling(gpt2: ModelWrapper) -> None:
    decoder = AutoregressiveDecoder(gpt2)
    greedy = decoder.generate(PROMPT, 20, stop_ids=NO_STOP).generated_ids
    assert decoder.generate(PROMPT, 20, 5.0, top_k=1, stop_ids=NO_STOP).generated_ids == greedy
    assert decoder.generate(PROMPT, 20, 1.0, top_p=1e-6, stop_ids=NO_STOP).generated_ids == greedy
    assert decoder.generate(PROMPT, 20, 5.0, stop_ids=NO_STOP).generated_ids != greedy


@torch.inference_mode()
def test_frequencies_follow_the_law(gpt2: ModelWrapper) -> None:
    """First token (from the prefill) and second (from a step) over many seeds, against the exact law of the second."""
    sampling, n = Sampling(0.7, top_k=8), 1500
    first = probabilities(gpt2.model(input_ids=torch.tensor([PROMPT])).logits[0, -1], sampling)
    rows = [gpt2.model(input_ids=torch.tensor([[*PROMPT, token]])).logits[0, -1] for token in range(VOCAB)]
    second = first @ probabilities(torch.stack(rows), sampling)
    counts = torch.zeros(2, VOCAB)
    decoder = AutoregressiveDecoder(gpt2)
    for seed in range(n):
        for place, token in enumerate(
            decoder.generate(PROMPT, 2, 0.7, top_k=8, seed=seed, stop_ids=NO_STOP).generated_ids
        ):
            counts[place, token] += 1
    for law, frequency in zip((first, second), counts / n, strict=True):
        noise = (2 * law * (1 - law) / (torch.pi * n)).sqrt().sum()  # expected absolute deviation, summed
        assert (frequency - law).abs().sum() < 2.5 * noise


# --- events


def test_events_of_a_generation(wrapper: ModelWrapper) -> None:
    request = Request(PROMPT, 9, seed=1, prompt_id="code_000", repetition=2)
    prefilled, *rounds, ended = run(wrapper, request)
    assert isinstance(prefilled, Prefilled)
    assert isinstance(ended, PromptEnded)
    assert prefilled.num_prompt_tokens == len(PROMPT)
    assert prefilled.draft_seconds == 0
    assert len(rounds) == 8
    for index, event in enumerate(rounds):
        assert isinstance(event, Round)
        assert event.index == index
        assert (event.draft_tokens, event.num_accepted, event.cut) == ((), 0, False)
        assert len(event.emitted_tokens) == 1
        assert event.draft_seconds == 0
        assert event.verify_seconds > 0 and event.sample_seconds > 0 and event.overhead_seconds >= 0
        assert event.target_prob is event.draft_prob is event.alpha is None
    for event in (prefilled, *rounds, ended):
        assert not isinstance(event, Prefilled | Round | PromptEnded) or (
            event.prompt_id,
            event.decoder,
            event.repetition,
        ) == ("code_000", "AR", 2)
    assert ended.finish_reason == "length"
    assert ended.peak_memory_bytes > 2**20


def test_events_survive_a_file(gpt2: ModelWrapper) -> None:
    events = run(gpt2, Request(PROMPT, 5))
    assert [from_json_line(to_json_line(event)) for event in events] == events


def test_the_result_is_the_fold_of_the_events(gpt2: ModelWrapper) -> None:
    events = run(gpt2, Request(PROMPT, 12))
    prefilled, *rounds, ended = events
    assert isinstance(prefilled, Prefilled) and isinstance(ended, PromptEnded)
    result = next(fold(events))
    assert result.generated_ids == greedy_text(gpt2, PROMPT, 12)
    assert result.per_token_latencies == [event.seconds for event in rounds if isinstance(event, Round)]
    assert result.time_to_first_token == prefilled.seconds
    assert result.total_time == pytest.approx(prefilled.seconds + sum(result.per_token_latencies))
    assert result.peak_memory_mb == max(prefilled.peak_memory_bytes, ended.peak_memory_bytes) / 2**20
    assert (result.decoder, result.is_speculative, result.acceptance_rate) == ("AR", False, None)
    assert GenerationResult.from_dict(result.to_dict()) == result


def test_nothing_runs_before_it_is_asked_for() -> None:
    watched = Watched(copy.deepcopy(tiny_gpt2(vocab_size=VOCAB)))
    events = AutoregressiveDecoder(watched).events(Request(PROMPT, 10))
    assert watched.passes == 0
    next(events)
    assert watched.passes == 1
    next(events)
    assert watched.passes == 2


def test_time_goes_where_it_was_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Slow(ModelWrapper):
        def extend(self, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            clock[0] += ids.shape[0]
            return super().extend(ids, *args, **kwargs)

    monkeypatch.setattr(timer, "perf_counter", lambda: clock[0])
    request = Request(PROMPT, 6)
    events = []
    for event in AutoregressiveDecoder(Slow(copy.deepcopy(tiny_gpt2(vocab_size=VOCAB)))).events(request):
        events.append(event)
        clock[0] += 1000  # whoever reads the events takes their time, which is not decoding's
    prefilled, *rounds, _ = events
    assert isinstance(prefilled, Prefilled)
    assert (prefilled.target_seconds, prefilled.seconds) == (5, 5)
    for event in rounds:
        assert isinstance(event, Round)
        assert (event.verify_seconds, event.sample_seconds, event.overhead_seconds, event.seconds) == (1, 0, 0, 1)


def test_phases_add_up_to_the_wall_time(gpt2: ModelWrapper) -> None:
    begin = time.perf_counter()
    result = AutoregressiveDecoder(gpt2).generate(PROMPT, 100, stop_ids=NO_STOP)
    wall = time.perf_counter() - begin
    assert 0.2 * wall < result.total_time <= wall


# --- text


def test_generate_text() -> None:
    tokenizer = tiny_tokenizer()
    decoder = AutoregressiveDecoder(ModelWrapper(copy.deepcopy(tiny_gpt2()), tokenizer))
    ids = tokenizer.encode("The quick brown fox")
    expected = decoder.generate(ids, 12).generated_ids
    text = decoder.generate_text("The quick brown fox", max_new_tokens=12, temperature=0.0)
    assert text == tokenizer.decode(expected, skip_special_tokens=True) != ""
    assert decoder.generate_text("The quick brown fox", 12, 1.0, seed=1) == decoder.generate_text(
        "The quick brown fox", 12, 1.0, seed=1
    )
    assert decoder.generate_text("The quick brown fox", 12, 1.0, seed=1) != text


def test_generate_text_leaves_special_tokens_out() -> None:
    tokenizer = tiny_tokenizer()
    model = copy.deepcopy(tiny_gpt2())
    # Whatever is read, the end of the text is the best continuation.
    model.transformer.ln_f.weight.zero_()
    model.transformer.ln_f.bias.copy_(10 * model.transformer.wte.weight[tokenizer.eos_token_id])
    decoder = AutoregressiveDecoder(ModelWrapper(model, tokenizer))
    assert decoder.generate(tokenizer.encode("The"), 5).generated_ids == [tokenizer.eos_token_id]
    assert decoder.generate_text("The", 5) == ""
