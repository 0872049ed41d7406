"""``selkern data check``: every planted fault is found, exactly it, and nothing of the user's is changed."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny import ENVIRONMENT, draw, tree

from selkern import cli
from selkern.data.check import DataCheck, Place, Size, check_data
from selkern.data.sources import open_source

SIDE = 40  # px: `draw` makes it two wider, and nothing to be remarked upon
QUARTER_LEFT = 8  # EXIF: turn by 270 degrees clockwise to see it upright


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


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of every fault, among 100 images without."""
    root = fill(
        tmp_path_factory.mktemp("faulty"),
        {
            "train/cat": 40,
            "train/dog": 40,
            "train/eel": 4,
            "val/cat": 6,
            "val/dog": 5,
            "test/cat": 3,
            "test/eel": 2,
        },
    )
    for split in ("train", "val"):
        (root / split / "fox").mkdir()
    (root / "train" / ".cache").mkdir()
    (root / "docs").mkdir()
    whole = (root / "train/cat/0.png").read_bytes()
    (root / "train/cat/cut short.png").write_bytes(whole[: len(whole) // 2])
    (root / "val/dog/empty.jpg").write_bytes(b"")
    (root / "test/eel/text.png").write_text("no image")
    # Leaks: in another format, and turned, with a note how to turn it back.
    Image.open(root / "train/cat/1.png").save(root / "val/cat/other name.bmp")
    turned = Image.Exif()
    turned[0x0112] = QUARTER_LEFT
    original = Image.open(root / "train/dog/1.png")
    original.transpose(Image.Transpose.ROTATE_270).save(root / "val/dog/turned.png", exif=turned)
    shutil.copy(root / "train/dog/2.png", root / "train/cat/a dog.png")
    shutil.copy(root / "train/eel/0.png", root / "test/cat/an eel.png")
    Image.open(root / "train/dog/3.png").convert("RGBA").save(root / "train/dog/opaque.png", compress_level=9)
    # The bytes of both are 6,000 zeros, the pictures are two.
    Image.new("RGB", (50, 40)).save(root / "train/dog/flat.png")
    Image.new("RGB", (40, 50)).save(root / "train/dog/high.png")
    Image.new("RGB", (160, 40), "red").save(root / "train/dog/not too long.png")
    Image.new("RGB", (180, 40), "red").save(root / "train/dog/long.png")
    Image.new("RGB", (8, 250), "red").save(root / "train/dog/thin.png")
    Image.new("RGB", (320, 240), "red").save(root / "train/dog/large.png")
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_every_planted_fault_is_found_and_no_other(faulty: Path, workers: int) -> None:
    before = tree(faulty)
    result = check(faulty, workers)
    assert tree(faulty) == before

    def at(split: str, label: str, name: str) -> Place:
        return Place(str(faulty / split / label / name), split, label)

    assert [(bad.file, bad.split, bad.label, bad.reason) for bad in result.unreadable] == [
        (str(faulty / "train/cat/cut short.png"), "train", "cat", "the image is broken (image file is truncated)"),
        (str(faulty / "val/dog/empty.jpg"), "val", "dog", "the image is empty (0 bytes)"),
        (str(faulty / "test/eel/text.png"), "test", "eel", "not an image, or of a format not read here"),
    ]
    both = (at("train", "eel", "0.png"), at("test", "cat", "an eel.png"))
    assert set(result.leaks) == {
        both,
        (at("train", "cat", "1.png"), at("val", "cat", "other name.bmp")),
        (at("train", "dog", "1.png"), at("val", "dog", "turned.png")),
    }
    assert set(result.conflicts) == {both, (at("train", "cat", "a dog.png"), at("train", "dog", "2.png"))}
    assert result.repeats == ((at("train", "dog", "3.png"), at("train", "dog", "opaque.png")),)
    assert result.classes == ("cat", "dog", "eel", "fox")
    assert [(part.name, part.counts) for part in result.parts] == [
        ("train", (42, 47, 4, 0)),
        ("val", (7, 7, 0, 0)),
        ("test", (4, 0, 3, 0)),
    ]
    assert result.empty_classes == ("fox",)
    assert result.missing_classes == {"val": ("eel",), "test": ("dog",)}
    assert result.parts[0].ratio == 47 / 4
    assert result.uneven
    assert result.sizes is not None
    thin, large = str(faulty / "train/dog/thin.png"), str(faulty / "train/dog/large.png")
    assert (result.sizes.smallest, result.sizes.longest) == (Size(thin, 8, 250), Size(thin, 8, 250))
    assert result.sizes.largest == Size(large, 320, 240)
    assert (result.sizes.small, result.sizes.long, result.sizes.wide) == (1, 2, 4)
    assert any(".cache" in note for note in result.notes)
    assert any("docs" in note for note in result.notes)
    assert (result.images, result.serious, result.remarks) == (114, 3, 7)


def test_workers_change_nothing_and_progress_counts(faulty: Path) -> None:
    done: list[int] = []
    alone = check_data(open_source(str(faulty)), progress=done.append)
    assert sum(done) == alone.images
    assert len(done) > 1
    assert alone == check(faulty, workers=2)


def test_nothing_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, {f"{split}/{name}": 3 for split in ("train", "val", "test") for name in ("cat", "dog")})
    result = check(tmp_path)
    assert (result.images, result.serious, result.remarks, result.notes) == (18, 0, 0, ())
    code, out, err = call(capsys, "check", tmp_path, "--workers", 0)
    assert (code, out.splitlines()[-1], err) == (0, "fine", "")
    assert "SERIOUS" not in out
    assert "look" not in out


# ------------------------------------------------------------------------------- splits that training makes


def test_copies_where_the_source_has_no_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, {"cat": 10, "dog": 10})
    for number in range(6):  # with six copies, some in val or test: no leak, since another seed parts them otherwise
        shutil.copy(tmp_path / "cat/9.png", tmp_path / f"cat/{number + 10}.png")
    result = check(tmp_path)
    assert [(part.name, part.counts) for part in result.parts] == [("all", (16, 10))]
    assert result.cut_off == ("val", "test")
    names = [f"{number}.png" for number in range(9, 16)]
    assert result.repeats == (tuple(Place(str(tmp_path / "cat" / name), "all", "cat") for name in names),)
    assert (result.serious, result.remarks) == (0, 1)
    code, out, _ = call(capsys, "check", tmp_path, "--workers", 0)
    assert code == 0
    assert "1 picture more than once in one class; the random cut of val and test may put one on both sides" in out
    assert "cat/9.png = cat/10.png = cat/11.png and 4 more\n" in out
    assert out.endswith("\n1 thing to look at, none serious\n")


def test_a_test_split_of_its_own_can_leak_into_what_val_is_cut_from(tmp_path: Path) -> None:
    fill(tmp_path, {"train/cat": 10, "train/dog": 10, "test/cat": 2, "test/dog": 2})
    for number in range(10):
        shutil.copy(tmp_path / f"train/cat/{number}.png", tmp_path / f"test/cat/again{number}.png")
    shutil.copy(tmp_path / "train/cat/7.png", tmp_path / "test/cat/more.png")
    result = check(tmp_path)
    assert (result.cut_off, [part.name for part in result.parts]) == (("val",), ["train", "test"])
    assert len(result.leaks) == 10  # the one in val among them
    assert [len(leak) for leak in result.leaks] == [3] + [2] * 9
    assert {place.split for leak in result.leaks for place in leak} == {"train", "test"}


# --------------------------------------------------------------------------------------- the command line


def test_the_screen(faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "check", faulty, "--workers", 0)
    assert (code, err) == (3, "")
    lines = out.splitlines()
    assert lines[0] == f"{faulty}: folder, 114 images, 4 classes"
    table = [" ".join(line.split()) for line in lines[2:6]]
    assert table == [
        "split images classes smallest class largest class ratio",
        "train 93 3 eel 4 dog 47 11.8",
        "val 14 2 cat 7 cat 7 1.0",
        "test 7 2 eel 3 cat 4 1.3",
    ]
    assert "sizes    8 x 250 to 320 x 240 px" in lines
    assert any(line.strip().startswith("4 of 4:3 or longer: a centre crop does not show the ends") for line in lines)
    message = [line for line in lines if line.startswith(("SERIOUS", "look", "note"))]
    assert message == [
        "SERIOUS  3 images cannot be read",
        "SERIOUS  3 pictures in more than one split: the figures of val and test mislead",
        "SERIOUS  2 pictures with more than one label",
        "look     1 picture more than once in one class",
        "look     no image of class fox",
        "look     no image in val of class eel",
        "look     no image in test of class dog",
        "look     classes of very different size in train: eel 4, dog 47",
        "look     1 image with a side below 32 px, such as train/dog/thin.png, 8 x 250",
        "look     2 images with one side more than 4 times the other, such as train/dog/thin.png, 8 x 250",
        "note     ignored: docs/ (not a split)",
        "note     ignored: folders that systems and programs make (.cache/)",
    ]
    assert "           train/cat/cut short.png  the image is broken (image file is truncated)" in lines
    assert "           train/cat/1.png = val/cat/other name.bmp" in lines
    assert lines[-1] == "10 things to look at, 3 serious"


def test_json_and_csv_hold_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "d", {"train/cat": 15, "train/dog": 15, "val/cat": 1, "val/dog": 1})
    broken = [tmp_path / "d/train/cat" / f"{number}.png" for number in range(13)]
    for file in broken:
        file.write_bytes(b"")
    shutil.copy(tmp_path / "d/train/dog/0.png", tmp_path / "d/val/dog/copy.png")
    output = tmp_path / "report.csv"
    code, out, err = call(capsys, "check", tmp_path / "d", "--json", "--output", output, "--workers", 0)
    assert (code, err) == (3, "")
    message = json.loads(out)
    assert message == json.loads(json.dumps(check(tmp_path / "d").to_dict()))
    assert [bad["file"] for bad in message["unreadable"]] == [str(file) for file in broken]
    assert message["leaks"][0][1] == {"file": str(tmp_path / "d/val/dog/copy.png"), "split": "val", "label": "dog"}
    assert message["parts"][0]["counts"] == {"cat": 15, "dog": 15}
    with output.open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["file"] for row in rows if row["finding"] == "unreadable"] == [str(file) for file in broken]
    leak = [(row["number"], row["file"], row["split"]) for row in rows if row["finding"] == "leak"]
    assert leak == [
        ("1", str(tmp_path / "d/train/dog/0.png"), "train"),
        ("1", str(tmp_path / "d/val/dog/copy.png"), "val"),
    ]
    assert len(rows) == 15
    text = call(capsys, "check", tmp_path / "d", "--workers", 0)[1]
    assert [name.name in text for name in broken] == [number < 10 for number in range(13)]
    assert "and 3 more; --output FILE.csv lists all\n" in text
    text = call(capsys, "check", tmp_path / "d", "--workers", 0, "--output", tmp_path / "again.csv")[1]
    assert "and 3 more\n" in text
    assert f"\nwritten: {tmp_path / 'again.csv'}\n" in text
    assert (tmp_path / "again.csv").read_bytes() == output.read_bytes()


def test_the_output_never_overwrites(faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.csv").write_text("mine")
    (tmp_path / "link.csv").symlink_to("nowhere")
    for name, what in {
        "mine.csv": "exists already",
        "link.csv": "exists already",
        "no/a.csv": "no such folder",
    }.items():
        code, out, err = call(capsys, "check", faulty, "--output", tmp_path / name)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {what} | --output {tmp_path}")
    assert (tmp_path / "mine.csv").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.csv", "mine.csv"]


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        ([], 2, ["no command given", "selkern data check FOLDER"]),
        (["chekc"], 2, ["unknown command 'chekc'", "did you mean check?"]),
        (["zzz"], 2, ["unknown command 'zzz'", "one of check"]),
        (["check"], 2, ["DATA", "selkern data check"]),
        (["check", "x", "--wrokers", "2"], 2, ["did you mean --workers?"]),
        (["check", "x", "--workers", "-1"], 2, ["workers is -1", "--workers"]),
        (["check", "no such folder"], 3, ["no such data", "no such folder"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(
    words: list[str], code: int, parts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given, out, err = call(capsys, *words)
    assert (given, out, len(err.splitlines())) == (code, "", 1)
    assert err.startswith("error: ")
    assert all(part in err for part in parts)


@pytest.mark.parametrize(
    "words", [["--help"], ["check", "--help"], ["chekc"], ["check", "x", "--wrokers"]], ids=" ".join
)
def test_help_and_mistakes_load_nothing_heavy(words: list[str]) -> None:
    program = "import sys; from selkern import cli; cli.main(sys.argv[1:]); print('LOADED', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, "data", *words], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    message, _, loaded = done.stdout.rpartition("LOADED")
    assert not set(loaded.split()) & {"torch", "numpy", "PIL", "pyarrow"}
    assert ("usage: selkern data" in message) == ("--help" in words)


@pytest.mark.parametrize("count", [1, 2])
def test_few_images_are_checked_though_no_split_can_be_cut_off(
    count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / "few", {"cat": count, "dog": count})
    code, said, _ = call(capsys, "check", root, "--workers", "0", "--sheet", tmp_path / "sheet.png")
    assert code == 0
    assert f"(2 classes, {2 * count} images): train refuses them, evaluate takes all" in said
    assert "1 thing to look at, none serious" in said
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    (root / "cat/0.png").write_bytes(b"no image")
    assert call(capsys, "check", root, "--workers", "0")[0] == 3
