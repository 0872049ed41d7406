"""torch's tracers, compilers and feature extractors that take a network apart.

One of them: `.venv-clients/bin/python -m pytest -m exhaustive tests/clients/test_graphs.py -k feature_extractor`.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from clients import client
from subjects import (
    FEW,
    LAYERS,
    NETWORKS,
    Subject,
    assert_close,
    assert_same_gradients,
    gradients,
    images,
    loss_of,
    plain_copy,
    subjects,
)
from torch import Tensor, nn


def settled(subject: Subject) -> Any:
    """In eval mode, with statistics that are not 0 and 1."""
    model = subject()
    model(images(6, seed=5)[0])
    return model.eval()


@client("torch.export", "torch", "exports with a free batch size, saves, loads, runs batches of 2 and 5")
@subjects([*LAYERS, "sknet_mini", "sk_shufflenet_v2_x05"], ["default"])
def test_torch_export(subject: Subject, tmp_path: Path) -> None:
    model = settled(subject)
    batch = torch.export.Dim("n", min=1, max=64)
    program = torch.export.export(model, (images(3)[0],), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for count in (2, 5):
        x = images(count, seed=4)[0]
        assert_close(loaded(x), model(x))


@client(
    "torch.compile",
    "torch",
    "a training step without graph breaks (aot_eager; inductor for the layers): plain's gradients",
)
@subjects([*FEW])
def test_compiled_training_step(subject: Subject) -> None:
    torch.compiler.reset()
    model = subject()
    plain, (x, y) = plain_copy(model), images(4)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.autograd.backward(loss_of(compiled, x, y))
    assert_same_gradients({n: p.grad for n, p in model.named_parameters()}, gradients(plain, x, y), 1e-3)


@client("torch.compile", "torch", "")
@subjects(["SelectiveKernel", "SKAttention"], ["default"])
def test_training_step_by_inductor(subject: Subject) -> None:
    torch.compiler.reset()
    model = subject()
    plain, (x, y) = plain_copy(model), images(4)
    torch.autograd.backward(loss_of(torch.compile(model), x, y))  # type: ignore[arg-type]
    assert_same_gradients({n: p.grad for n, p in model.named_parameters()}, gradients(plain, x, y), 1e-3)


@client(
    "torch.fx", "torch", "symbolic_trace, in both modes: another batch size, gradients; convolutions and norms fused"
)
@subjects()
def test_fx_symbolic_trace(subject: Subject) -> None:
    from torch.fx.experimental.optimization import fuse

    model = settled(subject)
    x, y = images(5)
    want = model(x)
    assert_close(torch.fx.symbolic_trace(model)(x), want)
    assert_close(fuse(copy.deepcopy(model))(x), want, 1e-3)
    model.double().train()
    traced = torch.fx.symbolic_trace(copy.deepcopy(model))
    assert_same_gradients(gradients(traced, x.double(), y), gradients(plain_copy(model), x.double(), y), 1e-6)


@client(
    "FX quantisation", "torch", "torch.ao.quantization: prepare_fx, calibrate, convert_fx; int8 logits near float's"
)
@subjects(FEW, ["default"])
def test_fx_quantisation(subject: Subject) -> None:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    model = settled(subject)
    x = images(6)[0]
    prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    quantised = convert_fx(prepared)
    assert any("quantized" in type(module).__module__ for module in quantised.modules())
    assert_close(quantised(x), model(x), 0.25)


@client(
    "torchvision create_feature_extractor",
    "torchvision",
    "two maps from within a network, in both modes, with gradients",
)
@subjects(NETWORKS)
def test_create_feature_extractor(subject: Subject) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    model = settled(subject)
    nodes = get_graph_node_names(model)[1]
    assert any(node.startswith("stages.1") for node in nodes)
    last = {stage: next(n for n in reversed(nodes) if n.startswith(f"stages.{stage}.")) for stage in (0, 1)}
    extractor = create_feature_extractor(model, {node: f"map{stage}" for stage, node in last.items()})
    x = images(2)[0]
    maps, want = extractor(x), model.forward_features(x)
    assert_close(maps["map0"], next(m for m in want if m.shape == maps["map0"].shape))
    extractor.train()
    torch.autograd.backward(sum(m.square().mean() for m in extractor(x).values()))
    assert next(extractor.parameters()).grad is not None


@client("torchvision IntermediateLayerGetter", "torchvision", "the maps of stages, by name")
@subjects(NETWORKS)
def test_intermediate_layer_getter(subject: Subject) -> None:
    from torchvision.models._utils import IntermediateLayerGetter

    model = settled(subject)
    last = f"{len(model.stages) - 1}"
    getter = IntermediateLayerGetter(model, {"stem": "low", "stages": "high"})
    x = images(2)[0]
    maps = getter(x)
    assert maps["low"].shape[1] == model.feature_info[0].channels
    assert maps["high"].shape[1] == model.feature_info[-1].channels
    assert last in dict(model.stages.named_children())
    assert_close(maps["high"], model.forward_features(x)[-1])


@client("torchvision BackboneWithFPN", "torchvision", "a pyramid over two maps of a network, trained one step")
@subjects(NETWORKS)
def test_backbone_with_fpn(subject: Subject) -> None:
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    model = subject()
    channels = [model.feature_info[0].channels, model.feature_info[-1].channels]
    pyramid = BackboneWithFPN(model, {"stem": "low", "stages": "high"}, channels, 16)
    maps = pyramid(images(4)[0])
    assert [*maps] == ["low", "high", "pool"]
    assert all(m.shape[1] == 16 for m in maps.values())
    torch.autograd.backward(sum(m.square().mean() for m in maps.values()))
    assert all(p.grad is not None for p in pyramid.body.parameters())


@client(
    "TensorBoard", "tensorboard", "add_graph of a network in training: the graph is in the file, the network as before"
)
@subjects()
def test_tensorboard_add_graph(subject: Subject, tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    model = subject()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with SummaryWriter(str(tmp_path)) as writer:
            writer.add_graph(model, images(3)[0])
    (file,) = tmp_path.glob("events*")
    assert file.read_bytes().count(b"aten::_convolution") >= sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert model.training
    assert isinstance(model(images(2)[0]), Tensor)
