"""Recipes: how to train, as frozen values. The command line shows these fields; a run saves them as YAML.

Sources: SKNet paper section 4 (ImageNet), the ResNeXt paper's CIFAR schedule that SKNet follows, and for
`digits` and `cifar` our own measurements on two CPU cores (docs/log.md).

`photos` and `photos-scratch` are for a person's own pictures, some hundreds to some ten thousands, on one machine:

- batch 32: SKNet-50 then holds 4 GB at 224 px, and 1,000 pictures are 30 steps. torchvision's tutorial has 4,
  ultralytics 16, fastai 64.
- AdamW, a warm-up and a cosine to 0, as in `cifar`: there is no decay to be placed by hand for each data set. Gradients
  of few classes and small batches are noisy; SGD's learning rate would have to follow the batch size.
- `photos` starts from trained weights: 1e-3, a quarter of what `cifar` takes from random ones (ultralytics takes 7e-4
  for ten classes, fastai 1e-3 and less; docs/log.md), 15 epochs, and parts of at least 35 % of the picture (fastai 35,
  ultralytics 50 %): an object of the picture's is nearly always in view. From random weights (`photos-scratch`) 2e-3,
  50 epochs, parts of at least 25 %.
- no moving average of the weights: over the few steps of a small data set, it would be the first weights still.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from selkern.data.augment import Augment
from selkern.data.levels import parse_levels, show_levels
from selkern.data.preprocess import Preprocess, Resize
from selkern.errors import UsageError
from selkern.layers.memory import Memory

_CHOICES = {
    "resize": get_args(Resize),
    "optimizer": ("sgd", "adamw"),
    "schedule": ("cosine", "steps"),
    "precision": ("auto", "fp32", "bf16"),
    "memory": get_args(Memory),
}

LEAST = 2  # images that BatchNorm needs at once: where a map has one position, one image has no variance


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train: everything but the data, the network and the seed."""

    epochs: int = 5
    """Passes over the training images."""
    schedule_epochs: int = 0
    """Length of the learning rate schedule in epochs; 0 for that of the training."""
    batch_size: int = 64
    """Images per optimizer step, over all processes together."""
    accumulate: int = 1
    """Parts into which each batch is divided to save memory; only BatchNorm's statistics differ."""
    image_size: int = 48
    """Side of the network's input, px."""
    resize: Resize = "crop"
    """How an image becomes square. crop: its centre; squash: all of it, stretched; pad: all of it, with borders."""
    eval_crop: float = 1.0
    """Share of each side of the resized image that evaluation's centre crop keeps (ImageNet: 0.875)."""
    white_level: str = "auto"
    """White of 16-bit, 32-bit and float pixels: a value or BLACK:WHITE; full (65,535); percentile (each image's own);
    auto (the range that the training images use, in whole bits)."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Mean subtracted from each colour channel (values from 0 to 1)."""
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    """Standard deviation by which each colour channel is divided."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """The optimizer; SGD is without Nesterov momentum, as in the paper."""
    lr: float = 2e-3
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.05
    """Weight decay of convolutions and linear layers; norms and biases have none."""
    bias_lr: float = 1.0
    """Factor on the learning rate of the classifier's bias (2 in the authors' prototxt)."""
    lr_backbone: float = 1.0
    """Factor on the learning rate of all but the classifier and what --selectify adds: of what was pretrained."""
    lr_new: float = 0.1
    """Factor on the learning rate of what --selectify adds, kernels and gates: at 1, short trainings may lose by it."""
    freeze_epochs: int = 0
    """Epochs at the start in which the classifier and what --selectify adds learn alone."""
    schedule: Literal["cosine", "steps"] = "cosine"
    """How the learning rate falls after the warm-up."""
    milestones: tuple[float, ...] = ()
    """Epochs at which `steps` divides the learning rate by 10."""
    warmup: float = 0.0
    """Epochs over which the learning rate rises linearly from 0."""
    label_smoothing: float = 0.0
    """Label smoothing: share of the target spread evenly over all classes."""
    clip: float = 0.0
    """Largest norm of the gradient; 0 for no clipping."""
    ema: float = 0.0
    """Decay of the moving average of the weights, which is then evaluated and saved; 0 for none."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the computation: bf16 uses autocast; auto is bf16 on a GPU that supports it, else fp32."""
    memory: Memory = "default"
    """Activations kept for the backward pass: lean keeps the fewest (a few percent slower), plain all of autograd's."""
    augment: Augment = field(default_factory=Augment)
    """Random changes of the training images."""

    def __post_init__(self) -> None:
        parse_levels(self.white_level)
        checks: dict[str, tuple[bool, str]] = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "schedule_epochs": (self.schedule_epochs >= 0, "at least 0"),
            "batch_size": (self.batch_size >= 2, "at least 2 (BatchNorm cannot learn from one image)"),
            "accumulate": (1 <= self.accumulate <= self.batch_size // 2, "from 1 to batch_size / 2"),
            "image_size": (self.image_size >= 8, "at least 8"),
            "eval_crop": (0 < self.eval_crop <= 1, "in (0, 1]"),
            "lr": (self.lr > 0 and math.isfinite(self.lr), "above 0"),
            "momentum": (0 <= self.momentum < 1, "in [0, 1)"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "bias_lr": (self.bias_lr > 0, "above 0"),
            "lr_backbone": (0 <= self.lr_backbone < math.inf, "at least 0"),
            "lr_new": (0 <= self.lr_new < math.inf, "at least 0"),
            "freeze_epochs": (0 <= self.freeze_epochs < self.epochs or not self.freeze_epochs, "less than epochs"),
            "warmup": (0 <= self.warmup <= self.epochs, "from 0 to epochs"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "in [0, 1)"),
            "clip": (self.clip >= 0, "at least 0"),
            "ema": (0 <= self.ema < 1, "in [0, 1)"),
            "milestones": (list(self.milestones) == sorted(self.milestones), "rising"),
            "std": (min(self.std) > 0, "above 0"),
            **{name: (getattr(self, name) in names, f"one of {', '.join(names)}") for name, names in _CHOICES.items()},
        }
        for name, (fine, allowed) in checks.items():
            if not fine:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{name} is {getattr(self, name)}", flag, f"must be {allowed}")

    def extended(self, epochs: int, extend: Literal["keep", "rescale"] | None) -> Recipe:
        """This recipe for another number of epochs, for a run that was started with this one.

        Args:
            extend: "keep" leaves the learning rate of every epoch as it was planned (after a cosine's end it stays 0);
                "rescale" stretches the plan over the new number, which moves the learning rate of the next step.

        Raises:
            UsageError: no choice was made, or one that would train with a learning rate of 0.
        """
        planned = self.schedule_epochs or self.epochs
        if extend is None:
            fix = "say what becomes of the learning rate: --extend keep or --extend rescale"
            raise UsageError(f"{epochs} epochs where {self.epochs} were planned", "--epochs", fix)
        if extend == "keep":
            if self.schedule == "cosine" and epochs > planned:
                fix = "take --extend rescale"
                raise UsageError(f"the cosine schedule ends at 0 after {planned} epochs", "--extend keep", fix)
            return replace(self, epochs=epochs, schedule_epochs=planned)
        milestones = tuple(milestone * epochs / planned for milestone in self.milestones)
        return replace(self, epochs=epochs, schedule_epochs=0, milestones=milestones, warmup=min(self.warmup, epochs))

    @property
    def preprocess(self) -> Preprocess:
        """How images become inputs, in training's validation and ever after."""
        levels = parse_levels(self.white_level)
        return Preprocess(
            size=self.image_size,
            crop=self.eval_crop,
            resize=self.resize,
            mean=self.mean,
            std=self.std,
            levels="full" if levels == "auto" else levels,
        )

    def prepared(self, preprocess: Preprocess) -> Recipe:
        """This recipe with images prepared in another way."""
        return replace(
            self,
            image_size=preprocess.size,
            eval_crop=preprocess.crop,
            resize=preprocess.resize,
            mean=preprocess.mean,
            std=preprocess.std,
            white_level=self.white_level if preprocess.levels == "full" else show_levels(preprocess.levels),
        )

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of optimizer step `step` (from 0): a pure function, so a resumed run needs no history."""
        epoch = step / steps_per_epoch
        if epoch < self.warmup:
            return self.lr * (step + 1) / (self.warmup * steps_per_epoch + 1)
        if self.schedule == "steps":
            return self.lr * 0.1 ** bisect_right(self.milestones, epoch)
        length = self.schedule_epochs or self.epochs
        done = (epoch - self.warmup) / max(length - self.warmup, 1e-9)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


_IMAGENET = Recipe(
    epochs=100,
    batch_size=256,
    image_size=224,
    eval_crop=0.875,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    optimizer="sgd",
    lr=0.1,
    weight_decay=1e-4,
    bias_lr=2.0,
    schedule="steps",
    milestones=(30, 60, 90),
    label_smoothing=0.1,
    augment=Augment(crop="resized", flip=0.5),
)
_CIFAR = Recipe(
    epochs=300,
    batch_size=128,
    image_size=32,
    mean=(0.491, 0.482, 0.447),
    std=(0.247, 0.243, 0.262),
    optimizer="sgd",
    lr=0.1,
    weight_decay=5e-4,
    schedule="steps",
    milestones=(150, 225),
    augment=Augment(crop="pad", pad=4, flip=0.5),
)
_PHOTOS = replace(
    _IMAGENET,
    epochs=15,
    batch_size=32,
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.05,
    bias_lr=1.0,
    schedule="cosine",
    milestones=(),
    warmup=0.5,
    augment=Augment(crop="resized", crop_scale=(0.35, 1.0), flip=0.5),
)

RECIPES: dict[str, Recipe] = {
    "digits": Recipe(epochs=4, batch_size=32, warmup=0.3, lr=4e-3, label_smoothing=0.1, ema=0.99),
    "cifar": replace(
        _CIFAR,
        epochs=10,
        optimizer="adamw",
        lr=4e-3,
        weight_decay=0.05,
        schedule="cosine",
        milestones=(),
        warmup=0.5,
    ),
    "cifar-paper": _CIFAR,
    "imagenet-paper": _IMAGENET,
    "imagenet-light": replace(
        _IMAGENET, weight_decay=4e-5, augment=Augment(crop="resized", crop_scale=(0.2, 1.0), flip=0.5)
    ),
    "photos": _PHOTOS,
    "photos-scratch": replace(
        _PHOTOS,
        epochs=50,
        lr=2e-3,
        augment=Augment(crop="resized", crop_scale=(0.25, 1.0), flip=0.5),
    ),
}
RECIPE_NOTES: dict[str, str] = {
    "digits": "digit scenes on a CPU, minutes",
    "cifar": "small pictures on a CPU, short form",
    "cifar-paper": "the paper's CIFAR schedule",
    "imagenet-paper": "the paper's large models",
    "imagenet-light": "the paper's light models",
    "photos": "fine-tuning of trained weights",
    "photos-scratch": "photos, from random weights",
}
