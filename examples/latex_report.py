"""A report of one's own: the speedups of a saved run by domain, as a table for a paper."""

import sys
from pathlib import Path

from specprof.experiments.saved_runs import FinishedRun, read_run
from specprof.profiling.speedup import Speedup


def render(run: FinishedRun) -> str:
    comparison = run.compared()
    speedups = {"all": comparison.speedup_decode}
    speedups |= {name: domain.speedup_decode for name, domain in comparison.domains.items()}
    rows = [f"{escaped(name)} & {cell(speedup)} \\\\" for name, speedup in speedups.items()]
    head = ["\\begin{tabular}{lr}", "domain & speedup, 95\\,\\% interval \\\\ \\hline"]
    return "\n".join([f"% {run.title}", *head, *rows, "\\end{tabular}"])


def cell(speedup: Speedup | None) -> str:
    if speedup is None or speedup.value is None:
        return "--"  # what was not measured is no zero
    interval = "" if speedup.ci is None else f" [{speedup.ci[0]:.2f}, {speedup.ci[1]:.2f}]"
    return f"{speedup.value:.2f}{interval}"


def escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "#$%&_{}" else c for c in text if c.isprintable() and c not in "\\^~")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: latex_report.py RUN.jsonl")
    print(render(read_run(Path(sys.argv[1]))))
