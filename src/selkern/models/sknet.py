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

ARCHITECTURES = {**_TWINS, **_CAFFE, **_TABLE_3, **_TABLE_6, **_TABLE_7}
