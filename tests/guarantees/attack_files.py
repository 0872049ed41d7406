"""Attacks that are no pickles: headers, markup, tables and images made to run, to fill memory or to take hours."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from guarantees.pictures import chunk, claims, encode, noise, png, profile_bomb, tiff
from selkern.models.weights import FORMAT

HUGE = 1 << 40  # bytes of a file that holds nothing: a terabyte that takes no place on the disk


def sparse(file: Path, size: int, start: bytes = b"") -> Path:
    """A file of so many bytes, of which only the first are on the disk."""
    file.write_bytes(start)
    os.truncate(file, size)
    return file


def _safe(header: Any, tail: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + tail


def _card(**values: Any) -> dict[str, Any]:
    card = {"model": "sk_tiny", "classes": ["a", "b"], "in_chans": 3, "preprocess": {}, "metrics": {}, "source": {}}
    return {"__metadata__": {"format": FORMAT, "card": json.dumps(card | values)}}


def safetensors(folder: Path) -> Iterator[tuple[str, Path]]:
    """Hostile safetensors files: (what it is, the file)."""
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    shapes = {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}
    made = {
        "a header of 100 GB": _safe(b"{}", length=100 << 30),
        "a header of 2^64 bytes": _safe(b"{}", length=(1 << 64) - 1),
        "tensors over each other": _safe({"a": one, "b": one}, bytes(8)),
        "a tensor beyond the end": _safe({"a": {**one, "data_offsets": [0, 1 << 40]}}, bytes(8)),
        "a tensor before the start": _safe({"a": {**one, "data_offsets": [-8, 0]}}, bytes(8)),
        "an end before its start": _safe({"a": {**one, "data_offsets": [8, 0]}}, bytes(8)),
        "a shape of 2^80": _safe({"a": shapes}, bytes(8)),
        "a shape below nothing": _safe({"a": {**one, "shape": [-2]}}, bytes(8)),
        "one name twice": _safe(
            b'{"a":' + json.dumps(one).encode() + b',"a":' + json.dumps(one).encode() + b"}", bytes(8)
        ),
        "brackets without end": _safe(b"[" * 1_000_000),
        "brackets in its metadata": _safe(b'{"__metadata__":' + b"{" * 1_000_000),
        "brackets in its card": _safe({"__metadata__": {"format": FORMAT, "card": "[" * 1_000_000}}),
        "a name that leads out": _safe({"../../../../tmp/x": one}, bytes(8)),
        "a card of 10^12 channels": _safe({**_card(in_chans=10**12), "stem.0.weight": one}, bytes(8)),
        "a card of a million classes": _safe({**_card(classes=[str(n) for n in range(1_000_000)]), "a": one}, bytes(8)),
        "a card with a colour code": _safe({**_card(model="\x1b[2J\x1b]0;x\x07"), "a": one}, bytes(8)),
        "a card of an absurd size": _safe({**_card(preprocess={"size": 10**9}), "a": one}, bytes(8)),
    }
    for name, data in made.items():
        file = folder / "w.safetensors"
        file.write_bytes(data)
        yield name, file
    yield "a terabyte of nothing", sparse(file, HUGE)
    header = {**_card(), "fc.weight": {"dtype": "U8", "shape": [HUGE], "data_offsets": [0, HUGE]}}
    start = _safe(header)
    yield "a terabyte in one tensor", sparse(file, len(start) + HUGE, start)


# Each is the text of a config.yaml; {canary} is the file that it would make.
YAML = {
    "python/object/apply": "data: !!python/object/apply:os.system ['touch {canary}']",
    "python/object/new": "data: !!python/object/new:os.system ['touch {canary}']",
    "python/name": "data: !!python/name:os.system",
    "python/module": "data: !!python/module:os",
    "python/object": "!!python/object:selkern.train.options.TrainOptions {{}}",
    "nested in a recipe": "training: {{lr: !!python/object/apply:eval ['open({canary!r}, \"w\")']}}",
    "a billion laughs": "a0: &a0 [x, x]\n"
    + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    + "data: *a59",
    "a billion laughs in a mean": "training: {{mean: &a [&b [&c [1, 1], *c, *c], *b, *b]}}",
    "itself within itself": "&a data: *a\ntraining: &b {{augment: *b}}",
    "a list within itself": "data: &a [*a]",
    "merges": "a: &a {{data: x}}\n<<: [" + "*a, " * 20_000 + "*a]",
    "minutes of minutes": "seed: 1" + ":1" * 100_000,
    "brackets without end": "[" * 500_000,
    "a name that leads out": "name: ../../../x\ndata: /nothing",
    "a colour code as key": '"\\e[2J\\e]0;x\\a": 1',
}  # fmt: skip


def state_files(state: Path, canary: Path, pickled: bytes) -> Iterator[str]:
    """A saved state (a folder of `state/`) made hostile, one way after the other: what it is."""
    whole = {file.name: file.read_bytes() for file in state.iterdir()}
    deep = b"[" * 1_000_000
    manifest = json.loads(whole["manifest.json"])
    outside = {**manifest, f"../../{canary.name}": manifest["progress.json"]}
    for name, change in {
        "a pickle as progress": {"progress.json": pickled},
        "progress of brackets": {"progress.json": deep},
        "a manifest of brackets": {"manifest.json": deep},
        "a manifest that leads out": {"manifest.json": json.dumps(outside, indent=1).encode()},
        "a manifest of /etc": {
            "manifest.json": json.dumps({"/etc/passwd": {"bytes": 1, "sha256": ""}}, indent=1).encode()
        },
        "a pickle as model": {"model.safetensors": pickled},
    }.items():
        for file, data in (whole | change).items():
            (state / file).write_bytes(data)
        if "manifest.json" not in change:  # in order, as whoever writes the one can write the other
            (state / "manifest.json").write_bytes(_manifest(whole | change))
        yield name
    for file, data in whole.items():
        (state / file).write_bytes(data)
    for file in ("model.safetensors", "progress.json", "manifest.json"):
        sparse(state / file, HUGE)
        yield f"a terabyte as {file}"
        (state / file).write_bytes(whole[file])


def _manifest(files: dict[str, bytes]) -> bytes:
    reported = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
        if name != "manifest.json"
    }
    return json.dumps(reported, indent=1).encode()


def caffemodels(folder: Path) -> Iterator[tuple[str, Path]]:
    """Hostile Caffe files."""
    blob = b"\x3a\x0a\x0a\x08" + b"\xff" * 8  # shape of dimensions that overflow
    made = {
        "a length of 2^63": b"\xa2\x06" + b"\xff" * 9 + b"\x01",
        "a length of 2 GB": b"\xa2\x06\xff\xff\xff\xff\x07abc",
        "messages within messages": b"\xa2\x06\x7f" * 100_000,
        "dimensions of 2^62": b"\xa2\x06" + bytes([len(blob) + 2]) + b"\x3a" + bytes([len(blob)]) + blob,
        "a number without end": b"\xff" * 1000,
        "groups without end": b"\x0b" * 1_000_000,
    }
    for name, data in made.items():
        file = folder / "w.caffemodel"
        file.write_bytes(data)
        yield name, file
    yield "a terabyte of nothing", sparse(file, HUGE)


def images(folder: Path) -> Iterator[tuple[str, Path]]:
    """Hostile images."""
    tags = [(700 + n, 1, 1 << 20, 8) for n in range(3000)]  # 3,000 tags, all of the same megabyte
    sides = [(256, 4, 1, 20), (257, 4, 1, 20), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    bomb = tiff([*sides, (278, 4, 1, 20), (279, 4, 1, 400), *tags], bytes(1 << 20))
    sound = encode(noise(), "PNG")
    exif = chunk(b"eXIf", tiff(tags, bytes(1 << 20)))
    text = zlib.compress(bytes(1 << 28))
    made = {
        **{f"claims 900 Mpx: {picture.name}": (picture.name, picture.data) for picture in claims(30_000, 30_000)},
        **{f"claims 4,294 Mpx: {picture.name}": (picture.name, picture.data) for picture in claims(65_535, 65_535)},
        "claims 268 Mpx: webp": next((p.name, p.data) for p in claims(16_383, 16_383) if p.name.endswith("webp")),
        "text that unpacks to 256 MB": ("a.png", png(20, 20, chunk(b"zTXt", b"note\0\0" + text))),
        "international text of 256 MB": ("a.png", png(20, 20, chunk(b"iTXt", b"note\0\1\0\0\0" + text))),
        "tags that unpack to 3 GB": ("a.tif", bomb),
        "markup": ("a.png", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'),
        "a page": ("a.jpg", b"<html><script>alert(1)</script></html>"),
        "PostScript": ("a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch x) system"),
        "a name of a colour code": ("\x1b[31m\x1b]0;title\x07.png", b"no image"),
        "a name of markup": ('"><script>alert(1)<.png', b"no image"),
        "a name that turns around": ("a\u202egnp.exe.png", b"no image"),
    }  # fmt: skip
    for name, (file, data) in made.items():
        (folder / file).write_bytes(data)
        yield name, folder / file
    for suffix, start in {
        "webp": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        "png": b"\x89PNG\r\n\x1a\n",
        "tif": b"II*\0\x08\0\0\0",
    }.items():
        yield f"a terabyte called .{suffix}", sparse(folder / f"huge.{suffix}", HUGE, start)
    for name, data in {
        "profile of 256 MB": profile_bomb(),
        "EXIF tags that unpack to 3 GB": sound[:33] + exif + sound[33:],
    }.items():
        (folder / "may-be-read.png").write_bytes(data)
        yield name, folder / "may-be-read.png"


def tables(folder: Path) -> Iterator[tuple[str, Path]]:
    """Hostile tables and Parquet files."""
    yield "a terabyte called .csv", sparse(folder / "t.csv", HUGE, b"path,label\n")
    yield "a terabyte called .parquet", sparse(folder / "t.parquet", HUGE, b"PAR1")
    file = folder / "rows.parquet"
    rows = 3_000_000
    labels = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), ["a"])
    table = pa.table({"image": pa.nulls(rows, pa.binary()), "label": labels})
    pq.write_table(table, file)
    yield "3 million rows in a few bytes", file
