"""The cache: shapes, roll-back that moves nothing, handles that leave each other alone, no stale entry ever seen."""

from __future__ import annotations

import copy
import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from specprof.decoding.drafters import DraftModel
from specprof.decoding.request import Request
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.errors import UsageError
from specprof.models.kv_cache import KVCache, Slab
from specprof.models.wrapper import ForwardName, ModelWrapper
from tiny_models import tiny_gpt2, tiny_gpt_neox, tiny_llama, tiny_mistral, tiny_qwen3

VOCAB = 61
POISON = 1e4

torch.set_num_threads(1)


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.tensor([random.Random(seed).choices(range(VOCAB), k=count)])


@pytest.fixture(scope="module", params=["own", "hf"])
def wrapper(request: pytest.FixtureRequest) -> ModelWrapper:
    """GPT-2 of 2 layers, 4 heads of width 8."""
    return ModelWrapper(copy.deepcopy(tiny_gpt2(vocab_size=VOCAB)), forward=request.param)


@pytest.fixture
def cache(wrapper: ModelWrapper) -> KVCache:
    """20 tokens."""
    _, cache = wrapper.forward(tokens(20))
    assert cache is not None
    return cache


def contents(cache: KVCache) -> list[tuple[Tensor, Tensor]]:
    return [(keys.clone(), values.clone()) for keys, values in cache]


def assert_same(cache: KVCache, expected: list[tuple[Tensor, Tensor]]) -> None:
    assert len(cache) == len(expected)
    for (keys, values), (expected_keys, expected_values) in zip(cache, expected, strict=True):
        assert torch.equal(keys, expected_keys)
        assert torch.equal(values, expected_values)


class Operations(TorchDispatchMode):
    """Every tensor operation that runs, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class TestCacheShape:
    def test_one_entry_per_layer(self, cache: KVCache) -> None:
        assert len(cache) == 2
        assert len(list(cache)) == 2

    def test_each_entry_is_keys_and_values(self, cache: KVCache) -> None:
        for layer in range(len(cache)):
            keys, values = cache[layer]
            assert keys.shape == values.shape == (1, 4, 20, 8)
            assert not torch.equal(keys, values)

    def test_grouped_queries_keep_only_the_key_value_heads(self) -> None:
        for forward in ("own", "hf"):
            wrapper = ModelWrapper(copy.deepcopy(tiny_qwen3(vocab_size=VOCAB)), forward=forward)
            _, cache = wrapper.forward(tokens(20))
            assert cache is not None
            assert cache[0][0].shape == (1, 2, 20, 16)  # head_dim is not hidden size over heads here

    def test_get_cache_length(self, wrapper: ModelWrapper, cache: KVCache) -> None:
        assert wrapper.get_cache_length(cache) == 20
        assert wrapper.get_cache_length(None) == 0
        assert wrapper.get_cache_length(wrapper.new_cache(5)) == 0

    def test_a_layer_that_does_not_exist(self, cache: KVCache) -> None:
        with pytest.raises(IndexError):
            cache[2]

    def test_a_layer_that_holds_nothing_yet(self) -> None:
        with pytest.raises(IndexError, match="holds nothing yet"):
            KVCache(Slab(num_layers=2, capacity=8))[1]

    def test_the_entries_are_the_models_keys(self, wrapper: ModelWrapper, cache: KVCache) -> None:
        theirs = wrapper.model(input_ids=tokens(20), use_cache=True).past_key_values
        for layer, (keys, values) in enumerate(cache):
            torch.testing.assert_close(keys, theirs.layers[layer].keys, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(values, theirs.layers[layer].values, atol=1e-4, rtol=1e-4)

    def test_repr(self, cache: KVCache) -> None:
        assert repr(cache) == f"KVCache(layers=2, length=20, capacity={cache.capacity})"


class TestCacheTruncation:
    @pytest.mark.parametrize("keep", [0, 1, 10, 20])
    def test_shapes_and_contents(self, wrapper: ModelWrapper, cache: KVCache, keep: int) -> None:
        before = contents(cache)
        truncated = wrapper.truncate_cache(cache, keep_length=keep)
        assert wrapper.get_cache_length(truncated) == keep
        assert_same(truncated, [(keys[:, :, :keep], values[:, :, :keep]) for keys, values in before])

    def test_the_original_keeps_its_length_and_contents(self, wrapper: ModelWrapper, cache: KVCache) -> None:
        before = contents(cache)
        truncated = wrapper.truncate_cache(cache, keep_length=10)
        assert cache.length == 20
        for seed in (1, 2):
            # Different tokens at the positions that the original still shows.
            _, continued = wrapper.forward(tokens(15, seed), past_key_values=truncated)
            assert continued is not None and continued.length == 25
            assert truncated.length == 10
            assert_same(cache, before)
        assert_same(truncated, [(keys[:, :, :10], values[:, :, :10]) for keys, values in before])

    def test_two_continuations_of_one_cache_do_not_see_each_other(self, wrapper: ModelWrapper, cache: KVCache) -> None:
        left_logits, left = wrapper.forward(tokens(3, 1), past_key_values=cache)
        right_logits, right = wrapper.forward(tokens(3, 2), past_key_values=cache)
        assert left is not None and right is not None
        left_again, _ = wrapper.forward(tokens(2, 3), past_key_values=left)
        right_again, _ = wrapper.forward(tokens(2, 3), past_key_values=right)
        for branch, first, second in ((1, left_logits, left_again), (2, right_logits, right_again)):
            whole, _ = wrapper.forward(torch.cat((tokens(20), tokens(3, branch), tokens(2, 3)), 1))
            torch.testing.assert_close(torch.cat((first, second), 1), whole[:, 20:], atol=1e-4, rtol=1e-4)

    def test_a_rolled_back_cache_writes_in_place_once_nobody_sees_more(
        self, wrapper: ModelWrapper, cache: KVCache
    ) -> None:
        slab = cache.slab
        short = wrapper.truncate_cache(cache, 10)
        _, copied = wrapper.forward(tokens(1), past_key_values=short)
        assert copied is not None and copied.slab is not slab
        cache.truncate(10)
        gc.collect()
        _, shared = wrapper.forward(tokens(1), past_key_values=short)
        assert shared is not None and shared.slab is slab

    @pytest.mark.parametrize("keep", [-1, 21])
    def test_out_of_range(self, wrapper: ModelWrapper, cache: KVCache, keep: int) -> None:
        with pytest.raises(ValueError, match=f"can't truncate a cache of 20 entries to {keep}"):
            wrapper.truncate_cache(cache, keep)
        with pytest.raises(ValueError, match="can't truncate"):
            cache.truncate(keep)
        assert cache.length == 20

    def test_rolling_back_touches_no_memory(self, cache: KVCache) -> None:
        whole = [t.clone() for t in (*cache.slab.keys, *cache.slab.values) if t is not None]
        places = [(keys.data_ptr(), values.data_ptr()) for keys, values in cache]
        with Operations() as operations:
            cache.truncate(3)
        assert operations.names == []
        assert [(keys.data_ptr(), values.data_ptr()) for keys, values in cache] == places
        after = [t for t in (*cache.slab.keys, *cache.slab.values) if t is not None]
        assert all(torch.equal(a, b) for a, b in zip(after, whole, strict=True))

    def test_a_truncated_handle_is_the_same_memory(self, wrapper: ModelWrapper, cache: KVCache) -> None:
        with Operations() as operations:
            truncated = wrapper.truncate_cache(cache, 7)
        assert operations.names == []
        assert truncated.slab is cache.slab
        assert truncated[1][0].data_ptr() == cache[1][0].data_ptr()


class TestForwardWithCache:
    def test_after_truncation(self, wrapper: ModelWrapper, cache: KVCache) -> None:
        truncated = wrapper.truncate_cache(cache, 10)
        logits, grown = wrapper.forward(torch.tensor([[7]]), past_key_values=truncated)
        assert logits.shape == (1, 1, VOCAB)
        assert wrapper.get_cache_length(grown) == 11
        whole, _ = wrapper.forward(torch.cat((tokens(20)[:, :10], torch.tensor([[7]])), 1))
        torch.testing.assert_close(logits, whole[:, -1:], atol=1e-4, rtol=1e-4)

    def test_without_cache(self, wrapper: ModelWrapper, cache: KVCache) -> None:
        logits, nothing = wrapper.forward(tokens(5), use_cache=False)
        assert nothing is None
        before = contents(cache)
        continued, nothing = wrapper.forward(tokens(5, 1), past_key_values=cache, use_cache=False)
        assert nothing is None
        assert logits.shape == continued.shape == (1, 5, VOCAB)
        assert cache.length == 20
        assert_same(cache, before)

    def test_growth_beyond_capacity(self, wrapper: ModelWrapper) -> None:
        _, cache = wrapper.forward(tokens(20))
        assert cache is not None
        first, slab, all_tokens = cache, cache.slab, tokens(20)
        for seed in range(8):
            new = tokens(9, seed)
            logits, cache = wrapper.forward(new, past_key_values=cache)
            assert cache is not None
            all_tokens = torch.cat((all_tokens, new), 1)
            assert cache.length == all_tokens.shape[1]
            whole, _ = wrapper.forward(all_tokens)
            torch.testing.assert_close(logits, whole[:, -9:], atol=1e-4, rtol=1e-4)
        assert cache is not None and cache.slab is not slab
        assert cache.capacity >= 92
        assert first.length == 20 and first.capacity == slab.capacity

    def test_a_decoding_cache_does_not_grow(self, wrapper: ModelWrapper) -> None:
        cache = wrapper.new_cache(10)
        wrapper.extend(tokens(8)[0], cache)
        with pytest.raises(UsageError, match=r"8 \+ 3 tokens don't fit a cache of 10"):
            wrapper.extend(tokens(3)[0], cache)
        assert cache.length == 8
        wrapper.extend(tokens(2)[0], cache)
        assert cache.length == cache.capacity == 10

    def test_bytes_of_a_slab(self, wrapper: ModelWrapper) -> None:
        cache = wrapper.new_cache(40)
        wrapper.extend(tokens(1)[0], cache)
        assert cache.slab.bytes == 2 * 2 * 4 * 40 * 8 * 4  # keys and values, layers, heads, capacity, width, float32


# --- stale entries


def in_full_precision(model: Any) -> None:
    """Let Hugging Face's RMS norms compute in float64 as everything else does."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            weight, eps = module.weight, module.variance_epsilon

            def rms_norm(x: Tensor, weight: Tensor = weight, eps: float = eps) -> Tensor:
                return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

            module.forward = rms_norm


EXACT: list[tuple[ForwardName, Any]] = [
    ("own", tiny_gpt2),
    ("own", tiny_llama),
    ("own", tiny_mistral),
    ("hf", tiny_llama),
    ("hf", tiny_mistral),
    ("hf", tiny_gpt_neox),
]


def poison(cache: KVCache) -> None:
    """Fill what is beyond the sequence: whoever reads it gets other numbers."""
    for tensor in (*cache.slab.keys, *cache.slab.values):
        if tensor is not None:
            tensor[:, :, cache.length :] = POISON


@torch.inference_mode()
@pytest.mark.parametrize(("forward", "family"), EXACT, ids=lambda value: getattr(value, "__name__", value))
def test_rollbacks_leave_the_cache_of_a_fresh_prefill(forward: ForwardName, family: Any) -> None:
    model = copy.deepcopy(family(vocab_size=VOCAB)).to(torch.float64)
    in_full_precision(model)
    wrapper = ModelWrapper(model, forward=forward)
    draw = random.Random(5)
    ids = draw.choices(range(VOCAB), k=40)
    cache = wrapper.new_cache(160)
    wrapper.extend(torch.tensor(ids), cache)
    rolled_back = 0
    for _ in range(25):
        keep = draw.randint(len(ids) - 8, len(ids))
        rolled_back += len(ids) - keep
        cache.truncate(keep)
        poison(cache)
        new = draw.choices(range(VOCAB), k=draw.randint(1, 9))
        ids = ids[:keep] + new
        logits = wrapper.extend(torch.tensor(new), cache, len(new))

        fresh = wrapper.new_cache(len(ids))
        expected = wrapper.extend(torch.tensor(ids), fresh, len(new))
        torch.testing.assert_close(logits, expected, atol=1e-12, rtol=1e-12)
        for (keys, values), (fresh_keys, fresh_values) in zip(cache, fresh, strict=True):
            torch.testing.assert_close(keys, fresh_keys, atol=1e-12, rtol=1e-12)
            torch.testing.assert_close(values, fresh_values, atol=1e-12, rtol=1e-12)
    assert rolled_back > 25


def test_poison_is_seen_by_who_reads_too_far() -> None:
    """The test above could not fail if the poison changed nothing."""
    wrapper = ModelWrapper(copy.deepcopy(tiny_gpt2(vocab_size=VOCAB)))
    cache = wrapper.new_cache(30)
    wrapper.extend(tokens(20)[0], cache)
    honest = wrapper.extend(tokens(1)[0], cache)
    cache.truncate(20)
    poison(cache)
    cache.length = 22  # as if two stale entries were the sequence's
    assert (wrapper.extend(tokens(1)[0], cache) - honest).abs().max() > 0.1


# --- what a round allocates


@contextmanager
def allocations() -> Iterator[list[int]]:
    """Sizes of everything the CPU allocator hands out, read when the block ends."""
    sizes: list[int] = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        yield sizes
    events = profile.profiler.kineto_results.events()
    sizes.extend(event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0)


def long_wrapper() -> ModelWrapper:
    model = copy.deepcopy(tiny_qwen3(vocab_size=VOCAB))
    model.config.max_position_embeddings = 1024
    return ModelWrapper(model, forward="own")


@torch.inference_mode()
def test_a_pass_copies_no_keys_and_values() -> None:
    """What a verify pass allocates grows with the context by masks and attention scores alone."""
    wrapper, width = long_wrapper(), 5
    allocated = {}
    for context in (64, 512):
        cache = wrapper.new_cache(600)
        wrapper.extend(tokens(context)[0], cache)
        ids = tokens(width)[0]
        wrapper.extend(ids, cache, width)
        cache.truncate(context)
        with allocations() as sizes:
            wrapper.extend(ids, cache, width)
        allocated[context] = sum(sizes)
    layers, heads, groups, kv_heads, head_dim, float32 = 2, 4, 2, 2, 16, 4
    scores = 2 * heads * width * layers  # before and after the softmax
    masks = 2 * width + groups * width * layers  # built once, repeated over the grouped heads
    growth = (allocated[512] - allocated[64]) / (512 - 64) / float32
    assert 0 < growth <= scores + masks
    one_copy = 2 * kv_heads * head_dim * layers
    assert growth + one_copy > scores + masks  # a copy of keys and values would be noticed


@torch.inference_mode()
def test_a_round_allocates_no_cache() -> None:
    """Rounds of a whole generation: the largest single allocation is far below one layer's keys."""
    target, draft = long_wrapper(), long_wrapper()
    decoder = SpeculativeDecoder(target, DraftModel(draft), 4)
    events = decoder.events(Request(tuple(tokens(800)[0].tolist()), 30))
    next(events)
    with allocations() as sizes:
        for _ in range(3):
            next(events)
    keys_of_a_layer = 2 * 800 * 16 * 4
    scores_of_a_layer = 4 * 5 * 830 * 4
    assert sizes
    assert max(sizes) <= scores_of_a_layer < keys_of_a_layer
