"""The sheet shows the very pixels that a network is given, of every class and split, whatever the names and files."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from image_files import tiff
from numpy.typing import NDArray
from PIL import Image

from selkern import cli
from selkern.data import sheet as lettering
from selkern.data.decode import decode
from selkern.data.preprocess import Preprocess
from selkern.data.sheet import draw_sheet, pick
from selkern.data.sources import open_source
from selkern.errors import DataError
from selkern.train.recipe import RECIPES


def fill(root: Path, counts: dict[str, int], size: tuple[int, int] = (12, 8)) -> Path:
    rng = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
    return root


def drawn(root: Path, preprocess: Preprocess) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(draw_sheet(open_source(str(root)), preprocess, ["heading"]))) as image:
        return np.asarray(image.convert("RGB"))


def holds(sheet: NDArray[np.uint8], part: NDArray[np.uint8]) -> bool:
    """Whether a part is somewhere in the sheet."""
    height, width = part.shape[:2]
    rows, columns = np.nonzero((sheet[: 1 - height, : 1 - width] == part[0, 0]).all(axis=2))
    return any(
        (sheet[y : y + height, x : x + width] == part).all()
        for y, x in zip(rows.tolist(), columns.tolist(), strict=True)
    )


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_the_pixels_are_those_of_the_input(resize: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "data", {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1}, size=(20, 40))
    preprocess = Preprocess(size=16, resize=resize)  # type: ignore[arg-type]
    sheet = drawn(root, preprocess)
    source = open_source(str(root))
    for split in (source.train, source.val):
        for index in range(len(split)):
            pixels = preprocess(split.read(index)).transpose(1, 2, 0)
            assert holds(sheet, pixels.repeat(7, axis=0).repeat(7, axis=1))  # 112 px: seven for each


def test_every_class_and_split_has_its_share(tmp_path: Path) -> None:
    source = open_source(str(fill(tmp_path / "data", {"train/a": 50, "train/b": 3, "val/a": 2, "val/b": 9})))
    chosen = pick(source, 16)
    result = Counter((source.classes[split.labels[index]], split.name) for split, index in chosen)
    assert result == {("a", "train"): 6, ("a", "val"): 2, ("b", "train"): 3, ("b", "val"): 5}
    assert len(set(chosen)) == 16
    assert [source.classes[split.labels[index]] for split, index in chosen] == ["a"] * 8 + ["b"] * 8


def test_more_classes_than_images(tmp_path: Path) -> None:
    source = open_source(
        str(fill(tmp_path / "data", {f"{split}/c{n:02d}": 1 for n in range(20) for split in ("train", "val")}))
    )
    chosen = pick(source, 6)
    names = [source.classes[split.labels[index]] for split, index in chosen]
    assert names[0] == "c00"
    assert names[-1] == "c19"
    assert len(set(names)) == 6


def test_names_and_files_of_any_kind(tmp_path: Path) -> None:
    """No letter for it, a name of 200 letters, a formula, a control character, broken images: no exception, no blot."""
    odd = ("\u732b", "x" * 200, "$x^2$", "a\x07b", "\u0642\u0637\u0629")
    root = fill(tmp_path / "data", {f"{split}/{name}": 1 for name in odd for split in ("train", "val")})
    (root / "train/$x^2$/0.png").write_bytes(b"not an image")
    (root / "val/$x^2$/0.png").write_bytes(b"")
    sheet = drawn(root, Preprocess(size=8))
    red = (np.abs(sheet.astype(int) - (0xFB, 0xE9, 0xE7)) < 4).all(axis=2)
    assert red.sum() > 2 * 112 * 112 * 0.7  # two cells
    assert sheet.shape[1] < 1200


def test_large_inputs_are_reduced(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", {"train/a": 30, "train/b": 30, "val/a": 1, "val/b": 1})
    height, width, _ = drawn(root, Preprocess(size=900)).shape
    assert width < 2000
    assert height < 4500


def test_texts_are_cut_to_their_width() -> None:
    assert lettering.shortened("short", 200, 12) == "short"
    cut = lettering.shortened("a" * 3000 + "end", 100, 12)
    assert cut.endswith("end")
    assert lettering.font(cut, 12).getlength(cut) <= 100
    assert all(
        lettering.font(line, 12).getlength(line) <= 100 for line in lettering.wrapped("many words " * 20, 100, 12)
    )
    assert lettering.shown("caf\u00e9", 3) == "caf\u00e9"
    assert lettering.shown("\U000e0001", 3).startswith("3: ")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = fill(tmp_path / "data", {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2}, size=(40, 80))
    sheet = tmp_path / "sheet.png"
    words = ["data", "check", str(root), "--workers", "0", "--sheet"]
    assert cli.main([*words, str(sheet)]) == 0
    said = capsys.readouterr().out
    assert f"written: {sheet}\n" in said
    assert "input 40 px (as the pictures), centre crop 1" in said
    assert "the centre crop does not show their ends" in said
    before = sheet.read_bytes()
    assert cli.main([*words, str(sheet)]) == 2
    assert sheet.read_bytes() == before
    assert cli.main([*words, str(tmp_path / "pad.png"), "--resize", "pad", "--image-size", "24"]) == 0
    said = capsys.readouterr().out
    assert "input 24 px (as asked), padded" in said
    assert "the centre crop" not in said
    assert cli.main([*words, str(tmp_path / "part.png"), "--image-size", "24", "--eval-crop", "0.5"]) == 0
    assert "centre crop 0.5" in capsys.readouterr().out
    shown = Preprocess(size=24, resize="pad", mean=RECIPES["cifar"].mean, std=RECIPES["cifar"].std)
    with Image.open(tmp_path / "pad.png") as image:
        pixels = shown(open_source(str(root)).train.read(0)).transpose(1, 2, 0)
        assert holds(np.asarray(image), pixels.repeat(5, axis=0).repeat(5, axis=1))


def test_deep_pixels_are_shown_as_training_takes_them(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    deep = np.random.default_rng(0).integers(0, 4096, (32, 32), dtype=np.uint16)
    for path in root.rglob("*.png"):
        Image.fromarray(deep).save(path)
    words = ["data", "check", str(root), "--workers", "0", "--sheet"]
    assert cli.main([*words, str(tmp_path / "auto.png")]) == 3  # one picture under two labels
    assert cli.main([*words, str(tmp_path / "full.png"), "--white-level", "full"]) == 3
    auto, full = (np.asarray(Image.open(tmp_path / name).convert("RGB"))[-200:] for name in ("auto.png", "full.png"))
    grey = np.repeat((deep / 4095 * 255).round()[..., None], 3, axis=2)
    assert holds(auto, grey.repeat(4, axis=0).repeat(4, axis=1))
    assert not holds(full, grey.repeat(4, axis=0).repeat(4, axis=1))


def test_images_that_cannot_be_read_have_no_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in "ab":
        (tmp_path / "d" / label).mkdir(parents=True)
        for number in range(8):
            half = tiff(np.full((4, 4), number, dtype=np.float16), 1)
            (tmp_path / "d" / label / f"{number}.tif").write_bytes(half)
    words = ["data", "check", str(tmp_path / "d"), "--workers", "0", "--sheet", str(tmp_path / "sheet.png")]
    assert cli.main(words) == 3
    said = capsys.readouterr().out
    assert "no picture can be read, input" in said
    assert "0 px" not in said
    with pytest.raises(DataError) as caught:
        decode(tmp_path / "d/a/0.tif")
    assert caught.value.fix == "save it as PNG of 8 or 16 bits"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sheet", "sheet.jpg"), "not a .png file"),
        (("--image-size", "32"), "only for the sheet"),
        (("--sheet", "no/sheet.png"), "no such folder"),
        (("--sheet", "sheet.png", "--image-size", "0"), "image size is 0"),
        (("--sheet", "sheet.png", "--model", "sknet"), "sknet"),
    ],
)
def test_flags_that_cannot_be(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = fill(tmp_path / "data", {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2})
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "check", str(root), "--workers", "0", *words]) == 2
    assert said in capsys.readouterr().err


def test_sheet_lists_the_data_once_and_passes_over_bad_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "images", {"a": 12, "b": 12})
    files = sorted((tmp_path / "images").rglob("*.png"))
    lines = [f"{file},{file.parent.name}" for file in files]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label", *lines, f"{files[0]},", ""]))
    opened = []

    def counted(*args: object, **named: object) -> object:
        opened.append(args)
        return open_source(*args, **named)  # type: ignore[arg-type]

    for module in ("selkern.data.sources", "selkern.train.defaults"):
        monkeypatch.setattr(f"{module}.open_source", counted)
    words = ["data", "check", str(table), "--workers", "0", "--sheet", str(tmp_path / "sheet.png")]
    assert cli.main(words) == 3, capsys.readouterr()
    assert len(opened) == 1
    assert (tmp_path / "sheet.png").is_file()
