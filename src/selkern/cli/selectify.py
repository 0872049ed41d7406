"""`selkern selectify`: what selective kernels would make of a network that is there already."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from selkern.cli.parse import parse
from selkern.data import LARGEST_IMAGE
from selkern.errors import UsageError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class SelectifyOptions:
    """Show which convolutions of a network would get further kernels to select from, at which cost, and how exactly.

    Nothing is changed or written: `selkern train --selectify WHERE` trains the changed network, and in Python
    `selkern.selectify` gives it.
    """

    subject: Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A name, run, weights file, hf-hub:user/name, timm:NAME, or code that is run: FILE.py:NAME, module:NAME."""
    where: str = "auto"
    """Which convolutions: auto, "last 2 stages", or names with commas between, as layer4.*,layer3.1."""
    branches: int = 2
    """Branches of a unit, the convolution that is there among them; each sees one position further on every side."""
    form: Literal["residual", "widened"] = "residual"
    """What a further branch is: the first plus a grouped, dilated 3x3, or a larger kernel of its own."""
    budget: float = 0.10
    """Largest share of added multiply-adds, for auto."""
    pointwise: bool = False
    """Change 1x1 convolutions too."""
    image_size: int | None = None
    """Side of the images, px; by default what the network is made for."""
    arguments: Annotated[str, tyro.conf.arg(name="with")] = ""
    """Arguments for what makes the network, as in Python: "num_classes=10"."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def __post_init__(self) -> None:
        if self.image_size is not None and not 1 <= self.image_size <= LARGEST_IMAGE:
            fix = f"must lie between 1 and {LARGEST_IMAGE}"
            raise UsageError(f"image size is {self.image_size}", "--image-size", fix)


def main(argv: list[str]) -> int:
    """`selkern selectify`."""
    options = parse(SelectifyOptions, argv, "selectify")
    from selkern.adapt.selectify import selectify_plan
    from selkern.convert.subject import find_inputs, own_size

    model = _network(options)
    x = find_inputs(model, side=options.image_size or own_size(model))[:2]
    try:
        plan = selectify_plan(
            model,
            example=x,
            where=options.where,
            branches=options.branches,
            form=options.form,
            budget=options.budget,
            pointwise=options.pointwise,
        )
    except UsageError as error:
        where = f"--where {options.where}" if error.where == "where" else options.subject
        raise UsageError(error.what, where, error.fix) from error
    print(plan.to_json() if options.json else f"{options.subject} on {tuple(x.shape)}\n\n{plan}")
    return 0


def _network(options: SelectifyOptions) -> nn.Module:
    """What the command was pointed at; a run or a weights file with all that was changed in it."""
    from selkern.convert.subject import find_subject
    from selkern.train.network import open_network
    from selkern.train.run_folder import find_weights

    word = options.subject
    if Path(word).exists() and not word.endswith(".py"):
        return open_network(find_weights(word))[0]
    return find_subject(word, options.arguments)
