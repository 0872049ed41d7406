"""bad_files.csv: every image of a run that could not be read, once, with the reason."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from selkern.data.listing import some
from selkern.data.split import Split
from selkern.errors import CheckpointError, DataError
from selkern.files import write_csv

_SPOKEN = 5  # told one by one; the file has them all
_MANY = 0.1  # share of a split from which on a warning counts them


def require_readable(split: Split) -> None:
    """Raise DataError where no image of a split can be read, before work that would be lost is done."""
    first: DataError | None = None
    for index in range(len(split)):
        error = _unread(split, index)
        if error is None:
            return
        first = first or error
    if first is not None:
        what = f"none of {len(split):,} {split.name} images can be read, the first: {first.what}"
        raise DataError(what, first.where, first.fix)


def _unread(split: Split, index: int) -> DataError | None:
    """Why an image cannot be read; None where it can."""
    try:
        split.read(index)
    except DataError as error:
        return error
    return None


class BadFiles:
    """The images that a run passes over.

    Args:
        path: of the file; what a run before this one wrote there is kept.
        say: tells a line to the user.

    Raises:
        CheckpointError: the file that is there is none of ours.

    Attributes:
        rows: reason by file.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self.say = path, say
        self.rows: dict[str, str] = {}
        if path.is_file():
            try:
                with path.open(newline="") as file:
                    self.rows = {row["file"]: row["reason"] for row in csv.DictReader(file)}
            except (ValueError, KeyError, csv.Error) as error:
                what = f"not the table that was written ({error!r})"
                raise CheckpointError(what, str(path), "move the file away") from error
        self._written = dict(self.rows)
        self._weighed = 0

    def note(self, lines: Iterable[str]) -> None:
        """Note images by the one-line errors that reading them gave; each is told once."""
        for line in lines:
            error = DataError.from_line(line)
            if error.where in self.rows:
                continue
            self.rows[error.where] = error.what
            if len(self.rows) <= _SPOKEN:
                self.say(f"warning: skipped {error.where}: {error.what}")
            if len(self.rows) == _SPOKEN:
                self.say(f"warning: images skipped from here on are told in {self.path} only")

    def add(self, others: Iterable[Mapping[str, str]]) -> None:
        """Take in what other ranks noted."""
        for rows in others:
            self.rows |= rows

    def weigh(self, split: Split, classes: Sequence[str]) -> None:
        """Warn where they are many of a split, or all of a class, as often as there are more of them."""
        if len(self.rows) == self._weighed:
            return
        self._weighed = len(self.rows)
        bad = np.array([split.where(index) in self.rows for index in range(len(split))])
        lost = np.bincount(split.labels[bad], minlength=len(classes))
        there = np.bincount(split.labels, minlength=len(classes))
        gone = []
        for label in np.flatnonzero((lost > 0) & (2 * lost >= there)).tolist():
            rest = np.flatnonzero((split.labels == label) & ~bad).tolist()  # an epoch may leave some out
            if not any(_unread(split, index) is None for index in rest):
                gone.append(repr(classes[label]))
        if gone:
            self.say(f"warning: no {split.name} image of class {some(gone)} can be read: it is not learned")
        if bad.mean() >= _MANY:
            self.say(f"warning: {bad.sum():,} of {len(bad):,} {split.name} images cannot be read: see {self.path}")

    def write(self) -> None:
        """Bring the file up to date."""
        if self.rows != self._written:
            write_csv(self.path, ("file", "reason"), sorted(self.rows.items()))
            self._written = dict(self.rows)
