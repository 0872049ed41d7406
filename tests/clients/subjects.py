"""What the clients run: every layer in a small network, and one network of each kind, as classifiers of images.

All take (N, 3, 32, 32) to (N, 3) logits: which of the three colours is the brightest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import selkern

Memory = Literal["plain", "default", "lean"]
MODES: tuple[Memory, ...] = ("plain", "default", "lean")
SIDE, CLASSES = 32, 3


class LayerNet(nn.Module):
    """A convolution, one of our layers, pooling, and a linear map."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.ReLU())
        self.layer, self.fc = layer, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 3)."""
        return self.fc(self.layer(self.stem(x)).mean(dim=(2, 3)))


class Fused(nn.Module):
    """Two convolutions and the fusion of their maps."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, k, padding=k // 2) for k in (1, 3))
        self.fusion = selkern.SKFusion(8, min_width=8)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 8, H, W) to (N, 8, H, W)."""
        return self.fusion([conv(x) for conv in self.convs])


class Tokens(nn.Module):
    """MLPAttention over the positions of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = selkern.MLPAttention(8, 16, 8)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 8, H, W) to (N, 8, H, W)."""
        return self.attention(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


BUILD: dict[str, Callable[[], nn.Module]] = {
    "SelectiveKernel": lambda: LayerNet(selkern.SelectiveKernel(8, 16, groups=4, min_width=8), 16),
    "SKFusion": lambda: LayerNet(Fused(), 8),
    "SKAttention": lambda: LayerNet(selkern.SKAttention(8, kernels=(1, 3, 5), L=8), 8),
    "MLPAttention": lambda: LayerNet(Tokens(), 8),
    "sknet_mini": lambda: selkern.create_model("sknet_mini", num_classes=CLASSES),
    "sk_shufflenet_v2_x05": lambda: selkern.create_model("sk_shufflenet_v2_x05", num_classes=CLASSES),
    "skresnet18": lambda: selkern.create_model("skresnet18", num_classes=CLASSES),
    "sknet26": lambda: selkern.create_model("sknet26", num_classes=CLASSES),
}
LAYERS, NETWORKS = (*BUILD,)[:4], (*BUILD,)[4:]
# SKFusion and MLPAttention keep what autograd keeps in every mode; plain networks are what sknet_mini stands for.
MODES_OF: dict[str, tuple[Memory, ...]] = {
    **dict.fromkeys(("SKFusion", "MLPAttention"), ("default",)),
    **dict.fromkeys(("sk_shufflenet_v2_x05", "skresnet18", "sknet26"), ("default", "lean")),
}


@dataclass(frozen=True)
class Subject:
    """One of `BUILD` in one memory mode."""

    name: str
    memory: Memory

    def __str__(self) -> str:
        return f"{self.name}-{self.memory}"

    def __call__(self, training: bool = True) -> Any:
        """A network, the same at every call."""
        torch.manual_seed(1)
        return selkern.set_memory(BUILD[self.name](), self.memory).train(training)


def subjects(names: Iterable[str] = BUILD, modes: Iterable[Memory] = MODES) -> pytest.MarkDecorator:
    """Run a test, whose argument is `subject`, over these layers and networks in these modes."""
    result = cases(names, modes)
    return pytest.mark.parametrize("subject", result, ids=map(str, result))


def cases(names: Iterable[str] = BUILD, modes: Iterable[Memory] = MODES) -> list[Subject]:
    """These layers and networks in these modes, where the mode makes a difference."""
    return [Subject(name, mode) for name in names for mode in modes if mode in MODES_OF.get(name, MODES)]


# Enough where a tool does the same to every module, and takes long.
FEW = ("SelectiveKernel", "SKFusion", "SKAttention", "MLPAttention", "sknet_mini")


def images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (count, 3, 32, 32) of noise with one of the colours brighter, and which it is."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    y = torch.arange(count) % CLASSES
    x[torch.arange(count), y] += 1
    return x, y


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy."""
    return F.cross_entropy(model(x), y)


def plain_copy(model: nn.Module) -> Any:
    """The same weights, computed by autograd's own way."""
    return selkern.set_memory(copy.deepcopy(model), "plain")


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Of the loss in every parameter, from one backward pass."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss_of(model, x, y), parameters), strict=True))


def assert_close(got: Any, want: Any, tolerance: float = 1e-4) -> None:
    """Equal within `tolerance` of the largest value."""
    got, want = torch.as_tensor(got).detach(), torch.as_tensor(want).detach()
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * (want.abs().max().item() or 1.0))


def assert_same_gradients(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    """Equal by name within `tolerance` of each one's largest value, or of a millionth of the largest of all."""
    assert got.keys() == want.keys()
    floor = 1e-6 * max(g.abs().max().item() for g in want.values())
    for name, g in want.items():
        difference = (got[name] - g).abs().max().item()
        assert difference <= max(tolerance * g.abs().max().item(), floor), (
            f"{name}: {difference:.3g} of {g.abs().max()}"
        )


def train(model: nn.Module, steps: int = 8, lr: float = 0.02) -> list[float]:
    """The losses of a few steps on the same images."""
    x, y = images(12)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses
