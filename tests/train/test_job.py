"""The whole job on a tiny folder: train, evaluate, analyze, report; and what others make of the run."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import make_folder, make_options, train, tree

from selkern.data.scenes import SceneSplit
from selkern.data.sources import Source
from selkern.errors import CheckpointError, DataError, ResourceError, UsageError
from selkern.inference.images import choose_images
from selkern.inference.network import load
from selkern.inference.predict import list_images, predict
from selkern.models.weights import read_card, save_weights
from selkern.report.analyze import analyze
from selkern.train.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "my $images", classes=("<b>cat&", "$dog$"))


@pytest.fixture(scope="module")
def before(data: Path) -> dict[str, tuple[str, int]]:
    return tree(data)


@pytest.fixture(scope="module")
def run(data: Path, before: dict[str, tuple[str, int]], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    torch.set_num_threads(1)
    assert before
    output = tmp_path_factory.mktemp("runs")
    return train(make_options(data, output, model="sk_tiny", epochs=3, lr=1e-2, name="run", report=True))


def test_the_report_and_its_files_are_there(run: RunFolder) -> None:
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "What the neurons chose" in page
    assert "&lt;b&gt;cat&amp;" in page
    assert "<b>cat&" not in page
    names = ["confusion_matrix", "curves", "selection_bars", "selection_channels", "selection_by_class"]
    names += ["causal", "field_radii", "field_maps", "looks"]
    drawn = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {path.name for path in (run.path / "plots").iterdir()} == {*drawn, "train_batch.png"}
    for path in (run.path / "plots").glob("*.png"):
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > (100 if path.stem == "train_batch" else 200)


def test_the_tables_agree_with_the_weights(run: RunFolder) -> None:
    table = json.loads((run.path / "evaluation.json").read_text())
    assert table["images"] == sum(row["images"] for row in table["classes"]) == 4
    right = sum(row["right"] * row["images"] for row in table["classes"])
    assert table["top1"] == pytest.approx(right / table["images"])
    with (run.path / "predictions_test.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sum(row["label"] == row["predicted"] for row in rows) == round(right)
    assert all(Path(row["image"]).is_file() for row in rows)
    studies = json.loads((run.path / "studies.json").read_text())
    assert set(studies) == {"scale_sweep", "classes", "causal", "fields"}
    assert {path.stem for path in (run.path / "studies").iterdir()} == {*studies, "scale_sweep_channels"}
    with (run.path / "studies" / "causal.csv").open(newline="") as file:
        assert [row["what"] for row in csv.DictReader(file)] == [row["what"] for row in studies["causal"]]
    assert [row["unit"] for row in studies["scale_sweep"]] == ["SK_2_1", "SK_3_1"]
    for row in studies["scale_sweep"]:
        assert row["study"] == "zoom"
        assert row["change"] == pytest.approx(row["2.0x"] - row["1.0x"])
        assert row["change_low"] <= row["change"] <= row["change_high"]


def test_the_users_folder_is_as_it_was(run: RunFolder, data: Path, before: dict[str, tuple[str, int]]) -> None:
    assert run.path.is_dir()
    assert tree(data) == before


def test_a_plain_network_has_a_report_without_selection(data: Path, tmp_path: Path) -> None:
    run = train(make_options(data, tmp_path, model="plain_tiny", epochs=1, report=True))
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "What the neurons chose" not in page
    assert "no selective-kernel units" in page
    drawn = {f"{name}.{kind}" for name in ("confusion_matrix", "curves") for kind in ("png", "svg")}
    assert {path.name for path in (run.path / "plots").iterdir()} == {*drawn, "train_batch.png"}
    assert not (run.path / "studies.json").exists()
    assert (run.path / "evaluation.json").is_file()


def test_digit_scenes_are_studied_by_their_true_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes = tuple("0123456789")
    parts = [SceneSplit(name, scenes, 0) for name, scenes in (("train", 40), ("val", 12), ("test", 60))]

    def opened(*_args: object, **_named: object) -> Source:
        return Source(name="digits", kind="digits", classes=classes, train=parts[0], val=parts[1], test=parts[2])

    for module in ("defaults", "run_data"):
        monkeypatch.setattr(f"selkern.train.{module}.open_source", opened)
    run = train(make_options("digits", tmp_path, model="sk_tiny", epochs=1, batch_size=20, report=True))
    studies = json.loads((run.path / "studies.json").read_text())
    assert set(studies) == {"true_scale", "scale_sweep", "classes", "causal", "fields", "field_growth"}
    selection = studies["true_scale"]  # no class of these few has images enough for a figure of its own
    assert {row["study"] for row in selection} == {"true scale"}
    assert all(-1 <= row["rho_low"] <= row["rho"] <= row["rho_high"] <= 1 for row in selection)
    plots = {path.name for path in (run.path / "plots").iterdir()}
    assert {"selection_correlation.png", "selection_by_size.png"} <= plots
    assert not run.split_csv.exists()
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert re.search(r"p \d\.\d\d · [1-4]\.\dx", page), "examples show the size of their object"


def test_no_report_is_made_where_none_is_wanted(data: Path, tmp_path: Path) -> None:
    run = train(make_options(data, tmp_path, model="sk_tiny", epochs=1, report=False))
    assert not {"report.html", "evaluation.json", "studies.json"} & {p.name for p in run.path.iterdir()}
    assert [path.name for path in run.plots.iterdir()] == ["train_batch.png"]


@pytest.mark.exhaustive
def test_the_report_can_go_elsewhere(run: RunFolder, tmp_path: Path) -> None:
    before = tree(run.path)
    result = analyze(load(str(run.path)), output=tmp_path / "a" / "b")
    assert result.page == tmp_path / "a" / "b" / "report.html"
    assert result.studies.sweep is not None
    assert result.studies.sweep.n == len(result.evaluation) == 4
    assert (tmp_path / "a" / "b" / "plots" / "curves.png").is_file()
    assert tree(run.path) == before


def test_a_report_that_cannot_be_written_is_told(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot make the folder"):
        analyze(load(str(run.path)), output=tmp_path / "file")
    lonely = tmp_path / "lonely.safetensors"
    lonely.write_bytes(run.best.read_bytes())
    with pytest.raises(UsageError, match="nowhere to write"):
        analyze(load(str(lonely)))


def test_weights_away_from_their_run_need_data(run: RunFolder, data: Path, tmp_path: Path) -> None:
    lonely = tmp_path / "lonely.safetensors"
    lonely.write_bytes(run.best.read_bytes())
    loaded = load(str(lonely))
    assert loaded.run is None
    with pytest.raises(UsageError, match="--data"):
        choose_images(loaded)
    assert choose_images(loaded, str(data)).source.classes == ("$dog$", "<b>cat&")
    with pytest.raises(UsageError, match="tset"):
        choose_images(loaded, str(data), "tset")


def test_other_data_with_an_unknown_class_is_refused(run: RunFolder, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", images=3, classes=("$dog$", "eel"))
    with pytest.raises(DataError, match="unknown label 'eel'"):
        choose_images(load(str(run.path)), str(other))


def test_weights_without_preprocessing_are_refused(run: RunFolder, tmp_path: Path) -> None:
    card = read_card(run.best)
    bare = tmp_path / "bare.safetensors"
    save_weights(bare, load(str(run.path)).model.state_dict(), type(card)(model=card.model, classes=card.classes))
    with pytest.raises(CheckpointError, match="how to prepare images"):
        load(str(bare))


def test_a_run_without_weights_is_told(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((run.path / "config.yaml").read_text())
    with pytest.raises(CheckpointError, match="no weights yet"):
        load(str(tmp_path))
    with pytest.raises(CheckpointError, match="no such run"):
        load(str(tmp_path / "nothing"))


def test_predictions_are_those_of_the_evaluation(run: RunFolder) -> None:
    loaded = load(str(run.path))
    source = choose_images(loaded).source
    paths = [Path(source.train.where(i)) for i in range(len(source.train))]
    answers = list(predict(loaded, paths, top_k=1, batch_size=5))
    images = [torch.from_numpy(loaded.preprocess(source.train.read(i))) for i in range(len(source.train))]
    logits = loaded.model(loaded.preprocess.normalise(torch.stack(images)))
    assert isinstance(logits, torch.Tensor)
    for answer, path, row in zip(answers, paths, logits.softmax(dim=1), strict=True):
        assert answer.path == str(path)
        assert answer.classes == (loaded.card.classes[int(row.argmax())],)
        assert answer.probabilities[0] == pytest.approx(float(row.detach().max()), abs=1e-5)


def test_an_unreadable_image_does_not_stop_the_others(run: RunFolder, data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no")
    good = sorted((data / "$dog$").iterdir())[0]
    answers = list(predict(load(str(run.path)), [broken, good, broken, good], top_k=9))
    assert [bool(answer.error) for answer in answers] == [True, False, True, False]
    assert str(broken) in answers[0].error
    assert sum(answers[1].probabilities) == pytest.approx(1, abs=1e-5)
    assert list(answers[1].probabilities) == sorted(answers[1].probabilities, reverse=True)
    assert [answer.error for answer in predict(load(str(run.path)), [broken])] == [answers[0].error]


def test_images_are_listed_in_their_order(data: Path, tmp_path: Path) -> None:
    one = data / "$dog$" / "000.png"
    assert list_images([str(one)]) == [one]
    inside = sorted((data / "$dog$").iterdir())
    others = [path for path in inside if path != inside[3]]
    assert list_images([str(inside[3]), str(data / "$dog$"), str(one)]) == [inside[3], *others], "each once"
    with pytest.raises(UsageError, match="no images given"):
        list_images([])
    with pytest.raises(DataError, match="no images in this folder"):
        list_images([str(tmp_path)])
    with pytest.raises(DataError, match="no such file"):
        list_images([str(tmp_path / "x.png")])


def test_what_a_folder_holds_besides_images_is_said(data: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"no images in this folder .* 1 \.txt"):
        list_images([str(tmp_path)])
    (tmp_path / "picture").write_bytes((data / "$dog$" / "000.png").read_bytes())
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    said: list[str] = []
    assert list_images([str(tmp_path)], said.append) == [tmp_path / "picture"]
    assert [line.partition(" (")[0] for line in said] == [
        f"{tmp_path}: left out: a link that leads nowhere",
        f"{tmp_path}: left out: 1 .txt",
    ]
