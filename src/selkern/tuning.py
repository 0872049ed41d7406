"""What the programs set before they compute: how memory is kept between steps, and how many threads a quota allows.

glibc gives large blocks back to the system when they are freed, and every step of a network frees hundreds of them:
the next step then waits for thousands of pages to be mapped and cleared again. Told not to, it keeps them; the process
takes more memory at its peak, and no number changes.

The count of threads decides in which order sums are added up, so training, which is to be repeatable, keeps torch's
own choice. Elsewhere it is lowered, never raised, where a container's quota (cgroup `cpu.max`) allows fewer cores than
torch counts: threads beyond a quota are held to be slower, which has not been measured here (docs/log.md).
OMP_NUM_THREADS, which torchrun sets too, is never overruled.

SELKERN_TUNING=off leaves everything as it is; no-allocator or no-threads (or both, with a comma) one thing of it.
`selkern doctor` tells what was set and why. Only the programs do this, never `import selkern`.
"""

from __future__ import annotations

import ctypes
import math
import os
from dataclasses import dataclass
from pathlib import Path

SWITCH = "SELKERN_TUNING"
_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_LARGEST, _ALWAYS_TAKEN = 1 << 30, 32 << 20  # bytes; glibc before 2.35 takes no more than the second
_MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Setting:
    """One thing that was set or left alone.

    Attributes:
        value: what holds now.
        why: in words.
        changed: whether it was set by us.
    """

    value: str
    why: str
    changed: bool = False


@dataclass(frozen=True)
class Tuning:
    """What `tune` did."""

    allocator: Setting
    threads: Setting


_done: Tuning | None = None


def tune(*, training: bool = False) -> Tuning:
    """Set the allocator and the number of threads, once per process; a second call tells what the first did.

    What cannot be set is left alone, and the answer says so.

    Args:
        training: leave the threads to torch, so that no sum is added up in another order.
    """
    global _done
    if _done is None:
        _done = Tuning(_tune_allocator(), _tune_threads(training))
    return _done


def switched_off(item: str) -> bool:
    """Whether SELKERN_TUNING asks to leave an item ("allocator", "threads") alone."""
    words = {word.strip().lower() for word in os.environ.get(SWITCH, "").split(",")}
    return bool(words & {"off", "0", "no", f"no-{item}"})


def usable_cores() -> tuple[int, str]:
    """Cores that this process may use at once, at least 1, and what decides it."""
    try:
        cores, why = len(os.sched_getaffinity(0)), "cores this process may run on"
    except (AttributeError, OSError):  # not Linux
        cores, why = os.cpu_count() or 1, "cores of the machine"
    quota = cgroup_quota()
    if quota is not None and math.ceil(quota) < cores:
        return max(1, math.ceil(quota)), f"a quota of {quota:g} of {cores} cores (cgroup)"
    return cores, why


def cgroup_quota() -> float | None:
    """Cores' worth of time that the container may use (cgroup 2 or 1); None for no limit or no cgroups.

    The limit of the group that is the root here, as in a container, and of this process's own group and those above.
    """
    limits = [_quota_of(folder) for folder in _groups()]
    return min((limit for limit in limits if limit is not None), default=None)


def _groups() -> list[Path]:
    """Folders of the cgroups that this process is in, as far as they are to be seen here."""
    folders = [_CGROUP, _CGROUP / "cpu"]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return folders
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = (_CGROUP / "cpu" if controllers else _CGROUP) / name.lstrip("/")
        folders += [folder for folder in (group, *group.parents) if folder.is_relative_to(_CGROUP)]
    return folders


def _quota_of(folder: Path) -> float | None:
    """Cores' worth of time of one cgroup's folder."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()[:2]
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        cores = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return None
    return cores if cores > 0 else None


def _tune_allocator() -> Setting:
    if switched_off("allocator"):
        return Setting("as the system has it", f"{SWITCH}={os.environ[SWITCH]}")
    given = [name for name in _MALLOC if name in os.environ]
    given += ["GLIBC_TUNABLES"] if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") else []
    if given:
        return Setting("as the environment sets it", ", ".join(given))
    if preload := os.environ.get("LD_PRELOAD", ""):
        for name in ("jemalloc", "tcmalloc", "mimalloc"):
            if name in preload:
                return Setting(name, "LD_PRELOAD: not glibc's allocator")
    try:
        version = os.confstr("CS_GNU_LIBC_VERSION")
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError, ValueError):
        return Setting("as the system has it", "no glibc here")
    taken = next((size for size in (_LARGEST, _ALWAYS_TAKEN) if mallopt(_MMAP, size)), None)
    if taken is None or not mallopt(_TRIM, _LARGEST):
        return Setting("as the system has it", f"{version} refused")
    why = f"{version}: freed blocks are kept for the next step instead of being mapped and cleared again"
    return Setting(f"blocks up to {taken >> 20} MiB kept", why, changed=True)


def _tune_threads(training: bool = False) -> Setting:
    import torch

    now = torch.get_num_threads()
    if switched_off("threads"):
        return Setting(str(now), f"{SWITCH}={os.environ[SWITCH]}")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        if name in os.environ:
            return Setting(str(now), f"{name}={os.environ[name]}")
    cores, why = usable_cores()
    if training:
        return Setting(str(now), "torch's own choice, which training keeps")
    if cores >= now:
        return Setting(str(now), f"torch's own choice (up to {cores}: {why})")
    torch.set_num_threads(cores)
    return Setting(str(cores), f"{why}; torch chose {now}", changed=True)
