"""`selkern analyze`: what the selective kernels of a network chose, and its report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from selkern.cli.greet import greet
from selkern.cli.parse import ImageOptions, Run, parse
from selkern.data import LARGEST_IMAGE
from selkern.errors import UsageError
from selkern.progress import Progress, say
from selkern.tuning import measured_threads, tune

_PASSES = 10  # that the studies make over their images, roughly: for the choice of threads


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions(ImageOptions):
    """Evaluate trained weights, study what their selective kernels chose, and write report.html."""

    run: Run
    """A run, weights file, bundled weights, hf-hub:user/name; or code to run: timm:NAME, FILE.py:NAME, module:NAME."""
    output: Path | None = None
    """Folder for report.html, plots/ and tables; by default the run's own, and for other data or splits one in it."""
    images: int = 1000
    """Images of the enlargement, the classes and the causal check; 0 for all."""
    field_images: int = 200
    """Images of the receptive fields; 0 for all."""
    looks: int = 3
    """Images shown one by one."""
    boxes: Path | None = None
    """A CSV of the objects' sizes, with which selections and receptive fields are compared. Its columns:
    path: relative to the table;
    x0,y0,x1,y1 or size: px of the image file as viewers show it, upright; or size_input: px of the network's input;
    label (optional): the object's class;
    group (optional): what images share that are not independent, such as the picture they were cut from."""
    arguments: Annotated[str, tyro.conf.arg(name="with")] = ""
    """Arguments for a third-party network, as in Python: "pretrained=True"."""
    image_size: int | None = None
    """Side of the images that a third-party network is shown, px; by default timm's own, else 224."""
    zooms: tuple[float, ...] = (1.0, 1.5, 2.0)
    """Enlargements of the centre, the first of them 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("images", "field_images", "looks"):
            if getattr(self, name) < 0:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{name} is {getattr(self, name)}", flag, "must be at least 0")
        if self.image_size is not None and not 1 <= self.image_size <= LARGEST_IMAGE:
            raise UsageError(
                f"image size is {self.image_size}", "--image-size", f"must lie between 1 and {LARGEST_IMAGE}"
            )
        if not self.zooms or self.zooms[0] != 1 or min(self.zooms) < 1 or not max(self.zooms) <= 16:
            raise UsageError(f"zooms are {self.zooms}", "--zooms", "must start with 1 and lie between 1 and 16")


def main(argv: list[str]) -> int:
    """`selkern analyze`."""
    options = parse(AnalyzeOptions, argv, "analyze")
    greet(f"analyzing {options.run}")
    with Progress("starting"):
        from selkern.convert.subject import is_code
        from selkern.inference.network import load, load_other
        from selkern.report import analyze as analyzing
        from selkern.report.findings import of_studies
        from selkern.selection.analyses import Plan

        tune(threads=options.threads)
    other = is_code(options.run)
    if not other and (options.arguments or options.image_size):
        raise UsageError(
            "is for third-party networks",
            "--with" if options.arguments else "--image-size",
            "leave it out: the weights file has it",
        )
    with Progress("loading the network"):
        loaded = (
            load_other(
                options.run,
                options.data,
                arguments=options.arguments,
                size=options.image_size,
                device=options.device,
                on_bad=options.on_bad_image,
                table=options.table,
            )
            if other
            else load(options.run, options.device, options.model)
        )
    if options.threads is None:
        with Progress("choosing the threads"):
            images = _PASSES * (options.images or AnalyzeOptions.images)
            chosen = measured_threads(loaded.model, loaded.preprocess.size, images)
        if chosen is not None:
            say(str(chosen))
    analysis = analyzing.analyze(
        loaded,
        options.data,
        options.split,
        options.output,
        options.on_bad_image,
        Plan(images=options.images, field_images=options.field_images, looks=options.looks, zooms=options.zooms),
        options.boxes,
        options.table,
        say,
    )
    said = of_studies(analysis.studies, analysis.evaluation)
    top1 = analysis.evaluation.top1
    if options.json:
        above, result = analysis.evaluation.above_chance, analysis.studies.to_dict()
        report = {"report": str(analysis.page), "top1": top1, "above_chance": above, "studies": result}
        print(json.dumps({**report, "said": said, "notes": analysis.notes}))
        return 0
    for note in analysis.notes:
        say(f"note: {note}")
    print(f"top1 {top1:.2%} on {len(analysis.evaluation):,} images")
    print("\n".join(said.get("main", ["this network has no selective-kernel units to study"])))
    print(f"report: {analysis.page}")
    return 0
