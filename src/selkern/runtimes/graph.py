"""What is exported of a network, and how it is traced and written in each format."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selkern.data.preprocess import Preprocess
from selkern.deploy.fold import Folded
from selkern.errors import UsageError, first_line
from selkern.runtimes.files import BATCH, format_of, need
from selkern.runtimes.resize import antialiased, resized
from selkern.selection.record import UnitInfo, hooked

OPSET = 20  # what torch 2.13 writes by itself, and ONNX Runtime from 1.17 on reads


class Graph(nn.Module):
    """What is exported: images to logits, with what every unit chose where that is asked for.

    Args:
        network: folded, in eval mode.
        units: those whose selections are outputs, each with the module that gives it.
        preprocess: of a graph that takes uint8 images (N, H, W, 3) of any size; None takes normalised (N, C, H, W).

    Attributes:
        outputs: their names.
    """

    def __init__(
        self, network: Folded, units: Sequence[tuple[UnitInfo, nn.Module]] = (), preprocess: Preprocess | None = None
    ) -> None:
        super().__init__()
        self.network, self.preprocess = network, preprocess
        self._units = tuple(units)
        self.outputs = ("logits", *(unit.label for unit, _ in units))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images to logits (N, K) and selections (N, M, C)."""
        if self.preprocess is not None:
            images = self.preprocess.normalise(resized(images, self.preprocess))
        chosen: list[Tensor] = []

        def keep(unit: UnitInfo) -> Callable[..., None]:
            return lambda _module, _inputs, output: chosen.append(unit.canonical(output))

        with hooked(self.network, [(module, keep(unit)) for unit, module in self._units]):
            logits = self.network(images)
        return (logits, *chosen)


def write(graph: Graph, x: Tensor, path: Path, *, dynamic_size: bool = False, compiled: bool = False) -> None:
    """Trace a graph and write it in the format of the file's suffix.

    Args:
        graph: in eval mode.
        x: what it takes.
        path: the file.
        dynamic_size: for images of any height and width.
        compiled: a .pt2 of machine code (AOTInductor) instead of operators.

    Raises:
        UsageError: it cannot be traced, or the format does not have its operators.
    """
    kind, name = format_of(path), type(graph.network.net).__name__
    free: dict[int, Any] = {0: torch.export.Dim(BATCH, min=1, max=1 << 16)}
    if dynamic_size or graph.preprocess is not None:
        height = 1 if graph.preprocess is not None else 2
        free |= dict.fromkeys((height, height + 1), torch.export.Dim.DYNAMIC)
    if kind == "executorch":  # it plans its memory for the largest batch, and reorders weights itself
        graph, x, free = graph.to(memory_format=torch.contiguous_format), x[:1], {}  # type: ignore[call-overload]
    with quiet(), torch.no_grad():
        with _one_line("torch.export cannot trace it", name, "trace the network by hand"):
            program = torch.export.export(graph, (x,), dynamic_shapes={"images": free}, strict=False)
        if kind == "pt2" and not compiled:
            torch.export.save(program, path)
        elif kind == "pt2":
            with _one_line("torch cannot compile it", name, "leave the compiling out; `selkern doctor` shows why"):
                torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        elif kind == "executorch":
            with _one_line("ExecuTorch does not have all its operators", name, "export --to onnx"):
                path.write_bytes(_executorch(program))
        else:
            with _one_line("ONNX does not have all its operators", name, "export --to pt2"):
                names: dict[str, Any] = {"input_names": ["images"], "output_names": graph.outputs}
                made = torch.onnx.export(program, (), dynamo=True, verbose=False, opset_version=OPSET, **names)
                assert made is not None
                made.save(path.with_suffix(".onnx"), external_data=False)
            if kind == "openvino":
                with _one_line("OpenVINO does not have all its operators", name, "export --to onnx"):
                    _onnx_to_openvino(path, resizing=graph.preprocess is not None)


def _onnx_to_openvino(path: Path, *, resizing: bool) -> None:
    """The .onnx beside an .xml turned into it."""
    openvino = need("openvino", path.name)
    whole = path.with_suffix(".onnx")
    # In memory, as it splits a path at commas. What `read_model` gives NNCF quantises less of.
    network = openvino.convert_model(io.BytesIO(whole.read_bytes()))
    if resizing:
        antialiased(network)
    openvino.save_model(network, str(path), compress_to_fp16=False)
    whole.unlink()


def _executorch(program: torch.export.ExportedProgram) -> bytes:
    """A program for devices: by XNNPACK, a processor's, where that has the operators, and by portable ones."""
    exir = need("executorch.exir", "export --to executorch")
    xnnpack = need("executorch.backends.xnnpack.partition.xnnpack_partitioner", "export --to executorch")
    edge = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
    return bytes(edge.to_executorch().buffer)


@contextmanager
def _one_line(what: str, where: str, fix: str) -> Iterator[None]:
    """Within the block what an exporter raises, of any kind, becomes a UsageError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise UsageError(f"{what} ({first_line(error)[:200]})", where, fix) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block the exporters' own progress and warnings are not shown."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # with a graph that fails the whole of it is logged
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
