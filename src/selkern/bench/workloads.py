"""The workloads by name, in the order they run, and which of them `selkern bench` takes when none is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from selkern.bench import layers, networks, pipeline, processes
from selkern.bench.session import Session

WORKLOADS: dict[str, Callable[[Session], None]] = {
    "start": processes.start,
    "article": layers.article,
    "layer": layers.layer,
    "infer": networks.infer,
    "train": networks.train,
    "memory": networks.memory,
    "scaling": layers.scaling,
    "ddp": processes.ddp,
    "data": pipeline.data,
}
SHORT = ("start", "article", "layer", "infer", "memory")
SHORT_BATCHES, ALL_BATCHES = (1, 8), (1, 8, 32)


def chosen(given: Sequence[str]) -> list[str]:
    """Names of workloads, in their order; "all" stands for all of them, nothing for the short set."""
    wanted = set(WORKLOADS) if "all" in given else set(given or SHORT)
    return [name for name in WORKLOADS if name in wanted]
