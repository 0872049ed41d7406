"""What every network here has in common: a head, the maps of its stages, and a row of a table that builds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from selkern.layers.parts import check_input


@dataclass(frozen=True)
class Feature:
    """One feature map of `features_only`: its module, channels, and stride against the input."""

    module: str
    channels: int
    stride: int


class Backbone(nn.Module):
    """A network that turns images into the maps of its stages, and those into class scores.

    A subclass makes `stem`, `pool` and `stages`, fills `feature_info`, and calls `make_head` last.

    Args:
        num_classes: outputs of the classifier `fc`; 0 leaves it out and returns the pooled features.
        in_chans: channels of the images.
        features_only: return the list of maps instead; `feature_info` tells their channels and strides.
    """

    arch: Any  # the row it was built from
    stem: nn.Sequential
    pool: nn.Module
    stages: nn.ModuleList
    fc: nn.Module

    def __init__(self, num_classes: int, in_chans: int, features_only: bool) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.features_only = num_classes, in_chans, features_only
        self.feature_info: list[Feature] = []

    def make_head(self, channels: int) -> None:
        """The classifier on `channels` pooled features: gaussian 0.01, bias 0, as in the authors' prototxt."""
        self.num_features = channels
        self.fc = nn.Identity()
        if self.num_classes and not self.features_only:
            self.fc = nn.Linear(channels, self.num_classes)
            with torch.no_grad():
                nn.init.normal_(self.fc.weight, std=0.01)
                nn.init.zeros_(self.fc.bias)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """(N, in_chans, H, W) to the maps after the stem and after each stage, as in `feature_info`."""
        maps = [self.stem(x)]
        y = self.pool(maps[0])
        for stage in self.stages:
            y = stage(y)
            maps.append(y)
        return maps

    def forward_head(self, y: Tensor) -> Tensor:
        """The last map (N, C, H, W) to logits (N, num_classes)."""
        return self.fc(y.mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(N, in_chans, H, W) to logits (N, num_classes); with `features_only` the list of maps."""
        check_input("the network", x, self.in_chans, 2)
        maps = self.forward_features(x)
        return maps if self.features_only else self.forward_head(maps[-1])


class Row(Protocol):
    """A row of an architecture table."""

    @property
    def input_size(self) -> int:
        """Side in pixels of the images it was designed for."""

    def build(self, num_classes: int, in_chans: int, features_only: bool) -> Backbone:
        """The network of this row, freshly initialised."""
