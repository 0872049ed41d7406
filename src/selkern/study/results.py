"""The figures of a study, out of its runs: ready for JSON, for the table and for the figure.

All but `circumstances` is the same in every rerun on the same machine, so that reruns can be compared.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selkern.errors import CheckpointError
from selkern.measure import machine
from selkern.models.cost import Cost
from selkern.selection.statistics import Estimate
from selkern.study.compare import interval, paired, verdict
from selkern.study.plan import Study, is_digits

Runs = Mapping[tuple[str, int], dict[str, Any]]  # by arm and seed, as result.json has them
_CHANGING = ("date", "load_average", "threads", "threads_by")  # of the machine's description


def assemble(study: Study, costs: Mapping[str, Cost], runs: Runs, threads: int, command: str) -> dict[str, Any]:
    """The results of the seeds that all arms have.

    Args:
        runs: at least one seed of every arm.
        command: that gives these results again.

    Raises:
        CheckpointError: two arms of a seed did not see the same images in the same order.
    """
    names = [arm.name for arm in study.arms]
    seeds = [seed for seed in range(study.seeds) if all((name, seed) in runs for name in names)]
    figures = {(name, seed): runs[name, seed]["figures"] for seed in seeds for name in names}
    _require_same_order(study, seeds, figures)
    about = machine.describe()
    return {
        "study": {
            "name": study.name,
            "title": study.title,
            "claim": study.claim,
            "baseline": study.baseline,
            "short": study.short,
            "seeds_planned": study.seeds,
            "scale_bins": list(study.scale_bins),
            "sha256": study.sha256,
            "file": study.text,
        },
        "seeds": seeds,
        "arms": {arm.name: _arm(study, arm.name, seeds, figures, costs) for arm in study.arms},
        "runs": [{"arm": name, "seed": seed, **figures[name, seed]} for seed in seeds for name in names],
        "threads": threads,
        "versions": _different([runs[key]["versions"] for key in figures]),
        "machine": {name: value for name, value in about.items() if name not in _CHANGING},
        "circumstances": {
            "date": datetime.date.today().isoformat(),
            "command": command,
            "load_average": about["load_average"],
            "runs": [{"arm": name, "seed": seed, **runs[name, seed]["circumstances"]} for name, seed in figures],
        },
    }


def _arm(study: Study, name: str, seeds: Sequence[int], figures: Runs, costs: Mapping[str, Cost]) -> dict[str, Any]:
    arm = next(arm for arm in study.arms if arm.name == name)
    data = arm.options.data

    def column(of: str, key: str, place: int | None = None) -> list[float]:
        rows = [figures[of, seed] if place is None else figures[of, seed]["per_scale"][place] for seed in seeds]
        return [row[key] for row in rows]

    bins = []
    for place, (low, high) in enumerate(itertools.pairwise(study.scale_bins)):
        mine, base = column(name, "top1", place), column(study.baseline, "top1", place)
        images = figures[name, seeds[0]]["per_scale"][place]["images"]
        compared = _compared(mine, base, name == study.baseline) if images else {}
        bins.append({"low": low, "high": high, "images": images, **compared})
    return {
        "model": arm.base,
        "change": dict(arm.change),
        "data": data if is_digits(data) else Path(data).name,
        "recipe": arm.options.recipe,
        "epochs": arm.options.training.epochs,
        **asdict(costs[name]),
        "loss": sum(column(name, "loss")) / len(seeds),
        **_compared(column(name, "top1"), column(study.baseline, "top1"), name == study.baseline),
        "per_scale": bins,
        "selection": _selection([figures[name, seed]["selection"] for seed in seeds]),
    }


def _selection(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Mean over seeds of every figure of the selection that all of them have; see `selections`."""
    found = []
    for rows in zip(*seeds, strict=True):
        assert len({(row["what"], row["unit"]) for row in rows}) == 1  # the same network
        values = [row["value"] for row in rows]
        if None not in values:
            mean = sum(values) / len(values)
            found.append({**rows[0], "value": mean, "interval": _ends(interval(values))})
    return found


def _compared(mine: Sequence[float], base: Sequence[float], is_baseline: bool) -> dict[str, Any]:
    """Mean accuracy over seeds, and the paired difference to the baseline, as shares of 1."""
    difference = None if is_baseline else paired(mine, base)
    return {
        "top1": {"mean": sum(mine) / len(mine), "interval": _ends(interval(mine))},
        "difference": None
        if is_baseline
        else {
            "mean": sum(mine) / len(mine) - sum(base) / len(base),
            "interval": _ends(difference),
            "verdict": verdict(difference),
        },
    }


def _ends(estimate: Estimate | None) -> list[float] | None:
    return None if estimate is None else [estimate.low, estimate.high]


def _require_same_order(study: Study, seeds: Sequence[int], figures: Runs) -> None:
    """The comparison is paired only where it is so; arms with other data or batches see other images."""
    for seed in seeds:
        seen: dict[tuple[object, ...], tuple[str, str]] = {}
        for arm in study.arms:
            options = arm.options
            key = (options.data, options.training.batch_size, options.training.epochs)
            order = figures[arm.name, seed]["order_sha256"]
            other, before = seen.setdefault(key, (arm.name, order))
            if order != before:
                what = f"{arm.name} and {other} did not see the same images in the same order (seed {seed})"
                raise CheckpointError(what, study.name, "move their folders away and run the study again")


def _different(values: Sequence[Any]) -> list[Any]:
    """Each value once, in order of appearance."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
