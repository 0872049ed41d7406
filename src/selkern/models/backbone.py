"""What every network here has in common: a head, the maps of its stages, and a row of a table that builds it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selkern.convert import hub
from selkern.errors import UsageError
from selkern.io import write_atomic
from selkern.layers.gate import Selection
from selkern.layers.memory import HasMemory
from selkern.layers.parts import NORMS, Norm, check_input, norm_relu
from selkern.models.weights import Card, checksum, save_weights
from selkern.ops import recompute
from selkern.ops.eager import is_watched


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


def bottleneck(unit: Any, x: Tensor) -> Tensor:
    """conv1 -> norm1, ReLU -> mixer -> conv3 of a unit, (N, C_in, H, W) to (N, out, H / stride, W / stride).

    With `unit.memory` "lean" the two maps between them are not kept for the backward pass but computed again.
    """
    y = unit.conv1(x)
    u = norm_relu(unit.norm1, None, y, "a unit", unsaved=unit.memory == "lean" and not is_watched(unit.mixer))
    return recompute.through(unit.conv3, unit.mixer(u))


def stem_and_pool(network: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The map of the stem, and that of the pool after it.

    With `network.memory` "lean" the first, the largest map of all, is not kept for the backward pass.
    """
    stem, pool = network.stem, network.pool
    if network.memory != "lean" or type(stem) is not nn.Sequential or len(stem) <= 2 or is_watched(stem):
        y = stem(x)
        return y, pool(y)
    *layers, norm, relu = stem
    for layer in layers:
        x = layer(x)
    u = norm_relu(norm, relu, x, "the stem", unsaved=type(pool) is nn.MaxPool2d and not is_watched(pool))
    return u, recompute.through(pool, u)


@dataclass(frozen=True)
class Feature:
    """One feature map of `features_only`: its module, channels, and stride against the input."""

    module: str
    channels: int
    stride: int


def make_classifier(channels: int, num_classes: int) -> nn.Module:
    """Pooled features to scores: gaussian 0.01, bias 0, as in the authors' prototxt; nothing for 0 classes."""
    if not num_classes:
        return nn.Identity()
    fc = nn.Linear(channels, num_classes)
    nn.init.normal_(fc.weight, std=0.01)
    nn.init.zeros_(fc.bias)
    return fc


class GlobalAvgPool2d(nn.Module):
    """(N, C, H, W) to (N, C), the mean over space; without parameters, and a module so that whoever cuts heads off or
    calls a network's children in turn finds it."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C)."""
        return x.mean(dim=(2, 3))


class Backbone(nn.Module, HasMemory):
    """A network that turns images into the maps of its stages, and those into class scores.

    A subclass makes `stem`, `pool` and `stages`, fills `feature_info`, and calls `make_head` last. Its children, called
    one after the other, are the network.

    Args:
        num_classes: outputs of the classifier `fc`; 0 leaves it out and returns the pooled features.
        in_chans: channels of the images.
        features_only: return the list of maps instead; `feature_info` has their channels and strides.
        variant: its norms and stochastic depth.

    Attributes:
        card: what is known of the weights, as `create_model` leaves it and `save_pretrained` writes it; None for a
            network built by hand. Who trains a network sets it anew (`dataclasses.replace`).
    """

    arch: Any  # the row it was built from
    card: Card | None = None
    loaded: tuple[Card, int] | None = None  # the card it came with, and the checksum of the weights that it is about
    stem: nn.Sequential
    pool: nn.Module
    stages: nn.Sequential
    global_pool: nn.Module
    fc: nn.Module

    def __init__(self, num_classes: int, in_chans: int, features_only: bool, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        self.num_classes, self.in_chans, self.features_only = num_classes, in_chans, features_only
        self.feature_info: list[Feature] = []
        self.memory = "default"  # `selkern.set_memory` changes it

    def make_head(self, channels: int) -> None:
        """The classifier on `channels` pooled features, unless maps alone are wanted."""
        self.num_features = channels
        self.global_pool = GlobalAvgPool2d()
        self.fc = make_classifier(channels, 0 if self.features_only else self.num_classes)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """(N, in_chans, H, W) to the maps after the stem and after each stage, as in `feature_info`."""
        first, y = stem_and_pool(self, x)
        maps = [first]
        for stage in self.stages:
            y = stage(y)
            maps.append(y)
        return maps

    def forward_head(self, y: Tensor) -> Tensor:
        """The last map (N, C, H, W) to logits (N, num_classes)."""
        return self.fc(self.global_pool(y))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(N, in_chans, H, W) to logits (N, num_classes); with `features_only` the list of maps."""
        check_input("the network", x, self.in_chans, 2)
        if self.features_only:
            return self.forward_features(x)
        return self.forward_head(self.stages(stem_and_pool(self, x)[1]))  # called as one, for what waits on it

    def save_pretrained(self, folder: str | Path, *, license: str | None = None) -> None:
        """Write the network into a folder: `model.safetensors`, which describes itself, and a README.md about it.

        Whatever the card's source has (command, data, versions) stands in both. Weights that have changed since
        they were loaded lose the figures that were measured with the old ones, unless `card` was set anew.

        Args:
            folder: is made where there is none; must hold neither of the two files.
            license: the Hub's name of the licence that the weights are given under, such as "apache-2.0".

        Raises:
            UsageError: one of the files is there already, the network returns maps, or its card is missing or wrong.
            ResourceError: the folder cannot be written to.

        Example:
            >>> import selkern, tempfile
            >>> model = selkern.create_model("sknet_mini", weights="digits")
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model.save_pretrained(folder)
            ...     again = selkern.from_pretrained(folder)
            >>> again.card == model.card
            True
        """
        folder = Path(folder)
        self._write(folder, folder.resolve().name, None, license)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        license: str | None = None,
    ) -> str:
        """Put the files of `save_pretrained` into a repository of the Hugging Face Hub, in one commit.

        Files of these names that the repository has already are replaced; its history keeps them.

        Args:
            repo_id: user/name; the repository is made where there is none.
            private: whether a repository that has to be made is private; None leaves it to the account's settings.
            token: None takes that of `hf auth login` or HF_TOKEN.
            commit_message: None names the model.
            license: as in `save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            UsageError: as `save_pretrained` says; huggingface_hub is not installed, not logged in, or not allowed.
            CheckpointError: the Hub cannot be reached.
        """
        with TemporaryDirectory() as folder:
            card = self._write(Path(folder), repo_id.rpartition("/")[2], repo_id, license)
            message = commit_message or f"Weights of {card.model}"
            return hub.push(Path(folder), repo_id, private=private, token=token, message=message)

    def _write(self, folder: Path, title: str, repository: str | None, license: str | None) -> Card:
        """Write both files into a folder that has neither; the card that they show."""
        from selkern.convert.publish import Facts, render
        from selkern.models.cost import count

        card = self._card_to_save()
        weights, readme = folder / hub.WEIGHTS, folder / hub.README
        for file in (weights, readme):
            if file.exists() or file.is_symlink():
                raise UsageError("the file is there already", str(file), "give another folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"the folder cannot be made ({error.strerror})", str(folder), "give another") from error
        size = int(card.preprocess.get("size", self.arch.input_size))
        with torch.device("meta"):  # shapes are all that is asked of it
            whole = self.arch.build(self.num_classes, self.in_chans, False, self.variant)
            cost = count(whole, size, self.in_chans)
        units = sum(isinstance(module, Selection) for module in self.modules())
        facts = Facts(title=title, repository=repository, cost=cost, size=size, units=units, license=license)
        save_weights(weights, self.state_dict(), card)
        write_atomic(readme, render(card, facts))
        return card

    def _card_to_save(self) -> Card:
        if self.features_only:
            fix = "make the network without features_only"
            raise UsageError("a network that returns maps has no classifier to save", "features_only", fix)
        if (card := self.card) is None:
            fix = "make it by `create_model`, or set model.card to a selkern.models.weights.Card"
            raise UsageError("the network has no card that says what it is", "model.card", fix)
        described, own = (len(card.classes), card.in_chans), (self.num_classes, self.in_chans)
        if described != own:
            what = "the card says {} classes and {} channels, the network has {} and {}".format(*described, *own)
            raise UsageError(what, "model.card", "mend the card")
        if any(callable(norm) for norm in self.variant.norms.values()):
            fix = "give norm and gate_norm by name, or save its state_dict"
            raise UsageError("a norm that is a function has no name to write down", "norm", fix)
        if card.norms != self.variant.norms:
            what = f"the card says norms {card.norms}, the network has {self.variant.norms}"
            raise UsageError(what, "model.card", "mend the card")
        unchanged = self.loaded is None or card != self.loaded[0] or checksum(self.state_dict()) == self.loaded[1]
        return card if unchanged else card.successor()


class Row(Protocol):
    """A row of an architecture table."""

    @property
    def input_size(self) -> int:
        """Side in pixels of the images it was designed for."""

    @property
    def depths(self) -> tuple[int, ...]:
        """Units of each stage."""

    @property
    def strides_of_maps(self) -> tuple[int, ...]:
        """Strides of the maps that the network makes against the image, each once."""

    def build(
        self,
        num_classes: int,
        in_chans: int,
        features_only: bool,
        variant: Variant = Variant(),
    ) -> Backbone:
        """The network of this row, freshly initialised."""
