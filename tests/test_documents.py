"""Every example of the documents that asked for this project, as written there but for the names of modules and models.

They name GPT-2; here a random model stands in for it, with a tokenizer that splits at spaces.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from specprof.data.prompts import Prompt, PromptDataset
from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.models.loader import load_model
from specprof.models.registry import get_pair, list_pairs
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.metrics import BenchmarkConfig, GenerationResult
from specprof.profiling.timer import CUDATimer, CUDATimerCollection, cuda_sync_time
from tiny_models import save_model_dir, tiny_gpt2

torch.set_num_threads(1)

VOCABULARY = 2000
LAYERS, HEADS, HEAD_DIM = 2, 4, 8


def word_tokenizer() -> Any:
    """One token per word: ``The quick brown fox`` is 4 tokens, as it is for GPT-2."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = ["<|endoftext|>", "The", "quick", "brown", "fox", *(f"w{i}" for i in range(5, VOCABULARY))]
    splitter = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|endoftext|>"))
    splitter.pre_tokenizer = Whitespace()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=splitter, eos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("models") / "gpt2"
    return str(save_model_dir(directory, tiny_gpt2(vocab_size=VOCABULARY), word_tokenizer()))


def test_inspect_the_model_pair_registry() -> None:
    assert list_pairs()[:4] == ["gpt2_dev", "tinyllama_llama3", "phi3_llama3", "llama3_self"]
    pair = get_pair("gpt2_dev")
    assert pair.draft_model_id == "gpt2"
    assert pair.target_model_id == "gpt2-xl"
    assert pair.draft_dtype == "float16"


def test_load_saved_prompts(tmp_path: Path) -> None:
    path = tmp_path / "data" / "prompts.json"
    path.parent.mkdir()
    domains = ("code", "conversation", "summarization")
    PromptDataset(
        tuple(Prompt(f"{domain}_{i:03d}", domain, f"Text {i}", 2) for domain in domains for i in range(50))
    ).save(path)

    dataset = PromptDataset.load(path)
    code_prompts = dataset.get_by_domain("code")
    all_prompts = dataset.get_all()

    assert len(dataset) == len(all_prompts) == 150
    assert len(code_prompts) == 50
    assert all(isinstance(prompt, Prompt) for prompt in all_prompts)
    assert code_prompts[0].prompt_id == "code_000"
    assert code_prompts[0].token_count == 2


def test_use_model_wrapper_for_forward_passes_and_kv_cache_control(gpt2: str) -> None:
    model, tokenizer = load_model(gpt2, "float32")
    device = next(model.parameters()).device
    wrapper = ModelWrapper(model, tokenizer, device)

    # --- Prefill ---
    prompt_ids = tokenizer.encode("The quick brown fox", return_tensors="pt").to(device)
    logits, cache = wrapper.forward(prompt_ids)
    assert wrapper.get_cache_length(cache) == 4
    assert logits.shape == (1, 4, VOCABULARY)

    # --- Decode one token ---
    next_token = logits[:, -1, :].argmax(dim=-1, keepdim=True)
    logits, cache = wrapper.forward(next_token, past_key_values=cache)
    assert wrapper.get_cache_length(cache) == 5
    assert logits.shape == (1, 1, VOCABULARY)

    # --- Simulate rejection at position 3: roll back to position 3 ---
    cache = wrapper.truncate_cache(cache, keep_length=3)  # type: ignore[arg-type]
    assert wrapper.get_cache_length(cache) == 3

    # Continue from position 3 with a replacement token
    replacement = torch.tensor([[1234]]).to(device)
    logits, cache = wrapper.forward(replacement, past_key_values=cache)
    assert wrapper.get_cache_length(cache) == 4

    # KV cache shape: every tensor is [batch, num_heads, seq_len, head_dim], one pair per layer
    assert cache is not None
    assert len(cache) == LAYERS
    assert all(t.shape == (1, HEADS, 4, HEAD_DIM) for pair in cache for t in pair)

    # What it computed is the model's answer to the text as it now is.
    text = torch.cat((prompt_ids[:, :3], replacement), 1)
    with torch.no_grad():
        torch.testing.assert_close(logits[:, -1], model(input_ids=text).logits[:, -1], atol=1e-4, rtol=1e-4)


def test_time_gpu_operations_with_cuda_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without CUDA."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    # --- Single operation ---
    with CUDATimer() as t:
        result = torch.mm(torch.randn(256, 256), torch.randn(256, 256))
    assert result.shape == (256, 256)
    assert float(f"{t.elapsed_ms:.9f}") > 0

    # --- Multi-phase profiling ---
    timers = CUDATimerCollection()
    timers.start("draft")
    torch.randn(64, 64)
    timers.stop("draft")
    timers.start("verify")
    torch.randn(64, 64)
    timers.stop("verify")
    summary = timers.summary()
    assert list(summary) == ["draft", "verify"]
    assert str(timers).splitlines() == [
        "CUDATimerCollection:",
        f"  draft  : {summary['draft']:8.3f} ms",
        f"  verify : {summary['verify']:8.3f} ms",
    ]

    assert cuda_sync_time() <= cuda_sync_time()


@pytest.fixture
def result() -> GenerationResult:
    """The example's; the fields beyond it have defaults."""
    return GenerationResult(
        generated_ids=[1, 2, 3, 4, 5],
        per_token_latencies=[0.08, 0.09, 0.08, 0.10, 0.09],
        total_time=0.44,
        peak_memory_mb=1823.0,
        time_to_first_token=0.08,
        acceptance_rate=0.78,
        tokens_per_step=4.12,
        num_speculation_rounds=18,
        draft_time_total_ms=120.5,
        verify_time_total_ms=310.2,
        sampling_time_total_ms=9.3,
    )


def test_generation_result(result: GenerationResult) -> None:
    assert result.tokens_per_second == pytest.approx(11.36, abs=0.01)
    assert result.latency_p50 == pytest.approx(0.09)
    assert result.latency_p95 == pytest.approx(0.098)  # between the two largest, as np.percentile has it
    assert result.latency_p99 == pytest.approx(0.0996)
    assert result.is_speculative
    assert result.num_tokens == 5
    assert result.summary() == "SD  | 5 tok | 11.4 tok/s | p50=90ms p95=98ms | mem=1823MB | accept=0.78 rounds=18"


def test_serialise_to_jsonl(result: GenerationResult, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    for _ in range(2):
        with open(tmp_path / "results" / "run.jsonl", "a") as f:
            f.write(result.to_json_line())
    lines = (tmp_path / "results" / "run.jsonl").read_text().splitlines()
    assert len(lines) == 2  # one JSON object per line
    assert [GenerationResult.from_dict(json.loads(line)) for line in lines] == [result, result]

    restored = GenerationResult.from_dict(json.loads(result.to_json_line()))
    assert restored == result
    assert restored.summary() == result.summary()


def test_config_hashing_for_deduplication() -> None:
    config = BenchmarkConfig(
        model_pair_name="gpt2_dev",
        K=4,
        temperature=0.0,
        max_new_tokens=200,
        prompt_domain="code",
        seed=42,
    )
    assert config.decoder_label == "SD-K4"
    assert len(config.config_hash()) == 12
    assert int(config.config_hash(), 16) >= 0
    same = BenchmarkConfig("gpt2_dev", 4, 0.0, 200, "code", 42)
    other = BenchmarkConfig("gpt2_dev", 4, 0.0, 200, "code", 43)
    assert same.config_hash() == config.config_hash() != other.config_hash()


def test_generate_text_with_autoregressive_decoder(gpt2: str) -> None:
    model, tokenizer = load_model(gpt2, "float32")
    device = next(model.parameters()).device
    wrapper = ModelWrapper(model, tokenizer, device)
    decoder = AutoregressiveDecoder(wrapper)

    # --- Token-ID interface (returns GenerationResult) ---
    prompt_ids = tokenizer.encode("The quick brown fox", return_tensors="pt").to(device)
    result = decoder.generate(prompt_ids, max_new_tokens=50, temperature=0.0)
    assert isinstance(result, GenerationResult)
    assert 1 < result.num_tokens <= 50
    assert result.latency_p50 is not None and result.latency_p95 is not None
    assert 0 < result.latency_p50 <= result.latency_p95
    assert float(f"{result.tokens_per_second:.1f}") > 0
    assert result.time_to_first_token > 0
    assert result.acceptance_rate is None and not result.is_speculative
    head, *rest = result.summary().split(" | ")
    assert head == "AR "
    assert rest[0] == f"{result.num_tokens} tok"
    assert rest[-1].startswith("mem=") and rest[-1].endswith("MB")

    # --- Plain-text convenience wrapper ---
    text = decoder.generate_text("The quick brown fox", max_new_tokens=50, temperature=0.0)
    whole = [*prompt_ids[0].tolist(), *result.generated_ids]
    assert text and "The quick brown fox" + text == tokenizer.decode(whole, skip_special_tokens=True)

    # --- Temperature sampling ---
    sampled = decoder.generate(prompt_ids, max_new_tokens=50, temperature=0.8)
    assert sampled.generated_ids != result.generated_ids
