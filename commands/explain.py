"""``specprof explain``: why a run was as fast as it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from specprof.commands import narration, options
from specprof.commands.narration import wants_color
from specprof.commands.output import print_table
from specprof.errors import UsageError


def explain(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[CELL|RUN]", help="As `specprof results list` has it. [default: newest run]"),
    ] = None,
    as_json: options.Json = False,
    results_dir: options.ResultsDir = Path("results"),
    color: options.Color = "auto",
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    debug: options.Debug = False,
) -> None:
    """Say where the time of a run went that its accepted tokens did not have to cost, and what would help most.

    \b
    specprof run --k 4 && specprof explain
    specprof explain 3f0c                     a cell of a sweep, or a run, by the beginning of its name
    specprof explain --json | jq .best_change
    """
    narration.set_up(detailed=False, quiet=quiet, as_json=log_json)
    wants_color(color, sys.stdout)
    from specprof.commands.results import saved_comparison
    from specprof.reports import explain as report

    if name is None:
        name = _newest(results_dir)
    title, comparison = saved_comparison(name, results_dir)
    if as_json:
        print(json.dumps({"schema": report.SCHEMA, "name": name} | report.to_dict(comparison), indent=2))
        return
    print_table(report.render(comparison, title=title), color)


def _newest(results_dir: Path) -> str:
    from specprof.experiments.saved_runs import saved_runs

    runs = [run for run in saved_runs(results_dir) if run.complete]
    if not runs:
        raise UsageError(
            f"there is no complete run in {results_dir}",
            "make one with `specprof run`, or name a cell of a sweep (`specprof results list`)",
        )
    return runs[-1].run_id
