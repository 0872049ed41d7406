"""Figures of a report, drawn from its results. Each function returns a matplotlib `Figure`; nothing global changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from selkern.evaluation import Evaluation
from selkern.selection.plots import ACCENT, INK, MUTED, SECOND, SHADES, STYLE, drawing, shade, short
from selkern.selection.scale import ScaleStudy, UnitScale
from selkern.selection.statistics import mean_estimate


def correlations(study: ScaleStudy) -> Figure:
    """Rank correlation of true size and preference: within classes, with the light removed too, and pooled."""
    kinds = (
        ("within", ACCENT, "o", "within classes"),
        ("within_lit", SECOND, "D", "intensity and contrast removed too"),
        ("rho", MUTED, "s", "pooled over classes"),
    )
    with drawing(7.2, 0.5 * len(study.units) + 1.1) as figure:
        axes = figure.add_subplot()
        rows = np.arange(len(study.units))
        for shift, (name, colour, marker, label) in zip((-0.22, 0.0, 0.22), kinds, strict=True):
            estimates = [getattr(unit, name) for unit in study.units]
            values = np.array([e.value for e in estimates])
            errors = np.abs(np.array([[e.value - e.low, e.high - e.value] for e in estimates]).T)
            axes.errorbar(values, rows + shift, xerr=errors, fmt=marker, ms=5, color=colour, capsize=2.5, label=label)
        axes.axvline(0, color=MUTED, lw=1)
        axes.set_yticks(rows, [unit.unit.label for unit in study.units])
        axes.invert_yaxis()
        axes.set_xlim(-1, 1)
        axes.set_xlabel("rank correlation, 95 % interval")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
        return figure


def dose_response(study: ScaleStudy) -> Figure:
    """Per unit: preference for the larger kernel against the object's true scale, means of ten bins."""
    assert study.scale is not None and study.preference is not None
    edges = np.quantile(study.scale, np.linspace(0, 1, 11))
    bins = np.clip(np.searchsorted(edges, study.scale, side="right") - 1, 0, 9)
    kept = [b for b in range(10) if (bins == b).sum() > 1]
    middles = [float(study.scale[bins == b].mean()) for b in kept]

    def draw(axes: Axes, number: int, unit: UnitScale) -> None:
        assert study.preference is not None
        means = [mean_estimate(study.preference[bins == b, number]) for b in kept]
        axes.fill_between(middles, [m.low for m in means], [m.high for m in means], color=SHADES[0], alpha=0.7, lw=0)
        axes.plot(middles, [m.value for m in means], color=ACCENT, marker="o", ms=3)
        axes.set_title(unit.unit.label)
        if unit.within and unit.rho:
            note = f"within classes {unit.within.value:+.2f}\npooled {unit.rho.value:+.2f}"
            y, side = (0.04, "bottom") if means[-1].value >= means[0].value else (0.96, "top")  # where the curve is not
            axes.text(0.97, y, note, transform=axes.transAxes, ha="right", va=side, fontsize=7)

    return _per_unit(study.units, draw, study.size_name, study.axis_name)


def channel_curves(study: ScaleStudy, units: Sequence[str] | None = None) -> Figure:
    """Per unit: selection of the largest kernel along the channels, in 16 means (paper Figure 3, curves).

    Args:
        units: labels of those shown; None for all.

    Raises:
        ValueError: no such unit.
    """
    shown = study.units
    if units is not None:
        shown = tuple(unit for unit in study.units if unit.unit.label in units)
        if missing := set(units) - {unit.unit.label for unit in shown}:
            known = ", ".join(unit.unit.label for unit in study.units)
            raise ValueError(f"no units {', '.join(sorted(missing))}; there are {known}")

    def draw(axes: Axes, _number: int, unit: UnitScale) -> None:
        channels = unit.curve.shape[1]
        width = max(channels // 16, 1)
        order = np.arange(0, channels - channels % width, width)
        for g, curve in enumerate(unit.curve):
            means = [curve[i : i + width].mean() for i in order]
            axes.plot(
                order + (width - 1) / 2,
                means,
                color=shade(g, len(unit.curve)),
                label=study.group_names[g],
                lw=1.4,
            )
        axes.set_title(unit.unit.label)

    figure = _per_unit(shown, draw, "channel", "selection of the largest kernel")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    with rc_context(STYLE):
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def training_curves(rows: Sequence[dict[str, float]]) -> Figure:
    """Loss and top-1 of training and validation, per epoch."""
    with drawing(7.2, 2.6) as figure:
        left, right = figure.subplots(1, 2)
        epochs = [row["epoch"] for row in rows]
        for axes, name in ((left, "loss"), (right, "top1")):
            axes.plot(
                epochs,
                [row[f"train_{name}"] for row in rows],
                color=MUTED,
                marker="o",
                ms=3,
                label="training",
            )
            axes.plot(
                epochs,
                [row[f"val_{name}"] for row in rows],
                color=ACCENT,
                marker="o",
                ms=3,
                label="validation",
            )
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if len(epochs) == 1:
                axes.set_xticks(epochs)  # of one, the locator makes fractions
        left.set_title("loss, nats")
        left.set_ylim(0, 1.05 * left.get_ylim()[1])  # room for a point at the top
        right.set_title("top-1")
        right.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        left.legend()
        return figure


def confusion(evaluation: Evaluation) -> Figure:
    """Confusion matrix, each row as shares of its true class; counts are written in where they can be read."""
    counts = evaluation.confusion()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    n = len(counts)
    small = n <= 20
    with drawing(*((0.42 * n + 1.6, 0.38 * n + 1.2) if small else (7.2, 6.6))) as figure:
        axes = figure.add_subplot()
        axes.imshow(shares**0.5, cmap="Blues", vmin=0, vmax=1)  # the root shows rare confusions
        axes.grid(visible=False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if small:
            rotation = 0 if max(map(len, evaluation.classes)) <= 3 else 45
            ha = "center" if not rotation else "right"
            # Class names are the user's: a $ in them is a $ and not the start of a formula.
            names = [short(name) for name in evaluation.classes]
            axes.set_xticks(range(n), names, rotation=rotation, ha=ha, parse_math=False)
            axes.set_yticks(range(n), names, parse_math=False)
            for (i, j), count in np.ndenumerate(counts):
                if count:
                    colour = "white" if shares[i, j] > 0.3 else INK
                    axes.text(j, i, str(count), ha="center", va="center", fontsize=8, color=colour)
        return figure


def _per_unit(
    units: Sequence[UnitScale], draw: Callable[[Axes, int, UnitScale], None], x_name: str, y_name: str
) -> Figure:
    columns = min(3, len(units))
    rows = -(-len(units) // columns)
    with drawing(7.2, 1.9 * rows + 0.5) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(units) :]:
            axes.set_axis_off()
        for number, unit in enumerate(units):
            draw(grid[number], number, unit)
        figure.supxlabel(x_name, fontsize=9)
        figure.supylabel(y_name, fontsize=9)
        return figure
