"""ModelWrapper: what it says of a model, how it takes and gives caches, what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from specprof.errors import UsageError
from specprof.models.wrapper import ModelWrapper
from tiny_models import tiny_gpt2, tiny_gpt_neox, tiny_llama, tiny_llama3_rope, tiny_phi3, tiny_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def gpt2() -> ModelWrapper:
    return ModelWrapper(copy.deepcopy(tiny_gpt2()), tiny_tokenizer(), "cpu", name="a model")


class TestProperties:
    def test_vocab_size(self, gpt2: ModelWrapper) -> None:
        assert gpt2.vocab_size == 4096
        logits, _ = gpt2.forward(torch.tensor([[1, 2]]))
        assert logits.shape[-1] == gpt2.vocab_size

    def test_param_count(self, gpt2: ModelWrapper) -> None:
        width, layer = 32, 12 * 32 * 32 + 13 * 32  # projections, their biases, two norms
        assert gpt2.param_count == (4096 + 256) * width + 2 * layer + 2 * width  # the tied head once

    def test_memory_footprint_mb(self, gpt2: ModelWrapper) -> None:
        assert gpt2.memory_footprint_mb == gpt2.param_count * 4 / 2**20

    def test_memory_footprint_follows_the_type(self) -> None:
        half = ModelWrapper(tiny_gpt2(dtype=torch.float16))
        assert half.memory_footprint_mb == half.param_count * 2 / 2**20
        assert half.dtype == torch.float16

    def test_footprint_counts_fused_weights_once(self) -> None:
        model = copy.deepcopy(tiny_llama())
        hf = ModelWrapper(model, forward="hf")
        parameters, megabytes = hf.param_count, hf.memory_footprint_mb
        own = ModelWrapper(model, forward="own")
        assert (own.param_count, own.memory_footprint_mb) == (parameters, megabytes)

    def test_num_layers_and_name(self, gpt2: ModelWrapper) -> None:
        assert gpt2.num_layers == 2
        assert gpt2.name == "a model"
        assert ModelWrapper(copy.deepcopy(tiny_llama())).name == "llama"

    def test_repr(self, gpt2: ModelWrapper) -> None:
        assert repr(gpt2) == "ModelWrapper(a model, 0.2M parameters, 1 MB, cpu, forward=own)"

    def test_device_is_where_the_weights_are(self) -> None:
        assert ModelWrapper(copy.deepcopy(tiny_gpt2())).device == torch.device("cpu")

    def test_linear_forms_of_a_small_model(self, gpt2: ModelWrapper) -> None:
        gpt2.forward(torch.tensor([[1, 2]]))
        assert gpt2.linear_forms == {}
        assert ModelWrapper(tiny_gpt_neox()).linear_forms == {}

    def test_linear_forms_of_a_large_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("specprof.models.linear._LEAST_BYTES", 0)
        measured = ModelWrapper(copy.deepcopy(tiny_gpt2()))
        repeatable = ModelWrapper(copy.deepcopy(tiny_gpt2()), measure_linear=False)
        ids = torch.tensor([[1, 2, 3]])
        logits, _ = measured.forward(ids)
        expected, _ = repeatable.forward(ids)
        assert list(measured.linear_forms) == [3]
        assert repeatable.linear_forms == {}
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


class TestEndOfText:
    def model(self, **values: Any) -> Any:
        model = copy.deepcopy(tiny_gpt2())
        for name, value in values.items():
            setattr(model.generation_config, name, value)
        return model

    def test_every_place_that_names_one_counts(self) -> None:
        wrapper = ModelWrapper(self.model(eos_token_id=[7, 9]), tiny_tokenizer())
        assert wrapper.eos_token_ids == {7, 9, 0, tiny_tokenizer().eos_token_id}
        assert wrapper.eos_token_id == tiny_tokenizer().eos_token_id

    def test_without_tokenizer(self) -> None:
        wrapper = ModelWrapper(self.model(eos_token_id=[9, 7]))
        assert wrapper.eos_token_ids == {0, 7, 9}  # 0 is the configuration's
        assert wrapper.eos_token_id == 0

    def test_without_any(self) -> None:
        model = self.model(eos_token_id=None)
        model.config.eos_token_id = None
        assert ModelWrapper(model).eos_token_ids == frozenset()
        assert ModelWrapper(model).eos_token_id is None


class TestForward:
    def test_shapes(self, gpt2: ModelWrapper) -> None:
        logits, cache = gpt2.forward(torch.tensor([[1, 2, 3]]))
        assert logits.shape == (1, 3, 4096)
        assert cache is not None
        assert cache.length == 3

    @pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 0), (1, 1, 3)])
    def test_one_sequence_of_at_least_one_token(self, gpt2: ModelWrapper, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"input_ids must be \[1, q\] with q >= 1"):
            gpt2.forward(torch.zeros(shape, dtype=torch.long))

    def test_the_callers_cache_is_left_alone(self, gpt2: ModelWrapper) -> None:
        _, first = gpt2.forward(torch.tensor([[1, 2, 3]]))
        assert first is not None
        keys = first[0][0].clone()
        _, second = gpt2.forward(torch.tensor([[4]]), past_key_values=first)
        assert gpt2.get_cache_length(first) == 3
        assert gpt2.get_cache_length(second) == 4
        assert torch.equal(first[0][0], keys)

    def test_reset_is_no_cache(self, gpt2: ModelWrapper) -> None:
        _, used = gpt2.forward(torch.tensor([[1, 2, 3]]))
        assert used is not None
        logits, cache = gpt2.forward(torch.tensor([[4]]), past_key_values=gpt2.reset_cache())  # type: ignore[func-returns-value]
        fresh, _ = gpt2.forward(torch.tensor([[4]]))
        assert torch.equal(logits, fresh)
        assert gpt2.get_cache_length(cache) == 1

    @pytest.mark.parametrize("forward", ["own", "hf"])
    def test_what_was_made_for_exploring_can_be_decoded_with(self, forward: Any) -> None:
        """forward() runs in inference mode; a cache of its is extended outside of it."""
        wrapper = ModelWrapper(copy.deepcopy(tiny_llama3_rope()), forward=forward)
        _, cache = wrapper.forward(torch.tensor([[1, 2, 3]]))
        assert cache is not None
        logits = wrapper.extend(torch.tensor([4, 5]), cache, 2)
        expected, _ = wrapper.forward(torch.tensor([[1, 2, 3, 4, 5]]))
        torch.testing.assert_close(logits, expected[0, 3:], atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("forward", ["own", "hf"])
    def test_no_gradient_is_kept(self, forward: Any) -> None:
        """A model as it comes from Hugging Face has trainable weights."""
        model = copy.deepcopy(tiny_phi3()).requires_grad_(True)
        wrapper = ModelWrapper(model, forward=forward)
        cache = wrapper.new_cache(8)
        logits = wrapper.extend(torch.tensor([1, 2, 3]), cache)
        assert not logits.requires_grad
        assert not cache[0][0].requires_grad


class TestContext:
    @pytest.mark.parametrize("forward", ["own", "hf"])
    def test_exactly_full(self, forward: Any) -> None:
        wrapper = ModelWrapper(copy.deepcopy(tiny_gpt2()), forward=forward)
        assert wrapper.max_context == 256
        cache = wrapper.new_cache(256)
        wrapper.extend(torch.arange(255), cache)
        wrapper.extend(torch.tensor([5]), cache)
        assert cache.length == 256
        with pytest.raises(UsageError, match="don't fit a cache of 256"):
            wrapper.extend(torch.tensor([5]), cache)

    def test_one_over(self, gpt2: ModelWrapper) -> None:
        with pytest.raises(UsageError) as caught:
            gpt2.new_cache(257)
        assert caught.value.message == "257 tokens are more than the context of 256 that a model was made for"
        assert "shorten the prompt" in caught.value.hint

    def test_forward_checks_too(self, gpt2: ModelWrapper) -> None:
        _, full = gpt2.forward(torch.arange(256)[None])
        assert full is not None
        with pytest.raises(UsageError, match="257 tokens are more than the context"):
            gpt2.forward(torch.tensor([[1]]), past_key_values=full)

    def test_a_model_without_a_limit(self) -> None:
        """Bloom adds distances to its attention scores; nothing in its configuration ends."""
        from transformers import BloomConfig, BloomForCausalLM

        wrapper = ModelWrapper(BloomForCausalLM(BloomConfig(vocab_size=61, hidden_size=16, n_layer=1, n_head=2)))
        assert wrapper.max_context is None
        wrapper.check_context(10**9)
        _, cache = wrapper.forward(torch.zeros(1, 300, dtype=torch.long))
        assert wrapper.get_cache_length(cache) == 300


def test_forward_name_and_reason() -> None:
    own, hf = ModelWrapper(copy.deepcopy(tiny_gpt2())), ModelWrapper(tiny_gpt_neox())
    assert own.forward_name in ("native", "own") and own.why_not_own is None
    assert hf.forward_name == "hf"
    assert hf.why_not_own == "no own forward for the gpt_neox family"
    with pytest.raises(UsageError, match="can't run gpt_neox: no own forward for the gpt_neox family"):
        ModelWrapper(tiny_gpt_neox(), forward="own")
