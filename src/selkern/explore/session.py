"""What a network makes of a picture, and what it would make of it if its units chose otherwise: no browser in sight."""

from __future__ import annotations

import base64
import io
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from selkern.data.preprocess import Preprocess
from selkern.errors import NumericsError, UsageError, first_line
from selkern.evaluation import device_of, to_input
from selkern.explore.pictures import Pictures
from selkern.explore.view import RANGES, View, show
from selkern.selection.field import energies_of, radius_of
from selkern.selection.intervene import Change, choose, forced, frozen
from selkern.selection.record import UnitInfo, find_units, record
from selkern.selection.statistics import Array

_TOP = 5  # likeliest classes of an answer
_AS_IT_IS = View()
_CELLS = 64  # a side of a field as it is drawn
_KEPT = 32  # passes of the network as it is that are kept


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What the page wants to know.

    Attributes:
        picture: a name that `Pictures` knows.
        view: how it is shown.
        choices: unit number to "0", "1", ...: that branch alone; "mean": the mean over the run's pictures; "other":
            what the donor's picture chooses. A unit that is not named chooses by itself.
        donor, donor_view: the picture whose selection is taken for "other".
        unit: number of the one whose channels are wanted; None for none.
        with_field: whether that unit's receptive field is wanted too.
    """

    picture: str
    view: View = _AS_IT_IS
    choices: Mapping[int, str] = field(default_factory=dict)
    donor: str = ""
    donor_view: View = _AS_IT_IS
    unit: int | None = None
    with_field: bool = False

    @classmethod
    def from_dict(cls, values: Any) -> Ask:
        """As JSON has it. Raises UsageError for anything else."""
        if not isinstance(values, dict) or not isinstance(values.get("picture"), str):
            raise UsageError("no picture is named", "the request", 'give {"picture": NAME, ...}')
        choices, unit = values.get("choices") or {}, values.get("unit")
        views = [values.get(name) or {} for name in ("view", "donor_view")]
        if not all(isinstance(each, dict) for each in (choices, *views)):
            raise UsageError("view and choices are not objects", "the request", "give objects")
        if not (unit is None or type(unit) is int):
            raise UsageError(f"unit is {str(unit)[:40]}", "the request", "give a number")
        if not all(name.isdecimal() and len(name) < 6 for name in choices):
            raise UsageError("choices are not named by numbers of units", "the request", 'give {"0": "mean", ...}')
        return cls(
            picture=values["picture"],
            view=View.from_dict(views[0]),
            choices={int(name): str(word) for name, word in choices.items()},
            donor=str(values.get("donor") or ""),
            donor_view=View.from_dict(views[1]),
            unit=unit,
            with_field=bool(values.get("field")),
        )


@dataclass(frozen=True)
class Seen:
    """One forward pass: (K,) logits, and per unit that took part (M, C) what it chose."""

    logits: NDArray[np.float32]
    selections: Mapping[str, NDArray[np.float32]]

    @property
    def p(self) -> Array:
        """(K,) probabilities."""
        shifted = np.exp(self.logits.astype(np.float64) - self.logits.max())
        result: Array = shifted / shifted.sum()
        return result


@dataclass(frozen=True)
class Means:
    """Over the n pictures of the run that were passed so far: per unit (M, C) the mean selection."""

    n: int = 0
    of: Mapping[str, Array] = field(default_factory=dict)

    def add(self, selections: Mapping[str, NDArray[np.float32]]) -> Means:
        """With one picture more."""
        n, before = self.n + 1, self.of
        return Means(
            n, {name: before.get(name, 0.0) + (a - before.get(name, 0.0)) / n for name, a in selections.items()}
        )


class Session:
    """A network and pictures, to be looked at from one thread.

    Args:
        model: in eval mode; its weights are set to ask for no gradients, which makes fields cheaper.
        preprocess: how a picture becomes its input.
        classes: names of its outputs.
        pictures: of the run and uploaded.
        title: of the page.
        notes: remarks for the user.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: Preprocess,
        classes: tuple[str, ...],
        pictures: Pictures,
        *,
        title: str = "",
        notes: tuple[str, ...] = (),
    ) -> None:
        self.model, self.preprocess, self.classes, self.pictures = model, preprocess, classes, pictures
        self.title, self.notes = title, notes
        model.requires_grad_(requires_grad=False)
        self.units: tuple[UnitInfo, ...] = tuple(unit for unit, _ in find_units(model).values())
        self.means, self.warmed = Means(), False
        self._steps = self._add_pictures()
        self._plain: OrderedDict[tuple[str, View], Seen] = OrderedDict()
        self._branches: Mapping[str, int] = {}
        grey = Image.new("RGB", (preprocess.size, preprocess.size), preprocess.mean_colour)
        try:
            self._branches = {name: len(a) for name, a in self._pass(self._input(grey), {}).selections.items()}
        except Exception as error:  # noqa: BLE001  the network's code may raise anything; pictures may fare better
            self.notes = (*notes, f"the network could not be run on a grey picture: {first_line(error)}")

    def facts(self) -> dict[str, Any]:
        """What the page is built from, as JSON has it."""
        return {
            "title": self.title,
            "side": self.preprocess.size,
            "classes": len(self.classes),
            "units": [
                {
                    "label": unit.label,
                    "name": unit.name,
                    "extents": list(unit.extents) if unit.ordered else [],
                    "branches": self._branches.get(unit.name, len(unit.extents)),
                }
                for unit in self.units
            ],
            "pictures": self.pictures.to_list(),
            "added": [{"name": name, "text": path.name} for name, path in self.pictures.files.items()],
            "split": "" if self.pictures.split is None else self.pictures.split.name,
            "images": 0 if self.pictures.split is None else len(self.pictures.split),
            "ranges": {name: list(ends) for name, ends in RANGES.items()},
            "notes": list(self.notes),
        }

    def mean_facts(self) -> dict[str, Any]:
        """How many pictures the mean is over, and per unit its mean over channels, per branch."""
        means = self.means
        rows = [means.of[unit.name].mean(axis=1).tolist() if unit.name in means.of else None for unit in self.units]
        return {"n": means.n, "of": len(self.pictures.offered), "done": self.warmed, "units": rows}

    def warm(self) -> Iterator[None]:
        """Add the run's pictures to the mean, one at each step; whoever goes on with it goes on where it is."""
        return self._steps

    def _add_pictures(self) -> Iterator[None]:
        for number in self.pictures.offered:
            # A picture that cannot be read, or that the network raises at: it is shown on the page when it is chosen.
            with suppress(Exception):
                self.means = self.means.add(self.plain(f"r{number}", View()).selections)
            yield
        self.warmed = True

    def look(self, ask: Ask) -> dict[str, Any]:
        """The answer to a page, as JSON has it.

        Raises:
            UsageError: a unit or branch that is not there, or no mean or donor where one is asked for.
            DataError: no such picture.
            NumericsError: the network gives anything but finite numbers.
        """
        changes = self._changes(ask)
        unit = None if ask.unit is None else self._unit(ask.unit)
        image = show(self.pictures.get(ask.picture), ask.view, self.preprocess)
        plain = self.plain(ask.picture, ask.view, image)
        seen = self._pass(self._input(image), changes) if changes else plain
        answer: dict[str, Any] = {
            "image": to_uri(image),
            "top": self._top(plain, seen),
            "units": self._rows(seen),
            "own": self._rows(plain) if changes else None,
        }
        if unit is not None and unit.name in seen.selections:
            answer["channels"] = seen.selections[unit.name].round(4).tolist()
            if ask.with_field:
                (answer["field"],) = self._fields(self._input(image), changes, [unit])
        return answer

    def look_at_all(self, picture: str, view: View) -> dict[str, Any]:
        """What `look` answers of a picture as the units choose, with the channels and fields of all that took part."""
        answer, seen = self.look(Ask(picture=picture, view=view)), self.plain(picture, view)
        units = [unit for unit in self.units if unit.name in seen.selections]
        x = self._input(show(self.pictures.get(picture), view, self.preprocess))
        fields = dict(zip([unit.name for unit in units], self._fields(x, {}, units), strict=True)) if units else {}
        answer["channels"] = [
            seen.selections[u.name].round(3).tolist() if u.name in seen.selections else None for u in self.units
        ]
        answer["fields"] = [fields.get(unit.name) for unit in self.units]
        return answer

    def plain(self, picture: str, view: View, image: Image.Image | None = None) -> Seen:
        """What the network makes of a picture as it is; the latest are kept."""
        key = (picture, view)
        if key not in self._plain:
            image = image or show(self.pictures.get(picture), view, self.preprocess)
            self._plain[key] = self._pass(self._input(image), {})
            if len(self._plain) > _KEPT:
                self._plain.popitem(last=False)
        self._plain.move_to_end(key)
        return self._plain[key]

    def _unit(self, number: int) -> UnitInfo:
        if not 0 <= number < len(self.units):
            raise UsageError(f"no unit has the number {number}", "the request", f"there are {len(self.units)} units")
        return self.units[number]

    def _changes(self, ask: Ask) -> dict[str, Change]:
        """Unit name to what becomes of its selection."""
        changes: dict[str, Change] = {}
        for number, word in ask.choices.items():
            name = self._unit(number).name
            if word == "mean":
                for _ in self._steps:  # a mean over some of the pictures would be another at the next question
                    pass
                if name not in self.means.of:
                    raise UsageError("no mean is known", self.units[number].label, "it takes pictures of the run")
                changes[name] = frozen(self.means.of[name])
            elif word == "other":
                if not ask.donor:
                    raise UsageError("no other picture is chosen", self.units[number].label, "choose one")
                theirs = self.plain(ask.donor, ask.donor_view).selections
                if name in theirs:
                    changes[name] = frozen(theirs[name].astype(np.float64))
            elif word.isdecimal() and len(word) < 4 and int(word) < self._branches.get(name, 0):
                changes[name] = forced(int(word))
            else:
                what = f"{word[:40]!r} is no branch of it"
                raise UsageError(what, self.units[number].label, "give a branch's number, mean or other")
        return changes

    def _input(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image).transpose(2, 0, 1))[None]
        return to_input(pixels, self.preprocess, device_of(self.model))

    @torch.inference_mode()
    def _pass(self, x: Tensor, changes: Mapping[str, Change]) -> Seen:
        with choose(self.model, changes), record(self.model) as selection:  # so that what is recorded is as changed
            logits = self.model(x)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 1:
            raise UsageError("the network does not give one number per class", self.title, "explore takes classifiers")
        values = logits[0].float().cpu().numpy()
        chosen = {name: a[0].float().cpu().numpy() for name, a in selection.items()}
        if not all(np.isfinite(a).all() for a in (values, *chosen.values())):
            raise NumericsError("the network gives no finite numbers", self.title, "look for NaN in its weights")
        return Seen(values, chosen)

    def _rows(self, seen: Seen) -> list[list[float] | None]:
        """Per unit the mean over channels of each branch's selection."""
        rows = [seen.selections.get(unit.name) for unit in self.units]
        return [None if a is None else a.mean(axis=1, dtype=np.float64).round(5).tolist() for a in rows]

    def _top(self, plain: Seen, seen: Seen) -> list[dict[str, Any]]:
        """The likeliest classes as the units choose now, and those that were before."""
        now, before = seen.p, plain.p
        best = dict.fromkeys([*np.argsort(-now)[:_TOP].tolist(), *np.argsort(-before)[:1].tolist()])
        names = [self.classes[c] if c < len(self.classes) else str(c) for c in best]
        return [
            {"class": name, "p": round(float(now[c]), 5), "own": round(float(before[c]), 5)}
            for name, c in zip(names, best, strict=True)
        ]

    def _fields(self, x: Tensor, changes: Mapping[str, Change], units: Sequence[UnitInfo]) -> list[dict[str, Any]]:
        """The effective receptive fields of units' centres, as `selection.field` has them."""
        with torch.enable_grad(), choose(self.model, changes):
            energies = energies_of(self.model, [unit.name for unit in units], x)
        return [_drawn(energies[unit.name][0]) for unit in units]


def _drawn(energy: Array) -> dict[str, Any]:
    """A field (H, W) as the page draws it: its root as bytes, its middle and radius in px of the input."""
    (radius,) = radius_of(energy[None])
    if not np.isfinite(radius):  # no pixel moves it
        return {"map": "", "cells": 0, "radius": None, "x": 0, "y": 0}
    rows, columns = np.indices(energy.shape)
    cells = _in_cells(energy)
    shown = np.sqrt(cells / cells.max())
    return {
        "map": base64.b64encode((255 * shown).round().astype(np.uint8).tobytes()).decode(),
        "cells": len(cells),
        "radius": round(float(radius), 3),
        "x": round(float((energy * columns).sum()) + 0.5, 3),
        "y": round(float((energy * rows).sum()) + 0.5, 3),
    }


def _in_cells(energy: Array) -> Array:
    """(H, W) as means over at most `_CELLS` cells a side: single pixels of a large input are noise to the eye."""
    for axis, side in enumerate(energy.shape):
        edges = np.linspace(0, side, min(side, _CELLS) + 1).round().astype(int)
        widths = np.diff(edges).reshape((-1, 1) if axis == 0 else (1, -1))
        energy = np.add.reduceat(energy, edges[:-1], axis=axis) / widths
    return energy


def to_uri(image: Image.Image) -> str:
    """An image as a data URI of a PNG."""
    return "data:image/png;base64," + base64.b64encode(to_png(image)).decode()


def to_png(image: Image.Image) -> bytes:
    """An image as PNG, packed fast."""
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    return data.getvalue()
