"""What `selectify` costs, and that it is exact on photos with trained weights.

    python benchmarks/selectify.py cost [NAME ...]                        # timm's networks or yolov8n.yaml
    python benchmarks/selectify.py dilated                                # depthwise convolutions, torch's and ours
    python benchmarks/selectify.py exact --photos FOLDER --weights FILE   # tf_efficientnet_lite0, or --model NAME

`cost` prints parameters, multiply-adds, time and memory of all units changed, in both forms, as ratios to the unchanged
network. `exact` prints how many photos have the same logits to the last bit, in eval and in train mode, and whether the
norms' statistics are the same afterwards. `dilated` prints how long forward and backward pass of dilated depthwise
convolutions as torch has them and as units train with them.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import selkern
from selkern.adapt.unit import Origin, SelectiveConv
from selkern.convert.subject import preprocess_of
from selkern.data.sources import open_source
from selkern.evaluation import batches_of, to_input
from selkern.layers.gate import Gate
from selkern.measure.bench import HELD, INFERENCE, TRAINING, Timing, bench
from selkern.measure.machine import describe, summary
from selkern.measure.timing import in_turn
from selkern.models.cost import count
from selkern.ops.dilated import depthwise_conv2d

NETWORKS = ("resnet18", "resnet50", "tf_efficientnet_lite0", "mobilenetv3_small_100")
# Batch, channels, side, stride and dilation: those of tf_efficientnet_lite0's units.
DILATED = (
    (32, 144, 32, 1, 2),
    (32, 144, 16, 2, 2),
    (32, 240, 16, 1, 3),
    (32, 240, 16, 2, 3),
    (32, 480, 8, 1, 2),
    (32, 672, 8, 1, 3),
    (32, 1152, 4, 1, 3),
    (8, 96, 112, 2, 2),
)
_BATCH = 20


def network(name: str, weights: Path | None = None) -> nn.Module:
    """A network of timm with random weights, or those of a file; or of ultralytics, NAME.yaml."""
    torch.manual_seed(0)
    model: nn.Module
    if name.endswith(".yaml"):
        ultralytics: Any = importlib.import_module("ultralytics")
        model = ultralytics.YOLO(name).model
    else:
        model = importlib.import_module("timm").create_model(name)
    if weights is not None:
        model.load_state_dict(load_file(weights))
    return model


def cost(names: list[str], size: int, batch: int, seconds: float) -> None:
    """Print a table of ratios."""
    print(summary(describe()))
    print(
        "| network | form | units | parameters, M | MMACs | inference, batch 1 | the same, batch N | training | held |"
    )
    print("|---" * 9 + "|")
    for name in names:
        plain = network(name)
        x = torch.randn(2, 3, size, size)
        models = {"unchanged": plain}
        for form in ("residual", "widened"):
            models[form] = selkern.selectify(plain, example=x, where="*", form=form)
        models["residual, folded"] = selkern.fold(models["residual"], example=x)
        rows = bench(models, dict.fromkeys(models, x), (1, batch), seconds)
        for form, model in models.items():
            here = [row for row in rows if row.model == form]
            cells = [f"{row.ratio.median:.2f}" if row.ratio else "1" * bool(row.value) for row in _ordered(here, batch)]
            units = sum(isinstance(module, Gate) for module in model.modules())
            total = count(model, size)
            sizes = f"{total.parameters / 1e6:.2f} | {total.macs / 1e6:,.0f}"
            print(f"| {name} | {form} | {units} | {sizes} | {' | '.join(cells)} |")


def _ordered(rows: list[Timing], batch: int) -> Iterator[Timing]:
    for quantity, size in ((INFERENCE, 1), (INFERENCE, batch), (TRAINING, batch), (HELD, batch)):
        yield next(row for row in rows if (row.quantity, row.batch_size) == (quantity, size))


def dilated(seconds: float) -> None:
    """Print a table of milliseconds."""
    print(summary(describe()))
    print("| batch, channels, side, stride, dilation | torch, ms | ours, ms | ratio |")
    print("|---" * 4 + "|")
    for batch, channels, side, stride, step in DILATED:
        x = torch.randn(batch, channels, side, side).contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(channels, 1, 3, 3, requires_grad=True)

        def trained(convolve: Callable[[], Tensor], given: tuple[Tensor, Tensor]) -> None:
            torch.autograd.grad(convolve().sum(), given)

        jobs = {
            "torch": partial(trained, partial(F.conv2d, x, weight, None, stride, step, step, channels), (x, weight)),
            "ours": partial(trained, partial(depthwise_conv2d, x, weight, stride, step, step), (x, weight)),
        }
        taken = {name: 1000 * statistics.median(each) for name, each in in_turn(jobs, budget=seconds).items()}
        numbers = f"{taken['torch']:.1f} | {taken['ours']:.1f} | {taken['torch'] / taken['ours']:.1f}"
        print(f"| {batch}, {channels}, {side}, {stride}, {step} | {numbers} |")


def exact(name: str, photos: str, weights: Path) -> None:
    """Print for how many photos the logits are the same."""
    preprocess = preprocess_of(f"timm:{name}")
    split = open_source(photos, cut=False).test
    keys = [(0, index) for index in range(len(split))]
    batches = [keys[at : at + _BATCH] for at in range(0, len(keys), _BATCH)]
    plain = network(name, weights).eval()
    changed = selkern.selectify(plain, example=torch.randn(2, 3, preprocess.size, preprocess.size), where="*").eval()
    training = copy.deepcopy(plain).train(), copy.deepcopy(changed).train()
    same = same_trained = total = 0
    with torch.no_grad():
        for batch in batches_of(split, preprocess, batches):
            x = to_input(batch.images, preprocess, torch.device("cpu"))
            total += len(x)
            same += int((plain(x) == changed(x)).all(dim=1).sum())
            state = torch.random.get_rng_state()
            one = training[0](x)
            torch.random.set_rng_state(state)  # dropout
            same_trained += int((one == training[1](x)).all(dim=1).sum())
    units = [module for module in changed.modules() if isinstance(module, SelectiveConv)]
    equal = sum(_same_statistics(*training, unit.origin) for unit in units if unit.origin.norm is not None)
    modes = f"{same} in eval mode, {same_trained} in train mode"
    print(f"{name}, {len(units)} units, {total} photos; logits equal to the last bit: {modes}")
    print(f"norms of all branches with equal statistics after the photos in train mode: {equal} of {len(units)}")


def _same_statistics(plain: nn.Module, changed: nn.Module, origin: Origin) -> bool:
    unit = changed.get_submodule(origin.conv)
    assert isinstance(unit, SelectiveConv)
    norms = [unit.get_submodule(part) for part in ("norm", *(f"further.{i}.norm" for i in range(len(unit.further))))]
    expected = plain.get_submodule(str(origin.norm)).state_dict()
    return all(torch.equal(norm.state_dict()[key], value) for norm in norms for key, value in expected.items())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    costs = commands.add_parser("cost")
    costs.add_argument("names", nargs="*", default=list(NETWORKS))
    costs.add_argument("--size", type=int, default=224)
    costs.add_argument("--batch", type=int, default=8)
    costs.add_argument("--seconds", type=float, default=20.0)
    layers = commands.add_parser("dilated")
    layers.add_argument("--seconds", type=float, default=3.0)
    exactly = commands.add_parser("exact")
    exactly.add_argument("--model", default="tf_efficientnet_lite0")
    exactly.add_argument("--photos", required=True, help="what `selkern evaluate --data` takes")
    exactly.add_argument("--weights", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "cost":
        cost(options.names, options.size, options.batch, options.seconds)
    elif options.command == "dilated":
        dilated(options.seconds)
    else:
        exact(options.model, options.photos, options.weights)


if __name__ == "__main__":
    main()
