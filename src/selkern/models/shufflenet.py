"""ShuffleNetV2 0.5x and 1.0x, plain, with SE, and with SK in place of the 3x3 depthwise convolution (paper Table 4).

The paper gives the idea and the sizes, not r and L of the gate nor where SE stands; its plain networks are larger
than ShuffleNetV2's own (1.40 M and 2.45 M against 1.37 M and 2.28 M). Here r = 16 and L = 32, as in SKNet-50, which
adds about what the paper's SK adds; SE scales the output of the unit's transformed half. Published sizes are not
promised.

Source of the plain network: N. Ma et al., ShuffleNet V2, ECCV 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selkern.layers.parts import he_normal, make_norm
from selkern.layers.selective_kernel import Branch, ConvNormAct, SelectiveKernel
from selkern.models.backbone import Backbone, Feature, Variant, make_drop_path
from selkern.models.trunk import Mixer, SqueezeExcite


@dataclass(frozen=True, kw_only=True)
class ShuffleArchitecture:
    """One row: channels of the stages, and the spatial mixer of the units."""

    outs: tuple[int, int, int]
    mixer: Mixer = "plain"
    depths: tuple[int, int, int] = (4, 8, 4)
    stem: int = 24
    head: int = 1024
    reduction: int = 16
    min_width: int = 32
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
    ) -> ShuffleNet:
        """The network of this row."""
        return ShuffleNet(self, num_classes, in_chans, features_only, variant)


def shuffle(x: Tensor) -> Tensor:
    """(N, 2 C, H, W): channels of the two halves in turn, so that the next unit's split mixes them."""
    halves: Tensor = x.unflatten(1, (2, -1))  # type: ignore[no-untyped-call]
    return halves.transpose(1, 2).flatten(1, 2)


def _depthwise(channels: int, stride: int, variant: Variant) -> ConvNormAct:
    """A 3x3 depthwise convolution with BN."""
    shared: dict[str, Any] = {"groups": channels, "stride": stride, "activation": "none", "norm": variant.norm}
    return ConvNormAct(channels, channels, Branch(3), **shared)


def _mixer(arch: ShuffleArchitecture, channels: int, stride: int, variant: Variant) -> nn.Module:
    """The spatial mixer: a 3x3 depthwise convolution with BN, or a selective kernel of depthwise branches."""
    if arch.mixer in ("plain", "se"):
        return _depthwise(channels, stride, variant)
    return SelectiveKernel(
        channels,
        kernels=(3, 5),
        groups=channels,
        reduction=arch.reduction,
        min_width=arch.min_width,
        stride=stride,
        fuse="select" if arch.mixer == "sk" else "sum",
        norm=variant.norm,
        gate_norm=variant.gate_norm,
    )


def _pointwise(in_channels: int, out_channels: int, variant: Variant) -> ConvNormAct:
    return ConvNormAct(in_channels, out_channels, Branch(1), norm=variant.norm)


class ShuffleUnit(nn.Module):
    """Half of the channels pass, half go 1x1 -> mixer -> 1x1; then both are shuffled. With stride 2 nothing passes.

    Stochastic depth leaves the transformed half out: there is no sum in which the other would stand in for it.
    """

    def __init__(
        self, arch: ShuffleArchitecture, in_channels: int, out: int, stride: int, variant: Variant, drop_path: float
    ) -> None:
        super().__init__()
        half = out // 2
        self.conv1 = _pointwise(in_channels if stride == 2 else half, half, variant)
        self.mixer = _mixer(arch, half, stride, variant)
        self.conv3 = _pointwise(half, half, variant)
        self.se = SqueezeExcite(half) if arch.mixer == "se" else nn.Identity()
        self.drop_path = make_drop_path(drop_path)
        self.shortcut: nn.Module | None = None
        if stride == 2:
            self.shortcut = nn.Sequential(_depthwise(in_channels, 2, variant), _pointwise(in_channels, half, variant))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, out, H / stride, W / stride)."""
        passed, taken = x.chunk(2, dim=1) if self.shortcut is None else (self.shortcut(x), x)
        y = self.se(self.conv3(self.mixer(self.conv1(taken))))
        return shuffle(torch.cat([passed, self.drop_path(y)], dim=1))


class ShuffleNet(Backbone):
    """Stem 3x3/2 and max-pool, three stages of units, 1x1 to 1,024 channels, mean, classifier.

    Args:
        arch: a row of the table below; the rest as in `Backbone`.
    """

    def __init__(
        self,
        arch: ShuffleArchitecture,
        num_classes: int = 1000,
        in_chans: int = 3,
        features_only: bool = False,
        variant: Variant = Variant(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(num_classes, in_chans, features_only, variant)
        self.arch = arch
        stem = nn.Conv2d(in_chans, arch.stem, 3, 2, 1, bias=False)
        self.stem = nn.Sequential(stem, make_norm(variant.norm, arch.stem, 2), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.feature_info = [Feature("stem", arch.stem, 2)]
        self.stages = nn.Sequential()
        channels, rates = arch.stem, variant.rates(arch.depths)
        for stage, out in enumerate(arch.outs):
            units = nn.Sequential()
            for rate in rates[stage]:
                units.append(ShuffleUnit(arch, channels, out, 1 if len(units) else 2, variant, rate))
                channels = out
            self.stages.append(units)
            self.feature_info.append(Feature(f"stages.{stage}", out, 8 << stage))
        self.last = nn.Identity() if features_only else _pointwise(channels, arch.head, variant)
        for module in self.modules():
            he_normal(module)
        self.make_head(arch.head)

    def forward_head(self, y: Tensor) -> Tensor:
        """The last map to logits, through the 1x1 convolution."""
        return super().forward_head(self.last(y))


_OUTS = {"05": (48, 96, 192), "10": (116, 232, 464)}
_NAMES: dict[Mixer, str] = {
    "plain": "shufflenet_v2_x{}",
    "se": "se_shufflenet_v2_x{}",
    "sk": "sk_shufflenet_v2_x{}",
}
ARCHITECTURES = {
    name.format(width): ShuffleArchitecture(outs=outs, mixer=mixer)
    for mixer, name in _NAMES.items()
    for width, outs in _OUTS.items()
}
