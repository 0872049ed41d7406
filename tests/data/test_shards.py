"""Tar shards are the same data as the files in them: the same images, labels, splits, batches and weights."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from shard_files import member, photos, write_tar

from selkern.data import shard_index, stores
from selkern.data.augment import Augment
from selkern.data.loader import Samples, make_loader
from selkern.data.order import TrainOrder
from selkern.data.pack import pack_shards
from selkern.data.preprocess import Preprocess
from selkern.data.sources import Source, open_source
from selkern.data.split import fingerprint
from selkern.errors import DataError
from selkern.train import run
from selkern.train.options import TrainOptions
from selkern.train.recipe import RECIPES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture(scope="module")
def shards(folder: Path) -> Path:
    """The same images, in the folder's order."""
    target = folder.parent / "shards"
    pack_shards(open_source(str(folder), cut=False), target, 20_000, seed=None)
    return target


def pixels(source: Source) -> dict[str, tuple[str, bytes]]:
    """{class and name without suffix: split and pixels}."""
    result = {}
    for part in source.parts:
        for index in range(len(part)):
            name = part.where(index).rpartition(".")[0].replace(" member ", "/")
            key = "/".join(Path(name).parts[-3:])
            assert source.classes[part.labels[index]] == Path(name).parts[-2]
            result[key] = (part.name, part.read(index).tobytes())
    return result


def test_the_images_are_those_of_the_folder(folder: Path, shards: Path) -> None:
    assert len(list(shards.glob("train-*.tar"))) > 5
    plain, packed = open_source(str(folder)), open_source(str(shards))
    assert packed.kind == "shards"
    assert packed.classes == plain.classes == ("cat", "dog")
    assert pixels(packed) == pixels(plain)
    for one, other in zip(packed.parts, plain.parts, strict=True):
        assert one.labels.tolist() == other.labels.tolist()
        assert [fingerprint(one, i) for i in range(len(one))] == [fingerprint(other, i) for i in range(len(other))]
        assert [one.header(i) for i in range(len(one))] == [other.header(i) for i in range(len(other))]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder(folder: Path, shards: Path, workers: int) -> None:
    batches = []
    for data in (folder, shards):
        split = open_source(str(data)).train
        samples = Samples(split, Preprocess(size=16), Augment(crop="resized", mixup=0.4), 3)
        order = TrainOrder(len(split), 8, 3)
        order.seek(1)
        batches.append(list(make_loader(samples, order, workers)))
    assert len(batches[0]) == len(batches[1]) > 3
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.partners, other.partners)


def test_a_training_has_the_weights_of_one_on_the_folder(folder: Path, shards: Path, tmp_path: Path) -> None:
    recipe = RECIPES["cifar"].__class__(epochs=1, batch_size=16, image_size=16)
    weights = []
    for data in (folder, shards):
        options = TrainOptions(data=str(data), output=str(tmp_path / data.name), report=False, training=recipe)
        done = run.train(options)
        assert done is not None
        weights.append(load_file(done.last))
        text = (done.path / "config.yaml").read_text()
        assert ("shuffle: full" in text) == (data == shards)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_split_crosses_processes_as_it_is(shards: Path) -> None:
    split = open_source(str(shards)).train
    copy = pickle.loads(pickle.dumps(split))
    assert len(pickle.dumps(split)) < 20_000
    assert copy.read(5).tobytes() == split.read(5).tobytes()
    assert copy.where(5) == split.where(5)


def test_names_stay_where_the_folder_is_moved(shards: Path, tmp_path: Path) -> None:
    rows = list(open_source(str(shards)).split_rows())
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in shards.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    assert list(open_source(str(moved)).split_rows()) == rows
    assert rows[0][0] == "train-000000.tar member train/cat/00.png"


@pytest.mark.parametrize(
    "named",
    [
        lambda folder: f"{folder}/train-{{000000..000009}}.tar",
        lambda folder: f"{folder}/train-00000*.tar",
        lambda folder: f"{folder}/train-{{{','.join(f'{n:06}' for n in range(10))}}}.tar",
        lambda folder: "::".join(f"{folder}/train-{n:06}.tar" for n in range(10)),
    ],
    ids=["range", "star", "list", "colons"],
)
def test_a_pattern_of_train_brings_the_val_shards_beside_it(shards: Path, named: Callable[[Path], str]) -> None:
    source = open_source(named(shards))
    assert source.cut_off == ()
    assert source.train.where(0).startswith(f"{shards}/train-000000.tar member ")
    assert source.train.where(len(source.train) - 1).startswith(f"{shards}/train-000009.tar member ")
    assert len(source.val) == len(open_source(str(shards)).val)
    assert any("val shards lie beside those of train" in note for note in source.notes)


def test_a_shard_of_a_pattern_that_is_not_there_is_named(shards: Path) -> None:
    with pytest.raises(DataError, match=r"^no such shard; 2 of 202 shards .* \| .*train-000200\.tar \| correct"):
        count = len(list(shards.glob("train-*.tar")))
        for number in range(count, 200):
            (shards / f"train-{number:06}.tar").write_bytes((shards / "train-000000.tar").read_bytes())
        try:
            open_source(f"{shards}/train-{{000000..000201}}.tar")
        finally:
            for number in range(count, 200):
                (shards / f"train-{number:06}.tar").unlink()


def test_shards_without_splits_are_cut_by_the_seed(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", *(one for n in range(40) for one in member(f"x/{n}", n % 2)))
    source = open_source(str(tmp_path / "a.tar"))
    assert source.cut_off == ("val", "test")
    assert [len(part) for part in source.parts] == [32, 4, 4]


def test_labels_are_numbers_names_or_in_json(tmp_path: Path) -> None:
    forms: tuple[tuple[str, Callable[[int], dict[str, str]], tuple[str, str]], ...] = (
        ("number", lambda n: {"cls": str(10 * (n % 2))}, ("0", "10")),
        ("zeros", lambda n: {"cls": f"00{n % 2 + 1}\n"}, ("1", "2")),
        ("name", lambda n: {"cls": ("dog", "cat")[n % 2]}, ("cat", "dog")),
        ("json", lambda n: {"json": f'{{"label": {n % 2}, "cls": 7}}'}, ("0", "1")),
        ("class", lambda n: {"json": f'{{"x": 3, "class": "{"ab"[n % 2]}"}}'}, ("a", "b")),
        ("both", lambda n: {"json": '{"label": 9}', "cls": str(n % 2)}, ("0", "1")),
    )
    for name, label, classes in forms:
        file = tmp_path / f"{name}.tar"
        write_tar(file, *(one for n in range(20) for one in member(f"{n}", **label(n))))
        assert open_source(str(file)).classes == classes, name
        assert open_source(str(file)).left_out == ()


def test_a_list_of_classes_beside_the_shards_names_the_numbers(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", *(one for n in range(20) for one in member(f"{n}", n % 2)))
    assert any("classes.json" in note for note in open_source(str(tmp_path)).notes)
    (tmp_path / "classes.json").write_text('["no", "yes", "never"]')
    source = open_source(str(tmp_path))
    assert source.classes == ("no", "yes", "never")
    assert not any("classes.json" in note for note in source.notes)


def test_a_kept_index_is_taken_until_a_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    built: list[int] = []
    build = shard_index._build

    def counted(*given: Any) -> Any:
        built.append(1)
        return build(*given)

    monkeypatch.setattr(shard_index, "_build", counted)
    write_tar(tmp_path / "train-0.tar", *(one for n in range(20) for one in member(f"{n}", n % 2)))
    for _ in range(2):
        assert sum(map(len, open_source(str(tmp_path)).parts)) == 20
    assert built == [1]
    write_tar(tmp_path / "train-0.tar", *(one for n in range(30) for one in member(f"{n}", n % 2)))
    assert sum(map(len, open_source(str(tmp_path)).parts)) == 30
    assert built == [1, 1]
    monkeypatch.setattr(shard_index, "_FORM", 0)  # an index of another version
    assert sum(map(len, open_source(str(tmp_path)).parts)) == 30
    assert built == [1, 1, 1]


def test_without_a_cache_folder_the_index_is_made_each_time_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "train-0.tar", *(one for n in range(20) for one in member(f"{n}", n % 2)))
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SELKERN_CACHE", str(tmp_path / "file" / "below"))
    for _ in range(2):
        source = open_source(str(tmp_path))
        assert sum(map(len, source.parts)) == 20
        assert source.train.read(0).size == (22, 20)
        assert any("no index can be kept" in note for note in source.notes)


def test_many_shards_are_indexed_by_several_processes(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    files = sorted(map(str, shards.glob("*.tar")))
    place = stores.LocalFiles()
    stamps = [place.stamp(file) for file in files]
    alone = shard_index._build(files, stamps, place)
    monkeypatch.setattr(shard_index, "_FEW", 0)
    monkeypatch.setattr(shard_index, "_cores", lambda: 2)
    together = shard_index._build(files, stamps, place)
    assert alone.keys() == together.keys()
    assert all(np.array_equal(alone[name], together[name]) for name in alone)


def test_many_shards_stay_within_the_open_files(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(stores, "_most_open", lambda: 3)
    split = open_source(str(shards)).train
    files = Path("/proc/self/fd")
    if not files.is_dir():
        pytest.skip("no /proc")
    before = len(list(files.iterdir()))
    for index in np.random.default_rng(0).integers(0, len(split), 200).tolist():
        split.read(index)
    assert len(list(files.iterdir())) <= before + 3
