"""What every network costs, counted beforehand: `selkern models` need not build them, nor import torch."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("costs.json")  # made by tools/count_costs.py
SMALL = 64  # px; networks for smaller images are counted with 10 classes, all others with 1,000


@cache
def recorded() -> dict[str, dict[str, Any]]:
    """By name: num_classes, input_size (px), parameters and macs at that size."""
    costs: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return costs


def counted(name: str) -> dict[str, Any]:
    """The same of one network, counted now: some tenths of a second."""
    import torch

    from selkern.models.cost import count
    from selkern.models.registry import architecture, create_model

    size = architecture(name).input_size
    classes = 1000 if size >= SMALL else 10
    with torch.device("meta"):
        cost = count(create_model(name, num_classes=classes), size)
    return {"num_classes": classes, "input_size": size, "parameters": cost.parameters, "macs": cost.macs}
