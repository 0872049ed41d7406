"""Architectures for small images: SKNet-29 for CIFAR (paper Table 5) and `sknet_mini`, each with its twins."""

from __future__ import annotations

from dataclasses import replace

from selkern.models.trunk import Architecture, Mixer

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

_TWINS = {
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
ARCHITECTURES = {**_TWINS, **_TABLE_5}
