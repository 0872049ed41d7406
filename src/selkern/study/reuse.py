"""A run that another study in the same output folder has done: taken from there instead of trained once more."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from selkern.errors import CheckpointError, ResourceError
from selkern.measure.machine import cpu_model
from selkern.study.task import RUN, Task, read_result, read_task
from selkern.train.run_folder import RunFolder, versions
from selkern.train.state import load_state

_MARK = "taken_from.txt"  # in the copy of a run: the study and run that it was trained for


def newest(folder: Path) -> RunFolder | None:
    """The run of a task's folder that was begun last; None where there is none."""
    # A run without config.yaml was killed before its first step; `train` makes another beside it.
    begun = sorted(path.parent for path in (folder / "train").glob(f"{RUN}*/config.yaml"))
    return RunFolder(begun[-1]) if begun else None


def is_finished(run: RunFolder) -> bool:
    """Whether all epochs of a run are done."""
    return run.has_state and bool(load_state(run.state).state.progress.get("finished"))


def take(task: Task, folder: Path) -> RunFolder | None:
    """A copy of a finished run of the same task, by the same versions on the same processor; None where there is none.

    What is told of it does not matter: the copy is evaluated as this task asks.

    Raises:
        ResourceError: it cannot be copied.
    """
    for path in sorted(folder.absolute().parent.parent.glob(f"*/*-seed{task.seed}/task.json")):
        if path.parent != folder.absolute() and (run := _of_same(task, path.parent)) is not None:
            return _copied(run, path.parent, folder)
    return None


def taken_from(run: RunFolder) -> str | None:
    """STUDY/ARM-seedS that a run was trained for, where it was another's."""
    mark = run.path / _MARK
    return mark.read_text(encoding="utf-8") if mark.is_file() else None


def _of_same(task: Task, other: Path) -> RunFolder | None:
    """The finished run of another folder, if it is what this task asks for."""
    with suppress(CheckpointError):  # a damaged run of another study is that study's business
        theirs, result = read_task(other), read_result(other)
        same = replace(theirs, arm=task.arm, scale_bins=task.scale_bins, selection=task.selection) == task
        if not same or result is None:
            return None
        if (result["versions"], result["circumstances"].get("cpu")) == (versions(), cpu_model()):
            run = newest(other)
            return run if run is not None and is_finished(run) else None
    return None


def _copied(run: RunFolder, other: Path, folder: Path) -> RunFolder:
    # Beside what a kill before the first step may have left under the usual name.
    staged, target = folder / "train" / f".{RUN}.tmp", folder / "train" / f"{RUN}-taken"
    shutil.rmtree(staged, ignore_errors=True)
    try:
        shutil.copytree(run.path, staged)
        if not (staged / _MARK).exists():
            (staged / _MARK).write_text(f"{other.parent.name}/{other.name}", encoding="utf-8")
        staged.rename(target)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        fix = "free space or choose another folder"
        raise ResourceError(f"cannot copy the run ({error.strerror or 'no space?'})", str(target), fix) from error
    return RunFolder(target)
