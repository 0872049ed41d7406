"""`selkern study`: the runs of a study that are still to be done, and the files of its results."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selkern.data.sources import open_source
from selkern.errors import Interrupted, ResourceError, UsageError
from selkern.io import write_atomic
from selkern.models.cost import Cost
from selkern.selection.plots import to_svg
from selkern.study import engine, present
from selkern.study.engine import Progress
from selkern.study.options import StudyOptions
from selkern.study.plan import Study, costs, find, is_digits, read
from selkern.study.present import draw
from selkern.study.results import assemble, measure
from selkern.study.run import Task, prepare, read_result, require_same, tasks_of
from selkern.tuning import usable_cores

_LOCK_PATIENCE = 30.0  # seconds: the processes of a study that was killed save their states first
_TRIAL_ROUNDS = 3  # of measurements in a short form


@dataclass(frozen=True)
class Conducted:
    """What a study gave: the page, its data, and the files they are in."""

    text: str
    results: dict[str, Any]
    files: tuple[Path, ...]


def conduct(asked: StudyOptions) -> Conducted:
    """Do all runs of a study that are not done, and write NAME.json, NAME.md and NAME.svg.

    Raises:
        UsageError: as `plan.read` and `plan.costs` say; the file changed since runs of it were started; results of
            another study are in the way.
        Interrupted: stopped by a signal. The seeds that all arms have are written into the runs' folder, not into
            `results`.
        SelkernError: a run failed.
    """
    study = read(find(asked.name), asked.data, asked.device, asked.short)
    counted = costs(study)
    root = asked.output / (f"{study.name}-short" if asked.short else study.name)
    target = root if asked.short else asked.results
    _require_own(study, target)
    tasks = [(task, root / task.name) for task in tasks_of(study, asked.threads)]
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot make the folder ({error.strerror})", str(root), "give another --output") from error
    with _alone(root) as lock:
        for task, folder in tasks:
            require_same(task, folder)
        for task, folder in tasks:
            prepare(task, folder)
        try:
            _work(asked, [folder for _, folder in tasks], lock)
        except Interrupted:
            if (so_far := _gather(asked, study, counted, tasks)) is not None:
                _write(so_far, study.name, root)
            raise
        results = _gather(asked, study, counted, tasks)
        assert results is not None  # all are done
        if study.cost:
            first = study.arms[0].options
            classes = len(open_source(first.data, on_bad=first.on_bad_image, table=first.table).classes)
            rounds = _TRIAL_ROUNDS if asked.short else None
            results["circumstances"]["measured"] = measure(study, classes, asked.threads, rounds)
        return _write(results, study.name, target)


def _require_own(study: Study, target: Path) -> None:
    """Raise UsageError where results lie that this study's file did not give."""
    path = target / f"{study.name}.json"
    if not path.exists():
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))["study"]["sha256"]
    except (ValueError, LookupError, TypeError, RecursionError):
        known = None
    if known != study.sha256:
        fix = "move it away, or give another folder"
        raise UsageError("results of another study, or of another version of its file", str(path), fix)


@contextmanager
def _alone(root: Path) -> Iterator[int]:
    """Hold the folder's lock, which the runs' processes inherit: it lasts until the last of them has ended.

    Raises:
        UsageError: another call is at work there.
    """
    import fcntl  # not on Windows, where no study can be carried out

    deadline = time.monotonic() + _LOCK_PATIENCE
    with (root / "lock").open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UsageError("another study is at work", str(root), "wait for its end") from error
                time.sleep(0.2)
        yield file.fileno()


def _work(asked: StudyOptions, folders: Sequence[Path], lock: int) -> None:
    """Do the runs that are not done, on the engine that was asked for."""
    left = [folder for folder in folders if read_result(folder) is None]
    jobs = asked.jobs or (1 if asked.device == "cuda" else max(1, usable_cores()[0] // asked.threads))
    progress = Progress(len(folders), len(folders) - len(left))
    progress.say(f"{len(folders)} runs, {len(folders) - len(left)} of them done; {folders[0].parent}")
    if not left:
        return
    if asked.engine == "ray":
        engine.work_on_cluster(left, asked.threads, asked.device == "cuda", asked.address, progress)
    else:
        engine.work_here(left, jobs, progress, [lock])


def _gather(
    asked: StudyOptions, study: Study, counted: dict[str, Cost], tasks: Sequence[tuple[Task, Path]]
) -> dict[str, Any] | None:
    """The results of the seeds that all arms have; None where there is no such seed."""
    rows = {(task.arm, task.seed): read_result(folder) for task, folder in tasks}
    runs = {key: result for key, result in rows.items() if result is not None}
    if not any(all((arm.name, seed) in runs for arm in study.arms) for seed in range(study.seeds)):
        return None
    return assemble(study, counted, runs, asked.threads, command(asked))


def command(asked: StudyOptions) -> str:
    """What gives these results again, without the folders of this machine."""
    words = ["selkern", "study", Path(asked.name).name if "/" in asked.name else asked.name]
    if asked.data is not None:
        words += ["--data", asked.data if is_digits(asked.data) else Path(asked.data).name]
    words += ["--threads", str(asked.threads)] if asked.threads != 1 else []
    words += ["--device", asked.device] if asked.device != "cpu" else []
    words += ["--engine", asked.engine] if asked.engine != "local" else []
    return shlex.join(words + (["--short"] if asked.short else []))


def _write(results: dict[str, Any], name: str, target: Path) -> Conducted:
    """NAME.json, NAME.md and NAME.svg in a folder."""
    target.mkdir(parents=True, exist_ok=True)
    text = present.render(results)
    contents = {
        "json": json.dumps(results, indent=1, ensure_ascii=False) + "\n",
        "md": text,
        "svg": to_svg(draw(results)) + "\n",
    }
    files = {target / f"{name}.{kind}": content for kind, content in contents.items()}
    for path, content in files.items():
        write_atomic(path, content)
    return Conducted(text, results, tuple(files))
