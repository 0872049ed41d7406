"""The batch of a data set that has fewer images than the recipe's."""

from __future__ import annotations

from dataclasses import replace

from selkern.errors import DataError
from selkern.train.recipe import Recipe
from selkern.train.step import LEAST

_STEPS = 4  # in an epoch, at least, where a batch is lowered: a recipe's epochs are meant for many
_SMALL = 8  # images of a lowered batch, at least, where there are as many: BatchNorm's statistics are noise below
_MUCH = 0.05  # share of the images that are left out of each epoch, from which on it is said


def fit_batch(
    recipe: Recipe, images: int, ranks: int, data: str, *, asked: bool = True
) -> tuple[Recipe, tuple[str, ...]]:
    """A recipe whose batch the training images fill, and notes for the user; the same recipe where it fits already.

    A batch that nobody asked for fits where an epoch has some steps, one that the user asked for where it has one. One
    that is too large becomes about a quarter of the images, such that few of them are left
    over at the end of an epoch. The parts it is worked through in are no larger than they were. The learning rate
    stays, since it may be the user's own.

    Args:
        images: to train on.
        ranks: processes that share each batch; each needs two images of it.
        data: for messages.
        asked: whether the batch is the user's own; else it is the recipe's.

    Raises:
        DataError: too few images for a batch of any size.
    """
    if images >= recipe.batch_size * (1 if asked else _STEPS):
        return recipe, _left_out(recipe.batch_size, images, ranks)
    least = LEAST * ranks
    if images < least:
        one = "1 training image" if images == 1 else f"{images} training images"
        share = f" for each of {ranks} processes" if ranks > 1 else ""
        raise DataError(f"{one}, where a step needs {LEAST}{share}", data, "give more images, or start fewer processes")
    size = _choose(images, ranks)
    if size >= recipe.batch_size <= images:
        return recipe, _left_out(recipe.batch_size, images, ranks)
    parts = -(-recipe.accumulate * size // recipe.batch_size)  # rounded up
    fitted = replace(recipe, batch_size=size, accumulate=min(parts, size // least))
    note = f"batch size {size}, not {recipe.batch_size}: there are {images} training images"
    if size < images:
        note += f", which give {images // size} steps an epoch; lr stays {recipe.lr:g}"
        if recipe.optimizer == "sgd":
            note += f" (in proportion to the batch it would be {recipe.lr * size / recipe.batch_size:.2g})"
    if recipe.accumulate != fitted.accumulate:
        note += f"; worked through in {fitted.accumulate} of {recipe.accumulate} parts"
    return fitted, (note, *_left_out(size, images, ranks))


def _choose(images: int, ranks: int) -> int:
    """About a quarter of the images, such that few are left over; of equal ones the largest."""
    aim = min(max(images // _STEPS, _SMALL), images)
    low, high = max(aim * 3 // 4, LEAST * ranks), min(max(aim * 5 // 4, LEAST * ranks), images)
    sizes = [size for size in range(low, high + 1) if size % ranks == 0] or [LEAST * ranks]
    return min(sizes, key=lambda size: (images % size, -size))


def _left_out(size: int, images: int, ranks: int) -> tuple[str, ...]:
    """That images do not fill a batch, and the size near it that leaves out fewest; nothing where they are few."""
    left = images % size
    if left < _MUCH * images:
        return ()
    near = range(max(size // 2, LEAST * ranks), size)
    better = min((s for s in near if s % ranks == 0), key=lambda s: (images % s, -s), default=size)
    note = f"each epoch leaves out {left} of {images} images, others each time"
    return (note if images % better >= left else f"{note}; --batch-size {better} leaves out {images % better}",)
