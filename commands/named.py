"""What the names on a command line mean: runs and cells of a results directory, files, or other directories."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specprof.commands.narration import LOG
from specprof.errors import UsageError

if TYPE_CHECKING:
    from specprof.experiments.results import Contents
    from specprof.experiments.saved_runs import SavedRun
    from specprof.experiments.study import Study


def studies_of(names: Sequence[str], directory: Path) -> list[Study]:
    """What each name stands for, in the order given, each once.

    Args:
        names: a run or a cell as ``specprof results list`` has it, or its beginning; a run's file; a results
            directory, for the whole of its sweep.
        directory: where runs and cells are looked up.

    Raises:
        UsageError: there is nothing of a name, or several.
    """
    found: dict[tuple[str, ...], list[Study]] = {}
    for name in names:
        source, studies = _named(name, directory)
        found.setdefault(source, studies)
    return [study for studies in found.values() for study in studies]


def newest(directory: Path) -> list[Study]:
    """The run that was made last, or the sweep if that was.

    Raises:
        UsageError: there is neither.
    """
    from specprof.experiments.results import FILE_NAME
    from specprof.experiments.saved_runs import read_run, saved_runs
    from specprof.experiments.study import of_run

    store, runs = directory / FILE_NAME, saved_runs(directory)
    ended = [run for run in runs if run.complete]
    if store.is_file() and (not ended or store.stat().st_mtime > ended[-1].path.stat().st_mtime):
        return _sweep(directory)
    return [of_run(read_run(_last(runs, directory).path))]


def _named(name: str, directory: Path) -> tuple[tuple[str, ...], list[Study]]:
    """Where it comes from, which tells one from another, and what it is."""
    from specprof.commands.results import named
    from specprof.experiments.results import FILE_NAME
    from specprof.experiments.saved_runs import SavedRun, read_run, saved_runs
    from specprof.experiments.study import of_run, of_sweep

    path = Path(name)
    if os.path.isdir(name):
        store = path / FILE_NAME
        path = store if store.is_file() else _last(saved_runs(path), path).path
    if os.path.isfile(path):
        found_there = _sweep(path.parent) if path.name == FILE_NAME else [of_run(read_run(path))]
        return (str(path.resolve()),), found_there
    if os.path.exists(name):
        raise UsageError(f"{name} is neither a file nor a directory", "name a run, its file, or a results directory")
    if os.sep in name or name.endswith(".jsonl"):
        raise UsageError(f"there is no file {name}", "name a run or cell as `specprof results list` has it, or a file")
    contents, found = named(name, directory)
    if isinstance(found, SavedRun):
        return (str(found.path.resolve()),), [of_run(read_run(found.path))]
    key = (found.cell.config_hash, found.cell.machine_class)
    studies = of_sweep(contents, found.cell.config_hash, {found.cell.config_hash}, found.cell.machine_class)
    if not studies:
        raise UsageError(
            f"cell {found.cell.config_hash} is plain decoding, which is shown beside what is compared with it",
            f"name one of those, or the whole sweep: {directory}",
        )
    return key, studies


def _last(runs: Sequence[SavedRun], directory: Path) -> SavedRun:
    """The last that came to its end, of those of a directory, the oldest first; a later one without is told of."""
    for run in reversed(runs):
        if run.complete:
            if run is not runs[-1]:
                LOG.warning("%s was interrupted, or is still going on: this is %s", runs[-1].run_id, run.run_id)
            return run
    if runs:
        hint = f"name one that was interrupted, for instance {runs[-1].run_id}"
    else:
        hint = "make one with `specprof run`, or name the directory that has it (--results-dir)"
    raise UsageError(f"there is no complete run in {directory}", hint)


def _sweep(directory: Path) -> list[Study]:
    from specprof.experiments.results import read_contents
    from specprof.experiments.study import of_sweep

    contents: Contents = read_contents(directory, with_rounds=True)
    for note in contents.notes:
        LOG.warning("%s", note)
    studies = of_sweep(contents, directory.resolve().name)
    if not studies:
        raise UsageError(f"the sweep in {directory} has measured nothing yet", "let `specprof sweep` go on")
    return studies
