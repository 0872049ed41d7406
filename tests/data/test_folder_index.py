"""A large folder is listed once: from its index the same source comes, until one of its folders changes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selkern.data import folder_index, splitting
from selkern.data.files import FileSplit
from selkern.data.kept import cache_folder
from selkern.data.listing import Search
from selkern.data.sources import open_source
from selkern.data.split import Source, relative
from selkern.data.splitting import digest, read_split
from selkern.errors import DataError
from selkern.io import write_csv
from selkern.progress import Progress


@pytest.fixture(autouse=True)
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder is large, and has been left alone for long enough."""
    monkeypatch.setenv("SELKERN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folder_index, "_LARGE", 1)
    monkeypatch.setattr(folder_index, "_SETTLED", -1e9)
    monkeypatch.setattr(splitting, "_LARGE", 1)


def draw(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two splits of two classes, one with a folder in it whose name lies between those of files."""
    root = tmp_path / "data"
    for split, count in (("train", 30), ("val", 8)):
        for name in ("cat", "döner"):
            draw(*(root / split / name / f"{number} ä.png" for number in range(count)))
    draw(root / "train" / "cat" / "2 b" / "deep.png", root / "train" / "cat" / "2 b" / "x" / "deeper.png")
    (root / "train" / "cat" / "notes.xyz").write_text("no image")
    (root / "train" / ".git").mkdir()
    return root


def plain(root: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> Source:
    """As it comes without an index."""
    with monkeypatch.context() as patch:
        patch.setattr(folder_index, "find_index", lambda _name: None)
        patch.setattr(folder_index, "_LARGE", 1 << 60)
        patch.setattr(splitting, "_LARGE", 1 << 60)
        return open_source(str(root), **options)  # type: ignore[arg-type]


def same(one: Source, other: Source) -> bool:
    notes = [note for note in other.notes if "an index of" not in note]
    return (
        list(one.split_rows()) == list(other.split_rows())
        and one.classes == other.classes
        and [note for note in one.notes if "an index of" not in note] == notes
        and all((a.labels == b.labels).all() for a, b in zip(one.parts, other.parts, strict=True))
    )


def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are looked into from now on."""
    seen: list[str] = []
    look = Search._look

    def counted(self: Search, folder: str | Path) -> object:
        seen.append(str(folder))
        return look(self, folder)

    monkeypatch.setattr(Search, "_look", counted)
    return seen


def test_the_second_start_looks_into_no_class_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = plain(root, monkeypatch)
    first = open_source(str(root))
    assert any(f"an index of {76 + 2} images is kept in {cache_folder()}" in note for note in first.notes)
    seen = scans(monkeypatch)
    second = open_source(str(root))
    assert not any("cat" in folder for folder in seen)
    assert same(fresh, first) and same(fresh, second)
    order = [where for where, _, _ in second.split_rows()][:6]
    assert order[:5] == [f"train/cat/{name}.png" for name in ("0 ä", "1 ä", "10 ä", "11 ä", "12 ä")]
    names = [relative(second.train.where(at), second.root) for at in range(len(second.train))]
    assert names == [where for where, _, part in second.split_rows() if part == "train"] == sorted(names)
    assert names[12:15] == [f"train/cat/{name}.png" for name in ("2 b/deep", "2 b/x/deeper", "2 ä")]
    assert second.train.read(3).size == (4, 4)


@pytest.mark.parametrize("seed", [0, 1])
def test_splits_that_are_cut_off_are_the_same(root: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = plain(root / "train", monkeypatch, seed=seed)
    assert same(fresh, open_source(str(root / "train"), seed=seed))
    assert same(fresh, open_source(str(root / "train"), seed=seed))


def add(root: Path) -> None:
    draw(root / "train" / "cat" / "new.png")


def add_below(root: Path) -> None:
    draw(root / "train" / "cat" / "2 b" / "x" / "new.png")


def remove(root: Path) -> None:
    (root / "val" / "cat" / "3 ä.png").unlink()


def rename(root: Path) -> None:
    (root / "val" / "cat" / "3 ä.png").rename(root / "val" / "cat" / "03.png")


def add_class(root: Path) -> None:
    draw(root / "train" / "eel" / "new.png")


@pytest.mark.parametrize("change", [add, add_below, remove, rename, add_class])
def test_a_change_of_a_folder_is_seen(
    root: Path, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_source(str(root))
    change(root)
    after = open_source(str(root))
    assert same(after, plain(root, monkeypatch)) and not same(before, after)
    assert same(after, open_source(str(root)))


def test_a_folder_that_was_just_written_is_looked_at_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_index, "_SETTLED", 3.0)
    open_source(str(root))
    assert not cache_folder().exists() or not list(cache_folder().rglob("*.npy"))
    for folder, _, _ in os.walk(root):
        os.utime(folder, (0, 0))
    open_source(str(root))
    assert list(cache_folder().rglob("*.npy"))


def test_no_index_where_a_link_leads_nowhere(root: Path) -> None:
    (root / "train" / "cat" / "later.png").symlink_to(root / "later.png")
    assert len(open_source(str(root)).train) == 62
    draw(root / "later.png")
    assert len(open_source(str(root)).train) == 63


def test_classes_that_are_known_use_the_index(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = open_source(str(root)).classes
    seen = scans(monkeypatch)
    for known in (classes, (*classes, "eel")):
        source = open_source(str(root), classes=known)
        assert source.classes == known and not any("cat" in folder for folder in seen)
    with pytest.raises(DataError, match="unknown label"):
        open_source(str(root), classes=("cat", "eel"))


@pytest.mark.parametrize("part", ["", "train"])
@pytest.mark.parametrize("change", [None, add, remove])
def test_a_saved_split_comes_back(
    root: Path,
    part: str,
    change: Callable[[Path], None] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a whole where nothing has changed, else image by image."""
    folder, saved = str(root / part), tmp_path / "split.csv"
    source = open_source(folder, seed=3)
    write_csv(saved, ("path", "label", "split"), source.split_rows())
    assert digest(source.split_rows()) == digest(read_split(saved))
    if change is not None:
        change(root)
    restored = 0

    def restore(*given: Any) -> Any:
        nonlocal restored
        restored += 1
        return whole(*given)

    whole = splitting.restore
    monkeypatch.setattr(splitting, "restore", restore)
    given = {"seed": 3, "split_csv": saved, "classes": source.classes, "keep_gone": True}
    back = open_source(folder, **given)  # type: ignore[arg-type]
    assert list(back.split_rows()) == list(source.split_rows())
    assert bool(restored) == (change is not None and not (change is remove and part == "train"))
    assert list(back.split_rows()) == list(plain(root / part, monkeypatch, **given).split_rows())
    assert all((a.labels == b.labels).all() for a, b in zip(back.parts, source.parts, strict=True))


def _sum(split: FileSplit) -> tuple[int, str]:
    return int(split.labels.sum()), split.where(5)


def test_workers_are_sent_no_copy_of_the_names(root: Path) -> None:
    open_source(str(root))
    train = open_source(str(root)).train
    assert isinstance(train, FileSplit)
    many = [f"{number:050}" for number in range(100)]
    assert len(pickle.dumps(train)) < 3000 + 16 * len(train) < len("".join(many)) + 3000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_sum, (train,)) == _sum(train)


def test_listing_is_counted_while_it_goes_on(root: Path) -> None:
    lines: list[str] = []
    now = [0.0]
    with Progress("listing", write=lines.append, clock=lambda: now[0], terminal=False, beat=False) as line:
        open_source(str(root))
        now[0] = 2.0
        line.tick()
        line.show("next")
        now[0] = 20.0
        line.tick()
    assert lines[0].startswith("listing  78 images  39 images/s") and "78" not in lines[1]


def test_files_that_are_not_utf8_and_names_with_controls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "odd"
    for name in ("a", "b"):
        draw(*(root / name / f"{number}\x1b.png" for number in range(20)))
        Image.new("RGB", (4, 4)).save(os.fsencode(root / name) + b"/\xff.png", "PNG")
    fresh = plain(root, monkeypatch)
    for _ in range(2):
        source = open_source(str(root))
        assert same(fresh, source)
        assert any("\ufffd" in where for where, _, _ in source.split_rows())
        assert any("\\x1b" in where for where, _, _ in source.split_rows())
        assert source.train.read(0).size == (4, 4)


def test_the_arrays_are_those_of_the_index(root: Path) -> None:
    open_source(str(root))
    train = open_source(str(root)).train
    assert isinstance(train, FileSplit)
    held = train.files.files.names.data  # type: ignore[attr-defined]
    assert isinstance(held, np.memmap) and not held.flags.writeable
