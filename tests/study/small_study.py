"""The smallest study: two networks of two units each, 48 scenes, two seeds."""

from __future__ import annotations

from pathlib import Path

TRUNK = "depths: [1, 1], mids: [8, 16], outs: [16, 32], strides: [1, 2], stem: 8, groups: 2, min_width: 8"
TEXT = f"""
title: Small
claim: none
data: digits:train=48,val=16,test=40
recipe: digits
training: {{epochs: 2, batch_size: 16, image_size: 16, warmup: 0}}
seeds: 2
baseline: sk
arms:
  sk: {{model: sknet_mini, change: {{{TRUNK}}}}}
  plain: {{model: resnet_mini, change: {{{TRUNK}}}}}
"""


CODE = """
from torch import nn

def net(width, num_classes=10):
    def block(a, b):
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())

    end = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes))
    return nn.Sequential(block(3, width), block(width, 2 * width), end)
"""
PLAIN = f"  plain: {{model: resnet_mini, change: {{{TRUNK}}}}}"


def write(folder: Path, *changes: tuple[str, str], name: str = "small") -> Path:
    """The study's file, with texts in it replaced."""
    text = TEXT
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path
