"""The defaults of a run, which follow from its data, its first weights and its network, and what is said of them.

| data | network | input size | recipe |
|---|---|---|---|
| digits | `sknet_mini` | the recipe's | `digits` |
| pictures of up to 64 px (median of the short sides) | `sknet_mini` | the pictures' own, from 32 px | `cifar` |
| larger pictures | `skresnet18` | what it is designed for | `photos-scratch` |
| any, with weights | that of the weights | the card's, as crop and colours | `photos` (digits: `digits`) |

What is given by name is taken, and the rest follows from it: a network designed for 224 px gets 224 px, and with them
`photos-scratch`, whatever the pictures' size; a recipe that is not for photos brings its own input size. Flags win.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from selkern.data.preprocess import Preprocess, Resize
from selkern.data.sources import Source, open_source
from selkern.data.survey import Survey, survey
from selkern.errors import CheckpointError, DataError, UsageError
from selkern.train.options import PRETRAINED, RunOptions, TrainOptions, recipe_named
from selkern.train.recipe import LEAST, RECIPE_NOTES, RECIPES, Recipe

_STEPS = 4  # in an epoch, at least, where a batch is lowered: a recipe's epochs are meant for many
_FEWEST = 8  # images of a lowered batch, at least, where there are as many: BatchNorm's statistics are noise below
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
    aim = min(max(images // _STEPS, _FEWEST), images)
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


_SMALL = 64  # px; up to here pictures and inputs are small
_LEAST = 32  # px; a smaller picture is enlarged to this
_LOOKED_AT = 200  # images whose headers are read
_ENLARGED, _REDUCED = 1.5, 3.0  # input over picture, and picture over a small input, from which a note says so
_MANY = 0.1  # share of long pictures from which a note says so
_PHOTOS = ("photos", "photos-scratch")  # the recipes that have no input size of their own
_HUB = {name: f"hf-hub:timm/{name}.ra_in1k" for name in ("skresnet18", "skresnet34", "skresnext50_32x4d")}


@dataclass(frozen=True, kw_only=True)
class Asked(RunOptions):
    """What of a command line the defaults of the other options depend on."""

    model: str = ""
    recipe: str = ""
    image_size: int | None = None
    batch_size: int | None = None
    resize: Resize | None = None

    @property
    def digits(self) -> bool:
        """Whether the data are drawn."""
        return self.data.partition(":")[0] == "digits"


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """The defaults of a run, and where they come from."""

    options: TrainOptions
    """What flags are laid over."""
    size_of: str
    """Whose the input size is."""
    colours_of: str
    """Whose mean and std are."""
    source: Source | None = None
    """The data, where they had to be opened."""
    seen: Survey | None = None
    """A sample of the training images, likewise."""
    card: Preprocess | None = None
    """How images are prepared for the weights."""
    batch_asked: bool = False
    """Whether the batch is the user's own."""

    def line(self, options: TrainOptions, steps: int) -> str:
        """What a run with these options takes, and why; `steps` are those of an epoch."""
        now = options.training
        return (
            f"{self.input_line(options)}; "
            f"recipe {options.recipe} ({RECIPE_NOTES[options.recipe]}), batch {now.batch_size}: "
            f"{now.epochs} epoch{'s' * (now.epochs != 1)} of {steps} step{'s' * (steps != 1)}"
        )

    def input_line(self, options: TrainOptions) -> str:
        """How pictures become inputs in a run with these options, and why."""
        now, was = options.training, self.options.training
        size_of = self.size_of if now.image_size == was.image_size else "as asked"
        colours_of = self.colours_of if (now.mean, now.std) == (was.mean, was.std) else "as asked"
        way = {"crop": "centre crop", "squash": "squashed, crop", "pad": "padded, crop"}[now.resize]
        seen = self.seen
        pictures = f"pictures of {seen.short_side:g} px (short side, median), " if seen else ""
        if seen is not None and not seen.headers:
            pictures = "no picture can be read, "
        return f"{pictures}input {now.image_size} px ({size_of}), {way} {now.eval_crop:g}, mean and std {colours_of}"

    def input_notes(self, options: TrainOptions) -> Iterator[str]:
        """What the network may not see of the pictures."""
        if self.seen is not None and self.seen.headers:
            yield from _notes_on_pictures(self.seen, options, _design_size(options.model))

    def notes(self, options: TrainOptions) -> Iterator[str]:
        """What of these options may not be meant."""
        yield from self.input_notes(options)
        design = _design_size(options.model)
        if design > _SMALL >= options.training.image_size and not _is_code(options.model):
            yield _last_maps(options.model, design, options.training.image_size)
        if self.card is not None:
            yield from _notes_on_card(self.card, options.training.preprocess)
        if options.recipe == "photos" and options.weights is None:
            yield "recipe photos goes on from trained weights; from random ones photos-scratch learns more"
        elif options.recipe == "photos-scratch" and options.weights is not None:
            yield "recipe photos-scratch is for random weights; photos keeps more of what the weights know"
        elif options.recipe == "photos-scratch":
            if _is_code(options.model):
                if options.model.startswith("timm:"):
                    yield "random weights need many pictures and epochs; --weights pretrained goes on from timm's"
                return
            there = "" if options.model in _HUB else "--model skresnet18 "
            weights = _HUB.get(options.model, _HUB["skresnet18"])
            yield f"random weights need many pictures and epochs; {there}--weights {weights} goes on from ImageNet's"


def choose_defaults(asked: Asked, *, fetch: bool = True, source: Source | None = None) -> Defaults:
    """The defaults for what was asked. Opens the data, unless they are drawn, and reads the weights' card.

    Args:
        asked: from the command line.
        fetch: False leaves weights of the Hub where they are; the defaults are then those of any weights.
        source: the data, where they are open already.

    Raises:
        DataError: the data cannot be opened.
        CheckpointError: the weights are not there, or not for pictures of three colours.
        UsageError: no such model or recipe.
    """
    if asked.recipe:
        recipe_named(asked.recipe)
    source = None if asked.digits else source or open_training(asked)
    seen = None if source is None else survey(source.train if len(source.train) else source.test, _LOOKED_AT)
    weights_model, card = _read_card(asked, fetch=fetch)
    model = asked.model or weights_model or _usual_model(asked, seen)
    own = asked.recipe or ("digits" if asked.digits else "")  # the recipe, where neither size nor weights decide it
    if card is not None:
        size, size_of = card.size, "of the weights' card"
    elif own and own not in _PHOTOS:
        size, size_of = RECIPES[own].image_size, f"of recipe {own}"
    else:
        size, size_of = _size_for(model, seen)
    usual = "cifar" if (asked.image_size or size) <= _SMALL else "photos-scratch"
    name = own or ("photos" if asked.weights else usual)
    recipe = _prepared(RECIPES[name], card, size, cut=name not in _PHOTOS or size > _SMALL)
    if asked.resize is not None and asked.resize != recipe.resize:
        # Whoever asks for all of a picture is to see all of it.
        recipe = replace(recipe, resize=asked.resize, eval_crop=recipe.eval_crop if asked.resize == "crop" else 1.0)
    return Defaults(
        options=TrainOptions(model=model, recipe=name, training=recipe),
        size_of=size_of,
        colours_of=f"of recipe {name}" if card is None else "of the weights' card",
        source=source,
        seen=seen,
        card=card,
        batch_asked=asked.batch_size is not None,
    )


def open_training(options: RunOptions) -> Source:
    """The data of a new run; a split that is cut off keeps what the run of its first weights trained on apart.

    Args:
        options: of the command line.
    """
    parts: Mapping[str, str] = {}
    if options.weights not in (None, PRETRAINED) and not str(options.weights).startswith("hf-hub:"):
        # Here, since a command's help comes without torch.
        from selkern.train.run_data import parts_before
        from selkern.train.run_folder import find_weights

        with suppress(CheckpointError):  # raised where they are loaded
            parts = parts_before(find_weights(str(options.weights)), options.data, options.table)
    return open_source(
        options.data,
        seed=options.seed,
        val_fraction=options.val_fraction,
        on_bad=options.on_bad_image,
        table=options.table,
        parts=parts,
    )


def _read_card(asked: Asked, *, fetch: bool) -> tuple[str, Preprocess | None]:
    """The network that the weights are of, and how images are prepared for them; empty and None where it is not known.

    Raises:
        CheckpointError: as `choose_defaults` says.
    """
    if asked.weights is None:
        return "", None
    if _is_code(asked.model):
        return asked.model, _card_of_code(asked)
    if asked.weights == PRETRAINED:
        raise UsageError("no model of timm is named", f"--weights {PRETRAINED}", "add --model timm:NAME")
    # Here, since a command's help comes without torch.
    from selkern.convert import hub
    from selkern.models.registry import card_of
    from selkern.train.network import built_card, code_of
    from selkern.train.run_folder import find_weights, require_preprocess

    if hub.is_reference(asked.weights) and not fetch:
        return "", None
    path = find_weights(asked.weights)
    card = built_card(path) or card_of(path, asked.model or None)
    if _is_code(card.model):
        code_of(card.model, asked.model, str(path))
    if card.in_chans != 3:
        what = f"weights take images of {card.in_chans} channel{'s' * (card.in_chans != 1)}, those of data have 3"
        raise CheckpointError(what, str(path), "take weights of a network with in_chans=3")
    if not card.preprocess:
        return card.model, None
    require_preprocess(card, path)
    return card.model, Preprocess.from_dict(card.preprocess)


def _is_code(model: str) -> bool:
    """Whether a network is made by code; asked without torch where its name alone says that it is not."""
    if ":" not in model:
        return False
    from selkern.convert.subject import is_code

    return is_code(model)


def _card_of_code(asked: Asked) -> Preprocess:
    """How images are prepared for weights of a third-party network: as their file says, or as is usual for it."""
    from selkern.convert.subject import preprocess_of
    from selkern.models.weights import describes_itself, read_card
    from selkern.train.run_folder import find_weights, require_preprocess

    path = None if asked.weights in (None, PRETRAINED) else find_weights(str(asked.weights))
    if path is None or path.suffix != ".safetensors" or not describes_itself(path):
        return preprocess_of(asked.model)
    card = read_card(path)
    require_preprocess(card, path)
    return Preprocess.from_dict(card.preprocess)


def _usual_model(asked: Asked, seen: Survey | None) -> str:
    """The network where none is named."""
    if asked.image_size is not None:
        small = asked.image_size <= _SMALL
    elif asked.recipe and asked.recipe not in _PHOTOS:
        small = RECIPES[asked.recipe].image_size <= _SMALL
    else:
        small = seen is None or seen.short_side <= _SMALL
    return "sknet_mini" if small else "skresnet18"


def _design_size(model: str) -> int:
    """Side of the images that a network is designed for, px. Raises UsageError for an unknown one."""
    if _is_code(model):
        from selkern.convert.subject import preprocess_of

        return preprocess_of(model).size
    from selkern.models.registry import architecture

    return architecture(model).input_size


def _last_maps(model: str, design: int, size: int) -> str:
    from selkern.models.registry import architecture

    side = math.ceil(size / architecture(model).strides_of_maps[-1])
    return f"{model} is designed for {design} px: of {size} px its last maps are {side} x {side}"


def _size_for(model: str, seen: Survey | None) -> tuple[int, str]:
    """The input size of a network, and whose it is: small pictures are shown as they are to networks for such."""
    design = _design_size(model)
    if design <= _SMALL and seen is not None and 0 < seen.short_side <= _SMALL:
        return max(_LEAST, int(seen.short_side)), "as the pictures" if seen.short_side >= _LEAST else "the least"
    return design, f"what {model} is designed for"


def _prepared(recipe: Recipe, card: Preprocess | None, size: int, *, cut: bool) -> Recipe:
    """A recipe for inputs of a size, or for those that a card asks for."""
    if card is not None:
        return recipe.prepared(card)
    return replace(recipe, image_size=size, eval_crop=recipe.eval_crop if cut else 1.0)


def _notes_on_pictures(seen: Survey, options: TrainOptions, design: int) -> Iterator[str]:
    size, short = options.training.image_size, seen.short_side
    share, (width, height) = seen.wide
    if options.training.resize == "crop" and share >= _MANY:
        yield (
            f"{share:.0%} of the pictures are 4:3 or longer (such as {width} x {height}): the centre crop does not "
            "show their ends; --resize squash or pad shows all"
        )
    if size >= _ENLARGED * max(short, _LEAST):
        fix = f"--image-size {math.ceil(short / 32) * 32} takes {_times(size, math.ceil(short / 32) * 32)} less time"
        if design > _SMALL >= short:
            fix = "sknet_mini and sknet29 are designed for small ones"
        yield f"pictures of {short:g} px are enlarged to {size} px" + ("" if options.weights else f"; {fix}")
    if size <= _SMALL and short >= _REDUCED * size:
        fix = "--image-size 128 shows more"
        if options.weights is None:
            fix += ", --model skresnet18 is designed for 224 px"
        if design > _SMALL:
            fix = f"--image-size {design} is what {options.model} is designed for"
        yield f"of pictures of {short:g} px the network sees {size} px, and nothing small in them; {fix}"


def _times(size: int, other: int) -> str:
    return f"{(size / other) ** 2:.0f} times"


def _notes_on_card(card: Preprocess, now: Preprocess) -> Iterator[str]:
    if now.size != card.size:
        yield f"the weights were trained at {card.size} px, this run is at {now.size} px"
    if (now.mean, now.std) != (card.mean, card.std):
        yield f"the weights were trained with mean {card.mean} and std {card.std}, which this run does not take"
    if now.resize != card.resize:
        yield f"the weights were trained with --resize {card.resize}, this run has {now.resize}"
