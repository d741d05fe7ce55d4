"""The table answers the six questions, at any width, with and without colour, and prints data as data."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.cells import cell_len

from specprof.profiling.comparison import Comparison, compare
from specprof.profiling.events import Round
from specprof.profiling.metrics import GenerationResult
from specprof.profiling.speedup import Speedup
from specprof.reports.tables import plain, render, to_text
from test_comparison import ar, distinct, sd, varied
from test_metrics import make_round

ESCAPE = "\x1b"


def both(**changes: Any) -> Comparison:
    """AR 12 ms per token; SD 16 ms per round of two tokens: 1.50x."""
    domains = {f"code_{number}": "code" for number in range(5)} | {"chat_0": "chat"}
    results = [r for p in domains for r in (ar(p), sd(p))]
    return dataclasses.replace(compare(results, temperature=0, domains=domains), **changes)


def slow() -> Comparison:
    rounds = [make_round(2, 0, draft_seconds=0.030, verify_seconds=0.010)] * 6
    return compare([r for p in "abcde" for r in (ar(p), distinct(rounds, "SD-K2", 0, p))], temperature=0)


def text(comparison: Comparison, *, width: int = 80, color: bool = False, ascii: bool = False, **names: str) -> str:
    return to_text(render(comparison, **({"title": "tiny_dev"} | names)), width=width, color=color, ascii=ascii)


def test_whole_table() -> None:
    assert text(both(), subtitle="cpu, float32") == (
        "tiny_dev\n"
        "cpu, float32\n"
        "────────────────────────────────────────────────────────────────────────────────\n"
        "Speed       1.50x decode, faster   [1.50, 1.50]\n"
        "            1.32x end to end, prefill included   [1.32, 1.32]\n"
        "            6 prompts, 1 repetition, greedy; 95 % interval over prompts\n"
        "            A round costs 1.60 target passes (drafting 0.40, verifying 1.10,\n"
        "            sampling and overhead 0.10) and yields 2.00 tokens.\n"
        "\n"
        "Acceptance  2.00 tokens per round = 1.00 of 2 drafted + 1 corrected or bonus\n"
        "            50 % of drafted tokens accepted, alpha 0.50\n"
        "            position        1    2\n"
        "            accepted    100 %  0 %\n"
        "            if reached  100 %  0 %\n"
        "            18 rounds\n"
        "\n"
        "Domains           prompts  per round  accepted  speedup  95 % interval\n"
        "            code        5       2.00      50 %    1.50x  [1.50, 1.50]\n"
        "            chat        1       2.00      50 %    1.50x  -\n"
        "\n"
        "Time        ms/token      AR                        SD-K2\n"
        "            draft          -     -                   2.00  25 % ███▎\n"
        "            verify     10.00  83 % ███████████████   5.50  69 % ████████▊\n"
        "            sample      1.00   8 % █▌                0.25   3 % ▍\n"
        "            overhead    1.00   8 % █▌                0.25   3 % ▍\n"
        "            total      12.00                         8.00\n"
        "\n"
        "Latency                             AR  SD-K2\n"
        "            tokens/s, decode      83.3  125.0\n"
        "            tokens/s, end to end  71.4   94.6\n"
        "            first token, ms       26.0   26.0\n"
        "            per token after, ms   12.0   8.00\n"
        "            tokens per round      1.00   2.00\n"
        "            round p50, ms         12.0   16.0\n"
        "            round p95, ms         12.0   16.0\n"
        "            round p99, ms         12.0   16.0\n"
        "            peak memory, MB          3      3\n"
        "\n"
        "Cost model  one target pass  10.0 ms; in such passes:\n"
        "            a drafted token  c = 0.200\n"
        "            verifying 2      v = 1.100\n"
        "            the rest         o = 0.100   (plain decoding: 0.200)\n"
        "            predicted        1.50x over this run's baseline, measured 1.50x\n"
        "                             1.25x over bare target passes\n"
        "            break-even       1.33 tokens per round (here 2.00)\n"
        "                             1.60 over bare target passes\n"
        "                             alpha 0.42 (here 0.50)\n"
        "            best K up to 2   1, predicted 1.78x from this run's costs\n"
        "\n"
        "Output      6 of 6 prompts token-identical to plain decoding\n"
        "\n"
        "Warnings    6 prompts only: more would make the interval narrower, and stand for\n"
        "            more kinds of text.\n"
    )


def test_narrative_order() -> None:
    labels = re.findall(r"^(\w[\w ]*?)(?: {2,}|$)", text(both()), flags=re.M)
    assert labels == [
        "tiny_dev",
        "Speed",
        "Acceptance",
        "Domains",
        "Time",
        "Latency",
        "Cost model",
        "Output",
        "Warnings",
    ]


def adaptive() -> Comparison:
    return compare([r for p in "abc" for r in (ar(p), distinct(varied(), "SD-Kauto", 0, p))], temperature=0)


RUNS: dict[str, Callable[[], Comparison]] = {
    "both": both,
    "slow": slow,
    "adaptive": adaptive,
    "baseline only": lambda: compare([ar("a")], temperature=0),
    "speculative only": lambda: compare([sd("a")], temperature=1),
    "nothing": lambda: compare([], temperature=0),
}


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("ascii", [False, True])
@pytest.mark.parametrize("run", RUNS)
def test_every_line_fits(run: str, width: int, ascii: bool) -> None:
    printed = text(RUNS[run](), width=width, ascii=ascii)
    assert max(cell_len(line) for line in printed.splitlines()) <= width
    assert ESCAPE not in printed
    assert "None" not in printed and "nan" not in printed
    assert printed.isascii() or not ascii
    assert not any(line.endswith(" ") for line in printed.splitlines())


def test_nothing_is_lost_at_80_columns() -> None:
    wide, narrow = text(both(), width=120), text(both(), width=80)
    numbers = re.compile(r"\d+\.\d+x?")
    assert numbers.findall(wide) == numbers.findall(narrow)
    assert "…" not in narrow


def test_colour_only_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        monkeypatch.setenv(name, value)
    colored = text(both(), color=True)
    assert ESCAPE in colored
    stripped = re.sub(r"\x1b\[[0-9;]*m", "", colored)
    assert [line.rstrip() for line in stripped.splitlines()] == text(both()).splitlines()


def test_piped_text_stays_plain_where_colour_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, "1")
    assert ESCAPE not in text(both())


def test_a_slowdown_says_so_and_why() -> None:
    printed = " ".join(text(slow()).split())
    assert "0.28x decode, slower" in printed
    assert "The largest loss is drafting: 1.50 of a target pass per token" in printed
    assert "out of reach even if everything were accepted" in printed
    assert "none: plain decoding is fastest" in printed


@pytest.mark.parametrize(
    ("speedup", "headline"),
    [
        (
            Speedup(1.02, (0.97, 1.06), "not distinguishable", 12),
            "1.02x decode, not distinguishable from 1.00x   [0.97, 1.06]",
        ),
        (Speedup(0.9, (0.8, 0.95), "slower", 12), "0.90x decode, slower   [0.80, 0.95]"),
        (Speedup(1.2, None, None, 1), "1.20x decode, too few prompts for a verdict"),
        (Speedup(1.2, None, None, 4), "1.20x decode, too few prompts for a verdict"),
        (Speedup(None, None, None, 0), "- no prompt was decoded by both arms"),
    ],
)
def test_headlines(speedup: Speedup, headline: str) -> None:
    e2e = {} if speedup.value else {"speedup_e2e": speedup}
    printed = text(both(speedup_decode=speedup, **e2e))
    line = next(line for line in printed.splitlines() if line.startswith("Speed"))
    assert line == f"Speed       {headline}"


def test_texts_of_a_single_token() -> None:
    """They have a speed end to end, and none of decoding, of which there was nothing."""
    lines = text(compare([ar("a", tokens=0), sd("a", accepted=())], temperature=0), width=120).splitlines()
    lines = [line.strip() for line in lines[next(i for i, line in enumerate(lines) if line.startswith("Speed")) :]]
    assert lines[0] == "Speed       - no prompt was decoded by both arms beyond the first token, which is the prefill's"
    assert "end to end, prefill included" in lines[1] and lines[2].startswith("1 prompt, ")


def test_missing_numbers_are_dashes() -> None:
    nothing_drafted = distinct([make_round(0, 0)] * 4, "SD-K2", 0, "a")
    printed = text(compare([ar("a", tokens=0), nothing_drafted], temperature=0))
    assert "Acceptance  - no complete round with a draft" in printed
    assert re.search(r"round p50, ms +- +17\.0", printed)
    unmeasured = dataclasses.replace(ar("a"), peak_memory_mb=0.0)
    assert re.search(r"peak memory, MB +-$", text(compare([unmeasured], temperature=0)), flags=re.M)


def test_one_arm_alone() -> None:
    assert "AR only: the speculative arm was not run" in text(compare([ar("a")], temperature=0), width=100)
    assert "SD-K2 only: the autoregressive arm was not run" in text(compare([sd("a")], temperature=0), width=100)
    assert "Output" not in text(compare([ar("a")], temperature=0))


def test_output_that_differs() -> None:
    def broken(prompt_id: str) -> GenerationResult:
        return dataclasses.replace(sd(prompt_id), generated_ids=[11, 0, 1, 777, 3, 4, 5])

    printed = text(compare([r for p in "abcde" for r in (ar(p), broken(p))], temperature=0), width=100)
    assert "0 of 5 prompts token-identical to plain decoding" in printed
    assert "first difference: a at token 4, b at token 4, c at token 4, and 2 more" in printed
    sampled = text(compare([ar("a"), sd("a")], temperature=0.7))
    assert "not compared: sampling keeps the target's distribution" in sampled


def test_data_is_not_markup_and_carries_no_control_sequences() -> None:
    nasty = "[red]m[/red] :smile: \x1b[31m\x9b31m\r\n\u202etxt"
    results = [ar("a"), sd("a"), ar("b"), dataclasses.replace(sd("b"), generated_ids=[1])]
    renamed = [dataclasses.replace(r, prompt_id=f"{nasty}{r.prompt_id}") for r in results]
    comparison = compare(renamed, temperature=0, domains={r.prompt_id: nasty for r in renamed})
    for color in (False, True):
        printed = text(comparison, width=200, color=color, title=nasty, subtitle=nasty)
        assert printed.count("[red]m[/red] :smile:") == 4  # title, subtitle, domain, first difference
        assert "\x1b[31m" not in printed.replace("\x1b[1;31m", "")
        assert not re.search("[\x9b\r\u202e]", printed)
    assert plain("a\tb\x07") == "a\ufffdb\ufffd"
    assert plain("naïve 日本 🙂") == "naïve 日本 🙂"


def test_long_drafts_wrap_into_blocks() -> None:
    rounds = [make_round(11, n) for n in range(12)]
    printed = text(compare([distinct(rounds, "SD-K11", 0, "a")], temperature=0))
    heads = re.findall(r"position +([\d ]+)$", printed, flags=re.M)
    assert [head.split() for head in heads] == [[str(n) for n in range(1, 9)], ["9", "10", "11"]]


def test_drafts_of_different_lengths() -> None:
    printed = text(adaptive())
    assert "drafted per round: 0 in 12 %, 1 in 62 %, 3 in 25 %" in printed
    # 11 tokens in 7 rounds that drafted, and in 8 rounds
    assert "1.00 of 1.57 drafted" in printed and "verifying 1.38" in printed
    found = r"break-even +[\d.]+ tokens per round \(here 1.88\)\n +1.45 over bare target passes\n +best K up to 3 +1,"
    assert re.search(found, printed)
    assert "drafted per round" not in text(both()), "one length says nothing"


def test_bars_are_in_proportion() -> None:
    printed = text(both(), width=120, ascii=True)
    bars = {
        line.split()[0]: [len(bar) for bar in re.findall("#+", line)] for line in printed.splitlines() if "#" in line
    }
    (ar_verify, sd_verify), (sd_draft,) = bars["verify"], bars["draft"]
    assert sd_verify == pytest.approx(ar_verify * 0.55, abs=1)
    assert sd_draft == pytest.approx(ar_verify * 0.20, abs=1)


def test_a_phase_that_took_time_shows() -> None:
    tiny = [make_round(2, 1, sample_seconds=1e-7)] * 3
    printed = text(compare([distinct(tiny, "SD-K2", 0, "a")], temperature=0), ascii=True)
    assert re.search(r"sample .*#$", printed, flags=re.M)


def test_rounds_are_needed_only_for_phases() -> None:
    assert isinstance(make_round(1, 1), Round)
    bare = [dataclasses.replace(r, rounds=()) for p in "abcde" for r in (ar(p), sd(p))]
    printed = text(compare(bare, temperature=0))
    assert "1.50x decode, faster" in printed
