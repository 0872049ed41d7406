"""What selkern does with its core alone: `python tests/core_program.py` in any environment it is installed in.

It needs torch, numpy and safetensors; ends with one line of versions, or with the first thing that fails.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

import selkern

Memory = Literal["plain", "default", "lean"]
# A layer, and the shape of what it reads.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "SelectiveKernel": (lambda: selkern.SelectiveKernel(32, 64, kernels=(3, 5), groups=8, stride=2), (4, 32, 14, 14)),
    "SelectiveKernel 1d": (lambda: selkern.SelectiveKernel(32, kernels=(3, 5, 7), groups=4, dims=1), (4, 32, 30)),
    "SKAttention": (lambda: selkern.SKAttention(16, kernels=(1, 3, 5)), (4, 16, 9, 9)),
    "MLPAttention": (lambda: selkern.MLPAttention(8, 16, 4), (4, 6, 8)),
}
NETWORKS = ("sknet_mini", "resnet_mini", "sk_shufflenet_v2_x05", "skresnet18")


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Of the input and of every parameter."""
    x = x.clone().requires_grad_()
    return list(torch.autograd.grad(module(x).square().mean(), [x, *module.parameters()]))


def layers() -> None:
    """Forward and backward in the three memory modes, which agree."""
    for make, shape in LAYERS.values():
        module, x = make().double(), torch.randn(shape, dtype=torch.float64)
        modes = [gradients(selkern.set_memory(deepcopy(module), memory), x) for memory in get_args(Memory)]
        for mode in modes[1:]:
            torch.testing.assert_close(mode, modes[0])
    maps = [torch.randn(2, 16, 8, 8) for _ in range(3)]
    assert selkern.SKFusion(16, 3)(maps).shape == maps[0].shape


def networks(folder: Path) -> None:
    """Created, trained, recorded, checked, folded, exported, saved and loaded again."""
    for name in NETWORKS:
        model, x = selkern.create_model(name, num_classes=3), torch.randn(4, 3, 64, 64)
        train(model, x)
        with torch.inference_mode(), selkern.record(model.eval()) as selection:
            expected = model(x)
        assert bool(selection) == (name != "resnet_mini")
        fast = selkern.fold(model)
        for form in (fast, *(torch.export.export(each, (x,)).module() for each in (model, fast))):
            torch.testing.assert_close(form(x), expected, rtol=1e-3, atol=1e-3)
        model.save_pretrained(folder / name)
        again = selkern.from_pretrained(folder / name).eval()
        assert torch.equal(again.state_dict()["fc.weight"], model.state_dict()["fc.weight"])
    result = selkern.check(selkern.create_model("sknet_mini"), torch.randn(5, 3, 32, 32))
    assert len(result.units) == 6
    assert [finding.rule for finding in result.broken] == ["d = max(C / r, 32)"]  # which small images do without
    assert selkern.create_model("sknet_mini", weights="digits").num_classes == 10


def train(model: nn.Module, x: Tensor) -> None:
    """A few steps, after which the loss is lower."""
    labels = torch.arange(len(x)) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[1:]) < losses[0], losses


def main() -> int:
    """All of it."""
    torch.manual_seed(0)
    layers()
    with tempfile.TemporaryDirectory() as folder:
        networks(Path(folder))
    print(f"ok: selkern {selkern.__version__} on Python {platform.python_version()}, torch {torch.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
