"""Whether operators run at once, or are seen by something else: a compiler, a tracer, a transform, a hook."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook


def is_tracing() -> bool:
    """Whether torch.compile, torch.export or torch.jit.trace writes down the operators that run."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[no-untyped-call]


def is_transformed() -> bool:
    """Whether a transform of `torch.func` is active, such as grad, vmap or jvp."""
    return torch._C._are_functorch_transforms_active()


def is_eager(x: Tensor, *, modes: bool = False) -> bool:
    """Whether x is computed with at once, and nothing else sees the operators that do it.

    Not so under tracers, exporters and compilers (a proxy of torch.fx is not even a tensor), in transforms of
    `torch.func`, for subclasses with operators of their own, and under dispatch modes, such as fake tensors and
    counters of operations. All of these know torch's plain operators alone.

    Args:
        x: what a module reads.
        modes: dispatch modes do not count: all that x meets are operators that they know.
    """
    return (
        not is_tracing()
        and isinstance(x, Tensor)
        and type(x).__torch_dispatch__ is Tensor.__torch_dispatch__
        and not is_transformed()
        and (modes or not torch._C._len_torch_dispatch_stack())
    )


def is_watched(module: nn.Module) -> bool:
    """Whether something waits for a module's call: a hook on it or on all modules, or another `forward` of its own."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    everywhere = _has_any_global_hook()  # type: ignore[no-untyped-call]
    return any(hooks) or "forward" in vars(module) or bool(everywhere)
