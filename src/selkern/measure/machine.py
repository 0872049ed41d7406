"""What the figures of a benchmark depend on beside the code: no names of hosts, users or folders."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selkern import __version__, tuning

PACKAGES = ("numpy", "timm", "torchvision", "safetensors", "pillow")


def version_of(package: str) -> str | None:
    """The installed version of a distribution, None where there is none."""
    try:
        return importlib.metadata.version(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def cpu_model() -> str:
    """As the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "Hardware") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def load_average() -> list[float] | None:
    """Of the last 1, 5 and 15 minutes; None where the system does not say."""
    try:
        return [round(load, 2) for load in os.getloadavg()]
    except (AttributeError, OSError):
        return None


def describe() -> dict[str, Any]:
    """Processor, cores, threads, versions, allocator, load and date, ready for JSON."""
    import torch

    cores, why = tuning.usable_cores()
    tuned = tuning.tune()
    cuda = torch.cuda.is_available()
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cores,
        "cores_by": why,
        "threads": torch.get_num_threads(),
        "threads_by": tuned.threads.why,
        "allocator": asdict(tuned.allocator),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "load_average": load_average(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "selkern": __version__,
        "torch": torch.__version__,
        **{name: version_of(name) for name in PACKAGES},
    }


def summary(machine: dict[str, Any]) -> str:
    """Two lines for the head of a table."""
    timm = f"timm {machine['timm']}" if machine["timm"] else "no timm"
    load = machine["load_average"]
    return (
        f"{machine['date']}, {machine['cpu']} ({machine['capability']}), {machine['cores']} cores, "
        f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}, "
        f"load {'unknown' if load is None else load[0]}\n"
        f"selkern {machine['selkern']}, torch {machine['torch']}, {timm}, Python {machine['python']}; "
        f"allocator: {machine['allocator']['value']}"
    )
