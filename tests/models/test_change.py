"""Names with fields in brackets: what they make, that their weights open anywhere, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from selkern.convert.subject import find_subject
from selkern.errors import CheckpointError, UsageError
from selkern.layers.selective_kernel import Branch
from selkern.models.change import join_name, split_name
from selkern.models.registry import architecture, create_model, from_pretrained
from selkern.models.trunk import Architecture
from selkern.models.weights import Card, save_weights

NAME = "resnet_mini(mids=[36,64,88])"


def row_of(name: str) -> Architecture:
    row = architecture(name)
    assert isinstance(row, Architecture)
    return row


def test_fields_in_the_name_replace_those_of_the_row() -> None:
    own, row = row_of("resnet_mini"), row_of(NAME)
    assert row.mids == (36, 64, 88)
    assert (row.depths, row.outs, row.mixer) == (own.depths, own.outs, own.mixer)
    assert create_model(NAME, num_classes=3).get_submodule("stages.1.0.conv1").out_channels == 64


def test_kernels_and_switches_are_written_as_json_or_python() -> None:
    row = row_of('sknet50(kernels=[3,{"kernel_size":5,"groups":64}], min_width=[8,16,32,32], stem_pool=false)')
    assert (row.kernels, row.min_width, row.stem_pool) == ((3, Branch(5, groups=64)), (8, 16, 32, 32), False)
    python = "sknet50(stem_pool=False, min_width=(8, 16, 32, 32), kernels=(3, {'kernel_size': 5, 'groups': 64}))"
    assert row_of(python) == row
    assert create_model(python, num_classes=1).card.model == (  # type: ignore[union-attr]
        'sknet50(kernels=[3,{"kernel_size":5,"groups":64}], min_width=[8,16,32,32], stem_pool=false)'
    )


def test_joined_and_split_names_are_inverse() -> None:
    change = {"mids": [36, 64, 88], "stem_pool": False, "mixer": "sk", "kernels": [3, {"kernel_size": 5}]}
    assert split_name(join_name("resnet_mini", change)) == ("resnet_mini", change)
    assert (
        join_name(join_name("resnet_mini", {"groups": 2, "stem": 8}), {"groups": 4}) == "resnet_mini(groups=4, stem=8)"
    )
    assert join_name("resnet_mini", {}) == "resnet_mini"


def test_weights_of_a_changed_network_open_anywhere(tmp_path: Path) -> None:
    model = create_model(NAME, num_classes=3).eval()
    model.save_pretrained(tmp_path / "saved")
    again = from_pretrained(tmp_path / "saved").eval()
    assert again.card is not None
    assert again.card.model == NAME
    x = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    weights = tmp_path / "saved" / "model.safetensors"
    assert create_model("resnet_mini(mids=(36, 64, 88))", weights=weights).card == again.card
    with pytest.raises(CheckpointError, match="weights are of resnet_mini"):
        create_model("resnet_mini", weights=weights)
    for word in (NAME, str(weights)):  # as commands read it
        assert find_subject(word).get_submodule("stages.1.0.conv1").out_channels == 64


WRONG = {
    "resnet_mini(mids=[36,64,88]": "cannot be read",
    "resnet_mini([36,64,88])": "not MODEL",
    "resnet_mini(**{'mids': [1]})": "once, by name",
    "resnet_mini(stem=8, stem=9)": "the model's name cannot be read",
    "resnet_mini(stem=open('x'))": "cannot be read",
    "resnet_mini(stem=__import__('os'))": "cannot be read",
    "resnet_mini(stem=8)(stem=9)": "not MODEL",
    "resnet_mini(stem=\0)": "cannot be read",
    "resnet_mini(stem=" + "(" * 1500 + ")" * 400 + ")": "cannot be read",
    "resnet_mini(stem=" + "1" * 3000 + ")": "over 2,000 characters",
    "resnet_mini(stem=" + "9" * 1900 + ")": "out of range",
    "resnet_mimi(stem=8)": "unknown model 'resnet_mimi'",
    "resnet_mini(widths=[1])": "unknown field 'widths' .* one of depths, mids, outs",
    "resnet_mini(mids=36)": "mids is 36",
    "resnet_mini(mids=[36])": "one depth, mid, out and stride per stage",
    "resnet_mini(mids=[36,64,0])": "out of range",
    "resnet_mini(mids=[36.0,64,88])": "mids is 36.0",
    "resnet_mini(stem=true)": "stem is True",
    "resnet_mini(stem_pool=1)": "stem_pool is 1",
    "resnet_mini(mixer=3)": "mixer is 3",
    "resnet_mini(groups=5)": "must divide",
    "sknet_mini(kernels=[4])": "odd",
    "sknet_mini(kernels=[{'size':3}])": "a kernel is",
    "shufflenet_v2_x05(stem=8)": "only networks on the residual trunk",
}


@pytest.mark.parametrize("name", WRONG, ids=[name[:40].replace("\0", "NUL") for name in WRONG])
def test_a_wrong_name_is_one_line(name: str) -> None:
    with pytest.raises(UsageError, match=WRONG[name]) as caught:
        create_model(name, num_classes=2)
    assert "\n" not in str(caught.value)


ABSURD = (
    "sknet_mini(depths=[65536,65536,65536])",
    "sknet_mini(mids=[65536,65536,65536], outs=[65536,65536,65536], groups=1)",
    "sknet_mini(kernels=[{'kernel_size':65535}], mids=[65536,65536,65536], groups=1)",
    "sknet_mini(groups=7)",
    "sknet_mini(stem=open('x'))",
)


@pytest.mark.parametrize("name", ABSURD)
def test_a_file_that_names_an_absurd_network_is_refused_at_once(name: str, tmp_path: Path) -> None:
    file = tmp_path / "absurd.safetensors"
    save_weights(file, create_model("sknet_mini", num_classes=2).state_dict(), Card(model=name, classes=("a", "b")))
    with pytest.raises(CheckpointError):
        create_model(weights=file)
