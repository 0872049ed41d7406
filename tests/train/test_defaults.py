"""The defaults of a run: what follows from pictures, weights and names, what is said of it, and that flags win."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import make_folder, make_options, train

from selkern import cli
from selkern.data.preprocess import Preprocess
from selkern.data.sources import open_source
from selkern.errors import CheckpointError, DataError, UsageError
from selkern.inference.network import load
from selkern.models.registry import create_model
from selkern.models.weights import read_card, save_weights
from selkern.train import run as job
from selkern.train.defaults import Asked, Defaults, choose_defaults
from selkern.train.options import TrainOptions, read_options
from selkern.train.recipe import RECIPE_NOTES, RECIPES
from selkern.train.run_folder import RunFolder

IMAGENET = Preprocess(size=224, crop=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
OTHER = Preprocess(size=96, crop=0.9, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3), resize="pad", levels=(0.0, 4095.0))


def pictures(root: Path, *sizes: tuple[int, int]) -> str:
    """A folder of two classes whose pictures have these sizes in turn."""
    for label in "ab":
        (root / label).mkdir(parents=True)
        for number in range(12):
            size = sizes[number % len(sizes)]
            Image.new("L" if number % 3 else "RGB", size, 20 * number).save(root / label / f"{number}.png")
    return str(root)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("pictures")
    sizes = {"photos": (180, 160), "small": (32, 32), "middling": (50, 60), "dots": (8, 9), "wide": (192, 64)}
    return {"digits": "digits", **{name: pictures(root / name, size) for name, size in sizes.items()}}


def weights(path: Path, preprocess: Preprocess | None, in_chans: int = 3) -> str:
    model = create_model("sknet_mini", num_classes=2, in_chans=in_chans)
    assert model.card is not None
    card = replace(model.card, preprocess={} if preprocess is None else preprocess.to_dict())
    save_weights(path, model.state_dict(), card)
    return str(path)


@pytest.mark.parametrize(
    ("data", "given", "model", "size", "crop", "recipe"),
    [
        ("digits", {}, "sknet_mini", 48, 1.0, "digits"),
        ("digits", {"model": "sknet50"}, "sknet50", 48, 1.0, "digits"),
        ("photos", {}, "skresnet18", 224, 0.875, "photos-scratch"),
        ("photos", {"model": "sknet50"}, "sknet50", 224, 0.875, "photos-scratch"),
        ("photos", {"model": "sknet_mini"}, "sknet_mini", 48, 1.0, "cifar"),
        ("photos", {"model": "sknet_mini", "image_size": 128}, "sknet_mini", 48, 1.0, "photos-scratch"),
        ("photos", {"image_size": 64}, "sknet_mini", 48, 1.0, "cifar"),
        ("photos", {"recipe": "imagenet-paper"}, "skresnet18", 224, 0.875, "imagenet-paper"),
        ("photos", {"recipe": "cifar", "model": "sknet50"}, "sknet50", 32, 1.0, "cifar"),
        ("photos", {"recipe": "photos"}, "skresnet18", 224, 0.875, "photos"),
        ("small", {}, "sknet_mini", 32, 1.0, "cifar"),
        ("small", {"model": "sknet29"}, "sknet29", 32, 1.0, "cifar"),
        ("small", {"model": "sknet50"}, "sknet50", 224, 0.875, "photos-scratch"),
        ("small", {"recipe": "photos-scratch"}, "sknet_mini", 32, 1.0, "photos-scratch"),
        ("small", {"recipe": "cifar-paper"}, "sknet_mini", 32, 1.0, "cifar-paper"),
        ("middling", {}, "sknet_mini", 50, 1.0, "cifar"),
        ("wide", {}, "sknet_mini", 64, 1.0, "cifar"),
        ("dots", {}, "sknet_mini", 32, 1.0, "cifar"),
    ],
)
def test_what_follows_from_the_pictures(
    folders: dict[str, str], data: str, given: dict[str, object], model: str, size: int, crop: float, recipe: str
) -> None:
    options = choose_defaults(Asked(data=folders[data], **given)).options  # type: ignore[arg-type]
    assert (options.model, options.recipe) == (model, recipe)
    assert (options.training.image_size, options.training.eval_crop) == (size, crop)
    assert options.training == replace(RECIPES[recipe], image_size=size, eval_crop=crop)


def test_small_pictures_are_trained_as_ever(folders: dict[str, str]) -> None:
    assert choose_defaults(Asked(data=folders["small"])).options == TrainOptions(
        recipe="cifar", training=RECIPES["cifar"]
    )
    assert choose_defaults(Asked()).options == TrainOptions()


@pytest.mark.parametrize(("data", "recipe"), [("photos", "photos"), ("small", "photos"), ("digits", "digits")])
@pytest.mark.parametrize("model", ["", "sknet_mini"])
def test_weights_decide_network_input_and_colours(
    folders: dict[str, str], tmp_path: Path, data: str, recipe: str, model: str
) -> None:
    result = choose_defaults(Asked(data=folders[data], weights=weights(tmp_path / "w.safetensors", OTHER), model=model))
    assert (result.options.model, result.options.recipe) == ("sknet_mini", recipe)
    assert result.options.training.preprocess == OTHER
    assert result.options.training == RECIPES[recipe].prepared(OTHER)
    assert "of the weights' card" in result.line(result.options, 3)


def test_a_recipe_by_name_says_how_to_train_and_the_card_how_images_are_prepared(
    folders: dict[str, str], tmp_path: Path
) -> None:
    given = weights(tmp_path / "w.safetensors", IMAGENET)
    options = choose_defaults(Asked(data=folders["small"], weights=given, recipe="cifar")).options
    assert options.training == RECIPES["cifar"].prepared(IMAGENET)


def test_weights_without_a_word_on_images(folders: dict[str, str], tmp_path: Path) -> None:
    result = choose_defaults(Asked(data=folders["photos"], weights=weights(tmp_path / "w.safetensors", None)))
    assert (result.options.model, result.options.recipe, result.options.training.image_size) == (
        "sknet_mini",
        "photos",
        48,
    )
    assert "what sknet_mini is designed for" in result.line(result.options, 3)


def test_weights_that_cannot_be_meant(folders: dict[str, str], tmp_path: Path) -> None:
    grey = weights(tmp_path / "grey.safetensors", IMAGENET, in_chans=1)
    with pytest.raises(CheckpointError, match="weights take images of 1 channel, those of data have 3"):
        choose_defaults(Asked(data=folders["photos"], weights=grey))
    with pytest.raises(CheckpointError, match="no such run"):
        choose_defaults(Asked(data=folders["photos"], weights="nowhere"))
    path = tmp_path / "odd.safetensors"
    model = create_model("sknet_mini", num_classes=2)
    assert model.card is not None
    save_weights(path, model.state_dict(), replace(model.card, preprocess={**OTHER.to_dict(), "resize": "stretch"}))
    with pytest.raises(CheckpointError, match="resize 'stretch'"):
        choose_defaults(Asked(data=folders["photos"], weights=str(path)))


def test_weights_of_the_hub_are_not_fetched_for_help(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(_: str) -> Path:
        raise AssertionError("fetched")

    monkeypatch.setattr("selkern.convert.hub.fetch", fetch)
    result = choose_defaults(Asked(data=folders["photos"], weights="hf-hub:a/b"), fetch=False)
    assert (result.options.recipe, result.options.training.image_size) == ("photos", 224)


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_whoever_asks_for_all_of_a_picture_sees_all(folders: dict[str, str], tmp_path: Path, resize: str) -> None:
    asked = Asked(data=folders["photos"], resize=resize)  # type: ignore[arg-type]
    recipe = choose_defaults(asked).options.training
    assert (recipe.resize, recipe.eval_crop) == (resize, 1.0)
    card = weights(tmp_path / "w.safetensors", replace(OTHER, resize=resize))  # type: ignore[arg-type]
    assert choose_defaults(replace(asked, weights=card)).options.training.eval_crop == 0.9  # as it was trained
    default, crop = (choose_defaults(replace(asked, resize=way)).options for way in (None, "crop"))
    assert crop.training == default.training


def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[str, list[str]]:
    """The line and the notes of a run that these words ask for, which is not trained."""
    asked: list[tuple[TrainOptions, Defaults]] = []
    monkeypatch.setattr(job, "train", lambda *given: asked.append(given))
    assert cli.main(["train", *words]) == 0, capsys.readouterr().err
    ((options, result),) = asked
    return result.line(options, 25), list(result.notes(options))


def test_the_line_says_what_is_taken_and_why(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line, _ = shown(capsys, monkeypatch, "--data", folders["photos"])
    assert line == (
        "pictures of 160 px (short side, median), input 224 px (what skresnet18 is designed for), centre crop 0.875, "
        "mean and std of recipe photos-scratch; recipe photos-scratch (photos, from random weights), batch 32: "
        "50 epochs of 25 steps"
    )
    words = ["--image-size", "96", "--resize=squash", "--mean", "0.1", "0.1", "0.1", "--epochs", "1"]
    line, _ = shown(capsys, monkeypatch, "--data", folders["photos"], *words)
    assert "input 96 px (as asked), squashed, crop 1, mean and std as asked; " in line
    assert line.endswith("batch 32: 1 epoch of 25 steps")
    line, notes = shown(capsys, monkeypatch)
    assert line.startswith(
        "input 48 px (of recipe digits), centre crop 1, mean and std of recipe digits; recipe digits"
    )
    assert notes == []


@pytest.mark.parametrize(
    ("data", "words", "parts"),
    [
        ("small", [], []),
        ("photos", ["--recipe", "imagenet-paper"], []),
        ("wide", [], ["100% of the pictures are 4:3 or longer (such as 192 x 64)", "--resize squash or pad"]),
        ("wide", ["--resize", "pad"], []),
        ("small", ["--model", "sknet50"], ["pictures of 32 px are enlarged to 224 px; sknet_mini and sknet29"]),
        ("photos", ["--image-size", "320"], ["enlarged to 320 px; --image-size 160 takes 4 times less time"]),
        ("photos", ["--model", "sknet_mini"], ["of pictures of 160 px the network sees 48 px", "--image-size 128"]),
        (
            "photos",
            ["--model", "sknet50", "--image-size", "32"],
            ["--image-size 224 is what", "its last maps are 1 x 1"],
        ),
        ("photos", ["--recipe", "photos"], ["goes on from trained weights"]),
        ("photos", [], ["--weights hf-hub:timm/skresnet18.ra_in1k goes on from ImageNet's"]),
        ("photos", ["--model", "sknet26"], ["--model skresnet18 --weights hf-hub:timm/skresnet18.ra_in1k"]),
    ],
)
def test_what_may_not_be_meant_is_said(
    folders: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    data: str,
    words: Sequence[str],
    parts: Sequence[str],
) -> None:
    _, notes = shown(capsys, monkeypatch, "--data", folders[data], *words)
    for part in parts:
        assert any(part in note for note in notes), notes
    if not parts:
        assert notes == []


def test_what_differs_from_the_weights_is_said(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--data", folders["photos"], "--weights", weights(tmp_path / "w.safetensors", IMAGENET)]
    assert shown(capsys, monkeypatch, *given)[1] == []
    words = ["--image-size", "160", "--std", "1", "1", "1", "--resize", "pad", "--recipe", "photos-scratch"]
    notes = " ".join(shown(capsys, monkeypatch, *given, *words)[1])
    for part in (
        "trained at 224 px, this run is at 160",
        "std (0.229, 0.224, 0.225)",
        "--resize crop, this run has pad",
    ):
        assert part in notes
    assert "photos-scratch is for random weights" in notes


def test_a_mix_of_sizes_is_taken_by_its_middle(tmp_path: Path) -> None:
    data = pictures(tmp_path / "mixed", (400, 300), (300, 300), (300, 400), (20, 30))
    result = choose_defaults(Asked(data=data))
    assert result.options.recipe == "photos-scratch"
    assert result.seen is not None
    share, size = result.seen.wide
    assert 0.5 < share < 1
    assert size in ((400, 300), (300, 400))


def test_pictures_that_cannot_be_read_leave_the_rest_to_the_run(tmp_path: Path) -> None:
    make_folder(tmp_path / "data")
    for file in (tmp_path / "data").rglob("*.*"):
        file.write_bytes(b"broken")
    result = choose_defaults(Asked(data=str(tmp_path / "data")))
    assert result.options.recipe == "cifar"
    assert list(result.notes(result.options)) == []


@pytest.mark.parametrize(
    ("words", "error"),
    [({"data": "nowhere"}, DataError), ({"recipe": "fotos"}, UsageError), ({"model": "sknet51"}, UsageError)],
)
def test_mistakes_are_told(folders: dict[str, str], words: dict[str, str], error: type[Exception]) -> None:
    with pytest.raises(error):
        choose_defaults(Asked(**{"data": folders["photos"], **words}))  # type: ignore[arg-type]


def test_help_shows_the_defaults_for_the_data_at_hand(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    def help_for(*words: str) -> str:
        assert cli.main(["train", *words, "--help"]) == 0
        return " ".join(capsys.readouterr().out.replace("│", "").split())

    plain = help_for()
    assert "(default: digits)" in plain
    assert "(default: sknet_mini)" in plain
    assert "(default: 48)" in plain
    photos = help_for("--data", folders["photos"])
    assert "(default: photos-scratch)" in photos
    assert "(default: skresnet18)" in photos
    assert "(default: 224)" in photos
    assert capsys.readouterr().err == ""
    assert cli.main(["train", "--data", "nowhere", "--help"]) == 0
    assert "note: the defaults below are those of the digits, since the command as it stands fails: no such data" in (
        capsys.readouterr().err
    )
    assert help_for("--data", "nowhere") == plain  # help helps, whatever else is wrong
    assert help_for("--recipe", "fotos") == plain
    assert all(name in plain for name in RECIPES)
    assert "noqa" not in plain
    assert RECIPE_NOTES.keys() == RECIPES.keys()


@pytest.mark.usefixtures("tiny_networks")
def test_a_run_says_it_once_opens_its_data_once_and_keeps_it(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def count(data: str, **given: object) -> object:
        opened.append(data)
        return open_source(data, **given)  # type: ignore[arg-type]

    monkeypatch.setattr("selkern.train.defaults.open_source", count)
    flags = f"--model sk_tiny --epochs 1 --batch-size 4 --no-report --device cpu --output {tmp_path} --name run".split()
    assert cli.main(["train", "--data", folders["wide"], "--resize", "pad", *flags]) == 0
    assert opened == [folders["wide"]]
    (config,) = tmp_path.rglob("config.yaml")
    run = RunFolder(config.parent)
    log = run.log.read_text()
    assert log.count("pictures of 64 px (short side, median), input ") == 1
    assert "padded, crop 1" in log
    assert "4:3 or longer" not in log
    assert read_options(run.path).training.resize == "pad"
    assert load(str(run.path), "cpu").preprocess.resize == "pad"
    assert read_card(run.best).preprocess["resize"] == "pad"


@pytest.mark.usefixtures("tiny_networks")
@pytest.mark.parametrize(("resize", "right"), [("crop", False), ("squash", True), ("pad", True)])
def test_an_object_at_the_end_of_a_wide_picture(tmp_path: Path, resize: str, right: bool) -> None:
    """Red or blue, at either end of grey: a centre crop shows grey alone."""
    for split, images in (("train", 16), ("val", 8)):
        for label, colour in (("red", (220, 20, 20)), ("blue", (20, 20, 220))):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for number in range(images):
                picture = Image.new("RGB", (72, 24), (120 + number,) * 3)
                picture.paste(colour, (48, 4, 70, 20) if number % 2 else (2, 4, 24, 20))
                picture.save(tmp_path / "data" / split / label / f"{number}.png")
    torch.set_num_threads(1)
    given = {"model": "sk_tiny", "epochs": 4, "batch_size": 8, "image_size": 16, "resize": resize, "lr": 0.02}
    run = train(make_options(tmp_path / "data", tmp_path / "runs", **given))  # type: ignore[arg-type]
    top1 = max(row["val_top1"] for row in run.read_metrics())
    assert (top1 > 0.95) if right else (top1 <= 0.6)
