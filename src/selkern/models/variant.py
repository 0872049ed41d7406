"""How a network may differ from the row of its table: other norms, and stochastic depth."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from selkern.errors import UsageError
from selkern.layers.parts import NORMS, Norm


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What a network's architecture leaves open.

    Attributes:
        norm: "batch" as in the row's source, "group", "layer", "none", or a function from a channel count to a module;
            of every norm in the network.
        gate_norm: of the gates' descriptors (N, D); None takes `norm`.
        drop_path_rate: share of the training images for which the last unit leaves its path out (stochastic depth,
            Huang et al., ECCV 2016); it rises linearly from 0 in the first unit.

    Raises:
        UsageError: another norm, or a rate outside [0, 1).
    """

    norm: Norm = "batch"
    gate_norm: Norm | None = None
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("norm", "gate_norm"):
            value = getattr(self, name)
            if not (callable(value) or value in NORMS or (value is None and name == "gate_norm")):
                fix = f"one of {', '.join(NORMS)}, or a function of the channel count"
                raise UsageError(f"{name} is {value!r}", name, fix)
        rate = self.drop_path_rate
        if not (isinstance(rate, (int, float)) and 0 <= rate < 1):
            raise UsageError(f"drop_path_rate is {rate!r}", "drop_path_rate", "must be a number in [0, 1)")

    @property
    def norms(self) -> dict[str, Norm]:
        """Both norms for the card of a weights file; empty where they are "batch", as on every card that has none."""
        gate_norm = self.norm if self.gate_norm is None else self.gate_norm
        return {} if self.norm == gate_norm == "batch" else {"norm": self.norm, "gate_norm": gate_norm}

    def rates(self, depths: tuple[int, ...]) -> list[list[float]]:
        """The rate of every unit, stage by stage."""
        step = self.drop_path_rate / max(sum(depths) - 1, 1)
        firsts = [sum(depths[:stage]) for stage in range(len(depths))]
        return [[step * (first + unit) for unit in range(depth)] for first, depth in zip(firsts, depths, strict=True)]


class DropPath(nn.Module):
    """In training, sets each image's map to 0 with probability `rate`, and the others to 1 / (1 - rate) of themselves.

    (N, C, H, W) to the same. It draws from torch's global generator, as dropout does.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        return x * F.dropout(x.new_ones((x.shape[0], 1, 1, 1)), self.rate) if self.training else x

    def extra_repr(self) -> str:
        """What `print(layer)` adds."""
        return f"rate={self.rate:.3f}"


def make_drop_path(rate: float) -> nn.Module:
    """`DropPath`, or nothing for a rate of 0."""
    return DropPath(rate) if rate else nn.Identity()
