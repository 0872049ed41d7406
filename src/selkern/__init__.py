"""selkern: selective-kernel networks (SK attention, SKNet) for PyTorch.

`import selkern` loads nothing; each name below is imported when it is first used, so that the command line
answers at once and a program that only wants a layer pays only for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selkern.adapt.groups import param_groups
    from selkern.adapt.insert import insert
    from selkern.adapt.selectify import selectify, selectify_plan
    from selkern.adapt.undo import deselectify
    from selkern.conformance.check import check
    from selkern.deploy.fold import fold
    from selkern.layers.article import Attention, MLPAttention, SKAttention
    from selkern.layers.fusion import SKFusion
    from selkern.layers.memory import set_memory
    from selkern.layers.selective_kernel import Branch, SelectiveKernel
    from selkern.models.registry import create_model, from_pretrained, list_models
    from selkern.ops.kernels import set_kernels
    from selkern.runtimes.export import export
    from selkern.selection.record import record

__version__ = "0.1.0"

_HOME = {
    "Attention": "layers.article",
    "Branch": "layers.selective_kernel",
    "MLPAttention": "layers.article",
    "SKAttention": "layers.article",
    "SKFusion": "layers.fusion",
    "SelectiveKernel": "layers.selective_kernel",
    "check": "conformance.check",
    "create_model": "models.registry",
    "deselectify": "adapt.undo",
    "export": "runtimes.export",
    "fold": "deploy.fold",
    "from_pretrained": "models.registry",
    "insert": "adapt.insert",
    "list_models": "models.registry",
    "param_groups": "adapt.groups",
    "record": "selection.record",
    "selectify": "adapt.selectify",
    "selectify_plan": "adapt.selectify",
    "set_kernels": "ops.kernels",
    "set_memory": "layers.memory",
}
__all__ = [
    "Attention",
    "Branch",
    "MLPAttention",
    "SKAttention",
    "SKFusion",
    "SelectiveKernel",
    "check",
    "create_model",
    "deselectify",
    "export",
    "fold",
    "from_pretrained",
    "insert",
    "list_models",
    "param_groups",
    "record",
    "selectify",
    "selectify_plan",
    "set_kernels",
    "set_memory",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'selkern' has no attribute {name!r}")
    return getattr(import_module(f"selkern.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
