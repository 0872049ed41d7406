"""The goals of speed and memory, one line each: what the CPU benchmark compares its figures with.

The goals for a GPU are in gpu_report.py; the equality of gradients is tested, not timed.
"""

from __future__ import annotations

from benchmarks.results import Goal

# Names of the variants, as the workloads use them.
ARTICLE, OURS, FOLDED, BARE = "the article's code", "selkern", "selkern folded", "bare convolutions"
FOLDED_BF16, FOLDED_COMPILED = "selkern folded, bf16", "selkern folded, compiled"
TIMM, TIMM_COMPILED, STACKED = "timm", "timm, compiled + frozen", "branches stacked"
MEMORY = {mode: f"selkern, memory {mode}" for mode in ("plain", "default", "lean")}
PLAIN_TWIN, SE_TWIN = "resnext50_32x4d, no SK", "seresnext50_32x4d, SE"

FORWARD, STEP, HELD, GROWTH = "forward", "train step", "held for backward", "growth of the process"
AGREEMENT, IMPORT, HELP = "top-1 agreement", "import selkern, after torch", "selkern --help"
SK50, DIGITS, FRESH = "skresnext50_32x4d", "sknet_mini on digit scenes", "a fresh Python"
ARTICLE_SHAPES = ((50, 512, 7, 7), (8, 256, 28, 28), (1, 64, 256, 256))
SIDE = 224  # of SKNet-50's images, px


def shape_case(shape: tuple[int, ...]) -> str:
    """(50, 512, 7, 7) to "50 x 512 x 7 x 7"."""
    return " x ".join(map(str, shape))


def network_case(batch: int, side: int = SIDE) -> str:
    """Name of a batch of SKNet-50's images."""
    return f"batch {batch}, {side} px"


def memory_case(side: int = SIDE) -> str:
    """Name of the side of SKNet-50's images."""
    return f"{side} px"


def _faster(number: int, workload: str, case: str, quantity: str, variant: str, against: str, least: float) -> Goal:
    return Goal(number, workload, case, quantity, variant, against, "speed-up", least, True)


def _share(number: int, workload: str, case: str, quantity: str, variant: str, against: str, most: float) -> Goal:
    return Goal(number, workload, case, quantity, variant, against, "share", most, False)


def _most(number: int, workload: str, case: str, quantity: str, variant: str, most: float, unit: str) -> Goal:
    return Goal(number, workload, case, quantity, variant, "", "value", most, False, unit)


_7, _28, _256 = map(shape_case, ARTICLE_SHAPES)
_EIGHT, _MANY = network_case(8), network_case(32)

GOALS = (
    _faster(1, "infer", _EIGHT, FORWARD, FOLDED, TIMM, 1.5),
    _faster(1, "infer", _MANY, FORWARD, FOLDED, TIMM, 2.0),
    _faster(1, "infer", _EIGHT, FORWARD, FOLDED_COMPILED, TIMM_COMPILED, 1.15),
    _share(1, "infer", _EIGHT, FORWARD, FOLDED, BARE, 1.10),
    _faster(1, "infer", _EIGHT, FORWARD, FOLDED_BF16, FOLDED, 1.8),
    Goal(1, "infer", DIGITS, AGREEMENT, FOLDED_BF16, "", "value", 99.9, True, "%"),
    _most(2, "memory", memory_case(), HELD, MEMORY["default"], 118, "MiB"),
    _faster(2, "train", _EIGHT, STEP, MEMORY["default"], TIMM, 1.0),
    _most(2, "memory", memory_case(), HELD, MEMORY["lean"], 90, "MiB"),
    _share(2, "train", _EIGHT, STEP, MEMORY["lean"], TIMM, 1.15),
    _faster(3, "article", _7, FORWARD, FOLDED, ARTICLE, 2.5),
    _faster(3, "article", _28, FORWARD, FOLDED, ARTICLE, 2.5),
    _faster(3, "article", _256, FORWARD, FOLDED, ARTICLE, 1.3),
    *(_share(3, "article", case, FORWARD, OURS, BARE, 1.03) for case in (_7, _28, _256)),
    *(_faster(3, "article", case, STEP, OURS, ARTICLE, 1.2) for case in (_7, _28)),
    *(_share(3, "article", case, HELD, OURS, ARTICLE, 0.60) for case in (_7, _28)),
    _most(4, "start", FRESH, IMPORT, OURS, 100, "ms"),
    _most(4, "start", FRESH, HELP, OURS, 300, "ms"),
)
