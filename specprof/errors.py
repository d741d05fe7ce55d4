"""What can go wrong and whose move it is: every expected failure is one of these."""

from __future__ import annotations

import re
from typing import ClassVar

_OUT_OF_MEMORY = re.compile(
    r"out of memory|memory ran out|(can't|cannot|not enough|failed to|unable to) (allocate )?memory"
    r"|bad_alloc|CUBLAS_STATUS_ALLOC_FAILED|needs [\d.]+ GB on ",
    re.IGNORECASE,
)


class SpecprofError(Exception):
    """A failure the user can act on: what is wrong, what to do, and the exit code that says which kind."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(SpecprofError):
    """A flag, a configuration or an input file that can't be meant."""

    exit_code = 2


class UnavailableError(SpecprofError):
    """A model or data set that isn't there: offline, gated, missing, incomplete, corrupt."""

    exit_code = 3


class ResourceError(SpecprofError):
    """Memory, a device, a disk, a server or an optional library this machine doesn't have."""

    exit_code = 4


class IncompatiblePairError(SpecprofError):
    """Two models that can't speculate for each other."""

    exit_code = 5


class CorrectnessError(SpecprofError):
    """The output means nothing: speculation changed it, or a model computed no numbers to choose it by."""

    exit_code = 6


class ThresholdError(SpecprofError):
    """A threshold that the user set with ``--fail-if`` is crossed."""

    exit_code = 8


def is_about_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python, torch on a GPU, torch on a CPU and we each have words of our own for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError | ResourceError) and _OUT_OF_MEMORY.search(str(error)) is not None
