"""One run of a study, an arm with a seed, as plain values: what a process is given, and what it gave back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from selkern.errors import CheckpointError, UsageError
from selkern.io import write_atomic
from selkern.study.plan import Study
from selkern.train.options import TrainOptions, build

RUN = "run"  # name of the run's folder within the task's


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one process does.

    Attributes:
        base, change: of the network, as in `Arm`.
        options: of the training, as its config.yaml would have them; output is empty.
        threads: of torch. Part of the task, since sums are added up in another order with other threads.
        scale_bins: edges of the bins in which accuracy is told.
        selection: whether it is told what the units chose.
    """

    arm: str
    seed: int
    base: str
    change: dict[str, Any]
    options: dict[str, Any]
    threads: int
    scale_bins: list[float]
    selection: bool = False

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.arm}-seed{self.seed}"

    def options_in(self, folder: Path) -> TrainOptions:
        """The options of the training, whose run folder is made in `folder`."""
        return build(TrainOptions, {**self.options, "output": str(folder / "train")}, str(folder))


def tasks_of(study: Study, threads: int) -> Iterator[Task]:
    """All runs: every arm with the first seed, then every arm with the next, so that a stop leaves whole pairs."""
    for seed in range(study.seeds):
        for arm in study.arms:
            options = yaml.safe_load(arm.options.to_yaml()) | {"output": "", "name": RUN, "seed": seed}
            yield Task(
                arm=arm.name,
                seed=seed,
                base=arm.base,
                change=dict(arm.change),
                options=options,
                threads=threads,
                scale_bins=list(study.scale_bins),
                selection=study.selection,
            )


def task_file(folder: Path) -> Path:
    """Where a task's folder tells the task."""
    return folder / "task.json"


def result_file(folder: Path) -> Path:
    """Where a task's folder tells the figures, once they are there."""
    return folder / "result.json"


def output_file(folder: Path) -> Path:
    """What the process of a task printed."""
    return folder / "output.txt"


def require_same(task: Task, folder: Path) -> None:
    """Raise UsageError where a task's folder was made for another task: the study's file has changed since."""
    if task_file(folder).is_file() and read_task(folder) != task:
        fix = "give another --output, or move the folder away"
        raise UsageError("the study's file or options changed since this run was started", str(folder), fix)


def prepare(task: Task, folder: Path) -> None:
    """Make a task's folder, unless it is there."""
    if not task_file(folder).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(task_file(folder), json.dumps(asdict(task), indent=1, ensure_ascii=False))


def read_task(folder: Path) -> Task:
    """The task of a folder. Raises CheckpointError where its file is not as it was written."""
    values = _read(task_file(folder))
    try:
        return Task(**values)
    except TypeError as error:
        raise _damaged(task_file(folder), error) from error


def read_result(folder: Path) -> dict[str, Any] | None:
    """The figures of a task, None where it is not done. Raises CheckpointError for a file not as it was written."""
    if not result_file(folder).is_file():
        return None
    values = _read(result_file(folder))
    if not {"figures", "versions", "circumstances"} <= values.keys():
        raise _damaged(result_file(folder), "entries are missing")
    return values


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(values, dict):
        raise _damaged(path, "no mapping")
    return values


def _damaged(path: Path, why: object) -> CheckpointError:
    return CheckpointError(f"not as it was written ({why})", str(path), "move its folder away: the run is done anew")
