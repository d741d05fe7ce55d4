"""``specprof prompts``, as a user meets it: build, list, show, check; with a hub, without one, with bad input."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from command_line import Outcome, command, isolate, ok
from dataset_hub import ALPACA, CNN, HUMANEVAL, served
from specprof.data import sources
from specprof.data.prompts import DOMAINS, Prompt, PromptDataset, builtin
from specprof.experiments.config import RunConfig
from specprof.models import hub
from specprof.models.loader import load_tokenizer

PAIRS = Path(hub.__file__).parent / "pairs"
module: Any = sys.modules["specprof.commands.prompts"]  # the name is the function's in its package


@pytest.fixture(autouse=True)
def _away_from_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)


def counted(model: str = "tiny_dev/target") -> PromptDataset:
    return builtin().with_token_counts(load_tokenizer(model))


# Building


def test_offline_every_domain_is_built_in_and_says_so() -> None:
    outcome = ok("prompts", "--offline")
    header, line, *rows = outcome.out.splitlines()
    assert header.split() == ["domain", "n", "min", "mean", "max", "source"]
    assert set(line) == {"-"}
    for row, stats in zip(rows, counted().stats(), strict=True):
        assert row.split() == [stats.domain, "50", str(stats.min), f"{stats.mean:.1f}", str(stats.max), "built-in"]
    for domain in DOMAINS:
        assert f"{domain}: 50 built-in prompts, because of --offline" in outcome.err
    assert list(Path().iterdir()) == []


def test_the_environment_can_say_offline_too() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert "code: 50 built-in prompts, because offline mode is on" in ok("prompts").err


def test_output_is_a_prompt_file_with_token_counts() -> None:
    outcome = ok("prompts", "--offline", "--output", "prompts.json")
    assert "saved 150 prompts: prompts.json" in outcome.err
    assert PromptDataset.load("prompts.json") == counted()
    assert list(json.loads(Path("prompts.json").read_text())[0]) == ["prompt_id", "domain", "raw_text", "token_count"]


def test_the_tiny_set_lies_beside_the_whole() -> None:
    outcome = ok("prompts", "--offline", "--output", "prompts.json")
    assert "saved 15 prompts: prompts_tiny.json" in outcome.err
    assert sorted(path.name for path in Path().iterdir()) == ["prompts.json", "prompts_tiny.json"]
    tiny = PromptDataset.load("prompts_tiny.json")
    assert [prompt.prompt_id for prompt in tiny] == [f"{domain}_{i:03d}" for domain in DOMAINS for i in range(5)]
    whole = {prompt.prompt_id: prompt for prompt in PromptDataset.load("prompts.json")}
    assert all(prompt == whole[prompt.prompt_id] for prompt in tiny)


def test_the_tiny_set_alone() -> None:
    ok("prompts", "--offline", "-o", "prompts.json", "-q")
    document = ok("prompts", "--offline", "--tiny", "-o", "tiny.json", "-q", "--json").document
    assert (document["output"], document["tiny_output"]) == ("tiny.json", None)
    assert Path("tiny.json").read_bytes() == Path("prompts_tiny.json").read_bytes()
    assert not Path("tiny_tiny.json").exists()


def test_nothing_lies_beside_a_pipe() -> None:
    os.mkfifo("pipe")
    reader = threading.Thread(target=lambda: read.append(Path("pipe").read_text()))
    read: list[str] = []
    reader.start()
    ok("prompts", "--offline", "-o", "pipe", "-q")
    reader.join(10)
    assert len(json.loads(read[0])) == 150
    assert [path.name for path in Path().iterdir()] == ["pipe"]


def test_json_is_one_document() -> None:
    document = ok("prompts", "--offline", "--json", "--seed", "4", "-o", "p.json").document
    assert document["schema"] == "specprof.prompts/1"
    assert (document["tokenizer"], document["chat_template"]) == ("tiny_dev", "auto")
    assert (document["seed"], document["output"], document["tiny_output"]) == (4, "p.json", "p_tiny.json")
    expected = [{**dataclasses.asdict(s), "source": "built-in", "reason": "of --offline"} for s in counted().stats()]
    assert document["domains"] == expected


def test_tokens_are_those_of_the_tokenizer_and_need_no_weights(tmp_path: Path) -> None:
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    for file in (PAIRS / "tiny_cross" / "draft").glob("tokenizer*"):
        shutil.copy(file, directory)
    domains = {
        name: ok("prompts", "--offline", "--json", "--tokenizer", name).document["domains"]
        for name in ("tiny_dev", "tiny_dev/target", "tiny_cross/draft", str(directory))
    }
    assert domains["tiny_dev"] == domains["tiny_dev/target"]
    assert domains["tiny_cross/draft"] == domains[str(directory)]
    assert domains["tiny_dev"] != domains["tiny_cross/draft"]


def test_the_chat_template_counts_unless_it_is_off() -> None:
    auto, off = (
        ok("prompts", "--list", "--json", "--chat-template", choice).document["prompts"] for choice in ("auto", "off")
    )
    for with_it, without in zip(auto, off, strict=True):
        more = with_it["token_count"] - without["token_count"]
        assert (more > 0) == (with_it["domain"] == "conversation")  # tiny_dev's template leaves the rest as it is


def test_without_the_library_a_note_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "offline_by_environment", lambda: False)
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    outcome = ok("prompts", "--tiny")
    said = "built-in prompts, because the datasets library is not installed (pip install 'specprof[datasets]')"
    assert outcome.err.count(said) == 3


# With a hub, and with none: in processes of their own, because the hub's library reads the environment once


def alone(*arguments: str, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().endswith("_PROXY") and not name.startswith("HF_")
    }
    environment: Mapping[str, str] = {**inherited, "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.slow
def test_from_the_hub_to_the_file(tmp_path: Path) -> None:
    with served() as (address, server):
        server.repositories["org/model"] = {
            path.name: path.read_bytes() for path in (PAIRS / "tiny_dev" / "target").iterdir()
        }
        server.repositories[ALPACA] = 500
        done = alone(
            "-m", "specprof", "prompts", "--tokenizer", "org/model", "-o", "p.json", endpoint=address, home=tmp_path
        )
        requests = server.requests
    assert done.returncode == 0, done.stderr
    assert f"code: 50 prompts from {HUMANEVAL}" in done.stderr
    assert f"conversation: 50 built-in prompts, because the hub answers 500 when asked for {ALPACA}" in done.stderr
    assert f"summarization: 50 prompts from {CNN}" in done.stderr
    assert [line.split()[-1] for line in done.stdout.splitlines()[2:]] == [HUMANEVAL, "built-in", CNN]
    dataset = PromptDataset.load("p.json")
    assert dataset.with_token_counts(load_tokenizer("tiny_dev/target")) == dataset
    assert [len(dataset.get_by_domain(domain)) for domain in DOMAINS] == [50, 50, 50]
    assert not any("safetensors" in request for request in requests)
    # One question whether there is a hub; that it lacks this model doesn't matter.
    assert sum("gpt2" in request for request in requests) == 1


FALLBACK = """
import json, sys, time
import specprof.commands
from specprof.data import sources
command = sys.modules["specprof.commands.prompts"]
start = time.perf_counter()
dataset, origins = sources.build(None, unavailable=command._why_no_data_sets(False))
print(json.dumps([time.perf_counter() - start, len(dataset), [[o.source, o.reason] for o in origins]]))
"""


def test_without_a_network_all_domains_fall_back_within_five_seconds(tmp_path: Path) -> None:
    with socket.socket() as unused, socket.socket() as mute:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        mute.bind(("127.0.0.1", 0))
        mute.listen()  # accepts, never answers
        for listener in (unused, mute):
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            done = alone("-c", FALLBACK, endpoint=f"http://{address}", home=tmp_path)
            assert done.returncode == 0, done.stderr
            seconds, num_prompts, origins = json.loads(done.stdout)
            assert seconds < 5
            assert num_prompts == 150
            for source, reason in origins:
                assert source == "built-in"
                assert reason.startswith(f"{address} can't be reached (")


def test_help_loads_nothing_heavy() -> None:
    program = """
import sys
from specprof.commands import main
try:
    main(["prompts", "--help"])
except SystemExit as ended:
    assert ended.code in (0, None), ended.code
print(*sorted({"torch", "transformers", "datasets", "huggingface_hub", "pandas", "pyarrow"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "--tokenizer" in done.stdout
    assert done.stdout.splitlines()[-1] == ""


# Looking


def test_list_has_a_line_for_every_packaged_prompt() -> None:
    header, *lines = ok("prompts", "--list").out.splitlines()
    assert header.split() == ["id", "domain", "tokens", "text"]
    for line, prompt in zip(lines, counted(), strict=True):
        assert line.split()[:3] == [prompt.prompt_id, prompt.domain, str(prompt.token_count)]
        shown = line[44:].removesuffix(" ...")
        assert len(shown) > 20 and " ".join(prompt.raw_text.split()).startswith(shown)
        assert len(line) <= 108
    assert len(ok("prompts", "--list", "--tiny").out.splitlines()) == 1 + 15


def test_list_as_json_has_the_texts() -> None:
    document = ok("prompts", "--list", "--json").document
    assert [Prompt(**record) for record in document["prompts"]] == list(counted())


def test_show_prints_the_text_and_nothing_else() -> None:
    prompt = counted().get_by_domain("code")[17]
    outcome = ok("prompts", "--show", prompt.prompt_id)
    assert outcome.out == prompt.raw_text + "\n"
    assert outcome.err.splitlines()[-1] == f"code_017: {prompt.token_count} tokens"
    [record] = ok("prompts", "--show", prompt.prompt_id, "--json").document["prompts"]
    assert Prompt(**record) == prompt


def test_texts_can_not_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    tricky = PromptDataset(tuple(Prompt(f"{d}_000", d, "a\x1b[31mb\rc\x9b") for d in DOMAINS))
    monkeypatch.setattr(module, "builtin", lambda: tricky)
    for arguments in (("--show", "code_000"), ("--list",)):
        out = ok("prompts", *arguments).out
        assert "a\\x1b[31mb" in out
        assert out.replace("\n", "").isprintable()


# Checking


def written(name: str, content: str) -> str:
    Path(name).write_text(content, encoding="utf-8")
    return name


def test_check_counts_a_good_file() -> None:
    name = written("own.jsonl", '{"text": "one two", "domain": "legal"}\n"three"\n')
    outcome = ok("prompts", "--check", name)
    assert [line.split()[:2] for line in outcome.out.splitlines()[2:]] == [["legal", "1"], ["custom", "1"]]
    assert "own.jsonl: 2 prompts, 0 longer than 928 tokens" in outcome.err
    document = ok("prompts", "--check", name, "--json").document
    assert (document["file"], document["max_tokens"], document["too_long"]) == ("own.jsonl", 928, [])
    assert [domain["domain"] for domain in document["domains"]] == ["legal", "custom"]
    assert sorted(path.name for path in Path().iterdir()) == ["own.jsonl"]


def test_check_reads_standard_input() -> None:
    outcome = ok("prompts", "--check", "-", stdin=b'["a", "b"]')
    assert "standard input: 2 prompts" in outcome.err


def test_check_warns_of_what_leaves_no_room_for_an_answer() -> None:
    texts = {"fits": "a" * 20, "long": "word " * 2000, "longer": "word " * 3000}
    name = written("own.json", json.dumps([{"prompt_id": key, "text": text} for key, text in texts.items()]))
    outcome = ok("prompts", "--check", name, "-q")
    warnings = [line for line in outcome.err.splitlines() if line]
    assert [line.split()[:2] for line in warnings] == [["warning:", "long"], ["warning:", "longer"]]
    assert "is longer than 928 tokens: it has " in warnings[0]
    document = ok("prompts", "--check", name, "--max-tokens", "2", "--json").document
    assert (document["max_tokens"], document["too_long"]) == (2, ["fits", "long", "longer"])


def test_the_limit_leaves_room_for_what_run_adds() -> None:
    [default] = [field.default for field in dataclasses.fields(RunConfig) if field.name == "max_new_tokens"]
    assert default == module.NEW_TOKENS


def test_many_long_prompts_are_not_all_named() -> None:
    name = written("own.json", json.dumps(["one two three four"] * 13))
    outcome = ok("prompts", "--check", name, "--max-tokens", "1")
    assert outcome.err.count("is longer than 1 tokens") == 10
    assert "warning: and 3 more are longer" in outcome.err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("own.jsonl", '"a"\n{"text": }\n', "own.jsonl: line 2: not valid JSON at column 10"),
        ("own.json", '["a", {"id": 1}]', "own.json: item 2: none of the keys raw_text, prompt, text is there"),
        ("own.json", '[{"text": "a", "prompt_id": "x"}, {"text": "b", "prompt_id": "x"}]', "'x' occurs 2 times"),
        ("own.txt", "\n", "own.txt is empty"),
    ],
)
def test_check_names_the_first_problem_and_its_place(name: str, content: str, said: str) -> None:
    outcome = command("prompts", "--check", written(name, content))
    assert outcome.code == 2 and outcome.out == ""
    assert said in outcome.told[0]


# Bad input


def refusal(*arguments: str) -> Outcome:
    before = sorted(Path().iterdir())
    outcome = command("prompts", *arguments)
    assert outcome.out == ""
    assert sorted(Path().iterdir()) == before
    return outcome


@pytest.mark.parametrize(
    ("arguments", "code", "said", "hinted"),
    [
        (("--tokenizer", "no-such-model"), 3, "tokenizer of no-such-model is not cached", "--tokenizer tiny_dev"),
        (("--tokenizer", "./nowhere"), 3, "there is no directory ./nowhere", "check the path"),
        (("--tokenizer", "a/b/c"), 3, "neither an existing directory nor a hub id", "OWNER/NAME"),
        (("--tokenizer", ""), 2, "the model id is empty", "gpt2"),
        (("--output", "."), 4, "it is a directory", "name a file"),
        (("--output", "missing/p.json"), 4, "there is no directory missing", "name a file"),
        (("--output", "/proc/p.json", "--tokenizer", "tiny_dev"), 4, "can't", "name a file"),
        (("--show", "code_0037"), 2, "no packaged prompt 'code_0037'", "code_003"),
        (("--show", "Summarization_49"), 2, "'Summarization_49'", "summarization_049"),
        (("--show", "\x1b[31m"), 2, "no packaged prompt", "specprof prompts --list"),
        (("--list", "--check", "x.json"), 2, "--list and --check exclude each other", "one of them"),
        (("--list", "--show", "code_000"), 2, "--list and --show exclude each other", "one of them"),
        (("--show", "code_000", "--check", "x"), 2, "--show and --check exclude each other", "one of them"),
        (("--list", "--output", "p.json"), 2, "--output does not apply to --list", "leave out --list"),
        (("--check", "x.json", "--seed", "1"), 2, "--seed does not apply to --check", "leave out --check"),
        (("--show", "code_000", "--tiny"), 2, "--tiny does not apply to --show", "leave out --show"),
        (("--max-tokens", "9"), 2, "--max-tokens needs --check", "warns"),
        (("--check", "x.json", "--max-tokens", "0"), 2, "--max-tokens 0 is less than 1", "1 or more"),
        (("--chat-template", "on"), 2, "--chat-template 'on' is not a choice", "auto, off"),
        (("--check", "none.json"), 2, "none.json does not exist", "path"),
        (("--check", "."), 2, "is a directory", "one prompt file"),
        (("--seed", "x"), 2, "'--seed'", "specprof prompts --help"),
        (("something",), 2, "something", "specprof prompts --help"),
    ],
)
def test_bad_input_is_one_error_and_one_hint(arguments: tuple[str, ...], code: int, said: str, hinted: str) -> None:
    outcome = refusal(*arguments)
    assert outcome.code == code
    error, hint = outcome.told
    assert said in error
    assert hinted in hint


@pytest.mark.parametrize("broken", ["tokenizer.json is torn", "no tokenizer files"])
def test_a_broken_tokenizer_is_refused(tmp_path: Path, broken: str) -> None:
    directory = tmp_path / "model"
    shutil.copytree(PAIRS / "tiny_dev" / "draft", directory)
    if broken == "no tokenizer files":
        (directory / "tokenizer.json").unlink()
    else:
        (directory / "tokenizer.json").write_text('{"version": ')
    outcome = refusal("--tokenizer", str(directory), "-o", "p.json")
    assert outcome.code == 3
    assert "tokenizer" in outcome.told[0]


def test_an_existing_file_is_kept_when_building_fails() -> None:
    name = written("p.json", "mine")
    assert command("prompts", "--tokenizer", "./nowhere", "-o", name).code == 3
    assert Path(name).read_text() == "mine"
