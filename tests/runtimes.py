"""Modules exported and run by the runtimes of others; a test is skipped where one is not installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def by_onnxruntime(
    module: nn.Module, x: Tensor, path: Path, *, dynamo: bool, **free: Any
) -> Callable[[Tensor], Tensor]:
    """A module as ONNX Runtime computes it; `free` is what the exporter is given of the axes that may have any size."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.onnx.export(module, (x,), path, dynamo=dynamo, input_names=["x"], verbose=False, **free)
    session = runtime.InferenceSession(path)
    return lambda y: torch.from_numpy(session.run(None, {"x": y.numpy()})[0])


def by_openvino(model: Any, **options: Any) -> Callable[[Tensor], Tensor]:
    """A module or an exported program as OpenVINO computes it in float32; `options` are `convert_model`'s."""
    openvino = pytest.importorskip("openvino")
    hint = {"INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16 where the CPU has it
    network = openvino.compile_model(openvino.convert_model(model, **options), "CPU", hint)
    return lambda y: torch.from_numpy(network([y.numpy()])[0])
