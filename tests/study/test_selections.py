"""What is reported of the selection of a study's runs: the same as counted by hand, its mean over seeds, its tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr, ttest_1samp

import selkern
from selkern.data.preprocess import Preprocess
from selkern.data.scenes import SceneSplit
from selkern.selection.intervene import choose, forced
from selkern.selection.record import find_units
from selkern.study.results import _selection
from selkern.study.run import ENLARGED, LIT, REPLACED, SIZE, selections

SCENES = SceneSplit("test", 60, 0)


@pytest.fixture(scope="module")
def model() -> Any:
    return selkern.create_model("sknet_mini", weights="digits").eval()


def reported(model: Any) -> dict[tuple[str, str], float | None]:
    rows = selections(model, SCENES, Preprocess.from_dict(model.card.preprocess))
    return {(row["what"], row["unit"]): row["value"] for row in rows}


def inputs() -> torch.Tensor:
    pixels = np.stack([np.asarray(SCENES.read(index)) for index in range(60)]).astype(np.float32)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).div(255).sub(0.5).div(0.25)


def test_the_figures_are_those_counted_by_hand(model: Any) -> None:
    result = reported(model)
    with torch.inference_mode(), selkern.record(model) as chosen:
        right = (model(inputs()).argmax(1).numpy() == SCENES.labels).mean()
    lean = {name: (a[:, 1] - a[:, 0]).mean(dim=1).numpy() for name, a in chosen.items()}
    sizes = [SCENES.truth(index).scale for index in range(60)]
    assert result[SIZE, "SK_2_1"] == pytest.approx(spearmanr(sizes, lean["stages.0.0.mixer"]).statistic, abs=1e-3)
    light = inputs().mean(dim=(1, 2, 3)).numpy()
    pairs = ((sizes, lean["stages.1.0.mixer"]), (sizes, light), (lean["stages.1.0.mixer"], light))
    a, b, c = (spearmanr(*pair).statistic for pair in pairs)
    assert result[LIT, "SK_3_1"] == pytest.approx((a - b * c) / ((1 - b**2) * (1 - c**2)) ** 0.5, abs=1e-3)
    with torch.inference_mode(), choose(model, dict.fromkeys(find_units(model), forced(0))):
        alone = (model(inputs()).argmax(1).numpy() == SCENES.labels).mean()
    assert result[f"{REPLACED} smallest kernel", "all units"] == pytest.approx(alone - right)
    assert {what for what, _ in result} >= {SIZE, LIT, ENLARGED, f"{REPLACED} frozen", f"{REPLACED} shuffled"}


def test_a_network_that_chooses_alike_for_all_images_has_no_correlation_and_loses_nothing() -> None:
    model = selkern.create_model("sknet_mini", weights="digits").eval()
    for name, parameter in model.named_parameters():
        if "gate" in name:
            torch.nn.init.zeros_(parameter)
    result = reported(model)
    assert result[SIZE, "SK_2_1"] is None
    assert result[ENLARGED, "SK_2_1"] == 0
    assert result[f"{REPLACED} shuffled", "all units"] == 0
    assert selections(selkern.create_model("resnet_mini", num_classes=10).eval(), SCENES, Preprocess(size=48)) == []


def test_means_over_seeds_are_told_and_what_one_seed_lacks_is_not() -> None:
    seeds: list[list[dict[str, Any]]] = [
        [{"what": SIZE, "unit": "SK_2_1", "value": value}, {"what": SIZE, "unit": "SK_2_2", "value": other}]
        for value, other in ((0.5, 0.1), (0.6, None), (0.4, 0.2))
    ]
    (row,) = _selection(seeds)
    interval = ttest_1samp([0.5, 0.6, 0.4], 0).confidence_interval(0.95)
    assert (row["unit"], row["value"]) == ("SK_2_1", pytest.approx(0.5))
    assert row["interval"] == pytest.approx([interval.low, interval.high])
