"""Figures drawn from the rows of a study (`tables.Result.to_rows`): enlargement, classes, replacements, fields."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

INK, MUTED, ACCENT, SECOND = "#1c2733", "#7b8794", "#0b6e99", "#d9730d"
LONGEST = 20  # characters of a class name in a figure
SHADES = ("#9ccbe0", "#3f97be", "#0b4f6c")  # small to large objects
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": "#c5ced6",
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8edf1",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "svg.hashsalt": "selkern",  # the same figure gives the same file
}


@contextmanager
def _saving() -> Iterator[None]:
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks: boxes will do
        yield


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    data = io.BytesIO()
    with _saving():
        figure.savefig(data, format="png")
    return data.getvalue()


def to_svg(figure: Figure) -> str:
    """The figure as an <svg> element to put into a page."""
    text = io.StringIO()
    with _saving():
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return text.getvalue()[text.getvalue().index("<svg") :]


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of a size in inches, in the style of all."""
    with rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def short(name: str) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def shade(number: int, of: int) -> str:
    """Colour of one of several ordered groups, light to dark."""
    return SHADES[round(number * (len(SHADES) - 1) / max(of - 1, 1))]


Rows = Sequence[Mapping[str, Any]]
_CLASSES = 40  # of the class figure; more are thinned out evenly


def _columns(rows: Rows, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A figure of every row, and how far its interval reaches below and above it: (n,) and (2, n)."""
    value, low, high = (np.array([row[f"{name}{end}"] for row in rows], float) for end in ("", "_low", "_high"))
    return value, np.stack([value - low, high - value])


def bars(rows: Rows, groups: Sequence[str], title: str, y_name: str) -> Figure:
    """Per unit: mean preference for each group of images (paper Figure 3, bars)."""
    with drawing(7.2, 2.9) as figure:
        axes = figure.add_subplot()
        x = np.arange(len(rows))
        width = 0.8 / len(groups)
        for g, name in enumerate(groups):
            value, reach = _columns(rows, name)
            axes.bar(
                x + (g - (len(groups) - 1) / 2) * width,
                value,
                width * 0.94,
                yerr=reach,
                color=shade(g, len(groups)),
                error_kw={"elinewidth": 1, "ecolor": INK, "capsize": 1.5},
                label=name,
            )
        axes.axhline(0, color=MUTED, lw=1)
        axes.set_xticks(x, [row["unit"] for row in rows])
        axes.grid(axis="x", visible=False)
        axes.set_ylabel(y_name)
        axes.legend(title=title, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(groups))
        return figure


def effects(together: Rows, single: Rows) -> Figure:
    """Change of top-1 when the selection is replaced, with intervals: in all units, and in one after the other."""
    with drawing(7.2, 0.3 * (len(together) + len(single)) + 1.5) as figure:
        panels = figure.subplots(2, 1, height_ratios=[len(together), max(len(single), 1)])
        parts = ((together, "what", "all units"), (single, "unit", "one unit frozen"))
        for axes, (rows, name, title) in zip(panels, parts, strict=True):
            change, reach = _columns(rows, "change")
            at = np.arange(len(rows))
            axes.errorbar(100 * change, at, xerr=100 * reach, fmt="o", ms=5, color=ACCENT, capsize=2.5)
            axes.axvline(0, color=MUTED, lw=1)
            axes.set_yticks(at, [row[name] for row in rows])
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set_title(title)
        panels[-1].set_xlabel("change of top-1, percentage points, 95 % interval")
        return figure


def classes(rows: Rows, zooms: Sequence[float]) -> Figure:
    """Per unit: mean preference of every class at each enlargement (paper Figure 4), from `Selected.class_table`."""
    names = list(dict.fromkeys(row["class"] for row in rows))
    shown = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(_CLASSES, len(names))).astype(int))]
    units = list(dict.fromkeys(row["unit"] for row in rows))
    result = {(row["class"], row["unit"]): row for row in rows}
    with drawing(7.2, 1.5 * len(units) + 0.9) as figure:
        grid = figure.subplots(len(units), 1, squeeze=False, sharex=True).ravel()
        x = np.arange(len(shown))
        for axes, unit in zip(grid, units, strict=True):
            for z, zoom in enumerate(zooms):
                value, reach = _columns([result[name, unit] for name in shown], f"lean_{zoom:g}x")
                beside = x + 0.16 * (z - (len(zooms) - 1) / 2)
                colour = shade(z, len(zooms))
                axes.errorbar(beside, value, yerr=reach, fmt="o", ms=3, lw=1, color=colour, label=f"{zoom:.1f}x")
            axes.set_title(unit)
        rotation = 0 if max(map(len, shown)) <= 3 else 60
        ha = "center" if not rotation else "right"
        grid[-1].set_xticks(x, [short(name) for name in shown], rotation=rotation, ha=ha, parse_math=False)
        grid[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(zooms))
        figure.supylabel("lean to the larger kernel, 95 % interval", fontsize=9)
        return figure


def radii(rows: Rows, ways: Sequence[str]) -> Figure:
    """Radius of the effective receptive field per unit, for three ways of selecting: smallest, as chosen, largest."""
    with drawing(7.2, 2.8) as figure:
        axes = figure.add_subplot()
        for shift, how, colour in zip((-0.15, 0.0, 0.15), ways, (SECOND, INK, ACCENT), strict=True):
            some = [row for row in rows if row["selection"] == how]
            value, reach = _columns(some, "radius_px")
            x = np.arange(len(some))
            axes.errorbar(x + shift, value, yerr=reach, fmt="o", ms=5, color=colour, capsize=2.5, label=how)
            axes.set_xticks(x, [row["unit"] for row in some])
        axes.set_ylim(bottom=0)
        axes.set_ylabel("radius, px of the input")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        return figure


def fields(energies: Mapping[tuple[str, str], NDArray[np.float64]], ways: Sequence[str]) -> Figure:
    """Where the squared gradient of each unit's centre lies: a column per unit, a row per way of selecting.

    Args:
        energies: (unit, way) to (H, W).
    """
    labels = list(dict.fromkeys(label for label, _ in energies))
    columns = max(len(labels), 4)
    with drawing(7.2, 7.2 * len(ways) / columns + 0.6) as figure:
        grid = figure.subplots(len(ways), columns, squeeze=False)
        for axes in grid.ravel():
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
            for spine in axes.spines.values():
                spine.set_visible(False)
        for row, how in enumerate(ways):
            for column, label in enumerate(labels):
                grid[row][column].imshow(energies[label, how] ** 0.25, cmap="Blues", vmin=0)  # shows the faint rim
                if row == 0:
                    grid[row][column].set_title(label, fontsize=8)
            grid[row][0].set_ylabel(how, fontsize=8)
        return figure
