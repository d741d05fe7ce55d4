"""The pages of the documentation, taken apart: blocks of code, command lines, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")),
)

PROGRAMS = {
    "specprof", "python", "make", "jq", "pip", "pipx", "uv", "gh", "git", "bash", "sh", "echo", "cat", "head", "mkdir",
    "ray", "srun", "sbatch", "docker", "hf", "ollama", "curl", "export",
}  # fmt: skip
"""First words that make a line of a block a command."""


@dataclass(frozen=True, slots=True)
class Block:
    """Lines of code as they stand on a page, from the first's number on."""

    page: str
    number: int
    language: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


@dataclass(frozen=True, slots=True)
class Command:
    """A command line of a page, and what a shell makes of it: pipelines, each of the words of its programs."""

    page: str
    number: int
    text: str
    pipelines: tuple[tuple[tuple[str, ...], ...], ...]
    block: Block

    @property
    def programs(self) -> list[tuple[str, ...]]:
        return [words for pipeline in self.pipelines for words in pipeline]

    def __str__(self) -> str:
        return f"{self.page}:{self.number}: {self.text}"


def blocks(page: str) -> Iterator[Block]:
    """Fenced and indented ones; an indented block has no language."""
    found: Block | None = None
    lines: list[str] = []
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        fence = re.match(r"```(\w*)$", line)
        if found is not None and found.language and not fence:
            lines.append(line)
        elif found is not None and not found.language and (line.startswith("    ") or not line):
            lines.append(line[4:])
        else:
            if found is not None:
                yield replace(found, lines=tuple(lines))
            closes, found, lines = found is not None and bool(found.language), None, []
            if fence and not closes:
                found = Block(page, number + 1, fence[1] or "text", ())
            elif line.startswith("    "):
                found, lines = Block(page, number, "", ()), [line[4:]]
    if found is not None:
        yield replace(found, lines=tuple(lines))


def commands(page: str) -> Iterator[Command]:
    """The command lines of a page, in order; a line that goes on after a backslash is one."""
    for block in blocks(page):
        if block.language not in ("", "sh", "bash", "console", "yaml"):
            continue
        pending, begun = "", 0
        for number, line in enumerate(block.lines, block.number):
            begun = begun if pending else number
            pending += re.sub(r"^(- )?run: ", "", line.strip()) if block.language == "yaml" else line
            if pending.endswith("\\"):
                pending = pending[:-1]
                continue
            text, pending = pending.strip(), ""
            pipelines = _parsed(text)
            if pipelines:
                yield Command(page, begun, text, pipelines, block)


def _parsed(text: str) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Nothing unless it begins with a program's name, after settings of the environment."""
    first = next((word for word in text.split() if not re.match(r"[A-Za-z_]+=", word)), "")
    if first.rpartition("/")[2] not in PROGRAMS and not first.startswith(("benchmarks/", "scripts/")):
        return ()
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    try:
        tokens = list(lexer)
    except ValueError:
        return ()
    pipelines: list[list[list[str]]] = [[[]]]
    for token in tokens:
        if token in ("&&", ";", "&"):
            pipelines.append([[]])
        elif token == "|":
            pipelines[-1].append([])
        elif not (not pipelines[-1][-1] and re.match(r"[A-Za-z_]+=", token)):
            pipelines[-1][-1].append(token)
    return tuple(tuple(map(tuple, pipeline)) for pipeline in pipelines if pipeline[0])


def anchors(page: Path) -> set[str]:
    """What ``#...`` may name on a page, as GitHub makes it of headings."""
    found: set[str] = set()
    fenced = False
    for line in page.read_text(encoding="utf-8").splitlines():
        fenced ^= line.startswith("```")
        if not fenced and (heading := re.match(r"#+ (.*)", line)):
            words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading[1])
            name = re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
            found.add(name if name not in found else f"{name}-1")
    return found


def links(page: str) -> Iterator[str]:
    """Targets of links and images outside code."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    text = re.sub(r"`[^`\n]*`", "", text)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)
