"""Exporters and other runtimes: what they run is what eager mode computes, also for another batch size.

One of them: `.venv-clients/bin/pytest -m exhaustive tests/clients/test_exporters.py -k openvino`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clients import client
from subjects import FEW, Subject, assert_close, assert_same_gradients, gradients, images, subjects
from torch import Tensor, nn

jit: Any = torch.jit  # whose functions have no types


def settle(model: nn.Module) -> nn.Module:
    """Eval mode, with statistics that are not 0 and 1: a dropped norm would show."""
    model.train()(images(6, seed=5)[0])
    return model.eval()


def run_onnx(path: Path, x: Tensor) -> Tensor:
    """What ONNX Runtime computes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def assert_runs(run: Any, model: nn.Module) -> None:
    """Whether `run` computes what the model does, at batches of 2 and 5."""
    for count in (2, 5):
        x = images(count, seed=7)[0]
        with torch.no_grad():
            assert_close(run(x), model(x), 1e-4)


@client("torch.jit.trace", "torch", "traces with gradients on, runs another batch size, differentiates the trace")
@subjects()
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_trace_runs_other_batches_and_has_the_same_gradients(subject: Subject, training: bool) -> None:
    model = settle(subject()).double().train(training)
    traced = jit.trace(model, (images(3)[0].double(),), check_trace=not training)
    x, y = images(5, seed=2)
    x = x.double()
    assert_close(traced(x), model(x), 1e-8)
    assert_same_gradients(gradients(traced, x, y), gradients(model, x, y), 1e-6)


@client(
    "torch.onnx.export (dynamo=False)", "onnx", "exports with a free batch axis; ONNX Runtime runs batches of 2 and 5"
)
@subjects()
def test_onnx_by_tracing(subject: Subject, tmp_path: Path) -> None:
    model = settle(subject())
    axes = {"x": {0: "n"}, "y": {0: "n"}}
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model, (images(3)[0],), path, dynamo=False, input_names=["x"], output_names=["y"], dynamic_axes=axes
    )
    assert_runs(lambda x: run_onnx(path, x), model)


@client("torch.onnx.export (dynamo=True)", "onnxscript", "as above, through torch.export")
@subjects(modes=["default"])
def test_onnx_by_torch_export(subject: Subject, tmp_path: Path) -> None:
    model = settle(subject())
    path = tmp_path / "model.onnx"
    batch = torch.export.Dim("n", min=1, max=64)
    torch.onnx.export(model, (images(3)[0],), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    assert_runs(lambda x: run_onnx(path, x), model)


@client("OpenVINO", "openvino", "convert_model(module, example_input=...), compiled for the CPU, batches of 2 and 5")
@subjects()
def test_openvino_converts_a_module(subject: Subject) -> None:
    import openvino as ov

    model = settle(subject())
    converted = ov.convert_model(model, example_input=images(3)[0])
    compiled = ov.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert_runs(lambda x: torch.from_numpy(np.asarray(compiled(x.numpy())[0])), model)


@client("onnxslim", "onnxslim", "slims an exported network; ONNX Runtime computes the same")
@subjects(FEW, ["default"])
def test_onnxslim(subject: Subject, tmp_path: Path) -> None:
    import onnxslim

    model = settle(subject())
    path, slim = tmp_path / "model.onnx", tmp_path / "slim.onnx"
    batch = torch.export.Dim("n", min=1, max=64)
    torch.onnx.export(model, (images(3)[0],), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    onnxslim.slim(str(path), str(slim))
    assert_runs(lambda x: run_onnx(slim, x), model)
