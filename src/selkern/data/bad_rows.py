"""Rows of a table that are no images of a split: gathered, and then an error or left out."""

from __future__ import annotations

from selkern.data.split import LeftOut, OnBad
from selkern.errors import DataError

NEARLY_ALL = 0.9  # share of the rows without which nothing is trained, whatever the policy

_FIX = "`selkern data check` lists them all, --on-bad-image skip leaves them out"


class BadRows:
    """What is wrong with the rows of some tables.

    Attributes:
        rows: all that were read, good ones too.
        left_out: those that are no images.
        missing: those whose image file is not there. They stay listed, since another day it may be.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.left_out: list[LeftOut] = []
        self.missing: list[LeftOut] = []
        self._first: LeftOut | None = None

    def add(self, where: str, reason: str, *, missing: bool = False) -> None:
        """Note a row, in the table's order."""
        row = LeftOut(where, reason)
        self._first = self._first or row
        (self.missing if missing else self.left_out).append(row)

    def settle(self, on_bad: OnBad, fix: str = _FIX) -> tuple[str, ...]:
        """A note on each kind.

        Args:
            on_bad: "error" raises for any.
            fix: what to do about several of them.

        Raises:
            DataError: the first of them, and how many there are; with "skip" only where nearly all are bad.
        """
        count = len(self.left_out) + len(self.missing)
        if self._first is not None and (on_bad == "error" or count >= NEARLY_ALL * self.rows):
            more = f"; {count:,} of {self.rows:,} rows cannot be used" if count > 1 else ""
            fix = "correct it or remove it" if count == 1 else "correct them" if on_bad == "skip" else fix
            raise DataError(self._first.reason + more, self._first.where, fix)
        return tuple(
            f"{len(rows):,} of {self.rows:,} {what}, the first {rows[0].where}: {rows[0].reason}"
            for rows, what in ((self.missing, "image files are missing"), (self.left_out, "rows are left out"))
            if rows
        )
