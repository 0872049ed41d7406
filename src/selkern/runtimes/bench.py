"""One network in every runtime that is installed, all in turn: latency, size, and how far the answers are the same."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selkern.deploy.fold import fold
from selkern.measure.bench import forward, in_layouts
from selkern.measure.timing import Job, Spread, in_turn, quickest, ratios
from selkern.runtimes.export import export
from selkern.runtimes.files import PACKAGES
from selkern.runtimes.network import ExportedNetwork, Precision
from selkern.runtimes.quantize import LEAST, Int8
from selkern.runtimes.trial import closeness, logits_of

EAGER = "PyTorch"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One runtime at one batch size.

    Attributes:
        runtime: its name.
        batch: images of one pass.
        value: ms an image, median and quartiles.
        speedup: the first one's time over its, of the rounds' ratios; None of the first itself.
        size: bytes of weights or file.
        difference: largest difference of the logits from PyTorch's, as a share of the largest; None of PyTorch itself.
        agreement: share of images with the same likeliest class.
    """

    runtime: str
    batch: int
    value: Spread
    speedup: Spread | None
    size: int
    difference: float | None = None
    agreement: float | None = None


def missing_runtimes() -> dict[str, str]:
    """Runtimes that cannot be measured here, and the package that brings each."""
    needed = {
        "ONNX Runtime": PACKAGES["onnx"],
        "OpenVINO": PACKAGES["openvino"],
        "OpenVINO int8": (*PACKAGES["openvino"], "nncf"),
    }
    absent = {name: [p for p in packages if importlib.util.find_spec(p) is None] for name, packages in needed.items()}
    return {name: packages[0] for name, packages in absent.items() if packages}


def in_runtimes(
    model: nn.Module,
    images: Tensor,
    batch_sizes: tuple[int, ...],
    budget: float,
    *,
    others: Mapping[str, nn.Module] | None = None,
    compiled: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Time a classifier as PyTorch computes it, folded, and as every runtime that is installed does.

    Args:
        model: (N, C, H, W) to logits (N, K).
        images: (n, C, H, W) that answers are compared on, and that int8 takes its ranges from, n at least 16.
        batch_sizes: to time.
        budget: seconds for the rounds at each batch size.
        others: further networks for such images, by name, in PyTorch: speed is compared with the first of them.
        compiled: measure torch.compile too, which takes a minute or more.
        say: called with what is done next.
    """
    with tempfile.TemporaryDirectory() as folder:
        runtimes = _runtimes(model.eval(), images, Path(folder), compiled, say)
        rows = []
        answers = {name: logits_of(network, images) for name, (network, _) in runtimes.items()}
        further = {name: (other.eval(), _bytes(other)) for name, other in (others or {}).items()}
        everything = {**further, **runtimes}
        first = next(iter(everything))
        for batch in batch_sizes:
            say(f"timing, batch size {batch}")
            x = images[torch.arange(batch) % len(images)].clone()
            jobs: dict[str, Job] = {}
            for name, (network, _) in everything.items():
                eager = name == EAGER or name in further
                choice = in_layouts(network, x, forward) if eager else {"": partial(forward, network, x)}
                jobs[name] = choice[quickest(choice)]
            seconds = in_turn(jobs, budget=budget)
            for name, (_, size) in everything.items():
                value = Spread.of([1e3 * each / batch for each in seconds[name]])
                speedup = None if name == first else ratios(seconds[first], seconds[name])
                row = Row(runtime=name, batch=batch, value=value, speedup=speedup, size=size)
                rows.append(_compared(row, answers[EAGER], answers[name]) if name in answers and name != EAGER else row)
    return rows


def _runtimes(
    model: nn.Module, images: Tensor, folder: Path, compiled: bool, say: Callable[[str], None]
) -> dict[str, tuple[nn.Module, int]]:
    """The network in each runtime, and its size in bytes."""
    weights = _bytes(model)
    x, absent = images[:2], missing_runtimes()
    runtimes: dict[str, tuple[nn.Module, int]] = {EAGER: (model, weights)}
    runtimes["folded"] = fold(model, example=x), weights
    if compiled:
        say("compiling")
        runtimes["folded, compiled"] = fold(model, example=x, compile=True), weights
    options: dict[str, Any] = {"example": x, "images": images, "tolerance": 1e-3}
    if "ONNX Runtime" not in absent:
        say("exporting to ONNX")
        export(model, folder / "net.onnx", **options)
        runtimes["ONNX Runtime"] = _opened(folder / "net.onnx")
    if "OpenVINO" not in absent:
        say("exporting to OpenVINO")
        export(model, folder / "net.xml", **options)
        runtimes["OpenVINO float32"] = _opened(folder / "net.xml")
        runtimes["OpenVINO bfloat16"] = _opened(folder / "net.xml", "bf16")
    if "OpenVINO int8" not in absent and len(images) >= LEAST:
        say("quantising")
        export(model, folder / "int8.xml", **options, int8=Int8(calibration=images, max_drop=1.0))
        runtimes["OpenVINO int8"] = _opened(folder / "int8.xml")
    return runtimes


def _opened(path: Path, precision: Precision = "f32") -> tuple[ExportedNetwork, int]:
    files = {path, path.with_suffix(".bin")}
    return ExportedNetwork(path, precision), sum(file.stat().st_size for file in files if file.is_file())


def _bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _compared(row: Row, want: Tensor, answers: Tensor) -> Row:
    difference, agreement = closeness(want, answers)
    return replace(row, difference=difference, agreement=agreement)
