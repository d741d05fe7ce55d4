"""``specprof results``: list, show, remove and export what was measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specprof.commands import completing, narration, options
from specprof.commands.completing import one_of
from specprof.commands.exit_codes import USAGE
from specprof.commands.help import CHOICE, RESULTS, Command, Group
from specprof.commands.narration import LOG, wants_color
from specprof.commands.options import option
from specprof.commands.output import print_table, write_file
from specprof.commands.run_document import saved_run_document
from specprof.data.prompts import DOMAINS
from specprof.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from specprof.experiments.results import Contents, ResultStore
    from specprof.experiments.saved_runs import SavedRun
    from specprof.experiments.summary import CellState

SCHEMA = "specprof.results/1"
CELL_SCHEMA = "specprof.cell/1"

_CANDIDATES = 6
_LIST_WIDTH = 140
_PIPE_WIDTH = 400
"""Columns where nobody's window ends: no cell of a list is cut for want of room."""

results = typer.Typer(
    name="results",
    cls=Group,
    help="""List, show, remove and export what was measured.

    Examples:
        specprof results list
        specprof results show 20261121
    """,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@results.callback(invoke_without_command=True)
def group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(USAGE)


@results.command("list", cls=Command)
def list_(
    pair: Annotated[
        str | None,
        option(CHOICE, "--pair", metavar="PAIR", offers=completing.pair, help="Only cells and runs of this pair."),
    ] = None,
    domain: Annotated[
        str | None,
        option(CHOICE, "--domain", metavar="NAME", offers=one_of(DOMAINS), help="Only cells of this domain."),
    ] = None,
    as_json: options.Json = False,
    results_dir: options.ResultsDir = Path("results"),
    color: options.Color = "auto",
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    debug: options.Debug = False,
) -> None:
    """List the cells of sweeps and the runs, and how fast they were.

    Examples:
        # everything in ./results
        specprof results list

        # of one pair
        specprof results list --pair tiny_dev

        # cells that failed, for a script
        specprof results list --json | jq '.cells[] | select(.state == "failed")'
    """
    narration.set_up(detailed=False, quiet=quiet, as_json=log_json)
    wants_color(color, sys.stdout)
    from specprof.reports import results as report

    contents, cells, runs = _read(results_dir)
    cells = [s for s in cells if pair in (None, s.config.model_pair_name) and domain in (None, s.config.prompt_domain)]
    runs = [run for run in runs if domain is None and pair in (None, run.pair)]
    if as_json:
        _print_json(
            {
                "schema": SCHEMA,
                "cells": [report.cell_to_dict(state) for state in cells],
                "runs": [report.run_to_dict(run) for run in runs],
                "notes": contents.notes,
            }
        )
        return
    _warn(contents)
    if cells or runs:
        print_table(report.render(cells, runs), color, piped=_PIPE_WIDTH, widest=_LIST_WIDTH)
    elif pair is None and domain is None:
        LOG.info("nothing in %s has been measured yet", results_dir)
    else:
        LOG.info("nothing in %s is of that pair and domain", results_dir)


@results.command("show", cls=Command)
def show(
    name: Annotated[
        str,
        typer.Argument(metavar="CELL|RUN", autocompletion=completing.run, help="As listed; its beginning is enough."),
    ],
    as_json: options.Json = False,
    results_dir: options.ResultsDir = Path("results"),
    color: options.Color = "auto",
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    debug: options.Debug = False,
) -> None:
    """Show a cell beside its baseline, or a run, in full.

    A cell measured on machines of several classes is named CELL@CLASS.

    Examples:
        # a run, or a cell of a sweep, by the beginning of its name
        specprof results show 3f0c

        # the document that `specprof run --json` printed
        specprof results show 20261121 --json
    """
    narration.set_up(detailed=False, quiet=quiet, as_json=log_json)
    wants_color(color, sys.stdout)
    from specprof.experiments.summary import CellState

    contents, found = named(name, results_dir)
    if isinstance(found, CellState):
        _show_cell(contents, found, as_json=as_json, color=color)
    else:
        _show_run(found, as_json=as_json, color=color)


@results.command("rm", cls=Command)
def rm(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="CELL|RUN", autocompletion=completing.run, help="As listed; the beginning is enough."),
    ] = None,
    failed: Annotated[bool, option(CHOICE, "--failed", help="All cells that failed or were skipped.")] = False,
    everything: Annotated[bool, option(CHOICE, "--all", help="All cells and all runs.")] = False,
    yes: Annotated[bool, option(CHOICE, "-y", "--yes", help="Don't ask first.")] = False,
    results_dir: options.ResultsDir = Path("results"),
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    debug: options.Debug = False,
) -> None:
    """Remove cells, with all their generations, and runs.

    Examples:
        # one run, without being asked
        specprof results rm 20261121-101500-7f3c --yes

        # cells that failed, to be tried again by the same sweep
        specprof results rm --failed
    """
    narration.set_up(detailed=False, quiet=quiet, as_json=log_json)
    if bool(names) + failed + everything != 1:
        raise UsageError("name what to remove, in one way", "cells or runs as listed, or --failed, or --all")
    from specprof.experiments.results import FILE_NAME, ResultStore

    _read(results_dir)  # says what is wrong before anything is locked or created
    if not (results_dir / FILE_NAME).is_file():
        _remove(None, results_dir, names or [], failed=failed, everything=everything, yes=yes)
        return
    with ResultStore.open(results_dir) as store:
        _remove(store, results_dir, names or [], failed=failed, everything=everything, yes=yes)


@results.command("export", cls=Command)
def export(
    parquet: Annotated[Path | None, option(RESULTS, "--parquet", metavar="FILE", help="Write a Parquet file.")] = None,
    csv: Annotated[str | None, option(RESULTS, "--csv", metavar="FILE", help="Write a CSV file; - is stdout.")] = None,
    results_dir: options.ResultsDir = Path("results"),
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    debug: options.Debug = False,
) -> None:
    """Write every generation as a row, for pandas and others.

    Controls are included; docs/results.md describes the columns.

    Examples:
        specprof results export --parquet results.parquet
        specprof results export --csv - | head
    """
    narration.set_up(detailed=False, quiet=quiet, as_json=log_json)
    if parquet is None and csv is None:
        raise UsageError("nothing to export to", "give --parquet FILE, --csv FILE or both; --csv - is standard output")
    from specprof.experiments.frame import for_spreadsheets, load_results
    from specprof.experiments.store import check_outputs

    files = [path for path in (parquet, None if csv in (None, "-") else Path(str(csv))) if path is not None]
    check_outputs(files)
    if parquet is not None:
        _check_pyarrow()
    frame = load_results(results_dir)
    if csv == "-":
        for_spreadsheets(frame).to_csv(sys.stdout, index=False, lineterminator="\n")
    elif csv is not None:
        write_file(Path(csv), lambda path: for_spreadsheets(frame).to_csv(path, index=False, lineterminator="\n"))
    if parquet is not None:
        write_file(parquet, lambda path: frame.to_parquet(path, index=False, engine="pyarrow"))
    for path in files:
        LOG.info("%s: %d generations", path, len(frame))


# What there is, and what a name means


def _read(directory: Path, *, with_rounds: bool = False) -> tuple[Contents, list[CellState], list[SavedRun]]:
    """A store, its cells, and the runs beside it.

    Raises:
        UsageError: there is nothing of the kind.
    """
    from specprof.experiments.results import FILE_NAME, Contents, read_contents
    from specprof.experiments.saved_runs import saved_runs
    from specprof.experiments.summary import cell_states

    runs = saved_runs(directory)
    if not (directory / FILE_NAME).exists():
        if not runs:
            raise UsageError(
                f"there are no results in {directory}",
                "run `specprof run` or `specprof sweep`, or name the directory that has them (--results-dir)",
            )
        return Contents(), [], runs
    contents = read_contents(directory, with_rounds=with_rounds)
    return contents, cell_states(contents), runs


def named(name: str, directory: Path) -> tuple[Contents, CellState | SavedRun]:
    """The one cell or run of that name, and what the store beside it holds, rounds included.

    Raises:
        UsageError: none, or several.
    """
    contents, cells, runs = _read(directory, with_rounds=True)
    _warn(contents)
    found, found_runs = _matching(name, cells, runs)
    if len(found) + len(found_runs) > 1:
        raise _ambiguous(name, [*found, *found_runs])
    return contents, found[0] if found else found_runs[0]


def _matching(
    name: str, cells: Sequence[CellState], runs: Sequence[SavedRun]
) -> tuple[list[CellState], list[SavedRun]]:
    """The cells and runs that a name, or its beginning, means; a whole name means nothing else.

    Raises:
        UsageError: none.
    """
    config_hash, _, machine_class = name.partition("@")
    placed = [state for state in cells if state.cell.machine_class.startswith(machine_class)]
    whole = [state for state in placed if state.cell.config_hash == config_hash]
    whole_runs = [run for run in runs if run.run_id == name]
    if whole or whole_runs:
        return whole, whole_runs
    begun = [state for state in placed if name and state.cell.config_hash.startswith(config_hash)]
    begun_runs = [run for run in runs if name and run.run_id.startswith(name)]
    if begun or begun_runs:
        return begun, begun_runs
    raise UsageError(f"there is no cell and no run {name!r}", f"there are: {_some(_names([*cells, *runs]))}")


def _ambiguous(name: str, found: Sequence[CellState | SavedRun]) -> UsageError:
    return UsageError(f"{name!r} fits {len(found)} cells and runs", f"name one: {_some(_names(found))}")


def _name(item: CellState | SavedRun) -> str:
    from specprof.experiments.saved_runs import SavedRun

    if isinstance(item, SavedRun):
        return item.run_id
    return "@".join(filter(None, (item.cell.config_hash, item.cell.machine_class)))


def _names(items: Sequence[CellState | SavedRun]) -> list[str]:
    """What to call each of several: a cell's class is named where its hash alone would not do."""
    whole = [_name(item) for item in items]
    short = [name.partition("@")[0] for name in whole]
    return [part if short.count(part) == 1 else name for part, name in zip(short, whole, strict=True)]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _CANDIDATES
    return ", ".join(names[:_CANDIDATES]) + (f" and {more} more" if more > 0 else "") if names else "none"


# show


def _show_cell(contents: Contents, state: CellState, *, as_json: bool, color: str) -> None:
    from specprof.experiments.summary import compared
    from specprof.reports import results as report

    comparison = compared(contents, state)
    if not as_json:
        print_table(report.render_cell(state, comparison), color)
        return
    machine = contents.machines.get(state.cell.machine_class)
    document = report.cell_to_dict(state) | comparison.to_dict()
    _print_json(
        {"schema": CELL_SCHEMA}
        | document
        | {"models": state.cell.models, "machine": None if machine is None else machine.machine}
    )


def _show_run(run: SavedRun, *, as_json: bool, color: str) -> None:
    from specprof.experiments.saved_runs import read_run
    from specprof.reports import tables

    if as_json:
        _print_json(saved_run_document(run.path))
        return
    saved = read_run(run.path)
    print_table(tables.render(saved.compared(), title=saved.title, subtitle=saved.subtitle), color)


# rm


def _remove(
    store: ResultStore | None, directory: Path, names: Sequence[str], *, failed: bool, everything: bool, yes: bool
) -> None:
    from specprof.experiments.saved_runs import saved_runs
    from specprof.experiments.summary import cell_states, orphaned

    cells = [] if store is None else cell_states(store.contents)
    chosen, runs = _to_remove(cells, saved_runs(directory), names, failed=failed, everything=everything)
    if not chosen and not runs:
        LOG.info("nothing to remove")
        return
    losing = orphaned(cells, chosen)
    if losing:
        LOG.warning("without their baseline these cells lose their speedup: %s", _some(_names(losing)))
    generations = sum(state.num_done for state in chosen)
    what = " and ".join(
        [f"{_count(len(chosen), 'cell')} with {_count(generations, 'generation')}"] * bool(chosen)
        + [_count(len(runs), "run")] * bool(runs)
    )
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"removing {what} asks first, and there is no terminal", "--yes removes without asking")
        if not _agreed(f"remove {what}?"):
            LOG.info("nothing is removed")
            return
    if store is not None and chosen:
        store.remove({(state.cell.config_hash, state.cell.machine_class) for state in chosen})
    for run in runs:
        try:
            run.path.unlink(missing_ok=True)
        except OSError as error:
            raise ResourceError(
                f"removing {run.path} failed: {error.strerror or error}", "check its permissions"
            ) from error
    LOG.info("removed %s", what)


def _agreed(question: str) -> bool:
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _to_remove(
    cells: Sequence[CellState], runs: Sequence[SavedRun], names: Sequence[str], *, failed: bool, everything: bool
) -> tuple[list[CellState], list[SavedRun]]:
    if everything:
        return list(cells), list(runs)
    if failed:
        return [state for state in cells if state.state in ("failed", "skipped")], []
    chosen: dict[str, CellState] = {}
    chosen_runs: dict[str, SavedRun] = {}
    for name in names:
        some, some_runs = _matching(name, cells, runs)
        # One cell, though it may have been measured on several machines.
        if len({state.cell.config_hash for state in some}) + len(some_runs) > 1:
            raise _ambiguous(name, [*some, *some_runs])
        chosen |= {_name(state): state for state in some}
        chosen_runs |= {run.run_id: run for run in some_runs}
    return list(chosen.values()), list(chosen_runs.values())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# Output


def _warn(contents: Contents) -> None:
    for note in contents.notes:
        LOG.warning("%s", note)


def _print_json(document: dict[str, Any]) -> None:
    from specprof.reports.results import finite

    print(json.dumps(finite(document), indent=2))


def _check_pyarrow() -> None:
    try:
        import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise ResourceError("writing Parquet needs pyarrow", "pip install 'specprof[analysis]'") from error
