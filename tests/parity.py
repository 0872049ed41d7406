"""The one comparison that all parity tests use: output, every gradient, and what must not change."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch
from torch.func import functional_call

Tensors = Mapping[str, Tensor]
Function = Callable[[Tensors], Tensor]


def _of(name: str) -> Callable[[str], str]:
    return lambda message: f"{name}: {message}"


# rtol and atol. Largest error of one operator measured over all its cases, as a share of 1 + |value|:
# 2e-15, 9e-7 and 3.4e-2; a whole unit with BatchNorm in float64 needs more (differences of near values).
TOLERANCE = {torch.float64: (1e-9, 1e-10), torch.float32: (1.3e-6, 1e-5), torch.bfloat16: (6e-2, 6e-2)}


@functorch.patch(donated_buffer=False)  # type: ignore[untyped-decorator]  # a compiled backward pass may otherwise run once only
def output_and_gradients(function: Function, inputs: Tensors) -> dict[str, Tensor]:
    """`function`'s output and the gradient of every input, under one fixed cotangent.

    Fails where an input is changed, gets no gradient, or gets another one when backward runs a second time.
    """
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    output = function(leaves)
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cotangent = cotangent.to(output.dtype)
    gradients = torch.autograd.grad(output, list(leaves.values()), cotangent, retain_graph=True)
    again = torch.autograd.grad(output, list(leaves.values()), cotangent)
    for name, first, second in zip(leaves, gradients, again, strict=True):
        torch.testing.assert_close(second, first, msg=_of(f"second backward, gradient of {name}"))
        assert torch.equal(leaves[name], inputs[name]), f"{name} was changed"
    results = {f"gradient of {name}": grad for name, grad in zip(leaves, gradients, strict=True)}
    return {"output": output.detach(), **results}


def assert_parity(ours: Function, theirs: Function, inputs: Tensors, oracle: torch.dtype | None = None) -> None:
    """Fail unless both functions give the same output and the same gradient of every input.

    Args:
        oracle: the dtype in which `theirs` is computed; None takes that of the inputs.
    """
    got = output_and_gradients(ours, inputs)
    other = {name: value.to(oracle or value.dtype) for name, value in inputs.items()}
    for name, want in output_and_gradients(theirs, other).items():
        rtol, atol = TOLERANCE[got[name].dtype]
        assert oracle is not None or got[name].dtype == want.dtype, f"{name} is {got[name].dtype}, not {want.dtype}"
        torch.testing.assert_close(got[name].to(want.dtype), want, rtol=rtol, atol=atol, msg=_of(name))


def as_function(module: nn.Module) -> Function:
    """A module as a function of its parameters and its input `x`."""
    return lambda t: functional_call(module, {k: v for k, v in t.items() if k != "x"}, (t["x"],))


def with_parameters(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The input of `as_function(module)`: the module's parameters and x."""
    return {**{name: p.detach() for name, p in module.named_parameters()}, "x": x}


def perturb(module: nn.Module, scale: float = 0.5) -> None:
    """Move every parameter and running statistic off its initial value, where 0 and 1 would hide mistakes."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p), alpha=scale)
        for name, b in module.named_buffers():
            if name.endswith("running_mean"):
                b.normal_()
            elif name.endswith("running_var"):
                b.uniform_(0.5, 2.0)
