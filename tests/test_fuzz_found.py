"""What ``python -m fuzz`` found, kept small: each of these ended as a bug, a hang or a number that was wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import QUICK, command, isolate, ok
from specprof.models import checkpoint, footprint
from specprof.models.random_weights import known_models, model_config
from tiny_models import save_model_dir, tiny_llama, tiny_qwen2, tiny_tokenizer

USAGE, UNAVAILABLE, RESOURCES = 2, 3, 4


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


def refused(*arguments: str, code: int) -> tuple[str, str]:
    outcome = command(*arguments)
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    return outcome.told


def test_more_prompts_asked_for_than_a_number_of_the_machine_holds() -> None:
    """``islice`` takes no number above sys.maxsize."""
    document = ok("run", *QUICK, "--no-save", "--prompt", "one", "-n", str(10**30), "--json").document
    assert document["num_prompts"] == 1


@pytest.mark.parametrize("threads", ["100000", str(2**31 - 1), str(2**63)])
def test_more_threads_than_any_machine_has(threads: str) -> None:
    """The thread library ended the process: "libgomp: Out of memory"."""
    error, hint = refused("run", *QUICK, "--threads", threads, code=USAGE)
    assert f"--threads {threads} is more than" in error and "cores" in hint


def test_more_repetitions_than_anybody_waits_for() -> None:
    """A sweep lists every generation first: it took all memory, and never came to an end."""
    for arguments in (("sweep", "--dry-run"), ("run",)):
        error, _ = refused(*arguments, "--reps", str(10**12), code=USAGE)
        assert f"--reps {10**12} is more than 10000" in error
    Path("s.yaml").write_text("repetitions: 99999999999999999999999999999\n")
    error, _ = refused("sweep", "--config", "s.yaml", "--dry-run", code=USAGE)
    assert "s.yaml, line 1: repetitions 9999" in error


def test_half_a_character_for_a_setting() -> None:
    """It was an index error."""
    Path("s.yaml").write_text('"\\ud800": 1\n')
    assert "the name of a setting is not text" in refused("sweep", "--config", "s.yaml", "--dry-run", code=USAGE)[0]


@pytest.mark.parametrize("text", ["x = " + "[" * 5000, "x = " + "9" * 6000])
def test_a_configuration_file_that_tomllib_fails_on(text: str) -> None:
    Path("specprof.toml").write_text(text)
    assert "specprof.toml can't be read" in refused("load", "--list", code=USAGE)[0]
    assert "specprof.toml can't be read" in refused("run", *QUICK, "--pair", "mine", code=USAGE)[0]


def test_a_pair_of_ones_own_by_a_registered_name() -> None:
    """The registered one was measured, without a word of the other."""
    Path("specprof.toml").write_text("[pairs.tiny_dev]\ndraft = './a'\ntarget = './b'\n")
    for arguments in ((), ("--pair", "tiny_dev")):
        error, hint = refused("run", *QUICK, *arguments, code=USAGE)
        assert "specprof.toml: [pairs.tiny_dev] shadows the registered pair" in error and "another name" in hint
    ok("load", "--pair", "tiny_cross", "--n-tokens", "0")  # which nobody calls otherwise


@pytest.mark.parametrize(
    "arguments",
    [
        ("load", "./small"),
        ("run", *QUICK, "--target", "small", "--drafter", "ngram"),
        ("run", *QUICK, "--target", "small", "--draft", "ok"),
        ("run", *QUICK, "--target", "small", "--draft", "ok", "--random-weights"),
    ],
)
def test_a_tokenizer_that_knows_more_tokens_than_the_model(arguments: tuple[str, ...]) -> None:
    """It was an index error in the middle of decoding."""
    save_model_dir(Path("small"), tiny_llama(0, vocab_size=1000), tiny_tokenizer())
    save_model_dir(Path("ok"), tiny_llama(1), tiny_tokenizer())
    error, hint = refused(*arguments, code=UNAVAILABLE)
    assert "the tokenizer of" in error and "is another model's: it makes token" in error and "1000" in error
    assert "the tokenizer that belongs" in hint
    # As a draft it does: what it makes of the context is its own affair.
    document = ok("run", *QUICK, "--no-save", "--draft", "small", "--target", "ok", "--json").document
    assert document["output_matches_baseline"]["num_identical"] == 1


@pytest.mark.parametrize(
    ("key", "size", "why"),
    [
        ("num_hidden_layers", 10**12, "no model is that large"),
        ("num_hidden_layers", 9999, "its weights are"),
        ("hidden_size", 2**40, "no model is that large"),
        ("vocab_size", 2**20, "the longest side of its weights is 4096"),
        ("max_position_embeddings", 10**30, "no model is that large"),
        ("intermediate_size", 1e300, "no model is that large"),
    ],
)
def test_a_configuration_of_another_order_of_magnitude(key: str, size: float, why: str) -> None:
    """Layer after layer was built, or memory filled, before anybody looked at the weights."""
    directory = save_model_dir(Path("model"), tiny_qwen2(), tiny_tokenizer())
    config = directory / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: size}))
    error, _ = refused("load", "./model", code=UNAVAILABLE)
    assert f"config.json of ./model says {key} = {str(size)[:24]}, and {why}" in error
    if why == "no model is that large":
        arguments = ("--draft", "model", "--target", "model", "--random-weights")
        assert why in refused("run", *QUICK, *arguments, code=UNAVAILABLE)[0]


@pytest.mark.parametrize("model_id", known_models())
def test_true_configurations_are_no_larger_than_what_is_refused(model_id: str) -> None:
    config = model_config(model_id)
    Path("config.json").write_text(json.dumps(config))
    assert checkpoint.read_config(Path(), model_id) == config


def test_graphs_are_refused_by_a_sweep_as_by_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It recorded failed cells, to be tried again with --retry-failed."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = refused("run", *QUICK, "--engine", "graph", code=USAGE)
    assert refused("sweep", "--engine", "graph", code=USAGE) == said
    assert not Path("results").exists()


def test_standard_error_on_a_full_disk() -> None:
    """What there was to tell could not be told, and that ended with 1, as a bug."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "specprof", "run", "--k", "-1"], stderr=full, check=False)
    assert done.returncode == USAGE


def test_python_without_docstrings() -> None:
    done = subprocess.run([sys.executable, "-OO", "-m", "specprof", "load", "--list"], capture_output=True, check=False)
    assert done.returncode == 0 and b"tiny_dev" in done.stdout


def test_memory_limits_of_the_groups_that_a_process_is_in(tmp_path: Path) -> None:
    """Only the outermost was asked, and of version 2 only: a limit of one's own went unseen."""
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/a/b\n5:cpu:/a\n0::/c\n")
    group = tmp_path / "memory" / "a"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("1000000\n")
    (group / "memory.usage_in_bytes").write_text("700000\n")
    (group / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 200000\n")
    (tmp_path / "memory.max").write_text("900000\n")
    (tmp_path / "memory.current").write_text("100000\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 0\n")
    groups = list(footprint._own_groups(tmp_path, own))
    assert groups == [tmp_path / "memory/a/b", group, tmp_path / "memory", tmp_path / "c", tmp_path]
    assert [footprint._container_room(each) for each in groups] == [None, 500_000, None, None, 800_000]
    assert list(footprint._own_groups(tmp_path, tmp_path / "none")) == []
