"""Tracers, exporters and transforms see a folded network as plain operators, for any number of images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runtimes import by_onnxruntime, by_openvino
from torch import Tensor
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx

from selkern import SelectiveKernel, SKAttention, create_model, fold
from selkern.deploy.fold import Folded


def network() -> tuple[Folded, Tensor, Tensor]:
    fast = fold(create_model("sknet_mini", num_classes=7))
    return fast, torch.randn(3, 3, 48, 48), torch.randn(11, 3, 48, 48)  # more than one micro-batch


def layer() -> tuple[Folded, Tensor, Tensor]:
    x = torch.randn(2, 8, 9, 9)
    return fold(SelectiveKernel(8, 16, groups=4, stride=2).eval(), example=x), x, torch.randn(5, 8, 9, 9)


def article() -> tuple[Folded, Tensor, Tensor]:
    x = torch.randn(8, 128, 20, 28)  # eager, its large kernels are products of Fourier coefficients
    return fold(SKAttention(128).eval(), example=x), x, torch.randn(11, 128, 20, 28)


def with_16_bits() -> tuple[Folded, Tensor, Tensor]:
    fast = fold(create_model("sknet_mini", num_classes=7), dtype=torch.bfloat16)
    return fast, torch.randn(3, 3, 48, 48), torch.randn(11, 3, 48, 48)


def compiled() -> tuple[Folded, Tensor, Tensor]:
    fast, x, y = layer()
    fast.compiled = True
    return fast, x, y


def exported(fast: Folded, x: Tensor, *, strict: bool = False) -> torch.export.ExportedProgram:
    return torch.export.export(fast, (x,), dynamic_shapes=({0: Dim("n", min=1, max=64)},), strict=strict)


def traced_without_gradients(fast: Folded, x: Tensor) -> Callable[[Tensor], Any]:
    with torch.no_grad():
        traced: Callable[[Tensor], Any] = torch.jit.trace(fast, x)  # type: ignore[no-untyped-call]
    return traced


TOOLS: dict[str, Callable[[Folded, Tensor], Callable[[Tensor], Any]]] = {
    "export": lambda fast, x: exported(fast, x).module(),
    "strict export": lambda fast, x: exported(fast, x, strict=True).module(),
    "jit.trace": lambda fast, x: torch.jit.trace(fast, x),  # type: ignore[no-untyped-call]
    "jit.trace without gradients": traced_without_gradients,
    "fx": lambda fast, _: torch.fx.symbolic_trace(fast),
    "make_fx": lambda fast, _: lambda y: make_fx(fast)(y)(y),
    "compile": lambda fast, _: torch.compile(fast, backend="aot_eager", fullgraph=True, dynamic=True),
    "vmap": lambda fast, _: lambda x: torch.vmap(fast)(x[:, None])[:, 0],
}
CASES = [(kind, tool) for kind in (layer, article) for tool in TOOLS]
CASES += [(network, "export"), (network, "jit.trace"), (with_16_bits, "export"), (compiled, "export")]


def assert_close(got: Tensor, fast: Folded, x: Tensor) -> None:
    want = fast.net(x.to(fast.takes)).float() if fast.compiled else fast(x)
    tolerance = 0.05 if fast.dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * want.abs().max().item())


@pytest.mark.share(3)
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("kind", "tool"), CASES)
def test_another_batch_goes_through_what_a_tool_makes_of_it(
    kind: Callable[[], tuple[Folded, Tensor, Tensor]], tool: str
) -> None:
    torch.manual_seed(0)
    fast, x, y = kind()
    assert_close(TOOLS[tool](fast, x)(y), fast, y)


@pytest.mark.parametrize("kind", [network, article])
def test_an_exported_program_holds_the_weights_once_and_plain_operators(
    kind: Callable[[], tuple[Folded, Tensor, Tensor]],
) -> None:
    fast, x, _ = kind()
    program = exported(fast, x)
    operators = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in operators if "mkldnn" in name]
    assert set(program.state_dict) == set(fast.state_dict())


def test_feature_maps_of_an_exported_program() -> None:
    fast = fold(create_model("sknet_mini", features_only=True))
    y = torch.randn(11, 3, 48, 48)
    for got, want in zip(exported(fast, y[:3]).module()(y), fast(y), strict=True):
        torch.testing.assert_close(got, want)


BY_JIT: dict[str, Any] = {"dynamic_axes": {"x": {0: "n"}}}
BY_DYNAMO: dict[str, Any] = {"dynamic_shapes": ({0: Dim("n", min=1, max=64)},)}
RUNTIMES: dict[str, Callable[[Folded, Tensor, Path], Callable[[Tensor], Tensor]]] = {
    "onnx": lambda fast, x, folder: by_onnxruntime(fast, x, folder / "fast.onnx", dynamo=True, **BY_DYNAMO),
    "onnx by torch.jit": lambda fast, x, folder: by_onnxruntime(fast, x, folder / "fast.onnx", dynamo=False, **BY_JIT),
    "openvino": lambda fast, x, _: by_openvino(fast, example_input=x),
    "openvino of a program": lambda fast, x, _: by_openvino(exported(fast, x)),
}


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")  # the exporters' own
@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES.keys())
@pytest.mark.parametrize("kind", [network, layer, article, compiled])
def test_another_batch_goes_through_other_runtimes(
    kind: Callable[[], tuple[Folded, Tensor, Tensor]],
    runtime: Callable[[Folded, Tensor, Path], Callable[[Tensor], Tensor]],
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    pytest.importorskip("onnx")
    fast, x, y = kind()
    assert_close(runtime(fast, x, tmp_path)(y), fast, y)
