"""`selkern bench`: time and memory of any models on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional

from selkern.cli.parse import parse
from selkern.errors import UsageError
from selkern.progress import say

if TYPE_CHECKING:
    from torch import nn

    from selkern.inference.network import Loaded
    from selkern.measure.bench import Timing
    from selkern.runtimes.bench import Row

DEFAULT = ("sknet50", "resnext50_32x4d")  # SKNet-50 and the same network without selective kernels
_IMAGES = 256  # of a run, to compare answers on, and for the ranges of int8
_READING = """
Median [quartiles] of rounds in which all ran in turn, each planned for this batch size. Times as fast: median of the
rounds' ratios. MiB held: how far the process grows until the first pass is done. Difference: of the logits from
PyTorch's, as a share of the largest. Agree: share of images with the same likeliest class."""
_WORKLOADS = ("start", "article", "layer", "infer", "train", "memory", "scaling", "ddp", "data", "all")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Time inference and a training step of models on the CPU, and the memory held for the backward pass.

    Several models run in turn, and each is compared with the first. Without a model: sknet50 and its plain twin,
    resnext50_32x4d. With --runtimes the last one runs folded and in every runtime that is installed, too, and so does a
    run (its folder, its name, latest), on its own images.
    """

    models: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL...")] = ()
    """Names, runs, weights files, hf-hub:user/name, timm:NAME, FILE.py:CLASS or module:CLASS (whose code is run)."""
    arguments: Annotated[str, tyro.conf.arg(name="with")] = ""
    """Arguments of a class or function, as in Python: "64, kernels=[3, 5]"."""
    batch_size: tuple[int, ...] = (1, 8)
    """Batch sizes to time; training is timed at the largest."""
    image_size: int | None = None
    """Height and width of the images in pixels; by default the size the model is made for, or 224."""
    threads: int | None = None
    """Number of CPU threads; by default the number that `selkern doctor` shows."""
    budget: float = 10.0
    """Seconds for each comparison; at least three rounds are run."""
    runtimes: bool = False
    """Inference of the last model in PyTorch, folded, by ONNX Runtime, and by OpenVINO (float32, bfloat16, int8)."""
    compiled: bool = False
    """With --runtimes: torch.compile too, which takes a minute for each batch size."""
    json: bool = False
    """Print one JSON object instead of text."""

    def __post_init__(self) -> None:
        for name, values in (
            ("image_size", (self.image_size,)),
            ("threads", (self.threads,)),
            ("batch_size", self.batch_size),
        ):
            if not values or any(value is not None and value < 1 for value in values):
                given = " ".join(map(str, values)) or "empty"
                raise UsageError(f"{name} is {given}", f"--{name.replace('_', '-')}", "must be at least 1")
        if self.compiled and not self.runtimes:
            raise UsageError("--compiled is of --runtimes", "--compiled", "add --runtimes")
        if not self.budget > 0:
            raise UsageError(f"budget is {self.budget}", "--budget", "must be above 0")
        if workload := next((model for model in self.models if model in _WORKLOADS), None):
            fix = f"in a checkout: python benchmarks/run.py {workload}"
            raise UsageError(f"{workload!r} is a workload, not a model", "selkern bench", fix)


def main(argv: list[str]) -> int:
    """`selkern bench`."""
    options = parse(BenchOptions, argv, "bench")
    import torch

    from selkern.convert.subject import find_inputs, find_subject, own_size
    from selkern.measure import machine
    from selkern.measure.bench import bench
    from selkern.train.run_folder import is_run
    from selkern.tuning import tune

    tune()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.runtimes or (options.models and is_run(options.models[-1])):
        return _in_runtimes(options)
    names = tuple(dict.fromkeys(options.models)) or DEFAULT
    models = {name: find_subject(name, options.arguments) for name in names}
    inputs = {name: find_inputs(model, side=options.image_size or own_size(model)) for name, model in models.items()}
    rows = bench(models, inputs, options.batch_size, options.budget, _say)
    about = machine.describe()
    if options.json:
        shapes = {name: list(x.shape[1:]) for name, x in inputs.items()}
        print(json.dumps({"machine": about, "inputs": shapes, "rows": [asdict(row) for row in rows]}))
        return 0
    print(machine.summary(about))
    print(_table(rows, {name: " x ".join(map(str, x.shape[1:])) for name, x in inputs.items()}))
    return 0


def _in_runtimes(options: BenchOptions) -> int:
    """One model in every runtime."""
    import torch

    from selkern.convert.subject import find_inputs, find_subject, is_code, own_size
    from selkern.inference.export import pictures_of
    from selkern.inference.network import load
    from selkern.measure import machine
    from selkern.models.registry import list_models
    from selkern.runtimes.bench import in_runtimes, missing_runtimes

    def find(name: str) -> tuple[nn.Module, Loaded | None]:
        known = name.partition("(")[0] in list_models() or is_code(name)
        loaded = None if known else load(name, "cpu")
        return find_subject(name, options.arguments) if loaded is None else loaded.model, loaded

    *names, name = options.models or DEFAULT[:1]
    model, loaded = find(name)
    shown = calibration = None
    if loaded is not None and options.image_size is None:
        say("reading images")
        shown, calibration = pictures_of(loaded, None, _IMAGES, _IMAGES, table=None, seen=lambda _: None)
    if shown is None:
        side = options.image_size or own_size(model)
        shape = find_inputs(model, side=side).shape[1:]
        images = torch.randn(32, *shape, generator=torch.Generator().manual_seed(0))
    else:
        images = shown.images
    settings: dict[str, Any] = {"others": {each: find(each)[0] for each in names}, "compiled": options.compiled}
    settings["calibration"] = None if calibration is None else calibration.images
    rows = in_runtimes(model, images, options.batch_size, options.budget, say=say, **settings)
    about = machine.describe()
    compared = f"{len(images)} random images" if shown is None else shown.name
    if options.json:
        print(
            json.dumps({"machine": about, "model": name, "compared": compared, "rows": [asdict(row) for row in rows]})
        )
        return 0
    print(machine.summary(about))
    print(f"\n{name}: input {' x '.join(map(str, images.shape[1:]))}, answers compared on {compared}")
    print(_runtimes_table(rows))
    for runtime, package in missing_runtimes().items():
        print(f"{runtime}: not measured, {package} is not installed")
    return 0


def _runtimes_table(rows: Sequence[Row]) -> str:
    """One block for each batch size, a line and a bar for each runtime: the bar is as long as it is faster."""
    width = max(len(row.runtime) for row in rows) + 2
    most = max(row.speedup.median for row in rows if row.speedup is not None)
    head = f"{'':{width}}{'ms an image':>11} {'[quartiles]':19}{'img/s':>7} {'times as fast':27}"
    lines, block = [], None
    for row in rows:
        if row.batch != block:
            block = row.batch
            lines.append(f"\nbatch size {row.batch}\n  {head}{'MB':>7}{'MiB held':>10}{'difference':>12}{'agree':>9}")
        times = 1.0 if row.speedup is None else row.speedup.median
        spread = f"[{row.value.low:.2f}, {row.value.high:.2f}]"
        bar = "█" * max(1, round(20 * times / most))
        value = f"{row.value.median:11.2f} {spread:19}{1e3 / row.value.median:7.1f} {times:6.2f} {bar:20}"
        memory = "-" if row.memory is None else f"{row.memory:.0f}"
        difference = "" if row.difference is None else f"{row.difference:12.0e}"
        agreement = "" if row.agreement is None else f"{row.agreement:9.1%}"
        lines.append(f"  {row.runtime:{width}}{value}{row.size / 1e6:7.2f}{memory:>10}{difference}{agreement}")
    return "\n".join([*lines, _READING])


def _table(rows: Sequence[Timing], shapes: dict[str, str]) -> str:
    """One block for each quantity and batch size, a line for each model."""
    width = max(len(row.model) for row in rows) + 2
    lines = ["", *(f"{name}: input {shape}" for name, shape in shapes.items())]
    block = None
    for row in rows:
        if (row.quantity, row.batch_size) != block:
            block = row.quantity, row.batch_size
            lines.append(f"\n{row.quantity}, batch size {row.batch_size}, {row.unit} per image")
        if row.value is None:
            lines.append(f"  {row.model:{width}}not measured: {row.reason}")
            continue
        spread = f" [{row.value.low:.2f}, {row.value.high:.2f}]" if row.rounds else ""
        ratio = f"  {row.ratio.median:.2f} times that of {rows[0].model}" if row.ratio else ""
        lines.append(f"  {row.model:{width}}{row.value.median:9.2f}{spread:20}{ratio}  {row.layout}".rstrip())
    lines.append("\nMedian [quartiles] of rounds in which all models ran in turn; the layout is the faster of two.")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(f"measuring {text}", file=sys.stderr, flush=True)
