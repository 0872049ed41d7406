"""Figures of the studies that go beyond scale: classes, replaced selections, receptive fields."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selkern.analysis.causal import ALL, CausalStudy
from selkern.analysis.field import CHOSEN, LARGEST, SMALLEST, FieldStudy
from selkern.analysis.figures import ACCENT, INK, MUTED, SECOND, drawing, shade, short
from selkern.analysis.selection import Selected

_CLASSES = 40  # of the class figure; more are thinned out evenly


def effects(study: CausalStudy) -> Figure:
    """Change of top-1 when the selection is replaced, with intervals: in all units, and in one after the other."""
    together = [e for e in study.effects if e.unit == ALL]
    single = [e for e in study.effects if e.unit != ALL]
    with drawing(7.2, 0.3 * len(study.effects) + 1.5) as figure:
        panels = figure.subplots(2, 1, height_ratios=[len(together), len(single)])
        for axes, effects_, title in zip(panels, (together, single), ("all units", "one unit frozen"), strict=True):
            rows = np.arange(len(effects_))
            change = 100 * np.array([[e.change.low, e.change.value, e.change.high] for e in effects_])
            error = [change[:, 1] - change[:, 0], change[:, 2] - change[:, 1]]
            axes.errorbar(change[:, 1], rows, xerr=error, fmt="o", ms=5, color=ACCENT, capsize=2.5)
            axes.axvline(0, color=MUTED, lw=1)
            axes.set_yticks(rows, [e.what if e.unit == ALL else e.unit for e in effects_])
            axes.set_ylim(len(effects_) - 0.5, -0.5)
            axes.set_title(title)
        panels[-1].set_xlabel("change of top-1, percentage points, 95 % interval")
        return figure


def classes(selected: Selected) -> Figure:
    """Per unit: mean preference of every class at each enlargement (paper Figure 4)."""
    rows = selected.class_rows()
    names = list(dict.fromkeys(row.name for row in rows))
    shown = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(_CLASSES, len(names))).astype(int))]
    units = [unit.label for unit in selected.units]
    found = {(row.name, row.unit): row for row in rows}
    with drawing(7.2, 1.5 * len(units) + 0.9) as figure:
        grid = figure.subplots(len(units), 1, squeeze=False, sharex=True).ravel()
        x = np.arange(len(shown))
        for axes, unit in zip(grid, units, strict=True):
            for z, zoom in enumerate(selected.zooms):
                e = [found[name, unit].preference[z] for name in shown]
                mean = np.array([each.value for each in e])
                error = mean - np.array([each.low for each in e])
                colour = shade(z, len(selected.zooms))
                beside = x + 0.16 * (z - (len(selected.zooms) - 1) / 2)
                axes.errorbar(beside, mean, yerr=error, fmt="o", ms=3, lw=1, color=colour, label=f"{zoom:.1f}x")
            axes.set_title(unit)
        rotation = 0 if max(map(len, shown)) <= 3 else 60
        ha = "center" if not rotation else "right"
        grid[-1].set_xticks(x, [short(name) for name in shown], rotation=rotation, ha=ha, parse_math=False)
        grid[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(selected.zooms))
        figure.supylabel("lean to the larger kernel, 95 % interval", fontsize=9)
        return figure


def radii(study: FieldStudy) -> Figure:
    """Radius of the effective receptive field per unit, as chosen and forced."""
    labels = list(dict.fromkeys(field.label for field in study.fields))
    ways = {SMALLEST: SECOND, CHOSEN: INK, LARGEST: ACCENT}
    with drawing(7.2, 2.8) as figure:
        axes = figure.add_subplot()
        x = np.arange(len(labels))
        for shift, (how, colour) in zip((-0.15, 0.0, 0.15), ways.items(), strict=True):
            radius = [study.of(label, how).radius for label in labels]
            mean = np.array([r.value for r in radius])
            error = mean - np.array([r.low for r in radius])
            axes.errorbar(x + shift, mean, yerr=error, fmt="o", ms=5, color=colour, capsize=2.5, label=how)
        axes.set_xticks(x, labels)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("radius, px of the input")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        return figure


def fields(study: FieldStudy) -> Figure:
    """Where the squared gradient of each unit's centre lies, mean over images: smallest kernel, as chosen, largest."""
    labels = list(dict.fromkeys(field.label for field in study.fields))
    ways = (SMALLEST, CHOSEN, LARGEST)
    with drawing(7.2, 7.2 * 3 / max(len(labels), 4) + 0.6) as figure:
        grid = figure.subplots(3, max(len(labels), 4), squeeze=False)
        for row, how in enumerate(ways):
            for column, axes in enumerate(grid[row]):
                axes.set_xticks([])
                axes.set_yticks([])
                axes.grid(visible=False)
                if column < len(labels):
                    _map(axes, study, labels[column], how)
                    if row == 0:
                        axes.set_title(labels[column], fontsize=8)
                else:
                    axes.set_axis_off()
            grid[row][0].set_ylabel(how, fontsize=8)
        return figure


def _map(axes: Axes, study: FieldStudy, label: str, how: str) -> None:
    energy = study.of(label, how).energy ** 0.25  # the fourth root shows the faint rim
    axes.imshow(energy, cmap="Blues", vmin=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
