"""Predictions and figures as files of the user's choice. No file that exists is ever touched.

Names are written as they are, also those that begin with "=" or "-": a table is for programs first, and a changed name
would not be found again.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from selkern.data.decode import decode, read_header, read_used, show
from selkern.data.levels import Levels
from selkern.data.listing import Search, is_file, is_folder
from selkern.data.split import Split
from selkern.data.survey import images_notes, survey_of
from selkern.errors import DataError, NumericsError, ResourceError, UsageError
from selkern.evaluation import MATRIX, Evaluation, device_of, to_input
from selkern.inference.network import Loaded
from selkern.io import require_new, write_atomic, write_csv

_LOOKED_AT = 100  # images looked at ahead of the first prediction


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, best first, or the reason why it could not be read."""

    path: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ""


def list_images(paths: Sequence[str], note: Callable[[str], object] = lambda _: None) -> list[Path]:
    """The image files that some files and folders name, in their order, each once.

    Args:
        paths: files and folders.
        note: called with a line on what is left out of a folder.

    Raises:
        UsageError: no path at all.
        DataError: nothing there, or a folder without images.
    """
    if not paths:
        raise UsageError("no images given", "selkern predict", "name image files or folders after the run")
    images: list[Path] = []
    for given in map(Path, paths):
        if is_folder(given):
            search = Search()
            inside = search.images(given)
            notes = list(search.notes())
            if not inside:
                fix = "; ".join(notes) or "give a folder that holds images"
                raise DataError("no images in this folder", show(given), fix)
            for line in notes:
                note(f"{show(given)}: {line}")
            images += map(Path, inside)
        elif is_file(given):
            images.append(given)
        else:
            raise DataError("no such file or folder", show(given), "check the path")
    return list(dict.fromkeys(images))


def notes_on(images: Sequence[Path], levels: Levels) -> tuple[str, ...]:
    """What the user should know of images, by some of them, before a network of such levels is shown them."""
    seen = survey_of(len(images), lambda index: read_header(images[index]), _LOOKED_AT)
    return images_notes(seen, levels, lambda index: read_used(images[index]), lambda index: show(images[index]))


@torch.inference_mode()
def predict(
    loaded: Loaded,
    images: Sequence[Path],
    *,
    top_k: int = 5,
    batch_size: int = 64,
    seen: Callable[[int], object] = lambda _: None,
) -> Iterator[Prediction]:
    """One `Prediction` per image, in order; that of an unreadable image holds the reason.

    Args:
        seen: called with the number of images that were read since it was called last.

    Raises:
        NumericsError: the network gives an image anything but finite numbers.
    """
    device = device_of(loaded.model)
    reading = loaded.preprocess.reading()
    for start in range(0, len(images), batch_size):
        paths = images[start : start + batch_size]
        pixels: dict[Path, np.ndarray] = {}
        errors: dict[Path, str] = {}
        for path in paths:
            try:
                pixels[path] = loaded.preprocess(decode(path, reading=reading))
            except DataError as error:
                errors[path] = str(error)
            seen(1)
        if pixels:
            batch = torch.from_numpy(np.stack(list(pixels.values())))
            logits = loaded.model(to_input(batch, loaded.preprocess, device))
            assert isinstance(logits, torch.Tensor)
            if not (finite := logits.isfinite().all(dim=1)).all():
                bad = next(path for path, fine in zip(pixels, finite.tolist(), strict=True) if not fine)
                fix = "look for NaN in its weights"
                raise NumericsError("the network gives no finite numbers", f"{show(bad)}, the first", fix)
            top_p, top = logits.float().softmax(dim=1).topk(min(top_k, logits.shape[1]), dim=1)
            answers = dict(zip(pixels, zip(top.tolist(), top_p.tolist(), strict=True), strict=True))
        for path in paths:
            if path in errors:
                yield Prediction(show(path), error=errors[path])
            else:
                classes, probabilities = answers[path]
                yield Prediction(show(path), tuple(loaded.card.classes[c] for c in classes), tuple(probabilities))


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
        with suppress(OSError):  # the first error has been shown
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


def write_evaluation(evaluation: Evaluation, split: Split, folder: Path, more: Mapping[str, Any] | None = None) -> None:
    """Every image, the confusion matrix, every class, and the figures as JSON.

    Of more than `MATRIX` classes confusion.csv has a row for each pair that occurs, in place of one for each class.

    Args:
        more: what else evaluation.json says.
    """
    names = evaluation.classes
    write_predictions(evaluation, split, folder / "predictions.csv")
    if len(names) <= MATRIX:
        counts = evaluation.confusion().tolist()
        rows = [[name, *row] for name, row in zip(names, counts, strict=True)]
        write_csv(folder / "confusion.csv", ["true class", *names], rows)
    else:
        triples = zip(*(column.tolist() for column in evaluation.confused()), strict=True)
        pairs = [(names[true], names[predicted], n) for true, predicted, n in triples]
        write_csv(folder / "confusion.csv", ("true class", "predicted", "images"), pairs)
    write_csv(folder / "per_class.csv", ("class", "images", "right"), evaluation.per_class())
    write_atomic(folder / "evaluation.json", json.dumps({**evaluation.to_dict(), **(more or {})}, indent=1))


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
