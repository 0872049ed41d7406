"""`ops.select` against `ops.reference`, the paper's equations: forward, gradients and second gradients."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from parity import Function, Tensors, assert_parity
from torch import Tensor

from selkern.ops import reference, select

# (N, C, *space): batch 1, single positions, primes, one to three axes.
SHAPES = [(1, 1, 1), (1, 5, 1, 1), (2, 3, 1, 7), (1, 7, 13, 11), (3, 2, 5), (2, 4, 3, 2, 5), (5, 16, 8, 8)]
BRANCHES = [1, 2, 3, 4]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def maps_of(t: Tensors) -> list[Tensor]:
    return [value for name, value in t.items() if name.startswith("u")]


# The weights go in as logits, because `select` is promised only for weights that add up to 1.
def fast(t: Tensors) -> Tensor:
    return select.select(maps_of(t), t["logits"].softmax(dim=1))


def plain(t: Tensors) -> Tensor:
    return reference.select(maps_of(t), t["logits"].softmax(dim=1))


def make_inputs(shape: tuple[int, ...], branches: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    maps = {f"u{m}": torch.randn(shape).to(dtype) for m in range(branches)}
    return {**maps, "logits": 2 * torch.randn(shape[0], branches, shape[1]).to(dtype)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_select_is_equation_6(shape: tuple[int, ...], branches: int, dtype: torch.dtype) -> None:
    assert_parity(fast, plain, make_inputs(shape, branches, dtype), oracle=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fuse_is_equations_1_and_2(shape: tuple[int, ...], branches: int, dtype: torch.dtype) -> None:
    inputs = make_inputs(shape, branches, dtype)
    del inputs["logits"]
    ours: Function = lambda t: select.fuse(maps_of(t))  # noqa: E731 - named for its type
    assert_parity(ours, lambda t: reference.fuse(maps_of(t)), inputs, oracle=torch.float64)


@pytest.mark.parametrize("branches", BRANCHES)
def test_channels_last_in_channels_last_out(branches: int) -> None:
    inputs = make_inputs((2, 6, 5, 7), branches)
    for m in range(branches):
        inputs[f"u{m}"] = inputs[f"u{m}"].contiguous(memory_format=torch.channels_last)
    assert_parity(fast, plain, inputs)
    assert fast(inputs).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("branches", BRANCHES)
def test_views_with_odd_strides(branches: int) -> None:
    inputs = {n: v.mT if n.startswith("u") else v for n, v in make_inputs((2, 3, 5, 7), branches).items()}
    assert_parity(fast, plain, inputs)


@pytest.mark.parametrize("branches", BRANCHES)
def test_weights_of_0_and_1_give_one_branch_exactly(branches: int) -> None:
    inputs = make_inputs((2, 3, 4, 5), branches)
    maps = maps_of(inputs)
    for m in range(branches):
        one_hot = torch.zeros(2, branches, 3, dtype=torch.float64)
        one_hot[:, m] = 1
        assert torch.equal(select.select(maps, one_hot), maps[m])


@pytest.mark.parametrize("branches", [2, 3])
def test_float32_weights_leave_the_maps_dtype(branches: int) -> None:
    inputs = make_inputs((2, 3, 4, 5), branches, torch.bfloat16)
    v = select.select(maps_of(inputs), inputs["logits"].float().softmax(dim=1))
    assert v.dtype == torch.bfloat16
    exact = reference.select([u.double() for u in maps_of(inputs)], inputs["logits"].double().softmax(dim=1))
    torch.testing.assert_close(v.double(), exact, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("shape", [(2, 2, 3), (1, 2, 1, 1), (1, 1, 2, 1, 3)], ids=str)
@pytest.mark.parametrize("branches", BRANCHES)
def test_first_and_second_gradients_match_finite_differences(shape: tuple[int, ...], branches: int) -> None:
    inputs = make_inputs(shape, branches)
    values = [v.requires_grad_() for v in inputs.values()]

    def unit(*tensors: Tensor) -> Tensor:
        t = dict(zip(inputs, tensors, strict=True))
        return fast(t) * select.fuse(maps_of(t)).reshape(shape[:2] + (1,) * (len(shape) - 2))

    assert torch.autograd.gradcheck(unit, values)
    assert torch.autograd.gradgradcheck(unit, values, fast_mode=True)


def branches_swapped(t: Tensors) -> Tensor:
    return select.select(maps_of(t)[::-1], t["logits"].softmax(dim=1))


def softmax_over_batch(t: Tensors) -> Tensor:
    return select.select(maps_of(t), t["logits"].softmax(dim=0))


def weights_not_trained(t: Tensors) -> Tensor:
    return select.select(maps_of(t), t["logits"].softmax(dim=1).detach()) + 0 * t["logits"].sum()


def input_overwritten(t: Tensors) -> Tensor:
    v = fast(t)
    t["u0"].data.mul_(2)
    return v


class _GrowsOnBackward(torch.autograd.Function):
    """Identity whose gradient is another one each time that backward runs."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.calls = 0  # type: ignore[attr-defined]
        return x.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        ctx.calls += 1  # type: ignore[attr-defined]
        return grads[0] * ctx.calls  # type: ignore[attr-defined]


def second_backward_differs(t: Tensors) -> Tensor:
    return _GrowsOnBackward.apply(fast(t))  # type: ignore[no-untyped-call]


SABOTAGE = [
    branches_swapped,
    softmax_over_batch,
    weights_not_trained,
    input_overwritten,
    second_backward_differs,
]


@pytest.mark.parametrize("broken", SABOTAGE)
@pytest.mark.parametrize("branches", [2, 3])
def test_the_comparison_catches_a_broken_select(broken: Function, branches: int) -> None:
    with pytest.raises(AssertionError):
        assert_parity(broken, plain, make_inputs((3, 5, 4, 4), branches))


def test_the_whole_reference_unit_is_its_parts() -> None:
    x, w1, w2 = torch.randn(2, 4, 6, 6), torch.randn(3, 4), torch.randn(2, 4, 3)
    convs = [torch.nn.Conv2d(4, 4, k, padding=k // 2) for k in (3, 5)]
    branches: Sequence[reference.Map] = [torch.nn.Sequential(c, torch.nn.ReLU()) for c in convs]
    v, a = reference.selective_kernel(x, branches, w1, lambda z: z * 2 + 1, torch.relu, w2)
    u = [c(x).relu() for c in convs]
    s = (u[0] + u[1]).mean(dim=(2, 3))
    z = ((s @ w1.T) * 2 + 1).relu()
    e = [(z @ w2[m].T).exp() for m in range(2)]
    share = e[1] / (e[0] + e[1])
    torch.testing.assert_close(a[:, 1], share)
    torch.testing.assert_close(v, (1 - share)[:, :, None, None] * u[0] + share[:, :, None, None] * u[1])
