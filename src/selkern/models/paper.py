"""What the paper prints of its networks, to stand beside what we count."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row of a table of the paper.

    Attributes:
        table: where it stands.
        parameters: in millions; None where the table does not tell.
        gmacs: multiply-adds in billions (the paper's "GFLOPs").
        error: top-1 error in percent: ImageNet at 224 px, or CIFAR-10.
        num_classes: of the network that the parameters are counted for.
        recalled: a figure from memory, not read again in the paper.
    """

    table: str
    parameters: float | None
    gmacs: float | None
    error: float | None
    num_classes: int = 1000
    recalled: bool = False


PUBLISHED: dict[str, Published] = {
    "resnext50_32x4d": Published("Table 1", 25.0, 4.24, 22.23),
    "seresnext50_32x4d": Published("Table 1", 27.7, 4.25, 21.12),
    "sknet50": Published("Table 1", 27.5, 4.47, 20.79),
    "resnext101_32x4d": Published("Table 1", 44.3, 7.99, 21.11),
    "seresnext101_32x4d": Published("Table 1", 49.2, 8.00, 20.58),
    "sknet101": Published("Table 1", 48.9, 8.46, 20.19),
    "resnext50_wider": Published("Table 3", 28.1, 4.74, 22.13, recalled=True),
    "resnext56_32x4d": Published("Table 3", 27.3, 4.67, 22.04, recalled=True),
    "resnext50_36x4d": Published("Table 3", 27.6, 4.70, 22.00, recalled=True),
    "sknet29": Published("Table 5", 27.7, 4.2, 3.47, num_classes=10),
    "seresnext29_8x64d": Published("Table 5", 35.0, None, 3.68, num_classes=10, recalled=True),
    "resnext29_8x64d": Published("Table 5", 34.4, None, 3.65, num_classes=10, recalled=True),
    "resnext29_16x64d": Published("Table 5", 68.1, None, 3.58, num_classes=10, recalled=True),
    "resnext29_16x32d": Published("Table 5", 25.2, None, 3.87, num_classes=10, recalled=True),
    "shufflenet_v2_x05": Published("Table 4", 1.40, 0.0404, 38.41, recalled=True),
    "se_shufflenet_v2_x05": Published("Table 4", 1.56, 0.0409, 36.34, recalled=True),
    "sk_shufflenet_v2_x05": Published("Table 4", 1.48, 0.0426, 35.35, recalled=True),
    "shufflenet_v2_x10": Published("Table 4", 2.45, 0.1404, 30.57, recalled=True),
    "se_shufflenet_v2_x10": Published("Table 4", 2.66, 0.1417, 29.47, recalled=True),
    "sk_shufflenet_v2_x10": Published("Table 4", 2.63, 0.1457, 28.36, recalled=True),
    "sknet50_3x3d3": Published("Table 6", 27.5, 4.47, 20.97, recalled=True),
    "sknet50_3x3d1": Published("Table 6", 27.5, 4.47, 20.91, recalled=True),
    "sknet50_5x5g64": Published("Table 6", 28.1, None, 20.80, recalled=True),
    "sknet50_7x7g128": Published("Table 6", 28.1, None, 21.18, recalled=True),
    "resnext50_k5": Published("Table 7", None, None, 25.14),
    "resnext50_k7": Published("Table 7", None, None, 25.51),
    "sknet50_sum": Published("Table 7", None, None, 21.76, recalled=True),
    "sknet50_k3k7": Published("Table 7", None, None, 20.97, recalled=True),
    "sknet50_k5k7": Published("Table 7", None, None, 23.09, recalled=True),
    "sknet50_k3k5k7": Published("Table 7", None, None, 20.76),
    "sknet50_sum_k3k7": Published("Table 7", None, None, 21.82, recalled=True),
    "sknet50_sum_k5k7": Published("Table 7", None, None, 23.64, recalled=True),
    "sknet50_sum_k3k5k7": Published("Table 7", None, None, 21.47, recalled=True),
}
