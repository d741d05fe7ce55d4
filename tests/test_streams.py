"""A text token by token: whole, in order, with the right probabilities beside the right tokens."""

from __future__ import annotations

import dataclasses
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import large_run
from large_run import prompts
from specprof.data.prompts import Prompt
from specprof.experiments.run import encode_prompts, measure
from specprof.experiments.saved_runs import read_run
from specprof.experiments.study import Study, of_run
from specprof.profiling.events import Event, Prefilled, PromptEnded, Round
from specprof.profiling.metrics import fold
from specprof.profiling.pieces import Piece
from specprof.reports.document import TokenStream
from specprof.reports.streams import MOST_ROUNDS, MOST_STREAMS, streams
from test_experiment import PROMPTS, loaded, quick
from tiny_models import tiny_tokenizer

SHADE = "\N{LIGHT SHADE}"


def one(texts: dict[int, str], rounds: Sequence[dict[str, Any]], first: int = 0, **options: Any) -> TokenStream:
    """The stream of a single text, of rounds that are told by what is particular to them."""
    happened: list[Event] = []
    for event in large_run.run(prompts(1), baseline=False, num_tokens=2):
        if isinstance(event, Prefilled):
            event = dataclasses.replace(event, first_token=first)
        if isinstance(event, PromptEnded):
            event = dataclasses.replace(event, token_texts={str(token): text for token, text in texts.items()})
        if isinstance(event, Round):
            none: dict[str, Any] = {"draft_tokens": (), "num_accepted": 0, "emitted_tokens": (), "k": 4}
            happened += [dataclasses.replace(event, **none | {"index": i} | given) for i, given in enumerate(rounds)]
        else:
            happened.append(event)
    [stream] = streams(study(happened), **options)
    return stream


def study(happened: Sequence[Event]) -> Study:
    with tempfile.TemporaryDirectory() as directory:
        return of_run(read_run(large_run.write(Path(directory), happened)))


def drafted(tokens: Sequence[int], accepted: int, *emitted: int, **more: Any) -> dict[str, Any]:
    return {"draft_tokens": tuple(tokens), "num_accepted": accepted, "emitted_tokens": emitted} | more


def kinds(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    return [(piece.text, piece.kind) for piece in pieces]


LETTERS = dict(enumerate("abcdefgh"))


# What became of the tokens


def test_rejected_tokens_stand_before_the_one_that_replaced_them() -> None:
    stream = one(LETTERS, [drafted([1, 2, 3, 4], 1, 1, 5), drafted([6, 7], 2, 6, 7, 0)])
    assert [kinds(pieces) for pieces in stream.rounds] == [
        [("a", "first")],
        [("b", "accepted"), ("c", "rejected"), ("d", "rejected"), ("e", "rejected"), ("f", "corrected")],
        [("g", "accepted"), ("h", "accepted"), ("a", "bonus")],
    ]


def test_rounds_without_a_draft_are_plain_steps() -> None:
    stream = one(LETTERS, [drafted([], 0, 1), drafted([2], 0, 3)])
    assert [kinds(pieces) for pieces in stream.rounds[1:]] == [
        [("b", "plain")], [("c", "rejected"), ("d", "corrected")],
    ]  # fmt: skip


@pytest.mark.parametrize(("accepted", "emitted"), [(4, (1, 2)), (3, (1, 2, 3)), (4, (1, 2, 3, 4)), (1, (1,))])
def test_a_text_that_ends_among_the_accepted_ends_there(accepted: int, emitted: tuple[int, ...]) -> None:
    """What was drafted behind an end of text is neither text nor a mistake, and nothing replaced it."""
    stream = one(LETTERS, [drafted([1, 2, 3, 4], accepted, *emitted, cut=True)])
    assert kinds(stream.rounds[1]) == [(LETTERS[token], "accepted") for token in emitted]


def test_probabilities_stand_with_the_tokens_that_were_judged() -> None:
    target, draft = (0.9, 0.2, 0.3, 0.4), (0.8, 0.7, 0.6, 0.5)
    stream = one(LETTERS, [drafted([1, 2, 3, 4], 1, 1, 5, target_prob=target, draft_prob=draft)])
    assert [(piece.text, piece.target_prob, piece.draft_prob) for piece in stream.rounds[1]] == [
        ("b", 0.9, 0.8), ("c", 0.2, 0.7), ("d", None, None), ("e", None, None), ("f", None, None),
    ]  # fmt: skip
    stream = one(LETTERS, [drafted([1, 2], 2, 1, 2, 3, target_prob=target[:2], draft_prob=draft[:2])])
    assert [piece.target_prob for piece in stream.rounds[1]] == [0.9, 0.2, None]


# Characters of several tokens


def pieced(text: str) -> dict[int, str]:
    """One token for each byte."""
    return {i: bytes([byte]).decode("utf-8", "surrogateescape") for i, byte in enumerate(text.encode())}


def test_a_character_of_several_tokens_appears_once_and_whole() -> None:
    texts = pieced("é🙂")
    stream = one(texts, [drafted([1, 2], 2, 1, 2, 3), drafted([], 0, 4), drafted([5], 1, 5)])
    assert [kinds(pieces) for pieces in stream.rounds] == [
        [("", "first")],
        [("é", "accepted"), ("", "accepted"), ("", "bonus")],
        [("", "plain")],
        [("🙂", "accepted")],
    ]


def test_a_rejected_token_does_not_disturb_the_character_it_stands_in() -> None:
    texts = pieced("é") | {5: "x", 6: "\udca8", 7: "\udcff"}
    stream = one(texts, [drafted([5, 6, 7], 0, 1)])
    # x by itself; 0xa8 would have made an è of what has begun; 0xff nothing.
    assert kinds(stream.rounds[1]) == [("x", "rejected"), ("è", "rejected"), ("\udcff", "rejected"), ("é", "corrected")]


def test_a_character_that_the_text_ends_in_is_not_lost() -> None:
    stream = one(pieced("🙂"), [drafted([], 0, 1), drafted([], 0, 2)])
    assert "".join(piece.text for pieces in stream.rounds for piece in pieces) == "\udcf0\udc9f\udc99"


def test_bytes_that_are_no_text_are_kept() -> None:
    stream = one({0: "a", 1: "\udcff", 2: "\udcc3", 3: "b"}, [drafted([], 0, 1), drafted([], 0, 2), drafted([], 0, 3)])
    assert [pieces[0].text for pieces in stream.rounds] == ["a", "\udcff", "", "\udcc3b"]


@pytest.mark.parametrize("text", [chr(0xD800), chr(0xDFFF), f"a{chr(0xDC00)}b", chr(0xDC41)])
def test_half_characters_from_elsewhere_are_kept_too(text: str) -> None:
    stream = one({0: text, 1: text, 2: "b"}, [drafted([1], 0, 2)])
    assert [[piece.text for piece in pieces] for pieces in stream.rounds] == [[text], [text, "b"]]


def test_a_token_without_a_text_is_named_by_its_number() -> None:
    stream = one({1: "b"}, [drafted([2], 0, 1)], first=77)
    assert [[piece.text for piece in pieces] for pieces in stream.rounds] == [["[77]"], ["[2]", "b"]]


def test_nothing_is_left_of_a_redacted_text_but_its_shape() -> None:
    hidden = ["def f(x):\n\treturn", "é漢字", "٣½Ⅷ", "ा", "🙂", "\udcff", "\ud800", "\x1b[1m", "\u2028"]
    texts = dict(enumerate(hidden))
    rounds = [drafted([token], 0, token) for token in [*texts, 1234]]
    stream = one(texts, rounds, redact=True)
    shown = "".join(piece.text for pieces in stream.rounds for piece in pieces)
    assert set(shown) <= {SHADE, *string.punctuation, " ", "\n", "\t"}
    assert stream.rounds[0][0].text == f"{SHADE * 3} {SHADE}({SHADE}):\n\t{SHADE * 6}"
    assert stream.rounds[-1][0].text == f"[{SHADE * 4}]"


# Which texts, and how much of them


def test_the_first_text_of_each_domain_is_shown() -> None:
    found = streams(study(list(large_run.run(prompts(9), repetitions=2))))
    assert [stream.title for stream in found] == [f"{d}_000 ({d}), SD-K4" for d in large_run.DOMAINS]
    [*_, last] = streams(study(list(large_run.run(prompts(9, ["code", "news"])))))
    assert last.title == "code_001 (code), SD-K4", "then further ones"
    many = streams(study(list(large_run.run(prompts(10, [f"domain {i}" for i in range(5)])))))
    assert len(many) == MOST_STREAMS and len({stream.title for stream in many}) == MOST_STREAMS


def test_of_several_repetitions_the_one_that_noted_its_texts_is_shown() -> None:
    def swapped(event: Event) -> Event:
        if isinstance(event, Prefilled | Round | PromptEnded):
            return dataclasses.replace(event, repetition=1 - event.repetition)
        return event

    happened = [swapped(event) for event in large_run.run(prompts(1), repetitions=2)]
    [stream] = streams(study(happened))
    assert not any(piece.text.startswith("[") for pieces in stream.rounds for piece in pieces)


def test_a_long_text_is_shortened_and_says_so() -> None:
    happened = list(large_run.run(prompts(1), num_tokens=900))
    rounds = sum(isinstance(event, Round) and event.decoder != "AR" for event in happened)
    [stream] = streams(study(happened))
    assert len(stream.rounds) == MOST_ROUNDS + 1 and stream.omitted == rounds - MOST_ROUNDS > 0


def test_where_there_are_no_rounds_there_is_no_stream() -> None:
    assert streams(study([next(large_run.run())])) == []
    assert streams(study([event for event in large_run.run() if not isinstance(event, Round)])) == []


# Real texts


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_joined_they_are_the_text_that_the_tokenizer_decodes(temperature: float, tmp_path: Path) -> None:
    """At temperature 3 tokens are bytes of any kind."""
    config = quick(temperature=temperature, max_new_tokens=60, repetitions=1, ignore_eos=True)
    texts = [*PROMPTS, Prompt("p3", "custom", "日本語の文 🙂 é")]
    events = list(measure(config, loaded(), encode_prompts(config, loaded(), texts), "the-run"))
    results = {result.prompt_id: result for result in fold(events) if result.is_speculative}
    found = streams(of_run(read_run(large_run.write(tmp_path, events))))
    assert len(found) == MOST_STREAMS
    for stream in found:
        ids = results[stream.title.split()[0]].generated_ids
        joined = "".join(p.text for pieces in stream.rounds for p in pieces if p.kind != "rejected")
        decoded = tiny_tokenizer().decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert joined.encode("utf-8", "surrogateescape").decode("utf-8", "replace") == decoded
        judged = [p for pieces in stream.rounds for p in pieces if p.target_prob is not None]
        assert bool(judged) == (temperature > 0)
