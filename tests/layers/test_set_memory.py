"""`set_memory` sets what our own layers, units and networks keep, and touches no module of anybody else's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from selkern import (
    Attention,
    MLPAttention,
    SelectiveKernel,
    SKAttention,
    SKFusion,
    create_model,
    set_memory,
)
from selkern.layers.memory import HasMemory


class Buffered(nn.Module):
    """A transformer that keeps what it read: torch refuses a word in a buffer's place."""

    memory: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.zeros(2, 3))


class Named(nn.Module):
    """A module with a word of its own, which a set one would replace in silence."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = "episodic"


class Fixed(nn.Module):
    """A module whose memory cannot be set."""

    @property
    def memory(self) -> int:
        """Slots."""
        return 7


@pytest.mark.parametrize("memory", ["plain", "default", "lean"])
def test_modules_of_others_stay_as_they_are(memory: str) -> None:
    buffered, named, fixed = Buffered(), Named(), Fixed()
    holder = nn.Module()
    holder.layer = SelectiveKernel(32)  # ours, beside and around them
    holder.network = create_model("sknet_mini", num_classes=2)
    holder.network.extra = nn.ModuleList([buffered, named, fixed])
    assert set_memory(holder, memory) is holder  # type: ignore[arg-type]
    assert torch.equal(buffered.memory, torch.zeros(2, 3))
    assert (named.memory, fixed.memory) == ("episodic", 7)
    ours = [module.memory for module in holder.modules() if isinstance(module, HasMemory)]
    assert len(ours) > 10
    assert set(ours) == {memory}


LAYERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "SelectiveKernel": (lambda: SelectiveKernel(32), 1),
    "SKAttention": (lambda: SKAttention(16), 1),
    "SKFusion": (lambda: SKFusion(16, 2), 0),
    "Attention": (lambda: Attention(8), 0),
    "MLPAttention": (lambda: MLPAttention(8, 16, 2), 0),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_two_of_the_layers_have_a_choice(layer: str) -> None:
    make, count = LAYERS[layer]
    made = set_memory(make(), "lean")
    assert [module.memory for module in made.modules() if hasattr(module, "memory")] == ["lean"] * count


@pytest.mark.parametrize(
    "name", ["sknet50", "sknet29", "sknet_mini", "resnet_mini", "skresnet18", "sk_shufflenet_v2_x05"]
)
def test_every_unit_and_layer_of_a_network_follows(name: str) -> None:
    with torch.device("meta"):
        model = set_memory(create_model(name, num_classes=2), "lean")
    chosen = [module.memory for module in model.modules() if hasattr(module, "memory")]
    assert chosen == ["lean"] * len(chosen)
    assert len(chosen) >= 1
    assert all(isinstance(module, HasMemory) for module in model.modules() if hasattr(module, "memory"))
