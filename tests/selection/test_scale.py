"""The studies of size and selection on models whose selection is known: what is there is found, and nothing else."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny import DecodedHeaders
from torch import Tensor, nn

from selkern.data.boxes import objects_of
from selkern.data.levels import PLAIN, Reading
from selkern.data.preprocess import Preprocess
from selkern.data.sources import open_source
from selkern.errors import DataError
from selkern.evaluation import evaluate
from selkern.layers.gate import Selection
from selkern.layers.selective_kernel import Branch, SelectiveKernel
from selkern.report import figures
from selkern.selection.analyses import Run
from selkern.selection.observe import Observed, observe
from selkern.selection.plots import to_svg
from selkern.selection.preference import Selected, preference, select_over, studied_units
from selkern.selection.record import record
from selkern.selection.scale import ScaleStudy, Truth, true_scale, why_not
from selkern.selection.scale import zoom_sweep as study_of
from selkern.selection.statistics import Array, within_rank_correlation
from selkern.selection.stream import stream

SIZE = 16  # px
PREPROCESS = Preprocess(size=SIZE)
N, ORIGINALS = 240, 40


class Squares(DecodedHeaders):
    """White squares of a known size, each brightness drawn by itself; the red centre says nothing of the size."""

    name = "test"

    def __init__(self, n: int = N) -> None:
        rng = np.random.default_rng(0)
        self.scale = np.exp(rng.uniform(0, np.log(4), n))
        self.brightness = rng.uniform(0.5, 1, n)
        self.noise = rng.uniform(0, 1, n)
        self.digits = np.arange(n) % ORIGINALS
        self.labels = np.zeros(n, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, epoch: int = 0, reading: Reading = PLAIN) -> Image.Image:  # noqa: ARG002
        """Green: a square of the size; red: noise; blue: how bright the whole is."""
        assert epoch == 0
        pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
        side = round(4 * self.scale[index])
        pixels[:side, :side, 1] = 255
        pixels[..., 0] = round(255 * self.noise[index])
        pixels[..., 2] = round(255 * self.brightness[index])
        return Image.fromarray(pixels)

    def where(self, index: int) -> str:
        return f"square {index}"


class Unit(nn.Module):
    """A unit whose logits are a given function of the image's mean colours; its selection is an ordinary softmax."""

    def __init__(self, extents: Sequence[int], weights: Sequence[float], channels: int = 3) -> None:
        super().__init__()
        self.extents, self.channels = tuple(extents), channels
        self.weights = nn.Parameter(torch.tensor(weights))
        self.selection = Selection()

    def forward(self, colours: Tensor) -> Tensor:
        """(N, 3) to (N, M, C): the last branch rises with the colours' weighted sum, a little less per channel."""
        drive = (colours @ self.weights)[:, None] * torch.linspace(1, 0.5, self.channels)
        rest = torch.zeros(len(colours), len(self.extents) - 1, self.channels)
        return self.selection(torch.cat([rest, drive[:, None]], dim=1))


class Fake(nn.Module):
    """Logits from the mean colours, and units that look at the same."""

    def __init__(self, **units: Unit) -> None:
        super().__init__()
        self.units = nn.ModuleDict(units)

    def forward(self, x: Tensor) -> Tensor:
        colours = x.mean(dim=(2, 3))
        for unit in self.units.values():
            unit(colours)
        return colours


FOLLOWS, OPPOSES, NOISE, BRIGHT = [0.0, 1.5, 0.0], [0.0, -1.5, 0.0], [1.5, 0.0, 0.0], [1.0, 1.0, 1.0]


def fake(**weights: Sequence[float]) -> Fake:
    return Fake(**{name: Unit((3, 5), w) for name, w in weights.items()}).eval()


def zoom_sweep(model: nn.Module, squares: Squares, indices: Sequence[int], zooms: Sequence[float]) -> ScaleStudy:
    sums = Selected(studied_units(model), zooms)
    return study_of(select_over(model, stream(squares, PREPROCESS, indices, zooms=zooms), sums))


def study_sizes(model: Fake, squares: Squares, sizes: Array | None = None, **known: object) -> ScaleStudy:
    truth = Truth(np.arange(len(squares)), squares.scale if sizes is None else sizes, squares.digits, **known)  # type: ignore[arg-type]
    return true_scale(model, squares, PREPROCESS, truth, ("one", "two", "three"), draws=60)


@pytest.mark.parametrize("extents", [(3, 5), (5, 3), (1, 9), (9, 1)])
def test_with_two_branches_it_is_the_larger_minus_the_smaller(extents: tuple[int, int]) -> None:
    a = torch.rand(4, 2, 6, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    large, small = extents.index(max(extents)), extents.index(min(extents))
    want = [float((a[n, large] - a[n, small]).mean()) for n in range(4)]
    assert preference(a, extents).tolist() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("extents", list(itertools.permutations((3, 5, 9))))
def test_with_three_branches_it_is_the_expected_window(extents: tuple[int, ...]) -> None:
    a = torch.rand(5, 3, 7, generator=torch.Generator().manual_seed(1)).softmax(dim=1).double()
    want = [sum(float(a[n, m].mean()) * extents[m] for m in range(3)) for n in range(5)]
    assert preference(a, extents).tolist() == pytest.approx(want, rel=1e-6)
    one = torch.zeros(1, 3, 2)
    one[:, 1] = 1
    assert preference(one, extents).tolist() == [extents[1]]


def test_a_selection_that_follows_the_size_is_found_and_no_other() -> None:
    squares = Squares()
    model = fake(follows=FOLLOWS, opposes=OPPOSES, noise=NOISE)
    model.train()
    study = study_sizes(model, squares)
    assert model.training, "the model is put back into its mode"
    follows, opposes, noise = study.units
    assert follows.rho is not None and opposes.rho is not None and noise.rho is not None
    assert follows.rho.value > 0.97  # squares have whole pixels: sizes tie
    assert (follows.rho.sign, opposes.rho.sign, noise.rho.sign) == (1, -1, 0)
    assert opposes.rho.value == pytest.approx(-follows.rho.value, abs=1e-9)
    assert abs(noise.rho.value) < 0.15
    assert (follows.change.sign, opposes.change.sign, noise.change.sign) == (1, -1, 0)
    values = [e.value for e in follows.groups]
    assert values == sorted(values)
    assert (study.kind, study.n, study.clusters) == ("true scale", N, ORIGINALS)
    assert study.scale is squares.scale


def test_a_selection_that_only_follows_the_intensity_is_unmasked() -> None:
    """Larger squares are also more light: with the intensity removed, nothing is left."""
    squares = Squares()
    (bright,) = study_sizes(fake(bright=BRIGHT), squares).units
    assert bright.rho is not None and bright.partial is not None
    assert bright.rho.sign == 1
    assert bright.rho.value > 0.4
    assert abs(bright.partial.value) < 0.1


def test_a_selection_that_only_follows_the_class_is_unmasked() -> None:
    """Three classes of three sizes and three brightnesses: pooled, brightness passes for size."""
    squares = Squares()
    squares.labels = np.searchsorted(np.quantile(squares.scale, [1 / 3, 2 / 3]), squares.scale)
    squares.brightness = np.array([0.2, 0.5, 0.8])[squares.labels] + (squares.brightness - 0.75) / 3
    study = study_sizes(fake(by_class=[0.0, 0.0, 2.0], follows=FOLLOWS), squares)
    by_class, follows = study.units
    assert by_class.rho is not None and by_class.within is not None and follows.within is not None
    assert by_class.rho.value > 0.8
    assert abs(by_class.within.value) < 0.15
    assert by_class.within.sign == 0
    assert follows.within.value > 0.9
    assert follows.within.sign == 1
    assert study.explained > 0.85
    assert [(c.name, c.n) for c in study.by_class] == [("one", 80), ("two", 80), ("three", 80)]
    assert [c.rho[1].sign for c in study.by_class] == [1, 1, 1]
    assert [row["class"] for row in study.class_rows()] == ["one", "one", "two", "two", "three", "three"]


def test_intensity_and_contrast_are_removed_within_classes() -> None:
    squares = Squares()
    squares.labels = np.arange(N) % 3
    (bright,) = study_sizes(fake(bright=BRIGHT), squares).units
    assert bright.within is not None and bright.within_lit is not None
    assert bright.within.sign == 1
    assert abs(bright.within_lit.value) < 0.15
    seen = observe(fake(bright=BRIGHT), squares, PREPROCESS, range(N))
    want = within_rank_correlation(squares.scale, seen.preference, squares.labels, seen.light)
    assert bright.within_lit.value == pytest.approx(want[0]), "both, the mean and the deviation of the pixels"


def test_few_images_and_equal_sizes_give_figures_without_a_warning() -> None:
    """A sample of few images may hold none of the small objects; of equal sizes a third may be empty."""
    n = 12
    squares = Squares(n)
    squares.digits = np.arange(n)
    squares.labels = np.arange(n) % 2
    squares.labels[-1] = 2  # a class of one image
    study = study_sizes(fake(follows=FOLLOWS), squares)
    assert study.units[0].within is not None
    assert np.isfinite([study.units[0].within.low, study.units[0].change.low]).all()
    sizes = np.where(np.arange(n) % 5 == 0, 3.0, 2.0)
    tied = study_sizes(fake(follows=FOLLOWS), squares, sizes)
    json.dumps(tied.to_rows(), allow_nan=False)
    for figure in (tied.plot(), figures.correlations(tied), figures.dose_response(tied)):
        to_svg(figure)


def test_few_originals_give_no_intervals_and_no_conclusion() -> None:
    squares = Squares(60)
    squares.digits = np.arange(60) % 4
    study = study_sizes(fake(follows=FOLLOWS), squares)
    assert study.units[0].within is not None
    assert study.units[0].within.value > 0.9
    assert study.units[0].within.sign == 0
    assert ["made from 4 originals" in line for line in study.doubts] == [True]


def test_sizes_that_the_class_fixes_allow_no_conclusion() -> None:
    squares = Squares(60)
    squares.labels = np.arange(60) % 3
    study = study_sizes(fake(follows=FOLLOWS), squares, np.array([10.0, 20.0, 40.0])[squares.labels])
    assert ["cannot be separated from what follows the class" in line for line in study.doubts] == [True]
    assert study_sizes(fake(follows=FOLLOWS), squares).doubts == ()


def test_objects_of_one_size_are_not_studied() -> None:
    assert "nearly of one size" in why_not(np.linspace(60, 63, 50))
    assert "7 of the images have one" in why_not(np.linspace(1, 60, 7))
    assert why_not(np.linspace(60, 90, 50)) == ""
    squares = Squares(20)
    model = fake(follows=FOLLOWS)
    truth = Truth(np.arange(20), np.full(20, 64.0), np.arange(20))
    run = Run(model, squares, PREPROCESS, ("one",), np.arange(20), truth=truth)
    run.known()
    assert run.studies.truth is None
    assert ["nearly of one size" in note for note in run.studies.notes] == [True]


def test_the_same_objects_stored_larger_give_the_same_figures(tmp_path: Path) -> None:
    """Half of the pictures stored three times as large: the network is shown the same, so the figures are the same."""
    squares = Squares(40)
    rhos = []
    for times in (1, 3):
        folder = tmp_path / str(times)
        rows = []
        for index in range(40):
            name = "one" if index < 20 else "two"
            image = squares.read(index)
            side, factor = round(4 * squares.scale[index]), times if index % 2 else 1
            for part in ("train", "val", "test") if index % 20 == 0 else ("test",):
                (folder / part / name).mkdir(parents=True, exist_ok=True)
                stored = image.resize((factor * SIZE, factor * SIZE), Image.Resampling.NEAREST)
                stored.save(folder / part / name / f"{index:02}.png")
            rows.append(f"test/{name}/{index:02}.png,0,0,{side * factor},{side * factor}")
        table = folder / "boxes.csv"
        table.write_text("path,x0,y0,x1,y1\n" + "\n".join(rows))
        split = open_source(str(folder)).test
        result = objects_of(table, split, PREPROCESS)
        truth = Truth(result.indices, result.sizes, result.indices)
        (unit,) = true_scale(fake(follows=FOLLOWS), split, PREPROCESS, truth, draws=1).units
        assert unit.rho is not None
        rhos.append(unit.rho.value)
        np.testing.assert_allclose(result.sizes, np.round(4 * squares.scale))
    assert rhos[0] > 0.99
    assert rhos[1] > 0.99


def test_the_study_can_fail() -> None:
    """The same selection against sizes of other images: no correlation is left."""
    squares = Squares()
    shuffled = np.random.default_rng(5).permutation(squares.scale)
    (unit,) = study_sizes(fake(follows=FOLLOWS), squares, shuffled).units
    assert unit.rho is not None
    assert abs(unit.rho.value) < 0.15


def test_groups_and_curves_are_direct_means() -> None:
    squares = Squares(60)
    model = Fake(two=Unit((5, 3), FOLLOWS, 4), three=Unit((3, 9, 5), NOISE, 2)).eval()
    groups = np.arange(60) % 3
    indices = list(range(59, -1, -1))
    seen = observe(model, squares, PREPROCESS, indices, groups=groups)
    images = np.stack([PREPROCESS(squares.read(i)) for i in indices])
    with record(model) as selection, torch.no_grad():
        model(PREPROCESS.normalise(torch.from_numpy(images)))
    flat = images.reshape(60, -1) / 255
    light = np.stack([flat.mean(axis=1), flat.std(axis=1, ddof=1)], axis=1)
    np.testing.assert_allclose(seen.light, light, rtol=1e-5)
    for number, (name, extents, largest) in enumerate((("units.two", (5, 3), 0), ("units.three", (3, 9, 5), 1))):
        a = selection[name]
        np.testing.assert_allclose(seen.preference[:, number], preference(a, extents), rtol=1e-5)
        want = np.stack([a[torch.from_numpy(groups == g), largest].mean(dim=0) for g in range(3)])
        np.testing.assert_allclose(seen.curves[number], want, rtol=1e-5)
    assert seen.curves[0].shape == (3, 4)


def test_an_evaluation_observes_what_a_pass_of_its_own_does(monkeypatch: pytest.MonkeyPatch) -> None:
    squares, model = Squares(230), fake(follows=FOLLOWS)
    network = nn.Sequential(model, nn.Flatten())
    observed = Observed(network, channels=True)
    with observed.watching():
        evaluate(network, squares, tuple("abc"), PREPROCESS, after=observed.add)
    indices = np.arange(229, 0, -2)
    groups = (indices % 3).astype(np.int64)
    want, seen = observe(network, squares, PREPROCESS, indices.tolist(), groups=groups), observed.of(indices, groups)
    assert seen is not None
    for name in ("preference", "light"):
        np.testing.assert_allclose(getattr(seen, name), getattr(want, name), rtol=1e-6)
    np.testing.assert_allclose(seen.curves[0], want.curves[0], rtol=1e-6)
    assert observed.of(np.array([230])) is None, "an image that was not evaluated"
    monkeypatch.setattr("selkern.selection.observe.MOST_BYTES", 100)
    short = Observed(network, channels=True)
    with short.watching():
        evaluate(network, squares, tuple("abc"), PREPROCESS, after=short.add)
    assert short.of(indices, groups) is None, "the curves would need every image's channels"
    assert short.of(indices) is not None


def test_more_images_than_a_batch_are_the_same_images() -> None:
    """observe works in batches of 100; groups must stay with their images."""
    squares = Squares(230)
    groups = (np.arange(230) >= 150).astype(np.int64)
    model = fake(follows=FOLLOWS)
    seen = observe(model, squares, PREPROCESS, range(230), groups=groups)
    parts = [observe(model, squares, PREPROCESS, list(part)) for part in (range(150), range(150, 230))]
    np.testing.assert_allclose(seen.preference, np.concatenate([part.preference for part in parts]), rtol=1e-6)
    np.testing.assert_allclose(seen.curves[0], np.concatenate([part.curves[0] for part in parts]), rtol=1e-6)


def test_the_sweep_pairs_each_image_with_itself() -> None:
    """The change is far surer than the groups: what images differ in cancels out."""
    squares = Squares(40)
    model = fake(follows=FOLLOWS, noise=NOISE)
    indices = [3, 1, 38, 20, 7, 9]
    study = zoom_sweep(model, squares, indices, (1.0, 2.0))
    pairs = [observe(model, squares, PREPROCESS, indices, zoom=zoom).preference for zoom in (1.0, 2.0)]
    for u, unit in enumerate(study.units):
        difference: NDArray[np.float64] = pairs[1][:, u] - pairs[0][:, u]
        half = 1.96 * difference.std(ddof=1) / np.sqrt(6)
        assert unit.change.value == pytest.approx(difference.mean())
        assert (unit.change.low, unit.change.high) == pytest.approx(
            (unit.change.value - half, unit.change.value + half)
        )
        assert [e.value for e in unit.groups] == pytest.approx([pair[:, u].mean() for pair in pairs])
        assert (unit.mean, unit.std) == pytest.approx((pairs[0][:, u].mean(), pairs[0][:, u].std(ddof=1)))
        assert unit.curve.shape == (2, 3)
        assert unit.rho is None
    noise = study.units[1]
    assert noise.change.value == pytest.approx(0, abs=1e-6), "the red of an image is the same at every zoom"
    assert noise.groups[0].high - noise.groups[0].low > 100 * (noise.change.high - noise.change.low)
    assert (study.kind, study.n, study.group_names) == ("zoom", 6, ("1.0x", "2.0x"))


def test_rows_hold_every_figure_of_every_unit() -> None:
    squares = Squares(60)
    model = fake(a=FOLLOWS, b=NOISE)
    scale = study_sizes(model, squares)
    rows = scale.to_rows()
    assert [row["unit"] for row in rows] == ["units.a", "units.b"]
    assert {"rho", "rho_low", "rho_high", "partial_rho", "change", "n", *scale.group_names} <= rows[0].keys()
    sweep = zoom_sweep(model, squares, [0, 1], (1.0, 1.5, 2.0)).to_rows()
    assert {"1.0x", "1.5x", "2.0x", "change_low"} <= sweep[0].keys()
    assert "rho" not in sweep[0]


def test_units_whose_branches_see_the_same_are_left_out() -> None:
    same = SelectiveKernel(8, kernels=(Branch(kernel_size=3, groups=1), Branch(kernel_size=3, groups=2)), groups=1)
    dilated = SelectiveKernel(8, kernels=(Branch(kernel_size=5), Branch(kernel_size=3, dilation=2)), groups=1)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), same, SelectiveKernel(8, kernels=(3, 5), groups=1), dilated)
    assert [unit.name for unit in studied_units(model)] == ["2"]
    seen = observe(nn.Sequential(model, nn.Flatten()), Squares(4), PREPROCESS, range(4))
    assert seen.preference.shape == (4, 1)
    assert studied_units(nn.Conv2d(3, 3, 1)) == ()


def test_an_unreadable_image_is_named() -> None:
    class Broken(Squares):
        def read(self, index: int, epoch: int = 0, reading: Reading = PLAIN) -> Image.Image:
            if index == 5:
                raise DataError("the image is broken", self.where(index), "remove it")
            return super().read(index, epoch, reading)

    with pytest.raises(DataError, match="square 5"):
        observe(fake(a=NOISE), Broken(9), PREPROCESS, range(9))
