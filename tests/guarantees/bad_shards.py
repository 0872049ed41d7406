"""Cases of tar shards that are not as they should be."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from guarantees.cases import DATA, OK, USAGE, Case, Place
from guarantees.pictures import encode, noise

Member = tuple[str, bytes]
_IMAGE = encode(noise(), "PNG")


def _sample(key: str, label: object) -> list[Member]:
    return [(f"{key}.png", _IMAGE), (f"{key}.cls", str(label).encode())]


_SOUND = [member for number in range(12) for member in _sample(f"{number:02}", number % 2)]


def _write(file: Path, members: list[Member]) -> Path:
    with tarfile.open(file, "w") as shard:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    return file


def _huge_header(file: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, (1 << 33) - 512
    _write(file, _SOUND)
    file.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + file.read_bytes())


# Each as (members beside the sound ones, what the line of an error holds): with --on-bad-image skip all go on.
SAMPLES: dict[str, tuple[list[Member], str]] = {
    "no label": ([("x.png", _IMAGE)], "no label"),
    "a .json without a label": ([("x.png", _IMAGE), ("x.json", b"{}")], "no label"),
    "a .json that is none": ([("x.png", _IMAGE), ("x.json", b"[" * 100_000)], ".json cannot be read"),
    "a list of labels": ([("x.png", _IMAGE), ("x.json", b'{"label": [0]}')], "the label in its .json"),
    "an empty .cls": ([("x.png", _IMAGE), ("x.cls", b"")], "its .cls is empty"),
    "a large .cls": ([("x.png", _IMAGE), ("x.cls", b"1" * 9999)], "a .cls of 9,999 bytes"),
    "a key twice": (_sample("03", 1), "two images of one key"),
    "two images": ([*_sample("x", 1), ("x.jpg", _IMAGE)], "two images of one key"),
}
# Members beside the sound ones that change nothing.
HARMLESS: dict[str, list[Member]] = {
    "a nested tar": [("x.tar", b"x" * 2000), ("y.tar.gz", gzip.compress(b"x"))],
    "a label without an image": [("x.cls", b"1"), ("y.json", b'{"label": 1}')],
    "names that lead out": [*_sample("../../x", 1), *_sample("/etc/x", 0)],
    "names of another kind": [*_sample("a\nb", 1), *_sample("\x1b[31m", 0), *_sample("ü" * 200, 0), ("", b"")],
    "captions": [("00.txt", b"a cat"), ("01.seg.png", b"?")],
}
# Whole files.
FILES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "empty": (lambda file: file.write_bytes(b""), ("empty", "train-0.tar")),
    "zeros": (lambda file: file.write_bytes(bytes(10_240)), ("no images with labels",)),
    "text": (lambda file: file.write_text("path,label\n" * 200), ("train-0.tar",)),
    "compressed": (lambda file: file.write_bytes(gzip.compress(b"x" * 2000)), ("compressed", "train-0.tar")),
    "no members": (lambda file: _write(file, []), ("no images with labels",)),
    "captions alone": (lambda file: _write(file, [("a.txt", b"")]), ("1 .txt",)),
    "class folders": (lambda file: _write(file, [("cat/a.png", _IMAGE), ("dog/b.png", _IMAGE)]), ("unpack it",)),
    "one class": (lambda file: _write(file, [m for n in range(9) for m in _sample(str(n), 5)]), ("only class '5'",)),
    "a header of gigabytes": (_huge_header, ("a member's header of over", "train-0.tar")),
    "a folder": (lambda file: file.mkdir(), ()),
}


def shards(place: Place) -> Iterator[Case]:
    """Shards that are whole, damaged and odd."""

    def train(data: Path | str, *more: str) -> tuple[str, ...]:
        return place.train(data, *more)

    def sound() -> Path:
        folder = place.fresh()
        _write(folder / "train-0.tar", _SOUND)
        _write(folder / "val-0.tar", _SOUND[:8])
        return folder

    yield Case("as it should be", train(sound()), (OK,))
    yield Case("in an order of shards", train(sound(), "--shuffle", "shards"), (OK,))
    yield Case("a pattern", train(f"{sound()}/train-{{0..0}}.tar"), (OK,))
    yield Case("a pattern of too many", train(f"{sound()}/train-{{0..3}}.tar"), (DATA,), ("train-1.tar",))
    yield Case("a pattern of none", train(f"{sound()}/none-*.tar"), (DATA,), ("no such shard",))
    yield Case("a pattern of a billion", train(f"{sound()}/{{0..999999999}}.tar"), (DATA,), ("1,000,000",))
    yield Case("--shuffle of no kind", train(sound(), "--shuffle", "half"), (USAGE,), ("--shuffle",))
    for name, (members, shows) in SAMPLES.items():
        _write(sound() / "train-0.tar", [*_SOUND, *members])
        yield Case(name, train(place.input, "--on-bad-image", "error"), (DATA,), (shows, "train-0.tar member"))
        yield Case(f"{name}, skipped", train(place.input), (OK,))
    for name, members in HARMLESS.items():
        _write(sound() / "train-0.tar", [*_SOUND, *members])
        yield Case(name, train(place.input, "--on-bad-image", "error"), (OK,))
    for name, (made, lines) in FILES.items():
        file = place.fresh() / "train-0.tar"
        made(file)
        yield Case(name, train(place.input), (DATA,), lines)
    whole = _write(sound() / "train-0.tar", _SOUND).read_bytes()
    for percent in (3, 30, 60):
        (sound() / "train-0.tar").write_bytes(whole[: len(whole) * percent // 100])
        yield Case(f"cut at {percent} %", train(place.input, "--on-bad-image", "error"), (DATA,), ("train-0.tar",))
    for text in ("", "{}", '["a"]', '["a", "a"]', "[" * 100_000, '["a", 3]'):
        (sound() / "classes.json").write_text(text)
        words = train(place.input, "--on-bad-image", "error")
        yield Case(f"classes.json {text[:10]}", words, (DATA,), ("classes.json",))
    yield Case("an address of nobody", train("nothing://x/a.tar"), (DATA,), ("unknown kind of address",))
    yield Case("an address of no shards", train("https://127.0.0.1:9/a.zip"), (DATA,), ("a web address",))
