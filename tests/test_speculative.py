"""The speculative loop: ends where it should, rolls back what it should, and reports what happened."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import Drafter, DraftModel, NGramLookup
from specprof.decoding.request import Request
from specprof.decoding.sampling import Sampling, probabilities
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.decoding.translation import TokenIntersection
from specprof.decoding.vocabulary import compare_vocabularies
from specprof.errors import UsageError
from specprof.models.kv_cache import KVCache
from specprof.models.transformer import EarlyStates
from specprof.models.wrapper import ModelWrapper
from specprof.profiling import timer
from specprof.profiling.acceptance import AcceptanceCounts
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round, from_json_line, to_json_line
from specprof.profiling.metrics import GenerationResult, fold
from tiny_models import tiny_gpt2, tiny_gpt_neox, tiny_llama
from tiny_tokenizers import BYTES, SPACE, TRAINED, metaspace

VOCAB = 61
PROMPT = (5, 9, 3, 22, 17)
NO_STOP: frozenset[int] = frozenset()

torch.set_num_threads(1)


def model(seed: int = 0) -> Any:
    return copy.deepcopy(tiny_gpt2(seed=seed, vocab_size=VOCAB)).to(torch.float64)


@functools.cache
def target() -> ModelWrapper:
    return ModelWrapper(model(), name="target")


@functools.cache
def perturbed() -> ModelWrapper:
    """The target with noise on every matrix: often right, often wrong."""
    noisy, generator = model(), torch.Generator().manual_seed(3)
    for parameter in noisy.parameters():
        if parameter.dim() == 2:
            parameter.add_(0.08 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return ModelWrapper(noisy)


@functools.cache
def unrelated() -> ModelWrapper:
    return ModelWrapper(model(seed=9))


DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "equal": lambda: DraftModel(target()),
    "perturbed": lambda: DraftModel(perturbed()),
    "unrelated": lambda: DraftModel(unrelated()),
    "ngram": lambda: NGramLookup(VOCAB, target().device),
}


def speculate(kind: str, request: Request, k: int, **options: Any) -> list[Event]:
    return list(SpeculativeDecoder(target(), DRAFTERS[kind](), k, **options).events(request))


def plain(request: Request) -> GenerationResult:
    return next(fold(AutoregressiveDecoder(target()).events(request)))


def rounds_of(events: Sequence[Event]) -> list[Round]:
    return [event for event in events if isinstance(event, Round)]


def check(events: Sequence[Event], request: Request, k: int) -> GenerationResult:
    """What holds for the events of every generation."""
    prefilled, *middle, ended = events
    assert isinstance(prefilled, Prefilled)
    assert isinstance(ended, PromptEnded)
    rounds = rounds_of(middle)
    assert len(rounds) == len(middle)
    assert prefilled.num_prompt_tokens == len(request.prompt_ids)
    text = [prefilled.first_token]
    for index, event in enumerate(rounds):
        assert event.index == index
        room = request.max_new_tokens - len(text)
        drafted, accepted = len(event.draft_tokens), event.num_accepted
        assert 0 <= accepted <= drafted <= min(k, room - 1)
        assert event.k == min(k, room - 1)
        assert event.emitted_tokens[:accepted] == event.draft_tokens[: len(event.emitted_tokens)][:accepted]
        text += event.emitted_tokens
        stopped = text[-1] in request.stop_ids
        if len(event.emitted_tokens) <= accepted:
            assert event.cut and stopped and event is rounds[-1]
        else:
            assert len(event.emitted_tokens) == accepted + 1
            assert event.cut == (room - 1 < k)
        assert min(event.draft_seconds, event.verify_seconds, event.sample_seconds) > 0
        assert event.overhead_seconds >= 0
    assert not set(text[:-1]) & request.stop_ids
    assert ended.finish_reason == ("stop" if text[-1] in request.stop_ids else "length")
    assert len(text) == request.max_new_tokens or ended.finish_reason == "stop"
    generation: list[Prefilled | Round | PromptEnded] = [prefilled, *rounds, ended]
    labels = {(e.prompt_id, e.decoder, e.repetition) for e in generation}
    assert labels == {(request.prompt_id, f"SD-K{k}", request.repetition)}
    (result,) = fold(events)
    assert result.generated_ids == text
    return result


# --- where it ends


def how_it_ended(last: Round | None, stops: frozenset[int]) -> str:
    if last is None:
        return "first token"
    if last.emitted_tokens[-1] not in stops:
        return "length"
    if last.cut and len(last.emitted_tokens) <= last.num_accepted:
        return "last accepted" if len(last.emitted_tokens) == last.num_accepted else "inside the accepted run"
    return "bonus" if last.num_accepted == len(last.draft_tokens) else "corrected"


@pytest.mark.parametrize("ks", [(1, 3), pytest.param((2, 5), marks=pytest.mark.slow)], ids=str)
def test_end_of_text_at_every_place(ks: tuple[int, int]) -> None:
    """Each token of the text as the stop token, alone and with another, under every K and drafter."""
    text = plain(Request(PROMPT, 40)).generated_ids
    seen: Counter[str] = Counter()
    for token in dict.fromkeys(text):
        for stops in (frozenset({token}), frozenset({token, text[-1], 1000})):
            request = Request(PROMPT, 40, stop_ids=stops)
            expected = plain(request)
            for kind in DRAFTERS:
                for k in ks:
                    events = speculate(kind, request, k)
                    result = check(events, request, k)
                    assert result.generated_ids == expected.generated_ids
                    assert result.finish_reason == expected.finish_reason == "stop"
                    last = rounds_of(events)[-1] if rounds_of(events) else None
                    seen[how_it_ended(last, stops)] += 1
    assert seen["length"] == 0
    assert (
        min(seen[place] for place in ("first token", "inside the accepted run", "last accepted", "corrected", "bonus"))
        > 0
    )


def test_an_accepted_run_is_cut_at_its_first_stop_token() -> None:
    text = plain(Request(PROMPT, 40)).generated_ids
    position = next(i for i in range(2, 5) if text[i] not in text[:i])
    request = Request(PROMPT, 40, stop_ids=frozenset({text[position], text[position + 1]}))
    events = speculate("equal", request, 8)
    (round_,) = rounds_of(events)
    assert round_.emitted_tokens == tuple(text[1 : position + 1])
    assert round_.num_accepted == 8  # what the target made of the draft, wherever the text ended
    assert round_.cut
    assert AcceptanceCounts.of([round_], greedy=True).draft_acceptance_rate is None


@pytest.mark.parametrize("kind", DRAFTERS)
def test_exactly_as_many_as_asked_for(kind: str) -> None:
    text = plain(Request(PROMPT, 12)).generated_ids
    for n in range(1, 13):
        for k in range(9):
            request = Request(PROMPT, n)
            assert check(speculate(kind, request, k), request, k).generated_ids == text[:n]


def test_a_round_shortened_by_the_length_limit_is_cut() -> None:
    rounds = rounds_of(speculate("equal", Request(PROMPT, 9), 4))
    # 1 from the prefill, 5, then 3 remain: room for 2 drafted.
    assert [(len(r.draft_tokens), r.num_accepted, len(r.emitted_tokens), r.cut) for r in rounds] == [
        (4, 4, 5, False),
        (2, 2, 3, True),
    ]


@pytest.mark.parametrize("kind", DRAFTERS)
def test_a_prompt_of_one_token(kind: str) -> None:
    request = Request((7,), 20)
    for k in (0, 1, 4):
        assert check(speculate(kind, request, k), request, k).generated_ids == plain(request).generated_ids


@pytest.mark.parametrize("kind", DRAFTERS)
def test_a_context_exactly_full(kind: str) -> None:
    request = Request(tuple(i % VOCAB for i in range(200)), 56)
    assert check(speculate(kind, request, 5), request, 5).generated_ids == plain(request).generated_ids


@pytest.mark.parametrize("k", [1, 4])
def test_a_draft_whose_context_runs_out(k: int) -> None:
    """It spells the target's tokens byte by byte: how many of its own a text takes isn't known when it begins."""
    target_tokenizer = TRAINED["byte-level"]()
    draft_tokenizer = metaspace(["<unk>", "</s>", *BYTES, SPACE], eos="</s>")
    sizes = len(draft_tokenizer), len(target_tokenizer)
    spelling = copy.deepcopy(tiny_llama(vocab_size=sizes[0])).to(torch.float64)
    spelling.config.max_position_embeddings = 64
    draft = ModelWrapper(spelling)
    verdict = compare_vocabularies(draft_tokenizer, target_tokenizer, *sizes)
    translation = TokenIntersection(verdict, draft_tokenizer, target_tokenizer, draft.device)
    big = ModelWrapper(copy.deepcopy(tiny_gpt2(vocab_size=sizes[1])).to(torch.float64))
    request = Request(tuple(target_tokenizer.encode("The dog")), 50)
    decoder = SpeculativeDecoder(big, DraftModel(draft, translation), k)
    for _ in range(2):  # the second one has its whole context again
        events = list(decoder.events(request))
        (expected,) = fold(AutoregressiveDecoder(big).events(request))
        assert check(events, request, k).generated_ids == expected.generated_ids
        lengths = [len(round.draft_tokens) for round in rounds_of(events)]
        assert lengths[:3] == [k] * 3 and lengths[-6:] == [0] * 6


# --- what can't be


class Watched(ModelWrapper):
    """Counts its passes."""

    passes = 0

    def extend(self, ids: Tensor, cache: KVCache, num_logits: int = 1, early: EarlyStates | None = None) -> Tensor:
        self.passes += 1
        return super().extend(ids, cache, num_logits, early)


@pytest.mark.parametrize("short", ["target", "draft"])
def test_one_token_over_is_refused_before_anything_runs(short: str) -> None:
    models = {"target": model(), "draft": model(1)}
    models[short].config.max_position_embeddings = 64
    watched = {role: Watched(m, name=f"the {role}") for role, m in models.items()}
    decoder = SpeculativeDecoder(watched["target"], DraftModel(watched["draft"]), 4)
    with pytest.raises(UsageError, match=f"65 tokens are more than the context of 64 that the {short} was made for"):
        decoder.generate(PROMPT, 60)
    assert [w.passes for w in watched.values()] == [0, 0]
    assert decoder.generate(PROMPT, 59, stop_ids=NO_STOP).num_tokens == 59


@pytest.mark.parametrize("options", [{"k": -1}, {"synthetic_acceptance": -0.1}, {"synthetic_acceptance": 1.1}])
def test_options_that_mean_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        SpeculativeDecoder(target(), DRAFTERS["equal"](), **options)
    assert caught.value.hint


# --- nothing drafted


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(0.7, top_k=10, top_p=0.9)])
@pytest.mark.parametrize("kind", DRAFTERS)
def test_k_of_zero_is_plain_decoding(kind: str, sampling: Sampling) -> None:
    request = Request(PROMPT, 20, sampling, seed=5)
    events = speculate(kind, request, 0)
    check(events, request, 0)

    def what_happened(event: Event) -> object:
        if isinstance(event, Prefilled):
            return event.first_token, event.num_prompt_tokens
        if isinstance(event, Round):
            return event.index, event.draft_tokens, event.num_accepted, event.emitted_tokens, event.cut
        assert isinstance(event, PromptEnded)
        return event.finish_reason

    baseline = AutoregressiveDecoder(target()).events(request)
    assert [what_happened(event) for event in events] == [what_happened(event) for event in baseline]


# --- the draft keeps up


@pytest.mark.parametrize("family", [tiny_gpt2, tiny_llama, tiny_gpt_neox], ids=lambda family: family.__name__)
@pytest.mark.parametrize("kind", ["equal", "perturbed"])
def test_every_proposal_is_that_of_a_draft_that_starts_there(family: Any, kind: str) -> None:
    """Also after full acceptance, when the draft has not seen its own last token yet."""
    big = ModelWrapper(copy.deepcopy(family(vocab_size=VOCAB)).to(torch.float64))
    small = big
    if kind == "perturbed":
        noisy = copy.deepcopy(big.model)
        for parameter in noisy.parameters():
            if parameter.dim() == 2:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
                parameter.add_(0.06 * parameter.std() * noise)
        small = ModelWrapper(noisy)
    events = list(SpeculativeDecoder(big, DraftModel(small), 3).events(Request(PROMPT, 40)))
    context, after_full, after_partial, full = list(PROMPT), 0, 0, False
    for event in events:
        if isinstance(event, Prefilled):
            context.append(event.first_token)
        if isinstance(event, Round):
            text = list(context)
            for token in event.draft_tokens:
                logits = small.extend(torch.tensor(text), small.new_cache(len(text)))
                assert token == int(logits.argmax())
                text.append(token)
            after_full += full and bool(event.draft_tokens)
            after_partial += not full and event.index > 0
            full = event.num_accepted == len(event.draft_tokens)
            context += event.emitted_tokens
    assert after_full > 1
    assert kind == "equal" or after_partial > 1


def test_a_decoder_can_be_used_again() -> None:
    decoder = SpeculativeDecoder(target(), DraftModel(perturbed()), 4)
    requests = [Request(PROMPT, 20, Sampling(t), seed=s) for t in (0.0, 1.0) for s in (1, 2)]
    fresh = [
        next(fold(SpeculativeDecoder(target(), DraftModel(perturbed()), 4).events(request))).generated_ids
        for request in requests
    ]
    abandoned = decoder.events(Request((1, 2, 3), 30))
    for _ in range(3):
        next(abandoned)
    assert [next(fold(decoder.events(request))).generated_ids for request in requests] == fresh


# --- sampling


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7, top_k=10, top_p=0.9)])
@pytest.mark.parametrize("kind", DRAFTERS)
def test_sampled_generations_are_well_formed(kind: str, sampling: Sampling) -> None:
    counts = AcceptanceCounts()
    for seed in range(5):
        request = Request(PROMPT, 30, sampling, frozenset({60}), seed, "conversation_001", 3)
        events = speculate(kind, request, 4)
        check(events, request, 4)
        for event in rounds_of(events):
            counts.observe(event)
    if kind == "equal":
        assert counts.draft_acceptance_rate == 1
        assert counts.alpha == pytest.approx(1)
    elif kind in ("perturbed", "unrelated"):
        assert 0 < counts.num_accepted_draft_tokens < counts.num_draft_tokens
    else:
        assert counts.num_draft_tokens > 0


def test_the_seed_decides() -> None:
    def sampled(**key: Any) -> tuple[int, ...]:
        return tuple(next(fold(speculate("perturbed", Request(PROMPT, 20, Sampling(1.0), **key), 4))).generated_ids)

    assert sampled(seed=1) == sampled(seed=1)
    assert len({sampled(seed=1), sampled(seed=2), sampled(seed=1, prompt_id="a"), sampled(seed=1, repetition=1)}) == 4


# --- detail


def laws(wrapper: ModelWrapper, context: Sequence[int], drafted: Sequence[int], sampling: Sampling) -> Tensor:
    """``[drafted, vocab]``: the law at each drafted position, each from a fresh cache."""
    rows = []
    for i in range(len(drafted)):
        ids = torch.tensor([*context, *drafted[:i]])
        rows.append(wrapper.extend(ids, wrapper.new_cache(len(ids)))[0])
    return probabilities(torch.stack(rows), sampling)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(0.6, top_k=12, top_p=0.95)])
def test_recorded_probabilities_are_the_models(sampling: Sampling) -> None:
    request = Request(PROMPT, 30, sampling, seed=4)
    events = speculate("perturbed", request, 4, detail=True)
    # At temperature 0 the point mass says nothing: the model's own law is recorded.
    law = Sampling(1.0) if sampling.greedy else sampling
    context = list(PROMPT)
    compared = 0
    for event in events:
        if isinstance(event, Prefilled):
            context.append(event.first_token)
        if not isinstance(event, Round):
            continue
        if event.draft_tokens:
            assert event.target_prob is not None and event.draft_prob is not None and event.alpha is not None
            target_laws = laws(target(), context, event.draft_tokens, law)
            draft_laws = laws(perturbed(), context, event.draft_tokens, law)
            rows = range(len(event.draft_tokens))
            assert event.target_prob == pytest.approx(target_laws[rows, event.draft_tokens].tolist(), abs=1e-5)
            assert event.draft_prob == pytest.approx(draft_laws[rows, event.draft_tokens].tolist(), abs=1e-5)
            if sampling.greedy:
                choices = target_laws.argmax(-1).tolist()
                assert event.alpha == tuple(float(choices[i] == event.draft_tokens[i]) for i in rows)
            else:
                overlap = torch.minimum(target_laws, draft_laws).sum(-1)
                assert event.alpha == pytest.approx(overlap.tolist(), abs=1e-5)
            compared += len(event.draft_tokens)
        context += event.emitted_tokens
    assert compared > 20


def test_a_lookup_is_certain_of_its_proposal() -> None:
    for sampling in (Sampling(), Sampling(1.0)):
        rounds = rounds_of(speculate("ngram", Request((1, 2, 3) * 5, 30, sampling), 4, detail=True))
        drafted = [r for r in rounds if r.draft_tokens]
        assert drafted
        for event in drafted:
            assert event.draft_prob == (1.0,) * len(event.draft_tokens)
            if not sampling.greedy:
                assert event.alpha == pytest.approx(event.target_prob)  # min(p, point mass) is p of that token
        empty = [r for r in rounds if not r.draft_tokens]
        assert all(r.target_prob is r.draft_prob is None for r in empty)


def test_greedy_records_no_probabilities_unless_asked() -> None:
    rounds = rounds_of(speculate("perturbed", Request(PROMPT, 20), 4))
    assert all(r.target_prob is r.draft_prob is r.alpha is None for r in rounds)


@pytest.mark.parametrize("kind", DRAFTERS)
def test_detail_changes_no_token(kind: str) -> None:
    for sampling in (Sampling(), Sampling(1.0)):
        request = Request(PROMPT, 30, sampling, seed=2)
        with_detail, without = (speculate(kind, request, 4, detail=detail) for detail in (True, False))
        check(with_detail, request, 4)
        for a, b in zip(rounds_of(with_detail), rounds_of(without), strict=True):
            assert (a.draft_tokens, a.num_accepted, a.emitted_tokens) == (
                b.draft_tokens,
                b.num_accepted,
                b.emitted_tokens,
            )


# --- synthetic acceptance


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("acceptance", "accepted"), [(0.0, 0), (1.0, 4)])
def test_synthetic_acceptance_of_none_and_all(temperature: float, acceptance: float, accepted: int) -> None:
    request = Request(PROMPT, 31, Sampling(temperature))
    events = speculate("unrelated", request, 4, synthetic_acceptance=acceptance)
    check(events, request, 4)
    assert {r.num_accepted for r in rounds_of(events) if not r.cut} == {accepted}


def test_synthetic_acceptance_is_a_probability() -> None:
    counts = AcceptanceCounts(greedy=True)
    for seed in range(30):
        for event in rounds_of(speculate("unrelated", Request(PROMPT, 40, seed=seed), 4, synthetic_acceptance=0.6)):
            counts.observe(event)
    assert counts.alpha == pytest.approx(0.6, abs=0.06)  # about 700 coins: a standard error of 0.02


# --- time and form


def test_time_goes_where_it_was_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Slow(ModelWrapper):
        cost = 0.0

        def extend(self, ids: Tensor, cache: KVCache, num_logits: int = 1, early: EarlyStates | None = None) -> Tensor:
            clock[0] += self.cost
            return super().extend(ids, cache, num_logits, early)

        def extend_greedily(self, ids: Tensor, cache: KVCache, steps: int) -> tuple[Tensor, Tensor]:
            clock[0] += self.cost * steps
            return super().extend_greedily(ids, cache, steps)

    monkeypatch.setattr(timer, "perf_counter", lambda: clock[0])
    big, small = Slow(model()), Slow(model())
    big.cost, small.cost = 10.0, 1.0
    events = []
    for event in SpeculativeDecoder(big, DraftModel(small), 4).events(Request(PROMPT, 14)):
        events.append(event)
        clock[0] += 1000  # the reader's time
    prefilled = events[0]
    assert isinstance(prefilled, Prefilled)
    assert (prefilled.target_seconds, prefilled.draft_seconds, prefilled.overhead_seconds) == (10, 1, 0)
    rounds = rounds_of(events)
    assert [len(r.draft_tokens) for r in rounds] == [4, 4, 2]
    for event in rounds:
        assert event.draft_seconds == len(event.draft_tokens)
        assert (event.verify_seconds, event.sample_seconds, event.overhead_seconds) == (10, 0, 0)
    (result,) = fold(events)
    assert result.total_time == 11 + 3 * 10 + 10
    assert result.draft_time_total_ms == 10_000
    assert result.verify_time_total_ms == 30_000


def test_the_result_is_the_fold_of_the_events() -> None:
    request = Request(PROMPT, 40)
    events = speculate("perturbed", request, 4)
    result = check(events, request, 4)
    rounds = rounds_of(events)
    complete = [r for r in rounds if not r.cut]
    assert result.is_speculative
    assert result.decoder == "SD-K4"
    assert result.num_speculation_rounds == len(rounds)
    assert result.acceptance_rate == sum(r.num_accepted for r in complete) / (4 * len(complete))
    assert 0 < result.acceptance_rate < 1
    assert result.tokens_per_step == 39 / len(rounds)
    assert result.rounds == tuple(rounds)
    assert result.per_token_latencies == [r.seconds for r in rounds]
    again = SpeculativeDecoder(target(), DRAFTERS["perturbed"](), 4).generate(PROMPT, 40, stop_ids=NO_STOP)
    assert again.generated_ids == result.generated_ids


def test_events_survive_a_file() -> None:
    events = speculate("perturbed", Request(PROMPT, 20, Sampling(1.0)), 3)
    assert [from_json_line(to_json_line(event)) for event in events] == events


def test_stop_tokens_default_to_the_models() -> None:
    text = plain(Request(PROMPT, 30)).generated_ids
    ending = model()
    ending.generation_config.eos_token_id = [text[6], text[9]]
    wrapper = ModelWrapper(ending)
    result = SpeculativeDecoder(wrapper, DraftModel(wrapper), 4).generate(torch.tensor([PROMPT]), 30)
    assert result.finish_reason == "stop"
    assert result.generated_ids == text[: min(text.index(text[6]), text.index(text[9])) + 1]
