"""The data of a run are known again wherever they lie, its test images stay those it had, and what it saw is said."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny import assert_same, draw, make_folder, make_options, signal_at, train

from selkern import cli
from selkern.data.sources import open_source
from selkern.data.split import Split
from selkern.errors import CheckpointError, DataError, Interrupted, UsageError
from selkern.inference.images import Chosen, choose_images
from selkern.inference.network import load
from selkern.report.analyze import report_folder
from selkern.train import run as job
from selkern.train.defaults import open_training
from selkern.train.loop import Training
from selkern.train.run_data import RunData, trained_before
from selkern.train.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data `d` and the run `runs/train/r`, trained within it by relative paths; only to be copied."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("home")
    make_folder(root / "d")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        train(make_options("d", Path("runs/train"), model="sk_tiny", epochs=1, batch_size=14, seed=1, name="r"))
    return root


@pytest.fixture(params=["this version", "the version before"])
def place(home: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that we are in, of a run of this version or of the one before, which kept no inputs.json."""
    root = tmp_path / "place"
    shutil.copytree(home, root)
    if request.param == "this version":
        inputs = json.loads((root / "runs/train/r/inputs.json").read_text())
        (root / "runs/train/r/inputs.json").write_text(json.dumps({**inputs, "data": str(root / "d")}))
    else:
        (root / "runs/train/r/inputs.json").unlink()
        config = root / "runs/train/r/config.yaml"
        config.write_text(config.read_text().replace("output: runs/train", "output: runs"))
    monkeypatch.chdir(root)
    return root


def looked(run: Path, data: object = None, part: str = "auto") -> Chosen:
    return choose_images(load(str(run)), None if data is None else str(data), part)


def names(split: Split) -> list[str]:
    return ["/".join(Path(split.where(index)).parts[-2:]) for index in range(len(split))]


def saved(run: Path, part: str) -> list[str]:
    with (run / "split.csv").open(newline="") as file:
        return [row["path"] for row in csv.DictReader(file) if row["split"] == part]


def shown(chosen: Chosen, *words: str) -> bool:
    return any(all(word in line for word in words) for line in chosen.lines)


def other_images(root: Path, images: int = 18) -> Path:
    """The names of the run's images, with other pictures in them."""
    for number, path in enumerate(sorted(make_folder(root, images).rglob("*.*"))):
        draw(path, number % 3, 1000 + number)
    return root


def link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


WAYS: dict[str, Callable[[Path], Any]] = {
    "no word": lambda _: None,
    "the same": lambda _: "d",
    "slash": lambda _: "d/",
    "dot": lambda _: "./d",
    "up and down": lambda _: "runs/../d",
    "absolute": lambda root: root / "d",
    "home": lambda _: "~/d",
    "link": lambda root: link(root / "link", root / "d"),
    "copy": lambda root: shutil.copytree(root / "d", root / "elsewhere" / "copy"),
    "moved": lambda root: shutil.move(root / "d", root / "moved"),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_test_images_are_those_of_the_run(way: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    run = place / "runs/train/r"
    chosen = looked(run, WAYS[way](place))
    assert names(chosen.split) == saved(run, "test")
    assert (chosen.own, chosen.trained, chosen.validated) == (True, 0, 0)
    assert not any(line.startswith("warning") for line in chosen.lines)
    assert shown(chosen, "names of the run's", "taken for the same") == (
        way == "moved" and not (run / "inputs.json").is_file()
    )


def test_another_working_folder(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = place / "runs/train/r"
    other_images(tmp_path / "d")  # what the word that the run was given means here
    monkeypatch.chdir(tmp_path)
    assert names(looked(run).split) == saved(run, "test")
    assert looked(run).source.name == str(place / "d")
    if (run / "inputs.json").is_file():
        chosen = looked(run, "d")
        assert (chosen.own, len(chosen.split), chosen.split.name) == (False, 36, "all")


def test_a_run_and_its_data_are_moved_together(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(home, tmp_path / "a")
    run = tmp_path / "a" / "runs/train/r"
    inputs = json.loads((run / "inputs.json").read_text())
    (run / "inputs.json").write_text(json.dumps({**inputs, "data": str(tmp_path / "gone")}))
    monkeypatch.chdir(tmp_path)
    assert looked(run).source.name == str(tmp_path / "a" / "d")
    shutil.move(run, tmp_path / "alone")
    with pytest.raises(DataError, match=r"not there any more \| .*gone \| give --data"):
        looked(tmp_path / "alone")
    assert names(looked(tmp_path / "alone", "a/d").split) == saved(tmp_path / "alone", "test")


def test_the_same_names_are_not_the_same_images(place: Path) -> None:
    chosen = looked(place / "runs/train/r", other_images(place / "x" / "d"))
    assert (chosen.own, chosen.trained, chosen.split.name, len(chosen.split)) == (False, 0, "all", 36)
    assert shown(chosen, "36 of 36 images have the names", "but other bytes")


def test_new_images_are_all_measured_and_those_seen_before_are_said(place: Path) -> None:
    run = place / "runs/train/r"
    new = other_images(place / "new", images=3)
    for number, name in enumerate(saved(run, "train")[:4] + saved(run, "val")[:1]):
        shutil.copy(place / "d" / name, new / name.split("/")[0] / f"copy{number}{Path(name).suffix}")
    chosen = looked(run, new)
    assert (chosen.own, chosen.trained, chosen.validated, len(chosen.split)) == (False, 4, 1, 11)
    assert chosen.lines[0].startswith("warning: 4 of 11 images were trained on, and 1 more chose the best epoch")
    assert shown(chosen, "no splits of its own: all 11 images")
    assert len(looked(run, new, "all").split) == 11
    for part in ("train", "val", "test"):
        with pytest.raises(UsageError, match=f"no {part} split"):
            looked(run, new, part)


def test_splits_of_their_own_are_taken(place: Path) -> None:
    run = place / "runs/train/r"
    for part, images in (("train", 5), ("test", 3)):
        other_images(place / "own" / part, images)
    assert (len(looked(run, "own").split), len(looked(run, "own", "all").split)) == (6, 16)
    with pytest.raises(UsageError, match="no val split"):
        shutil.rmtree(place / "own" / "test")
        looked(run, "own", "val")


@pytest.mark.parametrize(("part", "trained", "validated"), [("train", 28, 0), ("val", 0, 4), ("all", 28, 4)])
def test_what_the_run_has_seen_is_said(part: str, trained: int, validated: int, place: Path) -> None:
    chosen = looked(place / "runs/train/r", None, part)
    assert (chosen.trained, chosen.validated) == (trained, validated)
    assert chosen.lines[0].startswith(f"warning: {trained or validated} of {len(chosen.split)} images")


def test_data_that_changed_since(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "a")
    run, data = tmp_path / "a" / "runs/train/r", tmp_path / "a" / "d"
    inputs = json.loads((run / "inputs.json").read_text())
    (run / "inputs.json").write_text(json.dumps({**inputs, "data": str(data)}))
    replaced, gone, twice = saved(run, "test")[:3]
    draw(data / replaced, 2, 5)
    (data / gone).unlink()
    shutil.copy(data / saved(run, "train")[0], data / twice)
    draw(data / "cat" / "0new.png", 2, 6)
    chosen = looked(run)
    assert names(chosen.split) == [name for name in saved(run, "test") if name != gone]
    assert chosen.trained == 1
    assert shown(chosen, "warning: 2 of 3 images have changed since")
    assert shown(chosen, "1 images are newer", "left out: cat/0new.png")
    assert shown(chosen, "1 images of the saved split are gone and are left out", gone)
    for name in saved(run, "test"):
        (data / name).unlink(missing_ok=True)
    with pytest.raises(DataError, match="none of the run's test images"):
        looked(run)


def test_a_split_that_was_edited_or_lost(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "r"
    shutil.copytree(home / "runs/train/r", run)
    monkeypatch.chdir(home)
    table, before = run / "split.csv", saved(run, "test")
    text = table.read_text()
    table.write_text(text.replace("\n", "\r\n"))  # as another program may have stored it
    assert names(looked(run).split) == before
    table.write_text(text.replace(",train\n", ",test\n", 1))
    with pytest.raises(DataError, match="changed since the run wrote it"):
        looked(run)
    table.unlink()
    assert names(looked(run).split) == before  # made again by the seed
    assert looked(run, None, "all").trained == 28
    other = other_images(tmp_path / "other", images=2)
    shutil.copy(home / "d" / "cat" / "000.png", other / "cat")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("seed: 1", "seed: 2"))
    with pytest.raises(DataError, match="give another one now"):
        looked(run)
    chosen = looked(run, other)
    assert (chosen.trained, shown(chosen, "is not known")) == (None, True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"data": 1}', "[" * 9999])
def test_a_memory_that_is_not_as_it_was_written(text: str, home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "runs/train/r", tmp_path / "r")
    (tmp_path / "r" / "inputs.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"inputs\.json"):
        looked(tmp_path / "r")


def test_weights_alone_cannot_say_what_they_saw(home: Path, tmp_path: Path) -> None:
    shutil.copy(home / "runs/train/r/weights/best.safetensors", tmp_path)
    chosen = looked(tmp_path / "best.safetensors", home / "d")
    assert (chosen.trained, len(chosen.split), shown(chosen, "is not known")) == (None, 36, True)


def test_what_the_first_weights_were_trained_on_stays_apart(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    for number in range(100, 114):
        for name in sorted(path.name for path in Path("d").iterdir()):
            draw(Path("d") / name / f"{number}.png", 3, number, 40)
    run = Path("runs/train/r")
    parts = {part: set(saved(run, part)) for part in ("train", "val", "test")}
    grown = open_training(make_options("d", Path("out"), model="sk_tiny", weights=str(run), seed=7))
    for split in (grown.train, grown.val, grown.test):
        old = {name for name in names(split) if int(Path(name).stem) < 100}
        assert old == parts[split.name]
        assert old < set(names(split))
    assert any("images keep the split of the run" in note for note in grown.notes)
    assert not trained_before(run / "weights/best.safetensors", grown, grown.test)
    anew = open_source("d", seed=7)
    leaked = len(set(names(anew.test)) & parts["train"])
    (line,) = trained_before(run / "weights/best.safetensors", anew, anew.test)
    assert line.startswith(f"warning: {leaked} of {len(anew.test)} test images were trained on in runs/train/r")


def test_a_run_does_not_go_on_with_what_has_some_of_the_names(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "place")
    run = tmp_path / "place/runs/train/r"
    (run / "inputs.json").unlink()  # as of the version before, and its data are gone
    (tmp_path / "place/d").rename(tmp_path / "moved")
    known = RunData(RunFolder(run))
    with patch("selkern.train.run_data.open_source", wraps=open_source) as listing:
        assert known.place(str(tmp_path / "moved")) == str(tmp_path / "moved")
    assert listing.call_count == 1
    for path in sorted((tmp_path / "moved").rglob("*.jpg"))[::3]:
        path.unlink()
    with pytest.raises(DataError, match="30 of 36 images have the names of the run's, whose bytes are not known"):
        known.place(str(tmp_path / "moved"))


def test_other_images_do_not_take_the_place_of_the_runs_report(place: Path) -> None:
    run, new = place / "runs/train/r", other_images(place / "new", images=2)
    loaded = load(str(run))
    assert report_folder(loaded, looked(run), None) == run
    assert report_folder(loaded, looked(run, "./d"), None) == run
    assert report_folder(loaded, looked(run, None, "val"), None) == run / "reports" / "d-val"
    folders = [report_folder(loaded, looked(run, new), None) for _ in range(2)]
    assert folders == [run / "reports" / "new-all", run / "reports" / "new-all-2"]
    assert report_folder(loaded, looked(run, new), place / "there") == place / "there"


def test_evaluate_says_it_in_text_and_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", str(home / "runs/train/r"), "--split", "all", "--device", "cpu"]
    assert cli.main([*words, "--json"]) == 0
    said = capsys.readouterr()
    row = json.loads(said.out)
    assert (row["split"], row["images"], row["run_data"]) == ("all", 36, True)
    assert (row["trained_on"], row["validated_on"]) == (28, 4)
    assert "warning: 28 of 36 images were trained on" in said.err


# To go on with a run


def folder(root: Path) -> Path:
    return make_folder(root / "d")


def parquet(root: Path) -> Path:
    """The images of `make_folder` as the rows of a file."""
    files = sorted(make_folder(root / "made").rglob("*.*"))
    rows = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
    pq.write_table(pa.table(rows), root / "rows.parquet")
    shutil.rmtree(root / "made")
    return root / "rows.parquet"


def table(root: Path) -> Path:
    """The images of `make_folder` as a CSV."""
    files = sorted(make_folder(root / "made").rglob("*.*"))
    rows = "".join(f"{file.relative_to(root)},{file.parent.name}\n" for file in files)
    (root / "rows.csv").write_text(f"path,label\n{rows}")
    return root / "rows.csv"


@pytest.mark.parametrize("make", [folder, parquet])
def test_a_run_goes_on_where_its_data_were_moved_to(
    make: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    data = make(tmp_path / "a")
    options = [make_options(data, tmp_path, model="sk_tiny", name=name, batch_size=14) for name in ("whole", "run")]
    whole = train(options[0])
    signal_at(monkeypatch, [2])
    with pytest.raises(Interrupted):
        train(options[1])
    run = RunFolder(tmp_path / "run")
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(DataError, match="give --data"):
        job.resume(run, "cpu")
    other_images(tmp_path / "x")
    with pytest.raises(DataError, match=r"not the images that the run was started on|but other bytes"):
        job.resume(run, "cpu", data=str(tmp_path / "x"))
    job.resume(run, "cpu", data=str(tmp_path / "b" / data.name))
    assert_same(run, whole)
    assert len(looked(run.path).split) == 4  # it knows the new place


@pytest.mark.parametrize("remembers", [True, False])
@pytest.mark.parametrize("make", [folder, table])
def test_an_image_that_is_gone_is_one_that_cannot_be_read(
    make: Callable[[Path], Path], remembers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the others and all their random numbers hold."""
    data, seen = make(tmp_path), list[Any]()
    original = Training.__init__

    def begin(self: Training, *args: Any) -> None:
        seen.append(args[1])
        original(self, *args)

    monkeypatch.setattr(Training, "__init__", begin)
    with monkeypatch.context() as patch:
        signal_at(patch, [1])
        with pytest.raises(Interrupted):
            train(make_options(data, tmp_path, model="sk_tiny", name="run", batch_size=14))
    run, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "other")
    if not remembers:
        (run.path / "inputs.json").unlink()
    shutil.copytree(run.path, other.path)
    lost = Path(seen[0].train.where(3))
    lost.write_bytes(b"")
    job.resume(other, "cpu")
    lost.unlink()
    draw(lost.with_name("0000.png"), 0, 99)
    job.resume(run, "cpu")
    assert_same(run, other)
    for source in seen[1:]:
        assert [source.train.where(i) for i in range(28)] == [seen[0].train.where(i) for i in range(28)]
        assert source.train.labels.tolist() == seen[0].train.labels.tolist()
    with run.bad_files.open(newline="") as file:
        assert [(row["file"], row["reason"]) for row in csv.DictReader(file)] == [(str(lost), "no such image file")]
    assert "1 images of the saved split are gone and keep their place as unreadable" in run.log.read_text()
    assert not remembers or "at least 1 images have changed since" in other.log.read_text()


def test_a_run_goes_on_without_the_weights_that_it_started_from(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(home, tmp_path / "a")
    monkeypatch.chdir(tmp_path / "a")
    shutil.copy("runs/train/r/weights/best.safetensors", "first.safetensors")
    named: dict[str, Any] = {"model": "sk_tiny", "batch_size": 14, "weights": "first.safetensors"}
    whole = train(make_options("d", Path("runs/train"), name="whole", **named))
    signal_at(monkeypatch, [1])
    with pytest.raises(Interrupted):
        train(make_options("d", Path("runs/train"), name="run", **named))
    run = RunFolder(tmp_path / "a" / "runs/train/run")
    whole = RunFolder(whole.path.resolve())
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.path, tmp_path / "unbegun")
    shutil.rmtree(tmp_path / "unbegun" / "state")
    job.resume(RunFolder(tmp_path / "unbegun"), "cpu")  # which needs them, and finds them from here too
    assert_same(RunFolder(tmp_path / "unbegun"), whole)
    (tmp_path / "a" / "first.safetensors").unlink()
    job.resume(run, "cpu")
    assert_same(run, whole)
