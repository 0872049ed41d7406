"""`selkern doctor`: what this machine and installation are, piece by piece; a piece that fails is a line of its own."""

from __future__ import annotations

import importlib
import io
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selkern import __version__, tuning
from selkern.extras import OPTIONAL, OptionalPackage
from selkern.measure import machine

_LITTLE_SHARED = 1 << 30  # bytes of /dev/shm below which workers of a loader may run out of it


@dataclass(frozen=True)
class Finding:
    """One line: what, how it is, and a remark."""

    name: str
    value: str
    note: str = ""


def examine() -> list[Finding]:
    """Everything, in the order to be read. Raises nothing."""
    pieces: list[tuple[str, Callable[[], Finding]]] = [
        ("selkern", lambda: Finding("selkern", __version__)),
        ("python", lambda: Finding("python", platform.python_version(), f"{platform.system()} {platform.machine()}")),
        ("torch", _torch),
        ("devices", _devices),
        ("cpu", _cpu),
        ("threads", _threads),
        ("allocator", _allocator),
        ("shared memory", _shared_memory),
        ("free disk", _free_disk),
        ("load", _load),
        *((package.distribution, _optional(package)) for package in OPTIONAL),
        ("decoding", _decoding),
        ("convolution", _convolution),
    ]
    return [_safe(name, examination) for name, examination in pieces]


def _safe(name: str, examination: Callable[[], Finding]) -> Finding:
    try:
        return examination()
    except Exception as error:  # noqa: BLE001  a broken piece is a result too
        reason = " ".join(str(error).split())[:200]
        return Finding(name, "failed", f"{type(error).__name__}: {reason}" if reason else type(error).__name__)


def _torch() -> Finding:
    import torch

    return Finding("torch", torch.__version__, f"CPU capability {torch.backends.cpu.get_cpu_capability()}")


def _devices() -> Finding:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_name(index) for index in range(count)]
    return Finding("devices", ", ".join(["cpu", *names]), "" if names else "no GPU that torch can use")


def _cpu() -> Finding:
    cores, why = tuning.usable_cores()
    return Finding("cpu", f"{machine.cpu_model()}, {cores} core{'s' if cores > 1 else ''}", why)


def _threads() -> Finding:
    setting = tuning.tune().threads
    return Finding("threads", setting.value, setting.why)


def _allocator() -> Finding:
    setting = tuning.tune().allocator
    return Finding("allocator", setting.value, setting.why)


def _shared_memory() -> Finding:
    if not Path("/dev/shm").is_dir():
        return Finding("shared memory", "no /dev/shm")
    size = shutil.disk_usage("/dev/shm")
    note = "little: use few workers, or a container with --shm-size=2g" if size.total < _LITTLE_SHARED else ""
    return Finding("shared memory", f"{_gib(size.free)} free of {_gib(size.total)}", note)


def _free_disk() -> Finding:
    size = shutil.disk_usage(Path.cwd())
    writable = os.access(Path.cwd(), os.W_OK)
    return Finding("free disk", f"{_gib(size.free)} here", "" if writable else "this folder cannot be written to")


def _load() -> Finding:
    load = machine.load_average()
    return Finding("load", "unknown" if load is None else f"{load[0]:g}", "mean of the last minute")


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


def _optional(package: OptionalPackage) -> Callable[[], Finding]:
    name, module, extra = package.distribution, package.module, package.extra

    def examination() -> Finding:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != module.partition(".")[0]:
                raise  # it is here, what it needs is not
            return Finding(name, "missing", f"pip install 'selkern[{extra}]'")
        except (RuntimeError, AttributeError, OSError) as error:
            return Finding(name, "broken", f"{error}")
        version = machine.version_of(name)
        return Finding(name, version or "present", f"extra {extra}")

    return examination


def _decoding() -> Finding:
    import numpy as np
    from PIL import Image

    from selkern.data.decode import decode

    noise = np.random.default_rng(0).integers(0, 256, (47, 63, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).resize((500, 375)).save(data, format="JPEG", quality=90)
    seconds = _median(lambda: decode(data.getvalue(), "a test image"), 20)
    return Finding("decoding", f"{1 / seconds:,.0f} images/s", "JPEG of 500 x 375 px, one process")


def _convolution() -> Finding:
    import torch
    from torch.nn import functional as F

    tuning.tune()
    x, weight = torch.randn(4, 128, 28, 28), torch.randn(128, 128, 3, 3)
    with torch.inference_mode():
        seconds = _median(lambda: F.conv2d(x, weight, padding=1), 10)
    speed = 2 * 4 * 28 * 28 * 128 * 128 * 9 / seconds / 1e9
    note = f"float32, {torch.get_num_threads()} thread(s): 3x3, 128 to 128 channels, 4 x 28 x 28 px"
    return Finding("convolution", f"{speed:,.0f} GFLOP/s", note)


def _median(job: Callable[[], object], repeats: int) -> float:
    """Seconds of a job; one more run goes before."""
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - begin)
    return max(statistics.median(seconds[1:]), 1e-9)
