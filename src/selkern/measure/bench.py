"""Time and memory of models: inference, a training step, and what is held for the backward pass, all in turn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from selkern.errors import kind_and_line
from selkern.measure.memory import held_for_backward
from selkern.measure.timing import Job, Spread, in_turn, quickest, ratios

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
INFERENCE, TRAINING, HELD = "inference", "training step", "held for backward"


@dataclass(frozen=True)
class Timing:
    """One quantity of one model.

    Attributes:
        quantity: inference, training step, or held for backward.
        model: its name.
        batch_size: images of one pass.
        value: median and quartiles, per image, in `unit`; None where it was not measured.
        unit: ms or MiB.
        layout: the memory format it ran in, the faster of two.
        ratio: over the same of the first model, of the rounds' ratios; None for the first itself.
        rounds: how often it was timed.
        reason: why there is no value.
    """

    quantity: str
    model: str
    batch_size: int
    value: Spread | None
    unit: str
    layout: str = ""
    ratio: Spread | None = None
    rounds: int = 0
    reason: str = ""


def in_layouts(model: nn.Module, x: Tensor, job: Callable[[nn.Module, Tensor], object]) -> dict[str, Job]:
    """A job on a model and its input, in every layout of images, each on a copy of its own."""
    jobs: dict[str, Job] = {}
    for name, layout in LAYOUTS.items() if x.ndim == 4 else [("", torch.preserve_format)]:
        own = copy.deepcopy(model).to(memory_format=layout)  # type: ignore[call-overload]
        given = x.detach().clone(memory_format=layout)
        jobs[name] = partial(job, own, given)
    return jobs


def forward(model: nn.Module, x: Tensor) -> object:
    """A forward pass for inference."""
    with torch.inference_mode():
        return model(x)


def training_step() -> Callable[[nn.Module, Tensor], object]:
    """A function that does forward, backward and SGD with momentum, for models of any outputs.

    The learning rate is 0: the arithmetic is that of training, and the weights stay as they are, however many rounds.
    """
    optimizers: dict[nn.Module, torch.optim.SGD] = {}

    def step(model: nn.Module, x: Tensor) -> None:
        if model not in optimizers:
            optimizers[model] = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
        optimizers[model].zero_grad()
        loss_of(model(x)).backward()  # type: ignore[no-untyped-call]
        optimizers[model].step()

    return step


def loss_of(outputs: Any) -> Tensor:
    """The mean square of every output of a model."""
    return torch.stack([output.float().square().mean() for output in _tensors(outputs)]).sum()


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """The floating-point tensors of a model's output, however they are nested."""
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            yield outputs
    elif isinstance(outputs, Mapping):
        yield from _tensors(list(outputs.values()))
    elif isinstance(outputs, (list, tuple)):
        for output in outputs:
            yield from _tensors(output)


def bench(
    models: Mapping[str, nn.Module],
    inputs: Mapping[str, Tensor],
    batch_sizes: tuple[int, ...],
    budget: float,
    say: Callable[[str], None] = lambda _: None,
) -> list[Timing]:
    """Time models in turn; training at the largest batch size alone.

    Args:
        models: by name; the others are compared with the first.
        inputs: a batch that each takes, of any number of images.
        batch_sizes: of inference.
        budget: seconds for the rounds of one comparison.
        say: called with what is measured next.
    """
    rows = []
    for batch in batch_sizes:
        say(f"{INFERENCE}, batch size {batch}")
        jobs, layouts = {}, {}
        for name, model in models.items():
            choice = in_layouts(model.eval(), _batch(inputs[name], batch), forward)
            layouts[name] = quickest(choice)
            jobs[name] = choice[layouts[name]]
        rows += _timings(INFERENCE, batch, jobs, layouts, {}, budget)
    batch = max(batch_sizes)
    say(f"{TRAINING}, batch size {batch}")
    jobs, layouts, reasons, held = {}, {}, {}, {}
    for name, model in models.items():
        x = _batch(inputs[name], batch)
        try:
            choice = in_layouts(model.train(), x, training_step())
            layouts[name] = quickest(choice)
            jobs[name] = choice[layouts[name]]
            held[name] = held_for_backward(model, partial(model, x)) / batch
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything; inference is measured
            reasons[name] = kind_and_line(error)[:200]
    rows += _timings(TRAINING, batch, jobs, layouts, reasons, budget)
    base = held.get(next(iter(models)))
    for name in models:
        mib = held.get(name)
        value = None if mib is None else Spread.of([mib])
        first = name == next(iter(models)) or not base or mib is None
        ratio = None if first else Spread.of([mib / base])  # type: ignore[operator]
        rows.append(Timing(HELD, name, batch, value, "MiB", ratio=ratio, reason=reasons.get(name, "")))
    return rows


def _batch(x: Tensor, batch: int) -> Tensor:
    """Random images of the shape and dtype of some."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, *x.shape[1:], generator=generator).to(x)


def _timings(
    quantity: str,
    batch: int,
    jobs: dict[str, Job],
    layouts: dict[str, str],
    reasons: dict[str, str],
    budget: float,
) -> list[Timing]:
    seconds = in_turn(jobs, budget=budget, warm_up=1)
    first = next(iter(seconds), None)
    rows = [Timing(quantity, name, batch, None, "ms", reason=reason) for name, reason in reasons.items()]
    for name, taken in seconds.items():
        value = Spread.of([each * 1e3 / batch for each in taken])
        compared = name != first and first not in reasons
        ratio = ratios(taken, seconds[first]) if compared and first is not None else None
        rows.append(Timing(quantity, name, batch, value, "ms", layouts[name], ratio, len(taken)))
    return rows
