"""The errors a user meets: one line each, `what | where | what to do`, and an exit code per kind.

The programs print ``error: {error}`` and leave with ``exit_code``; library callers catch the class.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


# What steers a terminal, starts a line or turns the direction of writing; and halves of pairs, which no file can hold.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # in what libraries raise


def printable(text: str) -> str:
    """`text` with characters that steer a terminal as their codes: names are the user's, or come with a file."""
    return _STEERING.sub(lambda result: result[0].encode("unicode_escape").decode(), text)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory could not be allocated, on a CPU or on a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without its import
        return True
    return any(words in str(error) for words in ("out of memory", "can't allocate memory"))


def first_line(error: BaseException) -> str:
    """What an exception says first, without colours; its kind where it says nothing."""
    return (_lines(error) or [type(error).__name__])[0]


def kind_and_line(error: BaseException) -> str:
    """An exception's kind, and what it says first: of code that may raise anything."""
    return f"{type(error).__name__}: {(_lines(error) or [''])[0]}"


def last_line(error: BaseException) -> str:
    """What an exception says last, as those of C++ have the reason there; its kind where it says nothing."""
    return (_lines(error) or [type(error).__name__])[-1]


def _lines(error: BaseException) -> list[str]:
    return _COLOUR.sub("", str(error)).strip().splitlines()


def _sentence(text: str) -> str:
    """`text` as one line that cannot be taken for several parts of an error."""
    return printable(re.sub(r"\s*[\n\r\t\v\f]\s*", " ", text).strip()).replace(" | ", "; ")


class SelkernError(Exception):
    """Base of every error this package raises for a user's mistake or a broken input.

    Args:
        what: what is wrong, in a few words.
        where: the file, flag or argument it is about.
        fix: what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = _sentence(what), printable(where), _sentence(fix)
        super().__init__(" | ".join(part for part in (self.what, self.where, self.fix) if part))

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, str]]:
        """Pickled by its parts, so that an error crosses processes as it is."""
        return type(self), (self.what, self.where, self.fix)

    def bare(self) -> Self:
        """The same error without traceback and causes: one that is kept must not keep the images it passed alive."""
        return type(self)(self.what, self.where, self.fix)

    @classmethod
    def from_line(cls, line: str) -> Self:
        """The error whose text is `line`: for one that another program printed."""
        what, _, rest = line.partition(" | ")
        where, bar, fix = rest.rpartition(" | ")  # a file's name may hold a bar too
        return cls(what, where, fix) if bar else cls(what, rest)


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
