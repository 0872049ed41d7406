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


def write(folder: Path, *changes: tuple[str, str], name: str = "small") -> Path:
    """The study's file, with texts in it replaced."""
    text = TEXT
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path
