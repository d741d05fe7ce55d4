"""The static path: the text of the usual loops, to the last bit that of plain decoding as wide, and no read inside."""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import shutil
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from goodness_of_fit import ALPHA, chi_square_p, total_variation, total_variation_bound
from specprof.decoding import static, static_lane, static_round
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.capture import WARM_UP_RUNS, Graphs, Step, warm_up
from specprof.decoding.draft_length import AdaptiveK, EveryK
from specprof.decoding.drafters import Drafter, DraftModel, LayerSkip, NGramLookup
from specprof.decoding.request import Request
from specprof.decoding.sampling import Sampling
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.decoding.static import SMALLEST_BUCKET, StaticDecoder, bucket_for, why_not_captured, why_not_static
from specprof.decoding.static_lane import Lane
from specprof.decoding.static_round import Reading, StaticRound
from specprof.decoding.translation import SharedVocabulary
from specprof.errors import ResourceError, UsageError
from specprof.models import static_forward
from specprof.models.attention_choice import AttentionChoice
from specprof.models.linear import LinearChoice, QuantisedMatrix
from specprof.models.slab_attention import explicit
from specprof.models.static_forward import StaticForward
from specprof.models.transformer import own_forward
from specprof.models.wrapper import ModelWrapper
from specprof.profiling import timer
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round
from test_sequence_law import Forks, Generation, Setting, counts_of, generate, law_of, target_of
from test_sequence_law import draft as few_tokens_draft
from tiny_models import tiny_gpt2, tiny_gpt_neox, tiny_llama, tiny_mistral, tiny_phi3, tiny_qwen3

torch.set_num_threads(1)

VOCAB = 61
PROMPT = (5, 9, 3, 22, 17)
FAMILIES = {f.__name__: f for f in (tiny_llama, tiny_gpt2, tiny_mistral, tiny_qwen3, tiny_phi3)}


def wrap(network: Any) -> ModelWrapper:
    return ModelWrapper(network, forward="own")


@functools.cache
def target_for(family: str, dtype: torch.dtype = torch.float64) -> ModelWrapper:
    return wrap(FAMILIES[family](vocab_size=VOCAB, dtype=dtype))


@functools.cache
def noisy(family: str, dtype: torch.dtype = torch.float64, vocab_size: int = VOCAB) -> ModelWrapper:
    """The target with noise on every matrix: often right, often wrong."""
    network = copy.deepcopy(FAMILIES[family](vocab_size=vocab_size, dtype=dtype))
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        if parameter.dim() == 2:
            noise = torch.randn(parameter.shape, generator=generator).to(dtype)
            parameter.add_(0.05 * parameter.std() * noise)
    return wrap(network)


def drafter(family: str = "tiny_llama", dtype: torch.dtype = torch.float64) -> DraftModel:
    return DraftModel(noisy(family, dtype))


def static_decoder(k: Any = 4, family: str = "tiny_llama", dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    return StaticDecoder(target_for(family, dtype), drafter(family, dtype), k, **options)


def usual(k: Any = 4, family: str = "tiny_llama", dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    return SpeculativeDecoder(target_for(family, dtype), drafter(family, dtype), k, **options)


def asked(max_new_tokens: int = 40, temperature: float = 0.0, **values: Any) -> Request:
    return Request(PROMPT, max_new_tokens, Sampling(temperature), **values)


def rounds_of(events: Sequence[Event]) -> list[Round]:
    return [event for event in events if isinstance(event, Round)]


def text_of(events: Sequence[Event]) -> list[int]:
    first = events[0]
    assert isinstance(first, Prefilled)
    return [first.first_token, *(token for round in rounds_of(events) for token in round.emitted_tokens)]


def told(rounds: Sequence[Round], until: int | None = None) -> list[tuple[object, ...]]:
    """What rounds say, their seconds apart."""
    return [(r.index, r.draft_tokens, r.num_accepted, r.emitted_tokens, r.k, r.cut) for r in rounds[:until]]


def whole_of(rounds: Sequence[Round]) -> int:
    """How many rounds the length limit has left alone: where it is near, the usual loop drafts less."""
    return next((round.index for round in rounds if round.cut), len(rounds))


def drafted_accepted_rejected(rounds: Sequence[Round]) -> tuple[int, int, int]:
    return (
        sum(len(round.draft_tokens) for round in rounds),
        sum(round.num_accepted for round in rounds),
        sum(round.num_accepted < len(round.draft_tokens) for round in rounds),
    )


# --- the same text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_the_usual_loops(family: str, dtype: torch.dtype) -> None:
    ks = (1, 2, 4, 7) if dtype == torch.float32 else (3, 8)
    plain = text_of(list(AutoregressiveDecoder(target_for(family, dtype)).events(asked())))
    assert StaticDecoder(target_for(family, dtype), None).tokens(asked()) == plain
    for k in ks:
        events = list(static_decoder(k, family, dtype).events(asked()))
        assert text_of(events) == plain
        assert all(drafted_accepted_rejected(rounds_of(events)))
        expected = rounds_of(list(usual(k, family, dtype).events(asked())))
        whole = whole_of(expected)
        assert whole > 2 and told(rounds_of(events), whole) == told(expected, whole)


@pytest.mark.parametrize("detail", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_events_are_the_usual_loops(k: int, temperature: float, detail: bool) -> None:
    request = asked(temperature=temperature, seed=6, prompt_id="p", repetition=2)
    first, *found, ended = static_decoder(k, detail=detail).events(request)
    usual_first, *expected, usual_end = usual(k, detail=detail).events(request)
    zeros = {"target_seconds": 0.0, "draft_seconds": 0.0, "overhead_seconds": 0.0, "peak_memory_bytes": 0}
    assert replace(first, **zeros) == replace(usual_first, **zeros)
    assert replace(ended, peak_memory_bytes=0) == replace(usual_end, peak_memory_bytes=0)
    whole = whole_of(expected)
    assert whole > 2 and told(found, whole) == told(expected, whole)
    for round, other in zip(found[:whole], expected[:whole], strict=True):
        for name in ("target_prob", "draft_prob", "alpha", "uniforms"):
            mine, theirs = getattr(round, name), getattr(other, name)
            assert (mine is None) == (theirs is None) == (not detail and (not temperature or name == "uniforms")) or (
                name == "uniforms" and not temperature
            )
            assert mine == (None if theirs is None else pytest.approx(theirs, rel=1e-5))
        assert min(round.draft_seconds, round.verify_seconds, round.sample_seconds) > 0
        assert round.overhead_seconds >= 0


@pytest.mark.parametrize("sampling", [Sampling(1.0, top_k=5), Sampling(1.3, top_p=0.8)], ids=["top-k", "top-p"])
def test_sampled_text_is_the_usual_loops(sampling: Sampling) -> None:
    k = 4
    for seed in range(3):
        request = replace(asked(seed=seed), sampling=sampling)
        events = list(static_decoder(k).events(request))
        expected = text_of(list(usual(k).events(request)))
        assert text_of(events)[: -k - 1] == expected[: -k - 1]
        assert len(text_of(events)) == len(expected)
        assert all(drafted_accepted_rejected(rounds_of(events)))
        plain = StaticDecoder(target_for("tiny_llama"), None).tokens(request)
        assert plain == text_of(list(AutoregressiveDecoder(target_for("tiny_llama")).events(request)))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_recorded_is_the_same_text(temperature: float) -> None:
    decoder, request = static_decoder(3), asked(temperature=temperature, seed=2)
    text = text_of(list(decoder.events(request)))
    assert decoder.tokens(request) == text
    assert decoder.generate(PROMPT, 40, temperature, seed=2, stop_ids=frozenset()).generated_ids == text


def test_generations_may_take_turns() -> None:
    decoder, requests = static_decoder(3), [asked(30), asked(30, 1.0, seed=1)]
    alone = [text_of(list(decoder.events(request))) for request in requests]
    one, other = (decoder.events(request) for request in requests)
    events: list[list[Event]] = [[], []]
    for both in zip(one, other, strict=False):
        for kept, event in zip(events, both, strict=True):
            kept.append(event)
    events[0] += one
    events[1] += other
    assert [text_of(kept) for kept in events] == alone


def test_a_draft_that_is_the_target_is_accepted_whole() -> None:
    model = target_for("tiny_gpt2")
    rounds = rounds_of(list(StaticDecoder(model, DraftModel(model), 4).events(asked())))
    assert rounds and all(round.num_accepted == 4 for round in rounds)


@pytest.mark.parametrize(("draft_size", "withheld"), [(70, ()), (50, ()), (61, (3, 4, 7))])
def test_heads_of_different_sizes(draft_size: int, withheld: tuple[int, ...]) -> None:
    """A draft with more rows than the target, with fewer, and with tokens that mean something else."""
    target = target_for("tiny_llama")
    draft = wrap(tiny_llama(seed=4, vocab_size=draft_size, dtype=torch.float64))
    shared = SharedVocabulary(draft_size, VOCAB, frozenset(withheld))
    for temperature in (0.0, 1.5):
        request = asked(temperature=temperature, seed=1)
        events = list(StaticDecoder(target, DraftModel(draft, shared), 3).events(request))
        expected = list(SpeculativeDecoder(target, DraftModel(draft, shared), 3).events(request))
        assert text_of(events)[:-4] == text_of(expected)[:-4]
        drafted = {token for round in rounds_of(events) for token in round.draft_tokens}
        assert drafted and not drafted & set(withheld) and max(drafted) < min(draft_size, VOCAB)


# --- where it ends


def test_an_end_inside_the_draft_cuts_the_round() -> None:
    text = text_of(list(static_decoder(4).events(asked())))
    for round in rounds_of(list(static_decoder(4).events(asked())))[:6]:
        for token in round.emitted_tokens:
            stops = frozenset({token})
            events = list(static_decoder(4).events(asked(stop_ids=stops)))
            assert text_of(events) == text[: text.index(token) + 1]
            ended = events[-1]
            assert isinstance(ended, PromptEnded) and ended.finish_reason == "stop"
            assert told(rounds_of(events)) == told(rounds_of(list(usual(4).events(asked(stop_ids=stops)))))


@pytest.mark.parametrize("k", [2, 8])
def test_the_length_limit_cuts_what_is_emitted(k: int) -> None:
    decoder = static_decoder(k)
    whole = text_of(list(decoder.events(asked(40))))
    for length in (1, 2, 3, k, k + 1, k + 2, 30):
        events = list(decoder.events(asked(length)))
        assert text_of(events) == whole[:length]
        left = length - 1
        for round in rounds_of(events):
            assert len(round.draft_tokens) == round.k == k
            assert len(round.emitted_tokens) == min(round.num_accepted + 1, left)
            assert round.cut == (k > left - 1)
            left -= len(round.emitted_tokens)
        assert left == 0


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("num_prompt", [1, 230])
def test_up_to_the_end_of_the_context(family: str, num_prompt: int) -> None:
    """The last rounds stand beyond the model's positions with part of their rows."""
    model = target_for(family)
    prompt = tuple(i % VOCAB for i in range(num_prompt))
    for max_new_tokens in (20, 256 - num_prompt):
        if max_new_tokens > 100:
            continue
        request = Request(prompt, max_new_tokens)
        plain = text_of(list(AutoregressiveDecoder(model).events(request)))
        assert static_decoder(5, family).tokens(request) == plain
        assert StaticDecoder(model, None, width=6).tokens(request) == plain
    with pytest.raises(UsageError, match="more than the context of 256"):
        static_decoder(5, family).tokens(Request(prompt, 257 - num_prompt))


def test_slab_lengths() -> None:
    assert bucket_for(100, 5, None) == SMALLEST_BUCKET == 512
    assert bucket_for(507, 5, None) == 512 and bucket_for(508, 5, None) == 1024
    assert bucket_for(5000, 5, 8192) == 8192
    assert bucket_for(100, 5, 256) == 272  # 256 and a round, rounded up
    assert bucket_for(4096, 9, 4096) == 4112
    for positions in (1, 700, 4096):
        assert bucket_for(positions, 9, 4096) >= positions + 9


# --- to the last bit


@functools.cache
def rows_are_alike(width: int, dtype: torch.dtype) -> bool:
    """Whether this machine's products give a row the same bits wherever it stands among ``width``.

    MKL's do not in float64, where the last rows are left over from its tiles.
    """
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    weight, keys, row, query = random(64, 32), random(2, 272, 8), random(32), random(2, 8)
    linear, scores = [], []
    for place in range(width):
        x, q = random(width, 32), random(2, width, 8)
        x[place], q[:, place] = row, query
        linear.append(torch.nn.functional.linear(x, weight)[place])
        scores.append(torch.bmm(q, keys.transpose(1, 2))[:, place])
    return all(torch.equal(found, kind[0]) for kind in (linear, scores) for found in kind)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2", "tiny_mistral"])
def test_as_wide_as_a_verify_pass_plain_decoding_is_the_same_to_the_last_bit(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only the texts are equal: so are the logits that every token was chosen from."""
    k = 4
    logits: dict[int, Tensor] = {}
    real = StaticForward.__call__

    def watched(self: StaticForward, ids: Tensor, positions: Tensor, *rest: Any) -> Tensor:
        found = real(self, ids, positions, *rest)
        if self.own is wanted:
            # Later passes over a place are of tokens that stay.
            for position, row in zip(positions.tolist(), found, strict=False):
                logits[position] = row.clone()
        return found

    wanted = target_for(family, dtype)._forward
    monkeypatch.setattr(StaticForward, "__call__", watched)
    events = list(static_decoder(k, family, dtype).events(asked()))
    assert all(drafted_accepted_rejected(rounds_of(events)))
    speculated, last = dict(logits), len(PROMPT) + 38
    logits.clear()
    padded = StaticDecoder(target_for(family, dtype), None, width=k + 1)
    assert padded.tokens(asked()) == text_of(events)
    for position in range(len(PROMPT), last):
        if rows_are_alike(k + 1, dtype):
            assert torch.equal(logits[position], speculated[position]), position
        else:
            assert torch.allclose(logits[position], speculated[position], rtol=0, atol=1e-12)


# --- what is stale, and what is read


def test_stale_entries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [told(rounds_of(list(static_decoder(4, f).events(asked())))) for f in ("tiny_llama", "tiny_mistral")]
    catch_up = Lane.catch_up

    def poisoning(self: Lane, k: int) -> None:
        text = self._device_text
        last = int(text.last)
        for slab, first in ((text.target_slab, last), (text.draft_slab, last - 1)):
            assert slab is not None and slab.stacked is not None
            slab.stacked[:, :, :, first:] = 1e4
        catch_up(self, k)

    monkeypatch.setattr(Lane, "catch_up", poisoning)
    found = [told(rounds_of(list(static_decoder(4, f).events(asked())))) for f in ("tiny_llama", "tiny_mistral")]
    assert found == expected


class HostReads(TorchDispatchMode):
    """Notes operations that wait for a number, or whose shapes depend on one."""

    DATA_DEPENDENT = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "multinomial")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        self.count += 1
        boolean = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.DATA_DEPENDENT or boolean:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"detail": True}, {"synthetic_acceptance": 0.7}], ids=str)
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(0.8, 9, 0.9)], ids=str)
def test_nothing_is_read_inside_a_round(
    sampling: Sampling, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, lists = HostReads(), 0
    real = Tensor.tolist

    def counted(self: Tensor) -> Any:
        nonlocal lists
        lists += 1
        return real(self)

    def watched(self: Lane, *steps: Step) -> tuple[Step, ...]:
        def run(step: Step) -> None:
            before = lists
            with reads:
                step()
            assert lists == before

        return tuple(functools.partial(run, step) for step in steps)

    monkeypatch.setattr(Tensor, "tolist", counted)
    monkeypatch.setattr(Lane, "_made", watched)
    decoder, request = static_decoder(3, **options), replace(asked(), sampling=sampling)
    decoder.tokens(request)
    assert reads.count > 100 and not reads.found
    of_tokens = lists
    rounds = rounds_of(list(decoder.events(request)))
    assert not reads.found
    # Of each round its tokens, what they were chosen by and what is recorded, which arrive together; and one prefill.
    assert 0 < of_tokens <= 3 * len(rounds) + 1


def test_memory_stays_as_it_is() -> None:
    decoder = static_decoder(EveryK(3))

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    list(decoder.events(asked()))
    list(decoder.events(asked()))
    before = tensors()
    for seed in range(4):
        list(decoder.events(asked(60, seed=seed)))
    assert tensors() == before
    assert sum(map(len, decoder._idle.values())) == 1


def test_another_temperature_makes_other_rounds() -> None:
    decoder = static_decoder(3)
    for temperature in (0.0, 1.0, 0.0):
        request = asked(temperature=temperature, seed=1)
        assert text_of(list(decoder.events(request)))[:-4] == text_of(list(usual(3).events(request)))[:-4]


# --- K that changes


class Scripted:
    """One K after the other, plain steps in rows among them."""

    name, longest = "scripted", 4

    def __init__(self) -> None:
        self._turn = -1

    def choose(self, room: int) -> int:
        self._turn += 1
        return (2, 0, 0, 0, 4, 1, 0, 3)[self._turn % 8]

    def observe(self, round: Round) -> None:
        return


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
def test_k_may_change_with_every_round(family: str, temperature: float) -> None:
    request = asked(60, temperature, seed=3)
    found = rounds_of(list(static_decoder(Scripted(), family).events(request)))
    expected = rounds_of(list(usual(Scripted(), family).events(request)))
    whole = whole_of(expected)
    assert {round.k for round in found} == {0, 1, 2, 3, 4}
    assert told(found, whole) == told(expected, whole)


def test_adaptive_k_learns_from_static_rounds() -> None:
    adaptive = AdaptiveK(3)
    decoder = static_decoder(adaptive)
    text = text_of(list(decoder.events(asked(120))))
    assert text == text_of(list(AutoregressiveDecoder(target_for("tiny_llama")).events(asked(120))))
    assert all(speed > 0 for speed in adaptive.speeds())
    assert decoder.label == "SD-Kauto"
    with pytest.raises(UsageError, match="K auto"):
        decoder.tokens(asked())


# --- the law


CUT_AND_WHOLE = Setting(3, 2, 4, Sampling(0.7), lambda: few_tokens_draft(3))
"""Its first round is whole, unless it is cut."""


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(CUT_AND_WHOLE, marks=pytest.mark.slow),
        Setting(3, 1, 4, Sampling(1.0, top_k=2), lambda: few_tokens_draft(3)),
        Setting(4, 1, 3, Sampling(1.0), lambda: few_tokens_draft(3, 4), prompt=(1, 3)),
        Setting(2, 3, 3, Sampling(1.0), lambda: few_tokens_draft(2), prompt=(1,)),
    ],
    ids=["K=2", "top-k", "draft with fewer rows", "K=3, always cut"],
)
def test_every_path_adds_up_to_the_targets_law(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    forks = Forks()
    monkeypatch.setattr(static_round, "draw", forks.draw)
    monkeypatch.setattr(static_lane, "draw", forks.draw)
    monkeypatch.setattr(static_round, "count_accepted", forks.count)
    decoder = law_decoder(setting)
    law: dict[tuple[int, ...], float] = {}
    generations: list[Generation] = []
    for _ in forks.paths():
        generation = generate(decoder, setting.request())  # type: ignore[arg-type]
        law[generation.tokens] = law.get(generation.tokens, 0.0) + forks.probability
        generations.append(generation)
    expected = law_of(setting)
    assert sum(law.values()) == pytest.approx(1, abs=1e-10)
    assert max(abs(law.get(text, 0.0) - share) for text, share in expected.items()) < 1e-10
    assert all(sum(getattr(g, name) for g in generations) for name in ("drafted", "accepted", "rejected"))


def test_generations_follow_the_targets_law() -> None:
    setting = replace(CUT_AND_WHOLE, draws=400)
    law = law_of(setting)
    counts, _ = counts_of(law_decoder(setting), setting, law)  # type: ignore[arg-type]
    share = np.array(list(law.values()))
    assert chi_square_p(counts, share) > ALPHA
    assert total_variation(counts, share) < total_variation_bound(share, int(counts.sum()), ALPHA)


def law_decoder(setting: Setting) -> StaticDecoder:
    def own(model: ModelWrapper) -> ModelWrapper:
        return ModelWrapper(model.model, forward="own")

    proposed = setting.drafter()
    assert isinstance(proposed, DraftModel) and isinstance(setting.k, int)
    return StaticDecoder(own(target_of(setting.vocab_size)), proposed, setting.k)


# --- synthetic acceptance


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_synthetic_acceptance(temperature: float) -> None:
    for rate in (0.0, 1.0):
        rounds = rounds_of(list(static_decoder(3, synthetic_acceptance=rate).events(asked(temperature=temperature))))
        assert {round.num_accepted for round in rounds} == {3 * int(rate)}
        assert all(round.target_prob is None for round in rounds)
    decoder = static_decoder(1, synthetic_acceptance=0.7)
    rounds = [r for seed in range(8) for r in rounds_of(list(decoder.events(asked(80, temperature, seed=seed))))]
    accepted = sum(round.num_accepted for round in rounds)
    assert abs(accepted / len(rounds) - 0.7) < 4 * (0.21 / len(rounds)) ** 0.5
    again = rounds_of(list(decoder.events(asked(80, temperature, seed=7))))
    assert told(again) == told(rounds[-len(again) :])


# --- capture, as far as it can be seen without a GPU


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Step]], None]:
    """Has graphs be "captured" on the CPU, by a function that stands in for :meth:`Graphs.capture`."""
    monkeypatch.setattr(static, "why_not_captured", lambda target, drafter: None)
    return lambda capture: monkeypatch.setattr(Graphs, "capture", capture)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_precedes_a_capture_leaves_no_trace(temperature: float, pretended: Any) -> None:
    captured: list[Step] = []

    def capture(self: Graphs, step: Step, generators: Any, changes: Any) -> Step:
        warm_up(step, generators, changes)
        captured.append(step)
        return step

    pretended(capture)
    request = asked(60, temperature, seed=5)
    decoder = static_decoder(Scripted())
    found = rounds_of(list(decoder.events(request)))
    assert decoder.captured and len(captured) == 3 * 4 + 2  # three phases each; a plain step drafts nothing
    expected = rounds_of(list(usual(Scripted()).events(request)))
    whole = whole_of(expected)
    assert told(found, whole) == told(expected, whole)
    list(decoder.events(request))
    assert len(captured) == 14, "made again for the next request"


@pytest.mark.parametrize("fails_at", [1, 2, 5])
def test_a_capture_that_fails_leaves_a_decoder_that_works(fails_at: int, pretended: Any) -> None:
    calls = 0

    def capture(self: Graphs, step: Step, generators: Any, changes: Any) -> Step:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            step()
            for generator in generators:
                generator.manual_seed(0)
            self.failure = "operation not permitted"
            raise ResourceError(self.failure, "")
        warm_up(step, generators, changes)
        return step

    pretended(capture)
    decoder, request = static_decoder(Scripted()), asked(60, 1.0, seed=5)
    found = rounds_of(list(decoder.events(request)))
    expected = rounds_of(list(usual(Scripted()).events(request)))
    assert told(found, whole_of(expected)) == told(expected, whole_of(expected))
    assert calls == fails_at and not decoder.captured and decoder.why_uncaptured == "operation not permitted"


def test_where_graphs_were_asked_for_nothing_runs_without(pretended: Any) -> None:
    """Not the next request either. What can be captured by then is, with generators that no failure has touched."""
    refused: list[Step] = []
    given: list[set[torch.Generator]] = []

    def capture(self: Graphs, step: Step, generators: Any, changes: Any) -> Step:
        given.append(set(generators))
        if len(refused) < 2:
            refused.append(step)
            self.failure = "operation not permitted"
            raise ResourceError(self.failure, "")
        return step

    pretended(capture)
    decoder = static_decoder(3, capture=True)
    for _ in range(2):
        with pytest.raises(ResourceError):
            list(decoder.events(asked()))
    assert text_of(list(decoder.events(asked()))) == static_decoder(3).tokens(asked())
    assert len(refused) == 2 and not given[0] & given[1] and not given[1] & given[2]


class Recording:
    """Stands in for a CUDA graph: has no hold on what it replays, and its memory ends with the last graph in it."""

    now: ClassVar[Recording | None] = None
    alive: ClassVar[weakref.WeakSet[Recording]] = weakref.WeakSet()
    streams: ClassVar[set[object]] = set()

    def __init__(self) -> None:
        self._pool: object = object()
        self._round: Callable[[], StaticRound | None] = lambda: None
        self._step: Callable[[StaticRound], None] | None = None

    def pool(self) -> object:
        return self._pool

    def register_generator_state(self, generator: torch.Generator) -> None:
        return

    def replay(self) -> None:
        round = self._round()
        assert round is not None and self._step is not None, "what the graph reads is gone"
        self._step(round)

    class Begun:
        def __init__(self, graph: Recording, pool: object, stream: object, capture_error_mode: str) -> None:
            assert pool is None or any(other.pool() is pool for other in Recording.alive), "the memory is gone"
            graph._pool = pool or graph._pool
            Recording.streams.add(stream)
            self._graph = graph

        def __enter__(self) -> None:
            Recording.now = self._graph

        def __exit__(self, *args: object) -> None:
            Recording.alive.add(self._graph)
            Recording.now = None

    @staticmethod
    def of(step: Callable[[StaticRound], None]) -> Callable[[StaticRound], None]:
        def recorded(self: StaticRound) -> None:
            if Recording.now is None:
                step(self)
            else:
                Recording.now._round, Recording.now._step = weakref.ref(self), step

        return recorded


def test_graphs_and_what_they_read_live_as_long_as_they_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "why_not_captured", lambda target, drafter: None)
    for name, fake in {
        "CUDAGraph": Recording,
        "graph": Recording.Begun,
        "Stream": object,
        "device": lambda device: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for name in ("draft", "verify", "decide", "whole"):
        monkeypatch.setattr(StaticRound, name, Recording.of(getattr(StaticRound, name)))
    decoder, uncaptured = static_decoder(3), static_decoder(3, capture=False)
    for temperature in (0.0, 1.0, 0.0):  # another temperature: all graphs go, and others are captured
        request = asked(temperature=temperature, seed=4)
        expected = uncaptured.tokens(request)
        assert text_of(list(decoder.events(request))) == decoder.tokens(request) == expected
        gc.collect()
        assert text_of(list(decoder.events(request))) == decoder.tokens(request) == expected
    assert decoder.captured and len(Recording.alive) == 4
    assert len(Recording.streams) == 1 and None not in Recording.streams


def test_results_have_arrived_when_an_event_of_their_own_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"ruling": torch.arange(5), "scores": torch.zeros(8), "seen": torch.zeros(4, 4)}
    text: Any = SimpleNamespace(device=torch.device("cpu"), **tensors)
    reading, done = Reading(text), list[str]()
    manner = static_round.Manner(Sampling(), detail=False, synthetic_acceptance=None)
    event: Any = SimpleNamespace(record=done.append, synchronize=lambda: done.append("waited"))
    text.device, reading._arrived = torch.device("cuda:1"), event
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"of {device}")
    assert reading.read(manner, 3).draft_tokens == (0, 1, 2) and done == ["of cuda:1", "waited"]


def test_warming_up_runs_a_step_a_few_times_and_puts_back_what_it_changed() -> None:
    place, generator, drawn = torch.ones(1), torch.Generator().manual_seed(1), []

    def step() -> None:
        place.add_(1)
        drawn.append(float(torch.rand(1, generator=generator)))

    warm_up(step, (generator,), (place,))
    assert len(set(drawn)) == WARM_UP_RUNS and float(place) == 1
    assert float(torch.rand(1, generator=generator)) == drawn[0]


def test_a_caller_in_inference_mode_changes_nothing() -> None:
    """What is captured there first could not be seeded again elsewhere."""
    decoder = static_decoder(3)
    with torch.inference_mode():
        text = decoder.tokens(asked(temperature=1.0))
        lane = decoder._idle[bucket_for(45, 4, 256), 4][0]
        assert not any(t.is_inference() for t in vars(lane._device_text).values() if isinstance(t, Tensor))
        assert not lane._device_text.target_slab.stacked.is_inference()
    assert text_of(list(decoder.events(asked(temperature=1.0)))) == text


# --- weights that know how to multiply themselves


def test_quantised_layers() -> None:
    own = own_forward(tiny_llama(seed=2, vocab_size=VOCAB, dtype=torch.float64))

    def quantised(matrix: Any) -> QuantisedMatrix:
        layer = torch.nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, dtype=torch.float64)
        layer.weight = torch.nn.Parameter(matrix, requires_grad=False)
        return QuantisedMatrix((layer,))

    ids, positions = torch.tensor([3, 1, 4]), torch.arange(3)
    expected = StaticForward(own)(ids, positions, own.new_slab(16), 16)
    for layer in own.layers:
        layer.down, layer.qkv = quantised(layer.down), quantised(layer.qkv)
    own.linear = LinearChoice([m for layer in own.layers for m in (layer.qkv, layer.out)], measure=False)
    assert torch.allclose(StaticForward(own)(ids, positions, own.new_slab(16), 16), expected, atol=1e-12)


# --- what can't be decoded this way


def test_what_the_static_path_is_not_for() -> None:
    target = target_for("tiny_llama")
    other = ModelWrapper(tiny_gpt_neox(vocab_size=VOCAB))
    by_hf = ModelWrapper(target.model, forward="hf")
    reasons: list[tuple[ModelWrapper, Drafter | None, str]] = [
        (target, NGramLookup(VOCAB, target.device), "prompt lookup needs the host"),
        (target, LayerSkip(target, 1), "layer skip needs the host"),
        (target, DraftModel(noisy("tiny_llama"), threshold=0.5), "threshold"),
        (other, None, "no own forward for the gpt_neox family"),
        (by_hf, None, "which was asked for"),
        (target, DraftModel(other), "no own forward"),
    ]
    for model, proposer, reason in reasons:
        assert reason in (why_not_static(model, proposer) or "")
        with pytest.raises(UsageError, match="static path"):
            StaticDecoder(model, proposer)  # type: ignore[arg-type]
    hooked = copy.deepcopy(target.model)
    hooked.model.layers[0].register_forward_hook(lambda module, args, output: output)
    assert "hooks" in (why_not_static(ModelWrapper(hooked), None) or "")
    assert why_not_static(target, None) is None and why_not_static(target, drafter()) is None
    assert why_not_captured(target, drafter()) == "CUDA graphs need a CUDA device"
    decoder = StaticDecoder(target, drafter(), 2)
    assert not decoder.captured and decoder.why_uncaptured == "CUDA graphs need a CUDA device"
    assert StaticDecoder(target, None, capture=False).why_uncaptured is None


def test_options_that_make_no_sense() -> None:
    target = target_for("tiny_llama")
    for bad in (
        lambda: StaticDecoder(target, None, 3),
        lambda: StaticDecoder(target, drafter(), 3, width=4),
        lambda: StaticDecoder(target, None, width=0),
        lambda: StaticDecoder(target, drafter(), -1),
        lambda: StaticDecoder(target, drafter(), 3, synthetic_acceptance=1.5),
        lambda: StaticDecoder(target, None, capture=True),
        lambda: list(StaticDecoder(target, None).events(replace(asked(), draft_prompt_ids=(1, 2)))),
    ):
        with pytest.raises(UsageError) as caught:
            bad()
        assert caught.value.hint


def test_without_a_draft_it_is_the_baseline() -> None:
    decoder = StaticDecoder(target_for("tiny_llama"), None)
    rounds = rounds_of(list(decoder.events(asked(10))))
    assert decoder.label == "AR" and decoder.drafter is None
    assert all(r.k is None and r.draft_tokens == () and r.draft_seconds == 0 and not r.cut for r in rounds)
    assert static_decoder(0).label == "SD-K0"
    assert all(round.k == 0 for round in rounds_of(list(static_decoder(0).events(asked(10)))))


def test_the_seconds_of_a_round_are_all_accounted_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves when it is read: at the begin, after each phase, at the end."""
    readings = 0

    def read() -> float:
        nonlocal readings
        readings += 1
        return float(readings)

    monkeypatch.setattr(timer, "perf_counter", read)
    for decoder in (StaticDecoder(target_for("tiny_llama"), None), static_decoder(2)):
        ended = []
        for event in decoder.events(asked(10)):
            ended.append((readings, event))
        for (before, _), (after, round) in itertools.pairwise(ended[1:-1]):  # the first one has its phases made
            assert isinstance(round, Round) and round.verify_seconds == round.sample_seconds == 1
            assert round.seconds == after - before - 1  # from the first reading to the last


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Compiles no code, but all else is as if: what passes are told apart by. Returns how many were, so far."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    return lambda: counters["stats"]["unique_graphs"]


def test_a_longer_text_has_nothing_compiled_anew(traced: Callable[[], int]) -> None:
    model = wrap(copy.deepcopy(tiny_llama(vocab_size=VOCAB)))
    model.max_context = 1024
    decoder = StaticDecoder(model, DraftModel(model), 2, compile=True)
    short, long = asked(8), Request(PROMPT * 110, 8)
    made = []
    for request in (short, long, short, long):
        before = traced()
        list(decoder.events(request))
        made.append(traced() - before)
    assert made[0] == made[1] == 3 and made[2] == made[3] == 0  # the target's pass, the draft's first and others


def test_what_is_measured_later_has_nothing_compiled_anew(traced: Callable[[], int]) -> None:
    own = own_forward(tiny_llama(vocab_size=VOCAB, dtype=torch.float64))
    forward = StaticForward(own, AttentionChoice(functions={"only": explicit}, timer=lambda work: 1.0), compile=True)
    slabs = {capacity: own.new_slab(capacity) for capacity in (64, 32)}
    before = traced()
    for _ in range(2):
        for width, capacity in ((1, 64), (3, 64), (2, 32)):
            for _ in range(3):
                forward(torch.arange(width), torch.arange(width), slabs[capacity], capacity)
    assert traced() - before == len(forward.attention.chosen()) == 3  # type: ignore[attr-defined]


def test_more_shapes_than_can_be_compiled(traced: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_forward, "_MOST_SHAPES", 2)
    forward = StaticForward(own_forward(tiny_gpt2(vocab_size=VOCAB)), compile=True)
    slab = forward.new_slab(16)

    def twice(width: int) -> None:
        for _ in range(2):
            forward(torch.arange(width), torch.arange(width), slab, 16)

    twice(1)
    twice(2)
    with pytest.raises(ResourceError, match="can't be compiled"):
        twice(3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2"])
def test_compiled_rounds_are_the_same(family: str) -> None:
    before = counters["stats"]["unique_graphs"]
    decoder = static_decoder(2, family, compile=True)
    for temperature in (0.0, 1.0):
        request = asked(20, temperature, seed=1)
        text = text_of(list(decoder.events(request)))
        assert text == static_decoder(2, family).tokens(request) == decoder.tokens(request)
    assert counters["stats"]["unique_graphs"] > before, "nothing was compiled"
