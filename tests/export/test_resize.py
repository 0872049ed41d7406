"""Images resized within a graph are those that `Preprocess` makes with Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from selkern.data.preprocess import Preprocess, Resize
from selkern.deploy.fold import Folded
from selkern.errors import NumericsError
from selkern.runtimes import trial
from selkern.runtimes.graph import Graph, write
from selkern.runtimes.network import ExportedNetwork, as_entering
from selkern.runtimes.resize import resized

pytestmark = pytest.mark.filterwarnings("ignore", "error:::selkern")  # torch's exporter warns about itself
SIZES = ((70, 93), (200, 100), (48, 48), (30, 41), (20, 20), (150, 225), (31, 500))  # height and width, px
KINDS = [(resize, crop) for resize in ("crop", "squash", "pad") for crop in (1.0, 0.875)]


def picture(height: int, width: int) -> Image.Image:
    """Smooth at the scale of some pixels, as photographs are."""
    coarse = np.random.default_rng(1).integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def far(got: Tensor, height: int, width: int, preprocess: Preprocess) -> tuple[float, float]:
    """Largest and mean difference from what Pillow gives, grey levels."""
    difference = (got - torch.from_numpy(preprocess(picture(height, width))).float()).abs()
    return difference.max().item(), difference.mean().item()


def taken(height: int, width: int) -> Tensor:
    return torch.from_numpy(np.array(picture(height, width)))[None]


@pytest.mark.parametrize(("resize", "crop"), KINDS)
def test_pillow_gives_the_same(resize: Resize, crop: float) -> None:
    preprocess = Preprocess(size=48, crop=crop, resize=resize)
    for size in SIZES:
        most, mean = far(resized(taken(*size), preprocess)[0], *size, preprocess)
        assert most <= 4
        assert mean < 0.5


@pytest.mark.parametrize(("resize", "crop"), KINDS[1::2])
@pytest.mark.parametrize("suffix", [".onnx", pytest.param(".xml", marks=pytest.mark.exhaustive)])
def test_so_does_the_file_for_images_of_any_size(suffix: str, resize: Resize, crop: float, tmp_path: Path) -> None:
    if suffix == ".xml":
        pytest.importorskip("openvino")
    preprocess = Preprocess(size=48, crop=crop, resize=resize, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    graph, path = Graph(Folded(nn.Identity()), (), preprocess).eval(), tmp_path / f"image{suffix}"
    write(graph, torch.zeros(2, 60, 70, 3, dtype=torch.uint8), path)
    file = ExportedNetwork(path)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    for size in SIZES:
        normalised = file.outputs(taken(*size))[0][0]
        most, average = far((normalised * std + mean) * 255, *size, preprocess)
        assert most < 4.5
        assert average < 0.5


@pytest.mark.parametrize(("resize", "crop"), KINDS)
def test_an_image_of_the_networks_size_enters_as_it_is(resize: Resize, crop: float) -> None:
    preprocess = Preprocess(size=32, crop=crop, resize=resize)
    levels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    entering = as_entering(preprocess.normalise(levels), preprocess)
    assert torch.equal(resized(entering, preprocess), levels.float())


def test_a_file_that_resizes_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenVINO's reader of ONNX does, which leaves the filter out."""
    graph = Graph(Folded(nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 5))), (), Preprocess(size=24)).eval()
    write(graph, torch.zeros(2, 60, 70, 3, dtype=torch.uint8), tmp_path / "a.onnx")
    trial.require_resized(tmp_path / "a.onnx", tmp_path / "a.onnx", graph)
    interpolate = torch.nn.functional.interpolate

    def coarse(x: Tensor, **given: object) -> Tensor:
        given.pop("antialias", None)
        return interpolate(x, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "interpolate", coarse)
    with pytest.raises(NumericsError, match="resized within differ"):
        trial.require_resized(tmp_path / "a.onnx", tmp_path / "a.onnx", graph)
