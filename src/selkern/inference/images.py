"""The images that trained weights are measured on, and how many of them they have seen before."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selkern.data.sources import Source, open_source
from selkern.data.split import SPLITS, WHOLE, OnBad, Split, whole
from selkern.data.survey import split_notes
from selkern.data.table_options import TableOptions
from selkern.errors import DataError, UsageError
from selkern.inference.network import Loaded, require_named
from selkern.train.run_data import RunData, prints_of, seen_before, trained_before


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A split to measure weights on."""

    source: Source
    """The data it is of."""
    split: Split
    """The images."""
    own: bool
    """Whether the data are those of the weights' run."""
    trained: int | None = None
    """How many of the images the weights were trained on, at least; None where that is not known."""
    validated: int | None = None
    """How many more chose the best weights, or the recipe, as validation images."""
    lines: tuple[str, ...] = ()
    """What is to be said to the user, warnings first."""

    @property
    def is_test_of_run(self) -> bool:
        """Whether these are the images that the run's own report is about."""
        return self.own and self.split is self.source.test

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what was measured on."""
        seen = {"trained_on": self.trained, "validated_on": self.validated}
        left_out = len(self.source.left_out)
        return {"data": self.source.name, "split": self.split.name, "run_data": self.own, "left_out": left_out, **seen}


def choose_images(
    loaded: Loaded,
    data: str | None = None,
    part: str = "auto",
    *,
    on_bad: OnBad = "error",
    table: TableOptions | None = None,
) -> Chosen:
    """Images to measure weights on: of the data of their run, split as it was, or of other data, which are not cut.

    Args:
        data: None takes the run's own.
        part: train, val, test, all; "auto" takes test, or all where other data have no splits of their own.
        on_bad, table: as for `open_source`, of other data; those of the run are opened as it opened them.

    Raises:
        UsageError: no data given and the weights are not of a run, or the data have no such split.
        DataError: as `open_source` says; a label that is not among the weights' classes is one.
    """
    if part not in ("auto", *SPLITS, WHOLE):
        raise UsageError(f"unknown split {part!r}", "--split", "give train, val, test or all")
    known = RunData(loaded.run) if loaded.run else None
    own, lines = False, []
    if loaded.source is not None:
        source = loaded.source
    else:
        if known is not None and data is None:
            data, own = known.find(), True
        elif known is not None:
            own, line = known.is_own(require_named(data), loaded.card.classes, table)
            line = line or ("the data are the run's: split as they were" if own and not known.drawn else "")
            lines += [f"note: {line}"] if line else []
        data = require_named(data)
        if known is not None and own and (part != WHOLE or known.drawn):
            source = known.open_at(data, classes=loaded.card.classes)
        else:
            if own and known is not None:
                table = known.options.table
            source = open_source(data, classes=loaded.card.classes, cut=False, on_bad=on_bad, table=table)
    lines += [f"note: {note}" for note in source.notes]
    if own and part == "auto" and not len(source.test):
        raise DataError("none of the run's test images is there", source.name, "restore them, or give --split all")
    split = _part(source, part)
    if split.name == WHOLE and part == "auto":
        lines.append(f"note: {source.name} has no splits of its own: all {len(split):,} images are taken")
    lines += [f"note: {note}" for note in split_notes(split, loaded.preprocess.levels)]
    prints = prints_of(split)
    seen = None if known is None else seen_before(known, source, split, prints, own=own)
    if known is None or seen is None:
        if source.kind != "digits" and loaded.source is None:
            lines.append("note: which images the weights were trained on is not known: see that none of these were")
        return Chosen(source=source, split=split, own=own, lines=tuple(lines))
    begun = Path(known.inputs.weights) if known.inputs is not None and known.inputs.weights else None
    earlier = trained_before(begun, source, split, prints) if split.name != "train" else []
    return Chosen(
        source=source,
        split=split,
        own=own,
        trained=seen["train"],
        validated=seen["val"],
        lines=(*_warnings(known, split, seen), *earlier, *lines),
    )


def _part(source: Source, part: str) -> Split:
    """A split by name; "auto" is test, or all images where there is none."""
    if part == WHOLE or (part == "auto" and (source.test.name == WHOLE or not len(source.test))):
        return whole(source)
    split: Split = source.test if part == "auto" else getattr(source, part)
    if split.name == WHOLE or not len(split):
        raise UsageError(f"{source.name} has no {part} split", "--split", "give all, or leave it out")
    return split


def _warnings(known: RunData, split: Split, seen: Counter[str]) -> list[str]:
    warnings = []
    at_least = "at least " if known.inputs and len(known.inputs.fingerprints) < known.inputs.images else ""
    n = f"of {len(split):,} images"
    if seen["train"]:
        more = f", and {seen['val']:,} more chose the best epoch" if seen["val"] else ""
        what = f"{at_least}{seen['train']:,} {n} were trained on{more}"
        warnings.append(f"warning: {what}: the figures are not those of new images")
    elif seen["val"]:
        warnings.append(f"warning: {at_least}{seen['val']:,} {n} chose the best epoch: the figures flatter the weights")
    if seen["changed"]:
        warnings.append(f"warning: {seen['changed']:,} {n} have changed since the run was started")
    return warnings
