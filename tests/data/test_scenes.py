"""Digit scenes: pure, labelled truly, split by original digit."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from selkern.data.scenes import CANVAS, SIZES, SceneSplit, load_digits, split_digits
from selkern.data.sources import open_source
from selkern.errors import DataError, UsageError


@pytest.fixture(scope="module")
def val() -> SceneSplit:
    return SceneSplit("val", 400, seed=0)


def test_no_digit_is_in_two_splits() -> None:
    _, targets = load_digits()
    parts = split_digits(targets)
    together = np.concatenate(list(parts.values()))
    assert len(together) == len(set(together.tolist())) == 1797
    for name, share in (("train", 0.70), ("val", 0.15), ("test", 0.15)):
        counts = np.bincount(targets[parts[name]], minlength=10)
        assert np.abs(counts - share * np.bincount(targets)).max() <= 1


def test_the_source_has_the_documented_sizes_and_classes() -> None:
    source = open_source("digits", seed=3)
    assert source.classes == tuple("0123456789")
    assert {part.name: len(part) for part in (source.train, source.val, source.test)} == SIZES
    assert np.bincount(source.train.labels).min() > 0.9 * 1200
    assert list(source.split_rows()) == []
    assert source.test.where(5) == "digit scene 5"


def test_evaluation_scenes_are_the_same_for_every_seed_and_training_scenes_are_not() -> None:
    a, b = open_source("digits", seed=1), open_source("digits", seed=2)
    assert a.val.read(3).tobytes() == b.val.read(3).tobytes()
    assert a.test.read(3).tobytes() == b.test.read(3).tobytes()
    assert a.train.read(3).tobytes() != b.train.read(3).tobytes()


def test_a_scene_is_pure_and_survives_pickling(val: SceneSplit) -> None:
    copy = pickle.loads(pickle.dumps(val))
    again = SceneSplit("val", 400, seed=0)
    for index, epoch in ((0, 0), (7, 0), (7, 3)):
        scene = val.read(index, epoch).tobytes()
        assert scene == copy.read(index, epoch).tobytes() == again.read(index, epoch).tobytes()
    assert val.read(7, 0).tobytes() != val.read(7, 1).tobytes()
    assert val.truth(7, 3).digit == val.truth(7, 0).digit
    assert SceneSplit("train", 400, seed=0).truth(7).contrast != val.truth(7).contrast  # numbers of its own


def test_the_number_of_scenes_does_not_change_a_scene(val: SceneSplit) -> None:
    assert SceneSplit("val", 10, seed=0).read(7).tobytes() == val.read(7).tobytes()


def test_truth_says_where_the_digit_is(val: SceneSplit) -> None:
    """The digit's own shape, at the true place and size, is in the picture."""
    digits, targets = load_digits()
    for index in range(60):
        truth = val.truth(index)
        assert truth.label == targets[truth.digit] == val.labels[index]
        assert truth.size == round(8 * truth.scale)
        assert 1 <= truth.scale <= 4
        assert 0.5 <= truth.contrast <= 1
        assert 0 <= min(truth.left, truth.top) <= max(truth.left, truth.top) <= CANVAS - truth.size
        image = val.read(index)
        assert (image.size, image.mode) == ((CANVAS, CANVAS), "RGB")
        box = (truth.left, truth.top, truth.left + truth.size, truth.top + truth.size)
        small = np.asarray(image.convert("L").resize((8, 8), box=box)).ravel()
        assert np.corrcoef(small, digits[truth.digit].ravel())[0, 1] > 0.75


def test_scale_is_uniform_in_its_logarithm_and_tied_to_nothing_else() -> None:
    split = SceneSplit("train", 3000, seed=0)
    truths = [split.truth(index) for index in range(3000)]
    scale = np.log2([t.scale for t in truths])
    for size in (8, 11, 16, 22, 28):  # px; sizes are rounded
        share = np.mean([t.size <= size for t in truths])
        assert share == pytest.approx(math.log((size + 0.5) / 8, 4), abs=0.04)
    noise = 4 / math.sqrt(3000)
    assert abs(np.corrcoef(scale, [t.contrast for t in truths])[0, 1]) < noise
    assert abs(np.corrcoef(scale, [t.label for t in truths])[0, 1]) < noise


def test_background_is_independent_of_the_scale(val: SceneSplit) -> None:
    """The darkest tenth of a scene is background: its level must not follow the digit's size."""
    levels = [np.percentile(np.asarray(val.read(index)), 10) for index in range(400)]
    scales = [val.truth(index).scale for index in range(400)]
    assert abs(np.corrcoef(levels, scales)[0, 1]) < 4 / math.sqrt(400)


def test_wrong_arguments() -> None:
    with pytest.raises(UsageError, match="split 'dev'"):
        SceneSplit("dev", 10, seed=0)
    with pytest.raises(UsageError, match="0 scenes"):
        SceneSplit("val", 0, seed=0)
    with pytest.raises(DataError, match=r"classes \(cat, dog\) are not the ten digits"):
        open_source("digits", classes=["cat", "dog"])
