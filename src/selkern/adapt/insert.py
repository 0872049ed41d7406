"""`insert`: a selective-kernel module behind a layer of a network, that adds nothing at first."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from math import gcd
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from selkern.adapt.exact import (
    FAILURES,
    Example,
    Outputs,
    check_flags,
    check_model,
    compare,
    duplicate,
    refuses,
    seeded,
)
from selkern.adapt.where import nearest, patterns
from selkern.conformance.trace import trace_calls
from selkern.errors import UsageError, first_line
from selkern.layers.parts import evaluating
from selkern.layers.selective_kernel import SelectiveKernel

Model = TypeVar("Model", bound=nn.Module)
Made = nn.Module | Callable[[int], nn.Module]


class Inserted(nn.Module):
    """y + gamma * module(y), (N, C, *) to the same; gamma is a number for each channel, 0 at first.

    Args:
        module: keeps the shape.
        channels: C.
        dims: spatial axes.

    Attributes:
        wraps: whether `insert` made the `nn.Sequential` that this is in.
    """

    def __init__(self, module: nn.Module, channels: int, dims: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.module, self.wraps = module, False
        self.gamma = nn.Parameter(torch.zeros(channels, *[1] * dims, device=device, dtype=dtype))

    def forward(self, y: Tensor) -> Tensor:
        """(N, C, *) to (N, C, *)."""
        return y + self.gamma * self.module(y)


def insert(
    model: Model,
    *,
    after: str | Sequence[str],
    example: Any = None,
    module: Made | None = None,
    inplace: bool = False,
) -> Model:
    """Put a module behind a layer: y + gamma * module(y), which is y until training moves gamma.

    Where the layer is an `nn.Sequential`, the module becomes its last, and every name stays; else the layer becomes the
    first of an `nn.Sequential` (`layer` and `inserted`), so that its weights are named `NAME.layer.*`.

    Args:
        model: any network.
        after: the layer's name, or a glob over names, or several, with commas between or in a list: each layer that
            matches gets its own.
        example: a batch of its input, as for `selectify`; the layer's channels are read off it.
        module: a function of the channel count, such as `selkern.SKAttention` (the article's) or a lambda, or a
            module; None is the paper's unit, `SelectiveKernel(C, kernels=(3, 5), groups=32)`, with fewer groups where
            32 does not divide C.
        inplace: change the model itself instead of a copy.

    Raises:
        UsageError: no layer of that name; one that gives no single map, or runs more than once; a module that does not
            take the map or changes its shape; an example that the model does not run on, or that gives no finite
            number. The model is left as it was.

    Example:
        >>> import torch, selkern
        >>> model, x = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()), torch.randn(2, 3, 8, 8)
        >>> deeper = selkern.insert(model, after="0", example=x)
        >>> torch.equal(deeper(x), model(x))
        True
    """
    check_model(model)
    check_flags("insert", inplace=inplace)
    fix = "give the name of a layer, such as 'layer4', a glob, or several in a list"
    asked = patterns(after, "after", lambda one: isinstance(one, str), fix)
    run = Example.of(example)
    shapes = _shapes(model, run, asked)
    expected = Outputs.of(duplicate(model), run)
    made = {name: _made(module, shape) for name, shape in shapes.items()}
    tried = duplicate(model)
    innermost_first = [*reversed(made)]  # a layer that goes into a Sequential changes the names of all within it
    for name in innermost_first:
        _put_behind(tried, name, copy.deepcopy(made[name]))
    try:
        differences = compare(expected, tried, run)
    except FAILURES as error:
        what, fix = f"the network does not run with it: {first_line(error)}", "give another module or layer"
        raise UsageError(what, ", ".join(asked), fix) from error
    if not differences.exact:
        raise UsageError("the network is not what it was with it", ", ".join(asked), "choose another layer")
    target = model if inplace else duplicate(model)
    for name in innermost_first:
        _put_behind(target, name, made[name])
    return target  # type: ignore[return-value]


def _shapes(model: nn.Module, example: Example, after: Sequence[str]) -> dict[str, Tensor]:
    """Name of every layer that is meant, and the map that it gives."""
    names = [name for name, _ in model.named_modules() if name]
    for one in after:
        if not any(_is_meant(name, one) for name in names):
            near = nearest(one, names)
            fix = f"nearest modules: {near}" if near else "names are those of model.named_modules()"
            raise UsageError(f"no module matches {one!r}", "after", fix)
    asked = [name for name in names if any(_is_meant(name, one) for one in after)]
    looked_at = duplicate(model)
    with evaluating(looked_at), seeded(model):
        try:
            args, kwargs = example.fresh()
            calls = trace_calls(looked_at, args, kwargs).calls
        except FAILURES as error:
            raise refuses(model, error) from error
    maps = {}
    for name in asked:
        of_name = [call for call in calls if call.path == name]
        outputs = of_name[0].outputs if len(of_name) == 1 else ()
        if len(outputs) != 1 or not 3 <= outputs[0].value.ndim <= 5:
            what = f"runs {len(of_name)} times" if len(of_name) != 1 else "gives no single map (N, C, *)"
            raise UsageError(f"{what} on the example", name, "name a layer that gives one map")
        maps[name] = outputs[0].value
    return maps


def _is_meant(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _made(module: Made | None, y: Tensor) -> Inserted:
    channels, dims = y.shape[1], y.ndim - 2
    shared: dict[str, Any] = {"device": y.device, "dtype": y.dtype}
    if module is None:
        made: nn.Module = SelectiveKernel(channels, groups=gcd(channels, 32), dims=dims, **shared)
    elif isinstance(module, nn.Module):
        made = copy.deepcopy(module)
    else:
        made = _called(module, channels)
    made = made.to(**shared)
    try:
        with torch.no_grad(), evaluating(made):
            given = made(y)
    except FAILURES as error:
        what = f"the module does not take {tuple(y.shape)}: {first_line(error)}"
        raise UsageError(what, "module", "give one that does") from error
    if not isinstance(given, Tensor):
        raise UsageError(f"the module gives a {type(given).__name__}, not a map", "module", "it must give one tensor")
    shape = given.shape
    if shape != y.shape:
        raise UsageError(f"the module turns {tuple(y.shape)} into {tuple(shape)}", "module", "it must keep the shape")
    return Inserted(made, channels, dims, **shared)


def _called(make: Any, channels: int) -> nn.Module:
    """The module that a function gives for a channel count."""
    fix = "give a module, or a function of the channel count that makes one, such as selkern.SKAttention"
    if not callable(make):
        raise UsageError(f"{make!r} is no module", "module", fix)
    try:
        made = make(channels)
    except FAILURES as error:
        raise UsageError(f"calling it with {channels} channels fails: {first_line(error)}", "module", fix) from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"called with {channels} channels it gives {made!r}, which is no module", "module", fix)
    return made


def _put_behind(model: nn.Module, name: str, inserted: Inserted) -> None:
    layer = model.get_submodule(name)
    inserted.train(layer.training)
    if type(layer) is nn.Sequential:
        layer.add_module(_free_name(layer), inserted)
        return
    inserted.wraps = True
    parent, _, last = name.rpartition(".")
    both = nn.Sequential(OrderedDict(layer=layer, inserted=inserted))
    both.training = layer.training
    model.get_submodule(parent)._modules[last] = both


def _free_name(layer: nn.Sequential) -> str:
    """The next number; where the others have names, a word that none of them has."""
    taken = set(layer._modules)
    names = [str(len(layer))] if all(name.isdigit() for name in taken) else []
    names += ["inserted", *(f"inserted{number}" for number in range(2, len(layer) + 2))]
    return next(name for name in names if name not in taken)


def is_zero(inserted: Inserted) -> bool:
    """Whether it adds nothing still."""
    return not inserted.gamma.detach().count_nonzero()


def take_out(model: nn.Module, name: str, inserted: Inserted) -> None:
    """Undo what `insert` did."""
    around, _, last = name.rpartition(".")
    sequence = model.get_submodule(around)
    if inserted.wraps:
        parent, _, place = around.rpartition(".")
        model.get_submodule(parent)._modules[place] = sequence._modules["layer"]
    else:
        del sequence._modules[last]
