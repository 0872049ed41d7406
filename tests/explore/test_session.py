"""The explorer's figures are the library's own, and those of independent computations."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import selkern
from explore.serving import SCENES, digits_session
from selkern.data.preprocess import Preprocess, Resize
from selkern.errors import DataError, NumericsError, UsageError
from selkern.explore import pictures as kept
from selkern.explore.opening import open_session
from selkern.explore.pictures import Pictures
from selkern.explore.session import Ask, Session
from selkern.explore.view import Picture, View, show
from selkern.inference.network import load
from selkern.selection.field import CHOSEN, receptive_fields
from selkern.selection.intervene import choose, forced, frozen
from selkern.selection.record import find_units, record
from selkern.selection.stream import Pictures as Batch


@pytest.fixture(scope="module")
def session() -> Session:
    return digits_session()


def input_of(session: Session, name: str, zoom: float = 1.0) -> Tensor:
    """(1, 3, H, W) as an evaluation makes it."""
    split = session.pictures.split
    assert split is not None
    pixels = session.preprocess(split.read(int(name[1:])), zoom)
    return session.preprocess.normalise(torch.from_numpy(pixels)[None])


def logits_of(session: Session, x: Tensor, changes: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.inference_mode(), choose(session.model, changes or {}), record(session.model) as selection:
        return session.model(x), dict(selection)


def shown(answer: dict[str, Any]) -> NDArray[np.uint8]:
    data = base64.b64decode(answer["image"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)))


def classes_of(answer: dict[str, Any], which: str = "p") -> dict[str, float]:
    return {row["class"]: row[which] for row in answer["top"]}


@pytest.mark.parametrize("zoom", [1, 1.37, 2, 3])
def test_what_is_shown_predicted_and_chosen_is_what_an_evaluation_of_the_enlarged_image_gives(
    zoom: float, session: Session
) -> None:
    answer = session.look(Ask(picture="r3", view=View(size=zoom)))
    x = input_of(session, "r3", zoom)
    logits, selection = logits_of(session, x)
    p = logits.softmax(dim=1)[0]
    best = p.argsort(descending=True)[:5].tolist()
    assert list(classes_of(answer)) == [session.classes[c] for c in best]
    assert list(classes_of(answer).values()) == pytest.approx(p[best].tolist(), abs=1e-4)
    for unit, row in zip(session.units, answer["units"], strict=True):
        assert row == pytest.approx(selection[unit.name][0].mean(dim=1).tolist(), abs=1e-4)
    split = session.pictures.split
    assert split is not None
    assert np.array_equal(shown(answer).transpose(2, 0, 1), session.preprocess(split.read(3), zoom))
    assert answer["own"] is None


def test_a_forced_unit_is_the_library_s_own_forcing(session: Session) -> None:
    changes = {unit.name: forced(0 if u % 2 else 1) for u, unit in enumerate(session.units)}
    answer = session.look(Ask(picture="r1", choices={u: "0" if u % 2 else "1" for u in range(6)}))
    logits, _ = logits_of(session, input_of(session, "r1"), changes)
    plain, selection = logits_of(session, input_of(session, "r1"))
    p = dict(zip(session.classes, logits.softmax(dim=1)[0].tolist(), strict=True))
    before = dict(zip(session.classes, plain.softmax(dim=1)[0].tolist(), strict=True))
    for name, value in classes_of(answer).items():
        assert value == pytest.approx(p[name], abs=1e-4)
        assert classes_of(answer, "own")[name] == pytest.approx(before[name], abs=1e-4)
    assert p != pytest.approx(before, abs=0.01)
    assert answer["units"] == [[1, 0] if u % 2 else [0, 1] for u in range(6)]
    own = [selection[unit.name][0].mean(dim=1).tolist() for unit in session.units]
    assert np.array(answer["own"]) == pytest.approx(np.array(own), abs=1e-4)


def test_the_mean_is_that_of_the_pictures_and_freezes_as_the_library_does() -> None:
    session = digits_session()
    assert session.mean_facts()["done"] is False
    next(session.warm())
    assert session.mean_facts()["n"] == 1
    answer = session.look(Ask(picture="r5", choices=dict.fromkeys(range(6), "mean")))  # which waits for the whole mean
    assert {**session.mean_facts(), "units": None} == {"n": SCENES, "of": SCENES, "done": True, "units": None}
    each = [logits_of(session, input_of(session, f"r{i}"))[1] for i in range(SCENES)]
    means = {name: torch.stack([one[name][0] for one in each]).double().mean(dim=0).numpy() for name in each[0]}
    for name, mean in means.items():
        assert session.means.of[name] == pytest.approx(mean, abs=1e-5)
    logits, _ = logits_of(session, input_of(session, "r5"), {name: frozen(mean) for name, mean in means.items()})
    p = dict(zip(session.classes, logits.softmax(dim=1)[0].tolist(), strict=True))
    assert classes_of(answer) == pytest.approx({name: p[name] for name in classes_of(answer)}, abs=1e-4)


def test_without_pictures_of_the_run_there_is_no_mean() -> None:
    session = digits_session()
    session.pictures.offered = ()
    with pytest.raises(UsageError, match="no mean is known"):
        session.look(Ask(picture="r0", choices={2: "mean"}))


def test_another_picture_s_selection_is_taken_as_it_is_shown(session: Session) -> None:
    view = View(size=2, turn=30)
    theirs = session.look(Ask(picture="r7", view=view))
    mine = session.look(Ask(picture="r2"))
    both = session.look(Ask(picture="r2", choices={1: "other", 4: "other"}, donor="r7", donor_view=view))
    assert both["units"][1] == theirs["units"][1]
    assert both["units"][4] == theirs["units"][4]
    assert both["own"] == mine["units"]
    assert both["units"][0] == mine["units"][0]
    with pytest.raises(UsageError, match="no other picture"):
        session.look(Ask(picture="r2", choices={1: "other"}))


def test_channels_and_field_are_those_of_the_library(session: Session) -> None:
    x = input_of(session, "r4")
    pictures = Batch(x, np.zeros(1, int), np.zeros(1, int), np.zeros((1, 2)))
    fields = receptive_fields(session.model, [pictures], ways=(CHOSEN,))
    _, selection = logits_of(session, x)
    for u, unit in enumerate(session.units):
        answer = session.look(Ask(picture="r4", unit=u, with_field=True))
        assert np.array(answer["channels"]) == pytest.approx(selection[unit.name][0].numpy(), abs=1e-3)
        field = answer["field"]
        energy = np.frombuffer(base64.b64decode(field["map"]), np.uint8).reshape(48, 48).astype(float) ** 2
        wanted = fields.of(unit.label)
        assert field["radius"] == pytest.approx(float(wanted.radii[0]), abs=1e-2)
        assert energy / energy.sum() == pytest.approx(wanted.energy, abs=2e-3)
        rows, columns = np.indices(energy.shape)
        middle = [(wanted.energy * axis).sum() + 0.5 for axis in (columns, rows)]
        assert [field["x"], field["y"]] == pytest.approx(middle, abs=1e-2)


def test_the_field_of_a_large_input_is_drawn_in_cells() -> None:
    preprocess = Preprocess(size=150)
    torch.manual_seed(0)
    unit = selkern.SelectiveKernel(3, 8, groups=1, reduction=4)
    model = nn.Sequential(unit, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()
    session = Session(model, preprocess, tuple("abcdefghij"), Pictures(preprocess, None, ()), title="large")
    file = io.BytesIO()
    photo(150, 150).save(file, "PNG")
    field = session.look(Ask(picture=session.pictures.add(file.getvalue()), unit=0, with_field=True))["field"]
    assert field["cells"] == 64
    cells = np.frombuffer(base64.b64decode(field["map"]), np.uint8).reshape(64, 64)
    # The unit's map is as large as the input: pixel 75 and two around it, of 150 in 64 cells of 2 or 3.
    assert {tuple(place) for place in np.argwhere(cells > 0)} <= {(r, c) for r in (31, 32, 33) for c in (31, 32, 33)}
    assert cells.max() == 255
    assert [field["x"], field["y"]] == pytest.approx([75.5, 75.5], abs=0.8)


def test_a_field_is_what_changes_the_unit_s_centre_and_grows_with_the_kernel(session: Session) -> None:
    """By differences: no pixel outside the field's map moves the unit's output, the strongest one inside does."""
    unit = session.units[0]
    answers = {
        word: session.look(Ask(picture="r4", unit=0, with_field=True, choices={0: word}))["field"] for word in "01"
    }
    assert answers["0"]["radius"] < answers["1"]["radius"]
    shown_map = np.frombuffer(base64.b64decode(answers["0"]["map"]), np.uint8).reshape(48, 48)
    module = dict(session.model.named_modules())[unit.name]
    x = input_of(session, "r4")

    def centre(changed: Tensor) -> Tensor:
        kept_output: list[Tensor] = []
        handle = module.register_forward_hook(lambda _m, _i, output: kept_output.append(output))
        with torch.inference_mode(), choose(session.model, {unit.name: forced(0)}):
            session.model(changed)
        handle.remove()
        v = kept_output[0]
        return v[0, :, v.shape[2] // 2, v.shape[3] // 2]

    outside, inside = x.clone(), x.clone()
    outside[..., torch.from_numpy(shown_map == 0)] += 0.5
    row, column = np.unravel_index(shown_map.argmax(), shown_map.shape)
    inside[..., row, column] += 0.5
    assert torch.allclose(centre(outside), centre(x), atol=2e-2)
    assert (centre(inside) - centre(x)).abs().max() > 0.1


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture with large and small structures."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (7, 9, 3)).astype(np.uint8)).resize((width, height))
    fine = random.integers(-20, 20, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + fine).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize("zoom", [1, 1.01, 1.5, 2.25, 3])
def test_an_enlargement_is_that_of_the_preprocessing_at_every_shape(zoom: float, resize: Resize) -> None:
    preprocess = Preprocess(size=64, crop=0.875, resize=resize)
    for image in (photo(300, 200), photo(90, 400), photo(64, 64)):
        reported = show(Picture.of(image, preprocess), View(size=zoom), preprocess)
        assert np.array_equal(np.asarray(reported).transpose(2, 0, 1), preprocess(image, zoom))


def test_an_enlargement_about_a_point_stays_within_what_the_network_sees() -> None:
    preprocess = Preprocess(size=64)
    picture = Picture.of(photo(64, 64), preprocess)
    for (x, y), (left, top) in {
        (0.25, 0.75): (0, 32),
        (0, 0): (0, 0),
        (1, 0.5): (32, 16),
        (0.4, 0.5): (9.6, 16),
    }.items():
        reported = show(picture, View(size=2, x=x, y=y), preprocess)
        box = (left, top, left + 32, top + 32)
        wanted = picture.cut.resize((64, 64), Image.Resampling.BICUBIC, box=box)
        assert np.abs(np.asarray(reported).astype(int) - np.asarray(wanted)).max() <= 1


def test_below_size_one_what_lies_around_comes_in_and_beyond_it_the_mean_colour() -> None:
    image = photo(64, 64)
    preprocess = Preprocess(size=64, mean=(0.2, 0.4, 0.6))
    reported = show(Picture.of(image, preprocess), View(size=0.5, x=0.1), preprocess)
    wanted = Image.new("RGB", (64, 64), (51, 102, 153))
    wanted.paste(image.resize((32, 32), Image.Resampling.BICUBIC), (16, 16))
    assert np.array_equal(np.asarray(reported), np.asarray(wanted))
    wide = photo(192, 64)  # of which the network sees the middle third at size 1, and more below it
    reported = show(Picture.of(wide, preprocess), View(size=0.5), preprocess)
    wanted = Image.new("RGB", (64, 64), (51, 102, 153))
    wanted.paste(wide.resize((64, 32), Image.Resampling.BICUBIC, box=(32, 0, 160, 64)), (0, 16))
    assert np.array_equal(np.asarray(reported), np.asarray(wanted))


def test_a_large_picture_is_kept_smaller_and_shown_within_a_few_grey_levels() -> None:
    image, preprocess = photo(3000, 2200), Preprocess(size=64)
    picture = Picture.of(image, preprocess)
    assert picture.nbytes < 3 * image.width * image.height / 10
    assert np.array_equal(np.asarray(picture.cut).transpose(2, 0, 1), preprocess(image))
    left, top, right, bottom = preprocess.region(*image.size)
    x, y, half = (left + right) / 2, (top + bottom) / 2, (right - left) / 2 / 0.8
    wanted = preprocess.show(image, (x - half, y - half, x + half, y + half))
    reported = show(picture, View(size=0.8), preprocess)
    assert np.abs(np.asarray(reported).astype(int) - np.asarray(wanted)).max() <= 3


def test_turn_blur_and_light() -> None:
    preprocess = Preprocess(size=64)
    picture = Picture.of(photo(64, 64), preprocess)
    pixels = np.asarray(picture.cut)
    assert np.array_equal(np.asarray(show(picture, View(turn=90), preprocess)), np.rot90(pixels, -1))
    assert np.array_equal(np.asarray(show(picture, View(turn=-90), preprocess)), np.rot90(pixels))
    assert not np.asarray(show(picture, View(light=0), preprocess)).any()
    half = np.asarray(show(picture, View(light=0.5), preprocess)).astype(float)
    assert np.abs(half - pixels / 2).max() <= 0.5
    blurred = np.asarray(show(picture, View(blur=0.1), preprocess)).astype(float)
    assert blurred.mean() == pytest.approx(pixels.mean(), abs=1)
    assert np.diff(blurred, axis=0).std() < np.diff(pixels.astype(float), axis=0).std() / 4


BAD: dict[str, Any] = {
    "nothing": None,
    "a list": [],
    "no picture": {"view": {}},
    "a picture that is a number": {"picture": 3},
    "a size beyond": {"picture": "r0", "view": {"size": 3.1}},
    "a size that is no number": {"picture": "r0", "view": {"size": "1"}},
    "a size that is not finite": {"picture": "r0", "view": {"size": float("nan")}},
    "an unknown field": {"picture": "r0", "view": {"sharpen": 1}},
    "a view that is a list": {"picture": "r0", "view": [1]},
    "a unit that is not there": {"picture": "r0", "unit": 6},
    "a unit below the first": {"picture": "r0", "unit": -1},
    "a unit that is true": {"picture": "r0", "unit": True},
    "a branch that is not there": {"picture": "r0", "choices": {"0": "2"}},
    "a choice that is no word": {"picture": "r0", "choices": {"0": "largest"}},
    "a choice of a unit that is not there": {"picture": "r0", "choices": {"17": "0"}},
    "choices by name": {"picture": "r0", "choices": {"stages.0.0.mixer": "0"}},
    "choices that are a list": {"picture": "r0", "choices": ["0"]},
}


@pytest.mark.parametrize("values", BAD.values(), ids=BAD)
def test_a_question_that_makes_no_sense_is_an_error_of_one_line(values: Any, session: Session) -> None:
    with pytest.raises(UsageError) as error:
        session.look(Ask.from_dict(values))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "r", "r12", "r-1", "r99999999999999", "x", "u0", "../r0", "r0\x00"])
def test_a_picture_that_is_not_there(name: str, session: Session) -> None:
    with pytest.raises(DataError, match="no such picture"):
        session.look(Ask(picture=name))


def test_files_that_are_no_pictures_are_named_and_the_others_shown(tmp_path: Path) -> None:
    loaded = load("sknet_mini.digits", "cpu")
    said: list[str] = []
    (tmp_path / "text.png").write_text("no picture")
    photo(40, 30).save(tmp_path / "good.png")
    files = [tmp_path / "text.png", tmp_path / "good.png"]
    data = "digits:train=20,val=20,test=20"
    session = open_session(loaded, data, files=files, say=said.append)
    assert [each["text"] for each in session.facts()["added"]] == ["good.png"]
    assert sum("text.png" in line for line in said) == sum("text.png" in line for line in session.notes) == 1
    with pytest.raises(DataError):
        open_session(loaded, data, files=files[:1])


def test_uploads_are_kept_up_to_a_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess = Preprocess(size=16)
    pictures = Pictures(preprocess, None, ())
    monkeypatch.setattr(kept, "MOST_BYTES", 2 * 3 * (40 * 40 + 16 * 16))
    files = []
    for seed in range(3):
        file = io.BytesIO()
        photo(40, 40, seed).save(file, "PNG")
        files.append(file.getvalue())
    first, second = (pictures.add(file) for file in files[:2])
    pictures.get(first)  # so that the second is the one that was not used for longest
    third = pictures.add(files[2])
    with pytest.raises(DataError, match="add it again"):
        pictures.get(second)
    assert pictures.get(first).cut.size == (16, 16)
    assert pictures.get(third).cut.size == (16, 16)
    assert pictures.to_list() == []


def test_weights_that_are_not_finite_are_said(session: Session) -> None:
    broken = selkern.create_model("sknet_mini", weights="digits").eval()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(NumericsError, match="no finite numbers"):
        digits_session(broken).look(Ask(picture="r0"))
    assert session.look(Ask(picture="r0"))["top"]


def test_a_network_without_units_has_a_prediction() -> None:
    plain = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 10)).eval()
    session = digits_session(plain)
    assert not find_units(plain)
    answer = session.look(Ask(picture="r0"))
    assert len(answer["top"]) == 5
    assert answer["units"] == []
    assert session.facts()["units"] == []


def test_a_network_that_gives_maps_is_refused() -> None:
    session = digits_session(nn.Conv2d(3, 4, 3).eval())
    assert "could not be run on a grey picture" in session.notes[0]
    with pytest.raises(UsageError, match="one number per class"):
        session.look(Ask(picture="r0"))


def test_a_unit_of_three_branches_is_forced_to_each() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unit = selkern.SelectiveKernel(3, 16, kernels=(5, 3, 7), groups=1, reduction=4)
            self.head = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.unit(x).mean(dim=(2, 3)))

    session = digits_session(Net().eval())
    assert session.facts()["units"][0]["branches"] == 3
    assert session.facts()["units"][0]["extents"] == [5, 3, 7]
    fields = [session.look(Ask(picture="r0", unit=0, with_field=True, choices={0: str(b)})) for b in range(3)]
    assert [answer["units"][0] for answer in fields] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    five, three, seven = (answer["field"]["radius"] for answer in fields)
    assert three < five < seven
