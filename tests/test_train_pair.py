"""The recipe of the packaged pair: each of its parts, and all of it on a corpus that takes seconds."""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import lzma
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from training import corpus, held_out, losses, network, own_text, pair_tokenizers, trainer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from specprof.data.prompts import builtin

MODULES = (corpus, losses, network, trainer, held_out)
TEXTS = [inspect.getsource(module) for module in MODULES] + [prompt.raw_text for prompt in builtin()]


def write(path: Path, texts: list[str]) -> Path:
    lines = [json.dumps({"text": text, "domain": ("code", "talk")[i % 2]}) for i, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return _tokenizer()


def small(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = network.llama(2, 32, 2, 48, tokenizer, 64)
    for parameter in model.parameters():  # so large that a mistake is seen through bfloat16
        parameter.data.mul_(4.0)
    return model


# --- the corpus


def test_documents_of_a_packed_file_and_of_a_plain_one(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.jsonl", ["one", "two"])
    packed = tmp_path / "a.jsonl.xz"
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    assert list(corpus.documents(plain)) == list(corpus.documents(packed))
    assert [each.domain for each in corpus.documents(plain)] == ["code", "talk"]


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"txt": "a"}', '{"text": 3}', '{"text": "a", "domain": 1}', ""])
def test_a_line_that_is_no_document(tmp_path: Path, line: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(SystemExit, match=r"a\.jsonl, line 2: not a JSON object with a"):
        list(corpus.documents(file))


def test_the_corpus_as_tokens(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    file, kept = write(tmp_path / "a.jsonl", TEXTS), tmp_path / "a.bin"
    tokens = corpus.encoded(tokenizer, file, kept)
    texts = str(tokenizer.decode(tokens.astype(int))).split(pair_tokenizers.END)
    assert sorted(texts) == sorted([*TEXTS, ""])
    assert texts[:-1] != TEXTS, "in the order of the file"
    file.unlink()
    assert np.array_equal(corpus.encoded(tokenizer, file, kept), tokens), "it was kept"


@given(st.text(st.sampled_from("ab \n"), min_size=1, max_size=3000), st.integers(0, 1000))
def test_pieces_make_up_the_text(text: str, seed: int) -> None:
    pieces = corpus.cut(text, np.random.default_rng(seed))
    assert "".join(pieces) == text and all(pieces)


def test_where_texts_are_cut() -> None:
    text = "def add(first, second):\n    return first + second\n" * 400
    pieces = corpus.cut(text, np.random.default_rng(0))
    assert len(text) / len(pieces) == pytest.approx(corpus.EVERY, rel=0.4)
    after = [piece[0] for piece in pieces[1:]]
    assert after.count("\n") / len(after) == pytest.approx(corpus.AT_LINE_ENDS, abs=0.2)
    assert sum(piece.endswith(" ") for piece in pieces) / len(after) == pytest.approx(corpus.AT_SPACES + 0.05, abs=0.2)
    assert any(first[-1].isalpha() and second[0].isalpha() for first, second in itertools.pairwise(pieces)), "in a word"


def test_pieces_are_encoded_each_on_its_own(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    text = "def add(first, second):\n    return first + second\n" * 40
    tokens = corpus.encoded(tokenizer, write(tmp_path / "a.jsonl", [text] * 2), tmp_path / "a.bin").tolist()
    assert tokenizer.decode(tokens) == 2 * (text + pair_tokenizers.END)
    assert len(tokens) > 2 * (len(tokenizer(text)["input_ids"]) + 1)


def test_windows_are_the_same_for_a_step() -> None:
    windows = corpus.Windows(np.arange(1000, dtype=np.uint16), 3)
    batch = windows.batch(7, 4, 10)
    assert batch.shape == (4, 10) and batch.dtype == torch.int64
    assert (batch.diff(dim=1) == 1).all()
    assert torch.equal(batch, windows.batch(7, 4, 10))
    assert not torch.equal(batch, windows.batch(8, 4, 10))
    strided = corpus.Windows(windows.tokens, 3, stride=100).batch(7, 400, 100)
    assert set(strided[:, 0].tolist()) == set(range(0, 1000, 100))
    assert windows.batch(0, 1, 1000).shape == (1, 1000)
    with pytest.raises(SystemExit, match="1000 tokens of text are not enough for windows of 1001"):
        windows.batch(0, 1, 1001)


def test_mixed_batches() -> None:
    zeros, ones = (corpus.Windows(np.full(100, value, np.uint16), value) for value in (0, 1))
    for share in (0.0, 0.3, 1.0):
        mixed = corpus.Mixed(zeros, ones, share)
        first = sum(int(mixed.batch(step, 1, 1)) == 0 for step in range(300)) / 300
        assert first == pytest.approx(share, abs=0.1 if 0 < share < 1 else 0)


# --- tokenizers


@given(st.text(st.sampled_from('ab_1 \n\t".:,(\u00e9\U0001f600'), max_size=40))
@settings(max_examples=300)
def test_a_newline_ends_a_token(text: str) -> None:
    tokenizer = _tokenizer()
    pieces = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    newline = "\u010a"  # as byte-level BPE writes it
    assert all(newline not in piece.rstrip(newline) or not piece.strip("\u0120\u0109\u010a") for piece in pieces)
    assert all(newline not in piece or piece.endswith(newline) for piece in pieces)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@functools.cache
def _tokenizer() -> PreTrainedTokenizerFast:
    return pair_tokenizers.byte_level(TEXTS, 600)


@pytest.mark.parametrize("text", ["x  y", " leading", "caf\u00e9 \U0001f600", "a\n\n    b", "<0x41>"])
def test_metaspace_gives_texts_back(text: str) -> None:
    tokenizer = pair_tokenizers.metaspace(TEXTS, 600)
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert "\u2581" in "".join(tokenizer.get_vocab())


# --- the network


@pytest.mark.parametrize("attended", [network.fused, network.in_products])
def test_the_forward_for_training_is_the_model_s_own(attended: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    model, tokens = small(tokenizer), torch.randint(0, 600, (3, 40), generator=torch.Generator().manual_seed(1))
    training = network.Network(model)
    training.attended = attended
    with torch.no_grad():
        ours, theirs = training(tokens), model(tokens).logits
    assert losses.divergence(ours, theirs) < 0.02
    assert losses.divergence(ours[:, :-1], theirs[:, 1:]) > 1, "all tokens alike would hide mistakes"


def test_a_model_for_another_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    other = pair_tokenizers.byte_level(TEXTS[:3], 600)
    model = small(tokenizer)
    before = model.model.embed_tokens.weight.detach().clone()
    moved = network.moved_vocabulary(model, tokenizer, other).model.embed_tokens.weight
    shared = set(tokenizer.get_vocab()) & set(other.get_vocab())
    for token in shared:
        assert torch.equal(moved[other.get_vocab()[token]], before[tokenizer.get_vocab()[token]])
    new = next(token for token in other.get_vocab() if token not in shared)
    pieces = tokenizer(other.convert_tokens_to_string([new]))["input_ids"]
    torch.testing.assert_close(moved[other.get_vocab()[new]], before[pieces].mean(0))
    assert moved.data_ptr() == model.lm_head.weight.data_ptr(), "one matrix embeds and is the head"
    with pytest.raises(SystemExit, match="a vocabulary of 600 tokens can't become one of 400"):
        network.moved_vocabulary(model, tokenizer, pair_tokenizers.byte_level(TEXTS, 400))


def test_a_model_that_grows_says_the_same(tokenizer: PreTrainedTokenizerFast) -> None:
    before, tokens = small(tokenizer), torch.randint(0, 600, (2, 30))
    larger = network.grown(before, network.llama(3, 64, 4, 80, tokenizer, 64))
    with torch.no_grad():
        torch.testing.assert_close(larger(tokens).logits, before(tokens).logits, atol=0.01, rtol=0.01)
    larger(tokens, labels=tokens).loss.backward()
    new = larger.model.layers[2].self_attn.o_proj.weight.grad
    assert new is not None and new.abs().max() > 0, "what is new can learn"
    assert larger.model.embed_tokens.weight.grad is not None
    assert larger.model.embed_tokens.weight.grad[:, 32:].abs().max() > 0
    for smaller in (network.llama(1, 64, 4, 80, tokenizer, 64), network.llama(2, 64, 2, 80, tokenizer, 64)):
        with pytest.raises(SystemExit, match="can be grown, but not made smaller"):
            network.grown(before, smaller)


# --- training


class Stopped(Exception):
    """In the middle of a run."""


def fitted(checkpoint: Path, plan: trainer.Plan, stop_after: int | None = None) -> tuple[nn.Module, list[float]]:
    """A network that learns to count, and its losses, reported at every step."""
    torch.manual_seed(0)
    row = np.tile(np.arange(50, dtype=np.uint16), 100)
    tokenizer = _tokenizer()
    model = network.llama(1, 32, 2, 48, tokenizer, 64)
    seen: list[float] = []

    def report(progress: trainer.Progress, loss: float) -> None:
        seen.append(loss)
        if progress.step == stop_after:
            raise Stopped

    learning = train_pair.Surprised(network.Network(model))
    trainer.train(model, learning, corpus.Windows(row, 1).batch, plan, checkpoint, every=0.0, report=report)
    return model, seen


PLAN = trainer.Plan(40 * 64, rows=4, length=16, long=32, matrices=1e-2, others=1e-2)


def test_what_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, losses_of_whole = fitted(tmp_path / "whole.pt", PLAN)
    with pytest.raises(Stopped):
        fitted(tmp_path / "parts.pt", PLAN, stop_after=17)
    parts, losses_of_rest = fitted(tmp_path / "parts.pt", PLAN)
    assert losses_of_rest == losses_of_whole[17:]
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, dict(parts.named_parameters())[name]), name
    assert losses_of_whole[-1] < 0.6 * losses_of_whole[0], "it learns"
    assert fitted(tmp_path / "whole.pt", PLAN)[1] == [], "what has finished does nothing"


def test_a_checkpoint_of_another_plan_is_not_gone_on_with(tmp_path: Path) -> None:
    fitted(tmp_path / "a.pt", PLAN)
    with pytest.raises(SystemExit, match=r"a\.pt is of a run with other settings"):
        fitted(tmp_path / "a.pt", trainer.Plan(50 * 64, rows=4, length=16, long=32))


def test_a_loss_that_is_no_number_ends_it(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)

    def loss_of(tokens: Tensor) -> Tensor:
        return torch.as_tensor(model(torch.full((1, 2), math.nan))).sum()

    def batch(step: int, rows: int, length: int) -> Tensor:
        return torch.zeros(rows, length)

    with pytest.raises(SystemExit, match="the loss is no number any more"):
        trainer.train(model, loss_of, batch, PLAN, tmp_path / "a.pt", every=1e9, report=lambda *_: None)
    assert not (tmp_path / "a.pt").exists()


def test_the_plan_of_a_run() -> None:
    plan = trainer.Plan(1000, rows=8, length=256, long=1024)
    assert plan.shape(0.0) == (8, 256) and plan.shape(0.99) == (2, 1024)
    rates = [plan.rate(step, step / 1000) for step in range(1000)]
    assert 0 < rates[0] < rates[10] < 1 and max(rates) == 1 and rates[-1] < 0.01
    assert rates[500:] == sorted(rates[500:], reverse=True)


# --- distillation


LOGITS = st.integers(0, 2**31).map(lambda seed: torch.randn(2, 1, 5, 11, generator=torch.Generator().manual_seed(seed)))


@given(LOGITS)
def test_distances_of_a_draft(logits: Tensor) -> None:
    draft, target = logits * 3
    assert float(losses.divergence(target, target)) == pytest.approx(0, abs=1e-6)
    assert float(losses.rejected(target, target)) == pytest.approx(0, abs=1e-6)
    assert losses.divergence(draft, target) > 0
    shared = torch.minimum(draft.softmax(-1), target.softmax(-1)).sum(-1).mean()
    assert float(losses.rejected(draft, target)) == pytest.approx(1 - float(shared), abs=1e-5)
    # Pinsker's inequality ties the two together.
    assert losses.rejected(draft, target) ** 2 <= losses.divergence(draft, target) / 2 + 1e-6


def test_only_the_draft_learns(tokenizer: PreTrainedTokenizerFast) -> None:
    draft, target = small(tokenizer), small(tokenizer)
    tokens = torch.randint(0, 600, (2, 20))
    for weight in (0.0, 0.5):
        learning = losses.Distillation(network.Network(draft), network.Network(target), weight)
        assert learning(tokens).item() == pytest.approx(0, abs=1e-5)
    draft.model.norm.weight.data.mul_(0.5)
    learning(tokens).backward()
    assert draft.model.embed_tokens.weight.grad is not None
    assert all(parameter.grad is None for parameter in target.parameters())


# --- text of the target's own


def test_what_a_target_writes(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = small(tokenizer).eval()
    begun = torch.randint(0, 600, (8, 5))
    text = own_text.written(model, begun, 12, torch.Generator().manual_seed(0))
    assert text.shape == (8, 12) and torch.equal(text[:, :5], begun)
    greedy = own_text.TEMPERATURES.index(0.0)
    for row in (greedy, greedy + len(own_text.TEMPERATURES)):
        for end in range(5, 12):
            with torch.no_grad():
                assert model(text[row : row + 1, :end]).logits[0, -1].argmax() == text[row, end]
    again = own_text.written(model, begun, 12, torch.Generator().manual_seed(1))
    assert torch.equal(again[greedy], text[greedy]) and not torch.equal(again, text)


def test_samples_follow_the_law(tokenizer: PreTrainedTokenizerFast) -> None:
    model = small(tokenizer).eval()
    begun = torch.randint(0, 600, (1, 5)).repeat(8000, 1)
    text = own_text.written(model, begun, 6, torch.Generator().manual_seed(0))
    with torch.no_grad():
        law = model(begun[:1]).logits[0, -1].softmax(-1)
    at_one = [i for i in range(8000) if own_text.TEMPERATURES[i % len(own_text.TEMPERATURES)] == 1.0]
    counts = torch.bincount(text[at_one, 5], minlength=600) / len(at_one)
    top = law.topk(5).indices
    assert torch.allclose(counts[top], law[top], atol=4 * math.sqrt(0.25 / len(at_one)))


def test_own_text_is_kept_and_gone_on_with(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_text, "LENGTH", 40)
    monkeypatch.setattr(own_text, "AT_ONCE", 4)
    row: NDArray[np.uint16] = np.arange(500, dtype=np.uint16)

    def write_up_to(tokens: int) -> tuple[NDArray[np.uint16], list[int]]:
        have: list[int] = []
        begun = corpus.Windows(row, 0)
        device = torch.device("cpu")
        return own_text.own_text(small(tokenizer), begun, tokens, tmp_path / "own", device, have.append), have

    first, have = write_up_to(150)
    assert have == [160] and len(first) == 160
    first = first.copy()
    both, have = write_up_to(300)
    assert have == [320] and np.array_equal(both[:160], first) and not np.array_equal(both[160:], first)
    assert write_up_to(300)[1] == []


# --- as it is used


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A recipe of seconds."""
    monkeypatch.setattr(own_text, "AT_ONCE", 8)
    monkeypatch.setattr(train_pair, "VOCABULARY", {train_pair.BYTE_LEVEL: 1500, train_pair.METASPACE: 1200})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def said(*arguments: object) -> str:
    result = CliRunner().invoke(train_pair.app, list(map(str, arguments)))
    assert result.exit_code == 0, f"{arguments}: {result.output}\n{result.exception!r}"
    return result.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("shortened")
def test_from_a_corpus_to_a_pair(tmp_path: Path) -> None:
    from specprof.experiments.arms import load_arms
    from specprof.experiments.config import RunConfig
    from specprof.models.registry import ModelPair

    texts, valid = write(tmp_path / "train.jsonl", TEXTS), write(tmp_path / "valid.jsonl", TEXTS[:4])
    out, pairs = tmp_path / "out", tmp_path / "pairs"
    place = ("--out", out, "--corpus", texts)
    small = ("--layers", 1, "--width", 32, "--heads", 2, "--mlp", 48, "--no-compiled", "--every", 0)
    assert "loss" in said("target", *place, *small, "--tokens", 30_000)
    assert "loss" not in said("target", *place, *small, "--tokens", 30_000), "it has finished"
    said("write", *place, "--tokens", 4000)
    said("draft", *place, *small, "--tokens", 12_000, "--of-rejections", 0.3)
    said("draft", *place, *small, "--tokens", 8_000, "--name", "other", "--from", out / "draft")
    said("metaspace", *place, *small, "--tokens", 8_000)

    drafts = ("--draft", out / "draft", "--draft", out / "draft_metaspace")
    measuring = ("measure", "--target", out / "target", *drafts, "--valid", valid, "--per-domain", 2, "--k", "1,3")
    found = json.loads(said(*measuring, "--json"))
    assert set(found["bits_per_byte"][str(out / "target")]) == {"code", "talk"}
    assert 0 < found["bits_per_byte"][str(out / "target")]["code"] < 8
    rows = found["tokens_per_round"][str(out / "draft_metaspace")]
    assert {(row["domain"], row["temperature"], row["k"]) for row in rows} == {
        (domain, temperature, k) for domain in ("code", "talk") for temperature in (0.0, 1.0) for k in (1, 3)
    }
    assert all(1 <= row["tokens_per_round"] <= row["k"] + 1 for row in rows)
    table = said(*measuring)
    assert "bits per byte" in table and "K = 3, temperature 1" in table

    shown = said("show", "--target", out / "target", "--per-domain", 1, "--tokens", 20)
    assert shown.count("#### ") == 3 and "def " in shown and "without a loop" in shown

    assert said("install", "--out", out, "--pairs", pairs).count(" MB") == 3
    for draft in ("tiny_dev/draft", "tiny_cross/draft"):
        pair = ModelPair("mine", str(pairs / draft), str(pairs / "tiny_dev/target"), "float32", "float32")
        arms = load_arms(RunConfig(pair, k=2, device="cpu"))
        prompt = arms.tokenizer("def add(")["input_ids"]
        assert arms.speculative.generate(prompt, 20).generated_ids == arms.baseline.generate(prompt, 20).generated_ids


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("draft",), "run the command write first"),
        (("target", "--from", "no-such-folder"), "does not exist"),
        (("target", "--tokens", "0"), "--tokens"),
        (("measure", "--valid", "nowhere"), "does not exist"),
    ],
)
@pytest.mark.usefixtures("shortened")
def test_what_can_not_be_done(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    texts, out = write(tmp_path / "train.jsonl", TEXTS), tmp_path / "out"
    if arguments == ("draft",):
        train_pair.Workplace(out, texts).tokenizer(train_pair.BYTE_LEVEL)
        small(pair_tokenizers.opened(out / train_pair.BYTE_LEVEL)).save_pretrained(out / "target")
    rest = () if arguments[0] == "measure" else ("--out", str(out), "--corpus", str(texts))
    result = CliRunner().invoke(train_pair.app, [*arguments, *rest])
    assert result.exit_code != 0
    assert words in result.output + str(result.exception)
    assert "Traceback" not in result.output
