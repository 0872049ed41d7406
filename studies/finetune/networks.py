"""The networks of the fine-tuning studies that are no option of `selkern train`.

Each starts with the ImageNet weights of tf_efficientnet_lite0, which lie beside this file (see finetune_cifar.yaml).
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import nn

import selkern
from selkern.layers.gate import Gate

NAME = "tf_efficientnet_lite0"
WEIGHTS = Path(__file__).with_name(f"{NAME}.safetensors")


def unchanged(num_classes: int) -> nn.Module:
    """The network as it is, with norms that follow a short training."""
    model: nn.Module = timm.create_model(NAME, num_classes=num_classes, bn_momentum=0.1)
    tensors = {name: tensor for name, tensor in load_file(WEIGHTS).items() if not name.startswith("classifier.")}
    model.load_state_dict(tensors, strict=False)
    return model


def averaged(num_classes: int, size: int) -> nn.Module:
    """The branches of `--selectify auto` without a choice: their mean, whatever the image shows."""
    model = selkern.selectify(unchanged(num_classes), example=torch.randn(2, 3, size, size))
    for gate in (module for module in model.modules() if isinstance(module, Gate)):
        gate.requires_grad_(requires_grad=False)
        nn.init.zeros_(gate.fc2.weight)  # equal logits
    return model


def inserted(num_classes: int) -> nn.Module:
    """The article's module behind the last block, as its copies are used: nothing makes it exact at the start."""
    model = unchanged(num_classes)
    last = model.get_submodule("blocks")[-1]
    last.append(selkern.SKAttention(320))
    return model
