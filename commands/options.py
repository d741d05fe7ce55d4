"""Options that several subcommands share, with one help text each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Pair = Annotated[str | None, typer.Option("--pair", help="A registered pair, or one named in specprof.toml.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ... [default: cuda if there is one]")]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        metavar="auto",
        help="auto: spread a model that is too large for one GPU over all of them, and main memory.",
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Use what is on this machine; ask no network.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Commit, tag or branch of the (target) model.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let a model bring its own Python code. Read that code first.")
]
RandomWeights = Annotated[
    bool,
    typer.Option(
        "--random-weights",
        help="Build the true architecture with random weights, no download: true cost, meaningless text.",
    ),
]
ScaleLayers = Annotated[
    int | None,
    typer.Option("--scale-layers", metavar="N", help="Random weights: build at most N layers of each model."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the table.")]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the JSON document to FILE as well.")
]
Verbose = Annotated[int, typer.Option("-v", "--verbose", count=True, help="-v streams the text, -vv tells details.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Nothing on stderr but warnings and errors.")]
LogJson = Annotated[bool, typer.Option("--log-json", help="Narrate on stderr as JSON lines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")]
Color = Annotated[str, typer.Option("--color", help="auto, always or never.")]
ResultsDir = Annotated[Path, typer.Option("--results-dir", envvar="SPECPROF_RESULTS", help="Where results are kept.")]
