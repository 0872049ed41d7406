"""``selkern data pack``: any images with labels as tar shards."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from selkern import __version__
from selkern.cli.parse import parse
from selkern.data.table_options import TableOptions
from selkern.errors import DataError, UsageError, printable
from selkern.progress import Progress, aligned, say

if TYPE_CHECKING:
    from selkern.data.pack import Packed

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_SHOWN = 10  # images that are left out


@dataclass(frozen=True, kw_only=True)
class DataPackOptions:
    """Write images with labels as tar shards, as WebDataset has them: train-000000.tar, ..., and classes.json.

    The bytes of the images stay as they are, and so do the splits; data without splits become images-000000.tar, ...
    Each image is a member KEY.jpg (or .png, ...), its class the number in KEY.cls.
    """

    source: Annotated[Positional[str], tyro.conf.arg(metavar="DATA")]
    """What `train --data` takes: a folder, .csv, .parquet, other shards."""
    to: Path
    """A new or empty folder for the shards."""
    shard_size: str = "256MB"
    """Of a shard, at most: a number with KB, MB, GB, MiB, ..."""
    seed: int = 0
    """Mixes the images of each split over its shards, as reading shard by shard needs it."""
    in_order: bool = False
    """Keep the order of the data instead."""
    on_bad_image: Literal["error", "skip"] = "error"
    """A file that cannot be read: end with an error, or leave it out and say so."""
    table: tyro.conf.OmitArgPrefixes[TableOptions] = field(default_factory=TableOptions)
    json: bool = False
    """Print one JSON object instead of text."""

    def __post_init__(self) -> None:
        _ = self.shard_bytes

    @property
    def shard_bytes(self) -> int:
        """Of a shard."""
        hits = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([KMG]I?|)B?", self.shard_size.strip().upper())
        size = int(float(hits[1]) * _UNITS[hits[2]]) if hits else 0
        if size < 10_000:
            fix = "give a number of at least 10 KB, such as 256MB"
            raise UsageError(f"shard size is {self.shard_size!r}", "--shard-size", fix)
        return size


def main(argv: list[str]) -> int:
    """`selkern data pack`; 3 where an image cannot be packed."""
    options = parse(DataPackOptions, argv, "data pack")
    say(f"selkern {__version__}: packing {printable(options.source)}")
    from selkern.data.pack import pack_shards
    from selkern.data.sources import open_source

    target = options.to.expanduser()
    with Progress("listing the images") as line:
        source = open_source(options.source, cut=False, on_bad=options.on_bad_image, table=options.table)
        line.show("packing", total=sum(map(len, source.parts)))
        done = pack_shards(
            source,
            target,
            options.shard_bytes,
            seed=None if options.in_order else options.seed,
            on_bad=options.on_bad_image,
            progress=line.advance,
        )
        line.show("reading the shards back", total=0)
        again = open_source(str(target), cut=False)
        packed = sum(part.images for part in done.parts)
        if sum(map(len, again.parts)) != packed or again.classes != source.classes:
            what = f"{sum(map(len, again.parts)):,} of {packed:,} images are hits in the shards"
            raise DataError(what, str(target), "report this: the shards are not as they should be")
    print(json.dumps(done.to_dict(), ensure_ascii=False) if options.json else "\n".join(_text(done, source.notes)))
    return 0


def _text(done: Packed, notes: tuple[str, ...]) -> Iterator[str]:
    yield from aligned(
        [
            ["shards", "images", "shards", "MB"],
            *([p.name, f"{p.images:,}", f"{p.shards:,}", f"{p.bytes / 1e6:,.1f}"] for p in done.parts),
        ]
    )
    for row in done.left_out[:_SHOWN]:
        yield f"left out: {row.where}: {row.reason}"
    if len(done.left_out) > _SHOWN:
        yield f"left out: {len(done.left_out) - _SHOWN:,} more; --json lists all"
    yield from (f"note: {note}" for note in notes)
    yield "\nnext:"
    yield f"  selkern train --data {shlex.quote(str(done.target))}"
