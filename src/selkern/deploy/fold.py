"""`fold`: a trained network for inference alone, with BatchNorm gone into the convolutions.

What is left of a selective-kernel unit is two convolutions with ReLU, two means, two small matrix products, and one
pass that weighs the branches. The fold is compared with the original before it is given.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils._pytree import tree_leaves, tree_map

from selkern.deploy.fused import CONVS, Cache, FusedConv, can_fold
from selkern.errors import NumericsError, UsageError
from selkern.layers.article import SKAttention
from selkern.layers.gate import Gate
from selkern.layers.parts import evaluating
from selkern.layers.selective_kernel import ConvNormAct
from selkern.models.backbone import Backbone
from selkern.models.skresnet import SKResNetUnit
from selkern.models.trunk import Unit
from selkern.ops import reference
from selkern.ops import select as ops
from selkern.ops.eager import is_eager, is_watched
from selkern.ops.spectral import convolution as spectral
from selkern.ops.spectral.plan import Plan, worthwhile


@runtime_checkable
class Foldable(Protocol):
    """A module that says itself what is left of it for inference."""

    def fold_for_inference(self, fused: Callable[..., FusedConv]) -> nn.Module:
        """That, or itself; `fused` makes one of a convolution, the norm behind it, and a ReLU."""


class FoldedSKAttention(nn.Module):
    """The article's module with folded branches; (N, C, H, W) to (N, C, H, W).

    Where it is measured to be faster, large kernels are products of Fourier coefficients (`ops/spectral.py`). Those of
    the weights are made at the first image of a size and kept: up to `limit` MiB beside the weights, for one size.

    Args:
        module: in eval mode, its norms folded into `convs`.
        convs: its branches, each a convolution with ReLU.
        limit: MiB; 0 convolves directly.
    """

    def __init__(self, module: SKAttention, convs: Iterable[nn.Module], limit: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.fc, self.fcs, self.selection = module.fc, module.fcs, module.selection
        self.softmax_over, self.limit = module.softmax_over, limit
        self.extents = module.extents
        self._spectra: Cache[Plan, list[Tensor]] = Cache(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        u = self._branches(x)
        z_ND = self.fc(ops.fuse(u, 2))
        logits_NMC = torch.stack([fc(z_ND) for fc in self.fcs], dim=1)
        if self.softmax_over == "batch":
            return reference.select(u, logits_NMC.softmax(dim=0))
        return ops.select(u, self.selection(logits_NMC), 2)

    def _branches(self, x: Tensor) -> list[Tensor]:
        convs = [conv for conv in self.convs if isinstance(conv, FusedConv)]
        plan = self._plan(x, convs[0].groups)
        if plan is None:
            return [conv(x) for conv in convs]
        weights = [conv.weight for conv in convs]
        made = self._spectra.get(plan, weights, lambda plan, weights: spectral.spectra(weights, plan))
        return [u.relu_() for u in spectral.convolve(x, made, [conv.bias for conv in convs], plan)]

    def _plan(self, x: Tensor, groups: int) -> Plan | None:
        """Which branches to compute by Fourier coefficients; None for none."""
        if not (self.limit and is_eager(x) and spectral.suits(x)):
            return None
        shape = (x.shape[0], x.shape[1], x.shape[2], x.shape[3])
        return worthwhile(
            shape, x.shape[1], self.extents, training=False, groups=groups, itemsize=x.element_size(), limit=self.limit
        )


_HALF = (torch.float16, torch.bfloat16)
# Largest difference from the original, as a share of its largest value. A sum of thousands of float32 or bfloat16
# products in another order; a fold that is wrong differs by its whole size.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}


class FoldedUnit(nn.Module):
    """A bottleneck or basic unit whose every convolution ends in its ReLU, the last one in the residual sum as well."""

    def __init__(self, unit: Unit | SKResNetUnit, fused: Callable[..., FusedConv]) -> None:
        super().__init__()
        first = getattr(unit, "conv1", None)
        self.conv1 = nn.Identity() if first is None else fused(first, unit.norm1, relu=True)
        self.mixer = unit.mixer
        self.se = getattr(unit, "se", None)
        self.conv3 = fused(unit.conv3, unit.norm3, relu=self.se is None)
        self.shortcut = unit.shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, out, H / stride, W / stride)."""
        y = self.mixer(self.conv1(x))
        if self.se is None:
            return self.conv3(y, self.shortcut(x))
        return (self.se(self.conv3(y)) + self.shortcut(x)).relu_()


class Folded(nn.Module):
    """A folded network: takes and returns what the original does, in eval mode, without gradients.

    It can be copied, pickled and saved like any module; copies make oneDNN's layouts of the weights, and compile
    themselves, at their first call. Exporters, tracers and torch.compile see plain operators and the whole batch, so
    that a graph takes any number of images.

    Args:
        net: the folded modules.
        micro_batch: as the attribute.
        compiled: as the attribute.

    Attributes:
        net: the folded modules; `state_dict` holds their weights.
        dtype: of the computation; results of 16 bits are converted to float32.
        takes: dtype that images are converted to.
        micro_batch: largest number of images computed at once; None for all.
        compiled: whether torch.compile computes the calls.
        card: the original's.
    """

    dtype: torch.dtype
    takes: torch.dtype

    def __init__(self, net: nn.Module, micro_batch: int | None = None, *, compiled: bool = False) -> None:
        super().__init__()
        self.net, self.micro_batch, self.compiled = net, micro_batch, compiled
        self.card = getattr(net, "card", None)
        self._read_dtypes()

    def _read_dtypes(self) -> None:
        dtypes = [p.dtype for p in self.net.parameters() if p.is_floating_point()] or [torch.get_default_dtype()]
        self.takes, self.dtype = dtypes[0], dtypes[-1]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        """(N, C, H, W) to what the original returns."""
        x = x.to(self.takes)
        if not is_eager(x):
            return self._as_float(self.net(x))
        with torch.inference_mode():
            if x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            run = self._compiled_net() if self.compiled else self.net
            parts = [run(part) for part in torch.split(x, self.micro_batch or max(len(x), 1))]
        return self._as_float(_joined(parts))

    def _as_float(self, out: Any) -> Any:
        if self.dtype not in _HALF:
            return out
        return tree_map(lambda part: part.float() if isinstance(part, Tensor) else part, out)

    def _compiled_net(self) -> Callable[[Tensor], Any]:
        compiled: Callable[[Tensor], Any] | None = self.__dict__.get("_compiled")
        if compiled is None:
            on_cpu = next(self.net.parameters()).device.type == "cpu"
            compiled = torch.compile(self.net, options={"freezing": True} if on_cpu else {})
            self.__dict__["_compiled"] = compiled  # a module as well, whose weights are none of this one's own
        return compiled

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Folded:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._read_dtypes()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_compiled"}

    def train(self, mode: bool = True) -> Folded:  # noqa: ARG002 - as every module's
        """A folded network stays in eval mode: there is nothing to train."""
        return super().train(False)


def _joined(parts: list[Any]) -> Any:
    """The results of micro-batches as one, in tensors that a network in training can read.

    Those of inference mode, which saves time over many small operators, cannot be kept for a backward pass: they are
    copied even where there is one part alone, unless the caller is in inference mode too.
    """
    if len(parts) == 1 and torch.is_inference_mode_enabled():
        return parts[0]
    return tree_map(lambda *maps: torch.cat(maps) if isinstance(maps[0], Tensor) else maps[0], parts[0], *parts[1:])


def fold(
    model: nn.Module,
    *,
    dtype: torch.dtype = torch.float32,
    compile: bool = False,
    micro_batch: int | Literal["auto"] | None = "auto",
    example: Tensor | None = None,
) -> Folded:
    """A copy of a network for inference: norms folded into convolutions and gates, channels-last, one pass for Select.

    Args:
        model: one of `create_model`, a layer of ours, or any network that holds our layers; it is left as it is. Its
            own conv -> BatchNorm pairs are folded where they stand one after the other in a `Sequential`. What is
            parametrised, adapted or watched by a hook is left as it is.
        dtype: of the computation. bfloat16 pays on CPUs with its instructions and on GPUs; a network's first
            convolution stays float32, since rounded images change more predictions than all the rest (docs/log.md).
        compile: compile the result with torch.compile, which takes a minute at the first call of each shape.
        micro_batch: how many images are computed at once (None: all). "auto": 8 in our networks on a CPU, where their
            maps then stay in the cache; else all.
        example: a batch to compare original and fold on; networks of `create_model` need none.

    Returns:
        A module that gives what `model.eval()` gives. `fold(same architecture).load_state_dict(...)` takes its state.

    Raises:
        UsageError: a model that needs an `example` and has none.
        NumericsError: the fold does not compute what the original does.

    Example:
        >>> import torch, selkern
        >>> fast = selkern.fold(selkern.create_model("sknet_mini", weights="digits"))
        >>> fast(torch.randn(2, 3, 48, 48)).shape
        torch.Size([2, 10])
    """
    x = _example(model, example)
    on_cpu = x.device.type == "cpu"
    net = copy.deepcopy(model).eval().requires_grad_(False)
    net = _folded(net, packed=on_cpu and not compile and torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    net = _cast(net, dtype)
    for p in net.parameters():
        if p.ndim == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)
    if micro_batch == "auto":
        micro_batch = 8 if on_cpu and isinstance(model, Backbone) else None
    folded = Folded(net, micro_batch).eval()
    _compare(model, folded, x)
    folded.compiled = compile
    return folded


class Cast(nn.Module):
    """x in another dtype, which `.to` changes as it changes all of a network's."""

    like: Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to the same."""
        return x.to(self.like.dtype)


def _cast(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network in a dtype; of 16 bits, all but its first convolution."""
    stem = net.stem if isinstance(net, Backbone) and isinstance(net.stem, nn.Sequential) else None
    if stem is None or not isinstance(stem[0], FusedConv) or dtype not in _HALF:
        return net.to(dtype=dtype)
    exact = copy.deepcopy(stem[0])
    net.to(dtype=dtype)
    stem[0], stem[1] = exact, Cast(dtype).to(exact.weight.device)  # the second was its norm
    return net


def _example(model: nn.Module, example: Tensor | None) -> Tensor:
    if example is not None:
        return example
    if not isinstance(model, Backbone):
        raise UsageError("no batch to compare original and fold on", "fold", "give example=a batch of its input")
    device = next(model.parameters()).device
    side = min(model.arch.input_size, 64)
    return torch.randn(2, model.in_chans, side, side, generator=torch.Generator().manual_seed(0)).to(device)


def _compare(model: nn.Module, folded: Folded, x: Tensor) -> None:
    """Raise unless both give the same, as far as the fold's numbers can."""
    with evaluating(model), torch.inference_mode():
        expected, got = model(x), folded(x)
    for want, have in zip(tree_leaves(expected), tree_leaves(got), strict=True):
        if not isinstance(want, Tensor) or not want.is_floating_point():
            continue
        error = (have.double() - want.double()).abs().max().item() / (want.abs().max().item() or 1.0)
        if not error <= max(_TOLERANCE[folded.dtype], _TOLERANCE.get(want.dtype, 0.0)):
            what = f"the fold differs by {error:.1e} of the largest value"
            raise NumericsError(what, type(model).__name__, "report it; the model itself is untouched")


def _folded(module: nn.Module, *, packed: bool) -> nn.Module:
    """The module with its norms folded, in place or a new one."""

    def fused(conv: nn.Module, norm: nn.Module, relu: bool) -> FusedConv:
        assert isinstance(conv, CONVS)
        if isinstance(norm, _BatchNorm):
            conv = fuse_conv_bn_eval(conv, norm)
        return FusedConv(conv, relu=relu, packed=packed)

    for name, child in list(module.named_children()):
        setattr(module, name, _folded(child, packed=packed))
    if is_watched(module):
        return module
    if isinstance(module, Foldable):
        return module.fold_for_inference(fused)
    if isinstance(module, ConvNormAct) and can_fold(module.conv, module.norm) and not is_watched(module.act):
        relu = isinstance(module.act, nn.ReLU)
        conv = fused(module.conv, module.norm, relu=relu)
        return conv if relu or isinstance(module.act, nn.Identity) else nn.Sequential(conv, module.act)
    if isinstance(module, SKAttention):
        branches = [branch.get_submodule("conv") for branch in module.convs]
        if all(isinstance(conv, FusedConv) for conv in branches) and not any(map(is_watched, module.convs)):
            return FoldedSKAttention(module, branches, limit=512 if packed and module.spectral else 0)
    if isinstance(module, (Unit, SKResNetUnit)):
        first = not hasattr(module, "conv1") or can_fold(module.conv1, module.norm1)
        return FoldedUnit(module, fused) if first and can_fold(module.conv3, module.norm3) else module
    if isinstance(module, Gate) and can_fold(module.fc1, module.norm) and isinstance(module.norm, _BatchNorm):
        module.fc1, module.norm = fuse_linear_bn_eval(module.fc1, module.norm), nn.Identity()
    if isinstance(module, nn.Sequential):
        _fold_sequence(module, fused)
    return module


def _fold_sequence(sequence: nn.Sequential, fused: Callable[..., FusedConv]) -> None:
    """Fold each conv -> BatchNorm [-> ReLU] of a `Sequential`; the places of what is gone stay, as Identity."""
    names = list(sequence._modules)
    for i, name in enumerate(names[:-1]):
        conv, norm = sequence[i], sequence[i + 1]
        if not (isinstance(conv, CONVS) and isinstance(norm, _BatchNorm) and can_fold(conv, norm)):
            continue
        relu = i + 2 < len(names) and isinstance(sequence[i + 2], nn.ReLU) and not is_watched(sequence[i + 2])
        setattr(sequence, name, fused(conv, norm, relu=relu))
        for gone in names[i + 1 : i + 2 + relu]:
            setattr(sequence, gone, nn.Identity())
