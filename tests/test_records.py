"""Lines of a results store: what is written is read, and nothing that isn't a record is taken for one."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sample_store
from specprof.experiments import records
from specprof.experiments.records import (
    Failure,
    Generation,
    GenerationKey,
    Record,
    from_json_line,
    rounds_from_columns,
    rounds_to_columns,
    to_json_line,
)
from specprof.profiling.acceptance import AcceptanceCounts
from specprof.profiling.events import Prefilled, PromptEnded, Round, RunEnded, RunStarted
from specprof.profiling.metrics import GenerationResult

ONE_OF_EACH: list[Record] = [
    sample_store.session(),
    sample_store.machine(),
    sample_store.cell(),
    sample_store.generation(3),
    sample_store.failure(4),
]


def line(record: Record = ONE_OF_EACH[3], **changes: Any) -> str:
    """A record's line with some of its keys changed."""
    return json.dumps(json.loads(to_json_line(record)) | changes)


@pytest.mark.parametrize("record", ONE_OF_EACH, ids=lambda record: type(record).__name__)
def test_what_is_written_is_read(record: Record) -> None:
    text = to_json_line(record)
    assert text.endswith("\n") and text.count("\n") == 1 and text.isascii()
    found = from_json_line(text)
    assert found == record
    if isinstance(record, Generation) and isinstance(found, Generation):
        assert found.result.rounds == record.result.rounds and record.result.rounds


def test_a_generations_line_is_flat_and_counts_what_its_rounds_say() -> None:
    record = sample_store.generation(3)
    keys = json.loads(to_json_line(record))
    assert keys["kind"] == "generation" and keys["K"] == 4 and list(keys)[-1] == "rounds"
    assert keys["generated_ids"] == record.result.generated_ids and keys["finish_reason"] == "length"
    assert "result" not in keys and "target_prob" not in keys["rounds"] and "cut" not in keys["rounds"]
    counts = AcceptanceCounts.of(record.result.rounds, greedy=True)
    assert keys["num_draft_tokens"] == counts.num_draft_tokens == 12
    assert keys["num_accepted_draft_tokens"] == counts.num_accepted_draft_tokens == 3
    assert "num_draft_tokens" not in json.loads(to_json_line(sample_store.generation(3, sample_store.AR)))


def test_a_key_is_a_measurement() -> None:
    record = sample_store.generation(3, prompt=1)
    assert record.key == GenerationKey(
        sample_store.SD.config_hash(), sample_store.HERE, "code_001", "0123456789ab", 0, False
    )
    assert record.key == dataclasses.replace(record, sequence=9, session="later").key


def test_rounds_are_left_unread_where_nobody_wants_them() -> None:
    record = sample_store.generation(3)
    found = from_json_line(to_json_line(record), with_rounds=False)
    assert isinstance(found, Generation) and found == record and found.result.rounds == ()


def test_text_that_looks_like_rounds_is_text() -> None:
    nasty = ',"rounds":{"a":[]}}'
    record = dataclasses.replace(sample_store.generation(3), prompt_hash=nasty)
    for with_rounds in (True, False):
        found = from_json_line(to_json_line(record), with_rounds=with_rounds)
        assert isinstance(found, Generation) and found.prompt_hash == nasty
    # A later version may write keys behind the rounds: then all of the line is read.
    late = to_json_line(record).rstrip()[:-1] + ',"joules":3}'
    assert from_json_line(late, with_rounds=False) == record


# Rounds as columns

seconds = st.floats(0, 1e4)
token_ids = st.integers(0, 2**31)


@st.composite
def rounds_of_a_generation(draw: st.DrawFn) -> tuple[Round, ...]:
    key = (draw(st.text(max_size=5)), "SD-K4", draw(st.integers(0, 5)))
    found = []
    for index in range(draw(st.integers(0, 5))):
        drafted = tuple(draw(st.lists(token_ids, max_size=4)))
        accepted = draw(st.integers(0, len(drafted)))
        probabilities = st.none() | st.tuples(*[st.floats(0, 1)] * len(drafted))
        found.append(
            Round(
                *key, index, drafted, accepted, (*drafted[:accepted], draw(token_ids)),
                draw(seconds), draw(seconds), draw(seconds), draw(seconds), cut=draw(st.booleans()),
                target_prob=draw(probabilities), draft_prob=draw(probabilities), alpha=draw(probabilities),
                k=draw(st.none() | st.integers(0, 8)),
            )
        )  # fmt: skip
    return tuple(found)


@given(rounds_of_a_generation())
def test_columns_and_rounds_are_the_same_thing(rounds: tuple[Round, ...]) -> None:
    columns = json.loads(json.dumps(rounds_to_columns(rounds), allow_nan=False))
    prompt_id, _, repetition = (rounds[0].prompt_id, "", rounds[0].repetition) if rounds else ("", "", 0)
    found = rounds_from_columns(columns, prompt_id, "SD-K4", repetition)
    assert len(found) == len(rounds)
    for before, after in zip(rounds, found, strict=True):
        for field in dataclasses.fields(Round):
            old, new = getattr(before, field.name), getattr(after, field.name)
            if field.name.endswith("_seconds"):
                assert abs(old - new) <= 0.5000001e-9 + 1e-12 * old
            elif field.name in ("target_prob", "draft_prob", "alpha") and old is not None:
                assert len(old) == len(new)
                assert all(math.isclose(a, b, rel_tol=1e-8) for a, b in zip(old, new, strict=True))
            else:
                assert old == new, field.name


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"num_accepted": [5, 0, 0]}, "5 of 4 tokens accepted"),
        ({"num_accepted": [-1, 0, 0]}, "-1 of 4"),
        ({"num_accepted": [1, 1]}, "different lengths"),
        ({"num_accepted": 1}, "not a column"),
        ({"num_accepted": [1, True, 1]}, "whole number"),
        ({"draft_seconds": [0.1, -0.1, 0.1]}, "negative"),
        ({"draft_seconds": [0.1, None, 0.1]}, "draft_seconds"),
        ({"draft_tokens": [[1], [2], "3"]}, "not a list"),
        ({"alpha": [["a"], None, None]}, "alpha"),
    ],
)
def test_columns_that_no_decoder_makes_are_refused(change: dict[str, Any], complaint: str) -> None:
    columns = rounds_to_columns(sample_store.generation(1).result.rounds)
    with pytest.raises(ValueError, match=complaint):
        rounds_from_columns(columns | change, "p", "SD-K4", 0)


def test_a_column_that_is_missing_or_unknown() -> None:
    columns = rounds_to_columns(sample_store.generation(1).result.rounds)
    assert rounds_from_columns(columns | {"joules": [1]}, "p", "SD", 0) == rounds_from_columns(columns, "p", "SD", 0)
    del columns["emitted_tokens"]
    with pytest.raises(ValueError, match="emitted_tokens is missing"):
        rounds_from_columns(columns, "p", "SD", 0)


# What is not a record


def test_a_later_versions_lines() -> None:
    assert from_json_line('{"kind":"energy","joules":3}') is None
    assert from_json_line(line(joules=3)) == ONE_OF_EACH[3]
    without = json.loads(line())
    del without["num_prompt_tokens"]  # it has a default
    found = from_json_line(json.dumps(without))
    assert isinstance(found, Generation) and found.result.num_prompt_tokens is None


@pytest.mark.parametrize("record", ONE_OF_EACH, ids=lambda record: type(record).__name__)
def test_a_line_without_one_of_its_keys_is_not_a_record(record: Record) -> None:
    values = json.loads(to_json_line(record))
    for field in dataclasses.fields(record):
        if field.name != "result" and field.default is dataclasses.MISSING:
            short = {key: value for key, value in values.items() if key != field.name}
            with pytest.raises(ValueError, match=f"{field.name} is missing"):
                from_json_line(json.dumps(short))


@pytest.mark.parametrize(
    "text",
    [
        "", "\n", "{", "[]", "3", "null", '"text"', "{}", '{"kind":3}', '{"kind":["generation"]}', "\x00\x00",
        "[" * 100_000, '{"kind":' * 100_000, '{"kind":"session"}', '{"kind":"generation","rounds":{}}', "9" * 5000,
    ],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_what_is_no_record_is_refused(text: str) -> None:
    for with_rounds in (True, False):
        with pytest.raises(ValueError):
            from_json_line(text, with_rounds=with_rounds)


WRONG: list[Any] = [None, True, 1.5, "text", [1], {"a": 1}, 10**40, 1e300, [[[]]], ["\x1b[31m"], [1e300], [10**40], -1]


@pytest.mark.parametrize("record", ONE_OF_EACH, ids=lambda record: type(record).__name__)
def test_a_value_of_another_type_is_refused_or_read_as_what_it_is(record: Record) -> None:
    """Whatever a line says, what comes out of it has the types the fields promise."""
    values = json.loads(to_json_line(record))
    for key in values:
        for wrong in WRONG:
            try:
                found = from_json_line(json.dumps(values | {key: wrong}))
            except ValueError:
                continue
            assert found is None or isinstance(found, records._KINDS[values["kind"]])
            if isinstance(found, Generation):
                found.result.summary()
                assert isinstance(found.key, GenerationKey) and hash(found.key)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(constant: str) -> None:
    text = line().replace('"temperature": 0.0', f'"temperature": {constant}')
    assert constant in text
    with pytest.raises(ValueError):
        from_json_line(text)


def test_a_number_that_is_none_is_never_written() -> None:
    record = sample_store.generation(1)
    broken = dataclasses.replace(record, result=dataclasses.replace(record.result, total_time=math.nan))
    with pytest.raises(ValueError):
        to_json_line(broken)


@pytest.mark.parametrize(
    "change", [{"K": -1}, {"K": "many"}, {"K": 10**400}, {"temperature": None}, {"drafter": 3}, {"prompt_domain": []}]
)
def test_a_cell_whose_configuration_cant_be_meant_is_refused(change: dict[str, Any]) -> None:
    record = sample_store.cell()
    with pytest.raises(ValueError):
        from_json_line(line(record, config=record.config | change))


@pytest.mark.parametrize(
    "cls", [*records._KINDS.values(), GenerationResult, Prefilled, PromptEnded, RunEnded, RunStarted]
)
def test_every_field_is_checked(cls: type[Any]) -> None:
    kinds = {str(field.type) for field in dataclasses.fields(cls)} - {"GenerationResult", "tuple[Round, ...]"}
    assert kinds <= set(records._CHECKS)


def test_reasons_a_cell_fails_for() -> None:
    assert sample_store.failure(1).reason in records.REASONS
    # One that a later version invents is no reason to lose the line.
    found = from_json_line(line(sample_store.failure(1), reason="stolen"))
    assert isinstance(found, Failure) and found.reason == "stolen"
