"""The process of one run: train or go on, evaluate the test images once, write the figures.

    python -m selkern.study.worker FOLDER

It ends, its state saved, when its standard input does: whoever started it holds the other end, so it never outlives
them, however they were ended.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selkern.data.scenes import SceneSplit
from selkern.errors import Interrupted, ResourceError, SelkernError
from selkern.evaluation import Evaluation, evaluate
from selkern.inference.images import choose_images
from selkern.inference.network import load
from selkern.io import write_atomic
from selkern.measure.machine import cpu_model
from selkern.models import registry
from selkern.study.change import changed
from selkern.study.reuse import is_finished, newest, take, taken_from
from selkern.study.selections import selections
from selkern.study.task import Task, read_task, result_file
from selkern.train import run as job
from selkern.train.options import TrainOptions
from selkern.train.run_folder import RunFolder, versions
from selkern.tuning import tune

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
    row = changed(registry.architecture(task.base), task.change, str(folder))
    registry.register(options.model, row)
    trained = _train(task, options, folder)
    result = _evaluated(task, trained, options.device)
    write_atomic(result_file(folder), json.dumps(result, indent=1, ensure_ascii=False))


def _train(task: Task, options: TrainOptions, folder: Path) -> RunFolder:
    """The finished run of a task: the one that is there, another study's, or one trained or trained on now."""
    begun = newest(folder)
    if begun is None:
        run = take(task, folder) or job.train(options)
    else:
        run = begun if is_finished(begun) else job.resume(begun, options.device)
    assert run is not None  # there is one rank
    return run


def _evaluated(task: Task, run: RunFolder, device: str) -> dict[str, Any]:
    """The figures of a run's best weights on the test images."""
    loaded = load(str(run.path), device)
    split = choose_images(loaded).split
    started = time.monotonic()
    evaluation = evaluate(loaded.model, split, loaded.card.classes, loaded.preprocess)
    evaluation.require_numbers(split)
    chosen = selections(loaded.model, split, loaded.preprocess) if task.selection else []
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
    found: list[dict[str, float | None]] = []
    for low, high in itertools.pairwise(edges):
        inside = (scales >= low) & ((scales < high) | ((high == edges[-1]) & (scales == high)))
        images = int(inside.sum())
        top1 = float(evaluation.right[inside].mean()) if images else None
        found.append({"low": low, "high": high, "images": images, "top1": top1})
    return found


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Of every tensor's name, type and bytes: a weights file also tells where it was made, and differs."""
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
        if isinstance(error, RuntimeError) and "out of memory" not in what and "can't allocate memory" not in what:
            raise
        fix = "free space or memory, or use fewer --jobs; the same command continues"
        print(f"error: {ResourceError(what or 'out of memory', folder, fix)}", file=sys.stderr)
        return ResourceError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
