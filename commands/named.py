"""What the names on a command line mean: runs and cells of a results directory, files, or other directories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specprof.commands.narration import LOG
from specprof.errors import UsageError

if TYPE_CHECKING:
    from specprof.experiments.results import Contents
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
    found: dict[tuple[str, str, str], Study] = {}
    for name in names:
        for study in _named(name, directory):
            found.setdefault((study.name, study.title, study.machine_class), study)
    return list(found.values())


def newest(directory: Path) -> list[Study]:
    """The run that was made last, or the sweep if that was.

    Raises:
        UsageError: there is neither.
    """
    from specprof.experiments.results import FILE_NAME
    from specprof.experiments.saved_runs import read_run, saved_runs
    from specprof.experiments.study import of_run

    runs = [run for run in saved_runs(directory) if run.complete]
    store = directory / FILE_NAME
    if store.is_file() and (not runs or store.stat().st_mtime > runs[-1].path.stat().st_mtime):
        return _sweep(directory)
    if not runs:
        raise UsageError(
            f"there is no complete run in {directory}",
            "make one with `specprof run`, or name the directory that has it (--results-dir)",
        )
    return [of_run(read_run(runs[-1].path))]


def _named(name: str, directory: Path) -> list[Study]:
    from specprof.commands.results import named
    from specprof.experiments.results import FILE_NAME
    from specprof.experiments.saved_runs import SavedRun, read_run
    from specprof.experiments.study import of_run, of_sweep

    path = Path(name)
    if path.is_dir():
        return newest(path) if not (path / FILE_NAME).is_file() else _sweep(path)
    if path.is_file():
        return _sweep(path.parent) if path.name == FILE_NAME else [of_run(read_run(path))]
    contents, found = named(name, directory)
    if isinstance(found, SavedRun):
        return [of_run(read_run(found.path))]
    return of_sweep(contents, found.cell.config_hash, {found.cell.config_hash}, found.cell.machine_class)


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
