"""Tables as people write them: read right, with a word on what was assumed, or one line that says what to do."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selkern import cli
from selkern.cli.analyze import AnalyzeOptions
from selkern.cli.data import DataCheckOptions
from selkern.cli.evaluate import EvaluateOptions
from selkern.cli.parse import parse
from selkern.data.sources import Source, open_source
from selkern.data.table_options import TableOptions
from selkern.errors import DataError, UsageError
from selkern.train.options import TrainOptions

ROWS = [(f"img/{name}/{i}.png", name) for name in "ab" for i in range(10)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """img/a and img/b with ten images each; tables are written beside img/."""
    folder = tmp_path_factory.mktemp("tables")
    for path, _ in ROWS:
        draw(folder / path)
    return folder


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40), (ord(path.parent.name[0]), int(path.stem), 9)).save(path)


def table(*header: str, rows: Any = ROWS, sep: str = ",") -> str:
    return "".join(sep.join(row) + "\n" for row in (header or ("path", "label"), *rows))


def put(path: Path, content: str | bytes, encoding: str = "utf-8") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return str(path)


def message(data: str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        open_source(data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def images(source: Source) -> int:
    return len(source.train) + len(source.val) + len(source.test)


def assumed(source: Source) -> str:
    return " // ".join(note for note in source.notes if "cut off by seed" not in note)


WHOLE: dict[str, tuple[str | bytes, str]] = {  # name of the file: its text, what is said of it
    "semicolon.csv": (table(sep=";"), "columns of semicolon.csv are separated by ';'"),
    "tab.csv": (table(sep="\t"), "columns of tab.csv are separated by tab"),
    "pipe.csv": (table(sep="|"), "columns of pipe.csv are separated by '|'"),
    "tab.tsv": (table(sep="\t"), ""),
    "excel.csv": ("sep=;\r\n" + table(sep=";").replace("\n", "\r\n"), ""),
    "utf16.csv": (table().encode("utf-16"), ""),
    "utf16.tsv": (table(sep="\t").encode("utf-16"), ""),
    "bom.csv": (table().encode("utf-8-sig"), ""),
    "quoted.csv": (table(rows=[(f'"{path}"', f'"{label}"') for path, label in ROWS]), ""),
    "commas.csv": (table().replace("\n", ",,\n"), ""),
    "comments.csv": ("# made by me\n\n" + table() + "# the end\n", ""),
    "names.csv": (
        table("Filename", "class"),
        "paths are taken from the column 'Filename' // labels are taken from the column 'class'",
    ),
    "windows.csv": (
        table(rows=[(path.replace("/", "\\"), c) for path, c in ROWS]),
        "paths in which \\ is read as /: 20",
    ),
    "case.csv": (
        table(rows=[(path.replace("png", "PNG"), c) for path, c in ROWS]),
        "paths that differ from their files in case or in Unicode form: 20",
    ),
    "dots.csv": (table(rows=[(f"./{path}", c) for path, c in ROWS]), ""),
    "other.csv": (table("path", "label", "dataset", rows=[(*row, "cifar") for row in ROWS]), ""),
    "no split.csv": (table("path", "label", "split", rows=[(*row, "") for row in ROWS]), ""),
    "spaces.csv": (
        table(rows=[(path, c + " " * (i % 2)) for i, (path, c) in enumerate(ROWS)]),
        "spaces around a label are left out: 'a' and 1 more",
    ),
    "lines.jsonl": (
        "".join(json.dumps({"path": path, "label": c, "tags": [1]}) + "\n" for path, c in ROWS),
        "",
    ),
    "loose quotes.csv": ('"Path " , "Label"\n' + "".join(f'{path}, "{c}"\n' for path, c in ROWS), ""),
    "twice.csv": (table(rows=ROWS[:9]) + table(rows=ROWS[9:]), ""),
    "mac.csv": (table().replace("\n", "\r"), ""),
    "rooted.csv": (
        table(rows=[(f"/{path}", c) for path, c in ROWS]),
        "paths are taken relative to {root}, without their beginning '/'",
    ),
    "moved.csv": (
        table(rows=[("C:\\Users\\bob\\" + path.replace("/", "\\"), c) for path, c in ROWS]),
        "paths are taken relative to {root}, without their beginning 'C:/Users/bob'",
    ),
    "lists/above.csv": (table(), "paths are relative to {root}, where the files are"),
    "inside.csv": (
        table(rows=[(path[4:], c) for path, c in ROWS]),
        "paths are relative to {root}/img, where the files are",
    ),
    "ids.csv": (
        table("image_id", "label", rows=[(path[4:-4], c) for path, c in ROWS]),
        "paths are taken from the column 'image_id' // paths are relative to {root}/img, where the files are; .png is "
        "added to the names in the table",
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_tables_that_are_read_whole(root: Path, name: str) -> None:
    content, said = WHOLE[name]
    source = open_source(put(root / name, content))
    assert (images(source), source.classes, source.left_out) == (20, ("a", "b"), ())
    assert assumed(source) == said.format(root=root)
    for split in (source.train, source.val, source.test):
        for index, label in enumerate(split.labels):
            assert Path(split.where(index)).parent.name == source.classes[label]
            split.read(index)


def test_splits_under_any_name(root: Path) -> None:
    rows = [(*row, ("Training", "dev", "Testing", "train_set")[i % 4]) for i, row in enumerate(ROWS)]
    source = open_source(put(root / "t.csv", table("path", "label", "split", rows=rows)))
    assert [len(part) for part in (source.train, source.val, source.test)] == [10, 5, 5]
    source = open_source(
        put(root / "t.csv", table("class id", "filepaths", "labels", "data set", rows=[("0", *r) for r in rows]))
    )
    assert [len(part) for part in (source.train, source.val, source.test)] == [10, 5, 5]
    assert "splits are taken from the column 'data set'" in source.notes


def test_splits_that_the_paths_name(tmp_path: Path) -> None:
    rows = [
        (f"{folder}/{i}.png", "ab"[i % 2]) for folder, n in (("train", 8), ("valid", 4), ("test", 2)) for i in range(n)
    ]
    for path, _ in rows:
        draw(tmp_path / path)
    path = put(tmp_path / "t.csv", table(rows=rows))
    source = open_source(path)
    assert [len(part) for part in (source.train, source.val, source.test)] == [8, 4, 2]
    assert "splits are taken from the paths (test/, train/, valid/)" in source.notes
    saved = tmp_path / "split.csv"  # of a run that knew nothing of it
    parts = ["train"] * 10 + ["val"] * 2 + ["test"] * 2
    saved.write_text("".join(f"{row[0]},{row[1]},{part}\n" for row, part in zip(rows, parts, strict=True)))
    assert len(open_source(path, split_csv=saved).train) == 10


def test_columns_that_the_user_chooses(root: Path) -> None:
    rows = [(path, f"{path}.txt", c, "x;y") for path, c in ROWS]
    path = put(root / "t.csv", table("foto", "notes", "breed", "more", rows=rows))
    assert "choose among 'foto', 'notes', 'breed', 'more' by --path-column and --label-column" in message(path)
    chosen = TableOptions(path_column="foto", label_column="Breed")
    assert open_source(path, table=chosen).classes == ("a", "b")
    assert "--path-column can be one of foto, notes" in message(path, table=TableOptions(path_column="file"))
    path = put(root / "t.csv", table("filename", "image", "label", rows=[(p, p, c) for p, c in ROWS]))
    assert "columns filename and image could each be the path" in message(path)
    path = put(root / "t.csv", table(sep=";"))
    assert "its columns seem to be separated by ';': leave --sep out" in message(path, table=TableOptions(sep=","))
    assert images(open_source(path, table=TableOptions(sep=";"))) == 20
    with pytest.raises(UsageError, match="sep is 'x'"):
        TableOptions(sep="x")


def test_commands_take_the_columns_and_a_run_keeps_them() -> None:
    words = ["--path-column", "foto", "--label-column", "breed", "--split-column", "part", "--sep", ";"]
    table = TableOptions(path_column="foto", label_column="breed", split_column="part", sep=";")
    options = parse(TrainOptions, ["--data", "x.csv", *words], "train")
    assert options.table == table
    assert TrainOptions.from_yaml(options.to_yaml(), "config.yaml").table == table
    assert TrainOptions.from_yaml("data: x.csv\n", "config.yaml").table == TableOptions()  # a run of before
    assert parse(EvaluateOptions, ["RUN", *words], "evaluate").table == table
    assert parse(AnalyzeOptions, ["RUN", *words], "analyze").table == table
    assert parse(DataCheckOptions, ["x.csv", *words], "data check").table == table


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
REFUSED: dict[str, tuple[str | bytes, str]] = {
    "latin1.csv": (
        table(rows=[(p, "caf\xe9") for p, _ in ROWS]).encode("latin-1"),
        "not UTF-8: it holds the byte 0xe9",
    ),
    "utf16.csv": (table().encode("utf-16-le"), "UTF-16 without its mark"),
    "excel.csv": (b"PK\x03\x04....", "this is an Excel workbook or a zip"),
    "lfs.csv": (POINTER, "a Git LFS pointer, not the file itself | "),
    "gz.csv": (b"\x1f\x8b....", "this is a compressed file"),
    "headless.csv": (table()[len("path,label\n") :], "the table has no header: its first line names an image"),
    "list.csv": (table(rows=ROWS, sep=" ")[len("path label\n") :], "the table has no header"),
    "urls.csv": (
        table(rows=[(f"https://x.org/{p}", c) for p, c in ROWS]),
        "a URL, not a file: 'https://x.org/img/a/0.png'",
    ),
    "drive.csv": (table(rows=[(f"C:\\{p}x", c) for p, c in ROWS]), "these are paths of a Windows machine"),
    "quote.csv": (table() + '"img/a/0.png,a\nimg/a/1.png,a\n', "a quotation mark is not closed"),
    "broken.jsonl": ('{"path": "img/a/0.png", "label": "a"}\n{no\n', "broken.jsonl line 2"),
    "gone.csv": (table(rows=[(f"x/{p}", c) for p, c in ROWS]), "20 of 20 image files are missing"),
    "labels.xlsx": (b"", "a spreadsheet | "),
    "labels.json": (b"[]", "a JSON file | "),
    "images.npz": (b"", "a file of NumPy arrays | "),
    "list.txt": (table(), "a text file | "),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("on_bad", ["error", "skip"])
def test_tables_that_cannot_be_read_are_called_what_they_are(root: Path, name: str, on_bad: Any) -> None:
    content, said = REFUSED[name]
    assert said in message(put(root / name, content), on_bad=on_bad)


def test_where_a_relative_path_was_looked_for(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "t.csv", table())
    assert f"{tmp_path}/img/a/0.png was looked for: correct the paths" in message(path)
    monkeypatch.chdir(root)
    assert f"{tmp_path}/img/a/0.png was looked for; it is in {root}" in message(path)


def test_names_in_two_folders_alike(tmp_path: Path) -> None:
    for folder in ("left", "right"):
        for i in range(3):
            draw(tmp_path / folder / f"{i}.png")
    path = put(tmp_path / "t.csv", table(rows=[(f"{i}.png", "ab"[i % 2]) for i in range(3)]))
    assert "files of such names are in left/ and right/" in message(path)


def one_hot(rows: Any = ROWS) -> str:
    return table("filename", " a", " b", rows=[(path, str(int(c == "a")), str(int(c == "b"))) for path, c in rows])


def test_a_column_for_each_class(root: Path, tmp_path: Path) -> None:
    source = open_source(put(root / "one_hot.csv", one_hot()))
    assert source.classes == ("a", "b")
    for part in source.parts:
        assert {Path(part.where(i)).parent.name for i in np.flatnonzero(part.labels == 1).tolist()} == {"b"}
    assert "classes are the columns of 0 and 1: a, b" in assumed(source)
    none = put(root / "none.csv", one_hot(ROWS[1:]) + "img/a/0.png,0,0\n")
    assert "no column of a class holds 1" in message(none)
    several = put(root / "several.csv", one_hot(ROWS[1:]) + "img/a/0.png,1,1\n")
    assert "make one column label of those of 0 and 1 (a, b): an image has one" in message(several)
    for split, rows in (("train", ROWS), ("valid", ROWS[:1] + ROWS[-1:])):  # as Roboflow writes them
        for path, _ in rows:
            draw(tmp_path / split / path)
        put(tmp_path / split / "_classes.csv", one_hot(rows))
    source = open_source(str(tmp_path))
    assert (len(source.train), len(source.val)) == (20, 2)


@pytest.mark.parametrize("folders", [("images",), ("train_images", "test_images")])
def test_a_table_of_ids_beside_a_folder_of_images(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for folder in folders:  # as competitions have them; test_images/ may hold the same names
        for i in range(20):
            draw(tmp_path / folder / f"{i}.jpg")
    path = put(tmp_path / "train.csv", table("image_id", "label", rows=[(str(i), "ab"[i % 2]) for i in range(20)]))
    source = open_source(path)
    assert images(source) == 20
    assert source.train.where(0).startswith(str(tmp_path / folders[0]))
    assert f"relative to {tmp_path / folders[0]}, where the files are; .jpg is added" in assumed(source)


# ----------------------------------------------------------------------------------------------- bad rows


def bad_table(root: Path) -> str:
    rows = [*ROWS[:-2], ("img/a/gone.png", "a"), (ROWS[-2][0], ""), (ROWS[-1][0], "b", "c"), ("img/a/0.png", "b")]
    return put(root / "bad.csv", table(rows=rows))


def test_bad_rows_end_with_their_number_or_are_left_out(root: Path) -> None:
    path = bad_table(root)
    error = message(path)
    assert "no such image file: 'img/a/gone.png'; 5 of 22 rows cannot be used" in error
    assert "bad.csv line 20" in error
    source = open_source(path, on_bad="skip")
    assert [(left.where.rpartition(" ")[2], left.reason) for left in source.left_out] == [
        ("21", "the label is empty"),
        ("22", "3 columns where the header has 2 (texts that hold the separator need quotes)"),
        ("23", "img/a/0.png is listed in line 2 already, with label 'a'"),
        ("2", "img/a/0.png is listed again, and otherwise, in line 23"),
    ]
    assert images(source) == 18  # the missing file among them: another day it may be there
    assert f"4 of 22 rows are left out, the first {path} line 21: the label is empty" in source.notes
    assert any(note.startswith("1 of 22 image files are missing") for note in source.notes)
    with pytest.raises(DataError, match="no such image file"):
        for split in (source.train, source.val, source.test):
            for index in range(len(split)):
                split.read(index)


def test_check_lists_all_of_them(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = bad_table(root)
    assert cli.main(["data", "check", path, "--workers", "0", "--output", str(tmp_path / "found.csv")]) == 3
    text = capsys.readouterr().out
    for part in (
        "SERIOUS  4 rows or files left out",
        "line 22: 3 columns",
        "SERIOUS  1 image cannot be read",
        "gone.png",
    ):
        assert part in text
    rows = (tmp_path / "found.csv").read_text().splitlines()
    assert sum(row.startswith("left out,") for row in rows) == 4
    assert sum(row.startswith("unreadable,") for row in rows) == 1
    assert cli.main(["data", "check", path, "--workers", "0", "--json"]) == 3
    result = json.loads(capsys.readouterr().out)
    assert len(result["left_out"]) == 4
    assert len(result["unreadable"]) == 1


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 5000, "img/a", "a" * 300 + ".png"])
def test_a_name_that_no_image_can_have_is_a_missing_image(root: Path, name: str) -> None:
    path = put(root / "t.csv", table(rows=[*ROWS, (name, "a")]))
    assert "no such image file" in message(path)
    source = open_source(path, on_bad="skip")
    assert images(source) == 21
    with pytest.raises(DataError, match=r"no such image file|not a file with an image"):
        for split in (source.train, source.val, source.test):
            for index in range(len(split)):
                split.read(index)


# ------------------------------------------------------------------------------------------------- labels


def test_labels_that_look_like_a_slip(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["NaN", "a", "A", "b", "hot dog", "hot-dog", "1", "01", "1.0", "-1"]
    rows = [(p, names[i % 10], ("train", "val")[i // 10]) for i, (p, _) in enumerate(ROWS)]
    path = put(root / "t.csv", table("path", "label", "split", rows=rows))
    source = open_source(path)
    assert len(source.classes) == 10
    said = assumed(source)
    for part in (
        "class '-1' (2 images) reads like a missing label",
        "class 'NaN' (2 images) reads like a missing label",
        "case, spaces or dashes only, kept apart: 'A' (2) and 'a' (2), 'hot dog' (2) and 'hot-dog' (2)",
        "the writing of a number only, kept apart: '01' (2) and '1' (2) and '1.0' (2)",
    ):
        assert part in said
    assert cli.main(["data", "check", path, "--workers", "0"]) in (0, 3)
    assert "look     class 'NaN' (2 images)" in capsys.readouterr().out


def test_the_same_text_in_two_unicode_forms_is_one_class(root: Path) -> None:
    def label(i: int, form: Callable[[int], Any]) -> str:
        return "b" if i % 4 == 3 else unicodedata.normalize(form(i), "caf\xe9")

    both = [(p, label(i, lambda i: ("NFC", "NFD")[i % 2])) for i, (p, _) in enumerate(ROWS)]
    source = open_source(put(root / "t.csv", table(rows=both)))
    assert source.classes == ("b", "caf\xe9")
    assert "taken for one class: 'caf\xe9'" in assumed(source)
    one = [(p, label(i, lambda _: "NFD")) for i, (p, _) in enumerate(ROWS)]
    source = open_source(put(root / "t.csv", table(rows=one)), classes=["caf\xe9", "b"])  # a checkpoint's
    assert source.classes == ("caf\xe9", "b")
    assert sorted(source.train.labels.tolist()).count(0) > 8


def test_a_class_for_every_image_is_hardly_one(tmp_path: Path) -> None:
    for i in range(42):
        draw(tmp_path / f"{i}.png")
    rows = [(f"{i}.png", f"a photo of {i % 40}", "train" if i < 40 else "val") for i in range(42)]
    path = put(tmp_path / "t.csv", table("path", "label", "split", rows=rows))
    assert "40 classes for 42 images: is this the column of the classes?" in assumed(open_source(path))
    path = put(tmp_path / "t.csv", table(rows=[row[:2] for row in rows[:40]]))
    assert "(40 classes, 40 images)" in message(path)


# ------------------------------------------------------------------------------------------------ folders


def test_metadata_of_an_image_folder(tmp_path: Path) -> None:
    """As Hugging Face's ImageFolder has it: in the folder, or in each split folder."""
    for folder, count in (("one", 20), ("two/train", 16), ("two/test", 4)):
        for i in range(count):
            draw(tmp_path / folder / f"{i}.png")
        put(
            tmp_path / folder / "metadata.csv",
            table("file_name", "label", rows=[(f"{i}.png", "ab"[i % 2]) for i in range(count)]),
        )
    source = open_source(str(tmp_path / "one"))
    assert (images(source), source.classes) == (20, ("a", "b"))
    source = open_source(str(tmp_path / "two"))
    assert "the images are those of test/metadata.csv, train/metadata.csv" in source.notes
    assert (len(source.train) + len(source.val), len(source.test)) == (16, 4)
    assert next(source.split_rows())[0].startswith("train/")
    for folder in ("train", "test"):
        (tmp_path / "two" / folder / "metadata.csv").unlink()
    lines = [
        json.dumps({"file_name": f"{f}/{i}.png", "label": "ab"[i % 2]})
        for f, n in (("train", 16), ("test", 4))
        for i in range(n)
    ]
    put(tmp_path / "two" / "metadata.jsonl", "\n".join(lines))
    assert len(open_source(str(tmp_path / "two")).test) == 4


def test_metadata_without_labels_leaves_the_class_folders(tmp_path: Path) -> None:
    for i in range(12):
        draw(tmp_path / "ab"[i % 2] / f"{i}.png")
    for header, rows in (
        (("file_name", "text"), [("a/0.png", "a photo")]),
        (("image", "class"), [("0.png", "old")]),
        ((), [(b"caf\xe9".decode("latin-1"), "b")]),
    ):
        put(tmp_path / "metadata.csv", table(*header, rows=rows), "latin-1")
        assert open_source(str(tmp_path)).kind == "folder"


def test_a_table_for_each_split(tmp_path: Path) -> None:
    for i in range(16):
        draw(tmp_path / "images" / f"{i}.png")
    rows = [(f"{i}.png", "ab"[i % 2]) for i in range(16)]
    put(tmp_path / "train.csv", table("filename", "label", rows=rows[:10]))
    put(tmp_path / "val.csv", table("filename", "label", rows=rows[10:]))
    put(tmp_path / "test.csv", table("filename", rows=[row[:1] for row in rows[:2]]))  # no labels: not used
    source = open_source(str(tmp_path))
    assert [len(part) for part in (source.train, source.val)] == [10, 6]
    assert source.train.where(3) == f"{tmp_path}/images/3.png"
    assert next(source.split_rows()) == ("images/0.png", "a", "train")
    for name in "ab":
        for i in range(5):
            draw(tmp_path / name / f"{i}.png")
    assert open_source(str(tmp_path)).kind == "folder", "class folders count before lists"
