"""Whatever a file holds: a reader takes it, or says in words what is wrong; and what is written is read back."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from specprof.data.prompts import Prompt, PromptDataset
from specprof.errors import SpecprofError, UsageError
from specprof.experiments import thresholds
from specprof.experiments.number_lists import parse_decimals, parse_numbers
from specprof.experiments.records import from_json_line as record_of
from specprof.experiments.records import rounds_from_columns, rounds_to_columns
from specprof.experiments.results import read_contents
from specprof.experiments.saved_runs import read_run, saved_runs
from specprof.experiments.sweep_config import SweepConfig
from specprof.models import checkpoint
from specprof.models.registry import user_pairs
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round, from_json_line, to_json_line
from specprof.profiling.trace import trace_file

NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, -(2**63) - 1, 1e100, -0.0, 1e308])
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=12)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4))
NAMES = st.sampled_from(
    ["text", "prompt", "raw_text", "prompt_id", "domain", "token_count", "event", "kind", "config", "machine", "schema",
     "session", "k", "K", "pair", "rounds", "prompts", "vocab_size", "num_hidden_layers", "model_type", "repetition"]
)  # fmt: skip
OBJECTS = st.dictionaries(NAMES | st.text(max_size=5), JSON, max_size=6)
DATA = st.binary(max_size=200) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))
WRITTEN = (OBJECTS | JSON | st.lists(OBJECTS, max_size=3)).map(json.dumps)
FILES = DATA | WRITTEN.map(str.encode) | st.lists(WRITTEN, max_size=4).map(lambda lines: "\n".join(lines).encode())


def read(name: str, content: bytes, reader: Any) -> Any:
    """None: it was refused, in words."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        try:
            return reader(path)
        except SpecprofError as error:
            refused = error
        assert refused.message and refused.hint
        return None


@given(FILES, st.sampled_from(["p.json", "p.jsonl", "p.txt"]))
def test_prompts(content: bytes, name: str) -> None:
    found = read(name, content, PromptDataset.load)
    if found is not None:
        assert len(found) > 0 and all(prompt.raw_text.strip() for prompt in found)
        with tempfile.TemporaryDirectory() as folder:
            found.save(Path(folder, "again.json"))
            assert PromptDataset.load(Path(folder, "again.json")) == found


VISIBLE = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@given(st.lists(VISIBLE, min_size=1, max_size=4))
def test_prompts_are_read_as_they_were_written(texts: list[str]) -> None:
    prompts = PromptDataset(tuple(Prompt(f"p{i}", "mine", text) for i, text in enumerate(texts)))
    with tempfile.TemporaryDirectory() as folder:
        prompts.save(Path(folder, "p.json"))
        assert PromptDataset.load(Path(folder, "p.json")) == prompts


@given(FILES)
@example(b'{"event":"RunStarted","run_id":"","schema":"","config":{},"machine":{}}')
def test_runs(content: bytes) -> None:
    read("r.jsonl", content, read_run)
    read("r.jsonl", content, lambda path: saved_runs(path.parent))


@given(FILES)
def test_results(content: bytes) -> None:
    read("records.jsonl", content, lambda path: read_contents(path.parent, with_rounds=True))


@given(WRITTEN | st.text())
def test_a_line_is_an_event_or_none(line: str) -> None:
    for reader in (from_json_line, record_of):
        try:
            reader(line)
        except ValueError:  # the one way to refuse that those who call it know
            pass
        except RecursionError:
            assert line.count("[") + line.count("{") > 500


FINITE = st.floats(0, 1e6)
TOKENS = st.lists(st.integers(0, 2**31), max_size=5).map(tuple)


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    drafted = draw(TOKENS)
    accepted = draw(st.integers(0, len(drafted)))
    probabilities = draw(st.none() | st.lists(st.floats(0, 1), min_size=len(drafted), max_size=len(drafted)).map(tuple))
    draft, verify, sample, overhead = (draw(FINITE) for _ in range(4))
    return Round(
        "p", "SD-K5", 0, 0, drafted, accepted, draw(TOKENS), draft, verify, sample, overhead,
        cut=draw(st.booleans()), target_prob=probabilities, k=draw(st.none() | st.integers(0, 9)),
    )  # fmt: skip


@given(
    rounds()
    | st.builds(
        Prefilled,
        st.text(),
        st.text(),
        st.integers(),
        st.integers(),
        st.integers(),
        FINITE,
        FINITE,
        FINITE,
        st.integers(),
    )
)
def test_events_are_read_as_they_were_written(event: Event) -> None:
    assert from_json_line(to_json_line(event)) == event


@given(st.lists(rounds(), min_size=1, max_size=4))
def test_rounds_are_read_as_they_were_written(some: list[Round]) -> None:
    read_back = rounds_from_columns(json.loads(json.dumps(rounds_to_columns(some))), "p", "SD-K5", 0)
    assert len(read_back) == len(some)
    for index, (before, after) in enumerate(zip(some, read_back, strict=True)):
        assert after.index == index
        assert (after.draft_tokens, after.emitted_tokens, after.num_accepted, after.cut, after.k) == (
            before.draft_tokens, before.emitted_tokens, before.num_accepted, before.cut, before.k,
        )  # fmt: skip
        assert math.isclose(after.seconds, before.seconds, abs_tol=1e-6)


@given(st.lists(rounds(), max_size=4))
@settings(max_examples=30)
def test_a_trace_of_any_rounds_is_json(some: list[Round]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        with trace_file(path) as sink:
            sink(Prefilled("p", "SD-K5", 0, 3, 1, 0.1, 0.1, 0.1, 0))
            for event in some:
                sink(event)
            sink(PromptEnded("p", "SD-K5", 0, "length", 0))
        document = json.loads(path.read_text(), parse_constant=pytest.fail)
        assert all(event.get("dur", 0) >= 0 for event in document["traceEvents"])


LIST_TEXT = st.text("0123456789.,-+* eEauto", max_size=20) | st.text(max_size=20)


@given(LIST_TEXT)
def test_number_lists(text: str) -> None:
    for parse in (parse_numbers, parse_decimals):
        try:
            found = parse(text, name="--k")
        except UsageError:
            continue
        assert found and len(set(found)) == len(found)
        assert all(number == "auto" or (math.isfinite(number) and number >= 0) for number in found)


@given(st.lists(st.integers(0, 10**12 - 1), min_size=1, max_size=20, unique=True))
def test_a_list_of_numbers_is_what_it_says(numbers: list[int]) -> None:
    assert parse_numbers(",".join(map(str, numbers)), name="--k") == tuple(numbers)


@given(st.text() | st.from_regex(r"(speedup|acceptance_rate)(_after)?[<>]=?[0-9.eE_+-]{0,6}%?", fullmatch=True))
def test_thresholds(text: str) -> None:
    try:
        (found,) = thresholds.parse([text])
    except UsageError:
        return
    assert math.isfinite(found.number) and found.number >= 0
    assert thresholds.parse([str(found)])[0].name == found.name


SETTINGS = st.dictionaries(st.sampled_from([*SweepConfig.model_fields]), JSON, max_size=4)


@given(FILES | SETTINGS.map(json.dumps).map(str.encode))
def test_sweep_configurations(content: bytes) -> None:
    read("s.yaml", content, SweepConfig.load)


@given(SETTINGS)
def test_sweep_settings(values: dict[str, Any]) -> None:
    try:
        config = SweepConfig(**values)
    except (ValidationError, UsageError):
        return
    assert SweepConfig(**config.model_dump(exclude_unset=True)) == config


@given(DATA | st.text("[]pairs.ine=\"'\n{}drftg#", max_size=40).map(str.encode))
def test_configuration_files(content: bytes) -> None:
    read("specprof.toml", content, lambda path: user_pairs([path]))


@given(FILES)
def test_model_configurations(content: bytes) -> None:
    read("config.json", content, lambda path: checkpoint.read_config(path.parent, "model"))


@given(DATA | st.tuples(OBJECTS, st.binary(max_size=20)).map(lambda parts: _weights(*parts)))
def test_weights(content: bytes) -> None:
    read("model.safetensors", content, lambda path: checkpoint.stored_tensors(path.parent, "model"))


def _weights(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data
