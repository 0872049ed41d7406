"""The process of a run as its parent sees it: started, ended, and its failure as an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

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
from selkern.study.progress import Progress
from selkern.study.task import output_file, read_task

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
            [sys.executable, "-m", "selkern.study.worker", str(folder)],
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
    """Tell how the process of a folder ended. Raises as `require_success`."""
    try:
        require_success(folder, code)
    except SelkernError:
        progress.say(f"{folder.name} failed; the others are stopped and save their states")
        raise
    progress.done(folder.name)


def require_success(folder: Path, code: int) -> None:
    """Raise what a process ended with, unless it is 0.

    Raises:
        SelkernError: the error that it told, with the exit code it had.
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
