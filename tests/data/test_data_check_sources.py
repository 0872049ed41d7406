"""``selkern data check`` on tables and drawn scenes, where nothing can be read, where a process is killed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiny import ENVIRONMENT, DecodedHeaders, draw

from selkern import cli
from selkern.data.check import DataCheck, Place, check_data
from selkern.data.levels import PLAIN, Reading
from selkern.data.scenes import SceneSplit
from selkern.data.sources import open_source
from selkern.data.split import Source
from selkern.errors import ResourceError

SIDE = 40  # px: nothing to be remarked upon


def fill(root: Path, counts: dict[str, int]) -> Path:
    """{"train/cat": 3} -> three images of noise, none like another."""
    for colour, (folder, count) in enumerate(counts.items()):
        for number in range(count):
            draw(root / folder / f"{number}.png", colour, number, SIDE)
    return root


def check(root: Path, workers: int = 0) -> DataCheck:
    return check_data(open_source(str(root)), workers=workers)


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, output and errors of `selkern data`, without the lines that say what it does and how long it takes."""
    capsys.readouterr()
    code = cli.main(["data", *map(str, words)])
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines(keepends=True) if not re.match(r"selkern \d|\d{4}-\d\d-\d\dT", line)]
    return code, out, "".join(lines)


def encoded(colour: int, number: int, folder: Path) -> bytes:
    return draw(folder / "encoded.png", colour, number, SIDE).read_bytes()


def write_parquet(path: Path, images: list[bytes | None], labels: list[str]) -> None:
    pq.write_table(pa.table({"image": [{"bytes": data, "path": None} for data in images], "label": labels}), path)


@pytest.mark.parametrize("workers", [0, 2])
def test_parquet_rows_are_named(tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = [encoded(number % 2, number, tmp_path) for number in range(12)]
    root = tmp_path / "table"
    root.mkdir()
    labels = ["even", "odd"] * 6
    write_parquet(root / "train.parquet", [None, *pictures[1:]], labels)
    write_parquet(root / "test.parquet", [pictures[11], pictures[10][:90]], ["odd", "even"])
    result = check(root, workers)
    files = [str(root / f"{name}.parquet row {row}") for name, row in (("train", 0), ("train", 11), ("test", 0))]
    assert [bad.file for bad in result.unreadable] == [files[0], str(root / "test.parquet row 1")]
    assert result.unreadable[0].reason == "the row holds no image bytes"
    assert result.leaks == ((Place(files[1], "train", "odd"), Place(files[2], "test", "odd")),)
    code, out, _ = call(capsys, "check", root, "--workers", workers)
    assert code == 3
    assert "train.parquet row 11 [train] = test.parquet row 0 [test]\n" in out


def test_a_parquet_file_that_is_broken_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = [encoded(number % 2, number, tmp_path) for number in range(20)]
    file = tmp_path / "t.parquet"
    write_parquet(file, list(noise), ["a", "b"] * 10)
    data = bytearray(file.read_bytes())
    column = pq.read_metadata(file).row_group(0).column(0)
    assert column.path_in_schema == "image.bytes"
    data[column.data_page_offset : column.data_page_offset + 60] = bytes(60)  # labels and schema stay whole
    file.write_bytes(data)
    code, out, err = call(capsys, "check", file, "--workers", 0)
    assert (code, out) == (3, "")
    assert err.startswith("error: cannot read the Parquet file")
    assert len(err.splitlines()) == 1


def test_a_table_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, {"img": 6})
    rows = [f"img/{number}.png,{'ab'[number % 2]},{'train' if number < 4 else 'val'}" for number in range(6)]
    for name, label, split in (("x", "a", "train"), ("y", "a", "train"), ("z", "b", "val")):
        shutil.copy(tmp_path / "img/0.png", tmp_path / f"img/{name}.png")
        rows.append(f"img/{name}.png,{label},{split}")
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows]))
    code, out, _ = call(capsys, "check", tmp_path / "t.csv", "--workers", 0)
    assert code == 3  # the places that make it a finding come first
    assert "img/0.png [train] = img/z.png [val] = img/x.png [train] and 1 more\n" in out
    assert "img/0.png [a] = img/z.png [b] = img/x.png [a] and 1 more\n" in out
    assert out.endswith("\n2 things to look at, 2 serious\n")


def test_drawn_scenes_have_nothing_wrong() -> None:
    train, val, test = (SceneSplit(name, 200, 0) for name in ("train", "val", "test"))
    classes = tuple("0123456789")
    result = check_data(Source(name="digits", kind="digits", classes=classes, train=train, val=val, test=test))
    assert (result.images, result.serious, result.remarks) == (600, 0, 0)


# ------------------------------------------------------------------------------------------ hard conditions


def test_no_image_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, {"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 1})
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"")
    result = check(tmp_path)
    assert (len(result.unreadable), result.sizes, result.leaks, result.repeats) == (6, None, (), ())
    code, out, _ = call(capsys, "check", tmp_path, "--workers", 0)
    assert code == 3
    assert "6 images cannot be read" in out


def test_a_file_name_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "d", {"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 1})
    shutil.copy(tmp_path / "d/train/dog/0.png", tmp_path / "d/train/cat" / os.fsdecode(b"d\xe9g.png"))
    code, out, _ = call(capsys, "check", tmp_path / "d", "--workers", 0, "--output", tmp_path / "o.csv")
    assert code == 3
    assert "train/cat/d\ufffdg.png = train/dog/0.png" in out
    assert "train/cat/d\ufffdg.png" in (tmp_path / "o.csv").read_text(encoding="utf-8")


class Deadly(DecodedHeaders):
    """A split whose image kills the process that decodes it, as the system does where memory ends."""

    name = "train"
    labels: NDArray[np.int64] = np.array([0, 1], dtype=np.int64)

    def __init__(self, victim: int) -> None:
        self.spared = victim

    def __len__(self) -> int:
        return 2

    def read(self, index: int, epoch: int = 0, reading: Reading = PLAIN) -> Image.Image:  # noqa: ARG002
        if os.getpid() != self.spared:
            os.kill(os.getpid(), signal.SIGKILL)
        return Image.new("RGB", (SIDE, SIDE), (index, 0, 0))

    def where(self, index: int) -> str:
        return f"image {index}"


def test_a_killed_worker_is_one_error() -> None:
    split = Deadly(os.getpid())
    source = Source(name="deadly", kind="folder", classes=("a", "b"), train=split, val=split, test=split)
    assert check_data(source).images == 2
    with pytest.raises(ResourceError, match=r"was killed \| deadly \| .*fewer --workers"):
        check_data(source, workers=1)


class Huge(Deadly):
    """A split whose first image is too large for the memory there is."""

    def read(self, index: int, epoch: int = 0, reading: Reading = PLAIN) -> Image.Image:
        if index == 0:
            raise MemoryError
        return super().read(index, epoch, reading)


def test_an_image_too_large_for_the_memory_is_reported_and_passed_over() -> None:
    split = Huge(os.getpid())
    source = Source(name="huge", kind="folder", classes=("a", "b"), train=split, val=split, test=split)
    (bad,) = check_data(source).unreadable
    assert (bad.file, bad.reason) == ("image 0", "it takes more memory than there is")


@pytest.mark.exhaustive
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    for folder, count in {"few": 6, "many": 42}.items():
        for number in range(count):
            file = tmp_path / folder / "ab"[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (1500, 1000), (number, 0, 0)).save(file, compress_level=1)  # 4.5 MB decoded
    program = """
import resource, sys
from selkern.data.check import check_data
from selkern.data.sources import open_source
for data in sys.argv[1:]:
    assert not check_data(open_source(data)).serious
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    words = [sys.executable, "-c", program, str(tmp_path / "few"), str(tmp_path / "many")]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    few, many = map(int, done.stdout.split())
    assert many - few < 40 * 1024  # KiB; 36 images more are 158 MiB
