"""``selkern data``, and ``selkern data check``: every image decoded once, and what would spoil a training."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from selkern import __version__
from selkern.cli.parse import parse
from selkern.data import LARGEST_IMAGE
from selkern.data.table_options import TableOptions
from selkern.errors import UsageError, printable
from selkern.io import require_new, write_csv
from selkern.progress import Progress, aligned, say

if TYPE_CHECKING:
    from selkern.data.check import DataCheck, Place
    from selkern.data.split import Source


@dataclass(frozen=True, kw_only=True)
class DataCheckOptions:
    """Decode every image of a data set once and list what would spoil a training; nothing of yours is changed.

    Serious are images that cannot be read, one picture in two splits, and one picture under two labels. Copies are
    found by their pixels: under any name and in any format without loss, but not where JPEG compressed them again.
    Ends with 0 where nothing serious is found and with 3 otherwise.
    """

    source: Annotated[Positional[str], tyro.conf.arg(metavar="DATA")]
    """What `train --data` takes: a folder, .csv or .parquet."""
    table: tyro.conf.OmitArgPrefixes[TableOptions] = field(default_factory=TableOptions)
    workers: int | None = None
    """Processes that decode; by default one for each usable core, at most 16. Cannot change a result."""
    output: Path | None = None
    """A new .csv file with every unreadable image and every picture that is there twice."""
    sheet: Path | None = None
    """A new .png file with up to 48 images as training would show them to the network: decoded, resized, cropped."""
    model: str = ""
    """With --sheet: the network whose input is drawn; by default the one that `train` would choose."""
    weights: str | None = None
    """With --sheet: weights or a run; images are prepared as for these."""
    image_size: int | None = None
    """With --sheet: side of the network's input, px; by default as in `train`."""
    eval_crop: float | None = None
    """With --sheet: share of the resized side that the centre crop keeps; by default as in `train`."""
    resize: Literal["crop", "squash", "pad"] | None = None
    """With --sheet: cut the centre out, squash to a square, or pad to one; by default as in `train`."""
    white_level: str = ""
    """What is white of pixels of more than 8 bits, as in `train`; only with --sheet."""
    json: bool = False
    """Print one JSON object instead of text."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"workers is {self.workers}", "--workers", "must be at least 0")
        if self.image_size is not None and not 8 <= self.image_size <= LARGEST_IMAGE:
            fix = f"must lie between 8 and {LARGEST_IMAGE}"
            raise UsageError(f"image size is {self.image_size}", "--image-size", fix)
        if self.sheet is not None and self.sheet.suffix.lower() != ".png":
            raise UsageError("not a .png file", f"--sheet {self.sheet}", "give a name that ends with .png")
        for name in ("model", "weights", "image_size", "eval_crop", "resize", "white_level"):
            if self.sheet is None and getattr(self, name) not in (None, ""):
                flag = "--" + name.replace("_", "-")
                raise UsageError("only for the sheet", flag, "give --sheet sheet.png with it")


COMMANDS = {
    "check": "decode every image once: broken files, leaks between splits, labels that disagree, odd classes",
    "pack": "write any data as tar shards (WebDataset), which are read fast from any disk or store",
    "import": "cut the objects out of pictures with boxes (VOC, YOLO, COCO): one image each, in class folders",
}
HELP = f"""usage: selkern data COMMAND [OPTIONS]

commands:
{chr(10).join(f"  {name:10}{text}" for name, text in COMMANDS.items())}

`selkern data COMMAND --help` shows a command's options."""

_SHOWN = 10  # findings of a kind that the screen shows; --json and --output have all
_COPIES = 3  # places of one picture that it shows
_LONGEST = 28  # characters of a class name
_MOST_WORKERS = 16  # by default


def main(argv: list[str]) -> int:
    """`selkern data`, which has commands of its own."""
    if argv and argv[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if not argv:
        raise UsageError("no command given", "selkern data", "such as `selkern data check FOLDER`")
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        fix = f"did you mean {near[0]}?" if near else f"one of {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {argv[0]!r}", "selkern data", fix)
    if argv[0] == "import":
        from selkern.cli.data_import import main as import_main

        return import_main(argv[1:])
    if argv[0] == "pack":
        from selkern.cli.data_pack import main as pack_main

        return pack_main(argv[1:])
    return check(argv[1:])


def check(argv: list[str]) -> int:
    """`selkern data check`; 3 where something serious is found."""

    options = parse(DataCheckOptions, argv, "data check")
    for flag, path in (("--output", options.output), ("--sheet", options.sheet)):
        if path is not None:
            require_new(path, flag)
    say(f"selkern {__version__}: checking {printable(options.source)}")
    from selkern.data.check import check_data
    from selkern.data.levels import parse_levels
    from selkern.tuning import usable_cores

    workers = min(usable_cores()[0], _MOST_WORKERS) if options.workers is None else options.workers
    with Progress("listing the images") as line:
        source, uncut = _open(options)
        if options.sheet is not None:
            line.show("drawing the sheet")
            drawn = _write_sheet(options, options.sheet, source)
        line.show("decoding", total=sum(map(len, source.parts)))
        white = parse_levels(options.white_level or "auto")
        result = check_data(source, workers=workers, white=white, progress=line.advance)
        result = replace(result, uncut=uncut)
    if options.json:
        print(json.dumps(result.to_dict()))
    else:
        print("\n".join(_text(result, all_listed=options.output is not None)))
    if options.output is not None:
        require_new(options.output)
        write_csv(options.output, ("finding", "number", "file", "split", "label", "reason"), list(result.to_rows()))
        if not options.json:
            print(f"\nwritten: {options.output}")
    if options.sheet is not None and not options.json:
        print(f"\nwritten: {options.sheet}", *drawn, sep="\n")
    if not options.json:
        print(f"\n{_verdict(result)}")
    return 3 if result.serious else 0


def _open(options: DataCheckOptions) -> tuple[Source, str]:
    """The source, and why training would refuse to cut splits off, which is no reason not to check it."""
    from selkern.data.sources import open_source
    from selkern.data.splitting import TooFewError

    try:
        return open_source(options.source, on_bad="skip", table=options.table), ""
    except TooFewError as error:
        return open_source(options.source, on_bad="skip", table=options.table, cut=False), error.what


def _verdict(result: DataCheck) -> str:
    count = result.serious + result.remarks
    if not count:
        return "fine"
    return f"{_many(count, 'thing')} to look at, {result.serious or 'none'} serious"


def _text(result: DataCheck, all_listed: bool) -> Iterator[str]:
    """What is printed above the verdict. `all_listed`: whether a file lists what is left out here."""
    from selkern.data.split import kind_of

    classes = _many(len(result.classes), "class", "classes")
    yield f"{result.name}: {result.kind}, {_many(result.images, 'image')}, {classes}"
    yield ""
    yield from _table(result)
    if result.sizes is not None:
        low, high = result.sizes.smallest, result.sizes.largest
        alike = (low.width, low.height) == (high.width, high.height)
        yield f"\nsizes    {low.width} x {low.height}" + ("" if alike else f" to {high.width} x {high.height}") + " px"
        if result.sizes.wide:
            shown = "a centre crop does not show the ends; train --resize squash or pad shows all"
            yield f"         {result.sizes.wide:,} of 4:3 or longer: {shown}"
    for what, examples in _serious(result):
        yield f"\nSERIOUS  {what}"
        yield from _listed(examples, all_listed)
    gap = "\n"
    for what, examples in _remarks(result):
        yield f"{gap}look     {what}"
        yield from _listed(examples, all_listed)
        gap = "\n" if examples else ""
    for note in result.notes:
        if not kind_of(note):  # notes of a kind are among the findings, which say more
            yield f"{gap}note     {note}"
            gap = ""


def _table(result: DataCheck) -> Iterator[str]:
    """Images and classes of every part, the classes with the fewest and the most images, and their ratio."""
    rows = [["split", "images", "classes", "smallest class", "largest class", "ratio"]]
    for part in result.parts:
        ends = [f"{_short(result.classes[c])} {part.counts[c]:,}" for c in part.extremes]
        rows.append([part.name, f"{part.images:,}", f"{sum(map(bool, part.counts)):,}", *ends, f"{part.ratio:.1f}"])
    yield from aligned(rows, least=6)


def _serious(result: DataCheck) -> Iterator[tuple[str, list[str]]]:
    """(finding, a line for each image or picture)."""
    if result.left_out:
        lines = [f"{result.short(row.where)}: {row.reason}" for row in result.left_out]
        yield f"{_many(len(lines), 'row or file', 'rows or files')} left out: in no split", lines
    if result.unreadable:
        width = max(len(result.short(bad.file)) for bad in result.unreadable[:_SHOWN])
        lines = [f"{result.short(bad.file):{width}}  {bad.reason}" for bad in result.unreadable]
        yield f"{_many(len(lines), 'image')} cannot be read", lines
    if result.leaks:
        what = f"{_many(len(result.leaks), 'picture')} in more than one split: the figures of val and test mislead"
        yield what, [_places(result, group, "split") for group in result.leaks]
    if result.conflicts:
        what = f"{_many(len(result.conflicts), 'picture')} with more than one label"
        yield what, [_places(result, group, "label") for group in result.conflicts]


def _remarks(result: DataCheck) -> Iterator[tuple[str, list[str]]]:
    """(finding, a line for each picture; none where the finding says it all)."""
    if result.uncut:
        yield f"{result.uncut}: train refuses them, evaluate takes all", []
    for doubt in result.doubtful:
        yield doubt, []
    if result.lost:
        what = f"{_many(len(result.lost), 'image')} of which half of the pixels and more lie beyond black or white"
        yield what, [result.short(place.file) for place in result.lost]
    if result.repeats:
        what = f"{_many(len(result.repeats), 'picture')} more than once in one class"
        if result.cut_off:
            what += f"; the random cut of {' and '.join(result.cut_off)} may put one on both sides"
        yield what, [_places(result, group, "label") for group in result.repeats]
    if result.empty_classes:
        yield f"no image of {_names(result.empty_classes)}", []
    for name, classes in result.missing_classes.items():
        yield f"no image in {name} of {_names(classes)}", []
    if result.uneven:
        part = result.parts[0]
        few, many = (f"{result.classes[c]} {part.counts[c]:,}" for c in part.extremes)
        yield f"classes of very different size in {part.name}: {few}, {many}", []
    if result.sizes is not None:
        from selkern.data.check import LONG, SMALL

        sizes = result.sizes
        for count, what, one in (
            (sizes.small, f"with a side below {SMALL} px", sizes.smallest),
            (sizes.long, f"with one side more than {LONG} times the other", sizes.longest),
        ):
            if count:
                such = f"such as {result.short(one.file)}, {one.width} x {one.height}"
                yield f"{_many(count, 'image')} {what}, {such}", []


def _listed(lines: Sequence[str], all_listed: bool) -> Iterator[str]:
    """The first of some lines, set in."""
    yield from (f"{'':11}{line}" for line in lines[:_SHOWN])
    if len(lines) > _SHOWN:
        yield f"{'':11}and {len(lines) - _SHOWN:,} more" + ("" if all_listed else "; --output FILE.csv lists all")


def _places(result: DataCheck, group: Sequence[Place], key: Literal["split", "label"]) -> str:
    """Where a picture is, in one line: first a place for each of its splits or labels."""
    firsts: dict[str, Place] = {}
    for place in group:
        firsts.setdefault(getattr(place, key), place)
    chosen = list(firsts.values())
    chosen += [place for place in group[: _COPIES + len(chosen)] if place not in chosen]
    # The path of a file in a folder shows both.
    shown = "" if result.kind == "folder" else " [{}]"
    names = [result.short(place.file) + shown.format(getattr(place, key)) for place in chosen[:_COPIES]]
    return " = ".join(names) + (f" and {len(group) - _COPIES:,} more" if len(group) > _COPIES else "")


def _names(classes: Sequence[str]) -> str:
    """Some classes, however many."""
    more = f" and {len(classes) - _SHOWN:,} more classes" if len(classes) > _SHOWN else ""
    return ("class " if len(classes) == 1 else "classes ") + ", ".join(map(_short, classes[:_SHOWN])) + more


def _short(name: str) -> str:
    """A class name that fits into a table."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."


def _many(count: int, one: str, more: str = "") -> str:
    """3 -> "3 images"."""
    return f"{count:,} {one if count == 1 else more or f'{one}s'}"


def _write_sheet(options: DataCheckOptions, path: Path, source: Source) -> list[str]:
    """Write the sheet of a source; returns how images become inputs, and remarks on that, a line each."""
    from selkern.data.check import settled_levels
    from selkern.data.levels import parse_levels, show_levels
    from selkern.data.sheet import draw_sheet
    from selkern.io import write_atomic
    from selkern.train.defaults import Asked, choose_defaults

    asked = Asked(
        data=options.source,
        model=options.model,
        weights=options.weights,
        image_size=options.image_size,
        resize=options.resize,
        table=options.table,
    )
    defaults = choose_defaults(asked, source=source)
    training = defaults.options.training
    if options.image_size is not None:
        training = replace(training, image_size=options.image_size)
    if options.eval_crop is not None:
        training = replace(training, eval_crop=options.eval_crop)
    chosen = replace(defaults.options, training=training)
    levels, _ = settled_levels(source, parse_levels(options.white_level or training.white_level))
    preprocess = replace(training.preprocess, levels=levels)
    said = defaults.input_line(chosen)
    colours = ", ".join(
        f"{name} {' '.join(f'{value:.3g}' for value in values)}"
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std))
    )
    if levels != "full":
        colours += f", white level {show_levels(levels)}"
    heading = f"{source.name}, as {chosen.model} is shown it"
    write_atomic(path, draw_sheet(source, preprocess, [heading, said, colours]))
    return [said, *(f"note: {note}" for note in defaults.input_notes(chosen))]
