"""Every layer through `torch.compile` in one graph and `torch.export` with free sizes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from parity import assert_parity
from torch import Tensor, nn

from selkern.layers.article import MLPAttention, SKAttention
from selkern.layers.fusion import SKFusion
from selkern.layers.selective_kernel import SelectiveKernel

# Each with the shapes of an input: to trace with, and another one.
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], tuple[int, ...]]] = {
    "SelectiveKernel1d": (SelectiveKernel(8, 16, groups=2, dims=1), (3, 8, 12), (5, 8, 9)),
    "SelectiveKernel2d": (SelectiveKernel(8, 16, groups=2, stride=2), (3, 8, 12, 9), (5, 8, 7, 11)),
    "SelectiveKernel3d": (SelectiveKernel(8, 16, (3, 5, 7), groups=2, dims=3), (3, 8, 4, 5, 6), (2, 8, 3, 7, 5)),
    "SKFusion": (SKFusion(8, branches=3), (3, 8, 12, 9), (5, 8, 7, 11)),
    "SKAttention": (SKAttention(8, kernels=(1, 3, 5)), (3, 8, 12, 9), (5, 8, 7, 11)),
    "SKAttention over the batch": (SKAttention(8, softmax_over="batch"), (3, 8, 12, 9), (5, 8, 7, 11)),
    "MLPAttention": (MLPAttention(8, 16, 4), (3, 5, 8), (2, 7, 8)),
}
layers = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(autouse=True)
def _no_graphs_left() -> Iterator[None]:
    yield
    torch.compiler.reset()


def arguments(layer: nn.Module, x: Tensor) -> tuple[Tensor | list[Tensor]]:
    """The input of a layer: x, or maps made of it."""
    return ([x, x.cos(), x.sin()],) if isinstance(layer, SKFusion) else (x,)


@layers
def test_compiles_in_one_graph(name: str) -> None:
    layer, shape, _ = LAYERS[name]

    def forward(x: Tensor) -> Tensor:
        return layer(*arguments(layer, x))

    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    assert_parity(lambda t: compiled(t["x"]), lambda t: forward(t["x"]), {"x": torch.randn(shape)})


@layers
def test_exports_with_free_sizes(name: str) -> None:
    layer, shape, other = LAYERS[name]
    free = {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(shape) if size != 8}
    x = arguments(layer.eval(), torch.randn(shape))
    program = torch.export.export(layer, x, dynamic_shapes=([free] * 3 if isinstance(layer, SKFusion) else free,))
    y = arguments(layer, torch.randn(other))
    torch.testing.assert_close(program.module()(*y), layer(*y))
