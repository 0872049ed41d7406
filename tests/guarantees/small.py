"""The smallest network with selective kernels, which runs in no time: two units."""

from __future__ import annotations

from selkern.models.trunk import Architecture

SMALL = Architecture(
    depths=(1, 1),
    mids=(8, 16),
    outs=(16, 32),
    strides=(1, 2),
    stem=8,
    stem_kernel=3,
    stem_pool=False,
    groups=2,
    reduction=4,
    min_width=8,
    input_size=16,
)
