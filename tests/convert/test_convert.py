"""`convert`: other programs' files into ours, with no code run and nothing overwritten."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from selkern.cli import main
from selkern.convert.files import convert
from selkern.convert.timm import to_timm
from selkern.data.preprocess import Preprocess
from selkern.errors import CheckpointError, UsageError
from selkern.models.registry import architecture, create_model
from selkern.models.weights import read_card


@pytest.fixture
def state() -> dict[str, Tensor]:
    return {name: torch.randn_like(t) if t.is_floating_point() else t for name, t in _mini().state_dict().items()}


def _mini() -> torch.nn.Module:
    return create_model("sknet_mini", num_classes=4)


def _same_weights(path: Path, state: dict[str, Tensor]) -> None:
    loaded = create_model(weights=path).state_dict()
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize(
    ("suffix", "wrap"),
    [(".pth", ""), (".pth", "state_dict"), (".pth", "module."), (".safetensors", ""), (".safetensors", "module.")],
)
def test_a_state_dict_of_ours(tmp_path: Path, state: dict[str, Tensor], suffix: str, wrap: str) -> None:
    source, target = tmp_path / f"in{suffix}", tmp_path / "out.safetensors"
    names = {f"module.{name}": t for name, t in state.items()} if wrap == "module." else state
    if suffix == ".pth":
        torch.save({"epoch": 3, "state_dict": names} if wrap == "state_dict" else names, source)
    else:
        save_file(names, source)
    card = convert(source, target, "sknet_mini", classes=("a", "b", "c", "d"))
    assert (card.model, card.classes) == ("sknet_mini", ("a", "b", "c", "d"))
    _same_weights(target, state)


def test_counts_of_batches_may_be_absent(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file({n: t for n, t in state.items() if not n.endswith("batches_tracked")}, tmp_path / "in.safetensors")
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors", "sknet_mini")
    _same_weights(tmp_path / "out.safetensors", state)


def test_timm_names(tmp_path: Path) -> None:
    ours = create_model("skresnet18", num_classes=5).state_dict()
    save_file({n: t.contiguous() for n, t in to_timm(ours, "skresnet18").items()}, tmp_path / "timm.safetensors")
    convert(tmp_path / "timm.safetensors", tmp_path / "out.safetensors", "skresnet18")
    _same_weights(tmp_path / "out.safetensors", ours)


def test_a_caffemodel_becomes_rgb(tmp_path: Path) -> None:
    caffe_file = pytest.importorskip("caffe_file")
    row = architecture("sknet26")
    layers = list(caffe_file.authors(row, 10))
    source = caffe_file.write(tmp_path / "in.caffemodel", layers)
    card = convert(source, tmp_path / "out.safetensors", "sknet26")
    model = create_model(weights=tmp_path / "out.safetensors").double().eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    bgr = images.double().flip(1) - torch.tensor([104.0, 117.0, 123.0]).view(3, 1, 1)
    ours = model(Preprocess.from_dict(card.preprocess).normalise(images).double())
    torch.testing.assert_close(ours, caffe_file.forward(layers, row, bgr), rtol=1e-4, atol=1e-4)
    assert "assumed" in card.source


class Evil:
    """A pickle that would make a file where it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("form", ["torch", "pickle", "text", "empty"])
def test_files_that_are_not_weights(tmp_path: Path, form: str) -> None:
    source, canary = tmp_path / "in.pth", tmp_path / "canary"
    if form == "torch":
        torch.save({"state_dict": Evil(canary)}, source)
    elif form == "pickle":
        source.write_bytes(pickle.dumps(Evil(canary)))
    else:
        source.write_text("weights" if form == "text" else "")
    with pytest.raises(CheckpointError) as caught:
        convert(source, tmp_path / "out.safetensors", "sknet_mini")
    assert "in.pth" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not canary.exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_another_architecture_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "in.pth")
    with pytest.raises(CheckpointError, match="give weights of resnet_mini"):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors", "resnet_mini")


def test_nothing_is_overwritten(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "in.pth")
    (tmp_path / "out.safetensors").write_text("mine")
    with pytest.raises(UsageError, match="new"):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors", "sknet_mini")
    assert (tmp_path / "out.safetensors").read_text() == "mine"


def test_no_folder_is_made(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "in.pth")
    with pytest.raises(UsageError, match=r"no such folder \| .*/new \| make it first"):
        convert(tmp_path / "in.pth", tmp_path / "new" / "out.safetensors", "sknet_mini")
    assert not (tmp_path / "new").exists()


def test_the_command(tmp_path: Path, state: dict[str, Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(state, tmp_path / "in.pth")
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    words = ["convert", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"), "--model", "sknet_mini"]
    assert main([*words, "--classes", str(tmp_path / "names.txt")]) == 0
    assert "sknet_mini, 4 classes" in capsys.readouterr().out
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        ("\ufeffant\r\nbee\r\n\r\ncow\r\ndog\r\n".encode(), ("ant", "bee", "cow", "dog")),
        ("ant\nbee\ncow\ndog".encode("utf-16"), ("ant", "bee", "cow", "dog")),
        (b"ant\nbee\n\nant\ndog\n", "class 'ant' is in line 1 already | {} line 4 | "),
        ("caf\xe9\nbee\ncow\ncafe\u0301\n".encode(), "class 'cafe\u0301' is in line 1 already | {} line 4 | "),
        (b"ant\nbee\ncow\n", "3 class names for 4 outputs | --classes | "),
        (b"", "0 class names for 4 outputs | --classes | "),
        (b"ant\nbee\ncow\ncaf\xe9\n", "not UTF-8: it holds the byte 0xe9"),
    ],
)
def test_class_lists(
    tmp_path: Path,
    state: dict[str, Tensor],
    content: bytes,
    reported: str | tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save(state, tmp_path / "in.pth")
    names, target = tmp_path / "names.txt", tmp_path / "out.safetensors"
    names.write_bytes(content)
    code = main(["convert", str(tmp_path / "in.pth"), str(target), "--model", "sknet_mini", "--classes", str(names)])
    if isinstance(reported, tuple):
        assert code == 0
        assert read_card(target).classes == reported
    else:
        assert code in (2, 3)
        assert reported.format(names) in capsys.readouterr().err
        assert not target.exists()
