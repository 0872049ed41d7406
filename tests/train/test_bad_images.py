"""Images that cannot be read cost a line, not the run: skipped, named once, never replaced, never touched."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tiny import BUSY_ADAMW, BUSY_SGD, assert_same, make_folder, make_options, resume, rows, signal_at, train, tree

from selkern import cli
from selkern.data.sources import open_source
from selkern.errors import DataError, Interrupted, UsageError
from selkern.evaluation import evaluate
from selkern.models.registry import create_model
from selkern.train.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("tiny_networks")
BAD = {"train/cat/003.jpg": "cut", "train/dog/004.png": "text", "train/dog/007.jpg": "empty", "val/cat/001.jpg": "text"}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 images to train on, three of them broken, and 8 to validate, one of them broken."""
    root = tmp_path_factory.mktemp("broken")
    make_folder(root / "train")
    make_folder(root / "val", images=4)
    for name, how in BAD.items():
        whole = (root / name).read_bytes()
        (root / name).write_bytes({"cut": whole[: len(whole) // 2], "text": b"not an image", "empty": b""}[how])
    return root


def listed(run: RunFolder) -> dict[str, str]:
    with run.bad_files.open(newline="") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("recipe", [BUSY_SGD, BUSY_ADAMW], ids=["sgd, mixed in two parts", "adamw"])
def test_they_are_skipped_and_named_with_any_number_of_workers(recipe: object, broken: Path, tmp_path: Path) -> None:
    before = tree(broken)
    options = [
        make_options(broken, tmp_path, recipe, model="sk_tiny", name=f"w{n}", workers=n)  # type: ignore[arg-type]
        for n in (0, 2)
    ]
    runs = [train(each) for each in options]
    assert_same(*runs)
    assert tree(broken) == before
    for run in runs:
        result = listed(run)
        assert set(result) == {str(broken / name) for name in BAD}
        assert result[str(broken / "train/dog/007.jpg")] == "the image is empty (0 bytes)"
        log = run.log.read_text()
        assert all(log.count(f"skipped {broken / name}:") == 1 for name in BAD)
    assert [row["skipped"] for row in rows(runs[0])] == [row["skipped"] for row in rows(runs[1])]
    # 32 of 36 images are drawn in an epoch, so one or more of the three; the validation sees all of its own.
    assert all(1 + 1 <= row["skipped"] <= 3 + 1 for row in rows(runs[0]))


def test_the_figures_are_of_the_images_that_are_there(broken: Path, tmp_path: Path) -> None:
    run = train(make_options(broken, tmp_path, BUSY_SGD, model="sk_tiny"))
    model, source = create_model(weights=run.last), open_source(str(broken))
    with pytest.raises(DataError, match=r"val/cat/001\.jpg"):
        evaluate(model, source.val, source.classes, BUSY_SGD.preprocess)
    result = evaluate(model, source.val, source.classes, BUSY_SGD.preprocess, on_bad="skip")
    assert (len(result), len(result.skipped)) == (7, 1)
    assert result.indices.tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert rows(run)[-1]["val_loss"] == pytest.approx(result.loss, rel=1e-6)


def test_a_stop_changes_nothing(broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(make_options(broken, tmp_path, BUSY_SGD, model="sk_tiny", name="whole"))
    signal_at(monkeypatch, [2])
    with pytest.raises(Interrupted):
        train(make_options(broken, tmp_path, BUSY_SGD, model="sk_tiny", name="run"))
    run = resume(RunFolder(tmp_path / "run"))
    assert_same(run, whole)
    assert listed(run) == listed(whole)


@pytest.mark.parametrize("good", [0, 1, 2, 3])
def test_any_number_of_good_images_in_a_batch(good: int, tmp_path: Path) -> None:
    """Batches of 4 with so few good ones that a step has one image, or none, to learn from."""
    root = make_folder(tmp_path / "data" / "train", images=4)
    make_folder(tmp_path / "data" / "val", images=2)
    for path in sorted(root.rglob("*.*"))[good:]:
        path.write_bytes(b"")
    options = make_options(tmp_path / "data", tmp_path, model="sk_tiny", epochs=1, batch_size=4, name="run")
    run = RunFolder(tmp_path / "run")
    if good < 2:  # one image, alone in its step, can teach nothing
        with pytest.raises(DataError, match=r"could be read \| .*data \| see .*bad_files\.csv") as error:
            train(options)
        assert error.value.exit_code == 3
    else:
        try:
            train(options)
        except DataError:  # the two or three good ones were dealt one to each step
            assert good <= 2
    assert len(listed(run)) == 8 - good


def test_many_are_told_in_the_file_alone(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data" / "train")
    make_folder(tmp_path / "data" / "val", images=2)
    for path in sorted(root.rglob("*.jpg")):
        path.write_bytes(b"")
    run = train(make_options(tmp_path / "data", tmp_path, model="sk_tiny", epochs=1, batch_size=12))
    assert len(listed(run)) == 18
    assert run.log.read_text().count("warning: skipped") == 5
    assert "18 images skipped" in run.log.read_text()


def test_evaluate_tells_what_it_counted(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(make_options(broken, tmp_path, BUSY_SGD, model="sk_tiny"))
    capsys.readouterr()
    words = ["evaluate", str(run.path), "--split", "val", "--device", "cpu"]
    assert cli.main(words) == 3
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1].startswith("error: not an image")
    assert shown.out == ""
    assert cli.main([*words, "--on-bad-image", "skip"]) == 0
    shown = capsys.readouterr()
    assert "7 of 8 images, 1 could not be read" in shown.out
    assert str(broken / "val/cat/001.jpg") in shown.err


@pytest.mark.exhaustive
def test_a_report_of_a_run_with_broken_images(broken: Path, tmp_path: Path) -> None:
    run = train(make_options(broken, tmp_path, BUSY_SGD, model="sk_tiny", report=True))
    assert "1 of 8 images could not be read and are not counted" in run.report.read_text()


def test_the_choice_is_checked() -> None:
    with pytest.raises(UsageError, match=r"on_bad_image is 'replace' \| --on-bad-image"):
        make_options("digits", Path("runs"), on_bad_image="replace")


def test_a_class_without_an_image_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data" / "train")
    make_folder(tmp_path / "data" / "val", images=2)
    for path in (root / "dog").iterdir():
        path.write_bytes(b"")
    log = train(make_options(tmp_path / "data", tmp_path, model="sk_tiny", epochs=1, batch_size=14)).log.read_text()
    assert "warning: no train image of class 'dog' can be read" in log  # though an epoch leaves 8 of them out
    assert "of 36 train images cannot be read: see " in log


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_split_that_is_needed_later_is_tried_before_the_work(part: str, tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        make_folder(tmp_path / "data" / name, images=2 if name != "train" else 4)
    for path in sorted((tmp_path / "data" / part).rglob("*.*")):
        path.write_bytes(b"")
    options = make_options(tmp_path / "data", tmp_path / "runs", model="sk_tiny", epochs=1, batch_size=4, report=True)
    with pytest.raises(DataError, match=f"none of 4 {part} images can be read, the first: the image is empty"):
        train(options)
    assert not (tmp_path / "runs").exists()
