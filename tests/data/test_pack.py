"""``selkern data pack``: shards of any data, which WebDataset reads too, and the shards that it writes."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from shard_files import photos, picture

from selkern import cli
from selkern.data.pack import key_of, pack_shards
from selkern.data.sources import Source, open_source
from selkern.data.split import Stored
from selkern.errors import DataError, ResourceError


def images(source: Source) -> list[tuple[str, str, bytes]]:
    """(split, class, bytes) of every image, sorted."""
    return sorted(
        (part.name, source.classes[label], part.encoded(index))
        for part in source.parts
        if isinstance(part, Stored)
        for index, label in enumerate(part.labels)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos", train=12, val=4)


def test_the_bytes_labels_and_splits_of_a_folder_stay(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "pack", str(folder), "--to", str(tmp_path / "shards"), "--shard-size", "10KB"]
    assert cli.main(words) == 0
    assert "selkern train --data" in capsys.readouterr().out
    assert images(open_source(str(tmp_path / "shards"))) == images(open_source(str(folder)))
    shards = sorted((tmp_path / "shards").glob("*.tar"))
    assert len(shards) > 3
    assert all(file.stat().st_size <= 20_480 for file in shards), "10 KB, and tar's own rounding"
    names = []
    for file in shards:
        with tarfile.open(file) as tar:
            names += [str(Path(name).parent) for name in tar.getnames()]
    assert set(names) == {"train/cat", "train/dog", "val/cat", "val/dog"}
    assert names != sorted(names), "the images are mixed over the shards"
    assert cli.main([*words, "--json"]) == 2
    assert "not empty" in capsys.readouterr().err


def test_the_same_data_and_seed_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    source = open_source(str(folder), cut=False)
    for name, seed in (("a", 1), ("b", 1), ("c", 2), ("d", None)):
        pack_shards(source, tmp_path / name, 20_000, seed=seed)
    contents = {
        name: [file.read_bytes() for file in sorted((tmp_path / name).iterdir())] for name in ("a", "b", "c", "d")
    }
    assert contents["a"] == contents["b"]
    assert contents["a"] != contents["c"]
    again = open_source(str(tmp_path / "d"))
    assert [again.train.where(index).rpartition(" member ")[2] for index in range(3)] == [
        f"train/cat/{number:02}.{'jpg' if number % 2 else 'png'}" for number in range(3)
    ]


def test_tables_parquet_and_shards_are_packed_too(folder: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(folder.glob("train/*/*"))
    lines = ["path,label", *(f"photos/train/{file.parent.name}/{file.name},{file.parent.name}" for file in files)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    table = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    whole = None
    for data in ("t.csv", "t.parquet", "shards-t.csv"):
        source = open_source(str(tmp_path / data), cut=False)
        done = pack_shards(source, tmp_path / f"shards-{data}", 20_000)
        assert [(part.name, part.images) for part in done.parts] == [("images", len(files))]
        again = open_source(str(tmp_path / f"shards-{data}"), cut=False)
        whole = whole or images(again)
        assert images(again) == images(source) == whole
        assert (tmp_path / f"shards-{data}" / "classes.json").is_file()


def test_an_image_that_is_gone_is_an_error_or_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = ["path,label", *(f"photos/train/{name}/{n:02}.png,{name}" for name in ("cat", "dog") for n in (0, 2, 4))]
    (tmp_path / "t.csv").write_text("\n".join([*table, "photos/none.png,cat"]))
    words = ["data", "pack", str(tmp_path / "t.csv"), "--to"]
    assert cli.main([*words, str(tmp_path / "a")]) == 3
    assert "no such image file" in capsys.readouterr().err
    assert cli.main([*words, str(tmp_path / "b"), "--on-bad-image", "skip", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [part["images"] for part in said["parts"]] == [6]
    assert len(said["left_out"]) == 1
    assert "none.png" in said["left_out"][0]["where"]
    assert folder.is_dir()


def test_a_full_disk_is_one_line_and_leaves_whole_shards(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(folder), cut=False)
    added: list[int] = []
    real = tarfile.TarFile.addfile

    def fill(tar: tarfile.TarFile, *given: Any) -> None:
        added.append(1)
        if len(added) > 20:
            raise OSError(28, "No space left on device")
        real(tar, *given)

    monkeypatch.setattr(tarfile.TarFile, "addfile", fill)
    with pytest.raises(ResourceError, match="No space left on device"):
        pack_shards(source, tmp_path / "shards", 10_000)
    left = sorted(file.name for file in (tmp_path / "shards").iterdir())
    assert left[0] == "classes.json"
    assert all(name.endswith(".tar") for name in left[1:])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["digits", "--to", "new"], "these images are drawn, not stored | digits"),
        (["none", "--to", "new"], "no such data"),
        (["photos", "--to", "new", "--shard-size", "huge"], "shard size is 'huge' | --shard-size"),
        (["photos", "--to", "new", "--shard-size", "1KB"], "shard size is '1KB' | --shard-size"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    line: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert folder.parent == tmp_path
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "pack", *words]) in (2, 3)
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {line}")


def test_keys_have_one_dot_at_most_and_are_unlike() -> None:
    taken: set[str] = set()
    assert key_of("n01/a.b.jpg", taken) == "n01/a_b"
    assert key_of("n01/a_b.png", taken) == "n01/a_b-2"
    assert key_of("../../x/./y.jpg", taken) == "x/y"
    assert key_of("/abs/y.JPEG", taken) == "abs/y"
    assert key_of("t.parquet row 3", taken) == "t_parquet row 3"
    assert key_of("a.tar member n/x.jpg", taken) == "n/x"
    assert key_of("__x__/.y.jpg", taken) == "_x__/_y"


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")  # WebDataset leaves files for the garbage collector to close
def test_webdataset_reads_what_is_packed(folder: Path, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset", reason="installed by make clients")
    source = open_source(str(folder), cut=False)
    pack_shards(source, tmp_path / "shards", 10_000)
    read = []
    for name in ("train", "val"):
        count = len(list((tmp_path / "shards").glob(f"{name}-*.tar")))
        pattern = f"{tmp_path}/shards/{name}-{{000000..{count - 1:06}}}.tar"
        for image, label in wds.WebDataset(pattern, shardshuffle=False).to_tuple("jpg;png", "cls"):
            read.append((name, source.classes[int(label)], image))
    assert sorted(read) == images(source)
    pattern = f"{tmp_path}/shards/train-000000.tar"
    pairs = list(wds.WebDataset(pattern, shardshuffle=False).decode("pil").to_tuple("jpg;png", "cls"))
    assert all(isinstance(label, int) and image.size == (44, 40) for image, label in pairs)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")  # WebDataset leaves files for the garbage collector to close
def test_shards_that_webdataset_writes_are_read(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset", reason="installed by make clients")
    written = []
    with wds.ShardWriter(f"{tmp_path}/train-%04d.tar", maxcount=7, verbose=0) as sink:
        for number in range(30):
            data = picture(number)
            written.append(("all", str(number % 3), data))
            sink.write({"__key__": f"n{number % 3}/x{number:03}", "jpg": data, "cls": number % 3, "txt": "a caption"})
    with wds.ShardWriter(f"{tmp_path}/val-%04d.tar", maxcount=7, verbose=0) as sink:
        for number in range(9):
            sink.write({"__key__": f"{number}", "jpg": picture(100 + number), "json": {"label": number % 3}})
    source = open_source(str(tmp_path))
    assert source.classes == ("0", "1", "2")
    assert [data for part, _, data in images(source) if part == "train"] == [
        data for _, _, data in sorted((label, label, data) for _, label, data in written)
    ]
    assert len(source.val) == 9
    with pytest.raises(DataError, match="no such shard"):
        open_source(f"{tmp_path}/train-{{0000..0005}}.tar")
