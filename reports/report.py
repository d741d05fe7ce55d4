"""What a report says of its studies: the verdict, then the six questions, then what they rest on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from specprof.experiments.study import Study
from specprof.reports import explain, grounds, questions, verdict
from specprof.reports.definitions import DEFINITIONS
from specprof.reports.document import Report, Section
from specprof.reports.figure_data import labels
from specprof.reports.results import finite

SCHEMA = "specprof.report/1"
MOST_DETAILED = 6
"""Studies whose every figure is drawn; of more, the best K of each stands in the first tables."""


def report(
    studies: Sequence[Study],
    *,
    title: str | None = None,
    redact: bool = False,
    compared: Section | None = None,
) -> Report:
    """Everything that is to be said of some studies.

    Args:
        title: instead of what they are called.
        redact: generated text as shapes.
        compared: what they are compared with, after the verdict.
    """
    studies = _told_apart(studies)
    detailed = studies[:MOST_DETAILED]
    sections = [
        questions.why(detailed),
        *filter(None, (compared,)),
        questions.speed(studies, detailed),
        questions.time(detailed),
        questions.lengths(detailed),
        questions.acceptance(detailed, redact=redact),
        questions.output(detailed),
        questions.tokens(detailed, redact=redact),
        questions.device(detailed),
        grounds.missing(studies),
        Section("definitions", "What the words mean", (DEFINITIONS,)),
        grounds.method(detailed),
        grounds.machine(studies),
    ]
    return Report(
        title=title or verdict.title(studies),
        subtitle=verdict.subtitle(studies),
        verdict=verdict.verdict(studies),
        warnings=(*_left_out(studies), *verdict.warnings(studies)),
        sections=tuple(section for section in sections if section.blocks),
        summary=finite(to_dict(studies)),
    )


def _told_apart(studies: Sequence[Study]) -> Sequence[Study]:
    """No two of one title."""
    if len(studies) < 2:
        return studies
    return [dataclasses.replace(study, title=label) for study, label in zip(studies, labels(studies), strict=True)]


def _left_out(studies: Sequence[Study]) -> tuple[str, ...]:
    if len(studies) <= MOST_DETAILED:
        return ()
    return (f"Of {len(studies)} studies the first {MOST_DETAILED} are shown in detail, and all in the first tables.",)


def to_dict(studies: Sequence[Study]) -> dict[str, Any]:
    """The numbers as plain JSON types."""
    studies = _told_apart(studies)
    return {
        "schema": SCHEMA,
        "verdict": verdict.verdict(studies),
        "studies": [
            {
                "name": study.name,
                "title": study.title,
                "pair": study.pair,
                "drafter": study.drafter,
                "temperature": study.temperature,
                "domains": list(study.domains),
                "best_measured_k": study.best_k,
                "explanation": explain.sentences(study.headline, measured=study.speedups) if study.headline else [],
                "by_k": {
                    str(k): comparison.to_dict() | {"explain": explain.to_dict(comparison)}
                    for k, comparison in study.comparisons.items()
                },
                "missing": [dataclasses.asdict(missing) for missing in study.missing],
                "cost_curve": None if study.curve is None else study.curve.to_dict(),
                "caveats": list(study.caveats),
                "machine_class": study.machine_class,
                "machine": dict(study.machine),
                "models": dict(study.models),
                "commands": list(study.commands),
            }
            for study in studies
        ],
    }
