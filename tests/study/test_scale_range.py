"""Digit scenes of a range of scales: training and validation lie in it, the test scenes stay those of all."""

from __future__ import annotations

import numpy as np
import pytest

from selkern.data.scenes import SceneSplit
from selkern.data.sources import open_source
from selkern.errors import DataError, UsageError


def scenes(data: str, split: str) -> SceneSplit:
    result = getattr(open_source(data, seed=3), split)
    assert isinstance(result, SceneSplit)
    return result


def test_training_scenes_lie_in_the_range_and_test_scenes_do_not_change() -> None:
    data = "digits:scale=1.5-3,test=200"
    for name in ("train", "val"):
        split = scenes(data, name)
        scales = np.array([split.truth(index, epoch).scale for epoch in (0, 1) for index in range(400)])
        assert scales.min() == 1.5
        assert scales.max() == 3
        assert np.mean(scales < 2.1) == pytest.approx(0.5, abs=0.08)  # uniform in its logarithm
        assert len(split) == len(scenes("digits", name))
        assert split.read(3).tobytes() != scenes("digits", name).read(3).tobytes()
    test, plain = scenes(data, "test"), scenes("digits", "test")
    assert len(test) == 200
    for index in range(0, 200, 20):
        assert test.truth(index) == plain.truth(index)
        assert test.read(index).tobytes() == plain.read(index).tobytes()


def test_the_whole_range_is_plain_digits() -> None:
    whole, plain = scenes("digits:scale=1-4", "train"), scenes("digits", "train")
    assert [whole.read(i).tobytes() for i in range(20)] == [plain.read(i).tobytes() for i in range(20)]


def test_fragments_lie_in_the_range_too(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    original = SceneSplit._scale

    def note(self: SceneSplit, number: float) -> float:
        drawn.append(original(self, number))
        return drawn[-1]

    monkeypatch.setattr(SceneSplit, "_scale", note)
    split = scenes("digits:scale=1.5-3", "train")
    for index in range(20):
        split.read(index)
    assert len(drawn) >= 20 * 3  # the digit and at least two fragments
    assert 1.5 <= min(drawn) <= max(drawn) <= 3


@pytest.mark.parametrize(
    "word",
    ["", "scale", "scale=", "scale=3", "scale=3-1.5", "scale=0.5-2", "scale=1-5", "scale=1-nan", "train=0", "tran=5"],
)
def test_nonsense_is_one_error(word: str) -> None:
    with pytest.raises(DataError, match=r"unknown setting .* of the digit scenes . digits:.* give such as"):
        open_source(f"digits:{word}")


def test_wrong_scales_from_code() -> None:
    with pytest.raises(UsageError, match="scales 3-2"):
        SceneSplit("train", 10, 0, (3, 2))
