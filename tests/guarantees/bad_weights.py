"""Cases of weights files that are not as they should be."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from guarantees.calls import TINY
from guarantees.cases import CHECKPOINT, DATA, OK, USAGE, Case, Place
from selkern.models.weights import FORMAT, read_card, save_weights


def _changed(place: Place, file: Path, **changes: Any) -> None:
    """The sound weights with another card."""
    card = read_card(place.weights)
    for name, value in changes.items():
        object.__setattr__(card, name, value)
    save_weights(file, load_file(place.weights), card)


def _without(place: Place, file: Path, name: str) -> None:
    tensors = load_file(place.weights)
    tensors.pop(name)
    save_weights(file, tensors, read_card(place.weights))


def _reshaped(place: Place, file: Path) -> None:
    tensors = load_file(place.weights)
    tensors["fc.weight"] = torch.zeros(2, 5)
    save_weights(file, tensors, read_card(place.weights))


def _header(file: Path, header: bytes, length: int | None = None, tail: bytes = b"") -> None:
    file.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + tail)


def _bytes(file: Path, place: Place, start: int, end: int) -> None:
    file.write_bytes(place.weights.read_bytes()[start:end])


# What is written as the weights file of a case.
WEIGHTS: dict[str, Callable[[Place, Path], Any]] = {
    "nothing there": lambda _place, _file: None,
    "a folder": lambda _place, file: file.mkdir(),
    "empty": lambda _place, file: file.write_bytes(b""),
    "a text": lambda _place, file: file.write_text("weights\n" * 99),
    "zeros": lambda _place, file: file.write_bytes(bytes(9999)),
    "a pickle": lambda _place, file: file.write_bytes(pickle.dumps({"fc.weight": [1.0]})),
    "a torch file": lambda _place, file: torch.save({"fc.weight": torch.zeros(2, 5)}, file),
    "a page": lambda _place, file: file.write_text("<!doctype html><html>404</html>"),
    "a link to itself": lambda _place, file: file.symlink_to(file.name),
    "a link to /dev/zero": lambda _place, file: file.symlink_to("/dev/zero"),
    "a pipe": lambda _place, file: os.mkfifo(file),
    "cut in the header": lambda place, file: _bytes(file, place, 0, 100),
    "cut in the tensors": lambda place, file: _bytes(file, place, 0, -7),
    "without its start": lambda place, file: _bytes(file, place, 8, 99_999),
    "a header of nothing": lambda _place, file: _header(file, b""),
    "a header too long": lambda _place, file: _header(file, b"{}", 99),
    "a header that is no JSON": lambda _place, file: _header(file, b"hello"),
    "of another program": lambda _place, file: save_file({"a": torch.ones(1)}, file),
    "of an old format": lambda _place, file: save_file({"a": torch.ones(1)}, file, {"format": "selkern-weights-1"}),
    "without a card": lambda _place, file: save_file({"a": torch.ones(1)}, file, {"format": FORMAT}),
    "a card that is no JSON": lambda _place, file: save_file(
        {"a": torch.ones(1)}, file, {"format": FORMAT, "card": "{"}
    ),
    "a card that is a list": lambda _place, file: save_file(
        {"a": torch.ones(1)}, file, {"format": FORMAT, "card": "[1]"}
    ),
    "of an unknown model": lambda place, file: _changed(place, file, model="sknet_none"),
    "of a model that is a list": lambda place, file: _changed(place, file, model=["sk_tiny"]),
    "of another architecture": lambda place, file: _changed(place, file, model="sknet_mini"),
    "of more classes": lambda place, file: _changed(place, file, classes=("a", "b", "c")),
    "of no classes": lambda place, file: _changed(place, file, classes=()),
    "of one class twice": lambda place, file: _changed(place, file, classes=("cat", "cat")),
    "of classes that are numbers": lambda place, file: _changed(place, file, classes=(1, 2)),
    "of one channel": lambda place, file: _changed(place, file, in_chans=1),
    "of channels in words": lambda place, file: _changed(place, file, in_chans="three"),
    "of -1 channels": lambda place, file: _changed(place, file, in_chans=-1),
    "without preprocessing": lambda place, file: _changed(place, file, preprocess={}),
    "preprocessing that is a list": lambda place, file: _changed(place, file, preprocess=[1]),
    "preprocessing in words": lambda place, file: _changed(
        place, file, preprocess={"size": "big", "crop": 1, "mean": [0] * 3, "std": [1] * 3}
    ),
    "preprocessing of size 0": lambda place, file: _changed(
        place, file, preprocess={"size": 0, "crop": 1, "mean": [0] * 3, "std": [1] * 3}
    ),
    "preprocessing of an absurd size": lambda place, file: _changed(
        place, file, preprocess={"size": 10**9, "crop": 1, "mean": [0] * 3, "std": [1] * 3}
    ),
    "metrics that are text": lambda place, file: _changed(place, file, metrics="good"),
    "a source that is text": lambda place, file: _changed(place, file, source="me"),
    "without a tensor": lambda place, file: _without(place, file, "fc.bias"),
    "a tensor of another shape": lambda place, file: _reshaped(place, file),
}
# A card may hold these, and the weights are used all the same, or are refused.
EITHER = {"of one class twice"}


def weights(place: Place) -> Iterator[Case]:
    """Weights files, given to every command that takes them."""
    image = place.good / "val" / "cat" / "000.png"
    for name, make in WEIGHTS.items():
        data = place.data()
        file = place.input / "w.safetensors"
        make(place, file)
        codes = (OK, USAGE) if name in EITHER else (CHECKPOINT,)
        shows = () if name in EITHER else (str(file),)
        commands = {
            "evaluate": ("evaluate", str(file), "--data", str(data), "--device", "cpu"),
            "predict": ("predict", str(file), str(image), "--device", "cpu"),
            "start from": place.train(data, "--weights", str(file)),
            "check": ("check", str(file)),
            "convert": ("convert", str(file), str(place.output / "new.safetensors"), "--model", TINY),
        }
        for command, words in commands.items():
            # Their own business: a file of ours needs no converting, and start and check ask for no preprocessing.
            own = (*codes, OK, 1, USAGE) if command in ("convert", "check", "start from") else codes
            place.output.mkdir(exist_ok=True)
            yield Case(f"{command}: {name}", words, own, shows if own == codes else ())
    for suffix in ("pth", "pt", "bin"):
        for name in (
            "nothing there",
            "a folder",
            "empty",
            "a text",
            "zeros",
            "a pickle",
            "a pipe",
            "a link to /dev/zero",
        ):
            place.fresh()
            file = place.input / f"w.{suffix}"
            WEIGHTS[name](place, file)
            place.output.mkdir()
            words = ("convert", str(file), str(place.output / "new.safetensors"), "--model", TINY)
            yield Case(f"convert .{suffix}: {name}", words, (CHECKPOINT,), (str(file),))
    file = place.fresh() / "w.pth"
    torch.save({"fc.weight": torch.zeros(2, 5)}, file)
    yield Case("evaluate a torch file", ("evaluate", str(file)), (CHECKPOINT,), (str(file), "convert"))
    yield from _class_names(place)


def _class_names(place: Place) -> Iterator[Case]:
    source, target = place.fresh() / "w.pth", str(place.output / "new.safetensors")
    torch.save(load_file(place.weights), source)
    words = ("convert", str(source), target, "--model", TINY)
    for name, text in {"too few": b"cat\n", "not UTF-8": b"\xff\xfe\x00", "empty": b"", "zeros": bytes(9999)}.items():
        names = place.input / "names.txt"
        names.write_bytes(text)
        place.output.mkdir(exist_ok=True)
        codes = (DATA,) if name in ("not UTF-8", "zeros") else (USAGE,)
        yield Case(f"class names: {name}", (*words, "--classes", str(names)), codes)
        shutil.rmtree(place.output)
    yield Case("class names: no file", (*words, "--classes", str(place.input / "no")), (USAGE,), ("no such file",))
    yield Case("convert into a folder that is not there", words, (USAGE,), (str(place.output),))
    place.output.mkdir()
    Path(target).write_bytes(b"mine")
    yield Case("convert onto a file", words, (USAGE,), (target,), untouched=place.output)
    yield Case("convert to .pth", (*words[:2], "x.pth", *words[3:]), (USAGE,), ("x.pth",))
