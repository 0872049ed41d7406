"""`import selkern.timm` makes our networks timm's: `timm.create_model("sknet50")` builds them, pieces and all.

A name that timm has already stays timm's, and ours stays with `selkern.create_model`: `resnext50_32x4d`,
`resnext101_32x4d`, their `seresnext` twins, `skresnet18`, `34`, `50`, `50d` and `skresnext50_32x4d` (equal to timm's by
test). Tensors keep their names, so that a state dict fits both ways unchanged; timm puts `model.` in front of them
with `features_only=True`. Bundled weights are pretrained tags: `sknet_mini.digits`, which makes 10 the number of
classes that `sknet_mini` has by default, as timm does it.

`segmentation_models_pytorch` then takes them as `tu-sknet50`, with `output_stride` 8 or 16 where it wants one.

Example:
    >>> import timm, selkern.timm
    >>> timm.list_models("sknet_mini*", pretrained=True)
    ['sknet_mini.digits']
    >>> net = timm.create_model("sknet_mini", pretrained=True, features_only=True, out_indices=(0, -1), in_chans=1)
    >>> net.feature_info.channels(), net.feature_info.reduction(), net.feature_info.module_name()
    ([64, 192], [2, 8], ['stages.0', 'stages.2'])
"""

# Annotations are objects here: torch.fx writes them into its graphs, and torch.jit reads them there.
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selkern.errors import PackageError, UsageError
from selkern.layers.parts import Norm, check_input
from selkern.layers.selective_kernel import SelectiveKernel
from selkern.models.backbone import Backbone, Feature, Row, Variant, make_classifier
from selkern.models.registry import architecture, list_models
from selkern.models.weights import bundled, read_card

try:
    import timm
    from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
    from timm.layers.create_norm import get_norm_layer
    from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
    from timm.models._features import feature_take_indices
except ImportError as error:
    raise PackageError(f"timm cannot be imported ({error})", __name__, "pip install 'selkern[timm]'") from error
except (RuntimeError, AttributeError, OSError) as error:  # what a torchvision that does not fit torch raises
    fix = f"install the torchvision that was built for torch {torch.__version__}"
    raise PackageError(f"timm cannot be imported ({error})", __name__, fix) from error

__all__ = ["TimmNetwork"]  # and every name that is registered, as `register_model` wants it


class TimmNetwork(nn.Module):
    """One of our networks with the methods that timm's have, and the tensor names of ours.

    Args:
        row: of an architecture table.
        num_classes: outputs of the classifier `fc`; 0 leaves it out and returns the pooled features.
        in_chans: channels of the images.
        global_pool: timm's name of a pooling: "avg", "max", ...; "" with `num_classes=0` returns the last map.
        drop_rate: dropout in front of the classifier.
        drop_path_rate: stochastic depth, as in `selkern.create_model`.
        norm, gate_norm: as in `selkern.create_model`.
        norm_layer: timm's way to say `norm`, a name or class such as "groupnorm" or FrozenBatchNorm2d; the gates,
            whose descriptors have no space, keep `gate_norm`.
        output_stride: the most that the stages may halve the image to, a power of two: beyond it, dilation takes the
            place of strides.
        device, dtype: of the parameters.

    Raises:
        UsageError: an `output_stride` that is no power of two, or below the stride in front of the stages; a norm or
            rate that cannot be.
    """

    global_pool: Any  # timm's, whose methods have no types

    def __init__(
        self,
        row: Row,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm: Norm = "batch",
        gate_norm: Norm | None = None,
        norm_layer: Any = None,
        output_stride: int = 32,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if norm_layer is not None:
            norm, gate_norm = get_norm_layer(norm_layer), gate_norm or norm  # type: ignore[no-untyped-call]
        variant = Variant(norm=norm, gate_norm=gate_norm, drop_path_rate=drop_path_rate)
        network = row.build(0, in_chans, False, variant)
        self.feature_info = dilate(network, output_stride)
        self.stem, self.pool, self.stages = network.stem, network.pool, network.stages
        self.last = getattr(network, "last", nn.Identity())  # of a ShuffleNet
        self.num_features, self.in_chans = network.num_features, in_chans
        self.drop_rate, self.grad_checkpointing = drop_rate, False
        self.reset_classifier(num_classes, global_pool)
        self.to(device=device, dtype=dtype)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier, freshly initialised; None keeps the pooling."""
        if global_pool is not None:
            pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
            self.global_pool = pool.train(self.training)
        self.num_classes = num_classes
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        fc = make_classifier(self.head_hidden_size, num_classes).to(next(self.stem.parameters()))
        self.fc = fc.train(self.training)

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The classifier, or its name."""
        return "fc" if name_only else self.fc

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether a backward pass computes the units a second time instead of keeping what happened within them."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """What belongs together for layer-wise learning rates: the stem, and each stage or each unit."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    def _maps(self, x: Tensor, until: str = "") -> dict[str, Tensor]:
        """(N, in_chans, H, W) to the maps by the names of the modules that made them, as far as `until`."""
        check_input("the network", x, self.in_chans, 2)
        y = self.stem(x)
        maps = {_end_of(self.stem): y}
        maps["pool"] = y = self.pool(y)
        for index, stage in enumerate(self.stages):
            if until in maps:
                break
            maps[f"stages.{index}"] = y = checkpoint_seq(stage, y) if self.grad_checkpointing else stage(y)
        else:
            maps["last"] = self.last(y)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) to the last map (N, num_features, h, w)."""
        if self.grad_checkpointing:
            return self._maps(x)["last"]
        check_input("the network", x, self.in_chans, 2)
        return self.last(self.stages(self.pool(self.stem(x))))  # each called as one, for what waits on it

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits (N, num_classes), or to what goes into the classifier."""
        y = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return y if pre_logits else self.fc(y)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,  # noqa: ARG002 - as timm's other CNNs: their maps have no further norm
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last map and the maps of `feature_info` at `indices`: the last n for a number, all for None."""
        if output_fmt != "NCHW":
            raise UsageError(f"output_fmt is {output_fmt!r}", "output_fmt", "the maps of these networks are NCHW")
        names = [info["module"] for info in self.feature_info]
        take, last_index = feature_take_indices(len(names), indices)
        maps = self._maps(x, until=names[last_index] if stop_early else "")
        taken = [maps[name] for index, name in enumerate(names) if index in take]
        return taken if intermediates_only else ([*maps.values()][-1], taken)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] | None = 1,
        prune_norm: bool = False,  # noqa: ARG002 - nothing to prune
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages above the last_index of `indices`, and the head; which indices they are from the first on."""
        take, last_index = feature_take_indices(len(self.feature_info), indices)
        part, _, stage = self.feature_info[last_index]["module"].partition(".")
        kept = int(stage) + 1 if part == "stages" else 0
        self.stages = nn.Sequential(*[*self.stages.children()][:kept]).train(self.training)
        if part == "stem":
            self.pool = nn.Identity().train(self.training)
        if prune_head:
            self.last = nn.Identity().train(self.training)
            self.reset_classifier(0, "")
        return take


def dilate(network: Backbone, output_stride: int) -> list[dict[str, Any]]:
    """Dilate a network's stages beyond a stride, and describe its maps as timm does: one per stride, the last of it.

    A stage's first unit takes the dilation from before it and the others its own, so that without gates every
    position of the strided maps keeps its value.
    """
    stem, *stages = network.feature_info
    before = stem.stride * getattr(network.pool, "stride", 1)
    if output_stride < before or output_stride & (output_stride - 1):
        raise UsageError(f"output_stride is {output_stride}", "output_stride", f"a power of two, at least {before}")
    stem = Feature(_end_of(network.stem), stem.channels, stem.stride)
    levels = {f.stride: f for f in (stem, Feature("pool", stem.channels, before), *stages)}
    for stage, feature in zip(network.stages, stages, strict=True):
        first, rest = (max(stride // output_stride, 1) for stride in (before, feature.stride))
        before = feature.stride
        if rest > 1:
            for index, unit in enumerate(stage.children()):
                _spread(unit, rest if index else first)
    return [
        {"num_chs": f.channels, "reduction": min(f.stride, output_stride), "module": f.module} for f in levels.values()
    ]


def _end_of(stem: nn.Sequential) -> str:
    """The stem's last module: timm's FeatureListNet, which takes Sequentials apart, finds no other name for its map."""
    return f"stem.{len(stem) - 1}"


def _spread(unit: nn.Module, factor: int) -> None:
    """Take the strides out of a unit and put its kernels' taps `factor` times as far apart."""
    for module in unit.modules():
        if isinstance(module, nn.Conv2d):
            (kernel, _), (dilation, _) = module.kernel_size, module.dilation
            module.stride, module.dilation = (1, 1), (dilation * factor,) * 2
            module.padding = (kernel // 2 * dilation * factor,) * 2
        elif isinstance(module, SelectiveKernel):  # whose `extents` say what its branches see
            module.kernels = tuple(replace(kernel, dilation=kernel.dilation * factor) for kernel in module.kernels)


def _cfgs() -> dict[str, Any]:
    """timm's description of what goes into our networks and comes out, by name, with a tag where weights are."""
    cfgs, shared = {}, {"first_conv": "stem.0", "classifier": "fc", "license": "apache-2.0"}
    for name in list_models():
        # timm's own default of the crop is meant for ImageNet; small images are seen whole.
        crop = 0.875 if architecture(name).input_size >= 64 else 1.0
        cfgs[name] = {**shared, **_sizes(name, 3, architecture(name).input_size), "crop_pct": crop}
    for tagged, path in bundled().items():
        card = read_card(path)
        seen = card.preprocess
        cfgs.pop(card.model, None)
        cfgs[tagged] = {
            **shared,
            "file": str(path),
            "num_classes": len(card.classes),
            "label_names": card.classes,
            **_sizes(card.model, card.in_chans, seen["size"]),
            "crop_pct": seen["crop"],
            "mean": tuple(seen["mean"]),
            "std": tuple(seen["std"]),
        }
    return cfgs


def _sizes(name: str, channels: int, size: int) -> dict[str, tuple[int, ...]]:
    """Of the images, and of the last map."""
    last = size // architecture(name).strides_of_maps[-1]
    return {"input_size": (channels, size, size), "pool_size": (last, last)}


def _register(name: str) -> None:
    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        return build_model_with_cfg(
            TimmNetwork,
            name,
            pretrained,
            feature_cfg={
                "feature_cls": "getter",
                "out_indices": tuple(range(len(architecture(name).strides_of_maps))),  # all, 3 or 5
                "flatten_sequential": True,
            },
            row=architecture(name),
            **options,
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"`selkern.create_model({name!r})` as a timm network."
    globals()[name] = register_model(build)


default_cfgs = generate_default_cfgs(_cfgs())  # where `register_model` looks for it
for _name in list_models():
    if not timm.is_model(_name):  # timm's own, or ours from an earlier import
        _register(_name)
