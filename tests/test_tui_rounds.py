"""One round as positions: what was drafted, what became of it, and why."""

from __future__ import annotations

import pytest

from sample_feed import hostile_run, hostile_texts, sample_run
from specprof.profiling.events import Round
from specprof.profiling.pieces import Piece, TokenReader, pieces_of
from specprof.profiling.signs import spelled
from specprof.tui.rounds import RoundView, view

TEXTS = {"1": " a", "2": " b", "3": " c", "4": " d", "5": "\n"}


def made(
    drafted: tuple[int, ...], accepted: int, emitted: tuple[int, ...], greedy: bool = False, **more: object
) -> RoundView:
    event = Round("p", "SD-K4", 0, 0, drafted, accepted, emitted, 0.1, 0.1, 0.1, 0.1, **more)  # type: ignore[arg-type]
    return view(event, tuple(pieces_of(event, TokenReader(TEXTS))), greedy=greedy)


def test_a_token_is_rejected() -> None:
    shown = made(
        (1, 2, 3), 1, (1, 4), target_prob=(0.9, 0.1, 0.5), draft_prob=(0.5, 0.4, 0.5), uniforms=(0.3, 0.7, 0.1)
    )
    assert [(p.number, p.text, p.verdict) for p in shown.positions] == [
        (1, " a", "accepted"),
        (2, " b", "rejected"),
        (3, " c", "not judged"),
    ]
    assert [p.why for p in shown.positions] == [
        "the target is at least as sure",
        "u 0.700 >= 0.250",
        "behind a rejected token",
    ]
    assert shown.last == Piece(" d", "corrected")
    assert shown.headline == "1 of 3 accepted + corrected"


def test_all_are_accepted() -> None:
    shown = made((1, 2), 2, (1, 2, 3), target_prob=(0.9, 0.2), draft_prob=(0.5, 0.4), uniforms=(0.3, 0.0001))
    assert [p.verdict for p in shown.positions] == ["accepted", "accepted"]
    assert shown.positions[1].why == "u <0.001 < 0.500"
    assert shown.last == Piece(" c", "bonus") and shown.headline == "2 of 2 accepted + bonus"


def test_greedy_has_no_ratio() -> None:
    shown = made((1, 2), 1, (1, 3), greedy=True, target_prob=(0.9, 0.1), draft_prob=(0.5, 0.4))
    assert [p.ratio for p in shown.positions] == [None, None]
    assert [p.why for p in shown.positions] == ["the target's choice too", "the target chose another"]


def test_without_the_random_number_there_is_a_probability() -> None:
    (one,) = made((1,), 0, (2,), target_prob=(0.1,), draft_prob=(0.4,)).positions
    assert one.why == "accepted with probability 0.25"


def test_without_probabilities_there_is_nothing_to_say() -> None:
    (one,) = made((1,), 0, (2,)).positions
    assert (one.ratio, one.why, one.draft_prob) == (None, "", None)


def test_the_end_of_a_text_stands_for_what_comes_behind_it() -> None:
    """Of four drafted, the second is an end of sequence: nothing replaces the others, and they have no text."""
    shown = made((1, 2, 3, 4), 2, (1, 2), cut=True)
    assert [(p.text, p.verdict) for p in shown.positions[:2]] == [(" a", "accepted"), (" b", "accepted")]
    assert [p.text for p in shown.positions[2:]] == ["", ""]
    assert shown.last is None and shown.headline == "2 of 4 accepted, and the text ends"


def test_an_empty_draft() -> None:
    shown = made((), 0, (1,))
    assert shown.positions == () and shown.last == Piece(" a", "plain")
    assert shown.headline == "nothing was drafted: one token of the target's"


def test_stages_tell_no_more_than_is_known_by_then() -> None:
    shown = made((1, 2), 1, (1, 3))
    assert shown.at("draft").headline == "the draft proposes 2"
    assert shown.at("verify").headline == "the target reads all 2 in one pass"
    assert shown.at("decision") == shown


@pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "sampling"])
def test_why_agrees_with_the_rule(temperature: float) -> None:
    judged = 0
    for event in sample_run(3, temperature=temperature):
        if not isinstance(event, Round) or not event.draft_tokens:
            continue
        shown = view(event, tuple(pieces_of(event, TokenReader({}))), greedy=temperature == 0)
        for position in shown.positions:
            if position.verdict == "not judged":
                assert position.number > event.num_accepted + 1
                continue
            judged += 1
            accepted = position.verdict == "accepted"
            assert accepted == (position.number <= event.num_accepted)
            if temperature == 0:
                assert position.why == ("the target's choice too" if accepted else "the target chose another")
                continue
            assert position.ratio is not None and position.uniform is not None
            assert (position.uniform < position.ratio) == accepted
            said = position.why.split()
            if position.ratio < 1:
                assert said[0] == "u" and said[2] == ("<" if accepted else ">=")
            else:
                assert accepted
    assert judged > 100


def test_hostile_texts_are_spelled_out() -> None:
    texts = {str(number): text for number, text in enumerate(hostile_texts().values())}
    drafted = tuple(map(int, texts))
    event = Round("p", "SD-K4", 0, 0, drafted, len(drafted), (*drafted, 0), 0.1, 0.1, 0.1, 0.1)
    shown = view(event, tuple(pieces_of(event, TokenReader(texts))), greedy=True)
    assert len(shown.positions) == len(texts)
    for position in shown.positions:
        assert not any(spelled(character) for character in position.text)
    assert any(isinstance(event, Round) for event in hostile_run())


def test_a_coin_is_called_a_coin() -> None:
    [drafted] = [e for e in sample_run(1) if isinstance(e, Round) and e.draft_tokens and e.index == 0]
    shown = view(drafted, (), greedy=True, synthetic=True)
    assert all("coin" in position.why for position in shown.positions if position.verdict != "not judged")
    assert shown.synthetic and not view(drafted, (), greedy=True).synthetic


def test_what_stands_behind_the_end_was_not_accepted() -> None:
    shown = made((1, 2, 3), 3, (1, 2))  # 2 ends the text
    assert [position.verdict for position in shown.positions] == ["accepted", "accepted", "not judged"]
    assert shown.positions[2].why == "behind the end of the text"
    assert shown.headline == "2 of 3 accepted, and the text ends"
