"""The one residual trunk: bottleneck stages whose spatial mixer is plain, SE, summed branches or SK.

Twins made by changing `mixer` differ in nothing else, so that a comparison of them compares the mixer.
Paper: SKNet section 3.2 and Table 1; details from the authors' sknet50.prototxt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal, get_args

from torch import Tensor, nn

from selkern.errors import UsageError
from selkern.layers.memory import HasMemory
from selkern.layers.parts import he_normal, make_norm
from selkern.layers.selective_kernel import Branch, SelectiveKernel
from selkern.models.backbone import Backbone, Feature, Variant, bottleneck, make_drop_path

Mixer = Literal["plain", "se", "sum", "sk"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One row of an architecture table.

    Attributes:
        depths: units per stage.
        mids: channels of the spatial mixer, per stage.
        outs: channels after a unit, per stage.
        strides: of the first unit of each stage.
        stem: channels of the first convolution.
        stem_kernel, stem_stride: of that convolution (7 and 2 for ImageNet, 3 and 1 for small images).
        stem_pool: whether a 3x3/2 max-pool follows, without padding and in ceil mode (prototxt: 112 -> 56).
        mixer: "plain" one kernel, "se" the same with squeeze-excitation on the unit's output,
            "sum" the branches added up, "sk" the branches selected.
        kernels: branches of "sum" and "sk"; see `SelectiveKernel`.
        plain_kernel: the kernel of "plain" and "se".
        groups: cardinality of the mixer's convolutions.
        reduction, min_width: of the gate, r and L; L for all stages, or one per stage.
        input_size: side in pixels of the images it was designed for.
    """

    depths: tuple[int, ...]
    mids: tuple[int, ...]
    outs: tuple[int, ...]
    strides: tuple[int, ...] = (1, 2, 2, 2)
    stem: int = 64
    stem_kernel: int = 7
    stem_stride: int = 2
    stem_pool: bool = True
    mixer: Mixer = "sk"
    kernels: tuple[int | Branch, ...] = (3, 5)
    plain_kernel: int | Branch = 3
    groups: int = 32
    reduction: int = 16
    min_width: int | tuple[int, ...] = 32
    input_size: int = 224

    def __post_init__(self) -> None:
        if not len(self.depths) == len(self.mids) == len(self.outs) == len(self.strides):
            raise UsageError("an architecture needs one depth, mid, out and stride per stage", f"{self}")
        if self.mixer not in get_args(Mixer):
            raise UsageError(f"unknown mixer {self.mixer!r}", "mixer", f"one of {', '.join(get_args(Mixer))}")

    def twin(self, mixer: Mixer) -> Architecture:
        """The same network with another spatial mixer."""
        return replace(self, mixer=mixer)

    @property
    def strides_of_maps(self) -> tuple[int, ...]:
        """Strides of the maps that the network makes against the image, each once."""
        first = self.stem_stride * (2 if self.stem_pool else 1)
        reached = [first * prod(self.strides[: stage + 1]) for stage in range(len(self.strides))]
        return tuple(sorted({self.stem_stride, first, *reached}))

    def build(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        features_only: bool = False,
        variant: Variant = Variant(),  # noqa: B008 - frozen
    ) -> Trunk:
        """The network of this row."""
        return Trunk(self, num_classes, in_chans, features_only, variant)


class SqueezeExcite(nn.Module):
    """SE (Hu et al., CVPR 2018): channels scaled by sigmoid(W2 ReLU(W1 mean)); (N, C, H, W) to the same."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, max(channels // reduction, 1))
        self.fc2 = nn.Linear(max(channels // reduction, 1), channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        scale_NC = self.fc2(self.fc1(x.mean(dim=(2, 3))).relu()).sigmoid()
        return x * scale_NC[:, :, None, None]


def make_mixer(arch: Architecture, stage: int, width: int, stride: int, variant: Variant) -> SelectiveKernel:
    """The spatial mixer of a unit: one `SelectiveKernel` in each of its forms."""
    plain = arch.mixer in ("plain", "se")
    return SelectiveKernel(
        width,
        kernels=(arch.plain_kernel,) if plain else arch.kernels,
        groups=arch.groups,
        reduction=arch.reduction,
        min_width=arch.min_width if isinstance(arch.min_width, int) else arch.min_width[stage],
        stride=stride,
        fuse="select" if arch.mixer == "sk" else "sum",
        norm=variant.norm,
        gate_norm=variant.gate_norm,
    )


class Unit(nn.Module, HasMemory):
    """Bottleneck: 1x1 -> mixer -> 1x1, plus the shortcut. BN + ReLU after the first 1x1, BN alone after the last."""

    def __init__(
        self, arch: Architecture, stage: int, in_channels: int, stride: int, variant: Variant, drop_path: float
    ) -> None:
        super().__init__()
        mid, out = arch.mids[stage], arch.outs[stage]
        self.memory = "default"
        self.conv1 = nn.Conv2d(in_channels, mid, 1, bias=False)
        self.norm1 = make_norm(variant.norm, mid, 2)
        self.mixer = make_mixer(arch, stage, mid, stride, variant)
        self.mixer.in_unit = True
        self.conv3 = nn.Conv2d(mid, out, 1, bias=False)
        self.norm3 = make_norm(variant.norm, out, 2)
        self.se = SqueezeExcite(out) if arch.mixer == "se" else None
        self.drop_path = make_drop_path(drop_path)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out:
            projection = nn.Conv2d(in_channels, out, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, make_norm(variant.norm, out, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, out, H / stride, W / stride)."""
        y = self.norm3(bottleneck(self, x))
        if self.se is not None:
            y = self.se(y)
        return (self.drop_path(y) + self.shortcut(x)).relu_()


class Trunk(Backbone):
    """Stem, stages of units, mean over space, classifier.

    Args:
        arch: a row of an architecture table; the rest as in `Backbone`.

    Any input size goes in that leaves at least one position after all strides.
    """

    def __init__(
        self,
        arch: Architecture,
        num_classes: int = 1000,
        in_chans: int = 3,
        features_only: bool = False,
        variant: Variant = Variant(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(num_classes, in_chans, features_only, variant)
        self.arch = arch
        pad = arch.stem_kernel // 2
        stem = nn.Conv2d(in_chans, arch.stem, arch.stem_kernel, arch.stem_stride, pad, bias=False)
        self.stem = nn.Sequential(stem, make_norm(variant.norm, arch.stem, 2), nn.ReLU(inplace=True))
        # No padding: in ceil mode the last window may hang over the edge (prototxt).
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True) if arch.stem_pool else nn.Identity()
        self.feature_info = [Feature("stem", arch.stem, arch.stem_stride)]
        self.stages = nn.Sequential()
        channels, reach = arch.stem, arch.stem_stride * (2 if arch.stem_pool else 1)
        rates = variant.rates(arch.depths)
        for stage, (out, stride) in enumerate(zip(arch.outs, arch.strides, strict=True)):
            reach *= stride
            units = nn.Sequential()
            for rate in rates[stage]:
                units.append(Unit(arch, stage, channels, 1 if len(units) else stride, variant, rate))
                channels = out
            self.stages.append(units)
            self.feature_info.append(Feature(f"stages.{stage}", out, reach))
        for module in self.modules():
            he_normal(module)
        self.make_head(channels)
