"""The errors a user meets: one line each, `what | where | what to do`, and an exit code per kind.

The programs print ``error: {error}`` and leave with ``exit_code``; library callers catch the class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class SelkernError(Exception):
    """Base of every error this package raises for a user's mistake or a broken input.

    Args:
        what: what is wrong, in a few words.
        where: the file, flag or argument it is about.
        fix: what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(" | ".join(" ".join(part.split()) for part in (what, where, fix) if part))

    @classmethod
    def from_line(cls, line: str) -> Self:
        """The error whose text is `line`: for one that crossed a process as text."""
        return cls(*line.split(" | ", 2))


class UsageError(SelkernError, ValueError):
    """A wrong argument, flag or name (exit code 2). Also a ``ValueError``, as Python callers expect."""

    exit_code = 2


class PackageError(SelkernError, ImportError):
    """A package that is needed here is absent or broken (exit code 1). Also an ``ImportError``."""


class DataError(SelkernError):
    """Images or labels that cannot be used (exit code 3)."""

    exit_code = 3


class CheckpointError(SelkernError):
    """Weights or a saved state that cannot be used (exit code 4)."""

    exit_code = 4


class ResourceError(SelkernError):
    """Out of memory or disk (exit code 5)."""

    exit_code = 5


class NumericsError(SelkernError):
    """A loss or weight that is not finite (exit code 6)."""

    exit_code = 6


class Interrupted(Exception):
    """A run was asked to stop (Ctrl+C, SIGTERM) and has saved its state. Exit code: the shell's 128 + signal."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum
