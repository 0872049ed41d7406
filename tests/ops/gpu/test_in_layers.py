"""`SelectiveKernel` with our kernels is `SelectiveKernel` without them: alone, compiled, under autocast and DDP."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="no kernels without Triton")

import selkern
from selkern.layers.selective_kernel import SelectiveKernel
from selkern.ops import kernels
from selkern.ops.triton import convolution, fuse_select

Runs = list[str]


@pytest.fixture
def runs(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    """Which of our kernels' functions have run, with kernels asked for."""
    assert interpreted is None
    ran: Runs = []

    def noted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            ran.append(name)
            return real(*given, **named)

        return run

    for module, name in ((convolution, "convolve"), (fuse_select, "fuse"), (fuse_select, "select")):
        monkeypatch.setattr(module, name, noted(name, getattr(module, name)))
    monkeypatch.setattr(kernels, "_asked", "triton")
    yield ran


def plainly(layer: nn.Module) -> nn.Module:
    """A copy that autograd's own way computes, in float64."""
    return selkern.set_memory(copy.deepcopy(layer), "plain").double()


def step(layer: nn.Module, x: Tensor, dv: Tensor) -> dict[str, Tensor]:
    """V, the gradients of x and all parameters, and the buffers afterwards."""
    x = x.detach().clone().requires_grad_()
    v = layer(x)
    v.backward(dv)
    assert x.grad is not None
    result = {"V": v.detach(), "x": x.grad}
    result |= {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return result | {f"buffer {name}": b.clone() for name, b in layer.named_buffers()}


def make(**options: object) -> tuple[SelectiveKernel, Tensor]:
    torch.manual_seed(0)
    layer = SelectiveKernel(8, 12, groups=2, reduction=2, min_width=4, **options)  # type: ignore[arg-type]
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return layer, torch.randn(3, 8, 7, 5)


@pytest.mark.share(2)
@pytest.mark.parametrize("options", [{}, {"kernels": (1, 3, 5)}, {"stride": 2}], ids=["2", "3", "stride"])
@pytest.mark.parametrize("training", [True, False])
def test_every_figure_is_that_of_the_plain_way(options: dict[str, object], training: bool, runs: Runs) -> None:
    layer, x = make(**options)
    layer.train(training)
    expected = plainly(layer)
    dv = torch.randn_like(layer(x))
    layer.load_state_dict({name: value.float() for name, value in expected.state_dict().items()})
    layer.zero_grad()
    runs.clear()
    result, right = step(layer, x, dv), step(expected, x.double(), dv.double())
    assert runs == ["convolve", "fuse", "select"]
    assert result.keys() == right.keys()
    for name, value in right.items():
        torch.testing.assert_close(result[name].double(), value.double(), rtol=2e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_without_gradients(training: bool, runs: Runs) -> None:
    layer, x = make()
    expected = plainly(layer).train(training)
    with torch.no_grad():
        torch.testing.assert_close(layer.train(training)(x).double(), expected(x.double()), rtol=1e-4, atol=1e-5)
    assert runs == ["convolve", "fuse", "select"]


def test_compiled_it_is_the_same(runs: Runs) -> None:
    layer, x = make()
    other = copy.deepcopy(layer)
    dv = torch.randn(3, 12, 7, 5)
    eager = step(layer, x, dv)
    runs.clear()
    other.compile(backend="aot_eager", fullgraph=True)
    compiled = step(other, x, dv)
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_autocast(runs: Runs) -> None:
    """bfloat16 maps, as the plain way has them; the figures agree as far as that type goes."""
    layer, x = make()
    other = copy.deepcopy(layer)
    with torch.autocast("cpu", torch.bfloat16):
        v = layer(x)
        kernels.set_kernels("plain")
        expected = other(x)
    assert runs == ["convolve", "fuse", "select"]
    assert v.dtype == expected.dtype == torch.bfloat16
    v.float().square().mean().backward()
    expected.float().square().mean().backward()
    for (name, parameter), twin in zip(layer.named_parameters(), other.parameters(), strict=True):
        assert parameter.grad is not None
        assert twin.grad is not None
        assert parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad, twin.grad, rtol=0.1, atol=0.02, msg=name)


def test_ddp(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    layer, x = make()
    dv = torch.randn(3, 12, 7, 5)
    expected = step(copy.deepcopy(layer), x, dv)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        result = step(nn.parallel.DistributedDataParallel(layer), x, dv)
    finally:
        torch.distributed.destroy_process_group()
    assert runs[:3] == ["convolve", "fuse", "select"]
    for name, value in expected.items():
        (same,) = (got for key, got in result.items() if key.replace("module.", "") == name)
        torch.testing.assert_close(same, value, rtol=1e-6, atol=1e-7, msg=name)


def test_record_sees_the_selection(runs: Runs) -> None:
    layer, x = make()
    with selkern.record(layer) as selection:
        layer(x)
    (a,) = selection.values()
    torch.testing.assert_close(a.sum(dim=1), torch.ones(3, 12))
    assert runs == ["convolve", "fuse", "select"]


def test_what_the_kernels_cannot_do_is_done_without_them(runs: Runs) -> None:
    x = torch.randn(2, 8, 7, 5)
    for options in ({"norm": "group"}, {"activation": "gelu"}, {"memory": "plain"}):
        SelectiveKernel(8, groups=2, **options)(x)  # type: ignore[arg-type]
    SelectiveKernel(8, groups=2, dims=1)(x[..., 0])
    hooked = SelectiveKernel(8, groups=2)
    hooked.branches[0].register_forward_hook(lambda *_: None)
    hooked(x)
    SelectiveKernel(8, groups=2).double()(x.double())
    assert runs == []
    SelectiveKernel(8, kernels=(3, selkern.Branch(3, groups=4)), groups=2)(x)
    SelectiveKernel(8, groups=2, bias=True)(x)
    watched = SelectiveKernel(8, groups=2)
    seen: list[nn.Module] = []
    watched.branches[1].conv.register_forward_hook(lambda conv, *_: seen.append(conv))  # type: ignore[union-attr]
    watched(x)
    assert seen == [watched.branches[1].conv]
    assert runs == ["fuse", "select"] * 3, "PyTorch's convolutions: groups that differ, biases, hooks"


def test_the_switch(monkeypatch: pytest.MonkeyPatch, interpreted: None) -> None:
    assert interpreted is None
    x = torch.randn(1)
    monkeypatch.setattr(kernels, "_asked", None)
    monkeypatch.setenv("SELKERN_KERNELS", "triton")
    assert kernels.is_chosen("fuse_select", x)
    assert not kernels.is_chosen("fuse_select", x.double())
    monkeypatch.setenv("SELKERN_KERNELS", "auto")
    assert not kernels.is_chosen("fuse_select", x), "where nothing was measured, nothing is taken"
    selkern.set_kernels("triton")
    assert kernels.is_chosen("convolution", x), "what the program says stands above the environment"
    selkern.set_kernels("plain")
    assert not kernels.is_chosen("convolution", x)
    with pytest.raises(ValueError, match="kernels must be one of auto, plain, triton, got 'cuda'"):
        selkern.set_kernels("cuda")  # type: ignore[arg-type]
    monkeypatch.setattr(kernels, "_asked", None)
    monkeypatch.setenv("SELKERN_KERNELS", "fast")
    with pytest.raises(ValueError, match="SELKERN_KERNELS must be one of"):
        kernels.is_chosen("convolution", x)


def test_the_cpu_has_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_asked", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not kernels.is_chosen("fuse_select", torch.randn(1))
