"""One image as a network sees it: predictions, and selection and receptive field of every unit, as it is enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray
from torch import nn

from selkern.data.preprocess import Preprocess
from selkern.data.split import Split
from selkern.layers.parts import evaluating
from selkern.selection.field import CHOSEN, receptive_fields
from selkern.selection.plots import MUTED, drawing, short
from selkern.selection.preference import Selected, preference
from selkern.selection.record import record
from selkern.selection.statistics import Array
from selkern.selection.stream import Pictures


@dataclass(frozen=True)
class Look:
    """What a network makes of one image at Z enlargements.

    Attributes:
        where: the image.
        truth: its class; empty where it is not known.
        pixels: (Z, H, W, 3) uint8, as the network gets them.
        top: per zoom the three likeliest classes with their probabilities.
        lean: (Z, U) preference of every unit, in standard deviations from its mean over many images.
        radius: (Z, U) of the effective receptive field of its centre, px.
    """

    where: str
    truth: str
    pixels: NDArray[np.uint8]
    top: tuple[tuple[tuple[str, float], ...], ...]
    lean: Array
    radius: Array


def look(
    model: nn.Module,
    split: Split,
    preprocess: Preprocess,
    index: int,
    selected: Selected,
    classes: Sequence[str],
    device: torch.device,
) -> Look:
    """Look at one image of a split at the enlargements of a study.

    Args:
        selected: of many images, whose means and deviations are the measure of lean.

    Raises:
        DataError: the image cannot be read.
    """
    image = split.read(index, reading=preprocess.reading())
    pixels = np.stack([preprocess(image, zoom) for zoom in selected.zooms])  # (Z, 3, H, W)
    x = preprocess.normalise(torch.from_numpy(pixels)).to(device)
    pictures = Pictures(x, np.full(len(x), -1), np.arange(len(x)), np.zeros((len(x), 2)))
    with torch.inference_mode(), evaluating(model), record(model) as selection:
        p, best = model(x).float().softmax(dim=1).topk(min(3, len(classes)), dim=1)
        lean = torch.stack([preference(selection[u.name], u.extents) for u in selected.units], dim=1)
    fields = receptive_fields(model, [pictures], ways=(CHOSEN,))
    deviation = np.maximum(selected.at_zoom.std[0], 1e-9)
    return Look(
        split.where(index),
        classes[int(split.labels[index])],
        pixels.transpose(0, 2, 3, 1),
        tuple(
            tuple((classes[c], q) for c, q in zip(row.tolist(), share.tolist(), strict=True))
            for row, share in zip(best, p, strict=True)
        ),
        (lean.double().cpu().numpy() - selected.at_zoom.mean[0]) / deviation,
        np.stack([fields.of(u.label).radii for u in selected.units], axis=1),
    )


def draw(looks: Sequence[Look], selected: Selected) -> Figure:
    """A row per image: it at every zoom with the fields of its units drawn on it, and a strip of what they chose."""
    columns = len(selected.zooms)
    with drawing(7.2, 2.75 * len(looks) + 0.4) as figure:
        grid = figure.subplots(2 * len(looks), columns, squeeze=False, height_ratios=[8, 1] * len(looks))
        for n, each in enumerate(looks):
            for z, zoom in enumerate(selected.zooms):
                picture(grid[2 * n, z], each, z, zoom)
                _strip(grid[2 * n + 1, z], each.lean[z], [u.label for u in selected.units], last=n == len(looks) - 1)
        return figure


def picture(axes: Axes, each: Look, z: int, zoom: float) -> None:
    """One enlargement with a circle per unit, and what the network calls it."""
    side = each.pixels.shape[1]
    axes.imshow(each.pixels[z], interpolation="nearest")
    axes.set_axis_off()
    colours = colormaps["viridis"](np.linspace(0, 1, each.radius.shape[1]))
    for radius, colour in zip(each.radius[z], colours, strict=True):
        if np.isfinite(radius):
            axes.add_patch(Circle((side / 2, side / 2), radius, fill=False, color=colour, lw=1.2))
    name, share = each.top[z][0]
    right = "" if not each.truth or name == each.truth else f", not {short(each.truth)}"
    title = f"{zoom:.1f}x: {short(name)} {share:.0%}{right}"
    axes.set_title(title, fontsize=8, fontweight="normal", loc="center", parse_math=False)


def _strip(axes: Axes, lean: Array, labels: Sequence[str], *, last: bool) -> None:
    axes.imshow(lean[None], cmap="PuOr", vmin=-2.5, vmax=2.5, aspect="auto")
    axes.grid(visible=False)
    axes.set_yticks([])
    step = max(len(labels) // 6, 1)
    axes.set_xticks(range(0, len(labels), step), labels[::step] if last else [], fontsize=6, color=MUTED)
