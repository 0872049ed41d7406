"""What `gpu.py` measures and in which order: shapes, jobs with their time limits, rows. No torch here.

A job is what may be lost at once: it runs in a worker process, and where it hangs or breaks the GPU's context the rest
goes on in another. Goals come first, since the time may end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

COMPILED = "compiled"  # in the names of variants
WHOLE = "whole, forward + backward"  # of a kernel's rows, those that decide what `auto` takes
KERNELS = ("fuse_select", "convolution")
PARTS = ("ceiling", "correct", "unit", "train", "infer", "kernel", "graph")
BRANCHES = 2  # of every timed unit, as in the paper
TRAIN_BATCHES = (256, 128, 64, 32)  # the largest that memory allows

OURS, OURS_COMPILED, PLAIN = "selkern, triton", f"selkern, triton, {COMPILED}", "selkern, plain"
TIMM_SK, TIMM_SK_COMPILED = "timm skresnext50_32x4d", f"timm skresnext50_32x4d, {COMPILED}"
TIMM_RESNEXT = "timm resnext50_32x4d"


@dataclass(frozen=True)
class Stage:
    """One of SKNet-50's four: width and side of its maps, and how many units of the network it holds."""

    number: int
    channels: int
    side: int
    units: int
    groups: int = 32
    batch: int = 256

    def case(self, dtype: str) -> str:
        """Name of its rows."""
        return f"stage {self.number}: {self.channels} x {self.side} x {self.side}, batch {self.batch}, {dtype}"

    @property
    def elements(self) -> int:
        """Of one map."""
        return self.batch * self.channels * self.side**2


SK50 = (Stage(1, 128, 56, 3), Stage(2, 256, 28, 4), Stage(3, 512, 14, 6), Stage(4, 1024, 7, 3))
TINY = (Stage(1, 12, 5, 1, groups=4, batch=2),)  # for Triton's interpreter


@dataclass(frozen=True)
class Job:
    """Something to measure.

    Attributes:
        part: one of PARTS, or "machine".
        title: for messages; no two are the same.
        limit: seconds after which it is given up, compilation included.
        settings: arguments of the function that does it.
    """

    part: str
    title: str
    limit: float
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the results. What does not apply is None.

    Attributes:
        part, what, case, variant: name it: which job, what was done, to which shapes, by whose code.
        ms: median; low and high: quartiles.
        gbyte: useful, by docs/kernels.md: each map once in, once out.
        tflop: useful, of convolutions without the zeros of packed weights.
        batch: images of a step.
        peak_gib: of the GPU's memory, taken by tensors.
        value, bound: a largest error and its tolerance; a rate and None.
        error: why there are no figures.
    """

    part: str
    what: str
    case: str
    variant: str
    ms: float | None = None
    low: float | None = None
    high: float | None = None
    gbyte: float | None = None
    tflop: float | None = None
    batch: int | None = None
    peak_gib: float | None = None
    value: float | None = None
    bound: float | None = None
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether this is the row of a wrong result."""
        return self.part == "correct" and bool(self.error)

    @property
    def images_per_s(self) -> float | None:
        """Of a step."""
        return None if self.ms is None or self.batch is None else 1e3 * self.batch / self.ms


def stages(tiny: bool) -> Sequence[Stage]:
    """Of SKNet-50, or of the network that replaces it."""
    return TINY if tiny else SK50


def jobs(tiny: bool) -> list[Job]:
    """All jobs, the most wanted first."""
    goals = [Job("machine", "machine", 90), Job("ceiling", "ceilings", 60)]
    goals += [Job("correct", f"correctness of {kernel}", 200, {"kernel": kernel}) for kernel in KERNELS]
    goals += [
        _unit(stages(tiny)[0]),
        _network("train", OURS, 90),
        _network("train", TIMM_RESNEXT, 90),
        _network("train", TIMM_SK_COMPILED, 200),
    ]
    if tiny:
        return [*goals, *_kernels("bfloat16", TINY, (False, True)), Job("graph", "graph", 60)]
    rest = [
        *_kernels("bfloat16", SK50, (False, True)),
        _network("train", PLAIN, 90),
        _network("train", TIMM_SK, 90),
        Job("graph", "training step as a CUDA graph", 60),
        _network("infer", OURS, 60),
        _network("infer", TIMM_SK_COMPILED, 150),
        _network("infer", TIMM_RESNEXT, 60),
        _network("infer", PLAIN, 60),
        _network("infer", TIMM_SK, 60),
        _network("train", OURS_COMPILED, 200),
        *_kernels("float32", SK50[1:2], (False, True)),
        _network("infer", OURS_COMPILED, 150),
        *(_unit(stage) for stage in SK50[1:]),
        Job("ceiling", "copy once more", 30, {"again": True}),
    ]
    return goals + rest


def _unit(stage: Stage) -> Job:
    return Job("unit", f"unit of stage {stage.number}", 120, {"number": stage.number})


def _network(part: str, variant: str, limit: float) -> Job:
    return Job(part, f"{part}: {variant}", limit, {"variant": variant})


def _kernels(dtype: str, those: Sequence[Stage], ways: Sequence[bool]) -> list[Job]:
    result = []
    for compiled in ways:
        for stage in those:
            for kernel in KERNELS:
                settings = {"kernel": kernel, "number": stage.number, "dtype": dtype, "compiled": compiled}
                title = f"{kernel}, stage {stage.number}, {dtype}{', compiled' * compiled}"
                result.append(Job("kernel", title, 90 if compiled else 60, settings))
    return result
