"""A folded network is copied, saved, moved and changed like any module."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from selkern import SKAttention, create_model, fold
from selkern.deploy.fold import Folded, FoldedSKAttention
from selkern.deploy.fused import Cache, FusedConv


def saved(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    return buffer.getvalue()


COPIES: dict[str, Callable[[Folded], Folded]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda folded: pickle.loads(pickle.dumps(folded)),
    "save": lambda folded: torch.load(io.BytesIO(saved(folded)), weights_only=False),
}


def network(seed: int = 0) -> tuple[Folded, Tensor]:
    torch.manual_seed(seed)
    return fold(create_model("sknet_mini", num_classes=7)), torch.randn(10, 3, 48, 48)


def article(seed: int = 0) -> tuple[Folded, Tensor]:
    """Its large kernels by Fourier coefficients."""
    torch.manual_seed(seed)
    x = torch.randn(8, 128, 20, 28)
    return fold(SKAttention(128), example=x), x


KINDS = {"network": network, "article": article}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def caches(module: nn.Module) -> list[Cache[Any, Any]]:
    of_onednn = [m._of_onednn for m in module.modules() if isinstance(m, FusedConv)]
    return [*of_onednn, *(m._spectra for m in module.modules() if isinstance(m, FoldedSKAttention))]


@kinds
@pytest.mark.parametrize("how", COPIES.values(), ids=COPIES.keys())
def test_a_copy_computes_the_same_to_the_bit(
    kind: Callable[[], tuple[Folded, Tensor]], how: Callable[[Folded], Folded]
) -> None:
    fast, x = kind()
    want = fast(x)
    assert any(map(len, caches(fast))), "something is kept, and all the same:"
    again = how(fast)
    if how is not copy.copy:
        assert not any(map(len, caches(again)))
    assert torch.equal(again(x), want)
    assert again.card == fast.card


def test_what_is_made_of_the_weights_is_not_saved() -> None:
    fast, x = article()
    fast(x)
    weights = sum(p.numel() * p.element_size() for p in fast.parameters())
    assert len(saved(fast)) < 1.1 * weights


def test_another_process_loads_it(tmp_path: Path) -> None:
    fast, x = network()
    torch.save((fast, x, fast(x)), tmp_path / "fast.pt")
    code = "import sys, torch; f, x, y = torch.load(sys.argv[1], weights_only=False); assert torch.equal(f(x), y)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "fast.pt")], check=True)


def in_place(fast: Folded, other: Folded) -> None:
    with torch.no_grad():
        for p, q in zip(fast.parameters(), other.parameters(), strict=True):
            p.copy_(q)


def by_data(fast: Folded, other: Folded) -> None:
    for p, q in zip(fast.parameters(), other.parameters(), strict=True):
        p.data = q.data


def by_state(fast: Folded, other: Folded) -> None:
    fast.load_state_dict(other.state_dict())


def by_assignment(fast: Folded, other: Folded) -> None:
    fast.load_state_dict(other.state_dict(), assign=True)


@kinds
@pytest.mark.parametrize("change", [in_place, by_data, by_state, by_assignment])
def test_changed_weights_are_seen(
    kind: Callable[..., tuple[Folded, Tensor]], change: Callable[[Folded, Folded], None]
) -> None:
    (fast, x), (other, _) = kind(), kind(1)
    want = other(x)
    assert not torch.equal(fast(x), want)
    change(fast, other)
    assert torch.equal(fast(x), want)


@kinds
def test_weights_of_functional_call_are_seen(kind: Callable[..., tuple[Folded, Tensor]]) -> None:
    (fast, x), (other, _) = kind(), kind(1)
    old = fast(x)
    assert torch.equal(torch.func.functional_call(fast, other.state_dict(), (x,)), other(x))
    assert torch.equal(fast(x), old)


@kinds
def test_its_dtype_can_be_changed(kind: Callable[..., tuple[Folded, Tensor]]) -> None:
    fast, x = kind()
    want = fast(x)

    def error(dtype: torch.dtype) -> float:
        y = copy.deepcopy(fast).to(dtype)(x)
        assert y.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        return (y - want).abs().max().item() / want.abs().max().item()

    assert error(torch.float64) < 1e-5
    assert error(torch.bfloat16) < 0.1
    assert error(torch.float16) < 0.02
    assert torch.equal(copy.deepcopy(fast).double().float()(x), want)


def test_a_network_of_16_bits_becomes_one_of_32() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 48, 48)
    fast = fold(create_model("sknet_mini"), dtype=torch.bfloat16)
    rounded = fast(x)
    assert {p.dtype for p in fast.float().parameters()} == {torch.float32}
    torch.testing.assert_close(fast(x), rounded, rtol=0, atol=0.1 * rounded.abs().max().item())
    assert {p.dtype for p in fast.half().parameters()} == {torch.float16}
    assert fast(x).dtype == torch.float32


def test_threads_share_one() -> None:
    fast, _ = network()
    inputs = [torch.randn(n, 3, side, side) for n in (1, 3) for side in (32, 40, 48)]  # more shapes than are kept
    want = [fast(x) for x in inputs]
    start = Barrier(4)

    def work(seed: int) -> bool:
        start.wait()
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed)).tolist()
        return all(torch.equal(fast(inputs[i]), want[i]) for i in order * 5)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_its_operations_can_be_counted() -> None:
    model = create_model("sknet_mini")
    fast, x = fold(model), torch.randn(2, 3, 48, 48)
    counts = []
    for module in (model.eval(), fast):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_is_trained_on_its_results(features_only: bool, dtype: torch.dtype) -> None:
    model = create_model("sknet_mini", num_classes=7, features_only=features_only)
    out = fold(model, dtype=dtype)(torch.randn(2, 3, 48, 48))
    for y in out if features_only else [out]:
        w = torch.ones((), requires_grad=True)
        (w * y).sum().backward()  # keeps y
        torch.testing.assert_close(w.grad, y.sum())


def test_compiled_or_not_it_has_the_same_state() -> None:
    model = create_model("sknet_mini")
    fast, compiled = fold(model), fold(model, compile=True)
    assert list(compiled.state_dict()) == list(fast.state_dict())
    assert len(fast.state_dict()) == len(list(fast.parameters())), "each tensor under one name"
    compiled.load_state_dict(fast.state_dict())


def test_padding_by_name() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.ReLU()).eval()
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(fold(conv, example=x)(x), conv(x))


def test_float64() -> None:
    model = create_model("sknet_mini").eval()
    x = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(fold(model, dtype=torch.float64)(x), model.double()(x.double()))


def test_inside_inference_mode() -> None:
    with torch.inference_mode():
        (fast, x), (other, _) = network(), network(1)
        want = other(x)
        fast(x)
        fast.load_state_dict(other.state_dict(), assign=True)
        assert torch.equal(fast(x), want)
