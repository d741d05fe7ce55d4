"""The command line's contract: what goes to which stream in which form, and that every option does what it says."""

from __future__ import annotations

import functools
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_line import QUICK, Outcome, command, isolate, ok, process
from packaged import copy_that_ends_at, new_token
from specprof.commands.sinks import TextStream
from specprof.decoding.vocabulary import VocabularyVerdict, compare_vocabularies
from specprof.models import hub, loader
from specprof.models.linear import by_rows
from specprof.models.native import forward
from specprof.profiling.comparison import compare
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round, RunEnded, RunStarted, to_json_line
from specprof.profiling.metrics import fold
from tiny_models import tiny_tokenizer

ANSI = re.compile(r"\x1b\[[0-9;]*m")
TARGET, DRAFT = (str(hub.local_directory(f"tiny_dev/{role}")) for role in ("target", "draft"))


load_model_once = functools.cache(loader.load_model)


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    # Most of a short run's time goes to reading weights and to warming up, which other files are about.
    monkeypatch.setattr(loader, "load_model", load_model_once)
    monkeypatch.setattr("specprof.experiments.run.warm_shapes", lambda arms: None)
    monkeypatch.setattr("specprof.models.linear.measure_forms", lambda weights, width: {by_rows: 0.0})


def run(*arguments: str, **options: Any) -> Outcome:
    """A short successful run that keeps no events."""
    return ok("run", *QUICK, "--no-save", *arguments, **options)


def tokens(events: list[Event]) -> dict[str, list[int]]:
    """What each decoder generated."""
    return {result.decoder: result.generated_ids for result in fold(events)}


# Standard output is data, standard error is narration


@pytest.mark.parametrize("flags", [(), ("-q",), ("-v",), ("-vv",), ("--log-json", "-vv")])
def test_run_json_is_one_document_at_every_verbosity(flags: tuple[str, ...]) -> None:
    outcome = run("--json", *flags)
    assert outcome.document["schema"] == "specprof.run/1"
    if "-q" in flags:
        assert outcome.err == ""
    elif "--log-json" in flags:
        records = [json.loads(line) for line in outcome.err.splitlines()]
        assert {"time", "level", "logger", "message"} == set.intersection(*map(set, records))
        assert any("loading tiny_dev" in record["message"] for record in records)
    else:
        assert "loading tiny_dev" in outcome.err
    assert ("--- code_000" in outcome.err) == (flags in (("-v",), ("-vv",)))
    # The details: one line a generation, and where the files are.
    assert ("tok/s" in outcome.err) == ("-vv" in flags)
    assert (TARGET in outcome.err) == ("-vv" in flags)


@pytest.mark.parametrize("flags", [(), ("-q",), ("-v",), ("--log-json",)])
def test_load_json_is_one_document_at_every_verbosity(flags: tuple[str, ...]) -> None:
    outcome = ok("load", "--model", "tiny_dev/target", "--n-tokens", "5", "--json", *flags)
    document = outcome.document
    assert document["schema"] == "specprof.load/1"
    facts = document["models"]["model"]
    assert facts["parameters"] > 7e6 and facts["memory_bytes"] >= 4 * facts["parameters"]
    assert facts["output"].startswith("The quick brown fox") and len(facts["output"]) > len("The quick brown fox")
    assert (outcome.err == "") == ("-q" in flags)
    if "--log-json" in flags:
        assert all(json.loads(line)["message"] for line in outcome.err.splitlines())
    assert (TARGET in outcome.err) == ("-v" in flags)


def test_the_list_of_pairs() -> None:
    Path("specprof.toml").write_text('[pairs.mine]\ndraft = "gpt2"\ntarget = "gpt2-large"\nnotes = "\\u001b[31m"\n')
    document = ok("load", "--list", "--json").document
    assert document["schema"] == "specprof.pairs/1"
    assert [pair["name"] for pair in document["pairs"]] == [
        "gpt2_dev", "tinyllama_llama3", "phi3_llama3", "llama3_self", "tiny_dev", "tiny_cross", "mine",
    ]  # fmt: skip
    table = ok("load", "--list").out
    assert "gpt2-xl" in table and "gpt2-large" in table and "\x1b" not in table


def test_jsonl_is_the_events_and_they_fold_to_the_document() -> None:
    outcome = ok("run", *QUICK, "--reps", "2", "--jsonl", "-o", "run.json", "--results-dir", "results")
    events = outcome.events
    assert [to_json_line(event) for event in events] == outcome.out.splitlines(keepends=True)
    assert isinstance(events[0], RunStarted) and isinstance(events[-1], RunEnded)
    document = json.loads(Path("run.json").read_text())
    assert Path(document["events_file"]).read_text() == outcome.out
    prompts = {prompt["prompt_id"]: prompt["domain"] for prompt in events[0].config["prompts"]}
    again = compare(fold(events), temperature=0.0, domains=prompts, seed=0).to_dict()
    assert again == {key: document[key] for key in again}
    assert (document["run_id"], document["config"], document["machine"]) == (
        events[0].run_id, events[0].config, events[0].machine,
    )  # fmt: skip


def test_the_document_has_every_number() -> None:
    document = run("--json").document
    assert set(document["acceptance"]) >= {
        "num_spec_steps", "num_draft_tokens", "num_accepted_draft_tokens", "num_spec_tokens", "draft_acceptance_rate",
        "mean_acceptance_length", "accepted_per_step", "acceptance_rate_per_pos", "conditional_acceptance_rate",
        "acceptance_histogram", "draft_length_histogram", "alpha",
    }  # fmt: skip
    assert set(document["costs"]) >= {
        "draft_cost_ratio", "verify_ratio", "overhead_ratio", "speedup_predicted", "break_even_alpha", "best_k",
        "draft_tokens_per_round", "tokens_per_round",
    }  # fmt: skip
    assert {"speedup_decode", "speedup_e2e", "output_matches_baseline", "domains", "warnings"} <= set(document)
    for arm in ("baseline", "speculative"):
        assert set(document[arm]) >= {
            "ttft_seconds", "tpot_seconds", "latency_p50", "latency_p95", "latency_p99", "peak_memory_bytes",
            "repetition",
        }  # fmt: skip
        assert set(document[arm]["phases"]) == {"draft", "verify", "sample", "overhead"}
    assert document["speedup_decode"]["value"] > 0 and document["speedup_decode"]["n_prompts"] == 1


def test_a_missing_number_is_null() -> None:
    document = run("--json", "--no-baseline").document
    for key in ("speedup_decode", "speedup_e2e", "baseline", "costs", "output_matches_baseline"):
        assert document[key] is None, key
    # One token comes from the prefill: no round, so nothing that rounds have.
    document = run("--json", "--max-new-tokens", "1").document
    assert document["speedup_decode"]["value"] is None
    assert document["acceptance"]["mean_acceptance_length"] is None
    assert document["speculative"]["tpot_seconds"] is None


def test_o_writes_the_document_beside_the_table() -> None:
    outcome = run("-o", "out.json")
    assert outcome.out.startswith("tiny_dev  K = 4  greedy\n")
    assert json.loads(Path("out.json").read_text())["schema"] == "specprof.run/1"
    assert sorted(path.name for path in Path().iterdir()) == ["out.json"]


# The table


@functools.cache
def default_events() -> list[Event]:
    return run("--jsonl").events


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The table of ever the same events, however it is printed."""
    events = default_events()
    monkeypatch.setattr("specprof.experiments.run.measure", lambda *_: iter(events))
    return lambda *arguments, **options: run("-q", *arguments, **options).out


def test_the_table_is_the_same_when_piped_except_for_colour(
    replayed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    piped, shown = replayed(), replayed(terminal=True)
    assert "\x1b" not in piped and ANSI.search(shown)
    assert [line.rstrip() for line in ANSI.sub("", shown).splitlines()] == piped.splitlines()
    for section in ("Speed", "Acceptance", "Domains", "Time", "Latency", "Cost model", "Output", "Warnings"):
        assert f"\n{section} " in piped
    assert replayed("--color", "always") == shown
    assert replayed("--color", "never", terminal=True) == piped


def test_no_color_and_dumb_terminals(replayed: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert "\x1b" not in replayed(terminal=True), name


def test_the_table_fits_a_narrow_terminal_and_ascii(
    replayed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown = ANSI.sub("", replayed(terminal=True))
    assert max(len(line) for line in shown.splitlines()) <= 40
    assert replayed(encoding="ascii").isascii()


# Whole processes


def test_a_process_without_home_terminal_stdin_or_unicode() -> None:
    hostile = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "TERM": "dumb", "COLUMNS": "40"}
    arguments = ("run", *QUICK, "--no-save", "--json", "-v", "--prompt", "Ein Käse 😀 sagte: ")
    child = process(*arguments, environment=hostile, without=["HOME"])
    out, err = child.communicate()
    assert child.returncode == 0, err
    assert json.loads(out)["num_prompts"] == 1
    assert "--- custom_000" in err and "Traceback" not in err


@pytest.mark.parametrize(("closed", "stream"), [("<&-", "stdin"), (">&-", "stdout"), ("2>&-", "stderr")])
def test_a_shell_may_close_a_stream(closed: str, stream: str) -> None:
    arguments = "run --prompts -" if stream == "stdin" else "run --pair nope" if stream == "stderr" else "load --list"
    shell = f'"{sys.executable}" -m specprof {arguments} {closed}'
    done = subprocess.run(["/bin/sh", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode == (4 if stream == "stdout" else 2), done.stderr
    assert done.stdout == ""
    # What was to be printed is lost, as on a full disk.
    assert ("standard output is closed" in done.stderr) == (stream == "stdout")
    # Without standard error there is nowhere to say it: the exit code does.
    assert ("standard input is empty" in done.stderr) == (stream == "stdin")
    assert "Traceback" not in done.stderr and "bug" not in done.stderr


def test_a_full_disk_under_stdout() -> None:
    with Path("/dev/full").open("w") as full:
        child = subprocess.run(
            [sys.executable, "-m", "specprof", "load", "--list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert child.returncode == 4
    assert Outcome(4, "", child.stderr).told == ("No space left on device", "free some space")


def test_a_reader_that_goes_away_early() -> None:
    child = process("load", "--list", "--json")
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == ""
    assert child.wait(20) == 141


def test_without_arguments_help_is_shown() -> None:
    bare, asked = command(), ok("--help")
    assert bare.code == 2 and bare.err == ""
    assert bare.out == asked.out and "Usage: specprof" in bare.out and "\n  specprof run\n" in bare.out


@pytest.mark.parametrize("subcommand", ["run", "load"])
def test_every_option_has_a_help_text(subcommand: str) -> None:
    text = ok(subcommand, "--help").out
    assert "Usage: specprof" in text
    for line in re.findall(r"^  -.*", text, re.MULTILINE):
        option = line.strip()
        position = text.index(line)
        assert re.search(r"  \S", option) or re.match(r"\n {10,}\S", text[position + len(line) :]), option


def test_debug_shows_the_traceback_and_keeps_the_contract() -> None:
    outcome = command("run", "--pair", "nope", "--debug")
    assert outcome.code == 2
    assert "Traceback (most recent call last)" in outcome.err and "get_pair" in outcome.err
    assert outcome.told[0] == "there is no pair named 'nope'"


def test_a_bug_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division\nby zero\x1b[31m")

    monkeypatch.setattr("specprof.commands.chosen.get_pair", broken)
    outcome = command("run")
    error, hint = outcome.told
    assert outcome.code == 1
    assert "bug in specprof" in error and "division by zero" in error and "\x1b" not in error
    assert "--debug" in hint


# Where prompts come from


def test_prompts_given_one_by_one() -> None:
    document = run("-n", "5", "--json", "--prompt", "Hello", "--prompt", "def f(x):\n    return").document
    assert document["num_prompts"] == 2 and set(document["domains"]) == {"custom"}
    assert [p["prompt_id"] for p in document["config"]["prompts"]] == ["custom_000", "custom_001"]


@pytest.mark.parametrize(
    ("name", "text", "domains"),
    [
        ("a b ä.json", '[{"raw_text": "one", "domain": "math"}, "two"]', ["math", "custom"]),
        ("p.jsonl", '{"prompt": "one", "domain": "math"}\n"two"\n', ["math", "custom"]),
        ("p.txt", "one\ntwo\x07\x1b[31m\n", ["custom"]),
    ],
)
def test_prompts_from_a_file_and_from_stdin(name: str, text: str, domains: list[str]) -> None:
    Path(name).write_text(text, encoding="utf-8")
    short = ("-n", "9", "--no-baseline", "--drafter", "ngram", "--max-new-tokens", "1", "--json")
    from_file = run(*short, "--prompts", name).document
    from_pipe = run(*short, "--prompts", "-", stdin=text.encode()).document
    for document in (from_file, from_pipe):
        assert [p["domain"] for p in document["config"]["prompts"]] == domains
        assert document["num_prompts"] == len(domains)


def test_domains_and_number_of_packaged_prompts() -> None:
    document = run("-n", "3", "--json", "--domain", "conversation", "--domain", "code").document
    assert [p["domain"] for p in document["config"]["prompts"]] == ["conversation", "code", "conversation"]
    assert set(document["domains"]) == {"code", "conversation"}


# Every option does what it says


def test_ngram_drafts_without_a_draft_model() -> None:
    arguments = ("--drafter", "ngram", "--prompt", "1 2 3 1 2 3 1 2 3 1 2 3", "--max-new-tokens", "24")
    events = run("--jsonl", *arguments).events
    assert isinstance(events[0], RunStarted) and set(events[0].config["models"]) == {"target"}
    assert any(isinstance(event, Round) and event.draft_tokens for event in events)
    assert tokens(events)["AR"] == tokens(events)["SD-K4"]
    assert "drafter ngram" in run("--drafter", "ngram", "--target", TARGET).out


def test_k_0_is_plain_decoding() -> None:
    outcome = run("--k", "0", "--json")
    document = outcome.document
    assert document["speculative"]["decoder"] == "SD-K0" and document["speculative"]["num_rounds"] == 7
    assert document["acceptance"]["num_draft_tokens"] == 0
    assert document["output_matches_baseline"]["num_identical"] == 1


@pytest.mark.parametrize("k", [1, 7])
def test_k_is_the_number_drafted(k: int) -> None:
    events = run("-k", str(k), "--max-new-tokens", "20", "--jsonl").events
    rounds = [event for event in events if isinstance(event, Round)]
    speculative = [r for r in rounds if r.decoder == f"SD-K{k}" and not r.cut]
    assert speculative and {(r.k, len(r.draft_tokens)) for r in speculative} == {(k, k)}
    assert {r.k for r in rounds if r.decoder == "AR"} == {None}
    assert tokens(events)["AR"] == tokens(events)[f"SD-K{k}"]


def test_k_auto_chooses_each_round() -> None:
    arguments = ("-n", "1", "--reps", "1", "--warmup", "0", "--max-new-tokens", "48", "--no-save", "-o", "run.json")
    outcome = ok("run", "--k", "auto", "--k-max", "3", *arguments, "--jsonl")
    speculative = [e for e in outcome.events if isinstance(e, Round) and e.decoder == "SD-Kauto"]
    chosen = {r.k for r in speculative if not r.cut}
    assert chosen <= {0, 1, 2, 3} and len(chosen) > 1, "the first rounds try every K"
    assert all(r.k == len(r.draft_tokens) for r in speculative)
    assert tokens(outcome.events)["AR"] == tokens(outcome.events)["SD-Kauto"]
    document = json.loads(Path("run.json").read_text())
    assert (document["config"]["k"], document["config"]["k_max"]) == ("auto", 3)
    lengths = document["acceptance"]["draft_length_histogram"]
    assert {k for k, rounds in enumerate(lengths) if rounds} == chosen
    assert document["costs"]["draft_tokens_per_round"] < 3
    assert document["output_matches_baseline"]["num_identical"] == 1


def test_a_target_that_drafts_for_itself_accepts_every_token() -> None:
    arguments = ("--drafter", "self", "--max-new-tokens", "16", "-n", "2")
    sampled = run(*arguments, "--temperature", "0.8", "--json").document
    assert sampled["acceptance"]["draft_acceptance_rate"] >= 0.999
    assert sampled["acceptance"]["alpha"] == pytest.approx(1, abs=1e-3)
    assert set(sampled["config"]["models"]) == {"target"}
    greedy = run(*arguments, "--json").document
    assert greedy["acceptance"]["draft_acceptance_rate"] == 1
    assert greedy["output_matches_baseline"]["num_identical"] == 2


def test_random_drafts_are_hardly_ever_accepted_and_harm_nothing() -> None:
    outcome = run("--drafter", "random", "-n", "2", "--max-new-tokens", "12", "--json", "-o", "run.json")
    document = outcome.document
    assert document["acceptance"]["num_draft_tokens"] > 20 and document["acceptance"]["draft_acceptance_rate"] < 0.1
    assert document["output_matches_baseline"]["num_identical"] == 2
    sampled = run("--drafter", "random", "--temperature", "0.8", "--json").document
    # evenly over 4096 tokens: what is shared with the target's law is small, and never nothing
    assert 0 < sampled["acceptance"]["alpha"] < 0.2


def test_layer_skip_drafts_with_the_targets_first_layers() -> None:
    texts = ("-n", "2", "--max-new-tokens", "48")
    rates = {}
    for depth in (1, 7):
        document = run("--drafter", "layerskip", "--draft-layers", str(depth), *texts, "--json").document
        assert document["output_matches_baseline"]["num_identical"] == document["num_prompts"] == 2
        assert set(document["config"]["models"]) == {"target"} and document["config"]["draft_layers"] == depth
        rates[depth] = document["acceptance"]["draft_acceptance_rate"]
    assert rates[1] < rates[7], "7 of 8 layers know more than one"
    table = run("--drafter", "layerskip", "--draft-layers", "3", "--temperature", "0.8", "-o", "run.json").out
    assert "drafter layerskip (3 of 8 layers)" in table.splitlines()[0]
    assert 0 < json.loads(Path("run.json").read_text())["acceptance"]["alpha"] < 1


@pytest.mark.parametrize("drafter", ["model", "layerskip"])
def test_a_threshold_ends_drafts_early(drafter: str) -> None:
    layers = ("--draft-layers", "4") if drafter == "layerskip" else ()

    def drafts(*threshold: str) -> list[tuple[float, ...]]:
        """How likely the draft model found each of its tokens, round by round."""
        events = run("--drafter", drafter, *layers, *threshold, "--max-new-tokens", "64", "--detail", "--jsonl").events
        assert tokens(events)["AR"] == tokens(events)["SD-K4"]
        rounds = [e for e in events if isinstance(e, Round) and e.decoder == "SD-K4" and not e.cut]
        assert {r.k for r in rounds} == {4}, "which was asked for"
        assert all(len(r.draft_prob or ()) == len(r.draft_tokens) for r in rounds)
        return [r.draft_prob for r in rounds if r.draft_prob]

    whole = drafts()
    assert {len(draft) for draft in whole} == {4}
    likely = sorted(prob for draft in whole for prob in draft)
    lengths = set()
    for threshold in (likely[len(likely) // 4], likely[3 * len(likely) // 4]):
        for draft in drafts("--draft-threshold", repr(threshold)):
            # Greedy: a drafted token is the likeliest one. The first below the threshold is the last.
            assert min(draft[:-1], default=1) >= threshold and (draft[-1] < threshold or len(draft) == 4)
            lengths.add(len(draft))
    assert lengths >= {1, 4}, "some end early, and some don't"


def crossed_vocabularies() -> VocabularyVerdict:
    """What the two tokenizers of tiny_cross share."""
    draft, target = loader.load_tokenizer("tiny_cross/draft"), tiny_tokenizer()
    verdict = compare_vocabularies(draft, target, 2048, 4096)
    # All but the special ones have a text, and every byte at least is a token of both.
    assert 256 < verdict.shared == len(verdict.to_target) < 2048
    assert verdict.reason == (
        f"{verdict.shared} of the draft's 2045 tokens are tokens of the target too (metaspace draft, byte-level target)"
    )
    return verdict


@pytest.mark.parametrize("method", ["tli", "slem", "auto"])
def test_a_draft_of_another_vocabulary(method: str) -> None:
    arguments = ("--pair", "tiny_cross", "--vocab-method", method, "-n", "2", "--max-new-tokens", "48")
    verdict = crossed_vocabularies()
    outcome = run(*arguments, "--json")
    document = outcome.document
    assert document["output_matches_baseline"]["num_identical"] == document["num_prompts"] == 2
    assert document["acceptance"]["num_accepted_draft_tokens"] > 0
    assert f"note: different vocabularies: {verdict.reason}" in outcome.err
    vocabulary = document["config"]["vocabulary"]
    assert (vocabulary["kind"], vocabulary["shared"]) == ("overlapping", verdict.shared)
    assert "to_target" not in vocabulary
    used = document["config"]["vocab_method"]
    if method == "auto":
        assert used in ("tli", "slem")
        assert f"note: vocab method {used}: tokens per round in a trial: tli " in outcome.err
    else:
        assert used == method and "trial" not in outcome.err


def test_sampling_from_a_draft_of_another_vocabulary() -> None:
    outcome = run("--pair", "tiny_cross", "--temperature", "0.8", "--max-new-tokens", "16", "-o", "run.json")
    assert outcome.out.startswith("tiny_cross  K = 4  temperature 0.8  vocab method tli\n")
    document = json.loads(Path("run.json").read_text())
    assert document["config"]["vocab_method"] == "tli" and "trial" not in outcome.err
    assert 0 < document["acceptance"]["alpha"] < 1


def test_sampling_draws_by_the_seed() -> None:
    def sampled(*arguments: str) -> dict[str, list[int]]:
        outcome = run("--temperature", "2", "--max-new-tokens", "24", "--jsonl", *arguments)
        assert all(
            e.target_prob is not None and e.alpha is not None
            for e in outcome.events
            if isinstance(e, Round) and e.draft_tokens
        )
        return tokens(outcome.events)

    first = sampled("--seed", "1")
    assert sampled("--seed", "1") == first
    assert sampled("--seed", "2") != first
    # With one token kept, sampling is greedy: these two options do reach the sampler.
    greedy = tokens(run("--max-new-tokens", "24", "--jsonl").events)
    assert first != greedy
    assert sampled("--top-k", "1") == greedy == sampled("--top-p", "1e-6")


def test_sampling_is_said_and_its_output_not_compared() -> None:
    cuts = ("--temperature", "0.8", "--top-k", "50", "--top-p", "0.9")
    document = run(*cuts, "--json").document
    assert document["temperature"] == 0.8 and document["output_matches_baseline"] is None
    assert document["acceptance"]["alpha"] is not None
    title = "tiny_dev  K = 4  temperature 0.8  top-k 50  top-p 0.9"
    assert run(*cuts).out.startswith(title)


def test_deterministic_runs_give_the_same_tokens() -> None:
    first, second = (tokens(run("--jsonl", "--max-new-tokens", "24").events) for _ in range(2))
    assert first == second and first["AR"] == first["SD-K4"]


def test_detail_records_probabilities_of_greedy_drafts() -> None:
    def with_probabilities(events: list[Event]) -> list[bool]:
        rounds = [e for e in events if isinstance(e, Round) and e.draft_tokens]
        return [e.target_prob is not None and len(e.target_prob) == len(e.draft_tokens) for e in rounds]

    assert any(with_probabilities(default_events())) is False
    detailed = with_probabilities(run("--jsonl", "--detail").events)
    assert all(detailed) and detailed


def test_all_forwards_generate_the_same() -> None:
    usual = default_events()
    for name in ("own", "hf"):
        events = run("--jsonl", "--forward", name).events
        assert isinstance(events[0], RunStarted)
        assert {m["forward"] for m in events[0].config["models"].values()} == {name}
        assert tokens(events) == tokens(usual)


def test_the_usual_forward_is_the_one_in_c_and_where_there_is_none_the_run_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = default_events()[0]
    assert isinstance(usual, RunStarted)
    has_compiler = any(map(shutil.which, ("cc", "gcc", "clang")))
    assert {m["forward"] for m in usual.config["models"].values()} == {"native" if has_compiler else "own"}
    monkeypatch.setattr(forward, "library", lambda: "there is no C compiler (cc, gcc or clang)")
    without = run("--jsonl")
    started = without.events[0]
    assert isinstance(started, RunStarted)
    assert {m["forward"] for m in started.config["models"].values()} == {"own"}
    assert "the forward in C, the fastest on a CPU, is not used (there is no C compiler" in without.err
    assert command("run", *QUICK, "--no-save", "--forward", "native").told == (
        "the forward in C can't run tiny_dev/target: there is no C compiler (cc, gcc or clang)",
        "use --forward auto or own",
    )


def test_the_end_of_a_text_is_respected_unless_told_otherwise(tmp_path: Path) -> None:
    """By a target for which a token ends the text that it is known to come to."""
    long = ("--max-new-tokens", "40", "--jsonl")
    text = tokens(run(*long).events)["AR"]
    last = new_token(text, after=5)
    target = str(copy_that_ends_at(last, "tiny_dev/target", tmp_path / "target"))
    respecting = tuple(flag for flag in QUICK if flag != "--ignore-eos")
    for flags, reason in ((respecting, "stop"), (QUICK, "length")):
        events = ok("run", *flags, "--no-save", "--draft", DRAFT, "--target", target, *long).events
        assert {e.finish_reason for e in events if isinstance(e, PromptEnded)} == {reason}
        ended = text[: text.index(last) + 1] if reason == "stop" else text
        assert tokens(events) == {"AR": ended, "SD-K4": ended}


def test_dtype_is_that_of_both_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "load_model", load_model_once.__wrapped__)  # as said below, at each loading
    document = run("--dtype", "bf16", "--json").document
    assert {m["dtype"] for m in document["config"]["models"].values()} == {"bfloat16"}
    outcome = run("--dtype", "fp16", "--json")
    assert {m["dtype"] for m in outcome.document["config"]["models"].values()} == {"float32"}
    assert outcome.err.count("float16 weights compute in float32") == 2  # once for each model


def test_a_chat_template_is_used_unless_off(tmp_path: Path) -> None:
    directories = []
    for role, source in (("draft", DRAFT), ("target", TARGET)):
        directory = tmp_path / role
        directory.mkdir()
        for file in Path(source).iterdir():
            (directory / file.name).symlink_to(file)
        (directory / "chat_template.jinja").write_text("User: {{ messages[0].content }}\nAssistant:")
        directories += [f"--{role}", str(directory)]

    def prompt_tokens(*arguments: str) -> list[int]:
        events = run(*directories, "--jsonl", "--no-baseline", *arguments).events
        return [e.num_prompt_tokens for e in events if isinstance(e, Prefilled)]

    plain = prompt_tokens("--domain", "conversation", "--chat-template", "off")
    assert prompt_tokens("--domain", "conversation") > plain
    assert prompt_tokens("--domain", "code") == prompt_tokens("--domain", "code", "--chat-template", "off")


@pytest.mark.parametrize(("acceptance", "rate"), [("1", 1.0), ("0", 0.0)])
def test_synthetic_acceptance_is_forced_and_said_everywhere(acceptance: str, rate: float) -> None:
    label = f"synthetic acceptance {acceptance}: the cost is real, the text is not the target's"
    outcome = run("--synthetic-acceptance", acceptance, "--max-new-tokens", "24", "--json")
    assert outcome.document["acceptance"]["draft_acceptance_rate"] == rate
    assert outcome.document["caveats"] == [label] == outcome.document["config"]["caveats"]
    assert label in outcome.err
    table = run("--synthetic-acceptance", acceptance, "-q")
    assert "synthetic acceptance" in " ".join(table.out.split()) and table.err == ""


def test_random_weights_are_said_everywhere() -> None:
    label = "random weights: the cost is real, acceptance and text mean nothing"
    outcome = run("--random-weights", "--json")
    assert outcome.document["caveats"] == [label] and label in outcome.err
    assert label in " ".join(run("--random-weights", "--drafter", "ngram", "-q").out.split())
    events = run("--random-weights", "--drafter", "ngram", "--jsonl").events
    assert isinstance(events[0], RunStarted) and events[0].config["caveats"] == [label]


def test_random_weights_have_the_true_shape() -> None:
    label = "random weights: the cost is real, acceptance and text mean nothing"
    document = ok("load", "gpt2", "--random-weights", "--scale-layers", "1", "--n-tokens", "1", "--json").document
    # GPT-2 small without 11 of its layers
    assert document["models"]["model"]["parameters"] == 124_439_808 - 11 * 7_087_872
    assert document["caveats"] == document["notes"] == [label]
    outcome = ok("load", "--pair", "tiny_dev", "--random-weights", "--n-tokens", "0")
    assert label in outcome.out and label in outcome.err
    assert "MB together, " in outcome.out, "there are no files to tell the size by"


def test_random_weights_of_so_many_layers() -> None:
    scaled, whole = (
        run("--random-weights", "--drafter", "ngram", *layers, "--json").document["config"]
        for layers in (("--scale-layers", "2"), ())
    )
    assert (scaled["scale_layers"], whole["scale_layers"]) == (2, None)
    few, every = (config["models"]["target"]["parameters"] for config in (scaled, whole))
    rest = 4096 * 256 + 256  # the embedding, which is the head too, and the last norm
    assert (few - rest) * 4 == every - rest, "2 of 8 layers"


def test_pairs_of_ones_own(tmp_path: Path) -> None:
    by_directory = run("--draft", DRAFT, "--target", TARGET, "--json").document
    Path("specprof.toml").write_text(
        f"[pairs.mine]\ndraft = {json.dumps(DRAFT)}\ntarget = {json.dumps(TARGET)}\ntarget_dtype = 'bfloat16'\n"
    )
    by_name = run("--pair", "mine", "--json").document
    assert by_directory["pair"] == f"{Path(DRAFT).name}+{Path(TARGET).name}" and by_name["pair"] == "mine"
    assert {role: m["dtype"] for role, m in by_name["config"]["models"].items()} == {
        "target": "bfloat16", "draft": "float32",
    }  # fmt: skip
    (tmp_path / "mödel ä").symlink_to(TARGET)
    strange = run("--draft", DRAFT, "--target", "mödel ä", encoding="ascii")
    assert "greedy" in strange.out


def test_results_go_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECPROF_RESULTS", "über all/results")
    document = ok("run", *QUICK, "--json").document
    (file,) = Path("über all/results").iterdir()
    assert str(file) == document["events_file"] and file.stem == document["run_id"]
    assert run("--json").document["events_file"] is None  # --no-save


# load


def test_the_card_of_a_model() -> None:
    card = ok("load", "--model", "tiny_dev/target", "--n-tokens", "5").out
    fields = dict(line.split(" : ", 1) for line in (" ".join(line.split()) for line in card.splitlines()))
    assert fields["model"] == "tiny_dev/target" and re.fullmatch(r"7\.\d M", fields["parameters"])
    assert "float16, computes in float32" in fields["memory"] and "context 1024" in fields["forward"]
    assert fields["output"].startswith('"The quick brown fox')


def test_a_model_may_be_named_without_a_flag() -> None:
    by_flag = ok("load", "--model", "tiny_dev/draft", "--json").document
    assert ok("load", "tiny_dev/draft", "--json").document == by_flag
    assert by_flag["notes"] == [] and by_flag["models"]["model"]["model"] == "tiny_dev/draft"


def test_the_card_of_a_pair() -> None:
    document = ok("load", "--pair", "tiny_dev", "--json").document
    assert set(document["models"]) == {"draft", "target"} and document["vocabulary"]["kind"] == "identical"
    assert document["vocabulary"]["target_mass"] is None and document["notes"] == []
    sizes = sum(facts["memory_bytes"] for facts in document["models"].values())
    assert document["memory_bytes"] == sizes
    assert document["memory_needed_bytes"] == pytest.approx(sizes, rel=0.02)
    assert document["memory_available_bytes"] > document["memory_needed_bytes"]
    card = ok("load", "--pair", "tiny_dev").out
    assert "vocabulary : identical" in card and re.search(r"MB together \([\d.]+ MB by the files\), ", card)


def test_the_card_of_a_pair_of_two_vocabularies() -> None:
    outcome = ok("load", "--pair", "tiny_cross", "--json")
    vocabulary = outcome.document["vocabulary"]
    verdict = crossed_vocabularies()
    assert vocabulary == {
        "kind": "overlapping",
        "draft_size": 2048,
        "target_size": 4096,
        "shared": verdict.shared,
        "reason": verdict.reason,
        "target_mass": vocabulary["target_mass"],
    }
    assert 0.5 < vocabulary["target_mass"] < 1
    (note,) = outcome.document["notes"]
    assert note == f"different vocabularies: {vocabulary['reason']}"
    card = ok("load", "--pair", "tiny_cross", "--n-tokens", "0").out
    assert f"note       : {note}\n" in card
    assert f"vocabulary : overlapping: {vocabulary['reason']}\n" in card
    share = f"{vocabulary['target_mass']:.1%}"
    assert f"they carry {share} of the target's probability on packaged sample texts" in card


def test_the_card_of_a_target_and_its_own_4_bit_draft() -> None:
    Path("specprof.toml").write_text(
        "[pairs.self]\ndraft = 'tiny_dev/target'\ntarget = 'tiny_dev/target'\ndraft_dtype = 'int4'\n"
    )
    document = ok("load", "--pair", "self", "--json", "--n-tokens", "0").document
    draft, target = document["models"]["draft"], document["models"]["target"]
    assert draft["parameters"] == target["parameters"] and (draft["dtype"], target["dtype"]) == ("int4", "float16")
    assert draft["compute_dtype"] == target["compute_dtype"] == "float32"
    assert draft["memory_bytes"] < target["memory_bytes"] / 2
    table = 4 * 4096 * 256  # in 32 bits, and the target's own
    assert document["memory_bytes"] == pytest.approx(draft["memory_bytes"] + target["memory_bytes"] - table, rel=1e-3)


# The streamed text


class Letters:
    """A tokenizer of single bytes."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(ids).decode("utf-8", errors="replace")


def streamed(*, color: bool) -> str:
    out = io.StringIO()
    stream = TextStream(Letters(), "SD-K2", color=color, out=out)
    where = ("p", "SD-K2", 0)
    cheese = tuple("ä".encode())
    stream(Prefilled("p", "AR", 0, 1, ord("?"), 0.0, 0.0, 0.0))
    stream(Prefilled(*where, 1, ord("a"), 0.0, 0.0, 0.0))
    stream(Round(*where, 0, (98, 99), 1, (98, 100), 0.0, 0.0, 0.0, 0.0))
    stream(Round(*where, 1, (101, 102), 2, (101, 102, 27), 0.0, 0.0, 0.0, 0.0))
    stream(Round(*where, 2, cheese, 2, (*cheese, 103), 0.0, 0.0, 0.0, 0.0))
    stream(PromptEnded(*where, "length", 0))
    return out.getvalue()


def test_streamed_text_marks_where_each_token_came_from() -> None:
    assert streamed(color=False) == "--- p\nab[d]ef{\\x1b}ä{g}\n"
    colored = streamed(color=True)
    assert ANSI.sub("", colored) == "--- p\nabdef\\x1bäg\n"
    assert "\x1b[32mb\x1b[0m" in colored and "\x1b[31;4md\x1b[0m" in colored and "\x1b[34;1mg\x1b[0m" in colored


def test_v_streams_what_was_generated() -> None:
    outcome = run("-v", "--jsonl", "--max-new-tokens", "24")
    text = tiny_tokenizer().decode(tokens(outcome.events)["SD-K4"], skip_special_tokens=True)
    shown = outcome.err.split("--- code_000\n", 1)[1]
    assert re.sub(r"[\[\]{}\s]", "", text) == re.sub(r"[\[\]{}\s]", "", shown)
