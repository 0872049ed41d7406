"""The results of a study for people: a page of Markdown and a figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selkern.selection.causal import ALL
from selkern.selection.plots import ACCENT, INK, MUTED, SECOND, drawing, short
from selkern.study.run import ENLARGED, LIT, SIZE

READING = """Top-1 is the mean over seeds on the test images, of the weights that were best in validation. A difference
is the arm minus the baseline in points of top-1, paired by seed (both saw the same images in the same order), with its
95 % interval over seeds (Student's t). Where the interval holds zero, no difference was seen and no winner is named.
Intervals are not widened for there being several; they show the spread over seeds, not over other test images."""

SELECTION = """What the units chose on the test images, means over seeds with 95 % intervals (bold where they leave out
zero). Size: rank correlation of the object's known size and the preference for the larger kernel. Enlargement: that
preference with the centre of the image enlarged 2 times, minus that of the image as it is. The last table: points of
top-1 gained with other selections, the weights as they are: the mean over images, another image's, one kernel alone."""


def render(results: Mapping[str, Any]) -> str:
    """Title, claim, tables, findings, and how they came to be."""
    study, arms, seeds = results["study"], results["arms"], results["seeds"]
    parts = [f"# {study['title']}", f"The paper: {study['claim']}"]
    if study["short"]:
        parts.append("**Short form: few images and one epoch, to try the machinery. The figures mean nothing.**")
    if len(seeds) < study["seeds_planned"]:
        parts.append(f"**Not finished: {len(seeds)} of {study['seeds_planned']} seeds.**")
    parts.append("\n".join(_main(arms, study["baseline"], len(seeds))))
    parts.append("\n".join(findings(results)))
    if study["scale_bins"]:
        parts += ["Top-1 by the object's scale, and difference to the baseline in points:", _scales(arms)]
    if chosen := [(name, rows) for name, arm in arms.items() if (rows := arm["selection"])]:
        parts += [SELECTION, _chosen(chosen, by_unit=True), _chosen(chosen, by_unit=False)]
    if measured := results["circumstances"].get("measured"):
        parts += ["Measured in turn, medians with quartiles:", _measured(measured, results)]
    parts += [READING, _origin(results)]
    return "\n\n".join(parts) + "\n"


def findings(results: Mapping[str, Any]) -> Iterator[str]:
    """A line for every arm but the baseline."""
    base = results["study"]["baseline"]
    for name, arm in results["arms"].items():
        if (difference := arm["difference"]) is None:
            continue
        shown = f"{points(difference['mean'])} points {ends(difference['interval'])}".rstrip()
        words = difference["verdict"]
        if words in ("better", "worse"):
            yield f"- {name} is {words} than {base}: {shown}"
        else:
            yield f"- {name} and {base}: {words} ({shown})"


def points(share: float) -> str:
    """A share as signed points of percent."""
    return f"{100 * share:+.2f}"


def ends(interval: Sequence[float] | None) -> str:
    """An interval of shares as points; nothing where there is none."""
    return "" if interval is None else f"[{points(interval[0])}, {points(interval[1])}]"


def _main(arms: Mapping[str, Any], baseline: str, seeds: int) -> Iterator[str]:
    yield f"| arm | parameters | MACs | top-1 | minus {baseline}, points | 95 % interval | seeds | verdict |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, arm in arms.items():
        difference = arm["difference"]
        row = ["", "", "", "baseline"]
        if difference is not None:
            row = [points(difference["mean"]), ends(difference["interval"]), "", difference["verdict"]]
        row[2] = str(seeds)
        cost = f"{arm['parameters']:,} | {arm['macs'] / 1e6:.2f} M"
        yield f"| {name} | {cost} | {arm['top1']['mean']:.2%} | {' | '.join(row)} |"


def _scales(arms: Mapping[str, Any]) -> str:
    bins = next(iter(arms.values()))["per_scale"]
    head = [f"{each['low']:g}-{each['high']:g} ({each['images']:,})" for each in bins]
    lines = [f"| arm | {' | '.join(head)} |", "|---" * (len(bins) + 1) + "|"]
    for name, arm in arms.items():
        cells = [_cell(each) for each in arm["per_scale"]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(result: Mapping[str, Any]) -> str:
    """Of one arm and bin; the difference in bold where its interval leaves out zero."""
    if not result["images"]:
        return "no images"
    text, difference = f"{result['top1']['mean']:.1%}", result["difference"]
    if difference is None:
        return text
    mark = "**" if difference["verdict"] in ("better", "worse") else ""
    return f"{text}, {mark}{points(difference['mean'])}{mark} {ends(difference['interval'])}".rstrip()


def _chosen(arms: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], by_unit: bool) -> str:
    """A row for every arm and unit, a column for every figure of single units, or of all units together."""
    rows = [(name, row) for name, rows in arms for row in rows if (row["unit"] != ALL) == by_unit]
    columns = list(dict.fromkeys(row["what"] for _, row in rows))
    lines = [f"| arm | unit | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for name, unit in dict.fromkeys((name, row["unit"]) for name, row in rows):
        cells = {row["what"]: _figure(row, by_unit) for arm, row in rows if (arm, row["unit"]) == (name, unit)}
        lines.append(f"| {name} | {unit} | {' | '.join(cells.get(column, '') for column in columns)} |")
    return "\n".join(lines)


def _figure(row: Mapping[str, Any], plain: bool) -> str:
    """As it is, or in points."""
    show = (lambda value: f"{value:+.2f}") if plain else points
    value, interval = row["value"], row["interval"]
    if interval is None:
        return show(value)
    mark = "**" if interval[0] > 0 or interval[1] < 0 else ""
    return f"{mark}{show(value)}{mark} [{show(interval[0])}, {show(interval[1])}]"


def _measured(measured: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    lines = [
        "| arm | top-1 | inference, ms per image | training step, ms per image | kept for backward, MiB per batch |",
        "|---|---|---|---|---|",
    ]
    for name, result in measured.items():
        top1 = results["arms"][name]["top1"]["mean"]
        times = " | ".join(_spread(result[kind]) for kind in ("inference_ms", "training_ms"))
        lines.append(f"| {name} | {top1:.2%} | {times} | {result['held_mib']:.1f} |")
    return "\n".join(lines)


def _spread(result: Mapping[str, float]) -> str:
    return f"{result['median']:.3f} ({result['low']:.3f} to {result['high']:.3f})"


def _origin(results: Mapping[str, Any]) -> str:
    """Where the figures come from, in a few lines."""
    study, machine, circumstances = results["study"], results["machine"], results["circumstances"]
    versions = "; ".join(
        f"selkern {each['selkern']}, torch {each['torch']}, Python {each['python']}" for each in results["versions"]
    )
    arms = results["arms"].values()
    common = {key: ", ".join(dict.fromkeys(str(arm[key]) for arm in arms)) for key in ("data", "recipe", "epochs")}
    shared = [run["taken_from"].split("/")[0] for run in circumstances["runs"] if run["taken_from"]]
    others = f", {len(shared)} of the {len(circumstances['runs'])} runs with {', '.join(sorted(set(shared)))}"
    hours = sum(run["training_seconds"] for run in circumstances["runs"]) / 3600
    return "\n".join(
        [
            f"Data {common['data']}, recipe {common['recipe']}, epochs: {common['epochs']}, "
            f"{results['runs'][0]['images']:,} test images.",
            f"Again by `{circumstances['command']}` (file SHA-256 {study['sha256'][:16]}).",
            f"{circumstances['date']}, {machine['cpu']}, {results['threads']} thread(s) per run, {versions}; "
            f"{hours:.2f} hours of training in all{others if shared else ''}.",
        ]
    )


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
            _draw_scales(next(parts)[0].subplots(), results)
        if chosen:
            _draw_chosen(next(parts)[0].subplots(1, 3, sharey=True), chosen)
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


def _draw_scales(axes: Axes, results: Mapping[str, Any]) -> None:
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


def _draw_chosen(panels: Any, chosen: Mapping[str, Any]) -> None:
    """Per unit and arm, the figures that are shown of single units."""
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
        for number, (name, result) in enumerate(measured.items()):
            cost = result[kind] if kind == "held_mib" else result[kind]["median"]
            top1 = results["arms"][name]["top1"]
            axes.plot(cost, 100 * top1["mean"], "o", color=_COLOURS[number % len(_COLOURS)], label=short(name))
            if top1["interval"]:
                axes.vlines(cost, *(100 * end for end in top1["interval"]), color=MUTED, linewidth=1)
        axes.set_xlabel(label)
    panels[0].set_ylabel("top-1, %")
    panels[-1].legend(fontsize=7)
