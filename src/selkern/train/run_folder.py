"""The folder of a run: what is in it, how it gets its name, and how it is found again."""

from __future__ import annotations

import csv
import errno
import json
import os
import platform
import shlex
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from selkern import __version__
from selkern.convert import hub
from selkern.data import LARGEST_IMAGE
from selkern.data.decode import show
from selkern.data.listing import is_file, is_folder, some
from selkern.data.preprocess import Preprocess
from selkern.data.shard_names import is_pattern
from selkern.data.sources import Source
from selkern.data.split import Split
from selkern.data.splitting import Digest
from selkern.errors import CheckpointError, DataError, ResourceError, UsageError
from selkern.io import append, new_folder, write_atomic, write_csv
from selkern.models.weights import Card, find_bundled, require_not_exported, save_weights
from selkern.train.distributed import Ranks
from selkern.train.network import Construction
from selkern.train.options import OUTPUT, TrainOptions, read_options

_SPOKEN = 5  # shown one by one; the file has them all
_MANY = 0.1  # share of a split from which on a warning counts them
TORCH = (".pth", ".pt", ".bin", ".caffemodel")


def require_readable(split: Split) -> None:
    """Raise DataError where no image of a split can be read, before work that would be lost is done."""
    first: DataError | None = None
    for index in range(len(split)):
        error = _unread(split, index)
        if error is None:
            return
        first = first or error
    if first is not None:
        what = f"none of {len(split):,} {split.name} images can be read, the first: {first.what}"
        raise DataError(what, first.where, first.fix)


def _unread(split: Split, index: int) -> DataError | None:
    """Why an image cannot be read; None where it can."""
    try:
        split.read(index)
    except DataError as error:
        return error
    return None


class BadFiles:
    """The images that a run passes over.

    Args:
        path: of the file; what a run before this one wrote there is kept.
        say: shows a line to the user.

    Raises:
        CheckpointError: the file that is there is none of ours.

    Attributes:
        rows: reason by file.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self.say = path, say
        self.rows: dict[str, str] = {}
        if path.is_file():
            try:
                with path.open(newline="") as file:
                    self.rows = {row["file"]: row["reason"] for row in csv.DictReader(file)}
            except (ValueError, KeyError, csv.Error) as error:
                what = f"not the table that was written ({error!r})"
                raise CheckpointError(what, str(path), "move the file away") from error
        self._written = dict(self.rows)
        self._weighed = 0

    def note(self, errors: Iterable[DataError]) -> None:
        """Note images by the errors that reading them raised; each is shown once."""
        for error in errors:
            if error.where in self.rows:
                continue
            self.rows[error.where] = error.what
            if len(self.rows) <= _SPOKEN:
                self.say(f"warning: skipped {error.where}: {error.what}")
            if len(self.rows) == _SPOKEN:
                self.say(f"warning: images skipped from here on are listed in {self.path} only")

    def add(self, others: Iterable[Mapping[str, str]]) -> None:
        """Take in what other ranks noted."""
        for rows in others:
            self.rows |= rows

    def weigh(self, split: Split, classes: Sequence[str]) -> None:
        """Warn where they are many of a split, or all of a class, as often as there are more of them."""
        if len(self.rows) == self._weighed:
            return
        self._weighed = len(self.rows)
        bad = np.array([split.where(index) in self.rows for index in range(len(split))])
        lost = np.bincount(split.labels[bad], minlength=len(classes))
        there = np.bincount(split.labels, minlength=len(classes))
        gone = []
        for label in np.flatnonzero((lost > 0) & (2 * lost >= there)).tolist():
            rest = np.flatnonzero((split.labels == label) & ~bad).tolist()  # an epoch may leave some out
            if not any(_unread(split, index) is None for index in rest):
                gone.append(repr(classes[label]))
        if gone:
            self.say(f"warning: no {split.name} image of class {some(gone)} can be read: it is not learned")
        if bad.mean() >= _MANY:
            self.say(f"warning: {bad.sum():,} of {len(bad):,} {split.name} images cannot be read: see {self.path}")

    def write(self) -> None:
        """Bring the file up to date."""
        if self.rows != self._written:
            write_csv(self.path, ("file", "reason"), sorted(self.rows.items()))
            self._written = dict(self.rows)


if sys.platform != "win32":
    import fcntl

FILE = ".lock"  # in the run's folder; it stays there, the lock does not


@contextmanager
def locked(folder: Path, ranks: Ranks, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a run within the block; rank 0 holds it for all. Reading the run needs none.

    Args:
        folder: of the run.
        say: called where a file system has no locks.

    Raises:
        ResourceError: another process trains this run, on every rank; or the folder cannot be written to.
    """
    file, holder = _take(folder / FILE, say) if ranks.main else (None, "")
    with file or nullcontext():
        if holder := ranks.from_main(holder):
            fix = "wait for its end or stop it; `evaluate` and `predict` work meanwhile"
            raise ResourceError(f"this run is being trained by {holder}", str(folder), fix)
        yield


def _take(path: Path, say: Callable[[str], None]) -> tuple[IO[bytes] | None, str]:
    """The open file that holds the lock, and "", or who else has it.

    Raises:
        ResourceError: the folder cannot be written to.
    """
    if sys.platform == "win32":  # which has no such locks
        return None, ""
    try:
        file = path.open("ab")
        try:
            # Not flock: workers, which are forked, would keep such a lock for some seconds after a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return None, path.read_text(errors="replace").strip()[:300] or "another process"
            say(f"warning: no lock on {path.parent} ({error.strerror}): see that no other process trains this run")
            return None, ""
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        file.flush()
    except OSError as error:
        fix = "free space, or give yourself the right to write there"
        raise ResourceError(f"cannot write ({error.strerror})", str(path), fix) from error
    return file, ""


POINTER = "latest.txt"  # in the output folder: the path of the newest run
SETTLED = ("batch_size", "accumulate", "white_level")  # of a recipe: what the data may change
COLUMNS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_top1",
    "val_loss",
    "val_top1",
    "val_top5",
    "skipped",
    "images_per_s",
    "seconds",
)


class RunFolder:
    """A run's files by name. The folder itself is made by `create` and found by `find`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = path / "state"
        self.weights = path / "weights"
        self.best = self.weights / "best.safetensors"
        self.last = self.weights / "last.safetensors"
        self.plots = path / "plots"
        self.log = path / "log.txt"
        self.split_csv = path / "split.csv"
        self.metrics = path / "metrics.csv"
        self.bad_files = path / "bad_files.csv"
        self.report = path / "report.html"

    @classmethod
    def create(cls, options: TrainOptions) -> RunFolder:
        """Make `output/NAME`, or `NAME-2` and so on where that exists: nothing is ever overwritten.

        Raises:
            ResourceError: the folder cannot be made.
            UsageError: it would lie in the data, where it would be taken for a class.
        """
        base = Path(options.output)
        if is_folder(options.data) and base.resolve().is_relative_to(Path(options.data).resolve()):
            raise UsageError("lies in the data", f"--output {base}", "give a folder outside: nothing is written there")
        try:
            path = new_folder(base, name_of(options))
            (path / "weights").mkdir()
        except OSError as error:
            raise ResourceError(
                f"cannot make a run folder ({error.strerror})", str(base), "give another --output"
            ) from error
        write_atomic(base / POINTER, str(path.resolve()) + "\n")
        return cls(path)

    @classmethod
    def find(cls, given: str, output: str = OUTPUT) -> RunFolder:
        """A run by its folder, by its name in `output`, or "latest", the one that was begun last there.

        Raises:
            CheckpointError: there is no such run.
            UsageError: an exported file.
        """
        base = Path(output)
        if given == "latest":
            # The version before kept it one folder up, and put the runs of `--output o` into o/train.
            pointers = [path for path in (base / POINTER, base.parent / POINTER) if path.is_file()]
            if pointers:
                given = max(pointers, key=lambda path: path.stat().st_mtime).read_text().strip()
        for path in (Path(given), base / given, base / "train" / given):
            if (path / "config.yaml").is_file():
                return cls(path)
        require_not_exported(given)
        fix = f"give a run's folder; they lie in {OUTPUT}/ or where --output said"
        raise CheckpointError("no such run", given or str(base / POINTER), fix)

    @classmethod
    def unfinished(cls, options: TrainOptions) -> RunFolder | None:
        """The newest run, where it was started with these very options and has not come to its end."""
        run = cls.started_with(options)
        return None if run is None or run.report.is_file() else run

    @classmethod
    def started_with(cls, options: TrainOptions) -> RunFolder | None:
        """The newest run, where it was started with these very options."""
        try:
            run = cls.find("latest", options.output)
            kept = read_options(run.path)
            asked = {name: getattr(options.training, name) for name in SETTLED}
            kept = replace(kept, training=replace(kept.training, **asked), threads=options.threads)
            same = kept.to_yaml() == options.to_yaml()
        except (CheckpointError, OSError, ValueError):
            return None
        return run if same else None

    @property
    def has_state(self) -> bool:
        """Whether a state was saved to resume from."""
        return any(self.state.glob("step-*"))

    def write_split(self, source: Source) -> str:
        """Write split.csv -> `digest` of its rows; of drawn data there is none."""
        if source.kind == "digits":
            return ""
        total = Digest()
        write_csv(self.split_csv, ("path", "label", "split"), total.over(source.split_rows()))
        return total.text

    def start(self, options: TrainOptions, source: Source) -> None:
        """Write what is known before the first step: command, options, machine, classes.

        The caller has written split.csv and inputs.json by then: a run that has a config.yaml can be resumed.
        """
        write_atomic(self.path / "command.txt", command() + "\n")
        write_atomic(self.path / "env.json", json.dumps(versions(), indent=1))
        write_atomic(self.path / "classes.json", json.dumps(source.classes, ensure_ascii=False))
        write_csv(self.metrics, COLUMNS, [])
        write_atomic(self.path / "config.yaml", options.to_yaml())  # last: a run that has it can be resumed

    def log_order(self, rank: int, epoch: int, step: int, indices: Sequence[int]) -> None:
        """Add a step's sample numbers to a rank's order.rank*.csv."""
        rows = "".join(f"{epoch},{step},{index}\n" for index in indices)
        append(self.path / f"order.rank{rank}.csv", rows)

    def cut_order(self, epoch: int, step: int) -> None:
        """Leave in every rank's order.rank*.csv only what came before a position; the rest will come again."""
        for file in self.path.glob("order.rank*.csv"):
            lines = file.read_text().splitlines(keepends=True)
            whole = lines if not lines or lines[-1].endswith("\n") else lines[:-1]  # a kill may cut the last one short
            try:
                before = [line for line in whole if tuple(map(int, line.split(",")[:2])) < (epoch, step)]
            except ValueError as error:
                raise CheckpointError(f"not epoch,step,number ({error})", str(file), "move the file away") from error
            if before != lines:
                write_atomic(file, "".join(before))

    def clear(self) -> None:
        """Remove the files that a kill left half written."""
        for leftover in self.path.rglob(".*.tmp"):
            if leftover.is_file():
                leftover.unlink()

    def keep_weights(self, state: dict[str, Tensor], card: Card, best: bool) -> None:
        """Write weights/last.safetensors, and weights/best.safetensors where they are the best so far."""
        save_weights(self.last, state, card)
        if best:
            save_weights(self.best, state, card)

    def read_metrics(self) -> list[dict[str, float]]:
        """One row per epoch so far. Raises CheckpointError for a table that is not as it was written."""
        try:
            with self.metrics.open(newline="") as file:
                return [{name: float(row[name]) for name in COLUMNS} for row in csv.DictReader(file)]
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            fix = "resume the run, which writes it anew, or move the file away"
            raise CheckpointError(f"not the table that was written ({error!r})", str(self.metrics), fix) from error

    def write_metrics(self, rows: Sequence[dict[str, float]]) -> None:
        """Replace the rows: the table is small, and a kill leaves the old one or the new one."""
        write_csv(self.metrics, COLUMNS, [[row[column] for column in COLUMNS] for row in rows])


def is_run(given: str) -> bool:
    """Whether a word means a run: `latest`, or one that is there."""
    if given == "latest":
        return True
    try:
        RunFolder.find(given)
    except (CheckpointError, UsageError):
        return False
    return True


def name_of(options: TrainOptions) -> str:
    """The name of a run's folder, before a number that another of the name may make necessary."""
    path = Path(options.data)
    if is_pattern(options.data):  # train-{000000..001023}.tar: its folder says more
        path = path.parent
    return options.name or f"{options.model.rpartition(':')[2]}-{path.stem or 'data'}"


def make_card(options: TrainOptions, classes: tuple[str, ...], row: dict[str, float], how: Construction) -> Card:
    """The card of an epoch's weights, from its row of metrics.csv and how the network is built."""
    return Card(
        model=options.model,
        classes=classes,
        preprocess=options.training.preprocess.to_dict(),
        metrics={name: row[name] for name in ("val_top1", "val_top5", "val_loss")},
        source={
            "command": command(),
            "data": options.data,
            "seed": options.seed,
            "epoch": row["epoch"],
            **versions(),
        },
        norms=dict(how.norms),
        network=how.to_dict(),
    )


def command() -> str:
    """The command this process was started with, as one would type it again."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """What the figures of a run depend on beside its options."""
    return {
        "selkern": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": str(torch.get_num_threads()),
    }


def find_weights(given: str) -> Path:
    """The weights file of a run (its best), a weights file as it is, bundled weights by name, or "hf-hub:user/name".

    Raises:
        CheckpointError: none of these.
        UsageError: as `hub.fetch` says, which alone needs a network.
    """
    if not given:
        raise CheckpointError("no run is named", "RUN", "give a run's folder; they lie in runs/train/")
    if hub.is_reference(given):
        return hub.fetch(given)
    if Path(given).suffix == ".safetensors":
        return Path(given)
    if (inside := find_bundled(None, given)) is not None:
        return inside
    if Path(given).suffix in TORCH and is_file(given):
        fix = "`selkern convert` turns those of our networks into ours; of others, safetensors.torch.save_file"
        raise CheckpointError("weights of another program", show(given), fix)
    try:
        best = RunFolder.find(given).best
    except OSError as error:  # a name that none can have
        reason = f"no such run ({error.strerror})"
        raise CheckpointError(reason, show(given)[:100], "give a run's folder; they lie in runs/train/") from error
    if not best.is_file():
        raise CheckpointError("the run has no weights yet", str(best.parent), "resume it until an epoch ends")
    return best


def require_preprocess(card: Card, path: Path) -> None:
    """Raise CheckpointError unless the card describes a valid way to prepare images."""
    if not card.preprocess:
        raise CheckpointError("the file does not describe how to prepare images", str(path), "use weights of a run")
    try:
        size = Preprocess.from_dict(card.preprocess).size
        if size > LARGEST_IMAGE:
            raise ValueError(f"size {size} px is above {LARGEST_IMAGE}")
    except (ValueError, TypeError, OverflowError) as error:  # UsageError is a ValueError
        what = error.what if isinstance(error, UsageError) else str(error)
        raise CheckpointError(
            f"describes no way to prepare images ({what})", str(path), "use weights of a run"
        ) from error
