"""The figures of a study, out of its runs: ready for JSON, for the table and for the figure.

All but `circumstances` is the same in every rerun on the same machine, so that reruns can be compared.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selkern.errors import CheckpointError
from selkern.layers.memory import set_memory
from selkern.measure import machine
from selkern.measure.memory import held_for_backward
from selkern.measure.timing import Spread, in_turn
from selkern.models.cost import Cost
from selkern.selection.statistics import Estimate
from selkern.study.plan import Study, is_digits


def interval(values: Sequence[float]) -> Estimate | None:
    """Mean and 95 % interval of independent values by Student's t; None for fewer than two."""
    from scipy.stats import t

    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) < 2:
        return None
    mean = float(numbers.mean())
    half = float(t.ppf(0.975, len(numbers) - 1)) * float(numbers.std(ddof=1)) / len(numbers) ** 0.5
    return Estimate(mean, mean - half, mean + half)


def paired(arm: Sequence[float], baseline: Sequence[float]) -> Estimate | None:
    """Arm minus baseline, value i of each from the same seed; None for fewer than two."""
    return interval([a - b for a, b in zip(arm, baseline, strict=True)])


def verdict(difference: Estimate | None) -> str:
    """In words; no winner is named where the interval holds zero."""
    if difference is None:
        return "one seed: no interval"
    return {1: "better", 0: "no difference seen", -1: "worse"}[difference.sign]


_SECONDS = 20.0  # for the rounds of each of the two comparisons
_BATCH = 64  # of inference


def measure(study: Study, classes: int, threads: int, rounds: int | None = None) -> dict[str, dict[str, Any]]:
    """Of every arm, in turn with the others and on random weights, which time does not depend on:

    `inference_ms` per image, in batches; `training_ms` per image of a step (forward, backward, no optimizer), both as
    median and quartiles over rounds; and `held_mib`, what autograd keeps for the backward pass of a batch.

    Args:
        rounds: exactly so many instead of as many as 20 seconds hold.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _measure(study, classes, rounds)
    finally:
        torch.set_num_threads(before)


def _measure(study: Study, classes: int, rounds: int | None) -> dict[str, dict[str, Any]]:
    result: dict[str, dict[str, Any]] = {}
    inference: dict[str, Callable[[], object]] = {}
    training: dict[str, Callable[[], object]] = {}
    batches: dict[str, int] = {}
    for arm in study.arms:
        recipe = arm.options.training
        device = torch.device(arm.options.device)
        model = set_memory(arm.build(classes), recipe.memory)
        model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.randn(recipe.batch_size, 3, recipe.image_size, recipe.image_size, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.arange(recipe.batch_size, device=device) % classes
        result[arm.name] = {"held_mib": held_for_backward(model.train(), partial(model, images))}
        inference[arm.name] = _inference(model, images[:_BATCH])
        training[arm.name] = _training(model, images, labels)
        batches[arm.name] = recipe.batch_size
    for name, jobs, per in (
        ("inference_ms", inference, {arm: min(_BATCH, size) for arm, size in batches.items()}),
        ("training_ms", training, batches),
    ):
        for arm_name, seconds in in_turn(jobs, budget=_SECONDS, rounds=rounds).items():
            result[arm_name][name] = asdict(Spread.of([1000 * second / per[arm_name] for second in seconds]))
    return result


def _inference(model: nn.Module, images: Tensor) -> Callable[[], object]:
    def job() -> None:
        model.eval()
        with torch.inference_mode():
            model(images)
        _wait(images)

    return job


def _training(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    def job() -> None:
        model.train()
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        _wait(images)

    return job


def _wait(images: Tensor) -> None:
    """Until a GPU is done, which works behind our back."""
    if images.is_cuda:
        torch.cuda.synchronize()


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
    result = []
    for rows in zip(*seeds, strict=True):
        assert len({(row["what"], row["unit"]) for row in rows}) == 1  # the same network
        values = [row["value"] for row in rows]
        if None not in values:
            mean = sum(values) / len(values)
            result.append({**rows[0], "value": mean, "interval": _ends(interval(values))})
    return result


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
    result: list[Any] = []
    for value in values:
        if value not in result:
            result.append(value)
    return result
