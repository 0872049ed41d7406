"""Every registered model through `torch.compile` in one graph, and through `torch.export` with sizes left free.

Tracing a unit costs half a second to one and a half, whatever its width, and the networks have 750 units: the tables
below say what is left out, and nothing else is. `SELKERN_WHOLE=1 pytest tests/models/test_compile.py` leaves out
nothing and takes half an hour.
"""

from __future__ import annotations

import copy
import gc
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from parity import assert_parity
from torch import Tensor

from selkern.models.registry import architecture, list_models
from selkern.models.shufflenet import ShuffleArchitecture
from selkern.models.skresnet import SKResNetArchitecture
from selkern.models.trunk import Architecture

AnyRow = Architecture | ShuffleArchitecture | SKResNetArchitecture

MODELS = list_models()
# Traced whole.
WHOLE = MODELS if "SELKERN_WHOLE" in os.environ else ["sknet_mini"]
# One of every kind, checked in full: compiled by aot_eager, which takes the backward pass into the graph, and exported
# with N, H and W free.
KINDS = [*WHOLE, "seresnet_mini", "sknet50", "sknet50_sum", "sknet50_k3k5k7"]
KINDS += ["sk_shufflenet_v2_x05", "se_shufflenet_v2_x05", "skresnet18", "skresnet50d"]
# What is left out of the others' graphs, and why.
CUT = dict.fromkeys(
    (name for name in MODELS if name not in WHOLE),
    "all but two units of a stage: one strides and projects its shortcut, one does neither. What projects alone is in "
    "sknet_mini, and in timm's networks, which keep a unit of their first stage",
)
LIGHT = dict.fromkeys(
    (name for name in MODELS if name not in KINDS),
    "the second of these units, the backward graph, and free H and W: they differ from KINDS in numbers (widths, "
    "groups, dilations), and have no operation of their own",
)
# With inductor, for real, and whose units. Each kernel is a run of the C++ compiler, a second or more: the whole
# networks take 1 to 2 minutes each, and as long again for the backward pass.
INDUCTOR = dict.fromkeys(("sknet_mini", "sk_shufflenet_v2_x05"), "all but one unit, and the backward pass")

SIDE = {224: 65, 48: 24, 32: 8}  # by the size a network was designed for; leaves more than one position at the end
FREE = torch.export.Dim.DYNAMIC  # an error where the graph holds for one size alone


@pytest.fixture(autouse=True)
def _no_graphs_left() -> Iterator[None]:
    """Tracing makes objects by the million, and looking through them for garbage takes a sixth of the time."""
    gc.disable()
    yield
    gc.enable()
    torch.compiler.reset()


def row(name: str) -> AnyRow:
    """The row of a name."""
    result = architecture(name)
    assert isinstance(result, AnyRow)
    return result


def shorter(arch: AnyRow, *depths: int, **stages: tuple[int, ...]) -> AnyRow:
    """A row with these depths; and its other values per stage, where they change."""
    fields: dict[str, Any] = {"depths": depths, **stages}
    return replace(arch, **fields)


def cut(arch: AnyRow) -> AnyRow:
    """What `CUT` says: the second stage alone, of two units; timm's with a unit of the first."""
    timm = isinstance(arch, SKResNetArchitecture)
    kept = slice(0, 2) if timm else slice(1, 2)
    per_stage = {f: getattr(arch, f, None) for f in ("mids", "outs", "strides", "min_width")}
    stages = {f: value[kept] for f, value in per_stage.items() if isinstance(value, tuple)}
    return shorter(arch, *((1, 2) if timm else (2,)), **stages)


def names_by_row() -> dict[AnyRow, list[str]]:
    """What is traced, and whose it is: networks that differ in depth alone are one when cut."""
    names: dict[AnyRow, list[str]] = {}
    for name in MODELS:
        names.setdefault(cut(row(name)) if name in CUT else row(name), []).append(name)
    return names


TRACED = names_by_row()
FAST = {"sknet_mini", "sknet50", "skresnet18"}  # one of each family of units, in the fast tests


def is_light(arch: AnyRow) -> bool:
    """Whether no name of a row is one of `KINDS`."""
    return all(name in LIGHT for name in TRACED[arch])


traced = pytest.mark.parametrize(
    "arch",
    [
        pytest.param(arch, id="+".join(names), marks=() if FAST.intersection(names) else pytest.mark.exhaustive)
        for arch, names in TRACED.items()
    ],
)


def lightened(arch: AnyRow) -> AnyRow:
    """A row, with one unit a stage if it is light."""
    return shorter(arch, *(1 for _ in arch.depths)) if is_light(arch) else arch


@pytest.mark.share(3)
@traced
def test_compiles_in_one_graph(arch: AnyRow) -> None:
    """In training, where BatchNorm's statistics change too; and in float64, as a batch of 3 makes much of rounding."""
    model = lightened(arch).build(num_classes=3).double()
    backend = "eager" if is_light(arch) else "aot_eager"
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    side = SIDE[arch.input_size] // 2
    x = torch.randn(3, 3, side, side, dtype=torch.float64)
    assert_parity(lambda t: compiled(t["x"]), lambda t: model(t["x"]), {"x": x})
    for name, want in model.named_buffers():
        torch.testing.assert_close(twin.get_buffer(name), want, msg=name)


@pytest.mark.share(3)
@traced
def test_exports_with_free_sizes(arch: AnyRow) -> None:
    model = lightened(arch).build(num_classes=3).eval()
    side = SIDE[arch.input_size]
    free = {0: FREE} if is_light(arch) else {0: FREE, 2: FREE, 3: FREE}
    program = torch.export.export(model, (torch.randn(2, 3, side, side),), dynamic_shapes=(free,))
    exported = program.module()
    for shape in [(5, 3, side, side)] if is_light(arch) else [(5, 3, side, side), (1, 3, side + 7, side + 2)]:
        x = torch.randn(shape)
        torch.testing.assert_close(exported(x), model(x))


def test_one_graph_serves_all_sizes() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    model = cut(row("sknet50")).build(num_classes=3)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for shape in ((4, 3, 24, 40), (2, 3, 33, 41), (5, 3, 48, 32)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), model(x))
    assert len(graphs) == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own call
@pytest.mark.parametrize("name", INDUCTOR)
def test_inductor_gives_the_same_logits(name: str) -> None:
    model = shorter(cut(row(name)), 1).build(num_classes=3).eval()
    compiled = torch.compile(model, fullgraph=True, options={"compile_threads": 1})  # leaves no processes behind
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_the_tables_tell_of_every_model() -> None:
    assert {*WHOLE, *CUT} == {*KINDS, *LIGHT} == {name for names in TRACED.values() for name in names} == {*MODELS}
