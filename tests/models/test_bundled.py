"""The bundled weights: small, with their origin, and as good as their card says."""

from __future__ import annotations

import pytest

from selkern.data.preprocess import Preprocess
from selkern.data.scenes import SceneSplit
from selkern.evaluation import evaluate
from selkern.models.registry import create_model
from selkern.models.weights import bundled, read_card


def test_what_is_in_the_box() -> None:
    assert sorted(bundled()) == ["resnet_mini.digits", "sknet_mini.digits"]
    assert all(path.stat().st_size <= 1_500_000 for path in bundled().values())


@pytest.mark.parametrize("name", sorted(bundled()))
def test_weights_are_as_good_as_their_card_says(name: str) -> None:
    card = read_card(bundled()[name])
    assert {"command", "commit", "seed", "torch"} <= card.source.keys()
    model = create_model(card.model, weights="digits")
    scenes = SceneSplit("test", 600, 0)
    result = evaluate(model, scenes, card.classes, Preprocess.from_dict(card.preprocess))
    low, high = result.top1_interval
    assert low <= card.metrics["test_top1"] <= high
    assert card.metrics["test_top1"] > 0.97
