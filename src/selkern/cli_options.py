"""The options of each command, as dataclasses that tyro turns into flags, and the parsing of a command line."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro
from tyro.conf import Positional

from selkern.data.table_options import TableOptions
from selkern.errors import UsageError
from selkern.files import require_new

T = TypeVar("T")
Run = Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
Workload = Literal["start", "article", "layer", "infer", "train", "memory", "scaling", "ddp", "data", "all"]


@dataclass(frozen=True, kw_only=True)
class ResumeOptions:
    """Continue a run in its own folder, with the options it was started with."""

    resume: str
    """The run's folder or name, or latest."""
    data: str | None = None
    """Where the run's data lie now, if they were moved; other data are refused."""
    device: str = "auto"
    """auto, cpu or cuda."""
    workers: int | None = None
    """Processes that read images ahead; cannot change a result."""
    epochs: int | None = None
    """Another number of epochs than the run was started with."""
    extend: Literal["keep", "rescale"] | None = None
    """With another --epochs: keep the planned learning rate of every epoch, or stretch the plan over all of them."""

    def __post_init__(self) -> None:
        if not self.resume:
            raise UsageError(
                "no run is named", "--resume", "give a run's folder or name, or leave it out for the latest"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Measure trained weights: top-1, top-5, loss, and every class."""

    run: Run
    """A run's folder or name, latest, a weights file, weights in the box (sknet_mini.digits), or hf-hub:user/name."""
    data: str | None = None
    """Other data than the run's own, or where those lie now: digits, a folder, .csv or .parquet."""
    split: str = "auto"
    """train, val, test or all; auto is test, or all where other data than the run's have no splits of their own."""
    output: Path | None = None
    """Folder for predictions.csv (every image), confusion.csv (a row for each true class), per_class.csv and
    evaluation.json; made where there is none, and no file in it is ever overwritten."""
    device: str = "auto"
    """auto, cpu or cuda."""
    on_bad_image: Literal["error", "skip"] = "error"
    """An image that cannot be read: end, or leave it out and say how many were."""
    table: tyro.conf.OmitArgPrefixes[TableOptions] = field(default_factory=TableOptions)
    json: bool = False
    """Print one JSON object instead of text."""

    def __post_init__(self) -> None:
        if self.output is not None and self.output.suffix.lower() in (".csv", ".json", ".jsonl", ".txt"):
            raise UsageError("a file, where several are written", f"--output {self.output}", "give a folder")


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions:
    """Evaluate trained weights, study what their selective kernels chose, and write report.html."""

    run: Run
    """A run's folder or name, latest, a weights file, weights in the box (sknet_mini.digits), hf-hub:user/name; or a
    network as its code makes it: timm:NAME, FILE.py:NAME, package.module:NAME (which are imported and run)."""
    data: str | None = None
    """Other data than the run's own, or where those lie now: digits, a folder, .csv or .parquet."""
    split: str = "auto"
    """train, val, test or all; auto is test, or all where other data than the run's have no splits of their own."""
    output: Path | None = None
    """Folder for report.html, plots/ and tables; by default the run's own, and for other data or splits one in it."""
    images: int = 1000
    """Images of the enlargement, the classes and the causal check; 0 for all."""
    field_images: int = 200
    """Images of the receptive fields; 0 for all."""
    looks: int = 3
    """Images shown one by one."""
    boxes: Path | None = None
    """A CSV of the objects' sizes: selection and field are then held against them. Columns: path (relative to the
    table); x0,y0,x1,y1 or size, px of the image file as viewers show it, upright, which become px of the network's
    input; or size_input, taken as it stands. Optional: label, the object's class; group, what images have in common
    that are not independent, such as the picture they were cut from."""
    arguments: Annotated[str, tyro.conf.arg(name="with")] = ""
    """Arguments for a network of others, as in Python: "pretrained=True"."""
    image_size: int | None = None
    """Side of the images that a network of others is shown, px; by default timm's own, else 224."""
    zooms: tuple[float, ...] = (1.0, 1.5, 2.0)
    """Enlargements of the centre, the first of them 1."""
    device: str = "auto"
    """auto, cpu or cuda."""
    on_bad_image: Literal["error", "skip"] = "error"
    """An image that cannot be read: end, or leave it out and say how many were."""
    table: tyro.conf.OmitArgPrefixes[TableOptions] = field(default_factory=TableOptions)
    json: bool = False
    """Print one JSON object instead of text."""

    def __post_init__(self) -> None:
        for name in ("images", "field_images", "looks"):
            if getattr(self, name) < 0:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{name} is {getattr(self, name)}", flag, "must be at least 0")
        if self.image_size is not None and not 1 <= self.image_size <= 8192:
            raise UsageError(f"image size is {self.image_size}", "--image-size", "must lie between 1 and 8192")
        if not self.zooms or self.zooms[0] != 1 or min(self.zooms) < 1 or not max(self.zooms) <= 16:
            raise UsageError(f"zooms are {self.zooms}", "--zooms", "must start with 1 and lie between 1 and 16")


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Name the likeliest classes of images."""

    run: Run
    """A run's folder or name, latest, a weights file, weights in the box (sknet_mini.digits), or hf-hub:user/name."""
    paths: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATH...")]
    """Image files and folders."""
    top_k: int = 5
    """Classes told per image."""
    output: Path | None = None
    """A new .csv file (path, class, probability, class_2, ..., error) or .jsonl file for the answers; written row by
    row, so that what ends the command leaves those that are done."""
    device: str = "auto"
    """auto, cpu or cuda."""
    json: bool = False
    """Print one JSON object per line instead of text."""

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UsageError(f"top-k is {self.top_k}", "--top-k", "must be at least 1")
        if self.output is not None:
            if self.output.suffix.lower() not in (".csv", ".jsonl"):
                raise UsageError("neither .csv nor .jsonl", f"--output {self.output}", "give a file named so")
            require_new(self.output)


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Turn weights of others (timm, the authors' Caffe models, torch state dicts) into a file that describes itself."""

    source: Annotated[Positional[str], tyro.conf.arg(metavar="IN")]
    """A .safetensors, .pth, .pt, .bin (restricted loading: no code runs) or .caffemodel file, or hf-hub:user/name."""
    target: Annotated[Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The new .safetensors file; never one that exists."""
    model: str
    """Which network the weights are of; `selkern models` lists them."""
    classes: Path | None = None
    """A text file with one class name per line, in the order of the outputs; without it they are numbered."""


@dataclass(frozen=True, kw_only=True)
class ModelsOptions:
    """List the networks, with parameters and multiply-adds at the image size they were designed for."""

    pattern: Annotated[Positional[str], tyro.conf.arg(metavar="PATTERN")] = "*"
    """Only names that fit, such as "sk*"; a whole name shows that network's layers and its differences."""
    json: bool = False
    """Print one JSON object instead of text."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Hold the rules of the paper and the authors' prototxt against any selective-kernel code, with the evidence.

    Ends with 0 where all rules are obeyed and with 1 where one is broken.
    """

    subject: Annotated[Positional[str], tyro.conf.arg(metavar="WHAT")]
    """A model's name, a weights file, hf-hub:user/name, timm:NAME, FILE.py:CLASS or package.module:CLASS (whose code
    is run)."""
    arguments: Annotated[str, tyro.conf.arg(name="with")] = ""
    """What a class is made with, as in Python: "64, kernels=[3, 5]"."""
    input: str | None = None
    """Shape of one input without the batch, such as 64,32,32; by default one that works is found."""
    json: bool = False
    """Print one JSON object instead of text."""

    def __post_init__(self) -> None:
        # Here, so that it is told before torch is imported; zeros are left to the model.
        if self.input is not None and not re.fullmatch(r"\d{1,7}(,\d{1,7})*", self.input):
            raise UsageError(f"{self.input[:40]!r} is no shape", "--input", "write it as 64,32,32")


@dataclass(frozen=True, kw_only=True)
class DataCheckOptions:
    """Decode every image of a data set once and tell what would spoil a training; nothing of yours is changed.

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
    """Of the sheet: the network, by default as for `train`."""
    weights: str | None = None
    """Of the sheet: weights or a run, whose card says how images are prepared."""
    image_size: int | None = None
    """Of the sheet: side of the network's input, px; by default as for `train`."""
    eval_crop: float | None = None
    """Of the sheet: the share of the resized side that the centre crop keeps; by default as for `train`."""
    resize: Literal["crop", "squash", "pad"] | None = None
    """Of the sheet: centre crop, squashed to a square, or padded to one; by default as for `train`."""
    white_level: str = ""
    """Of the sheet: what is white of deep pixels; by default as for `train`."""
    json: bool = False
    """Print one JSON object instead of text."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"workers is {self.workers}", "--workers", "must be at least 0")
        if self.image_size is not None and not 8 <= self.image_size <= 8192:
            raise UsageError(f"image size is {self.image_size}", "--image-size", "must lie between 8 and 8192")
        if self.sheet is not None and self.sheet.suffix.lower() != ".png":
            raise UsageError("not a .png file", f"--sheet {self.sheet}", "give a name that ends with .png")
        for name in ("model", "weights", "image_size", "eval_crop", "resize", "white_level"):
            if self.sheet is None and getattr(self, name) not in (None, ""):
                flag = "--" + name.replace("_", "-")
                raise UsageError("only for the sheet", flag, "give --sheet sheet.png with it")


@dataclass(frozen=True, kw_only=True)
class DataImportOptions:
    """Cut the objects out of pictures with boxes: one image each, in class folders that `train` takes, and boxes.csv.

    A window shows all objects at the scale of their picture, so that a network sees their true size. A tight crop
    fills the image with its object: once resized, it shows no size. All crops of a picture are in one split. Boxes and
    pictures that cannot be used are counted, and listed in left_out.csv.
    """

    format: Annotated[Positional[Literal["voc", "yolo", "coco"]], tyro.conf.arg(metavar="voc|yolo|coco")]
    """Pascal VOC (XML), YOLO (text files, data.yaml) or COCO (JSON); Roboflow's exports of each, too."""
    folder: Annotated[Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """The data set; it is only read."""
    to: Path
    """A new or empty folder for the crops."""
    crop: Literal["window", "tight"] = "window"
    """window: one size around each box's centre, keeps true size; tight: the box itself, shows no size."""
    size: int | None = None
    """Side of the window, px; by default what holds 95 % of the boxes of the average class."""
    margin: float = 0.0
    """Added to each side of a tight crop, as a share of the box's side."""
    least: float = 4.0
    """Boxes with a side below this many px are left out."""
    most: int | None = None
    """At most so many boxes of a class in a picture, drawn by the seed."""
    leave_out: tuple[Literal["difficult", "truncated", "border"], ...] = ()
    """Boxes marked difficult or truncated (VOC), and those that touch the picture's border."""
    splits: Literal["own", "new"] = "own"
    """The data set's own splits, completed where val (or all) is missing; or new ones, 80/10/10."""
    group: str | None = None
    """A regular expression on a picture's path: pictures with the same match (or first group in it) stay together,
    such as '(patient[0-9]+)'. By default each picture is a group."""
    seed: int = 0
    """Of new splits and of --most."""
    white_level: str = "auto"
    """Of 16-bit, 32-bit and float pixels, what is white in the crops, which have 8 bits: a value (or BLACK:WHITE),
    full, percentile (each picture by its own values), or auto, the range that the pictures use, in whole bits."""
    json: bool = False
    """Print one JSON object instead of text."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Measure our code beside timm's, the article's and the bare convolutions, in turn, against the project's goals.

    Prints a table and, as its last line, one JSON object; writes both and a chart into a new folder.
    """

    workloads: Annotated[Positional[tuple[Workload, ...]], tyro.conf.arg(metavar="WORKLOAD...")] = ()
    """start, article, layer, infer, train, memory, scaling, ddp, data or all; by default a short set (minutes)."""
    budget: float = 10.0
    """Seconds for the rounds of one comparison; at least three rounds are run."""
    rounds: int | None = None
    """Exactly so many rounds instead."""
    threads: int | None = None
    """Of torch; by default what `selkern doctor` tells."""
    batches: tuple[int, ...] = ()
    """Of infer: 1 8 32; in the short set 1 8."""
    train_batch: int = 8
    """Of train."""
    compile: bool = False
    """Also measure what torch.compile makes of SKNet-50; compiling takes minutes."""
    output: Path = Path("bench-results")
    """Folder in which the run's own is made."""
    trial: bool = False
    """Small shapes that try the harness itself: figures without a meaning, in seconds."""
    json: bool = False
    """Print the JSON object alone."""

    def __post_init__(self) -> None:
        for name in ("rounds", "threads", "train_batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name} is {value}", f"--{name.replace('_', '-')}", "must be at least 1")
        if not self.budget > 0:
            raise UsageError(f"budget is {self.budget}", "--budget", "must be above 0")
        if any(batch < 1 for batch in self.batches):
            raise UsageError(f"batches are {self.batches}", "--batches", "must be at least 1 each")


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Tell versions, devices, cores, settings, disk, missing packages and a short measured speed of this machine."""

    json: bool = False
    """Print one JSON object instead of text."""


def parse_known(cls: type[T], argv: list[str], command: str) -> T:
    """What of a command line a dataclass has options for; the rest, a request for help too, is passed over.

    Raises:
        UsageError: as `parse` says.
    """
    words = [word for word in argv if word not in ("-h", "--help")]
    with _one_line_errors(command):
        known, _ = tyro.cli(cls, args=words, prog=f"selkern {command}", return_unknown_args=True)
    return known


def parse(cls: type[T], argv: list[str], command: str, default: T | None = None) -> T:
    """A command line as a dataclass.

    Raises:
        UsageError: a mistake, as one line instead of tyro's box.
        SystemExit: with code 0, after help was asked for and printed.
    """
    with _one_line_errors(command):
        if default is None:
            return tyro.cli(cls, args=argv, prog=f"selkern {command}")
        return tyro.cli(cls, args=argv, prog=f"selkern {command}", default=default)


@contextlib.contextmanager
def _one_line_errors(command: str) -> Iterator[None]:
    """Within the block, the box that tyro prints for a mistake becomes an error of ours."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(*_one_line(printed.getvalue(), command)) from None


def _one_line(box: str, command: str) -> tuple[str, ...]:
    """What, where and what to do, out of the box that tyro prints: a title, what is wrong, a rule, advice."""
    box = re.sub(r"\x1b\[[\d;]*m", "", box)  # on a terminal it is coloured
    # Where the terminal knows no box characters, the box has no sides, and a rule beneath its title too.
    indented = [re.sub(r"^[│╭╰]|[│╮╯]$", "", line).rstrip() for line in box.strip().splitlines()[1:]]
    lines = [line.strip() for line in indented]
    rules = [i for i, line in enumerate(lines) if re.fullmatch("─+|-{9,}", line)]
    if rules and rules[0] == 0:
        indented, lines, rules = indented[1:], lines[1:], [i - 1 for i in rules[1:]]
    rule = rules[0] if rules else len(lines)
    what = " ".join(" ".join(lines[:rule]).split())
    # A message of ours, from the validation of the options; a bar alone may be the user's.
    if (ours := re.fullmatch(r"Error parsing [A-Za-z][\w.]*: (.+? \| .+? \| .+)", what)) is not None:
        return tuple(ours[1].split(" | ", 2))
    if what.startswith("Missing from "):  # a line for each option, and beneath it, further in, what it is for
        depths = [len(line) - len(line.lstrip()) for line in indented[1:rule]]
        what = f"missing: {', '.join(lines[i] for i, depth in enumerate(depths, start=1) if depth == min(depths))}"
    near = re.search(r"Perhaps you meant:.*?(--[\w.-]+)", box, flags=re.DOTALL)
    return what, f"selkern {command}", f"did you mean {near[1]}?" if near else f"see `selkern {command} --help`"
