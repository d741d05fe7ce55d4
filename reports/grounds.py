"""What the figures rest on: what is missing, how it was measured, on what, and how to repeat it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from specprof.experiments.study import Study
from specprof.profiling.numbers import DASH
from specprof.reports.by_study import each
from specprof.reports.document import Block, Bullets, Cell, Column, Command, Paragraph, Section, Table

_MOST_CELLS = 40
_LONGEST_MESSAGE = 240
"""Characters: some libraries put a page into one error."""


def missing(studies: Sequence[Study]) -> Section:
    rows = []
    for study in studies:
        for cell in study.missing:
            failure = cell.failure
            state = f"{cell.num_done} of {cell.num_expected}" if failure is None else failure.reason
            why = "" if failure is None else f"{_short(failure.message)}{f' ({failure.hint})' if failure.hint else ''}"
            rows.append(
                (
                    Cell(study.title),
                    Cell(cell.domain),
                    Cell("plain" if not cell.k else f"{cell.k}"),
                    Cell(state, "failed" if failure else "doubtful"),
                    Cell(why),
                )
            )
    if not rows:
        return Section("missing", "Failed and skipped", ())
    columns = (
        Column("study", "left"),
        Column("domain", "left"),
        Column("K"),
        Column("", "left"),
        Column("why", "left"),
    )
    left_out = len(rows) - _MOST_CELLS
    caption = f"And {left_out} more: `specprof results list` has all." if left_out > 0 else ""
    return Section("missing", "Failed, skipped and incomplete", (Table(columns, tuple(rows[:_MOST_CELLS]), caption),))


def _short(message: str) -> str:
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}..."


def method(studies: Sequence[Study]) -> Section:
    lines = [
        "Both arms decode every prompt with the same loop and clock; which goes first changes from prompt to prompt, "
        "so that a machine that warms up or slows down does it to both.",
        "Loading, warm-up and prefill are outside decode speed. A prompt's speed is its median over repetitions; a "
        "speedup is total seconds per token over the prompts that both arms decoded.",
        "Rounds cut by the end of a text count for time, not for acceptance.",
        "Headline figures are medians over repetitions, prompt by prompt; phases are means over all rounds; "
        "predictions rest on a survey before the run. On a machine whose speed wavers the three differ somewhat.",
        "Phases are timed inside the round (CUDA events on a GPU); overhead is the rest of the round's wall time, so "
        "that the four sum to it.",
    ]
    return Section("method", "How it was measured", (Bullets(tuple(lines)), *each(studies, _settings)))


_SHOWN_SETTINGS = {
    "max_new_tokens": "new tokens at most",
    "repetitions": "repetitions",
    "warmup": "prompts decoded before measuring",
    "seed": "seed",
    "top_k": "top-k",
    "top_p": "top-p",
    "drafter": "drafter",
    "forward": "forward asked for",
    "engine": "engine asked for",
    "engine_used": "engine",
    "ignore_eos": "end of text ignored",
    "chat_template": "chat template",
}


def _settings(study: Study, suffix: str) -> Iterator[Block]:
    config = study.config
    rows = [(label, _setting(config[key])) for key, label in _SHOWN_SETTINGS.items() if config.get(key) is not None]
    for role in ("target", "draft"):
        model = study.models.get(role)
        if isinstance(model, dict):
            size = model.get("parameters")
            forward = f"{model['forward']} forward" if "forward" in model else None
            facts = [f"{size:,} parameters" if isinstance(size, int) else None, model.get("dtype"), model.get("device")]
            facts.append(forward)
            known = ", ".join(str(fact) for fact in facts if fact is not None)
            rows.append((role, f"{model.get('model', DASH)}{f': {known}' if known else ''}"))
    if rows:
        yield Table((Column("setting", "left"), Column("", "left")), tuple((Cell(a), Cell(b)) for a, b in rows))


def _setting(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


_MACHINE = (
    "cpu", "cores", "memory_bytes", "gpu", "platform", "python", "torch", "torch_threads", "transformers", "specprof",
    "git_commit",
)  # fmt: skip


def machine(studies: Sequence[Study]) -> Section:
    blocks: list[Block] = []
    classes = {study.machine_class: study.machine for study in studies}
    columns = (Column("", "left"), *(Column("machine" if len(classes) == 1 else name, "left") for name in classes))
    rows = tuple(
        (Cell(key.replace("_bytes", "").replace("_", " ")), *(Cell(_fact(key, m.get(key))) for m in classes.values()))
        for key in _MACHINE
    )
    blocks.append(Table(columns, rows))
    commands = list(dict.fromkeys(command for study in studies for command in study.commands))
    if commands:
        blocks.append(Paragraph("To repeat it:"))
        blocks += [Command(command) for command in commands]
    else:
        blocks.append(Paragraph("The command that measured this was not recorded.", "quiet"))
    return Section("machine", "What it ran on, and how to repeat it", tuple(blocks))


def _fact(key: str, value: Any) -> str:
    if value is None:
        return DASH
    if key == "memory_bytes" and isinstance(value, int):
        return f"{value / 2**30:.0f} GiB"
    if isinstance(value, dict):
        known = [
            value.get("name"),
            value.get("driver") and f"driver {value['driver']}",
            value.get("cuda") and f"CUDA {value['cuda']}",
        ]
        return ", ".join(str(part) for part in known if part) or DASH
    return str(value)
