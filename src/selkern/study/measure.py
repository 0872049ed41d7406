"""What the arms of a study cost where it runs: time and memory measured, not counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selkern.layers.memory import set_memory
from selkern.measure.memory import held_for_backward
from selkern.measure.timing import Spread, in_turn
from selkern.study.plan import Study

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
    found: dict[str, dict[str, Any]] = {}
    inference: dict[str, Callable[[], object]] = {}
    training: dict[str, Callable[[], object]] = {}
    batches: dict[str, int] = {}
    for arm in study.arms:
        recipe = arm.options.training
        device = torch.device(arm.options.device)
        model = set_memory(arm.row.build(classes, 3, False), recipe.memory)
        model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.randn(recipe.batch_size, 3, recipe.image_size, recipe.image_size, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.arange(recipe.batch_size, device=device) % classes
        found[arm.name] = {"held_mib": held_for_backward(model.train(), partial(model, images))}
        inference[arm.name] = _inference(model, images[:_BATCH])
        training[arm.name] = _training(model, images, labels)
        batches[arm.name] = recipe.batch_size
    for name, jobs, per in (
        ("inference_ms", inference, {arm: min(_BATCH, size) for arm, size in batches.items()}),
        ("training_ms", training, batches),
    ):
        for arm_name, seconds in in_turn(jobs, budget=_SECONDS, rounds=rounds).items():
            found[arm_name][name] = asdict(Spread.of([1000 * second / per[arm_name] for second in seconds]))
    return found


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
