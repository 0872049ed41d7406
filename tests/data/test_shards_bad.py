"""Shards that are damaged or odd: each fault has its one line, and what is sound is used where that is asked for."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from shard_files import member, picture, write_tar

from selkern import cli
from selkern.data.sources import Source, open_source
from selkern.data.tar_members import LARGEST_HEADER
from selkern.errors import DataError

GOOD = [one for n in range(40) for one in member(f"{n}", n % 2)]


def opened(file: Path) -> Source:
    return open_source(str(file), on_bad="skip", cut=False)


def total(source: Source) -> int:
    return sum(map(len, source.parts))


def line(file: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        open_source(str(file), cut=False)
    return str(caught.value)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ([("x.jpg", picture())], "no label: neither x.cls nor a .json with one"),
        ([("x.jpg", picture()), ("x.json", b'{"a": 1}')], "no label: neither x.cls nor a .json with one"),
        ([("x.jpg", picture()), ("x.json", b"{")], "its .json cannot be read"),
        ([("x.jpg", picture()), ("x.json", b'{"label": [1, 2]}')], "the label in its .json is [1, 2]"),
        ([("x.jpg", picture()), ("x.cls", b" \n")], "its .cls is empty"),
        ([("x.jpg", picture()), ("x.cls", b"\xff\xfe")], "its .cls cannot be read"),
        ([("x.jpg", picture()), ("x.cls", b"1" * 5000)], "a .cls of 5,000 bytes"),
        ([*member("x", 1), ("x.png", picture(1, "PNG"))], "two images of one key"),
        ([*member("x", 1), *member("x", 0)], "two images of one key"),
        ([*member("x", 1), ("x.cls", b"0")], "two .cls members of one key"),
    ],
)
def test_a_sample_that_is_none_is_named_or_left_out(
    extra: list[tuple[str, bytes]], reason: str, tmp_path: Path
) -> None:
    file = write_tar(tmp_path / "train.tar", *GOOD, *extra)
    message = line(file)
    assert message.startswith(reason.rpartition(": neither")[0])
    assert f" | {file} member x." in message
    source = opened(file)
    assert total(source) == 40
    assert [row.reason for row in source.left_out] == [reason]
    assert any("1 of 41 images are left out" in note for note in source.notes)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_names_of_any_kind_are_names_and_nothing_is_written(form: int, tmp_path: Path) -> None:
    long = "/".join(["f" * 90] * 4) + "/é"
    names = ["../up", "/root/absolute", "a b", long, "n01.dots/in.folder/x", "./here", "A\x1b[31m"]
    members = [one for n, name in enumerate(names) for one in member(name, n % 2)]
    (tmp_path / "in").mkdir()
    file = write_tar(tmp_path / "in" / "a.tar", *GOOD, *members, format=form)
    before = sorted(tmp_path.rglob("*"))
    source = opened(file)
    wheres = [part.where(index) for part in source.parts for index in range(len(part))]
    assert total(source) == 40 + len(names)
    assert f"{file} member ../up.jpg" in wheres
    assert f"{file} member {long}.jpg" in wheres
    assert not any("\x1b" in where for where in wheres)
    assert [part.read(index).size for part in source.parts for index in range(len(part))] == [(22, 20)] * total(source)
    assert sorted(tmp_path.rglob("*")) == before


def test_other_members_are_counted(tmp_path: Path) -> None:
    inner = write_tar(tmp_path / "inner", *GOOD).read_bytes()
    others = [
        ("1.txt", b"a caption"),
        ("2.seg.png", picture()),
        ("nested.tar", inner),
        ("y.cls", b"1"),
        (".hidden", b""),
    ]
    source = opened(write_tar(tmp_path / "a.tar", *GOOD, *others, ("__MACOSX/1.jpg", b"")))
    assert total(source) == 40
    (note,) = (note for note in source.notes if note.startswith("left out"))
    for what in ("1 .txt", "1 .seg.png", "1 .tar", "1 label without an image"):
        assert what in note


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: 10 * 1024 + 700])


def cut_in_data(file: Path) -> None:
    with tarfile.open(file) as tar:
        at = [one for one in tar.getmembers() if one.name.endswith(".jpg")][20]
    file.write_bytes(file.read_bytes()[: at.offset_data + 100])


def no_end(file: Path) -> None:
    with tarfile.open(file) as tar:
        last = tar.getmembers()[-1]
    file.write_bytes(file.read_bytes()[: last.offset_data + 512])


def broken_header(file: Path) -> None:
    with tarfile.open(file) as tar:
        at = tar.getmembers()[40].offset
    data = bytearray(file.read_bytes())
    data[at + 3] ^= 0xFF
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, cut_in_data, no_end, broken_header])
def test_a_damaged_shard_is_an_error_or_gives_what_is_whole(damage: Callable[[Path], None], tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", *GOOD)
    file = write_tar(tmp_path / "train-1.tar", *(one for n in range(40) for one in member(f"b{n}", n % 2)))
    damage(file)
    assert str(file) in line(tmp_path)
    source = opened(tmp_path)
    assert 40 <= total(source) <= 80
    assert total(source) < 80 or damage is no_end
    assert str(file) in {row.where for row in source.left_out}
    for part in source.parts:
        for index in range(len(part)):
            part.read(index)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_a_header_that_claims_gigabytes_is_not_read(kind: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 1 << 31
    write_tar(file, *GOOD)
    whole = file.read_bytes()
    with tarfile.open(file) as tar:
        at = tar.getmembers()[40].offset
    with file.open("wb") as out:
        out.write(whole[:at] + info.tobuf(tarfile.GNU_FORMAT))
        out.truncate((1 << 31) + (1 << 20))  # sparse: it takes no room
    assert f"a member's header of over {LARGEST_HEADER:,} bytes" in line(file)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file (0 bytes)"),
        (gzip.compress(b"x" * 1000), "a compressed tar"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (os.urandom(5000), "invalid header"),
        (picture(), ""),
    ],
)
def test_a_file_that_is_no_tar_is_called_what_it_is(data: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(data)
    message = line(file)
    assert words in message
    assert len(message.splitlines()) == 1
    assert str(file) in message


def test_class_folders_in_a_tar_get_advice(tmp_path: Path) -> None:
    members = [(f"{name}/{n}.jpg", picture(n)) for name in ("cat", "dog") for n in range(5)]
    message = line(write_tar(tmp_path / "a.tar", *members))
    assert message.startswith("10 images, none of which has a label")
    assert "unpack it" in message
    assert "selkern data pack" in message


def test_a_tar_without_images_says_what_it_holds(tmp_path: Path) -> None:
    assert "but 2 .txt" in line(write_tar(tmp_path / "a.tar", ("a.txt", b""), ("b.txt", b"")))


@pytest.mark.parametrize("name", ["train-000.tar.gz", "train.tgz", "a.tar.zst"])
def test_compressed_shards_are_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"x"))
    assert "uncompressed" in line(tmp_path / name)
    assert "uncompressed" in line(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "no JSON"), ("{}", "not a list of names"), ('["a", "a"]', "a name twice"), ('["a", 1]', "not a list")],
)
def test_a_list_of_classes_that_is_none_is_an_error(text: str, words: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", *GOOD)
    (tmp_path / "classes.json").write_text(text)
    assert line(tmp_path).startswith(words)


def test_labels_beyond_the_classes_are_left_out_or_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", *GOOD, *member("x", 2), *member("y", -1))
    (tmp_path / "classes.json").write_text(json.dumps(["a", "b"]))
    assert line(tmp_path).startswith("label '2', which is none of the 2 classes of classes.json; 2 of 42")
    source = opened(tmp_path)
    assert total(source) == 40
    assert len(source.left_out) == 2
    write_tar(tmp_path / "train-0.tar", *GOOD, *member("x", 2))
    (tmp_path / "classes.json").unlink()
    with pytest.raises(DataError, match="unknown label '2'"):
        open_source(str(tmp_path), classes=("0", "1"), cut=False)
    assert total(open_source(str(tmp_path), classes=("0", "1"), cut=False, on_bad="skip")) == 40


@pytest.mark.parametrize("change", ["replaced", "rewritten", "cut", "gone"])
def test_a_shard_that_changes_during_a_run_gives_bad_images(change: str, tmp_path: Path) -> None:
    file = write_tar(tmp_path / "train-0.tar", *GOOD)
    write_tar(tmp_path / "train-1.tar", *(one for n in range(40) for one in member(f"b{n}", n % 2)))
    source = opened(tmp_path)
    split = next(part for part in source.parts if len(part))
    first = split.read(0).tobytes()
    other = write_tar(tmp_path / "other", *reversed(GOOD)).read_bytes()
    if change == "gone":
        file.unlink()
    elif change == "replaced":
        file.rename(tmp_path / "old")
        file.write_bytes(other)
    elif change == "rewritten":
        file.write_bytes(other)
    else:
        os.truncate(file, 100)
    fresh = pickle.loads(pickle.dumps(split))  # as a worker has it that starts now
    for each in (split, fresh) if change in ("rewritten", "cut") else (fresh,):
        with pytest.raises(DataError, match=r"^the shard (was changed since it was listed|is gone)") as caught:
            each.read(0)
        assert caught.value.where == split.where(0)
        assert len(each.read(70).tobytes())  # of the other shard
    if change in ("replaced", "gone"):  # what was opened stays as it was
        assert split.read(0).tobytes() == first


def opened_again(split: object) -> object:
    import pickle

    return pickle.loads(pickle.dumps(split))


def test_a_broken_image_in_a_shard_is_found_by_data_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = [("x.jpg", picture()[:200]), ("x.cls", b"1")]
    file = write_tar(tmp_path / "train-0.tar", *GOOD, *broken, *member("y"))
    write_tar(tmp_path / "val-0.tar", *member("v", 1), *member("w", 0))
    assert cli.main(["data", "check", str(tmp_path), "--workers", "2"]) == 3
    text = capsys.readouterr().out
    assert "1 image cannot be read" in text
    assert "train-0.tar member x.jpg" in text
    assert "1 row or file left out" in text
    assert f"{file.name} member y.jpg: no label" in text


def test_a_sparse_member_is_no_image(tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, value in GOOD:
            info = tarfile.TarInfo(name)
            info.size = len(value)
            tar.addfile(info, io.BytesIO(value))
        info = tarfile.TarInfo("x.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "0.jpg"
        tar.addfile(info)
    file = tmp_path / "a.tar"
    file.write_bytes(data.getvalue())
    assert line(file).startswith("a link or device, not a file")
