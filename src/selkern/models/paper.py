"""What the paper (and timm of its own) prints of the networks, where each comes from, and how it differs."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Published:
    """One row of a table of the paper, or of timm's results.

    Attributes:
        table: where it stands.
        parameters: in millions; None where the table does not say.
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
    "skresnet18": Published("timm's results", 11.96, 1.82, 26.98),
    "skresnet34": Published("timm's results", 22.28, 3.67, 23.04),
    "skresnet50": Published("timm's results", 25.80, 4.11, None),
    "skresnet50d": Published("timm's results", 25.82, 4.36, None),
    "skresnext50_32x4d": Published("timm's results", 27.48, 4.50, 19.83),
    "sknet50_sum_k3k5k7": Published("Table 7", None, None, 21.47, recalled=True),
}

# Pattern of names -> where the network comes from; the first that fits.
_ORIGINS = {
    "*_mini*": "our own, for images of 32 to 64 px",
    "*shufflenet*": "paper Table 4; ShuffleNetV2 (ECCV 2018)",
    "skres*": "timm 1.0.31",
    "*26*": "after paper Table 1",
    "sknet50_sum": "paper Table 7",
    "sknet101_sum": "after paper Table 7",
    "*snext29_16x32d": "after paper Table 5",
    "sknet29_sum": "after paper Table 5",
    "sknet101_caffe": "the authors' sknet101.prototxt",
    "resnext50_36x4d": "paper Table 3",
    "resnext50_wider": "paper Table 3",
    "resnext56_32x4d": "paper Table 3",
    "sknet29*": "paper Table 5",
    "*resnext29*": "paper Table 5",
    "sknet50_*": "paper Tables 6 and 7",
    "resnext50_k*": "paper Table 7",
    "sknet*": "paper Table 1; the authors' sknet50.prototxt",
    "*": "paper Table 1; twin of SKNet",
}
# Pattern of names -> how such a network differs from its source, or what the source leaves open; all that fit.
_DIFFERENCES = {
    "sknet101": (
        "d follows the text's rule max(C / r, 32) everywhere; the authors' sknet101.prototxt has 16 in stage 3 "
        "(sknet101_caffe)",
    ),
    "sknet101_caffe": ("d = 16 in stage 3, as in the authors' file and for its weights; the text's rule gives 32",),
    "*26*": ("not in Table 1; two units in each stage",),
    **dict.fromkeys(
        ("resnext*_32x4d", "seresnext*_32x4d", "resnext50_[kw]*", "resnext50_36x4d"),
        ("max-pool as in sknet50.prototxt, without padding and in ceil mode; ResNeXt's own pads by 1",),
    ),
    "seresnext*": ("SE on the unit's output with reduction 16 and biases; the text does not give its place",),
    "seresnext50_32x4d": ("27.56 M parameters counted, 27.7 M printed",),
    "seresnext101_32x4d": ("48.96 M parameters counted, 49.2 M printed",),
    "sknet*_sum*": ("branches added without a gate, as Table 7's control",),
    "resnext50_wider": ("the text says only wider; 17/16 of every width fits the published size",),
    "resnext56_32x4d": ("the text says only deeper; two more units in stage 4 fit the published size",),
    "sknet29*": ("branches 1x1 and 3x3 are inferred: only they fit the published size; r = 32, G = 16",),
    "sknet29": ("27.81 M parameters counted, 27.7 M printed",),
    "*mini*": ("not in the paper: widths, 4 groups, r = 4 and L = 16 were chosen for a CPU (docs/log.md)",),
    "*shufflenet*": (
        "the text gives neither r and L nor the place of SE: 16, 32, and the end of the unit's transformed half",
        "its plain networks are larger than ShuffleNetV2's own, in a way that it does not describe",
    ),
    "skresnet*": ("each branch reads its own half of the input channels, not the whole input",),
    "skresnet[135]*": ("dense branches; d has no floor of 32",),
    "skres*": (
        "max-pool padded by 1, in floor mode",
        "BN momentum 0.1, not 0.05; gates drawn by He's rule, not gaussian with 0.01",
    ),
    "skresnet50d": ("stem of three 3x3 convolutions; shortcuts average before they halve",),
    "sknet50_5x5g64": ("a true 5x5 with 64 groups, as the row of Table 6 says",),
    "sknet50_7x7g128": ("a true 7x7 with 128 groups, as the row of Table 6 says",),
    "sknet50_3x3d1": ("both branches see 3x3, as the row of Table 6 says",),
}


def origin(name: str) -> str:
    """Where a registered network comes from."""
    return next(text for pattern, text in _ORIGINS.items() if fnmatchcase(name, pattern))


def differences(name: str) -> tuple[str, ...]:
    """How a registered network differs from the paper, or what the paper leaves open; empty where nothing is known."""
    return tuple(text for pattern, texts in _DIFFERENCES.items() if fnmatchcase(name, pattern) for text in texts)
