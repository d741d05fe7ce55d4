"""What a run comes to, as one JSON document."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specprof.profiling.comparison import Comparison
    from specprof.profiling.events import RunStarted

SCHEMA = "specprof.run/1"


def run_document(
    started: RunStarted,
    comparison: Comparison,
    *,
    pair: str,
    caveats: tuple[str, ...],
    version: object,
    events_file: Path | None,
) -> dict[str, Any]:
    """What ``specprof run --json`` prints.

    Args:
        version: of the specprof that measured.
        events_file: where the events are kept.
    """
    return {
        "schema": SCHEMA,
        "specprof_version": version,
        "run_id": started.run_id,
        "pair": pair,
        "caveats": list(caveats),
        "engine": started.config.get("engine_used", "eager"),
        **comparison.to_dict(),
        "config": started.config,
        "machine": started.machine,
        "events_file": None if events_file is None else str(events_file),
    }


def saved_run_document(path: Path, *, kept: bool = True) -> dict[str, Any]:
    """The same of a run's file, as far as the run came; NaN and infinity, which JSON lacks, are null.

    Args:
        kept: False: the file won't be there for the reader.

    Raises:
        UsageError: the file is not a run, or is damaged.
        ResourceError: it can't be read.
    """
    from specprof.experiments.saved_runs import read_run
    from specprof.reports.results import finite

    saved = read_run(path)
    document: dict[str, Any] = finite(
        run_document(
            saved.started,
            saved.compared(),
            pair=str(saved.asked.pair.get("name", "")),
            caveats=tuple(saved.asked.caveats),
            version=saved.started.machine.get("specprof"),
            events_file=path if kept else None,
        )
    )
    return document
