"""The figures of a study as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from selkern.selection.causal import ALL

READING = """Top-1 is the mean over seeds on the test images, of the weights that were best in validation. A difference
is the arm minus the baseline in points of top-1, paired by seed (both saw the same images in the same order), with its
95 % interval over seeds (Student's t). Where the interval holds zero, no difference was seen and no winner is named.
Intervals are not widened for there being several; they tell the spread over seeds, not over other test images."""

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
    if told := [(name, rows) for name, arm in arms.items() if (rows := arm["selection"])]:
        parts += [SELECTION, _chosen(told, by_unit=True), _chosen(told, by_unit=False)]
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
        told = f"{points(difference['mean'])} points {ends(difference['interval'])}"
        words = difference["verdict"]
        if words in ("better", "worse"):
            yield f"- {name} is {words} than {base}: {told}"
        else:
            yield f"- {name} and {base}: {words} ({told})"


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


def _cell(found: Mapping[str, Any]) -> str:
    """Of one arm and bin; the difference in bold where its interval leaves out zero."""
    if not found["images"]:
        return "no images"
    text, difference = f"{found['top1']['mean']:.1%}", found["difference"]
    if difference is None:
        return text
    mark = "**" if difference["verdict"] in ("better", "worse") else ""
    return f"{text}, {mark}{points(difference['mean'])}{mark} {ends(difference['interval'])}".rstrip()


def _chosen(told: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], by_unit: bool) -> str:
    """A row for every arm and unit, a column for every figure of single units, or of all units together."""
    rows = [(name, row) for name, rows in told for row in rows if (row["unit"] != ALL) == by_unit]
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
    for name, found in measured.items():
        top1 = results["arms"][name]["top1"]["mean"]
        times = " | ".join(_spread(found[kind]) for kind in ("inference_ms", "training_ms"))
        lines.append(f"| {name} | {top1:.2%} | {times} | {found['held_mib']:.1f} |")
    return "\n".join(lines)


def _spread(found: Mapping[str, float]) -> str:
    return f"{found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _origin(results: Mapping[str, Any]) -> str:
    """Where the figures come from, in a few lines."""
    study, machine, circumstances = results["study"], results["machine"], results["circumstances"]
    versions = "; ".join(
        f"selkern {each['selkern']}, torch {each['torch']}, Python {each['python']}" for each in results["versions"]
    )
    arms = results["arms"].values()
    told = {key: ", ".join(dict.fromkeys(str(arm[key]) for arm in arms)) for key in ("data", "recipe", "epochs")}
    shared = [run["taken_from"].split("/")[0] for run in circumstances["runs"] if run["taken_from"]]
    others = f", {len(shared)} of the {len(circumstances['runs'])} runs with {', '.join(sorted(set(shared)))}"
    hours = sum(run["training_seconds"] for run in circumstances["runs"]) / 3600
    return "\n".join(
        [
            f"Data {told['data']}, recipe {told['recipe']}, epochs: {told['epochs']}, "
            f"{results['runs'][0]['images']:,} test images.",
            f"Again by `{circumstances['command']}` (file SHA-256 {study['sha256'][:16]}).",
            f"{circumstances['date']}, {machine['cpu']}, {results['threads']} thread(s) per run, {versions}; "
            f"{hours:.2f} hours of training in all{others if shared else ''}.",
        ]
    )
