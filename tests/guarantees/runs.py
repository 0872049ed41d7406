"""The runs that `guarantees.kills` kills: a tiny network on few pictures, in forked processes that report their phases.

Children are forked, because importing torch takes longer than a run. A child writes a byte into a pipe whenever it
enters or leaves a phase of the run; the functions are wrapped in the child only, and are the product's own.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch._dynamo  # the first optimizer imports it, which would take every child two seconds
from PIL import Image
from safetensors.torch import load_file

from guarantees.small import SMALL
from selkern.data import order
from selkern.data.augment import Augment
from selkern.data.pack import pack_shards
from selkern.data.sources import open_source
from selkern.errors import CheckpointError, SelkernError
from selkern.models import registry
from selkern.report import analyze
from selkern.train import loop, step
from selkern.train import run as job
from selkern.train.options import TrainOptions
from selkern.train.recipe import Recipe
from selkern.train.run_folder import RunFolder
from selkern.train.state import load_state, pointed_to

SAVE_STEPS = 2  # between saved states: with five steps to an epoch they fall on other steps in every epoch
STEPS, EPOCHS = 5, 2
MOMENTS = {  # the bytes that a run sends when a phase begins and when it ends
    "step": (b"t", b"T"),
    "save": (b"s", b"S"),
    "pointer": (b"p", b"S"),  # a state is renamed into place, and LAST does not point to it yet
    "validation": (b"v", b"V"),
    "edge": (b"V", b"F"),  # an epoch's weights, metrics and state are written
    "report": (b"r", b"R"),
}
JOINED, STEP_DONE = b"j", b"T"
LIMIT = 60.0  # s; a run takes one or two
_CHANGING = ("images_per_s", "seconds")  # columns of metrics.csv that no two runs share
_SIZES: dict[str, Any] = {"epochs": EPOCHS, "batch_size": 8, "image_size": 16}
_SGD: dict[str, Any] = {
    "optimizer": "sgd",
    "lr": 0.05,
    "weight_decay": 1e-3,
    "schedule": "steps",
    "milestones": (0.5, 1),
}
_PAD, _RESIZED = Augment(crop="pad", pad=2, flip=0.5), Augment(crop="resized", colour=0.2, erase=0.5)
_RECIPES = {
    "ema": Recipe(**_SIZES, **_SGD, ema=0.8, bias_lr=2.0, clip=1.0, augment=_PAD),
    "mixed": Recipe(**_SIZES, warmup=0.5, augment=replace(_RESIZED, mixup=0.3, cutmix=1.0)),
    "accumulate": Recipe(**_SIZES, accumulate=2, label_smoothing=0.1, ema=0.5, augment=_RESIZED),
    "bf16": Recipe(**_SIZES, **_SGD, precision="bf16", clip=0.5, augment=_PAD),
    "shards": Recipe(**_SIZES, warmup=0.5, augment=replace(_RESIZED, mixup=0.3)),
}


def configurations(data: Path) -> dict[str, TrainOptions]:
    """The kinds of run by name; `data` is a folder that `draw_data` made. `output` and `name` are left open."""
    common: dict[str, Any] = {"model": "sk_killed", "device": "cpu", "save_steps": SAVE_STEPS, "log_order": True}
    common |= {"data": str(data / "sound"), "report": False}
    special: dict[str, dict[str, Any]] = {
        "mixed": {"data": str(data / "broken")},
        "bf16": {"on_nan": "rollback"},
        "shards": {"data": str(data / "shards"), "shuffle": "shards"},
        "accumulate-0": {"report": True},  # of one kind only: it takes longer than the run
    }
    result = {}
    for workers in (0, 2):
        for name, recipe in _RECIPES.items():
            given = {**common, **special.get(name, {}), **special.get(f"{name}-{workers}", {}), "workers": workers}
            result[f"{name}-{workers}-workers"] = TrainOptions(**given, training=recipe)
    return result


def draw_data(root: Path) -> None:
    """Pictures of two classes: folders `sound` and `broken`, where three files are none, and `shards` of the sound."""
    rng = np.random.default_rng(0)
    for kind in ("sound", "broken"):
        for split, images in (("train", STEPS * 4 + 1), ("val", 4), ("test", 3)):
            for colour, name in enumerate(("cat", "dog")):
                folder = root / kind / split / name
                folder.mkdir(parents=True)
                for number in range(images):
                    pixels = rng.integers(0, 80, (20, 22, 3))
                    pixels[..., colour] += 150
                    file = folder / f"{number:02}.{'jpg' if number % 2 else 'png'}"
                    Image.fromarray(pixels.astype(np.uint8)).save(file)
    for name in ("train/cat/03.jpg", "train/dog/04.png", "val/cat/01.jpg"):
        (root / "broken" / name).write_bytes(b"not an image")
    pack_shards(open_source(str(root / "sound"), cut=False), root / "shards", 10_000)


def prepare() -> None:
    """Make this process one to fork from: it knows the network by its name, and torch starts no threads in it."""
    torch.set_num_threads(1)
    registry.ARCHITECTURES["sk_killed"] = SMALL
    order.WINDOW_GROUPS, order.WINDOW_SAMPLES = 3, 8  # several windows in an epoch


@dataclass
class Attempt:
    """The processes of a run that was started or resumed.

    Attributes:
        pids: of the ranks; each leads a process group, to which its data-loading workers belong.
        pipe: where rank 0 reports its phases.
        seen: what it reported so far.
        times: when each byte of it came, s.
        codes: exit codes of the ranks that have ended, a signal's number negative.
    """

    pids: list[int]
    pipe: int
    seen: bytearray = field(default_factory=bytearray)
    times: list[float] = field(default_factory=list)
    codes: dict[int, int] = field(default_factory=dict)

    def read(self, enough: Callable[[], bool], seconds: float) -> bool:
        """Read what the run reports until it is enough; False where it ends, or the time is over, before that."""
        end = time.monotonic() + seconds
        while not enough():
            if not select.select([self.pipe], [], [], max(0.0, end - time.monotonic()))[0]:
                return False
            reported = os.read(self.pipe, 1 << 16)
            if not reported:
                return False
            self.seen += reported
            self.times += [time.monotonic()] * len(reported)
        return True

    def kill(self, ranks: Iterable[int]) -> None:
        """SIGKILL to some of the ranks, each with its workers."""
        for rank in ranks:
            if rank not in self.codes:
                os.killpg(self.pids[rank], signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Whether all ranks have ended within so many seconds. What their workers left running is ended too."""
        end = time.monotonic() + seconds
        while len(self.codes) < len(self.pids) and time.monotonic() < end:
            for rank, pid in enumerate(self.pids):
                # The dead process is looked at before it is taken away: as long as it lies there, its group is its own.
                look = os.WEXITED | os.WNOHANG | os.WNOWAIT
                if rank not in self.codes and os.waitid(os.P_PID, pid, look):
                    os.killpg(pid, signal.SIGKILL)
                    self.codes[rank] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            time.sleep(0.002)
        return len(self.codes) == len(self.pids)

    def close(self) -> None:
        """End what still runs, and take in the last that was reported. A second time does nothing."""
        self.kill(range(len(self.pids)))
        self.wait(LIMIT)
        if self.pipe >= 0:
            self.read(lambda: False, 1)
            os.close(self.pipe)
            self.pipe = -1


def launch(what: TrainOptions | RunFolder, ranks: int, folder: Path, forget: bool = False) -> Attempt:
    """Start a run, or resume the one in a folder, in `ranks` forked processes; what they say goes to `folder`.

    Args:
        forget: resume without the optimizer's state, to see that this is found out.
    """
    reader, writer = os.pipe()
    port = _free_port()
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if not pid:
            os.close(reader)
            _be_rank(what, rank, ranks, port, writer, folder / f"said.rank{rank}.txt", forget)
        os.setpgid(pid, pid)  # here and in the child: whichever comes first
        pids.append(pid)
    os.close(writer)
    return Attempt(pids, reader)


def _be_rank(
    what: TrainOptions | RunFolder, rank: int, ranks: int, port: int, pipe: int, said: Path, forget: bool
) -> NoReturn:
    """All that a child does; like the program, it ends with one line and the error's exit code."""
    code = 70
    try:
        os.setpgid(0, 0)
        handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if ranks > 1:
            where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), **where}
        if rank == 0:
            _tell_phases(pipe)
        else:
            os.close(pipe)
        if forget:
            setattr(step, "load_optimizer", lambda *_: None)  # noqa: B010 - not the name that others import
        trained = job.resume(what, "cpu") if isinstance(what, RunFolder) else job.train(what)
        if trained is not None:
            analyze.report_run(trained, "cpu")
        code = 0
    except SelkernError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except BaseException:  # noqa: BLE001 - whatever it is, a child must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _tell_phases(pipe: int) -> None:
    """Wrap the functions that the phases are made of: a byte before each call, and one after it."""

    def wrap(owner: Any, name: str, before: bytes, after: bytes) -> None:
        original = getattr(owner, name)

        def reported(*args: Any, **named: Any) -> Any:
            os.write(pipe, before)
            result = original(*args, **named)
            os.write(pipe, after)
            return result

        setattr(owner, name, reported)

    wrap(job, "open_training", JOINED, b"")
    wrap(loop.Training, "_train_step", *MOMENTS["step"])
    wrap(loop, "save_state", *MOMENTS["save"])
    wrap(os, "rename", MOMENTS["pointer"][0], b"")
    wrap(loop.Training, "_validate", *MOMENTS["validation"])
    wrap(loop.Training, "_finish_epoch", b"", MOMENTS["edge"][1])
    wrap(analyze, "analyze", *MOMENTS["report"])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_run(output: Path) -> RunFolder | None:
    """The run below a folder that can be resumed; one that was killed before it had a config.yaml cannot."""
    configs = sorted(output.glob("*/config.yaml"))
    return RunFolder(configs[-1].parent) if configs else None


def results(run: RunFolder) -> dict[str, Any]:
    """All that a run computed, by name: every tensor's type and bytes, metrics, order, tables, names of files."""
    newest = run.state / pointed_to(run.state)
    tensors = [run.best, run.last, *sorted(newest.glob("*.safetensors"))]
    tables = [
        *run.path.glob("order.rank*.csv"),
        *run.path.glob("pred*.csv"),
        run.path / "evaluation.json",
        run.bad_files,
    ]
    rows = [{key: value for key, value in row.items() if key not in _CHANGING} for row in run.read_metrics()]
    result: dict[str, Any] = {"metrics.csv": rows}
    result |= {path.name: path.read_bytes() for path in tables if path.is_file()}
    for path in tensors:
        where = f"{path.parent.name if path.parent == run.weights else 'state'}/{path.name}"
        result |= {f"{where}: {name}": (str(t.dtype), t.numpy().tobytes()) for name, t in load_file(path).items()}
    kept = [path for path in run.path.rglob("*") if path.is_file() and run.state not in path.parents]
    return {**result, "files": sorted(str(path.relative_to(run.path)) for path in kept)}


def position(run: RunFolder) -> tuple[int, int, bool]:
    """Steps and whole epochs done by the newest state, and whether it is the run's last.

    Raises:
        CheckpointError: there is no sound one, or a newer one had to be left aside.
    """
    result = load_state(run.state)
    place = result.state.progress
    if result.damaged:
        raise CheckpointError(f"a kill left it damaged: {result.damaged[0]}", str(run.state))
    return place["epoch"] * STEPS + place["step"], place["epoch"], place["finished"]
