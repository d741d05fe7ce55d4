"""The comparison with llama.cpp, as far as it goes without llama.cpp."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from specprof.decoding.autoregressive import AutoregressiveDecoder
from specprof.decoding.drafters import DraftModel
from specprof.decoding.speculative import SpeculativeDecoder
from specprof.errors import UnavailableError, UsageError
from specprof.models import hub
from specprof.models.loader import load_model
from specprof.models.wrapper import ModelWrapper

# Scripts find each other in their own folder; tests are run from elsewhere.
_BENCHMARKS = str(Path(__file__).parent.parent / "benchmarks")
sys.path.insert(0, _BENCHMARKS)
import gguf_of  # noqa: E402
import llama_binaries  # noqa: E402
import llama_bindings  # noqa: E402
import vs_llama_cpp  # noqa: E402

sys.path.remove(_BENCHMARKS)

PROMPT = [507, 893, 8, 65, 12, 289, 463]
"""Of the recorded run below, whose model was another: to our own it is a prompt like any."""

# Recorded: llama-bench -m target-float32.gguf -p 0 -n 16 -d 5 -r 3 -t 2 -ngl 0 -o json (0.5.0-dev)
BENCH_OUTPUT = """\
[
  {
    "build_commit": "unknown",
    "build_number": 0,
    "cpu_info": "AMD EPYC",
    "model_filename": "target-float32.gguf",
    "model_type": "llama ?B all F32",
    "n_threads": 2,
    "type_k": "f16",
    "type_v": "f16",
    "n_prompt": 0,
    "n_gen": 16,
    "n_depth": 5,
    "avg_ns": 318555388,
    "stddev_ns": 316758590,
    "avg_ts": 122.235119,
    "stddev_ts": 131.723850,
    "samples_ns": [ 671456940, 225359494, 58849730 ],
    "samples_ts": [ 23.8288, 70.9977, 271.879 ]
  }
]
"""

# Recorded: llama-speculative-simple -md draft-float32.gguf -n 16 --spec-draft-n-max 2 ... (0.5.0-dev), both streams
SPECULATIVE_OUTPUT = """\


<507><893><8><65><12><289><463><282><442><282><971><259><738><294><269><1144><294><259><738><294><1144><14><365><1683><282><1815>


0.00.020.653 W load: model vocab missing newline token, using special_pad_id instead
0.00.037.132 I cmn          init: llama threadpool init, n_threads = 2
0.01.050.514 I common_speculative_init_result: loading draft model 'draft-float32.gguf'
0.02.115.985 I encoded    7 tokens in    0.016 seconds, speed:  433.008 t/s
0.02.116.005 I decoded   19 tokens in    0.782 seconds, speed:   24.297 t/s
0.02.116.019 I\x20
0.02.116.032 I n_draft   = 2
0.02.116.045 I n_predict = 19
0.02.116.059 I n_drafted = 15
0.02.116.072 I n_accept  = 11
0.02.116.085 I accept    = 73.333%
0.02.116.098 I\x20
"""


@pytest.fixture(scope="module")
def pair() -> tuple[ModelWrapper, ModelWrapper]:
    target, tokenizer = load_model("tiny_dev/target", "float32", "cpu")
    draft, _ = load_model("tiny_dev/draft", "float32", "cpu")
    return ModelWrapper(target, tokenizer), ModelWrapper(draft, tokenizer)


def test_rotary_pairs_give_the_same_attention_scores_as_rotary_halves() -> None:
    heads, dim, hidden = 3, 8, 16
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, heads * dim, hidden))
    frequencies = 10000.0 ** (-np.arange(dim // 2) / (dim // 2))

    def turned(vector: np.ndarray, position: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        angle, rows = position * frequencies, vector.reshape(heads, dim).copy()
        rows[:, first], rows[:, second] = (
            rows[:, first] * np.cos(angle) - rows[:, second] * np.sin(angle),
            rows[:, second] * np.cos(angle) + rows[:, first] * np.sin(angle),
        )
        return rows

    def scores(query: np.ndarray, key: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        x, y = np.random.default_rng(1).standard_normal((2, hidden))
        scores: np.ndarray = (turned(query @ x, 5, first, second) * turned(key @ y, 2, first, second)).sum(-1)
        return scores

    index = np.arange(dim)
    halves = scores(query, key, index[: dim // 2], index[dim // 2 :])
    repacked = (gguf_of.interleaved(query, heads), gguf_of.interleaved(key, heads))
    np.testing.assert_allclose(scores(*repacked, index[::2], index[1::2]), halves)
    assert not np.allclose(scores(query, key, index[::2], index[1::2]), halves)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_file_holds_every_weight(tmp_path: Path, dtype: str) -> None:
    gguf = pytest.importorskip("gguf")
    directory = hub.resolve("tiny_dev/target").directory
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    weights = load_file(directory / "model.safetensors")
    gguf_of.write_gguf(directory, tmp_path / "target.gguf", dtype)

    reader = gguf.GGUFReader(tmp_path / "target.gguf")
    written = {tensor.name: tensor.data for tensor in reader.tensors}
    assert len(written) == len(weights)
    for layer in range(config["num_hidden_layers"]):
        for theirs, name in (("attn_q", "self_attn.q_proj"), ("attn_k", "self_attn.k_proj")):
            heads = config["num_attention_heads"]
            rows = written[f"blk.{layer}.{theirs}.weight"].reshape(heads, -1, 2, config["hidden_size"])
            assert np.array_equal(
                rows.swapaxes(1, 2).reshape(-1, config["hidden_size"]), weights[f"model.layers.{layer}.{name}.weight"]
            )
        for theirs, name in (("ffn_down", "mlp.down_proj"), ("ffn_norm", "post_attention_layernorm")):
            assert np.array_equal(
                written[f"blk.{layer}.{theirs}.weight"], weights[f"model.layers.{layer}.{name}.weight"]
            )
    assert np.array_equal(written["token_embd.weight"], weights["model.embed_tokens.weight"])
    assert written["token_embd.weight"].dtype == dtype
    assert written["output_norm.weight"].dtype == np.float32

    def field(name: str) -> object:
        return reader.fields[name].contents()

    assert field("llama.block_count") == config["num_hidden_layers"]
    assert field("llama.attention.head_count") == config["num_attention_heads"]
    assert field("llama.rope.freq_base") == config["rope_parameters"]["rope_theta"]
    assert field("llama.attention.layer_norm_rms_epsilon") == pytest.approx(config["rms_norm_eps"])
    assert field("tokenizer.ggml.tokens") == [f"<{token}>" for token in range(config["vocab_size"])]


def test_a_tensor_of_another_architecture_is_refused() -> None:
    with pytest.raises(UsageError, match="q_norm"):
        list(gguf_of.tensors({"model.layers.0.self_attn.q_norm.weight": np.ones(4)}, 1, 1))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UsageError, match="not a plain Llama"):
        gguf_of.write_gguf(tmp_path, tmp_path / "x.gguf", "float32")


def test_token_ids_survive_the_way_through_text() -> None:
    assert gguf_of.read_back("\n\n" + gguf_of.written([0, 4095, 7]) + "\n") == [0, 4095, 7]


def test_plain_decoding_is_the_median_run() -> None:
    decoded = llama_binaries.plain_decoding(BENCH_OUTPUT)
    assert (decoded.num_tokens, decoded.seconds, decoded.tokens) == (16, 0.225359494, None)


@pytest.mark.parametrize("output", ["", "no", "[]", '[{"n_gen": 16}]', '{"n_gen": 16}'])
def test_what_is_no_measurement_is_said_to_be_none(output: str) -> None:
    with pytest.raises(UnavailableError, match="llama-bench printed no measurement"):
        llama_binaries.plain_decoding(output)


def test_speculative_decoding_is_read_from_what_is_printed() -> None:
    decoded = llama_binaries.speculative_decoding(SPECULATIVE_OUTPUT, PROMPT)
    assert decoded is not None and decoded.tokens is not None
    assert (decoded.num_tokens, decoded.num_drafted, decoded.num_accepted) == (19, 15, 11)
    assert decoded.seconds == pytest.approx(0.782, abs=5e-4)
    assert decoded.tokens[:3] == (282, 442, 282) and len(decoded.tokens) == 19


@pytest.mark.parametrize("end", ["n_drafted", "n_accept", "11\n", "decoded"])
def test_a_log_that_breaks_off_is_no_measurement(end: str) -> None:
    assert llama_binaries.speculative_decoding(SPECULATIVE_OUTPUT.partition(end)[0], PROMPT) is None


def test_a_prompt_read_as_other_tokens_is_an_error() -> None:
    with pytest.raises(UnavailableError, match="other tokens"):
        llama_binaries.speculative_decoding(SPECULATIVE_OUTPUT, [*PROMPT[:-1], 1])


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.skipif(os.name != "posix", reason="the stand-ins are shell scripts")
def test_programs_that_fail_or_lose_their_log(tmp_path: Path) -> None:
    (tmp_path / "output").write_text(SPECULATIVE_OUTPUT)
    (tmp_path / "broken off").write_text(SPECULATIVE_OUTPUT.partition("n_accept")[0])
    program(tmp_path, llama_binaries.BENCH, '[ "$1" = --help ] || { echo "failed to load model" >&2; exit 1; }')
    # The first call is --help, the second loses the end of its log.
    program(
        tmp_path,
        llama_binaries.SPECULATIVE,
        f'cd "{tmp_path}"; echo . >> calls\n[ $(wc -l < calls) = 2 ] && exec cat "broken off"; exec cat output',
    )
    binaries = llama_binaries.Binaries(tmp_path, tmp_path, 2)
    with pytest.raises(UnavailableError, match="llama-bench failed with exit status 1: failed to load model"):
        binaries.decode("float32", 0, PROMPT, 16)
    assert binaries.decode("float32", 2, PROMPT, 16).num_accepted == 11
    assert (tmp_path / "calls").read_text().count(".") == 3


def test_figures_are_medians_over_repetitions_then_sums_over_prompts() -> None:
    def one(seconds: float, accepted: int, *tokens: int) -> llama_binaries.Decoded:
        return llama_binaries.Decoded(10, seconds, 4, accepted, tokens)

    decodings = [[one(1, 4, 1, 2, 3), one(9, 4, 1, 2), one(2, 4, 1, 2)], [one(3, 1, 5, 6)] * 3]
    assert vs_llama_cpp.tokens_per_second(decodings) == pytest.approx(20 / (2 + 3))
    assert vs_llama_cpp.acceptance(decodings) == pytest.approx(15 / 24)
    assert vs_llama_cpp.equal_texts(decodings, [(1, 2), (5, 6)]) == 2
    assert vs_llama_cpp.equal_texts(decodings, [(1, 2), (5, 7)]) == 1
    assert vs_llama_cpp.acceptance([[llama_binaries.Decoded(10, 1.0)]]) is None
    assert vs_llama_cpp.equal_texts([[llama_binaries.Decoded(10, 1.0)]], [(1,)]) is None


def test_our_side_decodes_the_targets_text_and_counts_its_drafts(pair: tuple[ModelWrapper, ModelWrapper]) -> None:
    target, draft = pair
    prompt = target.tokenizer.encode("def add(a, b):")
    plain = vs_llama_cpp.ours(AutoregressiveDecoder(target), prompt, 40)
    speculative = vs_llama_cpp.ours(SpeculativeDecoder(target, DraftModel(draft), 2), prompt, 40)
    expected = greedily(target.model, prompt, 40)
    assert plain.tokens == speculative.tokens == expected
    assert plain.num_tokens == speculative.num_tokens == 39, "the first one is the prefill's, and none ends the text"
    assert plain.num_drafted == plain.num_accepted == 0 and plain.seconds > 0 and speculative.seconds > 0
    result = SpeculativeDecoder(target, DraftModel(draft), 2).generate(prompt, 40, stop_ids=frozenset())
    assert speculative.num_drafted == sum(len(round.draft_tokens) for round in result.rounds)
    assert 0 < speculative.num_accepted == sum(round.num_accepted for round in result.rounds)


def greedily(model: Any, prompt: list[int], length: int) -> tuple[int, ...]:
    """The library's own text, one whole pass a token."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(length):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def test_llama_cpps_passes_decode_our_text(pair: tuple[ModelWrapper, ModelWrapper], tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("llama_cpp")
    for role in ("target", "draft"):
        gguf_of.write_gguf(hub.resolve(f"tiny_dev/{role}").directory, tmp_path / f"{role}-float32.gguf", "float32")
    bindings = llama_bindings.Bindings(tmp_path, 1)
    expected = vs_llama_cpp.ours(AutoregressiveDecoder(pair[0]), PROMPT, 24).tokens
    for k in (0, 1, 3):
        assert bindings.decode("float32", k, PROMPT, 24).tokens == expected


def test_without_llama_cpp_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vs_llama_cpp.py", "--json"])
    with pytest.raises(SystemExit) as exit:
        vs_llama_cpp.main()
    output = capsys.readouterr()
    assert exit.value.code == 3 and output.out == ""
    for words in ("--bin", "cmake --build", "pip install llama-cpp-python", "pip install gguf"):
        assert words in output.err


def test_a_folder_without_the_programs_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vs_llama_cpp.py", "--bin", str(tmp_path)])
    with pytest.raises(SystemExit) as exit:
        vs_llama_cpp.main()
    error = capsys.readouterr().err
    assert exit.value.code == 3
    assert error.startswith(f"error: {tmp_path} has no llama-bench\nhint: build it: ")


@pytest.mark.skipif(os.name != "posix", reason="the stand-ins are shell scripts")
def test_without_the_gguf_package_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (llama_binaries.BENCH, llama_binaries.SPECULATIVE):
        program(tmp_path, name, "exit 0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(sys, "argv", ["vs_llama_cpp.py", "--bin", str(tmp_path)])
    with pytest.raises(SystemExit) as exit:
        vs_llama_cpp.main()
    assert exit.value.code == 4
    assert "gguf is missing\nhint: pip install gguf\n" in capsys.readouterr().err


def test_an_output_file_in_no_folder_is_refused_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "missing" / "out.json"
    monkeypatch.setattr(sys, "argv", ["vs_llama_cpp.py", "--bin", str(tmp_path), "-o", str(output)])
    with pytest.raises(SystemExit) as exit:
        vs_llama_cpp.main()
    assert exit.value.code == 2
    assert f"there is no folder {output.parent}" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("--k", "2,0"), ("--k", ""), ("--reps", "0"), ("--bin", "x", "--python")])
def test_arguments_that_cannot_be_meant(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["vs_llama_cpp.py", *arguments])
    with pytest.raises(SystemExit) as exit:
        vs_llama_cpp.main()
    assert exit.value.code == 2


def test_the_table_shows_a_dash_for_what_is_missing() -> None:
    def row(ours: float | None, float32: float | None, float16: float | None) -> dict[str, float | None]:
        return dict(zip(vs_llama_cpp.SIDES, (ours, float32, float16), strict=True))

    table = vs_llama_cpp.table(
        {
            "tokens_per_second": {"AR": row(300, 200, 400), "K = 1": row(100, 200, 400), "K = 2": row(500, 100, 100)},
            "acceptance_rate": {"AR": row(None, None, None), "K = 1": row(0.5, 0.5, 0.5), "K = 2": row(0.4, 0.4, 0.4)},
            "equal_texts": {"AR": row(3, None, None), "K = 1": row(3, 3, 3), "K = 2": row(3, 3, 2)},
            "prompts": 3,
            "prompt_tokens": 30,
            "max_new_tokens": 96,
            "repetitions": 1,
            "threads": 2,
            "why_not_native": "there is no C compiler",
            "llama_cpp": {"kind": "binaries", "version": None},
        }
    )
    rows = [line.split() for line in table.splitlines()]
    assert ["AR", "300", "200", "400", "1.50x", "0.75x"] in rows
    assert ["best", "K", "500", "200", "400", "2.50x", "1.25x"] in rows
    assert ["AR", "3", "-", "-"] in rows
    assert table.endswith("in PyTorch (there is no C compiler)")
