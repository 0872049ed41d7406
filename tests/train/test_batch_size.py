"""Data sets smaller than the recipe's batch: the batch that is taken, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make_folder, make_options, signal_at, train

from selkern.cli.train import _train_options
from selkern.errors import DataError, Interrupted
from selkern.train import run as job
from selkern.train.defaults import Asked, choose_defaults, fit_batch
from selkern.train.options import read_options
from selkern.train.recipe import Recipe
from selkern.train.run_folder import RunFolder

LEAST = 2


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("accumulate", [1, 3, 64])
def test_every_small_data_set_has_a_batch_that_holds_for_all_ranks(ranks: int, accumulate: int) -> None:
    recipe = Recipe(batch_size=128, accumulate=accumulate)
    for images in range(LEAST * ranks, 128):
        fitted, notes = fit_batch(recipe, images, ranks, "data")
        size = fitted.batch_size
        assert LEAST * ranks <= size <= images
        assert size % ranks == 0
        assert 1 <= fitted.accumulate <= size // (LEAST * ranks)
        assert size / fitted.accumulate <= max(128 / accumulate, 2 * LEAST * ranks) + 1, "parts that fit the memory"
        assert notes[0].startswith(f"batch size {size}, not 128: there are {images} training images")
        if ranks == 1 and images >= 32:
            assert images // size >= 3, "some steps in an epoch"
            assert images % size <= 0.1 * images, "little is left over"


@pytest.mark.parametrize(("images", "size"), [(2, 2), (3, 3), (5, 5), (8, 8), (32, 8), (31, 10), (100, 25), (127, 25)])
def test_the_size_that_is_taken(images: int, size: int) -> None:
    assert fit_batch(Recipe(batch_size=128), images, 1, "data")[0].batch_size == size


@pytest.mark.usefixtures("tiny_networks")
@pytest.mark.parametrize(("asked", "size"), [(False, 8), (True, 12)])
def test_a_training_knows_whose_batch_it_is(asked: bool, size: int, tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data" / "train", images=12).parent
    make_folder(data / "val", images=1)
    options = make_options(data, tmp_path, model="sk_tiny", epochs=1, batch_size=12)
    defaults = choose_defaults(Asked(data=str(data), batch_size=12 if asked else None))
    run = job.train(options, defaults)
    assert run is not None
    assert read_options(run.path).training.batch_size == size


def test_a_lowered_batch_says_what_it_is_for_and_that_the_learning_rate_stays() -> None:
    say = "batch size 8, not 33: there are 32 training images, which give 4 steps an epoch; lr stays 0.1"
    assert fit_batch(Recipe(batch_size=33, lr=0.1), 32, 1, "data")[1] == (say,)
    sgd, notes = fit_batch(Recipe(batch_size=128, lr=0.1, optimizer="sgd"), 32, 1, "data")
    assert notes[0].endswith("lr stays 0.1 (in proportion to the batch it would be 0.0063)")
    assert sgd.lr == 0.1
    assert fit_batch(Recipe(batch_size=33), 5, 1, "data")[1] == ("batch size 5, not 33: there are 5 training images",)


def test_a_batch_that_fits_is_the_user_s_own_and_what_it_leaves_out_is_said() -> None:
    recipe = Recipe(batch_size=32)
    assert fit_batch(recipe, 64, 1, "data") == (recipe, ())
    assert fit_batch(recipe, 1000, 1, "data") == (recipe, ()), "8 of 1,000"
    note = "each epoch leaves out 8 of 40 images, others each time; --batch-size 20 leaves out 0"
    assert fit_batch(recipe, 40, 1, "data") == (recipe, (note,))


@pytest.mark.parametrize(("batch", "images", "size"), [(128, 128, 32), (128, 160, 40), (128, 511, 102), (32, 36, 9)])
def test_a_recipe_s_batch_leaves_some_steps_an_epoch(batch: int, images: int, size: int) -> None:
    recipe = Recipe(batch_size=batch)
    fitted, notes = fit_batch(recipe, images, 1, "data", asked=False)
    assert fitted.batch_size == size
    assert notes[0].startswith(f"batch size {size}, not {batch}: there are {images} training images, which give")
    assert images // size >= 4
    assert fit_batch(recipe, 4 * batch, 1, "data", asked=False) == (recipe, ())
    assert fit_batch(recipe, images, 1, "data")[0] == recipe
    assert fit_batch(Recipe(batch_size=4), 12, 1, "data", asked=False) == (Recipe(batch_size=4), ())


def test_whoever_asks_for_a_batch_has_it(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", 8)
    words = ["--data", str(root), "--recipe", "cifar", "--model", "sknet_mini", "--image-size", "16"]
    assert not _train_options(words)[1].batch_asked
    for batch in (["--batch-size", "128"], ["--batch-size=128"]):
        options, defaults = _train_options([*words, *batch])
        assert options.training.batch_size == 128
        assert defaults.batch_asked


@pytest.mark.parametrize(
    ("images", "ranks", "shown"),
    [(0, 1, "0 training images"), (1, 1, "1 training image,"), (3, 2, "2 for each of 2 processes")],
)
def test_too_few_for_any_batch(images: int, ranks: int, shown: str) -> None:
    with pytest.raises(DataError, match=shown):
        fit_batch(Recipe(), images, ranks, "data")


@pytest.mark.usefixtures("tiny_networks")
@pytest.mark.parametrize("images", [2, 3, 5])
def test_some_images_of_each_class_train_and_the_config_holds_what_was_used(
    images: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_folder(tmp_path / "data" / "train", images=images).parent
    make_folder(data / "val", images=1)
    run = train(make_options(data, tmp_path, model="sk_tiny", epochs=1, batch_size=128, accumulate=16))
    kept = read_options(run.path).training
    assert 2 <= kept.batch_size <= 2 * images
    assert run.read_metrics()[0]["step"] == 2 * images // kept.batch_size
    assert f"note: batch size {kept.batch_size}, not 128" in capsys.readouterr().err
    assert f"note: batch size {kept.batch_size}, not 128" in run.log.read_text()


@pytest.mark.usefixtures("tiny_networks")
def test_a_restart_of_all_processes_goes_on_with_the_run_whose_batch_was_lowered(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = make_options(data, tmp_path, model="sk_tiny", epochs=1, batch_size=128, name="run")
    signal_at(monkeypatch, [1])
    with pytest.raises(Interrupted):
        train(options)
    result = RunFolder.unfinished(options)
    assert result is not None
    assert result.path.samefile(tmp_path / "run")
    assert RunFolder.unfinished(replace(options, training=replace(options.training, lr=0.5))) is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert train(options).path == result.path
