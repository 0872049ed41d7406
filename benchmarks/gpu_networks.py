"""Whole units and networks: steps of training and inference, ours beside timm's, in bfloat16 by autocast."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import selkern
from benchmarks import gpu_plan as plan
from benchmarks.goals import SIDE, SK50
from benchmarks.gpu_plan import KERNELS, Stage
from benchmarks.gpu_session import Session, timed
from benchmarks.peers import import_timm, timm_unit
from selkern.layers.selective_kernel import SelectiveKernel
from selkern.measure.bench import LAYOUTS
from selkern.ops import kernels

_CLASSES = 1000
_OPERATORS = {"fuse_select": "selkern::fuse_branches", "convolution": "selkern::convolve_branches"}
Step = Callable[[], Tensor]


class _Small(nn.Sequential):
    """In place of a network where everything is interpreted."""

    def __init__(self) -> None:
        stem, unit = nn.Conv2d(3, 12, 3, stride=2, padding=1), SelectiveKernel(12, groups=4)
        super().__init__(stem, unit, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, _CLASSES))


@contextmanager
def using(chosen: set[str]) -> Iterator[None]:
    """Our kernels, or some of them alone, in every selective kernel."""
    before = kernels.is_chosen
    selkern.set_kernels("triton" if chosen else "plain")
    try:
        if len(chosen) == 1:  # for which there is no switch: `auto` decides by what is measured here
            kernels.is_chosen = lambda kernel, x: kernel in chosen  # noqa: ARG005
        yield
    finally:
        kernels.is_chosen = before
        selkern.set_kernels("auto")


class _Called(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which operators of ours are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def check_used(session: Session, chosen: set[str], module: nn.Module, x: Tensor) -> None:
    """Raise unless these kernels run, and no other: what they do not support, PyTorch would do without a word."""
    with _Called() as called, session.autocast(), torch.inference_mode(not module.training):
        module(x)
    used = {kernel for kernel, name in _OPERATORS.items() if name in called.names}
    if used != chosen:
        raise RuntimeError(
            f"uses {', '.join(sorted(used)) or 'no kernel'} in place of {', '.join(sorted(chosen)) or 'none'}"
        )


def measure_unit(session: Session, *, number: int) -> None:
    """A `SelectiveKernel` in training: its forward pass, then forward and backward."""
    stage = session.stage(number)
    right = set(KERNELS) - session.wrong
    choices = [right] if right else []
    choices += [{kernel} for kernel in KERNELS if right == set(KERNELS)] + [set()]
    for chosen in choices:
        name = _name(chosen)
        with using(chosen):
            for backward in (False,) if session.tiny and chosen else (False, True):  # interpreted, each takes a second
                _time_unit(session, stage, name, lambda unit: unit, backward, chosen)
    for variant, make in (("timm", timm_unit), (plan.COMPILED, session.compiled)):
        for backward in () if session.tiny and variant == "timm" else (False, True):
            with using(set()):
                _time_unit(session, stage, variant, make, backward, set())


def _name(chosen: set[str]) -> str:
    if not chosen:
        return plan.PLAIN
    return plan.OURS if len(chosen) == len(KERNELS) else f"{plan.OURS}, {next(iter(chosen))} alone"


def _time_unit(
    session: Session, stage: Stage, variant: str, make: Callable[[Any], Any], backward: bool, chosen: set[str]
) -> None:
    what = "forward + backward" if backward else "forward"
    with session.row("unit", what, stage.case("bfloat16"), variant) as fields:
        # What is compiled keeps what autograd keeps: Inductor chooses what to make again by itself.
        memory: Any = "plain" if variant == plan.COMPILED else "default"
        unit = make(SelectiveKernel(stage.channels, groups=stage.groups, memory=memory).train())
        unit.to(session.device, memory_format=torch.channels_last)
        x, dv = (_images(session, stage.channels, stage.batch, stage.side).bfloat16() for _ in range(2))
        if variant != plan.COMPILED:
            check_used(session, chosen, unit, x[:2])
        x.requires_grad_()

        def job() -> object:
            with session.autocast():
                v = unit(x)
            if not backward:
                return v
            leaves = [x, *(parameter for parameter in unit.parameters() if parameter.requires_grad)]
            return torch.autograd.grad(v, leaves, dv)

        # x once in, both convolutions' outputs out, read for Fuse and read for Select, V out: 8 maps.
        maps = None if backward else (2 + 3 * plan.BRANCHES) * stage.elements * 2 / 1e9
        _reset_peak(session)
        fields |= timed(session.measure(job), gbyte=maps, peak_gib=_peak(session))


def measure_network(session: Session, *, training: bool, variant: str) -> None:
    """Images per second of one variant, in the layouts that it may be faster in."""
    part, ours = ("train" if training else "infer"), variant in (plan.OURS, plan.OURS_COMPILED, plan.PLAIN)
    chosen = set() if variant == plan.PLAIN or not ours else set(KERNELS) - session.wrong
    # Ours is made for channels_last. timm's grouped and dilated convolutions may be faster in NCHW; Inductor chooses.
    layouts = ["channels_last"] if ours or plan.COMPILED in variant or session.tiny else list(LAYOUTS)
    for layout in layouts:
        name = variant + ", NCHW" * (layout == "NCHW") + (f", {next(iter(chosen))} alone" if len(chosen) == 1 else "")
        with using(chosen), session.row(part, "step", "bfloat16", name) as fields:
            if ours and variant != plan.PLAIN and not chosen:
                raise RuntimeError("not measured: the kernels gave wrong results")
            for batch in (2,) if session.tiny else plan.TRAIN_BATCHES:
                measured = _time_network(session, variant, training, layout, batch, chosen)
                if measured is not None:
                    fields |= measured
                    break
                session.clear()  # and with half the images again
            else:
                raise MemoryError(f"not enough for {batch} images")


def _time_network(
    session: Session, variant: str, training: bool, layout: str, batch: int, chosen: set[str]
) -> dict[str, Any] | None:
    """Fields of a row; None where the memory does not hold the batch."""
    try:
        model = _build(session, variant, layout).train(training)
        images = _images(session, 3, batch, 16 if session.tiny else SIDE, layout)
        check_used(session, chosen, model, images[:2])  # before it is compiled, where this does not show
        run = session.compiled(model) if plan.COMPILED in variant else model
        step = (
            _train(session, model, run, images, _labels(session, batch)) if training else _infer(session, run, images)
        )
        _reset_peak(session)
        loss = float(step())
        if not math.isfinite(loss):
            raise ValueError(f"gives {loss}")
        spread = session.steps(step)
    except torch.OutOfMemoryError:
        return None
    return timed(spread, batch=batch, peak_gib=_peak(session))


def _build(session: Session, variant: str, layout: str) -> nn.Module:
    """A network on the device, with random weights."""
    if session.tiny:
        model: nn.Module = _Small()
    elif variant.startswith("timm"):
        model = import_timm().create_model(variant.split(",")[0].removeprefix("timm "), num_classes=_CLASSES)
    else:
        model = selkern.create_model(SK50, num_classes=_CLASSES)
    return model.to(session.device, memory_format=LAYOUTS[layout])  # type: ignore[call-overload]


def _labels(session: Session, batch: int) -> Tensor:
    return torch.randint(0, _CLASSES, (batch,), device=session.device)


def _train(session: Session, model: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Step:
    """Forward, backward, SGD with momentum; gives the loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        # Cached casts would be made outside a captured step, and never again; each weight is cast once anyhow.
        with session.autocast(cache=False):
            loss = F.cross_entropy(run(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


def _infer(session: Session, run: Callable[[Tensor], Tensor], images: Tensor) -> Step:
    def step() -> Tensor:
        with torch.inference_mode(), session.autocast():
            return run(images).float().mean()

    return step


def capture_step(session: Session) -> None:
    """Whether a training step with our kernels can be captured as a CUDA graph, and what its replay takes.

    Eight steps, three of them before the capture, must lead where eight without it lead.
    """
    chosen = set(KERNELS) - session.wrong
    batch = 2 if session.tiny else 128
    with using(chosen), session.row("graph", "step", "bfloat16", f"{plan.OURS}, CUDA graph") as fields:
        if not chosen:
            raise RuntimeError("not measured: the kernels gave wrong results")
        model = _build(session, plan.OURS, "channels_last").train()
        first, twin = copy.deepcopy(model), copy.deepcopy(model)
        images, labels = _images(session, 3, batch, 16 if session.tiny else SIDE), _labels(session, batch)
        step, other = (_train(session, each, each, images, labels) for each in (model, twin))
        again = _captured(step) if session.device.type == "cuda" else step
        before, after = (0, 1) if session.tiny else (3, 5)
        for _ in range(after):
            again()
        for _ in range(before + after):
            other()
        _check_alike(first, model, twin)
        _reset_peak(session)
        fields |= timed(session.steps(again), batch=batch, peak_gib=_peak(session))


def _captured(step: Step) -> Callable[[], object]:
    """What runs a step as a CUDA graph, after three without."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@torch.no_grad()
def _check_alike(first: nn.Module, model: nn.Module, twin: nn.Module) -> None:
    """Raise unless two networks moved alike from a first one, as far as bfloat16 and unordered sums allow."""
    triples = zip(first.parameters(), model.parameters(), twin.parameters(), strict=True)
    moved, apart = zip(*((float((c - a).norm()), float((c - b).norm())) for a, b, c in triples), strict=True)
    gone, distance = math.hypot(*moved), math.hypot(*apart)
    if gone == 0 or not distance < 0.2 * gone:
        raise ValueError(f"captured steps lead elsewhere: {distance:.2e} apart, {gone:.2e} gone")


def _images(session: Session, channels: int, batch: int, side: int, layout: str = "channels_last") -> Tensor:
    made = torch.randn(batch, channels, side, side, device=session.device)
    return made.contiguous(memory_format=LAYOUTS[layout])


def _reset_peak(session: Session) -> None:
    if session.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(session.device)


def _peak(session: Session) -> float | None:
    return torch.cuda.max_memory_allocated(session.device) / 2**30 if session.device.type == "cuda" else None
