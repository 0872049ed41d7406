"""The figures of a study as a picture, drawn from its results alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selkern.selection.causal import ALL
from selkern.selection.plots import ACCENT, INK, MUTED, SECOND, drawing, short
from selkern.study.selections import ENLARGED, LIT, SIZE

_COLOURS = (ACCENT, SECOND, "#4c8c4a", "#8e5ea2", INK, MUTED, "#b5475b", "#8a6d3b")

_CHOSEN = {
    SIZE: "size and larger kernel, rank correlation",
    LIT: "the same, mean intensity removed",
    ENLARGED: "larger kernel with the centre enlarged 2x",
}


def draw(results: Mapping[str, Any]) -> Figure:
    """Every seed's top-1 and the paired differences per arm; accuracy by scale and by time where they were taken."""
    study, measured = results["study"], results["circumstances"].get("measured")
    chosen = {name: rows for name, arm in results["arms"].items() if (rows := arm["selection"])}
    rows = 1 + bool(study["scale_bins"]) + bool(chosen) + bool(measured)
    height = 0.8 + 0.34 * len(results["arms"])
    with drawing(9.0, max(height, 2.2) + 3.0 * (rows - 1)) as figure:
        parts = iter(figure.subfigures(rows, 1, height_ratios=[max(height, 2.2)] + [3.0] * (rows - 1), squeeze=False))
        left, right = next(parts)[0].subplots(1, 2, sharey=True)
        _seeds(left, results)
        _differences(right, results)
        if study["scale_bins"]:
            _scales(next(parts)[0].subplots(), results)
        if chosen:
            _chosen(next(parts)[0].subplots(1, 3, sharey=True), chosen)
        if measured:
            _costs(next(parts)[0].subplots(1, 3, sharey=True), results)
        figure.suptitle(study["title"])
    return figure


def _seeds(axes: Axes, results: Mapping[str, Any]) -> None:
    names = list(results["arms"])
    for place, name in enumerate(names):
        dots = [100 * run["top1"] for run in results["runs"] if run["arm"] == name]
        top1 = results["arms"][name]["top1"]
        axes.plot(dots, [place] * len(dots), "o", color=ACCENT, alpha=0.45, markersize=4)
        axes.plot(100 * top1["mean"], place, "|", color=INK, markersize=14, markeredgewidth=2)
        if top1["interval"]:
            axes.hlines(place, *(100 * end for end in top1["interval"]), color=INK, linewidth=1)
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("top-1, %: seeds, mean, 95 % interval")


def _differences(axes: Axes, results: Mapping[str, Any]) -> None:
    axes.axvline(0, color=MUTED, linewidth=1)
    for place, arm in enumerate(results["arms"].values()):
        if (difference := arm["difference"]) is None:
            continue
        seen = difference["verdict"] in ("better", "worse")
        colour = SECOND if seen else MUTED
        axes.plot(100 * difference["mean"], place, "o", color=colour)
        if difference["interval"]:
            axes.hlines(place, *(100 * end for end in difference["interval"]), color=colour, linewidth=2)
    axes.set_xlabel(f"minus {results['study']['baseline']}, points, paired; grey where zero is inside")


def _scales(axes: Axes, results: Mapping[str, Any]) -> None:
    for number, (name, arm) in enumerate(results["arms"].items()):
        bins = [each for each in arm["per_scale"] if each["images"]]
        middles = [(each["low"] * each["high"]) ** 0.5 for each in bins]
        means = [100 * each["top1"]["mean"] for each in bins]
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(middles, means, "o-", color=colour, label=short(name), markersize=4)
        if bins and bins[0]["top1"]["interval"]:
            low, high = ([100 * each["top1"]["interval"][end] for each in bins] for end in (0, 1))
            axes.fill_between(middles, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel("scale of the object")
    axes.set_ylabel("top-1, %")
    axes.legend()


def _chosen(panels: Any, chosen: Mapping[str, Any]) -> None:
    """Per unit and arm, the figures that are told of single units."""
    units = list(dict.fromkeys(row["unit"] for rows in chosen.values() for row in rows if row["unit"] != ALL))
    for axes, (what, label) in zip(panels, _CHOSEN.items(), strict=True):
        axes.axvline(0, color=MUTED, linewidth=1)
        for number, (name, rows) in enumerate(chosen.items()):
            shift, colour = 0.16 * (number - (len(chosen) - 1) / 2), _COLOURS[number % len(_COLOURS)]
            for row in rows:
                if row["what"] == what:
                    place = units.index(row["unit"]) + shift
                    first = row["unit"] == units[0]
                    axes.plot(row["value"], place, "o", color=colour, ms=4, label=short(name) if first else "")
                    if row["interval"]:
                        axes.hlines(place, *row["interval"], color=colour, linewidth=1.5)
        axes.set_xlabel(label)
    panels[0].set_yticks(range(len(units)), units)
    panels[0].set_ylim(len(units) - 0.5, -0.5)
    panels[0].legend()


def _costs(panels: Any, results: Mapping[str, Any]) -> None:
    measured = results["circumstances"]["measured"]
    labels = ("inference, ms per image", "training step, ms per image", "kept for backward, MiB per batch")
    for axes, kind, label in zip(panels, ("inference_ms", "training_ms", "held_mib"), labels, strict=True):
        for number, (name, found) in enumerate(measured.items()):
            cost = found[kind] if kind == "held_mib" else found[kind]["median"]
            top1 = results["arms"][name]["top1"]
            axes.plot(cost, 100 * top1["mean"], "o", color=_COLOURS[number % len(_COLOURS)], label=short(name))
            if top1["interval"]:
                axes.vlines(cost, *(100 * end for end in top1["interval"]), color=MUTED, linewidth=1)
        axes.set_xlabel(label)
    panels[0].set_ylabel("top-1, %")
    panels[-1].legend(fontsize=7)
