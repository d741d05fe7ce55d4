"""``specprof compare``: what became faster or slower from one measurement to another."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from specprof import __version__
from specprof.commands import completing, narration, options
from specprof.commands.narration import LOG, wants_color
from specprof.commands.output import print_table, write_document
from specprof.experiments import thresholds


def compare(
    before: Annotated[
        str,
        typer.Argument(
            metavar="A",
            autocompletion=completing.run,
            help="Before: a run or cell as `specprof results list` has it, or a file.",
        ),
    ],
    after: Annotated[
        str,
        typer.Argument(
            metavar="B", autocompletion=completing.run, help="After: another, or a directory with a whole sweep."
        ),
    ],
    fail_if: options.FailIf = None,
    certain: options.Certain = False,
    each_domain: options.EachDomain = False,
    allow_machine_mismatch: options.AllowMachineMismatch = False,
    as_json: options.Json = False,
    output: options.Output = None,
    results_dir: options.ResultsDir = Path("results"),
    color: options.Color = "auto",
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    debug: options.Debug = False,
) -> None:
    """Say what became faster or slower from A to B, and why.

    On the prompts that both decoded. Ratios are B over A, with 95 % intervals over prompts. A speedup is against the
    plain decoding of the same measurement, so that a machine that was busier one day than another matters little;
    tokens per second have no such guard. Exit code 8, after the table: a threshold is crossed, or what it is about
    was not measured.

    Examples:
        # two runs, by the beginnings of their names
        specprof compare 20261120 20261121

        # two sweeps; fail only if a domain is certainly slower
        specprof compare sweep-monday sweep-tuesday --each-domain \\
            --fail-if 'speedup<0.97' --certain

        # in continuous integration, on the machine that made baseline.jsonl
        specprof run --results-dir new
        specprof compare baseline.jsonl new --fail-if 'speedup<0.97' \\
            --fail-if 'acceptance_length<0.98'

        # the ratio of the speedups, for a script
        specprof compare A B --json \\
            | jq '.comparisons[0].differences[0].speedup.ratio'
    """
    narration.set_up(detailed=False, quiet=quiet, as_json=log_json)
    wants_color(color, sys.stdout)
    wanted = thresholds.parse(fail_if or [])
    thresholds.check_flags(certain=certain, each_domain=each_domain, anything_to_judge=bool(wanted))
    from specprof.experiments.store import check_outputs

    check_outputs((output,))
    from specprof.commands.named import studies_of
    from specprof.experiments.difference import contrasts
    from specprof.reports import difference as report
    from specprof.reports.results import finite

    found = contrasts(
        studies_of([before], results_dir),
        studies_of([after], results_dir),
        allow_machine_mismatch=allow_machine_mismatch,
    )
    verdicts = thresholds.judged(wanted, found, certain=certain, each_domain=each_domain)
    document = finite(
        {
            "schema": report.SCHEMA,
            "specprof_version": __version__,
            "before": before,
            "after": after,
            **report.to_dict(found),
            "thresholds": thresholds.to_dicts(verdicts),
        }
    )
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        print_table(report.render(found), color)
    if output is not None:
        write_document(output, document)
    sys.stdout.flush()
    thresholds.check(verdicts, found)
    if verdicts:
        LOG.info("no threshold is crossed: %s", ", ".join(map(str, wanted)))
