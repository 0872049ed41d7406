"""Maps that training does not keep for the backward pass, but computes again there.

A convolution's output y is kept by the BatchNorm that follows, and u = relu(BN(y)) by the ReLU and by whatever reads u
next. The second follows from the first and two small vectors. So everything runs as ordinary autograd, and where
autograd would save u, a saved-tensor hook puts a `Recipe` in its place: about half of the memory, for one more
elementwise pass. No gradient is computed by code of ours, so second derivatives, forward-mode derivatives, hooks,
checkpoints and whatever walks the graph find what they find in any network.

A map's recipe is found by the map, so that the convolution which reads it next need not keep it either (`through`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from selkern.ops.eager import is_eager, is_watched
from selkern.ops.norm import BatchNorm
from selkern.ops.select import select

# Modules that save their input and their weight, and nothing else that anybody could change.
_READERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MaxPool2d)
_RECIPES: Any = WeakTensorKeyDictionary()  # by map; no attribute of it, which would be pickled along


class Unchanged:
    """A tensor as it is now, read later; it is refused if it was changed in place meanwhile, as autograd does it."""

    def __init__(self, tensor: Tensor) -> None:
        # Detached, since an output that a graph keeps itself would keep the graph.
        self._tensor, self._version = tensor.detach(), tensor._version

    def read(self) -> Tensor:
        """The tensor, without its history.

        Raises:
            RuntimeError: it was changed in place.
        """
        if self._tensor._version != self._version:
            shape = tuple(self._tensor.shape)
            raise RuntimeError(
                f"a tensor {shape} was changed in place before the backward pass that needs it as it was"
            )
        return self._tensor


class Recipe:
    """How a map is computed again, once for all saved tensors that it stands for.

    Args:
        make: returns the map, computed again.
        sources: recipes that `make` reads.
    """

    def __init__(self, make: Callable[[], Tensor], sources: Sequence[Recipe] = ()) -> None:
        self._make, self._sources = make, sources
        self._readers = 0  # saved tensors, and recipes, that read the map in a backward pass
        self._waiting = 0  # those of them that have not read it yet in this one
        self._map: Tensor | None = None  # held between the first of them and the last
        self.version = 0

    def attach(self, u: Tensor) -> None:
        """Let the map have this recipe, as long as it is not changed in place."""
        self.version = u._version
        _RECIPES[u] = self

    def add_reader(self) -> Recipe:
        """Count one more reader."""
        if not self._readers:
            for source in self._sources:
                source.add_reader()
        self._readers += 1
        return self

    def read(self) -> Tensor:
        """The map, which is let go when its last reader has it."""
        u = self._map
        if u is None:
            with torch.no_grad():
                u = self._make()
            self._waiting = self._readers
        self._waiting -= 1
        self._map = u if self._waiting > 0 else None
        return u


def recipe_of(u: Tensor) -> Recipe | None:
    """The recipe of a map; None where it has none, has been changed in place since, or cannot be left unsaved here."""
    if not is_possible(u):
        return None
    recipe: Recipe | None = _RECIPES.get(u)
    return recipe if recipe is not None and recipe.version == u._version else None


@contextmanager
def unsaved(known: list[tuple[Tensor, Recipe]]) -> Iterator[None]:
    """Within the block autograd saves, in place of each of these maps, its recipe. The list is empty afterwards."""

    def pack(saved: Tensor) -> Unchanged | Recipe:
        for u, recipe in known:
            if _is_same(saved, u) and recipe.version == u._version:
                return recipe.add_reader()
        return Unchanged(saved)

    try:
        with saved_tensors_hooks(pack, _unpack):
            yield
    finally:
        known.clear()  # autograd keeps `pack` as long as what it has saved


def through(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)`, for which a convolution or pool of torch's own does not save x where x has a recipe."""
    recipe = recipe_of(x) if type(module) in _READERS and not is_watched(module) else None
    if recipe is None:
        return module(x)
    with unsaved([(x, recipe)]):
        return module(x)


def chunk(x: Tensor, chunks: int) -> list[Tensor]:
    """x (N, C, *) in equal parts of its channels, with recipes of their own where x has one."""
    pieces = x.chunk(chunks, dim=1)
    parts = [pieces[m] for m in range(chunks)]  # which a symbolic trace cannot iterate over
    whole = recipe_of(x)
    if whole is not None:
        for m, part in enumerate(parts):
            Recipe(lambda m=m: whole.read().chunk(chunks, dim=1)[m], [whole]).attach(part)  # type: ignore[misc]
    return parts


def _unpack(kept: Unchanged | Recipe) -> Tensor:
    return kept.read()


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers at the same place of memory."""
    return (
        (one.shape, one.dtype, one.layout) == (other.shape, other.dtype, other.layout)
        and one.data_ptr() == other.data_ptr()
        and one.stride() == other.stride()
    )


def is_possible(x: Tensor) -> bool:
    """Whether maps computed from x can be left unsaved, and anything is saved at all."""
    return (
        is_eager(x, modes=True)
        and type(x) in (Tensor, nn.Parameter)  # of subclasses nobody knows where their numbers are
        and torch.is_grad_enabled()
        and torch._C._autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]
        and x.device.type != "meta"  # whose maps are all at the same place of memory
    )


class _Kept(torch.autograd.Function):
    """y as it is, saved for the recipe: hooks on saved tensors, such as a checkpoint's, apply to it as to any other."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # noqa: ARG004
        return dy

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:  # noqa: ARG004
        return tangent.view_as(tangent)


def _source(y: Tensor, kept: Tensor) -> Callable[[], Tensor]:
    """What returns y in the backward pass. It holds y itself only where autograd saves nothing for the recipe."""
    node: Any = kept.grad_fn
    detached = y.detach()
    if node is None:
        return lambda: detached
    return lambda: node.saved_tensors[0].detach()


def norm_relu(norm: BatchNorm, y: Tensor) -> Tensor:
    """u = relu(BN(y)), (N, C, *), with its recipe where y can be had again; updates the running statistics."""
    if not is_possible(y) or not y.numel():  # an empty batch is nothing for the operator below
        moving = (norm.mean, norm.var)
        return F.batch_norm(y, *moving, norm.weight, norm.bias, norm.training, norm.momentum, norm.eps).relu_()
    kept = _Kept.apply(y)  # type: ignore[no-untyped-call]
    u, mean, invstd = torch.native_batch_norm(
        kept, norm.weight, norm.bias, norm.mean, norm.var, norm.training, norm.momentum, norm.eps
    )
    if u.grad_fn is None:
        return u.relu_()
    if not norm.training:  # the operator does not return them then
        assert norm.mean is not None
        assert norm.var is not None
        mean, invstd = norm.mean.clone(), (norm.var + norm.eps).rsqrt()
    source = _source(y, kept)
    weight = None if norm.weight is None else Unchanged(norm.weight)
    bias = None if norm.bias is None else norm.bias.detach().clone()  # no gradient needs it: it may change meanwhile

    def make() -> Tensor:
        affine = (None if weight is None else weight.read(), bias)
        return normalised(source(), *affine, mean, invstd, norm.eps)

    recipe = Recipe(make)
    with saved_tensors_hooks(lambda _result: recipe.add_reader(), _unpack):  # all that a ReLU saves
        u.relu_()
    recipe.attach(u)
    return u


def normalised(
    y: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
) -> Tensor:
    """relu(BN(y)) by known moments, (C,) each."""
    variance = invstd.pow(-2) - eps  # of which the operator makes 1 / deviation again
    return torch.batch_norm(y, weight, bias, mean, variance, False, 0.0, eps, False).relu_()


def select_unsaved(maps: Sequence[Tensor], a_NMC: Tensor, dims: int | None = None, *, lean: bool = False) -> Tensor:
    """`ops.select.select` that saves no map with a recipe: M maps and the selection (N, M, C) to V (N, C, *).

    Args:
        maps: M of them, (N, C, *).
        a_NMC: the selection.
        dims: spatial axes, as in `ops.select`.
        lean: if all maps have recipes, V gets one as well, so that what reads V need not save it.
    """
    recipes = [recipe_of(u) for u in maps]
    sources = [recipe for recipe in recipes if recipe is not None]
    if not sources:
        return select(maps, a_NMC, dims)
    with unsaved([(u, recipe) for u, recipe in zip(maps, recipes, strict=True) if recipe is not None]):
        v = select(maps, a_NMC, dims)
    if lean and v.grad_fn is not None and len(sources) == len(maps):
        _attach_selected(v, sources, Unchanged(a_NMC))
    return v


def _attach_selected(v: Tensor, sources: Sequence[Recipe], a_NMC: Unchanged) -> None:
    """Let V have a recipe that selects again from what the maps' recipes make."""
    Recipe(lambda: select([source.read() for source in sources], a_NMC.read()), sources).attach(v)
