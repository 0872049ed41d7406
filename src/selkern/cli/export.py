"""`selkern export`: a trained network as a file of another runtime."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from selkern.cli.greet import greet
from selkern.cli.parse import Code, Run, parse
from selkern.data.table_options import TableOptions
from selkern.errors import UsageError
from selkern.progress import Progress, say
from selkern.tuning import check_threads, tune

if TYPE_CHECKING:
    from selkern.inference.export import Pictures, Time
    from selkern.runtimes.trial import Comparison


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a trained network for ONNX Runtime, OpenVINO or torch.export; it is compared before the file is kept.

    Norms are folded; any number of images goes. Classes and preprocessing are in the file, and in a .json beside it.
    """

    run: Run
    """A run's folder or name, latest, a weights file, bundled weights (sknet_mini.digits), or hf-hub:user/name."""
    to: Literal["onnx", "openvino", "pt2", "executorch"] = "onnx"
    """The format: onnx (opset 20), openvino (.xml and .bin), pt2 (torch.export), or executorch (.pte, for devices)."""
    output: Path | None = None
    """A new file, or a folder; by default exports/ in the run, or the current folder."""
    int8: bool = False
    """Quantise weights and activations after training (NNCF), with ranges from training images."""
    max_drop: float = 0.5
    """Points of top-1 that int8 may cost; where it costs more, operators are left in float until it does not."""
    min_agreement: float = 0.0
    """Percent of images whose likeliest class int8 must keep; operators are left in float until it does."""
    calibration_images: int = 300
    """Training images that int8 takes the ranges of activations from."""
    images: int = 1000
    """Images that the file is compared on, at most: of the validation split, else of the test split, else of all."""
    data: str | None = None
    """Other data than the run's own, or where those lie now: digits, a folder, .csv or .parquet."""
    selections: bool = False
    """Give what every selective-kernel unit chose as further outputs."""
    dynamic_size: bool = False
    """Take images of any height and width."""
    with_preprocessing: bool = False
    """Take uint8 images (N, H, W, 3) of any size, and resize, crop and normalise them in the graph."""
    compiled: bool = False
    """A .pt2 of machine code for this kind of processor (AOTInductor); takes a C++ compiler and a minute."""
    model: Code = ""
    threads: int | None = None
    """CPU threads to compare with; by default the number that `selkern doctor` shows."""
    table: tyro.conf.OmitArgPrefixes[TableOptions] = field(default_factory=TableOptions)
    json: bool = False
    """Print one JSON object instead of text."""

    def __post_init__(self) -> None:
        check_threads(self.threads)
        for name in ("calibration_images", "images"):
            if (number := getattr(self, name)) < 1:
                raise UsageError(f"{number} images", f"--{name.replace('_', '-')}", "must be at least 1")
        if not 0 <= self.max_drop <= 100:
            raise UsageError(f"max-drop is {self.max_drop}", "--max-drop", "give points of top-1, from 0 to 100")
        if self.compiled and self.to != "pt2":
            raise UsageError("--compiled is of torch.export", "--compiled", "give --to pt2")
        if not self.int8 and (self.min_agreement or self.max_drop != ExportOptions.max_drop):
            raise UsageError("--max-drop and --min-agreement are of --int8", "selkern export", "add --int8")
        if not 0 <= self.min_agreement <= 100:
            raise UsageError(f"min-agreement is {self.min_agreement}", "--min-agreement", "give percent, from 0 to 100")
        if self.int8 and self.to not in ("onnx", "openvino"):
            raise UsageError("int8 is of ONNX and OpenVINO", "--int8", "give --to onnx or --to openvino")


def main(argv: list[str]) -> int:
    """`selkern export`."""
    options = parse(ExportOptions, argv, "export")
    greet(f"exporting {options.run}")
    with Progress("starting") as line:
        from selkern.inference.export import export_weights, file_of, pictures_of, times
        from selkern.inference.network import load
        from selkern.runtimes.files import bytes_of
        from selkern.runtimes.quantize import Int8

        tune(threads=options.threads)
        line.show("loading the network")
        loaded = load(options.run, "cpu", options.model)
        path = file_of(loaded, options.to, int8=options.int8, output=options.output)
        calibrating = options.calibration_images if options.int8 else None
        line.show("reading images", total=options.images + (calibrating or 0))
        shared: dict[str, Any] = {"table": options.table, "seen": line.advance}
        shown, calibration = pictures_of(loaded, options.data, options.images, calibrating, **shared)
        if options.int8 and calibration is None:
            raise UsageError("no data to calibrate int8 with", "--data", "give those the network was trained on")
        int8 = None
        if calibration is not None:
            least = options.min_agreement / 100
            int8 = Int8(calibration=calibration.images, max_drop=options.max_drop / 100, min_agreement=least)
        line.show("exporting", total=0)
        result = export_weights(
            loaded,
            path,
            shown,
            int8,
            selections=options.selections,
            dynamic_size=options.dynamic_size,
            with_preprocessing=options.with_preprocessing,
            compiled=options.compiled,
        )
        line.show("timing", total=0)
        timings = times(loaded, path)
    if shown is None:
        say("note: no data are known: compared on random images; --data gives real ones")
    size = bytes_of(path)
    if options.json:
        rows = [asdict(row) for row in timings]
        print(json.dumps({"file": str(path), "bytes": size, "compared": result.figures(), "times": rows}))
        return 0
    _print(path, size, result, shown, calibration, timings)
    return 0


def _print(
    path: Path,
    size: int,
    result: Comparison,
    shown: Pictures | None,
    calibration: Pictures | None,
    timings: list[Time],
) -> None:
    print(f"{path}: {size / 1e6:.2f} MB")
    where = "random images" if shown is None else shown.name
    print(f"beside the PyTorch network on {where}:")
    print(f"  largest difference of logits  {result.difference:.1e} of the largest")
    print(f"  same likeliest class          {result.agreement:.2%}")
    if result.top1 is not None and result.exported_top1 is not None:
        print(f"  top-1                         {result.exported_top1:.2%}, the network's {result.top1:.2%}")
    for row in timings:
        each = f"{row.after.median:.2f} ms an image, the network's {row.before.median:.2f}"
        spread = f"[{row.speedup.low:.2f}, {row.speedup.high:.2f}]"
        print(f"  batch of {row.batch:<2}                   {each}; {row.speedup.median:.2f} {spread} times as fast")
    if timings:
        print("  medians of rounds in which both ran in turn; the ratio's own [quartiles]: far apart on a busy machine")
    if calibration is not None:
        print(f"int8 calibrated on {calibration.name}")
    print(f"next:\n  {_next(path)}")


def _next(path: Path) -> str:
    """What a file is used by."""
    from selkern.runtimes.files import is_compiled

    if path.suffix == ".pt2":
        opened = "torch._inductor.aoti_load_package({!r})" if is_compiled(path) else "torch.export.load({!r}).module()"
        return f"{opened.format(str(path))}(images)"
    if path.suffix == ".pte":
        return f"executorch.runtime.Runtime.get().load_program({str(path)!r}).load_method('forward').execute([images])"
    return f"selkern predict {shlex.quote(str(path))} IMAGE..."
