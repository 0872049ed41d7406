"""The authors' Caffe weights: files of `caffe_file.py` read, and our networks against its forward pass."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from caffe_file import Floats, Layer, authors, blob, chunk, forward, moved, units, varint, write
from torch import Tensor

from selkern.convert.caffe import MAX_BYTES, CaffeLayer, from_caffe, read_caffemodel
from selkern.errors import CheckpointError, SelkernError, UsageError
from selkern.models.registry import architecture
from selkern.models.trunk import Architecture

pytest.importorskip("google.protobuf")

SMALL = Architecture(depths=(2, 1), mids=(8, 16), outs=(16, 32), strides=(1, 2), stem=4, groups=4, min_width=(6, 5))


def error(state: dict[str, Tensor], layers: list[Layer], arch: Architecture, side: int) -> float:
    """Largest difference of our logits from the blobs', as a share of the largest logit; both in float64."""
    model = arch.build(len(state["fc.bias"]))
    model.load_state_dict(state)
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        want = forward(layers, arch, x)
        got = model.double().eval()(x)
    assert isinstance(got, Tensor)
    return float((got - want).abs().max() / want.abs().max())


# Measured: 3e-15 where the statistics stand in the file as they are, 6e-8 where a float32 factor divides them.
EXACT, DIVIDED = 1e-10, 1e-5


@pytest.mark.parametrize(("name", "side"), [("sknet50", 64), ("sknet101_caffe", 32)])
def test_the_authors_networks_give_the_logits_of_their_blobs(tmp_path: Path, name: str, side: int) -> None:
    arch = architecture(name)
    assert isinstance(arch, Architecture)
    layers = list(authors(arch))
    path = write(tmp_path / "a.caffemodel", layers)
    state = from_caffe(read_caffemodel(path), name)
    path.unlink()
    assert error(state, layers, arch, side) < EXACT


def small(caffes_own: bool = False) -> list[Layer]:
    return list(authors(SMALL, 7, caffes_own))


def as_read(layers: list[Layer]) -> list[CaffeLayer]:
    return [CaffeLayer(name, kind, tuple(blobs)) for name, kind, blobs in layers]


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("caffes_own", [False, True])
@pytest.mark.parametrize("form", ["new", "gradient", "old", "double", "unpacked"])
def test_every_form_of_file_gives_the_logits_of_its_blobs(
    tmp_path: Path, form: str, caffes_own: bool, v1: bool
) -> None:
    layers = small(caffes_own)
    read = read_caffemodel(write(tmp_path / "a.caffemodel", layers, form, v1))
    assert [one.name for one in read] == [name for name, _, _ in layers]
    for one, (_, kind, blobs) in zip(read, layers, strict=True):
        assert one.type == (kind if not v1 or kind in ("Convolution", "InnerProduct") else "")
        for got, want in zip(one.blobs, blobs, strict=True):
            assert got.dtype == np.float32
            assert got.shape == ((1,) * (4 - want.ndim) + want.shape if form == "old" else want.shape)
            assert np.array_equal(got.ravel(), want.ravel())
    assert error(from_caffe(read, SMALL), layers, SMALL, 40) < (DIVIDED if caffes_own else EXACT)


def _swap_slices(state: dict[str, Tensor]) -> None:
    state["stages.0.1.mixer.gate.fc2.weight"] = state["stages.0.1.mixer.gate.fc2.weight"].roll(8, 0)


def _double_a_mean(state: dict[str, Tensor]) -> None:
    state["stages.1.0.norm3.running_mean"] = state["stages.1.0.norm3.running_mean"] * 2


def _swap(one: str, other: str) -> Callable[[dict[str, Tensor]], None]:
    a, b = (f"stages.1.0.{name}.weight" for name in (one, other))
    return lambda state: state.update({a: state[b], b: state[a]})


SABOTAGE = [
    _swap_slices,
    _double_a_mean,
    _swap("mixer.branches.0.conv", "mixer.branches.1.conv"),
    _swap("conv3", "shortcut.0"),
]


@pytest.mark.parametrize("sabotage", SABOTAGE)
def test_the_comparison_can_fail(sabotage: Callable[[dict[str, Tensor]], None]) -> None:
    state = from_caffe(as_read(small()), SMALL)
    sabotage(state)
    assert error(state, small(), SMALL, 40) > 1e-4


def test_a_factor_of_0_is_no_statistics_yet() -> None:
    layers = small(caffes_own=True)
    at = [name for name, _, _ in layers].index("conv1/7x7_s2/bn")
    layers[at][2][2] = np.zeros(1, np.float32)
    state = from_caffe(as_read(layers), SMALL)
    assert not state["stem.1.running_mean"].any()
    assert not state["stem.1.running_var"].any()


# --- Files of other names: order and shape ---


def renamed(groups: list[list[Layer]], word: str) -> list[CaffeLayer]:
    """Numbered layers; the projections keep `word` of their names."""
    name = {True: word, False: "layer"}
    return as_read(
        [
            (f"{name['1x1_proj' in group[0][0]]}{at}{'_bn' * bool(index)}", kind, blobs)
            for at, group in enumerate(groups)
            for index, (_, kind, blobs) in enumerate(group)
        ]
    )


@pytest.mark.parametrize("caffes_own", [False, True])
@pytest.mark.parametrize(
    ("steps", "word"),
    [(0, "shortcut"), (0, "res_branch1_"), (1, "Proj"), (1, "downsample"), (6, "proj"), (6, "layer")],
)  # a projection that comes first is known by its shape
def test_other_names_are_taken_in_order(steps: int, word: str, caffes_own: bool) -> None:
    want = from_caffe(as_read(small(caffes_own)), SMALL)
    got = from_caffe(renamed(moved(units(small(caffes_own)), steps), word), SMALL)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def refused(kind: type[SelkernError], call: Callable[[], object]) -> str:
    """The one line of the error."""
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == (2 if kind is UsageError else 4)
    return str(caught.value)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_projection_that_nothing_tells_apart_is_refused(steps: int) -> None:
    layers = renamed(moved(units(small()), steps), "layer")
    message = refused(CheckpointError, lambda: from_caffe(layers, SMALL))
    assert message.startswith("the shapes do not show which one is the projection shortcut | layers layer14 to layer20")


def test_the_norms_of_the_authors_names_may_stand_anywhere_after_their_convolution() -> None:
    layers = [layer for layer in small() if layer[2]]
    layers.sort(key=lambda layer: layer[1] == "CuDNNBatchNorm")
    want = from_caffe(as_read(small()), SMALL)
    got = from_caffe(as_read(layers), SMALL)
    assert all(torch.equal(got[name], want[name]) for name in want)


# --- What must be refused ---


Change = Callable[[list[Layer]], list[Layer]]


def _drop(name: str) -> Change:
    return lambda layers: [layer for layer in layers if layer[0] != name]


def _add(name: str, kind: str, *blobs: Floats) -> Change:
    return lambda layers: [*layers, (name, kind, list(blobs))]


def _put(name: str, at: int, values: Floats) -> Change:
    """Blob `at` of a layer replaced, or added behind the last."""
    return lambda layers: [(n, k, [*b[:at], values, *b[at + 1 :]] if n == name else b) for n, k, b in layers]


def _cut_and_rename(layers: list[Layer]) -> list[Layer]:
    return [(f"x{name}", kind, blobs) for name, kind, blobs in layers][:-1]


def f32(*shape: int) -> Floats:
    return np.full(shape, -1, np.float32)


UNFIT: list[tuple[Change, str]] = [
    (_drop("conv2_2/B_fc2"), "is missing | layer conv2_2/B_fc2 |"),
    (_drop("conv2_2/B_fc1/bn"), "has nothing for stages.0.1.mixer.gate.norm.bias | layer conv2_2/B_fc1 |"),
    (_add("conv9_1/1x1", "Convolution", f32(1, 1, 1, 1)), "belongs to no layer of ours | layer conv9_1/1x1 |"),
    (_add("classifier", "InnerProduct", f32(7, 32), f32(7)), "two layers of one name"),
    (_add("conv2_1/1x1_proj/bn", "Scale", f32(16), f32(16)), "a norm with no convolution of its own"),
    (_add("act", "PReLU", f32(1)), "1 blobs in a layer of type PReLU | layer act"),
    (_put("conv2_1/1x1_proj/bn", 3, f32(16)), "a negative variance: its blobs are in another order | layer conv2_1"),
    (_put("conv2_1/3x3g32", 0, f32(8, 8, 3, 3)), "(8, 8, 3, 3) does not fit stages.0.0.mixer.branches.0.conv.weight"),
    (_put("conv3_1/B_fc1", 0, f32(6, 16, 1, 1)), "(6, 16, 1, 1) does not fit stages.1.0.mixer.gate.fc1.weight (5, 16)"),
    (_put("conv2_1/B_fc2", 1, f32(16)), "has one tensor too many, stages.0.0.mixer.gate.fc2.bias | layer conv2_1"),
    (_cut_and_rename, "21 layers with weights, the model has 22"),
]


@pytest.mark.parametrize(("change", "message"), UNFIT)
def test_layers_that_do_not_fit_are_refused(change: Change, message: str) -> None:
    layers = as_read(change(small()))
    assert refused(CheckpointError, lambda: from_caffe(layers, SMALL)).startswith(message)


def test_another_gate_width_is_refused_and_names_the_authors_variant() -> None:
    message = refused(CheckpointError, lambda: from_caffe(as_read(small()), replace(SMALL, min_width=6)))
    assert "does not fit stages.1.0.mixer.gate.fc1.weight" in message
    assert "sknet101_caffe" in message


@pytest.mark.parametrize("name", ["resnext50_32x4d", "sknet50_sum", "sknet50_k3k5k7", "sknet_50"])
def test_only_sknets_of_two_branches(name: str) -> None:
    refused(UsageError, lambda: from_caffe(as_read(small()), name))


@pytest.mark.parametrize("tenth", range(10))
def test_a_cut_file_is_refused(tmp_path: Path, tenth: int) -> None:
    path = write(tmp_path / "a.caffemodel", small())
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * tenth // 10 + 3)
    refused(CheckpointError, lambda: from_caffe(read_caffemodel(path), SMALL))


BROKEN: list[tuple[bytes, str]] = [
    (b"", "has no layer with weights"),
    (b"not a caffemodel at all", "cannot be read"),
    (b'name: "sknet50"\nlayer {\n  name: "data"\n}\n', "cannot be read"),
    (b"\x89HDF\r\n\x1a\n" + bytes(64), "cannot be read"),
    (varint(100 << 3 | 2) + varint(1 << 40), "cannot be read"),
    (varint(100 << 3 | 2) + b"\xff" * 20, "cannot be read"),
    (chunk(100, chunk(7, chunk(5, f32(3).tobytes()))), "cannot be read (layer : 3 numbers for shape (0, 0, 0, 0))"),
    (chunk(100, chunk(7, chunk(7, chunk(1, varint(1 << 40) * 2)))), "cannot be read (layer : 0 numbers for shape (109"),
    (chunk(100, chunk(7, chunk(7, chunk(1, varint(2**64 - 1) * 2)) + chunk(5, bytes(4)))), "cannot be read (layer : 1"),
    (chunk(100, chunk(7, chunk(7, chunk(1, b"\1" * 99)) + chunk(5, bytes(4)))), "cannot be read"),
    (chunk(100, chunk(7, blob(f32(2) * np.inf))), "cannot be read (layer : a weight is not finite)"),
    (chunk(100, chunk(7, chunk(7, chunk(1, b"\1")) + chunk(8, struct.pack("<d", 1e300)))), "cannot be read (layer : a"),
]


@pytest.mark.parametrize(("data", "message"), BROKEN)
def test_a_file_that_is_no_caffemodel_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.caffemodel"
    path.write_bytes(data)
    reported = refused(CheckpointError, lambda: read_caffemodel(path))
    assert reported.startswith(message)
    assert str(path) in reported


def test_a_zip_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "pickled")
    assert zipfile.is_zipfile(tmp_path / "pickled")
    assert refused(CheckpointError, lambda: read_caffemodel(tmp_path / "pickled")).startswith("cannot be read")


@pytest.mark.parametrize("name", [".", "none"])
def test_a_folder_and_no_file_are_refused(tmp_path: Path, name: str) -> None:
    assert refused(CheckpointError, lambda: read_caffemodel(tmp_path / name)).startswith("no such caffemodel")


def test_a_file_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.caffemodel"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # takes no room on the disk
    assert "too large for an SKNet" in refused(CheckpointError, lambda: read_caffemodel(path))


def test_a_net_without_weights_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.caffemodel", [(name, kind, []) for name, kind, _ in small()])
    assert refused(CheckpointError, lambda: read_caffemodel(path)).startswith("has no layer with weights")
    assert refused(CheckpointError, lambda: from_caffe([], SMALL)).startswith("no convolution with weights")


def test_a_name_that_is_not_utf_8_is_only_a_strange_name(tmp_path: Path) -> None:
    path = tmp_path / "a.caffemodel"
    path.write_bytes(chunk(100, chunk(1, b"\xff") + chunk(2, b"\xff") + chunk(7, blob(f32(2)))))
    (layer,) = read_caffemodel(path)
    assert isinstance(layer.name, str)
    assert "of type b'" in refused(CheckpointError, lambda: from_caffe([layer], SMALL))
