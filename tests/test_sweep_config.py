"""What a sweep measures: how flags and files say it, what is refused and where, and which cells come of it."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from specprof.errors import UsageError
from specprof.experiments.config import DRAFTERS, VOCAB_METHODS, RunConfig
from specprof.experiments.number_lists import MAX_VALUES, parse_decimals, parse_numbers
from specprof.experiments.sweep_config import SweepConfig
from specprof.experiments.yaml_lines import MAX_BYTES
from specprof.models.registry import ModelPair, get_pair
from test_import_hygiene import HEAVY, loaded_after

CONFIGS = Path(__file__).parents[1] / "configs"
PAIR = get_pair("tiny_dev")


def written(directory: Path, text: str) -> Path:
    path = directory / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def load(directory: Path, text: str) -> SweepConfig:
    return SweepConfig.load(written(directory, text))


def refusal(directory: Path, text: str | bytes) -> tuple[str, str]:
    """What is said of a file: its path, always named first, is left out."""
    path = directory / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as refused:
        SweepConfig.load(path)
    message, hint = refused.value.message, refused.value.hint
    assert message.startswith(str(path)), message
    assert "\n" not in message + hint and len(message) < len(str(path)) + 160 and hint
    return message.removeprefix(str(path)).lstrip(", "), hint


def flag_refusal(config: SweepConfig, **flags: Any) -> str:
    with pytest.raises(UsageError) as refused:
        config.with_flags(**flags)
    return refused.value.message


# Lists of numbers


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20, unique=True))
def test_explicit_numbers_come_back(numbers: list[int]) -> None:
    assert parse_numbers(",".join(map(str, numbers)), name="--k") == tuple(numbers)


@given(st.integers(0, 10**6), st.integers(0, 200), st.integers(1, 50), st.sampled_from(["", " "]))
def test_a_range_is_pythons_range(start: int, length: int, step: int, space: str) -> None:
    stop = start + length
    assert parse_numbers(f"{start}{space}-{space}{stop}", name="--k") == tuple(range(start, stop + 1))
    assert parse_numbers(f"{start}-{stop}{space}+{space}{step}", name="--k") == tuple(range(start, stop + 1, step))


@given(st.integers(1, 1000), st.integers(0, 10**6), st.integers(2, 9))
def test_a_factor_multiplies(start: int, length: int, factor: int) -> None:
    powers = (start * factor**i for i in itertools.count())
    expected = tuple(itertools.takewhile(lambda number: number <= start + length, powers))
    assert parse_numbers(f"{start}-{start + length}*{factor}", name="--k") == expected


@given(st.lists(st.floats(0, 100).map(lambda x: round(x, 6)), min_size=1, max_size=20, unique=True))
def test_explicit_decimals_come_back(numbers: list[float]) -> None:
    assert parse_decimals(",".join(map(repr, numbers)), name="--temperature") == tuple(numbers)


@given(st.integers(0, 50), st.integers(0, 100), st.sampled_from([1, 5, 10, 25]))
def test_decimal_steps_do_not_drift(start: int, length: int, step: int) -> None:
    text = f"{start / 100}-{(start + length) / 100}+{step / 100}"
    expected = tuple(hundredths / 100 for hundredths in range(start, start + length + 1, step))
    assert parse_decimals(text, name="--temperature") == expected


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1-16*2", (1, 2, 4, 8, 16)),
        ("1-8+2", (1, 3, 5, 7)),
        ("auto", ("auto",)),
        ("4, auto, 1-3, 2-5", (4, "auto", 1, 2, 3, 5)),
        ("0-2", (0, 1, 2)),
        ("7-7", (7,)),
    ],
)
def test_lists_mix_numbers_ranges_and_auto(text: str, numbers: Sequence[int | str]) -> None:
    assert parse_numbers(text, name="--k") == numbers


def test_decimals_know_exponents() -> None:
    assert parse_decimals("1e-3, .5, 1., 0.25-1*2", name="--temperature") == (0.001, 0.5, 1.0, 0.25)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty"),
        (" , ", "is empty"),
        ("1,,2", "'1,,2' has a comma too many"),
        ("1,", "has a comma too many"),
        ("two", "'two' is not a whole number, a range of them or auto"),
        ("2.5", "'2.5' is not a whole number"),
        ("1-", "'1-' is not a whole number"),
        ("1-8+", "is not a whole number"),
        ("1-8-9", "is not a whole number"),
        ("1*2", "is not a whole number"),
        ("-3", "-3 is negative"),
        ("1e3", "is not a whole number"),
        ("٣", "is not a whole number"),
        ("8-1", "8-1 runs backwards"),
        ("1-8+0", "1-8+0 never reaches its end"),
        ("1-8*1", "1-8*1 never reaches its end"),
        ("0-8*2", "0-8*2 never reaches its end"),
        ("1-999999999999", f"has more than {MAX_VALUES} values"),
        ("1-200,300-400", f"has more than {MAX_VALUES} values"),
        ("9" * 5000, "is not a whole number"),
    ],
)
def test_numbers_that_cannot_be_meant(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_numbers(text, name="--k")
    assert refused.value.message.startswith("--k ") and complaint in refused.value.message
    assert len(refused.value.message) < 130 and refused.value.hint


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("0-1", "0-1 does not name its step"),
        ("auto", "'auto' is not a number"),
        ("nan", "'nan' is not a number"),
        ("inf", "'inf' is not a number"),
        ("-0.5", "-0.5 is negative"),
        ("1-0+0.5", "runs backwards"),
        ("0-1*2", "never reaches its end"),
        ("1-9*1.0000001", f"has more than {MAX_VALUES} values"),
    ],
)
def test_decimals_that_cannot_be_meant(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_decimals(text, name="--temperature")
    assert refused.value.message.startswith("--temperature ") and complaint in refused.value.message


# Files that say what is meant


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_configurations_of_the_repository(path: Path) -> None:
    config = SweepConfig.load(path)
    assert f"specprof sweep --config configs/{path.name}" in path.read_text(encoding="utf-8")
    cells = [run for pair in config.model_pairs() for run in config.run_configs(pair, offline=True)]
    assert config.domains is not None
    assert f"{len(cells) * len(config.domains)} cells" in path.read_text(encoding="utf-8")


def test_the_repository_has_the_three_configurations() -> None:
    assert {path.name for path in CONFIGS.glob("*.yaml")} >= {"tiny.yaml", "drafters.yaml", "full.yaml"}
    full = SweepConfig.load(CONFIGS / "full.yaml")
    assert full.pairs == ("gpt2_dev", "tinyllama_llama3", "phi3_llama3", "llama3_self")
    assert full.k == (1, 2, 4, 8) and full.seed == 42 and full.max_new_tokens == 200
    assert full.num_prompts == 50 and full.repetitions == 3 and full.temperatures == (0.0,)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("k: 4", {"k": (4,)}),
        ("k: 1-4, auto", {"k": (1, 2, 3, 4, "auto")}),
        ("k: [1-2, 8, auto, '2-3']", {"k": (1, 2, 8, "auto", 3)}),
        ("k: 1-16*2", {"k": (1, 2, 4, 8, 16)}),
        ("k: 010", {"k": (10,)}),
        ("temperatures: 0.8", {"temperatures": (0.8,)}),
        ("temperatures: 0-1+0.5", {"temperatures": (0.0, 0.5, 1.0)}),
        ("temperatures: [0, -0.0, 1e-1]", {"temperatures": (0.0, 0.1)}),
        ("draft_threshold: 1e-2", {"draft_threshold": 0.01}),
        ("draft_threshold: 1", {"draft_threshold": 1.0}),
        ("domains: code, conversation", {"domains": ("code", "conversation")}),
        ("domains: ['short, old', code]", {"domains": ("short, old", "code")}),
        ("domains:\nnum_prompts: ~", {"domains": None, "num_prompts": None}),
        ("drafters: ngram", {"drafters": ("ngram",)}),
        ("pairs: [tiny_dev, tiny_cross, tiny_dev]", {"pairs": ("tiny_dev", "tiny_cross")}),
        ("dtype: fp16", {"dtype": "float16"}),
        ("chat_template: off", {"chat_template": "off"}),
        ("ignore_eos: yes", {"ignore_eos": True}),
        ("\ufeffseed: 7 # of sampling", {"seed": 7}),
        ("drafters: layerskip\ndraft_layers: 2", {"drafters": ("layerskip",), "draft_layers": 2}),
    ],
)
def test_what_a_file_may_say(tmp_path: Path, text: str, values: dict[str, Any]) -> None:
    config = load(tmp_path, text)
    assert config.model_dump(include=set(values)) == values
    # Nothing else is touched, and where it was written makes no difference.
    copy = SweepConfig().model_copy(update=values)
    assert config == copy and hash(config) == hash(copy)
    if None not in values.values():
        assert config == SweepConfig().with_flags(**values)


def test_paths_are_looked_for_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "small").mkdir(parents=True)
    (tmp_path / "here" / "mine.jsonl").write_text('"a"\n', encoding="utf-8")
    written(tmp_path / "here", "draft: ./small\ntarget: gpt2-xl\nprompts: mine.jsonl")
    monkeypatch.chdir(tmp_path)
    config = SweepConfig.load("here/x.yaml")
    assert Path(config.draft or "").samefile("here/small") and Path(config.prompts or "").samefile("here/mine.jsonl")
    assert config.target == "gpt2-xl"


# Files that don't


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        # keys
        ("k: 4\n\n# c\ntemprature: 0", "line 4", "unknown key 'temprature'"),
        ("reps: 4", "line 1", "unknown key 'reps'"),
        ("1: 4", "line 1", "unknown key '1'"),
        ("k: 4\nseed: 1\nk: 5", "lines 1 and 3", "'k' is set twice"),
        ("k: 4\n<<: {seed: 5}", "line 2", "unknown key '<<'"),
        ("? [k]\n: 4", "line 1", "the name of a setting is not text"),
        # numbers
        ("seed: 1\nk: [1, 2.5]", "line 2", "k 2.5 is not a whole number"),
        ("k:\n- 1\n- 2.5", "line 3", "k 2.5 is not a whole number"),
        ("k:\n- 1\n- 1-x", "line 3", "k '1-x' is not a whole number, a range of them or auto"),
        ("k:\n- 1-4\n- 8\n- 0", "line 4", "k 0 drafts nothing"),
        ("k: 0-8", "line 1", "k 0 drafts nothing"),
        ("k:\n- -2", "line 2", "k -2 is negative"),
        ("k:\n- on", "line 2", "k on is not a number but a boolean"),
        ("k: yes", "line 1", "k yes is not a number but a boolean"),
        ("k:", "line 1", "k has no value"),
        ("k:\n- 1\n-\n", "line 3", "k has no value"),
        ("k: []", "line 1", "k is an empty list"),
        ("k: [[1]]", "line 1", "k (a list) is not a number"),
        ("k: {a: 1}", "line 1", "k (a mapping) is not a number"),
        ("k: !!int ten", "line 1", "k 'ten' is not a whole number"),
        ("seed: 0\nk: 1-1000000000", "line 2", f"k has more than {MAX_VALUES} values"),
        (f"k: {list(range(1, MAX_VALUES + 2))}", "line 1", f"k has more than {MAX_VALUES} values"),
        ("temperatures:\n  - 0\n  - .nan", "line 3", "temperatures '.nan' is not a number"),
        ("temperatures: .inf", "line 1", "temperatures '.inf' is not a number"),
        ("temperatures: 1e999", "line 1", "temperatures inf is not a number >= 0"),
        ("temperatures:\n- 0\n- -0.5", "line 3", "temperatures -0.5 is not a number >= 0"),
        ("temperatures: 1e-40", "line 1", "temperatures 1e-40 is too small to divide by"),
        ("temperatures: 1e40", "line 1", "temperatures 1e+40 is too large to divide by"),
        (f"temperatures: 1{'0' * 400}", "line 1", "temperatures '10000"),
        ("temperatures: 0-1", "line 1", "temperatures 0-1 does not name its step"),
        ("num_prompts: '10'", "line 1", "num_prompts '10' is not a whole number"),
        ("num_prompts: ten", "line 1", "num_prompts 'ten' is not a whole number"),
        ("num_prompts: [10]", "line 1", "num_prompts (a list) is not a whole number"),
        ("max_new_tokens: 1.5", "line 1", "max_new_tokens 1.5 is not a whole number"),
        ("max_new_tokens: 1:30", "line 1", "max_new_tokens '1:30' is not a whole number"),
        ("repetitions: 0", "line 1", "repetitions 0 is less than 1"),
        ("repetitions: true", "line 1", "repetitions true is not a number but a boolean"),
        ("warmup: -1", "line 1", "warmup -1 is less than 0"),
        (f"seed: {2**63}", "line 1", f"seed {2**63} is too large"),
        (f"seed: {'9' * 5000}", "line 1", "seed '999"),
        ("top_p: 0", "line 1", "top_p 0 is not more than 0"),
        ("top_p: 2", "line 1", "top_p 2 is more than 1"),
        ("top_p: .nan", "line 1", "top_p '.nan' is not a number"),
        ("draft_threshold: 1.5", "line 1", "draft_threshold 1.5 is more than 1"),
        # names and switches
        ("drafters:\n- model\n- ngarm", "line 3", "drafters 'ngarm' is not a choice"),
        ("drafters: [no]", "line 1", "drafters no is not a choice but a boolean"),
        ("domains: [code, on]", "line 1", "domains on is not text but a boolean"),
        ("domains: code,", "line 1", "domains '' is empty"),
        ("pairs: 3", "line 1", "pairs 3 is not text"),
        ("pairs:\n- tiny_dev\n- 2024-01-01\n- {}", "line 4", "pairs (a mapping) is not text"),
        ("forward: hg", "line 1", "forward 'hg' is not a choice"),
        ("chat_template: on", "line 1", "chat_template on is not a choice but a boolean"),
        ("device: off", "line 1", "device off is not text but a boolean"),
        ("ignore_eos: 1", "line 1", "ignore_eos 1 is neither true nor false"),
        ("ignore_eos: 'yes'", "line 1", "ignore_eos 'yes' is neither true nor false"),
        ("dtype: fp17", "line 1", "there is no dtype 'fp17'"),
        # what does not fit together
        ("pairs: tiny_dev\ndraft: a\ntarget: b", "lines 1, 2 and 3", "pairs excludes draft and target"),
        ("seed: 1\ndraft: a", "line 2", "draft needs target"),
        ("target: a", "line 1", "target needs draft"),
        ("target: a\ndraft: b\ndrafters: ngram", "lines 2 and 3", "draft does not apply to drafters ngram"),
        ("k: 4\nk_max: 8", "lines 1 and 2", "k_max needs k auto"),
        ("draft_layers: 2", "line 1", "draft_layers does not apply to drafters model"),
        ("drafters: layerskip", "line 1", "drafters layerskip needs draft_layers"),
        ("drafters: [ngram, random]\ndraft_threshold: 0.4", "lines 1 and 2", "draft_threshold does not apply"),
        ("drafters: ngram\nvocab_method: tli", "lines 1 and 2", "vocab_method does not apply"),
        ("vocab_method: slem\ntemperatures: [0, 0.8]", "line 1", "vocab_method slem can't be sampled with"),
        ("vocab_method: slem\ndraft_threshold: 0.4", "lines 1 and 2", "draft_threshold does not apply"),
        ("k: [4, auto]\nseed: 0\ndeterministic: true", "lines 1 and 3", "k auto and deterministic exclude"),
        ("scale_layers: 3", "line 1", "scale_layers needs random_weights"),
        # the first of several
        ("k: 4\nseed: x\nkk: 4\nwarmup: x", "line 2", "seed 'x' is not a whole number"),
        ("k: 4\nkk: 4\nseed: x", "line 2", "unknown key 'kk'"),
        # YAML
        ("k: [1, 2", "line 1, column 9", "while parsing a flow sequence, expected ',' or ']'"),
        ("k: 4\nseed: 1: 2", "line 2, column 8", "mapping values are not allowed here"),
        ("k: 4\n\tseed: 1", "line 2, column 1", "while scanning for the next token, found character"),
        ("k: 4\n---\nk: 5", "line 2, column 1", "expected a single document in the stream, but found another"),
        ("k: 4\nseed: \x07", "line 2", "the character U+0007 has no place in YAML"),
        ("- k: 4", "line 1", "there is no `name: value`"),
        ("\n4", "line 2", "there is no `name: value`"),
        ("k: 4\nseed: !!python/object/apply:os.getpid []", "line 2", "the tag '!!python/object/apply:os.getpid' is"),
        ("k: 4\nseed: !mine 4", "line 2", "the tag '!mine' is not read"),
        ("!!python/object:os.stat_result\nk: 4", "line 1", "the tag '!!python/object:os.stat_result' is not read"),
        ("k: &a [1]\nseed: 0\ndomains: *a", "line 3", "the alias '*a' is not read"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "line 2", "the alias '*a' is not read"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, text: str, where: str, what: str) -> None:
    message, _ = refusal(tmp_path, text)
    assert message.startswith(f"{where}: {what}"), message


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("temprature: 0", "did you mean temperatures? keys: pairs, draft,"),
        ("temperature: 0", "did you mean temperatures?"),
        ("max-new-tokens: 9", "did you mean max_new_tokens?"),
        ("pair: tiny_dev", "did you mean pairs?"),
        ("reps: 2", "did you mean repetitions?"),
        ("K: 2", "did you mean k?"),
        ("wombat: 2", "keys: pairs,"),
        ("drafters: ngrams", "did you mean ngram? choices: model, ngram, layerskip, self, random"),
        ("k: 0", "leave 0 out: every sweep measures plain decoding anyway"),
        ("vocab_method: slem\ntemperatures: 1", "use temperatures 0, or vocab_method tli"),
    ],
)
def test_what_to_do_about_it(tmp_path: Path, text: str, suggestion: str) -> None:
    assert refusal(tmp_path, text)[1].startswith(suggestion)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# k: 4\n---\n", "is empty"),
        (b"k: 4\nprompts: caf\xe9", "line 2: it is not UTF-8 text (byte 17)"),
        (b"k:\n - " + b"[" * 5000 + b"]" * 5000, "line 2: it is nested too deeply"),
        (b"#" * (MAX_BYTES + 1), "is larger than 256 KiB"),
    ],
)
def test_files_that_hold_no_settings(tmp_path: Path, content: bytes, message: str) -> None:
    assert refusal(tmp_path, content)[0].strip() == message


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_lists = st.lists(_scalars | st.lists(_scalars, max_size=2), max_size=4)
_values = _scalars | _lists | st.dictionaries(st.text(), _lists, max_size=3)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b"k: !!bool maybe\nseed: !!null 4")
@example(b"k: =\ndomains: <<")
@example(b"%YAML 9.9\n---\nk: 4")
def test_any_file_is_a_sweep_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with contextlib.suppress(UsageError):
        SweepConfig.load(path)


@given(st.dictionaries(st.sampled_from(sorted(SweepConfig.model_fields)), _values, min_size=1, max_size=4))
def test_any_values_are_a_sweep_or_refused(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    try:
        config = SweepConfig.load(path)
    except UsageError:
        pass
    else:
        assert SweepConfig.model_validate(config.model_dump(include=set(values))) == config
    with contextlib.suppress(UsageError):
        SweepConfig().with_flags(**values)


def test_no_file(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "no.yaml", "there is no file"), (tmp_path, f"{tmp_path} is a directory")):
        with pytest.raises(UsageError, match=message):
            SweepConfig.load(path)


def test_an_unknown_pair_is_found_where_it_is_named(tmp_path: Path) -> None:
    config = load(tmp_path, "k: 4\npairs:\n- tiny_dev\n- tiny_dew")
    with pytest.raises(UsageError, match=r"x\.yaml, line 4: there is no pair named 'tiny_dew'"):
        config.model_pairs()
    with pytest.raises(UsageError) as refused:
        config.with_flags(pairs="tiny_dew").model_pairs()
    assert refused.value.message == "there is no pair named 'tiny_dew'" and "tiny_dev" in refused.value.hint


# Flags


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, "k: [1, 2]\nseed: 3\ntemperatures: 0.5\nrepetitions: 5")
    changed = config.with_flags(k="4,8", temperatures=None, seed=0, domains=["code"], repetitions=None)
    assert (changed.k, changed.seed, changed.temperatures, changed.domains) == ((4, 8), 0, (0.5,), ("code",))
    assert changed.repetitions == 5
    assert config.k == (1, 2), "the first is not changed"
    assert changed.with_flags() == changed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"temperatures": "0,x"}, "--temperature 'x' is not a number or a range of them"),
        ({"temperatures": (0.0, math.nan)}, "--temperature nan is not a number >= 0"),
        ({"k": "0,4"}, "--k 0 drafts nothing"),
        ({"k": (1, -4)}, "--k -4 is negative"),
        ({"pairs": [""]}, "--pair '' is empty"),
        ({"repetitions": 0}, "--reps 0 is less than 1"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0 is less than 1"),
        ({"num_prompts": -1}, "--num-prompts -1 is less than 1"),
        ({"drafters": "ngarm"}, "--drafter 'ngarm' is not a choice"),
        ({"domains": []}, "--domain is an empty list"),
        ({"dtype": "fp17"}, "there is no dtype 'fp17'"),
        ({"draft": "a"}, "--draft needs --target"),
        ({"pairs": "tiny_dev", "target": "b"}, "--pair excludes --draft and --target"),
        ({"k_max": 4}, "--k-max needs --k auto"),
        ({"draft_layers": 4}, "--draft-layers does not apply to --drafter model"),
        ({"scale_layers": 4}, "--scale-layers needs --random-weights"),
        ({"k": "auto", "deterministic": True}, "--k auto and --deterministic exclude each other"),
    ],
)
def test_flags_are_refused_by_their_names(tmp_path: Path, flags: dict[str, Any], message: str) -> None:
    assert flag_refusal(SweepConfig(), **flags).startswith(message)
    assert flag_refusal(load(tmp_path, "seed: 4"), **flags).startswith(message), "the file has no part in it"


def test_a_flag_that_contradicts_the_file_is_told_with_both(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    config = load(tmp_path, "seed: 1\nvocab_method: slem\n")
    message = f"{path}, line 2: vocab_method slem can't be sampled with: its proposals have no probabilities"
    assert flag_refusal(config, temperatures=(0.8,)) == message
    config = load(tmp_path, "seed: 1\nk: auto\n")
    assert flag_refusal(config, deterministic=True).startswith(f"{path}, line 2: k auto and --deterministic exclude")
    config = load(tmp_path, "k: 4\n")
    assert flag_refusal(config, k_max=8) == f"{path}, line 1: --k-max needs k auto"


def test_models_named_by_flags_replace_those_of_the_file(tmp_path: Path) -> None:
    pairs = load(tmp_path, "pairs: [tiny_dev, tiny_cross]")
    models = load(tmp_path, "draft: a/small\ntarget: b/large")
    by_models = pairs.with_flags(draft="a/small", target="b/large")
    assert by_models.model_pairs() == models.model_pairs() == (ModelPair("small+large", "a/small", "b/large"),)
    assert models.with_flags(pairs=("tiny_dev",)).model_pairs() == (PAIR,)
    assert models.with_flags(draft="c/smaller").model_pairs()[0].draft_model_id == "c/smaller"


def test_settings_of_the_file_may_lose_their_use_to_flags(tmp_path: Path) -> None:
    config = load(
        tmp_path, "drafters: [layerskip, model]\ndraft_layers: 2\ndraft_threshold: 0.4\nk: [2, auto]\nk_max: 6"
    )
    narrowed = config.with_flags(drafters="ngram", k=(2,))
    runs = list(narrowed.run_configs(PAIR))
    assert [(run.drafter, run.k) for run in runs] == [("model", 0), ("ngram", 2)]
    assert {(run.draft_layers, run.draft_threshold, run.k_max) for run in runs} == {(None, 0.0, None)}
    assert flag_refusal(config, drafters="ngram", draft_layers=2).endswith("does not apply to --drafter ngram")


# What comes of it


def test_defaults() -> None:
    config = SweepConfig()
    assert config.model_pairs() == (PAIR,)
    assert [run.k for run in config.run_configs(PAIR)] == [0, 1, 2, 4, 8]


def test_every_combination_once_and_a_baseline_for_each_temperature() -> None:
    config = SweepConfig().with_flags(
        k="1-3,auto",
        k_max=6,
        temperatures="0,0.5",
        drafters="model,ngram,layerskip,self,random",
        draft_layers=2,
        draft_threshold=0.4,
        vocab_method="tli",
    )
    runs = list(config.run_configs(PAIR, offline=True))
    baselines = [run for run in runs if run.k == 0]
    assert len(runs) == len(set(runs)) == 2 * (1 + 5 * 4)
    assert [run.temperature for run in baselines] == [0.0, 0.5]
    for run in baselines:
        assert run == RunConfig(PAIR, k=0, temperature=run.temperature, baseline=False, offline=True)
    for run in set(runs) - set(baselines):
        assert run.draft_layers == (2 if run.drafter == "layerskip" else None)
        assert run.draft_threshold == (0.4 if run.drafter in ("model", "layerskip", "self") else 0.0)
        assert run.vocab_method == ("tli" if run.drafter == "model" else "auto")
        assert run.k_max == (6 if run.k == "auto" else None)
        assert not run.baseline and run.offline
    assert not any(run.offline for run in config.run_configs(PAIR))


def test_everything_else_reaches_the_runs() -> None:
    given: dict[str, Any] = {
        "repetitions": 2,
        "max_new_tokens": 7,
        "top_k": 5,
        "top_p": 0.9,
        "seed": 11,
        "warmup": 0,
        "device": "cpu",
        "forward": "hf",
        "ignore_eos": True,
        "detail": True,
        "deterministic": True,
        "chat_template": "off",
        "random_weights": True,
        "scale_layers": 2,
        "synthetic_acceptance": 0.5,
        "trust_remote_code": True,
    }
    for settings in (given, {"device_map": "auto", "forward": "hf"}):
        for run in SweepConfig().with_flags(**settings).run_configs(PAIR):
            assert {name: getattr(run, name) for name in settings} == settings


def test_a_dtype_is_for_both_models() -> None:
    (pair,) = SweepConfig().with_flags(dtype="bf16").model_pairs()
    assert (pair.name, pair.draft_dtype, pair.target_dtype) == ("tiny_dev", "bfloat16", "bfloat16")


def test_a_target_needs_no_draft_where_no_model_drafts() -> None:
    config = SweepConfig().with_flags(target="a/large", drafters=("ngram", "self"))
    assert config.model_pairs() == (ModelPair("large", "a/large", "a/large"),)


def test_choices_are_those_of_a_run() -> None:
    for name, choices in (("drafters", DRAFTERS), ("vocab_method", VOCAB_METHODS)):
        message = f"choices: {', '.join(choices)}"
        with pytest.raises(UsageError) as refused:
            SweepConfig().with_flags(**{name: "wombat"})
        assert refused.value.hint == message


def test_built_directly_pydantic_refuses() -> None:
    with pytest.raises(ValidationError, match="drafts nothing"):
        SweepConfig(k=(0, 1))
    with pytest.raises(ValidationError, match="frozen"):
        SweepConfig().seed = 1


def test_a_sweep_is_described_without_torch() -> None:
    loaded = loaded_after(
        "from specprof.experiments.sweep_config import SweepConfig; list(SweepConfig().run_configs(None))"
    )
    assert "pydantic" in loaded and loaded.isdisjoint(HEAVY)
