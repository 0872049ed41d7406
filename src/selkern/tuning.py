"""What the programs set before they compute: how memory is kept between steps, and how many threads compute.

glibc gives large blocks back to the system when they are freed, and every step of a network frees hundreds of them:
the next step then waits for thousands of pages to be mapped and cleared again. Asked not to, it keeps them; the process
takes more memory at its peak, and no number changes.

The count of threads decides in which order sums are added up, so a training has other bits with another count. It is
--threads; else OMP_NUM_THREADS, which torchrun sets too; else a resumed run's own; else what a short measurement of the
work itself finds fastest (`choose_threads`): OpenMP's threads wait for each other at every layer, so that beside
another busy program fewer are faster. Where the work is too small to measure it stays torch's own choice, which is
lowered, outside of training, to what a container's quota (cgroup `cpu.max`) allows.

SELKERN_TUNING=off leaves everything as it is; no-allocator or no-threads (or both, with a comma) one thing of it.
`selkern doctor` shows what was set and why. Only the programs do this, never `import selkern`.
"""

from __future__ import annotations

import ctypes
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from selkern.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

SWITCH = "SELKERN_TUNING"
_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
_LARGEST, _ALWAYS_TAKEN = 1 << 30, 32 << 20  # bytes; glibc before 2.35 takes no more than the second
_MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_")
_CGROUP = Path("/sys/fs/cgroup")
_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # the environment's own choice
_MOST_THREADS = 1024
_WORTH = 20.0  # s of estimated work below which nothing is measured
_BUDGET = 1.5  # s that a measurement aims at, below 3 in all
_LONGEST = 0.5  # s of the shortest step from which on no measurement fits into them
_ROUNDS = 4  # of each count, in turn, so that a moment's load falls on all
_GAIN = 1.1  # times faster that fewer threads have to be: noise alone is not to change a training's bits
_WINDOW, _SLOW = 10.0, 0.6  # s of steps that a speed is taken over; share of the first speed that is worth a remark


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


def tune(*, training: bool = False, threads: int | None = None) -> Tuning:
    """Set the allocator and the number of threads, once per process; a second call returns what the first did.

    What cannot be set is left alone, and the answer says so.

    Args:
        training: leave the threads to torch where a quota allows fewer, so that no sum is added up in another order.
        threads: the user's own number of them, which holds in any case.
    """
    global _done
    if _done is None:
        _done = Tuning(_tune_allocator(), _tune_threads(training))
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
        _done = replace(_done, threads=Setting(str(threads), f"--threads {threads}", changed=True))
    return _done


def check_threads(threads: int | None) -> None:
    """Raise UsageError for a --threads out of range."""
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise UsageError(f"threads is {threads}", "--threads", f"must be from 1 to {_MOST_THREADS}")


def environment_decides() -> bool:
    """Whether the environment fixes the number of threads."""
    return switched_off("threads") or any(name in os.environ for name in _COUNTS)


@dataclass(frozen=True)
class Threads:
    """The number of threads that was chosen.

    Attributes:
        count: of them.
        rates: images/s that were measured, by number of threads.
    """

    count: int
    rates: Mapping[int, float]

    def __str__(self) -> str:
        others = ", ".join(f"{rate:.0f} with {n}" for n, rate in self.rates.items() if n != self.count)
        threads = "1 thread" if self.count == 1 else f"{self.count} threads"
        return f"{threads} by measurement: {self.rates[self.count]:.0f} images/s, {others} (--threads N to choose)"


def choose_threads(
    step: Callable[[int], object],
    images: int,
    *,
    least: int = 2,
    most: int = 64,
    clock: Callable[[], float] = time.perf_counter,
) -> Threads | None:
    """Set the number of threads, of n, n/2 and 1, at which work goes fastest now; n is torch's present one.

    None, and nothing set, where there is nothing to choose, the environment decides, the work is small, or its
    shortest step too long to be measured in 3 s.

    Args:
        step: does the work on so many images.
        images: that the whole work has.
        least, most: images of one step.
        clock: seconds.
    """
    import torch

    now = torch.get_num_threads()
    if now == 1 or images < least or environment_decides():
        return None
    counts = sorted({now, now // 2, 1}, reverse=True)

    def seconds(size: int, count: int) -> float:
        torch.set_num_threads(count)
        begun = clock()
        step(size)
        return clock() - begun

    first = seconds(least, now)  # which has memory to get and kernels to prepare
    if first > 2 * _LONGEST:
        return None
    each = seconds(least, now) / least
    if each * least > _LONGEST or each * images < _WORTH:
        return None
    size = int(min(max(_BUDGET / (each * _ROUNDS * len(counts)), least), most, images))
    took: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(_ROUNDS):
        for count in counts:
            took[count].append(seconds(size, count))
        if sum(map(sum, took.values())) > _BUDGET:
            break
    rates = {count: size / max(statistics.median(times), 1e-9) for count, times in took.items()}
    fastest = max(counts, key=lambda count: rates[count])
    count = fastest if rates[fastest] > _GAIN * rates[now] else now
    torch.set_num_threads(count)
    return Threads(count, rates)


def measured_threads(
    model: nn.Module, size: int, images: int, *, training: bool = False, batch: int = 64
) -> Threads | None:
    """Choose the threads for a network of images of one side, as `choose_threads` does; `str` of it is what to say.

    Neither the network nor any random state changes. None as `choose_threads`, and where the network is on no CPU.
    """
    import copy

    import torch

    first = next(model.parameters(), None)
    if first is None or first.device.type != "cpu" or torch.get_num_threads() == 1 or environment_decides():
        return None
    net = copy.deepcopy(model).to(memory_format=torch.channels_last) if training else model  # type: ignore[call-overload]
    if training:
        net.train()

    def step(n: int) -> None:
        x = torch.zeros(n, 3, size, size).to(memory_format=torch.channels_last)
        with torch.set_grad_enabled(training):
            out = net(x)
            if training:
                out.float().logsumexp(dim=1).mean().backward()

    with torch.random.fork_rng(devices=[]):  # of dropped paths
        return choose_threads(step, images, most=max(2, batch))


class Pace:
    """Notices when training has become much slower than at its start."""

    def __init__(self) -> None:
        self.first = 0.0  # images/s
        self._images, self._since, self._said = 0, math.nan, False

    def restart(self, now: float) -> None:
        """Steps begin here: what came before, such as a validation, does not count."""
        self._images, self._since = 0, now

    def slowed(self, images: int, now: float) -> str:
        """What to say once the speed has fallen, else "".

        Args:
            images: trained on since the call before.
            now: seconds.
        """
        self._images += images
        if now - self._since < _WINDOW:
            return ""
        speed = self._images / (now - self._since)
        self.restart(now)
        self.first = self.first or speed
        if self._said or speed >= _SLOW * self.first:
            return ""
        self._said = True
        return f"the machine is busy: {speed:.0f} images/s, {self.first:.0f} at the start"


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
    for name in _COUNTS:
        if name in os.environ:
            return Setting(str(now), f"{name}={os.environ[name]}")
    cores, why = usable_cores()
    if training:
        return Setting(str(now), "torch's own choice, which training keeps or measures")
    if cores >= now:
        return Setting(str(now), f"torch's own choice (up to {cores}: {why})")
    torch.set_num_threads(cores)
    return Setting(str(cores), f"{why}; torch chose {now}", changed=True)
