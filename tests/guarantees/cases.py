"""What a case of bad input is, and the sound data and the sound run that cases start from."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from guarantees.calls import TINY, Said, call
from guarantees.pictures import encode, noise

OK, USAGE, DATA, CHECKPOINT, RESOURCE = 0, 2, 3, 4, 5
TRAIN = ("--model", TINY, "--epochs", "1", "--batch-size", "4", "--image-size", "16", "--no-report", "--device", "cpu")


@dataclass(frozen=True)
class Case:
    """One command and what is expected of it.

    Attributes:
        name: of the case.
        words: of the command line.
        codes: the exit codes that are right.
        shows: texts that the error line must hold, such as the file and the flag.
        check: looks at the answer and at what was left; a text says what is wrong.
        untouched: a folder that must stay as it is; None for the place's input.
    """

    name: str
    words: tuple[str, ...]
    codes: tuple[int, ...]
    shows: tuple[str, ...] = ()
    check: Callable[[Said], str] | None = None
    untouched: Path | None = None


class Place:
    """Where cases are made: `input` holds the user's files of the case in hand, `output` what commands write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.good, self.run, self.weights = root / "good", root / "run", root / "weights.safetensors"
        self._numbers = count(1)
        self.input, self.output = root, root
        self.fresh()

    def fresh(self) -> Path:
        """A new empty input folder, and an output folder that is not there yet; what was before is gone."""
        for old in {self.input, self.output} - {self.root}:
            shutil.rmtree(old, ignore_errors=True)
        number = next(self._numbers)
        self.input, self.output = self.root / f"in{number}", self.root / f"out{number}"
        self.input.mkdir()
        return self.input

    def data(self, name: str = "data") -> Path:
        """A copy of the sound data as the input: train/ and val/ of cat/ and dog/."""
        return Path(shutil.copytree(self.good, self.fresh() / name))

    def train(self, data: Path | str, *more: str) -> tuple[str, ...]:
        """Words that train for one epoch."""
        return ("train", "--data", str(data), "--output", str(self.output), *TRAIN, *more)

    def evaluate(self, data: Path | str, *more: str, command: str = "evaluate") -> tuple[str, ...]:
        """Words that evaluate the sound run on other data."""
        where = ("--output", str(self.output)) if command == "analyze" else ()
        return (command, str(self.run), "--data", str(data), *where, "--device", "cpu", *more)

    def predict(self, *paths: Path | str) -> tuple[str, ...]:
        """Words that predict by the sound run."""
        return ("predict", str(self.run), *map(str, paths), "--device", "cpu")


def remove(paths: Iterable[Path]) -> None:
    """Remove files and folders."""
    for path in list(paths):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def folder_instead(file: Path) -> None:
    """Put a folder where a file was."""
    file.unlink()
    file.mkdir()


def make_images(root: Path, images: int, classes: Sequence[str] = ("cat", "dog")) -> Path:
    """A folder of class folders."""
    for shade, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(images):
            picture = noise(16 + 4 * shade + number)
            kind, suffix = ("JPEG", "jpg") if number % 2 else ("PNG", "png")
            (root / name / f"{number:03}.{suffix}").write_bytes(encode(picture, kind))
    return root


def make_place(root: Path) -> Place:
    """A place with sound data, a sound run on it, and its weights."""
    place = Place(root)
    make_images(place.good / "train", 4)
    make_images(place.good / "val", 2)
    said = call([*place.train(place.good), "--name", "run"], root)
    if said.code:
        raise RuntimeError(f"the sound run fails: {said.err}{said.fault}")
    shutil.move(place.output / "run", place.run)
    shutil.copy(place.run / "weights" / "best.safetensors", place.weights)
    return place


Group = Callable[[Place], Iterator[Case]]


def run_groups(
    groups: Mapping[str, Group],
    names: Iterable[str],
    root: Path,
    every: int,
    run_case: Callable[[Case, Place], list[str]],
) -> tuple[int, list[str]]:
    """Number of cases of some groups, and a paragraph for each that fails.

    Args:
        every: takes every n-th case of a group alone.
        run_case: what is wrong with how a command takes a case.
    """
    place = make_place(root)
    cases, failed = 0, []
    for name in names:
        for case in islice(groups[name](place), 0, None, every):
            cases += 1
            if wrong := run_case(case, place):
                words = shlex.join(["selkern", *case.words])[:900]
                failed.append("\n  ".join([f"{name}: {case.name}: {words}", *wrong]))
                print(failed[-1], file=sys.stderr, flush=True)
    return cases, failed
