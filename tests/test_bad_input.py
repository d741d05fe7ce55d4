"""Whatever can't be meant or isn't there: one sentence, one hint, the right exit code, nothing left behind."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from command_line import QUICK, Outcome, command, isolate, ok, process
from packaged import new_token
from specprof.models import hub
from specprof.models.wrapper import ModelWrapper
from specprof.profiling.metrics import fold
from tiny_models import VOCAB_SIZE, save_model_dir, tiny_gpt2, tiny_gpt_neox, tiny_tokenizer
from tiny_tokenizers import byte_level, word_piece

USAGE, UNAVAILABLE, RESOURCES, INCOMPATIBLE, NO_NUMBERS = 2, 3, 4, 5, 6


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


def refused(*arguments: str, code: int, **options: Any) -> tuple[str, str]:
    """The error and the hint of a command that fails with ``code`` and writes nothing, anywhere."""
    before = sorted(Path().rglob("*"))
    outcome = command(*arguments, **options)
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert sorted(Path().rglob("*")) == before
    return outcome.told


# Options, judged before PyTorch is imported

OPTIONS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "unknown pair": (
        ("--pair", "nope"),
        "no pair named 'nope'",
        "gpt2_dev, tinyllama_llama3, phi3_llama3, llama3_self, tiny_dev, tiny_cross",
    ),
    "misspelt pair": (("--pair", "gpt2-dev"), "no pair named 'gpt2-dev'", "did you mean gpt2_dev?"),
    "empty pair": (("--pair", ""), "no pair named ''", "known pairs"),
    "empty draft": (("--draft", "", "--target", "tiny_dev/target"), "the model id is empty", "directory"),
    "dtype": (("--dtype", "float12"), "no dtype 'float12'", "float16, bfloat16, float32, int4"),
    "k": (("--k", "-1"), "k = -1 is negative", "0 or more"),
    "k no number": (("--k", "four"), "--k 'four' is neither a number nor auto", "0 is plain decoding"),
    "k no whole number": (("--k", "1.5"), "--k '1.5' is neither a number nor auto", "0 is plain decoding"),
    "k empty": (("--k", ""), "--k '' is neither a number nor auto", "0 is plain decoding"),
    "k-max alone": (("--k-max", "4"), "--k-max needs --k auto", "4 are drafted every round"),
    "k-max": (("--k", "auto", "--k-max", "0"), "--k-max 0 is less than 1", "1 or more"),
    "k auto deterministic": (("--k", "auto", "--deterministic"), "--deterministic exclude each other", "fixed --k"),
    "layerskip alone": (("--drafter", "layerskip"), "layerskip needs --draft-layers N", "N of the target's layers"),
    "draft-layers": (("--drafter", "layerskip", "--draft-layers", "0"), "--draft-layers 0 is less than 1", "1 or more"),
    "draft-layers of a model": (("--draft-layers", "2"), "does not apply to --drafter model", "--drafter layerskip"),
    "draft-layers of self": (
        ("--drafter", "self", "--draft-layers", "2"),
        "does not apply to --drafter self",
        "layerskip",
    ),
    "draft-threshold": (("--draft-threshold", "1.5"), "--draft-threshold 1.5 is not in [0, 1]", "probability"),
    "draft-threshold negative": (("--draft-threshold", "-0.1"), "--draft-threshold -0.1 is not in", "probability"),
    "draft-threshold nan": (("--draft-threshold", "nan"), "--draft-threshold nan is not in [0, 1]", "probability"),
    "draft-threshold of ngram": (
        ("--drafter", "ngram", "--draft-threshold", "0.5"),
        "does not apply to --drafter ngram",
        "model, layerskip, self",
    ),
    "draft-threshold of random": (
        ("--drafter", "random", "--draft-threshold", "0.5"),
        "does not apply to --drafter random",
        "model, layerskip, self",
    ),
    "draft-threshold of slem": (
        ("--vocab-method", "slem", "--draft-threshold", "0.5"),
        "does not apply to --vocab-method slem",
        "--vocab-method tli",
    ),
    "vocab-method": (("--vocab-method", "bogus"), "no vocab method 'bogus'", "auto, tli, slem"),
    "vocab-method of ngram": (
        ("--drafter", "ngram", "--vocab-method", "tli"),
        "does not apply to --drafter ngram",
        "another vocabulary",
    ),
    "vocab-method sampling": (
        ("--pair", "tiny_cross", "--vocab-method", "slem", "--temperature", "0.8"),
        "can't be sampled with",
        "--temperature 0",
    ),
    "threshold of no draft": (
        ("--draft-threshold", "0.5", "--k", "0"),
        "--draft-threshold does not apply to --k 0",
        "--k 1 or more",
    ),
    "draft of no use": (
        ("--draft", "tiny_dev/draft", "--target", "tiny_dev/target", "--drafter", "self"),
        "--draft does not apply to --drafter self",
        "leave it out",
    ),
    "scale-layers alone": (
        ("--scale-layers", "1"),
        "--scale-layers needs --random-weights",
        "trained model",
    ),
    "temperature": (("--temperature", "-0.1"), "temperature -0.1 is not a number >= 0", "0 is greedy"),
    "temperature nan": (("--temperature", "nan"), "temperature nan is not a number", "0 is greedy"),
    "temperature inf": (("--temperature", "inf"), "temperature inf is not a number", "0 is greedy"),
    "top-p 0": (("--top-p", "0"), "top-p 0.0 is not in (0, 1]", "1 keeps every token"),
    "top-p 1.5": (("--top-p", "1.5"), "top-p 1.5 is not in (0, 1]", "1 keeps every token"),
    "top-p nan": (("--top-p", "nan"), "top-p nan is not in (0, 1]", "1 keeps every token"),
    "top-k": (("--top-k", "-1"), "top-k -1 is negative", "0 keeps every token"),
    "max-new-tokens": (("--max-new-tokens", "0"), "--max-new-tokens 0 is less than 1", "1 or more"),
    "reps": (("--reps", "0"), "--reps 0 is less than 1", "1 or more"),
    "warmup": (("--warmup", "-1"), "--warmup -1 is less than 0", "0 or more"),
    "number of prompts": (("-n", "0"), "--num-prompts 0 is less than 1", "1 or more"),
    "synthetic acceptance": (("--synthetic-acceptance", "1.5"), "1.5 is not in [0, 1]", "probability"),
    "synthetic acceptance nan": (("--synthetic-acceptance", "nan"), "nan is not in [0, 1]", "probability"),
    "drafter": (("--drafter", "oracle"), "no drafter 'oracle'", "model, ngram"),
    "forward": (("--forward", "sideways"), "no forward 'sideways'", "auto, native, own, hf"),
    "chat template": (("--chat-template", "yes"), "--chat-template 'yes' is not a choice", "auto, off"),
    "color": (("--color", "blue"), "--color 'blue' is not a choice", "auto, always, never"),
    "draft alone": (("--draft", "x"), "--draft needs --target", "both models"),
    "target alone": (("--target", "x"), "--target needs --draft", "--drafter ngram"),
    "pair and draft": (("--pair", "tiny_dev", "--draft", "x"), "exclude each other", "one or the other"),
    "pair and target": (("--pair", "tiny_dev", "--target", "x"), "exclude each other", "one or the other"),
    "json and jsonl": (("--json", "--jsonl"), "exclude each other", "one document"),
    "prompt and prompts": (("--prompt", "x", "--prompts", "y"), "exclude each other", "a file"),
    "unknown option": (("--speed", "9"), "No such option: --speed", "specprof run --help"),
    "argument": (("tiny_dev",), "unexpected extra argument", "specprof run --help"),
    "domain": (("--domain", "poetry"), "no prompt has the domain 'poetry'", "code, conversation, summarization"),
    "empty prompt": (("--prompt", ""), "nothing but white space", "at least one word"),
    "blank prompt": (("--prompt", " \n\t"), "nothing but white space", "at least one word"),
    "half a character": (("--prompt", "a\udcff"), "half of a surrogate pair", "whole character"),
    "missing file": (("--prompts", "missing.txt"), "missing.txt does not exist", "path"),
    "revision of a directory": (("--revision", "main"), "has no revision 'main'", "leave the revision out"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_that_means_nothing(case: str) -> None:
    arguments, error, hint = OPTIONS[case]
    said = refused("run", *arguments, code=USAGE)
    assert error in said[0] and hint in said[1]


FILES: dict[str, tuple[bytes, str, str]] = {
    "empty.txt": (b"", "empty.txt is empty", "at least one prompt"),
    "blank.txt": (b" \n", "blank.txt is empty", "at least one prompt"),
    "latin1.txt": ("Käse".encode("latin1"), "latin1.txt is not UTF-8: byte 1 (0xe4)", "UTF-8"),
    "torn.json": (b'["one", ', "torn.json: not valid JSON", "list of texts"),
    "none.json": (b"[]", "none.json: there is no prompt", "at least one text"),
    "torn.jsonl": (b'{"text": "a"}\n{"text": \n', "torn.jsonl: line 2", "list of texts"),
    "twice.json": (b'[{"prompt_id": "a", "text": "x"}, {"prompt_id": "a", "text": "y"}]', "occurs 2 times", "own"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_prompt_file_that_holds_no_prompts(name: str) -> None:
    content, error, hint = FILES[name]
    Path(name).write_bytes(content)
    said = refused("run", "--prompts", name, code=USAGE)
    assert error in said[0] and hint in said[1]


def test_a_directory_for_a_prompt_file() -> None:
    Path("prompts").mkdir()
    assert "is a directory" in refused("run", "--prompts", "prompts", code=USAGE)[0]


def test_nothing_on_standard_input() -> None:
    assert refused("run", "--prompts", "-", code=USAGE)[0] == "standard input is empty"
    assert "not UTF-8" in refused("run", "--prompts", "-", code=USAGE, stdin=b"\xff\xfe")[0]


def test_an_unknown_command() -> None:
    error, hint = refused("race", code=USAGE)
    assert "No such command 'race'" in error and "`specprof --help`" in hint


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[pairs.mine\n", "specprof.toml is not valid TOML"),
        ("[pairs.mine]\ndraft = 3\n", "draft is int, not a string"),
        ("[pairs.mine]\ndraft = 'a'\n", "[pairs.mine] has no target"),
        ("[pairs.mine]\ndraft = 'a'\ntarget = 'b'\nspeed = 'c'\n", "unknown key 'speed'"),
        ("[pairs.tiny_dev]\ndraft = 'a'\ntarget = 'b'\n", "shadows the registered pair"),
    ],
)
def test_a_configuration_file_that_makes_no_sense(text: str, error: str) -> None:
    Path("specprof.toml").write_text(text)
    assert error in refused("run", "--pair", "mine", code=USAGE)[0]
    assert error in refused("load", "--list", code=USAGE)[0]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "nothing to load"),
        (("--model", "gpt2", "--pair", "tiny_dev"), "exclude each other"),
        (("--model", ""), "the model id is empty"),
        (("--model", "tiny_dev/target", "--n-tokens", "-1"), "--n-tokens -1 is negative"),
        (("--model", "tiny_dev/target", "--dtype", "fp8"), "no dtype 'fp8'"),
        (("--draft", "tiny_dev/draft"), "--draft needs --target"),
        (("--pair", "nope"), "no pair named 'nope'"),
        (("tiny_dev/target", "--pair", "tiny_dev"), "exclude each other"),
        (("tiny_dev/target", "--draft", "x", "--target", "y"), "exclude each other"),
        (("tiny_dev/target", "--model", "tiny_dev/draft"), "MODEL and --model are the same"),
        (("tiny_dev/target", "tiny_dev/draft"), "unexpected extra argument"),
        (("tiny_dev/target", "--scale-layers", "1"), "--scale-layers needs --random-weights"),
        (("tiny_dev/target", "--scale-layers", "0", "--random-weights"), "can't be built with 0 layers"),
    ],
)
def test_load_refuses_the_same(arguments: tuple[str, ...], error: str) -> None:
    assert error in refused("load", *arguments, code=USAGE)[0]


# What only the models can tell


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (("--drafter", "layerskip", "--draft-layers", "8"), "has 8 layers: 8 of them can't draft", "1 to 7 layers"),
        (("--drafter", "layerskip", "--draft-layers", "99"), "has 8 layers: 99 of them can't draft", "1 to 7 layers"),
        (("--drafter", "layerskip", "--draft-layers", "2", "--forward", "hf"), "needs our own forward", "forward auto"),
        (("--random-weights", "--scale-layers", "0"), "can't be built with 0 layers", "1 or more"),
        (("--random-weights", "--scale-layers", "-3"), "can't be built with -3 layers", "1 or more"),
        (
            ("--random-weights", "--scale-layers", "1", "--drafter", "layerskip", "--draft-layers", "1"),
            "has a single layer", "another drafter",
        ),
    ],
)  # fmt: skip
def test_layers_that_a_model_lacks(arguments: tuple[str, ...], error: str, hint: str) -> None:
    said = refused("run", *QUICK, *arguments, code=USAGE)
    assert error in said[0] and hint in said[1]


def test_layer_skip_of_a_family_that_our_own_forward_does_not_know(tmp_path: Path) -> None:
    save_model_dir(tmp_path / "target", tiny_gpt_neox(), tiny_tokenizer())
    arguments = ("--target", "target", "--drafter", "layerskip", "--draft-layers", "1")
    error, hint = refused("run", *QUICK, *arguments, code=USAGE)
    assert "layer skip needs our own forward, but" in error and "another drafter" in hint
    # The other ways for a target to draft for itself need no more than any forward.
    ok("run", *QUICK, "--no-save", "--target", "target", "--drafter", "self")


# What this machine doesn't have


def test_a_device_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    error, hint = refused("run", *QUICK, "--device", "cuda", code=RESOURCES)
    assert "no CUDA device" in error and "--device cpu" in hint
    assert "no CUDA device" in refused("load", "--pair", "tiny_dev", "--device", "cuda:3", code=RESOURCES)[0]
    assert "no device 'abacus'" in refused("run", *QUICK, "--device", "abacus", code=USAGE)[0]


def test_int4_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "specprof.models.int4.importlib.util.find_spec",
        lambda name, *rest: None if name == "bitsandbytes" else find_spec(name, *rest),
    )
    for arguments in (("run", *QUICK), ("load", "--model", "tiny_dev/target"), ("run", *QUICK, "--random-weights")):
        error, hint = refused(*arguments, "--dtype", "int4", code=RESOURCES)
        assert "int4 needs the bitsandbytes library" in error and "pip install bitsandbytes" in hint


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specprof.models.footprint.available_memory", lambda _device: 1_000_000)
    error, hint = refused("run", *QUICK, code=RESOURCES)
    assert "GB are available" in error and "--dtype int4" in hint


# The context


def test_k_has_to_fit_the_context() -> None:
    error, hint = refused("run", *QUICK, "--k", "1024", code=USAGE)
    assert "k = 1024 is not less than the context of tiny_dev/target, 1024" in error and "2 to 8" in hint


def test_a_prompt_longer_than_the_context() -> None:
    Path("long.txt").write_text("word " * 3000)
    before = sorted(Path().iterdir())
    outcome = command("run", *QUICK, "-q", "--prompts", "long.txt")
    error, hint = outcome.told
    assert outcome.code == USAGE and sorted(Path().iterdir()) == before
    assert "exceeds the context of tiny_dev/target, 1024" in error and "--max-new-tokens" in hint
    assert len(outcome.err.splitlines()) == 2, "quiet is quiet, libraries included"
    # Prompt and answer together: each alone would fit.
    half = "the " * 600
    assert 424 < len(tiny_tokenizer().encode(half)) < 1024
    error, _ = refused("run", *QUICK, "--prompt", half, "--max-new-tokens", "600", code=USAGE)
    assert "with 600 new ones" in error


# Models


def test_a_missing_model_is_told_at_once(tmp_path: Path) -> None:
    start = time.perf_counter()
    child = process(
        "run", "--pair", "gpt2_dev", "--k", "4",
        environment={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}, without=["HF_HUB_CACHE"],
    )  # fmt: skip
    out, err = child.communicate()
    assert time.perf_counter() - start < 5
    assert child.returncode == UNAVAILABLE and out == "" and "Traceback" not in err
    error, _ = Outcome(child.returncode, out, err).told
    assert "gpt2" in error and len(err.splitlines()) == 2
    assert not Path("results").exists()


def test_no_such_directory() -> None:
    arguments = ("--draft", "tiny_dev/draft", "--target", "./large")
    assert "there is no directory ./large" in refused("run", *arguments, code=UNAVAILABLE)[0]
    assert "has no config.json" in refused("load", "--model", ".", code=UNAVAILABLE)[0]


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    directory = tmp_path / "pickled"
    directory.mkdir()
    source = hub.local_directory("tiny_dev/target")
    assert source is not None
    for file in source.iterdir():
        if file.suffix == ".json":
            (directory / file.name).symlink_to(file)
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04K\x00.")
    for arguments in (("load", "--model", "pickled"), ("run", "--draft", "tiny_dev/draft", "--target", "./pickled")):
        error, hint = refused(*arguments, code=UNAVAILABLE)
        assert "pickle" in error and "safetensors" in hint


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    broken = copy.deepcopy(tiny_gpt2(0))
    broken.transformer.ln_f.weight.data.fill_(float("nan"))
    save_model_dir(tmp_path / "broken", broken, tiny_tokenizer())
    error, hint = refused("run", *QUICK, "--target", "broken", "--drafter", "ngram", code=NO_NUMBERS)
    assert "broken computes no numbers (NaN or infinity) in float32" in error and "weights" in hint
    loaded = command("load", "--model", "broken")
    assert loaded.code == NO_NUMBERS and "computes no numbers" in loaded.told[0]


# Vocabularies

PAIR = ("--draft", "draft", "--target", "target", "--dtype", "float32")


def identical(*arguments: str) -> None:
    """A run of the pair below that changes nothing of what the target says."""
    document = ok("run", *QUICK, "--no-save", *PAIR, "--json", *arguments).document
    assert document["output_matches_baseline"]["num_identical"] == document["num_prompts"]


def test_vocabularies_without_a_common_token_are_incompatible(tmp_path: Path) -> None:
    """Byte-level both, one of the letters a to m, one of the others."""
    save_model_dir(tmp_path / "draft", tiny_gpt2(0), byte_level(["<|end|>", *"abcdefghijklm"], eos="<|end|>"))
    save_model_dir(tmp_path / "target", tiny_gpt2(1), byte_level(["<|end|>", *"nopqrstuvwxyz"], eos="<|end|>"))
    arguments = (*PAIR, "--prompt", "zoo")
    for rest in ((), ("--temperature", "0.8"), ("--vocab-method", "tli")):
        error, hint = refused("run", *QUICK, *arguments, *rest, code=INCOMPATIBLE)
        assert "draft can't draft for target: no token of the draft is one of the target" in error
        assert "--drafter ngram" in hint
    assert "--drafter ngram" in refused("load", *PAIR, code=INCOMPATIBLE)[1]
    # Alone, the target needs nobody's vocabulary.
    ok("run", *QUICK, "--no-save", "--target", "target", "--drafter", "ngram", "--prompt", "zoo")


def test_a_tokenizer_that_is_of_no_known_kind_drafts_text(tmp_path: Path) -> None:
    save_model_dir(tmp_path / "draft", tiny_gpt2(0), word_piece())
    save_model_dir(tmp_path / "target", tiny_gpt2(1), tiny_tokenizer())
    outcome = ok("run", *QUICK, "--no-save", *PAIR, "--json")
    assert outcome.document["config"]["vocab_method"] == "slem"
    assert "neither byte-level nor SentencePiece-like" in outcome.err
    identical("-n", "2", "--max-new-tokens", "16")
    for arguments in (("--temperature", "0.8"), ("--vocab-method", "tli")):
        error, hint = refused("run", *QUICK, *PAIR, *arguments, code=INCOMPATIBLE)
        assert "the draft's tokenizer is neither byte-level nor SentencePiece-like" in error
        assert "slem" in hint and "--drafter ngram" in hint
    document = ok("load", *PAIR, "--n-tokens", "0", "--json").document
    assert document["vocabulary"]["kind"] == "unreadable" and document["vocabulary"]["target_mass"] is None


def test_a_draft_without_its_tokenizer(tmp_path: Path) -> None:
    save_model_dir(tmp_path / "draft", tiny_gpt2(0))
    save_model_dir(tmp_path / "target", tiny_gpt2(1), tiny_tokenizer())
    for arguments in (("run", *QUICK), ("load",)):
        error, hint = refused(*arguments, *PAIR, code=UNAVAILABLE)
        assert "draft" in error and "tokenizer" in error and "tokenizer" in hint


def test_a_draft_without_an_end_of_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can't propose an end; the target, made to end its text behind a certain token, ends it all the same."""
    for role, source in (("draft", "tiny_cross/draft"), ("target", "tiny_dev/target")):
        directory = hub.local_directory(source)
        assert directory is not None
        shutil.copytree(directory, tmp_path / role)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        file = tmp_path / "draft" / name
        values = json.loads(file.read_text())
        file.write_text(json.dumps({key: value for key, value in values.items() if not key.startswith("eos_token")}))
    respecting = tuple(flag for flag in QUICK if flag != "--ignore-eos")
    texts = ("--domain", "code", "--max-new-tokens", "40")
    (endless,) = fold(ok("run", *QUICK, "--no-save", "--no-baseline", *PAIR, *texts, "--jsonl").events)
    last, end = new_token(endless.generated_ids, after=5), tiny_tokenizer().eos_token_id
    extend = ModelWrapper.extend

    def ending(wrapper: ModelWrapper, ids: Tensor, *arguments: Any, **options: Any) -> Tensor:
        logits = extend(wrapper, ids, *arguments, **options)
        if wrapper.name == "target":
            logits = logits.clone()
            logits[ids[-len(logits) :] == last, end] = 2 * logits.abs().max()
        return logits

    expected = [*endless.generated_ids[: endless.generated_ids.index(last) + 1], end]
    with monkeypatch.context() as patch:
        patch.setattr(ModelWrapper, "extend", ending)
        for method in ("tli", "slem"):
            events = ok("run", *respecting, "--no-save", *PAIR, *texts, "--vocab-method", method, "--jsonl").events
            plain, speculative = fold(events)
            assert plain.generated_ids == speculative.generated_ids == expected
            assert plain.finish_reason == speculative.finish_reason == "stop"
    ok("run", *QUICK, "--no-save", *PAIR, "--temperature", "0.8")


@pytest.mark.parametrize(("draft_rows", "target_rows"), [(VOCAB_SIZE, VOCAB_SIZE + 64), (VOCAB_SIZE + 64, VOCAB_SIZE)])
def test_padding_rows_are_no_difference(tmp_path: Path, draft_rows: int, target_rows: int) -> None:
    save_model_dir(tmp_path / "draft", tiny_gpt2(1, draft_rows), tiny_tokenizer())
    save_model_dir(tmp_path / "target", tiny_gpt2(0, target_rows), tiny_tokenizer())
    document = ok("load", *PAIR, "--n-tokens", "0", "--json").document
    assert document["vocabulary"]["kind"] == "padding"
    texts = ("-n", "2", "--prompt", "def f(x):", "--prompt", "Once upon a time", "--max-new-tokens", "64")
    identical(*texts)
    ok("run", *QUICK, *PAIR, *texts, "--no-save", "--temperature", "1")


# Places to write to


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--results-dir", "file"), "file is not a directory"),
        (("--results-dir", "file/deeper"), "file is not a directory"),
        (("-o", "missing/out.json"), "no directory missing"),
        (("-o", "."), "it is a directory"),
    ],
)
def test_no_place_for_the_results(arguments: tuple[str, ...], error: str) -> None:
    Path("file").write_text("")
    assert error in refused("run", *QUICK, *arguments, code=RESOURCES)[0]


@pytest.mark.parametrize("writing", ["run -o", "run --trace", "run --host-profile", "verify -o", "sweep -o"])
def test_prompts_are_not_overwritten(writing: str) -> None:
    Path("mine.json").write_text('["once upon a time"]')
    subcommand, flag = writing.split()
    error, hint = refused(subcommand, "--prompts", "mine.json", flag, "./mine.json", code=USAGE)
    assert error == "mine.json is used by this command, and would be overwritten" and hint == "name another file"
    assert Path("mine.json").read_text() == '["once upon a time"]'


def test_a_sweeps_configuration_is_not_overwritten() -> None:
    Path("sweep.yaml").write_text("pairs: [tiny_dev]\n")
    assert "is used by this command" in refused("sweep", "--config", "sweep.yaml", "-o", "sweep.yaml", code=USAGE)[0]
    assert Path("sweep.yaml").read_text() == "pairs: [tiny_dev]\n"


def test_a_sweeps_store_is_not_its_output_either() -> None:
    Path("results").mkdir()  # with nothing in it yet
    assert "is used by this command" in refused("sweep", "-o", "results/records.jsonl", code=USAGE)[0]


@pytest.mark.parametrize("subcommand", ["run", "verify", "sweep", "compare a b", "prompts"])
def test_a_dash_is_no_file_to_write(subcommand: str) -> None:
    error, hint = refused(*subcommand.split(), "-o", "-", code=USAGE)
    assert error == "- is no name of a file" and "--json" in hint


def test_a_directory_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("locked").mkdir()
    # Permission bits don't bind root, who runs tests in containers.
    monkeypatch.setattr("os.access", lambda path, mode: "locked" not in str(path))
    error, hint = refused("run", *QUICK, "--results-dir", "locked/results", code=RESOURCES)
    assert "locked is not writable" in error and "--results-dir" in hint
    assert "locked/o.json can't be written" in refused("run", *QUICK, "-o", "locked/o.json", code=RESOURCES)[0]
