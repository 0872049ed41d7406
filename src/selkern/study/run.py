"""The process of one run: train or go on, evaluate the test images once, write the figures.

    python -m selkern.study.run FOLDER

It ends, its state saved, when its standard input does: whoever started it holds the other end, so it never outlives
them, however they were ended.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from selkern.data.preprocess import Preprocess
from selkern.data.scenes import SceneSplit
from selkern.data.split import Split
from selkern.errors import CheckpointError, Interrupted, ResourceError, SelkernError, UsageError, ran_out_of_memory
from selkern.evaluation import Evaluation, evaluate
from selkern.inference.images import choose_images
from selkern.inference.network import load
from selkern.io import write_atomic
from selkern.measure.machine import cpu_model
from selkern.selection.causal import causal
from selkern.selection.observe import Observed, observe
from selkern.selection.preference import ZOOMS, Selected, select_over, studied_units
from selkern.selection.statistics import partial_rank_correlation, rank_correlation
from selkern.selection.stream import stream
from selkern.study.plan import Study
from selkern.train import run as job
from selkern.train.options import TrainOptions, build
from selkern.train.run_folder import RunFolder, versions
from selkern.train.state import load_state
from selkern.tuning import tune

RUN = "run"  # name of the run's folder within the task's


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one process does.

    Attributes:
        base, change: of the network, as in `Arm`.
        options: of the training, as its config.yaml would have them; output is empty.
        threads: of torch. Part of the task, since sums are added up in another order with other threads.
        scale_bins: edges of the bins in which accuracy is reported.
        selection: whether to report what the units chose.
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
    """Where a task's folder holds the task."""
    return folder / "task.json"


def result_file(folder: Path) -> Path:
    """Where a task's folder holds the figures, once they are there."""
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

    What is reported of it does not matter: the copy is evaluated as this task asks.

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


SIZE, LIT, ENLARGED = "size", "size, intensity removed", "enlargement"
REPLACED = "top-1 with the selection"  # ... frozen, shuffled, smallest kernel, largest kernel

Rows = list[dict[str, Any]]  # what, unit, value


def selections(
    model: nn.Module,
    split: Split,
    preprocess: Preprocess,
    observed: Observed | None = None,
    predicted: NDArray[np.int64] | None = None,
) -> Rows:
    """The figures of a network on all images of a split; none where no unit has kernels of different sizes.

    Args:
        observed, predicted: of an evaluation of all images; without them the images are run again.

    Raises:
        DataError: an image cannot be read.
        NumericsError: a selection is not finite.
    """
    units = studied_units(model)
    if not units:
        return []
    labels = [unit.label for unit in units]
    selected = select_over(model, stream(split, preprocess, zooms=ZOOMS), Selected(units, ZOOMS))
    rows = _rows(ENLARGED, labels, selected.change.mean[-1])
    if isinstance(split, SceneSplit):
        seen = None if observed is None else observed.of(np.arange(len(split)))
        seen = seen or observe(model, split, preprocess, range(len(split)))
        sizes = np.array([split.truth(index).scale for index in range(len(split))])
        rows += _rows(SIZE, labels, rank_correlation(sizes, seen.preference))
        rows += _rows(LIT, labels, partial_rank_correlation(sizes, seen.preference, seen.light[:, 0]))
    images = (together[0] for together in stream(split, preprocess))
    given = None if predicted is None else dict(enumerate(predicted.tolist()))
    for effect in causal(model, images, selected.mean_selection(), given=given, single=False).effects:
        rows += _rows(f"{REPLACED} {effect.what}", [effect.unit], [effect.change.value])
    return rows


def _rows(what: str, units: list[str], values: Any) -> Rows:
    """NaN, of a unit that chose the same for all images, is no figure."""
    return [
        {"what": what, "unit": unit, "value": float(value) if np.isfinite(value) else None}
        for unit, value in zip(units, values, strict=True)
    ]


_PATIENCE = 60  # seconds that a state may take to be saved before the process is ended in any case


def run(folder: Path) -> None:
    """Do the task of a folder, from where an earlier process left it, and write its result.json.

    Raises:
        SelkernError: as `job.train` and `job.resume` say.
        Interrupted: the process was asked to stop; the next call goes on.
    """
    task = read_task(folder)
    torch.set_num_threads(task.threads)
    options = task.options_in(folder)
    trained = _train(task, options, folder)
    result = _evaluated(task, trained, options)
    write_atomic(result_file(folder), json.dumps(result, indent=1, ensure_ascii=False))


def _train(task: Task, options: TrainOptions, folder: Path) -> RunFolder:
    """The finished run of a task: the one that is there, another study's, or one trained or trained on now."""
    begun = newest(folder)
    if begun is None:
        run = take(task, folder) or job.train(options)
    else:
        run = begun if is_finished(begun) else job.resume(begun, options.device, model=options.model)
    assert run is not None  # there is one rank
    return run


def _evaluated(task: Task, run: RunFolder, options: TrainOptions) -> dict[str, Any]:
    """The figures of a run's best weights on the test images."""
    loaded = load(str(run.path), options.device, code=options.model)
    split = choose_images(loaded).split
    started = time.monotonic()
    observed = Observed(loaded.model, channels=False)
    with observed.watching():
        evaluation = evaluate(loaded.model, split, loaded.card.classes, loaded.preprocess, after=observed.add)
    evaluation.require_numbers(split)
    chosen: Rows = []
    if task.selection:
        chosen = selections(loaded.model, split, loaded.preprocess, observed, evaluation.top[:, 0])
    rows = run.read_metrics()
    return {
        "figures": {
            "top1": evaluation.top1,
            "loss": evaluation.loss,
            "images": len(evaluation),
            "best_val_top1": max(row["val_top1"] for row in rows),
            "per_scale": _per_scale(evaluation, split, task.scale_bins),
            "selection": chosen,
            "weights_sha256": weights_sha256(loaded.model.state_dict()),
            "order_sha256": hashlib.sha256((run.path / "order.rank0.csv").read_bytes()).hexdigest(),
        },
        "versions": versions(),
        "circumstances": {
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "cpu": cpu_model(),
            "taken_from": taken_from(run),
            "training_seconds": sum(row["seconds"] for row in rows),
            "test_seconds": time.monotonic() - started,
        },
    }


def _per_scale(evaluation: Evaluation, split: Any, edges: list[float]) -> list[dict[str, float | None]]:
    """Accuracy in every bin of the objects' scale, edges[i] <= scale < edges[i + 1]; the last bin has its end too."""
    if not edges or not isinstance(split, SceneSplit):
        return []
    scales = np.array([split.truth(int(index)).scale for index in evaluation.indices])
    result: list[dict[str, float | None]] = []
    for low, high in itertools.pairwise(edges):
        inside = (scales >= low) & ((scales < high) | ((high == edges[-1]) & (scales == high)))
        images = int(inside.sum())
        top1 = float(evaluation.right[inside].mean()) if images else None
        result.append({"low": low, "high": high, "images": images, "top1": top1})
    return result


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Of every tensor's name, type and bytes: a weights file also says where it was made, and differs."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _end_with_parent() -> None:
    """Ask this process to stop as soon as its standard input ends."""

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock would be held when Python ends
            pass
        os.kill(os.getpid(), signal.SIGTERM)  # a training saves its state first
        time.sleep(_PATIENCE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(folder: str) -> int:
    """Do a folder's task; the exit code as of `selkern`."""
    _end_with_parent()
    tune(training=True)
    try:
        run(Path(folder))
    except SelkernError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except (MemoryError, OSError, RuntimeError) as error:
        what = getattr(error, "strerror", None) or str(error)
        if isinstance(error, RuntimeError) and not ran_out_of_memory(error):
            raise
        fix = "free space or memory, or use fewer --jobs; the same command continues"
        print(f"error: {ResourceError(what or 'out of memory', folder, fix)}", file=sys.stderr)
        return ResourceError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
