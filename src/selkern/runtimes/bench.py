"""One network in every runtime that is installed, all in turn: latency, size, memory, and whether answers are equal."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selkern.deploy.fold import Folded, fold
from selkern.measure.bench import forward, in_layouts
from selkern.measure.memory import growth
from selkern.measure.timing import Job, Spread, in_turn, quickest, ratios
from selkern.runtimes.export import export
from selkern.runtimes.files import PACKAGES, bytes_of
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
        memory: MiB by which the process grows at most, from opening the network to its first pass; None where the
            system does not count it.
        difference: largest difference of the logits from PyTorch's, as a share of the largest; None of PyTorch itself.
        agreement: share of images with the same likeliest class.
    """

    runtime: str
    batch: int
    value: Spread
    speedup: Spread | None
    size: int
    memory: float | None
    difference: float | None = None
    agreement: float | None = None

    def compared(self, difference: float | None, agreement: float | None) -> Row:
        """With how close its answers are."""
        return replace(self, difference=difference, agreement=agreement)


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
    calibration: Tensor | None = None,
    others: Mapping[str, nn.Module] | None = None,
    compiled: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Row]:
    """Time a classifier as PyTorch computes it, folded, and as every runtime that is installed does.

    Args:
        model: (N, C, H, W) to logits (N, K).
        images: (n, C, H, W) that answers are compared on.
        calibration: (n, C, H, W) that int8 takes its ranges from, n at least 16; by default `images`.
        batch_sizes: to time.
        budget: seconds for the rounds at each batch size.
        others: further networks for such images, by name, in PyTorch: speed is compared with the first of them.
        compiled: measure torch.compile too, which takes a minute or more.
        say: called with what is done next.
    """
    with tempfile.TemporaryDirectory() as folder:
        runtimes = _runtimes(
            model.eval(), images, images if calibration is None else calibration, Path(folder), compiled, say
        )
        answers = {name: logits_of(each.open(None), images) for name, each in runtimes.items()}
        further = {name: _PyTorch(other.eval()) for name, other in (others or {}).items()}
        rows: list[Row] = []
        for batch in batch_sizes:
            say(f"timing, batch size {batch}")
            x = images[torch.arange(batch) % len(images)].clone()
            rows += _timed({**further, **runtimes}, x, budget)
    compared = {name: closeness(answers[EAGER], given) for name, given in answers.items() if name != EAGER}
    return [row.compared(*compared.get(row.runtime, (None, None))) for row in rows]


def _timed(runtimes: Mapping[str, _PyTorch | _File], x: Tensor, budget: float) -> list[Row]:
    """Each at one batch size, all in turn."""
    jobs: dict[str, Job] = {}
    memory: dict[str, float | None] = {}
    for name, runtime in runtimes.items():

        def first_pass(name: str = name, runtime: _PyTorch | _File = runtime) -> None:
            jobs[name] = partial(forward, runtime.open(len(x)), x)
            jobs[name]()

        memory[name] = growth(first_pass)
        if isinstance(runtime, _PyTorch) and not isinstance(runtime.network, Folded):
            choice = in_layouts(runtime.network, x, forward)
            jobs[name] = choice[quickest(choice)]
    seconds = in_turn(jobs, budget=budget)
    first, rows = next(iter(jobs)), []
    for name, runtime in runtimes.items():
        value = Spread.of([1e3 * each / len(x) for each in seconds[name]])
        speedup = None if name == first else ratios(seconds[first], seconds[name])
        sizes: dict[str, Any] = {"size": runtime.size, "memory": memory[name]}
        rows.append(Row(runtime=name, batch=len(x), value=value, speedup=speedup, **sizes))
    return rows


@dataclass(frozen=True)
class _PyTorch:
    """A network that PyTorch computes."""

    network: nn.Module

    def open(self, _batch: int | None) -> nn.Module:
        return copy.deepcopy(self.network)

    @property
    def size(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.network.parameters())


@dataclass(frozen=True)
class _File:
    """A network that its file's runtime computes, planned for a number of images."""

    path: Path
    precision: Precision = "f32"

    def open(self, batch: int | None) -> nn.Module:
        return ExportedNetwork(self.path, self.precision, batch)

    @property
    def size(self) -> int:
        return bytes_of(self.path)


def _runtimes(
    model: nn.Module, images: Tensor, calibration: Tensor, folder: Path, compiled: bool, say: Callable[[str], None]
) -> dict[str, _PyTorch | _File]:
    """The network in each runtime."""
    x, absent = images[:2], missing_runtimes()
    runtimes: dict[str, _PyTorch | _File] = {EAGER: _PyTorch(model), "folded": _PyTorch(fold(model, example=x))}
    if compiled:
        say("compiling")
        runtimes["folded, compiled"] = _PyTorch(fold(model, example=x, compile=True))
    options: dict[str, Any] = {"example": x, "images": images, "tolerance": 1e-3}
    if "ONNX Runtime" not in absent:
        say("exporting to ONNX")
        export(model, folder / "net.onnx", **options)
        runtimes["ONNX Runtime"] = _File(folder / "net.onnx")
    if "OpenVINO" not in absent:
        say("exporting to OpenVINO")
        export(model, folder / "net.xml", **options)
        runtimes["OpenVINO float32"] = _File(folder / "net.xml")
        runtimes["OpenVINO bfloat16"] = _File(folder / "net.xml", "bf16")
    if "OpenVINO int8" not in absent and len(calibration) >= LEAST:
        say("quantising")
        export(model, folder / "int8.xml", **options, int8=Int8(calibration=calibration, max_drop=1.0))
        runtimes["OpenVINO int8"] = _File(folder / "int8.xml")
    return runtimes
