"""Values that nobody means, and some that somebody could."""

from __future__ import annotations

import random

SCRIPT = "<script>alert('pwned')</script>"
TITLE = "\x1b]0;pwned\x07"
RED = "\x1b[31mpwned"
PAYLOADS = (SCRIPT, TITLE, RED, "<img src=x onerror=alert(1)>", "\x9b2Jpwned", "\u202epwned", "[bold]pwned[/bold]")
"""What must never come out as it went in."""

NUMBERS = (
    "0", "-0", "1", "2", "3", "7", "-1", "-2147483649", "1.5", "1e3", "1e400", "-1e400", "nan", "-nan", "inf",
    "-inf", "1e-320", "1e308", "0x10", "1_000", "١٢", "½", "2147483648", "9223372036854775807",
    "9223372036854775808", "18446744073709551616", "-9223372036854775809", "1" * 60, "1" * 5000, "0.1", "0.999999999",
    "1.0000001", ".5", "5.", "+3", " 3", "3 ", "1,2", "1;2", "", "None", "null", "true",
)  # fmt: skip

WORDS = (
    "", " ", "-", "--", "---", "-x", "--json", "=", "a=b", ".", "..", "/", "//", "~", "~nobody", "*", "?", "$HOME",
    "`id`", "$(id)", ";id", "|", "&&", "%s", "%(x)s", "{}", "{0}", "{x.__class__}", "\\", "\\n", "\n", "\t", "\r",
    "'", '"', "a b", " a", "a ", "é", "日本語", "🙂", "e\u0301", "\u202eabc", "\u200b", "\ufeff", "\ud800", "\udcff",
    "\x00", "a\x00b", "\x07", "\x1b[31mpwned\x1b[0m", TITLE, "\x9b31m", SCRIPT, "[bold]pwned[/bold]", "[/]", "![x](y)",
    "A" * 300, "A" * 5000, "../" * 40, "/dev/null", "/dev/full", "/dev/zero/x", "/proc/self/mem/x", "NUL", "con",
    "http://127.0.0.1:9/x", "file:///etc/passwd", "tiny_dev", "tiny_dev/target", "tiny_dev/../tiny_dev/target",
    "a/b/c", "a--b", "-a/b", "a/b.git", "gpt2", "auto", "off", "none", "all",
)  # fmt: skip


def number(draw: random.Random) -> str:
    return draw.choice(NUMBERS)


def small(draw: random.Random) -> str:
    return str(draw.randint(0, 5))


def word(draw: random.Random) -> str:
    return draw.choice(WORDS)


def anything(draw: random.Random) -> str:
    match draw.randrange(4):
        case 0:
            return number(draw)
        case 1 | 2:
            return word(draw)
        case _:
            return "".join(chr(_code(draw)) for _ in range(draw.randint(1, 12)))


def _code(draw: random.Random) -> int:
    ranges = ((0, 0x20), (0x20, 0x7F), (0x20, 0x7F), (0x7F, 0xA0), (0xA0, 0x250), (0x2000, 0x2070), (0x1F300, 0x1F600))
    return draw.randrange(*draw.choice(ranges))


def for_process(text: str) -> bool:
    """Whether an operating system takes it as an argument, and Python reads the same back."""
    return "\x00" not in text and not any(0xD800 <= ord(character) < 0xE000 for character in text)
