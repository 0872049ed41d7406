"""Cases of single images: every odd and broken picture, and things that only look like an image file."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from guarantees.calls import Said
from guarantees.cases import DATA, OK, Case, Place
from guarantees.pictures import Picture, broken, encode, noise, sound


def bad_files(place: Place) -> dict[str, str]:
    """Reason by file of a run's bad_files.csv; empty where nothing was left out."""
    files = list(place.output.glob("*/bad_files.csv"))
    if not files:
        return {}
    with files[0].open(newline="", encoding="utf-8") as file:
        return {row["file"]: row["reason"] for row in csv.DictReader(file)}


def left_out(place: Place, names: set[str] | None) -> Callable[[Said], str]:
    """A check that training left out just these files of the input; None asks for nothing."""

    def check(said: Said) -> str:
        result = {Path(file).name for file in bad_files(place)}
        if names is not None and result != names:
            return f"bad_files.csv names {sorted(result)}, not {sorted(names)}"
        return "" if all(name in said.err for name in result) else "a file that was left out is not named"

    return check


def pictures(place: Place) -> Iterator[Case]:
    """Every picture, predicted alone and in a folder to train on; the broken ones evaluated as well."""
    for picture in (*sound(), *broken()):
        codes = {True: (OK,), False: (DATA,), None: (OK, DATA)}[picture.readable]
        file = place.fresh() / picture.name
        file.write_bytes(picture.data)
        yield Case(f"{picture.name} predicted", place.predict(file), codes, (str(file),))
        file = _among_others(place, picture)
        names = {True: set[str](), False: {picture.name}, None: None}[picture.readable]
        yield Case(f"{picture.name} trained on", place.train(place.input / "data"), (OK,), (), left_out(place, names))
        if picture.readable is False and picture.name.endswith("png"):
            yield Case(
                f"{picture.name} as an error",
                place.train(place.input / "data", "--on-bad-image", "error"),
                (DATA,),
                (str(file),),
            )
    for command in ("evaluate", "analyze"):
        yield from _in_validation(place, command)


def _among_others(place: Place, picture: Picture, part: str = "train") -> Path:
    """The sound data with one file more; batches hold every image, so that it is surely met."""
    folder = place.data() / part / "cat"
    for number, old in enumerate(sorted(folder.iterdir())):
        if number > 2:
            old.unlink()
    file = folder / picture.name
    file.write_bytes(picture.data)
    return file


def _in_validation(place: Place, command: str) -> Iterator[Case]:
    data = place.data()
    file = min((data / "val" / "cat").iterdir())
    file.write_bytes(encode(noise(), "JPEG")[:300])
    yield Case(f"{command}, a broken image", place.evaluate(data, command=command), (DATA,), (str(file),))

    def reported(said: Said) -> str:
        return "" if command == "analyze" or "1 could not be read" in said.out else "the image left out is not counted"

    words = place.evaluate(data, "--on-bad-image", "skip", command=command)
    yield Case(f"{command}, a broken image skipped", words, (OK,), (), reported)
    for image in (data / "val").rglob("*.*"):
        image.write_bytes(b"")
    yield Case(f"{command}, every image broken", words, (DATA,), ("can be read",))


def _line(number: int) -> Callable[[Said], str]:
    return lambda said: (
        "" if said.out.count("\n") == number else f"{said.out.count(chr(10))} lines of answers, not {number}"
    )


def odd_files(place: Place) -> Iterator[Case]:
    """What lies in image folders beside images, and paths that lead nowhere or never end."""
    makers: dict[str, Callable[[Path], object]] = {
        "a folder named x.jpg": lambda path: path.mkdir(),
        "a link to nothing": lambda path: path.symlink_to("nothing.jpg"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "a pipe": os.mkfifo,
        "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    }
    for name, make in makers.items():
        for command in ("train", "evaluate", "predict the folder", "predict it"):
            data = place.data()
            odd = data / "train" / "cat" / "x.jpg"
            make(odd)
            if command == "train":
                yield Case(
                    f"{name}, {command}", place.train(data, "--batch-size", "8"), (OK,), (), left_out(place, set())
                )
            elif command == "evaluate":
                yield Case(f"{name}, {command}", place.evaluate(data, "--split", "train"), (OK,))
            elif command == "predict it":
                yield Case(f"{name}, {command}", place.predict(odd), (DATA,), (str(odd),))
            else:
                yield Case(f"{name}, {command}", place.predict(odd.parent), (OK,), (), _line(4))
    for name, make in makers.items():
        data = place.data()
        make(data / "train" / "cat" / "x.jpg")
        (data / "table.csv").write_text("path,label\ntrain/dog/000.png,dog\ntrain/cat/x.jpg,cat\n")
        words = place.train(data / "table.csv", "--on-bad-image", "error")
        yield Case(f"{name} in a table", words, (DATA,), ("table.csv line 3", "x.jpg"))
    yield from _rights(place)
    yield from _predicted_paths(place)


def _rights(place: Place) -> Iterator[Case]:
    """Root reads files without rights: there the images are as good as any."""
    root = os.geteuid() == 0
    file = _among_others(place, Picture("locked.png", encode(noise(), "PNG"), True))
    file.chmod(0)
    yield Case("no right to read, predicted", place.predict(file), (OK,) if root else (DATA,), (str(file),))
    names = set[str]() if root else {"locked.png"}
    yield Case("no right to read, trained on", place.train(place.input / "data"), (OK,), (), left_out(place, names))


def _predicted_paths(place: Place) -> Iterator[Case]:
    folder = place.fresh()
    yield Case("predict a folder without images", place.predict(folder), (DATA,), (str(folder), "no images"))
    yield Case("predict what is not there", place.predict(folder / "no.png"), (DATA,), ("no.png",))
    yield Case("predict a very long name", place.predict("x" * 5000), (DATA,), ("xxxx",))
    yield Case("predict under a file", place.predict(place.weights / "x.png"), (DATA,), ("x.png",))
    for name in (
        "a b.png",
        "  two  spaces .png",
        "line\nbreak.png",
        "tab\t.png",
        "-dash.png",
        "über 猫 🐈.png",
        "a | b.png",
    ):
        file = place.fresh() / name
        file.write_bytes(encode(noise(), "PNG"))
        yield Case(f"a name such as {name!r}", place.predict(file), (OK,), (), _line(1))
    file = place.fresh() / os.fsdecode(b"latin-\xe9.png")
    file.write_bytes(encode(noise(), "PNG"))
    yield Case("a name that is not UTF-8", place.predict(file), (OK,), (), _line(1))
    yield Case("a name that is not UTF-8, as JSON", (*place.predict(file), "--json"), (OK,), (), _line(1))
    good, bad = place.data() / "val" / "cat" / "000.png", place.input / "bad  name.png"
    bad.write_bytes(b"no")
    yield Case("one bad among good", place.predict(good, bad), (DATA,), ("bad  name.png",), _line(1))
