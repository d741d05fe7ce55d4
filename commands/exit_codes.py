"""What the program's exit status says. Failures with a class of their own have their code in :mod:`specprof.errors`."""

from __future__ import annotations

BUG = 1
USAGE = 2
RESOURCES = 4
SOME_FAILED = 7
HUNG_UP = 129
INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143

MEANINGS = {
    0: "done",
    BUG: "a bug in specprof",
    USAGE: "usage, configuration or prompt file",
    3: "model not available: offline, gated, missing, corrupt",
    RESOURCES: "memory, device, disk, server, missing library",
    5: "the pair's vocabularies have nothing in common",
    6: "speculation changed the output (`run` when greedy, `verify`), or a model computes no numbers",
    SOME_FAILED: "a sweep finished, some of its cells failed (results kept)",
    8: "a threshold of `--fail-if` is crossed",
    HUNG_UP: "the terminal hung up (SIGHUP)",
    INTERRUPTED: "Ctrl-C",
    BROKEN_PIPE: "the reader of stdout is gone",
    TERMINATED: "ended by SIGTERM",
}
