"""Predictions and figures as files of the user's choice. No file that exists is ever touched.

Names are written as they are, also those that begin with "=" or "-": a table is for programs first, and a changed name
would not be found again.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from selkern.analysis.evaluation import Evaluation
from selkern.data.split import Split
from selkern.errors import ResourceError, UsageError
from selkern.files import require_new, write_atomic, write_csv
from selkern.train.predict import Prediction


class PredictionFile:
    """A row for each image, written as it comes: what ends the program leaves those that are done.

    Args:
        path: .csv: path, class, probability, class_2, probability_2, ..., error; .jsonl: an object a line.
        top_k: classes of a row.

    Attributes:
        rows: written so far.
    """

    def __init__(self, path: Path, file: TextIO, top_k: int) -> None:
        self.path, self.rows = path, 0
        self._file, self._top_k = file, top_k
        if path.suffix.lower() == ".csv":
            numbered = [f"{name}_{place}" for place in range(2, top_k + 1) for name in ("class", "probability")]
            self._put(_csv_line(["path", "class", "probability", *numbered, "error"]))

    def add(self, answer: Prediction) -> None:
        """One row. Raises ResourceError where the disk is full."""
        if self.path.suffix.lower() == ".csv":
            pairs = zip(answer.classes, answer.probabilities, strict=True)
            cells = [cell for name, p in pairs for cell in (name, f"{p:.6f}")]
            cells += [""] * (2 * self._top_k - len(cells))
            self._put(_csv_line([answer.path, *cells, answer.error]))
        else:
            self._put(json.dumps(asdict(answer), ensure_ascii=False) + "\n")
        self.rows += 1

    def _put(self, line: str) -> None:
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            what = f"cannot write ({error.strerror}); {self.rows:,} images are in it"
            raise ResourceError(what, str(self.path), "free space, and give a new --output") from error


@contextmanager
def new_prediction_file(path: Path, top_k: int) -> Iterator[PredictionFile]:
    """A new file for predictions, open within the block.

    Raises:
        UsageError: the file is there already, or its folder is not.
        ResourceError: it cannot be written.
    """
    require_new(path)
    try:
        file = path.open("x", encoding="utf-8", newline="")
    except OSError as error:
        raise ResourceError(f"cannot write ({error.strerror})", str(path), "give another --output") from error
    try:
        yield PredictionFile(path, file, top_k)
    finally:
        with suppress(OSError):  # what could not be written was told
            file.close()


EVALUATION = ("predictions.csv", "confusion.csv", "per_class.csv", "evaluation.json")  # the files of `write_evaluation`


def make_folder(folder: Path) -> None:
    """Make a folder for an evaluation, or take one that has none.

    Raises:
        UsageError: one of the files is there already.
        ResourceError: it cannot be made.
    """
    for name in EVALUATION:
        if (folder / name).exists() or (folder / name).is_symlink():
            raise UsageError("exists already", f"--output {folder / name}", "give a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"cannot make the folder ({error.strerror})"
        raise ResourceError(what, f"--output {folder}", "give another folder") from error


def write_evaluation(evaluation: Evaluation, split: Split, folder: Path) -> None:
    """Every image, the confusion matrix, every class, and the figures as JSON."""
    names = evaluation.classes
    write_predictions(evaluation, split, folder / "predictions.csv")
    counts = evaluation.confusion().tolist()
    rows = [[name, *row] for name, row in zip(names, counts, strict=True)]
    write_csv(folder / "confusion.csv", ["true class", *names], rows)
    write_csv(folder / "per_class.csv", ("class", "images", "right"), evaluation.per_class())
    write_atomic(folder / "evaluation.json", json.dumps(evaluation.to_dict(), indent=1))


def write_predictions(evaluation: Evaluation, split: Split, path: Path) -> None:
    """One row per image: where it is, its class, the predicted one and its probability."""
    names = evaluation.classes
    rows = [
        (split.where(int(index)), names[label], names[top[0]], f"{p[0]:.6f}")
        for index, label, top, p in zip(
            evaluation.indices, evaluation.labels, evaluation.top, evaluation.top_p, strict=True
        )
    ]
    write_csv(path, ("image", "label", "predicted", "probability"), rows)


def _csv_line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
