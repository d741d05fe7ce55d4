"""``specprof report``: what was measured, as a page to read and a text to paste."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specprof.commands import completing, narration, options
from specprof.commands.help import RESULTS, THRESHOLDS
from specprof.commands.narration import LOG
from specprof.commands.options import option
from specprof.commands.output import make_directory, write_file
from specprof.errors import UsageError
from specprof.experiments import thresholds
from specprof.experiments.store import check_outputs

if TYPE_CHECKING:
    from specprof.experiments.difference import Contrasts
    from specprof.experiments.study import Study
    from specprof.reports.document import Report

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6}
_LARGEST = 10**12
_LONGEST_NAME = 50
"""Characters, each of up to 4 of the 255 bytes that a file's name may have."""


def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            autocompletion=completing.run,
            help="Runs or cells as `specprof results list` has them, a run's file, or the directory of a sweep. "
            "[default: the newest]",
        ),
    ] = None,
    compare: Annotated[
        str | None,
        option(
            THRESHOLDS,
            "--compare",
            metavar="A",
            offers=completing.run,
            help="What it was before: the report says what became of it.",
        ),
    ] = None,
    fail_if: options.FailIf = None,
    certain: options.Certain = False,
    each_domain: options.EachDomain = False,
    allow_machine_mismatch: options.AllowMachineMismatch = False,
    html: Annotated[
        str | None, option(RESULTS, "--html", metavar="FILE", help="Write one self-contained page; - is stdout.")
    ] = None,
    md: Annotated[
        str | None,
        option(RESULTS, "--md", metavar="FILE", help="Write Markdown, and its figures beside it; - is stdout."),
    ] = None,
    title: Annotated[
        str | None, option(RESULTS, "--title", metavar="TEXT", help="The page's title. [default: what was measured]")
    ] = None,
    max_size: Annotated[
        str,
        option(RESULTS, "--max-size", metavar="SIZE", help="Thin the page out until it is no larger: 800KB, 5MB."),
    ] = "5MB",
    redact_text: Annotated[
        bool, option(RESULTS, "--redact-text", help="Show the shapes of generated texts, not their letters.")
    ] = False,
    as_json: Annotated[bool, option(RESULTS, "--json", help="Print the numbers as one JSON document.")] = False,
    results_dir: options.ResultsDir = Path("results"),
    quiet: options.Quiet = False,
    log_json: options.LogJson = False,
    debug: options.Debug = False,
) -> None:
    """Report on runs and sweeps: verdict, causes, figures, texts.

    With neither --html nor --md both are written, into the results directory. What is printed are their paths.

    Examples:
        # the newest run or sweep, as HTML and Markdown
        specprof run && specprof report

        # a run by the beginning of its name
        specprof report 20261121 --html r.html --md r.md

        # into a pull request
        specprof report --md - | gh pr comment --body-file -

        # what became of it, and a failure where it became slower
        specprof report new.jsonl --compare baseline.jsonl --md r.md \\
            --fail-if 'speedup<0.97'
    """
    narration.set_up(detailed=False, quiet=quiet, as_json=log_json)
    max_bytes = _size(max_size)
    wanted = thresholds.parse(fail_if or [])
    if compare is None and (wanted or allow_machine_mismatch):
        flag = "--fail-if" if wanted else "--allow-machine-mismatch"
        raise UsageError(f"{flag} needs --compare", "name what it was before: --compare RUN")
    thresholds.check_flags(certain=certain, each_domain=each_domain, anything_to_judge=bool(wanted))
    printed = [
        flag for flag, wanted in (("--html -", html == "-"), ("--md -", md == "-"), ("--json", as_json)) if wanted
    ]
    if len(printed) > 1:
        raise UsageError(f"{' and '.join(printed)} print to standard output", "write all but one to files")
    check_outputs(Path(name) for name in (html, md) if name not in (None, "-"))
    from specprof.commands.named import newest, studies_of

    studies = studies_of(names, results_dir) if names else newest(results_dir)
    if redact_text:
        studies = [dataclasses.replace(study, commands=tuple(map(_bare, study.commands))) for study in studies]
    found = None
    if compare is not None:
        from specprof.experiments.difference import contrasts

        before = studies_of([compare], results_dir)
        found = contrasts(before, studies, allow_machine_mismatch=allow_machine_mismatch)
    if html is None and md is None and not as_json:
        name = _file_name(studies)
        html, md = (str(results_dir / f"{name}{ending}") for ending in (".html", ".md"))
        make_directory(results_dir)
    if html is not None or md is not None:
        _write(studies, found, html, md, title=title, redact=redact_text, max_bytes=max_bytes)
    verdicts = [] if found is None else thresholds.judged(wanted, found, certain=certain, each_domain=each_domain)
    if as_json:
        _print_json(studies, found, verdicts)
    elif not printed:
        for path in filter(None, (html, md)):
            print(path)
    if found is not None:
        thresholds.check(verdicts, found)


def _write(
    studies: Sequence[Study],
    found: Contrasts | None,
    html: str | None,
    md: str | None,
    *,
    title: str | None,
    redact: bool,
    max_bytes: int,
) -> None:
    from specprof.reports import difference
    from specprof.reports.document import Section
    from specprof.reports.report import report as report_on

    compared = None if found is None else Section("compared", "What became of it", difference.blocks(found))
    whole = report_on(studies, title=title, redact=redact, compared=compared)
    LOG.info("%s", whole.verdict)
    from specprof.reports.html import render

    page = None if html is None else render(whole, max_bytes=max_bytes)  # before anything is written: it may not fit
    if md is not None:
        _write_markdown(whole, md)
    if html is not None and page is not None:
        _write_text(Path(html), page)


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KM]?B?)", text.strip(), re.IGNORECASE)
    unit = None if found is None else _UNITS.get(found[2].upper()) or _UNITS.get(f"{found[2].upper()}B")
    if found is None or unit is None or not (size := float(found[1]) * unit) < _LARGEST:
        raise UsageError(f"--max-size {text!r} is not a size", "for instance 5MB or 800KB")
    return int(size)


def _bare(command: str) -> str:
    """Without its arguments, a prompt's text perhaps among them."""
    return f"{' '.join(command.split()[:2])} ..."


def _file_name(studies: Sequence[Study]) -> str:
    """Of the run; of a sweep, that of its directory. Names come from files, so only letters of file names are left."""
    return re.sub(r"[^\w.-]+", "_", studies[0].name[:_LONGEST_NAME]).lstrip(".") or "report"


def _print_json(studies: Sequence[Study], found: Contrasts | None, verdicts: Sequence[thresholds.Judged]) -> None:
    from specprof.reports import difference
    from specprof.reports.report import to_dict
    from specprof.reports.results import finite

    document = to_dict(studies)
    if found is not None:
        document["compared"] = difference.to_dict(found) | {"thresholds": thresholds.to_dicts(verdicts)}
    print(json.dumps(finite(document), indent=2))


def _write_markdown(whole: Report, name: str) -> None:
    from specprof.reports import markdown
    from specprof.reports.document import Figure

    path = Path(name)
    if name == "-":
        _write_text(path, markdown.render(whole))
        return
    directory = path.with_name(f"{path.stem}_figures")
    figures = [block for section in whole.sections for block in section.blocks if isinstance(block, Figure)]
    text = markdown.render(whole, figures=directory.name if figures else None)
    if figures:
        make_directory(directory)
    for figure in figures:
        _write_text(directory / f"{figure.name}.svg", figure.svg)
    _write_text(path, text)  # last: what it points to is there


def _write_text(path: Path, text: str) -> None:
    if str(path) == "-":
        sys.stdout.write(text)
        return
    write_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))
