"""Whether a changed network computes what the unchanged one does: both run on the same example, in both modes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from selkern.errors import UsageError, first_line
from selkern.layers.parts import evaluating
from selkern.selection.record import as_written

# What a network raises on an example that is not for it.
FAILURES = (
    RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, AssertionError, NotImplementedError
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """What a network is called with."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, example: Any) -> Example:
        """A tensor or another single argument, a tuple of arguments, or a dict of named ones.

        Raises:
            UsageError: no example, or one without a tensor.
        """
        fix = "give example=a batch of its input, a tuple of arguments, or a dict of named ones"
        if example is None:
            raise UsageError("no example to run the network on", "example", fix)
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(example)):
            raise UsageError("the example holds no tensor", "example", fix)
        if isinstance(example, Mapping):
            return cls((), example)
        return cls(example if isinstance(example, tuple) else (example,), {})

    def fresh(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Copies, since a network may change its input in place."""
        args, kwargs = tree_map_only(Tensor, torch.clone, (self.args, dict(self.kwargs)))
        return args, kwargs

    @torch.no_grad()
    def run(self, model: nn.Module) -> list[Tensor]:
        """Every tensor in the output of a model, in the mode that it is in; the random numbers are always the same."""
        args, kwargs = self.fresh()
        with seeded(model):
            output = model(*args, **kwargs)
        return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


@contextmanager
def seeded(model: nn.Module) -> Iterator[None]:
    """Within the block torch's random numbers begin anew; afterwards they go on as if nothing had drawn any."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(device.index or 0 for device in devices)):
        torch.manual_seed(0)
        yield


@dataclass(frozen=True)
class Outputs:
    """What a network gives in eval and in train mode; None for a mode in which it does not run."""

    evaluated: list[Tensor]
    trained: list[Tensor] | None

    @classmethod
    def of(cls, model: nn.Module, example: Example) -> Outputs:
        """Of a model, whose statistics change by it: give a copy.

        Raises:
            UsageError: it does not run in eval mode, or gives no tensor, or none with a finite number.
        """
        kind = type(model).__name__
        with evaluating(model):
            try:
                evaluated = example.run(model)
            except FAILURES as error:
                raise refuses(model, error) from error
        if not evaluated:
            raise UsageError("its output holds no tensor to compare", kind, "wrap it in a module that returns tensors")
        if not _comparable(evaluated):
            # Two of them are equal whatever was changed: that proves nothing.
            empty = not any(t.numel() for t in evaluated)
            what = (
                f"its output on the example {'is empty' if empty else 'has no finite number'}, nothing can be compared"
            )
            raise UsageError(what, kind, "give an example with images, and finite numbers in it and in the weights")
        try:
            trained = example.run(model.train())
        except FAILURES:
            return cls(evaluated, None)  # a batch too small to train on, a loss that needs targets
        return cls(evaluated, trained if _comparable(trained) else None)


def _comparable(outputs: Sequence[Tensor]) -> bool:
    """Whether there is a finite number among them."""
    return any(t.numel() and (t.is_quantized or bool(t.isfinite().any())) for t in outputs)


def refuses(model: nn.Module, error: Exception) -> UsageError:
    """The error for an example that a model does not run on."""
    what = f"the network does not run on the example: {first_line(error)}"
    return UsageError(what, type(model).__name__, "give another example")


def difference(one: Sequence[Tensor] | None, other: Sequence[Tensor] | None) -> float | None:
    """The largest absolute difference; infinity where shapes differ, None where one did not run."""
    if one is None or other is None:
        return None
    if [t.shape for t in one] != [t.shape for t in other]:
        return float("inf")
    return max((_apart(a, b) for a, b in zip(one, other, strict=True)), default=0.0)


def _apart(a: Tensor, b: Tensor) -> float:
    if torch.equal(a, b) or not a.numel():
        return 0.0
    same = (a == b) | (a.isnan() & b.isnan()) if a.is_floating_point() else a == b
    apart = (a.double() - b.double()).abs().masked_fill(same, 0.0).max().item()
    return apart if apart == apart else float("inf")  # not a number on one side alone


@dataclass(frozen=True)
class Differences:
    """Largest absolute differences of all outputs, changed minus unchanged; None for a mode that does not run."""

    evaluating: float | None
    training: float | None

    @property
    def exact(self) -> bool:
        """Whether there is none."""
        return not self.evaluating and not self.training


def compare(expected: Outputs, model: nn.Module, example: Example) -> Differences:
    """How far a model, which is changed by it, is from what was expected.

    Raises:
        what the model raises.
    """
    with evaluating(model):
        evaluated = example.run(model)
    trained = None if expected.trained is None else example.run(model.train())
    return Differences(difference(expected.evaluated, evaluated), difference(expected.trained, trained))


def duplicate(model: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        UsageError: it cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except FAILURES as error:
        fix = "copy.deepcopy(model) must work: the change is tried on a copy first"
        raise UsageError(f"the network cannot be copied: {first_line(error)}", type(model).__name__, fix) from error


def check_model(model: nn.Module) -> None:
    """Raise UsageError for what cannot be changed as a whole: no module, scripted or compiled, on meta, lazy."""
    if not isinstance(model, nn.Module):
        raise not_a_network(model)
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError("is scripted: its code is fixed", kind, "change the network before torch.jit compiles it")
    if as_written(model) is not model:
        raise UsageError("is compiled", kind, "change the network that was given to torch.compile, then compile it")
    state = [*model.parameters(), *model.buffers()]
    if any(nn.parameter.is_lazy(p) for p in state):
        raise UsageError("has lazy modules without weights", kind, "run it once first")
    if any(tensor.is_meta for tensor in state):
        raise UsageError(
            "is on the meta device, where nothing can be compared", kind, "give it weights first: to_empty"
        )


def not_a_network(given: object) -> UsageError:
    """The error for something else in the place of a network."""
    return UsageError(f"a network is an nn.Module, got {type(given).__name__}", "model", "give the network itself")


def check_flags(owner: str, **flags: object) -> None:
    """Raise UsageError for a switch that is neither True nor False: a word such as 'no' would count as true."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise UsageError(f"{name} must be True or False, got {value!r}", owner)
