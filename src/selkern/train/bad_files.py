"""bad_files.csv: every image of a run that could not be read, once, with the reason."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from selkern.errors import CheckpointError, DataError
from selkern.files import write_csv

_SPOKEN = 5  # told one by one; the file has them all


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

    def write(self) -> None:
        """Bring the file up to date."""
        if self.rows != self._written:
            write_csv(self.path, ("file", "reason"), sorted(self.rows.items()))
            self._written = dict(self.rows)
