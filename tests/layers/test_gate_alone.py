"""A batch of one image in training: the gate's BatchNorm, which sees one descriptor, takes its running statistics."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from selkern import SelectiveKernel, SKFusion, create_model, set_memory
from selkern.layers import parts
from selkern.layers.gate import Gate

MAKE: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "gate": (lambda: Gate(32, 2), torch.randn(1, 32)),
    "1d": (lambda: SelectiveKernel(32, dims=1), torch.randn(1, 32, 6)),
    "2d": (lambda: SelectiveKernel(32), torch.randn(1, 32, 5, 4)),
    "fusion": (lambda: SKFusion(32), [torch.randn(1, 32, 4, 3), torch.randn(1, 32, 4, 3)]),
    "sknet_mini": (lambda: create_model("sknet_mini", num_classes=3), torch.randn(1, 3, 32, 32)),
    "sk_shufflenet": (lambda: create_model("sk_shufflenet_v2_x05", num_classes=3), torch.randn(1, 3, 64, 64)),
    "skresnet18": (lambda: create_model("skresnet18", num_classes=3), torch.randn(1, 3, 64, 64)),
}


@pytest.fixture(autouse=True)
def _nothing_said_yet() -> Iterator[None]:
    parts._warn_once.cache_clear()
    yield
    parts._warn_once.cache_clear()


def with_statistics(make: Callable[[], nn.Module]) -> nn.Module:
    """A module in training whose gates have running statistics that are not those of the beginning."""
    module = make().train()
    for gate in (m for m in module.modules() if isinstance(m, Gate)):
        assert isinstance(gate.norm, nn.BatchNorm1d)
        assert gate.norm.running_mean is not None
        assert gate.norm.running_var is not None
        gate.norm.running_mean.normal_(std=0.01)
        gate.norm.running_var.uniform_(0.5, 2)
    return module


@pytest.mark.parametrize("memory", ["plain", "default", "lean"])
@pytest.mark.parametrize(("make", "x"), MAKE.values(), ids=MAKE.keys())
def test_one_image_trains_with_the_gates_running_statistics_and_leaves_them(
    make: Callable[[], nn.Module], x: Any, memory: Any
) -> None:
    module = set_memory(with_statistics(make), memory)
    want = copy.deepcopy(module)
    gates = [(m, w) for m, w in zip(module.modules(), want.modules(), strict=True) if isinstance(m, Gate)]
    for _, gate in gates:
        gate.get_submodule("norm").eval()
    with pytest.warns(UserWarning, match="batch of 1 image in training.*gate_norm='group'"):
        y = module(x)
    assert torch.equal(y, want(x))
    for out in (y, want(x)):
        out.square().sum().backward()
    for (name, p), q in zip(module.named_parameters(), want.named_parameters(), strict=True):
        assert p.grad is not None, name
        torch.testing.assert_close(p.grad, q[1].grad, msg=name)
    for gate, other in gates:
        assert gate.norm.training
        assert all(torch.equal(a, b) for a, b in zip(gate.buffers(), other.buffers(), strict=True))


def test_a_norm_that_keeps_no_statistics_says_what_to_do() -> None:
    gate = Gate(32, 2, norm=lambda channels: nn.BatchNorm1d(channels, track_running_stats=False))
    with pytest.raises(ValueError, match=r"the gate of .* cannot train on a batch of 1 here.*gate_norm="):
        gate(torch.randn(1, 32))


def test_the_warning_is_said_once_and_two_images_need_none() -> None:
    gate = Gate(32, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gate(torch.randn(2, 32))
        assert not caught
        for _ in range(3):
            gate(torch.randn(1, 32))
    assert [warning.category for warning in caught] == [UserWarning]


def test_one_image_goes_through_a_compiled_gate_and_two_after_it() -> None:
    gate = with_statistics(lambda: Gate(32, 2))
    want = copy.deepcopy(gate)
    compiled = torch.compile(gate, fullgraph=True, backend="eager")
    with pytest.warns(UserWarning, match="batch of 1 image"):
        got = compiled(torch.ones(1, 32))
    assert torch.equal(got, want(torch.ones(1, 32)))
    x = torch.randn(2, 32)
    assert torch.equal(compiled(x), want(x))
    assert all(torch.equal(a, b) for a, b in zip(gate.buffers(), want.buffers(), strict=True))


def test_one_image_is_traced_in_training() -> None:
    gate = with_statistics(lambda: Gate(32, 2))
    x = torch.randn(1, 32)
    with pytest.warns() as caught:
        traced = torch.jit.trace(gate, x, check_trace=False)  # type: ignore[no-untyped-call]
    assert {warning.category for warning in caught} <= {UserWarning, DeprecationWarning}
    assert torch.equal(traced(x), gate(x))


def test_a_norm_of_synchronised_statistics_is_asked_itself_where_processes_are_joined(tmp_path: Any) -> None:
    gate = Gate(32, 2, norm=nn.SyncBatchNorm)
    assert parts._has_one_value(gate.norm, torch.ones(1, 32))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        assert not parts._has_one_value(gate.norm, torch.ones(1, 32))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_a_norm_of_maps_is_refused_for_the_gate_where_it_is_made(norm: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=f"{norm.__name__} does not take a gate's descriptor .*give gate_norm="):
        SelectiveKernel(8, groups=2, norm=norm)
