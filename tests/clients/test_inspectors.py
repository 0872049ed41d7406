"""Tools that look into a network, explain it, count it, shrink it.

One of them: `.venv-clients/bin/python -m pytest -m exhaustive tests/clients/test_inspectors.py -k grad_cam`.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from clients import client
from subjects import FEW, NETWORKS, Subject, assert_close, images, plain_copy, subjects, train
from torch import nn

import selkern


def branch_of(model: nn.Module) -> nn.Module:
    """The second branch of a network's last selective kernel: a module that people hook."""
    units = [m for m in model.modules() if isinstance(m, (selkern.SelectiveKernel, selkern.SKAttention))]
    last = units[-1]
    return last.branches[1] if isinstance(last, selkern.SelectiveKernel) else last.convs[1]


SELECTIVE = ("SelectiveKernel", "SKAttention", *NETWORKS)


@client("pytorch-grad-cam", "grad-cam", "GradCAM and EigenCAM on a branch of the last selective kernel: plain's maps")
@subjects(SELECTIVE)
def test_grad_cam_on_a_branch(subject: Subject) -> None:
    from pytorch_grad_cam import EigenCAM, GradCAM

    model = subject(training=False)
    x = nn.functional.interpolate(images(2)[0], scale_factor=3)  # the last maps have more than one position
    for kind in (GradCAM, EigenCAM):
        got, want = (kind(net, [branch_of(net)])(x, None) for net in (model, plain_copy(model)))
        assert got.shape == (2, 96, 96)
        assert np.ptp(got) > 0
        np.testing.assert_allclose(got, want, atol=1e-3)


@client("torchcam", "torchcam", "GradCAM and SmoothGradCAMpp on a branch, by forward and tensor hooks")
@subjects(SELECTIVE, ["default", "lean"])
def test_torchcam(subject: Subject) -> None:
    from torchcam.methods import GradCAM, SmoothGradCAMpp

    model = subject(training=False)
    x = images(1)[0]
    for kind in (GradCAM, SmoothGradCAMpp):
        with kind(model, branch_of(model)) as extractor:
            (cam,) = extractor(0, model(x))
        assert torch.isfinite(cam).all()


@client("Captum", "captum", "IntegratedGradients; LayerGradCam and LayerConductance on a branch")
@subjects(SELECTIVE)
def test_captum(subject: Subject) -> None:
    from captum.attr import IntegratedGradients, LayerConductance, LayerGradCam

    model = subject(training=False).double()
    plain = plain_copy(model)
    x = images(2)[0].double()
    attributions, delta = IntegratedGradients(model).attribute(x, target=1, n_steps=12, return_convergence_delta=True)
    want = IntegratedGradients(plain).attribute(x, target=1, n_steps=12)
    assert_close(attributions, want, 1e-6)
    assert torch.isfinite(delta).all()
    for kind in (LayerGradCam, LayerConductance):
        options: dict[str, Any] = {"n_steps": 6} if kind is LayerConductance else {}
        got, want = (kind(net, branch_of(net)).attribute(x, target=1, **options) for net in (model, plain))
        assert_close(got, want, 1e-6)


@client(
    "torchinfo",
    "torchinfo",
    "summary of a batch of one in training mode: every parameter counted",
)
@subjects()
def test_torchinfo(subject: Subject) -> None:
    from torchinfo import summary

    model = subject()
    result = summary(model, input_size=(1, 3, 96, 96), mode="train", verbose=0, device="cpu")
    assert result.total_params == sum(p.numel() for p in model.parameters())
    assert result.total_mult_adds > 0


@client("torchview", "torchview", "draw_graph: every layer of a selective kernel is a node")
@subjects(modes=["default"])
def test_torchview(subject: Subject) -> None:
    from torchview import draw_graph

    graph = draw_graph(subject(), input_size=(2, 3, 32, 32), expand_nested=True, device="cpu")
    text = "".join(graph.visual_graph.body)
    assert "Conv2d" in text


@client("fvcore", "fvcore", "FlopCountAnalysis by tracing: the multiply-adds of the convolutions and linear maps")
@subjects()
def test_fvcore_counts_what_the_convolutions_do(subject: Subject) -> None:
    from fvcore.nn import FlopCountAnalysis

    model = subject(training=False)
    x = images(1)[0]
    counted = FlopCountAnalysis(model, x).unsupported_ops_warnings(False).by_operator()
    want = 0

    def count(module: Any, _: Any, output: Any) -> None:
        nonlocal want
        want += output.numel() * module.weight[0].numel()

    for module in (twin := plain_copy(model)).modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    twin(x)
    assert counted["conv"] == want


@client(
    "torch-pruning",
    "torch-pruning",
    "takes a third of the channels by its dependency graph; it still trains",
)
@subjects(["SelectiveKernel", "SKAttention", "sknet_mini"], ["plain", "default", "lean"])
def test_torch_pruning(subject: Subject) -> None:
    import torch_pruning

    model = subject(training=False)
    x = images(2)[0]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 3]
    before = sum(p.numel() for p in model.parameters())
    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        x,
        importance=importance,
        pruning_ratio=0.34,
        ignored_layers=linear,
    )
    pruner.step()
    assert sum(p.numel() for p in model.parameters()) < before
    assert model(x).shape == (2, 3)
    losses = train(model.train())
    assert losses[-1] < losses[0]


@client("torchao", "torchao", "quantize_ to int8 weights of the linear maps; logits near float's")
@subjects(FEW, ["default"])
def test_torchao(subject: Subject) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = subject(training=False)
    x = images(4)[0]
    want = model(x)
    quantised = copy.deepcopy(model)
    quantize_(quantised, Int8WeightOnlyConfig())
    assert_close(quantised(x), want, 0.05)


@client("torchao PT2E", "torchao", "post-training quantisation of the exported network (x86): int8 logits near float's")
@subjects(FEW, ["default"])
def test_pt2e(subject: Subject) -> None:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    model = subject(training=False)
    x = images(4)[0]
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(model, (x,)).module(), quantizer)
    prepared(x)
    quantised = convert_pt2e(prepared)
    assert sum("dequantize_per" in str(node.target) for node in quantised.graph.nodes) > 2
    assert_close(quantised(x), model(x), 0.25)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR")
