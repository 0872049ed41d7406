"""Where the runs of a study are carried out: processes of this machine, or the machines of a Ray cluster."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from selkern.errors import (
    CheckpointError,
    DataError,
    Interrupted,
    NumericsError,
    PackageError,
    ResourceError,
    SelkernError,
    UsageError,
)
from selkern.study.run import output_file, read_task, task_file
from selkern.train.stop import StopRequest


class Progress:
    """How far a study is.

    Args:
        total: runs of the study.
        ready: of them, those that were done before.
    """

    def __init__(self, total: int, ready: int) -> None:
        self.total, self.ready, self.ended = total, ready, ready
        self._started, self._shown = time.monotonic(), ""

    def done(self, name: str) -> None:
        """A run has ended."""
        self.ended += 1
        self.say(f"{self.ended}/{self.total} done: {name}{self._left()}")

    def show(self, running: Sequence[str]) -> None:
        """Renew the live line."""
        line = f"{self.ended}/{self.total} done, running {', '.join(running)}{self._left()}"
        if sys.stderr.isatty() and line != self._shown:
            print(f"\r\x1b[K{line[:200]}", end="", file=sys.stderr, flush=True)
            self._shown = line

    def say(self, text: str) -> None:
        """A line that stays."""
        print(f"\r\x1b[K{text}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)
        self._shown = ""

    def _left(self) -> str:
        """The time that is left at the pace so far, once there is one."""
        done = self.ended - self.ready
        if not done or self.ended == self.total:
            return ""
        left = (time.monotonic() - self._started) / done * (self.total - self.ended)
        return f", {left / 60:.0f} min left" if left >= 90 else f", {left:.0f} s left"


Child = subprocess.Popen[bytes]
_PATIENCE = 90  # seconds until a child that was asked to end is killed
_ERRORS: dict[int, type[SelkernError]] = {
    error.exit_code: error for error in (UsageError, DataError, CheckpointError, ResourceError, NumericsError)
}


def start(folder: Path, keep: Collection[int] = ()) -> Child:
    """A process for the task of a folder; `end` or our own end, however it comes, ends it too.

    Args:
        keep: numbers of open files that it is to inherit.
    """
    threads = str(read_task(folder).threads)
    with output_file(folder).open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "selkern.study.run", str(folder)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            pass_fds=tuple(keep),
            start_new_session=True,  # Ctrl+C reaches us alone: a second signal would cut short the saving of its state
        )


def end(children: Iterable[Child]) -> None:
    """Let processes save their states and end; those that do not are killed."""
    waiting = list(children)
    for child in waiting:
        if child.stdin is not None:
            child.stdin.close()
    for child in waiting:
        try:
            child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def finish(folder: Path, code: int, progress: Progress) -> None:
    """Print how the process of a folder ended. Raises as `require_success`."""
    try:
        require_success(folder, code)
    except SelkernError:
        progress.say(f"{folder.name} failed; the others are stopped and save their states")
        raise
    progress.done(folder.name)


def require_success(folder: Path, code: int) -> None:
    """Raise what a process ended with, unless it is 0.

    Raises:
        SelkernError: the error that it printed, with the exit code it had.
        Interrupted: somebody stopped it.
    """
    if code == 0:
        return
    name, output = folder.name, str(output_file(folder))
    signum = -code if code < 0 else code - 128
    if signum in (signal.SIGINT, signal.SIGTERM):
        raise Interrupted(signum, f"the run {name} was stopped; the same command continues")
    if code < 0:
        fix = "was memory short? then use fewer --jobs; the same command continues"
        raise ResourceError(f"the run {name} was killed (signal {signum})", output, fix)
    if code in _ERRORS and (line := _last_error(output_file(folder))):
        raise _ERRORS[code].from_line(line)
    if line := _last_error(output_file(folder)):
        raise PackageError.from_line(line)
    raise SelkernError(f"the run {name} ended with code {code}", output, "see its last lines")


def _last_error(path: Path) -> str:
    """The last `error: ...` that a process printed, without that word; empty where there is none."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "")


_GLANCE = 0.1  # seconds between looks at the processes


def work_here(folders: Sequence[Path], jobs: int, progress: Progress, keep: Collection[int] = ()) -> None:
    """Do the tasks of all folders in their order, `jobs` at a time.

    Args:
        keep: open files that the processes inherit, such as a lock that is to last as long as they do.

    Raises:
        Interrupted: SIGINT or SIGTERM came; the processes have saved their states and ended.
        SelkernError: a run failed; the others have ended likewise.
    """
    waiting = list(folders)
    running: dict[Path, Child] = {}
    try:
        with StopRequest() as stop:
            while waiting or running:
                while waiting and len(running) < jobs:
                    folder = waiting.pop(0)
                    running[folder] = start(folder, keep)
                for folder, child in list(running.items()):
                    if (code := child.poll()) is not None:
                        del running[folder]
                        end([child])
                        finish(folder, code, progress)
                if stop.signum:
                    raise Interrupted(stop.signum, "stopped, states saved; the same command continues")
                progress.show([folder.name for folder in running])
                time.sleep(_GLANCE)
    finally:
        end(running.values())


_RAY_GLANCE = 0.5  # seconds between looks at the cluster
_UNSEEN = 255  # code of a machine that does not see the folder


def work_on_cluster(folders: Sequence[Path], threads: int, cuda: bool, address: str | None, progress: Progress) -> None:
    """Do the tasks of all folders, each on `threads` cores of some machine, as many at a time as the cluster takes.

    Every machine must have selkern installed, and must see the folders and the data under these same paths.

    Args:
        cuda: whether each needs a GPU.
        address: of the cluster; "auto" finds the one of this machine, None starts one here for this study alone.

    Raises:
        PackageError: ray is missing.
        ResourceError: no such cluster, or it was lost.
        UsageError: a machine does not see a folder.
        Interrupted, SelkernError: as `work_here`.
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
                ready, _ = ray.wait(list(waiting), timeout=_RAY_GLANCE)
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
