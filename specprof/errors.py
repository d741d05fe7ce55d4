"""What can go wrong and whose move it is: every expected failure is one of these."""

from __future__ import annotations

from typing import ClassVar


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
    """Speculation changed the output: the one thing it must not do."""

    exit_code = 6


class ThresholdError(SpecprofError):
    """A threshold that the user set with ``--fail-if`` is crossed."""

    exit_code = 8
