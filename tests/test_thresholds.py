"""``--fail-if``: what can be written, when it holds, and what it says then."""

from __future__ import annotations

import pytest

from specprof.errors import ThresholdError, UsageError
from specprof.experiments import quantities
from specprof.experiments.difference import Contrasts, contrasts
from specprof.experiments.matrix import Missing
from specprof.experiments.thresholds import AFTER, QUANTITIES, Judged, Threshold, check, judged, parse, to_dicts
from test_comparison import ar
from test_difference import ELSEWHERE, MACHINE, TWELVE, drafted, noisy, several, study

DOMAINS = {prompt: "code" if number < 7 else "chat" for number, prompt in enumerate(TWELVE)}


def found(slow_sd: float = 1.0, slow_ar: float = 1.0) -> Contrasts:
    return contrasts([study(noisy(), domains=DOMAINS)], [study(noisy(slow_sd, slow_ar, seed=1), domains=DOMAINS)])


def crossed(expression: str, where: Contrasts, *, certain: bool = False, each_domain: bool = False) -> list[str]:
    verdicts = judged(parse([expression]), where, certain=certain, each_domain=each_domain)
    return [str(verdict) for verdict in verdicts if verdict.crossed]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("speedup<0.97", Threshold("speedup", "<", 0.97)),
        (" speedup <= 97 % ", Threshold("speedup", "<=", 0.97)),
        ("speedup>=97%", Threshold("speedup", ">=", 0.97)),
        ("acceptance_rate_after>1e-1", Threshold("acceptance_rate_after", ">", 0.1)),
        ("sd_tokens_per_second_after<250", Threshold("sd_tokens_per_second_after", "<", 250)),
    ],
)
def test_what_can_be_written(text: str, expected: Threshold) -> None:
    assert parse([text]) == (expected,)


@pytest.mark.parametrize("name", QUANTITIES)
def test_every_name_is_a_quantity(name: str) -> None:
    whole = found()
    row = whole.contrasts[0].differences[0]
    for threshold in parse([f"{name}<1", f"{name}{AFTER}<1"]):
        assert threshold.estimate(row).value is not None
    assert parse([f"{name}{AFTER}<1"])[0].estimate(row) == row.quantity(name).after


@pytest.mark.parametrize(
    ("text", "told", "hinted"),
    [
        ("speedup", "not NAME < NUMBER", "speedup<0.97"),
        ("", "not NAME < NUMBER", "speedup<0.97"),
        ("speedup=1", "not NAME < NUMBER", "<= > >="),
        ("speedup<", "not NAME < NUMBER", "speedup<0.97"),
        ("1<speedup", "there is no '1'", "names: speedup"),
        ("0.97>speedup", "not NAME < NUMBER", "speedup<0.97"),
        ("sped<0.97", "there is no 'sped'", "acceptance_length, acceptance_rate: B over A"),
        ("tokens_per_second<0.97", "there is no 'tokens_per_second'", "sd_tokens_per_second"),
        ("speedup<fast", "'fast' is not a number", "speedup<0.97"),
        ("speedup<nan", "'nan' is not a number", "speedup<0.97"),
        ("speedup<inf", "'inf' is not a number", "speedup<0.97"),
        ("acceptance_length<-0.1", "can never hold", "below 1 is a loss"),
    ],
)
def test_what_can_not_be_written(text: str, told: str, hinted: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(["speedup<1", text])
    assert told in refused.value.message and repr(text) in refused.value.message
    assert hinted in refused.value.hint


def test_the_point_value_decides() -> None:
    slower = found(slow_sd=1 / 0.94)
    (told,) = crossed("speedup<0.97", slower)
    assert told.startswith("all prompts, K = 2: speedup 0.94 < 0.97 [0.9")
    assert crossed("speedup<0.90", slower) == []
    assert crossed("speedup>0.90", slower) and not crossed("speedup>=0.97", slower)
    assert crossed("sd_tokens_per_second<97%", slower) and not crossed("ar_tokens_per_second<97%", slower)
    assert crossed("speedup_after<1.45", slower) and not crossed("speedup_after<1.4", slower)


def test_of_equals_nothing_is_crossed_and_bounds_are_what_they_say() -> None:
    same = contrasts([study(noisy())], [study(noisy())])
    for name in QUANTITIES:
        assert not crossed(f"{name}<1", same) and not crossed(f"{name}>1", same)
        assert crossed(f"{name}<=1", same) and crossed(f"{name}>=1", same)
        assert not crossed(f"{name}<1", same, certain=True) and crossed(f"{name}<=1", same, certain=True)


def test_certain_asks_for_the_whole_interval() -> None:
    row = Threshold("speedup", "<", 0.97)
    for interval, holds in (((0.92, 0.96), True), ((0.92, 0.98), False), ((0.92, 0.97), False)):
        estimate = quantities.Estimate(0.94, interval)
        assert row.crossed(estimate, certain=True) is holds and row.crossed(estimate, certain=False)
    above = Threshold("speedup", ">=", 1.0)
    assert above.crossed(quantities.Estimate(1.1, (1.0, 1.2)), certain=True)
    assert not above.crossed(quantities.Estimate(1.1, (0.99, 1.2)), certain=True)


def test_domains_are_judged_on_demand() -> None:
    results = noisy(seed=1)
    slow_chat = [result for result in results if DOMAINS[result.prompt_id] == "code"] + [
        result for result in noisy(slow_sd=1.5, seed=1) if DOMAINS[result.prompt_id] == "chat"
    ]
    one = contrasts([study(noisy(), domains=DOMAINS)], [study(slow_chat, domains=DOMAINS)])
    assert crossed("speedup<0.75", one) == []
    (told,) = crossed("speedup<0.75", one, each_domain=True)
    assert told.startswith("chat, K = 2: speedup 0.67 < 0.75 [")
    assert len(judged(parse(["speedup<0.75"]), one, each_domain=True)) == 3


def test_what_was_not_measured_is_crossed() -> None:
    bare = [result for result in noisy() if result.decoder != "AR"]
    without = contrasts([study(noisy())], [study(bare)])
    assert crossed("speedup<0.5", without) == ["all prompts, K = 2: speedup was not measured (not in B)"]
    assert crossed("speedup>5", without, certain=True), "whatever it asks for"
    assert crossed("sd_tokens_per_second<0.5", without) == []
    failed = contrasts([study(several(2, 8))], [study(several(2), missing=(Missing("code", 8, 0, 6, None),))])
    assert crossed("speedup<0.5", failed) == ["all prompts, K = 8: speedup was not measured (B: 0 of 6 generations)"]
    nothing = [ar("a"), drafted("a", [0] * 6)]
    assert crossed("acceptance_rate<0.5", contrasts([study(nothing)], [study(nothing)])) == [
        "all prompts, K = 2: acceptance_rate has no ratio (it is 0 in A)"
    ]
    one = contrasts([study([ar("a"), drafted("a")])], [study([ar("a"), drafted("a")])])
    assert crossed("speedup<0.5", one) == []
    assert crossed("speedup<0.5", one, certain=True) == [
        "all prompts, K = 2: speedup has no interval to be certain by (1 prompt)"
    ]


def test_on_other_machines_tokens_per_second_are_marked() -> None:
    other = study(noisy(slow_sd=2), machine=MACHINE | {"cpu": "A Xeon"}, machine_class=ELSEWHERE)
    across = contrasts([study(noisy())], [other], allow_machine_mismatch=True)
    (told,) = crossed("sd_tokens_per_second<0.9", across)
    assert told.startswith("all prompts, K = 2 (different machines): sd_tokens_per_second 0.50 < 0.90 [")
    (told,) = crossed("speedup<0.9", across)
    assert told.startswith("all prompts, K = 2: speedup")


def test_several_comparisons_are_told_apart() -> None:
    pairs = [[study(several(2), title=f"{name} {side}", pair=name) for name in ("gpt2", "llama")] for side in "AB"]
    told = crossed("speedup<=1", contrasts(pairs[0], pairs[1]))
    assert [line.split(":")[0] for line in told] == ["gpt2 B, all prompts, K = 2", "llama B, all prompts, K = 2"]


def test_what_is_printed_is_true_as_it_stands() -> None:
    def told(value: float, operator: str, number: float) -> str:
        threshold = Threshold("speedup", operator, number)
        return str(Judged(threshold, "code, K = 4", quantities.Estimate(value, (0.92, 0.96)), True, None))

    assert told(0.94, "<", 0.97) == "code, K = 4: speedup 0.94 < 0.97 [0.92, 0.96]"
    assert told(0.9698, "<", 0.97) == "code, K = 4: speedup 0.9698 < 0.9700 [0.9200, 0.9600]"
    assert told(0.5, "<", 0.975) == "code, K = 4: speedup 0.50 < 0.975 [0.92, 0.96]"
    assert told(1.0, "<=", 1.0) == "code, K = 4: speedup 1.00 <= 1.00 [0.92, 0.96]"


def test_the_failure_says_what_was_crossed_and_what_differs() -> None:
    slower = contrasts([study(noisy())], [study(noisy(slow_sd=1.3, seed=1), config={"max_new_tokens": 96, "seed": 4})])
    check(judged(parse(["speedup<0.5"]), slower), slower)
    with pytest.raises(ThresholdError) as failed:
        check(judged(parse(["speedup<0.97", "acceptance_length<1", "speedup_after<1.3"]), slower), slower)
    assert failed.value.exit_code == 8
    first, second = failed.value.message.split("; ")
    assert first.startswith("--fail-if: all prompts, K = 2: speedup 0.7") and "speedup_after 1.1" in second
    assert failed.value.hint == "what differs from A to B: seed 0 -> 4"
    many = contrasts([study(several(*range(1, 10)))], [study(several(*range(1, 10)))])
    with pytest.raises(ThresholdError, match=r"; and 3 more$") as failed:
        check(judged(parse(["speedup<=1"]), many), many)
    assert failed.value.hint.startswith("nothing recorded differs")


def test_as_plain_json() -> None:
    (record,) = to_dicts(judged(parse(["speedup<97%"]), contrasts([study(noisy())], [study(noisy())])))
    assert record == {
        "threshold": "speedup<0.97", "where": "all prompts, K = 2", "value": 1.0, "ci": (1.0, 1.0), "crossed": False,
        "reason": None,
    }  # fmt: skip
