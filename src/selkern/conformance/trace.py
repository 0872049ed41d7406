"""A forward pass as a graph of what ran: every operation with its inputs, its result, and the module it ran in.

It sees what torch's dispatcher sees, so a module and a function of its own, `nn.ReLU` and `F.relu`, in place or not,
look alike, and any code that runs can be traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations that only arrange the numbers they get.
# fmt: off
SHAPE = frozenset((
    "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "transpose", "permute", "t", "expand", "select", "slice",
    "split", "split_with_sizes", "unbind", "unsafe_split", "clone", "_to_copy", "alias", "detach", "repeat",
))
# Operations of maps that weigh and add them.
LINEAR_COMBINATION = frozenset((
    "add", "sub", "rsub", "mul", "sum", "lerp", "addcmul", "stack", "cat", "bmm", "div",
))
# fmt: on
# What people call the rest of an SK unit.
NAMES = {
    "convolution": "conv",
    "native_batch_norm": "BN",
    "_native_batch_norm_legit": "BN",
    "_native_batch_norm_legit_no_training": "BN",
    "cudnn_batch_norm": "BN",
    "native_group_norm": "GroupNorm",
    "native_layer_norm": "LayerNorm",
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "silu": "SiLU",
    "hardswish": "Hardswish",
    "hardtanh": "ReLU6",
    "gelu": "GELU",
    "elu": "ELU",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "_softmax": "softmax",
}


@dataclass(eq=False)
class Node:
    """One result of one operation.

    Attributes:
        op: the dispatcher's name without the mark of its in-place form; "input" and "parameter" for what was there.
        args: as it was called, by position, the tensors as they were.
        inputs: the nodes of the tensors among them.
        value: the result.
        path: the innermost module it ran in.
        index: when it ran.
        users: the nodes that read it.
    """

    op: str
    args: tuple[Any, ...]
    inputs: tuple[Node, ...]
    value: Tensor
    path: str
    index: int
    users: list[Node] = field(default_factory=list)

    @property
    def sources(self) -> tuple[Node, ...]:
        """The inputs that are no parameters."""
        return tuple(node for node in self.inputs if node.op != "parameter")

    def ancestors(self) -> set[Node]:
        """What it was computed from, itself included, parameters not."""
        seen: set[Node] = set()
        todo = [self]
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += node.sources
        return seen


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the nodes of everything that runs while it is active."""

    def __init__(self, known: dict[int, Node], module_path: Callable[[], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[Node] = list(known.values())
        self.latest = known  # id of a tensor -> the node that made its present value
        self.kept = [node.value for node in self.nodes]  # an id belongs to one tensor as long as that lives
        self.module_path = module_path

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        inputs = tuple(self._node_of(tensor) for tensor in tensors)
        name = func._schema.name.split("::")[1]
        if func._schema.is_mutable and inputs:
            inputs[0].value = inputs[0].value.clone()  # what it was before it is overwritten
        out = func(*args, **(kwargs or {}))
        name = name.removesuffix("_") if func._schema.is_mutable else name
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(Node(name, args, inputs, tensor, self.module_path(), len(self.nodes)), tensor)
        return out

    def _node_of(self, tensor: Tensor) -> Node:
        if id(tensor) not in self.latest:  # a constant, or a parameter that no module owns
            self._add(Node("parameter", (), (), tensor, self.module_path(), len(self.nodes)), tensor)
        return self.latest[id(tensor)]

    def _add(self, node: Node, tensor: Tensor) -> None:
        self.nodes.append(node)
        self.kept.append(tensor)
        self.latest[id(tensor)] = node
        for source in dict.fromkeys(node.inputs):
            source.users.append(node)


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module.

    Attributes:
        path: of the module, by the first of its names.
        inputs: the nodes of the tensors that it was given.
        outputs: the nodes of the tensors that it returned.
        plain: whether it was given one tensor by position and nothing else.
    """

    path: str
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    plain: bool


@dataclass(frozen=True, eq=False)
class Trace:
    """A forward pass.

    Attributes:
        nodes: all that ran, in order, after the parameters and the inputs.
        calls: of the modules, in the order they returned.
        output: of the model.
    """

    nodes: list[Node]
    calls: list[Call]
    output: Any


def _nodes_of(recorder: _Recorder, values: Any) -> tuple[Node, ...]:
    return tuple(recorder._node_of(leaf) for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


@contextmanager
def _calls_noted(model: nn.Module, recorder: _Recorder, stack: list[str]) -> Iterator[list[Call]]:
    """Within the block the last entry of the stack is the module that is running, and its calls are noted."""
    calls: list[Call] = []
    given: list[tuple[tuple[Node, ...], bool]] = []

    def enter(path: str) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            stack.append(path)
            given.append((_nodes_of(recorder, (args, kwargs)), len(args) == 1 and not kwargs))

        return hook

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        inputs, plain = given.pop()
        calls.append(Call(stack.pop(), inputs, _nodes_of(recorder, output), plain))

    handles = []
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):  # which takes no hooks; it runs in the module that calls it
            continue
        handles.append(module.register_forward_pre_hook(enter(path), prepend=True, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def trace_calls(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Trace:
    """Run `model(*args, **kwargs)`, and give what ran and which module it ran in."""
    known: dict[int, Node] = {}
    state = [*model.parameters(), *model.buffers()]
    for op, tensors in (("parameter", state), ("input", tree_leaves((list(args), dict(kwargs or {}))))):
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                known[id(tensor)] = Node(op, (), (), tensor, "", len(known))
    stack = [""]
    recorder = _Recorder(known, lambda: stack[-1])
    with _calls_noted(model, recorder, stack) as calls, recorder:
        output = model(*args, **(kwargs or {}))
    return Trace(recorder.nodes, calls, output)


def trace(model: nn.Module, inputs: Sequence[Any]) -> tuple[list[Node], Any]:
    """Run `model(*inputs)` and give its nodes, in the order they ran, and its output."""
    traced = trace_calls(model, inputs)
    return traced.nodes, traced.output
