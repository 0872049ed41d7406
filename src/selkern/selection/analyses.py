"""Every study of a network's selection on one split, one after the other; what a stop cuts short is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from selkern.data.preprocess import Preprocess
from selkern.data.split import Split
from selkern.data.survey import evenly
from selkern.progress import Progress
from selkern.selection.causal import CausalStudy, causal
from selkern.selection.field import FieldStudy, Growth, growth, receptive_fields
from selkern.selection.look import Look, look
from selkern.selection.observe import Observed
from selkern.selection.preference import ZOOMS, Selected, select_over, studied_units
from selkern.selection.scale import ScaleStudy, Truth, true_scale, why_not, zoom_sweep
from selkern.selection.statistics import Array
from selkern.selection.stream import Pictures, stream

_GRADIENTS = 4  # times fewer images at once where gradients are taken, which keep every map of the pass


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is studied.

    Attributes:
        images: of the sweep, the classes and the causal check; 0 for all.
        field_images: of the receptive fields, whose gradients cost most; 0 for all.
        looks: images shown one by one.
        zooms: enlargements of the centre, the first of them 1.
    """

    images: int = 1000
    field_images: int = 200
    looks: int = 3
    zooms: tuple[float, ...] = ZOOMS


@dataclass
class Studies:
    """What was found; None for what was not done.

    Attributes:
        selected: the sums behind the sweep and the classes.
        truth: selection against the known size of the object.
        sweep: selection against the enlargement.
        causal: accuracy with the selection replaced.
        fields: effective receptive fields.
        growth: of the fields with the known size, per unit.
        looks: single images.
        stopped: the study that was stopped, if one was.
        notes: why a study that was asked for was not done.
    """

    selected: Selected | None = None
    truth: ScaleStudy | None = None
    sweep: ScaleStudy | None = None
    causal: CausalStudy | None = None
    fields: FieldStudy | None = None
    growth: tuple[Growth, ...] = ()
    looks: list[Look] = field(default_factory=list)
    stopped: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def main(self) -> ScaleStudy | None:
        """Selection against size: the true one where it is known, else the enlargement."""
        return self.truth or self.sweep

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values, for JSON."""
        tables = {"true_scale": self.truth, "scale_sweep": self.sweep, "causal": self.causal, "fields": self.fields}
        result: dict[str, Any] = {name: study.to_rows() for name, study in tables.items() if study is not None}
        if self.selected is not None and self.selected.classes:
            result["classes"] = self.selected.class_table()
        if self.truth is not None:
            result["true_scale_classes"] = self.truth.class_rows()
        if self.growth:
            result["field_growth"] = [g.to_row() for g in self.growth]
        return {name: rows for name, rows in result.items() if rows}

    def channels(self) -> dict[str, list[dict[str, Any]]]:
        """The curves over channels, too long for `to_dict`."""
        result = {"true_scale_channels": self.truth, "scale_sweep_channels": self.sweep}
        return {name: study.channel_rows() for name, study in result.items() if study is not None}


class Run:
    """The studies that a model and a split allow, one method each.

    Args:
        readable: numbers of the images that can be read.
        truth: of all images of the split, where it is known.
        observed: what the units chose in the evaluation of the readable images; without it they are run again.
        predicted: the class that the network named for each readable image in its evaluation, likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        split: Split,
        preprocess: Preprocess,
        classes: Sequence[str],
        readable: NDArray[np.int64],
        *,
        truth: Truth | None = None,
        plan: Plan | None = None,
        observed: Observed | None = None,
        predicted: NDArray[np.int64] | None = None,
    ) -> None:
        self.model, self.split, self.preprocess, self.classes = model, split, preprocess, tuple(classes)
        self.readable, self.truth, self.plan = readable, truth, plan or Plan()
        self.observed, self.predicted = observed, predicted
        self.device = next(model.parameters()).device
        self.studies = Studies()
        self._line = Progress("", quiet=True)

    def all(
        self, say: Callable[[str], None] = lambda _line: None, keep: Callable[[Studies], None] = lambda _found: None
    ) -> Studies:
        """Do them in turn. Ctrl+C ends them; those that are done, and the sums so far, stay.

        Args:
            say: called with the name of each study as it begins.
            keep: given what was found so far, after each.

        Raises:
            DataError: an image cannot be read.
        """
        if not studied_units(self.model):
            return self.studies
        steps = {"enlargement": self.sweep, "causal check": self.causal, "receptive fields": self.fields}
        if self.truth is not None:
            steps["true scale"] = self.known
        for name, step in {**steps, "single images": self.single}.items():
            say(name)
            self._line = Progress(name)
            try:
                with self._line:
                    step()
            except KeyboardInterrupt:
                self.studies.stopped = name
                break
            keep(self.studies)
        return self.studies

    def sweep(self) -> None:
        """The enlargement of the centre, and the classes at each."""
        selected = self.studies.selected = Selected(studied_units(self.model), self.plan.zooms, self.classes)
        try:
            select_over(self.model, self._images(self.plan.images, self.plan.zooms), selected)
        finally:  # also after Ctrl+C
            if selected.n:
                self.studies.sweep = zoom_sweep(selected)

    def known(self) -> None:
        """The known size of the object."""
        assert self.truth is not None
        known, scale, clusters = self.truth.of(self.readable)
        if reason := why_not(scale):
            self.studies.notes.append(reason)
            return
        truth = replace(self.truth, indices=self.readable[known], scale=scale, clusters=clusters)
        self.studies.truth = true_scale(
            self.model, self.split, self.preprocess, truth, self.classes, observed=self.observed
        )

    def causal(self) -> None:
        """Accuracy with the selection replaced."""
        images = (together[0] for together in self._images(self.plan.images))
        clusters = None
        if self.truth is not None and len(self.truth.indices) == len(self.split):
            clusters = self.truth.clusters
        given = None
        if self.predicted is not None:
            given = dict(zip(self.readable.tolist(), self.predicted.tolist(), strict=True))
        self.studies.causal = causal(self.model, images, self._means(), clusters, given=given)

    def fields(self) -> None:
        """Effective receptive fields, and whether they grow with the object."""
        images = (together[0] for together in self._images(self.plan.field_images, part=_GRADIENTS))
        self.studies.fields = receptive_fields(self.model, images, self._means())
        if self.truth is not None:
            known, scale, clusters = self.truth.of(self.studies.fields.indices)
            if not why_not(scale):
                labels = self.split.labels[self.studies.fields.indices[known]]
                self.studies.growth = growth(self.studies.fields, scale, clusters, labels, known)

    def single(self) -> None:
        """Some images one by one."""
        assert self.studies.selected is not None
        for index in spread(self.readable, self.plan.looks) if self.plan.looks else ():
            one = look(
                self.model, self.split, self.preprocess, int(index), self.studies.selected, self.classes, self.device
            )
            self.studies.looks.append(one)

    def _means(self) -> dict[str, Array]:
        assert self.studies.selected is not None
        return self.studies.selected.mean_selection()

    def _images(self, count: int, zooms: Sequence[float] = (1.0,), part: int = 1) -> Iterator[tuple[Pictures, ...]]:
        indices = spread(self.readable, count).tolist()
        self._line.show(self._line.text, total=len(indices))
        seen = self._line.advance
        return stream(self.split, self.preprocess, indices, zooms=zooms, device=self.device, part=part, seen=seen)


def spread(numbers: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """So many of some numbers, spread evenly over them; all of them for 0 or where there are fewer."""
    if not count or len(numbers) <= count:
        return numbers
    return numbers[evenly(len(numbers), count)]
