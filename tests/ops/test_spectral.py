"""Convolutions by products of Fourier coefficients: equal to F.conv2d, forward and backward, however they are cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from parity import Tensors, assert_parity, output_and_gradients
from torch import Tensor
from torch.nn import functional as F

from selkern.ops.spectral import convolution as spectral
from selkern.ops.spectral import transform as spectral_transform
from selkern.ops.spectral.convolution import convolve, spectra, spectral_convolutions
from selkern.ops.spectral.plan import Axis, Plan, Tile, worthwhile

KERNELS = (1, 3, 5, 7)
SIZES = {"whole": (128, 16 << 20, 4 << 20), "pieces": (4, 3000, 2000), "single": (1, 1, 1)}


def plan_of(height: int, width: int, rows: int, columns: int, kernels: tuple[int, ...] = KERNELS) -> Plan:
    """Every kernel but 1 in so many tiles along H and along W."""
    tiles = (None if k == 1 else Tile(Axis(height, k, rows), Axis(width, k, columns)) for k in kernels)
    return Plan(kernels, tuple(tiles))


def inputs_of(
    n: int, i: int, o: int, height: int, width: int, kernels: Sequence[int], dtype: torch.dtype
) -> dict[str, Tensor]:
    x = {"x": torch.randn(n, i, height, width, dtype=dtype)}
    weights = {f"weight{m}": torch.randn(o, i, k, k, dtype=dtype) / (k * i**0.5) for m, k in enumerate(kernels)}
    return x | weights | {f"bias{m}": torch.randn(o, dtype=dtype) for m in range(len(kernels))}


def parameters_of(t: Tensors, m: int) -> tuple[list[Tensor], list[Tensor]]:
    return [t[f"weight{i}"] for i in range(m)], [t[f"bias{i}"] for i in range(m)]


def direct(t: Tensors, kernels: Sequence[int]) -> Tensor:
    parts = zip(*parameters_of(t, len(kernels)), kernels, strict=True)
    return torch.cat([F.conv2d(t["x"], w, b, padding=k // 2) for w, b, k in parts])


def by_plan(t: Tensors, plan: Plan) -> Tensor:
    return torch.cat(spectral_convolutions(t["x"], *parameters_of(t, len(plan.kernels)), plan))


def assert_same(t: dict[str, Tensor], plan: Plan) -> None:
    """Both forms, and every gradient."""
    assert_parity(lambda v: by_plan(v, plan), lambda v: direct(v, plan.kernels), t)
    weights, biases = parameters_of(t, len(plan.kernels))
    before = [v.clone() for v in t.values()]
    got, want = torch.cat(convolve(t["x"], spectra(weights, plan), biases, plan)), direct(t, plan.kernels)
    assert all(torch.equal(a, b) for a, b in zip(before, t.values(), strict=True))
    tolerance = 1e-12 if want.dtype == torch.float64 else 5e-6
    assert (got - want).abs().max() <= tolerance * want.abs().max()


@pytest.fixture(params=["whole", "pieces", "single"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How much is worked on at a time: all, a few tiles and slabs of channels, or one row of tiles."""
    rows, chunk, step = {"whole": (128, 16 << 20, 4 << 20), "pieces": (4, 3000, 2000), "single": (1, 1, 1)}[
        request.param
    ]
    monkeypatch.setattr(spectral, "LEAST_ROWS", rows)
    monkeypatch.setattr(spectral, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(spectral_transform, "STEP_BYTES", step)
    return str(request.param)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("counts", [(1, 1), (2, 2), (1, 3), (4, 1), (3, 5)], ids=str)
@pytest.mark.parametrize("size", [(7, 7), (5, 9), (2, 3), (1, 1), (12, 11)], ids=str)
def test_equal_to_conv2d_in_float64(size: tuple[int, int], counts: tuple[int, int]) -> None:
    height, width = size
    plan = plan_of(height, width, min(counts[0], height), min(counts[1], width))
    assert_same(inputs_of(2, 3, 5, height, width, KERNELS, torch.float64), plan)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("shape", [(50, 32, 7, 7), (4, 16, 28, 28), (1, 8, 40, 33)], ids=str)
def test_equal_to_conv2d_in_float32(shape: tuple[int, int, int, int], training: bool) -> None:
    wide = worthwhile((shape[0] * 8, 512, *shape[2:]), 512, KERNELS, training=training)  # tiles as for more channels
    assert wide is not None
    n, c, height, width = shape
    t = inputs_of(n, c, c + 1, height, width, KERNELS, torch.float32)
    got = output_and_gradients(lambda v: by_plan(v, wide), t)
    exact = output_and_gradients(lambda v: direct(v, KERNELS), {name: v.double() for name, v in t.items()})
    for name, want in exact.items():  # as a share of the largest: gradients of weights are long sums
        assert (got[name] - want).abs().max() <= 5e-6 * want.abs().max(), name


def test_more_slabs_than_one_with_default_sizes() -> None:
    assert_same(inputs_of(1, 80, 100, 14, 14, (7,), torch.float64), plan_of(14, 14, 2, 2, (7,)))


def test_a_plan_may_leave_out_any_branch_and_repeat_a_kernel() -> None:
    tile = Tile(Axis(6, 3, 1), Axis(6, 3, 2))
    for plan in (Plan((3, 3, 5), (tile, None, None)), Plan((3, 3), (tile, tile)), Plan((5,), (None,))):
        assert_same(inputs_of(2, 3, 4, 6, 6, plan.kernels, torch.float64), plan)


def test_second_layouts_and_views() -> None:
    plan, t = plan_of(6, 9, 2, 3), inputs_of(2, 4, 3, 6, 9, KERNELS, torch.float64)
    want = direct(t, KERNELS)
    last = t["x"].contiguous(memory_format=torch.channels_last)
    strided = torch.randn(2, 4, 12, 18, dtype=torch.float64)[:, :, ::2, ::2]
    strided.copy_(t["x"])
    weights, biases = parameters_of(t, 4)
    weights = [w.transpose(0, 1).contiguous().transpose(0, 1) for w in weights]
    for x in (last, strided):
        torch.testing.assert_close(torch.cat(spectral_convolutions(x, weights, biases, plan)), want)
        torch.testing.assert_close(torch.cat(convolve(x, spectra(weights, plan), biases, plan)), want)
    with torch.inference_mode():
        torch.testing.assert_close(torch.cat(spectral_convolutions(last, weights, biases, plan)), want)


def test_no_bias() -> None:
    plan, t = plan_of(6, 9, 1, 2), inputs_of(2, 4, 3, 6, 9, KERNELS, torch.float64)
    weights, none = parameters_of(t, 4)[0], [None] * 4
    want = [F.conv2d(t["x"], w, padding=k // 2) for w, k in zip(weights, KERNELS, strict=True)]
    torch.testing.assert_close(spectral_convolutions(t["x"], weights, none, plan), want)
    torch.testing.assert_close(convolve(t["x"], spectra(weights, plan), none, plan), want)


@pytest.mark.parametrize("counts", [(1, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("kernels", [(3,), (3, 5)], ids=str)
def test_finite_differences(kernels: tuple[int, ...], counts: tuple[int, int]) -> None:
    plan, t = plan_of(4, 3, *counts, kernels), inputs_of(2, 2, 2, 4, 3, kernels, torch.float64)

    def call(*values: Tensor) -> Tensor:
        return by_plan(dict(zip(t, values, strict=True)), plan)

    assert torch.autograd.gradcheck(call, [v.requires_grad_() for v in t.values()])


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("wanted", ["x", "weight1", "bias2", "weight0"])
def test_only_the_gradients_that_are_asked_for(wanted: str) -> None:
    plan, t = plan_of(6, 9, 2, 3), inputs_of(3, 4, 3, 6, 9, KERNELS, torch.float64)
    t[wanted].requires_grad_()
    g = torch.randn(12, 3, 6, 9, dtype=torch.float64)
    got, want = (torch.autograd.grad(f, t[wanted], g)[0] for f in (by_plan(t, plan), direct(t, KERNELS)))
    torch.testing.assert_close(got, want)


def test_branches_that_nothing_was_made_of() -> None:
    plan, t = plan_of(7, 7, 1, 1), inputs_of(2, 3, 4, 7, 7, KERNELS, torch.float64)
    for v in t.values():
        v.requires_grad_()
    spectral_convolutions(t["x"], *parameters_of(t, 4), plan)[2].sum().backward()  # type: ignore[no-untyped-call]
    got = t["x"].grad
    want = torch.autograd.grad(F.conv2d(t["x"], t["weight2"], t["bias2"], padding=2).sum(), t["x"])[0]
    assert got is not None and t["weight1"].grad is None and t["weight2"].grad is not None
    torch.testing.assert_close(got, want)


def test_saves_x_and_the_weights_and_nothing_else() -> None:
    plan, t = plan_of(7, 7, 1, 1), inputs_of(2, 3, 4, 7, 7, KERNELS, torch.float32)
    for v in t.values():
        v.requires_grad_()
    saved: list[Tensor] = []

    def keep(v: Tensor) -> Tensor:
        saved.append(v)
        return v

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda v: v):
        out = spectral_convolutions(t["x"], *parameters_of(t, 4), plan)
    assert {v.data_ptr() for v in saved} == {t[n].data_ptr() for n in t if not n.startswith("bias")}
    assert len(saved) == 2 + 4, "x for the 1 x 1 kernel, x for the others, four weights"
    del out


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "shape", [(1, 512, 7, 7), (2, 64, 7, 7), (50, 512, 1, 1), (1, 3, 224, 224), (0, 512, 7, 7)], ids=str
)
def test_not_worthwhile(shape: tuple[int, int, int, int], training: bool) -> None:
    assert worthwhile(shape, shape[1], KERNELS, training=training) is None


def test_what_worthwhile_depends_on() -> None:
    shape = (50, 512, 7, 7)
    plan = worthwhile(shape, 512, KERNELS, training=False)
    assert plan is not None and plan.tiles[0] is None and None not in plan.tiles[1:]
    assert 200 < plan.weights(512, 512) * 4 / 2**20 < 400
    assert worthwhile(shape, 512, (1,), training=False) is None
    assert worthwhile(shape, 512, KERNELS, training=False, groups=2) is None
    assert worthwhile(shape, 512, KERNELS, training=False, limit=50) is None
    small = worthwhile(shape, 512, KERNELS, training=False, limit=250)
    assert small is not None and small.weights(512, 512) * 4 <= 250 * 2**20
    assert worthwhile(shape, 512, KERNELS, training=True) is not None


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 28])
def test_sizes_of_a_tile(length: int, kernel: int) -> None:
    for count in range(1, length + 1):
        axis = Axis(length, kernel, count)
        tile = Tile(axis, axis)
        assert axis.write * count >= length
        matrices = spectral_transform.transforms(tile, torch.float64)
        assert [m.products for m in matrices] == [tile.products] * 3
        p = axis.period  # a real DFT's p^2 numbers: its own conjugates take one product, pairs of two take three
        assert tile.products <= 1.5 * p**2


def test_what_it_suits() -> None:
    x = torch.zeros(1, 2, 3, 3)
    assert spectral.suits(x) and spectral.suits(x.double())
    assert not any(spectral.suits(v) for v in (x.half(), x.to(torch.complex64), x.to("meta"), x[0]))
