"""What a BatchNorm does in one forward pass, for operators that do it themselves."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class BatchNorm:
    """One BatchNorm in one forward pass.

    Attributes:
        weight, bias: per channel; None for ones and zeros.
        mean, var: running statistics, updated in place where `training`; None without them.
        training: normalise by the batch's statistics.
        momentum: share of the batch in the running statistics.
        eps: added to the variance.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    training: bool
    momentum: float
    eps: float
