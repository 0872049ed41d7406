"""The kernels of Fuse and Select, with everything around them, against the paper's equations in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, library, nn

from selkern.layers.parts import batch_norm_of
from selkern.layers.selective_kernel import SelectiveKernel
from selkern.ops import recompute, reference

pytest.importorskip("triton", reason="no kernels without Triton")
from selkern.ops.triton import fuse_select

pytestmark = pytest.mark.usefixtures("interpreted")


@dataclass(frozen=True)
class Case:
    """Maps, and the mode of the norms that they go through."""

    shape: tuple[int, int, int, int] = (2, 12, 5, 7)
    branches: int = 2
    dtype: torch.dtype = torch.float32
    channels_last: tuple[bool, ...] = (True, True, True, True)  # of every branch
    training: bool = True
    affine: bool = True
    gate_norm: str = "batch"


# A few roundings; in float32 also of sums of some hundred numbers.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2 * 2**-10, torch.bfloat16: 2 * 2**-7}
MANY = Case(shape=(2, 132, 9, 7))  # samples, splits and blocks of channels: two of each
CASES = {
    "splits and blocks": MANY,
    "three": Case(shape=(3, 20, 5, 7), branches=3),
    "four": Case(shape=(2, 5, 3, 3), branches=4),
    "one": Case(branches=1),
    "contiguous": Case(shape=(3, 20, 5, 7), channels_last=(False,) * 4),
    "contiguous splits": Case(shape=(1, 3, 90, 91), channels_last=(False,) * 4, gate_norm="none"),
    "mixed": Case(branches=3, channels_last=(True, False, True)),
    "mixed, contiguous first": Case(channels_last=(False, True)),
    "one sample": Case(shape=(1, 12, 23, 21), gate_norm="none"),
    "one pixel": Case(shape=(3, 20, 1, 1)),
    "eval": replace(MANY, training=False),
    "no affine": Case(affine=False),
    "no affine, eval": Case(affine=False, training=False),
    "bfloat16": replace(MANY, dtype=torch.bfloat16),
    "float16": Case(shape=(3, 20, 5, 7), branches=3, dtype=torch.float16),
    "bfloat16, eval": Case(dtype=torch.bfloat16, training=False),
}


def make(case: Case) -> tuple[SelectiveKernel, list[Tensor]]:
    """A float32 unit whose numbers are all away from their initial values, and maps for it."""
    norm, gate_norm = partial(nn.BatchNorm2d, affine=case.affine), cast(Any, case.gate_norm)
    kernels = (3, 5, 7, 9)[: case.branches]
    unit = SelectiveKernel(case.shape[1], kernels=kernels, groups=1, norm=norm, gate_norm=gate_norm)
    with torch.no_grad():
        for name, tensor in [*unit.named_parameters(), *unit.named_buffers()]:
            if "gate.fc" in name:
                tensor.normal_(std=0.2)  # else the selection is the same everywhere
            elif "norm" in name and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if "var" in name else tensor.normal_(0.3)
    unit.train(case.training)
    if unit.gate is not None:
        unit.gate.eval()  # statistics of two or three samples would magnify rounding beyond all measure
    y = []
    for m in range(case.branches):
        maps = (1.5 * torch.randn(case.shape) + 0.5 * m).to(case.dtype)
        memory_format = torch.channels_last if case.channels_last[m] else torch.contiguous_format
        y.append(maps.to(memory_format=memory_format).requires_grad_())
    return unit, y


def by_kernels(unit: SelectiveKernel, y: list[Tensor], known: bool = False) -> tuple[Tensor, Tensor]:
    """s and V of the unit from its convolutions' outputs."""
    norms = [batch_norm_of(branch.norm, y_m, "a test") for branch, y_m in zip(branches(unit), y, strict=True)]
    assert fuse_select.is_supported(y, norms)
    statistics = None
    if known:
        stacked = torch.stack([y_m.detach().float() for y_m in y])
        statistics = (stacked.mean((1, 3, 4)), stacked.var((1, 3, 4), unbiased=False))
    s_NC, state = fuse_select.fuse(norms, y, statistics)
    return s_NC, fuse_select.select(state, selection(unit, s_NC.float()))


def by_equations(unit: SelectiveKernel, y: list[Tensor]) -> tuple[Tensor, Tensor]:
    u = [branch.act(branch.norm(y_m)) for branch, y_m in zip(branches(unit), y, strict=True)]
    s_NC = reference.fuse(u)
    return s_NC, reference.select(u, selection(unit, s_NC))


def branches(unit: SelectiveKernel) -> list[Any]:
    return list(unit.branches)


def selection(unit: SelectiveKernel, s_NC: Tensor) -> Tensor:
    """The gate's; of a single branch, which has none, something that depends on s."""
    return s_NC.sigmoid()[:, None] if unit.gate is None else unit.gate(s_NC)


def in_float64(unit: SelectiveKernel, y: list[Tensor]) -> tuple[SelectiveKernel, list[Tensor]]:
    twins = [y_m.detach().double().requires_grad_(y_m.requires_grad) for y_m in y]
    return copy.deepcopy(unit).double(), twins


def compare(name: str, actual: Tensor | None, expected: Tensor | None, dtype: torch.dtype) -> None:
    """Equal to what float64 gives, up to a few roundings of the largest value."""
    assert (actual is None) == (expected is None), name
    if actual is None or expected is None:
        return
    actual, expected = actual.detach().double(), expected.detach().double()
    near = TOLERANCE[dtype] * float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE[dtype], atol=near, msg=lambda text: f"{name}: {text}")


def compare_gradients(unit: SelectiveKernel, y: list[Tensor], twin: SelectiveKernel, twins: list[Tensor]) -> None:
    """Those of the maps and of every parameter behind the convolutions."""
    for m, (y_m, same) in enumerate(zip(y, twins, strict=True)):
        compare(f"y{m}", y_m.grad, same.grad, y_m.dtype)
    for (name, parameter), other in zip(unit.named_parameters(), twin.parameters(), strict=True):
        compare(name, parameter.grad, other.grad, y[0].dtype)


def check(
    unit: SelectiveKernel,
    y: list[Tensor],
    run: Callable[[SelectiveKernel, list[Tensor]], tuple[Tensor, Tensor]] = by_kernels,
    weigh: tuple[float, float] = (1.0, 1.0),
) -> None:
    """s, V, running statistics and every gradient of a loss of s and V, each with its weight (0: not used)."""
    dtype, twin, twins = y[0].dtype, *in_float64(unit, y)
    before = [y_m.detach().clone() for y_m in y]
    actual, expected = run(unit, y), by_equations(twin, twins)
    used = [i for i in range(2) if weigh[i]]
    r = [weigh[i] * torch.randn(expected[i].shape).to(dtype) for i in used]
    torch.autograd.backward([actual[i] for i in used], r)
    torch.autograd.backward([expected[i] for i in used], [each.double() for each in r])
    for i, name in enumerate("sV"):
        assert actual[i].dtype == dtype
        compare(name, actual[i], expected[i], dtype)
    compare_gradients(unit, y, twin, twins)
    for (name, buffer), same in zip(unit.named_buffers(), twin.buffers(), strict=True):
        compare(name, buffer, same, torch.float32)
    for y_m, copied in zip(y, before, strict=True):
        assert torch.equal(y_m, copied)  # not written to


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equal_to_the_equations(case: Case) -> None:
    check(*make(case))


def test_statistics_that_are_known_already() -> None:
    check(*make(MANY), run=partial(by_kernels, known=True))


@pytest.mark.parametrize("weigh", [(1.0, 0.0), (0.0, 1.0)], ids=["only s", "only V"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_one_result_unused(weigh: tuple[float, float], training: bool) -> None:
    check(*make(Case(training=training)), weigh=weigh)


@pytest.mark.parametrize("asked", ["y0", "y", "norm.weight", "norm.bias", "gate"])
def test_some_gradients(asked: str) -> None:
    unit, y = make(Case())
    for m, y_m in enumerate(y):
        y_m.requires_grad_(asked in ("y", f"y{m}"))
    for name, parameter in unit.named_parameters():
        parameter.requires_grad_(asked in name)
    check(unit, y, weigh=(float(asked != "gate"), 1.0))  # s depends on nothing of the gate's


def test_a_selection_that_needs_no_gradient() -> None:
    class Cut(nn.Module):
        def forward(self, logits_NMC: Tensor) -> Tensor:
            return logits_NMC.softmax(1).detach()

    unit, y = make(Case())
    unit.gate.selection = Cut()  # type: ignore[union-attr]
    check(unit, y, weigh=(0.0, 1.0))


def test_a_unit_used_twice() -> None:
    def twice(run: Any, unit: SelectiveKernel, y: list[Tensor]) -> tuple[Tensor, Tensor]:
        s_NC, v = run(unit, y)
        return s_NC, run(unit, [v + y_m for y_m in y])[1]

    unit, y = make(Case())
    twin, twins = in_float64(unit, y)
    r = torch.randn(2, 12, 5, 7)
    torch.autograd.backward(twice(by_kernels, unit, y)[1], r)
    torch.autograd.backward(twice(by_equations, twin, twins)[1], r.double())
    compare_gradients(unit, y, twin, twins)


def test_the_whole_unit() -> None:
    unit = SelectiveKernel(8, 12, groups=4, stride=2, memory="plain")
    twin, x, r = copy.deepcopy(unit), torch.randn(2, 8, 9, 11), torch.randn(2, 12, 5, 6)
    torch.autograd.backward(by_kernels(unit, [branch.conv(x) for branch in branches(unit)])[1], r)
    torch.autograd.backward(twin(x), r)
    for (name, parameter), other in zip(unit.named_parameters(), twin.parameters(), strict=True):
        compare(name, parameter.grad, other.grad, torch.float32)


@pytest.mark.parametrize(
    "shape",
    [MANY.shape, pytest.param((300, 3, 3, 3), marks=pytest.mark.exhaustive)],
    ids=["tiles", "more parts than lanes that merge them"],
)
def test_moments_far_from_zero(shape: tuple[int, ...]) -> None:
    """Where E[y^2] - E[y]^2 would have no digit left."""
    y = [(1000 * (m + 1) + torch.randn(shape)).to(memory_format=torch.channels_last) for m in range(2)]
    mean, variance = fuse_select.branch_moments(y)
    for m, y_m in enumerate(y):
        torch.testing.assert_close(mean[m].double(), y_m.double().mean((0, 2, 3)), rtol=1e-6, atol=0)
        torch.testing.assert_close(variance[m].double(), y_m.double().var((0, 2, 3), unbiased=False), rtol=1e-4, atol=0)


def test_what_is_no_number_stays_where_it_is() -> None:
    unit, y = make(Case(training=False))
    with torch.no_grad():
        y[1][0, 3, 2, 2], y[0][1, 5, 1, 1], y[0][1, 6, 1, 1] = torch.nan, torch.inf, -torch.inf
        a_NMC = torch.rand(2, 2, 12)
        s_NC, state = fuse_select.fuse([batch_norm_of(branch.norm, y[0], "a test") for branch in branches(unit)], y)
        u = [branch.act(branch.norm(y_m)) for branch, y_m in zip(branches(unit), y, strict=True)]
        pairs = ((s_NC, reference.fuse(u)), (fuse_select.select(state, a_NMC), reference.select(u, a_NMC)))
    for actual, expected in pairs:
        assert int(expected.isnan().sum()) == 1
        torch.testing.assert_close(actual, expected, equal_nan=True)


def test_backward_twice_gives_the_same_again() -> None:
    unit, y = make(Case())
    _, v = by_kernels(unit, y)
    first, second = (torch.autograd.grad(v.sum(), y, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_no_second_derivatives() -> None:
    unit, y = make(Case())
    (dy,) = torch.autograd.grad(by_kernels(unit, y)[1].square().sum(), y[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="branch_gradients"):
        torch.autograd.grad(dy.sum(), y)


def test_compiled() -> None:
    check(*make(Case()), run=torch.compile(by_kernels, fullgraph=True, backend="aot_eager"))


@pytest.mark.parametrize(
    ("dtype", "channels_last"),
    [(torch.float32, False), pytest.param(torch.bfloat16, True, marks=pytest.mark.exhaustive)],
)
def test_operators_keep_torchs_rules(dtype: torch.dtype, channels_last: bool) -> None:
    _, y = make(Case(dtype=dtype, channels_last=(channels_last,) * 4))
    maps, r = [y_m.detach() for y_m in y], torch.randn_like(y[0].detach())
    norms = [torch.rand(2, 12) for _ in range(4)]
    learned = [*norms[:2], *(norm.clone().requires_grad_() for norm in norms[2:])]
    a = torch.rand(2, 2, 12)
    library.opcheck(fuse_select.branch_moments, (maps,))
    library.opcheck(fuse_select.branch_sums, (r, maps, norms))
    library.opcheck(fuse_select.branch_gradients, (r, maps, norms, a, a[:, 0], torch.rand(2, 2, 12)))
    library.opcheck(fuse_select.fuse_branches, (y, learned, True))
    _s, _sums, link_v, link_a = fuse_select.fuse_branches(y, learned, True)
    links = link_v.detach().requires_grad_(), link_a.detach().requires_grad_()
    library.opcheck(fuse_select.select_branches, (maps, norms, a.requires_grad_(), *links))


def test_v_can_be_computed_again() -> None:
    unit, y = make(Case())
    norms, a_NMC = (
        [batch_norm_of(branch.norm, y[0], "a test") for branch in branches(unit)],
        torch.rand(2, 2, 12).softmax(1),
    )
    _s, state = fuse_select.fuse(norms, y)
    v = fuse_select.select(state, a_NMC.requires_grad_(), lean=True)
    recipe = recompute.recipe_of(v)
    assert recipe is not None
    torch.testing.assert_close(recipe.add_reader().read(), v)


def test_autocast_changes_nothing() -> None:
    unit, y = make(Case(dtype=torch.bfloat16))
    norms, a_NMC = [batch_norm_of(branch.norm, y[0], "a test") for branch in branches(unit)], torch.rand(2, 2, 12)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            s_NC, state = fuse_select.fuse(norms, y)
            v = fuse_select.select(state, a_NMC)
        results.append([s_NC, v, *torch.autograd.grad(v.float().sum() + s_NC.float().sum(), y)])
    for plain, under_autocast in zip(*results, strict=True):
        assert plain.dtype == torch.bfloat16
        assert torch.equal(plain, under_autocast)
