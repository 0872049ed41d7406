"""Workloads of single layers: the article's module, the four units of SKNet-50, and what a unit's cost depends on."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import goals as names
from benchmarks import peers
from benchmarks.results import Row
from benchmarks.session import FAILURES, Comparison, Session, step
from selkern.layers.article import SKAttention
from selkern.layers.selective_kernel import SelectiveKernel
from selkern.measure.bench import forward, in_layouts
from selkern.measure.memory import held_for_backward
from selkern.measure.timing import Job

UNITS = ((128, 56), (256, 28), (512, 14), (1024, 7))  # width and side of SKNet-50's, px
_BATCH = 8


def article(session: Session) -> None:
    """The article's module on its own shapes: forward, training step, and what is held for backward."""
    shapes = ((2, 16, 7, 7),) if session.trial else names.ARTICLE_SHAPES
    for number, shape in enumerate(shapes):
        module = SKAttention(channel=shape[1])
        x = torch.randn(shape)
        peers.vary_norms(module)
        case = names.shape_case(shape)
        compare = _forward(session, "article", case, module.eval(), x, names.ARTICLE)
        compare.offer(names.ARTICLE, lambda m=module, x=x: in_layouts(peers.article_module(m), x, forward))  # type: ignore[misc]
        compare.run()
        if number < 2:  # the third would hold gigabytes
            theirs = peers.article_module(module.train())
            _training(session, "article", case, {names.ARTICLE: theirs, names.OURS: module}, x, names.ARTICLE)


def layer(session: Session) -> None:
    """The four units of SKNet-50, forward and training step."""
    for width, side in ((32, 8),) if session.trial else UNITS:
        unit = SelectiveKernel(width)
        x = torch.randn(2 if session.trial else _BATCH, width, side, side)
        peers.vary_norms(unit)
        case = f"width {width}, {side} px, batch {len(x)}"
        compare = _forward(session, "layer", case, unit.eval(), x, names.TIMM)
        compare.offer(names.TIMM, lambda u=unit, x=x: in_layouts(peers.timm_unit(u), x, forward))  # type: ignore[misc]
        compare.offer(names.STACKED, lambda u=unit, x=x: in_layouts(peers.Stacked(u), x, forward))  # type: ignore[misc]
        compare.run()
        variants: dict[str, nn.Module] = {names.OURS: unit.train(), names.STACKED: peers.Stacked(unit)}
        try:
            variants = {names.TIMM: peers.timm_unit(unit), **variants}
        except FAILURES as error:
            session.results.lacks("layer", names.TIMM, error)
        _training(session, "layer", case, variants, x, names.TIMM)


def scaling(session: Session) -> None:
    """What a unit's time depends on: the number of branches, the side of its map, the batch."""
    width = 32 if session.trial else 128
    start = {"branches": 2, "side": 8 if session.trial else 28, "batch": 2 if session.trial else _BATCH}
    sweeps = {"branches": (2, 3), "side": (4, 8), "batch": (1, 2)}
    if not session.trial:
        sweeps = {"branches": (2, 3, 4, 5), "side": (14, 28, 56), "batch": (1, 8, 32)}  # type: ignore[dict-item]
    for what, values in sweeps.items():
        for value in values:
            now = {**start, what: value}
            unit = SelectiveKernel(width, kernels=tuple(range(3, 3 + 2 * now["branches"], 2))).eval()
            x = torch.randn(now["batch"], width, now["side"], now["side"])
            compare = _forward(session, "scaling", f"{what} {value}", unit, x, names.BARE)
            compare.offer(names.STACKED, lambda u=unit, x=x: in_layouts(peers.Stacked(u), x, forward))  # type: ignore[misc]
            compare.run()


def _forward(session: Session, workload: str, case: str, module: nn.Module, x: Tensor, against: str) -> Comparison:
    """A comparison of a layer's forward passes with what every layer has: itself, folded, and its convolutions."""
    with torch.inference_mode():
        expected = module(x)
    compare = session.compare(workload, case, names.FORWARD, against=against, expected=expected)
    compare.offer(names.OURS, lambda: in_layouts(module, x, forward))
    compare.offer(names.FOLDED, lambda: _folded(module, x))
    compare.offer(names.BARE, lambda: bare(module, x), tolerance=None)
    return compare


def bare(module: nn.Module, x: Tensor) -> dict[str, Job]:
    """The bare convolutions of a module, under the name of the layout that they run in."""
    convolutions = peers.BareConvolutions(module, x)
    return {convolutions.layout: convolutions}


def _folded(module: nn.Module, x: Tensor) -> dict[str, Job]:
    return {"": partial(forward, peers.folded(module, x), x)}


def _training(
    session: Session, workload: str, case: str, variants: dict[str, nn.Module], x: Tensor, against: str
) -> None:
    """Time of a training step, and what it holds, of variants with the same weights."""
    expected = next(iter(variants.values()))(x).square().mean().detach()
    compare = session.compare(workload, case, names.STEP, against=against, expected=expected)
    for variant, module in variants.items():
        compare.offer(variant, partial(in_layouts, module, x, step))
    compare.run()
    for variant, module in variants.items():
        leaf = x.detach().clone().requires_grad_()
        row = Row(
            workload=workload,
            case=case,
            quantity=names.HELD,
            variant=variant,
            unit="MiB",
            samples=(held_for_backward(module, partial(module, leaf)),),
            against=against if variant != against else "",
        )
        session.results.rows.append(row)
