"""Predictions for images that have no labels: files and folders, as a user points at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from selkern.analysis.evaluation import to_input
from selkern.data.decode import decode, read_header, read_used, show
from selkern.data.exposure import images_notes
from selkern.data.levels import Levels
from selkern.data.listing import Search, is_file, is_folder
from selkern.data.survey import survey_of
from selkern.errors import DataError, NumericsError, UsageError
from selkern.train.loaded import Loaded

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
    found: list[Path] = []
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
            found += map(Path, inside)
        elif is_file(given):
            found.append(given)
        else:
            raise DataError("no such file or folder", show(given), "check the path")
    return list(dict.fromkeys(found))


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
    """One `Prediction` per image, in order; an unreadable image gives one that tells why.

    Args:
        seen: called with the number of images that were read since it was called last.

    Raises:
        NumericsError: the network gives an image anything but finite numbers.
    """
    device = next(loaded.model.parameters()).device
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
