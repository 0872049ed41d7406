"""Runs on the machines of a Ray cluster, by the same processes as on one machine."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selkern.errors import Interrupted, PackageError, ResourceError, UsageError
from selkern.study.process import end, finish, start
from selkern.study.progress import Progress
from selkern.study.task import task_file
from selkern.train.stop import StopRequest

_GLANCE = 0.5  # seconds between looks at the cluster
_UNSEEN = 255  # code of a machine that does not see the folder


def work(folders: Sequence[Path], threads: int, cuda: bool, address: str | None, progress: Progress) -> None:
    """Do the tasks of all folders, each on `threads` cores of some machine, as many at a time as the cluster takes.

    Every machine must have selkern installed, and must see the folders and the data under these same paths.

    Args:
        cuda: whether each needs a GPU.
        address: of the cluster; "auto" finds the one of this machine, None starts one here for this study alone.

    Raises:
        PackageError: ray is missing.
        ResourceError: no such cluster, or it was lost.
        UsageError: a machine does not see a folder.
        Interrupted, SelkernError: as `local.work`.
    """
    ray = _import_ray()
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        fix = "start one with `ray start --head`, or leave --address out"
        raise ResourceError(f"no Ray cluster ({error})", f"--address {address or ''}", fix) from error
    remote = ray.remote(num_cpus=threads, num_gpus=int(cuda))(in_process)
    waiting: dict[Any, Path] = {}
    try:
        with StopRequest() as stop:
            waiting |= {remote.remote(str(folder.absolute())): folder for folder in folders}
            while waiting:
                ready, _ = ray.wait(list(waiting), timeout=_GLANCE)
                for reference in ready:
                    _take(ray, reference, waiting.pop(reference), progress)
                if stop.signum:
                    raise Interrupted(stop.signum, "stopped; the same command continues")
                progress.show([f"{len(waiting)} on the cluster or waiting"])
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
        ray.shutdown()


def in_process(folder: str) -> int:
    """On a machine of the cluster: do the task of a folder in a process of its own; its exit code."""
    if not task_file(Path(folder)).is_file():
        return _UNSEEN
    child = start(Path(folder))
    try:
        return child.wait()
    finally:
        end([child])


def _take(ray: Any, reference: Any, folder: Path, progress: Progress) -> None:
    """Note the end of a run. Raises what it ended with."""
    try:
        code = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise ResourceError(f"the cluster lost the run {folder.name} ({reason})", str(folder), "try again") from error
    if code == _UNSEEN:
        fix = "give an --output that all machines share"
        raise UsageError("a machine of the cluster does not see the run's folder", str(folder), fix)
    finish(folder, code, progress)


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise PackageError("ray is missing", "--engine ray", 'pip install "selkern[ray]"') from error
