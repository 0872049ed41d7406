"""Make the tables of docs/evidence.md and of the README out of docs/evidence.yaml and studies/results.

    python tools/evidence.py           # writes both
    python tools/evidence.py --check   # ends with 1 where they are not what the results say

A row of docs/evidence.yaml is a claim and where its figure is; that file explains the forms.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from selkern.selection.causal import ALL
from selkern.selection.statistics import Estimate
from selkern.study.present import points
from selkern.study.results import paired

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "studies" / "results"
DEMO = RESULTS / "demo"
PAGES = {ROOT / "README.md": "", ROOT / "docs" / "evidence.md": "../"}
PLACE = re.compile(r"(<!-- tools/evidence\.py (\w+) -->\n\n).*?\n(<!-- end -->)", re.DOTALL)
_EFFECTS = {
    "frozen": "every unit's selection frozen to its mean",
    "shuffled": "the selection of another image",
    "smallest kernel": "the smallest kernel alone",
    "largest kernel": "the largest kernel alone",
}
NEAR = 0.01  # of top-1: within it two arms are as good as each other, where a claim says so
WEAK = 0.2  # rank correlations within it are no pattern, where a claim says so

Row = Mapping[str, Any]


def results(study: str) -> dict[str, Any]:
    """The results file of a study."""
    return dict(json.loads((RESULTS / f"{study}.json").read_text(encoding="utf-8")))


def evidence(above: str) -> str:
    """The paper's claims and our figures, with links from a page that lies `above` the root."""
    rows = yaml.safe_load((ROOT / "docs" / "evidence.yaml").read_text(encoding="utf-8"))
    lines = ["| the paper | measured here | 95 % interval | n | verdict | command |", "|---" * 6 + "|"]
    lines += [f"| {row['claim']} | {' | '.join(cells(row, above))} |" for row in rows]
    return "\n".join(lines) + "\n"


def headline(above: str) -> str:
    """The rows that the README shows: claim, measurement with its interval, verdict."""
    rows = yaml.safe_load((ROOT / "docs" / "evidence.yaml").read_text(encoding="utf-8"))
    lines = ["| the paper's claim | measured here [95 % interval] | verdict | command |", "|---" * 4 + "|"]
    for row in rows:
        if "headline" in row:
            measured, interval, n, verdict_, command = cells(row, above)
            kind, _, figures = measured.rpartition(": ") if ": " in measured else ("", "", measured)
            pairs = zip(figures.split(", "), interval.replace("], [", "];[").split(";"), strict=True)
            shown = ", ".join(f"{figure} {ends}" for figure, ends in pairs)
            lines.append(f"| {row['headline']} | {kind}{': ' * bool(kind)}{shown}, {n} | {verdict_} | {command} |")
    return "\n".join(lines) + "\n"


def cells(row: Row, above: str) -> Iterator[str]:
    """Measurement, interval, n, verdict, command."""
    if "why" in row:
        yield from ("", "", "", f"not testable here: {row['why']}", "")
        return
    study = results(row["study"])
    seeds = f"{len(study['seeds'])} seeds"
    if "cost" in row:
        yield from (_costs(study, row["cost"]), "", seeds)
        yield "no claim on times"
    elif "what" in row:
        yield from _units(study, row, seeds)
    else:
        difference, base = _difference(study, row), study["study"]["baseline"]
        yield f"{row['arm']} minus {base}: {points(difference.value)} points of top-1{_where(study, row)}"
        yield f"[{points(difference.low)}, {points(difference.high)}]"
        yield seeds
        yield verdict(difference, row["holds"])
    yield f"[`{study['circumstances']['command']}`]({above}studies/results/{row['study']}.md)"


def verdict(figure: Estimate, holds: str | None) -> str:
    """Of a claim that expects a figure to be above, below or near zero."""
    if holds is None:
        return {1: "better; no claim", 0: "no difference seen; no claim", -1: "worse; no claim"}[figure.sign]
    if holds in ("near", "weak"):
        return "holds" if max(abs(figure.low), abs(figure.high)) <= {"near": NEAR, "weak": WEAK}[holds] else "not seen"
    wanted = {"above": 1, "below": -1}[holds]
    return {wanted: "holds", 0: "not seen", -wanted: "not seen: the opposite"}[figure.sign]


def _difference(study: Row, row: Row) -> Estimate:
    """Arm minus baseline over seeds, on all test images or those of some bins of scale."""

    def top1(arm: str) -> list[float]:
        runs = [run for run in study["runs"] if run["arm"] == arm]
        if "bins" not in row:
            return [run["top1"] for run in runs]
        chosen = [[run["per_scale"][number] for number in row["bins"]] for run in runs]
        return [sum(b["images"] * b["top1"] for b in bins) / sum(b["images"] for b in bins) for bins in chosen]

    difference = paired(top1(row["arm"]), top1(study["study"]["baseline"]))
    assert difference is not None  # there are several seeds
    return difference


def _where(study: Row, row: Row) -> str:
    if "bins" not in row:
        return ""
    bins = [study["runs"][0]["per_scale"][number] for number in row["bins"]]
    shown = ", ".join(f"{each['low']:g}-{each['high']:g}" for each in bins)
    return f" at scales {shown} ({sum(each['images'] for each in bins):,} images)"


def _units(study: Row, row: Row, seeds: str) -> Iterator[str]:
    """What some units chose, each with its interval, and in how many of them the claim holds."""
    rows = {each["unit"]: each for each in study["arms"][row["arm"]]["selection"] if each["what"] == row["what"]}
    figures = {unit: Estimate(rows[unit]["value"], *rows[unit]["interval"]) for unit in row["units"]}
    share = row["what"].startswith("top-1")
    show = points if share else "{:+.2f}".format
    kind = (
        "points of top-1" if share else {"enlargement": "change of the selection"}.get(row["what"], "rank correlation")
    )
    yield f"{kind}: {', '.join(f'{unit} {show(figure.value)}' for unit, figure in figures.items())}"
    yield ", ".join(f"[{show(figure.low)}, {show(figure.high)}]" for figure in figures.values())
    yield seeds
    held = [verdict(figure, row["holds"]) for figure in figures.values()]
    if len(set(held)) == 1:
        yield held[0]
    else:
        yield f"holds in {held.count('holds')} of {len(held)}; the opposite in {held.count('not seen: the opposite')}"


def _costs(study: Row, arm: str) -> str:
    """Time and memory of the baseline over those of an arm of the same widths."""
    measured, base = study["circumstances"]["measured"], study["study"]["baseline"]

    def ratio(pick: str) -> float:
        one, other = (measured[name][pick] for name in (base, arm))
        return float(one / other if pick == "held_mib" else one["median"] / other["median"])

    counted = [study["arms"][base][kind] / study["arms"][arm][kind] for kind in ("parameters", "macs")]
    return (
        f"{base} over {arm} of equal widths: parameters {counted[0]:.2f}, multiply-adds {counted[1]:.2f}, "
        f"inference {ratio('inference_ms'):.2f}, training step {ratio('training_ms'):.2f}, kept for backward "
        f"{ratio('held_mib'):.2f}"
    )


def demo(_above: str) -> str:
    """What one run of the demo gave."""
    study = json.loads((DEMO / "evaluation.json").read_text(encoding="utf-8"))
    effects = {row["what"]: row for row in _csv("causal") if row["unit"] == ALL}
    radius = {row["selection"]: float(row["radius_px"]) for row in _csv("fields") if row["unit"] == "SK_4_2"}
    last = [f"{radius[what]:.1f}" for what in ("smallest kernel", "as chosen", "largest kernel")]
    lines = [
        "| | figure | 95 % interval |",
        "|---|---|---|",
        f"| test top-1, {study['images']:,} scenes of digits never trained on | {study['top1']:.2%} | "
        f"{study['top1_low']:.1%} to {study['top1_high']:.1%} |",
    ]
    for kind, meaning in _EFFECTS.items():
        row = {name: float(effects[kind][name]) for name in ("change", "change_low", "change_high")}
        ends = f"[{points(row['change_low'])}, {points(row['change_high'])}]"
        lines.append(f"| top-1 with {meaning}, points | {points(row['change'])} | {ends} |")
    what = "radius of the receptive field in the last unit, px: smallest kernel alone, as chosen, largest alone"
    lines.append(f"| {what} | {', '.join(last)} | |")
    return "\n".join(lines) + "\n"


def units(_above: str) -> str:
    """What each unit of the demo's network does with the size of the object."""
    lines = [
        "| unit | size and selection of the larger kernel, rank correlation | mean intensity removed | "
        "large third of the digits minus small third | centre enlarged 2x |",
        "|---|---|---|---|---|",
    ]
    for known, enlarged in zip(_csv("true_scale"), _csv("scale_sweep"), strict=True):
        cells = [_interval(known, "rho", 2), _interval(known, "partial_rho", 2), _interval(known, "change", 3)]
        lines.append(f"| {known['unit']} | {' | '.join([*cells, _interval(enlarged, 'change', 3)])} |")
    return "\n".join(lines) + "\n"


def _csv(name: str) -> list[dict[str, str]]:
    with (DEMO / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _interval(row: Mapping[str, str], name: str, digits: int) -> str:
    value, low, high = (f"{float(row[key]):+.{digits}f}" for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value} [{low}, {high}]"


def page(text: str, above: str) -> str:
    """A page with its tables made anew."""
    tables = {"evidence": evidence, "headline": headline, "demo": demo, "units": units}
    return PLACE.sub(lambda place: f"{place[1]}{tables[place[2]](above)}\n{place[3]}", text)


def main(words: Sequence[str]) -> int:
    """Write, or check."""
    texts = {path: path.read_text(encoding="utf-8") for path in PAGES}
    made = {path: page(text, PAGES[path]) for path, text in texts.items()}
    wrong = [path for path, text in texts.items() if made[path] != text]
    for path in wrong:
        if "--check" in words:
            print(f"error: not what the results say | {path.name} | python tools/evidence.py", file=sys.stderr)
        else:
            path.write_text(made[path], encoding="utf-8")
            print(f"written: {path.name}")
    return 1 if wrong and "--check" in words else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
