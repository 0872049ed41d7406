"""ImageNet architectures: SKNet, its ResNeXt, SENet and summed twins, and the variants of the paper's Tables 3, 6, 7.

Sources: paper Table 1; the authors' prototxt. The controls of Table 3 are our reading of a few words of the paper
("wider", "deeper"), chosen by their published sizes.
"""

from __future__ import annotations

from dataclasses import replace

from selkern.layers.selective_kernel import Branch
from selkern.models.trunk import Architecture, Mixer

MIDS = (128, 256, 512, 1024)
OUTS = (256, 512, 1024, 2048)
DEPTHS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
NAMES: dict[Mixer, str] = {
    "sk": "sknet{}",
    "plain": "resnext{}_32x4d",
    "se": "seresnext{}_32x4d",
    "sum": "sknet{}_sum",
}

_TWINS = {
    name.format(depth): Architecture(depths=depths, mids=MIDS, outs=OUTS, mixer=mixer)
    for mixer, name in NAMES.items()
    for depth, depths in DEPTHS.items()
}
_SK, _PLAIN = _TWINS["sknet50"], _TWINS["resnext50_32x4d"]

# The authors' sknet101.prototxt has descriptors of 16 in its four conv3_* units, where the rule max(C / r, L) gives 32.
_CAFFE = {"sknet101_caffe": replace(_TWINS["sknet101"], min_width=(32, 16, 32, 32))}

_TABLE_3 = {
    "resnext50_36x4d": replace(_PLAIN, groups=36, mids=(144, 288, 576, 1152)),
    # Every width 17/16 of ResNeXt-50's.
    "resnext50_wider": replace(_PLAIN, groups=34, mids=(136, 272, 544, 1088), outs=(272, 544, 1088, 2176), stem=68),
    "resnext56_32x4d": replace(_PLAIN, depths=(3, 4, 8, 3)),
}
# The second branch beside 3x3; its 3x3 with dilation 2 is sknet50 itself.
_TABLE_6 = {
    "sknet50_3x3d3": replace(_SK, kernels=(3, Branch(3, dilation=3))),
    "sknet50_3x3d1": replace(_SK, kernels=(3, Branch(3))),
    "sknet50_5x5g64": replace(_SK, kernels=(3, Branch(5, groups=64))),
    "sknet50_7x7g128": replace(_SK, kernels=(3, Branch(7, groups=128))),
}
# Which kernels, and selected or summed; K3 is resnext50_32x4d, K3 + K5 sknet50 and sknet50_sum.
_SETS = {"k3k7": (3, 7), "k5k7": (5, 7), "k3k5k7": (3, 5, 7)}
_TABLE_7 = {
    "resnext50_k5": replace(_PLAIN, plain_kernel=5),
    "resnext50_k7": replace(_PLAIN, plain_kernel=7),
    **{f"sknet50_{name}": replace(_SK, kernels=kernels) for name, kernels in _SETS.items()},
    **{f"sknet50_sum_{name}": replace(_SK, kernels=kernels, mixer="sum") for name, kernels in _SETS.items()},
}

_IMAGENET = {**_TWINS, **_CAFFE, **_TABLE_3, **_TABLE_6, **_TABLE_7}


# Only branches 1x1 and 3x3 with G = 16 and r = 32 fit the size the paper publishes (27.7 M); the text leaves
# the branches open. Without SK this is ResNeXt-29 16x32d.
_SKNET29 = Architecture(
    depths=(3, 3, 3),
    mids=(512, 1024, 2048),
    outs=(256, 512, 1024),
    strides=(1, 2, 2),
    stem_kernel=3,
    stem_stride=1,
    stem_pool=False,
    kernels=(1, 3),
    groups=16,
    reduction=32,
    input_size=32,
)

# For 32 to 64 px images on a CPU: few groups, because each group of a convolution costs time there, and the stem
# halves the image, because the units' many small passes over full-size maps cost more than their convolutions
# (benchmarks/mini.py, docs/log.md).
_MINI = Architecture(
    depths=(2, 2, 2),
    mids=(32, 48, 64),
    outs=(64, 96, 192),
    strides=(1, 2, 2),
    stem=24,
    stem_kernel=3,
    stem_stride=2,
    stem_pool=False,
    groups=4,
    reduction=4,
    min_width=16,
    input_size=48,
)

_NAMES: dict[Mixer, tuple[str, str]] = {
    "sk": ("sknet29", "sknet_mini"),
    "plain": ("resnext29_16x32d", "resnet_mini"),
    "se": ("seresnext29_16x32d", "seresnet_mini"),
    "sum": ("sknet29_sum", "sknet_mini_sum"),
}

_SMALL_TWINS = {
    name: arch.twin(mixer)
    for mixer, names in _NAMES.items()
    for name, arch in zip(names, (_SKNET29, _MINI), strict=True)
}
# What the paper compares SKNet-29 with in Table 5, beside ResNeXt-29 16x32d.
_TABLE_5 = {
    "resnext29_8x64d": replace(_SKNET29, mixer="plain", groups=8),
    "resnext29_16x64d": replace(_SKNET29, mixer="plain", mids=(1024, 2048, 4096)),
    "seresnext29_8x64d": replace(_SKNET29, mixer="se", groups=8),
}
ARCHITECTURES = {**_IMAGENET, **_SMALL_TWINS, **_TABLE_5}
