"""Weights exported with the images of their run: compared on its validation split, quantised by its training split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selkern.data.split import WHOLE
from selkern.data.table_options import TableOptions
from selkern.errors import DataError, UsageError
from selkern.evaluation import batches_of, to_input
from selkern.inference.images import Chosen, choose_images
from selkern.inference.network import Loaded
from selkern.measure.timing import Spread, in_turn, ratios
from selkern.runtimes.export import export
from selkern.runtimes.files import RUNNABLE, SUFFIXES, Format
from selkern.runtimes.network import ExportedNetwork
from selkern.runtimes.quantize import Int8
from selkern.runtimes.trial import Comparison

_BATCH = 32
_SECONDS = 2.0  # for the rounds of one comparison of times


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Images of a split as a network takes them."""

    images: Tensor
    """(n, C, H, W), normalised."""
    labels: Tensor
    """(n,) their classes."""
    name: str
    """Of data and split, for the user."""


@dataclass(frozen=True, kw_only=True)
class Time:
    """Of one image at a batch size, beside the PyTorch network's."""

    batch: int
    before: Spread
    """ms, of the network as it is."""
    after: Spread
    """ms, of the file."""
    speedup: Spread
    """Of the rounds' ratios."""


def take(
    loaded: Loaded, chosen: Chosen, most: int, seen: Callable[[int], object], *, half: int | None = None
) -> Pictures:
    """Images spread evenly over a split; those that cannot be read are left out.

    Args:
        half: 0 or 1, of every second image; None takes them from all.

    Raises:
        DataError: none can be read.
    """
    every = range(len(chosen.split)) if half is None else range(half, len(chosen.split), 2)
    places = np.unique(np.linspace(0, len(every) - 1, min(most, len(every))).round().astype(int)).tolist()
    numbers = [every[place] for place in places]
    shards = [[(0, number) for number in numbers[at : at + _BATCH]] for at in range(0, len(numbers), _BATCH)]
    images, labels = [], []
    for batch in batches_of(chosen.split, loaded.preprocess, shards, on_bad="skip"):
        seen(len(batch.labels) + len(batch.bad))
        if len(batch.labels):
            images.append(to_input(batch.images, loaded.preprocess, torch.device("cpu")).contiguous())
            labels.append(batch.labels)
    part = "" if chosen.split.name == WHOLE else f"{chosen.split.name} "
    name = f"{part}images of {chosen.source.name}"
    if not images:
        raise DataError("none of the images can be read", name, "give others by --data")
    numbered = torch.cat(labels)
    return Pictures(images=torch.cat(images), labels=numbered, name=f"{len(numbered):,} {name}")


def pictures_of(
    loaded: Loaded,
    data: str | None,
    most: int,
    calibrating: int | None,
    *,
    table: TableOptions | None,
    seen: Callable[[int], object],
) -> tuple[Pictures | None, Pictures | None]:
    """Images to compare on, and images that int8 takes its ranges from: of the validation and the training split.

    For int8, data without a validation split give every second image (of the training split, if they have one) to the
    one and the others to the other: which operators stay in float is chosen by the comparison, never by test images.

    Args:
        most: images to compare on.
        calibrating: images for int8; None without.

    Returns:
        None for what there are no data for.

    Raises:
        UsageError: data of a test split alone for int8, and as `choose_images` says.
        DataError: as `choose_images` says.
    """
    if data is None and loaded.run is None:
        return None, None
    if calibrating is None:
        return take(loaded, _first_of(loaded, data, ("val", "test", WHOLE), table), most, seen), None
    given = _first_of(loaded, data, ("train", WHOLE), table)
    if given.split.name == WHOLE and given.source.test.name != WHOLE and len(given.source.test):
        fix = "give those the network was trained on"
        raise UsageError(f"{given.source.name} has no training images to calibrate int8 with", "--data", fix)
    shown = _first_of(loaded, data, ("val", given.split.name), table)
    if shown.split.name != "val":
        return take(loaded, given, most, seen, half=0), take(loaded, given, calibrating, seen, half=1)
    return take(loaded, shown, most, seen), take(loaded, given, calibrating, seen)


def _first_of(loaded: Loaded, data: str | None, parts: Sequence[str], table: TableOptions | None) -> Chosen:
    """The first of some splits that the data have."""
    for part in parts[:-1]:
        try:
            return choose_images(loaded, data, part, on_bad="skip", table=table)
        except UsageError as error:
            if error.where != "--split":
                raise
    return choose_images(loaded, data, parts[-1], on_bad="skip", table=table)


def file_of(loaded: Loaded, kind: Format, *, int8: bool, output: Path | None) -> Path:
    """Where the exported file goes: as the user says, else into `exports/` of the run, else into the current folder.

    Raises:
        UsageError: a file name of another format.
    """
    name = f"{loaded.run.path.name if loaded.run is not None else loaded.path.stem}{'-int8' if int8 else ''}"
    if output is not None and output.suffix == SUFFIXES[kind]:
        return output
    if output is not None and not output.is_dir() and (output.exists() or output.suffix):
        fix = f"give a folder, or a new file that ends in {SUFFIXES[kind]}"
        raise UsageError(f"no folder, and no file of {kind}", f"--output {output}", fix)
    folder = output or (Path() if loaded.run is None else loaded.run.path / "exports")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}{SUFFIXES[kind]}"


def export_weights(loaded: Loaded, path: Path, shown: Pictures | None, int8: Int8 | None, **options: Any) -> Comparison:
    """Export a network with its card; compared on the images, or on random ones where there are none.

    Args:
        options: as `selkern.export` takes them.
    """
    images, labels = (None, None) if shown is None else (shown.images, shown.labels)
    return export(loaded.model, path, images=images, labels=labels, int8=int8, card=loaded.card, **options)


def times(loaded: Loaded, path: Path, batches: Sequence[int] = (1, 8)) -> list[Time]:
    """The network as it is and the file, in turn; nothing of a .pt2."""
    if path.suffix not in RUNNABLE:
        return []
    file, size, rows = ExportedNetwork(path), loaded.preprocess.size, []
    for batch in batches:
        x = torch.randn(batch, loaded.card.in_chans, size, size)
        channels_last = x.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            jobs = {"before": lambda: loaded.model(channels_last), "after": lambda: file(x)}  # noqa: B023
            seconds = in_turn(jobs, budget=_SECONDS)
        before, after = (Spread.of([1e3 * each / batch for each in seconds[name]]) for name in jobs)
        rows.append(Time(batch=batch, before=before, after=after, speedup=ratios(seconds["before"], seconds["after"])))
    return rows
