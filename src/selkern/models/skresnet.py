"""timm's five SK networks: `skresnet18`, `34`, `50`, `50d` and `skresnext50_32x4d`, equal to timm's by test.

They are the SK networks whose ImageNet weights are public (`from_timm.py` loads them). All but the last feed each
branch its own half of the input channels, which is not the paper's unit; the last is the paper's SKNet-50 but for
its max-pool, which pads. Tensor names are those of `trunk.Unit`, so its weights fit `sknet50` too.

Source: timm 1.0.31, read for structure, sizes and initialisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from selkern.layers.gate import Gate
from selkern.layers.memory import HasMemory
from selkern.layers.parts import Norm, check_input, divides, make_norm
from selkern.layers.selective_kernel import Branch, SelectiveKernel
from selkern.models.backbone import Backbone, Feature, Variant, bottleneck, make_drop_path
from selkern.ops import recompute


@dataclass(frozen=True, kw_only=True)
class SKResNetArchitecture:
    """One row of the table below.

    Attributes:
        depths: units per stage.
        mids: channels of the selective kernel, per stage.
        outs: channels after a unit, per stage.
        bottleneck: 1x1 -> SK -> 1x1; False is the basic unit SK -> 3x3.
        groups: cardinality of the branches.
        split_input: each branch sees its own share of the input channels.
        reduction, min_width: the gate's descriptor has D = max(C // reduction, min_width) numbers. timm rounds
            C / reduction to a multiple of a divisor; for these widths that is the same.
        stem: channels of the stem's convolutions, the first of stride 2; `stem_kernel` is the kernel of each.
        avg_down: a shortcut of stride 2 averages 2x2 positions first instead of dropping three of four.
        input_size: side in pixels of the images it was designed for.
    """

    depths: tuple[int, ...]
    mids: tuple[int, ...] = (64, 128, 256, 512)
    outs: tuple[int, ...] = (256, 512, 1024, 2048)
    bottleneck: bool = True
    groups: int = 1
    split_input: bool = True
    reduction: int = 16
    min_width: int = 8
    stem: tuple[int, ...] = (64,)
    stem_kernel: int = 7
    avg_down: bool = False
    input_size: int = 224

    @property
    def strides_of_maps(self) -> tuple[int, ...]:
        """Strides of the maps that the network makes against the image, each once."""
        return (2, 4, 8, 16, 32)

    def build(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        features_only: bool = False,
        variant: Variant = Variant(),  # noqa: B008 - frozen
    ) -> SKResNet:
        """The network of this row."""
        return SKResNet(self, num_classes, in_chans, features_only, variant)


class SplitSelectiveKernel(SelectiveKernel):
    """SK whose M branches each see their own C_in / M input channels; (N, C_in, *) to (N, C_out, *).

    Args:
        in_channels: C_in, a multiple of the number of kernels; the rest as in `SelectiveKernel`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernels: Sequence[int | Branch] = (3, 5), **options: Any
    ) -> None:
        divides("len(kernels)", len(kernels), in_channels=in_channels)
        super().__init__(in_channels // len(kernels), out_channels, kernels, **options)
        self.in_channels = in_channels

    def inputs_of(self, x: Tensor) -> Sequence[Tensor]:
        """What each branch reads of x: its share of the channels."""
        check_input("SplitSelectiveKernel", x, self._taken(len(self.branches)), self.dims)
        return recompute.chunk(x, len(self.branches))


def _norm(norm: Norm, batch: type[nn.Module] = nn.BatchNorm2d) -> Norm:
    """A norm of these networks. BatchNorm is torch's own, momentum 0.1: timm's, not the prototxt's 0.05."""
    return batch if norm == "batch" else norm


def make_mixer(
    arch: SKResNetArchitecture, in_channels: int, out_channels: int, stride: int, variant: Variant
) -> SelectiveKernel:
    """The selective kernel of a unit."""
    return (SplitSelectiveKernel if arch.split_input else SelectiveKernel)(
        in_channels,
        out_channels,
        (3, 5),
        groups=arch.groups,
        reduction=arch.reduction,
        min_width=arch.min_width,
        stride=stride,
        norm=_norm(variant.norm),
        gate_norm=_norm(variant.norm if variant.gate_norm is None else variant.gate_norm, nn.BatchNorm1d),
    )


class SKResNetUnit(nn.Module, HasMemory):
    """[1x1 ->] SK -> 1x1 (3x3 in a basic unit), plus the shortcut; (N, C_in, H, W) to (N, out, H / s, W / s)."""

    def __init__(
        self,
        arch: SKResNetArchitecture,
        in_channels: int,
        mid: int,
        out: int,
        stride: int,
        variant: Variant,
        drop_path: float,
    ) -> None:
        super().__init__()
        norm = _norm(variant.norm)
        if arch.bottleneck:
            self.conv1 = nn.Conv2d(in_channels, mid, 1, bias=False)
            self.norm1 = make_norm(norm, mid, 2)
        self.bottleneck = arch.bottleneck
        self.memory = "default"
        self.mixer = make_mixer(arch, mid if arch.bottleneck else in_channels, mid, stride, variant)
        self.mixer.in_unit = arch.bottleneck
        kernel = 1 if arch.bottleneck else 3
        self.conv3 = nn.Conv2d(mid, out, kernel, padding=kernel // 2, bias=False)
        self.norm3 = make_norm(norm, out, 2)
        self.drop_path = make_drop_path(drop_path)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out:
            layers: list[nn.Module] = []
            if arch.avg_down:  # the place is kept where the stride is 1: names of all stages stay alike
                layers.append(nn.AvgPool2d(2, stride, ceil_mode=True) if stride > 1 else nn.Identity())
            projection = nn.Conv2d(in_channels, out, 1, stride=1 if arch.avg_down else stride, bias=False)
            self.shortcut = nn.Sequential(*layers, projection, make_norm(norm, out, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, out, H / stride, W / stride)."""
        y = self.norm3(bottleneck(self, x) if self.bottleneck else self.conv3(self.mixer(x)))
        return (self.drop_path(y) + self.shortcut(x)).relu_()


class SKResNet(Backbone):
    """Stem, 3x3/2 max-pool, four stages of units, mean over space, classifier.

    Args:
        arch: a row of the table below; the rest as in `Backbone`.
    """

    def __init__(
        self,
        arch: SKResNetArchitecture,
        num_classes: int = 1000,
        in_chans: int = 3,
        features_only: bool = False,
        variant: Variant = Variant(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(num_classes, in_chans, features_only, variant)
        self.arch = arch
        layers: list[nn.Module] = []
        channels, kernel = in_chans, arch.stem_kernel
        for width in arch.stem:
            conv = nn.Conv2d(channels, width, kernel, 1 if layers else 2, kernel // 2, bias=False)
            layers += [conv, make_norm(_norm(variant.norm), width, 2), nn.ReLU(inplace=True)]
            channels = width
        self.stem = nn.Sequential(*layers)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.feature_info = [Feature("stem", channels, 2)]
        self.stages = nn.Sequential()
        rates = variant.rates(arch.depths)
        for stage, (mid, out) in enumerate(zip(arch.mids, arch.outs, strict=True)):
            units = nn.Sequential()
            for rate in rates[stage]:
                stride = 2 if stage and not len(units) else 1
                units.append(SKResNetUnit(arch, channels, mid, out, stride, variant, rate))
                channels = out
            self.stages.append(units)
            self.feature_info.append(Feature(f"stages.{stage}", out, 4 << stage))
        self.make_head(channels)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights as timm does: He by fan-out, the gates too (1x1 convolutions there); torch's classifier."""
        weights = [m.weight for m in self.modules() if isinstance(m, nn.Conv2d)]
        weights += [fc.weight for m in self.modules() if isinstance(m, Gate) for fc in (m.fc1, m.fc2)]
        for weight in weights:
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
        if isinstance(self.fc, nn.Linear):
            self.fc.reset_parameters()


_BASIC_18 = SKResNetArchitecture(
    depths=(2, 2, 2, 2), outs=(64, 128, 256, 512), bottleneck=False, reduction=8, min_width=16
)
_BOTTLENECK_50 = SKResNetArchitecture(depths=(3, 4, 6, 3))
ARCHITECTURES = {
    "skresnet18": _BASIC_18,
    "skresnet34": replace(_BASIC_18, depths=(3, 4, 6, 3)),
    "skresnet50": _BOTTLENECK_50,
    "skresnet50d": replace(_BOTTLENECK_50, stem=(32, 32, 64), stem_kernel=3, avg_down=True),
    "skresnext50_32x4d": replace(
        _BOTTLENECK_50, mids=(128, 256, 512, 1024), groups=32, split_input=False, min_width=32
    ),
}
