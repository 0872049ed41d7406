"""Batches are the same for every number of workers and ranks, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny import DecodedHeaders

from selkern.data.augment import Augment
from selkern.data.levels import PLAIN, Reading
from selkern.data.loader import Batch, Samples, make_loader
from selkern.data.order import TrainOrder, eval_shards
from selkern.data.preprocess import Preprocess
from selkern.data.scenes import SceneSplit
from selkern.data.split import Split
from selkern.errors import DataError

PREPROCESS = Preprocess(size=16)
AUGMENT = Augment(crop="resized", flip=0.5, colour=0.3, erase=0.3, mixup=0.4, cutmix=1.0)


class Fake(DecodedHeaders):
    """Images that show their index; those in ``broken`` cannot be read."""

    name = "train"

    def __init__(self, n: int, broken: tuple[int, ...] = ()) -> None:
        self.labels: NDArray[np.int64] = np.arange(n) % 3
        self.broken = broken

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, epoch: int = 0, reading: Reading = PLAIN) -> Image.Image:  # noqa: ARG002
        if index in self.broken:
            raise DataError("broken", self.where(index), "remove it")
        return Image.fromarray(np.full((20, 24, 3), (index + 100 * epoch) % 256, np.uint8))

    def where(self, index: int) -> str:
        return f"picture {index}"


def batches(split: Split, workers: int = 0, rank: int = 0, world: int = 1, step: int = 0) -> list[Batch]:
    order = TrainOrder(len(split), 8, seed=3, rank=rank, world=world)
    order.seek(1, step)
    return list(make_loader(Samples(split, PREPROCESS, AUGMENT, seed=3), order, workers))


def rows(batch: Batch) -> list[tuple[int, int, int, float, bytes]]:
    columns = (batch.indices, batch.labels, batch.partners, batch.lam)
    pixels = [image.numpy().tobytes() for image in batch.images]
    return list(zip(*(column.tolist() for column in columns), pixels, strict=True))


def merged(ranks: list[list[Batch]]) -> list[tuple[int, int, int, float, bytes]]:
    return [r for step in zip(*ranks, strict=True) for row in zip(*map(rows, step), strict=True) for r in row]


@pytest.fixture(scope="module")
def scenes() -> SceneSplit:
    return SceneSplit("train", 35, seed=0)


@pytest.mark.parametrize(("world", "workers"), [(1, 2), (2, 0), (2, 2), (4, 0), (4, 1)])
def test_ranks_and_workers_change_nothing(scenes: SceneSplit, world: int, workers: int) -> None:
    expected = merged([batches(scenes)])
    assert len(expected) == 32
    assert any(lam != 1 for *_, lam, _ in expected)
    assert merged([batches(scenes, workers, rank, world) for rank in range(world)]) == expected


def test_starting_in_the_middle_gives_the_same_rest(scenes: SceneSplit) -> None:
    assert merged([batches(scenes, step=2)]) == merged([batches(scenes)])[16:]


def test_spawned_workers_read_the_same(scenes: SceneSplit) -> None:
    """Where processes do not fork, split and collate travel as pickles."""
    loader = make_loader(Samples(scenes, PREPROCESS, AUGMENT, seed=3), TrainOrder(35, 8, seed=3), workers=1)
    loader.multiprocessing_context = "spawn"
    forked = make_loader(Samples(scenes, PREPROCESS, AUGMENT, seed=3), TrainOrder(35, 8, seed=3), workers=0)
    assert [rows(batch) for batch in loader] == [rows(batch) for batch in forked]


def test_epochs_of_one_loader_follow_the_order(scenes: SceneSplit) -> None:
    """Persistent workers must see the epoch that the order was moved to."""
    order = TrainOrder(len(scenes), 8, seed=3)
    loader = make_loader(Samples(scenes, PREPROCESS, AUGMENT, seed=3), order, workers=1)
    epochs = []
    for epoch in (0, 1):
        order.seek(epoch)
        epochs.append([row for batch in loader for row in rows(batch)])
    assert epochs[1] == merged([batches(scenes)])
    assert epochs[0] != epochs[1]


def test_the_loader_leaves_the_global_random_numbers_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(Fake(20))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_samples_are_named_and_never_replaced(workers: int) -> None:
    fake = Fake(10, broken=(3, 7))
    shards = eval_shards(10, 4)
    result = list(make_loader(Samples(fake, PREPROCESS, None, seed=0), shards, workers))
    assert [batch.indices.tolist() for batch in result] == [[0, 1, 2], [4, 5, 6], [8, 9]]
    errors = [error for batch in result for error in batch.bad]
    assert [len(batch.bad) for batch in result] == [1, 1, 0]
    assert [(error.what, error.where, error.fix) for error in errors] == [
        ("broken", "picture 3", "remove it"),
        ("broken", "picture 7", "remove it"),
    ]
    assert all(type(error) is DataError and error.__traceback__ is None for error in errors)
    for batch in result:
        assert batch.labels.tolist() == [index % 3 for index in batch.indices.tolist()]
        assert batch.images[:, 0, 0, 0].tolist() == batch.indices.tolist()


def test_a_batch_of_broken_samples_only_is_empty() -> None:
    fake = Fake(4, broken=(0, 1, 2, 3))
    (batch,) = make_loader(Samples(fake, PREPROCESS, None, seed=0), eval_shards(4, 4), 0)
    assert batch.images.shape == (0, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.dtype == batch.partners.dtype == batch.indices.dtype == torch.int64
    assert len(batch.bad) == 4


def test_a_broken_partner_leaves_the_sample_unmixed() -> None:
    fake = Fake(9, broken=tuple(range(1, 9)))
    samples = Samples(fake, PREPROCESS, Augment(mixup=1.0), seed=0)
    lams = []
    for epoch in range(200):
        (batch,) = make_loader(samples, [[(epoch, 0)]], 0)
        assert batch.bad == ()
        lams.append(batch.lam.item())
    assert 5 < sum(lam < 1 for lam in lams) < 45  # itself as partner: 200 / 9 = 22 expected


def test_partners_come_from_the_whole_split_and_their_label_is_true() -> None:
    fake = Fake(30)
    samples = Samples(fake, PREPROCESS, Augment(cutmix=1.0), seed=0)
    seen = set()
    for index in range(30):
        (batch,) = make_loader(samples, [[(0, index)]], 0)
        values = set(batch.images.unique().tolist())
        (other,) = values - {index} or {index}
        assert batch.partners.item() == other % 3 or batch.lam.item() == 1
        assert (batch.images == index).float().mean().item() == pytest.approx(batch.lam.item()) or other == index
        seen.add(other)
    assert len(seen) > 12


def test_zoom_reaches_the_evaluation_samples() -> None:
    scene = SceneSplit("val", 5, seed=0)
    plain = Samples(scene, PREPROCESS, None, seed=0)
    zoomed = Samples(scene, PREPROCESS, None, seed=0, zoom=1.5)
    (a,), (b,) = (make_loader(s, [[(0, 2)]], 0) for s in (plain, zoomed))
    assert np.array_equal(b.images[0].numpy(), PREPROCESS(scene.read(2), zoom=1.5))
    assert not torch.equal(a.images, b.images)
