"""What only a GPU can show of the static path and its graphs, on models that are small.

Each body takes a device. It runs on the CPU too, uncaptured: there it tests the test.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import importlib.util
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import DraftModel
from specprof.decoding.request import Request
from specprof.decoding.sampling import Sampling
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.decoding.static import StaticDecoder
from specprof.errors import SpecprofError
from specprof.models.attention_choice import CANDIDATES
from specprof.models.slab_attention import SlabRows, explicit
from specprof.models.wrapper import ModelWrapper
from specprof.profiling import machine
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round
from specprof.profiling.metrics import fold
from tiny_models import tiny_gpt2, tiny_llama, tiny_mistral

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
HALVES = (torch.float16, torch.bfloat16)
FAMILIES: dict[str, Callable[..., Any]] = {"gpt2": tiny_gpt2, "llama": tiny_llama, "mistral": tiny_mistral}
VOCAB = 61
PROMPT = (5, 9, 3, 22, 17)
K = 4
LENGTH = 60


@functools.cache
def pair(family: str, device: str, dtype: torch.dtype) -> tuple[ModelWrapper, ModelWrapper]:
    """A target, and itself with noise on every matrix: a draft that is often right and often wrong."""
    target = copy.deepcopy(FAMILIES[family](vocab_size=VOCAB))
    noisy, generator = copy.deepcopy(target), torch.Generator().manual_seed(3)
    for parameter in noisy.parameters():
        if parameter.dim() == 2:
            parameter.add_(0.08 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return ModelWrapper(target.to(device, dtype), name="target"), ModelWrapper(noisy.to(device, dtype), name="draft")


def speculative(family: str, device: str, dtype: torch.dtype = torch.float32, **options: Any) -> StaticDecoder:
    target, draft = pair(family, device, dtype)
    options = {"capture": device == "cuda"} | options
    return StaticDecoder(target, DraftModel(draft), options.pop("k", K), **options)


def plain(family: str, device: str, dtype: torch.dtype = torch.float32, **options: Any) -> StaticDecoder:
    return StaticDecoder(pair(family, device, dtype)[0], None, **({"capture": device == "cuda"} | options))


def request(index: int = 0, *, temperature: float = 0.0, length: int = LENGTH, **changes: Any) -> Request:
    prompt = tuple((token + 7 * index) % VOCAB for token in PROMPT)
    return Request(prompt, length, Sampling(temperature), prompt_id=f"p{index}", **changes)


def rounds_of(events: Sequence[Event]) -> list[Round]:
    return [event for event in events if isinstance(event, Round)]


def text_of(decoder: AutoregressiveDecoder | SpeculativeDecoder | StaticDecoder, asked: Request) -> list[int]:
    return next(fold(decoder.events(asked))).generated_ids


# The output is the target's


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_16_bits_speculation_is_plain_decoding_of_the_same_width(
    family: str, dtype: torch.dtype, device: str
) -> None:
    """To the last token: passes of one width add up in one order."""
    drafting, padded = speculative(family, device, dtype), plain(family, device, dtype, width=K + 1)
    judged = Counter[bool]()
    for index in range(3):
        events = list(drafting.events(request(index)))
        assert next(fold(iter(events))).generated_ids == padded.tokens(request(index))
        for round in rounds_of(events):
            judged.update([True] * round.num_accepted + [False] * (round.num_accepted < len(round.draft_tokens)))
    assert judged[True] > 5 and judged[False] > 5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_is_the_eager_loops(family: str, device: str) -> None:
    target, draft = pair(family, device, torch.float32)
    eager, eager_plain = SpeculativeDecoder(target, DraftModel(draft), K), AutoregressiveDecoder(target)
    static, static_plain = speculative(family, device), plain(family, device)
    for index in range(3):
        expected = text_of(eager_plain, request(index))
        assert text_of(eager, request(index)) == expected
        for decoder in (static, static_plain):
            assert text_of(decoder, request(index)) == decoder.tokens(request(index)) == expected
    assert static.captured == static_plain.captured == (device == "cuda")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_text_is_hugging_faces(family: str, device: str) -> None:
    reference = copy.deepcopy(FAMILIES[family](vocab_size=VOCAB)).to(device)
    reference.generation_config.eos_token_id = None
    ids = torch.tensor([PROMPT], device=device)
    output = reference.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=LENGTH, do_sample=False, pad_token_id=0
    )
    assert speculative(family, device).tokens(request()) == output[0, len(PROMPT) :].tolist()


# Randomness


@pytest.mark.parametrize("device", DEVICES)
def test_a_seed_says_what_is_drawn_and_every_round_draws_anew(device: str) -> None:
    decoder = speculative("llama", device, detail=True)
    asked = request(temperature=1.0)
    events = list(decoder.events(asked))
    assert list(map(_drawn, rounds_of(list(decoder.events(asked))))) == list(map(_drawn, rounds_of(events)))
    fresh = speculative("llama", device, detail=True)
    assert list(map(_drawn, rounds_of(list(fresh.events(asked))))) == list(map(_drawn, rounds_of(events)))
    uniforms = [round.uniforms for round in rounds_of(events)]
    assert len(set(uniforms)) == len(uniforms) > 5, "a replay that repeats its random numbers"
    others = [request(temperature=1.0, seed=1), request(temperature=1.0, repetition=1)]
    texts = [decoder.tokens(each) for each in (asked, *others)]
    assert len(set(map(tuple, texts))) == 3
    assert texts[0] == next(fold(iter(events))).generated_ids


@pytest.mark.parametrize("device", DEVICES)
def test_one_decoder_does_as_it_is_asked_in_turn(device: str) -> None:
    """Greedy, sampled, greedy: its rounds are made anew each time, whatever lies where the old ones' tensors were."""
    decoder = speculative("llama", device)
    for temperature in (0.0, 1.0, 0.0):
        asked = request(temperature=temperature, seed=3)
        expected = speculative("llama", device, capture=False).tokens(asked)
        for _ in range(2):
            gc.collect()
            between = [torch.full((K + 1,), 10**6, device=device) for _ in range(50)]
            assert decoder.tokens(asked) == text_of(decoder, asked) == expected
            del between


def _drawn(round: Round) -> tuple[object, ...]:
    return round.draft_tokens, round.num_accepted, round.emitted_tokens, round.uniforms


# The host looks on

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
READS = ("aten::_local_scalar_dense", "aten::nonzero")
"""What stops the host until the device is there, whatever it is called by."""


def stops(work: Callable[[], object], device: str) -> Counter[str]:
    """How often the host waits for the device, by what it waits in."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    work()
    with profile(activities=activities) as found:
        work()
    return Counter(event.name for event in found.events() or () if event.name in (*WAITS, *READS))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("watched", [False, True], ids=["tokens", "events"])
def test_a_round_waits_for_the_device_once(watched: bool, device: str) -> None:
    """The prefill may do as it likes: of two generations the longer one has only more rounds."""
    decoder = speculative("llama", device, synthetic_acceptance=0.0)
    asked = [request(length=length) for length in (4, 9)]
    ways: dict[bool, Callable[[Request], object]] = {False: decoder.tokens, True: lambda r: list(decoder.events(r))}
    short, long = (stops(functools.partial(ways[watched], each), device) for each in asked)
    more_rounds = 5
    assert sum(long[name] - short[name] for name in WAITS) <= more_rounds
    assert all(long[name] == short[name] for name in READS)

    # Counting works: the eager loop reads a number of each token.
    eager = AutoregressiveDecoder(pair("llama", device, torch.float32)[0])
    short, long = (stops(functools.partial(text_of, eager, each), device) for each in asked)
    assert long[READS[0]] - short[READS[0]] == more_rounds


def held_bytes(device: str) -> int:
    """What tensors take up: by the allocator's account, or by looking for them."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    found = (each for each in gc.get_objects() if isinstance(each, torch.Tensor))
    return sum({each.data_ptr(): each.untyped_storage().nbytes() for each in found}.values())


@pytest.mark.parametrize(("device", "num_rounds"), [("cpu", 300), pytest.param("cuda", 10_000, marks=pytest.mark.gpu)])
def test_rounds_leave_no_memory_behind(device: str, num_rounds: int) -> None:
    decoder = speculative("llama", device, synthetic_acceptance=0.0)
    length = 151
    decoder.tokens(request(length=length))
    list(decoder.events(request(length=length)))
    before = held_bytes(device)
    reserved = torch.cuda.memory_reserved() if device == "cuda" else 0
    for repetition in range(num_rounds // (length - 1) // 2 + 1):
        decoder.tokens(request(length=length, repetition=repetition))
        events = list(decoder.events(request(length=length, repetition=repetition)))
        assert len(rounds_of(events)) == length - 1
        del events
    assert held_bytes(device) <= before
    assert device == "cpu" or torch.cuda.memory_reserved() == reserved


@pytest.mark.parametrize("device", DEVICES)
def test_each_phase_says_its_peak_memory(device: str) -> None:
    decoder = speculative("llama", device)
    events = list(decoder.events(request()))
    (prefilled,) = (event for event in events if isinstance(event, Prefilled))
    (ended,) = (event for event in events if isinstance(event, PromptEnded))
    weights = sum(p.numel() * p.element_size() for wrapper in pair("llama", device, torch.float32) for p in
                  wrapper.model.parameters())  # fmt: skip
    assert prefilled.peak_memory_bytes > weights and ended.peak_memory_bytes > weights
    if device == "cuda":
        # The allocator's account is exact: a prefill of twice the prompt needs more, rounds of the same shape do not.
        long = dataclasses.replace(request(length=20), prompt_ids=PROMPT * 20)
        short = dataclasses.replace(request(length=20), prompt_ids=PROMPT)
        peaks = [next(e for e in decoder.events(each) if isinstance(e, Prefilled)).peak_memory_bytes
                 for each in (short, long)]  # fmt: skip
        assert peaks[1] > peaks[0]
        ends = [list(decoder.events(short))[-1] for _ in range(2)]
        assert len({end.peak_memory_bytes for end in ends if isinstance(end, PromptEnded)}) == 1


# What rounds are made of


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("window", [None, 100])
def test_every_attention_is_right(window: int | None, dtype: torch.dtype, device: str) -> None:
    """Against the plain one in float64; one that can't run here says so."""
    tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    generator = torch.Generator().manual_seed(0)
    ran = set()
    for bucket, last, width in ((512, 511, 1), (512, 300, 5), (2048, 1500, 9)):
        q = torch.randn(8, width, 64, generator=generator).to(device, dtype)
        keys, values = (torch.randn(2, bucket, 64, generator=generator).to(device, dtype) for _ in range(2))
        positions = torch.arange(last - width + 1, last + 1, device=device)
        rows = SlabRows(positions, bucket, torch.float64)
        exact = explicit(q.double(), keys.double(), values.double(), rows, window, 0.125)
        for name, attend in CANDIDATES.items():
            try:
                found = attend(q, keys, values, SlabRows(positions, bucket, dtype), window, 0.125)
            except (SpecprofError, RuntimeError, ValueError):
                assert name != "explicit"
                continue
            ran.add(name)
            assert float((found.double() - exact).abs().max()) < tolerance, name
    assert "explicit" in ran
    assert device == "cpu" or importlib.util.find_spec("triton") is None or "split_kv" in ran


@pytest.mark.parametrize("device", DEVICES)
def test_rolling_back_moves_no_memory(device: str) -> None:
    """All accepted or none: the same kernels run, as often."""
    counts = []
    for acceptance in (0.0, 1.0):
        decoder = speculative("llama", device, synthetic_acceptance=acceptance)
        counts.append(_launches_of_rounds(decoder, device))
    assert counts[0] == counts[1] and sum(counts[0].values()) > 0


def _launches_of_rounds(decoder: StaticDecoder, device: str) -> Counter[str]:
    """Kernels, or operators on a CPU, that five rounds launch."""
    from torch.profiler import ProfilerActivity, profile

    def five() -> None:
        events = decoder.events(request(length=100))
        assert len(list(itertools.islice((event for event in events if isinstance(event, Round)), 5))) == 5

    five()
    kind = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as found:
        five()
    return Counter(event.name for event in found.events() or ())


# The whole house


@pytest.mark.gpu
def test_graphs_are_the_default_and_captured_in_the_warm_up() -> None:
    pytest.importorskip("accelerate")
    from specprof.data.prompts import builtin
    from specprof.experiments.arms import load_arms
    from specprof.experiments.config import RunConfig
    from specprof.experiments.run import encode_prompts, measure, warm_up
    from specprof.models.registry import get_pair

    config = RunConfig(get_pair("tiny_dev"), max_new_tokens=24, repetitions=1)
    arms = load_arms(config)
    prompts = encode_prompts(config, arms, list(builtin().take(3)))
    warm_up(config, arms, prompts)
    captured = arms.describe_engine()
    assert captured["engine_used"] == "graph" and captured["why_not_graph"] is None and captured["capture_seconds"] > 0
    started, *events = measure(config, arms, prompts, "run")
    assert getattr(started, "config", {})["engine_used"] == "graph"
    assert arms.describe_engine() == captured, "something was captured while it was measured"
    assert {event.decoder for event in rounds_of(events)} == {"AR", "SD-K4"}


@pytest.mark.gpu
def test_a_run_says_which_gpu_it_ran_on() -> None:
    found = machine.describe()["gpu"]
    assert found is not None and found["name"] == torch.cuda.get_device_name() and found["count"] >= 1


@pytest.mark.gpu
def test_energy_is_read_from_the_gpu() -> None:
    pytest.importorskip("pynvml")
    from specprof.experiments.run import energy_meter

    decoder = speculative("llama", "cuda")
    meter = energy_meter(decoder.target)
    if meter is None:
        pytest.skip("this GPU, or its driver, has no energy counter")
    before = meter.read()
    # Counters move by the millijoule, some of them ten times a second.
    for repetition in range(40):
        decoder.tokens(request(length=150, repetition=repetition))
    joules = meter.since(before)
    assert joules is not None and joules > 0
