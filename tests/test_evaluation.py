"""Every figure of an evaluation against plain numpy, and the shares of ranks against the whole."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny import DecodedHeaders
from torch import Tensor, nn

from selkern.data.levels import PLAIN, Reading
from selkern.data.order import eval_shards
from selkern.data.preprocess import Preprocess
from selkern.errors import DataError
from selkern.evaluation import Evaluation, evaluate
from selkern.inference.predict import write_evaluation

PREPROCESS = Preprocess(size=8)
CLASSES = tuple("abcdefg")


class Colours(DecodedHeaders):
    """n images of one colour each; in place of a split. Class 5 has no image."""

    name = "test"

    def __init__(self, n: int, broken: int = -1) -> None:
        rng = np.random.default_rng(n)
        self.pixels = rng.integers(0, 256, (n, 3))
        self.labels: NDArray[np.int64] = rng.choice([0, 1, 2, 3, 4, 6], n).astype(np.int64)
        self.broken = broken

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, epoch: int = 0, reading: Reading = PLAIN) -> Image.Image:  # noqa: ARG002
        assert epoch == 0
        if index == self.broken:
            raise DataError("the image is broken", self.where(index), "remove it")
        red, green, blue = self.pixels[index].tolist()
        return Image.new("RGB", (9, 9), (red, green, blue))

    def where(self, index: int) -> str:
        return f"colour {index}.png"


class Linear(nn.Module):
    """Logits from the mean colour, with dropout, which evaluation must switch off."""

    def __init__(self, classes: int = len(CLASSES)) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.fc, self.drop = nn.Linear(3, classes), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(3 * x.mean(dim=(2, 3))))


def logits_of(model: Linear, split: Colours) -> NDArray[np.float64]:
    """The same forward pass in numpy."""
    x = (split.pixels / 255 - 0.5) / 0.5
    weight, bias = (p.detach().numpy().astype(np.float64) for p in (model.fc.weight, model.fc.bias))
    return 3 * x @ weight.T + bias


@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("n", [1, 23])
def test_all_figures_are_numpys(n: int, batch_size: int) -> None:
    model, split = Linear(), Colours(n)
    model.train()
    result = evaluate(model, split, CLASSES, PREPROCESS, batch_size=batch_size)
    assert model.training, "the model is put back into its mode"
    logits = logits_of(model, split)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = shifted / shifted.sum(axis=1, keepdims=True)
    ranked = np.argsort(-logits, axis=1)
    labels = split.labels
    assert result.indices.tolist() == list(range(n))
    assert result.labels.tolist() == labels.tolist()
    assert (result.top == ranked[:, :5]).all()
    np.testing.assert_allclose(result.top_p, np.take_along_axis(p, ranked[:, :5], axis=1), rtol=1e-5)
    assert result.loss == pytest.approx(-np.log(p[np.arange(n), labels]).mean(), rel=1e-5)
    assert result.top1 == pytest.approx((ranked[:, 0] == labels).mean())
    assert result.top5 == pytest.approx(np.mean([label in row[:5] for label, row in zip(labels, ranked, strict=True)]))
    counts = [[sum((labels == i) & (ranked[:, 0] == j)) for j in range(7)] for i in range(7)]
    assert result.confusion().tolist() == counts
    for i, (name, images, right) in enumerate(result.per_class()):
        assert (name, images) == (CLASSES[i], sum(labels == i))
        assert right == pytest.approx(counts[i][i] / images) if images else np.isnan(right)
    table = result.to_dict()
    assert table["images"] == n
    assert table["top1_low"] <= table["top1"] <= table["top1_high"]
    assert table["classes"][5] == {"class": "f", "images": 0, "right": None}


def test_top5_of_two_classes_is_one() -> None:
    split = Colours(9)
    split.labels = split.labels % 2
    result = evaluate(Linear(2), split, ("a", "b"), PREPROCESS)
    assert result.top.shape == (9, 2)
    assert result.top5 == 1.0


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_the_shares_of_ranks_merge_to_the_whole(ranks: int) -> None:
    """Also where a rank has no image at all."""
    model, split = Linear(), Colours(7)
    whole = evaluate(model, split, CLASSES, PREPROCESS)
    shares = [evaluate(model, split, CLASSES, PREPROCESS, share=(rank, ranks)) for rank in range(ranks)]
    assert [len(share) for share in shares] == [len(range(rank, 7, ranks)) for rank in range(ranks)]
    merged = Evaluation.merge(shares[::-1])
    for name in ("indices", "labels", "top"):
        assert (getattr(merged, name) == getattr(whole, name)).all()
    for name in ("losses", "top_p"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-5)
    assert merged.classes == whole.classes
    assert (merged.top1, merged.top5) == (whole.top1, whole.top5)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_and_never_counted_around(workers: int) -> None:
    with pytest.raises(DataError) as error:
        evaluate(Linear(), Colours(9, broken=4), CLASSES, PREPROCESS, workers=workers)
    assert str(error.value) == "the image is broken | colour 4.png | remove it"


def test_nothing_to_evaluate_is_told() -> None:
    with pytest.raises(DataError, match="no images to evaluate"):
        evaluate(Linear(), Colours(0), CLASSES, PREPROCESS)
    assert eval_shards(0, 4) == []


def test_autocast_is_the_context_of_the_forward_pass() -> None:
    seen: list[torch.dtype] = []

    class Noted(Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            seen.append(y.dtype)
            return y

    result = evaluate(Noted(), Colours(3), CLASSES, PREPROCESS, autocast=torch.autocast("cpu", dtype=torch.bfloat16))
    assert seen == [torch.bfloat16]
    assert result.losses.dtype == np.float32


def test_a_wrong_figure_would_be_seen() -> None:
    """The comparison above can fail: a model that is changed a little gives other predictions."""
    model, split = Linear(), Colours(23)
    before = evaluate(model, split, CLASSES, PREPROCESS)
    with torch.no_grad():
        model.fc.bias[0] += 1
    assert evaluate(model, split, CLASSES, PREPROCESS).loss != before.loss


@pytest.mark.parametrize("classes", [2, 7, 300])
def test_the_pairs_that_occur_are_the_matrix(classes: int, seed: int) -> None:
    """And each class's figures are its row's, as they were computed from the whole matrix before."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, max(1, classes - 1), 500)  # the last class has no image
    top = np.stack([rng.permutation(classes)[:2] for _ in labels])
    top[:250, 0] = labels[:250]
    names = tuple(f"c{number}" for number in range(classes))
    blank = np.zeros(500, np.float32)
    result = Evaluation(names, np.arange(500), labels, blank, top, np.zeros((500, 2), np.float32))
    table = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(table, (labels, top[:, 0]), 1)
    assert (result.confusion() == table).all()
    true, predicted, counts = result.confused()
    assert (np.argwhere(table) == np.stack([true, predicted], axis=1)).all()
    assert (counts == table[true, predicted]).all()
    for i, (name, images, share) in enumerate(result.per_class()):
        assert (name, images) == (names[i], table[i].sum())
        assert share == table[i, i] / images if images else np.isnan(share)
    mistaken = result.mistaken(5)
    off = table - np.diag(np.diag(table))
    assert [n for *_, n in mistaken] == sorted(off[off > 0].tolist(), reverse=True)[:5]
    assert all(off[names.index(one), names.index(other)] == n for one, other, n in mistaken)


def test_ten_thousand_classes_need_no_matrix(tmp_path: Path) -> None:
    """Neither for the figures nor for the files: no array of its size is made."""
    n, classes = 2000, 10_000
    labels = np.arange(n)
    top = np.stack([(labels + labels % 2), labels + 2], axis=1)
    names = tuple(map(str, range(classes)))
    result = Evaluation(names, labels, labels, np.zeros(n, np.float32), top, np.ones((n, 2), np.float32))
    split = Colours(n)
    tracemalloc.start()
    figures = result.to_dict()
    write_evaluation(result, split, tmp_path, {"image_size": 8})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20, "the matrix has 800 MB"
    assert figures["top1"] == 0.5
    with (tmp_path / "confusion.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["true class", "predicted", "images"]
    assert rows == [[str(i), str(i + i % 2), "1"] for i in range(n)]
    with (tmp_path / "per_class.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == classes + 1
    assert json.loads((tmp_path / "evaluation.json").read_text())["image_size"] == 8
