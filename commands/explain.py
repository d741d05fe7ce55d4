"""``specprof explain``: why a run was as fast as it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from specprof.commands import completing, narration, options
from specprof.commands.narration import wants_color
from specprof.commands.output import print_table
from specprof.errors import UsageError


def explain(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            autocompletion=completing.run,
            help="A run or cell as `specprof results list` has it, or a run's file. [default: the newest]",
        ),
    ] = None,
    as_json: options.Json = False,
    results_dir: options.ResultsDir = Path("results"),
    color: options.Color = "auto",
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    debug: options.Debug = False,
) -> None:
    """Say why a run was as fast as it was, and what would help.

    What a round costs beyond what its accepted tokens had to cost, cause by cause.

    Examples:
        # the run just made
        specprof run --k 4 && specprof explain

        # a run, or a cell of a sweep, by the beginning of its name
        specprof explain 3f0c

        # the one change that would help most, for a script
        specprof explain --json | jq .best_change
    """
    narration.set_up(detailed=False, quiet=quiet, as_json=log_json)
    wants_color(color, sys.stdout)
    from specprof.commands.named import newest, studies_of
    from specprof.reports import explain as report

    studies = newest(results_dir) if name is None else studies_of([name], results_dir)
    if len(studies) != 1:
        raise UsageError(
            f"{len(studies)} studies are too many to explain at once",
            "name a cell (`specprof results list`), or see all of them with `specprof report`",
        )
    study = studies[0]
    if study.headline is None:
        why = f" ({'; '.join(study.caveats)})" if study.caveats else ""
        raise UsageError(
            f"nothing was measured in {study.name}{why}", "measure again with `specprof run`, or name another"
        )
    if as_json:
        found = report.to_dict(study.headline, measured=study.speedups)
        print(json.dumps({"schema": report.SCHEMA, "name": study.name, "K": study.best_k} | found, indent=2))
        return
    title = study.title if len(study.comparisons) == 1 else f"{study.title}  K = {study.best_k}"
    print_table(report.render(study.headline, title=title, measured=study.speedups), color)
