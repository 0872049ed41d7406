"""ImageNet architectures: SKNet (paper Table 1, authors' prototxt) and its ResNeXt, SENet and summed twins."""

from __future__ import annotations

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

ARCHITECTURES = {
    name.format(depth): Architecture(depths=depths, mids=MIDS, outs=OUTS, mixer=mixer)
    for mixer, name in NAMES.items()
    for depth, depths in DEPTHS.items()
}
