"""Which files are images, and what is said of all others."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from selkern.data import listing
from selkern.data.listing import Search, find_images
from selkern.data.sources import open_source


def encode(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(buffer, kind)
    return buffer.getvalue()


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def look(root: Path) -> tuple[list[str], list[str]]:
    """(images below a folder, notes)."""
    search = Search()
    result = [Path(file).relative_to(root).as_posix() for file in search.images(root)]
    return result, list(search.notes())


def test_find_images_is_sorted_and_skips_dots_and_loops(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.JPG", "a.webp", ".hidden.png", ".git/x.png", "b/notes.txt", "c/d/e.tiff"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "c" / "up").symlink_to(tmp_path)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "linked").symlink_to(tmp_path / "b")
    result = [file.relative_to(tmp_path).as_posix() for file in find_images(tmp_path)]
    assert result == ["a.webp", "b/10.JPG", "b/2.png", "c/d/e.tiff", "linked/10.JPG", "linked/2.png"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("IMG_1.HEIC", "PNG"),
        ("photo.jfif", "JPEG"),
        ("photo.JPE", "JPEG"),
        ("photo.jpg_large", "JPEG"),
        ("photo.jpg?width=300", "WEBP"),
        ("0a3f", "GIF"),
        ("scan.0007", "TIFF"),
        ("bitmap", "BMP"),
        ("photo.dat", "AVIF"),
        ("grey", "PPM"),
    ],
)
def test_images_of_any_name_are_listed(tmp_path: Path, name: str, kind: str) -> None:
    write(tmp_path, {name: encode(kind)})
    assert look(tmp_path) == ([name], [])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes", b"BMW and others"),
        ("data", b""),
        ("P6 report", b"P6 report"),
        ("x.txt", b"MM"),
        ("clip", HEIC[:4] + b"ftypisom"),
    ],
)
def test_what_only_begins_like_an_image_is_none(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path, {name: content})
    result, notes = look(tmp_path)
    assert result == []
    assert len(notes) == 1


def test_what_is_left_out_is_counted_by_suffix(tmp_path: Path) -> None:
    files = {f"a/{n}.TXT": b"hello" for n in range(3)} | {"b/x.mp4": b"", "b/README": b"text", "b/c/x.txt": b""}
    write(tmp_path, files | {"a/1.png": encode("PNG"), "a/2.cr2": encode("TIFF"), "a/3.DNG": encode("TIFF")})
    result, notes = look(tmp_path)
    assert result == ["a/1.png"]
    assert notes == [
        "left out: 4 .txt, 1 without a suffix, 1 .mp4 (no images of a kind that is read)",
        "left out: 1 .cr2 (raw images of a camera: export them as JPEG or TIFF)",
        "left out: 1 .dng (raw images of a camera: export them as JPEG or TIFF)",
    ]


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_that_cannot_be_read_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brand: bytes
) -> None:
    monkeypatch.setattr(listing, "has_heif", lambda: False)
    write(tmp_path, {"1.HEIC": HEIC.replace(b"ftypheic", b"ftyp" + brand), "2.heic": encode("JPEG")})
    assert look(tmp_path) == (["2.heic"], ["left out: 1 .heic (HEIC: pip install 'selkern[heif]' to read them)"])
    monkeypatch.setattr(listing, "has_heif", lambda: True)
    assert look(tmp_path) == (["1.HEIC", "2.heic"], [])


def test_few_files_of_a_suffix_are_opened_where_none_is_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def holds(file: str) -> bool:
        opened.append(Path(file).name)
        return file.endswith("3.odd")

    monkeypatch.setattr(listing, "_holds_image", holds)
    monkeypatch.setattr(listing, "_TRIED", 5)
    write(
        tmp_path,
        {f"{n}.{suffix}": b"" for n in range(9) for suffix in ("npy", "odd")} | {f"{n}": b"" for n in range(9)},
    )
    result, notes = look(tmp_path)
    assert result == ["3.odd"]
    assert sorted(opened) == sorted(
        [f"{n}.npy" for n in range(5)] + [f"{n}.odd" for n in range(9)] + [f"{n}" for n in range(9)]
    )
    assert notes == ["left out: 9 without a suffix, 9 .npy, 8 .odd (no images of a kind that is read)"]


JUNK = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information", ".ipynb_checkpoints")


@pytest.mark.parametrize("above", ["", "train/", "cat/"])
def test_folders_that_systems_make_are_no_classes(tmp_path: Path, above: str) -> None:
    pictures = {f"{split}cat/{n}.png": encode("PNG") for split in ("", "train/") for n in range(6)}
    pictures = {name: data for name, data in pictures.items() if name.startswith("train/") == (above == "train/")}
    pictures |= {name.replace("cat", "dog"): data for name, data in pictures.items()}
    write(tmp_path, pictures | {f"{above}{name}/x/1.png": encode("PNG") for name in JUNK})
    source = open_source(str(tmp_path))
    assert source.classes == ("cat", "dog")
    assert sum(map(len, {id(part): part for part in (source.train, source.val, source.test)}.values())) == 12
    (note,) = (note for note in source.notes if note.startswith("ignored"))
    assert "__MACOSX/" in note
    assert "and 1 more" in note


def test_companions_of_systems_are_left_out_silently(tmp_path: Path) -> None:
    names = ("Thumbs.db", ".DS_Store", "desktop.ini", "._photo.png", ".hidden.png", "Icon\r")
    write(tmp_path, {name: encode("PNG") for name in names})
    assert look(tmp_path) == ([], [])


def test_runs_beside_the_images_are_no_class(tmp_path: Path) -> None:
    write(tmp_path, {f"{name}/{n}.png": encode("PNG") for name in ("a", "b") for n in range(6)})
    write(tmp_path, {"runs/latest.txt": b"runs/train/x", "runs/train/x/plots/curves.png": encode("PNG")})
    assert open_source(str(tmp_path)).classes == ("a", "b")


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    write(tmp_path, {f"{name}/{n}.png": encode("PNG") for name in ("a", "b") for n in range(6)})
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "a" / "self.png").symlink_to("self.png")
    (tmp_path / "c").symlink_to(tmp_path / "no folder")
    (tmp_path / "d").symlink_to(tmp_path / "b")
    source = open_source(str(tmp_path))
    assert source.classes == ("a", "b", "d")
    links = [f"{tmp_path}/{name}" for name in ("c", "a/gone.png", "a/self.png")]
    assert sorted(entry.where for entry in source.left_out) == sorted(links)
    (note,) = (note for note in source.notes if "lead nowhere" in note)
    assert note.startswith("left out: 3 links")
    assert links[0] in note
