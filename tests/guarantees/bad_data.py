"""Cases of data sets: folders, tables and Parquet files that are not as they should be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from guarantees.bad_images import left_out
from guarantees.cases import DATA, OK, RESOURCE, USAGE, Case, Place, make_images, remove
from guarantees.pictures import encode, noise


def _picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(noise(), "PNG"))
    return path


def _strangers(data: Path) -> None:
    for name in (
        "Thumbs.db",
        ".DS_Store",
        "train/Thumbs.db",
        "train/cat/Thumbs.db",
        "train/cat/desktop.ini",
        "train/readme.txt",
    ):
        (data / name).write_bytes(b"no image")
    for name in (
        ".git/x.png",
        "train/.ipynb_checkpoints/x.png",
        "train/cat/.ipynb_checkpoints/x.png",
        "train/cat/._000.png",
    ):
        _picture(data / name)


def _deep(data: Path) -> None:
    folder = data / "train" / "cat"
    for _ in range(300):
        folder /= "d"
        folder.mkdir()


def _bomb_of_links(data: Path) -> None:
    for level in range(40):
        folder = data / "train" / "cat" / f"level{level}"
        folder.mkdir()
        for way in "ab":
            (folder / way).symlink_to(data.parent / "links" / f"level{level + 1}")
    shutil.copytree(data / "train" / "cat", data.parent / "links", symlinks=True)


def _twin_names(data: Path) -> None:
    for byte in (b"\xe9", b"\xe8"):
        _picture(data / "train" / os.fsdecode(b"cl" + byte) / "a.png")


# Each as (what is done to the sound data, the exit codes that are right, what the error line holds).
FOLDERS: dict[str, tuple[Callable[[Path], Any], tuple[int, ...], tuple[str, ...]]] = {
    "as it should be": (lambda _: None, (OK,), ()),
    "strangers and dot folders": (_strangers, (OK,), ()),
    "__MACOSX beside the splits": (lambda d: _picture(d / "__MACOSX" / "train" / "._a.png"), (OK,), ()),
    "an empty class": (lambda d: (d / "train" / "eel").mkdir(), (OK,), ()),
    "a class missing in val": (lambda d: shutil.rmtree(d / "val" / "dog"), (OK,), ()),
    "a class only in val": (lambda d: _picture(d / "val" / "eel" / "a.png"), (OK,), ()),
    "one class": (
        lambda d: remove(d / part / "dog" for part in ("train", "val")),
        (DATA,),
        ("only class 'cat'",),
    ),
    "no val": (lambda d: shutil.rmtree(d / "val"), (OK,), ()),
    "an empty val": (lambda d: remove(d / "val" / name for name in ("cat", "dog")), (OK, DATA), ()),
    "val of empty classes": (lambda d: remove((d / "val").rglob("*.*")), (OK, DATA), ()),
    "an empty train": (lambda d: remove((d / "train").rglob("*.*")), (DATA,), ("no training images",)),
    "two val folders": (lambda d: shutil.copytree(d / "val", d / "valid"), (DATA,), ("two val folders",)),
    "nested class folders": (lambda d: shutil.move(d / "train" / "cat", d / "train" / "pets" / "cat"), (OK,), ()),
    "images beside the classes": (lambda d: _picture(d / "train" / "a.png"), (OK,), ()),
    "very deep folders": (_deep, (DATA,), ("deep",)),
    "links in circles": (lambda d: (d / "train" / "cat" / "up").symlink_to(d), (OK,), ()),
    "a class that links to itself": (lambda d: (d / "train" / "eel").symlink_to("eel"), (OK,), ()),
    "links that multiply": (_bomb_of_links, (DATA,), ("links",)),
    "classes that are not UTF-8": (_twin_names, (DATA,), ("UTF-8",)),
    "a class with a line break": (lambda d: _picture(d / "train" / "sea\nlion" / "a.png"), (OK,), ()),
    "a class with a colour code": (lambda d: _picture(d / "train" / "\x1b[31mred" / "a.png"), (OK,), ()),
    "a class of 255 letters": (lambda d: _picture(d / "train" / ("x" * 255) / "a.png"), (OK,), ()),
    "a class in other scripts": (lambda d: _picture(d / "train" / "猫 über 🐈" / "a.png"), (OK,), ()),
    "an image of a broken name": (lambda d: _picture(d / "train" / "cat" / os.fsdecode(b"\xe9.png")), (OK,), ()),
    "a file of a long name": (lambda d: _picture(d / "train" / "cat" / ("x" * 251 + ".png")), (OK,), ()),
    "two spaces in a broken image": (lambda d: (d / "train" / "cat" / "a  b.png").write_bytes(b""), (OK,), ()),
    "a bar in a broken image": (lambda d: (d / "train" / "cat" / "a | b.png").write_bytes(b""), (OK,), ()),
    "a break in a broken image": (lambda d: (d / "train" / "cat" / "a\nb.png").write_bytes(b""), (OK,), ()),
}
LEFT_OUT = {"two spaces in a broken image": "a  b.png", "a bar in a broken image": "a | b.png"}


def folders(place: Place) -> Iterator[Case]:
    """Folders of images: what lies in them, what is missing, what things are called."""
    for name, (change, codes, shows) in FOLDERS.items():
        data = place.data()
        change(data)
        names = {LEFT_OUT[name]} if name in LEFT_OUT else None
        yield Case(name, place.train(data), codes, shows, left_out(place, names))
    for name in ("with space", "-dash", "üñí 猫", "a | b", "x" * 200):
        data = place.data(name)
        yield Case(f"data called {name[:20]}", place.train(data), (OK,))
    data = place.data(os.fsdecode(b"latin-\xe9"))
    yield Case("data of a name that is not UTF-8", place.train(data), (OK, USAGE), ("UTF-8",))
    yield Case("evaluate data of a name that is not UTF-8", place.evaluate(data), (OK, USAGE), ("UTF-8",))
    yield Case(
        "analyze data of a name that is not UTF-8", place.evaluate(data, command="analyze"), (OK, USAGE), ("UTF-8",)
    )
    folder = place.fresh()
    yield Case("an empty folder", place.train(folder), (DATA,), (str(folder),))
    yield Case("no such folder", place.train(folder / "no"), (DATA,), ("no such data",))
    yield Case("an empty name", place.train(""), (DATA,), ("(empty name)",))
    yield Case("a home that is not there", place.train("~nobody-of-this-name/x"), (DATA,), ("~nobody",))
    yield Case("a name too long", place.train("x" * 5000), (DATA, RESOURCE), ("xxx",))
    _picture(folder / "a.png")
    yield Case("images without classes", place.train(folder), (DATA,), (str(folder),))
    _picture(folder / "cat" / "a.png")
    yield Case("one image", place.train(folder), (DATA,), (str(folder),))
    make_images(place.fresh() / "few", 1)
    yield Case("one image a class", place.train(place.input / "few"), (DATA,), ("few",))
    make_images(place.fresh() / "three", 3)
    yield Case("too few for a batch", place.train(place.input / "three", "--batch-size", "8"), (OK,))
    make_images(place.fresh() / "other", 3, ("cat", "eel"))
    yield Case("evaluate on other classes", place.evaluate(place.input / "other"), (DATA,), ("'eel'",))
    archive, text, single = "an archive", "a text file", "a single image"
    for suffix, kind in {"zip": archive, "txt": text, "jpg": single, "tar.gz": archive, "csv.gz": archive}.items():
        file = place.fresh() / f"data.{suffix}"
        file.write_bytes(b"PK\x03\x04")
        yield Case(f"data is a .{suffix}", place.train(file), (DATA,), (str(file), kind))
    for suffix in ("csv", "parquet", "png"):
        pipe = place.fresh() / f"pipe.{suffix}"
        os.mkfifo(pipe)
        yield Case(f"data is a pipe called .{suffix}", place.train(pipe), (DATA,), (str(pipe),))
        file = place.fresh() / f"zero.{suffix}"
        file.symlink_to("/dev/zero")
        yield Case(f"data is a link to /dev/zero called .{suffix}", place.train(file), (DATA,), (str(file),))


ROWS = "train/cat/000.png,cat\ntrain/cat/001.jpg,cat\ntrain/dog/000.png,dog\ntrain/dog/001.jpg,dog\n" + "".join(
    f"train/{name}/{number},{name}\n" for name in ("cat", "dog") for number in ("002.png", "003.jpg")
)
# Each as (the table, the exit codes that are right, what the error line holds).
TABLES: dict[str, tuple[str | bytes, tuple[int, ...], tuple[str, ...]]] = {
    "as it should be": ("path,label\n" + ROWS, (OK,), ()),
    "byte order mark": ("\ufeffpath,label\n" + ROWS, (OK,), ()),
    "UTF-16": (("path,label\n" + ROWS).encode("utf-16"), (OK,), ()),
    "UTF-16 without its mark": (("path,label\n" + ROWS).encode("utf-16-le"), (DATA,), ("UTF-16",)),
    "CRLF": (("path,label\n" + ROWS).replace("\n", "\r\n"), (OK,), ()),
    "CR alone": (("path,label\n" + ROWS).replace("\n", "\r"), (OK,), ()),
    "no line end at the end": (("path,label\n" + ROWS)[:-1], (OK,), ()),
    "upper case and spaces": ("Path , LABEL\n" + ROWS, (OK,), ()),
    "quotes": ('"path","label"\n' + ROWS.replace("train/cat/000.png", '"train/cat/000.png"'), (OK,), ()),
    "a quote that stays open": ('path,label\n"' + ROWS, (DATA,), ("table.csv",)),
    "a text of a megabyte": ('path,label\n"' + "x" * (1 << 20) + '",cat\n', (DATA,), ("table.csv",)),
    "semicolons": ("path;label\n" + ROWS.replace(",", ";"), (OK,), ()),
    "tabs": ("path\tlabel\n" + ROWS.replace(",", "\t"), (OK,), ()),
    "no header": (ROWS, (DATA,), ("line 1",)),
    "no label column": ("path,name\n" + ROWS, (DATA,), ("no column label",)),
    "no path column": ("fish,label\n" + ROWS, (DATA,), ("no column path", "--path-column")),
    "another path column": ("file,label\n" + ROWS, (OK,), ()),
    "two label columns": ("path,label,label\ntrain/cat/000.png,cat,dog\n", (DATA,), ("line 1", "label")),
    "one column": ("path\ntrain/cat/000.png\n", (DATA,), ("no column label",)),
    "a header alone": ("path,label\n", (DATA,), ("no images",)),
    "empty": ("", (DATA,), ("line 1",)),
    "blank lines": ("path,label\n\n" + ROWS.replace("\n", "\n\n"), (OK,), ()),
    "binary": (bytes(range(256)) * 9, (DATA,), ("table.csv",)),
    "zeros": (bytes(5000), (DATA,), ("table.csv",)),
    "an image": (encode(noise(), "PNG"), (DATA,), ("table.csv",)),
    "a row too short": ("path,label\ntrain/cat/000.png\n", (DATA,), ("line 2",)),
    "a row too long": ("path,label\ntrain/cat/000.png,cat,1\n", (DATA,), ("line 2",)),
    "no label": ("path,label\n" + ROWS + "val/cat/000.png,\n", (OK,), ()),
    "no path": ("path,label\n" + ROWS + ",cat\n", (OK,), ()),
    "no such image": ("path,label\n" + ROWS + "no.png,cat\n", (OK,), ()),
    "a path of zero bytes": ("path,label\n" + ROWS + "a\0b.png,cat\n", (OK,), ()),
    "a path too long": ("path,label\n" + ROWS + "x" * 5000 + ",cat\n", (OK,), ()),
    "a folder as image": ("path,label\n" + ROWS + "train/cat,cat\n", (OK,), ()),
    "twice the same": ("path,label\n" + ROWS + "train/cat/000.png,dog\n", (OK,), ()),
    "a way out": ("path,label\n" + ROWS + "../../../etc/passwd,cat\n", (OK, DATA), ()),
    "one class": ("path,label\n" + ROWS.replace("dog\n", "cat\n"), (DATA,), ("only class",)),
    "numbers as labels": ("path,label\n" + ROWS.replace(",cat", ",1").replace(",dog", ",2"), (OK,), ()),
    "formulas as labels": ("path,label\n" + ROWS.replace(",cat", ",=cmd()"), (OK,), ()),
    "unknown split": ("path,label,split\ntrain/cat/000.png,cat,best\n", (DATA,), ("'best'", "line 2")),
    "splits": ("path,label,split\n" + ROWS.replace("\n", ",train\n") + "val/cat/000.png,cat,val\n", (OK,), ()),
    "only val": ("path,label,split\n" + ROWS.replace("\n", ",val\n"), (DATA,), ("no training images",)),
}


def tables(place: Place) -> Iterator[Case]:
    """CSV files."""
    for name, (text, codes, shows) in TABLES.items():
        table = place.data() / "table.csv"
        table.write_bytes(text if isinstance(text, bytes) else text.encode())
        yield Case(name, place.train(table), codes, shows)
    table = place.data() / "table.csv"
    table.write_text("path,label\n" + "".join(f"{table.parent}/{row}\n" for row in ROWS.split()))
    yield Case("absolute paths", place.train(table), (OK,))
    table.unlink()
    table.mkdir()
    yield Case("a folder called table.csv", place.train(table), (DATA,), ("table.csv",))


def _columns(labels: Any = None, images: Any = None) -> dict[str, Any]:
    encoded = [encode(noise(16 + number), "PNG") for number in range(12)]
    return {"image": images or [{"bytes": data, "path": None} for data in encoded], "label": labels or list("ab" * 6)}


def _with(row: int, value: Any, column: str = "image") -> dict[str, Any]:
    columns = _columns()
    columns[column][row] = value
    return columns


def _twice(file: Path) -> None:
    images = pa.array([encode(noise(), "PNG")] * 4)
    labels = pa.array(list("abab"))
    pq.write_table(pa.Table.from_arrays([images, labels, labels], names=["image", "label", "label"]), file)


# Each as (columns, or how the file is made; the exit codes that are right; what the error line holds).
PARQUET: dict[str, tuple[dict[str, Any] | Callable[[Path], Any], tuple[int, ...], tuple[str, ...]]] = {
    "as it should be": (_columns(), (OK,), ()),
    "images as bytes": (_columns(images=[encode(noise(), "PNG")] * 12), (OK,), ()),
    "a null image": (_with(2, None), (OK,), ()),
    "an image without bytes": (_with(2, {"bytes": None, "path": "a.png"}), (OK,), ()),
    "every image null": (
        _columns(images=[{"bytes": None, "path": "a.png"}] * 11 + [{"bytes": b"", "path": ""}]),
        (DATA,),
        (),
    ),
    "images as numbers": (_columns(images=[{"bytes": 1}] * 12), (DATA,), ("image",)),
    "images as text": (_columns(images=["a.png"] * 12), (DATA,), ("no image column",)),
    "broken images": (_columns(images=[b"no image"] * 12), (DATA,), ("none of",)),
    "a null label": (_with(2, None, "label"), (OK,), ()),
    "an empty label": (_with(2, "", "label"), (OK,), ()),
    "labels as fractions": (_columns([0.5, 1.5] * 6), (DATA,), ("holds double, which cannot be a class",)),
    "labels as truth": (_columns([True, False] * 6), (OK,), ()),
    "labels as lists": (_columns([[1], [2]] * 6), (DATA,), ("which cannot be a class",)),
    "labels as numbers": (_columns([7, -3] * 6), (OK,), ()),
    "one class": (_columns(["a"] * 12), (DATA,), ("only class",)),
    "no label": ({"image": _columns()["image"]}, (DATA,), ("no label column",)),
    "no image": ({"label": list("ab")}, (DATA,), ("no image column",)),
    "two columns of one name": (_twice, (DATA,), ("label",)),
    "no rows": (lambda file: pq.write_table(pa.table(_columns()).slice(0, 0), file), (DATA,), ("no images",)),
    "empty": (lambda file: file.write_bytes(b""), (DATA,), ("data.parquet",)),
    "text": (lambda file: file.write_text("path,label\n"), (DATA,), ("data.parquet",)),
    "zeros": (lambda file: file.write_bytes(bytes(5000)), (DATA,), ("data.parquet",)),
    "signatures alone": (lambda file: file.write_bytes(b"PAR1\xff\xff\xff\x7fPAR1"), (DATA,), ("data.parquet",)),
    "a folder": (lambda file: file.mkdir(), (DATA,), ("data.parquet",)),
}


def parquet_files(place: Place) -> Iterator[Case]:
    """Parquet files, whole and cut."""
    for name, (made, codes, shows) in PARQUET.items():
        file = place.fresh() / "data.parquet"
        if callable(made):
            made(file)
        else:
            pq.write_table(pa.table(made), file)
        yield Case(name, place.train(file, "--batch-size", "8"), codes, shows)
    whole = place.fresh() / "whole"
    pq.write_table(pa.table(_columns()), whole)
    data = whole.read_bytes()
    for percent in (5, 50, 95):
        file = place.fresh() / "data.parquet"
        file.write_bytes(data[: len(data) * percent // 100])
        yield Case(f"cut at {percent} %", place.train(file), (DATA,), ("data.parquet",))
    file = place.fresh() / "data.parquet"
    file.write_bytes(data[:200] + bytes(1000) + data[1200:])
    yield Case("zeros in the middle", place.train(file), (OK, DATA), ("data.parquet",))
    folder = place.fresh()
    (folder / "a.parquet").write_bytes(data)
    (folder / "b.parquet").write_bytes(data)
    yield Case("a folder of files without splits", place.train(folder), (OK,))
    (folder / "train.parquet").write_bytes(data)
    (folder / "val.parquet").write_bytes(data[:99])
    yield Case("a folder with a cut file", place.train(folder), (DATA,), ("val.parquet",))
