"""What the keys do, what the signs mean, what the panels show."""

from __future__ import annotations

from textual.content import Content

from specprof.tui.lines import FANCY
from specprof.tui.page import MUTED, VERDICT_SIGNS, VERDICT_STYLES, columns, heading, lines, page, plain
from specprof.tui.rounds import TokenVerdict

KEYS: tuple[tuple[str, tuple[tuple[tuple[str, ...], str], ...]], ...] = (
    (
        "Going on and stopping",
        (
            (("space",), "pause, go on; when all is decoded: once more"),
            (("s",), "step: draft, verification and decision of one round, one after the other"),
            (("n",), "leave this prompt for the next"),
            (("m",), "choose something else to run"),
            (("q",), "quit; what is finished is kept"),
        ),
    ),
    (
        "Changing what is run",
        (
            (("+", "-"), "draft more or fewer tokens, from the next round on; K 0 and auto are chosen with m"),
            (("]", "["), "a higher or lower temperature, from the next prompt on"),
            (("r",), "race: both decode the next prompt side by side"),
            ((">", "<"), "a replay: twice as fast, half as fast"),
        ),
    ),
    (
        "Looking",
        (
            (("b",), "the text of speculative or of plain decoding"),
            (("\N{LEFTWARDS ARROW}", "\N{RIGHTWARDS ARROW}"), "the round before, the round after; a click does it too"),
            (("esc",), "the latest round again"),
            (
                ("f",),
                f"fold rejected tokens to their number, {FANCY.rejected[0]}+3{FANCY.rejected[1]}, or show them again",
            ),
            (("d",), "details: everything of this round"),
            (("e",), "explain: why it is fast or slow, what to try"),
            (("?",), "this page"),
        ),
    ),
    (
        "Keeping",
        (
            (("w",), "write a report of this run (HTML and Markdown)"),
            (("y",), "copy the round as JSON"),
            (("x",), "a screenshot, as SVG"),
            (("t",), "the next theme: dark, light, the terminal's own colours"),
        ),
    ),
)
"""Groups of keys as they are shown, with what they do."""

_VERDICTS: tuple[tuple[TokenVerdict, str], ...] = (
    ("accepted", "the target agreed: it is part of the text"),
    ("rejected", "it is not part of the text"),
    ("not judged", "behind a rejected one: thrown away unread"),
)

_IN_THE_TEXT = (
    ("".join(FANCY.rejected), "around what the draft proposed and the text did not go on with; struck, where it was"),
    (FANCY.unjudged, "from here on the draft was not judged any more"),
    (FANCY.corrected, "the corrected token: the target's, in the place of the first rejected one"),
    (FANCY.bonus, "the bonus token: all were accepted, the same pass gives one more"),
    (FANCY.newline, "the end of a line; other characters that can't be seen are spelled out, as \\u{200b}"),
    (FANCY.selected, "the round that is looked at"),
)

_PANELS = (
    ("text", "What is generated, token by token. What was rejected stands where it was rejected."),
    ("round", "The tokens of one round, how probable the draft and the target find each, and what became of it."),
    (
        "acceptance",
        "How many drafted tokens are accepted: of all, by position in the draft, and in the latest rounds.",
    ),
    ("phases", "Where a round's time goes, in the latest 50 rounds and in the whole run."),
    ("speed", "Tokens per second of both, the speedup with its 95 % interval, and what acceptance and costs predict."),
    ("device", "Memory, load and power of what it runs on; a dash where there is no telling."),
)

_WORDS = (
    ("draft, target", "The small model that proposes, and the large one whose text it has to be."),
    ("plain decoding (AR)", "The target alone, one token a pass: what speculation (SD) is compared with."),
    ("round", "One draft and one pass of the target that verifies all of it."),
    ("K", "Tokens drafted per round."),
    ("ratio", "min(1, target / draft): how probable it is that a drafted token is accepted."),
    ("u", "A random number between 0 and 1; below the ratio, the token is accepted."),
    ("acceptance rate", "Accepted over drafted tokens, all complete rounds pooled."),
    ("tokens per round", "1 + accepted / rounds: the corrected or bonus token is counted."),
    (
        "alpha",
        "How alike the two models are: the mean of what their probabilities share; when greedy, of the matches.",
    ),
    (
        "draft, verify, sample, overhead",
        "The phases: proposing; the target's pass; judging and choosing the next token; all the rest of a round.",
    ),
    (
        "speedup",
        "Seconds per token of plain decoding over those of speculation, on the same prompts, without the prefill.",
    ),
    (
        "interval",
        "95 %, by resampling prompts; it needs 5 of them. Faster or slower is said only if it does not hold 1.",
    ),
    (
        "interactive",
        "Paused, stepped through, raced or changed on the way: such a text is kept. The speedup, the prediction and "
        "the best K are of texts that nobody interfered with; acceptance, times and tokens per second are of all "
        "rounds on the screen.",
    ),
    ("dropped", "Too fast for the screen. The file misses nothing."),
)


def help_page(width: int) -> Content:
    """All of it, in so many cells."""
    return page((*(_keys(title, keys, width) for title, keys in KEYS), _signs(width), _panels(), _words()))


def _keys(title: str, keys: tuple[tuple[tuple[str, ...], str], ...], width: int) -> Content:
    rows = [(plain(" ".join(shown).rjust(7), "bold"), words) for shown, words in keys]
    return lines(heading(title), columns(("", ""), rows, width=width))


def _signs(width: int) -> Content:
    verdicts = [
        (plain(f"{VERDICT_SIGNS[verdict]} {verdict}", VERDICT_STYLES[verdict]), words) for verdict, words in _VERDICTS
    ]
    in_the_text = [(plain(sign.rjust(2), "bold"), words) for sign, words in _IN_THE_TEXT]
    return lines(
        heading("Signs and colours"),
        columns(("", ""), verdicts, width=width),
        plain("in the text:", MUTED),
        columns(("", ""), in_the_text, width=width),
        plain("A dash stands for what is not known, never for nothing.", MUTED),
    )


def _panels() -> Content:
    return lines(heading("Panels"), *(_defined(name, words) for name, words in _PANELS))


def _words() -> Content:
    return lines(heading("Words"), *(_defined(name, words) for name, words in _WORDS))


def _defined(name: str, words: str) -> Content:
    return Content.assemble((name, "bold"), "  ", words)
