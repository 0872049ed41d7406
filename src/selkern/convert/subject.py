"""What a command was pointed at: a model by name, a weights file, a network of timm, or a class of the user's own."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from selkern.convert.foreign import CROP_MODES
from selkern.convert.hub import is_reference
from selkern.data.decode import show
from selkern.data.preprocess import Preprocess
from selkern.errors import CheckpointError, UsageError, kind_and_line
from selkern.layers.parts import evaluating
from selkern.models.backbone import Backbone
from selkern.models.registry import architecture, create_model, list_models

IMAGES = 5  # a batch size that is seldom a number of branches or channels


def find_subject(name: str, arguments: str = "") -> nn.Module:
    """The module that a word on the command line means.

    Args:
        name: a model's name; a weights file, bundled weights or `hf-hub:user/name`; `timm:NAME`; `FILE.py:NAME` or
            `package.module:NAME`, where NAME is a module, or a class or function that makes one. Their code is
            imported and run.
        arguments: for what is made, as in Python: "64, kernels=[3, 5]". Only literals.

    Raises:
        UsageError: no such thing, or it cannot be made with these arguments.
    """
    if name.startswith("timm:"):
        timm = _import("timm", name)
        return _make(timm.create_model, f"{name.removeprefix('timm:')!r}, {arguments}", name)
    if name.partition("(")[0] in list_models():
        return _make(create_model, f"{name!r}, {arguments}", name)
    if name.endswith(".py"):
        raise UsageError("a file of code, without the name of what is in it", name, f"give {name}:NAME")
    home, colon, attribute = name.rpartition(":")
    if colon and not is_reference(name) and not Path(name).exists():
        module = _import_file(Path(home), name) if home.endswith(".py") else _import(home, name)
        if not hasattr(module, attribute):
            raise UsageError(f"{home} has no {attribute!r}", name, "give FILE.py:NAME or package.module:NAME")
        result = getattr(module, attribute)
        return result if isinstance(result, nn.Module) else _make(result, arguments, name)
    try:
        return create_model(weights=name)
    except CheckpointError as error:
        if is_reference(name) or Path(name).exists():
            raise
        try:
            architecture(name)  # whose message has the nearest names
        except UsageError as unknown:
            fix = "or give weights, timm:NAME, FILE.py:CLASS, package.module:CLASS"
            raise UsageError(unknown.what, name, f"{unknown.fix}; {fix}") from error
        raise


def own_size(model: nn.Module) -> int:
    """Side of the images that a model is made for, px: by its weights, its design, by timm, or 224."""
    card, of_timm = getattr(model, "card", None), getattr(model, "default_cfg", None)
    if card is not None and card.preprocess:
        return Preprocess.from_dict(card.preprocess).size
    if isinstance(model, Backbone):
        return model.arch.input_size
    if isinstance(of_timm, dict) and len(of_timm.get("input_size", ())) == 3:
        return int(of_timm["input_size"][-1])
    return 224


def find_inputs(model: nn.Module, shape: tuple[int, ...] | None = None, side: int | None = None) -> Tensor:
    """A random batch of 5 images that a model takes: (5, *shape), or a shape found by trying.

    Args:
        model: the model.
        shape: of one input.
        side: of square images of as many channels as the model reads.

    Raises:
        UsageError: the model fails on this shape, or on every one tried.
    """
    shapes = [shape] if shape is not None else list(_likely_shapes(model, side))
    first = next(model.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    failure = ""
    for candidate in shapes:
        x = torch.randn(IMAGES, *candidate, generator=generator).to(first)
        try:
            with torch.no_grad(), evaluating(model):
                model(x)
            return x
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything
            failure = failure or kind_and_line(error)
    others = f" and {len(shapes) - 1} other shapes" if len(shapes) > 1 else ""
    fix = ("--input", "give its shape, such as 64,32,32") if side is None else ("--image-size", "give another size")
    tried = f"{(IMAGES, *shapes[0])}{others}"
    raise UsageError(f"the model does not run on {tried} ({failure})", *fix)


def _likely_shapes(model: nn.Module, side: int | None = None) -> Iterator[tuple[int, ...]]:
    """Images of three channels, or of as many as the first convolution reads, or a multiple of it."""
    convs = (module for module in model.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)))
    first = next(convs, None)
    axes = 2 if first is None else len(first.kernel_size)
    reads = 3 if first is None else first.in_channels
    # Not square, so that axes can be distinguished; 224 for networks that take nothing else.
    spaces: dict[int, list[tuple[int, ...]]] = {1: [(96,)], 2: [(64, 96), (224, 224)], 3: [(12, 16, 20)]}
    for space in spaces[axes] if side is None else [(side,) * axes]:
        for channels in dict.fromkeys((getattr(model, "in_chans", reads), reads, 2 * reads, 3 * reads, 4 * reads)):
            yield (channels, *space)


def _import(module: str, where: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does
    try:
        return importlib.import_module(module)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name == module == "timm"
        fix = "pip install 'selkern[timm]'" if absent else f"install one that fits torch {torch.__version__}"
        raise UsageError(f"{module} cannot be imported ({reason})", where, fix) from error


def _import_file(path: Path, where: str) -> ModuleType:
    if not path.is_file():
        raise UsageError("no such file", str(path), "give FILE.py:NAME")
    sys.path.insert(0, str(path.parent))  # its neighbours, as when it is run
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{path} cannot be run ({kind_and_line(error)})", where, "mend it") from error
    return module


def _make(maker: Any, arguments: str, where: str) -> nn.Module:
    try:
        call = ast.parse(f"_({arguments})", mode="eval").body
        assert isinstance(call, ast.Call)
        positional = [ast.literal_eval(word) for word in call.args]
        named = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise UsageError(f"not arguments: {arguments!r}", "--with", 'write them as "64, kernels=[3, 5]"') from error
    try:
        made = maker(*positional, **named)
    except Exception as error:
        reason = kind_and_line(error)
        given = f"with {arguments}" if arguments else "without arguments"
        fix = f'it was called {given}; --with gives others, such as "64, groups=8"'
        raise UsageError(f"cannot be made ({reason})", where, fix) from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"gives a {type(made).__name__}, no torch module", where, "name a class or a function")
    return made


SIDE = 224  # px: what most third-party networks are made for


def is_code(word: str) -> bool:
    """Whether a word names no weights or run, but timm:NAME, FILE.py:NAME or package.module:NAME."""
    home, colon, name = word.rpartition(":")
    if not colon or is_reference(word) or Path(word).exists():
        return False
    return name.isidentifier() or home == "timm"


def is_own_code(word: str) -> bool:
    """Whether a word names code of the user's own, which is run only where they name it: not timm's."""
    return is_code(word) and not word.startswith("timm:")


def preprocess_of(word: str, size: int | None = None) -> Preprocess:
    """How images become inputs of a third-party network: as timm has it, else resized and scaled to -1..1.

    Args:
        word: `timm:NAME`, or another as `find_subject` takes it.
        size: px; None takes timm's own, else 224.

    Raises:
        UsageError: timm is missing, or has no such network.
    """
    if not word.startswith("timm:"):
        return Preprocess(size=size or SIDE)
    timm, name = _import("timm", word), word.removeprefix("timm:")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise UsageError(f"timm has no {name}", word, f"did you mean {near[0]}?" if near else "see timm.list_models()")
    known = timm.models.get_pretrained_cfg(name)
    config: dict[str, Any] = timm.data.resolve_data_config(pretrained_cfg=known.to_dict() if known is not None else {})
    side = size or int(config["input_size"][-1])
    colours = {name: tuple(config[name]) for name in ("mean", "std")}
    values = {"size": side, "crop": config["crop_pct"], **colours, "resize": CROP_MODES.get(config["crop_mode"])}
    return Preprocess.from_dict(values)


def check_outputs(model: nn.Module, word: str, side: int, classes: int) -> None:
    """Raise UsageError unless the model gives (2, classes) for two images."""
    first = next(model.parameters(), None)
    if first is None:
        raise UsageError("has no parameters", show(word), "name a network")
    x = torch.zeros(2, 3, side, side, device=first.device)
    try:
        with torch.inference_mode(), evaluating(model):
            given = model(x)
    except Exception as error:
        reason = kind_and_line(error)
        raise UsageError(
            f"does not run on (2, 3, {side}, {side}) ({reason})", show(word), "give another --image-size or --with"
        ) from error
    if not isinstance(given, Tensor) or given.shape != (2, classes):
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise UsageError(
            f"gives {shape} for two images, and the data have {classes} classes",
            show(word),
            f"make it with as many outputs: add the argument for it to --with, such as num_classes={classes}",
        )
