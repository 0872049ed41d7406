"""README.md of a published network: what its weights file says, for people and for the Hub's search.

Nothing is said that the card of the weights or the network itself does not hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from selkern.data.levels import check_levels, show_levels
from selkern.models.cost import Cost
from selkern.models.weights import Card

SPLITS = ("train", "val", "test")
SHOWN = 200  # classes; more are counted, and stand in the weights file
UNIT = (
    "Such a unit looks at its input through several kernels at once and lets each channel choose among them, image by "
    "image"
)
PAPER = "X. Li, W. Wang, X. Hu, J. Yang, *Selective Kernel Networks*, CVPR 2019 (arXiv 1903.06586)."
USE = """\
```python
import selkern

model = selkern.from_pretrained({load}).eval()
```
"""
USE_ON_IMAGES = """\
```python
from pathlib import Path
import torch, selkern
from selkern.data.decode import decode
from selkern.data.preprocess import Preprocess

model = selkern.from_pretrained({load}).eval()
prepare = Preprocess.from_dict(model.card.preprocess)
image = torch.from_numpy(prepare(decode(Path("picture.png"), reading=prepare.reading())))
with torch.inference_mode():
    scores = model(prepare.normalise(image[None])).softmax(dim=1)[0]
print(model.card.classes[scores.argmax()], scores.max().item())
```

```
selkern predict {run} picture.png
```
"""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a model card holds beside the weights' own card.

    Attributes:
        title: name of the repository or folder.
        repository: of the Hub, user/name; None for a folder that nobody has pushed.
        cost: of the network on an image of `size` px.
        units: selective-kernel units in it.
        license: the Hub's name of the weights' licence, such as "apache-2.0"; None leaves it out.
    """

    title: str
    repository: str | None
    cost: Cost
    size: int
    units: int
    license: str | None


def render(card: Card, facts: Facts) -> str:
    """The whole README.md."""
    parts = (_front_matter(card, facts), _what_it_is(card, facts), _use(card, facts), _images(card, facts))
    return "\n".join((*parts, _classes(card), _measured(card), _source(card), _limits(card)))


def _quoted(value: Any) -> str:
    """A value as JSON, which YAML reads too, whatever characters it holds."""
    return json.dumps(value)


def _indented(value: Any) -> str:
    """A value as a block of Markdown that no character in it can end."""
    return "\n".join(f"    {line}" for line in json.dumps(value, ensure_ascii=False, indent=2).splitlines())


def _data(card: Card) -> str:
    """What the figures were measured on, without the folders that it lies in; empty where the card does not say."""
    return PurePath(str(card.source.get("data", ""))).name


def _front_matter(card: Card, facts: Facts) -> str:
    """The YAML that the Hub reads."""
    task = "image-classification" if card.classes else "image-feature-extraction"
    lines = ["---", "library_name: selkern"]
    if facts.license is not None:
        lines.append(f"license: {_quoted(facts.license)}")
    lines += [f"pipeline_tag: {task}", "tags:", f"- {task}"]
    if facts.units:
        lines.append("- selective-kernel")
    splits = {name: _figures(card.metrics, name) for name in SPLITS}
    if _data(card) and any(splits.values()):
        lines += ["model-index:", f"- name: {_quoted(facts.title)}", "  results:"]
    for split, figures in splits.items() if _data(card) else ():
        if not figures:
            continue
        lines += ["  - task:", f"      type: {task}", "    dataset:"]
        lines += [f"      {key}: {_quoted(value)}" for key, value in (("name", _data(card)), ("type", _data(card)))]
        lines += [f"      split: {split}", "    metrics:"]
        for name, value in figures.items():
            kind = "accuracy" if "top" in name else name.partition("_")[2]
            lines += [f"    - type: {_quoted(kind)}", f"      name: {_quoted(name)}", f"      value: {_quoted(value)}"]
    return "\n".join([*lines, "---", ""])


def _figures(metrics: Mapping[str, float], split: str) -> dict[str, float]:
    """What was measured on a split; how many images and the bounds of an interval are no figures of their own."""
    beside = ("_images", "_low", "_high")
    return {k: v for k, v in metrics.items() if k.startswith(f"{split}_") and not k.endswith(beside)}


def _what_it_is(card: Card, facts: Facts) -> str:
    units = f"{facts.units} selective-kernel unit{'s' * (facts.units != 1)}"
    what = f"a network with {units}. {UNIT}" if facts.units else "a network without selective-kernel units"
    norms = f" Norms: {', '.join(f'{name}={norm!r}' for name, norm in card.norms.items())}." if card.norms else ""
    return f"""\
# {facts.title}

`{card.model}` of selkern: {what}.{norms}

| parameters | multiply-adds on one image | channels of an image |
|---|---|---|
| {facts.cost.parameters:,} | {facts.cost.macs:,} at {facts.size} x {facts.size} px | {card.in_chans} |

Paper: {PAPER}
"""


def _use(card: Card, facts: Facts) -> str:
    """How to load it; on images, where it is known how they are prepared."""
    on_images = card.preprocess and card.classes and card.in_chans == 3
    load = _quoted(facts.repository or facts.title)
    run = f"hf-hub:{facts.repository}" if facts.repository else f"{facts.title}/model.safetensors"
    extras = [*(["train"] if on_images else []), *(["hub"] if facts.repository else [])]
    needs = f"Needs selkern with `[{','.join(extras)}]`.\n\n" if extras else ""
    return f"## Use\n\n{needs}" + (USE_ON_IMAGES if on_images else USE).format(load=load, run=run)


def _images(card: Card, facts: Facts) -> str:
    given = card.preprocess
    if not {"size", "crop", "mean", "std"} <= given.keys():
        return f"## Images\n\nHow they were prepared is not recorded. The network is designed for {facts.size} px.\n"
    side = given["size"]
    resized = round(side / given["crop"])
    square = {
        "squash": f"both sides resized to {resized} px (bicubic), whatever their proportions",
        "pad": f"the long side resized to {resized} px (bicubic) and filled to a square with the mean colour",
    }.get(given.get("resize", "crop"), f"the short side resized to {resized} px (bicubic)")
    cut = "" if resized == side and "resize" in given else f", the centre of {side} x {side} px cut out"
    how = f"RGB from 0 to 1, {square}{cut}, less the mean {given['mean']}, divided by {given['std']}."
    levels = check_levels(given.get("levels", "full"))
    if levels != "full":
        how += f" Pixels of more than 8 bits as with `--white-level {show_levels(levels)}`."
    return f"## Images\n\n{how}\n"


def _classes(card: Card) -> str:
    rest = len(card.classes) - SHOWN
    more = f"\n... and {rest:,} more, in the weights file.\n" if rest > 0 else ""
    listed = json.dumps(card.classes[:SHOWN], ensure_ascii=False)
    names = f"In the order of the outputs:\n\n    {listed}\n" if card.classes else "None: the outputs are features.\n"
    return f"## Classes\n\n{names}{more}"


def _measured(card: Card) -> str:
    if not card.metrics:
        return "## Measured\n\nNothing is recorded.\n"
    scenes = " (the scenes of handwritten digits that selkern draws)" if _data(card) == "digits" else ""
    on = f"On `{_data(card)}`{scenes}" if _data(card) else "On which images, the weights file does not say"
    names = "; val and test name the split" if any(_figures(card.metrics, split) for split in SPLITS) else ""
    bounds = ", low and high bound the 95 % interval" if any(name.endswith("_low") for name in card.metrics) else ""
    rows = "\n".join(f"| {name} | {value:,.6g} |" for name, value in card.metrics.items())
    return f"## Measured\n\n{on}{names}{bounds}.\n\n| figure | value |\n|---|---|\n{rows}\n"


def _source(card: Card) -> str:
    return f"## Where the weights come from\n\n{_indented(card.source)}\n"


def _limits(card: Card) -> str:
    """What is known not to be known."""
    limits = ["No figure is recorded: how good these weights are is not known from here."]
    if card.metrics:
        limits = ["The figures hold for images like those they were measured on; nothing is known of others."]
    if card.classes:
        limits.append("An image that shows none of the classes gets one of them all the same.")
    return "## Limits\n\n" + "".join(f"- {limit}\n" for limit in limits)
