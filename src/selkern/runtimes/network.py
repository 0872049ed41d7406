"""An exported network as a module, computed by the runtime of its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from selkern.data.preprocess import Preprocess
from selkern.errors import CheckpointError, UsageError, last_line
from selkern.runtimes.files import BATCH, KEY, RUNNABLE, ExportCard, digest, format_of, need, require_undamaged

Precision = Literal["f32", "bf16"]  # of OpenVINO's arithmetic
Function = Callable[[NDArray[Any]], list[NDArray[Any]]]


class ExportedNetwork(nn.Module):
    """(N, C, H, W) to logits (N, K) by ONNX Runtime or OpenVINO, on CPU threads as many as torch has.

    Args:
        path: .onnx or .xml, with a .bin beside it.
        precision: of OpenVINO's arithmetic where the file holds float32; its own default is bfloat16 on some CPUs.
        batch: images of every pass, which a runtime plans for: OpenVINO is about a tenth faster then; None takes any
            number.

    Attributes:
        card: what the file says about itself; None of a file that `selkern.export` did not write.

    Raises:
        CheckpointError: no such file, or a damaged one.
        PackageError: the runtime is not installed.
        UsageError: a suffix of no runtime, or a .pt2, which may hold pickled objects.
    """

    def __init__(self, path: str | Path, precision: Precision = "f32", batch: int | None = None) -> None:
        super().__init__()
        self.path = Path(path)
        kind = format_of(self.path)
        if self.path.suffix not in RUNNABLE:
            fix = "export --to onnx; torch.export.load opens it where you trust it"
            raise UsageError("may hold pickled objects, which are code", str(path), fix)
        if not self.path.is_file():
            raise CheckpointError("no such file", str(path), "check the path")
        need("onnxruntime" if kind == "onnx" else "openvino", str(path))
        require_undamaged(self.path)
        try:
            text, self._run = (_open_onnx if kind == "onnx" else _open_openvino)(self.path, precision, batch)
        except Exception as error:  # of each runtime its own kinds
            what = f"cannot be opened ({last_line(error)[:200]})"
            raise CheckpointError(what, str(path), "export the network again") from error
        self.card = ExportCard.from_json(text, str(path)) if text else None
        if self.card is not None and self.card.weights_sha256:
            weights = self.path.with_suffix(".bin")
            if digest(weights) != self.card.weights_sha256:
                raise CheckpointError(
                    "is damaged, or belongs to another .xml", str(weights), "export the network again"
                )

    def outputs(self, x: Tensor) -> list[Tensor]:
        """Logits, then the selections where the file has them, of images in the layout that the file takes.

        Raises:
            UsageError: images of a shape that the file does not take.
        """
        try:
            arrays = self._run(x.detach().cpu().contiguous().numpy())
        except Exception as error:  # of each runtime its own kinds
            takes = "" if self.card is None else f"; it takes {' x '.join(map(str, self.card.images))}"
            what, fix = f"does not run on {tuple(x.shape)}{takes}", f"give such images ({last_line(error)[:200]})"
            raise UsageError(what, str(self.path), fix) from error
        return [torch.from_numpy(np.array(array, copy=not array.flags.writeable)) for array in arrays]

    def forward(self, x: Tensor) -> Tensor:
        """Normalised (N, C, H, W) to (N, K), whatever layout the file takes."""
        inside = None
        if self.card is not None and self.card.layout == "NHWC":
            inside = Preprocess.from_dict(self.card.network.preprocess)
        logits = self.outputs(as_entering(x, inside))[0]
        if self.card is not None and logits.shape[1:] != (classes := len(self.card.network.classes),):
            what = f"gives {tuple(logits.shape[1:])} numbers an image, and names {classes} classes"
            raise CheckpointError(what, str(self.path), "export the network again")
        return logits


def as_entering(x: Tensor, inside: Preprocess | None) -> Tensor:
    """Normalised images (N, C, H, W) as the graph takes them.

    Args:
        x: of the network's size.
        inside: what the graph does to images; it gets the grey levels that `x` was made of, in the middle of as many
            pixels as it crops without resizing, so that the network sees `x`. None where it takes `x` as it is.
    """
    if inside is None:
        return x.cpu()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (inside.mean, inside.std))
    levels = ((x.cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    before = (inside.target - inside.size) // 2
    after = inside.target - inside.size - before
    return functional.pad(levels, (before, after, before, after)).permute(0, 2, 3, 1).contiguous()


def _open_onnx(path: Path, _precision: Precision, batch: int | None) -> tuple[str, Function]:
    session = _session(str(path), batch)
    return session.get_modelmeta().custom_metadata_map.get(KEY, ""), _run_by(session)


def _open_openvino(path: Path, precision: Precision, batch: int | None) -> tuple[str, Function]:
    with path.open("rb") as file:
        if b"<net " not in file.read(1000):  # anything else is offered to the readers of other formats, which print
            raise ValueError("not a network of OpenVINO")
    model = need("openvino", str(path)).Core().read_model(str(path))
    text = model.get_rt_info([KEY, "card"]).value if model.has_rt_info([KEY, "card"]) else ""
    if batch is not None:
        shape = model.input(0).partial_shape
        shape[0] = batch
        model.reshape(shape)
    return str(text), function_of(model, precision)


def function_of(model: Any, precision: Precision = "f32") -> Function:
    """A network of ONNX or OpenVINO, compiled or not, as a function of one array to its outputs."""
    if hasattr(model, "SerializeToString"):
        return _run_by(_session(model.SerializeToString()))
    if not hasattr(model, "create_infer_request"):  # not compiled yet
        hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        model = need("openvino", "OpenVINO").compile_model(model, "CPU", hints)

    def run(x: NDArray[Any]) -> list[NDArray[Any]]:
        results = model([x])
        return [results[output] for output in model.outputs]

    return run


def _session(model: str | bytes, batch: int | None = None) -> Any:
    runtime = need("onnxruntime", "ONNX Runtime")
    options = runtime.SessionOptions()
    if batch is not None:
        options.add_free_dimension_override_by_name(BATCH, batch)
    options.intra_op_num_threads = torch.get_num_threads()
    # Else its threads go on spinning after a pass, and what runs next is slower by a third (docs/log.md).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run_by(session: Any) -> Function:
    name = session.get_inputs()[0].name
    return lambda x: list(session.run(None, {name: x}))
