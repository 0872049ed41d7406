"""`MLPAttention` under exporters, tracers and derivatives of any kind; its numbers are compared in test_article.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runtimes import by_onnxruntime, by_openvino
from torch import Tensor
from torch.autograd import forward_ad
from torch.export import Dim
from torch.profiler import profile

from selkern import Attention, MLPAttention

FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"


def article(hidden: Tensor, module: Attention) -> Tensor:
    """As the article writes it."""
    return torch.softmax(hidden @ module.attn(hidden).transpose(1, 2), dim=-1) @ hidden


def test_values_and_gradients_are_the_article_s() -> None:
    torch.manual_seed(0)
    module = Attention(8).double()
    x = torch.randn(3, 7, 8, dtype=torch.float64, requires_grad=True)
    leaves = [x, *module.parameters()]
    torch.testing.assert_close(module(x), article(x, module))
    weights = torch.randn(3, 7, 8, dtype=torch.float64)
    got, want = [torch.autograd.grad(y, leaves, weights) for y in (module(x), article(x, module))]
    torch.testing.assert_close(got, want)
    with torch.no_grad():
        torch.testing.assert_close(module(x), article(x, module))


def test_without_gradients_it_runs_on_the_fused_kernel() -> None:
    module, x = MLPAttention(4, 8, 3), torch.randn(2, 50, 4)
    with torch.no_grad(), profile() as recorded:
        module(x)
    assert FUSED in {event.key for event in recorded.key_averages()}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:DeprecationWarning")  # torch's own, in functorch
def test_derivatives_of_every_kind() -> None:
    torch.manual_seed(0)
    module = MLPAttention(4, 5, 3).double()
    x = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (x,), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(module, (x,))
    still, t = x.detach(), torch.randn_like(x)
    want = torch.func.jvp(module, (still,), (t,))[1]
    torch.testing.assert_close(torch.func.jacfwd(module)(still).flatten(3) @ t.flatten(), want)
    with torch.no_grad():  # forward mode asks for no gradients
        torch.testing.assert_close(torch.func.jvp(module, (still,), (t,))[1], want)
        torch.testing.assert_close(torch.vmap(module)(still[:, None])[:, 0], module(still))
        with forward_ad.dual_level():
            dual: Any = forward_ad.unpack_dual(module(forward_ad.make_dual(still, t)))  # type: ignore[no-untyped-call]
        torch.testing.assert_close(dual.tangent, want)


def program(module: MLPAttention, x: Tensor, *, strict: bool = False) -> torch.export.ExportedProgram:
    return torch.export.export(module, (x,), dynamic_shapes=({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},), strict=strict)


TOOLS: dict[str, Callable[[MLPAttention, Tensor], Callable[[Tensor], Any]]] = {
    "export": lambda module, x: program(module, x).module(),
    "strict export": lambda module, x: program(module, x, strict=True).module(),
    "jit.trace": lambda module, x: torch.jit.trace(module, x),  # type: ignore[no-untyped-call]
    "fx": lambda module, _: torch.fx.symbolic_trace(module),
    "compile": lambda module, _: torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS.keys())
def test_other_sizes_go_through_what_a_tool_makes_of_it(
    tool: Callable[[MLPAttention, Tensor], Callable[[Tensor], Any]], gradients: bool
) -> None:
    torch.manual_seed(0)
    module, y = MLPAttention(6, 8, 3).eval(), torch.randn(4, 9, 6)
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(tool(module, torch.randn(2, 5, 6))(y), module(y))


BY_JIT: dict[str, Any] = {"dynamic_axes": {"x": {0: "n", 1: "t"}}}
BY_DYNAMO: dict[str, Any] = {"dynamic_shapes": ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)}
RUNTIMES: dict[str, Callable[[MLPAttention, Tensor, Path], Callable[[Tensor], Tensor]]] = {
    "onnx": lambda module, x, folder: by_onnxruntime(module, x, folder / "m.onnx", dynamo=True, **BY_DYNAMO),
    "onnx by torch.jit": lambda module, x, folder: by_onnxruntime(module, x, folder / "m.onnx", dynamo=False, **BY_JIT),
    "openvino": lambda module, x, _: by_openvino(module, example_input=x),
    "openvino of a program": lambda module, x, _: by_openvino(program(module, x)),
}


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")  # the exporters' own
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES.keys())
def test_other_sizes_go_through_other_runtimes(
    runtime: Callable[[MLPAttention, Tensor, Path], Callable[[Tensor], Tensor]], gradients: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module, y = MLPAttention(6, 8, 3).eval(), torch.randn(4, 9, 6)
    with torch.set_grad_enabled(gradients):
        computed = runtime(module, torch.randn(2, 5, 6), tmp_path)
    torch.testing.assert_close(computed(y), module(y).detach(), rtol=1e-4, atol=1e-5)
