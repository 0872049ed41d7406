"""Predictions and figures as files: what they hold, what ends them, and that nothing is overwritten."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import draw, make_folder, make_options, train

from selkern import cli
from selkern.cli import evaluate as evaluate_command
from selkern.evaluation import Evaluation
from selkern.inference import predict as predicting
from selkern.inference.predict import Prediction, PredictionFile
from selkern.models.weights import read_card, read_tensors, save_weights
from selkern.train.options import read_options
from selkern.train.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    data = make_folder(tmp_path_factory.mktemp("data"), classes=("=cat", "-dög"))
    options = make_options(data, tmp_path_factory.mktemp("runs"), model="sk_tiny", epochs=1, batch_size=14, name="run")
    return train(options)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three images, one of them broken, whose names a table might take for something else."""
    folder = tmp_path / "pictures"
    draw(folder / "=1+1, a.png", 0, 1)
    draw(folder / "inner" / "bär.png", 1, 2)
    (folder / "broken.png").write_bytes(b"no")
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def predict(*words: object) -> int:
    return cli.main(["predict", *map(str, words), "--device", "cpu"])


def test_a_table_holds_a_row_for_each_image(
    run: RunFolder, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.csv"
    twice = [pictures, pictures / "inner", pictures / "broken.png"]
    assert predict(run.path, *twice, "--output", out, "--top-k", "9") == 3
    said = capsys.readouterr()
    assert said.out == f"{out}: 3 images, 1 of them could not be read (see the column error)\n"
    assert "error: " not in said.err
    rows = table(out)
    assert list(rows[0]) == ["path", "class", "probability", "class_2", "probability_2", "error"]
    assert sorted(row["path"] for row in rows) == sorted(str(p) for p in pictures.rglob("*.png"))
    for row in rows:
        if row["path"].endswith("broken.png"):
            assert row["error"].startswith("not an image")
            assert not any((row["class"], row["probability"], row["class_2"], row["probability_2"]))
        else:
            assert {row["class"], row["class_2"]} == {"=cat", "-dög"}
            assert float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1, abs=2e-6)
            assert float(row["probability"]) >= float(row["probability_2"])
            assert not row["error"]


def test_json_lines_are_those_of_the_screen(
    run: RunFolder, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.jsonl"
    assert predict(run.path, pictures, "--output", out, "--json") == 3
    assert out.read_text(encoding="utf-8") == capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("there.csv", "exists already"),
        ("link.csv", "exists already"),
        ("p.xlsx", "neither"),
        ("no/p.csv", "no such folder"),
    ],
)
def test_what_cannot_be_the_output_is_refused_before_anything_is_done(
    name: str, shown: str, run: RunFolder, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "link.csv").symlink_to("nowhere.csv")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert predict(run.path, pictures, "--output", tmp_path / name) == 2
    assert shown in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_stop_keeps_the_rows_that_are_done(
    run: RunFolder, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any, **__: Any) -> Iterator[Prediction]:
        yield Prediction("a.png", ("=cat", "-dög"), (0.75, 0.25))
        raise KeyboardInterrupt

    monkeypatch.setattr(predicting, "predict", stopped)
    out = tmp_path / "p.csv"
    assert predict(run.path, pictures, "--output", out) == 128 + signal.SIGINT
    assert capsys.readouterr().err.splitlines()[-1] == f"stopped after 1 of 3 images; 1 are in {out}"
    assert [row["probability_2"] for row in table(out)] == ["0.250000"]


def test_a_full_disk_keeps_them_too(tmp_path: Path) -> None:
    class Full:
        def write(self, text: str) -> None:
            if text.startswith("b.png"):
                raise OSError(28, "No space left on device")

        def flush(self) -> None: ...

    file = PredictionFile(tmp_path / "p.csv", Full(), 1)  # type: ignore[arg-type]
    file.add(Prediction("a.png", ("cat",), (1.0,)))
    with pytest.raises(Exception, match=r"No space left on device\); 1 images are in it"):
        file.add(Prediction("b.png", ("cat",), (1.0,)))


def test_weights_that_are_not_finite_are_no_prediction(
    run: RunFolder, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {name: value.clone() for name, value in read_tensors(run.best).items()}
    tensors["fc.bias"][0] = torch.nan
    save_weights(tmp_path / "nan.safetensors", tensors, read_card(run.best))
    assert predict(tmp_path / "nan.safetensors", pictures) == 6
    said = capsys.readouterr()
    assert "error: the network gives no finite numbers | " in said.err
    assert said.out == ""


def test_an_evaluation_as_files(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "e"
    words = ["evaluate", str(run.path), "--split", "train", "--output", str(out), "--json"]
    assert cli.main(words) == 0
    shown = json.loads(capsys.readouterr().out)
    with (out / "confusion.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["true class", "-dög", "=cat"]
    assert [row[0] for row in rows] == header[1:]
    images = table(out / "predictions.csv")
    assert len(images) == shown["images"] == 28
    for row in rows:
        for name, count in zip(header[1:], row[1:], strict=True):
            pairs = [(image["label"], image["predicted"]) for image in images]
            assert pairs.count((row[0], name)) == int(count)
    assert [int(row["images"]) for row in table(out / "per_class.csv")] == [14, 14]
    assert json.loads((out / "evaluation.json").read_text())["top1"] == shown["top1"]
    assert cli.main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main([*words[:-2], str(tmp_path / "c.csv")]) == 2
    assert "give a folder" in capsys.readouterr().err


def test_an_evaluation_at_another_size_says_so(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its figures are those of weights whose card has that size."""
    own = read_card(run.best)
    words = ["evaluate", str(run.path), "--split", "train", "--image-size", "24", "--eval-crop", "0.875"]
    assert cli.main(words) == 0
    before = own.preprocess
    line = f"input 24 px, centre crop 0.875; the weights' own: {before['size']} px, {before['crop']:g}"
    assert line in capsys.readouterr().out.splitlines()
    assert cli.main([*words, "--json", "--output", str(tmp_path / "e")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["image_size"], shown["eval_crop"]) == (24, 0.875)
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text())["image_size"] == 24
    card = replace(own, preprocess={**before, "size": 24, "crop": 0.875})
    save_weights(tmp_path / "other.safetensors", read_tensors(run.best), card)
    data = read_options(run.path).data
    whole = ["evaluate", str(tmp_path / "other.safetensors"), "--data", data, "--split", "all", "--json"]
    assert cli.main(whole) == 0
    same = json.loads(capsys.readouterr().out)
    assert cli.main([*words[:2], "--data", data, "--split", "all", *words[4:], "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert (other["loss"], other["top1"]) == (same["loss"], same["top1"])


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--image-size", "0"], "error: size 0 px | --image-size | give a whole number from 1"),
        (["--image-size", "99999999"], "error: image_size is 99999999 | --image-size | must be at most "),
        (["--eval-crop", "1.5"], "error: crop 1.5 | --eval-crop | give a share in (0, 1]"),
    ],
)
def test_a_size_that_cannot_be_is_a_line(
    flags: list[str], error: str, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(run.path), *flags]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(error)


def test_of_many_classes_the_worst_and_the_best_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    names = tuple(f"c{number:04}" for number in range(5000))
    labels = np.repeat(np.arange(2000), 10)
    top = np.where(np.arange(20_000) % 10 < np.repeat(np.arange(2000) % 11, 10), labels, 4999)[:, None]
    blank = np.zeros((20_000, 1), np.float32)
    result = Evaluation(names, np.arange(20_000), labels, blank[:, 0], top, blank)
    evaluate_command._print(result, "per_class.csv")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 23
    assert lines[1] == "of 2,000 classes with images, of 5,000 in all, the 10 worst:"
    assert lines[12] == "the 10 best (all: per_class.csv, or --json):"
    assert all(line.endswith("   0.00%") for line in lines[2:12])
    assert all(line.endswith(" 100.00%") for line in lines[13:])


@pytest.mark.parametrize("above", [True, False])
def test_an_evaluation_at_chance_says_so(
    above: bool, run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("selkern.evaluation.Evaluation.above_chance", above)
    assert cli.main(["evaluate", str(run.path), "--split", "train", "--device", "cpu"]) == 0
    shown = "not better than always naming the largest class (-dög, 50.00%)\n"
    assert (shown in capsys.readouterr().out) != above


@pytest.mark.filterwarnings("ignore", "error:::selkern")  # torch's exporter warns about itself
def test_an_exported_file_is_evaluated_on_the_images_of_its_run(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(run.path), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert Path(made["file"]) == run.path / "exports" / "run.onnx"
    assert made["compared"]["top1"] == made["compared"]["exported_top1"]
    answers = []
    for word in (str(run.path), made["file"]):
        assert cli.main(["evaluate", word, "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[1]["run_data"]
    assert answers[0].pop("loss") == pytest.approx(answers[1].pop("loss"), abs=1e-5)
    assert answers[0] == answers[1]
