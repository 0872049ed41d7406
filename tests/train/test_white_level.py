"""What is white in deep pixels: chosen at the start of a run, kept beside it, obeyed ever after."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from image_files import tiff
from tiny import make_options, rows, tiny_model, train

from selkern.data.decode import decode
from selkern.data.sources import open_source
from selkern.errors import UsageError
from selkern.evaluation import evaluate
from selkern.inference.network import load
from selkern.inference.predict import notes_on, predict
from selkern.models.weights import read_card
from selkern.train import run as job
from selkern.train.options import TrainOptions, read_options
from selkern.train.recipe import Recipe
from selkern.train.run_folder import RunFolder


def deep_folder(root: Path, factor: int) -> Path:
    """Two classes by brightness, 8-bit pixels times a factor; with 1 they are stored in 8 bits."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        for label, shade in (("dark", 60), ("light", 190)):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                values = rng.integers(shade - 40, shade + 40, (16, 16)).astype(np.uint16) * factor
                values[0, 0] = 255 * factor
                kind = np.uint8 if factor == 1 else np.uint16
                (root / split / label / f"{number}.tif").write_bytes(tiff(values.astype(kind), 1))
    return root


def test_a_run_keeps_its_white_and_learns_what_eight_bits_teach(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep, plain = deep_folder(tmp_path / "deep", 16), deep_folder(tmp_path / "plain", 1)
    with tiny_model():
        run = train(make_options(deep, tmp_path, model="sk_tiny", name="deep", epochs=1))
        said = capsys.readouterr().err
        other = train(make_options(plain, tmp_path, model="sk_tiny", name="plain", epochs=1))
        assert "16-bit and use 320 to 3,664: white is 4,095" in said
        assert "white is" not in capsys.readouterr().err
        assert rows(run)[-1]["train_loss"] == pytest.approx(rows(other)[-1]["train_loss"], abs=0.05)
        assert read_card(run.best).preprocess["levels"] == [0.0, 4095.0]
        assert "levels" not in read_card(other.best).preprocess  # as versions before read it
        assert "white_level" not in (other.path / "config.yaml").read_text()

        loaded = load(str(run.path))
        image = deep / "test/light/0.tif"
        pixels = loaded.preprocess(decode(image, reading=loaded.preprocess.reading()))
        assert 140 < pixels.mean() < 240
        source = open_source(str(deep))
        result = evaluate(loaded.model, source.test, source.classes, loaded.preprocess)
        (answer,) = predict(loaded, [image])
        row = [source.test.where(int(index)) for index in result.indices].index(str(image))
        assert answer.probabilities[0] == pytest.approx(float(result.top_p[row, 0]), abs=1e-5)
        assert notes_on([image], loaded.preprocess.levels) == ()
        assert "white is 65,535" in notes_on([image], load(str(other.path)).preprocess.levels)[0]


def test_a_resumed_run_does_not_choose_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiny_model():
        run = train(make_options(deep_folder(tmp_path / "deep", 16), tmp_path, model="sk_tiny", epochs=1))
        assert read_options(run.path).training.white_level == "4095"
        monkeypatch.delattr(job, "settle_levels")
        job.resume(run, "cpu", epochs=2, extend="rescale")
    assert read_options(run.path).training.white_level == "4095"
    assert read_card(run.last).preprocess["levels"] == [0.0, 4095.0]


def test_a_run_that_is_started_again_is_known_by_what_was_asked(tmp_path: Path) -> None:
    options = make_options("digits", tmp_path, name="a")
    run = RunFolder.create(options)
    settled = replace(options, training=replace(options.training, white_level="4095"))
    (run.path / "config.yaml").write_text(settled.to_yaml())
    assert RunFolder.unfinished(options) is not None


def test_options_of_versions_before_mean_the_whole_range() -> None:
    text = TrainOptions().to_yaml()
    assert "white_level" not in text
    assert TrainOptions.from_yaml(text, "config.yaml").training.preprocess.levels == "full"
    assert Recipe(white_level="0.5:9").preprocess.levels == (0.5, 9.0)
    with pytest.raises(UsageError, match="--white-level"):
        Recipe(white_level="bright")
