"""`create_model` by name and by weights file: the round trip, and every file that must be refused."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selkern.convert.files import convert
from selkern.errors import CheckpointError, SelkernError, UsageError
from selkern.models.backbone import Backbone
from selkern.models.registry import create_model
from selkern.models.weights import FORMAT, Card, bundled, read_card, read_tensors, save_weights

CARD = Card(
    model="sknet_mini",
    classes=("cat", "dog", "eel"),
    in_chans=1,
    preprocess={"size": 48, "mean": [0.5]},
    metrics={"top1": 0.75},
    source={"command": "selkern train", "epoch": 3},
)


@pytest.fixture
def model() -> Backbone:
    made = create_model("sknet_mini", num_classes=3, in_chans=1)
    with torch.no_grad():
        for buffer in made.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return made.eval()


@pytest.fixture
def file(tmp_path: Path, model: Backbone) -> Path:
    path = tmp_path / "best.safetensors"
    save_weights(path, model.state_dict(), CARD)
    return path


def rewrite(path: Path, change: Callable[[dict[str, str], dict[str, Tensor]], object]) -> None:
    """Write a weights file again with its metadata or tensors changed, in perfect order but for the checksum."""
    with safe_open(path, framework="pt") as opened:
        metadata = dict(opened.metadata())
    tensors = load_file(path)
    change(metadata, tensors)
    save_file(tensors, path, metadata=metadata)


def refused(kind: type[SelkernError], code: int, call: Callable[[], object]) -> str:
    with pytest.raises(kind) as error:
        call()
    assert error.value.exit_code == code
    assert "\n" not in str(error.value)
    return str(error.value)


def test_round_trip_gives_the_same_card_and_bit_identical_outputs(file: Path, model: Backbone) -> None:
    assert read_card(file) == CARD
    x = torch.randn(2, 1, 48, 48)
    for made in (
        create_model(weights=file),
        create_model("sknet_mini", weights=str(file), num_classes=3, in_chans=1),
    ):
        assert torch.equal(made.eval()(x), model(x))
        assert made.state_dict().keys() == model.state_dict().keys()


def test_saving_leaves_one_file_and_takes_any_memory_layout(file: Path, model: Backbone) -> None:
    strided = {n: v.mT.contiguous().mT if v.ndim > 1 else v for n, v in model.state_dict().items()}
    assert not strided["fc.weight"].is_contiguous()
    save_weights(file, strided, CARD)
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    x = torch.randn(1, 1, 48, 48)
    assert torch.equal(create_model(weights=file).eval()(x), model(x))


def test_another_number_of_classes_makes_the_head_anew_and_says_so_once(
    file: Path, model: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "selkern"):
        other = create_model(weights=file, num_classes=5).eval()
    assert [record.getMessage() for record in caplog.records] == [
        "head made anew for 5 classes (best.safetensors has 3)"
    ]
    assert isinstance(other.fc, nn.Linear)
    assert other.fc.weight.shape == (5, other.num_features)
    assert other.fc.weight.std().item() == pytest.approx(0.01, rel=0.2)
    x = torch.randn(1, 1, 48, 48)
    for a, b in zip(other.forward_features(x), model.forward_features(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("classes", [None, 3, 9])
def test_features_only_takes_the_weights_and_no_head(
    file: Path, model: Backbone, classes: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = create_model(weights=file, features_only=True, num_classes=classes).eval()
    x = torch.randn(1, 1, 48, 48)
    maps = backbone(x)
    assert isinstance(maps, list)
    assert all(torch.equal(a, b) for a, b in zip(maps, model.forward_features(x), strict=True))
    assert caplog.records == []


def test_no_classes_takes_the_weights_and_no_head(file: Path, model: Backbone) -> None:
    x = torch.randn(1, 1, 48, 48)
    pooled = create_model(weights=file, num_classes=0).eval()(x)
    assert isinstance(pooled, Tensor)
    assert torch.equal(pooled, model.forward_features(x)[-1].mean((2, 3)))


def test_a_name_mistyped_tells_the_nearest() -> None:
    message = refused(UsageError, 2, lambda: create_model("sknet_50"))
    assert message.startswith("unknown model 'sknet_50' | model | did you mean sknet50")


def test_a_name_like_no_other_lists_them_all() -> None:
    assert "sknet101_sum" in refused(UsageError, 2, lambda: create_model("zzzzzz"))


def test_neither_name_nor_weights() -> None:
    assert "neither a model name nor weights" in refused(UsageError, 2, create_model)


def test_weights_of_another_architecture(file: Path) -> None:
    message = refused(CheckpointError, 4, lambda: create_model("sknet_mini_sum", weights=file))
    assert message == f"weights are of sknet_mini, not sknet_mini_sum | {file} | use model sknet_mini"


def test_a_mistyped_name_beside_weights_is_a_mistyped_name(file: Path) -> None:
    assert "unknown model" in refused(UsageError, 2, lambda: create_model("sknet_mimi", weights=file))


def test_weights_for_other_channels(file: Path) -> None:
    message = refused(CheckpointError, 4, lambda: create_model(weights=file, in_chans=3))
    assert "weights take 1 channels, not 3" in message


def _missing(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _text(path: Path) -> None:
    path.write_text("not a weights file at all")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _truncated_in_its_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _pickled(path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(3)}, path)


def _of_others(path: Path) -> None:
    save_file({"fc.weight": torch.zeros(3)}, path)


def _of_another_format(path: Path) -> None:
    save_file({"fc.weight": torch.zeros(3)}, path, metadata={"format": "selkern-weights-1", "card": "{}"})


def _without_a_card(path: Path) -> None:
    save_file({"fc.weight": torch.zeros(3)}, path, metadata={"format": FORMAT})


def _card_is_no_json(path: Path) -> None:
    save_file({"fc.weight": torch.zeros(3)}, path, metadata={"format": FORMAT, "card": "{model"})


def _card_is_a_list(path: Path) -> None:
    save_file({"fc.weight": torch.zeros(3)}, path, metadata={"format": FORMAT, "card": "[1]"})


def _card_has_an_unknown_field(path: Path) -> None:
    card = json.dumps({"model": "sknet_mini", "classes": ["a"], "licence": "?"})
    save_file({"fc.weight": torch.zeros(3)}, path, metadata={"format": FORMAT, "card": card})


def _card_is_nested_without_end(path: Path) -> None:
    save_file({"fc.weight": torch.zeros(3)}, path, metadata={"format": FORMAT, "card": "[" * 100_000})


def _without_a_checksum(path: Path) -> None:
    rewrite(path, lambda metadata, _: metadata.pop("sha256"))


def _header_too_long(path: Path) -> None:
    path.write_bytes(((16 << 20) + 1).to_bytes(8, "little"))


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (_missing, "no such weights file"),
    (_folder, "no such weights file"),
    (_text, "cannot be read"),
    (_empty, "cannot be read"),
    (_truncated, "cannot be read"),
    (_truncated_in_its_header, "cannot be read"),
    (_pickled, "cannot be read"),
    (_of_others, "not a selkern weights file"),
    (_of_another_format, "not a selkern weights file"),
    (_without_a_card, "cannot be read"),
    (_card_is_no_json, "cannot be read"),
    (_card_is_a_list, "cannot be read"),
    (_card_has_an_unknown_field, "cannot be read"),
    (_card_is_nested_without_end, "cannot be read"),
    (_without_a_checksum, "differs from what was written"),
    (_header_too_long, "cannot be read (its header would have 16,777,217 bytes, more than 16,777,216)"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN)
def test_a_file_that_is_no_weights_file_is_refused(file: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(file)
    reported = refused(CheckpointError, 4, lambda: create_model(weights=file))
    assert reported.startswith(message)
    assert str(file) in reported


def _one_bit(_: dict[str, str], tensors: dict[str, Tensor]) -> None:
    tensors["fc.weight"].view(torch.uint8)[1, 2] ^= 1


def _another_shape_of_the_same_bytes(_: dict[str, str], tensors: dict[str, Tensor]) -> None:
    tensors["fc.weight"] = tensors["fc.weight"].reshape(-1, 3)


def _another_type_of_the_same_bytes(_: dict[str, str], tensors: dict[str, Tensor]) -> None:
    tensors["fc.weight"] = tensors["fc.weight"].view(torch.int32)


def _two_names_swapped(_: dict[str, str], tensors: dict[str, Tensor]) -> None:
    one, other = "stages.1.0.norm1.weight", "stages.1.0.norm1.bias"
    tensors[one], tensors[other] = tensors[other], tensors[one]


def _a_figure_of_the_card(metadata: dict[str, str], _: dict[str, Tensor]) -> None:
    metadata["card"] = metadata["card"].replace("0.75", "0.95")


def _the_classes_in_another_order(metadata: dict[str, str], _: dict[str, Tensor]) -> None:
    metadata["card"] = metadata["card"].replace('"cat", "dog"', '"dog", "cat"')


CHANGES = [
    _one_bit,
    _another_shape_of_the_same_bytes,
    _another_type_of_the_same_bytes,
    _two_names_swapped,
    _a_figure_of_the_card,
    _the_classes_in_another_order,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_safetensors_cannot_see_is_told(
    file: Path, change: Callable[[dict[str, str], dict[str, Tensor]], None]
) -> None:
    rewrite(file, lambda *_: None)
    create_model(weights=file)  # writing it again is no damage
    rewrite(file, change)
    reported = refused(CheckpointError, 4, lambda: create_model(weights=file))
    assert reported == f"differs from what was written | {file} | the file is damaged; take another"


def test_the_checksum_is_what_the_file_says_it_is(tmp_path: Path) -> None:
    """Computed by hand, so that no later version can read other files than this one wrote."""
    path = tmp_path / "w.safetensors"
    save_weights(path, {"b": torch.tensor([[1, 2]], dtype=torch.int16), "a": torch.tensor(1.0).bfloat16()}, CARD)
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    said = f'{metadata["card"]}\n["a", "bfloat16", []]\n'.encode() + b"\x80\x3f"
    said += b'["b", "int16", [1, 2]]\n' + b"\1\0\2\0"
    assert metadata == {
        "format": "selkern-weights-2",
        "card": metadata["card"],
        "sha256": hashlib.sha256(said).hexdigest(),
    }


def test_files_of_others_are_read_without_a_checksum(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2), "none": torch.zeros(0, 3), "half": torch.ones(3).half()}
    save_file(tensors, tmp_path / "w.safetensors", metadata={"format": "pt"})
    read = read_tensors(tmp_path / "w.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_a_header_longer_than_it_can_be_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    """99 MB of it, which the library would take."""
    path = tmp_path / "w.safetensors"
    with path.open("wb") as made:
        made.write((99_000_000).to_bytes(8, "little"))
        made.truncate(100_000_000)  # sparse: it takes no room
    for read in (
        lambda: create_model(weights=path),
        lambda: read_card(path),
        lambda: read_tensors(path),
        lambda: convert(path, tmp_path / "new.safetensors", "sknet_mini"),
    ):
        started = time.monotonic()
        assert "its header would have 99,000,000 bytes" in refused(CheckpointError, 4, read)
        assert time.monotonic() - started < 1


@pytest.mark.parametrize("name", sorted(bundled()))
def test_weights_in_the_box_are_as_they_were_written(name: str, tmp_path: Path) -> None:
    damaged = bytearray(bundled()[name].read_bytes())
    assert len(read_tensors(bundled()[name])) > 100
    damaged[-1] ^= 1
    path = tmp_path / "w.safetensors"
    path.write_bytes(damaged)
    assert "differs from what was written" in refused(CheckpointError, 4, lambda: read_tensors(path))


def _lacks_a_tensor(state: dict[str, Tensor]) -> None:
    del state["stages.1.0.mixer.gate.fc2.weight"]


def _lacks_its_head(state: dict[str, Tensor]) -> None:
    del state["fc.bias"]


def _has_one_too_many(state: dict[str, Tensor]) -> None:
    state["stages.9.weight"] = torch.zeros(1)


def _has_another_shape(state: dict[str, Tensor]) -> None:
    state["stem.0.weight"] = torch.zeros(1, 1, 5, 5)


UNFIT: list[tuple[Callable[[dict[str, Tensor]], None], str]] = [
    (_lacks_a_tensor, "tensor stages.1.0.mixer.gate.fc2.weight is missing"),
    (_lacks_its_head, "tensor fc.bias is missing"),
    (_has_one_too_many, "tensor stages.9.weight belongs to no layer"),
    (_has_another_shape, "tensor stem.0.weight has shape (1, 1, 5, 5), the model ("),
]


@pytest.mark.parametrize(("change", "message"), UNFIT)
def test_tensors_that_do_not_fit_are_refused(
    file: Path, model: Backbone, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    state = dict(model.state_dict())
    change(state)
    save_weights(file, state, CARD)
    assert refused(CheckpointError, 4, lambda: create_model(weights=file)).startswith(message)
