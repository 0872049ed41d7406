"""The studies beyond scale on networks whose answer is known: what was planted is found, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from shim import timm_or_skip
from tiny import DecodedHeaders
from torch import Tensor, nn

import selkern
from selkern.data.levels import PLAIN, Reading
from selkern.data.preprocess import Preprocess
from selkern.errors import NumericsError, PackageError
from selkern.layers.gate import Selection
from selkern.layers.selective_kernel import SelectiveKernel
from selkern.report.figures import channel_curves
from selkern.report.findings import of_classes
from selkern.selection import analyses as running
from selkern.selection.causal import ALL, causal
from selkern.selection.field import CHOSEN, FROZEN, LARGEST, SMALLEST, receptive_fields
from selkern.selection.intervene import choose, forced, frozen, shuffled
from selkern.selection.preference import Selected, select_over, studied_units
from selkern.selection.record import find_units, record
from selkern.selection.statistics import (
    Array,
    Moments,
    bootstrap,
    clustered_mean,
    partial_rank_correlation,
    rank_correlation,
)
from selkern.selection.stream import Pictures, stream

SIZE = 17  # px, odd: there is a pixel in the centre
PREPROCESS = Preprocess(size=SIZE)
CLASSES = ("dark", "middle", "bright")


class Patches(DecodedHeaders):
    """Grey noise of a brightness that is the class."""

    name = "test"

    def __init__(self, n: int = 90) -> None:
        self.labels = (np.arange(n) % 3).astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, epoch: int = 0, reading: Reading = PLAIN) -> Image.Image:  # noqa: ARG002
        assert epoch == 0
        rng = np.random.default_rng(index)
        middle = (60, 128, 196)[self.labels[index]]
        return Image.fromarray((middle + rng.integers(-40, 40, (SIZE, SIZE, 3))).astype(np.uint8))

    def where(self, index: int) -> str:
        return f"patch {index}"


class Rigged(nn.Module):
    """A selective-kernel unit whose gate follows the image's brightness, and whose class is read off its selection.

    Args:
        slope: of the selection with brightness; 0 for a gate that says the same to every image.
    """

    def __init__(self, slope: float, extents: Sequence[int] = (3, 5)) -> None:
        super().__init__()
        self.slope, self.extents = slope, tuple(extents)
        self.selection = Selection()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        brightness = x.mean(dim=(1, 2, 3))
        lean = self.slope * brightness[:, None] * self.scale * torch.tensor([1.0, 0.9])
        a = self.selection(torch.stack([torch.zeros_like(lean), lean], dim=1))
        share = a[:, 1].mean(dim=1)  # of the larger kernel: rises with brightness
        return torch.stack([0.5 - share - 0.05, torch.zeros_like(share), share - 0.5 - 0.05], dim=1)


def batches(n: int = 90, zooms: Sequence[float] = (1.0,)) -> Iterator[tuple[Pictures, ...]]:
    return stream(Patches(n), PREPROCESS, zooms=zooms)


def pictures(n: int = 90) -> Iterator[Pictures]:
    return (together[0] for together in batches(n))


def selected(model: nn.Module, n: int = 90, zooms: Sequence[float] = (1.0, 1.5)) -> Selected:
    return select_over(model, batches(n, zooms), Selected(studied_units(model), zooms, CLASSES))


def test_a_planted_effect_is_found_per_class() -> None:
    sums = selected(Rigged(2.0).eval())
    rows = {row.name: row for row in sums.class_rows()}
    means = [rows[name].preference[0].value for name in CLASSES]
    assert means == sorted(means)
    assert rows["dark"].preference[0].high < rows["middle"].preference[0].low
    assert rows["middle"].preference[0].high < rows["bright"].preference[0].low
    assert [row.n for row in rows.values()] == [30, 30, 30]
    (first, score), *_ = sums.most_different()
    assert first.name in ("dark", "bright")
    assert abs(score) > 1
    table = sums.class_table()
    assert len(table) == 3
    assert {"class", "unit", "n", "lean_1x", "lean_1.5x", "lean_1x_low"} <= table[0].keys()


def test_a_class_is_said_to_lean_as_far_as_it_differs_from_the_mean_of_all() -> None:
    sums = selected(Rigged(0.01).eval())
    mean = sums.at_zoom.mean[0, 0]
    first, *_ = of_classes(sums)
    (row, score), *_ = sums.most_different()
    side, sign = ("larger", "+") if score > 0 else ("smaller", "-")
    apart = row.preference[0].value - mean
    assert abs(apart) < 0.005
    said = re.search(
        rf"leans more to the {side} kernels in \S+ than the mean of all images does: \{sign}([\d.]+) \[", first
    )
    assert said is not None
    assert float(said[1]) == pytest.approx(abs(apart), rel=0.1), "two digits say something"
    assert "may be nothing" not in first
    nothing = of_classes(selected(Rigged(0.0).eval()))
    assert all(line.endswith("and may be nothing.") for line in nothing)


def test_a_constant_gate_shows_zero() -> None:
    model = Rigged(0.0).eval()
    sums = selected(model)
    for row in sums.class_rows():
        assert row.preference[0].value == pytest.approx(0, abs=1e-6)
    change = sums.change.estimates()[1][0]
    assert change.low <= 0 <= change.high
    for effect in causal(model, pictures(), sums.mean_selection()).effects:
        if effect.what in ("frozen", "shuffled"):
            assert (effect.change.value, effect.change.low, effect.change.high, effect.flipped) == (0, 0, 0, 0)


def test_choosing_that_matters_is_seen_to_matter() -> None:
    """The class is read off the selection: frozen, all look the same; with another's selection, like the other."""
    model = Rigged(2.0).eval()
    model.train()
    study = causal(model, pictures(), selected(model).mean_selection())
    assert model.training, "the model is put back into its mode"
    assert study.top1.value == 1.0
    effects = {e.what: e for e in study.effects if e.unit == ALL}
    assert effects["frozen"].top1.value == pytest.approx(1 / 3)
    assert effects["frozen"].change.sign == -1
    assert effects["smallest kernel"].top1.value == pytest.approx(1 / 3)
    assert effects["largest kernel"].top1.value == pytest.approx(1 / 3)
    assert effects["shuffled"].top1.value == 0.0, "the classes come in turn: the image before is of another one"
    single = [e for e in study.effects if e.unit != ALL]
    assert len(single) == 1
    assert single[0].change == effects["frozen"].change
    assert len(study.to_rows()) == 5


def test_the_sums_are_those_of_all_values() -> None:
    model = Rigged(1.5).eval()
    sums = selected(model, 230)
    with record(model) as selection, torch.no_grad():
        x = torch.cat([batch.x for batch in pictures(230)])
        model(x)
        (a,) = selection.values()
    lean = (a[:, 1] - a[:, 0]).mean(dim=1).double().numpy()
    np.testing.assert_allclose(sums.at_zoom.mean[0], lean.mean(), rtol=1e-5)
    np.testing.assert_allclose(sums.at_zoom.std[0], lean.std(ddof=1), rtol=1e-5)
    (mean,) = sums.mean_selection().values()
    np.testing.assert_allclose(mean, a.double().mean(dim=0).numpy(), rtol=1e-6)


def test_moments_of_parts_are_moments_of_the_whole() -> None:
    x = np.random.default_rng(0).normal(5, 2, (1000, 2, 3))
    moments = Moments((2, 3))
    for part in np.split(x, [0, 1, 7, 400, 999]):
        moments.add(part)
    np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.std, x.std(axis=0, ddof=1), rtol=1e-12)
    assert moments.estimates()[1][2].value == pytest.approx(x[:, 1, 2].mean())


def test_a_changed_selection_is_what_the_branches_are_weighed_by() -> None:
    """Forced to one branch, a unit gives that branch's map; frozen and shuffled, the maps so weighed."""
    torch.manual_seed(0)
    unit = SelectiveKernel(8, kernels=(3, 5), groups=2, reduction=2).eval()
    x = torch.randn(4, 8, 9, 9)
    (name,) = find_units(unit)
    with torch.no_grad():
        maps = [branch(x) for branch in unit.branches]
        before = unit(x)
        for branch in range(2):
            with choose(unit, {name: forced(branch)}):
                torch.testing.assert_close(unit(x), maps[branch])
        mean = np.stack([np.linspace(0, 1, 8), 1 - np.linspace(0, 1, 8)])
        with choose(unit, {name: frozen(mean)}):
            weights = torch.from_numpy(mean).float()[:, None, :, None, None]
            torch.testing.assert_close(unit(x), weights[0] * maps[0] + weights[1] * maps[1])
        with record(unit) as selection:
            unit(x)
            a = selection[name].roll(1, 0)[..., None, None]
        with choose(unit, {name: shuffled}):
            torch.testing.assert_close(unit(x), a[:, 0] * maps[0] + a[:, 1] * maps[1])
        torch.testing.assert_close(unit(x), before, rtol=0, atol=0)
    with pytest.raises(KeyError), choose(unit, {"elsewhere": shuffled}):
        pass


def test_the_field_is_that_of_the_kernel_that_is_forced() -> None:
    """One unit over the pixels: nothing outside its windows, and the radius of a 3x3 or of nine taps two apart."""
    torch.manual_seed(0)
    unit = SelectiveKernel(3, 3, kernels=(3, 5), groups=1, reduction=2, norm="none", activation="none").eval()
    for branch in unit.branches:
        branch.conv.weight.data.fill_(1.0)  # type: ignore[union-attr, operator]
    study = receptive_fields(unit, pictures(6), {next(iter(find_units(unit))): np.full((2, 3), 0.5)})
    assert (study.n, study.side) == (6, SIZE)
    label, centre = study.fields[0].label, SIZE // 2
    spread = np.sqrt(2 * 2 / 3)  # of nine equal taps one apart
    for how, step in ((SMALLEST, 1), (LARGEST, 2)):
        field = study.of(label, how)
        taps = field.energy[centre - step : centre + step + 1 : step, centre - step : centre + step + 1 : step]
        assert field.energy.sum() == pytest.approx(1)
        assert taps.sum() == pytest.approx(1, abs=2e-2), "gradient outside of the kernel's taps"
        assert field.radius.value == pytest.approx(step * spread, rel=0.1)
    assert study.of(label, SMALLEST).radius.value < study.of(label, CHOSEN).radius.value
    assert study.of(label, FROZEN).radius.value < study.of(label, LARGEST).radius.value
    assert {row["selection"] for row in study.to_rows()} == {CHOSEN, SMALLEST, LARGEST, FROZEN}


class Copied(nn.Module):
    """The pattern of the circulating code: lists of convolutions and of linear maps, softmax over an early axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 6, k, padding=k // 2), nn.ReLU()) for k in (1, 3, 7))
        self.fc, self.fcs = nn.Linear(6, 4), nn.ModuleList(nn.Linear(4, 6) for _ in range(3))
        self.softmax, self.axis = nn.Softmax(dim=axis), axis

    def forward(self, x: Tensor) -> Tensor:
        u = torch.stack([conv(x) for conv in self.convs], dim=self.axis)
        z = self.fc(u.sum(dim=self.axis).mean(dim=(2, 3)))
        weights = torch.stack([fc(z)[:, :, None, None] for fc in self.fcs], dim=self.axis)
        return (self.softmax(weights) * u).sum(dim=self.axis)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_module_of_the_users_is_studied_as_it_is(axis: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Copied(axis), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()
    (unit,) = studied_units(model)
    assert (unit.extents, unit.axis) == ((1, 3, 7), axis)
    x = torch.randn(5, 3, SIZE, SIZE)
    with record(model) as selection, torch.no_grad():
        expected = model(x)
    a = selection[unit.name]
    assert a.shape == (5, 3, 6)
    torch.testing.assert_close(a.sum(dim=1), torch.ones(5, 6))
    with torch.no_grad(), choose(model, {unit.name: frozen(a[2].double().numpy())}):
        torch.testing.assert_close(model(x)[2], expected[2])
        assert not torch.allclose(model(x)[0], expected[0])
    run = running.Run(model, Patches(30), PREPROCESS, CLASSES, np.arange(30), plan=running.Plan(looks=1))
    result = run.all()
    assert set(result.to_dict()) == {"scale_sweep", "causal", "fields", "classes"}
    assert len(result.looks) == 1


@pytest.mark.exhaustive
def test_timms_network_is_studied_as_it_is() -> None:
    timm = timm_or_skip()
    torch.manual_seed(0)
    model = timm.create_model("skresnext50_32x4d", num_classes=3).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    preprocess = Preprocess(size=64)
    plan = running.Plan(images=4, field_images=2, looks=1, zooms=(1.0, 2.0))
    result = running.Run(model, Patches(6), preprocess, CLASSES, np.arange(6), plan=plan).all()
    assert len(result.to_dict()["scale_sweep"]) == 16
    assert result.fields is not None
    assert result.fields.n == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    json.dumps(result.to_dict())


def test_a_stop_keeps_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: object, **named: object) -> Iterator[tuple[Pictures, ...]]:
        yield from islice(stream(*args, **named), 2)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "stream", stopped)
    result = running.Run(Rigged(2.0).eval(), Patches(450), PREPROCESS, CLASSES, np.arange(450)).all()
    assert result.stopped == "enlargement"
    assert result.sweep is not None
    assert result.sweep.n == 200
    assert result.causal is None


def test_every_result_is_a_table_and_a_picture() -> None:
    model = Rigged(2.0).eval()
    study = running.Run(SelectiveKernelNet(), Patches(12), PREPROCESS, CLASSES, np.arange(12)).all()
    results = [study.selected, study.sweep, study.causal, study.fields, selected(model)]
    for result in results:
        assert result is not None
        assert result.to_rows()
        assert result.plot().axes
        try:
            import pandas  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
        except ImportError:
            with pytest.raises(PackageError, match="pip install pandas"):
                result.to_frame()
        else:
            assert len(result.to_frame()) == len(result.to_rows())


class SelectiveKernelNet(nn.Module):
    """The smallest network with a unit, from images to classes."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = SelectiveKernel(3, 8, kernels=(3, 5), groups=1, reduction=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.unit(x).mean(dim=(2, 3)))


def test_no_units_and_no_images() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert running.Run(plain, Patches(6), PREPROCESS, CLASSES, np.arange(6)).all().to_dict() == {}
    model = Rigged(1.0).eval()
    with pytest.raises(ValueError, match="no images"):
        select_over(model, [], Selected(studied_units(model), (1.0,)))
    with pytest.raises(ValueError, match="no images"):
        receptive_fields(model, [])
    with pytest.raises(ValueError, match="whose class is known"):
        causal(model, [], {})


def coverage(draw: object, truth: float, times: int, seed: int = 0) -> float:
    """Share of intervals that hold the truth."""
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(times):
        estimate = draw(rng)  # type: ignore[operator]
        hits += estimate.low <= truth <= estimate.high
    return hits / times


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """95 % nominal, 93 to 97 asked; an interval that takes the values of one cluster for independent fails."""

    def moments(rng: np.random.Generator) -> object:
        sums = Moments((1,))
        for part in np.split(rng.gamma(4, 1, (200, 1)), 4):
            sums.add(part)
        return sums.estimates()[0]

    def clustered(rng: np.random.Generator, known: bool = True) -> object:
        clusters: NDArray[np.int64] = np.repeat(np.arange(60), 8)
        x: Array = 3 + rng.normal(size=60)[clusters] + rng.normal(size=480)
        return clustered_mean(x, clusters if known else np.arange(480))

    assert 0.93 <= coverage(moments, 4.0, 2000) <= 0.97
    assert 0.93 <= coverage(clustered, 3.0, 2000) <= 0.97
    assert coverage(lambda rng: clustered(rng, known=False), 3.0, 300) < 0.8


@pytest.mark.exhaustive
def test_intervals_of_rank_correlations_hold_the_truth() -> None:
    """Ten columns that owe nothing to x and ten that follow it, whose rho is known: 6 / pi asin(r / 2)."""
    columns, r = 10, 0.6
    hits: Array = np.zeros(2 * columns)
    rng, runs = np.random.default_rng(0), 100
    truth = np.repeat([0.0, 6 / np.pi * np.arcsin(r / 2)], columns)
    for _ in range(runs):
        x, free, noise = rng.normal(size=150), rng.normal(size=(150, columns)), rng.normal(size=(150, columns))
        y = np.concatenate([free, r * x[:, None] + np.sqrt(1 - r * r) * noise], axis=1)
        result = bootstrap(lambda i, x=x, y=y: rank_correlation(x[i], y[i]), np.arange(150), draws=200)  # type: ignore[misc]
        hits += [e.low <= rho <= e.high for e, rho in zip(result, truth, strict=True)]
    for share in hits.reshape(2, columns).sum(axis=1) / (runs * columns):
        assert 0.93 <= share <= 0.97


def test_what_is_not_finite_is_named_and_not_added() -> None:
    model = Rigged(2.0).eval()
    sums = Selected(studied_units(model), (1.0,), CLASSES)
    (good,) = next(batches(3))
    select_over(model, [(good,)], sums)
    x = good.x.clone()
    x[1, 0, 0, 0] = float("nan")
    nonfinite = Pictures(x, good.labels, good.indices, good.light)
    with pytest.raises(NumericsError, match=r"not finite \| image 5 of the pass, Rigged"):
        select_over(model, [(nonfinite,)], sums)
    assert sums.n == 3
    assert np.isfinite(sums.at_zoom.mean).all()


def test_curves_of_chosen_units() -> None:
    torch.manual_seed(0)
    model = selkern.create_model("sknet_mini", num_classes=3).eval()
    result = running.Run(
        model, Patches(6), PREPROCESS, CLASSES, np.arange(6), plan=running.Plan(field_images=2, looks=0)
    ).all()
    assert result.sweep is not None
    assert len(channel_curves(result.sweep, ["SK_3_2", "SK_2_1"]).axes) == 2
    with pytest.raises(ValueError, match="no units SK_9_9"):
        channel_curves(result.sweep, ["SK_9_9"])
    rows = result.channels()["scale_sweep_channels"]
    assert {row["unit"]: row["channel"] for row in rows}["SK_2_1"] == 31
    assert {"1.0x", "2.0x"} < rows[0].keys()


def test_two_things_are_removed_at_once() -> None:
    """y follows z and w, which x follows too: with one removed something is left, with both nothing."""
    z, w, noise_x, noise_y = np.random.default_rng(0).normal(size=(4, 4000))
    x, y = z + w + noise_x, (z + w + noise_y)[:, None]
    one = partial_rank_correlation(x, y, z)[0]
    both = partial_rank_correlation(x, y, np.stack([z, w], axis=1))[0]
    assert one > 0.4
    assert abs(both) < 0.08


def test_the_public_probe_is_untouched() -> None:
    model = selkern.create_model("sknet_mini", num_classes=3).eval()
    with selkern.record(model) as selection, torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    assert all(a.shape[:2] == (2, 2) for a in selection.values())
