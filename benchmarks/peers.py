"""Whom we are compared with: the article's code in our words, timm's, the stacked form, and the convolutions alone.

Every peer gets the weights of ours, and its result is held against ours before it is timed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import selkern
from selkern.convert.timm import to_timm
from selkern.errors import PackageError
from selkern.layers.article import SKAttention
from selkern.layers.selective_kernel import SelectiveKernel
from selkern.measure.bench import LAYOUTS
from selkern.measure.timing import quickest
from selkern.ops import reference

_PIECE = 4  # images that a bare convolution may be computed for at once: their maps stay in the cache
# Our part of a name, timm's, in the order they are replaced.
_TIMM_NAMES = (
    ("branches.", "paths."),
    ("gate.norm.", "attn.bn."),
    (".norm.", ".bn."),
    ("gate.fc1.", "attn.fc_reduce."),
    ("gate.fc2.", "attn.fc_select."),
)
_timm: ModuleType | PackageError | None = None


class ArticleSK(nn.Module):
    """The article's module as its text has it: branches stacked and summed, softmax over the stack, weighted sum.

    Args:
        channel: C.
        kernels: one dense convolution per entry.
        reduction: r; the descriptor has max(L, C // r) numbers.
        group: groups of every convolution.
        L: the least width of the descriptor.
    """

    def __init__(
        self,
        channel: int = 512,
        kernels: Sequence[int] = (1, 3, 5, 7),
        reduction: int = 16,
        group: int = 1,
        L: int = 32,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        for k in kernels:
            branch = nn.Sequential()
            branch.add_module("conv", nn.Conv2d(channel, channel, k, padding=k // 2, groups=group))
            branch.add_module("bn", nn.BatchNorm2d(channel))
            branch.add_module("relu", nn.ReLU())
            self.convs.append(branch)
        width = max(L, channel // reduction)
        self.fc = nn.Linear(channel, width)
        self.fcs = nn.ModuleList(nn.Linear(width, channel) for _ in kernels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        u_MNCHW = torch.stack([branch(x) for branch in self.convs], 0)
        z_ND = self.fc(u_MNCHW.sum(0).mean(-1).mean(-1))
        weights = [fc(z_ND).view(*x.shape[:2], 1, 1) for fc in self.fcs]
        a_MNC11 = torch.softmax(torch.stack(weights, 0), dim=0)
        return (a_MNC11 * u_MNCHW).sum(0)


class Stacked(nn.Module):
    """A unit of ours as other implementations write it: stack all branches, multiply, sum; (N, C, H, W) to the same."""

    def __init__(self, unit: SelectiveKernel) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        u = [branch(x) for branch in self.unit.branches]
        assert self.unit.gate is not None
        return reference.select(u, self.unit.gate(reference.fuse(u)))


class BareConvolutions:
    """Every convolution of a network alone, on inputs of the shapes it has there: what no arrangement can undercut.

    Each in the faster of two layouts, and of the whole batch and pieces of it, found by trial.
    """

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        inputs: dict[tuple[tuple[int, ...], str], Tensor] = {}  # one for all convolutions of its shape and layout
        chosen: dict[tuple[Any, ...], tuple[str, int]] = {}
        self.calls: list[Callable[[], object]] = []
        with torch.inference_mode():
            for conv, shape in _convolutions(model, x):
                key = (shape, conv.weight.shape, conv.stride, conv.padding, conv.dilation, conv.groups)
                if key not in chosen:
                    chosen[key] = _best_way(conv, torch.randn(shape))
                layout, piece = chosen[key]
                if (shape, layout) not in inputs:
                    inputs[shape, layout] = _in_layout(torch.randn(shape), layout)
                self.calls.append(_call(conv, inputs[shape, layout], layout, piece))
        ways = {layout for layout, _ in chosen.values()}
        self.layout = ways.pop() if len(ways) == 1 else "each its own"

    def __call__(self) -> None:
        """Run them all, one after the other."""
        with torch.inference_mode():
            for call in self.calls:
                call()


def _convolutions(model: nn.Module, x: Tensor) -> list[tuple[nn.Conv2d, tuple[int, ...]]]:
    """Every convolution that a forward pass calls, with the shape of its input."""
    calls: list[tuple[nn.Conv2d, tuple[int, ...]]] = []

    def note(conv: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(conv, nn.Conv2d)
        calls.append((conv, tuple(inputs[0].shape)))

    handles = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _best_way(conv: nn.Conv2d, x: Tensor) -> tuple[str, int]:
    """The layout and the number of images at once that a convolution is fastest with."""
    ways = {}
    for layout in LAYOUTS:
        given = _in_layout(x, layout)
        for piece in sorted({min(_PIECE, len(x)), len(x)}):
            ways[f"{layout} {piece}"] = (layout, piece, _call(conv, given, layout, piece))
    layout, piece, _ = ways[quickest({name: call for name, (_, _, call) in ways.items()})]
    return layout, piece


def _call(conv: nn.Conv2d, x: Tensor, layout: str, piece: int) -> Callable[[], object]:
    weight, bias = _in_layout(conv.weight.detach(), layout), conv.bias
    parts = torch.split(x, piece)

    def run() -> None:
        for part in parts:
            F.conv2d(part, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    return run


def _in_layout(x: Tensor, layout: str) -> Tensor:
    return x.contiguous(memory_format=LAYOUTS[layout])


def import_timm() -> ModuleType:
    """timm.

    Raises:
        PackageError: it is not installed, or the torchvision beside it does not fit torch.
    """
    global _timm
    if _timm is None:
        try:
            _timm = importlib.import_module("timm")
        except ImportError as error:
            _timm = PackageError(f"timm cannot be imported ({error})", "timm", "pip install 'selkern[timm]'")
        except (RuntimeError, AttributeError, OSError) as error:
            fix = f"install the torchvision that was built for torch {torch.__version__}"
            _timm = PackageError(f"timm cannot be imported ({error})", "timm", fix)
    if isinstance(_timm, PackageError):
        raise _timm
    return _timm


def timm_unit(unit: SelectiveKernel) -> nn.Module:
    """timm's SelectiveKernel with the weights of ours."""
    assert unit.gate is not None
    theirs: nn.Module = import_timm().layers.SelectiveKernel(
        unit.in_channels,
        unit.out_channels,
        groups=unit.branches[0].get_submodule("conv").groups,
        rd_channels=unit.gate.fc1.out_features,
        split_input=False,
    )
    state, shapes = {}, theirs.state_dict()
    for name, tensor in unit.state_dict().items():
        for ours, its in _TIMM_NAMES:
            name = name.replace(ours, its)
        state[name] = tensor.reshape(shapes[name].shape) if name in shapes else tensor
    theirs.load_state_dict(state)
    return theirs.train(unit.training)


def timm_network(name: str, model: nn.Module) -> nn.Module:
    """timm's network of a name with the weights of ours."""
    theirs: nn.Module = import_timm().create_model(name, num_classes=model.get_parameter("fc.weight").shape[0])
    theirs.load_state_dict(to_timm(model.state_dict(), name))
    return theirs.train(model.training)


def article_module(module: SKAttention) -> ArticleSK:
    """The article's module with the weights of ours."""
    conv = module.convs[0].get_submodule("conv")
    assert isinstance(conv, nn.Conv2d)
    theirs = ArticleSK(module.channel, module.extents, group=conv.groups, L=module.d)
    theirs.load_state_dict(module.state_dict())
    return theirs.train(module.training)


def of_ours(name: str) -> Any:
    """A public function of this package.

    Raises:
        PackageError: this version does not have it.
    """
    try:
        return getattr(selkern, name)
    except (AttributeError, ImportError) as error:
        raise PackageError(f"selkern.{name} is not in this version", "selkern", str(error)) from error


def folded(model: nn.Module, x: Tensor, **options: Any) -> nn.Module:
    """`selkern.fold` of a model in eval mode; `x` is a batch that it can be tried on."""
    result: nn.Module = of_ours("fold")(model, example=x[:2], **options)
    return result


@torch.no_grad()
def vary_norms(model: nn.Module) -> None:
    """Give every BatchNorm numbers of its own, near the first ones: at 1 and 0 a peer that skips one would pass.

    Not the statistics of a batch of noise: its images are so alike that the gates would divide by next to nothing, and
    a network of fifty layers then turns rounding errors into other results.
    """
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.weight.uniform_(0.8, 1.2)
            norm.bias.normal_(std=0.1)
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.8, 1.25)
